//! The workloads.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    dialect::{Dialect, Text},
    servers::{Kind, Process, Server},
    swarm::{Swarm, text_frame},
};

/// The number of connections that are being opened at any time. Servers queue 511 by default.
pub const CONNECTING: usize = 500;

/// The number of idle sessions before the memory of further ones is measured.
const FIRST: usize = 200;

/// The number of handshakes at any time before memory is measured: what servers allocate for them is no part of it.
const HANDSHAKES: usize = 20;

/// How long a workload runs before it is measured, and how long it is measured.
#[derive(Clone, Copy)]
pub struct Span {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// The CPU time of a server for a workload.
pub struct Cost {
    /// The number of messages, deliveries or sessions.
    pub count: u64,
    /// The elapsed time.
    pub wall: Duration,
    /// The server's CPU time.
    pub cpu: Duration,
    /// The part of the CPU time in user mode.
    pub user_share: f64,
}

impl Cost {
    /// Microseconds of CPU time for each.
    pub fn micros_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count as f64
    }

    /// The number per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.wall.as_secs_f64()
    }
}

/// Runs `work` for the warm-up and then measures it. `work` does a little and returns the number of units.
pub fn measure(
    process: &Process,
    span: Span,
    mut work: impl FnMut() -> io::Result<u64>,
) -> io::Result<Cost> {
    let mut during = |time| -> io::Result<(u64, Duration)> {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < time {
            count += work()?;
        }
        Ok((count, begin.elapsed()))
    };
    during(span.warm_up)?;
    let (cpu, (user, system)) = (process.cpu()?, process.ticks()?);
    let (count, wall) = during(span.measured)?;
    let (user, system) = (process.ticks()?.0 - user, process.ticks()?.1 - system);
    Ok(Cost {
        count,
        wall,
        cpu: process.cpu()? - cpu,
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}

/// The CPU time of several nodes, and of what connects them, for each unit of `work`, in microseconds. `cpu` returns the CPU
/// time so far. `work` does a little and returns the number of units.
pub fn measure_all(
    cpu: impl Fn() -> io::Result<[Duration; 2]>,
    span: Span,
    mut work: impl FnMut() -> io::Result<u64>,
) -> io::Result<[f64; 2]> {
    let mut during = |time| -> io::Result<u64> {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < time {
            count += work()?;
        }
        Ok(count)
    };
    during(span.warm_up)?;
    let before = cpu()?;
    let count = during(span.measured)?;
    let after = cpu()?;
    Ok([0, 1].map(|index| (after[index] - before[index]).as_secs_f64() * 1e6 / count as f64))
}

/// Lets one session join each of `rooms`, and waits until all have joined and each has received the `new`
/// of every later session in its room: `news` messages in all. Calls `on_new` for each, with the number of
/// the receiver and the text.
pub fn join_all(
    swarm: &mut Swarm,
    rooms: impl IntoIterator<Item = String>,
    news: usize,
    on_new: impl FnMut(usize, &[u8]),
) -> io::Result<()> {
    join(swarm, rooms, news, CONNECTING, on_new)
}

/// Like [`join_all`], with so many connections that are being opened at any time.
fn join(
    swarm: &mut Swarm,
    rooms: impl IntoIterator<Item = String>,
    mut news: usize,
    at_once: usize,
    mut on_new: impl FnMut(usize, &[u8]),
) -> io::Result<()> {
    let dialect = swarm.dialect();
    let mut rooms = rooms.into_iter().peekable();
    if !dialect.tells_news() {
        news = 0;
    }
    while news > 0 || rooms.peek().is_some() || swarm.joined() < swarm.len() {
        while swarm.len() - swarm.joined() < at_once
            && let Some(room) = rooms.next()
        {
            swarm.join(&room)?;
        }
        for number in swarm.wait()? {
            swarm.read(number, |text| {
                if dialect.text(text) == Text::New {
                    news -= 1;
                    on_new(number, text);
                }
            })?;
        }
    }
    Ok(())
}

/// Pairs of sessions that send to each other.
pub struct Pairs {
    swarm: Swarm,
    dialect: Dialect,
    /// The frame that each session sends to its partner.
    frames: Vec<Vec<u8>>,
    /// The session of each pair that sends first.
    starters: Vec<usize>,
}

impl Pairs {
    /// Lets sessions join rooms of two, and waits until each knows its partner.
    pub fn join(mut swarm: Swarm, sessions: usize, data_bytes: usize) -> io::Result<Pairs> {
        let dialect = swarm.dialect();
        let frame = |receiver: &str| text_frame(dialect, &dialect.message(receiver, data_bytes));
        let mut frames = vec![Vec::new(); sessions];
        let mut starters: Vec<usize> = (0..sessions).step_by(2).collect();
        let rooms = (0..sessions).map(|number| format!("pair-{}", number / 2));
        join_all(&mut swarm, rooms, sessions / 2, |number, text| {
            starters[number / 2] = number;
            frames[number] = frame(&dialect.sender(text));
        })?;
        Pairs::introduce(swarm, frames, starters, data_bytes)
    }

    /// Lets the session of each pair that knows its partner, and has a frame for it, send first.
    pub fn introduce(
        mut swarm: Swarm,
        mut frames: Vec<Vec<u8>>,
        starters: Vec<usize>,
        data_bytes: usize,
    ) -> io::Result<Pairs> {
        let dialect = swarm.dialect();
        let frame = |receiver: &str| text_frame(dialect, &dialect.message(receiver, data_bytes));
        // The second session of a pair learns of its partner by the partner's first message.
        for &starter in &starters {
            if let Some(id) = dialect.chosen_id(starter ^ 1) {
                frames[starter] = frame(&id);
            }
            swarm.send(starter, &frames[starter])?;
        }
        let mut unknown = starters.len();
        while unknown > 0 {
            for number in swarm.wait()? {
                swarm.read(number, |text| {
                    if dialect.text(text) == Text::Message {
                        frames[number] = frame(&dialect.sender(text));
                        unknown -= 1;
                    }
                })?;
            }
        }
        Ok(Pairs {
            swarm,
            dialect,
            frames,
            starters,
        })
    }

    /// Reads the data of one session; returns the number of messages.
    fn read(&mut self, number: usize) -> io::Result<usize> {
        let mut messages = 0;
        self.swarm.read(number, |text| {
            messages += usize::from(self.dialect.text(text) == Text::Message);
        })?;
        Ok(messages)
    }

    fn send(&mut self, number: usize) -> io::Result<()> {
        self.swarm.send(number, &self.frames[number])
    }

    /// Sends a message in each of the first `pairs` pairs.
    pub fn start(&mut self, pairs: usize) -> io::Result<()> {
        for pair in 0..pairs {
            self.send(self.starters[pair])?;
        }
        Ok(())
    }

    /// Answers all messages that have arrived; returns their number.
    pub fn answer(&mut self) -> io::Result<u64> {
        let mut count = 0;
        for number in self.swarm.wait()? {
            for _ in 0..self.read(number)? {
                self.send(number)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Unicast: `busy` of the `sessions` answer each message, so that each pair of them has one message in
/// flight.
pub fn unicast(
    server: &Server,
    span: Span,
    sessions: usize,
    busy: usize,
    data_bytes: usize,
) -> io::Result<Cost> {
    let mut pairs = Pairs::join(server.swarm()?, sessions, data_bytes)?;
    pairs.start(busy / 2)?;
    measure(&server.process, span, || pairs.answer())
}

/// Broadcast: in each of `rooms` with `size` sessions, the first session sends to all, with `in_flight`
/// messages that not all sessions have received.
pub fn broadcast(
    server: &Server,
    span: Span,
    rooms: usize,
    size: usize,
    in_flight: u64,
) -> io::Result<Cost> {
    let dialect = server.kind.dialect();
    let mut swarm = server.swarm()?;
    // The senders join first, so that each receives the `new` of its whole room.
    let room = |number| format!("room-{}", number % rooms);
    let news = rooms * size * (size - 1) / 2;
    join_all(&mut swarm, (0..rooms * size).map(room), news, |_, _| {})?;
    let frame = text_frame(dialect, &dialect.message("all", 100));
    for number in (0..rooms).cycle().take(rooms * in_flight as usize) {
        swarm.send(number, &frame)?;
    }
    let mut delivered = vec![0; rooms];
    let receivers = size as u64 - 1;
    measure(&server.process, span, || {
        let mut count = 0;
        for number in swarm.wait()? {
            let mut messages = 0;
            swarm.read(number, |text| {
                messages += u64::from(dialect.text(text) == Text::Message);
            })?;
            let room = number % rooms;
            let before = delivered[room] / receivers;
            delivered[room] += messages;
            for _ in before..delivered[room] / receivers {
                swarm.send(room, &frame)?;
            }
            count += messages;
        }
        Ok(count)
    })
}

/// The cost of a delivery when the first session of a room sends to all others, once all have got the last message.
pub fn deliver_to_all(
    swarm: &mut Swarm,
    data_bytes: usize,
    cpu: impl Fn() -> io::Result<[Duration; 2]>,
    span: Span,
) -> io::Result<[f64; 2]> {
    let dialect = swarm.dialect();
    let frame = text_frame(dialect, &dialect.message("all", data_bytes));
    swarm.send(0, &frame)?;
    let mut delivered = 0;
    measure_all(cpu, span, || {
        let mut count = 0;
        for number in swarm.wait()? {
            swarm.read(number, |text| {
                count += u64::from(dialect.text(text) == Text::Message);
            })?;
        }
        delivered += count as usize;
        if delivered == swarm.len() - 1 {
            delivered = 0;
            swarm.send(0, &frame)?;
        }
        Ok(count)
    })
}

/// Join storm: sessions join one room as fast as the server accepts them. The cost is per session.
pub fn storm(server: &Server, sessions: usize) -> io::Result<Cost> {
    let rooms = (0..sessions).map(|_| "storm".to_owned());
    joining(server, sessions, rooms, sessions * (sessions - 1) / 2)
}

/// Sessions connect as fast as the server accepts them, each to a room of its own. The cost is per session.
pub fn connect(server: &Server, sessions: usize) -> io::Result<Cost> {
    let rooms = (0..sessions).map(|number| format!("alone-{number}"));
    joining(server, sessions, rooms, 0)
}

fn joining(
    server: &Server,
    sessions: usize,
    rooms: impl Iterator<Item = String>,
    news: usize,
) -> io::Result<Cost> {
    let mut swarm = server.swarm()?;
    let process = &server.process;
    let (begin, cpu, (user, system)) = (Instant::now(), process.cpu()?, process.ticks()?);
    join_all(&mut swarm, rooms, news, |_, _| {})?;
    let (user, system) = (process.ticks()?.0 - user, process.ticks()?.1 - system);
    Ok(Cost {
        count: sessions as u64,
        wall: begin.elapsed(),
        cpu: process.cpu()? - cpu,
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}

/// The cost of idle sessions.
pub struct Idle {
    /// Bytes of memory per session.
    pub bytes_each: f64,
    /// CPU time per minute for the pings to all sessions, if it was measured.
    pub cpu_per_minute: Option<Duration>,
}

/// Idle sessions: they join rooms of two and then only answer pings, for the time `pinging`.
pub fn idle(server: &Server, sessions: usize, pinging: Duration) -> io::Result<Idle> {
    let mut swarm = server.swarm()?;
    let mut join_pairs = |sessions: Range<usize>| {
        let news = sessions.len() / 2;
        let rooms = sessions.map(|number| format!("idle-{}", number / 2));
        join(&mut swarm, rooms, news, HANDSHAKES, |_, _| {})
    };
    // Memory that a server allocates once is not part of the cost of a session.
    join_pairs(0..FIRST)?;
    let before = server.process.resident()?;
    join_pairs(FIRST..FIRST + sessions)?;
    let bytes_each = (server.process.resident()? as f64 - before as f64) / sessions as f64;
    // The other servers ping at other intervals, or not at all.
    if pinging.is_zero() || !matches!(server.kind, Kind::Anteroom | Kind::Resuming) {
        return Ok(Idle {
            bytes_each,
            cpu_per_minute: None,
        });
    }
    let (begin, cpu) = (Instant::now(), server.process.cpu()?);
    while let Some(left) = pinging.checked_sub(begin.elapsed()) {
        for number in swarm.ready(left)? {
            swarm.read(number, |_| {})?;
        }
    }
    let cpu = (server.process.cpu()? - cpu).div_f64(begin.elapsed().as_secs_f64() / 60.0);
    Ok(Idle {
        bytes_each,
        cpu_per_minute: Some(cpu),
    })
}

/// Latency: pairs send `rate` messages per second at random times, whether the earlier ones have arrived or
/// not. Returns the time of each message from its scheduled time to its arrival, sorted. The time in which
/// a late load generator delays a message counts.
pub fn latency(
    server: &Server,
    span: Span,
    sessions: usize,
    rate: f64,
) -> io::Result<Vec<Duration>> {
    let mut pairs = Pairs::join(server.swarm()?, sessions, 100)?;
    let mut random = SmallRng::seed_from_u64(1);
    let mut due = vec![VecDeque::new(); sessions];
    let mut latencies = Vec::new();
    let begin = Instant::now();
    let mut next = Duration::ZERO;
    let end = span.warm_up + span.measured;
    let mut in_flight = 0;
    while next < end || in_flight > 0 {
        let now = begin.elapsed();
        while next <= now && next < end {
            let starter = pairs.starters[random.random_range(0..sessions / 2)];
            pairs.send(starter)?;
            due[starter ^ 1].push_back(next);
            in_flight += 1;
            let wait = -(1.0 - random.random::<f64>()).ln() / rate;
            next += Duration::from_secs_f64(wait);
        }
        for number in pairs.swarm.ready(Duration::ZERO)? {
            let messages = pairs.read(number)?;
            in_flight -= messages;
            let now = begin.elapsed();
            let due = due[number].drain(..messages);
            latencies.extend(due.filter(|due| *due >= span.warm_up).map(|due| now - due));
        }
        if begin.elapsed() > end + Duration::from_secs(10) {
            return Err(io::Error::other(format!(
                "{in_flight} messages did not arrive"
            )));
        }
    }
    latencies.sort_unstable();
    Ok(latencies)
}
