//! The messages that rooms keep, in JetStream: one stream, with a subject for each room.
//!
//! A message has the id of its event as `Nats-Msg-Id`, so that JetStream stores it once however often it is sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    Client, HeaderMap,
    connection::State,
    header::NATS_MESSAGE_ID,
    jetstream::{
        self, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::{Context, ContextBuilder, GetStreamErrorKind, PublishErrorKind},
        message::StreamMessage,
        stream::{Config as StreamConfig, RawMessageErrorKind, StorageType, Stream},
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use log::{info, warn};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{
    message_store::{Confirmation, Listed, MessageStore, StoreError},
    wire::EventId,
};
use crate::{
    config::{Config, HistoryStorage},
    protocol::{Escaped, RoomName},
};

/// Time limit of a request to JetStream. A server that is lost does not answer, and the next one is asked soon.
const LIMIT: Duration = Duration::from_secs(2);

/// How long JetStream recognizes a message that it has stored.
const RECOGNIZED: Duration = Duration::from_secs(120);

/// How long a consumer is kept that this node did not delete.
const CONSUMER_LIMIT: Duration = Duration::from_secs(10);

/// The messages that JetStream may have to confirm at once.
const UNCONFIRMED: usize = 4096;

const NOT_CONNECTED: &str = "this node is not connected to NATS";

/// The header with the length of a message that comes without its content.
const LENGTH: &str = "Nats-Msg-Size";

/// The stream of a cluster.
pub(crate) struct JetStream {
    config: StreamConfig,
    /// The first part of the subjects.
    prefix: String,
    /// `None` before the first connection.
    opened: Mutex<Option<Opened>>,
    /// Whether the stream has been lost, as one in memory is when NATS restarts.
    is_lost: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Opened {
    context: Context,
    stream: Stream<()>,
}

impl JetStream {
    /// A stream that is not connected; `None` if no room keeps its messages.
    pub(crate) fn new(config: &Config) -> Option<JetStream> {
        let history = &config.history;
        if history.rooms.is_empty() {
            return None;
        }
        let prefix = format!("{}.history", config.cluster.prefix);
        let config = StreamConfig {
            // A name has no dots.
            name: prefix.replace('.', "_"),
            subjects: vec![format!("{prefix}.*")],
            description: Some("The messages that rooms of anteroom keep".into()),
            max_messages_per_subject: history.messages.get().into(),
            max_bytes: history.bytes as i64,
            max_age: history.age(),
            storage: match history.storage.unwrap_or_default() {
                HistoryStorage::File => StorageType::File,
                HistoryStorage::Memory => StorageType::Memory,
            },
            num_replicas: history.replicas().into(),
            duplicate_window: RECOGNIZED,
            allow_direct: true,
            ..StreamConfig::default()
        };
        Some(JetStream {
            config,
            prefix,
            opened: Mutex::new(None),
            is_lost: Arc::default(),
        })
    }

    /// Uses this connection, on which the stream is created or changed as the options say, if this node may do so.
    ///
    /// # Errors
    ///
    /// Why there is no stream, as text for the log.
    pub(super) async fn open(&self, client: Client) -> Result<(), String> {
        let context = ContextBuilder::new().timeout(LIMIT);
        let context = context.max_ack_inflight(UNCONFIRMED).build(client);
        self.ensure(&context).await?;
        let name = &self.config.name;
        let stream = context.get_stream_no_info(name).await;
        let stream = stream.map_err(|error| error.to_string())?;
        *self.opened.lock() = Some(Opened { context, stream });
        Ok(())
    }

    /// Creates the stream, or changes it.
    async fn ensure(&self, context: &Context) -> Result<(), String> {
        let name = &self.config.name;
        let existing = match context.get_stream(name).await {
            Ok(stream) => Some(stream.cached_info().config.clone()),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if is_stream_not_found(&error) => None,
                kind => {
                    return Err(format!(
                        "it has no JetStream for this node, which --history-room needs in a cluster: enable JetStream \
                         in the configuration of NATS, and allow the node to use its API ({kind})"
                    ));
                }
            },
        };
        let Some(existing) = existing else {
            let created = context.create_stream(&self.config).await;
            created.map_err(|error| {
                format!(
                    "cannot create the stream {name} for --history-room: create it yourself, or \
                     allow this node to do so ({error})"
                )
            })?;
            info!("created the stream {name} for the history of rooms");
            return Ok(());
        };
        let wanted = StreamConfig {
            max_messages_per_subject: self.config.max_messages_per_subject,
            max_bytes: self.config.max_bytes,
            max_age: self.config.max_age,
            num_replicas: self.config.num_replicas,
            allow_direct: true,
            ..existing.clone()
        };
        if existing.subjects != self.config.subjects {
            return Err(format!(
                "the stream {name} has other subjects than {:?}: choose another --cluster-prefix, or \
                 delete the stream",
                self.config.subjects
            ));
        }
        if existing.storage != self.config.storage {
            warn!(
                "the stream {name} has another storage than --history-storage says, which cannot be changed: \
                 delete the stream to have a new one"
            );
        }
        if wanted != existing {
            match context.update_stream(&wanted).await {
                Ok(_) => info!("changed the limits of the stream {name}"),
                Err(error) => warn!(
                    "cannot change the stream {name}, whose own limits apply: {}",
                    Escaped(error)
                ),
            }
        }
        Ok(())
    }

    fn opened(&self) -> Result<Opened, StoreError> {
        let opened = self.opened.lock().clone();
        opened.ok_or_else(|| NOT_CONNECTED.to_owned())
    }

    fn subject(&self, room: &RoomName) -> String {
        let room = URL_SAFE_NO_PAD.encode(room.as_str());
        format!("{}.{room}", self.prefix)
    }

    async fn send(
        &self,
        room: &RoomName,
        id: EventId,
        content: Bytes,
    ) -> Result<Confirmation, StoreError> {
        let context = self.opened()?.context;
        if context.client().connection_state() != State::Connected {
            // The library would keep the message, and send it when it is out of date.
            return Err(NOT_CONNECTED.to_owned());
        }
        if self.is_lost.swap(false, Relaxed) {
            self.ensure(&context).await?;
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.to_string());
        let sent = context.publish_with_headers(self.subject(room), headers, content);
        let confirmed = sent.await.map_err(|error| error.to_string())?;
        let is_lost = self.is_lost.clone();
        let stored = async move {
            confirmed.await.map(drop).map_err(|error| {
                is_lost.fetch_or(error.kind() == PublishErrorKind::StreamNotFound, Relaxed);
                error.to_string()
            })
        };
        Ok(stored.boxed())
    }

    async fn last_number(&self, room: &RoomName) -> Result<Option<u64>, StoreError> {
        let Opened { context, stream } = self.opened()?;
        let subject = self.subject(room);
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(last) => Ok(Some(last.sequence)),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                RawMessageErrorKind::JetStream(error) if is_stream_not_found(&error) => {
                    self.ensure(&context).await?;
                    Ok(None)
                }
                _ => Err(error.to_string()),
            },
        }
    }

    async fn list_range(
        &self,
        room: &RoomName,
        first: u64,
        last: u64,
        count: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let stream = self.opened()?.stream;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: first,
            },
            filter_subject: self.subject(room),
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: CONSUMER_LIMIT,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| error.to_string())?;
        let info = consumer.cached_info();
        let (name, pending) = (info.name.clone(), info.num_pending);
        let most = pending.min(last + 1 - first);
        let count = usize::try_from(most).unwrap_or(count).min(count);
        let mut listed = Vec::new();
        if count > 0 {
            let messages = consumer.fetch().max_messages(count).messages().await;
            let mut messages = messages.map_err(|error| error.to_string())?;
            while let Some(message) = messages.next().await {
                let message = message.map_err(|error| error.to_string())?;
                let info = message.info().map_err(|error| error.to_string())?;
                if info.stream_sequence > last {
                    break;
                }
                let header = |name: &str| Some(message.headers.as_ref()?.get(name)?.as_str());
                let id = header(NATS_MESSAGE_ID.as_ref()).and_then(|id| id.parse().ok());
                let length = header(LENGTH).and_then(|length| length.parse().ok());
                listed.push(Listed {
                    number: info.stream_sequence,
                    id,
                    length: length.unwrap_or_default(),
                });
            }
        }
        // JetStream deletes it by itself if this fails.
        tokio::spawn(async move { stream.delete_consumer(&name).await });
        Ok(listed)
    }

    async fn content(&self, listed: Listed) -> Result<Option<Bytes>, StoreError> {
        let stream = self.opened()?.stream;
        let is_listed = |message: &StreamMessage| {
            let id = message.headers.get(NATS_MESSAGE_ID);
            id.and_then(|id| id.as_str().parse().ok()) == listed.id
        };
        // Any server of the stream answers, also one that has not stored the latest messages yet, or has others.
        let answer = stream.direct_get(listed.number).await;
        if let Some(message) = answer.ok().filter(is_listed) {
            return Ok(Some(message.payload));
        }
        match stream.get_raw_message(listed.number).await {
            Ok(message) => Ok(Some(message).filter(is_listed).map(|it| it.payload)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn delete(&self, room: &RoomName, number: Option<u64>) -> Result<usize, StoreError> {
        let stream = self.opened()?.stream;
        let subject = self.subject(room);
        let Some(number) = number else {
            let purged = stream.purge().filter(subject).await;
            return match purged {
                Ok(purged) => Ok(purged.purged as usize),
                Err(error) => Err(error.to_string()),
            };
        };
        match stream.get_raw_message(number).await {
            Ok(message) if message.subject.as_str() == subject => {}
            Ok(_) => return Ok(0),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(0),
            Err(error) => return Err(error.to_string()),
        }
        // The content is overwritten as well.
        let deleted = stream.delete_message(number).await;
        deleted.map(usize::from).map_err(|error| error.to_string())
    }
}

fn is_stream_not_found(error: &jetstream::Error) -> bool {
    error.error_code() == ErrorCode::STREAM_NOT_FOUND
}

impl MessageStore for JetStream {
    fn append<'a>(
        &'a self,
        room: &'a RoomName,
        id: EventId,
        content: Bytes,
    ) -> BoxFuture<'a, Result<Confirmation, StoreError>> {
        self.send(room, id, content).boxed()
    }

    fn last<'a>(&'a self, room: &'a RoomName) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        self.last_number(room).boxed()
    }

    fn list<'a>(
        &'a self,
        room: &'a RoomName,
        first: u64,
        last: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        async move {
            // The server that has the consumer may be lost.
            let listed = timeout(LIMIT, self.list_range(room, first, last, count));
            listed.await.map_err(|_| "no answer".to_owned())?
        }
        .boxed()
    }

    fn read(&self, listed: Listed) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.content(listed).boxed()
    }

    fn remove<'a>(
        &'a self,
        room: &'a RoomName,
        number: Option<u64>,
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        self.delete(room, number).boxed()
    }
}
