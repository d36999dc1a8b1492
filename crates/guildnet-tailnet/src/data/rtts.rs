//! How far away the relays are, by their STUN answers, and whether another home is worth a move. Pure.
//!
//! Source of the rules and their numbers: tailscale `net/netcheck/netcheck.go`, `addReportHistoryAndSetPreferredDERP`.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// For how long an answer counts: the best one of these minutes is a relay's distance, so that one slow answer moves nobody.
const KEPT: Duration = Duration::from_secs(300);
/// Answers that are kept of one relay: more than come in that time while there is traffic, one every 24 s.
const SAMPLES: usize = 16;
/// The least gain that is worth a move: each one is told to all peers, and relays nearer than this are alike.
const GAIN: Duration = Duration::from_millis(10);

/// Round-trip times by region.
#[derive(Debug, Default)]
pub(super) struct Rtts(HashMap<u16, VecDeque<(Instant, Duration)>>);

impl Rtts {
    /// An answer came.
    pub(super) fn add(&mut self, region: u16, rtt: Duration, now: Instant) {
        let samples = self.0.entry(region).or_default();
        samples.retain(|(at, _)| now.saturating_duration_since(*at) < KEPT);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back((now, rtt));
    }

    /// The best time of the last minutes.
    pub(super) fn best(&self, region: u16, now: Instant) -> Option<Duration> {
        let samples = self.0.get(&region)?.iter();
        samples.filter(|(at, _)| now.saturating_duration_since(*at) < KEPT).map(|(_, rtt)| *rtt).min()
    }

    /// The nearest of `others`, if it is nearer than `home` by a third and by 10 ms. `None` while no answer of `home` is known:
    /// a relay that works is not left for a guess.
    pub(super) fn nearer(&self, home: u16, others: impl Iterator<Item = u16>, now: Instant) -> Option<u16> {
        let there = self.best(home, now)?;
        let (nearest, region) = others.filter_map(|region| Some((self.best(region, now)?, region))).min()?;
        (nearest <= there * 2 / 3 && there.saturating_sub(nearest) >= GAIN).then_some(region)
    }

    /// Forgets relays that are no longer in the map.
    pub(super) fn keep(&mut self, is_known: impl Fn(u16) -> bool) {
        self.0.retain(|region, _| is_known(*region));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Whether another relay is worth the move, given both distances in ms.
    fn moves(home: u64, other: u64) -> bool {
        let (mut rtts, now) = (Rtts::default(), Instant::now());
        rtts.add(1, ms(home), now);
        rtts.add(2, ms(other), now);
        rtts.nearer(1, [2].into_iter(), now) == Some(2)
    }

    #[test]
    fn a_move_gains_a_third_and_ten_milliseconds() {
        for (home, other, worth) in [
            (90, 60, true),
            (90, 61, false),
            (30, 20, true),
            (29, 19, true),
            (12, 3, false),
            (300, 250, false),
            (20, 40, false),
        ] {
            assert_eq!(moves(home, other), worth, "{home} ms against {other} ms");
        }
    }

    #[test]
    fn one_slow_answer_moves_nobody_and_old_ones_are_forgotten() {
        let (mut rtts, start) = (Rtts::default(), Instant::now());
        rtts.add(1, ms(20), start);
        rtts.add(1, ms(500), start + Duration::from_secs(24));
        rtts.add(2, ms(40), start + Duration::from_secs(24));
        let nearer = |rtts: &Rtts, seconds| rtts.nearer(1, [2].into_iter(), start + Duration::from_secs(seconds));
        assert_eq!(nearer(&rtts, 30), None);
        assert_eq!(nearer(&rtts, 301), Some(2), "the fast answer is too old");
        assert_eq!(nearer(&rtts, 400), None, "all are");
    }

    #[test]
    fn a_home_that_was_never_measured_is_kept() {
        let (mut rtts, now) = (Rtts::default(), Instant::now());
        rtts.add(2, ms(1), now);
        assert_eq!(rtts.nearer(1, [2].into_iter(), now), None);
    }

    #[test]
    fn few_answers_are_kept() {
        let (mut rtts, now) = (Rtts::default(), Instant::now());
        for n in 0..1000 {
            rtts.add(1, ms(n), now);
        }
        assert_eq!(rtts.0[&1].len(), SAMPLES);
        assert_eq!(rtts.best(1, now), Some(ms(984)));
    }
}
