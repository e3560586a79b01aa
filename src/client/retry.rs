//! When to connect again.

use std::time::Duration;

/// The delay before the first attempt, which doubles with each, and the longest.
#[derive(Clone, Copy)]
pub(super) struct Delays {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Default for Delays {
    fn default() -> Delays {
        Delays {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

/// A time that is as good as for ever, and can be added to any other.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// While a session can be resumed, a delay or an attempt takes at most this share of the time that is left.
const WINDOW_SHARE: u32 = 3;

/// An attempt has at least this long, because a distant server needs some round trips.
const MIN_ATTEMPT: Duration = Duration::from_secs(2);

/// How long to wait before the next attempt, after this many that failed. `kept_for` is how much longer the session
/// can be resumed, `asked` what the server asks for, `random` from 0 to 1.
pub(super) fn delay(
    delays: Delays,
    attempts: u32,
    kept_for: Option<Duration>,
    asked: Option<Duration>,
    random: f64,
) -> Duration {
    let doubled = delays.first.saturating_mul(1 << attempts.min(16));
    let share = kept_for.map_or(delays.longest, |left| left / WINDOW_SHARE);
    let delay = doubled.min(delays.longest).min(share).max(delays.first);
    delay
        .mul_f64(0.5 + random / 2.0)
        .max(asked.unwrap_or_default())
}

/// How long an attempt may take, of at most `most`.
pub(super) fn attempt(most: Duration, kept_for: Option<Duration>) -> Duration {
    let share = kept_for.map_or(most, |left| left / WINDOW_SHARE);
    share.max(MIN_ATTEMPT).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end_before_the_session_does() {
        let ms = Duration::from_millis;
        let default = |attempts, kept_for, asked, random| {
            delay(Delays::default(), attempts, kept_for, asked, random)
        };
        assert_eq!(default(0, None, None, 1.0), ms(500));
        assert_eq!(default(0, None, None, 0.0), ms(250));
        assert_eq!(default(3, None, None, 1.0), ms(4000));
        assert_eq!(default(30, None, None, 1.0), ms(30_000));
        assert_eq!(default(6, Some(ms(9000)), None, 1.0), ms(3000));
        assert_eq!(default(6, Some(ms(30)), None, 1.0), ms(500));
        assert_eq!(default(0, None, Some(ms(7000)), 1.0), ms(7000));
        assert_eq!(attempt(ms(10_000), None), ms(10_000));
        assert_eq!(attempt(ms(10_000), Some(ms(9000))), ms(3000));
        assert_eq!(attempt(ms(10_000), Some(ms(10))), MIN_ATTEMPT);
        assert_eq!(attempt(ms(1000), Some(ms(10))), ms(1000));
    }
}
