//! What happens in a run: a list of timed actions, made from a seed.

use std::fmt::{self, Display};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::bus::Link;

/// The room that keeps what is said to all.
pub(super) const KEPT_ROOM: usize = 1;

/// Which faults a schedule has, and so which promises hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing that nodes say to each other is lost, and no node is silent for long: all promises hold.
    Calm,
    /// Nodes lose single messages and their connections to NATS, for less than the down time: messages of
    /// clients may be lost, but every session is known exactly.
    Gentle,
    /// Nodes die or lose each other for longer: a session may be told to have gone and be `new` again.
    Harsh,
}

/// All that happens in a run.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    pub(super) servers: usize,
    /// The nodes that run from the beginning.
    pub(super) nodes: usize,
    pub(super) clients: usize,
    pub(super) rooms: usize,
    /// In milliseconds from the beginning, in order.
    pub(super) actions: Vec<(u64, Action)>,
}

/// Numbers of nodes, servers and clients are taken modulo how many there are. An action that makes no sense at
/// its time is left out.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A client joins a room.
    Join {
        client: usize,
        room: usize,
        node: usize,
        is_resumable: bool,
    },
    /// A client sends messages.
    Say {
        client: usize,
        to: Target,
        count: usize,
        has_ref: bool,
    },
    /// A client asks who is there.
    Hello { client: usize },
    /// A client leaves with a Close frame.
    Leave { client: usize },
    /// A client vanishes and does not come back.
    Vanish { client: usize },
    /// A connection loses what follows after some bytes. Each end notices it later, if at all.
    Cut {
        client: usize,
        up: Option<usize>,
        down: Option<usize>,
        node_notices: Option<u64>,
        client_notices: u64,
    },
    /// A client connects again, several times at once, though it has a connection.
    Reconnect { client: usize, nodes: Vec<usize> },
    /// A new node starts.
    Start,
    /// A node stops, and its sessions are told.
    Stop { node: usize },
    /// A node dies.
    Kill { node: usize },
    /// Nothing goes in or out of a node for a while.
    Stall { node: usize, time: u64 },
    /// A link carries nothing for a while.
    Block { link: Link, time: u64 },
    /// A link loses some messages, or carries them twice.
    Disturb {
        link: Link,
        skip: usize,
        count: usize,
        copied: Option<u64>,
    },
    /// A node loses its connection to NATS, and makes another one at once.
    Reset { node: usize },
    /// A NATS server, or all of them, is down for a while.
    Outage { server: Option<usize>, time: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    All,
    /// One of the sessions that the client knows.
    Peer(usize),
    Itself,
    /// The message sets the state of the client's session.
    State,
}

impl Schedule {
    /// What there is to read.
    pub(super) fn size(&self) -> usize {
        self.actions.len() + self.nodes + self.servers + self.clients + self.rooms
    }

    /// The schedule of a seed.
    pub(super) fn new(seed: u64) -> Schedule {
        let random = &mut StdRng::seed_from_u64(seed);
        let kind = match seed % 3 {
            0 => Kind::Calm,
            1 => Kind::Gentle,
            _ => Kind::Harsh,
        };
        let mut schedule = Schedule {
            seed,
            kind,
            servers: random.random_range(1..=3),
            nodes: random.random_range(2..=4),
            clients: random.random_range(2..=8),
            rooms: random.random_range(1..=2),
            actions: Vec::new(),
        };
        let count = random.random_range(20..120);
        let length = random.random_range(3_000..12_000);
        for client in 0..schedule.clients {
            let join = schedule.join(random, client);
            let at = random.random_range(0..length / 4);
            schedule.actions.push((at, join));
        }
        for _ in 0..count {
            let at = random.random_range(500..length);
            let action = schedule.action(random);
            schedule.actions.push((at, action));
        }
        schedule.actions.sort_by_key(|(at, _)| *at);
        schedule.space_out();
        schedule
    }

    /// Removes faults that follow others too soon, so that no node is silent for the down time, unless the schedule
    /// is harsh.
    fn space_out(&mut self) {
        let pause = match self.kind {
            Kind::Calm => 100,
            Kind::Gentle => 2_500,
            Kind::Harsh => return,
        };
        let mut quiet_until = 0;
        self.actions.retain(|(at, action)| {
            let time = match action {
                Action::Stall { time, .. }
                | Action::Block { time, .. }
                | Action::Outage { time, .. } => *time,
                Action::Reset { .. } => 0,
                _ => return true,
            };
            let is_kept = *at >= quiet_until;
            if is_kept {
                quiet_until = at + time + pause;
            }
            is_kept
        });
    }

    fn join(&self, random: &mut StdRng, client: usize) -> Action {
        Action::Join {
            client,
            room: random.random_range(0..self.rooms),
            node: random.random_range(0..self.nodes),
            is_resumable: random.random_bool(0.85),
        }
    }

    fn action(&self, random: &mut StdRng) -> Action {
        let client = random.random_range(0..self.clients);
        let node = random.random_range(0..self.nodes + 1);
        match random.random_range(0..100) {
            0..45 => Action::Say {
                client,
                to: match random.random_range(0..12) {
                    0..5 => Target::All,
                    5..9 => Target::Peer(random.random_range(0..8)),
                    9 => Target::Itself,
                    _ => Target::State,
                },
                count: random.random_range(1..6),
                has_ref: random.random_bool(0.7),
            },
            45..50 => self.join(random, client),
            50..53 => Action::Hello { client },
            53..56 => Action::Leave { client },
            56 => Action::Vanish { client },
            57..70 => Action::Cut {
                client,
                up: random.random_bool(0.7).then(|| random.random_range(0..400)),
                down: random
                    .random_bool(0.7)
                    .then(|| random.random_range(0..2000)),
                node_notices: random
                    .random_bool(0.6)
                    .then(|| random.random_range(0..1500)),
                client_notices: random.random_range(0..800),
            },
            70..77 => Action::Reconnect {
                client,
                nodes: (0..random.random_range(1..4))
                    .map(|_| random.random_range(0..self.nodes + 1))
                    .collect(),
            },
            77..79 => Action::Start,
            // A node that misses the farewell of another shows its sessions for the down time.
            79..81 if self.kind != Kind::Gentle => Action::Stop { node },
            _ => self.fault(random, node),
        }
    }

    fn fault(&self, random: &mut StdRng, node: usize) -> Action {
        let (short, long) = match self.kind {
            Kind::Calm => (50..800, 0),
            Kind::Gentle => (100..1_200, 0),
            Kind::Harsh => (100..8_000, 1),
        };
        let time = random.random_range(short);
        let server = random.random_range(0..self.servers);
        let link = match random.random_range(0..3) {
            0 => Link::Up(node),
            1 => Link::Down(node),
            _ => Link::Route(server, random.random_range(0..self.servers)),
        };
        let copied = Some(random.random_range(0..300));
        let disturb = |random: &mut StdRng, copied| Action::Disturb {
            link,
            skip: random.random_range(0..12),
            count: random.random_range(1..4),
            copied,
        };
        let is_calm = self.kind == Kind::Calm;
        match random.random_range(0..10 + long) {
            0..3 => Action::Block { link, time },
            3 => Action::Stall { node, time },
            4..6 => disturb(random, copied),
            6..8 if !is_calm => disturb(random, None),
            8 if !is_calm => Action::Reset { node },
            9 if !is_calm => Action::Outage {
                server: random.random_bool(0.6).then_some(server),
                time,
            },
            10 => Action::Kill { node },
            _ => Action::Block { link, time },
        }
    }
}

impl Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}, {:?}: {} server(s) of NATS, {} node(s), {} client(s), {} room(s)",
            self.seed, self.kind, self.servers, self.nodes, self.clients, self.rooms
        )?;
        for (at, action) in &self.actions {
            writeln!(f, "{at:>7} ms  {action:?}")?;
        }
        Ok(())
    }
}
