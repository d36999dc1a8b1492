//! Each decision of `membership.rs`, for what passes and for what does not.

use guildnet_model::{NodeInfo, PeerContact};

use super::*;

fn a() -> ClusterId {
    "a".parse().expect("an id")
}

fn networks() -> Networks {
    "10.96.0.0/16,10.244.0.0/16".parse().expect("networks")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn site() -> SiteNumber {
    "7".parse().expect("a site")
}

fn router(online: bool, approved: &[&str]) -> Node {
    Node {
        id: 1,
        name: "gn-a-node".into(),
        node_key: "nodekey:1".into(),
        user: None,
        tags: vec!["tag:gn-a-router".into()],
        addresses: vec![],
        online,
        last_seen: None,
        expires: None,
        available_routes: vec![],
        approved_routes: approved.iter().map(|n| net(n)).collect(),
        elected_routes: vec![],
    }
}

fn peer(name: &str, trusted: bool, routes: &[&str], path: PathKind) -> PeerInfo {
    PeerInfo {
        name: name.into(),
        node_key: format!("nodekey:{name}"),
        addresses: vec![],
        tags: vec![],
        routes: routes.iter().map(|n| net(n)).collect(),
        ignored: vec![],
        online: Some(true),
        trusted,
        path,
        rtt: None,
        last_handshake: None,
        rx_bytes: 0,
        tx_bytes: 0,
        contact: PeerContact { node_key: [0; 32], disco_key: None, home_relay: None, endpoints: vec![] },
    }
}

fn status(state: ConnectorState, expires_in: Option<i64>) -> ConnectorStatus {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let key_expiry = expires_in.map(|s| {
        let by = Duration::from_secs(s.unsigned_abs());
        if s < 0 { now - by } else { now + by }
    });
    let node = NodeInfo {
        name: "me".into(),
        id: 1,
        addresses: vec![],
        node_key: "nodekey:me".into(),
        tags: vec![],
        key_expiry,
    };
    ConnectorStatus { state, since: now, node: Some(node), last_trouble: None }
}

fn keys_now(status: &ConnectorStatus, own: OwnNode) -> Outcome {
    keys(&a(), status, &own, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
}

#[track_caller]
fn fails(outcome: &Outcome, seen_part: &str, hint_part: &str) {
    let Outcome::Fail { seen, hint } = outcome else { panic!("no fail: {outcome:?}") };
    assert!(seen.contains(seen_part), "{seen}");
    assert!(hint.contains(hint_part), "{hint}");
}

#[track_caller]
fn passes(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Pass { .. }), "{outcome:?}");
}

#[test]
fn a_missing_namespace_fails() {
    passes(&namespace(&a(), &["cluster-b".into(), "cluster-a".into()]));
    fails(&namespace(&a(), &["cluster-b".into()]), "cluster-a", "guildnet up");
}

#[test]
fn a_registered_node_with_a_valid_key_passes() {
    passes(&keys_now(&status(ConnectorState::Ready, None), OwnNode::Listed { expired: false }));
    passes(&keys_now(&status(ConnectorState::Ready, Some(30 * 86_400)), OwnNode::Unknown));
}

#[test]
fn a_key_that_is_refused_expired_or_forgotten_fails() {
    let refused = status(ConnectorState::NeedsKey { why: "node expired".into() }, None);
    fails(&keys_now(&refused, OwnNode::Unknown), "node expired", "guildnet up");
    fails(&keys_now(&status(ConnectorState::Ready, Some(-1)), OwnNode::Unknown), "expired", "guildnet up");
    fails(&keys_now(&status(ConnectorState::Ready, None), OwnNode::Listed { expired: true }), "expired", "guildnet up");
    fails(&keys_now(&status(ConnectorState::Ready, None), OwnNode::Missing), "no longer knows", "guildnet up");
}

#[test]
fn a_connector_that_never_registered_fails() {
    let unborn = ConnectorStatus { node: None, ..status(ConnectorState::Starting, None) };
    fails(&keys_now(&unborn, OwnNode::Unknown), "not registered", "guildnet up");
}

#[test]
fn a_key_near_its_end_is_a_warning() {
    let soon = keys_now(&status(ConnectorState::Ready, Some(3600)), OwnNode::Unknown);
    let Outcome::Warn { seen, hint } = soon else { panic!("a warning: {soon:?}") };
    assert!(seen.contains("ends in 1 h") && hint.contains("guildnet headscale keys rotate a"), "{seen} {hint}");
}

#[test]
fn no_router_online_fails_and_says_what_is_known_of_them() {
    let now = Timestamp::UNIX_EPOCH;
    let of = |routers: &[&Node]| routers_connected(&a(), routers, now);
    passes(&of(&[&router(false, &[]), &router(true, &[])]));
    fails(&of(&[]), "tag:gn-a-router", "guildnet router ensure a");
    fails(&of(&[&router(false, &[])]), "gn-a-node is offline", "guildnet router ensure a");
    let expired = Node { expires: Some(now), ..router(true, &[]) };
    fails(&of(&[&expired]), "key has expired", "guildnet router ensure a");
}

#[test]
fn a_route_that_is_not_approved_is_named() {
    let of = |approved: &[&str]| routes_approved(&a(), &networks(), Some(site()), &[&router(true, approved)]);
    passes(&of(&["10.96.0.0/16", "10.244.0.0/16"]));
    passes(&of(&["fd7a:115c:a1e0:b1a:0:7:a60:0/112", "fd7a:115c:a1e0:b1a:0:7:af4:0/112"]));
    fails(&of(&["10.244.0.0/16"]), "10.96.0.0/16 not approved for gn-a-node", "guildnet router ensure a");
    fails(&routes_approved(&a(), &networks(), None, &[]), "no node", "guildnet router ensure a");
}

#[test]
fn a_route_that_another_clusters_router_serves_is_not_served() {
    let of = |peers: &[PeerInfo]| routes_served(&a(), &networks(), Some(site()), peers, None);
    let both = ["10.96.0.0/16", "10.244.0.0/16"];
    passes(&of(&[peer("own", true, &both, PathKind::Idle)]));
    fails(
        &of(&[peer("own", true, &both[..1], PathKind::Idle)]),
        "10.244.0.0/16 not served by own",
        "guildnet router ensure a",
    );
    let stolen = of(&[peer("own", true, &[], PathKind::Idle), peer("other", false, &both, PathKind::Idle)]);
    fails(&stolen, "other of another cluster has it", "guildnet router ensure a");
    fails(&of(&[peer("other", false, &both, PathKind::Idle)]), "no router of this cluster", "guildnet router ensure a");
}

#[test]
fn a_route_that_a_dead_router_serves_is_named_with_that_router() {
    let both = ["10.96.0.0/16", "10.244.0.0/16"];
    let of = |peers: &[PeerInfo], listed| routes_served(&a(), &networks(), Some(site()), peers, listed);
    let dead = PeerInfo { online: Some(false), ..peer("old", true, &both, PathKind::Idle) };
    let standby = peer("new", true, &[], PathKind::Idle);
    fails(&of(std::slice::from_ref(&dead), None), "assigned to old, which is offline", "guildnet router ensure a");
    let Outcome::Warn { seen, hint } = of(&[dead.clone(), standby], None) else { panic!("the standby carries it") };
    assert!(seen.contains("assigned to old, which is offline; new carries it"), "{seen}");
    assert!(hint.contains("guildnet router ensure a"), "{hint}");
    passes(&of(&[dead, peer("new", true, &both, PathKind::Idle)], None));
    // A node that was deleted on the server while it was connected.
    let ghost = peer("ghost", true, &both, PathKind::Idle);
    fails(&of(&[ghost], Some(&[])), "ghost, which the server no longer lists", "guildnet router ensure a");
}

#[test]
fn an_approval_for_a_router_that_is_gone_does_not_count_beside_one_that_is_there() {
    let (gone, there) = (router(false, &["10.96.0.0/16", "10.244.0.0/16"]), router(true, &["10.96.0.0/16"]));
    let of = |routers: &[&Node]| routes_approved(&a(), &networks(), Some(site()), routers);
    fails(&of(&[&gone, &there]), "10.244.0.0/16 not approved", "guildnet router ensure a");
    passes(&of(&[&gone]));
}

#[test]
fn a_connector_that_logs_in_elsewhere_is_a_warning() {
    let url = |text: &str| text.parse::<Url>().expect("a URL");
    let of = |server: Option<&Url>| login_server(&a(), &url("https://10.0.0.1:8443"), server);
    passes(&of(None));
    passes(&of(Some(&url("https://10.0.0.1:8443/"))));
    let Outcome::Warn { seen, hint } = of(Some(&url("https://10.0.0.2:8443"))) else { panic!("a warning") };
    assert!(seen.contains("10.0.0.1") && seen.contains("10.0.0.2") && hint.contains("guildnet up --headscale-url"));
}

#[test]
fn only_a_ready_connector_passes_and_one_that_lost_its_router_fails() {
    let of = |state| ready(&a(), &status(state, None));
    passes(&of(ConnectorState::Ready));
    let down = |why| ConnectorState::Degraded { why };
    assert!(matches!(of(down(Degraded::ControlDown { why: "x".into() })), Outcome::Warn { .. }));
    assert!(matches!(of(down(Degraded::RelayDown { why: "x".into() })), Outcome::Warn { .. }));
    let expiring = of(down(Degraded::KeyExpiring { at: SystemTime::now() + Duration::from_secs(5 * 3600) }));
    assert!(matches!(&expiring, Outcome::Warn { seen, .. } if seen.contains("expires in 5 h")), "{expiring:?}");
    fails(&of(down(Degraded::NoRouter { why: "none online".into() })), "none online", "guildnet router status a");
    for state in [ConnectorState::Starting, ConnectorState::Syncing, ConnectorState::Stopped] {
        fails(&of(state), "", "host.log");
    }
}

#[test]
fn a_relay_is_a_warning_and_silence_fails() {
    passes(&path(&[peer("own", true, &[], PathKind::Direct)]));
    assert!(matches!(path(&[peer("own", true, &[], PathKind::Relay)]), Outcome::Warn { .. }));
    fails(&path(&[peer("own", true, &[], PathKind::Idle)]), "nothing came back", "router");
    fails(&path(&[peer("other", false, &[], PathKind::Direct)]), "nothing came back", "router");
}
