//! Several nodes over a real NATS server. `tests/run` installs NATS and runs these tests.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::pending,
    net::SocketAddr,
    num::NonZeroU32,
    process::Stdio,
    time::{Duration, Instant},
};

use anteroom::Config;
use async_nats::Message;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{SinkExt, StreamExt, future::join_all, stream};
use nkeys::KeyPair;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    join,
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite;

use crate::{
    crowds::{join_and_leave_at_random, join_storm, seeded},
    operating::{Nginx, free_port, start},
    proxy::{Failure, Fate, Proxy},
    resuming::{
        Crew, FaultyExchange, exchange_over_faults, next_text, open, reconnect, resumable,
        resumable_beside,
    },
    support::{
        Answer, Client, File, Log, Program, Raw, RawFrame, RunningServer, TestServer, TurnClient,
        eventually, eventually_async, metric_value, operator, operator_at, total, turn_server,
        within_deadline,
    },
    tls::Authority,
    tokens::{SECRET, sign, with_secret},
};

/// A NATS server on a free port, killed when dropped.
pub struct Nats {
    pub port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Nats {
    /// Starts a NATS server with the default options.
    pub async fn start() -> Nats {
        Nats::with(&[]).await
    }

    /// Starts a NATS server with these options.
    pub async fn with(options: &[&str]) -> Nats {
        let mut nats = Nats {
            port: free_port(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            child: None,
        };
        nats.restart().await;
        nats
    }

    /// Starts the NATS server again, on the same port.
    pub async fn restart(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", &port]);
        command.args(&self.options);
        self.child = Some(start(&mut command, self.port).await);
    }

    /// Kills the NATS server without a shutdown, as a failing machine does.
    pub async fn kill(&mut self) {
        self.child.take().unwrap().kill().await.unwrap();
    }

    /// The URL for `--cluster`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts a node of the cluster, in this process.
    pub async fn node(&self) -> TestServer {
        self.node_with(|_| {}).await
    }

    /// Starts a node with some options changed.
    pub async fn node_with(&self, change: impl FnOnce(&mut Config)) -> TestServer {
        let url = self.url().parse().unwrap();
        TestServer::with(|config| {
            config.cluster.servers = vec![url];
            config.admin.listen = Some(([127, 0, 0, 1], 0).into());
            change(config);
        })
        .await
    }

    /// Starts `N` nodes, and waits until they know each other.
    pub async fn nodes<const N: usize>(&self) -> [TestServer; N] {
        self.nodes_with(|_| {}).await
    }

    /// Starts `N` nodes with some options changed, and waits until they know each other.
    pub async fn nodes_with<const N: usize>(
        &self,
        change: impl Fn(&mut Config),
    ) -> [TestServer; N] {
        let nodes = join_all((0..N).map(|_| self.node_with(&change))).await;
        let nodes: [TestServer; N] = nodes.try_into().ok().unwrap();
        expect_membership(&nodes).await;
        nodes
    }
}

/// Waits until each node is ready and knows all the others.
pub async fn expect_membership(nodes: &[TestServer]) {
    for node in nodes {
        eventually("the nodes know each other", || {
            node.anteroom.is_ready()
                && node.count("anteroom_cluster_nodes") == nodes.len() as u64 - 1
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn sessions_on_different_nodes_share_a_room() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut alice = Client::join(&a, "tea").await;
    let (mut bob, peers) = Client::join_with_peers(&b, "tea").await;
    assert_eq!(peers, [alice.id.clone()]);
    alice.expect_new(&bob.id).await;
    let (mut carol, peers) = Client::join_with_peers(&c, "tea").await;
    assert_eq!(peers, [alice.id.clone(), bob.id.clone()]);
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    // Unicast and broadcast with receipts; a message without a receiver is an error.
    alice
        .send(json!({"type": "x", "receiver": bob.id, "data": [1, "é"], "ref": 7}))
        .await;
    assert_eq!(
        alice.next().await["data"],
        json!({"ref": 7, "receivers": 1})
    );
    let expected = json!({"type": "x", "sender": alice.id, "receiver": bob.id, "data": [1, "é"]});
    assert_eq!(bob.next().await, expected);
    carol
        .send(json!({"type": "y", "receiver": "all", "data": {"n": 1.0}, "ref": "r"}))
        .await;
    assert_eq!(
        carol.next().await["data"],
        json!({"ref": "r", "receivers": 2})
    );
    let text = format!(
        r#"{{"type":"y","sender":"{}","receiver":"all","data":{{"n":1.0}}}}"#,
        carol.id
    );
    alice.expect_text(&text).await;
    bob.expect_text(&text).await;

    // Rooms do not see each other.
    let mut dave = Client::join(&a, "tea.%3E").await;
    dave.send(json!({"type": "x", "receiver": "all"})).await;
    dave.expect_error("empty_room").await;
    dave.send(json!({"type": "x", "receiver": bob.id})).await;
    dave.expect_error("unknown_receiver").await;

    let id = bob.id.clone();
    bob.leave().await;
    alice.expect_left(&id).await;
    carol.expect_left(&id).await;
    alice.send(json!({"type": "x", "receiver": id})).await;
    alice.expect_error("unknown_receiver").await;
    carol.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn random_joins_and_leaves_on_three_nodes_agree_with_the_model() {
    let nats = Nats::start().await;
    join_and_leave_at_random(&three_processes(&nats, &[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn after_a_storm_of_5000_joins_on_three_nodes_every_session_knows_the_others() {
    let nats = Nats::start().await;
    let options = ["--pong-seconds", "3600", "--outbox-bytes", "4194304"];
    join_storm(&three_processes(&nats, &options).await, 5000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn in_2000_rooms_on_three_nodes_each_session_reaches_exactly_the_others() {
    let nats = Nats::start().await;
    let nodes = three_processes(&nats, &[]).await;
    let nodes = &nodes;
    stream::iter(0..2000_usize)
        .for_each_concurrent(50, async |number| {
            let room = format!("room-{number}");
            // Each node is the first of some rooms.
            let node = |offset| &nodes[(number + offset) % 3];
            let (mut a, mut b, mut c) = tokio::join!(
                Client::join(node(0), &room),
                Client::join(node(1), &room),
                Client::join(node(2), &room),
            );
            let ids = [&a, &b, &c].map(|client| client.id.clone());
            for client in [&mut a, &mut b, &mut c] {
                let hello = client.hello().await;
                let peers = hello["data"]["peers"].as_array().unwrap().iter();
                let peers: HashSet<String> = peers
                    .map(|peer| peer["id"].as_str().unwrap().into())
                    .collect();
                let others = ids.iter().filter(|id| **id != client.id);
                assert_eq!(peers, others.cloned().collect());
            }
            a.send(json!({"type": "x", "receiver": "all", "ref": 1}))
                .await;
            assert_eq!(a.next().await["data"]["receivers"], 2);
            for client in [&mut b, &mut c] {
                assert_eq!(client.next().await["sender"], a.id);
            }
            a.leave().await;
            for client in [&mut b, &mut c] {
                client.expect_left(&ids[0]).await;
            }
            tokio::join!(b.leave(), c.leave());
        })
        .await;
    eventually_async("the end of all rooms", async || {
        total(nodes, "anteroom_rooms").await + total(nodes, "anteroom_sessions").await == 0
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_session_migrates_between_nodes_and_the_room_notices_nothing() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut bob = Client::join(&c, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &a).await;
    let id = alice.id.clone();
    for (round, node) in (0..).zip([&b, &c, &a, &c, &b, &a]) {
        bob.note(&id, round).await;
        bob.note("all", 10 + round).await;
        let mut new = reconnect(node, "tea", &token, 2 + 2 * round).await;
        new.expect_resumed(&id, 2 + round).await;
        new.expect_note(round).await;
        new.expect_note(10 + round).await;
        new.send(json!({"type": "note", "receiver": bob.id, "data": round}))
            .await;
        bob.expect_note(round).await;
        let (code, reason) = alice.expect_close().await;
        assert_eq!((code, &*reason), (1008, "resumed on another connection"));
        alice = new;
    }
    bob.expect_quiet().await;
    let mut other = reconnect(&b, "coffee", &token, 14).await;
    other.expect_resume_failed().await;
    let mut other = reconnect(&b, "tea", "AAAAAAAAAAAAAAAAAAAAAA", 14).await;
    let new = other.expect_resume_failed().await;
    bob.expect_new(&new).await;
    alice.expect_new(&new).await;
    alice.leave().await;
    bob.expect_left(&id).await;
    eventually("the end of the migrated session on every node", || {
        a.anteroom.sessions() == 0 && b.anteroom.sessions() == 2 && c.anteroom.sessions() == 1
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_call_stays_at_its_turn_server_when_the_session_migrates() {
    let nats = Nats::start().await;
    let turn = |config: &mut Config| {
        config.turn.listen = Some(([127, 0, 0, 1], 0).into());
        config.turn.addresses = vec![[127, 0, 0, 1].into()];
    };
    let [a, b] = nats.nodes_with(turn).await;
    let mut alice = Client::join(&a, "tea").await;
    let token = alice.ask_for_resume_token().await;
    let hello = alice.hello().await;
    let mut client = TurnClient::udp(&hello).await;
    client.allocate().await;
    let mut moved = reconnect(&b, "tea", &token, 3).await;
    let renewed = moved.hello().await;
    assert_eq!(renewed["receiver"], hello["receiver"]);
    assert_ne!(turn_server(&renewed).0, turn_server(&hello).0);
    eventually("the session has left its first node", || {
        a.anteroom.sessions() == 0
    })
    .await;
    // The call goes on where it is, but a new one begins at the other node.
    assert_eq!(client.refresh(600).await.error(), None);
    let mut late = TurnClient::udp(&hello).await;
    assert_eq!(late.try_allocate().await.error(), Some(401));
    TurnClient::udp(&renewed).await.allocate().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn states_are_known_on_all_nodes_and_migrate_with_their_sessions() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut bob = Client::join(&c, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &a).await;
    let id = alice.id.clone();
    alice.set_state(json!({"name": "Alice"})).await;
    bob.expect_state(&id, json!({"name": "Alice"})).await;
    bob.set_state(json!("first")).await;
    alice.expect_state(&bob.id, json!("first")).await;
    let mut carol = Client::join(&b, "tea").await;
    let states = [
        (bob.id.clone(), json!("first")),
        (id.clone(), json!({"name": "Alice"})),
    ];
    assert_eq!(carol.states().await, states);
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    // Bob's next state is told to Alice on the node that she comes back to.
    drop(alice.into_raw());
    a.expect_suspended(1).await;
    bob.set_state(json!("second")).await;
    carol.expect_state(&bob.id, json!("second")).await;
    // Two `hello`s, a receipt, a state and a `new` were received.
    let mut alice = reconnect(&b, "tea", &token, 5).await;
    alice.expect_resumed(&id, 3).await;
    alice.expect_state(&bob.id, json!("second")).await;
    alice.set_state(json!(null)).await;
    for client in [&mut bob, &mut carol] {
        client.expect_state(&id, Value::Null).await;
    }
    alice.set_state(json!(3)).await;
    for client in [&mut bob, &mut carol] {
        client.expect_state(&id, json!(3)).await;
    }
    let sessions = operator(&a, "GET", "/rooms/tea", "").await.json();
    let states = sessions["sessions"].as_array().unwrap().iter();
    let states: Vec<_> = states.map(|session| &session["state"]).collect();
    assert_eq!(states, [&json!("second"), &json!(3), &Value::Null]);
    for client in [&mut alice, &mut bob, &mut carol] {
        client.expect_quiet().await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_message_to_a_user_reaches_sessions_on_all_nodes() {
    let nats = Nats::start().await;
    let key = File::new("users-of-nodes", SECRET);
    let nodes: [TestServer; 3] = nats.nodes_with(|config| with_secret(config, &key)).await;
    let mut devices = Vec::new();
    for node in &nodes {
        let path = format!("/room/tea?token={}", sign(json!({"sub": "alice"})));
        let mut device = Client::connect(node.address, &path).await;
        device.id = device.hello().await["receiver"].as_str().unwrap().into();
        devices.push(device);
    }
    devices[0].expect_any_new().await;
    devices[0].expect_any_new().await;
    devices[1].expect_any_new().await;
    let message = json!({"type": "x", "receiver": "user:alice", "ref": 1});
    devices[1].send(message).await;
    let receipt = devices[1].next().await;
    assert_eq!(receipt["data"], json!({"ref": 1, "receivers": 2}));
    for other in [0, 2] {
        assert_eq!(devices[other].next().await["sender"], devices[1].id);
    }
    let answer = operator(
        &nodes[0],
        "POST",
        "/rooms/tea/messages",
        r#"{"type":"y","receiver":"user:alice"}"#,
    );
    assert_eq!(answer.await.json()["receivers"], 3);
    for device in &mut devices {
        assert_eq!(device.next().await["receiver"], "user:alice");
        device.expect_quiet().await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_rate_limit_of_a_session_migrates_with_it() {
    let nats = Nats::start().await;
    let [a, b] = nats
        .nodes_with(|config| config.limits.messages_per_second = NonZeroU32::new(50))
        .await;
    let mut bob = Client::join(&b, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &a).await;
    let began = Instant::now();
    let mut received = 0;
    // After each burst that Alice sends, she continues on the other node.
    for node in [&b, &a, &b] {
        for _ in 0..100 {
            alice
                .try_send(json!({"type": "x", "receiver": bob.id}))
                .await;
        }
        for _ in 0..100 {
            assert_eq!(bob.next().await["type"], "x");
            received += 1;
        }
        drop(alice.into_raw());
        // Alice has received two messages, and only `resumed` since.
        alice = reconnect(node, "tea", &token, 2).await;
        alice.id = alice.next().await["receiver"].as_str().unwrap().into();
    }
    assert_eq!(received, 300);
    // The limit lets one burst of 100 messages pass at once; each other message takes 20 ms.
    assert!(began.elapsed() >= Duration::from_millis(3900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn no_message_is_lost_while_sessions_migrate_between_nodes() {
    let nats = Nats::start().await;
    let options = ["--outbox-bytes", "67108864", "--resume-seconds", "3600"];
    let nodes = three_processes(&nats, &options).await;
    let exchange = FaultyExchange {
        seed: 1000,
        messages: 2_000,
        bytes: 8000,
    };
    exchange_over_faults(&exchange, &nodes).await;
    for seed in 0..100 {
        let exchange = FaultyExchange {
            seed,
            messages: 40,
            bytes: 6000,
        };
        exchange_over_faults(&exchange, &nodes).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_admin_api_of_any_node_reaches_a_room() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut alice = Client::join(&a, "tea").await;
    let mut bob = Client::join(&b, "tea").await;
    alice.expect_new(&bob.id).await;
    // The third node has no session in the room.
    for node in [&a, &b, &c] {
        let answer = operator(node, "GET", "/rooms/tea", "").await;
        let room: Value = serde_json::from_str(&answer.body).unwrap();
        let sessions = room["sessions"].as_array().unwrap();
        let ids: Vec<&str> = sessions
            .iter()
            .map(|session| session["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [&alice.id, &bob.id]);
        let local = sessions.iter().filter(|session| session["node"].is_null());
        assert_eq!(local.count(), node.anteroom.sessions());

        let notice = r#"{"type":"notice","receiver":"all","data":7}"#;
        let answer = operator(node, "POST", "/rooms/tea/messages", notice).await;
        assert_eq!(answer.body, r#"{"receivers":2}"#);
        let notice = format!(r#"{{"type":"notice","receiver":"{}","data":8}}"#, bob.id);
        let answer = operator(node, "POST", "/rooms/tea/messages", &notice).await;
        assert_eq!(answer.body, r#"{"receivers":1}"#);
        let all = r#"{"type":"notice","sender":"server","receiver":"all","data":7}"#;
        alice.expect_text(all).await;
        bob.expect_text(all).await;
        assert_eq!(bob.next().await["data"], 8);
        assert_eq!(operator(node, "GET", "/rooms/coffee", "").await.status, 404);
    }
    let path = format!("/rooms/tea/sessions/{}", bob.id);
    assert_eq!(operator(&c, "DELETE", &path, "").await.status, 204);
    let (code, reason) = bob.expect_close().await;
    assert_eq!((code, &*reason), (1008, "closed by an operator"));
    alice.expect_left(&bob.id).await;
    eventually("the node drops the room", || c.anteroom.rooms() == 0).await;
    assert_eq!(operator(&c, "DELETE", &path, "").await.status, 404);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_message_to_every_room_of_each_node_reaches_each_session_once() {
    let nats = Nats::start().await;
    let nodes: [TestServer; 2] = nats.nodes().await;
    let [a, b] = &nodes;
    let mut alice = Client::join(a, "tea").await;
    let mut bob = Client::join(b, "tea").await;
    alice.expect_new(&bob.id).await;
    let mut carol = Client::join(b, "coffee").await;
    let notice = r#"{"type":"notice","receiver":"all","data":7}"#;
    for (node, receivers) in [(a, 1), (b, 2)] {
        let answer = operator(node, "POST", "/messages", notice).await;
        assert_eq!(answer.body, format!(r#"{{"receivers":{receivers}}}"#));
    }
    for client in [&mut alice, &mut bob, &mut carol] {
        assert_eq!(client.next().await["data"], 7);
        client.expect_quiet().await;
    }
    // Each node names the other.
    let mut statuses = Vec::new();
    for node in &nodes {
        let answer = operator(node, "GET", "/status", "").await;
        statuses.push(serde_json::from_str::<Value>(&answer.body).unwrap());
    }
    for (one, other) in [(0, 1), (1, 0)] {
        assert_eq!(statuses[one]["nodes"], json!([statuses[other]["node"]]));
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn clusters_with_different_prefixes_can_share_a_nats_server() {
    let nats = Nats::start().await;
    let nodes = join_all(
        ["one", "one", "two.x"]
            .map(|prefix| nats.node_with(move |config| config.cluster.prefix = prefix.into())),
    );
    let nodes = nodes.await;
    expect_membership(&nodes[..2]).await;
    let mut alice = Client::join(&nodes[0], "tea").await;
    let bob = Client::join(&nodes[1], "tea").await;
    alice.expect_new(&bob.id).await;
    eventually("the third node is ready", || nodes[2].anteroom.is_ready()).await;
    let (_, peers) = Client::join_with_peers(&nodes[2], "tea").await;
    assert_eq!(peers, [""; 0]);
    assert_eq!(nodes[2].count("anteroom_cluster_nodes"), 0);
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_waits_for_a_nats_server_that_is_missing_or_unsuitable() {
    let mut nats = Nats::with(&["--user", "anteroom", "--pass", "se cret@"]).await;
    let denied = nats.node().await;
    nats.kill().await;
    let waiting = nats
        .node_with(|config| {
            let url = format!("nats://anteroom:se%20cret%40@127.0.0.1:{}", nats.port);
            config.cluster.servers = vec![url.parse().unwrap()];
        })
        .await;
    for node in [&denied, &waiting] {
        let ready = operator(node, "GET", "/ready", "").await;
        assert_eq!(
            (ready.status, &*ready.body),
            (503, "not connected to NATS\n")
        );
        assert_eq!(operator(node, "GET", "/health", "").await.status, 200);
        let answer = Raw::upgrade(node, "/room/tea", "").await.err().unwrap();
        assert_eq!(answer.status, 503);
    }
    nats.restart().await;
    eventually("the node is ready", || waiting.anteroom.is_ready()).await;
    Client::join(&waiting, "tea").await.expect_quiet().await;
    assert!(!denied.anteroom.is_ready());

    let small_payload = File::new("small.conf", "max_payload: 65536");
    let nats = Nats::with(&["--config", small_payload.path().to_str().unwrap()]).await;
    let mut node = Node::start(&nats.url(), &[]).await;
    let line = node.log_line_after_start().await;
    assert!(
        line.contains("its max_payload is 65536 bytes, and must be 503808"),
        "{line}"
    );
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nodes_connect_to_nats_with_credentials_and_tls() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("nats.test");
    let ca = File::new("nats-ca.pem", authority.pem());
    let (cert, key) = (File::new("nats.pem", cert), File::new("nats.key", key));
    let [operator, account, user] = [
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    ];
    let unlimited = json!({"subs": -1, "data": -1, "payload": -1});
    let account_limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1,
        "exports": -1, "wildcards": true, "conn": -1, "leaf": -1});
    let operator_jwt = jwt(&operator, &operator, "operator", json!({}));
    let account_jwt = jwt(
        &operator,
        &account,
        "account",
        json!({"limits": account_limits}),
    );
    let user_jwt = jwt(&account, &user, "user", unlimited);
    let config = format!(
        "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {}: {account_jwt} }}\n",
        account.public_key()
    );
    let config = File::new("nats.conf", config);
    let path = |file: &File| file.path().to_str().unwrap().to_owned();
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    let credentials = File::new("anteroom.creds", credentials);
    let nats = Nats::with(&[
        "--config",
        &path(&config),
        "--tls",
        "--tlscert",
        &path(&cert),
        "--tlskey",
        &path(&key),
    ])
    .await;
    let nodes = join_all((0..2).map(|_| {
        nats.node_with(|config| {
            let url = format!("tls://localhost:{}", nats.port);
            config.cluster.servers = vec![url.parse().unwrap()];
            config.cluster.ca_file = Some(ca.path());
            config.cluster.credentials_file = Some(credentials.path());
        })
    }))
    .await;
    expect_membership(&nodes).await;
    let mut alice = Client::join(&nodes[0], "tea").await;
    let bob = Client::join(&nodes[1], "tea").await;
    alice.expect_new(&bob.id).await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_that_nats_denies_a_permission_is_not_ready_and_names_it() {
    for (denied, verb) in [("subscribe", "Subscription"), ("publish", "Publish")] {
        let permission = |verb: &str| match verb == denied {
            true => r#"{ allow: ["anteroom.>"], deny: ["anteroom.room.>"] }"#,
            false => r#""anteroom.>""#,
        };
        let config = format!(
            "authorization: {{ users: [ {{ user: node, password: secret, permissions: {{
                subscribe: {}, publish: {} }} }} ] }}\n",
            permission("subscribe"),
            permission("publish")
        );
        let config = File::new(&format!("denied-{denied}.conf"), config);
        let path = config.path().to_str().unwrap().to_owned();
        let nats = Nats::with(&["--config", &path]).await;
        let url = format!("nats://node:secret@127.0.0.1:{}", nats.port);
        let mut node = Node::start(&url, &[]).await;
        node.expect_peers(0).await;
        let _alice = Client::join(&node, "tea").await;
        eventually_async("the node is not ready", async || {
            node.get("/ready").await.status == 503
        })
        .await;
        let reason = node.get("/ready").await.body;
        assert!(reason.starts_with("NATS reports an error: "), "{reason}");
        assert!(
            reason.to_lowercase().contains(&verb.to_lowercase()),
            "{reason}"
        );
        let mut lines = String::new();
        while !lines.contains("NATS reports an error, and this node is not ready") {
            lines += &node.log.next_line().await;
        }
    }
}

/// A NATS identity: a JSON Web Token whose signature algorithm is NATS's own.
fn jwt(issuer: &KeyPair, subject: &KeyPair, kind: &str, mut claims: Value) -> String {
    claims["type"] = kind.into();
    claims["version"] = 2.into();
    let claims = json!({
        "jti": "test", "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": kind, "nats": claims,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A message over NATS is untrusted input.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn malformed_and_unknown_messages_between_nodes_are_ignored() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes().await;
    let mut alice = Client::join(&a, "tea").await;
    let mut bob = Client::join(&b, "tea").await;
    alice.expect_new(&bob.id).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let room = format!("anteroom.room.{}", URL_SAFE_NO_PAD.encode("tea"));
    let long = "x".repeat(900_000);
    let unknown_node = r#""v":1,"node":"00000000000000ff","n":5"#;
    let id = "6c1f0000-0000-4000-8000-000000000000";
    let malformed = [
        String::new(),
        "\n".into(),
        long.clone(),
        "{}\n".into(),
        format!("{{{unknown_node}}}\n"),
        format!(
            r#"{{"v":0,"node":"00000000000000ff","n":5,"say":{{"all":"bye"}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{"v":1,"node":"ff","n":5,"say":{{"all":"bye"}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{"v":1,"node":"00000000000000ff","n":18446744073709551615,"say":{{"all":"bye"}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"all":{{"enter":{{"room":"a\u0000b"}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"room":{{"room":"tea","after":1,"what":{{"broadcast":null}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"room":{{"room":"tea","after":1,"what":{{"leave":"{long}"}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"all":{{"tomorrow":1}}}}}}{}"#,
            "\n"
        ),
    ];
    // These are well formed, but from a node that no other node knows.
    let from_unknown_node = [
        format!(
            r#"{{{unknown_node},"later":1,"say":{{"room":{{"room":"tea","after":1,"what":{{"join":{{"id":"{id}","joined":1}}}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"room":{{"room":"tea","after":1,"what":{{"leave":"{}"}}}}}}}}{}"#,
            bob.id, "\n"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"room":{{"room":"tea","after":1,"what":{{"broadcast":null}}}}}}}}{}"#,
            "\n{}"
        ),
        format!(
            r#"{{{unknown_node},"say":{{"node":{{"unicast":{{"room":"tea","sender":null,"receiver":"{}"}}}}}}}}{}"#,
            alice.id, "\n{}"
        ),
        format!(r#"{{{unknown_node},"say":{{"all":"bye"}}}}{}"#, "\n"),
    ];
    let before = a.count("anteroom_cluster_messages_invalid_total");
    for message in malformed.iter().chain(&from_unknown_node) {
        client
            .publish(room.clone(), message.clone().into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually("the malformed messages are rejected", || {
        a.count("anteroom_cluster_messages_invalid_total") == before + malformed.len() as u64
    })
    .await;
    // The node has received all of them before this.
    bob.note("all", 1).await;
    alice.expect_note(1).await;
    alice.note(&bob.id, 2).await;
    bob.expect_note(2).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

/// The last message of a node, which the test plays, is lost: the other node notices by the digest, and
/// asks for the members.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_lost_last_message_is_noticed_by_the_digest_and_repaired() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut broadcasts = client.subscribe("anteroom.all").await.unwrap();
    let mut direct = client
        .subscribe("anteroom.node.00000000000000ff")
        .await
        .unwrap();
    let read = |message: Message| -> Value {
        let line = message.payload.split(|byte| *byte == b'\n').next().unwrap();
        serde_json::from_slice(line).unwrap()
    };
    // Numbers as of a node that has just started.
    let heartbeat = read(
        within_deadline("a heartbeat", broadcasts.next())
            .await
            .unwrap(),
    );
    let (other, mut number) = (heartbeat["node"].clone(), heartbeat["n"].as_u64().unwrap());
    let mut publish = async |subject: &str, message: Value| {
        number += 1000;
        let line = json!({"v": 1, "node": "00000000000000ff", "n": number, "say": message});
        let subject = format!("anteroom.{subject}");
        client
            .publish(subject, format!("{line}\n").into())
            .await
            .unwrap();
        number
    };
    let subject = format!("node.{}", other.as_str().unwrap());
    let id = "6c1f0000-0000-4000-8000-000000000000";
    publish("all", json!({"all": {"alive": {"heard": [other]}}})).await;
    let members = |last: u64, members: Value| {
        json!({"node": {"members": {"room": "tea", "last": last, "clock": 9, "before": 0,
            "members": members, "more": false}}})
    };
    publish(&subject, members(5, json!([{"id": id, "joined": 9}]))).await;
    alice.expect_new(id).await;
    // The session has left since; only this digest tells the node.
    let digest = json!([{"room": "tea", "last": 6, "hash": 0}]);
    publish(
        &subject,
        json!({"node": {"digest": {"rooms": digest, "more": false}}}),
    )
    .await;
    within_deadline("the request for the members", async {
        // The node sent the first request when the other node joined.
        for _ in 0..2 {
            while read(direct.next().await.unwrap())["say"]["node"]["ask"] != json!(["tea"]) {}
        }
    })
    .await;
    publish(&subject, members(6, json!([]))).await;
    alice.expect_left(id).await;
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server and nginx: tests/run starts this test"]
async fn nginx_balances_sessions_over_two_nodes() {
    let nats = Nats::start().await;
    let [mut a, b] = nats.nodes().await;
    let nginx = Nginx::start_before_nodes("cluster", [a.address, b.address]).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let client = nginx.join("tea", "").await.unwrap();
        for (_, other) in (0..).zip(&mut clients) {
            let other: &mut Client<_> = other;
            other.expect_new(&client.id).await;
        }
        clients.push(client);
    }
    assert_eq!((a.anteroom.sessions(), b.anteroom.sessions()), (3, 3));
    // One node stops; a client that reconnects reaches the other node.
    a.stop();
    eventually("the sessions of the stopped node have left", || {
        b.anteroom.sessions() == 3
    })
    .await;
    let client = nginx.join("tea", "").await.unwrap();
    a.stopped().await;
    assert_eq!(b.anteroom.sessions(), 4);
    drop((client, clients));
}

/// A node as a child process.
pub struct Node {
    pub program: Program,
    admin: SocketAddr,
    pub log: Log,
}

impl Node {
    pub async fn start(nats: &str, options: &[&str]) -> Node {
        Node::at(0, nats, &[options, &["--drain-seconds", "1"]].concat()).await
    }

    /// Starts a node that listens on this port.
    async fn at(port: u16, nats: &str, options: &[&str]) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin", "127.0.0.1:0", "--cluster", nats])
            .args(options)
            .stderr(Stdio::piped());
        let mut program = Program::run(command).await;
        let admin = program.admin().await;
        let log = program.log();
        Node {
            program,
            admin,
            log,
        }
    }

    /// The first line of the log that is not about the start of the server.
    async fn log_line_after_start(&mut self) -> String {
        loop {
            let line = self.log.next_line().await;
            if !line.contains("serving") {
                return line;
            }
        }
    }

    /// Sends a GET request to the admin API.
    async fn get(&self, path: &str) -> Answer {
        operator_at(self.admin, "GET", path, "", "").await
    }

    /// Waits until a series of the metrics has this value.
    async fn expect_metric(&self, series: &str, value: u64) {
        eventually_async(&format!("{series} {value}"), async || {
            self.count(series).await == value
        })
        .await;
    }

    /// Waits until the node is ready and knows this many other nodes.
    pub async fn expect_peers(&self, others: u64) {
        eventually_async("the node is ready", async || {
            self.get("/ready").await.status == 200
        })
        .await;
        self.expect_metric("anteroom_cluster_nodes", others).await;
    }
}

impl RunningServer for Node {
    fn address(&self) -> SocketAddr {
        self.program.address
    }

    async fn count(&self, series: &str) -> u64 {
        metric_value(&self.get("/metrics").await.body, series)
    }
}

/// Starts three nodes as processes and waits until they know each other. The down time is long, so that a
/// busy machine makes no node take another for dead.
async fn three_processes(nats: &Nats, options: &[&str]) -> Vec<Node> {
    let url = nats.url();
    let options = [options, &["--cluster-down-seconds", "12"]].concat();
    let nodes = join_all((0..3).map(|_| Node::start(&url, &options))).await;
    join_all(nodes.iter().map(|node| node.expect_peers(2))).await;
    nodes
}

/// A session that broadcasts increasing numbers and checks what it receives: no session joins or leaves
/// twice, no session that is not in the room sends, and no sender's numbers decrease.
struct CheckedClient {
    client: Client,
    present: HashSet<String>,
    /// The last number of each sender.
    last: HashMap<String, u64>,
    /// How many numbers this session has sent.
    sent: u64,
}

impl CheckedClient {
    async fn join(address: SocketAddr) -> CheckedClient {
        let client = Client::connect(address, "/room/tea").await;
        let mut checked = CheckedClient {
            client,
            present: HashSet::new(),
            last: HashMap::new(),
            sent: 0,
        };
        let hello = json!({"type": "hello", "receiver": "server"});
        checked.client.send(hello).await;
        while checked.client.id.is_empty() {
            let message = checked.client.next().await;
            checked.check(&message);
        }
        checked
    }

    /// Checks a message.
    fn check(&mut self, message: &Value) {
        if self.client.id.is_empty() && message["type"] != "hello" {
            // Until `hello`, the sessions that were in the room before are not known.
            return;
        }
        let sender = message["sender"].as_str().unwrap().to_owned();
        let data = &message["data"];
        match message["type"].as_str().unwrap() {
            "new" => assert!(self.present.insert(sender), "a second new"),
            "close" => assert!(self.present.remove(&sender), "a close without a new"),
            "number" => {
                assert!(
                    self.present.contains(&sender),
                    "{sender} is not in the room"
                );
                let number = data.as_u64().unwrap();
                let last = self.last.insert(sender, number);
                assert!(
                    last.is_none_or(|last| number > last),
                    "a number is duplicated or reordered"
                );
            }
            "hello" => {
                let peers = data["peers"].as_array().unwrap().iter();
                let peers = peers.map(|peer| peer["id"].as_str().unwrap().to_owned());
                let peers: HashSet<String> = peers.collect();
                if self.client.id.is_empty() {
                    self.client.id = message["receiver"].as_str().unwrap().into();
                    self.present = peers;
                } else {
                    assert_eq!(self.present, peers, "the events do not add up to the peers");
                }
            }
            "ack" => {}
            "error" => assert_eq!(data["code"], "empty_room", "{message}"),
            other => panic!("{other}"),
        }
    }

    /// Broadcasts the next number.
    async fn send_number(&mut self) {
        let number = json!({"type": "number", "receiver": "all", "data": self.sent});
        self.client.try_send(number).await;
        self.sent += 1;
    }

    /// Sends and checks until `stop`; `None` if the connection ends before.
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Option<CheckedClient> {
        let mut ticks = interval(Duration::from_millis(10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.send_number().await;
                    if self.sent.is_multiple_of(8) {
                        let hello = json!({"type": "hello", "receiver": "server"});
                        self.client.try_send(hello).await;
                    }
                }
                frame = self.client.next_frame() => match frame {
                    Ok(tungstenite::Message::Text(text)) => self.check(&serde_json::from_str(&text).unwrap()),
                    Ok(tungstenite::Message::Close(_)) | Err(_) => return None,
                    Ok(_) => {}
                },
                _ = stop.changed() => return Some(self),
            }
        }
    }

    /// Waits until exactly these other sessions are in the room.
    async fn expect_present(&mut self, others: &HashSet<String>) {
        within_deadline("the expected peers", async {
            while self.present != *others {
                let message = self.client.next().await;
                self.check(&message);
            }
        })
        .await;
    }
}

/// Churn: one after the other, sessions join any node, send numbers, and then leave, lose the connection or
/// resume on any node. Connections may fail.
async fn churn(
    nodes: watch::Receiver<[SocketAddr; 3]>,
    mut random: StdRng,
    stop: watch::Receiver<bool>,
) {
    let mut sent = 0;
    let mut target = "/room/tea".to_owned();
    while !*stop.borrow() {
        let address = nodes.borrow()[random.random_range(0..3)];
        let opened = timeout(Duration::from_secs(1), open(address, &target)).await;
        let is_new = !target.contains('?');
        target = "/room/tea".into();
        let Ok(Ok(mut socket)) = opened else {
            continue;
        };
        let mut messages =
            vec![json!({"type": "hello", "receiver": "server", "data": {"resume": true}})];
        for _ in 0..random.random_range(0..6) {
            messages.push(json!({"type": "number", "receiver": "all", "data": sent}));
            sent += 1;
        }
        let (mut token, mut received) = (None, 0);
        for message in messages {
            let _ = socket.send(message.to_string().into()).await;
        }
        // The answer to `hello` has the resume token.
        let hello = async {
            while let Ok(text) = next_text(&mut socket).await {
                let message: Value = serde_json::from_str(&text).unwrap();
                received += 1;
                if message["type"] == "hello" {
                    token = message["data"]["resume"]["token"]
                        .as_str()
                        .map(str::to_owned);
                    return;
                }
            }
        };
        let _ = timeout(Duration::from_secs(1), hello).await;
        match (random.random_range(0..3), token) {
            (0, Some(token)) if is_new => {
                target = format!("/room/tea?resume={token}&received={received}");
            }
            (0 | 1, _) => _ = timeout(Duration::from_secs(1), socket.close(None)).await,
            // The connection is dropped without a Close frame.
            _ => {}
        }
    }
}

/// Three nodes with three checked sessions each, and churn, while the third node or NATS fails.
struct Scenario {
    nats: Nats,
    /// The proxy between the third node and NATS.
    proxy: Proxy,
    nodes: [Node; 3],
    clients: Vec<JoinHandle<Option<CheckedClient>>>,
    stop: watch::Sender<bool>,
    /// The addresses of the nodes, for the churn.
    addresses: watch::Sender<[SocketAddr; 3]>,
    churn: Vec<JoinHandle<()>>,
}

impl Scenario {
    /// A short time, so that sessions whose connections are lost leave soon.
    const OPTIONS: [&str; 2] = ["--resume-seconds", "2"];

    async fn begin() -> Scenario {
        let nats = Nats::start().await;
        let address = SocketAddr::from(([127, 0, 0, 1], nats.port));
        let proxy = Proxy::start(address, || Fate::NONE).await;
        let behind = format!("nats://{}", proxy.address);
        let urls = [nats.url(), nats.url(), behind];
        let nodes = join_all(urls.iter().map(|url| Node::start(url, &Scenario::OPTIONS))).await;
        let nodes: [Node; 3] = nodes.try_into().ok().unwrap();
        let addresses = nodes.each_ref().map(|node| node.program.address);
        let mut scenario = Scenario {
            nats,
            proxy,
            nodes,
            clients: Vec::new(),
            stop: watch::channel(false).0,
            addresses: watch::channel(addresses).0,
            churn: Vec::new(),
        };
        scenario.expect_peers(2).await;
        for _ in 0..3 {
            scenario.join().await;
        }
        let mut seeds = seeded();
        for _ in 0..3 {
            let random = StdRng::from_rng(&mut seeds);
            let (addresses, stop) = (scenario.addresses.subscribe(), scenario.stop.subscribe());
            let task = tokio::spawn(churn(addresses, random, stop));
            scenario.churn.push(task);
        }
        scenario
    }

    /// Waits until each node knows this many other nodes.
    pub async fn expect_peers(&self, others: u64) {
        join_all(self.nodes.iter().map(|node| node.expect_peers(others))).await;
    }

    /// Waits until the first two nodes know this many other nodes.
    async fn expect_peers_of_others(&self, others: u64) {
        join_all(self.nodes[..2].iter().map(|node| node.expect_peers(others))).await;
    }

    /// Lets a checked session join each node.
    async fn join(&mut self) {
        for node in &self.nodes {
            let client = CheckedClient::join(node.program.address).await;
            let running = client.run(self.stop.subscribe());
            self.clients.push(tokio::spawn(running));
        }
    }

    /// Starts a new third node.
    async fn restart_node(&mut self) {
        let url = format!("nats://{}", self.proxy.address);
        self.nodes[2] = Node::start(&url, &Scenario::OPTIONS).await;
        let address = self.nodes[2].program.address;
        self.addresses
            .send_modify(|addresses| addresses[2] = address);
    }

    /// Waits until the nodes know each other again, and stops the churn. Then each session must know
    /// exactly the others, and receive the last number of each. Returns the number of checked sessions
    /// left.
    async fn end(mut self) -> usize {
        self.expect_peers(2).await;
        self.join().await;
        self.stop.send_replace(true);
        for task in self.churn {
            within_deadline("the end of the churn", task).await.unwrap();
        }
        let clients = join_all(self.clients).await.into_iter();
        let mut alive: Vec<CheckedClient> = clients.filter_map(|client| client.unwrap()).collect();
        let id = |client: &CheckedClient| client.client.id.clone();
        let ids: HashSet<String> = alive.iter().map(id).collect();
        let others = |id: &String| {
            let mut others = ids.clone();
            others.remove(id);
            others
        };
        for checked in &mut alive {
            checked.expect_present(&others(&checked.client.id)).await;
            checked.send_number().await;
        }
        let sent: HashMap<String, u64> = alive
            .iter()
            .map(|checked| (id(checked), checked.sent - 1))
            .collect();
        for checked in &mut alive {
            let others = others(&checked.client.id);
            within_deadline("the last number of each session", async {
                while others
                    .iter()
                    .any(|id| checked.last.get(id) != Some(&sent[id]))
                {
                    let message = checked.client.next().await;
                    checked.check(&message);
                }
            })
            .await;
            assert_eq!(checked.present, others);
        }
        alive.len()
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_the_kill_of_a_node_and_its_replacement() {
    let mut scenario = Scenario::begin().await;
    scenario.nodes[2].program.signal("KILL").await;
    scenario.restart_node().await;
    assert_eq!(scenario.end().await, 9);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_the_stop_of_a_node_and_its_replacement() {
    let mut scenario = Scenario::begin().await;
    scenario.nodes[2].program.signal("TERM").await;
    assert_eq!(scenario.nodes[2].program.exit_code().await, Some(0));
    // The node has announced its stop.
    scenario.expect_peers_of_others(1).await;
    scenario.restart_node().await;
    assert_eq!(scenario.end().await, 9);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_a_node_that_is_frozen_for_five_seconds() {
    let scenario = Scenario::begin().await;
    scenario.nodes[2].program.signal("STOP").await;
    let _ = timeout(Duration::from_secs(5), pending::<()>()).await;
    scenario.expect_peers_of_others(1).await;
    scenario.nodes[2].program.signal("CONT").await;
    scenario.expect_peers_of_others(2).await;
    assert_eq!(scenario.end().await, 12);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_a_short_and_a_long_outage_of_nats() {
    let mut scenario = Scenario::begin().await;
    for is_long in [false, true] {
        scenario.nats.kill().await;
        for node in &scenario.nodes {
            node.expect_metric("anteroom_cluster_connected", 0).await;
            assert_eq!(node.get("/ready").await.body, "not connected to NATS\n");
            if is_long {
                node.expect_metric("anteroom_cluster_nodes", 0).await;
            }
        }
        scenario.nats.restart().await;
        scenario.expect_peers(2).await;
    }
    assert_eq!(scenario.end().await, 12);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_a_partition_in_either_or_both_directions() {
    let scenario = Scenario::begin().await;
    for (up, down) in [(true, false), (false, true), (true, true)] {
        scenario.proxy.hold(up, down);
        scenario.expect_peers_of_others(1).await;
        scenario.nodes[2]
            .expect_metric("anteroom_cluster_nodes", 0)
            .await;
        scenario.proxy.hold(false, false);
        scenario.expect_peers(2).await;
    }
    scenario.proxy.refuse(true);
    scenario.proxy.fail(Failure::Reset);
    scenario.expect_peers_of_others(1).await;
    scenario.proxy.refuse(false);
    assert_eq!(scenario.end().await, 12);
}

/// Each message between nodes arrives twice, and once more later.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_cluster_survives_duplicated_and_delayed_messages() {
    let mut scenario = Scenario::begin().await;
    let client = async_nats::connect(scenario.nats.url()).await.unwrap();
    let mut all = client.subscribe("anteroom.>").await.unwrap();
    let (count, mut duplicated) = watch::channel(0);
    let echo = tokio::spawn(async move {
        let mut known: HashSet<Vec<u8>> = HashSet::new();
        let mut late = VecDeque::new();
        while let Some(message) = all.next().await {
            if !known.insert(message.payload.to_vec()) {
                // The message is one that this test has published.
                continue;
            }
            late.push_back(message.clone());
            let delayed = if late.len() > 100 {
                late.pop_front()
            } else {
                None
            };
            for message in [Some(message), delayed].into_iter().flatten() {
                let Message {
                    subject, payload, ..
                } = message;
                client.publish(subject, payload).await.unwrap();
            }
            count.send_modify(|count| *count += 1);
        }
    });
    let mut wait_for = async |messages| {
        let waiting = duplicated.wait_for(|count| *count >= messages);
        within_deadline("enough traffic", waiting).await.unwrap();
    };
    wait_for(2000).await;
    scenario.join().await;
    scenario.nodes[2].program.signal("KILL").await;
    scenario.restart_node().await;
    wait_for(6000).await;
    echo.abort();
    assert_eq!(scenario.end().await, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_rolling_restart_of_three_nodes_ends_no_resumable_session() {
    let nats = Nats::start().await;
    let url = nats.url();
    let ports = [free_port(), free_port(), free_port()];
    let options = ["--drain-seconds", "60", "--cluster-down-seconds", "12"];
    let start = |port| Node::at(port, &url, &options);
    let mut nodes = join_all(ports.map(start)).await;
    join_all(nodes.iter().map(|node| node.expect_peers(2))).await;
    let mut random = StdRng::seed_from_u64(1);
    let addresses = nodes.iter().map(RunningServer::address).collect();
    let fates = move || Fate {
        server: random.random_range(0..3),
        ..Fate::NONE
    };
    let proxy = Proxy::before(addresses, fates).await;
    let crew = Crew::begin(&proxy, "tea", 9).await;
    for index in [0, 1, 2, 0, 1, 2] {
        crew.expect_progress().await;
        nodes[index].program.signal("TERM").await;
        assert_eq!(nodes[index].program.exit_code().await, Some(0));
        nodes[index] = start(ports[index]).await;
        join_all(nodes.iter().map(|node| node.expect_peers(2))).await;
    }
    assert!(crew.end().await > 0);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_stopped_node_keeps_a_session_until_the_drain_time_is_over() {
    let nats = Nats::start().await;
    let [mut a, b] = nats
        .nodes_with(|config| config.stopping.drain_seconds = 2)
        .await;
    let mut observer = Client::join(&b, "tea").await;
    let (alice, _token) = resumable_beside(&mut observer, &a).await;
    let plain = Client::join(&a, "tea").await;
    observer.expect_new(&plain.id).await;
    let (alice_id, plain_id) = (alice.id.clone(), plain.id.clone());
    a.stop();
    for mut client in [alice, plain] {
        while client.next_or_close().await.is_ok() {}
    }
    observer.expect_left(&plain_id).await;
    observer.expect_quiet().await;
    observer.expect_left(&alice_id).await;
    a.stopped().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_that_cannot_ask_the_others_answers_a_resume_with_503() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(([127, 0, 0, 1], nats.port).into(), || Fate::NONE).await;
    let url = format!("nats://{}", proxy.address).parse().unwrap();
    let a = nats.node().await;
    let b = nats
        .node_with(|config| config.cluster.servers = vec![url])
        .await;
    let nodes = [a, b];
    expect_membership(&nodes).await;
    let [a, b] = nodes;
    let mut observer = Client::join(&a, "tea").await;
    let (alice, token) = resumable_beside(&mut observer, &a).await;
    let id = alice.id.clone();
    drop(alice.into_raw());
    a.expect_suspended(1).await;

    proxy.refuse(true);
    proxy.fail(Failure::Reset);
    eventually("the loss of the connection", || !b.anteroom.is_ready()).await;
    let path = format!("/room/tea?resume={token}&received=2");
    let answer = Raw::upgrade(&b, &path, "").await.err().unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("cannot ask"), "{}", answer.body);
    // A new session needs no other node.
    drop(Client::join(&b, "coffee").await);

    proxy.refuse(false);
    let mut upgraded = None;
    eventually_async("an upgrade", async || {
        upgraded = Raw::upgrade(&b, &path, "").await.ok();
        upgraded.is_some()
    })
    .await;
    let resumed = upgraded.unwrap().read_message().await;
    assert_eq!(
        (&resumed["type"], &resumed["receiver"]),
        (&json!("resumed"), &json!(id))
    );
    observer.expect_quiet().await;
}

/// Suspends sessions at a node, each in a room of its own. Returns the paths at which they can be resumed.
async fn suspend(node: &Node, sessions: usize) -> Vec<String> {
    let paths = (0..sessions).map(async |number| {
        let room = format!("tea-{number}");
        let (client, token) = resumable(node, &room).await;
        drop(client.into_raw());
        format!("/room/{room}?resume={token}&received=2")
    });
    let paths = join_all(paths).await;
    node.expect_metric("anteroom_sessions_suspended", sessions as u64)
        .await;
    paths
}

/// Asks a node to resume a session. Returns whether it does. If not, it must have told the client to try again.
async fn resumes(node: &Node, path: &str) -> bool {
    let mut raw = match Raw::upgrade(node, path, "").await {
        Ok(raw) => raw,
        Err(answer) => {
            assert_eq!(answer.status, 503, "{}", answer.body);
            return false;
        }
    };
    let RawFrame { first, payload } = raw.read_frame().await;
    let is_resumed = payload.starts_with(br#"{"type":"resumed""#);
    let is_told_to_retry = first == 0x88 && payload.starts_with(&1013_u16.to_be_bytes());
    assert!(
        is_resumed || is_told_to_retry,
        "{}",
        String::from_utf8_lossy(&payload)
    );
    is_resumed
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_that_starts_while_another_is_silent_misses_none_of_its_sessions() {
    let options = ["--cluster-down-seconds", "60", "--resume-seconds", "120"];
    for others in [0, 1] {
        let nats = Nats::start().await;
        let start = async || Node::start(&nats.url(), &options).await;
        let nodes = join_all((0..=others).map(|_| start())).await;
        join_all(nodes.iter().map(|node| node.expect_peers(others))).await;
        let paths = suspend(&nodes[0], 1).await;
        nodes[0].program.signal("STOP").await;
        let late = start().await;
        match others {
            0 => late.expect_peers(0).await,
            // It hears of the silent node, and does not begin. These are the heartbeats and acknowledgements of seconds.
            _ => {
                eventually_async("heartbeats", async || {
                    late.count("anteroom_cluster_messages_sent_total").await >= 8
                })
                .await;
                let answer = late.get("/ready").await;
                assert_eq!(answer.body.trim_end(), "waiting for other nodes");
            }
        }
        assert!(!resumes(&late, &paths[0]).await);
        nodes[0].program.signal("CONT").await;
        eventually_async("the session is resumed", || resumes(&late, &paths[0])).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_that_was_given_up_misses_no_session_of_the_others_when_it_goes_on() {
    let nats = Nats::start().await;
    // Only the first node gives another up.
    let nodes = ["2", "60"]
        .map(async |seconds| Node::start(&nats.url(), &["--cluster-down-seconds", seconds]).await);
    let nodes = join_all(nodes).await;
    join_all(nodes.iter().map(|node| node.expect_peers(1))).await;
    let paths = suspend(&nodes[0], 20).await;
    nodes[1].program.signal("STOP").await;
    nodes[0].expect_metric("anteroom_cluster_nodes", 0).await;
    // The kernel takes the connections, and the node finds them when it goes on.
    let (resumed, ()) = join!(
        join_all(paths.iter().map(|path| resumes(&nodes[1], path))),
        nodes[1].program.signal("CONT"),
    );
    for (path, resumed) in paths.iter().zip(resumed) {
        if !resumed {
            eventually_async("the session is resumed", || resumes(&nodes[1], path)).await;
        }
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_that_hears_no_other_says_after_the_down_time_that_a_session_is_lost() {
    let nats = Nats::start().await;
    let node = Node::start(&nats.url(), &["--cluster-down-seconds", "12"]).await;
    node.expect_peers(0).await;
    let path = "/room/tea?resume=AAAAAAAAAAAAAAAAAAAAAA&received=0";
    let answer = Raw::upgrade(&node, path, "").await.err().unwrap();
    assert_eq!(answer.status, 503, "{}", answer.body);
    // Without a WebSocket.
    let post =
        async || operator_at(node.address(), "POST", &format!("{path}&sent=0"), "", "").await;
    assert_eq!(post().await.status, 503);
    let mut upgraded = None;
    eventually_async("an upgrade", async || {
        upgraded = Raw::upgrade(&node, path, "").await.ok();
        upgraded.is_some()
    })
    .await;
    let error = upgraded.unwrap().read_message().await;
    assert_eq!(error["data"]["code"], "resume_failed");
    assert_eq!(post().await.status, 404);
}
