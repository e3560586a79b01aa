//! Several nodes under load: floods, and long lists of members. No acknowledged message may be lost, and no
//! node may take another for dead.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    cluster::{Nats, expect_membership},
    resuming::resumable_beside,
    support::{
        Client, File, Raw, TestServer, eventually, handshake, hold_little, in_seconds, operator,
        text, total,
    },
    tokens::{SECRET, sign, with_secret},
};

/// Sends to one session as fast as the server reads, until the task is aborted.
async fn flood(mut raw: Raw, receiver: String) {
    let message = format!(r#"{{"type":"f","receiver":"{receiver}"}}"#);
    let messages = text(message).repeat(500);
    while raw.stream.write_all(&messages).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_flood_to_another_node_does_not_disturb_other_rooms() {
    let nats = Nats::start().await;
    let config = |config: &mut anteroom::Config| {
        // No node may be taken for dead because the machine is busy, nor may the suspended session end.
        config.cluster.down_seconds = 12;
        config.liveness.resume_seconds = 3600;
    };
    let nodes: [TestServer; 2] = nats.nodes_with(config).await;
    let [a, b] = &nodes;
    // Other sessions flood a suspended session.
    let mut bystander = Client::join(b, "tea").await;
    let (victim, _) = resumable_beside(&mut bystander, b).await;
    let id = victim.id.clone();
    drop(victim.into_raw());
    b.expect_suspended(1).await;
    let mut floods = Vec::new();
    for _ in 0..40 {
        let flooder = Client::join(a, "tea").await;
        floods.push(tokio::spawn(flood(flooder.into_raw(), id.clone())));
    }
    let received = "anteroom_messages_received_total";
    let before = a.count(received);
    eventually("the flood", || a.count(received) > before + 100_000).await;

    // Meanwhile other sessions send to each other, and wait for each receipt.
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
    // Sessions join and leave, and the admin API sends messages and lists a room.
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
    b.expect_suspended(1).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_flood_to_a_large_room_on_another_node_closes_no_client_whose_socket_has_space() {
    const MEMBERS: usize = 100;
    const MESSAGES: usize = 1000;
    let nats = Nats::start().await;
    let [a, b] = nats
        .nodes_with(|config| {
            // What one session may have on its way to other nodes is more than twice as much.
            config.limits.outbox_bytes = 100_000;
            config.liveness.pong_seconds = 3600;
            config.cluster.down_seconds = 12;
        })
        .await;
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(Raw::join(&b, "flood").await);
    }
    let (sender, peers) = Client::join_with_peers(&a, "flood").await;
    assert_eq!(peers.len(), MEMBERS);
    let mut sender = sender.into_raw();
    let message = json!({"type": "flood", "receiver": "all", "data": "d".repeat(1000)});
    sender
        .write(text(message.to_string()).repeat(MESSAGES))
        .await;
    for member in &mut members {
        for _ in 0..MESSAGES {
            while member.read_message().await["type"] != "flood" {}
        }
    }
    assert_eq!(b.count("anteroom_slow_readers_total"), 0);
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_loss_of_a_node_with_a_large_room_closes_no_client_whose_socket_has_space() {
    const MEMBERS: usize = 500;
    let mut nats = Nats::start().await;
    let [a, b] = nats
        // The `close` messages of all members are more than twice as much as an outbox holds.
        .nodes_with(|config| hold_little(config, 20_000))
        .await;
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(Raw::join(&a, "large").await);
    }
    // Not all of them are written to in one turn.
    let mut witnesses = Vec::new();
    for _ in 0..40 {
        let (witness, peers) = Client::join_with_peers(&b, "large").await;
        assert_eq!(peers.len(), MEMBERS + witnesses.len());
        witnesses.push(witness.into_raw());
    }
    nats.kill().await;
    Raw::expect_from_all(&mut witnesses, "close", MEMBERS).await;
    b.expect_no_slow_readers();
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_crowd_that_enters_a_node_at_once_closes_no_client_whose_socket_has_space() {
    const CROWD: usize = 500;
    let nats = Nats::start().await;
    let [a, _b] = nats
        .nodes_with(|config| {
            // The `new` messages of the crowd are more than twice as much as an outbox holds.
            hold_little(config, 20_000);
            config.cluster.down_seconds = 12;
        })
        .await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(Raw::connect(&a).await);
    }
    Raw::write_at_once(&crowd, handshake("/room/new"));
    for newcomer in &mut crowd {
        newcomer.read_head().await;
    }
    eventually("all sessions", || a.anteroom.sessions() == CROWD).await;
    let end = json!({"type": "end", "receiver": "all"});
    crowd[0].write(text(end.to_string())).await;
    Raw::expect_from_all(&mut crowd[1..], "end", 1).await;
    a.expect_no_slow_readers();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn lists_longer_than_the_queue_are_sent_in_pieces() {
    // A run by hand can set more: 520 rooms are more than the queue holds.
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
    let join = async |node: &TestServer, room: &str| {
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
    // Each session is suspended at once: there are more than can be connected.
    for number in 0..rooms * SESSIONS {
        let (client, _) = join(&a, &format!("room-{}", number / SESSIONS)).await;
        drop(client.into_raw());
    }
    a.expect_suspended((rooms * SESSIONS) as u64).await;
    // Two new nodes learn of the first, and a session joins each room on each of them.
    let nodes = [
        a,
        nats.node_with(with_tokens).await,
        nats.node_with(with_tokens).await,
    ];
    expect_membership(&nodes).await;
    let mut clients = Vec::new();
    for room in 0..rooms {
        let room = format!("room-{room}");
        let (first, peers) = join(&nodes[1], &room).await;
        assert_eq!(peers, SESSIONS, "{room}");
        let (second, peers) = join(&nodes[2], &room).await;
        assert_eq!(peers, SESSIONS + 1, "{room}");
        clients.push((first, second));
    }
    // A fourth node, which knows no session yet, receives every list while the others go on.
    let fourth = nats.node_with(with_tokens).await;
    eventually("the fourth node", || {
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
