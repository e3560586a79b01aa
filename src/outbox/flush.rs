//! Flushing of many outboxes by the task that filled them.

use std::{
    future::poll_fn,
    iter, mem,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use arrayvec::ArrayVec;
use parking_lot::Mutex;
use thin_vec::ThinVec;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::queue::{Channel, Duty};

/// How many outboxes are flushed in one turn.
const FLUSHED_AT_ONCE: usize = 32;

/// The fewest outboxes for which a second task is worth its cost.
const LEAST_SHARE: usize = 4 * FLUSHED_AT_ONCE;

/// Outboxes that a task has filled and flushes at the end of its turn. An outbox that is still in the set when the set
/// is dropped is flushed by its session, which is woken.
#[derive(Default)]
pub(crate) struct FlushSet {
    pub(super) first: Batch,
    /// Empty while `first` has room.
    others: Vec<Arc<Channel>>,
    /// Outboxes that are in a set already, in this or another, and may not wait for its next turns.
    pub(super) urgent: Vec<Arc<Channel>>,
    is_turn_over: bool,
    /// The flushes of the first room in which an outbox has filled up.
    flushes: Option<Arc<Flushes>>,
}

/// The flushes of a room that have begun because an outbox had filled up. Whoever is about to send to the room waits for
/// them. Otherwise each session of a large room could send one more message before the outboxes get their turn, and all of
/// these are more than an outbox holds.
#[derive(Default)]
pub(crate) struct Flushes(Mutex<ThinVec<Flushing>>);

/// A wait for the end of a flush that further tasks do. A clone is a wait of its own.
pub(crate) struct Flushing {
    end: Weak<WakeAtEnd>,
    /// Whether the task that waits is among those to be woken.
    is_registered: bool,
}

/// Shared by the tasks that flush a set. The last of them wakes the tasks that wait, in the order in which they began to.
#[derive(Default)]
struct WakeAtEnd(Mutex<Vec<Waker>>);

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

    /// Notes the room that was sent to last, if an outbox has filled up.
    pub(crate) fn note_room(&mut self, flushes: impl FnOnce() -> Arc<Flushes>) {
        if self.is_turn_over && self.flushes.is_none() {
            self.flushes = Some(flushes());
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
        let flushes = self.flushes.take();
        let others = mem::take(&mut self.others);
        for channel in mem::take(&mut self.urgent) {
            self.push(channel);
        }
        let urgent = mem::take(&mut self.others);
        let mut flushing = None;
        if !others.is_empty() || !urgent.is_empty() {
            let end = Arc::new(WakeAtEnd::default());
            let this = flushing.insert(Flushing {
                end: Arc::downgrade(&end),
                is_registered: false,
            });
            if let Some(flushes) = flushes {
                flushes.add(this.clone());
            }
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

    /// Flushes all outboxes if one has filled up. Otherwise it leaves them to their sessions, so that what a crowd adds is
    /// written in fewer pieces.
    pub(crate) fn settle(mut self, tasks: &TaskTracker) {
        // The last sessions end with the runtime.
        if self.is_turn_over && Handle::try_current().is_ok() {
            self.flush(tasks);
        }
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

impl Flushes {
    /// A flush that has not ended. There may be another one then.
    pub(crate) fn first(&self) -> Option<Flushing> {
        let mut flushes = self.0.lock();
        flushes.retain(|flushing| !flushing.has_ended());
        flushes.first().cloned()
    }

    fn add(&self, flushing: Flushing) {
        let mut flushes = self.0.lock();
        flushes.retain(|flushing| !flushing.has_ended());
        flushes.push(flushing);
    }
}

impl Flushing {
    /// Waits until all outboxes of the set have been flushed.
    pub(crate) async fn end(mut self) {
        poll_fn(|cx| self.poll_end(cx)).await;
    }

    /// Ready when all outboxes of the set have been flushed. It must be polled by the same task each time.
    pub(crate) fn poll_end(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Some(end) = self.end.upgrade() else {
            return Poll::Ready(());
        };
        if !mem::replace(&mut self.is_registered, true) {
            end.0.lock().push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn has_ended(&self) -> bool {
        self.end.strong_count() == 0
    }
}

impl Clone for Flushing {
    fn clone(&self) -> Flushing {
        Flushing {
            end: self.end.clone(),
            is_registered: false,
        }
    }
}

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.get_mut().drain(..).for_each(Waker::wake);
    }
}

impl Drop for FlushSet {
    fn drop(&mut self) {
        for channel in self.first.iter().chain(&self.others).chain(&self.urgent) {
            channel.wake();
        }
    }
}
