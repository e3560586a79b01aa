//! The command `join`, at a terminal and in pipes.

use std::{
    fs::File as StdFile,
    io::{Read, Write},
    net::SocketAddr,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use futures_util::{SinkExt, StreamExt};
use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::{
    proxy::{Failure, Fate, Proxy},
    support::{Client, DEADLINE, File, TestServer, eventually, eventually_async, within_deadline},
    tls::{Authority, Files},
    tokens::{SECRET, sign, with_secret},
};

/// The program with pipes.
struct Pipes {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .arg("join")
        .args(arguments)
        .env_remove("ANTEROOM_TOKEN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn room(address: SocketAddr) -> String {
    format!("{address}/room/tea")
}

impl Pipes {
    fn start(arguments: &[&str]) -> Pipes {
        Pipes::run(command(arguments))
    }

    fn run(mut command: Command) -> Pipes {
        let mut child = command.spawn().unwrap();
        Pipes {
            input: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    /// Writes a line.
    async fn write(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        let line = format!("{line}\n");
        let written = input.write_all(line.as_bytes());
        within_deadline("writing", written).await.unwrap();
    }

    /// The next line.
    async fn next(&mut self) -> String {
        let next = within_deadline("a line", self.lines.next_line()).await;
        next.unwrap().expect("the output goes on")
    }

    /// The next line must be this one.
    async fn expect(&mut self, line: &str) {
        assert_eq!(self.next().await, line);
    }

    /// The next line that has `part`.
    async fn find(&mut self, part: &str) -> String {
        loop {
            let line = self.next().await;
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The answer to `hello`, which is the first line with `--json`.
    async fn hello(&mut self) -> Value {
        let hello: Value = serde_json::from_str(&self.next().await).unwrap();
        assert_eq!(hello["type"], "hello");
        hello
    }

    /// Ends the input; returns the exit code, the rest of the output and standard error.
    async fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        self.input = None;
        self.ended().await
    }

    /// The exit code, the rest of the output and standard error.
    async fn ended(mut self) -> (Option<i32>, Vec<String>, String) {
        let mut rest = Vec::new();
        while let Some(line) = within_deadline("the end", self.lines.next_line())
            .await
            .unwrap()
        {
            rest.push(line);
        }
        let mut errors = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        within_deadline("the errors", stderr.read_to_string(&mut errors))
            .await
            .unwrap();
        let status = within_deadline("the exit", self.child.wait())
            .await
            .unwrap();
        (status.code(), rest, errors)
    }

    fn kill(&self, signal: nix::sys::signal::Signal) {
        let id = self.child.id().unwrap().try_into().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).unwrap();
    }
}

#[tokio::test]
async fn json_lines_go_through_unchanged_in_both_directions() {
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = Pipes::start(&["--json", &room(server.address)]);
    let hello = alice.hello().await;
    assert_eq!(hello["data"]["peers"][0]["id"], bob.id);
    let id = hello["receiver"].as_str().unwrap().to_owned();
    bob.expect_new(&id).await;

    bob.send_text(r#"{"type":"x","receiver":"all","data":{"b" : 1.0,"a":"é"}}"#)
        .await;
    let bob_id = bob.id.clone();
    alice
        .expect(&format!(
            r#"{{"type":"x","sender":"{bob_id}","receiver":"all","data":{{"b" : 1.0,"a":"é"}}}}"#
        ))
        .await;
    alice
        .write(r#"{"data":[1.0, 2],"receiver":"all","type":"y","ref":7}"#)
        .await;
    alice.write("").await;
    bob.expect_text(&format!(
        r#"{{"type":"y","sender":"{id}","receiver":"all","data":[1.0, 2]}}"#
    ))
    .await;
    alice
        .expect(&format!(r#"{{"type":"ack","sender":"server","receiver":"{id}","data":{{"ref":7,"receivers":1}}}}"#))
        .await;
    alice.write(r#"{"type":"z","receiver":"all"}"#).await;
    let (code, rest, errors) = alice.end().await;
    assert_eq!((code, &*errors), (Some(0), ""));
    assert_eq!(rest, Vec::<String>::new());
    assert_eq!(bob.next().await["type"], "z");
    // It leaves, and is not only suspended.
    bob.expect_left(&id).await;
}

#[tokio::test]
async fn binary_messages_are_json_strings() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut alice = Pipes::start(&["--json", &room(address)]);
    let (stream, _) = within_deadline("a connection", listener.accept())
        .await
        .unwrap();
    let mut socket = accept_async(stream).await.unwrap();
    within_deadline("hello", socket.next())
        .await
        .unwrap()
        .unwrap();
    let hello = json!({"type": "hello", "sender": "server", "receiver": "1", "data":
        {"room": "tea", "peers": [], "iceServers": [], "resume": null}});
    socket.send(Message::text(hello.to_string())).await.unwrap();
    socket
        .send(Message::binary([vec![0; 16], b"bytes!".to_vec()].concat()))
        .await
        .unwrap();
    alice.hello().await;
    alice.expect(r#""AAAAAAAAAAAAAAAAAAAAAGJ5dGVzIQ==""#).await;
}

#[tokio::test]
async fn the_exit_code_says_what_has_happened() {
    let server = TestServer::with(|config| {
        config.access.allow_origin = vec!["https://example.org".parse().unwrap()];
    })
    .await;
    let forbidden = room(server.address);
    let server = TestServer::start().await;
    let address = server.address.to_string();
    let tea = room(server.address);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    for (arguments, expected, reason) in [
        (&["--json", &tea][..], 0, ""),
        (&[&tea], 0, ""),
        (&[&address], 0, ""),
        (&["--origin", "https://example.com", &forbidden], 1, "4403"),
        (&["--json", &closed], 1, "nothing listens"),
        (&[&closed], 1, "nothing listens"),
        (&["ftp://a/"], 2, "not the URL of a server or a room"),
        (&["ws://a/room?token=hunter2"], 2, "no token"),
        (&["--json", "--name", "x", &tea], 2, "--name"),
        (&["--name", "\u{200b}", &tea], 2, "--name"),
    ] {
        let (code, rest, errors) = Pipes::start(arguments).end().await;
        assert_eq!(code, Some(expected), "{arguments:?}: {errors} {rest:?}");
        assert!(errors.contains(reason), "{arguments:?}: {errors}");
        assert!(!errors.contains("hunter2"));
        assert!(errors.lines().count() <= 1, "{errors}");
    }

    for wrong in [
        r#"{"type":"x","receiver":"all"}"#,
        "{",
        r#"{"type":"x","receiver":"all","ref":1}"#,
    ] {
        let mut alice = Pipes::start(&["--json", &tea]);
        alice.write(wrong).await;
        alice
            .write(r#"{"type":"ping","receiver":"server","data":1}"#)
            .await;
        let (code, rest, errors) = alice.end().await;
        assert_eq!(code, Some(3), "{wrong}: {errors}");
        assert!(errors.starts_with("anteroom: "), "{errors}");
        assert_eq!(rest.len(), 3, "{rest:?}");
    }
}

#[tokio::test]
async fn a_shell_pipe_works_and_a_reader_that_leaves_ends_it_quietly() {
    let server = TestServer::start().await;
    let line = r#"{"type":"ping","receiver":"server","data":"pipe"}"#;
    let shell = format!(
        "printf '%s\\n' '{line}' | '{}' join --json {} | grep pong",
        env!("CARGO_BIN_EXE_anteroom"),
        room(server.address)
    );
    let output = Command::new("sh").args(["-c", &shell]).output();
    let output = within_deadline("the pipe", output).await.unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let pong: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(pong["data"], "pipe");

    let mut bob = Client::join(&server, "tea").await;
    let mut alice = Pipes::start(&["--json", &room(server.address)]);
    alice.hello().await;
    bob.expect_any_new().await;
    let Pipes {
        mut child,
        input,
        lines,
    } = alice;
    drop(lines);
    // Programs that other tests are starting have the pipe open, too, until they run.
    let mut status = None;
    eventually_async("the exit", async || {
        bob.send(json!({"type": "x", "receiver": "all"})).await;
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    let status = status.unwrap();
    let mut errors = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .await
        .unwrap();
    assert_eq!((status.code(), &*errors), (Some(0), ""));
    drop(input);
    assert_eq!(bob.next().await["type"], "close");
}

#[tokio::test]
async fn lines_are_neither_lost_nor_doubled_when_connections_are_cut() {
    const LINES: usize = 300;
    let server = TestServer::start().await;
    let mut connections = 0;
    let proxy = Proxy::start(server.address, move || {
        connections += 1;
        match connections {
            2 | 3 => Fate {
                up: 5000,
                failure: Failure::Reset,
                ..Fate::NONE
            },
            _ => Fate::NONE,
        }
    })
    .await;
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = Pipes::start(&["--json", &room(proxy.address)]);
    alice.hello().await;
    bob.expect_any_new().await;
    for number in 0..LINES {
        alice
            .write(&json!({"type": "x", "receiver": "all", "data": number}).to_string())
            .await;
        if number == LINES / 2 {
            proxy.fail(Failure::Reset);
        }
    }
    let ended = tokio::spawn(alice.end());
    for number in 0..LINES {
        assert_eq!(bob.next().await["data"], number);
    }
    let (code, rest, errors) = ended.await.unwrap();
    assert_eq!((code, &*errors), (Some(0), ""));
    assert_eq!(rest, Vec::<String>::new());
    assert_eq!(bob.next().await["type"], "close");
}

#[tokio::test]
async fn a_plain_pipe_loses_no_line_when_the_queue_is_full() {
    const LINES: usize = 100;
    const LINE_BYTES: usize = 60_000;
    /// The number of lines of which the queue holds not all.
    const TOO_MANY: usize = 18;
    /// The number of lines that the program has read but not looked at, at most.
    const READ_AHEAD: usize = 65;
    const PIPE_BYTES: usize = 65_536;
    let server =
        TestServer::with(|config| config.limits.outbox_bytes = LINES * 2 * LINE_BYTES).await;
    let proxy = Proxy::start(server.address, || Fate::NONE).await;
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = Pipes::start(&[&room(proxy.address)]);
    bob.expect_any_new().await;
    alice.find("you are").await;
    // What is sent arrives, but stays in the queue: no receipt comes back.
    proxy.hold(false, true);
    let mut input = alice.input.take().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let width = LINE_BYTES - 1;
    let text: String = (0..LINES)
        .map(|number| format!("{number:0width$}\n"))
        .collect();
    let writing = tokio::spawn(async move {
        for chunk in text.as_bytes().chunks(4096) {
            input.write_all(chunk).await?;
            count.fetch_add(chunk.len(), Relaxed);
        }
        std::io::Result::Ok(())
    });
    let goal = (TOO_MANY + READ_AHEAD) * LINE_BYTES + PIPE_BYTES;
    eventually("a line without room", || written.load(Relaxed) >= goal).await;
    proxy.hold(false, false);
    for number in 0..LINES {
        let data = bob.next().await["data"].as_str().unwrap().to_owned();
        assert_eq!(data.parse(), Ok(number));
    }
    writing.await.unwrap().unwrap();
    let (code, _, errors) = alice.ended().await;
    assert_eq!((code, &*errors), (Some(0), ""));
}

#[tokio::test]
async fn errors_of_raw_and_of_long_lines_come_at_once() {
    let server = TestServer::start().await;
    let _bob = Client::join(&server, "tea").await;
    let tea = room(server.address);
    let mut raw = Pipes::start(&[&tea]);
    raw.write(r#"/raw {"type":"x"}"#).await;
    let (code, _, errors) = raw.end().await;
    assert_eq!(code, Some(3), "{errors}");

    // One is longer than the server accepts, the other one than the queue.
    for length in [100_000, 1_200_000] {
        let mut long = Pipes::start(&["--json", &tea]);
        let data = "x".repeat(length);
        long.write(&format!(
            r#"{{"type":"x","receiver":"all","ref":1,"data":"{data}"}}"#
        ))
        .await;
        let (code, rest, errors) = long.end().await;
        assert_eq!(code, Some(3), "{errors}");
        assert!(!errors.contains("receipts"), "{errors}");
        assert!(rest[0].contains(r#""seconds""#) && !rest[0].contains(r#""token""#));
    }
}

#[tokio::test]
async fn a_message_with_line_breaks_is_one_line() {
    let server = TestServer::start().await;
    let mut alice = Pipes::start(&["--json", &room(server.address)]);
    alice.hello().await;
    let mut bob = Client::join(&server, "tea").await;
    alice.find(r#""new""#).await;
    bob.send_text("{\"type\":\"x\",\"receiver\":\"all\",\"data\":[\r\n1,\n2]}")
        .await;
    assert!(alice.next().await.ends_with(r#""data":[  1, 2]}"#));
}

#[tokio::test]
async fn what_was_lost_with_a_session_is_an_error() {
    let first = TestServer::start().await;
    let second = TestServer::start().await;
    let mut connections = 0;
    let proxy = Proxy::before(vec![first.address, second.address], move || {
        connections += 1;
        Fate {
            server: usize::from(connections > 1),
            ..Fate::NONE
        }
    })
    .await;
    let mut alice = Pipes::start(&["--json", &room(proxy.address)]);
    alice.hello().await;
    proxy.hold(true, false);
    alice.write(r#"{"type":"x","receiver":"all"}"#).await;
    // Its own pings would be answered, so nothing says that it was sent but the count of the proxy's bytes.
    let bob = Client::join(&second, "tea").await;
    proxy.wait(true);
    proxy.fail(Failure::Close);
    proxy.hold(false, false);
    proxy.wait(false);
    let (code, rest, errors) = alice.end().await;
    // The line may have been read after the connection was lost. Then it was sent in the new session.
    match code {
        Some(1) => assert!(errors.contains("may not have arrived"), "{errors}"),
        code => assert_eq!((code, &*errors), (Some(0), "")),
    }
    assert!(rest[0].contains("resume_failed"), "{rest:?}");
    drop(bob);
}

#[tokio::test]
async fn a_signal_leaves_the_room() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    let server = TestServer::start().await;
    let mut bob = Client::join(&server, "tea").await;
    for (options, signal, expected) in [
        (&["--json"][..], SIGINT, 130),
        (&[], SIGINT, 130),
        (&[], SIGTERM, 143),
    ] {
        let alice = Pipes::start(&[options, &[&room(server.address)]].concat());
        let id = bob.next().await["sender"].as_str().unwrap().to_owned();
        alice.kill(signal);
        // It could be resumed, so without a Close frame it would only be suspended.
        bob.expect_left(&id).await;
        let (code, _, errors) = alice.ended().await;
        assert_eq!((code, &*errors), (Some(expected), ""));
    }
}

#[tokio::test]
async fn tokens_come_from_the_environment_and_are_not_shown() {
    let file = File::new("join-token", format!("{SECRET}\n"));
    let server = TestServer::with(|config| with_secret(config, &file)).await;
    let token = sign(json!({"sub": "alice"}));
    let mut with_token = command(&["--json", &room(server.address)]);
    with_token.env("ANTEROOM_TOKEN", &token);
    let alice = Pipes::run(with_token);
    let (code, rest, errors) = alice.end().await;
    assert_eq!((code, &*errors), (Some(0), ""));
    assert!(rest.iter().all(|line| !line.contains(&token)), "{rest:?}");
    for arguments in [&["--token", "hunter2"][..], &[]] {
        let tea = room(server.address);
        let (code, _, errors) = Pipes::start(&[arguments, &[&tea]].concat()).end().await;
        assert_eq!(code, Some(1));
        assert!(
            errors.contains("4401") && !errors.contains("hunter2"),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn a_room_is_joined_over_tls() {
    let authority = Authority::new();
    let files = Files::new("join", authority.issue("join.test"));
    let server = TestServer::with(|config| {
        config.serving.tls_cert = Some(files.cert.path());
        config.serving.tls_key = Some(files.key.path());
    })
    .await;
    let roots = File::new("join-roots.pem", authority.pem());
    let url = format!("wss://localhost:{}/room/tea", server.address.port());
    let mut trusting = command(&["--json", &url]);
    trusting.env("SSL_CERT_FILE", roots.path());
    let mut alice = Pipes::run(trusting);
    alice.hello().await;
    assert_eq!(alice.end().await.0, Some(0));
    // The system does not trust the test's authority.
    let (code, _, errors) = Pipes::start(&["--json", &url]).end().await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("certificate"), "{errors}");
}

#[tokio::test]
async fn people_see_names_and_what_is_said() {
    let server = TestServer::with(|config| config.history.rooms = vec!["kept".into()]).await;
    let tea = room(server.address);
    let mut bob = Client::join(&server, "tea").await;
    bob.set_state(json!({"name": "Bob"})).await;
    let mut alice = Pipes::start(&["--name", "Alice", &tea]);
    alice.expect("you are Alice in room tea; here: Bob").await;
    let new = bob.next().await;
    let id = new["sender"].as_str().unwrap().to_owned();
    bob.expect_state(&id, json!({"name": "Alice"})).await;

    // As the server's page sends and shows it.
    alice.write("Hello, Bob!").await;
    let said = bob.next().await;
    assert_eq!(
        (&said["type"], &said["data"]),
        (&json!("chat"), &json!("Hello, Bob!"))
    );
    bob.send(json!({"type": "chat", "receiver": "all", "data": "red\u{1b}[31m\nx"}))
        .await;
    alice.expect(r"Bob: red\u{1b}[31m\nx").await;
    // Half of a surrogate pair is no text.
    bob.send_text(r#"{"type":"chat","receiver":"all","data":"\ud800"}"#)
        .await;
    alice.expect(r#"Bob: "\\ud800""#).await;
    bob.send(json!({"type": "chat", "receiver": id, "data": {"text": "psst", "name": "Bob"}}))
        .await;
    alice.expect("Bob (to you): psst").await;
    bob.send(json!({"type": "offer", "receiver": id, "data": {"sdp": "v=0"}}))
        .await;
    alice
        .expect(r#"Bob (to you) sent offer: {"sdp":"v=0"}"#)
        .await;
    alice.write("/to bob only you").await;
    let said = bob.next().await;
    assert_eq!(
        (&said["receiver"], &said["data"]),
        (&json!(bob.id), &json!("only you"))
    );
    alice.write(&format!("/to {} by id", &bob.id[..6])).await;
    assert_eq!(bob.next().await["data"], "by id");

    alice.write("/name Alice A").await;
    bob.expect_state(&id, json!({"name": "Alice A"})).await;
    alice.write(r#"/state {"name":"A","muted":true}"#).await;
    bob.expect_state(&id, json!({"name": "A", "muted": true}))
        .await;
    alice
        .write(r#"/raw {"type":"x","receiver":"all","data":[1.0]}"#)
        .await;
    assert_eq!(bob.next().await["type"], "x");
    bob.set_state(json!({"name": "Bobby", "camera": true}))
        .await;
    alice.expect("Bob is now Bobby").await;
    alice.write("/who").await;
    alice.expect(&format!("A (you, {id})")).await;
    let line = alice.next().await;
    assert_eq!(
        line,
        format!(r#"Bobby ({}) {{"camera":true,"name":"Bobby"}}"#, bob.id)
    );
    alice.write("/help").await;
    alice.find("/quit").await;
    let carol = Client::join(&server, "tea").await;
    let short = carol.id[..8].to_owned();
    alice.find(&format!("{short} joined")).await;
    carol.leave().await;
    alice.expect(&format!("{short} left")).await;
    alice.write("/to nobody hi").await;
    alice.write("/nonsense").await;
    alice.write("/quit").await;
    let (code, _, errors) = alice.ended().await;
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("nobody here is called nobody"), "{errors}");

    // What is kept has the name of who has said it.
    let kept = format!("{}/room/kept", server.address);
    let mut alice = Pipes::start(&["--name", "Alice", &kept]);
    alice
        .expect("you are Alice in room kept; nobody else is here")
        .await;
    alice.write("first").await;
    alice.write("second").await;
    assert_eq!(alice.end().await.0, Some(0));
    let mut dave = Pipes::start(&[&kept]);
    dave.write("/history 1").await;
    let line = dave.find("second").await;
    assert!(line.ends_with(" UTC Alice: second"), "{line}");
    assert_eq!(dave.end().await.0, Some(0));
}

/// The program at a terminal.
struct Terminal {
    child: Child,
    master: StdFile,
    slave: OwnedFd,
    output: mpsc::Receiver<Vec<u8>>,
    /// What was printed so far.
    shown: String,
}

impl Terminal {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Terminal {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let mut command = command(arguments);
        command
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(environment.iter().copied());
        for (stream, set) in [Command::stdin, Command::stdout, Command::stderr]
            .into_iter()
            .map(|set: fn(&mut Command, OwnedFd) -> &mut Command| {
                (pty.slave.try_clone().unwrap(), set)
            })
        {
            set(&mut command, stream);
        }
        let child = command.spawn().unwrap();
        let master = StdFile::from(pty.master);
        let mut reader = master.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            child,
            master,
            slave: pty.slave,
            output,
            shown: String::new(),
        }
    }

    fn write(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this is printed after what was found before.
    fn find(&mut self, part: &str) {
        loop {
            if let Some(at) = self.shown.find(part) {
                self.shown.drain(..at + part.len());
                return;
            }
            let more = self.output.recv_timeout(DEADLINE);
            let more = more.unwrap_or_else(|_| panic!("{part:?} is not in {:?}", self.shown));
            self.shown.push_str(&String::from_utf8_lossy(&more));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_above_the_line_that_is_typed() {
    let server = TestServer::start().await;
    let tea = room(server.address);
    let mut bob = Client::join(&server, "tea").await;
    bob.set_state(json!({"name": "Bob"})).await;
    let mut alice = Terminal::start(&["--name", "Alice", &tea], &[]);
    alice.find("you are \u{1b}[1;36mAlice\u{1b}[0m in room tea; here: \u{1b}[1;33mBob\u{1b}[0m");
    bob.expect_any_new().await;
    bob.next().await;
    alice.find("> ");
    alice.write("half a li");
    alice.find("half a li");
    bob.send(json!({"type": "chat", "receiver": "all", "data": "in between\u{1b}[2J"}))
        .await;
    alice.find("\u{1b}[1;33mBob\u{1b}[0m: in between\\u{1b}[2J");
    // The line is shown once more below.
    alice.find("> half a li");
    alice.write("ne\r");
    assert_eq!(bob.next().await["data"], "half a line");
    // The line before is a key away.
    alice.write("\u{1b}[A!\r");
    assert_eq!(bob.next().await["data"], "half a line!");
    // Lines that come together, as from the clipboard.
    alice.write("one\rtwo\rthree\r");
    for line in ["one", "two", "three"] {
        assert_eq!(bob.next().await["data"], line);
    }
    // Ctrl-D. Until the next line can be edited, the terminal itself takes this key.
    alice.find("three");
    alice.find("> ");
    alice.write("\u{4}");
    let status = within_deadline("the exit", alice.child.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(bob.next().await["type"], "close");
    expect_restored(&alice);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_cannot_edit_gives_whole_lines() {
    let server = TestServer::start().await;
    let tea = room(server.address);
    let mut bob = Client::join(&server, "tea").await;
    let mut alice = Terminal::start(&[&tea], &[("TERM", "dumb")]);
    alice.find("you are ");
    bob.expect_any_new().await;
    alice.write("hello\n/quit\n");
    assert_eq!(bob.next().await["data"], "hello");
    let status = within_deadline("the exit", alice.child.wait()).await;
    assert_eq!(status.unwrap().code(), Some(0));
    assert_eq!(bob.next().await["type"], "close");
    expect_restored(&alice);
}

/// The terminal must show what is typed.
fn expect_restored(terminal: &Terminal) {
    let settings = tcgetattr(&terminal.slave).unwrap();
    assert!(
        settings
            .local_flags
            .contains(LocalFlags::ECHO | LocalFlags::ICANON)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_restored_when_the_room_is_closed() {
    let file = File::new("join-terminal", format!("{SECRET}\n"));
    let server = TestServer::with(|config| with_secret(config, &file)).await;
    let token = sign(json!({"sub": "alice", "exp": crate::support::in_seconds(3)}));
    let tea = room(server.address);
    let mut alice = Terminal::start(&["--token", &token, &tea], &[("NO_COLOR", "1")]);
    alice.find("you are ");
    alice.find("> ");
    alice.write("unfinished");
    alice.find("anteroom: the connection was closed (1008");
    let status = within_deadline("the exit", alice.child.wait())
        .await
        .unwrap();
    assert_eq!(status.code(), Some(1));
    expect_restored(&alice);
    assert!(!alice.shown.contains("\u{1b}[31m"), "{:?}", alice.shown);
}
