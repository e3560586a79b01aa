//! The allocations of all clients.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use parking_lot::RwLock;

use super::{allocation::Allocation, five_tuple::FiveTuple};
use crate::spare_capacity::release_spare_capacity;

/// The allocations, by their client and by their relayed address.
#[derive(Default)]
pub(super) struct Allocations(RwLock<Indexes>);

#[derive(Default)]
struct Indexes {
    by_client: HashMap<FiveTuple, Arc<Allocation>>,
    by_address: HashMap<SocketAddr, Arc<Allocation>>,
}

impl Allocations {
    /// The allocation of a client.
    pub(super) fn of(&self, client: &FiveTuple) -> Option<Arc<Allocation>> {
        self.0.read().by_client.get(client).cloned()
    }

    /// The allocation with this relayed address.
    pub(super) fn at(&self, relayed: SocketAddr) -> Option<Arc<Allocation>> {
        self.0.read().by_address.get(&relayed).cloned()
    }

    /// Those of these relayed addresses that no allocation has, so many at most; none if there are `count` allocations
    /// already.
    pub(super) fn free(
        &self,
        relayed: impl Iterator<Item = SocketAddr>,
        most: usize,
        count: usize,
    ) -> Vec<SocketAddr> {
        let indexes = self.0.read();
        if indexes.by_address.len() >= count {
            return Vec::new();
        }
        let is_free = |it: &SocketAddr| !indexes.by_address.contains_key(it);
        relayed.filter(is_free).take(most).collect()
    }

    /// Adds an allocation. Returns false if its client or its address has one already.
    pub(super) fn add(&self, allocation: &Arc<Allocation>) -> bool {
        let indexes = &mut *self.0.write();
        let (client, relayed) = (allocation.client.five_tuple, allocation.relayed);
        let is_new =
            !indexes.by_client.contains_key(&client) && !indexes.by_address.contains_key(&relayed);
        if is_new {
            indexes.by_client.insert(client, allocation.clone());
            indexes.by_address.insert(relayed, allocation.clone());
        }
        is_new
    }

    /// Removes an allocation. Returns false if it is removed already.
    pub(super) fn remove(&self, allocation: &Arc<Allocation>) -> bool {
        let indexes = &mut *self.0.write();
        let client = &allocation.client.five_tuple;
        let known = indexes.by_client.get(client);
        let is_known = known.is_some_and(|it| Arc::ptr_eq(it, allocation));
        if is_known {
            indexes.by_client.remove(client);
            indexes.by_address.remove(&allocation.relayed);
            release_spare_capacity(&mut indexes.by_client);
            release_spare_capacity(&mut indexes.by_address);
        }
        is_known
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Allocation>> {
        self.0.read().by_client.values().cloned().collect()
    }
}
