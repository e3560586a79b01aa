//! An entry in a room's map of sessions.

use std::sync::Arc;

use super::{location::Location, session_info::SessionInfo};
use crate::{
    cluster::{SessionRecord, SessionState},
    protocol::SessionId,
};

/// A session in a room, on this node or on another.
pub(super) struct Member {
    pub(super) location: Location,
    /// The join number: the session's place in the room's order of joining. Of two sessions with the
    /// same number, the smaller id joined first.
    pub(super) joined: u64,
    /// How many nodes the session has left behind.
    pub(super) moves: u32,
    pub(super) info: Arc<SessionInfo>,
    /// The last state that it has set, if it has set one.
    pub(super) state: Option<Arc<SessionState>>,
}

impl Member {
    /// A session that another node describes.
    pub(super) fn from_record(record: SessionRecord, location: Location) -> Member {
        Member {
            info: Arc::new(SessionInfo::remote(&record)),
            location,
            joined: record.joined,
            moves: record.moves,
            state: record.state,
        }
    }

    /// The session as this node describes it to other nodes.
    pub(super) fn to_record(&self, id: SessionId) -> SessionRecord {
        SessionRecord {
            id,
            joined: self.joined,
            data: self.info.public.clone(),
            since: self.info.since_millis(),
            moves: self.moves,
            state: self.state.clone(),
            claim: self
                .info
                .claim
                .as_ref()
                .map(|claim| claim.to_record().into()),
        }
    }

    /// The number of the last state that the session has set; 0 if it has set none.
    pub(super) fn state_number(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.number)
    }
}
