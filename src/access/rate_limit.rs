//! Rate limits: of a session's messages and bytes, and of an address's joins and lookups.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use governor::{
    DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::time::{Instant, sleep_until};

use super::client_ip;
use crate::config::{Limit, Limits};

/// The length of a burst, in seconds: what a rate allows in this time may come at once.
const BURST_SECONDS: NonZeroU32 = NonZeroU32::new(2).expect("it is not zero");

/// The longest pause of a session, however far it is over its rate. In this time, one kilobyte a second
/// pays for a message of 3.6 kB to a thousand receivers.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// How many sessions of other nodes one network may look up in a second. It may be an office whose
/// clients all reconnect because their node has died or is replaced.
const LOOKUPS_OF_ADDRESS: NonZeroU32 = NonZeroU32::new(200).expect("it is not zero");

/// How many sessions a node looks up in a second. Every other node answers each lookup.
const LOOKUPS_OF_NODE: NonZeroU32 = NonZeroU32::new(1000).expect("it is not zero");

/// A quota with a burst of [`BURST_SECONDS`].
fn quota(per_second: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(per_second.saturating_mul(BURST_SECONDS))
}

/// The rates of one session. They pace it and lose nothing: every message is delivered, and a session
/// over a rate is not read from until it is within the rate again.
pub(crate) struct Rates {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// A leaky bucket that may overflow (the virtual scheduling algorithm of ITU-T I.371, annex A), because
/// the cost of a message is known only once it is delivered.
struct Bucket {
    per_second: NonZeroU32,
    /// When the bucket has drained.
    empty_at: Instant,
}

impl Rates {
    /// The rates of a session that starts with the debts `owed`, as of [`owed`](Rates::owed). `None` if
    /// neither rate is limited.
    pub(crate) fn new(limits: &Limits, owed: [u64; 2]) -> Option<Rates> {
        if limits.messages_per_second.is_none() && limits.bytes_per_second.is_none() {
            return None;
        }
        let bucket = |per_second, owed| Bucket {
            per_second,
            empty_at: Instant::now() + Duration::from_millis(owed).min(MAX_PAUSE),
        };
        let [messages, bytes] = owed;
        let of_messages = |rate| bucket(rate, messages);
        Some(Rates {
            messages: limits.messages_per_second.map(of_messages),
            bytes: limits.bytes_per_second.map(|rate| bucket(rate, bytes)),
        })
    }

    /// The time until the buckets of messages and of bytes have drained, in milliseconds.
    pub(crate) fn owed(&self) -> [u64; 2] {
        let now = Instant::now();
        [&self.messages, &self.bytes].map(|bucket| {
            let bucket = bucket.as_ref();
            let owed = bucket.map(|bucket| bucket.empty_at.saturating_duration_since(now));
            owed.unwrap_or_default().as_millis() as u64
        })
    }

    /// Charges a received frame and the bytes that it caused to be sent.
    pub(crate) fn spend(&mut self, bytes: usize) {
        let now = Instant::now();
        if let Some(messages) = &mut self.messages {
            messages.take(now, 1);
        }
        if let Some(rate) = &mut self.bytes {
            rate.take(now, bytes);
        }
    }

    /// The rate that is exceeded for the longest time, and the end of that time.
    pub(crate) fn excess(&self) -> Option<(Limit, Instant)> {
        let now = Instant::now();
        let messages = self.messages.iter().map(|rate| (Limit::MessageRate, rate));
        let bytes = self.bytes.iter().map(|rate| (Limit::ByteRate, rate));
        messages
            .chain(bytes)
            .filter_map(|(limit, rate)| Some((limit, rate.exceeded_until(now)?)))
            .max_by_key(|(_, until)| *until)
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, count: usize) {
        let burst = Duration::from_secs(BURST_SECONDS.get().into());
        let seconds = count as f64 / f64::from(self.per_second.get());
        // Limited before the conversion, which panics where a Duration would overflow.
        let drains_in = Duration::from_secs_f64(seconds.min(2.0 * MAX_PAUSE.as_secs_f64()));
        let latest = now + burst + MAX_PAUSE;
        self.empty_at = (self.empty_at.max(now) + drains_in).min(latest);
    }

    /// When the bucket is within the burst again; `None` if it is now.
    fn exceeded_until(&self, now: Instant) -> Option<Instant> {
        let burst = Duration::from_secs(BURST_SECONDS.get().into());
        let excess = self
            .empty_at
            .saturating_duration_since(now)
            .checked_sub(burst)?;
        // A burst that is exactly used up pauses for the timer's resolution.
        Some(now + excess.max(Duration::from_millis(1)))
    }
}

/// The rate at which each address may open sessions.
pub(crate) struct JoinRate(DefaultKeyedRateLimiter<IpAddr>);

impl JoinRate {
    /// A limit for each address, with a burst.
    pub(crate) fn new(per_second: NonZeroU32) -> JoinRate {
        JoinRate(RateLimiter::keyed(quota(per_second)))
    }

    /// Charges one join to an address.
    ///
    /// # Errors
    ///
    /// The seconds until the address may join, if it joins too often.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), u64> {
        self.0
            .check_key(&client_ip::network(address))
            .map_err(|until| {
                let wait = until.wait_time_from(DefaultClock::default().now());
                wait.as_secs() + 1
            })
    }

    /// Forgets addresses whose rate has fully recovered.
    pub(crate) fn forget(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }
}

/// The rate at which sessions of other nodes are looked up. Lookups over the rate wait.
pub(crate) struct LookupRate {
    of_address: DefaultKeyedRateLimiter<IpAddr>,
    of_node: DefaultDirectRateLimiter,
}

impl LookupRate {
    /// The limits for each address and for this node.
    pub(crate) fn new() -> LookupRate {
        LookupRate {
            of_address: RateLimiter::keyed(quota(LOOKUPS_OF_ADDRESS)),
            of_node: RateLimiter::direct(quota(LOOKUPS_OF_NODE)),
        }
    }

    /// Waits until the rates allow one more lookup. Returns false if that is not before `deadline`.
    pub(crate) async fn wait(&self, address: Option<IpAddr>, deadline: Instant) -> bool {
        let clock = DefaultClock::default();
        loop {
            let of_address = address.map(|address| {
                let network = client_ip::network(address);
                self.of_address.check_key(&network)
            });
            let checked = of_address
                .unwrap_or(Ok(()))
                .and_then(|()| self.of_node.check());
            let Err(until) = checked else {
                return true;
            };
            let at = Instant::now() + until.wait_time_from(clock.now());
            if at > deadline {
                return false;
            }
            sleep_until(at).await;
        }
    }

    /// Forgets addresses whose rate has fully recovered.
    pub(crate) fn forget(&self) {
        self.of_address.retain_recent();
        self.of_address.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(messages: u32, bytes: u32) -> Rates {
        owing(messages, bytes, [0, 0])
    }

    fn owing(messages: u32, bytes: u32, owed: [u64; 2]) -> Rates {
        let limits = Limits {
            messages_per_second: NonZeroU32::new(messages),
            bytes_per_second: NonZeroU32::new(bytes),
            ..Limits::default()
        };
        Rates::new(&limits, owed).unwrap()
    }

    /// The pause of the session, and the rate that causes it.
    fn pause(rates: &Rates) -> Option<(Limit, Duration)> {
        let (limit, until) = rates.excess()?;
        Some((limit, until - Instant::now()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_has_a_burst_and_then_its_rate() {
        let mut rates = rates(10, 0);
        for _ in 0..19 {
            rates.spend(100);
            assert_eq!(pause(&rates), None);
        }
        rates.spend(100);
        let (limit, time) = pause(&rates).unwrap();
        assert_eq!(
            (limit, time),
            (Limit::MessageRate, Duration::from_millis(1))
        );
        for _ in 0..5 {
            rates.spend(100);
        }
        let (_, time) = pause(&rates).unwrap();
        assert_eq!(time, Duration::from_millis(500));
        tokio::time::advance(time + Duration::from_millis(1)).await;
        assert_eq!(pause(&rates), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_over_the_burst_is_taken_and_then_paid_for() {
        let mut rates = rates(0, 1000);
        rates.spend(1900);
        assert_eq!(pause(&rates), None);
        rates.spend(10_000);
        let (limit, time) = pause(&rates).unwrap();
        assert_eq!((limit, time.as_millis()), (Limit::ByteRate, 9900));
    }

    #[tokio::test(start_paused = true)]
    async fn debts_move_with_the_session() {
        let mut first = rates(10, 1000);
        (0..15).for_each(|_| first.spend(200));
        assert_eq!(first.owed(), [1500, 3000]);
        let second = owing(10, 1000, first.owed());
        assert_eq!(pause(&second), pause(&first));
        assert_eq!(
            owing(10, 0, [u64::MAX, 0]).owed(),
            [MAX_PAUSE.as_millis() as u64, 0]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_is_longer_than_an_hour() {
        let mut rates = rates(0, 1);
        for bytes in [usize::MAX, 1, usize::MAX] {
            rates.spend(bytes);
            assert_eq!(pause(&rates), Some((Limit::ByteRate, MAX_PAUSE)));
        }
    }

    #[tokio::test]
    async fn an_address_over_its_lookup_rate_waits_alone() {
        let rate = LookupRate::new();
        let address = |last| Some(IpAddr::from([192, 0, 2, last]));
        let mut count = 0;
        while rate.wait(address(1), Instant::now()).await {
            count += 1;
            assert!(
                count < 20 * LOOKUPS_OF_ADDRESS.get(),
                "the rate never took effect"
            );
        }
        assert!(count >= LOOKUPS_OF_ADDRESS.get() * BURST_SECONDS.get());
        assert!(rate.wait(address(2), Instant::now()).await);
        let later = Instant::now() + Duration::from_secs(10);
        assert!(rate.wait(address(1), later).await);
    }

    #[test]
    fn the_join_rate_of_a_network_does_not_affect_another() {
        let rate = JoinRate::new(NonZeroU32::new(1).unwrap());
        let check = |address: &str| rate.check(address.parse().unwrap());
        assert_eq!(check("2001:db8::1"), Ok(()));
        assert_eq!(check("2001:db8::2"), Ok(()));
        assert_eq!(check("2001:db8::3"), Err(1));
        assert_eq!(check("2001:db8:0:1::1"), Ok(()));
        assert_eq!(rate.0.len(), 2);
    }
}
