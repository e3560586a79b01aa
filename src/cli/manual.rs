//! The commands `completions` and `man`: what packages install beside the program.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::{failure::Failure, options::Options};

/// The name of the program.
const NAME: &str = "anteroom";

/// Prints a script that completes commands and options in `shell`.
///
/// # Errors
///
/// Standard output cannot be written.
pub(crate) fn print_completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(shell, &mut Options::command(), NAME, &mut script);
    print(&script)
}

/// Prints the manual page: the server's options, then those of each command.
///
/// # Errors
///
/// Standard output cannot be written.
pub(crate) fn print_page() -> Result<(), Failure> {
    let mut page = Vec::new();
    let mut command = Options::command();
    command.build();
    let rendered = render(&command, &mut page);
    rendered.map_err(|error| Failure::other(format!("cannot make the page: {error}")))?;
    print(&page)
}

fn render(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone());
    man.render(page)?;
    for command in command
        .get_subcommands()
        .filter(|it| it.get_name() != "help")
    {
        writeln!(
            page,
            ".SH \"COMMAND {}\"",
            command.get_name().to_uppercase()
        )?;
        let man = Man::new(command.clone());
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)?;
    }
    Ok(())
}

/// Writes to standard output. A reader that wants no more is no error.
fn print(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::other(format!("cannot write: {error}")))
        }
        _ => Ok(()),
    }
}
