//! Messages that are queued together, and the sequence of messages about a room. No I/O.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::MutexGuard;
use tokio::sync::Notify;

use super::{
    flow_control::{Kind, Load, Quota},
    queue::{Disconnected, Outgoing, Queue, Subject},
    wire::{self, Answer, Broadcast, Direct, Event, Message, NodeId, RoomEvent, Want},
};
use crate::protocol::{RoomName, TokenHash};

/// The number of the last message of this node about a room; 0 if there is none. Each message names the
/// number of the one before, so that receivers notice a missing message.
#[derive(Default)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Queues several messages with no messages of other tasks between. It holds the lock of the queue.
pub(crate) struct Batch<'a> {
    node: NodeId,
    queue: MutexGuard<'a, Queue>,
    filled: &'a Notify,
}

impl<'a> Batch<'a> {
    /// A batch of messages of this node, which notifies `filled` at its end.
    pub(super) fn new(node: NodeId, queue: MutexGuard<'a, Queue>, filled: &'a Notify) -> Batch<'a> {
        Batch {
            node,
            queue,
            filled,
        }
    }

    /// Sends a message to every node.
    pub(super) fn tell_all(&mut self, what: Broadcast) -> Result<u64, Disconnected> {
        let message = Message::All(what);
        self.send(Subject::All, None, &message, &[], Load::Control)
    }

    /// The number of the next message.
    pub(crate) fn next_number(&self) -> u64 {
        self.queue.number + 1
    }

    /// Tells a node why it does not get a session.
    pub(crate) fn answer(&mut self, node: NodeId, room: RoomName, seek: u64, answer: Answer) {
        let answer = Direct::Answer { room, seek, answer };
        self.notify(node, answer);
    }

    /// Asks every node for a session.
    pub(crate) fn want(&mut self, want: Want) -> Result<u64, Disconnected> {
        self.tell_all(Broadcast::Want(want))
    }

    /// Asks every node whether it has the session whose token has this hash.
    pub(crate) fn find(
        &mut self,
        mark: u64,
        room: RoomName,
        token: TokenHash,
    ) -> Result<u64, Disconnected> {
        self.tell_all(Broadcast::Find { room, mark, token })
    }

    /// Sends a control message to a node. While this node is disconnected, the message is dropped.
    pub(crate) fn notify(&mut self, node: NodeId, what: Direct) {
        let _ = self.tell_node(node, what, &[], Load::Control);
    }

    /// Sends a reply to a node.
    ///
    /// # Errors
    ///
    /// [`Disconnected`] if there is no room for replies: other nodes decide how many there are.
    pub(crate) fn reply(&mut self, node: NodeId, what: Direct) -> Result<u64, Disconnected> {
        match self.queue.has_room_for_kind(Kind::Reply) {
            true => self.tell_node(node, what, &[], Load::Reply),
            false => Err(Disconnected),
        }
    }

    /// Sends a message to a node and returns its number. `text` is the JSON of a client or a backend.
    ///
    /// # Errors
    ///
    /// [`Disconnected`], and the message is dropped.
    pub(crate) fn tell_node(
        &mut self,
        node: NodeId,
        what: Direct,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        let before = self.queue.bytes();
        let count = match (&load, self.queue.window(node)) {
            (Load::Message(_), Some(window)) => Some(window.count_direct()),
            _ => None,
        };
        let message = Message::Node(what);
        let subject = Subject::Node(node);
        let number = self.send(subject, count, &message, text, load.clone())?;
        if load.kind().is_some() {
            let bytes = self.queue.bytes() - before;
            self.queue.add_to_window(node, number, bytes, &load);
        }
        Ok(number)
    }

    /// Sends the next message about a room to all nodes in it, and returns its number.
    ///
    /// # Errors
    ///
    /// [`Disconnected`]. The sequence advances all the same, so that the next message shows that this one
    /// is missing.
    pub(crate) fn tell_room(
        &mut self,
        room: &RoomName,
        sequence: &Sequence,
        what: Event,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        let message = Message::Room(RoomEvent {
            room: room.clone(),
            after: sequence.last(),
            what,
        });
        let subject = Subject::Room(room.clone());
        let result = self.send(subject, None, &message, text, load);
        sequence.0.store(self.queue.number, Relaxed);
        result
    }

    /// Sends a message of a client or a backend to all nodes in a room, which are `nodes`.
    ///
    /// # Errors
    ///
    /// As [`tell_room`](Batch::tell_room).
    pub(crate) fn broadcast(
        &mut self,
        room: &RoomName,
        sequence: &Sequence,
        sender: Event,
        text: &[u8],
        quota: Option<&Arc<Quota>>,
        nodes: impl Iterator<Item = NodeId>,
    ) -> Result<u64, Disconnected> {
        let before = self.queue.bytes();
        let load = Load::Message(quota.cloned());
        let number = self.tell_room(room, sequence, sender, text, load.clone())?;
        let bytes = self.queue.bytes() - before;
        for node in nodes {
            self.queue.add_to_window(node, number, bytes, &load);
        }
        Ok(number)
    }

    /// Subscribes to a room and announces this node there.
    pub(crate) fn enter(&mut self, room: &RoomName, sequence: &Sequence) {
        self.subscribe(room);
        // A disconnected node needs no announcement: it lists all its sessions to each node that comes up.
        let _ = self.tell_all(Broadcast::Enter { room: room.clone() });
        sequence.0.store(self.queue.number, Relaxed);
    }

    /// Subscribes to the messages of other nodes about a room.
    pub(crate) fn subscribe(&mut self, room: &RoomName) {
        // A disconnected node subscribes to all its rooms when it reconnects.
        let _ = self.queue.push(Outgoing::Subscribe(room.clone()));
    }

    /// Tells the nodes in a room that this one leaves, and unsubscribes. The reverse of
    /// [`enter`](Batch::enter).
    pub(crate) fn exit(&mut self, room: &RoomName, sequence: &Sequence) {
        let _ = self.tell_room(room, sequence, Event::Exit, &[], Load::Control);
        let _ = self.queue.push(Outgoing::Unsubscribe(room.clone()));
    }

    /// Numbers and queues a message. The number is used up even if the message cannot be sent.
    fn send(
        &mut self,
        subject: Subject,
        count: Option<u64>,
        message: &Message,
        text: &[u8],
        load: Load,
    ) -> Result<u64, Disconnected> {
        self.queue.number += 1;
        if !self.queue.is_open() {
            return Err(Disconnected);
        }
        let number = self.queue.number;
        let bytes = wire::encode(self.node, number, count, message, text);
        self.queue.push(Outgoing::Message(subject, bytes, load))?;
        Ok(number)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.queue.is_empty() {
            self.filled.notify_one();
        }
    }
}
