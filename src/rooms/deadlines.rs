//! When messages to names have waited in vain.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::protocol::RoomName;

/// When to look for messages to a name in a room that have waited in vain.
#[derive(Default)]
pub(super) struct Deadlines {
    times: Mutex<BTreeSet<(Instant, RoomName, Arc<str>)>>,
    /// Notified of the first time.
    added: Notify,
}

impl Deadlines {
    /// Adds a time, which is not before the first one.
    pub(super) fn add(&self, time: Instant, room: &RoomName, name: &Arc<str>) {
        let mut times = self.times.lock();
        times.insert((time, room.clone(), name.clone()));
        if times.len() == 1 {
            self.added.notify_one();
        }
    }

    /// Waits for the first time, and removes it.
    pub(super) async fn next(&self) -> (RoomName, Arc<str>) {
        loop {
            let first = self.times.lock().first().map(|(time, ..)| *time);
            match first {
                None => self.added.notified().await,
                Some(time) => {
                    sleep_until(time).await;
                    if let Some((_, room, name)) = self.times.lock().pop_first() {
                        return (room, name);
                    }
                }
            }
        }
    }
}
