//! Rosters between nodes without a network: what each uplink says is carried to the other by hand, some
//! of it is lost, and sessions come and go in between.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;

use super::super::{outbound::Outgoing, wire::decode};
use super::*;
use crate::{
    outbox::{
        Sender,
        tests::{flush, outbox_to},
    },
    protocol::SessionId,
    rooms::{JoinGuard, Rooms, SessionInfo, Speaker},
    websocket::Frame,
};

struct TestNode {
    id: NodeId,
    outbound: Arc<Outbound>,
    rooms: Arc<Rooms>,
    members: Vec<JoinGuard>,
    /// Of a session that has ended: it takes nothing.
    sender: Sender,
}

impl TestNode {
    fn new() -> TestNode {
        let id = NodeId::random();
        let outbound = Arc::new(Outbound::new(id));
        outbound.open();
        let (sender, outbox, _) = outbox_to(1000, 1000);
        drop(outbox);
        TestNode {
            id,
            rooms: Arc::new(Rooms::new(&Limits::default(), Some(outbound.clone()))),
            outbound,
            members: Vec::new(),
            sender,
        }
    }

    fn join(&mut self, room: &RoomName, data: &str) {
        let reservation = self.rooms.reserve(room).unwrap();
        let data = RawValue::from_string(format!("\"{data}\"")).unwrap();
        let info = SessionInfo::new(Some(data), None);
        let member = reservation.join(SessionId::random(), self.sender.clone(), info);
        self.members.push(member);
    }

    fn hears_of(&self, other: &TestNode) {
        self.outbound.up(other.id);
        self.rooms.node_up(other.id);
    }

    /// Says what it has to say in pieces, and carries all that waits to another, but for what is lost.
    fn carry_to(&self, other: &TestNode, mut is_lost: impl FnMut() -> bool) {
        self.rooms.send_chunks();
        let Some(Some((time, waiting))) = self.outbound.next().now_or_never() else {
            return;
        };
        let mut replies = Replies::default();
        let mut flush_set = FlushSet::default();
        for item in waiting {
            let cost = item.cost();
            let Outgoing::Message(_, message, load) = item else {
                self.outbound.done(time, cost, &Load::Control);
                continue;
            };
            self.outbound.done(time, cost, &load);
            let Envelope {
                node,
                number,
                say,
                text,
                ..
            } = decode(&message).unwrap();
            other.outbound.observe(number);
            let rooms = &other.rooms;
            let (replies, flush_set) = (&mut replies, &mut flush_set);
            match say {
                _ if is_lost() => {}
                Message::All(Broadcast::Enter { room }) => {
                    rooms.apply_enter(node, number, room, replies, flush_set);
                }
                Message::All(_) => {}
                Message::Room(said) => {
                    rooms.apply_event(node, number, said, text, replies, flush_set)
                }
                Message::Node(said) => {
                    rooms.apply_direct(node, number, said, text, replies, flush_set)
                }
            }
            self.outbound.taken(other.id, number);
        }
        assert_eq!(replies.send(&other.outbound), 0);
    }

    /// Whom it takes to be in the room.
    fn roster(&self, room: &RoomName) -> BTreeSet<SessionId> {
        let look = self.rooms.query(room, Duration::ZERO).now_or_never();
        let snapshots = look.expect("it does not wait").unwrap();
        snapshots.iter().map(|snapshot| snapshot.id).collect()
    }
}

/// Two nodes hear of each other, of which one has so many sessions in a room, with so many bytes of data
/// each; returns how many rounds it takes until they agree.
fn meet(seed: u64, sessions: usize, bytes: usize, losses: f64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let room = RoomName::default_room();
    let data = "x".repeat(bytes);
    let (mut many, mut few) = (TestNode::new(), TestNode::new());
    (0..sessions).for_each(|_| many.join(&room, &data));
    few.join(&room, "few");
    // What was said before has been said to nobody.
    for node in [&many, &few] {
        node.outbound.close();
        node.outbound.open();
    }
    many.hears_of(&few);
    few.hears_of(&many);
    for round in 0..1000 {
        let is_calm = round > 40;
        for _ in 0..random.random_range(0..20) {
            if !is_calm {
                many.join(&room, "late");
                let leaving = random.random_range(0..many.members.len());
                many.members.swap_remove(leaving);
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
        if is_calm && many.roster(&room) == few.roster(&room) && !many.rooms.has_chunks() {
            return round;
        }
    }
    panic!("seed {seed}: they do not agree");
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_is_not_answered_is_in_nobodys_way() {
    let (here, other) = (TestNode::new(), TestNode::new());
    here.hears_of(&other);
    other.hears_of(&here);
    let second = Duration::from_secs(1);
    for number in 0..200 {
        let room = RoomName::from_segment(&number.to_string()).unwrap();
        let look = here.rooms.query(&room, second);
        match number % 2 {
            0 => assert!(look.await.is_err()),
            // It hangs up.
            _ => assert!(look.now_or_never().is_none()),
        }
    }
    let room = RoomName::default_room();
    let mut look = pin!(here.rooms.query(&room, second));
    assert!(look.as_mut().now_or_never().is_none());
    here.carry_to(&other, || false);
    other.carry_to(&here, || false);
    assert_eq!(look.await.unwrap().len(), 0);
}

#[test]
fn who_speaks_before_a_list_comes_to_it_is_heard() {
    let room = RoomName::default_room();
    let (mut many, few) = (TestNode::new(), TestNode::new());
    let data = "x".repeat(10_000);
    (0..2000).for_each(|_| many.join(&room, &data));
    let (sender, outbox, mut stream) = outbox_to(1 << 30, 1 << 30);
    let reservation = few.rooms.reserve(&room).unwrap();
    let _listener = reservation.join(SessionId::random(), sender, SessionInfo::new(None, None));
    for node in [&many, &few] {
        node.outbound.close();
        node.outbound.open();
    }
    many.hears_of(&few);
    few.hears_of(&many);
    let carry = || {
        few.carry_to(&many, || false);
        many.carry_to(&few, || false);
    };
    (0..2).for_each(|_| carry());
    // Each knows the other, the list has begun, and comes to this one last.
    let last = many.members.iter().max_by_key(|member| member.id());
    let last = last.unwrap();
    assert!(many.rooms.has_chunks());
    let frame = Frame::text(|buffer| buffer.extend_from_slice(b"\"words\""));
    for _ in 0..2 {
        let speaker = Speaker::session(last.id(), None, None);
        last.broadcast(speaker, &frame, &mut FlushSet::default());
        carry();
    }
    while many.rooms.has_chunks() {
        carry();
    }
    assert_eq!(many.roster(&room), few.roster(&room));
    while flush(&outbox).is_pending() {}
    drop(outbox);
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said).now_or_never();
    read.expect("all of it is there").unwrap();
    let said = String::from_utf8_lossy(&said);
    let new = said.find(&format!(r#""new","sender":"{}""#, last.id()));
    let words: Vec<usize> = said.match_indices("\"words\"").map(|it| it.0).collect();
    assert_eq!(words.len(), 2);
    assert!(new.unwrap() < words[0]);
    assert_eq!(said.matches(r#""type":"new""#).count(), 2000);
}

#[test]
fn a_list_is_true_however_much_happens_while_it_is_told() {
    for seed in 0..30 {
        meet(seed, 3000, 1000, 0.0);
    }
}

#[test]
fn what_is_lost_of_a_list_is_told_again() {
    for seed in 0..30 {
        meet(seed, 1500, 1000, 0.05);
    }
}

#[test]
fn a_list_may_be_longer_than_the_queue() {
    // Some 80 MB.
    let rounds = meet(1, 2000, 40_000, 0.0);
    assert!(rounds < 400, "{rounds} rounds");
}
