//! The history of a server that is alone: in a file, or in memory.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
        mpsc::{Sender, channel},
    },
    thread,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
};

use super::{
    local_writer::{Command, Writer},
    page::{Entry, Page, Query, Unavailable},
    past::{Past, PastOf},
    receipt::Receipt,
    store::Store,
};
use crate::{config::HistoryOptions, metrics::Metrics, protocol::RoomName, unix_time};

/// How many pages are read at once.
const READS_AT_ONCE: usize = 4;

/// The history of a server that is alone.
pub(super) struct LocalLog {
    /// The number of the next message.
    next: AtomicU64,
    store: Arc<Mutex<Option<Arc<Store>>>>,
    commands: Sender<Command>,
    reads: Arc<Semaphore>,
}

impl LocalLog {
    /// Opens the history. `waiting` are the bytes that wait to be stored.
    ///
    /// # Errors
    ///
    /// The folder or the file cannot be used; the message names it.
    pub(super) fn open(
        options: &HistoryOptions,
        waiting: Arc<AtomicUsize>,
        metrics: Arc<Metrics>,
    ) -> io::Result<LocalLog> {
        let opened = Store::open(options)?;
        // The numbers of a store that is lost are not used again: sessions may outlive it.
        let micros = unix_time::unix_millis() * 1000;
        let next = opened.next_number().map_err(io::Error::other)?.max(micros);
        let store = Arc::new(Mutex::new(Some(Arc::new(opened))));
        let (commands, received) = channel();
        let writer = Writer {
            commands: received,
            store: store.clone(),
            waiting,
            options: options.clone(),
            metrics,
            opened: None,
            is_failing: false,
            is_trimmed: false,
        };
        thread::Builder::new()
            .name("history".into())
            .spawn(|| writer.run())?;
        Ok(LocalLog {
            next: AtomicU64::new(next),
            store,
            commands,
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
        })
    }

    /// The number of the next message.
    pub(super) fn next_number(&self) -> u64 {
        self.next.load(SeqCst)
    }

    /// The size of what is stored, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let store = self.store.lock().clone();
        let bytes = store.and_then(|store| store.bytes().ok());
        bytes.unwrap_or_default()
    }

    /// Numbers what is said from now on from at least this number.
    pub(super) fn number_from(&self, number: u64) {
        self.next.fetch_max(number, SeqCst);
    }

    /// Has a message stored, and the receipt sent then.
    pub(super) fn append(
        &self,
        room: &RoomName,
        content: Bytes,
        time: u64,
        receipt: Option<Receipt>,
    ) -> Result<(), Unavailable> {
        let entry = Entry {
            room: room.clone(),
            number: self.next.fetch_add(1, SeqCst),
            content,
            time,
        };
        let append = Command::Append(entry, receipt);
        self.commands.send(append).map_err(|_| Unavailable)
    }

    /// The last messages of a room.
    pub(super) async fn page(
        &self,
        room: &RoomName,
        query: Query,
        past: PastOf<'_>,
    ) -> Result<Page, Unavailable> {
        self.flush().await?;
        let before = match past(&BTreeMap::new()) {
            Past::Before(number) => query.before.min(number),
            Past::All | Past::Events(_) => query.before,
        };
        let query = Query { before, ..query };
        let permit = self.reads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Unavailable)?;
        let store = self.store.lock().clone().ok_or(Unavailable)?;
        let room = room.clone();
        let page = spawn_blocking(move || {
            let _permit = permit;
            store.page(&room, &query)
        });
        let page = page.await.map_err(|_| Unavailable)?;
        page.map_err(|_| Unavailable)
    }

    /// Removes one message of a room, or all; returns how many there were.
    pub(super) async fn remove(
        &self,
        room: &RoomName,
        number: Option<u64>,
    ) -> Result<usize, Unavailable> {
        self.ask(|answer| Command::Remove(room.clone(), number, answer))
            .await
    }

    /// Waits until all that was said before is stored, or cannot be.
    pub(super) async fn flush(&self) -> Result<(), Unavailable> {
        self.ask(Command::Flush).await
    }

    /// Stores what waits, and closes the store.
    pub(super) async fn close(&self) {
        // It is closed already if there is no answer.
        let _ = self.ask(Command::Close).await;
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(command(answer));
        sent.map_err(|_| Unavailable)?;
        answered.await.map_err(|_| Unavailable)
    }
}
