//! Flushing of many outboxes by the task that filled them.

use std::{
    future::poll_fn,
    iter, mem,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use arrayvec::ArrayVec;
use futures_util::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::queue::{Channel, Duty};

/// How many outboxes are flushed in one turn.
const FLUSHED_AT_ONCE: usize = 32;

/// The fewest outboxes for which a second task is worth its cost.
const LEAST_SHARE: usize = 4 * FLUSHED_AT_ONCE;

/// Outboxes that a task has filled and flushes at the end of its turn. An outbox that is still in the set when the set
/// is dropped is flushed by its session, which is woken: thus joins and leaves of a crowd are written in fewer pieces.
#[derive(Default)]
pub(crate) struct FlushSet {
    pub(super) first: Batch,
    /// Empty while `first` has room.
    others: Vec<Arc<Channel>>,
    /// Outboxes that are in a set already, in this or another, and may not wait for its next turns.
    pub(super) urgent: Vec<Arc<Channel>>,
    is_turn_over: bool,
}

/// The end of a flush that further tasks do.
pub(crate) struct Flushing(Weak<WakeAtEnd>);

/// Shared by the tasks that flush a set. Wakes the task that waits for the last of them.
struct WakeAtEnd(AtomicWaker);

/// Outboxes that are flushed in one turn.
type Batch = ArrayVec<Arc<Channel>, FLUSHED_AT_ONCE>;

impl FlushSet {
    /// Takes a sender's duty on.
    pub(super) fn take_on(&mut self, duty: Duty, channel: &Arc<Channel>) {
        match duty {
            Duty::Nothing => {}
            Duty::Flush => self.push(channel.clone()),
            Duty::FlushNow => {
                self.urgent.push(channel.clone());
                self.is_turn_over = true;
            }
            Duty::EndTurn => self.is_turn_over = true,
        }
    }

    fn push(&mut self, channel: Arc<Channel>) {
        if let Err(full) = self.first.try_push(channel) {
            self.others.push(full.element());
        }
    }

    /// Whether the sender must add nothing more in this turn, because an outbox has filled up.
    pub(crate) fn is_turn_over(&self) -> bool {
        self.is_turn_over
    }

    /// Flushes all outboxes as far as their sockets accept data: a first batch now, others in tasks of `tasks`. What is
    /// urgent gets a task for each batch. The rest takes one turn for each batch, in few tasks: they occupy at most half of
    /// the runtime's threads, if there are several, so that a large room leaves time to others. Returns the end of these
    /// tasks. Until then, the caller should add no more.
    pub(crate) fn flush(&mut self, tasks: &TaskTracker) -> Option<Flushing> {
        let others = mem::take(&mut self.others);
        for channel in mem::take(&mut self.urgent) {
            self.push(channel);
        }
        let urgent = mem::take(&mut self.others);
        let mut flushing = None;
        if !others.is_empty() || !urgent.is_empty() {
            let end = Arc::new(WakeAtEnd(AtomicWaker::new()));
            flushing = Some(Flushing(Arc::downgrade(&end)));
            let threads = Handle::current().metrics().num_workers();
            let share = others.len().div_ceil((threads / 2).max(1));
            let shares = shares_of(others, share.max(LEAST_SHARE));
            for share in shares_of(urgent, FLUSHED_AT_ONCE).chain(shares) {
                tasks.spawn(flush_share(share, end.clone()));
            }
        }
        self.flush_first();
        flushing
    }

    fn take_batch(&mut self) -> Batch {
        let rest = self.others.len().saturating_sub(FLUSHED_AT_ONCE);
        self.others.drain(rest..).collect()
    }

    fn flush_first(&mut self) {
        // One by one: whoever is left when this fails is woken.
        while let Some(channel) = self.first.pop() {
            channel.flush_for_session();
        }
    }
}

/// Divides outboxes into shares of a size.
fn shares_of(
    mut channels: Vec<Arc<Channel>>,
    size: usize,
) -> impl Iterator<Item = Vec<Arc<Channel>>> {
    iter::from_fn(move || {
        let rest = channels.len().saturating_sub(size);
        (!channels.is_empty()).then(|| channels.split_off(rest))
    })
}

/// Flushes outboxes, in one turn for each batch.
async fn flush_share(channels: Vec<Arc<Channel>>, end: Arc<WakeAtEnd>) {
    let mut flush_set = FlushSet::default();
    flush_set.others = channels;
    loop {
        flush_set.first = flush_set.take_batch();
        flush_set.flush_first();
        if flush_set.others.is_empty() {
            break;
        }
        end_turn().await;
    }
    drop(end);
}

/// Lets each task that is ready take a turn. tokio's `yield_now` waits until none is ready, for 61 turns at most.
async fn end_turn() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Flushing {
    /// Waits until all outboxes of the set have been flushed.
    pub(crate) async fn end(self) {
        poll_fn(|cx| self.poll_end(cx)).await;
    }

    /// Ready when all outboxes of the set have been flushed.
    pub(crate) fn poll_end(&self, cx: &Context<'_>) -> Poll<()> {
        match self.0.upgrade() {
            Some(end) => {
                end.0.register(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Drop for FlushSet {
    fn drop(&mut self) {
        for channel in self.first.iter().chain(&self.others).chain(&self.urgent) {
            channel.wake();
        }
    }
}
