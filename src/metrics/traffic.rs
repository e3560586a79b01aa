//! What is counted with every message.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use prometheus_client::metrics::counter::{Atomic, Counter};

/// Each counter has so many parts, each for some of the threads: they must not wait for each other's
/// caches.
const SHARDS: usize = 16;

/// Counts of messages and of bytes.
#[derive(Default)]
pub(crate) struct Traffic {
    /// Messages that have come from clients, be they good or bad.
    pub(crate) messages_received: Counter<u64, Sharded>,
    /// Bytes that have come on upgraded connections.
    pub(crate) received_bytes: Counter<u64, Sharded>,
    /// Messages of clients and backends put into outboxes, once for each receiver.
    pub(crate) deliveries: Counter<u64, Sharded>,
    /// Messages that are written.
    pub(crate) messages_sent: Counter<u64, Sharded>,
    /// Bytes that are written on upgraded connections.
    pub(crate) sent_bytes: Counter<u64, Sharded>,
}

/// A number in parts, so that threads can add to it without waiting for each other.
#[derive(Debug, Default)]
pub(crate) struct Sharded([Shard; SHARDS]);

/// One part, alone in its line of the cache.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(AtomicU64);

impl Atomic<u64> for Sharded {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    /// Returns what this part was before.
    fn inc_by(&self, count: u64) -> u64 {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static SHARD: usize = THREADS.fetch_add(1, Relaxed) % SHARDS;
        }
        SHARD.with(|shard| self.0[*shard].0.fetch_add(count, Relaxed))
    }

    fn get(&self) -> u64 {
        self.0.iter().map(|shard| shard.0.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_thread_is_lost_from_the_sum() {
        let counter = Sharded::default();
        thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..1000).for_each(|_| _ = counter.inc_by(3)));
            }
        });
        assert_eq!(counter.get(), 2 * SHARDS as u64 * 3000);
    }
}
