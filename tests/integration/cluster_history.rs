//! Rooms that keep what is said to all, in a cluster: JetStream stores it. `tests/run` installs NATS and runs these
//! tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    num::NonZeroU32,
};

use anteroom::{Config, HistoryStorage};
use async_nats::jetstream;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    cluster::{Nats, Node, expect_membership},
    history::{Listener, said, with_history},
    operating::free_port,
    resuming::reconnect,
    support::{Client, Folder, TestServer, eventually_async, operator},
};

/// A NATS server with JetStream in a folder.
async fn jetstream_in(folder: &Folder) -> Nats {
    let store = folder.file("nats");
    Nats::with(&["--jetstream", "--store_dir", store.to_str().unwrap()]).await
}

async fn stop<const N: usize>(nodes: [TestServer; N]) {
    for mut node in nodes {
        node.stop();
        node.stopped().await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_history_of_a_room_is_that_of_all_nodes_and_outlives_them() {
    let folder = Folder::new("jetstream");
    let mut nats = jetstream_in(&folder).await;
    let few = |config: &mut Config| {
        with_history(config);
        config.history.messages = NonZeroU32::new(9).unwrap();
    };
    let nodes: [TestServer; 3] = nats.nodes_with(few).await;
    // The messages of other rooms stand between.
    let mut other = Client::join(&nodes[0], "tea-house").await;
    for number in 0..12 {
        let mut speaker = Client::join(&nodes[number % 3], "tea").await;
        speaker.tell(number as u64).await;
        speaker.leave().await;
        for filler in 0..100 * (number as u64 % 3) {
            other.tell(filler).await;
        }
    }
    for node in &nodes {
        let mut bob = Client::join(node, "tea").await;
        assert_eq!(bob.hello().await["data"]["history"], 9);
        let (page, more) = bob.history(json!({"last": 4})).await;
        let before = page[0]["number"].clone();
        assert_eq!(said((page, more)), (vec![8, 9, 10, 11], true));
        let older = bob.history(json!({"before": before})).await;
        assert_eq!(said(older), ((3..8).collect(), false));
        assert_eq!(said(bob.history(json!({"last": 0})).await), (vec![], true));
        bob.leave().await;
    }

    let page = async |node: &TestServer| {
        let page = operator(node, "GET", "/rooms/tea/history", "").await.json();
        page["messages"].as_array().unwrap().clone()
    };
    let all = page(&nodes[1]).await;
    let path = format!("/rooms/tea/history/{}", all[4]["number"]);
    assert_eq!(
        operator(&nodes[2], "DELETE", &path, "").await.body,
        r#"{"removed":1}"#
    );
    let again = operator(&nodes[0], "DELETE", &path, "").await;
    assert_eq!(again.code(), (404, "unknown_message".into()));
    // The number is that of a message in another room.
    let path = format!("/rooms/tea-house/history/{}", all[3]["number"]);
    let foreign = operator(&nodes[0], "DELETE", &path, "").await;
    assert_eq!(foreign.code(), (404, "unknown_message".into()));
    let left = vec![3, 4, 5, 6, 8, 9, 10, 11];
    assert_eq!(said((page(&nodes[0]).await, false)).0, left);

    stop(nodes).await;
    nats.kill().await;
    nats.restart().await;
    // A lower limit is applied at once.
    let [node] = nats
        .nodes_with(|config| {
            with_history(config);
            config.history.messages = NonZeroU32::new(5).unwrap();
        })
        .await;
    let mut bob = Client::join(&node, "tea").await;
    assert_eq!(said(bob.history(json!({})).await).0, left[3..]);
    assert_eq!(
        operator(&node, "DELETE", "/rooms/tea/history", "")
            .await
            .body,
        r#"{"removed":5}"#
    );
    assert_eq!(said(bob.history(json!({})).await), (vec![], false));
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_nats_server_without_jetstream_is_a_clear_error() {
    let nats = Nats::start().await;
    let mut node = Node::start(&nats.url(), &["--history-room", "tea"]).await;
    let line = node.log.find("waiting for NATS at").await;
    assert!(
        line.contains("it has no JetStream for this node, which --history-room needs"),
        "{line}"
    );
}

/// The permissions are those that the guide lists.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_needs_only_some_permissions_for_jetstream() {
    let folder = Folder::new("jetstream-permissions");
    let config = folder.file("nats.conf");
    let store = folder.file("nats");
    let content = format!(
        r#"
        jetstream {{ store_dir: {store:?} }}
        authorization {{ users: [{{ user: anteroom, password: secret, permissions: {{
            publish: [
                "anteroom.>"
                "$JS.API.STREAM.*.anteroom_history"
                "$JS.API.STREAM.MSG.*.anteroom_history"
                "$JS.API.DIRECT.GET.anteroom_history"
                "$JS.API.CONSUMER.CREATE.anteroom_history"
                "$JS.API.CONSUMER.DELETE.anteroom_history.*"
                "$JS.API.CONSUMER.MSG.NEXT.anteroom_history.*"
            ]
            subscribe: ["anteroom.>", "_INBOX.>"]
        }} }}] }}
        "#
    );
    fs::write(&config, content).unwrap();
    let nats = Nats::with(&["--config", config.to_str().unwrap()]).await;
    let url = nats.url().replace("//", "//anteroom:secret@");
    let nodes: [TestServer; 2] = nats
        .nodes_with(|config| {
            with_history(config);
            config.cluster.servers = vec![url.parse().unwrap()];
        })
        .await;
    let mut alice = Client::join(&nodes[0], "tea").await;
    alice.tell(1).await;
    alice.tell(2).await;
    let mut bob = Client::join(&nodes[1], "tea").await;
    let (page, more) = bob.history(json!({})).await;
    let path = format!("/rooms/tea/history/{}", page[0]["number"]);
    assert_eq!(said((page, more)), (vec![1, 2], false));
    for (path, removed) in [(&*path, 1), ("/rooms/tea/history", 1)] {
        let answer = operator(&nodes[0], "DELETE", path, "").await;
        assert_eq!(answer.json(), json!({"removed": removed}));
    }
    assert_eq!(said(bob.history(json!({})).await), (vec![], false));
    expect_membership(&nodes).await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn history_and_live_messages_are_together_exact_on_all_nodes() {
    const EACH: u64 = 60;
    let folder = Folder::new("jetstream-exact");
    let nats = jetstream_in(&folder).await;
    let nodes: [TestServer; 3] = nats.nodes_with(with_history).await;
    let mut speakers = Vec::new();
    for index in 0..6 {
        speakers.push(Client::join(&nodes[index % 3], "tea").await);
    }
    let speaking = speakers.into_iter().zip(0..).map(|(mut speaker, index)| {
        tokio::spawn(async move {
            for number in 0..EACH {
                speaker.tell(index * EACH + number).await;
            }
            speaker
        })
    });
    let speaking: Vec<_> = speaking.collect();
    let mut listeners = Vec::new();
    for index in 0..18 {
        let mut listener = Listener::join(nodes[index % 3].address).await;
        listener.read_history().await;
        listeners.push(listener);
    }
    for speaker in join_all(speaking).await {
        speaker.unwrap();
    }
    for listener in listeners {
        listener.expect_all(6 * EACH).await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_session_that_moves_between_nodes_finds_no_message_twice() {
    let folder = Folder::new("jetstream-moves");
    let nats = jetstream_in(&folder).await;
    let [a, b, c] = nats.nodes_with(with_history).await;
    let mut alice = Client::join(&b, "tea").await;
    alice.tell(1).await;
    let mut bob = Client::join(&a, "tea").await;
    let token = bob.ask_for_resume_token().await;
    let id = bob.id.clone();
    alice.expect_new(&id).await;
    alice.tell(2).await;
    assert_eq!(bob.next().await["data"], 2);
    drop(bob.into_raw());
    a.expect_suspended(1).await;
    alice.tell(3).await;
    // Two `hello`s and a message were received, and two requests were sent.
    let mut bob = reconnect(&c, "tea", &token, 3).await;
    bob.expect_resumed(&id, 2).await;
    bob.id = id;
    assert_eq!(bob.next().await["data"], 3);

    // The messages of a node that comes later and goes again are none of his history either.
    let late = nats.node_with(with_history).await;
    let nodes = [a, b, c, late];
    expect_membership(&nodes).await;
    let mut dave = Client::join(&nodes[3], "tea").await;
    bob.expect_new(&dave.id).await;
    dave.tell(4).await;
    assert_eq!(bob.next().await["data"], 4);
    let page = async |client: &mut Client| said(client.history(json!({})).await).0;
    assert_eq!(page(&mut bob).await, [1]);
    let id = dave.id.clone();
    dave.leave().await;
    bob.expect_left(&id).await;
    let [a, b, c, late] = nodes;
    stop([late]).await;
    let nodes = [a, b, c];
    expect_membership(&nodes).await;
    assert_eq!(page(&mut bob).await, [1]);
}

/// Three NATS servers that form a cluster with JetStream, each in a folder of its own.
async fn jetstream_cluster(folder: &Folder) -> [Nats; 3] {
    let ports = [free_port(), free_port(), free_port()];
    let routes = ports.map(|port| format!("nats://127.0.0.1:{port}"));
    let all = routes.join(",");
    let servers = join_all(routes.iter().enumerate().map(|(index, route)| {
        let store = folder.file(&format!("nats-{index}"));
        let name = format!("server-{index}");
        let all = all.clone();
        async move {
            let options = [
                "--jetstream",
                "--store_dir",
                store.to_str().unwrap(),
                "--name",
                &name,
                "--cluster_name",
                "test",
                "--cluster",
                route,
                "--routes",
                &all,
            ];
            Nats::with(&options).await
        }
    }));
    servers.await.try_into().ok().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_has_a_receipt_outlives_the_loss_of_a_nats_server() {
    let folder = Folder::new("jetstream-lost");
    let mut servers = jetstream_cluster(&folder).await;
    let urls: Vec<_> = servers
        .iter()
        .map(|server| server.url().parse().unwrap())
        .collect();
    let nodes = join_all((0..2).map(|_| {
        TestServer::with(|config| {
            with_history(config);
            config.cluster.servers = urls.clone();
            config.history.replicas = Some(3);
        })
    }))
    .await;
    expect_membership(&nodes).await;

    // The leader of the stream is lost in the middle.
    let client = async_nats::connect(servers[0].url()).await.unwrap();
    let stream = jetstream::new(client);
    let stream = stream.get_stream("anteroom_history").await.unwrap();
    let leader = stream.cached_info().cluster.as_ref().unwrap();
    let leader = leader.leader.as_ref().unwrap();
    let leader: usize = leader.strip_prefix("server-").unwrap().parse().unwrap();
    let mut alice = Client::join(&nodes[0], "tea").await;
    let (mut confirmed, mut failed) = (BTreeSet::new(), BTreeSet::new());
    for numbers in [0..101, 101..300_u64] {
        for number in numbers.clone() {
            alice
                .send(json!({"type": "say", "receiver": "all", "data": number, "ref": number}))
                .await;
        }
        if numbers.end == 300 {
            assert!(confirmed.len() >= 100, "{} are stored", confirmed.len());
            servers[leader].kill().await;
        }
        while confirmed.len() + failed.len() < numbers.end as usize {
            let message = alice.next().await;
            let number = message["data"]["ref"].as_u64().unwrap();
            match message["type"].as_str().unwrap() {
                "ack" => confirmed.insert(number),
                _ => failed.insert(number),
            };
        }
    }
    // The other two go on.
    eventually_async("a message is stored again", async || {
        alice
            .send(json!({"type": "say", "receiver": "all", "data": 300, "ref": 300}))
            .await;
        alice.next().await["type"] == "ack"
    })
    .await;
    let mut bob = Client::join(&nodes[1], "tea").await;
    let mut page = Vec::new();
    eventually_async("the other node reads what is stored", async || {
        match bob.try_history(json!({"last": 1000})).await {
            Ok((messages, _)) => page = messages,
            Err(error) => assert_eq!(error["data"]["code"], "history_failed", "{error}"),
        }
        !page.is_empty()
    })
    .await;
    let mut stored = BTreeMap::<u64, usize>::new();
    for message in &page {
        *stored
            .entry(message["message"]["data"].as_u64().unwrap())
            .or_default() += 1;
    }
    for number in &confirmed {
        assert_eq!(stored.get(number), Some(&1), "{number}");
    }
    assert!(
        stored
            .iter()
            .all(|(number, times)| *number >= 300 || *times == 1)
    );
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_stream_that_is_lost_is_created_again() {
    let folder = Folder::new("jetstream-memory");
    let mut nats = jetstream_in(&folder).await;
    let in_memory = |config: &mut Config| {
        with_history(config);
        config.history.storage = Some(HistoryStorage::Memory);
    };
    let [a, b] = nats.nodes_with(in_memory).await;
    let mut alice = Client::join(&a, "tea").await;
    alice.tell(1).await;
    for is_read_first in [true, false] {
        nats.kill().await;
        nats.restart().await;
        if is_read_first {
            let mut bob = Client::join(&b, "tea").await;
            alice.expect_new(&bob.id).await;
            eventually_async("the history can be read", async || {
                let request = json!({"type": "history", "receiver": "server"});
                bob.send(request).await;
                bob.next().await["type"] == "history"
            })
            .await;
            let id = bob.id.clone();
            bob.leave().await;
            alice.expect_left(&id).await;
        }
        alice.tell(2).await;
        let mut bob = Client::join(&b, "tea").await;
        alice.expect_new(&bob.id).await;
        assert_eq!(said(bob.history(json!({})).await), (vec![2], false));
        let id = bob.id.clone();
        bob.leave().await;
        alice.expect_left(&id).await;
    }
}

/// A node that is killed has stored what it has given receipts for.
#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_has_a_receipt_outlives_the_kill_of_a_node() {
    let folder = Folder::new("jetstream-killed");
    let nats = jetstream_in(&folder).await;
    let options = ["--history-room", "tea"];
    let mut confirmed = BTreeSet::new();
    let mut next = 0;
    for round in 0..5 {
        let mut node = Node::start(&nats.url(), &options).await;
        node.expect_peers(0).await;
        let mut alice = Client::connect(node.program.address, "/room/tea").await;
        alice.id = alice.hello().await["receiver"].as_str().unwrap().into();
        let (page, more) = alice.history(json!({"last": 1000})).await;
        assert!(!more);
        let stored: Vec<u64> = said((page, more)).0;
        let known: BTreeSet<u64> = stored.iter().copied().collect();
        assert_eq!(known.len(), stored.len(), "a message is there twice");
        assert!(known.is_superset(&confirmed));
        for _ in 0..150 {
            alice
                .send(json!({"type": "say", "receiver": "all", "data": next, "ref": next}))
                .await;
            next += 1;
        }
        for _ in 0..10 * (round + 1) {
            let receipt = alice.next().await;
            assert_eq!(receipt["type"], "ack");
            confirmed.insert(receipt["data"]["ref"].as_u64().unwrap());
        }
        node.program.signal("KILL").await;
        node.program.exit_code().await;
        // Receipts that were on their way count, too.
        while let Ok(Message::Text(receipt)) = alice.next_frame().await {
            let receipt: Value = serde_json::from_str(&receipt).unwrap();
            confirmed.insert(receipt["data"]["ref"].as_u64().unwrap());
        }
    }
}
