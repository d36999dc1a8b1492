//! How long to wait before the next attempt: doubling, with jitter, bounded. Pure; callers sleep.

use std::time::Duration;

/// The first wait: long enough for a server that restarts, short enough that nobody notices.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: a server that comes back is found again within a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits between attempts that fail in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: between half and all of 1 s, 2 s, 4 s ... 60 s. The jitter keeps the connectors of
    /// one device from reaching a restarted server in the same moment.
    pub(crate) fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(6)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_start_again() {
        let mut backoff = Backoff::default();
        for full in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let wait = backoff.next();
            assert!(wait <= Duration::from_secs(full) && wait * 2 >= Duration::from_secs(full), "{wait:?} of {full} s");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
