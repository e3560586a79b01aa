//! The ICE servers in `hello`, and the TURN credentials in them.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::json;

use crate::support::{Client, File, TestServer, in_seconds};
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
use crate::tokens::with_secret;

/// The secret that the server shares with the TURN server.
const SECRET: &str = "a secret shared with coturn";

/// The password of a TURN user name: its HMAC-SHA1 (draft-uberti-behave-turn-rest-00, section 2.2).
pub fn turn_credential(secret: &str, username: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    BASE64.encode(hmac::sign(&key, username.as_bytes()))
}

#[tokio::test]
async fn hello_lists_the_configured_servers() {
    let server = TestServer::with(|config| {
        config.webrtc.ice_server = [
            "stun:stun.example.org",
            "turn:alice:secret@turn.example.org:3478?transport=udp",
        ]
        .map(|url| url.parse().unwrap())
        .into();
    })
    .await;
    let mut client = Client::join(&server, "tea").await;
    let hello = client.hello().await;
    let servers = json!([
        {"urls": ["stun:stun.example.org"]},
        {
            "urls": ["turn:turn.example.org:3478?transport=udp"],
            "username": "alice",
            "credential": "secret",
        },
    ]);
    assert_eq!(hello["data"]["iceServers"], servers);
}

#[tokio::test]
async fn each_session_gets_its_own_turn_credentials_which_expire() {
    let secret = File::new("turn", format!("{SECRET}\n"));
    let server = TestServer::with(|config| {
        config.webrtc.turn_url = ["turn:turn.example.org", "turns:turn.example.org"]
            .map(|url| url.parse().unwrap())
            .into();
        config.webrtc.turn_secret_file = Some(secret.path());
        config.webrtc.turn_seconds = 600;
    })
    .await;
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut client = Client::join(&server, "tea").await;
        let servers = client.hello().await["data"]["iceServers"].clone();
        let turn = &servers[0];
        let urls = json!(["turn:turn.example.org", "turns:turn.example.org"]);
        assert_eq!(
            (servers.as_array().unwrap().len(), &turn["urls"]),
            (1, &urls)
        );
        let username = turn["username"].as_str().unwrap();
        let (until, name) = username.split_once(':').unwrap();
        let left = until.parse::<i64>().unwrap() - in_seconds(0);
        assert!((590..=600).contains(&left), "{left}");
        assert_eq!(name, client.id);
        assert_eq!(turn["credential"], turn_credential(SECRET, username));
        names.push(username.to_owned());
    }
    assert_ne!(names[0], names[1]);
}

/// A token for `user` that expires after `hours`.
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
fn token(key: &File, user: Option<&str>, hours: f64) -> String {
    let mut request = anteroom::TokenRequest::new(key.path());
    request.token_algorithm = Some(anteroom::TokenAlgorithm::Hs256);
    request.user = user.map(str::to_owned);
    request.hours = hours;
    request.sign().unwrap()
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
#[tokio::test]
async fn turn_credentials_have_the_users_name_and_expire_with_the_token() {
    let secret = File::new("turn-token", format!("{SECRET}\n"));
    let key = File::new(
        "turn-token.key",
        "a-secret-of-this-test-that-has-more-than-32-bytes",
    );
    let server = TestServer::with(|config| {
        config.webrtc.turn_url = vec!["turn:turn.example.org".parse().unwrap()];
        config.webrtc.turn_secret_file = Some(secret.path());
        config.webrtc.turn_seconds = 600;
        with_secret(config, &key);
    })
    .await;
    // The seconds until the credentials expire, and their user name.
    let credentials = async |client: &mut Client| {
        let hello = client.hello().await;
        let server = &hello["data"]["iceServers"][0];
        let username = server["username"].as_str().unwrap();
        assert_eq!(server["credential"], turn_credential(SECRET, username));
        client.id = hello["receiver"].as_str().unwrap().into();
        let (until, name) = username.split_once(':').unwrap();
        (
            until.parse::<i64>().unwrap() - in_seconds(0),
            name.to_owned(),
        )
    };
    let join = async |user: Option<&str>, hours: f64| {
        let path = format!("/room?token={}", token(&key, user, hours));
        Client::connect(server.address, &path).await
    };

    let mut alice = join(Some("alice"), 0.05).await;
    let (left, name) = credentials(&mut alice).await;
    assert!((170..=180).contains(&left), "{left}");
    assert_eq!(name, "alice");
    // With a newer token, the next credentials expire later.
    let newer = token(&key, Some("alice"), 0.1);
    alice
        .send(json!({"type": "token", "receiver": "server", "data": newer}))
        .await;
    let (left, _) = credentials(&mut alice).await;
    assert!((350..=360).contains(&left), "{left}");

    let mut anonymous = join(None, 1.0).await;
    let (left, name) = credentials(&mut anonymous).await;
    assert!((590..=600).contains(&left), "{left}");
    assert_eq!(name, anonymous.id);

    for (user, expected) in [
        ("Alice-1.2_3~", "Alice-1.2_3~"),
        ("a:b@c d", "a%3Ab%40c%20d"),
        ("50%\n<script>", "50%25%0A%3Cscript%3E"),
        ("zoë", "zo%C3%AB"),
    ] {
        let mut client = join(Some(user), 1.0).await;
        assert_eq!(credentials(&mut client).await.1, expected);
    }
    // A user name too long for a TURN server is replaced by the session's id.
    let mut client = join(Some(&"ë".repeat(128)), 1.0).await;
    let (_, name) = credentials(&mut client).await;
    assert_eq!(name, client.id);
}

#[test]
fn urls_that_browsers_reject_are_an_error_at_the_start() {
    let check = |ice: &[&str], turn: &[&str]| {
        let urls = |texts: &[&str]| texts.iter().map(|url| url.parse().unwrap()).collect();
        let mut config = anteroom::Config::default();
        config.webrtc.ice_server = urls(ice);
        config.webrtc.turn_url = urls(turn);
        config.webrtc.turn_secret_file = (!turn.is_empty()).then(|| "secret".into());
        config.check().err()
    };
    assert_eq!(check(&["stun:a.example"], &["turn:b.example"]), None);
    let error = check(&["turn:a.example"], &[]).unwrap();
    assert!(
        error.starts_with("browsers want a name and a password for a TURN server"),
        "{error}"
    );
    for url in ["stun:b.example", "turn:name:password@b.example"] {
        let error = check(&[], &[url]).unwrap();
        assert_eq!(
            error,
            "--turn-url must be a turn: or turns: URL without name and password"
        );
    }
}
