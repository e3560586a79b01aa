//! The command line: the server's options, and the commands.

use anteroom::Config;
#[cfg(feature = "tokens")]
use anteroom::TokenRequest;
use clap::Parser;
#[cfg(feature = "tokens")]
use clap::Subcommand;

/// WebSocket server with rooms, for WebRTC signaling, chats and shared cursors.
///
/// The page is at /, the rooms are at /room and /room/{name}. RUST_LOG sets the log level:
/// anteroom=warn, anteroom=info (the default) or anteroom=debug.
#[derive(Parser)]
#[command(name = "anteroom", version)]
#[cfg_attr(feature = "tokens", command(args_conflicts_with_subcommands = true))]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) config: Config,

    #[cfg(feature = "tokens")]
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[cfg(feature = "tokens")]
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print a token, for development
    Token(TokenRequest),
}
