//! The data task's parts together: one node without a network, fed by hand.

use std::{net::Ipv4Addr, time::SystemTime};

use guildnet_model::ConnectorStatus;
use ts_keys::DiscoKeyPair;

use super::*;
use crate::{disco, netmap::Key, stream::Bell, tls};

/// A node that knows nobody yet.
fn node() -> Node {
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem();
    let identity = Arc::new(Identity::ephemeral());
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let link = Link::new(socket).expect("a link");
    let status = ConnectorStatus { state: ConnectorState::Starting, since: SystemTime::now(), node: None };
    let now = Instant::now();
    Node {
        spec: ConnectorSpec {
            cluster: "a".parse().expect("an id"),
            login_server: "https://headscale.example".parse().expect("an address"),
            ca_pem: None,
            hostname: "me".into(),
            state_dir: "/nowhere".into(),
            auth_key: None,
            routes: "10.96.0.0/16".parse().expect("networks"),
            site: None,
        },
        own: OwnKey::new(&identity.node()),
        window: 1 << 20,
        max_flows: 16,
        start: now,
        locator: Locator::new(link.port()),
        link,
        map: None,
        routes: Routes::default(),
        peers: Peers::default(),
        flows: Flows::new(Arc::new(Bell::default())),
        relays: Relays::new(identity.clone(), tls::client_config(Some(&ca)).expect("a config")).0,
        actions: Vec::new(),
        runnable: VecDeque::new(),
        rivals: 0,
        looked: now,
        relay_waiting: HashSet::new(),
        rung: Vec::new(),
        facts: Facts::new(),
        changed: false,
        status: watch::Sender::new(status),
        reports: watch::Sender::new(LocalReport::default()),
        machine: Machine::default(),
        source: None,
        moved: watch::Sender::new(()),
        dropped: 0,
        identity,
    }
}

#[tokio::test]
async fn a_call_counts_only_from_the_relay_connection_of_its_peer() {
    let (mut node, now) = (node(), Instant::now());
    let disco = DiscoKeyPair::random();
    let (router, other) = (Key([7; 32]), Key([8; 32]));
    let disco_key = Key(disco.public.to_crypto_box().to_bytes());
    let id = node.peers.insert(&node.own, router, Some(disco_key), now);
    let us = Key(node.identity.disco().public.to_crypto_box().to_bytes());
    let addr = "127.0.0.1:9".parse().expect("an address");
    let call = disco::call(&disco, us, &[addr]).expect("sealed");
    let mut learned = |from| {
        with_scratch(|scratch| node.on_datagram(from, &call, &mut scratch.work, now));
        let slot = node.peers.get(id).expect("a slot");
        (slot.path.addrs().collect::<Vec<_>>(), node.dropped)
    };
    assert_eq!(learned(ingress::Source::Relay(other)), (vec![], 1), "recorded, and sent again by someone else");
    assert_eq!(learned(ingress::Source::Direct(addr)), (vec![], 2));
    assert_eq!(learned(ingress::Source::Relay(router)), (vec![addr], 2));
}
