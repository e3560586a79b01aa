//! The command line: the server's options, and the commands.

use anteroom::Config;
#[cfg(feature = "tokens")]
use anteroom::TokenRequest;
use clap::{Parser, Subcommand};
use clap_complete::Shell;

use super::{bench::BenchOptions, doctor::DoctorOptions, join::JoinOptions};

/// WebSocket server with rooms, for WebRTC signaling, chats and shared cursors.
///
/// The page is at /, the rooms are at /room and /room/{name}. RUST_LOG sets the log level:
/// anteroom=warn, anteroom=info (the default) or anteroom=debug.
#[derive(Parser)]
#[command(name = "anteroom", version)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) config: Config,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure what a running server carries: joins and messages a second, and their latency
    Bench(BenchOptions),
    /// Check a running server as its clients reach it, and say what to do
    Doctor(DoctorOptions),
    /// Join a room and talk to who is there, from a terminal or through pipes
    Join(JoinOptions),
    /// Print a token, for development
    #[cfg(feature = "tokens")]
    Token(TokenRequest),
    /// Print a script that completes this program's commands and options in a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, for man(1)
    Man,
}
