//! Other people's clients on the nodes of a cluster. `tests/run` installs NATS and runs these tests.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anteroom::{Config, config::Dialect};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    cluster::Nats,
    support::{Client, Raw, TestServer, eventually, eventually_async},
};

fn serve_all(config: &mut Config) {
    config.serving.dialect = Dialect::ALL.to_vec();
    config.serving.peerjs_discovery = true;
}

/// Connects as a peer with this id and token.
async fn peer(node: &TestServer, id: &str, token: &str) -> Client {
    let target = format!("/peerjs/peerjs?key=peerjs&id={id}&token={token}");
    Client::connect(node.address, &target).await
}

/// Connects as a peer whose id is free.
async fn open(node: &TestServer, id: &str, token: &str) -> Client {
    let mut client = peer(node, id, token).await;
    client.expect_text(r#"{"type":"OPEN"}"#).await;
    client
}

/// Waits until the node has noticed that a connection is lost.
async fn expect_suspended(node: &TestServer) {
    eventually("a session is suspended", || {
        node.count("anteroom_sessions_suspended") == 1
    })
    .await;
}

fn offer(dst: &str) -> Value {
    json!({"type": "OFFER", "dst": dst, "payload": 1})
}

fn relayed(src: &str, dst: &str) -> Value {
    json!({"type": "OFFER", "src": src, "dst": dst, "payload": 1})
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn peers_on_different_nodes_reach_each_other_and_ids_are_unique() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes_with(serve_all).await;
    let mut alice = open(&a, "alice", "a").await;
    let mut bob = open(&b, "bob", "b").await;
    alice.send(offer("bob")).await;
    assert_eq!(bob.next().await, relayed("alice", "bob"));
    bob.send(offer("alice")).await;
    assert_eq!(alice.next().await, relayed("bob", "alice"));

    let mut other = peer(&b, "alice", "another").await;
    assert_eq!(other.next().await["type"], "ID-TAKEN");
    other.expect_end().await;
    for node in [&a, &b] {
        let peers = Raw::get(node, "/peerjs/peerjs/peers", "").await;
        assert_eq!(peers.json(), json!(["alice", "bob"]));
    }
    alice.expect_nothing().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn of_peers_that_claim_an_id_at_once_on_several_nodes_one_gets_it() {
    let nats = Nats::start().await;
    let nodes: [TestServer; 3] = nats.nodes_with(serve_all).await;
    for round in 0..20 {
        let id = format!("peer{round}");
        let claims = nodes.iter().enumerate().map(|(token, node)| {
            let (id, token) = (&id, token.to_string());
            async move {
                let mut client = peer(node, id, &token).await;
                let answer = client.next().await["type"].as_str().unwrap().to_owned();
                (client, answer)
            }
        });
        let (mut clients, answers): (Vec<_>, Vec<_>) = join_all(claims).await.into_iter().unzip();
        let opened = answers.iter().filter(|answer| *answer == "OPEN").count();
        let taken = answers
            .iter()
            .filter(|answer| *answer == "ID-TAKEN")
            .count();
        assert_eq!((opened, taken), (1, 2), "{answers:?}");
        let winner = answers.iter().position(|answer| answer == "OPEN").unwrap();
        for (asker, node) in nodes.iter().enumerate() {
            let asker = format!("asker{asker}");
            let mut client = open(node, &asker, "t").await;
            client.send(offer(&id)).await;
            assert_eq!(clients[winner].next().await, relayed(&asker, &id));
            client.leave().await;
        }
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_peer_takes_its_id_over_at_another_node() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes_with(serve_all).await;
    let mut bob = open(&b, "bob", "b").await;
    let mut alice = open(&a, "alice", "a").await;
    // The first node still takes the connection for alive.
    let mut again = open(&b, "alice", "a").await;
    alice.expect_end().await;
    bob.send(offer("alice")).await;
    assert_eq!(again.next().await, relayed("bob", "alice"));

    // The connection is lost, and the id is held.
    drop(again);
    expect_suspended(&b).await;
    let is_held = async || {
        let mut other = peer(&a, "alice", "another").await;
        other.next().await["type"] == "ID-TAKEN"
    };
    assert!(is_held().await);
    bob.send(offer("alice")).await;
    bob.expect_nothing().await;
    assert!(is_held().await);
    let mut back = open(&a, "alice", "a").await;
    assert_eq!(back.next().await, relayed("bob", "alice"));
    back.leave().await;
    eventually_async("the id is free", async || {
        let mut other = peer(&b, "alice", "another").await;
        other.next().await["type"] == "OPEN"
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn messages_wait_for_a_peer_that_comes_to_another_node_or_expire() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes_with(serve_all).await;
    let mut alice = open(&a, "alice", "a").await;
    // This node is in the room as well.
    let _carol = open(&b, "carol", "c").await;
    alice.send(offer("bob")).await;
    alice.expect_nothing().await;
    let mut bob = open(&b, "bob", "b").await;
    assert_eq!(bob.next().await, relayed("alice", "bob"));

    // The connection of bob, who is on another node, is lost.
    drop(bob);
    expect_suspended(&b).await;
    let start = Instant::now();
    alice.send(offer("bob")).await;
    let expired = json!({"type": "EXPIRE", "src": "bob", "dst": "alice"});
    assert_eq!(alice.next().await, expired);
    assert!(start.elapsed() > Duration::from_millis(4900));
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_id_of_a_node_that_dies_is_free_after_the_down_time() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes_with(serve_all).await;
    let _alice = open(&a, "alice", "a").await;
    let mut other = peer(&b, "alice", "b").await;
    assert_eq!(other.next().await["type"], "ID-TAKEN");
    a.anteroom.shut_down().await;
    eventually_async("the id is free", async || {
        let mut client = peer(&b, "alice", "b").await;
        client.next().await["type"] == "OPEN"
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn subscribers_on_all_nodes_get_what_is_published_on_any() {
    let nats = Nats::start().await;
    let nodes: [TestServer; 3] = nats.nodes_with(serve_all).await;
    let mut clients = Vec::new();
    for node in &nodes {
        let mut client = Client::connect(node.address, "/topics").await;
        client
            .send(json!({"type": "subscribe", "topics": ["tea", "milk"]}))
            .await;
        client
            .send(json!({"type": "subscribe", "topic": "tea"}))
            .await;
        client.send(json!({"type": "ping"})).await;
        assert_eq!(client.next().await, json!({"type": "pong"}));
        clients.push(client);
    }
    // Who publishes need not be subscribed, not even on this node.
    let mut stranger = Client::connect(nodes[0].address, "/topics").await;
    for publisher in 0..4 {
        let client = clients.get_mut(publisher).unwrap_or(&mut stranger);
        client
            .send(json!({"type": "publish", "topic": "tea", "data": publisher}))
            .await;
        client
            .send(json!({"type": "publish", "topic": "tea", "payload": publisher}))
            .await;
        for client in &mut clients {
            let published =
                json!({"type": "publish", "topic": "tea", "data": publisher, "clients": 3});
            assert_eq!(client.next().await, published);
            let published = json!({"topic": "tea", "payload": publisher});
            assert_eq!(client.next().await, published);
        }
    }
    stranger.expect_nothing().await;
    // A topic of which the stranger's node has no subscriber.
    clients.remove(0).leave().await;
    stranger
        .send(json!({"type": "publish", "topic": "milk", "data": "x"}))
        .await;
    for client in &mut clients {
        assert_eq!(client.next().await["clients"], 2);
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn matchbox_peers_on_different_nodes_meet_once() {
    let nats = Nats::start().await;
    let [a, b] = nats.nodes_with(serve_all).await;
    let join = async |node: &TestServer| {
        let mut client = Client::connect(node.address, "/matchbox/tea").await;
        let id = client.next().await["IdAssigned"]
            .as_str()
            .unwrap()
            .to_owned();
        client.id = id;
        client
    };
    let mut alice = join(&a).await;
    let mut bob = join(&b).await;
    assert_eq!(alice.next().await, json!({"NewPeer": bob.id}));
    alice
        .send(json!({"Signal": {"receiver": bob.id, "data": {"x": 1}}}))
        .await;
    let signal = json!({"Signal": {"sender": alice.id, "data": {"x": 1}}});
    assert_eq!(bob.next().await, signal);
    let id = bob.id.clone();
    bob.leave().await;
    assert_eq!(alice.next().await, json!({"PeerLeft": id}));
    alice.expect_nothing().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn groups_of_matchbox_are_complete_across_nodes() {
    let nats = Nats::start().await;
    let nodes: [TestServer; 3] = nats.nodes_with(serve_all).await;
    // All arrive at once.
    let arrivals = (0..24).map(|number| {
        let address = nodes[number % 3].address;
        async move {
            let mut client = Client::connect(address, "/matchbox/tea?next=3").await;
            let id = client.next().await["IdAssigned"]
                .as_str()
                .unwrap()
                .to_owned();
            (id, client)
        }
    });
    let mut clients = join_all(arrivals).await;
    // Of three, the first is told of two, the second of one.
    let mut news = vec![Vec::new(); clients.len()];
    eventually_async("all pairs have met", async || {
        for ((_, client), news) in clients.iter_mut().zip(&mut news) {
            for message in client.received().await {
                news.push(message["NewPeer"].as_str().unwrap().to_owned());
            }
        }
        news.iter().map(Vec::len).sum::<usize>() == 24
    })
    .await;
    let firsts = clients
        .iter()
        .zip(&news)
        .filter(|(_, news)| news.len() == 2);
    let groups = firsts.map(|((id, _), news)| news.iter().chain([id]).collect());
    let groups: Vec<BTreeSet<&String>> = groups.collect();
    let members: BTreeSet<&String> = groups.iter().flatten().copied().collect();
    assert_eq!((groups.len(), members.len()), (8, 24), "{news:?}");
    // A complete group stays as it is.
    clients.remove(0).1.leave().await;
    let mut late = Client::connect(nodes[1].address, "/matchbox/tea?next=3").await;
    assert!(late.next().await["IdAssigned"].is_string());
    let mut next = Client::connect(nodes[2].address, "/matchbox/tea?next=3").await;
    let next_id = next.next().await["IdAssigned"].clone();
    assert_eq!(late.next().await, json!({"NewPeer": next_id}));
    next.expect_nothing().await;
}
