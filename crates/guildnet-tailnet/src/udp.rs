//! The connector's UDP socket, in batches: many datagrams for one system call, both ways.
//!
//! The kernel joins received datagrams (GRO) and splits sent ones (GSO) where it can. What the datagrams are is not known
//! here. IPv4 only: a second socket for IPv6 belongs beside this one.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;

/// Receive and send buffer of the socket, bytes: four TCP windows. Many systems grant less (`net.core.rmem_max`).
const SOCKET_BUFFER: usize = 4 << 20;
/// Buffers for one receive call, each large enough for what the kernel may join.
const RECEIVE_BUFFERS: usize = 8;
/// The largest datagram, and the most that the kernel joins into one.
const BUFFER: usize = 1 << 16;
/// Addresses of this machine that are looked at. More would be bridges of containers.
const MAX_LOCAL: usize = 16;
/// What one send call may carry in all: the largest UDP payload, 65,507 bytes, less a little.
const SEND_LIMIT: usize = 65_000;

/// Opens a socket at a free port on all addresses.
///
/// # Errors
/// What the system says.
pub(crate) fn bind() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

/// The IPv4 addresses of interfaces that are up. Loopback only if there is nothing else: then all peers are on this machine.
pub(crate) fn interface_addresses() -> Vec<Ipv4Addr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "the machine's addresses can't be read");
            return Vec::new();
        }
    };
    let up = interfaces.filter(|interface| interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP));
    let all: Vec<Ipv4Addr> = up.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip())).collect();
    let mut others: Vec<Ipv4Addr> = all.iter().copied().filter(|ip| !ip.is_loopback()).take(MAX_LOCAL).collect();
    if others.is_empty() {
        others = all;
    }
    others
}

/// The address from which this machine would send to another one; `None` if it could not. Nothing is sent.
pub(crate) fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let socket = bind().ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

/// Buffers for receiving. One set serves all connectors of a thread.
pub(crate) struct Received {
    buffers: Vec<Box<[u8]>>,
    metas: [RecvMeta; RECEIVE_BUFFERS],
    count: usize,
}

impl Received {
    pub(crate) fn new() -> Self {
        let buffers = (0..RECEIVE_BUFFERS).map(|_| vec![0; BUFFER].into_boxed_slice()).collect();
        Self { buffers, metas: [RecvMeta::default(); RECEIVE_BUFFERS], count: 0 }
    }

    /// The datagrams of the last receive call.
    pub(crate) fn datagrams(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        self.buffers.iter_mut().zip(&self.metas).take(self.count).flat_map(|(buffer, meta)| {
            // A stride of zero would be an endless loop; an empty datagram has one.
            let stride = meta.stride.max(1);
            buffer[..meta.len].chunks_mut(stride).map(|datagram| (meta.addr, datagram))
        })
    }
}

/// Datagrams of one size to one address, the last of which may be shorter: what one send call takes.
pub(crate) struct Batch {
    buf: Box<[u8]>,
    used: usize,
    count: usize,
    segment: usize,
    to: Option<SocketAddr>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { buf: vec![0; BUFFER].into_boxed_slice(), used: 0, count: 0, segment: 0, to: None }
    }

    /// Whether a datagram of `len` bytes for `to` may be added.
    pub(crate) fn fits(&self, to: SocketAddr, len: usize, max_segments: usize) -> bool {
        let Some(addr) = self.to else { return true };
        let last_was_full = self.used == self.count * self.segment;
        addr == to && len <= self.segment && last_was_full && self.count < max_segments && self.used + len <= SEND_LIMIT
    }

    /// Room for the next datagram; write it at the start and tell by [`Batch::add`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.buf[self.used..]
    }

    /// Adds what was written to [`Batch::room`].
    pub(crate) fn add(&mut self, to: SocketAddr, len: usize) {
        if self.to.is_none() {
            (self.to, self.segment) = (Some(to), len);
        }
        self.used += len;
        self.count += 1;
    }

    fn clear(&mut self) {
        (self.used, self.count, self.segment, self.to) = (0, 0, 0, None);
    }
}

/// Batches that are kept while the kernel takes none: the one that it refused, and what a turn had gathered by then.
const MAX_BLOCKED: usize = 2;

/// What the kernel did not take yet.
struct Blocked {
    to: SocketAddr,
    segment: usize,
    data: Vec<u8>,
}

/// The socket.
pub(crate) struct Link {
    socket: tokio::net::UdpSocket,
    state: UdpSocketState,
    port: u16,
    /// In order.
    blocked: VecDeque<Blocked>,
    failed: u64,
}

impl Link {
    /// Takes a socket over. To be called on the thread that will use it.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        for set in [
            state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER),
            state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER),
        ] {
            if let Err(error) = set {
                tracing::debug!(%error, "the system's default socket buffer is used");
            }
        }
        let port = socket.local_addr()?.port();
        Ok(Self { socket: tokio::net::UdpSocket::from_std(socket)?, state, port, blocked: VecDeque::new(), failed: 0 })
    }

    /// The local port.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Datagrams that the system refused.
    pub(crate) const fn failed(&self) -> u64 {
        self.failed
    }

    /// Datagrams that one send call may carry.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Waits until there is something to receive.
    pub(crate) async fn readable(&self) {
        if self.socket.readable().await.is_err() {
            // Only when the runtime is shutting down.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the kernel takes what it had not taken; forever if there is nothing.
    pub(crate) async fn writable(&self) {
        if self.blocked.is_empty() || self.socket.writable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Receives what is there, without waiting. Returns whether anything was.
    pub(crate) fn receive(&self, into: &mut Received) -> bool {
        into.count = 0;
        let mut buffers = into.buffers.iter_mut();
        let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().expect("one for each slice")));
        let received = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv((&self.socket).into(), &mut slices, &mut into.metas));
        into.count = received.unwrap_or(0);
        into.count > 0
    }

    /// Whether the kernel has not yet taken an earlier batch: nothing more may be encrypted until it has.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Sends a batch and empties it. What the kernel does not take is kept, see [`Link::is_blocked`].
    pub(crate) fn send(&mut self, batch: &mut Batch) {
        if let Some(to) = batch.to
            // What is kept goes first.
            && (self.is_blocked() || self.try_send(to, batch.segment, &batch.buf[..batch.used]).is_err())
        {
            if self.blocked.len() < MAX_BLOCKED {
                let (segment, data) = (batch.segment, batch.buf[..batch.used].to_vec());
                self.blocked.push_back(Blocked { to, segment, data });
            } else {
                self.failed += batch.count as u64;
            }
        }
        batch.clear();
    }

    /// Tries again to send what the kernel had not taken.
    pub(crate) fn retry(&mut self) {
        while let Some(blocked) = self.blocked.pop_front() {
            if self.try_send(blocked.to, blocked.segment, &blocked.data).is_err() {
                self.blocked.push_front(blocked);
                break;
            }
        }
    }

    /// Sends one datagram, or drops it if the kernel does not take it now.
    pub(crate) fn send_one(&mut self, to: SocketAddr, datagram: &[u8]) {
        if self.try_send(to, datagram.len(), datagram).is_err() {
            self.failed += 1;
        }
    }

    /// Sends datagrams of `segment` bytes. Anything but "try again" counts as lost, as on any network.
    fn try_send(&mut self, to: SocketAddr, segment: usize, data: &[u8]) -> Result<(), WouldBlock> {
        let once = |segment: usize, data: &[u8]| {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: data,
                segment_size: (data.len() > segment).then_some(segment),
                src_ip: None,
            };
            self.socket.try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
        };
        match once(segment, data) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(WouldBlock),
            Err(_) if data.len() > segment => {
                // This device can't split: it was noted by the socket's state. This time the parts go one by one.
                let lost = data.chunks(segment).filter(|part| once(segment, part).is_err()).count();
                self.failed += lost as u64;
                Ok(())
            }
            Err(error) => {
                tracing::trace!(%error, "a datagram was refused");
                self.failed += 1;
                Ok(())
            }
        }
    }
}

/// The kernel's buffer is full.
struct WouldBlock;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_kernel_refused_and_what_was_gathered_meanwhile_go_out_in_order() {
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let to = far.local_addr().expect("bound");
        let mut link = Link::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket")).expect("a link");
        link.blocked.push_back(Blocked { to, segment: 1, data: b"1".to_vec() });
        let mut batch = Batch::new();
        let mut send = |link: &mut Link, word: &[u8]| {
            batch.room()[..word.len()].copy_from_slice(word);
            batch.add(to, word.len());
            link.send(&mut batch);
        };
        send(&mut link, b"2");
        assert_eq!((link.blocked.len(), link.failed()), (2, 0));
        send(&mut link, b"lost");
        assert_eq!((link.blocked.len(), link.failed()), (2, 1));
        link.writable().await;
        link.retry();
        assert!(!link.is_blocked());
        let mut heard = [0; 8];
        for word in [b"1", b"2"] {
            let len = far.recv(&mut heard).expect("heard");
            assert_eq!(&heard[..len], word);
        }
    }
}
