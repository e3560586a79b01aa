//! What the history needs of a store of messages that all nodes share: JetStream, or in tests a simulated one.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::wire::EventId;
use crate::protocol::RoomName;

/// Why something cannot be done, as text for the log.
pub(crate) type StoreError = String;

/// Ends when a message is stored, or cannot be.
pub(crate) type Confirmation = BoxFuture<'static, Result<(), StoreError>>;

/// A store of messages, in rooms. All errors may be temporary.
pub(crate) trait MessageStore: Send + Sync {
    /// Sends a message to the store. The messages of a node are stored in the order in which it sends them; one that is
    /// lost and sent again comes after later ones. One with an id that the store has had in the last two minutes is not
    /// stored again.
    fn append<'a>(
        &'a self,
        room: &'a RoomName,
        id: EventId,
        content: Bytes,
    ) -> BoxFuture<'a, Result<Confirmation, StoreError>>;

    /// The number of the last message of a room, if it has one. All that was stored before this call is there.
    fn last<'a>(&'a self, room: &'a RoomName) -> BoxFuture<'a, Result<Option<u64>, StoreError>>;

    /// The messages of a room with the numbers `first` to `last`, oldest first, at most `count`. The latest may be
    /// missing for a moment.
    fn list<'a>(
        &'a self,
        room: &'a RoomName,
        first: u64,
        last: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>>;

    /// The content of a listed message, if it is still there.
    fn read(&self, listed: Listed) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>>;

    /// Removes one message of a room, or all; returns how many there were.
    fn remove<'a>(
        &'a self,
        room: &'a RoomName,
        number: Option<u64>,
    ) -> BoxFuture<'a, Result<usize, StoreError>>;
}

/// A stored message without its content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed {
    /// Its place in the store: numbers rise, with gaps.
    pub(crate) number: u64,
    /// `None` if another program has put it there.
    pub(crate) id: Option<EventId>,
    /// The length of its content, in bytes.
    pub(crate) length: usize,
}
