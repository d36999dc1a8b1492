//! smoltcp as the far end: a TCP that was not written here.

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::Instant as TcpInstant,
    wire::{HardwareAddress, IpCidr, Ipv4Address},
};

use super::*;

pub(super) type World = super::World<Smol>;

/// The link under it: packets in, packets out.
#[derive(Default)]
struct Port {
    input: Option<Vec<u8>>,
    output: Vec<Vec<u8>>,
}

struct In(Vec<u8>);

struct Out<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push(vec![0; len]);
        f(self.0.last_mut().expect("just added"))
    }
}

impl Device for Port {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _now: TcpInstant) -> Option<(In, Out<'_>)> {
        self.input.take().map(|packet| (In(packet), Out(&mut self.output)))
    }

    fn transmit(&mut self, _now: TcpInstant) -> Option<Out<'_>> {
        Some(Out(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// A TCP listener on the far end's address, or nothing that listens.
pub(super) struct Smol {
    start: Instant,
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Smol {
    pub(super) fn new(listens: bool) -> Self {
        let mut port = Port::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut port, TcpInstant::ZERO);
        interface.update_ip_addrs(|addrs| addrs.push(IpCidr::new(far_addr().ip().into(), 32)).expect("room for one"));
        interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 0, 1)).expect("room for one");
        let buffer = || SocketBuffer::new(vec![0; 1 << 18]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        if listens {
            socket.listen(far_addr().port()).expect("a free port");
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { start: Instant::now(), port, interface, sockets, handle }
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn clock(&self, now: Instant) -> TcpInstant {
        let micros = now.saturating_duration_since(self.start).as_micros();
        TcpInstant::from_micros(i64::try_from(micros).expect("short"))
    }
}

impl Side for Smol {
    fn take(&mut self, now: Instant, packet: &[u8]) {
        self.port.input = Some(packet.to_vec());
        let clock = self.clock(now);
        self.interface.poll_ingress_single(clock, &mut self.port, &mut self.sockets);
    }

    fn put(&mut self, now: Instant, out: &mut Packets) -> Option<Instant> {
        let clock = self.clock(now);
        loop {
            let had = self.port.output.len();
            self.interface.poll_egress(clock, &mut self.port, &mut self.sockets);
            if self.port.output.len() == had {
                break;
            }
        }
        let put = self.port.output.len().min(crate::packet::BATCH);
        for packet in self.port.output.drain(..put) {
            // Read and written again: what it says, in our words.
            let Segment { from, to, seq, ack, flags, window, options, data } = Segment::read(&packet).expect("TCP");
            let head = Head { from, to, seq, ack, flags, window, options: &options };
            out.push(&head, data.len(), |room| room.copy_from_slice(data));
        }
        let due = self.interface.poll_at(clock, &self.sockets)?;
        Some(self.start + Duration::from_micros(u64::try_from(due.total_micros()).unwrap_or(0)))
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let socket = self.socket();
        if socket.can_send() { socket.send_slice(bytes).expect("open") } else { 0 }
    }

    fn read(&mut self, _now: Instant) -> Option<Vec<u8>> {
        let socket = self.socket();
        if !socket.can_recv() {
            return None;
        }
        let mut data = vec![0; socket.recv_queue()];
        let len = socket.recv_slice(&mut data).expect("something");
        data.truncate(len);
        Some(data)
    }

    fn close(&mut self) {
        self.socket().close();
    }

    fn is_at_end(&mut self, _now: Instant) -> bool {
        let socket = self.socket();
        !socket.may_recv() && socket.recv_queue() == 0
    }
}

fn world(listens: bool) -> World {
    World::new(Smol::new(listens), 1, Way::default(), Way::default())
}

#[test]
fn nothing_listens_is_a_refusal() {
    let mut world = world(false);
    world.run_until("refused", 1000 * MS, |w| w.near.tcp().phase() == Phase::Closed(End::Refused));
    let read = world.near.tcp().poll_read(&mut Context::from_waker(Waker::noop()), world.now);
    assert!(matches!(read, Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused));
}

#[test]
fn both_understand_each_other_to_the_end() {
    let mut world = world(true).open();
    world.exchange(1 << 20, 1 << 20, 60_000 * MS);
    world.near.close();
    world.run(100 * MS);
    assert!(world.far.is_at_end(world.now));
    assert_eq!(world.far.socket().state(), State::CloseWait);
    assert_eq!(world.far.write(b"still"), 5);
    world.run_until("still", 1000 * MS, |w| w.near.read(w.now).is_some_and(|data| data == b"still"));
    world.far.close();
    world.run_until("end", 1000 * MS, |w| w.near.is_at_end(w.now));
    world.run(100 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Lingering);
    assert_eq!(world.far.socket().state(), State::Closed);
}

#[test]
fn it_may_close_first() {
    let mut world = world(true).open();
    world.far.write(b"all");
    world.far.close();
    world.run(100 * MS);
    assert_eq!(world.near.read(world.now).as_deref(), Some(&b"all"[..]));
    assert!(world.near.is_at_end(world.now));
    world.near.close();
    world.run(100 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Closed(End::Finished));
}

#[test]
fn its_keep_alives_are_answered_and_ours_are() {
    let mut world = world(true).open();
    world.far.socket().set_keep_alive(Some(smoltcp::time::Duration::from_secs(10)));
    world.far.socket().set_timeout(Some(smoltcp::time::Duration::from_secs(30)));
    world.run(600_000 * MS);
    assert_eq!((world.near.tcp().phase(), world.far.socket().state()), (Phase::Open, State::Established));
}

#[test]
fn its_full_window_is_waited_for() {
    let mut world = world(true).open();
    let data = pattern(1 << 20, 251);
    let mut sent = 0;
    for _ in 0..1500 {
        sent += world.near.write(&data[sent..]);
        world.run(20 * MS);
    }
    let mut got = Vec::new();
    let end = world.now + 60_000 * MS;
    while got.len() < data.len() {
        sent += world.near.write(&data[sent..]);
        if let Some(chunk) = world.far.read(world.now) {
            got.extend_from_slice(&chunk);
        }
        assert!(got.len() == data.len() || world.step(end));
    }
    assert!(got == data);
}
