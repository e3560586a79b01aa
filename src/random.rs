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
    use std::cell::RefCell;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    thread_local! {
        static GENERATOR: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// Takes the random bits of this thread from a seed, or from the operating system again.
    pub(crate) fn seed(seed: Option<u64>) {
        GENERATOR.set(seed.map(StdRng::seed_from_u64));
    }

    /// Fills the bits if the thread has a seed. Returns whether it has one.
    pub(super) fn fill(bits: &mut [u8]) -> bool {
        GENERATOR.with_borrow_mut(|generator| {
            let generator = generator.as_mut();
            generator.map(|generator| generator.fill(bits)).is_some()
        })
    }
}
