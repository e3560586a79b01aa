//! The client module and the page where the network lets no WebSocket through.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use serde_json::{Value, json};

use super::{
    driver::{Browser, Tab},
    page::{until_message, until_people},
    scripted_server::{open_module_page_at, static_server},
};
use crate::{
    bytes::{expect_bytes, send_bytes},
    doctor::{Middle, PASS, Rule},
    support::{Client, File, TestServer, in_seconds},
    tokens::{SECRET, sign, with_secret},
};

/// Joins a room and notes what happens.
const JOIN: &str = "
    globalThis.room = join('fallback');
    globalThis.got = [];
    globalThis.states = [];
    room.addEventListener('message', ({ detail }) => got.push(detail.data));
    room.addEventListener('bytes', ({ detail }) => got.push([...detail.bytes]));
    room.addEventListener('statechange', ({ detail }) => states.push(detail));";

/// The head of a request without its upgrade to a WebSocket, as some proxies pass it on.
fn without_upgrade(head: String) -> String {
    head.replace("Upgrade: websocket", "X-Upgrade: none")
}

/// Before a server, a proxy that lets no WebSocket through.
async fn blocking(server: &TestServer, more: Rule) -> Middle {
    let rule = Rule {
        request: without_upgrade,
        ..more
    };
    Middle::start(server.address, rule).await
}

/// Holds answers back that last, as some proxies do.
fn held() -> Rule {
    Rule {
        // The proxy looks at the first answer of each connection.
        response: |head| match head.contains("text/event-stream") {
            true => head,
            false => head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"),
        },
        collects: 1 << 20,
        ..PASS
    }
}

async fn join<'a>(browser: &'a Browser, address: SocketAddr) -> (Tab<'a>, String) {
    let tab = open_module_page_at(browser, address, JOIN).await;
    tab.until("room.state === 'open'").await;
    let id = tab.run("return room.id").await;
    (tab, id.as_str().unwrap().into())
}

/// The tab and a client exchange text and bytes, and the tab leaves.
async fn expect_exchange(server: &TestServer, tab: &Tab<'_>, id: &str, other: &mut Client) {
    assert_eq!(
        tab.run("return outcome(room.broadcast('x', { a: 1 }))")
            .await,
        1
    );
    assert_eq!(other.next().await["data"], json!({"a": 1}));
    tab.run("room.sendBytes('all', Uint8Array.of(0, 255, 10))")
        .await;
    expect_bytes(other, id, &[0, 255, 10]).await;
    for number in 0..20 {
        other
            .send(json!({"type": "x", "receiver": id, "data": number}))
            .await;
    }
    send_bytes(other, [0; 16], &[0, 255]).await;
    tab.until("got.length === 21").await;
    let mut expected: Vec<Value> = (0..20).map(Value::from).collect();
    expected.push(json!([0, 255]));
    assert_eq!(tab.run("return got").await, Value::from(expected));
    assert_eq!(
        tab.run("return outcome(room.send('nobody', 'x'))").await,
        "unknown_receiver"
    );
    // A line without a message counts as one that is wrong.
    tab.run("room.sendRaw(' '); for (let i = 0; i < 3; i += 1) room.broadcast('x', i)")
        .await;
    for number in 0..3 {
        assert_eq!(other.next().await["data"], number);
    }
    // It leaves after its last message.
    tab.run("room.broadcast('bye'); room.leave()").await;
    assert_eq!(other.next().await["type"], "bye");
    other.expect_left(id).await;
    assert_eq!(server.count("anteroom_sessions"), 1);
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn where_no_web_socket_gets_through_a_room_uses_events() {
    let server = static_server().await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "fallback").await;
    let (tab, id) = join(&browser, proxy.address).await;
    other.expect_new(&id).await;
    assert_eq!(tab.run("return room.transport").await, "events");
    // Nothing was lost on the way.
    assert_eq!(
        tab.run("return states").await,
        json!([{"state": "open", "resumed": false}])
    );
    expect_exchange(&server, &tab, &id, &mut other).await;
    assert_eq!(tab.run("return room.transport").await, Value::Null);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn where_answers_are_held_back_too_a_room_polls() {
    let server = static_server().await;
    let proxy = blocking(&server, held()).await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "fallback").await;
    let (tab, id) = join(&browser, proxy.address).await;
    other.expect_new(&id).await;
    tab.until("room.transport === 'polling'").await;
    expect_exchange(&server, &tab, &id, &mut other).await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_that_only_listens_tells_the_server_what_has_come() {
    let server = TestServer::with(|config| {
        config.serving.static_dir = Some("static".into());
        config.limits.outbox_bytes = 256 << 10;
    })
    .await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "fallback").await;
    let (tab, id) = join(&browser, proxy.address).await;
    other.expect_new(&id).await;
    // Three times what the server keeps for a session.
    for batch in 1..=20 {
        for _ in 0..10 {
            let data = "x".repeat(4000);
            other
                .send(json!({"type": "x", "receiver": id, "data": data}))
                .await;
        }
        tab.until(&format!("got.length === {}", 10 * batch)).await;
        // It comes after what was told before.
        tab.run("await room.send('server', 'ping')").await;
    }
    assert_eq!(
        tab.run("return states").await,
        json!([{"state": "open", "resumed": false}])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_goes_back_to_a_web_socket_while_people_talk() {
    static BLOCKS: AtomicBool = AtomicBool::new(true);

    let server = static_server().await;
    let rule = Rule {
        request: |head| match BLOCKS.load(SeqCst) {
            true => without_upgrade(head),
            false => head,
        },
        ..PASS
    };
    let proxy = Middle::start(server.address, rule).await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "fallback").await;
    let (tab, id) = join(&browser, proxy.address).await;
    other.expect_new(&id).await;
    assert_eq!(tab.run("return room.transport").await, "events");
    // A WebSocket that does not get through disturbs nothing.
    tab.run("dispatchEvent(new Event('online'))").await;
    tab.run(
        "globalThis.said = 0;
        globalThis.talking = setInterval(() => room.broadcast('x', said++), 1);",
    )
    .await;
    let mut heard = 0;
    for number in 0..400 {
        if number == 100 {
            BLOCKS.store(false, SeqCst);
            tab.run("dispatchEvent(new Event('online'))").await;
        }
        other
            .send(json!({"type": "x", "receiver": id, "data": number}))
            .await;
        assert_eq!(other.next().await["data"], heard);
        heard += 1;
    }
    tab.until("room.transport === 'websocket'").await;
    let said = tab.run("clearInterval(talking); return said").await;
    while Some(heard) < said.as_u64() {
        assert_eq!(other.next().await["data"], heard);
        heard += 1;
    }
    other.expect_quiet().await;
    tab.until("got.length === 400").await;
    assert_eq!(
        tab.run("return got.every((data, index) => data === index)")
            .await,
        true
    );
    assert_eq!(tab.run("return room.id").await, id.as_str());
    assert_eq!(
        tab.run("return states").await,
        json!([{"state": "open", "resumed": false}, {"state": "open", "resumed": true}])
    );
    // The session has left nothing behind.
    assert_eq!(server.count("anteroom_sessions"), 2);
    assert_eq!(server.count("anteroom_sessions_suspended"), 0);
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_tries_a_web_socket_less_and_less_often() {
    let server = static_server().await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    // The waits for a next attempt pass at once. Nothing else waits for a multiple of 15 s.
    let hastening = "
        globalThis.waits = [];
        const wait = setTimeout;
        globalThis.setTimeout = (run, delay, ...more) => {
            if (!delay || delay % 15_000 > 0) return wait(run, delay, ...more);
            waits.push(delay / 1000);
            return wait(run, 0, ...more);
        };";
    let script = format!("{hastening}{JOIN}")
        .replace("join('fallback')", "join('fallback', { timeout: 14_000 })");
    let tab = open_module_page_at(&browser, proxy.address, &script).await;
    tab.until("waits.length >= 9").await;
    assert_eq!(
        tab.run("return waits.slice(0, 9)").await,
        json!([15, 30, 60, 120, 240, 480, 600, 600, 600])
    );
    assert_eq!(
        tab.run("return states").await,
        json!([{"state": "open", "resumed": false}])
    );
    let mut other = Client::join(&server, "fallback").await;
    let id = tab.run("return room.id").await;
    expect_exchange(&server, &tab, id.as_str().unwrap(), &mut other).await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_web_socket_to_a_server_without_the_session_disturbs_nobody() {
    static BLOCKS: AtomicBool = AtomicBool::new(true);

    let server = static_server().await;
    let rule = Rule {
        request: |head| match BLOCKS.load(SeqCst) {
            true => without_upgrade(head),
            // The session is not asked for.
            false if head.contains("Upgrade: websocket") => head.replace("?resume=", "?x="),
            false => head,
        },
        ..PASS
    };
    let proxy = Middle::start(server.address, rule).await;
    let browser = Browser::start().await;
    let mut other = Client::join(&server, "fallback").await;
    // The room gives the answer more time than the 2 s that it waits otherwise.
    let patience = "
        const wait = setTimeout;
        globalThis.setTimeout = (run, delay, ...more) => wait(run, delay === 2000 ? 30_000 : delay, ...more);";
    let tab = open_module_page_at(&browser, proxy.address, &format!("{patience}{JOIN}")).await;
    tab.until("room.state === 'open'").await;
    let id = tab.run("return room.id").await;
    let id = id.as_str().unwrap();
    other.expect_new(id).await;
    BLOCKS.store(false, SeqCst);
    tab.run("dispatchEvent(new Event('online'))").await;
    let stranger = other.next().await;
    assert_eq!(stranger["type"], "new");
    // What the new session hears tells the room that it is not its own.
    other
        .send(json!({"type": "x", "receiver": "all", "data": "hello"}))
        .await;
    other
        .expect_left(stranger["sender"].as_str().unwrap())
        .await;
    assert_eq!(tab.run("return room.transport").await, "events");
    assert_eq!(
        tab.run("return states").await,
        json!([{"state": "open", "resumed": false}])
    );
    tab.until("got.splice(0).join() === 'hello'").await;
    expect_exchange(&server, &tab, id, &mut other).await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_that_polls_goes_on_with_a_renewed_token() {
    static POLLS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    let key = File::new("renewed-key", SECRET);
    let server = TestServer::with(|config| {
        with_secret(config, &key);
        config.serving.static_dir = Some("static".into());
    })
    .await;
    let rule = Rule {
        request: |head| {
            if head.starts_with("GET /room/fallback?") && head.contains("&wait=25&") {
                POLLS.lock().unwrap().push(head.clone());
            }
            without_upgrade(head)
        },
        ..held()
    };
    let proxy = Middle::start(server.address, rule).await;
    let [first, second] =
        [600, 1200].map(|seconds| sign(json!({"sub": "alice", "exp": in_seconds(seconds)})));
    let mut other = Client::connect(server.address, &format!("/room/fallback?token={first}")).await;
    let browser = Browser::start().await;
    let script = JOIN.replace(
        "join('fallback')",
        &format!("join('fallback', {{ token: '{first}' }})"),
    );
    let tab = open_module_page_at(&browser, proxy.address, &script).await;
    tab.until("room.state === 'open' && room.transport === 'polling'")
        .await;
    let id = tab.run("return room.id").await;
    tab.run(&format!("return room.send('server', 'token', '{second}')"))
        .await;
    for number in 1..=2 {
        other
            .send(json!({"type": "x", "receiver": id, "data": number}))
            .await;
        tab.until(&format!("got.length === {number}")).await;
    }
    // The answer to the last one that is complete brought the second message.
    let polls = POLLS.lock().unwrap().clone();
    assert!(polls.first().unwrap().contains(&first));
    assert!(polls.last().unwrap().contains(&second), "{polls:?}");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_refusal_is_told_without_a_web_socket() {
    let key = File::new("fallback-key", SECRET);
    let server = TestServer::with(|config| {
        with_secret(config, &key);
        config.serving.static_dir = Some("static".into());
    })
    .await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    let tab = open_module_page_at(&browser, proxy.address, JOIN).await;
    tab.until("room.state === 'closed'").await;
    let last = tab.run("return states.at(-1)").await;
    assert_eq!(last["code"], 4401, "{last}");
    assert!(
        last["reason"]
            .as_str()
            .unwrap()
            .starts_with("a token is required")
    );
    let token = sign(json!({"sub": "alice"}));
    let script = format!("globalThis.room = join('fallback', {{ token: '{token}' }})");
    tab.run(&script).await;
    tab.until("room.state === 'open' && room.transport === 'events'")
        .await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_mesh_connects_without_a_web_socket() {
    let server = static_server().await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    let script = format!(
        "{JOIN}
        globalThis.mesh = new Mesh(room);"
    );
    let one = open_module_page_at(&browser, proxy.address, &script).await;
    let other = open_module_page_at(&browser, proxy.address, &script).await;
    for tab in [&one, &other] {
        tab.until("[...mesh.peers.values()].some((peer) => peer.state === 'connected')")
            .await;
        assert_eq!(tab.run("return room.transport").await, "events");
    }
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_works_without_a_web_socket() {
    let server = TestServer::start().await;
    let proxy = blocking(&server, PASS).await;
    let browser = Browser::start().await;
    let url = format!("http://{}/?room=fallback", proxy.address);
    let one = browser.open(&url).await;
    let other = browser.open(&url).await;
    until_people(&one, 2).await;
    until_people(&other, 2).await;
    one.type_into("#text", "hello over HTTP\n").await;
    until_message(&other, "hello over HTTP").await;
    browser.close_regardless().await;
}
