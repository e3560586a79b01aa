//! The work that the servers are given.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    dialect::{Dialect, Text},
    servers::{Kind, Server},
    swarm::{Swarm, text_frame},
};

/// How many connections are being opened at any time. Servers queue 511 of them by default.
const CONNECTING: usize = 500;

/// How many idle sessions there are before the memory of more is measured.
const FIRST: usize = 200;

/// How long the work goes on before it is measured, and how long it is measured.
#[derive(Clone, Copy)]
pub struct Span {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What a server has used while work was done.
pub struct Cost {
    /// How many messages or deliveries it was.
    pub count: u64,
    pub wall: Duration,
    /// The server's processor time.
    pub cpu: Duration,
    /// The part of it in which its own code ran, not the kernel's.
    pub user_share: f64,
}

impl Cost {
    /// Microseconds of processor time each.
    pub fn micros_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count as f64
    }

    /// How many in a second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.wall.as_secs_f64()
    }
}

/// Has `work` done for a while and then measures it; `work` does a little and returns how much.
fn measure(
    server: &Server,
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
    let (cpu, (user, system)) = (server.cpu()?, server.ticks()?);
    let (count, wall) = during(span.measured)?;
    let (user, system) = (server.ticks()?.0 - user, server.ticks()?.1 - system);
    Ok(Cost {
        count,
        wall,
        cpu: server.cpu()? - cpu,
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}

/// Lets sessions join, one for each of `rooms`, and waits until that is done and each has been told
/// of those after it in its room: `news` messages in all. Calls `on_new` for these, with who was
/// told of whom.
pub fn join_all(
    swarm: &mut Swarm,
    rooms: impl IntoIterator<Item = String>,
    mut news: usize,
    mut on_new: impl FnMut(usize, &[u8]),
) -> io::Result<()> {
    let dialect = swarm.dialect();
    let mut rooms = rooms.into_iter().peekable();
    if !dialect.tells_news() {
        news = 0;
    }
    while news > 0 || rooms.peek().is_some() || swarm.joined() < swarm.len() {
        while swarm.len() - swarm.joined() < CONNECTING
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

/// Sessions that write to each other, two by two.
pub struct Pairs {
    swarm: Swarm,
    dialect: Dialect,
    /// For each session, the frame it sends to the other.
    frames: Vec<Vec<u8>>,
    /// For each pair, who has a message on its way to it, the other having sent it.
    starters: Vec<usize>,
}

impl Pairs {
    /// Sessions in rooms of two, each knowing the other.
    pub fn join(
        addresses: &[SocketAddr],
        dialect: Dialect,
        sessions: usize,
        data_bytes: usize,
    ) -> io::Result<Pairs> {
        let mut swarm = Swarm::new(addresses, dialect)?;
        let frame = |receiver: &str| text_frame(dialect, &dialect.message(receiver, data_bytes));
        let mut frames = vec![Vec::new(); sessions];
        let mut starters: Vec<usize> = (0..sessions).step_by(2).collect();
        let rooms = (0..sessions).map(|number| format!("pair-{}", number / 2));
        join_all(&mut swarm, rooms, sessions / 2, |number, text| {
            starters[number / 2] = number;
            frames[number] = frame(&dialect.sender(text));
        })?;
        // Who came second learns of the other by its first message.
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

    /// Reads what has come for one; returns how many messages.
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

    /// Puts a message on its way in each of so many pairs.
    pub fn start(&mut self, pairs: usize) -> io::Result<()> {
        for pair in 0..pairs {
            self.send(self.starters[pair])?;
        }
        Ok(())
    }

    /// Answers what has come; returns how much that was.
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

/// Of `sessions` so many are `busy`: each answers what comes, so that each pair of them has one message on
/// its way.
pub fn unicast(
    server: &Server,
    span: Span,
    sessions: usize,
    busy: usize,
    data_bytes: usize,
) -> io::Result<Cost> {
    let dialect = server.kind.dialect();
    let mut pairs = Pairs::join(&server.addresses, dialect, sessions, data_bytes)?;
    pairs.start(busy / 2)?;
    measure(server, span, || pairs.answer())
}

/// In each of `rooms`, which have `size` sessions, the first sends to all, with `in_flight` messages
/// that not everyone has got.
pub fn broadcast(
    server: &Server,
    span: Span,
    rooms: usize,
    size: usize,
    in_flight: u64,
) -> io::Result<Cost> {
    let dialect = server.kind.dialect();
    let mut swarm = Swarm::new(&server.addresses, dialect)?;
    // The senders come first, so that each sees its whole room arrive.
    let room = |number| format!("room-{}", number % rooms);
    let news = rooms * size * (size - 1) / 2;
    join_all(&mut swarm, (0..rooms * size).map(room), news, |_, _| {})?;
    let frame = text_frame(dialect, &dialect.message("all", 100));
    for number in (0..rooms).cycle().take(rooms * in_flight as usize) {
        swarm.send(number, &frame)?;
    }
    let mut delivered = vec![0; rooms];
    let receivers = size as u64 - 1;
    measure(server, span, || {
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

/// Sessions join one room, as fast as the server lets them; the cost is for each that joins.
pub fn storm(server: &Server, sessions: usize) -> io::Result<Cost> {
    let mut swarm = Swarm::new(&server.addresses, server.kind.dialect())?;
    let (begin, cpu, (user, system)) = (Instant::now(), server.cpu()?, server.ticks()?);
    let rooms = (0..sessions).map(|_| "storm".to_owned());
    join_all(&mut swarm, rooms, sessions * (sessions - 1) / 2, |_, _| {})?;
    let (user, system) = (server.ticks()?.0 - user, server.ticks()?.1 - system);
    Ok(Cost {
        count: sessions as u64,
        wall: begin.elapsed(),
        cpu: server.cpu()? - cpu,
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}

/// What idle sessions cost.
pub struct Idle {
    /// Bytes of memory for each.
    pub bytes_each: f64,
    /// Processor time in a minute of pinging all of them, where that was measured.
    pub cpu_per_minute: Option<Duration>,
}

/// Sessions join rooms of two and then only answer pings, for as long as `pinging` says.
pub fn idle(server: &Server, sessions: usize, pinging: Duration) -> io::Result<Idle> {
    let mut swarm = Swarm::new(&server.addresses, server.kind.dialect())?;
    let mut join = |sessions: Range<usize>| {
        let news = sessions.len() / 2;
        let rooms = sessions.map(|number| format!("idle-{}", number / 2));
        join_all(&mut swarm, rooms, news, |_, _| {})
    };
    // What a server takes once is not what a session costs.
    join(0..FIRST)?;
    let before = server.resident()?;
    join(FIRST..FIRST + sessions)?;
    let bytes_each = (server.resident()? as f64 - before as f64) / sessions as f64;
    // The others ping at other intervals, or not at all.
    if pinging.is_zero() || !matches!(server.kind, Kind::Anteroom | Kind::Resuming) {
        return Ok(Idle {
            bytes_each,
            cpu_per_minute: None,
        });
    }
    let (begin, cpu) = (Instant::now(), server.cpu()?);
    while let Some(left) = pinging.checked_sub(begin.elapsed()) {
        for number in swarm.ready(left)? {
            swarm.read(number, |_| {})?;
        }
    }
    let cpu = (server.cpu()? - cpu).div_f64(begin.elapsed().as_secs_f64() / 60.0);
    Ok(Idle {
        bytes_each,
        cpu_per_minute: Some(cpu),
    })
}

/// Messages are sent between pairs when their time has come, whether the ones before have arrived or
/// not: `rate` of them a second at random times. Returns how long each took from that time on,
/// sorted. What waits in the load generator because it is late counts, too.
pub fn latency(
    server: &Server,
    span: Span,
    sessions: usize,
    rate: f64,
) -> io::Result<Vec<Duration>> {
    let dialect = server.kind.dialect();
    let mut pairs = Pairs::join(&server.addresses, dialect, sessions, 100)?;
    let mut random = SmallRng::seed_from_u64(1);
    let mut due = vec![VecDeque::new(); sessions];
    let mut latencies = Vec::new();
    let begin = Instant::now();
    let mut next = Duration::ZERO;
    let end = span.warm_up + span.measured;
    let mut on_the_way = 0;
    while next < end || on_the_way > 0 {
        let now = begin.elapsed();
        while next <= now && next < end {
            let starter = pairs.starters[random.random_range(0..sessions / 2)];
            pairs.send(starter)?;
            due[starter ^ 1].push_back(next);
            on_the_way += 1;
            let wait = -(1.0 - random.random::<f64>()).ln() / rate;
            next += Duration::from_secs_f64(wait);
        }
        for number in pairs.swarm.ready(Duration::ZERO)? {
            let messages = pairs.read(number)?;
            on_the_way -= messages;
            let now = begin.elapsed();
            let due = due[number].drain(..messages);
            latencies.extend(due.filter(|due| *due >= span.warm_up).map(|due| now - due));
        }
        if begin.elapsed() > end + Duration::from_secs(10) {
            return Err(io::Error::other(format!(
                "{on_the_way} messages did not come"
            )));
        }
    }
    latencies.sort_unstable();
    Ok(latencies)
}
