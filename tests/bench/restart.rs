//! A restart of the server under thousands of sessions, compared to Socket.IO's connection state recovery, and as
//! many sessions that join a new server at once.

use std::{
    collections::VecDeque,
    fmt::{self, Display},
    fs,
    io::{self, ErrorKind},
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    Plan,
    dialect::{Dialect, Text},
    redis::Redis,
    report::Table,
    servers::{Kind, Server, on_server_core},
    swarm::{self, CLOSE, Connection, PING, PONG, Swarm, TEXT, next_frame, text_frame},
    take_a_core,
    works::CONNECTING,
};

/// The number of sessions in a room.
const SIZE: usize = 5;

/// How long the sessions may take to join, the server to stop, and the sessions to resume.
const PATIENCE: Duration = Duration::from_secs(900);

/// How long nothing may arrive until messages that have not are missing.
const SILENCE: Duration = Duration::from_secs(5);

/// A server that takes longer than this for a restart is restarted only in the first round.
const LONG: Duration = Duration::from_secs(60);

/// The length of `data` in a greeting, in bytes.
const DATA_BYTES: usize = 100;

/// The most bytes that one read takes.
const READ_BYTES: usize = 64 * 1024;

/// When a room is sent a message.
#[derive(Clone, Copy)]
enum Moment {
    /// Before the restart.
    Before,
    /// When the server is told to stop.
    Stopping,
    /// When the sender is back, and others in the room may not be.
    Resuming,
}

impl Moment {
    const ALL: [Moment; 3] = [Moment::Before, Moment::Stopping, Moment::Resuming];

    /// The type of the message.
    fn kind(self) -> &'static str {
        match self {
            Moment::Before => "before",
            Moment::Stopping => "stopping",
            Moment::Resuming => "resuming",
        }
    }
}

/// How sessions outlive their server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// anteroom with `--sessions-file`.
    Anteroom,
    /// Socket.IO with connection state recovery in Redis.
    SocketIo,
}

impl Way {
    /// The ways, and the columns of the servers that have them.
    const ALL: [(Way, usize); 2] = [(Way::Anteroom, 0), (Way::SocketIo, 2)];

    fn kind(self) -> Kind {
        match self {
            Way::Anteroom => Kind::Anteroom,
            Way::SocketIo => Kind::SocketIo,
        }
    }
}

/// The servers of the second storm, in the order of the columns.
const JOINED: [Kind; 3] = [Kind::Anteroom, Kind::Bun, Kind::SocketIo];

pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let sessions = plan.restarted;
    let mut table = Table::<{ JOINED.len() }>::new();
    let mut ways = Way::ALL.to_vec();
    let mut tallies = Way::ALL.map(|(way, _)| (way, Tally::default()));
    for _ in 0..plan.repetitions {
        ways.retain(|&(way, column)| {
            let begin = Instant::now();
            match Restart::run(way, peers, sessions) {
                Ok(restart) => {
                    restart.add_to(&mut table, column, sessions);
                    let tally = tallies.iter_mut().find(|(its, _)| *its == way);
                    tally.expect("all ways have one").1.add(&restart.tally);
                }
                Err(error) => eprintln!("{:20} {error}", way.kind().name()),
            }
            begin.elapsed() < LONG
        });
        for (column, kind) in JOINED.into_iter().enumerate() {
            let server = Server::start(kind, peers)?;
            let (wall, cpu) = join(&server, sessions)?;
            table.add(
                column,
                "joining: until the last knows its room, s",
                wall.as_secs_f64(),
            );
            table.add(column, "joining: each session, µs", micros(cpu, sessions));
        }
    }
    let names = JOINED.map(Kind::name).join(" | ");
    table.print(
        &format!("{sessions} sessions in rooms of {SIZE} | {names}"),
        true,
    );
    for (way, tally) in tallies.iter().filter(|(_, tally)| tally.sessions > 0) {
        println!("{}: {tally}", way.kind().name());
    }
    Ok(())
}

/// Microseconds for each session.
fn micros(cpu: Duration, sessions: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / sessions as f64
}

fn room(number: usize) -> String {
    format!("room-{number}")
}

/// What became of sessions and messages.
#[derive(Default)]
struct Tally {
    sessions: usize,
    /// Sessions that the new server did not know.
    lost: usize,
    messages: usize,
    /// Messages that did not arrive at a session.
    missing: usize,
    /// Messages that arrived at a session once more.
    doubled: usize,
    /// How often a session was told that another has joined or left.
    told: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.sessions += other.sessions;
        self.lost += other.lost;
        self.messages += other.messages;
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.told += other.told;
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} sessions lost; of {} messages to a session {} missing and {} doubled; {} times a session was told \
             that another has joined or left",
            self.lost, self.sessions, self.messages, self.missing, self.doubled, self.told
        )
    }
}

/// The result of a restart.
struct Restart {
    /// From the signal until the last session is resumed.
    since_signal: Duration,
    /// From the start of the new process until the last session is resumed.
    since_start: Duration,
    /// The CPU time of the old process from the signal to its end.
    stopping: Duration,
    /// The CPU time of the new process until all sessions are resumed and all messages have arrived.
    resuming: Duration,
    /// The CPU time of Redis for the same, if it stores the sessions.
    redis: Option<[Duration; 2]>,
    tally: Tally,
}

impl Restart {
    fn run(way: Way, peers: &Path, sessions: usize) -> io::Result<Restart> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("restart");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let redis = match way {
            Way::Anteroom => None,
            Way::SocketIo => Some(Redis::start()?),
        };
        let redis_cpu = || redis.as_ref().map(|redis| redis.process.cpu()).transpose();
        let start = |port: u16| {
            let program: Vec<PathBuf> = match &redis {
                None => vec![
                    env!("CARGO_BIN_EXE_anteroom").into(),
                    format!("--listen=127.0.0.1:{port}").into(),
                    "--sessions-file".into(),
                    folder.join("sessions"),
                ],
                Some(redis) => vec![
                    "node".into(),
                    peers.join("socketio-restart.js"),
                    redis.url().into(),
                    port.to_string().into(),
                ],
            };
            Server::launch(way.kind(), on_server_core().args(program))
        };
        let old = start(0)?;
        let address = old.addresses[0];
        let mut crowd = Crowd::new(way, address, sessions)?;
        crowd.join()?;

        let (signaled, cpu, redis_before) = (Instant::now(), old.process.cpu()?, redis_cpu()?);
        crowd.stop(&old)?;
        let stopping = old.process.cpu()? - cpu;
        let redis_stopped = redis_cpu()?;
        drop(old);
        let started = Instant::now();
        let new = start(address.port())?;
        crowd.resume()?;
        let (since_signal, since_start) = (signaled.elapsed(), started.elapsed());
        crowd.receive_rest()?;
        let resuming = new.process.cpu()?;
        let redis_after = redis_cpu()?;

        let tally = crowd.tally();
        drop(new);
        fs::remove_dir_all(&folder)?;
        let redis = redis_before.zip(redis_stopped).zip(redis_after);
        Ok(Restart {
            since_signal,
            since_start,
            stopping,
            resuming,
            redis: redis.map(|((before, stopped), after)| [stopped - before, after - stopped]),
            tally,
        })
    }

    fn add_to(&self, table: &mut Table<{ JOINED.len() }>, column: usize, sessions: usize) {
        let mut add = |label: &str, figure| table.add(column, label, figure);
        add(
            "restart: from SIGTERM until the last is resumed, s",
            self.since_signal.as_secs_f64(),
        );
        add(
            "restart: from the start until the last is resumed, s",
            self.since_start.as_secs_f64(),
        );
        let phases = [("stopping", self.stopping), ("resuming", self.resuming)];
        for (index, (phase, cpu)) in phases.into_iter().enumerate() {
            let label = format!("{phase}: each session, µs");
            add(&label, micros(cpu, sessions));
            if let Some(redis) = self.redis {
                let label = format!("{phase}: each session, Redis, µs");
                add(&label, micros(redis[index], sessions));
            }
        }
    }
}

/// The clients of a server that is restarted.
struct Crowd {
    way: Way,
    address: SocketAddr,
    poll: Poll,
    buffer: Box<[u8]>,
    sessions: Vec<Session>,
    /// The number of rooms; the first session of each is its sender.
    rooms: usize,
    /// Whether the server is being stopped, or has been.
    stopping: bool,
    /// The number of connections on which no session has joined or resumed yet.
    connecting: usize,
    /// The sessions whose connections are lost.
    waiting: VecDeque<usize>,
}

/// What a client keeps of its session, and its connection.
struct Session {
    connection: Option<Connection>,
    state: State,
    /// Whether the client has been back since the restart.
    has_returned: bool,
    /// anteroom's resume token, or Socket.IO's private session id.
    token: String,
    /// The number of messages received that anteroom counts.
    received: usize,
    /// The offset of the last event received, for Socket.IO.
    offset: String,
    /// The messages sent, from the first on; with Socket.IO, those that have no acknowledgement.
    sent: Vec<String>,
    /// How often a message of each moment has arrived.
    heard: [usize; Moment::ALL.len()],
    /// How often another has joined or left since the restart.
    told: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Joining,
    Joined,
    /// The server is being restarted.
    Away,
    Resumed,
    /// The new server did not know the session and has started another.
    Lost,
}

impl Crowd {
    fn new(way: Way, address: SocketAddr, sessions: usize) -> io::Result<Crowd> {
        let session = || Session {
            connection: None,
            state: State::Joining,
            has_returned: false,
            token: String::new(),
            received: 0,
            offset: String::new(),
            sent: Vec::new(),
            heard: [0; _],
            told: 0,
        };
        Ok(Crowd {
            way,
            address,
            poll: Poll::new()?,
            buffer: vec![0; READ_BYTES].into(),
            sessions: (0..sessions).map(|_| session()).collect(),
            rooms: sessions / SIZE,
            stopping: false,
            connecting: 0,
            waiting: VecDeque::new(),
        })
    }

    fn dialect(&self) -> Dialect {
        self.way.kind().dialect()
    }

    /// Lets all sessions join, and the sender of each room send a message.
    fn join(&mut self) -> io::Result<()> {
        // The senders join first, so that each receives something from the others in its room: Socket.IO recovers
        // only a session that has received an event.
        for wave in [0..self.rooms, self.rooms..self.sessions.len()] {
            self.waiting.extend(wave.clone());
            self.connect_until("join", |crowd| {
                let mut joined = crowd.sessions[wave.clone()].iter();
                joined.all(|session| session.state == State::Joined)
            })?;
        }
        for sender in 0..self.rooms {
            self.say(sender, Moment::Before);
        }
        // The servers deliver in order: whoever has the message has all that was told before.
        self.connect_until("receive the first message", |crowd| {
            let mut numbered = crowd.sessions.iter().enumerate();
            numbered.all(|(number, session)| match number < crowd.rooms {
                true => session.told == SIZE - 1 && session.is_acknowledged(crowd.way),
                false => session.heard[Moment::Before as usize] == 1,
            })
        })?;
        for session in &mut self.sessions {
            session.told = 0;
        }
        Ok(())
    }

    /// Stops the server while the rooms are sent a message; returns when the process has ended.
    fn stop(&mut self, server: &Server) -> io::Result<()> {
        self.stopping = true;
        // So some of them arrive before the signal.
        for sender in 0..self.rooms {
            if sender == self.rooms / 2 {
                server.process.signal(Signal::SIGTERM)?;
            }
            self.say(sender, Moment::Stopping);
        }
        let begin = Instant::now();
        while !server.process.has_ended()? {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other("the server does not stop"));
            }
            self.turn(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// Resumes all sessions.
    fn resume(&mut self) -> io::Result<()> {
        self.connect_until("resume", |crowd| {
            let mut states = crowd.sessions.iter().map(|session| session.state);
            states.all(|state| matches!(state, State::Resumed | State::Lost))
        })
    }

    /// Connects all who wait until this is so.
    fn connect_until(&mut self, what: &str, done: impl Fn(&Crowd) -> bool) -> io::Result<()> {
        let begin = Instant::now();
        while self.connecting > 0 || !self.waiting.is_empty() || !done(self) {
            if begin.elapsed() > PATIENCE {
                let text = format!("not all sessions {what} within {PATIENCE:?}");
                return Err(io::Error::other(text));
            }
            while self.connecting < CONNECTING
                && let Some(number) = self.waiting.pop_front()
            {
                self.connect(number)?;
            }
            self.turn(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Waits until every message has arrived, or nothing more arrives.
    fn receive_rest(&mut self) -> io::Result<()> {
        let mut last = Instant::now();
        let mut missing = self.tally().missing;
        while missing > 0 && last.elapsed() < SILENCE {
            self.turn(Duration::from_millis(100))?;
            let now = self.tally().missing;
            if now < missing {
                (missing, last) = (now, Instant::now());
            }
        }
        // What comes twice comes soon after.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(300) {
            self.turn(Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally {
            sessions: self.sessions.len(),
            ..Tally::default()
        };
        for (number, session) in self.sessions.iter().enumerate() {
            let expected = usize::from(number >= self.rooms);
            tally.lost += usize::from(session.state == State::Lost);
            tally.told += session.told;
            for heard in session.heard {
                tally.messages += expected;
                tally.missing += expected.saturating_sub(heard);
                tally.doubled += heard.saturating_sub(expected);
            }
        }
        tally
    }

    fn connect(&mut self, number: usize) -> io::Result<()> {
        let mut target = self.dialect().target(&room(number % self.rooms), number);
        let session = &mut self.sessions[number];
        if self.way == Way::Anteroom && self.stopping {
            let (token, received) = (&session.token, session.received);
            target += &format!("?resume={token}&received={received}");
        }
        let connection = Connection::open(&self.poll, number, self.address, &target, None)?;
        session.connection = Some(connection);
        self.connecting += 1;
        Ok(())
    }

    /// Waits at most `timeout` for data, and does what it asks for.
    fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &events {
            let Token(number) = event.token();
            match self.read(number) {
                Ok(()) => {}
                // The server refuses nobody for good.
                Err(error) if error.kind() == ErrorKind::Other => return Err(error),
                Err(_) => self.lose(number)?,
            }
        }
        Ok(())
    }

    /// Gives up a connection that has ended.
    fn lose(&mut self, number: usize) -> io::Result<()> {
        let session = &mut self.sessions[number];
        if !self.stopping {
            return Err(io::Error::other("the server has closed a connection"));
        }
        if session.connection.take().is_some() {
            if session.state == State::Away {
                self.connecting -= 1;
            }
            session.state = State::Away;
            self.waiting.push_back(number);
        }
        Ok(())
    }

    /// Writes what is left and reads what there is, until the connection ends.
    fn read(&mut self, number: usize) -> io::Result<()> {
        let Some(mut connection) = self.sessions[number].connection.take() else {
            return Ok(());
        };
        let result = self.read_from(number, &mut connection);
        self.sessions[number].connection = Some(connection);
        result
    }

    fn read_from(&mut self, number: usize, connection: &mut Connection) -> io::Result<()> {
        connection.flush()?;
        loop {
            let count = connection.link.read(&mut self.buffer)?;
            if count == 0 {
                return Ok(());
            }
            let mut unread = mem::take(&mut connection.unread);
            unread.extend_from_slice(&self.buffer[..count]);
            let mut bytes = &unread[..];
            if !connection.is_open && swarm::answered(&mut bytes)? {
                connection.is_open = true;
                if self.way == Way::Anteroom && !self.stopping {
                    let hello = r#"{"type":"hello","receiver":"server","data":{"resume":true}}"#;
                    self.sessions[number].sent.push(hello.into());
                    send(connection, &text_frame(self.dialect(), hello));
                }
            }
            while connection.is_open
                && let Some((opcode, payload)) = next_frame(&mut bytes)
            {
                let mask = self.dialect().mask();
                match opcode {
                    TEXT => match self.way {
                        Way::Anteroom => self.on_message(number, payload, connection)?,
                        Way::SocketIo => self.on_packet(number, payload, connection)?,
                    },
                    PING => send(connection, &swarm::frame(mask, PONG, payload)),
                    // The code is the server's; its reason need not be repeated.
                    CLOSE if self.stopping => {
                        let code = &payload[..payload.len().min(2)];
                        send(connection, &swarm::frame(mask, CLOSE, code));
                    }
                    _ => return Err(io::Error::other(format!("a frame of opcode {opcode}"))),
                }
            }
            connection.unread = bytes.to_vec();
        }
    }

    /// A message of anteroom.
    fn on_message(
        &mut self,
        number: usize,
        text: &[u8],
        connection: &mut Connection,
    ) -> io::Result<()> {
        let dialect = self.dialect();
        let session = &mut self.sessions[number];
        let is = |kind: &str| text.starts_with(format!(r#"{{"type":"{kind}""#).as_bytes());
        if is("resumed") {
            let resumed: Value = serde_json::from_slice(text)?;
            let taken_in = resumed["data"]["received"].as_u64().unwrap_or_default() as usize;
            for message in session.sent.iter().skip(taken_in) {
                send(connection, &text_frame(dialect, message));
            }
            self.arrive(number, true, connection);
            return Ok(());
        }
        session.received += 1;
        if is("hello") {
            let hello: Value = serde_json::from_slice(text)?;
            let token = hello["data"]["resume"]["token"].as_str();
            session.token = token.unwrap_or_default().to_owned();
            self.arrive(number, true, connection);
        } else if is("error") && self.stopping {
            // `resume_failed`. Once others are lost, a room can also be empty.
            if session.state == State::Away {
                self.arrive(number, false, connection);
            }
        } else if is("new") || is("close") {
            session.told += 1;
        } else if let Some(moment) = Moment::ALL.into_iter().find(|moment| is(moment.kind())) {
            session.heard[moment as usize] += 1;
        } else {
            let text = String::from_utf8_lossy(text);
            return Err(io::Error::other(format!("an unexpected message: {text}")));
        }
        Ok(())
    }

    /// A packet of Engine.IO, most with a packet of Socket.IO in it.
    fn on_packet(
        &mut self,
        number: usize,
        text: &[u8],
        connection: &mut Connection,
    ) -> io::Result<()> {
        let dialect = self.dialect();
        let session = &mut self.sessions[number];
        let text = String::from_utf8_lossy(text);
        if text.starts_with('0') {
            // The server is open: connect to the namespace, or to the session there.
            let connect = match session.token.is_empty() {
                true => "40".to_owned(),
                false => {
                    let auth = json!({"pid": session.token, "offset": session.offset});
                    format!("40{auth}")
                }
            };
            send(connection, &text_frame(dialect, &connect));
        } else if text == "2" {
            send(connection, &text_frame(dialect, "3"));
        } else if let Some(connected) = text.strip_prefix("40") {
            let connected: Value = serde_json::from_str(connected)?;
            let token = connected["pid"].as_str().unwrap_or_default();
            let is_same = session.token.is_empty() || session.token == token;
            session.token = token.to_owned();
            for message in &session.sent {
                send(connection, &text_frame(dialect, message));
            }
            self.arrive(number, is_same, connection);
        } else if let Some(event) = text.strip_prefix("42") {
            let event: Value = serde_json::from_str(event)?;
            let offset = event[2].as_str().unwrap_or_default();
            session.offset = offset.to_owned();
            let kind = event[1]["type"].as_str().unwrap_or_default();
            match Moment::ALL.into_iter().find(|moment| moment.kind() == kind) {
                Some(moment) => session.heard[moment as usize] += 1,
                None => session.told += 1,
            }
        } else if text.starts_with("43") {
            session.sent.remove(0);
        } else if text != "1" && !text.starts_with("41") {
            return Err(io::Error::other(format!("an unexpected packet: {text}")));
        }
        Ok(())
    }

    /// The session has joined, or has connected again: the same one or, if not, another.
    fn arrive(&mut self, number: usize, is_same: bool, connection: &mut Connection) {
        let session = &mut self.sessions[number];
        self.connecting -= 1;
        session.state = match (is_same, session.state) {
            (_, State::Joining) => State::Joined,
            (true, _) => State::Resumed,
            (false, _) => State::Lost,
        };
        let is_first_return = self.stopping && !mem::replace(&mut session.has_returned, true);
        if is_first_return && number < self.rooms {
            let message = self.message(number, Moment::Resuming);
            send(connection, &text_frame(self.dialect(), &message));
        }
    }

    /// A message to the room of this session, which keeps it until it knows that the server has it.
    fn message(&mut self, number: usize, moment: Moment) -> String {
        let kind = moment.kind();
        let message = format!(r#"{{"type":"{kind}","receiver":"all","data":"to the room"}}"#);
        let message = match self.way {
            Way::Anteroom => message,
            // The number asks for an acknowledgement.
            Way::SocketIo => format!(r#"42{}["message",{message}]"#, moment as usize),
        };
        self.sessions[number].sent.push(message.clone());
        message
    }

    fn say(&mut self, number: usize, moment: Moment) {
        let frame = text_frame(self.dialect(), &self.message(number, moment));
        if let Some(connection) = &mut self.sessions[number].connection {
            send(connection, &frame);
        }
    }
}

impl Session {
    /// Whether nothing sent waits for an acknowledgement, which only Socket.IO's clients ask for.
    fn is_acknowledged(&self, way: Way) -> bool {
        way == Way::Anteroom || self.sent.is_empty()
    }
}

/// Sends a frame. If the connection is lost, reading says so.
fn send(connection: &mut Connection, frame: &[u8]) {
    let _ = connection.send(frame);
}

/// Lets sessions join as fast as the server accepts them. Each session that hears of another greets it, as with WebRTC,
/// until all know their rooms. Returns the elapsed time and the server's CPU time.
fn join(server: &Server, sessions: usize) -> io::Result<(Duration, Duration)> {
    let dialect = server.kind.dialect();
    let mut swarm = Swarm::new(&server.addresses, dialect)?;
    let rooms = sessions / SIZE;
    let mut news = rooms * SIZE * (SIZE - 1) / 2;
    let mut greetings = news;
    let (begin, cpu) = (Instant::now(), server.process.cpu()?);
    while news + greetings > 0 || swarm.joined() < sessions {
        while swarm.len() < sessions && swarm.len() - swarm.joined() < CONNECTING {
            swarm.join(&room(swarm.len() % rooms))?;
        }
        for number in swarm.wait()? {
            let mut newcomers = Vec::new();
            swarm.read(number, |text| match dialect.text(text) {
                Text::New => {
                    news -= 1;
                    newcomers.push(dialect.sender(text));
                }
                Text::Message => greetings -= 1,
                Text::Receipt | Text::Other => {}
            })?;
            for newcomer in newcomers {
                let greeting = dialect.message(&newcomer, DATA_BYTES);
                swarm.send(number, &text_frame(dialect, &greeting))?;
            }
        }
    }
    Ok((begin.elapsed(), server.process.cpu()? - cpu))
}
