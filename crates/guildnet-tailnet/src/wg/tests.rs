//! Tunnels of two nodes, joined in memory.

use std::net::Ipv4Addr;

use super::*;
use crate::state;

/// Two nodes that know each other's keys.
struct Pair {
    own: Arc<OwnKey>,
    other: Arc<OwnKey>,
    now: Instant,
    near: Tunnel,
    far: Tunnel,
}

type Buffer = [u8; 256];

const EMPTY: Buffer = [0; 256];

impl Pair {
    fn new() -> Self {
        let (a, b) = (NodeKeyPair::random(), NodeKeyPair::random());
        let (own, other) = (OwnKey::new(&a), OwnKey::new(&b));
        let now = Instant::now();
        let near = Tunnel::new(&own, state::public(&b), 1, now);
        let far = Tunnel::new(&other, state::public(&a), 2, now);
        Self { own, other, now, near, far }
    }

    /// An initiation of the far end.
    fn initiation(&mut self) -> Vec<u8> {
        let mut buffer = EMPTY;
        let length = self.far.begin_again(self.now, &mut buffer).expect("an initiation");
        buffer[..length].to_vec()
    }

    /// A whole handshake that the near end begins.
    fn shake_hands(&mut self) {
        let (mut a, mut b, mut c) = (EMPTY, EMPTY, EMPTY);
        let length = self.near.begin_again(self.now, &mut a).expect("an initiation");
        let Opened::Reply(answer) = self.far.open(self.now, &a[..length], &mut b) else { panic!("no answer") };
        let Opened::Reply(confirmation) = self.near.open(self.now, answer, &mut c) else { panic!("answer refused") };
        assert_eq!(self.far.open(self.now, confirmation, &mut EMPTY.clone()), Opened::Empty);
        assert!(self.near.is_up() && self.far.is_up());
    }
}

#[test]
fn months_of_handshakes_from_one_side_are_no_flood() {
    let mut pair = Pair::new();
    for _ in 0..3 * HANDSHAKE_RATE {
        pair.shake_hands();
        assert!(!pair.near.is_trying());
    }
}

#[test]
fn an_initiation_is_taken_once_however_long_the_tunnel_has_slept() {
    let mut pair = Pair::new();
    let initiation = pair.initiation();
    assert!(matches!(pair.near.open(pair.now, &initiation, &mut EMPTY.clone()), Opened::Reply(_)));
    for asleep in [Duration::ZERO, 2 * IDLE_TICK, Duration::from_secs(3600)] {
        let mut out = EMPTY;
        let opened = pair.near.open(pair.now + asleep, &initiation, &mut out);
        assert_eq!(opened, Opened::Refused, "after {asleep:?}");
    }
}

#[test]
fn a_handshake_goes_on_until_the_peer_has_shown_that_it_has_a_session() {
    let mut pair = Pair::new();
    let (mut a, mut b) = (EMPTY, EMPTY);
    let initiation = pair.initiation();
    pair.near.begin(pair.now, &mut a).expect("an initiation");
    let Opened::Reply(answer) = pair.near.open(pair.now, &initiation, &mut b) else { panic!("no answer") };
    assert!(pair.near.is_trying() && pair.near.established().is_none(), "the answer may be lost");
    let Opened::Reply(confirmation) = pair.far.open(pair.now, answer, &mut a) else { panic!("answer refused") };
    assert_eq!(pair.near.open(pair.now, confirmation, &mut EMPTY.clone()), Opened::Empty);
    assert!(!pair.near.is_trying() && pair.near.established().is_some());
}

#[test]
fn a_flood_of_initiations_is_asked_for_a_cookie_and_holds_up_no_handshake_of_ours() {
    let mut pair = Pair::new();
    let from = Some(Ipv4Addr::LOCALHOST.into());
    let mut cookies = 0;
    for _ in 0..2 * HANDSHAKE_RATE {
        let initiation = pair.initiation();
        match pair.own.admit(from, &initiation, &mut EMPTY.clone()) {
            Ok(()) => {}
            Err(cookie) => cookies += usize::from(cookie == Some(COOKIE)),
        }
    }
    assert!(cookies > 0, "nobody was asked to prove an address");
    let relayed = pair.initiation();
    assert_eq!(pair.own.admit(None, &relayed, &mut EMPTY.clone()), Ok(()), "relays are another way");
    pair.shake_hands();
}

#[test]
fn who_shows_the_cookie_is_let_in_beside_a_flood() {
    let mut pair = Pair::new();
    let from = Some(Ipv4Addr::LOCALHOST.into());
    let cookie = loop {
        let initiation = pair.initiation();
        let mut out = EMPTY;
        if let Err(Some(length)) = pair.own.admit(from, &initiation, &mut out) {
            break out[..length].to_vec();
        }
    };
    assert_eq!(pair.far.open(pair.now, &cookie, &mut EMPTY.clone()), Opened::Cookie);
    assert!(!pair.far.is_up() && pair.far.is_trying(), "a cookie proves nothing");
    let initiation = pair.initiation();
    assert_eq!(pair.own.admit(from, &initiation, &mut EMPTY.clone()), Ok(()));
    assert!(matches!(pair.near.open(pair.now, &initiation, &mut EMPTY.clone()), Opened::Reply(_)));
}

#[test]
fn an_initiation_names_its_sender_to_its_receiver_only() {
    let mut pair = Pair::new();
    let initiation = pair.initiation();
    assert_eq!(pair.own.initiator(&initiation).map(|key| key.0), Some(*pair.other.public.as_bytes()));
    assert_eq!(pair.other.initiator(&initiation), None);
    assert!(pair.other.admit(None, &initiation, &mut EMPTY.clone()).is_err(), "made for another node");
}

#[test]
fn data_is_taken_once() {
    let mut pair = Pair::new();
    pair.shake_hands();
    let packet = [&[0x45, 0, 0, 20][..], &[0; 16]].concat();
    let mut sealed = EMPTY;
    let length = pair.near.seal(&packet, &mut sealed).expect("a session");
    assert_eq!(pair.far.open(pair.now, &sealed[..length], &mut EMPTY.clone()), Opened::Packet(&packet));
    assert_eq!(pair.far.open(pair.now, &sealed[..length], &mut EMPTY.clone()), Opened::Refused);
    sealed[length - 1] ^= 1;
    assert_eq!(pair.far.open(pair.now, &sealed[..length], &mut EMPTY.clone()), Opened::Refused);
}

#[test]
fn a_tunnel_that_is_never_used_takes_no_memory_for_sessions_whatever_comes() {
    let mut pair = Pair::new();
    for (kind, length) in [(2, ANSWER), (3, COOKIE), (4, 100)] {
        let mut message = vec![0; length];
        message[0] = kind;
        assert_eq!(pair.near.open(pair.now, &message, &mut EMPTY.clone()), Opened::Refused);
    }
    pair.near.on_tick(pair.now, &mut EMPTY.clone());
    assert!(pair.near.tunn.is_none() && pair.near.next().is_none());
    pair.shake_hands();
    assert!(pair.near.is_up());
}

#[test]
fn garbage_is_refused() {
    let mut pair = Pair::new();
    pair.shake_hands();
    for length in [0, 1, 15, 16, 31, 32, COOKIE, ANSWER, MESSAGE, 200] {
        for kind in 0..6 {
            let mut garbage = vec![0xa5; length];
            garbage.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, first)| *byte = first);
            assert_eq!(pair.near.open(pair.now, &garbage, &mut EMPTY.clone()), Opened::Refused, "{kind} {length}");
        }
    }
    pair.shake_hands();
}

#[test]
fn a_peer_that_has_dropped_a_young_session_is_asked_again_soon_and_a_silent_target_is_no_reason_for_more() {
    let mut pair = Pair::new();
    let start = pair.now;
    // Begun anew each time that it is asked for, within a minute of data that nothing answers.
    let begins = |tunnel: &mut Tunnel| {
        let mut times = Vec::new();
        while let Some(next) = tunnel.next().filter(|next| *next < start + Duration::from_secs(60)) {
            tunnel.on_send(next, true);
            if tunnel.on_tick(next, &mut EMPTY.clone()).is_some_and(|length| length == MESSAGE) {
                times.push(next.saturating_duration_since(start).as_secs_f64());
                // As if it had been answered, and the session dropped once more.
                tunnel.attempt = None;
            }
        }
        times
    };
    pair.shake_hands();
    pair.near.on_send(start, true);
    let times = begins(&mut pair.near);
    assert!(times.first().is_some_and(|first| *first <= 0.6), "{times:?}");
    assert!(times.iter().filter(|at| **at > 6.0).count() <= 20, "{times:?}");
}
