//! A room's view of the other nodes, and its messages to them.
//!
//! Each session is owned by one node, which alone tells the others about it. The events of a room on a
//! node form a sequence: each has the number of the one before it. A node that misses an event asks for a
//! snapshot of that node's sessions, and turns the differences into `new` and `close`.
//!
//! Sessions are ordered by their join numbers, a logical clock of the room. A session learns in two steps
//! which sessions joined before it: a node that enters a room waits until the others have listed their
//! sessions, and a session that joins waits until the others have seen it. So of two sessions that join at once
//! on different nodes, only the earlier gets a `new` about the other. Neither wait is longer than a node
//! may be silent; a session that becomes known later is new.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    location::Location,
    lookups::Lookups,
    migrations::{Migrations, Waiter},
    node_view::{EventGaps, NodeView},
    recorded_event::RecordedEvent,
    snapshot_sender::SnapshotSender,
    speaker::Speaker,
};
use crate::{
    cluster::{
        Answer, Direct, Disconnected, Event, Load, MAX_NUMBER, NodeId, Outbound, Sequence,
        SessionState,
    },
    history::PastEvents,
    protocol::{self, RoomName, SessionId},
    websocket::Frame,
};

/// How many nodes that are down are remembered, each for its last event. Sessions that migrate soon afterwards need
/// them.
const MAX_PAST: usize = 8;

/// How many of them, if the room keeps a history: what their sessions have said is known by these events.
const MAX_PAST_OF_HISTORY: usize = 256;

/// How many gaps in the events of a node are remembered.
const MAX_GAPS: usize = 64;

/// How many sessions that have moved on are waited for. It bounds the memory that a faulty node can use.
const MAX_LATE: usize = 1 << 16;

/// A room's view of the other nodes.
pub(super) struct RemoteView {
    pub(super) outbound: Arc<Outbound>,
    /// The events of this node in the room.
    sequence: Sequence,
    /// All other nodes of the cluster.
    views: BTreeMap<NodeId, NodeView>,
    /// Nodes that have gone down, with their events.
    past: VecDeque<(NodeId, EventGaps)>,
    /// Whether the room keeps a history, for which gaps in the events are remembered.
    keeps_history: bool,
    /// How many sessions of other nodes are in the room.
    pub(super) remote_sessions: usize,
    /// Sessions of this node that not all other nodes have seen.
    pending_joins: BTreeMap<SessionId, PendingJoin>,
    /// Sessions of other nodes that have left while there was a pending join, each with the number of the last
    /// event of this node then.
    left: BTreeMap<SessionId, u64>,
    /// Sessions and operators that wait until all other nodes have listed their sessions.
    snapshot_waiters: Vec<oneshot::Sender<()>>,
    event_waiters: Vec<EventWaiter>,
    /// Sessions that have moved on from these nodes: what the sessions have sent from there may still come.
    late: BTreeMap<(NodeId, SessionId), Late>,
    pub(super) lookups: Lookups,
    pub(super) migrations: Migrations,
    /// The snapshots of this node's sessions that are being sent, by their receivers.
    pub(super) snapshots: BTreeMap<NodeId, SnapshotSender>,
}

/// A session that waits until this node has seen the events of nodes up to these numbers.
struct EventWaiter {
    events: Vec<(NodeId, u64)>,
    done: oneshot::Sender<()>,
}

/// A session that has moved on from a node.
struct Late {
    /// The number of an event of the node, which this node has not seen: all that the session has sent from there was
    /// sent before.
    last: u64,
    /// The state that the session's new node has told.
    state: Option<HeldState>,
}

/// A state of a session that must not come before what the session has sent earlier.
pub(super) struct HeldState {
    /// The node that has told it, and the number of its message.
    pub(super) node: NodeId,
    pub(super) number: u64,
    pub(super) id: SessionId,
    pub(super) state: Arc<SessionState>,
}

struct PendingJoin {
    /// The number of the event that announced the session.
    number: u64,
    done: Option<oneshot::Sender<()>>,
}

impl RemoteView {
    /// Announces that this node is in the room, and asks these nodes for their sessions.
    pub(super) fn enter(
        room: &RoomName,
        outbound: &Arc<Outbound>,
        nodes: &BTreeSet<NodeId>,
        keeps_history: bool,
    ) -> RemoteView {
        let sequence = Sequence::default();
        outbound.batch().enter(room, &sequence);
        let mut view = RemoteView {
            outbound: outbound.clone(),
            sequence,
            views: BTreeMap::new(),
            past: VecDeque::new(),
            keeps_history,
            remote_sessions: 0,
            pending_joins: BTreeMap::new(),
            left: BTreeMap::new(),
            snapshot_waiters: Vec::new(),
            event_waiters: Vec::new(),
            late: BTreeMap::new(),
            lookups: Lookups::default(),
            migrations: Migrations::default(),
            snapshots: BTreeMap::new(),
        };
        nodes.iter().for_each(|node| view.add_node(*node));
        view
    }

    /// Announces that this node has left the room.
    pub(super) fn exit(&self, room: &RoomName) {
        self.outbound.batch().exit(room, &self.sequence);
    }
}

/// The other nodes.
impl RemoteView {
    /// Notes that a node is up.
    pub(super) fn add_node(&mut self, node: NodeId) {
        let place = self.past.iter().position(|(past, _)| *past == node);
        let past = place.and_then(|place| self.past.remove(place));
        let most = if self.keeps_history { MAX_GAPS } else { 0 };
        let gaps = past.map_or_else(|| EventGaps::new(most), |(_, gaps)| gaps);
        let view = self.views.entry(node);
        view.or_insert_with(|| NodeView::asked(gaps));
    }

    /// Notes that a node is down.
    pub(super) fn remove_node(&mut self, node: NodeId) {
        let view = self.views.remove(&node);
        let gaps = view.map(NodeView::into_gaps).unwrap_or_default();
        if gaps.last > 0 {
            let most = match self.keeps_history {
                true => MAX_PAST_OF_HISTORY,
                false => MAX_PAST,
            };
            if self.past.len() >= most {
                self.past.pop_front();
            }
            self.past.push_back((node, gaps));
        }
        self.snapshots.remove(&node);
        self.lookups.node_down(node);
        self.migrations.node_down(node);
    }

    /// The view of a node, if the node is up.
    pub(super) fn view(&mut self, node: NodeId) -> Option<&mut NodeView> {
        self.views.get_mut(&node)
    }

    /// The views of all other nodes.
    pub(super) fn views(&self) -> impl Iterator<Item = &NodeView> {
        self.views.values()
    }

    /// The other nodes and their views, mutably.
    pub(super) fn views_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut NodeView)> {
        self.views.iter_mut().map(|(node, view)| (*node, view))
    }

    /// All other nodes.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.views.keys().copied().collect()
    }

    /// The nodes that are in the room.
    pub(super) fn present_nodes(&self) -> impl Iterator<Item = NodeId> {
        let present = self.views.iter().filter(|(_, view)| view.is_present());
        present.map(|(node, _)| *node)
    }

    /// Whether a node is in the room.
    pub(super) fn is_present(&self, node: NodeId) -> bool {
        self.views.get(&node).is_some_and(NodeView::is_present)
    }

    /// Whether a node is up.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.views.contains_key(&node)
    }

    /// The number of this node's last event in the room.
    pub(super) fn last_event(&self) -> u64 {
        self.sequence.last()
    }

    /// The last event of each node in the room that this node has seen, its own included.
    pub(super) fn seen_events(&self) -> Vec<(NodeId, u64)> {
        let own = (self.outbound.node(), self.sequence.last());
        let others = self.views.iter();
        let others = others.filter_map(|(node, view)| Some((*node, view.last_event()?)));
        let past = self.past.iter().rev().take(MAX_PAST).rev();
        let past = past.map(|(node, gaps)| (*node, gaps.last));
        others.chain(past).chain([own]).collect()
    }

    /// The events of the other nodes, also of some that are down.
    fn gaps(&self) -> impl Iterator<Item = (NodeId, &EventGaps)> {
        let views = self.views.iter();
        let views = views.map(|(node, view)| (*node, view.gaps()));
        let past = self.past.iter();
        views.chain(past.map(|(node, gaps)| (*node, gaps)))
    }

    /// The messages that came before now: a session that joins has not received them.
    pub(super) fn past_events(&self) -> PastEvents {
        let others = self.gaps().map(|(node, gaps)| (node, gaps.last));
        let own = (self.outbound.node(), self.sequence.last());
        PastEvents::up_to(others.chain([own]))
    }

    /// Adds the messages that have not come since: no session of this node has received them. All events of nodes
    /// before the numbers `answers` have come, or are lost.
    pub(super) fn add_lost(&self, events: &mut PastEvents, answers: &BTreeMap<NodeId, u64>) {
        for (node, gaps) in self.gaps() {
            let answer = answers.get(&node).copied().unwrap_or_default();
            let lost = (gaps.last < answer).then_some((gaps.last, answer));
            let ranges: Vec<(u64, u64)> = gaps.ranges.iter().copied().chain(lost).collect();
            events.advance(node, gaps.last.max(answer), &ranges);
        }
        events.advance(self.outbound.node(), self.sequence.last(), &[]);
    }
}

/// Messages of the other nodes.
impl RemoteView {
    /// Notes that a message of a node with this number was delivered to one session of this node.
    pub(super) fn note_delivered(&self, node: NodeId, number: u64) {
        if let Some(view) = self.views.get(&node) {
            view.note_delivered(number);
        }
    }

    /// For each node, the number of its last message that was delivered to one session of this node.
    pub(super) fn delivered(&self) -> Vec<(NodeId, u64)> {
        let views = self.views.iter();
        views
            .map(|(node, view)| (*node, view.delivered()))
            .collect()
    }
}

/// Messages to the other nodes.
impl RemoteView {
    /// Tells the other nodes about an event in the room; returns its number.
    pub(super) fn send_event(&self, room: &RoomName, event: Event) -> Result<u64, Disconnected> {
        let load = match event {
            Event::Join(_) | Event::Arrive { .. } => Load::Line,
            _ => Load::Control,
        };
        let mut batch = self.outbound.batch();
        batch.tell_room(room, &self.sequence, event, &[], load)
    }

    /// Sends what a session or a backend says to all to the other nodes in the room; returns its number. Before any of
    /// them can receive it, `keep` is called with its number and whether it is sent.
    pub(super) fn send_message(
        &self,
        room: &RoomName,
        event: Event,
        text: &[u8],
        speaker: Speaker<'_>,
        keep: impl FnOnce(u64, bool),
    ) -> Result<u64, Disconnected> {
        let nodes = self.present_nodes();
        let mut batch = self.outbound.batch();
        let number = batch.next_number();
        let sent = batch.broadcast(room, &self.sequence, event, text, speaker.quota, nodes);
        keep(number, sent.is_ok());
        sent
    }

    /// Sends a message to one session that is not on this node alone.
    pub(super) fn unicast(
        &self,
        room: &RoomName,
        location: &Location,
        speaker: Speaker<'_>,
        receiver: SessionId,
        frame: Frame,
    ) -> Result<(), Disconnected> {
        let mut batch = self.outbound.batch();
        let room = room.clone();
        let sender = speaker.id;
        let reference = speaker.reference.map(ToOwned::to_owned);
        let (node, message) = match location {
            Location::Remote(node) => {
                let unicast = Direct::Unicast {
                    room,
                    sender,
                    receiver,
                    reference,
                };
                (*node, unicast)
            }
            Location::Migrating(node) => {
                let destination = self.migrations.destination(receiver);
                let (_, seek) = destination.ok_or(Disconnected)?;
                let forward = Direct::Forward {
                    room,
                    seek,
                    source: self.outbound.node(),
                    number: batch.next_number(),
                    sender,
                    receiver,
                    reference,
                };
                (*node, forward)
            }
            Location::Importing(import) => {
                let (source, number) = (self.outbound.node(), batch.next_number());
                self.lookups
                    .record_unicast(import.lookup, source, number, sender, frame);
                return Ok(());
            }
            Location::Local(_) => return Err(Disconnected),
        };
        let load = Load::Message(speaker.quota.cloned());
        batch
            .tell_node(node, message, &protocol::to_json(&frame), load)
            .map(drop)
    }

    /// Records an event of this node for the sessions that migrate here. `number` is the event's number,
    /// if it was sent to the other nodes.
    pub(super) fn record_own(&self, number: Result<u64, Disconnected>, event: &RecordedEvent) {
        // An event that no other node has seen comes last.
        let number = number.unwrap_or(MAX_NUMBER);
        self.lookups.record(self.outbound.node(), number, event);
    }

    /// Tells a node that messages to a session go to another node from now on. The session goes on there when
    /// all nodes have said so: this one says it once it has all that the session has sent before.
    pub(super) fn send_redirected(&self, room: &RoomName, node: NodeId, id: SessionId) {
        if self.is_late(node, id) {
            return;
        }
        let room = room.clone();
        let redirected = Direct::Turned { room, id };
        self.outbound.batch().notify(node, redirected);
    }

    /// Tells nodes that nothing more is forwarded to the sessions of these lookups.
    pub(super) fn send_forwarding_done(&self, room: &RoomName, lookups: Vec<(NodeId, u64)>) {
        let mut batch = self.outbound.batch();
        for (node, seek) in lookups {
            let room = room.clone();
            let seen = self.seen_events();
            batch.notify(node, Direct::Done { room, seek, seen });
        }
    }

    /// Tells clients and nodes that wait for a migrating session to look it up again.
    pub(super) fn send_ask_again(&self, room: &RoomName, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                // The client may have given up.
                Waiter::Local(again) => _ = again.send(()),
                Waiter::Remote(node, seek) => {
                    let mut batch = self.outbound.batch();
                    batch.answer(node, room.clone(), seek, Answer::AskAgain);
                }
            }
        }
    }
}

/// Sessions and operators that wait for other nodes.
impl RemoteView {
    /// Notes that the event with this number has announced a session, which other nodes may not have
    /// seen yet.
    pub(super) fn add_pending_join(&mut self, id: SessionId, number: u64) {
        if !self.is_seen_by_all(number) {
            let join = PendingJoin { number, done: None };
            self.pending_joins.insert(id, join);
        }
    }

    /// Ends a session's wait for the other nodes.
    pub(super) fn remove_pending_join(&mut self, id: SessionId) {
        self.pending_joins.remove(&id);
        self.forget_left();
    }

    /// Notes that a session of another node has left.
    pub(super) fn note_left(&mut self, id: SessionId) {
        if !self.pending_joins.is_empty() {
            self.left.insert(id, self.sequence.last());
        }
    }

    fn forget_left(&mut self) {
        if self.pending_joins.is_empty() {
            self.left = BTreeMap::new();
        }
    }

    /// Whether a session of this node still learns that `earlier` joined before it. A session that it was told
    /// has left is new to it.
    pub(super) fn expects_earlier(&self, id: SessionId, earlier: SessionId) -> bool {
        let Some(join) = self.pending_joins.get(&id) else {
            return false;
        };
        let left = self.left.get(&earlier);
        left.is_none_or(|number| *number < join.number)
    }

    /// A wait until all other nodes have seen a session; `None` if they have.
    pub(super) fn wait_for_join(&mut self, id: SessionId) -> Option<oneshot::Receiver<()>> {
        let join = self.pending_joins.get_mut(&id)?;
        let (done, waiting) = oneshot::channel();
        join.done = Some(done);
        Some(waiting)
    }

    /// A wait until all other nodes have listed their sessions in the room; `None` if they have.
    pub(super) fn wait_for_snapshots(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.have_all_answered() {
            return None;
        }
        let (done, waiting) = oneshot::channel();
        self.snapshot_waiters.retain(|other| !other.is_closed());
        self.snapshot_waiters.push(done);
        Some(waiting)
    }

    /// A wait until this node has seen the events of nodes up to these numbers; `None` if it has.
    pub(super) fn wait_for_events(
        &mut self,
        events: &[(NodeId, u64)],
    ) -> Option<oneshot::Receiver<()>> {
        if self.has_seen(events) {
            return None;
        }
        let (done, waiting) = oneshot::channel();
        let events = events.to_vec();
        self.event_waiters.retain(|other| !other.done.is_closed());
        self.event_waiters.push(EventWaiter { events, done });
        Some(waiting)
    }

    /// Notes that a session has moved on from a node. What it has sent from there was sent up to the node's event
    /// with the number `last`.
    pub(super) fn note_moved(&mut self, node: NodeId, id: SessionId, last: u64) {
        if self.late.len() < MAX_LATE && !self.has_seen(&[(node, last)]) {
            let late = Late { last, state: None };
            self.late.insert((node, id), late);
        }
    }

    /// Holds a state that a node tells until all has come that the session has sent before from another node. Gives it
    /// back if nothing is to come.
    #[must_use]
    pub(super) fn hold_state(&mut self, held: HeldState) -> Option<HeldState> {
        let others = self.views.keys().filter(|node| **node != held.node);
        let mut others = others.map(|node| (*node, held.id));
        let key = others.find(|key| self.late.contains_key(key));
        match key.and_then(|key| self.late.get_mut(&key)) {
            Some(late) => {
                let known = late.state.as_ref().map(|known| known.state.number);
                if known < Some(held.state.number) {
                    late.state = Some(held);
                }
                None
            }
            None => Some(held),
        }
    }

    /// Notes that a session of another node has left: nothing that it has sent is taken in any more.
    pub(super) fn forget_late(&mut self, id: SessionId) {
        self.late.retain(|(_, late), _| *late != id);
    }

    /// Whether messages may still come that a session has sent from a node before it moved on.
    pub(super) fn is_late(&self, node: NodeId, id: SessionId) -> bool {
        self.late.contains_key(&(node, id))
    }

    /// The number of the last event of this node in the room.
    pub(super) fn last_own(&self) -> u64 {
        self.sequence.last()
    }

    /// Whether a session that joins may wait for an event that was sent before an answer that has come.
    pub(super) fn holds_seen(&self) -> bool {
        !self.pending_joins.is_empty() && self.views.values().any(NodeView::holds_seen)
    }

    /// Whether events are waited for.
    pub(super) fn has_event_waiters(&self) -> bool {
        !self.event_waiters.is_empty() || !self.late.is_empty()
    }

    /// The nodes of which events are waited for that have not come: they may be lost.
    pub(super) fn awaited_nodes(&self) -> BTreeSet<NodeId> {
        let waiters = self.event_waiters.iter().filter(|it| !it.done.is_closed());
        let events = waiters.flat_map(|waiter| &waiter.events);
        let missing = events.filter(|event| !self.has_seen(&[**event]));
        let late = self.late.keys().map(|(node, _)| *node);
        missing.map(|(node, _)| *node).chain(late).collect()
    }

    /// Whether a session or an operator waits for something.
    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn has_waits(&self) -> bool {
        let is_waiting = |waiter: &oneshot::Sender<()>| !waiter.is_closed();
        !self.pending_joins.is_empty()
            || self.snapshot_waiters.iter().any(is_waiting)
            || self.event_waiters.iter().any(|it| is_waiting(&it.done))
            || !self.late.is_empty()
    }

    /// Ends the waits that need not go on. Returns the states that need not be held any longer.
    #[must_use]
    pub(super) fn end_waits(&mut self, room: &RoomName) -> Vec<HeldState> {
        let mut states = Vec::new();
        for ((node, id), late) in mem::take(&mut self.late) {
            if self.has_seen(&[(node, late.last)]) {
                self.send_redirected(room, node, id);
                states.extend(late.state);
            } else {
                self.late.insert((node, id), late);
            }
        }
        for waiter in mem::take(&mut self.event_waiters) {
            if waiter.done.is_closed() {
                continue;
            }
            if self.has_seen(&waiter.events) {
                let _ = waiter.done.send(());
            } else {
                self.event_waiters.push(waiter);
            }
        }
        if self.have_all_answered() {
            // A waiter may have given up.
            self.snapshot_waiters
                .drain(..)
                .for_each(|done| _ = done.send(()));
        }
        if self.pending_joins.is_empty() {
            return states;
        }
        for (id, join) in mem::take(&mut self.pending_joins) {
            if !self.is_seen_by_all(join.number) {
                self.pending_joins.insert(id, join);
            } else if let Some(done) = join.done {
                let _ = done.send(());
            }
        }
        self.forget_left();
        states
    }

    /// Whether all other nodes have seen this node's event with this number.
    fn is_seen_by_all(&self, number: u64) -> bool {
        self.views.values().all(|view| view.has_seen(number))
    }

    /// Whether all other nodes have listed their sessions in the room.
    fn have_all_answered(&self) -> bool {
        self.views.values().all(NodeView::has_answered)
    }

    /// Whether this node has seen the events of nodes up to these numbers. Nodes that are down do not
    /// count.
    fn has_seen(&self, events: &[(NodeId, u64)]) -> bool {
        events.iter().all(|(node, number)| {
            let view = self.views.get(node);
            view.is_none_or(|view| view.is_observed(*number))
        })
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::cluster::{Message, TestLink};

    /// A view of two other nodes.
    fn view() -> (RemoteView, [NodeId; 2]) {
        let (_, view, nodes) = linked_view();
        (view, nodes)
    }

    /// Like [`view`], with the queue to the other nodes.
    fn linked_view() -> (TestLink, RemoteView, [NodeId; 2]) {
        let nodes = [NodeId::random(), NodeId::random()];
        let link = TestLink::open();
        let room = RoomName::default_room();
        let view = RemoteView::enter(&room, &link.outbound, &BTreeSet::from(nodes), false);
        (link, view, nodes)
    }

    fn end_waits(view: &mut RemoteView) {
        let states = view.end_waits(&RoomName::default_room());
        assert!(states.is_empty());
    }

    fn of(view: &mut RemoteView, node: NodeId) -> &mut NodeView {
        view.view(node).expect("the node is up")
    }

    #[test]
    fn waits_for_snapshots_end_when_all_nodes_have_answered_or_are_down() {
        let (mut view, [one, other]) = view();
        let mut waits = [(); 2].map(|()| view.wait_for_snapshots().unwrap());
        of(&mut view, one).answer_absent(1);
        end_waits(&mut view);
        assert!(
            waits
                .iter_mut()
                .all(|it| it.try_recv() == Err(TryRecvError::Empty))
        );
        view.remove_node(other);
        end_waits(&mut view);
        assert!(waits.iter_mut().all(|it| it.try_recv() == Ok(())));
        assert!(view.wait_for_snapshots().is_none());
    }

    #[test]
    fn waits_for_events_end_when_the_events_of_all_nodes_that_are_up_have_come() {
        let (mut view, [one, other]) = view();
        let down = NodeId::random();
        let mut early = view.wait_for_events(&[(one, 5), (down, 9)]).unwrap();
        drop(view.wait_for_events(&[(other, 5)]));
        let mut late = view.wait_for_events(&[(one, 7)]).unwrap();
        assert!(view.has_event_waiters());
        assert_eq!(view.awaited_nodes(), BTreeSet::from([one]));

        of(&mut view, one).enter(5);
        end_waits(&mut view);
        assert_eq!(early.try_recv(), Ok(()));
        assert_eq!(late.try_recv(), Err(TryRecvError::Empty));
        assert!(view.has_event_waiters());
        of(&mut view, one).observe(7, 5);
        end_waits(&mut view);
        assert_eq!(late.try_recv(), Ok(()));
        assert!(!view.has_event_waiters());
        assert!(view.awaited_nodes().is_empty());
        assert!(view.wait_for_events(&[(one, 7), (down, 9)]).is_none());
    }

    #[test]
    fn a_join_is_pending_until_all_other_nodes_have_seen_it() {
        let (mut view, [one, other]) = view();
        let id = SessionId::random();
        view.add_pending_join(id, 3);
        let mut seen = view.wait_for_join(id).unwrap();
        of(&mut view, other).answer_absent(1);
        of(&mut view, one).enter(1);
        of(&mut view, one).note_seen(2, 0);
        end_waits(&mut view);
        assert_eq!(seen.try_recv(), Err(TryRecvError::Empty));
        view.note_left(SessionId::random());
        assert_eq!(view.left.len(), 1);
        of(&mut view, one).note_seen(3, 0);
        end_waits(&mut view);
        assert_eq!(seen.try_recv(), Ok(()));
        assert!(view.left.is_empty());
        assert!(view.wait_for_join(id).is_none());
        // All nodes have seen this one already.
        view.add_pending_join(id, 3);
        assert!(view.wait_for_join(id).is_none());
    }

    #[test]
    fn the_last_events_of_nodes_that_went_down_are_remembered_up_to_a_number() {
        let (mut view, [one, other]) = view();
        assert!(view.is_up(one) && !view.is_up(NodeId::random()));
        of(&mut view, one).enter(5);
        of(&mut view, other).enter(6);
        assert!(view.is_present(one) && !view.is_present(NodeId::random()));
        view.remove_node(one);
        view.remove_node(other);
        assert!(!view.is_up(one) && !view.is_present(one));
        let own = (view.outbound.node(), view.last_event());
        assert_eq!(view.seen_events(), [(one, 5), (other, 6), own]);

        // The node is back, and its last event there is not known.
        view.add_node(one);
        assert_eq!(view.seen_events(), [(other, 6), own]);
        for _ in 0..MAX_PAST {
            let node = NodeId::random();
            view.add_node(node);
            of(&mut view, node).enter(7);
            view.remove_node(node);
        }
        let seen = view.seen_events();
        assert_eq!(seen.len(), MAX_PAST + 1);
        assert!(seen[..MAX_PAST].iter().all(|(_, number)| *number == 7));
    }

    #[test]
    fn clients_and_nodes_that_wait_for_a_session_are_told_to_look_it_up_again() {
        let (link, view, [one, _]) = linked_view();
        let (again, mut waiting) = oneshot::channel();
        let waiters = vec![Waiter::Local(again), Waiter::Remote(one, 3)];
        view.send_ask_again(&RoomName::default_room(), waiters);
        assert_eq!(waiting.try_recv(), Ok(()));
        let mut answers = Vec::new();
        link.carry_to(&TestLink::open(), |envelope| {
            if let Message::Node(Direct::Answer { seek, answer, .. }) = envelope.message {
                answers.push((seek, answer));
            }
        });
        assert_eq!(answers, [(3, Answer::AskAgain)]);
    }
}
