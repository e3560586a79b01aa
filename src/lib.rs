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
//! receivers; what stands in the outboxes of many more is written by tasks of their own, a batch each.
//!
//! | module | what is in it |
//! | --- | --- |
//! | `config` | every option |
//! | `listener`, `tls` | the accept loop, with its limits |
//! | `routes`, `page`, `refusal` | every URL; the files behind `/`; how a request is turned away |
//! | `host` | which host a request is for |
//! | `admission` | who may join |
//! | `address`, `tokens`, `keys`, `rates` | where a request is from; what a token grants, and who signs it; how much is too much |
//! | `websocket` | the handshake, the frames, the socket |
//! | `session` | one session's life |
//! | `requests`, `ice` | what is addressed to the server; the ICE servers it tells of |
//! | `rooms` | who is where, on this node and on others |
//! | `cluster` | what nodes say to each other, and how: over NATS |
//! | `outbox` | what waits for a session |
//! | `kept` | what may have to be sent again |
//! | `resume` | the sessions that may be resumed |
//! | `heartbeat`, `expiry` | who is pinged, who is given up; whose token ends |
//! | `protocol` | the wire format |
//! | `escape` | what comes from outside, as it is logged |
//! | `admin` | every URL for operators |
//! | `metrics`, `traffic` | everything that is counted |
//! | `reload`, `pem`, `secret` | what is read from files, and read again; what no log may have |

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod admin;
mod admission;
mod cluster;
mod config;
mod escape;
mod expiry;
mod heartbeat;
mod host;
mod ice;
mod kept;
mod keys;
mod listener;
mod metrics;
mod outbox;
mod page;
mod pem;
mod protocol;
mod rates;
mod refusal;
mod reload;
mod requests;
mod resume;
mod rooms;
mod routes;
mod secret;
mod session;
mod tls;
mod tokens;
mod traffic;
mod websocket;

use std::{borrow::Cow, future::pending, io, net::SocketAddr, sync::Arc, time::Duration};

use log::{info, warn};
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{filters::BoxedFilter, reply::Response};

use crate::{
    admission::Admission,
    cluster::Cluster,
    config::sessions_by_files,
    escape::Escaped,
    expiry::Expiries,
    heartbeat::Heartbeat,
    ice::IceServers,
    listener::Service,
    metrics::{Gauges, Metrics},
    protocol::Close,
    reload::{Reloadable, read_secret},
    resume::Resumes,
    rooms::Rooms,
    secret::Secret,
    tls::{Tls, check_authorities},
};
pub use crate::{
    cluster::NatsUrl,
    config::{Config, Origin},
    ice::IceUrl,
    tokens::TokenRequest,
};

/// How long a request of an operator may take when all else has ended.
const OPERATORS_GRACE: Duration = Duration::from_secs(1);

/// A server that is bound to its address, and not yet serving.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    admin: Option<TcpListener>,
    anteroom: Anteroom,
}

impl Server {
    /// Binds the address of `config`.
    ///
    /// # Errors
    ///
    /// An address that cannot be bound, a file or folder that cannot be read or used, or a value that
    /// makes no sense ([`Config::check`]); the message says which.
    pub fn bind(config: Config) -> io::Result<Server> {
        let bind = |address| {
            listener::bind(address)
                .map_err(|error| with_context(error, format!("cannot listen on {address}")))
        };
        let listener = bind(config.listen)?;
        let admin = config.admin.map(bind).transpose()?;
        let tls = config.tls_cert.clone().zip(config.tls_key.clone());
        let tls = tls.map(|(cert, key)| Tls::new(cert, key).map(Arc::new));
        Ok(Server {
            listener,
            tls: tls.transpose()?,
            admin,
            anteroom: Anteroom::new(config)?,
        })
    }

    /// What reads the files again that may change while the server runs, to be called when the
    /// program is asked to, as by SIGHUP: the certificate, and those of [`Anteroom::reload`]. `None`
    /// if there are none.
    pub fn reloader(&self) -> Option<impl Fn() + Send + 'static> {
        let (tls, anteroom) = (self.tls.clone(), self.anteroom.clone());
        let Config {
            token_key_file,
            turn_secret_file,
            admin_token_file,
            ..
        } = &anteroom.shared().config;
        let has_files = [token_key_file, turn_secret_file, admin_token_file]
            .iter()
            .any(|file| file.is_some());
        (tls.is_some() || has_files).then_some(move || {
            if let Some(tls) = &tls {
                report("the certificate", tls.reload());
            }
            anteroom.reload();
        })
    }

    /// The address it listens on, with the real port.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether it serves with TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The address on which operators are answered, with the real port; `None` if there is none.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn admin_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The rooms it serves.
    pub fn anteroom(&self) -> &Anteroom {
        &self.anteroom
    }

    /// Serves until `shutdown` is done; then accepts no more, tells every session to come back
    /// later (close code 1012), waits for them for the drain time at most, and returns with no task
    /// left.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Server {
            listener,
            tls,
            admin,
            anteroom,
        } = self;
        let shared = anteroom.shared().clone();
        let (limit, possible) = (shared.config.session_limit(), sessions_by_files());
        info!("serving up to {limit} sessions");
        if limit > possible {
            warn!("the open-file limit is enough for {possible} sessions only");
        }
        let service = Service {
            routes: anteroom.routes(),
            tls,
            is_public: true,
            is_for_operators: false,
            tasks: shared.tasks.clone(),
            stopping: shared.stopping.clone(),
            grace: shared.config.drain(),
            shared: shared.clone(),
        };
        let admin_service = Service {
            routes: admin::all(&anteroom),
            tls: None,
            is_public: shared.config.is_admin_exposed(),
            is_for_operators: true,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            grace: OPERATORS_GRACE,
            shared,
        };
        let operators = async {
            match &admin {
                Some(listener) => listener::accept(listener, &admin_service).await,
                None => pending().await,
            }
        };
        let peers = async {
            tokio::select! {
                () = listener::accept(&listener, &service) => {}
                () = shutdown => {}
            }
            drop(listener);
            anteroom.shut_down().await;
        };
        // Operators are answered to the end.
        tokio::select! {
            () = peers => {}
            () = operators => {}
        }
        admin_service.stopping.cancel();
        admin_service.tasks.close();
        admin_service.tasks.wait().await;
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
    expiries: Arc<Expiries>,
    resumes: Arc<Resumes>,
    ice: IceServers,
    /// There if other nodes may be.
    cluster: Option<Arc<Cluster>>,
    /// What operators must give, if they must.
    admin_token: Option<Reloadable<Secret<Vec<u8>>>>,
    metrics: Arc<Metrics>,
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
    /// A file or folder that cannot be read or used, or a value that makes no sense
    /// ([`Config::check`]); the message says which.
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
        if let Some(file) = &config.cluster_ca_file {
            check_authorities(file)?;
        }
        let cluster = Cluster::new(&config).map(Arc::new);
        let uplink = cluster.as_ref().map(|cluster| cluster.uplink.clone());
        let rooms = Arc::new(Rooms::new(&config, uplink));
        let metrics = Arc::new(Metrics::new(cluster.is_some()));
        let admin_token = config.admin_token_file.clone();
        let admin_token = admin_token.map(|path| Reloadable::new(move || read_secret(&path)));
        let shared = Arc::new(Shared {
            admission: Admission::new(&config, rooms.clone(), metrics.clone())?,
            rooms,
            heartbeat: Heartbeat::new(config.ping_seconds, config.pong_seconds).into(),
            expiries: Arc::default(),
            resumes: Resumes::new(cluster.is_some()).into(),
            ice: IceServers::new(&config)?,
            cluster,
            admin_token: admin_token.transpose()?,
            metrics,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            config,
        });
        shared.tasks.spawn(tick(shared.clone()));
        if let Some(cluster) = &shared.cluster {
            shared
                .tasks
                .spawn(cluster::run(cluster.clone(), shared.clone()));
        }
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

    /// Everything that is counted, in the text format of OpenMetrics 1.0, to be served as
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn metrics(&self) -> String {
        let shared = self.shared();
        let outboxes = shared.rooms.senders();
        shared.metrics.render(&Gauges {
            sessions: shared.rooms.sessions(),
            away: shared.resumes.count_away(),
            rooms: shared.rooms.len(),
            outbox_bytes: outboxes.iter().map(|sender| sender.look().bytes).sum(),
            cluster_connected: shared
                .cluster
                .as_ref()
                .map_or(0, |cluster| cluster.is_connected().into()),
        })
    }

    /// Reads the files again that may change while the server runs: the keys of tokens and the
    /// secrets. What cannot be used is logged, and stays as it was.
    pub fn reload(&self) {
        let shared = self.shared();
        if let Some(tokens) = shared.admission.tokens() {
            report("the keys of tokens", tokens.reload());
        }
        if let Some(result) = shared.ice.reload() {
            report("the TURN secret", result);
        }
        if let Some(token) = &shared.admin_token {
            report("the secret of operators", token.reload());
        }
    }

    /// Begins no more sessions: who asks for one gets 503. Those that there are go on, and may be
    /// resumed.
    pub fn drain(&self) {
        self.shared().admission.close();
    }

    /// Whether sessions can begin here, and reach those of other nodes.
    pub fn is_ready(&self) -> bool {
        self.why_not_ready().is_none()
    }

    fn why_not_ready(&self) -> Option<Cow<'static, str>> {
        let shared = self.shared();
        let cluster = shared.cluster.as_ref();
        if !shared.admission.is_open() {
            Some("draining".into())
        } else if cluster.is_some_and(|cluster| !cluster.is_connected()) {
            Some("not connected to NATS".into())
        } else if let Some(refusal) = cluster.and_then(|cluster| cluster.refusal()) {
            Some(format!("NATS refuses something: {}", Escaped(refusal)).into())
        } else if cluster.is_some_and(|cluster| !cluster.has_begun()) {
            Some("waiting for other nodes".into())
        } else {
            None
        }
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

/// Does what is due every second. For the heartbeat, seconds in which the process stood still do not count:
/// nobody could answer.
async fn tick(shared: Arc<Shared>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for now in 0.. {
        tokio::select! {
            _ = seconds.tick() => {
                shared.heartbeat.tick(now);
                shared.expiries.tick(tokens::now());
                shared.admission.tick();
            }
            () = shared.stopping.cancelled() => break,
        }
    }
}

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Says what has come of reading a file again.
fn report(what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => info!("read {what} again"),
        Err(error) => warn!("{what}: as before, for {}", Escaped(error)),
    }
}

fn with_context(error: io::Error, context: String) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}
