//! Rooms of two nodes without a network: a test carries what each node sends to the other, loses some
//! of it, and lets sessions join and leave in between.

use std::{collections::BTreeSet, mem, pin::pin, slice, sync::Arc, time::Duration};

use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;

use super::{
    index::Rooms,
    join_guard::JoinGuard,
    replies::{Replies, Undelivered},
    session_info::SessionInfo,
    speaker::Speaker,
};
use crate::{
    cluster::{Broadcast, Direct, Envelope, MAX_ROOMS, Message, NodeId, TestLink},
    outbox::{
        Command, FlushSet, Sender,
        tests::{flush, outbox_to},
    },
    protocol::{Close, Receiver, RoomName, SessionId},
    websocket::Frame,
};

struct TestNode {
    link: TestLink,
    rooms: Arc<Rooms>,
    sessions: Vec<JoinGuard>,
    /// The outbox of a session that has ended: it takes nothing.
    sender: Sender,
}

impl TestNode {
    fn new() -> TestNode {
        let link = TestLink::open();
        let (sender, outbox, _) = outbox_to(1000, 1000);
        drop(outbox);
        let outbound = link.outbound.clone();
        TestNode {
            link,
            rooms: Rooms::empty(Some(outbound)),
            sessions: Vec::new(),
            sender,
        }
    }

    fn join(&mut self, room: &RoomName, data: &str) {
        let reservation = self.rooms.reserve(room).unwrap();
        let data = RawValue::from_string(format!("\"{data}\"")).unwrap();
        let info = SessionInfo::new(Some(data), None);
        let session = reservation.join(SessionId::random(), self.sender.clone(), info);
        self.sessions.push(session);
    }

    fn node_up(&self, other: &TestNode) {
        self.link.node_up(&other.link);
        self.rooms.node_up(other.link.node);
    }

    /// Sends some chunks, and carries all that waits to another node, except for what is lost.
    fn carry_to(&self, other: &TestNode, mut is_lost: impl FnMut() -> bool) {
        self.rooms.send_chunks();
        let mut replies = Replies::default();
        let mut flush_set = FlushSet::default();
        self.link.carry_to(&other.link, |envelope| {
            let Envelope {
                node,
                number,
                message,
                text,
                ..
            } = envelope;
            let rooms = &other.rooms;
            let (replies, flush_set) = (&mut replies, &mut flush_set);
            match message {
                _ if is_lost() => {}
                Message::All(Broadcast::Enter { room }) => {
                    rooms.apply_enter(node, number, room, replies, flush_set);
                }
                Message::All(_) => {}
                Message::Room(event) => {
                    rooms.apply_event(node, number, event, text, replies, flush_set);
                }
                Message::Node(message) => {
                    rooms.apply_direct(node, number, message, text, replies, flush_set);
                }
            }
        });
        assert_eq!(replies.send(&other.link.outbound), 0);
    }

    /// The ids of all sessions that the node knows in the room.
    fn ids(&self, room: &RoomName) -> BTreeSet<SessionId> {
        let query = self.rooms.query(room, Duration::ZERO).now_or_never();
        let snapshots = query.expect("it does not wait").unwrap();
        snapshots.iter().map(|snapshot| snapshot.id).collect()
    }
}

/// Lets two nodes meet, of which one has so many sessions in a room, with so many bytes of data each.
/// Returns how many rounds it takes until both know the same sessions.
fn meet(seed: u64, sessions: usize, bytes: usize, losses: f64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let room = RoomName::default_room();
    let data = "x".repeat(bytes);
    let (mut many, mut few) = (TestNode::new(), TestNode::new());
    (0..sessions).for_each(|_| many.join(&room, &data));
    few.join(&room, "few");
    // What was sent before was sent to nobody.
    for node in [&many, &few] {
        node.link.reconnect();
    }
    many.node_up(&few);
    few.node_up(&many);
    for round in 0..1000 {
        let is_calm = round > 40;
        for _ in 0..random.random_range(0..20) {
            if !is_calm {
                many.join(&room, "late");
                let leaving = random.random_range(0..many.sessions.len());
                many.sessions.swap_remove(leaving);
            }
        }
        let mut is_lost = || !is_calm && random.random_bool(losses);
        many.carry_to(&few, &mut is_lost);
        few.carry_to(&many, &mut is_lost);
        if round % 5 == 4 {
            // A second has gone by.
            few.rooms.ask_again();
            many.rooms.ask_again();
        }
        if round % 20 == 19 {
            many.rooms.send_digests();
            few.rooms.send_digests();
        }
        if is_calm && many.ids(&room) == few.ids(&room) && !many.rooms.has_chunks() {
            return round;
        }
    }
    panic!("seed {seed}: the nodes do not agree");
}

#[tokio::test(start_paused = true)]
async fn a_query_that_is_not_answered_does_not_block_others() {
    let (here, other) = (TestNode::new(), TestNode::new());
    here.node_up(&other);
    other.node_up(&here);
    let second = Duration::from_secs(1);
    for number in 0..200 {
        let room = RoomName::from_segment(&number.to_string()).unwrap();
        let query = here.rooms.query(&room, second);
        match number % 2 {
            0 => assert!(query.await.is_err()),
            // The operator disconnects.
            _ => assert!(query.now_or_never().is_none()),
        }
    }
    let room = RoomName::default_room();
    let mut query = pin!(here.rooms.query(&room, second));
    assert!(query.as_mut().now_or_never().is_none());
    here.carry_to(&other, || false);
    other.carry_to(&here, || false);
    assert_eq!(query.await.unwrap().len(), 0);
}

#[test]
fn a_session_that_sends_before_its_chunk_is_announced_first() {
    let room = RoomName::default_room();
    let (mut many, few) = (TestNode::new(), TestNode::new());
    let data = "x".repeat(10_000);
    (0..2000).for_each(|_| many.join(&room, &data));
    let (sender, outbox, mut stream) = outbox_to(1 << 30, 1 << 30);
    let reservation = few.rooms.reserve(&room).unwrap();
    let _listener = reservation.join(SessionId::random(), sender, SessionInfo::new(None, None));
    for node in [&many, &few] {
        node.link.reconnect();
    }
    many.node_up(&few);
    few.node_up(&many);
    let carry = || {
        few.carry_to(&many, || false);
        many.carry_to(&few, || false);
    };
    (0..2).for_each(|_| carry());
    // Each node knows the other, the snapshot has begun, and the greatest id comes last in it.
    let last = many.sessions.iter().max_by_key(|session| session.id());
    let last = last.unwrap();
    assert!(many.rooms.has_chunks());
    let frame = Frame::text(|buffer| buffer.extend_from_slice(b"\"words\""));
    for _ in 0..2 {
        let speaker = Speaker::session(last.id(), None, None);
        last.route(speaker, &Receiver::All, &frame, &mut FlushSet::default());
        carry();
    }
    while many.rooms.has_chunks() {
        carry();
    }
    assert_eq!(many.ids(&room), few.ids(&room));
    while flush(&outbox).is_pending() {}
    drop(outbox);
    let mut received = Vec::new();
    let read = stream.read_to_end(&mut received).now_or_never();
    read.expect("all of it is there").unwrap();
    let received = String::from_utf8_lossy(&received);
    let new = received.find(&format!(r#""new","sender":"{}""#, last.id()));
    let words: Vec<usize> = received.match_indices("\"words\"").map(|it| it.0).collect();
    assert_eq!(words.len(), 2);
    assert!(new.unwrap() < words[0]);
    assert_eq!(received.matches(r#""type":"new""#).count(), 2000);
}

#[test]
fn a_snapshot_is_right_however_much_happens_while_it_is_sent() {
    for seed in 0..30 {
        meet(seed, 3000, 1000, 0.0);
    }
}

#[test]
fn lost_chunks_are_sent_again() {
    for seed in 0..30 {
        meet(seed, 1500, 1000, 0.05);
    }
}

#[test]
fn a_snapshot_may_be_larger_than_the_queue() {
    // About 80 MB.
    let rounds = meet(1, 2000, 40_000, 0.0);
    assert!(rounds < 400, "{rounds} rounds");
}

/// Carries all that two nodes send to each other, until they send nothing more.
fn settle(one: &TestNode, other: &TestNode) {
    let mut calm = 0;
    for _ in 0..1000 {
        calm = match one.rooms.has_chunks() || other.rooms.has_chunks() {
            true => 0,
            false => calm + 1,
        };
        if calm > 3 {
            return;
        }
        one.carry_to(other, || false);
        other.carry_to(one, || false);
    }
    panic!("the nodes go on sending");
}

/// Two nodes that know each other, each with a session in each of these rooms.
fn two_nodes(rooms: &[RoomName]) -> [TestNode; 2] {
    let mut nodes = [TestNode::new(), TestNode::new()];
    for node in &mut nodes {
        rooms.iter().for_each(|room| node.join(room, "first"));
        // What was sent before was sent to nobody.
        node.link.reconnect();
    }
    let [one, other] = &nodes;
    one.node_up(other);
    other.node_up(one);
    settle(one, other);
    nodes
}

#[test]
fn a_room_lasts_as_long_as_a_session_or_a_backend_needs_it() {
    let rooms = TestNode::new().rooms;
    let room = RoomName::default_room();
    let [first, second] = [(); 2].map(|()| rooms.reserve_for_backend(&room));
    assert_eq!((rooms.len(), rooms.list()), (1, Vec::new()));
    // A message of a backend has no receivers in this room.
    assert_eq!(
        rooms.announce(&room, &Receiver::All, &Frame::text(|_| {})),
        None
    );
    let session = rooms.reserve(&room).unwrap();
    assert_eq!(rooms.list(), [(room.clone(), 1)]);
    drop(first);
    assert_eq!(rooms.len(), 1);
    drop(session);
    assert_eq!((rooms.len(), rooms.list()), (1, Vec::new()));
    drop(second);
    assert_eq!(rooms.len(), 0);
}

#[test]
fn a_node_that_leaves_a_room_is_known_to_be_absent() {
    let room = RoomName::default_room();
    let [one, mut other] = two_nodes(slice::from_ref(&room));
    let has_remote_sessions = || one.rooms.find(&room).unwrap().tells_other_nodes();
    let is_present = || {
        let room = one.rooms.find(&room).unwrap();
        let members = room.members.read();
        let remote = members.remote.as_ref().unwrap();
        remote.is_present(other.link.node)
    };
    assert!(has_remote_sessions() && is_present());
    assert_eq!(one.ids(&room).len(), 2);
    drop(mem::take(&mut other.sessions));
    settle(&one, &other);
    assert!(!has_remote_sessions() && !is_present());
    assert_eq!(one.ids(&room).len(), 1);
}

/// Carries the digests of a node to another. Returns how many messages the other sends in return.
fn carry_digests(from: &TestNode, to: &TestNode) -> usize {
    from.rooms.send_digests();
    while from.rooms.has_chunks() {
        from.carry_to(to, || false);
    }
    let mut answers = 0;
    to.carry_to(from, || {
        answers += 1;
        false
    });
    answers
}

#[test]
fn lost_events_in_more_rooms_than_fit_a_message_are_noticed_by_the_digests() {
    let name = |number: usize| RoomName::from_segment(&number.to_string()).unwrap();
    let rooms: Vec<RoomName> = (0..MAX_ROOMS + 50).map(name).collect();
    let [one, mut other] = two_nodes(&rooms);
    assert!(rooms.iter().all(|room| one.ids(room).len() == 2));
    assert_eq!(carry_digests(&other, &one), 0);
    // The other node leaves some rooms, and has further sessions in the rest. Every event is lost.
    other.sessions.drain(..20);
    rooms[20..].iter().for_each(|room| other.join(room, "late"));
    other.carry_to(&one, || true);
    assert!(carry_digests(&other, &one) > 0);
    settle(&one, &other);
    let counts: BTreeSet<usize> = rooms[..20].iter().map(|room| one.ids(room).len()).collect();
    assert_eq!(counts, BTreeSet::from([1]));
    assert!(
        rooms[20..]
            .iter()
            .all(|room| one.ids(room) == other.ids(room))
    );
    assert_eq!(carry_digests(&other, &one), 0);
}

#[test]
fn a_message_to_a_room_goes_only_to_nodes_with_sessions_in_it() {
    let [shared, own] = ["shared", "own"].map(|name| RoomName::from_segment(name).unwrap());
    let [mut one, other] = two_nodes(slice::from_ref(&shared));
    one.join(&own, "alone");
    settle(&one, &other);
    let frame = Frame::text(|buffer| buffer.extend_from_slice(b"{}"));
    for (session, sent) in one.sessions.iter().zip([1, 0]) {
        let speaker = Speaker::session(session.id(), None, None);
        session.route(speaker, &Receiver::All, &frame, &mut FlushSet::default());
        let mut count = 0;
        one.link.carry_to(&other.link, |_| count += 1);
        assert_eq!(count, sent);
    }
}

#[test]
fn a_node_that_enters_a_room_anew_has_no_session_there() {
    let room = RoomName::default_room();
    let [one, mut other] = two_nodes(slice::from_ref(&room));
    other.sessions.clear();
    other.carry_to(&one, || true);
    other.join(&room, "late");
    other.carry_to(&one, || false);
    let own = one.sessions.iter().chain(&other.sessions);
    assert_eq!(one.ids(&room), own.map(|session| session.id()).collect());
}

#[test]
fn a_node_is_asked_for_events_that_a_session_waits_for() {
    let room = RoomName::default_room();
    let [one, other] = two_nodes(slice::from_ref(&room));
    one.rooms.ask_again();
    assert!(!one.rooms.has_chunks());
    let _waiting = {
        let room = one.rooms.find(&room).unwrap();
        let remote = &mut room.members.write().remote;
        let event = (other.link.node, other.link.outbound.number() + 1);
        remote.as_mut().unwrap().wait_for_events(&[event]).unwrap()
    };
    one.rooms.ask_again();
    assert!(one.rooms.has_chunks());
}

#[tokio::test(start_paused = true)]
async fn a_session_has_joined_when_the_other_nodes_have_seen_it_or_after_a_limit() {
    let room = RoomName::default_room();
    let [mut one, other] = two_nodes(slice::from_ref(&room));
    let second = Duration::from_secs(1);
    one.join(&room, "late");
    {
        let mut seen = pin!(one.sessions[1].wait_until_seen(second));
        assert!(seen.as_mut().now_or_never().is_none());
        one.carry_to(&other, || false);
        other.carry_to(&one, || false);
        assert!(seen.now_or_never().is_some());
    }
    one.join(&room, "last");
    let last = &one.sessions[2];
    last.wait_until_seen(second).await;
    last.finish_join();
    assert!(last.wait_until_seen(second).now_or_never().is_some());
}

#[test]
fn an_operator_closes_a_session_of_this_node() {
    let room = RoomName::default_room();
    let [one, _other] = two_nodes(slice::from_ref(&room));
    let (sender, outbox, _stream) = outbox_to(1000, 1000);
    let reservation = one.rooms.reserve(&room).unwrap();
    let id = SessionId::random();
    let _session = reservation.join(id, sender, SessionInfo::new(None, None));
    let room = one.rooms.find(&room).unwrap();
    room.expel(SessionId::random());
    assert_eq!(outbox.command(), None);
    room.expel(id);
    assert_eq!(outbox.command(), Some(Command::Close(Close::by_operator())));
}

#[test]
fn the_sender_of_a_message_that_was_not_delivered_is_told_where_it_is() {
    let room = RoomName::default_room();
    let [one, other] = two_nodes(slice::from_ref(&room));
    let (sender, _outbox, _stream) = outbox_to(1000, 1000);
    let reservation = one.rooms.reserve(&room).unwrap();
    let here = SessionId::random();
    let _session = reservation.join(here, sender.clone(), SessionInfo::new(None, None));
    settle(&one, &other);
    let there = other.sessions[0].id();
    let room = one.rooms.find(&room).unwrap();
    let report = |from, sender| {
        let message = Undelivered::new(sender, SessionId::random(), &None);
        let is_told = room.report_undelivered(from, &message, &mut FlushSet::default());
        let mut forwarded = 0;
        one.link.carry_to(&other.link, |envelope| {
            assert!(matches!(
                envelope.message,
                Message::Node(Direct::Undelivered { .. })
            ));
            forwarded += 1;
        });
        (is_told, forwarded)
    };
    let third = NodeId::random();
    let before = sender.stats().messages;
    assert_eq!(report(third, Some(here)), (true, 0));
    assert_eq!(sender.stats().messages, before + 1);
    assert_eq!(report(third, Some(there)), (false, 1));
    // Its own node says so: the session is no longer there.
    assert_eq!(report(other.link.node, Some(there)), (false, 0));
    assert_eq!(report(third, Some(SessionId::random())), (false, 0));
    assert_eq!(report(third, None), (false, 0));
}
