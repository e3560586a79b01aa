//! Frames to send, encoded once (RFC 6455, section 5.2).

use std::{cell::RefCell, sync::Arc};

/// The longest payload of a control frame, in bytes (RFC 6455, section 5.5).
pub(super) const MAX_CONTROL_PAYLOAD: usize = 125;

/// The longest header of an unmasked frame, in bytes: 2, and a length of 8.
const MAX_HEADER: usize = 10;

/// The memory that a queued frame needs in addition to its bytes, in bytes: its entry in the queue and
/// the overhead of its allocation.
const OVERHEAD: usize = 64;

/// The largest capacity of the encoding buffer that is kept between frames, in bytes.
const KEPT_BYTES: usize = 128 * 1024;

thread_local! {
    /// Frames are encoded here first, so that each allocates exactly the memory that it needs.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The FIN bit: the server sends no fragments, so every frame is a complete message.
const FIN: u8 = 0x80;

/// The bit that is set in the opcodes of control frames (section 5.5).
const CONTROL: u8 = 0x08;

/// The type of a frame (RFC 6455, section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    /// The opcode of these four bits; `None` if it is reserved.
    pub(super) fn from_bits(bits: u8) -> Option<Opcode> {
        Some(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return None,
        })
    }

    pub(super) fn is_control(self) -> bool {
        self as u8 & CONTROL != 0
    }
}

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// A text or a binary message.
    Message,
    Ping,
    Pong,
    /// The code and the reason, if there are any.
    Close(Option<(u16, &'a str)>),
}

/// An encoded frame, header and payload. Frames of a server are not masked, so every receiver gets the
/// same bytes, and clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Frame(Arc<[u8]>);

impl Frame {
    /// A text message. `write` appends the payload, which must be UTF-8, to its buffer.
    pub(crate) fn text(write: impl FnOnce(&mut Vec<u8>)) -> Frame {
        Frame::encode(Opcode::Text, write)
    }

    /// A binary message. `write` appends the payload to its buffer.
    pub(crate) fn binary(write: impl FnOnce(&mut Vec<u8>)) -> Frame {
        Frame::encode(Opcode::Binary, write)
    }

    /// A ping with a payload of at most 125 bytes.
    pub(crate) fn ping(payload: &[u8]) -> Frame {
        debug_assert!(payload.len() <= MAX_CONTROL_PAYLOAD);
        Frame::encode(Opcode::Ping, |buffer| buffer.extend_from_slice(payload))
    }

    /// A pong with the payload of the ping that it answers, at most 125 bytes.
    pub(crate) fn pong(payload: &[u8]) -> Frame {
        debug_assert!(payload.len() <= MAX_CONTROL_PAYLOAD);
        Frame::encode(Opcode::Pong, |buffer| buffer.extend_from_slice(payload))
    }

    /// A Close frame with a code and a reason (RFC 6455, section 5.5.1), or without both. A reason of
    /// more than 123 bytes is truncated.
    pub(crate) fn close(status: Option<(u16, &str)>) -> Frame {
        Frame::encode(Opcode::Close, |buffer| {
            if let Some((code, reason)) = status {
                buffer.extend_from_slice(&code.to_be_bytes());
                let end = reason.floor_char_boundary(MAX_CONTROL_PAYLOAD - size_of::<u16>());
                buffer.extend_from_slice(&reason.as_bytes()[..end]);
            }
        })
    }

    /// What the frame is, for a transport that sends no frames.
    #[allow(dead_code, reason = "websocket-echo never asks")]
    pub(crate) fn content(&self) -> Content<'_> {
        const PING: u8 = FIN | Opcode::Ping as u8;
        const CLOSE: u8 = FIN | Opcode::Close as u8;
        match self.0[0] {
            PING => Content::Ping,
            CLOSE => {
                let payload = self.payload().split_first_chunk();
                let status = payload.and_then(|(code, reason)| {
                    let reason = str::from_utf8(reason).ok()?;
                    Some((u16::from_be_bytes(*code), reason))
                });
                Content::Close(status)
            }
            _ if self.is_message() => Content::Message,
            _ => Content::Pong,
        }
    }

    /// Whether the frame is a message and not a control frame (section 5.5).
    pub(crate) fn is_message(&self) -> bool {
        self.0[0] & CONTROL == 0
    }

    /// Whether the frame is a binary message.
    #[allow(dead_code, reason = "websocket-echo never asks")]
    pub(crate) fn is_binary(&self) -> bool {
        self.0[0] == FIN | Opcode::Binary as u8
    }

    /// The size of the frame on the wire, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The memory that the frame needs in a queue, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.len() + OVERHEAD
    }

    /// The encoded frame, header and payload.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The payload.
    pub(crate) fn payload(&self) -> &[u8] {
        let header = match self.0[1] {
            126 => 4,
            127 => MAX_HEADER,
            _ => 2,
        };
        &self.0[header..]
    }

    /// Reserves space for the longest header, has `write` append the payload, and puts the header directly
    /// before the payload.
    fn encode(opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) -> Frame {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(MAX_HEADER, 0);
            write(buffer);
            let length = buffer.len() - MAX_HEADER;
            let start = if length <= 125 {
                buffer[MAX_HEADER - 1] = length as u8;
                MAX_HEADER - 2
            } else if let Ok(length) = u16::try_from(length) {
                buffer[MAX_HEADER - 2..MAX_HEADER].copy_from_slice(&length.to_be_bytes());
                buffer[MAX_HEADER - 3] = 126;
                MAX_HEADER - 4
            } else {
                buffer[MAX_HEADER - 8..MAX_HEADER].copy_from_slice(&(length as u64).to_be_bytes());
                buffer[MAX_HEADER - 9] = 127;
                0
            };
            buffer[start] = FIN | opcode as u8;
            let frame = Frame(buffer[start..].into());
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
            frame
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(length: usize) -> Vec<u8> {
        Frame::text(|buffer| buffer.resize(buffer.len() + length, b'a'))
            .bytes()
            .to_vec()
    }

    #[test]
    fn the_length_takes_the_fewest_bytes() {
        assert_eq!(text_of(0), [0x81, 0]);
        assert_eq!(text_of(125)[..2], [0x81, 125]);
        assert_eq!(text_of(126)[..5], [0x81, 126, 0, 126, b'a']);
        assert_eq!(text_of(65_535)[..5], [0x81, 126, 255, 255, b'a']);
        assert_eq!(
            text_of(65_536)[..11],
            [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0, b'a']
        );
        assert_eq!(text_of(65_536).len(), 65_546);
    }

    #[test]
    fn control_frames_are_encoded_as_in_the_rfc() {
        assert_eq!(Frame::ping(b"").bytes()[..], [0x89, 0]);
        assert_eq!(Frame::pong(b"hi").bytes()[..], *b"\x8a\x02hi");
        assert_eq!(Frame::close(None).bytes()[..], [0x88, 0]);
        assert_eq!(
            Frame::close(Some((1000, "ok"))).bytes()[..],
            *b"\x88\x04\x03\xe8ok"
        );
    }

    #[test]
    fn a_frame_tells_what_it_is() {
        assert_eq!(Frame::text(|_| {}).content(), Content::Message);
        assert_eq!(Frame::binary(|_| {}).content(), Content::Message);
        assert_eq!(Frame::ping(b"1").content(), Content::Ping);
        assert_eq!(Frame::pong(b"1").content(), Content::Pong);
        assert_eq!(Frame::close(None).content(), Content::Close(None));
        let close = Frame::close(Some((1012, "later")));
        assert_eq!(close.content(), Content::Close(Some((1012, "later"))));
    }

    #[test]
    fn a_long_close_reason_is_truncated_between_characters() {
        let frame = Frame::close(Some((1008, &"é".repeat(100))));
        assert_eq!(frame.bytes()[1], 2 + 122);
        assert!(std::str::from_utf8(&frame.bytes()[4..]).is_ok());
    }
}
