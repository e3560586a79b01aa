//! Hash maps whose keys clients choose.

use std::collections::HashMap;

/// A map whose hashes nobody can predict, so that a client cannot choose colliding keys.
#[cfg(not(test))]
pub(crate) type KeyedMap<K, V> = HashMap<K, V>;

/// In tests the hashes are always the same, and so is the order of the entries: a simulation repeats exactly.
#[cfg(test)]
pub(crate) type KeyedMap<K, V> =
    HashMap<K, V, std::hash::BuildHasherDefault<std::hash::DefaultHasher>>;
