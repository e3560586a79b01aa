//! `--json`: messages as they are, a line each, in both directions.

use std::{borrow::Cow, collections::HashMap, future::pending, time::Duration};

use anteroom::client::{Disconnect, Event, Events, Frame, Room, SendError};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::time::{Instant, sleep_until};

use super::{
    backlog::{Backlog, Progress},
    lines::{Gone, Lines, Printer},
    outcome::Outcome,
    secret::without_token,
};

/// How long receipts may take after all else has arrived: those of a history come when the message is stored.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The part of a message that concerns receipts.
#[derive(Deserialize)]
struct Outgoing<'a> {
    #[serde(borrow, rename = "ref")]
    reference: Option<&'a RawValue>,
}

/// The part of a message that says whether it is an answer of the server.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    sender: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// The part of a receipt or an error that concerns receipts.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default, rename = "ref")]
    reference: Option<&'a RawValue>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A pipe to a room.
struct Pipe {
    room: Room,
    printer: Printer,
    was_open: bool,
    /// The `ref`s that are not answered, and how often each was sent.
    awaited: HashMap<String, usize>,
    outcome: Outcome,
}

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
        awaited: HashMap::new(),
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

/// A `ref` as it is compared: the server may have written it in another way.
fn key(reference: &RawValue) -> String {
    match serde_json::from_str::<Value>(reference.get()) {
        Ok(value) => value.to_string(),
        Err(_) => reference.get().into(),
    }
}

impl Pipe {
    async fn talk(&mut self, events: &mut Events, lines: &mut Lines) -> Result<(), Gone> {
        let mut backlog = Backlog::new(self.room.clone());
        let mut is_ended = false;
        // Set when all that was sent has arrived.
        let mut deadline = None;
        while deadline.is_none() || !self.awaited.is_empty() {
            let is_sending = is_ended && deadline.is_none();
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => {
                        if !self.take(event).await? {
                            return Ok(());
                        }
                    }
                    None => {
                        self.outcome.ended_early();
                        return Ok(());
                    }
                },
                line = lines.recv(), if !is_ended && backlog.is_empty() => match line {
                    Some(line) => self.send(line, &mut backlog),
                    None => is_ended = true,
                },
                progress = backlog.progress(is_sending) => match progress {
                    Progress::Line(line) => self.send(line, &mut backlog),
                    Progress::All => deadline = Some(Instant::now() + RECEIPT_TIMEOUT),
                },
                () = self.printer.gone() => return Err(Gone),
                () = until(deadline) => {
                    let count: usize = self.awaited.values().sum();
                    self.outcome.lost(format!("{count} receipts have not come"));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends a line. It is held back if it does not fit into the queue.
    fn send(&mut self, line: String, backlog: &mut Backlog) {
        if line.trim().is_empty() {
            return;
        }
        match self.room.send_raw(line.clone()) {
            Ok(()) => {
                // What is no message is answered with an error, without a `ref`.
                if let Ok(Outgoing {
                    reference: Some(reference),
                }) = serde_json::from_str(&line)
                {
                    *self.awaited.entry(key(reference)).or_default() += 1;
                }
            }
            Err(SendError::Full) => backlog.hold(line),
            Err(error @ SendError::Closed(_)) => self.outcome.lost(error.to_string()),
            Err(error) => self.outcome.rejected(error.to_string()),
        }
    }

    /// A message has been answered.
    fn answered(&mut self, reference: &str) {
        if let Some(count) = self.awaited.get_mut(reference) {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(reference);
            }
        }
    }

    /// Takes an event. Returns whether more may follow.
    async fn take(&mut self, event: Event) -> Result<bool, Gone> {
        match event {
            Event::Wire(Frame::Text(text)) => {
                let line = self.note(&text);
                // White space between tokens may have line breaks, and a line of its own may look like another's.
                let line = line.replace(['\r', '\n'], " ");
                self.printer.print(line).await?;
            }
            Event::Wire(Frame::Binary(bytes)) => {
                let text = format!("\"{}\"", STANDARD.encode(bytes));
                self.printer.print(text).await?;
            }
            Event::Opened(opened) => {
                if self.was_open && !opened.resumed {
                    let awaited = self.awaited.drain().map(|(_, count)| count).sum();
                    let lost = opened.lost.len().max(awaited);
                    if lost > 0 {
                        let reason =
                            format!("the session was lost: {lost} messages may not have arrived");
                        self.outcome.lost(reason);
                    }
                }
                self.was_open = true;
            }
            Event::Error {
                message, reference, ..
            } => {
                self.answered(&reference.to_string());
                self.outcome.rejected(message);
            }
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

    /// Notes a receipt or an error. Returns what is printed.
    fn note(&mut self, text: &str) -> String {
        let (kind, data) = match serde_json::from_str(text) {
            Ok(Incoming { kind, sender, data }) if sender == "server" => (kind, data),
            _ => return text.into(),
        };
        if kind == "hello" {
            return without_token(text, data);
        }
        if let "ack" | "error" = &*kind
            && let Ok(answer) = serde_json::from_str::<Answer<'_>>(data.get())
        {
            if let Some(reference) = answer.reference {
                self.answered(&key(reference));
            }
            // That the session is another one is no answer to a message.
            if kind == "error" && answer.code != "resume_failed" {
                self.outcome.rejected(answer.message);
            }
        }
        text.into()
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
