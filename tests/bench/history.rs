//! The cost of rooms that keep their messages, compared to rooms that keep none, and what a server does with a
//! million stored messages.

use std::{
    collections::VecDeque,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::Value;

use crate::{
    Plan,
    cluster::{ask, metric_value},
    dialect::{Dialect, Text},
    report::{Table, digits, percentile},
    servers::{Kind, Server, free_port},
    swarm::{Swarm, text_frame},
    take_a_core,
    works::{Span, join_all, measure},
};

/// How long a sender is measured. The waits for a disk vary more than processor time.
const SPAN: Span = Span {
    warm_up: Duration::from_millis(300),
    measured: Duration::from_secs(2),
};

/// The number of sessions in a room, of which one sends.
const SIZE: usize = 10;

/// The length of `data` in a message that is only delivered or stored once, in bytes, as in the other workloads.
const DATA_BYTES: usize = 100;

/// The length of `data` in one of many stored messages, in bytes. The message has 300 as it is delivered.
const STORED_DATA_BYTES: usize = 211;

/// The number of messages that a busy sender has sent and that have no receipt.
const UNDER_WAY: usize = 64;

/// The number of rooms over which many stored messages are spread.
const ROOMS: usize = 100;

/// The number of stored messages.
const STORED: u64 = 1_000_000;

/// The number of messages that each room keeps where old ones make room for new ones.
const KEPT: u64 = 1000;

/// The number of pages that are read, and of messages in each.
const PAGES: usize = 1000;
const PAGE: usize = 50;

/// The option that lets all rooms keep their messages.
const ALL_ROOMS: &str = "--history-room=*";

/// Sessions that send to all in their rooms, and ask for receipts.
struct Senders {
    swarm: Swarm,
    frame: Vec<u8>,
    /// When each sender has sent the messages that have no receipt yet.
    sent: Vec<VecDeque<Instant>>,
    /// When each message with a receipt was sent, and how long the receipt took.
    receipts: Vec<(Instant, Duration)>,
}

impl Senders {
    /// Lets sessions join rooms of this size, and the first of each room send `under_way` messages.
    fn start(
        server: &Server,
        rooms: usize,
        size: usize,
        data_bytes: usize,
        under_way: usize,
    ) -> io::Result<Senders> {
        let dialect = server.kind.dialect();
        let mut swarm = Swarm::new(&server.addresses, dialect)?;
        let names = (0..rooms * size).map(|number| room(number % rooms));
        join_all(&mut swarm, names, rooms * size * (size - 1) / 2, |_, _| {})?;
        let message = dialect.message("all", data_bytes);
        let message = message.replacen('{', r#"{"ref":1,"#, 1);
        let mut senders = Senders {
            swarm,
            frame: text_frame(dialect, &message),
            sent: vec![VecDeque::new(); rooms],
            receipts: Vec::new(),
        };
        for number in (0..rooms).cycle().take(rooms * under_way) {
            senders.send(number)?;
        }
        Ok(senders)
    }

    fn send(&mut self, number: usize) -> io::Result<()> {
        self.sent[number].push_back(Instant::now());
        self.swarm.send(number, &self.frame)
    }

    /// Waits for receipts; returns the senders that have got them, each as often as it has.
    fn receive(&mut self) -> io::Result<Vec<usize>> {
        let mut receivers = Vec::new();
        for number in self.swarm.wait()? {
            let (mut count, mut error) = (0, None);
            self.swarm
                .read(number, |text| match Dialect::Rooms.text(text) {
                    Text::Receipt => count += 1,
                    Text::Message | Text::New => {}
                    Text::Other => error = Some(String::from_utf8_lossy(text).into_owned()),
                })?;
            if let Some(error) = error {
                return Err(io::Error::other(error));
            }
            let now = Instant::now();
            for _ in 0..count {
                let sent = self.sent[number]
                    .pop_front()
                    .expect("receipts are in order");
                self.receipts.push((sent, now - sent));
                receivers.push(number);
            }
        }
        Ok(receivers)
    }

    /// Sends messages until so many have their receipts, and no others are under way.
    fn store(&mut self, count: u64) -> io::Result<()> {
        let mut received = 0;
        let mut left = count - self.sent.iter().map(VecDeque::len).sum::<usize>() as u64;
        while received < count {
            for number in self.receive()? {
                received += 1;
                if left > 0 {
                    left -= 1;
                    self.send(number)?;
                }
            }
        }
        self.receipts.clear();
        Ok(())
    }
}

fn room(number: usize) -> String {
    format!("room-{number}")
}

/// A folder for the messages, on the disk of the build; dropping it removes it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> io::Result<Folder> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        Ok(Folder(path))
    }

    fn option(&self) -> String {
        format!("--history-dir={}", self.0.display())
    }

    /// The size of the files, in bytes.
    fn bytes(&self) -> io::Result<u64> {
        let files = fs::read_dir(&self.0)?;
        files.map(|file| Ok(file?.metadata()?.len())).sum()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs all measurements and prints their tables.
pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let mut table = Table::new();
    for _ in 0..plan.repetitions {
        costs(&mut table, peers)?;
    }
    let heading =
        format!("a message to all in a room of {SIZE} | no history | in memory | in a file");
    table.print(&heading, true);
    memory(peers)?;
    many(plan.repetitions, peers)
}

/// The processor time of a message, and the latency of its receipt.
fn costs(table: &mut Table<3>, peers: &Path) -> io::Result<()> {
    for (under_way, label) in [(1, "one under way"), (UNDER_WAY, "64 under way")] {
        let folder = Folder::new("bench-history")?;
        let places = [
            vec![],
            vec![ALL_ROOMS.to_owned()],
            vec![ALL_ROOMS.to_owned(), folder.option()],
        ];
        for (column, options) in places.iter().enumerate() {
            let server = Server::start_with(Kind::Anteroom, peers, options)?;
            let mut senders = Senders::start(&server, 1, SIZE, DATA_BYTES, under_way)?;
            let from = Instant::now() + SPAN.warm_up;
            let cost = measure(&server.process, SPAN, || {
                let numbers = senders.receive()?;
                for &number in &numbers {
                    senders.send(number)?;
                }
                Ok(numbers.len() as u64)
            })?;
            let measured = senders.receipts.iter().filter(|(sent, _)| *sent >= from);
            let mut latencies: Vec<Duration> = measured.map(|(_, latency)| *latency).collect();
            latencies.sort_unstable();
            let mut add = |what, figure| table.add(column, &format!("{label}, {what}"), figure);
            add("processor time, µs", cost.micros_each());
            for (what, part) in [("receipt p50, µs", 0.5), ("receipt p99, µs", 0.99)] {
                let latency = percentile(&latencies, part);
                add(what, latency.as_secs_f64() * 1e6);
            }
        }
    }
    Ok(())
}

/// The memory that messages in memory take, and how much it grows when old ones make room for new ones.
fn memory(peers: &Path) -> io::Result<()> {
    let limits = [
        format!("--history-messages={KEPT}"),
        format!("--history-messages={STORED}"),
    ];
    let mut table = Table::<2>::new();
    for (column, limit) in limits.into_iter().enumerate() {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let options = [ALL_ROOMS.to_owned(), limit, format!("--admin={admin}")];
        let server = Server::start_with(Kind::Anteroom, peers, &options)?;
        let before = server.process.resident()?;
        let step = KEPT * ROOMS as u64;
        let mut grown = 0.0;
        for round in 1..=STORED / step {
            let mut senders = Senders::start(&server, ROOMS, 1, STORED_DATA_BYTES, UNDER_WAY)?;
            senders.store(step)?;
            grown = (server.process.resident()? - before) as f64;
            let label = format!("{} messages so far, MB", round * step);
            table.add(column, &label, grown / 1e6);
        }
        let peak = server.process.peak()? - before;
        table.add(column, "the most while it grew, MB", peak as f64 / 1e6);
        let counted = metric_value(&ask(admin, "/metrics")?.1, "anteroom_history_bytes");
        table.add(
            column,
            "bytes that count for --history-bytes, MB",
            counted / 1e6,
        );
        table.add(column, "memory for each of them, bytes", grown / counted);
    }
    let heading =
        format!("memory of {ROOMS} rooms | {KEPT} messages in each | --history-bytes by default");
    table.print(&heading, false);
    Ok(())
}

/// What a server does with many stored messages.
fn many(repetitions: usize, peers: &Path) -> io::Result<()> {
    let folder = Folder::new("bench-history")?;
    let options = [
        ALL_ROOMS.to_owned(),
        folder.option(),
        format!("--history-messages={STORED}"),
        format!("--history-bytes={}", 1u64 << 40),
    ];
    let mut server = Server::start_with(Kind::Anteroom, peers, &options)?;
    let mut senders = Senders::start(&server, ROOMS, 1, STORED_DATA_BYTES, UNDER_WAY)?;
    let (begin, cpu) = (Instant::now(), server.process.cpu()?);
    senders.store(STORED)?;
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), server.process.cpu()? - cpu);
    println!(
        "{STORED} messages in {ROOMS} rooms were stored in {wall:.1} s, with {:.1} µs of processor time each; \
         the file has {} MB, the server {} MB of memory\n",
        cpu.as_secs_f64() * 1e6 / STORED as f64,
        megabytes(folder.bytes()?),
        megabytes(server.process.resident()?),
    );
    drop(senders);

    let mut table = Table::<2>::new();
    for _ in 0..repetitions {
        for (column, signal) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
            let mut senders = Senders::start(&server, ROOMS, 1, STORED_DATA_BYTES, UNDER_WAY)?;
            match signal {
                Signal::SIGTERM => senders.store((ROOMS * UNDER_WAY) as u64)?,
                // The server is storing messages when it ends.
                _ => _ = senders.receive()?,
            }
            drop(senders);
            let begin = Instant::now();
            server.process.stop(signal)?;
            table.add(column, "time to end, ms", millis(begin.elapsed()));
            let begin = Instant::now();
            server = Server::start_with(Kind::Anteroom, peers, &options)?;
            table.add(column, "time to start, ms", millis(begin.elapsed()));
            table.add(
                column,
                "memory then, MB",
                server.process.resident()? as f64 / 1e6,
            );
            let latencies = read_pages(&server)?;
            let label = format!("memory after {PAGES} pages, MB");
            table.add(column, &label, server.process.resident()? as f64 / 1e6);
            for (part, label) in [(0.5, "p50"), (0.99, "p99")] {
                let latency = percentile(&latencies, part).as_secs_f64() * 1e6;
                table.add(column, &format!("page of {PAGE}, {label}, µs"), latency);
            }
        }
    }
    table.print(
        &format!("{STORED} messages in a file | after SIGTERM | after SIGKILL"),
        false,
    );
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    digits(bytes as f64 / 1e6)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Reads pages, each before any of the last nine tenths of the messages of any room; returns how long each took,
/// sorted.
fn read_pages(server: &Server) -> io::Result<Vec<Duration>> {
    let mut swarm = Swarm::new(&server.addresses, server.kind.dialect())?;
    join_all(&mut swarm, (0..ROOMS).map(room), 0, |_, _| {})?;
    let mut random = SmallRng::seed_from_u64(1);
    let newest = read_page(&mut swarm, 0, 1, u64::MAX)?;
    let mut latencies = Vec::with_capacity(PAGES);
    for _ in 0..PAGES {
        let number = random.random_range(0..ROOMS);
        let before = newest - random.random_range(0..STORED / 10 * 9);
        let begin = Instant::now();
        read_page(&mut swarm, number, PAGE, before)?;
        latencies.push(begin.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Reads a page as one of the sessions, which has so many messages; returns the number of the last.
fn read_page(swarm: &mut Swarm, number: usize, last: usize, before: u64) -> io::Result<u64> {
    let data = format!(r#"{{"last":{last},"before":{before}}}"#);
    let request = format!(r#"{{"type":"history","receiver":"server","data":{data}}}"#);
    swarm.send(number, &text_frame(swarm.dialect(), &request))?;
    let (mut count, mut newest, mut is_done) = (0, Vec::new(), false);
    while !is_done {
        for number in swarm.wait()? {
            swarm.read(number, |text| match text.ends_with(br#""more":true}}"#) {
                true => is_done = true,
                false => {
                    count += 1;
                    newest.clear();
                    newest.extend_from_slice(text);
                }
            })?;
        }
    }
    let newest: Value = serde_json::from_slice(&newest)?;
    match newest["data"]["number"].as_u64() {
        Some(newest) if count == last => Ok(newest),
        _ => Err(io::Error::other(format!(
            "a page of {count} messages: {newest}"
        ))),
    }
}
