//! Pure data: the progress of a snapshot that this node sends.
//!
//! A snapshot lists this node's sessions in a room for one other node. It covers the ids in order, one
//! range per chunk. Each chunk is true for its range when it is sent, and events of the room are sent
//! between the chunks. So neither the room nor another sender has to wait, however long the snapshot is.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::{
    cluster::{PART_BYTES, SessionRecord},
    protocol::SessionId,
};

/// A snapshot that this node sends to one other node.
#[derive(Default)]
pub(super) struct SnapshotSender {
    /// Ids that no chunk has covered yet, in descending order, so that the next one is the last.
    /// `None` before the first chunk.
    remaining: Option<Vec<SessionId>>,
    /// The end of the last range.
    until: Option<SessionId>,
    /// Sessions announced ahead of their chunk, because they sent something.
    introduced: Mutex<BTreeSet<SessionId>>,
}

/// The sessions of one chunk, and the range of ids that it covers.
pub(super) struct SnapshotRange {
    /// The range begins after this id; `None` for the first range.
    pub(super) after: Option<SessionId>,
    /// The range ends with this id; `None` for the last range.
    pub(super) until: Option<SessionId>,
    pub(super) members: Vec<SessionRecord>,
}

impl SnapshotSender {
    /// Whether a session that sends something must be announced first, which it is once. The receiver
    /// ignores messages of sessions that it does not know.
    pub(super) fn must_introduce(&self, id: SessionId) -> bool {
        let is_listed = |ids: &Vec<SessionId>| ids.binary_search_by(|it| id.cmp(it)).is_ok();
        self.remaining.as_ref().is_none_or(is_listed) && self.introduced.lock().insert(id)
    }

    /// The next chunk. `ids` gives all ids of the snapshot, and is called for the first chunk only.
    /// `record` describes a session, unless it has left since.
    pub(super) fn next_range(
        &mut self,
        ids: impl FnOnce() -> Vec<SessionId>,
        record: impl Fn(SessionId) -> Option<SessionRecord>,
    ) -> SnapshotRange {
        let remaining = self.remaining.get_or_insert_with(|| {
            let mut ids = ids();
            ids.sort_unstable_by(|a, b| b.cmp(a));
            ids
        });
        let after = self.until;
        let mut members = Vec::new();
        let mut bytes = 0;
        while bytes < PART_BYTES
            && let Some(id) = remaining.pop()
        {
            self.until = Some(id);
            if let Some(record) = record(id) {
                bytes += record.len();
                members.push(record);
            }
        }
        SnapshotRange {
            after,
            until: self.until.filter(|_| !remaining.is_empty()),
            members,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::value::RawValue;

    use super::*;

    /// A record so large that three fill a chunk.
    fn record(id: SessionId) -> SessionRecord {
        let data = format!("\"{}\"", "x".repeat(PART_BYTES / 3));
        SessionRecord {
            data: Some(RawValue::from_string(data).unwrap()),
            ..SessionRecord::first(id)
        }
    }

    #[test]
    fn the_ranges_follow_each_other_and_list_each_session_once() {
        let sessions: BTreeMap<SessionId, SessionRecord> = (0..10)
            .map(|_| SessionId::random())
            .map(|id| (id, record(id)))
            .collect();
        let ids = || sessions.keys().rev().copied().collect();
        let mut sender = SnapshotSender::default();
        let (mut listed, mut until) = (Vec::new(), None);
        loop {
            let range = sender.next_range(ids, |id| sessions.get(&id).cloned());
            assert_eq!(range.after, until);
            listed.extend(range.members.iter().map(|record| record.id));
            until = range.until;
            match until {
                Some(until) => assert_eq!(listed.last(), Some(&until)),
                None => break,
            }
        }
        assert!(listed.iter().eq(sessions.keys()));
    }

    #[test]
    fn a_session_is_introduced_once_and_only_before_its_chunk() {
        let mut ids: Vec<SessionId> = (0..4).map(|_| SessionId::random()).collect();
        ids.sort_unstable();
        let mut sender = SnapshotSender::default();
        assert!(sender.must_introduce(ids[0]));
        assert!(!sender.must_introduce(ids[0]));
        let range = sender.next_range(|| ids.clone(), |id| Some(record(id)));
        assert_eq!((range.members.len(), range.until), (3, Some(ids[2])));
        assert!(!sender.must_introduce(ids[1]));
        assert!(sender.must_introduce(ids[3]));
        assert!(!sender.must_introduce(ids[3]));
    }
}
