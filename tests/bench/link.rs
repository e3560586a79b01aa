//! The connection of a client: TCP, perhaps with TLS, and what both sides need for TLS.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use mio::net::TcpStream;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider, kx_group::X25519},
    },
    pki_types::ServerName,
    version::TLS13,
};

/// What the servers and their clients need for TLS. All of them use TLS 1.3 with AES-128-GCM and X25519, as browsers do,
/// and certificates of P-256. Clients do not resume TLS sessions.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client: Arc<ClientConfig>,
}

impl Identity {
    /// Writes a new certificate and its key to a folder.
    pub fn new(folder: &Path) -> io::Result<Identity> {
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        let root = certificate.der().clone();
        roots.add(root).map_err(io::Error::other)?;
        let provider = CryptoProvider {
            cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![X25519],
            ..default_provider()
        };
        let mut client = ClientConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        let (cert_file, key_file) = (folder.join("tls-cert.pem"), folder.join("tls-key.pem"));
        fs::write(&cert_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(Identity {
            certificate: cert_file,
            key: key_file,
            client: client.into(),
        })
    }
}

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
