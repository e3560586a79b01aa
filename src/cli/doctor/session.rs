//! A session of the doctor: a client as any other.

use std::{
    fmt,
    future::pending,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    connection::Connector,
    http::Answer,
    report::Finding,
    target::{Target, encode},
    upgrade::upgrade,
};

/// How long an answer of the server may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest message that is accepted from the server. The longest that the doctor asks for is 64 KiB; a `hello`
/// of a room with many sessions is longer.
const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;

/// How long a session stays while the ICE servers are checked: longer than that takes.
const MAX_STAY: Duration = Duration::from_secs(3600);

/// The server as receiver, and as sender of its answers. No session has this id.
pub(super) const SERVER: &str = "server";

/// Where sessions are opened, and as whom.
pub(super) struct Endpoint {
    pub(super) connector: Connector,
    pub(super) target: Target,
    pub(super) room: String,
    /// Whether others may be in the room, because the token admits to no other.
    pub(super) is_shared: bool,
    pub(super) token: Option<String>,
    pub(super) origin: String,
}

impl Endpoint {
    /// Opens a connection to the room, with additional parts of the query and headers.
    ///
    /// # Errors
    ///
    /// The finding for a handshake that fails, with the answer if there is one.
    pub(super) async fn open(
        &self,
        query: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Session, (Finding, Option<Answer>)> {
        let token = self
            .token
            .as_deref()
            .map(|token| format!("&token={}", encode(token)));
        let room = self.target.room_path(&self.room);
        let path = format!("{room}?{query}{}", token.unwrap_or_default());
        let mut answer =
            upgrade(&self.connector, &self.target, &path, &self.origin, headers).await?;
        let date = answer.date();
        let Some(upgraded) = answer.upgraded.take() else {
            return Err((Finding::failed("no connection", ""), Some(answer)));
        };
        Ok(Session::over(upgraded, answer.local, date).await)
    }

    /// Opens a session, and learns its id.
    pub(super) async fn join(&self) -> Result<Session, String> {
        let opened = self.open("", &[]).await;
        let mut session = opened.map_err(|(finding, _)| finding.detail)?;
        match session.say_hello().await {
            Ok(()) => Ok(session),
            Err(lost) => {
                session.leave().await;
                Err(lost.to_string())
            }
        }
    }
}

/// The part of `hello` that the doctor reads.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Hello {
    pub(super) room: String,
    pub(super) ice_servers: Vec<IceServer>,
    pub(super) resume: Option<Resume>,
    pub(super) limits: Limits,
}

/// One of the ICE servers.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct IceServer {
    pub(super) urls: Vec<String>,
    pub(super) username: Option<String>,
    pub(super) credential: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Resume {
    pub(super) token: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Limits {
    pub(super) message_bytes: Option<usize>,
    pub(super) bytes_per_second: Option<usize>,
}

/// Why no message comes.
#[derive(Debug)]
pub(super) enum Lost {
    /// A Close frame with this code and reason.
    Closed(u16, String),
    /// The connection ended without one.
    Cut(String),
    /// Nothing came in time.
    Silent(Duration),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Closed(code, reason) if reason.is_empty() => {
                write!(f, "the connection was closed ({code})")
            }
            Lost::Closed(code, reason) => write!(f, "the connection was closed ({code}: {reason})"),
            Lost::Cut(reason) => write!(f, "the connection was cut: {reason}"),
            Lost::Silent(time) => write!(f, "no answer in {:.0?}", time),
        }
    }
}

/// The pings of the server that have arrived.
#[derive(Default)]
pub(super) struct Pings {
    /// When the first and the last one arrived.
    pub(super) ends: Option<(Instant, Instant)>,
    pub(super) count: u32,
}

impl Pings {
    fn add(&mut self, now: Instant) {
        let first = self.ends.map_or(now, |(first, _)| first);
        self.ends = Some((first, now));
        self.count = self.count.saturating_add(1);
    }
}

/// An open session.
pub(super) struct Session {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    /// The address of this machine that the connection has.
    pub(super) local: IpAddr,
    pub(super) date: Option<(String, SystemTime)>,
    pub(super) id: String,
    pub(super) hello: Hello,
    /// How many messages of this session have arrived.
    pub(super) received: u64,
    pub(super) pings: Pings,
}

impl Session {
    async fn over(
        upgraded: Upgraded,
        local: IpAddr,
        date: Option<(String, SystemTime)>,
    ) -> Session {
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE_BYTES));
        let io = TokioIo::new(upgraded);
        Session {
            socket: WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await,
            local,
            date,
            id: String::new(),
            hello: Hello::default(),
            received: 0,
            pings: Pings::default(),
        }
    }

    pub(super) async fn send(&mut self, message: &Value) -> Result<(), Lost> {
        let sent = self.socket.send(Message::text(message.to_string()));
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        match timeout_at(deadline, sent).await {
            Ok(Ok(())) => Ok(()),
            // The reason may be a Close frame that has arrived already.
            Ok(Err(_)) => match self.next(deadline).await {
                Ok(_) => Err(Lost::Cut("it takes no more messages".into())),
                Err(lost) => Err(lost),
            },
            Err(_) => Err(Lost::Silent(ANSWER_TIMEOUT)),
        }
    }

    /// The next message of the server or of another session.
    pub(super) async fn next(&mut self, deadline: Instant) -> Result<Value, Lost> {
        let began = Instant::now();
        loop {
            let Ok(item) = timeout_at(deadline, self.socket.next()).await else {
                return Err(Lost::Silent(deadline - began));
            };
            match item {
                Some(Ok(Message::Text(text))) => {
                    self.received += 1;
                    let message = serde_json::from_str(&text);
                    return message.map_err(|_| Lost::Cut("a message is not JSON".into()));
                }
                Some(Ok(Message::Binary(_))) => self.received += 1,
                Some(Ok(Message::Ping(_))) => self.pings.add(Instant::now()),
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.map(|it| (it.code.into(), it.reason.to_string()));
                    let (code, reason) = frame.unwrap_or((1005, String::new()));
                    return Err(Lost::Closed(code, reason));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Lost::Cut(error.to_string())),
                None => return Err(Lost::Cut("the connection ended".into())),
            }
        }
    }

    /// The next message that has one of these senders and its type. Other sessions send messages of any type.
    pub(super) async fn next_of(
        &mut self,
        expected: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Value, Lost> {
        loop {
            let message = self.next(deadline).await?;
            // Only servers of another kind send messages without a sender.
            let is_expected = expected.iter().any(|(sender, kind)| {
                message["type"] == *kind
                    && message["sender"].as_str().is_none_or(|it| it == *sender)
            });
            if is_expected {
                return Ok(message);
            }
        }
    }

    /// Asks the server. The answer is its next message of this type, or an error.
    pub(super) async fn ask(
        &mut self,
        kind: &str,
        data: Value,
        answer: &str,
    ) -> Result<Value, Lost> {
        self.send(&json!({ "type": kind, "receiver": SERVER, "data": data }))
            .await?;
        let expected = [(SERVER, answer), (SERVER, "error")];
        self.next_of(&expected, Instant::now() + ANSWER_TIMEOUT)
            .await
    }

    /// Learns the session's id and the rest of `hello`. The session can be resumed from now on.
    pub(super) async fn say_hello(&mut self) -> Result<(), Lost> {
        let answer = self.ask("hello", json!({ "resume": true }), "hello").await;
        self.learn(&answer?);
        Ok(())
    }

    /// Waits once more for the answer to `hello`.
    pub(super) async fn hear_hello(&mut self) -> Result<(), Lost> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let answer = self.next_of(&[(SERVER, "hello")], deadline).await;
        self.learn(&answer?);
        Ok(())
    }

    fn learn(&mut self, answer: &Value) {
        self.id = answer["receiver"].as_str().unwrap_or_default().into();
        self.hello = Hello::deserialize(&answer["data"]).unwrap_or_default();
    }

    /// Answers pings, and does not return.
    pub(super) async fn stay(&mut self) {
        let end = Instant::now() + MAX_STAY;
        while self.next(end).await.is_ok() {}
        pending().await
    }

    /// Leaves the room.
    pub(super) async fn leave(mut self) {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        if timeout_at(deadline, self.socket.close(None)).await.is_ok() {
            while self.next(deadline).await.is_ok() {}
        }
    }
}
