//! What a node asks of another that has a session it wants.

use crate::{
    cluster::NodeId,
    protocol::{RoomName, TokenHash},
};

/// A node wants a session of this node, because the client has reconnected there.
pub(crate) struct MigrationRequest {
    /// The node that wants the session.
    pub(crate) node: NodeId,
    pub(crate) room: RoomName,
    /// The number that the node has given to its lookup.
    pub(crate) seek: u64,
    pub(crate) token: TokenHash,
    /// How many of the session's messages its client has received.
    pub(crate) received: u64,
    /// The number of the last message that the node has heard from each node.
    pub(crate) seen: Vec<(NodeId, u64)>,
}
