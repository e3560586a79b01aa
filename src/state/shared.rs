//! The state that routes, connections and sessions share.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use log::info;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    bodies::Bodies, expiry::Expiries, heartbeat::Heartbeat, ice::IceServers, lobbies::Lobbies,
    remote_inlets::RemoteInlets, resume::Resumes, saved_sessions::SessionsToSave,
    sessions_file::SessionsFile,
};
use crate::{
    access::Admission,
    cluster::Cluster,
    config::{Config, SecretFile},
    history::History,
    metrics::Metrics,
    outbox::Sender,
    protocol::Close,
    rooms::Rooms,
    turn::Turn,
};

/// The state that routes, connections and sessions share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) admission: Admission,
    pub(crate) rooms: Arc<Rooms>,
    /// Present if rooms keep their last messages.
    pub(crate) history: Option<Arc<History>>,
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) expiries: Arc<Expiries>,
    pub(crate) resumes: Arc<Resumes>,
    pub(crate) remote_inlets: RemoteInlets,
    /// What clients without a WebSocket are sending.
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) ice: IceServers,
    /// Present if this process is a TURN server.
    pub(crate) turn: Option<Arc<Turn>>,
    /// Present if sessions are kept over a restart.
    pub(crate) sessions_file: Option<SessionsFile>,
    pub(crate) to_save: SessionsToSave,
    /// Where sessions look for a group.
    pub(crate) lobbies: Lobbies,
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
    /// Begins to stop: admits no more sessions, and closes each connection (1012) with a delay of its own
    /// within the drain time, so that the clients do not reconnect all at once. Resumable sessions go on at
    /// other nodes of the cluster, or after the restart.
    pub(crate) fn stop(&self) {
        if self.stopping.is_cancelled() {
            return;
        }
        self.admission.close();
        self.stopping.cancel();
        let sessions = self.heartbeat.senders();
        let (count, drain) = (sessions.len(), self.config.stopping.drain());
        info!(
            "stopping: waiting up to {} s for {count} session(s)",
            drain.as_secs()
        );
        // Resumable sessions need time to resume after the delay.
        let spread = match self.keeps_sessions() {
            true => drain.min(self.config.liveness.resume()) / 2,
            false => drain,
        };
        for (index, sender) in (0..).zip(&sessions) {
            self.stop_session(sender, spread.as_millis() as u64 * index / count as u64);
        }
    }

    /// Closes the connection of a session that should reconnect after a delay. The session ends, unless it
    /// goes on elsewhere.
    pub(crate) fn stop_session(&self, sender: &Sender, delay_ms: u64) {
        let close = Close::restart(delay_ms);
        match self.keeps_sessions() {
            true => sender.give_up_to_resume(close),
            false => sender.close(close),
        }
    }

    /// Whether this node can look for a session: it can ask nodes that are up, or knows that there are no others.
    pub(crate) fn can_ask_nodes(&self) -> bool {
        let can_ask = |cluster: &Arc<Cluster>| cluster.can_ask() && !self.rooms.nodes().is_empty();
        self.knows_nodes() || self.cluster.as_ref().is_some_and(can_ask)
    }

    /// Whether this node knows all others. Then a session is lost that none of them has.
    pub(crate) fn knows_nodes(&self) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_none_or(|cluster| cluster.knows_nodes())
    }

    /// Whether resumable sessions outlive this server process.
    fn keeps_sessions(&self) -> bool {
        self.cluster.is_some() || self.sessions_file.is_some()
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
