//! Refusals: what a client that offers `anteroom.v1` gets in place of an HTTP status.

use std::num::NonZeroU32;

use anteroom::Config;
use tokio::io::AsyncReadExt;

use crate::support::{Answer, Client, Raw, TestServer, frame, handshake_with, within_deadline};

/// The header that offers the subprotocol.
const OFFER: &str = "Sec-WebSocket-Protocol: anteroom.v1\r\n";

/// The HTTP answer to a request that is refused.
async fn refused_by_status(server: &TestServer, path: &str, headers: &str) -> Answer {
    let refused = Raw::upgrade(server, path, headers).await;
    refused.err().expect("the request is refused")
}

/// The code and the reason of the Close frame with which a request is refused. Completes the closing
/// handshake.
async fn refused_by_close(server: &TestServer, path: &str, headers: &str) -> (u16, String) {
    let headers = format!("{OFFER}{headers}");
    let upgraded = Raw::upgrade(server, path, &headers).await;
    let mut raw = upgraded.expect("the request is upgraded");
    let close = raw.read_close().await;
    raw.write(frame(0x88, &close.0.to_be_bytes())).await;
    assert_eq!(raw.read_to_end().await, b"");
    close
}

/// The delay that a client reads from a reason, and the reason without it.
fn split_retry(reason: &str) -> (&str, u64) {
    let (message, retry) = reason.split_once(" (retry in ").unwrap();
    (
        message,
        retry.strip_suffix(" ms)").unwrap().parse().unwrap(),
    )
}

/// Requests for a session are refused in both ways, and counted by their status.
pub async fn expect_refusal(server: &TestServer, path: &str, headers: &str, status: u16) {
    let upgrades = format!("anteroom_upgrades_total{{status=\"{status}\"}}");
    let code = 4000 + status;
    let closes = format!("anteroom_closes_total{{code=\"{code}\"}}");
    let before = [&*upgrades, &closes, "anteroom_joins_total"].map(|series| server.count(series));
    let answer = refused_by_status(server, path, headers).await;
    assert_eq!(answer.status, status);
    let (closed, reason) = refused_by_close(server, path, headers).await;
    assert_eq!(closed, code);
    match status {
        429 | 503 => {
            let (message, delay_ms) = split_retry(&reason);
            assert_eq!(message, answer.body);
            let retry_after = answer.head.split_once("\r\nretry-after: ").unwrap().1;
            let seconds: u64 = retry_after.lines().next().unwrap().parse().unwrap();
            assert!(
                (1000 * seconds..2000 * seconds).contains(&delay_ms),
                "{reason}"
            );
        }
        _ => assert_eq!(reason, answer.body),
    }
    assert_eq!(server.count(&upgrades), before[0] + 2);
    assert_eq!(server.count(&closes), before[1] + 1);
    assert_eq!(server.count("anteroom_joins_total"), before[2]);
}

#[tokio::test]
async fn another_origin_is_refused_with_4403() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    for headers in ["Origin: https://evil.example\r\n", ""] {
        expect_refusal(&server, "/room/tea", headers, 403).await;
    }
}

#[tokio::test]
async fn a_full_room_is_refused_with_4503_and_a_delay() {
    let server =
        TestServer::with(|config| config.limits.max_room_sessions = NonZeroU32::new(1)).await;
    let mut alice = Client::join(&server, "tea").await;
    expect_refusal(&server, "/room/tea", "", 503).await;
    alice.expect_quiet().await;
}

#[tokio::test]
async fn an_address_with_too_many_sessions_is_refused_with_4429_and_a_delay() {
    let server =
        TestServer::with(|config| config.limits.max_address_sessions = NonZeroU32::new(1)).await;
    let _alice = Client::join(&server, "tea").await;
    expect_refusal(&server, "/room/coffee", "", 429).await;
    assert_eq!(server.anteroom.rooms(), 1);
}

#[tokio::test]
async fn an_address_that_joins_too_often_is_refused_with_4429_and_a_delay() {
    let server =
        TestServer::with(|config| config.limits.joins_per_second = NonZeroU32::new(1)).await;
    let (code, reason) = within_deadline("a refusal", async {
        loop {
            let mut raw = Raw::upgrade(&server, "/room/tea", OFFER).await.unwrap();
            // The next frame of a session is the pong, that of a refused client the Close frame.
            raw.write(frame(0x89, b"")).await;
            let next = raw.read_frame().await;
            if next.first == 0x88 {
                let code = u16::from_be_bytes([next.payload[0], next.payload[1]]);
                break (code, String::from_utf8(next.payload[2..].into()).unwrap());
            }
        }
    })
    .await;
    assert_eq!(code, 4429);
    let (message, delay_ms) = split_retry(&reason);
    assert_eq!(
        message,
        "your address opens sessions too often: wait, then try again"
    );
    assert!((1000..2000).contains(&delay_ms), "{reason}");
}

#[tokio::test]
async fn refused_clients_get_different_delays() {
    let server =
        TestServer::with(|config| config.limits.max_room_sessions = NonZeroU32::new(1)).await;
    let _alice = Client::join(&server, "tea").await;
    let mut delays = Vec::new();
    for _ in 0..5 {
        let (_, reason) = refused_by_close(&server, "/room/tea", "").await;
        delays.push(split_retry(&reason).1);
    }
    delays.dedup();
    assert!(delays.len() > 1, "{delays:?}");
}

#[tokio::test]
async fn a_503_that_concerns_the_server_stays_an_http_status() {
    let full = |change: fn(&mut Config)| TestServer::with(change);
    let server_full = full(|config| config.limits.max_sessions = Some(1)).await;
    let rooms_full = full(|config| config.limits.max_rooms = NonZeroU32::new(1)).await;
    // The address and the room are full, too, but a draining server says that it drains.
    let draining = full(|config| {
        config.limits.max_room_sessions = NonZeroU32::new(1);
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    for (server, path, message) in [
        (server_full, "/room/tea", "the server is full"),
        (rooms_full, "/room/coffee", "the server has too many rooms"),
        (draining, "/room/tea", "this server accepts no new sessions"),
    ] {
        let _alice = Client::join(&server, "tea").await;
        if message.starts_with("this server") {
            server.anteroom.drain();
        }
        let answer = refused_by_status(&server, path, OFFER).await;
        assert_eq!(answer.status, 503);
        assert!(answer.body.starts_with(message), "{}", answer.body);
    }
}

#[tokio::test]
async fn an_invalid_handshake_stays_an_http_status() {
    let server = TestServer::start().await;
    let answer = refused_by_status(&server, "/room/%00", OFFER).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn refused_connections_do_not_evade_the_connection_quota() {
    let server =
        TestServer::with(|config| config.limits.max_address_sessions = NonZeroU32::new(1)).await;
    let _alice = Client::join(&server, "tea").await;
    // These clients do not close their sides.
    let mut refused = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::connect(&server).await;
        if raw
            .try_write(handshake_with("/room/tea", OFFER))
            .await
            .is_ok()
        {
            refused.push(raw);
        }
    }
    // The server cuts off all but a few at once, and these when they have not closed in time.
    for raw in &mut refused {
        let _ = within_deadline("the end", raw.stream.read_to_end(&mut Vec::new())).await;
    }
    let closed = server.count("anteroom_closes_total{code=\"4429\"}");
    assert!((1..150).contains(&closed), "{closed}");
    // Then the address has its connections back.
    within_deadline("a refusal that is read", async {
        loop {
            let mut raw = Raw::connect(&server).await;
            let request = handshake_with("/room/tea", OFFER);
            let mut status = [0; 12];
            if raw.try_write(request).await.is_ok()
                && raw.stream.read_exact(&mut status).await.is_ok()
            {
                break assert_eq!(&status, b"HTTP/1.1 101");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_does_not_outlive_the_server() {
    let mut server = TestServer::with(|config| {
        config.limits.max_room_sessions = NonZeroU32::new(1);
        config.stopping.drain_seconds = 1;
    })
    .await;
    let alice = Client::join(&server, "tea").await;
    let mut refused = Raw::upgrade(&server, "/room/tea", OFFER).await.unwrap();
    assert_eq!(refused.read_close().await.0, 4503);
    server.stop();
    drop(alice);
    server.stopped().await;
}

#[tokio::test]
async fn a_client_that_cannot_resume_is_refused_like_a_new_one() {
    let server =
        TestServer::with(|config| config.limits.max_room_sessions = NonZeroU32::new(1)).await;
    let mut alice = Client::connect(server.address, "/room/tea").await;
    let token = alice.ask_for_resume_token().await;
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    // Nobody can have received so many messages.
    let path = format!("/room/tea?resume={token}&received=1000");
    expect_refusal(&server, &path, "", 503).await;
    // The session that was asked for is not harmed.
    let path = format!("/room/tea?resume={token}&received=1");
    let mut alice = Client::connect(server.address, &path).await;
    assert_eq!(alice.next().await["type"], "resumed");
}
