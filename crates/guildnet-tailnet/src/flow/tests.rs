//! Two ends joined in memory: our flow, and a plain TCP listener behind another WireGuard tunnel. The link between them
//! loses and reorders, from a seed; time is virtual.

use std::{collections::VecDeque, task::Waker};

use rand::{Rng, SeedableRng, rngs::StdRng};
use ts_keys::NodeKeyPair;

use super::*;
use crate::{
    netmap::Key,
    state,
    wg::{MESSAGE, Opened, OwnKey, Tunnel},
};

const PORT: u16 = 443;
const WINDOW: usize = 1 << 18;

fn local() -> SocketAddr {
    "100.64.0.2:50000".parse().expect("an address")
}

fn remote() -> SocketAddr {
    SocketAddr::new("10.96.0.1".parse().expect("an address"), PORT)
}

/// The far end: a TCP listener on the target's address.
struct Far {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Far {
    fn new(listens: bool) -> Self {
        let mut packets = Packets::new();
        let mut port = Port { input: None, output: &mut packets };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut port, TcpInstant::ZERO);
        interface.update_ip_addrs(|addrs| addrs.push(IpCidr::new(remote().ip().into(), 32)).expect("room for one"));
        interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 0, 1)).expect("room for one");
        let buffer = || SocketBuffer::new(vec![0; WINDOW]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        if listens {
            socket.listen(PORT).expect("a free port");
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { interface, sockets, handle }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

/// Both ends and the link.
struct World {
    start: Instant,
    now: Instant,
    near: Tcp,
    far: Far,
    near_tunnel: Tunnel,
    far_tunnel: Tunnel,
    /// On the way to the far end and back.
    out: VecDeque<Vec<u8>>,
    back: VecDeque<Vec<u8>>,
    rng: StdRng,
    loss: f64,
    reorder: f64,
}

impl World {
    fn new(listens: bool, seed: u64, loss: f64, reorder: f64) -> Self {
        let start = Instant::now();
        let (a, b) = (NodeKeyPair::random(), NodeKeyPair::random());
        let (a_key, b_key): (Key, Key) = (state::public(&a), state::public(&b));
        let mut world = Self {
            start,
            now: start,
            near: Tcp::connect(local(), remote(), WINDOW, start, seed),
            far: Far::new(listens),
            near_tunnel: Tunnel::new(&OwnKey::new(&a), b_key, 1, start),
            far_tunnel: Tunnel::new(&OwnKey::new(&b), a_key, 2, start),
            out: VecDeque::new(),
            back: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            loss,
            reorder,
        };
        world.shake_hands();
        world
    }

    fn shake_hands(&mut self) {
        let (mut a, mut b) = ([0; 2048], [0; 2048]);
        let len = self.near_tunnel.begin(self.now, &mut a).expect("an initiation");
        assert_eq!(len, MESSAGE);
        let Opened::Reply(answer) = self.far_tunnel.open(self.now, &a[..len], &mut b) else { panic!("no answer") };
        let Opened::Reply(confirmation) = self.near_tunnel.open(self.now, answer, &mut a) else { panic!("refused") };
        assert!(self.near_tunnel.is_up());
        let mut c = [0; 2048];
        assert_eq!(self.far_tunnel.open(self.now, confirmation, &mut c), Opened::Empty);
        assert!(self.far_tunnel.is_up(), "the first data packet proves the session");
    }

    fn on_link(rng: &mut StdRng, queue: &mut VecDeque<Vec<u8>>, loss: f64, reorder: f64, datagram: Vec<u8>) {
        if rng.random_bool(loss) {
            return;
        }
        let at = if rng.random_bool(reorder) { rng.random_range(0..=queue.len()) } else { queue.len() };
        queue.insert(at, datagram);
    }

    /// One round trip's worth: both ends put out what they have, then take what has arrived; 5 ms pass.
    fn step(&mut self) {
        let (mut packets, mut sealed, mut plain) = (Packets::new(), [0; 2048], [0; 2048]);
        self.near.output(self.now, &mut packets);
        for packet in packets.iter() {
            let len = self.near_tunnel.seal(packet, &mut sealed).expect("a session");
            Self::on_link(&mut self.rng, &mut self.out, self.loss, self.reorder, sealed[..len].to_vec());
        }
        packets.clear();
        let clock = TcpInstant::from_micros(i64::try_from((self.now - self.start).as_micros()).expect("short"));
        for datagram in self.out.drain(..) {
            if let Opened::Packet(packet) = self.far_tunnel.open(self.now, &datagram, &mut plain) {
                let mut port = Port { input: Some(packet), output: &mut packets };
                self.far.interface.poll_ingress_single(clock, &mut port, &mut self.far.sockets);
            }
        }
        let mut port = Port { input: None, output: &mut packets };
        loop {
            let had = port.output.len();
            self.far.interface.poll_egress(clock, &mut port, &mut self.far.sockets);
            if port.output.len() == had {
                break;
            }
        }
        for packet in packets.iter() {
            let len = self.far_tunnel.seal(packet, &mut sealed).expect("a session");
            Self::on_link(&mut self.rng, &mut self.back, self.loss, self.reorder, sealed[..len].to_vec());
        }
        packets.clear();
        for datagram in self.back.drain(..) {
            if let Opened::Packet(packet) = self.near_tunnel.open(self.now, &datagram, &mut plain) {
                assert_eq!(parse(packet).map(|header| (header.from, header.to)), Some((remote(), local())));
                self.near.input(self.now, packet, &mut packets);
            }
        }
        for packet in packets.iter() {
            let len = self.near_tunnel.seal(packet, &mut sealed).expect("a session");
            Self::on_link(&mut self.rng, &mut self.out, self.loss, self.reorder, sealed[..len].to_vec());
        }
        self.now += Duration::from_millis(5);
    }

    fn step_until(&mut self, what: &str, done: impl Fn(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("not within 100 s: {what}");
    }

    fn read(&mut self, buf: &mut [u8]) -> Poll<io::Result<Read>> {
        self.near.poll_read(&mut Context::from_waker(Waker::noop()), buf)
    }

    fn write(&mut self, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.near.poll_write(&mut Context::from_waker(Waker::noop()), buf)
    }

    fn open(mut self) -> Self {
        self.step_until("open", |w| w.near.phase() == Phase::Open && w.far.socket().may_send());
        self
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).expect("below 251")).collect()
}

/// Sends the pattern both ways at once and checks it.
fn exchange(mut world: World, len: usize) {
    let sent = pattern(len);
    let (mut written, mut far_written) = (0, 0);
    let (mut got, mut far_got) = (Vec::new(), Vec::new());
    let mut buf = vec![0; 1 << 16];
    for _ in 0..200_000 {
        if written < len
            && let Poll::Ready(n) = world.write(&sent[written..])
        {
            written += n.expect("open");
        }
        if let Poll::Ready(read) = world.read(&mut buf) {
            got.extend_from_slice(&buf[..read.expect("open").bytes]);
        }
        let far = world.far.socket();
        if far_written < len && far.can_send() {
            far_written += far.send_slice(&sent[far_written..]).expect("open");
        }
        if far.can_recv() {
            let n = far.recv_slice(&mut buf).expect("open");
            far_got.extend_from_slice(&buf[..n]);
        }
        if got.len() == len && far_got.len() == len {
            break;
        }
        world.step();
    }
    assert_eq!((got.len(), far_got.len()), (len, len));
    assert!(got == sent && far_got == sent, "bytes were changed");
}

#[test]
fn bytes_arrive_in_order_on_a_clean_link() {
    exchange(World::new(true, 1, 0.0, 0.0).open(), 4 << 20);
}

#[test]
fn bytes_arrive_in_order_whatever_the_link_does() {
    for (seed, loss, reorder) in [(1, 0.01, 0.0), (2, 0.0, 0.2), (3, 0.03, 0.1), (4, 0.1, 0.05)] {
        exchange(World::new(true, seed, loss, reorder).open(), 256 << 10);
    }
}

#[test]
fn nothing_listens_is_a_refusal() {
    let mut world = World::new(false, 1, 0.0, 0.0);
    world.step_until("refused", |w| w.near.phase() == Phase::Closed(End::Refused));
    assert!(matches!(world.read(&mut [0; 8]), Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused));
}

#[test]
fn a_half_closed_flow_still_receives() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    world.near.shutdown();
    assert!(matches!(world.write(b"x"), Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe));
    world.step_until("far end sees the end", |w| !w.far.socket().may_recv());
    world.far.socket().send_slice(b"answer").expect("half open");
    world.step_until("answer", |w| w.near.socket().can_recv());
    let mut buf = [0; 16];
    assert!(matches!(world.read(&mut buf), Poll::Ready(Ok(Read { bytes: 6, .. }))));
    world.far.socket().close();
    world.step_until("end", |w| matches!(w.read(&mut [0; 8]), Poll::Ready(Ok(Read { bytes: 0, .. }))));
}

#[test]
fn a_reset_is_told_after_what_came_before_it() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    world.far.socket().send_slice(b"last").expect("open");
    world.step_until("last", |w| w.near.socket().can_recv());
    world.far.socket().abort();
    world.step_until("reset", |w| w.near.phase() == Phase::Closed(End::Reset));
    let mut buf = [0; 16];
    assert!(matches!(world.read(&mut buf), Poll::Ready(Ok(Read { bytes: 4, .. }))));
    assert!(matches!(world.read(&mut buf), Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset));
}

#[test]
fn leaving_closes_in_good_order() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    assert!(matches!(world.write(b"bye"), Poll::Ready(Ok(3))));
    world.near.detach();
    world.step_until("bye", |w| w.far.socket().recv_queue() == 3 && w.far.socket().state() == State::CloseWait);
    world.far.socket().close();
    world.step_until("closed", |w| matches!(w.near.phase(), Phase::Lingering | Phase::Closed(End::Finished)));
}

#[test]
fn leaving_data_unread_resets() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    world.far.socket().send_slice(b"unread").expect("open");
    world.step_until("unread", |w| w.near.socket().can_recv());
    world.near.detach();
    world.step_until("reset", |w| w.far.socket().state() == State::Closed);
}

#[test]
fn a_silent_far_end_is_found_out_by_keep_alives() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    world.loss = 1.0;
    world.step_until("silent", |w| w.near.phase() == Phase::Closed(End::Silent));
    assert!(world.now - world.start >= Duration::from_secs(60));
}

#[test]
fn an_idle_flow_lives_on() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    for _ in 0..30_000 {
        world.step();
    }
    assert_eq!(world.near.phase(), Phase::Open);
}

#[test]
fn a_full_window_holds_the_sender_back_and_opens_again() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    let data = pattern(3 * WINDOW);
    let mut sent = 0;
    for _ in 0..400 {
        if world.far.socket().can_send() && sent < data.len() {
            sent += world.far.socket().send_slice(&data[sent..]).expect("open");
        }
        world.step();
    }
    assert!(sent <= 2 * WINDOW, "at most both buffers are full");
    let mut got = Vec::new();
    let mut buf = vec![0; 5000];
    let mut told = 0;
    for _ in 0..20_000 {
        if let Poll::Ready(read) = world.read(&mut buf) {
            let read = read.expect("open");
            told += usize::from(read.window_grew);
            got.extend_from_slice(&buf[..read.bytes]);
        }
        if world.far.socket().can_send() && sent < data.len() {
            sent += world.far.socket().send_slice(&data[sent..]).expect("open");
        }
        if got.len() == data.len() {
            break;
        }
        world.step();
    }
    assert!(got == data);
    assert!(told > 0, "the task must learn that there is room again");
}

#[test]
fn headers_of_both_families_are_read() {
    let mut tcp = Tcp::connect(local(), remote(), 1 << 12, Instant::now(), 1);
    let mut packets = Packets::new();
    tcp.output(Instant::now(), &mut packets);
    let syn = parse(packets.iter().next().expect("a SYN")).expect("TCP");
    assert_eq!(syn, Header { from: local(), to: remote(), wants_answer: true });
    let (a, b) = ("[fd7a::1]:5".parse().expect("an address"), "[fd7a::2]:6".parse().expect("an address"));
    let mut tcp = Tcp::connect(a, b, 1 << 12, Instant::now(), 1);
    packets.clear();
    tcp.output(Instant::now(), &mut packets);
    assert_eq!(parse(packets.iter().next().expect("a SYN")), Some(Header { from: a, to: b, wants_answer: true }));
}

#[test]
fn what_is_no_whole_tcp_packet_is_none() {
    let mut tcp = Tcp::connect(local(), remote(), 1 << 12, Instant::now(), 1);
    let mut packets = Packets::new();
    tcp.output(Instant::now(), &mut packets);
    let syn = packets.iter().next().expect("a SYN").to_vec();
    for len in 0..40 {
        assert_eq!(parse(&syn[..len]), None, "cut at {len}");
    }
    let changed = |at: usize, value: u8| {
        let mut packet = syn.clone();
        packet[at] = value;
        parse(&packet)
    };
    assert_eq!(changed(9, 17), None, "UDP");
    assert_eq!(changed(6, 0x20), None, "more fragments follow");
    assert_eq!(changed(7, 1), None, "a later fragment");
    assert_eq!(changed(0, 0x55), None, "no IP");
}

#[test]
fn a_repeated_syn_is_the_same_one_at_once() {
    let now = Instant::now();
    let mut tcp = Tcp::connect(local(), remote(), 1 << 12, now, 7);
    let mut packets = Packets::new();
    let mut syn = |tcp: &mut Tcp| {
        packets.clear();
        tcp.output(now, &mut packets);
        packets.iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let first = syn(&mut tcp);
    assert_eq!((first.len(), syn(&mut tcp).len()), (1, 0));
    tcp.repeat_syn();
    assert_eq!(syn(&mut tcp), first);
}

#[test]
fn an_open_flow_is_not_begun_anew() {
    let mut world = World::new(true, 1, 0.0, 0.0).open();
    world.near.repeat_syn();
    assert_eq!(world.near.phase(), Phase::Open);
    assert!(matches!(world.write(b"x"), Poll::Ready(Ok(1))));
}

#[test]
fn a_flow_that_may_put_out_nothing_still_times_out() {
    let mut world = World::new(true, 7, 0.0, 0.0);
    let mut none = Packets::new();
    none.clear_to(0);
    for second in 0..=SILENCE_LIMIT.secs() {
        assert_eq!(world.near.phase(), Phase::Connecting, "after {second} s");
        world.near.output(world.now, &mut none);
        assert!(none.is_empty());
        world.now += Duration::from_secs(1);
    }
    assert_eq!(world.near.phase(), Phase::Closed(End::Silent));
}
