//! One TCP flow through the tailnet. Pure: segments and time come in, packets come out.
//!
//! The state machine of RFC 9293 with window scaling (RFC 7323), selective acknowledgements (RFC 2018, RFC 2883), RACK-TLP
//! (RFC 8985), CUBIC (RFC 9438) and the checks of RFC 5961; without timestamps, which WireGuard's replay window makes
//! unnecessary, and without urgent data. Sending is `send.rs` over what `written.rs` keeps, receiving `receive.rs`; `data.rs`
//! finds the flow of a packet by its addresses and ports; the application's side is `stream.rs`.

mod budget;
mod chunks;
mod cubic;
mod rack;
mod receive;
mod rtt;
mod send;
#[cfg(test)]
mod tests;
mod written;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

pub(crate) use self::{
    budget::Budget,
    chunks::{give_back, with_room},
};
use self::{
    budget::Share,
    chunks::CHUNK,
    receive::{Receiver, SHIFT, Taken},
    send::{Acknowledgement, Piece, Sender},
};
use crate::packet::{Flags, Head, MAX_SACK, MTU, Options, Packets, Segment};

/// A far end that answers nothing at all for so long is gone, be it to data or to a keep-alive. Longer than a router's
/// restart (30 s seen), so that flows may survive one.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// When an idle flow asks whether its far end is still there. Below the usual 120 s of connection tracking on the way.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// When it asks again if no answer comes: seven times within the silence limit, so that a link which loses one packet in twenty
/// leaves it alone for years. Asked only twice, it would be given up within the hour.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long an acknowledgement may wait for data to go with (RFC 9293 section 3.8.6.3 allows 500 ms).
const ACK_DELAY: Duration = Duration::from_millis(20);
/// RFC 9293 section 3.7.1: what is sent to a far end that names no size.
const LEAST_MSS: u16 = 536;
/// Where the window stops growing, bytes: 80 MB/s at 100 ms.
const CEILING: usize = 8 << 20;

/// Where a flow is in its life, as its dialler and the data task need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The SYN is not answered yet.
    Connecting,
    /// Established, or closed on one side only.
    Open,
    /// Closed in good order on both sides; stays a while to answer a repeated FIN.
    Lingering,
    /// Gone.
    Closed(End),
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In good order, or given up by this side.
    Finished,
    /// The SYN was answered with a reset.
    Refused,
    /// Reset by the far end.
    Reset,
    /// The far end fell silent.
    Silent,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// Nothing at the end of the stream.
    pub(crate) data: Vec<u8>,
    /// Whether the far end should be told that there is room again.
    pub(crate) window_grew: bool,
}

/// What a flow is made with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Both of one family.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// What may wait to be read, or to be acknowledged, at first; bytes. It grows where the path's round trips need it.
    pub(crate) window: usize,
    pub(crate) budget: Arc<Budget>,
    /// Random: sequence numbers come from it.
    pub(crate) seed: u32,
}

/// The TCP state of one flow.
pub(crate) struct Tcp {
    local: SocketAddr,
    remote: SocketAddr,
    window: usize,
    budget: Arc<Budget>,
    send: Sender,
    /// Once the far end's SYN is there.
    receive: Option<Receiver>,
    /// How the far end's windows are shifted.
    far_shift: u8,
    /// Whether the far end understands selective acknowledgements.
    sacks: bool,
    /// The sequence and acknowledgement numbers of the segment by which the far end's window was last told.
    window_told: (u32, u32),
    /// The far end opened it: our SYN is its answer.
    answers: bool,
    opened: bool,
    /// Our FIN went out before theirs came.
    closed_first: bool,
    end: Option<End>,
    reset_due: bool,
    /// What the far end acknowledged of an older flow between the same ports, if it is to hear that there is none any more.
    older: Option<u32>,
    /// It heard so once, and the SYN was put out again at once.
    cleared: bool,
    detached: bool,
    /// When an acknowledgement is due.
    ack_due: Option<Instant>,
    /// When something was last heard, and last asked by a keep-alive.
    heard: Instant,
    asked: Instant,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Tcp {
    /// A flow whose SYN is put out by the first [`Tcp::output`].
    pub(crate) fn connect(setup: Setup, now: Instant) -> Self {
        let Setup { local, remote, window, budget, seed } = setup;
        let mss = usize::from(own_mss(local));
        let send = Sender::new(seed, mss, window, CEILING, Share::new(budget.clone()), now);
        Self {
            local,
            remote,
            window,
            budget,
            send,
            receive: None,
            far_shift: 0,
            sacks: false,
            window_told: (0, 0),
            answers: false,
            opened: false,
            closed_first: false,
            end: None,
            reset_due: false,
            older: None,
            cleared: false,
            detached: false,
            ack_due: None,
            heard: now,
            asked: now,
            reader: None,
            writer: None,
        }
    }

    /// A flow that answers the far end's SYN.
    pub(crate) fn accept(setup: Setup, syn: &Segment<'_>, now: Instant) -> Self {
        let mut flow = Self::connect(setup, now);
        flow.answers = true;
        flow.on_first_syn(syn);
        flow
    }

    /// Puts the SYN out again at the next [`Tcp::output`] if it was not answered yet: what was sent before is known to be
    /// lost, and waiting for the timer would only cost a second or more.
    pub(crate) fn repeat_syn(&mut self, now: Instant) {
        if self.phase() == Phase::Connecting {
            self.send.repeat(now);
        }
    }

    /// The path is back after a while in which nothing came through: what waits for a timer is sent by the next
    /// [`Tcp::output`]. Returns whether there is anything.
    pub(crate) fn hurry(&mut self, now: Instant) -> bool {
        self.send.hurry(now)
    }

    /// Learns what the far end's SYN says.
    fn on_first_syn(&mut self, syn: &Segment<'_>) {
        let options = &syn.options;
        // Both or none (RFC 7323 section 2.2); 14 is the most.
        let scales = options.window_scale;
        self.far_shift = scales.unwrap_or(0).min(14);
        self.sacks = options.sack_permitted;
        self.window_told = (syn.seq, syn.ack);
        let mss = options.mss.unwrap_or(LEAST_MSS).clamp(64, own_mss(self.local));
        self.send.open(usize::from(mss));
        let share = Share::new(self.budget.clone());
        self.receive = Some(Receiver::new(syn.seq, scales.is_some(), self.window, CEILING, share));
    }

    /// Takes a segment of this flow. What is to be said about it is put out by the next [`Tcp::output`].
    pub(crate) fn input(&mut self, now: Instant, segment: &Segment<'_>) {
        if self.end.is_some() {
            return;
        }
        if self.receive.is_none() {
            self.on_answer(now, segment);
        } else if let Some(len) = self.check(now, segment) {
            self.on_acknowledgement(now, segment);
            self.on_data(now, segment, len);
        }
    }

    /// In answer to our SYN.
    fn on_answer(&mut self, now: Instant, segment: &Segment<'_>) {
        let flags = segment.flags;
        if !flags.any(Flags::ACK) || self.send.next() == 0 {
            return;
        }
        if self.send.offset(segment.ack) != Some(1) {
            // Of an older flow, which the far end remembers for a minute (TIME-WAIT). Unless it is told that there is none any more
            // it answers every SYN so (RFC 9293 section 3.10.7.3, first check).
            if !flags.any(Flags::RST) {
                self.older = Some(segment.ack);
                if !std::mem::replace(&mut self.cleared, true) {
                    self.send.repeat(now);
                }
            }
            return;
        }
        self.heard = now;
        if flags.any(Flags::RST) {
            self.end = Some(End::Refused);
        } else if flags.any(Flags::SYN) {
            self.on_first_syn(segment);
            self.opened = true;
            // The window beside a SYN is never shifted.
            let edge = Some(1 + u64::from(segment.window));
            self.send.on_acknowledgement(&Acknowledgement { upto: 1, blocks: &[], edge }, now);
            self.ack_due = Some(now);
            self.on_data(now, segment, segment.data.len());
        }
    }

    /// The checks that come before all others (RFC 9293 section 3.10.7.4, RFC 5961). Returns the segment's length if it
    /// is to be taken.
    fn check(&mut self, now: Instant, segment: &Segment<'_>) -> Option<usize> {
        let receive = self.receive.as_ref()?;
        let flags = segment.flags;
        let len = segment.data.len() + usize::from(flags.any(Flags::FIN)) + usize::from(flags.any(Flags::SYN));
        if flags.any(Flags::RST) {
            // Only at the very place: anybody could hit a window.
            if receive.distance(segment.seq) == 0 {
                let done = receive.is_finished() && self.send.is_closing();
                let end = if self.opened { End::Reset } else { End::Refused };
                self.end = Some(if done { End::Finished } else { end });
            } else if receive.accepts(segment.seq, 0) {
                self.ack_due = Some(now);
            }
            return None;
        }
        self.heard = now;
        if flags.any(Flags::SYN) {
            // Our answer was lost, or somebody guesses.
            if self.answers && !self.opened {
                self.send.repeat(now)
            } else {
                self.ack_due = Some(now)
            }
            return None;
        }
        if !receive.accepts(segment.seq, len) {
            // What is acknowledged counts all the same; it can't be older than what is known.
            if flags.any(Flags::ACK) && self.is_known(segment) {
                self.on_acknowledgement(now, segment);
            }
            self.ack_due = Some(now);
            return None;
        }
        if !flags.any(Flags::ACK) {
            return None;
        }
        if !self.is_known(segment) {
            self.ack_due = Some(now);
            return None;
        }
        if !self.opened {
            if self.send.offset(segment.ack) != Some(1) {
                return None;
            }
            self.opened = true;
        }
        Some(len)
    }

    /// Whether what a segment acknowledges was sent, ever.
    fn is_known(&self, segment: &Segment<'_>) -> bool {
        self.send.offset(segment.ack).is_some_and(|upto| upto <= self.send.next())
    }

    fn on_acknowledgement(&mut self, now: Instant, segment: &Segment<'_>) {
        let Some(upto) = self.send.offset(segment.ack) else { return };
        let mut blocks = [(0, 0); MAX_SACK];
        let mut count = 0;
        for &(start, end) in segment.options.sack().iter().filter(|_| self.sacks) {
            if let (Some(start), Some(end)) = (self.send.offset(start), self.send.offset(end)) {
                blocks[count] = (start, end);
                count += 1;
            }
        }
        // A window that was told later counts (RFC 9293 section 3.10.7.4, SND.WL1 and SND.WL2).
        let (seq, ack) = self.window_told;
        let later = segment.seq.wrapping_sub(seq).cast_signed();
        let is_news = later > 0 || (later == 0 && segment.ack.wrapping_sub(ack).cast_signed() >= 0);
        let edge = is_news.then(|| {
            self.window_told = (segment.seq, segment.ack);
            upto + (u64::from(segment.window) << self.far_shift)
        });
        let upto = upto.max(self.send.una());
        self.send.on_acknowledgement(&Acknowledgement { upto, blocks: &blocks[..count], edge }, now);
    }

    fn on_data(&mut self, now: Instant, segment: &Segment<'_>, len: usize) {
        let Some(receive) = &mut self.receive else { return };
        if len > 0 {
            // The data beside a SYN comes after it.
            let seq = segment.seq.wrapping_add(u32::from(segment.flags.any(Flags::SYN)));
            let fin = segment.flags.any(Flags::FIN);
            match receive.on_data(seq, segment.data, fin) {
                Taken::AnswerNow => self.ack_due = Some(now),
                Taken::InOrder if receive.unacknowledged() >= 2 => self.ack_due = Some(now),
                Taken::InOrder => {
                    self.ack_due.get_or_insert(now + ACK_DELAY);
                }
            }
            // Nobody will ever read it: say so, as every TCP does.
            if self.detached && receive.queued() > 0 {
                self.abort();
                return;
            }
        }
        if receive.is_finished() && self.send.is_finished() && !self.closed_first {
            self.end = Some(End::Finished);
        }
    }

    /// Adds what there is to send to `out`, as much as there is room for. Returns when the next call is due: now or
    /// earlier if there is more, `None` if nothing is.
    pub(crate) fn output(&mut self, now: Instant, out: &mut Packets) -> Option<Instant> {
        if self.reset_due && !out.is_full() {
            self.reset_due = false;
            self.put_reset(out);
        }
        if !out.is_full()
            && let Some(number) = self.older.take()
        {
            self.put(out, None, Flags::RST, number);
        }
        if self.end.is_some() || self.phase() == Phase::Lingering {
            if self.end.is_none() && self.ack_due.take().is_some() && !out.is_full() {
                self.put(out, None, Flags::ACK, self.send.number(self.send.next()));
            }
            return None;
        }
        let silence = self.heard + SILENCE_LIMIT;
        if silence <= now {
            self.end = Some(End::Silent);
            if self.opened && !out.is_full() {
                self.put_reset(out);
            }
            return None;
        }
        // Without room nothing of what is due could be done.
        if out.is_full() {
            return Some(now);
        }
        self.send.on_alarm(now);
        let more = self.put_pieces(now, out);
        self.put_answers(now, out);
        self.send.look(now);
        if more {
            return Some(now);
        }
        let keep_alive = self.opened.then(|| self.keep_alive());
        [self.send.due(), self.ack_due, keep_alive, Some(silence)].into_iter().flatten().min()
    }

    /// Puts out data. Returns whether there is more of it than room.
    fn put_pieces(&mut self, now: Instant, out: &mut Packets) -> bool {
        while let Some(piece) = self.send.piece() {
            if out.is_full() {
                return true;
            }
            let mut flags = 0;
            if piece.syn {
                flags |= Flags::SYN;
            }
            if piece.fin {
                flags |= Flags::FIN;
                self.closed_first |= self.receive.as_ref().is_some_and(|receive| !receive.is_finished());
            }
            if piece.last && piece.len > 0 {
                flags |= Flags::PSH;
            }
            if self.receive.is_some() {
                flags |= Flags::ACK;
            }
            self.put(out, Some(&piece), flags, self.send.number(piece.start));
            self.send.on_sent(&piece, now);
        }
        false
    }

    /// When the far end is to be asked whether it is there.
    fn keep_alive(&self) -> Instant {
        if self.asked > self.heard { self.asked + ASK_AGAIN } else { self.heard + KEEP_ALIVE }
    }

    /// Puts out what is not data: acknowledgements, questions whether the far end is there or has room.
    fn put_answers(&mut self, now: Instant, out: &mut Packets) {
        let is_shut = self.send.take_shut_probe();
        let is_idle = self.opened && now >= self.keep_alive();
        if (is_shut || is_idle) && !out.is_full() {
            self.asked = now;
            out.expect_answer();
            // One before what is waited for: every TCP answers that with what it waits for.
            self.put(out, None, Flags::ACK, self.send.number(self.send.next()).wrapping_sub(1));
            return;
        }
        let grown = self.receive.as_ref().is_some_and(Receiver::has_grown);
        if grown {
            self.ack_due = Some(now);
        }
        // As many as it takes to tell of all that came out of order.
        while self.ack_due.is_some_and(|at| at <= now) && !out.is_full() {
            self.put(out, None, Flags::ACK, self.send.number(self.send.next()));
        }
    }

    fn put_reset(&mut self, out: &mut Packets) {
        // What was never answered has nothing to acknowledge.
        let flags = if self.receive.is_some() { Flags::RST | Flags::ACK } else { Flags::RST };
        self.put(out, None, flags, self.send.number(self.send.next()));
    }

    fn put(&mut self, out: &mut Packets, piece: Option<&Piece>, flags: u8, seq: u32) {
        let mut options = Options::default();
        let flags = Flags::new(flags);
        let syn = flags.any(Flags::SYN);
        if syn {
            options.mss = Some(own_mss(self.local));
            // An answer offers what was offered.
            let scales = self.receive.is_none() || self.far_scales();
            options.window_scale = scales.then_some(SHIFT);
            options.sack_permitted = self.receive.is_none() || self.sacks;
        }
        let (mut ack, mut window) = (0, u16::try_from(self.window).unwrap_or(u16::MAX));
        if let Some(receive) = &mut self.receive {
            ack = receive.acknowledged();
            // The largest segments have no room for options: what is to be told in them goes alone.
            let has_room = piece.is_none_or(|piece| piece.len + 40 <= usize::from(own_mss(self.local)));
            if self.sacks && !syn && has_room {
                receive.report(&mut options);
            }
            window = if syn { receive.first_window() } else { receive.window() };
            if !self.sacks || !receive.has_untold() {
                self.ack_due = None;
            }
        }
        let head = Head { from: self.local, to: self.remote, seq, ack, flags, window, options: &options };
        match piece {
            Some(piece) => out.push(&head, piece.len, |data| self.send.copy(piece.start, data)),
            None => out.push(&head, 0, |_| {}),
        }
    }

    fn far_scales(&self) -> bool {
        self.receive.as_ref().is_some_and(Receiver::scales)
    }

    /// Where the flow is in its life.
    pub(crate) fn phase(&self) -> Phase {
        let received = self.receive.as_ref().is_some_and(Receiver::is_finished);
        match self.end {
            Some(end) => Phase::Closed(end),
            None if received && self.send.is_finished() => Phase::Lingering,
            None if self.opened => Phase::Open,
            None => Phase::Connecting,
        }
    }

    /// The application's tasks that can go on now.
    pub(crate) fn wakers(&mut self) -> [Option<Waker>; 2] {
        let closed = self.end.is_some();
        let read = closed || self.receive.as_ref().is_some_and(|receive| receive.queued() > 0 || receive.is_finished());
        let write = closed || self.send.is_closing() || (self.opened && self.send.room() > 0);
        [if read { self.reader.take() } else { None }, if write { self.writer.take() } else { None }]
    }

    /// Gives the flow up: the far end is told by a reset at the next [`Tcp::output`].
    pub(crate) fn abort(&mut self) {
        if self.end.is_none() {
            self.reset_due = self.send.next() > 0;
            self.end = Some(End::Reset);
        }
    }

    /// The application is gone: closes in good order, or by a reset if it left data unread.
    pub(crate) fn detach(&mut self, has_unread: bool) {
        self.detached = true;
        (self.reader, self.writer) = (None, None);
        let has_unread = has_unread || self.receive.as_ref().is_some_and(|receive| receive.queued() > 0);
        if has_unread || !self.opened { self.abort() } else { self.send.close() }
    }

    /// Whether something that was sent is not acknowledged, or nothing was heard of the SYN.
    pub(crate) const fn is_owed(&self) -> bool {
        self.send.is_owed()
    }

    /// Whether the application is gone.
    pub(crate) const fn is_detached(&self) -> bool {
        self.detached
    }

    /// Closes the sending half once all is sent.
    pub(crate) const fn shutdown(&mut self) {
        self.send.close();
    }

    fn failure(&self) -> Option<io::Error> {
        match self.end? {
            End::Finished => None,
            End::Refused => Some(io::ErrorKind::ConnectionRefused.into()),
            End::Reset => Some(io::ErrorKind::ConnectionReset.into()),
            End::Silent => Some(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Takes a chunk of what was received; an empty one at the end of the stream. What came before a failure is delivered
    /// first.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<Read>> {
        let rtt = self.send.rtt().smooth();
        if let Some(receive) = &mut self.receive
            && let Some(data) = receive.take(rtt, now)
        {
            return Poll::Ready(Ok(Read { data, window_grew: receive.has_grown() }));
        }
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        if self.end.is_some() || self.receive.as_ref().is_some_and(Receiver::is_finished) {
            return Poll::Ready(Ok(Read { data: Vec::new(), window_grew: false }));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// How many bytes may be written now, at least one.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        if self.end.is_some() || self.send.is_closing() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = if self.opened { self.send.room() } else { 0 };
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes bytes to send, at most as many as [`Tcp::poll_room`] said.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.send.append(bytes);
    }

    /// Takes a chunk to send, at most as many bytes as [`Tcp::poll_room`] said.
    pub(crate) fn push(&mut self, chunk: Vec<u8>) {
        self.send.push(chunk);
    }
}

/// The largest segment that this side takes, and sends.
const fn own_mss(local: SocketAddr) -> u16 {
    let headers = if local.is_ipv4() { 40 } else { 60 };
    (MTU - headers) as u16
}

/// Writes of this size and more are copied into a chunk before the flow is locked.
pub(crate) const LARGE_WRITE: usize = 4 << 10;
/// The largest chunk to write.
pub(crate) const MAX_WRITE: usize = CHUNK;
