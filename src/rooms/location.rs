//! Where a session is, seen from this node.

use crate::{cluster::NodeId, outbox::Sender};

/// How this node reaches a session.
#[derive(Clone)]
pub(crate) enum Location {
    /// The session is on this node.
    Local(Sender),
    /// The session is on another node.
    Remote(NodeId),
    /// The session migrates to this node. The lookup with this number records what is sent to it.
    Importing(u64, Sender),
    /// The session migrates to another node. This node forwards what is sent to it.
    Migrating(NodeId),
}

impl Location {
    /// Whether this node, and no other, tells the cluster about the session.
    pub(super) fn is_own(&self) -> bool {
        !matches!(self, Location::Remote(_))
    }

    /// Whether the session is on that other node.
    pub(super) fn is_on(&self, node: NodeId) -> bool {
        matches!(self, Location::Remote(other) if *other == node)
    }

    /// The session's outbox, if this node has it.
    pub(crate) fn outbox(&self) -> Option<&Sender> {
        match self {
            Location::Local(outbox) | Location::Importing(_, outbox) => Some(outbox),
            Location::Remote(_) | Location::Migrating(_) => None,
        }
    }
}
