//! Thousands of WebSocket clients in one thread. They are as cheap as possible: the load generator must
//! never be the bottleneck.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use tokio_rustls::rustls::ClientConfig;

use crate::{dialect::Dialect, link::Link};

/// How long a server may send nothing before the benchmark fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most bytes that one read takes.
const READ_BYTES: usize = 256 * 1024;

/// The clients of one server.
pub struct Swarm {
    /// The addresses to which the clients connect in turn.
    addresses: Vec<SocketAddr>,
    dialect: Dialect,
    /// How the clients use TLS, if they do.
    tls: Option<Arc<ClientConfig>>,
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    connections: Vec<Connection>,
    /// The number of clients that have joined.
    joined: usize,
}

/// A connection to a room.
pub struct Connection {
    pub link: Link,
    /// Whether the handshake is answered.
    pub is_open: bool,
    /// The incomplete beginning of a frame or of the handshake's answer.
    pub unread: Vec<u8>,
    /// The bytes that the socket has not accepted yet.
    unsent: Vec<u8>,
}

impl Swarm {
    pub fn new(addresses: &[SocketAddr], dialect: Dialect) -> io::Result<Swarm> {
        Ok(Swarm {
            addresses: addresses.to_vec(),
            dialect,
            tls: None,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ_BYTES].into(),
            connections: Vec::new(),
            joined: 0,
        })
    }

    /// Has the clients that join from now on use TLS, if there is a configuration for it.
    pub fn over_tls(self, tls: Option<Arc<ClientConfig>>) -> Swarm {
        Swarm { tls, ..self }
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The number of clients that have joined.
    pub fn joined(&self) -> usize {
        self.joined
    }

    /// The number of clients, including those that are still joining.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Starts to connect one more client to a room; returns its number.
    pub fn join(&mut self, room: &str) -> io::Result<usize> {
        let number = self.connections.len();
        let address = self.addresses[number % self.addresses.len()];
        let target = self.dialect.target(room, number);
        let connection = Connection::open(&self.poll, number, address, &target, self.tls.as_ref())?;
        self.connections.push(connection);
        Ok(number)
    }

    /// Waits at most `timeout` for data; returns the numbers of the clients that have some. The caller must
    /// then [`read`](Swarm::read) from each of them.
    pub fn ready(&mut self, timeout: Duration) -> io::Result<Vec<usize>> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Vec::new()),
            result => result?,
        }
        let mut readable = Vec::with_capacity(64);
        for event in &self.events {
            let Token(number) = event.token();
            if event.is_writable() {
                self.connections[number].flush()?;
            }
            if event.is_readable() {
                readable.push(number);
            }
        }
        Ok(readable)
    }

    /// Waits for data, which must come; returns the numbers of the clients that have some.
    pub fn wait(&mut self) -> io::Result<Vec<usize>> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let readable = self.ready(PATIENCE)?;
            if !readable.is_empty() {
                return Ok(readable);
            }
        }
        Err(io::Error::other(format!(
            "the server sent nothing for {PATIENCE:?}"
        )))
    }

    /// Reads the data of one client, and passes each text message to `on_text`.
    pub fn read(&mut self, number: usize, mut on_text: impl FnMut(&[u8])) -> io::Result<()> {
        let connection = &mut self.connections[number];
        loop {
            let begun = connection.unread.len();
            self.buffer[..begun].copy_from_slice(&connection.unread);
            connection.unread.clear();
            let space = self.buffer.len() - begun;
            let count = connection.link.read(&mut self.buffer[begun..])?;
            let mut bytes = &self.buffer[..begun + count];
            if !connection.is_open && answered(&mut bytes)? {
                connection.is_open = true;
                self.joined += 1;
                if let Some(greeting) = self.dialect.greeting() {
                    connection.send(&text_frame(self.dialect, greeting))?;
                }
            }
            if connection.is_open {
                while let Some((opcode, payload)) = next_frame(&mut bytes) {
                    match opcode {
                        TEXT => on_text(payload),
                        PING => connection.send(&frame(self.dialect.mask(), PONG, payload))?,
                        _ => return Err(io::Error::other(format!("a frame of opcode {opcode}"))),
                    }
                }
            }
            connection.unread.extend_from_slice(bytes);
            if count < space {
                return Ok(());
            }
        }
    }

    /// Disconnects the last `count` clients.
    pub fn drop_last(&mut self, count: usize) {
        let left = self.connections.len() - count;
        self.joined -= count;
        self.connections.truncate(left);
    }

    /// Sends a frame as one of the clients.
    pub fn send(&mut self, number: usize, frame: &[u8]) -> io::Result<()> {
        self.connections[number].send(frame)
    }
}

impl Connection {
    /// Starts to connect, and to ask for this target. `poll` tells with the number when the connection is ready.
    pub fn open(
        poll: &Poll,
        number: usize,
        address: SocketAddr,
        target: &str,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Connection> {
        let mut stream = TcpStream::connect(address)?;
        // Browsers do the same.
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(number), interest)?;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        );
        Ok(Connection {
            link: Link::new(stream, address.ip(), tls)?,
            is_open: false,
            unread: Vec::new(),
            unsent: request.into(),
        })
    }

    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let written = match self.unsent.is_empty() {
            true => self.link.write(frame)?,
            false => 0,
        };
        self.unsent.extend_from_slice(&frame[written..]);
        Ok(())
    }

    /// Sends what the socket has not accepted yet.
    pub fn flush(&mut self) -> io::Result<()> {
        let written = self.link.write(&self.unsent)?;
        self.unsent.drain(..written);
        Ok(())
    }
}

/// Whether the answer to the handshake is complete; if so, removes it from the front of `bytes`.
pub fn answered(bytes: &mut &[u8]) -> io::Result<bool> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(false);
    };
    if !bytes.starts_with(b"HTTP/1.1 101 ") {
        let answer = String::from_utf8_lossy(&bytes[..end]);
        return Err(io::Error::other(format!("the server answered {answer}")));
    }
    *bytes = &bytes[end + 4..];
    Ok(true)
}

pub const TEXT: u8 = 0x1;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;

/// A client's text message (RFC 6455, section 5.2).
pub fn text_frame(dialect: Dialect, text: &str) -> Vec<u8> {
    frame(dialect.mask(), TEXT, text.as_bytes())
}

/// A frame of a client.
pub fn frame(mask: Option<[u8; 4]>, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ ..126 => frame.push(masked | length as u8),
        length => {
            let length = u16::try_from(length).expect("the benchmark's messages are short");
            frame.push(masked | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let key = mask.unwrap_or_default().into_iter().cycle();
    frame.extend(payload.iter().zip(key).map(|(byte, key)| byte ^ key));
    frame
}

/// The opcode and the payload of the first frame of a server, if the frame is complete; if so, removes it
/// from the front of `bytes`.
pub fn next_frame<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (header, length) = match **bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize)
        }
        [_, length @ ..126, ..] => (2, usize::from(length)),
        _ => return None,
    };
    let opcode = bytes[0] & 0x0F;
    let payload = bytes.get(header..header + length)?;
    *bytes = &bytes[header + length..];
    Some((opcode, payload))
}
