//! Which peer an address leads to, and which routes are ignored.

use std::{collections::BTreeMap, sync::Arc};

use guildnet_model::NodeInfo;
use proptest::prelude::*;

use super::*;
use crate::netmap::SelfNode;

fn peer(id: u64, tag: &str, allowed: &[&str], online: bool) -> Peer {
    Peer {
        id,
        name: format!("n{id}"),
        node_key: Key([u8::try_from(id).expect("small"); 32]),
        disco_key: None,
        addresses: Vec::new(),
        allowed: allowed.iter().map(|net| net.parse().expect("a network")).collect(),
        endpoints: Vec::new(),
        home_relay: None,
        online: Some(online),
        tags: vec![tag.to_owned()],
    }
}

fn map(peers: Vec<Peer>) -> NetMap {
    let info = NodeInfo {
        name: "me".into(),
        id: 0,
        addresses: Vec::new(),
        node_key: String::new(),
        tags: Vec::new(),
        key_expiry: None,
    };
    let self_node = SelfNode { info, node_key: Key([0; 32]), allowed: Vec::new(), expired: false };
    let peers: BTreeMap<u64, Arc<Peer>> = peers.into_iter().map(|peer| (peer.id, Arc::new(peer))).collect();
    NetMap { self_node, peers, relays: Vec::new(), filter: crate::filter::Filter::default() }
}

fn routes(peers: Vec<Peer>) -> Routes {
    with_allowance(|allowance| Routes::new(&map(peers), allowance))
}

fn with_allowance<T>(of: impl FnOnce(&Allowance<'_>) -> T) -> T {
    let cluster = "a".parse().expect("an id");
    let networks = "10.96.0.0/16,10.244.0.0/16".parse().expect("networks");
    let site = Some(SiteNumber::try_from(7).expect("a site"));
    of(&Allowance { cluster: &cluster, networks: &networks, site })
}

fn choose(routes: &Routes, target: &str) -> Result<(u8, String), Unserved> {
    let target = target.parse().expect("an address");
    routes.choose(target, |_| Liveness::default()).map(|c| (c[0].router.0[0], c[0].inner.to_string()))
}

const A: &str = "tag:gn-a-router";
const VIA6: &str = "fd7a:115c:a1e0:b1a:0:7:a60:0/112";

#[test]
fn the_clusters_own_router_carries_plain_ipv4() {
    let routes = routes(vec![peer(1, A, &["100.64.0.1/32", "10.96.0.0/16"], true)]);
    assert_eq!(choose(&routes, "10.96.0.1"), Ok((1, "10.96.0.1".into())));
    assert_eq!(choose(&routes, "10.244.0.1"), Err(Unserved::NoRoute));
}

#[test]
fn nobody_else_does_whatever_the_map_offers() {
    for tag in ["tag:gn-b-router", "tag:gn-a-client", "tag:gn-a-router-x", ""] {
        let routes = routes(vec![peer(1, tag, &["10.96.0.0/16"], true)]);
        assert_eq!(choose(&routes, "10.96.0.1"), Err(Unserved::NoRoute), "{tag}");
    }
}

#[test]
fn default_routes_and_foreign_networks_do_not_exist() {
    let routes =
        routes(vec![peer(1, A, &["0.0.0.0/0", "::/0", "192.168.0.0/16", "fd7a:115c:a1e0:b1a:0:8:a60:0/112"], true)]);
    assert!(!routes.any_served());
    assert_eq!(choose(&routes, "10.96.0.1"), Err(Unserved::NoRoute));
}

#[test]
fn the_sites_4via6_form_is_the_fallback() {
    let routes = routes(vec![peer(1, A, &[VIA6], true)]);
    assert_eq!(choose(&routes, "10.96.0.1"), Ok((1, "fd7a:115c:a1e0:b1a:0:7:a60:1".into())));
}

#[test]
fn plain_goes_before_4via6() {
    let routes = routes(vec![peer(1, A, &[VIA6], true), peer(2, A, &["10.96.0.0/16"], true)]);
    assert_eq!(choose(&routes, "10.96.0.1"), Ok((2, "10.96.0.1".into())));
}

#[test]
fn a_standby_takes_over_when_the_elected_router_is_offline() {
    let peers = |online| vec![peer(1, A, &[], true), peer(2, A, &["10.96.0.0/16"], online)];
    assert_eq!(choose(&routes(peers(true)), "10.96.0.1"), Ok((2, "10.96.0.1".into())));
    assert_eq!(choose(&routes(peers(false)), "10.96.0.1"), Ok((1, "10.96.0.1".into())));
}

#[test]
fn offline_is_told_apart_from_unserved() {
    let routes = routes(vec![peer(1, A, &["10.96.0.0/16"], false)]);
    assert_eq!(choose(&routes, "10.96.0.1"), Err(Unserved::Offline));
    let heard =
        routes.choose("10.96.0.1".parse().expect("an address"), |_| Liveness { heard: true, ..Liveness::default() });
    assert!(heard.is_ok(), "it answers, whatever the map says");
}

#[test]
fn all_that_are_there_are_named_in_the_order_of_trust() {
    let elected = &["10.96.0.0/16"][..];
    let peers = [(1, &[][..], true), (2, elected, true), (3, &[][..], true), (4, &[][..], false)];
    let routes = routes(peers.into_iter().map(|(id, nets, online)| peer(id, A, nets, online)).collect());
    let order = |liveness: &dyn Fn(u8) -> Liveness| {
        let choices = routes.choose("10.96.0.1".parse().expect("an address"), |key| liveness(key.0[0]));
        choices.expect("routers").into_iter().map(|choice| choice.router.0[0]).collect::<Vec<_>>()
    };
    let none = Liveness::default();
    assert_eq!(order(&|_| none), [2, 1, 3], "the elected one first, none that is away");
    assert_eq!(order(&|key| Liveness { direct: key == 3, ..none }), [3, 2, 1], "a direct path before election");
    assert_eq!(order(&|key| Liveness { direct: true, doubted: key == 2, ..none }), [1, 3, 2], "doubt before all");
    let rtt = |key| Some(Duration::from_millis(10 - u64::from(key)));
    assert_eq!(order(&|key| Liveness { direct: key != 2, rtt: rtt(key), ..none }), [3, 1, 2], "then the nearest");
}

#[test]
fn those_that_serve_and_a_few_others_are_kept_ready() {
    let standby = |id| peer(id, A, &[], true);
    let elected = peer(9, A, &["10.96.0.0/16"], false);
    let away = peer(1, A, &[], false);
    let warm = |peers| routes(peers).warm().map(|key| key.0[0]).collect::<Vec<_>>();
    assert_eq!(warm(vec![away, standby(2), standby(3), standby(4), elected]), [9, 2, 3]);
    assert_eq!(warm(vec![standby(2)]), [0; 0], "nothing is served");
}

proptest! {
    /// A dial only ever goes to a peer with this cluster's router tag, at the target itself or at its address in the own
    /// site's 4via6 range, and only while some such peer serves it.
    #[test]
    fn no_dial_leaves_the_cluster(
        peers in prop::collection::vec((0..4_usize, prop::collection::vec(0..7_usize, 0..4), any::<bool>()), 0..6),
        ip: u32,
        near: bool,
    ) {
        let tags = [A, "tag:gn-b-router", "tag:gn-a-client", "tag:other"];
        let nets = [
            "10.96.0.0/16", "10.244.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "192.168.0.0/16", VIA6,
            "fd7a:115c:a1e0:b1a:0:8:a60:0/112",
        ];
        let all: Vec<Peer> = peers.iter().enumerate().map(|(i, (tag, served, online))| {
            let served: Vec<&str> = served.iter().map(|n| nets[*n]).collect();
            peer(i as u64 + 1, tags[*tag], &served, *online)
        }).collect();
        let routes = routes(all.clone());
        let target = Ipv4Addr::from(if near { 0x0a60_0000 | (ip & 0xffff) } else { ip });
        for choice in routes.choose(target, |_| Liveness::default()).unwrap_or_default() {
            let chosen = all.iter().find(|p| p.node_key == choice.router).expect("a peer of the map");
            prop_assert_eq!(&chosen.tags[0], A);
            prop_assert!(chosen.online == Some(true));
            prop_assert!(routes.may_carry(choice.router, choice.inner));
            let site = SiteNumber::try_from(7).expect("a site");
            prop_assert!(choice.inner == IpAddr::V4(target) || choice.inner == IpAddr::V6(via6::address(site, target)));
        }
    }
}

#[test]
fn what_a_peer_offers_beyond_its_due_is_told_once() {
    let offered =
        ["100.64.0.1/32", "10.96.0.0/16", VIA6, "0.0.0.0/0", "10.97.0.0/16", "fd7a:115c:a1e0:b1a:0:8:a60:0/112"];
    let own = Peer { addresses: vec!["100.64.0.1".parse().expect("an address")], ..peer(1, A, &offered, true) };
    let foreign = Peer { tags: vec!["tag:gn-b-router".into()], id: 2, ..own.clone() };
    let ignored = |peer: &Peer| with_allowance(|allowance| allowance.ignored(peer));
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&ignored(&own)), offered[3..]);
    assert_eq!(texts(&ignored(&foreign)), offered[1..]);

    let mut told = Told::default();
    assert_eq!(told.news(&own, ignored(&own)).len(), 3);
    assert_eq!(told.news(&own, ignored(&own)), []);
    assert_eq!(told.news(&foreign, ignored(&foreign)).len(), 5, "another peer");
    let flood: Vec<IpNet> = (0..1000).map(|n| Ipv4Net::from(Ipv4Addr::from(n)).into()).collect();
    assert_eq!(told.news(&own, flood).len(), TOLD - 8);
}
