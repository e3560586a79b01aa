//! The queue of messages to other nodes, with their numbers. No I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Release},
    },
    task::Waker,
};

use super::{
    flow_control::{Kind, Load, Quota, Usage, Window},
    wire::{MAX_NUMBER, NodeId},
};
use crate::protocol::RoomName;

/// Bytes that may wait before this node disconnects from the others. Only control messages reach this
/// limit, because the others have limits of their own.
const LIMIT: usize = 64 << 20;

/// The highest number of another node that this node follows. A higher number is an error of that node: a
/// million messages a second take 142 years to get there.
pub(super) const MAX_OBSERVED: u64 = MAX_NUMBER / 2;

/// An item of the queue: a step of the task that writes to NATS.
pub(super) enum Outgoing {
    Message(Subject, Vec<u8>, Load),
    Subscribe(RoomName),
    Unsubscribe(RoomName),
}

/// Which nodes receive a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    All,
    /// The nodes that have a session in the room.
    Room(RoomName),
    Node(NodeId),
}

/// The message was not sent, because this node is disconnected from the others, or its queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disconnected;

impl Outgoing {
    /// Bytes that the item takes in memory. Names of rooms are shared and do not count.
    pub(super) fn cost(&self) -> usize {
        let message = match self {
            Outgoing::Message(_, message, _) => message.len(),
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) => 0,
        };
        message + size_of::<Outgoing>()
    }

    fn kind(&self) -> Option<Kind> {
        match self {
            Outgoing::Message(_, _, load) => load.kind(),
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) => None,
        }
    }

    fn quota(&self) -> Option<&Arc<Quota>> {
        match self {
            Outgoing::Message(_, _, Load::Message(quota)) => quota.as_ref(),
            _ => None,
        }
    }
}

/// Everything that waits to be written to NATS, in order.
pub(super) struct Queue {
    /// The number of the last message. Numbers are a logical clock (Lamport, 1978): a message has a higher
    /// number than everything that this node has sent or received before.
    pub(super) number: u64,
    waiting: VecDeque<Outgoing>,
    /// Bytes that wait, including those that [`take`](Queue::take) returned and that are not written yet.
    bytes: usize,
    usage: Usage,
    is_open: bool,
    /// How often the queue was closed. Items of an earlier epoch are not written.
    epoch: u64,
    is_finished: bool,
    /// The nodes that are up.
    windows: BTreeMap<NodeId, Window>,
    /// The quotas whose owners wait for room.
    waiters: Vec<Arc<Quota>>,
    /// Whether client messages have reached their limit, for a check without the lock of the queue.
    is_full: Arc<AtomicBool>,
}

impl Queue {
    /// An empty, closed queue.
    pub(super) fn new(is_full: Arc<AtomicBool>) -> Queue {
        Queue {
            number: 0,
            waiting: VecDeque::new(),
            bytes: 0,
            usage: Usage::default(),
            is_open: false,
            epoch: 0,
            is_finished: false,
            windows: BTreeMap::new(),
            waiters: Vec::new(),
            is_full,
        }
    }

    /// Accepts items from now on.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Empties the queue and accepts no more items. Returns the discarded items, so that the caller frees
    /// them without the lock.
    pub(super) fn close(&mut self) -> VecDeque<Outgoing> {
        self.is_open = false;
        self.epoch += 1;
        self.bytes = 0;
        self.usage = Usage::default();
        self.is_full.store(false, Release);
        let discarded = mem::take(&mut self.waiting);
        for item in &discarded {
            if let Some(quota) = item.quota() {
                quota.remove(item.cost());
            }
        }
        self.wake_waiters();
        discarded
    }

    /// Ends the queue: [`is_finished`](Queue::is_finished) once all items are taken.
    pub(super) fn finish(&mut self) {
        self.is_finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an item at the end.
    ///
    /// # Errors
    ///
    /// [`Disconnected`] if the queue is closed, or is now because it has reached its limit.
    pub(super) fn push(&mut self, item: Outgoing) -> Result<(), Disconnected> {
        if !self.is_open {
            return Err(Disconnected);
        }
        let cost = item.cost();
        self.bytes += cost;
        if self.bytes > LIMIT {
            // A part of what the other nodes must know is of no use to them.
            self.close();
            return Err(Disconnected);
        }
        if let Some(kind) = item.kind() {
            self.usage.add(kind, cost);
            if self.usage.is_full() {
                self.is_full.store(true, Release);
            }
        }
        if let Some(quota) = item.quota() {
            quota.add(cost);
        }
        self.waiting.push_back(item);
        Ok(())
    }

    /// Takes everything that waits. Its bytes count until it is [`written`](Queue::written).
    pub(super) fn take(&mut self) -> VecDeque<Outgoing> {
        mem::take(&mut self.waiting)
    }

    /// Releases the bytes of an item of this epoch that was written or discarded.
    pub(super) fn written(&mut self, epoch: u64, cost: usize, load: &Load) {
        if self.epoch == epoch {
            self.bytes -= cost;
            if let Some(kind) = load.kind()
                && self.usage.remove(kind, cost)
            {
                if let Kind::Message = kind {
                    self.is_full.store(false, Release);
                }
                self.wake_waiters();
            }
        }
        // `poll_room` checks and registers under the lock of the queue, so it cannot miss this wake-up.
        if let Load::Message(Some(quota)) = load {
            quota.remove(cost);
        }
    }

    /// Opens the window of a node that is up.
    pub(super) fn up(&mut self, node: NodeId) {
        self.windows.entry(node).or_default();
    }

    /// Removes the window of a node that is down. Returns how many client messages the node has not
    /// acknowledged.
    pub(super) fn down(&mut self, node: NodeId) -> u64 {
        let window = self.windows.remove(&node).unwrap_or_default();
        self.wake_waiters();
        window.unacknowledged()
    }

    /// A node has received everything up to this number.
    pub(super) fn acknowledge(&mut self, node: NodeId, number: u64) {
        let Some(window) = self.windows.get_mut(&node) else {
            return;
        };
        window.acknowledge(number);
        if window.has_room() {
            self.wake_waiters();
        }
    }

    /// The window of a node, if it is up.
    pub(super) fn window(&mut self, node: NodeId) -> Option<&mut Window> {
        self.windows.get_mut(&node)
    }

    /// Adds a message to the window of a node. A session that fills the window must wait for the node.
    pub(super) fn add_to_window(&mut self, node: NodeId, number: u64, bytes: usize, load: &Load) {
        let Some(window) = self.windows.get_mut(&node) else {
            return;
        };
        window.add(number, bytes, matches!(load, Load::Message(_)));
        if window.is_full()
            && let Load::Message(Some(quota)) = load
        {
            quota.set_slow(Some(node));
        }
    }

    /// What waits, or is not acknowledged.
    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn leftovers(&self) -> Vec<String> {
        let unacknowledged = self
            .windows
            .values()
            .any(|window| window.unacknowledged() > 0);
        [
            (
                !self.is_empty() || self.bytes > 0,
                "messages in the outbound queue",
            ),
            (unacknowledged, "messages that a node has not acknowledged"),
            (
                !self.waiters.is_empty(),
                "sessions that wait for the outbound queue",
            ),
        ]
        .into_iter()
        .filter(|(is_left, _)| *is_left)
        .map(|(_, what)| what.to_owned())
        .collect()
    }

    /// Whether there is room for another message of this kind.
    pub(super) fn has_room_for_kind(&self, kind: Kind) -> bool {
        self.usage.has_room(kind)
    }

    /// Whether there is room for a chunk of a list to this node. If its window is full, the owner of the
    /// quota waits for the node next time.
    pub(super) fn has_room_for_node(&self, node: NodeId, quota: &Quota) -> bool {
        let has_room = self.windows.get(&node).is_none_or(Window::has_room) || !self.is_open;
        if !has_room {
            quota.set_slow(Some(node));
        }
        has_room && self.usage.has_room(quota.kind())
    }

    /// Whether the owner of a quota may continue. Otherwise wakes it when that may have changed.
    pub(super) fn poll_room(&mut self, waker: &Waker, quota: &Arc<Quota>) -> bool {
        let has_room = self.usage.has_room(quota.kind()) && quota.has_room(&self.windows);
        // While this node is disconnected, nothing is queued, so there is nothing to wait for.
        if has_room || !self.is_open {
            quota.set_slow(None);
            return true;
        }
        if quota.wait(waker) {
            self.waiters.push(quota.clone());
        }
        false
    }

    /// Wakes all owners that wait for room. Each checks again.
    fn wake_waiters(&mut self) {
        self.waiters.drain(..).for_each(|quota| quota.wake());
    }
}
