//! Options of room tokens.

use std::path::PathBuf;

#[cfg(feature = "cli")]
use clap::Args;

use super::{check::not_empty, token_algorithm::TokenAlgorithm};

/// Which tokens a client must present to open a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "cli",
    derive(Args),
    command(next_help_heading = "Admission")
)]
#[non_exhaustive]
pub struct TokenOptions {
    /// Key that verifies room tokens (JSON Web Tokens): a public key as PEM, a JSON Web Key Set, or
    /// a shared secret, which needs --token-algorithm HS256; read again on SIGHUP [default: no
    /// token is needed]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "token-key-file",
            env = "ANTEROOM_TOKEN_KEY_FILE",
            value_name = "FILE"
        )
    )]
    pub key_file: Option<PathBuf>,

    /// Algorithm of the key in --token-key-file: HS256 (shared secret), RS256, ES256 or EdDSA
    /// (public keys) [default: by the public key]
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "token-algorithm",
            env = "ANTEROOM_TOKEN_ALGORITHM",
            value_name = "ALGORITHM"
        )
    )]
    pub algorithm: Option<TokenAlgorithm>,

    /// Issuer that a token must name (`iss`)
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "token-issuer",
            env = "ANTEROOM_TOKEN_ISSUER",
            value_name = "NAME"
        )
    )]
    pub issuer: Option<String>,

    /// Audience that a token must name (`aud`)
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "token-audience",
            env = "ANTEROOM_TOKEN_AUDIENCE",
            value_name = "NAME"
        )
    )]
    pub audience: Option<String>,
}

impl TokenOptions {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.key_file.is_none() && self.algorithm.is_some() {
            return Err("--token-algorithm needs --token-key-file".into());
        }
        if self.key_file.is_none() && (self.issuer.is_some() || self.audience.is_some()) {
            return Err("--token-issuer and --token-audience need --token-key-file".into());
        }
        not_empty("--token-issuer", self.issuer.as_deref())?;
        not_empty("--token-audience", self.audience.as_deref())
    }
}
