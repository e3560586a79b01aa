//! The signature algorithms of room tokens.

use std::{
    fmt::{self, Display},
    str::FromStr,
};

/// A signature algorithm of JSON Web Tokens, as `--token-algorithm` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenAlgorithm {
    /// `HS256`: HMAC with SHA-256, with a shared secret (RFC 7518, section 3.2).
    Hs256,
    /// `RS256`: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518, section 3.3).
    Rs256,
    /// `ES256`: ECDSA with P-256 and SHA-256 (RFC 7518, section 3.4).
    Es256,
    /// `EdDSA`: Ed25519 (RFC 8037, section 3.1).
    EdDsa,
}

impl TokenAlgorithm {
    const ALL: [TokenAlgorithm; 4] = [
        TokenAlgorithm::Hs256,
        TokenAlgorithm::Rs256,
        TokenAlgorithm::Es256,
        TokenAlgorithm::EdDsa,
    ];

    fn name(self) -> &'static str {
        match self {
            TokenAlgorithm::Hs256 => "HS256",
            TokenAlgorithm::Rs256 => "RS256",
            TokenAlgorithm::Es256 => "ES256",
            TokenAlgorithm::EdDsa => "EdDSA",
        }
    }
}

impl FromStr for TokenAlgorithm {
    type Err = &'static str;

    /// Parses a name in any case.
    fn from_str(text: &str) -> Result<TokenAlgorithm, &'static str> {
        let is_named = |algorithm: &TokenAlgorithm| algorithm.name().eq_ignore_ascii_case(text);
        let algorithm = TokenAlgorithm::ALL.into_iter().find(is_named);
        algorithm.ok_or("not HS256, RS256, ES256 or EdDSA")
    }
}

impl Display for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
