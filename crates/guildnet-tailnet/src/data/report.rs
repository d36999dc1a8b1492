//! What is told of a connector: its state, and everything at one moment.

use std::time::{Instant, SystemTime};

use guildnet_model::{
    ConnectorSnapshot, ConnectorState, ConnectorStatus, Dropped, NodeInfo, PathKind, PeerContact, PeerInfo,
};
use tokio::sync::watch;

use super::Node;
use crate::{netmap::Peer, routes};

/// Sets the state, and since when, if it is another one.
pub(crate) fn set_state(status: &watch::Sender<ConnectorStatus>, state: ConnectorState) {
    let node = status.borrow().node.clone();
    set(status, state, node);
}

fn set(status: &watch::Sender<ConnectorStatus>, state: ConnectorState, node: Option<NodeInfo>) {
    status.send_if_modified(|status| {
        let changed = status.state != state || status.node != node;
        if status.state != state {
            tracing::info!(was = %status.state, now = %state, "connector state");
            status.become_at(state, SystemTime::now());
        }
        status.node = node;
        changed
    });
}

impl Node {
    /// Tells the state if something changed that it depends on.
    pub(super) fn publish(&mut self, now: Instant) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.facts.no_router = self.no_router(now);
        self.facts.relay = self.relays.is_connected();
        self.facts.relay_trouble = self.relays.trouble();
        self.facts.direct = self.peers.iter().any(|slot| slot.warm && slot.path.kind(now) == PathKind::Direct);
        let node = self.map.as_ref().map(|map| map.self_node.info.clone());
        set(&self.status, self.facts.state(), node);
    }

    /// Why nothing could be dialled, if so.
    fn no_router(&self, now: Instant) -> Option<String> {
        let routers = self.routes.routers();
        if routers.is_empty() {
            return Some(format!("the network map names no node tagged {}", self.spec.cluster.router_tag()));
        }
        if !self.routes.any_served() {
            return Some(format!("no router serves {} (are its routes approved?)", self.spec.routes));
        }
        let there = routers.iter().any(|router| router.online || self.liveness(router.key, now).heard);
        (!there).then(|| match routers {
            [_] => "the cluster's router is not connected".to_owned(),
            all => format!("none of the cluster's {} routers is connected", all.len()),
        })
    }

    /// Everything at this moment.
    pub(super) fn snapshot(&self, now: Instant) -> ConnectorSnapshot {
        let peers = self.map.iter().flat_map(|map| map.peers.values());
        ConnectorSnapshot {
            status: self.status.borrow().clone(),
            peers: peers.map(|peer| self.peer_info(peer, now)).collect(),
            home_relay: self.relays.connected_home(),
            flows: self.flows.len(),
            dropped: Dropped {
                too_large: self.dropped.too_large + self.relays.skipped(),
                socket_refused: self.link.failed(),
                ..self.dropped
            },
        }
    }

    fn peer_info(&self, peer: &Peer, now: Instant) -> PeerInfo {
        let slot = self.peers.by_node(peer.node_key).and_then(|id| self.peers.get(id));
        PeerInfo {
            name: peer.name.clone(),
            node_key: peer.node_key.node_text(),
            addresses: peer.addresses.clone(),
            tags: peer.tags.clone(),
            routes: peer.served().collect(),
            ignored: self.allowance().ignored(peer),
            online: peer.online,
            trusted: routes::is_trusted(peer, &self.spec.cluster),
            path: slot.map_or(PathKind::Idle, |slot| slot.path.kind(now)),
            rtt: slot.and_then(|slot| slot.path.rtt()),
            last_handshake: slot.and_then(|slot| slot.tunnel.established()),
            rx_bytes: slot.map_or(0, |slot| slot.rx_bytes),
            tx_bytes: slot.map_or(0, |slot| slot.tx_bytes),
            contact: PeerContact {
                node_key: peer.node_key.0,
                disco_key: peer.disco_key.map(|key| key.0),
                home_relay: peer.home_relay,
                endpoints: peer.endpoints.clone(),
            },
        }
    }
}
