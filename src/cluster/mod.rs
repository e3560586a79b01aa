//! The other nodes: NATS, which of them are there, and what nodes say to each other.

mod membership;
mod node;
mod outbound;
#[cfg(test)]
mod test_link;
mod wire;

pub(crate) use self::{
    node::{Cluster, run},
    outbound::{Disconnected, Load, Outbound, Quota, Sequence},
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
