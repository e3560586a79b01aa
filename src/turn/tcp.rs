//! Clients over TCP, for networks that let no UDP through.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use log::warn;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    client::{Client, Link},
    five_tuple::{FiveTuple, Transport},
    receive::receive,
    state::TurnState,
    tcp_queue::{TcpReceiver, tcp_queue},
};
use crate::accept_error::concerns_one_connection;

/// The pause after an error of accept(2), which comes when the process is out of files or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may be without an allocation.
const IDLE: Duration = Duration::from_secs(10);

/// How long a write may take. A client that does not read for this long is gone.
const WRITE: Duration = Duration::from_secs(30);

/// The shortest time between two warnings that connections cannot be accepted.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The longest STUN message or ChannelData that a client may send, in bytes.
const MAX_FRAME: usize = 4096;

/// Accepts connections until the server stops, and serves each in a task of its own.
pub(super) async fn serve(listener: TcpListener, state: Arc<TurnState>) {
    let mut last_warning: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = state.stopped.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                if last_warning.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
                    last_warning = Some(Instant::now());
                    warn!("the TURN server cannot accept connections, trying again: {error}");
                }
                sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        let slot = match state.quotas.take_connection(client.ip().to_canonical()) {
            Ok(slot) => slot,
            Err(reason) => {
                state.count_refusal(reason);
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let shared = state.clone();
        state.tasks.spawn(async move {
            serve_connection(stream, client, &shared).await;
            drop(slot);
        });
    }
}

/// Serves a connection until it ends.
async fn serve_connection(stream: TcpStream, client: SocketAddr, state: &Arc<TurnState>) {
    let five_tuple = FiveTuple {
        transport: Transport::Tcp,
        client,
        server: stream.local_addr().ok().map(|it| it.ip()),
    };
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = tcp_queue();
    let client = Client {
        five_tuple,
        link: Link::Tcp(sender),
    };
    let overflow = receiver.overflow();
    tokio::select! {
        biased;
        () = state.stopped.cancelled() => {}
        () = overflow => {}
        () = write(writer, receiver) => {}
        () = read(reader, &client, state) => {}
    }
    state.end_of_connection(&client);
}

/// Writes what is queued, until the client is gone.
async fn write(mut writer: OwnedWriteHalf, mut receiver: TcpReceiver) {
    while let Some(frame) = receiver.next().await {
        match timeout(WRITE, writer.write_all(&frame)).await {
            Ok(Ok(())) => receiver.written(&frame),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Reads and handles what the client sends, until it is gone, is idle, or sends what is neither STUN nor ChannelData.
async fn read(mut reader: OwnedReadHalf, client: &Client, state: &Arc<TurnState>) {
    let mut buffer = BytesMut::with_capacity(MAX_FRAME);
    let mut deadline = Instant::now() + IDLE;
    loop {
        while let Some(length) = frame_length(&buffer) {
            if length > MAX_FRAME {
                return;
            }
            if buffer.len() < length {
                break;
            }
            receive(state, client.five_tuple, &mut buffer[..length], || {
                client.link.clone()
            });
            buffer.advance(length);
        }
        buffer.reserve(MAX_FRAME);
        match timeout_at(deadline, reader.read_buf(&mut buffer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return,
            Err(_) if state.allocations.of(&client.five_tuple).is_some() => {
                deadline = Instant::now() + IDLE
            }
            Err(_) => return,
        }
    }
}

/// The length of the STUN message (RFC 8489, section 5) or the ChannelData with its padding (RFC 8656, section 12.5)
/// that the bytes begin with; `None` if there are too few to know. What is neither is too long.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let [first, _, high, low, ..] = *bytes else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some(match first {
        0..0x40 => 20 + length,
        0x40..0x80 => (4 + length).next_multiple_of(4),
        _ => usize::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_of_their_headers() {
        assert_eq!(frame_length(&[0, 1, 0]), None);
        assert_eq!(frame_length(&[0, 1, 0, 8]), Some(28));
        assert_eq!(frame_length(&[0x40, 0, 0, 5, 9]), Some(12));
        assert_eq!(frame_length(&[0x40, 0, 0xff, 0xff]), Some(65_540));
        assert_eq!(frame_length(&[0x80, 0, 0, 0]), Some(usize::MAX));
    }
}
