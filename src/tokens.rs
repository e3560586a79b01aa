//! Tokens that admit to rooms: JSON Web Tokens (RFC 7519), checked and, for development, made.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    str,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use clap::Args;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
    errors::{Error, ErrorKind},
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use serde::{Deserialize, Deserializer, Serialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};

use crate::{
    protocol::RoomName,
    reload::{Reloadable, check_secret, invalid, read_file},
    secret::Secret,
};

/// How PEM begins (RFC 7468, section 2).
const PEM: &[u8] = b"-----BEGIN ";

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

/// How many bytes the public key of ES256 has: an uncompressed point of P-256.
const P256_POINT: usize = 65;

/// The tokens that admit somebody.
pub(crate) struct Tokens {
    keys: Reloadable<Vec<Key>>,
    issuer: Option<String>,
    audience: Option<String>,
}

/// A key for one algorithm: which one a token is checked with is not for the token to say.
struct Key {
    /// Its name, by which tokens ask for it.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
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

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    sub: Option<String>,
    /// Neither this nor the next may be `null`: that could be meant to allow nothing.
    #[serde(default, deserialize_with = "present")]
    room: Option<Patterns>,
    info: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    send: Option<bool>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

/// The names of rooms, each as a whole or, with a `*` at its end, its beginning.
#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
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
        path: PathBuf,
        issuer: Option<String>,
        audience: Option<String>,
    ) -> io::Result<Tokens> {
        Ok(Tokens {
            keys: Reloadable::new(move || read_keys(&path))?,
            issuer,
            audience,
        })
    }

    /// What the keys are for.
    pub(crate) fn algorithms(&self) -> Vec<Algorithm> {
        self.keys.get().iter().map(|key| key.algorithm).collect()
    }

    /// Reads the keys again.
    ///
    /// # Errors
    ///
    /// As of [`new`](Tokens::new); the old keys stay then.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.keys.reload()
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
        if !claims.room.is_none_or(|patterns| patterns.admit(room)) {
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

    fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = decode_header(token)?;
        if header.crit.is_some() {
            // Extensions that must be understood, and are not (RFC 7515, section 4.1.11).
            return Err(ErrorKind::InvalidToken.into());
        }
        let keys = self.keys.get();
        let key = match (header.kid, &keys[..]) {
            // A key without a name is for all tokens.
            (_, [key]) if key.id.is_none() => key,
            (None, [key]) => key,
            (Some(id), keys) => keys
                .iter()
                .find(|key| key.id.as_ref() == Some(&id) && key.algorithm == header.alg)
                .ok_or(ErrorKind::InvalidToken)?,
            (None, _) => return Err(ErrorKind::InvalidToken.into()),
        };
        let mut validation = Validation::new(key.algorithm);
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
        Ok(decode(token, &key.key, &validation)?.claims)
    }
}

impl Patterns {
    fn admit(&self, room: &RoomName) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => room.as_str().starts_with(prefix),
            None => room.as_str() == pattern,
        };
        match self {
            Patterns::One(pattern) => matches(pattern),
            Patterns::Several(patterns) => patterns.iter().any(matches),
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

/// The keys in a file: a secret, a public key as PEM, or a JSON Web Key Set (RFC 7517, section 5).
fn read_keys(path: &Path) -> io::Result<Vec<Key>> {
    let bytes = read_file(path)?;
    let file = path.display();
    if bytes.trim_ascii_start().starts_with(b"{") {
        let set: JwkSet = serde_json::from_slice(&bytes)
            .map_err(|error| invalid(format!("{file} is no JSON Web Key Set: {error}")))?;
        let keys: Vec<Key> = set.keys.iter().filter_map(of_jwk).collect();
        return match keys.len() {
            0 => Err(invalid(format!(
                "{file} has no key for RS256, ES256 or EdDSA signatures"
            ))),
            _ => Ok(keys),
        };
    }
    let (algorithm, key) = if is_pem(&bytes) {
        of_pem(&bytes).ok_or_else(|| {
            invalid(format!(
                "{file} is no public key for RS256, ES256 (P-256) or EdDSA (Ed25519); \
                 the private key stays with who issues the tokens"
            ))
        })?
    } else {
        let secret = hs256_secret(bytes, path)?;
        (Algorithm::HS256, DecodingKey::from_secret(secret.expose()))
    };
    let id = None;
    Ok(vec![Key { id, algorithm, key }])
}

/// Whether PEM stands in it, be there something else, too: that is no secret, whatever it is.
fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(PEM.len()).any(|window| window == PEM)
}

/// The secret of HS256 in a file. A public key must never be taken for one, however it is written:
/// everybody could sign with it.
fn hs256_secret(bytes: Vec<u8>, path: &Path) -> io::Result<Secret<Vec<u8>>> {
    let secret = check_secret(bytes.trim_ascii_start().to_vec(), path)?;
    // Keys have spaces, lines, quotes or escapes, wherever they have been copied from; otherwise they
    // are in base64 or in hexadecimal.
    let word = secret.expose();
    let is_word = word
        .iter()
        .all(|byte| byte.is_ascii_graphic() && !br#""'\%[]{}"#.contains(byte));
    if is_word && !is_key(word) && !decodings(word).iter().any(|bytes| is_key(bytes)) {
        return Ok(secret);
    }
    Err(invalid(format!(
        "{} is neither a secret, which is one word such as that of `openssl rand -hex 32`, nor a \
         public key as PEM, nor a JSON Web Key Set",
        path.display()
    )))
}

/// Whether it may be a key: PEM, JSON, DER, what openssl prints, or the format of OpenSSH (RFC 4253,
/// section 6.6), which begins with the length of a name.
fn is_key(bytes: &[u8]) -> bool {
    let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
    let is_json = serde_json::from_slice::<Structure>(bytes).is_ok();
    is_der(bytes) || is_json || bytes.starts_with(&[0; 3]) || has(b"BEGIN") || has(b"Modulus=")
}

/// JSON that has parts: a number may well be random.
#[derive(Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its form counts")]
enum Structure {
    Object(HashMap<String, IgnoredAny>),
    Array(Vec<IgnoredAny>),
}

/// What a word may stand for in base64, of either alphabet, padded or not, and in hexadecimal
/// (RFC 4648).
fn decodings(word: &[u8]) -> Vec<Vec<u8>> {
    let bare = word.iter().rposition(|byte| *byte != b'=');
    let bare = &word[..bare.map_or(0, |last| last + 1)];
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let byte = |pair: &[u8; 2]| Some(digit(&pair[0])? << 4 | digit(&pair[1])?);
    let hexadecimal: Option<Vec<u8>> = word.as_chunks().0.iter().map(byte).collect();
    let base64 = [STANDARD_NO_PAD, URL_SAFE_NO_PAD].map(|base64| base64.decode(bare).ok());
    base64.into_iter().chain([hexadecimal]).flatten().collect()
}

/// Whether it is one SEQUENCE of DER (X.690, section 8.1) that begins with another, or with a number,
/// as keys are.
fn is_der(bytes: &[u8]) -> bool {
    let (length, start) = match *bytes {
        [0x30, length @ 0..=0x7F, ..] => (length.into(), 2),
        [0x30, 0x81, length, ..] => (length.into(), 3),
        [0x30, 0x82, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 4),
        _ => return false,
    };
    bytes.len() == start + length && matches!(bytes.get(start), Some(0x30 | 0x02))
}

fn of_pem(pem: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    let text = str::from_utf8(pem).ok()?;
    if text.contains("PRIVATE KEY") {
        return None;
    }
    let ec = || DecodingKey::from_ec_pem(pem).ok().filter(is_p256);
    None.or_else(|| Some((Algorithm::RS256, DecodingKey::from_rsa_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::ES256, ec()?)))
        .or_else(|| Some((Algorithm::EdDSA, DecodingKey::from_ed_pem(pem).ok()?)))
}

fn is_p256(key: &DecodingKey) -> bool {
    key.try_get_as_bytes()
        .is_ok_and(|point| point.len() == P256_POINT)
}

/// A key of a set, if it is one to check signatures with that we know. Secrets do not belong into a
/// set, which is public.
fn of_jwk(jwk: &Jwk) -> Option<Key> {
    let (algorithm, same) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    let common = &jwk.common;
    let is_for_another = common.key_algorithm.is_some_and(|key| key != same);
    let is_to_encrypt = matches!(common.public_key_use, Some(PublicKeyUse::Encryption));
    if is_for_another || is_to_encrypt {
        return None;
    }
    Some(Key {
        id: common.key_id.clone(),
        algorithm,
        key: DecodingKey::from_jwk(jwk).ok()?,
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
    #[arg(long, value_name = "JSON", value_parser = |json: &str| json.parse::<Value>())]
    pub info: Option<Value>,

    /// It admits a listener, who may not write to others
    #[arg(long)]
    pub listen_only: bool,
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
        let mut claims = json!({ "exp": now() + (self.hours * 3600.0) as u64 });
        let optional = [
            ("sub", self.user.clone().map(Value::from)),
            ("iss", self.token_issuer.clone().map(Value::from)),
            ("aud", self.token_audience.clone().map(Value::from)),
            ("info", self.info.clone()),
            (
                "room",
                (!self.room.is_empty()).then(|| self.room.clone().into()),
            ),
            ("send", self.listen_only.then_some(Value::Bool(false))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                claims[name] = value;
            }
        }
        encode(&Header::new(algorithm), &claims, &key).map_err(|_| {
            let file = self.token_key_file.display();
            invalid(format!("the key in {file} cannot sign"))
        })
    }

    /// Checks that a server will take what it asks for.
    fn check(&self) -> Result<(), String> {
        let length = |user: &String| user.len() > MAX_USER;
        if self.user.as_ref().is_some_and(length) {
            return Err(format!("--user may have {MAX_USER} bytes"));
        }
        let length = |info: &Value| info.to_string().len() > MAX_INFO;
        if self.info.as_ref().is_some_and(length) {
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

/// The key in a file that signs: a secret, or a private key as PEM.
fn signing_key(path: &Path) -> io::Result<(Algorithm, EncodingKey)> {
    let bytes = read_file(path)?;
    if !is_pem(&bytes) {
        let secret = hs256_secret(bytes, path)?;
        return Ok((Algorithm::HS256, EncodingKey::from_secret(secret.expose())));
    }
    None.or_else(|| Some((Algorithm::RS256, EncodingKey::from_rsa_pem(&bytes).ok()?)))
        .or_else(|| Some((Algorithm::ES256, EncodingKey::from_ec_pem(&bytes).ok()?)))
        .or_else(|| Some((Algorithm::EdDSA, EncodingKey::from_ed_pem(&bytes).ok()?)))
        .ok_or_else(|| {
            invalid(format!(
                "{} is no private key for RS256, ES256 or EdDSA in PKCS #8 (openssl pkcs8 -topk8 \
                 -nodes makes one of others)",
                path.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_random_is_a_secret() {
        for first in 0..=255 {
            for second in [0, 7, 30, b'{', b'"', 255] {
                let mut bytes = [7; 32];
                bytes[..2].copy_from_slice(&[first, second]);
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                for word in [
                    hex,
                    STANDARD_NO_PAD.encode(bytes),
                    URL_SAFE_NO_PAD.encode(bytes),
                ] {
                    let secret = hs256_secret(word.clone().into(), Path::new("file"));
                    assert_eq!(secret.unwrap().expose(), word.as_bytes());
                }
            }
        }
    }
}
