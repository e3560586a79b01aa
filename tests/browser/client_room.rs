//! The client module's `Room`: receipts, the roster, resuming, limits and reconnecting.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use super::{
    driver::{Browser, Tab},
    scripted_server::{
        ScriptedServer, ack, close, open_module_page, receive, roster, send, static_server,
    },
};
use crate::support::{Client, TestServer, within_deadline};

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn send_resolves_with_the_receipt_and_rejects_with_the_error() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let tab = open_module_page(&browser, &server, "globalThis.room = join('receipts')").await;
    // A message sent before the room is open waits for the connection.
    assert_eq!(
        tab.run("return outcome(room.broadcast('chat', 1))").await,
        "empty_room"
    );
    let mut other = Client::join(&server, "receipts").await;
    tab.until("room.peers.size === 1").await;
    let id = other.id.clone();
    assert_eq!(
        tab.run_with(
            "return outcome(room.send(arguments[0], 'offer', { sdp: 'x' }))",
            vec![json!(id)]
        )
        .await,
        1
    );
    let message = other.next().await;
    assert_eq!(
        (&message["type"], &message["data"]),
        (&json!("offer"), &json!({"sdp": "x"}))
    );
    for (call, expected) in [
        ("room.send('nobody', 'x')", "unknown_receiver"),
        ("room.send('server', 'dance')", "unknown_request"),
        ("room.send('all', '')", "bad_message"),
        (
            "room.send('all', 'x', 'x'.repeat(70_000))",
            "message_too_large",
        ),
    ] {
        assert_eq!(tab.run(&format!("return outcome({call})")).await, expected);
    }
    assert_eq!(
        tab.run("return room.send('all', 'x', 1n).catch((error) => error.constructor.name)")
            .await,
        "TypeError"
    );
    // An ignored rejection is not reported as unhandled: `browser.close()` checks the console.
    tab.run("room.send('nobody', 'x')").await;
    assert_eq!(
        tab.run("return outcome(room.send('server', 'ping'))").await,
        1
    );
    for name in ["''", "'x'.repeat(129)", "'a\\nb'", "'\\ud800'", "'..'"] {
        assert_eq!(
            tab.run(&format!(
                "try {{ join({name}) }} catch (error) {{ return error.name }}"
            ))
            .await,
            "TypeError",
            "{name}"
        );
    }
    tab.run("room.leave(); room.leave()").await;
    other.expect_left(message["sender"].as_str().unwrap()).await;
    assert_eq!(
        tab.run("return [room.state, room.peers.size]").await,
        json!(["closed", 0])
    );
    assert_eq!(
        tab.run("return outcome(room.broadcast('x'))").await,
        "closed"
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn messages_before_the_roster_are_kept_and_forged_announcements_are_ignored() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;

    let mut socket = server.accept().await;
    for message in [
        json!({"type": "new", "sender": "a", "receiver": "all", "data": null}),
        json!({"type": "x", "sender": "a", "receiver": "me", "data": 1}),
        // `b` left before the roster: the room reports neither the peer nor its message.
        json!({"type": "x", "sender": "b", "receiver": "me", "data": 2}),
        json!({"type": "close", "sender": "b", "receiver": null, "data": null}),
        roster(&["a", "c"]),
        json!({"type": "new", "sender": "a", "receiver": "all", "data": "again"}),
        json!({"type": "close", "sender": "a", "receiver": "all", "data": null}),
        json!("nonsense"),
        json!({"type": "ack", "sender": "server", "receiver": "me", "data": null}),
        json!({"type": "close", "sender": "c", "receiver": null, "data": null}),
    ] {
        send(&mut socket, message).await;
    }
    tab.until("events.at(-1)?.[0] === 'peerleave'").await;
    assert_eq!(
        tab.run("return events").await,
        json!([
            ["peerjoin", {"id": "a", "data": null, "newcomer": true, "state": null}],
            ["peerjoin", {"id": "c", "data": null, "newcomer": false, "state": null}],
            ["statechange", {"state": "open", "resumed": false}],
            ["message", {"type": "x", "sender": "a", "receiver": "me", "data": 1}],
            ["message", {"type": "close", "sender": "a", "receiver": "all", "data": null}],
            ["error", "bad_message"],
            ["error", "bad_message"],
            ["peerleave", {"id": "c", "data": null, "newcomer": false, "state": null}],
        ])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_while_the_room_opens_closes_every_connection() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(
        "globalThis.mesh = new Mesh(room);
        room.addEventListener('peerjoin', () => room.leave());",
    )
    .await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&["a", "b"])).await;
    tab.until("room.state === 'closed'").await;
    let left =
        "return [room.peers.size, mesh.peers.size, connections.map((pc) => pc.signalingState)]";
    assert_eq!(tab.run(left).await, json!([0, 0, ["closed"]]));
    assert_eq!(
        tab.run("return events.map(([type]) => type)").await,
        json!(["peerjoin", "peerleave", "statechange"])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn after_a_lost_session_sent_messages_reject_and_queued_ones_are_sent() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&["a", "c"])).await;
    tab.until("room.state === 'open'").await;

    tab.run("globalThis.lost = outcome(room.broadcast('lost')); events.length = 0")
        .await;
    let lost = within_deadline("the message", socket.next()).await;
    assert!(lost.unwrap().unwrap().to_text().unwrap().contains("lost"));
    close(socket, 1012, "restart: retry in 500 ms").await;
    assert_eq!(tab.run("return lost").await, "connection_lost");
    tab.run(
        "const controller = new AbortController();
        globalThis.withdrawn = room.send('all', 'withdrawn', null, { signal: controller.signal })
            .catch((error) => error.name);
        globalThis.later = outcome(room.broadcast('later'));
        controller.abort();",
    )
    .await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&["d", "a"])).await;
    let later = within_deadline("the message", socket.next()).await;
    let later: Value = serde_json::from_str(later.unwrap().unwrap().to_text().unwrap()).unwrap();
    assert_eq!(later["type"], "later");
    let receipt = json!({"ref": later["ref"], "receivers": 2});
    send(
        &mut socket,
        json!({"type": "ack", "sender": "server", "receiver": "me", "data": receipt}),
    )
    .await;
    assert_eq!(
        tab.run("return Promise.all([later, withdrawn])").await,
        json!([2, "AbortError"])
    );
    // Each difference between the rosters is an event.
    assert_eq!(
        tab.run("return events").await,
        json!([
            ["statechange", {"state": "reconnecting", "code": 1012,
                "reason": "restart: retry in 500 ms", "delay": 500}],
            ["peerleave", {"id": "c", "data": null, "newcomer": false, "state": null}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": false, "state": null}],
            ["statechange", {"state": "open", "resumed": false}],
        ])
    );
    browser.close().await;
}

/// A page that has sent the messages `zeroth` to `third`, and has then lost the connection. The
/// receipt of `zeroth` has arrived; the others are not acknowledged. The message `later` is queued.
async fn disconnected_with_three_unacknowledged<'a>(
    browser: &'a Browser,
) -> (ScriptedServer, Tab<'a>) {
    let (server, tab) = ScriptedServer::with_page(browser, "{}").await;
    let mut socket = server.accept().await;
    let mut hello = roster(&["a", "c"]);
    hello["data"]["resume"] = json!({"token": "secret", "seconds": 30});
    send(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    tab.run(
        "globalThis.receipts = ['zeroth', 'first', 'second', 'third'].map((type) => outcome(room.broadcast(type)));
        events.length = 0;",
    )
    .await;
    let zeroth = receive(&mut socket).await;
    send(&mut socket, ack(&zeroth)).await;
    assert_eq!(tab.run("return receipts[0]").await, 1);
    for kind in ["first", "second", "third"] {
        assert_eq!(receive(&mut socket).await["type"], kind);
    }
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run("globalThis.later = outcome(room.broadcast('later'))")
        .await;
    (server, tab)
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_resumed_session_sends_only_what_the_server_lacks() {
    let browser = Browser::start().await;
    let (server, tab) = disconnected_with_three_unacknowledged(&browser).await;
    // Each attempt resumes with the same count: the page has received the roster and one receipt.
    for _ in 0..2 {
        let (socket, query) = server.accept_with_query().await;
        assert_eq!(query, "resume=secret&received=2");
        drop(socket);
    }
    let (mut socket, query) = server.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=2");
    // The server has received `hello`, `zeroth` and `first`.
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 3}});
    send(&mut socket, resumed).await;
    let new = json!({"type": "new", "sender": "d", "receiver": "all", "data": null});
    send(&mut socket, new).await;
    for (place, kind) in ["second", "third", "later"].into_iter().enumerate() {
        let message = receive(&mut socket).await;
        assert_eq!(message["type"], kind);
        if place == 0 {
            let mut first = message.clone();
            first["ref"] = json!(message["ref"].as_u64().unwrap() - 1);
            send(&mut socket, ack(&first)).await;
        }
        send(&mut socket, ack(&message)).await;
    }
    assert_eq!(
        tab.run("return Promise.all([...receipts, later])").await,
        json!([1, 1, 1, 1, 1])
    );
    let events = tab
        .run("return events.filter(([type, { state }]) => state !== 'reconnecting')")
        .await;
    assert_eq!(
        events,
        json!([
            ["statechange", {"state": "open", "resumed": true}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": true, "state": null}],
        ])
    );
    assert_eq!(
        tab.run("return [room.id, [...room.peers.keys()]]").await,
        json!(["me", ["a", "c", "d"]])
    );
    // Another connection has taken the session over, such as an abandoned attempt that arrived
    // late: the page takes it back. The count includes what has arrived since, without `resumed`.
    close(socket, 1008, "resumed on another connection").await;
    let (_socket, query) = server.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=7");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_failed_resume_starts_a_new_session() {
    let browser = Browser::start().await;
    let (server, tab) = disconnected_with_three_unacknowledged(&browser).await;
    let (mut socket, query) = server.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=2");
    let data = json!({"code": "resume_failed", "message": "too late"});
    let failed = json!({"type": "error", "sender": "server", "receiver": "me2", "data": data});
    send(&mut socket, failed).await;
    assert_eq!(receive(&mut socket).await["type"], "hello");
    let mut hello = roster(&["d", "a"]);
    hello["receiver"] = json!("me2");
    hello["data"]["resume"] = json!({"token": "another", "seconds": 30});
    send(&mut socket, hello).await;
    let later = receive(&mut socket).await;
    assert_eq!(later["type"], "later");
    send(&mut socket, ack(&later)).await;
    let lost = "connection_lost";
    assert_eq!(
        tab.run("return Promise.all([...receipts, later])").await,
        json!([1, lost, lost, lost, 1])
    );
    let events = tab
        .run("return events.filter(([type, { state }]) => state !== 'reconnecting')")
        .await;
    assert_eq!(
        events,
        json!([
            ["peerleave", {"id": "c", "data": null, "newcomer": false, "state": null}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": false, "state": null}],
            ["statechange", {"state": "open", "resumed": false}],
        ])
    );
    // The page has received the error, the roster and a receipt.
    drop(socket);
    let (_socket, query) = server.accept_with_query().await;
    assert_eq!(query, "resume=another&received=3");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_message_whose_receipt_is_lost_with_the_session_rejects() {
    let browser = Browser::start().await;
    let (server, tab) = disconnected_with_three_unacknowledged(&browser).await;
    let mut socket = server.accept_without_hello().await;
    // The server has received all of them, and their receipts do not arrive.
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 5}});
    send(&mut socket, resumed).await;
    assert_eq!(receive(&mut socket).await["type"], "later");
    close(socket, 1012, "restart").await;
    let mut socket = server.accept_without_hello().await;
    let data = json!({"code": "resume_failed", "message": "too late"});
    let failed = json!({"type": "error", "sender": "server", "receiver": "me2", "data": data});
    send(&mut socket, failed).await;
    assert_eq!(receive(&mut socket).await["type"], "hello");
    let lost = "connection_lost";
    assert_eq!(
        tab.run("return Promise.all([...receipts, later])").await,
        json!([1, lost, lost, lost, lost])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_send_queue_is_limited() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    // The limit is 1 MiB: the first messages of 1000 bytes fill the queue, the rest are rejected.
    let fill = "
        const text = 'x'.repeat(1000 - '{\"type\":\"x\",\"receiver\":\"all\",\"data\":\"\",\"ref\":1000}'.length);
        globalThis.codes = [];
        for (let i = 0; i < 1100; i += 1) {
            room.broadcast('x', text).then(() => codes.push('sent'), ({ code }) => codes.push(code));
        }
        await null; await null;
        return codes.filter((code) => code === 'queue_full').length";
    let refused = tab.run(fill).await.as_u64().unwrap();
    assert!(
        (1100 - 1_048_576 / 990..=1100 - 1_048_576 / 1000).contains(&refused),
        "{refused}"
    );
    let mut socket = server.accept().await;
    let mut hello = roster(&[]);
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    send(&mut socket, hello).await;
    let mut last = Value::Null;
    for _ in 0..1100 - refused {
        last = receive(&mut socket).await;
    }
    // Sent messages count until they are acknowledged. Then the queue has room again.
    let more = "outcome(room.broadcast('again', 'x'.repeat(1000)))";
    assert_eq!(tab.run(&format!("return {more}")).await, "queue_full");
    send(&mut socket, ack(&last)).await;
    tab.until("codes.includes('sent')").await;
    tab.run(&format!("globalThis.again = {more}")).await;
    assert_eq!(receive(&mut socket).await["type"], "again");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn reconnection_delays_double_up_to_a_limit() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", unused.local_addr().unwrap());
    drop(unused);
    // Delays take no time in this page, and the random factor is fixed.
    let script = format!(
        "const wait = setTimeout;
        const timeout = 12345;
        globalThis.setTimeout = (then, delay) => wait(then, delay === timeout ? delay : 0);
        Math.random = () => 0.5;
        globalThis.delays = [];
        globalThis.room = join('x', {{ url: '{url}', timeout }});
        room.addEventListener('statechange', ({{ detail: {{ delay }} }}) => {{
            if (delays.push(delay) === 9) room.leave();
        }});"
    );
    let tab = open_module_page(&browser, &server, &script).await;
    tab.until("room.state === 'closed'").await;
    assert_eq!(
        tab.run("return delays.slice(0, 9)").await,
        json!([375, 750, 1500, 3000, 6000, 12000, 22500, 22500, 22500])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_silent_server_is_retried_and_a_close_with_1008_closes_the_room() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{ timeout: 500 }").await;
    let silent = server.accept_without_hello().await;
    tab.until("room.state === 'reconnecting'").await;
    assert_eq!(tab.run("return events[0][1].code").await, 4000);
    drop(silent);
    // On a busy machine an attempt can take longer than the timeout: accept until one sends its
    // hello.
    let socket = loop {
        let mut socket = server.accept_without_hello().await;
        if let Some(Ok(Message::Text(_))) = within_deadline("hello", socket.next()).await {
            break socket;
        }
    };
    close(socket, 1008, "closed by an operator").await;
    tab.until("room.state === 'closed'").await;
    assert_eq!(
        tab.run("return events.at(-1)").await,
        json!(["statechange", {"state": "closed", "code": 1008, "reason": "closed by an operator"}])
    );
    assert_eq!(
        tab.run("return outcome(room.broadcast('x'))").await,
        "closed"
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_network_change_causes_an_attempt_or_a_ping_at_once() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{ timeout: 3000 }").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    tab.until("room.state === 'open'").await;
    close(socket, 1012, "retry in 30000 ms").await;
    tab.until("room.state === 'reconnecting'").await;
    tab.run("dispatchEvent(new Event('online'))").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&[])).await;
    tab.until("room.state === 'open'").await;
    // When the network changes, an open room sends a ping.
    tab.run("dispatchEvent(new Event('offline'))").await;
    let ping = within_deadline("the ping", socket.next())
        .await
        .unwrap()
        .unwrap();
    assert!(ping.to_text().unwrap().contains(r#""type":"ping""#));
    tab.until("events.at(-1)[1].reason === 'no pong in time'")
        .await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_refusal_that_says_why_ends_the_room_or_is_waited_for() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(
        "globalThis.opened = room.opened.catch(({ code, cause }) => [code, cause]);
        globalThis.queued = outcome(room.broadcast('x'))",
    )
    .await;
    // The server tells how long to wait when the room is full or a rate is exceeded. A time shorter
    // than the room's own delay does not count.
    tab.run("Math.random = () => 0.5").await;
    for (code, reason) in [
        (4503, "the room is full: retry in 400 ms"),
        (4429, "too many: retry in 0 ms"),
        (4503, "the room is full: retry in 0 ms"),
    ] {
        close(server.accept_without_hello().await, code, reason).await;
        tab.until(&format!("events.at(-1)[1].code === {code}"))
            .await;
    }
    assert_eq!(
        tab.run("return events.map(([, { delay }]) => delay)").await,
        json!([400, 750, 1500])
    );
    close(
        server.accept_without_hello().await,
        4401,
        "the token is missing",
    )
    .await;
    tab.until("room.state === 'closed'").await;
    assert_eq!(
        tab.run("return Promise.all([opened, queued])").await,
        json!([["closed", {"code": 4401, "reason": "the token is missing"}], "closed"])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn neither_the_network_nor_the_page_shortens_the_wait_after_a_refusal() {
    let browser = Browser::start().await;
    let options = "{ WebSocket: class extends WebSocket {
        constructor(...options) {
            super(...options);
            globalThis.attempts = (globalThis.attempts ?? 0) + 1;
        }
    } }";
    let (server, tab) = ScriptedServer::with_page(&browser, options).await;
    let reason = "the room is full: retry in 3000000 ms";
    close(server.accept_without_hello().await, 4503, reason).await;
    tab.until("events.at(-1)?.[1].delay === 3000000").await;
    let attempts = tab
        .run(
            "for (const type of ['online', 'visibilitychange', 'freeze', 'resume']) dispatchEvent(new Event(type));
            await new Promise((resolve) => setTimeout(resolve, 0));
            return attempts",
        )
        .await;
    assert_eq!(attempts, 1);
    tab.run("room.leave()").await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_token_function_may_be_asynchronous_and_may_fail_and_is_asked_once_more_after_a_refusal()
{
    let browser = Browser::start().await;
    let options = "{ token: () => answers.shift()() }";
    let server = ScriptedServer::start().await;
    let pages = static_server().await;
    let script = format!(
        "globalThis.answers = [
            () => {{ throw new Error('no user'); }},
            async () => {{ throw new Error('offline'); }},
            async () => 'first',
            async () => 'second',
        ];
        {}",
        server.join_script(options)
    );
    let tab = open_module_page(&browser, &pages, &script).await;
    let (socket, query) = server.accept_with_query().await;
    assert_eq!(query, "token=first");
    assert_eq!(
        tab.run("return events.map(([, { code, reason }]) => [code, reason])")
            .await,
        json!([
            [1006, "cannot connect: Error: no user"],
            [1006, "cannot connect: Error: offline"],
        ])
    );
    close(socket, 4403, "the token is for another room").await;
    let (socket, query) = server.accept_with_query().await;
    assert_eq!(query, "token=second");
    close(socket, 4403, "the token is for another room").await;
    tab.until("room.state === 'closed'").await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn attempts_use_the_whole_resume_window() {
    let browser = Browser::start().await;
    let pages = static_server().await;
    // A WebSocket of the page's own, which opens once and then fails; time passes only by delays.
    let script = "
        let now = 1000;
        performance.now = () => now;
        Math.random = () => 0.5;
        const wait = setTimeout;
        globalThis.setTimeout = (then, delay) => delay === TIMEOUT ? 0 : wait(() => {
            if (!room || room.state === 'open') return;
            now += delay;
            then();
        }, 0);
        const TIMEOUT = 1900;
        class WebSocket extends EventTarget {
            constructor() {
                super();
                wait(() => this.dispatchEvent(new Event(sockets.push(this) === 1 ? 'open' : 'close')), 0);
            }
            send() {
                const data = { peers: [], iceServers: [], resume: { token: 't', seconds: SECONDS },
                    limits: { messageBytes: 100 } };
                const message = { type: 'hello', sender: 'server', receiver: 'me', data };
                this.dispatchEvent(new MessageEvent('message', { data: JSON.stringify(message) }));
            }
            close() {}
        }
        const sockets = [];
        globalThis.room = join('x', { url: 'http://x/', WebSocket, timeout: TIMEOUT });
        globalThis.attempts = [];
        room.addEventListener('statechange', ({ detail }) => {
            if (detail.state !== 'reconnecting') return;
            attempts.push(now + detail.delay - 1000);
            if (now > 1000 + 1000 * SECONDS) room.leave();
        });
        await room.opened;
        sockets[0].dispatchEvent(new Event('close'));";
    for (window, count) in [(30, 10..=20), (4, 4..=10)] {
        let script = script.replace("SECONDS", &window.to_string());
        let tab = open_module_page(&browser, &pages, &script).await;
        tab.until("room.state === 'closed'").await;
        let attempts: Vec<f64> = serde_json::from_value(tab.run("return attempts").await).unwrap();
        let window = f64::from(window) * 1000.0;
        let inside: Vec<_> = attempts.iter().filter(|at| **at < window).collect();
        assert!(count.contains(&inside.len()), "{attempts:?}");
        // The last attempt is in the last twentieth of the window, or half a second before its end.
        let last = **inside.last().unwrap();
        assert!(window - last <= (window / 20.0).max(500.0), "{attempts:?}");
    }
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn messages_keep_to_the_rates_of_the_server() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    tab.run(
        "globalThis.receipts = Promise.all(Array.from({ length: 40 }, (_, i) => outcome(room.broadcast(`m${i}`))));
        globalThis.times = [];
        room.addEventListener('wire', ({ detail: { direction } }) => {
            if (direction === 'out') times.push(performance.now());
        });",
    )
    .await;
    let mut socket = server.accept().await;
    let mut hello = roster(&["a"]);
    hello["data"]["limits"]["messagesPerSecond"] = json!(20);
    send(&mut socket, hello).await;
    for number in 0..40 {
        let message = receive(&mut socket).await;
        assert_eq!(message["type"], format!("m{number}"));
        send(&mut socket, ack(&message)).await;
    }
    assert_eq!(tab.run("return receipts").await, json!(vec![1; 40]));
    // At most a second's worth comes at once, and the rest at the rate: 21 at once, then 19 in 950 ms.
    assert_eq!(
        tab.run("times = times.slice(1); return times.every((time, i) => time - times[0] >= (i - 20) * 50 - 1)").await,
        true
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_message_over_the_rate_of_an_older_server_is_sent_again_in_order() {
    let browser = Browser::start().await;
    let (server, tab) = ScriptedServer::with_page(&browser, "{}").await;
    let mut socket = server.accept().await;
    send(&mut socket, roster(&["a"])).await;
    tab.until("room.state === 'open'").await;
    tab.run("globalThis.receipts = ['a', 'b', 'c'].map((type) => outcome(room.broadcast(type)))")
        .await;
    for expected in ["a", "b", "c"] {
        let message = receive(&mut socket).await;
        assert_eq!(message["type"], expected);
        let data = json!({"code": "rate_limited", "message": "slow", "ref": message["ref"]});
        let error = json!({"type": "error", "sender": "server", "receiver": "me", "data": data});
        let answer = if expected == "a" {
            ack(&message)
        } else {
            error
        };
        send(&mut socket, answer).await;
    }
    for expected in ["b", "c"] {
        let message = receive(&mut socket).await;
        assert_eq!(message["type"], expected);
        send(&mut socket, ack(&message)).await;
    }
    assert_eq!(
        tab.run("return Promise.all(receipts)").await,
        json!([1, 1, 1])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_withdrawn_message_rejects_at_once() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let script = "globalThis.room = join('x', { url: 'http://127.0.0.1:1/' })";
    let tab = open_module_page(&browser, &server, script).await;
    let withdrawn = "
        const { signal } = globalThis.controller = new AbortController();
        const sent = room.send('all', 'x', 1, { signal }).catch((error) => error.name);
        const before = room.send('all', 'x', 1, { signal: AbortSignal.abort() }).catch((error) => error.name);
        controller.abort();
        return Promise.all([sent, before])";
    assert_eq!(
        tab.run(withdrawn).await,
        json!(["AbortError", "AbortError"])
    );
    tab.run("room.leave()").await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn joining_and_leaving_at_once_makes_no_connection() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "strict").await;
    let script = "
        join('strict').leave();
        globalThis.room = await join('strict').opened;
        globalThis.before = room.peers;";
    let tab = open_module_page(&browser, &server, script).await;
    let id = tab.run("return room.id").await;
    assert_eq!(other.next().await["sender"], id);
    // Each change makes a new map; no change, no new map.
    assert_eq!(tab.run("return before === room.peers").await, true);
    let third = Client::join(&server, "strict").await;
    tab.until("room.peers.size === 2").await;
    assert_eq!(tab.run("return before.size").await, 1);
    assert_eq!(other.next().await["sender"], third.id);
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_while_reconnecting_ends_the_session() {
    let browser = Browser::start().await;
    let (server, tab) = disconnected_with_three_unacknowledged(&browser).await;
    tab.run("room.leave()").await;
    let mut codes = Vec::new();
    // An attempt under way when the room is left is abandoned.
    while codes.last() != Some(&Some(1000)) {
        let (mut socket, query) = server.accept_with_query().await;
        assert_eq!(query, "resume=secret&received=2");
        let end = within_deadline("the end", socket.next()).await;
        codes.push(match end {
            Some(Ok(Message::Close(frame))) => frame.map(|frame| frame.code.into()),
            _ => None,
        });
    }
    assert_eq!(tab.run("return room.state").await, "closed");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_path_of_the_module_tells_a_server_from_a_package() {
    let browser = Browser::start().await;
    let folder = browser.folder.join("static");
    let module = std::fs::read("static/anteroom.js").unwrap();
    let served = [
        "",
        "chat/",
        "my-anteroom-client/",
        "anteroom-client2/",
        "old_node_modules/",
    ];
    let packaged = [
        "node_modules/anteroom-client/",
        "npm/anteroom-client@1.2.3/",
        "anteroom-client/",
        "a/node_modules/b/",
    ];
    for path in served.iter().chain(&packaged) {
        std::fs::create_dir_all(folder.join(path)).unwrap();
        std::fs::write(folder.join(path).join("anteroom.js"), &module).unwrap();
    }
    std::fs::write(folder.join("index.html"), "<!doctype html>").unwrap();
    let server = TestServer::with(|config| config.serving.static_dir = Some(folder)).await;
    let port = server.address.port();
    for host in ["127.0.0.1", "anteroom-client.test", "node_modules.test"] {
        let tab = browser.open(&format!("http://{host}:{port}/")).await;
        for query in ["", "?from=/node_modules/", "#/anteroom-client/"] {
            for (paths, expected) in [(&served[..], "joined"), (&packaged[..], "TypeError")] {
                for path in paths {
                    let url = format!("/{path}anteroom.js{query}");
                    let script = format!(
                        "const {{ join }} = await import('{url}');
                        try {{ join('x').leave(); return 'joined'; }} catch (error) {{ return error.name; }}"
                    );
                    assert_eq!(tab.run(&script).await, expected, "{host}{url}");
                }
            }
        }
    }
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_while_a_ping_is_sent_stops_every_timer() {
    let server = static_server().await;
    let browser = Browser::start().await;
    let script = "
        const [wait, stop] = [setTimeout, clearTimeout];
        globalThis.timers = new Set();
        globalThis.setTimeout = (then, delay) => {
            const timer = wait(() => {
                timers.delete(timer);
                then();
            }, delay);
            timers.add(timer);
            return timer;
        };
        globalThis.clearTimeout = (timer) => {
            timers.delete(timer);
            stop(timer);
        };
        globalThis.room = await join('ping').opened;
        room.addEventListener('wire', ({ detail: { text } }) => {
            if (text.includes('ping')) room.leave();
        });
        dispatchEvent(new Event('offline'));";
    let tab = open_module_page(&browser, &server, script).await;
    assert_eq!(
        tab.run("return [room.state, timers.size]").await,
        json!(["closed", 0])
    );
    browser.close().await;
}
