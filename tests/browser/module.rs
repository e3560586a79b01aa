//! The client module alone: promises, refusals, and the pages of the README and the guide.

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
use crate::{
    guide::{CLIENT, README, blocks},
    support::{Client, TestServer, within_deadline},
};

/// A server whose pages may do anything: a folder has no Content-Security-Policy.
async fn module_server() -> TestServer {
    TestServer::with(|config| config.static_dir = Some("static".into())).await
}

/// A page in a room of a server of which every frame is ours, joined with these options.
async fn with_stranger<'a>(browser: &'a Browser, options: &str) -> (Stranger, Tab<'a>) {
    let stranger = Stranger::listen().await;
    let server = module_server().await;
    let tab = page(browser, &server, &stranger.join(options)).await;
    (stranger, tab)
}

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

    /// Joins a room here, with these options beside the address.
    fn join(&self, options: &str) -> String {
        let url = format!("http://{}/deep/down", self.listener.local_addr().unwrap());
        format!(
            "globalThis.room = join('a b', {{ url: '{url}?x#y', ...{options} }});
            globalThis.seen = [];
            for (const type of ['statechange', 'peerjoin', 'peerleave', 'message', 'error']) {{
                room.addEventListener(type, ({{ detail }}) => {{
                    seen.push([type, detail instanceof Error ? detail.code : detail]);
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
            r#"{"type":"hello","receiver":"server","data":{"resume":true}}"#
        );
        socket
    }

    async fn accept_silently(&self) -> WebSocketStream<TcpStream> {
        self.accept_with_query().await.0
    }

    /// Accepts the next connection, and returns also with which query it comes.
    async fn accept_with_query(&self) -> (WebSocketStream<TcpStream>, String) {
        let mut query = String::new();
        let (stream, _) = within_deadline("a connection", self.listener.accept())
            .await
            .unwrap();
        #[allow(
            clippy::result_large_err,
            reason = "the type is tungstenite's, and there is no error"
        )]
        let check = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/deep/down/room/a%20b");
            query = request.uri().query().unwrap_or_default().into();
            assert_eq!(request.headers()["sec-websocket-protocol"], "anteroom.v1");
            let headers = response.headers_mut();
            headers.insert("sec-websocket-protocol", "anteroom.v1".parse().unwrap());
            Ok(response)
        };
        let socket = accept_hdr_async(stream, check).await.unwrap();
        (socket, query)
    }
}

/// The next message of the page.
async fn next(socket: &mut WebSocketStream<TcpStream>) -> Value {
    let message = within_deadline("a message", socket.next()).await;
    serde_json::from_str(message.unwrap().unwrap().to_text().unwrap()).unwrap()
}

/// The receipt for a message of the page.
fn ack(message: &Value) -> Value {
    let receipt = json!({"ref": message["ref"], "receivers": 1});
    json!({"type": "ack", "sender": "server", "receiver": "me", "data": receipt})
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
    let server = module_server().await;
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
        tab.run("try { new Mesh(room) } catch (error) { return error.message.split(':')[0] }")
            .await,
        "the room has opened already"
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
async fn what_comes_before_the_roster_is_kept_and_what_only_looks_like_news_is_none() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{}").await;

    let mut socket = stranger.accept().await;
    for message in [
        json!({"type": "new", "sender": "a", "receiver": "all", "data": null}),
        json!({"type": "x", "sender": "a", "receiver": "me", "data": 1}),
        // Who has gone before the roster was never here.
        json!({"type": "x", "sender": "b", "receiver": "me", "data": 2}),
        json!({"type": "close", "sender": "b", "receiver": null, "data": null}),
        hello(&["a", "c"]),
        json!({"type": "new", "sender": "a", "receiver": "all", "data": "again"}),
        json!({"type": "close", "sender": "a", "receiver": "all", "data": null}),
        json!("nonsense"),
        json!({"type": "ack", "sender": "server", "receiver": "me", "data": null}),
        json!({"type": "close", "sender": "c", "receiver": null, "data": null}),
    ] {
        say(&mut socket, message).await;
    }
    tab.until("seen.at(-1)?.[0] === 'peerleave'").await;
    assert_eq!(
        tab.run("return seen").await,
        json!([
            ["peerjoin", {"id": "a", "data": null, "newcomer": true}],
            ["peerjoin", {"id": "c", "data": null, "newcomer": false}],
            ["statechange", {"state": "open", "resumed": false}],
            ["message", {"type": "x", "sender": "a", "receiver": "me", "data": 1}],
            ["message", {"type": "close", "sender": "a", "receiver": "all", "data": null}],
            ["error", "bad_message"],
            ["error", "bad_message"],
            ["peerleave", {"id": "c", "data": null, "newcomer": false}],
        ])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn leaving_while_the_room_opens_leaves_nothing_behind() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{}").await;
    tab.run(
        "globalThis.mesh = new Mesh(room);
        room.addEventListener('peerjoin', () => room.leave());",
    )
    .await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&["a", "b"])).await;
    tab.until("room.state === 'closed'").await;
    let left =
        "return [room.peers.size, mesh.peers.size, connections.map((pc) => pc.signalingState)]";
    assert_eq!(tab.run(left).await, json!([0, 0, ["closed"]]));
    assert_eq!(
        tab.run("return seen.map(([type]) => type)").await,
        json!(["peerjoin", "peerleave", "statechange"])
    );
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn what_is_lost_is_reported_and_what_waits_is_sent_later() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{}").await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&["a", "c"])).await;
    tab.until("room.state === 'open'").await;

    tab.run("globalThis.lost = code(room.broadcast('lost')); seen.length = 0")
        .await;
    let lost = within_deadline("the message", socket.next()).await;
    assert!(lost.unwrap().unwrap().to_text().unwrap().contains("lost"));
    close(socket, 1012, "restart: retry in 40 ms").await;
    assert_eq!(tab.run("return lost").await, "connection_lost");
    tab.run(
        "const taken = new AbortController();
        globalThis.taken = room.send('all', 'taken', null, { signal: taken.signal })
            .catch((error) => error.name);
        globalThis.later = code(room.broadcast('later'));
        taken.abort();",
    )
    .await;
    let mut socket = stranger.accept().await;
    say(&mut socket, hello(&["d", "a"])).await;
    let later = within_deadline("the message", socket.next()).await;
    let later: Value = serde_json::from_str(later.unwrap().unwrap().to_text().unwrap()).unwrap();
    assert_eq!(later["type"], "later");
    let receipt = json!({"ref": later["ref"], "receivers": 2});
    say(
        &mut socket,
        json!({"type": "ack", "sender": "server", "receiver": "me", "data": receipt}),
    )
    .await;
    assert_eq!(
        tab.run("return Promise.all([later, taken])").await,
        json!([2, "AbortError"])
    );
    // What differs in the roster is news.
    assert_eq!(
        tab.run("return seen").await,
        json!([
            ["statechange", {"state": "reconnecting", "code": 1012,
                "reason": "restart: retry in 40 ms", "delay": 40}],
            ["peerleave", {"id": "c", "data": null, "newcomer": false}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": false}],
            ["statechange", {"state": "open", "resumed": false}],
        ])
    );
    browser.close().await;
}

/// A page with three messages on their way, `first` to `third`, of which the server has taken in the
/// first without saying so; and then the connection is lost.
async fn lost_with_three_under_way<'a>(browser: &'a Browser) -> (Stranger, Tab<'a>) {
    let (stranger, tab) = with_stranger(browser, "{}").await;
    let mut socket = stranger.accept().await;
    let mut hello = hello(&["a", "c"]);
    hello["data"]["resume"] = json!({"token": "secret", "seconds": 30});
    say(&mut socket, hello).await;
    tab.until("room.state === 'open'").await;
    tab.run(
        "globalThis.receipts = ['zeroth', 'first', 'second', 'third'].map((type) => code(room.broadcast(type)));
        seen.length = 0;",
    )
    .await;
    let zeroth = next(&mut socket).await;
    say(&mut socket, ack(&zeroth)).await;
    assert_eq!(tab.run("return receipts[0]").await, 1);
    for kind in ["first", "second", "third"] {
        assert_eq!(next(&mut socket).await["type"], kind);
    }
    drop(socket);
    tab.until("room.state === 'reconnecting'").await;
    tab.run("globalThis.later = code(room.broadcast('later'))")
        .await;
    (stranger, tab)
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_lost_session_is_resumed_and_only_what_is_missing_is_sent_again() {
    let browser = Browser::start().await;
    let (stranger, tab) = lost_with_three_under_way(&browser).await;
    // It comes back as often as need be, with hello and one receipt received.
    for _ in 0..2 {
        let (socket, query) = stranger.accept_with_query().await;
        assert_eq!(query, "resume=secret&received=2");
        drop(socket);
    }
    let (mut socket, query) = stranger.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=2");
    // Taken in were hello, the zeroth and the first.
    let resumed =
        json!({"type": "resumed", "sender": "server", "receiver": "me", "data": {"received": 3}});
    say(&mut socket, resumed).await;
    let new = json!({"type": "new", "sender": "d", "receiver": "all", "data": null});
    say(&mut socket, new).await;
    for (place, kind) in ["second", "third", "later"].into_iter().enumerate() {
        let message = next(&mut socket).await;
        assert_eq!(message["type"], kind);
        if place == 0 {
            let mut first = message.clone();
            first["ref"] = json!(message["ref"].as_u64().unwrap() - 1);
            say(&mut socket, ack(&first)).await;
        }
        say(&mut socket, ack(&message)).await;
    }
    assert_eq!(
        tab.run("return Promise.all([...receipts, later])").await,
        json!([1, 1, 1, 1, 1])
    );
    let seen = tab
        .run("return seen.filter(([type, { state }]) => state !== 'reconnecting')")
        .await;
    assert_eq!(
        seen,
        json!([
            ["statechange", {"state": "open", "resumed": true}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": true}],
        ])
    );
    assert_eq!(
        tab.run("return [room.id, [...room.peers.keys()]]").await,
        json!(["me", ["a", "c", "d"]])
    );
    // An attempt that was given up came late and took the session over: it is taken back. What came
    // since counts, and `resumed` does not.
    close(socket, 1008, "resumed on another connection").await;
    let (_socket, query) = stranger.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=7");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_session_that_cannot_be_resumed_is_begun_anew() {
    let browser = Browser::start().await;
    let (stranger, tab) = lost_with_three_under_way(&browser).await;
    let (mut socket, query) = stranger.accept_with_query().await;
    assert_eq!(query, "resume=secret&received=2");
    let data = json!({"code": "resume_failed", "message": "too late"});
    let failed = json!({"type": "error", "sender": "server", "receiver": "me2", "data": data});
    say(&mut socket, failed).await;
    assert_eq!(next(&mut socket).await["type"], "hello");
    let mut hello = hello(&["d", "a"]);
    hello["receiver"] = json!("me2");
    hello["data"]["resume"] = json!({"token": "another", "seconds": 30});
    say(&mut socket, hello).await;
    let later = next(&mut socket).await;
    assert_eq!(later["type"], "later");
    say(&mut socket, ack(&later)).await;
    let lost = "connection_lost";
    assert_eq!(
        tab.run("return Promise.all([...receipts, later])").await,
        json!([1, lost, lost, lost, 1])
    );
    let seen = tab
        .run("return seen.filter(([type, { state }]) => state !== 'reconnecting')")
        .await;
    assert_eq!(
        seen,
        json!([
            ["peerleave", {"id": "c", "data": null, "newcomer": false}],
            ["peerjoin", {"id": "d", "data": null, "newcomer": false}],
            ["statechange", {"state": "open", "resumed": false}],
        ])
    );
    // The error, hello, a receipt.
    drop(socket);
    let (_socket, query) = stranger.accept_with_query().await;
    assert_eq!(query, "resume=another&received=3");
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn only_so_much_waits_to_be_sent() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{}").await;
    // Messages of a thousand bytes, into a MiB: the first fill it, the rest are refused.
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
    let mut socket = stranger.accept().await;
    let mut hello = hello(&[]);
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    say(&mut socket, hello).await;
    let mut last = Value::Null;
    for _ in 0..1100 - refused {
        last = next(&mut socket).await;
    }
    // It still waits to be taken in; then there is room again.
    let more = "code(room.broadcast('again', 'x'.repeat(1000)))";
    assert_eq!(tab.run(&format!("return {more}")).await, "queue_full");
    say(&mut socket, ack(&last)).await;
    tab.until("codes.includes('sent')").await;
    tab.run(&format!("globalThis.again = {more}")).await;
    assert_eq!(next(&mut socket).await["type"], "again");
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_room_tries_later_and_later_but_never_too_late() {
    let server = module_server().await;
    let browser = Browser::start().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", nobody.local_addr().unwrap());
    drop(nobody);
    // The waits take no time here, and chance is known.
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
    let tab = page(&browser, &server, &script).await;
    tab.until("room.state === 'closed'").await;
    assert_eq!(
        tab.run("return delays.slice(0, 9)").await,
        json!([375, 750, 1500, 3000, 6000, 12000, 22500, 22500, 22500])
    );
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn who_says_nothing_is_left_and_who_sends_one_away_is_not_come_back_to() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{ timeout: 500 }").await;
    let silent = stranger.accept_silently().await;
    tab.until("room.state === 'reconnecting'").await;
    assert_eq!(tab.run("return seen[0][1].code").await, 4000);
    drop(silent);
    // An attempt may take longer than that on a busy machine; one of them does not.
    let socket = loop {
        let mut socket = stranger.accept_silently().await;
        if let Some(Ok(Message::Text(_))) = within_deadline("hello", socket.next()).await {
            break socket;
        }
    };
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
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{ timeout: 3000 }").await;
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
    tab.until("seen.at(-1)[1].reason === 'no pong in time'")
        .await;
    browser.close_regardless().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn a_mesh_bears_nonsense_and_connects_with_who_knows_only_the_protocol() {
    let server = module_server().await;
    let browser = Browser::start().await;
    let room = "globalThis.mesh = new Mesh(globalThis.room = join('strange'), { maxPeers: 2 });
        globalThis.errors = [];
        globalThis.states = [];
        globalThis.channels = [];
        mesh.addEventListener('datachannel', ({ detail: { channel } }) => channels.push(channel.label));
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
        globalThis.stop = async () => {
            for (const transceiver of pc.getTransceivers()) transceiver.stop();
            await pc.setLocalDescription();
            send('offer', pc.localDescription);
        };
        globalThis.heard = '';
        globalThis.channels = [];
        pc.ondatachannel = ({ channel }) => {
            channels.push(channel.label);
            channel.onmessage = ({ data }) => { heard = data; channel.send('pong'); };
        };
        let peer;
        const send = (type, data) => socket.send(JSON.stringify({ type, receiver: peer, data }));
        pc.onicecandidate = ({ candidate }) => send('candidate', candidate);
        socket.onmessage = async ({ data }) => {
            const message = JSON.parse(data);
            peer = message.sender;
            if (message.type === 'candidate') await pc.addIceCandidate(message.data);
            if (message.type === 'answer') await pc.setRemoteDescription(message.data);
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
    // Both sides are told of the first channel.
    assert_eq!(tab.run("return channels").await, json!(["mesh"]));
    assert_eq!(
        bare.run("return channels.sort()").await,
        json!(["mesh", "x"])
    );
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

    // Who stops what it was sent spoils nothing for others.
    tab.run(
        "const [track] = (await navigator.mediaDevices.getUserMedia({ audio: true })).getTracks();
        mesh.addTrack(globalThis.track = track);",
    )
    .await;
    // Only then is nothing under way that its offer could meet.
    let agreed = "connections.at(-1).getTransceivers()
        .some(({ currentDirection }) => currentDirection === 'recvonly')";
    bare.until(agreed).await;
    bare.run("await stop()").await;
    let transceivers = "[...mesh.peers.values()][1].pc.getTransceivers()";
    tab.until(&format!(
        "{transceivers}.every(({{ direction }}) => direction === 'stopped')"
    ))
    .await;
    tab.run("mesh.removeTrack(track); mesh.addTrack(track)")
        .await;
    tab.until(&format!(
        "{transceivers}.some(({{ sender }}) => sender.track === track)"
    ))
    .await;

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

/// The next message of a type to a session; what comes before it is added to `passed`.
async fn next_of(
    socket: &mut WebSocketStream<TcpStream>,
    kind: &str,
    receiver: &str,
    passed: &mut Vec<(String, String)>,
) -> Value {
    loop {
        let frame = within_deadline(kind, socket.next()).await.unwrap().unwrap();
        let message: Value = serde_json::from_str(frame.to_text().unwrap()).unwrap();
        let [found, to] =
            ["type", "receiver"].map(|field| message[field].as_str().unwrap().to_owned());
        if found == kind && to == receiver {
            return message;
        }
        passed.push((found, to));
    }
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn when_offers_meet_the_smaller_id_yields_and_nothing_is_lost() {
    let browser = Browser::start().await;
    let (stranger, tab) = with_stranger(&browser, "{}").await;
    // The others' connections live in the same page; their signals go through this test.
    tab.run(
        "globalThis.mesh = new Mesh(room);
        globalThis.errors = [];
        mesh.addEventListener('error', ({ detail }) => errors.push(String(detail.error)));
        globalThis.others = {};
        for (const id of ['a', 'z']) others[id] = new RTCPeerConnection();
        for (const pc of Object.values(others)) pc.addTransceiver('audio');
        globalThis.offer = async (pc) => {
            await pc.setLocalDescription();
            return pc.localDescription;
        };
        globalThis.answer = async (pc, sdp) => {
            await pc.setRemoteDescription({ type: 'offer', sdp });
            await pc.setLocalDescription();
            return pc.localDescription;
        };",
    )
    .await;
    let mut socket = stranger.accept().await;
    let mut hello = hello(&[]);
    hello["receiver"] = json!("m");
    hello["data"]["limits"]["messageBytes"] = json!(65536);
    say(&mut socket, hello).await;
    let signal = |from: &str, kind: &str, data: &Value| json!({"type": kind, "sender": from, "receiver": "m", "data": data});
    let mut passed = Vec::new();

    // The page is impolite to `a`: its own offer stands, and the other is not answered.
    say(
        &mut socket,
        json!({"type": "new", "sender": "a", "receiver": "all", "data": null}),
    )
    .await;
    let first = next_of(&mut socket, "offer", "a", &mut passed).await;
    let against = tab.run("return offer(others.a)").await;
    say(&mut socket, signal("a", "offer", &against)).await;
    tab.run("await others.a.setLocalDescription({ type: 'rollback' })")
        .await;
    let answer = tab
        .run_with(
            "return answer(others.a, arguments[0])",
            vec![first["data"]["sdp"].clone()],
        )
        .await;
    say(&mut socket, signal("a", "answer", &answer)).await;
    tab.until("mesh.peers.get('a').pc.signalingState === 'stable'")
        .await;

    // It is polite to `z`: it answers, and then offers what it had to offer.
    say(
        &mut socket,
        json!({"type": "new", "sender": "z", "receiver": "all", "data": null}),
    )
    .await;
    next_of(&mut socket, "offer", "z", &mut passed).await;
    assert!(
        !passed.contains(&("answer".into(), "a".into())),
        "{passed:?}"
    );
    let against = tab.run("return offer(others.z)").await;
    say(&mut socket, signal("z", "offer", &against)).await;
    let answered = next_of(&mut socket, "answer", "z", &mut passed).await;
    let apply = "await others.z.setRemoteDescription(arguments[0])";
    tab.run_with(apply, vec![answered["data"].clone()]).await;
    let again = next_of(&mut socket, "offer", "z", &mut passed).await;
    assert!(
        again["data"]["sdp"]
            .as_str()
            .unwrap()
            .contains("m=application")
    );
    let answer_z = "return answer(others.z, arguments[0])";
    let answer = tab
        .run_with(answer_z, vec![again["data"]["sdp"].clone()])
        .await;
    // An offer right behind an answer meets none.
    let next = tab
        .run("others.z.addTransceiver('video'); return offer(others.z)")
        .await;
    say(&mut socket, signal("z", "answer", &answer)).await;
    say(&mut socket, signal("z", "offer", &next)).await;
    let answered = next_of(&mut socket, "answer", "z", &mut passed).await;
    tab.run_with(apply, vec![answered["data"].clone()]).await;

    // Later offers that meet: the page answers, and its track is not forgotten.
    tab.run(
        "const [track] = (await navigator.mediaDevices.getUserMedia({ audio: true })).getTracks();
        mesh.addTrack(track);
        others.z.addTransceiver('video');",
    )
    .await;
    next_of(&mut socket, "offer", "z", &mut passed).await;
    let against = tab.run("return offer(others.z)").await;
    say(&mut socket, signal("z", "offer", &against)).await;
    let answered = next_of(&mut socket, "answer", "z", &mut passed).await;
    tab.run_with(apply, vec![answered["data"].clone()]).await;
    // It may have been in the answer already.
    let sends = "return /a=send(recv|only)/.test(others.z.currentRemoteDescription.sdp)";
    if tab.run(sends).await == false {
        let offer = next_of(&mut socket, "offer", "z", &mut passed).await;
        tab.run_with(answer_z, vec![offer["data"]["sdp"].clone()])
            .await;
        assert_eq!(tab.run(sends).await, true);
    }
    assert_eq!(tab.run("return errors").await, json!([]));
    browser.close().await;
}

/// The page in a text, written into a file that two tabs open; its URL.
fn write_page(browser: &Browser, name: &str, text: &str, server: &TestServer) -> String {
    let page = blocks(text, "html").next().expect("a page");
    assert!(page.contains("//127.0.0.1:8080/"));
    let file = browser.folder.join(name);
    let page = page.replace("127.0.0.1:8080", &server.address.to_string());
    std::fs::write(&file, page).unwrap();
    format!("file://{}", file.display())
}

/// Opens a page of a call in each of two tabs, and one of them leaves.
async fn is_a_call(browser: &Browser, pages: [&str; 2]) {
    let tabs = [browser.open(pages[0]).await, browser.open(pages[1]).await];
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
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_of_the_readme_is_a_call() {
    let page = blocks(README, "html").next().expect("a page");
    assert!(page.lines().count() <= 15, "some ten lines");
    let server = TestServer::start().await;
    let browser = Browser::start().await;
    let url = write_page(&browser, "call.html", README, &server);
    is_a_call(&browser, [&url, &url]).await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: tests/run starts it"]
async fn the_page_without_the_module_is_a_call_with_its_like_and_with_a_mesh() {
    for [first, second] in [[CLIENT, CLIENT], [CLIENT, README], [README, CLIENT]] {
        let server = TestServer::start().await;
        let browser = Browser::start().await;
        let first = write_page(&browser, "first.html", first, &server);
        let second = write_page(&browser, "second.html", second, &server);
        is_a_call(&browser, [&first, &second]).await;
        browser.close().await;
    }
}
