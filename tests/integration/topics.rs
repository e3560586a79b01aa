//! The wire formats of y-webrtc and of trystero's ws-relay, spoken by plain WebSocket clients. `../browser`
//! tests the same with the clients themselves.

use anteroom::{Config, config::Dialect};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Client, Raw, TestServer, eventually_async, hold_little, text};

/// The request target of both clients.
const TARGET: &str = "/topics";

/// A server with both dialects, and with some options changed.
async fn server_with(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.serving.dialect = vec![Dialect::YWebrtc, Dialect::Trystero];
        change(config);
    })
    .await
}

/// A server with both dialects.
async fn server() -> TestServer {
    server_with(|_| {}).await
}

/// A client without topics.
async fn connect(server: &TestServer) -> Client {
    Client::connect(server.address, TARGET).await
}

/// A client of y-webrtc with these topics.
async fn subscribed(server: &TestServer, topics: &[&str]) -> Client {
    let mut client = connect(server).await;
    client
        .send(json!({"type": "subscribe", "topics": topics}))
        .await;
    client.expect_nothing().await;
    client
}

/// A client of trystero with these topics.
async fn trystero_subscribed(server: &TestServer, topics: &[&str]) -> Client {
    let mut client = connect(server).await;
    for topic in topics {
        client
            .send(json!({"type": "subscribe", "topic": topic}))
            .await;
    }
    client.expect_nothing().await;
    client
}

/// A message of y-webrtc.
fn publish(topic: &str, data: Value) -> Value {
    json!({"type": "publish", "topic": topic, "data": data})
}

/// The same message as its `clients` receivers get it.
fn published(topic: &str, data: Value, clients: u32) -> Value {
    json!({"type": "publish", "topic": topic, "data": data, "clients": clients})
}

/// A message of trystero.
fn trystero_publish(topic: &str, payload: Value) -> Value {
    json!({"type": "publish", "topic": topic, "payload": payload})
}

/// The same message as its receivers get it.
fn trystero_published(topic: &str, payload: Value) -> Value {
    json!({"topic": topic, "payload": payload})
}

/// The next message must tell a developer what is wrong.
async fn expect_error(client: &mut Client) {
    let error = client.next().await;
    assert_eq!(error["type"], "error", "{error}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{error}");
}

#[tokio::test]
async fn a_message_goes_to_all_subscribers_and_says_how_many_they_are() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea"]).await;
    let mut bob = subscribed(&server, &["tea", "coffee"]).await;
    let mut carol = subscribed(&server, &["coffee"]).await;
    alice
        .send(publish("tea", json!({"type": "announce", "from": "a"})))
        .await;
    for client in [&mut alice, &mut bob] {
        let announce = published("tea", json!({"type": "announce", "from": "a"}), 2);
        assert_eq!(client.next().await, announce);
    }
    carol.send(publish("coffee", json!("text"))).await;
    for client in [&mut bob, &mut carol] {
        assert_eq!(client.next().await, published("coffee", json!("text"), 2));
    }
    for client in [&mut alice, &mut bob, &mut carol] {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn a_crowd_that_publishes_at_once_closes_no_client_whose_socket_has_space() {
    const SUBSCRIBERS: usize = 150;
    const STRANGERS: usize = 150;
    // What all publish is more than twice as much as an outbox holds.
    let server = server_with(|config| hold_little(config, 100_000)).await;
    let subscribing = (0..SUBSCRIBERS).map(|_| subscribed(&server, &["tea", "coffee"]));
    let subscribers: Vec<Client> = join_all(subscribing).await;
    let subscribers: Vec<Raw> = subscribers.into_iter().map(Client::into_raw).collect();
    let connecting = (0..STRANGERS).map(|_| connect(&server));
    let strangers: Vec<Client> = join_all(connecting).await;
    let strangers: Vec<Raw> = strangers.into_iter().map(Client::into_raw).collect();
    let message = text(publish("tea", json!("d".repeat(1000))).to_string());
    Raw::write_at_once(subscribers.iter().chain(&strangers), message);
    for mut subscriber in subscribers {
        for _ in 0..SUBSCRIBERS + STRANGERS {
            assert_eq!(subscriber.read_message().await["clients"], SUBSCRIBERS);
        }
    }
    server.expect_no_slow_readers();
}

#[tokio::test]
async fn who_publishes_need_not_be_subscribed() {
    let server = server().await;
    let mut alice = connect(&server).await;
    let mut bob = subscribed(&server, &["tea"]).await;
    alice.send(publish("tea", json!(1))).await;
    assert_eq!(bob.next().await, published("tea", json!(1), 1));
    alice.expect_nothing().await;
    // Nobody hears this, nor is anybody told so.
    alice.send(publish("coffee", json!(2))).await;
    alice.expect_nothing().await;
    bob.expect_nothing().await;
}

#[tokio::test]
async fn all_fields_of_a_message_are_forwarded() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea"]).await;
    // The server counts itself.
    let message = json!({"to": "b", "type": "publish", "topic": "tea", "data": [], "more": {"x": null}, "clients": 99});
    alice.send(message.clone()).await;
    let mut forwarded = message;
    forwarded["clients"] = json!(1);
    assert_eq!(alice.next().await, forwarded);
}

#[tokio::test]
async fn contents_are_forwarded_byte_for_byte() {
    let server = server().await;
    let mut alice = connect(&server).await;
    let mut bob = subscribed(&server, &["tea"]).await;
    let mut carol = trystero_subscribed(&server, &["tea"]).await;
    let contents = [
        r#"{"n": 1.0, "n": 12345678901234567890123, "text": "\u00e9 \/ é"}"#,
        "[ ]",
        r#""""#,
    ];
    for content in contents {
        for field in ["data", "payload"] {
            let text = format!(r#"{{"topic":"tea","{field}":{content},"type":"publish"}}"#);
            alice.send_text(&text).await;
        }
    }
    for content in contents {
        let text = bob.next_text().await;
        assert!(text.contains(&format!(r#""data":{content}"#)), "{text}");
        let text = carol.next_text().await;
        assert!(text.contains(&format!(r#""payload":{content}"#)), "{text}");
    }
}

#[tokio::test]
async fn messages_arrive_in_order() {
    let server = server().await;
    let mut alice = connect(&server).await;
    let mut bob = subscribed(&server, &["tea"]).await;
    for number in 0..100 {
        alice.send(publish("tea", json!(number))).await;
    }
    for number in 0..100 {
        assert_eq!(bob.next().await, published("tea", json!(number), 1));
    }
}

#[tokio::test]
async fn messages_of_trystero_arrive_in_order() {
    let server = server().await;
    let mut alice = connect(&server).await;
    let mut bob = trystero_subscribed(&server, &["tea"]).await;
    for number in 0..100 {
        alice.send(trystero_publish("tea", json!(number))).await;
    }
    for number in 0..100 {
        assert_eq!(bob.next().await, trystero_published("tea", json!(number)));
    }
}

/// Names that might have a meaning in a URL, in a pattern, in NATS or in JSON.
const NAMES: [&str; 7] = ["a/b?c#d", "räume – 部屋", "*", ">", "a.b.*", " ", "tea\"\\"];

#[tokio::test]
async fn a_topic_may_have_any_name() {
    let server = server().await;
    let mut alice = subscribed(&server, &NAMES).await;
    for name in NAMES {
        alice.send(publish(name, json!(name))).await;
        assert_eq!(alice.next().await, published(name, json!(name), 1));
    }
    alice.expect_nothing().await;
}

#[tokio::test]
async fn a_topic_of_trystero_may_have_any_name() {
    let server = server().await;
    let mut alice = trystero_subscribed(&server, &NAMES).await;
    for name in NAMES {
        alice.send(trystero_publish(name, json!(name))).await;
        assert_eq!(alice.next().await, trystero_published(name, json!(name)));
    }
    alice.expect_nothing().await;
}

#[tokio::test]
async fn subscribing_twice_is_subscribing_once() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea", "tea"]).await;
    alice
        .send(json!({"type": "subscribe", "topics": ["coffee", "tea"]}))
        .await;
    alice.send(publish("tea", json!(1))).await;
    assert_eq!(alice.next().await, published("tea", json!(1), 1));
    alice
        .send(json!({"type": "unsubscribe", "topics": ["tea"]}))
        .await;
    alice.send(publish("tea", json!(2))).await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn subscribing_twice_in_trystero_is_subscribing_once() {
    let server = server().await;
    let mut alice = trystero_subscribed(&server, &["tea", "tea"]).await;
    alice.send(trystero_publish("tea", json!(1))).await;
    assert_eq!(alice.next().await, trystero_published("tea", json!(1)));
    alice.expect_nothing().await;
}

#[tokio::test]
async fn who_unsubscribes_hears_no_more() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea", "coffee"]).await;
    let mut bob = subscribed(&server, &["tea"]).await;
    // A topic that a client does not have may be among them.
    bob.send(json!({"type": "unsubscribe", "topics": ["coffee", "milk", "tea"]}))
        .await;
    bob.expect_nothing().await;
    bob.send(publish("tea", json!(1))).await;
    bob.send(publish("coffee", json!(2))).await;
    assert_eq!(alice.next().await, published("tea", json!(1), 1));
    assert_eq!(alice.next().await, published("coffee", json!(2), 1));
    // Empty lists, and subscribing again.
    bob.send(json!({"type": "unsubscribe", "topics": []})).await;
    bob.send(json!({"type": "subscribe", "topics": []})).await;
    bob.send(json!({"type": "subscribe", "topics": ["tea"]}))
        .await;
    bob.send(publish("tea", json!(3))).await;
    assert_eq!(bob.next().await, published("tea", json!(3), 2));
    assert_eq!(alice.next().await, published("tea", json!(3), 2));
    alice.expect_nothing().await;
    bob.expect_nothing().await;
}

#[tokio::test]
async fn a_connection_that_ends_has_no_topics() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea"]).await;
    let leaving = subscribed(&server, &["tea"]).await;
    let lost = subscribed(&server, &["tea"]).await;
    alice.send(publish("tea", json!(0))).await;
    assert_eq!(alice.next().await, published("tea", json!(0), 3));
    leaving.leave().await;
    eventually_async("the end of the connection", async || {
        alice.send(publish("tea", json!(1))).await;
        alice.next().await["clients"] == 2
    })
    .await;
    drop(lost);
    eventually_async("the end of the lost connection", async || {
        alice.send(publish("tea", json!(2))).await;
        alice.next().await["clients"] == 1
    })
    .await;
}

#[tokio::test]
async fn a_ping_of_y_webrtc_gets_a_pong() {
    let server = server().await;
    let mut alice = connect(&server).await;
    for _ in 0..3 {
        alice.send(json!({"type": "ping"})).await;
        assert_eq!(alice.next().await, json!({"type": "pong"}));
    }
    alice.expect_nothing().await;
}

#[tokio::test]
async fn a_plain_request_is_answered_okay() {
    let server = server().await;
    let answer = Raw::get(&server, TARGET, "").await;
    assert_eq!((answer.status, answer.body.trim_end()), (200, "okay"));
}

#[tokio::test]
async fn trystero_gets_the_topic_and_the_payload_only() {
    let server = server().await;
    let mut alice = trystero_subscribed(&server, &["tea", "coffee"]).await;
    let mut bob = trystero_subscribed(&server, &["tea"]).await;
    let mut carol = connect(&server).await;
    for payload in [
        json!({"offer": "sdp"}),
        json!("text"),
        json!(null),
        json!([1]),
    ] {
        alice.send(trystero_publish("tea", payload.clone())).await;
        for client in [&mut alice, &mut bob] {
            let message = trystero_published("tea", payload.clone());
            assert_eq!(client.next().await, message);
        }
    }
    // Who publishes need not be subscribed.
    carol.send(trystero_publish("coffee", json!(1))).await;
    assert_eq!(alice.next().await, trystero_published("coffee", json!(1)));
    bob.send(json!({"type": "unsubscribe", "topic": "tea"}))
        .await;
    bob.send(trystero_publish("tea", json!(2))).await;
    assert_eq!(alice.next().await, trystero_published("tea", json!(2)));
    for client in [&mut alice, &mut bob, &mut carol] {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn wrong_input_gets_an_error_and_the_connection_goes_on() {
    let server = server().await;
    let mut alice = subscribed(&server, &["tea"]).await;
    let mut bob = trystero_subscribed(&server, &["tea"]).await;
    for text in [
        "",
        "not JSON",
        "null",
        "[]",
        "7",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"shout","topic":"tea","data":1}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","topics":"tea"}"#,
        r#"{"type":"subscribe","topic":["tea"]}"#,
        r#"{"type":"unsubscribe","topics":{}}"#,
        // Topics are rooms, whose names have no control characters.
        r#"{"type":"subscribe","topics":["tea\n"]}"#,
        r#"{"type":"subscribe","topics":[""]}"#,
        r#"{"type":"publish"}"#,
        r#"{"type":"publish","topic":7,"data":1}"#,
        r#"{"type":"publish","topic":"tea","data":1"#,
        r#"{"type":"hello","receiver":"server"}"#,
    ] {
        for client in [&mut alice, &mut bob] {
            client.send_text(text).await;
            let received = client.received().await;
            assert_eq!(received.len(), 1, "{text:?}: {received:?}");
            assert_eq!(received[0]["type"], "error", "{text:?}: {received:?}");
            let message = received[0]["message"].as_str().unwrap();
            assert!(!message.is_empty(), "{text:?}");
        }
    }
    alice.send(publish("tea", json!(1))).await;
    assert_eq!(alice.next().await, published("tea", json!(1), 1));
    bob.send(trystero_publish("tea", json!(2))).await;
    assert_eq!(bob.next().await, trystero_published("tea", json!(2)));
}

#[tokio::test]
async fn topics_of_the_two_dialects_and_rooms_are_apart() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = subscribed(&server, &["tea"]).await;
    let mut carol = trystero_subscribed(&server, &["tea"]).await;
    alice
        .send(json!({"type": "greet", "receiver": "all", "data": 1}))
        .await;
    alice.expect_error("empty_room").await;
    bob.send(publish("tea", json!(2))).await;
    carol.send(trystero_publish("tea", json!(3))).await;
    assert_eq!(bob.next().await, published("tea", json!(2), 1));
    assert_eq!(carol.next().await, trystero_published("tea", json!(3)));
    alice.expect_quiet().await;
    bob.expect_nothing().await;
    carol.expect_nothing().await;
}

#[tokio::test]
async fn a_dialect_that_is_off_is_not_understood() {
    let server = server_with(|config| config.serving.dialect = vec![Dialect::YWebrtc]).await;
    let mut alice = subscribed(&server, &["tea"]).await;
    alice
        .send(json!({"type": "subscribe", "topic": "tea"}))
        .await;
    expect_error(&mut alice).await;

    let server = server_with(|config| config.serving.dialect = vec![Dialect::Trystero]).await;
    let mut alice = trystero_subscribed(&server, &["tea"]).await;
    alice
        .send(json!({"type": "subscribe", "topics": ["tea"]}))
        .await;
    expect_error(&mut alice).await;

    let server = server_with(|config| config.serving.dialect = vec![]).await;
    assert_eq!(Raw::get(&server, TARGET, "").await.status, 404);
    let rejected = Raw::upgrade(&server, TARGET, "").await.err().unwrap();
    assert_eq!(rejected.status, 404);
}

#[tokio::test]
async fn only_allowed_origins_can_connect() {
    let server = server_with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    for origin in ["Origin: https://evil.example\r\n", ""] {
        let rejected = Raw::upgrade(&server, TARGET, origin).await.err().unwrap();
        assert_eq!(rejected.status, 403, "{origin}");
    }
    let allowed = "Origin: https://example.org\r\n";
    assert!(Raw::upgrade(&server, TARGET, allowed).await.is_ok());
}

#[tokio::test]
async fn over_the_session_limit_a_connection_is_rejected() {
    let server = server_with(|config| config.limits.max_sessions = Some(1)).await;
    let mut alice = subscribed(&server, &["tea"]).await;
    let rejected = Raw::upgrade(&server, TARGET, "").await.err().unwrap();
    assert_eq!(rejected.status, 503);
    alice.expect_nothing().await;
}

#[tokio::test]
async fn over_the_topic_limit_none_of_the_topics_is_subscribed_to() {
    let server = server_with(|config| config.limits.max_topics = 2).await;
    let mut alice = subscribed(&server, &["tea"]).await;
    alice
        .send(json!({"type": "subscribe", "topics": ["coffee", "milk"]}))
        .await;
    expect_error(&mut alice).await;
    alice.send(publish("coffee", json!(1))).await;
    alice.expect_nothing().await;
    // Topics that the client has already do not count again.
    alice
        .send(json!({"type": "subscribe", "topics": ["coffee", "tea", "coffee"]}))
        .await;
    alice.send(publish("coffee", json!(2))).await;
    assert_eq!(alice.next().await, published("coffee", json!(2), 1));
    alice
        .send(json!({"type": "unsubscribe", "topics": ["tea"]}))
        .await;
    alice
        .send(json!({"type": "subscribe", "topics": ["milk"]}))
        .await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn a_connection_that_answers_no_ping_is_closed() {
    let server = server_with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
    })
    .await;
    let mut without_topics = Raw::upgrade(&server, TARGET, "").await.ok().unwrap();
    let mut with_topics = Raw::upgrade(&server, TARGET, "").await.ok().unwrap();
    with_topics
        .write(text(r#"{"type":"subscribe","topics":["tea"]}"#))
        .await;
    assert_eq!(with_topics.read_close().await.0, 1001);
    assert_eq!(without_topics.read_close().await.0, 1001);
}

#[tokio::test]
async fn a_server_that_stops_closes_connections_with_and_without_topics() {
    let mut server = server().await;
    let mut clients = [
        connect(&server).await,
        subscribed(&server, &["tea"]).await,
        subscribed(&server, &["tea", "coffee"]).await,
        trystero_subscribed(&server, &["tea"]).await,
    ];
    server.stop();
    let closing = clients.each_mut().map(Client::expect_close);
    for (code, reason) in join_all(closing).await {
        assert_eq!(code, 1012, "{reason}");
    }
    server.stopped().await;
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
mod with_tokens {
    use super::*;
    use crate::{
        support::{File, in_seconds},
        tokens::{SECRET, sign, with_secret},
    };

    #[tokio::test]
    async fn a_connection_ends_with_its_token() {
        let file = File::new("topics-expiry", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let token = sign(json!({"exp": in_seconds(2)}));
        let target = format!("{TARGET}?token={token}");
        let mut clients = [
            Client::connect(server.address, &target).await,
            Client::connect(server.address, &target).await,
        ];
        clients[1]
            .send(json!({"type": "subscribe", "topics": ["tea"]}))
            .await;
        let closing = clients.each_mut().map(Client::expect_close);
        for (code, reason) in join_all(closing).await {
            assert_eq!(code, 1008, "{reason}");
        }
    }

    #[tokio::test]
    async fn a_token_in_the_query_is_verified() {
        let file = File::new("topics", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        for query in ["", "?token=none"] {
            let target = format!("{TARGET}{query}");
            let rejected = Raw::upgrade(&server, &target, "").await.err().unwrap();
            assert_eq!(rejected.status, 401, "{query}");
        }
        let target = format!("{TARGET}?token={}", sign(json!({})));
        let mut alice = Client::connect(server.address, &target).await;
        alice
            .send(json!({"type": "subscribe", "topics": ["tea"]}))
            .await;
        alice.send(publish("tea", json!(1))).await;
        assert_eq!(alice.next().await, published("tea", json!(1), 1));
    }

    #[tokio::test]
    async fn the_room_of_a_token_is_the_topic_that_it_admits_to() {
        let file = File::new("topics-room", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let target = format!("{TARGET}?token={}", sign(json!({"room": "tea"})));
        let mut alice = Client::connect(server.address, &target).await;
        let mut bob = Client::connect(server.address, &target).await;
        alice
            .send(json!({"type": "subscribe", "topics": ["tea"]}))
            .await;
        alice.expect_nothing().await;
        for message in [
            json!({"type": "subscribe", "topics": ["coffee"]}),
            json!({"type": "subscribe", "topic": "coffee"}),
            publish("coffee", json!(1)),
            trystero_publish("coffee", json!(1)),
        ] {
            bob.send(message).await;
            expect_error(&mut bob).await;
        }
        bob.send(publish("tea", json!(2))).await;
        assert_eq!(alice.next().await, published("tea", json!(2), 1));
    }
}
