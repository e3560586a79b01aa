//! The client module alone: promises, refusals, and the README's page.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    calling::until_pictures_move,
    driver::{Browser, Tab},
};
use crate::support::{Client, TestServer, within_deadline};

/// Opens a page that may do anything, and imports the module as `join`, `Mesh` and `room`.
async fn page<'a>(browser: &'a Browser, server: &TestServer, room: &str) -> Tab<'a> {
    let tab = browser.open(&format!("http://{}/", server.address)).await;
    tab.run(
        "Object.assign(globalThis, await import('/anteroom.js'));
        globalThis.code = (promise) => promise.then((receipt) => receipt.receivers, (error) => error.code);",
    )
    .await;
    tab.run(room).await;
    tab
}

/// A server of which every frame is ours.
struct Stranger {
    listener: TcpListener,
}

impl Stranger {
    async fn listen() -> Stranger {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Stranger { listener }
    }

    fn join(&self) -> String {
        let url = format!("http://{}/deep/down", self.listener.local_addr().unwrap());
        format!(
            "globalThis.room = join('a b', {{ url: '{url}', timeout: 500 }});
            globalThis.seen = [];
            for (const type of ['statechange', 'peerjoin', 'peerleave', 'message', 'error']) {{
                room.addEventListener(type, ({{ detail }}) => {{
                    const {{ code, ...rest }} = detail;
                    seen.push([type, detail instanceof Error ? code : detail]);
                }});
            }}"
        )
    }

    /// Accepts the next connection, and reads its `hello`.
    async fn accept(&self) -> WebSocketStream<TcpStream> {
        let mut socket = self.accept_silently().await;
        let hello = within_deadline("hello", socket.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            hello.to_text().unwrap(),
            r#"{"type":"hello","receiver":"server"}"#
        );
        socket
    }

    async fn accept_silently(&self) -> WebSocketStream<TcpStream> {
        let (stream, _) = within_deadline("a connection", self.listener.accept())
            .await
            .unwrap();
        #[allow(
            clippy::result_large_err,
            reason = "the type is tungstenite's, and there is no error"
        )]
        let check = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/deep/down/room/a%20b");
            assert_eq!(request.headers()["sec-websocket-protocol"], "anteroom.v1");
            let headers = response.headers_mut();
            headers.insert("sec-websocket-protocol", "anteroom.v1".parse().unwrap());
            Ok(response)
        };
        accept_hdr_async(stream, check).await.unwrap()
    }
}

async fn say(socket: &mut WebSocketStream<TcpStream>, message: Value) {
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
}

fn hello(peers: &[&str]) -> Value {
    let peers: Vec<_> = peers
        .iter()
        .map(|id| json!({"id": id, "data": null}))
        .collect();
    json!({"type": "hello", "sender": "server", "receiver": "me", "data": {
        "room": "a b", "peers": peers, "iceServers": [], "resume": null,
        "limits": {"messageBytes": 100}}})
}

async fn close(mut socket: WebSocketStream<TcpStream>, code: u16, reason: &str) {
    let frame = CloseFrame {
        code: CloseCode::from(code),
        reason: reason.into(),
    };
    socket.close(Some(frame)).await.unwrap();
    while let Some(Ok(_)) = within_deadline("goodbye", socket.next()).await {}
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_receipt_is_a_promise_and_an_error_its_rejection() {
    let server = TestServer::with(|config| config.static_dir = Some("static".into())).await;
    let browser = Browser::start().await;
    let tab = page(&browser, &server, "globalThis.room = join('receipts')").await;
    // What is sent before the room is open waits for it.
    assert_eq!(
        tab.run("return code(room.broadcast('chat', 1))").await,
        "empty_room"
    );
    let mut other = Client::join(&server, "receipts").await;
    tab.until("room.peers.size === 1").await;
    let id = other.id.clone();
    assert_eq!(
        tab.run_with(
            "return code(room.send(arguments[0], 'offer', { sdp: 'x' }))",
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
        ("room.broadcast('x', 'x'.repeat(2_000_000))", "queue_full"),
    ] {
        assert_eq!(tab.run(&format!("return code({call})")).await, expected);
    }
    assert_eq!(
        tab.run("return room.send('all', 'x', 1n).catch((error) => error.constructor.name)")
            .await,
        "TypeError"
    );
    // A rejection that nobody looks at disturbs nobody: the console is looked at in the end.
    tab.run("room.send('nobody', 'x')").await;
    assert_eq!(tab.run("return code(room.send('server', 'ping'))").await, 1);
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
    assert_eq!(
        tab.run("try { new Mesh(room) } catch (error) { return error.message.slice(0, 13) }")
            .await,
        "make the Mesh"
    );
    tab.run("room.leave(); room.leave()").await;
    other.expect_left(message["sender"].as_str().unwrap()).await;
    assert_eq!(
        tab.run("return [room.state, room.peers.size]").await,
        json!(["closed", 0])
    );
    assert_eq!(tab.run("return code(room.broadcast('x'))").await, "closed");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_comes_back_when_it_is_told_and_not_when_it_is_sent_away() {
    let server = TestServer::with(|config| config.static_dir = Some("static".into())).await;
    let browser = Browser::start().await;
    let stranger = Stranger::listen().await;
    let tab = page(&browser, &server, &stranger.join()).await;

    let mut socket = stranger.accept().await;
    // What comes before the roster is kept, unless its sender has gone since.
    say(
        &mut socket,
        json!({"type": "new", "sender": "a", "receiver": "all", "data": null}),
    )
    .await;
    say(
        &mut socket,
        json!({"type": "x", "sender": "a", "receiver": "me", "data": 1}),
    )
    .await;
    say(
        &mut socket,
        json!({"type": "x", "sender": "b", "receiver": "me", "data": 2}),
    )
    .await;
    say(
        &mut socket,
        json!({"type": "close", "sender": "b", "receiver": null, "data": null}),
    )
    .await;
    say(&mut socket, hello(&["a", "c"])).await;
    // What only looks like news is none.
    say(
        &mut socket,
        json!({"type": "new", "sender": "a", "receiver": "all", "data": "again"}),
    )
    .await;
    say(
        &mut socket,
        json!({"type": "close", "sender": "a", "receiver": "all", "data": null}),
    )
    .await;
    socket.send(Message::text("{nonsense")).await.unwrap();
    say(
        &mut socket,
        json!({"type": "ack", "sender": "server", "receiver": "me", "data": null}),
    )
    .await;
    say(
        &mut socket,
        json!({"type": "close", "sender": "c", "receiver": null, "data": null}),
    )
    .await;
    tab.until("seen.at(-1)?.[0] === 'peerleave'").await;
    assert_eq!(
        tab.run("return seen").await,
        json!([
            ["peerjoin", {"id": "a", "data": null, "newcomer": true}],
            ["peerjoin", {"id": "c", "data": null, "newcomer": false}],
            ["statechange", {"state": "open"}],
            ["message", {"type": "x", "sender": "a", "receiver": "me", "data": 1}],
            ["message", {"type": "close", "sender": "a", "receiver": "all", "data": null}],
            ["error", "bad_message"],
            ["error", "bad_message"],
            ["peerleave", {"id": "c", "data": null, "newcomer": false}],
        ])
    );

    // A message under way when the connection is lost is reported so, one that waits is sent
    // later, one that is taken back is not. What differs in the roster is news.
    tab.run("globalThis.lost = code(room.broadcast('lost')); seen.length = 0")
        .await;
    assert!(
        socket
            .next()
            .await
            .unwrap()
            .unwrap()
            .to_text()
            .unwrap()
            .contains("lost")
    );
    close(socket, 1012, "restart: retry in 40 ms").await;
    assert_eq!(tab.run("return lost").await, "connection_lost");
    tab.run(
        "const taken = new AbortController();
        globalThis.taken = room.send('all', 'taken', null, { signal: taken.signal }).catch((error) => error.name);
        globalThis.later = code(room.broadcast('later'));
        globalThis.long = code(room.broadcast('x'.repeat(100)));
        taken.abort();",
    )
    .await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&["d", "a"])).await;
    let later = within_deadline("the message", socket.next())
        .await
        .unwrap()
        .unwrap();
    let later: Value = serde_json::from_str(later.to_text().unwrap()).unwrap();
    assert_eq!(later["type"], "later");
    say(&mut socket, json!({"type": "ack", "sender": "server", "receiver": "me", "data": {"ref": later["ref"], "receivers": 2}})).await;
    assert_eq!(
        tab.run("return Promise.all([later, long, taken])").await,
        json!([2, "message_too_large", "AbortError"])
    );
    assert_eq!(
        tab.run("return seen").await,
        json!([
            ["statechange", {"state": "reconnecting", "code": 1012, "reason": "restart: retry in 40 ms", "delay": 40}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": false}],
            ["statechange", {"state": "open"}],
        ])
    );

    // A server that accepts and says nothing is left; one that cuts is come back to, later and
    // later.
    tab.run("seen.length = 0").await;
    drop(socket);
    let silent = stranger.accept_silently().await;
    tab.until("seen.length === 2").await;
    drop(silent);
    drop(stranger.accept_silently().await);
    let socket = stranger.accept().await;
    let changes = tab
        .run("return seen.map(([, { code, delay }]) => [code, delay])")
        .await;
    let changes: Vec<(u16, f64)> = serde_json::from_value(changes).unwrap();
    let codes: Vec<u16> = changes.iter().map(|change| change.0).collect();
    assert_eq!(codes, [1006, 4000, 1006]);
    for (number, (_, delay)) in changes.iter().enumerate() {
        // One attempt was made before, after the restart.
        let longest = 500.0 * f64::from(2u32.pow(number as u32 + 1));
        assert!((longest / 2.0..=longest).contains(delay), "{changes:?}");
    }

    close(socket, 1008, "closed by an operator").await;
    tab.until("room.state === 'closed'").await;
    assert_eq!(
        tab.run("return seen.at(-1)").await,
        json!(["statechange", {"state": "closed", "code": 1008, "reason": "closed by an operator"}])
    );
    assert_eq!(tab.run("return code(room.broadcast('x'))").await, "closed");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_network_coming_back_is_a_reason_to_try_at_once() {
    let server = TestServer::with(|config| config.static_dir = Some("static".into())).await;
    let browser = Browser::start().await;
    let stranger = Stranger::listen().await;
    let tab = page(&browser, &server, &stranger.join()).await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&[])).await;
    tab.until("room.state === 'open'").await;
    close(socket, 1012, "retry in 30000 ms").await;
    tab.until("room.state === 'reconnecting'").await;
    tab.run("dispatchEvent(new Event('online'))").await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&[])).await;
    tab.until("room.state === 'open'").await;
    // Where the network changes, the connection is asked whether it still lives.
    tab.run("dispatchEvent(new Event('offline'))").await;
    let ping = within_deadline("the ping", socket.next())
        .await
        .unwrap()
        .unwrap();
    assert!(ping.to_text().unwrap().contains(r#""type":"ping""#));
    tab.until("seen.at(-1)[1].reason === 'no sign of life'")
        .await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_mesh_bears_nonsense_and_connects_with_who_knows_only_the_protocol() {
    let server = TestServer::with(|config| config.static_dir = Some("static".into())).await;
    let browser = Browser::start().await;
    let room = "globalThis.mesh = new Mesh(globalThis.room = join('strange'), { maxPeers: 2 });
        globalThis.errors = [];
        globalThis.states = [];
        mesh.addEventListener('error', ({ detail }) => errors.push(detail.id));
        mesh.addEventListener('statechange', ({ detail: { peer } }) => states.push(peer.state));";
    let mut vandal = Client::join(&server, "strange").await;
    let tab = page(&browser, &server, room).await;
    tab.until("room.state === 'open'").await;
    let own = tab.run("return room.id").await;

    for (kind, data) in [
        ("offer", Value::Null),
        ("offer", json!({"sdp": 7})),
        ("offer", json!({"type": "offer", "sdp": "v=0\r\nnonsense"})),
        ("answer", json!({"sdp": "v=0"})),
        ("answer", json!([])),
        ("candidate", json!("x")),
        (
            "candidate",
            json!({"candidate": "candidate:nonsense", "sdpMid": "0"}),
        ),
    ] {
        vandal
            .send(json!({"type": kind, "receiver": own, "data": data}))
            .await;
    }
    tab.until("errors.length === 7").await;

    // A page that has never heard of a mesh: it answers what it is offered.
    let bare = browser.open(&format!("http://{}/", server.address)).await;
    let script = "
        const socket = new WebSocket(`ws://${location.host}/room/strange`);
        const pc = new RTCPeerConnection();
        globalThis.heard = '';
        pc.ondatachannel = ({ channel }) => {
            channel.onmessage = ({ data }) => { heard = data; channel.send('pong'); };
        };
        let peer;
        const send = (type, data) => socket.send(JSON.stringify({ type, receiver: peer, data }));
        pc.onicecandidate = ({ candidate }) => send('candidate', candidate);
        socket.onmessage = async ({ data }) => {
            const message = JSON.parse(data);
            peer = message.sender;
            if (message.type === 'candidate') await pc.addIceCandidate(message.data);
            if (message.type !== 'offer') return;
            await pc.setRemoteDescription(message.data);
            await pc.setLocalDescription();
            send('answer', pc.localDescription);
        };";
    bare.run(script).await;
    tab.until("room.peers.size === 2").await;
    tab.run(
        "globalThis.heard = '';
        const channel = [...mesh.peers.values()][1].pc.createDataChannel('x');
        channel.onopen = () => channel.send('ping');
        channel.onmessage = ({ data }) => { heard = data; };",
    )
    .await;
    bare.until("heard === 'ping'").await;
    tab.until("heard === 'pong'").await;
    assert_eq!(
        tab.run("return states").await,
        json!(["connecting", "connected"])
    );
    let quality = tab
        .run("return [...mesh.peers.values()][1].quality()")
        .await;
    assert_eq!(quality["relayed"], false);
    assert!(quality["bitsOut"].as_f64().unwrap() > 0.0, "{quality}");

    // One too many gets no connection, and the application hears of it.
    let third = Client::join(&server, "strange").await;
    tab.until("errors.length === 8").await;
    assert_eq!(
        tab.run("return [errors.at(-1), mesh.peers.size]").await,
        json!([third.id, 2])
    );
    // Who leaves is torn down.
    vandal.leave().await;
    tab.until("mesh.peers.size === 1").await;
    tab.run("mesh.close()").await;
    assert_eq!(
        tab.run("return [mesh.peers.size, room.state]").await,
        json!([0, "open"])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_of_the_readme_is_a_call() {
    const README: &str = include_str!("../../README.md");
    let (_, block) = README.split_once("```html\n").expect("a page");
    let (page, _) = block.split_once("```").unwrap();
    assert!(page.lines().count() <= 15, "ten lines, more or less");
    assert!(page.contains("http://127.0.0.1:8080/"));
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let file = browser.folder.join("call.html");
    std::fs::write(
        &file,
        page.replace("127.0.0.1:8080", &server.address.to_string()),
    )
    .unwrap();
    let url = format!("file://{}", file.display());
    let tabs = [browser.open(&url).await, browser.open(&url).await];
    for tab in &tabs {
        until_pictures_move(tab, 1).await;
        tab.until("document.querySelectorAll('video').length === 2")
            .await;
    }
    let [first, second] = tabs;
    second.close().await;
    first
        .until("document.querySelectorAll('video').length === 1")
        .await;
    browser.close().await;
}
