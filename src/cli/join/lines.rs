//! Lines in both directions, each by a thread of its own: standard streams may block.

use std::{
    io::{self, BufRead, Read, Write},
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// The longest line that is read, in bytes: more than any server accepts by default.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// How many lines wait between a thread and the rest.
const WAITING_LINES: usize = 64;

/// How long a reader of standard output may take for what is left at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines that somebody types, or that come through a pipe.
pub(super) type Lines = mpsc::Receiver<String>;

/// A channel for lines.
pub(super) fn channel() -> (mpsc::Sender<String>, Lines) {
    mpsc::channel(WAITING_LINES)
}

/// Reads standard input to its end.
pub(super) fn read() -> Lines {
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = input
                .by_ref()
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            while let Some(b'\n' | b'\r') = line.last() {
                line.pop();
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Nobody reads what is printed.
#[derive(Debug)]
pub(super) struct Gone;

/// Prints lines.
pub(super) struct Printer {
    lines: mpsc::Sender<String>,
    done: oneshot::Receiver<()>,
}

impl Printer {
    /// A printer to standard output.
    pub(super) fn standard() -> Printer {
        Printer::new(|line| {
            let mut output = io::stdout().lock();
            output.write_all(line.as_bytes())?;
            output.write_all(b"\n")?;
            output.flush()
        })
    }

    /// A printer that prints each line with this function, in a thread of its own.
    pub(super) fn new(mut print: impl FnMut(String) -> io::Result<()> + Send + 'static) -> Printer {
        let (sender, mut lines) = channel();
        let (finished, done) = oneshot::channel();
        thread::spawn(move || {
            while let Some(line) = lines.blocking_recv()
                && print(line).is_ok()
            {}
            drop(lines);
            let _ = finished.send(());
        });
        Printer {
            lines: sender,
            done,
        }
    }

    /// Prints a line. Waits while too many wait.
    pub(super) async fn print(&self, line: impl Into<String>) -> Result<(), Gone> {
        self.lines.send(line.into()).await.map_err(|_| Gone)
    }

    /// Resolves when nobody reads what is printed.
    pub(super) async fn gone(&self) {
        self.lines.closed().await;
    }

    /// Waits until all is printed.
    pub(super) async fn finish(self) {
        drop(self.lines);
        let _ = timeout(FINISH_TIMEOUT, self.done).await;
    }
}
