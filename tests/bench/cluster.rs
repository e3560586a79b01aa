//! What several nodes cost: beside one that is alone, in processor time and in messages over NATS.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{time::ClockId, unistd::Pid};

use crate::{
    Plan,
    dialect::Dialect,
    servers::{Kind, Server},
    swarm::{Swarm, text_frame},
    take_a_core,
    works::{self, Span, join_all},
};

/// How long the nodes may take to know each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many rooms, sessions or messages are counted.
const COUNTED: usize = 2000;

/// How often a node is measured alone and with another: the difference is small.
const PAIRS: usize = 9;

/// A NATS server, alone with the nodes on their core.
struct Nats {
    process: Child,
    clock: ClockId,
    url: String,
}

impl Nats {
    fn start() -> io::Result<Nats> {
        let port = free_port()?;
        let process = Command::new("taskset")
            .args(["--cpu-list", "0", "nats-server", "--addr", "127.0.0.1"])
            .args(["--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.id() as i32))?;
        let url = format!("nats://127.0.0.1:{port}");
        Ok(Nats {
            process,
            clock,
            url,
        })
    }

    fn cpu(&self) -> io::Result<Duration> {
        Ok(self.clock.now()?.into())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
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
                || value(&ask(*admin, "/metrics")?.1, "anteroom_cluster_nodes") as usize + 1
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

    fn cpu(&self) -> io::Result<Duration> {
        self.nodes.iter().map(Server::cpu).sum()
    }

    /// How many messages the nodes have given to NATS, and have got from it.
    fn messages(&self) -> io::Result<[f64; 2]> {
        let mut sums = [0.0; 2];
        for admin in &self.admins {
            let metrics = ask(*admin, "/metrics")?.1;
            sums[0] += value(&metrics, "anteroom_cluster_messages_sent_total");
            sums[1] += value(&metrics, "anteroom_cluster_messages_received_total");
        }
        Ok(sums)
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The status and the body of an operator's answer.
fn ask(admin: SocketAddr, path: &str) -> io::Result<(u16, String)> {
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

fn value(metrics: &str, series: &str) -> f64 {
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    found.map_or(0.0, |(_, value)| value.trim().parse().unwrap_or(0.0))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures all of it, and prints tables.
pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let span = plan.span;
    // Alone and with another node, by turns: each pair of runs is a ratio.
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
        "\n| messages over NATS, said and heard | 2 nodes | 3 nodes | 5 nodes |\n| --- | --- | --- | --- |"
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

/// What is done while `work` runs, in microseconds of processor time of the nodes and of NATS for each.
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
    let before = [nodes.cpu()?, nodes.nats.cpu()?];
    let count = during(span.measured)?;
    let after = [nodes.cpu()?, nodes.nats.cpu()?];
    Ok([0, 1].map(|index| (after[index] - before[index]).as_secs_f64() * 1e6 / count as f64))
}

/// Pairs of sessions, one on each node, that answer each other.
fn remote_unicast(nodes: &Nodes, span: Span) -> io::Result<[f64; 2]> {
    let mut pairs = works::Pairs::join(&nodes.addresses(), Dialect::Rooms, 200, 100)?;
    pairs.start(100)?;
    measure(nodes, span, || pairs.answer())
}

/// One session sends to all others in a room that is spread over the nodes.
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
                count += u64::from(Dialect::Rooms.text(text) == crate::dialect::Text::Message);
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

/// How many messages nodes say and hear for each of some things.
fn messages(nodes: &Nodes) -> io::Result<Vec<(&'static str, [f64; 2])>> {
    let mut figures = Vec::new();
    let mut since = nodes.messages()?;
    let mut count = |label, nodes: &Nodes| -> io::Result<()> {
        // What is under way arrives.
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
    count("one more, where every node has somebody", nodes)?;
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
