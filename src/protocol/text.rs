//! Text of clients, in JSON and in error messages.

use std::borrow::Cow;

use serde::Deserialize;

/// The most bytes of a client's text that an error message quotes.
const MAX_QUOTE: usize = 64;

/// A JSON string, borrowed if it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The beginning of a client's text, for an error message.
pub(super) fn quote(words: &str) -> Cow<'_, str> {
    match words.floor_char_boundary(MAX_QUOTE) {
        end if end < words.len() => format!("{}…", &words[..end]).into(),
        _ => words.into(),
    }
}
