//! What all sessions share.

mod expiry;
mod heartbeat;
mod ice;
mod resume;

use std::sync::Arc;

use log::info;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    expiry::{Expiries, ExpiryGuard},
    heartbeat::{Heartbeat, HeartbeatGuard},
    ice::IceServers,
    resume::{ResumeRegistration, ResumeRequest, Resumes},
};
use crate::{
    access::Admission,
    cluster::Cluster,
    config::{Config, Reloadable, Secret},
    metrics::Metrics,
    protocol::Close,
    rooms::Rooms,
};

/// What routes, connections and sessions have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) admission: Admission,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) expiries: Arc<Expiries>,
    pub(crate) resumes: Arc<Resumes>,
    pub(crate) ice: IceServers,
    /// There if other nodes may be.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// What operators must give, if they must.
    pub(crate) admin_token: Option<Reloadable<Secret<Vec<u8>>>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Every task there is: the ticker, connections, sessions.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the server stops: nobody joins any more.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when it waits no longer for who is still there.
    pub(crate) stopped: CancellationToken,
}

impl Shared {
    /// Admits nobody any more, and tells every session to come back later, each at a time of its
    /// own within the drain time.
    pub(crate) fn stop(&self) {
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
