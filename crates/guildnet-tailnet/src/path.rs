//! Chooses the path (direct UDP or relay) to one peer. Pure: callers pass `now` and do what is returned.
//!
//! A direct path is only ever chosen because a ping to that very address was answered; where data comes from moves nothing.
//! Pings and calls (`CallMeMaybe`) are sealed in `disco.rs`, sent by `data/`.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use guildnet_model::PathKind;

/// How long a direct path stays trusted after its last pong: two missed heartbeats (3 s each) and half a second for
/// scheduling. A path that carries data is distrusted sooner, see `SILENCE_LIMIT`. Source: tailscale `wgengine/magicsock`,
/// `trustUDPAddrDuration`.
const TRUST: Duration = Duration::from_millis(6_500);
/// Heartbeat on a path in use.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Heartbeat on a path that is not in use but wanted warm: below the 30 s after which many NATs forget a UDP mapping.
const WARM_HEARTBEAT: Duration = Duration::from_secs(25);
/// How long after the last packet a path counts as in use. Source: magicsock, `sessionActiveTimeout`.
const ACTIVE: Duration = Duration::from_secs(45);
/// Data that wants an answer and got none for so long makes the path suspect. More than any sane round trip on a path that
/// was found by a ping, and short enough that a person hardly notices the change to the relay.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);
/// A heartbeat that is not answered for so long is sent again: one lost packet is no verdict.
const REPEAT: Duration = Duration::from_millis(500);
/// Packets that came one after the other stop for so long: a ping asks why. Who only receives sends nothing that an answer
/// could be missed to.
const QUIET: Duration = Duration::from_millis(500);
/// A suspect path is still tried beside the relay for so long, then forgotten.
const SUSPECT: Duration = Duration::from_secs(5);
/// A path that is not in use is forgotten when its warm heartbeats were not answered for two rounds and a bit.
const IDLE_MEMORY: Duration = Duration::from_secs(60);
/// Waits between the first rounds of pings; the last one repeats. The first ones are short because the other side learns
/// of us (network map, call) at about the same time. Source of the last: magicsock, `discoPingInterval`.
const ROUNDS: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// How often all candidates are pinged while a path is trusted, to find a better one. Source: magicsock, `upgradeInterval`.
const UPGRADE: Duration = Duration::from_secs(60);
/// Candidates kept per peer. A machine with more addresses is found by one of these.
const MAX_CANDIDATES: usize = 32;
/// Addresses learned from pings and calls are forgotten after so long without another sign.
const LEARNED: Duration = Duration::from_secs(120);
/// Pings whose answers are awaited: two rounds to all candidates.
const MAX_PINGS: usize = 2 * MAX_CANDIDATES;
/// A pong that comes later than this says nothing about the path of now.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Ties a pong to its ping.
pub(crate) type PingId = [u8; 12];

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a ping to this address.
    Ping { to: SocketAddr, id: PingId },
    /// Send our addresses to the peer through the relay, so that it pings them.
    Call,
    /// Tell the peer through the relay that we have no address: it drops those of earlier calls, and with them the path by which it
    /// sends into the void. It would trust that for up to 6.5 s more. Source: magicsock, `handleCallMeMaybe`.
    Withdraw,
    /// There is another way than before, which may have lost all that was sent since it was last heard of: what waits for a timer is
    /// sent now.
    Resend,
}

/// Where a packet goes: to an address, through the relay, or both while that address is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub(crate) direct: Option<SocketAddr>,
    pub(crate) relay: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// From the network map: valid until the map says otherwise.
    Map,
    /// From a ping or a call, last seen then.
    Learned(Instant),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    addr: SocketAddr,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
struct Best {
    addr: SocketAddr,
    rtt: Duration,
    last_pong: Instant,
    /// Since when it is in doubt.
    suspect: Option<Instant>,
}

impl Best {
    /// How long a heartbeat may stay without an answer.
    fn patience(&self) -> Duration {
        SILENCE_LIMIT.max(3 * self.rtt)
    }
}

#[derive(Clone, Copy, Debug)]
struct SentPing {
    id: PingId,
    to: SocketAddr,
    at: Instant,
}

/// The path to one peer.
#[derive(Debug)]
pub(crate) struct Path {
    /// Kept warm while idle.
    warm: bool,
    candidates: Vec<Candidate>,
    best: Option<Best>,
    pings: VecDeque<SentPing>,
    next_id: u128,
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
    /// When the first packet was sent that wants an answer and has none.
    unanswered: Option<Instant>,
    /// Whether the peer was told so.
    told: bool,
    /// The heartbeat on the path of now that has no answer: since when, and whether it was repeated.
    heartbeat: Option<(Instant, bool)>,
    /// When the last packet came, other than a pong, and whether the one before it was close.
    last_packet: Option<Instant>,
    streams: bool,
    /// Rounds of pings without a trusted path.
    rounds: usize,
    next_round: Option<Instant>,
    next_heartbeat: Option<Instant>,
    last_tick: Option<Instant>,
}

impl Path {
    /// A path to a peer of which nothing is known. Ping ids count up from `first_id`, which should be random.
    pub(crate) fn new(first_id: u128, warm: bool) -> Self {
        Self {
            warm,
            candidates: Vec::new(),
            best: None,
            pings: VecDeque::new(),
            next_id: first_id,
            last_sent: None,
            last_received: None,
            unanswered: None,
            told: false,
            heartbeat: None,
            last_packet: None,
            streams: false,
            rounds: 0,
            next_round: None,
            next_heartbeat: None,
            last_tick: None,
        }
    }

    /// Whether the path is kept warm while idle.
    pub(crate) const fn set_warm(&mut self, warm: bool) {
        self.warm = warm;
    }

    /// Where the peer may be.
    pub(crate) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.candidates.iter().map(|c| c.addr)
    }

    /// The peer's addresses, as the network map has them.
    pub(crate) fn set_map_addresses(&mut self, addrs: &[SocketAddr]) {
        self.candidates.retain(|c| c.source != Source::Map);
        for addr in addrs.iter().filter(|addr| is_usable(**addr)) {
            if let Some(known) = self.candidates.iter_mut().find(|c| c.addr == *addr) {
                known.source = Source::Map;
            } else if self.make_room() {
                self.candidates.push(Candidate { addr: *addr, source: Source::Map });
            }
        }
    }

    /// Makes room for one more candidate, if need be at the cost of the one that was learned longest ago. Returns whether
    /// there is room.
    fn make_room(&mut self) -> bool {
        if self.candidates.len() < MAX_CANDIDATES {
            return true;
        }
        let learned = self.candidates.iter().enumerate().filter_map(|(i, c)| match c.source {
            Source::Learned(at) => Some((at, i)),
            Source::Map => None,
        });
        let oldest = learned.min();
        if let Some((_, index)) = oldest {
            self.candidates.swap_remove(index);
        }
        oldest.is_some()
    }

    /// The peer's other end is a new one (restarted): what was learned of the old one is void.
    pub(crate) fn forget(&mut self) {
        self.candidates.retain(|c| c.source == Source::Map);
        self.best = None;
        self.expect_nothing();
        self.heartbeat = None;
        self.pings.clear();
    }

    /// This end has another address: the path of now is in doubt, and everything is tried again.
    pub(crate) fn on_moved(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.doubt(now, out);
        self.expect_nothing();
        self.heartbeat = None;
        self.pings.clear();
        if self.warm || self.is_active(now) {
            self.start_rounds(now, out);
        }
    }

    /// Something is about to be sent. Says where to, and starts looking for a direct path if there is none to trust.
    /// `wants_answer`: whether it is data, not a mere acknowledgement.
    pub(crate) fn on_send(&mut self, now: Instant, wants_answer: bool, out: &mut Vec<Action>) -> Via {
        let was_active = self.is_active(now);
        self.last_sent = Some(now);
        if wants_answer {
            self.unanswered.get_or_insert(now);
        }
        self.doubt_if_silent(now, out);
        if !self.is_trusted(now) {
            if !was_active || self.next_round.is_none() {
                self.start_rounds(now, out);
            }
        } else if !was_active {
            self.next_heartbeat = Some(now + HEARTBEAT);
            self.next_round = Some(now + UPGRADE);
        }
        self.via(now)
    }

    /// Where packets go now.
    pub(crate) fn via(&self, now: Instant) -> Via {
        let direct = self.best.map(|best| best.addr);
        Via { direct, relay: direct.is_none() || !self.is_trusted(now) }
    }

    /// Something authentic came from the peer, by whatever path.
    pub(crate) fn on_received(&mut self, now: Instant) {
        self.last_received = Some(now);
        let before = self.last_packet.replace(now);
        self.streams = before.is_some_and(|at| now.saturating_duration_since(at) < QUIET);
        self.expect_nothing();
    }

    /// A ping came from `from`: a candidate, and the hole in our NAT for it may just have been made by the peer.
    pub(crate) fn on_ping(&mut self, now: Instant, from: SocketAddr, out: &mut Vec<Action>) {
        if !is_usable(from) {
            return;
        }
        self.learn(now, from);
        if !self.is_trusted(now) && (self.warm || self.is_active(now)) && !self.is_awaited(now, from) {
            self.ping(now, from, out);
        }
    }

    /// The peer sent its addresses and pings ours at this moment.
    pub(crate) fn on_call(&mut self, now: Instant, addrs: &[SocketAddr], out: &mut Vec<Action>) {
        for addr in addrs {
            self.learn(now, *addr);
        }
        if let Some(best) = self.best.filter(|_| self.is_trusted(now)) {
            // Who calls trusts no path, so ours is asked; one that is not among the peer's addresses any more is in doubt at once.
            self.beat(now, best.addr, out);
            if addrs.contains(&best.addr) {
                return;
            }
            self.doubt(now, out);
        }
        for addr in addrs.iter().filter(|addr| is_usable(**addr)).take(MAX_CANDIDATES) {
            self.ping(now, *addr, out);
        }
    }

    /// A ping was answered. Returns whether a path became trusted by it that was not.
    pub(crate) fn on_pong(&mut self, now: Instant, id: PingId, out: &mut Vec<Action>) -> bool {
        let Some(at) = self.pings.iter().position(|ping| ping.id == id) else { return false };
        let ping = self.pings.remove(at).expect("found at this position");
        let rtt = now.saturating_duration_since(ping.at);
        if rtt > PING_LIMIT {
            return false;
        }
        let trusted = self.is_trusted(now);
        self.last_received = Some(now);
        if self.best.is_some_and(|best| best.addr == ping.to) {
            self.heartbeat = None;
        }
        // A tenth better, so that two equal paths don't take turns.
        let takes_over = |best: &Best| best.addr != ping.to && (!trusted || rtt < best.rtt.mul_f64(0.9));
        match &mut self.best {
            Some(best) if best.addr == ping.to => {
                *best = Best { addr: ping.to, rtt, last_pong: now, suspect: None };
            }
            Some(best) if !takes_over(best) => return false,
            _ => {
                self.best = Some(Best { addr: ping.to, rtt, last_pong: now, suspect: None });
                self.heartbeat = None;
            }
        }
        if trusted {
            return false;
        }
        // The path was silent, the peer is not: data gets a new second to be answered.
        self.expect_nothing();
        self.rounds = 0;
        self.next_round = Some(now + UPGRADE);
        self.schedule_heartbeat(now);
        out.push(Action::Resend);
        true
    }

    /// Looks for a direct path at once, for example because the relay has just been connected.
    pub(crate) fn search(&mut self, now: Instant, out: &mut Vec<Action>) {
        if !self.is_trusted(now) {
            self.start_rounds(now, out);
        }
    }

    /// To be called at [`Path::next`], or at any other time.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.last_tick = Some(now);
        self.doubt_if_silent(now, out);
        self.forget_old(now);
        let wanted = self.warm || self.is_active(now);
        if self.next_heartbeat.is_some_and(|at| at <= now) {
            self.next_heartbeat = None;
            if wanted && let Some(best) = self.best {
                self.beat(now, best.addr, out);
                self.schedule_heartbeat(now);
            }
        }
        if self.quiet_at().is_some_and(|at| at <= now) {
            self.streams = false;
            if let Some(best) = self.best {
                self.beat(now, best.addr, out);
            }
        }
        if let (Some((since, false)), Some(best)) = (self.heartbeat, self.best)
            && now.saturating_duration_since(since) >= REPEAT
        {
            self.heartbeat = Some((since, true));
            self.ping(now, best.addr, out);
        }
        if self.next_round.is_some_and(|at| at <= now) {
            if !self.is_active(now) && (self.best.is_some() || self.rounds >= ROUNDS.len()) {
                // Idle: the next packet begins anew.
                self.next_round = None;
            } else {
                self.round(now, out);
            }
        }
        // In use and no longer trusted, whatever the cause.
        if self.is_active(now) && !self.is_trusted(now) && self.rounds == 0 {
            self.start_rounds(now, out);
        }
    }

    /// When [`Path::on_tick`] has something to do.
    pub(crate) fn next(&self) -> Option<Instant> {
        let active_until = self.last_sent.map(|at| at + ACTIVE);
        let may_doubt = self.best.is_some_and(|best| best.suspect.is_none());
        let silent = self.unanswered.filter(|_| may_doubt || !self.told).map(|at| at + SILENCE_LIMIT);
        let suspect = self.best.and_then(|best| best.suspect).map(|at| at + SUSPECT);
        // A heartbeat that is not answered ends the trust between two ticks; that matters only while in use.
        let trust = self.best.filter(|b| b.suspect.is_none() && self.rounds == 0).map(|best| best.last_pong + TRUST);
        let trust = trust.filter(|at| active_until.is_some_and(|until| *at < until) && Some(*at) > self.last_tick);
        let heartbeat =
            self.heartbeat.zip(self.best.filter(|best| best.suspect.is_none())).map(|(beat, best)| match beat {
                (since, false) => since + REPEAT,
                (since, true) => since + best.patience(),
            });
        let all = [self.next_heartbeat, self.next_round, silent, suspect, trust, heartbeat, self.quiet_at()];
        all.into_iter().flatten().min()
    }

    /// What a person is told.
    pub(crate) fn kind(&self, now: Instant) -> PathKind {
        let within = |at: Option<Instant>, limit| at.is_some_and(|at| now.saturating_duration_since(at) < limit);
        match self.best {
            Some(best) if self.is_trusted(now) || (best.suspect.is_none() && !self.is_active(now)) => PathKind::Direct,
            _ if within(self.last_received, IDLE_MEMORY) => PathKind::Relay,
            _ => PathKind::Idle,
        }
    }

    /// Round trip of the direct path.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.best.map(|best| best.rtt)
    }

    /// Whether the direct path is trusted.
    pub(crate) fn is_trusted(&self, now: Instant) -> bool {
        self.best.is_some_and(|b| b.suspect.is_none() && now.saturating_duration_since(b.last_pong) < TRUST)
    }

    /// When something authentic last came.
    pub(crate) const fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// Whether something was sent lately.
    pub(crate) fn is_active(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE)
    }

    /// Since when something is owed by the peer, by whatever path, and nothing has come.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        let beat = self.heartbeat.map(|(at, _)| at);
        let since = self.unanswered.into_iter().chain(beat).min()?;
        self.last_received.is_none_or(|at| at < since).then_some(since)
    }

    /// When a ping asks why nothing comes any more.
    fn quiet_at(&self) -> Option<Instant> {
        self.last_packet.filter(|_| self.streams && self.best.is_some()).map(|at| at + QUIET)
    }

    /// Pings the path of now and waits for the answer.
    fn beat(&mut self, now: Instant, to: SocketAddr, out: &mut Vec<Action>) {
        self.heartbeat.get_or_insert((now, false));
        self.ping(now, to, out);
    }

    /// Nothing that was sent is waited for.
    const fn expect_nothing(&mut self) {
        (self.unanswered, self.told) = (None, false);
    }

    /// The path of now is tried beside the relay, for a while.
    fn doubt(&mut self, now: Instant, out: &mut Vec<Action>) {
        if let Some(best) = &mut self.best {
            best.suspect = Some(now);
            out.push(Action::Resend);
        }
    }

    fn doubt_if_silent(&mut self, now: Instant, out: &mut Vec<Action>) {
        let since = |at: Instant| now.saturating_duration_since(at);
        let unanswered = self.unanswered.is_some_and(|at| since(at) >= SILENCE_LIMIT);
        let patience = self.best.map_or(SILENCE_LIMIT, |best| best.patience());
        let unheard = self.heartbeat.is_some_and(|(at, _)| since(at) >= patience);
        if (unanswered || unheard) && self.best.is_some_and(|best| best.suspect.is_none()) {
            self.doubt(now, out);
            self.rounds = 0;
            self.next_round = Some(now);
        } else if unanswered && !self.told && !self.is_trusted(now) {
            // By the relay it should have arrived: the peer answers by a path that it trusts and that leads nowhere.
            self.told = true;
            out.extend([Action::Withdraw, Action::Resend]);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let since = |at: Instant| now.saturating_duration_since(at);
        let active = self.is_active(now);
        self.best = self.best.filter(|best| match best.suspect {
            Some(at) => since(at) < SUSPECT,
            None if active => since(best.last_pong) < TRUST + SUSPECT,
            None => since(best.last_pong) < IDLE_MEMORY,
        });
        let best = self.best.map(|best| best.addr);
        self.candidates.retain(|c| match c.source {
            Source::Map => true,
            Source::Learned(at) => since(at) < LEARNED || best == Some(c.addr),
        });
        while self.pings.front().is_some_and(|ping| since(ping.at) > PING_LIMIT) {
            self.pings.pop_front();
        }
    }

    fn learn(&mut self, now: Instant, addr: SocketAddr) {
        if !is_usable(addr) {
            return;
        }
        if let Some(known) = self.candidates.iter_mut().find(|c| c.addr == addr) {
            if let Source::Learned(at) = &mut known.source {
                *at = now;
            }
        } else if self.make_room() {
            self.candidates.push(Candidate { addr, source: Source::Learned(now) });
        }
    }

    fn start_rounds(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.rounds = 0;
        self.round(now, out);
    }

    /// Pings everything, and asks the peer to do the same unless a path is trusted.
    fn round(&mut self, now: Instant, out: &mut Vec<Action>) {
        let trusted = self.is_trusted(now);
        for index in 0..self.candidates.len() {
            let addr = self.candidates[index].addr;
            self.ping(now, addr, out);
        }
        if trusted {
            self.next_round = Some(now + UPGRADE);
            return;
        }
        if self.rounds == 0 && !self.told && self.best.is_some_and(|best| best.suspect.is_some()) {
            self.told = true;
            out.push(Action::Withdraw);
        }
        out.push(Action::Call);
        self.next_round = Some(now + ROUNDS[self.rounds.min(ROUNDS.len() - 1)]);
        self.rounds = self.rounds.saturating_add(1);
    }

    fn schedule_heartbeat(&mut self, now: Instant) {
        self.next_heartbeat = Some(now + if self.is_active(now) { HEARTBEAT } else { WARM_HEARTBEAT });
    }

    fn is_awaited(&self, now: Instant, addr: SocketAddr) -> bool {
        self.pings.iter().any(|p| p.to == addr && now.saturating_duration_since(p.at) < SILENCE_LIMIT)
    }

    fn ping(&mut self, now: Instant, to: SocketAddr, out: &mut Vec<Action>) {
        self.next_id = self.next_id.wrapping_add(1);
        let id = *self.next_id.to_le_bytes().first_chunk().expect("16 bytes hold 12");
        if self.pings.len() >= MAX_PINGS {
            self.pings.pop_front();
        }
        self.pings.push_back(SentPing { id, to, at: now });
        out.push(Action::Ping { to, id });
    }
}

/// Whether a peer could be at this address: not the tailnet's own range (that would be a tunnel in itself), nothing that
/// is no single machine's, and IPv4, as the socket is.
pub(crate) fn is_usable(addr: SocketAddr) -> bool {
    let IpAddr::V4(ip) = addr.ip() else { return false };
    let tailnet = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
    addr.port() != 0
        && !tailnet
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !ip.is_broadcast()
        && !ip.is_link_local()
}

#[cfg(test)]
mod tests;
