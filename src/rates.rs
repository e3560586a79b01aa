//! How much may be said in a second, and how often one may come.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

use crate::{Config, address};

/// For how long a rate may be exceeded by a burst: what may come in that time may come at once.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(2).expect("it is not zero");

/// How often a session may be refused something before it is closed; each refusal is forgotten after
/// a while, and all of them after a minute.
const PATIENCE: Quota = Quota::per_minute(NonZeroU32::new(64).expect("it is not zero"));

/// What there may be only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Sessions,
    Rooms,
    RoomSessions,
    AddressSessions,
    JoinRate,
    MessageRate,
    ByteRate,
}

impl Limit {
    pub(crate) const ALL: [Limit; 7] = [
        Limit::Sessions,
        Limit::Rooms,
        Limit::RoomSessions,
        Limit::AddressSessions,
        Limit::JoinRate,
        Limit::MessageRate,
        Limit::ByteRate,
    ];

    /// The option that sets it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Limit::Sessions => "max-sessions",
            Limit::Rooms => "max-rooms",
            Limit::RoomSessions => "max-room-sessions",
            Limit::AddressSessions => "max-address-sessions",
            Limit::JoinRate => "joins-per-second",
            Limit::MessageRate => "messages-per-second",
            Limit::ByteRate => "bytes-per-second",
        }
    }
}

/// How much may come at once, where so much may come in a second.
pub(crate) fn burst(per_second: NonZeroU32) -> NonZeroU32 {
    per_second.saturating_mul(BURST_SECONDS)
}

/// So many a second, with a burst.
fn quota(per_second: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(burst(per_second))
}

/// How much one session may say.
pub(crate) struct Rates {
    messages: Option<DefaultDirectRateLimiter>,
    bytes: Option<DefaultDirectRateLimiter>,
    refusals: DefaultDirectRateLimiter,
}

/// What has come over the rate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It is refused.
    Refused(Limit),
    /// It has been refused too often.
    Ignored(Limit),
}

impl Rates {
    /// `None` where there is no limit.
    pub(crate) fn new(config: &Config) -> Option<Box<Rates>> {
        if config.messages_per_second.is_none() && config.bytes_per_second.is_none() {
            return None;
        }
        let limiter = |rate| RateLimiter::direct(quota(rate));
        Some(Box::new(Rates {
            messages: config.messages_per_second.map(limiter),
            bytes: config.bytes_per_second.map(limiter),
            refusals: RateLimiter::direct(PATIENCE),
        }))
    }

    /// Takes a message, or a ping, of so many bytes.
    ///
    /// # Errors
    ///
    /// The [`Excess`], if it is too much.
    pub(crate) fn check(&self, bytes: usize) -> Result<(), Excess> {
        let limit = if self
            .messages
            .as_ref()
            .is_some_and(|rate| rate.check().is_err())
        {
            Limit::MessageRate
        } else if self.bytes.as_ref().is_some_and(|rate| !takes(rate, bytes)) {
            Limit::ByteRate
        } else {
            return Ok(());
        };
        Err(match self.refusals.check() {
            Ok(()) => Excess::Refused(limit),
            Err(_) => Excess::Ignored(limit),
        })
    }
}

fn takes(rate: &DefaultDirectRateLimiter, count: usize) -> bool {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    NonZeroU32::new(count).is_none_or(|count| matches!(rate.check_n(count), Ok(Ok(()))))
}

/// How often each address may come.
pub(crate) struct JoinRate(DefaultKeyedRateLimiter<IpAddr>);

impl JoinRate {
    pub(crate) fn new(per_second: NonZeroU32) -> JoinRate {
        JoinRate(RateLimiter::keyed(quota(per_second)))
    }

    /// Lets an address come.
    ///
    /// # Errors
    ///
    /// After how many seconds it may come again, if it comes too often.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), u64> {
        self.0
            .check_key(&address::network(address))
            .map_err(|until| {
                let wait = until.wait_time_from(DefaultClock::default().now());
                wait.as_secs() + 1
            })
    }

    /// Forgets who has not come for so long that it makes no difference.
    pub(crate) fn forget(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_burst_then_is_refused_then_has_ignored_it() {
        let rates = Rates::new(&Config {
            messages_per_second: NonZeroU32::new(10),
            bytes_per_second: NonZeroU32::new(100_000),
            ..Config::default()
        })
        .unwrap();
        for _ in 0..20 {
            assert_eq!(rates.check(100), Ok(()));
        }
        // A slow machine may let one or two more pass.
        let mut outcomes: Vec<_> = (0..100).filter_map(|_| rates.check(100).err()).collect();
        outcomes.dedup();
        let (refused, ignored) = (Limit::MessageRate, Limit::MessageRate);
        let expected = [Excess::Refused(refused), Excess::Ignored(ignored)];
        assert_eq!(outcomes[..2], expected);
    }

    #[test]
    fn bytes_count_too() {
        let rates = Rates::new(&Config {
            bytes_per_second: NonZeroU32::new(1000),
            ..Config::default()
        })
        .unwrap();
        assert_eq!(rates.check(1900), Ok(()));
        assert_eq!(rates.check(0), Ok(()));
        assert_eq!(rates.check(1000), Err(Excess::Refused(Limit::ByteRate)));
        assert_eq!(rates.check(100_000), Err(Excess::Refused(Limit::ByteRate)));
    }

    #[test]
    fn one_network_that_comes_often_is_no_matter_to_another() {
        let rate = JoinRate::new(NonZeroU32::new(1).unwrap());
        let check = |address: &str| rate.check(address.parse().unwrap());
        assert_eq!(check("2001:db8::1"), Ok(()));
        assert_eq!(check("2001:db8::2"), Ok(()));
        assert_eq!(check("2001:db8::3"), Err(1));
        assert_eq!(check("2001:db8:0:1::1"), Ok(()));
        assert_eq!(rate.0.len(), 2);
    }
}
