//! The history of a cluster, in a store that all nodes share.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use log::debug;
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::{Instant, sleep},
};

use super::{
    flush_barrier::FlushBarrier,
    page::{Entry, Page, Query, Stored, Unavailable},
    past::{Past, PastOf},
    receipt::Receipt,
    shared_writer::{Command, SharedWriter, Waiting},
};
use crate::{
    cluster::{Direct, Listed, MAX_NODES, MessageStore, NodeId, Outbound, StoreError},
    metrics::Metrics,
    protocol::{Escaped, RoomName},
};

/// How many pages are read at once.
const READS_AT_ONCE: usize = 16;

/// How many messages of a page are read at once.
const CONTENTS_AT_ONCE: usize = 16;

/// In how many numbers before the last message of a room the first ones of a page are looked for.
const FIRST_WINDOW: u64 = 256;

/// The factor by which more numbers are looked through next.
const WINDOW_FACTOR: u64 = 16;

/// How many messages are listed at once.
const MAX_LISTED: usize = 4096;

/// The time until a page is read again after an error.
const RETRY: Duration = Duration::from_millis(200);

/// The time between two looks at a server that has not stored the latest messages yet.
const LAG: Duration = Duration::from_millis(100);

/// The history of a cluster.
pub(super) struct SharedLog {
    store: Arc<dyn MessageStore>,
    outbound: Arc<Outbound>,
    commands: UnboundedSender<Command>,
    barrier: Arc<FlushBarrier>,
    reads: Semaphore,
    /// Limits the answers to other nodes that are under way.
    answers: Arc<Semaphore>,
}

impl SharedLog {
    /// The history in this store. `waiting` are the bytes that wait to be stored.
    pub(super) fn new(
        store: Arc<dyn MessageStore>,
        outbound: Arc<Outbound>,
        waiting: Arc<AtomicUsize>,
        metrics: Arc<Metrics>,
    ) -> SharedLog {
        let (commands, received) = unbounded_channel();
        let writer = SharedWriter {
            commands: received,
            store: store.clone(),
            node: outbound.node(),
            waiting,
            metrics,
            is_failing: false,
        };
        tokio::spawn(writer.run());
        SharedLog {
            store,
            commands,
            barrier: FlushBarrier::new(&outbound),
            outbound,
            reads: Semaphore::new(READS_AT_ONCE),
            answers: Arc::new(Semaphore::new(MAX_NODES)),
        }
    }

    /// Has a message stored, and the receipt sent then. `number` is its number among the events of this node.
    pub(super) fn append(
        &self,
        room: &RoomName,
        number: u64,
        content: Bytes,
        time: u64,
        receipt: Option<Receipt>,
    ) -> Result<(), Unavailable> {
        let entry = Entry {
            room: room.clone(),
            number,
            content,
            time,
        };
        let append = Command::Append(Waiting {
            entry,
            receipt,
            since: Instant::now(),
        });
        self.commands.send(append).map_err(|_| Unavailable)
    }

    /// The last messages of a room.
    pub(super) async fn page(
        &self,
        room: &RoomName,
        query: Query,
        past: PastOf<'_>,
    ) -> Result<Page, Unavailable> {
        self.flush_all().await?;
        let _permit = self.reads.acquire().await.map_err(|_| Unavailable)?;
        // The caller has a time limit.
        loop {
            match self.read(room, &query, past).await {
                Ok(page) => return Ok(page),
                Err(error) => debug!("cannot read the history of {room}: {}", Escaped(error)),
            }
            sleep(RETRY).await;
        }
    }

    /// Removes one message of a room, or all that were said before; returns how many there were.
    pub(super) async fn remove(
        &self,
        room: &RoomName,
        number: Option<u64>,
    ) -> Result<usize, Unavailable> {
        self.flush_all().await?;
        let removed = self.store.remove(room, number).await;
        removed.map_err(|error| {
            debug!("cannot change the history of {room}: {}", Escaped(error));
            Unavailable
        })
    }

    /// Waits until all that was said on this node before is stored, or cannot be.
    pub(super) async fn flush(&self) -> Result<(), Unavailable> {
        self.ask(Command::Flush).await
    }

    /// Stores what waits, and stores nothing more.
    pub(super) async fn close(&self) {
        // It is closed already if there is no answer.
        let _ = self.ask(Command::Close).await;
    }

    /// A node is up.
    pub(super) fn node_up(&self, node: NodeId) {
        self.barrier.up(node);
    }

    /// A node is down.
    pub(super) fn node_down(&self, node: NodeId) {
        self.barrier.down(node);
    }

    /// Takes in a message of another node.
    pub(super) fn receive(&self, node: NodeId, number: u64, message: &Direct) {
        match *message {
            Direct::HistoryFlushed { mark } => self.barrier.answer(node, number, mark),
            Direct::FlushHistory { mark } => {
                // A node that asks all the time gets no answer, and waits in vain.
                let Ok(permit) = self.answers.clone().try_acquire_owned() else {
                    return;
                };
                let (done, flushed) = oneshot::channel();
                let (sent, outbound) = (
                    self.commands.send(Command::Flush(done)),
                    self.outbound.clone(),
                );
                tokio::spawn(async move {
                    let _permit = permit;
                    if sent.is_ok() && flushed.await.is_ok() {
                        outbound
                            .batch()
                            .notify(node, Direct::HistoryFlushed { mark });
                    }
                });
            }
            _ => {}
        }
    }

    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<()>) -> Command,
    ) -> Result<(), Unavailable> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send(command(answer));
        sent.map_err(|_| Unavailable)?;
        answered.await.map_err(|_| Unavailable)
    }

    /// Waits until all that was said on any node before is stored, or cannot be.
    async fn flush_all(&self) -> Result<(), Unavailable> {
        let (own, others) = tokio::join!(self.flush(), self.barrier.wait());
        own.and(others)
    }

    async fn read(
        &self,
        room: &RoomName,
        query: &Query,
        past: PastOf<'_>,
    ) -> Result<Page, StoreError> {
        let (chosen, more) = self.choose(room, query, past).await?;
        let is_found = !chosen.is_empty();
        let contents = stream::iter(chosen).map(async |listed: Listed| {
            let content = self.store.read(listed).await?;
            // It may have been removed meanwhile. What this program has written is valid.
            let content = content.and_then(|content| serde_json::from_slice(&content).ok());
            let number = listed.number;
            Ok::<_, StoreError>(content.map(|content| Stored { number, content }))
        });
        let messages: Vec<Option<Stored>> =
            contents.buffered(CONTENTS_AT_ONCE).try_collect().await?;
        let messages: Vec<Stored> = messages.into_iter().flatten().collect();
        if is_found && messages.is_empty() {
            return Err("the messages were removed meanwhile".into());
        }
        Ok(Page { messages, more })
    }

    /// The messages of a page, oldest first, and whether there are older ones.
    ///
    /// The store lists messages only forward, and those of a room may be far apart. So they are looked for in front of
    /// the last one, among more and more numbers.
    async fn choose(
        &self,
        room: &RoomName,
        query: &Query,
        past: PastOf<'_>,
    ) -> Result<(VecDeque<Listed>, bool), StoreError> {
        let (mut chosen, mut bytes) = (VecDeque::new(), 0);
        let mut window = FIRST_WINDOW;
        let mut newest = self.store.last(room).await?;
        let mut end = query
            .before
            .saturating_sub(1)
            .min(newest.unwrap_or_default());
        while end > 0 {
            let first = (end + 1).saturating_sub(window).max(1);
            let listed = self.store.list(room, first, end, MAX_LISTED).await?;
            if Some(end) == newest && listed.last().is_none_or(|last| last.number != end) {
                // It was removed meanwhile, or the server that has answered lags behind.
                sleep(LAG).await;
                newest = self.store.last(room).await?;
                end = end.min(newest.unwrap_or_default());
                continue;
            }
            if listed.len() == MAX_LISTED && window > MAX_LISTED as u64 {
                // The last ones are not among them.
                window = MAX_LISTED as u64;
                continue;
            }
            // A node that speaks is known by now.
            let past = past(&self.barrier.answers());
            for entry in listed.into_iter().rev() {
                let is_included = entry.id.is_some_and(|id| match &past {
                    Past::All | Past::Before(_) => true,
                    Past::Events(events) => events.includes(id),
                });
                if !is_included {
                    continue;
                }
                bytes += entry.length + query.overhead;
                let is_full = chosen.len() >= query.last || bytes > query.bytes;
                if is_full && (query.last == 0 || !chosen.is_empty()) {
                    return Ok((chosen, true));
                }
                chosen.push_front(entry);
            }
            end = first - 1;
            window = window.saturating_mul(WINDOW_FACTOR);
        }
        Ok((chosen, false))
    }
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    };

    use futures_util::{FutureExt, future::BoxFuture};
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        cluster::{Confirmation, EventId, TestLink},
        history::past::PastEvents,
        protocol::{CloseCode, ErrorCode},
    };

    /// A store in memory.
    #[derive(Default)]
    struct Memory {
        messages: Mutex<BTreeMap<u64, (RoomName, EventId, Bytes)>>,
        /// Whether it confirms nothing.
        fails: AtomicBool,
        /// Whether the next list lacks the last message.
        lags: AtomicBool,
    }

    impl Memory {
        fn insert(&self, number: u64, name: &str, id: EventId, content: Bytes) {
            let mut messages = self.messages.lock();
            messages.insert(number, (room(name), id, content));
        }
    }

    impl MessageStore for Memory {
        fn append<'a>(
            &'a self,
            room: &'a RoomName,
            id: EventId,
            content: Bytes,
        ) -> BoxFuture<'a, Result<Confirmation, StoreError>> {
            async move {
                let mut messages = self.messages.lock();
                let is_known = messages.values().any(|(_, known, _)| *known == id);
                // Of two that are sent at once, the first fails.
                let fails = self.fails.load(SeqCst) && id.number % 2 == 1;
                if !is_known && !fails {
                    let number = messages.last_key_value().map_or(1, |(last, _)| last + 1);
                    messages.insert(number, (room.clone(), id, content));
                }
                let stored = match fails {
                    true => Err("no answer".into()),
                    false => Ok(()),
                };
                Ok(async move { stored }.boxed())
            }
            .boxed()
        }

        fn last<'a>(
            &'a self,
            room: &'a RoomName,
        ) -> BoxFuture<'a, Result<Option<u64>, StoreError>> {
            async move {
                let messages = self.messages.lock();
                let last = messages.iter().rfind(|(_, (of, ..))| of == room);
                Ok(last.map(|(number, _)| *number))
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
                let messages = self.messages.lock();
                let listed = messages.range(first..=last);
                let listed = listed.filter(|(_, (of, ..))| of == room);
                let listed = listed.map(|(number, (_, id, content))| Listed {
                    number: *number,
                    id: Some(*id),
                    length: content.len(),
                });
                let mut listed: Vec<Listed> = listed.take(count).collect();
                if self.lags.swap(false, SeqCst) {
                    listed.pop();
                }
                Ok(listed)
            }
            .boxed()
        }

        fn read(&self, listed: Listed) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
            let message = self.messages.lock().get(&listed.number).cloned();
            async move { Ok(message.map(|(_, _, content)| content)) }.boxed()
        }

        fn remove<'a>(
            &'a self,
            _: &'a RoomName,
            _: Option<u64>,
        ) -> BoxFuture<'a, Result<usize, StoreError>> {
            async { Err("not here".into()) }.boxed()
        }
    }

    fn room(name: &str) -> RoomName {
        RoomName::from_segment(name).unwrap()
    }

    fn content(number: u64) -> Bytes {
        format!(r#"{{"time":0,"from":null,"message":{number}}}"#).into()
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(
            true,
            false,
            ErrorCode::ALL.map(ErrorCode::as_str),
            CloseCode::ALL.map(CloseCode::number),
        ))
    }

    struct TestLog {
        link: TestLink,
        store: Arc<Memory>,
        waiting: Arc<AtomicUsize>,
        metrics: Arc<Metrics>,
        log: SharedLog,
    }

    impl TestLog {
        fn new() -> TestLog {
            let (link, store) = (TestLink::open(), Arc::<Memory>::default());
            let (waiting, metrics) = (Arc::<AtomicUsize>::default(), metrics());
            let log = SharedLog::new(
                store.clone(),
                link.outbound.clone(),
                waiting.clone(),
                metrics.clone(),
            );
            TestLog {
                link,
                store,
                waiting,
                metrics,
                log,
            }
        }

        fn id(&self, number: u64) -> EventId {
            let node = self.link.outbound.node();
            EventId { node, number }
        }

        /// The messages of a page, and whether there are more.
        async fn page(&self, last: usize, before: u64, past: Past) -> (Vec<u64>, bool) {
            let query = Query {
                last,
                before,
                bytes: usize::MAX,
                overhead: 0,
            };
            let past = &|_: &BTreeMap<NodeId, u64>| past.clone();
            let page = self.log.page(&room("tea"), query, past).await.unwrap();
            let numbers = page.messages.iter().map(|stored| {
                let number = stored.number;
                assert_eq!(stored.content.message.get(), number.to_string());
                number
            });
            (numbers.collect(), page.more)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_is_found_however_far_apart_its_messages_are() {
        let test = TestLog::new();
        let all = || Past::All;
        assert_eq!(test.page(5, u64::MAX, all()).await, (vec![], false));
        let far = [3, 4, 200, 5_000, 1_000_000, 900_000_000, 900_000_001];
        for number in far {
            test.store
                .insert(number, "tea", test.id(number), content(number));
        }
        test.store
            .insert(900_000_002, "coffee", test.id(0), content(0));
        assert_eq!(test.page(9, u64::MAX, all()).await, (far.to_vec(), false));
        for last in 1..far.len() {
            let expected = far[far.len() - last..].to_vec();
            assert_eq!(test.page(last, u64::MAX, all()).await, (expected, true));
        }
        assert_eq!(test.page(2, 5_000, all()).await, (vec![4, 200], true));
        assert_eq!(test.page(2, 5, all()).await, (vec![3, 4], false));
        assert_eq!(test.page(2, 3, all()).await, (vec![], false));
        assert_eq!(test.page(0, 4, all()).await, (vec![], true));

        // Those that the session has received stand between.
        let node = test.link.outbound.node();
        let past = Past::Events(PastEvents::up_to([(node, 200)].into_iter()).into());
        assert_eq!(test.page(2, u64::MAX, past).await, (vec![4, 200], true));

        // More than are listed at once are in front of the last one.
        for number in 10_000..20_000 {
            test.store
                .insert(number, "tea", test.id(number), content(number));
        }
        assert_eq!(
            test.page(2, 1_000_000, all()).await,
            (vec![19_998, 19_999], true)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_has_the_last_message_although_a_server_lags_behind() {
        let test = TestLog::new();
        for number in 1..=3 {
            test.store
                .insert(number, "tea", test.id(number), content(number));
        }
        test.store.lags.store(true, SeqCst);
        assert_eq!(test.page(2, u64::MAX, Past::All).await, (vec![2, 3], true));
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_sent_again_until_they_have_waited_too_long() {
        let test = TestLog::new();
        let append = |number: u64| {
            let appended = test
                .log
                .append(&room("tea"), number, content(number), 0, None);
            test.waiting.fetch_add(content(number).len(), Relaxed);
            appended.unwrap();
        };
        test.store.fails.store(true, SeqCst);
        (1..=3).for_each(append);
        let start = Instant::now();
        let flushed = test.log.flush();
        let recovers = async {
            sleep(Duration::from_secs(1)).await;
            test.store.fails.store(false, SeqCst);
        };
        let (flushed, ()) = tokio::join!(flushed, recovers);
        flushed.unwrap();
        assert!(start.elapsed() < Duration::from_secs(2));
        // The second was stored before the first, and once.
        let stored = || {
            let messages = test.store.messages.lock();
            let numbers = messages.values().map(|(_, id, _)| id.number);
            numbers.collect::<Vec<_>>()
        };
        assert_eq!(stored(), [2, 1, 3]);
        assert_eq!(test.metrics.history_stored.get(), 3);

        test.store.fails.store(true, SeqCst);
        let start = Instant::now();
        (5..=6).for_each(append);
        test.log.flush().await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(10));
        assert_eq!(stored(), [2, 1, 3, 6]);
        assert_eq!(test.metrics.history_failed.get(), 1);
        assert_eq!(test.metrics.history_stored.get(), 4);
        assert_eq!(test.waiting.load(Relaxed), 0);
        test.log.close().await;
        assert!(test.log.flush().await.is_err());
    }
}
