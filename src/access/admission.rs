//! The decision whether a request may open a session.

use std::{
    io,
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use log::{info, warn};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time,
};

use super::{
    client_ip, credentials,
    grant::Grant,
    origin,
    rate_limit::{JoinRate, LookupRate},
    slots::{AddressSlot, AddressSlots},
    token::Tokens,
};
use crate::{
    config::{Config, Limit},
    metrics::Metrics,
    protocol::RoomName,
    rooms::{Full, NameClaim, Reservation, Rooms},
    web::HttpError,
};

/// How many connections an address may have in addition to the limit of its sessions: enough for a
/// browser to load a page.
const OTHER_CONNECTIONS: u32 = 32;

/// The shortest time between two warnings that a limit of the whole server is reached.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Decides who may open a session, and holds the slots of the server and of each address.
pub(crate) struct Admission {
    config: Config,
    rooms: Arc<Rooms>,
    metrics: Arc<Metrics>,
    tokens: Option<Tokens>,
    join_rate: Option<JoinRate>,
    lookup_rate: LookupRate,
    /// The slots of the server.
    slots: Arc<Semaphore>,
    /// The slots of each address for sessions.
    sessions: Arc<AddressSlots>,
    /// The slots of each address for connections.
    connections: Arc<AddressSlots>,
    last_warning: Mutex<Option<Instant>>,
}

/// A client that wants a session and is identified.
pub(crate) struct ConnectRequest {
    /// `None` if the HTTP server, which is another application's, does not tell it.
    pub(crate) address: Option<IpAddr>,
    /// `None` if the server requires no token.
    pub(crate) grant: Option<Grant>,
    /// Whether the client learns why it is refused from a close code.
    pub(crate) reads_refusals: bool,
    /// The name that the client claims in its room, if it claims one.
    pub(crate) claim: Option<NameClaim>,
    /// How many sessions make up a group, if the client wants to be in one.
    pub(crate) group_size: Option<NonZeroU32>,
}

impl ConnectRequest {
    /// The user that the token names.
    pub(crate) fn user(&self) -> Option<&str> {
        self.grant.as_ref()?.user.as_deref()
    }
}

/// The resources of a new session: a reservation in its room, and a slot of the server.
pub(crate) struct Admitted {
    pub(crate) reservation: Reservation,
    pub(crate) slot: SessionSlot,
}

/// The slot of a session, on the server and of its address. Dropping it gives it back.
pub(crate) struct SessionSlot {
    /// `None` for a session from before a restart that is more than the server may have now.
    _server: Option<OwnedSemaphorePermit>,
    /// In a box, because most servers do not limit the sessions of an address.
    _address: Option<Box<AddressSlot>>,
}

impl Admission {
    /// Admission by the rules of this configuration.
    ///
    /// # Errors
    ///
    /// A file of keys that cannot be read or used; the message names it.
    pub(crate) fn new(
        config: &Config,
        rooms: Arc<Rooms>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Admission> {
        let tokens = Tokens::new(config)?;
        if let Some(tokens) = &tokens {
            info!(
                "sessions require a token signed with {:?}",
                tokens.algorithms()
            );
        }
        let slots = config.sessions().min(Semaphore::MAX_PERMITS);
        Ok(Admission {
            rooms,
            metrics,
            tokens,
            join_rate: config.limits.joins_per_second.map(JoinRate::new),
            lookup_rate: LookupRate::new(),
            slots: Arc::new(Semaphore::new(slots)),
            sessions: Arc::default(),
            connections: Arc::default(),
            last_warning: Mutex::default(),
            config: config.clone(),
        })
    }

    /// Checks the `Origin` of a request.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] (403) for an origin that is not allowed.
    pub(crate) fn check_origin(&self, headers: &HeaderMap) -> Result<(), HttpError> {
        origin::check(&self.config.access.allow_origin, headers)
    }

    /// Checks that an address does not ask too often.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] for an address that does (429).
    pub(crate) fn check_rate(&self, address: Option<IpAddr>) -> Result<(), HttpError> {
        let (Some(rate), Some(address)) = (&self.join_rate, address) else {
            return Ok(());
        };
        rate.check(address).map_err(|seconds| {
            self.metrics.limits_hit(Limit::JoinRate).inc();
            let message = "your address opens sessions too often: wait, then try again";
            HttpError::too_many_requests(message, Some(seconds))
        })
    }

    /// Takes a slot for a connection that is not a session, or not yet. Where the sessions of an
    /// address are limited, so are its connections, except those of a trusted proxy, which belong to
    /// many clients. `None` where there is no limit.
    ///
    /// # Errors
    ///
    /// The limit that is reached.
    pub(crate) fn connect(&self, peer: Option<IpAddr>) -> Result<Option<AddressSlot>, Limit> {
        let peer = peer.map(|peer| peer.to_canonical());
        let proxies = &self.config.serving.trust_proxy;
        match (self.config.limits.max_address_sessions, peer) {
            (Some(limit), Some(peer)) if !proxies.iter().any(|net| net.contains(&peer)) => {
                // A session without a WebSocket keeps the connection of its messages.
                let limit = limit.get().saturating_mul(2);
                let limit = limit.saturating_add(OTHER_CONNECTIONS);
                let slot = self.connections.take(client_ip::network(peer), limit);
                slot.map(Some).ok_or_else(|| {
                    self.metrics.limits_hit(Limit::AddressSessions).inc();
                    Limit::AddressSessions
                })
            }
            _ => Ok(None),
        }
    }

    /// The address of the client whose request came from `peer` with these headers.
    pub(crate) fn address(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let trusted = &self.config.serving.trust_proxy;
        peer.map(|peer| client_ip::client(peer, headers, trusted))
    }

    /// Identifies the client of a request to join `room`, by its address, the headers, and the `token`
    /// of the query. A client that `continues` a session without a WebSocket asks as often as messages come.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] for another origin (403), an address that joins too often (429), a token
    /// that is missing or not valid (401), or one that is valid but not for this room (403).
    pub(crate) fn identify(
        &self,
        room: &RoomName,
        address: Option<IpAddr>,
        headers: &HeaderMap,
        token: Option<&str>,
        reads_refusals: bool,
        continues: bool,
    ) -> Result<ConnectRequest, HttpError> {
        self.check_origin(headers)?;
        if !continues {
            self.check_rate(address)?;
        }
        let grant = match &self.tokens {
            Some(tokens) => Some(credentials::check(tokens, room, headers, token)?),
            None => None,
        };
        Ok(ConnectRequest {
            address,
            grant,
            reads_refusals,
            claim: None,
            group_size: None,
        })
    }

    /// Takes the slots of a new session, on the server, of its address, and in the room.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] if this address has used up its slots (429), or if the server or the room is
    /// full or the server is draining (503).
    pub(crate) fn admit(
        &self,
        room: &RoomName,
        address: Option<IpAddr>,
    ) -> Result<Admitted, HttpError> {
        let server = self.slots.clone().try_acquire_owned();
        let server = server.map_err(|error| match error {
            TryAcquireError::Closed => HttpError::unavailable(
                "this server accepts no new sessions: try again later, another may answer",
            ),
            TryAcquireError::NoPermits => {
                self.count_and_warn(Limit::Sessions);
                HttpError::full("the server is full: try again later")
            }
        })?;
        let address = match (self.config.limits.max_address_sessions, address) {
            (Some(limit), Some(address)) => {
                let network = client_ip::network(address);
                let slot = self.sessions.take(network, limit.get());
                Some(Box::new(slot.ok_or_else(|| {
                    self.metrics.limits_hit(Limit::AddressSessions).inc();
                    let message = "your address has too many sessions: close one, then try again";
                    HttpError::too_many_requests(message, None)
                })?))
            }
            _ => None,
        };
        let reservation = self.reserve(room)?;
        let slot = SessionSlot {
            _server: Some(server),
            _address: address,
        };
        Ok(Admitted { reservation, slot })
    }

    /// Reserves a place in a room.
    ///
    /// # Errors
    ///
    /// The [`HttpError`] if the room is full, or would be a room too many (503).
    pub(crate) fn reserve(&self, room: &RoomName) -> Result<Reservation, HttpError> {
        self.rooms.reserve(room).map_err(|full| match full {
            Full::Rooms => {
                self.count_and_warn(Limit::Rooms);
                HttpError::full(
                    "the server has too many rooms: join an existing room, or try again later",
                )
            }
            Full::Room => {
                self.metrics.limits_hit(Limit::RoomSessions).inc();
                HttpError::room_full("the room is full: try again later")
            }
        })
    }

    /// What a session needs that takes over the name of one in the same room, which ends for it. Limits do not apply.
    pub(crate) fn admit_successor(&self, room: &RoomName, address: Option<IpAddr>) -> Admitted {
        Admitted {
            reservation: self.rooms.reserve_again(room),
            slot: self.readmit(address),
        }
    }

    /// Takes the slots of a session from before a restart, as far as there are some: a limit that is lower
    /// now ends no session.
    pub(crate) fn readmit(&self, address: Option<IpAddr>) -> SessionSlot {
        let limit = self.config.limits.max_address_sessions;
        let address = address.zip(limit).and_then(|(address, limit)| {
            let network = client_ip::network(address);
            self.sessions.take(network, limit.get()).map(Box::new)
        });
        SessionSlot {
            _server: self.slots.clone().try_acquire_owned().ok(),
            _address: address,
        }
    }

    /// Counts that a limit of the whole server is reached, and warns if it has not warned lately.
    fn count_and_warn(&self, limit: Limit) {
        self.metrics.limits_hit(limit).inc();
        let mut last = self.last_warning.lock();
        if last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            *last = Some(Instant::now());
            let option = limit.option();
            warn!("refusing new sessions: --{option} is reached");
        }
    }

    /// The verifier of tokens; `None` if the server requires none.
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// Refuses all new sessions from now on.
    pub(crate) fn close(&self) {
        self.slots.close();
    }

    /// How many slots of the server are free.
    #[cfg(all(test, feature = "cluster"))]
    pub(crate) fn free_slots(&self) -> usize {
        self.slots.available_permits()
    }

    /// Whether new sessions are admitted.
    pub(crate) fn is_open(&self) -> bool {
        !self.slots.is_closed()
    }

    /// Forgets addresses whose rates have recovered. Call it every second.
    pub(crate) fn tick(&self) {
        if let Some(rate) = &self.join_rate {
            rate.forget();
        }
        self.lookup_rate.forget();
    }

    /// Waits until the rate allows this address to look up a session on other nodes. Returns false if
    /// that is not before `deadline`.
    pub(crate) async fn may_look_up(
        &self,
        address: Option<IpAddr>,
        deadline: time::Instant,
    ) -> bool {
        self.lookup_rate.wait(address, deadline).await
    }
}
