//! The handle to the cluster that the rest of the server has.

use std::{sync::Arc, time::Duration};

use super::{outbound::Outbound, status::Status, wire::NodeId};
use crate::config::Config;

/// This node's part in the cluster: its sending half, and whether it is ready.
pub(crate) struct Cluster {
    pub(crate) outbound: Arc<Outbound>,
    /// How long a node may be silent before it is down, and how long a session waits for answers of other
    /// nodes.
    pub(crate) down: Duration,
    pub(super) status: Arc<Status>,
}

impl Cluster {
    /// A node that is not connected yet.
    pub(crate) fn new(config: &Config) -> Cluster {
        Cluster {
            outbound: Arc::new(Outbound::new(NodeId::random())),
            down: Duration::from_secs(config.cluster.down_seconds),
            status: Arc::new(Status::new()),
        }
    }

    /// Whether this node has once known the others well enough to serve clients.
    pub(crate) fn has_begun(&self) -> bool {
        self.status.has_begun()
    }

    /// Whether this node is connected to NATS.
    pub(crate) fn is_connected(&self) -> bool {
        self.status.is_connected()
    }

    /// Whether this node can ask the others for a session.
    pub(crate) fn can_ask(&self) -> bool {
        self.status.is_connected() && !self.status.has_error()
    }

    /// Whether this node knows all others. Then a session is lost that none of them has.
    pub(crate) fn knows_nodes(&self) -> bool {
        self.can_ask() && self.status.knows_nodes()
    }

    /// The last error that NATS reported on this connection, such as a subject that this node may not
    /// subscribe to. It is cleared every 10 s, when the node tries again.
    pub(crate) fn nats_error(&self) -> Option<String> {
        self.status.error()
    }
}
