//! The sessions of a room, on this node and on others.
//!
//! Every change goes through the methods here: each changes the map, tells the sessions of this node
//! (`new` or `close`), tells the other nodes where this node owns the session, and records the event for
//! sessions that migrate to this node.

use std::sync::Arc;

use log::debug;
use nohash_hasher::IntMap;
use serde_json::value::RawValue;

use super::{
    location::Location, member::Member, recorded_event::RecordedEvent, remote_view::RemoteView,
    session_info::SessionInfo, speaker::Speaker,
};
use crate::{
    cluster::{Event, MAX_NUMBER, NodeId, SessionRecord, SessionState},
    outbox::{FlushSet, Sender},
    protocol::{self, RoomName, SessionId},
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
    /// The view of the other nodes; `None` without a cluster, and after this node has left the room.
    pub(super) remote: Option<Box<RemoteView>>,
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

    /// Sends a frame to all sessions of this node.
    pub(super) fn push_to_local(&self, frame: &Frame, flush_set: &mut FlushSet) {
        for (_, sender) in self.local() {
            // A session that takes nothing more is leaving, and needs no news.
            let _ = sender.push(frame.clone(), flush_set);
        }
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
        let new = protocol::joined(id, info.public.as_deref());
        self.push_to_local(&new, flush_set);
        self.clock = (self.clock + 1).min(MAX_NUMBER);
        let member = Member {
            location: Location::Local(sender),
            joined: self.clock,
            moves: 0,
            info,
            state: None,
        };
        if let Some(remote) = &mut self.remote {
            let number = remote.send_event(room, Event::Join(member.to_record(id)));
            if let Ok(number) = number {
                remote.add_pending_join(id, number);
            }
            remote.record_own(number, &RecordedEvent::Joined(id, new));
        }
        self.sessions.insert(id, member);
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
            Some(member) if member.location.is_own() && member.moves == moves => {}
            // The session has migrated to another node, and may even be back.
            _ => {
                if let Some(remote) = &mut self.remote {
                    remote.migrations.remove_move(id, moves);
                }
                return;
            }
        }
        self.sessions.remove(&id);
        release_spare_capacity(&mut self.sessions);
        let close = protocol::left(id);
        self.push_to_local(&close, flush_set);
        if let Some(remote) = &mut self.remote {
            remote.remove_pending_join(id);
            let waiters = remote.migrations.remove(id);
            remote.send_ask_again(room, waiters);
            // If this node is disconnected, it sends everything when it is connected again.
            let number = remote.send_event(room, Event::Leave(id));
            remote.record_own(number, &RecordedEvent::Left(id, close));
        }
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
        let frame = protocol::state(id, value.as_deref());
        let state = Arc::new(SessionState { number, value });
        member.state = Some(state.clone());
        for (other, sender) in self.local() {
            if other != id {
                // A session that takes nothing more is leaving, and needs no news.
                let _ = sender.push(frame.clone(), flush_set);
            }
        }
        self.introduce(room, Some(id));
        if let Some(remote) = &self.remote {
            // If this node is disconnected, it sends everything when it is connected again.
            let event = Event::State { id, state };
            let sent = remote.send_message(room, event, &[], speaker);
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
                self.update_state(node, number, record.id, state, flush_set);
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
        let new = protocol::joined(record.id, record.data.as_deref());
        let state = record.state.as_ref();
        let state = state.map(|it| (it.number, protocol::state(record.id, it.value.as_deref())));
        for (id, own) in &self.sessions {
            // A session that is still joining finds the earlier one among its peers instead.
            let joined_earlier = (record.joined, record.id) < (own.joined, *id)
                && remote.expects_earlier(*id, record.id);
            if let Location::Local(sender) = &own.location
                && !joined_earlier
            {
                // A session that takes nothing more is leaving, and needs no news.
                let _ = sender.push(new.clone(), flush_set);
                if let Some((_, state)) = &state {
                    let _ = sender.push(state.clone(), flush_set);
                }
            }
        }
        let event = RecordedEvent::Joined(record.id, new);
        remote.lookups.record(node, number, &event);
        if let Some((state_number, state)) = state {
            let event = RecordedEvent::State(record.id, state_number, state);
            remote.lookups.record(node, number, &event);
        }
        let id = record.id;
        let member = Member::from_record(record, Location::Remote(node));
        self.sessions.insert(id, member);
    }

    /// Takes in the state of a session that a node owns, unless a later one is known. `number` is the number of the
    /// event.
    pub(super) fn update_state(
        &mut self,
        node: NodeId,
        number: u64,
        id: SessionId,
        state: Arc<SessionState>,
        flush_set: &mut FlushSet,
    ) {
        let member = self.sessions.get_mut(&id);
        let Some(member) = member.filter(|member| member.location.is_on(node)) else {
            return;
        };
        if state.number <= member.state_number() {
            return;
        }
        let frame = protocol::state(id, state.value.as_deref());
        let event = RecordedEvent::State(id, state.number, frame.clone());
        member.state = Some(state);
        self.push_to_local(&frame, flush_set);
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
        node: NodeId,
        number: u64,
        id: SessionId,
        flush_set: &mut FlushSet,
    ) {
        if !self.is_on(node, id) {
            return;
        }
        self.sessions.remove(&id);
        release_spare_capacity(&mut self.sessions);
        let close = protocol::left(id);
        self.push_to_local(&close, flush_set);
        if let Some(remote) = &mut self.remote {
            drop(remote.migrations.remove(id));
            remote.forget_late(id);
            remote.remote_sessions -= 1;
            remote.note_left(id);
            let event = RecordedEvent::Left(id, close);
            remote.lookups.record(node, number, &event);
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
            self.remove_remote(node, number, id, flush_set);
        }
        if let Some(remote) = &mut self.remote {
            let finished = remote.migrations.redirected(node, None);
            remote.end_waits(room);
            remote.send_forwarding_done(room, finished);
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
        let is_later = claim.moves > known.moves;
        match known.location {
            Location::Remote(other) if is_later => {
                known.moves = claim.moves;
                self.set_location(id, Location::Remote(node));
                self.send_redirected(room, other, id);
            }
            Location::Remote(other) if other != node => self.send_redirected(room, node, id),
            Location::Migrating(_) if is_later => {
                known.moves = claim.moves;
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
