//! Session ids.

use std::{
    fmt::{self, Display},
    hash::{Hash, Hasher},
};

use nohash_hasher::IsEnabled;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use uuid::{Builder, Uuid};

use super::text::Text;
use crate::random;

/// The id of a session: a version 4 UUID, which has 122 random bits (RFC 9562), written in lower case
/// with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(Uuid);

impl SessionId {
    /// A new id.
    pub(crate) fn random() -> SessionId {
        SessionId(Builder::from_random_bytes(random::bits()).into_uuid())
    }

    /// Parses an id in the one accepted notation: 36 characters, lower case.
    pub(crate) fn parse(text: &str) -> Option<SessionId> {
        let canonical = text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase());
        Uuid::try_parse(text)
            .ok()
            .filter(|_| canonical)
            .map(SessionId)
    }

    /// The id with these bytes, in the order of RFC 9562.
    pub(super) fn from_bytes(bytes: [u8; 16]) -> SessionId {
        SessionId(Uuid::from_bytes(bytes))
    }

    /// Writes the id into `buffer`, which must have 36 bytes or more.
    pub(super) fn encode(self, buffer: &mut [u8]) -> &str {
        self.0.as_hyphenated().encode_lower(buffer)
    }

    /// The bits of the id, which are evenly distributed.
    pub(crate) fn bits(self) -> u128 {
        self.0.as_u128()
    }
}

/// The bits of the id are its hash. That is safe because ids are random and only servers create them, so
/// nobody can choose colliding ones.
impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = self.0.as_u64_pair();
        state.write_u64(high ^ low);
    }
}

impl IsEnabled for SessionId {}

impl Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self.0.as_hyphenated(), f)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.encode(&mut Uuid::encode_buffer()))
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        SessionId::parse(&text).ok_or_else(|| D::Error::custom("not a session id"))
    }
}
