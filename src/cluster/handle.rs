//! The handle to the cluster that the rest of the server has.

use std::{sync::Arc, time::Duration};

use super::{
    nats::NatsOptions,
    outbound::Outbound,
    status::Status,
    wire::{IDS_BYTES, LINE_BYTES, NodeId, PART_BYTES},
};
use crate::config::Config;

/// This node's part in the cluster: its sending half, and whether it is ready.
pub(crate) struct Cluster {
    pub(crate) outbound: Arc<Outbound>,
    /// How long a node may be silent before it is down, and how long a session waits for answers of other
    /// nodes.
    pub(crate) down: Duration,
    pub(super) nats: NatsOptions,
    pub(super) status: Arc<Status>,
}

impl Cluster {
    /// `None` if the configuration names no NATS server.
    pub(crate) fn new(config: &Config) -> Option<Cluster> {
        let (options, limits) = (&config.cluster, &config.limits);
        let payload_bytes = limits.max_message_bytes.max(PART_BYTES)
            + IDS_BYTES
            + limits.max_header_bytes
            + LINE_BYTES;
        (!options.servers.is_empty()).then(|| Cluster {
            outbound: Arc::new(Outbound::new(NodeId::random())),
            down: Duration::from_secs(options.down_seconds),
            nats: NatsOptions {
                servers: options.servers.clone(),
                credentials: options.credentials_file.clone(),
                ca: options.ca_file.clone(),
                prefix: options.prefix.clone(),
                payload_bytes,
            },
            status: Arc::new(Status::new()),
        })
    }

    /// Whether the other nodes had time to announce themselves since this one started.
    pub(crate) fn has_begun(&self) -> bool {
        self.status.has_begun()
    }

    /// Whether this node is connected to NATS.
    pub(crate) fn is_connected(&self) -> bool {
        self.status.is_connected()
    }

    /// Whether this node can ask the others for a session: it is connected, and knows them.
    pub(crate) fn can_ask(&self) -> bool {
        self.status.is_connected() && self.status.knows_nodes() && !self.status.has_error()
    }

    /// The last error that NATS reported on this connection, such as a subject that this node may not
    /// subscribe to. It is cleared every 10 s, when the node tries again.
    pub(crate) fn nats_error(&self) -> Option<String> {
        self.status.error()
    }
}
