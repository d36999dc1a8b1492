//! Whether a router still carries what it is given, judged from what came back. Pure.
//!
//! The server elects one router for a network and leaves it elected when it dies (Headscale 0.29: for good). Every router
//! of the cluster forwards to the cluster's networks, so a connector needs no election; it must only notice. Two things
//! tell: a router of which nothing comes while another one answers is **silent**; one through which a target did not answer
//! that answered through another is **cut off**. Either is asked again by itself, and trusted again once it answers.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long a dial waits for its router before another one is tried beside it, beyond two round trips of the path: more
/// than any cluster takes to answer, less than a person notices.
const RACE: Duration = Duration::from_millis(300);
/// The round trip that is assumed where none is known: a path through a relay.
const UNKNOWN_RTT: Duration = Duration::from_millis(200);
/// Nothing came for so long although an answer is due, by the direct path and the relay: whether other routers answer is
/// found out.
const ASK_OTHERS: Duration = Duration::from_secs(1);
/// The same, while another one does: the router is given up. New handshakes have been tried by then.
const SILENT: Duration = Duration::from_secs(2);
/// How often an overdue router is judged.
const LOOK: Duration = Duration::from_millis(250);
/// How long after it lost to another router a dial may still be answered, before flows to the same address are given up.
pub(crate) const WATCH: Duration = Duration::from_secs(2);
/// When a doubted router is asked for the first time; then after twice as long, and so on.
const FIRST_PROBE: Duration = Duration::from_secs(2);
/// The longest wait between two such questions.
const LAST_PROBE: Duration = Duration::from_secs(60);

/// When a dial through a router with this round trip is to be tried through the next one as well.
pub(crate) fn race_after(rtt: Option<Duration>) -> Duration {
    RACE + 2 * rtt.unwrap_or(UNKNOWN_RTT)
}

/// What to do about a router that may have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is known against it.
    Sound,
    /// It is overdue: find out whether the others answer.
    Overdue,
    /// It is silent and another one is not.
    Silent,
}

/// Judges a router that owes an answer since `silent_since`, by when each of the others was last heard.
pub(crate) fn judge(
    silent_since: Option<Instant>,
    others_heard: impl IntoIterator<Item = Option<Instant>>,
    now: Instant,
) -> Verdict {
    let Some(since) = silent_since.filter(|at| now.saturating_duration_since(*at) >= ASK_OTHERS) else {
        return Verdict::Sound;
    };
    let another = others_heard.into_iter().flatten().any(|heard| heard > since);
    if another && now.saturating_duration_since(since) >= SILENT { Verdict::Silent } else { Verdict::Overdue }
}

/// When a router that owes an answer since then is to be judged next, if that was last done at `looked`.
pub(crate) fn next_look(silent_since: Instant, looked: Instant) -> Instant {
    let first = silent_since + ASK_OTHERS;
    if looked < first { first } else { looked + LOOK }
}

/// Whether a sign of life is so young that asking for another one tells nothing.
pub(crate) fn is_of_now(heard: Instant, now: Instant) -> bool {
    now.saturating_duration_since(heard) < LOOK
}

/// What speaks against a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It answers nothing.
    Silent,
    /// It did not bring an answer of this address, and another router did.
    CutOff(SocketAddr),
}

#[derive(Clone, Copy, Debug)]
struct Doubted {
    doubt: Doubt,
    probe: Instant,
    wait: Duration,
}

/// How a router stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    doubted: Option<Doubted>,
}

impl Standing {
    /// Whether others go before it.
    pub(crate) const fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// Something speaks against it. Returns whether nothing did before.
    pub(crate) fn doubt(&mut self, doubt: Doubt, now: Instant) -> bool {
        let is_new = self.doubted.is_none();
        // Silence is the lesser charge to clear: it does not replace the other.
        if is_new || matches!(doubt, Doubt::CutOff(_)) {
            let (probe, wait) = self.doubted.map_or((now + FIRST_PROBE, FIRST_PROBE), |d| (d.probe, d.wait));
            self.doubted = Some(Doubted { doubt, probe, wait });
        }
        is_new
    }

    /// Something authentic came from it. Returns whether a doubt has ended.
    pub(crate) fn on_heard(&mut self) -> bool {
        self.doubted.take_if(|doubted| doubted.doubt == Doubt::Silent).is_some()
    }

    /// A target answered through it. Returns whether a doubt has ended.
    pub(crate) fn on_carried(&mut self) -> bool {
        self.doubted.take().is_some()
    }

    /// What it is to be asked now, if so; the next time is set.
    pub(crate) fn probe(&mut self, now: Instant) -> Option<Doubt> {
        let doubted = self.doubted.as_mut().filter(|doubted| doubted.probe <= now)?;
        doubted.wait = (2 * doubted.wait).min(LAST_PROBE);
        doubted.probe = now + doubted.wait;
        Some(doubted.doubt)
    }

    /// When [`Standing::probe`] has something to ask.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.doubted.map(|doubted| doubted.probe)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> SocketAddr {
        "10.96.0.1:443".parse().expect("an address")
    }

    #[test]
    fn a_router_alone_is_never_given_up() {
        let now = Instant::now();
        for seconds in [0, 1, 2, 60, 3600] {
            let verdict = judge(Some(now), [], now + Duration::from_secs(seconds));
            assert_ne!(verdict, Verdict::Silent, "after {seconds} s: it may be restarting");
        }
    }

    #[test]
    fn silence_counts_when_another_router_has_answered_meanwhile() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(judge(None, [Some(at(9_000))], at(10_000)), Verdict::Sound);
        assert_eq!(judge(Some(start), [Some(at(500))], at(900)), Verdict::Sound);
        assert_eq!(judge(Some(start), [Some(at(500))], at(1_900)), Verdict::Overdue);
        assert_eq!(judge(Some(start), [None, Some(at(500))], at(2_000)), Verdict::Silent);
        assert_eq!(judge(Some(at(500)), [Some(start)], at(9_000)), Verdict::Overdue, "heard before, not since");
    }

    #[test]
    fn a_silent_router_is_cleared_by_a_word_and_one_cut_off_by_an_answer_through_it() {
        let now = Instant::now();
        let mut standing = Standing::default();
        assert!(standing.doubt(Doubt::Silent, now));
        assert!(standing.on_heard() && !standing.is_doubted());
        assert!(standing.doubt(Doubt::Silent, now));
        assert!(!standing.doubt(Doubt::CutOff(target()), now));
        assert!(!standing.on_heard() && standing.is_doubted());
        assert!(standing.on_carried() && !standing.is_doubted());
    }

    proptest! {
        /// However long it lasts, a doubted router is asked again, ever more rarely, and never less than once a minute.
        #[test]
        fn a_doubted_router_is_asked_again(steps in prop::collection::vec(0..90_000_u64, 1..60)) {
            let mut now = Instant::now();
            let mut standing = Standing::default();
            standing.doubt(Doubt::CutOff(target()), now);
            for step in steps {
                let due = standing.next().expect("it is doubted");
                prop_assert!(due <= now + LAST_PROBE);
                now += Duration::from_millis(step);
                prop_assert_eq!(standing.probe(now).is_some(), due <= now);
                prop_assert_eq!(standing.probe(now), None, "once");
            }
        }
    }
}
