//! The state that the server reports: its metrics, and whether it is ready.

use std::borrow::Cow;

use crate::{metrics::Gauges, protocol::Escaped, state::Shared};

/// All metrics in the text format of OpenMetrics.
pub(super) fn metrics(shared: &Shared) -> String {
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
