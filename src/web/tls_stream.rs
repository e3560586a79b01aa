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

/// The most bytes that are kept because they are incomplete: a record, and one more for a handshake message over several
/// records. Clients that keep to the protocol need no more, since they send no certificates.
const INCOMING_BYTES: usize = 2 * READ_BYTES;

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
    receiving: Receiving,
    /// Whether the server has said that it sends no more (`close_notify`).
    has_ended: bool,
}

/// What the peer may send.
enum Receiving {
    /// The next message of the handshake.
    Handshake,
    Data,
    /// Nothing: it has said so (`close_notify`).
    Ended,
    /// Nothing: it has broken the protocol. The session must not be used any more.
    Failed(rustls::Error),
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
            receiving: Receiving::Handshake,
            has_ended: false,
        };
        while let Receiving::Handshake = stream.receiving {
            poll_fn(|cx| stream.poll_receive(cx, &mut ReadBuf::new(&mut []))).await?;
            // What the peer must know, such as why the handshake failed.
            poll_fn(|cx| stream.poll_send(cx)).await?;
        }
        match stream.receiving {
            Receiving::Failed(error) => Err(invalid(error)),
            _ => Ok(stream),
        }
    }

    /// Reads from the socket once, and decrypts what is complete: to `buffer`, and what it has no room for to
    /// `plaintext`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
            let processed = self.process(records, |mut data| {
                let fits = data.len().min(buffer.remaining());
                buffer.put_slice(data.split_off(..fits).unwrap_or_default());
                data
            });
            let rest = processed.map(|used| &records[used..]);
            let error = match rest {
                Ok(rest) if rest.len() <= INCOMING_BYTES => {
                    self.incoming = Vec::from(rest);
                    return Poll::Ready(Ok(()));
                }
                Ok(_) => rustls::Error::General("a message over too many records".into()),
                Err(error) => error,
            };
            self.incoming = Vec::new();
            self.receiving = Receiving::Failed(error);
            Poll::Ready(Ok(()))
        })
    }

    /// Handles the complete records at the front of `records`, and returns how many bytes these are. Data goes to
    /// `on_data`, which returns what is to be read later. Answers go to `outgoing`.
    ///
    /// # Errors
    ///
    /// The peer has broken the protocol.
    fn process(
        &mut self,
        records: &mut [u8],
        mut on_data: impl for<'a> FnMut(&'a [u8]) -> &'a [u8],
    ) -> Result<usize, rustls::Error> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(&mut records[used..]);
            let receiving = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.plaintext.extend_from_slice(on_data(record.payload));
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
                Ok(ConnectionState::BlockedHandshake) => Some(Receiving::Handshake),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Receiving::Data),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Receiving::Ended),
                // The server accepts no early data, and asks for no certificate.
                Ok(_) => return Err(rustls::Error::General("unexpected state".into())),
                Err(error) => {
                    self.take_alerts();
                    return Err(error);
                }
            };
            used += discard;
            if let Some(receiving) = receiving {
                self.receiving = receiving;
                return Ok(used);
            }
        }
    }

    /// Takes over what the peer is to be told about an error. The session gives this before it looks at what has come, and
    /// must not look at that again.
    fn take_alerts(&mut self) {
        while self.session.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(data)) =
                self.session.process_tls_records(&mut []).state
        {
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
        if let Receiving::Failed(_) = self.receiving {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut first = Vec::new();
        loop {
            // Nothing that has come is complete, so nothing is to be discarded.
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
                // Both sides have ended it.
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
    /// Fails with [`ErrorKind::UnexpectedEof`] if the connection ends before the peer has said so, and with
    /// [`ErrorKind::InvalidData`] if it breaks the protocol; what came before is read first.
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
            if buffer.filled().len() > begin || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match &this.receiving {
                Receiving::Failed(error) => return Poll::Ready(Err(invalid(error.clone()))),
                Receiving::Ended => return Poll::Ready(Ok(())),
                Receiving::Handshake | Receiving::Data => {}
            }
            ready!(this.poll_receive(cx, buffer))?;
            // What the peer must know. The next write sends what the socket does not accept now.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        time::timeout,
    };
    use tokio_rustls::rustls::{
        crypto::aws_lc_rs::default_provider,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };

    use super::*;

    #[derive(Debug)]
    struct NoCertificate;

    impl ResolvesServerCert for NoCertificate {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            None
        }
    }

    /// Why the handshake fails with a client that sends this, and then waits.
    async fn refuse(bytes: &[u8]) -> io::Error {
        let config = ServerConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = TlsStream::accept(Socket::new(stream), config.into());
        let accepted = timeout(Duration::from_secs(30), accepted).await.unwrap();
        accepted.err().unwrap()
    }

    #[tokio::test]
    async fn errors_without_an_alert_are_errors() {
        for bytes in [
            // A part of a handshake message, then an alert.
            &[0x16, 3, 1, 0, 1, 1, 0x15, 3, 1, 0, 2, 2, 40][..],
            // The beginning of a handshake message that is too long.
            &[0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
            b"GET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(refuse(bytes).await.kind(), ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn a_message_over_very_many_records_is_refused() {
        let begun = [0x16, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
        let further = [0x16, 3, 1, 0, 1, 0].repeat(INCOMING_BYTES / 6);
        let error = refuse(&[&begun[..], &further].concat()).await;
        assert!(error.to_string().contains("too many records"), "{error}");
    }
}
