//! Binary messages (PROTOCOL.md, section 4).

use std::{num::NonZeroU32, time::Instant};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::{
    history::with_history,
    resuming::reconnect,
    support::{Client, Folder, TestServer, operator},
};

/// The receiver of a message to all.
const ALL: [u8; 16] = [0; 16];

/// The bytes of an id.
fn id_bytes(id: &str) -> [u8; 16] {
    Uuid::parse_str(id).unwrap().into_bytes()
}

/// Sends bytes to a receiver.
pub async fn send_bytes(client: &mut Client, receiver: [u8; 16], payload: &[u8]) {
    let message = [&receiver[..], payload].concat();
    client.send_frame(Message::binary(message)).await;
}

/// The next message must be these bytes of a sender.
pub async fn expect_bytes(client: &mut Client, sender: &str, payload: &[u8]) {
    loop {
        match client.next_frame().await.unwrap() {
            Message::Binary(bytes) => {
                assert_eq!(bytes[..16], id_bytes(sender));
                assert_eq!(bytes[16..], *payload);
                return;
            }
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("expected bytes, got {other:?}"),
        }
    }
}

/// The next message must be an error with this code about bytes that were not delivered.
async fn expect_bytes_error(client: &mut Client, code: &str) {
    let error = client.expect_error(code).await;
    // Not the absence of a reference.
    assert_eq!(error.get("ref"), Some(&Value::Null), "{error}");
}

#[tokio::test]
async fn bytes_reach_one_session_or_all_others_unchanged_and_in_order_with_text() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let mut carol = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    send_bytes(&mut alice, id_bytes(&bob.id), &every_byte).await;
    alice
        .send(json!({"type": "x", "receiver": "all", "data": 1}))
        .await;
    send_bytes(&mut alice, ALL, b"to all").await;
    send_bytes(&mut alice, ALL, b"").await;
    let own = id_bytes(&alice.id);
    send_bytes(&mut alice, own, b"to myself").await;
    expect_bytes(&mut bob, &alice.id, &every_byte).await;
    for client in [&mut bob, &mut carol] {
        assert_eq!(client.next().await["data"], 1);
        expect_bytes(client, &alice.id, b"to all").await;
        expect_bytes(client, &alice.id, b"").await;
        client.expect_quiet().await;
    }
    let id = alice.id.clone();
    expect_bytes(&mut alice, &id, b"to myself").await;
    // What succeeds has no answer.
    alice.expect_quiet().await;
}

#[tokio::test]
async fn bytes_that_reach_nobody_or_are_too_few_are_an_error_without_a_reference() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut elsewhere = Client::join(&server, "coffee").await;
    send_bytes(&mut alice, ALL, b"?").await;
    expect_bytes_error(&mut alice, "empty_room").await;
    for receiver in [id_bytes(&elsewhere.id), [0xff; 16]] {
        send_bytes(&mut alice, receiver, b"?").await;
        expect_bytes_error(&mut alice, "unknown_receiver").await;
    }
    for short in [&[][..], &[0; 15]] {
        alice.send_frame(Message::binary(short.to_vec())).await;
        expect_bytes_error(&mut alice, "bad_message").await;
    }
    alice.expect_quiet().await;
    elsewhere.expect_quiet().await;
}

#[tokio::test]
async fn the_longest_bytes_are_as_long_as_the_longest_text() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let longest = vec![7; 65_536 - 16];
    send_bytes(&mut bob, ALL, &longest).await;
    expect_bytes(&mut alice, &bob.id, &longest).await;
    send_bytes(&mut bob, ALL, &[&longest[..], &[7]].concat()).await;
    assert_eq!(bob.expect_close().await.0, 1009);
}

#[tokio::test]
async fn bytes_wait_for_a_suspended_session_and_count_in_both_directions() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let token = alice.ask_for_resume_token().await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    send_bytes(&mut alice, ALL, b"before").await;
    expect_bytes(&mut bob, &alice.id, b"before").await;
    send_bytes(&mut bob, ALL, b"received").await;
    expect_bytes(&mut alice, &bob.id, b"received").await;
    let id = alice.id.clone();
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    send_bytes(&mut bob, id_bytes(&id), b"missed").await;
    bob.send(json!({"type": "x", "receiver": id})).await;
    send_bytes(&mut bob, ALL, b"missed too").await;
    bob.expect_quiet().await;

    // Two answers to `hello`, the `new` of Bob, and what he has sent first.
    let mut alice = reconnect(&server, "tea", &token, 4).await;
    let resumed = alice.next().await;
    // Two times `hello`, and the bytes.
    assert_eq!(resumed["data"]["received"], 3, "{resumed}");
    expect_bytes(&mut alice, &bob.id, b"missed").await;
    assert_eq!(alice.next().await["type"], "x");
    expect_bytes(&mut alice, &bob.id, b"missed too").await;
}

#[tokio::test]
async fn bytes_outlive_the_server_for_a_suspended_session() {
    let folder = Folder::new("bytes");
    let start =
        || TestServer::with(|config| config.stopping.sessions_file = Some(folder.file("sessions")));
    let mut server = start().await;
    let mut alice = Client::join(&server, "tea").await;
    let token = alice.ask_for_resume_token().await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    send_bytes(&mut alice, ALL, b"1").await;
    let id = alice.id.clone();
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    send_bytes(&mut bob, ALL, b"\0\xff").await;
    let sender = bob.id.clone();
    expect_bytes(&mut bob, &id, b"1").await;
    bob.leave().await;
    server.stop();
    server.stopped().await;

    let server = start().await;
    let mut alice = reconnect(&server, "tea", &token, 3).await;
    assert_eq!(alice.next().await["data"]["received"], 3);
    expect_bytes(&mut alice, &sender, b"\0\xff").await;
    alice.expect_left(&sender).await;
}

#[tokio::test]
async fn bytes_count_for_the_rates() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(10);
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let start = Instant::now();
    const COUNT: u8 = 45;
    for number in 0..COUNT {
        send_bytes(&mut bob, ALL, &[number]).await;
    }
    for number in 0..COUNT {
        expect_bytes(&mut alice, &bob.id, &[number]).await;
    }
    // The first second's worth comes at once.
    assert!(start.elapsed().as_secs_f64() > 1.0);
    assert!(server.count("anteroom_limits_hit_total{limit=\"messages-per-second\"}") > 0);
}

#[tokio::test]
async fn operators_see_how_many_messages_are_binary() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for _ in 0..3 {
        send_bytes(&mut bob, ALL, b"x").await;
        expect_bytes(&mut alice, &bob.id, b"x").await;
    }
    let room = operator(&server, "GET", "/rooms/tea", "").await.json();
    let counts = |index: usize| {
        let session = &room["sessions"][index];
        (
            session["messagesReceived"].clone(),
            session["binary"].clone(),
        )
    };
    assert_eq!(counts(0), (json!(1), json!(0)));
    assert_eq!(counts(1), (json!(4), json!(3)));
}

#[tokio::test]
async fn a_history_keeps_no_bytes() {
    let server = TestServer::with(with_history).await;
    let mut alice = Client::join(&server, "tea").await;
    // With nobody there they reach nobody, while text is stored.
    send_bytes(&mut alice, ALL, b"x").await;
    expect_bytes_error(&mut alice, "empty_room").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    send_bytes(&mut alice, ALL, b"x").await;
    alice
        .send(json!({"type": "x", "receiver": "all", "data": 1, "ref": 1}))
        .await;
    assert_eq!(alice.next().await["type"], "ack");
    expect_bytes(&mut bob, &alice.id, b"x").await;
    bob.next().await;
    let mut carol = Client::join(&server, "tea").await;
    let (messages, more) = carol.history(json!({})).await;
    assert_eq!((messages.len(), more), (1, false));
    assert_eq!(messages[0]["message"]["data"], 1);
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn a_session_that_may_only_listen_sends_no_bytes() {
    use crate::{
        support::File,
        tokens::{SECRET, sign, with_secret},
    };

    let key = File::new("bytes-key", SECRET);
    let server = TestServer::with(|config| with_secret(config, &key)).await;
    let path = format!("/room/tea?token={}", sign(json!({"send": false})));
    let mut listener = Client::connect(server.address, &path).await;
    listener.id = listener.hello().await["receiver"].as_str().unwrap().into();
    send_bytes(&mut listener, ALL, b"x").await;
    expect_bytes_error(&mut listener, "not_allowed").await;
}

#[tokio::test]
async fn clients_of_a_dialect_send_no_bytes() {
    let server = TestServer::with(|config| {
        config.serving.dialect = anteroom::config::Dialect::ALL.to_vec();
    })
    .await;
    for path in [
        "/peerjs?key=peerjs&id=a&token=b",
        "/topics",
        "/matchbox/tea",
    ] {
        let mut client = Client::connect(server.address, path).await;
        send_bytes(&mut client, ALL, b"x").await;
        assert_eq!(client.expect_close().await.0, 1003, "{path}");
    }
}

#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tokens",
    feature = "turn"
))]
mod in_a_cluster {
    use super::*;
    use crate::cluster::Nats;

    #[tokio::test]
    #[ignore = "needs nats-server: tests/run starts this test"]
    async fn bytes_reach_sessions_of_other_nodes_and_move_with_a_session() {
        let nats = Nats::start().await;
        let [a, b] = nats.nodes().await;
        let mut alice = Client::join(&a, "tea").await;
        let token = alice.ask_for_resume_token().await;
        let mut bob = Client::join(&b, "tea").await;
        alice.expect_new(&bob.id).await;
        let every_byte: Vec<u8> = (0..=255).collect();
        send_bytes(&mut bob, id_bytes(&alice.id), &every_byte).await;
        bob.send(json!({"type": "x", "receiver": "all"})).await;
        send_bytes(&mut bob, ALL, b"to all").await;
        expect_bytes(&mut alice, &bob.id, &every_byte).await;
        assert_eq!(alice.next().await["type"], "x");
        expect_bytes(&mut alice, &bob.id, b"to all").await;
        send_bytes(&mut alice, ALL, b"back").await;
        expect_bytes(&mut bob, &alice.id, b"back").await;

        // Two answers to `hello`, a `new`, and three messages.
        let id = alice.id.clone();
        drop(alice.into_raw());
        a.expect_suspended(1).await;
        send_bytes(&mut bob, id_bytes(&id), b"missed").await;
        bob.expect_quiet().await;
        let mut alice = reconnect(&b, "tea", &token, 6).await;
        assert_eq!(alice.next().await["data"]["received"], 3);
        expect_bytes(&mut alice, &bob.id, b"missed").await;
        send_bytes(&mut alice, id_bytes(&bob.id), b"from here").await;
        expect_bytes(&mut bob, &id, b"from here").await;
    }
}
