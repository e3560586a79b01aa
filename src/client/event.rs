//! What happens in a room.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, value::RawValue};

use super::{
    connection::Frame,
    disconnect::Disconnect,
    message::{Limits, Message, Peer},
};

/// What happens in a room.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The room is open: for the first time, or again.
    Opened(Opened),
    /// Another session has joined.
    Joined(Peer),
    /// Another session has left.
    Left {
        /// Its session id.
        id: String,
    },
    /// Another session has set its state.
    State {
        /// Its session id.
        id: String,
        /// The state, or `null`, as the session wrote it.
        state: Box<RawValue>,
    },
    /// A message has come.
    Message(Message),
    /// A binary message has come.
    Bytes {
        /// The session id of the sender.
        sender: String,
        /// What follows the id.
        bytes: Bytes,
    },
    /// The server has answered a message that has no receipt with an error, or the message is too long.
    Error {
        /// What is wrong, in a stable word.
        code: String,
        /// The same for people.
        message: String,
        /// The `ref` of a raw message, or `null`.
        reference: Value,
    },
    /// A message exactly as it came, in place of the events above, if the application has asked for it.
    Wire(Frame),
    /// There is no connection. The next attempt follows by itself.
    Reconnecting {
        /// The time until then.
        delay: Duration,
        /// Why the connection was lost, or did not open.
        why: Disconnect,
    },
    /// The room is closed for good. This is the last event.
    Closed(Disconnect),
}

/// The room is open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The session's id.
    pub id: String,
    /// The room's name.
    pub room: String,
    /// Whether the session goes on after its connection was lost: nothing was missed, the id is the same, and `peers`
    /// is empty because the events tell all changes. If not, the session is new, and `peers` is who is there.
    pub resumed: bool,
    /// The other sessions of a new session's room, longest-joined first.
    pub peers: Vec<Peer>,
    /// ICE servers, for an `RTCPeerConnection`.
    pub ice_servers: Value,
    /// How many messages to all the room keeps; `None` if it keeps none.
    pub history: Option<u64>,
    /// The server's limits.
    pub limits: Limits,
    /// What was sent without a receipt in the session before, and may not have arrived.
    pub lost: Vec<Frame>,
}
