//! A benchmark that gives the same work to anteroom and to the servers that a user might choose instead, in
//! one run. `tests/bench/run` starts it.
//!
//! Each server has one core for itself, and the load generator has another. The benchmark compares the CPU
//! time that the operating system has counted for the server, so that a noisy machine disturbs little. The
//! servers take turns, and each figure is the median of several runs.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `servers` | the servers: how each is started, and the CPU time and memory it uses |
//! | `peers/` | the servers made for this benchmark: the same rooms on other foundations, and a bare relay |
//! | `dialect` | the messages of the clients of each server |
//! | `swarm` | thousands of clients in one thread |
//! | `link` | the connection of one of them |
//! | `works` | the workloads |
//! | `cluster` | the cost of several nodes (`tests/bench/run --cluster`) |
//! | `cluster_socketio` | the same work for several nodes of Socket.IO |
//! | `history` | the cost of rooms that keep their messages (`tests/bench/run --history`) |
//! | `polling` | the cost of sessions without a WebSocket (`tests/bench/run --polling`) |
//! | `restart` | a restart of the server under thousands of sessions (`tests/bench/run --restart`) |
//! | `redis` | Redis, which connects nodes of Socket.IO and keeps its sessions |
//! | `tls` | the cost of TLS (`tests/bench/run --tls`) |
//! | `turn` | the cost of the TURN server, compared to coturn (`tests/bench/run --turn`) |
//! | `report` | the table and the chart |

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod cluster;
mod cluster_socketio;
mod dialect;
mod history;
mod link;
mod polling;
mod redis;
#[path = "peers/relay.rs"]
mod relay_peer;
mod report;
mod restart;
mod servers;
mod swarm;
mod tls;
mod turn;
#[path = "peers/warp.rs"]
mod warp_peer;
mod works;

use std::{
    cell::Cell,
    env, fs, io,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    report::{Figure, Report, Unit},
    servers::{Kind, Server},
    works::Span,
};

/// The core of the load generator. The servers run on core 0.
const LOAD_CORE: usize = 1;

/// The path of the chart, which the README shows.
const CHART: &str = "tests/bench/chart.svg";

/// The size of a run.
struct Plan {
    /// The number of runs of each workload.
    repetitions: usize,
    span: Span,
    /// The number of sessions in the join storm.
    storm: usize,
    /// The number of idle sessions.
    idle: usize,
    /// The number of sessions over a restart, and of those that join a new server at once.
    restarted: usize,
    /// How long the pings to idle sessions are measured.
    pinging: Duration,
    /// The numbers of sessions, and of those that exchange messages, for the workload that grows.
    growth: &'static [(usize, usize)],
    /// A server that takes longer than this for a workload runs it only once.
    long: Duration,
    /// Whether to write the chart.
    chart: bool,
}

const FULL: Plan = Plan {
    repetitions: 5,
    span: Span {
        warm_up: Duration::from_millis(300),
        measured: Duration::from_millis(800),
    },
    storm: 2000,
    idle: 10_000,
    restarted: 10_000,
    pinging: Duration::from_secs(20),
    growth: &[
        (10, 10),
        (100, 100),
        (1000, 1000),
        (10_000, 10_000),
        (10_000, 100),
    ],
    long: Duration::from_secs(5),
    chart: true,
};

const QUICK: Plan = Plan {
    repetitions: 1,
    span: Span {
        warm_up: Duration::from_millis(100),
        measured: Duration::from_millis(300),
    },
    storm: 500,
    idle: 2000,
    restarted: 1000,
    pinging: Duration::ZERO,
    growth: &[(10, 10), (100, 100), (1000, 1000), (1000, 100)],
    long: Duration::MAX,
    chart: false,
};

fn main() -> ExitCode {
    // `cargo bench` passes --bench, which has no meaning here.
    let arguments: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [servers::SERVE_WARP] => warp_peer::serve(),
        [servers::SERVE_RELAY] => relay_peer::serve(),
        [peers] => run(&FULL, peers.into()),
        [peers, "--quick"] => run(&QUICK, peers.into()),
        [peers, "--cluster"] => cluster::run(&FULL, peers.as_ref()),
        [peers, "--cluster", "--quick"] => cluster::run(&QUICK, peers.as_ref()),
        [peers, "--history"] => history::run(&FULL, peers.as_ref()),
        [peers, "--polling"] => polling::run(&FULL, peers.as_ref()),
        [peers, "--polling", "--quick"] => polling::run(&QUICK, peers.as_ref()),
        [peers, "--restart"] => restart::run(&FULL, peers.as_ref()),
        [peers, "--restart", "--quick"] => restart::run(&QUICK, peers.as_ref()),
        [peers, "--tls"] => tls::run(&FULL, peers.as_ref()),
        [peers, "--tls", "--quick"] => tls::run(&QUICK, peers.as_ref()),
        [peers, "--turn"] => turn::run(&FULL, peers.as_ref()),
        [peers, "--turn", "--quick"] => turn::run(&QUICK, peers.as_ref()),
        _ => Err(io::Error::other(
            "start this with tests/bench/run, perhaps with --quick, --cluster, --history, --polling, --restart, --tls or \
             --turn; --cluster, --polling, --restart, --tls and --turn take --quick",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

// The workloads in the chart.
const UNICAST: &str = "one to one, 100 bytes";
const BROADCAST: &str = "one to 1,000, each delivery";
const BROADCASTS: &str = "one to 1,000, 16 at a time";
const ROOMS: &str = "100 rooms of 10, each delivery";
const STORM: &str = "a crowd joins one room";
const IDLE: &str = "memory of an idle session";

fn run(plan: &Plan, peers: PathBuf) -> io::Result<()> {
    take_a_core()?;

    let mut bench = Bench {
        plan,
        peers,
        report: Report::default(),
    };
    let with_rooms = [
        Kind::Anteroom,
        Kind::Bun,
        Kind::Warp,
        Kind::Ws,
        Kind::SocketIo,
    ];
    let fastest = [Kind::Anteroom, Kind::Bun];
    // Resumable sessions are compared where resuming may cost something, the relay where it can do the
    // work.
    let with_sessions = &Kind::ALL[..8];
    let growing = [Kind::Anteroom, Kind::Bun, Kind::Relay];
    let span = plan.span;

    // Latency is measured at half the rate that the slower of the two fastest servers achieves.
    let achieved = Cell::new(f64::INFINITY);
    bench.each(&Kind::ALL, |server| {
        let cost = works::unicast(server, span, 200, 200, 100)?;
        if fastest.contains(&server.kind) {
            achieved.set(achieved.get().min(cost.rate()));
        }
        let own = Figure::new(
            "… of which in its own code",
            Unit::Percent,
            100.0 * cost.user_share,
        );
        Ok(vec![
            Figure::new(UNICAST, Unit::Micros, cost.micros_each()),
            own,
        ])
    });
    bench.each(Kind::SERVERS, |server| {
        let cost = works::unicast(server, span, 200, 200, 4000)?;
        Ok(vec![Figure::new(
            "one to one, 4,000 bytes",
            Unit::Micros,
            cost.micros_each(),
        )])
    });
    let broadcasts = [
        (BROADCAST, 1, 1001, 1),
        (BROADCASTS, 1, 1001, 16),
        (ROOMS, 100, 10, 1),
    ];
    bench.each_of(
        &broadcasts,
        &with_rooms,
        |server, (label, rooms, size, in_flight)| {
            let cost = works::broadcast(server, span, rooms, size, in_flight)?;
            Ok(vec![Figure::new(label, Unit::Micros, cost.micros_each())])
        },
    );
    bench.each(&with_rooms, |server| {
        let cost = works::storm(server, plan.storm)?;
        Ok(vec![Figure::new(
            STORM,
            Unit::Seconds,
            cost.cpu.as_secs_f64(),
        )])
    });
    bench.each(with_sessions, |server| {
        let idle = works::idle(server, plan.idle, plan.pinging)?;
        let mut figures = vec![Figure::new(IDLE, Unit::Kilobytes, idle.bytes_each / 1000.0)];
        if let Some(cpu) = idle.cpu_per_minute {
            let millis = cpu.as_secs_f64() * 1000.0;
            figures.push(Figure::new(
                "pinging all of them",
                Unit::MillisPerMinute,
                millis,
            ));
        }
        Ok(figures)
    });
    let rate = achieved.get() / 2.0;
    bench.each(Kind::SERVERS, |server| {
        let latencies = works::latency(server, span, 200, rate)?;
        let figures = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)].map(|(label, part)| {
            let latency = report::percentile(&latencies, part);
            let label = format!("latency at half load, {label}");
            Figure::new(label, Unit::Latency, latency.as_secs_f64() * 1e6)
        });
        Ok(figures.into())
    });
    bench.each_of(plan.growth, &growing, |server, (sessions, busy)| {
        let cost = works::unicast(server, span, sessions, busy, 100)?;
        let mut label = format!("one to one among {sessions} sessions");
        if busy < sessions {
            label += &format!(", {busy} of them busy");
        }
        Ok(vec![Figure::new(label, Unit::Micros, cost.micros_each())])
    });

    println!("{}", bench.report.table());
    println!(
        "\n{} run(s) of each; the crowd are {} sessions, the idle ones {}; half load is {rate:.0} messages/s",
        plan.repetitions, plan.storm, plan.idle
    );
    if plan.chart {
        let chart = bench
            .report
            .chart(&[UNICAST, BROADCAST, BROADCASTS, ROOMS, STORM, IDLE]);
        fs::write(CHART, chart)?;
        println!("the chart is in {CHART}");
    }
    Ok(())
}

/// Pins the load generator to its core.
fn take_a_core() -> io::Result<()> {
    rlimit::increase_nofile_limit(rlimit::INFINITY)?;
    let mut core = CpuSet::new();
    core.set(LOAD_CORE)?;
    sched_setaffinity(Pid::from_raw(0), &core)
        .map_err(|error| io::Error::other(format!("this needs two processor cores: {error}")))
}

/// The runs, and their results so far.
struct Bench<'a> {
    plan: &'a Plan,
    /// The folder with the servers that are scripts, and with their dependencies.
    peers: PathBuf,
    report: Report,
}

impl Bench<'_> {
    /// Gives a workload to one server after the other, each newly started, as often as the plan says, but
    /// only once to a server that takes long for it. A server that fails is reported and left out.
    fn each(&mut self, kinds: &[Kind], work: impl Fn(&Server) -> io::Result<Vec<Figure>>) {
        self.each_of(&[()], kinds, |server, ()| work(server));
    }

    /// Gives several sizes of a workload to the servers; the sizes take turns like the servers.
    fn each_of<T: Copy>(
        &mut self,
        sizes: &[T],
        kinds: &[Kind],
        work: impl Fn(&Server, T) -> io::Result<Vec<Figure>>,
    ) {
        let turns = sizes
            .iter()
            .flat_map(|&size| kinds.iter().map(move |&kind| (size, kind)));
        let mut turns: Vec<(T, Kind)> = turns.collect();
        for _ in 0..self.plan.repetitions {
            turns.retain(|&(size, kind)| {
                let begin = Instant::now();
                match Server::start(kind, &self.peers).and_then(|server| work(&server, size)) {
                    Ok(figures) => {
                        for figure in figures {
                            eprintln!("{:20} {figure}", kind.name());
                            self.report.add(kind, figure);
                        }
                    }
                    Err(error) => eprintln!("{:20} {error}", kind.name()),
                }
                begin.elapsed() < self.plan.long
            });
        }
    }
}
