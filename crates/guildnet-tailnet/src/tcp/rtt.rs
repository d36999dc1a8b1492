//! Round-trip times of a flow, and what is waited for because of them (RFC 6298).

use std::time::{Duration, Instant};

/// Before anything was measured.
const FIRST: Duration = Duration::from_secs(1);
/// The floor of the retransmission timeout. RFC 6298 says one second; Linux has 200 ms (`TCP_RTO_MIN`), for what is lost
/// without a sign inside a cluster should not cost a second.
const FLOOR: Duration = Duration::from_millis(200);
/// The ceiling of it.
const CEILING: Duration = Duration::from_secs(60);
/// For how long a smallest round trip counts: a flow may move to a longer path.
const MEMORY: Duration = Duration::from_secs(10);

/// What was measured so far.
#[derive(Clone, Debug)]
pub(super) struct Rtt {
    smooth: Option<Duration>,
    variance: Duration,
    /// The smallest one of this period and of the one before.
    smallest: [Option<Duration>; 2],
    period: Instant,
}

impl Rtt {
    pub(super) const fn new(now: Instant) -> Self {
        Self { smooth: None, variance: Duration::ZERO, smallest: [None; 2], period: now }
    }

    /// Takes a measurement. It must be of something that was sent once.
    pub(super) fn add(&mut self, sample: Duration, now: Instant) {
        match self.smooth {
            None => (self.smooth, self.variance) = (Some(sample), sample / 2),
            Some(smooth) => {
                self.variance = (self.variance * 3 + smooth.abs_diff(sample)) / 4;
                self.smooth = Some((smooth * 7 + sample) / 8);
            }
        }
        if now.saturating_duration_since(self.period) >= MEMORY {
            (self.smallest, self.period) = ([None, self.smallest[0]], now);
        }
        self.smallest[0] = Some(self.smallest[0].map_or(sample, |least| least.min(sample)));
    }

    /// The smoothed round trip, once there is one.
    pub(super) const fn smooth(&self) -> Option<Duration> {
        self.smooth
    }

    /// The smallest round trip of the last seconds.
    pub(super) fn smallest(&self) -> Option<Duration> {
        self.smallest.into_iter().flatten().min()
    }

    /// How long to wait for an acknowledgement before all is taken for lost, without backing off.
    pub(super) fn timeout(&self) -> Duration {
        self.smooth.map_or(FIRST, |smooth| smooth + (self.variance * 4).max(FLOOR)).min(CEILING)
    }
}

/// The timeout after so many that came to nothing.
pub(super) fn backed_off(timeout: Duration, times: u32) -> Duration {
    timeout.saturating_mul(1 << times.min(10)).min(CEILING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_path_is_waited_for_a_little_longer_than_it_takes() {
        let now = Instant::now();
        let mut rtt = Rtt::new(now);
        assert_eq!(rtt.timeout(), FIRST);
        for _ in 0..50 {
            rtt.add(40 * MS, now);
        }
        assert_eq!((rtt.smooth(), rtt.smallest()), (Some(40 * MS), Some(40 * MS)));
        assert_eq!(rtt.timeout(), 240 * MS);
    }

    #[test]
    fn a_smallest_round_trip_is_forgotten_after_a_while() {
        let mut now = Instant::now();
        let mut rtt = Rtt::new(now);
        rtt.add(MS, now);
        for _ in 0..3 {
            now += MEMORY;
            rtt.add(50 * MS, now);
        }
        assert_eq!(rtt.smallest(), Some(50 * MS));
    }

    #[test]
    fn waiting_grows_to_a_minute_at_most() {
        assert_eq!(backed_off(200 * MS, 0), 200 * MS);
        assert_eq!(backed_off(200 * MS, 3), 1600 * MS);
        assert_eq!(backed_off(200 * MS, 60), CEILING);
    }
}
