//! Options of pings and of resuming.

use std::time::Duration;

#[cfg(feature = "cli")]
use clap::Args;

use super::check::within;

/// How the server notices lost connections, and how long it keeps their sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Liveness"))]
pub struct Liveness {
    /// How often every session is pinged, in seconds
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_PING_SECONDS", value_name = "SECONDS",
        default_value_t = Liveness::default().ping_seconds
    ))]
    pub ping_seconds: u64,

    /// How long a session may take to answer a ping, in seconds; then it is closed (1001)
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_PONG_SECONDS", value_name = "SECONDS",
        default_value_t = Liveness::default().pong_seconds
    ))]
    pub pong_seconds: u64,

    /// How long a session that has asked for it waits for its client to come back, in seconds; 0 lets
    /// nobody ask
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_RESUME_SECONDS", value_name = "SECONDS",
        default_value_t = Liveness::default().resume_seconds
    ))]
    pub resume_seconds: u64,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            ping_seconds: 20,
            pong_seconds: 10,
            resume_seconds: 30,
        }
    }
}

impl Liveness {
    pub(super) fn check(&self) -> Result<(), String> {
        within("--ping-seconds", self.ping_seconds, 1..=3600)?;
        within("--pong-seconds", self.pong_seconds, 1..=3600)?;
        within("--resume-seconds", self.resume_seconds, 0..=3600)
    }

    pub(crate) fn resume(&self) -> Duration {
        Duration::from_secs(self.resume_seconds)
    }
}
