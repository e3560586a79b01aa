//! The cost of sessions without a WebSocket, compared to Socket.IO's long polling.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
    task::LocalSet,
    time::{sleep, timeout},
};

use crate::{
    Plan,
    report::Table,
    servers::{Kind, Server},
    take_a_core,
};

/// The number of pairs that exchange messages, each one at a time.
const PAIRS: usize = 100;

/// The lengths of `data`, in bytes.
const SIZES: [usize; 2] = [100, 4000];

/// The number of idle sessions before the memory of further ones is measured, and of those.
const FIRST: usize = 200;
const IDLE: usize = 1000;

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Separates the packets of an answer (Engine.IO protocol 4).
const PACKETS: char = '\x1e';

/// How messages come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// anteroom: server-sent events and POST requests.
    Events,
    /// anteroom: long polling and POST requests.
    Polling,
    /// Socket.IO: long polling and POST requests.
    SocketIo,
}

impl Way {
    const ALL: [Way; 3] = [Way::Events, Way::Polling, Way::SocketIo];

    fn kind(self) -> Kind {
        match self {
            Way::Events | Way::Polling => Kind::Anteroom,
            Way::SocketIo => Kind::SocketIo,
        }
    }
}

pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut table = Table::<{ Way::ALL.len() }>::new();
    for _ in 0..plan.repetitions {
        for (column, way) in Way::ALL.into_iter().enumerate() {
            for size in SIZES {
                let server = Server::start(way.kind(), peers)?;
                let local = LocalSet::new();
                let micros = local.block_on(&runtime, exchange(plan, &server, way, size))?;
                table.add(column, &format!("a message of {size} bytes, µs"), micros);
            }
            let server = Server::start(way.kind(), peers)?;
            let bytes = LocalSet::new().block_on(&runtime, idle(&server, way))?;
            table.add(column, "an idle session, KB", bytes / 1000.0);
        }
    }
    let names = Way::ALL.map(|way| match way {
        Way::Events => "anteroom, events",
        Way::Polling => "anteroom, polling",
        Way::SocketIo => "Socket.IO, polling",
    });
    table.print(&format!("work | {}", names.join(" | ")), true);
    Ok(())
}

/// The server's CPU time for a message from one session of a pair to the other, in microseconds.
async fn exchange(plan: &Plan, server: &Server, way: Way, size: usize) -> io::Result<f64> {
    let address = server.addresses[0];
    let count = Rc::new(Cell::new(0_u64));
    for pair in 0..PAIRS {
        let room = format!("pair{pair}");
        let mut one = Peer::join(way, address, &room).await?;
        let mut other = Peer::join(way, address, &room).await?;
        let count = count.clone();
        tokio::task::spawn_local(async move {
            let data = "d".repeat(size - 2);
            loop {
                one.send(&other.id, &data).await?;
                other.receive().await?;
                count.set(count.get() + 1);
                other.send(&one.id, &data).await?;
                one.receive().await?;
                count.set(count.get() + 1);
            }
            #[allow(unreachable_code)]
            io::Result::Ok(())
        });
    }
    sleep(plan.span.warm_up).await;
    let (before, cpu) = (count.get(), server.process.cpu()?);
    let start = Instant::now();
    while start.elapsed() < plan.span.measured {
        sleep(Duration::from_millis(20)).await;
    }
    let cpu = server.process.cpu()? - cpu;
    match count.get() - before {
        0 => Err(io::Error::other(format!("{way:?}: no message has come"))),
        messages => Ok(cpu.as_secs_f64() * 1e6 / messages as f64),
    }
}

/// The memory of a session that waits for messages, in bytes.
async fn idle(server: &Server, way: Way) -> io::Result<f64> {
    let address = server.addresses[0];
    let mut peers = Vec::new();
    let mut first = 0;
    for number in 0..FIRST + IDLE {
        if number == FIRST {
            first = server.process.resident()?;
        }
        let mut peer = Peer::join(way, address, &format!("room{number}")).await?;
        peer.wait().await?;
        peers.push(peer);
    }
    Ok((server.process.resident()? - first) as f64 / IDLE as f64)
}

/// A session.
struct Peer {
    way: Way,
    /// The path and the part of the query that names the session.
    target: String,
    id: String,
    /// The connection that messages come on, and the one for those that are sent.
    down: Connection,
    up: Connection,
    /// The messages that have come and are not taken.
    waiting: Vec<Value>,
    received: u64,
    sent: u64,
}

impl Peer {
    async fn join(way: Way, address: SocketAddr, room: &str) -> io::Result<Peer> {
        let (down, up) = (
            Connection::open(address).await?,
            Connection::open(address).await?,
        );
        let mut peer = Peer {
            way,
            target: String::new(),
            id: String::new(),
            down,
            up,
            waiting: Vec::new(),
            received: 0,
            sent: 0,
        };
        match way {
            Way::Events | Way::Polling => {
                let room = format!("/room/{room}");
                let joined = peer.down.get(&room, "application/json").await?;
                let joined: Value = serde_json::from_str(&joined)?;
                let token = joined["session"]["token"].as_str().unwrap_or_default();
                peer.target = format!("{room}?resume={token}");
                peer.post(r#"{"type":"hello","receiver":"server"}"#).await?;
                let hello = peer.next("hello").await?;
                peer.id = hello["receiver"].as_str().unwrap_or_default().into();
            }
            Way::SocketIo => {
                let target = format!("/socket.io/?EIO=4&transport=polling&room={room}");
                let opened = peer.down.get(&target, "*/*").await?;
                let opened: Value = serde_json::from_str(&opened[1..])?;
                let sid = opened["sid"].as_str().unwrap_or_default();
                peer.target = format!("{target}&sid={sid}");
                peer.post("40").await?;
                while peer.id.is_empty() {
                    peer.poll().await?;
                }
            }
        }
        Ok(peer)
    }

    async fn post(&mut self, body: &str) -> io::Result<()> {
        let target = match self.way {
            Way::Events | Way::Polling => format!("{}&sent={}", self.target, self.sent),
            Way::SocketIo => self.target.clone(),
        };
        self.sent += 1;
        self.up.post(&target, body).await.map(drop)
    }

    async fn send(&mut self, receiver: &str, data: &str) -> io::Result<()> {
        let message = json!({"type": "bench", "receiver": receiver, "data": data});
        let body = match self.way {
            Way::Events | Way::Polling => message.to_string(),
            Way::SocketIo => format!(r#"42["message",{message}]"#),
        };
        self.post(&body).await
    }

    async fn receive(&mut self) -> io::Result<Value> {
        self.next("bench").await
    }

    /// The next message of this type. Others are skipped.
    async fn next(&mut self, kind: &str) -> io::Result<Value> {
        loop {
            while !self.waiting.is_empty() {
                let message = self.waiting.remove(0);
                if message["type"] == kind {
                    return Ok(message);
                }
            }
            match self.way {
                Way::Events => self.read_events().await?,
                Way::Polling | Way::SocketIo => self.poll().await?,
            }
        }
    }

    /// Opens the answer in which messages come.
    async fn wait(&mut self) -> io::Result<()> {
        match self.way {
            Way::Events => self.open_events().await,
            Way::Polling => {
                let target = format!("{}&received={}&wait=60", self.target, self.received);
                self.down
                    .write("GET", &target, "application/json", "")
                    .await
            }
            Way::SocketIo => self.down.write("GET", &self.target, "*/*", "").await,
        }
    }

    async fn open_events(&mut self) -> io::Result<()> {
        if !self.down.is_streaming {
            let target = format!("{}&received={}", self.target, self.received);
            self.down
                .write("GET", &target, "text/event-stream", "")
                .await?;
            self.down.read_head().await?;
            self.down.is_streaming = true;
        }
        Ok(())
    }

    async fn read_events(&mut self) -> io::Result<()> {
        self.open_events().await?;
        let chunk = self.down.read_chunk().await?;
        let chunk = String::from_utf8_lossy(&chunk);
        for data in chunk.lines().filter_map(|line| line.strip_prefix("data: ")) {
            self.waiting.push(serde_json::from_str(data)?);
        }
        Ok(())
    }

    async fn poll(&mut self) -> io::Result<()> {
        match self.way {
            Way::Events => {}
            Way::Polling => {
                let target = format!("{}&received={}&wait=60", self.target, self.received);
                let answer = self.down.get(&target, "application/json").await?;
                let mut answer: Value = serde_json::from_str(&answer)?;
                self.received = answer["count"].as_u64().unwrap_or_default();
                if let Value::Array(messages) = answer["messages"].take() {
                    self.waiting.extend(messages);
                }
            }
            Way::SocketIo => {
                let target = self.target.clone();
                let answer = self.down.get(&target, "*/*").await?;
                for packet in answer.split(PACKETS) {
                    if packet == "2" {
                        self.post("3").await?;
                    } else if let Some(connected) = packet.strip_prefix("40") {
                        let connected: Value = serde_json::from_str(connected)?;
                        self.id = connected["sid"].as_str().unwrap_or_default().into();
                    } else if let Some(event) = packet.strip_prefix("42") {
                        let mut event: Value = serde_json::from_str(event)?;
                        self.waiting.push(event[1].take());
                    }
                }
            }
        }
        Ok(())
    }
}

/// A connection to the server, for one request after the other.
struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    is_streaming: bool,
}

impl Connection {
    async fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        // Browsers do the same.
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            unread: Vec::new(),
            is_streaming: false,
        })
    }

    async fn get(&mut self, target: &str, accept: &str) -> io::Result<String> {
        self.write("GET", target, accept, "").await?;
        self.read().await
    }

    async fn post(&mut self, target: &str, body: &str) -> io::Result<String> {
        self.write("POST", target, "*/*", body).await?;
        self.read().await
    }

    async fn write(
        &mut self,
        method: &str,
        target: &str,
        accept: &str,
        body: &str,
    ) -> io::Result<()> {
        let length = match method {
            "POST" => format!(
                "Content-Type: text/plain;charset=UTF-8\r\nContent-Length: {}\r\n",
                body.len()
            ),
            _ => String::new(),
        };
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{length}\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await
    }

    /// Reads until `what` stands in what is not read, and takes what is before it.
    async fn take_until(&mut self, what: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            let found = self.unread.windows(what.len()).position(|it| it == what);
            if let Some(at) = found {
                let mut taken: Vec<u8> = self.unread.drain(..at + what.len()).collect();
                taken.truncate(at);
                return Ok(taken);
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < length {
            self.fill().await?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    async fn fill(&mut self) -> io::Result<()> {
        match timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await {
            Ok(Ok(1..)) => Ok(()),
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the server sent nothing")),
        }
    }

    /// Reads the head of an answer, which must be a success; returns it in lower case.
    async fn read_head(&mut self) -> io::Result<String> {
        let head = self.take_until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        match head.split(' ').nth(1) {
            Some("200") => Ok(head),
            _ => Err(io::Error::other(format!("the server answered {head}"))),
        }
    }

    /// Reads a chunk of an answer (RFC 9112, section 7.1). The last one is empty.
    async fn read_chunk(&mut self) -> io::Result<Vec<u8>> {
        let length = self.take_until(b"\r\n").await?;
        let length = str::from_utf8(&length).unwrap_or_default();
        let length = usize::from_str_radix(length, 16).map_err(io::Error::other)?;
        let chunk = self.take(length).await?;
        self.take(2).await?;
        Ok(chunk)
    }

    async fn read(&mut self) -> io::Result<String> {
        let head = self.read_head().await?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let body = match length {
            Some(length) => self.take(length.parse().map_err(io::Error::other)?).await?,
            None => {
                let mut body = Vec::new();
                loop {
                    let chunk = self.read_chunk().await?;
                    if chunk.is_empty() {
                        break body;
                    }
                    body.extend_from_slice(&chunk);
                }
            }
        };
        String::from_utf8(body).map_err(io::Error::other)
    }
}
