//! How nodes exchange messages over NATS, and which nodes are up. This folder knows no rooms and sessions.
//!
//! ```text
//! rooms, sessions ─ Outbound ─ Writer ─ Connection ─ NATS ─ Connection ─ Inbox ─ Node ─ Delegate
//! ```
//!
//! Messages are published on three kinds of subjects: one that every node subscribes to, one for each room,
//! which the nodes subscribe to that have a session in it, and one for each node. A message has a number,
//! and a node applies what it receives in the order of the numbers.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `wire` | the messages, and their JSON |
//! | `batch`, `queue`, `flow_control`, `outbound` | sending: messages that belong together; the queue; its limits; the handle to all of that |
//! | `writer` | writes the queue to NATS |
//! | `nats` | the connection, the only file that uses the NATS client |
//! | `inbox` | receiving: merges the subscriptions |
//! | `membership` | which other nodes are up |
//! | `status` | the state of the connection, for readiness |
//! | `node` | the task that does all of this |
//! | `delegate` | what the task leaves to the rest of the server |
//! | `handle` | what the rest of the server has of the cluster |

mod batch;
mod delegate;
mod flow_control;
mod handle;
mod inbox;
mod membership;
mod nats;
mod node;
mod outbound;
mod queue;
mod status;
#[cfg(test)]
mod test_link;
mod wire;
mod writer;

pub(crate) use self::{
    batch::Sequence,
    delegate::Delegate,
    flow_control::{Load, Quota},
    handle::Cluster,
    node::run,
    outbound::Outbound,
    queue::Disconnected,
    wire::{
        Answer, Broadcast, Digest, Direct, Event, MAX_IDS, MAX_NUMBER, MAX_ROOMS, Message, NodeId,
        PART_BYTES, Permissions, RoomEvent, SessionRecord, SessionTransfer, SnapshotChunk, Want,
    },
};
#[cfg(test)]
pub(crate) use self::{test_link::TestLink, wire::Envelope};
