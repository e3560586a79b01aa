//! Rooms and their sessions, on this node and on others.
//!
//! From the bottom up:
//!
//! | files | what they are |
//! | --- | --- |
//! | `location`, `session_info`, `member`, `speaker` | a session in a room |
//! | `recorded_event`, `lookups`, `migrations`, `catch_up` | pure data of sessions that change their node |
//! | `snapshot_sender`, `snapshot_receiver`, `node_view`, `replies` | pure data of how nodes agree on who is in a room |
//! | `names`, `deadlines` | pure data of names in a room, and of messages that wait for one |
//! | `remote_view`, `members`, `room` | one room, and every change of who is in it |
//! | `replication`, `snapshots` | messages from other nodes about a room, and snapshots to them |
//! | `query`, `index` | all rooms |
//! | `naming` | who has a name, and messages to names |
//! | `reservation`, `join_guard`, `import`, `migration_request`, `migration` | a session's way into its room, and between nodes |
//! | `node_messages` | messages from other nodes, by the room they are about |
//!
//! Joins, leaves and messages happen under the lock of the room's members: joins and leaves write,
//! messages read. So `new` is the first and `close` the last that a session receives about another.
//!
//! Locks are taken in this order: the index, a room's members, its lookups, the queue to other nodes. Under a
//! room's members come also a session's outbox and, under that, the mailbox of the session's takeovers. The
//! locks of snapshot tasks and of operators' queries are held with no other lock but that queue's. A room's
//! lock is never held across an `.await`, and for little more than pushes. Only the peers of a `hello` and a
//! chunk of a snapshot are built under it.
//!
//! A session of another node is in the same map of members; what is sent to it goes to its node.

mod catch_up;
mod deadlines;
mod import;
mod index;
mod join_guard;
#[cfg(all(test, feature = "cluster"))]
mod leftovers;
mod location;
mod lookups;
mod member;
mod members;
mod migration;
mod migration_request;
#[cfg(test)]
mod migration_tests;
mod migrations;
mod names;
mod naming;
mod node_messages;
mod node_view;
mod query;
mod recorded_event;
mod remote_view;
mod replication;
mod replies;
mod reservation;
mod restart;
mod room;
mod session_info;
mod snapshot_receiver;
mod snapshot_sender;
mod snapshots;
mod speaker;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    import::LookupOutcome,
    index::Rooms,
    join_guard::JoinGuard,
    migration_request::MigrationRequest,
    node_messages::LostNode,
    query::Busy,
    replies::Replies,
    reservation::{Full, Reservation},
    room::Delivery,
    session_info::{NameClaim, SessionInfo, SessionSnapshot},
    speaker::Speaker,
};
