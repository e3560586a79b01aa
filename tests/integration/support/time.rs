//! Waiting for events with a deadline, and timestamps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{interval, timeout};

/// How long an event may take before the test fails. Only a failing test waits that long.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for `future`. Panics with `what` if the future takes longer than [`DEADLINE`].
pub async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// Waits until `condition` holds. Polls it every 2 ms and lets other tasks run meanwhile.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let mut ticks = interval(Duration::from_millis(2));
    within_deadline(what, async {
        while !condition() {
            ticks.tick().await;
        }
    })
    .await;
}

/// Waits until an asynchronous `condition` holds. Polls it every 10 ms.
pub async fn eventually_async(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let mut ticks = interval(Duration::from_millis(10));
    within_deadline(what, async {
        while !condition().await {
            ticks.tick().await;
        }
    })
    .await;
}

/// The Unix time, in seconds, at `seconds` from now.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() as i64 + seconds
}
