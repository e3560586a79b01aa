//! Transport and membership: how nodes exchange messages over NATS, and which nodes are up. Rooms and
//! sessions are the business of the folders above.
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
//! | `transport` | what the node needs of NATS |
//! | `message_store` | what the history needs of a store that all nodes share |
//! | `nats`, `jetstream` | the connection to NATS, and the store there: the only files that use the NATS client |
//! | `inbox` | receiving: merges the subscriptions |
//! | `membership` | which other nodes are up |
//! | `status` | the state of the connection, for readiness |
//! | `node` | the task that does all of this |
//! | `delegate` | what the task leaves to the rest of the server |
//! | `handle` | what the rest of the server has of the cluster |

mod batch;
mod delegate;
mod flow_control;
#[cfg(feature = "cluster")]
mod handle;
#[cfg(feature = "cluster")]
mod inbox;
#[cfg(feature = "cluster")]
mod jetstream;
#[cfg(feature = "cluster")]
mod membership;
mod message_store;
#[cfg(feature = "cluster")]
mod nats;
#[cfg(not(feature = "cluster"))]
mod no_cluster;
#[cfg(feature = "cluster")]
mod node;
mod outbound;
mod queue;
#[cfg(feature = "cluster")]
mod status;
#[cfg(any(test, fuzzing))]
mod test_link;
#[cfg(feature = "cluster")]
mod transport;
mod wire;
#[cfg(feature = "cluster")]
mod writer;

#[cfg(not(feature = "cluster"))]
pub(crate) use self::no_cluster::{Cluster, Nats, Transport, run};
#[cfg(fuzzing)]
pub(crate) use self::wire::{decode, encode};
pub(crate) use self::{
    batch::Sequence,
    delegate::Delegate,
    flow_control::{Load, Quota},
    message_store::{Listed, MessageStore, StoreError},
    outbound::Outbound,
    queue::Disconnected,
    wire::{
        Answer, Broadcast, Claim, Digest, Direct, Event, EventId, MAX_IDS, MAX_NODES, MAX_NUMBER,
        MAX_ROOMS, Message, NodeId, NodePast, PART_BYTES, Permissions, PostOutcome, RoomEvent,
        SessionRecord, SessionState, SessionTransfer, SnapshotChunk, Want,
    },
};
#[cfg(feature = "cluster")]
pub(crate) use self::{handle::Cluster, nats::Nats, node::run, transport::Transport};
#[cfg(all(test, feature = "cluster"))]
pub(crate) use self::{
    message_store::Confirmation,
    queue::Subject,
    transport::{Connection, ConnectionEvent, Payload},
};
#[cfg(any(test, fuzzing))]
pub(crate) use self::{test_link::TestLink, wire::Envelope};
