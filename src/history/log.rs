//! The history of all rooms that keep one.

use std::{
    io,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    receipt::Receipt,
    store::{Entry, Page, Query, Store},
    writer::{Command, Writer},
};
use crate::{
    config::HistoryOptions, metrics::Metrics, protocol::RoomName, unix_time, websocket::Frame,
};

/// Most bytes that wait to be stored. What is said beyond it is delivered, and not stored.
const MAX_WAITING: usize = 64 << 20;

/// How long the disk is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many pages are read at once.
const READS_AT_ONCE: usize = 4;

/// The history of all rooms that keep one.
pub(crate) struct History {
    rooms: Vec<String>,
    messages: usize,
    /// The number of the next message.
    next: AtomicU64,
    store: Arc<Mutex<Option<Arc<Store>>>>,
    commands: Sender<Command>,
    /// The bytes that wait to be stored.
    waiting: Arc<AtomicUsize>,
    reads: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// The message is not stored: too much waits.
#[derive(Debug)]
pub(crate) struct NotStored;

/// The store cannot be used now.
#[derive(Debug)]
pub(crate) struct Unavailable;

impl History {
    /// Opens the history; `None` if no room keeps one.
    ///
    /// # Errors
    ///
    /// The folder or the file cannot be used; the message names it.
    pub(crate) fn open(
        options: &HistoryOptions,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Option<Arc<History>>> {
        if options.rooms.is_empty() {
            return Ok(None);
        }
        let opened = Store::open(options)?;
        // The numbers of a store that is lost are not used again: sessions may outlive it.
        let micros = unix_time::unix_millis() * 1000;
        let next = opened.next_number().map_err(io::Error::other)?.max(micros);
        let store = Arc::new(Mutex::new(Some(Arc::new(opened))));
        let (commands, received) = channel();
        let waiting = Arc::<AtomicUsize>::default();
        let writer = Writer {
            commands: received,
            store: store.clone(),
            waiting: waiting.clone(),
            options: options.clone(),
            metrics: metrics.clone(),
            opened: None,
            is_failing: false,
        };
        thread::Builder::new()
            .name("history".into())
            .spawn(|| writer.run())?;
        Ok(Some(Arc::new(History {
            rooms: options.rooms.clone(),
            messages: options.messages.get() as usize,
            next: AtomicU64::new(next),
            store,
            commands,
            waiting,
            reads: Arc::new(Semaphore::new(READS_AT_ONCE)),
            metrics: metrics.clone(),
        })))
    }

    /// Whether a room keeps its messages.
    pub(crate) fn includes(&self, room: &RoomName) -> bool {
        self.rooms.iter().any(|pattern| room.matches(pattern))
    }

    /// How many messages a room keeps.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// The number of the next message.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.load(SeqCst)
    }

    /// The size of what is stored, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let store = self.store.lock().clone();
        let bytes = store.and_then(|store| store.bytes().ok());
        bytes.unwrap_or_default()
    }

    /// Numbers what is said from now on from at least this number.
    pub(crate) fn number_from(&self, number: u64) {
        self.next.fetch_max(number, SeqCst);
    }

    /// Has a message stored. `from` is the data of its sender's `new`. The receipt is sent when that is done, or
    /// cannot be done.
    ///
    /// # Errors
    ///
    /// [`NotStored`], and no receipt is sent.
    pub(crate) fn append(
        &self,
        room: &RoomName,
        from: Option<&RawValue>,
        frame: &Frame,
        receipt: Option<Receipt>,
    ) -> Result<(), NotStored> {
        let number = self.next.fetch_add(1, SeqCst);
        let time = unix_time::unix_millis();
        // The JSON of a `Content`. The frame is JSON already.
        let from = from.map_or("null", RawValue::get);
        let mut content = format!(r#"{{"time":{time},"from":{from},"message":"#).into_bytes();
        content.extend_from_slice(frame.payload());
        content.push(b'}');
        let bytes = content.len();
        if self.waiting.fetch_add(bytes, Relaxed) + bytes > MAX_WAITING {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.metrics.history_failed.inc();
            return Err(NotStored);
        }
        let entry = Entry {
            room: room.clone(),
            number,
            content,
            time,
        };
        let append = Command::Append(entry, receipt);
        self.commands.send(append).map_err(|_| NotStored)
    }

    /// The last messages of a room. All that was said before is included.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub(crate) async fn page(&self, room: &RoomName, query: Query) -> Result<Page, Unavailable> {
        let read = async {
            self.flush().await?;
            let permit = self.reads.clone().acquire_owned().await;
            let permit = permit.map_err(|_| Unavailable)?;
            let store = self.store.lock().clone().ok_or(Unavailable)?;
            let room = room.clone();
            let page = spawn_blocking(move || {
                let _permit = permit;
                store.page(&room, &query)
            });
            page.await
                .map_err(|_| Unavailable)?
                .map_err(|_| Unavailable)
        };
        timeout(PATIENCE, read).await.map_err(|_| Unavailable)?
    }

    /// Removes one message of a room, or all; returns how many there were.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub(crate) async fn remove(
        &self,
        room: &RoomName,
        number: Option<u64>,
    ) -> Result<usize, Unavailable> {
        self.ask(|answer| Command::Remove(room.clone(), number, answer))
            .await
    }

    /// Waits until all that was said before is stored, or cannot be.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the history is closed.
    pub(crate) async fn flush(&self) -> Result<(), Unavailable> {
        self.ask(Command::Flush).await
    }

    /// Stores what waits, and closes the store.
    pub(crate) async fn close(&self) {
        // It is closed already if there is no answer. A disk that hangs keeps nobody from stopping.
        let _ = timeout(PATIENCE, self.ask(Command::Close)).await;
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
