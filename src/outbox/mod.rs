//! The bounded queue in front of one session's connection.
//!
//! Frames are queued first and written later, so that the frames of many senders leave in one write.
//! Whoever is the first to add something owes the outbox a flush: at the end of its turn a sender flushes the outboxes
//! that it has filled, in place of their sessions, which go on sleeping. Many outboxes are flushed in further turns, and
//! get meanwhile what other senders add. A sender that finds an outbox filled up then flushes it, too, and nobody sends to
//! its room until that is done.
//!
//! The outbox of a resumable session keeps what may have to be sent again. It can be detached from its
//! connection and attached to the next one.

mod flush;
#[cfg(all(test, shuttle))]
mod interleavings;
mod queue;
mod replay_buffer;
mod sender;
mod session_half;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use self::{
    flush::{FlushSet, Flushes, Flushing},
    queue::{Command, FlushError},
    sender::Sender,
    session_half::{Outbox, detached_outbox, outbox},
};
