//! The command `join`: a client for people, and for pipes.

mod backlog;
mod input;
mod lines;
mod options;
mod outcome;
mod people;
mod pipe;
mod secret;
mod style;
mod talk;
mod terminal;

use std::{
    env,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use anteroom::client::Join;
use tokio::{runtime::Builder, time::timeout};

pub(crate) use self::options::JoinOptions;
use self::{lines::Printer, outcome::Outcome, style::Style, talk::Talk};
use super::{failure::Failure, printable, signals::Signals};

/// How long a pipe waits for a server that was there. People see what happens, and decide themselves.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// How long leaving may take when a signal has come.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Joins a room until the input ends. Returns the exit code.
pub(crate) fn run(options: JoinOptions) -> Result<ExitCode, Failure> {
    let name = match options.name.as_deref().map(printable::name) {
        Some(None) => return Err(Failure::usage("--name has nothing visible")),
        name => name.flatten(),
    };
    // The printer may block, and the editor is in a thread of its own.
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(join(options, name));
    // A name that does not resolve must not hold up the exit.
    runtime.shutdown_background();
    result.map(ExitCode::from)
}

async fn join(options: JoinOptions, name: Option<String>) -> Result<u8, Failure> {
    let [is_input_terminal, is_output_terminal] =
        [io::stdin().is_terminal(), io::stdout().is_terminal()];
    let is_interactive = is_input_terminal && is_output_terminal && !options.json;
    let mut signals = Signals::catch()
        .map_err(|error| Failure::other(format!("cannot catch signals: {error}")))?;
    let url = options.address.url().clone();
    let origin = match options.origin {
        Some(origin) => origin.to_string(),
        None => url.origin(),
    };
    let mut join = Join::room(url)
        .origin(origin)
        .resume(!options.no_resume)
        .wire(options.json);
    if let Some(token) = options.token {
        join = join.token(token);
    }
    if !is_interactive {
        join = join.give_up_after(GIVE_UP_AFTER);
    }
    // The settings of the terminal are restored at the end.
    let (lines, printer, restore) = match is_interactive {
        true if let Ok((lines, printer, restore)) = terminal::edit() => {
            (lines, printer, Some(restore))
        }
        // Some terminals cannot edit, such as that of Emacs.
        _ => (lines::read(), Printer::standard(), None),
    };
    let (room, events) = join.open();
    let leaving = room.clone();
    let session = async {
        match options.json {
            true => pipe::run(room, events, lines, printer).await,
            false => {
                let style = Style {
                    has_colors: is_output_terminal && has_colors(),
                };
                let talk = Talk::new(room, printer, style, is_interactive);
                talk.run(events, lines, name.as_deref()).await
            }
        }
    };
    let ended = tokio::select! {
        outcome = session => Ok(outcome),
        code = signals.next() => {
            let _ = timeout(LEAVE_TIMEOUT, leaving.leave()).await;
            Err(code)
        }
    };
    // Errors are printed below the line that was edited.
    drop(restore);
    Ok(ended.map_or_else(|code| code, Outcome::finish))
}

/// Whether the user wants colours (https://no-color.org).
fn has_colors() -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
