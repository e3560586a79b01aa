//! Sessions without a WebSocket (PROTOCOL.md, section 9).

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use rand::RngExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    bytes::expect_bytes,
    crowds::seeded,
    resuming::reconnect,
    support::{
        Client, EventStream, Folder, Raw, TestServer, eventually, operator, poll, request,
        within_deadline,
    },
};

#[tokio::test]
async fn a_stream_joins_hears_and_speaks_like_any_session() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    bob.send(json!({"type": "x", "receiver": alice.id, "data": [1, 2], "ref": 7}))
        .await;
    let ack = bob.next().await;
    assert_eq!(
        (&ack["type"], &ack["data"]["ref"]),
        (&json!("ack"), &json!(7))
    );
    let x = alice.next().await;
    assert_eq!((&x["sender"], &x["data"]), (&json!(bob.id), &json!([1, 2])));
    // Two streams hear each other as well.
    let mut carol = EventStream::join(server.address, "tea").await;
    alice.expect_new(&carol.id).await;
    assert_eq!(bob.next().await["sender"], carol.id.as_str());
    alice
        .send_text("{\"type\":\"y\",\n\"receiver\":\"all\",\"data\":{\"a\":\n1.0}}")
        .await;
    for stream in [&mut bob, &mut carol] {
        let y = stream.next().await;
        assert_eq!(y["data"].to_string(), "{\"a\":1.0}");
    }
    carol.send(json!({"type": "z", "receiver": "all"})).await;
    assert_eq!(bob.next().await["type"], "z");
    assert_eq!(alice.next().await["type"], "z");
}

#[tokio::test]
async fn a_session_can_be_left_with_delete_whether_it_has_a_stream_or_not() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    for is_suspended in [false, true] {
        let mut bob = EventStream::join(server.address, "tea").await;
        alice.expect_new(&bob.id).await;
        if is_suspended {
            bob.lose().await;
            server.expect_suspended(1).await;
        }
        let target = bob.target();
        let delete = async || {
            request(server.address, "DELETE", &target, "", b"")
                .await
                .status
        };
        assert_eq!(delete().await, 204);
        alice.expect_left(&bob.id).await;
        if !is_suspended {
            assert_eq!(bob.expect_close().await.0, 1000);
        }
        assert_eq!(delete().await, 404);
        assert_eq!(bob.post(1, b"{}").await.status, 404);
    }
}

#[tokio::test]
async fn a_session_leaves_with_its_last_messages() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let target = format!("{}&sent=1&leave=1", bob.target());
    let lines = b"{\"type\":\"x\",\"receiver\":\"all\"}\n{\"type\":\"y\",\"receiver\":\"all\"}";
    let answer = request(server.address, "POST", &target, "", lines).await;
    assert_eq!(answer.json(), json!({"received": 3}));
    for kind in ["x", "y"] {
        assert_eq!(alice.next().await["type"], kind);
    }
    alice.expect_left(&bob.id).await;
    assert_eq!(bob.expect_close().await.0, 1000);
}

#[tokio::test]
async fn the_room_hears_at_once_that_a_stream_has_ended_for_good() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 1).await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    // No ping is due for 20 seconds: the end of the connection itself is noticed.
    let start = Instant::now();
    bob.lose().await;
    server.expect_suspended(1).await;
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_message_that_is_posted_again_is_taken_in_once() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let lines: String = (1..=9)
        .map(|number| json!({"type": "x", "receiver": "all", "data": number}).to_string() + "\n")
        .collect();
    let from = |first: usize, last: usize| {
        let lines: Vec<&str> = lines.lines().collect();
        lines[first - 1..last].join("\n").into_bytes()
    };
    for (sent, body, received) in [
        (1, from(1, 3), 4),
        (1, from(1, 3), 4),
        (2, from(2, 5), 6),
        (6, b"\n \r\n".to_vec(), 6),
        (0, b"{}\n{}".to_vec(), 6),
        (6, from(6, 9), 10),
    ] {
        let answer = bob.post(sent, &body).await;
        assert_eq!(answer.json(), json!({ "received": received }));
    }
    for number in 1..=9 {
        assert_eq!(alice.next().await["data"], number);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
async fn requests_that_overtake_each_other_are_taken_in_in_order() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let line = |number: u64| {
        json!({"type": "x", "receiver": "all", "data": number})
            .to_string()
            .into_bytes()
    };
    // The last of them come first.
    let posts = (1..=10).rev().map(|number| {
        let (bob, body) = (&bob, line(number));
        async move { bob.post(number, &body).await }
    });
    for answer in join_all(posts).await {
        assert_eq!(answer.status, 200);
    }
    for number in 1..=10 {
        assert_eq!(alice.next().await["data"], number);
    }
}

#[tokio::test]
async fn too_many_requests_that_wait_are_refused() {
    let server = TestServer::start().await;
    let bob = EventStream::join(server.address, "tea").await;
    // They wait for the message before them.
    let mut posts: FuturesUnordered<_> = (0..17).map(|_| bob.post(2, b"{}")).collect();
    assert_eq!(posts.next().await.unwrap().status, 429);
    let ping = br#"{"type":"ping","receiver":"server"}"#;
    assert_eq!(bob.post(1, ping).await.status, 200);
    let statuses: Vec<u16> = posts.map(|answer| answer.status).collect().await;
    assert_eq!(statuses, [200; 16]);
}

#[tokio::test]
async fn a_stream_resumes_with_what_it_has_missed() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    bob.lose().await;
    server.expect_suspended(1).await;
    for number in 0..5 {
        alice
            .send(json!({"type": "x", "receiver": bob.id, "data": number}))
            .await;
    }
    alice.expect_quiet().await;
    // What it sends meanwhile is taken in all the same.
    bob.send(json!({"type": "y", "receiver": "all"})).await;
    assert_eq!(alice.next().await["type"], "y");
    bob.resume(server.address).await;
    let resumed = bob.next().await;
    assert_eq!(resumed["data"]["received"], 2, "{resumed}");
    for number in 0..5 {
        assert_eq!(bob.next().await["data"], number);
    }
    // The header of an `EventSource` is newer than its URL.
    let target = format!("{}&received=1", bob.target());
    let mut again = EventStream::open(server.address, &target, "Last-Event-ID: 4\r\n").await;
    assert_eq!(again.event().await.data["type"], "resumed");
    let event = again.event().await;
    assert_eq!((event.id, &event.data["data"]), (Some(5), &json!(3)));
    let (code, reason) = bob.expect_close().await;
    assert_eq!((code, &*reason), (1008, "resumed on another connection"));
    alice.expect_quiet().await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_resumed_is_a_new_session() {
    let server = TestServer::start().await;
    let token = "AAAAAAAAAAAAAAAAAAAAAA";
    let target = format!("/room/tea?resume={token}&received=0");
    let mut stream = EventStream::open(server.address, &target, "").await;
    stream.learn_token().await;
    assert_ne!(stream.token, token);
    let error = stream.next().await;
    assert_eq!(error["data"]["code"], "resume_failed");
    let polled = poll(server.address, &target).await;
    assert!(polled["session"]["token"].is_string());
    assert_eq!(polled["messages"][0]["data"]["code"], "resume_failed");
    assert_eq!(polled["count"], 1);
}

#[tokio::test]
async fn long_polling_gets_the_same_stream() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let joined = poll(server.address, "/room/tea").await;
    let token = joined["session"]["token"].as_str().unwrap();
    assert_eq!(
        (&joined["count"], &joined["messages"]),
        (&json!(0), &json!([]))
    );
    alice.expect_any_new().await;
    let next = async |count: u64, wait: u64| {
        let target = format!("/room/tea?resume={token}&received={count}&wait={wait}");
        poll(server.address, &target).await
    };
    // Nothing comes in this second.
    let nothing = next(0, 1).await;
    assert_eq!(nothing["count"], 0);
    assert_eq!(nothing["messages"][0]["type"], "resumed");
    // What came before the request, and what comes after it.
    alice
        .send(json!({"type": "x", "receiver": "all", "data": 1}))
        .await;
    alice.expect_quiet().await;
    let first = next(0, 25).await;
    assert_eq!(first["messages"][1]["data"], 1);
    assert_eq!(first["count"], 1);
    let (second, ()) = tokio::join!(next(1, 25), async {
        eventually("the answer waits", || {
            server.count("anteroom_sessions_suspended") == 0
        })
        .await;
        alice
            .send(json!({"type": "x", "receiver": "all", "data": 2}))
            .await;
    });
    assert_eq!(
        second["messages"].as_array().unwrap().last().unwrap()["data"],
        2
    );
    assert_eq!(second["count"], 2);
    // The same again, because the answer was lost.
    let again = next(1, 25).await;
    assert_eq!(again["messages"][1]["data"], 2);
    // It sends between two answers.
    let target = format!("/room/tea?resume={token}&sent=0");
    let body = br#"{"type":"y","receiver":"all"}"#;
    let answer = request(server.address, "POST", &target, "", body).await;
    assert_eq!(answer.json(), json!({"received": 1}));
    assert_eq!(alice.next().await["type"], "y");
}

#[tokio::test]
async fn bytes_go_over_a_stream_in_base64() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let all = [0; 16];
    let message = [&all[..], b"\0\xff\n"].concat();
    let line = format!("\"{}\"\r\n", STANDARD.encode(&message));
    let answer = bob.post(1, line.as_bytes()).await;
    assert_eq!(answer.json(), json!({"received": 2}));
    expect_bytes(&mut alice, &bob.id, b"\0\xff\n").await;
    alice.send_frame(Message::binary(message)).await;
    let bytes = STANDARD.decode(bob.next().await.as_str().unwrap()).unwrap();
    assert_eq!(bytes[16..], *b"\0\xff\n");
    // A string that is not base64 is no message.
    bob.sent = 2;
    bob.send(json!("???")).await;
    assert_eq!(bob.next().await["data"]["code"], "bad_message");
}

#[tokio::test]
async fn a_session_goes_from_a_web_socket_to_a_stream_and_back() {
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut socket = Client::join(&server, "tea").await;
    let token = socket.ask_for_resume_token().await;
    let id = socket.id.clone();
    alice.expect_new(&id).await;
    let mut received = 2;
    let mut sent = 2;
    let mut number = 0;
    for _ in 0..10 {
        // Messages in both directions, and one each that the connection does not take along.
        let mut stream = EventStream::open(
            server.address,
            &format!("/room/tea?resume={token}&received={received}"),
            "",
        )
        .await;
        stream.token = token.clone();
        stream.count = received;
        assert_eq!(socket.expect_close().await.0, 1008);
        assert_eq!(stream.next().await["data"]["received"], sent);
        stream.sent = sent;
        stream
            .send(json!({"type": "up", "receiver": "all", "data": number}))
            .await;
        assert_eq!(alice.next().await["data"], number);
        alice
            .send(json!({"type": "down", "receiver": id, "data": number}))
            .await;
        assert_eq!(stream.next().await["data"], number);
        number += 1;
        (received, sent) = (stream.count, stream.sent);

        socket = reconnect(&server, "tea", &token, received).await;
        socket.id = id.clone();
        assert_eq!(socket.next().await["data"]["received"], sent);
        assert_eq!(stream.expect_close().await.0, 1008);
        // What the client has posted late is not taken in again, and nothing else is.
        let late = stream.post(sent - 1, b"{}\n{}").await;
        assert_eq!(late.status, 409, "{late:?}");
        socket
            .send(json!({"type": "up", "receiver": "all", "data": number}))
            .await;
        assert_eq!(alice.next().await["data"], number);
        alice
            .send(json!({"type": "down", "receiver": id, "data": number}))
            .await;
        assert_eq!(socket.next().await["data"], number);
        number += 1;
        (received, sent) = (received + 1, sent + 1);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
async fn fifty_cuts_and_changes_of_transport_lose_and_double_nothing() {
    let mut random = seeded();
    let server = TestServer::start().await;
    let mut alice = Client::join(&server, "tea").await;
    let joined = poll(server.address, "/room/tea").await;
    let token = joined["session"]["token"].as_str().unwrap().to_owned();
    let id = alice.next().await["sender"].as_str().unwrap().to_owned();
    // What the client has got and sent, and what the server has taken in for certain.
    let (mut received, mut got) = (0_u64, 0_u64);
    let (mut sent, mut said) = (0_u64, 0_u64);
    let up = |number: u64| json!({"type": "up", "receiver": "all", "data": number});
    for _ in 0..50 {
        for _ in 0..random.random_range(0..5) {
            alice
                .send(json!({"type": "down", "receiver": id, "data": said}))
                .await;
            said += 1;
        }
        let target = format!("/room/tea?resume={token}&received={received}");
        match random.random_range(0..3) {
            0 => {
                let mut socket = Client::connect(server.address, &target).await;
                let resumed = socket.next().await;
                sent = resumed["data"]["received"].as_u64().unwrap();
                for number in sent..sent + random.random_range(0..4) {
                    socket.send(up(number)).await;
                }
                // Some of what comes is not read before the connection is cut.
                for _ in 0..random.random_range(0..4).min(said - got) {
                    assert_eq!(socket.next().await["data"], got);
                    (received, got) = (received + 1, got + 1);
                }
                drop(socket.into_raw());
            }
            1 => {
                let mut stream = EventStream::open(server.address, &target, "").await;
                stream.token = token.clone();
                stream.count = received;
                sent = stream.next().await["data"]["received"].as_u64().unwrap();
                let count = random.random_range(0..4);
                let lines: Vec<String> = (sent..sent + count)
                    .map(|number| up(number).to_string())
                    .collect();
                let body = lines.join("\n").into_bytes();
                for _ in 0..random.random_range(0..3) {
                    // Nobody can tell whether an answer was lost.
                    let answer = stream.post(sent, &body).await;
                    assert_eq!(answer.json(), json!({"received": sent + count}));
                }
                for _ in 0..random.random_range(0..4).min(said - got) {
                    assert_eq!(stream.next().await["data"], got);
                    got += 1;
                }
                received = stream.count;
            }
            _ => {
                let answer = poll(server.address, &format!("{target}&wait=0")).await;
                let messages = answer["messages"].as_array().unwrap();
                for message in messages.iter().filter(|it| it["type"] != "resumed") {
                    assert_eq!(message["data"], got);
                    got += 1;
                }
                received = answer["count"].as_u64().unwrap();
            }
        }
    }
    let target = format!("/room/tea?resume={token}&received={received}");
    let mut socket = Client::connect(server.address, &target).await;
    sent = sent.max(socket.next().await["data"]["received"].as_u64().unwrap());
    while got < said {
        assert_eq!(socket.next().await["data"], got);
        got += 1;
    }
    socket.expect_quiet().await;
    for number in 0..sent {
        assert_eq!(alice.next().await["data"], number);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
async fn wrong_requests_are_told_what_to_do() {
    let server = TestServer::start().await;
    let bob = EventStream::join(server.address, "tea").await;
    let token = &bob.token;
    let other = "AAAAAAAAAAAAAAAAAAAAAA";
    for (method, target, status, word) in [
        ("POST", "/room/tea".to_owned(), 400, "resume"),
        ("POST", format!("/room/tea?resume={token}"), 400, "sent"),
        (
            "POST",
            format!("/room/tea?resume={token}&sent=-1"),
            400,
            "sent",
        ),
        (
            "POST",
            format!("/room/tea?resume={token}&sent=%2B1"),
            400,
            "sent",
        ),
        (
            "POST",
            format!("/room/tea?resume={token}&sent=1&received=x"),
            400,
            "received",
        ),
        (
            "POST",
            format!("/room/tea?resume={other}&sent=0"),
            404,
            "no such session",
        ),
        (
            "POST",
            "/room/tea?resume=x&sent=0".to_owned(),
            400,
            "resume",
        ),
        (
            "POST",
            format!("/room/coffee?resume={token}&sent=1"),
            404,
            "no such session",
        ),
        (
            "POST",
            format!("/room/..?resume={token}&sent=1"),
            400,
            "room",
        ),
        ("DELETE", "/room/tea".to_owned(), 400, "resume"),
        (
            "DELETE",
            format!("/room/coffee?resume={token}"),
            404,
            "no such session",
        ),
        ("PUT", "/room/tea".to_owned(), 405, "POST"),
    ] {
        let answer = request(server.address, method, &target, "", b"{}").await;
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
        assert!(answer.body.contains(word), "{method} {target}: {answer:?}");
        assert_eq!(answer.body.lines().count(), 1);
    }
    let long = request(
        server.address,
        "POST",
        &format!("/room/tea?resume={token}&sent=1"),
        "",
        &vec![b' '; (1 << 20) + 1],
    )
    .await;
    assert_eq!(long.status, 413);
    for wait in ["61", "-1", "x"] {
        let target = format!("/room/tea?wait={wait}");
        let answer = request(
            server.address,
            "GET",
            &target,
            "Accept: application/json\r\n",
            b"",
        )
        .await;
        assert_eq!(answer.status, 400, "{wait}");
    }
    // None of them has harmed the session.
    assert_eq!(bob.post(1, b"").await.json(), json!({"received": 1}));
}

#[tokio::test]
async fn what_ends_a_web_socket_ends_a_stream_with_the_same_code() {
    let server = TestServer::start().await;
    let mut bob = EventStream::join(server.address, "tea").await;
    let answer = bob.post(1, &vec![b'x'; 65_537]).await;
    assert_eq!(answer.status, 422);
    assert_eq!(bob.expect_close().await.0, 1009);
    let mut bob = EventStream::join(server.address, "tea").await;
    bob.post(1, b"\xff").await;
    assert_eq!(bob.expect_close().await.0, 1007);
    // An error does not.
    let mut bob = EventStream::join(server.address, "tea").await;
    assert_eq!(
        bob.post(1, b"nonsense").await.json(),
        json!({"received": 2})
    );
    assert_eq!(bob.next().await["data"]["code"], "bad_message");
}

#[tokio::test]
async fn an_operator_sees_and_closes_a_stream() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let mut bob = EventStream::join(server.address, "tea").await;
    let room = operator(&server, "GET", "/rooms/tea", "").await.json();
    let session = &room["sessions"][0];
    assert_eq!(
        (&session["id"], &session["messagesReceived"]),
        (&json!(bob.id), &json!(1))
    );
    assert_eq!(server.count("anteroom_upgrades_total{status=\"200\"}"), 1);
    let path = format!("/rooms/tea/sessions/{}", bob.id);
    assert_eq!(operator(&server, "DELETE", &path, "").await.status, 204);
    assert_eq!(
        bob.expect_close().await,
        (1008, "closed by an operator".into())
    );
}

#[tokio::test]
async fn a_comment_comes_as_often_as_a_ping_and_no_pong_is_owed() {
    let server = TestServer::with(|config| {
        config.liveness.ping_seconds = 1;
        config.liveness.pong_seconds = 1;
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let start = Instant::now();
    while bob.comments < 4 {
        within_deadline("a comment", async {
            tokio::select! {
                event = bob.next_event() => panic!("{event:?}"),
                // tungstenite answers pings while it reads.
                frame = alice.next_frame() => assert!(matches!(frame, Ok(Message::Ping(_)))),
            }
        })
        .await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2));
    bob.send(json!({"type": "x", "receiver": "all"})).await;
}

#[tokio::test]
async fn a_stream_is_told_that_the_server_stops() {
    let folder = Folder::new("streams");
    let start =
        || TestServer::with(|config| config.stopping.sessions_file = Some(folder.file("sessions")));
    let mut server = start().await;
    let mut bob = EventStream::join(server.address, "tea").await;
    server.stop();
    let (code, reason) = bob.expect_close().await;
    assert_eq!(code, 1012);
    assert!(reason.contains("retry in "), "{reason}");
    server.stopped().await;
    let server = start().await;
    bob.resume(server.address).await;
    let resumed = bob.next().await;
    assert_eq!(
        (&resumed["receiver"], &resumed["data"]["received"]),
        (&json!(bob.id), &json!(1))
    );
    bob.send(json!({"type": "ping", "receiver": "server"}))
        .await;
    assert_eq!(bob.next().await["type"], "pong");
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_bounded_and_delays_nobody() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 100_000).await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let data = "x".repeat(10_000);
    let mut slow = false;
    for _ in 0..10_000 {
        alice
            .send(json!({"type": "x", "receiver": "all", "data": data, "ref": 1}))
            .await;
        let answer = alice.next().await;
        if answer["type"] != "ack" || server.count("anteroom_slow_readers_total") > 0 {
            slow = true;
            break;
        }
    }
    assert!(slow);
}

#[tokio::test]
async fn a_stream_over_its_rate_is_taken_in_more_slowly_and_loses_nothing() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(10);
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    let lines: String = (0..45)
        .map(|number| json!({"type": "x", "receiver": "all", "data": number}).to_string() + "\n")
        .collect();
    let start = Instant::now();
    let answer = bob.post(1, lines.as_bytes()).await;
    assert_eq!(answer.json(), json!({"received": 46}));
    assert!(start.elapsed() > Duration::from_secs(1));
    for number in 0..45 {
        assert_eq!(alice.next().await["data"], number);
    }
}

#[tokio::test]
async fn a_stream_over_its_rate_leaves_after_what_it_has_said() {
    let server = TestServer::with(|config| {
        config.limits.messages_per_second = NonZeroU32::new(10);
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let bob = EventStream::join(server.address, "tea").await;
    alice.expect_new(&bob.id).await;
    const COUNT: u64 = 30;
    let line = json!({"type": "x", "receiver": "all"}).to_string() + "\n";
    let lines = line.repeat(COUNT as usize);
    let target = bob.target();
    let leave = async {
        assert_eq!(alice.next().await["type"], "x");
        let left = request(server.address, "DELETE", &target, "", b"").await;
        assert_eq!(left.status, 204, "{left:?}");
        for _ in 1..COUNT {
            assert_eq!(alice.next().await["type"], "x");
        }
        alice.expect_left(&bob.id).await;
    };
    let (answer, ()) = tokio::join!(bob.post(1, lines.as_bytes()), leave);
    assert_eq!(answer.json(), json!({"received": COUNT + 1}));
}

#[tokio::test]
async fn pages_of_allowed_origins_alone_may_open_read_and_post() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://app.example".parse().unwrap()];
    })
    .await;
    let accept = "Accept: application/json\r\n";
    let get = async |headers: &str| {
        let headers = format!("{accept}{headers}");
        request(server.address, "GET", "/room/tea", &headers, b"").await
    };
    let allowed = "Origin: https://app.example\r\n";
    let refused = "Origin: https://evil.example\r\n";
    assert_eq!(get("").await.status, 403);
    assert_eq!(get(refused).await.status, 403);
    let answer = get(allowed).await;
    assert_eq!(answer.status, 200);
    let granted = "access-control-allow-origin: https://app.example\r\n";
    assert!(answer.head.contains(granted), "{}", answer.head);
    assert!(answer.head.contains("vary: origin\r\n"));
    let token = answer.json()["session"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let target = format!("/room/tea?resume={token}&sent=0");
    let post = async |headers: &str| request(server.address, "POST", &target, headers, b"{}").await;
    assert_eq!(post(refused).await.status, 403);
    let answer = post(allowed).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains(granted));
    // An error is readable too.
    let answer = request(server.address, "POST", "/room/tea", allowed, b"").await;
    assert_eq!(answer.status, 400);
    assert!(answer.head.contains(granted));

    let preflight = async |headers: &str| {
        let headers = format!("{headers}Access-Control-Request-Method: DELETE\r\n");
        request(server.address, "OPTIONS", &target, &headers, b"").await
    };
    let answer = preflight(allowed).await;
    assert_eq!(answer.status, 204);
    assert!(answer.head.contains(granted));
    assert!(
        answer
            .head
            .contains("access-control-allow-methods: get, post, delete, options\r\n")
    );
    assert_eq!(preflight(refused).await.status, 403);
}

#[tokio::test]
async fn a_page_of_the_server_itself_names_no_origin() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://rooms.example".parse().unwrap()];
    })
    .await;
    let mut raw = Raw::connect(&server).await;
    raw.write(
        "GET /room/tea HTTP/1.0\r\nHost: rooms.example\r\nSec-Fetch-Site: same-origin\r\n\
         Accept: application/json\r\n\r\n",
    )
    .await;
    assert!(raw.read_head().await.starts_with("HTTP/1.0 200 "));
    let mut raw = Raw::connect(&server).await;
    raw.write(
        "GET /room/tea HTTP/1.0\r\nHost: evil.example\r\nSec-Fetch-Site: same-origin\r\n\
         Accept: application/json\r\n\r\n",
    )
    .await;
    assert!(raw.read_head().await.starts_with("HTTP/1.0 403 "));
}

#[cfg(feature = "tokens")]
#[tokio::test]
async fn a_stream_needs_a_token_and_ends_with_it() {
    use crate::{
        support::{File, in_seconds},
        tokens::{SECRET, sign, with_secret},
    };

    let key = File::new("streams-key", SECRET);
    let server = TestServer::with(|config| with_secret(config, &key)).await;
    let accept = "Accept: text/event-stream\r\n";
    let answer = request(server.address, "GET", "/room/tea", accept, b"").await;
    assert_eq!(answer.status, 401);
    let token = sign(json!({"sub": "alice", "exp": in_seconds(2)}));
    let headers = format!("Authorization: Bearer {token}\r\n");
    let mut alice = EventStream::open(server.address, "/room/tea", &headers).await;
    alice.learn_token().await;
    let (code, reason) = alice.expect_close().await;
    assert_eq!((code, &*reason), (1008, "the token has expired"));
}

#[tokio::test]
async fn polls_do_not_count_for_the_rate_of_joins() {
    let server = TestServer::with(|config| {
        config.limits.joins_per_second = NonZeroU32::new(1);
    })
    .await;
    let joined = poll(server.address, "/room/tea").await;
    let token = joined["session"]["token"].as_str().unwrap();
    let target = format!("/room/tea?resume={token}&received=0&wait=0");
    for _ in 0..50 {
        assert_eq!(poll(server.address, &target).await["count"], 0);
    }
}

#[tokio::test]
async fn sessions_are_counted_and_forgotten_like_others() {
    let server = TestServer::with(|config| config.liveness.resume_seconds = 0).await;
    let streams = join_all((0..20).map(|_| EventStream::join(server.address, "tea"))).await;
    assert_eq!(server.count("anteroom_sessions"), 20);
    for stream in &streams {
        let answer = request(server.address, "DELETE", &stream.target(), "", b"").await;
        assert_eq!(answer.status, 204);
    }
    eventually("all have left", || server.count("anteroom_sessions") == 0).await;
    assert_eq!(server.count("anteroom_leaves_total{cause=\"left\"}"), 20);
}

#[tokio::test]
async fn a_request_that_resumes_nothing_counts_for_the_rate_of_joins() {
    let server = TestServer::with(|config| {
        config.limits.joins_per_second = NonZeroU32::new(1);
    })
    .await;
    let joined = poll(server.address, "/room/tea").await;
    let token = joined["session"]["token"].as_str().unwrap();
    let target = format!("/room/tea?resume={token}&received=999&wait=0");
    let accept = "Accept: application/json\r\n";
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let answer = request(server.address, "GET", &target, accept, b"").await;
        statuses.push(answer.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn what_overflows_the_outbox_of_its_author_is_counted_as_it_is_taken_in() {
    let server = TestServer::with(|config| config.limits.outbox_bytes = 70_000).await;
    let bob = EventStream::join(server.address, "tea").await;
    let ping = json!({"type": "ping", "receiver": "server", "data": "x".repeat(1000)});
    let lines = format!("{ping}\n").repeat(900);
    let overflows = || server.count("anteroom_slow_readers_total");
    let mut taken_in = 1;
    // It reads nothing meanwhile, so that the answers wait once the socket is full.
    for _ in 0..100 {
        let answer = bob.post(taken_in, lines.as_bytes()).await;
        taken_in = answer.json()["received"].as_u64().unwrap();
        if overflows() > 0 {
            break;
        }
    }
    assert_eq!(overflows(), 1);
    let answer = bob.post(taken_in, ping.to_string().as_bytes()).await;
    let taken_in = answer.json()["received"].as_u64().unwrap();
    // The session knows as many as the client was told.
    let target = format!("{}&received={}&wait=0", bob.target(), taken_in);
    let resumed = poll(server.address, &target).await;
    assert_eq!(
        resumed["messages"][0]["data"]["received"], taken_in,
        "{resumed}"
    );
}

#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tokens",
    feature = "turn"
))]
mod in_a_cluster {
    use super::*;
    use crate::cluster::Nats;

    #[tokio::test]
    #[ignore = "needs nats-server: tests/run starts this test"]
    async fn requests_may_come_to_any_node_in_any_order() {
        let nats = Nats::start().await;
        let nodes: [TestServer; 3] = nats.nodes().await;
        let mut alice = Client::join(&nodes[0], "tea").await;
        let mut bob = EventStream::join(nodes[1].address, "tea").await;
        alice.expect_new(&bob.id).await;
        let line = |number: u64| {
            json!({"type": "x", "receiver": "all", "data": number})
                .to_string()
                .into_bytes()
        };
        const COUNT: u64 = 60;
        for number in (1..=COUNT).step_by(6) {
            let posts = (number..number + 6).rev().map(|number| {
                let address = nodes[number as usize % 3].address;
                let (bob, body) = (&bob, line(number));
                async move { bob.post_to(address, number, &body).await }
            });
            for answer in join_all(posts).await {
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        for number in 1..=COUNT {
            assert_eq!(alice.next().await["data"], number);
        }
        alice.send(json!({"type": "y", "receiver": bob.id})).await;
        assert_eq!(bob.next().await["type"], "y");

        // Bytes that are no JSON are refused where they are taken in.
        let answer = bob
            .post_to(nodes[2].address, COUNT + 1, b"nonsense\n\"")
            .await;
        assert_eq!(answer.json(), json!({"received": COUNT + 3}));
        for _ in 0..2 {
            assert_eq!(bob.next().await["data"]["code"], "bad_message");
        }
        let target = bob.target();
        let answer = request(nodes[0].address, "DELETE", &target, "", b"").await;
        assert_eq!(answer.status, 204, "{answer:?}");
        alice.expect_left(&bob.id).await;
        for node in &nodes {
            let answer = bob.post_to(node.address, COUNT + 3, b"{}").await;
            assert_eq!(answer.status, 404, "{answer:?}");
        }
    }

    #[tokio::test]
    #[ignore = "needs nats-server: tests/run starts this test"]
    async fn a_long_request_goes_to_another_node_in_parts() {
        let nats = Nats::start().await;
        let nodes: [TestServer; 2] = nats.nodes().await;
        let mut alice = Client::join(&nodes[0], "tea").await;
        let bob = EventStream::join(nodes[1].address, "tea").await;
        alice.expect_new(&bob.id).await;
        // NATS takes no message over a MiB, and the lines are in base64 there.
        const COUNT: usize = 40;
        let data = "x".repeat(25_000);
        let line = |number| json!({"type": "x", "receiver": "all", "data": [number, data]});
        let lines: String = (0..COUNT).map(|it| format!("{}\n", line(it))).collect();
        assert!((900_000..1 << 20).contains(&lines.len()));
        let answer = bob.post_to(nodes[0].address, 1, lines.as_bytes()).await;
        assert_eq!(answer.json(), json!({"received": COUNT + 1}));
        for number in 0..COUNT {
            assert_eq!(alice.next().await["data"][0], number);
        }
    }

    #[tokio::test]
    #[ignore = "needs nats-server: tests/run starts this test"]
    async fn a_session_that_changes_node_and_transport_loses_and_doubles_nothing() {
        let nats = Nats::start().await;
        let nodes: [TestServer; 2] = nats.nodes().await;
        let mut random = seeded();
        let mut alice = Client::join(&nodes[0], "tea").await;
        let mut bob = EventStream::join(nodes[1].address, "tea").await;
        alice.expect_new(&bob.id).await;
        let (mut said, mut got, mut up) = (0, 0, 0);
        for _ in 0..50 {
            for _ in 0..random.random_range(0..3) {
                alice
                    .send(json!({"type": "down", "receiver": bob.id, "data": said}))
                    .await;
                said += 1;
            }
            let node = &nodes[random.random_range(0..2)];
            let target = format!("{}&received={}", bob.target(), bob.count);
            if random.random_bool(0.3) {
                let mut socket = Client::connect(node.address, &target).await;
                assert_eq!(socket.next().await["data"]["received"], bob.sent);
                socket
                    .send(json!({"type": "up", "receiver": "all", "data": up}))
                    .await;
                assert_eq!(alice.next().await["data"], up);
                (up, bob.sent) = (up + 1, bob.sent + 1);
                drop(socket.into_raw());
                continue;
            }
            bob.resume(node.address).await;
            assert_eq!(bob.next().await["data"]["received"], bob.sent);
            while got < said {
                assert_eq!(bob.next().await["data"], got);
                got += 1;
            }
            // Its messages come to the other node, twice.
            let body = json!({"type": "up", "receiver": "all", "data": up}).to_string();
            for node in &nodes {
                let answer = bob.post_to(node.address, bob.sent, body.as_bytes()).await;
                assert_eq!(answer.json(), json!({"received": bob.sent + 1}));
            }
            assert_eq!(alice.next().await["data"], up);
            (up, bob.sent) = (up + 1, bob.sent + 1);
        }
        alice.expect_quiet().await;
    }

    #[tokio::test]
    #[ignore = "needs nats-server: tests/run starts this test"]
    async fn a_client_that_polls_any_node_misses_nothing() {
        let nats = Nats::start().await;
        let nodes: [TestServer; 2] = nats.nodes().await;
        let mut alice = Client::join(&nodes[0], "tea").await;
        let joined = poll(nodes[0].address, "/room/tea").await;
        let token = joined["session"]["token"].as_str().unwrap().to_owned();
        let id = alice.next().await["sender"].clone();
        let mut count = json!(0);
        for number in 0..20 {
            alice
                .send(json!({"type": "x", "receiver": id, "data": number}))
                .await;
            let target = format!("/room/tea?resume={token}&received={count}");
            let answer = poll(nodes[number % 2].address, &target).await;
            let messages = answer["messages"].as_array().unwrap();
            assert_eq!(messages.last().unwrap()["data"], number, "{answer}");
            count = answer["count"].clone();
        }
        assert_eq!(count, 20);
    }
}

#[cfg(all(
    feature = "cli",
    feature = "cluster",
    feature = "tls",
    feature = "tokens",
    feature = "turn"
))]
mod behind_proxies {
    use std::net::SocketAddr;

    use tokio::time::timeout;

    use super::*;
    use crate::{
        cluster::Nats,
        doctor::haproxy,
        operating::{NginxProcess, free_port},
    };

    /// Where a proxy listens.
    fn proxy() -> SocketAddr {
        ([127, 0, 0, 1], free_port()).into()
    }

    /// nginx at an address with these directives, which passes everything to the servers in turn.
    async fn nginx(name: &str, at: SocketAddr, more: &str, servers: &[SocketAddr]) -> NginxProcess {
        let servers: String = servers.iter().map(|it| format!("server {it};")).collect();
        let blocks = format!(
            "upstream rooms {{ {servers} }}\n\
             server {{ listen {at}; location / {{ proxy_pass http://rooms; {more} }} }}\n"
        );
        NginxProcess::start(name, at.port(), &blocks).await
    }

    /// A stream through a proxy hears and speaks.
    async fn expect_stream(server: &TestServer, proxy: SocketAddr) {
        let mut alice = Client::join(server, "tea").await;
        let mut bob = EventStream::join(proxy, "tea").await;
        alice.expect_new(&bob.id).await;
        for number in 0..10 {
            bob.send(json!({"type": "x", "receiver": "all", "data": number}))
                .await;
            assert_eq!(alice.next().await["data"], number);
            alice
                .send(json!({"type": "x", "receiver": "all", "data": number}))
                .await;
            assert_eq!(bob.next().await["data"], number);
        }
        // The proxy passes the loss of the connection on.
        bob.lose().await;
        server.expect_suspended(1).await;
        let target = bob.target();
        assert_eq!(request(proxy, "DELETE", &target, "", b"").await.status, 204);
        alice.expect_left(&bob.id).await;
    }

    #[tokio::test]
    #[ignore = "needs nginx: tests/run starts this test"]
    async fn nginx_with_its_defaults_passes_events_on_at_once() {
        let (server, at) = (TestServer::start().await, proxy());
        let _nginx = nginx("streams", at, "", &[server.address]).await;
        expect_stream(&server, at).await;
    }

    #[tokio::test]
    #[ignore = "needs nginx: tests/run starts this test"]
    async fn where_nginx_holds_events_back_long_polling_works() {
        let (server, at) = (TestServer::start().await, proxy());
        let holding = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;";
        let _nginx = nginx("streams-held", at, holding, &[server.address]).await;
        let mut alice = Client::join(&server, "tea").await;
        let joined = poll(at, "/room/tea").await;
        let token = joined["session"]["token"].as_str().unwrap();
        let id = alice.next().await["sender"].clone();
        let target = format!("/room/tea?resume={token}&received=0");
        // Not even the head comes.
        let head = EventStream::open(at, &target, "");
        assert!(timeout(Duration::from_secs(1), head).await.is_err());
        let mut count = json!(0);
        for number in 0..5 {
            alice
                .send(json!({"type": "x", "receiver": id, "data": number}))
                .await;
            let target = format!("/room/tea?resume={token}&received={count}");
            let answer = poll(at, &target).await;
            let messages = answer["messages"].as_array().unwrap();
            assert_eq!(messages.last().unwrap()["data"], number);
            count = answer["count"].clone();
        }
    }

    #[tokio::test]
    #[ignore = "needs haproxy: tests/run starts this test"]
    async fn haproxy_passes_events_on_at_once() {
        // haproxy notices the loss of a connection when it has something to pass on.
        let server = TestServer::with(|config| config.liveness.ping_seconds = 1).await;
        let at = proxy();
        let frontend = "mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n";
        let _haproxy = haproxy("streams-haproxy", at.port(), frontend, server.address).await;
        expect_stream(&server, at).await;
    }

    #[tokio::test]
    #[ignore = "needs nats-server and nginx: tests/run starts this test"]
    async fn two_nodes_without_affinity_serve_one_session() {
        let nats = Nats::start().await;
        let nodes: [TestServer; 2] = nats.nodes().await;
        let at = proxy();
        let addresses = [nodes[0].address, nodes[1].address];
        let _nginx = nginx("streams-nodes", at, "", &addresses).await;
        let mut alice = Client::join(&nodes[0], "tea").await;
        let mut bob = EventStream::join(at, "tea").await;
        alice.expect_new(&bob.id).await;
        for round in 0..10 {
            for number in 0..5 {
                bob.send(json!({"type": "x", "receiver": "all", "data": number}))
                    .await;
                assert_eq!(alice.next().await["data"], number);
                alice
                    .send(json!({"type": "x", "receiver": bob.id, "data": number}))
                    .await;
                assert_eq!(bob.next().await["data"], number, "in round {round}");
            }
            bob.resume(at).await;
            assert_eq!(bob.next().await["data"]["received"], bob.sent);
        }
        alice.expect_quiet().await;
    }
}
