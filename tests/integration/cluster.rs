//! Several nodes over a real NATS server. `tests/run` installs that, and starts these tests.

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
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite;

use crate::{
    crowds::{come_and_go, seeded, storm},
    operating::{Nginx, free_port, start},
    proxy::{Failure, Fate, Proxy},
    resuming::{Storm, next_text, open, resumable_beside, return_to, weather},
    support::{
        Answer, Client, File, Program, Raw, RunningServer, TestServer, eventually,
        eventually_async, metric_value, operator, operator_at, total, within_deadline,
    },
    tls::Authority,
};

/// A NATS server on a port of its own.
pub struct Nats {
    pub port: u16,
    options: Vec<String>,
    child: Option<Child>,
}

impl Nats {
    pub async fn start() -> Nats {
        Nats::with(&[]).await
    }

    pub async fn with(options: &[&str]) -> Nats {
        let mut nats = Nats {
            port: free_port(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            child: None,
        };
        nats.start_again().await;
        nats
    }

    pub async fn start_again(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--port", &port]);
        command.args(&self.options);
        self.child = Some(start(&mut command, self.port).await);
    }

    /// Ends it as a failing machine does.
    pub async fn kill(&mut self) {
        self.child.take().unwrap().kill().await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A node of the cluster, in this process.
    pub async fn node(&self) -> TestServer {
        self.node_with(|_| {}).await
    }

    pub async fn node_with(&self, change: impl FnOnce(&mut Config)) -> TestServer {
        let url = self.url().parse().unwrap();
        TestServer::with(|config| {
            config.cluster.servers = vec![url];
            config.admin.listen = Some(([127, 0, 0, 1], 0).into());
            change(config);
        })
        .await
    }

    /// So many nodes that know each other.
    pub async fn nodes<const N: usize>(&self) -> [TestServer; N] {
        self.nodes_with(|_| {}).await
    }

    pub async fn nodes_with<const N: usize>(
        &self,
        change: impl Fn(&mut Config),
    ) -> [TestServer; N] {
        let nodes = join_all((0..N).map(|_| self.node_with(&change))).await;
        let nodes: [TestServer; N] = nodes.try_into().ok().unwrap();
        know_each_other(&nodes).await;
        nodes
    }
}

async fn know_each_other(nodes: &[TestServer]) {
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
async fn sessions_of_different_nodes_meet_as_those_of_one() {
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

    // To one, to all, with receipts; what nobody gets is an error.
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

    // Rooms are as far apart as ever.
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
async fn random_comings_and_goings_on_three_nodes_agree_with_the_model() {
    let nats = Nats::start().await;
    come_and_go(&processes(&nats, &[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn after_a_storm_of_5000_joins_over_three_nodes_everyone_knows_of_everyone() {
    let nats = Nats::start().await;
    let options = ["--pong-seconds", "3600", "--outbox-bytes", "4194304"];
    storm(&processes(&nats, &options).await, 5000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn in_2000_rooms_over_three_nodes_everyone_reaches_exactly_the_others() {
    let nats = Nats::start().await;
    let nodes = processes(&nats, &[]).await;
    let nodes = &nodes;
    stream::iter(0..2000_usize)
        .for_each_concurrent(50, async |number| {
            let room = format!("room-{number}");
            // Each node is the first in some of them.
            let node = |turn| &nodes[(number + turn) % 3];
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
async fn a_session_goes_on_at_another_node_and_the_room_notices_nothing() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut bob = Client::join(&c, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &a).await;
    let id = alice.id.clone();
    for (turn, node) in (0..).zip([&b, &c, &a, &c, &b, &a]) {
        bob.note(&id, turn).await;
        bob.note("all", 10 + turn).await;
        let mut new = return_to(node, "tea", &token, 2 + 2 * turn).await;
        new.expect_resumed(&id, 2 + turn).await;
        new.expect_note(turn).await;
        new.expect_note(10 + turn).await;
        new.send(json!({"type": "note", "receiver": bob.id, "data": turn}))
            .await;
        bob.expect_note(turn).await;
        let (code, reason) = alice.expect_close().await;
        assert_eq!((code, &*reason), (1008, "resumed on another connection"));
        alice = new;
    }
    bob.expect_quiet().await;
    let mut other = return_to(&b, "coffee", &token, 14).await;
    other.expect_resume_failed().await;
    let mut other = return_to(&b, "tea", "AAAAAAAAAAAAAAAAAAAAAA", 14).await;
    let new = other.expect_resume_failed().await;
    bob.expect_new(&new).await;
    alice.expect_new(&new).await;
    alice.leave().await;
    bob.expect_left(&id).await;
    eventually("the end of what it was", || {
        a.anteroom.sessions() == 0 && b.anteroom.sessions() == 2 && c.anteroom.sessions() == 1
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_a_session_owes_to_its_rates_goes_with_it_to_another_node() {
    let nats = Nats::start().await;
    let [a, b] = nats
        .nodes_with(|config| config.limits.messages_per_second = NonZeroU32::new(50))
        .await;
    let mut bob = Client::join(&b, "tea").await;
    let (mut alice, token) = resumable_beside(&mut bob, &a).await;
    let began = Instant::now();
    let mut heard = 0;
    // Each time it has written a burst, it goes on at the other node.
    for node in [&b, &a, &b] {
        for _ in 0..100 {
            alice
                .try_send(json!({"type": "x", "receiver": bob.id}))
                .await;
        }
        for _ in 0..100 {
            assert_eq!(bob.next().await["type"], "x");
            heard += 1;
        }
        drop(alice.into_raw());
        // It has got two messages, and nothing but `resumed` since.
        alice = return_to(node, "tea", &token, 2).await;
        alice.id = alice.next().await["receiver"].as_str().unwrap().into();
    }
    assert_eq!(heard, 300);
    // One burst is 100 messages; the others take 20 ms each.
    assert!(began.elapsed() >= Duration::from_millis(3900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nothing_is_lost_while_sessions_go_from_node_to_node() {
    let nats = Nats::start().await;
    let options = ["--outbox-bytes", "67108864", "--resume-seconds", "3600"];
    let nodes = processes(&nats, &options).await;
    let storm = Storm {
        seed: 1000,
        messages: 2_000,
        bytes: 8000,
    };
    weather(&storm, &nodes).await;
    for seed in 0..100 {
        let storm = Storm {
            seed,
            messages: 40,
            bytes: 6000,
        };
        weather(&storm, &nodes).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn operators_and_backends_reach_a_room_through_any_node() {
    let nats = Nats::start().await;
    let [a, b, c] = nats.nodes().await;
    let mut alice = Client::join(&a, "tea").await;
    let mut bob = Client::join(&b, "tea").await;
    alice.expect_new(&bob.id).await;
    // The third node has nobody in the room.
    for node in [&a, &b, &c] {
        let answer = operator(node, "GET", "/rooms/tea", "").await;
        let room: Value = serde_json::from_str(&answer.body).unwrap();
        let sessions = room["sessions"].as_array().unwrap();
        let ids: Vec<&str> = sessions
            .iter()
            .map(|it| it["id"].as_str().unwrap())
            .collect();
        assert_eq!(ids, [&alice.id, &bob.id]);
        let here = sessions.iter().filter(|session| session["node"].is_null());
        assert_eq!(here.count(), node.anteroom.sessions());

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
    eventually("the room is forgotten", || c.anteroom.rooms() == 0).await;
    assert_eq!(operator(&c, "DELETE", &path, "").await.status, 404);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn clusters_share_a_nats_server_by_their_prefixes() {
    let nats = Nats::start().await;
    let nodes = join_all(
        ["one", "one", "two.x"]
            .map(|prefix| nats.node_with(move |config| config.cluster.prefix = prefix.into())),
    );
    let nodes = nodes.await;
    know_each_other(&nodes[..2]).await;
    let mut alice = Client::join(&nodes[0], "tea").await;
    let bob = Client::join(&nodes[1], "tea").await;
    alice.expect_new(&bob.id).await;
    eventually("the third is ready", || nodes[2].anteroom.is_ready()).await;
    let (_, peers) = Client::join_with_peers(&nodes[2], "tea").await;
    assert_eq!(peers, [""; 0]);
    assert_eq!(nodes[2].count("anteroom_cluster_nodes"), 0);
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_nats_server_that_is_missing_or_no_good_is_waited_for() {
    let mut nats = Nats::with(&["--user", "anteroom", "--pass", "se cret@"]).await;
    let refused = nats.node().await;
    nats.kill().await;
    let waiting = nats
        .node_with(|config| {
            let url = format!("nats://anteroom:se%20cret%40@127.0.0.1:{}", nats.port);
            config.cluster.servers = vec![url.parse().unwrap()];
        })
        .await;
    for node in [&refused, &waiting] {
        let ready = operator(node, "GET", "/ready", "").await;
        assert_eq!(
            (ready.status, &*ready.body),
            (503, "not connected to NATS\n")
        );
        assert_eq!(operator(node, "GET", "/health", "").await.status, 200);
        let answer = Raw::upgrade(node, "/room/tea", "").await.err().unwrap();
        assert_eq!(answer.status, 503);
    }
    nats.start_again().await;
    eventually("it is ready", || waiting.anteroom.is_ready()).await;
    Client::join(&waiting, "tea").await.expect_quiet().await;
    assert!(!refused.anteroom.is_ready());

    let small = File::new("small.conf", "max_payload: 65536");
    let nats = Nats::with(&["--config", small.path().to_str().unwrap()]).await;
    let mut node = Node::start(&nats.url(), &[]).await;
    let log = node.log().await;
    assert!(
        log.contains("its max_payload is 65536 bytes, and must be 503808"),
        "{log}"
    );
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nats_may_ask_for_credentials_and_tls() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("nats.test");
    let ca = File::new("nats-ca.pem", authority.pem());
    let (cert, key) = (File::new("nats.pem", cert), File::new("nats.key", key));
    let [operator, account, user] = [
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    ];
    let free = json!({"subs": -1, "data": -1, "payload": -1});
    let account_limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1,
        "exports": -1, "wildcards": true, "conn": -1, "leaf": -1});
    let operator_jwt = jwt(&operator, &operator, "operator", json!({}));
    let account_jwt = jwt(
        &operator,
        &account,
        "account",
        json!({"limits": account_limits}),
    );
    let user_jwt = jwt(&account, &user, "user", free);
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
    know_each_other(&nodes).await;
    let mut alice = Client::join(&nodes[0], "tea").await;
    let bob = Client::join(&nodes[1], "tea").await;
    alice.expect_new(&bob.id).await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_nats_denies_is_said_and_the_node_is_not_ready() {
    for (denied, verb) in [("subscribe", "Subscription"), ("publish", "Publish")] {
        let may = |verb: &str| match verb == denied {
            true => r#"{ allow: ["anteroom.>"], deny: ["anteroom.room.>"] }"#,
            false => r#""anteroom.>""#,
        };
        let config = format!(
            "authorization: {{ users: [ {{ user: node, password: secret, permissions: {{
                subscribe: {}, publish: {} }} }} ] }}\n",
            may("subscribe"),
            may("publish")
        );
        let config = File::new(&format!("denied-{denied}.conf"), config);
        let path = config.path().to_str().unwrap().to_owned();
        let nats = Nats::with(&["--config", &path]).await;
        let url = format!("nats://node:secret@127.0.0.1:{}", nats.port);
        let mut node = Node::start(&url, &[]).await;
        node.knows(0).await;
        let _alice = Client::join(&node, "tea").await;
        eventually_async("it is not ready", async || {
            node.ask("/ready").await.status == 503
        })
        .await;
        let said = node.ask("/ready").await.body;
        assert!(said.starts_with("NATS refuses something: "), "{said}");
        assert!(said.to_lowercase().contains(&verb.to_lowercase()), "{said}");
        let mut lines = String::new();
        while !lines.contains("NATS refuses something, and this node is not ready") {
            lines += &node.log_line().await;
        }
    }
}

/// What says in NATS who somebody is: a JSON Web Token with a signature of its own.
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

/// What comes over NATS is input like any other.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_is_said_in_bad_faith_or_by_a_newer_version_harms_nobody() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes().await;
    let mut alice = Client::join(&a, "tea").await;
    let mut bob = Client::join(&b, "tea").await;
    alice.expect_new(&bob.id).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let room = format!("anteroom.room.{}", URL_SAFE_NO_PAD.encode("tea"));
    let long = "x".repeat(900_000);
    let stranger = r#""v":1,"node":"00000000000000ff","n":5"#;
    let id = "6c1f0000-0000-4000-8000-000000000000";
    let bad = [
        String::new(),
        "\n".into(),
        long.clone(),
        "{}\n".into(),
        format!("{{{stranger}}}\n"),
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
            r#"{{{stranger},"say":{{"all":{{"enter":{{"room":"a\u0000b"}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{stranger},"say":{{"room":{{"room":"tea","after":1,"what":{{"broadcast":null}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{stranger},"say":{{"room":{{"room":"tea","after":1,"what":{{"leave":"{long}"}}}}}}}}{}"#,
            "\n"
        ),
        format!(r#"{{{stranger},"say":{{"all":{{"tomorrow":1}}}}}}{}"#, "\n"),
    ];
    // These are well formed, but of a node that nobody knows.
    let strange = [
        format!(
            r#"{{{stranger},"later":1,"say":{{"room":{{"room":"tea","after":1,"what":{{"join":{{"id":"{id}","joined":1}}}}}}}}}}{}"#,
            "\n"
        ),
        format!(
            r#"{{{stranger},"say":{{"room":{{"room":"tea","after":1,"what":{{"leave":"{}"}}}}}}}}{}"#,
            bob.id, "\n"
        ),
        format!(
            r#"{{{stranger},"say":{{"room":{{"room":"tea","after":1,"what":{{"broadcast":null}}}}}}}}{}"#,
            "\n{}"
        ),
        format!(
            r#"{{{stranger},"say":{{"node":{{"unicast":{{"room":"tea","sender":null,"receiver":"{}"}}}}}}}}{}"#,
            alice.id, "\n{}"
        ),
        format!(r#"{{{stranger},"say":{{"all":"bye"}}}}{}"#, "\n"),
    ];
    let before = a.count("anteroom_cluster_messages_invalid_total");
    for (subject, message) in bad
        .iter()
        .map(|bad| (&room, bad))
        .chain(strange.iter().map(|it| (&room, it)))
    {
        client
            .publish(subject.clone(), message.clone().into())
            .await
            .unwrap();
    }
    client.flush().await.unwrap();
    eventually("all of it is refused", || {
        a.count("anteroom_cluster_messages_invalid_total") == before + bad.len() as u64
    })
    .await;
    // It was heard before this.
    bob.note("all", 1).await;
    alice.expect_note(1).await;
    alice.note(&bob.id, 2).await;
    bob.expect_note(2).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

/// A node of which every word is this test's own loses the last of what it says: it is noticed by what it
/// sums up, and put right.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_lost_last_message_is_noticed_and_put_right() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut to_all = client.subscribe("anteroom.all").await.unwrap();
    let mut asked = client
        .subscribe("anteroom.node.00000000000000ff")
        .await
        .unwrap();
    let read = |message: Message| -> Value {
        let line = message.payload.split(|byte| *byte == b'\n').next().unwrap();
        serde_json::from_slice(line).unwrap()
    };
    // Its numbers are those of a node that has just been started.
    let heard = read(
        within_deadline("a sign of life", to_all.next())
            .await
            .unwrap(),
    );
    let (other, mut number) = (heard["node"].clone(), heard["n"].as_u64().unwrap());
    let mut say = async |subject: &str, say: Value| {
        number += 1000;
        let line = json!({"v": 1, "node": "00000000000000ff", "n": number, "say": say});
        let subject = format!("anteroom.{subject}");
        client
            .publish(subject, format!("{line}\n").into())
            .await
            .unwrap();
        number
    };
    let own = format!("node.{}", other.as_str().unwrap());
    let id = "6c1f0000-0000-4000-8000-000000000000";
    say("all", json!({"all": {"alive": {"heard": [other]}}})).await;
    let members = |last: u64, members: Value| {
        json!({"node": {"members": {"room": "tea", "last": last, "clock": 9, "before": 0,
            "members": members, "more": false}}})
    };
    say(&own, members(5, json!([{"id": id, "joined": 9}]))).await;
    alice.expect_new(id).await;
    // The session has left since; nobody has heard of that but by this.
    let digest = json!([{"room": "tea", "last": 6, "hash": 0}]);
    say(
        &own,
        json!({"node": {"digest": {"rooms": digest, "more": false}}}),
    )
    .await;
    within_deadline("the question", async {
        // The first was asked when the node came.
        for _ in 0..2 {
            while read(asked.next().await.unwrap())["say"]["node"]["ask"] != json!(["tea"]) {}
        }
    })
    .await;
    say(&own, members(6, json!([]))).await;
    alice.expect_left(id).await;
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server and nginx: tests/run starts this test"]
async fn behind_nginx_two_nodes_are_one() {
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
    // One node goes; who was there comes back to the other.
    a.stop();
    eventually("those of one node are gone", || b.anteroom.sessions() == 3).await;
    let client = nginx.join("tea", "").await.unwrap();
    a.stopped().await;
    assert_eq!(b.anteroom.sessions(), 4);
    drop((client, clients));
}

/// A node that is a process of its own.
struct Node {
    program: Program,
    admin: SocketAddr,
    log: Option<Lines<BufReader<ChildStderr>>>,
}

impl Node {
    async fn start(nats: &str, options: &[&str]) -> Node {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--cluster", nats, "--drain-seconds", "1"])
            .args(options)
            .stderr(Stdio::piped());
        let mut program = Program::run(command).await;
        let admin = program.admin().await;
        Node {
            program,
            admin,
            log: None,
        }
    }

    /// The next line of its log.
    async fn log_line(&mut self) -> String {
        let log = self.log.get_or_insert_with(|| {
            BufReader::new(self.program.child.stderr.take().unwrap()).lines()
        });
        let line = within_deadline("a line in the log", log.next_line()).await;
        line.unwrap().unwrap()
    }

    /// The next line of its log that says more than that it serves.
    async fn log(&mut self) -> String {
        loop {
            let line = self.log_line().await;
            if !line.contains("serving") {
                return line;
            }
        }
    }

    async fn ask(&self, path: &str) -> Answer {
        operator_at(self.admin, "GET", path, "", "").await
    }

    /// Waits until its metrics say so.
    async fn shows(&self, series: &str, value: u64) {
        eventually_async(&format!("{series} {value}"), async || {
            self.count(series).await == value
        })
        .await;
    }

    /// Waits until it can be used, and knows so many others.
    async fn knows(&self, others: u64) {
        eventually_async("the node is ready", async || {
            self.ask("/ready").await.status == 200
        })
        .await;
        self.shows("anteroom_cluster_nodes", others).await;
    }
}

impl RunningServer for Node {
    fn address(&self) -> SocketAddr {
        self.program.address
    }

    async fn count(&self, series: &str) -> u64 {
        metric_value(&self.ask("/metrics").await.body, series)
    }
}

/// Three processes that know each other, and go on doing so however busy the machine is.
async fn processes(nats: &Nats, options: &[&str]) -> Vec<Node> {
    let url = nats.url();
    let options = [options, &["--cluster-down-seconds", "12"]].concat();
    let nodes = join_all((0..3).map(|_| Node::start(&url, &options))).await;
    join_all(nodes.iter().map(|node| node.knows(2))).await;
    nodes
}

/// A session that says a number to all, again and again, and sees that what it is told makes sense,
/// whatever happens: nobody comes or goes twice, nobody speaks who is not there, and nobody's numbers go
/// back.
struct Witness {
    client: Client,
    present: HashSet<String>,
    /// What each has said last.
    last: HashMap<String, u64>,
    said: u64,
}

impl Witness {
    async fn join(address: SocketAddr) -> Witness {
        let client = Client::connect(address, "/room/tea").await;
        let mut witness = Witness {
            client,
            present: HashSet::new(),
            last: HashMap::new(),
            said: 0,
        };
        let hello = json!({"type": "hello", "receiver": "server"});
        witness.client.send(hello).await;
        while witness.client.id.is_empty() {
            let message = witness.client.next().await;
            witness.take_in(&message);
        }
        witness
    }

    fn take_in(&mut self, message: &Value) {
        if self.client.id.is_empty() && message["type"] != "hello" {
            // It is not known yet who was there before.
            return;
        }
        let sender = message["sender"].as_str().unwrap().to_owned();
        let data = &message["data"];
        match message["type"].as_str().unwrap() {
            "new" => assert!(self.present.insert(sender), "a second new"),
            "close" => assert!(self.present.remove(&sender), "a close without a new"),
            "number" => {
                assert!(self.present.contains(&sender), "{sender} is not there");
                let number = data.as_u64().unwrap();
                let last = self.last.insert(sender, number);
                assert!(
                    last.is_none_or(|last| number > last),
                    "doubled, or too late"
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
                    assert_eq!(self.present, peers, "the news do not add up to the roster");
                }
            }
            "ack" => {}
            "error" => assert_eq!(data["code"], "empty_room", "{message}"),
            other => panic!("{other}"),
        }
    }

    async fn say(&mut self) {
        let number = json!({"type": "number", "receiver": "all", "data": self.said});
        self.client.try_send(number).await;
        self.said += 1;
    }

    /// Lives on until it is told to stop; `None` if the connection ends before.
    async fn live(mut self, mut stop: watch::Receiver<bool>) -> Option<Witness> {
        let mut turns = interval(Duration::from_millis(10));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = turns.tick() => {
                    self.say().await;
                    if self.said.is_multiple_of(8) {
                        let hello = json!({"type": "hello", "receiver": "server"});
                        self.client.try_send(hello).await;
                    }
                }
                frame = self.client.next_frame() => match frame {
                    Ok(tungstenite::Message::Text(text)) => self.take_in(&serde_json::from_str(&text).unwrap()),
                    Ok(tungstenite::Message::Close(_)) | Err(_) => return None,
                    Ok(_) => {}
                },
                _ = stop.changed() => return Some(self),
            }
        }
    }

    /// Waits until exactly these others are there.
    async fn agrees(&mut self, others: &HashSet<String>) {
        within_deadline("the rosters agree", async {
            while self.present != *others {
                let message = self.client.next().await;
                self.take_in(&message);
            }
        })
        .await;
    }
}

/// One after the other, sessions join somewhere, say numbers, and leave, are lost, or go on somewhere
/// else, as far as they can meanwhile.
async fn come_and_go_somehow(
    nodes: watch::Receiver<[SocketAddr; 3]>,
    mut random: StdRng,
    stop: watch::Receiver<bool>,
) {
    let mut said = 0;
    let mut target = "/room/tea".to_owned();
    while !*stop.borrow() {
        let address = nodes.borrow()[random.random_range(0..3)];
        let opened = timeout(Duration::from_secs(1), open(address, &target)).await;
        let from_anew = !target.contains('?');
        target = "/room/tea".into();
        let Ok(Ok(mut socket)) = opened else {
            continue;
        };
        let mut say =
            vec![json!({"type": "hello", "receiver": "server", "data": {"resume": true}})];
        for _ in 0..random.random_range(0..6) {
            say.push(json!({"type": "number", "receiver": "all", "data": said}));
            said += 1;
        }
        let (mut token, mut received) = (None, 0);
        for message in say {
            let _ = socket.send(message.to_string().into()).await;
        }
        // The first answer says how to go on.
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
            (0, Some(token)) if from_anew => {
                target = format!("/room/tea?resume={token}&received={received}");
            }
            (0 | 1, _) => _ = timeout(Duration::from_secs(1), socket.close(None)).await,
            // It is lost.
            _ => {}
        }
    }
}

/// Three nodes with three sessions each, which live on while others come and go and something happens to
/// the third node or to NATS.
struct Trial {
    nats: Nats,
    /// Between the third node and NATS.
    proxy: Proxy,
    nodes: [Node; 3],
    lives: Vec<JoinHandle<Option<Witness>>>,
    stop: watch::Sender<bool>,
    /// Where the nodes are, for who comes and goes.
    addresses: watch::Sender<[SocketAddr; 3]>,
    others: Vec<JoinHandle<()>>,
}

impl Trial {
    /// Who is lost is gone soon.
    const OPTIONS: [&str; 2] = ["--resume-seconds", "2"];

    async fn begin() -> Trial {
        let nats = Nats::start().await;
        let address = SocketAddr::from(([127, 0, 0, 1], nats.port));
        let proxy = Proxy::start(address, || Fate::NONE).await;
        let behind = format!("nats://{}", proxy.address);
        let urls = [nats.url(), nats.url(), behind];
        let nodes = join_all(urls.iter().map(|url| Node::start(url, &Trial::OPTIONS))).await;
        let nodes: [Node; 3] = nodes.try_into().ok().unwrap();
        let addresses = nodes.each_ref().map(|node| node.program.address);
        let mut trial = Trial {
            nats,
            proxy,
            nodes,
            lives: Vec::new(),
            stop: watch::channel(false).0,
            addresses: watch::channel(addresses).0,
            others: Vec::new(),
        };
        trial.knows(2).await;
        for _ in 0..3 {
            trial.join().await;
        }
        let mut seeds = seeded();
        for _ in 0..3 {
            let random = StdRng::from_rng(&mut seeds);
            let (addresses, stop) = (trial.addresses.subscribe(), trial.stop.subscribe());
            let other = come_and_go_somehow(addresses, random, stop);
            trial.others.push(tokio::spawn(other));
        }
        trial
    }

    /// Waits until each node knows so many others.
    async fn knows(&self, others: u64) {
        join_all(self.nodes.iter().map(|node| node.knows(others))).await;
    }

    /// Waits until the first two nodes know so many others.
    async fn others_know(&self, others: u64) {
        join_all(self.nodes[..2].iter().map(|node| node.knows(others))).await;
    }

    /// A session joins at each node.
    async fn join(&mut self) {
        for node in &self.nodes {
            let witness = Witness::join(node.program.address).await;
            let life = witness.live(self.stop.subscribe());
            self.lives.push(tokio::spawn(life));
        }
    }

    /// Starts the third node again.
    async fn start_again(&mut self) {
        let url = format!("nats://{}", self.proxy.address);
        self.nodes[2] = Node::start(&url, &Trial::OPTIONS).await;
        let address = self.nodes[2].program.address;
        self.addresses
            .send_modify(|addresses| addresses[2] = address);
    }

    /// When the nodes know each other again, everybody knows exactly who is there, and who says
    /// something is heard by all. Returns how many sessions are left.
    async fn end(mut self) -> usize {
        self.knows(2).await;
        self.join().await;
        self.stop.send_replace(true);
        for other in self.others {
            within_deadline("the end of who comes and goes", other)
                .await
                .unwrap();
        }
        let lives = join_all(self.lives).await.into_iter();
        let mut alive: Vec<Witness> = lives.filter_map(|life| life.unwrap()).collect();
        let id = |witness: &Witness| witness.client.id.clone();
        let ids: HashSet<String> = alive.iter().map(id).collect();
        let others = |id: &String| {
            let mut others = ids.clone();
            others.remove(id);
            others
        };
        for witness in &mut alive {
            witness.agrees(&others(&witness.client.id)).await;
            witness.say().await;
        }
        let said: HashMap<String, u64> = alive
            .iter()
            .map(|witness| (id(witness), witness.said - 1))
            .collect();
        for witness in &mut alive {
            let others = others(&witness.client.id);
            within_deadline("what all have said", async {
                while others
                    .iter()
                    .any(|id| witness.last.get(id) != Some(&said[id]))
                {
                    let message = witness.client.next().await;
                    witness.take_in(&message);
                }
            })
            .await;
            assert_eq!(witness.present, others);
        }
        alive.len()
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_is_killed_and_another_takes_its_place() {
    let mut trial = Trial::begin().await;
    trial.nodes[2].program.signal("KILL").await;
    trial.start_again().await;
    assert_eq!(trial.end().await, 9);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_is_terminated_and_another_takes_its_place() {
    let mut trial = Trial::begin().await;
    trial.nodes[2].program.signal("TERM").await;
    assert_eq!(trial.nodes[2].program.exit_code().await, Some(0));
    // It has said goodbye.
    trial.others_know(1).await;
    trial.start_again().await;
    assert_eq!(trial.end().await, 9);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_stands_still_for_five_seconds() {
    let trial = Trial::begin().await;
    trial.nodes[2].program.signal("STOP").await;
    let _ = timeout(Duration::from_secs(5), pending::<()>()).await;
    trial.others_know(1).await;
    trial.nodes[2].program.signal("CONT").await;
    trial.others_know(2).await;
    assert_eq!(trial.end().await, 12);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nats_is_killed_and_comes_back_at_once_or_late() {
    let mut trial = Trial::begin().await;
    for is_late in [false, true] {
        trial.nats.kill().await;
        for node in &trial.nodes {
            node.shows("anteroom_cluster_connected", 0).await;
            assert_eq!(node.ask("/ready").await.body, "not connected to NATS\n");
            if is_late {
                node.shows("anteroom_cluster_nodes", 0).await;
            }
        }
        trial.nats.start_again().await;
        trial.knows(2).await;
    }
    assert_eq!(trial.end().await, 12);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_is_cut_off_in_either_direction_or_both() {
    let trial = Trial::begin().await;
    for (up, down) in [(true, false), (false, true), (true, true)] {
        trial.proxy.hold(up, down);
        trial.others_know(1).await;
        trial.nodes[2].shows("anteroom_cluster_nodes", 0).await;
        trial.proxy.hold(false, false);
        trial.knows(2).await;
    }
    trial.proxy.refuse(true);
    trial.proxy.fail(Failure::Reset);
    trial.others_know(1).await;
    trial.proxy.refuse(false);
    assert_eq!(trial.end().await, 12);
}

/// What nodes say comes twice, and once more later.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_nodes_say_is_doubled_and_delayed() {
    let mut trial = Trial::begin().await;
    let client = async_nats::connect(trial.nats.url()).await.unwrap();
    let mut all = client.subscribe("anteroom.>").await.unwrap();
    let (count, mut doubled) = watch::channel(0);
    let echo = tokio::spawn(async move {
        let mut known: HashSet<Vec<u8>> = HashSet::new();
        let mut late = VecDeque::new();
        while let Some(message) = all.next().await {
            if !known.insert(message.payload.to_vec()) {
                // It is an echo.
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
        let waiting = doubled.wait_for(|count| *count >= messages);
        within_deadline("enough traffic", waiting).await.unwrap();
    };
    wait_for(2000).await;
    trial.join().await;
    trial.nodes[2].program.signal("KILL").await;
    trial.start_again().await;
    wait_for(6000).await;
    echo.abort();
    assert_eq!(trial.end().await, 11);
}
