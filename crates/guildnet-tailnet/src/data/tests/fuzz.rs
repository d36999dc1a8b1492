//! Whatever comes, from the socket or through the tunnel: nothing falls over, nothing grows, and a flow that is not meant
//! goes on. One node takes all cases one after the other. `PROPTEST_CASES` says how many.

use std::{cell::RefCell, net::SocketAddrV4};

use proptest::prelude::*;

use super::{
    far::{ACK, FIN, Far, FarFlow, PSH, RST, SYN, repair, tcp},
    *,
};
use crate::{packet::Segment, stun, wg};

/// After so many cases the flow that must go on is tried.
const ROUND: u32 = 512;
/// After so many a new session is made: one lives two minutes.
const SESSION: u32 = 1 << 16;

/// The node under test, and its flow that must go on.
struct Bench {
    far: Far,
    kept: FarFlow,
    /// Connections that nobody takes.
    _waiting: tokio::sync::mpsc::Receiver<crate::connector::Accepted>,
    cases: u32,
}

impl Bench {
    async fn new() -> RefCell<Self> {
        let mut far = Far::new().await;
        let mut map = (**far.node.map.as_ref().expect("a map")).clone();
        map.filter = allow_all();
        with_scratch(|scratch| far.node.apply_map(Arc::new(map), &mut scratch.work, far.now));
        let kept = far.open("10.96.0.1:443");
        let _waiting = far.node.listeners.listen(80).expect("a port");
        RefCell::new(Self { far, kept, _waiting, cases: 0 })
    }

    /// After each case.
    fn check(&mut self) {
        let Self { far, kept, cases, .. } = self;
        far.now += Duration::from_millis(1);
        far.turn();
        far.packets.clear();
        *cases += 1;
        if cases.is_multiple_of(SESSION) {
            // Handshakes of a second are counted, and the cases may have made some.
            std::thread::sleep(Duration::from_millis(1100));
            far.shake_hands();
        }
        if cases.is_multiple_of(ROUND) {
            far.talk(kept);
        }
        let node = &far.node;
        assert!(node.flows.len() <= 16 && node.runnable.len() <= 32, "{} {}", node.flows.len(), node.runnable.len());
        assert_eq!((node.peers.iter().count(), node.actions.len(), node.relay_waiting.len()), (1, 0, 0));
        let slot = node.peers.get(far.peer).expect("its slot");
        assert!(slot.path.addrs().count() <= 32);
    }
}

/// At the end.
fn finish(bench: RefCell<Bench>) {
    let Bench { mut far, mut kept, .. } = bench.into_inner();
    far.talk(&mut kept);
}

/// Bytes that are changed, cut off or added.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Add(Vec<u8>),
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        8 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        8 => (any::<prop::sample::Index>(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => any::<prop::sample::Index>().prop_map(Change::Cut),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Change::Add),
        1 => (1000usize..9000, any::<u8>()).prop_map(|(len, byte)| Change::Add(vec![byte; len])),
    ];
    prop::collection::vec(change, 0..=most)
}

fn change(bytes: &mut Vec<u8>, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Add(more) => bytes.extend(more),
            _ if bytes.is_empty() => {}
            Change::Set(at, byte) => *at.get_mut(bytes) = *byte,
            Change::Flip(at, bit) => *at.get_mut(bytes) ^= 1 << bit,
            Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

/// What a disco datagram of the router begins as.
#[derive(Clone, Debug)]
enum Disco {
    Ping([u8; 12]),
    Pong([u8; 12]),
    Call(Vec<SocketAddr>),
    /// Sealed with the right key.
    Junk(u8, Vec<u8>),
    /// From nobody that is known.
    Stranger(Vec<u8>),
    /// Nothing sealed.
    Garbage(Vec<u8>),
}

fn discos() -> impl Strategy<Value = Disco> {
    // What is pinged is on this machine.
    let near = any::<([u8; 3], u16)>().prop_map(|([b, c, d], port)| SocketAddr::from(([127, b, c, d], port)));
    let addr = prop_oneof![3 => near, 1 => any::<std::net::SocketAddrV6>().prop_map(SocketAddr::V6)];
    prop_oneof![
        any::<[u8; 12]>().prop_map(Disco::Ping),
        any::<[u8; 12]>().prop_map(Disco::Pong),
        prop::collection::vec(addr, 0..50).prop_map(Disco::Call),
        (0u8..6, bytes(700)).prop_map(|(kind, junk)| Disco::Junk(kind, junk)),
        bytes(200).prop_map(Disco::Stranger),
        bytes(200).prop_map(Disco::Garbage),
    ]
}

#[tokio::test]
async fn any_disco_datagram_is_survived() {
    let bench = Bench::new().await;
    proptest!(|(disco in discos(), changes in changes(3), by in 0u8..3)| {
        let bench = &mut *bench.borrow_mut();
        let Bench { far, .. } = &mut *bench;
        let mut datagram = match disco {
            Disco::Ping(id) => far.disco.ping(ts_keys::NodeKeyPair::random().public, id),
            Disco::Pong(id) => far.disco.pong(id, far.at),
            Disco::Call(addrs) => far.disco.call(&addrs),
            Disco::Junk(kind, junk) => far.disco.junk(kind, &junk),
            Disco::Stranger(bytes) | Disco::Garbage(bytes) if bytes.len() % 2 == 0 => bytes,
            Disco::Stranger(bytes) | Disco::Garbage(bytes) => [b"TS\xf0\x9f\x92\xac", &bytes[..]].concat(),
        };
        change(&mut datagram, &changes);
        let router = far.node.peers.get(far.peer).expect("its slot").key;
        let from = match by {
            0 => ingress::Source::Direct(far.at),
            1 => ingress::Source::Relay { region: 1, from: router },
            _ => ingress::Source::Relay { region: 1, from: Key([9; 32]) },
        };
        let now = far.now;
        with_scratch(|scratch| far.node.on_datagram(from, &datagram, &mut scratch.work, now));
        bench.check();
    });
    finish(bench);
}

/// What a WireGuard datagram begins as.
#[derive(Clone, Debug)]
enum Sealed {
    Initiation,
    /// Of this many bytes.
    Data(usize),
    /// A head that fits, then what comes: kind, whether it names the tunnel, length, content.
    Shaped(u8, bool, usize, Vec<u8>),
    Garbage(Vec<u8>),
}

fn sealed() -> impl Strategy<Value = Sealed> {
    let length = prop_oneof![Just(148usize), Just(92), Just(64), Just(32), 16usize..3000];
    prop_oneof![
        Just(Sealed::Initiation),
        (0usize..1400).prop_map(Sealed::Data),
        (0u8..6, any::<bool>(), length, bytes(160))
            .prop_map(|(kind, ours, len, all)| Sealed::Shaped(kind, ours, len, all)),
        bytes(200).prop_map(Sealed::Garbage),
    ]
}

#[tokio::test]
async fn any_wireguard_datagram_is_survived() {
    let bench = Bench::new().await;
    proptest!(|(sealed in sealed(), changes in changes(3), relayed: bool)| {
        let bench = &mut *bench.borrow_mut();
        let Bench { far, .. } = &mut *bench;
        let mut out = vec![0; 2048];
        let mut datagram = match sealed {
            Sealed::Initiation => far.tunnel.begin_again(far.now, &mut out).map(|len| out[..len].to_vec()).unwrap_or_default(),
            Sealed::Data(len) => far.tunnel.seal(&vec![0x45; len], &mut out).map(|len| out[..len].to_vec()).unwrap_or_default(),
            Sealed::Shaped(kind, ours, len, mut all) => {
                all.resize(len, 7);
                all[..4].copy_from_slice(&[kind, 0, 0, 0]);
                let number = far.node.peers.get(far.peer).expect("its slot").tunnel.number() << 8;
                if ours && len >= 16 {
                    all[if kind == 2 { 8..12 } else { 4..8 }].copy_from_slice(&number.to_le_bytes());
                }
                all
            }
            Sealed::Garbage(bytes) => bytes,
        };
        change(&mut datagram, &changes);
        // What this test sends by chance as disco has tests of its own.
        prop_assume!(!crate::disco::is_disco(&datagram));
        prop_assert!(wg::classify(&datagram).is_none() || datagram.len() >= 32);
        let router = far.node.peers.get(far.peer).expect("its slot").key;
        let from = if relayed { ingress::Source::Relay { region: 1, from: router } } else { ingress::Source::Direct(far.at) };
        let now = far.now;
        with_scratch(|scratch| far.node.on_datagram(from, &datagram, &mut scratch.work, now));
        bench.check();
    });
    finish(bench);
}

#[tokio::test]
async fn any_answer_of_a_stun_server_is_survived() {
    let bench = Bench::new().await;
    let attribute = (prop_oneof![Just(0x0020u16), Just(1), any::<u16>()], prop::option::of(any::<u16>()), bytes(24));
    let attributes = prop::collection::vec(attribute, 0..6);
    proptest!(|(id: [u8; 12], attributes in attributes, length: Option<u16>, changes in changes(3))| {
        let mut content = Vec::new();
        for (kind, claimed, value) in attributes {
            let length = claimed.unwrap_or(u16::try_from(value.len()).expect("short"));
            content.extend([kind.to_be_bytes(), length.to_be_bytes()].concat());
            content.extend(&value);
            content.resize(content.len().next_multiple_of(4), 0);
        }
        let length = length.unwrap_or(u16::try_from(content.len()).expect("short"));
        let mut datagram = [&[1, 1][..], &length.to_be_bytes(), &[0x21, 0x12, 0xa4, 0x42], &id, &content].concat();
        change(&mut datagram, &changes);
        let _ = stun::parse(&datagram);
        let bench = &mut *bench.borrow_mut();
        let Bench { far, .. } = &mut *bench;
        far.send(&datagram);
        prop_assert!(far.node.locator.endpoints().len() < 64);
        bench.check();
    });
    finish(bench);
}

/// What a packet through the tunnel begins as.
#[derive(Clone, Debug)]
enum Inner {
    /// Of the flow that may be harmed: flags, offsets of sequence and acknowledgement, window, options, data.
    Tcp {
        flags: u8,
        seq: i32,
        ack: i32,
        window: u16,
        options: Vec<u8>,
        data: Vec<u8>,
    },
    /// The same with options, or a fragment, of IPv4.
    Odd {
        options: usize,
        fragment: u16,
        data: Vec<u8>,
    },
    /// IPv6, with these headers before what follows.
    V6 {
        headers: Vec<(u8, u8)>,
        data: Vec<u8>,
    },
    /// Opens a connection to this node.
    Open {
        from: u8,
        to: u8,
        port: u16,
        flags: u8,
        data: Vec<u8>,
    },
    Garbage(Vec<u8>),
}

fn inners() -> impl Strategy<Value = Inner> {
    let near = || prop_oneof![3 => Just(0), 3 => -3i32..2000, 1 => any::<i32>()];
    let flags =
        prop_oneof![Just(ACK), Just(ACK | PSH), Just(ACK | FIN), Just(RST), Just(SYN), Just(SYN | ACK), any::<u8>()];
    let options = prop::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..=40);
    let packet = (flags, near(), near(), any::<u16>(), options, bytes(1300));
    let headers = prop::collection::vec(
        (prop_oneof![Just(0u8), Just(43), Just(44), Just(60), Just(6), any::<u8>()], any::<u8>()),
        0..6,
    );
    let from = prop_oneof![3 => Just(1), 1 => any::<u8>()];
    let to = prop_oneof![3 => Just(9), 1 => any::<u8>()];
    let flags = prop_oneof![4 => Just(SYN), 1 => any::<u8>()];
    let port = prop_oneof![Just(80), any::<u16>()];
    let opens = (from, to, port, flags, bytes(40)).prop_map(|(from, to, port, flags, data)| Inner::Open {
        from,
        to,
        port,
        flags,
        data,
    });
    prop_oneof![
        6 => packet.prop_map(|(flags, seq, ack, window, options, data)| Inner::Tcp { flags, seq, ack, window, options, data }),
        2 => (0usize..=10, any::<u16>(), bytes(100)).prop_map(|(options, fragment, data)| Inner::Odd { options, fragment, data }),
        2 => (headers, bytes(100)).prop_map(|(headers, data)| Inner::V6 { headers, data }),
        2 => opens,
        1 => bytes(1300).prop_map(Inner::Garbage),
    ]
}

fn inner(inner: Inner, flow: &FarFlow) -> Vec<u8> {
    match inner {
        Inner::Tcp { flags, seq, ack, window, mut options, data } => {
            let (seq, ack) = (flow.seq.wrapping_add_signed(seq), flow.ack.wrapping_add_signed(ack));
            options.resize(options.len().next_multiple_of(4), 0);
            let mut packet = tcp(flow.from, flow.to, seq, ack, flags, &[&options[..], &data].concat());
            packet[32] = u8::try_from(5 + options.len() / 4).expect("short") << 4;
            packet[34..36].copy_from_slice(&window.to_be_bytes());
            packet
        }
        Inner::Odd { options, fragment, data } => {
            let mut packet = tcp(flow.from, flow.to, flow.seq, flow.ack, ACK, &data);
            packet[0] = 0x40 | u8::try_from(5 + options).expect("short");
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            packet.splice(20..20, vec![1; options * 4]);
            packet
        }
        Inner::V6 { headers, data } => {
            let first = headers.first().map_or(6, |(kind, _)| *kind);
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 64];
            packet.extend([0xfd; 32]);
            let next = headers.iter().skip(1).map(|(kind, _)| *kind).chain([6]);
            for ((_, length), next) in headers.iter().zip(next) {
                packet.extend([next, *length, 0, 0, 0, 0, 0, 0]);
            }
            packet.extend(&tcp(flow.from, flow.to, flow.seq, flow.ack, ACK, &data)[20..]);
            packet
        }
        Inner::Open { from, to, port, flags, data } => {
            let [from, to] = [from, to].map(|last| Ipv4Addr::new(100, 64, 0, last));
            tcp(SocketAddrV4::new(from, 5000), SocketAddrV4::new(to, port), 1, 2, flags, &data)
        }
        Inner::Garbage(bytes) => bytes,
    }
}

#[tokio::test]
async fn any_packet_of_a_peer_is_survived_and_other_flows_go_on() {
    let bench = Bench::new().await;
    let target = RefCell::new(None);
    proptest!(|(packet in inners(), changes in changes(2), sound: bool)| {
        let bench = &mut *bench.borrow_mut();
        let Bench { far, kept, .. } = &mut *bench;
        let target: &mut Option<FarFlow> = &mut target.borrow_mut();
        if target.as_ref().is_none_or(|flow| far.node.flows.get_mut(flow.id).is_none_or(|flow| !flow.opened)) {
            drop(target.take());
            far.now += Duration::from_secs(1);
            far.turn();
            for id in far.node.flows.ids().into_iter().filter(|id| *id != kept.id) {
                let now = far.now;
                with_scratch(|scratch| far.node.reset_flow(id, &mut scratch.work, now));
            }
            *target = Some(far.open("10.96.0.2:80"));
        }
        let mut packet = inner(packet, target.as_ref().expect("it was made"));
        change(&mut packet, &changes);
        packet.truncate(1900);
        if sound {
            repair(&mut packet);
        }
        let of_kept = |s: Segment<'_>| (s.from, s.to) == (SocketAddr::V4(kept.from), SocketAddr::V4(kept.to));
        prop_assume!(!Segment::read(&packet).is_some_and(of_kept));
        far.send_packet(&packet);
        bench.check();
    });
    finish(bench);
}
