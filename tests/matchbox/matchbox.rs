//! matchbox's own client against the server: sockets of `matchbox_socket` connect over WebRTC, with the program
//! whose path is in the variable `ANTEROOM` as their signaling server. The client has many dependencies, so
//! these tests are a package of their own, which `tests/run` runs. `tests/integration/matchbox.rs` tests what
//! the server says and what it does not say.

use std::{collections::HashMap, env, path::PathBuf, process::Stdio, time::Duration};

use futures_util::StreamExt;
use matchbox_socket::{
    Error, PeerId, PeerState, RtcIceServerConfig, WebRtcSocket, WebRtcSocketBuilder,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::{interval, timeout},
};

/// How long an event may take before the test fails. Only a failing test waits that long.
const DEADLINE: Duration = Duration::from_secs(60);

/// The path of the program.
fn program() -> String {
    env::var("ANTEROOM").expect("ANTEROOM must be the path of the program")
}

/// Waits for `future`. Panics with `what` if the future takes longer than [`DEADLINE`].
async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// The server as a child process, killed when dropped.
struct Server {
    address: String,
    _child: Child,
}

impl Server {
    /// Starts the program on a free port.
    async fn start(options: &[&str]) -> Server {
        let mut child = Command::new(program())
            .args(["--listen", "127.0.0.1:0", "--dialect", "matchbox"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within_deadline("the first line", lines.next_line()).await;
        let line = line.unwrap().unwrap();
        let (_, address) = line.split_once("://").unwrap();
        Server {
            address: address.into(),
            _child: child,
        }
    }

    /// The URL of a room, whose name may have a query.
    fn url(&self, room: &str) -> String {
        format!("ws://{}/matchbox/{room}", self.address)
    }
}

/// A socket of matchbox with one reliable channel.
struct Peer {
    id: PeerId,
    socket: WebRtcSocket,
    /// The last state of each other peer that this one has heard of.
    states: HashMap<PeerId, PeerState>,
    message_loop: JoinHandle<Result<(), Error>>,
}

/// Starts a socket that tries once to connect.
fn connect(url: &str) -> (WebRtcSocket, JoinHandle<Result<(), Error>>) {
    let (socket, message_loop) = WebRtcSocketBuilder::new(url)
        // All are on this machine: they need no STUN server.
        .ice_server(RtcIceServerConfig {
            urls: vec![],
            username: None,
            credential: None,
        })
        .reconnect_attempts(Some(1))
        // Often enough that it happens in the middle of everything else.
        .signaling_keep_alive_interval(Some(Duration::from_millis(20)))
        .add_reliable_channel()
        .build();
    (socket, tokio::spawn(message_loop))
}

impl Peer {
    /// Connects to a room and waits for the id that the server assigns.
    async fn join(server: &Server, room: &str) -> Peer {
        let (mut socket, message_loop) = connect(&server.url(room));
        let mut ticks = interval(Duration::from_millis(2));
        let id = within_deadline("an id", async {
            loop {
                if let Some(id) = socket.id() {
                    return id;
                }
                ticks.tick().await;
            }
        })
        .await;
        Peer {
            id,
            socket,
            states: HashMap::new(),
            message_loop,
        }
    }

    /// The next change of another peer's state. The client may report a state twice.
    async fn next_change(&mut self) -> (PeerId, PeerState) {
        loop {
            let state = within_deadline("a change of a peer", self.socket.next()).await;
            let (id, state) = state.expect("the socket is open");
            if self.states.insert(id, state) != Some(state) {
                return (id, state);
            }
        }
    }

    /// The next changes must be that exactly these peers connect, in any order.
    async fn expect_connected(&mut self, others: &[PeerId]) {
        let mut connected = Vec::new();
        for _ in others {
            let (id, state) = self.next_change().await;
            assert_eq!(state, PeerState::Connected);
            connected.push(id);
        }
        connected.sort();
        let mut others = others.to_vec();
        others.sort();
        assert_eq!(connected, others);
    }

    /// The next change must be that this peer disconnects.
    async fn expect_disconnected(&mut self, other: PeerId) {
        let change = self.next_change().await;
        assert_eq!(change, (other, PeerState::Disconnected));
    }

    /// Sends a packet to another peer.
    fn send(&mut self, packet: String, to: PeerId) {
        self.socket
            .channel_mut(0)
            .send(packet.into_bytes().into(), to);
    }

    /// The next packet, and who has sent it.
    async fn receive(&mut self) -> (PeerId, String) {
        let packet = self.socket.channel_mut(0).next();
        let (from, packet) = within_deadline("a packet", packet).await.unwrap();
        (from, String::from_utf8(packet.into()).unwrap())
    }

    /// Ends the socket, and with it the connection to the server.
    async fn leave(self) {
        drop(self.socket);
        within_deadline("the end of the socket", self.message_loop)
            .await
            .unwrap()
            .unwrap();
    }
}

/// All must be connected with all, with nobody else, and exchange packets in both directions.
async fn expect_mesh<const N: usize>(mut peers: [&mut Peer; N]) {
    let ids = peers.each_ref().map(|peer| peer.id);
    for peer in &mut peers {
        let others: Vec<PeerId> = ids.into_iter().filter(|id| *id != peer.id).collect();
        peer.expect_connected(&others).await;
    }
    exchange_packets(peers).await;
}

/// Each sends packets to each, which must arrive in order.
async fn exchange_packets<const N: usize>(mut peers: [&mut Peer; N]) {
    const PACKETS: usize = 20;
    let ids = peers.each_ref().map(|peer| peer.id);
    let packet = |from, to, number| format!("{number} from {from} to {to}");
    for peer in &mut peers {
        let from = peer.id;
        for to in ids.into_iter().filter(|&id| id != from) {
            for number in 0..PACKETS {
                peer.send(packet(from, to, number), to);
            }
        }
    }
    for peer in &mut peers {
        let mut received = HashMap::new();
        for _ in 0..PACKETS * (N - 1) {
            let (from, text) = peer.receive().await;
            let number = received.entry(from).or_insert(0);
            assert_eq!(text, packet(from, peer.id, *number));
            *number += 1;
        }
    }
}

#[tokio::test]
async fn two_sockets_connect_and_exchange_packets() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea").await;
    let mut bob = Peer::join(&server, "tea").await;
    expect_mesh([&mut alice, &mut bob]).await;
}

#[tokio::test]
async fn three_sockets_connect_and_exchange_packets() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea").await;
    let mut bob = Peer::join(&server, "tea").await;
    let mut carol = Peer::join(&server, "tea").await;
    expect_mesh([&mut alice, &mut bob, &mut carol]).await;
}

#[tokio::test]
async fn a_socket_that_leaves_is_seen_as_disconnected() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea").await;
    let mut bob = Peer::join(&server, "tea").await;
    let mut carol = Peer::join(&server, "tea").await;
    expect_mesh([&mut alice, &mut bob, &mut carol]).await;
    let id = carol.id;
    carol.leave().await;
    alice.expect_disconnected(id).await;
    bob.expect_disconnected(id).await;
    exchange_packets([&mut alice, &mut bob]).await;
    // Somebody else can take its place.
    let mut dave = Peer::join(&server, "tea").await;
    alice.expect_connected(&[dave.id]).await;
    bob.expect_connected(&[dave.id]).await;
    dave.expect_connected(&[alice.id, bob.id]).await;
    exchange_packets([&mut alice, &mut bob, &mut dave]).await;
}

#[tokio::test]
async fn rooms_are_apart() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea").await;
    let mut bob = Peer::join(&server, "coffee").await;
    let mut carol = Peer::join(&server, "tea").await;
    let mut dave = Peer::join(&server, "coffee").await;
    expect_mesh([&mut alice, &mut carol]).await;
    expect_mesh([&mut bob, &mut dave]).await;
    let ids = [alice.id, bob.id];
    alice.leave().await;
    bob.leave().await;
    carol.expect_disconnected(ids[0]).await;
    dave.expect_disconnected(ids[1]).await;
}

#[tokio::test]
async fn next_makes_pairs_in_the_order_of_arrival() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea?next=2").await;
    let mut bob = Peer::join(&server, "tea?next=2").await;
    let mut carol = Peer::join(&server, "tea?next=2").await;
    let mut dave = Peer::join(&server, "tea?next=2").await;
    expect_mesh([&mut alice, &mut bob]).await;
    expect_mesh([&mut carol, &mut dave]).await;
    let id = alice.id;
    alice.leave().await;
    bob.expect_disconnected(id).await;
    exchange_packets([&mut carol, &mut dave]).await;
}

#[tokio::test]
async fn next_makes_triples_in_the_order_of_arrival() {
    let server = Server::start(&[]).await;
    let mut alice = Peer::join(&server, "tea?next=3").await;
    let mut bob = Peer::join(&server, "tea?next=3").await;
    let mut carol = Peer::join(&server, "tea?next=3").await;
    let mut dave = Peer::join(&server, "tea?next=3").await;
    let mut erin = Peer::join(&server, "tea?next=3").await;
    let mut frank = Peer::join(&server, "tea?next=3").await;
    expect_mesh([&mut alice, &mut bob, &mut carol]).await;
    expect_mesh([&mut dave, &mut erin, &mut frank]).await;
}

#[tokio::test]
async fn the_same_name_with_another_next_is_another_room() {
    let server = Server::start(&[]).await;
    let mut pair = Peer::join(&server, "tea?next=2").await;
    let mut triple = Peer::join(&server, "tea?next=3").await;
    let mut plain = Peer::join(&server, "tea").await;
    let mut second_of_three = Peer::join(&server, "tea?next=3").await;
    let mut second_of_two = Peer::join(&server, "tea?next=2").await;
    let mut second = Peer::join(&server, "tea").await;
    let mut third_of_three = Peer::join(&server, "tea?next=3").await;
    expect_mesh([&mut pair, &mut second_of_two]).await;
    expect_mesh([&mut triple, &mut second_of_three, &mut third_of_three]).await;
    expect_mesh([&mut plain, &mut second]).await;
}

/// A file with a key of tokens, removed when dropped.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new() -> KeyFile {
        let name = format!("anteroom-matchbox-{}.key", std::process::id());
        let path = env::temp_dir().join(name);
        std::fs::write(&path, "a-secret-of-this-test-that-has-more-than-32-bytes").unwrap();
        KeyFile(path)
    }

    /// The options that name the key.
    fn options(&self) -> [&str; 4] {
        let path = self.0.to_str().unwrap();
        ["--token-key-file", path, "--token-algorithm", "HS256"]
    }

    /// A token for a room, from the program.
    async fn token(&self, room: &str) -> String {
        let output = Command::new(program())
            .arg("token")
            .args(self.options())
            .args(["--room", room])
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn a_token_in_the_url_admits_to_its_room() {
    let key = KeyFile::new();
    let server = Server::start(&key.options()).await;
    let token = key.token("tea").await;
    let mut alice = Peer::join(&server, &format!("tea?token={token}")).await;
    let mut bob = Peer::join(&server, &format!("tea?token={token}")).await;
    expect_mesh([&mut alice, &mut bob]).await;
    let mut carol = Peer::join(&server, &format!("tea?next=2&token={token}")).await;
    let mut dave = Peer::join(&server, &format!("tea?token={token}&next=2")).await;
    expect_mesh([&mut carol, &mut dave]).await;
    for (room, status) in [
        ("tea".to_owned(), "401"),
        ("tea?next=2".to_owned(), "401"),
        ("tea?token=none".to_owned(), "401"),
        (format!("coffee?token={token}"), "403"),
    ] {
        let (_socket, message_loop) = connect(&server.url(&room));
        let ended = within_deadline("the end of the socket", message_loop).await;
        let Err(Error::ConnectionFailed(error)) = ended.unwrap() else {
            panic!("{room} is not refused");
        };
        assert!(error.to_string().contains(status), "{room}: {error}");
    }
    exchange_packets([&mut alice, &mut bob]).await;
}
