//! The program: options, standard output, the log, exit codes.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use nkeys::KeyPair;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_tungstenite::{client_async, tungstenite::client::IntoClientRequest};

use crate::{
    guide::{CLUSTER, CONFIGURATION, DIALECTS, OPERATING, README, commands},
    support::{Client, File, Program, eventually_async, operator_at, within_deadline},
    tls::{Authority, Files, shake_hands},
};

/// Runs the program to its end.
fn run(options: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_anteroom"))
        .args(options)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// Standard error, which must be one line.
fn stderr_line(output: &Output) -> &str {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end()
}

#[test]
fn invalid_options_are_one_line_and_exit_code_2() {
    type Case = (
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
        &'static str,
    );
    let cases: [Case; 19] = [
        (
            &["--listen", "nowhere"],
            &[],
            "invalid value 'nowhere' for '--listen",
        ),
        (
            &["--listen", "127.0.0.1"],
            &[],
            "invalid value '127.0.0.1' for '--listen",
        ),
        (&["--no-such"], &[], "unexpected argument '--no-such' found"),
        (
            &["extra"],
            &[],
            "unrecognized subcommand '(not shown: it may be a secret)'",
        ),
        (
            &["--ping-seconds", "0"],
            &[],
            "--ping-seconds must be 1 to 3600, not 0",
        ),
        (&["--ping-seconds", "-1"], &[], "-1"),
        (
            &["--ping-seconds", "soon"],
            &[],
            "invalid value 'soon' for '--ping-seconds",
        ),
        (&["--max-sessions", "0"], &[], "--max-sessions must be 1 to"),
        (
            &["--outbox-bytes", "1000"],
            &[],
            "--outbox-bytes must hold one message",
        ),
        (
            &["--cluster", "http://localhost:4222"],
            &[],
            "not the address of a NATS server",
        ),
        (
            &["--cluster", "nats://a:b@one,nats://a:c@two"],
            &[],
            "all servers of --cluster must have the same user",
        ),
        (
            &["--cluster-prefix", "a.*"],
            &[],
            "--cluster-prefix must be",
        ),
        (
            &["--cluster-down-seconds", "1"],
            &[],
            "--cluster-down-seconds must be 2 to 3600, not 1",
        ),
        (&["--cluster-ca-file", "x"], &[], "need --cluster"),
        (
            &[],
            &[("ANTEROOM_DRAIN_SECONDS", "99999")],
            "--drain-seconds must be 0 to 3600",
        ),
        (
            &["--turn-listen", "127.0.0.1:0"],
            &[],
            "--turn-listen needs --turn-address",
        ),
        (
            &["--turn-relay-ports", "9-8"],
            &[],
            "'--turn-relay-ports <FIRST-LAST>': not a range of ports",
        ),
        (
            &["--sessions-file", "x", "--resume-seconds", "0"],
            &[],
            "--sessions-file needs --resume-seconds",
        ),
        (
            &["--sessions-file", "x", "--cluster", "nats://nats"],
            &[],
            "--sessions-file is for a server without --cluster",
        ),
    ];
    for (options, environment, message) in cases {
        let output = run(options, environment);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(output.stdout.is_empty());
        let line = stderr_line(&output);
        assert!(
            line.starts_with("anteroom: ") && line.contains(message),
            "{options:?}: {line}"
        );
    }
}

#[test]
fn an_unavailable_address_or_folder_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["--listen", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr_line(&output).contains(&format!("cannot listen on {address}: ")));

    for folder in ["/no/such/folder", env!("CARGO_BIN_EXE_anteroom")] {
        let output = run(&["--listen", "127.0.0.1:0", "--static-dir", folder], &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr_line(&output).contains(&format!("cannot read the folder {folder}: ")));
    }
}

#[test]
fn help_and_guide_give_each_option_its_unit_default_and_variable() {
    let output = run(&["--help"], &[]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for group in [
        "\nServing:\n",
        "\nAdmission:\n",
        "\nLimits:\n",
        "\nLiveness:\n",
        "\nWebRTC:\n",
        "\nHistory:\n",
        "\nAdministration:\n",
        "\nCluster:\n",
        "\nStopping:\n",
    ] {
        assert!(help.contains(group), "{group}");
        let heading = format!("\n## {}\n", group.trim().trim_end_matches(':'));
        assert!(CONFIGURATION.contains(&heading), "{heading}");
    }
    let options = [
        ("--listen <ADDRESS:PORT>", "LISTEN", "127.0.0.1:8080"),
        ("--static-dir <FOLDER>", "STATIC_DIR", ""),
        (
            "--allow-origin <ORIGIN>",
            "ALLOW_ORIGIN",
            "any origin, and clients that are not browsers",
        ),
        ("--max-message-bytes <BYTES>", "MAX_MESSAGE_BYTES", "65536"),
        ("--max-state-bytes <BYTES>", "MAX_STATE_BYTES", "4096"),
        ("--outbox-bytes <BYTES>", "OUTBOX_BYTES", "1048576"),
        ("--ping-seconds <SECONDS>", "PING_SECONDS", "20"),
        ("--pong-seconds <SECONDS>", "PONG_SECONDS", "10"),
        ("--handshake-seconds <SECONDS>", "HANDSHAKE_SECONDS", "10"),
        ("--max-header-bytes <BYTES>", "MAX_HEADER_BYTES", "16384"),
        (
            "--max-sessions <COUNT>",
            "MAX_SESSIONS",
            "what the open-file limit allows",
        ),
        ("--resume-seconds <SECONDS>", "RESUME_SECONDS", "30"),
        ("--tls-cert <FILE>", "TLS_CERT", ""),
        ("--tls-key <FILE>", "TLS_KEY", ""),
        ("--trust-proxy <ADDRESS>", "TRUST_PROXY", ""),
        (
            "--token-key-file <FILE>",
            "TOKEN_KEY_FILE",
            "no token is needed",
        ),
        (
            "--token-algorithm <ALGORITHM>",
            "TOKEN_ALGORITHM",
            "by the public key",
        ),
        ("--token-issuer <NAME>", "TOKEN_ISSUER", ""),
        ("--token-audience <NAME>", "TOKEN_AUDIENCE", ""),
        (
            "--max-room-sessions <COUNT>",
            "MAX_ROOM_SESSIONS",
            "no limit",
        ),
        ("--max-rooms <COUNT>", "MAX_ROOMS", "no limit"),
        (
            "--max-address-sessions <COUNT>",
            "MAX_ADDRESS_SESSIONS",
            "no limit",
        ),
        ("--joins-per-second <COUNT>", "JOINS_PER_SECOND", "no limit"),
        (
            "--messages-per-second <COUNT>",
            "MESSAGES_PER_SECOND",
            "no limit",
        ),
        ("--bytes-per-second <BYTES>", "BYTES_PER_SECOND", "no limit"),
        ("--dialect <CLIENT>", "DIALECT", ""),
        ("--peerjs-discovery", "PEERJS_DISCOVERY", ""),
        ("--max-topics <COUNT>", "MAX_TOPICS", "100"),
        ("--ice-server <URL>", "ICE_SERVER", ""),
        ("--turn-url <URL>", "TURN_URL", ""),
        ("--turn-secret-file <FILE>", "TURN_SECRET_FILE", ""),
        ("--turn-seconds <SECONDS>", "TURN_SECONDS", "86400"),
        (
            "--turn-listen <ADDRESS:PORT>",
            "TURN_LISTEN",
            "no such server",
        ),
        ("--turn-address <ADDRESS>", "TURN_ADDRESS", ""),
        (
            "--turn-relay-ports <FIRST-LAST>",
            "TURN_RELAY_PORTS",
            "49152-65535",
        ),
        ("--turn-allow-peer <ADDRESS>", "TURN_ALLOW_PEER", ""),
        ("--turn-deny-peer <ADDRESS>", "TURN_DENY_PEER", ""),
        (
            "--turn-session-allocations <COUNT>",
            "TURN_SESSION_ALLOCATIONS",
            "100",
        ),
        (
            "--turn-address-allocations <COUNT>",
            "TURN_ADDRESS_ALLOCATIONS",
            "1000",
        ),
        (
            "--turn-bytes-per-second <BYTES>",
            "TURN_BYTES_PER_SECOND",
            "4000000",
        ),
        (
            "--turn-total-bytes-per-second <BYTES>",
            "TURN_TOTAL_BYTES_PER_SECOND",
            "no limit",
        ),
        ("--history-room <NAME>", "HISTORY_ROOM", "no room"),
        ("--history-messages <COUNT>", "HISTORY_MESSAGES", "1000"),
        ("--history-days <DAYS>", "HISTORY_DAYS", "30"),
        ("--history-bytes <BYTES>", "HISTORY_BYTES", "268435456"),
        ("--history-dir <FOLDER>", "HISTORY_DIR", "in memory"),
        ("--history-storage <STORAGE>", "HISTORY_STORAGE", "file"),
        ("--history-replicas <COUNT>", "HISTORY_REPLICAS", "1"),
        ("--admin <ADDRESS:PORT>", "ADMIN", "nowhere"),
        ("--admin-token-file <FILE>", "ADMIN_TOKEN_FILE", ""),
        ("--cluster <URL>", "CLUSTER", "this node is alone"),
        (
            "--cluster-credentials-file <FILE>",
            "CLUSTER_CREDENTIALS_FILE",
            "",
        ),
        ("--cluster-ca-file <FILE>", "CLUSTER_CA_FILE", ""),
        ("--cluster-prefix <SUBJECT>", "CLUSTER_PREFIX", "anteroom"),
        (
            "--cluster-down-seconds <SECONDS>",
            "CLUSTER_DOWN_SECONDS",
            "3",
        ),
        ("--drain-seconds <SECONDS>", "DRAIN_SECONDS", "5"),
        (
            "--sessions-file <FILE>",
            "SESSIONS_FILE",
            "a restart ends all sessions",
        ),
    ];
    let own_options = help.matches("[env: ANTEROOM_").count();
    assert_eq!(options.len(), own_options, "one is not in the list above");
    for (option, variable, default) in options {
        let (_, after) = help
            .split_once(option)
            .unwrap_or_else(|| panic!("{option}"));
        let own = after.split("\n      --").next().unwrap();
        let may_be_secret = ["ICE_SERVER", "TURN_URL", "CLUSTER"].contains(&variable);
        let end = if may_be_secret { ']' } else { '=' };
        assert!(
            own.contains(&format!("[env: ANTEROOM_{variable}{end}")),
            "{option}: {own}"
        );
        let name = option.split(' ').next().unwrap();
        let row = CONFIGURATION
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` | ")));
        let row = row.unwrap_or_else(|| panic!("the guide does not have {name}"));
        assert!(row.contains(default), "{row}");
        if !default.is_empty() {
            assert!(
                own.contains(&format!("[default: {default}]")),
                "{option}: {own}"
            );
        }
    }
}

#[tokio::test]
async fn every_server_that_the_guide_starts_does_start() {
    let folder = std::env::temp_dir().join(format!("anteroom-guide-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (cert, key) = Authority::new().issue("rooms.test");
    let secret = "a-secret-of-this-test-that-has-more-than-32-bytes\n";
    for (name, contents) in [
        ("rooms.pem", &*cert),
        ("rooms.key", &key),
        ("token.key", secret),
        ("turn.key", secret),
    ] {
        std::fs::write(folder.join(name), contents).unwrap();
    }
    let chapters = [README, DIALECTS, OPERATING, CLUSTER];
    let commands = chapters.map(commands).concat();
    let servers = commands
        .iter()
        .filter_map(|line| line.strip_prefix("anteroom "))
        .filter(|options| !options.starts_with("doctor "));
    let mut count = 0;
    for options in servers {
        let options = options
            .trim_end_matches(" &")
            .replace("0.0.0.0:443", "127.0.0.1:0")
            .replace("0.0.0.0:3478", "127.0.0.1:0")
            .replace("127.0.0.1:8080", "127.0.0.1:0")
            .replace("127.0.0.1:8081", "127.0.0.1:0")
            .replace("127.0.0.1:9090", "127.0.0.1:0")
            .replace("127.0.0.1:9091", "127.0.0.1:0");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(options.split_whitespace())
            .env("ANTEROOM_LISTEN", "127.0.0.1:0")
            .current_dir(&folder)
            .stderr(Stdio::null());
        let mut program = Program::run(command).await;
        program.signal("TERM").await;
        assert_eq!(program.exit_code().await, Some(0), "{options}");
        count += 1;
    }
    assert_eq!(count, 13);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_closed_standard_output_causes_no_panic() {
    // The reading ends of both pipes are closed before the program writes.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' PIPE; exec \"$0\" --help"])
        .arg(env!("CARGO_BIN_EXE_anteroom"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn usage_errors_and_help_repeat_no_possible_secret() {
    const SECRET: &str = "hunter2";
    let not_shown = "'(not shown: it may be a secret)'";
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 19] = [
        (
            &["--cluster", "nats://user:hunter2/x@nats"],
            &[],
            "'--cluster <URL>': not the",
        ),
        (
            &["--cluster=nats://user:hunter2/x@nats"],
            &[],
            "'--cluster <URL>': not the",
        ),
        (
            &["--cluster", "nats://:hunter2@nats"],
            &[],
            "'--cluster <URL>': not the",
        ),
        (
            &["--ice-server", "turn:alice:hunter2"],
            &[],
            "'--ice-server <URL>': not the",
        ),
        (
            &["--turn-url", "turn:alice:hunter2"],
            &[],
            "'--turn-url <URL>': not the",
        ),
        (
            &[],
            &[("ANTEROOM_CLUSTER", "http://user:hunter2@nats")],
            not_shown,
        ),
        (
            &[],
            &[("ANTEROOM_ICE_SERVER", "turn:alice:hunter2")],
            not_shown,
        ),
        (&["hunter2"], &[], not_shown),
        (&["--ping-seconds", "20", "hunter2"], &[], not_shown),
        (&["--", "hunter2"], &[], not_shown),
        (&["token", "hunter2"], &[], not_shown),
        (&["doctor", "wss://a/?token=hunter2"], &[], not_shown),
        (&["doctor", "wss://a/", "hunter2"], &[], not_shown),
        (&["join", "wss://a/?token=hunter2"], &[], not_shown),
        (&["bench", "wss://a/?token=hunter2"], &[], not_shown),
        (&["join", "wss://a/", "hunter2"], &[], not_shown),
        (
            &["--clutser", "nats://user:hunter2@nats"],
            &[],
            "'--clutser' found",
        ),
        (
            &["--clutser=nats://user:hunter2@nats"],
            &[],
            "'--clutser' found",
        ),
        (
            &["token", "--token-key-file=x", "--listen-only=hunter2"],
            &[],
            "'--listen-only'",
        ),
    ];
    for (options, environment, message) in cases {
        let output = run(options, environment);
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        let line = stderr_line(&output);
        assert!(line.contains(message), "{options:?}: {line}");
        assert!(!line.contains(SECRET), "{options:?}: {line}");
    }
    let conflict = run(&["--ping-seconds", "20", "token"], &[]);
    let line = stderr_line(&conflict);
    assert!(line.contains("the subcommand 'token' cannot"), "{line}");
    for words in [
        &["--help"][..],
        &["-h"],
        &["token", "--help"],
        &["doctor", "--help"],
        &["join", "--help"],
        &["bench", "--help"],
    ] {
        let environment = [
            ("ANTEROOM_TOKEN", SECRET),
            ("ANTEROOM_CLUSTER", "nats://user:hunter2@nats"),
            ("ANTEROOM_ICE_SERVER", "turn:alice:hunter2@turn.example.org"),
            ("ANTEROOM_TURN_URL", "turn:alice:hunter2@turn.example.org"),
        ];
        let output = run(words, &environment);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !help.contains(SECRET), "{help}");
    }
}

#[test]
fn the_debug_format_of_the_configuration_has_no_secret() {
    let mut config = anteroom::Config::default();
    config.webrtc.ice_server = vec!["turn:alice:hunter2@turn.example.org".parse().unwrap()];
    config.webrtc.turn_url = vec!["turn:alice:hunter2@turn.example.org".parse().unwrap()];
    config.cluster.servers = vec!["nats://alice:hunter2@nats.example.org".parse().unwrap()];
    let shown = format!("{config:?} {config:#?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("nats.example.org"), "{shown}");
    let url = config.cluster.servers[0].to_string();
    assert_eq!(url, "nats.example.org:4222");
}

/// Plays a NATS server on one connection, as far as a node needs it to connect. Sends `message` to each
/// subscription, and passes on the options of CONNECT.
async fn play_nats(
    stream: TcpStream,
    message: &str,
    connects: tokio::sync::mpsc::UnboundedSender<String>,
) {
    let (reader, mut writer) = stream.into_split();
    let info = json!({"server_id": "x", "version": "2.10.0", "proto": 1, "headers": true,
        "max_payload": 1 << 20, "nonce": "abcdefgh", "auth_required": true});
    let _ = writer
        .write_all(format!("INFO {info}\r\n").as_bytes())
        .await;
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("CONNECT", options) => {
                let _ = connects.send(options.into());
                continue;
            }
            ("PING", _) => "PONG\r\n".into(),
            ("SUB", subject) => {
                let (subject, id) = subject.rsplit_once(' ').unwrap();
                let length = message.len();
                format!("MSG {} {id} {length}\r\n{message}\r\n", subject.trim())
            }
            _ => continue,
        };
        let _ = writer.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test]
async fn the_trace_log_has_no_secret() {
    let secret = |name: &str| format!("{name}-secret-that-has-more-than-32-bytes");
    let [token_secret, turn_secret, operators_secret] = ["token", "turn", "operators"].map(secret);
    let [nats_password, ice_password, payload] = ["nats%2Fpass", "ice-pass", "payload"].map(secret);
    let token_key = File::new("secrets.token", &token_secret);
    let turn_key = File::new("secrets.turn", &turn_secret);
    let operators_key = File::new("secrets.operators", &operators_secret);
    let authority = Authority::new();
    let (certificate, private_key) = authority.issue("secrets.test");
    let files = Files::new("secrets", (certificate, private_key.clone()));
    let seed = KeyPair::new_user().seed().unwrap();
    let user_jwt = "eyJ0eXAiOiJKV1QifQ.eyJzdWIiOiJhbnRlcm9vbSJ9.c2lnbmF0dXJlLW9mLXRoaXMtdGVzdA";
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let credentials = File::new("secrets.creds", credentials);
    let path = |file: &File| file.path().to_str().unwrap().to_owned();
    let token = run(
        &[
            "token",
            "--token-key-file",
            &path(&token_key),
            "--token-algorithm=HS256",
            "--user",
            "alice",
        ],
        &[],
    );
    let token = String::from_utf8(token.stdout)
        .unwrap()
        .trim_end()
        .to_owned();

    let nats = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nats_address = nats.local_addr().unwrap();
    let (connects, mut connected) = tokio::sync::mpsc::unbounded_channel();
    let message = payload.clone();
    let playing = tokio::spawn(async move {
        loop {
            let (stream, _) = nats.accept().await.unwrap();
            play_nats(stream, &message, connects.clone()).await;
        }
    });

    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_anteroom"));
    command
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .args([
            "--tls-cert",
            &path(&files.cert),
            "--tls-key",
            &path(&files.key),
        ])
        .args(["--token-key-file", &path(&token_key)])
        .args(["--token-algorithm", "HS256"])
        .args(["--turn-url", "turn:turn.example.org"])
        .args(["--turn-secret-file", &path(&turn_key)])
        .args(["--admin-token-file", &path(&operators_key)])
        .args(["--cluster-credentials-file", &path(&credentials)])
        .args([
            "--ice-server",
            &format!("turn:alice:{ice_password}@turn.example.org"),
        ])
        .env(
            "ANTEROOM_CLUSTER",
            format!("nats://anteroom:{nats_password}@{nats_address}"),
        )
        .env("RUST_LOG", "trace")
        .stderr(Stdio::piped());
    let mut program = Program::run(command).await;
    let mut stderr = program.child.stderr.take().unwrap();
    let mut log = String::new();
    let reading = stderr.read_to_string(&mut log);
    let mut secrets = vec![
        token_secret,
        turn_secret,
        operators_secret.clone(),
        "nats%2Fpass".into(),
        "nats/pass".into(),
        ice_password,
        payload,
        seed,
        user_jwt.into(),
        token.clone(),
        token[token.len() - 20..].into(),
    ];
    secrets.extend(private_key.lines().skip(1).take(2).map(str::to_owned));
    let driving = async {
        let connect = within_deadline("CONNECT", connected.recv()).await.unwrap();
        assert!(connect.contains("nats/pass"), "{connect}");
        let admin = program.admin().await;
        let headers = format!("Authorization: Bearer {operators_secret}\r\n");
        eventually_async("the node is ready", async || {
            operator_at(admin, "GET", "/ready", &headers, "")
                .await
                .status
                == 200
        })
        .await;
        assert_eq!(
            operator_at(admin, "GET", "/rooms", &headers, "")
                .await
                .status,
            200
        );
        let wrong = "Authorization: Bearer wrong-secret-of-operators\r\n";
        assert_eq!(
            operator_at(admin, "GET", "/rooms", wrong, "").await.status,
            401
        );
        secrets.push("wrong-secret-of-operators".into());
        let connector = authority.connector(&[&tokio_rustls::rustls::version::TLS13]);
        let connect = async |query: &str, header: Option<String>| {
            let stream = TcpStream::connect(program.address).await.unwrap();
            let stream = shake_hands(&connector, stream).await.unwrap();
            let url = format!("wss://localhost/room/tea{query}");
            let mut request = url.into_client_request().unwrap();
            if let Some(header) = header {
                let name = "authorization";
                request.headers_mut().insert(name, header.parse().unwrap());
            }
            let upgrade = within_deadline("the upgrade", client_async(request, stream)).await;
            upgrade.map(|(socket, _)| Client::over(socket))
        };
        let bearer = Some(format!("Bearer {token}"));
        let mut alice = connect("", bearer).await.unwrap();
        let hello = json!({"type": "hello", "receiver": "server", "data": {"resume": true}});
        alice.send(hello).await;
        let data = alice.next().await["data"].clone();
        let resume = data["resume"]["token"].as_str().unwrap();
        for server in data["iceServers"].as_array().unwrap() {
            secrets.push(server["credential"].as_str().unwrap().into());
        }
        secrets.push(resume.into());
        drop(alice);
        let mut alice = connect(&format!("?token={token}&resume={resume}&received=1"), None)
            .await
            .unwrap();
        assert_eq!(alice.next().await["type"], "resumed");
        // A malformed or rejected token is also a secret: it may be valid for another server.
        for query in [
            format!("?token={token}x"),
            format!("?token=malformed-{resume}%zz"),
            format!("?token={token}&resume=malformed-{resume}"),
        ] {
            let _ = connect(&query, None).await;
        }
        program.signal("HUP").await;
        alice
            .send(json!({"type": "ping", "receiver": "server"}))
            .await;
        while alice.next().await["type"] != "pong" {}
        program.signal("TERM").await;
    };
    let (read, ()) = within_deadline("the log", async { tokio::join!(reading, driving) }).await;
    read.unwrap();
    assert_eq!(program.exit_code().await, Some(0));
    playing.abort();
    for part in ["async_nats", "rustls", "stopping"] {
        assert!(log.contains(part), "the log has nothing of {part}: {log}");
    }
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "the log has {secret}");
    }
}
