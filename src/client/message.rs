//! Messages as the server sends them.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::retry::LONGEST;

/// The server as sender and receiver.
pub(super) const SERVER: &str = "server";

/// Everyone else in the room as receiver.
pub(super) const ALL: &str = "all";

/// A message of another session, or of the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Message {
    /// What the message is, in the application's own words.
    pub kind: String,
    /// The session id of the sender, or `"server"`.
    pub sender: String,
    /// The receiver as the sender wrote it: a session id, `"all"` or `"user:<name>"`. Empty for `null`.
    pub receiver: String,
    /// The bytes of `data`, as the sender wrote them.
    pub data: Box<RawValue>,
}

impl Message {
    /// The value of `data`.
    ///
    /// # Errors
    ///
    /// If `data` has another form.
    pub fn data<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.get())
    }
}

/// Another session of the room.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Peer {
    /// Its session id.
    pub id: String,
    /// What its token says of it publicly, or `null`.
    #[serde(default)]
    pub data: Box<RawValue>,
    /// What it says of itself, or `null`, as it wrote it: JSON that need not fit into a [`Value`].
    #[serde(default)]
    pub state: Box<RawValue>,
}

impl Peer {
    /// The value of `data`.
    ///
    /// # Errors
    ///
    /// If `data` has another form.
    pub fn data<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.get())
    }

    /// The value of `state`.
    ///
    /// # Errors
    ///
    /// If `state` has another form.
    pub fn state<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.state.get())
    }
}

/// The limits of the server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Limits {
    /// The longest message, in bytes.
    pub message_bytes: Option<usize>,
    /// The longest state, in bytes.
    pub state_bytes: Option<usize>,
    /// Above this rate the server reads from the session more slowly.
    pub messages_per_second: Option<u64>,
    /// Above this rate the server reads from the session more slowly.
    pub bytes_per_second: Option<u64>,
}

/// A message to all that was sent before the session joined.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HistoryMessage {
    /// Its number in the room, which rises with gaps.
    pub number: u64,
    /// When the server received it, in milliseconds since 1970.
    pub time: u64,
    /// What the token of its sender said publicly, or `null`.
    pub from: Box<RawValue>,
    /// The message as it was delivered.
    pub message: Message,
}

/// A part of a room's history.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HistoryPage {
    /// The messages, oldest first.
    pub messages: Vec<HistoryMessage>,
    /// Whether there are older messages.
    pub more: bool,
}

/// The four fields of a message.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) sender: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) receiver: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) data: &'a RawValue,
}

impl Envelope<'_> {
    /// The value of `data`, if it has this form.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(self.data.get()).ok()
    }

    /// The message as the application gets it.
    pub(super) fn message(&self) -> Message {
        Message {
            kind: self.kind.as_ref().into(),
            sender: self.sender.as_ref().into(),
            receiver: self.receiver.as_deref().unwrap_or_default().into(),
            data: self.data.to_owned(),
        }
    }
}

/// The answer to `hello`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hello {
    pub(super) room: String,
    pub(super) peers: Vec<Peer>,
    #[serde(default)]
    pub(super) ice_servers: Value,
    pub(super) resume: Option<Resume>,
    #[serde(default)]
    pub(super) history: Option<u64>,
    #[serde(default)]
    pub(super) limits: Limits,
}

/// How the session can be resumed.
#[derive(Deserialize)]
pub(super) struct Resume {
    pub(super) token: String,
    seconds: u64,
}

impl Resume {
    /// How long the server keeps a session whose connection is lost.
    pub(super) fn window(&self) -> Duration {
        Duration::from_secs(self.seconds).min(LONGEST)
    }
}

/// The data of `resumed`.
#[derive(Deserialize)]
pub(super) struct Resumed {
    pub(super) received: u64,
}

/// The data of a receipt.
#[derive(Deserialize)]
pub(super) struct Ack {
    #[serde(rename = "ref")]
    pub(super) reference: Value,
    pub(super) receivers: u64,
}

/// The part of a raw message that its answer repeats.
#[derive(Deserialize)]
pub(super) struct Referring {
    #[serde(default, rename = "ref")]
    pub(super) reference: Value,
}

/// The data of an error.
#[derive(Deserialize)]
pub(super) struct Problem {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default, rename = "ref")]
    pub(super) reference: Value,
}

/// The data of an answer to `history`: a message, or the end.
#[derive(Deserialize)]
pub(super) struct HistoryPart {
    #[serde(default)]
    pub(super) number: u64,
    #[serde(default)]
    pub(super) time: u64,
    #[serde(default)]
    pub(super) from: Box<RawValue>,
    /// `None` in the end.
    pub(super) message: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) more: bool,
}
