//! The wire format of matchbox, spoken by a plain WebSocket client. `../matchbox` tests the same with
//! matchbox's own client.

use std::collections::HashSet;

use anteroom::{Config, config::Dialect};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Client, Raw, TestServer, eventually_async};

/// A server with the dialect, and with some options changed.
async fn server_with(change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.serving.dialect = vec![Dialect::Matchbox];
        change(config);
    })
    .await
}

/// A server with the dialect.
async fn server() -> TestServer {
    server_with(|_| {}).await
}

/// Connects to a room, whose name may have a query, and learns the id. A newcomer is not told who else is
/// there.
async fn join(server: &TestServer, room: &str) -> Client {
    let mut client = Client::connect(server.address, &format!("/matchbox/{room}")).await;
    let first = client.next().await;
    client.id = first["IdAssigned"].as_str().unwrap().into();
    assert_eq!(first, json!({"IdAssigned": client.id}));
    client.expect_nothing().await;
    client
}

/// Tells those who are in the room already of a newcomer.
fn new_peer(peer: &Client) -> Value {
    json!({"NewPeer": peer.id})
}

/// A message to one peer.
fn signal_to(receiver: &str, data: Value) -> Value {
    json!({"Signal": {"receiver": receiver, "data": data}})
}

/// A message as its receiver gets it.
fn signal_from(sender: &str, data: Value) -> Value {
    json!({"Signal": {"sender": sender, "data": data}})
}

/// Two peers can reach each other.
async fn expect_acquainted(alice: &mut Client, bob: &mut Client) {
    alice.send(signal_to(&bob.id, json!("hello"))).await;
    assert_eq!(bob.next().await, signal_from(&alice.id, json!("hello")));
    bob.send(signal_to(&alice.id, json!("hi"))).await;
    assert_eq!(alice.next().await, signal_from(&bob.id, json!("hi")));
}

/// Three peers in the room `tea`, who have been told of each other.
async fn acquainted(server: &TestServer) -> [Client; 3] {
    let mut alice = join(server, "tea").await;
    let mut bob = join(server, "tea").await;
    assert_eq!(alice.next().await, new_peer(&bob));
    let carol = join(server, "tea").await;
    assert_eq!(alice.next().await, new_peer(&carol));
    assert_eq!(bob.next().await, new_peer(&carol));
    [alice, bob, carol]
}

/// Nothing else has been sent to these clients.
async fn expect_nothing<const N: usize>(clients: [&mut Client; N]) {
    for client in clients {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn the_first_message_assigns_an_id() {
    let server = server().await;
    let mut alice = Client::connect(server.address, "/matchbox/tea").await;
    let text = alice.next_text().await;
    let id = text.strip_prefix(r#"{"IdAssigned":""#).unwrap();
    let id = id.strip_suffix(r#""}"#).unwrap();
    assert_eq!(id.len(), 36, "{text}");
    let bob = join(&server, "tea").await;
    assert_ne!(bob.id, id);
    assert_eq!(alice.next().await, new_peer(&bob));
}

#[tokio::test]
async fn those_who_are_there_are_told_of_a_newcomer() {
    let server = server().await;
    let [mut alice, mut bob, mut carol] = acquainted(&server).await;
    expect_nothing([&mut alice, &mut bob, &mut carol]).await;
}

#[tokio::test]
async fn a_signal_goes_to_its_receiver_only() {
    let server = server().await;
    let [mut alice, mut bob, mut carol] = acquainted(&server).await;
    for data in [
        json!({"Offer": "v=0\r\n"}),
        json!({"IceCandidate": "{\"candidate\":\"\"}"}),
        json!("text"),
        json!(null),
        json!([1]),
    ] {
        bob.send(signal_to(&carol.id, data.clone())).await;
        assert_eq!(carol.next().await, signal_from(&bob.id, data));
    }
    expect_acquainted(&mut alice, &mut bob).await;
    expect_acquainted(&mut alice, &mut carol).await;
    expect_nothing([&mut alice, &mut bob, &mut carol]).await;
}

#[tokio::test]
async fn the_data_of_signals_is_relayed_byte_for_byte_and_in_order() {
    let server = server().await;
    let mut alice = join(&server, "tea").await;
    let mut bob = join(&server, "tea").await;
    let data = [
        r#"{"n": 1.0, "n": 12345678901234567890123, "text": "\u00e9 \/ é"}"#,
        "[ ]",
        r#""""#,
    ];
    for data in data {
        let text = format!(r#"{{"Signal":{{"receiver":"{}","data":{data}}}}}"#, bob.id);
        alice.send_text(&text).await;
        // The fields of an object have no order.
        let text = format!(
            r#" {{ "Signal" : {{"data":{data},"receiver":"{}"}}}}"#,
            bob.id
        );
        alice.send_text(&text).await;
    }
    for data in data {
        for _ in 0..2 {
            let text = bob.next_text().await;
            assert!(text.contains(&format!(r#""data":{data}"#)), "{text}");
        }
    }
    for number in 0..100 {
        alice.send(signal_to(&bob.id, json!(number))).await;
    }
    for number in 0..100 {
        assert_eq!(bob.next().await, signal_from(&alice.id, json!(number)));
    }
}

#[tokio::test]
async fn those_who_stay_are_told_who_has_left() {
    let server = server().await;
    let [mut alice, bob, carol] = acquainted(&server).await;
    let mut dave = join(&server, "tea").await;
    assert_eq!(alice.next().await, new_peer(&dave));
    let id = bob.id.clone();
    bob.leave().await;
    assert_eq!(alice.next().await, json!({"PeerLeft": id}));
    assert_eq!(dave.next().await, json!({"PeerLeft": id}));
    // The client cannot resume, so nobody waits for it.
    let id = carol.id.clone();
    drop(carol);
    assert_eq!(alice.next().await, json!({"PeerLeft": id}));
    assert_eq!(dave.next().await, json!({"PeerLeft": id}));
    expect_acquainted(&mut alice, &mut dave).await;
}

#[tokio::test]
async fn rooms_are_apart() {
    let server = server().await;
    let mut alice = join(&server, "tea").await;
    let mut bob = join(&server, "coffee").await;
    expect_nothing([&mut alice, &mut bob]).await;
    bob.leave().await;
    expect_nothing([&mut alice]).await;
}

#[tokio::test]
async fn a_signal_does_not_leave_its_room_or_group() {
    let server = server().await;
    for (here, there) in [
        ("tea", "coffee"),
        ("tea", "tea?next=1"),
        ("tea?next=1", "tea?next=1"),
    ] {
        let mut alice = join(&server, here).await;
        let mut bob = join(&server, there).await;
        // Even if the id is known.
        alice.send(signal_to(&bob.id, json!(1))).await;
        expect_nothing([&mut alice, &mut bob]).await;
    }
}

#[tokio::test]
async fn rooms_of_other_wire_formats_are_apart() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = join(&server, "tea").await;
    bob.send(signal_to(&alice.id, json!(1))).await;
    for (receiver, error) in [("all", "empty_room"), (&*bob.id, "unknown_receiver")] {
        alice
            .send(json!({"type": "greet", "receiver": receiver, "data": 2}))
            .await;
        alice.expect_error(error).await;
    }
    expect_nothing([&mut bob]).await;
    bob.leave().await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn next_makes_pairs_in_the_order_of_arrival() {
    let server = server().await;
    let mut alice = join(&server, "tea?next=2").await;
    let mut bob = join(&server, "tea?next=2").await;
    let mut carol = join(&server, "tea?next=2").await;
    let mut dave = join(&server, "tea?next=2").await;
    assert_eq!(alice.next().await, new_peer(&bob));
    assert_eq!(carol.next().await, new_peer(&dave));
    expect_nothing([&mut alice, &mut bob, &mut carol, &mut dave]).await;
    expect_acquainted(&mut alice, &mut bob).await;
    expect_acquainted(&mut carol, &mut dave).await;
}

#[tokio::test]
async fn next_makes_groups_of_any_size() {
    let server = server().await;
    for size in [1, 3, 5] {
        let room = format!("tea?next={size}");
        let mut groups = Vec::new();
        for _ in 0..2 {
            let mut group: Vec<Client> = Vec::new();
            for _ in 0..size {
                let newcomer = join(&server, &room).await;
                for member in &mut group {
                    assert_eq!(member.next().await, new_peer(&newcomer));
                }
                group.push(newcomer);
            }
            groups.push(group);
        }
        for member in groups.iter_mut().flatten() {
            member.expect_nothing().await;
        }
    }
}

#[tokio::test]
async fn the_same_name_with_another_next_is_another_room() {
    let server = server().await;
    let mut pair = join(&server, "tea?next=2").await;
    let mut triple = join(&server, "tea?next=3").await;
    let mut plain = join(&server, "tea").await;
    let mut other = join(&server, "coffee?next=2").await;
    expect_nothing([&mut pair, &mut triple, &mut plain, &mut other]).await;
    for (room, waiting) in [
        ("tea?next=2", &mut pair),
        ("tea?next=3", &mut triple),
        ("tea", &mut plain),
        ("coffee?next=2", &mut other),
    ] {
        let newcomer = join(&server, room).await;
        assert_eq!(waiting.next().await, new_peer(&newcomer), "{room}");
        waiting.expect_nothing().await;
    }
}

#[tokio::test]
async fn a_place_in_a_group_that_is_not_complete_is_free_when_its_peer_leaves() {
    let server = server().await;
    let mut alice = join(&server, "tea?next=3").await;
    let bob = join(&server, "tea?next=3").await;
    assert_eq!(alice.next().await, new_peer(&bob));
    let id = bob.id.clone();
    bob.leave().await;
    assert_eq!(alice.next().await, json!({"PeerLeft": id}));
    let mut carol = join(&server, "tea?next=3").await;
    let mut dave = join(&server, "tea?next=3").await;
    let mut erin = join(&server, "tea?next=3").await;
    assert_eq!(alice.next().await, new_peer(&carol));
    assert_eq!(alice.next().await, new_peer(&dave));
    assert_eq!(carol.next().await, new_peer(&dave));
    expect_nothing([&mut alice, &mut carol, &mut dave, &mut erin]).await;
}

#[tokio::test]
async fn a_complete_group_hears_of_its_own_members_only() {
    let server = server().await;
    let alice = join(&server, "tea?next=2").await;
    let mut bob = join(&server, "tea?next=2").await;
    let mut carol = join(&server, "tea?next=2").await;
    let id = alice.id.clone();
    alice.leave().await;
    assert_eq!(bob.next().await, json!({"PeerLeft": id}));
    // The next peer completes the group that waits, not the one that has lost a member.
    let dave = join(&server, "tea?next=2").await;
    assert_eq!(carol.next().await, new_peer(&dave));
    let mut erin = join(&server, "tea?next=2").await;
    let id = dave.id.clone();
    drop(dave);
    assert_eq!(carol.next().await, json!({"PeerLeft": id}));
    // The last member of a group leaves nobody behind.
    bob.leave().await;
    expect_nothing([&mut carol, &mut erin]).await;
}

#[tokio::test]
async fn peers_that_come_at_once_are_each_in_one_pair() {
    const PEERS: usize = 40;
    let server = server().await;
    let mut peers = join_all((0..PEERS).map(|_| async {
        let mut client = Client::connect(server.address, "/matchbox/tea?next=2").await;
        client.id = client.next().await["IdAssigned"].as_str().unwrap().into();
        client
    }))
    .await;
    // All have joined when all are in a pair.
    let mut told: Vec<Vec<Value>> = vec![Vec::new(); PEERS];
    eventually_async("all pairs", async || {
        for (peer, told) in peers.iter_mut().zip(&mut told) {
            told.extend(peer.received().await);
        }
        told.iter().flatten().count() >= PEERS / 2
    })
    .await;
    let mut seen = HashSet::new();
    for (peer, told) in peers.iter().zip(&told) {
        if let [new] = &told[..] {
            assert!(seen.insert(peer.id.clone()), "{told:?}");
            let partner = new["NewPeer"].as_str().unwrap().to_owned();
            assert!(seen.insert(partner), "{told:?}");
        } else {
            assert!(told.is_empty(), "{told:?}");
        }
    }
    assert_eq!(seen.len(), PEERS);
}

#[tokio::test]
async fn keeping_the_connection_alive_gets_no_answer() {
    let server = server().await;
    let mut alice = join(&server, "tea").await;
    let mut bob = join(&server, "tea").await;
    assert_eq!(alice.next().await, new_peer(&bob));
    bob.send(json!("KeepAlive")).await;
    expect_nothing([&mut bob, &mut alice]).await;
}

#[tokio::test]
async fn wrong_input_is_ignored() {
    let server = server().await;
    let mut alice = join(&server, "tea").await;
    let mut bob = join(&server, "tea").await;
    assert_eq!(alice.next().await, new_peer(&bob));
    let broken = format!(r#"{{"Signal":{{"receiver":"{}","data":1}}"#, bob.id);
    let no_data = format!(r#"{{"Signal":{{"receiver":"{}"}}}}"#, bob.id);
    let forged = format!(r#"{{"NewPeer":"{}"}}"#, bob.id);
    for text in [
        "",
        "not JSON",
        "null",
        "[]",
        "7",
        "{}",
        r#""Shout""#,
        r#"{"Signal":{}}"#,
        r#"{"Signal":{"receiver":"nobody","data":1}}"#,
        r#"{"Signal":{"receiver":7,"data":1}}"#,
        r#"{"Signal":{"receiver":"all","data":1}}"#,
        r#"{"Signal":{"receiver":"server","data":1}}"#,
        // Nobody has this id.
        r#"{"Signal":{"receiver":"6f1c0f0e-97ad-4dbd-a0f3-53dc3a6b3a4e","data":1}}"#,
        r#"{"type":"hello","receiver":"server"}"#,
        &broken,
        &no_data,
        &forged,
    ] {
        alice.send_text(text).await;
        alice.expect_nothing().await;
    }
    expect_nothing([&mut bob]).await;
    expect_acquainted(&mut alice, &mut bob).await;
}

#[tokio::test]
async fn a_group_has_at_least_one_peer() {
    let server = server().await;
    for next in ["0", "-1", "two", "4294967296", "1.5"] {
        let path = format!("/matchbox/tea?next={next}");
        let rejected = Raw::upgrade(&server, &path, "").await;
        assert_eq!(rejected.err().unwrap().status, 400, "{next}");
    }
}

#[tokio::test]
async fn a_url_without_a_name_leads_to_a_room() {
    let server = server().await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(server.address, "/matchbox").await;
        client.id = client.next().await["IdAssigned"].as_str().unwrap().into();
        clients.push(client);
    }
    let [alice, bob] = &mut clients[..] else {
        unreachable!("there are two")
    };
    assert_eq!(alice.next().await, new_peer(bob));
    expect_acquainted(alice, bob).await;
}

#[tokio::test]
async fn a_server_that_stops_closes_all_connections() {
    let mut server = server().await;
    // One waits for the second of a pair, and two are one.
    let mut clients = [
        join(&server, "tea").await,
        join(&server, "coffee?next=2").await,
        join(&server, "milk?next=2").await,
        join(&server, "milk?next=2").await,
    ];
    server.stop();
    let closing = clients.each_mut().map(Client::expect_close);
    for (code, reason) in join_all(closing).await {
        assert_eq!(code, 1012, "{reason}");
    }
    server.stopped().await;
}

#[tokio::test]
async fn without_the_dialect_its_paths_do_not_exist() {
    let server = TestServer::start().await;
    let rejected = Raw::upgrade(&server, "/matchbox/tea", "").await;
    assert_eq!(rejected.err().unwrap().status, 404);
}

#[tokio::test]
async fn only_allowed_origins_can_connect() {
    let server = server_with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    for origin in ["Origin: https://evil.example\r\n", ""] {
        let rejected = Raw::upgrade(&server, "/matchbox/tea", origin).await;
        assert_eq!(rejected.err().unwrap().status, 403, "{origin}");
    }
    let allowed = "Origin: https://example.org\r\n";
    assert!(
        Raw::upgrade(&server, "/matchbox/tea", allowed)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn over_the_session_limit_a_connection_is_rejected_until_one_ends() {
    let server = server_with(|config| config.limits.max_sessions = Some(1)).await;
    let alice = join(&server, "tea").await;
    let rejected = Raw::upgrade(&server, "/matchbox/tea", "").await;
    assert_eq!(rejected.err().unwrap().status, 503);
    alice.leave().await;
    eventually_async("a free slot", async || {
        Raw::upgrade(&server, "/matchbox/tea", "").await.is_ok()
    })
    .await;
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
#[tokio::test]
async fn a_token_in_the_query_is_verified() {
    use crate::{
        support::File,
        tokens::{SECRET, sign, with_secret},
    };

    let file = File::new("matchbox", SECRET);
    let server = server_with(|config| with_secret(config, &file)).await;
    for query in ["", "?next=2", "?token=none", "?next=2&token=none"] {
        let rejected = Raw::upgrade(&server, &format!("/matchbox/tea{query}"), "").await;
        assert_eq!(rejected.err().unwrap().status, 401, "{query}");
    }
    let token = sign(json!({"room": "tea"}));
    let mut alice = join(&server, &format!("tea?token={token}")).await;
    let mut pair = join(&server, &format!("tea?next=2&token={token}")).await;
    let bob = join(&server, &format!("tea?token={token}")).await;
    let partner = join(&server, &format!("tea?token={token}&next=2")).await;
    assert_eq!(alice.next().await, new_peer(&bob));
    assert_eq!(pair.next().await, new_peer(&partner));
    // The token admits to its room only.
    let path = format!("/matchbox/coffee?token={token}");
    let rejected = Raw::upgrade(&server, &path, "").await;
    assert_eq!(rejected.err().unwrap().status, 403);
}
