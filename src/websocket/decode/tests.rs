use std::io::{self, Read, Write};

use proptest::{collection::vec, prelude::*, sample::select};
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::{Role, WebSocket, WebSocketConfig, frame::coding::CloseCode},
};

use super::*;

const LIMIT: usize = 150;

/// The result of decoding a stream of bytes: an event, or the close code of a violation.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
    Failed(u16),
}

fn decoded(limit: usize, pieces: Vec<Vec<u8>>) -> Vec<Outcome> {
    let mut decoder = Decoder::new(limit);
    let mut outcomes = Vec::new();
    for mut piece in pieces {
        let mut input = &mut piece[..];
        loop {
            let outcome = match decoder.decode(&mut input) {
                Ok(None) => break,
                Ok(Some(Event::Fragment)) => continue,
                Ok(Some(Event::Text(text))) => Outcome::Text(text.into()),
                Ok(Some(Event::Binary(bytes))) => Outcome::Binary(bytes.into()),
                Ok(Some(Event::Ping(payload))) => Outcome::Ping(payload.into()),
                Ok(Some(Event::Pong(payload))) => Outcome::Pong(payload.into()),
                Ok(Some(Event::Close(status))) => {
                    Outcome::Close(status.map(|(code, reason)| (code, reason.into())))
                }
                Err(Violation::Protocol(_)) => Outcome::Failed(1002),
                Err(Violation::Utf8) => Outcome::Failed(1007),
                Err(Violation::TooLong) => Outcome::Failed(1009),
            };
            let last = matches!(outcome, Outcome::Close(_) | Outcome::Failed(_));
            outcomes.push(outcome);
            if last {
                return outcomes;
            }
        }
    }
    outcomes
}

/// A stream that is read to its end and discards what is written.
struct OneWay(io::Cursor<Vec<u8>>);

impl Read for OneWay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for OneWay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decoded_by_tungstenite(bytes: Vec<u8>) -> Vec<Outcome> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let stream = OneWay(io::Cursor::new(bytes));
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
    let mut outcomes = Vec::new();
    loop {
        outcomes.push(match socket.read() {
            Ok(Message::Text(text)) => Outcome::Text(text.as_str().into()),
            Ok(Message::Binary(bytes)) => Outcome::Binary(bytes.into()),
            Ok(Message::Ping(payload)) => Outcome::Ping(payload.into()),
            Ok(Message::Pong(payload)) => Outcome::Pong(payload.into()),
            Ok(Message::Close(None)) => Outcome::Close(None),
            Ok(Message::Close(Some(close))) => {
                // tungstenite reports a close code that is not allowed as this frame of its own.
                if close.code == CloseCode::Protocol && close.reason == "Protocol violation" {
                    Outcome::Failed(1002)
                } else {
                    Outcome::Close(Some((close.code.into(), close.reason.as_str().into())))
                }
            }
            Ok(Message::Frame(_)) => unreachable!("reading gives no raw frames"),
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return outcomes,
            Err(tungstenite::Error::Protocol(_)) => Outcome::Failed(1002),
            Err(tungstenite::Error::Utf8(_)) => Outcome::Failed(1007),
            Err(tungstenite::Error::Capacity(_)) => Outcome::Failed(1009),
            Err(_) => return outcomes,
        });
        if matches!(
            outcomes.last(),
            Some(Outcome::Close(_) | Outcome::Failed(_))
        ) {
            return outcomes;
        }
    }
}

fn frame_bytes((first, masked, mask, payload): (u8, bool, [u8; 4], Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![first];
    let mask_bit = if masked { 0x80 } else { 0 };
    if payload.len() <= 125 {
        bytes.push(mask_bit | payload.len() as u8);
    } else if let Ok(length) = u16::try_from(payload.len()) {
        bytes.push(mask_bit | 126);
        bytes.extend(length.to_be_bytes());
    } else {
        bytes.push(mask_bit | 127);
        bytes.extend((payload.len() as u64).to_be_bytes());
    }
    if masked {
        bytes.extend(mask);
        bytes.extend(
            payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
    } else {
        bytes.extend(payload);
    }
    bytes
}

fn close_code() -> impl Strategy<Value = u16> {
    prop_oneof![999..1020u16, 2990..3010u16, 4990..5010u16, any::<u16>()]
        .prop_filter("tungstenite does not know the registered 1014", |code| {
            *code != 1014
        })
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    // Usually a valid first byte, so that streams get long; sometimes any.
    let first = prop_oneof![
        20 => select(vec![0x81, 0x01, 0x00, 0x80, 0x82, 0x02, 0x89, 0x8A]),
        2 => Just(0x88),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => "[a-zé🍵]{0,20}".prop_map(String::into_bytes),
        1 => "[a-z]{100,200}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..30),
        1 => (close_code(), "[a-zé]{0,5}").prop_map(|(code, reason)| {
            [&code.to_be_bytes(), reason.as_bytes()].concat()
        }),
    ];
    (first, prop::bool::weighted(0.98), any::<[u8; 4]>(), payload).prop_map(frame_bytes)
}

fn bytewise(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.iter().map(|byte| vec![*byte]).collect()
}

/// Cuts `bytes` at these positions, also inside characters and headers.
fn split(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| bytes[pair[0]..pair[1]].to_vec())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 5000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn agrees_with_tungstenite_however_the_bytes_arrive(
        frames in vec(frame(), 0..12),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes = frames.concat();
        let whole = decoded(LIMIT, vec![bytes.clone()]);
        prop_assert_eq!(&decoded(LIMIT, split(&bytes, &cuts)), &whole);
        prop_assert_eq!(&decoded(LIMIT, bytewise(&bytes)), &whole);

        let theirs = decoded_by_tungstenite(bytes);
        if whole != theirs {
            // In a frame with two errors, each decoder reports the one that it finds first.
            let (Some(Outcome::Failed(_)), Some(Outcome::Failed(_))) = (whole.last(), theirs.last()) else {
                return Err(TestCaseError::fail(format!("{whole:?} and {theirs:?}")));
            };
            prop_assert_eq!(&whole[..whole.len() - 1], &theirs[..theirs.len() - 1]);
        }
    }
}

#[test]
fn nothing_is_held_between_messages() {
    let mut decoder = Decoder::new(LIMIT);
    let message = frame_bytes((0x81, true, [1, 2, 3, 4], b"a message in pieces".into()));
    let ping = frame_bytes((0x89, true, [1, 2, 3, 4], b"a ping as well".into()));
    for byte in [message, ping].concat() {
        let mut byte = [byte];
        let mut input = &mut byte[..];
        while decoder.decode(&mut input).unwrap().is_some() {}
    }
    assert!(decoder.is_idle());
}

#[test]
fn a_header_of_any_length_may_come_in_pieces() {
    for length in [125, 126, 65_535, 65_536] {
        let payload = vec![b'x'; length];
        let bytes = frame_bytes((0x82, true, [1, 2, 3, 4], payload.clone()));
        let expected = [Outcome::Binary(payload), Outcome::Ping(Vec::new())];
        let bytes = [bytes, frame_bytes((0x89, true, [5, 6, 7, 8], Vec::new()))].concat();
        for cut in 0..=MAX_HEADER + 1 {
            let (begin, end) = bytes.split_at(cut);
            let pieces = vec![begin.to_vec(), end.to_vec()];
            assert_eq!(decoded(1 << 16, pieces), expected, "cut at {cut}");
        }
        assert_eq!(decoded(1 << 16, bytewise(&bytes)), expected);
    }
}

#[test]
fn a_length_must_have_its_shortest_form() {
    let in_eight_bytes = |length: u64| [&[0x82, 0x80 | 127][..], &length.to_be_bytes()].concat();
    for header in [
        vec![0x82, 0x80 | 126, 0, 125],
        in_eight_bytes(125),
        in_eight_bytes(65_535),
        in_eight_bytes(1 << 63),
    ] {
        // The error is found before the mask arrives.
        assert_eq!(decoded(LIMIT, bytewise(&header)), [Outcome::Failed(1002)]);
        assert_eq!(decoded(LIMIT, vec![header]), [Outcome::Failed(1002)]);
    }
}
