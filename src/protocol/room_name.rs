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
use crate::config::Dialect;

/// The room of the path `/room`, without a name.
const DEFAULT_ROOM: &str = "lobby";

/// The longest room name, in bytes after percent-decoding.
const MAX_ROOM_NAME: usize = 128;

/// What separates the dialect and the name in the text between nodes. Names have no control characters.
const SEPARATOR: char = '\u{1f}';

/// The name of a room: 1 to 128 bytes of UTF-8 without control characters, and neither `.` nor `..`.
/// URLs cannot contain these two: browsers remove such path segments, even encoded ones (WHATWG URL,
/// section 4.4). Rooms of the same name are different rooms if their clients speak different dialects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RoomName {
    name: Arc<str>,
    /// The dialect of the clients; `None` for the protocol of this server.
    dialect: Option<Dialect>,
}

impl RoomName {
    /// The name without its dialect, not escaped.
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }

    /// The dialect of the clients; `None` for the protocol of this server.
    pub(crate) fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// The room of this name for clients of a dialect.
    pub(crate) fn in_dialect(self, dialect: Dialect) -> RoomName {
        RoomName {
            dialect: Some(dialect),
            ..self
        }
    }

    /// The room whose name has more at its end, which must be text that a name may have.
    pub(crate) fn with_suffix(&self, suffix: &str) -> RoomName {
        RoomName {
            name: format!("{}{suffix}", self.name).into(),
            dialect: self.dialect,
        }
    }

    /// No room: where a connection is that joins its rooms later, or none.
    pub(crate) fn nowhere(dialect: Dialect) -> RoomName {
        RoomName {
            name: "".into(),
            dialect: Some(dialect),
        }
    }

    /// Whether this is [`nowhere`](RoomName::nowhere).
    pub(crate) fn is_nowhere(&self) -> bool {
        self.name.is_empty()
    }

    /// The name with its dialect, which no other room has: the text between nodes.
    pub(crate) fn unique(&self) -> Cow<'_, str> {
        match self.dialect {
            None => (&*self.name).into(),
            Some(dialect) => format!("{}{SEPARATOR}{}", dialect.name(), self.name).into(),
        }
    }

    /// Whether a pattern stands for the room: its name, or the beginning of its name and a `*`.
    pub(crate) fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.name.starts_with(prefix),
            None => *self.name == *pattern,
        }
    }

    /// The room of a client that names none.
    pub(crate) fn default_room() -> RoomName {
        RoomName {
            name: DEFAULT_ROOM.into(),
            dialect: None,
        }
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

    /// A name, not encoded.
    ///
    /// # Errors
    ///
    /// A line that says what is wrong with the name.
    pub(crate) fn new(name: &str) -> Result<RoomName, &'static str> {
        if name.is_empty() || name.len() > MAX_ROOM_NAME {
            return Err("a room name must have 1 to 128 bytes");
        }
        if name.chars().any(char::is_control) {
            return Err("a room name must not contain control characters");
        }
        if [".", ".."].contains(&name) {
            return Err("a room name must not be . or .., which browsers remove: choose another");
        }
        Ok(RoomName {
            name: name.into(),
            dialect: None,
        })
    }
}

/// Displays the name for the log, [`Escaped`]. Use [`as_str`](RoomName::as_str) for everything else.
impl Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dialect) = self.dialect {
            write!(f, "{dialect}:")?;
        }
        Escaped(&self.name).fmt(f)
    }
}

impl Serialize for RoomName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.unique())
    }
}

impl<'de> Deserialize<'de> for RoomName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RoomName, D::Error> {
        let Text(name) = Text::deserialize(deserializer)?;
        let (dialect, name) = match name.split_once(SEPARATOR) {
            Some((dialect, name)) => (Some(dialect), name),
            None => (None, &*name),
        };
        let dialect = dialect.map(str::parse).transpose();
        let dialect = dialect.map_err(D::Error::custom)?;
        let room = RoomName::new(name).map_err(D::Error::custom)?;
        Ok(RoomName { dialect, ..room })
    }
}
