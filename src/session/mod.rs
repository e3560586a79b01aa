//! One session's life: it starts, serves its connection, may be suspended between two connections, and
//! ends with a closing handshake.

mod closing_handshake;
mod disconnect;
mod groups;
mod pace;
mod permissions;
mod requests;
mod routed;
mod serve;
mod start;
mod suspended;
mod topics;

pub(crate) use self::start::{Connection, close_refused, refuse, reject, restore, start};
