//! Sessions that outlive their connections (PROTOCOL 8): nothing is lost, doubled or reordered, and
//! the room notices nothing.

use std::{collections::VecDeque, net::SocketAddr};

use anteroom::ResumeCounts;
use futures_util::{SinkExt, StreamExt};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::watch};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message},
};

use crate::{
    proxy::{Failure, Failures, Fate, Proxy},
    support::{
        Client, Program, Raw, TestServer, eventually, frame, handshake, text, within_deadline,
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
    /// How the network fails, and how often it had stalled when the connection was opened.
    failures: watch::Receiver<Failures>,
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
            failures: proxy.failures.clone(),
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
            let mut failures = self.failures.clone();
            loop {
                self.stalls = failures.borrow().stalls;
                let seen = self.stalls;
                tokio::select! {
                    resumed = self.try_resume() => if resumed.is_ok() { break },
                    _ = failures.wait_for(|failures| failures.stalls > seen) => {}
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
                    _ = self.failures.wait_for(|failures| failures.stalls > seen) => None,
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

async fn open(address: SocketAddr, target: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(address).await?;
    let url = format!("ws://{address}{target}");
    Ok(client_async(url, stream).await?.0)
}

/// The next message; pings are answered on the way.
async fn next_text(socket: &mut WebSocketStream<TcpStream>) -> Result<String, Error> {
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

/// How much two clients send each other while their connections fail.
struct Storm {
    seed: u64,
    messages: usize,
    /// How many bytes a connection lasts at most.
    bytes: usize,
}

/// Two clients exchange numbered messages, to one and to all by turns, through a proxy each that fails.
/// Each message must arrive once and in order, and a third session must hear of nothing else.
/// Returns how often a session was resumed.
async fn weather(storm: &Storm) -> usize {
    let server = TestServer::with(|config| {
        config.outbox_bytes = 64 << 20;
        config.resume_seconds = 3600;
    })
    .await;
    let mut watcher = Client::join(&server, "storm").await;
    let (mut alice, _proxy_a) = join_in(storm, 1, server.address).await;
    watcher.expect_new(&alice.id).await;
    let (mut bob, _proxy_b) = join_in(storm, 2, server.address).await;
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
    let counts = server.anteroom.resumes();
    assert_eq!((counts.failed, counts.expired), (0, 0));
    // Some of what was resumed was lost again before the client got to know.
    let resumed = alice.resumed + bob.resumed;
    assert!(counts.resumed >= resumed as u64);
    watcher.expect_quiet().await;
    resumed
}

/// Joins through a proxy whose connections fail at random.
async fn join_in(storm: &Storm, salt: u64, server: SocketAddr) -> (Phoenix, Proxy) {
    let mut random = SmallRng::seed_from_u64(storm.seed * 10 + salt);
    let bytes = storm.bytes;
    // The first connection lasts at least until the token is there.
    let mut least = 4000;
    let fates = move || {
        let range = least..bytes + least;
        least = 0;
        let mut fate = Fate {
            up: random.random_range(range.clone()),
            down: random.random_range(range),
            failure: [Failure::Close, Failure::Reset, Failure::Stall][random.random_range(0..3)],
            in_bytes: random.random_range(0..4) == 0,
        };
        // One direction is enough.
        *[&mut fate.up, &mut fate.down][random.random_range(0..2)] = usize::MAX;
        fate
    };
    let proxy = Proxy::start(server, fates).await;
    let (phoenix, _) = Phoenix::join(&proxy, "storm").await;
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
        assert_eq!(message["type"], "number", "seed {}: {message}", storm.seed);
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
    let resumed = weather(&storm).await;
    assert!(resumed >= 200, "only {resumed} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_with_any_of_many_seeds() {
    for seed in 0..300 {
        let storm = Storm {
            seed,
            messages: 40,
            bytes: 6000,
        };
        weather(&storm).await;
    }
}
