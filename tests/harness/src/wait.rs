//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Steps between looks.
const STEP: Duration = Duration::from_millis(20);

/// Waits until `look` gives a value; panics with `what` after `limit`.
///
/// # Panics
/// When the limit is over: the test has failed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for: {what}");
        std::thread::sleep(STEP);
    }
}

/// Waits until `look` is true.
///
/// # Panics
/// When the limit is over: the test has failed.
pub fn wait(what: &str, limit: Duration, mut look: impl FnMut() -> bool) {
    wait_for(what, limit, || look().then_some(()));
}
