//! The kernel's large packets: one frame from a device may stand for many packets of one flow. A link decides about packets,
//! so frames are taken apart here, and neighbours that leave together are put together again. Pure.
//!
//! Layout: the kernel's `struct virtio_net_hdr`, Ethernet, IPv4 or IPv6, TCP or UDP. Checksums of the payload are never
//! computed: the devices are told that the receiving kernel may do that, if anyone asks.

use std::ops::Range;

/// Length of `struct virtio_net_hdr` without the field for merged buffers.
pub(super) const VNET: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds the pseudo header's sum alone.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;

/// Fields of `struct virtio_net_hdr`.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bits of TCP's flags that belong to the last packet (FIN, PSH) and to the first (CWR).
const LAST_ONLY: u8 = 0x09;
const FIRST_ONLY: u8 = 0x80;

/// One frame of a device, header of the device included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    bytes: &'a [u8],
    shape: Shape,
}

/// How a frame is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Packets in it.
    pub(super) packets: usize,
    /// Where the transport's header begins, and where its payload does.
    transport: usize,
    payload: usize,
    /// Payload of each packet but the last.
    each: usize,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn ne16(bytes: &[u8], at: usize) -> usize {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]]).into()
}

impl Shape {
    /// Looks at a frame. What is not well formed counts as one packet and stays as it is.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::of_many(bytes).unwrap_or(Self { packets: 1, transport: 0, payload: 0, each: 0 })
    }

    fn of_many(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < VNET + ETHERNET + 20 || bytes[FLAGS] & NEEDS_CSUM == 0 {
            return None;
        }
        let transport = VNET + ne16(bytes, CSUM_START);
        let is_ipv4 = bytes[VNET + 12..VNET + ETHERNET] == IPV4;
        let (header, least) = match bytes[GSO_TYPE] {
            GSO_TCP4 | GSO_TCP6 => (usize::from(bytes.get(transport + 12)? >> 4) * 4, 20),
            GSO_UDP => (8, 8),
            _ => return None,
        };
        let payload = transport + header;
        let each = ne16(bytes, GSO_SIZE);
        let ip = if is_ipv4 { 20 } else { 40 };
        if each == 0 || payload >= bytes.len() || transport < VNET + ETHERNET + ip || header < least {
            return None;
        }
        Some(Self { packets: (bytes.len() - payload).div_ceil(each), transport, payload, each })
    }
}

impl<'a> Frame<'a> {
    pub(super) fn new(bytes: &'a [u8], shape: Shape) -> Self {
        Self { bytes, shape }
    }

    /// Bytes of one of its packets on a wire.
    pub(super) fn size(&self, packet: usize) -> usize {
        let Shape { payload, packets, .. } = self.shape;
        if packets == 1 {
            return self.bytes.len() - VNET;
        }
        payload - VNET + self.payload(packet..packet + 1).len()
    }

    fn payload(&self, packets: Range<usize>) -> &'a [u8] {
        let Shape { payload, each, .. } = self.shape;
        let end = (payload + packets.end * each).min(self.bytes.len());
        &self.bytes[payload + packets.start * each..end]
    }

    /// Some neighbours of its packets as a frame of their own: its headers are put into `head`, its payload is returned.
    pub(super) fn part(&self, packets: Range<usize>, head: &mut Vec<u8>) -> &'a [u8] {
        let Shape { packets: all, transport, payload, each } = self.shape;
        head.clear();
        if packets.len() == all {
            return self.bytes;
        }
        head.extend_from_slice(&self.bytes[..payload]);
        let body = self.payload(packets.clone());
        let length = payload - transport + body.len();
        if packets.len() == 1 {
            head[GSO_TYPE] = GSO_NONE;
            head[GSO_SIZE..GSO_SIZE + 2].fill(0);
        }
        let first = u32::try_from(packets.start).expect("a frame is below 64 KiB");
        let ip = VNET + ETHERNET;
        let (addresses, protocol) = if self.bytes[VNET + 12..ip] == IPV4 {
            patch_ipv4(&mut head[ip..transport], length, first);
            (ip + 12..ip + 20, self.bytes[ip + 9])
        } else {
            let inner = (transport - ip - 40 + length).to_be_bytes();
            head[ip + 4..ip + 6].copy_from_slice(&inner[inner.len() - 2..]);
            // With headers of extension the field names the first of them; what is in the transport is told by the device.
            (ip + 8..ip + 40, if self.bytes[GSO_TYPE] == GSO_UDP { UDP } else { TCP })
        };
        let pseudo = pseudo_sum(&self.bytes[addresses], protocol, length);
        let sum_at = if self.bytes[GSO_TYPE] == GSO_UDP {
            let field = u16::try_from(length).expect("a frame is below 64 KiB");
            head[transport + 4..transport + 6].copy_from_slice(&field.to_be_bytes());
            transport + 6
        } else {
            let number = u32::from_be_bytes(head[transport + 4..transport + 8].try_into().expect("four bytes"));
            let step = u32::try_from(each).expect("sixteen bits");
            let number = number.wrapping_add(first.wrapping_mul(step));
            head[transport + 4..transport + 8].copy_from_slice(&number.to_be_bytes());
            let flags = &mut head[transport + 13];
            if packets.end < all {
                *flags &= !LAST_ONLY;
            }
            if packets.start > 0 {
                *flags &= !FIRST_ONLY;
            }
            transport + 16
        };
        head[sum_at..sum_at + 2].copy_from_slice(&pseudo.to_be_bytes());
        body
    }
}

/// Length, identification and checksum of an IPv4 header, for what begins with the packet `first`.
fn patch_ipv4(header: &mut [u8], transport: usize, first: u32) {
    let length = u16::try_from(header.len() + transport).expect("a frame is below 64 KiB");
    header[2..4].copy_from_slice(&length.to_be_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "the identification wraps")]
    let id = be16(header, 4).wrapping_add(first as u16);
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].fill(0);
    let sum = !fold(sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded just now")]
    let folded = sum as u16;
    folded
}

/// The sum of the pseudo header, as the kernel leaves it in the checksum's field.
fn pseudo_sum(addresses: &[u8], protocol: u8, length: usize) -> u16 {
    fold(sum(addresses) + u32::from(protocol) + u32::try_from(length).expect("a frame is below 64 KiB"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A large packet as the kernel hands it out.
    fn large(gso: u8, is_ipv4: bool, payload: usize, each: u16) -> Vec<u8> {
        let transport = if gso == GSO_UDP { 8 } else { 32 };
        let ip = if is_ipv4 { 20 } else { 40 };
        let mut bytes = vec![NEEDS_CSUM, gso];
        let start = u16::try_from(ETHERNET + ip).expect("small");
        let sum_offset = if gso == GSO_UDP { 6 } else { 16 };
        for field in [start + transport, each, start, sum_offset] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend([2; 12]);
        bytes.extend(if is_ipv4 { IPV4 } else { [0x86, 0xdd] });
        let length = usize::from(transport) + payload;
        let mut header = vec![0; ip];
        if is_ipv4 {
            header[..10].copy_from_slice(&[
                0x45,
                0,
                0,
                0,
                0xff,
                0xfe,
                0x40,
                0,
                64,
                if gso == GSO_UDP { UDP } else { TCP },
            ]);
            header[12..].copy_from_slice(&[10, 99, 0, 1, 10, 99, 0, 2]);
            patch_ipv4(&mut header, length, 0);
        } else {
            header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, if gso == GSO_UDP { UDP } else { TCP }, 64]);
            header[4..6].copy_from_slice(&u16::try_from(length).expect("small").to_be_bytes());
            header[8..].fill(0xfd);
        }
        bytes.extend(header);
        let mut header = vec![0; transport.into()];
        if gso == GSO_UDP {
            header[4..6].copy_from_slice(&u16::try_from(length).expect("small").to_be_bytes());
        } else {
            // Sequence number about to wrap; data offset 8 words; CWR, ACK, PSH and FIN.
            header[4..8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
            (header[12], header[13]) = (0x80, 0x99);
        }
        bytes.extend(header);
        bytes.extend((0..payload).map(|n| u8::try_from(n % 251).expect("a byte")));
        bytes
    }

    fn part(bytes: &[u8], packets: Range<usize>) -> Vec<u8> {
        let mut head = Vec::new();
        let body = Frame::new(bytes, Shape::of(bytes)).part(packets, &mut head);
        [&head, body].concat()
    }

    #[test]
    fn a_single_packet_is_what_remains_of_a_large_one() {
        let bytes = large(GSO_TCP4, true, 2_500, 1_000);
        assert_eq!(Shape::of(&bytes).packets, 3);
        let frame = Frame::new(&bytes, Shape::of(&bytes));
        assert_eq!([0, 1, 2].map(|n| frame.size(n)), [1_066, 1_066, 566]);
        let last = part(&bytes, 2..3);
        let (ip, tcp) = (VNET + ETHERNET, VNET + ETHERNET + 20);
        assert_eq!((last[GSO_TYPE], ne16(&last, GSO_SIZE)), (GSO_NONE, 0));
        assert_eq!(
            (be16(&last, ip + 2), be16(&last, ip + 4)),
            (552, 0x0000),
            "length, and an identification that wrapped"
        );
        assert_eq!(fold(sum(&last[ip..tcp])), 0xffff, "the header's checksum");
        assert_eq!(last[tcp + 4..tcp + 8], 0xffff_ff00_u32.wrapping_add(2_000).to_be_bytes());
        assert_eq!(last[tcp + 13], 0x19, "ACK, PSH and FIN");
        assert_eq!(be16(&last, tcp + 16), pseudo_sum(&[10, 99, 0, 1, 10, 99, 0, 2], TCP, 532));
        assert_eq!(part(&bytes, 0..1)[tcp + 13], 0x90, "CWR and ACK");
        assert_eq!(part(&bytes, 0..3), bytes);
    }

    #[test]
    fn what_is_not_large_or_not_well_formed_stays_as_it_is() {
        let mut plain = large(GSO_TCP4, true, 100, 1_000);
        plain[GSO_TYPE] = GSO_NONE;
        let mut no_size = large(GSO_TCP6, false, 5_000, 0);
        no_size[GSO_SIZE] = 0;
        let mut outside = large(GSO_UDP, true, 5_000, 1_000);
        outside[CSUM_START..CSUM_START + 2].copy_from_slice(&u16::MAX.to_ne_bytes());
        for bytes in [plain, no_size, outside, vec![0; VNET], vec![1; 40]] {
            let shape = Shape::of(&bytes);
            assert_eq!((shape.packets, Frame::new(&bytes, shape).size(0)), (1, bytes.len() - VNET));
            assert_eq!(part(&bytes, 0..1), bytes);
        }
    }

    proptest! {
        #[test]
        fn parts_of_parts_are_parts(
            gso in proptest::sample::select(vec![GSO_TCP4, GSO_TCP6, GSO_UDP]),
            udp6: bool,
            payload in 2_100_usize..60_000,
            each in 200_u16..1_400,
            cuts in (0.0..1.0, 0.0..1.0),
        ) {
            let is_ipv4 = gso == GSO_TCP4 || (gso == GSO_UDP && !udp6);
            let bytes = large(gso, is_ipv4, payload, each);
            let all = Shape::of(&bytes).packets;
            prop_assert_eq!(all, payload.div_ceil(each.into()));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "shares of a small number")]
            let [from, to] = [cuts.0, cuts.1].map(|share: f64| (share * all as f64) as usize);
            let (from, to) = (from.min(to), from.max(to) + 1);
            let some = part(&bytes, from..to);
            let seen = Shape::of(&some).packets;
            prop_assert_eq!(seen, if to - from == 1 { 1 } else { to - from });
            // The same packet, whether taken from the whole or from a part of it.
            if seen > 1 {
                prop_assert_eq!(part(&some, seen - 1..seen), part(&bytes, to - 1..to));
                prop_assert_eq!(part(&some, 0..1), part(&bytes, from..from + 1));
            }
        }

        #[test]
        fn whatever_comes_is_no_reason_to_fall_over(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            bytes.resize(bytes.len().max(VNET), 1);
            let shape = Shape::of(&bytes);
            for packet in 0..shape.packets {
                part(&bytes, packet..packet + 1);
            }
        }
    }
}
