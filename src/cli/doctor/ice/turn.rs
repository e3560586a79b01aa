//! TURN (RFC 8656): an allocation, and a packet through it.

use std::{
    borrow::Cow,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use stun_types::{
    TransportType,
    attribute::ErrorCode,
    message::{Message, MessageHeader, TransactionId},
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};
use turn_client_proto::{
    api::{Transmit, TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet},
    client::TurnClient,
    prelude::DelayedTransmitBuild,
    tcp::TurnClientTcp,
    types::TurnCredentials,
    udp::TurnClientUdp,
};

use super::{
    super::report::Finding,
    link::{Link, any, closed},
    stun,
    url::IceUrl,
};

/// How long an allocation, or a permission, may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most requests that the server may refuse. An allocation and its permissions make a few, and more if the server
/// changes the nonce.
const MAX_REFUSED: usize = 16;

/// How often the packet is sent, since UDP loses packets, and how long each one may take.
const PACKETS: usize = 3;
const PACKET_TIMEOUT: Duration = Duration::from_millis(700);

/// What to do if packets do not arrive.
const RELAY_ADVICE: &str = "open the relay's UDP ports in its firewall (--turn-relay-ports; 49152-65535 unless \
     configured), and check that the address it announces is the one that others reach (--turn-address, or external-ip \
     in coturn)";

/// What is relayed.
const PAYLOAD: &[u8] = b"anteroom doctor";

/// The name and password that `hello` gives.
pub(super) struct Credentials<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

/// What a relay has to say.
enum Event {
    Turn(TurnEvent),
    /// A packet from a peer.
    Packet(Vec<u8>),
    /// The server answered with an error of this code. The client ignores one that is not signed with the
    /// password, such as that of a server that has another secret.
    Error(u16),
    /// The connection to the server failed.
    Failed(io::Error),
}

/// Does the step of a TURN server.
pub(super) async fn check(url: &IceUrl, credentials: &Credentials<'_>) -> Result<Finding, Finding> {
    let mut first = Allocation::create(url, credentials).await?;
    let mut second = Allocation::create(url, credentials).await;
    let finding = relay(url, &mut first, second.as_mut()).await;
    first.delete().await;
    if let Ok(second) = second {
        second.delete().await;
    }
    Ok(finding)
}

/// Sends packets between two allocations, and between one and a socket of this machine. The first alone proves little:
/// such a packet need not leave the server. The second alone proves that the relay works: a relay may have a quota of
/// one allocation, may refuse its own address, or may not reach it through a NAT.
async fn relay(
    url: &IceUrl,
    first: &mut Allocation,
    second: Result<&mut Allocation, &mut Finding>,
) -> Finding {
    let relayed = first.relayed;
    let (between, problem, advice) = match second {
        Ok(second) => (
            first.reaches(second).await,
            "it permits no peer at its own address".into(),
            "this is right for a relay that refuses private peers; if its address is public, allow it (--turn-allow-peer, \
             or allowed-peer-ip in coturn)".into(),
        ),
        Err(finding) => (
            Passage::Untried,
            finding.detail.clone(),
            finding.advice.clone().unwrap_or_default(),
        ),
    };
    match (between, first.reaches_this_machine(url).await) {
        (Passage::Arrived, Passage::Arrived) => {
            Finding::ok(format!("allocates {relayed}, and relays a packet"))
        }
        (_, Passage::Arrived) => Finding::ok(format!(
            "allocates {relayed}, and relays a packet to this machine"
        )),
        (Passage::Arrived, Passage::Refused(address)) => Finding::ok(format!(
            "allocates {relayed}, and relays a packet between its own addresses; it refuses this machine's address \
             {address}, as is right if that is private"
        )),
        (Passage::Arrived, _) => Finding::warning(
            format!(
                "relays between its own addresses, but nothing between {relayed} and this machine"
            ),
            RELAY_ADVICE,
        ),
        (Passage::Lost, _) | (_, Passage::Lost) => Finding::failed(
            format!("allocates {relayed}, but relays nothing"),
            RELAY_ADVICE,
        ),
        _ => Finding::warning(
            format!("allocates {relayed}, but no packet could be sent through it: {problem}"),
            advice,
        ),
    }
}

/// What becomes of packets through a relay.
enum Passage {
    Arrived,
    Lost,
    /// The relay refuses the peer's address.
    Refused(IpAddr),
    /// None could be sent.
    Untried,
}

/// An address at a TURN server, and the socket to the server.
struct Allocation {
    client: TurnClient,
    link: Link,
    relayed: SocketAddr,
    /// The requests that the server has answered with an error. It answers one twice that is sent twice.
    refused: Vec<TransactionId>,
    began: std::time::Instant,
}

impl Allocation {
    /// Asks for an address.
    ///
    /// # Errors
    ///
    /// The finding that says why there is none.
    async fn create(url: &IceUrl, credentials: &Credentials<'_>) -> Result<Allocation, Finding> {
        let link = Link::open(url).await?;
        let config = TurnConfig::new(TurnCredentials::new(credentials.name, credentials.password));
        let client: TurnClient = match link.is_udp() {
            true => TurnClientUdp::allocate(link.local, link.server, config).into(),
            false => TurnClientTcp::allocate(link.local, link.server, config).into(),
        };
        let mut allocation = Allocation {
            client,
            relayed: link.server,
            link,
            refused: Vec::new(),
            began: std::time::Instant::now(),
        };
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match allocation.next(deadline).await {
                Some(Event::Turn(TurnEvent::AllocationCreated(_, relayed))) => {
                    allocation.relayed = relayed;
                    return Ok(allocation);
                }
                // The first 401 only asks for credentials, and 438 for the same with another nonce.
                Some(Event::Error(401)) if allocation.refused.len() == 1 => {}
                Some(Event::Error(438)) => {}
                Some(Event::Error(code)) => return Err(refused(code)),
                Some(Event::Turn(TurnEvent::AllocationCreateFailed(_))) => return Err(refused(0)),
                Some(Event::Failed(error)) => return Err(closed(allocation.link.server, &error)),
                Some(_) => {}
                None => {
                    let silence = io::ErrorKind::TimedOut.into();
                    return Err(closed(allocation.link.server, &silence));
                }
            }
        }
    }

    /// Asks that a peer may send to this allocation.
    ///
    /// # Errors
    ///
    /// What becomes of the peer's packets.
    async fn permit(&mut self, peer: IpAddr) -> Result<(), Passage> {
        let now = self.now();
        if self
            .client
            .create_permission(TransportType::Udp, peer, now)
            .is_err()
        {
            // It exists already, or the relayed address is of the other family.
            return match self.client.have_permission(TransportType::Udp, peer) {
                true => Ok(()),
                false => Err(Passage::Untried),
            };
        }
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.next(deadline).await {
                Some(Event::Turn(TurnEvent::PermissionCreated(_, of))) if of == peer => {
                    return Ok(());
                }
                Some(Event::Turn(TurnEvent::PermissionCreateFailed(_, of))) if of == peer => {
                    return Err(Passage::Untried);
                }
                Some(Event::Error(438)) => {}
                Some(Event::Error(403)) => return Err(Passage::Refused(peer)),
                Some(Event::Error(_) | Event::Failed(_)) | None => return Err(Passage::Untried),
                Some(_) => {}
            }
        }
    }

    /// Sends packets to another allocation.
    async fn reaches(&mut self, other: &mut Allocation) -> Passage {
        let permitted = match self.permit(other.relayed.ip()).await {
            Ok(()) => other.permit(self.relayed.ip()).await,
            refused => refused,
        };
        if let Err(passage) = permitted {
            return passage;
        }
        for _ in 0..PACKETS {
            if self.send(other.relayed).await.is_err() {
                return Passage::Lost;
            }
            if other.receives(Instant::now() + PACKET_TIMEOUT).await {
                return Passage::Arrived;
            }
        }
        Passage::Lost
    }

    /// Sends packets to and from a UDP socket of this machine.
    async fn reaches_this_machine(&mut self, url: &IceUrl) -> Passage {
        let Some((socket, mapped)) = socket_of_this_machine(url).await else {
            return Passage::Untried;
        };
        if let Err(passage) = self.permit(mapped.ip()).await {
            return passage;
        }
        let relayed = self.relayed;
        for _ in 0..PACKETS {
            // It makes a NAT on the way let in what the relay sends. It cannot be sent if there is no route.
            let _ = socket.send_to(PAYLOAD, relayed).await;
            if self.send(mapped).await.is_err() {
                return Passage::Untried;
            }
            let is_received = tokio::select! {
                biased;
                () = arrives(&socket, relayed) => true,
                is_received = self.receives(Instant::now() + PACKET_TIMEOUT) => is_received,
            };
            if is_received {
                return Passage::Arrived;
            }
        }
        Passage::Lost
    }

    /// Waits for the packet. Returns whether it arrives.
    async fn receives(&mut self, deadline: Instant) -> bool {
        while let Some(event) = self.next(deadline).await {
            match event {
                Event::Packet(data) if data == PAYLOAD => return true,
                Event::Failed(_) => return false,
                _ => {}
            }
        }
        false
    }

    /// Sends the packet to a peer.
    async fn send(&mut self, peer: SocketAddr) -> io::Result<()> {
        let now = self.now();
        let built = self.client.send_to(TransportType::Udp, peer, PAYLOAD, now);
        match built.map_err(io::Error::other)? {
            Some(packet) => self.link.send(&packet.data.build()).await,
            None => Ok(()),
        }
    }

    /// The next event; `None` after the deadline.
    async fn next(&mut self, deadline: Instant) -> Option<Event> {
        loop {
            if let Err(error) = self.flush().await {
                return Some(Event::Failed(error));
            }
            if let Some(event) = self.client.poll_event() {
                return Some(Event::Turn(event));
            }
            let now = self.now();
            if let Some(packet) = self.client.poll_recv(now) {
                return Some(Event::Packet(packet.data().to_vec()));
            }
            let wait = match self.client.poll(now) {
                TurnPollRet::WaitUntil(until) => until.saturating_duration_since(now),
                TurnPollRet::Closed => {
                    return match self.client.poll_event() {
                        Some(event) => Some(Event::Turn(event)),
                        None => Some(Event::Failed(io::ErrorKind::TimedOut.into())),
                    };
                }
                _ => PACKET_TIMEOUT,
            };
            // The poll may have made packets and events.
            if let Err(error) = self.flush().await {
                return Some(Event::Failed(error));
            }
            if let Some(event) = self.client.poll_event() {
                return Some(Event::Turn(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match timeout(
                left.min(wait.max(Duration::from_millis(1))),
                self.link.receive(),
            )
            .await
            {
                Ok(Ok(bytes)) => {
                    let error = error(&bytes);
                    let (local, server) = (self.link.local, self.link.server);
                    let transport = self.client.transport();
                    let transmit = Transmit::new(bytes, transport, server, local);
                    let now = self.now();
                    if let TurnRecvRet::PeerData(packet) = self.client.recv(transmit, now) {
                        return Some(Event::Packet(packet.data().to_vec()));
                    }
                    if let Some((request, code)) = error
                        && !self.refused.contains(&request)
                    {
                        if self.refused.len() == MAX_REFUSED {
                            let error = io::Error::other("it answers with errors only");
                            return Some(Event::Failed(error));
                        }
                        self.refused.push(request);
                        return Some(Event::Error(code));
                    }
                }
                Ok(Err(error)) => return Some(Event::Failed(error)),
                Err(_) => {}
            }
        }
    }

    /// Sends what the client has to send.
    async fn flush(&mut self) -> io::Result<()> {
        let now = self.now();
        while let Some(packet) = self.client.poll_transmit(now) {
            self.link.send(&without_dont_fragment(&packet.data)).await?;
        }
        Ok(())
    }

    /// Gives the address back.
    async fn delete(mut self) {
        let now = self.now();
        if self.client.delete(now).is_ok() {
            // If the packet is lost, the allocation expires.
            let _ = self.flush().await;
        }
    }

    fn now(&self) -> turn_client_proto::stun::Instant {
        turn_client_proto::stun::Instant::from_std(self.began)
    }
}

/// A UDP socket of this machine, and its address as the server sees it. The port is a guess if the server is not asked
/// over UDP.
async fn socket_of_this_machine(url: &IceUrl) -> Option<(UdpSocket, SocketAddr)> {
    let mut link = Link::open(url).await.ok()?;
    let mapped = stun::bind(&mut link).await.ok()?;
    let address = mapped.ip().to_canonical();
    if url.is_udp() {
        let socket = link.into_unconnected().await?;
        return Some((socket, SocketAddr::new(address, mapped.port())));
    }
    let socket = UdpSocket::bind(any(address)).await.ok()?;
    let port = socket.local_addr().ok()?.port();
    Some((socket, SocketAddr::new(address, port)))
}

/// Waits for the packet from this address: a NAT lets in none from another.
async fn arrives(socket: &UdpSocket, from: SocketAddr) {
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, sender)) if sender == from && buffer[..length] == *PAYLOAD => return,
            Ok(_) => {}
            Err(_) => pending().await,
        }
    }
}

/// A packet without the attribute DONT-FRAGMENT (RFC 8656, section 18.8) at its end. The client puts it into its first
/// request; browsers do not, and a server need not know it.
fn without_dont_fragment(packet: &[u8]) -> Cow<'_, [u8]> {
    const ALLOCATE: [u8; 2] = [0, 3];
    const DONT_FRAGMENT: [u8; 4] = [0, 0x1a, 0, 0];
    match packet.strip_suffix(&DONT_FRAGMENT) {
        Some(rest) if packet.starts_with(&ALLOCATE) => {
            let mut rest = rest.to_vec();
            // The length in the header is that of the attributes.
            let length = rest.len().saturating_sub(MessageHeader::LENGTH) as u16;
            rest[2..4].copy_from_slice(&length.to_be_bytes());
            rest.into()
        }
        _ => packet.into(),
    }
}

/// The request and the code of an error answer.
fn error(bytes: &[u8]) -> Option<(TransactionId, u16)> {
    let message = Message::from_bytes(bytes).ok()?;
    let code = message.attribute::<ErrorCode>().ok()?;
    Some((message.transaction_id(), code.code()))
}

/// The finding for an allocation that the server refuses with this code, 0 if it has none.
fn refused(code: u16) -> Finding {
    let (detail, advice) = match code {
        401 => (
            "it refuses the credentials",
            "the secret in --turn-secret-file must be that of the TURN server (static-auth-secret in coturn), and both \
             clocks must agree; a server of --turn-listen knows only the sessions of its own process",
        ),
        403 => (
            "it refuses this client",
            "check its list of allowed addresses",
        ),
        437 => ("it has another allocation for this port", "try again"),
        441 => ("it refuses other credentials than before", "try again"),
        486 => (
            "a quota of the session, user or address is used up",
            "raise it to more than one allocation for each peer (--turn-session-allocations and \
             --turn-address-allocations, or user-quota and total-quota in coturn)",
        ),
        508 => (
            "it has no free ports",
            "give it more relay ports (--turn-relay-ports, or min-port and max-port in coturn), or lower the allocations \
             of each client (--turn-session-allocations and --turn-address-allocations, or user-quota in coturn)",
        ),
        0 => (
            "it does not answer as a TURN server",
            "check that a TURN server has this port, not only a STUN server",
        ),
        _ => (
            "it refuses the allocation",
            "check what the TURN server logs",
        ),
    };
    match code {
        0 => Finding::failed(detail, advice),
        code => Finding::failed(format!("{detail} ({code})"), advice),
    }
}

#[cfg(test)]
mod tests {
    use stun_types::{
        attribute::{AttributeType, AttributeWrite, Nonce, Realm},
        message::{MessageWrite, MessageWriteExt, MessageWriteVec},
    };

    use super::*;

    #[test]
    fn the_first_request_has_no_dont_fragment() {
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|it| it.parse().unwrap());
        let config = TurnConfig::new(TurnCredentials::new("name", "password"));
        let mut client = TurnClientUdp::allocate(addresses[0], addresses[1], config);
        let now = turn_client_proto::stun::Instant::from_nanos(0);
        client.poll(now);
        let packet = client.poll_transmit(now).unwrap().data;
        let sent = without_dont_fragment(&packet);
        assert_eq!(sent.len(), packet.len() - 4);
        let message = Message::from_bytes(&sent).unwrap();
        assert!(message.raw_attribute(AttributeType::new(0x1a)).is_none());
        assert!(message.raw_attribute(AttributeType::new(0x19)).is_some());
    }

    /// The answer of a TURN server that refuses a request.
    fn refuse(request: &[u8], code: u16) -> Vec<u8> {
        let request = Message::from_bytes(request).unwrap();
        let mut answer = Message::builder_error(&request, MessageWriteVec::new());
        let error = ErrorCode::new(code, "").unwrap();
        let (realm, nonce) = (Realm::new("realm").unwrap(), Nonce::new("nonce").unwrap());
        for attribute in [&error as &dyn AttributeWrite, &realm, &nonce] {
            answer.add_attribute(attribute).unwrap();
        }
        answer.finish()
    }

    #[tokio::test]
    async fn a_request_that_is_answered_twice_is_refused_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let url = format!("turn:{}", socket.local_addr().unwrap());
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = refuse(&buffer[..length], 401);
            for _ in 0..2 {
                socket.send_to(&answer, client).await.unwrap();
            }
            let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
            let answer = refuse(&buffer[..length], 486);
            socket.send_to(&answer, client).await.unwrap();
        });
        let credentials = Credentials {
            name: "name",
            password: "password",
        };
        let created = Allocation::create(&url.parse().unwrap(), &credentials).await;
        let finding = created.err().unwrap();
        assert!(finding.detail.contains("(486)"), "{finding:?}");
    }

    #[test]
    fn refusals_are_named() {
        for (code, detail, advice) in [
            (401, "refuses the credentials (401)", "--turn-listen"),
            (486, "quota of the session", "--turn-session-allocations"),
            (508, "no free ports", "--turn-relay-ports"),
            (437, "another allocation", "try again"),
            (0, "not answer as a TURN server", "has this port"),
        ] {
            let finding = refused(code);
            assert!(finding.detail.contains(detail), "{finding:?}");
            assert!(finding.advice.unwrap().contains(advice), "{detail}");
        }
    }
}
