//! The clock that tokens are checked against.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seconds since 1970, as in the `exp` of a token (RFC 7519, section 2). Never fails: a clock
/// before 1970 counts as 0.
pub(crate) fn unix_seconds() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_secs())
}
