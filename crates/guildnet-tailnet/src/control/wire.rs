//! The JSON of the control protocol (tailscale `tailcfg/tailcfg.go`, `tailcfg/derpmap.go`), as far as a connector needs it.
//!
//! Reading is lenient: unknown fields are skipped, Go's `null` for an empty list is an empty list, and what can't be read is
//! left out and counted, in the smallest part that has a meaning without it (an entry of a list, a field, a peer): one node
//! that the server describes badly must not cost the others. Everything leaves this file as the types of `netmap.rs`.

mod filter;
mod lax;

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use guildnet_model::NodeInfo;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::{
    filter::FilterRule,
    lax::{Lax, List, Pairs},
};
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
    /// RFC 3339; one in the past logs the node out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expiry: Option<&'static str>,
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
    control_time: Lax<jiff::Timestamp>,
    node: Lax<Node>,
    #[serde(rename = "DERPMap")]
    derp_map: Lax<DerpMap>,
    peers: Lax<List<Node>>,
    peers_changed: Lax<List<Node>>,
    peers_removed: Lax<List<u64>>,
    peers_changed_patch: Lax<List<PeerChange>>,
    online_change: Lax<Pairs<u64, bool>>,
    packet_filter: Lax<List<FilterRule>>,
    packet_filters: Lax<Pairs<String, Lax<List<FilterRule>>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    #[serde(rename = "ID")]
    id: u64,
    name: Lax<String>,
    key: String,
    disco_key: String,
    key_expiry: Lax<jiff::Timestamp>,
    addresses: Lax<List<IpNet>>,
    #[serde(rename = "AllowedIPs")]
    allowed_ips: Lax<List<IpNet>>,
    endpoints: Lax<List<String>>,
    #[serde(rename = "HomeDERP")]
    home_derp: Lax<i64>,
    /// Older servers write the home relay as `127.3.3.40:REGION`.
    #[serde(rename = "DERP")]
    legacy_derp: Lax<String>,
    tags: Lax<List<String>>,
    online: Lax<bool>,
    expired: Lax<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PeerChange {
    #[serde(rename = "NodeID")]
    node_id: u64,
    key: Option<String>,
    disco_key: Option<String>,
    endpoints: Lax<List<String>>,
    #[serde(rename = "DERPRegion")]
    derp_region: Lax<i64>,
    online: Lax<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpMap {
    regions: Lax<Pairs<u16, Option<DerpRegion>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpRegion {
    region_name: Lax<String>,
    nodes: Lax<List<DerpNode>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DerpNode {
    host_name: String,
    #[serde(rename = "IPv4")]
    ipv4: Lax<String>,
    #[serde(rename = "STUNPort")]
    stun_port: Lax<i64>,
    #[serde(rename = "STUNOnly")]
    stun_only: bool,
    #[serde(rename = "DERPPort")]
    derp_port: u16,
}

impl MapResponse {
    /// Parses one message.
    ///
    /// # Errors
    /// If it is no JSON object. What is wrong inside of it is left out.
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The server's clock when it wrote the message, if it says so.
    pub(super) fn server_time(&self) -> Option<SystemTime> {
        self.control_time.get().copied().map(SystemTime::from)
    }

    /// What the message changes, and how many parts of it could not be read and are left out.
    pub(super) fn into_update(self) -> (Update, usize) {
        let mut bad = 0;
        let online = self.online_change.pairs(&mut bad).unwrap_or_default().into_iter();
        let mut patches: Vec<PeerPatch> =
            online.map(|(id, online)| PeerPatch { id, online: Some(online), ..PeerPatch::default() }).collect();
        let changes = self.peers_changed_patch.list(&mut bad).unwrap_or_default();
        patches.extend(changes.into_iter().filter_map(|change| change.into_patch(&mut bad)));
        let peers =
            |nodes: Vec<Node>, bad: &mut usize| nodes.into_iter().filter_map(|node| node.into_peer(bad)).collect();
        // An empty list is left out by servers; one that is there but empty means nothing either, and one of which nothing can
        // be read does not mean that all are gone.
        let all: Option<Vec<Peer>> = self.peers.list(&mut bad).map(|nodes| peers(nodes, &mut bad));
        let update = Update {
            self_node: self.node.take(&mut bad).and_then(|node| node.into_self(&mut bad)),
            relays: self.derp_map.take(&mut bad).and_then(|map| relays(map, &mut bad)),
            peers: all.filter(|list| !list.is_empty()),
            removed: self.peers_removed.list(&mut bad).unwrap_or_default(),
            changed: self.peers_changed.list(&mut bad).map(|nodes| peers(nodes, &mut bad)).unwrap_or_default(),
            patches,
            filter: filter::changes(self.packet_filter, self.packet_filters, &mut bad),
        };
        (update, bad + usize::from(self.control_time.is_bad()))
    }
}

impl Node {
    fn into_peer(self, bad: &mut usize) -> Option<Peer> {
        let before = *bad;
        let (Some(node_key), Some(disco_key)) = (self.node_key(), self.disco_key()) else {
            *bad += 1;
            tracing::debug!(peer = self.id, "the map names a peer with a key that is none; it is left out");
            return None;
        };
        let peer = Peer {
            id: self.id,
            name: self.short_name(),
            node_key,
            disco_key,
            home_relay: self.home_relay(),
            addresses: self.addresses.list(bad).unwrap_or_default().iter().map(IpNet::addr).collect(),
            allowed: self.allowed_ips.list(bad).unwrap_or_default(),
            endpoints: addrs(self.endpoints.list(bad).unwrap_or_default()),
            online: self.online.take(bad),
            tags: self.tags.list(bad).unwrap_or_default(),
        };
        *bad += [self.name.is_bad(), self.home_derp.is_bad(), self.legacy_derp.is_bad()]
            .into_iter()
            .filter(|is| *is)
            .count();
        if *bad > before {
            tracing::debug!(peer = peer.id, parts = *bad - before, "parts of a peer can't be read and are left out");
        }
        Some(peer)
    }

    fn into_self(self, bad: &mut usize) -> Option<SelfNode> {
        let Some(node_key) = self.node_key() else {
            *bad += 1;
            tracing::debug!("the map names this node with a key that is none; it is left out");
            return None;
        };
        let name = self.short_name();
        // Go's zero time, the year 1, means "never".
        let key_expiry = self.key_expiry.take(bad).filter(|at| at.as_second() > 0).map(SystemTime::from);
        Some(SelfNode {
            node_key,
            expired: self.expired.take(bad).unwrap_or_default(),
            info: NodeInfo {
                name,
                id: self.id,
                addresses: self.addresses.list(bad).unwrap_or_default().iter().map(IpNet::addr).collect(),
                node_key: node_key.node_text(),
                tags: self.tags.list(bad).unwrap_or_default(),
                key_expiry,
            },
            allowed: self.allowed_ips.list(bad).unwrap_or_default(),
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
        self.name.get().and_then(|name| name.split('.').next()).unwrap_or_default().to_owned()
    }

    fn home_relay(&self) -> Option<u16> {
        let legacy = || self.legacy_derp.get()?.strip_prefix("127.3.3.40:")?.parse().ok().filter(|r| *r != 0);
        self.home_derp.get().and_then(|number| region(*number)).or_else(legacy)
    }
}

impl PeerChange {
    fn into_patch(self, bad: &mut usize) -> Option<PeerPatch> {
        let key = self.key.as_deref().map(Key::parse_node).transpose();
        let disco = self.disco_key.as_deref().map(Key::parse_disco).transpose();
        let (Ok(node_key), Ok(disco_key)) = (key, disco) else {
            *bad += 1;
            tracing::debug!(
                peer = self.node_id,
                "the map patches a peer with a key that is none; the patch is left out"
            );
            return None;
        };
        Some(PeerPatch {
            id: self.node_id,
            node_key,
            disco_key: disco_key.flatten(),
            endpoints: self.endpoints.list(bad).map(addrs),
            home_relay: self.derp_region.take(bad).and_then(region),
            online: self.online.take(bad),
        })
    }
}

/// The usable relays. `None` if the map says nothing about them, or nothing that can be read.
fn relays(map: DerpMap, bad: &mut usize) -> Option<Vec<Relay>> {
    let before = *bad;
    let mut regions = map.regions.pairs(bad)?;
    regions.sort_by_key(|(region, _)| *region);
    regions.dedup_by_key(|(region, _)| *region);
    let mut relay = |(region, of): (u16, Option<DerpRegion>)| {
        let of = of?;
        let nodes = of.nodes.list(bad)?;
        let node = nodes.into_iter().find(|node| !node.stun_only && !node.host_name.is_empty())?;
        Some(Relay {
            region,
            name: of.region_name.take(bad).unwrap_or_default(),
            host: node.host_name,
            port: if node.derp_port == 0 { 443 } else { node.derp_port },
            // "none" forbids IPv4 in the protocol; the name is resolved then.
            ipv4: node.ipv4.take(bad).and_then(|ip| ip.parse().ok()),
            stun_port: match node.stun_port.take(bad) {
                None | Some(0) => Some(3478),
                Some(port) => u16::try_from(port).ok(),
            },
        })
    };
    let relays: Vec<Relay> = regions.into_iter().filter_map(&mut relay).collect();
    if *bad > before {
        tracing::debug!(parts = *bad - before, "parts of the map's relays can't be read and are left out");
    }
    (!relays.is_empty() || *bad == before).then_some(relays)
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
        MapResponse::parse(json.as_bytes()).expect("a map").into_update().0
    }

    /// How many parts are left out.
    fn bad(json: &str) -> usize {
        MapResponse::parse(json.as_bytes()).expect("a map").into_update().1
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

    #[test]
    fn what_is_bad_in_a_peer_costs_no_more_than_itself() {
        let peer = |id: u64, fields: &str| format!(r#"{{"ID":{id},"Key":"{}",{fields}}}"#, key_text("nodekey", "02"));
        let good = r#""AllowedIPs":["10.0.0.0/8"],"Online":true"#;
        let json = |list: &[String]| format!(r#"{{"Peers":[{}]}}"#, list.join(","));
        for (fields, count) in [
            (r#""AllowedIPs":["10.0.0.0/8","10.0.0.0/33",7,null],"Online":true"#, 3),
            (r#""AllowedIPs":["10.0.0.0/8"],"KeyExpiry":"tomorrow","Online":true"#, 0),
            (r#""AllowedIPs":["10.0.0.0/8"],"HomeDERP":"7","Online":true"#, 1),
            (r#""AllowedIPs":["10.0.0.0/8"],"Addresses":{},"Tags":"tag:a","Online":true"#, 2),
        ] {
            let json = json(&[peer(2, fields), peer(3, good)]);
            let peers = update(&json).peers.expect("a full list");
            assert_eq!(peers.len(), 2, "{fields}");
            for peer in peers {
                assert_eq!((peer.allowed.len(), peer.online), (1, Some(true)), "{fields}");
            }
            assert_eq!(bad(&json), count, "{fields}");
        }
        for broken in
            [peer(2, r#""DiscoKey":7"#), r#"{"ID":"2"}"#.into(), "7".into(), "[]".into(), r#"{"ID":-1}"#.into()]
        {
            let json = json(&[broken.clone(), peer(3, good)]);
            let peers = update(&json).peers.expect("a full list");
            assert_eq!(peers.iter().map(|peer| peer.id).collect::<Vec<_>>(), [3], "{broken}");
            assert_eq!(bad(&json), 1, "{broken}");
        }
    }

    #[test]
    fn what_is_bad_in_a_relay_costs_no_other() {
        let json = r#"{"DERPMap":{"Regions":{
            "1": {"Nodes":[{"HostName":"a.example","DERPPort":70000}]},
            "2": {"Nodes":[{"HostName":"b.example","DERPPort":-1},{"HostName":"c.example","STUNPort":"x"}]},
            "70000": {"Nodes":[{"HostName":"d.example"}]},
            "x": null,
            "4": 7
        }}}"#;
        let relays = update(json).relays.expect("relays");
        assert_eq!(relays.iter().map(|relay| relay.host.as_str()).collect::<Vec<_>>(), ["c.example"]);
        assert_eq!(bad(json), 6);
        for none in [r#"{"DERPMap":{"Regions":{"4":7}}}"#, r#"{"DERPMap":{"Regions":7}}"#, r#"{"DERPMap":"x"}"#] {
            assert_eq!((update(none).relays, bad(none)), (None, 1), "relays that work are not given up for {none}");
        }
    }

    #[test]
    fn a_bad_part_of_a_message_leaves_its_other_parts() {
        let json = format!(
            r#"{{"Node":{{"ID":1,"Key":"{}","KeyExpiry":"soon"}},"Peers":7,"PeersRemoved":[2,"3",4],
                "OnlineChange":{{"2":true,"x":true,"4":1}},"PeersChangedPatch":[{{"NodeID":5,"Online":"no","DERPRegion":3}},0]}}"#,
            key_text("nodekey", "01")
        );
        let told = update(&json);
        assert_eq!(told.self_node.expect("this node").info.key_expiry, None);
        assert_eq!((told.peers, told.removed), (None, vec![2, 4]));
        let patch = |id, online, home_relay| PeerPatch { id, online, home_relay, ..PeerPatch::default() };
        assert_eq!(told.patches, [patch(2, Some(true), None), patch(5, None, Some(3))]);
        assert_eq!(bad(&json), 7);
        for nothing in ["[]", "[7]", r#"[{"ID":2,"Key":"x"}]"#] {
            assert_eq!(update(&format!(r#"{{"Peers":{nothing}}}"#)).peers, None, "not even that all are gone");
        }
    }

    #[test]
    fn entries_that_are_nothing_take_no_memory() {
        let json = format!(r#"{{"PeersRemoved":[{}0]}}"#, "null,".repeat(100_000));
        let told = MapResponse::parse(json.as_bytes()).expect("a map");
        let (update, bad) = told.into_update();
        assert_eq!((update.removed.len(), bad), (1, 100_000));
        assert!(update.removed.capacity() < 16);
    }

    #[test]
    fn the_servers_clock_is_read() {
        let time = |json: &str| MapResponse::parse(json.as_bytes()).expect("a map").server_time();
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        assert_eq!(time(r#"{"ControlTime":"2001-09-09T01:46:40Z"}"#), Some(at));
        assert_eq!(time(r#"{"ControlTime":"now"}"#), None);
        assert_eq!(bad(r#"{"ControlTime":"now"}"#), 1);
    }
}
