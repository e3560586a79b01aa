//! The counters that change with every datagram that is relayed.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

use super::traffic::Sharded;

/// Counters of what is relayed in each direction.
#[derive(Clone, Default)]
pub(super) struct RelayedFamilies {
    datagrams: Counters,
    bytes: Counters,
}

/// Counters with the direction as their label.
type Counters = Family<[(&'static str, &'static str); 1], Counter<u64, Sharded>>;

/// What the TURN server relays.
pub(crate) struct RelayedTraffic {
    pub(crate) to_peers: Relayed,
    pub(crate) to_clients: Relayed,
}

/// What is relayed in one direction.
pub(crate) struct Relayed {
    datagrams: Counter<u64, Sharded>,
    bytes: Counter<u64, Sharded>,
}

impl RelayedFamilies {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Datagrams that the TURN server relayed";
        registry.register("turn_datagrams", help, self.datagrams.clone());
        let help = "Bytes in datagrams that the TURN server relayed";
        registry.register_with_unit("turn_relayed", help, Unit::Bytes, self.bytes.clone());
    }

    pub(super) fn traffic(&self) -> RelayedTraffic {
        let to = |direction| {
            let labels = [("direction", direction)];
            Relayed {
                datagrams: self.datagrams.get_or_create_owned(&labels),
                bytes: self.bytes.get_or_create_owned(&labels),
            }
        };
        RelayedTraffic {
            to_peers: to("to_peers"),
            to_clients: to("to_clients"),
        }
    }
}

impl Relayed {
    /// Counts a datagram with so many bytes of data.
    pub(crate) fn count(&self, bytes: usize) {
        self.datagrams.inc();
        self.bytes.inc_by(bytes as u64);
    }
}
