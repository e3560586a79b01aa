//! Flow control: how much may wait for other nodes, by kind of message, by session and by node. No I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::Waker,
};

use parking_lot::Mutex;

use super::wire::NodeId;

/// Bytes of client messages that may wait. Each kind has a limit of its own, so that no kind keeps another
/// out. Together the limits are small, so that a message behind them, such as the heartbeat of this node,
/// arrives in time on a slow network.
pub(super) const MESSAGE_BYTES: usize = 4 << 20;

/// Bytes of joins and migrations that may wait.
const LINE_BYTES: usize = 2 << 20;

/// Bytes of lists that may wait.
const LIST_BYTES: usize = 2 << 20;

/// Bytes of replies that may wait.
const REPLY_BYTES: usize = 2 << 20;

/// Bytes that one session may have in the queue.
pub(super) const QUOTA_BYTES: usize = 256 << 10;

/// Bytes that a node may not have acknowledged yet.
pub(super) const WINDOW_BYTES: u64 = 8 << 20;

/// Bytes between two checkpoints of a window.
const CHECKPOINT_BYTES: u64 = 16 << 10;

/// How a message counts towards the limits of the queue.
#[derive(Clone)]
pub(crate) enum Load {
    /// A message that must be sent now: liveness, membership, acknowledgements. Only the limit of the whole
    /// queue applies.
    Control,
    /// A message of a client or a backend. After sending it, a session waits until its quota has room; a
    /// backend has no quota.
    Message(Option<Arc<Quota>>),
    /// A session that joins or migrates. Its task has waited in line before.
    Line,
    /// A chunk of a list: sessions, rooms or digests.
    List,
    /// A reply that no task waits to send. A reply without room is dropped.
    Reply,
}

impl Load {
    /// The kind whose limit applies; `None` for control messages.
    pub(super) fn kind(&self) -> Option<Kind> {
        match self {
            Load::Control => None,
            Load::Message(_) => Some(Kind::Message),
            Load::Line => Some(Kind::Line),
            Load::List => Some(Kind::List),
            Load::Reply => Some(Kind::Reply),
        }
    }
}

/// A kind of message with a limit of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Message,
    Line,
    List,
    Reply,
}

impl Kind {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 4;

    /// Bytes below which there is room for another message of this kind.
    fn limit(self) -> usize {
        match self {
            // Sessions that wait continue only when half is free, so that they do not stop again at once.
            Kind::Message => MESSAGE_BYTES / 2,
            Kind::Line => LINE_BYTES,
            Kind::List => LIST_BYTES,
            Kind::Reply => REPLY_BYTES,
        }
    }
}

/// Bytes that wait in the queue, by kind.
#[derive(Default)]
pub(super) struct Usage([usize; Kind::COUNT]);

impl Usage {
    pub(super) fn add(&mut self, kind: Kind, bytes: usize) {
        self.0[kind as usize] += bytes;
    }

    /// Removes bytes of a kind. Returns whether that made room for the kind.
    pub(super) fn remove(&mut self, kind: Kind, bytes: usize) -> bool {
        let had_room = self.has_room(kind);
        self.0[kind as usize] -= bytes;
        !had_room && self.has_room(kind)
    }

    pub(super) fn has_room(&self, kind: Kind) -> bool {
        self.0[kind as usize] < kind.limit()
    }

    /// Whether all sessions together have reached the limit of client messages.
    pub(super) fn is_full(&self) -> bool {
        self.0[Kind::Message as usize] > MESSAGE_BYTES
    }
}

/// The use of the queue by one session, or by another task that waits for room.
///
/// Its lock is taken after the lock of the queue, or alone. It is almost never contended: only the owner and
/// the task of the node use it.
#[derive(Default)]
pub(crate) struct Quota {
    kind: Kind,
    state: Mutex<QuotaState>,
}

#[derive(Default)]
struct QuotaState {
    /// Bytes in the queue.
    bytes: usize,
    /// A node whose window was full when the owner last sent to it.
    slow: Option<NodeId>,
    /// Whether the quota is in the queue's list of waiters.
    is_listed: bool,
    /// The task that waits for room.
    waker: Option<Waker>,
}

impl Quota {
    fn of(kind: Kind) -> Quota {
        Quota {
            kind,
            ..Quota::default()
        }
    }

    /// The quota of the tasks that wait in line.
    pub(super) fn of_line() -> Quota {
        Quota::of(Kind::Line)
    }

    /// The quota of all lists.
    pub(crate) fn of_lists() -> Quota {
        Quota::of(Kind::List)
    }

    /// The kind of message that the owner sends.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the owner must wait, for its own bytes or for a slow node.
    pub(super) fn is_exceeded(&self) -> bool {
        let state = self.state.lock();
        state.bytes > QUOTA_BYTES || state.slow.is_some()
    }

    /// Whether an owner that waits may continue: half of its quota is free, and the node that was slow has
    /// room again.
    pub(super) fn has_room(&self, windows: &BTreeMap<NodeId, Window>) -> bool {
        let state = self.state.lock();
        let slow = state.slow.and_then(|node| windows.get(&node));
        state.bytes <= QUOTA_BYTES / 2 && slow.is_none_or(Window::has_room)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.state.lock().bytes += bytes;
    }

    /// Removes bytes, and wakes the owner when half of the quota becomes free.
    pub(super) fn remove(&self, bytes: usize) {
        let mut state = self.state.lock();
        let before = state.bytes;
        state.bytes -= bytes;
        if before > QUOTA_BYTES / 2 && state.bytes <= QUOTA_BYTES / 2 {
            let waker = state.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// Sets the node that the owner must wait for, or `None`.
    pub(super) fn set_slow(&self, node: Option<NodeId>) {
        self.state.lock().slow = node;
    }

    /// Registers the task to wake. Returns whether the quota must be added to the list of waiters.
    pub(super) fn wait(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        state.waker = Some(waker.clone());
        !std::mem::replace(&mut state.is_listed, true)
    }

    /// Wakes the owner, which is no longer in the list of waiters.
    pub(super) fn wake(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.is_listed = false;
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The window of a node: what it was sent, except control messages, and what it has acknowledged.
#[derive(Default)]
pub(super) struct Window {
    sent: Amount,
    acknowledged: Amount,
    /// The amount that was sent up to some of the messages, by their numbers. Acknowledgements name a
    /// number, and need not name one of these.
    checkpoints: VecDeque<(u64, Amount)>,
    /// The number of the last message.
    last: u64,
    /// How many client messages were sent to this node alone.
    direct: u64,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    bytes: u64,
    /// Messages of clients and backends.
    messages: u64,
}

impl Window {
    /// Whether a session that waits for the node may continue: half of the window is free.
    pub(super) fn has_room(&self) -> bool {
        self.sent.bytes - self.acknowledged.bytes <= WINDOW_BYTES / 2
    }

    /// Whether a session that sends to the node must wait.
    pub(super) fn is_full(&self) -> bool {
        self.sent.bytes - self.acknowledged.bytes > WINDOW_BYTES
    }

    /// Messages of clients and backends that the node has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.sent.messages - self.acknowledged.messages
    }

    /// Counts a client message to this node alone. Returns how many there are with this one.
    pub(super) fn count_direct(&mut self) -> u64 {
        self.direct += 1;
        self.direct
    }

    /// Adds a message with this number.
    pub(super) fn add(&mut self, number: u64, bytes: usize, is_client_message: bool) {
        let checkpoint = self.checkpoints.back();
        let noted = checkpoint.map_or(self.acknowledged, |(_, sent)| *sent);
        self.sent.bytes += bytes as u64;
        self.sent.messages += u64::from(is_client_message);
        self.last = number;
        if self.sent.bytes - noted.bytes >= CHECKPOINT_BYTES {
            self.checkpoints.push_back((number, self.sent));
        }
    }

    /// The node has received everything up to this number.
    pub(super) fn acknowledge(&mut self, number: u64) {
        if number >= self.last {
            self.acknowledged = self.sent;
            self.checkpoints.clear();
        }
        let is_covered = |(checkpoint, _): &mut (u64, Amount)| *checkpoint <= number;
        while let Some((_, sent)) = self.checkpoints.pop_front_if(is_covered) {
            self.acknowledged = sent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_acknowledged_up_to_the_last_checkpoint_or_the_end() {
        let mut window = Window::default();
        for number in 1..=100 {
            window.add(number, CHECKPOINT_BYTES as usize / 4, number % 2 == 0);
        }
        assert_eq!(window.unacknowledged(), 50);
        // Every fourth message is a checkpoint.
        window.acknowledge(11);
        assert_eq!(window.unacknowledged(), 46);
        window.acknowledge(5);
        assert_eq!(window.unacknowledged(), 46);
        window.acknowledge(100);
        assert_eq!(window.unacknowledged(), 0);
        assert!(window.checkpoints.is_empty() && window.has_room());
    }

    #[test]
    fn a_full_window_has_room_when_half_of_it_is_acknowledged() {
        let mut window = Window::default();
        let size = WINDOW_BYTES as usize / 4;
        for number in 1..=4 {
            window.add(number, size, true);
            assert!(!window.is_full());
        }
        window.add(5, size, true);
        assert!(window.is_full());
        window.acknowledge(2);
        assert!(!window.is_full() && !window.has_room());
        window.acknowledge(3);
        assert!(window.has_room());
    }
}
