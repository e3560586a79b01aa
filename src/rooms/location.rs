//! Where a session is, seen from this node.

use crate::{cluster::NodeId, outbox::Sender};

/// How this node reaches a session.
#[derive(Clone)]
pub(crate) enum Location {
    /// The session is on this node.
    Local(Sender),
    /// The session is on another node.
    Remote(NodeId),
    /// The session migrates to this node.
    Importing(Box<Import>),
    /// The session migrates to another node. This node forwards what is sent to it.
    Migrating(NodeId),
}

/// How this node reaches a session that migrates to it.
#[derive(Clone)]
pub(crate) struct Import {
    /// The number of the lookup that records what is sent to the session.
    pub(super) lookup: u64,
    pub(super) sender: Sender,
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
            Location::Local(outbox) => Some(outbox),
            Location::Importing(import) => Some(&import.sender),
            Location::Remote(_) | Location::Migrating(_) => None,
        }
    }

    /// The other node that has the session.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self {
            Location::Remote(node) | Location::Migrating(node) => Some(*node),
            Location::Local(_) | Location::Importing(_) => None,
        }
    }
}
