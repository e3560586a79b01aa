//! The sessions of a room, on this node and on others.
//!
//! Every change goes through the methods here: each changes the map, tells the sessions of this node
//! (`new` or `close`), tells the other nodes where this node owns the session, and records the event for
//! sessions that migrate to this node.

use std::sync::{Arc, OnceLock};

use log::debug;
use nohash_hasher::IntMap;
use serde_json::value::RawValue;

use super::{
    location::Location,
    member::Member,
    names::Names,
    recorded_event::RecordedEvent,
    remote_view::{HeldState, RemoteView},
    session_info::SessionInfo,
    speaker::Speaker,
};
use crate::{
    cluster::{Event, MAX_NUMBER, NodeId, SessionRecord, SessionState},
    dialects,
    outbox::{FlushSet, Flushes, Flushing, Sender},
    protocol::{RoomName, SessionId},
    spare_capacity::release_spare_capacity,
    websocket::Frame,
};

/// How many sessions of other nodes may be in a room. It bounds the memory that a faulty node can use.
const MAX_REMOTE_SESSIONS: usize = 1 << 20;

/// The factor of multiplicative hashing: 2^64 divided by the golden ratio.
const HASH_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sessions of a room.
#[derive(Default)]
pub(super) struct Members {
    pub(super) sessions: IntMap<SessionId, Member>,
    /// The highest join number so far.
    pub(super) clock: u64,
    /// Present once a session has claimed a name.
    pub(super) names: Option<Box<Names>>,
    /// The view of the other nodes; `None` without a cluster, and after this node has left the room.
    pub(super) remote: Option<Box<RemoteView>>,
    /// Present once an outbox has filled up.
    flushes: OnceLock<Arc<Flushes>>,
}

/// Sessions of this node.
impl Members {
    /// No sessions yet, with a view of the other nodes if there is a cluster.
    pub(super) fn new(remote: Option<RemoteView>) -> Members {
        Members {
            remote: remote.map(Box::new),
            ..Members::default()
        }
    }

    /// The sessions of this node that take messages.
    pub(super) fn local(&self) -> impl Iterator<Item = (SessionId, &Sender)> {
        self.sessions
            .iter()
            .filter_map(|(id, member)| match &member.location {
                Location::Local(sender) => Some((*id, sender)),
                _ => None,
            })
    }

    /// Sends a frame to all sessions of this node except `author`. Returns how many receive it: one that takes nothing more
    /// is leaving.
    pub(super) fn push_to_local(
        &self,
        frame: &Frame,
        author: Option<SessionId>,
        flush_set: &mut FlushSet,
    ) -> usize {
        let mut receivers = 0;
        for (id, sender) in self.local() {
            if Some(id) != author {
                receivers += usize::from(sender.push(frame.clone(), flush_set).is_ok());
            }
        }
        self.note_room(flush_set);
        receivers
    }

    /// Notes the room in the set if an outbox has filled up.
    pub(super) fn note_room(&self, flush_set: &mut FlushSet) {
        flush_set.note_room(|| self.flushes.get_or_init(Arc::default).clone());
    }

    /// A flush of an outbox that had filled up, if one is under way.
    pub(super) fn flushing(&self) -> Option<Flushing> {
        self.flushes.get()?.first()
    }

    /// Adds a session of this node.
    pub(super) fn join(
        &mut self,
        room: &RoomName,
        id: SessionId,
        sender: Sender,
        info: Arc<SessionInfo>,
        flush_set: &mut FlushSet,
    ) {
        let new = dialects::of(room.dialect()).joined(id, info.public());
        if let Some(new) = &new {
            self.push_to_local(new, None, flush_set);
        }
        self.clock = (self.clock + 1).min(MAX_NUMBER);
        self.time_claim(&info);
        let member = Member::new(self.clock, info, Location::Local(sender));
        if let Some(remote) = &mut self.remote {
            let number = remote.send_event(room, Event::Join(member.to_record(id)));
            if let Ok(number) = number {
                remote.add_pending_join(id, number);
            }
            if let Some(new) = new {
                remote.record_own(number, &RecordedEvent::Joined(id, new));
            }
        }
        self.insert(room, id, member, flush_set);
    }

    /// Removes a session of this node that had left this many nodes behind when it came.
    pub(super) fn leave(
        &mut self,
        room: &RoomName,
        id: SessionId,
        moves: u32,
        flush_set: &mut FlushSet,
    ) {
        match self.sessions.get(&id) {
            Some(member) if member.location.is_own() && member.moves() == moves => {}
            // The session has migrated to another node, and may even be back.
            _ => {
                if let Some(remote) = &mut self.remote {
                    remote.migrations.remove_move(id, moves);
                }
                return;
            }
        }
        self.remove(room, id, flush_set);
        let close = dialects::of(room.dialect()).left(id);
        if let Some(close) = &close {
            self.push_to_local(close, None, flush_set);
        }
        if let Some(remote) = &mut self.remote {
            remote.remove_pending_join(id);
            let waiters = remote.migrations.remove(id);
            remote.send_ask_again(room, waiters);
            // If this node is disconnected, it sends everything when it is connected again.
            let number = remote.send_event(room, Event::Leave(id));
            if let Some(close) = close {
                remote.record_own(number, &RecordedEvent::Left(id, close));
            }
        }
    }

    /// Adds a session to the map, and the name that it claims.
    fn insert(&mut self, room: &RoomName, id: SessionId, member: Member, flush_set: &mut FlushSet) {
        let info = member.info.clone();
        self.sessions.insert(id, member);
        if let Some(claim) = &info.claim {
            self.add_claim(room, id, &claim.name, flush_set);
        }
    }

    /// Removes a session from the map, and the name that it claims.
    fn remove(&mut self, room: &RoomName, id: SessionId, flush_set: &mut FlushSet) {
        let removed = self.sessions.remove(&id);
        release_spare_capacity(&mut self.sessions);
        if let Some(name) =
            removed.and_then(|member| Some(member.info.claim.as_ref()?.name.clone()))
        {
            self.remove_claim(room, id, &name, flush_set);
        }
    }

    /// The length of all states in bytes, if that of one session were this value. To clear a state is always possible.
    pub(super) fn state_bytes(&self, id: SessionId, value: Option<&RawValue>) -> usize {
        let Some(value) = value else {
            return 0;
        };
        let others = self.sessions.iter().filter(|(other, _)| **other != id);
        let states = others.filter_map(|(_, member)| member.state()?.value.as_ref());
        let others: usize = states.map(|state| state.get().len()).sum();
        value.get().len() + others
    }

    /// Sets what a session of this node says of itself, and tells the others. Returns the number of bytes that
    /// this sends.
    pub(super) fn set_state(
        &mut self,
        room: &RoomName,
        id: SessionId,
        speaker: Speaker<'_>,
        value: Option<Box<RawValue>>,
        flush_set: &mut FlushSet,
    ) -> usize {
        let Some(member) = self.sessions.get_mut(&id) else {
            return 0;
        };
        let number = member.state_number().saturating_add(1);
        let Some(frame) = dialects::of(room.dialect()).state(id, value.as_deref()) else {
            return 0;
        };
        let state = Arc::new(SessionState { number, value });
        member.set_state(state.clone());
        self.push_to_local(&frame, Some(id), flush_set);
        self.introduce(room, Some(id));
        if let Some(remote) = &self.remote {
            // If this node is disconnected, it sends everything when it is connected again.
            let event = Event::State { id, state };
            let sent = remote.send_message(room, event, &[], speaker, |_, _| {});
            remote.record_own(sent, &RecordedEvent::State(id, number, frame.clone()));
        }
        frame.len().saturating_mul(self.sessions.len() - 1)
    }

    /// Announces a session that is about to send something, if the snapshot for some node has not come to
    /// it yet. That node would otherwise ignore what the session sends.
    pub(super) fn introduce(&self, room: &RoomName, id: Option<SessionId>) {
        let (Some(remote), Some(id)) = (&self.remote, id) else {
            return;
        };
        let mut snapshots = remote.snapshots.values();
        if snapshots.any(|snapshot| snapshot.must_introduce(id))
            && let Some(member) = self.sessions.get(&id)
        {
            let join = Event::Join(member.to_record(id));
            // If this node is disconnected, it sends everything when it is connected again.
            let _ = remote.send_event(room, join);
        }
    }
}

/// Sessions of other nodes.
impl Members {
    /// Adds a session that a node owns, or notes that the node owns it now. `number` is the number of the
    /// event.
    pub(super) fn add_remote(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        record: SessionRecord,
        flush_set: &mut FlushSet,
    ) {
        if self.sessions.contains_key(&record.id) {
            self.update_owner(room, node, &record);
            if let Some(state) = record.state {
                let id = record.id;
                let told = HeldState {
                    node,
                    number,
                    id,
                    state,
                };
                self.update_state_in_order(room, told, flush_set);
            }
            return;
        }
        let Some(remote) = &mut self.remote else {
            return;
        };
        if remote.remote_sessions >= MAX_REMOTE_SESSIONS {
            return;
        }
        remote.remote_sessions += 1;
        self.clock = self.clock.max(record.joined.min(MAX_NUMBER));
        let format = dialects::of(room.dialect());
        let new = format.joined(record.id, record.data.as_deref());
        let state = record.state.as_ref();
        let state = state.and_then(|it| {
            let frame = format.state(record.id, it.value.as_deref())?;
            Some((it.number, frame))
        });
        for (id, own) in &self.sessions {
            // A session that is still joining finds the earlier one among its peers instead.
            let joined_earlier = (record.joined, record.id) < (own.joined, *id)
                && remote.expects_earlier(*id, record.id);
            if let Location::Local(sender) = &own.location
                && !joined_earlier
            {
                // A session that takes nothing more is leaving, and needs no news.
                if let Some(new) = &new {
                    let _ = sender.push(new.clone(), flush_set);
                }
                if let Some((_, state)) = &state {
                    let _ = sender.push(state.clone(), flush_set);
                }
            }
        }
        if let Some(new) = new {
            let event = RecordedEvent::Joined(record.id, new);
            remote.lookups.record(node, number, &event);
        }
        if let Some((state_number, state)) = state {
            let event = RecordedEvent::State(record.id, state_number, state);
            remote.lookups.record(node, number, &event);
        }
        let id = record.id;
        let member = Member::from_record(record, Location::Remote(node));
        self.insert(room, id, member, flush_set);
        self.note_room(flush_set);
    }

    /// Takes in a state once all has come that the session has sent before.
    fn update_state_in_order(
        &mut self,
        room: &RoomName,
        told: HeldState,
        flush_set: &mut FlushSet,
    ) {
        let remote = self.remote.as_mut();
        if let Some(told) = remote.and_then(|remote| remote.hold_state(told)) {
            let HeldState {
                node,
                number,
                id,
                state,
            } = told;
            self.update_state(room, node, number, id, state, flush_set);
        }
    }

    /// Takes in the state that a session has set on a node, unless a later one is known. `number` is the number of the
    /// event.
    pub(super) fn update_state(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        id: SessionId,
        state: Arc<SessionState>,
        flush_set: &mut FlushSet,
    ) {
        if !self.may_speak(node, id) {
            return;
        }
        let Some(member) = self.sessions.get_mut(&id) else {
            return;
        };
        if state.number <= member.state_number() {
            return;
        }
        let Some(frame) = dialects::of(room.dialect()).state(id, state.value.as_deref()) else {
            return;
        };
        let event = RecordedEvent::State(id, state.number, frame.clone());
        member.set_state(state);
        self.push_to_local(&frame, None, flush_set);
        if let Some(remote) = &self.remote {
            remote.lookups.record(node, number, &event);
        }
    }

    /// Notes that a session has migrated to `node` from another, up to whose event with this number it has sent
    /// from there.
    pub(super) fn migrate_remote(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        record: SessionRecord,
        (from, last): (NodeId, u64),
        flush_set: &mut FlushSet,
    ) {
        if let Some(remote) = &mut self.remote {
            remote.note_moved(from, record.id, last);
        }
        let is_unknown = !self.sessions.contains_key(&record.id);
        let id = record.id;
        self.add_remote(room, node, number, record, flush_set);
        if is_unknown {
            self.send_redirected(room, from, id);
        }
    }

    /// Removes a session, if this node owns it. `number` is the number of the event.
    pub(super) fn remove_remote(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        id: SessionId,
        flush_set: &mut FlushSet,
    ) {
        if !self.is_on(node, id) {
            return;
        }
        self.remove(room, id, flush_set);
        let close = dialects::of(room.dialect()).left(id);
        if let Some(close) = &close {
            self.push_to_local(close, None, flush_set);
        }
        if let Some(remote) = &mut self.remote {
            drop(remote.migrations.remove(id));
            remote.forget_late(id);
            remote.remote_sessions -= 1;
            remote.note_left(id);
            if let Some(close) = close {
                let event = RecordedEvent::Left(id, close);
                remote.lookups.record(node, number, &event);
            }
        }
    }

    /// Removes all sessions of a node, which sends nothing more about the room.
    pub(super) fn remove_all_of(
        &mut self,
        room: &RoomName,
        node: NodeId,
        number: u64,
        flush_set: &mut FlushSet,
    ) {
        for id in self.ids_on(node) {
            self.remove_remote(room, node, number, id, flush_set);
        }
        self.end_stay(room, node, flush_set);
    }

    /// Ends what waits for a node that has no session in the room any more.
    pub(super) fn end_stay(&mut self, room: &RoomName, node: NodeId, flush_set: &mut FlushSet) {
        self.end_waits(room, flush_set);
        if let Some(remote) = &mut self.remote {
            let finished = remote.migrations.redirected(node, None);
            remote.send_forwarding_done(room, finished);
        }
    }

    /// Ends the waits that need not go on.
    pub(super) fn end_waits(&mut self, room: &RoomName, flush_set: &mut FlushSet) {
        let remote = self.remote.as_mut();
        let states = remote.map_or_else(Vec::new, |remote| remote.end_waits(room));
        for held in states {
            self.update_state_in_order(room, held, flush_set);
        }
    }

    /// Whether a session is on that other node.
    pub(super) fn is_on(&self, node: NodeId, id: SessionId) -> bool {
        let member = self.sessions.get(&id);
        member.is_some_and(|member| member.location.is_on(node))
    }

    /// Whether a message that comes from a node may be of this session: the session is there, or was when it sent
    /// the message.
    pub(super) fn may_speak(&self, node: NodeId, id: SessionId) -> bool {
        let remote = self.remote.as_ref();
        let is_late = || remote.is_some_and(|remote| remote.is_late(node, id));
        self.is_on(node, id) || self.sessions.contains_key(&id) && is_late()
    }

    /// The sessions of another node.
    pub(super) fn ids_on(&self, node: NodeId) -> Vec<SessionId> {
        let sessions = self.sessions.iter();
        let remote = sessions.filter(|(_, member)| member.location.is_on(node));
        remote.map(|(id, _)| *id).collect()
    }

    /// The exclusive or of all ids of sessions at these locations, and that of the hashes of their states, which a
    /// digest compares.
    pub(super) fn hashes(&self, includes: impl Fn(&Location) -> bool) -> [u64; 2] {
        let sessions = self.sessions.iter();
        let included = sessions.filter(|(_, member)| includes(&member.location));
        included.fold([0, 0], |[ids, states], (id, member)| {
            let bits = id.bits();
            let id = (bits >> 64) as u64 ^ bits as u64;
            let state = match member.state_number() {
                0 => 0,
                // The product depends on the id, so that the same change of two states shows.
                number => id.wrapping_add(number).wrapping_mul(HASH_FACTOR),
            };
            [ids ^ id, states ^ state]
        })
    }
}

/// Sessions that change their node.
impl Members {
    /// Changes how a session is reached.
    pub(super) fn set_location(&mut self, id: SessionId, location: Location) {
        let (Some(member), Some(remote)) = (self.sessions.get_mut(&id), &mut self.remote) else {
            return;
        };
        let remote_sessions =
            |location: &Location| usize::from(matches!(location, Location::Remote(_)));
        remote.remote_sessions += remote_sessions(&location);
        remote.remote_sessions -= remote_sessions(&member.location);
        member.location = location;
    }

    /// Takes in that a node claims a known session. If two nodes claim a session, the right one is the
    /// one that counts more moves.
    fn update_owner(&mut self, room: &RoomName, node: NodeId, claim: &SessionRecord) {
        let id = claim.id;
        let Some(known) = self.sessions.get_mut(&id) else {
            return;
        };
        let is_later = claim.moves > known.moves();
        match known.location {
            Location::Remote(other) if is_later => {
                known.set_moves(claim.moves);
                self.set_location(id, Location::Remote(node));
                self.send_redirected(room, other, id);
            }
            Location::Remote(other) if other != node => self.send_redirected(room, node, id),
            Location::Migrating(_) if is_later => {
                known.set_moves(claim.moves);
                self.set_location(id, Location::Remote(node));
                self.finish_migration(room, id, node);
            }
            Location::Local(_) | Location::Importing(..) if is_later => {
                debug!("{node} claims {id}, which is on this node");
            }
            _ => {}
        }
    }

    /// Notes that a session of this node has arrived at another. The other nodes in the room may still
    /// send to it over this one.
    fn finish_migration(&mut self, room: &RoomName, id: SessionId, node: NodeId) {
        let Some(remote) = &mut self.remote else {
            return;
        };
        let senders = remote.present_nodes().filter(|other| *other != node);
        let senders = senders.collect();
        let waiters = remote.migrations.arrived(id, &senders);
        remote.send_ask_again(room, waiters);
        let finished = remote.migrations.redirected(node, Some(id));
        remote.send_forwarding_done(room, finished);
    }

    /// Tells a node that this node sends nothing more to a session over it.
    fn send_redirected(&self, room: &RoomName, node: NodeId, id: SessionId) {
        if let Some(remote) = &self.remote {
            remote.send_redirected(room, node, id);
        }
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use tokio::sync::oneshot;

    use super::{
        super::migrations::{Migration, Waiter},
        *,
    };
    use crate::{
        cluster::{Direct, Message, TestLink},
        outbox::tests::outbox_to,
        protocol::ResumeToken,
    };

    /// The sessions of a room on this node, in a cluster with two other nodes.
    struct TestRoom {
        link: TestLink,
        room: RoomName,
        members: Members,
        nodes: [NodeId; 2],
    }

    impl TestRoom {
        fn new() -> TestRoom {
            let (link, room) = (TestLink::open(), RoomName::default_room());
            let nodes = [NodeId::random(), NodeId::random()];
            let view = RemoteView::enter(&room, &link.outbound, &nodes.into(), false);
            TestRoom {
                link,
                room,
                members: Members::new(Some(view)),
                nodes,
            }
        }

        fn join(&mut self, sender: &Sender) -> SessionId {
            let info = Arc::new(SessionInfo::new(None, None));
            let id = SessionId::random();
            let mut flush_set = FlushSet::default();
            let (members, room) = (&mut self.members, &self.room);
            members.join(room, id, sender.clone(), info, &mut flush_set);
            id
        }

        /// Takes in that a node owns a session.
        fn claim(&mut self, node: NodeId, id: SessionId, joined: u64, moves: u32) {
            let mut flush_set = FlushSet::default();
            let record = record(id, joined, moves);
            let (members, room) = (&mut self.members, &self.room);
            members.add_remote(room, node, 1, record, &mut flush_set);
        }

        fn remove(&mut self, node: NodeId, id: SessionId) {
            let mut flush_set = FlushSet::default();
            let (members, room) = (&mut self.members, &self.room);
            members.remove_remote(room, node, 2, id, &mut flush_set);
        }

        /// How many nodes were told that this one sends nothing more to a session over them.
        fn count_redirected(&self) -> usize {
            let mut count = 0;
            self.link.carry_to(&TestLink::open(), |envelope| {
                let is_one = matches!(envelope.message, Message::Node(Direct::Turned { .. }));
                count += usize::from(is_one);
            });
            count
        }
    }

    fn record(id: SessionId, joined: u64, moves: u32) -> SessionRecord {
        SessionRecord {
            joined,
            moves,
            ..SessionRecord::first(id)
        }
    }

    #[test]
    fn of_nodes_that_claim_a_session_the_one_after_the_most_moves_owns_it() {
        let mut test = TestRoom::new();
        let ([one, other], id) = (test.nodes, SessionId::random());
        test.claim(one, id, 1, 3);
        assert_eq!(test.count_redirected(), 0);
        for (moves, owner, redirected) in [
            (2, one, 1),
            (3, one, 1),
            // The session has moved.
            (4, other, 1),
            (4, other, 0),
            (3, other, 0),
        ] {
            test.claim(other, id, 1, moves);
            assert!(test.members.is_on(owner, id), "{moves}");
            assert_eq!(test.count_redirected(), redirected, "{moves}");
        }
    }

    #[test]
    fn the_last_node_of_an_unknown_session_is_told_that_nothing_comes_over_it() {
        let mut test = TestRoom::new();
        let ([from, to], id) = (test.nodes, SessionId::random());
        // Nothing that the session has sent from there is still to come.
        let remote = test.members.remote.as_mut().unwrap();
        remote.view(from).unwrap().answer_absent(1);
        for (moves, redirected) in [(1, 1), (1, 0)] {
            let record = record(id, 1, moves);
            let mut flush_set = FlushSet::default();
            let (members, room) = (&mut test.members, &test.room);
            members.migrate_remote(room, to, 1, record, (from, 0), &mut flush_set);
            assert_eq!(test.count_redirected(), redirected);
        }
    }

    #[test]
    fn a_session_that_migrates_arrives_with_the_claim_of_a_later_move() {
        let mut test = TestRoom::new();
        let (sender, _outbox, _stream) = outbox_to(1000, 1000);
        let (to, id) = (test.nodes[0], test.join(&sender));
        let token = ResumeToken::random(None).hash();
        let remote = test.members.remote.as_mut().unwrap();
        let (migration, mut finished) = Migration::new(record(id, 1, 0), to, 7, token);
        remote.migrations.insert(migration);
        let (again, mut waiting) = oneshot::channel();
        assert!(remote.migrations.add_waiter(&token, Waiter::Local(again)));
        test.members.set_location(id, Location::Migrating(to));

        test.claim(to, id, 1, 0);
        assert!(!test.members.is_on(to, id) && waiting.try_recv().is_err());
        test.claim(to, id, 1, 1);
        assert!(test.members.is_on(to, id));
        assert_eq!(waiting.try_recv(), Ok(()));
        // No other node in the room sends anything over this one.
        assert_eq!(
            finished.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
    }

    #[test]
    fn a_session_that_is_joining_is_not_told_of_earlier_ones() {
        let mut test = TestRoom::new();
        let [one, _] = test.nodes;
        test.members.clock = 5;
        let (sender, _outbox, _stream) = outbox_to(1000, 1000);
        let id = test.join(&sender);
        let messages = || sender.stats().messages;
        let [earlier, later, last] = [(); 3].map(|()| SessionId::random());
        test.claim(one, earlier, 3, 0);
        assert_eq!(messages(), 0);
        test.claim(one, later, 9, 0);
        assert_eq!(messages(), 1);
        // The session is told that the earlier one has left. So it is told if that one is back.
        test.remove(one, earlier);
        assert_eq!(messages(), 2);
        test.claim(one, earlier, 3, 0);
        assert_eq!(messages(), 3);
        // The session has joined.
        let remote = test.members.remote.as_mut().unwrap();
        remote.remove_pending_join(id);
        test.claim(one, last, 4, 0);
        assert_eq!(messages(), 4);
    }

    #[test]
    fn a_session_that_joins_after_an_earlier_one_has_left_is_not_told_that_it_is_back() {
        let mut test = TestRoom::new();
        let [one, _] = test.nodes;
        test.members.clock = 5;
        let (sender, _outbox, _stream) = outbox_to(1000, 1000);
        let earlier = SessionId::random();
        test.claim(one, earlier, 3, 0);
        test.join(&sender);
        test.remove(one, earlier);
        let (late_sender, _late_outbox, _late_stream) = outbox_to(1000, 1000);
        test.join(&late_sender);
        test.claim(one, earlier, 3, 0);
        // The first one is told that the earlier one has left, that the late one has joined, and that the
        // earlier one is back.
        assert_eq!(sender.stats().messages, 3);
        assert_eq!(late_sender.stats().messages, 0);
    }

    #[test]
    fn a_hash_of_ids_is_the_exclusive_or_of_all_their_bits() {
        let hash = |ids: &[SessionId]| {
            let mut members = Members::default();
            for id in ids {
                let location = Location::Remote(NodeId::random());
                let member = Member::from_record(record(*id, 1, 0), location);
                members.sessions.insert(*id, member);
            }
            members.hashes(|_| true)[0]
        };
        let [one, high, low] = [
            "6c1f0a52-9d0e-4f5b-8a37-2f6f6c1b7e11",
            "7c1f0a52-9d0e-4f5b-8a37-2f6f6c1b7e11",
            "6c1f0a52-9d0e-4f5b-8a37-2f6f6c1b7e10",
        ]
        .map(|id| SessionId::parse(id).unwrap());
        assert_eq!(hash(&[]), 0);
        assert_eq!(hash(&[one, high]), 0x1000_0000_0000_0000);
        assert_eq!(hash(&[one, low]), 1);
        assert_eq!(hash(&[one]) ^ hash(&[high]), hash(&[one, high]));
    }
}
