//! TLS as a browser does it, and what is wrong with a certificate.

use std::{
    io,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
        SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use x509_parser::{certificate::X509Certificate, parse_x509_certificate};

use super::{
    report::Finding,
    stream::{Io, why},
};

/// With fewer days left, a certificate should have been renewed.
const MIN_DAYS: i64 = 14;

/// The seconds of a day.
const DAY: i64 = 24 * 60 * 60;

/// Opens TLS connections, and remembers the certificates of the last one.
pub(super) struct Client {
    connector: TlsConnector,
    verifier: Arc<Verifier>,
}

impl Client {
    /// A client for HTTPS that trusts the roots of the system.
    ///
    /// # Errors
    ///
    /// What the report says if the system has no roots.
    pub(super) fn new() -> Result<Client, Finding> {
        Client::with_alpn(vec![b"http/1.1".to_vec()])
    }

    /// A client for TURN and STUN, which offers no protocol: a server that has others refuses one that it does not
    /// know.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub(super) fn without_alpn() -> Result<Client, Finding> {
        Client::with_alpn(Vec::new())
    }

    fn with_alpn(protocols: Vec<Vec<u8>>) -> Result<Client, Finding> {
        let advice =
            "install the package ca-certificates, or name a file of roots in SSL_CERT_FILE";
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        let provider = Arc::new(default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
        let inner = inner.build().map_err(|error| {
            Finding::failed(format!("this system trusts no authority: {error}"), advice)
        })?;
        let verifier = Arc::new(Verifier {
            inner,
            chain: Mutex::default(),
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols;
        Ok(Client {
            connector: TlsConnector::from(Arc::new(config)),
            verifier,
        })
    }

    /// Does the handshake.
    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Box<dyn Io>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = self.connector.connect(name, stream).await?;
        Ok(Box::new(stream))
    }

    /// What the last handshake says about the server's certificate.
    pub(super) fn finding(&self, host: &str, error: Option<io::Error>) -> Finding {
        let chain = self.verifier.chain.lock();
        let parsed: Vec<_> = chain
            .iter()
            .filter_map(|der| parse_x509_certificate(der).ok())
            .map(|(_, certificate)| certificate)
            .collect();
        match error {
            None => valid(parsed.first()),
            Some(error) => failed(host, &error, &parsed),
        }
    }
}

/// The finding for a certificate that is good now.
fn valid(leaf: Option<&X509Certificate<'_>>) -> Finding {
    let Some(leaf) = leaf else {
        return Finding::ok("the certificate is valid");
    };
    let end = leaf.validity().not_after.timestamp();
    let days = (end - now()).div_euclid(DAY);
    let detail = format!(
        "issued by {}, valid for {days} more days",
        name(leaf.issuer())
    );
    match days {
        ..MIN_DAYS => Finding::warning(
            detail,
            "renew the certificate, then send SIGHUP to the server or reload the proxy",
        ),
        _ => Finding::ok(detail),
    }
}

/// The finding for a handshake that failed.
fn failed(host: &str, error: &io::Error, chain: &[X509Certificate<'_>]) -> Finding {
    let source = error.get_ref().and_then(|it| it.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(problem)) = source else {
        return match source {
            Some(rustls::Error::InvalidMessage(_)) => Finding::failed(
                "the port does not speak TLS",
                "use ws:// in the URL, or set --tls-cert and --tls-key, or the proxy's certificate",
            ),
            Some(rustls::Error::AlertReceived(alert)) => Finding::failed(
                format!("the server refuses the handshake: {alert:?}"),
                format!(
                    "check that the server or proxy has a certificate for {host}, and TLS 1.2 or 1.3"
                ),
            ),
            _ => Finding::failed(
                format!("the handshake fails: {}", why(error)),
                "check that the port is the one for TLS, and what the server or proxy logs",
            ),
        };
    };
    let Some(leaf) = chain.first() else {
        return Finding::failed(
            format!("the certificate cannot be read: {problem}"),
            "use a certificate of version 3, as authorities issue it",
        );
    };
    let issuer = name(leaf.issuer());
    let renew = "renew the certificate, or check the clock of this machine";
    if leaf.issuer() == leaf.subject() {
        return Finding::failed(
            format!("the certificate is self-signed, by {issuer}"),
            "browsers refuse it: use a certificate of a public authority, such as Let's Encrypt",
        );
    }
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            // It may be the one of an authority.
            let end = |it: &&X509Certificate<'_>| it.validity().not_after.timestamp();
            let ended = chain.iter().min_by_key(end).unwrap_or(leaf);
            let (names, end) = (names(ended), ended.validity().not_after);
            Finding::failed(
                format!("the certificate of {names} has expired: {end}"),
                renew,
            )
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            let begin = leaf.validity().not_before;
            Finding::failed(format!("the certificate is not valid yet: {begin}"), renew)
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Finding::failed(
                format!("the certificate is for {}, not for {host}", names(leaf)),
                format!("use a certificate for {host}"),
            )
        }
        CertificateError::UnknownIssuer => unknown_issuer(chain),
        problem => Finding::failed(
            format!("the certificate is not accepted: {problem}"),
            "use a certificate of a public authority, such as Let's Encrypt",
        ),
    }
}

/// The finding for a chain that ends at no trusted authority.
fn unknown_issuer(chain: &[X509Certificate<'_>]) -> Finding {
    let last = chain.last().filter(|last| last.issuer() == last.subject());
    let issuer = chain
        .last()
        .map(|last| name(last.issuer()))
        .unwrap_or_default();
    match last {
        Some(root) => Finding::failed(
            format!(
                "this system does not trust the authority {}",
                name(root.subject())
            ),
            "use a certificate of a public authority; a private one must be installed on every client",
        ),
        None => Finding::failed(
            format!(
                "the chain of {} certificate(s) ends at {issuer}, which this system does not trust",
                chain.len()
            ),
            "put the intermediate certificates into the file of --tls-cert or of the proxy, after the \
             server's own (fullchain.pem); a private authority must be installed on every client",
        ),
    }
}

/// The common name of a subject or issuer, or all of it.
fn name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let common = name.iter_common_name().next();
    let common = common.and_then(|it| it.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

/// The names that a certificate is for.
fn names(certificate: &X509Certificate<'_>) -> String {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|it| &it.value.general_names);
    let names: Vec<String> = names
        .map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => (*name).to_owned(),
            x509_parser::extensions::GeneralName::IPAddress([a, b, c, d]) => {
                format!("{a}.{b}.{c}.{d}")
            }
            other => other.to_string(),
        })
        .collect();
    match names.is_empty() {
        true => name(certificate.subject()),
        false => names.join(", "),
    }
}

/// The time, in seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

/// Verifies certificates as `inner` does, and keeps them, because a failed handshake does not show them.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = [end_entity].into_iter().chain(intermediates);
        *self.chain.lock() = chain.map(|der| der.clone().into_owned()).collect();
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
