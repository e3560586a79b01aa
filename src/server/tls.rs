//! TLS 1.2 and 1.3 (RFC 5246, RFC 8446), with a certificate that can be replaced while the server runs.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio_rustls::rustls::{
    Error, ServerConfig,
    crypto::aws_lc_rs::{Ticketer, default_provider},
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::certificates::{CERTIFICATE, PARAMETERS, PKCS1, PKCS8, SEC1, certificates};
use crate::{
    config::{Serving, invalid, pem, read_file},
    web::{Socket, TlsStream},
};

/// The application protocol that the server negotiates (RFC 7301). WebSocket handshakes need HTTP/1.1.
const PROTOCOL: &[u8] = b"http/1.1";

/// The server's side of TLS.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    certificate: Arc<Certificate>,
}

/// The certificate chain that clients get, and its key.
struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl Tls {
    /// Reads the certificate chain and the key from the PEM files of the options. `None` if the options
    /// name none.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or used, or a key of another certificate; the message names the file.
    pub(crate) fn new(options: &Serving) -> io::Result<Option<Tls>> {
        let Some((cert, key)) = options.tls_cert.clone().zip(options.tls_key.clone()) else {
            return Ok(None);
        };
        let current = ArcSwap::from_pointee(read(&cert, &key)?);
        let certificate = Arc::new(Certificate { cert, key, current });
        let provider = Arc::new(default_provider());
        // The generator of random numbers begins with 30 ms of work. The first client must not wait for it.
        let begun = provider.secure_random.fill(&mut [0]);
        begun.map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what TLS 1.2 and 1.3 need")
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        config.alpn_protocols = vec![PROTOCOL.into()];
        // Clients that come again, as all do after a restart of a proxy or a network, prove who they are with what the
        // server gave them, encrypted. Otherwise it would have to remember them.
        config.ticketer = Ticketer::new().map_err(io::Error::other)?;
        Ok(Some(Tls {
            config: Arc::new(config),
            certificate,
        }))
    }

    /// Reads the files again. Connections that start from now on get the new certificate.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Tls::new); the old certificate stays in use.
    pub(crate) fn reload(&self) -> io::Result<()> {
        let Certificate { cert, key, current } = &*self.certificate;
        current.store(Arc::new(read(cert, key)?));
        Ok(())
    }

    /// Does the handshake. It waits for the peer, so the caller must set a time limit.
    pub(crate) async fn accept(&self, socket: Socket) -> io::Result<TlsStream> {
        TlsStream::accept(socket, self.config.clone()).await
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

fn read(cert: &Path, key: &Path) -> io::Result<CertifiedKey> {
    let (cert_file, key_file) = (cert.display(), key.display());
    let chain = certificates(cert)?;
    let key = private_key(key)?;
    CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
        invalid(match error {
            Error::InconsistentKeys(_) => {
                format!("the key in {key_file} does not belong to the certificate in {cert_file}")
            }
            error => format!("cannot use {cert_file} with {key_file}: {error}"),
        })
    })
}

/// The only private key in a file. Its certificates may be in the same file.
fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let file = path.display();
    let bytes = read_file(path)?;
    let blocks = pem::parse(&bytes).map_err(|error| invalid(format!("{file} {error}")))?;
    let mut keys = Vec::new();
    for block in blocks {
        let der = || block.der.expose().clone();
        match block.label {
            PKCS8 => keys.push(PrivateKeyDer::Pkcs8(der().into())),
            PKCS1 => keys.push(PrivateKeyDer::Pkcs1(der().into())),
            SEC1 => keys.push(PrivateKeyDer::Sec1(der().into())),
            label if label == CERTIFICATE || PARAMETERS.contains(&label) => {}
            _ => {
                let error = block.not_read("convert it with openssl pkey, or remove it");
                return Err(invalid(format!("{file} {error}")));
            }
        }
    }
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), more) => Err(invalid(format!(
            "{file} has {} private keys: keep only that of the certificate",
            more + 1
        ))),
        (None, _) => Err(invalid(format!("{file} has no PEM private key"))),
    }
}
