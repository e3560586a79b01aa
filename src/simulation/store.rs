//! The simulated JetStream: a store that all nodes share. It stores late, answers late, and sometimes shows what it
//! had a moment ago.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    cluster::{Confirmation, EventId, Listed, MessageStore, StoreError},
    protocol::RoomName,
};

/// How long a node waits for an answer.
const LIMIT: Duration = Duration::from_secs(2);

/// How long an answer may leave out what was stored last.
const LAG: Duration = Duration::from_millis(60);

/// Tells the number of a node's connection; `None` if it has none.
pub(super) type Connections = Arc<dyn Fn(usize) -> Option<u64> + Send + Sync>;

/// A node's handle to the store.
pub(super) struct SimulatedStore {
    pub(super) node: usize,
    pub(super) connections: Connections,
    pub(super) stored: Arc<Mutex<Messages>>,
}

/// All that is stored.
pub(super) struct Messages {
    random: StdRng,
    messages: BTreeMap<u64, Message>,
    /// When the last message of each node arrives.
    last: BTreeMap<usize, Instant>,
    /// Whether it answers within a few milliseconds.
    pub(super) is_quick: bool,
}

struct Message {
    room: RoomName,
    id: EventId,
    content: Bytes,
    since: Instant,
}

impl Messages {
    pub(super) fn new(seed: u64) -> Messages {
        Messages {
            random: StdRng::seed_from_u64(seed.wrapping_mul(17)),
            messages: BTreeMap::new(),
            last: BTreeMap::new(),
            is_quick: false,
        }
    }

    fn delay(&mut self) -> Duration {
        let millis = match self.random.random_range(0..20) {
            _ if self.is_quick => 1,
            0 => self.random.random_range(50..1000),
            _ => self.random.random_range(1..30),
        };
        Duration::from_millis(millis)
    }

    fn insert(&mut self, room: RoomName, id: EventId, content: Bytes) {
        if self.messages.values().all(|known| known.id != id) {
            let number = self.messages.last_key_value();
            let number = number.map_or(1, |(number, _)| number + 3);
            let message = Message {
                room,
                id,
                content,
                since: Instant::now(),
            };
            self.messages.insert(number, message);
        }
    }
}

impl SimulatedStore {
    fn connection(&self) -> Option<u64> {
        (self.connections)(self.node)
    }

    /// Waits for an answer, which does not come without a connection.
    async fn answer(&self) -> Result<(), StoreError> {
        let delay = self.stored.lock().delay();
        let connection = self.connection();
        sleep(delay).await;
        match connection.is_some() && self.connection() == connection {
            true => Ok(()),
            false => {
                sleep(LIMIT).await;
                Err("no answer".into())
            }
        }
    }
}

impl MessageStore for SimulatedStore {
    fn append<'a>(
        &'a self,
        room: &'a RoomName,
        id: EventId,
        content: Bytes,
    ) -> BoxFuture<'a, Result<Confirmation, StoreError>> {
        async move {
            let Some(connection) = self.connection() else {
                return Err("no connection".into());
            };
            let (done, confirmed) = oneshot::channel();
            let (at, answer, is_lucky) = {
                let stored = &mut *self.stored.lock();
                let at = Instant::now() + stored.delay();
                let last = stored.last.entry(self.node).or_insert(at);
                *last = at.max(*last);
                (*last, stored.delay(), stored.random.random_bool(0.5))
            };
            let (node, connections) = (self.node, self.connections.clone());
            let (stored, room) = (self.stored.clone(), room.clone());
            tokio::spawn(async move {
                sleep_until(at).await;
                // What a connection carries when it is lost may have arrived.
                let is_connected = || connections(node) == Some(connection);
                if !is_connected() && !is_lucky {
                    return;
                }
                stored.lock().insert(room, id, content);
                sleep(answer).await;
                if is_connected() {
                    let _ = done.send(());
                }
            });
            let confirmed = async move {
                let confirmed = timeout(LIMIT, confirmed).await;
                confirmed
                    .ok()
                    .and_then(Result::ok)
                    .ok_or_else(|| "no answer".into())
            };
            Ok(confirmed.boxed())
        }
        .boxed()
    }

    fn last<'a>(&'a self, room: &'a RoomName) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
        async move {
            self.answer().await?;
            let stored = self.stored.lock();
            let of_room = stored.messages.iter().filter(|(_, it)| it.room == *room);
            Ok(of_room.map(|(number, _)| *number).next_back())
        }
        .boxed()
    }

    fn list<'a>(
        &'a self,
        room: &'a RoomName,
        first: u64,
        last: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        async move {
            self.answer().await?;
            let stored = &mut *self.stored.lock();
            let lags = stored.random.random_bool(0.2);
            let listed = stored.messages.range(first..=last);
            let listed = listed.filter(|(_, message)| {
                message.room == *room && !(lags && message.since.elapsed() < LAG)
            });
            let listed = listed.map(|(number, message)| Listed {
                number: *number,
                id: Some(message.id),
                length: message.content.len(),
            });
            Ok(listed.take(count).collect())
        }
        .boxed()
    }

    fn read(&self, listed: Listed) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        async move {
            self.answer().await?;
            let stored = self.stored.lock();
            let message = stored.messages.get(&listed.number);
            Ok(message.map(|message| message.content.clone()))
        }
        .boxed()
    }

    fn remove<'a>(
        &'a self,
        room: &'a RoomName,
        number: Option<u64>,
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        async move {
            self.answer().await?;
            let messages = &mut self.stored.lock().messages;
            let before = messages.len();
            messages.retain(|of, message| {
                message.room != *room || number.is_some_and(|number| number != *of)
            });
            Ok(before - messages.len())
        }
        .boxed()
    }
}
