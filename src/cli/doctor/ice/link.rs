//! The way of packets to an ICE server: UDP, TCP or TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    super::{
        connection::resolve,
        report::Finding,
        stream::{CONNECT_TIMEOUT, Io, why},
        tls,
    },
    url::{IceUrl, Transport},
};

/// How long a TURN server may take to accept what is sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do if there is no TLS. The advice for the web server's certificate names options that are not for this one.
const TLS_ADVICE: &str = "give the STUN or TURN server a certificate of a public authority for the name in the URL, with \
     the intermediate certificates (cert and pkey in coturn), or use turn: in place of turns:";

enum Socket {
    Udp(UdpSocket),
    Stream(Box<dyn Io>),
}

/// An open socket.
pub(super) struct Link {
    socket: Socket,
    pub(super) local: SocketAddr,
    pub(super) server: SocketAddr,
}

impl Link {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// The finding that says why there is none.
    pub(super) async fn open(url: &IceUrl) -> Result<Link, Finding> {
        let addresses = resolve(&url.host, url.port).await.map_err(|error| {
            let detail = format!("{} does not resolve: {error}", url.host);
            Finding::failed(
                detail,
                "correct the name in --ice-server or --turn-url, or its DNS records",
            )
        })?;
        Link::open_one(url, addresses).await
    }

    /// Opens a socket to the first of these addresses that allows it, IPv4 first. There is at least one.
    async fn open_one(url: &IceUrl, mut addresses: Vec<SocketAddr>) -> Result<Link, Finding> {
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let first = Link::open_at(url, addresses[0]).await;
        if first.is_ok() {
            return first;
        }
        for address in &addresses[1..] {
            if let Ok(link) = Link::open_at(url, *address).await {
                return Ok(link);
            }
        }
        first
    }

    async fn open_at(url: &IceUrl, server: SocketAddr) -> Result<Link, Finding> {
        let opened = match url.transport {
            Transport::Udp => Link::udp(server).await,
            Transport::Tcp => Link::tcp(server).await,
            Transport::Tls => return Link::tls(url, server).await,
        };
        opened.map_err(|error| closed(server, &error))
    }

    /// A UDP socket for one server.
    async fn udp(server: SocketAddr) -> io::Result<Link> {
        let socket = UdpSocket::bind(any(server.ip())).await?;
        socket.connect(server).await?;
        Ok(Link {
            local: socket.local_addr()?,
            server,
            socket: Socket::Udp(socket),
        })
    }

    async fn tcp(server: SocketAddr) -> io::Result<Link> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await??;
        stream.set_nodelay(true)?;
        Ok(Link {
            local: stream.local_addr()?,
            server,
            socket: Socket::Stream(Box::new(stream)),
        })
    }

    async fn tls(url: &IceUrl, server: SocketAddr) -> Result<Link, Finding> {
        let tls = tls::Client::without_alpn()?;
        let opened = timeout(CONNECT_TIMEOUT, TcpStream::connect(server)).await;
        let stream = opened.map_err(io::Error::from).flatten();
        let stream = stream.map_err(|error| closed(server, &error))?;
        let local = stream
            .local_addr()
            .map_err(|error| closed(server, &error))?;
        let shaken = timeout(CONNECT_TIMEOUT, tls.connect(&url.host, stream)).await;
        let shaken = shaken.map_err(io::Error::from).flatten();
        let stream = shaken.map_err(|error| {
            let detail = tls.finding(&url.host, Some(error)).detail;
            Finding::failed(detail, TLS_ADVICE)
        })?;
        Ok(Link {
            local,
            server,
            socket: Socket::Stream(stream),
        })
    }

    /// The UDP socket, from now on for packets from any address.
    pub(super) async fn into_unconnected(self) -> Option<UdpSocket> {
        let Socket::Udp(socket) = self.socket else {
            return None;
        };
        drop(socket);
        UdpSocket::bind(self.local).await.ok()
    }

    pub(super) fn is_udp(&self) -> bool {
        matches!(self.socket, Socket::Udp(_))
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.socket {
            Socket::Udp(socket) => socket.send(bytes).await.map(drop),
            Socket::Stream(stream) => timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await?,
        }
    }

    /// A packet, or the next bytes of a stream.
    pub(super) async fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 2048];
        let length = match &mut self.socket {
            Socket::Udp(socket) => socket.recv(&mut buffer).await?,
            Socket::Stream(stream) => match stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => length,
            },
        };
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// Any port of this machine, for packets to a peer.
pub(super) fn any(peer: IpAddr) -> SocketAddr {
    match peer {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The finding for a server that does not answer.
pub(super) fn closed(server: SocketAddr, error: &io::Error) -> Finding {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "the port is closed: start the STUN or TURN server, and check the port in --turn-listen, --turn-url or \
             --ice-server"
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "check what the STUN or TURN server logs, and that it serves TURN if the URL says turn:"
        }
        _ => {
            "check that the server runs there (--turn-address must be the address of --turn-listen that clients reach), and \
             serves TURN if the URL says turn:, and open the port in its firewall"
        }
    };
    Finding::failed(format!("{server}: {}", why(error)), advice)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_cannot_be_opened() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = SocketAddr::from(([127, 0, 0, 94], open.port()));
        let url = "turn:a?transport=tcp".parse().unwrap();
        let link = Link::open_one(&url, vec![closed, open]).await.unwrap();
        assert_eq!(link.server, open);
        drop(listener);
        let finding = Link::open_one(&url, vec![closed, open]).await.err();
        let detail = finding.unwrap().detail;
        assert!(detail.contains(&closed.to_string()), "{detail}");
    }
}
