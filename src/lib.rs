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
//! listener ─ routes ─ websocket ─ session ─ protocol::parse ─ rooms ─ outbox::Sender
//!                                                                          ┆
//!                                                websocket ─ session ─ outbox::Outbox
//! ```
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
//! | `heartbeat` | who is pinged, who is given up |
//! | `protocol` | the wire format |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admission;
mod config;
mod heartbeat;
mod listener;
mod outbox;
mod page;
mod protocol;
mod refusal;
mod requests;
mod rooms;
mod routes;
mod session;
mod websocket;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use log::info;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{filters::BoxedFilter, reply::Response};

pub use crate::config::Config;
use crate::{
    admission::{Admission, Place},
    heartbeat::Heartbeat,
    protocol::{Close, RoomName},
    rooms::Rooms,
};

/// A server that is bound to its address, and not yet serving.
pub struct Server {
    listener: TcpListener,
    anteroom: Anteroom,
}

impl Server {
    /// Binds the address of `config`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a folder that cannot be read, or a value that makes no
    /// sense ([`Config::check`]); the message says which.
    pub async fn bind(config: Config) -> io::Result<Server> {
        let listen = config.listen;
        let anteroom = Anteroom::new(config)?;
        let listener = listener::bind(listen)
            .map_err(|error| with_context(error, format!("cannot listen on {listen}")))?;
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
        tokio::select! {
            () = listener::accept(&listener, &anteroom) => {}
            () = shutdown => {}
        }
        drop(listener);
        anteroom.shut_down().await;
    }
}

/// The rooms and all that works on them, without a listener. A clone is another handle to the same
/// rooms.
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
pub struct Anteroom(Arc<Shared>);

/// What routes, connections and sessions have in common.
struct Shared {
    config: Config,
    admission: Admission,
    rooms: Arc<Rooms>,
    heartbeat: Arc<Heartbeat>,
    /// Every task there is: the ticker, connections, sessions.
    tasks: TaskTracker,
    /// Cancelled when the server stops: nobody joins any more.
    stopping: CancellationToken,
    /// Cancelled when it waits no longer for who is still there.
    stopped: CancellationToken,
}

impl Anteroom {
    /// Empty rooms, and the ticker that pings who will be in them. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// A folder that cannot be read, or a value that makes no sense ([`Config::check`]); the
    /// message says which.
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
        let shared = Shared {
            admission: Admission::new(config.session_limit()),
            rooms: Arc::default(),
            heartbeat: Arc::new(Heartbeat::new(config.ping_seconds, config.pong_seconds)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            config,
        };
        shared
            .tasks
            .spawn(tick(shared.heartbeat.clone(), shared.stopping.clone()));
        Ok(Anteroom(Arc::new(shared)))
    }

    /// All that the server answers: the page, `/health`, and what [`room`](Anteroom::room) answers.
    pub fn routes(&self) -> BoxedFilter<(Response,)> {
        routes::all(self)
    }

    /// The WebSocket endpoint alone: `/room` and `/room/{name}`.
    pub fn room(&self) -> BoxedFilter<(Response,)> {
        routes::room(self)
    }

    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.0.rooms.len()
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.0.rooms.sessions()
    }

    /// Admits nobody any more, tells every session to come back later (close code 1012), waits for
    /// them for the drain time at most, and returns with no task left.
    pub async fn shut_down(&self) {
        let shared = &*self.0;
        shared.admission.close();
        shared.stopping.cancel();
        let sessions = shared.rooms.senders();
        let (count, seconds) = (sessions.len(), shared.config.drain_seconds);
        info!("stopping: {count} sessions have {seconds} s to leave");
        for (place, sender) in (0..).zip(&sessions) {
            sender.close(Close::restart(seconds * 1000 * place / count as u64));
        }
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

    /// Runs a session on `connection` once it is upgraded.
    fn start_session(&self, room: RoomName, connection: OnUpgrade, place: Place) {
        let shared = self.0.clone();
        self.0.tasks.spawn(async move {
            let _place = place;
            let Ok(Ok(upgraded)) = timeout(shared.config.handshake(), connection).await else {
                return;
            };
            match upgraded.downcast::<TokioIo<TcpStream>>() {
                Ok(parts) => {
                    let stream = parts.io.into_inner();
                    // Whoever did not take the goodbye is cut off; the kernel must not go on trying
                    // for minutes.
                    let _ = stream.set_zero_linger();
                    session::run(&shared, room, stream, parts.read_buf).await;
                }
                // Under another server than ours the stream is of a type we cannot name.
                Err(upgraded) => {
                    session::run(&shared, room, TokioIo::new(upgraded), Default::default()).await;
                }
            }
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Tells the heartbeat of every second. Seconds in which the process stood still do not count:
/// nobody could answer.
async fn tick(heartbeat: Arc<Heartbeat>, stopping: CancellationToken) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for now in 0.. {
        tokio::select! {
            _ = seconds.tick() => heartbeat.tick(now),
            () = stopping.cancelled() => break,
        }
    }
}

fn with_context(error: io::Error, context: String) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}
