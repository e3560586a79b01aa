//! The types of the TURN server in a build without the feature `turn`: they have no values.

use std::{io, net::SocketAddr, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    metrics::Metrics,
    protocol::{IceServer, SessionId},
};

pub(crate) enum Turn {}

pub(crate) enum TurnListeners {}

pub(crate) enum TurnSession {}

impl Turn {
    pub(crate) fn is_configured(_: &Config) -> bool {
        false
    }

    pub(crate) fn bind(_: &Config, _: &Arc<Metrics>) -> io::Result<Option<(Turn, TurnListeners)>> {
        Ok(None)
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        match *self {}
    }

    pub(crate) fn admit(&self, _: SessionId) -> Box<TurnSession> {
        match *self {}
    }

    pub(crate) fn ice_server(&self, _: SessionId, _: u64) -> IceServer {
        match *self {}
    }
}

impl TurnListeners {
    pub(crate) async fn run(self, _: CancellationToken, _: CancellationToken) {
        match self {}
    }
}

impl TurnSession {
    pub(crate) fn has_moved(self) {
        match self {}
    }
}
