//! The connection to NATS. This is the only file that uses the client library, `async_nats`.
//!
//! The library reconnects by itself and reports that in events. While there is no connection it keeps a few
//! messages and writes them afterwards, so the caller must not publish what may be out of date by then.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
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

use super::queue::Subject;
use crate::{config::NatsUrl, protocol::Escaped};

/// Time limit of a connection to one server, and of the last messages when this node stops. An attempt to
/// connect to any of the servers may take twice as long.
pub(super) const NATS_LIMIT: Duration = Duration::from_secs(2);

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
pub(super) struct NatsOptions {
    pub(super) servers: Vec<NatsUrl>,
    pub(super) credentials: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
    /// The first part of all subjects.
    pub(super) prefix: String,
    /// The length of the longest payload.
    pub(super) payload_bytes: usize,
}

impl NatsOptions {
    fn subject(&self, subject: &Subject) -> String {
        let prefix = &self.prefix;
        match subject {
            Subject::All => format!("{prefix}.all"),
            // The name of a room may contain dots and wildcards, which NATS gives a meaning.
            Subject::Room(room) => {
                format!("{prefix}.room.{}", URL_SAFE_NO_PAD.encode(room.as_str()))
            }
            Subject::Node(node) => format!("{prefix}.node.{node}"),
        }
    }
}

/// A change or an error of a connection.
pub(super) enum ConnectionEvent {
    Connected,
    Disconnected,
    /// The server reports an error, such as a subject that this node may not subscribe to.
    Error(String),
    /// Messages of a subscription were lost: more waited to be received than the library keeps.
    Overflow,
}

/// A connection to NATS, which reconnects by itself.
pub(super) struct Connection<'a> {
    client: Client,
    options: &'a NatsOptions,
}

impl Connection<'_> {
    /// Connects once. `name` identifies this node in the logs of NATS. `on_event` is called for every event
    /// of the connection, beginning with [`ConnectionEvent::Connected`].
    ///
    /// # Errors
    ///
    /// The reason, as text for the log.
    pub(super) async fn open<'a>(
        options: &'a NatsOptions,
        name: String,
        on_event: impl Fn(ConnectionEvent) + Send + Sync + 'static,
    ) -> Result<Connection<'a>, String> {
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
        if let Some((user, password)) = options.servers.iter().find_map(NatsUrl::credentials) {
            connect = connect.user_and_password(user.expose().clone(), password.expose().clone());
        }
        if let Some(file) = &options.credentials {
            let name = |error: io::Error| format!("cannot read {}: {error}", file.display());
            connect = connect.credentials_file(file).await.map_err(name)?;
        }
        if let Some(file) = &options.ca {
            connect = connect.add_root_certificates(file.clone());
        }
        let servers: Result<Vec<ServerAddr>, _> = options
            .servers
            .iter()
            .map(|url| url.address().parse())
            .collect();
        let servers = servers.map_err(|error: io::Error| error.to_string())?;
        let client = timeout(2 * NATS_LIMIT, connect.connect(servers))
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())?;
        let (has, needs) = (client.max_payload(), options.payload_bytes);
        if has < needs {
            return Err(format!(
                "its max_payload is {has} bytes, and must be {needs} for messages of \
                 --max-message-bytes: raise it in the configuration of NATS"
            ));
        }
        Ok(Connection { client, options })
    }

    /// Whether there is a connection now.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Publishes a message. Without a connection, the library may drop it.
    pub(super) async fn publish(&self, subject: &Subject, payload: Vec<u8>) {
        // The errors are a closed client, which never happens, and a payload over the limit that `open`
        // has checked.
        let _ = self
            .client
            .publish(self.options.subject(subject), payload.into())
            .await;
    }

    /// Subscribes to a subject.
    ///
    /// # Errors
    ///
    /// The client is closed, which never happens while the connection exists.
    pub(super) async fn subscribe(&self, subject: &Subject) -> Result<Subscription, String> {
        let subject = self.options.subject(subject);
        let subscriber = self.client.subscribe(subject).await;
        subscriber
            .map(Subscription)
            .map_err(|error| error.to_string())
    }

    /// Waits until all published messages are written.
    pub(super) async fn flush(&self) {
        let _ = self.client.flush().await;
    }
}

/// The messages to a subject, in the order in which each node sent them. Dropping it unsubscribes.
pub(super) struct Subscription(Subscriber);

impl Stream for Subscription {
    type Item = Payload;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let next = self.0.poll_next_unpin(cx);
        next.map(|message| message.map(Payload))
    }
}

/// A message as it came from NATS.
pub(super) struct Payload(NatsMessage);

impl Payload {
    pub(super) fn subject(&self) -> &str {
        &self.0.subject
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0.payload
    }
}
