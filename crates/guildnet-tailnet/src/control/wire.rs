//! The JSON of the control protocol (tailscale `tailcfg/tailcfg.go`, `tailcfg/derpmap.go`), as far as a connector needs it.
//!
//! Reading is lenient: unknown fields are skipped, a peer that can't be understood is left out with a warning, and Go's
//! `null` for an empty list is an empty list. Everything leaves this file as the types of `netmap.rs`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use guildnet_model::NodeInfo;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::LocalReport;
use crate::netmap::{Key, Peer, PeerPatch, Relay, SelfNode, Update};

/// Answer of `GET /key`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerKeys {
    pub(super) public_key: String,
}

/// Body of `POST /machine/register`. Holds the preauth key: never format it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RegisterRequest<'a> {
    pub(super) version: u16,
    pub(super) node_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) old_node_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth: Option<Auth<'a>>,
    pub(super) hostinfo: Hostinfo<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Auth<'a> {
    pub(super) auth_key: &'a str,
}

/// Answer to a registration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RegisterResponse {
    pub(super) node_key_expired: bool,
    pub(super) machine_authorized: bool,
    #[serde(rename = "AuthURL")]
    pub(super) auth_url: String,
    pub(super) error: String,
}

/// What the node tells about itself.
#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Hostinfo<'a> {
    #[serde(rename = "IPNVersion")]
    version: &'static str,
    #[serde(rename = "OS")]
    os: &'static str,
    hostname: &'a str,
    app: &'static str,
    userspace: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_info: Option<NetInfo>,
}

#[derive(Clone, Serialize)]
struct NetInfo {
    #[serde(rename = "PreferredDERP")]
    home_relay: u16,
}

impl<'a> Hostinfo<'a> {
    pub(super) fn new(hostname: &'a str, home_relay: Option<u16>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            hostname,
            app: "guildnet",
            userspace: true,
            net_info: home_relay.map(|home_relay| NetInfo { home_relay }),
        }
    }
}

/// Body of `POST /machine/map`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MapRequest<'a> {
    version: u16,
    keep_alive: bool,
    stream: bool,
    omit_peers: bool,
    node_key: String,
    disco_key: String,
    hostinfo: Hostinfo<'a>,
    endpoints: Vec<SocketAddr>,
    endpoint_types: Vec<u8>,
}

impl<'a> MapRequest<'a> {
    /// Asks for the stream of maps and tells where this node can be reached.
    pub(super) fn stream(version: u16, keys: (String, String), hostname: &'a str, report: &LocalReport) -> Self {
        let endpoints = report.endpoints.clone();
        Self {
            version,
            keep_alive: true,
            stream: true,
            omit_peers: false,
            node_key: keys.0,
            disco_key: keys.1,
            hostinfo: Hostinfo::new(hostname, report.home_relay),
            endpoint_types: endpoints.iter().map(|addr| endpoint_type(addr.ip())).collect(),
            endpoints,
        }
    }

    /// Tells where this node can be reached, and asks for nothing ("lite update").
    pub(super) fn lite(version: u16, keys: (String, String), hostname: &'a str, report: &LocalReport) -> Self {
        Self { keep_alive: false, stream: false, omit_peers: true, ..Self::stream(version, keys, hostname, report) }
    }
}

/// `tailcfg.EndpointType`: 1 is an address of an interface, 2 one that STUN saw.
const fn endpoint_type(ip: IpAddr) -> u8 {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
    };
    if local { 1 } else { 2 }
}

/// One message of the map stream.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct MapResponse {
    node: Option<Node>,
    #[serde(rename = "DERPMap")]
    derp_map: Option<DerpMap>,
    peers: Option<Vec<Node>>,
    peers_changed: Option<Vec<Node>>,
    peers_removed: Option<Vec<u64>>,
    peers_changed_patch: Option<Vec<PeerChange>>,
    online_change: Option<BTreeMap<u64, bool>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    #[serde(rename = "ID")]
    id: u64,
    name: String,
    key: String,
    disco_key: String,
    key_expiry: Option<jiff::Timestamp>,
    addresses: Option<Vec<IpNet>>,
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Option<Vec<IpNet>>,
    endpoints: Option<Vec<String>>,
    #[serde(rename = "HomeDERP")]
    home_derp: i64,
    /// Older servers write the home relay as `127.3.3.40:REGION`.
    #[serde(rename = "DERP")]
    legacy_derp: String,
    tags: Option<Vec<String>>,
    online: Option<bool>,
    expired: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PeerChange {
    #[serde(rename = "NodeID")]
    node_id: u64,
    key: Option<String>,
    disco_key: Option<String>,
    endpoints: Option<Vec<String>>,
    #[serde(rename = "DERPRegion")]
    derp_region: i64,
    online: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpMap {
    regions: Option<BTreeMap<u16, Option<DerpRegion>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpRegion {
    region_name: String,
    nodes: Option<Vec<DerpNode>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpNode {
    host_name: String,
    #[serde(rename = "IPv4")]
    ipv4: String,
    #[serde(rename = "STUNPort")]
    stun_port: i32,
    #[serde(rename = "STUNOnly")]
    stun_only: bool,
    #[serde(rename = "DERPPort")]
    derp_port: u16,
}

impl MapResponse {
    /// Parses one message.
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// What the message changes.
    pub(super) fn into_update(self) -> Update {
        let mut patches: Vec<PeerPatch> = self
            .online_change
            .unwrap_or_default()
            .into_iter()
            .map(|(id, online)| PeerPatch { id, online: Some(online), ..PeerPatch::default() })
            .collect();
        patches.extend(self.peers_changed_patch.unwrap_or_default().into_iter().filter_map(PeerChange::into_patch));
        let peers = |nodes: Vec<Node>| nodes.into_iter().filter_map(Node::into_peer).collect();
        Update {
            self_node: self.node.and_then(Node::into_self),
            // A DERP map without regions says nothing about them.
            relays: self.derp_map.and_then(|map| map.regions).map(relays),
            // An empty list is left out by servers; one that is there but empty means nothing either.
            peers: self.peers.filter(|list| !list.is_empty()).map(peers),
            removed: self.peers_removed.unwrap_or_default(),
            changed: self.peers_changed.map(peers).unwrap_or_default(),
            patches,
        }
    }
}

impl Node {
    fn into_peer(self) -> Option<Peer> {
        let (Some(node_key), Some(disco_key)) = (self.node_key(), self.disco_key()) else {
            tracing::warn!(peer = self.id, "the map names a peer with a key that is none; it is left out");
            return None;
        };
        Some(Peer {
            id: self.id,
            name: self.short_name(),
            node_key,
            disco_key,
            home_relay: self.home_relay(),
            addresses: self.addresses.unwrap_or_default().iter().map(IpNet::addr).collect(),
            allowed: self.allowed_ips.unwrap_or_default(),
            endpoints: addrs(self.endpoints.unwrap_or_default()),
            online: self.online,
            tags: self.tags.unwrap_or_default(),
        })
    }

    fn into_self(self) -> Option<SelfNode> {
        let node_key = self.node_key().or_else(|| {
            tracing::warn!("the map names this node with a key that is none");
            None
        })?;
        // Go's zero time, the year 1, means "never".
        let key_expiry = self.key_expiry.filter(|at| at.as_second() > 0).map(SystemTime::from);
        Some(SelfNode {
            node_key,
            expired: self.expired,
            info: NodeInfo {
                name: self.short_name(),
                id: self.id,
                addresses: self.addresses.unwrap_or_default().iter().map(IpNet::addr).collect(),
                node_key: node_key.node_text(),
                tags: self.tags.unwrap_or_default(),
                key_expiry,
            },
            allowed: self.allowed_ips.unwrap_or_default(),
        })
    }

    fn node_key(&self) -> Option<Key> {
        Key::parse_node(&self.key).ok()
    }

    /// The outer `None`: not a key at all.
    fn disco_key(&self) -> Option<Option<Key>> {
        Key::parse_disco(&self.disco_key).ok()
    }

    /// The first label of the node's full name.
    fn short_name(&self) -> String {
        self.name.split('.').next().unwrap_or_default().to_owned()
    }

    fn home_relay(&self) -> Option<u16> {
        region(self.home_derp)
            .or_else(|| self.legacy_derp.strip_prefix("127.3.3.40:")?.parse().ok().filter(|r| *r != 0))
    }
}

impl PeerChange {
    fn into_patch(self) -> Option<PeerPatch> {
        let key = self.key.as_deref().map(Key::parse_node).transpose();
        let disco = self.disco_key.as_deref().map(Key::parse_disco).transpose();
        let (Ok(node_key), Ok(disco_key)) = (key, disco) else {
            tracing::warn!(
                peer = self.node_id,
                "the map patches a peer with a key that is none; the patch is left out"
            );
            return None;
        };
        Some(PeerPatch {
            id: self.node_id,
            node_key,
            disco_key: disco_key.flatten(),
            endpoints: self.endpoints.map(addrs),
            home_relay: region(self.derp_region),
            online: self.online,
        })
    }
}

fn relays(regions: BTreeMap<u16, Option<DerpRegion>>) -> Vec<Relay> {
    let relay = |(region, of): (u16, Option<DerpRegion>)| {
        let of = of?;
        let node = of.nodes?.into_iter().find(|node| !node.stun_only && !node.host_name.is_empty())?;
        Some(Relay {
            region,
            name: of.region_name,
            host: node.host_name,
            port: if node.derp_port == 0 { 443 } else { node.derp_port },
            // "none" forbids IPv4 in the protocol; the name is resolved then.
            ipv4: node.ipv4.parse().ok(),
            stun_port: if node.stun_port == 0 { Some(3478) } else { u16::try_from(node.stun_port).ok() },
        })
    };
    regions.into_iter().filter_map(relay).collect()
}

/// Region 0 means none.
fn region(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|n| *n != 0)
}

/// Addresses with a zone (`[fe80::1%eth0]:1`) mean nothing on another machine and are left out.
fn addrs(texts: Vec<String>) -> Vec<SocketAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(json: &str) -> Update {
        MapResponse::parse(json.as_bytes()).expect("a map").into_update()
    }

    fn key_text(prefix: &str, byte: &str) -> String {
        format!("{prefix}:{}", byte.repeat(32))
    }

    #[test]
    fn a_peer_is_understood() {
        let json = format!(
            r#"{{"Peers":[{{
                "ID": 2, "StableID": "2", "Name": "router-a.tailnet.example.", "User": 1,
                "Key": "{}", "DiscoKey": "{}", "Machine": "mkey:00",
                "Addresses": ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"],
                "AllowedIPs": ["100.64.0.2/32", "10.96.0.0/16"],
                "Endpoints": ["192.0.2.1:41641", "[fe80::1%eth0]:41641", "[2001:db8::1]:41641"],
                "HomeDERP": 999, "Tags": ["tag:gn-a-router"], "Online": true, "Hostinfo": {{"OS": "linux"}}
            }}]}}"#,
            key_text("nodekey", "02"),
            key_text("discokey", "03"),
        );
        let peers = update(&json).peers.expect("a full list");
        insta::assert_debug_snapshot!(peers);
    }

    #[test]
    fn empty_lists_of_go_are_no_lists() {
        assert_eq!(
            update(
                r#"{"Peers":null,"PeersChanged":null,"PeersRemoved":null,"OnlineChange":null,"DERPMap":{"Regions":null}}"#
            ),
            Update::default()
        );
        assert_eq!(update(r#"{"KeepAlive":true,"ControlTime":"2026-01-01T00:00:00Z"}"#), Update::default());
    }

    #[test]
    fn a_peer_with_a_bad_key_does_not_spoil_the_map() {
        let json =
            format!(r#"{{"Peers":[{{"ID":2,"Key":"nodekey:xx"}},{{"ID":3,"Key":"{}"}}]}}"#, key_text("nodekey", "03"));
        let ids: Vec<u64> = update(&json).peers.expect("a full list").iter().map(|peer| peer.id).collect();
        assert_eq!(ids, [3]);
    }

    #[test]
    fn expiry_is_never_or_a_time() {
        let expiry = |text: &str| {
            let json = format!(r#"{{"Node":{{"ID":1,"Key":"{}","KeyExpiry":"{text}"}}}}"#, key_text("nodekey", "01"));
            update(&json).self_node.expect("this node").info.key_expiry
        };
        assert_eq!(expiry("0001-01-01T00:00:00Z"), None);
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        assert_eq!(expiry("2001-09-09T01:46:40Z"), Some(at));
    }

    #[test]
    fn the_home_relay_is_read_in_both_forms() {
        let home = |field: &str| {
            let json = format!(r#"{{"Peers":[{{"ID":2,"Key":"{}",{field}}}]}}"#, key_text("nodekey", "02"));
            update(&json).peers.expect("a full list")[0].home_relay
        };
        assert_eq!(home(r#""HomeDERP":7"#), Some(7));
        assert_eq!(home(r#""DERP":"127.3.3.40:9""#), Some(9));
        assert_eq!(home(r#""DERP":"127.3.3.40:0""#), None);
        assert_eq!(home(r#""HomeDERP":0"#), None);
    }

    #[test]
    fn relays_have_the_protocols_default_ports() {
        let relays = update(
            r#"{"DERPMap":{"Regions":{
                "1": {"RegionName":"One","Nodes":[{"HostName":"stun.example","STUNOnly":true},{"HostName":"a.example","IPv4":"none"}]},
                "2": {"RegionName":"Two","Nodes":[{"HostName":"127.0.0.1","IPv4":"127.0.0.1","DERPPort":8443,"STUNPort":-1}]},
                "3": {"RegionName":"Empty","Nodes":null},
                "4": null
            }}}"#,
        )
        .relays
        .expect("relays");
        let relay = |region, name: &str, host: &str, port, ipv4, stun_port| Relay {
            region,
            name: name.into(),
            host: host.into(),
            port,
            ipv4,
            stun_port,
        };
        let home = Some(std::net::Ipv4Addr::LOCALHOST);
        assert_eq!(
            relays,
            [relay(1, "One", "a.example", 443, None, Some(3478)), relay(2, "Two", "127.0.0.1", 8443, home, None)]
        );
    }
}
