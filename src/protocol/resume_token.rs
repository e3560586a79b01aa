//! The secrets that resume sessions.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use sha2::{Digest, Sha256};

use super::text::Text;
use crate::random;

/// The random bytes of a token.
const TOKEN_BYTES: usize = 16;

/// The bytes of a tag, which tells a token of the cluster from an invented one.
const TAG_BYTES: usize = 8;

/// The secret that resumes a session: 128 random bits, on the wire in base64url (RFC 4648, section 5). In
/// a cluster a tag follows, which is a truncated HMAC (RFC 2104). The type implements neither `Debug`
/// nor `Display`, so that no log can contain a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResumeToken {
    bits: [u8; TOKEN_BYTES],
    tag: Option<[u8; TAG_BYTES]>,
}

/// The key for the tags of a node's tokens. All nodes of a cluster know it, so that they look up a
/// session on other nodes only if its token was really issued.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenKey([u8; 16]);

impl TokenKey {
    /// A new key.
    pub(crate) fn random() -> TokenKey {
        TokenKey(random::bits())
    }

    /// The tag for the bits of a token.
    fn tag(&self, bits: &[u8]) -> [u8; TAG_BYTES] {
        let tag = self.hmac(bits).finalize().into_bytes();
        *tag.first_chunk()
            .expect("an HMAC with SHA-256 has 32 bytes")
    }

    /// Whether these are the tag of the bits, in a time that does not depend on where they differ.
    fn verifies(&self, tag: &[u8; TAG_BYTES], bits: &[u8]) -> bool {
        self.hmac(bits).verify_truncated_left(tag).is_ok()
    }

    fn hmac(&self, bits: &[u8]) -> Hmac<Sha256> {
        let hmac = Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        hmac.chain_update(bits)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey")
    }
}

impl Serialize for TokenKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for TokenKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenKey, D::Error> {
        bits(deserializer).map(TokenKey)
    }
}

impl ResumeToken {
    /// A new token, with a tag if a key is given.
    pub(crate) fn random(key: Option<&TokenKey>) -> ResumeToken {
        let bits = random::bits();
        let tag = key.map(|key| key.tag(&bits));
        ResumeToken { bits, tag }
    }

    /// Parses a token.
    pub(crate) fn parse(text: &str) -> Option<ResumeToken> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bits, tag) = bytes.split_first_chunk()?;
        let tag = match tag {
            [] => None,
            tag => Some(tag.try_into().ok()?),
        };
        Some(ResumeToken { bits: *bits, tag })
    }

    /// Whether the token has the tag of this key.
    pub(crate) fn is_of(&self, key: &TokenKey) -> bool {
        self.tag.is_some_and(|tag| key.verifies(&tag, &self.bits))
    }

    /// The hash that nodes send to each other instead of the token.
    pub(crate) fn hash(&self) -> TokenHash {
        let hash = Sha256::digest(self.bits);
        let bits = hash.first_chunk().expect("SHA-256 has 32 bytes");
        TokenHash(*bits)
    }
}

/// Deserializes bytes from base64url.
fn bits<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
    let Text(text) = Text::deserialize(deserializer)?;
    let bits = URL_SAFE_NO_PAD.decode(&*text).ok();
    bits.and_then(|bits| bits.try_into().ok())
        .ok_or_else(|| D::Error::custom(format_args!("not {N} bytes in base64url")))
}

/// The first half of the SHA-256 of a token (FIPS 180-4), or of another secret, on the wire in base64url. A random
/// secret cannot be computed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TokenHash([u8; 16]);

impl TokenHash {
    /// The hash of a secret that nobody knows.
    pub(crate) fn random() -> TokenHash {
        TokenHash(random::bits())
    }

    /// No hash, but other bits in the place of one.
    pub(crate) fn of_bits(bits: u128) -> TokenHash {
        TokenHash(bits.to_be_bytes())
    }

    /// The bits.
    pub(crate) fn bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// The hash of a secret that a client has chosen, for one purpose: equal secrets for two purposes have different
    /// hashes.
    pub(crate) fn of_secret(purpose: &[&str], secret: &str) -> TokenHash {
        let mut hash = Sha256::new();
        for text in purpose {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.update(secret);
        let hash = hash.finalize();
        TokenHash(*hash.first_chunk().expect("SHA-256 has 32 bytes"))
    }
}

/// Displays the hash as on the wire.
impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TokenHash, D::Error> {
        bits(deserializer).map(TokenHash)
    }
}

impl Serialize for ResumeToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = [&self.bits[..], self.tag.as_ref().map_or(&[], |tag| tag)].concat();
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}
