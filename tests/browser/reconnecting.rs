//! The page and the client module when the server or the network fails.

use serde_json::json;
use tokio::process::Command;

use super::{
    driver::{Browser, Tab},
    page::{until_people, until_videos_play},
};
use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Program, TestServer},
};

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_call_continues_while_a_killed_server_restarts() {
    let mut server = Program::start([]).await;
    let address = server.address;
    let browser = Browser::start().await;
    let mut tabs = Vec::new();
    for count in 1..=3 {
        tabs.push(browser.open(&format!("http://{address}/?room=back")).await);
        for tab in &tabs {
            until_people(tab, count).await;
        }
    }
    for tab in &tabs {
        tab.click("#camera").await;
    }
    for tab in &tabs {
        until_videos_play(tab, 2).await;
    }
    assert_eq!(browser.console_errors().await, [""; 0]);

    server.signal("KILL").await;
    server.exit_code().await;
    for tab in &tabs {
        tab.until("document.querySelector('#state').dataset.state === 'reconnecting'")
            .await;
        // The call continues without the server.
        until_videos_play(tab, 2).await;
    }
    // This message is queued until the server is back.
    tabs[0]
        .type_into("#text", "sent while disconnected\n")
        .await;

    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command.args(["--listen", &address.to_string()]);
    let server = Program::run(command).await;
    assert_eq!(server.address, address);
    for tab in &tabs {
        tab.until("document.querySelector('#state').dataset.state === 'open'")
            .await;
        until_people(tab, 3).await;
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
        until_videos_play(tab, 2).await;
        tab.until("document.querySelectorAll('#tiles [data-video=true]').length === 3")
            .await;
    }
    // Whoever the server has lost is said to have left, and to have joined again.
    for tab in &tabs {
        tab.until(
            "((lines) => lines.filter((line) => line.endsWith(' left')).length === 2
                && lines.slice(lines.findLastIndex((line) => line.endsWith(' left')))
                    .filter((line) => line.endsWith(' joined')).length === 2
            )([...document.querySelectorAll('#chat-log .notice')].map((line) => line.textContent))",
        )
        .await;
    }
    // The queued message is sent, or rejected: that depends on whether another tab has reconnected
    // before.
    tabs[0]
        .until("document.querySelectorAll('#chat-log .pending').length === 0")
        .await;

    // The console has no errors but those of failed connections.
    let errors = browser.console_errors().await;
    assert!(
        errors
            .iter()
            .any(|text| text.contains("ERR_CONNECTION_REFUSED")),
        "{errors:?}"
    );
    for text in errors {
        let is_refused = text.contains("ERR_CONNECTION_REFUSED") && text.contains("/room/back?");
        assert!(
            is_refused || text.contains("WebSocket connection to"),
            "{text}"
        );
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_silent_server_is_detected_and_its_session_resumed() {
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
    // While the server answers pings, the connection stays, although no other message arrives.
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

/// The network fails and returns during a call and a conversation: once with a reset, once in
/// silence.
#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_network_failure_loses_no_session_and_no_message() {
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
            until_people(tab, count).await;
        }
    }
    let ids =
        "return [...document.querySelectorAll('#people-list li')].map((item) => item.dataset.id)";
    let mut rosters = Vec::new();
    for (tab, _) in &tabs {
        until_videos_play(tab, 1).await;
        rosters.push(tab.run(ids).await);
    }
    assert_eq!(browser.console_errors().await, [""; 0]);

    let disconnected = "document.querySelector('#state').dataset.state === 'reconnecting'";
    let connected = "document.querySelector('#state').dataset.state === 'open'";
    let mut sent = 0;
    for failure in [Failure::Reset, Failure::Stall] {
        for lost in 0..2 {
            let (tab, proxy) = &tabs[lost];
            let (other, _) = &tabs[1 - lost];
            proxy.refuse(true);
            proxy.fail(failure);
            // Tell the browser that it is offline: then the client module sends a ping at once.
            let offline = json!({"offline": true, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
            tab.devtools("Network.emulateNetworkConditions", offline)
                .await;
            // Send messages before the failure is noticed, and more after.
            tab.type_into("#text", &format!("first {sent}\n")).await;
            other.type_into("#text", &format!("second {sent}\n")).await;
            tab.until(disconnected).await;
            until_videos_play(tab, 1).await;
            assert_eq!(tab.run(ids).await, rosters[lost]);
            tab.type_into("#text", &format!("first {}\n", sent + 1))
                .await;
            other
                .type_into("#text", &format!("second {}\n", sent + 1))
                .await;

            proxy.refuse(false);
            let online = json!({"offline": false, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
            tab.devtools("Network.emulateNetworkConditions", online)
                .await;
            tab.until(connected).await;
            sent += 2;
            for (tab, _) in &tabs {
                let words = "[...document.querySelectorAll('#chat-log .message-text')]";
                tab.until(&format!("{words}.length === {}", 2 * sent)).await;
                tab.until("document.querySelectorAll('#chat-log .pending').length === 0")
                    .await;
                until_videos_play(tab, 1).await;
            }
        }
    }
    for ((tab, _), roster) in tabs.iter().zip(rosters) {
        assert_eq!(tab.run(ids).await, roster);
        // Every message is there once and in order. Nobody has left, and every message was
        // delivered.
        for word in ["first", "second"] {
            let order = format!(
                "return [...document.querySelectorAll('#chat-log .message-text')].map((item) => item.textContent)
                    .filter((text) => text.startsWith('{word}')).join()"
            );
            let expected: Vec<String> =
                (0..sent).map(|number| format!("{word} {number}")).collect();
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

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_banner_in_every_view_says_that_the_network_is_gone() {
    let server = Program::start([]).await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/?room=banner", server.address))
        .await;
    until_people(&tab, 1).await;
    let banner = "document.querySelector('#banner')";
    assert_eq!(
        tab.run(&format!("return {banner}.checkVisibility()")).await,
        false
    );
    // The state is still `open`: the page believes the browser at once.
    server.signal("STOP").await;
    tab.run("dispatchEvent(new Event('offline'))").await;
    assert!(tab.text("#banner").await.contains("You are offline"));
    for (width, height) in [(390, 844), (844, 390), (1440, 900)] {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        tab.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        tab.until(&format!(
            "{banner}.getBoundingClientRect().height > 20 && {banner}.getBoundingClientRect().bottom < innerHeight / 2"
        ))
        .await;
    }
    server.signal("CONT").await;
    tab.until(&format!("!{banner}.checkVisibility()")).await;
    browser.close_regardless().await;
}

/// Makes every WebSocket of the page close at once with this code and reason, and every other request fail.
async fn refuse_connections(tab: &Tab<'_>, code: u16, reason: &str) {
    let source = format!(
        "globalThis.WebSocket = class extends EventTarget {{
            constructor() {{
                super();
                setTimeout(() => this.dispatchEvent(new CloseEvent('close', {{ code: {code}, reason: '{reason}' }})));
            }}
            close() {{}}
        }};
        globalThis.fetch = () => Promise.reject(new TypeError('Failed to fetch'));"
    );
    tab.devtools(
        "Page.addScriptToEvaluateOnNewDocument",
        json!({"source": source}),
    )
    .await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_says_why_it_waits_for_a_room() {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    for (code, reason, expected) in [
        (
            4503,
            "the room is full: retry in 5000 ms",
            "The room is full: trying again in",
        ),
        (
            4429,
            "too many sessions of this address (retry in 5000 ms)",
            "Too many sessions of this address: trying again in",
        ),
        (
            1012,
            "the server is stopping: retry in 900 ms",
            "The server is restarting",
        ),
        (1006, "", "Cannot reach the server: trying again"),
    ] {
        let tab = browser.open(&format!("http://{}/", server.address)).await;
        refuse_connections(&tab, code, reason).await;
        tab.go(&format!("http://{}/?room=full", server.address))
            .await;
        tab.until(&format!(
            "document.querySelector('#banner').checkVisibility() && document.querySelector('#banner').textContent.includes('{expected}')"
        ))
        .await;
    }
    browser.close().await;
}

/// Waits until the page of a room whose connections are refused shows the entry form with this text.
async fn assert_refusal_explained(code: u16, reason: &str, expected: &str) {
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    refuse_connections(&tab, code, reason).await;
    tab.go(&format!("http://{}/?room=closed", server.address))
        .await;
    tab.until(&format!(
        "document.querySelector('#entry').checkVisibility() && !document.querySelector('#room').checkVisibility()
            && document.querySelector('#entry-error').textContent.includes('{expected}')"
    ))
    .await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn who_is_closed_before_entering_sees_the_entry_form_and_the_reason() {
    let expected = "The server ended the connection: closed by an operator.";
    assert_refusal_explained(1008, "closed by an operator", expected).await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn who_lacks_a_valid_token_sees_the_entry_form_and_what_to_do() {
    let expected = "The room needs a valid link: the token has expired. Ask for a new one.";
    assert_refusal_explained(4401, "the token has expired", expected).await;
    let expected = "You may not enter this room: the token does not allow this room.";
    assert_refusal_explained(4403, "the token does not allow this room", expected).await;
}
