//! Disco messages: sealed pings, pongs and calls by which two peers find a path. Only the codec, and how many messages of a
//! peer are taken; who is answered is decided in `data/`, which path is taken in `path.rs`.
//!
//! A message is a magic number, its sender's public key and a nonce, then a NaCl box (X25519, XSalsa20, Poly1305) of a type, a
//! version and the content. Source: tailscale `disco/disco.go`, which like this file skips what follows a known content.
//! Message types beyond these three (peer relays) are ignored.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use crypto_box::{
    PublicKey, SalsaBox, Tag,
    aead::{AeadInPlace, generic_array::GenericArray},
};
use ts_keys::{DiscoKeyPair, NodePublicKey};

use crate::{netmap::Key, path::PingId};

/// Addresses in one call: more than any machine has, and far below the relay's packet limit.
const MAX_ADDRESSES: usize = 32;
/// The largest message that is opened, bytes: a call of a hundred addresses. Pings are padded beyond that only to measure
/// what a path lets through, and a peer that gets no answer sends smaller ones.
pub(crate) const MAX_MESSAGE: usize = 2048;
/// Pings of one peer that are answered at once, and per second from then on. A peer pings in rounds of a second and more,
/// from as many addresses as it has to as many as we have: ten a second are a busy one.
const PINGS: Pace = Pace { burst: 100, rate: 50 };
/// The same of calls, each of which makes us send a ping to every address in it. A peer makes one a second at most.
const CALLS: Pace = Pace { burst: 20, rate: 5 };
/// Messages of one peer that are remembered, so that one of them that comes again costs nothing more: as many as are acted on
/// in a second.
const REMEMBERED: usize = 64;

const MAGIC: [u8; 6] = [b'T', b'S', 0xf0, 0x9f, 0x92, 0xac];
const KEY: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Magic, sender's key, nonce.
const HEADER: usize = MAGIC.len() + KEY + NONCE;
const PING: u8 = 1;
const PONG: u8 = 2;
const CALL: u8 = 3;
const VERSION: u8 = 0;
/// An address: IPv6, or IPv4 mapped into it, and a port.
const ADDRESS: usize = 18;

/// A message from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Ping {
        id: PingId,
    },
    Pong {
        id: PingId,
    },
    /// "Ping me at these, I ping you." No address twice.
    Call {
        addrs: Vec<SocketAddr>,
    },
}

/// Whether a datagram is a disco message.
pub(crate) fn is_disco(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER && datagram.starts_with(&MAGIC)
}

/// Who claims to have sent it. Costs nothing, so strangers are dropped before any decryption.
pub(crate) fn sender(datagram: &[u8]) -> Option<Key> {
    let header = datagram.first_chunk::<HEADER>().filter(|header| header.starts_with(&MAGIC))?;
    header[MAGIC.len()..].first_chunk().copied().map(Key)
}

/// What is between this node and one run of a peer: the key that they share, and which of its messages were taken.
///
/// The key agreement costs as much as fifty messages, so it is made once.
pub(crate) struct Shared {
    own: [u8; KEY],
    cipher: SalsaBox,
    /// The nonces that came last, in parts: they are random.
    seen: VecDeque<u64>,
    pings: Budget,
    calls: Budget,
}

/// How many are taken at once, and per second from then on.
#[derive(Clone, Copy)]
struct Pace {
    burst: u32,
    rate: u32,
}

/// What is left of a pace.
#[derive(Default)]
struct Budget {
    /// Until when the pace is used up by what was taken.
    spent: Option<Instant>,
}

impl Budget {
    fn take(&mut self, now: Instant, pace: Pace) -> bool {
        let each = Duration::from_secs(1) / pace.rate;
        let until = self.spent.map_or(now, |spent| spent.max(now)) + each;
        let is_left = until <= now + each * pace.burst;
        if is_left {
            self.spent = Some(until);
        }
        is_left
    }
}

impl Shared {
    /// Agrees on the key. Takes some 50 us.
    pub(crate) fn new(own: &DiscoKeyPair, peer: Key) -> Self {
        Self {
            own: own.public.to_crypto_box().to_bytes(),
            cipher: SalsaBox::new(&PublicKey::from(peer.0), &own.private.to_crypto_box()),
            seen: VecDeque::new(),
            pings: Budget::default(),
            calls: Budget::default(),
        }
    }

    /// Opens a message of the peer; `None` if it is not authentic or of no known kind. `plain` must have room for it.
    pub(crate) fn open(&self, datagram: &[u8], plain: &mut [u8]) -> Option<Message> {
        let (header, sealed) = datagram.split_first_chunk::<HEADER>()?;
        let (tag, sealed) = sealed.split_first_chunk::<TAG>()?;
        let plain = plain.get_mut(..sealed.len()).filter(|_| datagram.len() <= MAX_MESSAGE)?;
        plain.copy_from_slice(sealed);
        let nonce = GenericArray::from_slice(&header[HEADER - NONCE..]);
        self.cipher.decrypt_in_place_detached(nonce, &[], plain, Tag::from_slice(tag)).ok()?;
        match *plain {
            [PING, _, ref content @ ..] => content.first_chunk().map(|id| Message::Ping { id: *id }),
            [PONG, _, ref content @ ..] => content.first_chunk().map(|id| Message::Pong { id: *id }),
            [CALL, VERSION, ref content @ ..] => Some(Message::Call { addrs: addresses(content) }),
            _ => None,
        }
    }

    /// Whether an opened message is acted on: it is no repetition, and not one too many. To be asked only of what is
    /// authentic: a stranger who knows the peer's public key must not be able to use up what the peer may send. Pongs are not
    /// counted: those that we wait for are as many as our pings, and the others cost nothing more.
    pub(crate) fn admit(&mut self, now: Instant, datagram: &[u8], message: &Message) -> bool {
        let (budget, pace) = match message {
            Message::Ping { .. } => (&mut self.pings, PINGS),
            Message::Pong { .. } => return true,
            Message::Call { .. } => (&mut self.calls, CALLS),
        };
        let nonce = datagram.get(HEADER - 8..HEADER).and_then(|part| part.try_into().ok()).map(u64::from_le_bytes);
        let Some(nonce) = nonce.filter(|nonce| !self.seen.contains(nonce)) else { return false };
        if !budget.take(now, pace) {
            return false;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(nonce);
        true
    }

    /// Seals a ping.
    pub(crate) fn ping(&self, node: NodePublicKey, id: PingId) -> Vec<u8> {
        self.seal(PING, &[&id, &node.to_x25519_dalek().to_bytes()])
    }

    /// Seals the answer to a ping that came from `seen`.
    pub(crate) fn pong(&self, id: PingId, seen: SocketAddr) -> Vec<u8> {
        self.seal(PONG, &[&id, &address(seen)])
    }

    /// Seals a call with our addresses.
    pub(crate) fn call(&self, addrs: &[SocketAddr]) -> Vec<u8> {
        let addrs: Vec<u8> = addrs.iter().take(MAX_ADDRESSES).flat_map(|addr| address(*addr)).collect();
        self.seal(CALL, &[&addrs])
    }

    /// Seals what is no message.
    #[cfg(test)]
    pub(crate) fn junk(&self, kind: u8, content: &[u8]) -> Vec<u8> {
        self.seal(kind, &[content])
    }

    fn seal(&self, kind: u8, content: &[&[u8]]) -> Vec<u8> {
        let nonce: [u8; NONCE] = rand::random();
        let mut out = [&MAGIC[..], &self.own, &nonce, &[0; TAG], &[kind, VERSION], &content.concat()].concat();
        let (head, plain) = out.split_at_mut(HEADER + TAG);
        let tag = self.cipher.encrypt_in_place_detached(GenericArray::from_slice(&nonce), &[], plain);
        head[HEADER..].copy_from_slice(&tag.expect("far below what this cipher can seal"));
        out
    }
}

fn address(addr: SocketAddr) -> [u8; ADDRESS] {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut out = [0; ADDRESS];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&addr.port().to_be_bytes());
    out
}

/// The addresses of a call, each once. Of a content that is no list of addresses the rest is skipped.
fn addresses(content: &[u8]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for entry in content.as_chunks::<ADDRESS>().0.iter().take(MAX_ADDRESSES) {
        let [ip @ .., p0, p1] = *entry;
        let addr = SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([p0, p1]));
        if !all.contains(&addr) {
            all.push(addr);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ts_keys::NodeKeyPair;

    use super::*;

    fn pair() -> (DiscoKeyPair, Key) {
        let pair = DiscoKeyPair::random();
        let key = Key(pair.public.to_crypto_box().to_bytes());
        (pair, key)
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// What two nodes share, seen from each.
    fn both() -> (Shared, Shared) {
        let ((a, a_key), (b, b_key)) = (pair(), pair());
        (Shared::new(&a, b_key), Shared::new(&b, a_key))
    }

    fn open(shared: &Shared, datagram: &[u8]) -> Option<Message> {
        shared.open(datagram, &mut [0; MAX_MESSAGE])
    }

    #[test]
    fn messages_are_opened_by_their_receiver_only() {
        let ((a, a_key), (b, b_key), (c, _)) = (pair(), pair(), pair());
        let (near, far, other) = (Shared::new(&a, b_key), Shared::new(&b, a_key), Shared::new(&c, a_key));
        let (v4, v6) = (addr("192.0.2.7:41641"), addr("[2001:db8::1]:7"));
        let node = NodeKeyPair::random().public;
        let sealed = [
            (near.ping(node, [1; 12]), Message::Ping { id: [1; 12] }),
            (near.pong([2; 12], v4), Message::Pong { id: [2; 12] }),
            (near.call(&[v4, v6]), Message::Call { addrs: vec![v4, v6] }),
        ];
        for (datagram, message) in sealed {
            assert!(is_disco(&datagram));
            assert_eq!(sender(&datagram), Some(a_key));
            assert_eq!(open(&other, &datagram), None);
            assert_eq!(open(&far, &datagram), Some(message));
        }
    }

    #[test]
    fn the_box_is_the_one_of_nacl() {
        let ((a, a_key), (b, _)) = (pair(), pair());
        let nonce = [9; NONCE];
        let content = [&[PONG, 0][..], &[3; 12], &[0; ADDRESS]].concat();
        let sealer = SalsaBox::new(&b.public.to_crypto_box(), &a.private.to_crypto_box());
        let sealed = crypto_box::aead::Aead::encrypt(&sealer, GenericArray::from_slice(&nonce), &content[..]);
        let datagram = [&b"TS\xf0\x9f\x92\xac"[..], &a_key.0, &nonce, &sealed.expect("sealed")].concat();
        assert_eq!(open(&Shared::new(&b, a_key), &datagram), Some(Message::Pong { id: [3; 12] }));
    }

    #[test]
    fn a_call_names_no_address_twice_and_not_too_many() {
        let (near, far) = both();
        let twice = near.call(&[addr("192.0.2.7:1"), addr("192.0.2.7:2"), addr("192.0.2.7:1")]);
        let addrs = vec![addr("192.0.2.7:1"), addr("192.0.2.7:2")];
        assert_eq!(open(&far, &twice), Some(Message::Call { addrs }));
        let many: Vec<u8> = (0..100).flat_map(|port| address(SocketAddr::from(([192, 0, 2, 7], port)))).collect();
        let Some(Message::Call { addrs }) = open(&far, &near.junk(CALL, &many)) else { panic!("no call") };
        assert_eq!(addrs.len(), MAX_ADDRESSES);
    }

    #[test]
    fn what_is_too_long_is_not_opened() {
        let (near, far) = both();
        let room = MAX_MESSAGE - HEADER - TAG - 2 - 12;
        let padded = |len| near.junk(PING, &vec![1; 12 + len]);
        assert_eq!(open(&far, &padded(room)), Some(Message::Ping { id: [1; 12] }));
        assert_eq!(far.open(&padded(room + 1), &mut [0; 2 * MAX_MESSAGE]), None);
    }

    #[test]
    fn a_peer_is_acted_on_at_its_pace_and_what_it_repeats_once() {
        let (near, mut far) = both();
        let start = Instant::now();
        let (ping, call) = (Message::Ping { id: [1; 12] }, Message::Call { addrs: vec![] });
        let mut admitted = |count: u32, seconds, message: &Message| {
            let now = start + Duration::from_secs(seconds);
            (0..count).filter(|_| far.admit(now, &near.call(&[]), message)).count()
        };
        assert_eq!(admitted(1000, 1, &ping), 100);
        assert_eq!(admitted(1000, 2, &ping), 50);
        assert_eq!(admitted(1000, 2, &call), 20, "by themselves");
        assert_eq!(admitted(1000, 2, &Message::Pong { id: [1; 12] }), 1000);
        assert_eq!(admitted(1000, 1000, &ping), 100, "a pause saves no more than a burst");
        let (now, again) = (start + Duration::from_secs(2000), near.call(&[]));
        assert_eq!([far.admit(now, &again, &call), far.admit(now, &again, &call)], [true, false]);
    }

    proptest! {
        /// Whatever a datagram is, it is opened only if nothing in it was changed.
        #[test]
        fn a_changed_message_is_not_opened(at: prop::sample::Index, bit in 0..8, kind in 0..3) {
            let (near, far) = both();
            let sealed = match kind {
                0 => near.ping(NodeKeyPair::random().public, [1; 12]),
                1 => near.pong([1; 12], addr("192.0.2.7:1")),
                _ => near.call(&[addr("192.0.2.7:1")]),
            };
            let at = at.index(sealed.len());
            let mut changed = sealed.clone();
            changed[at] ^= 1u8 << bit;
            // Magic and sender are looked at before a message is opened, and are no part of what is sealed.
            if at >= MAGIC.len() + KEY {
                prop_assert_eq!(open(&far, &changed), None);
            }
            prop_assert_eq!(open(&far, &sealed[..at]), None, "cut");
        }

        /// A peer may seal what it likes.
        #[test]
        fn sealed_junk_is_a_message_or_none(kind in 0u8..6, junk in prop::collection::vec(any::<u8>(), 0..700)) {
            let (near, far) = both();
            match open(&far, &near.junk(kind, &junk)) {
                Some(Message::Call { addrs }) => prop_assert!(kind == CALL && addrs.len() <= MAX_ADDRESSES),
                Some(_) => prop_assert!(junk.len() >= 12 && (kind == PING || kind == PONG)),
                None => prop_assert!(kind != CALL && (junk.len() < 12 || kind > CALL || kind == 0)),
            }
        }

        #[test]
        fn any_bytes_are_a_datagram(bytes in prop::collection::vec(any::<u8>(), 0..300), magic: bool) {
            let bytes = if magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            prop_assert_eq!(is_disco(&bytes), sender(&bytes).is_some());
            prop_assert_eq!(open(&both().0, &bytes), None);
        }
    }
}
