//! The state that routes, connections and sessions share.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use log::info;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{expiry::Expiries, heartbeat::Heartbeat, ice::IceServers, resume::Resumes};
use crate::{
    access::Admission,
    cluster::Cluster,
    config::{Config, SecretFile},
    metrics::Metrics,
    protocol::Close,
    rooms::Rooms,
};

/// The state that routes, connections and sessions share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) admission: Admission,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) expiries: Arc<Expiries>,
    pub(crate) resumes: Arc<Resumes>,
    pub(crate) ice: IceServers,
    /// Present if the server is a node of a cluster.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// When the server started.
    pub(crate) started: SystemTime,
    /// The secret of operators, if they need one.
    pub(crate) admin_token: Option<SecretFile>,
    pub(crate) metrics: Arc<Metrics>,
    /// All tasks: the ticker, connections, sessions.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server begins to stop: no session begins any more.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the drain time is over: the server waits for nobody any more.
    pub(crate) stopped: CancellationToken,
}

impl Shared {
    /// Begins to stop: admits no more sessions, and closes each session (1012) with a delay of its own
    /// within the drain time, so that the clients do not reconnect all at once.
    pub(crate) fn stop(&self) {
        if self.stopping.is_cancelled() {
            return;
        }
        self.admission.close();
        self.stopping.cancel();
        let sessions = self.rooms.local_senders();
        let (count, seconds) = (sessions.len(), self.config.stopping.drain_seconds);
        info!("stopping: {seconds} s to leave for {count} session(s)");
        for (index, sender) in (0..).zip(&sessions) {
            sender.close(Close::restart(seconds * 1000 * index / count as u64));
        }
    }

    /// The outcome of `work`; `None` if it takes longer than `limit` or the drain time ends. The work is
    /// polled at least once.
    pub(crate) async fn in_time<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            outcome = timeout(limit, work) => outcome.ok(),
            () = self.stopped.cancelled() => None,
        }
    }
}
