//! One TCP flow through the tailnet: a TCP state machine of its own, fed with IP packets. Pure: packets and time come in,
//! packets come out.
//!
//! Every flow has its own one-socket interface, so its cost does not depend on how many others there are; `data.rs` finds
//! the flow of a packet by its addresses and ports. The application's side is `stream.rs`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{CongestionControl, Socket, SocketBuffer, State},
    time::{Duration as TcpDuration, Instant as TcpInstant},
    wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv6Address},
};

/// MTU inside the tunnel, bytes: what every Tailscale node uses (`net/tstun`, `DefaultTUNMTU`); with WireGuard's overhead
/// it passes any path of 1500 and IPv6's minimum minus nothing.
pub(crate) const MTU: usize = 1280;
/// Packets that a flow may put out in one go. They go to the kernel as one super-packet of equal segments, which must stay
/// below 64 KiB: 48 x 1312 = 62,976 bytes.
pub(crate) const BATCH: usize = 48;

/// A far end that answers nothing at all for so long is gone, be it to data or to a keep-alive. Longer than a router's
/// restart (30 s seen), so that flows may survive one.
const SILENCE_LIMIT: TcpDuration = TcpDuration::from_secs(60);
/// An idle flow asks whether its far end is still there. Less than half the silence limit, so that one lost probe is no
/// verdict, and below the usual 120 s of connection tracking on the way.
const KEEP_ALIVE: TcpDuration = TcpDuration::from_secs(25);

/// IP packets, one after the other in one buffer.
pub(crate) struct Packets {
    buf: Box<[u8]>,
    ends: Vec<usize>,
    limit: usize,
}

impl Packets {
    pub(crate) fn new() -> Self {
        // A zeroed allocation: pages that are never used cost nothing.
        Self { buf: vec![0; MTU * BATCH].into_boxed_slice(), ends: Vec::with_capacity(BATCH), limit: BATCH }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.ends.len() >= self.limit
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empties it; it takes a whole batch again.
    pub(crate) fn clear(&mut self) {
        self.clear_to(BATCH);
    }

    /// Empties it; it takes as many packets as that, a batch at most.
    pub(crate) fn clear_to(&mut self, limit: usize) {
        self.limit = limit.min(BATCH);
        self.ends.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.buf[start..*end])
    }

    fn push<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.ends.last().copied().unwrap_or(0);
        let end = start + len;
        self.ends.push(end);
        fill(&mut self.buf[start..end])
    }
}

/// The link under a flow's interface: at most one packet in, a batch of packets out.
struct Port<'a> {
    input: Option<&'a [u8]>,
    output: &'a mut Packets,
}

struct In<'a>(&'a [u8]);

struct Out<'a>(&'a mut Packets);

impl RxToken for In<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.push(len, f)
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = In<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Out<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: TcpInstant) -> Option<(In<'_>, Out<'_>)> {
        // Without room for the answer the packet is not taken; TCP repeats it.
        if self.output.is_full() {
            return None;
        }
        self.input.take().map(|packet| (In(packet), Out(self.output)))
    }

    fn transmit(&mut self, _now: TcpInstant) -> Option<Out<'_>> {
        (!self.output.is_full()).then_some(Out(self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) bytes: usize,
    /// Whether the far end should be told that there is room again.
    pub(crate) window_grew: bool,
}

/// The TCP state of one flow.
pub(crate) struct Tcp {
    local: SocketAddr,
    remote: SocketAddr,
    window: usize,
    seed: u64,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    start: Instant,
    opened: bool,
    end: Option<End>,
    detached: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Tcp {
    /// A flow from `local` to `remote`, which must be of one family. Its SYN is put out by the first [`Tcp::output`].
    ///
    /// `start` is the zero of its clock; `seed` must be random, sequence numbers come from it.
    pub(crate) fn connect(local: SocketAddr, remote: SocketAddr, window: usize, start: Instant, seed: u64) -> Self {
        let (interface, sockets, handle) = Self::begin(local, remote, window, seed);
        let (opened, end, detached, reader, writer) = (false, None, false, None, None);
        Self { local, remote, window, seed, interface, sockets, handle, start, opened, end, detached, reader, writer }
    }

    /// A socket that is about to send its SYN; the same SYN for the same arguments.
    fn begin(
        local: SocketAddr,
        remote: SocketAddr,
        window: usize,
        seed: u64,
    ) -> (Interface, SocketSet<'static>, SocketHandle) {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut nothing = Packets { buf: Box::default(), ends: Vec::new(), limit: 0 };
        let mut interface = Interface::new(config, &mut Port { input: None, output: &mut nothing }, TcpInstant::ZERO);
        let prefix_len = if local.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(local.ip().into(), prefix_len)).expect("an empty list has room for one");
        });
        // The next hop's address is never used on a link without neighbours, but a route must name one.
        let routed = match local.ip() {
            IpAddr::V4(_) => interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(100, 100, 100, 100)),
            IpAddr::V6(_) => {
                interface.routes_mut().add_default_ipv6_route(Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))
            }
        };
        routed.expect("an empty table has room for one");
        let buffer = || SocketBuffer::new(vec![0; window]);
        let mut socket = Socket::new(buffer(), buffer());
        // Answers are sent after each batch anyway: waiting for more only adds latency.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Cubic);
        socket.set_timeout(Some(SILENCE_LIMIT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket
            .connect(interface.context(), endpoint(remote), endpoint(local))
            .expect("a new socket with given addresses and ports can connect");
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        (interface, sockets, handle)
    }

    /// Puts the SYN out again at the next [`Tcp::output`] if it was not answered yet: what was sent before is known to be
    /// lost, and waiting for the timer would only cost a second or more.
    pub(crate) fn repeat_syn(&mut self) {
        if self.phase() == Phase::Connecting && self.state() == State::SynSent {
            (self.interface, self.sockets, self.handle) = Self::begin(self.local, self.remote, self.window, self.seed);
        }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    fn clock(&self, now: Instant) -> TcpInstant {
        let micros = now.saturating_duration_since(self.start).as_micros();
        TcpInstant::from_micros(i64::try_from(micros).expect("no process runs for 290,000 years"))
    }

    /// Takes one IP packet of this flow; answers that can't wait are added to `out`.
    pub(crate) fn input(&mut self, now: Instant, packet: &[u8], out: &mut Packets) {
        let before = self.state();
        let clock = self.clock(now);
        let mut port = Port { input: Some(packet), output: out };
        self.interface.poll_ingress_single(clock, &mut port, &mut self.sockets);
        let after = self.state();
        if matches!(after, State::Established | State::CloseWait) {
            self.opened = true;
        }
        if after == State::Closed && before != State::Closed {
            self.end.get_or_insert(match before {
                State::SynSent | State::SynReceived => End::Refused,
                State::LastAck | State::Closing | State::TimeWait => End::Finished,
                _ => End::Reset,
            });
        }
        // Nobody will ever read it: say so, as every TCP does.
        if self.detached && self.socket().recv_queue() > 0 {
            self.abort();
        }
    }

    /// Adds what there is to send to `out`, as much as there is room for. Returns when the next call is due: now or
    /// earlier if there is more, `None` if nothing is.
    pub(crate) fn output(&mut self, now: Instant, out: &mut Packets) -> Option<Instant> {
        let before = self.state();
        let clock = self.clock(now);
        loop {
            let had = out.len();
            let mut port = Port { input: None, output: out };
            self.interface.poll_egress(clock, &mut port, &mut self.sockets);
            if out.len() == had {
                break;
            }
        }
        if self.state() == State::Closed && before != State::Closed {
            self.end.get_or_insert(if before == State::TimeWait { End::Finished } else { End::Silent });
        }
        let due = self.interface.poll_at(clock, &self.sockets)?;
        // In order: what is due now, but could not be put out, has to wait for room.
        let micros = u64::try_from(due.total_micros()).unwrap_or(0);
        Some(self.start + Duration::from_micros(micros))
    }

    /// Where the flow is in its life.
    pub(crate) fn phase(&self) -> Phase {
        match (self.end, self.state()) {
            (Some(end), _) => Phase::Closed(end),
            (None, State::Closed) => Phase::Closed(End::Finished),
            (None, State::TimeWait) => Phase::Lingering,
            (None, _) if self.opened => Phase::Open,
            (None, _) => Phase::Connecting,
        }
    }

    /// The application's tasks that can go on now.
    pub(crate) fn wakers(&mut self) -> [Option<Waker>; 2] {
        let closed = self.end.is_some();
        let socket = self.socket();
        let read = closed || socket.can_recv() || !socket.may_recv();
        let write = closed || socket.can_send() || !socket.may_send();
        [if read { self.reader.take() } else { None }, if write { self.writer.take() } else { None }]
    }

    /// Gives the flow up: the far end is told by a reset at the next [`Tcp::output`].
    pub(crate) fn abort(&mut self) {
        self.socket().abort();
        self.end.get_or_insert(End::Reset);
    }

    /// The application is gone: closes in good order, or by a reset if it left data unread.
    pub(crate) fn detach(&mut self) {
        self.detached = true;
        (self.reader, self.writer) = (None, None);
        if self.socket().recv_queue() > 0 { self.abort() } else { self.socket().close() }
    }

    /// Whether something that was sent is not acknowledged, or nothing was heard of the SYN.
    pub(crate) fn is_owed(&mut self) -> bool {
        self.socket().send_queue() > 0
    }

    /// Whether the application is gone.
    pub(crate) const fn is_detached(&self) -> bool {
        self.detached
    }

    /// Closes the sending half once all is sent.
    pub(crate) fn shutdown(&mut self) {
        self.socket().close();
    }

    fn failure(&self) -> Option<io::Error> {
        match self.end? {
            End::Finished => None,
            End::Refused => Some(io::ErrorKind::ConnectionRefused.into()),
            End::Reset => Some(io::ErrorKind::ConnectionReset.into()),
            End::Silent => Some(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Reads what was received; nothing at the end of the stream. What came before a failure is delivered first.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<Read>> {
        let socket = self.socket();
        if socket.can_recv() {
            // The far end saw the window shrink to what a quarter full leaves; below that, acknowledgements tell it.
            let window_grew = socket.recv_queue() >= socket.recv_capacity() / 4;
            let bytes = socket.recv_slice(buf).expect("there is something to receive");
            return Poll::Ready(Ok(Read { bytes, window_grew }));
        }
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        if !self.socket().may_recv() && self.opened {
            return Poll::Ready(Ok(Read { bytes: 0, window_grew: false }));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes bytes to send, as many as there is room for.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        let socket = self.socket();
        if !socket.may_send() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() || socket.can_send() {
            return Poll::Ready(Ok(socket.send_slice(buf).expect("the socket may send")));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn endpoint(addr: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(addr.ip()), addr.port())
}

/// Addresses, ports and kind of a TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// Whether an answer is due: it carries data, opens or closes.
    pub(crate) wants_answer: bool,
}

/// Reads the headers of an IP packet; `None` if it is no whole, unfragmented TCP packet.
pub(crate) fn parse(packet: &[u8]) -> Option<Header> {
    const TCP: u8 = 6;
    /// FIN or SYN: both are answered although they carry nothing.
    const FIN_OR_SYN: u8 = 0b11;
    let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<20>()?;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
            if header[9] != TCP || fragment != 0 {
                return None;
            }
            let (from, to) = (*header[12..].first_chunk::<4>()?, *header[16..].first_chunk::<4>()?);
            (from.into(), to.into(), packet.get(usize::from(header[0] & 0xf) * 4..)?)
        }
        6 => {
            let header = packet.first_chunk::<40>()?;
            if header[6] != TCP {
                return None;
            }
            let (from, to) = (*header[8..].first_chunk::<16>()?, *header[24..].first_chunk::<16>()?);
            (from.into(), to.into(), &packet[40..])
        }
        _ => return None,
    };
    let head = tcp.first_chunk::<20>()?;
    let port = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let wants_answer = head[13] & FIN_OR_SYN != 0 || tcp.len() > usize::from(head[12] >> 4) * 4;
    Some(Header { from: SocketAddr::new(from, port(0)), to: SocketAddr::new(to, port(2)), wants_answer })
}

#[cfg(test)]
mod tests;
