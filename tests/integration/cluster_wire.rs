//! What a node says to other nodes, and what it takes from them: seen by a node of which every word is
//! the test's own.

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

/// The other node's name for itself.
const OTHER: &str = "00000000000000ff";

/// The key of its tokens.
const KEY: [u8; 16] = [7; 16];

/// A session of it.
const SESSION: &str = "6c1f0000-0000-4000-8000-000000000000";

/// The other node.
struct Other {
    mouth: Mouth,
    to_all: Subscriber,
    to_this: Subscriber,
    /// The node it speaks to.
    node: String,
    alive: JoinHandle<()>,
}

/// What it speaks with.
#[derive(Clone)]
struct Mouth {
    client: NatsClient,
    number: Arc<Mutex<u64>>,
}

/// The line of a message, and what stands behind it.
fn read(message: &Message) -> (Value, Vec<u8>) {
    let end = message.payload.iter().position(|byte| *byte == b'\n');
    let (line, text) = message.payload.split_at(end.unwrap());
    (serde_json::from_slice(line).unwrap(), text[1..].to_vec())
}

impl Other {
    /// Joins a cluster of one node, whose numbers are somewhere else.
    async fn join(nats: &Nats, server: &TestServer, number: u64) -> Other {
        let client = async_nats::connect(nats.url()).await.unwrap();
        let mut to_all = client.subscribe("anteroom.all").await.unwrap();
        let subject = format!("anteroom.node.{OTHER}");
        let to_this = client.subscribe(subject).await.unwrap();
        let sign = within_deadline("a sign of life", to_all.next()).await;
        let node = read(&sign.unwrap()).0["node"].as_str().unwrap().to_owned();
        let number = Arc::new(Mutex::new(number));
        let mouth = Mouth { client, number };
        let alive = {
            let (mouth, node) = (mouth.clone(), node.clone());
            let mut ticks = interval(Duration::from_millis(500));
            tokio::spawn(async move {
                loop {
                    ticks.tick().await;
                    let key = URL_SAFE_NO_PAD.encode(KEY);
                    let alive = json!({"heard": [node], "keys": [key]});
                    mouth.say("all", json!({"all": {"alive": alive}}), "").await;
                }
            })
        };
        let other = Other {
            mouth,
            to_all,
            to_this,
            node,
            alive,
        };
        eventually("the node hears it", || {
            server.count("anteroom_cluster_nodes") == 1
        })
        .await;
        other
    }

    async fn say(&mut self, subject: &str, say: Value) {
        self.mouth.say(subject, say, "").await;
    }

    async fn tell(&mut self, what: Value, text: &str) {
        let subject = format!("node.{}", self.node);
        self.mouth.say(&subject, json!({"node": what}), text).await;
    }

    /// Says that this session of its is in a room.
    async fn is_in(&mut self, room: &str, session: &str) {
        let member = json!({"id": session, "joined": 1});
        self.tell(
            json!({"members": {"room": room, "last": 1, "clock": 1, "members": [member]}}),
            "",
        )
        .await;
    }

    /// Says that none of its sessions is in a room.
    async fn is_in_no_room(&mut self, room: &str) {
        self.tell(json!({"absent": [room]}), "").await;
    }

    /// The next question about this room.
    async fn hears_asked(&mut self, room: &str) -> Value {
        loop {
            let asked = self.hears("ask").await.0;
            if asked.as_array().unwrap().contains(&json!(room)) {
                return asked;
            }
        }
    }

    /// Answers that none of its sessions is in a room.
    async fn is_not_in(&mut self, room: &str) {
        self.hears_asked(room).await;
        self.is_in_no_room(room).await;
    }

    /// The next of this kind that is said to it alone, and the text behind it.
    async fn hears(&mut self, kind: &str) -> (Value, String) {
        within_deadline(kind, async {
            loop {
                let message = self.to_this.next().await.unwrap();
                let (line, text) = read(&message);
                if !line["say"]["node"][kind].is_null() {
                    let text = String::from_utf8(text).unwrap();
                    return (line["say"]["node"][kind].clone(), text);
                }
            }
        })
        .await
    }

    /// The next of this kind that is said to all.
    async fn hears_all(&mut self, kind: &str) -> Value {
        within_deadline(kind, async {
            loop {
                let message = self.to_all.next().await.unwrap();
                let (line, _) = read(&message);
                if line["node"] == self.node.as_str() && !line["say"]["all"][kind].is_null() {
                    return line["say"]["all"][kind].clone();
                }
            }
        })
        .await
    }

    /// How often something of this kind has been said to all until now.
    async fn count_all(&mut self, kind: &str) -> usize {
        // What is said from now on comes behind this.
        let client = &self.mouth.client;
        client
            .publish("anteroom.all", "end\n".into())
            .await
            .unwrap();
        let mut count = 0;
        within_deadline("the end", async {
            loop {
                let message = self.to_all.next().await.unwrap();
                if &message.payload[..] == b"end\n" {
                    return;
                }
                let (line, _) = read(&message);
                let is_its = line["node"] == self.node.as_str();
                count += usize::from(is_its && !line["say"]["all"][kind].is_null());
            }
        })
        .await;
        count
    }
}

impl Mouth {
    async fn say(&self, subject: &str, say: Value, text: &str) {
        // Its numbers must go out in their order.
        let mut number = self.number.lock().await;
        *number += 1;
        let line = json!({"v": 2, "node": OTHER, "n": *number, "say": say});
        let message = format!("{line}\n{text}");
        let subject = format!("anteroom.{subject}");
        self.client.publish(subject, message.into()).await.unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.alive.abort();
    }
}

/// A token as this node's sessions have them.
fn token(bits: u8) -> String {
    let bits = [bits; 16];
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &KEY), &bits);
    URL_SAFE_NO_PAD.encode([&bits[..], &tag.as_ref()[..8]].concat())
}

/// What nodes say in its place.
fn hash(bits: u8) -> String {
    URL_SAFE_NO_PAD.encode(&digest(&SHA256, &[bits; 16]).as_ref()[..16])
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_session_is_taken_only_from_who_offers_what_was_sought() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut other = Other::join(&nats, &node, 1).await;
    let path = format!("/room/tea?resume={}&received=0", token(1));
    let address = node.address();
    let coming = tokio::spawn(async move { Client::connect(address, &path).await });
    assert_eq!(other.hears("ask").await.0, json!(["tea"]));
    other.is_in("tea", SESSION).await;
    let want = other.hears_all("want").await;
    assert_eq!(want["token"], hash(1));
    let mut client = within_deadline("the upgrade", coming).await.unwrap();
    let seek = want["seek"].clone();

    // Somebody else's session is offered late, and handed over all the same.
    let offer = |token: u8| json!({"offer": {"room": "tea", "seek": seek, "token": hash(token)}});
    let handed = |token: u8, id: &str| {
        let member = json!({"id": id, "joined": 1});
        json!({"handed": {"room": "tea", "seek": seek, "token": hash(token), "member": member,
            "taken_in": 3, "permit": null, "seen": [], "part": 0, "known": [], "more": false}})
    };
    let missed = r#"[{"type":"secret","sender":"server","receiver":"all","data":1}]"#;
    other.tell(offer(2), "").await;
    assert_eq!(other.hears("accept").await.0["accepted"], false);
    other.tell(handed(2, SESSION), missed).await;
    other.tell(handed(1, SESSION), missed).await;
    other.tell(offer(1), "").await;
    assert_eq!(other.hears("accept").await.0["accepted"], true);
    let strange = "6c1f0000-0000-4000-8000-000000000001";
    other.tell(handed(2, strange), missed).await;
    let missed = r#"[{"type":"own","sender":"server","receiver":"all","data":2}]"#;
    other.tell(handed(1, SESSION), missed).await;
    let resumed = client.next().await;
    assert_eq!(resumed["type"], "resumed", "{resumed}");
    assert_eq!(resumed["receiver"], SESSION);
    assert_eq!(client.next().await["type"], "own");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_does_not_arrive_at_another_node_is_told_to_who_wrote_it() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let mut other = Other::join(&nats, &node, 1).await;
    assert_eq!(other.hears("ask").await.0, json!(["tea"]));
    other.is_in("tea", SESSION).await;
    alice.expect_new(SESSION).await;

    // The receiver has just left there.
    alice
        .send(json!({"type": "x", "receiver": SESSION, "ref": "mine"}))
        .await;
    let receipt = alice.next().await;
    assert_eq!(receipt["data"], json!({"ref": "mine", "receivers": 1}));
    let mut unicast = other.hears("unicast").await.0;
    assert_eq!(unicast["ref"], "mine");
    assert_eq!(unicast["sender"], alice.id.as_str());
    other.tell(json!({"undelivered": unicast.take()}), "").await;
    let error = alice.expect_error("unknown_receiver").await;
    assert_eq!(error["ref"], "mine");
    assert!(error["message"].as_str().unwrap().contains(SESSION));
    let errors = "anteroom_errors_total{code=\"unknown_receiver\"}";
    assert_eq!(node.count(errors), 1);

    // The other way round: nobody of that id, one who left, a room that is not here.
    let bob = Client::join(&node, "tea").await;
    alice.expect_new(&bob.id).await;
    let left = bob.id.clone();
    bob.leave().await;
    alice.expect_left(&left).await;
    for (room, receiver) in [("tea", SESSION), ("tea", &left), ("coffee", &alice.id)] {
        let unicast = json!({"room": room, "sender": SESSION, "receiver": receiver, "ref": 7});
        other.tell(json!({"unicast": unicast}), "{}").await;
        assert_eq!(other.hears("undelivered").await.0, unicast);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn what_a_node_had_not_taken_in_when_it_went_is_counted() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut alice = Client::join(&node, "tea").await;
    let mut other = Other::join(&nats, &node, 1).await;
    other.hears("ask").await;
    other.is_in("tea", SESSION).await;
    alice.expect_new(SESSION).await;
    for number in 0..5 {
        alice
            .send(json!({"type": "x", "receiver": SESSION, "ref": number}))
            .await;
        assert_eq!(alice.next().await["type"], "ack");
    }
    // How far it has come it says by the numbers of what it was told; it goes in the middle.
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let message = within_deadline("a message", other.to_this.next()).await;
        let (line, _) = read(&message.unwrap());
        if !line["say"]["node"]["unicast"].is_null() {
            heard.push(line["n"].as_u64().unwrap());
        }
    }
    other.tell(json!({"taken": {"number": heard[2]}}), "").await;
    other.alive.abort();
    other.say("all", json!({"all": "bye"})).await;
    alice.expect_left(SESSION).await;
    // What it was sent is noted now and then, so that some of what it has taken in counts, too.
    let lost = node.count("anteroom_cluster_messages_lost_total");
    assert!((2..=5).contains(&lost), "{lost}");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn a_made_up_token_is_no_question_to_other_nodes() {
    let nats = Nats::start().await;
    let [node] = nats.nodes().await;
    let mut other = Other::join(&nats, &node, 1).await;
    for bits in 0..50 {
        let made_up = URL_SAFE_NO_PAD.encode([bits; 16]);
        let tagged = URL_SAFE_NO_PAD.encode([bits; 24]);
        for token in [made_up, tagged] {
            let path = format!("/room/tea-{bits}?resume={token}&received=0");
            other.is_in_no_room(&format!("tea-{bits}")).await;
            let mut client = Client::connect(node.address, &path).await;
            assert_eq!(client.next().await["data"]["code"], "resume_failed");
            client.leave().await;
        }
    }
    assert_eq!(other.count_all("want").await, 0);
    // One that is a node's is asked for.
    let path = format!("/room/tea?resume={}&received=0", token(1));
    let address = node.address;
    let coming = tokio::spawn(async move { Client::connect(address, &path).await });
    other.hears("ask").await;
    other.is_in("tea", SESSION).await;
    let want = other.hears_all("want").await;
    let answer = json!({"room": "tea", "seek": want["seek"], "answer": "not_here"});
    other.tell(json!({"answer": answer}), "").await;
    let mut client = within_deadline("the upgrade", coming).await.unwrap();
    assert_eq!(client.next().await["data"]["code"], "resume_failed");
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn numbers_however_far_apart_keep_no_nodes_apart() {
    for number in [1, 1 << 40, (1 << 52) - 10, (1 << 53) - 100] {
        let nats = Nats::start().await;
        let [node] = nats.nodes().await;
        let mut alice = Client::join(&node, "tea").await;
        let mut other = Other::join(&nats, &node, number).await;
        other.hears("ask").await;
        other.is_in("tea", SESSION).await;
        alice.expect_new(SESSION).await;
        alice.send(json!({"type": "x", "receiver": SESSION})).await;
        assert_eq!(other.hears("unicast").await.0["receiver"], SESSION);
    }
}

#[tokio::test]
#[ignore = "needs nats-server: tests/run starts this test"]
async fn who_looks_at_a_room_changes_nothing() {
    let nats = Nats::start().await;
    let [node] = nats
        .nodes_with(|config| {
            config.limits.max_rooms = NonZeroU32::new(1);
            config.limits.max_room_sessions = NonZeroU32::new(1);
        })
        .await;
    let mut other = Other::join(&nats, &node, 1).await;
    other.count_all("enter").await;
    let _alice = Client::join(&node, "coffee").await;
    assert_eq!(other.hears_all("enter").await["room"], "coffee");

    // The other says that it is in one room, in two pieces, and not in another.
    let look = operator(&node, "GET", "/rooms/tea", "");
    let answers = async {
        assert_eq!(other.hears_asked("tea").await, json!(["tea"]));
        let pieces = [(None, Some(1), "1"), (Some(1), None, "2")];
        for (after, until, id) in pieces {
            let id = format!("6c1f0000-0000-4000-8000-00000000000{id}");
            let range = |end: Option<u8>| {
                end.map(|end| format!("6c1f0000-0000-4000-8000-00000000000{end}"))
            };
            let members = json!({"room": "tea", "last": 1, "clock": 1, "after": range(after),
                "until": range(until), "members": [{"id": id, "joined": 1}]});
            other.tell(json!({"members": members}), "").await;
        }
    };
    let (answer, ()) = tokio::join!(look, answers);
    let sessions = &answer.json()["sessions"];
    assert_eq!(sessions.as_array().unwrap().len(), 2, "{}", answer.body);
    assert!(
        sessions
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it["node"] == OTHER)
    );
    let look = operator(&node, "GET", "/rooms/nobody", "");
    let (answer, ()) = tokio::join!(look, other.is_not_in("nobody"));
    assert_eq!(answer.status, 404);
    assert_eq!(other.count_all("enter").await, 0);
    assert_eq!(node.anteroom.rooms(), 1);

    // One of its sessions is closed by it.
    let id = "6c1f0000-0000-4000-8000-000000000001";
    let path = format!("/rooms/tea/sessions/{id}");
    let close = operator(&node, "DELETE", &path, "");
    let answers = async {
        assert_eq!(other.hears_asked("tea").await, json!(["tea"]));
        other.is_in("tea", id).await;
    };
    let (answer, ()) = tokio::join!(close, answers);
    assert_eq!(answer.status, 204);
    assert_eq!(
        other.hears("expel").await.0,
        json!({"room": "tea", "id": id})
    );
    assert_eq!(other.count_all("enter").await, 0);
}
