//! The messages that the server sends: events, answers, and relayed messages of clients.

use std::{net::IpAddr, num::NonZeroU32};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    error::{ErrorCode, Problem},
    id::SessionId,
    message::{Message, Receiver, USER_PREFIX},
    resume_token::ResumeToken,
    room_name::RoomName,
};
use crate::{
    config::{Secret, expose_to_client},
    websocket::Frame,
};

/// The value of `sender` or `receiver`.
enum AddressField<'a> {
    Session(SessionId),
    Server,
    All,
    /// All sessions of a user.
    User(&'a str),
    /// `null`, the receiver of what only the server can say.
    Nobody,
}

impl AddressField<'_> {
    /// The receiver of a message that is delivered to sessions.
    fn of<'a>(receiver: &'a Receiver<'_>) -> AddressField<'a> {
        match receiver {
            Receiver::All => AddressField::All,
            Receiver::Server => AddressField::Server,
            Receiver::Session(id) => AddressField::Session(*id),
            Receiver::User(name) => AddressField::User(name),
            Receiver::Unknown(_) => AddressField::Nobody,
        }
    }

    /// Writes the value as JSON.
    fn write(&self, buffer: &mut Vec<u8>) {
        match self {
            AddressField::Session(id) => {
                buffer.push(b'"');
                buffer.extend_from_slice(id.encode(&mut Uuid::encode_buffer()).as_bytes());
                buffer.push(b'"');
            }
            AddressField::Server => buffer.extend_from_slice(br#""server""#),
            AddressField::All => buffer.extend_from_slice(br#""all""#),
            AddressField::User(name) => {
                let address = format!("{USER_PREFIX}{name}");
                serde_json::to_writer(buffer, &address)
                    .expect("a string always serializes, and a Vec takes every write");
            }
            AddressField::Nobody => buffer.extend_from_slice(b"null"),
        }
    }
}

/// A message: the four fields in the order of the protocol.
fn frame(
    kind: &str,
    sender: AddressField<'_>,
    receiver: AddressField<'_>,
    data: impl Serialize,
) -> Frame {
    fn write(buffer: &mut Vec<u8>, json: impl Serialize) {
        serde_json::to_writer(buffer, &json)
            .expect("strings and checked JSON always serialize, and a Vec takes every write");
    }
    Frame::text(|buffer| {
        buffer.extend_from_slice(br#"{"type":"#);
        write(buffer, kind);
        buffer.extend_from_slice(br#","sender":"#);
        sender.write(buffer);
        buffer.extend_from_slice(br#","receiver":"#);
        receiver.write(buffer);
        buffer.extend_from_slice(br#","data":"#);
        write(buffer, data);
        buffer.push(b'}');
    })
}

/// The event `new`, to the others in a room: a session joined. `public` is what they see of it.
pub(crate) fn joined(id: SessionId, public: Option<&RawValue>) -> Frame {
    frame("new", AddressField::Session(id), AddressField::All, public)
}

/// The event `close`, to the others in a room: a session left.
pub(crate) fn left(id: SessionId) -> Frame {
    frame("close", AddressField::Session(id), AddressField::Nobody, ())
}

/// The event `state`, to the others in a room: what a session says of itself, if anything.
pub(crate) fn state(id: SessionId, value: Option<&RawValue>) -> Frame {
    frame(
        "state",
        AddressField::Session(id),
        AddressField::Nobody,
        value,
    )
}

/// A client's message to its receivers. `sender` is the session that sent it, whatever the client wrote.
pub(crate) fn relayed(message: &Message<'_>, sender: SessionId) -> Frame {
    let receiver = AddressField::of(&message.receiver);
    frame(
        &message.kind,
        AddressField::Session(sender),
        receiver,
        message.data,
    )
}

/// A message of the application's backend to its receivers. The sender is the server.
pub(crate) fn announced(message: &Message<'_>) -> Frame {
    let receiver = AddressField::of(&message.receiver);
    frame(&message.kind, AddressField::Server, receiver, message.data)
}

/// The receipt for the message with this `ref`: the message is in the outbox of that many `receivers`.
pub(crate) fn ack(to: SessionId, reference: &RawValue, receivers: usize) -> Frame {
    #[derive(Serialize)]
    struct Ack<'a> {
        r#ref: &'a RawValue,
        receivers: usize,
    }
    answer(
        "ack",
        to,
        Ack {
            r#ref: reference,
            receivers,
        },
    )
}

/// An error about the message with this `ref`, if it had one.
pub(crate) fn error(to: SessionId, problem: &Problem, reference: Option<&RawValue>) -> Frame {
    #[derive(Serialize)]
    struct Error<'a> {
        code: ErrorCode,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a RawValue>,
    }
    answer(
        "error",
        to,
        Error {
            code: problem.code,
            message: &problem.message,
            r#ref: reference,
        },
    )
}

/// The answer to `hello`.
pub(crate) fn hello(to: SessionId, hello: &Hello<'_>) -> Frame {
    answer("hello", to, hello)
}

/// A message in the history of the room, or the end of the answer to a request for it.
pub(crate) fn history(to: SessionId, data: impl Serialize) -> Frame {
    answer("history", to, data)
}

/// The first message after a session is resumed: how many messages of the client the server has
/// received in this session.
pub(crate) fn resumed(to: SessionId, received: u64) -> Frame {
    #[derive(Serialize)]
    struct Resumed {
        received: u64,
    }
    answer("resumed", to, Resumed { received })
}

/// The answer to `ping`.
pub(crate) fn pong(to: SessionId, data: Option<&RawValue>) -> Frame {
    answer("pong", to, data)
}

/// The answer to `address`: the client's address, `null` if the HTTP server does not tell it.
pub(crate) fn address(to: SessionId, ip: Option<IpAddr>) -> Frame {
    answer("address", to, serde_json::json!({ "ip": ip }))
}

/// A message from the server to one session.
fn answer(kind: &str, to: SessionId, data: impl Serialize) -> Frame {
    frame(kind, AddressField::Server, AddressField::Session(to), data)
}

/// The `data` of the answer to `hello`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello<'a> {
    pub(crate) room: &'a RoomName,
    /// The others in the room, longest-joined first.
    pub(crate) peers: &'a [Peer<'a>],
    pub(crate) ice_servers: &'a [IceServer],
    /// How to resume the session, if the client asked for that.
    pub(crate) resume: Option<Resume>,
    /// How many messages to all the room keeps; `None` if it keeps none.
    pub(crate) history: Option<usize>,
    pub(crate) limits: Limits,
}

/// An RTCIceServer (W3C WebRTC, section 4.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct IceServer {
    pub(crate) urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "expose_to_client"
    )]
    pub(crate) credential: Option<Secret<String>>,
}

/// How to resume a session.
#[derive(Serialize)]
pub(crate) struct Resume {
    pub(crate) token: ResumeToken,
    /// How long the session stays suspended before it expires.
    pub(crate) seconds: u64,
}

/// The `data` of a `hello` request.
#[derive(Default, Deserialize)]
pub(crate) struct HelloRequest {
    /// Whether the session is to survive the loss of its connection.
    #[serde(default)]
    pub(crate) resume: bool,
}

/// The `data` of a `history` request.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryRequest {
    /// At most so many messages, the last ones.
    pub(crate) last: Option<usize>,
    /// Only messages with a lower number.
    pub(crate) before: Option<u64>,
}

impl HelloRequest {
    /// Reads the request from `data` if it is an object. Anything else means the defaults, as does an
    /// object with invalid values.
    pub(crate) fn parse(data: Option<&RawValue>) -> HelloRequest {
        data.filter(|data| data.get().starts_with('{'))
            .and_then(|data| serde_json::from_str(data.get()).ok())
            .unwrap_or_default()
    }
}

/// Another session of the room.
#[derive(Serialize)]
pub(crate) struct Peer<'a> {
    pub(crate) id: SessionId,
    /// The `data` of the session's `new`.
    pub(crate) data: Option<&'a RawValue>,
    /// What the session says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<&'a RawValue>,
}

/// The limits of a session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Limits {
    pub(crate) message_bytes: usize,
    pub(crate) state_bytes: usize,
    /// `None` without a limit, here and below.
    pub(crate) messages_per_second: Option<NonZeroU32>,
    pub(crate) bytes_per_second: Option<NonZeroU32>,
}
