//! Rooms of two nodes without a network: a test carries what each node sends to the other, loses some
//! of it, and lets sessions join and leave in between.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;

use super::{
    index::Rooms, join_guard::JoinGuard, replies::Replies, session_info::SessionInfo,
    speaker::Speaker,
};
use crate::{
    cluster::{Broadcast, Envelope, Message, TestLink},
    config::Limits,
    outbox::{
        FlushSet, Sender,
        tests::{flush, outbox_to},
    },
    protocol::{Receiver, RoomName, SessionId},
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
            rooms: Arc::new(Rooms::new(&Limits::default(), Some(outbound), None)),
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
