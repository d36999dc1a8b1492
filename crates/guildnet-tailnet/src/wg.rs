//! One WireGuard tunnel per peer: sessions, handshakes and their timers. Cryptography, replay windows and the protocol's own
//! timers are boringtun's; what is added here is to begin a handshake again sooner where the peer has plainly lost the
//! session. Packets come in and go out as bytes; where to is decided in `path.rs`.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use boringtun::{
    noise::{Packet, Tunn, TunnResult, handshake::parse_handshake_anon, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};
use ts_keys::NodeKeyPair;

use crate::netmap::Key;

/// What encryption adds to a packet: a header of 16 bytes and a tag of 16.
pub(crate) const OVERHEAD: usize = 32;
/// Room that any message needs beside data: a handshake initiation has 148 bytes.
pub(crate) const MESSAGE: usize = 148;
/// Size of the answer to a handshake initiation.
const ANSWER: usize = 92;
/// Size of what a loaded peer answers instead.
const COOKIE: usize = 64;
/// Handshakes per second from which on a sender must prove its address by a cookie: far above what one cluster's routers
/// need, far below what would load a core (0.3 ms each).
const HANDSHAKE_RATE: u64 = 100;
/// How often the protocol's timers are looked at while an answer is waited for.
const WAITING_TICK: Duration = Duration::from_millis(250);
/// The same while something is going on: WireGuard's shortest timer counts seconds.
const BUSY_TICK: Duration = Duration::from_secs(1);
/// The same while a session only ages.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// How long after the last packet a tunnel counts as busy: beyond the keep-alive that is due after 10 s and that the peer waits
/// for until 15 s.
const BUSY: Duration = Duration::from_secs(12);
/// Waits between initiations of one handshake; the last repeats. WireGuard's own is 5 s (whitepaper, section 6.4); the
/// first ones are shorter, since the first initiation of all is often lost: the peer learns of us in the same second.
const RETRIES: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// After so long without an answer nobody is there. Source: WireGuard whitepaper, Rekey-Attempt-Time.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(90);
/// Data that wants an answer and got none for so long: the peer may have lost the session, as a restarted router has. A new
/// handshake is begun beside the old session, which costs nothing if that was not so. WireGuard itself waits 15 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// The least time between two such beginnings.
const FRESH: Duration = Duration::from_secs(3);
/// Both of these for a session through which no data has come yet: a peer that learns of our new run only now drops the session
/// that it has just agreed to, and a dial waits for it.
const UNPROVED: Duration = Duration::from_millis(300);
/// For so long: a target that has nothing to say proves nothing, and is no reason to begin again and again.
const UNPROVED_LIMIT: Duration = Duration::from_secs(5);
/// A peer that has just learned our disco key may drop the session that it had with our former run: tailscaled does, some
/// milliseconds after it has begun to answer pings (`wgengine/userspace.go`, `discoChanged`). So long is waited.
const SETTLE: Duration = Duration::from_millis(200);

/// This node's WireGuard key and its guards against floods of handshakes.
///
/// Only initiations are counted, and here only: an answer belongs to a handshake that this side has begun, and who can't
/// name that costs nothing. Those from relays are counted by themselves, so that a flood at the socket leaves that way open.
pub(crate) struct OwnKey {
    secret: StaticSecret,
    public: PublicKey,
    direct: RateLimiter,
    relayed: RateLimiter,
    /// What the tunnels themselves ask: it checks that a handshake message is made for this node, and counts nothing.
    open: Arc<RateLimiter>,
}

impl OwnKey {
    pub(crate) fn new(pair: &NodeKeyPair) -> Arc<Self> {
        let secret = StaticSecret::from(pair.private.to_x25519_dalek().to_bytes());
        let public = PublicKey::from(&secret);
        let limited = || RateLimiter::new(&public, HANDSHAKE_RATE);
        let open = Arc::new(RateLimiter::new(&public, u64::MAX));
        Arc::new(Self { direct: limited(), relayed: limited(), open, secret, public })
    }

    fn tunn(&self, peer: Key, number: u32) -> Box<Tunn> {
        let limiter = Some(self.open.clone());
        Box::new(Tunn::new(self.secret.clone(), PublicKey::from(peer.0), None, None, number, limiter))
    }

    /// Whose handshake an initiation is; `None` if it is not made for this node. Floods are refused by [`OwnKey::admit`]
    /// first.
    pub(crate) fn initiator(&self, datagram: &[u8]) -> Option<Key> {
        let Ok(Packet::HandshakeInit(init)) = Tunn::parse_incoming_packet(datagram) else { return None };
        let half = parse_handshake_anon(&self.secret, &self.public, &init).ok()?;
        Some(Key(half.peer_static_public))
    }

    /// Whether an initiation should be looked at: it is made for this node, and there are not too many. `from` is where it
    /// came from, `None` for a relay. A cookie for its sender is written to `out` where one is due, its length returned as
    /// the error.
    pub(crate) fn admit(&self, from: Option<IpAddr>, datagram: &[u8], out: &mut [u8]) -> Result<(), Option<usize>> {
        let limiter = if from.is_some() { &self.direct } else { &self.relayed };
        limiter.reset_count();
        match limiter.verify_packet(from, datagram, out) {
            Ok(_) => Ok(()),
            Err(TunnResult::WriteToNetwork(cookie)) => Err(Some(cookie.len())),
            Err(_) => Err(None),
        }
    }
}

/// What a datagram is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Begins a handshake; the sender is found by [`OwnKey::initiator`].
    Initiation,
    /// Belongs to the tunnel of this number: an answer to a handshake, a cookie, data.
    For(u32),
}

/// The protocol's messages (WireGuard whitepaper, section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Initiation,
    Answer,
    Cookie,
    Data,
}

/// The kind of a message, and the tunnel's number where it names one.
fn read(datagram: &[u8]) -> Option<(Message, u32)> {
    let head = datagram.first_chunk::<16>()?;
    let receiver = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) >> 8;
    match (head[..4].try_into().map(u32::from_le_bytes).ok()?, datagram.len()) {
        (1, MESSAGE) => Some((Message::Initiation, 0)),
        (2, ANSWER) => Some((Message::Answer, receiver(8))),
        (3, COOKIE) => Some((Message::Cookie, receiver(4))),
        (4, OVERHEAD..) => Some((Message::Data, receiver(4))),
        _ => None,
    }
}

/// What a datagram is; `None` if it is no WireGuard.
pub(crate) fn classify(datagram: &[u8]) -> Option<Kind> {
    read(datagram).map(|(message, number)| match message {
        Message::Initiation => Kind::Initiation,
        Message::Answer | Message::Cookie | Message::Data => Kind::For(number),
    })
}

/// What came out of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened<'a> {
    /// An IP packet.
    Packet(&'a [u8]),
    /// Something to be sent back to the peer.
    Reply(&'a [u8]),
    /// Authentic, nothing in it (a keep-alive).
    Empty,
    /// A cookie, taken: the next handshake will show it. Whoever has seen our initiation can make one, so it proves nothing.
    Cookie,
    /// Not authentic, or a repetition.
    Refused,
}

/// A handshake that was begun and not answered yet.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    began: Instant,
    sent: usize,
    next: Instant,
}

/// The tunnel to one peer.
pub(crate) struct Tunnel {
    own: Arc<OwnKey>,
    peer: Key,
    number: u32,
    /// Sessions, handshakes, replay windows: 12 KiB, made for the first handshake. Of a thousand peers few are ever spoken to. It
    /// stays then, since it knows which of the peer's initiations were seen.
    tunn: Option<Box<Tunn>>,
    ticked: Instant,
    last_used: Option<Instant>,
    attempt: Option<Attempt>,
    /// An initiation of the peer was answered; what comes next shows that it has the answer.
    answered: bool,
    last_attempt: Option<Instant>,
    unanswered: Option<Instant>,
    established: Option<SystemTime>,
    /// When the first session of this tunnel was begun that no data has proved yet.
    unproved: Option<Instant>,
    /// Whether data has ever come.
    proved: bool,
    /// Whether there is a session: looked up where that can change, not for each packet.
    up: bool,
}

impl Tunnel {
    /// A tunnel without a session. `number` (24 bits) is what the peer addresses it by: random, and no other tunnel's.
    pub(crate) fn new(own: &Arc<OwnKey>, peer: Key, number: u32, now: Instant) -> Self {
        Self {
            own: own.clone(),
            peer,
            number,
            tunn: None,
            ticked: now,
            last_used: None,
            attempt: None,
            answered: false,
            last_attempt: None,
            unanswered: None,
            established: None,
            unproved: None,
            proved: false,
            up: false,
        }
    }

    /// What the peer addresses it by.
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether there is a session to send with.
    pub(crate) const fn is_up(&self) -> bool {
        self.up
    }

    fn look(&mut self) {
        self.up = self.tunn.as_ref().is_some_and(|tunn| tunn.time_since_last_handshake().is_some());
    }

    /// When the last handshake was completed.
    pub(crate) const fn established(&self) -> Option<SystemTime> {
        self.established
    }

    /// Begins a handshake unless one is under way. Writes the initiation to `out` and returns its length.
    pub(crate) fn begin(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.attempt.is_some() {
            return None;
        }
        self.attempt = Some(Attempt { began: now, sent: 0, next: now });
        self.initiate(now, out)
    }

    /// Begins a handshake again, at once: there is evidence that the peer can hear us now, or has lost the session.
    pub(crate) fn begin_again(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        (self.attempt, self.proved, self.unproved) = (None, false, None);
        self.begin(now, out)
    }

    /// The peer may drop the session in a moment, see `SETTLE`: a handshake is begun then.
    pub(crate) fn begin_soon(&mut self, now: Instant) {
        self.attempt.get_or_insert(Attempt { began: now, sent: 0, next: now + SETTLE });
        self.last_used = Some(now);
    }

    /// Whether a handshake is under way.
    pub(crate) const fn is_trying(&self) -> bool {
        self.attempt.is_some()
    }

    /// What a handshake needs. A tunnel without a session has no ticks, so its clock stands still: it is set before the tunnel is
    /// used again.
    fn awake(&mut self, now: Instant, out: &mut [u8]) -> &mut Tunn {
        let sleeps = now.saturating_duration_since(self.ticked) > IDLE_TICK && !self.up;
        let tunn = self.tunn.get_or_insert_with(|| self.own.tunn(self.peer, self.number));
        if sleeps {
            self.ticked = now;
            // What it would send is what its caller is about to send, or out of date.
            let _ = tunn.update_timers(out);
        }
        tunn
    }

    fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let attempt = self.attempt.as_mut()?;
        attempt.next = now + RETRIES[attempt.sent.min(RETRIES.len() - 1)];
        attempt.sent += 1;
        self.last_attempt = Some(now);
        self.last_used = Some(now);
        match self.awake(now, out).format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Packets are about to be sealed. `wants_answer`: whether one of them is data, not a mere acknowledgement.
    pub(crate) fn on_send(&mut self, now: Instant, wants_answer: bool) {
        self.last_used = Some(now);
        if wants_answer {
            self.unanswered.get_or_insert(now);
            self.unproved.get_or_insert(now);
        }
    }

    /// Encrypts a packet into `out`, which must have room for it, [`OVERHEAD`] and at least [`MESSAGE`] bytes. `None` if
    /// there is no session.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        // Without a session the packet would be queued inside: TCP holds it better.
        if !self.is_up() {
            return None;
        }
        match self.tunn.as_mut()?.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Takes a datagram from the peer. `out` must have room for it and at least [`MESSAGE`] bytes.
    pub(crate) fn open<'a>(&mut self, now: Instant, datagram: &[u8], out: &'a mut [u8]) -> Opened<'a> {
        let Some((kind, _)) = read(datagram) else { return Opened::Refused };
        if kind == Message::Initiation || (kind == Message::Answer && self.tunn.is_some()) {
            self.awake(now, out);
        }
        let Some(tunn) = &mut self.tunn else { return Opened::Refused };
        let opened = match tunn.decapsulate(None, datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                self.proved = true;
                Opened::Packet(packet)
            }
            TunnResult::WriteToNetwork(message) => Opened::Reply(message),
            TunnResult::Done if kind == Message::Cookie => return Opened::Cookie,
            TunnResult::Done => Opened::Empty,
            TunnResult::Err(_) => return Opened::Refused,
        };
        match kind {
            Message::Initiation => self.answered = true,
            _ if kind == Message::Answer || self.answered => {
                self.answered = false;
                self.attempt = None;
                self.established = Some(SystemTime::now());
            }
            _ => {}
        }
        self.last_used = Some(now);
        self.unanswered = None;
        if !self.up {
            self.look();
        }
        opened
    }

    /// To be called at [`Tunnel::next`]. Writes what is due to `out` and returns its length.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        self.ticked = now;
        let due = match self.tunn.as_mut().map(|tunn| tunn.update_timers(out)) {
            Some(TunnResult::WriteToNetwork(message)) => Some(message.len()),
            _ => None,
        };
        // Only the timers end a session.
        self.look();
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.attempt.is_some_and(|attempt| since(attempt.began) > ATTEMPT_LIMIT) {
            self.attempt = None;
        }
        if due.is_some() {
            return due;
        }
        if self.attempt.is_some_and(|attempt| attempt.next <= now) {
            return self.initiate(now, out);
        }
        let young = !self.proved && self.unproved.is_some_and(|at| since(at) < UNPROVED_LIMIT);
        let (silence, fresh) = if young { (UNPROVED, UNPROVED) } else { (SILENCE_LIMIT, FRESH) };
        let lost = self.unanswered.is_some_and(|at| since(at) >= silence)
            && self.last_attempt.is_none_or(|at| since(at) >= fresh);
        if lost && self.attempt.is_none() {
            return self.begin(now, out);
        }
        None
    }

    /// When [`Tunnel::on_tick`] is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let busy = self.last_used.is_some_and(|at| self.ticked.saturating_duration_since(at) < BUSY);
        if let Some(attempt) = self.attempt {
            Some(attempt.next.min(self.ticked + WAITING_TICK))
        } else if busy {
            Some(self.ticked + if self.unanswered.is_some() { WAITING_TICK } else { BUSY_TICK })
        } else {
            self.is_up().then(|| self.ticked + IDLE_TICK)
        }
    }
}

#[cfg(test)]
mod tests;
