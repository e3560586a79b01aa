//! The decoder of received frames: bytes in, events out, no I/O (RFC 6455, sections 5 and 8).
//!
//! The decoder holds nothing between messages. A message that is complete in the input is unmasked in
//! place and borrowed from there. Only a message that arrives in pieces is copied, up to the limit.

use std::{mem, str};

use arrayvec::ArrayVec;

use super::frame::{MAX_CONTROL_PAYLOAD, Opcode};

/// The longest header of a masked frame, in bytes: 2, a length of 8, a mask of 4.
const MAX_HEADER: usize = 14;

/// A message, a part of one, or a control frame from the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A complete text message.
    Text(&'a str),
    /// A complete binary message.
    Binary(&'a [u8]),
    /// A fragment of a message, whose payload comes with the event of the complete message. A message
    /// may have any number of fragments, so callers can count them against a rate limit.
    Fragment,
    /// A ping. The answer is a pong with the same payload (section 5.5.2).
    Ping(&'a [u8]),
    /// A pong, usually the answer to a ping.
    Pong(&'a [u8]),
    /// A Close frame, the last frame of the client: its code and reason, if any (section 5.5.1).
    Close(Option<(u16, &'a str)>),
}

/// Why the server must close a connection (section 7.1.7).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The peer broke the protocol. The text names the error.
    Protocol(&'static str),
    /// Text that is not UTF-8 (section 8.1).
    Utf8,
    /// A message longer than the limit.
    TooLong,
}

/// The state between two reads: at most one incomplete header, one incomplete control frame, and one
/// incomplete message.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The longest accepted message, in bytes of payload.
    limit: usize,
    /// The bytes so far of a header that arrives in pieces.
    header: ArrayVec<u8, MAX_HEADER>,
    /// The frame whose payload is arriving.
    frame: Option<Incoming>,
    /// `Text` or `Binary` while a message is incomplete, in the current frame or in later fragments.
    message_kind: Option<Opcode>,
    /// The payload so far of a message that arrives in pieces.
    message: Vec<u8>,
    /// The length of the beginning of `message` that is known to be UTF-8, in bytes.
    valid: usize,
    /// The payload so far of a control frame that arrives in pieces.
    control: Vec<u8>,
}

/// A frame whose header is decoded.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    opcode: Opcode,
    fin: bool,
    /// The mask, rotated so that it begins at the next byte of payload.
    mask: [u8; 4],
    /// The number of bytes of payload that are still to come.
    remaining: usize,
}

impl Decoder {
    /// A decoder of messages of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Decoder {
        Decoder {
            limit,
            header: ArrayVec::new(),
            frame: None,
            message_kind: None,
            message: Vec::new(),
            valid: 0,
            control: Vec::new(),
        }
    }

    /// Whether nothing is incomplete, so that a new decoder would go on the same way.
    pub(super) fn is_idle(&self) -> bool {
        self.header.is_empty()
            && self.frame.is_none()
            && self.message_kind.is_none()
            && self.message.is_empty()
            && self.control.is_empty()
    }

    /// Decodes the next event; `None` if `input` is used up. Removes decoded bytes from the front of
    /// `input` and unmasks them in place. After a violation or [`Event::Close`] the decoder must not be
    /// used again.
    ///
    /// # Errors
    ///
    /// The [`Violation`] for which the connection must be closed.
    pub(super) fn decode<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i mut [u8],
    ) -> Result<Option<Event<'a>>, Violation> {
        self.drop_delivered();
        while let Some(frame) = self.frame(input)? {
            let here = frame.remaining.min(input.len());
            let (payload, rest) = mem::take(input).split_at_mut(here);
            *input = rest;
            unmask(payload, frame.mask);
            let whole = here == frame.remaining;
            self.frame = (!whole).then(|| frame.after(here));

            if frame.opcode.is_control() {
                if whole && self.control.is_empty() {
                    return control_event(frame.opcode, payload).map(Some);
                }
                self.control.extend_from_slice(payload);
                if whole {
                    return control_event(frame.opcode, &self.control).map(Some);
                }
            } else {
                let text = self.message_kind == Some(Opcode::Text);
                let last = whole && frame.fin;
                if last {
                    self.message_kind = None;
                    if self.message.is_empty() {
                        return message_event(text, payload).map(Some);
                    }
                }
                self.message.extend_from_slice(payload);
                if text {
                    self.validate()?;
                }
                if last {
                    return message_event(text, &self.message).map(Some);
                }
                if whole {
                    return Ok(Some(Event::Fragment));
                }
            }
        }
        Ok(None)
    }

    /// Frees the payload of the event before.
    fn drop_delivered(&mut self) {
        if self.frame.is_none_or(|frame| !frame.opcode.is_control()) {
            self.control = Vec::new();
        }
        if self.message_kind.is_none() {
            self.message = Vec::new();
            self.valid = 0;
        }
    }

    /// The frame whose payload comes next: the incomplete one, or a new one once its header is received.
    fn frame(&mut self, input: &mut &mut [u8]) -> Result<Option<Incoming>, Violation> {
        if self.frame.is_some() {
            return Ok(self.frame.filter(|_| !input.is_empty()));
        }
        let frame = self.header(input)?;
        if let Some(Incoming {
            opcode: kind @ (Opcode::Text | Opcode::Binary),
            ..
        }) = frame
        {
            self.message_kind = Some(kind);
        }
        Ok(frame)
    }

    /// The frame of the next header, which is usually complete in the input and collected otherwise.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Incoming>, Violation> {
        if self.header.is_empty()
            && let Some((frame, length)) = self.read_header(input)?
        {
            *input = &mut mem::take(input)[length..];
            return Ok(Some(frame));
        }
        while let Some((byte, rest)) = mem::take(input).split_first_mut() {
            *input = rest;
            self.header.push(*byte);
            if let Some((frame, _)) = self.read_header(&self.header)? {
                self.header.clear();
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Decodes a header (section 5.2) and returns the frame and the length of the header; `None` if it is
    /// incomplete. Errors in the first two bytes or in the length are reported before the mask is
    /// received, and nothing is allocated for the announced length.
    fn read_header(&self, bytes: &[u8]) -> Result<Option<(Incoming, usize)>, Violation> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        let opcode = self.check_first_two(*first, *second)?;
        let extended = match second & 0x7F {
            126 => rest
                .first_chunk()
                .map(|bytes| (u16::from_be_bytes(*bytes).into(), 126, 2)),
            127 => rest
                .first_chunk()
                .map(|bytes| (u64::from_be_bytes(*bytes), 1 << 16, 8)),
            length => Some((length.into(), 0, 0)),
        };
        let Some((length, least, mask_at)) = extended else {
            return Ok(None);
        };
        if length >> 63 != 0 {
            return Err(Violation::Protocol("a frame length of more than 63 bits"));
        }
        if length < least {
            return Err(Violation::Protocol(
                "a frame length not in its shortest form",
            ));
        }
        if !opcode.is_control() && length > (self.limit - self.message.len()) as u64 {
            return Err(Violation::TooLong);
        }
        let frame = rest[mask_at..].first_chunk().map(|mask| Incoming {
            opcode,
            fin: first & 0x80 != 0,
            mask: *mask,
            remaining: length as usize,
        });
        Ok(frame.map(|frame| (frame, 2 + mask_at + frame.mask.len())))
    }

    /// Checks the first two bytes of a frame (section 5.2).
    fn check_first_two(&self, first: u8, second: u8) -> Result<Opcode, Violation> {
        if first & 0x70 != 0 {
            return Err(Violation::Protocol("a reserved bit is set"));
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0F) else {
            return Err(Violation::Protocol("an opcode is reserved"));
        };
        if second & 0x80 == 0 {
            return Err(Violation::Protocol("a frame is not masked"));
        }
        if opcode.is_control() {
            if first & 0x80 == 0 {
                return Err(Violation::Protocol("a control frame is fragmented"));
            }
            if usize::from(second & 0x7F) > MAX_CONTROL_PAYLOAD {
                return Err(Violation::Protocol(
                    "a control frame has more than 125 bytes",
                ));
            }
        }
        match (opcode, self.message_kind) {
            (Opcode::Continuation, None) => Err(Violation::Protocol(
                "a continuation frame without a message",
            )),
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(Violation::Protocol(
                "a new message inside a fragmented message",
            )),
            _ => Ok(opcode),
        }
    }

    /// Checks that the text so far is UTF-8, so that a message fails at its first invalid byte, not at its
    /// end.
    fn validate(&mut self) -> Result<(), Violation> {
        match str::from_utf8(&self.message[self.valid..]) {
            Ok(_) => self.valid = self.message.len(),
            // The text so far may end in the middle of a character.
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        }
        Ok(())
    }
}

impl Incoming {
    /// The rest of the frame after `here` bytes of its payload.
    fn after(mut self, here: usize) -> Incoming {
        self.mask.rotate_left(here % 4);
        self.remaining -= here;
        self
    }
}

/// Removes the mask (section 5.3).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = [a, b, c, d, a, b, c, d];
    let (words, tail) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(wide)).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(wide) {
        *byte ^= key;
    }
}

fn message_event(text: bool, payload: &[u8]) -> Result<Event<'_>, Violation> {
    if !text {
        return Ok(Event::Binary(payload));
    }
    match str::from_utf8(payload) {
        Ok(text) => Ok(Event::Text(text)),
        Err(_) => Err(Violation::Utf8),
    }
}

fn control_event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, Violation> {
    match opcode {
        Opcode::Ping => Ok(Event::Ping(payload)),
        Opcode::Pong => Ok(Event::Pong(payload)),
        _ => close_event(payload),
    }
}

/// Decodes a Close frame (section 5.5.1).
fn close_event(payload: &[u8]) -> Result<Event<'_>, Violation> {
    match payload {
        [] => Ok(Event::Close(None)),
        [_] => Err(Violation::Protocol(
            "a Close frame with one byte of payload",
        )),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(Violation::Protocol(
                    "a close code that is not allowed in a frame",
                ));
            }
            let reason = str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
            Ok(Event::Close(Some((code, reason))))
        }
    }
}

/// Whether a peer may send this close code (section 7.4, and the IANA registry that it establishes).
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests;
