//! Sessions that outlive their connections (PROTOCOL.md, section 8): no message is lost, duplicated or
//! reordered, and the room notices nothing.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anteroom::Config;
use futures_util::{SinkExt, StreamExt, future::join_all};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message},
};

use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{
        Client, Raw, RawFrame, RunningServer, TestServer, eventually, frame, handshake, total,
        within_deadline,
    },
};

/// A client that loses no message: it counts what it receives, keeps what it has sent until the server has
/// confirmed it, and resumes its session whenever the connection is lost.
pub struct ResumingClient {
    address: SocketAddr,
    room: String,
    pub id: String,
    token: String,
    socket: WebSocketStream<TcpStream>,
    /// The number of messages received in this session.
    received: u64,
    /// The sent messages that the server has not confirmed.
    unconfirmed: VecDeque<String>,
    /// The number of sent messages that the server has confirmed.
    confirmed: u64,
    /// The number of times the session was resumed.
    resumed: usize,
    /// The number of stalled connections of the proxy.
    stalls: watch::Receiver<usize>,
    /// The value of `stalls` when this client's connection was opened.
    stalls_before: usize,
}

impl ResumingClient {
    /// Joins and asks for a resume token.
    pub async fn join(proxy: &Proxy, room: &str) -> ResumingClient {
        let address = proxy.address;
        let path = format!("/room/{room}");
        let mut client = ResumingClient {
            address,
            room: room.into(),
            id: String::new(),
            token: String::new(),
            socket: open(address, &path).await.unwrap(),
            received: 0,
            unconfirmed: VecDeque::new(),
            confirmed: 0,
            resumed: 0,
            stalls: proxy.stalls.clone(),
            stalls_before: 0,
        };
        client
            .send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
            .await;
        let hello = loop {
            let message = client.next().await;
            if message["type"] == "hello" {
                break message;
            }
        };
        client.id = hello["receiver"].as_str().unwrap().into();
        client.token = hello["data"]["resume"]["token"].as_str().unwrap().into();
        client
    }

    /// The request target that resumes the session.
    fn target(&self) -> String {
        let ResumingClient {
            room,
            token,
            received,
            ..
        } = self;
        format!("/room/{room}?resume={token}&received={received}")
    }

    /// Sends a message on this connection, or on the next one if this one is lost.
    pub async fn send(&mut self, message: Value) {
        let text = message.to_string();
        self.unconfirmed.push_back(text.clone());
        if self.socket.send(Message::text(text)).await.is_err() {
            self.resume().await;
        }
    }

    /// Resumes the session. Tries again until an attempt succeeds.
    async fn resume(&mut self) {
        let attempts = async {
            let mut stalls = self.stalls.clone();
            loop {
                self.stalls_before = *stalls.borrow();
                let before = self.stalls_before;
                tokio::select! {
                    resumed = self.try_resume() => if resumed.is_ok() { break },
                    _ = stalls.wait_for(|stalls| *stalls > before) => {}
                }
            }
        };
        within_deadline("the resume", attempts).await;
    }

    /// Tries once to resume the session, and sends the unconfirmed messages again.
    async fn try_resume(&mut self) -> Result<(), Error> {
        self.socket = open(self.address, &self.target()).await?;
        let text = next_text(&mut self.socket).await?;
        let resumed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(resumed["type"], "resumed", "{resumed}");
        assert_eq!(resumed["sender"], "server");
        assert_eq!(resumed["receiver"], self.id.as_str());
        let confirmed = resumed["data"]["received"].as_u64().unwrap();
        let more = confirmed
            .checked_sub(self.confirmed)
            .expect("the count never decreases");
        self.unconfirmed.drain(..more as usize);
        self.confirmed = confirmed;
        self.resumed += 1;
        for text in &self.unconfirmed {
            self.socket.feed(Message::text(text)).await?;
        }
        self.socket.flush().await
    }

    /// The next message, on this connection or on one that resumes the session.
    pub async fn next(&mut self) -> Value {
        loop {
            let before = self.stalls_before;
            let next = async {
                tokio::select! {
                    text = next_text(&mut self.socket) => text.ok(),
                    _ = self.stalls.wait_for(|stalls| *stalls > before) => None,
                }
            };
            match within_deadline("a message", next).await {
                Some(text) => {
                    self.received += 1;
                    return serde_json::from_str(&text).unwrap();
                }
                None => self.resume().await,
            }
        }
    }
}

/// Connects to `address` and upgrades.
pub async fn open(address: SocketAddr, target: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}{target}");
    Ok(client_async(url, stream).await?.0)
}

/// The text of the next message. tungstenite answers pings meanwhile.
pub async fn next_text(socket: &mut WebSocketStream<TcpStream>) -> Result<String, Error> {
    loop {
        match socket
            .next()
            .await
            .unwrap_or(Err(Error::ConnectionClosed))?
        {
            Message::Text(text) => return Ok(text.as_str().into()),
            Message::Close(_) => return Err(Error::ConnectionClosed),
            _ => {}
        }
    }
}

/// A client that joins an empty room and asks for a resume token; returns both. It has received two
/// messages.
pub async fn resumable(server: &impl RunningServer, room: &str) -> (Client, String) {
    let mut client = Client::join(server, room).await;
    let token = client.ask_for_resume_token().await;
    (client, token)
}

/// A client that joins the room `tea`, where `other` is, and asks for a resume token; returns both.
pub async fn resumable_beside(other: &mut Client, server: &impl RunningServer) -> (Client, String) {
    let resumable = resumable(server, "tea").await;
    other.expect_new(&resumable.0.id).await;
    resumable
}

/// Sends `hello` with this data; returns the data of the answer, which must be the next message.
async fn hello(client: &mut Client, data: Value) -> Value {
    client
        .send(json!({"type": "hello", "receiver": "server", "data": data}))
        .await;
    client.next().await["data"].clone()
}

/// Connects to a room with a resume token and the number of messages received.
pub async fn reconnect(
    server: &TestServer,
    room: &str,
    token: &str,
    received: impl Display,
) -> Client {
    let path = format!("/room/{room}?resume={token}&received={received}");
    Client::connect(server.address(), &path).await
}

/// The number of resumes, of failed resumes, and of sessions that expired.
fn outcomes(server: &TestServer) -> [u64; 3] {
    ["resumed", "failed", "expired"]
        .map(|outcome| server.count(&format!("anteroom_resumes_total{{outcome=\"{outcome}\"}}")))
}

/// Loses a connection, and waits until the session is suspended.
async fn suspend(server: &TestServer, client: Client) {
    let before = server.count("anteroom_sessions_suspended");
    drop(client.into_raw());
    server.expect_suspended(before + 1).await;
}

impl Client {
    /// The next message must be `resumed`, with the number of messages that the server has received.
    pub async fn expect_resumed(&mut self, id: &str, received: u64) {
        self.id = id.into();
        let data = format!(r#"{{"received":{received}}}"#);
        self.expect_text(&format!(
            r#"{{"type":"resumed","sender":"server","receiver":"{id}","data":{data}}}"#
        ))
        .await;
    }

    /// The next message must be the error `resume_failed`; returns the id of the new session.
    pub async fn expect_resume_failed(&mut self) -> String {
        let error = self.next().await;
        assert_eq!(error["type"], "error", "{error}");
        assert_eq!(error["data"]["code"], "resume_failed");
        self.id = error["receiver"].as_str().unwrap().into();
        self.id.clone()
    }

    /// Sends a note to one receiver and waits for the receipt.
    pub async fn note(&mut self, receiver: &str, data: u64) {
        let note = json!({"type": "note", "receiver": receiver, "data": data, "ref": data});
        self.send(note).await;
        let ack = self.next().await;
        assert_eq!(ack["data"], json!({"ref": data, "receivers": 1}), "{ack}");
    }

    /// The next message must be this note.
    pub async fn expect_note(&mut self, data: u64) {
        let note = self.next().await;
        assert_eq!(
            (&note["type"], &note["data"]),
            (&json!("note"), &json!(data))
        );
    }
}

#[tokio::test]
async fn a_session_gets_a_resume_token_only_on_request_and_always_the_same() {
    let server = TestServer::start().await;
    let (mut alice, token) = resumable(&server, "tea").await;
    assert_eq!(token.len(), 22);
    assert_eq!(alice.ask_for_resume_token().await, token);
    let answer = hello(&mut alice, json!({"resume": true})).await;
    assert_eq!(answer["resume"], json!({"token": token, "seconds": 30}));
    for other in [
        json!(null),
        json!({"resume": false}),
        json!({"resume": 1}),
        json!([true]),
    ] {
        assert_eq!(hello(&mut alice, other).await["resume"], json!(null));
    }
    let (_bob, another) = resumable(&server, "coffee").await;
    assert_ne!(another, token);
}

#[tokio::test]
async fn a_server_can_disable_resuming() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 0).await;
    let mut observer = Client::join(&server, "tea").await;
    let mut alice = Client::join(&server, "tea").await;
    observer.expect_new(&alice.id).await;
    let hello = hello(&mut alice, json!({"resume": true})).await;
    assert_eq!(hello["resume"], json!(null));
    let id = alice.id.clone();
    drop(alice.into_raw());
    observer.expect_left(&id).await;
}

#[tokio::test]
async fn a_suspended_session_stays_in_the_room_and_misses_nothing() {
    let server = TestServer::start().await;
    let (alice, token) = resumable(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let id = alice.id.clone();
    suspend(&server, alice).await;
    for number in 0..3 {
        bob.note(&id, number).await;
        bob.note("all", 10 + number).await;
    }
    let carol = Client::join(&server, "tea").await;
    bob.expect_new(&carol.id).await;

    let mut alice = reconnect(&server, "tea", &token, 2).await;
    // The server has received both of Alice's messages, which are two `hello`s.
    alice.expect_resumed(&id, 2).await;
    alice.expect_new(&bob.id).await;
    for number in 0..3 {
        alice.expect_note(number).await;
        alice.expect_note(10 + number).await;
    }
    alice.expect_new(&carol.id).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;
    assert_eq!(outcomes(&server), [1, 0, 0]);
    assert_eq!(server.count("anteroom_sessions_suspended"), 0);
    alice.leave().await;
    bob.expect_left(&id).await;
}

#[tokio::test]
async fn the_close_code_decides_whether_a_session_can_be_resumed() {
    let server = TestServer::start().await;
    let mut observer = Client::join(&server, "tea").await;
    let closes: [(&[u8], bool); 4] = [
        (b"\x0f\xa0", true),
        (b"\x03\xe8", false),
        (b"\x0f\xa1", false),
        (b"", false),
    ];
    for (status, is_resumable) in closes {
        let mut client = Client::join(&server, "tea").await;
        let id = client.id.clone();
        observer.expect_new(&id).await;
        let token = client.ask_for_resume_token().await;
        let mut raw = client.into_raw();
        raw.write(frame(0x88, status)).await;
        let close = raw.read_frame().await;
        assert_eq!((close.first, &close.payload[..]), (0x88, status));
        let mut back = reconnect(&server, "tea", &token, 2).await;
        if is_resumable {
            back.expect_resumed(&id, 2).await;
            observer.expect_quiet().await;
            back.leave().await;
            observer.expect_left(&id).await;
        } else {
            observer.expect_left(&id).await;
            let new = back.expect_resume_failed().await;
            observer.expect_new(&new).await;
            back.leave().await;
            observer.expect_left(&new).await;
        }
    }
}

#[tokio::test]
async fn a_takeover_closes_the_old_connection() {
    let server = TestServer::start().await;
    let mut observer = Client::join(&server, "tea").await;
    let (mut old, token) = resumable_beside(&mut observer, &server).await;
    let id = old.id.clone();
    for turn in 0..5 {
        observer.note(&id, turn).await;
        let mut new = reconnect(&server, "tea", &token, 2 + turn).await;
        new.expect_resumed(&id, 2 + turn).await;
        new.expect_note(turn).await;
        new.send(json!({"type": "note", "receiver": observer.id, "data": turn}))
            .await;
        observer.expect_note(turn).await;
        let (code, reason) = old.expect_close().await;
        assert_eq!((code, &*reason), (1008, "resumed on another connection"));
        old = new;
    }
    observer.expect_quiet().await;
}

#[tokio::test]
async fn one_of_several_concurrent_takeovers_keeps_the_session() {
    let server = TestServer::start().await;
    for turn in 0..50 {
        let room = format!("room-{turn}");
        let (mut alice, token) = resumable(&server, &room).await;
        let returns = (0..4).map(|_| reconnect(&server, &room, &token, 2));
        let mut resumed = Vec::new();
        for mut client in join_all(returns).await {
            match client.next_or_close().await {
                Ok(message) => {
                    assert_eq!(message["type"], "resumed");
                    resumed.push(client);
                }
                Err(code) => assert_eq!(code, 1008),
            }
        }
        // All have connected; all but one have since lost the session to another takeover.
        let mut owners = 0;
        for mut client in resumed {
            client
                .try_send(json!({"type": "ping", "receiver": "server", "data": "mine?"}))
                .await;
            match client.next_or_close().await {
                Ok(pong) => {
                    assert_eq!(pong["data"], "mine?");
                    owners += 1;
                }
                Err(code) => assert_eq!(code, 1008),
            }
        }
        assert_eq!(owners, 1);
        assert_eq!(alice.expect_close().await.0, 1008);
    }
}

#[tokio::test]
async fn a_failed_resume_is_a_new_session_and_leaves_the_suspended_one() {
    let server = TestServer::start().await;
    let mut observer = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut observer, &server).await;
    let id = alice.id.clone();
    suspend(&server, alice).await;
    let unknown = "AAAAAAAAAAAAAAAAAAAAAA";
    let long = "A".repeat(5000);
    for (token, received) in [
        (unknown, "2"),
        (&long, "2"),
        ("%00", "2"),
        (&token, "100"),
        (&token, "-1"),
        (&token, "many"),
        (&token, ""),
        (&token, "2.0"),
        (&token, "18446744073709551616"),
        (&token, "18446744073709551615"),
    ] {
        let mut other = reconnect(&server, "tea", token, received).await;
        let new = other.expect_resume_failed().await;
        assert_ne!(new, id);
        observer.expect_new(&new).await;
        other.expect_quiet().await;
        other.leave().await;
        observer.expect_left(&new).await;
    }
    let mut other_room = reconnect(&server, "coffee", &token, 2).await;
    other_room.expect_resume_failed().await;
    let mut without_count =
        Client::connect(server.address, &format!("/room/coffee?resume={token}")).await;
    without_count.expect_resume_failed().await;

    let mut alice = reconnect(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
}

#[tokio::test]
async fn a_session_that_missed_more_than_the_replay_buffer_holds_starts_anew() {
    let server = TestServer::with(|config| {
        config.limits.max_message_bytes = 1000;
        config.limits.outbox_bytes = 4000;
        config.liveness.resume_seconds = 2;
    })
    .await;
    let (mut alice, token) = resumable(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let id = alice.id.clone();
    suspend(&server, alice).await;
    // Each message counts as delivered: the server cannot know whether Alice resumes.
    for number in 0..100 {
        bob.note(&id, number).await;
    }
    bob.expect_quiet().await;
    let mut alice = reconnect(&server, "tea", &token, 3).await;
    let new = alice.expect_resume_failed().await;
    bob.expect_new(&new).await;
    bob.expect_left(&id).await;
    bob.expect_quiet().await;
}

/// The reconnection arrives late, with a count that was true once.
#[tokio::test]
async fn an_outdated_reconnection_does_not_disturb_the_session() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &server).await;
    let id = alice.id.clone();
    bob.note(&id, 0).await;
    alice.expect_note(0).await;
    suspend(&server, alice).await;
    let mut alice = reconnect(&server, "tea", &token, 3).await;
    alice.expect_resumed(&id, 2).await;
    // The replay buffer no longer has what Alice has confirmed.
    let mut late = reconnect(&server, "tea", &token, 2).await;
    let new = late.expect_resume_failed().await;
    bob.expect_new(&new).await;
    alice.expect_new(&new).await;
    alice.expect_quiet().await;
    late.leave().await;
    bob.expect_left(&new).await;
    bob.expect_quiet().await;
}

/// A session that reads too slowly loses its connection, but is suspended. A session that missed nearly as
/// much as the replay buffer holds does not fail for one more message that arrives while it catches up.
#[tokio::test]
async fn a_slow_reader_is_suspended_and_can_resume() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 256 << 10).await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut bob, &server).await;
    let id = alice.id.clone();
    let mut silent = alice.into_raw();
    let text = "x".repeat(10_000);
    let mut sent = 0;
    // Alice does not read: the messages fill the kernel's buffers, and then her outbox.
    while server.count("anteroom_sessions_suspended") == 0 {
        let note = json!({"type": "note", "receiver": id, "data": text, "ref": sent});
        bob.send(note).await;
        assert_eq!(bob.next().await["data"]["receivers"], 1);
        sent += 1;
    }
    bob.note(&id, 7).await;
    let mut received = 0;
    let code = loop {
        let RawFrame { first, payload } = silent.read_frame().await;
        match first {
            0x81 => received += 1,
            _ => break u16::from_be_bytes([payload[0], payload[1]]),
        }
    };
    assert_eq!(code, 1013);
    assert!(received < sent);

    let mut alice = reconnect(&server, "tea", &token, 2 + received).await;
    alice.expect_resumed(&id, 2).await;
    for _ in received..sent {
        bob.note(&id, 8).await;
        assert_eq!(alice.next().await["data"], text);
    }
    alice.expect_note(7).await;
    for _ in received..sent {
        alice.expect_note(8).await;
    }
    bob.expect_quiet().await;
}

#[tokio::test]
async fn an_early_ping_keeps_a_busy_session_resumable() {
    let server = TestServer::with(|config| {
        config.limits.max_message_bytes = 1000;
        config.limits.outbox_bytes = 8000;
    })
    .await;
    let (mut alice, token) = resumable(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let id = alice.id.clone();
    // The messages are far more than the outbox holds. tungstenite answers the pings while it reads.
    for number in 0..500 {
        bob.note(&id, number).await;
        alice.expect_note(number).await;
    }
    // The server has received the pongs when it answers this.
    alice.expect_quiet().await;
    suspend(&server, alice).await;
    let mut alice = reconnect(&server, "tea", &token, 504).await;
    alice.expect_resumed(&id, 3).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_suspended() {
    let server = TestServer::with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 4;
    })
    .await;
    let (alice, token) = resumable(&server, "tea").await;
    let id = alice.id.clone();
    let mut silent = alice.into_raw();
    let reason = "no pong within 4 s";
    assert_eq!(silent.read_close().await, (1001, reason.into()));
    server.expect_suspended(1).await;
    let mut bob = Client::join(&server, "tea").await;
    bob.note(&id, 7).await;
    let mut alice = reconnect(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
    alice.expect_new(&bob.id).await;
    alice.expect_note(7).await;
    bob.expect_quiet().await;
}

#[tokio::test]
async fn a_session_that_is_not_resumed_in_time_leaves_once() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 1).await;
    let mut observer = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut observer, &server).await;
    let id = alice.id.clone();
    suspend(&server, alice).await;
    observer.expect_left(&id).await;
    let mut late = reconnect(&server, "tea", &token, 2).await;
    let new = late.expect_resume_failed().await;
    observer.expect_new(&new).await;
    observer.expect_quiet().await;
    assert_eq!(outcomes(&server), [0, 1, 1]);
    assert_eq!(server.count("anteroom_sessions_suspended"), 0);
    assert_eq!(server.anteroom.sessions(), 2);
}

/// Clients reconnect about when their sessions expire: each session is either resumed, or has left once.
#[tokio::test]
async fn a_reconnection_at_the_expiry_is_either_in_time_or_too_late() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 1).await;
    let mut moments = tokio::time::interval(Duration::from_millis(50));
    let mut connected = Vec::new();
    for number in 0..20 {
        let room = format!("room-{number}");
        let observer = Client::join(&server, &room).await;
        let mut alice = Client::join(&server, &room).await;
        let token = alice.ask_for_resume_token().await;
        connected.push((room, observer, alice, token));
    }
    let mut suspended = Vec::new();
    for (room, observer, alice, token) in connected {
        let id = alice.id.clone();
        suspend(&server, alice).await;
        suspended.push((room, observer, id, token));
    }
    for _ in 0..10 {
        moments.tick().await;
    }
    let mut outcomes = [0, 0];
    for (room, mut observer, id, token) in suspended {
        moments.tick().await;
        let mut back = reconnect(&server, &room, &token, 2).await;
        let first = back.next().await;
        observer.expect_new(&id).await;
        if first["type"] == "resumed" {
            back.expect_quiet().await;
            observer.expect_quiet().await;
            outcomes[0] += 1;
        } else {
            assert_eq!(first["data"]["code"], "resume_failed");
            observer.expect_left(&id).await;
            observer
                .expect_new(first["receiver"].as_str().unwrap())
                .await;
            observer.expect_quiet().await;
            outcomes[1] += 1;
        }
    }
    assert_eq!(self::outcomes(&server)[..2], outcomes);
}

#[tokio::test]
async fn a_suspended_session_keeps_its_slot_and_needs_no_other() {
    let server = TestServer::with(|config| config.limits.max_sessions = Some(1)).await;
    let (alice, token) = resumable(&server, "tea").await;
    let id = alice.id.clone();
    suspend(&server, alice).await;
    assert_eq!(server.anteroom.sessions(), 1);
    for path in [
        "/room/tea".to_owned(),
        "/room/tea?resume=AAAAAAAAAAAAAAAAAAAAAA&received=2".into(),
        format!("/room/tea?resume={token}&received=9"),
        format!("/room/coffee?resume={token}&received=2"),
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.write(handshake(&path)).await;
        assert!(raw.read_head().await.starts_with("HTTP/1.1 503 "));
    }
    let mut alice = reconnect(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
    alice.leave().await;
    eventually("the leave", || server.anteroom.sessions() == 0).await;
    let (_bob, _) = resumable(&server, "tea").await;
}

#[tokio::test]
async fn a_stopping_server_does_not_wait_for_suspended_sessions() {
    let mut server = TestServer::with(|config| config.stopping.drain_seconds = 3600).await;
    let (alice, token) = resumable(&server, "tea").await;
    suspend(&server, alice).await;
    let (mut bob, _) = resumable(&server, "coffee").await;
    server.stop();
    assert_eq!(bob.expect_close().await.0, 1012);
    drop(bob);
    let address = server.address;
    server.stopped().await;
    let late = open(address, &format!("/room/tea?resume={token}&received=2")).await;
    assert!(late.is_err());
}

/// The proxy cuts the connection at every byte of a resume: of the handshake's answer, of `resumed`, and of
/// each replayed message.
#[tokio::test]
async fn a_resume_survives_a_cut_anywhere() {
    let server = TestServer::start().await;
    let down = Arc::new(AtomicUsize::new(usize::MAX));
    let cut = down.clone();
    let fates = move || Fate {
        down: cut.load(Relaxed),
        ..Fate::NONE
    };
    let proxy = Proxy::start(server.address, fates).await;
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = ResumingClient::join(&proxy, "tea").await;
    bob.expect_new(&alice.id).await;
    for byte in 0..700 {
        proxy.fail(Failure::Reset);
        server.expect_suspended(1).await;
        for number in 0..3 {
            bob.note(&alice.id, number).await;
        }
        down.store(byte, Relaxed);
        let _ = alice.try_resume().await;
        // Alice reads what got through before she notices the cut.
        let mut got = 0;
        while let Ok(text) = next_text(&mut alice.socket).await {
            let note: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(note["data"], got, "byte {byte}");
            alice.received += 1;
            got += 1;
            if got == 3 {
                break;
            }
        }
        down.store(usize::MAX, Relaxed);
        while got < 3 {
            assert_eq!(alice.next().await["data"], got, "byte {byte}");
            got += 1;
        }
        // The server receives once what Alice sends.
        alice
            .send(json!({"type": "note", "receiver": bob.id, "data": byte}))
            .await;
        alice
            .send(json!({"type": "ping", "receiver": "server"}))
            .await;
        assert_eq!(alice.next().await["type"], "pong");
        bob.expect_note(byte as u64).await;
    }
    bob.expect_quiet().await;
}

/// The proxy cuts the connection at every third byte of what the client sends.
#[tokio::test]
async fn a_sent_message_survives_a_cut_anywhere() {
    let server = TestServer::start().await;
    let up = Arc::new(AtomicUsize::new(usize::MAX));
    let cut = up.clone();
    let fates = move || Fate {
        up: cut.load(Relaxed),
        failure: Failure::Close,
        ..Fate::NONE
    };
    let proxy = Proxy::start(server.address, fates).await;
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = ResumingClient::join(&proxy, "tea").await;
    bob.expect_new(&alice.id).await;
    for byte in (0..600).step_by(3) {
        up.store(byte, Relaxed);
        proxy.fail(Failure::Close);
        let _ = alice.try_resume().await;
        up.store(usize::MAX, Relaxed);
        for number in 0..3 {
            alice
                .send(json!({"type": "note", "receiver": bob.id, "data": number}))
                .await;
        }
        alice
            .send(json!({"type": "ping", "receiver": "server"}))
            .await;
        assert_eq!(alice.next().await["type"], "pong");
        for number in 0..3 {
            bob.expect_note(number).await;
        }
    }
    bob.expect_quiet().await;
}

/// How much two clients send each other over connections that fail.
pub struct FaultyExchange {
    pub seed: u64,
    pub messages: usize,
    /// The most bytes that a connection forwards before it fails.
    pub bytes: usize,
}

/// Two clients exchange numbered messages, alternately by unicast and broadcast, each through its own
/// proxy, whose connections lead to any of the servers and fail. Each message must arrive once and in
/// order, and a third session must receive nothing but the broadcasts. Returns how often a session was
/// resumed.
pub async fn exchange_over_faults(
    exchange: &FaultyExchange,
    servers: &[impl RunningServer],
) -> usize {
    let room = format!("faults-{}", exchange.seed);
    let mut observer = Client::join(&servers[0], &room).await;
    let (mut alice, _proxy_a) = join_over_faults(exchange, 1, servers).await;
    observer.expect_new(&alice.id).await;
    let (mut bob, _proxy_b) = join_over_faults(exchange, 2, servers).await;
    observer.expect_new(&bob.id).await;
    let new = alice.next().await;
    assert_eq!(
        (&new["type"], &new["sender"]),
        (&json!("new"), &json!(bob.id))
    );

    let (a, b) = (alice.id.clone(), bob.id.clone());
    let (got_a, got_b, ()) = tokio::join!(
        send_and_receive(exchange, &mut alice, &b),
        send_and_receive(exchange, &mut bob, &a),
        expect_broadcasts(exchange, &mut observer, [&a, &b]),
    );
    let all: Vec<usize> = (0..exchange.messages).collect();
    assert_eq!(got_a, all, "seed {}", exchange.seed);
    assert_eq!(got_b, all, "seed {}", exchange.seed);
    for outcome in ["failed", "expired"] {
        let series = format!("anteroom_resumes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(total(servers, &series).await, 0);
    }
    observer.expect_quiet().await;
    alice.resumed + bob.resumed
}

/// Options for a [`FaultyExchange`]: no session fails for what it missed, or expires.
pub fn keep_sessions(config: &mut Config) {
    config.limits.outbox_bytes = 64 << 20;
    config.liveness.resume_seconds = 3600;
}

/// Joins through a proxy whose connections fail at random.
async fn join_over_faults(
    exchange: &FaultyExchange,
    salt: u64,
    servers: &[impl RunningServer],
) -> (ResumingClient, Proxy) {
    let mut random = SmallRng::seed_from_u64(exchange.seed * 10 + salt);
    let bytes = exchange.bytes;
    let count = servers.len();
    // The first connection lasts at least until the client has its resume token.
    let mut least = 4000;
    let fates = move || {
        let range = least..bytes + least;
        least = 0;
        let mut fate = Fate {
            up: random.random_range(range.clone()),
            down: random.random_range(range),
            failure: [Failure::Close, Failure::Reset, Failure::Stall][random.random_range(0..3)],
            server: random.random_range(0..count),
            ..Fate::NONE
        };
        match random.random_range(0..8) {
            0 => fate.delay = Duration::from_millis(2),
            1 | 2 => fate.in_bytes = true,
            _ => {}
        }
        // A cut in one direction is enough.
        *[&mut fate.up, &mut fate.down][random.random_range(0..2)] = usize::MAX;
        fate
    };
    let addresses = servers.iter().map(RunningServer::address).collect();
    let proxy = Proxy::before(addresses, fates).await;
    let room = format!("faults-{}", exchange.seed);
    let client = ResumingClient::join(&proxy, &room).await;
    (client, proxy)
}

/// Sends all messages, alternately to the other client and to all, and receives what the other sends.
/// Returns the received numbers.
async fn send_and_receive(
    exchange: &FaultyExchange,
    own: &mut ResumingClient,
    other: &str,
) -> Vec<usize> {
    let mut got = Vec::new();
    let mut answered = false;
    let mut sent = 0;
    while got.len() < exchange.messages || !answered {
        // A client that is 20 ahead waits for the other, so that connections fail during all of the
        // exchange.
        if sent < exchange.messages && sent <= got.len() + 20 {
            let receiver = [other, "all"][sent % 2];
            own.send(json!({"type": "number", "receiver": receiver, "data": sent}))
                .await;
            sent += 1;
            if sent == exchange.messages {
                // The answer confirms that the server has received every message before it.
                own.send(json!({"type": "ping", "receiver": "server"}))
                    .await;
            }
        } else {
            let message = own.next().await;
            if message["type"] == "pong" {
                answered = true;
                continue;
            }
            assert_eq!(
                message["type"], "number",
                "seed {}: {message}",
                exchange.seed
            );
            assert_eq!(message["sender"], other);
            got.push(message["data"].as_u64().unwrap() as usize);
        }
    }
    got
}

/// Receives what both clients broadcast.
async fn expect_broadcasts(exchange: &FaultyExchange, observer: &mut Client, others: [&str; 2]) {
    let mut next = [1, 1];
    while next.iter().any(|next| *next < exchange.messages) {
        let message = observer.next().await;
        assert_eq!(
            message["type"], "number",
            "seed {}: {message} {others:?}",
            exchange.seed
        );
        let sender = others
            .iter()
            .position(|id| message["sender"] == *id)
            .unwrap();
        assert_eq!(message["data"], next[sender], "seed {}", exchange.seed);
        next[sender] += 2;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_lost_over_hundreds_of_connection_failures() {
    let exchange = FaultyExchange {
        seed: 1,
        messages: 10_000,
        bytes: 8000,
    };
    let server = TestServer::with(keep_sessions).await;
    let resumed = exchange_over_faults(&exchange, &[server]).await;
    assert!(resumed >= 200, "only {resumed} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_message_is_lost_with_any_of_300_seeds() {
    let servers = [TestServer::with(keep_sessions).await];
    for seed in 0..300 {
        let exchange = FaultyExchange {
            seed,
            messages: 40,
            bytes: 6000,
        };
        exchange_over_faults(&exchange, &servers).await;
    }
}

/// Resumable sessions that send increasing numbers to all until they are told to stop.
pub struct Crew {
    stop: watch::Sender<bool>,
    /// How many messages have been sent and acknowledged.
    progress: Arc<AtomicUsize>,
    members: Vec<JoinHandle<ResumingClient>>,
}

impl Crew {
    /// Lets so many sessions join a room through a proxy.
    pub async fn begin(proxy: &Proxy, room: &str, count: usize) -> Crew {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(ResumingClient::join(proxy, room).await);
        }
        let ids: Vec<String> = clients.iter().map(|client| client.id.clone()).collect();
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::new(AtomicUsize::new(0));
        let members = clients.into_iter().map(|client| {
            let (ids, stopped, progress) = (ids.clone(), stopped.clone(), progress.clone());
            tokio::spawn(take_part(client, ids, stopped, progress))
        });
        let members = members.collect();
        Crew {
            stop,
            progress,
            members,
        }
    }

    /// Waits until each session has sent some more messages.
    pub async fn expect_progress(&self) {
        let goal = self.progress.load(Relaxed) + 100 * self.members.len();
        eventually("the progress of the crew", || {
            self.progress.load(Relaxed) >= goal
        })
        .await;
    }

    /// Ends the exchange. Each session must have received each message of each other session once and in
    /// order, and nothing else. Returns how often sessions were resumed.
    pub async fn end(self) -> usize {
        self.stop.send_replace(true);
        let ended = within_deadline("the end of the crew", join_all(self.members)).await;
        ended.into_iter().map(|ended| ended.unwrap().resumed).sum()
    }
}

/// Sends numbers to all and checks those of the others, until all have said that they stop.
async fn take_part(
    mut client: ResumingClient,
    ids: Vec<String>,
    stopped: watch::Receiver<bool>,
    progress: Arc<AtomicUsize>,
) -> ResumingClient {
    let others = ids.into_iter().filter(|id| *id != client.id);
    let mut others = Others {
        next: others.map(|id| (id, 0)).collect(),
        stopped: 0,
    };
    let receivers = others.next.len();
    for number in 0.. {
        let stops = *stopped.borrow();
        let kind = if stops { "stop" } else { "number" };
        client
            .send(json!({"type": kind, "receiver": "all", "data": number, "ref": number}))
            .await;
        loop {
            let message = client.next().await;
            if message["type"] == "ack" {
                assert_eq!(
                    message["data"],
                    json!({"ref": number, "receivers": receivers})
                );
                break;
            }
            others.check(&message);
        }
        progress.fetch_add(1, Relaxed);
        if stops {
            break;
        }
        while others.is_behind(number) {
            let message = client.next().await;
            others.check(&message);
        }
    }
    while others.stopped < receivers {
        let message = client.next().await;
        others.check(&message);
    }
    client
}

/// The other members of a crew, as one of them sees them.
struct Others {
    /// The number that each sends next.
    next: HashMap<String, u64>,
    /// How many have stopped.
    stopped: usize,
}

impl Others {
    /// How many more messages a member may have sent than another. A session that is away for a while would miss
    /// more than its outbox keeps if the others went on without it.
    const LEAD: u64 = 100;

    /// Whether one of them has sent far less than a member that has sent this number. Those who have stopped send
    /// nothing more, and this member is about to stop, too.
    fn is_behind(&self, number: u64) -> bool {
        let last = self.next.values().min();
        self.stopped == 0 && last.is_some_and(|last| number > last + Self::LEAD)
    }

    fn check(&mut self, message: &Value) {
        let next = self.next.get_mut(message["sender"].as_str().unwrap());
        let next = next.unwrap_or_else(|| panic!("unexpected: {message}"));
        match message["type"].as_str().unwrap() {
            // Those who have joined before see the others join.
            "new" => assert_eq!(*next, 0, "{message}"),
            kind @ ("number" | "stop") => {
                assert_eq!(message["data"], *next, "{message}");
                *next += 1;
                self.stopped += usize::from(kind == "stop");
            }
            _ => panic!("unexpected: {message}"),
        }
    }
}
