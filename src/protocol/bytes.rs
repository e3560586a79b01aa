//! Binary messages, and the form that they have where only JSON can go.
//!
//! A client's binary message begins with the 16 bytes of its receiver's id, all zero for everyone else. The receivers
//! get it with the id of its sender in their place. The rest is the application's.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    error::Problem,
    id::SessionId,
    message::{Invalid, Receiver},
};
use crate::websocket::Frame;

/// A client's binary message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BinaryMessage<'a> {
    pub(crate) receiver: Receiver<'a>,
    /// What follows the receiver's id.
    pub(crate) payload: &'a [u8],
}

impl BinaryMessage<'_> {
    /// Parses a binary message.
    ///
    /// # Errors
    ///
    /// The [`Invalid`] message, which is shorter than an id.
    pub(crate) fn parse(bytes: &[u8]) -> Result<BinaryMessage<'_>, Invalid<'_>> {
        let Some((id, payload)) = bytes.split_first_chunk() else {
            let message = format!(
                "a binary message begins with the 16 bytes of its receiver's id, and this one has {} bytes",
                bytes.len()
            );
            return Err(Invalid {
                problem: Problem::bad_message(message),
                reference: None,
            });
        };
        let receiver = match u128::from_be_bytes(*id) {
            0 => Receiver::All,
            _ => Receiver::Session(SessionId::from_bytes(*id)),
        };
        Ok(BinaryMessage { receiver, payload })
    }

    /// The message to its receivers.
    pub(crate) fn relayed(&self, sender: SessionId) -> Frame {
        Frame::binary(|buffer| {
            buffer.extend_from_slice(&sender.bits().to_be_bytes());
            buffer.extend_from_slice(self.payload);
        })
    }
}

/// A message as JSON: its text, or for a binary message a string with its bytes in base64 (RFC 4648, section 4).
pub(crate) fn to_json(frame: &Frame) -> Cow<'_, [u8]> {
    match frame.is_binary() {
        false => frame.payload().into(),
        true => format!("\"{}\"", STANDARD.encode(frame.payload()))
            .into_bytes()
            .into(),
    }
}

/// The message with this JSON. A string that is not base64 is a text message.
pub(crate) fn from_json(json: &str) -> Frame {
    match bytes_from_json(json) {
        Some(bytes) => Frame::binary(|buffer| buffer.extend_from_slice(&bytes)),
        None => Frame::text(|buffer| buffer.extend_from_slice(json.as_bytes())),
    }
}

/// The bytes of the binary message with this JSON; `None` if it is none.
pub(crate) fn bytes_from_json(json: &str) -> Option<Vec<u8>> {
    let base64 = json.strip_prefix('"')?.strip_suffix('"')?;
    STANDARD.decode(base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_are_an_id_or_zero_for_all() {
        let id = SessionId::random();
        let mut bytes = id.bits().to_be_bytes().to_vec();
        bytes.extend_from_slice(b"\0rest\xff");
        let message = BinaryMessage::parse(&bytes).unwrap();
        assert_eq!(message.receiver, Receiver::Session(id));
        assert_eq!(message.payload, b"\0rest\xff");
        let sender = SessionId::random();
        let relayed = message.relayed(sender);
        assert!(relayed.is_binary());
        assert_eq!(relayed.payload()[..16], sender.bits().to_be_bytes());
        assert_eq!(relayed.payload()[16..], *b"\0rest\xff");

        let all = BinaryMessage::parse(&[0; 16]).unwrap();
        assert_eq!((all.receiver, all.payload), (Receiver::All, &[][..]));
        for short in [&[][..], &[0; 15]] {
            let invalid = BinaryMessage::parse(short).unwrap_err();
            assert_eq!(invalid.problem.code.as_str(), "bad_message");
        }
    }

    #[test]
    fn a_message_survives_its_form_in_json() {
        for bytes in [&[][..], b"a", b"ab", b"abc", &[0xff; 100]] {
            let frame = Frame::binary(|buffer| buffer.extend_from_slice(bytes));
            let json = to_json(&frame);
            let text = str::from_utf8(&json).unwrap();
            assert!(serde_json::from_str::<String>(text).is_ok());
            assert_eq!(from_json(text).bytes(), frame.bytes());
        }
        for text in ["{\"a\":\n1}", "\"words\"", "\"", "1"] {
            let frame = Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()));
            assert_eq!(*to_json(&frame), *text.as_bytes());
            assert_eq!(from_json(text).bytes(), frame.bytes());
        }
    }
}
