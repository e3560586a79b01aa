//! The public handle to a server without a listener for HTTP, and the task that runs every second.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use log::{error, info, warn};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{filters::BoxedFilter, reply::Response};

#[cfg(feature = "cluster")]
use super::certificates::check_authorities;
use super::{apply, handle::Handle, routes, status};
use crate::{
    access::Admission,
    cluster::{Cluster, Nats, Transport},
    config::{Config, SecretFile, read_secret},
    history::History,
    metrics::Metrics,
    protocol::{CloseCode, ErrorCode, Escaped},
    rooms::Rooms,
    session,
    state::{
        Heartbeat, IceServers, Lobbies, RemoteInlets, Resumes, SessionsFile, SessionsToSave, Shared,
    },
    turn::Turn,
    unix_time,
};

/// The server without a listener for HTTP, as warp filters for another application. Clones are handles to the
/// same rooms, and the filters hold one each. Dropping the last handle tells every session to leave.
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
pub struct Anteroom(Handle);

impl Anteroom {
    /// Starts a server without rooms. Spawns the task that pings sessions, with [`Config::cluster`] the one that
    /// talks to other nodes, and with an address in [`Config::turn`] those of the TURN server.
    ///
    /// # Errors
    ///
    /// A file or folder that cannot be read or used, an address of the TURN server that cannot be bound, or an
    /// invalid value ([`Config::check`]); the message names it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(config: Config) -> io::Result<Anteroom> {
        config
            .check()
            .map_err(|message| io::Error::new(io::ErrorKind::InvalidInput, message))?;
        if let Some(folder) = &config.serving.static_dir {
            std::fs::read_dir(folder).map_err(|error| {
                with_context(
                    error,
                    format!("cannot read the folder {}", folder.display()),
                )
            })?;
        }
        #[cfg(feature = "cluster")]
        if let Some(file) = &config.cluster.ca_file {
            check_authorities(file)?;
        }
        let nats = Nats::new(&config);
        Anteroom::with_transport(config, nats)
    }

    /// Starts a server that is a node of a cluster if it has a `transport` to the other nodes. The configuration
    /// is valid.
    pub(crate) fn with_transport(
        config: Config,
        transport: Option<impl Transport>,
    ) -> io::Result<Anteroom> {
        let store = transport.as_ref().and_then(Transport::message_store);
        let cluster = transport.map(|transport| {
            let cluster = Cluster::new(&config);
            (Arc::new(cluster), transport)
        });
        let (cluster, transport) = cluster.unzip();
        let outbound = cluster.as_ref().map(|cluster| cluster.outbound.clone());
        let metrics = Arc::new(Metrics::new(
            cluster.is_some(),
            Turn::is_configured(&config),
            ErrorCode::ALL.map(ErrorCode::as_str),
            CloseCode::ALL.map(CloseCode::number),
        ));
        let (turn, turn_listeners) = Turn::bind(&config, &metrics)?.unzip();
        let turn = turn.map(Arc::new);
        let history = History::open(&config.history, store.zip(outbound.clone()), &metrics)?;
        let tasks = TaskTracker::new();
        let rooms = Rooms::new(&config.limits, outbound, history.clone(), tasks.clone());
        let rooms = Arc::new(rooms);
        let admin_token = config.admin.token_file.clone();
        let admin_token = admin_token.map(|path| SecretFile::new(path, read_secret));
        let sessions_file = config.stopping.sessions_file.clone();
        let shared = Arc::new(Shared {
            admission: Admission::new(&config, rooms.clone(), metrics.clone())?,
            rooms,
            history,
            heartbeat: Heartbeat::new(config.liveness.ping_seconds, config.liveness.pong_seconds)
                .into(),
            expiries: Arc::default(),
            resumes: Resumes::new(cluster.is_some()).into(),
            remote_inlets: RemoteInlets::default(),
            bodies: Arc::default(),
            ice: IceServers::new(&config.webrtc, turn.clone())?,
            turn,
            sessions_file: sessions_file.map(SessionsFile::new).transpose()?,
            to_save: SessionsToSave::default(),
            lobbies: Lobbies::default(),
            cluster,
            started: SystemTime::now(),
            admin_token: admin_token.transpose()?,
            metrics,
            tasks,
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            config,
        });
        if let Some(file) = &shared.sessions_file {
            let window = shared.config.liveness.resume();
            let sessions = file.take(window)?.into_iter();
            sessions.for_each(|saved| session::restore(&shared, saved));
        }
        shared.tasks.spawn(tick(shared.clone()));
        if !shared.config.serving.dialect.is_empty() {
            shared.tasks.spawn(expire_messages(shared.clone()));
        }
        if let Some(listeners) = turn_listeners {
            let serving = listeners.run(shared.stopping.clone(), shared.stopped.clone());
            shared.tasks.spawn(serving);
        }
        if let Some((cluster, transport)) = shared.cluster.clone().zip(transport) {
            let applied = apply::run(cluster, transport, shared.clone());
            shared.tasks.spawn(applied);
        }
        Ok(Anteroom(Handle::new(shared)))
    }

    /// Every URL of the server: the demo page, `/health`, and those of [`room`](Anteroom::room). A
    /// request for any other path is answered with 404, so filters after these are never reached.
    pub fn routes(&self) -> BoxedFilter<(Response,)> {
        routes::all(&self.0)
    }

    /// The endpoints of sessions alone: `/room` and `/room/{name}`, and those of the dialects in
    /// [`Serving::dialect`](crate::config::Serving::dialect).
    pub fn room(&self) -> BoxedFilter<(Response,)> {
        routes::sessions(&self.0)
    }

    /// The address of the STUN and TURN server, with the actual port; `None` without one.
    pub fn turn_addr(&self) -> Option<SocketAddr> {
        Some(self.0.turn.as_ref()?.local_addr())
    }

    /// The number of rooms.
    pub fn rooms(&self) -> usize {
        self.0.rooms.len()
    }

    /// The number of sessions, including suspended ones.
    pub fn sessions(&self) -> usize {
        self.0.heartbeat.len()
    }

    /// All metrics in the text format of OpenMetrics 1.0. Serve them with the content type
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn metrics(&self) -> String {
        status::metrics(&self.0)
    }

    /// Reads the files again that may change while the server runs: the token keys and the secrets. A
    /// file that cannot be used is logged, and its old content stays in use.
    pub fn reload(&self) {
        if let Some(tokens) = self.0.admission.tokens() {
            report_reload("the token keys", tokens.reload());
        }
        if let Some(result) = self.0.ice.reload() {
            report_reload("the TURN secret", result);
        }
        if let Some(token) = &self.0.admin_token {
            report_reload("the admin secret", token.reload());
        }
    }

    /// Refuses new sessions from now on, with 503. Existing sessions continue, and can be resumed.
    pub fn drain(&self) {
        self.0.admission.close();
    }

    /// Whether new sessions can start and reach the sessions of other nodes.
    pub fn is_ready(&self) -> bool {
        status::why_not_ready(&self.0).is_none()
    }

    /// Refuses new sessions, tells every session to reconnect later (close code 1012), and waits until
    /// all have left, at most for the drain time. Resumable sessions wait for their clients to resume at
    /// other nodes of the cluster, or are saved in the sessions file. Returns when every task has ended.
    pub async fn shut_down(&self) {
        let shared = &self.0;
        if shared.sessions_file.is_some() {
            shared.to_save.open();
        }
        shared.stop();
        shared.tasks.close();
        if timeout(shared.config.stopping.drain(), shared.tasks.wait())
            .await
            .is_err()
        {
            shared.stopped.cancel();
            shared.tasks.wait().await;
        }
        if let Some(history) = &shared.history {
            history.close().await;
        }
        if shared.sessions_file.is_some() {
            let shared = Arc::clone(shared);
            // It fails only if it panics.
            let _ = spawn_blocking(move || save_sessions(&shared)).await;
        }
        info!("stopped");
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }
}

/// Does the work of every second: pings, expired tokens, forgotten addresses. The heartbeat counts
/// ticks, not time, so that no session is given up for seconds in which the process was suspended
/// and nobody could answer.
async fn tick(shared: Arc<Shared>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for now in 0.. {
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => break,
            _ = seconds.tick() => {
                shared.heartbeat.tick(now);
                shared.expiries.tick(unix_time::unix_seconds());
                shared.admission.tick();
                shared.lobbies.tick();
            }
        }
    }
}

/// Tells clients whose messages have waited in vain, until the server stops.
async fn expire_messages(shared: Arc<Shared>) {
    let count = |clients| {
        let errors = shared.metrics.errors(ErrorCode::UnknownReceiver.as_str());
        errors.inc_by(clients as u64);
    };
    let expiring = shared.rooms.expire_messages(count);
    shared.stopping.run_until_cancelled(expiring).await;
}

/// Writes the sessions that are kept over a restart, if there is a file for them.
fn save_sessions(shared: &Shared) {
    if let Some(file) = &shared.sessions_file
        && let Some(sessions) = shared.to_save.close()
    {
        match file.write(&sessions) {
            Ok(()) => info!("saved {} session(s)", sessions.len()),
            Err(error) => error!("{} session(s) are lost: {}", sessions.len(), Escaped(error)),
        }
    }
}

/// Logs whether a file was read again.
pub(super) fn report_reload(what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => info!("reloaded {what}"),
        Err(error) => warn!(
            "cannot reload {what}, the old one stays: {}",
            Escaped(error)
        ),
    }
}

/// The error with what was being done in front of its message.
pub(super) fn with_context(error: io::Error, context: String) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}
