//! Clients of PeerJS on the nodes of a cluster: they claim names, lose their connections and come back, on whichever
//! nodes, and send each other messages by name, under faults that follow from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{runtime, time::sleep};

use super::{
    bus::{Bus, Link},
    stream::Wire,
    world::{frame, take_frame},
};
use crate::{
    config::{Config, Dialect},
    random::seeded,
    server::{Anteroom, InMemoryServer},
};

const DOWN_SECONDS: u64 = 3;
const RESUME_SECONDS: u64 = 5;

/// How long a message waits for its receiver, and a little.
const EXPIRY: Duration = Duration::from_millis(5500);

/// How long it takes until nodes agree after the last fault.
const RECOVERY: Duration = Duration::from_secs(RESUME_SECONDS + DOWN_SECONDS + 21);

/// The names, each with the tokens with which clients claim it. All clients of the first are one user's.
const NAMES: [(&str, &[&str]); 3] = [
    ("ann", &["t"]),
    ("bob", &["t", "u"]),
    ("cat", &["t", "u", "v"]),
];

/// A connection as its client sees it.
#[derive(Default)]
struct Connection {
    name: &'static str,
    is_open: bool,
    /// Whether it has ended, or its client has given it up.
    has_ended: bool,
    messages: Vec<u64>,
    /// The absent names of which it was told.
    expired: Vec<String>,
}

#[derive(Default)]
struct World {
    connections: Vec<Connection>,
    violations: Vec<String>,
}

/// A handle to all.
#[derive(Clone)]
struct Cluster {
    world: Arc<Mutex<World>>,
    nodes: Arc<Vec<InMemoryServer>>,
}

impl Cluster {
    /// Has a client connect to a node. Returns the number of the connection.
    fn connect(&self, node: usize, name: &'static str, token: &str) -> (usize, Wire) {
        let wire = Wire::new();
        let number = {
            let connections = &mut self.world.lock().connections;
            connections.push(Connection {
                name,
                ..Connection::default()
            });
            connections.len() - 1
        };
        let address = SocketAddr::from(([10, 0, 0, 1], 1000 + number as u16));
        self.nodes[node].serve(wire.node_end(), address);
        let request = format!(
            "GET /peerjs/peerjs?key=tea&id={name}&token={token} HTTP/1.1\r\nHost: simulation\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        wire.send(request.as_bytes());
        tokio::spawn(self.clone().serve(number, wire.clone()));
        (number, wire)
    }

    /// Serves a connection of a client to its end.
    async fn serve(self, number: usize, wire: Wire) {
        let (mut bytes, mut is_upgraded) = (Vec::new(), false);
        while let Some(more) = wire.receive().await {
            bytes.extend(more);
            if !is_upgraded {
                let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
                    continue;
                };
                bytes.drain(..end + 4);
                is_upgraded = true;
            }
            while let Some((opcode, payload)) = take_frame(&mut bytes) {
                match opcode {
                    0x1 => self.receive(number, &payload),
                    0x9 => wire.send(&frame(0xa, &payload)),
                    0x8 => {
                        wire.send(&frame(0x8, &payload[..payload.len().min(2)]));
                        wire.close();
                    }
                    _ => self.violation(format!("a frame {opcode:x}")),
                }
            }
        }
        self.world.lock().connections[number].has_ended = true;
    }

    fn receive(&self, number: usize, payload: &[u8]) {
        let message: Value = serde_json::from_slice(payload).unwrap();
        let world = &mut *self.world.lock();
        let connection = &mut world.connections[number];
        match message["type"].as_str().unwrap() {
            "OPEN" if connection.is_open => world.violations.push(format!("{number} opens twice")),
            "OPEN" => connection.is_open = true,
            "ID-TAKEN" if NAMES[0].0 == connection.name => {
                let what = format!("{number}: the id of the only user is taken");
                world.violations.push(what);
            }
            "ID-TAKEN" => connection.has_ended = true,
            "EXPIRE" => {
                let absent = message["src"].as_str().unwrap();
                connection.expired.push(absent.to_owned());
            }
            "OFFER" if message["dst"] != connection.name || !connection.is_open => {
                let what = format!("{number}: {message} for {}", connection.name);
                world.violations.push(what);
            }
            "OFFER" => connection
                .messages
                .push(message["payload"].as_u64().unwrap()),
            _ => world.violations.push(format!("{number} gets {message}")),
        }
    }

    fn violation(&self, what: String) {
        self.world.lock().violations.push(what);
    }

    /// The open connections.
    fn open(&self) -> Vec<usize> {
        let world = self.world.lock();
        let connections = world.connections.iter().enumerate();
        let open = connections.filter(|(_, it)| it.is_open && !it.has_ended);
        open.map(|(number, _)| number).collect()
    }
}

fn offer(to: &str, number: u64) -> Vec<u8> {
    let text = format!(r#"{{"type":"OFFER","dst":"{to}","payload":{number}}}"#);
    frame(0x1, text.as_bytes())
}

async fn simulate(seed: u64) -> Vec<String> {
    let random = &mut StdRng::seed_from_u64(seed);
    let is_harsh = seed % 2 == 1;
    let servers = random.random_range(1..=2);
    let bus = Bus::new(seed, servers);
    tokio::spawn(bus.clone().run());
    let count = random.random_range(2..=3);
    let start = |node| {
        let mut config = Config::default();
        config.serving.dialect = vec![Dialect::PeerJs];
        config.cluster.down_seconds = DOWN_SECONDS;
        config.liveness.resume_seconds = RESUME_SECONDS;
        config.liveness.ping_seconds = 3;
        config.liveness.pong_seconds = 3;
        Anteroom::with_transport(config, Some(bus.transport(node))).unwrap()
    };
    let anterooms: Vec<Anteroom> = (0..count).map(start).collect();
    let nodes = anterooms.iter().map(InMemoryServer::new).collect();
    let cluster = Cluster {
        world: Arc::default(),
        nodes: Arc::new(nodes),
    };
    sleep(Duration::from_millis(2500)).await;

    let mut wires: BTreeMap<usize, Wire> = BTreeMap::new();
    let mut sent = 0;
    for _ in 0..random.random_range(20..80) {
        sleep(Duration::from_millis(random.random_range(0..300))).await;
        let any = random.random_range(0..wires.len().max(1));
        let any = wires.keys().nth(any).copied();
        let (name, tokens) = NAMES[random.random_range(0..NAMES.len())];
        let token = tokens[random.random_range(0..tokens.len())];
        let node = random.random_range(0..count);
        match random.random_range(0..20) {
            0..6 => {
                let (number, wire) = cluster.connect(node, name, token);
                wires.insert(number, wire);
            }
            6..14 => {
                if let Some(wire) = any.and_then(|any| wires.get(&any)) {
                    sent += 1;
                    wire.send(&offer(name, sent));
                }
            }
            14..16 => {
                // The client leaves.
                if let Some(wire) = any.and_then(|any| wires.remove(&any)) {
                    wire.send(&frame(0x8, &1000_u16.to_be_bytes()));
                }
            }
            16..18 => {
                // The connection is lost; the node may notice it late, or only by the missing pong.
                if let Some((any, wire)) = any.and_then(|any| Some((any, wires.remove(&any)?))) {
                    wire.cut(Some(0), Some(0));
                    wire.break_client();
                    cluster.world.lock().connections[any].has_ended = true;
                    if random.random_bool(0.6) {
                        let delay = random.random_range(0..1500);
                        tokio::spawn(async move {
                            sleep(Duration::from_millis(delay)).await;
                            wire.break_node();
                        });
                    }
                }
            }
            18 => {
                let most = if is_harsh { 6000 } else { 800 };
                let time = Duration::from_millis(random.random_range(50..most));
                let link = match random.random_bool(0.5) {
                    true => Link::Up(node),
                    false => Link::Down(node),
                };
                bus.block(link, time);
            }
            _ if is_harsh => bus.disturb(Link::Down(node), random.random_range(0..6), 2, None),
            _ => bus.disturb(Link::Down(node), 0, 2, Some(random.random_range(0..200))),
        }
    }

    bus.heal();
    sleep(RECOVERY).await;
    // Each name has one connection at most.
    let open = cluster.open();
    let mut owners = BTreeMap::new();
    for number in &open {
        let name = cluster.world.lock().connections[*number].name;
        if let Some(other) = owners.insert(name, *number) {
            cluster.violation(format!("{name} is {number} and {other}"));
        }
    }
    // Whoever asks, on whichever node, reaches the owner of a name, or is told that there is none.
    let mut asked = Vec::new();
    for node in 0..count {
        let asker = format!("asker{node}").leak();
        let (number, wire) = cluster.connect(node, asker, "t");
        sleep(Duration::from_millis(500)).await;
        for (name, _) in NAMES {
            sent += 1;
            wire.send(&offer(name, sent));
            asked.push((number, name, sent));
        }
        wires.insert(number, wire);
    }
    sleep(EXPIRY).await;
    for (asker, name, message) in asked {
        let world = cluster.world.lock();
        let received = owners.get(name).map(|owner| {
            let messages = &world.connections[*owner].messages;
            messages.contains(&message)
        });
        let is_told = world.connections[asker].expired.iter().any(|it| it == name);
        drop(world);
        if received == Some(false) || is_told == received.is_some() {
            let what = format!("{asker} to {name}: received {received:?}, expired {is_told}");
            cluster.violation(what);
        }
    }
    // No message came twice.
    let twice: Vec<u64> = {
        let world = cluster.world.lock();
        let messages = world.connections.iter().flat_map(|it| &it.messages);
        let mut seen = BTreeSet::new();
        let again = messages.filter(|message| !seen.insert(**message));
        again.copied().collect()
    };
    if !twice.is_empty() {
        cluster.violation(format!("{twice:?} came twice"));
    }
    // Nothing is left.
    for wire in wires.values() {
        wire.send(&frame(0x8, &1000_u16.to_be_bytes()));
    }
    sleep(Duration::from_secs(RESUME_SECONDS + 5)).await;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let shared = node.shared();
        let left = [
            shared.rooms.len(),
            shared.rooms.session_count(),
            shared.resumes.count_suspended(),
            shared.heartbeat.len(),
        ];
        if left != [0; 4] {
            cluster.violation(format!("node {index} has left {left:?}"));
        }
    }
    for anteroom in anterooms {
        anteroom.shut_down().await;
    }
    std::mem::take(&mut cluster.world.lock().violations)
}

/// Runs a seed. Returns the promises that were broken.
pub(super) fn run(seed: u64) -> Vec<String> {
    seeded::seed(Some(seed));
    let runtime = runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let violations = runtime.block_on(simulate(seed));
    drop(runtime);
    seeded::seed(None);
    violations
}
