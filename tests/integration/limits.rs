//! Who may come in; sessions, headers, time, open files.

use std::{
    num::NonZeroU32,
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpSocket, TcpStream},
    process::Command,
};

use crate::support::{
    Client, Program, Raw, RawFrame, TestServer, eventually, frame, handshake, handshake_with, text,
    within_deadline,
};

#[tokio::test]
async fn only_pages_of_allowed_origins_come_in() {
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
    // Whatever may not join can still be read.
    let mut raw = Raw::connect(&server).await;
    raw.write("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn over_the_session_limit_the_upgrade_gets_503_until_a_place_is_free() {
    let server = TestServer::with(|config| config.limits.max_sessions = Some(2)).await;
    let first = Client::join(&server, "tea").await;
    let mut second = Client::join(&server, "coffee").await;
    let mut refused = Raw::connect(&server).await;
    refused.write(handshake("/room/tea")).await;
    let head = refused.read_head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert!(head.contains("\r\nretry-after: 5\r\n"), "{head}");
    second.expect_quiet().await;

    first.leave().await;
    eventually("a free place", || server.anteroom.sessions() == 1).await;
    // The place is given back at the very end of the session's task.
    within_deadline("a place for the next", async {
        loop {
            let mut raw = Raw::connect(&server).await;
            raw.write(handshake("/room/tea")).await;
            if raw.read_head().await.starts_with("HTTP/1.1 101 ") {
                break;
            }
        }
    })
    .await;
}

/// Joins as soon as there is room again: what a session had is given back at its very end.
async fn join_in_the_end(server: &TestServer, path: &str, headers: &str) -> Raw {
    within_deadline("a place for the next", async {
        loop {
            if let Ok(raw) = Raw::upgrade(server, path, headers).await {
                return raw;
            }
        }
    })
    .await
}

fn limit_hit(server: &TestServer, limit: &str) -> u64 {
    server.count(&format!("anteroom_limits_hit_total{{limit=\"{limit}\"}}"))
}

#[tokio::test]
async fn a_room_takes_so_many_sessions_and_no_more() {
    let server =
        TestServer::with(|config| config.limits.max_room_sessions = NonZeroU32::new(2)).await;
    let first = Client::join(&server, "tea").await;
    let _second = Client::join(&server, "tea").await;
    let refused = Raw::upgrade(&server, "/room/tea", "").await.err().unwrap();
    assert_eq!(
        (refused.status, &*refused.body),
        (503, "the room is full: try again later")
    );
    assert!(
        refused.head.contains("\r\nretry-after: 5\r\n"),
        "{}",
        refused.head
    );
    assert_eq!(limit_hit(&server, "max-room-sessions"), 1);
    // Others have room.
    let _third = Client::join(&server, "coffee").await;
    first.leave().await;
    join_in_the_end(&server, "/room/tea", "").await;
}

#[tokio::test]
async fn there_are_so_many_rooms_and_no_more() {
    let server = TestServer::with(|config| config.limits.max_rooms = NonZeroU32::new(2)).await;
    let first = Client::join(&server, "tea").await;
    let _second = Client::join(&server, "coffee").await;
    let refused = Raw::upgrade(&server, "/room/milk", "").await.err().unwrap();
    assert_eq!(refused.status, 503);
    assert!(
        refused.body.starts_with("the server has too many rooms"),
        "{}",
        refused.body
    );
    assert!(
        refused.head.contains("\r\nretry-after: 5\r\n"),
        "{}",
        refused.head
    );
    assert_eq!(limit_hit(&server, "max-rooms"), 1);
    // Rooms that exist have room.
    let _third = Client::join(&server, "coffee").await;
    first.leave().await;
    join_in_the_end(&server, "/room/milk", "").await;
    assert_eq!(server.anteroom.rooms(), 2);
}

#[tokio::test]
async fn an_address_has_so_many_sessions_and_no_more() {
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
        let refused = Raw::upgrade(&server, "/room/tea", &from(address)).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.status, 429);
        assert_eq!(
            refused.body,
            "your address has too many sessions: close one, then try again"
        );
        assert!(
            refused.head.contains("\r\nretry-after: 5\r\n"),
            "{}",
            refused.head
        );
    }
    assert_eq!(limit_hit(&server, "max-address-sessions"), 3);
    // Others have room, and nobody can pretend to be another.
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
    join_in_the_end(&server, "/room/tea", &from(here)).await;
}

#[tokio::test]
async fn an_address_holds_so_many_connections_and_no_more() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..33 {
        held.push(Raw::connect(&server).await);
    }
    let mut refused = Raw::connect(&server).await;
    assert_eq!(refused.read_to_end().await, b"");
    // The others are still waited for, and another address is served.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let mut other = Raw { stream };
    other.write(handshake("/room/tea")).await;
    assert!(other.read_head().await.starts_with("HTTP/1.1 101 "));
    held[0].write(handshake("/room/tea")).await;
    assert!(held[0].read_head().await.starts_with("HTTP/1.1 101 "));
    // A session is none of them any more.
    within_deadline("a place for the next", async {
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
async fn who_resumes_all_the_time_holds_no_more_connections_than_others() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
    })
    .await;
    let mut session = Client::connect(server.address, "/room/tea").await;
    session
        .send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
        .await;
    let token = session.next().await["data"]["resume"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/room/tea?resume={token}&received=1");
    // Each takes the session over from the one before, which does not close.
    let mut taken_over = vec![session.into_raw()];
    for _ in 0..100 {
        if let Ok(raw) = Raw::try_upgrade(&server, &path).await {
            taken_over.push(raw);
        }
    }
    // All but some have been cut off at once, which does not wait for them.
    let hits = limit_hit(&server, "max-address-sessions");
    assert!(hits > 30, "{hits} of {}", taken_over.len());
    assert_eq!(server.anteroom.sessions(), 1);
}

#[tokio::test]
async fn nobody_is_believed_about_an_address_who_is_no_trusted_proxy() {
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = NonZeroU32::new(1);
        config.serving.trust_proxy = vec!["192.0.2.0/24".parse().unwrap()];
    })
    .await;
    let _first = Raw::upgrade(&server, "/room/tea", "").await.unwrap();
    for smuggled in [
        "X-Forwarded-For: 203.0.113.9\r\n",
        "x-forwarded-for: 203.0.113.9\r\nX-FORWARDED-FOR: 192.0.2.1\r\n",
        "Forwarded: for=203.0.113.9\r\n",
        "X-Real-IP: 203.0.113.9\r\n",
        "X_Forwarded_For: 203.0.113.9\r\n",
    ] {
        let refused = Raw::upgrade(&server, "/room/tea", smuggled).await;
        assert_eq!(refused.err().unwrap().status, 429, "{smuggled}");
    }
}

#[tokio::test]
async fn who_comes_too_often_waits_and_nobody_else() {
    let server = TestServer::with(|config| {
        config.limits.joins_per_second = NonZeroU32::new(1);
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let mut bystander = Client::join(&server, "tea").await;
    let (mut joined, mut refusals) = (0, 0);
    for _ in 0..1000 {
        match Raw::upgrade(&server, "/room/flood", &from("203.0.113.9")).await {
            Ok(_) => joined += 1,
            Err(refused) => {
                assert_eq!(refused.status, 429);
                assert!(
                    refused.head.contains("\r\nretry-after: 1\r\n"),
                    "{}",
                    refused.head
                );
                refusals += 1;
            }
        }
        if refusals == 50 {
            break;
        }
    }
    // The burst is two; while the flood went on, some more were due.
    assert!(joined >= 2 && refusals == 50, "{joined} joined");
    assert_eq!(limit_hit(&server, "joins-per-second"), 50);
    assert!(
        Raw::upgrade(&server, "/room/tea", &from("203.0.113.8"))
            .await
            .is_ok()
    );
    bystander.expect_any_new().await;
    join_in_the_end(&server, "/room/flood", &from("203.0.113.9")).await;
}

#[tokio::test]
async fn who_says_too_much_is_read_from_more_slowly_and_loses_nothing() {
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
    // Meanwhile it is written to as ever.
    bystander
        .send(json!({"type": "x", "receiver": flooder.id}))
        .await;
    let mut heard = 0;
    for number in 0..1000 {
        let mut answer = flooder.next().await;
        if answer["type"] == "x" {
            heard += 1;
            answer = flooder.next().await;
        }
        assert_eq!(answer["data"], json!({"ref": number, "receivers": 1}));
        assert_eq!(bystander.next().await["type"], "flood");
    }
    flooder.expect_quiet().await;
    bystander.expect_quiet().await;
    assert_eq!(heard, 1);
    // Of the messages 400 are the burst; the others take 5 ms each.
    assert!(began.elapsed() >= Duration::from_millis(2900));
    assert!(limit_hit(&server, "messages-per-second") > 0);
}

/// Under the limits that the README and the guide recommend.
#[tokio::test]
async fn nobody_is_closed_for_answering_a_crowd_of_strangers() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(50);
        config.limits.bytes_per_second = NonZeroU32::new(200_000);
    })
    .await;
    let mut victim = Client::join(&server, "tea").await;
    let mut strangers = Vec::new();
    for _ in 0..16 {
        strangers.push(Raw::join(&server, "tea").await);
    }
    // As a mesh does it: an offer and some candidates to each that is new.
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
    assert!(limit_hit(&server, "messages-per-second") > 0);
}

#[tokio::test]
async fn what_a_session_causes_to_be_sent_is_part_of_what_it_spends() {
    let server = TestServer::with(|config| {
        config.limits.bytes_per_second = NonZeroU32::new(100_000);
    })
    .await;
    let mut crowd = Vec::new();
    for _ in 0..50 {
        crowd.push(Client::join(&server, "tea").await);
    }
    for (what, messages) in [
        // Some 3 KB each.
        (json!({"type": "hello", "receiver": "server"}), 200),
        // 50 times 2 KB each.
        (
            json!({"type": "x", "receiver": "all", "data": "x".repeat(2000)}),
            5,
        ),
        // As much as it has.
        (
            json!({"type": "ping", "receiver": "server", "data": "x".repeat(50_000)}),
            5,
        ),
    ] {
        let mut client = Client::join(&server, "tea").await;
        let began = Instant::now();
        for _ in 0..messages {
            client.send(what.clone()).await;
        }
        client.expect_answers(messages, &what["type"]).await;
        // All of it is 500 KB at the least, of which 200 KB are the burst.
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?} for {what}");
        client.leave().await;
    }
    assert!(limit_hit(&server, "bytes-per-second") > 0);
}

#[tokio::test]
async fn one_message_may_cost_more_than_a_burst() {
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
async fn who_is_not_read_from_is_not_given_up_for_its_pongs() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(1);
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
    })
    .await;
    let mut client = Client::connect(server.address, "/room/tea").await;
    // Two are the burst; the pongs stand behind the others.
    for number in 0..8 {
        client
            .send(json!({"type": "ping", "receiver": "server", "data": number}))
            .await;
    }
    for number in 0..8 {
        assert_eq!(client.next().await["data"], number);
    }
    // Now it is read from, and must answer.
    let mut raw = client.into_raw();
    assert_eq!(raw.read_close().await.0, 1001);
}

#[tokio::test]
async fn who_goes_while_it_is_not_read_from_is_gone_at_once() {
    let server = TestServer::with(|config| {
        config.limits.bytes_per_second = NonZeroU32::new(1);
    })
    .await;
    let mut bystander = Client::connect(server.address, "/room/tea").await;
    for closes in [false, true] {
        let mut client = Client::connect(server.address, "/room/tea").await;
        bystander.expect_any_new().await;
        let large = json!({"type": "x", "receiver": "all", "data": "x".repeat(10_000)});
        client.send(large).await;
        assert_eq!(bystander.next().await["type"], "x");
        // That takes hours to be paid.
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
async fn no_kind_of_frame_goes_round_the_limits() {
    for (what, first, payload, rest) in [
        ("pings", 0x89, "", 0x89),
        ("pongs that nobody asked for", 0x8A, "", 0x8A),
        ("empty messages", 0x81, "", 0x81),
        ("a message in more and more pieces", 0x01, "{", 0x00),
        ("a binary message in pieces", 0x02, "", 0x00),
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
            eventually(what, || limit_hit(&server, limit) > 0).await;
            // Nobody is closed for it, and nobody else waits.
            Client::join(&server, "tea").await.leave().await;
            assert_eq!(server.anteroom.sessions(), 1, "{what}");
        }
    }
}

#[tokio::test]
async fn an_answer_to_a_ping_is_taken_whatever_else_is_said() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(1);
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 2;
    })
    .await;
    let mut raw = Raw::join(&server, "tea").await;
    // All that may be said is said, and a little more, all the time.
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
async fn who_is_sent_much_is_not_blamed_for_answering_the_pings_behind_it() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(5);
        config.limits.outbox_bytes = 70_000;
    })
    .await;
    let mut victim = Client::connect(server.address, "/room/tea").await;
    victim
        .send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
        .await;
    let id = victim.next().await["receiver"].as_str().unwrap().to_owned();
    // Every message makes the server ask, and the victim answer.
    let message = json!({"type": "x", "receiver": id, "data": "x".repeat(20_000)});
    let mut heard = 0;
    while heard < 200 {
        let mut attacker = Client::join(&server, "tea").await;
        for _ in 0..9 {
            attacker.send(message.clone()).await;
        }
        let mut left = 9;
        while left > 0 {
            left -= usize::from(victim.next().await["type"] == "x");
            heard += 1;
        }
        attacker.leave().await;
        while victim.next().await["type"] != "close" {}
    }
    victim.expect_quiet().await;
    assert_eq!(limit_hit(&server, "messages-per-second"), 0);
}

#[tokio::test]
async fn the_log_says_what_an_operator_must_know_and_no_more() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0", "--max-sessions", "1"])
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut first = Client::connect(server.address, "/room").await;
    for _ in 0..3 {
        let mut refused = Raw {
            stream: TcpStream::connect(server.address).await.unwrap(),
        };
        refused.write(handshake("/room")).await;
        assert!(refused.read_head().await.starts_with("HTTP/1.1 503 "));
    }
    first.send_text("nonsense").await;
    first.next().await;
    drop(first.into_raw());
    server.signal("TERM").await;
    assert_eq!(server.exit_code().await, Some(0));
    let mut log = String::new();
    let mut stderr = server.child.stderr.take().unwrap();
    stderr.read_to_string(&mut log).await.unwrap();
    let said: Vec<&str> = log
        .lines()
        .map(|line| line.split_once("] ").unwrap().1)
        .collect();
    assert_eq!(said[0], "serving up to 1 sessions");
    assert_eq!(said[1], "refusing new sessions: --max-sessions is reached");
    assert!(said[2].starts_with("stopping: 5 s to leave for "), "{log}");
    assert_eq!(said[3..], ["stopped"]);
}

#[tokio::test]
async fn at_debug_the_log_says_who_joins_and_who_leaves_and_why() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .env("RUST_LOG", "anteroom=debug")
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut log = BufReader::new(server.child.stderr.take().unwrap()).lines();
    Client::connect(server.address, "/room/tea")
        .await
        .leave()
        .await;
    for end in [" joined tea", " left tea: the client closed"] {
        let line = async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.ends_with(end) {
                    return;
                }
            }
            panic!("the log ended");
        };
        within_deadline(end, line).await;
    }
}

#[tokio::test]
async fn headers_must_come_in_time() {
    let server = TestServer::with(|config| config.limits.handshake_seconds = 1).await;
    let mut bystander = Client::join(&server, "tea").await;
    for beginning in ["", "GET /room/tea HTTP/1.1\r\nHost: te"] {
        let mut raw = Raw::connect(&server).await;
        raw.write(beginning).await;
        assert_eq!(raw.read_to_end().await, b"", "{beginning}");
    }
    // Bytes that come now and then do not buy more time: the time runs from the first to the last.
    let raw = Raw::connect(&server).await;
    let (mut read, mut write) = raw.stream.into_split();
    let dribbling = tokio::spawn(async move {
        let mut turn = tokio::time::interval(std::time::Duration::from_millis(100));
        for byte in handshake("/room/tea").bytes().cycle() {
            turn.tick().await;
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
    let _ = within_deadline("the end of patience", reading).await;
    within_deadline("the dribbler's end", dribbling)
        .await
        .unwrap();
    assert_eq!(rest, b"");
    bystander.expect_quiet().await;
}

#[tokio::test]
async fn headers_must_be_few_and_small() {
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
        // The server may have answered and closed before it got all.
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

#[tokio::test]
async fn running_out_of_files_neither_ends_nor_spins_the_server() {
    // A program of its own, for which only 40 files may be open.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -n 40 && exec \"$0\" --listen 127.0.0.1:0 --max-sessions 1000",
        ])
        .arg(env!("CARGO_BIN_EXE_anteroom"))
        .stderr(Stdio::piped());
    let mut server = Program::run(command).await;
    let mut stderr = BufReader::new(server.child.stderr.take().unwrap()).lines();
    let address = server.address;

    let mut alice = Client::connect(address, "/room").await;
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(address).await.unwrap());
    }
    let first = async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            if line.contains("WARN") {
                return line;
            }
        }
        panic!("the log ended");
    };
    let first = within_deadline("a warning", first).await;
    let expected = "the open-file limit allows only 30 sessions: raise it, or lower --max-sessions";
    assert!(first.ends_with(expected), "{first}");
    let warning = async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            if line.contains("cannot accept") {
                return line;
            }
        }
        panic!("the log ended");
    };
    let warning = within_deadline("a warning", warning).await;
    assert!(
        warning.contains("cannot accept connections, trying again: "),
        "{warning}"
    );
    // Who is in goes on; the waiting costs next to nothing.
    alice.expect_quiet().await;
    let pid = server.child.id().unwrap();
    let before = cpu_ticks(pid);
    let mut waits = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..10 {
        waits.tick().await;
    }
    let spent = cpu_ticks(pid) - before;
    assert!(
        spent < 50,
        "{spent} hundredths of a second of CPU in one second of waiting"
    );
    // Once there are files again, newcomers get in.
    crowd.clear();
    let mut bob = Client::connect(address, "/room").await;
    alice.next().await;
    bob.expect_quiet().await;
}

/// The CPU time a process has used, in hundredths of a second (proc(5), fields 14 and 15 of stat).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
