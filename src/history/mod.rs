//! What was said to all in rooms that keep it, for those who come later.
//!
//! | file | what it is |
//! | --- | --- |
//! | `store` | the messages on disk or in memory: numbers, limits, pages. Blocking |
//! | `receipt` | the receipt that says that a message is stored |
//! | `writer` | the thread that stores messages in batches |
//! | `log` | the history as rooms, sessions and operators use it |
//!
//! A room numbers a message while it delivers it, and a session remembers the number that came next when it
//! joined: what has a lower number is its history, and the rest it receives. So the two together are everything
//! that was said.

mod log;
mod receipt;
mod store;
mod writer;

pub(crate) use self::{
    log::{History, Unavailable},
    receipt::Receipt,
    store::Query,
};
