//! Storms, many rooms, and random comings and goings against a reference model.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, future::join_all, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    Client, Raw, RunningServer, TestServer, eventually, eventually_async, frame, handshake, text,
    total, within_deadline,
};

/// How many connections are being opened at once in a storm.
const AT_ONCE: usize = 100;

/// The size of the random model: clients, rooms, and what each client does, one after the other.
const CLIENTS: usize = 50;
const ROOMS: usize = 5;
const STEPS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_of_2000_joins_everyone_knows_of_everyone() {
    // Where so many share a processor a pong may take its time, and who has heard all sends none.
    let server = TestServer::with(|config| config.liveness.pong_seconds = 3600).await;
    storm(&[server], 2000).await;
}

/// One of a storm, and what it was told.
struct Told {
    client: Client,
    /// Who is there.
    known: HashSet<String>,
    /// Of how many it was told that they are new.
    news: usize,
}

impl Told {
    /// Joins, and asks who is there.
    async fn join(server: &impl RunningServer) -> Told {
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
                // Who has come before the answer is part of it.
                assert!(early.is_subset(&known));
                return Told {
                    client,
                    known,
                    news: early.len(),
                };
            }
            assert_eq!(message["type"], "new");
            let id = message["sender"].as_str().unwrap().to_owned();
            assert!(early.insert(id), "{message} came twice");
        }
    }

    /// Listens until somebody says that these were all.
    async fn listen(mut self) -> Told {
        loop {
            let message = self.client.next().await;
            if message["type"] == "all" {
                return self;
            }
            assert_eq!(message["type"], "new");
            let id = message["sender"].as_str().unwrap();
            assert!(self.known.insert(id.into()), "{id} came twice");
            self.news += 1;
        }
    }
}

/// So many sessions join one room at once, at servers that are to be as one.
pub async fn storm(servers: &[impl RunningServer], sessions: usize) {
    // They read from the beginning: of a socket that nobody reads from, the kernel drops some of what
    // comes, and sends it again only after half a minute.
    let listening: Vec<JoinHandle<Told>> = stream::iter(1..sessions)
        .map(|number| Told::join(&servers[number % servers.len()]))
        .buffer_unordered(AT_ONCE)
        .map(|told| tokio::spawn(told.listen()))
        .collect()
        .await;
    let mut last = Told::join(&servers[0]).await;
    assert_eq!(total(servers, "anteroom_sessions").await, sessions as u64);
    last.client
        .send(json!({"type": "all", "receiver": "all"}))
        .await;

    let others = join_all(listening).await;
    let others: Vec<Told> = others.into_iter().map(Result::unwrap).collect();
    let all = || others.iter().chain([&last]);
    let ids: HashSet<String> = all().map(|told| told.client.id.clone()).collect();
    assert_eq!(ids.len(), sessions);
    for told in all() {
        let differ: Vec<&String> = told.known.symmetric_difference(&ids).collect();
        assert!(differ.is_empty(), "{}: {differ:?}", told.client.id);
    }
    // Of any two, one was told that the other is new.
    let news: usize = all().map(|told| told.news).sum();
    assert_eq!(news, sessions * (sessions - 1) / 2);

    drop(others);
    let mut present = ids;
    while present.len() > 1 {
        let close = last.client.next().await;
        assert_eq!(close["type"], "close");
        assert!(present.remove(close["sender"].as_str().unwrap()), "{close}");
    }
    last.client.leave().await;
    eventually_async("the room's end", async || {
        total(servers, "anteroom_sessions").await + total(servers, "anteroom_rooms").await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_20000_rooms_that_come_and_go_nothing_is_left() {
    let mut server = TestServer::start().await;
    stream::iter(0..20_000)
        .for_each_concurrent(AT_ONCE, |number| {
            let server = &server;
            async move {
                let mut raw = Raw::connect(server).await;
                raw.write(handshake(&format!("/room/{number}"))).await;
                assert!(raw.read_head().await.starts_with("HTTP/1.1 101 "));
                // As many end without a word as with one; a reset leaves no port behind.
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
    // One that was reset at once may only just have joined; with the last task it is gone, too.
    server.stop();
    server.stopped().await;
    assert_eq!((anteroom.rooms(), anteroom.sessions()), (0, 0));
}

/// A client that checks, by what it gets, that it is told the truth about who is there.
struct Witness {
    client: Client,
    room: usize,
    /// Who is in the room, by the roster and the news since.
    present: HashSet<String>,
    /// Who has come and gone: no one comes back.
    gone: HashSet<String>,
    /// The number that the next chat of each must have, where it is known.
    next_chat: HashMap<String, u64>,
    /// How many chats this one has sent.
    chats: u64,
}

impl Witness {
    async fn join(server: &impl RunningServer, room: usize) -> Witness {
        let (client, roster) = Client::join_with_peers(server, &format!("room{room}")).await;
        Witness {
            client,
            room,
            present: roster.into_iter().collect(),
            gone: HashSet::new(),
            next_chat: HashMap::new(),
            chats: 0,
        }
    }

    /// Takes in all news up to the answer to a question asked now.
    async fn catch_up(&mut self) {
        self.client
            .send(json!({"type": "hello", "receiver": "server"}))
            .await;
        loop {
            let message = self.client.next().await;
            if message["type"] == "hello" {
                let peers = message["data"]["peers"].as_array().unwrap().iter();
                let roster = peers
                    .map(|peer| peer["id"].as_str().unwrap().to_owned())
                    .collect();
                assert_eq!(self.present, roster, "the news do not add up to the roster");
                return;
            }
            self.take_in(&message);
        }
    }

    async fn chat(&mut self) {
        let chat = json!({"type": "chat", "receiver": "all", "data": self.chats});
        self.client.send(chat).await;
        self.chats += 1;
    }

    fn take_in(&mut self, message: &Value) {
        let sender = message["sender"].as_str().unwrap().to_owned();
        match message["type"].as_str().unwrap() {
            "new" => {
                assert!(!self.gone.contains(&sender), "{sender} came back");
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
                    "a message from outside its stay"
                );
                let number = message["data"].as_u64().unwrap();
                let expected = self.next_chat.insert(sender, number + 1);
                assert_eq!(
                    number,
                    expected.unwrap_or(number),
                    "a chat is lost, doubled or late"
                );
            }
            // Nobody was there to hear the chat.
            "error" => assert_eq!(message["data"]["code"], "empty_room"),
            other => panic!("{other}"),
        }
    }
}

/// Lives many lives, one after the other, each on some server; returns the one it is in the middle of
/// at the end.
async fn random_lives(servers: &[impl RunningServer], mut random: StdRng) -> Option<Witness> {
    let mut life: Option<Witness> = None;
    for _ in 0..STEPS {
        life = match (life, random.random_range(0..10)) {
            (None, _) => {
                let server = &servers[random.random_range(0..servers.len())];
                Some(Witness::join(server, random.random_range(0..ROOMS)).await)
            }
            (Some(witness), 0) => {
                witness.client.leave().await;
                None
            }
            (Some(witness), 1) => {
                drop(witness.client.into_raw());
                None
            }
            (Some(witness), 2) => {
                let mut raw = witness.client.into_raw();
                raw.write(&text(r#"{"type":"cut","receiver":"all"}"#)[..10])
                    .await;
                raw.stream.set_zero_linger().unwrap();
                None
            }
            (Some(mut witness), 3..7) => {
                witness.chat().await;
                Some(witness)
            }
            (Some(mut witness), _) => {
                witness.catch_up().await;
                Some(witness)
            }
        }
    }
    life
}

/// The random numbers of a test that can be repeated.
pub fn seeded() -> StdRng {
    let seed = match std::env::var("ANTEROOM_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ANTEROOM_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("to repeat this run: ANTEROOM_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Fifty clients come and go in the rooms of servers that are to be as one, and see that they are.
pub async fn come_and_go(servers: &[impl RunningServer]) {
    let mut seeds = seeded();
    let lives = (0..CLIENTS).map(|_| random_lives(servers, StdRng::from_rng(&mut seeds)));
    let mut alive: Vec<Witness> = join_all(lives).await.into_iter().flatten().collect();

    // Once everyone is gone who should be, all rosters are exactly what the living make up.
    eventually_async("the last leave", async || {
        total(servers, "anteroom_sessions").await == alive.len() as u64
    })
    .await;
    let mut rooms: HashMap<usize, HashSet<String>> = HashMap::new();
    for witness in &alive {
        rooms
            .entry(witness.room)
            .or_default()
            .insert(witness.client.id.clone());
    }
    if let [server] = servers {
        assert_eq!(server.count("anteroom_rooms").await, rooms.len() as u64);
    }
    // A last chat of everyone: when each has got those of all, none that came before is missing.
    for witness in &mut alive {
        witness.chat().await;
    }
    let chats: HashMap<String, u64> = alive
        .iter()
        .map(|witness| (witness.client.id.clone(), witness.chats))
        .collect();
    for witness in &mut alive {
        let mut others = rooms[&witness.room].clone();
        others.remove(&witness.client.id);
        within_deadline("everyone's last chat", async {
            loop {
                witness.catch_up().await;
                let known = |other: &String| witness.next_chat.get(other) == Some(&chats[other]);
                if witness.present == others && others.iter().all(known) {
                    break;
                }
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_comings_and_goings_agree_with_the_model() {
    let server = TestServer::start().await;
    come_and_go(&[server]).await;
}
