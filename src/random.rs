//! Random bits.

/// Bits from the operating system's random generator. A test that has called `seeded::seed` gets those of its
/// seed.
pub(crate) fn bits<const N: usize>() -> [u8; N] {
    let mut bits = [0; N];
    #[cfg(test)]
    if seeded::fill(&mut bits) {
        return bits;
    }
    getrandom::fill(&mut bits).expect("the operating system has random bits");
    bits
}

/// For tests: random bits that are the same for the same seed.
#[cfg(test)]
pub(crate) mod seeded {
    use std::{
        cell::{Cell, RefCell},
        time::Duration,
    };

    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use tokio::time::Instant;

    /// The time at which the runs with a seed begin, since 1970.
    const BEGINNING: Duration = Duration::from_secs(1_790_000_000);

    thread_local! {
        static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
        static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    /// Takes the random bits of this thread from a seed, or from the operating system again.
    pub(crate) fn seed(seed: Option<u64>) {
        GENERATOR.set(seed.map(StdRng::seed_from_u64));
        BEGAN.set(None);
    }

    /// The time since 1970 by the clock of the runtime, if the thread has a seed.
    pub(crate) fn since_1970() -> Option<Duration> {
        GENERATOR
            .with_borrow(|generator| generator.is_some())
            .then(|| {
                let now = Instant::now();
                let began = BEGAN.get().unwrap_or(now);
                BEGAN.set(Some(began));
                BEGINNING + (now - began)
            })
    }

    /// Fills the bits if the thread has a seed. Returns whether it has one.
    pub(super) fn fill(bits: &mut [u8]) -> bool {
        GENERATOR.with_borrow_mut(|generator| {
            let generator = generator.as_mut();
            generator.map(|generator| generator.fill(bits)).is_some()
        })
    }
}
