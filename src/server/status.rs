//! The state that the server reports: its version and nodes, its metrics, and whether it is ready.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Serialize;

use crate::{cluster::NodeId, metrics::Gauges, protocol::Escaped, state::Shared};

/// What runs, since when, and in which cluster.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    version: &'static str,
    /// In RFC 3339 with milliseconds.
    started_at: String,
    /// This node; `None` without a cluster.
    node: Option<NodeId>,
    /// The other nodes that are up.
    nodes: Vec<NodeId>,
    /// How direct connections between clients of this node went.
    peer_connections: Vec<PeerConnections>,
}

/// The number of direct connections between clients with this result and path.
#[derive(Serialize)]
struct PeerConnections {
    result: &'static str,
    path: &'static str,
    count: u64,
}

impl Status {
    /// The status at this moment.
    pub(super) fn of(shared: &Shared) -> Status {
        let started_at = Timestamp::try_from(shared.started).unwrap_or_default();
        let cluster = shared.cluster.as_ref();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            started_at: format!("{started_at:.3}"),
            node: cluster.map(|cluster| cluster.outbound.node()),
            nodes: shared.rooms.nodes(),
            peer_connections: shared
                .metrics
                .count_peer_connections()
                .map(|([result, path], count)| PeerConnections {
                    result,
                    path,
                    count,
                })
                .collect(),
        }
    }
}

/// All metrics in the text format of OpenMetrics.
pub(super) fn metrics(shared: &Shared) -> String {
    let outboxes = shared.heartbeat.senders();
    let gauges = Gauges {
        sessions: outboxes.len(),
        suspended: shared.resumes.count_suspended(),
        rooms: shared.rooms.len(),
        outbox_bytes: outboxes.iter().map(|sender| sender.stats().bytes).sum(),
        history_bytes: shared.history.as_ref().map_or(0, |it| it.bytes()) as usize,
        cluster_connected: shared
            .cluster
            .as_ref()
            .map_or(0, |cluster| cluster.is_connected().into()),
    };
    shared.metrics.render(&gauges, shared.started)
}

/// Why no session can start here, or why it could not reach those of other nodes; `None` if the
/// server is ready.
pub(super) fn why_not_ready(shared: &Shared) -> Option<Cow<'static, str>> {
    let cluster = shared.cluster.as_ref();
    if !shared.admission.is_open() {
        Some("draining".into())
    } else if cluster.is_some_and(|cluster| !cluster.is_connected()) {
        Some("not connected to NATS".into())
    } else if let Some(error) = cluster.and_then(|cluster| cluster.nats_error()) {
        Some(format!("NATS reports an error: {}", Escaped(error)).into())
    } else if cluster.is_some_and(|cluster| !cluster.has_begun()) {
        Some("waiting for other nodes".into())
    } else {
        None
    }
}
