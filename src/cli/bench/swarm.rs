//! The sessions of a measurement.

use std::{
    collections::HashSet,
    future::poll_fn,
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    task::{Poll, ready},
    time::Duration,
};

use anteroom::client::{Connect, Connection, Disconnect, Frame, RoomUrl};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The type of the messages that are measured.
const KIND: &str = "bench";

/// The ids of all sessions of the measurement, once all have joined.
pub(super) type Crew = Arc<OnceLock<HashSet<String>>>;

/// How sessions join.
#[derive(Clone)]
pub(super) struct Entrance {
    pub(super) token: Option<String>,
    pub(super) origin: String,
    pub(super) timeout: Duration,
    /// How many messages of a session may wait to be written.
    pub(super) max_queued: usize,
    pub(super) crew: Crew,
}

/// What a session has to tell.
pub(super) enum News {
    /// A message of the measurement, by its number, and when it arrived.
    Arrived(u64, Instant),
    /// The server has answered with an error.
    Error(String),
    /// The session is lost.
    Lost(Disconnect),
}

/// What has left the process.
#[derive(Clone, Copy, Default)]
pub(super) struct Written {
    pub(super) count: u64,
    pub(super) last: Option<Instant>,
}

/// A message that waits to be written, and where that is counted.
struct Outgoing {
    text: String,
    written: Arc<Mutex<Written>>,
}

/// The rates that `hello` tells. A session over a rate is paced.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pace {
    pub(super) messages_per_second: Option<NonZeroU32>,
    pub(super) bytes_per_second: Option<NonZeroU32>,
}

/// The part of `hello` that is read.
#[derive(Deserialize)]
struct Hello {
    // A proxy or an older server may not tell them.
    #[serde(default)]
    limits: Pace,
}

/// A session that has joined: its task reads all the time.
pub(super) struct Session {
    pub(super) id: String,
    pub(super) pace: Pace,
    outgoing: mpsc::Sender<Outgoing>,
    task: JoinHandle<()>,
}

/// The part of a message that is read.
#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    sender: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    receiver: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    data: &'a serde_json::value::RawValue,
}

impl Session {
    /// Joins a room: the session has joined when the server has answered `hello`. The others see what it is from its
    /// state.
    ///
    /// # Errors
    ///
    /// Why the session has not joined.
    pub(super) async fn join(
        url: RoomUrl,
        entrance: &Entrance,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Session, Disconnect> {
        let mut connect = Connect::to(url)
            .origin(&entrance.origin)
            .timeout(entrance.timeout);
        if let Some(token) = &entrance.token {
            connect = connect.token(token);
        }
        let deadline = Instant::now() + entrance.timeout;
        let mut connection = connect.open().await?;
        let state = json!({"type": "state", "receiver": "server",
            "data": {"name": "anteroom bench", "bench": true}});
        connection.queue(state.to_string());
        connection.queue(r#"{"type":"hello","receiver":"server"}"#);
        let (id, pace) = loop {
            let Frame::Text(text) = connection.next(deadline).await? else {
                continue;
            };
            let message: Incoming<'_> = serde_json::from_str(&text)
                .map_err(|_| Disconnect::Protocol("a message has not the four fields".into()))?;
            if message.kind == "hello" && message.sender == "server" {
                let pace = serde_json::from_str::<Hello>(message.data.get())
                    .map_or_else(|_| Pace::default(), |hello| hello.limits);
                break (message.receiver.unwrap_or_default().into_owned(), pace);
            }
        };
        let (outgoing, messages) = mpsc::channel(entrance.max_queued);
        let task = tokio::spawn(serve(connection, messages, news, entrance.crew.clone()));
        Ok(Session {
            id,
            pace,
            outgoing,
            task,
        })
    }

    /// Queues a message of the measurement to a session. Returns whether there was room for it.
    pub(super) fn send(
        &self,
        receiver: &str,
        number: u64,
        filling: &str,
        written: &Arc<Mutex<Written>>,
    ) -> bool {
        let permit = match self.outgoing.try_reserve() {
            Ok(permit) => permit,
            Err(TrySendError::Full(())) => return false,
            // A session that is lost has told so.
            Err(TrySendError::Closed(())) => return true,
        };
        let text = json!({"type": KIND, "receiver": receiver, "data": [number, filling]});
        permit.send(Outgoing {
            text: text.to_string(),
            written: written.clone(),
        });
        true
    }
}

/// What a session does next.
enum Turn {
    Read(Result<Frame, Disconnect>),
    Send(Option<Outgoing>),
}

/// Sends what is to be sent, and tells what arrives, until the sender is dropped. Then the session leaves.
async fn serve(
    mut connection: Connection,
    mut outgoing: mpsc::Receiver<Outgoing>,
    news: mpsc::UnboundedSender<News>,
    crew: Crew,
) {
    let mut writing: Option<Arc<Mutex<Written>>> = None;
    loop {
        let turn = poll_fn(|cx| {
            // This also writes, and tells when that fails.
            if let Poll::Ready(frame) = connection.poll_next(cx) {
                return Poll::Ready(Turn::Read(frame));
            }
            // One message at a time: the connection's own queue has no bound.
            ready!(connection.poll_flush(cx));
            if let Some(written) = writing.take() {
                let mut written = written.lock();
                written.count += 1;
                written.last = Some(Instant::now());
            }
            outgoing.poll_recv(cx).map(Turn::Send)
        });
        let told = match turn.await {
            Turn::Send(Some(message)) => {
                connection.queue(message.text);
                writing = Some(message.written);
                None
            }
            Turn::Send(None) => break,
            Turn::Read(Ok(Frame::Text(text))) => tell(&text, &crew),
            Turn::Read(Ok(Frame::Binary(_))) => None,
            Turn::Read(Err(why)) => {
                let _ = news.send(News::Lost(why));
                return;
            }
        };
        if let Some(told) = told {
            let _ = news.send(told);
        }
    }
    connection.leave(LEAVE_TIMEOUT).await;
}

/// What a message says about the measurement. The server names the sender, so others in the room cannot pretend that
/// a message has arrived.
fn tell(text: &str, crew: &Crew) -> Option<News> {
    let now = Instant::now();
    let message: Incoming<'_> = serde_json::from_str(text).ok()?;
    match (&*message.kind, &*message.sender) {
        ("error", "server") => {
            let data: Value = serde_json::from_str(message.data.get()).ok()?;
            Some(News::Error(data["code"].as_str()?.into()))
        }
        (KIND, sender) if crew.get().is_some_and(|crew| crew.contains(sender)) => {
            let (number, _): (u64, &str) = serde_json::from_str(message.data.get()).ok()?;
            Some(News::Arrived(number, now))
        }
        _ => None,
    }
}

/// Has all sessions leave, and waits until they have.
pub(super) async fn leave(sessions: Vec<Session>) {
    let tasks = sessions.into_iter().map(|session| {
        drop(session.outgoing);
        session.task
    });
    let _ = timeout(2 * LEAVE_TIMEOUT, join_all(tasks)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_of_the_measurement_tell_of_arrivals() {
        let crew = Crew::default();
        let text = r#"{"type":"bench","sender":"a","receiver":"b","data":[7,"x"]}"#;
        assert!(tell(text, &crew).is_none());
        assert!(crew.set(HashSet::from(["a".into()])).is_ok());
        assert!(matches!(tell(text, &crew), Some(News::Arrived(7, _))));
        assert!(tell(&text.replace(r#""a""#, r#""c""#), &crew).is_none());
    }
}
