//! RFC 6455: fragments, control frames, violations, close codes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Client, Raw, RawFrame, TestServer, frame, text, within_deadline};

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

fn ping_request(data: &str) -> String {
    format!(r#"{{"type":"ping","receiver":"server","data":{data}}}"#)
}

/// Sends the bytes of each case to a new session: the server must close that session with the case's code,
/// and no other session may notice anything but the join and the leave.
async fn expect_closes(cases: &[(&str, Vec<u8>, u16)]) {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for (name, bytes, code) in cases {
        let mut raw = Raw::join(&server, "tea").await;
        let id = bob.next().await["sender"].as_str().unwrap().to_owned();
        alice.expect_new(&id).await;
        // The server must not read what follows the violation.
        raw.write([&bytes[..], &text(r#"{"type":"late","receiver":"all"}"#)].concat())
            .await;
        assert_eq!(raw.read_close().await.0, *code, "{name}");
        alice.expect_left(&id).await;
        bob.expect_left(&id).await;
    }
    bob.send(serde_json::json!({"type": "fine", "receiver": "all"}))
        .await;
    assert_eq!(alice.next().await["type"], "fine");
}

#[tokio::test]
async fn a_protocol_violation_closes_with_1002() {
    let unmasked = [&[FIN | TEXT, 2][..], b"{}"].concat();
    let length = |bits: [u8; 8]| [&[FIN | TEXT, 0x80 | 127][..], &bits, &[0; 4]].concat();
    let second_start = [frame(TEXT, b"{"), frame(FIN | TEXT, b"}")].concat();
    let binary_inside = [frame(TEXT, b"{"), frame(FIN | BINARY, b"}")].concat();
    expect_closes(&[
        ("unmasked", unmasked, 1002),
        ("RSV1", frame(FIN | 0x40 | TEXT, b"{}"), 1002),
        ("RSV2", frame(FIN | 0x20 | TEXT, b"{}"), 1002),
        ("RSV3", frame(FIN | 0x10 | PING, b""), 1002),
        ("opcode 3", frame(FIN | 0x3, b""), 1002),
        ("opcode 7", frame(FIN | 0x7, b""), 1002),
        ("opcode 11", frame(FIN | 0xB, b""), 1002),
        ("opcode 15", frame(FIN | 0xF, b""), 1002),
        ("a ping of 126 bytes", frame(FIN | PING, &[0; 126]), 1002),
        ("a pong of 126 bytes", frame(FIN | PONG, &[0; 126]), 1002),
        ("a fragmented ping", frame(PING, b""), 1002),
        (
            "a continuation of nothing",
            frame(FIN | CONTINUATION, b"{}"),
            1002,
        ),
        ("a message inside a message", second_start, 1002),
        ("a binary message inside a message", binary_inside, 1002),
        (
            "a length of 2^63",
            length([0x80, 0, 0, 0, 0, 0, 0, 0]),
            1002,
        ),
        ("a length of 2^64 - 1", length([0xFF; 8]), 1002),
        ("5 as a long length", length([0, 0, 0, 0, 0, 0, 0, 5]), 1002),
        (
            "5 as a medium length",
            [&[FIN | TEXT, 0x80 | 126, 0, 5][..], &[0; 4]].concat(),
            1002,
        ),
        ("a Close of 1 byte", frame(FIN | CLOSE, &[3]), 1002),
        (
            "a Close of 126 bytes",
            frame(FIN | CLOSE, &[b'a'; 126]),
            1002,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_reserved_close_code_is_a_protocol_violation() {
    let codes = [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ];
    let cases: Vec<_> = codes
        .map(|code: u16| ("code", frame(FIN | CLOSE, &code.to_be_bytes()), 1002))
        .into();
    expect_closes(&cases).await;
}

#[tokio::test]
async fn invalid_utf8_and_long_messages_close_with_their_own_codes() {
    let split_invalid = [
        frame(TEXT, b"\xF0\x9F"),
        frame(FIN | CONTINUATION, b"\x28\x8C"),
    ]
    .concat();
    let length = |bits: [u8; 8]| [&[FIN | TEXT, 0x80 | 127][..], &bits, &[0; 4]].concat();
    let fragments = [
        frame(TEXT, &[b' '; 40_000]),
        frame(CONTINUATION, &[b' '; 25_537]),
    ]
    .concat();
    expect_closes(&[
        ("invalid UTF-8", frame(FIN | TEXT, b"{\xFF}"), 1007),
        ("UTF-8 cut off", frame(FIN | TEXT, b"\xC3"), 1007),
        (
            "a surrogate as UTF-8",
            frame(FIN | TEXT, b"\xED\xA0\x80"),
            1007,
        ),
        (
            "over the last code point",
            frame(FIN | TEXT, b"\xF4\x90\x80\x80"),
            1007,
        ),
        ("overlong", frame(FIN | TEXT, b"\xC0\x80"), 1007),
        ("invalid UTF-8 split over fragments", split_invalid, 1007),
        (
            "a Close reason that is not UTF-8",
            frame(FIN | CLOSE, b"\x03\xE8\xFF"),
            1007,
        ),
        (
            "a length of 2^62",
            length([0x40, 0, 0, 0, 0, 0, 0, 0]),
            1009,
        ),
        ("65,537 announced", length([0, 0, 0, 0, 0, 1, 0, 1]), 1009),
        ("65,537 in fragments", fragments, 1009),
    ])
    .await;
}

#[tokio::test]
async fn invalid_utf8_closes_before_the_frame_is_complete() {
    let server = TestServer::start().await;
    // Neither the frame nor the message ever ends.
    let mut raw = Raw::join(&server, "tea").await;
    raw.write(&frame(TEXT, b"\xF4\x90 and much more that never comes")[..8])
        .await;
    assert_eq!(raw.read_close().await.0, 1007);
    let mut raw = Raw::join(&server, "tea").await;
    raw.write(frame(TEXT, b"ok so far \xED\xA0")).await;
    assert_eq!(raw.read_close().await.0, 1007);
}

#[tokio::test]
async fn a_message_may_arrive_in_fragments_with_control_frames_between() {
    let server = TestServer::start().await;
    let mut raw = Raw::join(&server, "tea").await;
    let message = ping_request(r#""é🍵""#);
    let bytes = message.as_bytes();
    // Every byte is a fragment, which also splits characters.
    raw.write(frame(TEXT, &bytes[..1])).await;
    for (number, byte) in bytes[1..].iter().enumerate() {
        raw.write(frame(CONTINUATION, &[*byte])).await;
        raw.write(frame(FIN | PING, &[number as u8])).await;
        raw.write(frame(FIN | PONG, b"unsolicited")).await;
        raw.write(frame(CONTINUATION, b"")).await;
    }
    raw.write(frame(FIN | CONTINUATION, b"")).await;
    for number in 0..bytes.len() - 1 {
        let pong = RawFrame {
            first: FIN | PONG,
            payload: vec![number as u8],
        };
        assert_eq!(raw.read_frame().await, pong);
    }
    assert_eq!(raw.read_message().await["data"], "é🍵");
}

#[tokio::test]
async fn a_frame_may_arrive_byte_by_byte() {
    let server = TestServer::start().await;
    let mut raw = Raw::join(&server, "tea").await;
    let long = format!("\"{}\"", "l".repeat(300));
    let frames = [
        text(ping_request("1")),
        frame(FIN | PING, b"in pieces"),
        text(ping_request(&long)),
        frame(FIN | TEXT, b""),
    ];
    for byte in frames.concat() {
        raw.write([byte]).await;
    }
    assert_eq!(raw.read_message().await["data"], 1);
    let pong = RawFrame {
        first: FIN | PONG,
        payload: b"in pieces".into(),
    };
    assert_eq!(raw.read_frame().await, pong);
    assert_eq!(
        raw.read_message().await["data"].as_str().unwrap().len(),
        300
    );
    assert_eq!(raw.read_message().await["data"]["code"], "bad_message");
}

#[tokio::test]
async fn a_client_that_reads_gets_more_answers_at_once_than_its_outbox_holds() {
    // The answers are ten times what the outbox holds for a client that does not read.
    let server = TestServer::with(|config| config.limits.outbox_bytes = 200_000).await;
    let raw = Raw::join(&server, "tea").await;
    let data = format!("\"{}\"", "p".repeat(400));
    let packet = text(ping_request(&data)).repeat(4000);
    let (mut read, mut write) = raw.stream.into_split();
    let writing = tokio::spawn(async move { write.write_all(&packet).await });
    let mut answers = 0;
    let mut buffer = vec![0; 1 << 20];
    let mut rest = Vec::new();
    while answers < 4000 {
        let count = within_deadline("answers", read.read(&mut buffer))
            .await
            .unwrap();
        assert!(count > 0, "closed after {answers} answers");
        rest.extend_from_slice(&buffer[..count]);
        answers += rest
            .windows(13)
            .filter(|bytes| bytes == br#""type":"pong""#)
            .count();
        // A pong that is not counted yet begins in the last twelve bytes.
        rest.drain(..rest.len().saturating_sub(12));
    }
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_reads_gets_a_burst_larger_than_its_outbox() {
    // Both clients read as fast as they can. The burst is many times what the outbox holds.
    let server = TestServer::with(|config| config.limits.outbox_bytes = 200_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = Raw::join(&server, "tea").await;
    alice.next().await;
    let message = text(format!(
        r#"{{"type":"x","receiver":"all","data":"{}"}}"#,
        "b".repeat(60_000)
    ));
    let (mut read, mut write) = bob.stream.into_split();
    let writing = tokio::spawn(async move {
        write.write_all(&message.repeat(50)).await.unwrap();
        let mut end = Vec::new();
        read.read_to_end(&mut end).await
    });
    for _ in 0..50 {
        assert_eq!(alice.next().await["type"], "x");
    }
    alice.expect_quiet().await;
    writing.abort();
}

#[tokio::test]
async fn a_close_is_answered_with_its_code_and_the_connection_ends() {
    let server = TestServer::start().await;
    let bodies: [&[u8]; 4] = [
        b"",
        &1000u16.to_be_bytes(),
        b"\x03\xE9going",
        &4321u16.to_be_bytes(),
    ];
    for body in bodies {
        let mut raw = Raw::join(&server, "tea").await;
        raw.write(text(ping_request("1"))).await;
        raw.write(frame(FIN | CLOSE, body)).await;
        // A request before the close is answered before the close.
        assert_eq!(raw.read_message().await["data"], 1);
        let code = body.get(..2).unwrap_or_default().to_owned();
        assert_eq!(
            raw.read_frame().await,
            RawFrame {
                first: FIN | CLOSE,
                payload: code
            }
        );
        assert_eq!(raw.read_to_end().await, b"");
    }
}

#[tokio::test]
async fn data_after_a_close_is_ignored() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut raw = Raw::join(&server, "tea").await;
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    let late = text(r#"{"type":"late","receiver":"all"}"#);
    raw.write([frame(FIN | CLOSE, &1000u16.to_be_bytes()), late.clone()].concat())
        .await;
    alice.expect_left(&id).await;
    raw.write(late).await;
    assert_eq!(raw.read_close().await.0, 1000);
    alice.expect_quiet().await;
}
