//! Errors that end the program, with their exit codes.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

/// Exit code for options that make no sense.
const USAGE: u8 = 2;

/// Exit code for every other error.
const FAILURE: u8 = 1;

/// An error that ends the program: its exit code, and the line that standard error gets.
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Options that make no sense.
    pub(crate) fn usage(message: impl Display) -> Failure {
        Failure {
            code: USAGE,
            message: message.to_string(),
        }
    }

    /// Any other error.
    pub(crate) fn other(message: impl Display) -> Failure {
        Failure {
            code: FAILURE,
            message: message.to_string(),
        }
    }

    /// Writes the message to standard error.
    pub(crate) fn report(self) -> ExitCode {
        // Standard error may be closed.
        let _ = writeln!(io::stderr(), "anteroom: {}", self.message);
        ExitCode::from(self.code)
    }
}
