//! Sessions that migrate, as one node sees it: a test says what the other nodes send, in the order in which it comes.
//! Messages of different nodes can come over different NATS servers, so that only those of one node are in order.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::{
    import::{ImportedSession, LookupOutcome},
    index::Rooms,
    join_guard::JoinGuard,
    migration_request::MigrationRequest,
    replies::Replies,
    session_info::SessionInfo,
};
use crate::{
    cluster::{
        Broadcast, Direct, Event, Message, NodeId, RoomEvent, SessionRecord, SessionState,
        SessionTransfer, TestLink,
    },
    outbox::{FlushSet, Outbox, Sender, detached_outbox},
    protocol::{ResumeToken, RoomName, SessionId},
};

/// How long a node waits for others.
const LIMIT: Duration = Duration::from_secs(1);

/// A node, and the messages of others to it.
struct Node {
    link: TestLink,
    rooms: Arc<Rooms>,
    replies: Replies,
    flush_set: FlushSet,
}

impl Node {
    fn new() -> Node {
        let link = TestLink::open();
        let outbound = link.outbound.clone();
        Node {
            link,
            rooms: Rooms::empty(Some(outbound)),
            replies: Replies::default(),
            flush_set: FlushSet::default(),
        }
    }

    /// A session joins, without a connection.
    fn join(&self, id: SessionId) -> (JoinGuard, Sender, Outbox) {
        let (sender, outbox) = detached_outbox(100_000, 0, Vec::new());
        let reservation = self.rooms.reserve(&RoomName::default_room()).unwrap();
        let info = SessionInfo::new(None, None);
        let join_guard = reservation.join(id, sender.clone(), info);
        (join_guard, sender, outbox)
    }

    /// Another node comes up and is in the room, with its message number 1.
    fn meet(&mut self) -> TestLink {
        let other = TestLink::open();
        self.link.node_up(&other);
        self.rooms.node_up(other.node);
        self.enter(&other, 1);
        other
    }

    fn enter(&mut self, from: &TestLink, number: u64) {
        let (room, replies) = (RoomName::default_room(), &mut self.replies);
        let flush_set = &mut self.flush_set;
        self.rooms
            .apply_enter(from.node, number, room, replies, flush_set);
    }

    /// An event of another node comes, which follows its event `after`.
    fn event(&mut self, from: &TestLink, number: u64, after: u64, what: Event) {
        let (room, replies) = (RoomName::default_room(), &mut self.replies);
        let (event, flush_set) = (RoomEvent { room, after, what }, &mut self.flush_set);
        self.rooms
            .apply_event(from.node, number, event, "\"all\"", replies, flush_set);
    }

    /// A message of another node to this one comes.
    fn direct(&mut self, from: &TestLink, number: u64, message: Direct) {
        let (replies, flush_set) = (&mut self.replies, &mut self.flush_set);
        let text = match message {
            Direct::Unicast { .. } | Direct::Forward { .. } => "\"one\"",
            Direct::Handed(_) => "[]",
            _ => "",
        };
        self.rooms
            .apply_direct(from.node, number, message, text, replies, flush_set);
    }

    /// Whether events of other nodes are waited for.
    fn waits_for_events(&self) -> bool {
        let room = self.rooms.find(&RoomName::default_room()).unwrap();
        let members = room.members.read();
        members
            .remote
            .as_ref()
            .is_some_and(|it| it.has_event_waiters())
    }

    /// Takes what the node has sent since the last call, with the numbers of the messages.
    fn sent(&self, to: &TestLink) -> Vec<(u64, Message)> {
        self.rooms.send_chunks();
        let mut sent = Vec::new();
        self.link.carry_to(to, |envelope| {
            sent.push((envelope.number, envelope.message));
        });
        sent
    }
}

fn record(id: SessionId, moves: u32) -> SessionRecord {
    SessionRecord {
        moves,
        ..SessionRecord::first(id)
    }
}

fn arrive(id: SessionId, from: NodeId, last: u64) -> Event {
    let member = record(id, 1);
    Event::Arrive { member, from, last }
}

fn broadcast(id: SessionId) -> Event {
    Event::Broadcast(Some(id))
}

fn turned(id: SessionId) -> Direct {
    let room = RoomName::default_room();
    Direct::Turned { room, id }
}

fn count_turned(sent: &[(u64, Message)]) -> usize {
    let is_turned = |message: &Message| matches!(message, Message::Node(Direct::Turned { .. }));
    sent.iter().filter(|(_, it)| is_turned(it)).count()
}

/// What the node has seen, as it says when it forwards nothing more.
fn done(sent: Vec<(u64, Message)>) -> Option<Vec<(NodeId, u64)>> {
    sent.into_iter().find_map(|(_, message)| match message {
        Message::Node(Direct::Done { seen, .. }) => Some(seen),
        _ => None,
    })
}

/// Looks up a session, which its last node offers and transfers after its event number 3. Returns the number of
/// the lookup.
async fn import(
    node: &mut Node,
    old: &TestLink,
    id: SessionId,
    known: Vec<SessionId>,
) -> (ImportedSession, u64) {
    let room = RoomName::default_room();
    let token = ResumeToken::random(None).hash();
    let reservation = node.rooms.reserve(&room).unwrap();
    let mut lookup = pin!(reservation.look_up(token, None, 0, 100_000, LIMIT, LIMIT));
    assert!(lookup.as_mut().now_or_never().is_none());
    let wanted = node.sent(old).into_iter().find_map(|(_, it)| match it {
        Message::All(Broadcast::Want(want)) => Some(want),
        _ => None,
    });
    let seek = wanted.expect("the node asks for the session").seek;
    let offer = Direct::Offer {
        room: room.clone(),
        seek,
        token,
    };
    node.direct(old, 4, offer);
    let transfer = SessionTransfer {
        room,
        seek,
        token,
        member: record(id, 0),
        taken_in: 0,
        binary: 0,
        owed: [0, 0],
        permissions: None,
        seen: vec![(old.node, 3)],
        delivered: Vec::new(),
        past: Vec::new(),
        part: 0,
        known,
        states: Vec::new(),
        more: false,
    };
    node.event(old, 3, 2, Event::Join(record(id, 0)));
    node.direct(old, 5, Direct::Handed(Box::new(transfer)));
    match lookup.await {
        LookupOutcome::Found(imported) => (imported, seek),
        _ => panic!("the session is not found"),
    }
}

#[test]
fn a_node_takes_in_what_a_session_has_sent_before_it_tells_the_last_node() {
    let mut node = Node::new();
    let (_own, sender, _outbox) = node.join(SessionId::random());
    let (old, new) = (node.meet(), node.meet());
    let id = SessionId::random();
    node.event(&old, 2, 1, Event::Join(record(id, 0)));
    node.event(&new, 2, 1, arrive(id, old.node, 4));
    node.event(&old, 3, 2, broadcast(id));
    assert_eq!(sender.stats().messages, 2);
    assert_eq!(count_turned(&node.sent(&old)), 0);
    node.event(&old, 4, 3, broadcast(id));
    assert_eq!(sender.stats().messages, 3);
    assert_eq!(count_turned(&node.sent(&old)), 1);
    // From now on the session speaks through its new node only.
    node.event(&old, 5, 4, broadcast(id));
    assert_eq!(sender.stats().messages, 3);
    node.event(&new, 3, 2, broadcast(id));
    assert_eq!(sender.stats().messages, 4);
}

#[test]
fn a_state_that_a_session_takes_along_does_not_come_before_its_earlier_messages() {
    let mut node = Node::new();
    let (_own, sender, _outbox) = node.join(SessionId::random());
    let (old, new) = (node.meet(), node.meet());
    let id = SessionId::random();
    let state = |number| {
        let value = None;
        Arc::new(SessionState { number, value })
    };
    node.event(&old, 2, 1, Event::Join(record(id, 0)));
    let member = SessionRecord {
        state: Some(state(2)),
        ..record(id, 1)
    };
    let arrive = Event::Arrive {
        member,
        from: old.node,
        last: 5,
    };
    node.event(&new, 2, 1, arrive);
    assert_eq!(sender.stats().messages, 1);
    let first = state(1);
    node.event(&old, 3, 2, Event::State { id, state: first });
    assert_eq!(sender.stats().messages, 2);
    node.event(&old, 4, 3, broadcast(id));
    assert_eq!(sender.stats().messages, 3);
    // The event of the second state is lost.
    node.event(&old, 5, 4, Event::Join(record(id, 0)));
    assert_eq!(sender.stats().messages, 4);
}

#[test]
fn a_session_that_has_moved_on_and_left_is_not_waited_for() {
    let mut node = Node::new();
    let _own = node.join(SessionId::random());
    let (old, new) = (node.meet(), node.meet());
    let id = SessionId::random();
    node.event(&new, 2, 1, arrive(id, old.node, 4));
    assert!(node.waits_for_events());
    node.event(&new, 3, 2, Event::Leave(id));
    assert!(!node.waits_for_events());
}

/// A session that migrates from this node, and who asked for it.
struct Leaving {
    node: Node,
    id: SessionId,
    join_guard: JoinGuard,
    outbox: Outbox,
    /// Another node in the room, whose session has sent the migrating one a message under the number 9.
    other: TestLink,
    new: TestLink,
}

impl Leaving {
    fn begin() -> Leaving {
        let mut node = Node::new();
        let (id, peer) = (SessionId::random(), SessionId::random());
        let (join_guard, _, outbox) = node.join(id);
        let (other, new) = (node.meet(), node.meet());
        node.event(&other, 2, 1, Event::Join(record(peer, 0)));
        let unicast = Direct::Unicast {
            room: RoomName::default_room(),
            sender: Some(peer),
            receiver: id,
            reference: None,
        };
        node.direct(&other, 9, unicast);
        node.sent(&new);
        Leaving {
            node,
            id,
            join_guard,
            outbox,
            other,
            new,
        }
    }

    fn migrate(&self) {
        let request = MigrationRequest {
            node: self.new.node,
            room: RoomName::default_room(),
            seek: 7,
            token: ResumeToken::random(None).hash(),
            received: 0,
            seen: Vec::new(),
        };
        let begun = self
            .join_guard
            .migrate(&self.outbox, &request, None, [0, 0], || true);
        assert!(begun.is_some());
    }
}

#[test]
fn a_transfer_follows_an_event_and_says_what_was_delivered() {
    let leaving = Leaving::begin();
    leaving.migrate();
    let sent = leaving.node.sent(&leaving.new);
    let [
        (last, Message::Room(event)),
        (_, Message::Node(Direct::Handed(transfer))),
    ] = &sent[..]
    else {
        panic!("{sent:?}");
    };
    assert!(matches!(&event.what, Event::Join(record) if record.id == leaving.id));
    assert!(transfer.seen.contains(&(leaving.node.link.node, *last)));
    assert!(transfer.seen.contains(&(leaving.other.node, 2)));
    assert!(transfer.delivered.contains(&(leaving.other.node, 9)));
}

#[test]
fn a_transfer_says_that_a_node_has_left_the_room_though_its_events_are_lost() {
    let mut leaving = Leaving::begin();
    // The events with which the session of the other node left are lost, and the node answers that it is not in the
    // room.
    let absent = Direct::Absent(vec![RoomName::default_room()]);
    leaving.node.direct(&leaving.other, 12, absent);
    leaving.migrate();
    let sent = leaving.node.sent(&leaving.new);
    let transfer = sent.into_iter().find_map(|(_, it)| match it {
        Message::Node(Direct::Handed(transfer)) => Some(transfer),
        _ => None,
    });
    let transfer = transfer.expect("the session is transferred");
    assert!(transfer.known.is_empty());
    // The new node may have lost the same events, and waits for those up to this number.
    assert!(transfer.seen.contains(&(leaving.other.node, 12)));
}

#[test]
fn a_node_that_is_told_of_a_session_on_its_way_is_waited_for() {
    let mut leaving = Leaving::begin();
    leaving.migrate();
    let (id, own) = (leaving.id, leaving.node.link.node);
    let (node, other, new) = (&mut leaving.node, &leaving.other, &leaving.new);
    // This node has no session in the room yet, and the snapshot for it lists the one that migrates.
    let late = node.meet();
    assert!(done(node.sent(new)).is_none());
    node.direct(other, 10, turned(id));
    node.event(new, 2, 1, arrive(id, own, 1));
    assert!(done(node.sent(new)).is_none());
    node.direct(&late, 2, turned(id));
    let seen = done(node.sent(new)).expect("nothing more is forwarded");
    for (node, number) in [(late.node, 1), (other.node, 2), (new.node, 2)] {
        assert!(seen.contains(&(node, number)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_come_waits_for_what_precedes_a_forwarded_message() {
    let mut node = Node::new();
    let own = SessionId::random();
    let _own = node.join(own);
    let (old, other) = (node.meet(), node.meet());
    let (id, peer) = (SessionId::random(), SessionId::random());
    node.event(&old, 2, 1, Event::Join(record(id, 0)));
    node.event(&other, 2, 1, Event::Join(record(peer, 0)));
    let (imported, seek) = import(&mut node, &old, id, vec![own, peer]).await;
    let (sender, outbox) = detached_outbox(100_000, 0, Vec::new());
    let mut join = pin!(imported.join(sender, LIMIT));
    assert!(join.as_mut().now_or_never().is_none());
    let arrived = node.sent(&old).into_iter().find_map(|(_, it)| match it {
        Message::Room(event) => Some(event.what),
        _ => None,
    });
    let Some(Event::Arrive { from, last, .. }) = arrived else {
        panic!("{arrived:?}");
    };
    assert_eq!((from, last), (old.node, 3));

    // The session of the other node has sent message 4 to all, and then message 5 over the last node.
    let (room, seek) = (RoomName::default_room(), seek);
    let forward = Direct::Forward {
        room: room.clone(),
        seek,
        source: other.node,
        number: 5,
        sender: Some(peer),
        receiver: id,
        reference: None,
    };
    node.direct(&old, 6, forward);
    let seen = vec![(other.node, 4)];
    node.direct(&old, 7, Direct::Done { room, seek, seen });
    assert!(join.as_mut().now_or_never().is_none());
    node.event(&other, 4, 2, broadcast(peer));
    let _join_guard = join.now_or_never().expect("nothing else is waited for");
    let missed = outbox.take_missed(0, || true).unwrap();
    let missed: Vec<&[u8]> = missed.iter().map(|frame| frame.payload()).collect();
    assert_eq!(missed, [b"\"all\"", b"\"one\""]);
}
