//! Sessions that outlive the server process.

use std::sync::Arc;

use super::{
    index::Rooms, join_guard::JoinGuard, location::Location, member::Member, members::Members,
};
use crate::{
    cluster::{MAX_NUMBER, SessionRecord},
    history::Past,
    outbox::Sender,
    protocol::{RoomName, SessionId},
    spare_capacity::release_spare_capacity,
};

impl Rooms {
    /// Puts a session from before a restart back into its room. Nobody is told, because nobody was told that
    /// it had left.
    pub(crate) fn restore(
        self: &Arc<Rooms>,
        name: &RoomName,
        record: SessionRecord,
        first_number: u64,
        sender: Sender,
    ) -> JoinGuard {
        let reservation = self.reserve_again(name);
        let (id, moves) = (record.id, record.moves);
        let member = Member::from_record(record, Location::Local(sender));
        let info = member.info.clone();
        if let Some(history) = &reservation.room.history {
            // The clock, which numbers begin with, may have been set back.
            history.number_from(first_number);
        }
        let mut members = reservation.room.members.write();
        members.clock = members.clock.max(member.joined.min(MAX_NUMBER));
        members.sessions.insert(id, member);
        drop(members);
        JoinGuard {
            reservation,
            id,
            moves,
            info,
            past: Past::Before(first_number),
        }
    }
}

impl JoinGuard {
    /// Takes the session out of its room before a restart. Nobody is told, because it is coming back.
    pub(crate) fn into_record(self) -> SessionRecord {
        let mut members = self.reservation.room.members.write();
        let record = members.take_out(self.id);
        drop(members);
        record.expect("the guard keeps the session in its room")
    }
}

impl Members {
    fn take_out(&mut self, id: SessionId) -> Option<SessionRecord> {
        let member = self.sessions.remove(&id)?;
        release_spare_capacity(&mut self.sessions);
        Some(member.to_record(id))
    }
}
