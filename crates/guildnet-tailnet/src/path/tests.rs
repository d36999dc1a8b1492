//! The path chooser with time as an argument.

use proptest::prelude::*;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A path with one candidate, and its clock.
struct Fixture {
    path: Path,
    now: Instant,
    out: Vec<Action>,
}

impl Fixture {
    fn new() -> Self {
        let mut path = Path::new(0, false);
        path.set_map_addresses(&[addr("192.0.2.1:41641")]);
        Self { path, now: Instant::now(), out: Vec::new() }
    }

    /// Lets time pass, ticking whenever the path asks for it.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.path.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.path.on_tick(self.now, &mut self.out);
        }
        self.now = end;
    }

    /// The same, and all pings are answered. Returns how many there were.
    fn wait_answering(&mut self, time: Duration) -> usize {
        let (end, mut count) = (self.now + time, 0);
        while let Some(next) = self.path.next().filter(|next| *next <= end) {
            self.wait(next.saturating_duration_since(self.now));
            count += self.out.iter().filter(|action| matches!(action, Action::Ping { .. })).count();
            self.pong();
        }
        self.now = end.max(self.now);
        count
    }

    fn send(&mut self) -> Via {
        self.path.on_send(self.now, true, &mut self.out)
    }

    /// Answers all pings that were sent, after a round trip of 10 ms.
    fn pong(&mut self) {
        self.now += ms(10);
        for action in std::mem::take(&mut self.out) {
            if let Action::Ping { id, .. } = action {
                self.path.on_pong(self.now, id, &mut self.out);
            }
        }
    }

    fn pings(&mut self) -> Vec<SocketAddr> {
        let actions = std::mem::take(&mut self.out);
        actions.iter().filter_map(|a| if let Action::Ping { to, .. } = a { Some(*to) } else { None }).collect()
    }

    /// What was wanted beside pings.
    fn asked(&mut self) -> Vec<Action> {
        let actions = std::mem::take(&mut self.out);
        actions.into_iter().filter(|action| !matches!(action, Action::Ping { .. })).collect()
    }

    /// With a trusted path.
    fn direct() -> Self {
        let mut f = Self::new();
        f.send();
        f.pong();
        assert_eq!(std::mem::take(&mut f.out), [Action::Resend]);
        f.path.on_received(f.now);
        assert_eq!(f.path.via(f.now), Via { direct: Some(addr("192.0.2.1:41641")), relay: false });
        f
    }
}

#[test]
fn the_first_packet_goes_by_relay_while_everything_is_tried() {
    let mut f = Fixture::new();
    assert_eq!(f.send(), Via { direct: None, relay: true });
    assert_eq!(f.out.len(), 2);
    assert!(matches!(f.out[0], Action::Ping { to, .. } if to == addr("192.0.2.1:41641")));
    assert_eq!(f.out[1], Action::Call);
}

#[test]
fn the_first_pong_moves_the_path_at_once() {
    let mut f = Fixture::new();
    f.send();
    f.pong();
    assert_eq!(f.send(), Via { direct: Some(addr("192.0.2.1:41641")), relay: false });
    assert_eq!(f.path.rtt(), Some(ms(10)));
}

#[test]
fn a_path_in_use_is_kept_by_heartbeats() {
    let mut f = Fixture::direct();
    for _ in 0..20 {
        f.wait(ms(3_000));
        f.pong();
        assert!(!f.send().relay, "after {:?}", f.now);
        f.path.on_received(f.now);
    }
}

#[test]
fn silence_under_load_brings_the_relay_in_after_a_second() {
    let mut f = Fixture::direct();
    assert!(!f.send().relay);
    f.wait(ms(900));
    assert!(!f.send().relay);
    f.wait(ms(100));
    assert_eq!(f.send(), Via { direct: Some(addr("192.0.2.1:41641")), relay: true });
    assert!(f.pings().contains(&addr("192.0.2.1:41641")));
}

#[test]
fn who_only_receives_notices_that_nothing_comes_any_more() {
    let mut f = Fixture::direct();
    for _ in 0..10 {
        f.wait(ms(100));
        f.path.on_received(f.now);
        f.path.on_send(f.now, false, &mut f.out);
    }
    f.pong();
    assert_eq!(f.path.silent_since(), None);
    f.wait(QUIET);
    let asked = f.now;
    assert_eq!(f.pings(), [addr("192.0.2.1:41641")]);
    f.wait(REPEAT);
    assert_eq!(f.pings(), [addr("192.0.2.1:41641")], "one lost packet is no verdict");
    assert!(f.path.is_trusted(f.now));
    assert!(f.path.silent_since().is_some_and(|at| at <= asked));
    f.wait(SILENCE_LIMIT - REPEAT);
    assert!(!f.path.is_trusted(f.now));
    f.pong();
    assert!(f.path.is_trusted(f.now) && f.path.silent_since().is_none());
}

#[test]
fn a_stream_that_ends_is_asked_for_once() {
    let mut f = Fixture::direct();
    f.path.on_received(f.now);
    f.wait(QUIET);
    f.pong();
    f.wait(HEARTBEAT - QUIET - ms(50));
    assert_eq!(f.pings(), []);
}

#[test]
fn a_peer_heard_by_the_relay_is_not_silent_though_its_direct_path_is() {
    let mut f = Fixture::direct();
    f.wait(HEARTBEAT);
    f.wait(SILENCE_LIMIT);
    assert!(f.path.via(f.now).relay && f.path.silent_since().is_some());
    f.path.on_received(f.now);
    assert!(f.path.via(f.now).relay, "that came by the relay");
    assert_eq!(f.path.silent_since(), None);
}

#[test]
fn a_dead_path_is_forgotten_and_found_again_without_a_restart() {
    let mut f = Fixture::direct();
    for _ in 0..100 {
        f.send();
        f.wait(ms(100));
    }
    assert_eq!(f.path.via(f.now), Via { direct: None, relay: true });
    f.pings();
    f.send();
    f.wait(ms(5_000));
    f.pong();
    assert!(!f.path.via(f.now).relay);
}

#[test]
fn an_acknowledgement_without_an_answer_is_no_silence() {
    let mut f = Fixture::direct();
    f.path.on_send(f.now, false, &mut f.out);
    f.wait(ms(2_000));
    assert!(!f.send().relay);
}

#[test]
fn an_idle_path_is_quiet_and_wakes_with_both_ways() {
    let mut f = Fixture::direct();
    f.wait(ms(46_000));
    f.pings();
    f.wait(Duration::from_secs(3600));
    assert_eq!(f.pings(), [], "nothing may be sent for an idle path");
    assert!(f.send().relay);
    assert_eq!(f.pings(), [addr("192.0.2.1:41641")]);
}

#[test]
fn a_warm_path_is_pinged_while_idle() {
    let mut f = Fixture::direct();
    f.path.set_warm(true);
    f.wait_answering(ACTIVE);
    assert_eq!(f.wait_answering(10 * WARM_HEARTBEAT), 9, "one heartbeat each round, less the time that answers take");
    assert_eq!(f.path.kind(f.now), PathKind::Direct);
    f.wait(ms(120_000));
    assert_ne!(f.path.kind(f.now), PathKind::Direct, "unanswered heartbeats end it");
}

#[test]
fn a_path_that_falls_silent_is_withdrawn_once_before_the_peer_is_called_again() {
    let mut f = Fixture::direct();
    f.send();
    f.wait(SILENCE_LIMIT);
    assert!(f.send().relay);
    f.wait(ms(4_000));
    let asked = f.asked();
    assert_eq!(asked[..3], [Action::Resend, Action::Withdraw, Action::Call]);
    assert!(asked.len() > 3 && asked[3..].iter().all(|action| *action == Action::Call), "{asked:?}");
}

#[test]
fn a_peer_that_trusts_a_path_of_its_own_into_the_void_is_told_so_once_in_each_silence() {
    let mut f = Fixture::new();
    for _ in 0..2 {
        assert!(f.send().relay);
        f.wait(SILENCE_LIMIT);
        f.send();
        f.wait(ms(4_000));
        let told: Vec<_> = f.asked().into_iter().filter(|action| *action != Action::Call).collect();
        assert_eq!(told, [Action::Withdraw, Action::Resend]);
        f.path.on_received(f.now);
    }
}

#[test]
fn after_a_move_the_relay_carries_until_a_path_is_found_again() {
    let mut f = Fixture::direct();
    f.path.on_moved(f.now, &mut f.out);
    assert_eq!(f.send(), Via { direct: Some(addr("192.0.2.1:41641")), relay: true });
    assert!(f.out.contains(&Action::Call), "the peer learns where we are now");
    f.pong();
    assert!(!f.send().relay);
}

#[test]
fn a_ping_makes_a_candidate_and_is_returned() {
    let mut f = Fixture::new();
    f.send();
    f.pings();
    f.path.on_ping(f.now, addr("198.51.100.9:1234"), &mut f.out);
    assert_eq!(f.pings(), [addr("198.51.100.9:1234")]);
}

#[test]
fn a_call_is_answered_by_pings() {
    let mut f = Fixture::new();
    let (good, overlay) = (addr("198.51.100.9:1234"), addr("100.64.0.7:41641"));
    f.path.on_call(f.now, &[good, overlay], &mut f.out);
    assert_eq!(f.pings(), [good]);
}

#[test]
fn a_late_or_unknown_pong_moves_nothing() {
    let mut f = Fixture::new();
    f.send();
    assert!(!f.path.on_pong(f.now, [9; 12], &mut f.out));
    f.now += PING_LIMIT;
    f.pong();
    assert!(f.path.via(f.now).direct.is_none());
}

#[test]
fn a_clearly_better_path_takes_over() {
    let mut f = Fixture::direct();
    let better = addr("198.51.100.9:1");
    f.path.on_call(f.now, &[better], &mut f.out);
    f.wait(UPGRADE);
    f.send();
    let mut out = Vec::new();
    f.path.round(f.now, &mut out);
    f.now += ms(1);
    for action in out {
        if let Action::Ping { to, id } = action
            && to == better
        {
            f.path.on_pong(f.now, id, &mut f.out);
        }
    }
    assert_eq!(f.path.via(f.now).direct, Some(better));
}

#[derive(Clone, Debug)]
enum Event {
    Send(bool),
    Receive,
    Ping(u8),
    Call(Vec<u8>),
    Pong(usize),
    Wait(u64),
    Map(Vec<u8>),
    Forget,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        any::<bool>().prop_map(Event::Send),
        Just(Event::Receive),
        any::<u8>().prop_map(Event::Ping),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Event::Call),
        (0..40_usize).prop_map(Event::Pong),
        (0..70_000_u64).prop_map(Event::Wait),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Event::Map),
        Just(Event::Forget),
    ];
    prop::collection::vec(event, 0..200)
}

proptest! {
    /// Whatever happens: packets always have a way to go; a path is used alone only if it was answered within the trust
    /// time; what is kept is bounded; pings never go to the tailnet's own addresses; time asked for is never in the past.
    #[test]
    fn invariants(events in events(), warm: bool) {
        let at = |n: u8| addr(&format!("{}:{}", if n.is_multiple_of(5) { "100.64.0.1" } else { "192.0.2.1" }, u16::from(n) + 1));
        let mut f = Fixture::new();
        f.path.set_warm(warm);
        let mut sent: Vec<(SocketAddr, PingId)> = Vec::new();
        let mut answered: Vec<(SocketAddr, Instant)> = Vec::new();
        for event in events {
            match event {
                Event::Send(wants_answer) => {
                    let via = f.path.on_send(f.now, wants_answer, &mut f.out);
                    prop_assert!(via.relay || via.direct.is_some());
                    if let (Some(direct), false) = (via.direct, via.relay) {
                        prop_assert!(answered.iter().any(|(to, when)| *to == direct && f.now - *when < TRUST));
                    }
                }
                Event::Receive => f.path.on_received(f.now),
                Event::Ping(n) => f.path.on_ping(f.now, at(n), &mut f.out),
                Event::Call(all) => {
                    let addrs: Vec<_> = all.into_iter().map(at).collect();
                    f.path.on_call(f.now, &addrs, &mut f.out);
                }
                Event::Pong(index) => if let Some((to, id)) = sent.get(index).copied() {
                    f.path.on_pong(f.now, id, &mut f.out);
                    answered.push((to, f.now));
                },
                Event::Wait(time) => f.wait(ms(time)),
                Event::Map(all) => {
                    let addrs: Vec<_> = all.into_iter().map(at).collect();
                    f.path.set_map_addresses(&addrs);
                }
                Event::Forget => f.path.forget(),
            }
            for action in f.out.drain(..) {
                if let Action::Ping { to, id } = action {
                    prop_assert!(is_usable(to));
                    sent.insert(0, (to, id));
                }
            }
            prop_assert!(f.path.candidates.len() <= MAX_CANDIDATES && f.path.pings.len() <= MAX_PINGS);
        }
    }
}
