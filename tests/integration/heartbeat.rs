//! Clients that do not answer pings. The unit tests of the heartbeat test its ticks, without a clock.

use crate::support::{Client, Raw, RawFrame, TestServer, frame};

const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

#[tokio::test]
async fn a_client_that_answers_no_ping_is_closed_and_others_are_not() {
    let server = TestServer::with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 2;
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut silent = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();

    let timing_out = async {
        assert_eq!(
            silent.read_any_frame().await,
            RawFrame {
                first: PING,
                payload: vec![]
            }
        );
        // A message is not a pong: it does not keep the session.
        silent
            .write(frame(0x81, br#"{"type":"ping","receiver":"server"}"#))
            .await;
        assert_eq!(
            silent.read_close().await,
            (1001, "no pong within 2 s".into())
        );
    };
    // tungstenite answers pings while it reads.
    tokio::join!(timing_out, alice.expect_left(&id));
    alice.expect_quiet().await;
}

#[tokio::test]
async fn pings_repeat_while_the_client_answers_them() {
    let server = TestServer::with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
    })
    .await;
    let mut raw = Raw::join(&server, "tea").await;
    for _ in 0..4 {
        assert_eq!(
            raw.read_any_frame().await,
            RawFrame {
                first: PING,
                payload: vec![]
            }
        );
        raw.write(frame(PONG, b"")).await;
    }
}
