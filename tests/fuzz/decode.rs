//! A fuzz target for the decoder of WebSocket frames: whatever bytes a client sends, and however the
//! network cuts them, the decoder does not panic, yields the same events, and holds no more than one
//! message.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/websocket/decode.rs"]
mod decode;
#[allow(dead_code)]
#[path = "../../src/websocket/frame.rs"]
mod frame;

use decode::{Decoder, Event};
use libfuzzer_sys::fuzz_target;

/// The longest message, in bytes. It is short, so that inputs often exceed it.
const LIMIT: usize = 300;

// The first byte sets the number of pieces into which the others are cut.
fuzz_target!(|input: &[u8]| {
    if let [pieces, bytes @ ..] = input {
        let whole = events(bytes, bytes.len());
        let size = bytes.len() / (usize::from(*pieces) + 1);
        assert_eq!(events(bytes, size), whole);
        assert_eq!(events(bytes, 1), whole);
    }
});

/// The events that the decoder yields for `bytes` in pieces of `size` bytes.
fn events(bytes: &[u8], size: usize) -> Vec<String> {
    let mut decoder = Decoder::new(LIMIT);
    let mut events = Vec::new();
    for piece in bytes.chunks(size.max(1)) {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            let event = match decoder.decode(&mut input) {
                Ok(None) => break,
                event => event,
            };
            if let Ok(Some(Event::Text(text))) = event {
                assert!(text.len() <= LIMIT);
            }
            let last = matches!(event, Err(_) | Ok(Some(Event::Close(_))));
            events.push(format!("{event:?}"));
            if last {
                return events;
            }
        }
    }
    events
}
