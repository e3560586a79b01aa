//! Joining and leaving: the upgrade, room names, `new` and `close`.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::support::{
    Client, File, Raw, TestServer, eventually, frame, handshake, in_seconds, text,
};
#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
use crate::tokens::with_secret;

#[tokio::test]
async fn the_others_in_a_room_learn_of_each_join_and_leave() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let carol = Client::join(&server, "tea").await;
    alice.expect_new(&carol.id).await;
    bob.expect_new(&carol.id).await;

    let id = carol.id.clone();
    carol.leave().await;
    alice.expect_left(&id).await;
    bob.expect_left(&id).await;
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

#[tokio::test]
async fn a_lost_connection_is_a_leave_whether_closed_reset_or_cut_in_a_frame() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;

    let ended = Client::join(&server, "tea").await;
    alice.expect_new(&ended.id).await;
    let id = ended.id.clone();
    drop(ended.into_raw());
    alice.expect_left(&id).await;

    let reset = Client::join(&server, "tea").await;
    alice.expect_new(&reset.id).await;
    let id = reset.id.clone();
    let reset = reset.into_raw();
    reset.stream.set_zero_linger().unwrap();
    drop(reset);
    alice.expect_left(&id).await;

    let mut cut_in_a_frame = Client::join(&server, "tea").await;
    alice.expect_new(&cut_in_a_frame.id).await;
    cut_in_a_frame.expect_quiet().await;
    let id = cut_in_a_frame.id.clone();
    let mut raw = cut_in_a_frame.into_raw();
    raw.write(&text("{\"type\":")[..9]).await;
    drop(raw);
    alice.expect_left(&id).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn rooms_do_not_see_each_other() {
    let server = TestServer::start().await;
    let mut tea = Client::join(&server, "tea").await;
    let mut coffee = Client::join(&server, "coffee").await;
    tea.expect_quiet().await;
    tea.send(json!({"type": "chat", "receiver": coffee.id}))
        .await;
    tea.expect_error("unknown_receiver").await;
    tea.send(json!({"type": "chat", "receiver": "all"})).await;
    tea.expect_error("empty_room").await;
    coffee.expect_quiet().await;
    let id = coffee.id.clone();
    coffee.leave().await;
    assert_ne!(id, tea.id);
    tea.expect_quiet().await;
}

#[tokio::test]
async fn a_room_without_a_name_is_the_lobby() {
    let server = TestServer::start().await;
    let mut unnamed = Client::connect(server.address, "/room").await;
    unnamed
        .send(json!({"type": "hello", "receiver": "server"}))
        .await;
    assert_eq!(unnamed.next().await["data"]["room"], "lobby");
    let lobby = Client::join(&server, "lobby").await;
    unnamed.expect_new(&lobby.id).await;
}

#[tokio::test]
async fn a_room_name_is_percent_decoded_and_may_have_any_character_but_controls() {
    let server = TestServer::start().await;
    let longest = "n".repeat(128);
    let names = [
        ("a%20b", "a b"),
        ("%2F", "/"),
        ("...", "..."),
        (".a", ".a"),
        ("%2E.%2F", "../"),
        ("caf%C3%A9", "café"),
        ("%F0%9F%8D%B5", "🍵"),
        ("a+b", "a+b"),
        ("%25", "%"),
        (longest.as_str(), longest.as_str()),
    ];
    for (segment, name) in names {
        let mut client = Client::connect(server.address, &format!("/room/{segment}")).await;
        client
            .send(json!({"type": "hello", "receiver": "server"}))
            .await;
        assert_eq!(client.next().await["data"]["room"], name);
    }
    // Two encodings of a name are the same room.
    let mut plain = Client::join(&server, "cafe").await;
    let encoded = Client::join(&server, "c%61fe").await;
    plain.expect_new(&encoded.id).await;
}

#[tokio::test]
async fn an_invalid_room_name_is_rejected_with_the_reason() {
    let server = TestServer::start().await;
    let too_long = "n".repeat(129);
    let too_long_decoded = "%C3%A9".repeat(65);
    let names = [
        ("", "1 to 128 bytes"),
        (too_long.as_str(), "1 to 128 bytes"),
        (too_long_decoded.as_str(), "1 to 128 bytes"),
        ("%00", "control characters"),
        ("a%0Ab", "control characters"),
        ("%7F", "control characters"),
        ("%C2%85", "control characters"),
        (".", "must not be . or .."),
        ("..", "must not be . or .."),
        ("%2e", "must not be . or .."),
        (".%2E", "must not be . or .."),
        ("%FF", "UTF-8"),
        ("%C3", "UTF-8"),
        ("%zz", "hexadecimal"),
        ("100%", "hexadecimal"),
    ];
    for (name, reason) in names {
        let mut raw = Raw::connect(&server).await;
        let request = handshake(&format!("/room/{name}"));
        raw.write(request.replace("Connection: ", "Connection: close, "))
            .await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{name}: {head}");
        let body = String::from_utf8(raw.read_to_end().await).unwrap();
        assert!(
            body.contains(reason) && body.lines().count() == 1,
            "{name}: {body}"
        );
    }
    assert_eq!(server.anteroom.sessions(), 0);
}

#[tokio::test]
async fn only_the_subprotocol_anteroom_v1_is_accepted_if_offered() {
    let server = TestServer::start().await;
    let offers = [
        ("Sec-WebSocket-Protocol: anteroom.v1\r\n", true),
        ("Sec-WebSocket-Protocol: chat, anteroom.v1\r\n", true),
        (
            "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: anteroom.v1\r\n",
            true,
        ),
        ("Sec-WebSocket-Protocol: chat\r\n", false),
        ("Sec-WebSocket-Protocol: ANTEROOM.V1\r\n", false),
        ("", false),
    ];
    for (offer, is_accepted) in offers {
        let mut raw = Raw::connect(&server).await;
        raw.write(handshake("/room").replace("\r\n\r\n", &format!("\r\n{offer}\r\n")))
            .await;
        let head = raw.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
        assert_eq!(
            head.contains("\r\nsec-websocket-protocol: anteroom.v1\r\n"),
            is_accepted,
            "{offer}"
        );
        assert_eq!(head.contains("sec-websocket-protocol"), is_accepted);
    }
}

#[tokio::test]
async fn messages_in_the_packet_of_the_handshake_are_not_lost() {
    let server = TestServer::start().await;
    let ping = |data| format!(r#"{{"type":"ping","receiver":"server","data":{data}}}"#);
    let mut raw = Raw::connect(&server).await;
    let mut packet = handshake("/room").into_bytes();
    packet.extend(text(ping(1)));
    packet.extend(text(ping(2)));
    let third = text(ping(3));
    packet.extend(&third[..5]);
    raw.write(packet).await;
    raw.read_head().await;
    assert_eq!(raw.read_message().await["data"], 1);
    assert_eq!(raw.read_message().await["data"], 2);
    raw.write(&third[5..]).await;
    assert_eq!(raw.read_message().await["data"], 3);

    // A Close frame may be in that packet.
    let mut raw = Raw::connect(&server).await;
    let mut packet = handshake("/room").into_bytes();
    packet.extend(text(ping(4)));
    packet.extend(frame(0x88, &1000u16.to_be_bytes()));
    raw.write(packet).await;
    raw.read_head().await;
    assert_eq!(raw.read_message().await["data"], 4);
    assert_eq!(raw.read_close().await.0, 1000);
}

#[tokio::test]
async fn a_room_ends_with_its_last_session() {
    let server = TestServer::start().await;
    let first = Client::join(&server, "tea").await;
    let second = Client::join(&server, "tea").await;
    assert_eq!(
        (server.anteroom.rooms(), server.anteroom.sessions()),
        (1, 2)
    );
    first.leave().await;
    eventually("one leave", || server.anteroom.sessions() == 1).await;
    assert_eq!(server.anteroom.rooms(), 1);
    second.leave().await;
    eventually("the last leave", || server.anteroom.rooms() == 0).await;
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn a_room_name_cannot_forge_lines_of_the_log() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .env("RUST_LOG", "anteroom=debug")
        .stderr(std::process::Stdio::piped());
    let mut server = Program::run(command).await;
    let mut log = server.log();
    // The name has a line separator and a right-to-left override.
    let path = "/room/tea%E2%80%A8INFO%20forged%E2%80%AE%5C";
    let mut client = Client::connect(server.address, path).await;
    let room = client.hello().await["data"]["room"].clone();
    assert_eq!(room, "tea\u{2028}INFO forged\u{202E}\\");
    let line = log.find(" joined ").await;
    assert!(
        line.ends_with(r" joined tea\u{2028}INFO forged\u{202e}\\"),
        "{line:?}"
    );
}

/// Percent-encodes every byte, with upper-case digits.
fn percent_encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(all(feature = "cli", feature = "tls", feature = "tokens"))]
#[tokio::test]
async fn any_part_of_a_query_may_be_percent_encoded() {
    let secret = "a-secret-of-this-test-that-has-more-than-32-bytes";
    let file = File::new("encoded", format!("{secret}\n"));
    let server = TestServer::with(|config| with_secret(config, &file)).await;
    let key = EncodingKey::from_secret(secret.as_bytes());
    let claims = json!({"exp": in_seconds(600)});
    let token = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    for query in [
        // Swift's URLComponents encode full stops.
        format!("token={}", token.replace('.', "%2E")),
        format!("token={}", percent_encode(&token)),
        format!("{}={token}", percent_encode("token")),
        format!("other=%&token=&token={token}"),
    ] {
        let mut client = Client::connect(server.address, &format!("/room?{query}")).await;
        client.expect_quiet().await;
    }
    for query in ["token=%", "token=%zz", "token=%FF%C3", "%FF=%FF"] {
        let rejected = Raw::upgrade(&server, &format!("/room?{query}"), "").await;
        assert_eq!(rejected.err().unwrap().status, 401, "{query}");
    }
    // An empty token counts as no token.
    for query in ["token=", "token", "token=&token="] {
        let path = format!("/room?{query}");
        let rejected = Raw::upgrade(&server, &path, "").await.err().unwrap();
        assert!(
            rejected.body.starts_with("a token is required: "),
            "{rejected:?}"
        );
        let header = format!("Authorization: Bearer {token}\r\n");
        assert!(
            Raw::upgrade(&server, &path, &header).await.is_ok(),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_percent_encoded_query_resumes_a_session() {
    let server = TestServer::start().await;
    let mut client = Client::connect(server.address, "/room/tea").await;
    let token = client.ask_for_resume_token().await;
    drop(client.into_raw());
    server.expect_suspended(1).await;
    // Lower-case digits are as valid as the upper-case ones above.
    let token = percent_encode(&token).to_lowercase();
    let path = format!("/room/tea?res%75me={token}&received=%31");
    let mut client = Client::connect(server.address, &path).await;
    assert_eq!(client.next().await["type"], "resumed");

    // An empty `resume` asks for a new session.
    for query in [
        "resume=",
        "resume=&received=",
        "resume",
        "resume=&received=5",
    ] {
        let mut client = Client::connect(server.address, &format!("/room/milk?{query}")).await;
        client.expect_quiet().await;
        client.leave().await;
    }
}
