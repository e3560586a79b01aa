//! A TCP proxy in front of a server, which fails as networks do: it cuts connections at a byte, stops
//! forwarding without a word, forwards late, or hands on single bytes.

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

/// What becomes of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    /// How many bytes are forwarded to the server, and back from it, before it happens.
    pub up: usize,
    pub down: usize,
    pub failure: Failure,
    /// Whether each byte after the first read, which is the handshake, is forwarded by itself.
    pub in_bytes: bool,
    /// How long each read waits until it is forwarded.
    pub delay: Duration,
    /// To which of the servers it leads.
    pub server: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Both sides are told that the other has closed.
    Close,
    /// Both sides are reset.
    Reset,
    /// Nothing is forwarded any more, and nobody is told.
    Stall,
}

impl Fate {
    /// All goes well until [`Proxy::fail`].
    pub const NONE: Fate = Fate {
        up: usize::MAX,
        down: usize::MAX,
        failure: Failure::Close,
        in_bytes: false,
        delay: Duration::ZERO,
        server: 0,
    };
}

pub struct Proxy {
    pub address: SocketAddr,
    /// How many connections have stalled so far.
    pub stalls: watch::Receiver<usize>,
    /// Counts the failures that happen to all connections there are.
    all: watch::Sender<(u64, Failure)>,
    /// Whether what goes to the server, and what comes from it, is held back.
    held: watch::Sender<[bool; 2]>,
    /// Whether new connections are closed at once.
    refusing: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Stands in front of a server; `fates` says what becomes of each connection.
    pub async fn start(server: SocketAddr, fates: impl FnMut() -> Fate + Send + 'static) -> Proxy {
        Proxy::before(vec![server], fates).await
    }

    /// The same in front of several servers.
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
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if refuse.load(Relaxed) {
                    continue;
                }
                let (fate, on_all, count) = (fates(), on_all.clone(), count.clone());
                // Where it refuses, so does the proxy.
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
            accepting,
        }
    }

    /// Closes new connections at once, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Relaxed);
    }

    /// Holds back what goes to the server, or what comes from it, as a network does that loses every
    /// packet; or no longer, and then it all arrives.
    pub fn hold(&self, up: bool, down: bool) {
        self.held.send_replace([up, down]);
    }

    /// Lets all connections fail that there are.
    pub fn fail(&self, failure: Failure) {
        self.all.send_modify(|all| *all = (all.0 + 1, failure));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Forwards between two streams until one of them ends or it is time to fail.
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
        // Both streams are dropped, and so closed.
        Some(Failure::Close) | None => {}
        Some(Failure::Reset) => {
            for stream in [from_client.as_ref(), from_server.as_ref()] {
                let _ = stream.set_zero_linger();
            }
        }
        Some(Failure::Stall) => {
            stalls.send_modify(|stalls| *stalls += 1);
            // Until both give up by themselves: neither hears of the other.
            tokio::join!(ended(&mut from_client), ended(&mut from_server));
        }
    }
}

/// Waits until a stream is closed; what comes before that is swallowed.
async fn ended(stream: &mut OwnedReadHalf) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// Forwards so many bytes; returns whether it was so many.
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
