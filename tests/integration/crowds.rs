//! Join storms, many rooms, and random joins and leaves against a reference model.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, future::join_all, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    Client, Raw, RunningServer, TestServer, eventually, eventually_async, frame, handshake,
    hold_little, text, total, within_deadline,
};

/// The number of connections that are being opened at any time.
const AT_ONCE: usize = 100;

/// The number of clients of the random model.
const CLIENTS: usize = 50;

/// The number of rooms of the random model.
const ROOMS: usize = 5;

/// The number of steps that each client of the random model takes, one after the other.
const STEPS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_of_2000_joins_every_session_knows_the_others() {
    // A long time limit: so many clients on one processor answer pings late, and a client that has stopped
    // reading answers none.
    let server = TestServer::with(|config| config.liveness.pong_seconds = 3600).await;
    join_storm(&[server], 2000).await;
}

#[tokio::test]
async fn a_crowd_that_leaves_at_once_closes_no_client_whose_socket_has_space() {
    const CROWD: usize = 500;
    // The `close` messages of the crowd are more than twice as much as an outbox holds.
    let server = TestServer::with(|config| hold_little(config, 20_000)).await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(Raw::join(&server, "large").await);
    }
    let mut witnesses = Vec::new();
    for _ in 0..20 {
        witnesses.push(Client::join(&server, "large").await.into_raw());
    }
    drop(crowd);
    Raw::expect_from_all(&mut witnesses, "close", CROWD).await;
    server.expect_no_slow_readers();
}

#[tokio::test]
async fn a_crowd_that_joins_at_once_closes_no_client_whose_socket_has_space() {
    const CROWD: usize = 500;
    const WITNESSES: usize = 20;
    // The `new` messages of the crowd are more than twice as much as an outbox holds.
    let server = TestServer::with(|config| hold_little(config, 20_000)).await;
    let mut witnesses = Vec::new();
    for _ in 0..WITNESSES {
        witnesses.push(Client::join(&server, "large").await.into_raw());
    }
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(Raw::connect(&server).await);
    }
    Raw::write_at_once(&crowd, handshake("/room/large"));
    // The witnesses are news for each other, too.
    let first = &mut witnesses[..1];
    Raw::expect_from_all(first, "new", WITNESSES - 1 + CROWD).await;
    Raw::expect_from_all(&mut witnesses[1..], "new", CROWD).await;
    server.expect_no_slow_readers();
}

/// A client of a join storm, and what it has received.
struct StormClient {
    client: Client,
    /// The ids of the sessions in the room.
    known: HashSet<String>,
    /// The number of `new` events received.
    news: usize,
}

impl StormClient {
    /// Joins and asks for the peers.
    async fn join(server: &impl RunningServer) -> StormClient {
        let mut client = Client::connect(server.address(), "/room/storm").await;
        client
            .send(json!({"type": "hello", "receiver": "server"}))
            .await;
        let mut early = HashSet::new();
        loop {
            let message = client.next().await;
            if message["type"] == "hello" {
                let peers = message["data"]["peers"].as_array().unwrap();
                let ids = peers.iter().map(|peer| peer["id"].as_str().unwrap());
                client.id = message["receiver"].as_str().unwrap().into();
                let known: HashSet<String> = ids.chain([&*client.id]).map(String::from).collect();
                assert_eq!(known.len(), peers.len() + 1);
                // The peers include every session whose `new` came before the answer.
                assert!(early.is_subset(&known));
                return StormClient {
                    client,
                    known,
                    news: early.len(),
                };
            }
            assert_eq!(message["type"], "new");
            let id = message["sender"].as_str().unwrap().to_owned();
            assert!(early.insert(id), "{message} arrived twice");
        }
    }

    /// Receives `new` events until the message that announces the end of the joins.
    async fn receive_news(mut self) -> StormClient {
        loop {
            let message = self.client.next().await;
            if message["type"] == "all" {
                return self;
            }
            assert_eq!(message["type"], "new");
            let id = message["sender"].as_str().unwrap();
            assert!(self.known.insert(id.into()), "a second new of {id}");
            self.news += 1;
        }
    }
}

/// Lets this many sessions join one room at once, on servers that form one cluster. Each session must learn
/// of all the others.
pub async fn join_storm(servers: &[impl RunningServer], sessions: usize) {
    // The clients read from the beginning: if nobody reads from a socket, the kernel drops packets, and
    // retransmits them only after half a minute.
    let receiving: Vec<JoinHandle<StormClient>> = stream::iter(1..sessions)
        .map(|number| StormClient::join(&servers[number % servers.len()]))
        .buffer_unordered(AT_ONCE)
        .map(|client| tokio::spawn(client.receive_news()))
        .collect()
        .await;
    let mut last = StormClient::join(&servers[0]).await;
    assert_eq!(total(servers, "anteroom_sessions").await, sessions as u64);
    last.client
        .send(json!({"type": "all", "receiver": "all"}))
        .await;

    let others = join_all(receiving).await;
    let others: Vec<StormClient> = others.into_iter().map(Result::unwrap).collect();
    let all = || others.iter().chain([&last]);
    let ids: HashSet<String> = all().map(|client| client.client.id.clone()).collect();
    assert_eq!(ids.len(), sessions);
    for client in all() {
        let differ: Vec<&String> = client.known.symmetric_difference(&ids).collect();
        assert!(differ.is_empty(), "{}: {differ:?}", client.client.id);
    }
    // Of any two sessions, one has received the `new` of the other.
    let news: usize = all().map(|client| client.news).sum();
    assert_eq!(news, sessions * (sessions - 1) / 2);

    drop(others);
    let mut present = ids;
    while present.len() > 1 {
        let close = last.client.next().await;
        assert_eq!(close["type"], "close");
        assert!(present.remove(close["sender"].as_str().unwrap()), "{close}");
    }
    last.client.leave().await;
    eventually_async("the end of the room", async || {
        total(servers, "anteroom_sessions").await + total(servers, "anteroom_rooms").await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_20000_rooms_that_were_opened_and_closed() {
    let mut server = TestServer::start().await;
    stream::iter(0..20_000)
        .for_each_concurrent(AT_ONCE, |number| {
            let server = &server;
            async move {
                let mut raw = Raw::connect(server).await;
                raw.write(handshake(&format!("/room/{number}"))).await;
                assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
                // Every second client closes the session; the others only reset the connection. The reset
                // frees the client's port at once.
                if number % 2 == 0 {
                    raw.write(frame(0x88, &1000u16.to_be_bytes())).await;
                    assert_eq!(raw.read_close().await.0, 1000);
                }
                raw.stream.set_zero_linger().unwrap();
            }
        })
        .await;
    let anteroom = server.anteroom.clone();
    eventually("the end of all rooms", || {
        anteroom.rooms() + anteroom.sessions() == 0
    })
    .await;
    // A session whose connection was reset at once may have joined only after the check above; the end of
    // the last task ends it.
    server.stop();
    server.stopped().await;
    assert_eq!((anteroom.rooms(), anteroom.sessions()), (0, 0));
}

/// A client that checks that the events it receives agree with the peers in `hello`.
struct CheckedClient {
    client: Client,
    room: usize,
    /// The ids of the sessions in the room: the peers in `hello`, and the events since.
    present: HashSet<String>,
    /// The ids of the sessions that have left: an id never returns.
    gone: HashSet<String>,
    /// The number that the next chat of each session must have, where it is known.
    next_chat: HashMap<String, u64>,
    /// The number of chats that this client has sent.
    chats: u64,
}

impl CheckedClient {
    async fn join(server: &impl RunningServer, room: usize) -> CheckedClient {
        let (client, peers) = Client::join_with_peers(server, &format!("room{room}")).await;
        CheckedClient {
            client,
            room,
            present: peers.into_iter().collect(),
            gone: HashSet::new(),
            next_chat: HashMap::new(),
            chats: 0,
        }
    }

    /// Checks all events up to the answer to a `hello` sent now, and the peers in that answer.
    async fn catch_up(&mut self) {
        self.client
            .send(json!({"type": "hello", "receiver": "server"}))
            .await;
        loop {
            let message = self.client.next().await;
            if message["type"] == "hello" {
                let peers = message["data"]["peers"].as_array().unwrap().iter();
                let peers = peers
                    .map(|peer| peer["id"].as_str().unwrap().to_owned())
                    .collect();
                assert_eq!(self.present, peers, "the events do not add up to the peers");
                return;
            }
            self.check(&message);
        }
    }

    /// Broadcasts the next chat.
    async fn chat(&mut self) {
        let chat = json!({"type": "chat", "receiver": "all", "data": self.chats});
        self.client.send(chat).await;
        self.chats += 1;
    }

    /// Checks a message.
    fn check(&mut self, message: &Value) {
        let sender = message["sender"].as_str().unwrap().to_owned();
        match message["type"].as_str().unwrap() {
            "new" => {
                assert!(!self.gone.contains(&sender), "{sender} has left before");
                self.next_chat.insert(sender.clone(), 0);
                assert!(self.present.insert(sender), "a second new");
            }
            "close" => {
                assert!(self.present.remove(&sender), "a close without a new");
                self.gone.insert(sender);
            }
            "chat" => {
                assert!(
                    self.present.contains(&sender),
                    "a message of a session that is not in the room"
                );
                let number = message["data"].as_u64().unwrap();
                let expected = self.next_chat.insert(sender, number + 1);
                assert_eq!(
                    number,
                    expected.unwrap_or(number),
                    "a chat is lost, duplicated or reordered"
                );
            }
            // The chat had no receiver.
            "error" => assert_eq!(message["data"]["code"], "empty_room"),
            other => panic!("{other}"),
        }
    }
}

/// Joins, chats and leaves at random, one session after the other, each on a random server. Returns the
/// session that is connected at the end, if there is one.
async fn run_at_random(
    servers: &[impl RunningServer],
    mut random: StdRng,
) -> Option<CheckedClient> {
    let mut current: Option<CheckedClient> = None;
    for _ in 0..STEPS {
        current = match (current, random.random_range(0..10)) {
            (None, _) => {
                let server = &servers[random.random_range(0..servers.len())];
                Some(CheckedClient::join(server, random.random_range(0..ROOMS)).await)
            }
            (Some(client), 0) => {
                client.client.leave().await;
                None
            }
            (Some(client), 1) => {
                drop(client.client.into_raw());
                None
            }
            (Some(client), 2) => {
                let mut raw = client.client.into_raw();
                raw.write(&text(r#"{"type":"cut","receiver":"all"}"#)[..10])
                    .await;
                raw.stream.set_zero_linger().unwrap();
                None
            }
            (Some(mut client), 3..7) => {
                client.chat().await;
                Some(client)
            }
            (Some(mut client), _) => {
                client.catch_up().await;
                Some(client)
            }
        }
    }
    current
}

/// Random numbers that can be repeated: the seed is printed, and `ANTEROOM_TEST_SEED` sets it.
pub fn seeded() -> StdRng {
    let seed = match std::env::var("ANTEROOM_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ANTEROOM_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("to repeat this run: ANTEROOM_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Lets fifty clients join and leave the rooms of servers that form one cluster. The clients check what
/// they receive; at the end, the peers of each room must be exactly the connected clients.
pub async fn join_and_leave_at_random(servers: &[impl RunningServer]) {
    let mut seeds = seeded();
    let runs = (0..CLIENTS).map(|_| run_at_random(servers, StdRng::from_rng(&mut seeds)));
    let mut alive: Vec<CheckedClient> = join_all(runs).await.into_iter().flatten().collect();

    // Once the sessions of all closed connections have left, the peers are exactly the connected clients.
    eventually_async("the last leave", async || {
        total(servers, "anteroom_sessions").await == alive.len() as u64
    })
    .await;
    let mut rooms: HashMap<usize, HashSet<String>> = HashMap::new();
    for client in &alive {
        rooms
            .entry(client.room)
            .or_default()
            .insert(client.client.id.clone());
    }
    if let [server] = servers {
        assert_eq!(server.count("anteroom_rooms").await, rooms.len() as u64);
    }
    // Each client sends a last chat. A client that has received all the last chats has missed no chat.
    for client in &mut alive {
        client.chat().await;
    }
    let chats: HashMap<String, u64> = alive
        .iter()
        .map(|client| (client.client.id.clone(), client.chats))
        .collect();
    for client in &mut alive {
        let mut others = rooms[&client.room].clone();
        others.remove(&client.client.id);
        within_deadline("the last chat of each client", async {
            loop {
                client.catch_up().await;
                let known = |other: &String| client.next_chat.get(other) == Some(&chats[other]);
                if client.present == others && others.iter().all(known) {
                    break;
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_joins_and_leaves_agree_with_the_model() {
    let server = TestServer::start().await;
    join_and_leave_at_random(&[server]).await;
}
