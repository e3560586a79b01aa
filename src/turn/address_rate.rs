//! The rate of answers to those who have shown no credentials.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::time::Instant;

use super::five_tuple::FiveTuple;
use crate::access::network;

/// How many answers one address or IPv6 network gets in a second. A browser asks three times for each peer of a call,
/// and an office may have one address.
const PER_SECOND: u64 = 1000;

/// How many of them it may get at once.
const BURST: u64 = 2000;

/// The number of buckets. The source of a datagram may be forged, so that there is no bound to the addresses that are
/// seen: some share a bucket.
const BUCKETS: usize = 1 << 15;

/// The time that one answer costs, in microseconds.
const COST: u64 = 1_000_000 / PER_SECOND;

/// Leaky buckets of addresses (the virtual scheduling algorithm of ITU-T I.371, annex A). An answer is longer than its
/// request, so an attacker who forges the source of requests could flood that source with answers.
pub(super) struct AddressRate {
    started: Instant,
    hasher: RandomState,
    /// When each bucket has drained, in microseconds from the start.
    empty_at: Box<[AtomicU64]>,
}

impl AddressRate {
    pub(super) fn new() -> AddressRate {
        AddressRate {
            started: Instant::now(),
            hasher: RandomState::new(),
            empty_at: (0..BUCKETS).map(|_| AtomicU64::default()).collect(),
        }
    }

    /// Charges an answer to the address of a client. Returns whether the address is within its rate.
    pub(super) fn allows(&self, client: &FiveTuple) -> bool {
        // Nobody forges a source over TCP, so that a flood of forged datagrams leaves this way.
        let key = (network(client.address().ip()), client.transport);
        let hash = self.hasher.hash_one(key);
        let bucket = &self.empty_at[hash as usize % BUCKETS];
        let now = self.started.elapsed().as_micros() as u64;
        let charged = bucket.fetch_update(Relaxed, Relaxed, |empty_at| {
            let drained = empty_at.max(now) + COST;
            (drained <= now + BURST * COST).then_some(drained)
        });
        charged.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::turn::five_tuple::Transport;

    fn client(transport: Transport, last: u8) -> FiveTuple {
        FiveTuple {
            transport,
            client: ([192, 0, 2, last], 5000).into(),
            server: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_a_burst_and_then_its_rate() {
        let rate = AddressRate::new();
        let flooding = client(Transport::Udp, 1);
        let allowed = || (0..2 * BURST).filter(|_| rate.allows(&flooding)).count() as u64;
        assert_eq!(allowed(), BURST);
        // One of them may share the bucket, but not all.
        let mut others = (2..10).map(|last| client(Transport::Udp, last));
        assert!(others.any(|other| rate.allows(&other)));
        let mut over_tcp = (1..10).map(|last| client(Transport::Tcp, last));
        assert!(over_tcp.any(|other| rate.allows(&other)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(allowed(), PER_SECOND);
    }
}
