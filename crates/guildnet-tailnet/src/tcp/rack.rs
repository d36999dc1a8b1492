//! When something that was sent is lost: RACK (RFC 8985). What was sent long enough before something that has arrived will not
//! come any more; how long is long enough grows where the path is seen to reorder, and shrinks again.

use std::time::{Duration, Instant};

use super::rtt::Rtt;

/// The most that the window for reordering grows to, in quarters of the smallest round trip; it never exceeds a round trip.
const MOST: u32 = 16;
/// After so many recoveries without a sign of more, that window is a quarter again (RFC 8985 section 6.2, `reo_wnd_persist`).
const PERSISTS: u32 = 16;

/// What an acknowledgement brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Newly {
    /// Bytes that were not known to have arrived.
    pub(super) bytes: u64,
    /// When the newest of them that was sent once was sent.
    pub(super) sent_once: Option<Instant>,
    /// Where the lowest of them that was sent once ends.
    lowest_once: Option<u64>,
    highest: u64,
    /// When the newest of them was sent, where it ends, whether it was sent more than once.
    newest: Option<(Instant, u64, bool)>,
}

impl Newly {
    /// A range sent at `at` has arrived. `again`: whether it was sent more than once.
    pub(super) fn add(&mut self, start: u64, end: u64, at: Instant, again: bool) {
        self.bytes += end - start;
        self.highest = self.highest.max(end);
        if self.newest.is_none_or(|(newest, to, _)| (newest, to) < (at, end)) {
            self.newest = Some((at, end, again));
        }
        if !again {
            self.sent_once = self.sent_once.max(Some(at));
            self.lowest_once = Some(self.lowest_once.map_or(end, |lowest| lowest.min(end)));
        }
    }
}

/// What arrived last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    /// When it was sent, and where it ends.
    pub(super) sent: (Instant, u64),
    /// How long it took.
    pub(super) took: Duration,
}

/// What was learned from what arrived.
#[derive(Debug, Default)]
pub(super) struct Rack {
    newest: Option<Newest>,
    /// The end of the highest range that arrived.
    highest: u64,
    /// The window for reordering, in quarters of the smallest round trip. 0: the path was never seen to reorder.
    spread: u32,
    /// After so many recoveries it shrinks.
    persists: u32,
    /// It grows once a round trip: not before this is acknowledged.
    grown_until: u64,
}

impl Rack {
    pub(super) const fn newest(&self) -> Option<Newest> {
        self.newest
    }

    /// The end of the highest range that arrived.
    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether the path was ever seen to reorder.
    pub(super) const fn has_reordered(&self) -> bool {
        self.spread > 0
    }

    /// How much later than others something may come.
    pub(super) fn window(&self, rtt: &Rtt) -> Duration {
        let quarter = rtt.smallest().unwrap_or_default() / 4;
        (quarter * self.spread.max(1)).min(rtt.smooth().unwrap_or_default())
    }

    /// Learns from what an acknowledgement brought, all before `una` with it (RFC 8985 section 6.2, steps 1 to 3).
    pub(super) fn on_arrived(&mut self, newly: &Newly, una: u64, rtt: &Rtt, now: Instant) {
        if newly.lowest_once.is_some_and(|end| end < self.highest) {
            self.spread = self.spread.max(1);
        }
        self.highest = self.highest.max(newly.highest).max(una);
        let Some((at, end, again)) = newly.newest else { return };
        let took = now.saturating_duration_since(at);
        // Too early for an answer to what was sent again: it is one to what was sent first.
        if again && rtt.smallest().is_some_and(|least| took < least) {
            return;
        }
        if self.newest.is_none_or(|newest| newest.sent < (at, end)) {
            self.newest = Some(Newest { sent: (at, end), took });
        }
    }

    /// Something came twice: it had only been late (step 4). `una`: all before it is acknowledged; `next`: where what was sent ends.
    pub(super) fn on_twice(&mut self, una: u64, next: u64) {
        if una >= self.grown_until {
            (self.spread, self.persists, self.grown_until) = ((self.spread + 1).min(MOST), PERSISTS, next);
        }
    }

    /// All that was on its way when something was lost has arrived (step 4).
    pub(super) const fn on_recovered(&mut self) {
        self.persists = self.persists.saturating_sub(1);
        if self.persists == 0 && self.spread > 1 {
            self.spread = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// With a round trip of 40 ms.
    fn rack() -> (Rack, Rtt, Instant) {
        let now = Instant::now();
        let mut rtt = Rtt::new(now);
        (0..50).for_each(|_| rtt.add(40 * MS, now));
        (Rack::default(), rtt, now)
    }

    #[test]
    fn the_window_grows_once_a_round_trip_and_shrinks_when_sixteen_losses_brought_nothing_twice() {
        let (mut rack, rtt, _) = rack();
        for round in 1..=3 {
            for _ in 0..10 {
                rack.on_twice(round * 100, round * 100 + 100);
            }
        }
        assert_eq!(rack.window(&rtt), 30 * MS);
        for _ in 1..PERSISTS {
            rack.on_recovered();
        }
        assert_eq!(rack.window(&rtt), 30 * MS);
        rack.on_recovered();
        assert_eq!(rack.window(&rtt), 10 * MS);
        assert!(rack.has_reordered(), "that is not forgotten");
    }

    #[test]
    fn it_is_never_longer_than_a_round_trip() {
        let (mut rack, rtt, _) = rack();
        for round in 0..100 {
            rack.on_twice(round, round + 1);
        }
        assert_eq!(rack.window(&rtt), 40 * MS);
    }

    #[test]
    fn an_answer_to_what_was_sent_first_says_nothing_of_what_was_sent_again() {
        let (mut rack, rtt, now) = rack();
        let mut newly = Newly::default();
        newly.add(1, 100, now, true);
        rack.on_arrived(&newly, 100, &rtt, now + 10 * MS);
        assert!(rack.newest().is_none());
        rack.on_arrived(&newly, 100, &rtt, now + 40 * MS);
        assert_eq!(rack.newest().map(|newest| newest.took), Some(40 * MS));
    }

    #[test]
    fn what_arrives_below_what_has_arrived_shows_a_path_that_reorders() {
        let (mut rack, rtt, now) = rack();
        for (start, end, reorders) in [(1, 100, false), (200, 300, false), (100, 200, true)] {
            let mut newly = Newly::default();
            newly.add(start, end, now, false);
            rack.on_arrived(&newly, 1, &rtt, now + 40 * MS);
            assert_eq!(rack.has_reordered(), reorders, "{start}");
        }
    }
}
