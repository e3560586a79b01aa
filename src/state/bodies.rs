//! The memory of requests whose bodies are read or wait, by the session that they are for. No I/O.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{protocol::TokenHash, spare_capacity::release_spare_capacity};

/// What a request costs beside its body, in bytes: its connection and its headers.
const REQUEST_BYTES: usize = 16 << 10;

/// How much the requests of each session cost, in bytes. Sessions without any are not kept.
#[derive(Default)]
pub(crate) struct Bodies(Mutex<HashMap<TokenHash, usize>>);

/// A request, and the bytes of its body so far. Dropping it gives them back.
pub(crate) struct BodyGuard {
    bodies: Arc<Bodies>,
    session: TokenHash,
    cost: usize,
}

impl Bodies {
    /// Begins a request for the session whose token has this hash; `None` if its requests would cost more than `most`
    /// bytes.
    pub(crate) fn begin(self: &Arc<Bodies>, session: TokenHash, most: usize) -> Option<BodyGuard> {
        let mut guard = BodyGuard {
            bodies: self.clone(),
            session,
            cost: 0,
        };
        guard.add(REQUEST_BYTES, most).then_some(guard)
    }
}

impl BodyGuard {
    /// Adds bytes of the body. Returns false if the requests of the session would cost more than `most` bytes.
    pub(crate) fn add(&mut self, bytes: usize, most: usize) -> bool {
        let mut costs = self.bodies.0.lock();
        let cost = costs.entry(self.session).or_default();
        let fits = *cost + bytes <= most;
        if fits {
            *cost += bytes;
            self.cost += bytes;
        } else if *cost == 0 {
            costs.remove(&self.session);
        }
        fits
    }
}

impl Drop for BodyGuard {
    fn drop(&mut self) {
        let mut costs = self.bodies.0.lock();
        if let Entry::Occupied(mut entry) = costs.entry(self.session) {
            *entry.get_mut() -= self.cost;
            if *entry.get() == 0 {
                entry.remove();
                release_spare_capacity(&mut costs);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_each_session_are_bounded_together() {
        const MOST: usize = 4 * REQUEST_BYTES;
        let bodies = Arc::new(Bodies::default());
        let [one, other] = [TokenHash::random(), TokenHash::random()];
        let mut first = bodies.begin(one, MOST).unwrap();
        let second = bodies.begin(one, MOST).unwrap();
        assert!(first.add(2 * REQUEST_BYTES, MOST));
        assert!(!first.add(1, MOST));
        assert!(bodies.begin(one, MOST).is_none());
        let mut others = bodies.begin(other, MOST).unwrap();
        assert!(others.add(3 * REQUEST_BYTES, MOST));
        drop(second);
        assert!(first.add(REQUEST_BYTES, MOST));
        assert!(bodies.begin(TokenHash::random(), 0).is_none());
        drop((first, others));
        assert!(bodies.0.lock().is_empty());
    }
}
