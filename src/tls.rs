//! TLS 1.2 and 1.3 (RFC 5246, RFC 8446), with a certificate that can be changed while the server runs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        Error, ServerConfig,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};

use crate::reload::{Reloadable, invalid, read_file};

/// What comes inside of it (RFC 7301): a WebSocket is opened by HTTP/1.1.
const PROTOCOL: &[u8] = b"http/1.1";

/// The server's side of TLS.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
}

/// The certificate that is shown to everyone, and its key.
struct Certificate(Reloadable<CertifiedKey>);

impl Tls {
    /// With the certificate chain and the key in these files, both PEM.
    ///
    /// # Errors
    ///
    /// Files that cannot be read, or do not belong together; the message names them.
    pub(crate) fn new(cert: PathBuf, key: PathBuf) -> io::Result<Tls> {
        let certificate = Reloadable::new(move || read(&cert, &key))?;
        let certificate = Arc::new(Certificate(certificate));
        let mut config = ServerConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS 1.2 and 1.3 need")
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![PROTOCOL.into()];
        Ok(Tls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
        })
    }

    /// Shows what stands in the files now to who comes from now on.
    ///
    /// # Errors
    ///
    /// As of [`new`](Tls::new); the old certificate stays then.
    pub(crate) fn reload(&self) -> io::Result<()> {
        self.certificate.0.reload()
    }

    /// The handshake. It waits for the peer, so the caller must set a time limit.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

fn read(cert: &Path, key: &Path) -> io::Result<CertifiedKey> {
    let (cert_file, key_file) = (cert.display(), key.display());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read_file(cert)?)
        .collect::<Result<_, _>>()
        .map_err(|_| invalid(format!("{cert_file} is no PEM, or only a part of it")))?;
    if chain.is_empty() {
        return Err(invalid(format!("{cert_file} has no certificate")));
    }
    let key = PrivateKeyDer::from_pem_slice(&read_file(key)?)
        .map_err(|_| invalid(format!("{key_file} has no private key as PEM")))?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
        invalid(match error {
            Error::InconsistentKeys(_) => {
                format!("the key in {key_file} is not that of the certificate in {cert_file}")
            }
            error => format!("cannot use {cert_file} with {key_file}: {error}"),
        })
    })
}
