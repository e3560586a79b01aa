//! The task that writes the queue to NATS.

use std::sync::Arc;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    flow_control::Load,
    inbox::SubscriptionChange,
    outbound::Outbound,
    queue::{Outgoing, Subject},
    status::{SETTLE, Status},
    transport::Connection,
};
use crate::metrics::Metrics;

/// Writes what waits in the queue, in order.
pub(super) struct Writer<'a, C: Connection> {
    pub(super) connection: &'a C,
    pub(super) outbound: &'a Outbound,
    pub(super) status: &'a Status,
    pub(super) metrics: &'a Arc<Metrics>,
    /// Where subscriptions go that begin or end.
    pub(super) subscriptions: mpsc::Sender<SubscriptionChange<C::Subscription>>,
}

impl<C: Connection> Writer<'_, C> {
    /// Writes until the queue is finished, and then flushes the connection.
    pub(super) async fn run(&self) {
        while let Some((epoch, waiting)) = self.outbound.next().await {
            for item in waiting {
                let cost = item.cost();
                self.settled(epoch).await;
                // An item of an earlier epoch is discarded: the nodes have given each other up since.
                let is_due = self.outbound.is_current(epoch);
                let load = self.write(item, is_due).await;
                self.outbound.written(epoch, cost, &load);
            }
        }
        self.connection.flush().await;
    }

    /// Waits until the other nodes receive what is sent, or until the epoch is over.
    async fn settled(&self, epoch: u64) {
        loop {
            let settled_at = self.status.settled_at(|| self.connection.is_connected());
            match settled_at {
                Some(settled_at) if settled_at <= Instant::now() => return,
                _ if !self.outbound.is_current(epoch) => return,
                _ => sleep(SETTLE / 20).await,
            }
        }
    }

    /// Writes an item if it `is_due`. Returns its load.
    async fn write(&self, item: Outgoing, is_due: bool) -> Load {
        match item {
            Outgoing::Message(subject, message, load) => {
                if is_due {
                    self.metrics.cluster_sent.inc();
                    self.connection.publish(&subject, message).await;
                }
                load
            }
            Outgoing::Subscribe(room) => {
                let subject = Subject::Room(room.clone());
                if is_due && let Ok(subscription) = self.connection.subscribe(&subject).await {
                    self.change(SubscriptionChange::Begin(room, subscription))
                        .await;
                }
                Load::Control
            }
            Outgoing::Unsubscribe(room) => {
                if is_due {
                    self.change(SubscriptionChange::End(room)).await;
                }
                Load::Control
            }
        }
    }

    async fn change(&self, change: SubscriptionChange<C::Subscription>) {
        // The receiver is gone only when the node stops.
        let _ = self.subscriptions.send(change).await;
    }
}
