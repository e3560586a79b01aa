//! The server as a program, and its log.

use std::{net::SocketAddr, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
};

use super::time::within_deadline;

/// The server as a child process, killed when dropped.
pub struct Program {
    pub child: Child,
    pub address: SocketAddr,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts the program on a free port, without a log.
    pub async fn start<const N: usize>(options: [&str; N]) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .stderr(Stdio::null());
        Program::run(command).await
    }

    /// The address of the admin listener, read from the second line of standard output.
    pub async fn admin(&mut self) -> SocketAddr {
        let line = self.next_line().await;
        line.split_once("://").unwrap().1.parse().unwrap()
    }

    /// Starts the program with `command`, and reads the server's address from its first line.
    pub async fn run(mut command: Command) -> Program {
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within_deadline("the first line", lines.next_line())
            .await
            .unwrap()
            .unwrap();
        let address = line.split_once("://").unwrap().1.parse().unwrap();
        Program {
            child,
            address,
            lines,
        }
    }

    /// The next line of standard output.
    pub async fn next_line(&mut self) -> String {
        within_deadline("another line", self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
    }

    /// The log. Standard error must be piped, and can be taken once.
    pub fn log(&mut self) -> Log {
        Log(BufReader::new(self.child.stderr.take().unwrap()).lines())
    }

    /// Sends a signal by its name, such as `TERM`.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let killed = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(killed.success());
    }

    /// Waits until the program exits.
    pub async fn exit_code(&mut self) -> Option<i32> {
        within_deadline("the exit", self.child.wait())
            .await
            .unwrap()
            .code()
    }
}

/// The log of a [`Program`].
pub struct Log(Lines<BufReader<ChildStderr>>);

impl Log {
    /// The next line.
    pub async fn next_line(&mut self) -> String {
        within_deadline("a line in the log", self.0.next_line())
            .await
            .unwrap()
            .expect("the log continues")
    }

    /// The next line that contains `part`. Skips the lines before it.
    pub async fn find(&mut self, part: &str) -> String {
        let found = async {
            loop {
                let line = self.next_line().await;
                if line.contains(part) {
                    return line;
                }
            }
        };
        within_deadline(&format!("{part:?} in the log"), found).await
    }
}
