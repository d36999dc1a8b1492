//! The peers that this connector talks to: its cluster's routers, and for a while those that a probe names.
//!
//! Everybody else in the network map has no slot, so nothing from them is even decrypted.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ts_keys::DiscoKeyPair;

use super::{Node, Work, relays::Whereabouts};
use crate::{
    disco::Shared,
    netmap::{Key, NetMap, Peer},
    path::Path,
    routes::{self, Allowance, Routes},
    standing::Standing,
    wg::{OwnKey, Tunnel},
};

/// A peer's place.
pub(super) type SlotId = usize;

/// What is known of one peer.
pub(super) struct Slot {
    pub(super) key: Key,
    disco: Option<Disco>,
    /// Its own addresses in the tailnet; of a probed peer none is known.
    pub(super) addresses: Vec<IpAddr>,
    /// Region of its home relay.
    pub(super) relay: Whereabouts,
    pub(super) online: bool,
    pub(super) tunnel: Tunnel,
    pub(super) path: Path,
    /// One of the cluster's routers, kept ready for dials.
    pub(super) warm: bool,
    /// Not from the map: gone with its last flow.
    pub(super) probe: bool,
    /// Whether it still carries what it is given.
    pub(super) standing: Standing,
    /// Whether it has ever answered a ping of this run: then it knows our disco key.
    pub(super) met: bool,
    pub(super) flows: usize,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    /// See [`Peers::awake`].
    awake: bool,
}

/// The disco key of a peer's present run.
struct Disco {
    key: Key,
    /// Made when first needed.
    shared: Option<Shared>,
}

impl Disco {
    const fn new(key: Key) -> Self {
        Self { key, shared: None }
    }
}

impl Slot {
    /// What seals and opens disco messages between this node and the peer, if that speaks disco.
    pub(super) fn disco(&mut self, own: &DiscoKeyPair) -> Option<&mut Shared> {
        let Disco { key, shared } = self.disco.as_mut()?;
        Some(shared.get_or_insert_with(|| Shared::new(own, *key)))
    }

    fn disco_key(&self) -> Option<Key> {
        self.disco.as_ref().map(|disco| disco.key)
    }

    /// Whether a session and a path to it are wanted now.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        (self.warm && self.online) || self.flows > 0 || self.path.is_active(now)
    }

    /// Whether it is used, or would be next.
    pub(super) const fn is_watched(&self) -> bool {
        self.warm || self.awake
    }

    /// Whether the clock has nothing to do with it.
    fn is_asleep(&self, now: Instant) -> bool {
        let due = self.path.next().or(self.tunnel.next()).or(self.standing.next());
        due.is_none() && !self.path.is_active(now)
    }
}

/// All slots, and how they are found.
#[derive(Default)]
pub(super) struct Peers {
    slots: Vec<Option<Box<Slot>>>,
    by_node: HashMap<Key, SlotId>,
    by_disco: HashMap<Key, SlotId>,
    by_number: HashMap<u32, SlotId, foldhash::fast::RandomState>,
    /// Those that something is or may be due for. A cluster has as many routers as nodes, and all but a few of them sleep: looking at
    /// these in each turn costs less than keeping track of what is due when.
    awake: Vec<SlotId>,
}

impl Peers {
    pub(super) fn get(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(id)?.as_deref()
    }

    /// What is done to a peer wakes it.
    pub(super) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id)?.as_deref_mut()?;
        if !slot.awake {
            slot.awake = true;
            self.awake.push(id);
        }
        Some(slot)
    }

    pub(super) fn by_node(&self, key: Key) -> Option<SlotId> {
        self.by_node.get(&key).copied()
    }

    pub(super) fn by_disco(&self, key: Key) -> Option<SlotId> {
        self.by_disco.get(&key).copied()
    }

    pub(super) fn by_number(&self, number: u32) -> Option<SlotId> {
        self.by_number.get(&number).copied()
    }

    pub(super) fn ids(&self) -> Vec<SlotId> {
        (0..self.slots.len()).filter(|id| self.slots[*id].is_some()).collect()
    }

    /// The cluster's routers.
    pub(super) fn routers(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        let all = self.slots.iter().enumerate();
        all.filter_map(|(id, slot)| Some((id, slot.as_deref()?))).filter(|(_, slot)| !slot.probe)
    }

    /// Those that the clock has to do with, and perhaps others.
    pub(super) fn awake(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        self.awake.iter().filter_map(|id| Some((*id, self.get(*id)?)))
    }

    /// Lets those sleep that nothing is due for.
    pub(super) fn rest(&mut self, now: Instant) {
        let slots = &mut self.slots;
        self.awake.retain(|id| {
            let Some(slot) = slots.get_mut(*id).and_then(Option::as_mut) else { return false };
            slot.awake = !slot.is_asleep(now);
            slot.awake
        });
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten().map(Box::as_ref)
    }

    /// A new slot for a peer that has none.
    pub(super) fn insert(&mut self, own: &Arc<OwnKey>, key: Key, disco: Option<Key>, now: Instant) -> SlotId {
        let number = loop {
            let number = rand::random::<u32>() >> 8;
            if !self.by_number.contains_key(&number) {
                break number;
            }
        };
        let slot = Slot {
            key,
            disco: disco.map(Disco::new),
            addresses: Vec::new(),
            relay: Whereabouts::default(),
            online: true,
            tunnel: Tunnel::new(own, key, number, now),
            path: Path::new(rand::random(), false),
            warm: false,
            probe: false,
            standing: Standing::default(),
            met: false,
            flows: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            awake: false,
        };
        let id = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[id] = Some(Box::new(slot));
        self.by_node.insert(key, id);
        self.by_number.insert(number, id);
        if let Some(disco) = disco {
            self.by_disco.insert(disco, id);
        }
        id
    }

    pub(super) fn remove(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(id).and_then(Option::take) else { return };
        // Its place may be another one's before the next rest.
        self.awake.retain(|other| *other != id);
        self.by_node.remove(&slot.key);
        self.by_number.remove(&slot.tunnel.number());
        if let Some(disco) = slot.disco_key() {
            self.by_disco.remove(&disco);
        }
    }

    fn set_disco(&mut self, id: SlotId, disco: Option<Key>) {
        let Some(slot) = self.slots.get_mut(id).and_then(Option::as_mut) else { return };
        if slot.disco_key() == disco {
            return;
        }
        if let Some(old) = std::mem::replace(&mut slot.disco, disco.map(Disco::new)) {
            self.by_disco.remove(&old.key);
        }
        if let Some(new) = disco {
            self.by_disco.insert(new, id);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// When the next timer of a peer is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.awake().flat_map(|(_, slot)| [slot.path.next(), slot.tunnel.next()]).flatten().min()
    }

    pub(super) fn any_active(&self, now: Instant) -> bool {
        self.awake().any(|(_, slot)| slot.path.is_active(now))
    }
}

impl Node {
    /// Takes a new network map: routers come, go, move and restart; relays too.
    pub(super) fn apply_map(&mut self, map: Arc<NetMap>, work: &mut Work, now: Instant) {
        self.routes = Routes::new(&map, &self.allowance());
        self.tell_ignored(&map);
        self.relays.apply(&map);
        self.locator.apply(&map);
        let trusted: Vec<&Peer> =
            map.peers.values().map(Arc::as_ref).filter(|peer| routes::is_trusted(peer, &self.spec.cluster)).collect();
        // Gone from the map, or another key: nothing of the old one may live on.
        let keys: HashSet<Key> = trusted.iter().map(|peer| peer.node_key).collect();
        for id in self.peers.ids() {
            if self.peers.get(id).is_some_and(|slot| !slot.probe && !keys.contains(&slot.key)) {
                self.drop_peer(id, work, now);
            }
        }
        let warm: HashSet<Key> = self.routes.warm().collect();
        for peer in trusted {
            self.apply_peer(peer, warm.contains(&peer.node_key), work, now);
        }
        self.map = Some(map);
        self.choose_home(now);
        self.drop_unserved_flows(work, now);
        if self.locator.is_unasked() {
            self.ask_for_own_address(now);
        }
    }

    /// What the map may offer this connector.
    pub(super) fn allowance(&self) -> Allowance<'_> {
        Allowance { cluster: &self.spec.cluster, networks: &self.spec.routes, site: self.spec.site }
    }

    fn tell_ignored(&mut self, map: &NetMap) {
        for peer in map.peers.values() {
            let ignored = self.allowance().ignored(peer);
            let networks = self.told.news(peer, ignored);
            if !networks.is_empty() {
                tracing::info!(peer = ?peer.node_key, ?networks, "the network map offers networks that are not used");
            }
        }
    }

    fn apply_peer(&mut self, peer: &Peer, warm: bool, work: &mut Work, now: Instant) {
        let (id, is_new) = match self.peers.by_node(peer.node_key) {
            Some(id) => (id, false),
            None => (self.peers.insert(&self.own, peer.node_key, peer.disco_key, now), true),
        };
        let Some(slot) = self.peers.get_mut(id) else { return };
        let online = peer.online != Some(false);
        let restarted = !is_new && slot.disco_key() != peer.disco_key;
        let came_back = online && (!slot.online || restarted || is_new || (warm && !slot.warm));
        slot.addresses.clone_from(&peer.addresses);
        let has_moved = std::mem::replace(&mut slot.relay.home, peer.home_relay) != peer.home_relay;
        slot.online = online;
        slot.warm = warm;
        slot.probe = false;
        slot.path.set_warm(warm && online);
        if came_back {
            slot.standing = Standing::default();
        }
        if restarted {
            slot.relay.heard = None;
            slot.path.forget();
        }
        slot.path.set_map_addresses(&peer.endpoints);
        self.peers.set_disco(id, peer.disco_key);
        if has_moved {
            self.hurry_flows(id, now);
        }
        if !came_back {
            return;
        }
        // Ready before the first dial, and again after a restart: the session is renewed beside the old one.
        let Some(slot) = self.peers.get_mut(id) else { return };
        if slot.is_wanted(now) {
            slot.path.search(now, &mut self.actions);
            if let Some(len) = slot.tunnel.begin_again(now, &mut work.plain) {
                self.send_message(id, &work.plain[..len], now);
            }
            self.act(id, now);
        }
    }

    /// Forgets a peer; its flows are reset.
    pub(super) fn drop_peer(&mut self, id: SlotId, work: &mut Work, now: Instant) {
        for flow in self.flows.of(id) {
            self.reset_flow(flow, work, now);
        }
        self.peers.remove(id);
    }
}
