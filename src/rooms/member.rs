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
    pub(super) info: Arc<SessionInfo>,
    /// In a box, because a map has room for more members than it holds.
    seldom: Option<Box<Seldom>>,
}

/// What few sessions have.
#[derive(Default)]
struct Seldom {
    /// How many nodes the session has left behind.
    moves: u32,
    /// The last state that it has set, if it has set one.
    state: Option<Arc<SessionState>>,
}

impl Member {
    /// A session that has left no node behind and has set no state.
    pub(super) fn new(joined: u64, info: Arc<SessionInfo>, location: Location) -> Member {
        Member {
            location,
            joined,
            info,
            seldom: None,
        }
    }

    /// A session that another node describes.
    pub(super) fn from_record(record: SessionRecord, location: Location) -> Member {
        let info = Arc::new(SessionInfo::remote(&record));
        let mut member = Member::new(record.joined, info, location);
        member.set_moves(record.moves);
        if let Some(state) = record.state {
            member.set_state(state);
        }
        member
    }

    /// How many nodes the session has left behind.
    pub(super) fn moves(&self) -> u32 {
        self.seldom.as_ref().map_or(0, |it| it.moves)
    }

    pub(super) fn set_moves(&mut self, moves: u32) {
        if moves != self.moves() {
            self.seldom.get_or_insert_default().moves = moves;
        }
    }

    /// The last state that the session has set, if it has set one.
    pub(super) fn state(&self) -> Option<&Arc<SessionState>> {
        self.seldom.as_ref()?.state.as_ref()
    }

    pub(super) fn set_state(&mut self, state: Arc<SessionState>) {
        self.seldom.get_or_insert_default().state = Some(state);
    }

    /// The session as this node describes it to other nodes.
    pub(super) fn to_record(&self, id: SessionId) -> SessionRecord {
        SessionRecord {
            id,
            joined: self.joined,
            data: self.info.public().map(ToOwned::to_owned),
            since: self.info.since,
            moves: self.moves(),
            state: self.state().cloned(),
            claim: self
                .info
                .claim
                .as_ref()
                .map(|claim| claim.to_record().into()),
        }
    }

    /// The number of the last state that the session has set; 0 if it has set none.
    pub(super) fn state_number(&self) -> u64 {
        self.state().map_or(0, |state| state.number)
    }
}
