//! What a node needs of the messaging system between the nodes: NATS, or in tests a simulated one.

use std::sync::Arc;

use futures_util::Stream;

use super::{message_store::MessageStore, queue::Subject};

/// A way to connect a node to the others.
pub(crate) trait Transport: Send + Sync + 'static {
    type Connection: Connection;

    /// Connects once. `name` identifies this node in the logs of the other side. `on_event` is called for every
    /// event of the connection, beginning with [`ConnectionEvent::Connected`].
    ///
    /// # Errors
    ///
    /// The reason, as text for the log.
    fn connect(
        &self,
        name: String,
        on_event: impl Fn(ConnectionEvent) + Send + Sync + 'static,
    ) -> impl Future<Output = Result<Self::Connection, String>> + Send;

    /// The store of messages that a connection makes available, if rooms keep theirs.
    fn message_store(&self) -> Option<Arc<dyn MessageStore>>;

    /// The servers that it connects to, as text for the log.
    fn servers(&self) -> String;
}

/// A connection of a node, which reconnects by itself.
pub(crate) trait Connection: Send + Sync {
    type Payload: Payload;
    /// The messages to a subject, in the order in which each node sent them. Dropping it unsubscribes.
    type Subscription: Stream<Item = Self::Payload> + Send + Unpin;

    /// Whether there is a connection now.
    fn is_connected(&self) -> bool;

    /// Publishes a message to the other nodes. Without a connection, it may be dropped, or published after the
    /// next one is made.
    fn publish(&self, subject: &Subject, payload: Vec<u8>) -> impl Future<Output = ()> + Send;

    /// Subscribes to a subject. A new connection has all subscriptions of the last one.
    ///
    /// # Errors
    ///
    /// The reason, as text for the log.
    fn subscribe(
        &self,
        subject: &Subject,
    ) -> impl Future<Output = Result<Self::Subscription, String>> + Send;

    /// Waits until all published messages are written.
    fn flush(&self) -> impl Future<Output = ()> + Send;
}

/// A message as it arrives.
pub(crate) trait Payload: Send + Sync {
    /// The subject that it was published on, as text for the log.
    fn subject(&self) -> &str;

    fn bytes(&self) -> &[u8];
}

/// A change or an error of a connection.
pub(crate) enum ConnectionEvent {
    Connected,
    Disconnected,
    /// The server reports an error, such as a subject that this node may not subscribe to.
    Error(String),
    /// Messages of a subscription were lost: more waited to be received than the connection keeps.
    Overflow,
}
