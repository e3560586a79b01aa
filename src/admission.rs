//! May this request join?

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::refusal::Refusal;

/// When to try again once all places are taken, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// The places there are.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
}

/// A session's place; dropping it gives it back.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Admits up to `max_sessions` at once.
    pub(crate) fn new(max_sessions: usize) -> Admission {
        Admission {
            places: Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] (503) when all are taken, or the server is stopping.
    pub(crate) fn admit(&self) -> Result<Place, Refusal> {
        let permit = self.places.clone().try_acquire_owned().map_err(|error| {
            let message = match error {
                TryAcquireError::Closed => "the server is stopping: try again later",
                TryAcquireError::NoPermits => "the server is full: try again later",
            };
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message).with(RETRY_AFTER, RETRY_SECONDS)
        })?;
        Ok(Place { _permit: permit })
    }

    /// Admits nobody from now on.
    pub(crate) fn close(&self) {
        self.places.close();
    }
}
