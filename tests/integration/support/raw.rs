//! A raw TCP connection to the server under test, and the WebSocket frames to write on it.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    answer::Answer,
    server::{RunningServer, TestServer},
    time::within_deadline,
};

/// A TCP connection on which the test writes every byte itself.
pub struct Raw {
    pub stream: TcpStream,
}

/// A frame from the server: its first byte and its payload.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame {
    pub first: u8,
    pub payload: Vec<u8>,
}

/// A valid handshake request, to send or to make invalid.
pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A handshake request with more headers. Each header includes its end of line.
pub fn handshake_with(path: &str, headers: &str) -> String {
    handshake(path).replace("Host:", &format!("{headers}Host:"))
}

/// A masked frame. `first` is its first byte: FIN, reserved bits and opcode.
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
    /// Connects to a server.
    pub async fn connect(server: &TestServer) -> Raw {
        Raw::connect_to(server.address).await
    }

    /// Connects to an address.
    pub async fn connect_to(address: SocketAddr) -> Raw {
        Raw {
            stream: TcpStream::connect(address).await.unwrap(),
        }
    }

    /// Joins `room`; the session's id is not known.
    pub async fn join(server: &TestServer, room: &str) -> Raw {
        let mut raw = Raw::connect(server).await;
        raw.write(handshake(&format!("/room/{room}"))).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw
    }

    /// Requests an upgrade; returns the server's answer if it rejects the request. The body of the answer
    /// must be one line, and is returned without its end of line.
    pub async fn upgrade(
        server: &impl RunningServer,
        path: &str,
        headers: &str,
    ) -> Result<Raw, Answer> {
        let mut raw = Raw::connect_to(server.address()).await;
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
        Err(Answer { status, head, body })
    }

    /// Sends a GET request on a new connection; returns the answer. Each header includes its end of line.
    pub async fn get(server: &TestServer, path: &str, headers: &str) -> Answer {
        let mut raw = Raw::connect(server).await;
        raw.write(format!(
            "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"
        ))
        .await;
        let head = raw.read_head().await.to_ascii_lowercase();
        Answer {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::from_utf8(raw.read_to_end().await).unwrap(),
        }
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within_deadline("writing", self.stream.write_all(bytes.as_ref()))
            .await
            .unwrap();
    }

    /// Writes the same bytes to each connection. The server gets no turn in between, if it has the same thread.
    pub fn write_at_once<'a>(
        connections: impl IntoIterator<Item = &'a Raw>,
        bytes: impl AsRef<[u8]>,
    ) {
        let bytes = bytes.as_ref();
        for connection in connections {
            assert_eq!(connection.stream.try_write(bytes).unwrap(), bytes.len());
        }
    }

    /// Reads until each client has got so many messages of a type.
    pub async fn expect_from_all(clients: &mut [Raw], kind: &str, count: usize) {
        for client in clients {
            for _ in 0..count {
                while client.read_message().await["type"] != kind {}
            }
        }
    }

    /// Requests an upgrade from a server that may close the connection instead of answering.
    pub async fn try_upgrade(server: &TestServer, path: &str) -> std::io::Result<Raw> {
        let mut raw = Raw::connect(server).await;
        raw.try_write(handshake(path)).await?;
        let mut status = [0; 12];
        within_deadline("the status", raw.stream.read_exact(&mut status)).await?;
        match &status[9..] {
            b"101" => Ok(raw),
            other => panic!("{other:?}"),
        }
    }

    /// Writes to a connection that the server may have closed already.
    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within_deadline("writing", self.stream.write_all(bytes.as_ref())).await
    }

    /// Reads an HTTP answer up to the end of its headers.
    pub async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                within_deadline("the answer", self.stream.read_u8())
                    .await
                    .unwrap(),
            );
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads until the server closes the connection. A reset counts as a close.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = within_deadline("the end", self.stream.read_to_end(&mut bytes)).await;
        bytes
    }

    /// The next frame that is not a ping: the server may send pings at any time.
    pub async fn read_frame(&mut self) -> RawFrame {
        let read = async {
            loop {
                let frame = self.read_any_frame().await;
                if frame.first != 0x89 {
                    break frame;
                }
            }
        };
        within_deadline("a frame other than a ping", read).await
    }

    /// The next frame, which may be a ping.
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

    /// Waits for the server's Close frame; returns its code and reason. Skips the frames before it.
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
