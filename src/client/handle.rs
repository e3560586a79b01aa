//! What the halves of a room share with its task.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::watch;

use super::{disconnect::Disconnect, send_error::SendError};

/// What a queued message takes besides its bytes.
const MESSAGE_BYTES: usize = 64;

/// Held by both halves of a room: the task leaves the room when it is dropped.
pub(super) struct Handle {
    /// `true` asks the task to leave.
    pub(super) leaving: watch::Sender<bool>,
}

/// What the task and the application both read and write.
pub(super) struct Shared {
    /// The bytes of messages that are queued, or sent and not acknowledged, and their limit.
    queued: AtomicUsize,
    limit: usize,
    /// The longest message that the server accepts, once it is known.
    message_limit: AtomicUsize,
    last_reference: AtomicU64,
    /// Why the room is closed.
    pub(super) closed: OnceLock<Disconnect>,
}

impl Shared {
    pub(super) fn new(limit: usize) -> Shared {
        Shared {
            queued: AtomicUsize::new(0),
            limit,
            message_limit: AtomicUsize::new(usize::MAX),
            last_reference: AtomicU64::new(0),
            closed: OnceLock::new(),
        }
    }

    /// A number for a receipt.
    pub(super) fn next_reference(&self) -> u64 {
        self.last_reference.fetch_add(1, SeqCst) + 1
    }

    /// Takes room for a message. Returns how much, for [`free`](Shared::free).
    pub(super) fn reserve(&self, bytes: usize) -> Result<usize, SendError> {
        self.check_length(bytes)?;
        let longest = self.limit.saturating_sub(MESSAGE_BYTES);
        if bytes > longest {
            return Err(SendError::TooLarge {
                bytes,
                limit: longest,
            });
        }
        let bytes = bytes + MESSAGE_BYTES;
        let update = |queued: usize| (queued + bytes <= self.limit).then_some(queued + bytes);
        match self.queued.fetch_update(SeqCst, SeqCst, update) {
            Ok(_) => Ok(bytes),
            Err(_) => Err(SendError::Full),
        }
    }

    pub(super) fn check_length(&self, bytes: usize) -> Result<(), SendError> {
        let limit = self.message_limit.load(SeqCst);
        match bytes <= limit {
            true => Ok(()),
            false => Err(SendError::TooLarge { bytes, limit }),
        }
    }

    pub(super) fn free(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, SeqCst);
    }

    pub(super) fn queued(&self) -> usize {
        self.queued.load(SeqCst)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn set_message_limit(&self, bytes: Option<usize>) {
        self.message_limit
            .store(bytes.unwrap_or(usize::MAX), SeqCst);
    }

    /// The error of a message that comes too late.
    pub(super) fn closed_error(&self) -> SendError {
        SendError::Closed(self.closed.get().cloned().unwrap_or(Disconnect::Left))
    }
}
