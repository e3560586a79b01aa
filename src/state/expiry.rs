//! Sessions that end when their tokens expire. No I/O and no clock: time is counted in seconds since 1970.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;

use crate::{
    outbox::Sender,
    protocol::{Close, CloseCode},
};

/// The sessions that expire, in the order in which they do.
#[derive(Default)]
pub(crate) struct Expiries {
    /// By the time, and the number of the registration. A session that has moved to another node and come back is
    /// registered twice for a while, so its id is no key.
    sessions: Mutex<BTreeMap<(u64, u64), Sender>>,
    /// How many sessions were ever registered.
    registered: AtomicU64,
}

/// The time at which a session expires. Dropping it cancels the expiry.
pub(crate) struct ExpiryGuard {
    expiries: Arc<Expiries>,
    key: (u64, u64),
}

impl Expiries {
    /// Closes the session of `sender` at `time`.
    pub(crate) fn register(self: &Arc<Expiries>, time: u64, sender: Sender) -> ExpiryGuard {
        let key = (time, self.registered.fetch_add(1, Relaxed));
        self.sessions.lock().insert(key, sender);
        ExpiryGuard {
            expiries: self.clone(),
            key,
        }
    }

    /// Whether no session has a time at which it expires.
    #[cfg(all(test, feature = "cluster"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.lock().is_empty()
    }

    /// Closes the sessions that have expired.
    pub(crate) fn tick(&self, now: u64) {
        let mut expiries = self.sessions.lock();
        while let Some(first) = expiries.first_entry()
            && first.key().0 <= now
        {
            let close = Close::new(CloseCode::PolicyViolation, "the token has expired");
            first.remove().close(close);
        }
    }
}

impl ExpiryGuard {
    /// When the session expires.
    pub(crate) fn time(&self) -> u64 {
        self.key.0
    }

    /// Changes the time. Without effect once the session has expired.
    pub(crate) fn renew(&mut self, time: u64) {
        let mut expiries = self.expiries.sessions.lock();
        if let Some(sender) = expiries.remove(&self.key) {
            self.key.0 = time;
            expiries.insert(self.key, sender);
        }
    }
}

impl Drop for ExpiryGuard {
    fn drop(&mut self) {
        self.expiries.sessions.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::outbox::tests::{flush, outbox_to};

    #[test]
    fn each_session_ends_at_its_time() {
        let expiries = Arc::new(Expiries::default());
        let sessions: Vec<_> = [30, 10, 20, 10]
            .into_iter()
            .map(|time| {
                let (sender, outbox, stream) = outbox_to(1000, 1000);
                let expiry = expiries.register(time, sender);
                (expiry, outbox, stream)
            })
            .collect();
        let ended = |now| -> Vec<bool> {
            expiries.tick(now);
            let is_closed = |outbox| matches!(flush(outbox), Poll::Ready(Err(_)));
            sessions
                .iter()
                .map(|(_, outbox, _)| is_closed(outbox))
                .collect()
        };
        assert_eq!(ended(9), [false, false, false, false]);
        assert_eq!(ended(10), [false, true, false, true]);
        assert_eq!(ended(29), [false, true, true, true]);
        assert_eq!(ended(31), [true, true, true, true]);
        drop(sessions);
        assert!(expiries.sessions.lock().is_empty());
    }

    #[test]
    fn a_session_that_has_come_back_expires_though_its_first_stay_has_ended() {
        let expiries = Arc::new(Expiries::default());
        let (sender, outbox, _stream) = outbox_to(1000, 1000);
        let [first, _second] = [(); 2].map(|()| expiries.register(10, sender.clone()));
        drop(first);
        expiries.tick(10);
        assert!(matches!(flush(&outbox), Poll::Ready(Err(_))));
    }

    #[test]
    fn an_expiry_can_be_moved_or_cancelled() {
        let expiries = Arc::new(Expiries::default());
        let (sender, outbox, _stream) = outbox_to(1000, 1000);
        let mut expiry = expiries.register(10, sender.clone());
        expiry.renew(20);
        drop(expiries.register(10, sender));
        expiries.tick(19);
        assert!(matches!(flush(&outbox), Poll::Ready(Ok(()))));
        expiries.tick(20);
        assert!(matches!(
            flush(&outbox),
            Poll::Ready(Err(CloseCode::PolicyViolation))
        ));
        // The session has expired already.
        expiry.renew(30);
        drop(expiry);
        assert!(expiries.sessions.lock().is_empty());
    }
}
