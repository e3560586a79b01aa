//! The server as a program: options, logging, signals, exit code.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cli;

use std::{
    io::{self, Write},
    net::TcpListener,
    process::{ExitCode, exit},
    thread::available_parallelism,
};

use anteroom::{Config, Server};
use clap::Parser;
use log::warn;
use sd_notify::NotifyState;
#[cfg(feature = "jemalloc")]
use tikv_jemallocator::Jemalloc;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::cli::{Command, Failure, Options, systemd};

/// Connections come in crowds, and each needs memory for its handshake that must be reusable
/// afterwards. With glibc's allocator an idle session takes a fifth more memory.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    start().unwrap_or_else(Failure::report)
}

fn start() -> Result<ExitCode, Failure> {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => return Err(Failure::usage(cli::describe(error))),
        Err(help) => {
            // Standard output may be closed.
            let _ = help.print();
            return Ok(ExitCode::SUCCESS);
        }
    };
    match options.command {
        Some(Command::Bench(options)) => return cli::bench::run(options),
        Some(Command::Doctor(options)) => {
            let is_healthy = cli::doctor::run(options)?;
            return Ok(ExitCode::from(u8::from(!is_healthy)));
        }
        Some(Command::Join(options)) => return cli::join::run(options),
        #[cfg(feature = "tokens")]
        Some(Command::Token(request)) => print(&cli::token::sign(&request)?),
        Some(Command::Completions { shell }) => cli::manual::print_completions(shell)?,
        Some(Command::Man) => cli::manual::print_page()?,
        None => serve(options.config)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal.
fn serve(config: Config) -> Result<(), Failure> {
    config.check().map_err(Failure::usage)?;
    cli::init_logging();
    if let Err(error) = rlimit::increase_nofile_limit(rlimit::INFINITY) {
        warn!("cannot raise the open-file limit: {error}");
    }
    let listener = systemd::listener().map_err(Failure::other)?;
    let runtime =
        runtime().map_err(|error| Failure::other(format!("cannot start the threads: {error}")))?;
    let result = runtime.block_on(run(config, listener));
    // A file system that does not answer must not hold up the exit.
    runtime.shutdown_background();
    result.map_err(Failure::other)
}

/// A worker thread for each core; on a single core, none besides this thread.
fn runtime() -> io::Result<Runtime> {
    let mut builder = match available_parallelism() {
        Ok(cores) if cores.get() > 1 => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

async fn run(config: Config, listener: Option<TcpListener>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stop_signal = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let server = match listener {
        Some(listener) => Server::on(listener, config)?,
        None => Server::bind(config)?,
    };
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
        print(&format!("the admin API is on http://{address}"));
    }
    if let Some(address) = server.turn_addr() {
        print(&format!("the TURN server is on {address}, UDP and TCP"));
    }
    systemd::tell(NotifyState::Ready);

    let (stop, stopping) = oneshot::channel();
    let signals = async {
        stop_signal().await;
        systemd::tell(NotifyState::Stopping);
        let _ = stop.send(());
        stop_signal().await;
    };
    tokio::select! {
        () = server.serve(async { _ = stopping.await }) => Ok(()),
        // A second signal does not wait for the sessions.
        () = signals => exit(1),
    }
}

/// Writes a line to standard output, which may be closed.
fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
