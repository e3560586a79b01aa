//! The task that sends messages to the store of a cluster. It sends all that wait, and then waits until they are
//! stored, so that a slow store makes larger batches and not a longer queue.

use std::{
    future, mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use log::{error, info};
use tokio::{
    sync::{mpsc::UnboundedReceiver, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{page::Entry, receipt::Receipt};
use crate::{
    cluster::{EventId, MessageStore, NodeId},
    metrics::Metrics,
    protocol::Escaped,
};

/// The most messages of one batch.
const MAX_BATCH: usize = 1024;

/// How long a message may wait to be stored.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to send a message.
const LIMIT: Duration = Duration::from_secs(2);

/// The time until a message is sent again.
const RETRY: Duration = Duration::from_millis(200);

/// What the task is asked to do, in this order.
pub(super) enum Command {
    /// Stores a message, and confirms it.
    Append(Waiting),
    /// Answers when all that was asked before is done.
    Flush(oneshot::Sender<()>),
    /// Ends the task.
    Close(oneshot::Sender<()>),
}

/// A message that waits to be stored.
pub(super) struct Waiting {
    pub(super) entry: Entry,
    pub(super) receipt: Option<Receipt>,
    pub(super) since: Instant,
}

/// The task's part of the history.
pub(super) struct SharedWriter {
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) store: Arc<dyn MessageStore>,
    pub(super) node: NodeId,
    /// The bytes that wait to be stored.
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether the last message that was tried was not stored in time.
    pub(super) is_failing: bool,
}

impl SharedWriter {
    /// Works until the history is dropped or closed.
    pub(super) async fn run(mut self) {
        let mut commands = Vec::new();
        while self.commands.recv_many(&mut commands, MAX_BATCH).await > 0 {
            let (mut batch, mut done, mut is_closed) = (Vec::new(), Vec::new(), false);
            for command in commands.drain(..) {
                match command {
                    Command::Append(waiting) => batch.push(waiting),
                    Command::Flush(flushed) => done.push(flushed),
                    Command::Close(closed) => {
                        done.push(closed);
                        is_closed = true;
                    }
                }
            }
            while !batch.is_empty() {
                batch = self.store(batch).await;
                if !batch.is_empty() {
                    sleep(RETRY).await;
                }
            }
            for done in done {
                let _ = done.send(());
            }
            if is_closed {
                return;
            }
        }
    }

    /// Sends messages to the store. Confirms those that it has stored, and gives up those that have waited too long.
    /// Returns the others.
    async fn store(&mut self, batch: Vec<Waiting>) -> Vec<Waiting> {
        let mut sent = Vec::with_capacity(batch.len());
        for Waiting { entry, .. } in &batch {
            let id = EventId {
                node: self.node,
                number: entry.number,
            };
            let content = entry.content.clone();
            let confirmation = timeout(LIMIT, self.store.append(&entry.room, id, content));
            let confirmation = confirmation
                .await
                .unwrap_or_else(|_| Err("no answer".into()));
            sent.push(match confirmation {
                Ok(confirmation) => confirmation,
                Err(error) => {
                    // Those behind it must not come before it.
                    let error = move || future::ready(Err(error.clone())).boxed();
                    sent.resize_with(batch.len(), error);
                    break;
                }
            });
        }
        let mut left = Vec::new();
        for (message, stored) in batch.into_iter().zip(join_all(sent).await) {
            match stored {
                Ok(()) => {
                    if mem::take(&mut self.is_failing) {
                        info!("the history is stored again");
                    }
                    self.end(message, true);
                }
                // If the store has it all the same, it is not stored again.
                Err(_) if message.since.elapsed() < PATIENCE => left.push(message),
                Err(error) => {
                    if !mem::replace(&mut self.is_failing, true) {
                        error!("the history is not stored: {}", Escaped(error));
                    }
                    self.end(message, false);
                }
            }
        }
        left
    }

    /// Tells the sender what has become of its message.
    fn end(&self, message: Waiting, is_stored: bool) {
        let Waiting { entry, receipt, .. } = message;
        self.waiting.fetch_sub(entry.content.len(), Relaxed);
        match is_stored {
            true => self.metrics.history_stored.inc(),
            false => self.metrics.history_failed.inc(),
        };
        if let Some(receipt) = receipt {
            receipt.confirm(is_stored, &self.metrics);
        }
    }
}
