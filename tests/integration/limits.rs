//! Who may come in; sessions, headers, time, open files.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::TcpStream,
    process::Command,
};

use crate::support::{Client, Program, Raw, TestServer, eventually, handshake, within_deadline};

#[tokio::test]
async fn only_pages_of_allowed_origins_come_in() {
    let server = TestServer::with(|config| {
        config.allow_origin = ["https://example.org", "http://localhost:3000"]
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
        raw.write(handshake("/room/tea").replace("Host:", &format!("{origin}Host:")))
            .await;
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
    let server = TestServer::with(|config| config.max_sessions = Some(2)).await;
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
    assert_eq!(
        said[1],
        "sessions are refused: all --max-sessions are taken"
    );
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
    let server = TestServer::with(|config| config.handshake_seconds = 1).await;
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
    let server = TestServer::with(|config| config.max_header_bytes = 4096).await;
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
    let warning = async {
        while let Some(line) = stderr.next_line().await.unwrap() {
            if line.contains("WARN") {
                return line;
            }
        }
        panic!("the log ended");
    };
    let warning = within_deadline("a warning", warning).await;
    assert!(
        warning.contains("cannot accept connections for the moment: "),
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
