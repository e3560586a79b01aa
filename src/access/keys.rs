//! The keys that tokens are signed with, as they stand in files: secrets, PEM, JSON Web Key Sets.

use std::{collections::HashMap, io, path::Path};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use log::warn;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, error::Category};

use crate::config::{
    Secret, TokenAlgorithm, check_secret, invalid,
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

/// Reads the keys in a file: a public key as PEM, a JSON Web Key Set (RFC 7517, section 5), or the shared
/// secret of HS256. Only the option can say that a file holds a secret, since any text may be one: a
/// public key in a format that this server does not know must never become a secret, for everybody could
/// sign with it.
///
/// # Errors
///
/// A file that cannot be read, or does not hold what the option says; the message names it.
pub(crate) fn read_keys(path: &Path, option: Option<TokenAlgorithm>) -> io::Result<Vec<Key>> {
    let bytes = read_file(path)?;
    if option == Some(TokenAlgorithm::Hs256) {
        let key = DecodingKey::from_secret(shared_secret(&bytes, path)?.expose());
        return Ok(vec![Key::nameless(Algorithm::HS256, key)]);
    }
    if is_pem(&bytes) {
        let (algorithm, key) = of_pem(&bytes, path)?;
        check_algorithm(algorithm, option, path)?;
        return Ok(vec![Key::nameless(algorithm, key)]);
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        return of_set(&bytes, option, path);
    }
    let file = path.display();
    Err(invalid(match option {
        None => format!(
            "{file} has neither a public key as PEM nor a JSON Web Key Set: if it holds a shared \
             secret, give --token-algorithm HS256"
        ),
        Some(option) => format!(
            "{file} must be a public key as PEM or a JSON Web Key Set, as --token-algorithm is {option}"
        ),
    }))
}

impl Key {
    fn nameless(algorithm: Algorithm, key: DecodingKey) -> Key {
        let id = None;
        Key { id, algorithm, key }
    }
}

/// Whether a file has PEM in it, anywhere.
fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(PEM.len()).any(|window| window == PEM)
}

/// Whether a file is a JSON object, as a key or a set of keys is.
fn is_json_object(bytes: &[u8]) -> bool {
    serde_json::from_slice::<HashMap<String, IgnoredAny>>(bytes).is_ok()
}

/// The shared secret of HS256: the whole file, without the space around it.
fn shared_secret(bytes: &[u8], path: &Path) -> io::Result<Secret<Vec<u8>>> {
    if is_pem(bytes) || is_json_object(bytes) {
        return Err(invalid(format!(
            "{} has a key as PEM or JSON, which is not a secret for HS256: leave --token-algorithm out",
            path.display()
        )));
    }
    check_secret(bytes.trim_ascii().to_vec(), path)
}

/// Checks that a key is for the algorithm of the option, if there is one.
fn check_algorithm(
    algorithm: Algorithm,
    option: Option<TokenAlgorithm>,
    path: &Path,
) -> io::Result<()> {
    match option {
        Some(option) if to_jwt(option) != algorithm => Err(invalid(format!(
            "{} has a key for {algorithm:?}, but --token-algorithm is {option}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn to_jwt(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::Hs256 => Algorithm::HS256,
        TokenAlgorithm::Rs256 => Algorithm::RS256,
        TokenAlgorithm::Es256 => Algorithm::ES256,
        TokenAlgorithm::EdDsa => Algorithm::EdDSA,
    }
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
            "{file} is not a public key for RS256, ES256 (P-256) or EdDSA (Ed25519), of at least 2048 \
             bits for RS256; keep the private key with the issuer of the tokens"
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

/// The keys of a JSON Web Key Set. A key that cannot verify tokens here is ignored (RFC 7517, section 5),
/// and the log names it.
fn of_set(json: &[u8], option: Option<TokenAlgorithm>, path: &Path) -> io::Result<Vec<Key>> {
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
                format!("{file} is not a JSON Web Key Set: it needs an array \"keys\", once")
            }
            _ => format!(
                "{file} is not a JSON Web Key Set: it is not JSON at line {line}, column {column}"
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
            Ok(key) if option.is_none_or(|option| to_jwt(option) == key.algorithm) => {
                keys.push(key)
            }
            Ok(key) => warn!(
                "{file}: keys[{index}] ({name}) is ignored: it is for {:?}, not for --token-algorithm",
                key.algorithm
            ),
            Err(reason) => warn!("{file}: keys[{index}] ({name}) is ignored: {reason}"),
        }
    }
    match keys.len() {
        0 => {
            let algorithms =
                option.map_or("RS256, ES256 or EdDSA".into(), |option| option.to_string());
            Err(invalid(format!(
                "{file} has no key for {algorithms} signatures"
            )))
        }
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

/// Reads the key that signs tokens: a private key as PEM, or the shared secret of HS256.
///
/// # Errors
///
/// A file that cannot be read, or does not hold what the option says; the message names it.
pub(crate) fn signing_key(
    path: &Path,
    option: Option<TokenAlgorithm>,
) -> io::Result<(Algorithm, EncodingKey)> {
    let bytes = read_file(path)?;
    if option == Some(TokenAlgorithm::Hs256) {
        let key = EncodingKey::from_secret(shared_secret(&bytes, path)?.expose());
        return Ok((Algorithm::HS256, key));
    }
    let file = path.display();
    if !is_pem(&bytes) {
        return Err(invalid(format!(
            "{file} has no private key as PEM: if it holds a shared secret, give --token-algorithm HS256"
        )));
    }
    let pem = only_block(&bytes, path, "private key")?.to_pem();
    let pem = pem.expose();
    let (algorithm, key) = None
        .or_else(|| Some((Algorithm::RS256, EncodingKey::from_rsa_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::ES256, EncodingKey::from_ec_pem(pem).ok()?)))
        .or_else(|| Some((Algorithm::EdDSA, EncodingKey::from_ed_pem(pem).ok()?)))
        .ok_or_else(|| {
            invalid(format!(
                "{file} is not a private key for RS256, ES256 or EdDSA in PKCS #8 (openssl pkcs8 -topk8 \
                 -nodes makes one of others)"
            ))
        })?;
    check_algorithm(algorithm, option, path)?;
    Ok((algorithm, key))
}
