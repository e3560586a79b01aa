//! A client without a WebSocket: server-sent events, long polling, and POST requests.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{answer::Answer, raw::Raw, time::within_deadline};

/// The answer with server-sent events, and what is needed to send.
pub struct EventStream {
    raw: Raw,
    address: SocketAddr,
    /// `/room/` and the room's name.
    path: String,
    /// What is received and not read.
    received: Vec<u8>,
    pub token: String,
    pub id: String,
    /// How many messages of the session have come.
    pub count: u64,
    /// How many messages the session has sent.
    pub sent: u64,
    /// How many comments have come.
    pub comments: usize,
}

/// A server-sent event.
#[derive(Debug)]
pub struct ServerEvent {
    pub kind: String,
    pub id: Option<u64>,
    pub data: Value,
}

/// Sends a request on a new connection; returns the answer.
pub async fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &str,
    body: &[u8],
) -> Answer {
    let length = match method {
        "POST" => format!("Content-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    let mut raw = Raw::connect_to(address).await;
    let head = format!("{method} {target} HTTP/1.0\r\nHost: {address}\r\n{headers}{length}\r\n");
    raw.write([head.as_bytes(), body].concat()).await;
    let head = raw.read_head().await.to_ascii_lowercase();
    let body = String::from_utf8(raw.read_to_end().await).unwrap();
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body,
    }
}

/// Polls once.
pub async fn poll(address: SocketAddr, target: &str) -> Value {
    let answer = request(address, "GET", target, "Accept: application/json\r\n", b"").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("content-type: application/json\r\n"));
    answer.json()
}

impl EventStream {
    /// Joins `room`, and learns the session's id.
    pub async fn join(address: SocketAddr, room: &str) -> EventStream {
        let mut stream = EventStream::open(address, &format!("/room/{room}"), "").await;
        stream.learn_token().await;
        stream
            .send(json!({"type": "hello", "receiver": "server"}))
            .await;
        // Other sessions may join between this session's join and the answer.
        let hello = loop {
            let message = stream.next().await;
            if message["type"] == "hello" {
                break message;
            }
        };
        stream.id = hello["receiver"].as_str().unwrap().into();
        stream
    }

    /// Asks for a stream.
    pub async fn open(address: SocketAddr, target: &str, headers: &str) -> EventStream {
        let mut raw = Raw::connect_to(address).await;
        raw.write(format!(
            "GET {target} HTTP/1.0\r\nHost: {address}\r\nAccept: text/event-stream\r\n{headers}\r\n"
        ))
        .await;
        let head = raw.read_head().await.to_ascii_lowercase();
        assert_eq!(&head[9..12], "200", "{head}");
        assert!(head.contains("content-type: text/event-stream\r\n"));
        let (path, _) = target.split_once('?').unwrap_or((target, ""));
        EventStream {
            raw,
            address,
            path: path.into(),
            received: Vec::new(),
            token: String::new(),
            id: String::new(),
            count: 0,
            sent: 0,
            comments: 0,
        }
    }

    /// The first event must be `session`.
    pub async fn learn_token(&mut self) {
        let session = self.event().await;
        assert_eq!((&*session.kind, session.id), ("session", None));
        self.token = session.data["token"].as_str().unwrap().into();
    }

    /// Resumes the session of this stream, at a server that may be another.
    pub async fn resume(&mut self, address: SocketAddr) {
        let target = format!(
            "{}?resume={}&received={}",
            self.path, self.token, self.count
        );
        let resumed = EventStream::open(address, &target, "").await;
        self.address = resumed.address;
        self.raw = resumed.raw;
        self.received = Vec::new();
    }

    /// The path and query for a request about the session.
    pub fn target(&self) -> String {
        format!("{}?resume={}", self.path, self.token)
    }

    /// Posts messages, a line each, that come after the first `before`.
    pub async fn post(&self, before: u64, lines: &[u8]) -> Answer {
        self.post_to(self.address, before, lines).await
    }

    /// Posts messages to a server that may be another.
    pub async fn post_to(&self, address: SocketAddr, before: u64, lines: &[u8]) -> Answer {
        let target = format!("{}&sent={before}", self.target());
        request(address, "POST", &target, "", lines).await
    }

    /// Sends a message, which must be taken in.
    pub async fn send(&mut self, message: Value) {
        let answer = self.post(self.sent, message.to_string().as_bytes()).await;
        self.sent += 1;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json(), json!({"received": self.sent}));
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next_event(&mut self) -> Option<ServerEvent> {
        within_deadline("an event", async {
            loop {
                while let Some(end) = self.received.windows(2).position(|it| it == b"\n\n") {
                    let block: Vec<u8> = self.received.drain(..end + 2).collect();
                    let block = String::from_utf8(block).unwrap();
                    if block == ":\n\n" {
                        self.comments += 1;
                        continue;
                    }
                    return Some(parse(&block));
                }
                if self.raw.stream.read_buf(&mut self.received).await.ok()? == 0 {
                    return None;
                }
            }
        })
        .await
    }

    /// The next event.
    pub async fn event(&mut self) -> ServerEvent {
        self.next_event().await.expect("the stream has ended")
    }

    /// The next message, which must have the next number, unless it is `resumed`.
    pub async fn next(&mut self) -> Value {
        let event = self.event().await;
        assert_eq!(event.kind, "message", "{event:?}");
        if event.data["type"] != "resumed" {
            self.count += 1;
            assert_eq!(event.id, Some(self.count), "{event:?}");
        } else {
            assert_eq!(event.id, None);
        }
        event.data
    }

    /// The next event must be `close`, and the last one; returns its code and reason.
    pub async fn expect_close(&mut self) -> (u16, String) {
        loop {
            let event = self.event().await;
            if event.kind == "close" {
                assert!(self.next_event().await.is_none());
                let code = event.data["code"].as_u64().unwrap() as u16;
                return (code, event.data["reason"].as_str().unwrap().into());
            }
        }
    }

    /// Loses the connection.
    pub async fn lose(&mut self) {
        self.raw = Raw::connect_to(self.address).await;
        self.received = Vec::new();
    }
}

fn parse(block: &str) -> ServerEvent {
    let mut event = ServerEvent {
        kind: "message".into(),
        id: None,
        data: Value::Null,
    };
    let mut data = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(": ").unwrap();
        match field {
            "event" => event.kind = value.into(),
            "id" => event.id = Some(value.parse().unwrap()),
            "data" => data.push(value),
            other => panic!("a field {other}"),
        }
    }
    event.data = serde_json::from_str(&data.join("\n")).unwrap();
    event
}
