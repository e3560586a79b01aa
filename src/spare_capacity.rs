//! Spare capacity of hash maps, which do not shrink by themselves.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
};

/// Entries of spare capacity that a map keeps however few it holds, so that a small map does not
/// shrink and grow again all the time.
const MIN_SPARE_ENTRIES: usize = 32;

/// Shrinks a map that uses less than about a quarter of its capacity. A map that was once full would
/// otherwise hold that memory for good.
pub(crate) fn release_spare_capacity<K: Eq + Hash, V, S: BuildHasher>(map: &mut HashMap<K, V, S>) {
    if map.capacity() > 4 * map.len() + MIN_SPARE_ENTRIES {
        map.shrink_to(2 * map.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_was_full_shrinks_and_a_small_map_does_not() {
        let mut map: HashMap<u32, ()> = (0..1000).map(|key| (key, ())).collect();
        let full = map.capacity();
        map.retain(|key, ()| *key < 10);
        release_spare_capacity(&mut map);
        assert!(map.capacity() < full && map.len() == 10);

        let small = map.capacity();
        map.clear();
        release_spare_capacity(&mut map);
        assert_eq!(map.capacity(), small);
    }
}
