//! Tokens that admit to rooms: JSON Web Tokens (RFC 7519), checked and, for development, made.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use clap::Args;
use jsonwebtoken::{
    Algorithm, Header, Validation, decode, decode_header, encode,
    errors::{Error, ErrorKind},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{keys::Key, keys::read_keys, keys::signing_key};
use crate::{
    config::{invalid, not_empty},
    protocol::RoomName,
};

/// How far the clock of who issues tokens may be ahead of ours, in seconds.
const CLOCK_SKEW: u64 = 30;

/// The longest `sub`, in bytes.
const MAX_USER: usize = 256;

/// The longest `info`, in bytes.
const MAX_INFO: usize = 1024;

/// The shortest and the longest time that the program's own tokens are good, in hours: some seconds
/// and a year.
const MIN_HOURS: f64 = 0.001;
const MAX_HOURS: f64 = 8784.0;

/// The tokens that admit somebody.
pub(crate) struct Tokens {
    key_file: PathBuf,
    keys: ArcSwap<Vec<Key>>,
    issuer: Option<String>,
    audience: Option<String>,
}

/// What a token grants.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Who it was issued to.
    pub(crate) user: Option<String>,
    /// What others are told of that, a JSON object.
    pub(crate) public: Option<Box<RawValue>>,
    /// Whether others may be written to.
    pub(crate) may_send: bool,
    /// When it ends, in seconds since 1970.
    pub(crate) expires: u64,
}

/// Why a token admits nobody.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It is no good, or not any longer.
    Invalid(&'static str),
    /// It is good, but not for this.
    Forbidden(&'static str),
}

/// The claims of a token. Those that are registered have the types of RFC 7519, section 4.1, also where
/// nothing is asked of them; `null` is none of these.
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
    /// Neither this nor `send` may be `null`: that could be meant to allow nothing.
    #[serde(default, deserialize_with = "present")]
    room: Option<Names>,
    info: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    send: Option<bool>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

/// A string or an array of strings: of rooms, each named as a whole or, with a `*` at its end, by its
/// beginning; or of audiences.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Tokens {
    /// Tokens by the keys in this file, of this issuer and for this audience.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or holds no such key; the message names it.
    pub(crate) fn new(
        key_file: PathBuf,
        issuer: Option<String>,
        audience: Option<String>,
    ) -> io::Result<Tokens> {
        Ok(Tokens {
            keys: ArcSwap::from_pointee(read_keys(&key_file)?),
            key_file,
            issuer,
            audience,
        })
    }

    /// What the keys are for.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        self.keys.load().iter().map(|key| key.algorithm).collect()
    }

    /// Reads the keys again.
    ///
    /// # Errors
    ///
    /// As of [`new`](Tokens::new); the old keys stay then.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.keys.store(Arc::new(read_keys(&self.key_file)?));
        Ok(())
    }

    /// Checks a token that shall admit to a room.
    ///
    /// # Errors
    ///
    /// Why it is [`Denied`]. Only who has a token that was issued is told more than that it is no
    /// good.
    pub(crate) fn check(&self, token: &str, room: &RoomName) -> Result<Grant, Denied> {
        let claims = self.verify(token).map_err(|error| {
            Denied::Invalid(match error.into_kind() {
                ErrorKind::ImmatureSignature => "the token is not valid yet",
                ErrorKind::ExpiredSignature => "the token has expired",
                ErrorKind::InvalidAudience => "the token is for another audience",
                ErrorKind::InvalidIssuer => "the token is of another issuer",
                ErrorKind::MissingRequiredClaim(_) => {
                    "the token lacks exp, or the iss or aud that is asked for"
                }
                _ => "the token is not valid here",
            })
        })?;
        // Beyond u64 is never, and what is not above zero has been.
        let expires = claims.exp.unwrap_or_default() as u64;
        if expires <= now() {
            return Err(Denied::Invalid("the token has expired"));
        }
        if !claims.room.is_none_or(|names| names.admit(room)) {
            return Err(Denied::Forbidden("the token does not admit to this room"));
        }
        if claims.sub.as_ref().is_some_and(|sub| sub.len() > MAX_USER) {
            return Err(Denied::Forbidden("the token's sub is over 256 bytes"));
        }
        let info = claims.info.as_deref();
        if info.is_some_and(|info| info.get().len() > MAX_INFO) {
            return Err(Denied::Forbidden("the token's info is over 1024 bytes"));
        }
        Ok(Grant {
            public: public(claims.sub.as_deref(), info),
            user: claims.sub,
            may_send: claims.send.unwrap_or(true),
            expires,
        })
    }

    /// Checks the signature and the claims. A key without a name fits every token of its algorithm, and a
    /// token without one is tried with every key of its algorithm (RFC 7515, section 4.1.4; RFC 7517,
    /// section 4.5).
    fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = decode_header(token)?;
        if header.crit.is_some() {
            // Extensions that must be understood, and are not (RFC 7515, section 4.1.11).
            return Err(ErrorKind::InvalidToken.into());
        }
        let keys = self.keys.load();
        let fits = |key: &&Key| {
            let is_same = |(own, asked)| own == asked;
            let names = key.id.as_ref().zip(header.kid.as_ref());
            key.algorithm == header.alg && names.is_none_or(is_same)
        };
        let validation = self.validation(header.alg);
        // What else is wrong with the token is told by the key that has signed it.
        for key in keys.iter().filter(fits) {
            match decode(token, &key.key, &validation) {
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {}
                result => return Ok(result?.claims),
            }
        }
        Err(ErrorKind::InvalidSignature.into())
    }

    /// What is asked of the claims of a token.
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

impl Names {
    fn admit(&self, room: &RoomName) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => room.as_str().starts_with(prefix),
            None => room.as_str() == pattern,
        };
        match self {
            Names::One(pattern) => matches(pattern),
            Names::Several(names) => names.iter().any(matches),
        }
    }
}

/// What others are told of somebody, if there is something.
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

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_secs())
}

/// What a token shall say, and the key that signs it.
#[derive(Args, Clone, Debug)]
pub struct TokenRequest {
    /// The secret of --token-key-file, or the private key to its public one, as PEM
    #[arg(long, env = "ANTEROOM_TOKEN_KEY_FILE", value_name = "FILE")]
    pub token_key_file: PathBuf,

    /// The issuer
    #[arg(long, env = "ANTEROOM_TOKEN_ISSUER", value_name = "NAME")]
    pub token_issuer: Option<String>,

    /// The audience
    #[arg(long, env = "ANTEROOM_TOKEN_AUDIENCE", value_name = "NAME")]
    pub token_audience: Option<String>,

    /// Who it is for: others are told
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// To which room it admits, or with a `*` at the end to which; may be given several times
    /// [default: all]
    #[arg(long, value_name = "NAME")]
    pub room: Vec<String>,

    /// How long it is valid
    #[arg(long, value_name = "HOURS", default_value_t = 1.0)]
    pub hours: f64,

    /// Anything else that others are told, as JSON
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub info: Option<Box<RawValue>>,

    /// It admits a listener, who may not write to others
    #[arg(long)]
    pub listen_only: bool,
}

/// The claims of a token that is made. `info` stays as it was written, byte for byte.
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

fn json(text: &str) -> Result<Box<RawValue>, String> {
    if text.trim().is_empty() {
        return Err(
            "no JSON: leave the option out, or give a value such as '{\"colour\":\"green\"}'"
                .into(),
        );
    }
    serde_json::from_str(text).map_err(|error| match error.is_syntax() {
        true => "not JSON: a string needs double quotes, such as '\"green\"'".into(),
        false => format!("not JSON: {error}"),
    })
}

impl TokenRequest {
    /// The token.
    ///
    /// # Errors
    ///
    /// A key file that cannot be read, or holds nothing to sign with; the message names it.
    pub fn sign(&self) -> io::Result<String> {
        self.check().map_err(invalid)?;
        let (algorithm, key) = signing_key(&self.token_key_file)?;
        let claims = NewClaims {
            exp: now() + (self.hours * 3600.0) as u64,
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

    /// Checks that a server will take what it asks for.
    ///
    /// # Errors
    ///
    /// A line that names the option, and what it may be.
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
            return Err(format!("--user may have {MAX_USER} bytes"));
        }
        let length = |info: &RawValue| info.get().len() > MAX_INFO;
        if self.info.as_deref().is_some_and(length) {
            return Err(format!("--info may have {MAX_INFO} bytes"));
        }
        if self.room.iter().any(String::is_empty) {
            return Err("--room must name a room; leave it out for all".into());
        }
        if !(MIN_HOURS..=MAX_HOURS).contains(&self.hours) {
            let given = self.hours;
            return Err(format!(
                "--hours must be {MIN_HOURS} to {MAX_HOURS}, not {given}"
            ));
        }
        Ok(())
    }
}
