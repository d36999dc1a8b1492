//! The receiving half of a flow: puts together what arrives, tells how much more may come and what came out of order.
//!
//! Positions are offsets in the stream, 64 bits wide: 0 is the far end's SYN, its first byte of data has 1. Received data is kept
//! in chunks that its reader takes whole, so that copying needs no lock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    budget::Share,
    chunks::{self, CHUNK, SMALL_CHUNK},
};
use crate::packet::{MAX_SACK, Options};

/// How far windows are shifted: up to 16 MiB can be told.
pub(super) const SHIFT: u8 = 8;
/// Pieces between holes that are kept. A far end that leaves more of them costs only itself.
const MAX_EARLY: usize = 512;
/// Ranges that are still to be told. Of more the oldest are left out: no turn is so long.
const MAX_UNTOLD: usize = 64;

/// Bytes that came before those in front of them.
struct Early {
    start: u64,
    data: Vec<u8>,
}

impl Early {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }
}

/// What became of a segment's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing is to be said about it now.
    InOrder,
    /// The far end should hear of it at once.
    AnswerNow,
}

/// The receiving half.
pub(super) struct Receiver {
    /// The sequence number of offset 0.
    first: u32,
    /// What is waited for.
    next: u64,
    /// The end of what the far end was told that it may send.
    edge: u64,
    /// By how much windows on the wire are shifted.
    shift: u8,
    /// The window, and what it may grow to, bytes.
    limit: usize,
    ceiling: usize,
    ready: VecDeque<Vec<u8>>,
    /// The size of the next chunk: a slow talk has small ones, a bulk transfer few.
    chunk: usize,
    early: VecDeque<Early>,
    /// Holds both.
    share: Share,
    /// Bytes ready.
    queued: usize,
    fin: Option<u64>,
    /// Where early pieces began that the far end has not heard of, oldest first.
    untold: VecDeque<u64>,
    /// Where those began that it has heard of last, newest first.
    told: VecDeque<u64>,
    /// What came twice and was not told yet.
    twice: Option<(u64, u64)>,
    /// Segments received in order since the last acknowledgement.
    unacknowledged: usize,
    /// The reader's pace: when this period began and what was read in it.
    pace: Option<(Instant, usize)>,
    /// Something came out of order in this period.
    had_holes: bool,
}

impl Receiver {
    /// `first`: the sequence number of the far end's SYN. `scales`: whether windows may be shifted.
    pub(super) fn new(first: u32, scales: bool, window: usize, ceiling: usize, share: Share) -> Self {
        let shift = if scales { SHIFT } else { 0 };
        let (most, next) = (usize::from(u16::MAX) << shift, 1);
        Self {
            first,
            next,
            edge: next,
            shift,
            limit: window.min(most),
            ceiling: ceiling.min(most),
            ready: VecDeque::new(),
            chunk: SMALL_CHUNK,
            early: VecDeque::new(),
            share,
            queued: 0,
            fin: None,
            untold: VecDeque::new(),
            told: VecDeque::new(),
            twice: None,
            unacknowledged: 0,
            pace: None,
            had_holes: false,
        }
    }

    /// The sequence number that is waited for.
    pub(super) const fn acknowledged(&self) -> u32 {
        self.number(self.next)
    }

    const fn number(&self, offset: u64) -> u32 {
        self.first.wrapping_add(offset as u32)
    }

    /// How far a sequence number is from what is waited for.
    pub(super) const fn distance(&self, number: u32) -> i64 {
        number.wrapping_sub(self.acknowledged()).cast_signed() as i64
    }

    /// Whether a segment touches the window (RFC 9293 section 3.10.7.4, first check). `len` counts FIN and SYN.
    pub(super) fn accepts(&self, number: u32, len: usize) -> bool {
        let (distance, window) = (self.distance(number), (self.edge + self.slack()).saturating_sub(self.next) as i64);
        if len == 0 {
            return distance >= 0 && distance <= window;
        }
        distance < window && distance + len as i64 > 0
    }

    /// Whether windows on the wire are shifted.
    pub(super) const fn scales(&self) -> bool {
        self.shift > 0
    }

    /// What rounding may have told beyond the edge.
    const fn slack(&self) -> u64 {
        (1 << self.shift) - 1
    }

    /// Takes a segment's data, and its FIN.
    pub(super) fn on_data(&mut self, number: u32, data: &[u8], fin: bool) -> Taken {
        let distance = self.distance(number);
        let known = usize::try_from(-distance).unwrap_or(0).min(data.len());
        if known > 0 && known == data.len() {
            let end = self.next.saturating_sub(u64::try_from(-distance).unwrap_or(0)) + known as u64;
            self.twice = Some((end.saturating_sub(known as u64), end));
            if !fin || distance + (data.len() as i64) < 0 {
                return Taken::AnswerNow;
            }
        }
        let start = if distance >= 0 { self.next + distance.unsigned_abs() } else { self.next };
        let fresh = &data[known..];
        let room = usize::try_from((self.edge + self.slack()).saturating_sub(start)).unwrap_or(usize::MAX);
        let kept = &fresh[..fresh.len().min(room)];
        let whole = kept.len() == fresh.len();
        if self.share.is_over() && !kept.is_empty() {
            return Taken::AnswerNow;
        }
        if fin && whole && self.fin.is_none() && self.next <= start + kept.len() as u64 {
            self.fin = Some(start + kept.len() as u64);
        }
        if start > self.next {
            if !kept.is_empty() {
                self.keep_early(start, kept);
            }
            return Taken::AnswerNow;
        }
        let filled_a_hole = !self.early.is_empty();
        self.append(kept);
        while self.early.front().is_some_and(|early| early.start <= self.next) {
            let Some(mut early) = self.early.pop_front() else { break };
            let known = usize::try_from(self.next - early.start).unwrap_or(usize::MAX).min(early.data.len());
            self.share.give_back(known);
            early.data.drain(..known);
            self.next += early.data.len() as u64;
            self.queued += early.data.len();
            if !early.data.is_empty() {
                self.ready.push_back(early.data);
            }
        }
        if self.fin == Some(self.next) {
            self.next += 1;
            return Taken::AnswerNow;
        }
        if filled_a_hole || !whole || kept.is_empty() { Taken::AnswerNow } else { Taken::InOrder }
    }

    fn append(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.next += data.len() as u64;
        self.queued += data.len();
        self.unacknowledged += 1;
        self.share.take(data.len());
        match self.ready.back_mut() {
            Some(last) if last.capacity() - last.len() >= data.len() => last.extend_from_slice(data),
            last => {
                if last.is_some() {
                    // It was full before anybody took it.
                    self.chunk = (self.chunk * 2).min(CHUNK);
                }
                let mut chunk = chunks::with_room(self.chunk.max(data.len()));
                chunk.extend_from_slice(data);
                self.ready.push_back(chunk);
            }
        }
    }

    /// Keeps data from beyond a hole. Where it overlaps what is there, that stays; what reaches over a piece that is there is
    /// left to be sent again.
    fn keep_early(&mut self, mut start: u64, mut data: &[u8]) {
        let at = self.early.partition_point(|early| early.start <= start);
        let (asked, len) = (start, data.len());
        if let Some(before) = at.checked_sub(1).map(|k| &self.early[k]) {
            let known = usize::try_from(before.end().saturating_sub(start)).unwrap_or(usize::MAX).min(data.len());
            data = &data[known..];
            start += known as u64;
        }
        if let Some(after) = self.early.get(at) {
            let room = usize::try_from(after.start.saturating_sub(start)).unwrap_or(usize::MAX);
            data = &data[..data.len().min(room)];
        }
        if data.is_empty() {
            self.twice = Some((asked, asked + len as u64));
            return;
        }
        let before = at.checked_sub(1).map(|k| &mut self.early[k]);
        if let Some(before) = before.filter(|b| b.end() == start && b.data.len() + data.len() <= CHUNK) {
            before.data.extend_from_slice(data);
        } else if self.early.len() < MAX_EARLY {
            self.early.insert(at, Early { start, data: data.to_vec() });
        } else {
            return;
        }
        self.had_holes = true;
        self.share.take(data.len());
        let (from, to) = self.block(start);
        self.told.retain(|at| !(from..to).contains(at));
        self.untold.retain(|at| !(from..to).contains(at));
        if self.untold.len() == MAX_UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back(start);
    }

    /// The whole range without a hole around an early offset.
    fn block(&self, offset: u64) -> (u64, u64) {
        let after = self.early.partition_point(|early| early.start <= offset);
        let mut first = after.saturating_sub(1);
        while first > 0 && self.early[first - 1].end() == self.early[first].start {
            first -= 1;
        }
        let mut last = after.saturating_sub(1);
        while last + 1 < self.early.len() && self.early[last].end() == self.early[last + 1].start {
            last += 1;
        }
        (self.early[first].start, self.early[last].end())
    }

    /// Adds what arrived out of order, and what came twice (RFC 2018, RFC 2883): what the far end has not heard of first, in
    /// the order in which it came.
    pub(super) fn report(&mut self, options: &mut Options) {
        let mut room = MAX_SACK;
        if let Some((start, end)) = self.twice.take() {
            options.add_sack(self.number(start), self.number(end));
            room -= 1;
        }
        let next = self.next;
        self.told.retain(|at| *at >= next);
        self.untold.retain(|at| *at >= next);
        for at in self.untold.drain(..room.min(self.untold.len())) {
            self.told.push_front(at);
        }
        self.told.truncate(MAX_SACK);
        for at in &self.told {
            let (start, end) = self.block(*at);
            options.add_sack(self.number(start), self.number(end));
        }
    }

    /// Whether there is more to report, since the last time it was done or because one segment had no room for all. A range of
    /// which the far end hears only after what lies beyond it looks to it like packets that came out of order, and it waits
    /// longer from then on before it sends anything again (RFC 8985 section 6.2, step 3; `tcp_check_sack_reordering` in Linux
    /// `net/ipv4/tcp_input.c`).
    pub(super) fn has_untold(&self) -> bool {
        self.twice.is_some() || !self.untold.is_empty()
    }

    /// Whether nothing more will come.
    pub(super) fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.next > fin)
    }

    /// Bytes ready to be read.
    pub(super) const fn queued(&self) -> usize {
        self.queued
    }

    /// Segments received in order since [`Receiver::window`] was last told. Segments, not bytes: a far end that sent two, however
    /// small, probes for the loss of the last one after two round trips, since it counts on an answer to both (RFC 8985
    /// section 7.2).
    pub(super) const fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// The oldest chunk. `rtt`: a round trip; a reader who takes more than half of the window in one gets a larger window. Under
    /// losses a quarter is enough: what follows a hole waits for a round trip until it is mended, so that a full window is
    /// read in two of them, and half of it would hold the window where it is.
    pub(super) fn take(&mut self, rtt: Option<Duration>, now: Instant) -> Option<Vec<u8>> {
        let chunk = self.ready.pop_front()?;
        self.queued -= chunk.len();
        self.share.give_back(chunk.len());
        if chunk.len() < chunk.capacity() / 2 {
            self.chunk = (self.chunk / 2).max(SMALL_CHUNK);
        }
        if let Some(rtt) = rtt
            && self.limit < self.ceiling
        {
            let (began, read) = self.pace.get_or_insert((now, 0));
            *read += chunk.len();
            let passed = now.saturating_duration_since(*began);
            if passed >= rtt && !passed.is_zero() {
                let in_one = (*read as f64 * rtt.as_secs_f64() / passed.as_secs_f64()) as usize;
                let rounds = if self.had_holes { 4 } else { 2 };
                self.limit = self.limit.max(in_one * rounds).min(self.ceiling);
                self.pace = Some((now, 0));
                self.had_holes = !self.early.is_empty();
            }
        }
        Some(chunk)
    }

    /// Where the window could end now.
    fn possible_edge(&self) -> u64 {
        let room = self.share.grant(self.limit).saturating_sub(self.queued);
        self.edge.max(self.next + room as u64)
    }

    /// Whether there is so much more room that the far end should be told at once.
    pub(super) fn has_grown(&self) -> bool {
        let step = (self.limit / 4).min(self.share.grant(self.limit) / 2).max(1);
        self.possible_edge() - self.edge >= step as u64
    }

    /// The window as it goes onto the wire with what is acknowledged now; all counts as told.
    pub(super) fn window(&mut self) -> u16 {
        self.edge = self.possible_edge();
        self.unacknowledged = 0;
        let window = (self.edge.saturating_sub(self.next)).div_ceil(1 << self.shift);
        u16::try_from(window).unwrap_or(u16::MAX)
    }

    /// The window of a SYN, which is never shifted.
    pub(super) fn first_window(&mut self) -> u16 {
        let window = self.limit.min(usize::from(u16::MAX));
        self.edge = self.edge.max(self.next + window as u64);
        window as u16
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tcp::Budget;

    const RTT: Duration = Duration::from_millis(100);

    /// A far end that always fills the window; of each window the first segment is lost, and comes a round trip after the rest.
    /// Returns the window in the end.
    fn window_after(rounds: usize, lossy: bool) -> usize {
        let share = Share::new(Arc::new(Budget::new(64 << 20)));
        let mut receiver = Receiver::new(0, true, 1 << 20, 8 << 20, share);
        let mut now = Instant::now();
        let segment = [0; 1200];
        for _ in 0..rounds {
            let room = usize::from(receiver.window()) << SHIFT;
            let first = receiver.acknowledged();
            let numbers = (0..room / segment.len()).map(|k| first + (k * segment.len()) as u32);
            now += RTT;
            for number in numbers.skip(usize::from(lossy)) {
                receiver.on_data(number, &segment, false);
            }
            if lossy {
                now += RTT;
                receiver.on_data(first, &segment, false);
            }
            while receiver.take(Some(RTT), now).is_some() {}
        }
        receiver.limit
    }

    #[test]
    fn the_window_grows_under_losses_too() {
        assert_eq!(window_after(6, false), 8 << 20);
        assert_eq!(window_after(6, true), 8 << 20);
    }
}
