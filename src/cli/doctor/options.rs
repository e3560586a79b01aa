//! The options of the command `doctor`.

use anteroom::{Origin, client::RoomUrl};
use clap::Args;

use super::server_url::server_url;

/// What to check, and as whom.
#[derive(Args)]
pub(crate) struct DoctorOptions {
    /// The server as its clients reach it, such as wss://rooms.example.org/; the room endpoint is
    /// /room, behind the path that the URL has
    // A URL that is refused may have a token, so usage errors do not show it.
    #[arg(value_name = "URL", hide_env_values = true, value_parser = server_url)]
    pub(super) target: RoomUrl,

    /// Token that admits to a room, if the server requires one
    #[arg(
        long = "token",
        env = "ANTEROOM_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(super) token: Option<String>,

    /// Origin of the web page whose connection is checked, such as https://example.org [default: the
    /// origin of the URL]
    #[arg(long = "origin", value_name = "ORIGIN")]
    pub(super) origin: Option<Origin>,

    /// How long a connection is left idle, in seconds; 0 skips this step
    #[arg(
        long = "idle-seconds",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(0..=3600)
    )]
    pub(super) idle_seconds: u64,

    /// Print one JSON document at the end instead of a line for each step
    #[arg(long = "json")]
    pub(super) json: bool,
}
