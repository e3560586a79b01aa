//! The server as a program: options, logging, signals, exit code.

mod cli;

use std::{
    fmt::Display,
    io::{self, Write},
    process::{ExitCode, exit},
    thread::available_parallelism,
};

use anteroom::{Config, Server, TokenRequest};
use clap::{
    CommandFactory, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use log::warn;
#[cfg(feature = "jemalloc")]
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Where peers meet: a WebSocket server of rooms, for WebRTC signaling, small chats and shared
/// cursors.
///
/// The page is at /, the rooms are at /room and /room/{name}. RUST_LOG sets what is logged:
/// anteroom=warn, anteroom=info (the default) or anteroom=debug.
#[derive(Parser)]
#[command(name = "anteroom", version)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(flatten)]
    config: Config,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print a token, for development
    Token(TokenRequest),
}

/// What a usage error has in place of a word that may be a secret.
const NOT_SHOWN: &str = "(not shown: it may be a secret)";

/// Exit code for options that make no sense.
const USAGE: u8 = 2;

/// Exit code for all else that goes wrong.
const FAILURE: u8 = 1;

/// Connections come in crowds; what each takes for its handshake is to be of use again when it is
/// over. glibc's allocator ends up with a fifth more memory for an idle session.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let Options { config, command } = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            return fail(USAGE, one_line(&without_secrets(error).to_string()));
        }
        Err(help) => {
            // Who closes the pipe has seen enough.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Some(Command::Token(request)) = command {
        if let Err(message) = request.check() {
            return fail(USAGE, message);
        }
        return match request.sign() {
            Ok(token) => print(&token),
            Err(error) => fail(FAILURE, error),
        };
    }
    if let Err(message) = config.check() {
        return fail(USAGE, message);
    }
    cli::init_logging();
    if let Err(error) = rlimit::increase_nofile_limit(rlimit::INFINITY) {
        warn!("cannot raise the open-file limit: {error}");
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILURE, format!("cannot start the threads: {error}")),
    };
    let result = runtime.block_on(run(config));
    // A file system that does not answer must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILURE, error),
    }
}

/// A worker thread for each core, or just this one where there is only one.
fn runtime() -> io::Result<Runtime> {
    let mut builder = match available_parallelism() {
        Ok(cores) if cores.get() > 1 => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

async fn run(config: Config) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stop_signal = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let server = Server::bind(config)?;
    if let Some(reload) = server.reloader() {
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                reload();
            }
        });
    }
    let scheme = if server.has_tls() { "https" } else { "http" };
    let address = server.local_addr()?;
    print(&format!("anteroom listening on {scheme}://{address}"));
    if let Some(address) = server.admin_addr()? {
        print(&format!("operators are answered on http://{address}"));
    }

    let (stop, stopping) = oneshot::channel();
    let signals = async {
        stop_signal().await;
        let _ = stop.send(());
        stop_signal().await;
    };
    tokio::select! {
        () = server.serve(async { _ = stopping.await }) => Ok(()),
        // Asked twice, it does not wait for anyone.
        () = signals => exit(FAILURE.into()),
    }
}

/// The usage error without what may be a secret: the value of an option that is marked as such, and a
/// word that belongs to no option, for it may be a part of such a value.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    // A tip repeats the word that it is about.
    error.remove(ContextKind::Suggested);
    let mut options = Options::command();
    options.build();
    let is_public = |name: &ContextValue| {
        let commands = [&options].into_iter().chain(options.get_subcommands());
        let mut arguments = commands.flat_map(clap::Command::get_arguments);
        arguments.any(|argument| {
            argument.to_string() == name.to_string()
                && argument.get_action().takes_values()
                && !argument.is_hide_env_values_set()
        })
    };
    if !error.get(ContextKind::InvalidArg).is_some_and(is_public)
        && error.get(ContextKind::InvalidValue).is_some()
    {
        error.insert(
            ContextKind::InvalidValue,
            ContextValue::String(NOT_SHOWN.into()),
        );
    }
    for word in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(word)
            && !is_option(text)
            && options.find_subcommand(text).is_none()
        {
            error.insert(word, ContextValue::String(NOT_SHOWN.into()));
        }
    }
    error
}

/// Whether the text names an option, perhaps with what its value is called (`--listen <ADDRESS:PORT>`).
fn is_option(text: &str) -> bool {
    let (name, value) = text.split_once(' ').unwrap_or((text, "<>"));
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    let is_long = name.starts_with("--") && name.bytes().all(is_letter);
    let is_short = name.starts_with('-') && name.len() == 2;
    (is_long || is_short) && value.starts_with('<')
}

/// What clap has to say about a usage error, without its hints on separate lines.
fn one_line(error: &str) -> String {
    let message = error.split("\n\nUsage:").next().unwrap_or(error);
    let message = message
        .split("\n\nFor more information")
        .next()
        .unwrap_or(message);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let lines = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// Writes a line to standard output.
fn print(line: &str) -> ExitCode {
    // Whether anyone reads it makes no difference.
    let _ = writeln!(io::stdout(), "{line}");
    ExitCode::SUCCESS
}

fn fail(code: u8, message: impl Display) -> ExitCode {
    // Nobody need be reading it.
    let _ = writeln!(io::stderr(), "anteroom: {message}");
    ExitCode::from(code)
}
