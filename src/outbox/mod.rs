//! The bounded queue of one session: who fills it, who flushes it, and what may have to be sent again.

mod queue;
mod replay_buffer;

#[cfg(test)]
pub(crate) use self::queue::tests;
pub(crate) use self::queue::{
    Attached, Command, FlushError, FlushSet, MigrationRequest, Outbox, Reconnection, Sender,
    Takeover, outbox, outbox_of_missed,
};
