//! Options of the listener.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::Args;
use ipnet::IpNet;

use super::{
    check::all_or_none,
    parse::{network, socket_address},
};

/// Where the server listens, and what it serves besides rooms.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Serving")]
pub struct Serving {
    /// Where to listen; port 0 picks a free one
    #[arg(long, env = "ANTEROOM_LISTEN", value_name = "ADDRESS:PORT", default_value_t = Serving::default().listen, value_parser = socket_address)]
    pub listen: SocketAddr,

    /// Serve the files of this folder in place of the built-in page
    #[arg(long, env = "ANTEROOM_STATIC_DIR", value_name = "FOLDER")]
    pub static_dir: Option<PathBuf>,

    /// The certificate to serve with TLS (1.2 and 1.3), PEM, with the chain that leads to it; read again
    /// on SIGHUP
    #[arg(long, env = "ANTEROOM_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate, PEM
    #[arg(long, env = "ANTEROOM_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Which proxies are believed about where a request comes from (`X-Forwarded-For`), by their
    /// address or network, such as `10.0.0.0/8`; may be given several times
    #[arg(long, env = "ANTEROOM_TRUST_PROXY", value_name = "ADDRESS", value_delimiter = ',', value_parser = network)]
    pub trust_proxy: Vec<IpNet>,
}

impl Default for Serving {
    fn default() -> Serving {
        Serving {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            static_dir: None,
            tls_cert: None,
            tls_key: None,
            trust_proxy: Vec::new(),
        }
    }
}

impl Serving {
    pub(super) fn check(&self) -> Result<(), String> {
        all_or_none([
            (self.tls_cert.is_some(), "--tls-cert"),
            (self.tls_key.is_some(), "--tls-key"),
        ])
    }
}
