//! The simulated NATS: servers that nodes connect to, and links between them that delay, lose and double
//! messages, or carry nothing for a while.
//!
//! A link keeps the order of what it carries. With several servers, what different nodes say therefore
//! arrives in a different order at different receivers, as in a real NATS cluster.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};

use super::store::{Messages, SimulatedStore};
use crate::cluster::{Connection, ConnectionEvent, MessageStore, Payload, Subject, Transport};

/// The messages that a client of NATS keeps while it has no connection.
const UNWRITTEN_MESSAGES: usize = 64;

/// The time after which a peer that is not heard counts as lost: two or three pings of NATS.
const PING_TIMEOUT: std::ops::Range<u64> = 2000..3000;

/// The time between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(200);

/// Carries messages from one end to the other, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Link {
    /// From a node to its server.
    Up(usize),
    /// To a node from its server.
    Down(usize),
    /// From one server to another.
    Route(usize, usize),
}

/// A handle to the simulated NATS.
#[derive(Clone)]
pub(super) struct Bus {
    state: Arc<Mutex<State>>,
    /// Notified when something is to be carried earlier than before.
    changed: Arc<Notify>,
}

struct State {
    seed: u64,
    servers: Vec<Server>,
    nodes: Vec<Node>,
    links: BTreeMap<Link, LinkState>,
    /// What is on its way, by the time of its arrival.
    due: BinaryHeap<Reverse<(Instant, u64, Due)>>,
    /// How much was ever on its way.
    count: u64,
    is_quick: bool,
    stored: Arc<Mutex<Messages>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrival(Link, Packet),
    /// A copy, which keeps no order.
    Copy(Link, Packet),
    Unblock(Link, u64),
    /// A link was blocked for so long that its ends give up.
    Lost(Link, u64),
    Connect(usize),
    Disconnect(usize, u64),
    ServerUp(usize),
}

/// What a link carries. The number is that of the connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Packet {
    Publish(u64, Subject, Arc<Vec<u8>>, usize),
    Subscribe(u64, u64, Subject),
    Unsubscribe(u64, u64),
    Close(u64),
    Deliver(u64, u64, Subject, Arc<Vec<u8>>),
    Interest(u64, Subject, bool),
}

struct LinkState {
    random: StdRng,
    /// The arrival of the last packet.
    last: Instant,
    /// How often the link was blocked, if it is blocked now.
    blocked: Option<u64>,
    blocks: u64,
    held: VecDeque<Packet>,
    /// Messages that are lost or doubled: after so many others, so many, and the delay of the copies.
    faults: Vec<(usize, usize, Option<u64>)>,
}

struct Server {
    is_up: bool,
    /// The subscriptions of its nodes.
    subscriptions: BTreeMap<(usize, u64), Subject>,
    /// The other servers with subscriptions, as far as this one knows.
    interest: BTreeSet<(Subject, usize)>,
    /// The numbers of the connections to the other servers.
    routes: Vec<u64>,
}

#[derive(Default)]
struct Node {
    on_event: Option<Arc<dyn Fn(ConnectionEvent) + Send + Sync>>,
    /// The server that it is connected to.
    server: Option<usize>,
    /// The server that it tries first.
    home: usize,
    /// The number of its connection.
    connection: u64,
    subscriptions: BTreeMap<u64, (Subject, mpsc::UnboundedSender<Message>)>,
    next_subscription: u64,
    /// What was published without a connection.
    unwritten: VecDeque<(Subject, Vec<u8>)>,
    connected: Arc<Notify>,
    /// Cut off for good.
    is_dead: bool,
}

impl Bus {
    /// So many servers, which are up. Delays follow from the seed.
    pub(super) fn new(seed: u64, servers: usize) -> Bus {
        let server = || Server {
            is_up: true,
            subscriptions: BTreeMap::new(),
            interest: BTreeSet::new(),
            routes: vec![0; servers],
        };
        let state = State {
            seed,
            servers: (0..servers).map(|_| server()).collect(),
            nodes: Vec::new(),
            links: BTreeMap::new(),
            due: BinaryHeap::new(),
            count: 0,
            is_quick: false,
            stored: Arc::new(Mutex::new(Messages::new(seed))),
        };
        Bus {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::default(),
        }
    }

    /// The transport of another node, which connects to the server `home` first.
    pub(super) fn transport(&self, home: usize) -> SimulatedTransport {
        let mut state = self.state.lock();
        let home = home % state.servers.len();
        state.nodes.push(Node {
            home,
            ..Node::default()
        });
        SimulatedTransport {
            bus: self.clone(),
            node: state.nodes.len() - 1,
        }
    }

    /// How many servers there are.
    pub(super) fn count_servers(&self) -> usize {
        self.state.lock().servers.len()
    }

    /// Carries messages for ever.
    pub(super) async fn run(self) {
        loop {
            let changed = self.changed.notified();
            let next = self.state.lock().due.peek().map(|Reverse((at, ..))| *at);
            match next {
                Some(at) if at <= Instant::now() => self.step(),
                Some(at) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    fn step(&self) {
        let mut events = Vec::new();
        let mut state = self.state.lock();
        if let Some(Reverse((_, _, due))) = state.due.pop() {
            state.handle(due, &mut events);
        }
        drop(state);
        for (on_event, event) in events {
            on_event(event);
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock());
        self.changed.notify_one();
        result
    }

    /// Lets a link carry nothing for a while.
    pub(super) fn block(&self, link: Link, time: Duration) {
        self.with(|state| state.block(link, time));
    }

    /// Loses some messages on a link, or delivers them once more after `copied` milliseconds.
    pub(super) fn disturb(&self, link: Link, skip: usize, count: usize, copied: Option<u64>) {
        self.with(|state| state.link(link).faults.push((skip, count, copied)));
    }

    /// Breaks the connection of a node, which connects again at once.
    pub(super) fn reset(&self, node: usize) {
        self.with(|state| {
            let connection = state.nodes[node].connection;
            state.schedule(Duration::ZERO, Due::Disconnect(node, connection));
        });
    }

    /// Stops a server for a while.
    pub(super) fn stop_server(&self, server: usize, time: Duration) {
        self.with(|state| state.stop_server(server, time));
    }

    /// Cuts a node off for good.
    pub(super) fn kill(&self, node: usize) {
        self.with(|state| {
            if let Some(server) = state.nodes[node].server {
                state.forget(server, node);
            }
            let node = &mut state.nodes[node];
            node.is_dead = true;
            node.connection += 1;
            node.connected.notify_waiters();
        });
    }

    /// From now on messages are delayed for a few milliseconds only.
    pub(super) fn quicken(&self) {
        self.state.lock().is_quick = true;
    }

    /// Ends all faults.
    pub(super) fn heal(&self) {
        self.with(|state| {
            state.stored.lock().is_quick = true;
            let links: Vec<Link> = state.links.keys().copied().collect();
            for link in links {
                state.link(link).faults.clear();
                if let Some(block) = state.link(link).blocked {
                    state.schedule(Duration::ZERO, Due::Unblock(link, block));
                }
            }
            for server in 0..state.servers.len() {
                state.schedule(Duration::ZERO, Due::ServerUp(server));
            }
        });
    }
}

impl State {
    fn schedule(&mut self, delay: Duration, due: Due) {
        self.count += 1;
        let entry = (Instant::now() + delay, self.count, due);
        self.due.push(Reverse(entry));
    }

    fn link(&mut self, link: Link) -> &mut LinkState {
        let number = match link {
            Link::Up(node) => node as u64 * 2,
            Link::Down(node) => node as u64 * 2 + 1,
            Link::Route(from, to) => 1 << 32 | (from << 8 | to) as u64,
        };
        let seed = self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.links.entry(link).or_insert_with(|| LinkState {
            random: StdRng::seed_from_u64(seed),
            last: Instant::now(),
            blocked: None,
            blocks: 0,
            held: VecDeque::new(),
            faults: Vec::new(),
        })
    }

    /// Puts a packet on its way.
    fn send(&mut self, link: Link, packet: Packet) {
        let is_quick = self.is_quick;
        let state = self.link(link);
        let delay = match state.random.random_range(0..100) {
            _ if is_quick => 1,
            0 => state.random.random_range(40..250),
            1..20 => state.random.random_range(5..40),
            _ => state.random.random_range(1..5),
        };
        let is_disturbed = |packet: &Packet| match packet {
            Packet::Publish(_, _, bytes, _) | Packet::Deliver(_, _, _, bytes) => {
                !bytes.windows(9).any(|part| part == b"{\"alive\":")
            }
            _ => false,
        };
        let mut copy = None;
        if is_disturbed(&packet) && !state.faults.is_empty() {
            let (skip, count, copied) = &mut state.faults[0];
            let copied = *copied;
            if *skip > 0 {
                *skip -= 1;
            } else {
                *count -= 1;
                if *count == 0 {
                    state.faults.remove(0);
                }
                let Some(copied) = copied else {
                    return;
                };
                copy = Some((Duration::from_millis(copied), packet.clone()));
            }
        }
        let state = self.link(link);
        let at = state
            .last
            .max(Instant::now() + Duration::from_millis(delay));
        state.last = at;
        if let Some((later, copy)) = copy {
            // A copy never comes before the message itself.
            self.schedule(at + later - Instant::now(), Due::Copy(link, copy));
        }
        self.count += 1;
        self.due
            .push(Reverse((at, self.count, Due::Arrival(link, packet))));
    }

    fn handle(&mut self, due: Due, events: &mut Events) {
        match due {
            Due::Arrival(link, packet) => {
                let state = self.link(link);
                match state.blocked {
                    Some(_) => state.held.push_back(packet),
                    None => self.arrive(link, packet),
                }
            }
            Due::Copy(link, packet) => {
                if self.link(link).blocked.is_none() {
                    self.arrive(link, packet);
                }
            }
            Due::Unblock(link, block) => {
                let state = self.link(link);
                if state.blocked == Some(block) {
                    state.blocked = None;
                    for packet in mem::take(&mut state.held) {
                        self.arrive(link, packet);
                    }
                    if let Link::Route(from, to) = link {
                        self.connect_route(from, to);
                    }
                }
            }
            Due::Lost(link, block) => {
                if self.link(link).blocked == Some(block) {
                    match link {
                        Link::Up(node) | Link::Down(node) => self.disconnect(node, events),
                        Link::Route(from, to) => self.disconnect_route(from, to),
                    }
                }
            }
            Due::Connect(node) => self.try_connect(node, events),
            Due::Disconnect(node, connection) => {
                if self.nodes[node].connection == connection {
                    self.disconnect(node, events);
                }
            }
            Due::ServerUp(server) => {
                if !mem::replace(&mut self.servers[server].is_up, true) {
                    for other in 0..self.servers.len() {
                        self.connect_route(server, other);
                    }
                }
            }
        }
    }

    fn block(&mut self, link: Link, time: Duration) {
        let state = self.link(link);
        if state.blocked.is_some() {
            return;
        }
        state.blocks += 1;
        let block = state.blocks;
        state.blocked = Some(block);
        let lost = state.random.random_range(PING_TIMEOUT);
        self.schedule(time, Due::Unblock(link, block));
        self.schedule(Duration::from_millis(lost), Due::Lost(link, block));
    }

    /// A packet has arrived at the end of its link.
    fn arrive(&mut self, link: Link, packet: Packet) {
        match (link, packet) {
            (Link::Up(node), packet) => {
                let Some(server) = self.nodes[node].server else {
                    return;
                };
                if !self.servers[server].is_up {
                    return;
                }
                let current = self.nodes[node].connection;
                match packet {
                    Packet::Publish(connection, subject, bytes, _) if connection == current => {
                        self.publish(server, node, &subject, &bytes, true);
                    }
                    Packet::Subscribe(connection, id, subject) if connection == current => {
                        self.subscribe(server, (node, id), Some(subject));
                    }
                    Packet::Unsubscribe(connection, id) if connection == current => {
                        self.subscribe(server, (node, id), None);
                    }
                    Packet::Close(connection) if connection == current => {
                        self.forget(server, node);
                        self.nodes[node].server = None;
                    }
                    _ => {}
                }
            }
            (Link::Down(node), Packet::Deliver(connection, id, subject, bytes)) => {
                let node = &self.nodes[node];
                if node.connection == connection
                    && !node.is_dead
                    && let Some((_, sender)) = node.subscriptions.get(&id)
                {
                    let subject = format!("{subject:?}");
                    // The subscription may be about to be dropped.
                    let _ = sender.send(Message { subject, bytes });
                }
            }
            (Link::Route(from, to), Packet::Publish(route, subject, bytes, node))
                if self.servers[to].routes[from] == route && self.servers[to].is_up =>
            {
                self.publish(to, node, &subject, &bytes, false);
            }
            (Link::Route(from, to), Packet::Interest(route, subject, has_interest))
                if self.servers[to].routes[from] == route =>
            {
                let interest = &mut self.servers[to].interest;
                match has_interest {
                    true => interest.insert((subject, from)),
                    false => interest.remove(&(subject, from)),
                };
            }
            _ => {}
        }
    }

    /// A server delivers a message to its nodes, and to the other servers if it `is_first`.
    fn publish(
        &mut self,
        server: usize,
        node: usize,
        subject: &Subject,
        bytes: &Arc<Vec<u8>>,
        is_first: bool,
    ) {
        let subscribed = self.servers[server].subscriptions.iter();
        let subscribed = subscribed.filter(|((to, _), of)| *to != node && *of == subject);
        let receivers: Vec<(usize, u64)> = subscribed.map(|(key, _)| *key).collect();
        for (to, id) in receivers {
            let connection = self.nodes[to].connection;
            let deliver = Packet::Deliver(connection, id, subject.clone(), bytes.clone());
            self.send(Link::Down(to), deliver);
        }
        if is_first {
            for to in 0..self.servers.len() {
                if self.servers[server]
                    .interest
                    .contains(&(subject.clone(), to))
                {
                    let route = self.servers[server].routes[to];
                    let publish = Packet::Publish(route, subject.clone(), bytes.clone(), node);
                    self.send(Link::Route(server, to), publish);
                }
            }
        }
    }

    /// Begins or ends a subscription at a server, which tells the others if it is the first or last to its
    /// subject.
    fn subscribe(&mut self, server: usize, key: (usize, u64), subject: Option<Subject>) {
        let subscriptions = &mut self.servers[server].subscriptions;
        let begins = subject.is_some();
        let subject = match subject {
            Some(subject) => {
                subscriptions.insert(key, subject.clone());
                subject
            }
            None => match subscriptions.remove(&key) {
                Some(subject) => subject,
                None => return,
            },
        };
        let count = subscriptions.values().filter(|of| **of == subject).count();
        if count == usize::from(begins) {
            for to in 0..self.servers.len() {
                let route = self.servers[server].routes[to];
                if to != server {
                    let interest = Packet::Interest(route, subject.clone(), begins);
                    self.send(Link::Route(server, to), interest);
                }
            }
        }
    }

    /// A server forgets the subscriptions of a node.
    fn forget(&mut self, server: usize, node: usize) {
        let keys = self.servers[server].subscriptions.keys();
        let keys: Vec<(usize, u64)> = keys.filter(|(of, _)| *of == node).copied().collect();
        for key in keys {
            self.subscribe(server, key, None);
        }
    }

    fn try_connect(&mut self, node: usize, events: &mut Events) {
        let state = &self.nodes[node];
        if state.is_dead || state.server.is_some() || state.on_event.is_none() {
            return;
        }
        let Some(server) = self.reachable(node) else {
            return self.schedule(RECONNECT, Due::Connect(node));
        };
        let state = &mut self.nodes[node];
        state.server = Some(server);
        let connection = state.connection;
        let subscriptions = state.subscriptions.iter();
        let subscriptions: Vec<(u64, Subject)> = subscriptions
            .map(|(id, (subject, _))| (*id, subject.clone()))
            .collect();
        let unwritten = mem::take(&mut state.unwritten);
        state.connected.notify_waiters();
        events.extend(
            state
                .on_event
                .clone()
                .map(|it| (it, ConnectionEvent::Connected)),
        );
        for (id, subject) in subscriptions {
            self.send(Link::Up(node), Packet::Subscribe(connection, id, subject));
        }
        for (subject, bytes) in unwritten {
            let publish = Packet::Publish(connection, subject, Arc::new(bytes), node);
            self.send(Link::Up(node), publish);
        }
    }

    /// A server that the node can connect to.
    fn reachable(&mut self, node: usize) -> Option<usize> {
        let links = [Link::Up(node), Link::Down(node)];
        if links.iter().any(|link| self.link(*link).blocked.is_some()) {
            return None;
        }
        let (home, count) = (self.nodes[node].home, self.servers.len());
        let mut servers = (0..count).map(|offset| (home + offset) % count);
        servers.find(|server| self.servers[*server].is_up)
    }

    fn disconnect(&mut self, node: usize, events: &mut Events) {
        let Some(server) = self.nodes[node].server.take() else {
            return;
        };
        self.forget(server, node);
        let state = &mut self.nodes[node];
        state.connection += 1;
        events.extend(
            state
                .on_event
                .clone()
                .map(|it| (it, ConnectionEvent::Disconnected)),
        );
        self.schedule(Duration::from_millis(5), Due::Connect(node));
    }

    fn stop_server(&mut self, server: usize, time: Duration) {
        if !mem::replace(&mut self.servers[server].is_up, false) {
            return;
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].server == Some(server) {
                let connection = self.nodes[node].connection;
                let notices = self.link(Link::Down(node)).random.random_range(1..50);
                let notices = Duration::from_millis(notices);
                self.schedule(notices, Due::Disconnect(node, connection));
            }
        }
        self.servers[server].subscriptions.clear();
        for other in 0..self.servers.len() {
            self.disconnect_route(server, other);
        }
        self.schedule(time, Due::ServerUp(server));
    }

    fn disconnect_route(&mut self, from: usize, to: usize) {
        for (from, to) in [(from, to), (to, from)] {
            let server = &mut self.servers[from];
            server.interest.retain(|(_, of)| *of != to);
        }
        // Both ends count connections, so that they have the same number.
        let route = self.servers[from].routes[to] + 1;
        self.servers[from].routes[to] = route;
        self.servers[to].routes[from] = route;
    }

    /// Tells each of two servers the subscriptions of the other, if both are up and can reach each other.
    fn connect_route(&mut self, one: usize, other: usize) {
        let links = [Link::Route(one, other), Link::Route(other, one)];
        let is_cut = links.iter().any(|link| self.link(*link).blocked.is_some());
        if one == other || is_cut || !self.servers[one].is_up || !self.servers[other].is_up {
            return;
        }
        for (from, to) in [(one, other), (other, one)] {
            let subjects = self.servers[from].subscriptions.values().cloned();
            let subjects: BTreeSet<Subject> = subjects.collect();
            let route = self.servers[from].routes[to];
            for subject in subjects {
                self.send(
                    Link::Route(from, to),
                    Packet::Interest(route, subject, true),
                );
            }
        }
    }
}

type Events = Vec<(Arc<dyn Fn(ConnectionEvent) + Send + Sync>, ConnectionEvent)>;

/// Connects one node to the bus.
pub(super) struct SimulatedTransport {
    bus: Bus,
    pub(super) node: usize,
}

impl Transport for SimulatedTransport {
    type Connection = SimulatedConnection;

    async fn connect(
        &self,
        _: String,
        on_event: impl Fn(ConnectionEvent) + Send + Sync + 'static,
    ) -> Result<SimulatedConnection, String> {
        sleep(Duration::from_millis(1)).await;
        let (bus, node) = (self.bus.clone(), self.node);
        let on_event: Arc<dyn Fn(ConnectionEvent) + Send + Sync> = Arc::new(on_event);
        bus.with(|state| {
            let server = state.reachable(node).ok_or("no server can be reached")?;
            state.nodes[node].server = Some(server);
            state.nodes[node].on_event = Some(on_event.clone());
            Ok::<_, String>(())
        })?;
        on_event(ConnectionEvent::Connected);
        Ok(SimulatedConnection { bus, node })
    }

    fn message_store(&self) -> Option<Arc<dyn MessageStore>> {
        let bus = self.bus.clone();
        let stored = bus.state.lock().stored.clone();
        Some(Arc::new(SimulatedStore {
            node: self.node,
            connections: Arc::new(move |node| {
                let node = &bus.state.lock().nodes[node];
                let is_connected = node.server.is_some() && !node.is_dead;
                is_connected.then_some(node.connection)
            }),
            stored,
        }))
    }

    fn servers(&self) -> String {
        "the simulation".into()
    }
}

pub(super) struct SimulatedConnection {
    bus: Bus,
    node: usize,
}

impl Connection for SimulatedConnection {
    type Payload = Message;
    type Subscription = Subscription;

    fn is_connected(&self) -> bool {
        let state = self.bus.state.lock();
        state.nodes[self.node].server.is_some()
    }

    async fn publish(&self, subject: &Subject, payload: Vec<u8>) {
        let node = self.node;
        loop {
            let connected = {
                let mut state = self.bus.state.lock();
                let this = &mut state.nodes[node];
                if this.is_dead {
                    return;
                }
                if this.server.is_some() {
                    let bytes = Arc::new(payload);
                    let publish = Packet::Publish(this.connection, subject.clone(), bytes, node);
                    state.send(Link::Up(node), publish);
                    break;
                }
                if this.unwritten.len() < UNWRITTEN_MESSAGES {
                    this.unwritten.push_back((subject.clone(), payload));
                    return;
                }
                this.connected.clone().notified_owned()
            };
            connected.await;
        }
        self.bus.changed.notify_one();
    }

    async fn subscribe(&self, subject: &Subject) -> Result<Subscription, String> {
        let (bus, node) = (self.bus.clone(), self.node);
        let (sender, messages) = mpsc::unbounded_channel();
        let id = bus.with(|state| {
            let this = &mut state.nodes[node];
            this.next_subscription += 1;
            let (id, connection) = (this.next_subscription, this.connection);
            this.subscriptions.insert(id, (subject.clone(), sender));
            if this.server.is_some() {
                let subscribe = Packet::Subscribe(connection, id, subject.clone());
                state.send(Link::Up(node), subscribe);
            }
            id
        });
        Ok(Subscription {
            bus,
            node,
            id,
            messages,
        })
    }

    async fn flush(&self) {}
}

impl Drop for SimulatedConnection {
    fn drop(&mut self) {
        let node = self.node;
        self.bus.with(|state| {
            let this = &mut state.nodes[node];
            this.on_event = None;
            let close = Packet::Close(this.connection);
            if this.server.is_some() {
                state.send(Link::Up(node), close);
            }
        });
    }
}

pub(super) struct Subscription {
    bus: Bus,
    node: usize,
    id: u64,
    messages: mpsc::UnboundedReceiver<Message>,
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.messages.poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let (node, id) = (self.node, self.id);
        self.bus.with(|state| {
            let this = &mut state.nodes[node];
            this.subscriptions.remove(&id);
            let unsubscribe = Packet::Unsubscribe(this.connection, id);
            if this.server.is_some() {
                state.send(Link::Up(node), unsubscribe);
            }
        });
    }
}

/// A message as it arrives at a node.
pub(super) struct Message {
    subject: String,
    bytes: Arc<Vec<u8>>,
}

impl Payload for Message {
    fn subject(&self) -> &str {
        &self.subject
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
