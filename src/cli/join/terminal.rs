//! A line editor on the terminal, which messages are printed above.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{Config, DefaultEditor, ExternalPrinter, error::ReadlineError};

use super::lines::{self, Lines, Printer};

/// What stands before the line that is edited.
const PROMPT: &str = "> ";

/// Restores the settings of the terminal when it is dropped: the editor may be reading a line when the program ends.
pub(super) struct Restore {
    settings: Option<Termios>,
    is_editing: Arc<AtomicBool>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(settings) = &self.settings
            && self.is_editing.load(SeqCst)
        {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, settings);
            // The cursor is in the line that was edited.
            let _ = writeln!(io::stdout());
        }
    }
}

/// Starts the editor. The lines end with Ctrl-D or Ctrl-C.
///
/// # Errors
///
/// If the terminal cannot be used.
pub(super) fn edit() -> Result<(Lines, Printer, Restore), ReadlineError> {
    let is_editing = Arc::new(AtomicBool::new(false));
    let restore = Restore {
        settings: tcgetattr(io::stdin()).ok(),
        is_editing: is_editing.clone(),
    };
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = DefaultEditor::with_config(config)?;
    let mut printer = editor.create_external_printer()?;
    let printer = Printer::new(move |line| {
        let printed = printer.print(line + "\n");
        printed.map_err(io::Error::other)
    });
    let (sender, lines) = lines::channel();
    thread::spawn(move || {
        loop {
            is_editing.store(true, SeqCst);
            let line = editor.readline(PROMPT);
            is_editing.store(false, SeqCst);
            match line {
                Ok(line) => {
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
                // The window has another size.
                Err(ReadlineError::Signal(_)) => {}
                Err(_) => return,
            }
        }
    });
    Ok((lines, printer, restore))
}
