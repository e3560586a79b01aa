//! A bare relay: of two connections to the same target, each receives the bytes that the other sends. It
//! costs what the kernel takes for reading and writing. No server that handles connections one by one can
//! be much cheaper.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::Ipv4Addr,
};

use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

const LISTENER: Token = Token(usize::MAX);

/// The most bytes that one read takes.
const READ_BYTES: usize = 64 * 1024;

struct Connection {
    stream: TcpStream,
    /// The number of the other connection; `None` until it exists.
    partner: Option<usize>,
}

/// Serves until the process is ended.
pub fn serve() -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("relay listening on http://{}", listener.local_addr()?);

    let mut connections: Vec<Connection> = Vec::new();
    // The connections without a partner, by the line of their request.
    let mut unpaired = HashMap::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(connections.len());
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    connections.push(Connection {
                        stream,
                        partner: None,
                    });
                }
                continue;
            }
            let Token(number) = event.token();
            let connection = &mut connections[number];
            // A client that disconnects ends the run, so its error can be ignored.
            let Ok(count) = connection.stream.read(&mut buffer) else {
                continue;
            };
            let bytes = &buffer[..count];
            if let Some(partner) = connection.partner {
                // A pair has one message in flight, for which the socket always has space.
                let _ = connections[partner].stream.write_all(bytes);
            } else if bytes.starts_with(b"GET ") {
                connection
                    .stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")?;
                let line = bytes.split(|byte| *byte == b'\r').next();
                let line = line.unwrap_or_default().to_owned();
                if let Some(partner) = unpaired.remove(&line) {
                    connections[number].partner = Some(partner);
                    connections[partner].partner = Some(number);
                } else {
                    unpaired.insert(line, number);
                }
            }
        }
    }
}
