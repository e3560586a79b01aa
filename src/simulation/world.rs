//! The nodes and clients of a run, and what a client does: it connects, comes back when it has lost its
//! connection, sends again what was not taken in, and counts.

use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    bus::{Bus, Link},
    schedule::{Action, KEPT_ROOM, Kind, Schedule, Target},
    session_log::{End, SessionLog, To},
    stream::Wire,
};
use crate::{
    config::Config,
    server::{Anteroom, InMemoryServer},
};

/// How long a client waits for the first answer on a new connection.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a node may be silent before it is down, in seconds.
pub(super) const DOWN_SECONDS: u64 = 3;

/// How long a session without a connection is kept, in seconds.
pub(super) const RESUME_SECONDS: u64 = 12;

/// How long a node that stops waits for its clients, in seconds.
pub(super) const DRAIN_SECONDS: u64 = 10;

/// The code with which a client ends a session.
const NORMAL: u16 = 1000;

/// A handle to everything.
#[derive(Clone)]
pub(super) struct World {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) bus: Bus,
    pub(super) kind: Kind,
    started: Instant,
}

pub(super) struct State {
    pub(super) nodes: Vec<Node>,
    pub(super) clients: Vec<Client>,
    pub(super) sessions: Vec<SessionLog>,
    /// The promises that were broken.
    pub(super) violations: Vec<(&'static str, String)>,
    trace: DefaultHasher,
    /// The trace as text, where somebody wants to read it.
    pub(super) text: Option<String>,
}

pub(super) struct Node {
    /// `None` once it has stopped or died.
    server: Option<InMemoryServer>,
    pub(super) anteroom: Anteroom,
    pub(super) is_up: bool,
    /// The connections of its clients.
    wires: Vec<Wire>,
}

pub(super) struct Client {
    random: StdRng,
    /// Whether it wants to be in a room, and whether its sessions are to be resumable.
    pub(super) wants: Option<(usize, bool)>,
    /// Its session.
    pub(super) session: Option<usize>,
    connections: Vec<Connection>,
    /// The number of the connection on which its session goes on.
    current: Option<usize>,
    next_connection: usize,
    /// Whether it is about to connect.
    is_connecting: bool,
    /// Whether it has connected several times at once: then one of them may fail.
    is_hasty: bool,
}

struct Connection {
    number: usize,
    node: usize,
    wire: Wire,
    /// The session whose messages it carries, once it is known.
    session: Option<usize>,
    /// The session that it is to resume.
    resumes: Option<usize>,
    /// How many messages of the session have come, with those of earlier connections.
    place: usize,
    /// The next message to send.
    next: usize,
    is_closing: bool,
    /// When it was opened, in milliseconds.
    opened: u64,
}

impl World {
    pub(super) fn new(schedule: &Schedule, with_text: bool) -> World {
        let state = State {
            nodes: Vec::new(),
            clients: (0..schedule.clients)
                .map(|client| Client::new(schedule.seed, client))
                .collect(),
            sessions: Vec::new(),
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            text: with_text.then(String::new),
        };
        World {
            state: Arc::new(Mutex::new(state)),
            bus: Bus::new(schedule.seed, schedule.servers),
            kind: schedule.kind,
            started: Instant::now(),
        }
    }

    /// The time since the beginning, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// A hash of all that the clients have seen, and when.
    pub(super) fn trace(&self) -> u64 {
        self.state.lock().trace.finish()
    }

    pub(super) fn note(&self, state: &mut State, what: &str) {
        let now = self.now();
        (now, what).hash(&mut state.trace);
        if let Some(text) = &mut state.text {
            let _ = writeln!(text, "{now:>7}  {what}");
        }
    }

    /// Notes that a promise is broken: the kind, and the details.
    pub(super) fn violation(&self, state: &mut State, class: &'static str, what: String) {
        self.note(state, &format!("VIOLATION {class}: {what}"));
        state.violations.push((class, what));
    }

    /// Starts a node.
    pub(super) fn start_node(&self) {
        let mut config = Config::default();
        config.cluster.down_seconds = DOWN_SECONDS;
        config.liveness.resume_seconds = RESUME_SECONDS;
        config.liveness.ping_seconds = 3;
        config.liveness.pong_seconds = 3;
        config.stopping.drain_seconds = DRAIN_SECONDS;
        config.limits.max_sessions = Some(1000);
        config.history.rooms = vec![KEPT_ROOM.to_string()];
        let index = self.state.lock().nodes.len();
        let transport = self.bus.transport(index);
        let anteroom = Anteroom::with_transport(config, Some(transport)).unwrap();
        let node = Node {
            server: Some(InMemoryServer::new(&anteroom)),
            anteroom,
            is_up: true,
            wires: Vec::new(),
        };
        let mut state = self.state.lock();
        state.nodes.push(node);
        let id = state.nodes[index].shared().cluster.as_ref().unwrap();
        let id = id.outbound.node();
        self.note(&mut state, &format!("node {index} starts: {id}"));
    }

    /// Does an action.
    pub(super) fn act(&self, action: &Action) {
        let mut state = self.state.lock();
        self.note(&mut state, &format!("{action:?}"));
        let (clients, nodes) = (state.clients.len(), state.nodes.len());
        match action {
            Action::Join {
                client,
                room,
                node,
                is_resumable,
            } => {
                let client = client % clients;
                if state.clients[client].wants.is_none() {
                    state.clients[client].wants = Some((*room, *is_resumable));
                    self.connect(&mut state, client, node % nodes);
                }
            }
            Action::Say {
                client,
                to,
                count,
                has_ref,
            } => {
                for _ in 0..*count {
                    self.say(&mut state, client % clients, *to, *has_ref);
                }
            }
            Action::Hello { client } => {
                drop(state);
                self.hello(client % clients);
            }
            Action::Leave { client } => self.leave(&mut state, client % clients),
            Action::Vanish { client } => {
                let client = client % clients;
                state.clients[client].wants = None;
                if let Some(session) = state.clients[client].session.take() {
                    state.sessions[session].end = Some(End::Lost);
                }
                let State {
                    clients, sessions, ..
                } = &mut *state;
                for connection in &clients[client].connections {
                    connection.wire.cut(Some(0), Some(0));
                    connection.wire.break_client();
                    connection.wire.break_node();
                    // Its node may not have read all that has reached it.
                    let session = connection.session;
                    let session = session.map(|session| &mut sessions[session]);
                    if let Some(Some(End::Left(is_whole))) = session.map(|it| &mut it.end) {
                        *is_whole = false;
                    }
                }
            }
            Action::Cut {
                client,
                up,
                down,
                node_notices,
                client_notices,
            } => {
                if let Some(connection) = state.clients[client % clients].connections.last() {
                    let wire = connection.wire.clone();
                    wire.cut(*up, *down);
                    if let Some(after) = *node_notices {
                        let wire = wire.clone();
                        later(after, move || wire.break_node());
                    }
                    later(*client_notices, move || {
                        wire.break_client();
                        // Nothing comes through any more, in either direction.
                        wire.cut(Some(0), Some(0));
                    });
                }
            }
            Action::Reconnect {
                client,
                nodes: through,
            } => {
                let client = client % clients;
                let has_token = state.clients[client]
                    .session
                    .is_some_and(|session| state.sessions[session].token.is_some());
                if has_token {
                    state.clients[client].is_hasty = true;
                    for node in through {
                        self.connect(&mut state, client, node % nodes);
                    }
                }
            }
            Action::Start => {
                drop(state);
                self.start_node();
            }
            Action::Stop { node } => {
                let node = node % nodes;
                if state.nodes[node].is_up && state.nodes.iter().filter(|it| it.is_up).count() > 1 {
                    state.nodes[node].is_up = false;
                    self.stop(&mut state, node, true);
                }
            }
            Action::Kill { node } => {
                let node = node % nodes;
                if state.nodes[node].is_up && state.nodes.iter().filter(|it| it.is_up).count() > 1 {
                    state.nodes[node].is_up = false;
                    self.bus.kill(node);
                    for wire in &state.nodes[node].wires {
                        wire.cut(Some(0), Some(0));
                        wire.break_client();
                        wire.break_node();
                    }
                    self.stop(&mut state, node, false);
                }
            }
            Action::Stall { node, time } => {
                let node = node % nodes;
                let time = *time;
                let duration = Duration::from_millis(time);
                self.bus.block(Link::Up(node), duration);
                self.bus.block(Link::Down(node), duration);
                for wire in state.nodes[node].wires.clone() {
                    wire.stall(true);
                    later(time, move || wire.stall(false));
                }
            }
            Action::Block { link, time } => {
                let time = Duration::from_millis(*time);
                self.bus.block(self.real_link(*link, nodes), time);
            }
            Action::Disturb {
                link,
                skip,
                count,
                copied,
            } => {
                let link = self.real_link(*link, nodes);
                self.bus.disturb(link, *skip, *count, *copied);
            }
            Action::Reset { node } => self.bus.reset(node % nodes),
            Action::Outage { server, time } => {
                let time = Duration::from_millis(*time);
                let count = self.bus.count_servers();
                match server {
                    Some(server) => self.bus.stop_server(server % count, time),
                    None => (0..count).for_each(|server| self.bus.stop_server(server, time)),
                }
            }
        }
    }

    fn real_link(&self, link: Link, nodes: usize) -> Link {
        let count = self.bus.count_servers();
        match link {
            Link::Up(node) => Link::Up(node % nodes),
            Link::Down(node) => Link::Down(node % nodes),
            Link::Route(from, to) => Link::Route(from % count, to % count),
        }
    }

    /// Stops a node. It keeps resumable sessions until their clients have come back, unless it is cut off.
    fn stop(&self, state: &mut State, node: usize, is_reachable: bool) {
        for client in 0..state.clients.len() {
            let this = &state.clients[client];
            let is_coming = this
                .connections
                .iter()
                .any(|connection| connection.node == node);
            let is_kept = is_reachable && this.wants.is_some_and(|(_, is_resumable)| is_resumable);
            if let Some(session) = this.session
                && !is_kept
                && (is_coming || state.sessions[session].node == node)
            {
                state.sessions[session].is_doomed = true;
            }
        }
        let anteroom = state.nodes[node].anteroom.clone();
        let (world, index) = (self.clone(), node);
        tokio::spawn(async move {
            anteroom.shut_down().await;
            let mut state = world.state.lock();
            state.nodes[index].server = None;
            world.note(&mut state, &format!("node {index} has stopped"));
        });
    }

    /// Stops all nodes.
    pub(super) fn stop_all(&self) {
        let state = &mut *self.state.lock();
        for node in 0..state.nodes.len() {
            if state.nodes[node].is_up {
                state.nodes[node].is_up = false;
                self.stop(state, node, false);
            }
        }
    }

    /// Adds a client and returns its number.
    pub(super) fn add_client(&self) -> usize {
        let state = &mut *self.state.lock();
        let number = state.clients.len();
        state.clients.push(Client::new(0, number));
        number
    }

    /// Two clients with sessions in one room, on different nodes.
    pub(super) fn apart(&self) -> Option<(usize, usize)> {
        let state = self.state.lock();
        let place = |client: usize| {
            let session = state.clients[client].session?;
            let log = &state.sessions[session];
            state.clients[client]
                .is_connected()
                .then_some((log.room, log.node))
        };
        let clients = 0..state.clients.len();
        let mut pairs = clients
            .clone()
            .flat_map(|one| clients.clone().map(move |other| (one, other)));
        pairs.find(|(one, other)| match (place(*one), place(*other)) {
            (Some((room, node)), Some((same, another))) => room == same && node != another,
            _ => false,
        })
    }

    /// Has a client ask who is there, and what was said before.
    pub(super) fn hello(&self, client: usize) {
        let state = &mut *self.state.lock();
        if let Some(session) = state.clients[client].session {
            let log = &mut state.sessions[session];
            log.say("hello", None, false, r#"{"resume":true}"#);
            if log.room == KEPT_ROOM {
                log.say("history", None, false, r#"{"last":1000}"#);
            }
            state.clients[client].send_waiting(&state.sessions);
        }
    }

    pub(super) fn say(&self, state: &mut State, client: usize, to: Target, has_ref: bool) {
        let Some(session) = state.clients[client].session else {
            return;
        };
        let log = &mut state.sessions[session];
        let to = match to {
            Target::All => To::All,
            Target::State => {
                log.set_state(has_ref);
                return state.clients[client].send_waiting(&state.sessions);
            }
            Target::Itself => match &log.id {
                Some(id) => To::One(id.clone()),
                None => return,
            },
            Target::Peer(number) => {
                let count = log.view.peers.len().max(1);
                match log.view.peers.iter().nth(number % count) {
                    Some(id) => To::One(id.clone()),
                    None => return,
                }
            }
        };
        log.say("say", Some(to), has_ref, "");
        state.clients[client].send_waiting(&state.sessions);
    }

    pub(super) fn leave(&self, state: &mut State, client: usize) {
        let this = &mut state.clients[client];
        this.wants = None;
        let Some(session) = this.session.take() else {
            return;
        };
        let current = this.current;
        let is_whole = this.connections.iter().any(|connection| {
            Some(connection.number) == current
                && connection.wire.is_whole()
                && connection.next == state.sessions[session].sent.len()
        });
        let log = &mut state.sessions[session];
        log.end = Some(match current {
            Some(_) => End::Left(is_whole),
            // Nobody has told the server.
            None => End::Lost,
        });
        for connection in &mut this.connections {
            connection.close();
        }
    }

    /// Has a client connect through a node, or another one if that is not up.
    fn connect(&self, state: &mut State, client: usize, node: usize) {
        let up: Vec<usize> = (0..state.nodes.len())
            .filter(|node| state.nodes[*node].is_up)
            .collect();
        let node = if up.contains(&node) {
            node
        } else {
            up[node % up.len()]
        };
        let this = &mut state.clients[client];
        let Some((room, is_resumable)) = this.wants else {
            return;
        };
        let number = this.next_connection;
        this.next_connection += 1;
        let session = this.session;
        let resumes = session.filter(|session| state.sessions[*session].token.is_some());
        let (query, place) = match resumes {
            Some(session) => {
                let log = &state.sessions[session];
                let token = log.token.as_deref().unwrap_or_default();
                let place = log.received.len();
                (format!("?resume={token}&received={place}"), place)
            }
            None => (String::new(), 0),
        };
        let wire = Wire::new();
        state.nodes[node].wires.push(wire.clone());
        let server = state.nodes[node].server.as_ref();
        let address = SocketAddr::from(([10, client as u8, 0, 1], 1000 + number as u16));
        server.unwrap().serve(wire.node_end(), address);
        let request = format!(
            "GET /room/{room}{query} HTTP/1.1\r\nHost: simulation\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        wire.send(request.as_bytes());
        self.note(
            state,
            &format!("client {client} connects to node {node} as {number}, resumes {resumes:?}"),
        );
        let opened = self.now();
        let this = &mut state.clients[client];
        this.connections.push(Connection {
            number,
            node,
            wire: wire.clone(),
            session: None,
            resumes,
            place,
            next: 0,
            is_closing: false,
            opened,
        });
        tokio::spawn(self.clone().serve(client, number, wire, room, is_resumable));
        // A client does not wait for ever.
        let world = self.clone();
        tokio::spawn(async move {
            sleep(PATIENCE).await;
            let state = world.state.lock();
            let mut connections = state.clients[client].connections.iter();
            if let Some(connection) = connections.find(|it| it.number == number)
                && connection
                    .session
                    .is_none_or(|session| state.sessions[session].id.is_none())
            {
                connection.wire.break_client();
                connection.wire.break_node();
            }
        });
    }

    /// Serves a connection of a client to its end.
    async fn serve(
        self,
        client: usize,
        number: usize,
        wire: Wire,
        room: usize,
        is_resumable: bool,
    ) {
        let mut bytes = Vec::new();
        let mut is_upgraded = false;
        'connection: while let Some(more) = wire.receive().await {
            bytes.extend(more);
            if !is_upgraded {
                let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
                    continue;
                };
                let head: Vec<u8> = bytes.drain(..end + 4).collect();
                let status = String::from_utf8_lossy(&head[9..12]).into_owned();
                let mut state = self.state.lock();
                self.note(
                    &mut state,
                    &format!("client {client}/{number} gets {status}"),
                );
                if status != "101" {
                    break;
                }
                is_upgraded = true;
                self.upgraded(&mut state, client, number, room, is_resumable);
            }
            while let Some((opcode, payload)) = take_frame(&mut bytes) {
                let mut state = self.state.lock();
                let text = String::from_utf8_lossy(&payload);
                self.note(
                    &mut state,
                    &format!("client {client}/{number} < {opcode:x} {text}"),
                );
                match opcode {
                    0x1 => self.receive(&mut state, client, number, &text, is_resumable),
                    0x9 => wire.send(&frame(0xa, &payload)),
                    0x8 => {
                        wire.send(&frame(0x8, &payload[..payload.len().min(2)]));
                        wire.close();
                        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                        self.closed(&mut state, client, number, code);
                        break 'connection;
                    }
                    _ => self.violation(&mut state, "a strange frame", format!("{opcode:x}")),
                }
            }
        }
        wire.close();
        let mut state = self.state.lock();
        self.note(&mut state, &format!("client {client}/{number} has ended"));
        self.ended(&mut state, client, number);
    }

    fn upgraded(
        &self,
        state: &mut State,
        client: usize,
        number: usize,
        room: usize,
        is_resumable: bool,
    ) {
        let Some(connection) = state.clients[client].connection(number) else {
            return;
        };
        if connection.resumes.is_none() && !connection.is_closing {
            self.begin(state, client, number, room, is_resumable);
        }
    }

    /// A new session begins on a connection.
    fn begin(
        &self,
        state: &mut State,
        client: usize,
        number: usize,
        room: usize,
        is_resumable: bool,
    ) {
        let session = state.sessions.len();
        let connection = state.clients[client].connection(number);
        let (node, opened) = connection.map_or((0, 0), |it| (it.node, it.opened));
        let mut log = SessionLog::new(room, opened);
        log.node = node;
        let data = format!(r#"{{"resume":{is_resumable}}}"#);
        log.say("hello", None, false, &data);
        state.sessions.push(log);
        let this = &mut state.clients[client];
        let Some(connection) = this.connections.iter_mut().find(|it| it.number == number) else {
            return;
        };
        connection.session = Some(session);
        connection.place = 0;
        connection.next = 0;
        let is_wanted = this.session.is_none() && this.wants == Some((room, is_resumable));
        if is_wanted {
            this.session = Some(session);
            this.current = Some(number);
            this.is_hasty = false;
            this.send_waiting(&state.sessions);
        } else {
            // The client has another session already, or wants none any more.
            connection.close();
            state.sessions[session].end = Some(End::Left(false));
        }
    }

    /// A message has come on a connection.
    fn receive(
        &self,
        state: &mut State,
        client: usize,
        number: usize,
        text: &str,
        is_resumable: bool,
    ) {
        let Some(connection) = state.clients[client].connection(number) else {
            return;
        };
        if connection.session.is_none() {
            let Some(session) = connection.resumes else {
                return self.violation(state, "a message before a session", text.to_owned());
            };
            let message: Value = serde_json::from_str(text).unwrap_or_default();
            let room = state.sessions[session].room;
            if message["type"] == "resumed" {
                return self.resumed(state, client, number, session, &message);
            }
            if message["data"]["code"] != "resume_failed" {
                return self.violation(state, "not an answer to a resume", text.to_owned());
            }
            self.resume_failed(state, client, session);
            self.begin(state, client, number, room, is_resumable);
        }
        let Some(connection) = state.clients[client].connection(number) else {
            return;
        };
        let Some(session) = connection.session else {
            return;
        };
        let place = connection.place;
        connection.place += 1;
        let log = &mut state.sessions[session];
        let checked = match log.received.get(place) {
            Some(before) if before == text => Ok(()),
            Some(before) => Err((
                "another message than before",
                format!("{place}: {text} {before}"),
            )),
            None if place > log.received.len() => Err(("a gap", format!("{place}"))),
            None => log.receive(text, self.now(), self.kind),
        };
        if let Err((class, what)) = checked {
            let id = log.id.clone().unwrap_or_default();
            self.violation(
                state,
                class,
                format!("client {client}, session {id}: {what}"),
            );
        }
    }

    fn resumed(
        &self,
        state: &mut State,
        client: usize,
        number: usize,
        session: usize,
        message: &Value,
    ) {
        let log = &mut state.sessions[session];
        let taken_in = message["data"]["received"].as_u64().unwrap_or(u64::MAX) as usize;
        if taken_in > log.sent.len() || taken_in < log.taken_in {
            let (least, most) = (log.taken_in, log.sent.len());
            let what = format!("{taken_in}, not {least} to {most}");
            return self.violation(state, "a wrong count in `resumed`", what);
        }
        if message["receiver"].as_str() != log.id.as_deref() {
            return self.violation(state, "`resumed` of another session", message.to_string());
        }
        log.taken_in = taken_in;
        let this = &mut state.clients[client];
        let is_wanted = this.session == Some(session);
        let Some(connection) = this.connection(number) else {
            return;
        };
        connection.session = Some(session);
        connection.next = taken_in;
        state.sessions[session].node = connection.node;
        if is_wanted {
            this.current = Some(number);
            this.send_waiting(&state.sessions);
        } else {
            // The client has left in the meantime.
            connection.close();
        }
    }

    fn resume_failed(&self, state: &mut State, client: usize, session: usize) {
        let this = &mut state.clients[client];
        if this.session != Some(session) {
            return;
        }
        let has_other = this.connections.iter().any(|it| {
            it.session == Some(session) || it.resumes == Some(session) && it.session.is_none()
        });
        if this.is_hasty && has_other && this.current.is_some() {
            return;
        }
        this.session = None;
        this.current = None;
        let is_hasty = this.is_hasty;
        state.sessions[session].end = Some(End::Lost);
        let log = &state.sessions[session];
        let is_late = log
            .lost
            .is_some_and(|lost| self.now() - lost > (RESUME_SECONDS - 4) * 1000);
        if self.kind == Kind::Calm && !is_hasty && !log.is_doomed && !is_late {
            let id = log.id.clone().unwrap_or_default();
            self.violation(state, "a client cannot resume", format!("{client}: {id}"));
        }
    }

    /// The server has sent a Close frame.
    fn closed(&self, state: &mut State, client: usize, number: usize, code: Option<u16>) {
        let this = &mut state.clients[client];
        let Some(connection) = this.connection(number) else {
            return;
        };
        let session = connection.session;
        let ends = match code {
            // The connection alone is given up, if the session can be resumed.
            Some(1001 | 1008 | 1012 | 1013) => false,
            // It answers the client's own.
            Some(NORMAL) | None => return,
            Some(_) => true,
        };
        if let Some(End::Left(is_whole)) =
            session.and_then(|session| state.sessions[session].end.as_mut())
        {
            // The node was the first to close, and has read nothing more.
            *is_whole = false;
        }
        if ends
            && let Some(session) = session
            && this.session == Some(session)
        {
            this.session = None;
            this.current = None;
            state.sessions[session].end = Some(End::Closed);
        }
        if ends {
            self.violation(state, "closed by the server", format!("{client}: {code:?}"));
        }
    }

    /// A connection has ended.
    fn ended(&self, state: &mut State, client: usize, number: usize) {
        let this = &mut state.clients[client];
        let Some(index) = this.connections.iter().position(|it| it.number == number) else {
            return;
        };
        let connection = this.connections.remove(index);
        state.nodes[connection.node]
            .wires
            .retain(|wire| !wire.is_same(&connection.wire));
        if this.current == Some(number) {
            this.current = None;
            if let Some(session) = this.session {
                state.sessions[session].lost = Some(self.now());
            }
        }
        if let Some(session) = connection.session
            && this.session == Some(session)
            && this.current.is_none()
            && state.sessions[session].token.is_none()
        {
            // The session cannot be resumed.
            state.sessions[session].end = Some(End::Lost);
            this.session = None;
        }
        self.come_back(state, client);
    }

    /// Has a client connect after a while that has no connection and wants one.
    pub(super) fn come_back(&self, state: &mut State, client: usize) {
        let this = &mut state.clients[client];
        if this.wants.is_none() || !this.connections.is_empty() || this.is_connecting {
            return;
        }
        this.is_connecting = true;
        let delay = this.random.random_range(0..1500);
        let node = this.random.random_range(0..64);
        let world = self.clone();
        later(delay, move || {
            let mut state = world.state.lock();
            let this = &mut state.clients[client];
            this.is_connecting = false;
            if this.connections.is_empty() {
                let nodes = state.nodes.len();
                world.connect(&mut state, client, node % nodes);
            }
        });
    }
}

impl Node {
    pub(super) fn shared(&self) -> &crate::state::Shared {
        self.server.as_ref().unwrap().shared()
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.server.is_none()
    }
}

impl Client {
    fn new(seed: u64, number: usize) -> Client {
        Client {
            random: StdRng::seed_from_u64(seed.wrapping_mul(31) + number as u64),
            wants: None,
            session: None,
            connections: Vec::new(),
            current: None,
            next_connection: 0,
            is_connecting: false,
            is_hasty: false,
        }
    }

    /// Whether its session has a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.session.is_some() && self.current.is_some()
    }

    fn connection(&mut self, number: usize) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|it| it.number == number)
    }

    /// Sends what waits.
    pub(super) fn send_waiting(&mut self, sessions: &[SessionLog]) {
        let (current, session) = (self.current, self.session);
        let Some(session) = session else {
            return;
        };
        if let Some(number) = current
            && let Some(connection) = self.connection(number)
            && connection.session == Some(session)
            && !connection.is_closing
        {
            for sent in &sessions[session].sent[connection.next..] {
                connection.wire.send(&frame(0x1, sent.text.as_bytes()));
            }
            connection.next = sessions[session].sent.len();
        }
    }
}

impl Connection {
    fn close(&mut self) {
        if !self.is_closing {
            self.is_closing = true;
            self.wire.send(&frame(0x8, &NORMAL.to_be_bytes()));
        }
    }
}

/// Does something after so many milliseconds.
fn later(after: u64, what: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        sleep(Duration::from_millis(after)).await;
        what();
    });
}

/// A frame of a client, masked with zeros (RFC 6455, section 5.2).
pub(super) fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Takes the opcode and the payload of the first frame, if it is there as a whole.
pub(super) fn take_frame(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&opcode, &length) = (bytes.first()?, bytes.get(1)?);
    let (start, length) = match length {
        126 => {
            let length = [*bytes.get(2)?, *bytes.get(3)?];
            (4, u16::from_be_bytes(length) as usize)
        }
        127 => {
            let length = bytes.get(2..10)?.first_chunk()?;
            (10, u64::from_be_bytes(*length) as usize)
        }
        length => (2, length as usize),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    bytes.drain(..start + length);
    Some((opcode & 0xf, payload))
}
