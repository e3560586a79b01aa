//! Options of a graceful shutdown.

use std::{path::PathBuf, time::Duration};

#[cfg(feature = "cli")]
use clap::Args;

use super::check::within;

/// How the server stops.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Stopping"))]
#[non_exhaustive]
pub struct Stopping {
    /// Time that a stopping server gives its sessions to leave, in seconds; it asks them to
    /// reconnect at times spread over it
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_DRAIN_SECONDS", value_name = "SECONDS",
        default_value_t = Stopping::default().drain_seconds
    ))]
    pub drain_seconds: u64,

    /// File that keeps resumable sessions over a restart: the server writes it when it stops, and reads
    /// and removes it when it starts [default: a restart ends all sessions]
    #[cfg_attr(
        feature = "cli",
        arg(long, env = "ANTEROOM_SESSIONS_FILE", value_name = "FILE")
    )]
    pub sessions_file: Option<PathBuf>,
}

impl Default for Stopping {
    fn default() -> Stopping {
        Stopping {
            drain_seconds: 5,
            sessions_file: None,
        }
    }
}

impl Stopping {
    pub(super) fn check(&self) -> Result<(), String> {
        within("--drain-seconds", self.drain_seconds, 0..=3600)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}
