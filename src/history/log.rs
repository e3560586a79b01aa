//! The history of all rooms that keep one.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::{
    local::LocalLog,
    page::{Page, Query, Unavailable},
    past::PastOf,
    receipt::Receipt,
    shared::SharedLog,
};
use crate::{
    cluster::{Direct, MessageStore, NodeId, Outbound},
    config::HistoryOptions,
    metrics::Metrics,
    protocol::RoomName,
    unix_time,
    websocket::Frame,
};

/// Most bytes that wait to be stored. What is said beyond it is delivered, and not stored.
const MAX_WAITING: usize = 64 << 20;

/// How long the store is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The history of all rooms that keep one.
pub(crate) struct History {
    rooms: Vec<String>,
    messages: usize,
    /// The bytes that wait to be stored.
    waiting: Arc<AtomicUsize>,
    /// How many messages were ever to be stored.
    appended: AtomicU64,
    metrics: Arc<Metrics>,
    log: Log,
}

/// Where the messages are.
enum Log {
    /// On this server alone.
    Local(LocalLog),
    /// In a store of all nodes of the cluster.
    Shared(SharedLog),
}

/// A message as it is stored.
pub(crate) struct Said {
    content: Bytes,
    /// In milliseconds since 1970.
    time: u64,
}

/// The message is not stored: too much waits.
#[derive(Debug)]
pub(crate) struct NotStored;

impl Said {
    /// A message that is said now. `from` is the data of its sender's `new`.
    pub(crate) fn now(from: Option<&RawValue>, frame: &Frame) -> Said {
        let time = unix_time::unix_millis();
        // The JSON of a `Content`. The frame is JSON already.
        let from = from.map_or("null", RawValue::get);
        let mut content = format!(r#"{{"time":{time},"from":{from},"message":"#).into_bytes();
        content.extend_from_slice(frame.payload());
        content.push(b'}');
        Said {
            content: content.into(),
            time,
        }
    }
}

impl History {
    /// Opens the history; `None` if no room keeps one. A node of a cluster has the store that all nodes share.
    ///
    /// # Errors
    ///
    /// The folder or the file cannot be used; the message names it.
    pub(crate) fn open(
        options: &HistoryOptions,
        cluster: Option<(Arc<dyn MessageStore>, Arc<Outbound>)>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Option<Arc<History>>> {
        if options.rooms.is_empty() {
            return Ok(None);
        }
        let waiting = Arc::<AtomicUsize>::default();
        let (counted, metrics) = (waiting.clone(), metrics.clone());
        let log = match cluster {
            Some((store, outbound)) => {
                Log::Shared(SharedLog::new(store, outbound, counted, metrics.clone()))
            }
            None => Log::Local(LocalLog::open(options, counted, metrics.clone())?),
        };
        Ok(Some(Arc::new(History {
            rooms: options.rooms.clone(),
            messages: options.messages.get() as usize,
            waiting,
            appended: AtomicU64::new(0),
            metrics,
            log,
        })))
    }

    /// Whether a room keeps its messages. No dialect can ask for them.
    pub(crate) fn includes(&self, room: &RoomName) -> bool {
        room.dialect().is_none() && self.rooms.iter().any(|pattern| room.matches(pattern))
    }

    /// How many messages a room keeps.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// The number of the next message in the history of this server alone.
    pub(crate) fn next_number(&self) -> u64 {
        match &self.log {
            Log::Local(log) => log.next_number(),
            Log::Shared(_) => 0,
        }
    }

    /// Numbers what is said from now on from at least this number, in the history of this server alone.
    pub(crate) fn number_from(&self, number: u64) {
        match &self.log {
            Log::Local(log) => log.number_from(number),
            Log::Shared(_) => {}
        }
    }

    /// How many messages were ever to be stored.
    pub(crate) fn appended(&self) -> u64 {
        self.appended.load(Relaxed)
    }

    /// How many of them do not wait any more.
    pub(crate) fn done(&self) -> u64 {
        self.metrics.history_stored.get() + self.metrics.history_failed.get()
    }

    /// The size of what this server stores, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.log {
            Log::Local(log) => log.bytes(),
            Log::Shared(_) => 0,
        }
    }

    /// Has a message stored. `event` is its number among the events of this node in a cluster. The receipt is sent when
    /// that is done, or cannot be done.
    ///
    /// # Errors
    ///
    /// [`NotStored`], and no receipt is sent.
    pub(crate) fn append(
        &self,
        room: &RoomName,
        event: Option<u64>,
        Said { content, time }: Said,
        receipt: Option<Receipt>,
    ) -> Result<(), NotStored> {
        let bytes = content.len();
        self.appended.fetch_add(1, Relaxed);
        if self.waiting.fetch_add(bytes, Relaxed) + bytes > MAX_WAITING {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.metrics.history_failed.inc();
            return Err(NotStored);
        }
        let appended = match &self.log {
            Log::Local(log) => log.append(room, content, time, receipt),
            Log::Shared(log) => match event {
                Some(event) => log.append(room, event, content, time, receipt),
                // This node has left the room.
                None => Err(Unavailable),
            },
        };
        appended.map_err(|Unavailable| {
            self.waiting.fetch_sub(bytes, Relaxed);
            self.metrics.history_failed.inc();
            NotStored
        })
    }

    /// The last messages of a room that `past` includes. All that was said before is there.
    ///
    /// # Errors
    ///
    /// [`Unavailable`].
    pub(crate) async fn page(
        &self,
        room: &RoomName,
        query: Query,
        past: PastOf<'_>,
    ) -> Result<Page, Unavailable> {
        let page = async {
            match &self.log {
                Log::Local(log) => log.page(room, query, past).await,
                Log::Shared(log) => log.page(room, query, past).await,
            }
        };
        timeout(PATIENCE, page).await.map_err(|_| Unavailable)?
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
        let remove = async {
            match &self.log {
                Log::Local(log) => log.remove(room, number).await,
                Log::Shared(log) => log.remove(room, number).await,
            }
        };
        timeout(PATIENCE, remove).await.map_err(|_| Unavailable)?
    }

    /// Waits until all that was said on this node before is stored, or cannot be.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the history is closed.
    pub(crate) async fn flush(&self) -> Result<(), Unavailable> {
        match &self.log {
            Log::Local(log) => log.flush().await,
            Log::Shared(log) => log.flush().await,
        }
    }

    /// Stores what waits, and stores nothing more.
    pub(crate) async fn close(&self) {
        let close = async {
            match &self.log {
                Log::Local(log) => log.close().await,
                Log::Shared(log) => log.close().await,
            }
        };
        // A store that hangs keeps nobody from stopping.
        let _ = timeout(PATIENCE, close).await;
    }
}

/// Other nodes of the cluster.
impl History {
    /// A node is up.
    pub(crate) fn node_up(&self, node: NodeId) {
        if let Log::Shared(log) = &self.log {
            log.node_up(node);
        }
    }

    /// A node is down.
    pub(crate) fn node_down(&self, node: NodeId) {
        if let Log::Shared(log) = &self.log {
            log.node_down(node);
        }
    }

    /// Takes in a message of another node about what is stored, which has this number.
    pub(crate) fn receive(&self, node: NodeId, number: u64, message: &Direct) {
        if let Log::Shared(log) = &self.log {
            log.receive(node, number, message);
        }
    }
}
