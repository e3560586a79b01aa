//! Pure data: the progress of a snapshot that another node sends.

use std::{collections::BTreeSet, mem};

use crate::{cluster::SnapshotChunk, protocol::SessionId};

/// A snapshot that has begun and not ended.
pub(super) struct SnapshotReceiver {
    /// The end of the last range that has come.
    until: Option<SessionId>,
    /// Sessions of the node that were known when the snapshot began, and that no chunk has covered yet.
    unlisted: BTreeSet<SessionId>,
    /// Whether an event of the room was lost while the snapshot came.
    has_gap: bool,
}

/// What follows from a chunk.
pub(super) struct ChunkOutcome {
    /// Known sessions in the chunk's range that it does not list: they have left.
    pub(super) gone: Vec<SessionId>,
    /// Whether the snapshot has ended and nothing is missing.
    pub(super) is_complete: bool,
}

impl SnapshotReceiver {
    /// Takes in a chunk. Returns its outcome, and the receiver if more chunks follow. `known` are the
    /// sessions of the node that this node knows; only the first chunk needs them. Returns `None` if the
    /// chunk does not continue `receiver`: a chunk was lost.
    pub(super) fn receive(
        receiver: Option<SnapshotReceiver>,
        chunk: &SnapshotChunk,
        known: Vec<SessionId>,
    ) -> Option<(Option<SnapshotReceiver>, ChunkOutcome)> {
        let mut receiver = match (receiver, chunk.after) {
            (_, None) => SnapshotReceiver {
                until: None,
                unlisted: known.into_iter().collect(),
                has_gap: false,
            },
            (Some(receiver), after) if receiver.until == after => receiver,
            _ => return None,
        };
        let rest = match chunk.until {
            // `split_off` leaves what is smaller than `until`, but the range includes `until`.
            Some(until) => {
                let mut rest = receiver.unlisted.split_off(&until);
                if rest.remove(&until) {
                    receiver.unlisted.insert(until);
                }
                rest
            }
            None => BTreeSet::new(),
        };
        let mut gone = mem::replace(&mut receiver.unlisted, rest);
        for member in &chunk.members {
            gone.remove(&member.id);
        }
        let outcome = ChunkOutcome {
            gone: gone.into_iter().collect(),
            is_complete: chunk.until.is_none() && !receiver.has_gap,
        };
        let receiver = chunk.until.is_some().then(|| {
            receiver.until = chunk.until;
            receiver
        });
        Some((receiver, outcome))
    }

    /// Notes that an event of the room was lost, so that the snapshot does not count as complete.
    pub(super) fn note_gap(&mut self) {
        self.has_gap = true;
    }
}
