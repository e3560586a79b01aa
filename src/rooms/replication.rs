//! The messages of other nodes about a room, applied to the room.

use std::collections::BTreeMap;

use super::{
    location::Location,
    members::Members,
    node_view::{EventOrder, NodeView},
    recorded_event::RecordedEvent,
    replies::{Replies, Undelivered},
    room::Room,
};
use crate::{
    cluster::{Digest, Direct, Event, Load, MAX_NUMBER, NodeId, RoomEvent, SnapshotChunk},
    dialects,
    outbox::FlushSet,
    protocol::{self, Close, Problem, RoomName, SessionId},
};

/// Nodes that come and go.
impl Room {
    /// Notes that a node is up.
    pub(super) fn node_up(&self, node: NodeId) {
        if let Some(remote) = &mut self.members.write().remote {
            remote.add_node(node);
        }
    }

    /// Notes that a node is down.
    pub(super) fn node_down(&self, node: NodeId) {
        if let Some(remote) = &mut self.members.write().remote {
            remote.remove_node(node);
        }
    }

    /// Removes sessions of a node that is down, at most `most`, until an outbox has filled up. Reduces `most` by their
    /// number. Returns whether some are left.
    pub(super) fn remove_sessions(
        &self,
        node: NodeId,
        most: &mut usize,
        flush_set: &mut FlushSet,
    ) -> bool {
        let mut members = self.members.write();
        let Some(remote) = &members.remote else {
            return false;
        };
        let number = remote.outbound.number();
        for id in members.ids_on(node) {
            if *most == 0 || flush_set.is_turn_over() {
                return true;
            }
            *most -= 1;
            members.remove_remote(&self.name, node, number, id, flush_set);
        }
        members.end_stay(&self.name, node, flush_set);
        false
    }

    /// Notes that a node has entered the room with this event, and has no session there.
    pub(super) fn node_entered(&self, node: NodeId, number: u64, flush_set: &mut FlushSet) {
        self.node_is_empty(node, number, flush_set, |view| view.enter(number));
    }

    /// Notes that a node has answered that it is not in the room.
    pub(super) fn node_absent(&self, node: NodeId, number: u64, flush_set: &mut FlushSet) {
        self.node_is_empty(node, number, flush_set, |view| view.answer_absent(number));
    }

    fn node_is_empty(
        &self,
        node: NodeId,
        number: u64,
        flush_set: &mut FlushSet,
        change: impl FnOnce(&mut NodeView),
    ) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node) {
            change(view);
            members.remove_all_of(&self.name, node, number, flush_set);
        }
    }
}

/// Sessions and messages.
impl Room {
    /// Takes in a chunk of a node's sessions.
    pub(super) fn apply_chunk(
        &self,
        node: NodeId,
        number: u64,
        chunk: SnapshotChunk,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        let mut members = self.members.write();
        let known = match chunk.after {
            None => members.ids_on(node),
            Some(_) => Vec::new(),
        };
        let Some(view) = members.view(node) else {
            return;
        };
        let Some(outcome) = view.receive_chunk(&chunk, known) else {
            return replies.ask(node, &self.name);
        };
        members.clock = members.clock.max(chunk.clock.min(MAX_NUMBER));
        for id in outcome.gone {
            members.remove_remote(&self.name, node, number, id, flush_set);
        }
        for record in chunk.members {
            members.add_remote(&self.name, node, number, record, flush_set);
        }
        members.end_waits(&self.name, flush_set);
        if outcome.is_complete {
            let own = members
                .remote
                .as_ref()
                .map_or(0, |remote| remote.last_own());
            replies.add_seen(node, &self.name, chunk.last, own);
        }
    }

    /// Takes in an event of the room on a node. `text` is the message of a broadcast.
    pub(super) fn apply_event(
        &self,
        node: NodeId,
        number: u64,
        event: RoomEvent,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        let mut members = self.members.write();
        let Some(view) = members.view(node) else {
            return;
        };
        match view.observe(number, event.after) {
            EventOrder::Duplicate => return,
            EventOrder::Next => {}
            EventOrder::AfterGap => replies.ask(node, &self.name),
        }
        match event.what {
            Event::Join(record) => {
                members.add_remote(&self.name, node, number, record, flush_set);
                let own = members
                    .remote
                    .as_ref()
                    .map_or(0, |remote| remote.last_own());
                replies.add_seen(node, &self.name, number, own);
            }
            Event::State { id, state } => {
                members.update_state(&self.name, node, number, id, state, flush_set);
            }
            Event::Leave(id) => {
                members.remove_remote(&self.name, node, number, id, flush_set);
            }
            Event::Arrive { member, from, last } => {
                let from = (from, last);
                members.migrate_remote(&self.name, node, number, member, from, flush_set);
            }
            Event::Broadcast(sender) => {
                // A session of another node speaks only through that node.
                if sender.is_none_or(|id| members.may_speak(node, id)) {
                    let frame = protocol::from_json(text);
                    members.push_to_local(&frame, None, flush_set);
                    if let Some(remote) = &members.remote {
                        let event = RecordedEvent::Broadcast(sender, frame);
                        remote.lookups.record(node, number, &event);
                    }
                } else if let Some(view) = members.view(node) {
                    view.skip(number, event.after);
                }
            }
            Event::Exit => {
                view.exit(number);
                if let Some(remote) = &mut members.remote {
                    remote.snapshots.remove(&node);
                }
                members.remove_all_of(&self.name, node, number, flush_set);
            }
        }
        let remote = members.remote.as_ref();
        if remote.is_some_and(|remote| remote.has_event_waiters() || remote.holds_seen()) {
            members.end_waits(&self.name, flush_set);
        }
    }

    /// Notes that a node has seen this node's events up to this number, when its own last event was `last`.
    pub(super) fn apply_seen(
        &self,
        node: NodeId,
        number: u64,
        last: u64,
        flush_set: &mut FlushSet,
    ) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node) {
            view.note_seen(number, last);
            members.end_waits(&self.name, flush_set);
        }
    }

    /// Delivers a message of another node to a session of this one, or forwards it where the session has
    /// gone.
    pub(super) fn apply_unicast(
        &self,
        node: NodeId,
        number: u64,
        message: Undelivered<'_>,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        if !self.deliver(node, number, &message, text, flush_set) {
            replies.add_undelivered(node, &self.name, message);
        }
    }

    /// Delivers, records or forwards a message; returns `false` if it cannot be delivered.
    fn deliver(
        &self,
        node: NodeId,
        number: u64,
        message: &Undelivered<'_>,
        text: &str,
        flush_set: &mut FlushSet,
    ) -> bool {
        let members = self.members.read();
        let Some(remote) = &members.remote else {
            return false;
        };
        let (sender, receiver) = (message.sender, message.receiver);
        // A session speaks only through its own node, and a backend only through a node in the room.
        if !sender.map_or(remote.is_present(node), |id| members.may_speak(node, id)) {
            return false;
        }
        let member = members.sessions.get(&receiver);
        let location = member.map(|member| &member.location);
        match (location, remote.migrations.destination(receiver)) {
            (Some(Location::Local(outbox)), _) => {
                remote.note_delivered(node, number);
                outbox.push(protocol::from_json(text), flush_set).is_ok()
            }
            (Some(Location::Importing(import)), _) => {
                let frame = protocol::from_json(text);
                remote
                    .lookups
                    .record_unicast(import.lookup, node, number, sender, frame);
                true
            }
            (Some(_), Some((to, seek))) => {
                let forward = Direct::Forward {
                    room: self.name.clone(),
                    seek,
                    source: node,
                    number,
                    sender,
                    receiver,
                    reference: message.reference.map(ToOwned::to_owned),
                };
                let mut batch = remote.outbound.batch();
                let (text, load) = (text.as_bytes(), Load::Message(None));
                batch.tell_node(to, forward, text, load).is_ok()
            }
            _ => false,
        }
    }

    /// Tells a session of this node that its message was not delivered; returns whether it was told. If
    /// the session has migrated, its node is told instead.
    pub(super) fn report_undelivered(
        &self,
        from: NodeId,
        message: &Undelivered<'_>,
        flush_set: &mut FlushSet,
    ) -> bool {
        let members = self.members.read();
        let Some(sender) = message.sender else {
            return false;
        };
        let Some(member) = members.sessions.get(&sender) else {
            return false;
        };
        if let Some(outbox) = member.location.outbox() {
            let format = dialects::of(self.name.dialect());
            let told = match members.addressed_name(message.reference) {
                Some(name) => format.expired(&name, member.info.name().unwrap_or_default()),
                None => {
                    let problem = Problem::unknown_receiver(message.receiver);
                    format.error(sender, &problem, message.reference)
                }
            };
            return told.is_some_and(|told| outbox.push(told, flush_set).is_ok());
        }
        let node = member.location.node().filter(|node| *node != from);
        if let (Some(node), Some(remote)) = (node, &members.remote)
            && let Some(undelivered) = message.to_direct(&self.name)
        {
            // If the queue has no room for it, the sender is not told.
            let _ = remote.outbound.batch().reply(node, undelivered);
        }
        false
    }

    /// Closes a session of this node, because an operator wants it.
    pub(super) fn expel(&self, id: SessionId) {
        let members = self.members.read();
        let member = members.sessions.get(&id);
        if let Some(outbox) = member.and_then(|member| member.location.outbox()) {
            outbox.close(Close::by_operator());
        }
    }
}

/// Repair after lost messages.
impl Room {
    /// Adds the room to the list of each node whose sessions in it are not known, or whose events are waited for.
    pub(super) fn list_unknown(&self, rooms: &mut BTreeMap<NodeId, Vec<RoomName>>) {
        // In most rooms nothing is missing, and the lock for reading is enough.
        let all_known = {
            let members = self.members.read();
            let remote = members.remote.as_ref();
            remote.is_none_or(|remote| {
                remote.views().all(NodeView::is_known) && !remote.has_event_waiters()
            })
        };
        if all_known {
            return;
        }
        let mut members = self.members.write();
        let Some(remote) = &mut members.remote else {
            return;
        };
        let mut nodes = remote.awaited_nodes();
        for (node, view) in remote.views_mut() {
            if view.must_ask_again() {
                nodes.insert(node);
            }
        }
        for node in nodes {
            rooms.entry(node).or_default().push(self.name.clone());
        }
    }

    /// Compares the known sessions of a node with the node's digest.
    pub(super) fn compare_digest(&self, node: NodeId, digest: &Digest, replies: &mut Replies) {
        let mut members = self.members.write();
        let hashes = members.hashes(|location| location.is_on(node));
        if let Some(view) = members.view(node)
            && !view.agrees_with(digest, hashes)
        {
            replies.ask(node, &self.name);
        }
    }

    /// Notes the end of a node's digests. Together they list all rooms that both nodes are in.
    pub(super) fn end_digest(&self, node: NodeId, replies: &mut Replies) {
        let mut members = self.members.write();
        if let Some(view) = members.view(node)
            && !view.end_digest()
        {
            replies.ask(node, &self.name);
        }
    }
}

impl Members {
    fn view(&mut self, node: NodeId) -> Option<&mut NodeView> {
        self.remote.as_mut()?.view(node)
    }
}
