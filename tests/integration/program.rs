//! The program: its options, its first line, its exit codes.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use crate::{support::Program, tls::Authority};

const README: &str = include_str!("../../README.md");

fn run(options: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_anteroom"))
        .args(options)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn stderr_line(output: &Output) -> &str {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end()
}

#[test]
fn options_that_make_no_sense_are_one_clear_line_and_exit_code_2() {
    type Case = (
        &'static [&'static str],
        &'static [(&'static str, &'static str)],
        &'static str,
    );
    let cases: [Case; 15] = [
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
        (&["extra"], &[], "unrecognized subcommand 'extra'"),
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
fn what_cannot_be_had_is_one_clear_line_and_exit_code_1() {
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
fn help_and_readme_give_each_option_its_unit_default_and_variable() {
    let output = run(&["--help"], &[]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for group in [
        "\nServing:\n",
        "\nAdmission:\n",
        "\nLimits:\n",
        "\nLiveness:\n",
        "\nWebRTC:\n",
        "\nAdministration:\n",
        "\nStopping:\n",
    ] {
        assert!(help.contains(group), "{group}");
    }
    let options = [
        ("--listen <ADDRESS:PORT>", "LISTEN", "127.0.0.1:8080"),
        ("--static-dir <FOLDER>", "STATIC_DIR", ""),
        (
            "--allow-origin <ORIGIN>",
            "ALLOW_ORIGIN",
            "all, and who is no web page",
        ),
        ("--max-message-bytes <BYTES>", "MAX_MESSAGE_BYTES", "65536"),
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
        ("--ice-server <URL>", "ICE_SERVER", ""),
        ("--turn-url <URL>", "TURN_URL", ""),
        ("--turn-secret-file <FILE>", "TURN_SECRET_FILE", ""),
        ("--turn-seconds <SECONDS>", "TURN_SECONDS", "86400"),
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
    ];
    let own_options = help.matches("[env: ANTEROOM_").count();
    assert_eq!(options.len(), own_options, "one is not in the list above");
    for (option, variable, default) in options {
        let (_, after) = help
            .split_once(option)
            .unwrap_or_else(|| panic!("{option}"));
        let own = after.split("\n      --").next().unwrap();
        assert!(
            own.contains(&format!("[env: ANTEROOM_{variable}=")),
            "{option}: {own}"
        );
        let (name, _) = option.split_once(' ').unwrap();
        let row = README
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` | ")));
        let row = row.unwrap_or_else(|| panic!("the README does not have {name}"));
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
async fn every_server_that_the_readme_starts_does_start() {
    let folder = std::env::temp_dir().join(format!("anteroom-readme-{}", std::process::id()));
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
    let chapter = README.split_once("\n## Operating it\n").unwrap().1;
    let commands = chapter.replace("\\\n", "");
    let servers = commands
        .lines()
        .filter_map(|line| line.strip_prefix("$ anteroom "));
    let mut count = 0;
    for options in servers {
        let options = options
            .trim_end_matches(" &")
            .replace("0.0.0.0:443", "127.0.0.1:0")
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
    assert_eq!(count, 7);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    // The reading ends of both pipes are gone before the program writes.
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
