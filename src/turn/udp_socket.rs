//! The socket that clients send to over UDP.

use std::{
    array,
    io::{self, IoSliceMut},
    net::{self, SocketAddr},
};

use log::debug;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;

use super::five_tuple::{FiveTuple, Transport};

/// The bytes of a chunk of the buffer: the longest datagram, or several that the kernel has joined.
const CHUNK_BYTES: usize = 1 << 16;

/// The size of the kernel's queues of datagrams, in bytes, as far as the system allows it: what comes in a few
/// milliseconds at a gigabit a second.
const QUEUE_BYTES: usize = 4 << 20;

/// The socket that clients send to. It reads several datagrams at once, and answers from the address that a datagram
/// came to.
pub(super) struct UdpSocket {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl UdpSocket {
    /// Binds the address.
    pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        for set in [
            UdpSocketState::set_recv_buffer_size,
            UdpSocketState::set_send_buffer_size,
        ] {
            if let Err(error) = set(&state, (&socket).into(), QUEUE_BYTES) {
                debug!("the queues of the TURN server keep their size: {error}");
            }
        }
        #[cfg(target_os = "linux")]
        allow_fragments(&socket, address)?;
        Ok(UdpSocket {
            socket: tokio::net::UdpSocket::from_std(socket)?,
            state,
        })
    }

    /// The address, with the actual port.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends a datagram to a client. Returns false if it is lost: the kernel has no room for it, or cannot send it.
    pub(super) fn send(&self, to: &FiveTuple, datagram: &[u8]) -> bool {
        let transmit = Transmit {
            destination: to.client,
            ecn: None,
            contents: datagram,
            segment_size: None,
            src_ip: to.server,
        };
        let send = || self.state.try_send((&self.socket).into(), &transmit);
        self.socket.try_io(Interest::WRITABLE, send).is_ok()
    }

    /// Waits for datagrams, and gives each to `handle`. Returns whether there may be more.
    ///
    /// # Errors
    ///
    /// That of the operating system.
    pub(super) async fn receive(
        &self,
        buffer: &mut UdpBuffer,
        mut handle: impl FnMut(FiveTuple, &mut [u8]),
    ) -> io::Result<bool> {
        self.socket.readable().await?;
        let UdpBuffer { bytes, metas } = buffer;
        let received = self.socket.try_io(Interest::READABLE, || {
            let mut chunks = bytes.chunks_mut(CHUNK_BYTES);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = array::from_fn(|_| {
                IoSliceMut::new(chunks.next().expect("there is a chunk for each"))
            });
            self.state.recv((&self.socket).into(), &mut slices, metas)
        });
        let count = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            received => received?,
        };
        for (meta, chunk) in metas[..count].iter().zip(bytes.chunks_mut(CHUNK_BYTES)) {
            let from = FiveTuple {
                transport: Transport::Udp,
                client: meta.addr,
                server: meta.dst_ip,
            };
            for datagram in chunk[..meta.len].chunks_mut(meta.stride.max(1)) {
                handle(from, datagram);
            }
        }
        Ok(count == BATCH_SIZE)
    }
}

/// Room for the datagrams that are read at once.
pub(super) struct UdpBuffer {
    bytes: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl UdpBuffer {
    pub(super) fn new() -> UdpBuffer {
        UdpBuffer {
            bytes: vec![0; BATCH_SIZE * CHUNK_BYTES],
            metas: [RecvMeta::default(); BATCH_SIZE],
        }
    }
}

/// Has the kernel fragment datagrams that are too long for their path, as it does by default. quinn-udp forbids it, but
/// data that a peer sends may only just fit before its frame is added.
#[cfg(target_os = "linux")]
fn allow_fragments(socket: &net::UdpSocket, address: SocketAddr) -> io::Result<()> {
    use rustix::net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    };
    if address.is_ipv6() {
        set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::WANT)?;
    }
    Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::WANT)?)
}
