//! `--json`: messages as they are, a line each, in both directions.

use std::{collections::HashSet, future::pending, pin::Pin, time::Duration};

use anteroom::client::{Disconnect, Event, Events, Frame, Room, SendError};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::{
    lines::{Gone, Lines, Printer},
    outcome::Outcome,
};

/// How long receipts may take after all else has arrived: those of a history come when the message is stored.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of a message that concerns receipts.
#[derive(Deserialize)]
struct Outgoing {
    #[serde(rename = "ref")]
    reference: Option<Value>,
}

/// The part of a message of the server that concerns receipts.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    sender: std::borrow::Cow<'a, str>,
    #[serde(default)]
    data: Value,
}

/// A pipe to a room.
struct Pipe {
    room: Room,
    printer: Printer,
    was_open: bool,
    /// The `ref`s that are not answered.
    awaited: HashSet<String>,
    outcome: Outcome,
}

type Flush = Pin<Box<dyn Future<Output = Result<(), SendError>> + Send>>;

/// Sends the lines and prints the messages until the input ends and all is acknowledged.
pub(super) async fn run(
    room: Room,
    mut events: Events,
    mut lines: Lines,
    printer: Printer,
) -> Outcome {
    let mut pipe = Pipe {
        room,
        printer,
        was_open: false,
        awaited: HashSet::new(),
        outcome: Outcome::default(),
    };
    let ended = pipe.talk(&mut events, &mut lines).await;
    pipe.room.leave().await;
    // What has come until the end is printed, too.
    while ended.is_ok()
        && let Some(event) = events.next().await
    {
        if pipe.take(event).await.is_err() {
            break;
        }
    }
    pipe.printer.finish().await;
    pipe.outcome
}

impl Pipe {
    async fn talk(&mut self, events: &mut Events, lines: &mut Lines) -> Result<(), Gone> {
        // A line that did not fit into the queue, and what waits until it does.
        let mut held: Option<String> = None;
        let mut flush: Option<Flush> = None;
        let mut is_ended = false;
        // Set when all that was sent has arrived.
        let mut deadline = None;
        while deadline.is_none() || !self.awaited.is_empty() {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => {
                        if !self.take(event).await? {
                            return Ok(());
                        }
                    }
                    None => return Ok(()),
                },
                line = lines.recv(), if !is_ended && held.is_none() => match line {
                    Some(line) => held = self.send(line),
                    None => is_ended = true,
                },
                flushed = finished(&mut flush) => {
                    flush = None;
                    if let Some(line) = held.take() {
                        held = self.send(line);
                    } else if flushed.is_ok() {
                        deadline = Some(Instant::now() + RECEIPT_TIMEOUT);
                    }
                    // Otherwise, the session was lost: the next one says whether anything was lost with it.
                }
                () = self.printer.gone() => return Err(Gone),
                () = until(deadline) => {
                    let count = self.awaited.len();
                    self.outcome.lost(format!("{count} receipts have not come"));
                    return Ok(());
                }
            }
            let waits = held.is_some() || (is_ended && deadline.is_none());
            if waits && flush.is_none() {
                flush = Some(Box::pin(self.room.flush()));
            }
        }
        Ok(())
    }

    /// Sends a line. Returns it if it does not fit into the queue.
    fn send(&mut self, line: String) -> Option<String> {
        if line.trim().is_empty() {
            return None;
        }
        match self.room.send_raw(line.clone()) {
            Ok(()) => {
                // What is no message is answered with an error, without a `ref`.
                if let Ok(Outgoing {
                    reference: Some(reference),
                }) = serde_json::from_str(&line)
                {
                    self.awaited.insert(reference.to_string());
                }
                None
            }
            Err(SendError::Full) => Some(line),
            Err(error @ SendError::Closed(_)) => {
                self.outcome.lost(error.to_string());
                None
            }
            Err(error) => {
                self.outcome.rejected(error.to_string());
                None
            }
        }
    }

    /// Takes an event. Returns whether more may follow.
    async fn take(&mut self, event: Event) -> Result<bool, Gone> {
        match event {
            Event::Wire(Frame::Text(text)) => {
                self.note(&text);
                self.printer.print(text).await?;
            }
            Event::Wire(Frame::Binary(bytes)) => {
                let text = format!("\"{}\"", STANDARD.encode(bytes));
                self.printer.print(text).await?;
            }
            Event::Opened(opened) => {
                if self.was_open && !opened.resumed {
                    let awaited = self.awaited.drain().count();
                    let lost = opened.lost.len().max(awaited);
                    if lost > 0 {
                        let reason =
                            format!("the session was lost: {lost} messages may not have arrived");
                        self.outcome.lost(reason);
                    }
                }
                self.was_open = true;
            }
            Event::Error { message, .. } => self.outcome.rejected(message),
            Event::Reconnecting { why, .. } if !self.was_open => {
                self.outcome.lost(why.to_string());
                return Ok(false);
            }
            Event::Closed(Disconnect::Left) => return Ok(false),
            Event::Closed(why) => {
                self.outcome.lost(why.to_string());
                return Ok(false);
            }
            _ => {}
        }
        Ok(true)
    }

    /// Notes a receipt or an error.
    fn note(&mut self, text: &str) {
        let Ok(Incoming { kind, sender, data }) = serde_json::from_str(text) else {
            return;
        };
        if sender != "server" || !matches!(&*kind, "ack" | "error") {
            return;
        }
        self.awaited.remove(&data["ref"].to_string());
        // That the session is another one is no answer to a message.
        if kind == "error" && data["code"] != "resume_failed" {
            let message = data["message"].as_str().unwrap_or_default();
            self.outcome.rejected(message.into());
        }
    }
}

/// Waits for a flush, if there is one.
async fn finished(flush: &mut Option<Flush>) -> Result<(), SendError> {
    match flush {
        Some(flush) => flush.await,
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
