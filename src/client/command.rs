//! What the application asks of a room's task.

use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Message;

use super::{message::HistoryPage, send_error::SendError};

/// What the application asks of a room's task.
pub(super) enum Command {
    /// A message to send.
    Send(Outgoing),
    /// Resolves when the server has taken in all that was sent before.
    Flush(Reply<u64>),
}

/// A message to send.
pub(super) struct Outgoing {
    pub(super) message: Message,
    /// What it takes of the queue.
    pub(super) reserved: usize,
    /// The number in its `ref`, and who waits for the answer.
    pub(super) receipt: Option<(u64, Waiter)>,
    /// Whether it sets the session's state.
    pub(super) is_state: bool,
}

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, SendError>>;

/// Who waits for the receipt of a message.
pub(super) enum Waiter {
    /// The count of receivers is the answer.
    Receipt(Reply<u64>),
    /// The answer is the message of this type that comes before the receipt.
    Answer(String, Reply<Box<RawValue>>),
    History(Reply<HistoryPage>),
    /// A `ping` of the client's own: all before it has arrived.
    Probe(Vec<Reply<u64>>),
    /// A state that is set once more.
    Nobody,
}

impl Waiter {
    /// Tells that there is no answer.
    pub(super) fn fail(self, error: SendError) {
        // Nobody may wait any longer.
        match self {
            Waiter::Receipt(reply) => _ = reply.send(Err(error)),
            Waiter::Answer(_, reply) => _ = reply.send(Err(error)),
            Waiter::History(reply) => _ = reply.send(Err(error)),
            Waiter::Probe(replies) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
            Waiter::Nobody => {}
        }
    }
}
