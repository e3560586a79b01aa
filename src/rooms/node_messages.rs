//! The messages of other nodes, applied to the rooms that they are about.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    index::Rooms,
    replies::{Replies, Undelivered},
    room::Room,
};
use crate::{
    cluster::{Direct, NodeId, RoomEvent},
    outbox::FlushSet,
    protocol::RoomName,
};

/// How many sessions of a lost node are removed at once.
const LOST_AT_ONCE: usize = 1000;

/// The sessions of a node that is down, which are removed in portions: to the sessions of this node, each is news.
pub(crate) struct LostNode {
    node: NodeId,
    rooms: Vec<Arc<Room>>,
}

impl LostNode {
    /// Removes a portion of the node's sessions, which ends when an outbox has filled up. Returns whether some are left.
    pub(crate) fn remove_sessions(&mut self, flush_set: &mut FlushSet) -> bool {
        let mut most = LOST_AT_ONCE;
        while let Some(room) = self.rooms.last() {
            if room.remove_sessions(self.node, &mut most, flush_set) {
                return true;
            }
            self.rooms.pop();
        }
        false
    }
}

/// Nodes that come and go.
impl Rooms {
    /// Notes that a node is up, and asks it for its sessions.
    pub(crate) fn node_up(&self, node: NodeId) {
        self.index.lock().nodes.insert(node);
        let rooms = self.all();
        rooms.iter().for_each(|room| room.node_up(node));
        let names = rooms.iter().map(|room| room.name.clone());
        self.snapshot_tasks.ask(node, names.collect());
    }

    /// Notes that a node is down. Its sessions have left, and are to be removed.
    #[must_use]
    pub(crate) fn node_down(&self, node: NodeId) -> LostNode {
        self.index.lock().nodes.remove(&node);
        let rooms = self.all();
        rooms.iter().for_each(|room| room.node_down(node));
        self.queries.node_down(node);
        LostNode { node, rooms }
    }

    /// Subscribes to all rooms again, on a new connection.
    pub(crate) fn resubscribe(&self) {
        let index = self.index.lock();
        if let Some(outbound) = &self.outbound {
            let mut batch = outbound.batch();
            index
                .rooms
                .keys()
                .for_each(|room| batch.subscribe(&room.0.name));
        }
    }
}

/// Messages that this node sends in chunks.
impl Rooms {
    /// Asks again the nodes that have not answered, and announces again what no node has answered to.
    pub(crate) fn ask_again(&self) {
        let mut asked = BTreeMap::new();
        for room in self.all() {
            room.list_unknown(&mut asked);
            room.announce_imports();
        }
        for (node, rooms) in asked {
            self.snapshot_tasks.ask(node, rooms);
        }
    }

    /// Begins to send digests of this node's sessions to all nodes. A node that has missed something
    /// notices it by its digest.
    pub(crate) fn send_digests(&self) {
        let nodes = self.index.lock().nodes.clone();
        for node in nodes {
            self.snapshot_tasks.send_digests(node, self.all());
        }
    }

    /// Whether there are chunks to send.
    pub(crate) fn has_chunks(&self) -> bool {
        !self.snapshot_tasks.is_empty()
    }

    /// Waits until the queue to other nodes has room for a chunk.
    pub(crate) async fn wait_for_chunk_space(&self) {
        if let Some(outbound) = &self.outbound {
            self.snapshot_tasks.wait_for_space(outbound).await;
        }
    }

    /// Sends some chunks, as far as the queue to other nodes has room for them.
    pub(crate) fn send_chunks(&self) {
        if let Some(outbound) = &self.outbound {
            self.snapshot_tasks.send_chunks(outbound);
        }
    }
}

/// Messages from other nodes.
impl Rooms {
    /// Notes that a node has entered a room, and has no session there.
    pub(crate) fn apply_enter(
        &self,
        node: NodeId,
        number: u64,
        name: RoomName,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        match self.find(&name) {
            Some(room) => {
                room.node_entered(node, number, flush_set);
                room.cancel_snapshot(node);
                self.snapshot_tasks.send_snapshot(node, &room);
            }
            None => replies.add_absent(node, name),
        }
    }

    /// Takes in an event of a room on a node. `text` is the message of a broadcast.
    pub(crate) fn apply_event(
        &self,
        node: NodeId,
        number: u64,
        event: RoomEvent,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        // The event may have been sent just before this node left the room.
        if let Some(room) = self.find(&event.room) {
            room.apply_event(node, number, event, text, replies, flush_set);
        }
    }

    /// Takes in a message that a node has sent to this node alone. `text` is the client's message that it
    /// carries, if it does.
    pub(crate) fn apply_direct(
        &self,
        node: NodeId,
        number: u64,
        message: Direct,
        text: &str,
        replies: &mut Replies,
        flush_set: &mut FlushSet,
    ) {
        match message {
            Direct::Ask(names) => {
                for name in names {
                    match self.find(&name) {
                        Some(room) => self.snapshot_tasks.send_snapshot(node, &room),
                        None => replies.add_absent(node, name),
                    }
                }
            }
            Direct::Members(chunk) => match self.find(&chunk.room) {
                Some(room) => room.apply_chunk(node, number, chunk, replies, flush_set),
                None => {
                    let name = chunk.room.clone();
                    if self.queries.receive_chunk(node, chunk) {
                        self.snapshot_tasks.ask(node, vec![name]);
                    }
                }
            },
            Direct::Absent(names) => {
                for name in names {
                    match self.find(&name) {
                        Some(room) => room.node_absent(node, number, flush_set),
                        None => self.queries.remove_node(node, &name),
                    }
                }
            }
            Direct::Seen { room, number, last } => {
                self.with_room(&room, |room| {
                    room.apply_seen(node, number, last, flush_set);
                });
            }
            Direct::Digest { rooms, more } => {
                for digest in rooms {
                    match self.find(&digest.room) {
                        Some(room) => room.compare_digest(node, &digest, replies),
                        None => replies.add_absent(node, digest.room),
                    }
                }
                if !more {
                    let rooms = self.all();
                    rooms.iter().for_each(|room| room.end_digest(node, replies));
                }
            }

            Direct::Unicast {
                room,
                sender,
                receiver,
                reference,
            } => {
                let message = Undelivered::new(sender, receiver, &reference);
                match self.find(&room) {
                    Some(room) if self.apply_named(node, &room, &message, text, flush_set) => {}
                    Some(room) => {
                        room.apply_unicast(node, number, message, text, replies, flush_set);
                    }
                    None => replies.add_undelivered(node, &room, message),
                }
            }
            Direct::Undelivered {
                room,
                sender,
                receiver,
                reference,
            } => {
                let message = Undelivered::new(Some(sender), receiver, &reference);
                let report = |room: &Room| room.report_undelivered(node, &message, flush_set);
                if self.with_room(&room, report) {
                    replies.told_undelivered += 1;
                }
            }
            Direct::Expel { room, id } => self.with_room(&room, |room| room.expel(id)),

            Direct::Answer { room, seek, answer } => self.with_room(&room, |room| {
                room.with_lookups(|lookups| lookups.receive_answer(node, seek, answer));
            }),
            Direct::Offer { room, seek, token } => {
                let accepted = self.with_room(&room, |room| {
                    room.with_lookups(|lookups| lookups.receive_offer(node, seek, &token))
                });
                let accept = Direct::Accept {
                    room,
                    seek,
                    accepted,
                };
                if let Some(outbound) = &self.outbound {
                    outbound.batch().notify(node, accept);
                }
            }
            Direct::Accept {
                room,
                seek,
                accepted,
            } => self.with_room(&room, |room| room.answer_offer(node, seek, accepted)),
            Direct::Handed(transfer) => {
                let name = transfer.room.clone();
                self.with_room(&name, |room| {
                    room.with_lookups(|lookups| lookups.receive_part(node, transfer, text));
                });
            }
            Direct::Turned { room, id } => {
                self.with_room(&room, |room| room.redirected(node, id));
            }
            Direct::Forward {
                room,
                seek,
                source,
                number,
                sender,
                receiver,
                reference,
            } => {
                let is_received = self.with_room(&room, |room| {
                    room.with_lookups(|lookups| {
                        lookups.receive_forwarded(node, seek, source, number, sender, text)
                    })
                });
                if !is_received {
                    let message = Undelivered::new(sender, receiver, &reference);
                    replies.add_undelivered(source, &room, message);
                }
            }
            Direct::Done { room, seek, seen } => self.with_room(&room, |room| {
                room.with_lookups(|lookups| lookups.forwarding_done(node, seek, seen));
            }),

            // They are about no room: the cluster, the history and the server handle them.
            Direct::Taken { .. }
            | Direct::FlushHistory { .. }
            | Direct::HistoryFlushed { .. }
            | Direct::Found { .. }
            | Direct::Post { .. }
            | Direct::End { .. }
            | Direct::Posted { .. } => {}
        }
    }

    /// Calls `f` with a room; returns the default if this node is not in it.
    fn with_room<T: Default>(&self, name: &RoomName, f: impl FnOnce(&Room) -> T) -> T {
        let room: Option<Arc<Room>> = self.find(name);
        room.map_or_else(T::default, |room| f(&room))
    }
}
