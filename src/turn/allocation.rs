//! One allocation (RFC 8656, section 2.2), and the peers that its client has chosen.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use stun_types::message::TransactionId;
use tokio::{net::UdpSocket, sync::Notify, time::Instant};

use super::{client::Client, peer_policy::Reach, quotas::Slot, sessions::SessionUse};

/// How long a permission lasts (RFC 8656, section 9).
const PERMISSION: Duration = Duration::from_secs(300);

/// How long a channel lasts (RFC 8656, section 12).
const CHANNEL: Duration = Duration::from_secs(600);

/// The most permissions, and the most channels, of one allocation. A browser has an allocation for each peer, and
/// permits each address of the peer.
const MAX_PEERS: usize = 128;

/// A relayed address, and whose it is.
pub(super) struct Allocation {
    pub(super) client: Client,
    /// The socket of the relayed address.
    pub(super) socket: UdpSocket,
    /// The relayed address as peers see it.
    pub(super) relayed: SocketAddr,
    /// The user name of the client's credentials.
    pub(super) username: String,
    /// The request that opened the allocation.
    pub(super) opened_by: TransactionId,
    pub(super) session: Arc<SessionUse>,
    /// Notified when `expires_at` has changed.
    pub(super) changed: Notify,
    expires_at: Mutex<Instant>,
    slot: Mutex<Option<Slot>>,
    peers: Mutex<Peers>,
}

/// What an allocation begins with.
pub(super) struct Opening {
    pub(super) client: Client,
    pub(super) username: String,
    pub(super) opened_by: TransactionId,
    pub(super) session: Arc<SessionUse>,
    pub(super) expires_at: Instant,
    pub(super) slot: Slot,
}

/// The peers of an allocation.
#[derive(Default)]
struct Peers {
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

/// Lets datagrams pass between a client and every port of a peer.
struct Permission {
    peer: IpAddr,
    reach: Reach,
    expires_at: Instant,
}

/// A number that stands for a peer.
struct Channel {
    number: u16,
    peer: SocketAddr,
    reach: Reach,
    expires_at: Instant,
}

/// Why a peer cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerError {
    /// The channel is another peer's, or the peer has another channel.
    Taken,
    /// The allocation has as many peers as it may have.
    Full,
}

impl Allocation {
    /// An allocation of this relayed address, without peers.
    pub(super) fn new(opening: Opening, (socket, relayed): (UdpSocket, SocketAddr)) -> Allocation {
        Allocation {
            client: opening.client,
            socket,
            relayed,
            username: opening.username,
            opened_by: opening.opened_by,
            session: opening.session,
            changed: Notify::new(),
            expires_at: Mutex::new(opening.expires_at),
            slot: Mutex::new(Some(opening.slot)),
            peers: Mutex::default(),
        }
    }

    /// When the allocation ends.
    pub(super) fn expires_at(&self) -> Instant {
        *self.expires_at.lock()
    }

    /// Changes when the allocation ends.
    pub(super) fn refresh(&self, expires_at: Instant) {
        *self.expires_at.lock() = expires_at;
        self.changed.notify_one();
    }

    /// Ends the allocation now, and gives its slot back.
    pub(super) fn end(&self) {
        self.slot.lock().take();
        self.refresh(Instant::now());
    }

    /// Permits all of these peers for five minutes, or none.
    pub(super) fn permit(&self, peers: &[(IpAddr, Reach)]) -> Result<(), PeerError> {
        let now = Instant::now();
        self.peers.lock().permit(peers, now)
    }

    /// Gives a peer a channel for ten minutes, and permits it.
    pub(super) fn bind(
        &self,
        number: u16,
        peer: SocketAddr,
        reach: Reach,
    ) -> Result<(), PeerError> {
        let now = Instant::now();
        self.peers.lock().bind(number, peer, reach, now)
    }

    /// How datagrams reach a peer; `None` if it is not permitted.
    pub(super) fn permitted(&self, peer: IpAddr) -> Option<Reach> {
        let now = Instant::now();
        self.peers.lock().permitted(peer, now)
    }

    /// The peer of a channel, and how datagrams reach it.
    pub(super) fn channel(&self, number: u16) -> Option<(SocketAddr, Reach)> {
        let now = Instant::now();
        self.peers.lock().channel(number, now)
    }

    /// The channel of a peer.
    pub(super) fn channel_of(&self, peer: SocketAddr) -> Option<u16> {
        let now = Instant::now();
        self.peers.lock().channel_of(peer, now)
    }
}

impl Peers {
    fn bind(
        &mut self,
        number: u16,
        peer: SocketAddr,
        reach: Reach,
        now: Instant,
    ) -> Result<(), PeerError> {
        let channels = &mut self.channels;
        channels.retain(|it| it.expires_at > now);
        let mut others = channels.iter();
        if others.any(|it| (it.number == number) != (it.peer == peer)) {
            return Err(PeerError::Taken);
        }
        let known = channels.iter().position(|it| it.number == number);
        if known.is_none() && channels.len() >= MAX_PEERS {
            return Err(PeerError::Full);
        }
        self.permit(&[(peer.ip(), reach)], now)?;
        let channel = Channel {
            number,
            peer,
            reach,
            expires_at: now + CHANNEL,
        };
        match known {
            Some(index) => self.channels[index] = channel,
            None => self.channels.push(channel),
        }
        Ok(())
    }

    fn permitted(&self, peer: IpAddr, now: Instant) -> Option<Reach> {
        let permission = self.permissions.iter().find(|it| it.peer == peer);
        permission
            .filter(|it| it.expires_at > now)
            .map(|it| it.reach)
    }

    fn channel(&self, number: u16, now: Instant) -> Option<(SocketAddr, Reach)> {
        let channel = self.channels.iter().find(|it| it.number == number);
        let channel = channel.filter(|it| it.expires_at > now);
        channel.map(|it| (it.peer, it.reach))
    }

    fn channel_of(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        let channel = self.channels.iter().find(|it| it.peer == peer);
        channel.filter(|it| it.expires_at > now).map(|it| it.number)
    }

    fn permit(&mut self, peers: &[(IpAddr, Reach)], now: Instant) -> Result<(), PeerError> {
        let permissions = &mut self.permissions;
        permissions.retain(|it| it.expires_at > now);
        if permissions.len() + peers.len() > MAX_PEERS {
            // Those that are known need no room.
            let is_new =
                |(peer, _): &&(IpAddr, Reach)| !permissions.iter().any(|it| it.peer == *peer);
            if permissions.len() + peers.iter().filter(is_new).count() > MAX_PEERS {
                return Err(PeerError::Full);
            }
        }
        for &(peer, reach) in peers {
            let permission = Permission {
                peer,
                reach,
                expires_at: now + PERMISSION,
            };
            match permissions.iter_mut().find(|it| it.peer == peer) {
                Some(known) => *known = permission,
                None => permissions.push(permission),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn permission(peers: &Peers) -> Option<Reach> {
        peers.permitted(PEER, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_lasts_for_five_minutes() {
        let mut peers = Peers::default();
        assert_eq!(permission(&peers), None);
        peers
            .permit(&[(PEER, Reach::Network)], Instant::now())
            .unwrap();
        tokio::time::advance(PERMISSION - Duration::from_secs(1)).await;
        assert_eq!(permission(&peers), Some(Reach::Network));
        peers
            .permit(&[(PEER, Reach::RelaysOnly)], Instant::now())
            .unwrap();
        tokio::time::advance(PERMISSION - Duration::from_secs(1)).await;
        assert_eq!(permission(&peers), Some(Reach::RelaysOnly));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(permission(&peers), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_lasts_for_ten_minutes_and_then_is_free() {
        let mut peers = Peers::default();
        let [one, two] = [1, 2].map(|port| SocketAddr::new(PEER, port));
        let reach = Reach::Network;
        assert_eq!(peers.bind(0x4000, one, reach, Instant::now()), Ok(()));
        tokio::time::advance(CHANNEL - Duration::from_secs(1)).await;
        assert_eq!(
            peers.bind(0x4000, two, reach, Instant::now()),
            Err(PeerError::Taken)
        );
        assert_eq!(peers.channel_of(one, Instant::now()), Some(0x4000));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(peers.channel_of(one, Instant::now()), None);
        assert_eq!(peers.channel(0x4000, Instant::now()), None);
        assert_eq!(peers.bind(0x4000, two, reach, Instant::now()), Ok(()));
        assert_eq!(peers.channel(0x4000, Instant::now()), Some((two, reach)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_peers_of_an_allocation_are_limited() {
        let mut peers = Peers::default();
        let address = |last: usize| IpAddr::from([192, 0, 2, last as u8]);
        let all: Vec<_> = (0..MAX_PEERS)
            .map(|last| (address(last), Reach::Network))
            .collect();
        assert_eq!(peers.permit(&all, Instant::now()), Ok(()));
        assert_eq!(peers.permit(&all, Instant::now()), Ok(()));
        let further = [(address(MAX_PEERS), Reach::Network)];
        assert_eq!(peers.permit(&further, Instant::now()), Err(PeerError::Full));
        tokio::time::advance(PERMISSION).await;
        assert_eq!(peers.permit(&further, Instant::now()), Ok(()));
    }
}
