//! The wire formats of clients, a file each: this server's own protocol, and the dialects of other people's clients.
//! No I/O.
//!
//! A wire format turns a client's text into a [`Command`], and what happens to a session or in its room into a frame.
//! The rooms and sessions know no format's words, and a format knows no rooms. A new dialect is a file here, an arm of
//! [`of`], a [`Dialect`], and its URL in `server`.

mod anteroom;
mod matchbox;
mod peerjs;
mod topics;

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

pub(crate) use self::{peerjs::is_id as is_peerjs_id, topics::Publication};
use crate::{
    config::Dialect,
    protocol::{Invalid, Message, Problem, Receiver, RoomName, SessionId},
    web::HttpError,
    websocket::Frame,
};

/// The wire format of the clients of a dialect; of this server's own clients without one.
pub(crate) fn of(dialect: Option<Dialect>) -> &'static dyn WireFormat {
    match dialect {
        None => &anteroom::Anteroom,
        Some(Dialect::PeerJs) => &peerjs::PeerJs,
        Some(Dialect::YWebrtc | Dialect::Trystero) => &topics::Topics,
        Some(Dialect::Matchbox) => &matchbox::Matchbox,
    }
}

/// A wire format. What a format has no words for, its clients are not told.
pub(crate) trait WireFormat: Sync {
    /// What a client asks for with a message.
    ///
    /// # Errors
    ///
    /// The [`Invalid`] message, with an error text for the developer of the client.
    fn read<'a>(&self, author: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>>;

    /// What a client asks for with a binary message; `None` if the format has none.
    ///
    /// # Errors
    ///
    /// As for [`read`](WireFormat::read).
    fn read_bytes<'a>(
        &self,
        _author: Author<'_>,
        _bytes: &'a [u8],
    ) -> Option<Result<Command<'a>, Invalid<'a>>> {
        None
    }

    /// The first message of a session, once it is in its room.
    fn opened(&self, _id: SessionId) -> Option<Frame> {
        None
    }

    /// To the others in a room: a session joined. `public` is what they see of it.
    fn joined(&self, _id: SessionId, _public: Option<&RawValue>) -> Option<Frame> {
        None
    }

    /// To the others in a room: a session left.
    fn left(&self, _id: SessionId) -> Option<Frame> {
        None
    }

    /// To the others in a room: what a session says of itself, if anything.
    fn state(&self, _id: SessionId, _value: Option<&RawValue>) -> Option<Frame> {
        None
    }

    /// The receipt of a message that so many sessions receive.
    fn receipt(&self, _id: SessionId, _reference: &RawValue, _receivers: usize) -> Option<Frame> {
        None
    }

    /// Why a message was not delivered or processed. `reference` is that of the message.
    fn error(
        &self,
        _id: SessionId,
        _problem: &Problem,
        _reference: Option<&RawValue>,
    ) -> Option<Frame> {
        None
    }

    /// To a client that gets no session. `None` if its handshake gets the error as an HTTP answer.
    fn refused(&self, _error: &HttpError) -> Option<Frame> {
        None
    }

    /// To a session that claims a name which another session has.
    fn name_taken(&self) -> Option<Frame> {
        None
    }

    /// To the author of messages to the name `absent` which have waited in vain.
    fn expired(&self, _absent: &str, _author: &str) -> Option<Frame> {
        None
    }
}

/// The session that sends a message.
#[derive(Clone, Copy)]
pub(crate) struct Author<'a> {
    pub(crate) id: SessionId,
    /// The name that it has in its room, if it has one.
    pub(crate) name: Option<&'a str>,
}

/// What a client asks for.
pub(crate) enum Command<'a> {
    /// Send the frame to the receiver, and a receipt if there is a reference.
    Send {
        receiver: Receiver<'a>,
        frame: Frame,
        reference: Option<&'a RawValue>,
    },
    /// Send the frame to the session that has a name in the room. If none has it, the message may wait for a while.
    SendToName {
        name: Cow<'a, str>,
        frame: Frame,
        may_wait: bool,
    },
    /// Answer a request of our own protocol.
    Request(Message<'a>),
    /// Send the frame back.
    Reply(Frame),
    /// Join these rooms.
    Subscribe(Vec<RoomName>),
    /// Leave these rooms.
    Unsubscribe(Vec<RoomName>),
    /// Send to all in a room, the author included.
    Publish(Publication),
    /// Do nothing.
    Ignore,
}

impl<'a> Command<'a> {
    /// The reference with which the client asks for a receipt.
    pub(crate) fn reference(&self) -> Option<&'a RawValue> {
        match self {
            Command::Send { reference, .. } => *reference,
            Command::Request(message) => message.reference,
            _ => None,
        }
    }
}

/// A message of the server.
fn frame(json: &impl Serialize) -> Frame {
    Frame::text(|buffer| {
        serde_json::to_writer(buffer, json)
            .expect("strings and checked JSON always serialize, and a Vec takes every write");
    })
}

/// An invalid message, without a reference.
fn invalid<'a>(message: impl Into<String>) -> Invalid<'a> {
    Invalid {
        problem: Problem::bad_message(message),
        reference: None,
    }
}
