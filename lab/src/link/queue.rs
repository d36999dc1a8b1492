//! Decides for every packet of one way of a link when it arrives, how often, or that it never does. Pure: time is what the
//! caller says, chance comes from the seed. Each knob has dice of its own, so that turning one changes nothing of what the
//! others do.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// Bytes that may be on their way. A second of more than any link here can pass on.
const MOST_BYTES: usize = 512 << 20;

/// What became of the packets of one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Packets that came to the link.
    pub offered: u64,
    /// Packets that left it, second copies included.
    pub passed: u64,
    /// Packets that were lost by chance.
    pub lost: u64,
    /// Packets that came while it was cut.
    pub cut: u64,
    /// Packets that did not fit the rate's queue, or the memory.
    pub overflowed: u64,
    /// Packets that were sent twice.
    pub duplicated: u64,
    /// Packets that were held back.
    pub held: u64,
}

/// One way of a link.
#[derive(Debug)]
pub(crate) struct Queue<P> {
    settings: Settings,
    dice: Dice,
    /// In the middle of a burst of losses.
    losing: bool,
    /// When the wire has passed on what was put on it.
    free: Duration,
    /// On their way, in the order in which they came and will leave.
    line: VecDeque<Waiting<P>>,
    /// Held back, to be overtaken.
    held: BinaryHeap<Reverse<Waiting<P>>>,
    bytes: usize,
    counts: Counts,
}

#[derive(Debug)]
struct Dice {
    loss: StdRng,
    jitter: StdRng,
    duplicate: StdRng,
    reorder: StdRng,
}

/// Ordered by when it leaves; what leaves at the same moment, by when it came.
#[derive(Debug)]
struct Waiting<P> {
    due: Duration,
    number: u64,
    size: usize,
    packet: P,
}

impl<P> Waiting<P> {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.number)
    }
}

impl<P> PartialEq for Waiting<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for Waiting<P> {}

impl<P> PartialOrd for Waiting<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Waiting<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<P: Clone> Queue<P> {
    /// An empty way that does nothing.
    pub(crate) fn new(seed: u64) -> Self {
        let mut seeds = StdRng::seed_from_u64(seed);
        let mut die = || StdRng::seed_from_u64(seeds.random());
        Self {
            settings: Settings::default(),
            dice: Dice { loss: die(), jitter: die(), duplicate: die(), reorder: die() },
            losing: false,
            free: Duration::ZERO,
            line: VecDeque::new(),
            held: BinaryHeap::new(),
            bytes: 0,
            counts: Counts::default(),
        }
    }

    /// For what comes from now on; what is on its way arrives as it was to.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What became of the packets so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether a packet that comes now leaves at once and unchanged, whatever chance says.
    pub(crate) fn is_open(&self) -> bool {
        self.settings.is_nothing() && self.line.is_empty() && self.held.is_empty()
    }

    /// Counts packets that were not offered because the way [is open](Self::is_open).
    pub(crate) fn passed_by(&mut self, packets: u64) {
        self.counts.offered += packets;
        self.counts.passed += packets;
    }

    /// A packet of so many bytes comes.
    pub(crate) fn offer(&mut self, now: Duration, size: usize, packet: P) {
        let settings = self.settings;
        self.counts.offered += 1;
        if settings.cut {
            self.counts.cut += 1;
            return;
        }
        if self.loses() {
            self.counts.lost += 1;
            return;
        }
        let Some(sent) = self.put_on_wire(now, size) else {
            self.counts.overflowed += 1;
            return;
        };
        let mut due = sent + settings.delay;
        if !settings.jitter.is_zero() {
            let spread = settings.jitter.mul_f64(2.0 * self.dice.jitter.random::<f64>());
            due = (due + spread).saturating_sub(settings.jitter).max(sent);
        }
        let number = self.counts.offered;
        self.bytes += size;
        let twice = chance(&mut self.dice.duplicate, settings.duplicate);
        let copy = twice.then(|| packet.clone());
        if chance(&mut self.dice.reorder, settings.reorder) {
            self.counts.held += 1;
            self.held.push(Reverse(Waiting { due: due + settings.reorder_by, number, size, packet }));
        } else {
            self.line_up(Waiting { due, number, size, packet });
        }
        if let Some(packet) = copy {
            self.counts.duplicated += 1;
            self.bytes += size;
            self.line_up(Waiting { due, number, size, packet });
        }
    }

    /// When the next packet leaves.
    pub(crate) fn next(&self) -> Option<Duration> {
        let line = self.line.front().map(|waiting| waiting.due);
        let held = self.held.peek().map(|waiting| waiting.0.due);
        line.into_iter().chain(held).min()
    }

    /// A packet that leaves by now.
    pub(crate) fn take(&mut self, now: Duration) -> Option<P> {
        let line = self.line.front().map(Waiting::key);
        let held = self.held.peek().map(|waiting| waiting.0.key());
        let from_held = match (line, held) {
            (None, None) => return None,
            (Some(line), Some(held)) => held < line,
            (line, _) => line.is_none(),
        };
        let first = line.into_iter().chain(held).min()?;
        if first.0 > now {
            return None;
        }
        let waiting = if from_held { self.held.pop()?.0 } else { self.line.pop_front()? };
        self.bytes -= waiting.size;
        self.counts.passed += 1;
        Some(waiting.packet)
    }

    /// At the end of the line: nobody there overtakes.
    fn line_up(&mut self, mut waiting: Waiting<P>) {
        if let Some(last) = self.line.back() {
            waiting.due = waiting.due.max(last.due);
        }
        self.line.push_back(waiting);
    }

    /// Whether this packet is lost. Bursts are Gilbert's model: two states, with the stay in the bad one as long as a burst
    /// is on average and the way into it as rare as the share of losses asks for.
    fn loses(&mut self) -> bool {
        let Settings { loss, burst, .. } = self.settings;
        if loss >= 1.0 || burst <= 1.0 {
            return chance(&mut self.dice.loss, loss);
        }
        let ends = 1.0 / burst;
        let begins = ends * loss / (1.0 - loss);
        let turns = if self.losing { ends } else { begins };
        self.losing ^= chance(&mut self.dice.loss, turns);
        self.losing
    }

    /// When the wire has passed the packet on; nothing if it would wait too long.
    fn put_on_wire(&mut self, now: Duration, size: usize) -> Option<Duration> {
        if self.bytes + size > MOST_BYTES {
            return None;
        }
        let Some(rate) = self.settings.rate else { return Some(now) };
        let begins = self.free.max(now);
        if begins - now > self.settings.queue {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a packet's size and a rate are far below 2^52")]
        let takes = Duration::from_secs_f64(size as f64 / rate as f64);
        self.free = begins + takes;
        Some(self.free)
    }
}

/// Rolls only if there is a chance at all: dice that are not used don't move.
fn chance(dice: &mut StdRng, share: f64) -> bool {
    share > 0.0 && dice.random::<f64>() < share
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
