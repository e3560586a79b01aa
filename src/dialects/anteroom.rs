//! This server's own protocol, whose messages are in `protocol`.

use serde_json::value::RawValue;

use super::{Author, Command, WireFormat};
use crate::{
    protocol::{self, BinaryMessage, Invalid, Problem, Receiver, SessionId},
    websocket::Frame,
};

/// The four-field messages, and binary ones.
pub(super) struct Anteroom;

impl WireFormat for Anteroom {
    fn read<'a>(&self, author: Author<'_>, text: &'a str) -> Result<Command<'a>, Invalid<'a>> {
        let message = protocol::parse(text)?;
        Ok(match message.receiver {
            Receiver::Server => Command::Request(message),
            _ => Command::Send {
                frame: protocol::relayed(&message, author.id),
                reference: message.reference,
                receiver: message.receiver,
            },
        })
    }

    fn read_bytes<'a>(
        &self,
        author: Author<'_>,
        bytes: &'a [u8],
    ) -> Option<Result<Command<'a>, Invalid<'a>>> {
        let message = BinaryMessage::parse(bytes);
        Some(message.map(|message| Command::Send {
            frame: message.relayed(author.id),
            reference: None,
            receiver: message.receiver,
        }))
    }

    fn joined(&self, id: SessionId, public: Option<&RawValue>) -> Option<Frame> {
        Some(protocol::joined(id, public))
    }

    fn left(&self, id: SessionId) -> Option<Frame> {
        Some(protocol::left(id))
    }

    fn state(&self, id: SessionId, value: Option<&RawValue>) -> Option<Frame> {
        Some(protocol::state(id, value))
    }

    fn receipt(&self, id: SessionId, reference: &RawValue, receivers: usize) -> Option<Frame> {
        Some(protocol::ack(id, reference, receivers))
    }

    fn error(
        &self,
        id: SessionId,
        problem: &Problem,
        reference: Option<&RawValue>,
    ) -> Option<Frame> {
        Some(protocol::error(id, problem, reference))
    }
}
