//! A line that waits until the queue has room for it, and the wait for all that was sent.

use std::{future::pending, pin::Pin};

use anteroom::client::{Room, SendError};

type Flush = Pin<Box<dyn Future<Output = Result<(), SendError>> + Send>>;

/// What the server has taken in.
pub(super) enum Progress {
    /// All before this line, which may fit into the queue now.
    Line(String),
    /// All.
    All,
}

/// A line that waits until the queue has room for it, and the wait for all that was sent.
pub(super) struct Backlog {
    room: Room,
    line: Option<String>,
    flush: Option<Flush>,
}

impl Backlog {
    pub(super) fn new(room: Room) -> Backlog {
        Backlog {
            room,
            line: None,
            flush: None,
        }
    }

    /// Whether no line waits, so that the next one may be read.
    pub(super) fn is_empty(&self) -> bool {
        self.line.is_none()
    }

    /// Holds a line back that does not fit into the queue.
    pub(super) fn hold(&mut self, line: String) {
        self.line = Some(line);
    }

    /// Resolves when the line that waits may be sent, or, if no more lines come, when all that was sent has arrived.
    pub(super) async fn progress(&mut self, is_ended: bool) -> Progress {
        while self.line.is_some() || is_ended {
            let flush = || Box::pin(self.room.flush()) as Flush;
            let flushed = self.flush.get_or_insert_with(flush).await;
            self.flush = None;
            if let Err(SendError::Closed(_)) = flushed {
                // An event says why.
                break;
            }
            if let Some(line) = self.line.take() {
                return Progress::Line(line);
            }
            if flushed.is_ok() {
                return Progress::All;
            }
            // The session was lost. An event says whether anything was lost with it.
        }
        pending().await
    }
}
