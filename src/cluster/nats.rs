//! The connection to NATS. Only this file and `jetstream` use the client library, `async_nats`.
//!
//! The library reconnects by itself and reports that in events. While there is no connection it keeps a few
//! messages and writes them afterwards, so the caller must not publish what may be out of date by then.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event as NatsEvent, Message as NatsMessage, ServerAddr, Subscriber,
    connection::State,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{Stream, StreamExt};
use log::debug;
use tokio::time::timeout;

use super::{
    jetstream::JetStream,
    message_store::MessageStore,
    queue::Subject,
    transport::{self, Connection, ConnectionEvent, Transport},
    wire::{IDS_BYTES, LINE_BYTES, PART_BYTES},
};
use crate::{
    config::{Config, NatsUrl},
    protocol::Escaped,
};

/// Time limit of a connection to one server. An attempt to connect to any of the servers may take twice as
/// long.
const NATS_LIMIT: Duration = Duration::from_secs(2);

/// Time between pings to the NATS server.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Time between attempts to reconnect. It is short, because the other nodes wait for this one only for the
/// down time.
const RECONNECT: Duration = Duration::from_millis(200);

/// Messages of one subscription that may wait to be received. Flow control between nodes holds senders up
/// before there are so many.
const SUBSCRIPTION_MESSAGES: usize = 1 << 20;

/// Published messages that the library may hold before it writes them. It writes them after a reconnection,
/// however old they are, so there must be few.
const UNWRITTEN_MESSAGES: usize = 64;

/// How to connect to NATS, and under which names messages are published there.
pub(crate) struct Nats {
    servers: Vec<NatsUrl>,
    credentials: Option<PathBuf>,
    ca: Option<PathBuf>,
    /// The first part of all subjects.
    prefix: String,
    /// The length of the longest payload.
    payload_bytes: usize,
    /// Present if rooms keep their messages.
    stream: Option<Arc<JetStream>>,
}

impl Nats {
    /// `None` if the configuration names no NATS server.
    pub(crate) fn new(config: &Config) -> Option<Nats> {
        let (options, limits) = (&config.cluster, &config.limits);
        // Bytes are in base64, and in that of a request once more.
        let message_bytes = limits.max_message_bytes.saturating_mul(16) / 9 + 16;
        let payload_bytes =
            message_bytes.max(PART_BYTES) + IDS_BYTES + limits.max_header_bytes + LINE_BYTES;
        (!options.servers.is_empty()).then(|| Nats {
            servers: options.servers.clone(),
            credentials: options.credentials_file.clone(),
            ca: options.ca_file.clone(),
            prefix: options.prefix.clone(),
            payload_bytes,
            stream: JetStream::new(config).map(Arc::new),
        })
    }
}

impl Transport for Nats {
    type Connection = NatsConnection;

    async fn connect(
        &self,
        name: String,
        on_event: impl Fn(ConnectionEvent) + Send + Sync + 'static,
    ) -> Result<NatsConnection, String> {
        let mut connect = ConnectOptions::new()
            .name(name)
            .no_echo()
            .subscription_capacity(SUBSCRIPTION_MESSAGES)
            .client_capacity(UNWRITTEN_MESSAGES)
            .connection_timeout(NATS_LIMIT)
            .ping_interval(PING_INTERVAL)
            .ignore_discovered_servers()
            .reconnect_delay_callback(|attempt| match attempt {
                0 | 1 => Duration::ZERO,
                _ => RECONNECT,
            })
            .event_callback(move |event| {
                match event {
                    NatsEvent::Connected => on_event(ConnectionEvent::Connected),
                    NatsEvent::Disconnected => on_event(ConnectionEvent::Disconnected),
                    NatsEvent::ServerError(error) => {
                        on_event(ConnectionEvent::Error(error.to_string()));
                    }
                    NatsEvent::SlowConsumer(_) => on_event(ConnectionEvent::Overflow),
                    event => debug!("NATS: {}", Escaped(event)),
                }
                async {}
            });
        // The configuration is checked: all URLs have the same user and password.
        if let Some((user, password)) = self.servers.iter().find_map(NatsUrl::credentials) {
            connect = connect.user_and_password(user.expose().clone(), password.expose().clone());
        }
        if let Some(file) = &self.credentials {
            let name = |error: io::Error| format!("cannot read {}: {error}", file.display());
            connect = connect.credentials_file(file).await.map_err(name)?;
        }
        if let Some(file) = &self.ca {
            connect = connect.add_root_certificates(file.clone());
        }
        let servers = self.servers.iter().map(|url| url.address().parse());
        let servers: Result<Vec<ServerAddr>, _> = servers.collect();
        let servers = servers.map_err(|error: io::Error| error.to_string())?;
        let client = timeout(2 * NATS_LIMIT, connect.connect(servers))
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        let (has, needs) = (client.max_payload(), self.payload_bytes);
        if has < needs {
            return Err(format!(
                "its max_payload is {has} bytes, and must be {needs} for messages of \
                 --max-message-bytes: raise it in the configuration of NATS"
            ));
        }
        if let Some(stream) = &self.stream {
            stream.open(client.clone()).await?;
        }
        Ok(NatsConnection {
            client,
            prefix: self.prefix.clone(),
        })
    }

    fn message_store(&self) -> Option<Arc<dyn MessageStore>> {
        let stream = self.stream.clone();
        stream.map(|stream| stream as Arc<dyn MessageStore>)
    }

    fn servers(&self) -> String {
        format!("{:?}", self.servers)
    }
}

/// A connection to NATS.
pub(crate) struct NatsConnection {
    client: Client,
    prefix: String,
}

impl NatsConnection {
    fn subject(&self, subject: &Subject) -> String {
        let prefix = &self.prefix;
        match subject {
            Subject::All => format!("{prefix}.all"),
            // The name of a room may contain dots and wildcards, which NATS gives a meaning.
            Subject::Room(room) => {
                format!("{prefix}.room.{}", URL_SAFE_NO_PAD.encode(&*room.unique()))
            }
            Subject::Node(node) => format!("{prefix}.node.{node}"),
        }
    }
}

impl Connection for NatsConnection {
    type Payload = Payload;
    type Subscription = Subscription;

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    async fn publish(&self, subject: &Subject, payload: Vec<u8>) {
        // The errors are a closed client, which never happens, and a payload over the limit that `connect`
        // has checked.
        let _ = self
            .client
            .publish(self.subject(subject), payload.into())
            .await;
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Subscription, String> {
        // The error is a closed client, which never happens while the connection exists.
        let subscriber = self.client.subscribe(self.subject(subject)).await;
        subscriber
            .map(Subscription)
            .map_err(|error| error.to_string())
    }

    async fn flush(&self) {
        let _ = self.client.flush().await;
    }
}

/// The messages to a subject, in the order in which each node sent them. Dropping it unsubscribes.
pub(crate) struct Subscription(Subscriber);

impl Stream for Subscription {
    type Item = Payload;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let next = self.0.poll_next_unpin(cx);
        next.map(|message| message.map(Payload))
    }
}

/// A message as it came from NATS.
pub(crate) struct Payload(NatsMessage);

impl transport::Payload for Payload {
    fn subject(&self) -> &str {
        &self.0.subject
    }

    fn bytes(&self) -> &[u8] {
        &self.0.payload
    }
}
