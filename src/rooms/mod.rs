//! Who is where: rooms and their sessions, on this node and on others.

mod index;
mod migration;
mod migration_request;
mod replication;
mod snapshot;

pub(crate) use self::{
    index::{Full, JoinGuard, Location, Reservation, Rooms, SessionInfo, SessionSnapshot, Speaker},
    migration::LookupOutcome,
    migration_request::MigrationRequest,
    replication::Replies,
    snapshot::Busy,
};
