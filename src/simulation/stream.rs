//! A connection between a client and a node, in memory. It can lose what is sent after any byte, in either
//! direction, and each end can notice that at a time of its own.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one direction holds before its sender must wait.
const CAPACITY: usize = 64 << 10;

/// A connection. Clones are handles to it.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Pipes>>);

#[derive(Default)]
struct Pipes {
    /// From the client to the node.
    up: Pipe,
    /// From the node to the client.
    down: Pipe,
    /// Whether nothing moves for the moment.
    is_stalled: bool,
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// How many more bytes are carried; the others are lost.
    carries: Option<usize>,
    /// Whether the sender sends nothing more.
    is_closed: bool,
    /// Whether the receiver has noticed that the connection is lost.
    is_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn write(&mut self, bytes: &[u8]) {
        let carried = self.carries.unwrap_or(bytes.len()).min(bytes.len());
        if let Some(carries) = &mut self.carries {
            *carries -= carried;
        }
        self.bytes.extend(&bytes[..carried]);
        self.wake_reader();
    }

    fn wake_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    fn wake_writer(&mut self) {
        self.writer.take().into_iter().for_each(Waker::wake);
    }

    fn wake(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }

    /// The next bytes, at most `count`. No bytes are the end.
    fn poll_read(&mut self, cx: &Context<'_>, count: usize) -> Poll<io::Result<Vec<u8>>> {
        if self.bytes.is_empty() {
            return match (self.is_broken, self.is_closed) {
                (true, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                // The end is not carried either.
                (false, true) if self.carries.is_none() => Poll::Ready(Ok(Vec::new())),
                _ => {
                    self.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let count = count.min(self.bytes.len());
        let bytes = self.bytes.drain(..count).collect();
        self.wake_writer();
        Poll::Ready(Ok(bytes))
    }
}

impl Wire {
    pub(super) fn new() -> Wire {
        Wire(Arc::default())
    }

    /// Whether both are handles to one connection.
    pub(super) fn is_same(&self, other: &Wire) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The node's end.
    pub(super) fn node_end(&self) -> NodeEnd {
        NodeEnd(self.clone())
    }

    /// The client sends.
    pub(super) fn send(&self, bytes: &[u8]) {
        self.0.lock().up.write(bytes);
    }

    /// The client receives; `None` at the end of the connection.
    pub(super) async fn receive(&self) -> Option<Vec<u8>> {
        let received = poll_fn(|cx| {
            let pipes = &mut *self.0.lock();
            if pipes.is_stalled {
                pipes.down.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            pipes.down.poll_read(cx, CAPACITY)
        });
        received.await.ok().filter(|bytes| !bytes.is_empty())
    }

    /// The client closes its side.
    pub(super) fn close(&self) {
        let mut pipes = self.0.lock();
        pipes.up.is_closed = true;
        pipes.up.wake_reader();
    }

    /// From now on the connection carries so many bytes more in each direction, and loses the rest.
    pub(super) fn cut(&self, up: Option<usize>, down: Option<usize>) {
        let pipes = &mut *self.0.lock();
        for (pipe, carries) in [(&mut pipes.up, up), (&mut pipes.down, down)] {
            // What is lost stays lost.
            pipe.carries = [pipe.carries, carries].into_iter().flatten().min();
        }
    }

    /// Whether all that the client has sent reaches the node.
    pub(super) fn is_whole(&self) -> bool {
        let pipes = self.0.lock();
        pipes.up.carries.is_none() && !pipes.up.is_broken
    }

    /// The client notices that the connection is lost.
    pub(super) fn break_client(&self) {
        let mut pipes = self.0.lock();
        pipes.down.is_broken = true;
        pipes.down.wake();
    }

    /// The node notices that the connection is lost.
    pub(super) fn break_node(&self) {
        let mut pipes = self.0.lock();
        pipes.up.is_broken = true;
        pipes.up.wake();
        pipes.down.wake_writer();
    }

    /// Stops or continues all movement.
    pub(super) fn stall(&self, is_stalled: bool) {
        let mut pipes = self.0.lock();
        pipes.is_stalled = is_stalled;
        pipes.up.wake();
        pipes.down.wake();
    }
}

/// The node's end of a connection.
pub(super) struct NodeEnd(Wire);

impl AsyncRead for NodeEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipes = &mut *self.0.0.lock();
        if pipes.is_stalled {
            pipes.up.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipes.up.poll_read(cx, buffer.remaining()).map_ok(|bytes| {
            buffer.put_slice(&bytes);
        })
    }
}

impl AsyncWrite for NodeEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let pipes = &mut *self.0.0.lock();
        if pipes.up.is_broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = CAPACITY.saturating_sub(pipes.down.bytes.len());
        if pipes.is_stalled || room == 0 {
            pipes.down.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = room.min(bytes.len());
        pipes.down.write(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipes = self.0.0.lock();
        pipes.down.is_closed = true;
        pipes.down.wake_reader();
        Poll::Ready(Ok(()))
    }
}

impl Drop for NodeEnd {
    fn drop(&mut self) {
        let mut pipes = self.0.0.lock();
        pipes.down.is_closed = true;
        pipes.down.wake_reader();
    }
}
