//! anteroom is where peers meet before they talk to each other directly: a WebSocket server that
//! keeps a map of the sessions in each room, tells everyone who comes and who goes, and routes
//! four-field JSON messages between them.
//!
//! [`Server`] is the whole server on a socket of its own; [`Anteroom`] is the same as warp filters,
//! to be mounted in another application.
//!
//! A message's way through the modules:
//!
//! ```text
//! listener ─ routes ─ websocket::Reader ─ session ─ protocol::parse ─ rooms ─ outbox ─ websocket::Writer
//! ```
//!
//! All of it happens in the task of the session that sends, up to the sockets of the first few
//! receivers; the tasks of the others write what stands in their outboxes.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `config` | every option |
//! | `listener` | the accept loop, with its limits |
//! | `routes`, `page`, `refusal` | every URL; the files behind `/`; how a request is turned away |
//! | `admission` | who may join |
//! | `websocket` | the handshake, the frames, the socket |
//! | `session` | one session's life |
//! | `requests` | what is addressed to the server |
//! | `rooms` | who is where |
//! | `outbox` | what waits for a session |
//! | `kept` | what may have to be sent again |
//! | `resume` | the sessions that may be resumed |
//! | `heartbeat` | who is pinged, who is given up |
//! | `protocol` | the wire format |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admission;
mod config;
mod heartbeat;
mod kept;
mod listener;
mod outbox;
mod page;
mod protocol;
mod refusal;
mod requests;
mod resume;
mod rooms;
mod routes;
mod session;
mod websocket;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use log::info;
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{filters::BoxedFilter, reply::Response};

use crate::{
    admission::Admission, heartbeat::Heartbeat, protocol::Close, resume::Resumes, rooms::Rooms,
};
pub use crate::{
    config::{Config, Origin},
    resume::ResumeCounts,
};

/// A server that is bound to its address, and not yet serving.
pub struct Server {
    listener: TcpListener,
    anteroom: Anteroom,
}

impl Server {
    /// Binds the address of `config`.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a folder that cannot be read, or a value that makes no
    /// sense ([`Config::check`]); the message says which.
    pub fn bind(config: Config) -> io::Result<Server> {
        let listen = config.listen;
        let listener = listener::bind(listen)
            .map_err(|error| with_context(error, format!("cannot listen on {listen}")))?;
        let anteroom = Anteroom::new(config)?;
        Ok(Server { listener, anteroom })
    }

    /// The address it listens on, with the real port.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The rooms it serves.
    pub fn anteroom(&self) -> &Anteroom {
        &self.anteroom
    }

    /// Serves until `shutdown` is done; then accepts no more, tells every session to come back
    /// later (close code 1012), waits for them for the drain time at most, and returns with no task
    /// left.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Server { listener, anteroom } = self;
        info!(
            "serving up to {} sessions",
            anteroom.shared().config.session_limit()
        );
        tokio::select! {
            () = listener::accept(&listener, &anteroom) => {}
            () = shutdown => {}
        }
        drop(listener);
        anteroom.shut_down().await;
    }
}

/// The rooms and all that works on them, without a listener. A clone is another handle to the same
/// rooms; filters hold one, too. When the last is dropped, every session is told to go.
///
/// ```
/// # async fn example() -> std::io::Result<()> {
/// use warp::Filter;
///
/// let anteroom = anteroom::Anteroom::new(anteroom::Config::default())?;
/// let about = warp::path!("about").map(|| "an application");
/// // Sessions join at /signaling/room and /signaling/room/{name}.
/// let app = warp::path("signaling").and(anteroom.room()).or(about);
/// let service = warp::service(app);
/// # let _ = service;
/// anteroom.shut_down().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Anteroom(Arc<Owner>);

/// Tells everyone to go when the last handle is dropped.
struct Owner(Arc<Shared>);

/// What routes, connections and sessions have in common.
struct Shared {
    config: Config,
    admission: Admission,
    rooms: Arc<Rooms>,
    heartbeat: Arc<Heartbeat>,
    resumes: Arc<Resumes>,
    /// Every task there is: the ticker, connections, sessions.
    tasks: TaskTracker,
    /// Cancelled when the server stops: nobody joins any more.
    stopping: CancellationToken,
    /// Cancelled when it waits no longer for who is still there.
    stopped: CancellationToken,
}

impl Anteroom {
    /// Empty rooms, and the ticker that pings who will be in them.
    ///
    /// # Errors
    ///
    /// A folder that cannot be read, or a value that makes no sense ([`Config::check`]); the
    /// message says which.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(config: Config) -> io::Result<Anteroom> {
        config
            .check()
            .map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;
        if let Some(folder) = &config.static_dir {
            std::fs::read_dir(folder).map_err(|error| {
                with_context(
                    error,
                    format!("cannot read the folder {}", folder.display()),
                )
            })?;
        }
        let shared = Arc::new(Shared {
            admission: Admission::new(config.allow_origin.clone(), config.session_limit()),
            rooms: Arc::default(),
            heartbeat: Heartbeat::new(config.ping_seconds, config.pong_seconds).into(),
            resumes: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            config,
        });
        shared.tasks.spawn(tick(shared.clone()));
        Ok(Anteroom(Arc::new(Owner(shared))))
    }

    /// All that the server answers: the page, `/health`, and what [`room`](Anteroom::room) answers.
    /// Every path gets an answer (404 if need be), so filters behind these are never reached.
    pub fn routes(&self) -> BoxedFilter<(Response,)> {
        routes::all(self)
    }

    /// The WebSocket endpoint alone: `/room` and `/room/{name}`.
    pub fn room(&self) -> BoxedFilter<(Response,)> {
        routes::room(self)
    }

    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.shared().rooms.len()
    }

    /// How many sessions there are, with those that are without a connection.
    pub fn sessions(&self) -> usize {
        self.shared().rooms.sessions()
    }

    /// How many sessions are without a connection, and what became of others that were.
    pub fn resumes(&self) -> ResumeCounts {
        self.shared().resumes.counts()
    }

    /// Admits nobody any more, tells every session to come back later (close code 1012), waits for
    /// them for the drain time at most, and returns with no task left.
    pub async fn shut_down(&self) {
        let shared = self.shared();
        shared.stop();
        shared.tasks.close();
        if timeout(shared.config.drain(), shared.tasks.wait())
            .await
            .is_err()
        {
            shared.stopped.cancel();
            shared.tasks.wait().await;
        }
        info!("stopped");
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

impl Shared {
    /// Admits nobody any more, and tells every session to come back later, each at a time of its
    /// own within the drain time.
    fn stop(&self) {
        if self.stopping.is_cancelled() {
            return;
        }
        self.admission.close();
        self.stopping.cancel();
        let sessions = self.rooms.senders();
        let (count, seconds) = (sessions.len(), self.config.drain_seconds);
        info!("stopping: {seconds} s to leave for {count} session(s)");
        for (index, sender) in (0..).zip(&sessions) {
            sender.close(Close::restart(seconds * 1000 * index / count as u64));
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Tells the heartbeat of every second. Seconds in which the process stood still do not count:
/// nobody could answer.
async fn tick(shared: Arc<Shared>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for now in 0.. {
        tokio::select! {
            _ = seconds.tick() => shared.heartbeat.tick(now),
            () = shared.stopping.cancelled() => break,
        }
    }
}

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

fn with_context(error: io::Error, context: String) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}
