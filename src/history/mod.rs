//! What was said to all in rooms that keep it, for those who come later.
//!
//! | file | what it is |
//! | --- | --- |
//! | `page`, `past` | what is stored, and who asks for what of it |
//! | `receipt` | the receipt that says that a message is stored |
//! | `store`, `local_writer`, `local` | one server: the messages on disk or in memory, which block; the thread that stores them; the handle |
//! | `shared_writer`, `flush_barrier`, `shared` | a cluster: the task that sends messages to the store of all nodes; waiting for what other nodes have to store; the handle |
//! | `log` | the history as rooms, sessions and operators use it |
//!
//! A message gets a number while its room delivers it, and a session remembers the numbers up to which it received
//! nothing when it joined: what is before them is its history, and the rest it receives. So the two together are
//! everything that was said. On one server the number is that of the history. In a cluster it is that of the event
//! with which the message goes to the other nodes, and a session remembers one for each node.

mod flush_barrier;
mod local;
mod local_writer;
mod log;
mod page;
mod past;
mod receipt;
mod shared;
mod shared_writer;
mod store;

pub(crate) use self::{
    log::{History, Said},
    page::{Query, Unavailable},
    past::{Past, PastEvents},
    receipt::Receipt,
};
