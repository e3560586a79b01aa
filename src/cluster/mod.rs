//! The other nodes: NATS, which of them are there, and what nodes say to each other.

mod batch;
mod flow_control;
mod membership;
mod node;
mod outbound;
mod queue;
#[cfg(test)]
mod test_link;
mod wire;

pub(crate) use self::{
    batch::Sequence,
    flow_control::{Load, Quota},
    node::{Cluster, run},
    outbound::Outbound,
    queue::Disconnected,
    wire::{
        Answer, Digest, Direct, Event, MAX_IDS, MAX_NUMBER, MAX_ROOMS, NodeId, PART_BYTES,
        Permissions, RoomEvent, SessionRecord, SessionTransfer, SnapshotChunk, Want,
    },
};
#[cfg(test)]
pub(crate) use self::{
    test_link::TestLink,
    wire::{Broadcast, Envelope, Message},
};
