//! The connection of a client: TCP, perhaps with TLS.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::IpAddr,
    sync::Arc,
};

use mio::net::TcpStream;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

pub enum Link {
    Plain(TcpStream),
    Tls(TcpStream, Box<ClientConnection>),
}

impl Link {
    /// A connection to this address.
    pub fn new(
        stream: TcpStream,
        address: IpAddr,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Link> {
        let Some(config) = tls else {
            return Ok(Link::Plain(stream));
        };
        let name = ServerName::from(address);
        let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Link::Tls(stream, session.into()))
    }

    /// Reads what has come, as far as there is space for it; returns the number of bytes. If there is space left, all has
    /// been read.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, session) = match self {
            Link::Plain(stream) => return ended(0, stream.read(buffer)),
            Link::Tls(stream, session) => (stream, session),
        };
        let mut count = 0;
        while count < buffer.len() {
            match session.reader().read(&mut buffer[count..]) {
                Ok(more @ 1..) => count += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match session.read_tls(stream) {
                        Ok(1..) => session.process_new_packets().map_err(io::Error::other)?,
                        read => return ended(count, read),
                    };
                    flush(stream, session)?;
                }
                read => return ended(count, read),
            }
        }
        Ok(count)
    }

    /// Writes what the socket accepts; returns the number of bytes. TLS accepts everything, and keeps what the socket does
    /// not accept yet for the next call.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Plain(stream) if bytes.is_empty() => stream.flush().map(|()| 0),
            Link::Plain(stream) => accepted(stream.write(bytes)),
            Link::Tls(stream, session) => {
                session.set_buffer_limit(None);
                let written = session.writer().write(bytes)?;
                flush(stream, session)?;
                Ok(written)
            }
        }
    }
}

fn flush(stream: &mut TcpStream, session: &mut ClientConnection) -> io::Result<()> {
    while session.wants_write() && accepted(session.write_tls(stream))? > 0 {}
    Ok(())
}

/// The result of a read after `count` bytes: nothing more for now, or the end.
fn ended(count: usize, read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        read => accepted(read).map(|more| count + more),
    }
}

/// What the socket does not accept now is no error.
fn accepted(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}
