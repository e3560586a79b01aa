//! How a session of the command has ended.

use std::io::{self, Write};

use super::super::printable::printable;

/// Exit code for a connection that was refused, or lost for good.
const LOST: u8 = 1;

/// Exit code for a message that was answered with an error.
const REJECTED: u8 = 3;

/// How many errors standard error gets.
const MAX_ERRORS: usize = 20;

/// How a session has ended.
#[derive(Default)]
pub(super) struct Outcome {
    /// Why the connection was refused, or what was lost.
    lost: Vec<String>,
    /// How many messages were answered with an error.
    rejected: usize,
}

impl Outcome {
    /// The connection was refused, or something was lost.
    pub(super) fn lost(&mut self, reason: String) {
        if self.lost.len() < MAX_ERRORS {
            self.lost.push(reason);
        }
    }

    /// The events have ended, and none has said why.
    pub(super) fn ended_early(&mut self) {
        self.lost("the client has ended before its time".into());
    }

    /// A message was answered with an error. Standard error gets the reason at once.
    pub(super) fn rejected(&mut self, reason: String) {
        self.rejected += 1;
        match self.rejected {
            ..=MAX_ERRORS => report(&reason),
            _ if self.rejected == MAX_ERRORS + 1 => report("more errors are not shown"),
            _ => {}
        }
    }

    /// Reports what was lost. Returns the exit code.
    pub(super) fn finish(self) -> u8 {
        for reason in &self.lost {
            report(reason);
        }
        match self {
            Outcome { rejected: 0, lost } if lost.is_empty() => 0,
            Outcome { lost, .. } if lost.is_empty() => REJECTED,
            _ => LOST,
        }
    }
}

/// Writes to standard error, which may be closed.
fn report(reason: &str) {
    let _ = writeln!(io::stderr(), "anteroom: {}", printable(reason));
}
