//! Options of the listener.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

#[cfg(feature = "cli")]
use clap::Args;
use ipnet::IpNet;

#[cfg(feature = "tls")]
use super::check::all_or_none;
use super::dialect::Dialect;
#[cfg(feature = "cli")]
use super::parse::{network, socket_address};

/// Where the server listens, and what it serves besides rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Serving"))]
#[non_exhaustive]
pub struct Serving {
    /// IP address and port to listen on; port 0 picks a free port
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_LISTEN", value_name = "ADDRESS:PORT",
        default_value_t = Serving::default().listen, value_parser = socket_address
    ))]
    pub listen: SocketAddr,

    /// Other people's clients that the server serves as well: `peerjs` at `/peerjs`, `y-webrtc` and `trystero`
    /// at `/topics`, `matchbox` at `/matchbox/{room}`; may be given several times
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            env = "ANTEROOM_DIALECT",
            value_name = "CLIENT",
            value_delimiter = ','
        )
    )]
    pub dialect: Vec<Dialect>,

    /// Tell every PeerJS client that asks for them the ids of all peers with its key
    #[cfg_attr(feature = "cli", arg(long, env = "ANTEROOM_PEERJS_DISCOVERY"))]
    pub peerjs_discovery: bool,

    /// Folder whose files the server serves instead of the built-in page
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_STATIC_DIR", value_name = "FOLDER")
    )]
    pub static_dir: Option<PathBuf>,

    /// Certificate for TLS 1.2 and 1.3, followed by its chain, as PEM; read again on SIGHUP
    #[cfg(feature = "tls")]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TLS_CERT", value_name = "FILE")
    )]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, as PEM; read again on SIGHUP
    #[cfg(feature = "tls")]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_TLS_KEY", value_name = "FILE")
    )]
    pub tls_key: Option<PathBuf>,

    /// Address or network of a proxy whose `X-Forwarded-For` header is trusted, such as
    /// `10.0.0.0/8`; may be given several times
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_TRUST_PROXY", value_name = "ADDRESS", value_delimiter = ',',
        value_parser = network
    ))]
    pub trust_proxy: Vec<IpNet>,
}

impl Default for Serving {
    fn default() -> Serving {
        Serving {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            dialect: Vec::new(),
            peerjs_discovery: false,
            static_dir: None,
            #[cfg(feature = "tls")]
            tls_cert: None,
            #[cfg(feature = "tls")]
            tls_key: None,
            trust_proxy: Vec::new(),
        }
    }
}

impl Serving {
    pub(super) fn check(&self) -> Result<(), String> {
        #[cfg(feature = "tls")]
        all_or_none([
            (self.tls_cert.is_some(), "--tls-cert"),
            (self.tls_key.is_some(), "--tls-key"),
        ])?;
        if self.peerjs_discovery && !self.dialect.contains(&Dialect::PeerJs) {
            return Err("--peerjs-discovery needs --dialect peerjs".into());
        }
        Ok(())
    }
}
