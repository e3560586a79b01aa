//! Sessions that outlive their connections (PROTOCOL 8): nothing is lost, doubled or reordered, and
//! the room notices nothing.

use std::{
    collections::VecDeque,
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
use tokio::{net::TcpStream, sync::watch};
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

/// A client that loses nothing: it counts what it gets, keeps what it has sent until that is known
/// to be taken in, and takes its session up again whenever the connection is lost.
struct Phoenix {
    address: SocketAddr,
    room: String,
    id: String,
    token: String,
    socket: WebSocketStream<TcpStream>,
    /// How many messages it has got in its session.
    received: u64,
    /// What it has sent and nobody has said to have taken in, and how many were taken in before.
    sent: VecDeque<String>,
    taken_in: u64,
    resumed: usize,
    /// How often the network has stalled, and had when the connection was opened.
    stalled: watch::Receiver<usize>,
    stalls: usize,
}

impl Phoenix {
    /// Joins, and asks to be resumed; returns also who was there.
    async fn join(proxy: &Proxy, room: &str) -> (Phoenix, Vec<String>) {
        let address = proxy.address;
        let path = format!("/room/{room}");
        let mut phoenix = Phoenix {
            address,
            room: room.into(),
            id: String::new(),
            token: String::new(),
            socket: open(address, &path).await.unwrap(),
            received: 0,
            sent: VecDeque::new(),
            taken_in: 0,
            resumed: 0,
            stalled: proxy.stalls.clone(),
            stalls: 0,
        };
        phoenix
            .send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
            .await;
        let hello = loop {
            let message = phoenix.next().await;
            if message["type"] == "hello" {
                break message;
            }
        };
        phoenix.id = hello["receiver"].as_str().unwrap().into();
        phoenix.token = hello["data"]["resume"]["token"].as_str().unwrap().into();
        let peers = hello["data"]["peers"].as_array().unwrap().iter();
        let peers = peers.map(|peer| peer["id"].as_str().unwrap().into());
        (phoenix, peers.collect())
    }

    fn target(&self) -> String {
        let Phoenix {
            room,
            token,
            received,
            ..
        } = self;
        format!("/room/{room}?resume={token}&received={received}")
    }

    /// Sends a message, now or with the next connection.
    async fn send(&mut self, message: Value) {
        let text = message.to_string();
        self.sent.push_back(text.clone());
        if self.socket.send(Message::text(text)).await.is_err() {
            self.resume().await;
        }
    }

    /// Takes the session up again; whatever happens meanwhile, it goes on trying.
    async fn resume(&mut self) {
        let again = async {
            let mut stalled = self.stalled.clone();
            loop {
                self.stalls = *stalled.borrow();
                let seen = self.stalls;
                tokio::select! {
                    resumed = self.try_resume() => if resumed.is_ok() { break },
                    _ = stalled.wait_for(|stalls| *stalls > seen) => {}
                }
            }
        };
        within_deadline("the resume", again).await;
    }

    async fn try_resume(&mut self) -> Result<(), Error> {
        self.socket = open(self.address, &self.target()).await?;
        let text = next_text(&mut self.socket).await?;
        let resumed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(resumed["type"], "resumed", "{resumed}");
        assert_eq!(resumed["sender"], "server");
        assert_eq!(resumed["receiver"], self.id.as_str());
        let taken_in = resumed["data"]["received"].as_u64().unwrap();
        let more = taken_in
            .checked_sub(self.taken_in)
            .expect("it never goes back");
        self.sent.drain(..more as usize);
        self.taken_in = taken_in;
        self.resumed += 1;
        for text in &self.sent {
            self.socket.feed(Message::text(text)).await?;
        }
        self.socket.flush().await
    }

    /// The next message, on this connection or another.
    async fn next(&mut self) -> Value {
        loop {
            let seen = self.stalls;
            let next = async {
                tokio::select! {
                    text = next_text(&mut self.socket) => text.ok(),
                    _ = self.stalled.wait_for(|stalls| *stalls > seen) => None,
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

pub async fn open(address: SocketAddr, target: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}{target}");
    Ok(client_async(url, stream).await?.0)
}

/// The next message; pings are answered on the way.
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

/// A session that may be resumed, alone in its room so far. It has got two messages.
async fn resumable(server: &impl RunningServer, room: &str) -> (Client, String) {
    let mut client = Client::join(server, room).await;
    let token = ask_for_token(&mut client).await;
    (client, token)
}

/// The same beside somebody in the room `tea`, who is told of it.
pub async fn resumable_beside(other: &mut Client, server: &impl RunningServer) -> (Client, String) {
    let resumable = resumable(server, "tea").await;
    other.expect_new(&resumable.0.id).await;
    resumable
}

async fn ask_for_token(client: &mut Client) -> String {
    let hello = hello(client, json!({"resume": true})).await;
    hello["resume"]["token"].as_str().unwrap().into()
}

/// What `hello` answers.
async fn hello(client: &mut Client, data: Value) -> Value {
    client
        .send(json!({"type": "hello", "receiver": "server", "data": data}))
        .await;
    client.next().await["data"].clone()
}

/// Comes back to a room, with this query.
pub async fn return_to(
    server: &TestServer,
    room: &str,
    token: &str,
    received: impl Display,
) -> Client {
    let path = format!("/room/{room}?resume={token}&received={received}");
    Client::connect(server.address(), &path).await
}

/// How many sessions were resumed, how many requests for that failed, and how many sessions expired.
fn outcomes(server: &TestServer) -> [u64; 3] {
    ["resumed", "failed", "expired"]
        .map(|outcome| server.count(&format!("anteroom_resumes_total{{outcome=\"{outcome}\"}}")))
}

/// Cuts a connection, and waits until the server knows.
async fn lose(server: &TestServer, client: Client) {
    let away = server.count("anteroom_sessions_suspended");
    drop(client.into_raw());
    eventually("the loss", || {
        server.count("anteroom_sessions_suspended") == away + 1
    })
    .await;
}

impl Client {
    /// The next message must say that the session goes on.
    pub async fn expect_resumed(&mut self, id: &str, received: u64) {
        self.id = id.into();
        let data = format!(r#"{{"received":{received}}}"#);
        self.expect_text(&format!(
            r#"{{"type":"resumed","sender":"server","receiver":"{id}","data":{data}}}"#
        ))
        .await;
    }

    /// The next message must say that this is a new session; returns its id.
    pub async fn expect_resume_failed(&mut self) -> String {
        let error = self.next().await;
        assert_eq!(error["type"], "error", "{error}");
        assert_eq!(error["data"]["code"], "resume_failed");
        self.id = error["receiver"].as_str().unwrap().into();
        self.id.clone()
    }

    /// Sends a note with a receipt, which must come.
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
async fn only_who_asks_gets_a_token_and_it_stays_the_same() {
    let server = TestServer::start().await;
    let (mut alice, token) = resumable(&server, "tea").await;
    assert_eq!(token.len(), 22);
    assert_eq!(ask_for_token(&mut alice).await, token);
    let asked = hello(&mut alice, json!({"resume": true})).await;
    assert_eq!(asked["resume"], json!({"token": token, "seconds": 30}));
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
async fn a_server_may_let_nobody_resume() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 0).await;
    let mut watcher = Client::join(&server, "tea").await;
    let mut alice = Client::join(&server, "tea").await;
    watcher.expect_new(&alice.id).await;
    let hello = hello(&mut alice, json!({"resume": true})).await;
    assert_eq!(hello["resume"], json!(null));
    let id = alice.id.clone();
    drop(alice.into_raw());
    watcher.expect_left(&id).await;
}

#[tokio::test]
async fn who_is_away_is_still_there_and_misses_nothing() {
    let server = TestServer::start().await;
    let (alice, token) = resumable(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let id = alice.id.clone();
    lose(&server, alice).await;
    for number in 0..3 {
        bob.note(&id, number).await;
        bob.note("all", 10 + number).await;
    }
    let carol = Client::join(&server, "tea").await;
    bob.expect_new(&carol.id).await;

    let mut alice = return_to(&server, "tea", &token, 2).await;
    // Both of hers were taken in: hello, twice.
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
async fn a_client_says_how_it_goes() {
    let server = TestServer::start().await;
    let mut watcher = Client::join(&server, "tea").await;
    let goodbyes: [(&[u8], bool); 4] = [
        (b"\x0f\xa0", true),
        (b"\x03\xe8", false),
        (b"\x0f\xa1", false),
        (b"", false),
    ];
    for (status, comes_back) in goodbyes {
        let mut client = Client::join(&server, "tea").await;
        let id = client.id.clone();
        watcher.expect_new(&id).await;
        let token = ask_for_token(&mut client).await;
        let mut raw = client.into_raw();
        raw.write(frame(0x88, status)).await;
        let goodbye = raw.read_frame().await;
        assert_eq!((goodbye.first, &goodbye.payload[..]), (0x88, status));
        let mut back = return_to(&server, "tea", &token, 2).await;
        if comes_back {
            back.expect_resumed(&id, 2).await;
            watcher.expect_quiet().await;
            back.leave().await;
            watcher.expect_left(&id).await;
        } else {
            watcher.expect_left(&id).await;
            let new = back.expect_resume_failed().await;
            watcher.expect_new(&new).await;
            back.leave().await;
            watcher.expect_left(&new).await;
        }
    }
}

#[tokio::test]
async fn the_old_connection_is_closed_for_the_new() {
    let server = TestServer::start().await;
    let mut watcher = Client::join(&server, "tea").await;
    let (mut old, token) = resumable_beside(&mut watcher, &server).await;
    let id = old.id.clone();
    for turn in 0..5 {
        watcher.note(&id, turn).await;
        let mut new = return_to(&server, "tea", &token, 2 + turn).await;
        new.expect_resumed(&id, 2 + turn).await;
        new.expect_note(turn).await;
        new.send(json!({"type": "note", "receiver": watcher.id, "data": turn}))
            .await;
        watcher.expect_note(turn).await;
        let (code, reason) = old.expect_close().await;
        assert_eq!((code, &*reason), (1008, "resumed on another connection"));
        old = new;
    }
    watcher.expect_quiet().await;
}

#[tokio::test]
async fn of_several_at_once_one_has_the_session() {
    let server = TestServer::start().await;
    for turn in 0..50 {
        let room = format!("room-{turn}");
        let (mut alice, token) = resumable(&server, &room).await;
        let returns = (0..4).map(|_| return_to(&server, &room, &token, 2));
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
        // All have come; from all but one the session has been taken over since.
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
async fn what_cannot_be_resumed_is_a_new_session_and_the_old_one_stays() {
    let server = TestServer::start().await;
    let mut watcher = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut watcher, &server).await;
    let id = alice.id.clone();
    lose(&server, alice).await;
    let wrong = "AAAAAAAAAAAAAAAAAAAAAA";
    let long = "A".repeat(5000);
    for (token, received) in [
        (wrong, "2"),
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
        let mut other = return_to(&server, "tea", token, received).await;
        let new = other.expect_resume_failed().await;
        assert_ne!(new, id);
        watcher.expect_new(&new).await;
        other.expect_quiet().await;
        other.leave().await;
        watcher.expect_left(&new).await;
    }
    let mut elsewhere = return_to(&server, "coffee", &token, 2).await;
    elsewhere.expect_resume_failed().await;
    let mut uncounted =
        Client::connect(server.address, &format!("/room/coffee?resume={token}")).await;
    uncounted.expect_resume_failed().await;

    let mut alice = return_to(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
}

#[tokio::test]
async fn who_has_missed_too_much_begins_anew() {
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
    lose(&server, alice).await;
    // Delivered, as far as anyone can know.
    for number in 0..100 {
        bob.note(&id, number).await;
    }
    bob.expect_quiet().await;
    let mut alice = return_to(&server, "tea", &token, 3).await;
    let new = alice.expect_resume_failed().await;
    bob.expect_new(&new).await;
    bob.expect_left(&id).await;
    bob.expect_quiet().await;
}

/// A request that comes late, with a count that was true once.
#[tokio::test]
async fn an_attempt_of_yesterday_harms_nobody() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &server).await;
    let id = alice.id.clone();
    bob.note(&id, 0).await;
    alice.expect_note(0).await;
    lose(&server, alice).await;
    let mut alice = return_to(&server, "tea", &token, 3).await;
    alice.expect_resumed(&id, 2).await;
    // What she had got by then is not kept any longer.
    let mut late = return_to(&server, "tea", &token, 2).await;
    let new = late.expect_resume_failed().await;
    bob.expect_new(&new).await;
    alice.expect_new(&new).await;
    alice.expect_quiet().await;
    late.leave().await;
    bob.expect_left(&new).await;
    bob.expect_quiet().await;
}

/// A session that has missed nearly as much as is kept does not fail for the one message more that
/// comes while it takes that in; and one that is too slow loses its connection, not itself.
#[tokio::test]
async fn who_is_too_slow_is_only_away() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 256 << 10).await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut bob, &server).await;
    let id = alice.id.clone();
    let mut silent = alice.into_raw();
    let text = "x".repeat(10_000);
    let mut sent = 0;
    // She does not read: it fills the network between, and then her outbox.
    while server.count("anteroom_sessions_suspended") == 0 {
        let note = json!({"type": "note", "receiver": id, "data": text, "ref": sent});
        bob.send(note).await;
        assert_eq!(bob.next().await["data"]["receivers"], 1);
        sent += 1;
    }
    bob.note(&id, 7).await;
    let mut got = 0;
    let code = loop {
        let RawFrame { first, payload } = silent.read_frame().await;
        match first {
            0x81 => got += 1,
            _ => break u16::from_be_bytes([payload[0], payload[1]]),
        }
    };
    assert_eq!(code, 1013);
    assert!(got < sent);

    let mut alice = return_to(&server, "tea", &token, 2 + got).await;
    alice.expect_resumed(&id, 2).await;
    for _ in got..sent {
        bob.note(&id, 8).await;
        assert_eq!(alice.next().await["data"], text);
    }
    alice.expect_note(7).await;
    for _ in got..sent {
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
    // Far more than the outbox holds; tungstenite answers the pings while it reads.
    for number in 0..500 {
        bob.note(&id, number).await;
        alice.expect_note(number).await;
    }
    // The pongs are in before this is answered.
    alice.expect_quiet().await;
    lose(&server, alice).await;
    let mut alice = return_to(&server, "tea", &token, 504).await;
    alice.expect_resumed(&id, 3).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn who_does_not_pong_is_away() {
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
    eventually("the loss", || {
        server.count("anteroom_sessions_suspended") == 1
    })
    .await;
    let mut bob = Client::join(&server, "tea").await;
    bob.note(&id, 7).await;
    let mut alice = return_to(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
    alice.expect_new(&bob.id).await;
    alice.expect_note(7).await;
    bob.expect_quiet().await;
}

#[tokio::test]
async fn who_does_not_come_back_has_left_once() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 1).await;
    let mut watcher = Client::join(&server, "tea").await;
    let (alice, token) = resumable_beside(&mut watcher, &server).await;
    let id = alice.id.clone();
    lose(&server, alice).await;
    watcher.expect_left(&id).await;
    let mut late = return_to(&server, "tea", &token, 2).await;
    let new = late.expect_resume_failed().await;
    watcher.expect_new(&new).await;
    watcher.expect_quiet().await;
    assert_eq!(outcomes(&server), [0, 1, 1]);
    assert_eq!(server.count("anteroom_sessions_suspended"), 0);
    assert_eq!(server.anteroom.sessions(), 2);
}

/// Clients that return about when their time is up: each is either resumed, or has left once.
#[tokio::test]
async fn the_last_moment_is_either_in_time_or_too_late() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 1).await;
    let mut moments = tokio::time::interval(Duration::from_millis(50));
    let mut away = Vec::new();
    for number in 0..20 {
        let room = format!("room-{number}");
        let watcher = Client::join(&server, &room).await;
        let mut alice = Client::join(&server, &room).await;
        let token = ask_for_token(&mut alice).await;
        away.push((room, watcher, alice, token));
    }
    let mut lost = Vec::new();
    for (room, watcher, alice, token) in away {
        let id = alice.id.clone();
        lose(&server, alice).await;
        lost.push((room, watcher, id, token));
    }
    for _ in 0..10 {
        moments.tick().await;
    }
    let mut outcomes = [0, 0];
    for (room, mut watcher, id, token) in lost {
        moments.tick().await;
        let mut back = return_to(&server, &room, &token, 2).await;
        let first = back.next().await;
        watcher.expect_new(&id).await;
        if first["type"] == "resumed" {
            back.expect_quiet().await;
            watcher.expect_quiet().await;
            outcomes[0] += 1;
        } else {
            assert_eq!(first["data"]["code"], "resume_failed");
            watcher.expect_left(&id).await;
            watcher
                .expect_new(first["receiver"].as_str().unwrap())
                .await;
            watcher.expect_quiet().await;
            outcomes[1] += 1;
        }
    }
    assert_eq!(self::outcomes(&server)[..2], outcomes);
}

#[tokio::test]
async fn a_session_that_is_away_keeps_its_place_and_needs_no_other() {
    let server = TestServer::with(|config| config.limits.max_sessions = Some(1)).await;
    let (alice, token) = resumable(&server, "tea").await;
    let id = alice.id.clone();
    lose(&server, alice).await;
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
    let mut alice = return_to(&server, "tea", &token, 2).await;
    alice.expect_resumed(&id, 2).await;
    alice.leave().await;
    eventually("the leaving", || server.anteroom.sessions() == 0).await;
    let (_bob, _) = resumable(&server, "tea").await;
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_who_is_away() {
    let mut server = TestServer::with(|config| config.stopping.drain_seconds = 3600).await;
    let (alice, token) = resumable(&server, "tea").await;
    lose(&server, alice).await;
    let (mut bob, _) = resumable(&server, "coffee").await;
    server.stop();
    assert_eq!(bob.expect_close().await.0, 1012);
    drop(bob);
    let address = server.address;
    server.stopped().await;
    let gone = open(address, &format!("/room/tea?resume={token}&received=2")).await;
    assert!(gone.is_err());
}

/// The connection is cut at every byte of a resume: of the handshake's answer, of `resumed`, of each
/// message that was missed.
#[tokio::test]
async fn a_resume_may_be_cut_anywhere() {
    let server = TestServer::start().await;
    let down = Arc::new(AtomicUsize::new(usize::MAX));
    let cut = down.clone();
    let fates = move || Fate {
        down: cut.load(Relaxed),
        ..Fate::NONE
    };
    let proxy = Proxy::start(server.address, fates).await;
    let mut bob = Client::join(&server, "tea").await;
    let (mut alice, _) = Phoenix::join(&proxy, "tea").await;
    bob.expect_new(&alice.id).await;
    for byte in 0..700 {
        proxy.fail(Failure::Reset);
        eventually("the loss", || {
            server.count("anteroom_sessions_suspended") == 1
        })
        .await;
        for number in 0..3 {
            bob.note(&alice.id, number).await;
        }
        down.store(byte, Relaxed);
        let _ = alice.try_resume().await;
        // What gets through is taken in before the cut is noticed.
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
        // What she sends is taken in once, too.
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

/// The connection is cut at every byte of what the client sends.
#[tokio::test]
async fn a_message_may_be_cut_anywhere() {
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
    let (mut alice, _) = Phoenix::join(&proxy, "tea").await;
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

/// How much two clients send each other while their connections fail.
pub struct Storm {
    pub seed: u64,
    pub messages: usize,
    /// How many bytes a connection lasts at most.
    pub bytes: usize,
}

/// Two clients exchange numbered messages, to one and to all by turns, through a proxy each that fails.
/// Each message must arrive once and in order, and a third session must hear of nothing else.
/// Returns how often a session was resumed. Each connection leads to any of the servers.
pub async fn weather(storm: &Storm, servers: &[impl RunningServer]) -> usize {
    let room = format!("storm-{}", storm.seed);
    let mut watcher = Client::join(&servers[0], &room).await;
    let (mut alice, _proxy_a) = join_in(storm, 1, servers).await;
    watcher.expect_new(&alice.id).await;
    let (mut bob, _proxy_b) = join_in(storm, 2, servers).await;
    watcher.expect_new(&bob.id).await;
    let new = alice.next().await;
    assert_eq!(
        (&new["type"], &new["sender"]),
        (&json!("new"), &json!(bob.id))
    );

    let (a, b) = (alice.id.clone(), bob.id.clone());
    let (got_a, got_b, ()) = tokio::join!(
        exchange(storm, &mut alice, &b),
        exchange(storm, &mut bob, &a),
        watch(storm, &mut watcher, [&a, &b]),
    );
    let all: Vec<usize> = (0..storm.messages).collect();
    assert_eq!(got_a, all, "seed {}", storm.seed);
    assert_eq!(got_b, all, "seed {}", storm.seed);
    for outcome in ["failed", "expired"] {
        let series = format!("anteroom_resumes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(total(servers, &series).await, 0);
    }
    watcher.expect_quiet().await;
    alice.resumed + bob.resumed
}

/// A server's options for such weather.
pub fn weatherproof(config: &mut Config) {
    config.limits.outbox_bytes = 64 << 20;
    config.liveness.resume_seconds = 3600;
}

/// Joins through a proxy whose connections fail at random.
async fn join_in(storm: &Storm, salt: u64, servers: &[impl RunningServer]) -> (Phoenix, Proxy) {
    let mut random = SmallRng::seed_from_u64(storm.seed * 10 + salt);
    let bytes = storm.bytes;
    let count = servers.len();
    // The first connection lasts at least until the token is there.
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
        // One direction is enough.
        *[&mut fate.up, &mut fate.down][random.random_range(0..2)] = usize::MAX;
        fate
    };
    let addresses = servers.iter().map(RunningServer::address).collect();
    let proxy = Proxy::before(addresses, fates).await;
    let room = format!("storm-{}", storm.seed);
    let (phoenix, _) = Phoenix::join(&proxy, &room).await;
    (phoenix, proxy)
}

/// Sends all messages to the other and to all by turns, and takes in what the other sends; returns
/// the numbers of what has come.
async fn exchange(storm: &Storm, own: &mut Phoenix, other: &str) -> Vec<usize> {
    let mut got = Vec::new();
    let mut answered = false;
    let mut sent = 0;
    while got.len() < storm.messages || !answered {
        // Who is this far ahead waits for the other, so that the connections fail all the way.
        if sent < storm.messages && sent <= got.len() + 20 {
            let receiver = [other, "all"][sent % 2];
            own.send(json!({"type": "number", "receiver": receiver, "data": sent}))
                .await;
            sent += 1;
            if sent == storm.messages {
                // When this is answered, all before it has been taken in.
                own.send(json!({"type": "ping", "receiver": "server"}))
                    .await;
            }
        } else {
            let message = own.next().await;
            if message["type"] == "pong" {
                answered = true;
                continue;
            }
            assert_eq!(message["type"], "number", "seed {}: {message}", storm.seed);
            assert_eq!(message["sender"], other);
            got.push(message["data"].as_u64().unwrap() as usize);
        }
    }
    got
}

/// Takes in what both send to all.
async fn watch(storm: &Storm, watcher: &mut Client, others: [&str; 2]) {
    let mut next = [1, 1];
    while next.iter().any(|next| *next < storm.messages) {
        let message = watcher.next().await;
        assert_eq!(
            message["type"], "number",
            "seed {}: {message} {others:?}",
            storm.seed
        );
        let sender = others
            .iter()
            .position(|id| message["sender"] == *id)
            .unwrap();
        assert_eq!(message["data"], next[sender], "seed {}", storm.seed);
        next[sender] += 2;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_connections_are_cut_hundreds_of_times() {
    let storm = Storm {
        seed: 1,
        messages: 10_000,
        bytes: 8000,
    };
    let server = TestServer::with(weatherproof).await;
    let resumed = weather(&storm, &[server]).await;
    assert!(resumed >= 200, "only {resumed} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_with_any_of_many_seeds() {
    let servers = [TestServer::with(weatherproof).await];
    for seed in 0..300 {
        let storm = Storm {
            seed,
            messages: 40,
            bytes: 6000,
        };
        weather(&storm, &servers).await;
    }
}
