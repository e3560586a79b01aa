//! Who is where: rooms and their sessions, on this node and on others.

mod index;
mod location;
mod member;
mod migration;
mod migration_request;
mod replication;
mod session_info;
mod snapshot;
mod speaker;

pub(crate) use self::{
    index::{Full, JoinGuard, Reservation, Rooms},
    location::Location,
    migration::LookupOutcome,
    migration_request::MigrationRequest,
    replication::Replies,
    session_info::{SessionInfo, SessionSnapshot},
    snapshot::Busy,
    speaker::Speaker,
};
