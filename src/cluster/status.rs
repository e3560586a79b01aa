//! The state of the connection to the other nodes, as readiness checks and the writer need it. No I/O.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Time after a reconnection in which this node sends nothing, so that the other nodes have reconnected when
/// it does.
pub(super) const SETTLE: Duration = Duration::from_millis(500);

/// The state of the connection, shared by the tasks of the node and the HTTP handlers.
pub(super) struct Status(Mutex<State>);

struct State {
    has_begun: bool,
    knows_nodes: bool,
    is_connected: bool,
    error: Option<String>,
    /// When other nodes receive what is sent on this connection; `None` without a connection.
    settled_at: Option<Instant>,
}

impl Status {
    /// The state before the first connection. That one needs no time to settle: no other node has known
    /// this one before.
    pub(super) fn new() -> Status {
        Status(Mutex::new(State {
            has_begun: false,
            knows_nodes: false,
            is_connected: false,
            error: None,
            settled_at: Some(Instant::now()),
        }))
    }

    /// Whether this node has once known the others well enough to serve clients.
    pub(super) fn has_begun(&self) -> bool {
        self.0.lock().has_begun
    }

    /// Whether this node knows all others. Then a session is lost that none of them has.
    pub(super) fn knows_nodes(&self) -> bool {
        self.0.lock().knows_nodes
    }

    /// Notes whether this node can begin to serve, and whether it knows all other nodes.
    pub(super) fn set_knowledge(&self, can_begin: bool, knows_nodes: bool) {
        let mut state = self.0.lock();
        state.has_begun |= can_begin;
        state.knows_nodes = knows_nodes;
    }

    /// Whether this node is connected to NATS.
    pub(super) fn is_connected(&self) -> bool {
        self.0.lock().is_connected
    }

    pub(super) fn set_connected(&self, is_connected: bool) {
        self.0.lock().is_connected = is_connected;
    }

    /// The last error that NATS has reported on this connection.
    pub(super) fn error(&self) -> Option<String> {
        self.0.lock().error.clone()
    }

    pub(super) fn has_error(&self) -> bool {
        self.0.lock().error.is_some()
    }

    pub(super) fn set_error(&self, error: String) {
        self.0.lock().error = Some(error);
    }

    /// Forgets the error. Returns whether there was one.
    pub(super) fn clear_error(&self) -> bool {
        self.0.lock().error.take().is_some()
    }

    /// A connection is made. Errors of the one before no longer count.
    pub(super) fn begin_connection(&self) {
        let mut state = self.0.lock();
        state.error = None;
        state.settled_at.get_or_insert(Instant::now() + SETTLE);
    }

    /// The connection is lost.
    pub(super) fn end_connection(&self) {
        self.0.lock().settled_at = None;
    }

    /// When the connection settles; `None` without a connection. `is_connected` tells whether there is one:
    /// the NATS client drops events when many wait, so its event alone is not enough.
    pub(super) fn settled_at(&self, is_connected: impl FnOnce() -> bool) -> Option<Instant> {
        let mut state = self.0.lock();
        if state.settled_at.is_none() && is_connected() {
            state.settled_at = Some(Instant::now() + SETTLE);
        }
        state.settled_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_made_again_settles_first() {
        let status = Status::new();
        let is_settled = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        assert!(is_settled(status.settled_at(|| false)));
        status.begin_connection();
        assert!(is_settled(status.settled_at(|| true)));
        status.end_connection();
        assert_eq!(status.settled_at(|| false), None);
        let settled_at = status.settled_at(|| true);
        assert!(settled_at.is_some() && !is_settled(settled_at));
        // The event that comes late changes nothing.
        status.begin_connection();
        assert_eq!(status.settled_at(|| true), settled_at);
    }
}
