//! The sending half of a flow: what was written, what of it is on its way, what was lost, and when something is due.
//!
//! Losses are found by RACK-TLP (RFC 8985) over a scoreboard of what was acknowledged selectively (RFC 2018, RFC 6675), so that only
//! what was lost is sent again. Positions are offsets in the stream, 64 bits wide: 0 is the SYN, the first byte of data has
//! 1, the FIN comes after the last one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    budget::Share,
    cubic::Cubic,
    rack::{Newly, Rack},
    rtt::{Rtt, backed_off},
    written::Written,
};

/// How long a far end may hold back an acknowledgement (RFC 1122 says 500 ms; Linux 40 ms).
const DELAYED_ANSWER: Duration = Duration::from_millis(40);
/// What a tail probe waits for beside two round trips where more than one segment is on its way.
const PROBE_SLACK: Duration = Duration::from_millis(2);
/// Segments acknowledged selectively that show a loss even if the path was never seen to reorder (RFC 6675).
const DUPLICATES: u64 = 3;
/// Ranges on their way: what bounds a flow that sends crumbs.
const MAX_SENT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flying,
    /// Acknowledged selectively.
    Arrived,
    /// To be sent again.
    Lost,
}

/// A range that was sent in one go and has one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    start: u64,
    end: u64,
    at: Instant,
    state: State,
    /// Whether it was sent more than once.
    again: bool,
}

impl Sent {
    const fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// A segment to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The offset of its first byte of data, of the SYN, or of the FIN.
    pub(super) start: u64,
    /// Bytes of data.
    pub(super) len: usize,
    pub(super) syn: bool,
    pub(super) fin: bool,
    /// Whether nothing is written beyond it yet.
    pub(super) last: bool,
    again: bool,
}

impl Piece {
    const fn end(&self) -> u64 {
        self.start + self.len as u64 + self.syn as u64 + self.fin as u64
    }
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// More may be lost by then.
    Reordering,
    /// The end of what was sent may be lost: nothing after it would show it.
    Tail,
    /// Nothing came back.
    Timeout,
    /// The far end's window is shut.
    Shut,
}

/// What holds the window's growth back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    None,
    /// After a loss, until all that was on its way then is settled.
    Loss(u64),
    /// After a timeout: the window grows from one segment.
    Timeout(u64),
}

/// What a reduction of the window was for, to take it back if it was for nothing.
#[derive(Clone, Copy, Debug)]
struct Undo {
    congestion: (u64, u64),
    /// Bytes sent again since, less those that had arrived twice.
    again: u64,
}

/// What an acknowledgement says, as offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledgement<'a> {
    pub(super) upto: u64,
    /// Ranges that arrived out of order, or twice.
    pub(super) blocks: &'a [(u64, u64)],
    /// The end of the far end's window, if this says it newer than all before.
    pub(super) edge: Option<u64>,
}

/// The sending half.
pub(super) struct Sender {
    /// The sequence number of offset 0.
    first: u32,
    /// What is acknowledged, what was sent: the first byte that is not.
    una: u64,
    next: u64,
    written: Written,
    closing: bool,
    /// The end of the far end's window.
    edge: u64,
    mss: usize,
    window: usize,
    ceiling: usize,
    sent: VecDeque<Sent>,
    /// Bytes of `sent` that are flying, lost, and that have arrived out of order.
    flying: u64,
    lost: u64,
    arrived: u64,
    rtt: Rtt,
    cubic: Cubic,
    /// Whether the congestion window held something back since the last acknowledgement.
    full: bool,
    rack: Rack,
    recovery: Recovery,
    undo: Option<Undo>,
    /// The tail was probed, up to here.
    probed: Option<u64>,
    /// A probe is due whatever the window says.
    probe_due: bool,
    shut_probe_due: bool,
    backoff: u32,
    alarm: Option<(Instant, Alarm)>,
    repeated: u64,
}

impl Sender {
    /// Only the SYN may be sent until [`Sender::open`].
    pub(super) fn new(first: u32, mss: usize, window: usize, ceiling: usize, share: Share, now: Instant) -> Self {
        Self {
            first,
            una: 0,
            next: 0,
            written: Written::new(share),
            closing: false,
            edge: 1,
            mss,
            window,
            ceiling,
            sent: VecDeque::new(),
            flying: 0,
            lost: 0,
            arrived: 0,
            rtt: Rtt::new(now),
            cubic: Cubic::new(mss, ceiling),
            full: false,
            rack: Rack::default(),
            recovery: Recovery::None,
            undo: None,
            probed: None,
            probe_due: false,
            shut_probe_due: false,
            backoff: 0,
            alarm: None,
            repeated: 0,
        }
    }

    /// The far end's SYN has told what it takes.
    pub(super) fn open(&mut self, mss: usize) {
        self.mss = mss;
        self.cubic = Cubic::new(mss, self.ceiling);
    }

    pub(super) const fn number(&self, offset: u64) -> u32 {
        self.first.wrapping_add(offset as u32)
    }

    /// The offset of a sequence number, if it is not before the stream's beginning.
    pub(super) fn offset(&self, number: u32) -> Option<u64> {
        let distance = number.wrapping_sub(self.number(self.una)).cast_signed();
        self.una.checked_add_signed(i64::from(distance))
    }

    /// The first offset that is not acknowledged.
    pub(super) const fn una(&self) -> u64 {
        self.una
    }

    /// The first offset that was never sent.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    pub(super) const fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// Bytes that were sent again.
    #[cfg(test)]
    pub(super) const fn repeated(&self) -> u64 {
        self.repeated
    }

    // --- What is written ---

    /// How many bytes may be written now: none until a fair part of the buffer is free.
    pub(super) fn room(&self) -> usize {
        // While a hole is mended what came after it waits, too.
        let flight = usize::try_from(self.cubic.window() * 4).unwrap_or(usize::MAX);
        let wanted = self.window.max(flight).min(self.ceiling);
        let limit = self.written.grant(wanted);
        let room = limit.saturating_sub(self.written.held());
        if room * 4 >= limit { room } else { 0 }
    }

    /// Adds bytes, at most [`Sender::room`].
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.written.append(bytes);
    }

    /// Adds a chunk, at most [`Sender::room`] bytes.
    pub(super) fn push(&mut self, chunk: Vec<u8>) {
        self.written.push(chunk);
    }

    /// Nothing more will be written.
    pub(super) const fn close(&mut self) {
        self.closing = true;
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Where everything ends, the FIN with it.
    const fn limit(&self) -> u64 {
        self.written.end() + self.closing as u64
    }

    /// Whether something that was written is not acknowledged.
    pub(super) const fn is_owed(&self) -> bool {
        self.una < self.limit()
    }

    /// Whether all, and the FIN, was acknowledged.
    pub(super) const fn is_finished(&self) -> bool {
        self.closing && self.una > self.written.end()
    }

    /// Copies the data at an offset.
    pub(super) fn copy(&self, start: u64, out: &mut [u8]) {
        self.written.copy(start, out);
    }

    // --- What is sent ---

    /// The next segment to send, if one may be sent now.
    pub(super) fn piece(&mut self) -> Option<Piece> {
        if let Some(piece) = self.lost_piece() {
            return self.may_fly(&piece).then_some(piece);
        }
        if let Some(piece) = self.fresh_piece() {
            if self.may_fly(&piece) || self.probe_due {
                return Some(piece);
            }
            self.full = true;
            return None;
        }
        if self.probe_due
            && let Some(last) = self.sent.iter().rev().find(|sent| sent.state == State::Flying)
        {
            let start = last.start.max(last.end.saturating_sub(self.mss as u64));
            return Some(self.piece_of(start, last.end, true));
        }
        None
    }

    fn may_fly(&self, piece: &Piece) -> bool {
        let fits = self.flying + piece.len as u64 <= self.cubic.window() && self.sent.len() < MAX_SENT;
        fits || self.flying == 0
    }

    fn piece_of(&self, start: u64, end: u64, again: bool) -> Piece {
        if start == 0 {
            return Piece { start, len: 0, syn: true, fin: false, last: false, again };
        }
        let len =
            usize::try_from(end.min(self.written.end()).saturating_sub(start)).unwrap_or(usize::MAX).min(self.mss);
        let data_end = start + len as u64;
        let fin = self.closing && data_end == self.written.end() && end > self.written.end();
        Piece { start, len, syn: false, fin, last: data_end == self.written.end(), again }
    }

    fn lost_piece(&self) -> Option<Piece> {
        if self.lost == 0 {
            return None;
        }
        let mut lost = self.sent.iter().skip_while(|sent| sent.state != State::Lost);
        let first = lost.next()?;
        // Crumbs that were lost together are sent again as one.
        let mut end = first.end;
        while end < first.start + self.mss as u64
            && let Some(sent) = lost.next().filter(|sent| sent.state == State::Lost && sent.start == end)
        {
            end = sent.end;
        }
        Some(self.piece_of(first.start, end, true))
    }

    fn fresh_piece(&self) -> Option<Piece> {
        let whole = self.piece_of(self.next, self.limit(), false);
        if whole.end() == whole.start {
            return None;
        }
        let end = whole.start + whole.len as u64;
        if end <= self.edge || whole.len == 0 {
            return Some(whole);
        }
        let len = usize::try_from(self.edge.saturating_sub(whole.start)).unwrap_or(0);
        // A window that is nearly shut is not filled with crumbs (RFC 1122, silly window syndrome).
        if len == 0 || (len < self.mss / 2 && self.flying > 0) {
            return None;
        }
        Some(Piece { len, fin: false, last: false, ..whole })
    }

    /// A segment from [`Sender::piece`] is sent.
    pub(super) fn on_sent(&mut self, piece: &Piece, now: Instant) {
        let (start, end) = (piece.start, piece.end());
        let flying = Sent { start, end, at: now, state: State::Flying, again: piece.again };
        if self.probe_due {
            (self.probe_due, self.probed) = (false, Some(self.next.max(end)));
        }
        if piece.again {
            self.repeated += piece.len as u64;
            if let Some(undo) = &mut self.undo {
                undo.again += end - start;
            }
            self.set(start, end, |_| Some(flying));
        } else {
            self.next = end;
            self.flying += end - start;
            match self.sent.back_mut() {
                Some(last) if last.at == now && last.state == State::Flying && !last.again => last.end = end,
                _ => self.sent.push_back(flying),
            }
        }
        // The clock runs for what was sent first.
        if !matches!(self.alarm, Some((_, Alarm::Timeout | Alarm::Reordering))) {
            self.arm(now);
        }
    }

    /// Changes the records of a range, cutting those at its ends; `change` may leave one as it is.
    fn set(&mut self, start: u64, end: u64, change: impl Fn(&Sent) -> Option<Sent>) {
        let mut k = self.sent.partition_point(|sent| sent.end <= start);
        while let Some(&old) = self.sent.get(k) {
            if old.start >= end {
                break;
            }
            let (from, to) = (old.start.max(start), old.end.min(end));
            let Some(changed) = change(&old) else {
                k += 1;
                continue;
            };
            self.count(old.state, to - from, false);
            self.count(changed.state, to - from, true);
            self.sent[k] = Sent { start: from, end: to, ..changed };
            if old.end > to {
                self.sent.insert(k + 1, Sent { start: to, ..old });
            }
            if old.start < from {
                self.sent.insert(k, Sent { end: from, ..old });
                k += 1;
            }
            k = self.join(k);
        }
    }

    /// Joins a record with the one before it, if they are alike. Returns the index of the next one.
    fn join(&mut self, k: usize) -> usize {
        if let Some(before) = k.checked_sub(1) {
            let (a, b) = (self.sent[before], self.sent[k]);
            // When something that has arrived was sent is of no interest any more.
            let alike = a.state == b.state && (a.state == State::Arrived || (a.at, a.again) == (b.at, b.again));
            if alike {
                self.sent[before].end = b.end;
                self.sent.remove(k);
                return k;
            }
        }
        k + 1
    }

    fn count(&mut self, state: State, bytes: u64, more: bool) {
        let counter = match state {
            State::Flying => &mut self.flying,
            State::Lost => &mut self.lost,
            State::Arrived => &mut self.arrived,
        };
        if more {
            *counter += bytes;
        } else {
            *counter -= bytes;
        }
    }

    // --- What comes back ---

    /// Takes an acknowledgement, which must be of something that was sent.
    pub(super) fn on_acknowledgement(&mut self, ack: &Acknowledgement<'_>, now: Instant) {
        let was_shut = self.is_shut();
        if let Some(edge) = ack.edge {
            self.edge = edge;
        }
        let (before, on_the_way, previous) = (self.una, self.flying + self.lost, self.alarm);
        let mut newly = Newly::default();
        while let Some(&sent) = self.sent.front() {
            if sent.start >= ack.upto {
                break;
            }
            let end = sent.end.min(ack.upto);
            if sent.state != State::Arrived {
                newly.add(sent.start, end, sent.at, sent.again);
            }
            self.count(sent.state, end - sent.start, false);
            if sent.end > end {
                self.sent[0].start = end;
            } else {
                self.sent.pop_front();
            }
        }
        self.una = self.una.max(ack.upto);
        self.written.drop_before(self.una);
        for (k, &(start, end)) in ack.blocks.iter().enumerate() {
            // RFC 2883: a first block that is acknowledged already, or lies in the second one, came twice.
            let inside = ack.blocks.get(1).is_some_and(|&(from, to)| start >= from && end <= to);
            if k == 0 && (end <= self.una || inside) {
                self.on_twice(end.saturating_sub(start));
            } else if end > self.una && start < end && end <= self.next {
                self.on_arrived(start.max(self.una), end, &mut newly);
            }
        }
        if let Some(at) = newly.sent_once {
            self.rtt.add(now.saturating_duration_since(at), now);
        }
        self.rack.on_arrived(&newly, self.una, &self.rtt, now);
        if self.una > before {
            self.backoff = 0;
            if self.probed.is_some_and(|upto| self.una >= upto) {
                self.probed = None;
            }
        }
        let has_opened = was_shut && !self.is_shut();
        if has_opened {
            self.backoff = 0;
        }
        match self.recovery {
            Recovery::Loss(upto) | Recovery::Timeout(upto) if self.una >= upto => {
                (self.recovery, self.undo) = (Recovery::None, None);
                self.rack.on_recovered();
            }
            _ => {}
        }
        let congested = self.find_losses(on_the_way, now);
        if newly.bytes > 0 {
            let is_full = self.full || on_the_way * 2 >= self.cubic.window();
            let grows = is_full && !congested && !matches!(self.recovery, Recovery::Loss(_));
            self.cubic.on_ack(newly.bytes, on_the_way, grows, self.rtt.smooth(), now);
            (self.full, self.probe_due) = (false, false);
        }
        match previous {
            _ if self.alarm.is_some() => {}
            // What only repeats what was known puts nothing off.
            Some((_, alarm)) if newly.bytes == 0 && !has_opened && alarm != Alarm::Reordering => self.alarm = previous,
            _ => self.arm(now),
        }
    }

    fn on_arrived(&mut self, start: u64, end: u64, newly: &mut Newly) {
        let k = self.sent.partition_point(|sent| sent.end <= start);
        for sent in self.sent.range(k..).take_while(|sent| sent.start < end) {
            if sent.state != State::Arrived {
                newly.add(sent.start.max(start), sent.end.min(end), sent.at, sent.again);
            }
        }
        self.set(start, end, |sent| (sent.state != State::Arrived).then_some(Sent { state: State::Arrived, ..*sent }));
    }

    /// Something came twice: it had not been lost.
    fn on_twice(&mut self, bytes: u64) {
        self.rack.on_twice(self.una, self.next);
        let Some(undo) = self.undo.as_mut().filter(|undo| undo.again > 0) else { return };
        undo.again = undo.again.saturating_sub(bytes);
        if undo.again == 0 {
            let (window, threshold) = undo.congestion;
            self.cubic.undo(window, threshold);
            (self.undo, self.recovery) = (None, Recovery::None);
        }
    }

    /// How much longer than the newest one something may take before it is lost (RFC 8985 section 6.2, step 4).
    fn patience(&self) -> Duration {
        let sure = self.arrived >= DUPLICATES * self.mss as u64 || self.recovery != Recovery::None;
        if sure && !self.rack.has_reordered() { Duration::ZERO } else { self.rack.window(&self.rtt) }
    }

    /// Finds what was sent so long before something that arrived that it must be lost (RFC 8985 section 6.2, step 5).
    /// Returns whether the window became smaller for it.
    fn find_losses(&mut self, on_the_way: u64, now: Instant) -> bool {
        let Some(newest) = self.rack.newest() else { return false };
        let limit = newest.took + self.patience();
        let mut due: Option<Instant> = None;
        let (mut found, mut k) = (0, 0);
        while let Some(sent) = self.sent.get_mut(k) {
            let older = (sent.at, sent.end) < newest.sent;
            if sent.state == State::Flying && older {
                let gone_at = sent.at + limit;
                if gone_at <= now {
                    sent.state = State::Lost;
                    found += sent.len();
                    k = self.join(k);
                    continue;
                }
                due = Some(due.map_or(gone_at, |at| at.max(gone_at)));
            } else if !older && !sent.again && sent.start >= self.rack.highest() {
                // What follows was sent later still.
                break;
            }
            k += 1;
        }
        self.flying -= found;
        self.lost += found;
        self.alarm = due.map(|at| (at, Alarm::Reordering));
        if found == 0 || self.recovery != Recovery::None {
            return false;
        }
        let congestion = self.cubic.state();
        let congested = self.cubic.on_loss(found, on_the_way, self.rtt.smooth(), self.rtt.smallest());
        if congested {
            self.recovery = Recovery::Loss(self.next);
            self.undo = Some(Undo { congestion, again: 0 });
        }
        congested
    }

    // --- When something is due ---

    /// Whether only the far end's window holds back what is written.
    fn is_shut(&self) -> bool {
        self.sent.is_empty() && self.next < self.written.end() && self.fresh_piece().is_none()
    }

    fn arm(&mut self, now: Instant) {
        if let Some((_, Alarm::Reordering)) = self.alarm {
            return;
        }
        let timeout = backed_off(self.rtt.timeout(), self.backoff);
        self.alarm = if self.flying == 0 && self.lost == 0 {
            self.is_shut().then_some((now + timeout, Alarm::Shut))
        } else {
            let may_probe = self.probed.is_none()
                && self.backoff == 0
                && self.lost == 0
                && self.recovery == Recovery::None
                && self.next > 1;
            let probe = self.rtt.smooth().filter(|_| may_probe).map(|smooth| {
                let slack = if self.flying <= self.mss as u64 { DELAYED_ANSWER } else { PROBE_SLACK };
                smooth * 2 + slack
            });
            match probe {
                Some(probe) if probe < timeout => Some((now + probe, Alarm::Tail)),
                _ => Some((now + timeout, Alarm::Timeout)),
            }
        };
    }

    /// Something was written while nothing was on its way: a shut window is asked about.
    pub(super) fn look(&mut self, now: Instant) {
        if self.alarm.is_none() {
            self.arm(now);
        }
    }

    /// When [`Sender::on_alarm`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.alarm.map(|(at, _)| at)
    }

    /// Does what is due.
    pub(super) fn on_alarm(&mut self, now: Instant) {
        let Some((at, alarm)) = self.alarm else { return };
        if at > now {
            return;
        }
        self.alarm = None;
        match alarm {
            Alarm::Reordering => {
                self.find_losses(self.flying + self.lost, now);
            }
            Alarm::Tail => {
                // A timeout must follow if the probe is lost, too.
                self.probe_due = true;
                self.probed = Some(self.next);
            }
            Alarm::Timeout => self.on_timeout(),
            Alarm::Shut => {
                self.shut_probe_due = true;
                self.backoff += 1;
            }
        }
        self.arm(now);
    }

    fn on_timeout(&mut self) {
        if self.backoff == 0 && self.next > 1 {
            self.cubic.on_timeout();
            self.recovery = Recovery::Timeout(self.next);
            self.undo = None;
        }
        self.backoff += 1;
        self.lose_all();
    }

    fn lose_all(&mut self) {
        (self.probed, self.probe_due) = (None, false);
        for sent in self.sent.iter_mut().filter(|sent| sent.state == State::Flying) {
            sent.state = State::Lost;
        }
        self.lost += std::mem::take(&mut self.flying);
    }

    /// Whether the far end is to be asked for its window now; told once.
    pub(super) const fn take_shut_probe(&mut self) -> bool {
        std::mem::replace(&mut self.shut_probe_due, false)
    }

    /// What waits for a timer because of losses is sent at once. Returns whether there is anything.
    pub(super) fn hurry(&mut self, now: Instant) -> bool {
        let waits = self.backoff > 0;
        if waits {
            self.repeat(now);
        }
        waits
    }

    /// What was sent before is known to be lost: it is sent again at once.
    pub(super) fn repeat(&mut self, now: Instant) {
        self.backoff = 0;
        self.lose_all();
        self.alarm = None;
        self.arm(now);
    }
}
