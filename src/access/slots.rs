//! The slots of each address.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::spare_capacity::release_spare_capacity;

/// How many slots each address holds. Addresses without any are not kept.
#[derive(Default)]
pub(crate) struct AddressSlots(Mutex<HashMap<IpAddr, u32>>);

/// A slot of an address. Dropping it gives it back.
pub(crate) struct AddressSlot {
    slots: Arc<AddressSlots>,
    address: IpAddr,
}

impl AddressSlots {
    /// Takes a slot for an address; `None` if the address holds `limit` slots already.
    pub(crate) fn take(
        self: &Arc<AddressSlots>,
        address: IpAddr,
        limit: u32,
    ) -> Option<AddressSlot> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(AddressSlot {
            slots: self.clone(),
            address,
        })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut counts = self.slots.0.lock();
        if let Entry::Occupied(mut entry) = counts.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
                release_spare_capacity(&mut counts);
            }
        }
    }
}
