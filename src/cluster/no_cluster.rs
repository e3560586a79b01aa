//! The cluster in a build without the feature `cluster`: its types have no values.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{delegate::Delegate, message_store::MessageStore, outbound::Outbound};
use crate::{config::Config, metrics::Metrics};

pub(crate) struct Cluster {
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) down: Duration,
    never: Infallible,
}

pub(crate) trait Transport: Send + Sync + 'static {
    fn message_store(&self) -> Option<Arc<dyn MessageStore>>;
}

pub(crate) enum Nats {}

impl Transport for Nats {
    fn message_store(&self) -> Option<Arc<dyn MessageStore>> {
        match *self {}
    }
}

impl Nats {
    pub(crate) fn new(_: &Config) -> Option<Nats> {
        None
    }
}

impl Cluster {
    pub(crate) fn new(_: &Config) -> Cluster {
        unreachable!("there is no transport")
    }

    pub(crate) fn has_begun(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn is_connected(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn can_ask(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn knows_nodes(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn nats_error(&self) -> Option<String> {
        match self.never {}
    }
}

pub(crate) async fn run(
    cluster: Arc<Cluster>,
    _: impl Transport,
    _: Arc<Metrics>,
    _: CancellationToken,
    _: impl Delegate,
) {
    match cluster.never {}
}
