//! Room tokens, which are JSON Web Tokens (RFC 7519): their verification and, for development, their
//! creation.

use std::{io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
#[cfg(feature = "cli")]
use clap::Args;
use jsonwebtoken::{
    Algorithm, Header, Validation, decode, decode_header, encode,
    errors::{Error, ErrorKind},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{
    grant::{Denied, Grant, Names},
    keys::{Key, read_keys, signing_key},
};
use crate::{
    config::{Config, TokenAlgorithm, invalid, not_empty},
    protocol::RoomName,
    unix_time,
};

/// How far the clock of the issuer may be ahead of this machine's, in seconds.
const CLOCK_SKEW: u64 = 30;

/// The longest `sub`, in bytes.
const MAX_USER: usize = 256;

/// The longest `info`, in bytes.
const MAX_INFO: usize = 1024;

/// The shortest and the longest validity of a token that the program creates, in hours: a few seconds
/// and a leap year.
const MIN_HOURS: f64 = 0.001;
const MAX_HOURS: f64 = 8784.0;

/// The validity of a token for which none is given, in hours.
const DEFAULT_HOURS: f64 = 1.0;

/// The verifier of tokens.
pub(crate) struct Tokens {
    key_file: PathBuf,
    algorithm: Option<TokenAlgorithm>,
    keys: ArcSwap<Vec<Key>>,
    issuer: Option<String>,
    audience: Option<String>,
}

/// The claims of a token. The registered claims must have the types of RFC 7519, section 4.1, even those
/// that the server does not use; `null` is none of these types.
#[derive(Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "present", rename = "iss")]
    _issuer: Option<String>,
    #[serde(default, deserialize_with = "present")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "present", rename = "aud")]
    _audience: Option<Names>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present", rename = "nbf")]
    _not_before: Option<f64>,
    #[serde(default, deserialize_with = "present", rename = "iat")]
    _issued_at: Option<f64>,
    #[serde(default, deserialize_with = "present", rename = "jti")]
    _id: Option<String>,
    /// Like `send`, this must not be `null`: the issuer could mean that nothing is allowed.
    #[serde(default, deserialize_with = "present")]
    room: Option<Names>,
    info: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    send: Option<bool>,
}

/// Deserializes a value that may be absent but not `null`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

impl Tokens {
    /// The verifier that the options ask for. `None` if sessions need no token.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or holds no key that can verify; the message names it.
    pub(crate) fn new(config: &Config) -> io::Result<Option<Tokens>> {
        let options = &config.tokens;
        let Some(key_file) = options.key_file.clone() else {
            return Ok(None);
        };
        Ok(Some(Tokens {
            keys: ArcSwap::from_pointee(read_keys(&key_file, options.algorithm)?),
            key_file,
            algorithm: options.algorithm,
            issuer: options.issuer.clone(),
            audience: options.audience.clone(),
        }))
    }

    /// The algorithms of the keys.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        self.keys.load().iter().map(|key| key.algorithm).collect()
    }

    /// Reads the keys again.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Tokens::new); the old keys stay in use.
    pub(crate) fn reload(&self) -> io::Result<()> {
        let keys = read_keys(&self.key_file, self.algorithm)?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    /// Verifies a token, and that it admits to `room`, if that is one.
    ///
    /// # Errors
    ///
    /// Why the token is [`Denied`]. Details are given only for tokens with a valid signature, so that
    /// a forger learns nothing.
    pub(crate) fn check(&self, token: &str, room: &RoomName) -> Result<Grant, Denied> {
        let claims = self.verify(token).map_err(|error| {
            Denied::Invalid(match error.into_kind() {
                ErrorKind::ImmatureSignature => "the token is not valid yet",
                ErrorKind::ExpiredSignature => "the token has expired",
                ErrorKind::InvalidAudience => {
                    "the token has another audience: its aud must match --token-audience"
                }
                ErrorKind::InvalidIssuer => {
                    "the token has another issuer: its iss must match --token-issuer"
                }
                ErrorKind::MissingRequiredClaim(_) => {
                    "the token lacks a required claim: exp, or the configured iss or aud"
                }
                _ => "the token is not valid here",
            })
        })?;
        // The conversion saturates: a time beyond u64 never comes, a negative one is over.
        let expires = claims.exp.unwrap_or_default() as u64;
        if expires <= unix_time::unix_seconds() {
            return Err(Denied::Invalid("the token has expired"));
        }
        let rooms = claims.room;
        let admits = || rooms.as_ref().is_none_or(|names| names.admit(room));
        if !room.is_nowhere() && !admits() {
            return Err(Denied::Forbidden("the token does not admit to this room"));
        }
        if claims.sub.as_ref().is_some_and(|sub| sub.len() > MAX_USER) {
            return Err(Denied::Forbidden("the token's sub exceeds 256 bytes"));
        }
        let info = claims.info.as_deref();
        if info.is_some_and(|info| info.get().len() > MAX_INFO) {
            return Err(Denied::Forbidden("the token's info exceeds 1024 bytes"));
        }
        Ok(Grant {
            public: public(claims.sub.as_deref(), info),
            user: claims.sub,
            rooms,
            may_send: claims.send.unwrap_or(true),
            expires,
        })
    }

    /// Verifies the signature and the claims. A key without an id is tried with every token of its
    /// algorithm, and a token without a key id with every key of its algorithm (RFC 7515, section 4.1.4;
    /// RFC 7517, section 4.5).
    fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = decode_header(token)?;
        if header.crit.is_some() {
            // The token requires extensions, and none is supported (RFC 7515, section 4.1.11).
            return Err(ErrorKind::InvalidToken.into());
        }
        let keys = self.keys.load();
        let fits = |key: &&Key| {
            let is_same = |(own, asked)| own == asked;
            let names = key.id.as_ref().zip(header.kid.as_ref());
            key.algorithm == header.alg && names.is_none_or(is_same)
        };
        let validation = self.validation(header.alg);
        // Only the key that signed the token decides what else is wrong with it.
        for key in keys.iter().filter(fits) {
            match decode(token, &key.key, &validation) {
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                result => return Ok(result?.claims),
            }
        }
        Err(ErrorKind::InvalidSignature.into())
    }

    /// The requirements for the claims of a token.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = CLOCK_SKEW;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }
}

/// What others see of a session: the user and the claim `info`. `None` if the token has neither.
fn public(user: Option<&str>, info: Option<&RawValue>) -> Option<Box<RawValue>> {
    #[derive(Serialize)]
    struct Public<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    }
    (user.is_some() || info.is_some()).then(|| {
        serde_json::value::to_raw_value(&Public { user, info }).expect("strings become JSON")
    })
}

/// A request for a token: its claims, and the key that signs it.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "cli", derive(Args))]
#[non_exhaustive]
pub struct TokenRequest {
    /// Key that signs the token: a private key as PEM, or a shared secret, which needs
    /// --token-algorithm HS256
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TOKEN_KEY_FILE", value_name = "FILE")
    )]
    pub token_key_file: PathBuf,

    /// Algorithm of the key: HS256 (shared secret), RS256, ES256 or EdDSA [default: by the private key]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TOKEN_ALGORITHM", value_name = "ALGORITHM")
    )]
    pub token_algorithm: Option<TokenAlgorithm>,

    /// Issuer of the token (`iss`)
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TOKEN_ISSUER", value_name = "NAME")
    )]
    pub token_issuer: Option<String>,

    /// Audience of the token (`aud`)
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TOKEN_AUDIENCE", value_name = "NAME")
    )]
    pub token_audience: Option<String>,

    /// User of the token (`sub`); the other sessions of a room see the name
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME"))]
    pub user: Option<String>,

    /// Room that the token admits to; a `*` at the end stands for any text; may be given several times
    /// [default: all rooms]
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME"))]
    pub room: Vec<String>,

    /// Lifetime of the token, in hours
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "HOURS", default_value_t = DEFAULT_HOURS)
    )]
    pub hours: f64,

    /// Anything else that the other sessions of a room see, as JSON
    #[cfg_attr(feature = "cli", arg(long, value_name = "JSON", value_parser = json))]
    pub info: Option<Box<RawValue>>,

    /// The session may not send to others
    #[cfg_attr(feature = "cli", arg(long))]
    pub listen_only: bool,
}

/// The claims of a token to create. `info` is copied byte for byte.
#[derive(Serialize)]
struct NewClaims<'a> {
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    room: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    send: Option<bool>,
}

/// Parses the value of `--info`.
fn json(text: &str) -> Result<Box<RawValue>, String> {
    if text.trim().is_empty() {
        return Err(
            "not JSON: omit the option, or give a value such as '{\"colour\":\"green\"}'".into(),
        );
    }
    serde_json::from_str(text).map_err(|error| match error.is_syntax() {
        true => "not JSON: a string needs double quotes, such as '\"green\"'".into(),
        false => format!("not JSON: {error}"),
    })
}

impl TokenRequest {
    /// A token for all rooms that is signed with the key in this file, lasts an hour, and names no user.
    pub fn new(token_key_file: impl Into<PathBuf>) -> TokenRequest {
        TokenRequest {
            token_key_file: token_key_file.into(),
            token_algorithm: None,
            token_issuer: None,
            token_audience: None,
            user: None,
            room: Vec::new(),
            hours: DEFAULT_HOURS,
            info: None,
            listen_only: false,
        }
    }

    /// Creates and signs the token.
    ///
    /// # Errors
    ///
    /// An invalid value ([`check`](TokenRequest::check)), or a key file that cannot be read or holds no
    /// key that can sign; the message names it.
    pub fn sign(&self) -> io::Result<String> {
        self.check().map_err(invalid)?;
        let (algorithm, key) = signing_key(&self.token_key_file, self.token_algorithm)?;
        let claims = NewClaims {
            exp: unix_time::unix_seconds() + (self.hours * 3600.0) as u64,
            sub: self.user.as_deref(),
            iss: self.token_issuer.as_deref(),
            aud: self.token_audience.as_deref(),
            info: self.info.as_deref(),
            room: &self.room,
            send: self.listen_only.then_some(false),
        };
        encode(&Header::new(algorithm), &claims, &key).map_err(|_| {
            let file = self.token_key_file.display();
            invalid(format!("the key in {file} cannot sign"))
        })
    }

    /// Checks that a server accepts a token with these claims.
    ///
    /// # Errors
    ///
    /// A line that names the option and its allowed values.
    pub fn check(&self) -> Result<(), String> {
        for (option, value) in [
            ("--user", &self.user),
            ("--token-issuer", &self.token_issuer),
            ("--token-audience", &self.token_audience),
        ] {
            not_empty(option, value.as_deref())?;
        }
        let length = |user: &String| user.len() > MAX_USER;
        if self.user.as_ref().is_some_and(length) {
            return Err(format!("--user may have at most {MAX_USER} bytes"));
        }
        let length = |info: &RawValue| info.get().len() > MAX_INFO;
        if self.info.as_deref().is_some_and(length) {
            return Err(format!("--info may have at most {MAX_INFO} bytes"));
        }
        if self.room.iter().any(String::is_empty) {
            return Err("--room must not be empty: omit it for all rooms".into());
        }
        if !(MIN_HOURS..=MAX_HOURS).contains(&self.hours) {
            let given = self.hours;
            return Err(format!(
                "--hours must be between {MIN_HOURS} and {MAX_HOURS}, not {given}"
            ));
        }
        Ok(())
    }
}
