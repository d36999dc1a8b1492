//! The network map: this node, its peers, the relays. Our own small model, and the pure step that applies an update.
//!
//! The server's JSON is parsed in `control/wire.rs`; nothing here does IO. Of a node only what the data side needs is
//! kept, so a map of a thousand peers stays small. Who may be talked to is decided in `routes.rs`, not here.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use guildnet_model::NodeInfo;
use ipnet::IpNet;

use crate::filter::{Change, Filter};

/// Peers that are kept: twice as many as the largest message can name that a server means well. What a server adds beyond, one by
/// one for months, is left out.
const MAX_PEERS: usize = 20_000;

/// A public key: a node's WireGuard key or its disco key.
///
/// `Debug` shows a short prefix, enough to tell keys apart in a log; [`Key::node_text`] gives the protocol's full form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {0} key")]
pub(crate) struct KeyError(&'static str);

impl Key {
    const NODE_PREFIX: &'static str = "nodekey";
    const DISCO_PREFIX: &'static str = "discokey";

    /// The form in which the control protocol and the server's list name a node key: `nodekey:<64 hex digits>`.
    pub(crate) fn node_text(&self) -> String {
        let mut text = String::with_capacity(Self::NODE_PREFIX.len() + 65);
        text.push_str(Self::NODE_PREFIX);
        text.push(':');
        for byte in self.0 {
            for digit in [byte >> 4, byte & 0xf] {
                text.push(char::from_digit(digit.into(), 16).expect("four bits are a hex digit"));
            }
        }
        text
    }

    /// Parses `nodekey:<hex>`.
    pub(crate) fn parse_node(text: &str) -> Result<Self, KeyError> {
        Self::parse(text, Self::NODE_PREFIX)
    }

    /// Parses `discokey:<hex>`. All zeros stand for "none" in the protocol and give `None`, as does an empty text.
    pub(crate) fn parse_disco(text: &str) -> Result<Option<Self>, KeyError> {
        if text.is_empty() {
            return Ok(None);
        }
        Self::parse(text, Self::DISCO_PREFIX).map(|key| (key.0 != [0; 32]).then_some(key))
    }

    fn parse(text: &str, prefix: &'static str) -> Result<Self, KeyError> {
        let bad = || KeyError(prefix);
        let hex = text.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':')).ok_or_else(bad)?;
        if hex.len() != 64 {
            return Err(bad());
        }
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(bad)?;
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "[{a:02x}{b:02x}{c:02x}{d:02x}]")
    }
}

/// Another node, as the map describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The server's number for the node; stays the same when its key changes.
    pub(crate) id: u64,
    /// Name in the tailnet, without the tailnet's domain.
    pub(crate) name: String,
    /// WireGuard key.
    pub(crate) node_key: Key,
    /// Disco key of its present run; `None` if it speaks no disco.
    pub(crate) disco_key: Option<Key>,
    /// Its own addresses in the tailnet.
    pub(crate) addresses: Vec<IpAddr>,
    /// What it may send from and is sent to: its addresses and the routes that it serves.
    pub(crate) allowed: Vec<IpNet>,
    /// UDP addresses at which it may be reached.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Region of its home relay.
    pub(crate) home_relay: Option<u16>,
    /// Whether the server sees it connected, if it says so.
    pub(crate) online: Option<bool>,
    /// Tags that the server gave it.
    pub(crate) tags: Vec<String>,
}

impl Peer {
    /// The networks that it serves: what it is allowed, without its own addresses.
    pub(crate) fn served(&self) -> impl Iterator<Item = IpNet> {
        let is_own = |net: &IpNet| net.prefix_len() == net.max_prefix_len() && self.addresses.contains(&net.addr());
        self.allowed.iter().copied().filter(move |net| !is_own(net))
    }
}

/// A relay (DERP server). Only the first usable node of a region is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    /// Region number, the relay's name in the protocol.
    pub(crate) region: u16,
    /// Region's name, for people.
    pub(crate) name: String,
    /// Host name or IP address; also the name that its certificate must have.
    pub(crate) host: String,
    /// TCP port of its TLS side.
    pub(crate) port: u16,
    /// Address to use instead of resolving `host`.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// UDP port of its STUN side, if it has one.
    pub(crate) stun_port: Option<u16>,
}

/// This node, as the map describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SelfNode {
    /// What people see of it.
    pub(crate) info: NodeInfo,
    /// Its key as the server knows it.
    pub(crate) node_key: Key,
    /// Addresses and approved routes.
    pub(crate) allowed: Vec<IpNet>,
    /// Whether the server says that its key has expired.
    pub(crate) expired: bool,
}

/// The whole map at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetMap {
    /// This node.
    pub(crate) self_node: SelfNode,
    /// Peers by the server's number.
    pub(crate) peers: BTreeMap<u64, Arc<Peer>>,
    /// Relays, by region.
    pub(crate) relays: Vec<Relay>,
    /// Who may open connections to this node.
    pub(crate) filter: Filter,
}

/// What one message of the map stream changes. `None` means "as before".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Update {
    /// This node.
    pub(crate) self_node: Option<SelfNode>,
    /// All relays.
    pub(crate) relays: Option<Vec<Relay>>,
    /// All peers; what is not in it is gone.
    pub(crate) peers: Option<Vec<Peer>>,
    /// Peers that are gone.
    pub(crate) removed: Vec<u64>,
    /// Peers that are new or wholly replaced.
    pub(crate) changed: Vec<Peer>,
    /// Peers of which single fields changed.
    pub(crate) patches: Vec<PeerPatch>,
    /// The packet filter.
    pub(crate) filter: Vec<Change>,
}

/// Single changed fields of one peer. `None` means "as before".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerPatch {
    pub(crate) id: u64,
    pub(crate) node_key: Option<Key>,
    pub(crate) disco_key: Option<Key>,
    pub(crate) endpoints: Option<Vec<SocketAddr>>,
    pub(crate) home_relay: Option<u16>,
    pub(crate) online: Option<bool>,
}

impl NetMap {
    /// The map after the first message of a stream; `None` if that does not name this node.
    ///
    /// A stream starts from nothing: servers leave empty lists out, so an absent peer list means that there are none.
    pub(crate) fn first(mut update: Update) -> Option<Self> {
        let self_node = update.self_node.take()?;
        let mut map = Self { self_node, peers: BTreeMap::new(), relays: Vec::new(), filter: Filter::default() };
        map.apply(update);
        Some(map)
    }

    /// Applies a later message. Parts are applied in the order of the protocol's reference client: full list, removals,
    /// replacements, patches (tailscale `control/controlclient/map.go`, `updatePeersStateFromResponse`). What concerns an
    /// unknown peer is ignored.
    pub(crate) fn apply(&mut self, update: Update) {
        if let Some(node) = update.self_node {
            self.self_node = node;
        }
        if let Some(relays) = update.relays {
            self.relays = relays;
        }
        self.filter.apply(update.filter);
        if let Some(all) = update.peers {
            self.peers = all.into_iter().take(MAX_PEERS).map(|peer| (peer.id, Arc::new(peer))).collect();
        }
        for id in update.removed {
            self.peers.remove(&id);
        }
        for peer in update.changed {
            if self.peers.len() < MAX_PEERS || self.peers.contains_key(&peer.id) {
                self.peers.insert(peer.id, Arc::new(peer));
            } else {
                tracing::debug!(peer = peer.id, "the map names more peers than are kept; it is left out");
            }
        }
        for patch in update.patches {
            if let Some(peer) = self.peers.get_mut(&patch.id) {
                patch.apply(Arc::make_mut(peer));
            }
        }
    }
}

impl PeerPatch {
    fn apply(self, peer: &mut Peer) {
        if let Some(key) = self.node_key {
            peer.node_key = key;
        }
        if let Some(key) = self.disco_key {
            peer.disco_key = Some(key);
        }
        if let Some(endpoints) = self.endpoints {
            peer.endpoints = endpoints;
        }
        if let Some(region) = self.home_relay {
            peer.home_relay = Some(region);
        }
        if let Some(online) = self.online {
            peer.online = Some(online);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key([byte; 32])
    }

    fn me() -> SelfNode {
        let info = NodeInfo {
            name: "me".into(),
            id: 1,
            addresses: vec![],
            node_key: key(1).node_text(),
            tags: vec![],
            key_expiry: None,
        };
        SelfNode { info, node_key: key(1), allowed: vec![], expired: false }
    }

    fn peer(id: u64, byte: u8) -> Peer {
        Peer {
            id,
            name: format!("peer{id}"),
            node_key: key(byte),
            disco_key: None,
            addresses: vec![],
            allowed: vec![],
            endpoints: vec![],
            home_relay: None,
            online: None,
            tags: vec![],
        }
    }

    fn map(peers: Vec<Peer>) -> NetMap {
        let first = Update { self_node: Some(me()), peers: Some(peers), ..Update::default() };
        NetMap::first(first).expect("it names this node")
    }

    fn ids(map: &NetMap) -> Vec<u64> {
        map.peers.keys().copied().collect()
    }

    #[test]
    fn a_first_message_must_name_this_node() {
        assert_eq!(NetMap::first(Update { peers: Some(vec![peer(2, 2)]), ..Update::default() }), None);
    }

    #[test]
    fn a_full_list_replaces_what_was_known() {
        let mut map = map(vec![peer(2, 2), peer(3, 3)]);
        map.apply(Update { peers: Some(vec![peer(3, 9), peer(4, 4)]), ..Update::default() });
        assert_eq!(ids(&map), [3, 4]);
        assert_eq!(map.peers[&3].node_key, key(9));
    }

    #[test]
    fn a_message_that_says_nothing_changes_nothing() {
        let mut map = map(vec![peer(2, 2)]);
        let before = map.clone();
        map.apply(Update::default());
        assert_eq!(map, before);
    }

    #[test]
    fn a_patch_changes_only_its_fields() {
        let mut map = map(vec![Peer { online: Some(false), ..peer(2, 2) }]);
        let addr = "192.0.2.1:41641".parse().expect("an address");
        let patch = PeerPatch {
            id: 2,
            disco_key: Some(key(7)),
            endpoints: Some(vec![addr]),
            home_relay: Some(999),
            ..PeerPatch::default()
        };
        map.apply(Update { patches: vec![patch], ..Update::default() });
        let want = Peer {
            online: Some(false),
            disco_key: Some(key(7)),
            endpoints: vec![addr],
            home_relay: Some(999),
            ..peer(2, 2)
        };
        assert_eq!(*map.peers[&2], want);
    }

    #[test]
    fn a_peer_removed_and_sent_again_in_one_message_stays() {
        let mut map = map(vec![peer(2, 2)]);
        map.apply(Update { removed: vec![2], changed: vec![peer(2, 5)], ..Update::default() });
        assert_eq!(map.peers[&2].node_key, key(5));
    }

    #[test]
    fn a_map_does_not_grow_for_ever() {
        let mut map = map(vec![]);
        for id in 0..2 {
            let changed = (0..).map(|n| peer(2 * n + id, 1)).take(MAX_PEERS).collect();
            map.apply(Update { changed, ..Update::default() });
            assert_eq!(map.peers.len(), MAX_PEERS);
        }
        map.apply(Update { changed: vec![peer(0, 9)], ..Update::default() });
        assert_eq!(map.peers[&0].node_key, key(9), "those that are known change as before");
    }

    #[test]
    fn what_concerns_unknown_peers_is_ignored() {
        let mut map = map(vec![peer(2, 2)]);
        let before = map.clone();
        let late = PeerPatch { id: 8, online: Some(true), ..PeerPatch::default() };
        map.apply(Update { removed: vec![9], patches: vec![late], ..Update::default() });
        assert_eq!(map, before);
    }

    #[test]
    fn keys_are_read_back_and_never_shown_whole_in_logs() {
        let known = key(0xa5);
        assert_eq!(Key::parse_node(&known.node_text()), Ok(known));
        assert_eq!(format!("{known:?}"), "[a5a5a5a5]");
        assert_eq!(Key::parse_disco(""), Ok(None));
        assert_eq!(Key::parse_disco(&format!("discokey:{}", "00".repeat(32))), Ok(None));
        for bad in
            ["nodekey:", "discokey:00", &format!("nodekey:{}", "zz".repeat(32)), &format!("mkey:{}", "00".repeat(32))]
        {
            assert!(Key::parse_node(bad).is_err(), "{bad}");
        }
    }

    fn updates() -> impl Strategy<Value = Update> {
        let peers = || prop::collection::vec((0u64..6, any::<u8>()).prop_map(|(id, byte)| peer(id, byte)), 0..4);
        let patch =
            (0u64..6, any::<Option<bool>>()).prop_map(|(id, online)| PeerPatch { id, online, ..PeerPatch::default() });
        (prop::option::of(peers()), prop::collection::vec(0u64..6, 0..3), peers(), prop::collection::vec(patch, 0..3))
            .prop_map(|(peers, removed, changed, patches)| Update {
                peers,
                removed,
                changed,
                patches,
                ..Update::default()
            })
    }

    proptest! {
        /// Whatever came before, a full list leaves exactly what is in it.
        #[test]
        fn a_full_list_heals_any_history(history in prop::collection::vec(updates(), 0..8)) {
            let mut map = map(vec![]);
            for update in history {
                map.apply(update);
            }
            map.apply(Update { peers: Some(vec![peer(1, 1), peer(5, 5)]), ..Update::default() });
            prop_assert_eq!(map, super::tests::map(vec![peer(1, 1), peer(5, 5)]));
        }

        /// Messages may be repeated: servers do when a client reconnects.
        #[test]
        fn a_repeated_message_changes_nothing(history in prop::collection::vec(updates(), 0..4), last in updates()) {
            let mut once = map(vec![]);
            for update in history {
                once.apply(update);
            }
            once.apply(last.clone());
            let mut twice = once.clone();
            twice.apply(last);
            prop_assert_eq!(once, twice);
        }
    }
}
