//! A conversation of people.

use std::{pin::Pin, time::Duration};

use anteroom::client::{
    Answer, Disconnect, Event, Events, HistoryPage, Message, Opened, Room, SendError,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, sleep};

use super::super::printable::{self, printable};
use super::{
    backlog::{Backlog, Progress},
    input::{self, HELP, Input},
    lines::{Gone, Lines, Printer},
    outcome::Outcome,
    people::{People, SERVER, named},
    secret::without_token,
    style::Style,
};

/// How many characters of a message that is no chat are shown.
const MAX_DATA: usize = 200;

/// How long receipts may take when somebody at a terminal leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The type of messages that people write, as the server's page sends them.
const CHAT: &str = "chat";

/// What the server has answered to something that was typed.
enum Done {
    Sent(Result<u64, SendError>),
    /// The answer to this state.
    State(Value, Result<u64, SendError>),
    History(Result<HistoryPage, SendError>),
}

/// What has become of a line.
#[derive(PartialEq)]
enum Obeyed {
    Done,
    /// It does not fit into the queue.
    Full,
    /// It was the last one.
    Last,
}

type Pending = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

/// A conversation of people.
pub(super) struct Talk {
    room: Room,
    printer: Printer,
    style: Style,
    people: People,
    /// The own state, which the server keeps for the others. It is asked for if the server has not accepted it.
    state: Value,
    /// The last state that the server has accepted.
    accepted: Value,
    was_open: bool,
    /// Whether the room keeps what is said.
    is_kept: bool,
    pending: Pending,
    /// Whether errors change the exit code: nobody reads them in a pipe.
    is_interactive: bool,
    outcome: Outcome,
}

impl Talk {
    pub(super) fn new(room: Room, printer: Printer, style: Style, is_interactive: bool) -> Talk {
        Talk {
            room,
            printer,
            style,
            people: People::default(),
            state: Value::Null,
            accepted: Value::Null,
            was_open: false,
            is_kept: false,
            pending: Pending::new(),
            is_interactive,
            outcome: Outcome::default(),
        }
    }

    /// Talks until the lines end, or the room is closed.
    pub(super) async fn run(
        mut self,
        mut events: Events,
        mut lines: Lines,
        name: Option<&str>,
    ) -> Outcome {
        if let Some(name) = name {
            self.set_state(self.with_name(name));
        }
        // Nobody may read what is printed any longer, which ends the conversation quietly.
        let ended = self.talk(&mut events, &mut lines).await;
        self.room.leave().await;
        // What has come until the end is shown, too.
        while ended.is_ok()
            && let Some(event) = events.next().await
        {
            if !matches!(self.show(event).await, Ok(true)) {
                break;
            }
        }
        self.printer.finish().await;
        self.outcome
    }

    async fn talk(&mut self, events: &mut Events, lines: &mut Lines) -> Result<(), Gone> {
        let mut backlog = Backlog::new(self.room.clone());
        let mut is_ended = false;
        // Raw messages have no receipts that are waited for.
        let mut has_arrived = false;
        // Somebody at a terminal does not wait long for receipts.
        let mut patience = Box::pin(sleep(LEAVE_TIMEOUT));
        while !has_arrived || !self.was_open || !self.pending.is_empty() {
            let is_sending = is_ended && !has_arrived;
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => {
                        if !self.show(event).await? {
                            return Ok(());
                        }
                    }
                    None => {
                        self.outcome.ended_early();
                        return Ok(());
                    }
                },
                line = lines.recv(), if self.hears() && !is_ended && backlog.is_empty() => {
                    is_ended = match line {
                        Some(line) => self.take(line, &mut backlog).await?,
                        None => true,
                    };
                    patience.as_mut().reset(Instant::now() + LEAVE_TIMEOUT);
                }
                progress = backlog.progress(is_sending) => match progress {
                    Progress::Line(line) => is_ended = self.take(line, &mut backlog).await?,
                    Progress::All => has_arrived = true,
                },
                () = self.printer.gone() => return Err(Gone),
                () = &mut patience, if is_ended && self.is_interactive => {
                    let unanswered = self.pending.len();
                    if unanswered > 0 {
                        let text = format!("{unanswered} of your lines may not have arrived");
                        self.outcome.lost(text);
                    }
                    return Ok(());
                }
                Some(done) = self.pending.next() => self.finish(done).await?,
            }
        }
        Ok(())
    }

    /// Whether lines are obeyed. Those of a pipe wait until it is known who is there; somebody at a terminal may want
    /// to leave before.
    fn hears(&self) -> bool {
        self.was_open || self.is_interactive
    }

    async fn notice(&self, text: &str) -> Result<(), Gone> {
        self.printer.print(self.style.notice(text)).await
    }

    /// Shows an error of what was typed.
    async fn error(&mut self, text: &str) -> Result<(), Gone> {
        match self.is_interactive {
            true => self.printer.print(self.style.error(&printable(text))).await,
            false => {
                self.outcome.rejected(text.into());
                Ok(())
            }
        }
    }

    /// The name of a session in its colour.
    fn name(&self, id: &str) -> String {
        self.style
            .name(&self.people.name(id), self.people.color(id))
    }

    fn own_name(&self) -> String {
        let name = self.state["name"].as_str().and_then(printable::name);
        name.unwrap_or_else(|| self.people.name(&self.people.own))
    }

    /// The own state with another name.
    fn with_name(&self, name: &str) -> Value {
        match self.state.clone() {
            Value::Object(mut state) => {
                state.insert("name".into(), name.into());
                state.into()
            }
            _ => json!({ "name": name }),
        }
    }

    fn set_state(&mut self, state: Value) -> Obeyed {
        let receipt = self.room.set_state(&state);
        let obeyed = self.expect(receipt, {
            let state = state.clone();
            |result| Done::State(state, result)
        });
        if obeyed == Obeyed::Done {
            self.state = state;
        }
        obeyed
    }

    /// Waits for an answer, unless the line has to be obeyed once more because the queue is full. Somebody at a
    /// terminal is told.
    fn expect<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        done: impl FnOnce(Result<T, SendError>) -> Done + Send + 'static,
    ) -> Obeyed {
        if answer.refused() == Some(&SendError::Full) && !self.is_interactive {
            return Obeyed::Full;
        }
        self.pending.push(Box::pin(async { done(answer.await) }));
        Obeyed::Done
    }

    /// Obeys a line, or holds it back. Returns whether it was the last one.
    async fn take(&mut self, line: String, backlog: &mut Backlog) -> Result<bool, Gone> {
        let obeyed = self.obey(&line).await?;
        if obeyed == Obeyed::Full {
            backlog.hold(line);
        }
        Ok(obeyed == Obeyed::Last)
    }

    /// Does what a line asks for.
    async fn obey(&mut self, line: &str) -> Result<Obeyed, Gone> {
        let input = match input::parse(line) {
            Ok(input) => input,
            Err(problem) => {
                self.error(&problem).await?;
                return Ok(Obeyed::Done);
            }
        };
        match input {
            Input::Nothing => {}
            Input::Say(text) => {
                let data = match self.is_kept {
                    // Whoever joins later sees no state of a session that has left.
                    true => json!({ "text": text, "name": self.own_name() }),
                    false => text.into(),
                };
                let receipt = self.room.send_with_receipt("all", CHAT, data);
                return Ok(self.expect(receipt, Done::Sent));
            }
            Input::To(name, text) => match self.people.find(&name) {
                Ok(id) => {
                    let receipt = self.room.send_with_receipt(id, CHAT, text);
                    return Ok(self.expect(receipt, Done::Sent));
                }
                Err(problem) => self.error(&problem).await?,
            },
            Input::Name(name) => match printable::name(&name) {
                Some(name) => return Ok(self.set_state(self.with_name(&name))),
                None => self.error("the name has nothing visible").await?,
            },
            Input::State(state) => return Ok(self.set_state(state)),
            Input::History(count) => {
                let page = self.room.history(Some(count), None);
                return Ok(self.expect(page, Done::History));
            }
            Input::Who => self.who().await?,
            Input::Raw(text) => match self.room.send_raw(text) {
                Ok(()) => {}
                Err(SendError::Full) if !self.is_interactive => return Ok(Obeyed::Full),
                Err(error) => self.error(&error.to_string()).await?,
            },
            Input::Help => {
                for line in HELP.lines() {
                    self.notice(line).await?;
                }
            }
            Input::Quit => return Ok(Obeyed::Last),
        }
        Ok(Obeyed::Done)
    }

    /// Lists who is here.
    async fn who(&self) -> Result<(), Gone> {
        let own = self.style.name(&self.own_name(), 0);
        self.printer
            .print(format!("{own} (you, {})", printable(&self.people.own)))
            .await?;
        for id in self.people.ids() {
            let state = self.people.state(id).unwrap_or_default();
            let line = format!("{} ({}) {state}", self.name(id), printable(id));
            self.printer.print(line.trim_end()).await?;
        }
        Ok(())
    }

    /// Shows what the server has answered.
    async fn finish(&mut self, done: Done) -> Result<(), Gone> {
        let error = match done {
            Done::Sent(Ok(_)) => return Ok(()),
            Done::State(state, Ok(_)) => {
                self.accepted = state;
                return Ok(());
            }
            Done::History(Ok(page)) => {
                if page.messages.is_empty() {
                    self.notice("nothing was said before you joined").await?;
                }
                for earlier in page.messages {
                    let line = self.earlier(&earlier.message, earlier.time, &earlier.from);
                    self.printer.print(line).await?;
                }
                return Ok(());
            }
            Done::State(state, Err(error)) => {
                // Unless another one was asked for since.
                if self.state == state {
                    self.state = self.accepted.clone();
                }
                error
            }
            Done::Sent(Err(error)) | Done::History(Err(error)) => error,
        };
        let text = match &error {
            // That is shown as an event.
            SendError::Closed(_) if self.is_interactive => return Ok(()),
            SendError::Rejected { code, .. } if code == "empty_room" => {
                "nobody else is here: what you say reaches nobody".into()
            }
            error => format!("not delivered: {error}"),
        };
        self.error(&text).await
    }

    /// A message that was said before.
    fn earlier(&self, message: &Message, time: u64, from: &RawValue) -> String {
        let name = named(from, "user").or_else(|| named(&message.data, "name"));
        let name = name.unwrap_or_else(|| self.people.name(&message.sender));
        let name = self.style.name(&name, self.people.color(&message.sender));
        let time = i64::try_from(time).unwrap_or_default();
        let time = Timestamp::from_millisecond(time).unwrap_or_default();
        let time = self.style.notice(&time.strftime("%F %R UTC").to_string());
        match message.kind == CHAT {
            true => format!("{time} {name}: {}", said(&message.data)),
            false => format!("{time} {name} {}", sent(message)),
        }
    }

    /// Shows an event. Returns whether more may follow.
    async fn show(&mut self, event: Event) -> Result<bool, Gone> {
        match event {
            Event::Opened(opened) => self.opened(opened).await?,
            Event::Joined(peer) => {
                self.people.add(&peer.id, &peer.data, &peer.state);
                let line = format!("{} joined", self.name(&peer.id));
                self.printer.print(line).await?;
            }
            Event::Left { id } => {
                let line = format!("{} left", self.name(&id));
                self.people.remove(&id);
                self.printer.print(line).await?;
            }
            Event::State { id, state } => {
                if let Some(before) = self.people.set_state(&id, &state) {
                    let line = format!("{before} is now {}", self.name(&id));
                    self.printer.print(line).await?;
                }
            }
            Event::Message(message) => {
                let line = self.message(&message);
                self.printer.print(line).await?;
            }
            Event::Bytes { sender, bytes } => {
                let line = format!("{} sent {} bytes", self.name(&sender), bytes.len());
                self.printer.print(line).await?;
            }
            Event::Error { message, .. } => self.error(&message).await?,
            Event::Reconnecting { why, .. } if !self.was_open => {
                self.outcome.lost(why.to_string());
                return Ok(false);
            }
            Event::Reconnecting { why, delay } => {
                let seconds = delay.as_secs_f64();
                let text = format!(
                    "{}; trying again in {seconds:.1} s",
                    printable(&why.to_string())
                );
                self.printer.print(self.style.error(&text)).await?;
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

    /// Shows that the room is open.
    async fn opened(&mut self, opened: Opened) -> Result<(), Gone> {
        self.people.own = opened.id;
        self.is_kept = opened.history.is_some();
        if opened.resumed {
            return self.notice("connected again").await;
        }
        self.people.clear();
        for peer in &opened.peers {
            self.people.add(&peer.id, &peer.data, &peer.state);
        }
        if self.was_open {
            self.notice("connected again, as another session").await?;
        }
        if !opened.lost.is_empty() {
            let text = format!("{} messages may not have arrived", opened.lost.len());
            self.error(&text).await?;
        }
        self.was_open = true;
        let names: Vec<String> = self.people.ids().map(|id| self.name(id)).collect();
        let here = match names.is_empty() {
            true => "nobody else is here".into(),
            false => format!("here: {}", names.join(", ")),
        };
        let own = self.style.name(&self.own_name(), 0);
        let line = format!("you are {own} in room {}; {here}", printable(&opened.room));
        self.printer.print(line).await?;
        if self.is_interactive {
            self.notice("/help lists the commands").await?;
        }
        Ok(())
    }

    /// A message as it comes.
    fn message(&self, message: &Message) -> String {
        let is_from_server = message.sender == "server";
        let name = match is_from_server {
            true => self.style.name(SERVER, 0),
            false => self.name(&message.sender),
        };
        let receiver = match &*message.receiver {
            "all" | "" => String::new(),
            id if id == self.people.own => " (to you)".into(),
            other => format!(" (to {})", printable(other)),
        };
        match &*message.kind {
            CHAT => format!("{name}{receiver}: {}", said(&message.data)),
            "notice" if is_from_server => format!("{name}: {}", said(&message.data)),
            "hello" if is_from_server => {
                let mut message = message.clone();
                let data = without_token(message.data.get(), &message.data);
                message.data = RawValue::from_string(data).unwrap_or_default();
                format!("{name}{receiver} {}", sent(&message))
            }
            _ => format!("{name}{receiver} {}", sent(message)),
        }
    }
}

/// What a chat message says: its data is a text, or a text and the name of its sender.
fn said(data: &RawValue) -> String {
    // What is no value, such as half of a surrogate pair, is shown as it was written.
    let Ok(data) = serde_json::from_str::<Value>(data.get()) else {
        return printable(data.get());
    };
    let text = match &data["text"] {
        Value::Null => &data,
        text => text,
    };
    match text {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// What a message of another type is.
fn sent(message: &Message) -> String {
    let data = message.data.get();
    let mut shown: String = data.chars().take(MAX_DATA).collect();
    if shown.len() < data.len() {
        shown.push('…');
    }
    format!("sent {}: {}", printable(&message.kind), printable(&shown))
}
