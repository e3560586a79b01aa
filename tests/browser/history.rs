//! The page shows what was said before, in rooms that keep it.

use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    driver::{Browser, Tab},
    page::{until_message, until_people},
};
use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Client, Program, TestServer},
};

/// Counts the messages that the page shows.
const COUNT: &str = "document.querySelectorAll('#chat-log .message-text').length";

async fn history_server() -> TestServer {
    TestServer::with(|config| {
        config.history.rooms = vec!["tea".into()];
        config.liveness.resume_seconds = 1;
    })
    .await
}

/// Says something to all, and waits for the receipt that it is stored.
async fn say(client: &mut Client, kind: &str, data: Value) {
    client
        .send(json!({"type": kind, "receiver": "all", "data": data, "ref": "said"}))
        .await;
    loop {
        let message = client.next().await;
        if message["type"] == "ack" && message["data"]["ref"] == "said" {
            return;
        }
    }
}

/// The texts of the messages that a tab shows.
async fn texts(tab: &Tab<'_>) -> Vec<String> {
    let script = "return [...document.querySelectorAll('#chat-log .message-text')].map((item) => item.textContent)";
    serde_json::from_value(tab.run(script).await).unwrap()
}

fn numbered(numbers: std::ops::RangeInclusive<u32>) -> Vec<String> {
    numbers.map(|number| format!("message {number}")).collect()
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_shows_what_was_said_before_and_older_messages_at_a_click() {
    let server = history_server().await;
    let mut alice = Client::join(&server, "tea").await;
    for number in 1..=120 {
        let data = json!({"text": format!("message {number}"), "name": "Alice <b>"});
        say(&mut alice, "chat", data).await;
    }
    drop(alice.into_raw());
    let mut bob = Client::join(&server, "tea").await;
    // Only chat messages are shown.
    say(&mut bob, "cursor", json!({"x": 1})).await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=tea", server.address);
    let tab = browser.open(&url).await;
    tab.until(&format!("{COUNT} === 49")).await;
    assert_eq!(texts(&tab).await, numbered(72..=120));
    let facts = tab
        .run(
            "const log = document.querySelector('#chat-log');
            const lines = [...log.children];
            const earlier = lines.slice(1, -1);
            return [
                lines[0].textContent,
                earlier.every((line) => line.ariaLive === 'off' && line.querySelector('.name-tag.gone').textContent === 'Alice <b>'),
                earlier.every((line) => Math.abs(Date.now() - new Date(line.querySelector('time').dateTime)) < 3600_000),
                lines.at(-1).textContent.includes('You joined.'),
                document.querySelector('#announcement').textContent,
            ]",
        )
        .await;
    assert_eq!(
        facts,
        json!([
            "Show earlier messages",
            true,
            true,
            true,
            "Earlier messages: 49"
        ])
    );
    // A size that has just changed is observed with the next frame.
    tab.until("(log => log.scrollHeight - log.scrollTop - log.clientHeight < 2)(document.querySelector('#chat-log'))")
        .await;
    // What is said from now on is below.
    say(&mut bob, "chat", json!("now")).await;
    until_message(&tab, "now").await;
    let last = "document.querySelector('#chat-log').lastElementChild";
    assert_eq!(
        tab.run(&format!("return {last}.ariaLive")).await,
        Value::Null
    );
    assert_eq!(
        tab.run(&format!(
            "return {last}.previousElementSibling.className.includes('end')"
        ))
        .await,
        true
    );

    // The reader stays where they are when older messages come.
    let top = "[...document.querySelectorAll('#chat-log .message-text')].find((item) => item.textContent === 'message 72').getBoundingClientRect().top";
    for (first, is_last) in [(22, false), (1, true)] {
        tab.run("document.querySelector('#chat-log').scrollTop = 0")
            .await;
        let button = tab
            .run("return document.querySelector('#chat-log button').getBoundingClientRect().height")
            .await;
        let before = tab.run(&format!("return {top}")).await.as_f64().unwrap();
        tab.click("#chat-log button").await;
        tab.until(&format!("{COUNT} === {}", 122 - first)).await;
        let after = tab.run(&format!("return {top}")).await.as_f64().unwrap();
        let moved = (after - before).abs();
        assert!(moved < button.as_f64().unwrap() + 10.0, "{moved} px");
        let mut expected = numbered(first..=120);
        expected.push("now".into());
        assert_eq!(texts(&tab).await, expected);
        assert_eq!(
            tab.run("return [document.querySelector('#chat-log button') === null, document.activeElement.id]")
                .await,
            json!([is_last, "chat-log"])
        );
    }
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_message_of_the_page_keeps_its_name_and_one_of_yesterday_its_date() {
    let server = history_server().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=tea", server.address);
    let tab = browser.open(&url).await;
    until_people(&tab, 1).await;
    let name = tab
        .run("return document.querySelector('#name').value")
        .await;
    // Nobody else is there: the message is for whoever comes later.
    tab.type_into("#text", "hello?\n").await;
    tab.until("document.querySelector('#chat-log .message-text') && !document.querySelector('#chat-log .pending')")
        .await;
    assert_eq!(
        tab.run("return document.querySelector('#chat-log .error')")
            .await,
        Value::Null
    );
    let other = browser.open(&url).await;
    until_message(&other, "hello?").await;
    let shown = "return [...document.querySelectorAll('#chat-log .name-tag')].map((tag) => [tag.textContent, tag.className])";
    assert_eq!(other.run(shown).await, json!([[name, "name-tag"]]));

    // A browser whose clock is a day ahead.
    let source = "const RealDate = Date;
        globalThis.Date = class extends RealDate {
            constructor(...parts) { super(...(parts.length > 0 ? parts : [RealDate.now() + 86_400_000])); }
        };";
    let tomorrow = browser.open("about:blank").await;
    tab.close().await;
    tomorrow
        .devtools(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": source}),
        )
        .await;
    let phone = json!({"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true});
    tomorrow
        .devtools("Emulation.setDeviceMetricsOverride", phone)
        .await;
    tomorrow.go(&url).await;
    until_message(&tomorrow, "hello?").await;
    // A phone shows the call at first. What was said before is not unread.
    assert_eq!(
        tomorrow
            .run("return document.querySelector('#views [data-unread]')")
            .await,
        Value::Null
    );
    assert_eq!(tomorrow.run(shown).await[0], json!([name, "name-tag gone"]));
    let times = "return [...document.querySelectorAll('#chat-log time')].map((time) => /\\d+\\/\\d+\\/\\d+/.test(time.textContent))";
    // The line of the joining has a time alone.
    assert_eq!(
        tomorrow.run(times).await.as_array().unwrap()[..2],
        [json!(true), json!(false)]
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_new_session_shows_what_was_missed_and_nothing_twice() {
    let server = history_server().await;
    let mut alice = Client::join(&server, "tea").await;
    say(&mut alice, "chat", json!("before")).await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let browser = Browser::start().await;
    let tab = browser
        .open(&format!("http://{}/?room=tea", proxy.address))
        .await;
    until_message(&tab, "before").await;
    let id = tab
        .run("return document.querySelector('#people-list li').dataset.id")
        .await;
    say(&mut alice, "chat", json!("live")).await;
    until_message(&tab, "live").await;
    alice
        .send(json!({"type": "chat", "receiver": id, "data": "private"}))
        .await;
    until_message(&tab, "private").await;
    tab.type_into("#text", "own\n").await;
    tab.until("!document.querySelector('#chat-log .pending')")
        .await;
    // One message arrives, and its receipt is lost. The next one does not arrive.
    proxy.hold(false, true);
    tab.type_into("#text", "arrived\n").await;
    loop {
        let message = alice.next().await;
        if message["type"] == "chat" && message["data"]["text"] == "arrived" {
            break;
        }
    }
    proxy.hold(true, true);
    tab.type_into("#text", "lost\n").await;
    proxy.refuse(true);
    proxy.fail(Failure::Reset);
    tab.until("document.querySelector('#state').dataset.state === 'reconnecting'")
        .await;
    tab.type_into("#text", "queued\n").await;
    while alice.next().await["type"] != "close" {}
    say(&mut alice, "chat", json!("missed")).await;
    proxy.hold(false, false);
    proxy.refuse(false);
    until_message(&tab, "missed").await;
    tab.until("!document.querySelector('#chat-log .pending')")
        .await;
    assert_eq!(
        texts(&tab).await,
        [
            "before", "live", "private", "own", "arrived", "lost", "missed", "queued"
        ]
    );
    let errors = "return [...document.querySelectorAll('#chat-log .error')].map((error) => error.parentElement.querySelector('.message-text').textContent)";
    assert_eq!(tab.run(errors).await, json!(["lost"]));
    let ends = "return [...document.querySelectorAll('#chat-log .end')].length";
    assert_eq!(tab.run(ends).await, 1);
    say(&mut alice, "chat", json!("after")).await;
    until_message(&tab, "after").await;
    assert_eq!(texts(&tab).await.len(), 9);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_keeps_what_a_server_forgets() {
    let options = ["--history-room", "tea"];
    let mut server = Program::start(options).await;
    let address = server.address;
    let browser = Browser::start().await;
    let mut alice = Client::connect(address, "/room/tea").await;
    say(&mut alice, "chat", json!("before")).await;
    let tab = browser.open(&format!("http://{address}/?room=tea")).await;
    until_message(&tab, "before").await;
    say(&mut alice, "chat", json!("live")).await;
    until_message(&tab, "live").await;
    server.signal("KILL").await;
    server.exit_code().await;
    tab.until("document.querySelector('#state').dataset.state === 'reconnecting'")
        .await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", &address.to_string()])
        .args(options);
    let server = Program::run(command).await;
    let mut bob = Client::connect(server.address, "/room/tea").await;
    say(&mut bob, "chat", json!("after")).await;
    until_message(&tab, "after").await;
    assert_eq!(texts(&tab).await, ["before", "live", "after"]);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_without_a_history_asks_for_none_and_shows_none() {
    let server = history_server().await;
    let browser = Browser::start().await;
    let mut alice = Client::join(&server, "coffee").await;
    let tab = browser
        .open(&format!("http://{}/?room=coffee", server.address))
        .await;
    until_people(&tab, 2).await;
    tab.type_into("#text", "hello\n").await;
    loop {
        let message = alice.next().await;
        if message["type"] == "chat" {
            assert_eq!(message["data"], "hello");
            break;
        }
    }
    tab.until("!document.querySelector('#chat-log .pending')")
        .await;
    assert_eq!(
        tab.run("return document.querySelectorAll('#chat-log > *').length")
            .await,
        1
    );
    tab.click("#fold").await;
    tab.until("document.querySelector('#messages li')").await;
    let asked = "return [...document.querySelectorAll('#messages li')].filter((item) => item.dataset.text.includes('\"history\",')).length";
    assert_eq!(tab.run(asked).await, 0);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_says_what_cannot_be_read_or_stored_and_reads_again_at_a_click() {
    let server = history_server().await;
    let mut alice = Client::join(&server, "tea").await;
    say(&mut alice, "chat", json!("before")).await;
    let browser = Browser::start().await;
    // The first request for the history fails, and every chat message is delivered and not stored.
    let source = "
        let failed = false;
        globalThis.WebSocket = class extends WebSocket {
            send(text) {
                const { type, ref } = JSON.parse(text);
                if (type === 'chat') super.send(text.replace(/,\"ref\":\\d+/, ''));
                else if (type !== 'history' || failed) return super.send(text);
                failed ||= type === 'history';
                const answer = { type: 'error', sender: 'server', receiver: '', data: { code: 'history_failed', message: 'try again', ref } };
                queueMicrotask(() => this.dispatchEvent(new MessageEvent('message', { data: JSON.stringify(answer) })));
            }
        };";
    let tab = browser.open("about:blank").await;
    tab.devtools(
        "Page.addScriptToEvaluateOnNewDocument",
        json!({"source": source}),
    )
    .await;
    tab.go(&format!("http://{}/?room=tea", server.address))
        .await;
    tab.until("document.querySelector('#chat-log .error')?.textContent.includes('Earlier messages are not shown: try again.')")
        .await;
    assert_eq!(texts(&tab).await, [""; 0]);
    tab.click("#chat-log button").await;
    until_message(&tab, "before").await;
    tab.type_into("#text", "not stored\n").await;
    until_message(&tab, "not stored").await;
    tab.until("document.querySelector('#chat-log em.error')?.textContent === ' People who join later do not see this.'")
        .await;
    browser.close().await;
}
