//! The cost of several nodes, in CPU time and in messages over NATS, compared to a single node.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Plan,
    dialect::{Dialect, Text},
    report,
    servers::{Kind, Process, Server, on_server_core},
    swarm::{Swarm, text_frame},
    take_a_core,
    works::{self, Span, join_all},
};

/// The time limit for the nodes to know each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of rooms, sessions or messages over which an average is taken.
const COUNTED: usize = 2000;

/// The number of pairs of runs of a single node and of a node with another: many, as the difference is
/// small.
const PAIRS: usize = 9;

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

    /// The CPU time that all nodes have used so far.
    fn cpu(&self) -> io::Result<Duration> {
        self.nodes.iter().map(|node| node.process.cpu()).sum()
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

pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
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

/// Runs all measurements and prints their tables.
pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let span = plan.span;
    // A single node and a node with another take turns: each pair of runs gives a ratio.
    let mut ratios = Vec::new();
    for _ in 0..PAIRS {
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

    println!("| processor time, µs | nodes | NATS |\n| --- | --- | --- |");
    let row = |label: &str, count: usize, work: &dyn Fn(&Nodes) -> io::Result<[f64; 2]>| {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..plan.repetitions {
            let result = work(&Nodes::start(count, peers)?)?;
            (0..2).for_each(|index| figures[index].push(result[index]));
        }
        let [nodes, nats] = figures.map(median);
        println!("| {label} | {nodes:.2} | {nats:.2} |");
        io::Result::Ok(())
    };
    row("one to one between two nodes, each message", 2, &|nodes| {
        remote_unicast(nodes, span)
    })?;
    for count in [2, 3, 5] {
        let label = format!("one to 1,000 over {count} nodes, each delivery");
        row(&label, count, &|nodes| remote_broadcast(nodes, span))?;
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

/// The CPU time of the nodes and of NATS for each unit of `work`, in microseconds. `work` does a little and
/// returns the number of units.
fn measure(
    nodes: &Nodes,
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
    let before = [nodes.cpu()?, nodes.nats.process.cpu()?];
    let count = during(span.measured)?;
    let after = [nodes.cpu()?, nodes.nats.process.cpu()?];
    Ok([0, 1].map(|index| (after[index] - before[index]).as_secs_f64() * 1e6 / count as f64))
}

/// The cost of a message between two sessions on different nodes that answer each other.
fn remote_unicast(nodes: &Nodes, span: Span) -> io::Result<[f64; 2]> {
    let mut pairs = works::Pairs::join(Swarm::new(&nodes.addresses(), Dialect::Rooms)?, 200, 100)?;
    pairs.start(100)?;
    measure(nodes, span, || pairs.answer())
}

/// The cost of a delivery when one session sends to all others in a room that is spread over the nodes.
fn remote_broadcast(nodes: &Nodes, span: Span) -> io::Result<[f64; 2]> {
    let size = 1001;
    let mut swarm = Swarm::new(&nodes.addresses(), Dialect::Rooms)?;
    let rooms = (0..size).map(|_| "room".to_owned());
    join_all(&mut swarm, rooms, size * (size - 1) / 2, |_, _| {})?;
    let frame = text_frame(Dialect::Rooms, &Dialect::Rooms.message("all", 100));
    swarm.send(0, &frame)?;
    let mut delivered = 0;
    measure(nodes, span, || {
        let mut count = 0;
        for number in swarm.wait()? {
            swarm.read(number, |text| {
                count += u64::from(Dialect::Rooms.text(text) == Text::Message);
            })?;
        }
        delivered += count as usize;
        if delivered == size - 1 {
            delivered = 0;
            swarm.send(0, &frame)?;
        }
        Ok(count)
    })
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
