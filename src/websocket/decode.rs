//! Incoming frames: bytes in, events out, no I/O (RFC 6455, sections 5 and 8).
//!
//! The decoder keeps nothing between messages. A message that stands whole in the bytes it is given
//! is unmasked there and handed out from there; only what comes in pieces is gathered, up to the
//! limit.

use std::{mem, str};

use arrayvec::ArrayVec;

use super::frame::{MAX_CONTROL_PAYLOAD, Opcode};

/// The longest header of a masked frame, in bytes: two, a length of eight, a mask of four.
const MAX_HEADER: usize = 14;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A part of a message that is to come as a whole: there may be any number of them.
    Fragment,
    /// To be answered with a pong that carries the same payload (section 5.5.2).
    Ping(&'a [u8]),
    /// The answer to a ping.
    Pong(&'a [u8]),
    /// The client's last frame: its code and reason, if it gave any (section 5.5.1).
    Close(Option<(u16, &'a str)>),
}

/// Why a connection must be failed (section 7.1.7).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The peer does not keep to the protocol; the text says what it did.
    Protocol(&'static str),
    /// Text that is not UTF-8 (section 8.1).
    Utf8,
    /// A message longer than the limit.
    TooLong,
}

/// The state between two reads: at most one unfinished header, one unfinished control frame, one
/// unfinished message.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The longest message accepted, in bytes of payload.
    limit: usize,
    /// What is here of a header that comes in pieces.
    header: ArrayVec<u8, MAX_HEADER>,
    /// The frame whose payload is arriving.
    frame: Option<Incoming>,
    /// `Text` or `Binary` while a message is unfinished, be it in this frame or by fragments to come.
    message_kind: Option<Opcode>,
    /// There only while something comes in pieces, which is seldom: an idle connection needs no room
    /// for it.
    gathered: Option<Box<Gathered>>,
}

/// What comes in pieces, as far as it is here.
#[derive(Debug, Default)]
struct Gathered {
    /// The message under way.
    message: Vec<u8>,
    /// How many bytes of `message` are known to be UTF-8.
    valid: usize,
    /// The control frame under way.
    control: Vec<u8>,
}

/// A frame whose header is known.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    opcode: Opcode,
    fin: bool,
    /// The mask, rotated to the next byte of payload.
    mask: [u8; 4],
    /// How many bytes of payload are still to come.
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
            gathered: None,
        }
    }

    /// The next event, or `None` when `input` is used up. Takes what it uses from the front of
    /// `input` and overwrites it (unmasking). After a violation or [`Event::Close`] the decoder
    /// must not be used again.
    ///
    /// # Errors
    ///
    /// The [`Violation`] for which the connection must be failed.
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
                if whole && self.control().is_empty() {
                    return control_event(frame.opcode, payload).map(Some);
                }
                self.gathered().control.extend_from_slice(payload);
                if whole {
                    return control_event(frame.opcode, self.control()).map(Some);
                }
            } else {
                let text = self.message_kind == Some(Opcode::Text);
                let last = whole && frame.fin;
                if last {
                    self.message_kind = None;
                    if self.message().is_empty() {
                        return message_event(text, payload).map(Some);
                    }
                }
                self.gathered().message.extend_from_slice(payload);
                if text {
                    self.gathered().validate()?;
                }
                if last {
                    return message_event(text, self.message()).map(Some);
                }
                if whole {
                    return Ok(Some(Event::Fragment));
                }
            }
        }
        Ok(None)
    }

    /// Frees what the event before was made of.
    fn drop_delivered(&mut self) {
        let Some(gathered) = &mut self.gathered else {
            return;
        };
        if self.frame.is_none_or(|frame| !frame.opcode.is_control()) {
            gathered.control = Vec::new();
        }
        if self.message_kind.is_none() {
            gathered.message = Vec::new();
            gathered.valid = 0;
        }
        if gathered.message.is_empty() && gathered.control.is_empty() {
            self.gathered = None;
        }
    }

    /// What is here of a message that comes in pieces.
    fn message(&self) -> &[u8] {
        self.gathered.as_ref().map_or(&[], |it| &it.message)
    }

    /// What is here of a control frame that comes in pieces.
    fn control(&self) -> &[u8] {
        self.gathered.as_ref().map_or(&[], |it| &it.control)
    }

    /// A place for what comes in pieces.
    fn gathered(&mut self) -> &mut Gathered {
        self.gathered.get_or_insert_default()
    }

    /// The frame whose payload comes next: the one under way, or a new one once its header is here.
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

    /// What the next header says. Mostly it is here as a whole; otherwise it is gathered.
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

    /// Reads a header (section 5.2); returns also its length, or `None` if it is not all here. What is
    /// wrong with its first two bytes or its length is said before the mask is here, and nothing is
    /// allocated for the length it announces.
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
            return Err(Violation::Protocol("a length of more than 63 bits"));
        }
        if length < least {
            return Err(Violation::Protocol("a length not in its shortest form"));
        }
        if !opcode.is_control() && length > (self.limit - self.message().len()) as u64 {
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

    /// What can be said of a frame by its first two bytes (section 5.2).
    fn check_first_two(&self, first: u8, second: u8) -> Result<Opcode, Violation> {
        if first & 0x70 != 0 {
            return Err(Violation::Protocol("a reserved bit is set"));
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0F) else {
            return Err(Violation::Protocol("a reserved opcode"));
        };
        if second & 0x80 == 0 {
            return Err(Violation::Protocol("a frame that is not masked"));
        }
        if opcode.is_control() {
            if first & 0x80 == 0 {
                return Err(Violation::Protocol("a fragmented control frame"));
            }
            if usize::from(second & 0x7F) > MAX_CONTROL_PAYLOAD {
                return Err(Violation::Protocol(
                    "a control frame of more than 125 bytes",
                ));
            }
        }
        match (opcode, self.message_kind) {
            (Opcode::Continuation, None) => {
                Err(Violation::Protocol("a continuation of no message"))
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                Err(Violation::Protocol("a new message inside a fragmented one"))
            }
            _ => Ok(opcode),
        }
    }
}

impl Gathered {
    /// Checks what has come of a text message, so that it fails at its first wrong byte, not at its
    /// end.
    fn validate(&mut self) -> Result<(), Violation> {
        match str::from_utf8(&self.message[self.valid..]) {
            Ok(_) => self.valid = self.message.len(),
            // The end of what is here may be the middle of a character.
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        }
        Ok(())
    }
}

impl Incoming {
    /// What is left of the frame after `here` bytes of its payload.
    fn after(mut self, here: usize) -> Incoming {
        self.mask.rotate_left(here % 4);
        self.remaining -= here;
        self
    }
}

/// Takes the mask off (section 5.3).
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

/// Reads a Close frame (section 5.5.1).
fn close_event(payload: &[u8]) -> Result<Event<'_>, Violation> {
    match payload {
        [] => Ok(Event::Close(None)),
        [_] => Err(Violation::Protocol("a Close frame with half a code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(Violation::Protocol("a close code that may not be sent"));
            }
            let reason = str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
            Ok(Event::Close(Some((code, reason))))
        }
    }
}

/// The close codes a peer may put into a frame (section 7.4 and the registry it founds).
fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests;
