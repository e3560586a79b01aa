//! The clock that dates are checked against. It never fails: a time before 1970 counts as 0.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The seconds since 1970, as in the `exp` of a token (RFC 7519, section 2).
pub(crate) fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// The milliseconds since 1970, as in the `Date` of JavaScript.
pub(crate) fn unix_millis() -> u64 {
    since_1970().as_millis() as u64
}

fn since_1970() -> Duration {
    #[cfg(test)]
    if let Some(time) = crate::random::seeded::since_1970() {
        return time;
    }
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.unwrap_or_default()
}
