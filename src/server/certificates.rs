//! Certificates in files: the chain that TLS clients get, and the authorities that may sign the certificate of
//! NATS.

use std::{io, path::Path};

use tokio_rustls::rustls::{CertificateError, Error, RootCertStore, pki_types::CertificateDer};

use crate::config::{
    invalid,
    pem::{self, Block},
    read_file,
};

/// The PEM labels that are used (RFC 7468, sections 5 and 10; RFC 8017; RFC 5915, section 4).
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const PKCS8: &str = "PRIVATE KEY";
pub(super) const PKCS1: &str = "RSA PRIVATE KEY";
pub(super) const SEC1: &str = "EC PRIVATE KEY";
const KEYS: [&str; 3] = [PKCS8, PKCS1, SEC1];

/// The PEM labels that are skipped: openssl writes them beside keys, and TLS does not need them.
pub(super) const PARAMETERS: [&str; 2] = ["EC PARAMETERS", "DH PARAMETERS"];

/// Checks that a file of certificate authorities can be used.
///
/// # Errors
///
/// A file that cannot be read, holds no certificate, or holds one that is invalid or cannot be
/// trusted; the message names it.
#[cfg(feature = "cluster")]
pub(super) fn check_authorities(path: &Path) -> io::Result<()> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| {
            let file = path.display();
            invalid(format!(
                "cannot use a certificate in {file} as an authority: {error}"
            ))
        })?;
    }
    Ok(())
}

/// The certificates in a file. Their key may be in the same file.
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
            _ => Err(block.not_read("remove it")),
        }
        .map_err(|error| invalid(format!("{file} {error}")))?;
    }
    match certificates.is_empty() {
        true => Err(invalid(format!("{file} has no PEM certificate"))),
        false => Ok(certificates),
    }
}

/// The X.509 certificate in a PEM block (RFC 5280), without regard to whether it can be trusted.
fn certificate(block: &Block<'_>) -> Result<CertificateDer<'static>, String> {
    let certificate = CertificateDer::from(block.der.expose().clone());
    match RootCertStore::empty().add(certificate.clone()) {
        Err(Error::InvalidCertificate(CertificateError::BadEncoding)) => {
            let line = block.line;
            Err(format!("has an invalid certificate in line {line}"))
        }
        _ => Ok(certificate),
    }
}
