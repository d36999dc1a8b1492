//! A router of the tests, at the other end of a real socket: it answers pings and handshakes, and carries TCP by hand.

use std::{
    net::{SocketAddrV4, UdpSocket},
    task::{Context, Poll, Waker},
};

use guildnet_model::Target;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};
use ts_keys::{DiscoKeyPair, NodeKeyPair};

use super::*;
use crate::{
    data::{ingress::Source, peers::SlotId},
    disco::{self, MAX_MESSAGE, Message},
    state,
    wg::{Opened, Tunnel},
};

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// The node and its only router.
pub(super) struct Far {
    pub(super) node: Node,
    /// The router's place in the node.
    pub(super) peer: SlotId,
    pub(super) at: SocketAddr,
    pub(super) disco: Shared,
    pub(super) tunnel: Tunnel,
    pub(super) now: Instant,
    /// What the node has sent through the tunnel.
    pub(super) packets: VecDeque<Vec<u8>>,
    /// Pongs that have come.
    pub(super) pongs: usize,
    socket: UdpSocket,
    next_flow: u64,
}

/// An open flow of the node, from the side of its target.
pub(super) struct FarFlow {
    pub(super) id: u64,
    pub(super) stream: TailStream,
    /// The target.
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) seq: u32,
    pub(super) ack: u32,
}

impl Far {
    /// Both have found each other: the path is direct, the session is there.
    pub(super) async fn new() -> Self {
        let (mut node, now) = (node(), Instant::now());
        // Until the runtime knows that its socket may send.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (pair, disco) = (NodeKeyPair::random(), DiscoKeyPair::random());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        socket.set_nonblocking(true).expect("it is ours");
        let at = socket.local_addr().expect("it is bound");
        let key = state::public(&pair);
        let peer = Peer {
            node_key: key,
            disco_key: Some(Key(disco.public.to_crypto_box().to_bytes())),
            endpoints: vec![at],
            addresses: vec!["100.64.0.1".parse().expect("an address")],
            ..router(1)
        };
        know(&mut node, vec![peer], now);
        let peer = node.peers.by_node(key).expect("it has a slot");
        let us = Key(node.identity.disco().public.to_crypto_box().to_bytes());
        let tunnel = Tunnel::new(&OwnKey::new(&pair), state::public(&node.identity.node()), 2, now);
        let (packets, pongs, next_flow) = (VecDeque::new(), 0, 1);
        let mut far =
            Self { node, peer, at, disco: Shared::new(&disco, us), tunnel, now, packets, pongs, socket, next_flow };
        far.drain();
        far.shake_hands();
        far
    }

    /// A datagram of the router.
    pub(super) fn send(&mut self, datagram: &[u8]) {
        let (now, from) = (self.now, Source::Direct(self.at));
        with_scratch(|scratch| self.node.on_datagram(from, datagram, &mut scratch.work, now));
    }

    /// A packet through the tunnel.
    pub(super) fn send_packet(&mut self, packet: &[u8]) {
        let mut sealed = vec![0; packet.len() + 200];
        let len = self.tunnel.seal(packet, &mut sealed).expect("a session");
        self.send(&sealed[..len]);
    }

    /// The node's turn, and what comes of it.
    pub(super) fn turn(&mut self) {
        let now = self.now;
        with_scratch(|scratch| self.node.turn(scratch, now));
        self.drain();
    }

    /// A new session.
    pub(super) fn shake_hands(&mut self) {
        let mut out = [0; 2048];
        let len = self.tunnel.begin_again(self.now, &mut out).expect("an initiation");
        self.send(&out[..len]);
        self.drain();
        let is_up = self.node.peers.get(self.peer).is_some_and(|slot| slot.tunnel.is_up());
        assert!(self.tunnel.is_up() && is_up && !self.tunnel.is_trying());
    }

    /// Takes what the node has sent, and answers pings and handshakes.
    pub(super) fn drain(&mut self) {
        let (mut datagram, mut out) = (vec![0; 65_536], vec![0; 65_536]);
        while let Ok(len) = self.socket.recv(&mut datagram) {
            let datagram = &datagram[..len];
            if disco::is_disco(datagram) {
                match self.disco.open(datagram, &mut [0; MAX_MESSAGE]) {
                    Some(Message::Ping { id }) => {
                        let us = self.node.link.port();
                        let pong = self.disco.pong(id, (Ipv4Addr::LOCALHOST, us).into());
                        self.send(&pong);
                    }
                    Some(Message::Pong { .. }) => self.pongs += 1,
                    other => panic!("{other:?}"),
                }
                continue;
            }
            match self.tunnel.open(self.now, datagram, &mut out) {
                Opened::Packet(packet) => self.packets.push_back(packet.to_vec()),
                Opened::Reply(reply) => {
                    let reply = reply.to_vec();
                    self.send(&reply);
                }
                Opened::Empty | Opened::Cookie | Opened::Refused => {}
            }
        }
    }

    /// A dial of the node to a target, taken there.
    pub(super) fn open(&mut self, target: &str) -> FarFlow {
        let to: Target = target.parse().expect("a target");
        let SocketAddr::V4(from) = to.addr() else { panic!("IPv4") };
        let (answer, mut answered) = oneshot::channel();
        let id = self.next_flow;
        self.next_flow += 1;
        self.node.dial(Dial { to, flow: id, answer }, self.now);
        self.packets.clear();
        self.turn();
        let syn = self.packets.iter().find(|packet| packet[33] == SYN).expect("a SYN").clone();
        let word = |at: usize| u32::from_be_bytes(*syn[at..].first_chunk().expect("a header"));
        let to = SocketAddrV4::new(word(12).into(), u16::from_be_bytes([syn[20], syn[21]]));
        let (seq, ack) = (rand::random(), word(24).wrapping_add(1));
        self.send_packet(&tcp(from, to, seq, ack, SYN | ACK, &[]));
        self.turn();
        let stream = answered.try_recv().expect("an answer").expect("it is open");
        FarFlow { id, stream, from, to, seq: seq.wrapping_add(1), ack }
    }

    /// Some bytes each way, at once.
    pub(super) fn talk(&mut self, flow: &mut FarFlow) {
        let said = [1, 2, 3, 4];
        self.send_packet(&tcp(flow.from, flow.to, flow.seq, flow.ack, ACK | PSH, &said));
        flow.seq = flow.seq.wrapping_add(4);
        let mut heard = [0; 16];
        let mut buf = ReadBuf::new(&mut heard);
        let mut cx = Context::from_waker(Waker::noop());
        let read = std::pin::Pin::new(&mut flow.stream).poll_read(&mut cx, &mut buf);
        assert!(matches!(read, Poll::Ready(Ok(()))) && buf.filled() == said, "{read:?} {:?}", buf.filled());
        let written = std::pin::Pin::new(&mut flow.stream).poll_write(&mut cx, &said);
        assert!(matches!(written, Poll::Ready(Ok(4))), "{written:?}");
        self.packets.clear();
        self.turn();
        let of_it = |packet: &Vec<u8>| packet.ends_with(&said) && packet[20..24] == ports(flow.to, flow.from);
        assert!(self.packets.iter().any(of_it), "{:?}", self.packets);
        flow.ack = flow.ack.wrapping_add(4);
        self.send_packet(&tcp(flow.from, flow.to, flow.seq, flow.ack, ACK, &[]));
    }
}

fn ports(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 4] {
    let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
    [a, b, c, d]
}

/// A TCP packet with sound checksums and a large window.
pub(super) fn tcp(from: SocketAddrV4, to: SocketAddrV4, seq: u32, ack: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(ports(from, to));
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(data);
    repair(&mut packet);
    packet
}

/// Sets the length and the checksums of an IPv4 or IPv6 packet of TCP, as far as there is one.
pub(super) fn repair(packet: &mut [u8]) {
    let length = u16::try_from(packet.len()).expect("a packet");
    let (start, addresses) = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            (usize::from(packet[0] & 0xf) * 4, 12..20)
        }
        Some(6) if packet.len() >= 40 => {
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            (40, 8..40)
        }
        _ => return,
    };
    if packet[0] >> 4 == 4 && (20..=packet.len()).contains(&start) {
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..start]]);
        packet[10..12].copy_from_slice(&sum);
    }
    if packet.len() >= start + 20 && start >= 20 {
        let part = u16::try_from(packet.len() - start).expect("a packet").to_be_bytes();
        packet[start + 16..start + 18].fill(0);
        let sum = checksum(&[&packet[addresses], &[0, 6], &part, &packet[start..]]);
        packet[start + 16..start + 18].copy_from_slice(&sum);
    }
}

/// RFC 1071. All parts but the last have even lengths.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}
