//! The keys that tokens are signed with, as they stand in files: secrets, PEM, JSON Web Key Sets.

use std::{collections::HashMap, io, path::Path};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use log::warn;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, error::Category};

use crate::config::{
    Secret, check_secret, invalid,
    pem::{self, Block},
    read_file,
};

/// How PEM begins (RFC 7468, section 2).
const PEM: &[u8] = b"-----BEGIN ";

/// The most keys of a set: a token that names none is tried with each.
const MAX_KEYS: usize = 32;

/// How much of the name of a key the log has, in characters.
const LOGGED_ID: usize = 64;

/// The fewest bits of an RSA key (RFC 7518, section 3.3).
const RSA_BITS: usize = 2048;

/// The fewest bytes of such a key in DER (RFC 8017, appendix A.1.1), with 3 as exponent.
const RSA_DER: usize = 268;

/// How many bytes the public key of ES256 has: an uncompressed point of P-256.
const P256_POINT: usize = 65;

/// A key for one algorithm: which one a token is checked with is not for the token to say.
pub(crate) struct Key {
    /// Its name, by which tokens ask for it.
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

/// The keys in a file: a secret, a public key as PEM, or a JSON Web Key Set (RFC 7517, section 5).
pub(crate) fn read_keys(path: &Path) -> io::Result<Vec<Key>> {
    let bytes = read_file(path)?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        return of_set(&bytes, path);
    }
    let (algorithm, key) = if is_pem(&bytes) {
        of_pem(&bytes, path)?
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

/// The public key in a file of PEM, which must be the only thing in it.
fn of_pem(pem: &[u8], path: &Path) -> io::Result<(Algorithm, DecodingKey)> {
    let block = only_block(pem, path, "public key")?;
    let file = path.display();
    let key = match block.label {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => public_key(block.to_pem().expose()),
        "CERTIFICATE" => {
            let error = block.not_read("take its public key with openssl x509 -pubkey -noout");
            return Err(invalid(format!("{file} {error}")));
        }
        _ => None,
    };
    key.ok_or_else(|| {
        invalid(format!(
            "{file} is no public key for RS256, ES256 (P-256) or EdDSA (Ed25519), of at least 2048 \
             bits for RS256; the private key stays with who issues the tokens"
        ))
    })
}

fn public_key(pem: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    None.or_else(|| Some((Algorithm::RS256, DecodingKey::from_rsa_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::ES256, DecodingKey::from_ec_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::EdDSA, DecodingKey::from_ed_pem(pem).ok()?)))
        .filter(|(algorithm, key)| is_usable(key, *algorithm))
}

/// The only block of PEM in a file, but for the parameters that openssl writes before an EC key.
fn only_block<'a>(pem: &'a [u8], path: &Path, what: &str) -> io::Result<Block<'a>> {
    let file = path.display();
    let blocks = pem::parse(pem).map_err(|error| invalid(format!("{file} {error}")))?;
    let is_other = |block: &Block<'_>| block.label != "EC PARAMETERS";
    let mut blocks: Vec<Block<'_>> = blocks.into_iter().filter(is_other).collect();
    match blocks.len() {
        1 => Ok(blocks.remove(0)),
        count => Err(invalid(format!(
            "{file} must have one {what} as PEM and nothing else: it has {count} blocks"
        ))),
    }
}

/// The keys of a JSON Web Key Set. What is no key for us is ignored (RFC 7517, section 5), and named in
/// the log.
fn of_set(json: &[u8], path: &Path) -> io::Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let file = path.display();
    // What serde_json says of wrong types repeats what stands there.
    let set: Set = serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        invalid(match error.classify() {
            Category::Data => {
                format!("{file} is no JSON Web Key Set: it needs an array \"keys\", once")
            }
            _ => format!(
                "{file} is no JSON Web Key Set: it is no JSON at line {line}, column {column}"
            ),
        })
    })?;
    let count = set.keys.len();
    if count > MAX_KEYS {
        return Err(invalid(format!(
            "{file} has {count} keys: {MAX_KEYS} at most"
        )));
    }
    let mut keys = Vec::new();
    for (index, member) in set.keys.into_iter().enumerate() {
        let name = name(&member);
        match of_jwk(member) {
            Ok(key) => keys.push(key),
            Err(reason) => warn!("{file}: keys[{index}] ({name}) is ignored: {reason}"),
        }
    }
    match keys.len() {
        0 => Err(invalid(format!(
            "{file} has no key for RS256, ES256 or EdDSA signatures"
        ))),
        _ => Ok(keys),
    }
}

/// How the log names a key of a set.
fn name(member: &Value) -> String {
    match member.get("kid") {
        Some(Value::String(id)) => {
            let beginning: String = id.chars().take(LOGGED_ID).collect();
            format!("kid {beginning:?}")
        }
        Some(_) => "kid no string".into(),
        None => "no kid".into(),
    }
}

/// A key of a set, or why it is none to check signatures with. Secrets do not belong into a set, which
/// is public.
fn of_jwk(member: Value) -> Result<Key, &'static str> {
    if member.get("kid").is_some_and(|id| !id.is_string()) {
        return Err("its kid must be a string");
    }
    let jwk: Jwk = serde_json::from_value(member)
        .map_err(|_| "it must be an object whose members have the types of RFC 7517, section 4")?;
    let (algorithm, same) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::OctetKey(_) => return Err("it is a secret, and a set is public"),
        _ => return Err("it must be a whole key of RSA, of EC with P-256, or of OKP with Ed25519"),
    };
    let common = &jwk.common;
    if common.key_algorithm.is_some_and(|key| key != same) {
        return Err("its alg is another than RS256 for RSA, ES256 for EC, EdDSA for OKP");
    }
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("its use is not sig");
    }
    let operations = common.key_operations.as_ref();
    if operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Err("its key_ops lack verify");
    }
    let key = DecodingKey::from_jwk(&jwk).ok();
    let key = key.filter(|key| is_usable(key, algorithm));
    Ok(Key {
        id: common.key_id.clone(),
        algorithm,
        key: key.ok_or("its key is malformed, or has fewer than 2048 bits (RSA)")?,
    })
}

/// Whether signatures can be checked with the key at all.
fn is_usable(key: &DecodingKey, algorithm: Algorithm) -> bool {
    let parses = |algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8]| {
        ParsedPublicKey::new(algorithm, bytes).is_ok()
    };
    match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, .. }) => {
            let zeros = n.iter().take_while(|byte| **byte == 0).count();
            let bits = |first: &u8| 8 * (n.len() - zeros) - first.leading_zeros() as usize;
            n.get(zeros).is_some_and(|first| bits(first) >= RSA_BITS)
        }
        (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
            der.len() >= RSA_DER && parses(&RSA_PKCS1_2048_8192_SHA256, der)
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
            point.len() == P256_POINT && parses(&ECDSA_P256_SHA256_FIXED, point)
        }
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => parses(&ED25519, point),
        _ => false,
    }
}

/// The key in a file that signs: a secret, or a private key as PEM.
pub(crate) fn signing_key(path: &Path) -> io::Result<(Algorithm, EncodingKey)> {
    let bytes = read_file(path)?;
    if !is_pem(&bytes) {
        let secret = hs256_secret(bytes, path)?;
        return Ok((Algorithm::HS256, EncodingKey::from_secret(secret.expose())));
    }
    let pem = only_block(&bytes, path, "private key")?.to_pem();
    let pem = pem.expose();
    None.or_else(|| Some((Algorithm::RS256, EncodingKey::from_rsa_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::ES256, EncodingKey::from_ec_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::EdDSA, EncodingKey::from_ed_pem(pem).ok()?)))
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
