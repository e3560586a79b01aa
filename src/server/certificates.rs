//! Certificates in files: the chain that TLS shows, and the authorities that may sign those of NATS.

use std::{io, path::Path};

use tokio_rustls::rustls::{CertificateError, Error, RootCertStore, pki_types::CertificateDer};

use crate::config::{
    invalid,
    pem::{self, Block},
    read_file,
};

/// The labels of PEM that are read (RFC 7468, sections 5 and 10; RFC 8017; RFC 5915, section 4).
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const PKCS8: &str = "PRIVATE KEY";
pub(super) const PKCS1: &str = "RSA PRIVATE KEY";
pub(super) const SEC1: &str = "EC PRIVATE KEY";
const KEYS: [&str; 3] = [PKCS8, PKCS1, SEC1];

/// What openssl writes beside keys, and TLS does not need.
pub(super) const PARAMETERS: [&str; 2] = ["EC PARAMETERS", "DH PARAMETERS"];

/// Checks a file of certificate authorities.
///
/// # Errors
///
/// A file that cannot be read, holds no certificate, or holds what is none or cannot be trusted; the
/// message names it.
#[cfg(feature = "cluster")]
pub(super) fn check_authorities(path: &Path) -> io::Result<()> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            let file = path.display();
            invalid(format!("cannot trust a certificate in {file}: {error}"))
        })?;
    }
    Ok(())
}

/// The certificates in a file. Their key may stand beside them.
pub(super) fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let file = path.display();
    let bytes = read_file(path)?;
    let blocks = pem::parse(&bytes).map_err(|error| invalid(format!("{file} {error}")))?;
    let mut certificates = Vec::new();
    for block in blocks {
        match block.label {
            CERTIFICATE => certificate(&block).map(|certificate| certificates.push(certificate)),
            label if KEYS.contains(&label) || PARAMETERS.contains(&label) => Ok(()),
            "TRUSTED CERTIFICATE" | "X509 CERTIFICATE" => {
                Err(block.not_read("convert it with openssl x509"))
            }
            "PKCS7" | "CMS" => Err(block.not_read("convert it with openssl pkcs7 -print_certs")),
            _ => Err(block.not_read("take it out")),
        }
        .map_err(|error| invalid(format!("{file} {error}")))?;
    }
    match certificates.is_empty() {
        true => Err(invalid(format!("{file} has no certificate as PEM"))),
        false => Ok(certificates),
    }
}

/// A certificate that is one of X.509 (RFC 5280). Whether it is to be trusted is for others to say.
fn certificate(block: &Block<'_>) -> Result<CertificateDer<'static>, String> {
    let certificate = CertificateDer::from(block.der.expose().clone());
    match RootCertStore::empty().add(certificate.clone()) {
        Err(Error::InvalidCertificate(CertificateError::BadEncoding)) => {
            let line = block.line;
            Err(format!(
                "has something else than a certificate in line {line}"
            ))
        }
        _ => Ok(certificate),
    }
}
