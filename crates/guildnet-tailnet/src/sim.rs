//! Two nodes in virtual time: path choice, WireGuard sessions and TCP together, each behind its own NAT, joined by a direct way and by a
//! relay. What is lost, reordered, repeated, cut and forgotten comes from a seed, which a failure names.
//!
//! Disco messages are not sealed here (`disco.rs` is tested by itself), and sessions are made once: boringtun keeps its own time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use guildnet_model::PathKind;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use ts_keys::NodeKeyPair;

use crate::{
    packet::{Packets, Segment},
    path::{Action, Path, PingId},
    state,
    tcp::{Budget, MAX_WRITE, Phase, Setup, Tcp},
    wg::{Opened, OwnKey, Tunnel},
};

const MS: Duration = Duration::from_millis(1);
/// One way through the relay.
const RELAY_DELAY: Duration = Duration::from_millis(20);

/// What a gateway does to addresses (RFC 4787 has the words for it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    FullCone,
    PortRestricted,
    Symmetric,
}

const KINDS: [Kind; 4] = [Kind::None, Kind::FullCone, Kind::PortRestricted, Kind::Symmetric];

/// Whether two can meet without help. A symmetric NAT can't be foreseen by who must foresee it.
fn can_meet(a: Kind, b: Kind) -> bool {
    let strict = |kind| matches!(kind, Kind::PortRestricted | Kind::Symmetric);
    !(a == Kind::Symmetric && strict(b) || b == Kind::Symmetric && strict(a))
}

struct Nat {
    kind: Kind,
    outer: Ipv4Addr,
    next_port: u16,
    /// The outer port for each far end, or for all of them.
    ports: HashMap<Option<SocketAddr>, u16>,
    /// Who may use an outer port.
    open: HashSet<(u16, SocketAddr)>,
}

impl Nat {
    fn new(kind: Kind, outer: Ipv4Addr) -> Self {
        Self { kind, outer, next_port: 20_000, ports: HashMap::new(), open: HashSet::new() }
    }

    /// The address from which something for `to` leaves.
    fn leave(&mut self, to: SocketAddr) -> SocketAddr {
        let key = (self.kind == Kind::Symmetric).then_some(to);
        let port = *self.ports.entry(key).or_insert_with(|| {
            self.next_port += 7;
            self.next_port
        });
        self.open.insert((port, to));
        (self.outer, port).into()
    }

    /// Whether something from `from` for the outer port comes in.
    fn lets_in(&self, from: SocketAddr, port: u16) -> bool {
        match self.kind {
            Kind::None | Kind::FullCone => self.ports.values().any(|own| *own == port),
            Kind::PortRestricted | Kind::Symmetric => self.open.contains(&(port, from)),
        }
    }

    /// It was started anew.
    fn forget(&mut self) {
        self.next_port += 1000;
        self.ports.clear();
        self.open.clear();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Ping(PingId),
    Pong(PingId),
    Call(Vec<SocketAddr>),
    Data(Vec<u8>),
}

/// One end.
struct Node {
    path: Path,
    tunnel: Tunnel,
    tcp: Option<Tcp>,
    nat: Nat,
    /// When its flow wants a turn.
    due: Option<Instant>,
}

/// Whom a node asks where it is reached, from the same socket.
fn stun() -> SocketAddr {
    "198.51.100.1:3478".parse().expect("an address")
}

fn inner(end: usize) -> SocketAddr {
    ["100.64.0.2:50000", "10.96.0.1:443"][end].parse().expect("an address")
}

/// What the direct way does.
#[derive(Clone, Copy, Debug)]
struct Way {
    delay: Duration,
    loss: f64,
    reorder: f64,
    repeat: f64,
}

/// How something travels.
#[derive(Clone, Copy, Debug)]
enum By {
    Relay,
    /// From this address to that port of the other's gateway.
    Direct {
        from: SocketAddr,
        port: u16,
    },
}

/// What is on its way to an end.
struct Parcel {
    end: usize,
    by: By,
    message: Message,
}

struct World {
    now: Instant,
    ends: [Node; 2],
    way: Way,
    /// Whether the direct way and the relay work.
    direct: bool,
    relay: bool,
    /// By the time of arrival, and in the order of sending.
    flying: BTreeMap<(Instant, u64), Parcel>,
    count: u64,
    rng: StdRng,
    /// What the second end's flow is made with, when the first segment comes.
    listening: Setup,
    /// What has arrived at the second end, when the last of it came, and the longest wait for more.
    got: Vec<u8>,
    last_got: Instant,
    stall: Duration,
}

impl World {
    fn new(kinds: [Kind; 2], seed: u64, way: Way) -> Self {
        let now = Instant::now();
        let keys = [NodeKeyPair::random(), NodeKeyPair::random()];
        let setup = |own: usize| Setup {
            local: inner(own),
            remote: inner(1 - own),
            window: 1 << 20,
            budget: Arc::new(Budget::new(64 << 20)),
            seed: seed as u32 ^ own as u32,
        };
        let node = |own: usize| Node {
            path: Path::new(u128::from(seed) << 8 | own as u128, own == 0),
            tunnel: Tunnel::new(&OwnKey::new(&keys[own]), state::public(&keys[1 - own]), own as u32 + 1, now),
            tcp: (own == 0).then(|| Tcp::connect(setup(0), now)),
            nat: Nat::new(kinds[own], Ipv4Addr::new(203, 0, 113, 1 + own as u8)),
            due: Some(now),
        };
        let mut world = Self {
            now,
            ends: [node(0), node(1)],
            way,
            direct: true,
            relay: true,
            flying: BTreeMap::new(),
            count: 0,
            rng: StdRng::seed_from_u64(seed),
            listening: setup(1),
            got: Vec::new(),
            last_got: now,
            stall: Duration::ZERO,
        };
        world.shake_hands();
        // What the network map tells each of the other.
        for end in 0..2 {
            let addrs = [world.ends[1 - end].nat.leave(stun())];
            world.ends[end].path.set_map_addresses(&addrs);
        }
        world
    }

    fn shake_hands(&mut self) {
        let (mut a, mut b, mut c) = ([0; 2048], [0; 2048], [0; 2048]);
        let [near, far] = &mut self.ends;
        let len = near.tunnel.begin(self.now, &mut a).expect("an initiation");
        let Opened::Reply(answer) = far.tunnel.open(self.now, &a[..len], &mut b) else { panic!("no answer") };
        let Opened::Reply(sure) = near.tunnel.open(self.now, answer, &mut a) else { panic!("refused") };
        assert_eq!(far.tunnel.open(self.now, sure, &mut c), Opened::Empty);
    }

    fn fly(&mut self, end: usize, by: By, after: Duration, message: Message) {
        self.count += 1;
        self.flying.insert((self.now + after, self.count), Parcel { end, by, message });
    }

    fn send(&mut self, end: usize, to: SocketAddr, message: Message) {
        let from = self.ends[end].nat.leave(to);
        let lost = !self.direct || self.rng.random_bool(self.way.loss) || self.ends[1 - end].nat.outer != to.ip();
        if lost {
            return;
        }
        let late = if self.rng.random_bool(self.way.reorder) { 2 * MS } else { Duration::ZERO };
        let by = By::Direct { from, port: to.port() };
        if self.rng.random_bool(self.way.repeat) {
            self.fly(1 - end, by, self.way.delay + late + MS, message.clone());
        }
        self.fly(1 - end, by, self.way.delay + late, message);
    }

    fn relay(&mut self, end: usize, message: Message) {
        if self.relay {
            self.fly(1 - end, By::Relay, RELAY_DELAY, message);
        }
    }

    fn act(&mut self, end: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ping { to, id } => self.send(end, to, Message::Ping(id)),
                Action::Call => {
                    let addrs = vec![self.ends[end].nat.leave(stun())];
                    self.relay(end, Message::Call(addrs));
                }
                Action::Withdraw => self.relay(end, Message::Call(vec![])),
                Action::Resend => {
                    if let Some(tcp) = &mut self.ends[end].tcp {
                        tcp.hurry(self.now);
                    }
                }
            }
        }
    }

    fn arrive(&mut self, Parcel { end, by, message }: Parcel) {
        if let By::Direct { from, port } = by
            && !self.ends[end].nat.lets_in(from, port)
        {
            return;
        }
        let (now, mut actions) = (self.now, Vec::new());
        let node = &mut self.ends[end];
        match (message, by) {
            (Message::Ping(id), By::Direct { from, .. }) => {
                node.path.on_ping(now, from, &mut actions);
                self.send(end, from, Message::Pong(id));
            }
            (Message::Pong(id), _) => {
                node.path.on_pong(now, id, &mut actions);
            }
            (Message::Call(addrs), By::Relay) => node.path.on_call(now, &addrs, &mut actions),
            (Message::Data(sealed), _) => {
                let mut plain = [0; 2048];
                // What the replay window refuses is a copy, or very late.
                if let Opened::Packet(packet) = node.tunnel.open(now, &sealed, &mut plain) {
                    node.path.on_received(now);
                    let segment = Segment::read(packet).expect("a whole segment");
                    match &mut node.tcp {
                        Some(tcp) => tcp.input(now, &segment),
                        None => node.tcp = Some(Tcp::accept(self.listening.clone(), &segment, now)),
                    }
                }
            }
            (other, by) => panic!("{other:?} by {by:?}"),
        }
        self.act(end, actions);
    }

    /// An end puts out what it has, as `data/egress.rs` does.
    fn pump(&mut self, end: usize) {
        let (now, mut actions, mut out) = (self.now, Vec::new(), Packets::new());
        // Bounded: an end that never stops is a mistake.
        for _ in 0..1000 {
            let node = &mut self.ends[end];
            if node.path.next().is_some_and(|at| at <= now) {
                node.path.on_tick(now, &mut actions);
            }
            out.clear();
            node.due = node.tcp.as_mut().and_then(|tcp| tcp.output(now, &mut out));
            if out.is_empty() {
                break;
            }
            let via = node.path.on_send(now, out.wants_answer(), &mut actions);
            for packet in out.iter() {
                let mut sealed = [0; 2048];
                let len = self.ends[end].tunnel.seal(packet, &mut sealed).expect("a session");
                let message = Message::Data(sealed[..len].to_vec());
                if let Some(to) = via.direct {
                    self.send(end, to, message.clone());
                }
                if via.relay {
                    self.relay(end, message);
                }
            }
        }
        self.act(end, actions);
    }

    /// Reads what the second end has received.
    fn read(&mut self) {
        let Some(tcp) = &mut self.ends[1].tcp else { return };
        while let Poll::Ready(read) = tcp.poll_read(&mut Context::from_waker(Waker::noop()), self.now) {
            let data = read.expect("no flow is reset").data;
            if data.is_empty() {
                break;
            }
            self.got.extend_from_slice(&data);
            self.stall = self.stall.max(self.now - self.last_got);
            self.last_got = self.now;
        }
    }

    /// Goes on to the next thing that happens, and not beyond a limit.
    fn step(&mut self, limit: Instant) {
        self.pump(0);
        self.pump(1);
        self.read();
        let due = self.ends.iter().flat_map(|node| [node.due, node.path.next()]).flatten();
        let next = due.chain(self.flying.keys().next().map(|(at, _)| *at)).min().unwrap_or(limit);
        self.now = next.clamp(self.now + Duration::from_micros(1), limit.max(self.now + Duration::from_micros(1)));
        while let Some(first) = self.flying.first_entry().filter(|first| first.key().0 <= self.now) {
            let parcel = first.remove();
            self.arrive(parcel);
        }
    }

    fn run(&mut self, time: Duration) {
        let limit = self.now + time;
        while self.now < limit {
            self.step(limit);
        }
    }

    /// Writes at most 256 KiB, as far as there is room. Returns how much it was.
    fn write(&mut self, data: &[u8]) -> usize {
        let tcp = self.ends[0].tcp.as_mut().expect("from the beginning");
        match tcp.poll_room(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => {
                let len = room.expect("no flow is reset").min(data.len()).min(MAX_WRITE);
                tcp.push(data[..len].to_vec());
                len
            }
            Poll::Pending => 0,
        }
    }

    fn open(mut self) -> Self {
        let limit = self.now + 10_000 * MS;
        while self.ends[0].tcp.as_ref().is_none_or(|tcp| tcp.phase() != Phase::Open) {
            assert!(self.now < limit, "not open after 10 s");
            self.step(limit);
        }
        self.last_got = self.now;
        self
    }

    fn kinds(&self) -> [PathKind; 2] {
        self.ends.each_ref().map(|node| node.path.kind(self.now))
    }
}

/// Writes a stream while the world changes, at most 1 MB/s; what was taken must arrive, unchanged and without a long stall.
fn stream(world: &mut World, time: Duration, mut change: impl FnMut(&mut World, Duration)) {
    let began = world.now;
    let mut sent = Vec::new();
    let mut waiting: Vec<u8> = Vec::new();
    while world.now - began < time {
        change(world, world.now - began);
        waiting.extend((0..10_000_u32).map(|i| (i % 251) as u8));
        let len = world.write(&waiting);
        sent.extend(waiting.drain(..len));
        world.run(10 * MS);
    }
    // A way that loses one in twenty of what takes 80 ms carries a tenth of what was wanted; less is no stream.
    let least = time.as_millis() as usize * 20;
    assert!(world.got.len() >= least, "{} of {} arrived in {time:?}", world.got.len(), sent.len());
    while world.got.len() < sent.len() {
        world.run(10 * MS);
        assert!(world.now - world.last_got < 10_000 * MS, "{} of {}, and no more", world.got.len(), sent.len());
    }
    assert!(world.got == sent, "bytes were changed");
}

fn fair() -> Way {
    Way { delay: 5 * MS, loss: 0.0, reorder: 0.0, repeat: 0.0 }
}

#[test]
fn those_who_can_meet_do_and_the_others_have_the_relay() {
    for near in KINDS {
        for far in KINDS {
            let mut world = World::new([near, far], 1, fair()).open();
            stream(&mut world, 5000 * MS, |_, _| {});
            let kind = if can_meet(near, far) { PathKind::Direct } else { PathKind::Relay };
            assert_eq!(world.kinds(), [kind; 2], "{near:?} {far:?}");
            assert!(world.stall < 500 * MS, "{near:?} {far:?}: {:?}", world.stall);
        }
    }
}

#[test]
fn a_path_is_lost_and_found_in_the_middle_of_a_transfer() {
    for seed in 0..8 {
        let mut world = World::new([Kind::PortRestricted, Kind::None], seed, fair()).open();
        stream(&mut world, 30_000 * MS, |world, at| {
            // Cut for six seconds, twice.
            world.direct = !matches!(at.as_secs(), 5..11 | 18..24);
        });
        assert!(world.stall < 3000 * MS, "seed {seed}: {:?}", world.stall);
        assert_eq!(world.kinds(), [PathKind::Direct; 2], "seed {seed}");
    }
}

#[test]
fn a_gateway_that_forgets_is_survived() {
    for (seed, kinds) in
        [[Kind::PortRestricted, Kind::None], [Kind::PortRestricted, Kind::FullCone], [Kind::Symmetric, Kind::None]]
            .into_iter()
            .enumerate()
    {
        let mut world = World::new(kinds, seed as u64, fair()).open();
        let mut forgot = 0;
        stream(&mut world, 20_000 * MS, |world, at| {
            if at.as_secs() / 6 > forgot {
                forgot = at.as_secs() / 6;
                world.ends[0].nat.forget();
            }
        });
        assert!(world.stall < 3000 * MS, "{kinds:?}: {:?}", world.stall);
        assert_eq!(world.kinds(), [PathKind::Direct; 2], "{kinds:?}");
    }
}

#[test]
fn a_direct_path_needs_no_relay() {
    let mut world = World::new([Kind::PortRestricted, Kind::None], 3, fair()).open();
    stream(&mut world, 15_000 * MS, |world, at| world.relay = at < 3000 * MS);
    assert!(world.stall < 200 * MS, "{:?}", world.stall);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever the direct way does, as long as the relay is there: nothing is reset, nothing changed, no stall of 3 s.
    #[test]
    fn a_stream_goes_on_whatever_the_direct_way_does(
        seed: u64, near in 0_usize..4, far in 0_usize..4, delay in 1_u64..80, loss in 0.0..0.05, reorder in 0.0..0.1, repeat in 0.0..0.05,
        cuts in prop::collection::vec((0_u64..20_000, 0_u64..9_000), 0..5), forgets in prop::collection::vec((0_u64..20_000, 0_usize..2), 0..3),
    ) {
        let way = Way { delay: delay as u32 * MS, loss, reorder, repeat };
        let mut world = World::new([KINDS[near], KINDS[far]], seed, way).open();
        let mut forgets = forgets;
        stream(&mut world, 20_000 * MS, |world, at| {
            let ms = at.as_millis() as u64;
            world.direct = !cuts.iter().any(|(from, long)| (*from..from + long).contains(&ms));
            forgets.retain(|(when, end)| {
                let due = *when <= ms;
                if due {
                    world.ends[*end].nat.forget();
                }
                !due
            });
        });
        prop_assert!(world.stall < 3000 * MS, "{:?}", world.stall);
        for node in &world.ends {
            prop_assert_eq!(node.tcp.as_ref().expect("open").phase(), Phase::Open);
        }
    }
}
