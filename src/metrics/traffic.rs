//! The counters that change with every message.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use prometheus_client::metrics::counter::{Atomic, Counter};

/// The number of shards of a counter. Each thread adds to one of them, so that threads do not wait
/// for each other's cache lines.
const SHARDS: usize = 16;

/// Counters of messages and bytes.
#[derive(Default)]
pub(crate) struct Traffic {
    /// Messages received from clients, valid or not.
    pub(crate) messages_received: Counter<u64, Sharded>,
    /// Bytes received on upgraded connections.
    pub(crate) received_bytes: Counter<u64, Sharded>,
    /// Messages of clients and backends that were put into an outbox, once for each receiver.
    pub(crate) deliveries: Counter<u64, Sharded>,
    /// Messages written to connections.
    pub(crate) messages_sent: Counter<u64, Sharded>,
    /// Bytes written on upgraded connections.
    pub(crate) sent_bytes: Counter<u64, Sharded>,
}

/// A number that threads add to without contention: the sum of its shards.
#[derive(Debug, Default)]
pub(crate) struct Sharded([Shard; SHARDS]);

/// One part of the number, alone in its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(AtomicU64);

impl Atomic<u64> for Sharded {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    /// Returns the previous value of the thread's shard, not of the sum.
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
    fn the_sum_counts_every_thread() {
        let counter = Sharded::default();
        thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..1000).for_each(|_| _ = counter.inc_by(3)));
            }
        });
        assert_eq!(counter.get(), 2 * SHARDS as u64 * 3000);
    }
}
