//! The cost of the TURN server over UDP, compared to coturn.

use std::{
    io::{self, ErrorKind},
    net::{self, SocketAddr},
    ops::Range,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::UdpSocket};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::Value;
use turn_types::{
    attribute::{ChannelNumber, RequestedTransport, XorPeerAddress, XorRelayedAddress},
    message::{ALLOCATE, CHANNEL_BIND},
    stun::{
        attribute::{ErrorCode, Nonce, Realm, Username},
        message::{
            IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageIntegrityCredentials,
            MessageWrite, MessageWriteExt, MessageWriteVec,
        },
        prelude::AttributeWrite,
    },
};

use crate::{
    Plan,
    dialect::Dialect,
    report::{Table, percentile},
    servers::{Kind, Process, Server, free_port, on_server_core},
    swarm::{Swarm, text_frame},
    take_a_core,
    works::{Span, join_all, measure},
};

/// The number of allocations.
const ALLOCATIONS: usize = 2000;

/// The number of requests without credentials, and of sockets that are open for them at any time.
const REQUESTS: usize = 20_000;
const OPEN: usize = 1000;

/// The number of allocations before the cost of further ones is measured. Memory that a server allocates once is not
/// part of the cost.
const FIRST: usize = 200;

/// The number of clients that wait for an answer at any time.
const ASKING: usize = 32;

/// The number of clients with the same IP address. anteroom answers 1,000 requests without credentials of each
/// address in a second.
const CLIENTS_OF_ADDRESS: usize = 100;

/// The number of pairs that send datagrams to each other.
const PAIRS: usize = 50;

/// The lengths of the datagrams, in bytes: speech, and video.
const SIZES: [usize; 2] = [160, 1200];

/// The number of datagrams per second where their delay is measured.
const RATE: f64 = 20_000.0;

/// The number of datagrams under way where the server relays as many as it can. The receive buffer of a socket has
/// room for all of them.
const UNDER_WAY: usize = 64;

/// A load generator that is later than this leaves out what it has missed. Sent at once, it would overflow buffers.
const LATE: Duration = Duration::from_millis(2);

/// How long datagrams may be under way before they count as lost.
const LINGER: Duration = Duration::from_secs(2);

/// The time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between attempts to reach a server that is starting.
const PAUSE: Duration = Duration::from_millis(20);

/// The channel of each client.
const CHANNEL: u16 = 0x4000;

/// The longest datagram, in bytes.
const MAX_DATAGRAM: usize = 2048;

/// A running TURN server.
struct TurnServer {
    process: Process,
    address: SocketAddr,
    username: Username,
    realm: Realm,
    credentials: MessageIntegrityCredentials,
    /// The session of anteroom to which the credentials belong.
    _session: Option<Swarm>,
}

impl TurnServer {
    /// Starts the server of a column of the table. `peers` is the folder with the servers that are scripts.
    fn start(column: usize, peers: &Path) -> io::Result<TurnServer> {
        match column {
            0 => TurnServer::anteroom(peers),
            _ => TurnServer::coturn(),
        }
    }

    /// Starts anteroom, and a session for its credentials.
    fn anteroom(peers: &Path) -> io::Result<TurnServer> {
        let options = [
            "--turn-listen=127.0.0.1:0",
            "--turn-address=127.0.0.1",
            "--turn-allow-peer=127.2.0.1",
            "--turn-session-allocations=9000",
            "--turn-address-allocations=9000",
            "--turn-bytes-per-second=1000000000",
        ];
        let server = Server::start_with(Kind::Anteroom, peers, &options.map(String::from))?;
        let mut session = Swarm::new(&server.addresses, Dialect::Rooms)?;
        join_all(&mut session, ["turn".to_owned()], 0, |_, _| {})?;
        let hello = r#"{"type":"hello","receiver":"server"}"#;
        session.send(0, &text_frame(session.dialect(), hello))?;
        let mut answer = Value::Null;
        while answer["type"] != "hello" {
            for number in session.wait()? {
                session.read(number, |text| {
                    answer = serde_json::from_slice(text).expect("servers write JSON");
                })?;
            }
        }
        let turn = &answer["data"]["iceServers"][0];
        let [url, username, password] =
            [&turn["urls"][0], &turn["username"], &turn["credential"]].map(Value::as_str);
        let address = url.and_then(|url| url.strip_prefix("stun:")?.parse().ok());
        let (Some(address), Some(username), Some(password)) = (address, username, password) else {
            return Err(io::Error::other(format!("no TURN server in {answer}")));
        };
        TurnServer::answering(server.process, address, username, password, Some(session))
    }

    /// Starts coturn, with the number of threads that it has by default on a machine with one core.
    fn coturn() -> io::Result<TurnServer> {
        let port = free_port()?;
        let folder = env!("CARGO_TARGET_TMPDIR");
        let process = Process::start(
            on_server_core()
                .args(["turnserver", "-n", "--no-cli", "--no-tls", "--no-dtls"])
                .args(["--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1"])
                .arg(format!("--listening-port={port}"))
                .args(["--allow-loopback-peers", "--lt-cred-mech"])
                .args(["--user=bench:secret", "--realm=bench"])
                .args(["--relay-threads=1", "--log-file=/dev/null", "--simple-log"])
                .arg(format!("--pidfile={folder}/coturn.pid"))
                .arg(format!("--userdb={folder}/coturn.db"))
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        TurnServer::answering(process, address, "bench", "secret", None)
    }

    /// Waits until a server answers, and learns its realm.
    fn answering(
        process: Process,
        address: SocketAddr,
        username: &str,
        password: &str,
        session: Option<Swarm>,
    ) -> io::Result<TurnServer> {
        let socket = net::UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(PAUSE))?;
        let request = Message::builder_request(ALLOCATE, MessageWriteVec::new()).finish();
        let mut buffer = [0; MAX_DATAGRAM];
        let begin = Instant::now();
        let length = loop {
            match socket.send(&request).and_then(|_| socket.recv(&mut buffer)) {
                Ok(length) => break length,
                Err(_) if begin.elapsed() < PATIENCE => sleep(PAUSE),
                Err(_) => {
                    let message = "the TURN server does not answer: is turnserver installed?";
                    return Err(io::Error::other(message));
                }
            }
        };
        let answer = Message::from_bytes(&buffer[..length]).map_err(io::Error::other)?;
        let realm: Realm = answer.attribute().map_err(io::Error::other)?;
        let key =
            LongTermKeyCredentials::new(username.into(), password.into(), realm.realm().into());
        Ok(TurnServer {
            process,
            address,
            username: Username::new(username).map_err(io::Error::other)?,
            realm,
            credentials: key.into(),
            _session: session,
        })
    }
}

/// A client, which has at most one allocation and one channel.
struct Client {
    socket: net::UdpSocket,
    nonce: Option<Nonce>,
    relayed: Option<SocketAddr>,
    /// The peer to which the channel leads.
    peer: Option<SocketAddr>,
}

/// Opens the sockets of clients.
fn open(server: &TurnServer, numbers: Range<usize>) -> io::Result<Vec<Client>> {
    let open = |number| {
        let network = u8::try_from(number / CLIENTS_OF_ADDRESS).map_err(io::Error::other)?;
        let socket = net::UdpSocket::bind(SocketAddr::from(([127, 1, network, 1], 0)))?;
        socket.connect(server.address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Client {
            socket,
            nonce: None,
            relayed: None,
            peer: None,
        })
    };
    numbers.map(open).collect()
}

/// Opens clients, each with an allocation.
fn allocate(server: &TurnServer, numbers: Range<usize>) -> io::Result<Vec<Client>> {
    let mut clients = open(server, numbers)?;
    ask_all(server, &mut clients)?;
    ask_all(server, &mut clients)?;
    Ok(clients)
}

/// Lets each client ask for what it needs next: a nonce, an allocation, or a channel.
fn ask_all(server: &TurnServer, clients: &mut [Client]) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    for clients in clients.chunks_mut(ASKING) {
        for client in clients.iter() {
            client.ask(server)?;
        }
        for client in clients {
            let length = client.socket.recv(&mut buffer)?;
            client.take_answer(server, &buffer[..length])?;
        }
    }
    Ok(())
}

impl Client {
    /// Sends a request, with credentials once there is a nonce.
    fn ask(&self, server: &TurnServer) -> io::Result<()> {
        let method = match self.peer {
            Some(_) => CHANNEL_BIND,
            None => ALLOCATE,
        };
        let mut message = Message::builder_request(method, MessageWriteVec::new());
        let transaction = message.transaction_id();
        let mut add = |attribute: &dyn AttributeWrite| {
            let added = message.add_attribute(attribute);
            added.expect("there is one of each");
        };
        match self.peer {
            Some(peer) => {
                add(&ChannelNumber::new(CHANNEL));
                add(&XorPeerAddress::new(peer, transaction));
            }
            None => add(&RequestedTransport::new(RequestedTransport::UDP)),
        }
        if let Some(nonce) = &self.nonce {
            add(&server.username);
            add(&server.realm);
            add(nonce);
            message
                .add_message_integrity(&server.credentials, IntegrityAlgorithm::Sha1)
                .map_err(io::Error::other)?;
        }
        self.socket.send(&message.finish())?;
        Ok(())
    }

    /// Checks the answer to a request.
    fn take_answer(&mut self, server: &TurnServer, answer: &[u8]) -> io::Result<()> {
        let answer = Message::from_bytes(answer).map_err(io::Error::other)?;
        match answer.attribute::<ErrorCode>().map(|error| error.code()) {
            Ok(401) if self.nonce.is_none() => {
                self.nonce = Some(answer.attribute().map_err(io::Error::other)?);
            }
            Ok(code) => return Err(io::Error::other(format!("the server answered {code}"))),
            Err(_) => {
                let integrity = answer.validate_integrity(&server.credentials);
                integrity.map_err(io::Error::other)?;
                if let Ok(relayed) = answer.attribute::<XorRelayedAddress>() {
                    self.relayed = Some(relayed.addr(answer.transaction_id()));
                }
            }
        }
        Ok(())
    }

    fn relayed(&self) -> SocketAddr {
        self.relayed.expect("it has an allocation")
    }
}

/// The way of datagrams.
#[derive(Clone, Copy)]
enum Route {
    /// From one client to another, through the relayed addresses of both.
    Relays,
    /// Between a client and a peer that is no client.
    Peer,
}

/// Pairs of sockets that send datagrams to each other. The partner of an end has the number that differs in the last
/// bit.
struct Traffic {
    poll: Poll,
    events: Events,
    ends: Vec<End>,
    /// The number of datagrams per second; `None` if the server relays as many as it can.
    rate: Option<f64>,
    random: SmallRng,
    begin: Instant,
    /// When the next datagram is due.
    next: Duration,
    sent: usize,
    /// When each datagram that has arrived was due, and its delay.
    arrived: Vec<(Duration, Duration)>,
}

struct End {
    socket: UdpSocket,
    /// What comes before the data: the header of ChannelData, or nothing.
    header: Vec<u8>,
    /// The data, which begin with the time when they were due and the number of the end.
    data: Vec<u8>,
}

impl Traffic {
    /// Opens the allocations and the channels of the pairs.
    fn new(
        server: &TurnServer,
        route: Route,
        size: usize,
        rate: Option<f64>,
    ) -> io::Result<Traffic> {
        let [channel, length] = [CHANNEL, size as u16].map(u16::to_be_bytes);
        let header = [channel, length].concat();
        let mut sockets = Vec::new();
        match route {
            Route::Relays => {
                let mut clients = allocate(server, 0..2 * PAIRS)?;
                let relayed: Vec<SocketAddr> = clients.iter().map(Client::relayed).collect();
                for (number, client) in clients.iter_mut().enumerate() {
                    client.peer = Some(relayed[number ^ 1]);
                }
                ask_all(server, &mut clients)?;
                for client in clients {
                    sockets.push((client.socket, header.clone()));
                }
            }
            Route::Peer => {
                let mut clients = allocate(server, 0..PAIRS)?;
                let mut peers = Vec::new();
                for client in &mut clients {
                    let peer = net::UdpSocket::bind("127.2.0.1:0")?;
                    peer.connect(client.relayed())?;
                    client.peer = Some(peer.local_addr()?);
                    peers.push(peer);
                }
                ask_all(server, &mut clients)?;
                for (client, peer) in clients.into_iter().zip(peers) {
                    sockets.extend([(client.socket, header.clone()), (peer, Vec::new())]);
                }
            }
        }
        let (poll, mut ends) = (Poll::new()?, Vec::new());
        for (number, (socket, header)) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let mut socket = UdpSocket::from_std(socket);
            let registry = poll.registry();
            registry.register(&mut socket, Token(number), Interest::READABLE)?;
            let mut data = vec![0; size];
            data[8..16].copy_from_slice(&number.to_be_bytes());
            ends.push(End {
                socket,
                header,
                data,
            });
        }
        Ok(Traffic {
            poll,
            events: Events::with_capacity(2 * PAIRS),
            ends,
            rate,
            random: SmallRng::seed_from_u64(1),
            begin: Instant::now(),
            next: Duration::ZERO,
            sent: 0,
            arrived: Vec::new(),
        })
    }

    /// Sends the datagrams that are due, and receives those that have arrived; returns the number of the latter.
    fn exchange(&mut self) -> io::Result<u64> {
        let now = self.begin.elapsed();
        match self.rate {
            Some(rate) => {
                self.next = self.next.max(now.saturating_sub(LATE));
                while self.next <= now {
                    self.send(self.next)?;
                    let wait = -(1.0 - self.random.random::<f64>()).ln() / rate;
                    self.next += Duration::from_secs_f64(wait);
                }
            }
            None => {
                while self.sent - self.arrived.len() < UNDER_WAY {
                    self.send(now)?;
                }
            }
        }
        self.receive()
    }

    /// Sends a datagram that was due at this time. The ends take turns.
    fn send(&mut self, due: Duration) -> io::Result<()> {
        let number = self.sent % self.ends.len();
        let end = &mut self.ends[number];
        end.data[..8].copy_from_slice(&(due.as_nanos() as u64).to_be_bytes());
        end.socket.send(&[&end.header[..], &end.data].concat())?;
        self.sent += 1;
        Ok(())
    }

    /// Receives the datagrams that have arrived; returns their number.
    fn receive(&mut self) -> io::Result<u64> {
        let before = self.arrived.len();
        let mut buffer = [0; MAX_DATAGRAM];
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => result?,
        }
        for Token(number) in self.events.iter().map(|event| event.token()) {
            let (end, partner) = (&self.ends[number], &self.ends[number ^ 1]);
            loop {
                let length = match end.socket.recv(&mut buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    result => result?,
                };
                let data = buffer[..length].strip_prefix(&end.header[..]);
                let data = data.filter(|data| data.len() == partner.data.len());
                let due = data.filter(|data| data[8..] == partner.data[8..]);
                let Some(due) = due.and_then(|data| data.first_chunk()) else {
                    return Err(io::Error::other(
                        "a datagram has not arrived as it was sent",
                    ));
                };
                let due = Duration::from_nanos(u64::from_be_bytes(*due));
                self.arrived.push((due, self.begin.elapsed() - due));
            }
        }
        Ok((self.arrived.len() - before) as u64)
    }

    /// The number of datagrams that do not arrive in time.
    fn lost(&mut self) -> io::Result<usize> {
        let begin = Instant::now();
        while self.arrived.len() < self.sent && begin.elapsed() < LINGER {
            self.receive()?;
        }
        Ok(self.sent - self.arrived.len())
    }
}

/// Figures, and the ends of their labels.
type Figures = Vec<(&'static str, f64)>;

/// Runs all measurements and prints their table. A server that fails at one of them is reported, and left out there.
pub fn run(plan: &Plan, peers: &Path) -> io::Result<()> {
    take_a_core()?;
    let mut table = Table::<2>::new();
    let mut each = |label: &str, work: &dyn Fn(&TurnServer) -> io::Result<Figures>| {
        for column in 0..2 {
            match work(&TurnServer::start(column, peers)?) {
                Ok(figures) => {
                    for (what, figure) in figures {
                        table.add(column, &format!("{label}, {what}"), figure);
                    }
                }
                Err(error) => eprintln!("{column} {label}: {error}"),
            }
        }
        io::Result::Ok(())
    };
    for _ in 0..plan.repetitions {
        each("an allocation", &allocations)?;
        each("a request without credentials", &requests)?;
        for (route, name) in [
            (Route::Relays, "from relay to relay"),
            (Route::Peer, "between client and peer"),
        ] {
            for size in SIZES {
                let label = format!("{size} bytes {name}");
                each(&label, &|server| paced(server, plan.span, route, size))?;
                each(&label, &|server| most(server, plan.span, route, size))?;
            }
        }
    }
    table.print("TURN over UDP | anteroom | coturn", true);
    Ok(())
}

/// The cost of an allocation, with the request that asks for a nonce.
fn allocations(server: &TurnServer) -> io::Result<Figures> {
    let _first = allocate(server, 0..FIRST)?;
    cost(&server.process, ALLOCATIONS, || {
        allocate(server, FIRST..FIRST + ALLOCATIONS)
    })
}

/// The cost of a request without credentials. Each comes from an address and port of its own.
fn requests(server: &TurnServer) -> io::Result<Figures> {
    let ask = |numbers| ask_all(server, &mut open(server, numbers)?);
    ask(0..OPEN)?;
    cost(&server.process, REQUESTS, || {
        let mut parts = (1..=REQUESTS / OPEN).map(|part| part * OPEN..(part + 1) * OPEN);
        parts.try_for_each(ask)
    })
}

/// The processor time and the memory that work takes, for each of `count`.
fn cost<T>(
    process: &Process,
    count: usize,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<Figures> {
    let (cpu, memory) = (process.cpu()?, process.resident()? as f64);
    let _result = work()?;
    let cpu = (process.cpu()? - cpu).as_secs_f64() * 1e6;
    let memory = process.resident()? as f64 - memory;
    Ok(vec![
        ("processor time, µs", cpu / count as f64),
        ("memory, bytes", memory / count as f64),
    ])
}

/// The cost, the loss and the delay of datagrams at a fixed rate.
fn paced(server: &TurnServer, span: Span, route: Route, size: usize) -> io::Result<Figures> {
    let mut traffic = Traffic::new(server, route, size, Some(RATE))?;
    let cost = measure(&server.process, span, || traffic.exchange())?;
    let lost = traffic.lost()? as f64 / traffic.sent as f64;
    let measured = traffic.arrived.iter().filter(|it| it.0 >= span.warm_up);
    let mut delays: Vec<Duration> = measured.map(|(_, delay)| *delay).collect();
    if delays.is_empty() {
        return Err(io::Error::other("no datagram has arrived"));
    }
    delays.sort_unstable();
    let micros = |part| percentile(&delays, part).as_secs_f64() * 1e6;
    Ok(vec![
        ("processor time, µs", cost.micros_each()),
        ("lost, %", 100.0 * lost),
        ("delay p50, µs", micros(0.5)),
        ("delay p99, µs", micros(0.99)),
    ])
}

/// The number of datagrams per second that a busy server relays.
fn most(server: &TurnServer, span: Span, route: Route, size: usize) -> io::Result<Figures> {
    let mut traffic = Traffic::new(server, route, size, None)?;
    let cost = measure(&server.process, span, || traffic.exchange())?;
    match traffic.lost()? {
        0 => Ok(vec![("most per second", cost.rate())]),
        lost => Err(io::Error::other(format!("{lost} datagrams were lost"))),
    }
}
