//! The options of the command `join`.

use anteroom::Origin;
use clap::Args;

use super::super::room_address::RoomAddress;

/// Which room to join, and as whom.
#[derive(Args)]
pub(crate) struct JoinOptions {
    /// The room, such as wss://rooms.example.org/room/tea; without a scheme, names on the internet mean wss and others
    /// ws; without a room, the default room
    // A URL that is refused may have a token, so usage errors do not show it.
    #[arg(value_name = "URL", hide_env_values = true)]
    pub(super) address: RoomAddress,

    /// The name that the others see
    #[arg(long = "name", value_name = "NAME", conflicts_with = "json")]
    pub(super) name: Option<String>,

    /// Token that admits to the room, if the server requires one
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

    /// Become another session when the connection is lost
    #[arg(long = "no-resume")]
    pub(super) no_resume: bool,

    /// Send each line of standard input as it stands, and print each message as it comes, for pipes
    #[arg(long = "json")]
    pub(super) json: bool,
}
