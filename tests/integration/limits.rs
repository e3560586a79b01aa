//! Limits: origins, quotas of sessions and rooms, rate limits, headers, time, open files; and the log.

use std::{
    num::NonZeroU32,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    process::Command,
    time::interval,
};

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::support::{
    Client, Raw, RawFrame, TestServer, eventually, frame, handshake, handshake_with, text,
    within_deadline,
};

#[tokio::test]
async fn only_allowed_origins_can_join() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = ["https://example.org", "http://localhost:3000"]
            .map(|origin| origin.parse().unwrap())
            .into();
    })
    .await;
    for (origin, status) in [
        ("Origin: https://example.org\r\n", "101"),
        ("origin: http://localhost:3000\r\n", "101"),
        ("", "403"),
        ("Origin: null\r\n", "403"),
        ("Origin: http://example.org\r\n", "403"),
        ("Origin: https://example.org:444\r\n", "403"),
        ("Origin: https://example.org.evil.example\r\n", "403"),
        (
            "Origin: https://evil.example#https://example.org\r\n",
            "403",
        ),
        (
            "Origin: https://evil.example\r\nOrigin: https://example.org\r\n",
            "403",
        ),
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.write(handshake_with("/room/tea", origin)).await;
        let head = raw.read_head().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{origin}: {head}"
        );
    }
    // The origin matters only for joining: other requests are answered.
    let mut raw = Raw::connect(&server).await;
    raw.write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn over_the_session_limit_an_upgrade_gets_503_until_a_slot_is_free() {
    let server = TestServer::with(|config| config.limits.max_sessions = Some(2)).await;
    let first = Client::join(&server, "tea").await;
    let mut second = Client::join(&server, "coffee").await;
    let mut rejected = Raw::connect(&server).await;
    rejected.write(handshake("/room/tea")).await;
    let head = rejected.read_head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert!(head.contains("\r\nretry-after: 5\r\n"), "{head}");
    second.expect_quiet().await;

    first.leave().await;
    eventually("the leave", || server.anteroom.sessions() == 1).await;
    join_when_possible(&server, "/room/tea", "").await;
}

/// Joins as soon as the server accepts: the task of a session releases its slot at its very end.
async fn join_when_possible(server: &TestServer, path: &str, headers: &str) -> Raw {
    within_deadline("a free slot", async {
        loop {
            if let Ok(raw) = Raw::upgrade(server, path, headers).await {
                return raw;
            }
        }
    })
    .await
}

/// How often the server has enforced a limit.
fn limit_hits(server: &TestServer, limit: &str) -> u64 {
    server.count(&format!("anteroom_limits_hit_total{{limit=\"{limit}\"}}"))
}

#[tokio::test]
async fn a_full_room_rejects_further_sessions() {
    let server =
        TestServer::with(|config| config.limits.max_room_sessions = NonZeroU32::new(2)).await;
    let first = Client::join(&server, "tea").await;
    let _second = Client::join(&server, "tea").await;
    let rejected = Raw::upgrade(&server, "/room/tea", "").await.err().unwrap();
    assert_eq!(
        (rejected.status, &*rejected.body),
        (503, "the room is full: try again later")
    );
    assert!(
        rejected.head.contains("\r\nretry-after: 5\r\n"),
        "{}",
        rejected.head
    );
    assert_eq!(limit_hits(&server, "max-room-sessions"), 1);
    // Other rooms are not full.
    let _third = Client::join(&server, "coffee").await;
    first.leave().await;
    join_when_possible(&server, "/room/tea", "").await;
}

#[tokio::test]
async fn over_the_room_limit_no_further_room_opens() {
    let server = TestServer::with(|config| config.limits.max_rooms = NonZeroU32::new(2)).await;
    let first = Client::join(&server, "tea").await;
    let _second = Client::join(&server, "coffee").await;
    let rejected = Raw::upgrade(&server, "/room/milk", "").await.err().unwrap();
    assert_eq!(rejected.status, 503);
    assert!(
        rejected.body.starts_with("the server has too many rooms"),
        "{}",
        rejected.body
    );
    assert!(
        rejected.head.contains("\r\nretry-after: 5\r\n"),
        "{}",
        rejected.head
    );
    assert_eq!(limit_hits(&server, "max-rooms"), 1);
    // Open rooms still accept sessions.
    let _third = Client::join(&server, "coffee").await;
    first.leave().await;
    join_when_possible(&server, "/room/milk", "").await;
    assert_eq!(server.anteroom.rooms(), 2);
}

#[tokio::test]
async fn an_address_over_its_session_quota_is_rejected() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(2);
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let (here, near, far) = ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1");
    let first = Raw::upgrade(&server, "/room/tea", &from(here))
        .await
        .unwrap();
    let _second = Raw::upgrade(&server, "/room/coffee", &from(near))
        .await
        .unwrap();
    for address in [here, near, "2001:db8::3"] {
        let rejected = Raw::upgrade(&server, "/room/tea", &from(address)).await;
        let rejected = rejected.err().unwrap();
        assert_eq!(rejected.status, 429);
        assert_eq!(
            rejected.body,
            "your address has too many sessions: close one, then try again"
        );
        assert!(
            rejected.head.contains("\r\nretry-after: 5\r\n"),
            "{}",
            rejected.head
        );
    }
    assert_eq!(limit_hits(&server, "max-address-sessions"), 3);
    // Other addresses are not limited, and no client can forge another address.
    let _third = Raw::upgrade(&server, "/room/tea", &from(far))
        .await
        .unwrap();
    for forged in [
        format!("{far}, {here}"),
        format!("{here}\r\nX-Forwarded-For: {near}"),
    ] {
        assert!(
            Raw::upgrade(&server, "/room/tea", &from(&forged))
                .await
                .is_err(),
            "{forged}"
        );
    }
    drop(first);
    join_when_possible(&server, "/room/tea", &from(here)).await;
}

#[tokio::test]
async fn an_address_over_its_connection_quota_is_disconnected() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..34 {
        held.push(Raw::connect(&server).await);
    }
    let mut rejected = Raw::connect(&server).await;
    assert_eq!(rejected.read_to_end().await, b"");
    // The server still waits for the requests of the others, and serves another address.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let mut other = Raw { stream };
    other.write(handshake("/room/tea")).await;
    assert!(other.read_head().await.starts_with("HTTP/1.1 101 "));
    held[0].write(handshake("/room/tea")).await;
    assert!(held[0].read_head().await.starts_with("HTTP/1.1 101 "));
    // A connection that has become a session no longer counts.
    within_deadline("a free connection", async {
        loop {
            let mut raw = Raw::connect(&server).await;
            let _ = raw
                .try_write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
                .await;
            let mut first = [0; 12];
            if raw.stream.read_exact(&mut first).await.is_ok() {
                assert_eq!(&first, b"HTTP/1.1 200");
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn repeated_takeovers_do_not_evade_the_connection_quota() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let mut session = Client::connect(server.address, "/room/tea").await;
    let token = session.ask_for_resume_token().await;
    let path = format!("/room/tea?resume={token}&received=1");
    // Each connection takes the session over from the one before, which does not close its side.
    let mut taken_over = vec![session.into_raw()];
    for _ in 0..100 {
        if let Ok(raw) = Raw::try_upgrade(&server, &path).await {
            taken_over.push(raw);
        }
    }
    // The server resets all but a few at once, without waiting for their Close frames.
    let hits = limit_hits(&server, "max-address-sessions");
    assert!(hits > 30, "{hits} of {}", taken_over.len());
    assert_eq!(server.anteroom.sessions(), 1);
}

#[tokio::test]
async fn forwarding_headers_count_only_from_a_trusted_proxy() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
        config.serving.trust_proxy = vec!["192.0.2.0/24".parse().unwrap()];
    })
    .await;
    let _first = Raw::upgrade(&server, "/room/tea", "").await.unwrap();
    for forged in [
        "X-Forwarded-For: 203.0.113.9\r\n",
        "x-forwarded-for: 203.0.113.9\r\nX-FORWARDED-FOR: 192.0.2.1\r\n",
        "Forwarded: for=203.0.113.9\r\n",
        "X-Real-IP: 203.0.113.9\r\n",
        "X_Forwarded_For: 203.0.113.9\r\n",
    ] {
        let rejected = Raw::upgrade(&server, "/room/tea", forged).await;
        assert_eq!(rejected.err().unwrap().status, 429, "{forged}");
    }
}

#[tokio::test]
async fn the_join_rate_limit_affects_one_address_only() {
    let server = TestServer::with(|config| {
        config.limits.joins_per_second = NonZeroU32::new(1);
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let mut bystander = Client::join(&server, "tea").await;
    let (mut joined, mut rejections) = (0, 0);
    for _ in 0..1000 {
        match Raw::upgrade(&server, "/room/flood", &from("203.0.113.9")).await {
            Ok(_) => joined += 1,
            Err(rejected) => {
                assert_eq!(rejected.status, 429);
                assert!(
                    rejected.head.contains("\r\nretry-after: 1\r\n"),
                    "{}",
                    rejected.head
                );
                rejections += 1;
            }
        }
        if rejections == 50 {
            break;
        }
    }
    // The limit lets a burst of two pass, and a few more during the flood.
    assert!(joined >= 2 && rejections == 50, "{joined} joined");
    assert_eq!(limit_hits(&server, "joins-per-second"), 50);
    assert!(
        Raw::upgrade(&server, "/room/tea", &from("203.0.113.8"))
            .await
            .is_ok()
    );
    bystander.expect_any_new().await;
    join_when_possible(&server, "/room/flood", &from("203.0.113.9")).await;
}

#[tokio::test]
async fn over_the_message_rate_a_session_is_read_more_slowly_and_loses_nothing() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(200);
    })
    .await;
    let mut bystander = Client::join(&server, "tea").await;
    let mut flooder = Client::join(&server, "tea").await;
    bystander.expect_new(&flooder.id).await;
    let began = Instant::now();
    for number in 0..1000 {
        let message = json!({"type": "flood", "receiver": bystander.id, "ref": number});
        flooder.send(message).await;
    }
    // The server still delivers messages to the flooder.
    bystander
        .send(json!({"type": "x", "receiver": flooder.id}))
        .await;
    let mut received = 0;
    for number in 0..1000 {
        let mut answer = flooder.next().await;
        if answer["type"] == "x" {
            received += 1;
            answer = flooder.next().await;
        }
        assert_eq!(answer["data"], json!({"ref": number, "receivers": 1}));
        assert_eq!(bystander.next().await["type"], "flood");
    }
    flooder.expect_quiet().await;
    bystander.expect_quiet().await;
    assert_eq!(received, 1);
    // The limit lets a burst of 400 messages pass at once; each other message takes 5 ms.
    assert!(began.elapsed() >= Duration::from_millis(2900));
    assert!(limit_hits(&server, "messages-per-second") > 0);
}

/// With the limits that the README and the guide recommend.
#[tokio::test]
async fn a_session_that_answers_a_crowd_of_newcomers_is_not_closed() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(50);
        config.limits.bytes_per_second = NonZeroU32::new(200_000);
    })
    .await;
    let mut victim = Client::join(&server, "tea").await;
    let mut newcomers = Vec::new();
    for _ in 0..16 {
        newcomers.push(Raw::join(&server, "tea").await);
    }
    // Like a `Mesh`, the session sends an offer and a few candidates to each newcomer.
    let mut news = 0;
    let mut receipts = 0;
    while news < 16 || receipts < 16 * 9 {
        let message = victim.next().await;
        if message["type"] == "ack" {
            assert_eq!(message["data"]["receivers"], 1);
            receipts += 1;
            continue;
        }
        assert_eq!(message["type"], "new", "{message}");
        news += 1;
        for number in 0..9 {
            let size = if number == 0 { 4000 } else { 150 };
            let data = "x".repeat(size);
            victim
                .send(json!({"type": "offer", "receiver": message["sender"], "data": data, "ref": number}))
                .await;
        }
    }
    victim.expect_quiet().await;
    assert!(limit_hits(&server, "messages-per-second") > 0);
}

#[tokio::test]
async fn the_bytes_of_answers_and_deliveries_count_toward_the_byte_rate() {
    let server = TestServer::with(|config| {
        config.limits.bytes_per_second = NonZeroU32::new(100_000);
    })
    .await;
    let mut crowd = Vec::new();
    for _ in 0..50 {
        crowd.push(Client::join(&server, "tea").await);
    }
    for (message, count) in [
        // Each answer has about 3 KB.
        (json!({"type": "hello", "receiver": "server"}), 200),
        // Each message causes 50 deliveries of 2 KB.
        (
            json!({"type": "x", "receiver": "all", "data": "x".repeat(2000)}),
            5,
        ),
        // Each answer is as large as the request.
        (
            json!({"type": "ping", "receiver": "server", "data": "x".repeat(50_000)}),
            5,
        ),
    ] {
        let mut client = Client::join(&server, "tea").await;
        let began = Instant::now();
        for _ in 0..count {
            client.send(message.clone()).await;
        }
        client.expect_answers(count, &message["type"]).await;
        // The sum is at least 500 KB, of which the limit lets a burst of 200 KB pass at once.
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?} for {message}");
        client.leave().await;
    }
    assert!(limit_hits(&server, "bytes-per-second") > 0);
}

#[tokio::test]
async fn a_message_larger_than_the_burst_is_still_answered() {
    let server = TestServer::with(|config| {
        config.limits.bytes_per_second = NonZeroU32::new(1);
    })
    .await;
    let mut client = Client::connect(server.address, "/room/tea").await;
    let data = "x".repeat(60_000);
    let large = json!({"type": "ping", "receiver": "server", "data": data});
    client.send(large).await;
    assert_eq!(client.next().await["type"], "pong");
}

#[tokio::test]
async fn a_session_paused_by_the_rate_limit_does_not_time_out() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(1);
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
    })
    .await;
    let mut client = Client::connect(server.address, "/room/tea").await;
    // The limit lets a burst of two pass; the pongs are behind the other messages.
    for number in 0..8 {
        client
            .send(json!({"type": "ping", "receiver": "server", "data": number}))
            .await;
    }
    for number in 0..8 {
        assert_eq!(client.next().await["data"], number);
    }
    // The server reads again, so the client must answer pings.
    let mut raw = client.into_raw();
    assert_eq!(raw.read_close().await.0, 1001);
}

#[tokio::test]
async fn a_session_paused_by_the_rate_limit_leaves_at_once_when_it_disconnects() {
    let server = TestServer::with(|config| {
        config.limits.bytes_per_second = NonZeroU32::new(1);
        // No ping notices that the client is gone.
        config.liveness.ping_seconds = 3600;
    })
    .await;
    let mut bystander = Client::connect(server.address, "/room/tea").await;
    for closes in [false, true] {
        let mut client = Client::connect(server.address, "/room/tea").await;
        bystander.expect_any_new().await;
        let large = json!({"type": "x", "receiver": "all", "data": "x".repeat(10_000)});
        client.send(large).await;
        assert_eq!(bystander.next().await["type"], "x");
        // At one byte per second, the first message pauses the session for hours.
        client.send(json!({"type": "y", "receiver": "all"})).await;
        let mut raw = client.into_raw();
        if closes {
            raw.write(frame(0x88, &[])).await;
        }
        drop(raw);
        assert_eq!(bystander.next().await["type"], "close");
    }
}

#[tokio::test]
async fn no_kind_of_frame_evades_the_rate_limits() {
    for (name, first, payload, rest) in [
        ("pings", 0x89, "", 0x89),
        ("unsolicited pongs", 0x8A, "", 0x8A),
        ("empty messages", 0x81, "", 0x81),
        ("an endless message in fragments", 0x01, "{", 0x00),
        ("an endless binary message in fragments", 0x02, "", 0x00),
    ] {
        for (limit, bytes_alone) in [("messages-per-second", false), ("bytes-per-second", true)] {
            let server = TestServer::with(|config| match bytes_alone {
                false => config.limits.messages_per_second = NonZeroU32::new(10),
                true => config.limits.bytes_per_second = NonZeroU32::new(503),
            })
            .await;
            let mut raw = Raw::join(&server, "tea").await;
            raw.write(frame(first, payload.as_bytes())).await;
            for _ in 0..1000 {
                raw.write(frame(rest, b"")).await;
            }
            eventually(name, || limit_hits(&server, limit) > 0).await;
            // The session is not closed, and other sessions do not wait.
            Client::join(&server, "tea").await.leave().await;
            assert_eq!(server.anteroom.sessions(), 1, "{name}");
        }
    }
}

#[tokio::test]
async fn pongs_count_even_if_the_session_is_over_its_message_rate() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(1);
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 2;
    })
    .await;
    let mut raw = Raw::join(&server, "tea").await;
    // The client sends a little more than the limit allows all the time.
    for _ in 0..5 {
        raw.write(text("{}")).await;
        loop {
            let RawFrame { first, payload } = raw.read_any_frame().await;
            if first == 0x89 {
                raw.write(frame(0x8A, &payload)).await;
                break;
            }
            assert_eq!(first, 0x81);
        }
    }
    assert!(server.count("anteroom_ping_round_trip_seconds_count") >= 4);
    assert_eq!(server.anteroom.sessions(), 1);
}

#[tokio::test]
async fn pongs_to_early_pings_do_not_count_toward_the_message_rate() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(5);
        config.limits.outbox_bytes = 70_000;
    })
    .await;
    let mut victim = Client::connect(server.address, "/room/tea").await;
    victim.ask_for_resume_token().await;
    let id = victim.id.clone();
    // Each message makes the server send an early ping, which the victim answers.
    let message = json!({"type": "x", "receiver": id, "data": "x".repeat(20_000)});
    let mut received = 0;
    while received < 200 {
        let mut attacker = Client::join(&server, "tea").await;
        for _ in 0..9 {
            attacker.send(message.clone()).await;
        }
        let mut left = 9;
        while left > 0 {
            left -= usize::from(victim.next().await["type"] == "x");
            received += 1;
        }
        attacker.leave().await;
        while victim.next().await["type"] != "close" {}
    }
    victim.expect_quiet().await;
    assert_eq!(limit_hits(&server, "messages-per-second"), 0);
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn the_default_log_has_only_what_an_operator_must_know() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0", "--max-sessions", "1"])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut first = Client::connect(server.address, "/room").await;
    for _ in 0..3 {
        let mut rejected = Raw::connect_to(server.address).await;
        rejected.write(handshake("/room")).await;
        assert!(rejected.read_head().await.starts_with("HTTP/1.1 503 "));
    }
    first.send_text("nonsense").await;
    first.next().await;
    drop(first.into_raw());
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    let mut log = String::new();
    let mut stderr = server.child.stderr.take().unwrap();
    stderr.read_to_string(&mut log).await.unwrap();
    let messages: Vec<&str> = log
        .lines()
        .map(|line| line.split_once("] ").unwrap().1)
        .collect();
    assert_eq!(messages[0], "serving up to 1 sessions");
    assert_eq!(
        messages[1],
        "refusing new sessions: --max-sessions is reached"
    );
    assert!(
        messages[2].starts_with("stopping: waiting up to 5 s for "),
        "{log}"
    );
    assert_eq!(messages[3..], ["stopped"]);
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn the_debug_log_has_each_join_and_each_leave_with_its_reason() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .env("RUST_LOG", "anteroom=debug")
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut log = server.log();
    Client::connect(server.address, "/room/tea")
        .await
        .leave()
        .await;
    for end in [" joined tea", " left tea: the client closed (1000)"] {
        let line = async { while !log.next_line().await.ends_with(end) {} };
        within_deadline(end, line).await;
    }
}

#[tokio::test]
async fn headers_must_arrive_in_time() {
    let server = TestServer::with(|config| config.limits.handshake_seconds = 1).await;
    let mut bystander = Client::join(&server, "tea").await;
    for beginning in ["", "GET /room/tea HTTP/1.1\r\nHost: te"] {
        let mut raw = Raw::connect(&server).await;
        raw.write(beginning).await;
        assert_eq!(raw.read_to_end().await, b"", "{beginning}");
    }
    // A byte now and then does not extend the time limit, which is for all of the headers.
    let raw = Raw::connect(&server).await;
    let (mut read, mut write) = raw.stream.into_split();
    let writing = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(100));
        for byte in handshake("/room/tea").bytes().cycle() {
            ticks.tick().await;
            if tokio::io::AsyncWriteExt::write_all(&mut write, &[byte])
                .await
                .is_err()
            {
                break;
            }
        }
    });
    let mut rest = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut rest);
    let _ = within_deadline("the close", reading).await;
    within_deadline("the end of the writes", writing)
        .await
        .unwrap();
    assert_eq!(rest, b"");
    bystander.expect_quiet().await;
}

#[tokio::test]
async fn too_many_or_too_long_headers_get_431() {
    let server = TestServer::with(|config| config.limits.max_header_bytes = 4096).await;
    let request = |more: &str| handshake("/room").replace("\r\n\r\n", &format!("\r\n{more}\r\n"));
    let cases = [
        (
            request(&format!("X-Filler: {}\r\n", "f".repeat(3000))),
            "101",
        ),
        (
            request(&format!("X-Filler: {}\r\n", "f".repeat(4096))),
            "431",
        ),
        (
            request(&format!("X-Filler: {}\r\n", "f".repeat(100_000))),
            "431",
        ),
        (request(&"A: b\r\n".repeat(600)), "431"),
    ];
    for (request, status) in cases {
        let mut raw = Raw::connect(&server).await;
        // The server may answer and close before it has read all of the request.
        let (mut read, mut write) = raw.stream.into_split();
        let writing = tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, request.as_bytes()).await;
            write
        });
        let mut start = [0; 12];
        let reading = tokio::io::AsyncReadExt::read_exact(&mut read, &mut start);
        within_deadline("the status", reading).await.unwrap();
        assert_eq!(std::str::from_utf8(&start[9..]).unwrap(), status);
        raw = Raw {
            stream: writing.await.unwrap().reunite(read).unwrap(),
        };
        drop(raw);
    }
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn a_server_without_free_file_descriptors_keeps_running_and_does_not_spin() {
    // A child process that may open only 40 files.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -n 40 && exec \"$0\" --listen 127.0.0.1:0 --max-sessions 1000",
        ])
        .arg(env!("CARGO_BIN_EXE_anteroom"))
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut log = server.log();
    let address = server.address;

    let mut alice = Client::connect(address, "/room").await;
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    let first = log.find("WARN").await;
    let expected = "the open-file limit allows only 30 sessions: raise it, or lower --max-sessions";
    assert!(first.ends_with(expected), "{first}");
    let warning = log.find("cannot accept").await;
    assert!(
        warning.contains("cannot accept connections, trying again: "),
        "{warning}"
    );
    // Sessions go on, and the wait for file descriptors uses almost no CPU.
    alice.expect_quiet().await;
    let pid = server.child.id().unwrap();
    let before = cpu_ticks(pid);
    let mut ticks = interval(Duration::from_millis(100));
    for _ in 0..10 {
        ticks.tick().await;
    }
    let spent = cpu_ticks(pid) - before;
    assert!(
        spent < 50,
        "{spent} hundredths of a second of CPU in one second of waiting"
    );
    // Once file descriptors are free again, new sessions can join.
    crowd.clear();
    let mut bob = Client::connect(address, "/room").await;
    alice.next().await;
    bob.expect_quiet().await;
}

/// The CPU time of a process, in hundredths of a second (proc(5), fields 14 and 15 of stat).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
