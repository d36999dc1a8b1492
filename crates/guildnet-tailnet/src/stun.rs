//! Asks a STUN server under which address it sees us. Pure: makes the request, reads the answer.
//!
//! Source: RFC 5389, sections 6, 7.3 and 15; and tailscale `net/stun`, whose servers answer only requests that carry its
//! SOFTWARE attribute and a FINGERPRINT.

use std::net::{Ipv4Addr, SocketAddr};

/// Marks a message as STUN.
const COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const BINDING_REQUEST: [u8; 2] = [0, 1];
const BINDING_SUCCESS: [u8; 2] = [1, 1];
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const MAPPED_ADDRESS: u16 = 0x0001;
/// What tailscale's servers want to read; eight bytes, so no padding.
const SOFTWARE_NAME: &[u8; 8] = b"tailnode";
const HEADER: usize = 20;
/// Turns a CRC into a fingerprint (RFC 5389, section 15.5).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Ties an answer to its request.
pub(crate) type TransactionId = [u8; 12];

/// The answer of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) id: TransactionId,
    /// Where the server saw the request come from.
    pub(crate) seen: SocketAddr,
}

/// A request.
pub(crate) fn request(id: TransactionId) -> Vec<u8> {
    const LENGTH: u16 = 4 + 8 + 4 + 4;
    let mut out = Vec::with_capacity(HEADER + usize::from(LENGTH));
    out.extend(BINDING_REQUEST);
    out.extend(LENGTH.to_be_bytes());
    out.extend(COOKIE);
    out.extend(id);
    out.extend(SOFTWARE.to_be_bytes());
    out.extend(8_u16.to_be_bytes());
    out.extend(SOFTWARE_NAME);
    let fingerprint = crc32(&out) ^ FINGERPRINT_XOR;
    out.extend(FINGERPRINT.to_be_bytes());
    out.extend(4_u16.to_be_bytes());
    out.extend(fingerprint.to_be_bytes());
    out
}

/// Whether a datagram is a STUN answer. Neither WireGuard nor disco begins like this.
pub(crate) fn is_answer(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER && datagram[..2] == BINDING_SUCCESS && datagram[4..8] == COOKIE
}

/// Reads an answer; `None` if it is none or names no IPv4 address.
pub(crate) fn parse(datagram: &[u8]) -> Option<Answer> {
    if !is_answer(datagram) {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
    let id = *datagram[8..].first_chunk()?;
    let mut rest = datagram.get(HEADER..HEADER + length)?;
    let mut plain = None;
    while let Some(head) = rest.first_chunk::<4>() {
        let (kind, len) = (u16::from_be_bytes([head[0], head[1]]), usize::from(u16::from_be_bytes([head[2], head[3]])));
        let value = rest.get(4..4 + len)?;
        match kind {
            XOR_MAPPED_ADDRESS => return address(value, COOKIE).map(|seen| Answer { id, seen }),
            MAPPED_ADDRESS => plain = address(value, [0; 4]),
            _ => {}
        }
        rest = rest.get(4 + len.next_multiple_of(4)..)?;
    }
    plain.map(|seen| Answer { id, seen })
}

/// Reads an IPv4 address attribute: a zero, the family, port, address, the latter two XORed with `mask`.
fn address(value: &[u8], mask: [u8; 4]) -> Option<SocketAddr> {
    const IPV4: u8 = 1;
    let [_, IPV4, p0, p1, a, b, c, d] = *value.first_chunk::<8>()? else { return None };
    let port = u16::from_be_bytes([p0 ^ mask[0], p1 ^ mask[1]]);
    let ip = Ipv4Addr::new(a ^ mask[0], b ^ mask[1], c ^ mask[2], d ^ mask[3]);
    Some(SocketAddr::new(ip.into(), port))
}

/// CRC-32 of ITU V.42, bit by bit: a request has 32 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769, section 2.2: the sample IPv4 response.
    const SAMPLE: &[u8] = &[
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87,
        0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20,
        0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91,
        0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7,
        0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];

    #[test]
    fn the_sample_of_the_rfc_is_read() {
        let answer = parse(SAMPLE).expect("an answer");
        assert_eq!(answer.seen, "192.0.2.1:32853".parse().expect("an address"));
        assert_eq!(answer.id, [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);
    }

    #[test]
    fn the_fingerprint_is_the_one_of_the_rfc() {
        let (message, fingerprint) = SAMPLE.split_at(SAMPLE.len() - 8);
        assert_eq!((crc32(message) ^ FINGERPRINT_XOR).to_be_bytes(), fingerprint[4..]);
    }

    #[test]
    fn a_cut_answer_is_none() {
        for len in 0..SAMPLE.len() {
            assert_eq!(parse(&SAMPLE[..len]), None, "{len}");
        }
    }

    #[test]
    fn a_request_is_no_answer() {
        assert!(!is_answer(&request([7; 12])));
    }
}
