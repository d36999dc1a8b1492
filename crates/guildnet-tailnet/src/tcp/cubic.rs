//! How much a flow may have on its way: CUBIC (RFC 9438), which takes losses for congestion only if there are many, or if
//! the path's queue has grown.
//!
//! A wireless link loses packets without being full. As in BBRv3 (draft-ietf-ccwg-bbr, `BBRLossThresh`), about 2 % lost in
//! a round trip change nothing by themselves; CUBIC's own answer comes when clearly more is lost, or anything while round
//! trips are well above the smallest one, which is what a filling queue looks like.

use std::time::{Duration, Instant};

/// RFC 9438: how steep the curve is, segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438: what is left of the window after a loss.
const BETA: f64 = 0.7;
/// RFC 6928: the first window, segments.
const FIRST: u64 = 10;
/// The smallest window, segments.
const LEAST: u64 = 2;
/// The part of what is on its way that may be lost in a round trip without meaning anything.
const TOLERATED: f64 = 0.02;
/// By how many standard deviations chance may exceed it.
const CHANCE: f64 = 3.0;
/// A queue is seen when a round trip takes that much longer than the smallest one, and half of it more.
const QUEUE: Duration = Duration::from_millis(2);

/// The window.
#[derive(Clone, Debug)]
pub(super) struct Cubic {
    mss: u64,
    window: u64,
    threshold: u64,
    /// The most that it may be, bytes.
    limit: u64,
    /// Segments at the last reduction.
    before: f64,
    /// When growth after it began, and what the window was then.
    epoch: Option<(Instant, f64)>,
    /// What Reno would have, segments (RFC 9438 section 4.3).
    reno: f64,
    /// Bytes lost in this round, how many were on their way when it began, and how many of them have to arrive until the
    /// next one.
    lost: u64,
    round: u64,
    left: u64,
}

impl Cubic {
    pub(super) fn new(mss: usize, limit: usize) -> Self {
        let (mss, limit) = (mss as u64, limit as u64);
        let window = (FIRST * mss).min(limit);
        let (before, epoch, reno) = (0.0, None, 0.0);
        Self { mss, window, threshold: u64::MAX, limit, before, epoch, reno, lost: 0, round: 0, left: 0 }
    }

    /// Bytes that may be on their way.
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// Bytes arrived, of so many that were on their way. `grows`: whether the window held the sender back and nothing else
    /// is wrong.
    pub(super) fn on_ack(&mut self, acked: u64, on_the_way: u64, grows: bool, smooth: Option<Duration>, now: Instant) {
        self.left = self.left.saturating_sub(acked);
        if self.left == 0 {
            (self.round, self.left, self.lost) = (on_the_way, on_the_way, 0);
        }
        if !grows {
            // It is unknown whether the path could carry more. Growth goes on from here.
            self.epoch = None;
            return;
        }
        if self.window < self.threshold {
            self.window = (self.window + acked).min(self.limit);
            return;
        }
        let segments = self.window as f64 / self.mss as f64;
        let (began, from) = *self.epoch.get_or_insert((now, segments));
        if began == now {
            self.reno = segments;
        }
        let origin = self.before.max(from);
        let k = ((origin - from) / C).cbrt();
        let at = now.saturating_duration_since(began) + smooth.unwrap_or_default();
        let target = C.mul_add((at.as_secs_f64() - k).powi(3), origin).clamp(segments, segments * 1.5);
        let acked_segments = acked as f64 / self.mss as f64;
        let alpha = if self.reno < self.before { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        self.reno += alpha * acked_segments / segments;
        let grown = segments + (target - segments) / segments * acked_segments;
        self.window = ((grown.max(self.reno) * self.mss as f64) as u64).min(self.limit);
    }

    /// Bytes were found lost, the first time since all that was on its way then was settled. Returns whether that is taken for
    /// congestion; the window is smaller then.
    pub(super) fn on_loss(
        &mut self,
        bytes: u64,
        on_the_way: u64,
        smooth: Option<Duration>,
        least: Option<Duration>,
    ) -> bool {
        self.lost += bytes;
        let queue = smooth.zip(least).is_some_and(|(smooth, least)| smooth > least + least / 2 + QUEUE);
        let expected = self.round.max(on_the_way) as f64 / self.mss as f64 * TOLERATED;
        let tolerated = CHANCE.mul_add(expected.sqrt(), expected) + 1.0;
        if !queue && self.lost as f64 / self.mss as f64 <= tolerated {
            return false;
        }
        self.reduce();
        true
    }

    /// Nothing came back in time.
    pub(super) fn on_timeout(&mut self) {
        self.reduce();
        self.window = self.mss;
    }

    /// Forgets a reduction that was made for nothing.
    pub(super) fn undo(&mut self, window: u64, threshold: u64) {
        self.window = self.window.max(window);
        self.threshold = self.threshold.max(threshold);
        self.epoch = None;
    }

    /// What [`Cubic::undo`] takes.
    pub(super) const fn state(&self) -> (u64, u64) {
        (self.window, self.threshold)
    }

    fn reduce(&mut self) {
        let segments = self.window as f64 / self.mss as f64;
        // Fast convergence: who had less than before leaves room to newcomers.
        self.before = if segments < self.before { segments * f64::midpoint(1.0, BETA) } else { segments };
        self.window = ((self.window as f64 * BETA) as u64).max(LEAST * self.mss);
        self.threshold = self.window;
        self.epoch = None;
        self.lost = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1000;
    const MS: Duration = Duration::from_millis(1);

    struct Sim {
        cubic: Cubic,
        now: Instant,
    }

    impl Sim {
        fn new() -> Self {
            Self { cubic: Cubic::new(MSS, 100_000_000), now: Instant::now() }
        }

        /// A round trip of 20 ms in which all arrives.
        fn round(&mut self) {
            let window = self.cubic.window();
            self.now += 20 * MS;
            for _ in 0..window / MSS as u64 {
                self.cubic.on_ack(MSS as u64, window, true, Some(20 * MS), self.now);
            }
        }

        fn lose(&mut self, bytes: u64, smooth: Duration) -> bool {
            let window = self.cubic.window();
            self.cubic.on_loss(bytes, window, Some(smooth), Some(20 * MS))
        }
    }

    #[test]
    fn it_doubles_until_the_first_congestion() {
        let mut sim = Sim::new();
        for _ in 0..5 {
            sim.round();
        }
        assert_eq!(sim.cubic.window(), 320_000);
        assert!(sim.lose(100_000, 20 * MS));
        assert_eq!(sim.cubic.window(), 224_000);
    }

    #[test]
    fn it_comes_back_to_where_it_was_in_the_time_of_the_curve() {
        let mut sim = Sim::new();
        for _ in 0..5 {
            sim.round();
        }
        sim.lose(100_000, 20 * MS);
        // K = cbrt(320 * 0.3 / 0.4) = 6.2 s.
        let began = sim.now;
        while sim.cubic.window() < 310_000 {
            sim.round();
        }
        let took = (sim.now - began).as_secs_f64();
        assert!((3.0..6.5).contains(&took), "{took} s");
        for _ in 0..400 {
            sim.round();
        }
        assert!(sim.cubic.window() > 400_000, "it looks for more beyond");
    }

    #[test]
    fn a_few_losses_without_a_queue_mean_nothing() {
        let mut sim = Sim::new();
        for _ in 0..5 {
            sim.round();
        }
        assert!(!sim.lose(12_000, 21 * MS));
        assert_eq!(sim.cubic.window(), 320_000);
        assert!(sim.lose(4_000, 21 * MS), "of 320 segments 6.4 may be lost, and by chance 7.6 more");
    }

    #[test]
    fn any_loss_with_a_queue_is_congestion() {
        let mut sim = Sim::new();
        sim.round();
        assert!(sim.lose(1_000, 40 * MS));
    }

    #[test]
    fn an_idle_flow_does_not_grow() {
        let mut sim = Sim::new();
        let window = sim.cubic.window();
        for _ in 0..50 {
            sim.cubic.on_ack(100, 100, false, Some(20 * MS), sim.now);
        }
        assert_eq!(sim.cubic.window(), window);
    }

    #[test]
    fn a_timeout_begins_anew_and_can_be_undone() {
        let mut sim = Sim::new();
        for _ in 0..5 {
            sim.round();
        }
        let (window, threshold) = sim.cubic.state();
        sim.cubic.on_timeout();
        assert_eq!(sim.cubic.window(), MSS as u64);
        sim.cubic.undo(window, threshold);
        assert_eq!(sim.cubic.window(), 320_000);
    }
}
