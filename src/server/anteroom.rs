//! The public handle to the rooms, and what runs beside the sessions.

use std::{borrow::Cow, io, sync::Arc, time::Duration};

use log::{info, warn};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{filters::BoxedFilter, reply::Response};

use super::{routes, tls::check_authorities};
use crate::{
    access::{self, Admission},
    cluster::{self, Cluster},
    config::{Config, SecretFile, read_secret},
    metrics::{Gauges, Metrics},
    protocol::{CloseCode, ErrorCode, Escaped},
    rooms::Rooms,
    state::{Heartbeat, IceServers, Resumes, Shared},
};

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
        if let Some(folder) = &config.serving.static_dir {
            std::fs::read_dir(folder).map_err(|error| {
                with_context(
                    error,
                    format!("cannot read the folder {}", folder.display()),
                )
            })?;
        }
        if let Some(file) = &config.cluster.ca_file {
            check_authorities(file)?;
        }
        let cluster = Cluster::new(&config.cluster, &config.limits).map(Arc::new);
        let outbound = cluster.as_ref().map(|cluster| cluster.outbound.clone());
        let rooms = Arc::new(Rooms::new(&config.limits, outbound));
        let metrics = Arc::new(Metrics::new(
            cluster.is_some(),
            ErrorCode::ALL.map(ErrorCode::as_str),
            CloseCode::ALL.map(|code| code as u16),
        ));
        let admin_token = config.admin.token_file.clone();
        let admin_token = admin_token.map(|path| SecretFile::new(path, read_secret));
        let shared = Arc::new(Shared {
            admission: Admission::new(&config, rooms.clone(), metrics.clone())?,
            rooms,
            heartbeat: Heartbeat::new(config.liveness.ping_seconds, config.liveness.pong_seconds)
                .into(),
            expiries: Arc::default(),
            resumes: Resumes::new(cluster.is_some()).into(),
            ice: IceServers::new(&config.webrtc)?,
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
        self.shared().rooms.session_count()
    }

    /// Everything that is counted, in the text format of OpenMetrics 1.0, to be served as
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    pub fn metrics(&self) -> String {
        let shared = self.shared();
        let outboxes = shared.rooms.local_senders();
        shared.metrics.render(&Gauges {
            sessions: shared.rooms.session_count(),
            suspended: shared.resumes.count_suspended(),
            rooms: shared.rooms.len(),
            outbox_bytes: outboxes.iter().map(|sender| sender.stats().bytes).sum(),
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

    pub(super) fn why_not_ready(&self) -> Option<Cow<'static, str>> {
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
        if timeout(shared.config.stopping.drain(), shared.tasks.wait())
            .await
            .is_err()
        {
            shared.stopped.cancel();
            shared.tasks.wait().await;
        }
        info!("stopped");
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
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
                shared.expiries.tick(access::now());
                shared.admission.tick();
            }
            () = shared.stopping.cancelled() => break,
        }
    }
}

/// Says what has come of reading a file again.
pub(super) fn report(what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => info!("read {what} again"),
        Err(error) => warn!("{what}: as before, for {}", Escaped(error)),
    }
}

pub(super) fn with_context(error: io::Error, context: String) -> io::Error {
    io::Error::new(error.kind(), format!("{context}: {error}"))
}
