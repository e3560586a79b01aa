//! Options of the admin API.

use std::{net::SocketAddr, path::PathBuf};

#[cfg(feature = "cli")]
use clap::Args;

#[cfg(feature = "cli")]
use super::parse::socket_address;

/// The listener of the admin API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "cli",
    derive(Args),
    command(next_help_heading = "Administration")
)]
#[non_exhaustive]
pub struct Admin {
    /// IP address and port of the admin API and its page: metrics, rooms and sessions; port 0 picks
    /// a free port [default: nowhere]
    #[cfg_attr(feature = "cli", arg(
        long = "admin", id = "admin", env = "ANTEROOM_ADMIN", value_name = "ADDRESS:PORT",
        value_parser = socket_address
    ))]
    pub listen: Option<SocketAddr>,

    /// File with the secret that admin requests must send; required if --admin is not on loopback;
    /// read again on SIGHUP
    #[cfg_attr(
        feature = "cli",
        arg(
            long = "admin-token-file",
            env = "ANTEROOM_ADMIN_TOKEN_FILE",
            value_name = "FILE"
        )
    )]
    pub token_file: Option<PathBuf>,
}

impl Admin {
    pub(super) fn check(&self) -> Result<(), String> {
        match (self.listen, &self.token_file) {
            (None, Some(_)) => Err("--admin-token-file needs --admin".into()),
            (Some(admin), None) if self.is_exposed() => Err(format!(
                "--admin {admin} can be reached from elsewhere: it needs --admin-token-file"
            )),
            _ => Ok(()),
        }
    }

    /// Whether the admin API listens on an address that other machines may reach.
    pub(crate) fn is_exposed(&self) -> bool {
        self.listen.is_some_and(|admin| !admin.ip().is_loopback())
    }
}
