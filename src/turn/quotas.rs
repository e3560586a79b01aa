//! How many allocations and connections there may be.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{AddressSlot, AddressSlots, network};

/// The quotas of each address, and of all together: each allocation and each connection is an open file.
pub(super) struct Quotas {
    /// The most allocations, and the most connections, of an address.
    of_address: u32,
    allocations: Quota,
    connections: Quota,
}

struct Quota {
    addresses: Arc<AddressSlots>,
    files: Arc<Semaphore>,
}

/// A part of a quota. Dropping it gives it back.
pub(super) struct Slot {
    _address: AddressSlot,
    _file: OwnedSemaphorePermit,
}

impl Quotas {
    /// Quotas of so many allocations and connections of each address, and of so many of all together.
    pub(super) fn new(of_address: u32, files: usize) -> Quotas {
        let quota = || Quota {
            addresses: Arc::default(),
            files: Arc::new(Semaphore::new(files)),
        };
        Quotas {
            of_address,
            allocations: quota(),
            connections: quota(),
        }
    }

    /// Takes the slot of an allocation.
    ///
    /// # Errors
    ///
    /// The reason by which metrics count that there is none.
    pub(super) fn take_allocation(&self, address: IpAddr) -> Result<Slot, &'static str> {
        let slot = self.allocations.take(address, self.of_address);
        slot.map_err(|is_address| {
            if is_address {
                "address_allocations"
            } else {
                "files"
            }
        })
    }

    /// Takes the slot of a connection.
    ///
    /// # Errors
    ///
    /// The reason by which metrics count that there is none.
    pub(super) fn take_connection(&self, address: IpAddr) -> Result<Slot, &'static str> {
        let slot = self.connections.take(address, self.of_address);
        slot.map_err(|is_address| if is_address { "connections" } else { "files" })
    }
}

impl Quota {
    /// Takes a slot. The error tells whether it is the address that has too many.
    fn take(&self, address: IpAddr, of_address: u32) -> Result<Slot, bool> {
        let of_address = self.addresses.take(network(address), of_address);
        Ok(Slot {
            _address: of_address.ok_or(true)?,
            _file: self.files.clone().try_acquire_owned().map_err(|_| false)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_all_addresses_have_a_quota() {
        let quotas = Quotas::new(2, 3);
        let [one, two] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        let take = |address| quotas.take_allocation(address).map_err(str::to_owned);
        let _first = take(one).ok().unwrap();
        let second = take(one).ok().unwrap();
        assert_eq!(take(one).err().unwrap(), "address_allocations");
        let _third = take(two).ok().unwrap();
        assert_eq!(take(two).err().unwrap(), "files");
        drop(second);
        assert!(take(two).is_ok());
        // Connections do not take from allocations.
        assert!(quotas.take_connection(one).is_ok());
    }
}
