//! What is stored, and pages of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::protocol::RoomName;

/// A message to store.
pub(super) struct Entry {
    pub(super) room: RoomName,
    /// Its number in the history of one node, or among the events of its node in a cluster.
    pub(super) number: u64,
    /// The JSON of its [`Content`].
    pub(super) content: Bytes,
    /// In milliseconds since 1970.
    pub(super) time: u64,
}

/// A message in the history of a room.
#[derive(Debug, Serialize)]
pub(crate) struct Stored {
    /// It rises, with gaps.
    pub(crate) number: u64,
    #[serde(flatten)]
    pub(crate) content: Content,
}

/// A message without its number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Content {
    /// When it was said, in milliseconds since 1970.
    pub(crate) time: u64,
    /// The data of its sender's `new`.
    pub(crate) from: Option<Box<RawValue>>,
    /// The message, as it was delivered.
    pub(crate) message: Box<RawValue>,
}

/// Which messages of a room are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    /// At most so many, the last ones.
    pub(crate) last: usize,
    /// Only those with a lower number.
    pub(crate) before: u64,
    /// At most so many bytes, but at least one message.
    pub(crate) bytes: usize,
    /// What each message counts beside its content, in bytes.
    pub(crate) overhead: usize,
}

/// Messages of a room, oldest first.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Page {
    pub(crate) messages: Vec<Stored>,
    /// Whether older ones are there.
    pub(crate) more: bool,
}

/// The history cannot be used now.
#[derive(Debug)]
pub(crate) struct Unavailable;
