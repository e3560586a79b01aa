//! Signals that end the program.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is added to the number of a signal for the exit code, as shells do.
const SIGNAL: u8 = 128;

/// The signals that end the program, which leaves its rooms before.
pub(crate) struct Signals([(u8, Signal); 3]);

impl Signals {
    /// Catches the signals from now on.
    pub(crate) fn catch() -> io::Result<Signals> {
        Ok(Signals([
            (1, signal(SignalKind::hangup())?),
            (2, signal(SignalKind::interrupt())?),
            (15, signal(SignalKind::terminate())?),
        ]))
    }

    /// Waits for a signal. Returns the exit code.
    pub(crate) async fn next(&mut self) -> u8 {
        let [hangup, interrupt, terminate] = &mut self.0;
        let (number, received) = tokio::select! {
            received = hangup.1.recv() => (hangup.0, received),
            received = interrupt.1.recv() => (interrupt.0, received),
            received = terminate.1.recv() => (terminate.0, received),
        };
        match received {
            Some(()) => SIGNAL + number,
            None => pending().await,
        }
    }
}
