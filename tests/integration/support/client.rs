//! A WebSocket client of the server under test.

use std::net::SocketAddr;

use anteroom::client::{Connection, Disconnect, Frame};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

use super::{
    raw::Raw,
    server::RunningServer,
    time::{DEADLINE, within_deadline},
};

/// A client made of the connections of `anteroom::client`, and its session. What a client does not send goes through
/// the socket below.
pub struct Client<S = TcpStream> {
    /// The id of the session; empty until the client learns it.
    pub id: String,
    connection: Connection<S>,
}

impl Client {
    /// Joins `room` and learns the session's id.
    pub async fn join(server: &impl RunningServer, room: &str) -> Client {
        Client::join_with_peers(server, room).await.0
    }

    /// Joins `room`. Also returns the ids of the sessions that were in the room before.
    pub async fn join_with_peers(server: &impl RunningServer, room: &str) -> (Client, Vec<String>) {
        let mut client = Client::connect(server.address(), &format!("/room/{room}")).await;
        let hello = client.hello().await;
        client.id = hello["receiver"].as_str().unwrap().into();
        let peers = hello["data"]["peers"].as_array().unwrap().iter();
        let peers = peers
            .map(|peer| peer["id"].as_str().unwrap().into())
            .collect();
        (client, peers)
    }

    /// Connects and upgrades. The session's id is not known yet.
    pub async fn connect(address: SocketAddr, path: &str) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        let request = format!("ws://{address}{path}")
            .into_client_request()
            .unwrap();
        let config = WebSocketConfig::default().read_buffer_size(4096);
        let (socket, _) = within_deadline(
            "the upgrade",
            client_async_with_config(request, stream, Some(config)),
        )
        .await
        .unwrap();
        Client::over(socket)
    }

    /// The TCP connection, to send what tungstenite would not send, or to lose it.
    pub fn into_raw(self) -> Raw {
        Raw {
            stream: self.connection.into_stream(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A client on an upgraded connection. The session's id is not known yet.
    pub fn over(socket: WebSocketStream<S>) -> Client<S> {
        Client {
            id: String::new(),
            connection: Connection::of_socket(socket),
        }
    }

    /// The WebSocket below.
    pub fn socket(&mut self) -> &mut WebSocketStream<S> {
        self.connection.socket()
    }

    /// The stream below.
    pub fn into_stream(self) -> S {
        self.connection.into_stream()
    }

    /// Sends `hello`; returns the answer. Skips the messages before it.
    pub async fn hello(&mut self) -> Value {
        self.send(json!({"type": "hello", "receiver": "server"}))
            .await;
        // Other sessions may join between this session's join and the answer.
        loop {
            let message = self.next().await;
            if message["type"] == "hello" {
                return message;
            }
        }
    }

    /// Sends `hello` and asks for a resume token, which it returns. Learns the session's id. The answer
    /// must be the next message.
    pub async fn ask_for_resume_token(&mut self) -> String {
        self.send(json!({"type": "hello", "receiver": "server", "data": {"resume": true}}))
            .await;
        let hello = self.next().await;
        assert_eq!(hello["type"], "hello", "{hello}");
        self.id = hello["receiver"].as_str().unwrap().into();
        hello["data"]["resume"]["token"].as_str().unwrap().into()
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends exactly this text.
    pub async fn send_text(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        self.connection.send(text, deadline).await.unwrap();
    }

    /// Sends a frame.
    pub async fn send_frame(&mut self, frame: Message) {
        within_deadline("sending", self.connection.socket().send(frame))
            .await
            .unwrap();
    }

    /// The next frame, or why there is none. tungstenite answers pings meanwhile.
    pub async fn next_frame(&mut self) -> Result<Message, tungstenite::Error> {
        // After an error, also one of sending, the stream ends.
        within_deadline("a frame", self.connection.socket().next())
            .await
            .unwrap_or(Err(tungstenite::Error::ConnectionClosed))
    }

    /// The next message, or why the connection has ended. Pings, which come again and again, do not extend the time
    /// limit.
    async fn next_message(&mut self) -> Result<String, Disconnect> {
        match self.connection.next(Instant::now() + DEADLINE).await? {
            Frame::Text(text) => Ok(text),
            Frame::Binary(bytes) => panic!("expected text, got {bytes:?}"),
        }
    }

    /// The text of the next message.
    pub async fn next_text(&mut self) -> String {
        let next = self.next_message().await;
        next.unwrap_or_else(|why| panic!("expected a message, but {why}"))
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).unwrap()
    }

    /// The next message must have exactly this text.
    pub async fn expect_text(&mut self, text: &str) {
        assert_eq!(self.next_text().await, text);
    }

    /// The next message must be the `new` of this session.
    pub async fn expect_new(&mut self, id: &str) {
        let new = format!(r#"{{"type":"new","sender":"{id}","receiver":"all","data":null}}"#);
        self.expect_text(&new).await;
    }

    /// The next message must be a `new`, of any session.
    pub async fn expect_any_new(&mut self) {
        assert_eq!(self.next().await["type"], "new");
    }

    /// The next message must be the `close` of this session.
    pub async fn expect_left(&mut self, id: &str) {
        let close = format!(r#"{{"type":"close","sender":"{id}","receiver":null,"data":null}}"#);
        self.expect_text(&close).await;
    }

    /// The next message must be an error with this code; returns its data.
    pub async fn expect_error(&mut self, code: &str) -> Value {
        let error = self.next().await;
        assert_eq!(error["type"], "error", "{error}");
        assert_eq!(error["sender"], "server");
        assert_eq!(error["receiver"], self.id.as_str());
        assert_eq!(error["data"]["code"], code, "{error}");
        error["data"].clone()
    }

    /// The server must have answered `count` requests of this type, or none if the type is not a request.
    /// Answers are counted up to the answer to a `ping` sent now; other messages are skipped.
    pub async fn expect_answers(&mut self, count: usize, kind: &Value) {
        self.send(json!({"type": "ping", "receiver": "server", "data": "answered?"}))
            .await;
        let answer = match kind.as_str() {
            Some("hello") => "hello",
            Some("ping") => "pong",
            _ => "",
        };
        let mut answers = 0;
        loop {
            let message = self.next().await;
            if message["type"] == "pong" && message["data"] == "answered?" {
                break;
            }
            answers += usize::from(message["type"] == answer);
        }
        assert_eq!(answers, if answer.is_empty() { 0 } else { count });
    }

    /// Nothing else may have been sent to this session: the next message must answer a `ping` sent now.
    pub async fn expect_quiet(&mut self) {
        self.send(json!({"type": "ping", "receiver": "server", "data": "quiet?"}))
            .await;
        let pong = self.next().await;
        assert_eq!(pong["type"], "pong", "{pong}");
        assert_eq!(pong["data"], "quiet?");
    }

    /// The messages that the server has sent until it answers a Ping frame sent now. Unlike
    /// [`expect_quiet`](Client::expect_quiet), this works with every wire format.
    pub async fn received(&mut self) -> Vec<Value> {
        self.send_frame(Message::Ping("so far".into())).await;
        let mut messages = Vec::new();
        within_deadline("the answer to a ping", async {
            loop {
                match self.next_frame().await.unwrap() {
                    Message::Text(text) => messages.push(serde_json::from_str(&text).unwrap()),
                    Message::Pong(payload) if payload == "so far" => return,
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("expected a message, got {other:?}"),
                }
            }
        })
        .await;
        messages
    }

    /// Nothing else may have been sent to this client, and the server has read what it has sent.
    pub async fn expect_nothing(&mut self) {
        assert_eq!(self.received().await, Vec::<Value>::new());
    }

    /// The next frame must be the server's Close frame.
    pub async fn expect_end(&mut self) {
        match self.next_message().await {
            Err(Disconnect::Closed { .. }) => {}
            other => panic!("expected a Close frame, got {other:?}"),
        }
    }

    /// Waits for the server's Close frame; returns its code and reason. Skips the messages before it.
    pub async fn expect_close(&mut self) -> (u16, String) {
        loop {
            match self.next_message().await {
                Ok(_) => {}
                Err(Disconnect::Closed { code, reason }) if code != 1005 => return (code, reason),
                Err(why) => panic!("expected a Close frame with a code, but {why}"),
            }
        }
    }

    /// Sends a message; ignores the error if the connection is closed.
    pub async fn try_send(&mut self, message: Value) {
        let deadline = Instant::now() + DEADLINE;
        let _ = self.connection.send(message.to_string(), deadline).await;
    }

    /// The next message, or the code of the server's Close frame.
    pub async fn next_or_close(&mut self) -> Result<Value, u16> {
        match self.next_message().await {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap()),
            Err(Disconnect::Closed { code, .. }) if code != 1005 => Err(code),
            Err(why) => panic!("expected a message or a Close frame with a code, but {why}"),
        }
    }

    /// Closes the connection with a closing handshake (RFC 6455, section 7), and waits until it is done.
    pub async fn leave(self) {
        self.connection.leave(DEADLINE).await;
    }
}
