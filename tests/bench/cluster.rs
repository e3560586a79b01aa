//! The cost of several nodes, in CPU time and in messages over NATS, compared to a single node, and in CPU time to
//! Socket.IO's nodes with Redis.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Plan, cluster_socketio,
    dialect::Dialect,
    report,
    servers::{Kind, Process, Server, free_port, on_server_core},
    swarm::{Swarm, text_frame},
    take_a_core,
    works::{self, Span, deliver_to_all, join_all, measure_all},
};

/// The time limit for the nodes to know each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of rooms, sessions or messages over which an average is taken.
const COUNTED: usize = 2000;

/// The number of pairs of runs of a single node and of a node with another: many, as the difference is
/// small.
const PAIRS: usize = 9;

/// How long the nodes work before they are measured: Node.js needs two seconds to compile what it runs often.
const WARM_UP: Duration = Duration::from_secs(2);

/// The number of pairs of sessions on two nodes that exchange messages.
const BUSY_PAIRS: usize = 100;

/// The number of sessions in the room that is spread over the nodes.
const CROWD: usize = 1001;

/// The number of nodes over which Socket.IO's room is spread.
const BESIDE: usize = 3;

/// The length of `data`, in bytes.
const DATA_BYTES: usize = 100;

/// A NATS server, on the core of the nodes.
struct Nats {
    process: Process,
    url: String,
}

impl Nats {
    fn start() -> io::Result<Nats> {
        let port = free_port()?;
        let process = Process::start(
            on_server_core()
                .args(["nats-server", "--addr", "127.0.0.1"])
                .args(["--port", &port.to_string()])
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let url = format!("nats://127.0.0.1:{port}");
        Ok(Nats { process, url })
    }
}

/// Nodes that know each other.
struct Nodes {
    nodes: Vec<Server>,
    admins: Vec<SocketAddr>,
    nats: Nats,
}

impl Nodes {
    fn start(count: usize, peers: &Path) -> io::Result<Nodes> {
        let nats = Nats::start()?;
        let mut nodes = Nodes {
            nodes: Vec::new(),
            admins: Vec::new(),
            nats,
        };
        for _ in 0..count {
            let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
            let options = [
                format!("--admin={admin}"),
                format!("--cluster={}", nodes.nats.url),
            ];
            nodes
                .nodes
                .push(Server::start_with(Kind::Anteroom, peers, &options)?);
            nodes.admins.push(admin);
        }
        let begin = Instant::now();
        for admin in &nodes.admins {
            while ask(*admin, "/ready")?.0 != 200
                || metric_value(&ask(*admin, "/metrics")?.1, "anteroom_cluster_nodes") as usize + 1
                    != count
            {
                if begin.elapsed() > PATIENCE {
                    return Err(io::Error::other("the nodes do not find each other"));
                }
                sleep(Duration::from_millis(50));
            }
        }
        Ok(nodes)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes
            .iter()
            .flat_map(|node| node.addresses.clone())
            .collect()
    }

    /// The CPU time that all nodes, and NATS, have used so far.
    fn cpu(&self) -> io::Result<[Duration; 2]> {
        let nodes = self.nodes.iter().map(|node| node.process.cpu());
        Ok([nodes.sum::<io::Result<_>>()?, self.nats.process.cpu()?])
    }

    /// The number of messages that the nodes have published to NATS and received from it.
    fn messages(&self) -> io::Result<[f64; 2]> {
        let mut sums = [0.0; 2];
        for admin in &self.admins {
            let metrics = ask(*admin, "/metrics")?.1;
            sums[0] += metric_value(&metrics, "anteroom_cluster_messages_sent_total");
            sums[1] += metric_value(&metrics, "anteroom_cluster_messages_received_total");
        }
        Ok(sums)
    }
}

/// Sends a GET request to the admin API; returns the status, and the rest of the answer after its first
/// line.
pub fn ask(admin: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = BufReader::new(TcpStream::connect(admin)?);
    write!(
        stream.get_mut(),
        "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
    )?;
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest)?;
    let status = first
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(0), rest))
}

/// The value of one series of the metrics; 0 if the series does not exist.
pub fn metric_value(metrics: &str, series: &str) -> f64 {
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    found.map_or(0.0, |(_, value)| value.trim().parse().unwrap_or(0.0))
}

/// The median of the results of several runs.
fn median(values: Vec<f64>) -> f64 {
    report::median(values.into_iter()).expect("there are runs")
}

/// The CPU time of the nodes and of what connects them, in microseconds, in each run of a workload.
struct Row {
    label: String,
    ours: Vec<[f64; 2]>,
    /// Socket.IO's, if it was given the workload.
    theirs: Vec<[f64; 2]>,
}

impl Row {
    fn new(label: impl Into<String>) -> Row {
        Row {
            label: label.into(),
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }

    /// Prints the medians, and in parentheses those of the ratios of Socket.IO to anteroom in the same round.
    fn print(&self) {
        let with_sum = |[nodes, broker]: &[f64; 2]| [*nodes, *broker, nodes + broker];
        let ours: Vec<[f64; 3]> = self.ours.iter().map(with_sum).collect();
        let theirs: Vec<[f64; 3]> = self.theirs.iter().map(with_sum).collect();
        let cells = [0, 1, 2].map(|column| {
            let figure = median(ours.iter().map(|figures| figures[column]).collect());
            format!("{figure:.2}")
        });
        println!("| {} | {} |", self.label, cells.join(" | "));
        if theirs.is_empty() {
            return;
        }
        let cells = [0, 1, 2].map(|column| {
            let figure = median(theirs.iter().map(|figures| figures[column]).collect());
            let rounds = theirs.iter().zip(&ours);
            let ratios = rounds.map(|(theirs, ours)| theirs[column] / ours[column]);
            format!("{figure:.2} ({:.2})", median(ratios.collect()))
        });
        println!("| {}, Socket.IO | {} |", self.label, cells.join(" | "));
    }
}

/// Runs all measurements and prints their tables.
pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let span = plan.span;
    // A single node and a node with another take turns: each pair of runs gives a ratio.
    let mut ratios = Vec::new();
    let runs = if plan.repetitions > 1 { PAIRS } else { 1 };
    for _ in 0..runs {
        let alone = Server::start(Kind::Anteroom, peers)?;
        let off = works::unicast(&alone, span, 200, 200, 100)?.micros_each();
        drop(alone);
        let nodes = Nodes::start(2, peers)?;
        let on = works::unicast(&nodes.nodes[0], span, 200, 200, 100)?.micros_each();
        eprintln!("one to one on a node: {off:.2} µs alone, {on:.2} µs with another node");
        ratios.push(on / off);
    }
    println!(
        "one to one on one node, with another beside it: {:.3} of what it costs alone\n",
        median(ratios)
    );

    let span = Span {
        warm_up: WARM_UP,
        ..span
    };
    println!(
        "| processor time, µs | nodes | NATS or Redis | together |\n| --- | --- | --- | --- |"
    );
    let mut row = Row::new("one to one between two nodes, each message");
    for _ in 0..plan.repetitions {
        row.ours
            .push(remote_unicast(&Nodes::start(2, peers)?, span)?);
        let theirs = cluster_socketio::Nodes::start(2, peers)?;
        let result = cluster_socketio::unicast(&theirs, span, BUSY_PAIRS, DATA_BYTES)?;
        row.theirs.push(result);
    }
    row.print();
    for count in [2, 3, 5] {
        let mut row = Row::new(format!("one to 1,000 over {count} nodes, each delivery"));
        for _ in 0..plan.repetitions {
            row.ours
                .push(remote_broadcast(&Nodes::start(count, peers)?, span)?);
            if count == BESIDE {
                let theirs = cluster_socketio::Nodes::start(count, peers)?;
                let result = cluster_socketio::broadcast(&theirs, span, CROWD, DATA_BYTES)?;
                row.theirs.push(result);
            }
        }
        row.print();
    }

    println!(
        "\n| messages over NATS, published and received | 2 nodes | 3 nodes | 5 nodes |\n| --- | --- | --- | --- |"
    );
    let mut columns = Vec::new();
    for count in [2, 3, 5] {
        columns.push(messages(&Nodes::start(count, peers)?)?);
    }
    for index in 0..columns[0].len() {
        let cells: Vec<String> = columns
            .iter()
            .map(|column| format!("{:.1} and {:.1}", column[index].1[0], column[index].1[1]))
            .collect();
        println!("| {} | {} |", columns[0][index].0, cells.join(" | "));
    }
    Ok(())
}

/// The cost of a message between two sessions on different nodes that answer each other.
fn remote_unicast(nodes: &Nodes, span: Span) -> io::Result<[f64; 2]> {
    let swarm = Swarm::new(&nodes.addresses(), Dialect::Rooms)?;
    let mut pairs = works::Pairs::join(swarm, 2 * BUSY_PAIRS, DATA_BYTES)?;
    pairs.start(BUSY_PAIRS)?;
    measure_all(|| nodes.cpu(), span, || pairs.answer())
}

/// The cost of a delivery when one session sends to all others in a room that is spread over the nodes.
fn remote_broadcast(nodes: &Nodes, span: Span) -> io::Result<[f64; 2]> {
    let mut swarm = Swarm::new(&nodes.addresses(), Dialect::Rooms)?;
    let rooms = (0..CROWD).map(|_| "room".to_owned());
    join_all(&mut swarm, rooms, CROWD * (CROWD - 1) / 2, |_, _| {})?;
    deliver_to_all(&mut swarm, DATA_BYTES, || nodes.cpu(), span)
}

/// The number of messages that nodes publish and receive for each of several events.
fn messages(nodes: &Nodes) -> io::Result<Vec<(&'static str, [f64; 2])>> {
    let mut figures = Vec::new();
    let mut since = nodes.messages()?;
    let mut count = |label, nodes: &Nodes| -> io::Result<()> {
        // Time for the messages in flight to arrive.
        sleep(Duration::from_millis(300));
        let now = nodes.messages()?;
        let each = [0, 1].map(|index| (now[index] - since[index]) / COUNTED as f64);
        since = now;
        figures.push((label, each));
        Ok(())
    };
    let room = |number: usize| format!("room-{number}");
    let addresses = nodes.addresses();
    // Each session of the first swarm is alone in its room.
    let mut first = Swarm::new(&addresses[..1], Dialect::Rooms)?;
    join_all(&mut first, (0..COUNTED).map(room), 0, |_, _| {})?;
    count("the first in a room", nodes)?;
    let mut others = Swarm::new(&addresses[1..], Dialect::Rooms)?;
    let each = addresses.len() - 1;
    let rooms = (0..COUNTED * each).map(|number| room(number / each));
    join_all(
        &mut others,
        rooms,
        COUNTED * each * (each - 1) / 2,
        |_, _| {},
    )?;
    count("", nodes)?;
    let mut one_more = Swarm::new(&addresses[..1], Dialect::Rooms)?;
    join_all(&mut one_more, (0..COUNTED).map(room), 0, |_, _| {})?;
    count("one more, with a session on every node", nodes)?;
    let frame = text_frame(Dialect::Rooms, &Dialect::Rooms.message("all", 100));
    for number in 0..COUNTED {
        first.send(number, &frame)?;
    }
    count("a message to all", nodes)?;
    one_more.drop_last(COUNTED);
    count("one of them leaves", nodes)?;
    figures.retain(|(label, _)| !label.is_empty());
    Ok(figures)
}
