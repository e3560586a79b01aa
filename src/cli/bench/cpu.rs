//! How much of a processor the measurement itself uses: with all of a core, the client is the limit.

use std::{
    fs,
    time::{Duration, Instant},
};

/// The unit of `/proc/self/stat`: on Linux 1/100 of a second, whatever the kernel's own is.
const TICK: Duration = Duration::from_millis(10);

/// In less time, a tick more or less would be most of the result.
const MIN_TIME: Duration = Duration::from_millis(100);

/// Counts the processor's time from its making.
pub(super) struct CpuClock {
    began: Instant,
    used: Option<Duration>,
}

impl CpuClock {
    pub(super) fn start() -> CpuClock {
        CpuClock {
            began: Instant::now(),
            used: used(),
        }
    }

    /// How many percent of a core this process has used; `None` if the system does not tell, or too little time has
    /// passed.
    pub(super) fn percent(&self) -> Option<f64> {
        let passed = self.began.elapsed();
        if passed < MIN_TIME {
            return None;
        }
        let used = used()?.checked_sub(self.used?)?;
        Some((100.0 * used.as_secs_f64() / passed.as_secs_f64()).round())
    }
}

/// The time of processors that this process has used.
fn used() -> Option<Duration> {
    parse(&fs::read_to_string("/proc/self/stat").ok()?)
}

fn parse(stat: &str) -> Option<Duration> {
    // The program's name, in parentheses, may contain anything. The next field is the third one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user + TICK * system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 5 1 1";
        assert_eq!(parse(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse("7 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }
}
