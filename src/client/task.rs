//! The task of a room: connects, serves the connection, and connects again.

use std::{
    collections::{HashSet, VecDeque},
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite;
use uuid::Uuid;

use super::{
    command::{Command, Outgoing, Reply, Waiter},
    connection::{Connection, Frame},
    disconnect::Disconnect,
    event::{Event, Opened},
    events::EventSink,
    handle::Shared,
    message::{ALL, Ack, Envelope, Hello, Limits, Peer, Problem, Referring, Resumed, SERVER},
    receipts::Receipts,
    retry,
    room::{number, reference, text},
    send_error::SendError,
    sent::{Kind, Sent, Unconfirmed},
    settings::Settings,
};

/// How long a message without a receipt may be unacknowledged before the server is asked.
const CONFIRM_AFTER: Duration = Duration::from_secs(1);

/// The share of the queue that is unacknowledged before the server is asked.
const CONFIRM_SHARE: usize = 4;

/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was open for this long begins with short delays again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The length of the id that begins a binary message, in bytes.
const ID_BYTES: usize = 16;

/// How the session can be resumed.
struct Ticket {
    token: String,
    window: Duration,
}

/// The task of a room.
pub(super) struct Task {
    options: Settings,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    events: EventSink,
    is_leaving: bool,

    /// The session: its id, how it can be resumed, and until when while there is no connection.
    id: String,
    room: String,
    ticket: Option<Ticket>,
    kept_until: Option<Instant>,
    /// How many messages have come in this session.
    received: u64,
    unconfirmed: Unconfirmed,
    receipts: Receipts,
    /// When the first message was sent that is not acknowledged.
    unconfirmed_since: Option<Instant>,
    /// The other sessions of the room.
    known: HashSet<String>,
    limits: Limits,
    ice_servers: serde_json::Value,
    history: Option<u64>,
    /// What was sent without a receipt in the session before.
    lost: Vec<Frame>,
    /// The last state that the server has accepted, and those after it that are not answered yet.
    states: VecDeque<State>,
    /// Whether something was lost with a session, and no flush has said so.
    has_lost: bool,
}

/// A message that sets the state.
struct State {
    message: tungstenite::Message,
    /// The number of its receipt.
    number: u64,
    is_accepted: bool,
}

impl Task {
    pub(super) fn new(
        options: Settings,
        commands: mpsc::UnboundedReceiver<Command>,
        shared: Arc<Shared>,
        events: EventSink,
    ) -> Task {
        Task {
            options,
            commands,
            shared,
            events,
            is_leaving: false,
            id: String::new(),
            room: String::new(),
            ticket: None,
            kept_until: None,
            received: 0,
            unconfirmed: Unconfirmed::default(),
            receipts: Receipts::default(),
            unconfirmed_since: None,
            known: HashSet::new(),
            limits: Limits::default(),
            ice_servers: serde_json::Value::Null,
            history: None,
            lost: Vec::new(),
            states: VecDeque::new(),
            has_lost: false,
        }
    }

    /// Lives until the room is closed. `done` ends with it.
    pub(super) async fn run(mut self, leaving: watch::Receiver<bool>, done: watch::Sender<bool>) {
        let why = self.live(leaving).await;
        let _ = self.shared.closed.set(why.clone());
        let error = SendError::Closed(why.clone());
        self.receipts.fail(&error);
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Send(Outgoing { receipt, .. }) => {
                    if let Some((_, waiter)) = receipt {
                        waiter.fail(error.clone());
                    }
                }
                Command::Flush(reply) => _ = reply.send(Err(error.clone())),
            }
        }
        self.events.push(Event::Closed(why), 0);
        done.send_replace(true);
    }

    async fn live(&mut self, mut leaving: watch::Receiver<bool>) -> Disconnect {
        let (mut attempts, mut refusals) = (0, 0);
        let mut lost_since = Instant::now();
        loop {
            let why = match self.establish(&leaving).await {
                Err(Disconnect::Left) => return self.leave_suspended(&leaving).await,
                Ok(mut connection) => {
                    refusals = 0;
                    let opened = Instant::now();
                    let why = self.serve(&mut connection, &mut leaving).await;
                    if is_own(&why) {
                        // Without a Close frame, the session would be kept.
                        connection.leave(LEAVE_TIMEOUT).await;
                        return why;
                    }
                    lost_since = Instant::now();
                    if opened.elapsed() > STABLE_AFTER {
                        attempts = 0;
                    }
                    self.kept_until = self.ticket.as_ref().map(|it| lost_since + it.window);
                    why
                }
                Err(why) => why,
            };
            let asks_again = why.is_of_token() && self.options.token.is_fresh() && refusals == 0;
            if why.is_of_token() {
                refusals += 1;
            }
            let left = self
                .options
                .give_up_after
                .map(|it| it.saturating_sub(lost_since.elapsed()));
            let is_over = left.is_some_and(|it| it.is_zero());
            if (why.is_final() && !asks_again) || is_over {
                return why;
            }
            if self.ticket.is_none() {
                self.end_session();
            }
            let random = rand();
            let delay = retry::delay(
                self.options.delays,
                attempts,
                self.kept_for(),
                why.retry_after(),
                random,
            );
            // The last attempt comes when the time is over, whatever the server asks for.
            let delay = left.map_or(delay, |left| delay.min(left));
            attempts += 1;
            self.events.push(Event::Reconnecting { delay, why }, 0);
            tokio::select! {
                biased;
                () = asked_to_leave(&mut leaving) => return self.leave_suspended(&leaving).await,
                () = sleep(delay) => {}
            }
            if timeout(self.options.timeout, self.events.has_shrunk())
                .await
                .is_err()
            {
                return Disconnect::Overflow;
            }
        }
    }

    /// How much longer the session can be resumed, while there is no connection.
    fn kept_for(&self) -> Option<Duration> {
        let until = self.ticket.as_ref().and(self.kept_until)?;
        until.checked_duration_since(Instant::now())
    }

    /// Ends a session that waits to be resumed: it is resumed once more. Otherwise, the others would see it until the
    /// server gives it up.
    async fn leave_suspended(&mut self, leaving: &watch::Receiver<bool>) -> Disconnect {
        self.is_leaving = true;
        let is_kept = self.kept_for().is_some();
        if is_kept && let Ok(mut connection) = self.establish(leaving).await {
            self.leave(&mut connection);
            connection.leave(LEAVE_TIMEOUT).await;
        }
        Disconnect::Left
    }

    /// Queues what is left to send.
    fn leave(&mut self, connection: &mut Connection) {
        while let Ok(command) = self.commands.try_recv() {
            self.take(command, connection);
        }
    }

    /// Opens a connection, and resumes the session or begins another. Whoever wants to leave meanwhile has left.
    async fn establish(
        &mut self,
        leaving: &watch::Receiver<bool>,
    ) -> Result<Connection, Disconnect> {
        let limit = retry::attempt(self.options.timeout, self.kept_for());
        let deadline = Instant::now() + limit;
        let mut leaving = leaving.clone();
        let is_leaving = self.is_leaving;
        let mut connection = tokio::select! {
            biased;
            () = asked_to_leave(&mut leaving), if !is_leaving => return Err(Disconnect::Left),
            opened = timeout_at(deadline, self.connect(limit)) => match opened {
                Ok(opened) => opened?,
                Err(_) => return Err(Disconnect::Silent(limit)),
            },
        };
        // Now a session may have begun that can be resumed, so it ends with a Close frame: nobody would resume it.
        let left = tokio::select! {
            biased;
            () = asked_to_leave(&mut leaving), if !is_leaving => Disconnect::Left,
            entered = timeout_at(deadline, self.enter(&mut connection)) => match entered {
                Ok(Ok(())) => return Ok(connection),
                Ok(Err(why)) => why,
                Err(_) => Disconnect::Silent(limit),
            },
        };
        match left {
            // The session that waits to be resumed is left with another connection.
            Disconnect::Left if self.ticket.is_some() => {}
            _ if is_own(&left) => connection.leave(LEAVE_TIMEOUT).await,
            // The next attempt does not wait for a server that may be silent.
            _ if self.ticket.is_none() => _ = tokio::spawn(connection.leave(LEAVE_TIMEOUT)),
            _ => {}
        }
        Err(left)
    }

    async fn connect(&self, limit: Duration) -> Result<Connection, Disconnect> {
        let mut connect = self.options.connect.clone().timeout(limit);
        if let Some(token) = self.options.token.get(limit).await? {
            connect = connect.token(token);
        }
        if let Some(ticket) = &self.ticket {
            connect = connect.resume(ticket.token.clone(), self.received);
        }
        connect.open().await
    }

    /// Resumes the session, or begins another. The caller limits the time.
    async fn enter(&mut self, connection: &mut Connection) -> Result<(), Disconnect> {
        if self.ticket.is_some() {
            let frame = poll_fn(|cx| connection.poll_next(cx)).await?;
            if self.resumed(&frame, connection)? {
                return Ok(());
            }
            self.end_session();
            self.received = 1;
            if self.is_leaving {
                return Err(Disconnect::Left);
            }
            if self.options.is_wire {
                let bytes = frame.len();
                self.events.push(Event::Wire(frame), bytes);
            }
        } else {
            self.end_session();
        }
        self.begin(connection).await
    }

    /// Takes the first message of a connection that resumes a session. Returns whether the session goes on.
    fn resumed(&mut self, frame: &Frame, connection: &mut Connection) -> Result<bool, Disconnect> {
        let wrong = || Disconnect::Protocol("the answer to a resume has another form".into());
        let Frame::Text(text) = frame else {
            return Err(wrong());
        };
        let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|_| wrong())?;
        match &*envelope.kind {
            "error" => Ok(false),
            "resumed" => {
                let resumed: Resumed = envelope.read().ok_or_else(wrong)?;
                let freed = self.unconfirmed.confirm_exactly(resumed.received);
                self.shared.free(freed.ok_or_else(wrong)?);
                for message in self.unconfirmed.messages() {
                    connection.queue_message(message.clone());
                }
                self.unconfirmed_since = (!self.unconfirmed.is_empty()).then(Instant::now);
                self.open(true, Vec::new());
                Ok(true)
            }
            _ => Err(wrong()),
        }
    }

    /// Begins a session: says `hello`, and waits for the answer.
    async fn begin(&mut self, connection: &mut Connection) -> Result<(), Disconnect> {
        let data = serde_json::json!({ "resume": self.options.resumes });
        let hello = text("hello", SERVER, data, None).expect("a boolean is JSON");
        self.transmit(tungstenite::Message::text(hello), connection);
        // What comes before the answer: the session may not have begun for the application.
        let (mut early, mut early_bytes) = (Vec::new(), 0);
        loop {
            let frame = poll_fn(|cx| connection.poll_next(cx)).await?;
            self.received += 1;
            if self.options.is_wire {
                self.events.push(Event::Wire(frame.clone()), frame.len());
            }
            if let Frame::Text(text) = &frame {
                let envelope = envelope(text)?;
                if envelope.kind == "hello" && envelope.sender == SERVER {
                    let id = envelope.receiver.as_deref().unwrap_or_default().to_owned();
                    let hello: Hello = envelope
                        .read()
                        .ok_or_else(|| Disconnect::Protocol("hello has another form".into()))?;
                    self.welcome(id, hello, connection);
                    break;
                }
            }
            early_bytes += frame.len();
            if early_bytes > self.options.event_bytes {
                return Err(Disconnect::Cut(
                    "too much came before the list of peers".into(),
                ));
            }
            early.push(frame);
        }
        for frame in early {
            self.early(frame)?;
        }
        Ok(())
    }

    /// Takes the answer to `hello`: the session has begun.
    fn welcome(&mut self, id: String, hello: Hello, connection: &mut Connection) {
        // All that the client has sent so far.
        self.shared.free(self.unconfirmed.confirm(1));
        self.unconfirmed_since = None;
        self.id = id;
        self.room = hello.room;
        self.ticket = hello.resume.map(|resume| Ticket {
            window: resume.window(),
            token: resume.token,
        });
        self.known = hello.peers.iter().map(|peer| peer.id.clone()).collect();
        self.shared.set_message_limit(hello.limits.message_bytes);
        self.limits = hello.limits;
        self.ice_servers = hello.ice_servers;
        self.history = hello.history;
        self.open(false, hello.peers);
        for State {
            message, number, ..
        } in std::mem::take(&mut self.states)
        {
            let waiter = self.receipts.take(number).unwrap_or(Waiter::Nobody);
            let place = self.transmit(message.clone(), connection);
            self.receipts.add(number, place, waiter);
            self.states.push_back(State {
                message,
                number,
                is_accepted: false,
            });
        }
    }

    /// Tells the application that the room is open.
    fn open(&mut self, resumed: bool, peers: Vec<Peer>) {
        let bytes = peers.len() * ID_BYTES + self.lost.iter().map(Frame::len).sum::<usize>();
        let opened = Opened {
            id: self.id.clone(),
            room: self.room.clone(),
            resumed,
            peers,
            ice_servers: self.ice_servers.clone(),
            history: self.history,
            limits: self.limits.clone(),
            lost: std::mem::take(&mut self.lost),
        };
        self.events.push(Event::Opened(opened), bytes);
    }

    /// Takes what came before the list of peers, which is newer. The history has what was said to all by sessions that
    /// have left since only up to the joining.
    fn early(&mut self, frame: Frame) -> Result<(), Disconnect> {
        if self.options.is_wire {
            return Ok(());
        }
        let is_told = match &frame {
            Frame::Text(text) => {
                let envelope = envelope(text)?;
                let is_announced = (envelope.kind == "new"
                    && envelope.receiver.as_deref() == Some(ALL))
                    || envelope.receiver.is_none();
                let is_kept = self.history.is_some() && envelope.receiver.as_deref() == Some(ALL);
                let is_there = self.known.contains(&*envelope.sender) || envelope.sender == SERVER;
                !is_announced && (is_there || is_kept)
            }
            Frame::Binary(bytes) => sender(bytes).is_some_and(|(id, _)| self.known.contains(&id)),
        };
        match is_told {
            true => self.tell(frame),
            false => Ok(()),
        }
    }

    /// Forgets the session, and what was sent in it.
    fn end_session(&mut self) {
        self.ticket = None;
        self.kept_until = None;
        self.received = 0;
        self.known.clear();
        // The state is set again, and whoever waits for its receipt waits for that. The last one may be refused, so the
        // one before is, too.
        let last = self.states.pop_back();
        self.states.retain(|state| state.is_accepted);
        self.states.extend(last);
        let state = self.states.back().and_then(|State { number, .. }| {
            let waiter = self.receipts.take(*number);
            waiter.map(|waiter| (*number, waiter))
        });
        self.receipts.fail(&SendError::Lost);
        if let Some((number, waiter)) = state {
            self.receipts.add(number, 0, waiter);
        }
        for sent in self.unconfirmed.restart() {
            self.shared.free(sent.reserved);
            self.has_lost |= sent.kind != Kind::Own;
            if sent.kind == Kind::Unwatched {
                self.lost.push(match sent.message {
                    tungstenite::Message::Binary(bytes) => Frame::Binary(bytes),
                    message => Frame::Text(message.to_string()),
                });
            }
        }
        self.unconfirmed_since = None;
    }

    /// Serves a connection until it is lost or left.
    async fn serve(
        &mut self,
        connection: &mut Connection,
        leaving: &mut watch::Receiver<bool>,
    ) -> Disconnect {
        let mut has_senders = true;
        let mut full_since = None;
        loop {
            let reads = self.events.has_room();
            full_since = match reads {
                true => None,
                false => full_since.or_else(|| Some(Instant::now())),
            };
            let timer = match full_since {
                Some(since) => since + self.options.timeout,
                None => self.next_check(connection),
            };
            tokio::select! {
                biased;
                () = asked_to_leave(leaving) => {
                    self.leave(connection);
                    return Disconnect::Left;
                }
                command = self.commands.recv(), if has_senders => match command {
                    Some(command) => self.take(command, connection),
                    None => has_senders = false,
                },
                frame = drive(connection, reads) => {
                    let told = frame.and_then(|frame| {
                        self.received += 1;
                        self.tell(frame)
                    });
                    if let Err(why) = told {
                        return why;
                    }
                }
                () = self.events.has_shrunk(), if !reads => {}
                () = sleep_until(timer) => {
                    if full_since.is_some() {
                        return Disconnect::Overflow;
                    }
                    let silence = connection.heard().elapsed();
                    if silence >= self.options.idle_timeout + self.options.timeout {
                        return Disconnect::Silent(silence);
                    }
                    if !self.receipts.is_probing() {
                        self.probe(Vec::new(), connection);
                    }
                }
            }
        }
    }

    /// When to ask the server for a sign of life or what it has taken in, or to give the connection up.
    fn next_check(&self, connection: &Connection) -> Instant {
        let idle = connection.heard() + self.options.idle_timeout;
        if self.receipts.is_probing() {
            return idle + self.options.timeout;
        }
        let after = match self.is_much_queued() {
            true => Duration::ZERO,
            false => CONFIRM_AFTER,
        };
        let confirm = self.unconfirmed_since.map(|since| since + after);
        confirm.map_or(idle, |confirm| confirm.min(idle))
    }

    /// Sends a message of the client's own. Returns its place in the session.
    fn transmit(&mut self, message: tungstenite::Message, connection: &mut Connection) -> u64 {
        self.transmit_as(message, 0, Kind::Own, connection)
    }

    fn transmit_as(
        &mut self,
        message: tungstenite::Message,
        reserved: usize,
        kind: Kind,
        connection: &mut Connection,
    ) -> u64 {
        connection.queue_message(message.clone());
        self.unconfirmed_since.get_or_insert_with(Instant::now);
        self.unconfirmed.push(Sent {
            message,
            reserved,
            kind,
        })
    }

    /// Sends a `ping`, whose answer says that all before it has arrived.
    fn probe(&mut self, replies: Vec<Reply<u64>>, connection: &mut Connection) {
        let number = self.shared.next_reference();
        let reference = reference(number);
        let ping = text("ping", SERVER, &reference, Some(reference.clone()));
        let ping = tungstenite::Message::text(ping.expect("a string is JSON"));
        let place = self.transmit(ping, connection);
        self.receipts.add(number, place, Waiter::Probe(replies));
    }

    /// Does what the application asks for.
    fn take(&mut self, command: Command, connection: &mut Connection) {
        let outgoing = match command {
            Command::Send(outgoing) => outgoing,
            // What is lost is not taken in, however many sessions begin after it.
            Command::Flush(reply) if std::mem::take(&mut self.has_lost) => {
                let _ = reply.send(Err(SendError::Lost));
                return;
            }
            Command::Flush(reply) => return self.probe(vec![reply], connection),
        };
        let Outgoing {
            message,
            reserved,
            receipt,
            is_state,
        } = outgoing;
        // It was queued before the limit was known.
        if let Err(error) = self.shared.check_length(message.len()) {
            self.shared.free(reserved);
            match receipt {
                Some((_, waiter)) => waiter.fail(error),
                None => {
                    let event = Event::Error {
                        code: "message_too_large".into(),
                        message: error.to_string(),
                        reference: raw_reference(&message),
                    };
                    self.events.push(event, 0);
                }
            }
            return;
        }
        if is_state && let Some((number, _)) = &receipt {
            self.states.push_back(State {
                message: message.clone(),
                number: *number,
                is_accepted: false,
            });
        }
        let kind = match &receipt {
            // The next session sets it again.
            Some(_) if is_state => Kind::Own,
            Some(_) => Kind::Watched,
            None => Kind::Unwatched,
        };
        let place = self.transmit_as(message, reserved, kind, connection);
        if let Some((number, waiter)) = receipt {
            self.receipts.add(number, place, waiter);
        }
    }

    /// Whether so much is not acknowledged that the server is asked at once.
    fn is_much_queued(&self) -> bool {
        self.shared.queued() > self.shared.limit() / CONFIRM_SHARE
    }

    /// Takes a message of an open session.
    fn tell(&mut self, frame: Frame) -> Result<(), Disconnect> {
        let text = match frame {
            Frame::Text(text) => text,
            Frame::Binary(bytes) if self.options.is_wire => {
                let length = bytes.len();
                self.events.push(Event::Wire(Frame::Binary(bytes)), length);
                return Ok(());
            }
            Frame::Binary(bytes) => {
                let (sender, bytes) = sender(&bytes)
                    .ok_or_else(|| Disconnect::Protocol("a binary message has no sender".into()))?;
                let length = bytes.len();
                self.events.push(Event::Bytes { sender, bytes }, length);
                return Ok(());
            }
        };
        let envelope = envelope(&text)?;
        let length = text.len();
        if envelope.sender != SERVER {
            let event = match self.options.is_wire {
                true => Event::Wire(Frame::Text(text)),
                false => self.of_peer(&envelope),
            };
            self.events.push(event, length);
            return Ok(());
        }
        let is_own = self.is_own(&envelope);
        let event = self.of_server(&envelope);
        match event {
            _ if self.options.is_wire && !is_own => {
                self.events.push(Event::Wire(Frame::Text(text)), length);
            }
            Some(event) if !self.options.is_wire => self.events.push(event, length),
            _ => {}
        }
        Ok(())
    }

    /// What a message of another session is.
    fn of_peer(&mut self, envelope: &Envelope<'_>) -> Event {
        let sender = envelope.sender.as_ref();
        match (&*envelope.kind, envelope.receiver.as_deref()) {
            // A session may send a message of this type itself, which announces nothing.
            ("new", Some(ALL)) if self.known.insert(sender.into()) => Event::Joined(Peer {
                id: sender.into(),
                data: envelope.data.to_owned(),
                state: Box::default(),
            }),
            ("close", None) => {
                self.known.remove(sender);
                Event::Left { id: sender.into() }
            }
            ("state", None) => Event::State {
                id: sender.into(),
                state: envelope.data.to_owned(),
            },
            _ => Event::Message(envelope.message()),
        }
    }

    /// Whether a message of the server answers one of the client's own.
    fn is_own(&self, envelope: &Envelope<'_>) -> bool {
        match &*envelope.kind {
            "pong" => {
                let data = envelope.read().as_ref().and_then(number);
                data.is_some_and(|number| self.receipts.is_probe(number))
            }
            "ack" | "error" => {
                let problem = envelope.read::<serde_json::Value>().unwrap_or_default();
                number(&problem["ref"]).is_some_and(|number| self.receipts.is_own(number))
            }
            _ => false,
        }
    }

    /// Takes a message of the server. Returns what the application gets.
    fn of_server(&mut self, envelope: &Envelope<'_>) -> Option<Event> {
        match &*envelope.kind {
            "ack" => {
                if let Some(ack) = envelope.read::<Ack>()
                    && let Some(number) = number(&ack.reference)
                    && self.settle(number, Ok(ack.receivers))
                {
                    return None;
                }
            }
            "error" => {
                if let Some(problem) = envelope.read::<Problem>() {
                    let Problem {
                        code,
                        message,
                        reference,
                    } = problem;
                    if let Some(number) = number(&reference) {
                        let error = SendError::Rejected {
                            code: code.clone(),
                            message: message.clone(),
                        };
                        if self.settle(number, Err(error)) {
                            return None;
                        }
                    }
                    return Some(Event::Error {
                        code,
                        message,
                        reference,
                    });
                }
            }
            "pong" if self.is_own(envelope) => return None,
            "history" => {
                return self
                    .receipts
                    .history(envelope.message())
                    .map(Event::Message);
            }
            _ => {}
        }
        self.receipts
            .answered(envelope.message())
            .map(Event::Message)
    }

    /// Takes a receipt or an error. Returns whether its number is known.
    fn settle(&mut self, number: u64, result: Result<u64, SendError>) -> bool {
        if let Some(index) = self.states.iter().position(|it| it.number == number) {
            match result.is_ok() {
                true => {
                    self.states.drain(..index);
                    self.states[0].is_accepted = true;
                }
                // The server keeps the one before.
                false => _ = self.states.remove(index),
            }
        }
        let Some(place) = self.receipts.settle(number, result) else {
            return false;
        };
        self.shared.free(self.unconfirmed.confirm(place));
        self.unconfirmed_since = match self.unconfirmed.is_empty() {
            true => None,
            false => Some(Instant::now()),
        };
        true
    }
}

/// Whether the client itself ends the connection for good.
fn is_own(why: &Disconnect) -> bool {
    matches!(
        why,
        Disconnect::Left | Disconnect::Overflow | Disconnect::Protocol(_)
    )
}

/// Resolves when the application wants to leave, or has dropped both halves.
async fn asked_to_leave(leaving: &mut watch::Receiver<bool>) {
    let _ = leaving.wait_for(|is_leaving| *is_leaving).await;
}

/// Writes what is queued, and resolves with the next message if messages are read.
async fn drive(connection: &mut Connection, reads: bool) -> Result<Frame, Disconnect> {
    poll_fn(|cx| match reads {
        true => connection.poll_next(cx),
        false => {
            let _ = connection.poll_flush(cx);
            Poll::Pending
        }
    })
    .await
}

fn envelope(text: &str) -> Result<Envelope<'_>, Disconnect> {
    serde_json::from_str(text)
        .map_err(|_| Disconnect::Protocol("a message has not the four fields".into()))
}

/// The `ref` of a raw message, or `null`.
fn raw_reference(message: &tungstenite::Message) -> serde_json::Value {
    let text = message.to_text().unwrap_or_default();
    let raw = serde_json::from_str::<Referring>(text);
    raw.map(|it| it.reference).unwrap_or_default()
}

/// The sender of a binary message, and its bytes.
fn sender(message: &bytes::Bytes) -> Option<(String, bytes::Bytes)> {
    let id = message.get(..ID_BYTES)?;
    let id = Uuid::from_slice(id).ok()?;
    Some((id.to_string(), message.slice(ID_BYTES..)))
}

/// A random number from 0 to 1. It need not be a good one: it spreads clients.
fn rand() -> f64 {
    let bits = Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}
