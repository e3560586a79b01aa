//! The thread that stores messages. It stores all that wait in one transaction, so that a slow disk makes larger
//! batches and not a longer queue.

use std::{
    fmt::Display,
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use log::{error, info};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    page::Entry,
    receipt::Receipt,
    store::{self, Store},
};
use crate::{
    config::HistoryOptions,
    metrics::Metrics,
    protocol::{Escaped, RoomName},
    unix_time,
};

/// The most messages of one transaction.
const MAX_BATCH: usize = 4096;

/// How often messages that are too old are removed.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// How long the thread waits after an error before it opens the store again.
const OPEN_EVERY: Duration = Duration::from_secs(1);

/// What the thread is asked to do, in this order.
pub(super) enum Command {
    /// Stores a message, and confirms it.
    Append(Entry, Option<Receipt>),
    /// Removes one message of a room, or all; answers with their number.
    Remove(RoomName, Option<u64>, oneshot::Sender<usize>),
    /// Answers when all that was asked before is done.
    Flush(oneshot::Sender<()>),
    /// Closes the store, and ends the thread.
    Close(oneshot::Sender<()>),
}

/// The thread's part of the history.
pub(super) struct Writer {
    pub(super) commands: Receiver<Command>,
    /// `None` while the store cannot be used.
    pub(super) store: Arc<Mutex<Option<Arc<Store>>>>,
    /// The bytes that wait to be stored.
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) options: HistoryOptions,
    pub(super) metrics: Arc<Metrics>,
    /// When the store was opened last.
    pub(super) opened: Option<Instant>,
    /// Whether the last work on the store has failed.
    pub(super) is_failing: bool,
    /// Whether the messages keep to the limits. New messages do so from then on.
    pub(super) is_trimmed: bool,
}

impl Writer {
    /// Works until the history is dropped or closed.
    pub(super) fn run(mut self) {
        let mut expire_at = Instant::now();
        let (mut batch, mut flushes) = (Vec::new(), Vec::new());
        loop {
            if expire_at <= Instant::now() {
                let pause = match self.expire() {
                    true => Duration::ZERO,
                    false => EXPIRE_EVERY,
                };
                expire_at = Instant::now() + pause;
            }
            let until_expiry = expire_at.saturating_duration_since(Instant::now());
            let mut command = match self.commands.recv_timeout(until_expiry) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            loop {
                match command {
                    Some(Command::Append(entry, receipt)) => batch.push((entry, receipt)),
                    Some(Command::Flush(done)) => flushes.push(done),
                    Some(Command::Remove(..) | Command::Close(_)) | None => break,
                }
                command = match batch.len() < MAX_BATCH {
                    true => self.commands.try_recv().ok(),
                    false => None,
                };
            }
            self.append(mem::take(&mut batch));
            if !flushes.is_empty() {
                // Who waits may want to read, also if nothing can be stored.
                self.open();
            }
            for done in flushes.drain(..) {
                let _ = done.send(());
            }
            match command {
                Some(Command::Remove(room, number, answer)) => {
                    // `answer` is dropped if the messages cannot be removed.
                    if let Some(removed) = self.run_on_store(|store| store.remove(&room, number)) {
                        let _ = answer.send(removed);
                    }
                }
                Some(Command::Close(done)) => {
                    *self.store.lock() = None;
                    let _ = done.send(());
                    return;
                }
                Some(Command::Append(..) | Command::Flush(_)) | None => {}
            }
        }
    }

    /// Stores messages and confirms them.
    fn append(&mut self, batch: Vec<(Entry, Option<Receipt>)>) {
        if batch.is_empty() {
            return;
        }
        let (entries, receipts): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut append = || self.run_on_store(|store| store.append(&entries)).is_some();
        // The store may be usable again once it is opened anew. A message that is stored twice is there once.
        let stored = append() || append();
        let bytes = entries.iter().map(|entry| entry.content.len()).sum();
        self.waiting.fetch_sub(bytes, Relaxed);
        let count = entries.len() as u64;
        match stored {
            true => self.metrics.history_stored.inc_by(count),
            false => self.metrics.history_failed.inc_by(count),
        };
        for receipt in receipts.into_iter().flatten() {
            receipt.confirm(stored, &self.metrics);
        }
    }

    /// Removes some messages that are too old, or too many. Returns whether there may be more.
    fn expire(&mut self) -> bool {
        if !self.is_trimmed {
            self.is_trimmed = self.run_on_store(Store::trim) != Some(true);
            return true;
        }
        let time = store::before(unix_time::unix_millis(), self.options.age());
        self.run_on_store(|store| store.expire(time)) == Some(true)
    }

    /// Works on the store. Returns `None` if it cannot be used.
    fn run_on_store<T>(
        &mut self,
        work: impl FnOnce(&Store) -> Result<T, store::Error>,
    ) -> Option<T> {
        match work(&*self.open()?) {
            Ok(done) => {
                if mem::take(&mut self.is_failing) {
                    info!("the history is stored again");
                }
                Some(done)
            }
            Err(failure) => {
                // After an error the database must be opened again.
                *self.store.lock() = None;
                self.fail(failure);
                None
            }
        }
    }

    /// The store, which is opened if need be, but not all the time.
    fn open(&mut self) -> Option<Arc<Store>> {
        let open = self.store.lock().clone();
        if open.is_some() || self.opened.is_some_and(|at| at.elapsed() < OPEN_EVERY) {
            return open;
        }
        self.opened = Some(Instant::now());
        match Store::open(&self.options) {
            Ok(store) => {
                let store = Arc::new(store);
                *self.store.lock() = Some(store.clone());
                Some(store)
            }
            Err(failure) => {
                self.fail(failure);
                None
            }
        }
    }

    /// Logs the first failure of several.
    fn fail(&mut self, failure: impl Display) {
        if !mem::replace(&mut self.is_failing, true) {
            error!("the history is not stored: {}", Escaped(failure));
        }
    }
}
