//! What the server and systemd tell each other, and the units of the Debian package.

use std::{net::TcpListener, os::fd::OwnedFd, process::Stdio};

use serde_json::json;
use tokio::{net::UnixDatagram, process::Command};

use crate::support::{Client, Folder, Program, within_deadline};

/// Starts the server as systemd does, with `count` sockets, all of them this one.
fn service(socket: TcpListener, count: usize) -> Command {
    let mut command = Command::new("sh");
    let sockets: String = (3..3 + count).map(|fd| format!(" {fd}<&0")).collect();
    // The variable names the process that the shell becomes.
    let script = format!(r#"LISTEN_PID=$$ LISTEN_FDS={count} exec "$0"{sockets} </dev/null"#);
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_anteroom")])
        .stdin(Stdio::from(OwnedFd::from(socket)));
    command
}

#[tokio::test]
async fn systemd_opens_the_socket_and_hears_when_the_server_is_ready_and_stops() {
    let folder = Folder::new("systemd");
    let notices = UnixDatagram::bind(folder.file("notify")).unwrap();
    let notice = async || {
        let mut buffer = [0; 256];
        let length = within_deadline("a notice", notices.recv(&mut buffer)).await;
        String::from_utf8_lossy(&buffer[..length.unwrap()]).into_owned()
    };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut command = service(socket, 1);
    command
        .env("NOTIFY_SOCKET", folder.file("notify"))
        .stderr(Stdio::null());
    let mut program = Program::run(command).await;
    assert_eq!(program.address, address);
    assert_eq!(notice().await, "READY=1\n");
    let mut client = Client::connect(address, "/room/tea").await;
    client
        .send(json!({"type": "ping", "receiver": "server"}))
        .await;
    assert_eq!(client.next().await["type"], "pong");
    program.signal("TERM").await;
    assert_eq!(notice().await, "STOPPING=1\n");
    assert_eq!(program.exit_code().await, Some(0));
}

#[tokio::test]
async fn sockets_that_the_server_cannot_use_are_an_error() {
    let several = service(TcpListener::bind("127.0.0.1:0").unwrap(), 2);
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let mut other_kind = service(TcpListener::bind("127.0.0.1:0").unwrap(), 1);
    other_kind.stdin(Stdio::from(OwnedFd::from(datagrams)));
    for (mut command, message) in [
        (several, "systemd gives 2 sockets: give one"),
        (
            other_kind,
            "the socket of systemd is not a TCP socket that listens",
        ),
    ] {
        let output = within_deadline("the exit", command.output()).await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message), "{error}");
        assert_eq!(output.status.code(), Some(1), "{error}");
    }
}

#[tokio::test]
async fn scripts_of_shells_and_the_manual_page_know_every_command() {
    let print = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        let output = command.args(arguments).output().await.unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "fish", "zsh"] {
        let script = print(&["completions", shell]).await;
        for word in ["messages-per-second", "doctor", "idle-seconds"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let page = print(&["man"]).await;
    assert!(page.contains(".TH anteroom 1"));
    for part in ["COMMAND DOCTOR", "COMMAND JOIN", "COMMAND BENCH"] {
        assert!(page.contains(&format!(".SH \"{part}\"")), "{part}");
    }
    assert!(page.contains("ANTEROOM_LISTEN"));
}
