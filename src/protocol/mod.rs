//! The wire format: session ids and room names, messages of clients, messages of the server, errors and
//! close codes. No I/O.

mod bytes;
mod close;
mod error;
mod escape;
mod event;
mod id;
mod message;
mod outcome;
mod resume_token;
mod room_name;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use self::{
    bytes::{BinaryMessage, bytes_from_json, from_json, to_json},
    close::{BACK_SOON, Close, CloseCode},
    error::{ErrorCode, Problem},
    escape::Escaped,
    event::{
        Hello, HelloRequest, HistoryRequest, IceServer, Limits, Peer, Resume, ack, address,
        announced, error, hello, history, joined, left, pong, relayed, resumed, state,
    },
    id::SessionId,
    message::{Invalid, Message, Receiver, parse},
    outcome::{Outcome, PeerResult},
    resume_token::{ResumeToken, TokenHash, TokenKey},
    room_name::RoomName,
};

/// The WebSocket subprotocol that the server selects if the client offers it.
pub(crate) const SUBPROTOCOL: &str = "anteroom.v1";
