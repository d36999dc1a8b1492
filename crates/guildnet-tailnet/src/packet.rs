//! IP packets on their way out, many in one buffer, and the TCP segments in them: how they are read and written. Pure.
//!
//! Formats: RFC 791 and RFC 8200 (IP), RFC 9293 section 3.1 (TCP), RFC 7323 (window scale), RFC 2018 (SACK).

use std::net::{IpAddr, SocketAddr};

/// MTU inside the tunnel, bytes: what every Tailscale node uses (`net/tstun`, `DefaultTUNMTU`); with WireGuard's overhead
/// it passes any path of 1500 and IPv6's minimum minus nothing.
pub(crate) const MTU: usize = 1280;
/// Packets that a flow may put out in one go. They go to the kernel as one super-packet of equal segments, which must stay
/// below 64 KiB: 48 x 1312 = 62,976 bytes.
pub(crate) const BATCH: usize = 48;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const TCP: u8 = 6;
/// SACK blocks that fit into the 40 bytes of options, without timestamps.
pub(crate) const MAX_SACK: usize = 4;

/// IP packets, one after the other in one buffer.
pub(crate) struct Packets {
    buf: Box<[u8]>,
    ends: Vec<usize>,
    limit: usize,
    wants_answer: bool,
}

impl Packets {
    pub(crate) fn new() -> Self {
        // A zeroed allocation: pages that are never used cost nothing.
        let buf = vec![0; MTU * BATCH].into_boxed_slice();
        Self { buf, ends: Vec::with_capacity(BATCH), limit: BATCH, wants_answer: false }
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

    /// Whether an answer is due to one of them: it carries data, opens or closes.
    pub(crate) const fn wants_answer(&self) -> bool {
        self.wants_answer
    }

    /// One of them asks for an answer although it carries nothing.
    pub(crate) const fn expect_answer(&mut self) {
        self.wants_answer = true;
    }

    /// Empties it; it takes a whole batch again.
    pub(crate) fn clear(&mut self) {
        self.clear_to(BATCH);
    }

    /// Empties it; it takes as many packets as that, a batch at most.
    pub(crate) fn clear_to(&mut self, limit: usize) {
        self.limit = limit.min(BATCH);
        self.wants_answer = false;
        self.ends.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.buf[start..*end])
    }

    /// Adds a packet with this head and `len` bytes of data, which `fill` writes. Head and data must fit into the MTU, and
    /// there must be room.
    pub(crate) fn push(&mut self, head: &Head<'_>, len: usize, fill: impl FnOnce(&mut [u8])) {
        let start = self.ends.last().copied().unwrap_or(0);
        let end = start + head.len() + len;
        head.write(&mut self.buf[start..end], fill);
        self.ends.push(end);
        self.wants_answer |= len > 0 || head.flags.any(Flags::FIN | Flags::SYN);
    }
}

/// The flags of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;

    pub(crate) const fn new(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether one of these is set.
    pub(crate) const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// The options that a segment carries. The first three only count beside a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The largest segment that its sender takes, bytes.
    pub(crate) mss: Option<u16>,
    /// By how many bits its sender's windows are shifted.
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    /// What has arrived out of order, as sequence numbers; the first `blocks` count.
    sack: [(u32, u32); MAX_SACK],
    blocks: usize,
}

impl Options {
    /// Ranges that arrived out of order, first byte and first byte after.
    pub(crate) fn sack(&self) -> &[(u32, u32)] {
        &self.sack[..self.blocks]
    }

    /// Adds a range; what does not fit is left out.
    pub(crate) fn add_sack(&mut self, start: u32, end: u32) {
        if self.blocks < MAX_SACK {
            self.sack[self.blocks] = (start, end);
            self.blocks += 1;
        }
    }

    /// On the wire, padded to words.
    fn len(&self) -> usize {
        let syn = 4 * usize::from(self.mss.is_some()) + 4 * usize::from(self.window_scale.is_some());
        let sack = if self.blocks > 0 { 4 + 8 * self.blocks } else { 0 };
        syn + 4 * usize::from(self.sack_permitted) + sack
    }

    fn write(&self, out: &mut [u8]) {
        const NOP: u8 = 1;
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[2, 4, high, low]);
        }
        if let Some(shift) = self.window_scale {
            put(&[NOP, 3, 3, shift]);
        }
        if self.sack_permitted {
            put(&[NOP, NOP, 4, 2]);
        }
        if self.blocks > 0 {
            let len = u8::try_from(2 + 8 * self.blocks).expect("at most four blocks");
            put(&[NOP, NOP, 5, len]);
            for (start, end) in self.sack() {
                put(&start.to_be_bytes());
                put(&end.to_be_bytes());
            }
        }
    }

    fn read(mut from: &[u8]) -> Self {
        let mut options = Self::default();
        loop {
            match *from {
                [] | [0, ..] => return options,
                [1, ref rest @ ..] => from = rest,
                [kind, len, ..] if len >= 2 && usize::from(len) <= from.len() => {
                    let (option, rest) = from.split_at(usize::from(len));
                    match (kind, &option[2..]) {
                        (2, &[high, low]) => options.mss = Some(u16::from_be_bytes([high, low])),
                        (3, &[shift]) => options.window_scale = Some(shift),
                        (4, []) => options.sack_permitted = true,
                        (5, blocks) => {
                            for block in blocks.chunks_exact(8) {
                                let number = |at: usize| {
                                    u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
                                };
                                options.add_sack(number(0), number(4));
                            }
                        }
                        _ => {}
                    }
                    from = rest;
                }
                // Malformed: what was understood so far counts.
                _ => return options,
            }
        }
    }
}

/// What a segment to be sent says, apart from its data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// Both of one family.
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) seq: u32,
    /// Nothing without the ACK flag.
    pub(crate) ack: u32,
    pub(crate) flags: Flags,
    /// As it goes onto the wire.
    pub(crate) window: u16,
    pub(crate) options: &'a Options,
}

impl Head<'_> {
    const fn ip_len(&self) -> usize {
        if self.from.is_ipv4() { V4_HEADER } else { V6_HEADER }
    }

    /// Bytes before the data.
    fn len(&self) -> usize {
        self.ip_len() + TCP_HEADER + self.options.len()
    }

    fn write(&self, out: &mut [u8], fill: impl FnOnce(&mut [u8])) {
        let total = out.len();
        let (ip, tcp) = out.split_at_mut(self.ip_len());
        let tcp_len = u16::try_from(tcp.len()).expect("below the MTU");
        let pseudo = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let len = u16::try_from(total).expect("below the MTU");
                ip[..2].copy_from_slice(&[0x45, 0]);
                ip[2..4].copy_from_slice(&len.to_be_bytes());
                // No identification, may not be fragmented, 64 hops, checksum below.
                ip[4..12].copy_from_slice(&[0, 0, 0x40, 0, 64, TCP, 0, 0]);
                ip[12..16].copy_from_slice(&from.octets());
                ip[16..20].copy_from_slice(&to.octets());
                let check = checksum(sum(ip));
                ip[10..12].copy_from_slice(&check);
                sum(&ip[12..20])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                ip[4..6].copy_from_slice(&tcp_len.to_be_bytes());
                ip[6..8].copy_from_slice(&[TCP, 64]);
                ip[8..24].copy_from_slice(&from.octets());
                ip[24..40].copy_from_slice(&to.octets());
                sum(&ip[8..40])
            }
            _ => unreachable!("both ends of a flow are of one family"),
        };
        let data_at = TCP_HEADER + self.options.len();
        tcp[..2].copy_from_slice(&self.from.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = u8::try_from(data_at / 4).expect("at most 15 words") << 4;
        tcp[13] = self.flags.0;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[16..20].fill(0);
        self.options.write(&mut tcp[TCP_HEADER..data_at]);
        fill(&mut tcp[data_at..]);
        let check = checksum(pseudo + sum_of_kind(tcp_len) + sum(tcp));
        tcp[16..18].copy_from_slice(&check);
    }
}

/// A TCP segment in a received IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: Flags,
    /// As it came off the wire.
    pub(crate) window: u16,
    pub(crate) options: Options,
    pub(crate) data: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads an IP packet. `None` if it is no whole, unfragmented TCP packet, or its checksum is wrong.
    pub(crate) fn read(packet: &'a [u8]) -> Option<Self> {
        let (from, to, tcp, pseudo): (IpAddr, IpAddr, &[u8], u64) = match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<V4_HEADER>()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                if header[9] != TCP || fragment != 0 {
                    return None;
                }
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let (from, to) = (*header[12..].first_chunk::<4>()?, *header[16..].first_chunk::<4>()?);
                let tcp = packet.get(usize::from(header[0] & 0xf) * 4..total)?;
                (from.into(), to.into(), tcp, sum(&header[12..20]))
            }
            6 => {
                let header = packet.first_chunk::<V6_HEADER>()?;
                if header[6] != TCP {
                    return None;
                }
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let (from, to) = (*header[8..].first_chunk::<16>()?, *header[24..].first_chunk::<16>()?);
                (from.into(), to.into(), packet.get(V6_HEADER..V6_HEADER + length)?, sum(&header[8..40]))
            }
            _ => return None,
        };
        let head = tcp.first_chunk::<TCP_HEADER>()?;
        let data_at = usize::from(head[12] >> 4) * 4;
        if data_at < TCP_HEADER {
            return None;
        }
        let (options, data) = (tcp.get(TCP_HEADER..data_at)?, tcp.get(data_at..)?);
        if checksum(pseudo + sum_of_kind(u16::try_from(tcp.len()).ok()?) + sum(tcp)) != [0, 0] {
            return None;
        }
        let short = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Some(Self {
            from: SocketAddr::new(from, short(0)),
            to: SocketAddr::new(to, short(2)),
            seq: long(4),
            ack: long(8),
            flags: Flags(head[13]),
            window: short(14),
            options: Options::read(options),
            data,
        })
    }
}

/// The sum of 16-bit words in the machine's order (RFC 1071: the order does not matter as long as it is the same for all).
/// Only the last part of what is summed may have an odd length.
fn sum(bytes: &[u8]) -> u64 {
    let word = |w: &[u8]| u64::from(u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    // Side by side, so that the compiler adds many words with one instruction.
    let (lanes, rest) = bytes.as_chunks::<32>();
    let mut sums = [0; 8];
    for lane in lanes {
        for (sum, w) in sums.iter_mut().zip(lane.chunks_exact(4)) {
            *sum += word(w);
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sums.iter().sum::<u64>() + words.iter().map(|w| word(w)).sum::<u64>() + word(&last)
}

/// The part of the pseudo header that is no address.
fn sum_of_kind(tcp_len: u16) -> u64 {
    let [high, low] = tcp_len.to_be_bytes();
    sum(&[0, TCP, high, low])
}

/// What makes a sum all ones, as it goes onto the wire; zero for a sum that has it in.
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = u16::try_from(sum).expect("folded");
    (!sum).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addrs(v6: bool) -> (SocketAddr, SocketAddr) {
        let (a, b) = if v6 { ("[fd7a::1]:5", "[fd7a::2]:6") } else { ("100.64.0.2:50000", "10.96.0.1:443") };
        (a.parse().expect("an address"), b.parse().expect("an address"))
    }

    fn one(head: &Head<'_>, data: &[u8]) -> Vec<u8> {
        let mut packets = Packets::new();
        packets.push(head, data.len(), |out| out.copy_from_slice(data));
        packets.iter().next().expect("one").to_vec()
    }

    fn syn(v6: bool) -> Vec<u8> {
        let (from, to) = addrs(v6);
        let options = Options { mss: Some(1240), window_scale: Some(8), sack_permitted: true, ..Options::default() };
        let flags = Flags::new(Flags::SYN);
        one(&Head { from, to, seq: 7, ack: 0, flags, window: 9, options: &options }, b"")
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            v6: bool, seq: u32, ack: u32, flags in 0_u8..0x20, window: u16, blocks in prop::collection::vec(any::<(u32, u32)>(), 0..4),
            data in prop::collection::vec(any::<u8>(), 0..1100),
        ) {
            let (from, to) = addrs(v6);
            let mut options = Options::default();
            for (start, end) in blocks {
                options.add_sack(start, end);
            }
            let head = Head { from, to, seq, ack, flags: Flags(flags), window, options: &options };
            let packet = one(&head, &data);
            let expected = Segment { from, to, seq, ack, flags: Flags(flags), window, options, data: &data };
            prop_assert_eq!(Segment::read(&packet), Some(expected));
        }

        #[test]
        fn a_changed_bit_is_noticed(v6: bool, at in 0_usize..1000, bit in 0_u8..8, data in prop::collection::vec(any::<u8>(), 1..64)) {
            let (from, to) = addrs(v6);
            let head = Head { from, to, seq: 1, ack: 2, flags: Flags(Flags::ACK), window: 3, options: &Options::default() };
            let mut packet = one(&head, &data);
            let start = head.ip_len();
            let at = start + at % (packet.len() - start);
            packet[at] ^= 1 << bit;
            prop_assert_eq!(Segment::read(&packet), None);
        }

        #[test]
        fn garbage_is_no_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Segment::read(&packet);
            let _ = Options::read(&packet);
        }
    }

    #[test]
    fn the_options_of_a_syn_are_read() {
        for v6 in [false, true] {
            let packet = syn(v6);
            let options = Segment::read(&packet).expect("TCP").options;
            assert_eq!((options.mss, options.window_scale, options.sack_permitted), (Some(1240), Some(8), true));
        }
    }

    #[test]
    fn options_that_end_early_count_as_far_as_they_go() {
        let options = Options::read(&[1, 2, 4, 5, 0xb4, 8, 10, 1]);
        assert_eq!(options.mss, Some(1460));
        assert_eq!(Options::read(&[2, 0, 1]), Options::default());
        assert_eq!(Options::read(&[2, 1, 1]), Options::default());
    }

    #[test]
    fn what_is_no_whole_tcp_packet_is_none() {
        let syn = syn(false);
        for len in 0..syn.len() {
            assert_eq!(Segment::read(&syn[..len]), None, "cut at {len}");
        }
        let changed = |at: usize, value: u8| {
            let mut packet = syn.clone();
            packet[at] = value;
            Segment::read(&packet).is_some()
        };
        assert!(!changed(9, 17), "UDP");
        assert!(!changed(6, 0x20), "more fragments follow");
        assert!(!changed(7, 1), "a later fragment");
        assert!(!changed(0, 0x55), "no IP");
        assert!(!changed(32, 0x40), "a header shorter than a header");
    }

    #[test]
    fn padding_after_the_packet_is_not_data() {
        let mut packet = syn(false);
        packet.extend_from_slice(&[0; 9]);
        assert_eq!(Segment::read(&packet).expect("TCP").data, b"");
    }
}
