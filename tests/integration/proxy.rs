//! A TCP proxy in front of a server that fails like a network: it cuts connections at a given byte, stalls
//! without notice, delays, or forwards single bytes.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// How one connection behaves and fails.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    /// The number of bytes that are forwarded to the server before the failure.
    pub up: usize,
    /// The number of bytes that are forwarded from the server before the failure.
    pub down: usize,
    /// The failure, when one of these numbers is reached.
    pub failure: Failure,
    /// Whether each byte after the first read, which is the handshake, is forwarded separately.
    pub in_bytes: bool,
    /// How long each read is delayed before it is forwarded.
    pub delay: Duration,
    /// The index of the server to connect to.
    pub server: usize,
}

/// How a connection fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Both sides of the connection are closed.
    Close,
    /// Both sides of the connection are reset.
    Reset,
    /// The proxy stops forwarding, and neither side learns of it.
    Stall,
}

impl Fate {
    /// No failure until [`Proxy::fail`].
    pub const NONE: Fate = Fate {
        up: usize::MAX,
        down: usize::MAX,
        failure: Failure::Close,
        in_bytes: false,
        delay: Duration::ZERO,
        server: 0,
    };
}

/// A running proxy; dropping it stops the accept loop.
pub struct Proxy {
    pub address: SocketAddr,
    /// The number of connections that have stalled.
    pub stalls: watch::Receiver<usize>,
    /// The number of calls of [`Proxy::fail`], and the failure of the last one.
    all: watch::Sender<(u64, Failure)>,
    /// Whether bytes to the server, and bytes from it, are held back.
    held: watch::Sender<[bool; 2]>,
    /// Whether the proxy closes new connections at once.
    refusing: Arc<AtomicBool>,
    /// Whether new connections wait before the proxy connects to the server.
    waiting: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of a server. `fates` is called for each connection.
    pub async fn start(server: SocketAddr, fates: impl FnMut() -> Fate + Send + 'static) -> Proxy {
        Proxy::before(vec![server], fates).await
    }

    /// Starts a proxy in front of several servers.
    pub async fn before(
        servers: Vec<SocketAddr>,
        mut fates: impl FnMut() -> Fate + Send + 'static,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, stalls) = watch::channel(0);
        let count = Arc::new(count);
        let (all, on_all) = watch::channel((0, Failure::Close));
        let (held, holding) = watch::channel([false; 2]);
        let refusing = Arc::new(AtomicBool::new(false));
        let refuse = refusing.clone();
        let (waiting, mut on_waiting) = watch::channel(false);
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if refuse.load(Relaxed) {
                    continue;
                }
                if on_waiting.wait_for(|waits| !waits).await.is_err() {
                    return;
                }
                let (fate, on_all, count) = (fates(), on_all.clone(), count.clone());
                // If the server does not accept, the proxy closes the connection.
                let Ok(server) = TcpStream::connect(servers[fate.server]).await else {
                    continue;
                };
                tokio::spawn(forward(
                    client,
                    server,
                    fate,
                    on_all,
                    holding.clone(),
                    count,
                ));
            }
        });
        Proxy {
            address,
            stalls,
            all,
            held,
            refusing,
            waiting,
            accepting,
        }
    }

    /// Sets whether the proxy closes new connections at once.
    pub fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Relaxed);
    }

    /// Sets whether new connections wait, for example while the server restarts.
    pub fn wait(&self, wait: bool) {
        self.waiting.send_replace(wait);
    }

    /// Sets whether bytes to the server (`up`) and from it (`down`) are held back, as by a network that
    /// loses every packet. All of them arrive when they are no longer held back.
    pub fn hold(&self, up: bool, down: bool) {
        self.held.send_replace([up, down]);
    }

    /// Lets all open connections fail.
    pub fn fail(&self, failure: Failure) {
        self.all.send_modify(|all| *all = (all.0 + 1, failure));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Forwards between two streams until one of them ends or the connection fails.
async fn forward(
    client: TcpStream,
    server: TcpStream,
    fate: Fate,
    mut on_all: watch::Receiver<(u64, Failure)>,
    held: watch::Receiver<[bool; 2]>,
    stalls: Arc<watch::Sender<usize>>,
) {
    on_all.mark_unchanged();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let failure = tokio::select! {
        cut = pump(&mut from_client, &mut to_server, fate.up, &fate, 0, held.clone()) => cut.then_some(fate.failure),
        cut = pump(&mut from_server, &mut to_client, fate.down, &fate, 1, held) => cut.then_some(fate.failure),
        changed = on_all.changed() => changed.ok().map(|()| on_all.borrow().1),
    };
    match failure {
        // The drop closes both streams.
        Some(Failure::Close) | None => {}
        Some(Failure::Reset) => {
            for stream in [from_client.as_ref(), from_server.as_ref()] {
                let _ = stream.set_zero_linger();
            }
        }
        Some(Failure::Stall) => {
            stalls.send_modify(|stalls| *stalls += 1);
            // Both sides close by themselves, without learning of each other.
            tokio::join!(ended(&mut from_client), ended(&mut from_server));
        }
    }
}

/// Waits until a stream is closed, and discards what arrives before.
async fn ended(stream: &mut OwnedReadHalf) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// Forwards at most `bytes`. Returns whether it forwarded all of them; `false` if a stream ended before.
async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut bytes: usize,
    fate: &Fate,
    direction: usize,
    mut held: watch::Receiver<[bool; 2]>,
) -> bool {
    let mut buffer = [0; 4096];
    let mut first = true;
    while bytes > 0 {
        let most = bytes.min(if fate.in_bytes && !first {
            1
        } else {
            buffer.len()
        });
        first = false;
        match from.read(&mut buffer[..most]).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                if !fate.delay.is_zero() {
                    let _ = timeout(fate.delay, pending::<()>()).await;
                }
                if held.wait_for(|held| !held[direction]).await.is_err() {
                    return false;
                }
                if to.write_all(&buffer[..count]).await.is_err() {
                    return false;
                }
                bytes -= count;
            }
        }
    }
    true
}
