//! For tests: what is left in the maps and queues of the rooms when nothing happens any more.

use super::{index::Rooms, location::Location};

impl Rooms {
    /// What waits for other nodes, or is left of a session that has gone. Empty once nothing is under way.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |is_left: bool, what: &str| {
            if is_left {
                left.push(what.to_owned());
            }
        };
        note(self.has_chunks(), "snapshot tasks");
        note(!self.queries.is_empty(), "queries");
        for room in self.all() {
            let members = room.members.read();
            let Some(remote) = &members.remote else {
                note(true, "a room without a view of the other nodes");
                continue;
            };
            note(!remote.lookups.is_empty(), "lookups");
            note(!remote.migrations.is_empty(), "migrations or offers");
            note(!remote.snapshots.is_empty(), "snapshots");
            note(remote.has_waits(), "pending joins or waiters");
            let are_known = remote.views().all(|view| view.is_known());
            note(!are_known, "a node whose sessions are not known");
            let remote_sessions = members.sessions.values().filter(|it| !it.location.is_own());
            let remote_sessions = remote_sessions.count();
            note(
                remote_sessions != remote.remote_sessions,
                "a wrong count of remote sessions",
            );
            let settled = members
                .sessions
                .values()
                .all(|member| matches!(member.location, Location::Local(_) | Location::Remote(_)));
            note(!settled, "a session between two nodes");
        }
        left
    }
}
