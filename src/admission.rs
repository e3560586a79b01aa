//! May this request join?

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ORIGIN, RETRY_AFTER},
};
use log::warn;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::{config::Origin, refusal::Refusal};

/// When to try again once all places are taken, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// How often to warn that all places are taken.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Who may come in, and the places there are.
pub(crate) struct Admission {
    /// Empty where all may.
    origins: Vec<Origin>,
    places: Arc<Semaphore>,
    last_warning: Mutex<Option<Instant>>,
}

/// A session's place; dropping it gives it back.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Admits pages of these origins, of all if there are none; up to `max_sessions` at once.
    pub(crate) fn new(origins: Vec<Origin>, max_sessions: usize) -> Admission {
        Admission {
            origins,
            places: Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS))),
            last_warning: Mutex::default(),
        }
    }

    /// Checks where the page comes from that wants a session. Who sends no origin is no page that
    /// was let in, either.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] (403) of any other.
    pub(crate) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let header = headers.get(ORIGIN);
        let allowed = |header| self.origins.iter().any(|origin| origin.is(header));
        if self.origins.is_empty() || header.is_some_and(allowed) {
            return Ok(());
        }
        let message = "pages of this origin may not open a session here: see --allow-origin";
        Err(Refusal::new(StatusCode::FORBIDDEN, message))
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] (503) when all are taken, or the server is stopping.
    pub(crate) fn admit(&self) -> Result<Place, Refusal> {
        let message = match self.places.clone().try_acquire_owned() {
            Ok(permit) => return Ok(Place { _permit: permit }),
            Err(TryAcquireError::Closed) => "the server is stopping: try again later",
            Err(TryAcquireError::NoPermits) => {
                self.warn();
                "the server is full: try again later"
            }
        };
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message);
        Err(refusal.with(RETRY_AFTER, RETRY_SECONDS))
    }

    fn warn(&self) {
        let mut last = self.last_warning.lock();
        if last.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            *last = Some(Instant::now());
            warn!("sessions are refused: all --max-sessions are taken");
        }
    }

    /// Admits nobody from now on.
    pub(crate) fn close(&self) {
        self.places.close();
    }
}
