//! Several nodes over a real NATS server. `tests/run` installs that, and starts these tests.

use anteroom::Config;
use futures_util::future::join_all;
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    crowds::{come_and_go, storm},
    operating::{free_port, start},
    resuming::{Storm, resumable_beside, return_to, weather, weatherproof},
    support::{Client, TestServer, eventually, operator, within_deadline},
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
            config.cluster = vec![url];
            config.admin = Some(([127, 0, 0, 1], 0).into());
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
    let (mut bob, peers) = Client::join_and_look(&b, "tea").await;
    assert_eq!(peers, [alice.id.clone()]);
    alice.expect_new(&bob.id).await;
    let (mut carol, peers) = Client::join_and_look(&c, "tea").await;
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
    come_and_go(&nats.nodes::<3>().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn after_a_storm_over_three_nodes_everyone_knows_of_everyone() {
    let nats = Nats::start().await;
    let nodes = nats
        .nodes_with::<3>(|config| config.pong_seconds = 3600)
        .await;
    storm(&nodes, 2000).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nothing_is_lost_while_sessions_go_from_node_to_node() {
    let nats = Nats::start().await;
    let nodes = nats.nodes_with::<3>(weatherproof).await;
    let storm = Storm {
        seed: 1000,
        messages: 6_000,
        bytes: 8000,
    };
    weather(&storm, &nodes).await;
    for seed in 0..600 {
        let storm = Storm {
            seed,
            messages: 40,
            bytes: 6000,
        };
        weather(&storm, &nodes).await;
    }
}
