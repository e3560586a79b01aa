//! What clients write, as JSON has it and as error messages repeat it.

use std::borrow::Cow;

use serde::Deserialize;

/// How much of a client's own words an error message repeats, in bytes.
const MAX_QUOTE: usize = 64;

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The beginning of a client's own words, for an error message.
pub(super) fn quote(words: &str) -> Cow<'_, str> {
    match words.floor_char_boundary(MAX_QUOTE) {
        end if end < words.len() => format!("{}…", &words[..end]).into(),
        _ => words.into(),
    }
}
