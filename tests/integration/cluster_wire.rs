//! The messages between nodes: what a node sends and accepts. The test plays a fake node, and writes
//! each of its messages itself.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use async_nats::{Client as NatsClient, Message, Subscriber};
use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{sync::Mutex, task::JoinHandle, time::interval};

use crate::{
    cluster::Nats,
    support::{Client, RunningServer, TestServer, eventually, operator, within_deadline},
};

/// The id of the fake node.
const FAKE_NODE: &str = "00000000000000ff";

/// The key that authenticates the resume tokens of the fake node.
const KEY: [u8; 16] = [7; 16];

/// A session on the fake node.
const SESSION: &str = "6c1f0000-0000-4000-8000-000000000000";

/// A node that the test plays, in a cluster with one real node.
struct FakeNode {
    publisher: Publisher,
    broadcasts: Subscriber,
    direct: Subscriber,
    /// The id of the real node.
    node: String,
    heartbeat: JoinHandle<()>,
}

/// Publishes the messages of the fake node.
#[derive(Clone)]
struct Publisher {
    client: NatsClient,
    /// The number of the last message.
    number: Arc<Mutex<u64>>,
}

/// The JSON line of a message, and the bytes after it.
fn read(message: &Message) -> (Value, Vec<u8>) {
    let end = message.payload.iter().position(|byte| *byte == b'\n');
    let (line, text) = message.payload.split_at(end.unwrap());
    (serde_json::from_slice(line).unwrap(), text[1..].to_vec())
}

impl FakeNode {
    /// Joins the cluster of one real node, with messages numbered from `number`.
    async fn join(nats: &Nats, server: &TestServer, number: u64) -> FakeNode {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let mut broadcasts = client.subscribe("anteroom.all").await.unwrap();
        let subject = format!("anteroom.node.{FAKE_NODE}");
        let direct = client.subscribe(subject).await.unwrap();
        let message = within_deadline("a heartbeat", broadcasts.next()).await;
        let node = read(&message.unwrap()).0["node"]
            .as_str()
            .unwrap()
            .to_owned();
        let number = Arc::new(Mutex::new(number));
        let publisher = Publisher { client, number };
        let heartbeat = {
            let (publisher, node) = (publisher.clone(), node.clone());
            let mut ticks = interval(Duration::from_millis(500));
            tokio::spawn(async move {
                loop {
                    ticks.tick().await;
                    let key = URL_SAFE_NO_PAD.encode(KEY);
                    let alive = json!({"heard": [node], "keys": [key]});
                    publisher
                        .publish("all", json!({"all": {"alive": alive}}), "")
                        .await;
                }
            })
        };
        let fake = FakeNode {
            publisher,
            broadcasts,
            direct,
            node,
            heartbeat,
        };
        eventually("the node knows the fake node", || {
            server.count("anteroom_cluster_nodes") == 1
        })
        .await;
        fake
    }

    /// Publishes a message on a subject.
    async fn publish(&mut self, subject: &str, message: Value) {
        self.publisher.publish(subject, message, "").await;
    }

    /// Sends a message, followed by `text`, to the real node alone.
    async fn send(&mut self, message: Value, text: &str) {
        let subject = format!("node.{}", self.node);
        let message = json!({"node": message});
        self.publisher.publish(&subject, message, text).await;
    }

    /// Reports that a session of the fake node is in a room.
    async fn report_member(&mut self, room: &str, session: &str) {
        let member = json!({"id": session, "joined": 1});
        self.send(
            json!({"members": {"room": room, "last": 1, "clock": 1, "members": [member]}}),
            "",
        )
        .await;
    }

    /// Reports that the fake node has no session in a room.
    async fn report_absent(&mut self, room: &str) {
        self.send(json!({"absent": [room]}), "").await;
    }

    /// The rooms of the next `ask` that includes this room.
    async fn next_ask_about(&mut self, room: &str) -> Value {
        loop {
            let rooms = self.next_direct("ask").await.0;
            if rooms.as_array().unwrap().contains(&json!(room)) {
                return rooms;
            }
        }
    }

    /// Waits for an `ask` about a room, and answers that the fake node has no session in it.
    async fn answer_absent(&mut self, room: &str) {
        self.next_ask_about(room).await;
        self.report_absent(room).await;
    }

    /// The next message of this kind that the real node sends to the fake node alone, and the text after
    /// it.
    async fn next_direct(&mut self, kind: &str) -> (Value, String) {
        within_deadline(kind, async {
            loop {
                let message = self.direct.next().await.unwrap();
                let (line, text) = read(&message);
                if !line["say"]["node"][kind].is_null() {
                    let text = String::from_utf8(text).unwrap();
                    return (line["say"]["node"][kind].clone(), text);
                }
            }
        })
        .await
    }

    /// The next message of this kind that the real node broadcasts.
    async fn next_broadcast(&mut self, kind: &str) -> Value {
        within_deadline(kind, async {
            loop {
                let message = self.broadcasts.next().await.unwrap();
                let (line, _) = read(&message);
                if line["node"] == self.node.as_str() && !line["say"]["all"][kind].is_null() {
                    return line["say"]["all"][kind].clone();
                }
            }
        })
        .await
    }

    /// The number of unread messages of this kind that the real node has broadcast.
    async fn count_broadcasts(&mut self, kind: &str) -> usize {
        // The node's later messages arrive after this one.
        let client = &self.publisher.client;
        client
            .publish("anteroom.all", "end\n".into())
            .await
            .unwrap();
        let mut count = 0;
        within_deadline("the end", async {
            loop {
                let message = self.broadcasts.next().await.unwrap();
                if &message.payload[..] == b"end\n" {
                    return;
                }
                let (line, _) = read(&message);
                let is_from_node = line["node"] == self.node.as_str();
                count += usize::from(is_from_node && !line["say"]["all"][kind].is_null());
            }
        })
        .await;
        count
    }
}

impl Publisher {
    /// Publishes a message, followed by `text`, on a subject.
    async fn publish(&self, subject: &str, message: Value, text: &str) {
        // The lock keeps the numbers in order on the wire.
        let mut number = self.number.lock().await;
        *number += 1;
        let line = json!({"v": 2, "node": FAKE_NODE, "n": *number, "say": message});
        let message = format!("{line}\n{text}");
        let subject = format!("anteroom.{subject}");
        self.client.publish(subject, message.into()).await.unwrap();
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// A resume token of a session on the fake node.
fn token(bits: u8) -> String {
    let bits = [bits; 16];
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), &bits);
    URL_SAFE_NO_PAD.encode([&bits[..], &tag.as_ref()[..8]].concat())
}

/// The hash of a resume token, which nodes send instead of the token.
fn hash(bits: u8) -> String {
    URL_SAFE_NO_PAD.encode(&digest(&SHA256, &[bits; 16]).as_ref()[..16])
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_session_migrates_only_from_a_node_that_offers_the_wanted_token() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut fake = FakeNode::join(&nats, &node, 1).await;
    let path = format!("/room/tea?resume={}&received=0", token(1));
    let address = node.address();
    let connecting = tokio::spawn(async move { Client::connect(address, &path).await });
    assert_eq!(fake.next_direct("ask").await.0, json!(["tea"]));
    fake.report_member("tea", SESSION).await;
    let want = fake.next_broadcast("want").await;
    assert_eq!(want["token"], hash(1));
    let mut client = within_deadline("the upgrade", connecting).await.unwrap();
    let seek = want["seek"].clone();

    // The fake node offers another session late, and sends it although the node declines.
    let offer = |token: u8| json!({"offer": {"room": "tea", "seek": seek, "token": hash(token)}});
    let migrated = |token: u8, id: &str| {
        let member = json!({"id": id, "joined": 1});
        json!({"handed": {"room": "tea", "seek": seek, "token": hash(token), "member": member,
            "taken_in": 3, "permit": null, "seen": [], "part": 0, "known": [], "more": false}})
    };
    let missed = r#"[{"type":"secret","sender":"server","receiver":"all","data":1}]"#;
    fake.send(offer(2), "").await;
    assert_eq!(fake.next_direct("accept").await.0["accepted"], false);
    fake.send(migrated(2, SESSION), missed).await;
    fake.send(migrated(1, SESSION), missed).await;
    fake.send(offer(1), "").await;
    assert_eq!(fake.next_direct("accept").await.0["accepted"], true);
    let other_session = "6c1f0000-0000-4000-8000-000000000001";
    fake.send(migrated(2, other_session), missed).await;
    let missed = r#"[{"type":"own","sender":"server","receiver":"all","data":2}]"#;
    fake.send(migrated(1, SESSION), missed).await;
    let resumed = client.next().await;
    assert_eq!(resumed["type"], "resumed", "{resumed}");
    assert_eq!(resumed["receiver"], SESSION);
    assert_eq!(client.next().await["type"], "own");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn the_sender_learns_of_a_message_that_another_node_cannot_deliver() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let mut fake = FakeNode::join(&nats, &node, 1).await;
    assert_eq!(fake.next_direct("ask").await.0, json!(["tea"]));
    fake.report_member("tea", SESSION).await;
    alice.expect_new(SESSION).await;

    // The receiver has just left the fake node.
    alice
        .send(json!({"type": "x", "receiver": SESSION, "ref": "mine"}))
        .await;
    let receipt = alice.next().await;
    assert_eq!(receipt["data"], json!({"ref": "mine", "receivers": 1}));
    let mut unicast = fake.next_direct("unicast").await.0;
    assert_eq!(unicast["ref"], "mine");
    assert_eq!(unicast["sender"], alice.id.as_str());
    fake.send(json!({"undelivered": unicast.take()}), "").await;
    let error = alice.expect_error("unknown_receiver").await;
    assert_eq!(error["ref"], "mine");
    assert!(error["message"].as_str().unwrap().contains(SESSION));
    let errors = "anteroom_errors_total{code=\"unknown_receiver\"}";
    assert_eq!(node.count(errors), 1);

    // In the fake direction: an unknown id, a session that left, a room that the node does not have.
    let bob = Client::join(&node, "tea").await;
    alice.expect_new(&bob.id).await;
    let left = bob.id.clone();
    bob.leave().await;
    alice.expect_left(&left).await;
    for (room, receiver) in [("tea", SESSION), ("tea", &left), ("coffee", &alice.id)] {
        let unicast = json!({"room": room, "sender": SESSION, "receiver": receiver, "ref": 7});
        fake.send(json!({"unicast": unicast}), "{}").await;
        assert_eq!(fake.next_direct("undelivered").await.0, unicast);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn messages_that_a_stopped_node_did_not_confirm_count_as_lost() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let mut fake = FakeNode::join(&nats, &node, 1).await;
    fake.next_direct("ask").await;
    fake.report_member("tea", SESSION).await;
    alice.expect_new(SESSION).await;
    for number in 0..5 {
        alice
            .send(json!({"type": "x", "receiver": SESSION, "ref": number}))
            .await;
        assert_eq!(alice.next().await["type"], "ack");
    }
    // A node confirms by the number of a message. The fake node confirms the third message, and stops.
    let mut numbers = Vec::new();
    while numbers.len() < 3 {
        let message = within_deadline("a message", fake.direct.next()).await;
        let (line, _) = read(&message.unwrap());
        if !line["say"]["node"]["unicast"].is_null() {
            numbers.push(line["n"].as_u64().unwrap());
        }
    }
    fake.send(json!({"taken": {"number": numbers[2]}}), "")
        .await;
    fake.heartbeat.abort();
    fake.publish("all", json!({"all": "bye"})).await;
    alice.expect_left(SESSION).await;
    // The node records only some of the numbers it sends, so some confirmed messages may count as lost.
    let lost = node.count("anteroom_cluster_messages_lost_total");
    assert!((2..=5).contains(&lost), "{lost}");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_node_asks_the_others_only_for_tokens_that_a_node_issued() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut fake = FakeNode::join(&nats, &node, 1).await;
    for bits in 0..50 {
        let untagged = URL_SAFE_NO_PAD.encode([bits; 16]);
        let wrongly_tagged = URL_SAFE_NO_PAD.encode([bits; 24]);
        for token in [untagged, wrongly_tagged] {
            let path = format!("/room/tea-{bits}?resume={token}&received=0");
            fake.report_absent(&format!("tea-{bits}")).await;
            let mut client = Client::connect(node.address, &path).await;
            assert_eq!(client.next().await["data"]["code"], "resume_failed");
            client.leave().await;
        }
    }
    assert_eq!(fake.count_broadcasts("want").await, 0);
    // The node asks for a token with a valid tag.
    let path = format!("/room/tea?resume={}&received=0", token(1));
    let address = node.address;
    let connecting = tokio::spawn(async move { Client::connect(address, &path).await });
    fake.next_direct("ask").await;
    fake.report_member("tea", SESSION).await;
    let want = fake.next_broadcast("want").await;
    let answer = json!({"room": "tea", "seek": want["seek"], "answer": "not_here"});
    fake.send(json!({"answer": answer}), "").await;
    let mut client = within_deadline("the upgrade", connecting).await.unwrap();
    assert_eq!(client.next().await["data"]["code"], "resume_failed");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn nodes_whose_numbers_are_far_apart_understand_each_other() {
    for number in [1, 1 << 40, (1 << 52) - 10, (1 << 53) - 100] {
        let nats = Nats::start().await;
        let [node] = nats.nodes().await;
        let mut alice = Client::join(&node, "tea").await;
        let mut fake = FakeNode::join(&nats, &node, number).await;
        fake.next_direct("ask").await;
        fake.report_member("tea", SESSION).await;
        alice.expect_new(SESSION).await;
        alice.send(json!({"type": "x", "receiver": SESSION})).await;
        assert_eq!(fake.next_direct("unicast").await.0["receiver"], SESSION);
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_look_at_a_room_through_the_admin_api_joins_no_room() {
    let nats = Nats::start().await;
    let [node] = nats
        .nodes_with(|config| {
            config.limits.max_rooms = NonZeroU32::new(1);
            config.limits.max_room_sessions = NonZeroU32::new(1);
        })
        .await;
    let mut fake = FakeNode::join(&nats, &node, 1).await;
    fake.count_broadcasts("enter").await;
    let _alice = Client::join(&node, "coffee").await;
    assert_eq!(fake.next_broadcast("enter").await["room"], "coffee");

    // The fake node reports sessions of one room in two pieces, and none of another room.
    let request = operator(&node, "GET", "/rooms/tea", "");
    let answers = async {
        assert_eq!(fake.next_ask_about("tea").await, json!(["tea"]));
        let pieces = [(None, Some(1), "1"), (Some(1), None, "2")];
        for (after, until, id) in pieces {
            let id = format!("6c1f0000-0000-4000-8000-00000000000{id}");
            let range = |end: Option<u8>| {
                end.map(|end| format!("6c1f0000-0000-4000-8000-00000000000{end}"))
            };
            let members = json!({"room": "tea", "last": 1, "clock": 1, "after": range(after),
                "until": range(until), "members": [{"id": id, "joined": 1}]});
            fake.send(json!({"members": members}), "").await;
        }
    };
    let (answer, ()) = tokio::join!(request, answers);
    let sessions = &answer.json()["sessions"];
    assert_eq!(sessions.as_array().unwrap().len(), 2, "{}", answer.body);
    assert!(
        sessions
            .as_array()
            .unwrap()
            .iter()
            .all(|session| session["node"] == FAKE_NODE)
    );
    let request = operator(&node, "GET", "/rooms/nobody", "");
    let (answer, ()) = tokio::join!(request, fake.answer_absent("nobody"));
    assert_eq!(answer.status, 404);
    assert_eq!(fake.count_broadcasts("enter").await, 0);
    assert_eq!(node.anteroom.rooms(), 1);

    // The admin API closes a session on the fake node.
    let id = "6c1f0000-0000-4000-8000-000000000001";
    let path = format!("/rooms/tea/sessions/{id}");
    let request = operator(&node, "DELETE", &path, "");
    let answers = async {
        assert_eq!(fake.next_ask_about("tea").await, json!(["tea"]));
        fake.report_member("tea", id).await;
    };
    let (answer, ()) = tokio::join!(request, answers);
    assert_eq!(answer.status, 204);
    assert_eq!(
        fake.next_direct("expel").await.0,
        json!({"room": "tea", "id": id})
    );
    assert_eq!(fake.count_broadcasts("enter").await, 0);
}
