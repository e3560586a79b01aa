//! The stored messages: one database of redb, in a file or in memory.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use super::page::{Entry, Page, Query, Stored};
use crate::{config::HistoryOptions, protocol::RoomName};
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
    backends::InMemoryBackend,
};

/// The messages, as JSON, by room and number.
const MESSAGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("messages");

/// The time in milliseconds since 1970 and the room of each message, by number: the oldest comes first.
const ORDER: TableDefinition<'_, u64, (u64, &str)> = TableDefinition::new("order");

/// How many messages each room has.
const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("counts");

/// The totals by name.
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");

/// The size of all messages, in bytes.
const BYTES: &str = "bytes";

/// A number that is higher than that of every message so far.
const NEXT: &str = "next";

/// What a message counts beside its length, in bytes: its entries in the tables.
const ENTRY_BYTES: u64 = 64;

/// The name of the file in the folder.
const FILE: &str = "history.redb";

/// The length of the number that a file of redb begins with, in bytes. It is written after the file has its size.
const MAGIC_BYTES: usize = 9;

/// How much of the database is kept in memory, in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// How many messages one transaction removes, if nobody waits for it.
const REMOVED_AT_ONCE: usize = 10_000;

/// How many rooms one transaction removes messages of.
const ROOMS_AT_ONCE: usize = 1000;

/// An error of the database. It is large, and rare.
pub(super) type Error = Box<redb::Error>;

/// The stored messages of all rooms.
pub(super) struct Store {
    database: Database,
    max_messages: u64,
    max_bytes: u64,
}

impl Store {
    /// Opens the store of a folder, or makes one in memory.
    ///
    /// # Errors
    ///
    /// The folder or the file cannot be used; the message names it.
    pub(super) fn open(options: &HistoryOptions) -> io::Result<Store> {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        let opened = match &options.dir {
            Some(folder) => {
                let path = file(folder)?;
                let opened = builder.create(&path);
                opened.map_err(|error| (path, error.into()))
            }
            None => {
                let opened = builder.create_with_backend(InMemoryBackend::new());
                opened.map_err(|error| (PathBuf::from("memory"), redb::Error::from(error)))
            }
        };
        let fail = |(path, error): (PathBuf, redb::Error)| {
            let path = path.display();
            io::Error::other(format!("cannot open the history in {path}: {error}"))
        };
        let database = opened.map_err(fail)?;
        let store = Store {
            database,
            max_messages: options.messages.get().into(),
            max_bytes: options.bytes,
        };
        // A table that does not exist cannot be read. Where all exist, a full disk keeps nobody from reading.
        if store.next_number().is_err() {
            let created = store.write(|_| Ok(()));
            created.map_err(|error| fail((options.dir.clone().unwrap_or_default(), *error)))?;
        }
        Ok(store)
    }

    /// A number that is higher than that of every message so far.
    pub(super) fn next_number(&self) -> Result<u64, Error> {
        let read = || -> Result<u64, redb::Error> {
            let totals = self.database.begin_read()?.open_table(TOTALS)?;
            let next = totals.get(NEXT)?.map_or(1, |next| next.value());
            Ok(next)
        };
        read().map_err(Box::new)
    }

    /// The size of all messages, in bytes.
    pub(super) fn bytes(&self) -> Result<u64, Error> {
        let read = || -> Result<u64, redb::Error> {
            let totals = self.database.begin_read()?.open_table(TOTALS)?;
            let bytes = totals.get(BYTES)?.map_or(0, |bytes| bytes.value());
            Ok(bytes)
        };
        read().map_err(Box::new)
    }

    /// Stores messages, all or none, and removes those that are then beyond the limits. They are on the disk when
    /// this returns.
    pub(super) fn append(&self, entries: &[Entry]) -> Result<(), Error> {
        self.write(|tables| {
            for entry in entries {
                tables.insert(entry, self.max_messages)?;
            }
            // More than that are removed with the next messages.
            tables.trim(self, REMOVED_AT_ONCE + entries.len())
        })
    }

    /// Removes messages that are beyond the limits, because those are lower now. Returns whether there may be more of
    /// them.
    pub(super) fn trim(&self) -> Result<bool, Error> {
        let excess = || -> Result<Vec<(String, u64)>, redb::Error> {
            let counts = self.database.begin_read()?.open_table(COUNTS)?;
            let mut excess = Vec::new();
            for entry in counts.iter()? {
                let (room, count) = entry?;
                if let Some(count @ 1..) = count.value().checked_sub(self.max_messages) {
                    excess.push((room.value().to_owned(), count));
                    if excess.len() >= ROOMS_AT_ONCE {
                        break;
                    }
                }
            }
            Ok(excess)
        };
        let excess = excess()?;
        if excess.is_empty() && self.bytes()? <= self.max_bytes {
            return Ok(false);
        }
        self.write(|tables| {
            let rooms = excess.iter();
            let mut messages = rooms.flat_map(|(room, count)| (0..*count).map(move |_| room));
            for room in messages.by_ref().take(REMOVED_AT_ONCE) {
                if let Some(first) = tables.first_of(room)? {
                    tables.remove(room, first)?;
                }
            }
            if excess.is_empty() {
                tables.trim(self, REMOVED_AT_ONCE)?;
            }
            Ok(true)
        })
    }

    /// Removes messages that were said before this time, in milliseconds since 1970. Returns whether there may be
    /// more of them.
    pub(super) fn expire(&self, time: u64) -> Result<bool, Error> {
        let is_due = || -> Result<bool, redb::Error> {
            let order = self.database.begin_read()?.open_table(ORDER)?;
            let first = order.first()?;
            Ok(first.is_some_and(|(_, entry)| entry.value().0 < time))
        };
        if !is_due()? {
            return Ok(false);
        }
        self.write(|tables| {
            for _ in 0..REMOVED_AT_ONCE {
                match tables.oldest()? {
                    Some((number, said, room)) if said < time => tables.remove(&room, number)?,
                    _ => return Ok(false),
                };
            }
            Ok(true)
        })
    }

    /// Removes one message of a room, or all. Returns how many there were.
    pub(super) fn remove(&self, room: &RoomName, number: Option<u64>) -> Result<usize, Error> {
        let room = room.as_str();
        self.write(|tables| {
            if let Some(number) = number {
                return Ok(usize::from(tables.remove(room, number)?));
            }
            let mut removed = 0;
            while let Some(number) = tables.first_of(room)? {
                removed += usize::from(tables.remove(room, number)?);
            }
            Ok(removed)
        })
    }

    /// The last messages of a room.
    pub(super) fn page(&self, room: &RoomName, query: &Query) -> Result<Page, Error> {
        let read = || -> Result<Page, redb::Error> {
            let messages = self.database.begin_read()?.open_table(MESSAGES)?;
            let room = room.as_str();
            let mut page = Page::default();
            let mut bytes = 0;
            for entry in messages.range((room, 0)..(room, query.before))?.rev() {
                let (key, value) = entry?;
                bytes += value.value().len() + query.overhead;
                let is_full = page.messages.len() >= query.last || bytes > query.bytes;
                if is_full && (query.last == 0 || !page.messages.is_empty()) {
                    page.more = true;
                    break;
                }
                // What this program has written is valid.
                if let Ok(content) = serde_json::from_slice(value.value()) {
                    let number = key.value().1;
                    page.messages.push(Stored { number, content });
                }
            }
            page.messages.reverse();
            Ok(page)
        };
        read().map_err(Box::new)
    }

    /// Changes the tables in one transaction.
    fn write<T>(
        &self,
        change: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let write = || -> Result<T, redb::Error> {
            let mut transaction = self.database.begin_write()?;
            // After a crash, the file is opened in milliseconds. Without it, that takes 27 s a GB.
            transaction.set_quick_repair(true);
            let mut tables = Tables::open(&transaction)?;
            let changed = change(&mut tables)?;
            tables.store_totals()?;
            drop(tables);
            transaction.commit()?;
            Ok(changed)
        };
        write().map_err(Box::new)
    }
}

/// What a message of this length counts in the size of all messages.
fn cost(length: usize) -> u64 {
    length as u64 + ENTRY_BYTES
}

/// The tables in a transaction that changes them.
struct Tables<'a> {
    messages: Table<'a, (&'static str, u64), &'static [u8]>,
    order: Table<'a, u64, (u64, &'static str)>,
    counts: Table<'a, &'static str, u64>,
    totals: Table<'a, &'static str, u64>,
    bytes: u64,
    next: u64,
}

impl<'a> Tables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Tables<'a>, redb::Error> {
        let totals = transaction.open_table(TOTALS)?;
        let bytes = totals.get(BYTES)?.map_or(0, |bytes| bytes.value());
        let next = totals.get(NEXT)?.map_or(1, |next| next.value());
        Ok(Tables {
            messages: transaction.open_table(MESSAGES)?,
            order: transaction.open_table(ORDER)?,
            counts: transaction.open_table(COUNTS)?,
            totals,
            bytes,
            next,
        })
    }

    fn store_totals(&mut self) -> Result<(), redb::Error> {
        self.totals.insert(BYTES, self.bytes)?;
        self.totals.insert(NEXT, self.next)?;
        Ok(())
    }

    fn insert(&mut self, entry: &Entry, max_messages: u64) -> Result<(), redb::Error> {
        let (room, number) = (entry.room.as_str(), entry.number);
        let content = &*entry.content;
        if self.messages.insert((room, number), content)?.is_some() {
            // An attempt that has failed has stored it all the same.
            return Ok(());
        }
        self.order.insert(number, (entry.time, room))?;
        let count = self.count(room)? + 1;
        self.counts.insert(room, count)?;
        self.bytes += cost(entry.content.len());
        self.next = self.next.max(number + 1);
        for _ in max_messages..count {
            if let Some(first) = self.first_of(room)? {
                self.remove(room, first)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest messages that are beyond the limit of bytes, at most so many.
    fn trim(&mut self, store: &Store, most: usize) -> Result<(), redb::Error> {
        for _ in 0..most {
            if self.bytes <= store.max_bytes {
                break;
            }
            let Some((number, _, room)) = self.oldest()? else {
                break;
            };
            self.remove(&room, number)?;
        }
        Ok(())
    }

    /// Removes a message; returns whether it was there.
    fn remove(&mut self, room: &str, number: u64) -> Result<bool, redb::Error> {
        let removed = self.messages.remove((room, number))?;
        let Some(length) = removed.map(|content| content.value().len()) else {
            return Ok(false);
        };
        self.order.remove(number)?;
        match self.count(room)? {
            0 | 1 => _ = self.counts.remove(room)?,
            count => _ = self.counts.insert(room, count - 1)?,
        }
        self.bytes = self.bytes.saturating_sub(cost(length));
        Ok(true)
    }

    fn count(&self, room: &str) -> Result<u64, redb::Error> {
        Ok(self.counts.get(room)?.map_or(0, |count| count.value()))
    }

    /// The number of the oldest message of a room.
    fn first_of(&self, room: &str) -> Result<Option<u64>, redb::Error> {
        let mut range = self.messages.range((room, 0)..=(room, u64::MAX))?;
        let first = range.next().transpose()?;
        Ok(first.map(|(key, _)| key.value().1))
    }

    /// The oldest message of all: its number, its time, and its room.
    fn oldest(&self) -> Result<Option<(u64, u64, String)>, redb::Error> {
        let first = self.order.first()?;
        Ok(first.map(|(number, entry)| {
            let (time, room) = entry.value();
            (number.value(), time, room.to_owned())
        }))
    }
}

/// The path of the file in a folder, which is created if it does not exist. Only this user can read both.
fn file(folder: &Path) -> io::Result<PathBuf> {
    let fail = |error: io::Error| {
        let folder = folder.display();
        io::Error::new(
            error.kind(),
            format!("cannot use the history folder {folder}: {error}"),
        )
    };
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder).map_err(fail)?;
    let path = folder.join(FILE);
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let opened = options.read(true).append(true).create(true).open(&path);
    let mut file = opened.map_err(fail)?;
    let mut magic = [1; MAGIC_BYTES];
    if file.read(&mut magic).map_err(fail)? > 0 && magic == [0; MAGIC_BYTES] {
        // The first start ended before anything was stored.
        file.set_len(0).map_err(fail)?;
    }
    // The file is in the folder only when that is on the disk, too.
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(fail)?;
    Ok(path)
}

/// The time at which a message that is this old now was said, in milliseconds since 1970.
pub(super) fn before(now: u64, age: Duration) -> u64 {
    now.saturating_sub(age.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn store(messages: u32, bytes: u64) -> Store {
        let options = HistoryOptions {
            messages: NonZeroU32::new(messages).unwrap(),
            bytes,
            ..HistoryOptions::default()
        };
        Store::open(&options).unwrap()
    }

    fn room(name: &str) -> RoomName {
        RoomName::from_segment(name).unwrap()
    }

    /// A message that says its number, at that time.
    fn entry(name: &str, number: u64) -> Entry {
        let content = format!(r#"{{"time":{number},"from":null,"message":{number}}}"#);
        Entry {
            room: room(name),
            number,
            content: content.into(),
            time: number,
        }
    }

    fn numbers(store: &Store, name: &str, last: usize, before: u64) -> (Vec<u64>, bool) {
        let query = Query {
            last,
            before,
            bytes: usize::MAX,
            overhead: 0,
        };
        let page = store.page(&room(name), &query).unwrap();
        let messages = page.messages.iter();
        let numbers = messages.map(|stored| {
            let number = stored.number;
            assert_eq!(stored.content.message.get(), number.to_string());
            number
        });
        (numbers.collect(), page.more)
    }

    #[test]
    fn a_page_has_the_last_messages_before_a_number() {
        let store = store(100, 1 << 20);
        let entries: Vec<Entry> = (1..=9).map(|number| entry("tea", number * 10)).collect();
        store.append(&entries[..5]).unwrap();
        store.append(&entries[5..]).unwrap();
        store.append(&[entry("te", 95), entry("tea2", 96)]).unwrap();
        assert_eq!(
            numbers(&store, "tea", 3, u64::MAX),
            (vec![70, 80, 90], true)
        );
        assert_eq!(numbers(&store, "tea", 3, 40), (vec![10, 20, 30], false));
        assert_eq!(numbers(&store, "tea", 2, 31), (vec![20, 30], true));
        assert_eq!(numbers(&store, "tea", 0, 31), (vec![], true));
        assert_eq!(numbers(&store, "tea", 5, 10), (vec![], false));
        assert_eq!(numbers(&store, "coffee", 5, u64::MAX), (vec![], false));
        assert_eq!(store.next_number().unwrap(), 97);
        let few = Query {
            last: 9,
            before: u64::MAX,
            bytes: 100,
            overhead: 10,
        };
        // Two of 38 + 10 bytes fit; one comes however large it is.
        let lengths = [few, Query { bytes: 1, ..few }].map(|query| {
            let page = store.page(&room("tea"), &query).unwrap();
            assert!(page.more);
            page.messages.len()
        });
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn a_room_and_all_rooms_keep_to_their_limits() {
        let store = store(3, 1 << 20);
        for number in 1..=5 {
            store.append(&[entry("tea", number)]).unwrap();
        }
        store.append(&[entry("coffee", 6)]).unwrap();
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![3, 4, 5], false));
        assert_eq!(numbers(&store, "coffee", 9, u64::MAX), (vec![6], false));
        let bytes = store.bytes().unwrap();
        assert_eq!(bytes, 4 * cost(entry("tea", 1).content.len()));

        let store = self::store(100, 3 * bytes / 4);
        let entries: Vec<Entry> = (1..=7)
            .map(|number| entry(["tea", "coffee"][number as usize % 2], number))
            .collect();
        store.append(&entries).unwrap();
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![6], false));
        assert_eq!(numbers(&store, "coffee", 9, u64::MAX), (vec![5, 7], false));
    }

    #[test]
    fn a_lower_limit_holds_for_messages_that_are_there() {
        let mut store = store(1_000_000, 1 << 30);
        let count = REMOVED_AT_ONCE as u64 + 5;
        let entries: Vec<Entry> = (1..=count).map(|number| entry("tea", number)).collect();
        store.append(&entries).unwrap();
        store.append(&[entry("coffee", count + 1)]).unwrap();
        assert!(!store.trim().unwrap());
        store.max_messages = 2;
        while store.trim().unwrap() {}
        assert_eq!(
            numbers(&store, "tea", 9, u64::MAX),
            (vec![count - 1, count], false)
        );
        assert_eq!(
            numbers(&store, "coffee", 9, u64::MAX),
            (vec![count + 1], false)
        );
        store.max_bytes = store.bytes().unwrap() - 1;
        while store.trim().unwrap() {}
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![count], false));
    }

    #[test]
    fn messages_are_removed_by_age_by_number_and_by_room() {
        let store = store(100, 1 << 20);
        let entries: Vec<Entry> = (1..=6)
            .map(|number| entry(["tea", "coffee"][number as usize % 2], number))
            .collect();
        store.append(&entries).unwrap();
        assert!(!store.expire(1).unwrap());
        assert!(!store.expire(3).unwrap());
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![4, 6], false));
        assert_eq!(store.remove(&room("tea"), Some(4)).unwrap(), 1);
        assert_eq!(store.remove(&room("tea"), Some(4)).unwrap(), 0);
        assert_eq!(store.remove(&room("tea"), Some(5)).unwrap(), 0);
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![6], false));
        assert_eq!(store.remove(&room("coffee"), None).unwrap(), 2);
        assert_eq!(store.remove(&room("tea"), None).unwrap(), 1);
        assert_eq!(store.bytes().unwrap(), 0);
        // A number is never used again.
        assert_eq!(store.next_number().unwrap(), 7);
        store.append(&[entry("tea", 7)]).unwrap();
        assert_eq!(numbers(&store, "tea", 9, u64::MAX), (vec![7], false));
    }

    #[test]
    fn many_messages_that_are_too_old_are_removed_in_several_steps() {
        let store = store(1_000_000, 1 << 30);
        let count = REMOVED_AT_ONCE as u64 + 5;
        let entries: Vec<Entry> = (1..=count).map(|number| entry("tea", number)).collect();
        store.append(&entries).unwrap();
        assert!(store.expire(u64::MAX).unwrap());
        assert_eq!(numbers(&store, "tea", 9, u64::MAX).0.len(), 5);
        assert!(!store.expire(u64::MAX).unwrap());
        assert_eq!(store.bytes().unwrap(), 0);
    }
}
