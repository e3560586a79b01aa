//! The sessions of a measurement.

use std::{future::poll_fn, task::Poll, time::Duration};

use anteroom::client::{Connect, Connection, Disconnect, Frame, RoomUrl};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The type of the messages that are measured.
const KIND: &str = "bench";

/// How sessions join.
#[derive(Clone)]
pub(super) struct Entrance {
    pub(super) token: Option<String>,
    pub(super) origin: String,
    pub(super) timeout: Duration,
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

/// A session that has joined: its task reads all the time.
pub(super) struct Session {
    pub(super) id: String,
    outgoing: mpsc::UnboundedSender<String>,
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
        let id = loop {
            let Frame::Text(text) = connection.next(deadline).await? else {
                continue;
            };
            let message: Incoming<'_> = serde_json::from_str(&text)
                .map_err(|_| Disconnect::Protocol("a message has not the four fields".into()))?;
            if message.kind == "hello" && message.sender == "server" {
                break message.receiver.unwrap_or_default().into_owned();
            }
        };
        let (outgoing, messages) = mpsc::unbounded_channel();
        let task = tokio::spawn(serve(connection, messages, news));
        Ok(Session { id, outgoing, task })
    }

    /// Sends a message of the measurement to a session.
    pub(super) fn send(&self, receiver: &str, number: u64, filling: &str) {
        let text = json!({"type": KIND, "receiver": receiver, "data": [number, filling]});
        // A session that is lost has told so.
        let _ = self.outgoing.send(text.to_string());
    }
}

/// Sends what is to be sent, and tells what arrives, until the sender is dropped. Then the session leaves.
async fn serve(
    mut connection: Connection,
    mut outgoing: mpsc::UnboundedReceiver<String>,
    news: mpsc::UnboundedSender<News>,
) {
    loop {
        tokio::select! {
            biased;
            text = outgoing.recv() => match text {
                Some(text) => {
                    connection.queue(text);
                    // Written at once, also while messages arrive.
                    let _ = poll_fn(|cx| Poll::Ready(connection.poll_flush(cx))).await;
                }
                None => break,
            },
            frame = poll_fn(|cx| connection.poll_next(cx)) => {
                let told = match frame {
                    Ok(Frame::Text(text)) => tell(&text),
                    Ok(Frame::Binary(_)) => None,
                    Err(why) => {
                        let _ = news.send(News::Lost(why));
                        return;
                    }
                };
                if let Some(told) = told {
                    let _ = news.send(told);
                }
            }
        }
    }
    connection.leave(LEAVE_TIMEOUT).await;
}

/// What a message says about the measurement.
fn tell(text: &str) -> Option<News> {
    let now = Instant::now();
    let message: Incoming<'_> = serde_json::from_str(text).ok()?;
    match (&*message.kind, &*message.sender) {
        ("error", "server") => {
            let data: Value = serde_json::from_str(message.data.get()).ok()?;
            Some(News::Error(data["code"].as_str()?.into()))
        }
        (KIND, _) => {
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
