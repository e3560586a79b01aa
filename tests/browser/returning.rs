//! The server lost and found again.

use tokio::process::Command;

use super::{calling::until_pictures_move, driver::Browser, talking::until_here};
use crate::support::Program;

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn after_the_server_was_killed_everyone_is_back_and_the_call_goes_on() {
    let mut server = Program::start([]).await;
    let address = server.address;
    let browser = Browser::start().await;
    let mut tabs = Vec::new();
    for count in 1..=3 {
        tabs.push(browser.open(&format!("http://{address}/?room=back")).await);
        for tab in &tabs {
            until_here(tab, count).await;
        }
    }
    for tab in &tabs {
        tab.click("#camera").await;
    }
    for tab in &tabs {
        until_pictures_move(tab, 2).await;
    }
    assert_eq!(browser.complaints().await, [""; 0]);

    server.signal("KILL").await;
    server.exit_code().await;
    for tab in &tabs {
        tab.until("document.querySelector('#state').dataset.state === 'reconnecting'")
            .await;
        // The call needs no server.
        until_pictures_move(tab, 2).await;
    }
    // What is said now is heard later.
    tabs[0].type_into("#text", "said while away\n").await;

    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command.args(["--listen", &address.to_string()]);
    let server = Program::run(command).await;
    assert_eq!(server.address, address);
    for tab in &tabs {
        tab.until("document.querySelector('#state').dataset.state === 'open'")
            .await;
        until_here(tab, 3).await;
    }
    let mut names = Vec::new();
    for tab in &tabs {
        names.push(
            tab.run("return document.querySelector('#name').value")
                .await,
        );
    }
    for tab in &tabs {
        let persons = "document.querySelector('#persons').textContent";
        for name in &names {
            tab.until(&format!("{persons}.includes({name})")).await;
        }
        until_pictures_move(tab, 2).await;
        tab.until("document.querySelectorAll('#tiles [data-seen=true]').length === 3")
            .await;
    }
    // Whether somebody was back already to hear it depends on who came first.
    tabs[0]
        .until("document.querySelectorAll('#said .waits').length === 0")
        .await;

    // Nothing but the connections that failed was complained of.
    let complaints = browser.complaints().await;
    assert!(
        complaints
            .iter()
            .any(|text| text.contains("ERR_CONNECTION_REFUSED")),
        "{complaints:?}"
    );
    for text in complaints {
        assert!(text.contains("WebSocket connection to"), "{text}");
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_server_that_says_nothing_any_longer_is_noticed() {
    let server = Program::start([]).await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(
        "const { join } = await import('/anteroom.js');
        globalThis.room = join('quiet', { silence: 300, timeout: 3000 });
        globalThis.changes = [];
        room.addEventListener('statechange', ({ detail }) => changes.push(detail));",
    )
    .await;
    tab.until("room.state === 'open'").await;
    let id = tab.run("return room.id").await;
    // A server that answers is left alone, however quiet it is: seen over several pings.
    tab.run(
        "return new Promise((resolve) => {
            let pongs = 0;
            room.addEventListener('wire', ({ detail: { direction, text } }) => {
                if (direction === 'in' && text.includes('pong') && ++pongs === 3) resolve();
            });
        })",
    )
    .await;
    assert_eq!(tab.run("return changes.length").await, 1);

    server.signal("STOP").await;
    tab.until("room.state === 'reconnecting'").await;
    assert_eq!(tab.run("return changes[1].reason").await, "no sign of life");
    server.signal("CONT").await;
    tab.until("room.state === 'open'").await;
    assert_ne!(tab.run("return room.id").await, id);
    browser.close().await;
}
