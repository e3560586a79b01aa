//! What a token allows, and why a token is rejected.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::RoomName;

/// What a token allows its bearer.
#[derive(Debug)]
pub(crate) struct Grant {
    /// The user, from the claim `sub`.
    pub(crate) user: Option<String>,
    /// What others see of the session: a JSON object with `user` and `info`.
    pub(crate) public: Option<Box<RawValue>>,
    /// The rooms that it admits to; `None` for all.
    pub(crate) rooms: Option<Names>,
    /// Whether the session may send to others.
    pub(crate) may_send: bool,
    /// When the token expires, in seconds since 1970.
    pub(crate) expires: u64,
}

/// A string or an array of strings: audiences or rooms. A room with a `*` at its end stands for all
/// rooms that begin with what is before the `*`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    /// Whether one of the names stands for this room, in whichever dialect.
    pub(crate) fn admit(&self, room: &RoomName) -> bool {
        let matches = |pattern: &String| room.matches(pattern);
        match self {
            Names::One(pattern) => matches(pattern),
            Names::Several(names) => names.iter().any(matches),
        }
    }
}

/// Why a token is rejected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The token is not valid, or has expired.
    Invalid(&'static str),
    /// The token is valid, but does not allow this.
    Forbidden(&'static str),
}
