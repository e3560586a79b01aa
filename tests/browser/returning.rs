//! The server lost and found again.

use serde_json::json;
use tokio::process::Command;

use super::{calling::until_pictures_move, driver::Browser, talking::until_here};
use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Program, TestServer},
};

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
        let persons = "document.querySelector('#people-list').textContent";
        for name in &names {
            tab.until(&format!("{persons}.includes({name})")).await;
        }
        until_pictures_move(tab, 2).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
    }
    // Whether somebody was back already to hear it depends on who came first.
    tabs[0]
        .until("document.querySelectorAll('#chat-log .pending').length === 0")
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
        globalThis.room = join('quiet', { idleTimeout: 300, timeout: 3000 });
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
    assert_eq!(tab.run("return changes[1].reason").await, "no pong in time");
    server.signal("CONT").await;
    tab.until("room.state === 'open'").await;
    assert_eq!(tab.run("return room.id").await, id);
    let last = tab.run("return changes.at(-1)").await;
    assert_eq!(last, json!({"state": "open", "resumed": true}));
    browser.close().await;
}

/// The network is taken away under a call and a conversation, and given back: once cut, once silent.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_network_that_goes_and_comes_back_takes_nothing_with_it() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let mut tabs = Vec::new();
    for count in 1..=2 {
        let proxy = Proxy::start(server.address, || Fate::NONE).await;
        let tab = browser
            .open(&format!("http://{}/?room=net", proxy.address))
            .await;
        tab.click("#camera").await;
        tabs.push((tab, proxy));
        for (tab, _) in &tabs {
            until_here(tab, count).await;
        }
    }
    let ids = "return [...document.querySelectorAll('#people-list li')].map((item) => item.dataset.id)";
    let mut rosters = Vec::new();
    for (tab, _) in &tabs {
        until_pictures_move(tab, 1).await;
        rosters.push(tab.run(ids).await);
    }
    assert_eq!(browser.complaints().await, [""; 0]);

    let away = "document.querySelector('#state').dataset.state === 'reconnecting'";
    let back = "document.querySelector('#state').dataset.state === 'open'";
    let mut said = 0;
    for failure in [Failure::Reset, Failure::Stall] {
        for lost in 0..2 {
            let (tab, proxy) = &tabs[lost];
            let (other, _) = &tabs[1 - lost];
            proxy.refuse(true);
            proxy.fail(failure);
            // A browser that knows it is offline asks the server for a sign of life at once.
            let offline = json!({"offline": true, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
            tab.chrome("Network.emulateNetworkConditions", offline)
                .await;
            // Some of it is said before anyone notices.
            tab.type_into("#text", &format!("said {said}\n")).await;
            other.type_into("#text", &format!("heard {said}\n")).await;
            tab.until(away).await;
            until_pictures_move(tab, 1).await;
            tab.type_into("#text", &format!("said {}\n", said + 1))
                .await;
            other
                .type_into("#text", &format!("heard {}\n", said + 1))
                .await;

            proxy.refuse(false);
            let online = json!({"offline": false, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
            tab.chrome("Network.emulateNetworkConditions", online).await;
            tab.until(back).await;
            said += 2;
            for (tab, _) in &tabs {
                let words = "[...document.querySelectorAll('#chat-log .message-text')]";
                tab.until(&format!("{words}.length === {}", 2 * said)).await;
                tab.until("document.querySelectorAll('#chat-log .pending').length === 0")
                    .await;
                until_pictures_move(tab, 1).await;
            }
        }
    }
    for ((tab, _), roster) in tabs.iter().zip(rosters) {
        assert_eq!(tab.run(ids).await, roster);
        // In order, each once, and nobody has gone or failed to get something.
        for word in ["said", "heard"] {
            let order = format!(
                "return [...document.querySelectorAll('#chat-log .message-text')].map((item) => item.textContent)
                    .filter((text) => text.startsWith('{word}')).join()"
            );
            let expected: Vec<String> =
                (0..said).map(|number| format!("{word} {number}")).collect();
            assert_eq!(tab.run(&order).await, expected.join(","));
        }
        let text = tab.text("#chat-log").await;
        assert!(
            !text.contains(" left") && !text.contains("Not delivered"),
            "{text}"
        );
    }
    browser.close_regardless().await;
}
