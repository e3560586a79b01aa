//! Who is where: rooms and their sessions, on this node and on others.

mod index;
mod migration;
mod replication;
mod snapshot;

pub(crate) use self::{
    index::{
        Full, JoinGuard, Location, Reservation, Rooms, SessionInfo, SessionSnapshot, Speaker,
        release_spare,
    },
    migration::LookupOutcome,
    replication::Replies,
    snapshot::Busy,
};
