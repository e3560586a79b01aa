//! The sending half of a room.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{
    command::{Command, Outgoing, Reply, Waiter},
    handle::{Handle, Shared},
    message::{ALL, HistoryPage, SERVER},
    send_error::SendError,
};

/// What begins a `ref` of the client's own. Raw messages have other ones.
const REFERENCE: &str = "anteroom-client-";

/// A room that an application has joined: it sends. Clones are cheap, and send to the same room.
///
/// Messages are sent in the order of the calls. None of the calls waits: a message is queued, also while there is no
/// connection, or refused with [`SendError::Full`].
#[derive(Clone)]
pub struct Room {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    done: watch::Receiver<bool>,
}

/// A message to the server.
#[derive(Serialize)]
struct Body<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    receiver: &'a str,
    data: T,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
}

/// What [`Room::history`] asks for.
#[derive(Serialize)]
struct HistoryRequest {
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<u64>,
}

/// Writes the `ref` of a number.
pub(super) fn reference(number: u64) -> String {
    format!("{REFERENCE}{number}")
}

/// Reads the number of a `ref` of the client's own.
pub(super) fn number(reference: &serde_json::Value) -> Option<u64> {
    reference.as_str()?.strip_prefix(REFERENCE)?.parse().ok()
}

impl Room {
    pub(super) fn new(
        commands: mpsc::UnboundedSender<Command>,
        shared: Arc<Shared>,
        handle: Arc<Handle>,
        done: watch::Receiver<bool>,
    ) -> Room {
        Room {
            commands,
            shared,
            handle,
            done,
        }
    }

    /// Sends a message without a receipt. An error of the server comes as [`Event::Error`](super::Event::Error).
    ///
    /// `receiver` is a session id, `"all"`, `"user:<name>"` or `"server"`.
    ///
    /// # Errors
    ///
    /// If the message cannot be queued.
    pub fn send(&self, receiver: &str, kind: &str, data: impl Serialize) -> Result<(), SendError> {
        let text = text(kind, receiver, data, None)?;
        self.queue(Message::text(text), None, false)
    }

    /// Sends a message. The future, which need not be awaited for the message to be sent, resolves with the number of
    /// receivers once the message is queued for each of them.
    pub fn send_with_receipt(&self, receiver: &str, kind: &str, data: impl Serialize) -> Receipt {
        self.request(receiver, kind, data, false, Waiter::Receipt)
    }

    /// Sends bytes to a session, or to `"all"`. There is no receipt.
    ///
    /// # Errors
    ///
    /// If the message cannot be queued.
    pub fn send_bytes(&self, receiver: &str, bytes: &[u8]) -> Result<(), SendError> {
        let id = match receiver {
            ALL => Uuid::nil(),
            id => id.parse().map_err(|_| SendError::Receiver)?,
        };
        let mut message = BytesMut::with_capacity(id.as_bytes().len() + bytes.len());
        message.put_slice(id.as_bytes());
        message.put_slice(bytes);
        self.queue(Message::binary(message.freeze()), None, false)
    }

    /// Sets what the others see of the session. A new session that takes the place of a lost one sets it again.
    pub fn set_state(&self, state: impl Serialize) -> Receipt {
        self.request(SERVER, "state", state, true, Waiter::Receipt)
    }

    /// Sends a request to the server whose answer has data: `ping`, `hello`, `address`, …
    ///
    /// The answer is an error if the request cannot be queued, or if the server answers with an error.
    pub fn ask(&self, kind: &str, data: impl Serialize) -> Answer<Box<RawValue>> {
        let answer = match kind {
            "ping" => "pong",
            kind => kind,
        };
        let waiter = |reply| Waiter::Answer(answer.to_owned(), reply);
        self.request(SERVER, kind, data, false, waiter)
    }

    /// Reads what was said to all before the session joined: at most `last` messages (50 if it is `None`), of those
    /// with a number below `before`.
    ///
    /// The answer is an error if the request cannot be queued, or if the server answers with an error: `no_history` if
    /// the room keeps none.
    pub fn history(&self, last: Option<u32>, before: Option<u64>) -> Answer<HistoryPage> {
        let data = HistoryRequest { last, before };
        self.request(SERVER, "history", data, false, Waiter::History)
    }

    /// Sends a text as it is. A `ref` in it must not begin with `anteroom-client-`.
    ///
    /// # Errors
    ///
    /// If the message cannot be queued.
    pub fn send_raw(&self, text: impl Into<String>) -> Result<(), SendError> {
        self.queue(Message::text(text.into()), None, false)
    }

    /// Resolves when the server has taken in all that was sent before, over resumed connections, too.
    ///
    /// # Errors
    ///
    /// If that is unknown, because the room is closed, or because a session was lost with what was sent in it: the first
    /// flush after that fails, and [`Opened`](super::Opened) and the receipts say what was lost.
    pub fn flush(&self) -> impl Future<Output = Result<(), SendError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Flush(reply));
        let shared = self.shared.clone();
        async move {
            let answer = answer.await.unwrap_or_else(|_| Err(shared.closed_error()));
            answer.map(drop)
        }
    }

    /// How many bytes of messages are queued, or sent and not acknowledged.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queued()
    }

    /// Leaves the room, and waits until that is done, which takes some seconds at most. What was sent before and fits
    /// through the connection is sent; [`flush`](Room::flush) waits for that.
    pub async fn leave(&self) {
        self.handle.leaving.send_replace(true);
        // The task has ended if it is gone.
        let _ = self.done.clone().wait_for(|is_done| *is_done).await;
    }

    /// Queues a message whose receipt somebody waits for.
    fn request<T>(
        &self,
        receiver: &str,
        kind: &str,
        data: impl Serialize,
        is_state: bool,
        waiter: impl FnOnce(Reply<T>) -> Waiter,
    ) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        let number = self.shared.next_reference();
        let queued = text(kind, receiver, data, Some(reference(number))).and_then(|text| {
            self.queue(Message::text(text), Some((number, waiter(reply))), is_state)
        });
        Answer {
            queued: queued.err(),
            answer,
            shared: self.shared.clone(),
        }
    }

    fn queue(
        &self,
        message: Message,
        receipt: Option<(u64, Waiter)>,
        is_state: bool,
    ) -> Result<(), SendError> {
        if self.shared.closed.get().is_some() {
            return Err(self.shared.closed_error());
        }
        let reserved = self.shared.reserve(message.len())?;
        let outgoing = Outgoing {
            message,
            reserved,
            receipt,
            is_state,
        };
        let sent = self.commands.send(Command::Send(outgoing));
        sent.map_err(|_| self.shared.closed_error())
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

/// The text of a message.
pub(super) fn text(
    kind: &str,
    receiver: &str,
    data: impl Serialize,
    reference: Option<String>,
) -> Result<String, SendError> {
    let body = Body {
        kind,
        receiver,
        data,
        reference,
    };
    serde_json::to_string(&body).map_err(|error| SendError::Data(error.to_string()))
}

/// The number of receivers of a message, once the server has sent its receipt.
pub type Receipt = Answer<u64>;

/// The answer to a message. It need not be awaited for the message to be sent. It is awaited over resumed connections,
/// and is [`SendError::Lost`] if the session could not be resumed.
#[must_use = "an error would go unnoticed; `send` has no receipt"]
pub struct Answer<T> {
    /// Why the message is not queued.
    queued: Option<SendError>,
    answer: oneshot::Receiver<Result<T, SendError>>,
    shared: Arc<Shared>,
}

impl<T> Answer<T> {
    /// Why the message is not queued, if it is not: [`SendError::Full`], for example.
    pub fn refused(&self) -> Option<&SendError> {
        self.queued.as_ref()
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(error) = self.queued.take() {
            return Poll::Ready(Err(error));
        }
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(self.shared.closed_error())))
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}
