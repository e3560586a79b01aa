//! Redis, which connects several nodes of Socket.IO and keeps its sessions.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::servers::{Process, free_port, on_server_core};

/// How long Redis may take to start or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Redis server that writes nothing to the disk, on the core of the servers.
pub struct Redis {
    pub process: Process,
    port: u16,
}

impl Redis {
    /// Starts the server and waits until it answers.
    pub fn start() -> io::Result<Redis> {
        let port = free_port()?;
        let process = Process::start(
            on_server_core()
                .args(["redis-server", "--bind", "127.0.0.1"])
                .args(["--port", &port.to_string()])
                .args(["--save", "", "--appendonly", "no"])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let redis = Redis { process, port };
        redis.wait_for("PING", "+PONG")?;
        Ok(redis)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Repeats a command until this is in its answer.
    pub fn wait_for(&self, command: &str, answer: &str) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            match self.ask(command) {
                Ok(last) if last.contains(answer) => return Ok(()),
                last if begin.elapsed() > PATIENCE => {
                    let text = format!("Redis answers {command} with {last:?}");
                    return Err(io::Error::other(text));
                }
                _ => sleep(Duration::from_millis(10)),
            }
        }
    }

    fn ask(&self, command: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "{command}\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}
