//! Names of rooms, as they stand in URLs, in messages and in the log.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    str,
    sync::Arc,
};

use percent_encoding::percent_decode;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{escape::Escaped, text::Text};

/// The name of the room that `/room` without a name leads to.
const DEFAULT_ROOM: &str = "lobby";

/// The longest room name, in bytes after percent-decoding.
const MAX_ROOM_NAME: usize = 128;

/// The name of a room: 1 to 128 bytes of UTF-8 without control characters, and neither `.` nor `..`,
/// which URLs cannot hold: clients remove such path segments, encoded ones too (WHATWG URL, section
/// 4.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoomName(Arc<str>);

impl RoomName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The room of who names none.
    pub(crate) fn default_room() -> RoomName {
        RoomName(DEFAULT_ROOM.into())
    }

    /// The name in a path segment as it stands in the URL, percent-encoded (RFC 3986, section 2.1).
    ///
    /// # Errors
    ///
    /// A line that says what is wrong with it.
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
            return Err("a room name has 1 to 128 bytes");
        }
        if name.chars().any(char::is_control) {
            return Err("a room name has no control characters");
        }
        if [".", ".."].contains(&name) {
            return Err("a room name is neither . nor .., which browsers remove: take another");
        }
        Ok(RoomName(name.into()))
    }
}

/// The name for the log, [`Escaped`]; everything else takes [`as_str`](RoomName::as_str).
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
