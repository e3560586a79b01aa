//! `websocket-echo`: a server that sends every message back with anteroom's own WebSocket code, for
//! conformance suites such as Autobahn's.

#![allow(clippy::unwrap_used)]

// The server's own files, which are not part of its public API.
#[allow(dead_code, unused_imports)]
#[path = "../../src/web/mod.rs"]
mod web;
#[allow(dead_code, unused_imports)]
#[path = "../../src/websocket/mod.rs"]
mod websocket;

#[allow(dead_code)]
#[path = "../../src/metrics/traffic.rs"]
mod traffic;

/// The path by which the server's files import it.
mod metrics {
    pub(crate) use crate::traffic::Traffic;
}

use std::{future::poll_fn, net::SocketAddr, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use clap::Parser;
use hyper::{
    HeaderMap, Method,
    upgrade::{OnUpgrade, Upgraded},
};
use thin_vec::ThinVec;
use tokio::net::TcpListener;
use warp::{Filter, Reply};

use websocket::{Event, Frame, ReadControl, Reader, Stop, Violation, Writer};

/// The longest message, in bytes.
const LIMIT: usize = 16 * 1024 * 1024;

/// Sends every WebSocket message back.
#[derive(Parser)]
struct Options {
    /// IP address and port; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() {
    let listener = TcpListener::bind(Options::parse().listen).await.unwrap();
    println!(
        "websocket-echo listening on ws://{}",
        listener.local_addr().unwrap()
    );
    let echo = warp::method()
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .map(accept);
    warp::serve(echo).incoming(listener).run().await;
}

/// Answers an upgrade request, and serves the upgraded connection in a new task.
fn accept(
    method: Method,
    headers: HeaderMap,
    connection: Option<OnUpgrade>,
) -> warp::reply::Response {
    match websocket::accept(&method, &headers, connection, "") {
        Ok(upgrade) => {
            tokio::spawn(async {
                if let Ok(upgraded) = upgrade.connection.await {
                    serve(upgraded).await;
                }
            });
            upgrade.response.map(|empty: Bytes| empty.into())
        }
        Err(error) => error.into_response(),
    }
}

/// Serves a connection until its end, with a closing handshake.
async fn serve(upgraded: Upgraded) {
    let (mut reader, mut writer) = websocket::split(upgraded, LIMIT, &Arc::default());
    let close = match echo(&mut reader, &mut writer).await {
        Stop::Eof | Stop::Lost => None,
        Stop::Break(code) => Some(Frame::close(code.map(|code| (code, "")))),
        Stop::Violation(violation) => Some(Frame::close(Some(match violation {
            Violation::Protocol(what) => (1002, what),
            Violation::Utf8 => (1007, "text that is not UTF-8"),
            Violation::TooLong => (1009, "a message that is too long"),
        }))),
    };
    let _ = writer.close(close.into_iter()).await;
    let _ = reader.discard().await;
}

/// Sends every message back until the client closes the connection (`Break`, with the close code) or the
/// connection ends otherwise.
async fn echo(reader: &mut Reader, writer: &mut Writer) -> Stop<Option<u16>> {
    loop {
        let mut frames = ThinVec::new();
        let mut on_event = |event: Event<'_>| {
            frames.push(match event {
                Event::Text(text) => {
                    Frame::text(|buffer| buffer.extend_from_slice(text.as_bytes()))
                }
                Event::Binary(bytes) => Frame::binary(|buffer| buffer.extend_from_slice(bytes)),
                Event::Ping(payload) => Frame::pong(payload),
                Event::Pong(_) | Event::Fragment => {
                    return ControlFlow::Continue(ReadControl::Continue);
                }
                Event::Close(status) => return ControlFlow::Break(status.map(|status| status.0)),
            });
            ControlFlow::Continue(ReadControl::Continue)
        };
        let read = poll_fn(|cx| reader.poll_read(cx, &mut on_event)).await;
        while writer.refill(&mut frames) {
            if poll_fn(|cx| writer.poll_write(cx)).await.is_err() {
                return Stop::Lost;
            }
        }
        if let Err(stop) = read {
            return stop;
        }
    }
}
