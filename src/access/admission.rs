//! May this request join?

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE},
};
use log::{info, warn};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time,
};

use super::{
    client_ip,
    rate_limit::{JoinRate, LookupRate},
    token::Denied,
    token::Grant,
    token::Tokens,
};
use crate::{
    config::{Config, Limit},
    metrics::Metrics,
    protocol::RoomName,
    rooms::{Full, Reservation, Rooms},
    spare_capacity::release_spare_capacity,
    web::HttpError,
};

/// When to try again where all places are taken, in seconds.
const RETRY_SECONDS: u64 = 5;

/// How many connections an address may have besides those of its sessions, where these are limited:
/// enough for what browsers open to load a page.
const OTHER_CONNECTIONS: u32 = 32;

/// How often to warn that places are taken.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Who may come in, and the places there are.
pub(crate) struct Admission {
    config: Config,
    rooms: Arc<Rooms>,
    metrics: Arc<Metrics>,
    tokens: Option<Tokens>,
    join_rate: Option<JoinRate>,
    lookup_rate: LookupRate,
    places: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    connections: Arc<Addresses>,
    last_warning: Mutex<Option<Instant>>,
}

/// Who wants to join.
pub(crate) struct ConnectRequest {
    /// `None` if the server it has come to does not tell.
    pub(crate) address: Option<IpAddr>,
    /// `None` where no token is asked for.
    pub(crate) grant: Option<Grant>,
}

impl ConnectRequest {
    /// Who it is, if that is known.
    pub(crate) fn user(&self) -> Option<&str> {
        self.grant.as_ref()?.user.as_deref()
    }
}

/// What there is for a session to take.
pub(crate) struct Admitted {
    pub(crate) reservation: Reservation,
    pub(crate) slot: SessionSlot,
}

/// A session's place on the server; dropping it gives it back.
pub(crate) struct SessionSlot {
    _permit: OwnedSemaphorePermit,
    /// In a box, for few servers have it.
    _address: Option<Box<AddressSlot>>,
}

impl Admission {
    /// # Errors
    ///
    /// A file of keys that cannot be read; the message names it.
    pub(crate) fn new(
        config: &Config,
        rooms: Arc<Rooms>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Admission> {
        let tokens = config.tokens.key_file.clone().map(|path| {
            let (issuer, audience) = (&config.tokens.issuer, &config.tokens.audience);
            Tokens::new(path, issuer.clone(), audience.clone())
        });
        let tokens = tokens.transpose()?;
        if let Some(tokens) = &tokens {
            info!("tokens must be signed with {:?}", tokens.algorithms());
        }
        let places = config.limits.sessions().min(Semaphore::MAX_PERMITS);
        Ok(Admission {
            rooms,
            metrics,
            tokens,
            join_rate: config.limits.joins_per_second.map(JoinRate::new),
            lookup_rate: LookupRate::new(),
            places: Arc::new(Semaphore::new(places)),
            addresses: Arc::default(),
            connections: Arc::default(),
            last_warning: Mutex::default(),
            config: config.clone(),
        })
    }

    /// Takes a place for a connection that is no session, or not yet. Where the sessions of an address
    /// are limited, so are these; but those of a trusted proxy are of many.
    ///
    /// # Errors
    ///
    /// The limit that is reached.
    pub(crate) fn connect(&self, peer: Option<IpAddr>) -> Result<Option<AddressSlot>, Limit> {
        let peer = peer.map(|peer| peer.to_canonical());
        let proxies = &self.config.serving.trust_proxy;
        match (self.config.limits.max_address_sessions, peer) {
            (Some(limit), Some(peer)) if !proxies.iter().any(|net| net.contains(&peer)) => {
                let limit = limit.get().saturating_add(OTHER_CONNECTIONS);
                let network = client_ip::network(peer);
                let place = self.connections.take(network, limit);
                place.map(Some).ok_or_else(|| {
                    self.metrics.limits_hit(Limit::AddressSessions).inc();
                    Limit::AddressSessions
                })
            }
            _ => Ok(None),
        }
    }

    /// Finds out who wants to join a room: from the address of the connection, the headers, and the
    /// token in the query if there is one.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] of a page of another origin (403), of an address that comes too often (429),
    /// of a token that is missing or no good (401), or good for something else (403).
    pub(crate) fn identify(
        &self,
        room: &RoomName,
        peer: Option<IpAddr>,
        headers: &HeaderMap,
        token: Option<&str>,
    ) -> Result<ConnectRequest, HttpError> {
        self.check_origin(headers)?;
        let trusted = &self.config.serving.trust_proxy;
        let address = peer.map(|peer| client_ip::client(peer, headers, trusted));
        if let (Some(rate), Some(address)) = (&self.join_rate, address) {
            rate.check(address).map_err(|seconds| {
                self.metrics.limits_hit(Limit::JoinRate).inc();
                let message = "too many requests for a session from your address: wait";
                HttpError::new(StatusCode::TOO_MANY_REQUESTS, message)
                    .with(RETRY_AFTER, seconds.into())
            })?;
        }
        let grant = match &self.tokens {
            Some(tokens) => Some(check_token(tokens, room, headers, token)?),
            None => None,
        };
        Ok(ConnectRequest { address, grant })
    }

    /// Checks where the page comes from that wants a session. Who sends no origin is no page that
    /// was let in, either.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), HttpError> {
        let origins = &self.config.access.allow_origin;
        let header = headers.get(ORIGIN);
        let allowed = |header| origins.iter().any(|origin| origin.is(header));
        if origins.is_empty() || header.is_some_and(allowed) {
            return Ok(());
        }
        let message = "only pages of certain origins may open a session here: see --allow-origin";
        Err(HttpError::new(StatusCode::FORBIDDEN, message))
    }

    /// Takes what a session in a room needs, on the server and in the room.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] when all is taken, by this address (429) or by all (503), or when the server
    /// takes no more sessions.
    pub(crate) fn admit(
        &self,
        room: &RoomName,
        address: Option<IpAddr>,
    ) -> Result<Admitted, HttpError> {
        let permit = self.places.clone().try_acquire_owned();
        let permit = permit.map_err(|error| match error {
            TryAcquireError::Closed => {
                unavailable("the server is about to stop: try again later, it may be another")
            }
            TryAcquireError::NoPermits => {
                self.count_and_warn(Limit::Sessions);
                unavailable("the server is full: try again later")
            }
        })?;
        let address = match (self.config.limits.max_address_sessions, address) {
            (Some(limit), Some(address)) => {
                let place = self
                    .addresses
                    .take(client_ip::network(address), limit.get());
                Some(Box::new(place.ok_or_else(|| {
                    self.metrics.limits_hit(Limit::AddressSessions).inc();
                    let message = "too many sessions from your address: leave one first";
                    HttpError::new(StatusCode::TOO_MANY_REQUESTS, message)
                        .with(RETRY_AFTER, RETRY_SECONDS.into())
                })?))
            }
            _ => None,
        };
        let reservation = self.rooms.reserve(room).map_err(|full| match full {
            Full::Rooms => {
                self.count_and_warn(Limit::Rooms);
                unavailable("there are too many rooms: try again later, or join one that exists")
            }
            Full::Room => {
                self.metrics.limits_hit(Limit::RoomSessions).inc();
                unavailable("the room is full: try again later")
            }
        })?;
        let slot = SessionSlot {
            _permit: permit,
            _address: address,
        };
        Ok(Admitted { reservation, slot })
    }

    /// Counts that a limit of the whole server is reached, and warns of it now and then.
    fn count_and_warn(&self, limit: Limit) {
        self.metrics.limits_hit(limit).inc();
        let mut last = self.last_warning.lock();
        if last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            *last = Some(Instant::now());
            warn!("sessions are refused: all --{} are taken", limit.option());
        }
    }

    /// The tokens it asks for, if it does.
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }

    /// Admits nobody from now on.
    pub(crate) fn close(&self) {
        self.places.close();
    }

    /// Whether it still admits anybody.
    pub(crate) fn is_open(&self) -> bool {
        !self.places.is_closed()
    }

    /// Forgets the addresses that have not come lately.
    pub(crate) fn tick(&self) {
        if let Some(rate) = &self.join_rate {
            rate.forget();
        }
        self.lookup_rate.forget();
    }

    /// Waits until the other nodes may be asked for a session; false if that is not before `deadline`.
    pub(crate) async fn may_look_up(
        &self,
        address: Option<IpAddr>,
        deadline: time::Instant,
    ) -> bool {
        self.lookup_rate.wait(address, deadline).await
    }
}

/// Try again later.
pub(crate) fn unavailable(message: &'static str) -> HttpError {
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message).with(RETRY_AFTER, RETRY_SECONDS.into())
}

/// Checks the token of a request, be it in the query or in the header (RFC 6750, section 2).
fn check_token(
    tokens: &Tokens,
    room: &RoomName,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Grant, HttpError> {
    let unauthorized = |challenge, message| {
        HttpError::new(StatusCode::UNAUTHORIZED, message)
            .with(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    };
    let token = match (query, bearer(headers)) {
        (Some(token), None) | (None, Some(token)) => token,
        (None, None) => {
            let message =
                "a token is needed: connect with ?token=<jwt>, or Authorization: Bearer <jwt>";
            return Err(unauthorized("Bearer", message));
        }
        (Some(_), Some(_)) => {
            let message = "a token is given in the query or in the header, not in both";
            return Err(HttpError::new(StatusCode::BAD_REQUEST, message));
        }
    };
    tokens.check(token, room).map_err(|denied| match denied {
        Denied::Invalid(message) => unauthorized(r#"Bearer error="invalid_token""#, message),
        Denied::Forbidden(message) => HttpError::new(StatusCode::FORBIDDEN, message),
    })
}

/// The token in the `Authorization` header (RFC 6750, section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// How many of something each address has.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, u32>>);

/// A place among those of an address; dropping it gives it back.
pub(crate) struct AddressSlot {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// One more, if there are fewer than `limit`.
    fn take(self: &Arc<Addresses>, address: IpAddr, limit: u32) -> Option<AddressSlot> {
        let mut counts = self.0.lock();
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(AddressSlot {
            addresses: self.clone(),
            address,
        })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock();
        if let Entry::Occupied(mut entry) = counts.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
                release_spare_capacity(&mut counts);
            }
        }
    }
}
