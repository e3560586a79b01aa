//! Flushing of many outboxes by the task that filled them.

use std::sync::Arc;

use arrayvec::ArrayVec;
use tokio_util::task::TaskTracker;

use super::queue::Channel;

/// How many outboxes are flushed in one turn. A large room takes many turns, and the sender's next message
/// comes after them: a sender must not fill outboxes faster than they are emptied.
const FLUSHED_AT_ONCE: usize = 16;

/// A set with so many outboxes beyond the first batch is large.
const LARGE: usize = 4 * FLUSHED_AT_ONCE;

/// Outboxes that were idle and have frames now. The task that filled them flushes them at the end of its
/// turn. An outbox that is still in the set when the set is dropped is flushed by its session, which is
/// woken: thus joins and leaves of a crowd are written in fewer pieces.
#[derive(Default)]
pub(crate) struct FlushSet {
    pub(super) first: Batch,
    /// Empty while `first` has room.
    others: Vec<Arc<Channel>>,
}

/// Outboxes that are flushed in one turn.
type Batch = ArrayVec<Arc<Channel>, FLUSHED_AT_ONCE>;

impl FlushSet {
    pub(super) fn push(&mut self, channel: Arc<Channel>) {
        if let Err(full) = self.first.try_push(channel) {
            self.others.push(full.element());
        }
    }

    /// Whether it takes many turns to flush them all.
    pub(crate) fn is_large(&self) -> bool {
        self.others.len() >= LARGE
    }

    /// Flushes the first batch as far as their sockets accept data. The next batch is the first then.
    pub(crate) fn flush_first(&mut self) {
        // One by one: whoever is left when this fails is woken.
        while let Some(channel) = self.first.pop() {
            channel.flush_for_session();
        }
        self.first = self.take_batch();
    }

    /// Flushes all of them as far as their sockets accept data: the first batch now, each further batch in
    /// a task of `tasks`.
    pub(crate) fn flush(&mut self, tasks: &TaskTracker) {
        while !self.others.is_empty() {
            let mut batch = FlushSet {
                first: self.take_batch(),
                others: Vec::new(),
            };
            tasks.spawn(async move { batch.flush_first() });
        }
        self.flush_first();
    }

    fn take_batch(&mut self) -> Batch {
        let rest = self.others.len().saturating_sub(FLUSHED_AT_ONCE);
        self.others.drain(rest..).collect()
    }
}

impl Drop for FlushSet {
    fn drop(&mut self) {
        for channel in self.first.iter().chain(&self.others) {
            channel.wake();
        }
    }
}
