//! The server under test, a client made of another WebSocket implementation, and a raw connection
//! for what no client would do.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anteroom::{Anteroom, Config, Server};
use futures_util::{FutureExt, SinkExt, StreamExt, future::join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// How long an event may take before the test fails. Only a failing test ever waits that long.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for something that must come.
pub async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// Waits until `condition` holds, giving way to whatever must happen for it.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let mut turn = tokio::time::interval(Duration::from_millis(2));
    within_deadline(what, async {
        while !condition() {
            turn.tick().await;
        }
    })
    .await;
}

/// The same where finding out takes time.
pub async fn finally(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let mut turn = tokio::time::interval(Duration::from_millis(10));
    within_deadline(what, async {
        while !condition().await {
            turn.tick().await;
        }
    })
    .await;
}

/// A server, in this process or another.
pub trait Host: Sync {
    fn address(&self) -> SocketAddr;

    /// What its metrics say of one series; 0 if it is not there yet.
    fn count(&self, series: &str) -> impl Future<Output = u64> + Send;
}

impl Host for TestServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn count(&self, series: &str) -> u64 {
        value(&self.anteroom.metrics(), series)
    }
}

/// The sum of what the metrics of all these say.
pub async fn sum(hosts: &[impl Host], series: &str) -> u64 {
    let counts = hosts.iter().map(|host| host.count(series));
    join_all(counts).await.into_iter().sum()
}

/// What metrics say of one series; 0 if it is not there.
pub fn value(metrics: &str, series: &str) -> u64 {
    let lines = metrics.lines().filter_map(|line| line.rsplit_once(' '));
    let mut values = lines.filter(|(name, _)| *name == series);
    values.next().map_or(0, |(_, value)| value.parse().unwrap())
}

/// A server on a port of its own, in this process.
pub struct TestServer {
    pub address: SocketAddr,
    /// Where operators are answered.
    pub admin: Option<SocketAddr>,
    pub anteroom: Anteroom,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl TestServer {
    pub async fn start() -> TestServer {
        TestServer::with(|_| {}).await
    }

    /// A server with some options changed.
    pub async fn with(change: impl FnOnce(&mut Config)) -> TestServer {
        let _ = rlimit::increase_nofile_limit(rlimit::INFINITY);
        let mut config = Config::default();
        config.serving.listen = ([127, 0, 0, 1], 0).into();
        change(&mut config);
        let server = Server::bind(config).unwrap();
        let address = server.local_addr().unwrap();
        let admin = server.admin_addr().unwrap();
        let anteroom = server.anteroom().clone();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(stopped.map(drop)));
        TestServer {
            address,
            admin,
            anteroom,
            stop: Some(stop),
            served,
        }
    }

    /// What the metrics say of one series; 0 if it is not there yet.
    pub fn count(&self, series: &str) -> u64 {
        value(&self.anteroom.metrics(), series)
    }

    /// Asks the server to stop.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until it has stopped.
    pub async fn stopped(self) {
        within_deadline("the server's end", self.served)
            .await
            .unwrap();
    }
}

/// A file of a test's own, removed at its end.
pub struct File(PathBuf);

impl File {
    /// `name` is to be of this test alone.
    pub fn new(name: &str, contents: impl AsRef<[u8]>) -> File {
        let name = format!("anteroom-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, contents).unwrap();
        File(path)
    }

    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// So many seconds from now, in seconds since 1970.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() as i64 + seconds
}

/// The server as a program of its own.
pub struct Program {
    pub child: Child,
    pub address: SocketAddr,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts the program on a port of its own.
    pub async fn start<const N: usize>(options: [&str; N]) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anteroom"));
        command
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .stderr(Stdio::null());
        Program::run(command).await
    }

    /// Where it answers operators, by its second line.
    pub async fn admin(&mut self) -> SocketAddr {
        let line = self.next_line().await;
        line.split_once("://").unwrap().1.parse().unwrap()
    }

    /// Starts the program by a command, and waits for its first line.
    pub async fn run(mut command: Command) -> Program {
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within_deadline("the first line", lines.next_line())
            .await
            .unwrap()
            .unwrap();
        let address = line.split_once("://").unwrap().1.parse().unwrap();
        Program {
            child,
            address,
            lines,
        }
    }

    /// The next line of its output.
    pub async fn next_line(&mut self) -> String {
        within_deadline("another line", self.lines.next_line())
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let killed = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .await
            .unwrap();
        assert!(killed.success());
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        within_deadline("the exit", self.child.wait())
            .await
            .unwrap()
            .code()
    }
}

/// A session, driven through tungstenite.
pub struct Client<S = TcpStream> {
    pub id: String,
    socket: WebSocketStream<S>,
}

impl Client {
    /// Joins `room` and learns its own id.
    pub async fn join(server: &impl Host, room: &str) -> Client {
        Client::join_and_look(server, room).await.0
    }

    /// Joins `room`; returns also the ids of who was there.
    pub async fn join_and_look(server: &impl Host, room: &str) -> (Client, Vec<String>) {
        let mut client = Client::connect(server.address(), &format!("/room/{room}")).await;
        let hello = client.hello().await;
        client.id = hello["receiver"].as_str().unwrap().into();
        let peers = hello["data"]["peers"].as_array().unwrap().iter();
        let peers = peers
            .map(|peer| peer["id"].as_str().unwrap().into())
            .collect();
        (client, peers)
    }

    /// Upgrades a connection; the session's id is not known yet.
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

    /// The connection underneath, to do something improper with.
    pub fn into_raw(self) -> Raw {
        Raw {
            stream: self.socket.into_inner(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A session on an upgraded connection; its id is not known yet.
    pub fn over(socket: WebSocketStream<S>) -> Client<S> {
        Client {
            id: String::new(),
            socket,
        }
    }

    /// Asks the server for everything.
    pub async fn hello(&mut self) -> Value {
        self.send(json!({"type": "hello", "receiver": "server"}))
            .await;
        // Between the joining and the answer others may come.
        loop {
            let message = self.next().await;
            if message["type"] == "hello" {
                return message;
            }
        }
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends exactly this text.
    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Message::text(text)).await;
    }

    pub async fn send_frame(&mut self, frame: Message) {
        within_deadline("sending", self.socket.send(frame))
            .await
            .unwrap();
    }

    /// The next frame; pings are answered on the way.
    pub async fn next_frame(&mut self) -> Result<Message, tungstenite::Error> {
        within_deadline("a frame", self.socket.next())
            .await
            .unwrap()
    }

    /// The text of the next message.
    pub async fn next_text(&mut self) -> String {
        loop {
            match self.next_frame().await.unwrap() {
                Message::Text(text) => return text.as_str().into(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("expected a message, got {other:?}"),
            }
        }
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).unwrap()
    }

    /// The next message must be this one, to the byte.
    pub async fn expect_text(&mut self, text: &str) {
        assert_eq!(self.next_text().await, text);
    }

    /// The next message must be the `new` of this session.
    pub async fn expect_new(&mut self, id: &str) {
        let new = format!(r#"{{"type":"new","sender":"{id}","receiver":"all","data":null}}"#);
        self.expect_text(&new).await;
    }

    /// The next message must be a `new`.
    pub async fn expect_new_of_anybody(&mut self) {
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

    /// So many messages of this type have been answered, or none of them need be: the answers come before
    /// that to a question asked now. What others do meanwhile is passed over.
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

    /// Nothing waits: the next message is the answer to a question asked now.
    pub async fn expect_quiet(&mut self) {
        self.send(json!({"type": "ping", "receiver": "server", "data": "quiet?"}))
            .await;
        let pong = self.next().await;
        assert_eq!(pong["type"], "pong", "{pong}");
        assert_eq!(pong["data"], "quiet?");
    }

    /// The server closes: the code and the reason it gives.
    pub async fn expect_close(&mut self) -> (u16, String) {
        loop {
            match self.next_frame().await.unwrap() {
                Message::Close(Some(frame)) => {
                    return (frame.code.into(), frame.reason.as_str().into());
                }
                Message::Close(None) => panic!("a Close frame without a code"),
                _ => {}
            }
        }
    }

    /// Sends a message, if the connection still takes one.
    pub async fn try_send(&mut self, message: Value) {
        let _ = within_deadline(
            "sending",
            self.socket.send(Message::text(message.to_string())),
        )
        .await;
    }

    /// The next message, or the code with which the server closes.
    pub async fn next_or_close(&mut self) -> Result<Value, u16> {
        loop {
            match self.next_frame().await.unwrap() {
                Message::Text(text) => return Ok(serde_json::from_str(&text).unwrap()),
                Message::Close(frame) => return Err(frame.unwrap().code.into()),
                _ => {}
            }
        }
    }

    /// Leaves properly, and waits until the server has said goodbye.
    pub async fn leave(mut self) {
        self.socket.close(None).await.unwrap();
        within_deadline("goodbye", async {
            while let Some(Ok(_)) = self.socket.next().await {}
        })
        .await;
    }
}

/// A connection of which every byte is ours.
pub struct Raw {
    pub stream: TcpStream,
}

/// A frame from the server: its first byte and its payload.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub first: u8,
    pub payload: Vec<u8>,
}

/// A handshake request, to be sent or to be spoilt.
pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The same with more headers, each with its end of line.
pub fn handshake_with(path: &str, headers: &str) -> String {
    handshake(path).replace("Host:", &format!("{headers}Host:"))
}

/// The answer to a request that was turned away.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

/// An answer of the admin listener.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The status and the code of an error.
    pub fn code(&self) -> (u16, String) {
        let error = self.json();
        assert!(!error["message"].as_str().unwrap().is_empty());
        (self.status, error["code"].as_str().unwrap().into())
    }
}

/// Asks the admin listener.
pub async fn operator(server: &TestServer, method: &str, path: &str, body: &str) -> Answer {
    operator_with(server, method, path, "", body).await
}

/// The same with more headers, each with its end of line.
pub async fn operator_with(
    server: &TestServer,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    ask_operator(server.admin.unwrap(), method, path, headers, body).await
}

/// Asks the admin listener at an address.
pub async fn ask_operator(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let host = match headers.contains("Host:") {
        true => String::new(),
        false => format!("Host: {address}\r\n"),
    };
    let length = match method {
        "POST" => format!("Content-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    let mut raw = Raw {
        stream: TcpStream::connect(address).await.unwrap(),
    };
    let first = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    raw.write(format!("{first}{host}{headers}{length}\r\n{body}"))
        .await;
    let head = raw.read_head().await.to_ascii_lowercase();
    let body = String::from_utf8(raw.read_to_end().await).unwrap();
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body,
    }
}

/// A masked frame: `first` is FIN, reserved bits and opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    bytes
}

/// A whole text message in one frame.
pub fn text(payload: impl AsRef<[u8]>) -> Vec<u8> {
    frame(0x81, payload.as_ref())
}

impl Raw {
    pub async fn connect(server: &TestServer) -> Raw {
        Raw {
            stream: TcpStream::connect(server.address).await.unwrap(),
        }
    }

    /// Joins `room`.
    pub async fn join(server: &TestServer, room: &str) -> Raw {
        let mut raw = Raw::connect(server).await;
        raw.write(handshake(&format!("/room/{room}"))).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw
    }

    /// Asks for a session.
    pub async fn ask(server: &TestServer, path: &str, headers: &str) -> Result<Raw, Refused> {
        let mut raw = Raw::connect(server).await;
        raw.write(handshake_with(path, headers)).await;
        let head = raw.read_head().await.to_ascii_lowercase();
        let status = head[9..12].parse().unwrap();
        if status == 101 {
            return Ok(raw);
        }
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length = length.lines().next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        within_deadline("the body", raw.stream.read_exact(&mut body))
            .await
            .unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(
            body.ends_with('\n') && body.lines().count() == 1,
            "{body:?}"
        );
        let body = body.trim_end().to_owned();
        Err(Refused { status, head, body })
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within_deadline("writing", self.stream.write_all(bytes.as_ref()))
            .await
            .unwrap();
    }

    /// Asks for a session of a server that may close the connection in place of an answer.
    pub async fn try_ask(server: &TestServer, path: &str) -> std::io::Result<Raw> {
        let mut raw = Raw::connect(server).await;
        raw.try_write(handshake(path)).await?;
        let mut status = [0; 12];
        within_deadline("the status", raw.stream.read_exact(&mut status)).await?;
        match &status[9..] {
            b"101" => Ok(raw),
            other => panic!("{other:?}"),
        }
    }

    /// Writes to a connection that may be closed already.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within_deadline("writing", self.stream.write_all(bytes.as_ref())).await
    }

    /// Reads an HTTP response up to the end of its headers.
    pub async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                within_deadline("the response", self.stream.read_u8())
                    .await
                    .unwrap(),
            );
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads until the server closes; a connection cut off counts as closed.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = within_deadline("the end", self.stream.read_to_end(&mut bytes)).await;
        bytes
    }

    /// The next frame that is no ping: the server may ask at any time.
    pub async fn read_frame(&mut self) -> RawFrame {
        loop {
            let frame = self.read_any_frame().await;
            if frame.first != 0x89 {
                return frame;
            }
        }
    }

    /// The next frame, be it a ping.
    pub async fn read_any_frame(&mut self) -> RawFrame {
        let read = async {
            let first = self.stream.read_u8().await?;
            let length = match self.stream.read_u8().await? {
                126 => self.stream.read_u16().await?.into(),
                127 => self.stream.read_u64().await?,
                length => length.into(),
            };
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await?;
            std::io::Result::Ok(RawFrame { first, payload })
        };
        within_deadline("a frame", read).await.unwrap()
    }

    /// The next message.
    pub async fn read_message(&mut self) -> Value {
        let frame = self.read_frame().await;
        assert_eq!(frame.first, 0x81, "{frame:?}");
        serde_json::from_slice(&frame.payload).unwrap()
    }

    /// The server's Close frame: its code and reason. Whatever comes before it is passed over.
    pub async fn read_close(&mut self) -> (u16, String) {
        loop {
            let RawFrame { first, payload } = self.read_frame().await;
            if first == 0x88 {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].into()).unwrap());
            }
        }
    }
}
