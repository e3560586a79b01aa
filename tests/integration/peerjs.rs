//! The wire format of PeerJS, spoken by a plain WebSocket client: what PeerServer's own tests expect of it,
//! and what this server does better. `../browser` tests the same with the PeerJS client itself.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anteroom::{Config, config::Dialect};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, Raw, TestServer, eventually, eventually_async, handshake, text,
};

/// Time for which a message waits for an absent peer, less what timers may be early.
const EXPIRY: Duration = Duration::from_millis(4900);

/// A server with the dialect, and with some options changed.
async fn server_with(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.serving.dialect = vec![Dialect::PeerJs];
        change(config);
    })
    .await
}

/// A server with the dialect.
async fn server() -> TestServer {
    server_with(|_| {}).await
}

/// The request target of a client whose option `path` is `/peerjs`.
fn target(key: &str, id: &str, token: &str) -> String {
    format!("/peerjs/peerjs?key={key}&id={id}&token={token}&version=1.5.5")
}

/// Connects. Nothing has been read yet.
async fn connect(server: &TestServer, key: &str, id: &str, token: &str) -> Client {
    let mut client = Client::connect(server.address, &target(key, id, token)).await;
    client.id = id.into();
    client
}

/// Connects as a peer with this id and token; the key is the client's default.
async fn open(server: &TestServer, id: &str, token: &str) -> Client {
    open_in(server, "peerjs", id, token).await
}

/// Connects as a peer of the realm `key`.
async fn open_in(server: &TestServer, key: &str, id: &str, token: &str) -> Client {
    let mut client = connect(server, key, id, token).await;
    client.expect_text(r#"{"type":"OPEN"}"#).await;
    client
}

/// Connects; returns the type and the text of the message by which the server refuses. The server must close
/// the connection after it.
async fn refused(server: &TestServer, target: &str) -> (String, String) {
    let mut client = Client::connect(server.address, target).await;
    let message = client.next().await;
    client.expect_end().await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&message["type"]), text(&message["payload"]["msg"]))
}

/// The answer to a connection with an id that has another token.
fn taken() -> (String, String) {
    ("ID-TAKEN".into(), "ID is taken".into())
}

/// A message as a client sends it.
fn message(kind: &str, dst: &str, payload: Value) -> Value {
    json!({"type": kind, "payload": payload, "dst": dst})
}

/// A message as its receiver gets it.
fn relayed(kind: &str, src: &str, dst: &str, payload: Value) -> Value {
    json!({"type": kind, "src": src, "dst": dst, "payload": payload})
}

/// What the sender of a message to `dst` gets when the message has waited too long.
fn expire(src: &str, dst: &str) -> Value {
    json!({"type": "EXPIRE", "src": dst, "dst": src})
}

/// Two connected peers can reach each other, so both are in the same realm.
async fn expect_acquainted(alice: &mut Client, bob: &mut Client) {
    alice.send(message("OFFER", &bob.id, json!("hello"))).await;
    let offer = relayed("OFFER", &alice.id, &bob.id, json!("hello"));
    assert_eq!(bob.next().await, offer);
    bob.send(message("ANSWER", &alice.id, json!("hi"))).await;
    let answer = relayed("ANSWER", &bob.id, &alice.id, json!("hi"));
    assert_eq!(alice.next().await, answer);
}

#[tokio::test]
async fn the_api_tells_its_name() {
    let server = server().await;
    let answer = Raw::get(&server, "/peerjs", "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\ncontent-type: application/json"));
    for field in ["name", "description", "website"] {
        let json = answer.json();
        assert!(!json[field].as_str().unwrap().is_empty(), "{json}");
    }
}

#[tokio::test]
async fn an_id_is_a_new_uuid_without_an_end_of_line() {
    let server = server().await;
    let mut ids = HashSet::new();
    for path in [
        "/peerjs/peerjs/id",
        "/peerjs/peerjs/id",
        "/peerjs/tea/id",
        // The client adds a number against caches, and its version.
        "/peerjs/peerjs/id?ts=17642850000000.123&version=1.5.5",
    ] {
        let Answer { status, body, .. } = Raw::get(&server, path, "").await;
        assert_eq!(status, 200, "{path}");
        assert_eq!(body.len(), 36, "{path}: {body:?}");
        let uuid = |(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => u8::is_ascii_hexdigit(&byte),
        };
        assert!(body.bytes().enumerate().all(uuid), "{path}: {body:?}");
        // The client connects with it.
        open(&server, &body, "token").await;
        assert!(ids.insert(body));
    }
}

/// The origin whose pages may read the answer.
fn readable_by(answer: &Answer) -> Option<&str> {
    let (_, rest) = answer
        .head
        .split_once("\r\naccess-control-allow-origin: ")?;
    rest.lines().next()
}

/// The URLs that pages ask.
const ASKED: [&str; 3] = ["/peerjs", "/peerjs/peerjs/id", "/peerjs/peerjs/peers"];

#[tokio::test]
async fn pages_of_any_origin_can_ask() {
    for discovery in [true, false] {
        let server = server_with(|config| config.serving.peerjs_discovery = discovery).await;
        let origin = "https://app.example";
        for path in ASKED {
            let answer = Raw::get(&server, path, &format!("Origin: {origin}\r\n")).await;
            assert_eq!(readable_by(&answer), Some(origin), "{path}");
        }
    }
}

#[tokio::test]
async fn pages_of_origins_that_are_not_allowed_cannot_ask() {
    let allowed = ["https://one.example", "https://two.example"];
    let server = server_with(|config| {
        config.serving.peerjs_discovery = true;
        config.access.allow_origin = allowed.map(|origin| origin.parse().unwrap()).into();
    })
    .await;
    for path in ASKED {
        for origin in allowed {
            let answer = Raw::get(&server, path, &format!("Origin: {origin}\r\n")).await;
            assert_eq!((answer.status, readable_by(&answer)), (200, Some(origin)));
        }
        let answer = Raw::get(&server, path, "Origin: https://evil.example\r\n").await;
        assert_eq!((answer.status, readable_by(&answer)), (403, None), "{path}");
    }
}

#[tokio::test]
async fn an_origin_that_is_not_allowed_gets_no_session() {
    let server = server_with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    let path = target("peerjs", "alice", "secret");
    for origin in ["Origin: https://evil.example\r\n", ""] {
        let mut raw = match Raw::upgrade(&server, &path, origin).await {
            Ok(raw) => raw,
            Err(_) => panic!("{origin} is refused without a message"),
        };
        let refusal = raw.read_message().await;
        assert_eq!(refusal["type"], "ERROR", "{refusal}");
        assert!(!refusal["payload"]["msg"].as_str().unwrap().is_empty());
        raw.read_close().await;
    }
    let allowed = "Origin: https://example.org\r\n";
    let mut raw = Raw::upgrade(&server, &path, allowed).await.ok().unwrap();
    assert_eq!(raw.read_message().await, json!({"type": "OPEN"}));
}

#[tokio::test]
async fn the_peers_of_a_key_are_listed_where_that_is_allowed() {
    let server = server_with(|config| config.serving.peerjs_discovery = true).await;
    let peers = async |path: &str| -> HashSet<String> {
        let answer = Raw::get(&server, path, "").await;
        assert_eq!(answer.status, 200, "{path}");
        let list: Vec<String> = serde_json::from_str(&answer.body).unwrap();
        let set: HashSet<String> = list.iter().cloned().collect();
        assert_eq!(set.len(), list.len(), "{list:?}");
        set
    };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(peers("/peerjs/peerjs/peers").await, names(&[]));
    let alice = open(&server, "alice", "a").await;
    let _bob = open(&server, "bob", "b").await;
    assert_eq!(
        peers("/peerjs/peerjs/peers").await,
        names(&["alice", "bob"])
    );
    alice.leave().await;
    assert_eq!(peers("/peerjs/peerjs/peers").await, names(&["bob"]));
    // Other keys have other peers.
    let _carol = open_in(&server, "tea", "carol", "c").await;
    assert_eq!(peers("/peerjs/tea/peers").await, names(&["carol"]));
    assert_eq!(peers("/peerjs/coffee/peers").await, names(&[]));
    assert_eq!(peers("/peerjs/peerjs/peers").await, names(&["bob"]));
}

#[tokio::test]
async fn the_peers_of_a_key_are_not_listed_by_default() {
    let server = server().await;
    let _alice = open(&server, "alice", "a").await;
    let answer = Raw::get(&server, "/peerjs/peerjs/peers", "").await;
    assert_eq!(answer.status, 401);
    assert!(!answer.body.contains("alice"), "{}", answer.body);
}

#[tokio::test]
async fn paths_outside_of_its_folder_are_not_the_dialects() {
    let server = server().await;
    for path in ["/tea/id", "/tea/peers"] {
        assert_eq!(Raw::get(&server, path, "").await.status, 404, "{path}");
    }
    // The page is still there.
    let page = Raw::get(&server, "/", "").await;
    assert!(page.head.contains("\r\ncontent-type: text/html"));
}

#[tokio::test]
async fn without_the_dialect_its_paths_do_not_exist() {
    let server = TestServer::start().await;
    for path in ["/peerjs", "/peerjs/id", "/peerjs/peerjs/id"] {
        assert_eq!(Raw::get(&server, path, "").await.status, 404, "{path}");
    }
    for path in [
        "/peerjs?key=peerjs&id=a&token=b",
        &target("peerjs", "a", "b"),
    ] {
        let rejected = Raw::upgrade(&server, path, "").await.err().unwrap();
        assert_eq!(rejected.status, 404, "{path}");
    }
}

/// Connects as a client with the default options does.
async fn open_by_default_path(server: &TestServer, id: &str, token: &str) -> Client {
    let path = format!("/peerjs?key=peerjs&id={id}&token={token}&version=1.5.5");
    let mut client = Client::connect(server.address, &path).await;
    client.id = id.into();
    client.expect_text(r#"{"type":"OPEN"}"#).await;
    client
}

#[tokio::test]
async fn clients_with_the_default_path_are_served() {
    let server = server_with(|config| config.serving.peerjs_discovery = true).await;
    let path = "/peerjs/id?ts=17642850000000.123&version=1.5.5";
    let answer = Raw::get(&server, path, "Origin: https://app.example\r\n").await;
    assert_eq!((answer.status, answer.body.len()), (200, 36), "{answer:?}");
    assert_eq!(readable_by(&answer), Some("https://app.example"));
    let mut alice = open_by_default_path(&server, &answer.body, "a").await;
    let mut bob = open_by_default_path(&server, "bob", "b").await;
    expect_acquainted(&mut alice, &mut bob).await;
    let peers = Raw::get(&server, "/peerjs/peers", "").await;
    assert_eq!(peers.status, 200);
    assert!(peers.body.contains(&alice.id), "{}", peers.body);
    let (kind, _) = refused(&server, "/peerjs?key=peerjs&id=bob").await;
    assert_eq!(kind, "ERROR");
}

#[tokio::test]
async fn the_default_path_does_not_list_the_peers_by_default() {
    let server = server().await;
    assert_eq!(Raw::get(&server, "/peerjs/peers", "").await.status, 401);
}

#[tokio::test]
async fn the_default_path_and_the_folder_lead_to_the_same_realm() {
    let server = server().await;
    let mut alice = open_by_default_path(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    expect_acquainted(&mut alice, &mut bob).await;
}

#[tokio::test]
async fn a_connection_without_id_token_or_key_is_refused() {
    let server = server().await;
    for query in [
        "",
        "?key=peerjs",
        "?key=peerjs&id=alice",
        "?key=peerjs&token=secret",
        "?id=alice&token=secret",
        "?key=peerjs&id=&token=secret",
        "?key=peerjs&id=alice&token=",
        "?key=&id=alice&token=secret",
    ] {
        let (kind, text) = refused(&server, &format!("/peerjs/peerjs{query}")).await;
        assert_eq!(kind, "ERROR", "{query}");
        let expected = "No id, token, or key supplied to websocket server";
        assert_eq!(text, expected, "{query}");
    }
}

#[tokio::test]
async fn an_id_has_the_form_that_the_client_allows() {
    let server = server().await;
    for id in [
        "a",
        "7",
        "Alice",
        "a-b_c%20d",
        "0b5ff0a2-ba2a-4a1b-8d34-a0c38f7a9f52",
    ] {
        open(&server, id, "secret").await;
    }
    for id in [
        "-a", "a-", "a--b", "_", "%20", "a.b", "a/b", "%C3%A9", "a%0A",
    ] {
        let (kind, text) = refused(&server, &target("peerjs", id, "secret")).await;
        assert_eq!(kind, "ERROR", "{id}");
        assert!(!text.is_empty(), "{id}");
    }
}

#[tokio::test]
async fn each_key_is_a_realm_of_its_own() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    // The same ids with other tokens.
    let mut other_alice = open_in(&server, "tea", "alice", "c").await;
    let mut other_bob = open_in(&server, "tea", "bob", "d").await;
    expect_acquainted(&mut alice, &mut bob).await;
    expect_acquainted(&mut other_alice, &mut other_bob).await;
    for client in [&mut alice, &mut bob, &mut other_alice, &mut other_bob] {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn over_the_session_limit_a_connection_is_refused_until_one_ends() {
    let server = server_with(|config| config.limits.max_sessions = Some(1)).await;
    let alice = open(&server, "alice", "a").await;
    let (kind, text) = refused(&server, &target("peerjs", "bob", "b")).await;
    assert_eq!(kind, "ERROR");
    assert_eq!(text, "Server has reached its concurrent user limit");
    alice.leave().await;
    // The task of a session releases its slot at its very end.
    eventually_async("a free slot", async || {
        let mut client = connect(&server, "peerjs", "bob", "b").await;
        client.next().await["type"] == "OPEN"
    })
    .await;
}

#[tokio::test]
async fn an_id_with_another_token_is_taken() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    assert_eq!(
        refused(&server, &target("peerjs", "alice", "x")).await,
        taken()
    );
    alice.expect_nothing().await;
    expect_acquainted(&mut bob, &mut alice).await;
}

#[tokio::test]
async fn messages_are_relayed_with_the_id_of_their_sender() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    let mut carol = open(&server, "carol", "c").await;
    for kind in ["OFFER", "ANSWER", "CANDIDATE", "LEAVE"] {
        let payload = json!({"connectionId": "dc_1", "sdp": {"type": "offer", "sdp": "v=0\r\n"}});
        alice.send(message(kind, "bob", payload.clone())).await;
        assert_eq!(bob.next().await, relayed(kind, "alice", "bob", payload));
    }
    // A client cannot speak for another.
    alice
        .send(json!({"type": "OFFER", "src": "carol", "dst": "bob", "payload": 1}))
        .await;
    assert_eq!(bob.next().await, relayed("OFFER", "alice", "bob", json!(1)));
    // Without a payload, the others are still there.
    alice.send(json!({"type": "LEAVE", "dst": "bob"})).await;
    let leave = bob.next().await;
    assert_eq!(
        (&leave["type"], &leave["src"], &leave["dst"]),
        (&json!("LEAVE"), &json!("alice"), &json!("bob"))
    );
    for client in [&mut alice, &mut bob, &mut carol] {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn payloads_are_relayed_byte_for_byte() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    let payloads = [
        r#"{"n": 1.0, "n": 12345678901234567890123, "text": "\u00e9 \/ é"}"#,
        "[ ]",
        r#""""#,
    ];
    for payload in payloads {
        let offer = format!(r#"{{"dst":"bob","payload":{payload},"type":"CANDIDATE"}}"#);
        alice.send_text(&offer).await;
    }
    for payload in payloads {
        let text = bob.next_text().await;
        assert!(text.contains(&format!(r#""payload":{payload}"#)), "{text}");
    }
}

#[tokio::test]
async fn messages_arrive_in_order() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    for number in 0..100 {
        alice.send(message("CANDIDATE", "bob", json!(number))).await;
    }
    for number in 0..100 {
        let candidate = relayed("CANDIDATE", "alice", "bob", json!(number));
        assert_eq!(bob.next().await, candidate);
    }
}

#[tokio::test]
async fn a_heartbeat_gets_no_answer() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    alice.send(json!({"type": "HEARTBEAT"})).await;
    alice.send(message("HEARTBEAT", "bob", json!(1))).await;
    alice.expect_nothing().await;
    bob.expect_nothing().await;
}

#[tokio::test]
async fn unknown_and_malformed_messages_are_ignored() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    for text in [
        "",
        "not JSON",
        "null",
        "[]",
        "7",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"OFFER","dst":7,"payload":1}"#,
        r#"{"type":"OFFER","payload":1}"#,
        r#"{"type":"OFFER","dst":null,"payload":1}"#,
        r#"{"type":"OFFER","dst":"bob","payload":1"#,
        r#"{"type":"SHOUT","dst":"bob","payload":1}"#,
        r#"{"type":"OPEN","dst":"bob","payload":1}"#,
        r#"{"type":"ERROR","dst":"bob","payload":{"msg":"no"}}"#,
        r#"{"type":"ID-TAKEN","dst":"bob","payload":{"msg":"no"}}"#,
        r#"{"type":"hello","receiver":"server"}"#,
    ] {
        alice.send_text(text).await;
        alice.expect_nothing().await;
    }
    bob.expect_nothing().await;
    expect_acquainted(&mut alice, &mut bob).await;
}

#[tokio::test]
async fn messages_wait_for_a_peer_that_comes_late() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut carol = open(&server, "carol", "c").await;
    alice.send(message("OFFER", "bob", json!(1))).await;
    for number in 2..5 {
        alice.send(message("CANDIDATE", "bob", json!(number))).await;
    }
    alice.expect_nothing().await;
    carol.send(message("OFFER", "bob", json!(5))).await;
    carol.expect_nothing().await;
    let mut bob = open(&server, "bob", "b").await;
    assert_eq!(bob.next().await, relayed("OFFER", "alice", "bob", json!(1)));
    for number in 2..5 {
        let candidate = relayed("CANDIDATE", "alice", "bob", json!(number));
        assert_eq!(bob.next().await, candidate);
    }
    assert_eq!(bob.next().await, relayed("OFFER", "carol", "bob", json!(5)));
    expect_acquainted(&mut bob, &mut alice).await;
    // What has been delivered does not expire, nor is it delivered again.
    bob.leave().await;
    open(&server, "bob", "b").await.expect_nothing().await;
}

#[tokio::test]
async fn messages_wait_in_their_own_realm() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    alice.send(message("OFFER", "bob", json!(1))).await;
    alice.expect_nothing().await;
    open_in(&server, "tea", "bob", "d")
        .await
        .expect_nothing()
        .await;
    let mut bob = open(&server, "bob", "b").await;
    assert_eq!(bob.next().await, relayed("OFFER", "alice", "bob", json!(1)));
}

#[tokio::test]
async fn a_message_expires_if_its_receiver_does_not_come() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut carol = open(&server, "carol", "c").await;
    let sent = Instant::now();
    alice.send(message("OFFER", "bob", json!(1))).await;
    alice.send(message("OFFER", "dave", json!(2))).await;
    carol.send(message("OFFER", "bob", json!(3))).await;
    // A client finds its candidates one by one.
    for number in 1..=4 {
        while sent.elapsed() < number * Duration::from_millis(50) {
            alice.expect_nothing().await;
        }
        alice.send(message("CANDIDATE", "bob", json!(number))).await;
    }
    // Once for each peer, however many messages waited.
    let mut expired = [alice.next().await, alice.next().await];
    assert!(sent.elapsed() >= EXPIRY, "{:?}", sent.elapsed());
    expired.sort_by_key(|message| message["src"].to_string());
    assert_eq!(expired, [expire("alice", "bob"), expire("alice", "dave")]);
    assert_eq!(carol.next().await, expire("carol", "bob"));
    alice.expect_nothing().await;
    carol.expect_nothing().await;
    // Too late.
    open(&server, "bob", "b").await.expect_nothing().await;
    alice.expect_nothing().await;
}

#[tokio::test]
async fn what_waits_of_one_peer_is_bounded_and_the_rest_expires_at_once() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut carol = open(&server, "carol", "c").await;
    let payload = |number: usize| json!(format!("{number} {}", "x".repeat(10_000)));
    let sent = Instant::now();
    for number in 0..100 {
        alice.send(message("OFFER", "bob", payload(number))).await;
    }
    assert_eq!(alice.next().await, expire("alice", "bob"));
    assert!(sent.elapsed() < EXPIRY, "{:?}", sent.elapsed());
    for message in alice.received().await {
        assert_eq!(message, expire("alice", "bob"));
    }
    // Others have their own share.
    carol.send(message("OFFER", "bob", json!("small"))).await;
    carol.expect_nothing().await;
    let mut bob = open(&server, "bob", "b").await;
    let mut received = bob.received().await;
    let small = relayed("OFFER", "carol", "bob", json!("small"));
    assert_eq!(received.pop(), Some(small));
    assert!((1..100).contains(&received.len()), "{}", received.len());
    for (number, offer) in received.into_iter().enumerate() {
        let expected = relayed("OFFER", "alice", "bob", payload(number));
        assert_eq!(offer, expected);
    }
    expect_acquainted(&mut alice, &mut bob).await;
}

#[tokio::test]
async fn leave_and_expire_do_not_wait() {
    let server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    let mut carol = open(&server, "carol", "c").await;
    alice.send(message("LEAVE", "bob", json!(1))).await;
    alice.send(message("EXPIRE", "bob", json!(2))).await;
    alice.expect_nothing().await;
    open(&server, "bob", "b").await.expect_nothing().await;
    // A message that waits expires after them; by then they would have expired, too.
    carol.send(message("OFFER", "dave", json!(3))).await;
    assert_eq!(carol.next().await, expire("carol", "dave"));
    alice.expect_nothing().await;
}

#[tokio::test]
async fn nobody_is_told_that_a_peer_has_gone() {
    let server = server_with(|config| config.liveness.resume_seconds = 1).await;
    let mut alice = open(&server, "alice", "a").await;
    let mut bob = open(&server, "bob", "b").await;
    let mut carol = open(&server, "carol", "c").await;
    expect_acquainted(&mut alice, &mut bob).await;
    expect_acquainted(&mut alice, &mut carol).await;
    bob.leave().await;
    drop(carol);
    eventually("the end of the lost session", || {
        server.anteroom.sessions() == 1
    })
    .await;
    alice.expect_nothing().await;
    // What is sent to them now waits for them.
    alice.send(message("CANDIDATE", "bob", json!(1))).await;
    assert_eq!(alice.next().await, expire("alice", "bob"));
}

#[tokio::test]
async fn an_id_is_free_at_once_after_a_close_frame() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    for token in ["a", "c", "a"] {
        let mut alice = open(&server, "alice", token).await;
        expect_acquainted(&mut alice, &mut bob).await;
        alice.leave().await;
    }
    bob.expect_nothing().await;
}

#[tokio::test]
async fn an_id_is_held_for_its_token_while_the_connection_is_lost() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    let mut alice = open(&server, "alice", "a").await;
    expect_acquainted(&mut alice, &mut bob).await;
    drop(alice);
    server.expect_suspended(1).await;
    assert_eq!(
        refused(&server, &target("peerjs", "alice", "x")).await,
        taken()
    );
    bob.send(message("OFFER", "alice", json!("wait"))).await;
    bob.expect_nothing().await;

    // The client waits for `OPEN` again, and then gets what was sent meanwhile.
    let mut alice = open(&server, "alice", "a").await;
    let offer = relayed("OFFER", "bob", "alice", json!("wait"));
    assert_eq!(alice.next().await, offer);
    expect_acquainted(&mut alice, &mut bob).await;
    server.expect_suspended(0).await;
}

#[tokio::test]
async fn a_message_to_a_peer_without_a_connection_expires_while_its_id_is_held() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    drop(open(&server, "alice", "a").await);
    server.expect_suspended(1).await;
    bob.send(message("OFFER", "alice", json!("wait"))).await;
    bob.send(message("LEAVE", "alice", json!("do not wait")))
        .await;
    assert_eq!(bob.next().await, expire("bob", "alice"));
    bob.expect_nothing().await;
    assert_eq!(
        refused(&server, &target("peerjs", "alice", "x")).await,
        taken()
    );
    let mut alice = open(&server, "alice", "a").await;
    alice.expect_nothing().await;
    expect_acquainted(&mut alice, &mut bob).await;
}

#[tokio::test]
async fn an_id_whose_peer_does_not_come_back_is_free_again() {
    let server = server_with(|config| config.liveness.resume_seconds = 1).await;
    let mut bob = open(&server, "bob", "b").await;
    drop(open(&server, "alice", "a").await);
    server.expect_suspended(1).await;
    bob.send(message("OFFER", "alice", json!("wait"))).await;
    // The peer's session ends first.
    assert_eq!(bob.next().await, expire("bob", "alice"));
    open(&server, "alice", "x").await.expect_nothing().await;
}

#[tokio::test]
async fn the_same_id_with_the_same_token_takes_the_connection_over() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    let mut first = open(&server, "alice", "a").await;
    let mut second = open(&server, "alice", "a").await;
    first.expect_end().await;
    // The end of the first connection does not end the session.
    drop(first);
    expect_acquainted(&mut second, &mut bob).await;
    assert_eq!(
        refused(&server, &target("peerjs", "alice", "x")).await,
        taken()
    );
    second.expect_nothing().await;
    bob.expect_nothing().await;
}

#[tokio::test]
async fn of_peers_that_claim_an_id_at_once_one_gets_it() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    let claims = (0..20).map(|token| {
        let (server, token) = (&server, token.to_string());
        async move {
            let mut client = connect(server, "peerjs", "alice", &token).await;
            let first = client.next().await;
            (client, first)
        }
    });
    let mut winners = Vec::new();
    for (mut client, first) in join_all(claims).await {
        match first["type"].as_str().unwrap() {
            "OPEN" => winners.push(client),
            other => {
                assert_eq!(other, "ID-TAKEN");
                client.expect_end().await;
            }
        }
    }
    assert_eq!(winners.len(), 1);
    expect_acquainted(&mut winners[0], &mut bob).await;
}

#[tokio::test]
async fn of_connections_of_one_peer_at_once_one_stays() {
    let server = server().await;
    let mut bob = open(&server, "bob", "b").await;
    let connections = (0..20).map(|_| connect(&server, "peerjs", "alice", "a"));
    let clients = join_all(connections).await;
    eventually("one session of each", || server.anteroom.sessions() == 2).await;
    bob.send(message("OFFER", "alice", json!(1))).await;
    let mut receivers = Vec::new();
    for mut client in clients {
        // The others are closed, before or after they were open.
        while let Ok(message) = client.next_or_close().await {
            if message["type"] == "OPEN" {
                continue;
            }
            assert_eq!(message, relayed("OFFER", "bob", "alice", json!(1)));
            receivers.push(client);
            break;
        }
    }
    assert_eq!(receivers.len(), 1);
    expect_acquainted(&mut receivers[0], &mut bob).await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_loses_its_id() {
    let server = server_with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
        config.liveness.resume_seconds = 1;
    })
    .await;
    let mut silent = Raw::connect(&server).await;
    silent
        .write(handshake(&target("peerjs", "alice", "a")))
        .await;
    silent.read_head().await;
    assert_eq!(silent.read_message().await, json!({"type": "OPEN"}));
    silent.write(text(r#"{"type":"HEARTBEAT"}"#)).await;
    assert_eq!(
        refused(&server, &target("peerjs", "alice", "x")).await,
        taken()
    );
    silent.read_close().await;
    eventually_async("the free id", async || {
        let mut client = connect(&server, "peerjs", "alice", "x").await;
        client.next().await["type"] == "OPEN"
    })
    .await;
}

#[tokio::test]
async fn a_server_that_stops_closes_all_connections_and_waits_for_nobody() {
    let mut server = server().await;
    let mut alice = open(&server, "alice", "a").await;
    drop(open(&server, "bob", "b").await);
    server.expect_suspended(1).await;
    alice.send(message("OFFER", "carol", json!(1))).await;
    alice.expect_nothing().await;
    server.stop();
    assert_eq!(alice.expect_close().await.0, 1012);
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
    async fn the_token_of_the_client_is_verified() {
        let file = File::new("peerjs", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let expired = sign(json!({"exp": 1}));
        for token in ["random123", "", &expired] {
            let (kind, text) = refused(&server, &target("peerjs", "alice", token)).await;
            assert_eq!(kind, "ERROR", "{token}");
            let beginning = match token {
                "" => "No id, token, or key supplied to websocket server",
                _ => "Invalid token provided",
            };
            assert!(text.starts_with(beginning), "{token}: {text}");
        }
        let [a, b] = ["a", "b"].map(|sub| sign(json!({"sub": sub})));
        let mut alice = open(&server, "alice", &a).await;
        let mut bob = open(&server, "bob", &b).await;
        expect_acquainted(&mut alice, &mut bob).await;
    }

    #[tokio::test]
    async fn an_id_is_held_for_the_user_of_its_token() {
        let file = File::new("peerjs-user", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let token = |sub: &str, minutes: i64| {
            let exp = in_seconds(60 * minutes);
            sign(json!({"sub": sub, "exp": exp}))
        };
        let mut bob = open(&server, "bob", &token("b", 1)).await;
        let alice = open(&server, "alice", &token("a", 1)).await;
        drop(alice);
        server.expect_suspended(1).await;
        let other = refused(&server, &target("peerjs", "alice", &token("b", 1))).await;
        assert_eq!(other, taken());
        // The user comes back with a newer token.
        let mut alice = open(&server, "alice", &token("a", 2)).await;
        expect_acquainted(&mut alice, &mut bob).await;
    }

    #[tokio::test]
    async fn a_peer_whose_token_expires_is_closed_and_its_id_is_free() {
        let file = File::new("peerjs-expiry", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let token = sign(json!({"sub": "a", "exp": in_seconds(2)}));
        let mut alice = open(&server, "alice", &token).await;
        let (code, reason) = alice.expect_close().await;
        assert_eq!(code, 1008, "{reason}");
        let token = sign(json!({"sub": "b"}));
        eventually_async("the free id", async || {
            let mut client = connect(&server, "peerjs", "alice", &token).await;
            client.next().await["type"] == "OPEN"
        })
        .await;
    }

    #[tokio::test]
    async fn the_room_of_a_token_is_the_key_of_the_peer() {
        let file = File::new("peerjs-room", SECRET);
        let server = server_with(|config| with_secret(config, &file)).await;
        let token = sign(json!({"room": "tea"}));
        open_in(&server, "tea", "alice", &token).await;
        let (kind, text) = refused(&server, &target("peerjs", "alice", &token)).await;
        assert_eq!(kind, "ERROR");
        assert_eq!(text, "the token does not admit to this room");
    }
}
