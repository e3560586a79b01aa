//! Authentication by token: keys, claims, permissions, expiry, and `anteroom token`.

use anteroom::{Config, TokenAlgorithm, TokenRequest};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64_STANDARD, URL_SAFE_NO_PAD as BASE64},
};
use clap::Parser;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    PublicKeyData,
};
use serde_json::{Value, json};

use crate::refusals::expect_refusal;
use crate::support::{
    Answer, Client, File, Program, Raw, TestServer, handshake, in_seconds, within_deadline,
};

/// The key of the tokens: a shared secret, for HS256.
pub const SECRET: &str = "a-secret-of-this-test-that-has-more-than-32-bytes";

/// Makes a server verify tokens with the shared secret in a file.
pub fn with_secret(config: &mut Config, file: &File) {
    config.tokens.key_file = Some(file.path());
    config.tokens.algorithm = Some(TokenAlgorithm::Hs256);
}

/// Claims that are valid for ten minutes, with `others` added; a `null` removes a claim.
fn claims(others: Value) -> Value {
    let mut claims = json!({"exp": in_seconds(600)});
    for (name, value) in others.as_object().unwrap() {
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// A token that is valid for ten minutes and whose claims end with exactly this text.
fn sign_with_end(end: &str) -> String {
    sign_text(&format!(r#"{{"exp":{}{end}}}"#, in_seconds(600)))
}

/// A token whose claims are exactly this text.
fn sign_text(claims: &str) -> String {
    let claims: Box<serde_json::value::RawValue> = serde_json::from_str(claims).unwrap();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

/// A token that is valid for ten minutes, with other claims added as in [`claims`].
pub fn sign(others: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims(others), &key).unwrap()
}

/// A server that accepts tokens signed with [`SECRET`], and the file with the key.
async fn server(name: &str) -> (TestServer, File) {
    let file = File::new(name, format!("{SECRET}\n"));
    let server = TestServer::with(|config| {
        with_secret(config, &file);
        // A long time limit: a client that waits for the expiry of another's token answers no ping
        // meanwhile.
        config.liveness.pong_seconds = 60;
    })
    .await;
    (server, file)
}

/// The answer to an upgrade request that the server must reject.
async fn rejection(server: &TestServer, path: &str, headers: &str) -> Answer {
    match Raw::upgrade(server, path, headers).await {
        Err(rejected) => rejected,
        Ok(_) => panic!("{path} was accepted"),
    }
}

/// Joins a room with a token.
async fn join(server: &TestServer, room: &str, token: &str) -> Client {
    let mut client = Client::connect(server.address, &format!("/room/{room}?token={token}")).await;
    let hello = client.hello().await;
    client.id = hello["receiver"].as_str().unwrap().into();
    client
}

#[tokio::test]
async fn an_upgrade_without_a_token_is_rejected() {
    let (server, _file) = server("missing").await;
    let rejected = rejection(&server, "/room/tea", "").await;
    assert_eq!(rejected.status, 401);
    assert!(
        rejected.body.starts_with("a token is required: "),
        "{}",
        rejected.body
    );
    assert!(
        rejected.head.contains("\r\nwww-authenticate: bearer\r\n"),
        "{}",
        rejected.head
    );
    for headers in ["Authorization: Basic YTpi\r\n", "Authorization: Bearer\r\n"] {
        assert_eq!(rejection(&server, "/room/tea", headers).await.status, 401);
    }
    // A request that is not an upgrade needs no token.
    let mut raw = Raw::connect(&server).await;
    raw.write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(server.count("anteroom_upgrades_total{status=\"401\"}"), 3);
}

#[tokio::test]
async fn a_token_in_the_query_or_in_the_header_is_accepted() {
    let (server, _file) = server("places").await;
    let token = sign(json!({}));
    for (query, header) in [
        (format!("?token={token}"), String::new()),
        (format!("?a=b&token={token}&c"), String::new()),
        (String::new(), format!("Authorization: Bearer {token}\r\n")),
        (String::new(), format!("authorization: bearer  {token}\r\n")),
    ] {
        let path = format!("/room/tea{query}");
        assert!(
            Raw::upgrade(&server, &path, &header).await.is_ok(),
            "{path} {header}"
        );
    }
    let header = format!("Authorization: Bearer {token}\r\n");
    let both = rejection(&server, &format!("/room/tea?token={token}"), &header).await;
    assert_eq!(both.status, 400);
}

#[tokio::test]
async fn only_a_token_with_a_valid_signature_gets_a_detailed_reason() {
    let (server, _file) = server("wrong").await;
    let with_alg = |alg: &str, claims: Value, signature: &str| {
        let part = |json: Value| BASE64.encode(json.to_string());
        let header = part(json!({"typ": "JWT", "alg": alg}));
        format!("{header}.{}.{signature}", part(claims))
    };
    let another = EncodingKey::from_secret(b"another-secret-that-has-more-than-32-bytes");
    let forged = encode(&Header::default(), &claims(json!({})), &another).unwrap();
    let critical = Header {
        crit: Some(vec!["b64".into()]),
        ..Header::new(Algorithm::HS256)
    };
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let critical = encode(&critical, &claims(json!({})), &key).unwrap();
    let hs512 = encode(&Header::new(Algorithm::HS512), &claims(json!({})), &key).unwrap();
    let good = sign(json!({"sub": "alice"}));
    let (head, tail) = good.split_once('.').unwrap();
    let other_claims = BASE64.encode(claims(json!({"sub": "bob"})).to_string());
    let swapped = format!("{head}.{other_claims}.{}", tail.split_once('.').unwrap().1);

    let invalid = "the token is not valid here";
    let needed = "a token is required: send ?token=<jwt> or the header Authorization: Bearer <jwt>";
    let expired = "the token has expired";
    let lacking = "the token lacks a required claim: exp, or the configured iss or aud";
    for (token, status, message) in [
        // Without a valid signature, the answer tells nothing more.
        (String::new(), 401, needed),
        ("nonsense".into(), 401, invalid),
        ("a.b.c".into(), 401, invalid),
        ("..".into(), 401, invalid),
        (format!("{good}x"), 401, invalid),
        (format!("{good}."), 401, invalid),
        (forged, 401, invalid),
        (swapped, 401, invalid),
        (critical, 401, invalid),
        (hs512, 401, invalid),
        (with_alg("none", claims(json!({})), ""), 401, invalid),
        (with_alg("None", claims(json!({})), ""), 401, invalid),
        (with_alg("HS256", claims(json!({})), ""), 401, invalid),
        (
            with_alg("HS256", claims(json!({"exp": in_seconds(-10)})), "x"),
            401,
            invalid,
        ),
        (sign(json!({"exp": "tomorrow"})), 401, invalid),
        (sign(json!({"send": "no"})), 401, invalid),
        (sign(json!({"room": 7})), 401, invalid),
        (sign_with_end(r#","room":null"#), 401, invalid),
        (sign_with_end(r#","send":null"#), 401, invalid),
        (sign(json!({"sub": 7})), 401, invalid),
        // With a valid signature, the answer has the reason.
        (sign(json!({"exp": in_seconds(-1)})), 401, expired),
        (sign(json!({"exp": in_seconds(-3600)})), 401, expired),
        (sign(json!({"exp": 0.5})), 401, expired),
        (sign(json!({"exp": -1})), 401, lacking),
        (sign(json!({"exp": null})), 401, lacking),
        (
            sign(json!({"nbf": in_seconds(300)})),
            401,
            "the token is not valid yet",
        ),
        (
            sign(json!({"aud": "elsewhere"})),
            401,
            "the token has another audience: its aud must match --token-audience",
        ),
        (
            sign(json!({"room": "coffee"})),
            403,
            "the token does not admit to this room",
        ),
        (
            sign(json!({"room": []})),
            403,
            "the token does not admit to this room",
        ),
        (
            sign(json!({"sub": "x".repeat(257)})),
            403,
            "the token's sub exceeds 256 bytes",
        ),
        (
            sign(json!({"info": "x".repeat(1023)})),
            403,
            "the token's info exceeds 1024 bytes",
        ),
    ] {
        let rejected = rejection(&server, &format!("/room/tea?token={token}"), "").await;
        assert_eq!(
            (rejected.status, &*rejected.body),
            (status, message),
            "{token}"
        );
    }
    // A token that is far too long exceeds the limit of the request's headers.
    let mut raw = Raw::connect(&server).await;
    let long = "A".repeat(100_000);
    let _ = raw
        .try_write(handshake(&format!("/room/tea?token={long}")))
        .await;
    let answer = String::from_utf8(raw.read_to_end().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let mut alice = join(&server, "tea", &good).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn registered_claims_must_have_the_types_of_rfc_7519() {
    let (server, _file) = server("types").await;
    for name in ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"] {
        let is_time = ["exp", "nbf", "iat"].contains(&name);
        let wrong = match (name, is_time) {
            ("aud", _) => &["5", "null", "true", "{}", "[5]", "[null]", r#"["a",["b"]]"#][..],
            (_, true) => &["\"1\"", "null", "true", "{}", "[]", "[1]"],
            (_, false) => &["5", "null", "true", "{}", "[]", r#"["a"]"#],
        };
        for value in wrong {
            let token = match name {
                "exp" => sign_text(&format!(r#"{{"exp":{value}}}"#)),
                _ => sign_with_end(&format!(r#","{name}":{value}"#)),
            };
            let rejected = rejection(&server, &format!("/room?token={token}"), "").await;
            assert_eq!(
                (rejected.status, &*rejected.body),
                (401, "the token is not valid here"),
                "{name}: {value}"
            );
        }
    }
    let good = json!({"iss": "a", "sub": "b", "nbf": 1.5, "iat": in_seconds(0), "jti": ""});
    assert!(
        Raw::upgrade(&server, &format!("/room?token={}", sign(good)), "")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn the_issuer_and_audience_must_match_the_options() {
    let file = File::new("issuer", SECRET);
    let server = TestServer::with(|config| {
        with_secret(config, &file);
        config.tokens.issuer = Some("https://example.org".into());
        config.tokens.audience = Some("rooms".into());
    })
    .await;
    let (iss, aud) = ("https://example.org", "rooms");
    for (claims, status) in [
        (json!({"iss": iss, "aud": aud}), 101),
        (json!({"iss": iss, "aud": ["other", aud]}), 101),
        (json!({"iss": iss}), 401),
        (json!({"aud": aud}), 401),
        (json!({"iss": "https://example.com", "aud": aud}), 401),
        (json!({"iss": iss, "aud": "other"}), 401),
        (json!({"iss": iss, "aud": []}), 401),
    ] {
        let path = format!("/room/tea?token={}", sign(claims.clone()));
        let result = Raw::upgrade(&server, &path, "").await;
        assert_eq!(
            result.err().map_or(101, |rejected| rejected.status),
            status,
            "{claims}"
        );
    }
}

#[tokio::test]
async fn a_token_admits_to_the_rooms_it_names() {
    let (server, _file) = server("rooms").await;
    for (room, path, admitted) in [
        (json!("tea"), "/room/tea", true),
        (json!("tea"), "/room/te%61", true),
        (json!("tea"), "/room/teapot", false),
        (json!("tea"), "/room", false),
        (json!("lobby"), "/room", true),
        (json!("te*"), "/room/tea", true),
        (json!("te*"), "/room/coffee", false),
        (json!("*"), "/room/anything", true),
        (json!("t*a"), "/room/tea", false),
        (json!(["coffee", "tea"]), "/room/tea", true),
        (json!(["coffee", "team-*"]), "/room/team-7", true),
        (json!(["coffee", "team-*"]), "/room/tea", false),
        (Value::Null, "/room/tea", true),
    ] {
        let path = format!("{path}?token={}", sign(json!({"room": room})));
        let result = Raw::upgrade(&server, &path, "").await;
        assert_eq!(result.is_ok(), admitted, "{room} {path}");
    }
}

#[tokio::test]
async fn each_kind_of_key_verifies_only_its_own_algorithm() {
    let pairs = [
        (
            Algorithm::RS256,
            KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(),
        ),
        (
            Algorithm::ES256,
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        ),
        (
            Algorithm::EdDSA,
            KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        ),
    ];
    let signing = |algorithm, pem: &str| match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
        _ => EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
    };
    for (algorithm, pair) in &pairs {
        let public = pair.public_key_pem();
        let file = File::new(&format!("{algorithm:?}.pem"), &public);
        let path = file.path();
        let server = TestServer::with(|config| config.tokens.key_file = Some(path)).await;
        for (other, signer) in &pairs {
            let key = signing(*other, &signer.serialize_pem());
            let token = encode(&Header::new(*other), &claims(json!({})), &key).unwrap();
            let result = Raw::upgrade(&server, &format!("/room?token={token}"), "").await;
            assert_eq!(
                result.is_ok(),
                other == algorithm,
                "{other:?} for {algorithm:?}"
            );
        }
        // A public key must not be accepted as an HMAC secret: everybody may know it.
        for text in [public.as_str(), public.trim_end()] {
            let key = EncodingKey::from_secret(text.as_bytes());
            let token = encode(&Header::default(), &claims(json!({})), &key).unwrap();
            let rejected = rejection(&server, &format!("/room?token={token}"), "").await;
            assert_eq!(
                (rejected.status, &*rejected.body),
                (401, "the token is not valid here")
            );
        }
        // The server's key file must not be enough to sign a token.
        let request =
            TokenRequest::parse_options(&["--token-key-file", file.path().to_str().unwrap()]);
        let error = request.sign().unwrap_err().to_string();
        assert!(
            error.contains("is not a private key") || error.contains("cannot sign"),
            "{error}"
        );
        let name = format!("{algorithm:?}").to_lowercase();
        let said = ["--token-algorithm", name.as_str()];
        for (other, signer) in &pairs {
            let private = File::new("signer.pem", signer.serialize_pem());
            let path = private.path();
            let words = ["--token-key-file", path.to_str().unwrap()];
            let request = TokenRequest::parse_options(&[&words[..], &said].concat());
            let error = request.sign().err().map(|error| error.to_string());
            let message =
                format!("has a key for {other:?}, but --token-algorithm is {algorithm:?}");
            assert_eq!(error.is_none(), other == algorithm, "{error:?}");
            assert!(error.is_none_or(|error| error.contains(&message)));
        }
    }
}

/// Parses the options of `anteroom token`.
trait ParseOptions {
    fn parse_options(words: &[&str]) -> Self;
}

impl ParseOptions for TokenRequest {
    fn parse_options(words: &[&str]) -> TokenRequest {
        #[derive(Parser)]
        struct Options {
            #[command(flatten)]
            request: TokenRequest,
        }
        Options::parse_from(["token"].iter().chain(words)).request
    }
}

#[tokio::test]
async fn the_kid_of_a_token_chooses_the_key_of_a_set() {
    let pairs = [
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
        KeyPair::generate_for(&PKCS_ED25519).unwrap(),
    ];
    let signature_key = |id: &str, pair: &KeyPair| {
        let members = json!({"kid": id, "alg": "EdDSA", "use": "sig"});
        jwk(pair, members)
    };
    let mut encryption_key = signature_key("third", &pairs[0]);
    encryption_key["use"] = "enc".into();
    let set = json!({"keys": [
        signature_key("first", &pairs[0]),
        signature_key("second", &pairs[1]),
        encryption_key,
        {"kty": "oct", "kid": "secret", "k": BASE64.encode(SECRET)},
        {"kty": "EC", "crv": "P-521", "kid": "unknown", "x": "AA", "y": "AA"},
        {"kty": "AKP", "kid": "future"},
    ]});
    let file = File::new("set.json", set.to_string());
    let path = file.path();
    let server = TestServer::with(|config| config.tokens.key_file = Some(path)).await;
    let signed = |id: Option<&str>, pair: &KeyPair| signed_by(pair, id, json!({}));
    for (id, pair, admitted) in [
        (Some("first"), &pairs[0], true),
        (Some("second"), &pairs[1], true),
        (Some("first"), &pairs[1], false),
        (Some("third"), &pairs[0], false),
        (Some("fourth"), &pairs[0], false),
        (Some(""), &pairs[0], false),
        // A token without a kid may be signed with any key.
        (None, &pairs[0], true),
        (None, &pairs[1], true),
    ] {
        let path = format!("/room?token={}", signed(id, pair));
        assert_eq!(
            Raw::upgrade(&server, &path, "").await.is_ok(),
            admitted,
            "{id:?}"
        );
    }
    // A shared secret in a set verifies nothing: others can read the set.
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let header = Header {
        kid: Some("secret".into()),
        ..Header::default()
    };
    let token = encode(&header, &claims(json!({})), &key).unwrap();
    assert_eq!(
        rejection(&server, &format!("/room?token={token}"), "")
            .await
            .status,
        401
    );

    // A reload replaces the keys; an invalid file leaves them unchanged.
    std::fs::write(
        file.path(),
        json!({"keys": [signature_key("fourth", &pairs[0])]}).to_string(),
    )
    .unwrap();
    server.anteroom.reload();
    let fourth = format!("/room?token={}", signed(Some("fourth"), &pairs[0]));
    assert!(Raw::upgrade(&server, &fourth, "").await.is_ok());
    let first = format!("/room?token={}", signed(Some("first"), &pairs[0]));
    assert_eq!(rejection(&server, &first, "").await.status, 401);
    std::fs::write(file.path(), "{").unwrap();
    server.anteroom.reload();
    assert!(Raw::upgrade(&server, &fourth, "").await.is_ok());
}

/// An Ed25519 key of a set, with members in addition to `kty`, `crv` and `x`.
fn jwk(pair: &KeyPair, others: Value) -> Value {
    let x = BASE64.encode(pair.public_key_raw());
    let mut jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
    for (name, value) in others.as_object().unwrap() {
        jwk[name] = value.clone();
    }
    jwk
}

/// A token that is signed with an Ed25519 key, with this `kid` and other claims.
fn signed_by(pair: &KeyPair, kid: Option<&str>, others: Value) -> String {
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(Algorithm::EdDSA)
    };
    let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
    encode(&header, &claims(others), &key).unwrap()
}

#[tokio::test]
async fn keys_without_a_kid_are_all_tried() {
    let pairs = [(); 4].map(|()| KeyPair::generate_for(&PKCS_ED25519).unwrap());
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = ec.public_key_raw();
    let set = json!({"keys": [
        {"kty": "EC", "crv": "P-256", "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])},
        jwk(&pairs[0], json!({})),
        jwk(&pairs[1], json!({})),
        jwk(&pairs[2], json!({"kid": "named"})),
    ]});
    let file = File::new("nameless.json", set.to_string());
    let path = file.path();
    let server = TestServer::with(|config| config.tokens.key_file = Some(path)).await;
    let invalid = "the token is not valid here";
    for (pair, kid, others, answer) in [
        (&pairs[0], None, json!({}), Ok(())),
        (&pairs[1], None, json!({}), Ok(())),
        (&pairs[2], None, json!({}), Ok(())),
        (&pairs[1], Some("named"), json!({}), Ok(())),
        (&pairs[1], Some("other"), json!({}), Ok(())),
        (&pairs[2], Some("named"), json!({}), Ok(())),
        (&pairs[2], Some("other"), json!({}), Err(invalid)),
        (&pairs[3], None, json!({}), Err(invalid)),
        // The reason is that of the key that verifies the signature.
        (
            &pairs[1],
            None,
            json!({"exp": in_seconds(-60)}),
            Err("the token has expired"),
        ),
        (
            &pairs[2],
            None,
            json!({"nbf": in_seconds(300)}),
            Err("the token is not valid yet"),
        ),
        (
            &pairs[3],
            None,
            json!({"exp": in_seconds(-60)}),
            Err(invalid),
        ),
    ] {
        let path = format!("/room?token={}", signed_by(pair, kid, others.clone()));
        let result = Raw::upgrade(&server, &path, "").await.map(drop);
        let result = result.map_err(|rejected| rejected.body);
        assert_eq!(result, answer.map_err(str::to_owned), "{kid:?} {others}");
    }
    let key = EncodingKey::from_ec_pem(ec.serialize_pem().as_bytes()).unwrap();
    let token = encode(&Header::new(Algorithm::ES256), &claims(json!({})), &key).unwrap();
    assert!(
        Raw::upgrade(&server, &format!("/room?token={token}"), "")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn unusable_keys_of_a_set_are_ignored_with_a_warning() {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let short = BASE64.encode([0xFF; 128]);
    let hidden = "hidden-in-a-key";
    let others = [
        (
            json!({"kty": "OKP", "kid": 7, "d": hidden}),
            "[0] (kid no string)",
        ),
        (json!(hidden), "[1] (no kid)"),
        (
            json!({"kty": "AKP", "kid": "a\n\u{1b}b"}),
            "[2] (kid \"a\\n\\u{1b}b\")",
        ),
        (
            jwk(&pair, json!({"kid": "enc", "use": "enc"})),
            "(kid \"enc\")",
        ),
        (
            jwk(&pair, json!({"kid": "ops", "key_ops": ["sign"]})),
            "(kid \"ops\")",
        ),
        (
            jwk(&pair, json!({"kid": "type", "key_ops": hidden})),
            "(kid \"type\")",
        ),
        (
            jwk(&pair, json!({"kid": "alg", "alg": "RS256"})),
            "(kid \"alg\")",
        ),
        (jwk(&pair, json!({"kid": "x", "x": "AA"})), "(kid \"x\")"),
        (
            json!({"kty": "oct", "kid": "oct", "k": hidden}),
            "(kid \"oct\")",
        ),
        (
            json!({"kty": "RSA", "kid": "short", "n": short, "e": "AQAB"}),
            "(kid \"short\")",
        ),
        (
            json!({"kty": "EC", "crv": "P-256", "kid": "point", "x": "AA", "y": "AA"}),
            "(kid \"point\")",
        ),
    ];
    let mut keys: Vec<Value> = others.iter().map(|(key, _)| key.clone()).collect();
    keys.push(jwk(
        &pair,
        json!({"kid": "good", "key_ops": ["verify"], "use": "sig"}),
    ));
    let file = File::new("foreign.json", json!({"keys": keys}).to_string());
    let path = file.path();
    let path = path.to_str().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0", "--token-key-file", path])
        .env_remove("RUST_LOG")
        .stderr(std::process::Stdio::piped());
    let mut program = Program::run(command).await;
    let token = signed_by(&pair, Some("good"), json!({}));
    let client = Client::connect(program.address, &format!("/room?token={token}")).await;
    client.leave().await;
    program.signal("TERM").await;
    let mut log = String::new();
    let mut stderr = program.child.stderr.take().unwrap();
    within_deadline(
        "the log",
        tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut log),
    )
    .await
    .unwrap();
    assert_eq!(program.exit_code().await, Some(0));
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    let warnings: Vec<&str> = warnings
        .into_iter()
        .filter(|line| line.contains("keys["))
        .collect();
    assert_eq!(warnings.len(), others.len(), "{log}");
    for ((_, name), warning) in others.iter().zip(warnings) {
        assert!(
            warning.contains(name) && warning.contains(path),
            "{name}: {warning}"
        );
    }
    assert!(!log.contains(hidden) && !log.contains('\u{1b}'), "{log}");
}

#[tokio::test]
async fn files_without_a_usable_key_are_an_error_at_the_start() {
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let der = ed.subject_public_key_info();
    let hex: String = der.iter().map(|byte| format!("{byte:02X}")).collect();
    for (name, contents, message) in [
        ("secret", SECRET.into(), "give --token-algorithm HS256"),
        ("empty", String::new(), "give --token-algorithm HS256"),
        (
            "p384",
            p384.public_key_pem(),
            "is not a public key for RS256, ES256 (P-256) or EdDSA",
        ),
        (
            "private",
            ed.serialize_pem(),
            "keep the private key with the issuer of the tokens",
        ),
        (
            "text",
            format!("Public-Key:\n{}", p384.public_key_pem()),
            "is not a public key for RS256, ES256 (P-256) or EdDSA",
        ),
        (
            "joined",
            ed.public_key_pem().trim_end().to_owned() + &ed.public_key_pem(),
            "must stand alone on their lines",
        ),
        (
            "two",
            ed.public_key_pem() + &ed.public_key_pem(),
            "must have one public key as PEM and nothing else: it has 2 blocks",
        ),
        (
            "both",
            ed.public_key_pem() + &ed.serialize_pem(),
            "must have one public key as PEM and nothing else: it has 2 blocks",
        ),
        (
            "certificate",
            crate::tls::Authority::new().pem(),
            "take its public key with openssl x509 -pubkey -noout",
        ),
        (
            "der",
            format!("{}\n", BASE64_STANDARD.encode(&der)),
            "give --token-algorithm HS256",
        ),
        (
            "lines",
            format!("{SECRET}\n{SECRET}\n"),
            "give --token-algorithm HS256",
        ),
        (
            "bom",
            format!("\u{feff}{SECRET}"),
            "give --token-algorithm HS256",
        ),
        (
            "ssh",
            format!("ssh-ed25519 {}", "A".repeat(60)),
            "give --token-algorithm HS256",
        ),
        ("hex", hex, "give --token-algorithm HS256"),
        (
            "pem64",
            BASE64_STANDARD.encode(ed.public_key_pem()),
            "give --token-algorithm HS256",
        ),
        (
            "escaped",
            ed.public_key_pem().replace(' ', "%20").replace('\n', "%0A"),
            "give --token-algorithm HS256",
        ),
        (
            "quoted",
            format!("\"{}\"", BASE64_STANDARD.encode(&der)),
            "give --token-algorithm HS256",
        ),
        (
            "openssh",
            BASE64_STANDARD.encode([&[0, 0, 0, 11][..], b"ssh-ed25519", &der].concat()),
            "give --token-algorithm HS256",
        ),
        (
            "url-safe",
            format!("  {}", BASE64.encode(&der)),
            "give --token-algorithm HS256",
        ),
        (
            "array",
            format!("[{}]", "1,".repeat(30)),
            "give --token-algorithm HS256",
        ),
        (
            "set",
            r#"{"keys": []}"#.into(),
            "has no key for RS256, ES256 or EdDSA signatures",
        ),
        ("json", "{nonsense".into(), "is not a JSON Web Key Set: "),
        (
            "member",
            format!(r#"{{"keys": "{SECRET}"}}"#),
            "is not a JSON Web Key Set: ",
        ),
        (
            "many",
            json!({"keys": vec![jwk(&ed, json!({})); 33]}).to_string(),
            "has 33 keys: 32 at most",
        ),
    ] {
        let file = File::new(name, contents);
        let mut config = anteroom::Config::default();
        config.tokens.key_file = Some(file.path());
        let error = anteroom::Anteroom::new(config).err().unwrap().to_string();
        assert!(error.contains(message), "{name}: {error}");
        assert!(
            error.contains(file.path().to_str().unwrap()),
            "{name}: {error}"
        );
        assert!(!error.contains(SECRET), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_file_that_contradicts_the_algorithm_is_refused_at_the_start() {
    use TokenAlgorithm::{EdDsa, Es256, Hs256, Rs256};
    let ec = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let set = json!({"keys": [jwk(&ed, json!({}))]}).to_string();
    for (name, contents, algorithm, message) in [
        (
            "short",
            "secret".into(),
            Hs256,
            "has 6 bytes: take at least 32",
        ),
        (
            "empty",
            String::new(),
            Hs256,
            "has 0 bytes: take at least 32",
        ),
        (
            "blank",
            format!("secret{}", "\n".repeat(40)),
            Hs256,
            "has 6 bytes: take at least 32",
        ),
        (
            "public",
            ec.public_key_pem(),
            Hs256,
            "leave --token-algorithm out",
        ),
        (
            "private",
            ec.serialize_pem(),
            Hs256,
            "leave --token-algorithm out",
        ),
        (
            "commented",
            format!("# {SECRET}\n{}", ec.public_key_pem()),
            Hs256,
            "leave --token-algorithm out",
        ),
        ("set", set.clone(), Hs256, "leave --token-algorithm out"),
        (
            "jwk",
            jwk(&ed, json!({})).to_string(),
            Hs256,
            "leave --token-algorithm out",
        ),
        (
            "pem",
            ec.public_key_pem(),
            Rs256,
            "has a key for ES256, but --token-algorithm is RS256",
        ),
        (
            "pem",
            ed.public_key_pem(),
            Es256,
            "has a key for EdDSA, but --token-algorithm is ES256",
        ),
        (
            "keys",
            set.clone(),
            Es256,
            "has no key for ES256 signatures",
        ),
        (
            "word",
            SECRET.into(),
            Rs256,
            "must be a public key as PEM or a JSON Web Key Set",
        ),
    ] {
        let file = File::new(&format!("contradicts-{name}"), contents);
        let mut config = Config::default();
        config.tokens.key_file = Some(file.path());
        config.tokens.algorithm = Some(algorithm);
        let error = anteroom::Anteroom::new(config).err().unwrap().to_string();
        assert!(error.contains(message), "{name}: {error}");
        assert!(
            error.contains(file.path().to_str().unwrap()),
            "{name}: {error}"
        );
        assert!(!error.contains(SECRET), "{name}: {error}");
    }
    for (contents, algorithm) in [
        (ec.public_key_pem(), Es256),
        (ed.public_key_pem(), EdDsa),
        (set, EdDsa),
    ] {
        let file = File::new(&format!("agrees-{algorithm}"), contents);
        let mut config = Config::default();
        config.tokens.key_file = Some(file.path());
        config.tokens.algorithm = Some(algorithm);
        assert!(anteroom::Anteroom::new(config).is_ok(), "{algorithm}");
    }
}

#[tokio::test]
async fn a_secret_may_look_like_anything_once_the_algorithm_is_given() {
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let der = ed.subject_public_key_info();
    for secret in [
        BASE64_STANDARD.encode(&der),
        format!("{SECRET}\n{SECRET}"),
        format!("{{{SECRET}"),
        format!("\"{SECRET}\""),
    ] {
        let file = File::new("any-secret", format!("  {secret}\r\n"));
        let server = TestServer::with(|config| with_secret(config, &file)).await;
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = encode(&Header::default(), &claims(json!({})), &key).unwrap();
        let given = Raw::upgrade(&server, &format!("/room?token={token}"), "").await;
        assert!(given.is_ok(), "{secret}");
    }
}

#[tokio::test]
async fn the_user_and_info_of_a_token_are_shown_to_the_others() {
    let (server, _file) = server("public").await;
    let info = json!({"name": "Alice", "colour": "green"});
    let mut carol = join(&server, "tea", &sign(json!({}))).await;
    let alice = join(&server, "tea", &sign(json!({"sub": "alice", "info": info}))).await;
    let new = carol.next().await;
    assert_eq!(new["data"], json!({"user": "alice", "info": info}));
    let bob = join(&server, "tea", &sign(json!({"sub": "bob"}))).await;
    assert_eq!(carol.next().await["data"], json!({"user": "bob"}));
    let hello = carol.hello().await;
    let peers = json!([
        {"id": alice.id, "data": {"user": "alice", "info": info}},
        {"id": bob.id, "data": {"user": "bob"}},
    ]);
    assert_eq!(hello["data"]["peers"], peers);
    let mut dave = join(&server, "tea", &sign(json!({}))).await;
    assert_eq!(carol.next().await["data"], Value::Null);
    let peers = dave.hello().await["data"]["peers"].clone();
    assert_eq!(peers[0], json!({"id": carol.id, "data": null}));
}

#[tokio::test]
async fn a_listen_only_session_can_send_requests_but_no_messages() {
    let (server, _file) = server("listen").await;
    let mut alice = join(&server, "tea", &sign(json!({}))).await;
    let mut listener = join(&server, "tea", &sign(json!({"send": false}))).await;
    alice.expect_any_new().await;
    for receiver in ["all", &alice.id, &listener.id.clone()] {
        listener
            .send(json!({"type": "x", "receiver": receiver, "ref": 7}))
            .await;
        let error = listener.expect_error("not_allowed").await;
        assert_eq!(
            error,
            json!({"code": "not_allowed", "message": "your token lets you listen only", "ref": 7})
        );
    }
    alice.expect_quiet().await;
    alice.send(json!({"type": "x", "receiver": "all"})).await;
    assert_eq!(listener.next().await["type"], "x");
    listener.expect_quiet().await;
}

#[tokio::test]
async fn an_expired_token_closes_the_session_unless_a_newer_one_was_sent() {
    let (server, _file) = server("end").await;
    let watch = sign(json!({}));
    let mut observer = join(&server, "tea", &watch).await;
    let soon = sign(json!({"sub": "alice", "exp": in_seconds(10)}));
    let mut alice = join(&server, "tea", &soon).await;
    let mut late = join(&server, "tea", &soon).await;
    for _ in 0..2 {
        observer.expect_any_new().await;
    }
    alice.expect_any_new().await;
    let token =
        |data: Value| json!({"type": "token", "receiver": "server", "data": data, "ref": 1});
    // An unsuitable token is an error and changes nothing.
    for (data, message) in [
        (json!(null), "data must be the token, a string"),
        (json!({"token": soon}), "data must be the token, a string"),
        (json!("nonsense"), "the token is not valid here"),
        (
            json!(sign(json!({"sub": "alice", "exp": in_seconds(-1)}))),
            "the token has expired",
        ),
        (
            json!(sign(json!({"sub": "bob"}))),
            "the token is another user's",
        ),
        (json!(sign(json!({}))), "the token is another user's"),
        (
            json!(sign(json!({"sub": "alice", "room": "coffee"}))),
            "the token does not admit to this room",
        ),
    ] {
        alice.send(token(data)).await;
        let code = match message {
            "data must be the token, a string" => "bad_message",
            _ => "not_allowed",
        };
        let error = alice.expect_error(code).await;
        assert_eq!(
            (&error["message"], &error["ref"]),
            (&json!(message), &json!(1))
        );
    }
    alice
        .send(token(json!(sign(json!({"sub": "alice", "send": false})))))
        .await;
    assert_eq!(alice.next().await["type"], "ack");

    assert_eq!(
        late.expect_close().await,
        (1008, "the token has expired".into())
    );
    observer.expect_left(&late.id).await;
    // Alice's session goes on with the permissions of her new token.
    alice.expect_left(&late.id).await;
    alice.send(json!({"type": "x", "receiver": "all"})).await;
    alice.expect_error("not_allowed").await;
    observer.expect_quiet().await;
}

#[tokio::test]
async fn without_a_key_file_tokens_are_ignored() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address, "/room/tea?token=nonsense").await;
    client
        .send(json!({"type": "token", "receiver": "server", "data": "x"}))
        .await;
    assert_eq!(client.next().await["data"]["code"], "unknown_request");
}

#[tokio::test]
async fn only_its_own_user_resumes_a_session_and_its_latest_token_closes_it() {
    let (server, _file) = server("resume").await;
    let soon = sign(json!({"sub": "alice", "exp": in_seconds(10)}));
    let mut alice = Client::connect(server.address, &format!("/room/tea?token={soon}")).await;
    let resume = alice.ask_for_resume_token().await;
    let path = |token: &str| format!("/room/tea?resume={resume}&received=1&token={token}");

    // The session is not resumed without a token, nor with another user's token.
    let rejected = rejection(
        &server,
        &format!("/room/tea?resume={resume}&received=1"),
        "",
    )
    .await;
    assert_eq!(rejected.status, 401);
    let mut bob = Client::connect(server.address, &path(&sign(json!({"sub": "bob"})))).await;
    assert_eq!(bob.next().await["data"]["code"], "resume_failed");
    bob.leave().await;

    let until = in_seconds(13);
    let newer = sign(json!({"sub": "alice", "exp": until}));
    drop(alice.into_raw());
    let mut alice = Client::connect(server.address, &path(&newer)).await;
    assert_eq!(alice.next().await["type"], "resumed");
    // A reconnection with the first token does not shorten the session.
    drop(alice.into_raw());
    let mut alice = Client::connect(server.address, &path(&soon).replace("d=1&", "d=3&")).await;
    assert_eq!(alice.next().await["type"], "resumed");
    let code = loop {
        if let Err(code) = alice.next_or_close().await {
            break code;
        }
    };
    assert_eq!(code, 1008);
    assert!(
        in_seconds(0) >= until,
        "the session closed before its latest token expired"
    );
}

#[test]
fn no_token_is_signed_that_a_server_would_reject() {
    let file = File::new("request", SECRET);
    let path = file.path();
    let path = path.to_str().unwrap();
    let sign = |more: &[&str]| {
        let words = [
            &["--token-key-file", path, "--token-algorithm", "hs256"],
            more,
        ];
        let words = words.concat();
        TokenRequest::parse_options(&words).sign()
    };
    assert!(sign(&["--hours", "8784"]).is_ok());
    let long = "x".repeat(257);
    let info = format!("\"{}\"", "x".repeat(1023));
    for words in [
        ["--hours", "0"],
        ["--hours", "nan"],
        ["--hours", "inf"],
        ["--hours", "1e30"],
        ["--hours", "1e-9"],
        ["--user", &long],
        ["--info", &info],
        ["--room", ""],
    ] {
        let error = sign(&words).unwrap_err().to_string();
        assert!(error.starts_with(words[0]), "{error}");
    }
}

#[tokio::test]
async fn the_info_of_a_token_reaches_others_byte_for_byte() {
    let (server, file) = server("bytes").await;
    let path = file.path();
    let path = path.to_str().unwrap();
    let words = [
        "--token-key-file",
        path,
        "--token-algorithm",
        "HS256",
        "--info",
    ];
    for (info, seen) in [
        (
            "12345678901234567890123456789",
            "12345678901234567890123456789",
        ),
        (
            r#" {"z":1.10, "a":1E2,"z":0} "#,
            r#"{"z":1.10, "a":1E2,"z":0}"#,
        ),
        (r#""\u00eb/\/""#, r#""\u00eb/\/""#),
    ] {
        let room = format!("bytes-{}", seen.len());
        let token = TokenRequest::parse_options(&[&words[..], &[info]].concat());
        let token = token.sign().unwrap();
        let watch = format!("/room/{room}?token={}", sign(json!({})));
        let mut observer = Raw::upgrade(&server, &watch, "").await.unwrap();
        let _alice = join(&server, &room, &token).await;
        let new = String::from_utf8(observer.read_frame().await.payload).unwrap();
        let end = format!(r#""data":{{"info":{seen}}}}}"#);
        assert!(new.ends_with(&end), "{new}");
    }
}

#[test]
fn invalid_values_for_a_token_are_one_line_and_exit_code_2() {
    let file = File::new("values", SECRET);
    let path = file.path();
    for (option, value, message) in [
        (
            "--info",
            "",
            "--info <JSON>': not JSON: omit the option, or",
        ),
        (
            "--info",
            " ",
            "--info <JSON>': not JSON: omit the option, or",
        ),
        (
            "--info",
            "green",
            r#"not JSON: a string needs double quotes, such as '"green"'"#,
        ),
        ("--info", "{\"a\":1", "not JSON: EOF while parsing"),
        ("--user", "", "--user must not be empty"),
        ("--token-issuer", "", "--token-issuer must not be empty"),
        ("--token-audience", "", "--token-audience must not be empty"),
        ("--room", "", "--room must not be empty"),
        ("--hours", "0", "--hours must be"),
        (
            "--token-algorithm",
            "none",
            "not HS256, RS256, ES256 or EdDSA",
        ),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_anteroom"))
            .args(["token", option, value])
            .env("ANTEROOM_TOKEN_KEY_FILE", &path)
            .output()
            .unwrap();
        let message_line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{option} {value:?}: {message_line}"
        );
        assert!(
            message_line.lines().count() == 1 && message_line.contains(message),
            "{message_line}"
        );
    }
    for (issuer, audience) in [(Some(""), None), (None, Some(""))] {
        let mut config = anteroom::Config::default();
        config.tokens.key_file = Some(file.path());
        config.tokens.issuer = issuer.map(str::to_owned);
        config.tokens.audience = audience.map(str::to_owned);
        let error = config.check().unwrap_err();
        assert!(error.contains("must not be empty"), "{error}");
    }
}

#[tokio::test]
async fn the_program_signs_tokens_and_logs_none() {
    let file = File::new("program", SECRET);
    let path = file.path();
    let path = path.to_str().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_anteroom"))
        .args([
            "token", "--user", "alice", "--room", "lobby", "--hours", "1",
        ])
        .args(["--info", r#"{"colour":"green"}"#])
        .env("ANTEROOM_TOKEN_KEY_FILE", path)
        .env("ANTEROOM_TOKEN_ALGORITHM", "HS256")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout)
        .unwrap()
        .trim_end()
        .to_owned();

    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .args(["--token-key-file", path, "--token-algorithm", "HS256"])
        .env("RUST_LOG", "trace")
        .stderr(std::process::Stdio::piped());
    let mut program = Program::run(command).await;
    let mut stderr = program.child.stderr.take().unwrap();
    let mut log = String::new();
    let reading = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut log);
    let mut resume = String::new();
    let driving = async {
        let mut alice = Client::connect(program.address, &format!("/room?token={token}")).await;
        resume = alice.ask_for_resume_token().await;
        let again = format!("/room?token={token}&resume={resume}&received=1");
        drop(alice.into_raw());
        let mut alice = Client::connect(program.address, &again).await;
        assert_eq!(alice.next().await["type"], "resumed");
        let newer = json!({"type": "token", "receiver": "server", "data": token, "ref": 1});
        alice.send(newer).await;
        assert_eq!(alice.next().await["type"], "ack");
        program.signal("TERM").await;
    };
    let (read, ()) = within_deadline("the log", async { tokio::join!(reading, driving) }).await;
    read.unwrap();
    assert_eq!(program.exit_code().await, Some(0));
    assert!(log.contains("stopping"), "{log}");
    for secret in [token.as_str(), &token[token.len() - 20..], &resume, SECRET] {
        assert!(!log.contains(secret), "the log has {secret}: {log}");
    }
}

#[tokio::test]
async fn a_page_learns_from_a_close_code_that_its_token_does_not_admit_it() {
    let (server, _file) = server("refusals").await;
    for (query, status) in [
        (String::new(), 401),
        ("?token=nonsense".into(), 401),
        (format!("?token={}", sign(json!({"exp": 1}))), 401),
        (format!("?token={}", sign(json!({"aud": "elsewhere"}))), 401),
        (format!("?token={}", sign(json!({"room": "coffee"}))), 403),
        (
            format!("?token={}", sign(json!({"sub": "x".repeat(257)}))),
            403,
        ),
    ] {
        expect_refusal(&server, &format!("/room/tea{query}"), "", status).await;
    }
}

#[tokio::test]
async fn a_message_to_a_user_reaches_all_other_sessions_of_that_user_in_the_room() {
    let (server, _file) = server("users").await;
    let token = |name: &str| sign(json!({"sub": name}));
    let mut phone = join(&server, "tea", &token("alice")).await;
    let mut laptop = join(&server, "tea", &token("alice")).await;
    let mut bob = join(&server, "tea", &token("bob")).await;
    let mut elsewhere = join(&server, "coffee", &token("alice")).await;
    let mut nobody = join(&server, "tea", &sign(json!({}))).await;
    for _ in 0..3 {
        phone.expect_any_new().await;
    }
    laptop.expect_any_new().await;
    laptop.expect_any_new().await;
    bob.expect_any_new().await;

    let send = |receiver: &str| json!({"type": "x", "receiver": receiver, "ref": 1});
    bob.send(send("user:alice")).await;
    assert_eq!(bob.next().await["data"]["receivers"], 2);
    for device in [&mut phone, &mut laptop] {
        let message =
            json!({"type": "x", "sender": bob.id, "receiver": "user:alice", "data": null});
        assert_eq!(device.next().await, message);
    }
    phone.send(send("user:alice")).await;
    assert_eq!(phone.next().await["data"]["receivers"], 1);
    assert_eq!(laptop.next().await["sender"], phone.id);

    for name in ["user:carol", "user:", "user:Alice", "user:\"b\u{1}ob\""] {
        bob.send(send(name)).await;
        let error = bob.expect_error("unknown_receiver").await;
        let named = format!("no other session of user {} in this room", &name[5..]);
        assert!(name.contains('"') || error["message"] == named, "{error}");
        assert_eq!(error["ref"], 1);
    }
    // The only session of a user, and a session without one.
    bob.send(send("user:bob")).await;
    bob.expect_error("unknown_receiver").await;
    for client in [
        &mut phone,
        &mut laptop,
        &mut bob,
        &mut elsewhere,
        &mut nobody,
    ] {
        client.expect_quiet().await;
    }
}

#[tokio::test]
async fn a_token_that_lets_its_bearer_listen_only_sets_no_state() {
    let (server, _file) = server("mute-state").await;
    let mut bob = join(&server, "tea", &sign(json!({}))).await;
    let mut mute = join(&server, "tea", &sign(json!({"send": false}))).await;
    bob.expect_new(&mute.id).await;
    mute.send(json!({"type": "state", "receiver": "server", "data": 1}))
        .await;
    mute.expect_error("not_allowed").await;
    bob.expect_quiet().await;
}
