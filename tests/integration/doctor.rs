//! The command `doctor`, before servers and proxies that are set up well or badly: each mistake is named as what
//! it is.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::pending,
    mem::take,
    net::SocketAddr,
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};

use anteroom::Config;
use futures_util::StreamExt;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpSocket, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::{
    guide::{OPERATING, blocks},
    operating::{Coturn, Nginx, NginxProcess, free_port, start},
    support::{Client, File, TestServer, in_seconds, within_deadline},
    tls::Authority,
};

/// The idle timeout of proxies that have one. `--idle-seconds` is longer.
const CUT_AFTER: Duration = Duration::from_secs(1);

/// What the doctor has found.
struct Diagnosis {
    code: Option<i32>,
    report: Value,
}

impl Diagnosis {
    /// The steps with this result.
    fn steps(&self, result: &str) -> Vec<&str> {
        let steps = self.report["steps"].as_array().unwrap();
        let steps = steps.iter().filter(|step| step["result"] == result);
        steps.map(|step| step["name"].as_str().unwrap()).collect()
    }

    /// Fails unless the step has this result, and `part` is in its detail or advice.
    fn expect(&self, name: &str, result: &str, part: &str) {
        let steps = self.report["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["name"] == name);
        let step = step.unwrap_or_else(|| panic!("no step {name}: {self}"));
        assert_eq!(step["result"], result, "{name}: {self}");
        let text = format!("{} {}", step["detail"], step["advice"]);
        assert!(text.contains(part), "{part:?} is not in {step}");
    }

    /// Fails unless the step is the only one that failed, and `part` is in its detail or advice.
    fn expect_only(&self, name: &str, part: &str) {
        self.expect(name, "failed", part);
        assert_eq!(self.steps("failed"), [name], "{self}");
        assert_eq!(self.code, Some(1));
        assert_eq!(self.report["ok"], false);
    }

    /// Fails if a step failed.
    fn expect_healthy(&self) {
        assert_eq!(self.steps("failed"), [""; 0], "{self}");
        assert_eq!(self.code, Some(0));
        assert_eq!(self.report["ok"], true);
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.report)
    }
}

/// Runs the doctor to its end.
async fn run(url: &str, options: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["doctor", url])
        .args(options)
        .envs(environment.iter().copied())
        .kill_on_drop(true);
    within_deadline("the doctor's end", command.output())
        .await
        .unwrap()
}

/// What the doctor finds, without an idle time unless the options have one.
async fn examine_with(url: &str, options: &[&str], environment: &[(&str, &str)]) -> Diagnosis {
    let mut all = vec!["--json"];
    if !options.contains(&"--idle-seconds") {
        all.extend(["--idle-seconds", "0"]);
    }
    all.extend(options);
    let output = run(url, &all, environment).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {stdout} {:?}", output.stderr));
    Diagnosis {
        code: output.status.code(),
        report,
    }
}

async fn examine(address: SocketAddr) -> Diagnosis {
    examine_with(&format!("ws://{address}/"), &[], &[]).await
}

/// What a [`Middle`] does with a connection.
#[derive(Clone)]
pub struct Rule {
    /// Changes the head of a request.
    pub request: fn(String) -> String,
    /// Changes the head of an answer.
    pub response: fn(String) -> String,
    /// Answers requests for these paths in place of the server.
    pub instead: Option<(&'static str, &'static str)>,
    /// Cuts a connection without traffic after this time.
    pub cut_after: Duration,
    /// How many bytes of the server it collects before it passes them on, after the head of an answer that lasts.
    pub collects: usize,
    /// Whether the server sees the proxy's own address.
    pub hides_client: bool,
    /// How long it holds the bytes of the first WebSocket back.
    pub first_late: Duration,
    /// Whether a connection that would be cut stays open instead, without passing anything on.
    pub stalls: bool,
}

pub const PASS: Rule = Rule {
    request: |head| head,
    response: |head| head,
    instead: None,
    cut_after: Duration::MAX,
    collects: 1,
    hides_client: false,
    first_late: Duration::ZERO,
    stalls: false,
};

/// An HTTP proxy, each of whose connections serves one request. Dropping it stops the accept loop.
pub struct Middle {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Middle {
    pub async fn start(server: SocketAddr, rule: Rule) -> Middle {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rule = Arc::new(rule);
        let late = Arc::new(Mutex::new(rule.first_late));
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(Middle::pass(client, server, rule.clone(), late.clone()));
            }
        });
        Middle { address, accepting }
    }

    async fn pass(
        client: TcpStream,
        server: SocketAddr,
        rule: Arc<Rule>,
        late: Arc<Mutex<Duration>>,
    ) -> Option<()> {
        let (mut from_client, mut to_client) = client.into_split();
        let request = (rule.request)(read_head(&mut from_client).await?);
        if let Some((path, answer)) = rule.instead
            && request.contains(path)
        {
            to_client.write_all(answer.as_bytes()).await.ok()?;
            return to_client.shutdown().await.ok();
        }
        let socket = TcpSocket::new_v4().unwrap();
        if !rule.hides_client {
            let client = to_client.peer_addr().unwrap().ip();
            socket.bind((client, 0).into()).unwrap();
        }
        let server = socket.connect(server).await.ok()?;
        let (mut from_server, mut to_server) = server.into_split();
        to_server.write_all(request.as_bytes()).await.ok()?;
        let up = async { copy(&mut from_client, &mut to_server).await.map(drop).ok() };
        let down = async {
            let response = (rule.response)(read_head(&mut from_server).await?);
            to_client.write_all(response.as_bytes()).await.ok()?;
            if response.contains(" 101 ") {
                let late = take(&mut *late.lock().unwrap());
                // The wait is what is tested: how late the first answer may come.
                sleep(late).await;
            }
            let lasts = response.contains(" 101 ") || response.contains("text/event-stream");
            let collects = if lasts { rule.collects } else { 1 };
            collect(&mut from_server, &mut to_client, collects, rule.cut_after).await
        };
        tokio::select! {
            _ = up => None,
            _ = down => match rule.stalls {
                true => pending().await,
                false => None,
            },
        }
    }
}

/// Passes bytes on, at least so many at once, until none come for some time.
async fn collect(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    collects: usize,
    cut_after: Duration,
) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut collected = Vec::new();
    loop {
        let length = timeout(cut_after, from.read(&mut buffer))
            .await
            .ok()?
            .ok()?;
        collected.extend(&buffer[..length]);
        if collected.len() >= collects || length == 0 {
            to.write_all(&collected).await.ok()?;
            collected.clear();
        }
        if length == 0 {
            return to.shutdown().await.ok();
        }
    }
}

/// The head of a request or an answer.
async fn read_head(from: &mut OwnedReadHalf) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A head without the headers that begin so.
fn without(head: String, headers: &[&str]) -> String {
    let is_kept = |line: &&str| !headers.iter().any(|it| line.to_lowercase().starts_with(it));
    head.split("\r\n")
        .filter(is_kept)
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// Answers each request with what `answer` makes of its path and query.
async fn answering(answer: fn(&str) -> String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = client.into_split();
                let head = read_head(&mut from).await?;
                let path = head.split(' ').nth(1)?;
                let answer = answer(path);
                if !answer.is_empty() {
                    to.write_all(answer.as_bytes()).await.ok()?;
                    // The client ends the connection.
                    from.read_u8().await.ok()?;
                }
                Some(())
            });
        }
    });
    address
}

/// An answer with a body of plain text.
fn plain(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_token_that_an_answer_repeats_is_not_printed() {
    let redirect = answering(|path| {
        let location = format!("https://example.org{path}");
        format!("HTTP/1.1 301 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
    })
    .await;
    let refusal = answering(|path| plain("404 Not Found", path)).await;
    let token = "a/secret.token";
    for (address, part) in [
        (redirect, "redirects to https://example.org/room/doctor-"),
        (refusal, "token=[hidden]; it does not come from the server"),
    ] {
        let url = format!("ws://{address}/");
        let diagnosis = examine_with(&url, &["--token", token], &[]).await;
        diagnosis.expect_only("upgrade", part);
        let output = run(&url, &["--token", token], &[]).await;
        let lines = String::from_utf8(output.stdout).unwrap();
        assert!(lines.contains(part), "{lines}");
        for printed in [diagnosis.to_string(), lines] {
            assert!(!printed.contains("secret.token"), "{printed}");
        }
    }
}

#[tokio::test]
async fn a_healthy_server_gets_a_line_for_each_step_and_exit_code_0() {
    let server = TestServer::with(|config| config.liveness.ping_seconds = 1).await;
    let url = format!("http://{}/room/tea", server.address);
    let output = run(&url, &["--idle-seconds", "3"], &[]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let steps = [
        "✓ name: 127.0.0.1",
        "✓ tcp: ",
        "– tls: skipped: ",
        "✓ page: / is a page",
        "✓ upgrade: 101 in ",
        "✓ origin: pages of http://127.0.0.1:",
        "✓ hello: session ",
        "✓ round trip: ",
        "✓ size: 65536 bytes both ways, intact",
        "✓ idle: 3.",
        "✓ resume: the session goes on over a new connection, with the message that it missed",
        "✓ address: the server sees 127.0.0.2, this machine",
        "✓ forged address: ",
        "✓ clock: ",
        "– ice: skipped: ",
        "✓ without WebSocket: ",
        "✓ operators' URLs: ",
    ];
    for (line, step) in text.lines().zip(steps) {
        assert!(line.starts_with(step), "{line}\n{step}");
    }
    assert_eq!(text.lines().count(), steps.len(), "{text}");
    // The doctor has left.
    server.expect_suspended(0).await;
    crate::support::eventually("no session", || server.anteroom.sessions() == 0).await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let diagnosis = examine(closed).await;
    diagnosis.expect_only("tcp", "nothing listens there");
    diagnosis.expect("operators' URLs", "skipped", "not reached");
    let diagnosis = examine_with("ws://rooms.invalid/", &[], &[]).await;
    diagnosis.expect_only("name", "does not resolve");
}

#[tokio::test]
async fn a_proxy_that_strips_the_upgrade_headers_is_named() {
    let server = TestServer::start().await;
    let strip = |head| without(head, &["upgrade:", "connection:"]);
    let middle = Middle::start(
        server.address,
        Rule {
            request: strip,
            ..PASS
        },
    )
    .await;
    let diagnosis = examine(middle.address).await;
    diagnosis.expect_only("upgrade", "without its upgrade headers");
    diagnosis.expect("hello", "skipped", "no session begins");
    diagnosis.expect("clock", "ok", "s apart");
}

#[tokio::test]
async fn a_proxy_that_speaks_http_1_0_is_named() {
    let server = TestServer::start().await;
    let old = |head: String| head.replace("HTTP/1.1", "HTTP/1.0");
    let upstream = Middle::start(
        server.address,
        Rule {
            request: old,
            ..PASS
        },
    )
    .await;
    examine(upstream.address)
        .await
        .expect_only("upgrade", "the proxy asks the server over HTTP/1.0");
    let answer = "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let rule = Rule {
        instead: Some(("/room", answer)),
        ..PASS
    };
    let downstream = Middle::start(server.address, rule).await;
    examine(downstream.address)
        .await
        .expect_only("upgrade", "the answer is HTTP/1.0");
}

#[tokio::test]
async fn what_a_proxy_answers_in_place_of_the_server_is_named() {
    let server = TestServer::start().await;
    for (answer, part) in [
        (
            "HTTP/1.1 301 Moved\r\nLocation: https://example.org/room\r\nContent-Length: 0\r\n\r\n",
            "redirects to https://example.org/room",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\npage",
            "something else answers this path",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "does not come from the server",
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
            "asks for a password",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "access rules of the proxy",
        ),
        (
            "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
            "rate limit of the proxy",
        ),
        (
            "HTTP/1.1 503 Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 19\r\n\r\nno available server",
            "does not reach the server, or limits requests",
        ),
        (
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            "does not reach the server",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "Sec-WebSocket-Accept is wrong",
        ),
        ("", "closed without an answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1.1"),
    ] {
        let rule = Rule {
            instead: Some(("/room/", answer)),
            ..PASS
        };
        let middle = Middle::start(server.address, rule).await;
        examine(middle.address).await.expect_only("upgrade", part);
    }
}

#[tokio::test]
async fn an_answer_whose_body_does_not_end_keeps_its_status() {
    let address = answering(|path| match path.starts_with("/room/") {
        true => "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npage\r\n".into(),
        false => plain("404 Not Found", ""),
    })
    .await;
    let diagnosis = examine(address).await;
    diagnosis.expect_only("upgrade", "the answer is 404");
}

#[tokio::test]
async fn a_path_prefix_that_is_not_cut_off_is_named() {
    let server = TestServer::start().await;
    let cut = |head: String| head.replacen("GET /chat/", "GET /", 1);
    let middle = Middle::start(
        server.address,
        Rule {
            request: cut,
            ..PASS
        },
    )
    .await;
    let url = format!("ws://{}/chat/", middle.address);
    examine_with(&url, &[], &[]).await.expect_healthy();
    let url = format!("ws://{}/chat/", server.address);
    let diagnosis = examine_with(&url, &[], &[]).await;
    diagnosis.expect_only("upgrade", "have the proxy cut /chat off");
    diagnosis.expect("page", "warning", "404");
}

#[tokio::test]
async fn a_proxy_that_buffers_is_named() {
    let server = TestServer::start().await;
    let middle = Middle::start(
        server.address,
        Rule {
            collects: 16 * 1024,
            ..PASS
        },
    )
    .await;
    let diagnosis = examine(middle.address).await;
    diagnosis.expect_only("upgrade", "a proxy buffers");
    diagnosis.expect("without WebSocket", "warning", "events are held back");
}

#[tokio::test]
async fn a_first_message_that_is_late_is_no_buffering() {
    let server = TestServer::start().await;
    let rule = Rule {
        first_late: Duration::from_secs(6),
        ..PASS
    };
    let middle = Middle::start(server.address, rule).await;
    let diagnosis = examine(middle.address).await;
    diagnosis.expect_healthy();
    diagnosis.expect("upgrade", "warning", "the first message came only after 6.");
}

#[tokio::test]
async fn a_proxy_that_cuts_idle_connections_is_named() {
    let server = TestServer::start().await;
    let rule = Rule {
        cut_after: CUT_AFTER,
        ..PASS
    };
    let middle = Middle::start(server.address, rule).await;
    let url = format!("ws://{}/", middle.address);
    let diagnosis = examine_with(&url, &["--idle-seconds", "10"], &[]).await;
    diagnosis.expect_only("idle", "without traffic; no ping of the server came");
    diagnosis.expect("idle", "failed", "proxy_read_timeout");
    diagnosis.expect("resume", "ok", "");
}

#[tokio::test]
async fn an_idle_connection_that_dies_silently_is_named() {
    let server = TestServer::start().await;
    let rule = Rule {
        cut_after: CUT_AFTER,
        stalls: true,
        ..PASS
    };
    let middle = Middle::start(server.address, rule).await;
    let url = format!("ws://{}/", middle.address);
    let diagnosis = examine_with(&url, &["--idle-seconds", "2"], &[]).await;
    diagnosis.expect_only("idle", "the connection is dead, and nobody has closed it");
}

#[tokio::test]
async fn a_clock_that_is_off_by_an_hour_is_named() {
    let server = TestServer::start().await;
    let late = |head: String| {
        without(head, &["date:"]).replacen("\r\n", "\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 1)
    };
    let middle = Middle::start(
        server.address,
        Rule {
            response: late,
            ..PASS
        },
    )
    .await;
    examine(middle.address)
        .await
        .expect_only("clock", "behind this machine's");
}

#[tokio::test]
async fn the_address_of_a_proxy_that_is_not_trusted_is_named() {
    let server = TestServer::start().await;
    let middle = Middle::start(
        server.address,
        Rule {
            hides_client: true,
            ..PASS
        },
    )
    .await;
    let diagnosis = examine(middle.address).await;
    diagnosis.expect_only("address", "--trust-proxy 127.0.0.1");
    diagnosis.expect("address", "failed", "the server sees 127.0.0.1");
}

#[tokio::test]
async fn a_server_that_believes_every_client_is_named() {
    let server = TestServer::with(|config| {
        config.serving.trust_proxy = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    examine(server.address)
        .await
        .expect_only("forged address", "only proxies in --trust-proxy");
}

#[tokio::test]
async fn an_origin_that_gets_no_session_is_named() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    let diagnosis = examine(server.address).await;
    diagnosis.expect_only("origin", "name your page's origin with --origin");
    diagnosis.expect("upgrade", "ok", "");
    let url = format!("ws://{}/", server.address);
    let diagnosis = examine_with(&url, &["--origin", "https://example.org"], &[]).await;
    diagnosis.expect_healthy();
    diagnosis.expect("origin", "ok", "https://example.org");
    let diagnosis = examine_with(&url, &["--origin", "https://example.net"], &[]).await;
    diagnosis.expect_only(
        "origin",
        "\"start the server with --allow-origin https://example.net\"",
    );
}

#[tokio::test]
async fn a_token_is_used_and_one_that_is_refused_is_named() {
    let key = File::new("doctor.key", "a secret of the test that has over 32 bytes");
    let path = key.path().to_str().unwrap().to_owned();
    let server = TestServer::with(|config| {
        config.tokens.key_file = Some(key.path());
        config.tokens.algorithm = Some("HS256".parse().unwrap());
    })
    .await;
    let sign = async |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command.args([
            "token",
            "--token-key-file",
            &path,
            "--token-algorithm",
            "HS256",
            "--user",
            "alice",
        ]);
        let output = command.args(options).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let url = format!("ws://{}/", server.address);
    examine_with(&url, &[], &[])
        .await
        .expect_only("upgrade", "the server refuses (401)");
    let token = sign(&["--room", "team-*"]).await;
    let diagnosis = examine_with(&url, &[], &[("ANTEROOM_TOKEN", &token)]).await;
    diagnosis.expect_healthy();
    diagnosis.expect("hello", "ok", "in room team-doctor-");
    diagnosis.expect("clock", "ok", "the token is valid until");
    assert!(!diagnosis.to_string().contains(&token));

    let watcher = sign(&["--room", "tea"]).await;
    let mut watcher = Client::connect(server.address, &format!("/room/tea?token={watcher}")).await;
    watcher.hello().await;
    let token = sign(&["--room", "tea"]).await;
    let diagnosis = examine_with(&url, &["--token", &token], &[]).await;
    diagnosis.expect_healthy();
    diagnosis.expect("hello", "ok", "others there see three sessions");
    for kind in ["new", "new", "close", "close", "new", "close"] {
        assert_eq!(watcher.next().await["type"], kind);
    }
    watcher.expect_quiet().await;

    // Another member's messages are no answers, whatever their type is.
    let mut member = Client::connect(server.address, &format!("/room/tea?token={token}")).await;
    member.hello().await;
    let sending = tokio::spawn(async move {
        loop {
            for kind in ["hello", "pong", "doctor", "ack", "address", "error"] {
                let data = json!({ "code": "overheard" });
                let message = json!({ "type": kind, "receiver": "all", "data": data });
                member.send(message).await;
            }
            // No faster than the server takes the messages in.
            let ping = json!({ "type": "ping", "receiver": "server" });
            member.send(ping).await;
            while member.next().await["type"] != "pong" {}
        }
    });
    let diagnosis = examine_with(&url, &["--token", &token], &[]).await;
    sending.abort();
    diagnosis.expect_healthy();
    assert!(!diagnosis.to_string().contains("overheard"), "{diagnosis}");

    let listener = sign(&["--listen-only"]).await;
    let diagnosis = examine_with(&url, &["--token", &listener], &[]).await;
    diagnosis.expect_healthy();
    diagnosis.expect("size", "skipped", "does not allow messages");
    diagnosis.expect("resume", "ok", "the session goes on");

    let other = examine_with(&url, &["--token", &(token + "x")], &[]).await;
    other.expect_only("upgrade", "the server refuses (401)");
}

#[tokio::test]
async fn limits_that_the_doctor_meets_are_named() {
    let server =
        TestServer::with(|config| config.limits.max_sessions = Some(1.try_into().unwrap())).await;
    let _alice = Client::join(&server, "tea").await;
    examine(server.address)
        .await
        .expect_only("upgrade", "the server refuses (503): the server is full");
    let server = TestServer::with(|config| {
        config.limits.max_address_sessions = Some(1.try_into().unwrap());
    })
    .await;
    let diagnosis = examine(server.address).await;
    diagnosis.expect_healthy();
    diagnosis.expect("resume", "warning", "your address has too many sessions");
    diagnosis.expect(
        "forged address",
        "skipped",
        "your address has too many sessions",
    );
}

/// A server with this certificate chain and key.
async fn tls_server(name: &str, chain: &str, key: &str) -> (TestServer, [File; 2]) {
    let files = [("cert", chain), ("key", key)]
        .map(|(kind, text)| File::new(&format!("doctor-{name}.{kind}"), text));
    let server = TestServer::with(|config| {
        config.serving.tls_cert = Some(files[0].path());
        config.serving.tls_key = Some(files[1].path());
    })
    .await;
    (server, files)
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named() {
    let authority = Authority::new();
    let roots = File::new("doctor-roots.pem", authority.pem());
    let roots = roots.path().to_str().unwrap().to_owned();
    let roots = [("SSL_CERT_FILE", &*roots)];

    let (chain, key) = authority.issue("rooms.test");
    let (server, _files) = tls_server("valid", &chain, &key).await;
    let url = format!("wss://localhost:{}/", server.address.port());
    let diagnosis = examine_with(&url, &[], &roots).await;
    diagnosis.expect_healthy();
    diagnosis.expect("tls", "ok", "issued by anteroom's tests, valid for");
    examine_with(&url, &[], &[]).await.expect_only(
        "tls",
        "ends at anteroom's tests, which this system does not trust",
    );
    let plain = format!("ws://{}/", server.address);
    examine_with(&plain, &[], &roots)
        .await
        .expect_only("upgrade", "the port is that of TLS");

    let own = KeyPair::generate().unwrap();
    let params = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        CertificateParams::new(names).unwrap()
    };
    let self_signed = params(&["localhost"]).self_signed(&own).unwrap().pem();
    let (server, _files) = tls_server("self-signed", &self_signed, &own.serialize_pem()).await;
    let url = format!("wss://localhost:{}/", server.address.port());
    examine_with(&url, &[], &roots)
        .await
        .expect_only("tls", "self-signed");

    let other = authority.issue_for(params(&["rooms.test"]), &own);
    let mut expired = params(&["localhost"]);
    expired.not_after = date_time_ymd(2020, 1, 1);
    let mut early = params(&["localhost"]);
    early.not_before = date_time_ymd(4000, 1, 1);
    let mut ending = params(&["localhost"]);
    let end = in_seconds(5 * 24 * 60 * 60 + 60) as u64;
    ending.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    for (name, certificate, result, part) in [
        (
            "name",
            other,
            "failed",
            "is for rooms.test, not for localhost",
        ),
        (
            "expired",
            authority.issue_for(expired, &own),
            "failed",
            "expired: Jan",
        ),
        (
            "early",
            authority.issue_for(early, &own),
            "failed",
            "not valid yet",
        ),
        (
            "ending",
            authority.issue_for(ending, &own),
            "warning",
            "valid for 5 more days",
        ),
    ] {
        let (server, _files) = tls_server(name, &certificate, &own.serialize_pem()).await;
        let url = format!("wss://localhost:{}/", server.address.port());
        let diagnosis = examine_with(&url, &[], &roots).await;
        diagnosis.expect("tls", result, part);
        assert_eq!(diagnosis.code, Some(i32::from(result == "failed")));
    }

    let server = TestServer::start().await;
    let url = format!("wss://localhost:{}/", server.address.port());
    examine_with(&url, &[], &roots)
        .await
        .expect_only("tls", "does not speak TLS");
}

#[tokio::test]
async fn an_admin_api_that_the_world_reaches_is_named() {
    let admin = |config: &mut Config| config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    let server = TestServer::with(admin).await;
    let _alice = Client::join(&server, "tea").await;
    // The admin API at the server's own URL. The way to the rooms is another.
    let diagnosis = examine(server.admin.unwrap()).await;
    diagnosis.expect("operators' URLs", "failed", "/metrics, /status, /rooms");
    let secret = File::new(
        "doctor-operators",
        "a secret of operators, with over 32 bytes",
    );
    let server = TestServer::with(|config| {
        admin(config);
        config.admin.token_file = Some(secret.path());
    })
    .await;
    let diagnosis = examine(server.admin.unwrap()).await;
    diagnosis.expect("operators' URLs", "warning", "asks for a secret");
}

#[tokio::test]
async fn an_admin_api_is_told_from_other_applications_and_from_no_answer() {
    let url = async |answer: fn(&str) -> String| format!("ws://{}/", answering(answer).await);
    let other = url(|path| match path {
        "/rooms" => plain("200 OK", r#"{"rooms":[]}"#),
        _ => plain("404 Not Found", ""),
    })
    .await;
    let diagnosis = examine_with(&other, &[], &[]).await;
    diagnosis.expect("operators' URLs", "ok", "not reachable");

    let long = url(|path| match path {
        "/rooms" => {
            let rooms: Vec<_> = (0..5000)
                .map(|number| format!(r#"{{"room":"room-{number}","sessions":1}}"#))
                .collect();
            plain("200 OK", &format!(r#"{{"rooms":[{}]}}"#, rooms.join(",")))
        }
        _ => plain("404 Not Found", ""),
    })
    .await;
    let diagnosis = examine_with(&long, &[], &[]).await;
    diagnosis.expect(
        "operators' URLs",
        "failed",
        "everybody can use the admin API: /rooms\"",
    );

    let limited = url(|path| match path {
        "/metrics" => plain("429 Too Many Requests", ""),
        "/status" => plain("503 Unavailable", ""),
        "/admin/" => String::new(),
        _ => plain("404 Not Found", ""),
    })
    .await;
    let diagnosis = examine_with(&limited, &[], &[]).await;
    diagnosis.expect(
        "operators' URLs",
        "warning",
        "it is unknown whether the admin API is reachable at /metrics, /status, /admin/\"",
    );
}

#[tokio::test]
async fn a_stun_or_turn_server_that_does_not_answer_is_named() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let silent = socket.local_addr().unwrap();
    let closed = free_port();
    let urls = [
        format!("stun:127.0.0.1:{closed}"),
        format!("turn:127.0.0.1:{closed}"),
        format!("turn:127.0.0.1:{closed}?transport=tcp"),
        format!("stun:{silent}"),
        format!("turn:{silent}"),
    ];
    let secret = File::new("doctor-turn", "a secret that no TURN server has");
    let server = TestServer::with(|config| {
        config.webrtc.ice_server = urls
            .iter()
            .filter(|url| url.starts_with("stun"))
            .map(|url| url.parse().unwrap())
            .collect();
        config.webrtc.turn_url = urls
            .iter()
            .filter(|url| url.starts_with("turn"))
            .map(|url| url.parse().unwrap())
            .collect();
        config.webrtc.turn_secret_file = Some(secret.path());
    })
    .await;
    let diagnosis = examine(server.address).await;
    for (url, part) in urls.iter().zip([
        "port is closed",
        "port is closed",
        "port is closed",
        "firewall",
        "firewall",
    ]) {
        diagnosis.expect(&format!("ice {url}"), "failed", part);
    }
    assert_eq!(diagnosis.steps("failed").len(), 5, "{diagnosis}");
}

#[tokio::test]
#[ignore = "needs coturn: tests/run starts this test"]
async fn a_turn_server_relays_and_one_with_another_secret_is_named() {
    let coturn = Coturn::start().await;
    let url = |transport: &str| format!("{}?transport={transport}", coturn.url);
    let with = async |secret: &File| {
        TestServer::with(|config| {
            let stun = coturn.url.replace("turn:", "stun:");
            config.webrtc.ice_server = vec![stun.parse().unwrap()];
            config.webrtc.turn_url = ["udp", "tcp"].map(|it| url(it).parse().unwrap()).into();
            config.webrtc.turn_secret_file = Some(secret.path());
        })
        .await
    };
    let diagnosis = examine(with(&coturn.secret).await.address).await;
    diagnosis.expect_healthy();
    diagnosis.expect(&format!("ice {}", url("udp")), "ok", "relays a packet");
    diagnosis.expect(&format!("ice {}", url("tcp")), "ok", "relays a packet");
    diagnosis.expect(
        &format!("ice {}", coturn.url.replace("turn:", "stun:")),
        "ok",
        "127.0.0.1",
    );

    let wrong = File::new("doctor-wrong-turn", "another secret than that of coturn");
    let diagnosis = examine(with(&wrong).await.address).await;
    for transport in ["udp", "tcp"] {
        let step = format!("ice {}", url(transport));
        diagnosis.expect(&step, "failed", "refuses the credentials (401)");
        diagnosis.expect(&step, "failed", "--turn-secret-file");
    }
    assert_eq!(diagnosis.steps("failed").len(), 2, "{diagnosis}");
}

#[cfg(feature = "turn")]
#[tokio::test]
async fn the_servers_own_turn_server_relays() {
    let server = crate::support::Program::start([
        "--turn-listen=127.0.0.1:0",
        "--turn-address=127.0.0.1",
        "--turn-allow-peer=127.0.0.0/8",
    ])
    .await;
    let diagnosis = examine(server.address).await;
    diagnosis.expect_healthy();
    let steps = diagnosis.steps("ok");
    let relays: Vec<_> = steps
        .iter()
        .filter(|step| step.starts_with("ice turn:"))
        .collect();
    assert_eq!(relays.len(), 2, "{diagnosis}");
    for step in relays {
        diagnosis.expect(step, "ok", "relays a packet");
    }
}

#[cfg(feature = "turn")]
#[tokio::test]
async fn a_relay_that_only_reaches_its_own_addresses_is_named_unless_it_refuses_this_machine() {
    // The server and its relays are at 127.0.0.1. At the address that they announce, only the server can be reached.
    const ADDRESS: &str = "127.0.0.93";
    for (policy, result, part) in [
        (
            "--turn-allow-peer=127.0.0.1",
            "warning",
            "but nothing between 127.0.0.93:",
        ),
        (
            "--turn-deny-peer=127.0.0.1",
            "ok",
            "it refuses this machine's address 127.0.0.1,",
        ),
    ] {
        let port = free_port();
        pass_udp((ADDRESS, port), port, &[]).await;
        let listener = TcpListener::bind((ADDRESS, port)).await.unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        let server = crate::support::Program::start([
            &format!("--turn-listen=127.0.0.1:{port}"),
            &format!("--turn-address={ADDRESS}"),
            policy,
        ])
        .await;
        let diagnosis = examine(server.address).await;
        let steps = diagnosis.steps(result);
        let relays = steps.iter().filter(|step| step.starts_with("ice turn:"));
        assert_eq!(relays.clone().count(), 2, "{diagnosis}");
        relays.for_each(|step| diagnosis.expect(step, result, part));
    }
}

/// A server that names this TURN URL, with coturn's secret.
async fn turn_server(coturn: &Coturn, url: &str) -> TestServer {
    names_turn_server(url, &coturn.secret).await
}

/// A server that names this TURN URL, with this secret.
async fn names_turn_server(url: &str, secret: &File) -> TestServer {
    TestServer::with(|config| {
        config.webrtc.turn_url = vec![url.parse().unwrap()];
        config.webrtc.turn_secret_file = Some(secret.path());
    })
    .await
}

/// Does TLS handshakes with clients that offer no other protocol than that of STUN (RFC 7443), and then closes the
/// connection.
async fn tls_for_stun(authority: &Authority) -> SocketAddr {
    let (cert, key) = authority.issue("turn.test");
    let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    config.alpn_protocols = vec![b"stun.turn".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

#[tokio::test]
async fn tls_of_a_turn_server_is_not_that_of_web_servers() {
    let authority = Authority::new();
    let roots = File::new("doctor-turns-roots.pem", authority.pem());
    let roots = roots.path().to_str().unwrap().to_owned();
    let url = format!("turns:localhost:{}", tls_for_stun(&authority).await.port());
    let secret = File::new("doctor-turns", "a secret that no TURN server has");
    let server = names_turn_server(&url, &secret).await;
    let room = format!("ws://{}/", server.address);
    let step = format!("ice {url}");
    examine_with(&room, &[], &[("SSL_CERT_FILE", &roots)])
        .await
        .expect_only(&step, "the other side closes the connection");
    let diagnosis = examine_with(&room, &[], &[]).await;
    diagnosis.expect_only(&step, "which this system does not trust");
    diagnosis.expect_only(&step, "cert and pkey in coturn");
}

#[tokio::test]
#[ignore = "needs coturn: tests/run starts this test"]
async fn a_turn_server_with_a_quota_of_one_relays_to_this_machine() {
    let coturn = Coturn::start_with(&["--user-quota=1"]).await;
    let server = turn_server(&coturn, &coturn.url).await;
    let diagnosis = examine(server.address).await;
    diagnosis.expect_healthy();
    diagnosis.expect(
        &format!("ice {}", coturn.url),
        "ok",
        "relays a packet to this machine",
    );
    let url = format!("{}?transport=tcp", coturn.url);
    let server = turn_server(&coturn, &url).await;
    examine(server.address).await.expect(
        &format!("ice {url}"),
        "ok",
        "relays a packet to this machine",
    );
}

/// The types of the STUN messages that have a packet for or from a peer (RFC 8656, section 17).
const RELAYED: [[u8; 2]; 2] = [[0, 0x16], [0, 0x17]];

/// Passes UDP packets on between clients of this address and a server on this machine, except those that begin with one
/// of `lost`. Returns its port.
async fn pass_udp(address: (&str, u16), server: u16, lost: &'static [[u8; 2]]) -> u16 {
    let passes = |packet: &[u8]| !lost.iter().any(|it| packet.starts_with(it));
    let clients = Arc::new(UdpSocket::bind(address).await.unwrap());
    let port = clients.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, client) = clients.recv_from(&mut buffer).await.unwrap();
            if let Entry::Vacant(entry) = ways.entry(client) {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                way.connect(("127.0.0.1", server)).await.unwrap();
                entry.insert(way.clone());
                let clients = clients.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 2048];
                    while let Ok(length) = way.recv(&mut buffer).await {
                        if passes(&buffer) {
                            clients.send_to(&buffer[..length], client).await.unwrap();
                        }
                    }
                });
            }
            if passes(&buffer) {
                ways[&client].send(&buffer[..length]).await.unwrap();
            }
        }
    });
    port
}

#[tokio::test]
#[ignore = "needs coturn: tests/run starts this test"]
async fn a_turn_server_that_relays_nothing_is_named() {
    let coturn = Coturn::start().await;
    let port = pass_udp(("127.0.0.1", 0), coturn.port, &RELAYED).await;
    let url = format!("turn:127.0.0.1:{port}");
    let server = turn_server(&coturn, &url).await;
    examine(server.address)
        .await
        .expect_only(&format!("ice {url}"), "relays nothing");
}

/// Answers each WebSocket message with the same message.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(socket) = tokio_tungstenite::accept_async(stream).await else {
                    return;
                };
                let (sink, messages) = socket.split();
                let _ = messages.forward(sink).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_websocket_server_of_another_kind_is_named() {
    examine(echo().await)
        .await
        .expect_only("upgrade", "not an anteroom server");
}

#[tokio::test]
#[ignore = "needs nginx: tests/run starts this test"]
async fn behind_nginx_as_the_guide_configures_it_everything_works() {
    let server = TestServer::with(|config| {
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let nginx = Nginx::start("doctor-guide", &[server.address]).await;
    let roots = File::new("doctor-nginx-roots.pem", nginx.authority.pem());
    let url = format!("wss://localhost:{}/", nginx.address.port());
    let roots = roots.path().to_str().unwrap().to_owned();
    let diagnosis =
        examine_with(&url, &["--idle-seconds", "1"], &[("SSL_CERT_FILE", &roots)]).await;
    diagnosis.expect_healthy();
    diagnosis.expect("address", "ok", "127.0.0.2");
    diagnosis.expect("tls", "ok", "issued by anteroom's tests");
}

/// Replaces what differs from run to run: words with digits, and names of hosts.
fn blank(text: &str) -> String {
    let text = text.replace("issued by anteroom's tests", "issued by R12");
    let is_own = |word: &str| {
        word.contains(|letter: char| letter.is_ascii_digit())
            || ["example.org", "localhost"]
                .iter()
                .any(|host| word.contains(host))
    };
    let text = text.replace('\n', " \n ");
    let words = text
        .split(' ')
        .map(|word| if is_own(word) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
#[ignore = "needs nginx and coturn: tests/run starts this test"]
async fn the_guide_shows_what_the_doctor_prints() {
    let shown =
        blocks(OPERATING, "console").find_map(|block| block.strip_prefix("$ anteroom doctor "));
    let (url, shown) = shown.unwrap().split_once('\n').unwrap();
    assert_eq!(url, "wss://rooms.example.org/");
    let coturn = Coturn::start().await;
    let server = TestServer::with(|config| {
        config.liveness.ping_seconds = 1;
        config.webrtc.turn_url = vec![coturn.url.parse().unwrap()];
        config.webrtc.turn_secret_file = Some(coturn.secret.path());
    })
    .await;
    let nginx = Nginx::start("doctor-shown", &[server.address]).await;
    let roots = File::new("doctor-shown-roots.pem", nginx.authority.pem());
    let roots = roots.path().to_str().unwrap().to_owned();
    let url = format!("wss://localhost:{}/", nginx.address.port());
    let output = run(&url, &["--idle-seconds", "3"], &[("SSL_CERT_FILE", &roots)]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(blank(&printed), blank(shown), "{printed}");
    assert_eq!(output.status.code(), Some(1));
}

/// The lines of an nginx location that passes WebSockets on.
const PROXY: &str = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
     proxy_set_header Connection upgrade; proxy_set_header Host $http_host; \
     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";

#[tokio::test]
#[ignore = "needs nginx: tests/run starts this test"]
async fn behind_nginx_each_mistake_is_named() {
    let server = TestServer::with(|config| {
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
        config.admin.listen = Some(([127, 0, 0, 1], 0).into());
    })
    .await;
    let (address, admin) = (server.address, server.admin.unwrap());
    let closed = free_port();
    let to = |backend: SocketAddr| format!("proxy_pass http://{backend};");
    for (number, (path, location, step, part)) in [
        ("/", format!("location / {{ {} }}", to(address)), "upgrade", "without its upgrade headers"),
        (
            "/",
            format!("location / {{ {} {} }}", to(address), PROXY.replace("proxy_http_version 1.1;", "")),
            "upgrade",
            "HTTP/1.0",
        ),
        (
            "/",
            format!("location / {{ {} {PROXY} proxy_read_timeout 1s; }}", to(address)),
            "idle",
            "proxy_read_timeout",
        ),
        (
            "/",
            format!("location / {{ {} {PROXY} }} location /room {{ return 301 https://$host$request_uri; }}", to(address)),
            "upgrade",
            "redirects to https://127.0.0.1/room/",
        ),
        (
            "/chat/",
            format!("location /chat/ {{ {} {PROXY} }}", to(address)),
            "upgrade",
            "cut /chat off",
        ),
        (
            "/",
            format!("location /chat/ {{ proxy_pass http://{address}/; {PROXY} }}"),
            "upgrade",
            "does not come from the server",
        ),
        (
            "/",
            format!("location / {{ proxy_pass http://127.0.0.1:{closed}; {PROXY} }}"),
            "upgrade",
            "does not reach the server",
        ),
        (
            "/",
            format!("location / {{ {} {PROXY} }} location /admin/ {{ proxy_pass http://{admin}/; }}", to(address)),
            "operators' URLs",
            "/admin/metrics, /admin/status",
        ),
        (
            "/",
            format!("location / {{ {} {} }}", to(address), PROXY.replace("$proxy_add_x_forwarded_for", "$http_x_forwarded_for")),
            "forged address",
            "have the proxy append",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let port = free_port();
        let block = format!("server {{ listen 127.0.0.1:{port}; {location} }}");
        let _nginx = NginxProcess::start(&format!("doctor-{number}"), port, &block).await;
        let url = format!("ws://127.0.0.1:{port}{path}");
        let diagnosis = examine_with(&url, &["--idle-seconds", "3"], &[]).await;
        diagnosis.expect(step, "failed", part);
        // The header of another client stands in place of this machine's address.
        if step != "forged address" {
            assert_eq!(diagnosis.steps("failed"), [step], "{diagnosis}");
        }
    }
}

#[tokio::test]
#[ignore = "needs nginx: tests/run starts this test"]
async fn a_balancer_before_servers_that_are_no_cluster_is_named() {
    let trust = |config: &mut Config| {
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    };
    let [one, two] = [TestServer::with(trust).await, TestServer::with(trust).await];
    let port = free_port();
    let blocks = format!(
        "upstream rooms {{ server {}; server {}; }} \
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://rooms; {PROXY} }} }}",
        one.address, two.address
    );
    let _nginx = NginxProcess::start("doctor-balancer", port, &blocks).await;
    let url = format!("ws://127.0.0.1:{port}/");
    examine_with(&url, &[], &[])
        .await
        .expect_only("resume", "clients are routed to several servers");
}

/// Starts HAProxy with this frontend and this server.
pub async fn haproxy(name: &str, port: u16, frontend: &str, server: SocketAddr) -> (Child, File) {
    let configuration = File::new(
        name,
        format!(
            "defaults\n timeout connect 2s\n{frontend}\n\
             frontend public\n bind 127.0.0.1:{port}\n default_backend rooms\n\
             backend rooms\n server one {server}\n"
        ),
    );
    let mut command = Command::new("haproxy");
    command.arg("-f").arg(configuration.path());
    (start(&mut command, port).await, configuration)
}

#[tokio::test]
async fn the_doctor_leaves_its_sessions_where_a_step_fails() {
    // The session cannot be resumed, while a second one is in the room. A session that is not left stays longer than
    // the test waits.
    let server = TestServer::with(|config| config.liveness.resume_seconds = 300).await;
    let lose = |head: String| match head.contains("?resume=") {
        true => head.replacen("GET /room/", "GET /lost/", 1),
        false => head,
    };
    let rule = Rule {
        request: lose,
        ..PASS
    };
    let middle = Middle::start(server.address, rule).await;
    let diagnosis = examine(middle.address).await;
    diagnosis.expect_only("resume", "404");
    // The session that was cut waits to be resumed.
    server.expect_suspended(1).await;
    crate::support::eventually("one session", || server.anteroom.sessions() == 1).await;
}

#[tokio::test]
#[ignore = "needs haproxy: tests/run starts this test"]
async fn behind_haproxy_each_mistake_is_named() {
    let server = TestServer::with(|config| {
        config.serving.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let port = free_port();
    let long = " timeout client 1m\n timeout server 1m\n timeout tunnel 1h";
    let http = format!(" mode http\n option forwardfor\n{long}");
    let proxy = haproxy("doctor-haproxy-http", port, &http, server.address).await;
    let url = format!("ws://127.0.0.1:{port}/");
    examine_with(&url, &["--idle-seconds", "1"], &[])
        .await
        .expect_healthy();
    drop(proxy);

    let port = free_port();
    let short = " mode http\n option forwardfor\n timeout client 1m\n timeout server 1m\n timeout tunnel 1s";
    let _proxy = haproxy("doctor-haproxy-short", port, short, server.address).await;
    let url = format!("ws://127.0.0.1:{port}/");
    let diagnosis = examine_with(&url, &["--idle-seconds", "5"], &[]).await;
    diagnosis.expect_only("idle", "timeout tunnel");

    let port = free_port();
    let tcp = format!(" mode tcp\n{long}");
    let _proxy = haproxy("doctor-haproxy-tcp", port, &tcp, server.address).await;
    let url = format!("ws://127.0.0.1:{port}/");
    let diagnosis = examine_with(&url, &[], &[]).await;
    diagnosis.expect("address", "failed", "the server sees 127.0.0.1");

    let port = free_port();
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _proxy = haproxy("doctor-haproxy-down", port, &http, closed).await;
    let url = format!("ws://127.0.0.1:{port}/");
    examine_with(&url, &[], &[])
        .await
        .expect_only("upgrade", "does not reach the server");
}
