//! The state of the TURN server, and the way of a datagram through it.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use log::debug;
use stun_types::message::{Message, MessageWrite, MessageWriteExt, MessageWriteVec};
use tokio::{task::yield_now, time::sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use turn_types::{
    attribute::{Data, XorPeerAddress},
    message::DATA,
};

use super::{
    address_rate::AddressRate,
    allocation::{Allocation, Opening},
    allocations::Allocations,
    client::Client,
    credentials::Credentials,
    five_tuple::FiveTuple,
    peer_policy::{PeerPolicy, Reach},
    quotas::Quotas,
    relay_ports::{ATTEMPTS, RelayPorts},
    sessions::{SessionUse, Sessions, allows},
};
use crate::{
    config::TurnOptions,
    metrics::{Metrics, Relayed, RelayedTraffic},
};

/// The bytes before the data of ChannelData: the channel and the length (RFC 8656, section 12.4).
pub(super) const CHANNEL_HEADER: usize = 4;

/// The bytes of the longest UDP datagram.
const MAX_DATAGRAM: usize = 1 << 16;

/// The most bytes of data that are relayed at once, so that they and the attributes around them fit into a STUN
/// message.
const MAX_DATA: usize = 65_000;

/// What a datagram costs beside its data, in bytes: about its headers.
const DATAGRAM_COST: usize = 48;

/// How many datagrams of one relayed address are passed on before other tasks have their turn.
const BATCH_DATAGRAMS: usize = 64;

thread_local! {
    /// Where datagrams of peers are read to, behind room for the header of ChannelData. It is shared so that an
    /// allocation without traffic needs no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHANNEL_HEADER + MAX_DATAGRAM]);
}

/// What all clients share.
pub(super) struct TurnState {
    pub(super) options: TurnOptions,
    pub(super) credentials: Credentials,
    pub(super) sessions: Sessions,
    pub(super) allocations: Allocations,
    pub(super) peer_policy: PeerPolicy,
    pub(super) quotas: Quotas,
    pub(super) address_rate: AddressRate,
    ports: RelayPorts,
    /// The rate of bytes of all sessions together, if it is limited.
    bandwidth: Option<DefaultDirectRateLimiter>,
    metrics: Arc<Metrics>,
    traffic: RelayedTraffic,
    /// The tasks of listeners, allocations and connections.
    pub(super) tasks: TaskTracker,
    /// Cancelled when all of them must end.
    pub(super) stopped: CancellationToken,
}

impl TurnState {
    /// The state of a server that listens on this address, and whose allocations and connections may each have so many
    /// `files`.
    ///
    /// # Errors
    ///
    /// The addresses of this machine cannot be read.
    pub(super) fn new(
        options: TurnOptions,
        listen: IpAddr,
        files: usize,
        metrics: Arc<Metrics>,
    ) -> io::Result<TurnState> {
        let limiter = |rate| RateLimiter::direct(Quota::per_second(rate));
        Ok(TurnState {
            credentials: Credentials::new(),
            sessions: Sessions::default(),
            allocations: Allocations::default(),
            peer_policy: PeerPolicy::new(&options)?,
            quotas: Quotas::new(options.address_allocations.get(), files),
            address_rate: AddressRate::new(),
            ports: RelayPorts::new(options.relay_ports.ports(), listen),
            bandwidth: options.total_bytes_per_second.map(limiter),
            traffic: metrics.relayed_traffic(),
            metrics,
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            options,
        })
    }

    /// Counts what was refused or lost for this reason.
    pub(super) fn count_refusal(&self, reason: &'static str) {
        self.metrics.turn_refusals(reason).inc();
    }

    /// Opens an allocation at `address`, with an even port if `is_even`. `None` if there is no free port.
    pub(super) fn open(
        &self,
        opening: Opening,
        address: IpAddr,
        is_even: bool,
    ) -> Option<Arc<Allocation>> {
        let count = self.ports.count() * self.options.addresses.len();
        let shuffled = self.ports.shuffled(address, is_even);
        let free = self.allocations.free(shuffled, ATTEMPTS, count);
        let bound = self.ports.bind(free.into_iter())?;
        let allocation = Arc::new(Allocation::new(opening, bound));
        self.allocations.add(&allocation).then_some(allocation)
    }

    /// Begins to relay for an allocation that was opened.
    pub(super) fn start(self: &Arc<TurnState>, allocation: Arc<Allocation>) {
        self.metrics.turn_allocations.inc();
        self.metrics.turn_allocations_opened.inc();
        let (client, relayed) = (allocation.client.five_tuple.address(), allocation.relayed);
        debug!("{} relays at {relayed} for {client}", allocation.username);
        let state = self.clone();
        self.tasks.spawn(state.run(allocation.clone()));
        if self.stopped.is_cancelled() {
            // It was added too late to be ended with the others.
            self.end(&allocation);
        }
    }

    /// Ends the allocation of a client, if it has one of this session.
    pub(super) fn end_of_session(&self, client: &FiveTuple, session: &Arc<SessionUse>) {
        let allocation = self.allocations.of(client);
        if let Some(allocation) = allocation.filter(|it| Arc::ptr_eq(&it.session, session)) {
            self.end(&allocation);
        }
    }

    /// Ends the allocation of a client whose connection has ended (RFC 8656, section 7), if it has one.
    pub(super) fn end_of_connection(&self, client: &Client) {
        let allocation = self.allocations.of(&client.five_tuple);
        if let Some(allocation) = allocation.filter(|it| it.client.is_same(client)) {
            self.end(&allocation);
        }
    }

    /// Ends an allocation.
    pub(super) fn end(&self, allocation: &Arc<Allocation>) {
        if self.allocations.remove(allocation) {
            allocation.session.remove(&allocation.client.five_tuple);
            allocation.end();
            self.metrics.turn_allocations.dec();
            debug!(
                "{} relays at {} no more",
                allocation.username, allocation.relayed
            );
        }
    }

    /// Ends all allocations and connections, and waits for their tasks.
    pub(super) async fn stop(&self) {
        self.stopped.cancel();
        let allocations = self.allocations.all();
        allocations.iter().for_each(|it| self.end(it));
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Passes on what peers send, until the allocation ends.
    async fn run(self: Arc<TurnState>, allocation: Arc<Allocation>) {
        let mut expiry = pin!(sleep_until(allocation.expires_at()));
        loop {
            tokio::select! {
                biased;
                () = allocation.changed.notified() => expiry.as_mut().reset(allocation.expires_at()),
                () = expiry.as_mut() => return self.end(&allocation),
                // If this fails, so does the read.
                _ = allocation.socket.readable() => {
                    if self.read_peers(&allocation) {
                        yield_now().await;
                    }
                }
            }
        }
    }

    /// Passes on what has come from peers. Returns whether there may be more.
    fn read_peers(&self, allocation: &Allocation) -> bool {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH_DATAGRAMS {
                match allocation
                    .socket
                    .try_recv_from(&mut buffer[CHANNEL_HEADER..])
                {
                    Ok((length, peer)) => {
                        let framed = &mut buffer[..CHANNEL_HEADER + length];
                        self.pass_to_client(allocation, peer, framed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                    // The kernel reports that an earlier datagram did not reach its peer.
                    Err(_) => {}
                }
            }
            true
        })
    }

    /// Passes data of a client to a peer. Before the data in `framed` is room for the header of ChannelData.
    pub(super) fn pass_to_peer(
        &self,
        allocation: &Allocation,
        (peer, reach): (SocketAddr, Reach),
        framed: &mut [u8],
    ) {
        if !self.allows(allocation, framed, true) {
            return;
        }
        // Another relay is reached also where the public address does not lead back to this machine.
        if self.options.addresses.contains(&peer.ip())
            && let Some(other) = self.allocations.at(peer)
        {
            self.count(&self.traffic.to_peers, framed, true);
            self.pass_to_client(&other, allocation.relayed, framed);
        } else if reach == Reach::Network {
            let data = &framed[CHANNEL_HEADER..];
            let sent = allocation.socket.try_send_to(data, peer);
            self.count(&self.traffic.to_peers, framed, sent.is_ok());
        }
    }

    /// Passes data of a peer to the client, if the client permits the peer. Before the data in `framed` is room for the
    /// header of ChannelData.
    pub(super) fn pass_to_client(
        &self,
        allocation: &Allocation,
        peer: SocketAddr,
        framed: &mut [u8],
    ) {
        if allocation.permitted(peer.ip()).is_none() {
            return;
        }
        let channel = allocation.channel_of(peer);
        if !self.allows(allocation, framed, channel.is_some()) {
            return;
        }
        let length = framed.len() - CHANNEL_HEADER;
        let is_sent = match channel {
            _ if length > MAX_DATA => false,
            Some(number) => {
                let [high, low] = (length as u16).to_be_bytes();
                let [first, second] = number.to_be_bytes();
                framed[..CHANNEL_HEADER].copy_from_slice(&[first, second, high, low]);
                allocation.client.send(framed)
            }
            None => {
                let indication = data_indication(peer, &framed[CHANNEL_HEADER..]);
                allocation.client.send(&indication)
            }
        };
        self.count(&self.traffic.to_clients, framed, is_sent);
    }

    /// Charges the session of an allocation for data. Returns whether it may pass.
    fn allows(&self, allocation: &Allocation, framed: &[u8], has_channel: bool) -> bool {
        let cost = framed.len() - CHANNEL_HEADER + DATAGRAM_COST;
        let total = self.bandwidth.as_ref();
        let is_allowed = allocation.session.allows(cost, has_channel)
            && total.is_none_or(|rate| allows(rate, cost));
        if !is_allowed {
            self.count_refusal("bandwidth");
        }
        is_allowed
    }

    fn count(&self, relayed: &Relayed, framed: &[u8], is_sent: bool) {
        match is_sent {
            true => relayed.count(framed.len() - CHANNEL_HEADER),
            false => self.count_refusal("lost"),
        }
    }
}

/// The Data indication for a client that has no channel for the peer (RFC 8656, section 11.5).
fn data_indication(peer: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut indication = Message::builder_indication(DATA, MessageWriteVec::new());
    let peer = XorPeerAddress::new(peer, indication.transaction_id());
    for attribute in [&peer as _, &Data::new(data) as _] {
        indication
            .add_attribute(attribute)
            .expect("there is one of each");
    }
    indication.finish()
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        protocol::SessionId,
        turn::{client::Link, five_tuple::Transport, tcp_queue::tcp_queue},
    };

    /// An address of this machine that no other test uses.
    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 79));

    #[tokio::test(start_paused = true)]
    async fn an_allocation_ends_when_it_expires_also_earlier_than_it_was_to() {
        let options = TurnOptions {
            addresses: vec![ADDRESS],
            relay_ports: "50020-50020".parse().unwrap(),
            ..TurnOptions::default()
        };
        let metrics = Arc::new(Metrics::new(false, true, [], []));
        let state = Arc::new(TurnState::new(options, ADDRESS, 1, metrics).unwrap());
        let session = state.sessions.add(SessionId::random(), NonZeroU32::MAX);
        let client = Client {
            five_tuple: FiveTuple {
                transport: Transport::Tcp,
                client: (ADDRESS, 5000).into(),
                server: None,
            },
            link: Link::Tcp(tcp_queue().0),
        };
        let seconds = |count| Instant::now() + Duration::from_secs(count);
        for (first, then) in [(600, None), (600, Some(60)), (60, Some(600))] {
            let opening = Opening {
                client: client.clone(),
                username: "alice".into(),
                opened_by: 1.into(),
                session: session.clone(),
                expires_at: seconds(first),
                // The quota of one is free again each time.
                slot: state.quotas.take_allocation(ADDRESS).unwrap(),
            };
            let allocation = state.open(opening, ADDRESS, false).unwrap();
            let weak = Arc::downgrade(&allocation);
            state.start(allocation.clone());
            if let Some(then) = then {
                allocation.refresh(seconds(then));
            }
            drop(allocation);
            let is_open = || state.allocations.of(&client.five_tuple).is_some();
            sleep(Duration::from_secs(then.unwrap_or(first) - 1)).await;
            assert!(is_open());
            sleep(Duration::from_secs(2)).await;
            assert!(!is_open() && weak.upgrade().is_none());
        }
    }
}
