//! The server's side of a TLS connection (RFC 5246, RFC 8446) that holds no buffer while nothing is on its way.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, ErrorKind},
    mem,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::{
    self, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
    },
};

use super::{Socket, socket::poll_send};

/// The most bytes that one read takes from the socket: a record of the largest size (RFC 8446, section 5.2).
const READ_BYTES: usize = 5 + (1 << 14) + 256;

/// The most bytes that one write encrypts.
const WRITE_BYTES: usize = 64 << 10;

/// The room for what encryption adds to them: the headers and tags of their records, and of a change of keys.
const OVERHEAD_BYTES: usize = 1 << 10;

thread_local! {
    /// Where records are read to, and encrypted to. Most are complete and are sent at once, so that a connection need
    /// not hold them.
    static INCOMING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUTGOING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

type Traffic<'a> = WriteTraffic<'a, ServerConnectionData>;

/// A connection whose handshake is done.
pub(crate) struct TlsStream {
    socket: Socket,
    session: UnbufferedServerConnection,
    /// The beginning of a record, or of a handshake message, whose rest has not come.
    incoming: Vec<u8>,
    /// Data that is decrypted but not read.
    plaintext: Vec<u8>,
    /// Records that the socket has not accepted.
    outgoing: Vec<u8>,
    /// Whether the last write to the socket took less than it was given.
    is_full: bool,
    /// Whether the peer has said that it sends no more (`close_notify`).
    is_ended: bool,
    /// Whether the server has said so.
    has_ended: bool,
}

/// What a session can do next.
#[derive(PartialEq, Eq)]
enum Progress {
    /// It waits for the next message of the handshake.
    Handshake,
    /// It sends and receives data.
    Open,
}

impl TlsStream {
    /// Does the handshake. It waits for the peer, so the caller must set a time limit.
    ///
    /// # Errors
    ///
    /// The connection ends, or the peer does not keep to the protocol or has no version or cipher in common with the
    /// server. The peer is told why.
    pub(crate) async fn accept(socket: Socket, config: Arc<ServerConfig>) -> io::Result<TlsStream> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut stream = TlsStream {
            socket,
            session,
            incoming: Vec::new(),
            plaintext: Vec::new(),
            outgoing: Vec::new(),
            is_full: false,
            is_ended: false,
            has_ended: false,
        };
        loop {
            let progress = poll_fn(|cx| stream.poll_receive(cx, &mut ReadBuf::new(&mut []))).await;
            // What the peer must know, such as why the handshake failed.
            let sent = poll_fn(|cx| stream.poll_send(cx)).await;
            if progress? == Progress::Open {
                return sent.map(|()| stream);
            }
            sent?;
        }
    }

    /// Reads from the socket once, and decrypts what is complete: to `buffer`, and what it has no room for to
    /// `plaintext`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Progress>> {
        INCOMING.with_borrow_mut(|records| {
            let known = self.incoming.len();
            records.resize(records.len().max(known + READ_BYTES), 0);
            let mut read = ReadBuf::new(&mut records[known..known + READ_BYTES]);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
            }
            records[..known].copy_from_slice(&self.incoming);
            let records = &mut records[..known + count];
            let (used, progress) = self.process(records, |mut data| {
                let fits = data.len().min(buffer.remaining());
                buffer.put_slice(data.split_off(..fits).unwrap_or_default());
                data
            });
            self.incoming = Vec::from(&records[used..]);
            Poll::Ready(progress.map_err(invalid))
        })
    }

    /// Handles the complete records at the front of `records`, and returns how many bytes these are. Data goes to
    /// `on_data`, which returns what is to be read later. Answers go to `outgoing`.
    fn process(
        &mut self,
        records: &mut [u8],
        mut on_data: impl for<'a> FnMut(&'a [u8]) -> &'a [u8],
    ) -> (usize, Result<Progress, rustls::Error>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut records[used..]);
            let progress = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                self.plaintext.extend_from_slice(on_data(record.payload));
                            }
                            Err(error) => return (used, Err(error)),
                        }
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.outgoing);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.is_ended = true;
                    Some(Ok(Progress::Open))
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Ok(Progress::Handshake)),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(Progress::Open)),
                // The server accepts no early data, and asks for no certificate.
                Ok(_) => Some(Err(rustls::Error::General("unexpected state".into()))),
                Err(error) => {
                    self.take_alert();
                    Some(Err(error))
                }
            };
            used += discard;
            if let Some(progress) = progress {
                return (used, progress);
            }
        }
    }

    /// Takes over what the peer is to be told about an error.
    fn take_alert(&mut self) {
        let status = self.session.process_tls_records(&mut []);
        if let Ok(ConnectionState::EncodeTlsData(data)) = status.state {
            encode(data, &mut self.outgoing);
        }
    }

    /// Has `encrypt` write records to the front of `space`, which gets `length` bytes if it has fewer, and returns how many
    /// bytes they are. What the session itself has to say comes before them.
    fn encrypt(
        &mut self,
        space: &mut Vec<u8>,
        length: usize,
        mut encrypt: impl FnMut(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        let mut first = Vec::new();
        loop {
            match self.session.process_tls_records(&mut self.incoming).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let begin = first.len();
                    let mut end = begin + length;
                    loop {
                        space.resize(space.len().max(end), 0);
                        match encrypt(&mut traffic, &mut space[begin..]) {
                            Ok(count) => {
                                space[..begin].copy_from_slice(&first);
                                return Ok(begin + count);
                            }
                            Err(EncryptError::InsufficientSize(error)) => {
                                end = begin + error.required_size;
                            }
                            // TLS 1.2 has encrypted as much as its keys are good for.
                            Err(error @ EncryptError::EncryptExhausted) => {
                                return Err(io::Error::new(ErrorKind::BrokenPipe, error));
                            }
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut first),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                // The session has failed, or both sides have ended it.
                _ => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Sends the records that wait.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let sent = poll_send(&self.socket, &mut self.is_full, cx, &self.outgoing);
            self.outgoing.drain(..ready!(sent)?);
            if self.outgoing.is_empty() {
                self.outgoing = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends records, as far as the socket accepts them now. The rest waits.
    fn send(&mut self, cx: &mut Context<'_>, records: &[u8]) -> io::Result<()> {
        let sent = match poll_send(&self.socket, &mut self.is_full, cx, records) {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        self.outgoing.extend_from_slice(&records[sent..]);
        Ok(())
    }
}

/// The connection below.
impl Deref for TlsStream {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl AsyncRead for TlsStream {
    /// Fails with [`ErrorKind::UnexpectedEof`] if the connection ends before the peer has said so.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let begin = buffer.filled().len();
        loop {
            if !this.plaintext.is_empty() {
                let mut rest = mem::take(&mut this.plaintext);
                let fits = rest.len().min(buffer.remaining());
                buffer.put_slice(&rest[..fits]);
                if fits < rest.len() {
                    rest.drain(..fits);
                    this.plaintext = rest;
                }
            }
            if buffer.filled().len() > begin || this.is_ended {
                return Poll::Ready(Ok(()));
            }
            let received = ready!(this.poll_receive(cx, buffer));
            // What the peer must know. The next write sends what the socket does not accept now.
            let sent = this.poll_send(cx);
            received?;
            if let Poll::Ready(Err(error)) = sent {
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        Poll::Ready(OUTGOING.with_borrow_mut(|space| {
            let length = bytes.len() + OVERHEAD_BYTES;
            let length = this.encrypt(space, length, |traffic, space| {
                traffic.encrypt(bytes, space)
            })?;
            this.send(cx, &space[..length])?;
            Ok(bytes.len())
        }))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !mem::replace(&mut this.has_ended, true) {
            let mut space = Vec::new();
            let end = this.encrypt(&mut space, OVERHEAD_BYTES, |traffic, space| {
                traffic.queue_close_notify(space)
            });
            // A session that has failed has told the peer why.
            if let Ok(length) = end {
                this.outgoing.extend_from_slice(&space[..length]);
            }
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

/// Adds a message of the session to `outgoing`.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut Vec<u8>) {
    let begin = outgoing.len();
    if let Err(EncodeError::InsufficientSize(error)) = data.encode(&mut []) {
        outgoing.resize(begin + error.required_size, 0);
        data.encode(&mut outgoing[begin..])
            .expect("there is as much space as it needs");
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
