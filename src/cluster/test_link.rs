//! For tests: the queue of a node whose messages a test carries by hand, without a network.

use std::sync::Arc;

use futures_util::FutureExt;

use super::{
    flow_control::Load,
    outbound::Outbound,
    queue::Outgoing,
    wire::{Envelope, NodeId, decode},
};

/// A node's queue to other nodes.
pub(crate) struct TestLink {
    pub(crate) node: NodeId,
    pub(crate) outbound: Arc<Outbound>,
}

impl TestLink {
    /// The queue of a new node, which is connected.
    pub(crate) fn open() -> TestLink {
        let node = NodeId::random();
        let outbound = Arc::new(Outbound::new(node));
        outbound.open();
        TestLink { node, outbound }
    }

    /// Drops what waits, as a lost connection does.
    pub(crate) fn reconnect(&self) {
        self.disconnect();
        self.outbound.open();
    }

    /// Drops what waits, and all that comes after it.
    pub(crate) fn disconnect(&self) {
        self.outbound.close();
    }

    /// Notes that another node is up.
    pub(crate) fn node_up(&self, other: &TestLink) {
        self.outbound.up(other.node);
    }

    /// Carries all that waits to another node, which takes it in by `deliver`.
    pub(crate) fn carry_to(&self, other: &TestLink, mut deliver: impl FnMut(Envelope<'_>)) {
        let Some(Some((epoch, waiting))) = self.outbound.next().now_or_never() else {
            return;
        };
        for item in waiting {
            let cost = item.cost();
            let Outgoing::Message(_, message, load) = item else {
                self.outbound.written(epoch, cost, &Load::Control);
                continue;
            };
            self.outbound.written(epoch, cost, &load);
            let envelope = decode(&message).unwrap();
            let number = envelope.number;
            other.outbound.observe(number);
            deliver(envelope);
            self.outbound.acknowledged(other.node, number);
        }
    }
}
