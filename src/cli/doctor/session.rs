//! A session of the doctor: a client as any other.

use std::{
    fmt,
    future::pending,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use anteroom::client::{Connection, Disconnect, Frame, Pings, RoomUrl};

use http::{HeaderName, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    connection::Connector, http::Answer, report::Finding, server_url::encode, upgrade::upgrade,
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
    pub(super) target: RoomUrl,
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
        let room = self.target.with_room(&self.room);
        let path = format!("{}?{query}{}", room.path(), token.unwrap_or_default());
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

impl From<Disconnect> for Lost {
    fn from(why: Disconnect) -> Lost {
        match why {
            Disconnect::Closed { code, reason } => Lost::Closed(code, reason),
            Disconnect::Silent(time) => Lost::Silent(time),
            Disconnect::Cut(reason) | Disconnect::Protocol(reason) => Lost::Cut(reason),
            other => Lost::Cut(other.to_string()),
        }
    }
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

/// An open session.
pub(super) struct Session {
    connection: Connection<TokioIo<Upgraded>>,
    /// The address of this machine that the connection has.
    pub(super) local: IpAddr,
    pub(super) date: Option<(String, SystemTime)>,
    pub(super) id: String,
    pub(super) hello: Hello,
}

impl Session {
    async fn over(
        upgraded: Upgraded,
        local: IpAddr,
        date: Option<(String, SystemTime)>,
    ) -> Session {
        let io = TokioIo::new(upgraded);
        Session {
            connection: Connection::over(io, MAX_MESSAGE_BYTES).await,
            local,
            date,
            id: String::new(),
            hello: Hello::default(),
        }
    }

    /// How many messages of this session have arrived.
    pub(super) fn received(&self) -> u64 {
        self.connection.received()
    }

    /// The pings of the server that have arrived.
    pub(super) fn pings(&self) -> Pings {
        self.connection.pings()
    }

    /// Counts pings from zero.
    pub(super) fn reset_pings(&mut self) {
        self.connection.reset_pings();
    }

    pub(super) async fn send(&mut self, message: &Value) -> Result<(), Lost> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let sent = self.connection.send(message.to_string(), deadline).await;
        sent.map_err(Lost::from)
    }

    /// The next message of the server or of another session.
    pub(super) async fn next(&mut self, deadline: Instant) -> Result<Value, Lost> {
        loop {
            if let Frame::Text(text) = self.connection.next(deadline).await? {
                let message = serde_json::from_str(&text);
                return message.map_err(|_| Lost::Cut("a message is not JSON".into()));
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
    pub(super) async fn leave(self) {
        self.connection.leave(ANSWER_TIMEOUT).await;
    }
}
