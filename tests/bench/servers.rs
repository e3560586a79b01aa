//! The servers that are compared: how each is started, and the CPU time and memory it uses.

use std::{
    env, fs,
    io::{self, BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    time::ClockId,
    unistd::Pid,
};
use tokio_rustls::rustls::ClientConfig;

use crate::{dialect::Dialect, link::Identity, swarm::Swarm};

/// The core of the server. No other process of the benchmark uses it.
const SERVER_CORE: &str = "0";

/// The argument that makes this program the server on warp's own WebSockets.
pub const SERVE_WARP: &str = "--serve-warp";

/// The argument that makes this program the bare relay.
pub const SERVE_RELAY: &str = "--serve-relay";

/// A server to compare, in the order of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Anteroom,
    Bun,
    Warp,
    Ws,
    PeerServer,
    /// anteroom, with clients of PeerJS.
    PeerJs,
    SocketIo,
    /// anteroom again, with sessions that can be resumed.
    Resuming,
    /// A relay without a protocol: the part of the kernel in the cost of any server.
    Relay,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Anteroom,
        Kind::Bun,
        Kind::Warp,
        Kind::Ws,
        Kind::PeerServer,
        Kind::PeerJs,
        Kind::SocketIo,
        Kind::Resuming,
        Kind::Relay,
    ];

    /// The servers with their default behaviour.
    pub const SERVERS: &[Kind] = Kind::ALL.split_at(7).0;

    pub fn name(self) -> &'static str {
        match self {
            Kind::Anteroom => "anteroom",
            Kind::Bun => "Bun",
            Kind::Warp => "warp::ws()",
            Kind::Ws => "ws",
            Kind::PeerServer => "PeerServer",
            Kind::PeerJs => "anteroom, PeerJS",
            Kind::SocketIo => "Socket.IO",
            Kind::Resuming => "anteroom, resumable",
            Kind::Relay => "bare relay",
        }
    }

    pub fn dialect(self) -> Dialect {
        match self {
            Kind::PeerServer | Kind::PeerJs => Dialect::PeerJs,
            Kind::SocketIo => Dialect::SocketIo,
            Kind::Resuming => Dialect::Resuming,
            Kind::Relay => Dialect::Relayed,
            _ => Dialect::Rooms,
        }
    }

    /// The program and its arguments. `peers` is the folder with the servers that are scripts.
    fn command(self, peers: &Path) -> io::Result<Vec<PathBuf>> {
        let anteroom: PathBuf = env!("CARGO_BIN_EXE_anteroom").into();
        let listen = "--listen=127.0.0.1:0".into();
        Ok(match self {
            Kind::Anteroom | Kind::Resuming => vec![anteroom, listen],
            Kind::PeerJs => vec![anteroom, listen, "--dialect=peerjs".into()],
            Kind::Warp => vec![env::current_exe()?, SERVE_WARP.into()],
            Kind::Relay => vec![env::current_exe()?, SERVE_RELAY.into()],
            Kind::Bun => vec![peers.join("node_modules/.bin/bun"), peers.join("bun.js")],
            Kind::Ws => vec!["node".into(), peers.join("ws.js")],
            Kind::PeerServer => vec!["node".into(), peers.join("peerserver.js")],
            Kind::SocketIo => vec!["node".into(), peers.join("socketio.js")],
        })
    }
}

/// A running server.
pub struct Server {
    pub kind: Kind,
    /// The addresses on which it listens.
    pub addresses: Vec<SocketAddr>,
    pub process: Process,
    /// How its clients use TLS, if it does.
    tls: Option<Arc<ClientConfig>>,
}

/// A running process; dropping it kills the process.
pub struct Process {
    child: Child,
    clock: ClockId,
}

/// A command that runs the program in its first argument on the core of the servers.
pub fn on_server_core() -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", SERVER_CORE])
        .stdin(Stdio::null());
    command
}

/// A port of this machine that nothing uses.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// Starts a server and waits until it listens.
    pub fn start(kind: Kind, peers: &Path) -> io::Result<Server> {
        Server::start_with(kind, peers, &[])
    }

    /// Starts a server with more options and waits until it listens.
    pub fn start_with(kind: Kind, peers: &Path, options: &[String]) -> io::Result<Server> {
        Server::launch(
            kind,
            on_server_core().args(kind.command(peers)?).args(options),
        )
    }

    /// Starts a server that uses TLS and waits until it listens.
    pub fn start_with_tls(kind: Kind, peers: &Path, identity: &Identity) -> io::Result<Server> {
        let mut command = on_server_core();
        command.args(kind.command(peers)?);
        match kind {
            Kind::Anteroom => {
                command.arg("--tls-cert").arg(&identity.certificate);
                command.arg("--tls-key").arg(&identity.key);
            }
            _ => {
                command.env("TLS_CERT", &identity.certificate);
                command.env("TLS_KEY", &identity.key);
            }
        }
        let server = Server::launch(kind, &mut command)?;
        Ok(Server {
            tls: Some(identity.client.clone()),
            ..server
        })
    }

    /// Starts a server with a command and waits until it listens.
    pub fn launch(kind: Kind, command: &mut Command) -> io::Result<Server> {
        let mut process = Process::start(command.stdout(Stdio::piped()).env("RUST_LOG", "warn"))?;
        let output = process.child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line
            .trim()
            .rsplit("://")
            .next()
            .and_then(|address| address.parse().ok());
        let Some(address) = address else {
            let name = kind.name();
            return Err(io::Error::other(format!(
                "{name} did not start: it said {line:?}"
            )));
        };
        Ok(Server {
            kind,
            addresses: vec![address],
            process,
            tls: None,
        })
    }

    /// Clients of the server, none yet.
    pub fn swarm(&self) -> io::Result<Swarm> {
        let swarm = Swarm::new(&self.addresses, self.kind.dialect())?;
        Ok(swarm.over_tls(self.tls.clone()))
    }
}

impl Process {
    pub fn start(command: &mut Command) -> io::Result<Process> {
        let child = command.spawn()?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(child.id() as i32))?;
        Ok(Process { child, clock })
    }

    /// Sends a signal to the process, and waits until it has ended.
    pub fn stop(mut self, signal: Signal) -> io::Result<()> {
        self.signal(signal)?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Whether the process has ended. Its CPU time can still be read.
    pub fn has_ended(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.pid()), flags)? != WaitStatus::StillAlive)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// The CPU time used so far, of all threads, in user mode and in the kernel.
    pub fn cpu(&self) -> io::Result<Duration> {
        Ok(self.clock.now()?.into())
    }

    /// The CPU time used so far in user mode and in the kernel, in clock ticks (proc(5)).
    pub fn ticks(&self) -> io::Result<(u64, u64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in parentheses, may have blanks. utime and stime are fields 14 and 15 (proc(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let mut fields = fields
            .split_whitespace()
            .skip(11)
            .map(|field| field.parse().unwrap_or(0));
        Ok((fields.next().unwrap_or(0), fields.next().unwrap_or(0)))
    }

    /// The resident memory, in bytes. `VmRSS` lacks what each core has not added yet.
    pub fn resident(&self) -> io::Result<u64> {
        self.memory("smaps_rollup", "Rss:")
    }

    /// The most resident memory so far, in bytes.
    pub fn peak(&self) -> io::Result<u64> {
        self.memory("status", "VmHWM:")
    }

    /// A field of a file of proc(5), in bytes.
    fn memory(&self, file: &str, field: &str) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kilobytes.unwrap_or(0) * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
