//! What much of anything does to several nodes: floods and long lists. Nothing that was acknowledged is
//! lost for it, and no node takes another for dead.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    cluster::Nats,
    resuming::resumable_beside,
    support::{Client, File, Raw, TestServer, eventually, in_seconds, operator, text, total},
    tokens::{SECRET, sign, with_secret},
};

/// Writes to one session, as fast as that is read, until it is aborted.
async fn flood(mut raw: Raw, receiver: String) {
    let message = format!(r#"{{"type":"f","receiver":"{receiver}"}}"#);
    let messages = text(message).repeat(500);
    while raw.stream.write_all(&messages).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_flood_to_another_node_takes_nothing_from_anybody() {
    let nats = Nats::start().await;
    // Nobody is given up for being slow: the machine has other things to do, too.
    let patient = |config: &mut anteroom::Config| config.cluster.down_seconds = 12;
    let nodes: [TestServer; 2] = nats.nodes_with(patient).await;
    let [a, b] = &nodes;
    // One who is away, whom strangers flood.
    let mut witness = Client::join(b, "tea").await;
    let (victim, _) = resumable_beside(&mut witness, b).await;
    let id = victim.id.clone();
    drop(victim.into_raw());
    eventually("the victim is away", || {
        b.count("anteroom_sessions_suspended") == 1
    })
    .await;
    let mut floods = Vec::new();
    for _ in 0..40 {
        let stranger = Client::join(a, "tea").await;
        floods.push(tokio::spawn(flood(stranger.into_raw(), id.clone())));
    }
    let flooded = "anteroom_messages_received_total";
    let begun = a.count(flooded);
    eventually("the flood is there", || a.count(flooded) > begun + 100_000).await;

    // Meanwhile others write to each other, and wait for each receipt.
    let mut alice = Client::join(a, "quiet").await;
    let mut bob = Client::join(b, "quiet").await;
    alice.expect_new(&bob.id).await;
    for number in 0..200 {
        let receipt = json!({"ref": number, "receivers": 1});
        for receiver in [bob.id.clone(), "all".into()] {
            alice
                .send(json!({"type": "x", "receiver": receiver, "data": number, "ref": number}))
                .await;
            assert_eq!(alice.next().await["data"], receipt);
            assert_eq!(bob.next().await["data"], number);
        }
    }
    // Others come and go, backends speak, and operators look.
    for _ in 0..20 {
        let mut carol = Client::join(a, "quiet").await;
        bob.expect_new(&carol.id).await;
        alice.expect_new(&carol.id).await;
        let notice = r#"{"type":"notice","receiver":"all","data":7}"#;
        let answer = operator(b, "POST", "/rooms/quiet/messages", notice).await;
        assert_eq!(answer.body, r#"{"receivers":3}"#);
        assert_eq!(carol.next().await["data"], 7);
        let id = carol.id.clone();
        carol.leave().await;
        for other in [&mut alice, &mut bob] {
            assert_eq!(other.next().await["data"], 7);
            other.expect_left(&id).await;
        }
        let answer = operator(a, "GET", "/rooms/quiet", "").await;
        assert_eq!(answer.json()["sessions"].as_array().unwrap().len(), 2);
    }
    for flood in floods {
        flood.abort();
    }
    for series in [
        "anteroom_cluster_overflows_total",
        "anteroom_cluster_messages_lost_total",
    ] {
        assert_eq!(total(&nodes, series).await, 0, "{series}");
    }
    assert_eq!(total(&nodes, "anteroom_cluster_nodes").await, 2);
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn lists_longer_than_the_queue_are_told_in_pieces() {
    // By hand, with more: 520 are more than a queue takes as a whole.
    let rooms = std::env::var("ROOMS").map_or(60, |rooms| rooms.parse().unwrap());
    const SESSIONS: usize = 50;
    let key = File::new("long-lists.key", SECRET);
    let nats = Nats::start().await;
    let with_tokens = |config: &mut anteroom::Config| {
        with_secret(config, &key);
        config.limits.max_sessions = Some(100_000);
        config.liveness.resume_seconds = 3600;
        config.cluster.down_seconds = 12;
    };
    let a = nats.node_with(with_tokens).await;
    eventually("the node is ready", || a.anteroom.is_ready()).await;
    let token = sign(json!({"exp": in_seconds(3600), "sub": "\u{1}".repeat(250),
        "info": "y".repeat(1000)}));
    let enter = async |node: &TestServer, room: &str| {
        let path = format!("/room/{room}?token={token}");
        let mut client = Client::connect(node.address, &path).await;
        client
            .send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
            .await;
        let hello = loop {
            let message = client.next().await;
            if message["type"] == "hello" {
                break message;
            }
        };
        (client, hello["data"]["peers"].as_array().unwrap().len())
    };
    // They are away at once: there are more than could be connected.
    for number in 0..rooms * SESSIONS {
        let (client, _) = enter(&a, &format!("room-{}", number / SESSIONS)).await;
        drop(client.into_raw());
    }
    eventually("all are away", || {
        a.count("anteroom_sessions_suspended") as usize == rooms * SESSIONS
    })
    .await;
    // Two other nodes have somebody in each room when they hear of this one.
    let nodes = [
        a,
        nats.node_with(with_tokens).await,
        nats.node_with(with_tokens).await,
    ];
    for node in &nodes {
        eventually("the nodes know each other", || {
            node.anteroom.is_ready() && node.count("anteroom_cluster_nodes") == 2
        })
        .await;
    }
    let mut clients = Vec::new();
    for room in 0..rooms {
        let room = format!("room-{room}");
        let (first, peers) = enter(&nodes[1], &room).await;
        assert_eq!(peers, SESSIONS, "{room}");
        let (second, peers) = enter(&nodes[2], &room).await;
        assert_eq!(peers, SESSIONS + 1, "{room}");
        clients.push((first, second));
    }
    // One knows nobody any more, and all is told again while all goes on.
    let fourth = nats.node_with(with_tokens).await;
    eventually("the fourth is there", || {
        fourth.anteroom.is_ready() && fourth.count("anteroom_cluster_nodes") == 3
    })
    .await;
    for room in (0..rooms).rev() {
        let path = format!("/rooms/room-{room}");
        let answer = operator(&fourth, "GET", &path, "").await;
        let sessions = answer.json()["sessions"].as_array().unwrap().len();
        assert_eq!(sessions, SESSIONS + 2, "{path}");
    }
    assert_eq!(fourth.anteroom.rooms(), 0);
    assert_eq!(total(&nodes, "anteroom_cluster_nodes").await, 9);
    assert_eq!(total(&nodes, "anteroom_cluster_overflows_total").await, 0);
}
