//! How datagrams reach a client.

use std::sync::Arc;

use super::{five_tuple::FiveTuple, tcp_queue::TcpSender, udp_socket::UdpSocket};

/// A client that datagrams can be sent to.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) five_tuple: FiveTuple,
    pub(super) link: Link,
}

/// The way to a client.
#[derive(Clone)]
pub(super) enum Link {
    /// From the socket that all clients send to.
    Udp(Arc<UdpSocket>),
    /// By the queue of the client's connection.
    Tcp(TcpSender),
}

impl Client {
    /// Sends what a peer has sent. Returns false if it is lost.
    pub(super) fn send(&self, frame: &[u8]) -> bool {
        match &self.link {
            Link::Udp(socket) => socket.send(&self.five_tuple, frame),
            Link::Tcp(queue) => queue.data(frame),
        }
    }

    /// Sends the answer to a request. Over UDP the client asks again if it is lost.
    pub(super) fn answer(&self, answer: &[u8]) {
        match &self.link {
            Link::Udp(socket) => _ = socket.send(&self.five_tuple, answer),
            Link::Tcp(queue) => queue.answer(answer),
        }
    }

    /// Whether both are the client of the same socket or connection.
    pub(super) fn is_same(&self, other: &Client) -> bool {
        let is_same_link = match (&self.link, &other.link) {
            (Link::Tcp(queue), Link::Tcp(other)) => queue.is_same(other),
            (Link::Udp(_), Link::Udp(_)) => true,
            _ => false,
        };
        is_same_link && self.five_tuple == other.five_tuple
    }
}
