//! Disco messages: sealed pings, pongs and calls by which two peers find a path. Only the codec; who is answered is
//! decided in `data/`, which path is taken in `path.rs`.
//!
//! Source: tailscale `disco/disco.go`. Message types beyond these three (peer relays) are ignored.

use std::net::SocketAddr;

use ts_disco_protocol::{CallMeMaybe, Endpoint, Header, MessageType, Packet, Ping, Pong};
use ts_keys::{DiscoKeyPair, DiscoPublicKey, NodePublicKey};

use crate::{netmap::Key, path::PingId};

/// Addresses in one call: more than any machine has, and far below the relay's packet limit.
const MAX_ADDRESSES: usize = 32;

/// A message from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Ping {
        id: PingId,
    },
    Pong {
        id: PingId,
    },
    /// "Ping me at these, I ping you."
    Call {
        addrs: Vec<SocketAddr>,
    },
}

/// Whether a datagram is a disco message.
pub(crate) fn is_disco(datagram: &[u8]) -> bool {
    ts_disco_protocol::is_disco_message(datagram)
}

/// Who claims to have sent it. Costs nothing, so strangers are dropped before any decryption.
pub(crate) fn sender(datagram: &[u8]) -> Option<Key> {
    let (header, _) = Header::from_bytes(datagram).ok()?;
    // Magic (6 bytes), then the sender's public key.
    debug_assert!(header.is_valid());
    datagram.get(6..38)?.try_into().ok().map(Key)
}

/// Opens a message in place; `None` if it is not authentic or of no known kind.
pub(crate) fn open(datagram: &mut [u8], own: &DiscoKeyPair) -> Option<Message> {
    let packet = Packet::from_encrypted_bytes_mut(datagram).ok()?.decrypt_in_place(&own.private).ok()?;
    match packet.ty()? {
        MessageType::Ping => packet.as_msg::<Ping>().map(|ping| Message::Ping { id: ping.tx_id }),
        MessageType::Pong => packet.as_msg::<Pong>().map(|pong| Message::Pong { id: pong.tx_id }),
        MessageType::CallMeMaybe => packet.as_msg::<CallMeMaybe>().map(|call| Message::Call {
            addrs: call.endpoints.iter().take(MAX_ADDRESSES).map(Endpoint::socket_addr).collect(),
        }),
        _ => None,
    }
}

/// Seals a ping.
pub(crate) fn ping(own: &DiscoKeyPair, node: NodePublicKey, to: Key, id: PingId) -> Option<Vec<u8>> {
    let mut buf = vec![0; Packet::size_for_message(Ping::size_with_padding(0))];
    let fill = |ping: &mut Ping| (ping.tx_id, ping.node_key) = (id, node);
    seal(Packet::init_from_bytes::<Ping>(&mut buf, fill).ok()?, own, to)?;
    Some(buf)
}

/// Seals the answer to a ping that came from `seen`.
pub(crate) fn pong(own: &DiscoKeyPair, to: Key, id: PingId, seen: SocketAddr) -> Option<Vec<u8>> {
    let mut buf = vec![0; Packet::size_for_message(Pong::size())];
    let fill = |pong: &mut Pong| (pong.tx_id, pong.src) = (id, seen.into());
    seal(Packet::init_from_bytes::<Pong>(&mut buf, fill).ok()?, own, to)?;
    Some(buf)
}

/// Seals a call with our addresses.
pub(crate) fn call(own: &DiscoKeyPair, to: Key, addrs: &[SocketAddr]) -> Option<Vec<u8>> {
    let addrs = &addrs[..addrs.len().min(MAX_ADDRESSES)];
    let mut buf = vec![0; Packet::size_for_message(CallMeMaybe::size_for_endpoint_count(addrs.len()))];
    let fill = |call: &mut CallMeMaybe| {
        for (endpoint, addr) in call.endpoints.iter_mut().zip(addrs) {
            *endpoint = (*addr).into();
        }
    };
    seal(Packet::init_from_bytes::<CallMeMaybe>(&mut buf, fill).ok()?, own, to)?;
    Some(buf)
}

fn seal(packet: &mut Packet<ts_disco_protocol::Plaintext>, own: &DiscoKeyPair, to: Key) -> Option<()> {
    let to = DiscoPublicKey::from_bytes(to.0);
    packet.encrypt_in_place(&own.private, &to, rand::random()).ok().map(|_| ())
}

#[cfg(test)]
mod tests {
    use ts_keys::NodeKeyPair;

    use super::*;

    fn pair() -> (DiscoKeyPair, Key) {
        let pair = DiscoKeyPair::random();
        let key = Key(pair.public.to_crypto_box().to_bytes());
        (pair, key)
    }

    #[test]
    fn messages_are_opened_by_their_receiver_only() {
        let ((a, a_key), (b, b_key), (c, _)) = (pair(), pair(), pair());
        let addr: SocketAddr = "192.0.2.7:41641".parse().expect("an address");
        let node = NodeKeyPair::random().public;
        let sealed = [
            (ping(&a, node, b_key, [1; 12]), Message::Ping { id: [1; 12] }),
            (pong(&a, b_key, [2; 12], addr), Message::Pong { id: [2; 12] }),
            (call(&a, b_key, &[addr]), Message::Call { addrs: vec![addr] }),
        ];
        for (datagram, message) in sealed {
            let mut datagram = datagram.expect("sealed");
            assert!(is_disco(&datagram));
            assert_eq!(sender(&datagram), Some(a_key));
            assert_eq!(open(&mut datagram.clone(), &c), None);
            assert_eq!(open(&mut datagram, &b), Some(message));
        }
    }

    #[test]
    fn a_changed_message_is_not_opened() {
        let ((a, _), (b, b_key)) = (pair(), pair());
        let mut datagram = call(&a, b_key, &[]).expect("sealed");
        *datagram.last_mut().expect("not empty") ^= 1;
        assert_eq!(open(&mut datagram, &b), None);
    }
}
