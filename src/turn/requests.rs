//! The requests of clients, and their answers.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use stun_types::{
    attribute::{AttributeType, MessageIntegrity, Nonce, Realm, Username, XorMappedAddress},
    message::{BINDING, IntegrityKey, Message, StunParseError},
    prelude::{Attribute, AttributeFromRaw, AttributeStaticType},
};
use tokio::time::Instant;
use turn_types::{
    AddressFamily,
    attribute::{
        ChannelNumber, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
        ReservationToken, XorPeerAddress, XorRelayedAddress,
    },
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH},
};

use super::{
    allocation::{Allocation, Opening, PeerError},
    client::Client,
    credentials::{Authenticated, REALM},
    peer_policy::Reach,
    reply::{self, Refusal},
    sessions::{Rejected, SessionUse},
    state::TurnState,
};
use crate::unix_time::unix_seconds;

/// The lifetime of an allocation whose client asks for none or a shorter one, in seconds (RFC 8656, section 3.2).
const DEFAULT_LIFETIME: u64 = 600;

/// The longest lifetime of an allocation, in seconds (RFC 8656, section 7.2).
const MAX_LIFETIME: u64 = 3600;

/// The number of UDP (IANA's protocol numbers), the only transport between relays and peers.
const UDP: u8 = 17;

/// The numbers of channels. RFC 8656 has fewer (section 12), but clients of RFC 5766 use all of these (section 11).
const CHANNELS: RangeInclusive<u16> = 0x4000..=0x7fff;

/// The attributes that a client may ask the server to understand, and that it does.
const KNOWN: [AttributeType; 11] = [
    Username::TYPE,
    Realm::TYPE,
    Nonce::TYPE,
    MessageIntegrity::TYPE,
    RequestedTransport::TYPE,
    RequestedAddressFamily::TYPE,
    EvenPort::TYPE,
    ReservationToken::TYPE,
    Lifetime::TYPE,
    XorPeerAddress::TYPE,
    ChannelNumber::TYPE,
];

/// A request of a client.
struct Request<'a> {
    state: &'a Arc<TurnState>,
    client: &'a Client,
    message: &'a Message<'a>,
    /// The client's allocation.
    allocation: Option<Arc<Allocation>>,
    /// Seconds since 1970.
    now: u64,
}

/// The answer to a request with credentials, or why there is an error in its place.
type Outcome = Result<Vec<u8>, Refusal>;

/// Answers a request. `None` if the client asks too often without credentials.
pub(super) fn answer(
    state: &Arc<TurnState>,
    client: &Client,
    message: &Message<'_>,
) -> Option<Vec<u8>> {
    let request = Request {
        state,
        client,
        message,
        allocation: state.allocations.of(&client.five_tuple),
        now: unix_seconds(),
    };
    if message.has_method(BINDING) {
        return request.may_answer().then(|| request.bind());
    }
    let authenticated = request.authenticate();
    let key = authenticated.as_ref().ok().map(|it| it.key.clone());
    let refusal = match authenticated.and_then(|it| request.handle(&it)) {
        Ok(answer) => return Some(answer),
        Err(refusal) => refusal,
    };
    if let Some(reason) = refusal.counted_as {
        state.count_refusal(reason);
    }
    let may_answer = key.is_some() || request.may_answer();
    may_answer.then(|| request.refuse(&refusal, key.as_ref()))
}

impl Request<'_> {
    /// Whether a request that no credentials have signed is answered. The source of a datagram may be forged.
    fn may_answer(&self) -> bool {
        let may_answer = self.state.address_rate.allows(&self.client.five_tuple);
        if !may_answer {
            self.state.count_refusal("rate");
        }
        may_answer
    }

    /// Tells the client its address (RFC 8489, section 6.3.1).
    fn bind(&self) -> Vec<u8> {
        if !reply::unknown_attributes(self.message, &KNOWN).is_empty() {
            return self.refuse(&Refusal::UNKNOWN_ATTRIBUTE, None);
        }
        let address = self.client.five_tuple.address();
        let mapped = XorMappedAddress::new(address, self.message.transaction_id());
        reply::success(self.message, &[&mapped], None)
    }

    fn refuse(&self, refusal: &Refusal, key: Option<&IntegrityKey>) -> Vec<u8> {
        let unknown = match *refusal == Refusal::UNKNOWN_ATTRIBUTE {
            true => reply::unknown_attributes(self.message, &KNOWN),
            false => Vec::new(),
        };
        let credentials = &self.state.credentials;
        let nonce = refusal
            .asks_for_credentials()
            .then(|| credentials.nonce(&self.client.five_tuple, self.now));
        let realm_and_nonce = nonce.as_deref().map(|nonce| (REALM, nonce));
        reply::refuse(self.message, refusal, &unknown, realm_and_nonce, key)
    }

    fn authenticate(&self) -> Result<Authenticated, Refusal> {
        if !self.message.has_attribute(MessageIntegrity::TYPE) {
            return Err(Refusal::NO_CREDENTIALS);
        }
        let client = &self.client.five_tuple;
        self.state.credentials.check(self.message, client, self.now)
    }

    fn handle(&self, authenticated: &Authenticated) -> Outcome {
        if !reply::unknown_attributes(self.message, &KNOWN).is_empty() {
            return Err(Refusal::UNKNOWN_ATTRIBUTE);
        }
        if self.message.has_method(ALLOCATE) {
            return self.allocate(authenticated);
        }
        let allocation = self.allocation.as_ref();
        let allocation = allocation.ok_or(Refusal::ALLOCATION_MISMATCH)?;
        // Nobody takes over the allocation of another (RFC 8656, section 5).
        if allocation.username != authenticated.username {
            return Err(Refusal::OTHER_CREDENTIALS);
        }
        let key = &authenticated.key;
        match self.message.method() {
            REFRESH => self.refresh(allocation, key),
            CREATE_PERMISSION => self.create_permission(allocation, key),
            CHANNEL_BIND => self.bind_channel(allocation, key),
            _ => Err(Refusal::BAD_REQUEST),
        }
    }

    /// Opens an allocation (RFC 8656, section 7.2).
    fn allocate(&self, authenticated: &Authenticated) -> Outcome {
        if let Some(known) = &self.allocation {
            // The answer to the first attempt may have been lost.
            let is_repeated = known.opened_by == self.message.transaction_id()
                && known.username == authenticated.username;
            return match is_repeated {
                true => Ok(self.allocated(known, &authenticated.key)),
                false => Err(Refusal::ALLOCATION_MISMATCH),
            };
        }
        let transport = self.optional::<RequestedTransport>()?;
        if transport.ok_or(Refusal::BAD_REQUEST)?.protocol() != UDP {
            return Err(Refusal::TRANSPORT_NOT_SUPPORTED);
        }
        let address = self.relayed_address()?;
        let even_port = self.optional::<EvenPort>()?;
        // Ports are never reserved, so that a token is of no use here.
        match self.message.has_attribute(ReservationToken::TYPE) {
            true if even_port.is_some() => return Err(Refusal::BAD_REQUEST),
            true => return Err(Refusal::no_capacity("ports")),
            false => {}
        }
        if even_port.as_ref().is_some_and(EvenPort::requested) {
            return Err(Refusal::no_capacity("ports"));
        }
        let state = self.state;
        let session = state.sessions.get(authenticated.session);
        let session = session.ok_or(Refusal::NO_SESSION)?;
        let client = self.client.five_tuple;
        let slot = state.quotas.take_allocation(client.address().ip());
        let opening = Opening {
            client: self.client.clone(),
            username: authenticated.username.clone(),
            opened_by: self.message.transaction_id(),
            expires_at: expiry(self.lifetime(&session)?),
            slot: slot.map_err(Refusal::quota_reached)?,
            session: session.clone(),
        };
        let open = || state.open(opening, address, even_port.is_some());
        let limit = state.options.session_allocations;
        let allocation = match session.add(client, limit, open) {
            Ok(Some(allocation)) => allocation,
            Ok(None) => return Err(Refusal::no_capacity("ports")),
            Err(Rejected::Full) => return Err(Refusal::quota_reached("session_allocations")),
            Err(Rejected::Ended) => return Err(Refusal::NO_SESSION),
        };
        let answer = self.allocated(&allocation, &authenticated.key);
        state.start(allocation);
        Ok(answer)
    }

    fn allocated(&self, allocation: &Allocation, key: &IntegrityKey) -> Vec<u8> {
        let transaction = self.message.transaction_id();
        let relayed = XorRelayedAddress::new(allocation.relayed, transaction);
        let lifetime = Lifetime::new(seconds_until(allocation.expires_at()));
        let mapped = XorMappedAddress::new(self.client.five_tuple.address(), transaction);
        reply::success(self.message, &[&relayed, &lifetime, &mapped], Some(key))
    }

    /// The address at which the relay is to be reached. Without a wish of the client that is IPv4, if the server has
    /// such an address.
    fn relayed_address(&self) -> Result<IpAddr, Refusal> {
        let addresses = &self.state.options.addresses;
        let of = |is_ipv4| addresses.iter().find(|it| it.is_ipv4() == is_ipv4);
        let address = match self.optional::<RequestedAddressFamily>()? {
            Some(requested) => of(requested.family() == AddressFamily::IPV4),
            None => of(true).or_else(|| of(false)),
        };
        address.copied().ok_or(Refusal::FAMILY_NOT_SUPPORTED)
    }

    /// Lets the allocation last longer, or ends it (RFC 8656, section 8.2).
    fn refresh(&self, allocation: &Arc<Allocation>, key: &IntegrityKey) -> Outcome {
        if let Some(requested) = self.optional::<RequestedAddressFamily>()?
            && (requested.family() == AddressFamily::IPV4) != allocation.relayed.is_ipv4()
        {
            return Err(Refusal::PEER_OF_OTHER_FAMILY);
        }
        let lifetime = match self.optional::<Lifetime>()?.map(|it| it.seconds()) {
            Some(0) => {
                self.state.end(allocation);
                0
            }
            _ => {
                let lifetime = self.lifetime(&allocation.session)?;
                allocation.refresh(expiry(lifetime));
                lifetime
            }
        };
        let lifetime = Lifetime::new(lifetime as u32);
        Ok(reply::success(self.message, &[&lifetime], Some(key)))
    }

    /// Permits peers (RFC 8656, section 10.2).
    fn create_permission(&self, allocation: &Allocation, key: &IntegrityKey) -> Outcome {
        let mut peers = Vec::new();
        let attributes = self.message.iter_attributes().map(|(_, it)| it);
        for attribute in attributes.filter(|it| it.get_type() == XorPeerAddress::TYPE) {
            let peer = XorPeerAddress::from_raw_ref(&attribute);
            let peer = peer.map_err(|_| Refusal::BAD_REQUEST)?;
            let peer = peer.addr(self.message.transaction_id());
            peers.push((peer.ip(), self.reach(allocation, peer)?));
        }
        if peers.is_empty() {
            return Err(Refusal::BAD_REQUEST);
        }
        allocation
            .permit(&peers)
            .map_err(|_| Refusal::no_capacity("peers"))?;
        Ok(reply::success(self.message, &[], Some(key)))
    }

    /// Gives a peer a channel (RFC 8656, section 12.2).
    fn bind_channel(&self, allocation: &Allocation, key: &IntegrityKey) -> Outcome {
        let (Ok(channel), Ok(peer)) = (
            self.message.attribute::<ChannelNumber>(),
            self.message.attribute::<XorPeerAddress>(),
        ) else {
            return Err(Refusal::BAD_REQUEST);
        };
        if !CHANNELS.contains(&channel.channel()) {
            return Err(Refusal::BAD_REQUEST);
        }
        let peer = peer.addr(self.message.transaction_id());
        let reach = self.reach(allocation, peer)?;
        match allocation.bind(channel.channel(), peer, reach) {
            Ok(()) => Ok(reply::success(self.message, &[], Some(key))),
            Err(PeerError::Taken) => Err(Refusal::BAD_REQUEST),
            Err(PeerError::Full) => Err(Refusal::no_capacity("peers")),
        }
    }

    /// How the relay reaches a peer.
    fn reach(&self, allocation: &Allocation, peer: SocketAddr) -> Result<Reach, Refusal> {
        if peer.is_ipv4() != allocation.relayed.is_ipv4() {
            return Err(Refusal::PEER_OF_OTHER_FAMILY);
        }
        match self.state.peer_policy.reach(peer.ip()) {
            Reach::Refused => Err(Refusal::PEER_FORBIDDEN),
            reach => Ok(reach),
        }
    }

    /// The lifetime of an allocation of the session, in seconds: what the client asks for, within the limits of the
    /// server.
    fn lifetime(&self, session: &SessionUse) -> Result<u64, Refusal> {
        let requested = self.optional::<Lifetime>()?;
        let requested = requested.map_or(0, |it| u64::from(it.seconds()));
        let left = session.until().saturating_sub(self.now);
        Ok(requested.clamp(DEFAULT_LIFETIME, MAX_LIFETIME).min(left))
    }

    /// An attribute that the request may have.
    fn optional<'m, A>(&'m self) -> Result<Option<A>, Refusal>
    where
        A: AttributeFromRaw<'m> + AttributeStaticType,
    {
        match self.message.attribute::<A>() {
            Ok(attribute) => Ok(Some(attribute)),
            Err(StunParseError::MissingAttribute(_)) => Ok(None),
            Err(_) => Err(Refusal::BAD_REQUEST),
        }
    }
}

/// When an allocation of this lifetime in seconds ends.
fn expiry(lifetime: u64) -> Instant {
    Instant::now() + Duration::from_secs(lifetime)
}

/// The seconds until then, rounded up.
fn seconds_until(instant: Instant) -> u32 {
    let left = instant.saturating_duration_since(Instant::now());
    left.as_secs_f64().ceil() as u32
}
