//! Options of pings and of resuming.

use std::time::Duration;

#[cfg(feature = "cli")]
use clap::Args;

use super::check::within;

/// How the server notices lost connections, and how long it keeps their sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(Args), command(next_help_heading = "Liveness"))]
#[non_exhaustive]
pub struct Liveness {
    /// Interval between pings to each session, in seconds
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_PING_SECONDS", value_name = "SECONDS",
        default_value_t = Liveness::default().ping_seconds
    ))]
    pub ping_seconds: u64,

    /// Time limit for the answer to a ping, in seconds; a session that does not answer is closed
    /// (1001)
    #[cfg_attr(feature = "cli", arg(
        long, env = "ANTEROOM_PONG_SECONDS", value_name = "SECONDS",
        default_value_t = Liveness::default().pong_seconds
    ))]
    pub pong_seconds: u64,

    /// Time for which the server keeps a resumable session without a connection, in seconds; 0
    /// turns resuming off
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
