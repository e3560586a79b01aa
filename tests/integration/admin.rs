//! The admin API: access control, rooms and sessions, messages from a backend, draining, metrics.

use anteroom::{Config, Server};
use serde_json::json;
use tokio::net::TcpStream;

#[cfg(feature = "cli")]
use crate::support::Program;
use crate::support::{
    Answer, Client, File, Raw, TestServer, eventually, hold_little, in_seconds,
    operator_with as ask, within_deadline,
};

/// The bearer token of the admin API.
const SECRET: &str = "the operators' secret, which is long enough";

/// Sends a GET request to the admin API.
async fn get(server: &TestServer, path: &str) -> Answer {
    ask(server, "GET", path, "", "").await
}

/// A server with an admin listener.
async fn server() -> TestServer {
    TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        // No ping during a test: it would count in `waitingBytes`.
        config.liveness.ping_seconds = 3600;
    })
    .await
}

#[tokio::test]
async fn the_admin_api_lists_rooms_and_sessions() {
    let server = server().await;
    assert_eq!(get(&server, "/rooms").await.json(), json!({"rooms": []}));
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let _carol = Client::join(&server, "b%20%C3%A4").await;
    alice.expect_new(&bob.id).await;
    bob.send(json!({"type": "x", "receiver": "all", "ref": 1}))
        .await;
    assert_eq!(bob.next().await["type"], "ack");
    assert_eq!(alice.next().await["type"], "x");
    let rooms = get(&server, "/rooms").await;
    assert!(
        rooms.head.contains("content-type: application/json"),
        "{}",
        rooms.head
    );
    assert!(
        rooms.head.contains("cache-control: no-store"),
        "{}",
        rooms.head
    );
    let expected =
        json!({"rooms": [{"room": "b ä", "sessions": 1}, {"room": "tea", "sessions": 2}]});
    assert_eq!(rooms.json(), expected);

    let room = get(&server, "/rooms/tea").await.json();
    assert_eq!(room["room"], "tea");
    let sessions = room["sessions"].as_array().unwrap();
    let without_times: Vec<_> = sessions
        .iter()
        .map(|session| {
            let since = session["since"].as_str().unwrap();
            assert!(
                since.starts_with("20") && since.ends_with('Z') && since.len() == 24,
                "{since}"
            );
            let mut rest = session.clone();
            let rest_fields = rest.as_object_mut().unwrap();
            rest_fields.remove("since");
            // A ping may wait just now.
            assert!(rest_fields.remove("waitingBytes").unwrap().is_u64());
            rest
        })
        .collect();
    let session = |id: &str, received, sent| {
        json!({
            "id": id, "data": null, "address": "127.0.0.1", "messagesReceived": received, "binary": 0,
            "messagesSent": sent, "away": false,
        })
    };
    // Alice was sent `hello`, `new` and `x`; Bob was sent `hello` and `ack`.
    assert_eq!(
        without_times,
        [session(&alice.id, 1, 3), session(&bob.id, 2, 2)]
    );
    let encoded = get(&server, "/rooms/b%20%C3%A4").await.json();
    assert_eq!(encoded["sessions"].as_array().unwrap().len(), 1);

    for (path, error) in [
        ("/rooms/nowhere", (404, "unknown_room")),
        ("/rooms/%FF", (400, "bad_room")),
        ("/nothing", (404, "not_found")),
        ("/rooms/tea/sessions", (404, "not_found")),
    ] {
        let answer = get(&server, path).await;
        assert_eq!(answer.code(), (error.0, error.1.into()), "{path}");
    }
    let posted = ask(&server, "POST", "/rooms", "", "").await;
    assert_eq!(posted.code(), (405, "bad_method".into()));
}

#[tokio::test]
async fn the_admin_api_shows_a_suspended_session_and_its_replay_buffer() {
    let server = server().await;
    let mut alice = Client::connect(server.address, "/room/tea").await;
    alice.ask_for_resume_token().await;
    let id = alice.id.clone();
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    let before = server.count("anteroom_outbox_bytes");
    let mut bob = Client::join(&server, "tea").await;
    let data = "x".repeat(1000);
    bob.send(json!({"type": "x", "receiver": id, "data": data, "ref": 1}))
        .await;
    assert_eq!(bob.next().await["type"], "ack");
    let room = get(&server, "/rooms/tea").await.json();
    assert_eq!(room["sessions"][0]["away"], true);
    // The replay buffer counts as waiting.
    assert!(
        room["sessions"][0]["waitingBytes"].as_u64().unwrap() > 1000,
        "{room}"
    );
    assert!(server.count("anteroom_outbox_bytes") > before + 1000);
}

#[tokio::test]
async fn the_admin_api_closes_sessions() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    let path = |room: &str, id: &str| format!("/rooms/{room}/sessions/{id}");
    for (path, code) in [
        (path("coffee", &bob.id), "unknown_room"),
        (path("tea", "nobody"), "unknown_receiver"),
        (path("tea", &bob.id.to_uppercase()), "unknown_receiver"),
    ] {
        let answer = ask(&server, "DELETE", &path, "", "").await;
        assert_eq!(answer.code(), (404, code.into()), "{path}");
    }
    let closed = ask(&server, "DELETE", &path("tea", &bob.id), "", "").await;
    assert_eq!((closed.status, &*closed.body), (204, ""));
    assert_eq!(
        bob.expect_close().await,
        (1008, "closed by an operator".into())
    );
    alice.expect_left(&bob.id).await;
    let again = ask(&server, "DELETE", &path("tea", &bob.id), "", "").await;
    assert_eq!(again.code(), (404, "unknown_receiver".into()));
    alice.expect_quiet().await;
}

#[tokio::test]
async fn a_backend_sends_as_the_server_to_one_session_or_to_all() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let mut carol = Client::join(&server, "coffee").await;
    alice.expect_new(&bob.id).await;
    let post = async |room: &str, body: String| {
        let path = format!("/rooms/{room}/messages");
        ask(&server, "POST", &path, "", &body).await
    };
    let to_all = r#"{"type":"notice","receiver":"all","data":{"b":1.0,"a": 2}}"#;
    let answer = post("tea", to_all.into()).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"receivers": 2}))
    );
    let expected =
        r#"{"type":"notice","sender":"server","receiver":"all","data":{"b":1.0,"a": 2}}"#;
    alice.expect_text(expected).await;
    bob.expect_text(expected).await;
    let to_bob = json!({"type": "notice", "sender": "me", "receiver": bob.id, "data": 7});
    assert_eq!(
        post("tea", to_bob.to_string()).await.json(),
        json!({"receivers": 1})
    );
    let expected = format!(
        r#"{{"type":"notice","sender":"server","receiver":"{}","data":7}}"#,
        bob.id
    );
    bob.expect_text(&expected).await;

    let to = |kind: &str, receiver: &str| json!({"type": kind, "receiver": receiver}).to_string();
    for (room, body, error) in [
        ("coffee", to("notice", &bob.id), (404, "unknown_receiver")),
        ("milk", to("notice", "all"), (404, "unknown_room")),
        ("tea", to("notice", "server"), (400, "bad_message")),
        ("tea", to("notice", "nobody"), (400, "bad_message")),
        ("tea", to("new", "all"), (400, "bad_message")),
        ("tea", to("resumed", &bob.id), (400, "bad_message")),
        ("tea", String::new(), (400, "bad_message")),
        ("tea", "[]".into(), (400, "bad_message")),
        ("tea", r#"{"type":"x"}"#.into(), (400, "bad_message")),
        ("tea", "x".repeat(70_000), (413, "bad_message")),
    ] {
        let answer = post(room, body.clone()).await;
        assert_eq!(answer.code(), (error.0, error.1.into()), "{body}");
    }
    let mut raw = Raw::connect_to(server.admin.unwrap()).await;
    let without_length = "POST /rooms/tea/messages HTTP/1.1\r\nHost: localhost\r\n\
                      Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    raw.write(without_length).await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 411 "));
    for client in [&mut alice, &mut bob, &mut carol] {
        client.expect_quiet().await;
    }
    assert_eq!(server.count("anteroom_deliveries_total"), 3);
}

#[tokio::test]
async fn a_message_to_every_room_reaches_each_session_once() {
    let server = server().await;
    let notice = r#"{"type":"notice","receiver":"all","data":"back in five minutes"}"#;
    let post = async |body: &str| ask(&server, "POST", "/messages", "", body).await;
    assert_eq!(post(notice).await.json(), json!({"receivers": 0}));
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    let mut carol = Client::join(&server, "coffee").await;
    alice.expect_new(&bob.id).await;
    let answer = post(notice).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"receivers": 3}))
    );
    let to = |kind: &str, receiver: &str| json!({"type": kind, "receiver": receiver}).to_string();
    for body in [
        to("notice", &bob.id),
        to("notice", "server"),
        to("close", "all"),
        "nonsense".into(),
    ] {
        assert_eq!(post(&body).await.code(), (400, "bad_message".into()));
    }
    let too_long = post(&"x".repeat(70_000)).await;
    assert_eq!(too_long.code(), (413, "bad_message".into()));
    for client in [&mut alice, &mut bob, &mut carol] {
        client
            .expect_text(
                r#"{"type":"notice","sender":"server","receiver":"all","data":"back in five minutes"}"#,
            )
            .await;
        client.expect_quiet().await;
    }
    assert_eq!(server.count("anteroom_deliveries_total"), 3);
}

#[tokio::test]
async fn the_status_tells_the_version_and_the_start() {
    let server = server().await;
    let mut status = get(&server, "/status").await.json();
    let started_at = status["startedAt"].take();
    let started_at = started_at.as_str().unwrap();
    assert!(
        started_at.starts_with("20") && started_at.ends_with('Z') && started_at.len() == 24,
        "{started_at}"
    );
    let expected = json!({
        "version": env!("CARGO_PKG_VERSION"), "startedAt": null, "node": null, "nodes": [],
        "peerConnections": [
            {"result": "connected", "path": "host", "count": 0},
            {"result": "connected", "path": "srflx", "count": 0},
            {"result": "connected", "path": "prflx", "count": 0},
            {"result": "connected", "path": "relay", "count": 0},
            {"result": "failed", "path": "none", "count": 0},
        ],
    });
    assert_eq!(status, expected);
}

#[tokio::test]
async fn many_messages_to_a_large_room_at_once_close_no_client_whose_socket_has_space() {
    const MESSAGES: usize = 300;
    // The messages are more than twice as much as an outbox holds.
    let server = TestServer::with(|config| {
        hold_little(config, 100_000);
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let mut members = Vec::new();
    for _ in 0..100 {
        members.push(Raw::join(&server, "large").await);
    }
    let address = server.admin.unwrap();
    let mut backends = Vec::new();
    for _ in 0..MESSAGES {
        backends.push(Raw::connect_to(address).await);
    }
    let body = json!({"type": "notice", "receiver": "all", "data": "d".repeat(1000)}).to_string();
    let request = format!(
        "POST /rooms/large/messages HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Raw::write_at_once(&backends, request);
    Raw::expect_from_all(&mut members, "notice", MESSAGES).await;
    server.expect_no_slow_readers();
}

#[tokio::test]
async fn with_an_admin_token_a_request_without_it_is_rejected() {
    let file = File::new("operators", format!("{SECRET}\n"));
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.admin.token_file = Some(file.path());
    })
    .await;
    let alice = Client::join(&server, "tea").await;
    let delete = format!("/rooms/tea/sessions/{}", alice.id);
    let requests = [
        ("GET", "/metrics"),
        ("GET", "/rooms"),
        ("GET", "/rooms/tea"),
        ("DELETE", &delete),
        ("GET", "/status"),
        ("POST", "/rooms/tea/messages"),
        ("POST", "/messages"),
        ("POST", "/drain"),
    ];
    for (method, path) in requests {
        for credentials in [
            "",
            "Basic YTpi",
            "Bearer",
            "Bearer x",
            &format!("Bearer {SECRET}x"),
            SECRET,
        ] {
            let header = match credentials {
                "" => String::new(),
                credentials => format!("Authorization: {credentials}\r\n"),
            };
            let answer = ask(&server, method, path, &header, "{}").await;
            assert_eq!(
                answer.code(),
                (401, "unauthorized".into()),
                "{method} {path} {credentials}"
            );
            assert!(
                answer.head.contains("\r\nwww-authenticate: bearer\r\n"),
                "{}",
                answer.head
            );
        }
    }
    assert!(server.anteroom.is_ready());
    // Pages and checks that reveal nothing of sessions stay open, for load balancers and browsers.
    for path in ["/health", "/ready", "/"] {
        assert_eq!(get(&server, path).await.status, 200, "{path}");
    }
    let header = format!("Authorization: Bearer {SECRET}\r\n");
    assert_eq!(ask(&server, "GET", "/rooms", &header, "").await.status, 200);
    // With the token, any `Host` is accepted.
    let header = format!("Host: rooms.example.org\r\n{header}");
    assert_eq!(ask(&server, "GET", "/rooms", &header, "").await.status, 200);

    let mut exposed = Config::default();
    exposed.admin.listen = Some(([0, 0, 0, 0], 0).into());
    let error = Server::bind(exposed).err().unwrap().to_string();
    assert!(error.ends_with("it needs --admin-token-file"), "{error}");
}

#[tokio::test]
async fn without_an_admin_token_other_origins_hosts_and_proxies_are_rejected() {
    let server = server().await;
    let address = server.admin.unwrap();
    let alice = Client::join(&server, "tea").await;
    let delete = format!("/rooms/tea/sessions/{}", alice.id);
    let own = format!("Origin: http://{address}\r\n");
    for (headers, allowed) in [
        (String::new(), true),
        (own, true),
        (format!("Host: localhost:{}\r\n", address.port()), true),
        ("Host: [::1]:9090\r\n".into(), true),
        ("Origin: https://evil.example\r\n".into(), false),
        ("Origin: null\r\n".into(), false),
        (format!("Origin: http://{address}.evil.example\r\n"), false),
        (
            format!("Origin: http://localhost:{}\r\n", address.port()),
            false,
        ),
        // Another name that resolves to this machine, as in DNS rebinding.
        ("Host: evil.example\r\n".into(), false),
        (
            "Host: evil.example\r\nOrigin: http://evil.example\r\n".into(),
            false,
        ),
        ("Host: 127.0.0.1.evil.example\r\n".into(), false),
        // A proxy, which may forward requests of other machines.
        ("X-Forwarded-For: 203.0.113.9\r\n".into(), false),
        ("Forwarded: for=203.0.113.9\r\n".into(), false),
        ("Via: 1.1 proxy\r\n".into(), false),
        ("X-Real-IP: 203.0.113.9\r\n".into(), false),
        ("X-Forwarded-Proto: https\r\n".into(), false),
        (
            format!("Origin: http://{address}\r\nOrigin: http://evil.example\r\n"),
            false,
        ),
    ] {
        let answer = ask(&server, "GET", "/rooms", &headers, "").await;
        assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{headers}");
        if !allowed {
            for (method, path) in [
                ("DELETE", &*delete),
                ("POST", "/drain"),
                ("GET", "/metrics"),
            ] {
                let answer = ask(&server, method, path, &headers, "").await;
                assert_eq!(
                    answer.code(),
                    (403, "forbidden".into()),
                    "{method} {headers}"
                );
            }
        }
    }
    // An invalid `Host`, or two of them.
    for host in [
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: evil@localhost\r\n",
    ] {
        for (method, path) in [
            ("GET", "/rooms"),
            ("DELETE", &*delete),
            ("POST", "/drain"),
            ("GET", "/metrics"),
        ] {
            let answer = ask(&server, method, path, host, "").await;
            assert_eq!(answer.status, 400, "{method} {host}");
        }
    }
    assert!(server.anteroom.is_ready());
    assert_eq!(server.anteroom.sessions(), 1);
}

#[tokio::test]
async fn a_draining_server_keeps_its_sessions_and_rejects_new_ones() {
    let server = server().await;
    assert_eq!(
        (
            get(&server, "/ready").await.status,
            get(&server, "/health").await.status
        ),
        (200, 200)
    );
    let mut alice = Client::connect(server.address, "/room/tea").await;
    let token = alice.ask_for_resume_token().await;
    let drained = ask(&server, "POST", "/drain", "", "").await;
    assert_eq!(
        (drained.status, drained.json()),
        (200, json!({"sessions": 1}))
    );
    let ready = get(&server, "/ready").await;
    assert_eq!((ready.status, &*ready.body), (503, "draining\n"));
    assert_eq!(get(&server, "/health").await.status, 200);
    let rejected = Raw::upgrade(&server, "/room/tea", "").await.err().unwrap();
    assert_eq!(rejected.status, 503);
    assert!(
        rejected.head.contains("\r\nretry-after: 5\r\n"),
        "{}",
        rejected.head
    );
    // A session that loses its connection can still resume.
    alice
        .send(json!({"type": "ping", "receiver": "server", "data": 1}))
        .await;
    drop(alice.into_raw());
    server.expect_suspended(1).await;
    let path = format!("/room/tea?resume={token}&received=1");
    let mut alice = Client::connect(server.address, &path).await;
    assert_eq!(alice.next().await["data"], json!({"received": 2}));
    assert_eq!(alice.next().await["data"], 1);
    alice.leave().await;
    eventually("the leave", || server.anteroom.sessions() == 0).await;
}

#[tokio::test]
async fn the_admin_api_answers_until_the_last_session_has_left() {
    let mut server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.stopping.drain_seconds = 20;
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    // An idle connection, like that of a metrics scraper, must not delay the stop.
    let idle = TcpStream::connect(server.admin.unwrap()).await.unwrap();
    server.stop();
    assert_eq!(alice.expect_close().await.0, 1012);
    let ready = get(&server, "/ready").await;
    assert_eq!((ready.status, &*ready.body), (503, "draining\n"));
    assert!(
        get(&server, "/metrics")
            .await
            .body
            .contains("anteroom_closes_total{code=\"1012\"} 1")
    );
    drop(alice.into_raw());
    server.stopped().await;
    drop(idle);
}

#[tokio::test]
async fn only_the_admin_listener_serves_the_admin_page_and_api() {
    let server = server().await;
    for (path, part) in [
        ("/", "<title>anteroom: rooms and sessions</title>"),
        ("/admin.js", "showSessions"),
        ("/admin.css", "#totals"),
        ("/dom.js", "export"),
    ] {
        let page = get(&server, path).await;
        assert!(page.status == 200 && page.body.contains(part), "{path}");
        assert!(
            page.head
                .contains("content-security-policy: default-src 'none'"),
            "{path}"
        );
        assert!(!page.head.contains("access-control-allow-origin"), "{path}");
    }
    for path in [
        "/rooms",
        "/metrics",
        "/ready",
        "/admin.js",
        "/admin/admin.js",
        "/drain",
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.write(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
            .await;
        assert!(raw.read_head().await.starts_with("HTTP/1.1 404 "), "{path}");
    }
}

/// Every sample of the metrics: its series and its value.
fn samples(metrics: &str) -> impl Iterator<Item = (&str, f64)> {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series, value.parse().unwrap())
    })
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn the_metrics_show_what_the_process_takes() {
    let before = in_seconds(0) as f64;
    let server = TestServer::start().await;
    let value = |wanted: &str| {
        let metrics = server.anteroom.metrics();
        let mut found = samples(&metrics).filter(|(series, _)| *series == wanted);
        found.next().unwrap_or_else(|| panic!("no {wanted}")).1
    };
    let started = value("process_start_time_seconds");
    assert!(started >= before && started < before + 60.0, "{started}");
    assert!(value("process_resident_memory_bytes") > 1_000_000.0);
    let cpu = value("process_cpu_seconds_total");
    eventually("processor time", || {
        value("process_cpu_seconds_total") > cpu
    })
    .await;
}

#[tokio::test]
async fn the_metrics_count_exactly_what_happens() {
    let server = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.liveness.ping_seconds = 1;
        config.limits.max_room_sessions = std::num::NonZeroU32::new(2);
    })
    .await;
    let mut alice = Client::join(&server, "tea").await;
    let mut bob = Client::join(&server, "tea").await;
    alice.expect_new(&bob.id).await;
    for _ in 0..10 {
        bob.send(json!({"type": "x", "receiver": "all", "ref": 1}))
            .await;
        assert_eq!(bob.next().await["type"], "ack");
        assert_eq!(alice.next().await["type"], "x");
    }
    bob.send_text("nonsense").await;
    bob.expect_error("bad_message").await;
    assert!(Raw::upgrade(&server, "/room/tea", "").await.is_err());
    bob.send_text(&"x".repeat(65_537)).await;
    assert_eq!(bob.expect_close().await.0, 1009);
    alice.expect_left(&bob.id).await;
    within_deadline("a pong", async {
        while server.count("anteroom_ping_round_trip_seconds_count") == 0 {
            // tungstenite answers pings while it reads.
            alice.expect_quiet().await;
        }
    })
    .await;
    let metrics = get(&server, "/metrics").await;
    let content_type =
        "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(metrics.head.contains(content_type), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"));
    let value = |wanted: &str| {
        let mut found = samples(&metrics.body).filter(|(series, _)| *series == wanted);
        found
            .next()
            .unwrap_or_else(|| panic!("no {wanted} in {}", metrics.body))
            .1 as u64
    };
    assert_eq!(value("anteroom_sessions"), 1);
    assert_eq!(value("anteroom_rooms"), 1);
    assert_eq!(value("anteroom_joins_total"), 2);
    assert_eq!(value("anteroom_leaves_total{cause=\"closed\"}"), 1);
    assert_eq!(value("anteroom_upgrades_total{status=\"101\"}"), 2);
    assert_eq!(value("anteroom_upgrades_total{status=\"503\"}"), 1);
    assert_eq!(
        value("anteroom_limits_hit_total{limit=\"max-room-sessions\"}"),
        1
    );
    assert_eq!(value("anteroom_deliveries_total"), 10);
    assert_eq!(value("anteroom_errors_total{code=\"bad_message\"}"), 1);
    assert_eq!(value("anteroom_closes_total{code=\"1009\"}"), 1);
    assert_eq!(value("anteroom_slow_readers_total"), 0);
    assert_eq!(value("anteroom_outbox_bytes"), 0);
    let build = format!(
        "anteroom_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(value(&build), 1);
    // A counter exists before its first event.
    assert_eq!(value("anteroom_resumes_total{outcome=\"expired\"}"), 0);
    assert_eq!(
        value("anteroom_limits_hit_total{limit=\"bytes-per-second\"}"),
        0
    );
    // Two `hello`s, ten messages, one invalid message, and the pings of `expect_quiet`.
    let (received, sent) = (
        value("anteroom_messages_received_total"),
        value("anteroom_messages_sent_total"),
    );
    let pings = received - 13;
    // `new`, `close`, two `hello`s, ten receipts, ten messages, an error.
    assert_eq!(sent, 25 + pings);
    assert!(value("anteroom_received_bytes_total") > 14 * received);
    assert!(value("anteroom_sent_bytes_total") > 14 * sent);
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn the_program_prints_the_admin_address() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--drain-seconds",
            "0",
        ])
        .stderr(std::process::Stdio::null());
    let mut program = Program::run(command).await;
    let line = program.next_line().await;
    let address = line.strip_prefix("the admin API is on http://").unwrap();
    let mut raw = Raw::connect_to(address.parse().unwrap()).await;
    raw.write("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let head = raw.read_head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    // The open connection does not delay the exit.
    program.signal("TERM").await;
    assert_eq!(program.exit_code().await, Some(0));
}

#[tokio::test]
async fn the_admin_api_rejects_invalid_room_names() {
    let server = server().await;
    let message = r#"{"type":"notice","receiver":"all"}"#;
    for name in [".", "..", "%2e", "%2E%2e", ".%2E"] {
        for (method, path) in [
            ("GET", format!("/rooms/{name}")),
            ("POST", format!("/rooms/{name}/messages")),
            (
                "DELETE",
                format!("/rooms/{name}/sessions/6c1f0000-0000-4000-8000-000000000001"),
            ),
        ] {
            let answer = ask(&server, method, &path, "", message).await;
            assert_eq!(answer.code(), (400, "bad_room".into()), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn requests_from_pages_of_other_sites_are_rejected_even_with_the_token() {
    let file = File::new("embedded", format!("{SECRET}\n"));
    let open = server().await;
    let protected = TestServer::with(|config| {
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
        config.admin.token_file = Some(file.path());
    })
    .await;
    let bearer = format!("Authorization: Bearer {SECRET}\r\n");
    for (server, header) in [(&open, ""), (&protected, &*bearer)] {
        let alice = Client::join(server, "tea").await;
        let delete = format!("/rooms/tea/sessions/{}", alice.id);
        // Requests for images, scripts, links and frames have no `Origin`; browsers send `Sec-Fetch-Site`.
        for (sites, allowed) in [
            ("Sec-Fetch-Site: same-origin\r\n", true),
            ("Sec-Fetch-Site: none\r\n", true),
            ("Sec-Fetch-Site: cross-site\r\n", false),
            ("Sec-Fetch-Site: same-site\r\n", false),
            ("Sec-Fetch-Site: \r\n", false),
            ("Sec-Fetch-Site: of a later version\r\n", false),
            (
                "Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n",
                false,
            ),
        ] {
            let headers = format!("{sites}{header}");
            for path in ["/rooms", "/rooms/tea", "/metrics", "/status"] {
                for method in ["GET", "HEAD"] {
                    let answer = ask(server, method, path, &headers, "").await;
                    let status = if allowed { 200 } else { 403 };
                    assert_eq!(answer.status, status, "{method} {path} {sites}");
                    if !allowed && method == "GET" {
                        assert_eq!(answer.code(), (403, "forbidden".into()));
                    }
                }
            }
            if !allowed {
                for (method, path) in [
                    ("DELETE", &*delete),
                    ("POST", "/drain"),
                    ("POST", "/rooms/tea/messages"),
                    ("POST", "/messages"),
                ] {
                    let message = r#"{"type":"notice","receiver":"all"}"#;
                    let answer = ask(server, method, path, &headers, message).await;
                    assert_eq!(answer.code(), (403, "forbidden".into()), "{method} {path}");
                }
            }
            // Pages and checks that reveal nothing of sessions stay open.
            for path in ["/", "/admin.js", "/health", "/ready"] {
                assert_eq!(ask(server, "GET", path, sites, "").await.status, 200);
            }
        }
        assert!(server.anteroom.is_ready());
        assert_eq!(server.anteroom.sessions(), 1);
    }
}

#[tokio::test]
async fn no_admin_answer_can_be_embedded_elsewhere_or_sniffed() {
    let server = server().await;
    let address = server.admin.unwrap();
    let request = |first: &str, more: &str| {
        format!("{first} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{more}\r\n")
    };
    let long = format!("X-Filler: {}\r\n", "f".repeat(20_000));
    let too_long = "Content-Length: 70000\r\n";
    for (status, request) in [
        (200, request("GET /", "")),
        (200, request("GET /admin.js", "")),
        (200, request("GET /health", "")),
        (200, request("GET /ready", "")),
        (200, request("GET /metrics", "")),
        (200, request("GET /rooms", "")),
        (304, request("GET /", "If-None-Match: *\r\n")),
        (400, request("GET /rooms/%FF", "")),
        (400, request("OPTIONS *", "")),
        (
            400,
            "GET /rooms HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
        ),
        (403, request("GET /rooms", "Origin: null\r\n")),
        (404, request("GET /rooms/tea", "")),
        (404, request("GET /nothing", "")),
        (405, request("GET /drain", "")),
        (413, request("POST /rooms/tea/messages", too_long)),
        (431, request("GET /", &long)),
        (431, request("GET /", &"A: b\r\n".repeat(200))),
    ] {
        let mut raw = Raw::connect_to(address).await;
        raw.write(&request).await;
        let head = raw.read_head().await.to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        for header in [
            "\r\nx-content-type-options: nosniff\r\n",
            "\r\ncross-origin-resource-policy: same-origin\r\n",
        ] {
            assert!(head.contains(header), "{request}{head}");
        }
    }
    // Other sites may embed the files of the public listener.
    let mut raw = Raw::connect(&server).await;
    raw.write("GET /anteroom.js HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    let head = raw.read_head().await;
    assert!(!head.contains("cross-origin-resource-policy"), "{head}");
}

#[tokio::test]
async fn get_and_head_requests_change_nothing() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let session = format!("/rooms/tea/sessions/{}", alice.id);
    for method in ["GET", "HEAD"] {
        for (path, status) in [
            ("/metrics", 200),
            ("/rooms", 200),
            ("/rooms/tea", 200),
            ("/rooms/nowhere", 404),
            (&session, 405),
            ("/rooms/tea/messages", 405),
            ("/messages", 405),
            ("/status", 200),
            ("/drain", 405),
        ] {
            let answer = ask(&server, method, path, "", "").await;
            assert_eq!(answer.status, status, "{method} {path}");
        }
    }
    assert!(server.anteroom.is_ready());
    let counts = (server.anteroom.rooms(), server.anteroom.sessions());
    assert_eq!(counts, (1, 1));
    assert_eq!(server.count("anteroom_deliveries_total"), 0);
    alice.expect_quiet().await;
}

#[tokio::test]
async fn the_admin_api_accepts_a_percent_encoded_session_id() {
    let server = server().await;
    let mut alice = Client::join(&server, "tea").await;
    let path = format!("/rooms/t%65a/sessions/{}", alice.id.replace('-', "%2D"));
    let closed = ask(&server, "DELETE", &path, "", "").await;
    assert_eq!(closed.status, 204, "{}", closed.body);
    assert_eq!(alice.expect_close().await.0, 1008);
    for id in ["%", "%FF", "%2F", "a%00"] {
        let path = format!("/rooms/tea/sessions/{id}");
        let answer = ask(&server, "DELETE", &path, "", "").await;
        assert_eq!(answer.status, 404, "{id}");
    }
}
