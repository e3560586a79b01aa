//! Room names, in URLs, in messages and in the log.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    str,
    sync::Arc,
};

use percent_encoding::percent_decode;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{escape::Escaped, text::Text};

/// The room of the path `/room`, without a name.
const DEFAULT_ROOM: &str = "lobby";

/// The longest room name, in bytes after percent-decoding.
const MAX_ROOM_NAME: usize = 128;

/// The name of a room: 1 to 128 bytes of UTF-8 without control characters, and neither `.` nor `..`.
/// URLs cannot contain these two: browsers remove such path segments, even encoded ones (WHATWG URL,
/// section 4.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoomName(Arc<str>);

impl RoomName {
    /// The name, not escaped.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a pattern stands for the room: its name, or the beginning of its name and a `*`.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.0.starts_with(prefix),
            None => *self.0 == *pattern,
        }
    }

    /// The room of a client that names none.
    pub(crate) fn default_room() -> RoomName {
        RoomName(DEFAULT_ROOM.into())
    }

    /// Parses a path segment of a URL, which is percent-encoded (RFC 3986, section 2.1).
    ///
    /// # Errors
    ///
    /// A line that says what is wrong with the name.
    pub(crate) fn from_segment(segment: &str) -> Result<RoomName, &'static str> {
        let malformed = segment.split('%').skip(1).any(|after| {
            !matches!(after.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
        });
        if malformed {
            return Err("a % in a room name must be followed by two hexadecimal digits");
        }
        let bytes: Cow<'_, [u8]> = percent_decode(segment.as_bytes()).into();
        RoomName::new(str::from_utf8(&bytes).map_err(|_| "a room name must be UTF-8")?)
    }

    fn new(name: &str) -> Result<RoomName, &'static str> {
        if name.is_empty() || name.len() > MAX_ROOM_NAME {
            return Err("a room name must have 1 to 128 bytes");
        }
        if name.chars().any(char::is_control) {
            return Err("a room name must not contain control characters");
        }
        if [".", ".."].contains(&name) {
            return Err("a room name must not be . or .., which browsers remove: choose another");
        }
        Ok(RoomName(name.into()))
    }
}

/// Displays the name for the log, [`Escaped`]. Use [`as_str`](RoomName::as_str) for everything else.
impl Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.0).fmt(f)
    }
}

impl Serialize for RoomName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RoomName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RoomName, D::Error> {
        let Text(name) = Text::deserialize(deserializer)?;
        RoomName::new(&name).map_err(D::Error::custom)
    }
}
