//! The client for Rust programs, `anteroom::client`: it loses no message when its connection is lost, and says so when
//! it has.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use anteroom::client::{
    Connect, Disconnect, Event, Events, Frame, Join, Message, Opened, Peer, Room, RoomUrl,
    SendError,
};
use futures_util::{SinkExt, Stream, StreamExt};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite};

use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Client, DEADLINE, Folder, TestServer, eventually, within_deadline},
};
#[cfg(feature = "tokens")]
use crate::{
    support::File,
    tokens::{SECRET, sign, with_secret},
};

fn url(address: SocketAddr, room: &str) -> RoomUrl {
    format!("ws://{address}/room/{room}").parse().unwrap()
}

/// Joins with short delays.
fn join(address: SocketAddr, room: &str) -> Join {
    let delays = (Duration::from_millis(1), Duration::from_millis(20));
    Join::room(url(address, room)).retry_delays(delays.0, delays.1)
}

async fn next(events: &mut Events) -> Event {
    within_deadline("an event", events.next()).await.unwrap()
}

async fn expect_opened(events: &mut Events) -> Opened {
    match next(events).await {
        Event::Opened(opened) => opened,
        other => panic!("expected an open room, got {other:?}"),
    }
}

async fn expect_joined(events: &mut Events) -> Peer {
    match next(events).await {
        Event::Joined(peer) => peer,
        other => panic!("expected a peer, got {other:?}"),
    }
}

async fn expect_left(events: &mut Events, id: &str) {
    match next(events).await {
        Event::Left { id: left } => assert_eq!(left, id),
        other => panic!("expected a peer to leave, got {other:?}"),
    }
}

async fn expect_message(events: &mut Events) -> Message {
    match next(events).await {
        Event::Message(message) => message,
        other => panic!("expected a message, got {other:?}"),
    }
}

async fn expect_reconnecting(events: &mut Events) -> (Duration, Disconnect) {
    match next(events).await {
        Event::Reconnecting { delay, why } => (delay, why),
        other => panic!("expected a lost connection, got {other:?}"),
    }
}

async fn expect_closed(events: &mut Events) -> Disconnect {
    let why = match next(events).await {
        Event::Closed(why) => why,
        other => panic!("expected a closed room, got {other:?}"),
    };
    assert!(within_deadline("the end", events.next()).await.is_none());
    why
}

/// Skips events until the room is open again.
async fn reopened(events: &mut Events) -> Opened {
    loop {
        match next(events).await {
            Event::Opened(opened) => return opened,
            Event::Reconnecting { .. } => {}
            other => panic!("expected an open room, got {other:?}"),
        }
    }
}

/// Joins and waits until the room is open.
async fn enter(address: SocketAddr, room: &str) -> (Room, Events, Opened) {
    let (room, mut events) = join(address, room).open();
    let opened = expect_opened(&mut events).await;
    (room, events, opened)
}

async fn delivered<T>(answer: impl Future<Output = Result<T, SendError>>) -> T {
    within_deadline("an answer", answer).await.unwrap()
}

#[tokio::test]
async fn a_room_tells_who_comes_and_goes_and_what_they_say() {
    let server = TestServer::start().await;
    let (alice, mut events, opened) = enter(server.address, "tea").await;
    assert_eq!((&*opened.room, opened.resumed), ("tea", false));
    assert!(opened.peers.is_empty() && opened.lost.is_empty());
    assert_eq!(opened.limits.message_bytes, Some(65_536));

    let mut bob = Client::join(&server, "tea").await;
    assert_eq!(expect_joined(&mut events).await.id, bob.id);
    // A message of type `new` from a session that is known announces nothing.
    bob.send(json!({"type": "new", "receiver": "all", "data": 1}))
        .await;
    assert_eq!(expect_message(&mut events).await.kind, "new");
    bob.send(json!({"type": "state", "receiver": "server", "data": {"name": "Bob"}}))
        .await;
    match next(&mut events).await {
        Event::State { id, state } => {
            assert_eq!((&*id, state.get()), (&*bob.id, r#"{"name":"Bob"}"#))
        }
        other => panic!("expected a state, got {other:?}"),
    }
    bob.send_text(&format!(
        r#"{{"type":"x","receiver":"{}","data":[1.0, 2]}}"#,
        opened.id
    ))
    .await;
    let message = expect_message(&mut events).await;
    assert_eq!(message.data.get(), "[1.0, 2]");
    assert_eq!((&message.sender, &message.receiver), (&bob.id, &opened.id));
    assert_eq!(message.data::<Vec<f64>>().unwrap(), [1.0, 2.0]);

    alice.send("all", "hello", "world").unwrap();
    let hello = bob.next().await;
    assert_eq!(
        (&hello["type"], &hello["data"]),
        (&json!("hello"), &json!("world"))
    );
    let id = bob.id.clone();
    bob.leave().await;
    expect_left(&mut events, &id).await;
    alice.leave().await;
    assert_eq!(expect_closed(&mut events).await, Disconnect::Left);
    let late = alice.send("all", "hello", "world");
    assert_eq!(late, Err(SendError::Closed(Disconnect::Left)));
}

/// JSON that is no `Value`: a number that is too large, half of a surrogate pair, deeply nested arrays.
#[tokio::test]
async fn a_state_that_is_no_value_keeps_nobody_out() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let (_alice, mut events, opened) = enter(server.address, "tea").await;
    bob.expect_new(&opened.id).await;
    let nested = "[".repeat(200) + &"]".repeat(200);
    for state in ["1e999", r#""\ud800""#, &nested] {
        let text = format!(r#"{{"type":"state","receiver":"server","data":{state}}}"#);
        bob.send_text(&text).await;
        match next(&mut events).await {
            Event::State { state: told, .. } => assert_eq!(told.get(), state),
            other => panic!("expected a state, got {other:?}"),
        }
        let (carol, _events, opened) = enter(server.address, "tea").await;
        let peer = opened.peers.iter().find(|peer| peer.id == bob.id).unwrap();
        assert_eq!(peer.state.get(), state);
        expect_joined(&mut events).await;
        carol.leave().await;
        expect_left(&mut events, &opened.id).await;
        bob.expect_new(&opened.id).await;
        bob.expect_left(&opened.id).await;
    }
}

#[tokio::test]
async fn receipts_count_receivers_and_errors_come_back() {
    let server = TestServer::start().await;
    let (alice, mut events, _) = enter(server.address, "tea").await;
    let lonely = within_deadline("the error", alice.send_with_receipt("all", "x", ())).await;
    match lonely {
        Err(SendError::Rejected { code, .. }) => assert_eq!(code, "empty_room"),
        other => panic!("expected an error, got {other:?}"),
    }
    let _bob = Client::join(&server, "tea").await;
    let _carol = Client::join(&server, "tea").await;
    expect_joined(&mut events).await;
    expect_joined(&mut events).await;
    assert_eq!(delivered(alice.send_with_receipt("all", "x", ())).await, 2);

    // Without a receipt, the error is an event.
    alice.send("nobody", "x", ()).unwrap();
    alice
        .send_raw(r#"{"type":"x","receiver":"nobody","ref":"mine"}"#)
        .unwrap();
    alice.send_raw("{").unwrap();
    for (expected, expected_ref) in [
        ("unknown_receiver", json!(null)),
        ("unknown_receiver", json!("mine")),
        ("bad_message", json!(null)),
    ] {
        match next(&mut events).await {
            Event::Error {
                code, reference, ..
            } => {
                assert_eq!((&*code, reference), (expected, expected_ref));
            }
            other => panic!("expected an error, got {other:?}"),
        }
    }
    let long = "x".repeat(65_536);
    let result = alice.send("all", "x", long);
    assert!(
        matches!(result, Err(SendError::TooLarge { limit: 65_536, .. })),
        "{result:?}"
    );
}

#[tokio::test]
async fn the_server_answers_requests_in_order() {
    let server = TestServer::with(|config| {
        config.history.rooms = vec!["tea".into()];
    })
    .await;
    let (alice, mut events, opened) = enter(server.address, "tea").await;
    assert!(opened.history.is_some());
    for number in 0..3 {
        delivered(alice.send_with_receipt("all", "x", number)).await;
    }
    // Raw requests have no answer but an event.
    alice
        .send_raw(r#"{"type":"ping","receiver":"server","data":"raw"}"#)
        .unwrap();
    let answers = [
        alice.ask("ping", 1),
        alice.ask("ping", [2]),
        alice.ask("address", ()),
    ];
    let mut texts = Vec::new();
    for answer in answers {
        texts.push(delivered(answer).await.get().to_owned());
    }
    assert_eq!(texts, ["1", "[2]", r#"{"ip":"127.0.0.1"}"#]);
    assert_eq!(expect_message(&mut events).await.data.get(), r#""raw""#);
    assert!(
        delivered(alice.history(None, None))
            .await
            .messages
            .is_empty()
    );

    let (bob, mut events, _) = enter(server.address, "tea").await;
    let page = delivered(bob.history(Some(2), None)).await;
    let data: Vec<_> = page
        .messages
        .iter()
        .map(|it| it.message.data.get())
        .collect();
    assert_eq!((data, page.more), (vec!["1", "2"], true));
    let page = delivered(bob.history(None, Some(page.messages[0].number))).await;
    assert_eq!((page.messages.len(), page.more), (1, false));
    assert_eq!(page.messages[0].message.sender, opened.id);
    match within_deadline("the error", bob.ask("nonsense", ())).await {
        Err(SendError::Rejected { code, .. }) => assert_eq!(code, "unknown_request"),
        other => panic!("expected an error, got {other:?}"),
    }
    bob.leave().await;
    assert_eq!(expect_closed(&mut events).await, Disconnect::Left);
}

#[tokio::test]
async fn a_lost_connection_is_resumed_and_nothing_is_missed() {
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, mut events, opened) = enter(proxy.address, "tea").await;
    bob.expect_new(&opened.id).await;
    delivered(alice.set_state("away")).await;
    bob.expect_state(&opened.id, json!("away")).await;

    proxy.refuse(true);
    proxy.fail(Failure::Reset);
    server.expect_suspended(1).await;
    let receipt = alice.send_with_receipt("all", "x", "from Alice");
    bob.note(&opened.id, 1).await;
    bob.note("all", 2).await;
    proxy.refuse(false);
    let again = reopened(&mut events).await;
    assert!(again.resumed && again.peers.is_empty() && again.id == opened.id);
    assert_eq!(expect_message(&mut events).await.data.get(), "1");
    assert_eq!(expect_message(&mut events).await.data.get(), "2");
    assert_eq!(delivered(receipt).await, 1);
    assert_eq!(bob.next().await["data"], "from Alice");
    bob.expect_quiet().await;
}

#[tokio::test]
async fn without_resuming_a_lost_connection_is_another_session() {
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let (alice, mut events) = join(proxy.address, "tea").resume(false).open();
    let opened = expect_opened(&mut events).await;
    delivered(alice.flush()).await;
    proxy.fail(Failure::Close);
    let again = reopened(&mut events).await;
    assert!(!again.resumed && again.id != opened.id);
}

/// What two sessions have sent each other, numbered, while the connections of both are cut again and again.
#[tokio::test]
async fn fifty_cuts_lose_double_and_reorder_nothing() {
    const CUTS: usize = 50;
    let server = TestServer::start().await;
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = cuts.clone();
    let mut random = SmallRng::seed_from_u64(50);
    let mut connections = 0;
    let proxy = Proxy::start(server.address, move || {
        // Both sessions begin on a good connection.
        connections += 1;
        if connections <= 2 || counted.fetch_add(1, SeqCst) >= CUTS {
            return Fate::NONE;
        }
        let failures = [Failure::Close, Failure::Reset];
        Fate {
            // More than a handshake in most cases.
            up: random.random_range(100..4000),
            down: random.random_range(100..4000),
            failure: failures[random.random_range(0..2)],
            ..Fate::NONE
        }
    })
    .await;
    let (alice, mut alices, opened) = enter(proxy.address, "tea").await;
    let (bob, mut bobs, bobs_opened) = enter(proxy.address, "tea").await;
    let (alice_id, bob_id) = (opened.id, bobs_opened.id);
    assert_eq!(expect_joined(&mut alices).await.id, bob_id);
    proxy.fail(Failure::Reset);
    let done = |cuts: &AtomicUsize| cuts.load(SeqCst) > CUTS;
    let mut sent = 0;
    let mut receipts = Vec::new();
    let (mut to_alice, mut to_bob) = (0, 0);
    let mut resumed = 0;
    let deadline = Instant::now() + 2 * DEADLINE;
    while !done(&cuts) || to_alice < sent || to_bob < sent {
        assert!(
            Instant::now() < deadline,
            "{sent} sent, {to_alice} and {to_bob} have come"
        );
        if !done(&cuts) && sent < to_alice.min(to_bob) + 50 {
            receipts.push(alice.send_with_receipt(&bob_id, "note", sent));
            bob.send(&alice_id, "note", sent).unwrap();
            sent += 1;
        }
        let (event, count) = tokio::select! {
            event = next(&mut alices) => (event, &mut to_alice),
            event = next(&mut bobs) => (event, &mut to_bob),
        };
        match event {
            Event::Message(message) => {
                assert_eq!(message.data::<u64>().unwrap(), *count);
                *count += 1;
            }
            Event::Opened(opened) => {
                assert!(opened.resumed, "{opened:?}");
                resumed += 1;
            }
            Event::Reconnecting { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(
        resumed > CUTS / 4,
        "only {resumed} connections were resumed"
    );
    for receipt in receipts {
        assert_eq!(delivered(receipt).await, 1);
    }
    delivered(alice.flush()).await;
    delivered(bob.flush()).await;
    assert_eq!((alice.queued_bytes(), bob.queued_bytes()), (0, 0));
    assert_eq!(to_alice, to_bob);
}

#[tokio::test]
async fn a_session_outlives_the_restart_of_its_server() {
    let folder = Folder::new("client-restart");
    let start = async |address: Option<SocketAddr>| {
        TestServer::with(|config| {
            config.stopping.sessions_file = Some(folder.file("sessions"));
            config.stopping.drain_seconds = 1;
            if let Some(address) = address {
                config.serving.listen = address;
            }
        })
        .await
    };
    let mut server = start(None).await;
    let address = server.address;
    let (alice, mut alices, alice_opened) = enter(address, "tea").await;
    let (bob, mut bobs, bob_opened) = enter(address, "tea").await;
    expect_joined(&mut alices).await;
    delivered(alice.send_with_receipt(&bob_opened.id, "x", 1)).await;
    server.stop();
    let (_, why) = expect_reconnecting(&mut alices).await;
    assert!(
        matches!(why, Disconnect::Closed { code: 1012, .. }),
        "{why}"
    );
    let receipt = alice.send_with_receipt(&bob_opened.id, "x", 2);
    server.stopped().await;
    let _server = start(Some(address)).await;
    assert_eq!(reopened(&mut alices).await.id, alice_opened.id);
    assert_eq!(delivered(receipt).await, 1);
    assert_eq!(expect_message(&mut bobs).await.data.get(), "1");
    let again = reopened(&mut bobs).await;
    assert!(again.resumed && again.id == bob_opened.id);
    assert_eq!(expect_message(&mut bobs).await.data.get(), "2");
    drop(bob);
}

#[tokio::test]
async fn a_session_that_is_gone_is_replaced_and_what_was_lost_is_told() {
    let first = TestServer::start().await;
    let second = TestServer::start().await;
    let mut connections = 0;
    let proxy = Proxy::before(vec![first.address, second.address], move || {
        connections += 1;
        Fate {
            server: usize::from(connections > 1),
            ..Fate::NONE
        }
    })
    .await;
    let (alice, mut events, opened) = enter(proxy.address, "tea").await;
    delivered(alice.set_state(json!({"name": "Alice"}))).await;
    delivered(alice.flush()).await;

    // What is sent now does not arrive.
    proxy.hold(true, false);
    alice.send("all", "x", "lost").unwrap();
    let receipt = alice.send_with_receipt("all", "x", "lost, too");
    eventually("both messages are sent", || alice.queued_bytes() > 0).await;
    let mut bob = Client::join(&second, "tea").await;
    proxy.wait(true);
    proxy.fail(Failure::Close);
    proxy.hold(false, false);
    expect_reconnecting(&mut events).await;
    proxy.wait(false);
    let again = reopened(&mut events).await;
    assert!(!again.resumed && again.id != opened.id);
    assert_eq!(again.peers[0].id, bob.id);
    assert_eq!(receipt.await, Err(SendError::Lost));
    let lost = r#"{"type":"x","receiver":"all","data":"lost"}"#;
    assert_eq!(again.lost, [Frame::from(lost)]);
    // The state is set again.
    bob.expect_new(&again.id).await;
    bob.expect_state(&again.id, json!({"name": "Alice"})).await;
    assert_eq!(delivered(alice.send_with_receipt("all", "x", 1)).await, 1);
}

#[tokio::test]
async fn a_refusal_that_would_repeat_closes_the_room_with_its_reason() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    let refused = join(server.address, "tea").origin("https://example.com");
    let (room, mut events) = refused.open();
    let receipt = room.send_with_receipt("all", "x", ());
    let why = expect_closed(&mut events).await;
    assert!(
        matches!(why, Disconnect::Closed { code: 4403, .. }),
        "{why}"
    );
    assert_eq!(receipt.await, Err(SendError::Closed(why)));

    let nowhere: RoomUrl = format!("ws://{}/nowhere", server.address).parse().unwrap();
    let (_room, mut events) = Join::room(nowhere.clone()).open();
    match expect_closed(&mut events).await {
        Disconnect::Refused {
            status: 404, line, ..
        } => assert!(line.contains("no such URL"), "{line}"),
        other => panic!("expected a refusal, got {other}"),
    }
    let connect = Connect::to(url(server.address, "tea")).origin("https://example.com");
    match connect.without_protocol().open().await {
        Err(Disconnect::Refused {
            status: 403, line, ..
        }) => assert!(line.contains("origin"), "{line}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_for_now_is_tried_again_when_the_server_says() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let bob = Client::join(&server, "tea").await;
    let (_alice, mut events) = join(server.address, "tea").open();
    let (delay, why) = expect_reconnecting(&mut events).await;
    assert!(
        matches!(why, Disconnect::Closed { code: 4429, .. }),
        "{why}"
    );
    assert_eq!(Some(delay), why.retry_after());
    assert!(delay >= Duration::from_secs(1));
    bob.leave().await;
    reopened(&mut events).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_as_long_as_is_allowed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (_room, mut events) = join(address, "tea")
        .give_up_after(Duration::from_millis(50))
        .open();
    loop {
        match next(&mut events).await {
            Event::Reconnecting { why, .. } => {
                assert!(matches!(why, Disconnect::Unreachable(_)), "{why}")
            }
            Event::Closed(why) => {
                assert!(matches!(why, Disconnect::Unreachable(_)), "{why}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let (_alice, mut events) = join(proxy.address, "tea")
        .timeout(Duration::from_millis(300))
        .idle_timeout(Duration::from_millis(300))
        .open();
    let opened = expect_opened(&mut events).await;
    proxy.hold(false, true);
    let (_, why) = expect_reconnecting(&mut events).await;
    assert!(matches!(why, Disconnect::Silent(_)), "{why}");
    proxy.hold(false, false);
    let again = reopened(&mut events).await;
    assert!(again.resumed && again.id == opened.id);

    // Nobody answers the handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = Connect::to(url(listener.local_addr().unwrap(), "tea"));
    let opened = connect.timeout(Duration::from_millis(50)).open().await;
    assert!(matches!(opened, Err(Disconnect::Silent(_))), "{opened:?}");
}

#[tokio::test]
async fn an_application_that_does_not_read_its_events_is_bounded() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let slow = || join(server.address, "tea").event_bytes(10_000);
    let (_slow, mut slow_events) = slow().timeout(Duration::from_millis(500)).open();
    expect_opened(&mut slow_events).await;
    bob.expect_any_new().await;
    let (_patient, mut patient_events) = slow().open();
    expect_opened(&mut patient_events).await;
    bob.expect_any_new().await;
    for number in 0..100 {
        bob.send(json!({"type": "x", "receiver": "all", "data": [number, "x".repeat(1000)]}))
            .await;
    }
    bob.expect_any_left().await;
    let mut events = Vec::new();
    while let Some(event) = next_or_end(&mut slow_events).await {
        events.push(event);
    }
    assert!((8..15).contains(&events.len()), "{} events", events.len());
    assert!(matches!(
        events.last(),
        Some(Event::Closed(Disconnect::Overflow))
    ));
    // Whoever reads in time gets everything.
    let mut count = 0;
    while count < 100 {
        if let Event::Message(message) = next(&mut patient_events).await {
            assert_eq!(message.data::<(u32, String)>().unwrap().0, count);
            count += 1;
        }
    }
}

async fn next_or_end(events: &mut Events) -> Option<Event> {
    within_deadline("an event", events.next()).await
}

impl Client {
    /// The next message must be a `close`, of any session.
    async fn expect_any_left(&mut self) {
        assert_eq!(self.next().await["type"], "close");
    }
}

#[tokio::test]
async fn what_waits_to_be_sent_is_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (alice, mut events) = join(address, "tea").queue_bytes(10_000).open();
    let mut queued = 0;
    while alice.send("all", "x", "x".repeat(900)).is_ok() {
        queued += 1;
    }
    assert_eq!(queued, 9);
    assert_eq!(
        alice.send("all", "x", "x".repeat(900)),
        Err(SendError::Full)
    );
    let receipt = alice.send_with_receipt("all", "x", "x".repeat(900));
    assert_eq!(receipt.refused(), Some(&SendError::Full));
    assert_eq!(receipt.await, Err(SendError::Full));
    // What never fits need not wait.
    let never = alice.send("all", "x", "x".repeat(10_000));
    assert!(
        matches!(never, Err(SendError::TooLarge { .. })),
        "{never:?}"
    );
    alice.leave().await;
    assert_eq!(expect_closed(&mut events).await, Disconnect::Left);
}

#[tokio::test]
async fn more_than_the_queue_gets_through_in_time() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, mut events) = join(server.address, "tea").queue_bytes(10_000).open();
    expect_opened(&mut events).await;
    bob.expect_any_new().await;
    for number in 0..200 {
        while let Err(error) = alice.send("all", "x", (number, "x".repeat(500))) {
            assert_eq!(error, SendError::Full);
            delivered(alice.flush()).await;
        }
    }
    for number in 0..200 {
        assert_eq!(bob.next().await["data"][0], number);
    }
}

#[tokio::test]
async fn dropping_both_halves_leaves_the_room() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, events, opened) = enter(server.address, "tea").await;
    bob.expect_new(&opened.id).await;
    let clone = alice.clone();
    drop((alice, events));
    clone.send("all", "x", "still here").unwrap();
    assert_eq!(bob.next().await["data"], "still here");
    clone.send("all", "x", "bye").unwrap();
    drop(clone);
    assert_eq!(bob.next().await["data"], "bye");
    // It could be resumed, so without a Close frame it would only be suspended.
    bob.expect_left(&opened.id).await;

    let (carol, mut events, opened) = enter(server.address, "tea").await;
    bob.expect_new(&opened.id).await;
    drop(carol);
    bob.note(&opened.id, 1).await;
    assert_eq!(expect_message(&mut events).await.data.get(), "1");
    drop(events);
    bob.expect_left(&opened.id).await;
}

#[tokio::test]
async fn leaving_without_a_connection_ends_the_suspended_session() {
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let mut bob = Client::join(&server, "tea").await;
    let (alice, mut events, opened) = enter(proxy.address, "tea").await;
    bob.expect_new(&opened.id).await;
    proxy.wait(true);
    proxy.fail(Failure::Close);
    server.expect_suspended(1).await;
    expect_reconnecting(&mut events).await;
    alice.send("all", "x", "late").unwrap();
    let leaving = alice.leave();
    proxy.wait(false);
    within_deadline("leaving", leaving).await;
    assert_eq!(bob.next().await["data"], "late");
    bob.expect_left(&opened.id).await;
}

#[tokio::test]
async fn events_are_a_stream() {
    fn check(stream: impl Stream<Item = Event> + Unpin) -> impl Stream<Item = Event> + Unpin {
        stream
    }
    let server = TestServer::start().await;
    let (_room, events) = join(server.address, "tea").open();
    let mut events = check(events);
    let event = within_deadline("an event", StreamExt::next(&mut events)).await;
    assert!(matches!(event, Some(Event::Opened(_))));
}

#[tokio::test]
async fn bytes_go_to_one_or_all_and_are_resumed() {
    let server = TestServer::start().await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let (alice, mut alices, opened) = enter(proxy.address, "tea").await;
    let (bob, mut bobs, _) = enter(server.address, "tea").await;
    let bob_id = expect_joined(&mut alices).await.id;
    alice.send_bytes("all", b"to all").unwrap();
    assert_eq!(expect_bytes(&mut bobs, &opened.id).await, "to all");
    proxy.refuse(true);
    proxy.fail(Failure::Reset);
    server.expect_suspended(1).await;
    alice.send_bytes(&bob_id, b"").unwrap();
    for number in 0..3 {
        bob.send_bytes(&opened.id, &[number]).unwrap();
    }
    proxy.refuse(false);
    assert!(reopened(&mut alices).await.resumed);
    for number in 0..3 {
        assert_eq!(expect_bytes(&mut alices, &bob_id).await, [number][..]);
    }
    assert_eq!(expect_bytes(&mut bobs, &opened.id).await, "");
    delivered(alice.flush()).await;
    assert_eq!(alice.queued_bytes(), 0);
    let nobody = uuid::Uuid::nil().to_string();
    drop((bob, bobs));
    expect_left(&mut alices, &bob_id).await;
    // An error about bytes has no `ref`.
    alice.send_bytes(&nobody, b"x").unwrap();
    match next(&mut alices).await {
        Event::Error {
            code, reference, ..
        } => {
            assert_eq!((&*code, reference), ("empty_room", Value::Null));
        }
        other => panic!("expected an error, got {other:?}"),
    }
}

async fn expect_bytes(events: &mut Events, from: &str) -> bytes::Bytes {
    match next(events).await {
        Event::Bytes { sender, bytes } => {
            assert_eq!(sender, from);
            bytes
        }
        other => panic!("expected bytes, got {other:?}"),
    }
}

/// A server that the test plays. The client has said `hello`.
async fn play() -> (WebSocketStream<TcpStream>, Room, Events) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (room, events) = join(listener.local_addr().unwrap(), "tea").open();
    (accept(&listener).await, room, events)
}

/// Accepts a client that says `hello`.
async fn accept(listener: &TcpListener) -> WebSocketStream<TcpStream> {
    let (stream, _) = within_deadline("a connection", listener.accept())
        .await
        .unwrap();
    let mut socket = accept_async(stream).await.unwrap();
    let hello = within_deadline("hello", socket.next())
        .await
        .unwrap()
        .unwrap();
    let hello: Value = serde_json::from_str(hello.to_text().unwrap()).unwrap();
    assert_eq!(hello["data"], json!({"resume": true}));
    socket
}

/// The next message of the client must be a Close frame.
async fn expect_close_frame(socket: &mut WebSocketStream<TcpStream>) {
    let end = within_deadline("the Close frame", socket.next()).await;
    let end = end.unwrap().unwrap();
    assert!(end.is_close(), "{end:?}");
}

#[tokio::test]
async fn bytes_begin_with_an_id() {
    let (mut socket, room, mut events) = play().await;
    let (own, peer) = [0x11, 0x22]
        .map(|byte| uuid::Uuid::from_bytes([byte; 16]))
        .into();
    let hello = json!({"type": "hello", "sender": "server", "receiver": own.to_string(),
        "data": {"room": "tea", "peers": [{"id": peer.to_string(), "data": null}], "iceServers": [],
            "resume": null, "history": null, "limits": {"messageBytes": 100}}});
    // What comes before the list of peers follows it.
    let early = [&[0x22; 16][..], b"early"].concat();
    let from_stranger = [&[0x33; 16][..], b"gone"].concat();
    for message in [
        tungstenite::Message::binary(early),
        tungstenite::Message::binary(from_stranger),
        tungstenite::Message::text(hello.to_string()),
        tungstenite::Message::binary([&[0x22; 16][..], b"late"].concat()),
    ] {
        socket.send(message).await.unwrap();
    }
    expect_opened(&mut events).await;
    for expected in ["early", "late"] {
        match next(&mut events).await {
            Event::Bytes { sender, bytes } => {
                assert_eq!((sender, &*bytes), (peer.to_string(), expected.as_bytes()));
            }
            other => panic!("expected bytes, got {other:?}"),
        }
    }
    room.send_bytes("all", b"to all").unwrap();
    room.send_bytes(&peer.to_string(), b"to one").unwrap();
    assert_eq!(room.send_bytes("server", b"x"), Err(SendError::Receiver));
    let long = room.send_bytes("all", &[0; 100]);
    assert_eq!(
        long,
        Err(SendError::TooLarge {
            bytes: 116,
            limit: 100
        })
    );
    for expected in [
        [&[0; 16][..], b"to all"].concat(),
        [&[0x22; 16][..], b"to one"].concat(),
    ] {
        let message = within_deadline("bytes", socket.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(message.into_data(), expected);
    }
    drop((room, events));
    expect_close_frame(&mut socket).await;
}

#[tokio::test]
async fn what_is_no_anteroom_server_is_not_tried_again() {
    let (mut socket, _room, mut events) = play().await;
    socket
        .send(tungstenite::Message::text("welcome!"))
        .await
        .unwrap();
    // A session may have begun, which would wait for nobody.
    expect_close_frame(&mut socket).await;
    drop(socket);
    let why = expect_closed(&mut events).await;
    assert!(matches!(why, Disconnect::Protocol(_)), "{why}");
}

/// Times that no clock can be added to, of the application and of the server.
#[tokio::test]
async fn endless_times_are_as_good_as_long_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (room, mut events) = join(listener.local_addr().unwrap(), "tea")
        .timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .give_up_after(Duration::MAX)
        .retry_delays(Duration::ZERO, Duration::MAX)
        .open();
    let mut socket = accept(&listener).await;
    let hello = json!({"type": "hello", "sender": "server", "receiver": "1", "data":
        {"room": "tea", "peers": [], "iceServers": [], "resume": {"token": "t", "seconds": u64::MAX}}});
    let hello = tungstenite::Message::text(hello.to_string());
    socket.send(hello).await.unwrap();
    expect_opened(&mut events).await;
    drop(socket);
    expect_reconnecting(&mut events).await;
    drop(room);

    let server = TestServer::start().await;
    let connect = Connect::to(url(server.address, "tea")).timeout(Duration::MAX);
    let connection = connect.open().await.unwrap();
    within_deadline("leaving", connection.leave(Duration::MAX)).await;
}

/// The answer to `hello`, as of a session that cannot be resumed.
fn welcome() -> tungstenite::Message {
    let hello = json!({"type": "hello", "sender": "server", "receiver": "1", "data":
        {"room": "tea", "peers": [], "iceServers": [], "resume": null}});
    tungstenite::Message::text(hello.to_string())
}

/// The next message of the client.
async fn expect_json(socket: &mut WebSocketStream<TcpStream>) -> Value {
    let message = within_deadline("a message", socket.next()).await;
    serde_json::from_str(message.unwrap().unwrap().to_text().unwrap()).unwrap()
}

#[tokio::test]
async fn a_refused_state_leaves_the_accepted_one_and_a_flush_hides_no_loss() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (room, mut events) = join(listener.local_addr().unwrap(), "tea").open();
    let mut socket = accept(&listener).await;
    socket.send(welcome()).await.unwrap();
    expect_opened(&mut events).await;
    for (state, kind) in [("good", "ack"), ("bad", "error")] {
        let receipt = room.set_state(state);
        let sent = expect_json(&mut socket).await;
        assert_eq!(sent["data"], state);
        let answer = json!({"type": kind, "sender": "server", "receiver": "1", "data":
            {"ref": sent["ref"], "receivers": 0, "code": "state_too_large", "message": "no"}});
        socket
            .send(tungstenite::Message::text(answer.to_string()))
            .await
            .unwrap();
        let answer = within_deadline("the answer", receipt).await;
        assert_eq!(answer.is_ok(), kind == "ack", "{answer:?}");
    }
    room.send("all", "x", "lost").unwrap();
    assert_eq!(expect_json(&mut socket).await["data"], "lost");
    drop(socket);
    expect_reconnecting(&mut events).await;
    let flush = room.flush();
    let mut socket = accept(&listener).await;
    socket.send(welcome()).await.unwrap();
    assert_eq!(reopened(&mut events).await.lost.len(), 1);
    assert_eq!(expect_json(&mut socket).await["data"], "good");
    assert_eq!(
        within_deadline("the flush", flush).await,
        Err(SendError::Lost)
    );
}

#[tokio::test]
async fn no_wait_is_longer_than_the_time_to_give_up() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let _bob = Client::join(&server, "tea").await;
    let limit = Duration::from_millis(100);
    let (_alice, mut events) = join(server.address, "tea").give_up_after(limit).open();
    let (delay, why) = expect_reconnecting(&mut events).await;
    assert!(why.retry_after().unwrap() > limit && delay <= limit);
    expect_closed(&mut events).await;
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn a_function_is_asked_for_a_token_before_each_connection() {
    let file = File::new("client-token", format!("{SECRET}\n"));
    let server = TestServer::with(|config| with_secret(config, &file)).await;
    let (_room, mut events) = join(server.address, "tea").token("no-token").open();
    let why = expect_closed(&mut events).await;
    assert!(
        matches!(why, Disconnect::Closed { code: 4401, .. }),
        "{why}"
    );
    assert!(!format!("{why:?}").contains("no-token"));

    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let fresh = join(proxy.address, "tea").token_from(move || {
        let is_first = count.fetch_add(1, SeqCst) == 0;
        async move {
            match is_first {
                true => Ok::<_, Disconnect>("expired".into()),
                false => Ok(sign(json!({"sub": "alice"}))),
            }
        }
    });
    assert!(!format!("{fresh:?}").contains("expired"));
    let (_alice, mut events) = fresh.open();
    let (_, why) = expect_reconnecting(&mut events).await;
    assert!(
        matches!(why, Disconnect::Closed { code: 4401, .. }),
        "{why}"
    );
    expect_opened(&mut events).await;
    assert_eq!(asked.load(SeqCst), 2);
    proxy.fail(Failure::Close);
    assert!(reopened(&mut events).await.resumed);
    assert!(asked.load(SeqCst) > 2);

    let failing = join(server.address, "tea").token_from(|| async { Err::<String, _>("no login") });
    let (_room, mut events) = failing.give_up_after(Duration::ZERO).open();
    let why = expect_closed(&mut events).await;
    assert_eq!(why, Disconnect::Token("no login".into()));
}
