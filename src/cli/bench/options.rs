//! The options of the command `bench`.

use std::time::Duration;

use anteroom::Origin;
use clap::Args;

use super::super::room_address::RoomAddress;

/// What to measure, and how far to go.
#[derive(Args)]
pub(crate) struct BenchOptions {
    /// The server, such as ws://127.0.0.1:8080/; if the URL names a room, all sessions join it, and otherwise rooms of
    /// their own
    // A URL that is refused may have a token, so usage errors do not show it.
    #[arg(value_name = "URL", hide_env_values = true)]
    pub(super) address: RoomAddress,

    /// How many sessions join at most
    #[arg(
        long = "sessions",
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=20_000)
    )]
    pub(super) sessions: u64,

    /// How long each of the three phases takes at most, in seconds
    #[arg(
        long = "seconds",
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=600)
    )]
    seconds: u64,

    /// How many messages a second are sent while the latency is measured
    #[arg(
        long = "rate",
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(1..=100_000)
    )]
    pub(super) rate: u64,

    /// The latency of 99 % of the messages, in milliseconds, at which no more are put in flight
    #[arg(
        long = "limit-ms",
        value_name = "MILLISECONDS",
        default_value_t = 250,
        value_parser = clap::value_parser!(u64).range(1..=60_000)
    )]
    limit_ms: u64,

    /// Bytes of text in each message
    #[arg(
        long = "size",
        value_name = "BYTES",
        default_value_t = 100,
        value_parser = clap::value_parser!(u64).range(0..=65_000)
    )]
    pub(super) size: u64,

    /// Token that admits to the rooms, if the server requires one
    #[arg(
        long = "token",
        env = "ANTEROOM_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(super) token: Option<String>,

    /// Origin of the web page to act as, such as https://example.org [default: the origin of the URL]
    #[arg(long = "origin", value_name = "ORIGIN")]
    pub(super) origin: Option<Origin>,

    /// Do not ask before an address is loaded that is not of this machine
    #[arg(long = "yes")]
    pub(super) yes: bool,

    /// Print one JSON document instead of a table
    #[arg(long = "json")]
    pub(super) json: bool,
}

impl BenchOptions {
    /// How long a phase takes at most.
    pub(super) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The latency at which no more messages are put in flight.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }
}
