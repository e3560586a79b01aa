//! A WebSocket server whose every frame is written by the test, and pages that join a room there.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::driver::{Browser, Tab};
use crate::support::{TestServer, within_deadline};

pub type Socket = WebSocketStream<TcpStream>;

/// A server that serves `static/` as a folder: then there is no Content-Security-Policy, and pages
/// may connect to other servers.
pub async fn static_server() -> TestServer {
    TestServer::with(|config| config.serving.static_dir = Some("static".into())).await
}

/// Opens a page with the exports of the client module as globals, and runs `script` in it. The
/// global `outcome` turns the promise of a receipt into a promise of the number of receivers or the
/// error's code.
pub async fn open_module_page<'a>(
    browser: &'a Browser,
    server: &TestServer,
    script: &str,
) -> Tab<'a> {
    open_module_page_at(browser, server.address, script).await
}

/// Like [`open_module_page`], from an address that may be a proxy's.
pub async fn open_module_page_at<'a>(
    browser: &'a Browser,
    address: SocketAddr,
    script: &str,
) -> Tab<'a> {
    let tab = browser.open(&format!("http://{address}/")).await;
    tab.run(
        "Object.assign(globalThis, await import('/anteroom.js'));
        globalThis.outcome = (promise) => promise.then((receipt) => receipt.receivers, (error) => error.code);",
    )
    .await;
    tab.run(script).await;
    tab
}

pub struct ScriptedServer {
    listener: TcpListener,
}

impl ScriptedServer {
    pub async fn start() -> ScriptedServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ScriptedServer { listener }
    }

    /// A scripted server, and a page that joins a room there with these options of `join`. The
    /// page's global `room` is the room, and `events` collects its events.
    pub async fn with_page<'a>(browser: &'a Browser, options: &str) -> (ScriptedServer, Tab<'a>) {
        let server = ScriptedServer::start().await;
        let pages = static_server().await;
        let tab = open_module_page(browser, &pages, &server.join_script(options)).await;
        (server, tab)
    }

    /// Its address, for `join`.
    pub fn url(&self) -> String {
        format!("http://{}/deep/down", self.listener.local_addr().unwrap())
    }

    /// A script that joins a room there, over a WebSocket alone.
    pub fn join_script(&self, options: &str) -> String {
        let url = self.url();
        format!(
            "globalThis.room = join('a b', {{ url: '{url}?x#y', fallback: false, ...{options} }});
            globalThis.events = [];
            for (const type of ['statechange', 'peerjoin', 'peerstate', 'peerleave', 'message', 'error']) {{
                room.addEventListener(type, ({{ detail }}) => {{
                    events.push([type, detail instanceof Error ? detail.code : detail]);
                }});
            }}"
        )
    }

    /// Accepts the next connection, and reads its `hello`.
    pub async fn accept(&self) -> Socket {
        let mut socket = self.accept_without_hello().await;
        let hello = within_deadline("hello", socket.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            hello.to_text().unwrap(),
            r#"{"type":"hello","receiver":"server","data":{"resume":true}}"#
        );
        socket
    }

    pub async fn accept_without_hello(&self) -> Socket {
        self.accept_with_query().await.0
    }

    /// Accepts the next connection, and returns it with the query of its URL.
    pub async fn accept_with_query(&self) -> (Socket, String) {
        let mut query = String::new();
        let (stream, _) = within_deadline("a connection", self.listener.accept())
            .await
            .unwrap();
        #[allow(
            clippy::result_large_err,
            reason = "the error type is tungstenite's, and the callback returns no error"
        )]
        let check = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/deep/down/room/a%20b");
            query = request.uri().query().unwrap_or_default().into();
            assert_eq!(request.headers()["sec-websocket-protocol"], "anteroom.v1");
            let headers = response.headers_mut();
            headers.insert("sec-websocket-protocol", "anteroom.v1".parse().unwrap());
            Ok(response)
        };
        let socket = accept_hdr_async(stream, check).await.unwrap();
        (socket, query)
    }
}

/// Receives the next message of the page.
pub async fn receive(socket: &mut Socket) -> Value {
    let message = within_deadline("a message", socket.next()).await;
    serde_json::from_str(message.unwrap().unwrap().to_text().unwrap()).unwrap()
}

/// Sends a message to the page.
pub async fn send(socket: &mut Socket, message: Value) {
    socket
        .send(Message::text(message.to_string()))
        .await
        .unwrap();
}

/// Closes the connection with this Close frame, and waits for the page's.
pub async fn close(mut socket: Socket, code: u16, reason: &str) {
    let frame = CloseFrame {
        code: CloseCode::from(code),
        reason: reason.into(),
    };
    socket.close(Some(frame)).await.unwrap();
    while let Some(Ok(_)) = within_deadline("the Close frame", socket.next()).await {}
}

/// The answer to `hello`, with these session ids as the others in the room.
pub fn roster(peers: &[&str]) -> Value {
    let peers: Vec<_> = peers
        .iter()
        .map(|id| json!({"id": id, "data": null}))
        .collect();
    json!({"type": "hello", "sender": "server", "receiver": "me", "data": {
        "room": "a b", "peers": peers, "iceServers": [], "resume": null,
        "limits": {"messageBytes": 100}}})
}

/// The receipt for a message of the page.
pub fn ack(message: &Value) -> Value {
    let receipt = json!({"ref": message["ref"], "receivers": 1});
    json!({"type": "ack", "sender": "server", "receiver": "me", "data": receipt})
}
