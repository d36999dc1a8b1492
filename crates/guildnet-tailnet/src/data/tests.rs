//! The data task's parts together: one node without a network, fed by hand.

mod far;
mod fuzz;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::SystemTime,
};

use guildnet_model::{ConnectorStatus, DialError, FixedKey, NodeInfo};
use tokio::sync::oneshot;
use ts_keys::DiscoKeyPair;

use self::far::Far;
use super::{flows::Role, *};
use crate::{
    connector::Dial,
    disco::Shared,
    filter::{self, Filter},
    netmap::{Key, Peer, SelfNode},
    standing::WATCH,
    stream::{Bell, TailStream},
    tcp::End,
    tls,
};

/// A node that knows nobody yet.
fn node() -> Node {
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem();
    let identity = Arc::new(Identity::ephemeral());
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let link = Link::new(socket).expect("a link");
    let now = Instant::now();
    Node {
        spec: ConnectorSpec {
            cluster: "a".parse().expect("an id"),
            login_server: "https://headscale.example".parse().expect("an address"),
            ca_pem: None,
            hostname: "me".into(),
            state_dir: "/nowhere".into(),
            auth_keys: Arc::new(FixedKey(None)),
            routes: "10.96.0.0/16".parse().expect("networks"),
            site: None,
            ephemeral: false,
        },
        own: OwnKey::new(&identity.node()),
        window: 1 << 20,
        budget: Arc::new(Budget::new(64 << 20)),
        max_flows: 16,
        locator: Locator::new(link.port()),
        link,
        map: None,
        routes: Routes::default(),
        told: Told::default(),
        peers: Peers::default(),
        flows: Flows::new(Arc::new(Bell::default())),
        ports: Ports::new(),
        listeners: Listeners::default(),
        relays: Relays::new(identity.clone(), tls::client_config(Some(&ca)).expect("a config")).0,
        actions: Vec::new(),
        fed: Vec::new(),
        runnable: VecDeque::new(),
        rivals: 0,
        looked: now,
        relay_waiting: HashSet::new(),
        rung: Vec::new(),
        facts: Facts::new(),
        changed: false,
        status: watch::Sender::new(ConnectorStatus::now_in(ConnectorState::Starting)),
        reports: watch::Sender::new(LocalReport::default()),
        machine: Machine::default(),
        source: None,
        moved: watch::Sender::new(()),
        dropped: Dropped::default(),
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
    let call = Shared::new(&disco, us).call(&[addr]);
    let mut learned = |from| {
        with_scratch(|scratch| node.on_datagram(from, &call, &mut scratch.work, now));
        let slot = node.peers.get(id).expect("a slot");
        (slot.path.addrs().collect::<Vec<_>>(), slot.relay.heard.map(|(region, _)| region), node.dropped.refused)
    };
    let by = |region, from| ingress::Source::Relay { region, from };
    assert_eq!(learned(by(1, other)), (vec![], None, 1), "recorded, and sent again by someone else");
    assert_eq!(learned(ingress::Source::Direct(addr)), (vec![], None, 2));
    assert_eq!(learned(by(2, router)), (vec![addr], Some(2), 2));
}

#[tokio::test]
async fn what_is_dropped_counts_by_its_cause() {
    let (mut node, now) = (node(), Instant::now());
    let from = ingress::Source::Direct("127.0.0.1:9".parse().expect("an address"));
    let us = Key(node.identity.disco().public.to_crypto_box().to_bytes());
    let call = Shared::new(&DiscoKeyPair::random(), us).call(&[]);
    // WireGuard's data message, for a session that is not there.
    let data = [&[4, 0, 0, 0, 9, 9, 9, 9][..], &[0; 40]].concat();
    for datagram in [b"hello".as_slice(), &call, &data] {
        with_scratch(|scratch| node.on_datagram(from, datagram, &mut scratch.work, now));
    }
    assert_eq!(node.snapshot(now).dropped, Dropped { unknown_kind: 1, unknown_peer: 2, ..Dropped::default() });
}

#[tokio::test]
async fn a_peers_pings_are_answered_at_its_pace_and_a_repeated_one_once() {
    let mut far = Far::new().await;
    let node = ts_keys::NodeKeyPair::random().public;
    let before = far.pongs;
    let pongs = |far: &mut Far, pings: &[Vec<u8>]| {
        let before = far.pongs;
        for ping in pings {
            far.send(ping);
            far.drain();
        }
        far.pongs - before
    };
    assert_eq!(before, 0);
    far.now += Duration::from_secs(10);
    let pings: Vec<_> = (0..300).map(|n| far.disco.ping(node, [n as u8; 12])).collect();
    let dropped = far.node.dropped.refused;
    assert_eq!(pongs(&mut far, &[pings[0].clone(), pings[0].clone()]), 1);
    assert_eq!(pongs(&mut far, &pings[1..]), 99);
    assert_eq!(far.node.dropped.refused - dropped, 201);
    far.now += Duration::from_secs(1);
    assert_eq!(pongs(&mut far, &pings[200..]), 50);
}

#[tokio::test]
async fn who_knows_a_peers_public_key_can_not_use_up_what_the_peer_may_send() {
    let mut far = Far::new().await;
    let node = ts_keys::NodeKeyPair::random().public;
    for n in 0..1000 {
        let mut forged = far.disco.ping(node, [7; 12]);
        *forged.last_mut().expect("not empty") ^= 1 + (n % 200) as u8;
        far.send(&forged);
    }
    far.send(&far.disco.ping(node, [8; 12]));
    far.drain();
    assert_eq!((far.pongs, far.node.dropped.refused), (1, 1000));
}

/// The filter lets these in, to port 80.
fn allow<const N: usize>(far: &mut Far, sources: [&str; N]) {
    let mut map = (**far.node.map.as_ref().expect("a map")).clone();
    let range = |text: &str| filter::Range::parse(text).expect("a range");
    let rule = |from| filter::Rule::new(vec![range(from)], vec![(range("100.64.0.9"), 80..=80)]);
    map.filter.apply(vec![("base".into(), Some(sources.map(rule).to_vec()))]);
    with_scratch(|scratch| far.node.apply_map(Arc::new(map), &mut scratch.work, far.now));
    far.turn();
}

/// A filter that lets everything in.
fn allow_all() -> Filter {
    let any = || filter::Range::parse("*").expect("a range");
    let mut filter = Filter::default();
    filter.apply(vec![("base".into(), Some(vec![filter::Rule::new(vec![any()], vec![(any(), 0..=u16::MAX)])]))]);
    filter
}

/// Sends a packet that carries nothing, and returns flags, sequence and acknowledgement number of the answer.
fn ask(far: &mut Far, from: &str, to: &str, seq: u32, ack: u32, flags: u8) -> Option<(u8, u32, u32)> {
    let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
    far.packets.clear();
    far.send_packet(&far::tcp(from, to, seq, ack, flags, &[]));
    far.turn();
    let packet = far.packets.pop_front()?;
    let word = |at: usize| u32::from_be_bytes(*packet[at..].first_chunk().expect("a header"));
    Some((packet[33], word(24), word(28)))
}

#[tokio::test]
async fn a_connection_to_this_node_is_refused_if_the_filter_allows_it_and_else_not_answered() {
    let mut far = Far::new().await;
    allow(&mut far, ["100.64.0.1", "100.64.0.7", "10.96.0.0/16"]);
    let mut answer = |from: &str, to: &str, flags| {
        let dropped = far.node.dropped.no_flow;
        let answer = ask(&mut far, from, to, 41, 0, flags);
        assert_eq!(far.node.dropped.no_flow - dropped, u64::from(answer.is_none()));
        answer
    };
    let refused = Some((far::RST | far::ACK, 0, 42));
    assert_eq!(answer("100.64.0.1:5000", "100.64.0.9:80", far::SYN), refused, "the router itself");
    assert_eq!(answer("10.96.0.7:5000", "100.64.0.9:80", far::SYN), refused, "somebody behind it");
    assert_eq!(answer("100.64.0.1:5000", "100.64.0.9:81", far::SYN), None, "denied");
    assert_eq!(answer("100.64.0.7:5000", "100.64.0.9:80", far::SYN), None, "in another node's name");
    assert_eq!(answer("100.64.0.1:5000", "100.64.0.8:80", far::SYN), None, "to another node");
    for flags in [far::ACK, far::SYN | far::ACK, far::RST, far::SYN | far::FIN, 0] {
        assert_eq!(answer("100.64.0.1:5000", "100.64.0.9:80", flags), None, "{flags}");
    }
}

#[tokio::test]
async fn who_listens_gets_the_connections_to_its_port() {
    let mut far = Far::new().await;
    allow(&mut far, ["100.64.0.1"]);
    let mut taken = far.node.listeners.listen(80).expect("a port");
    let (from, to) = ("100.64.0.1:5000", "100.64.0.9:80");
    let Some((flags, seq, 42)) = ask(&mut far, from, to, 41, 0, far::SYN) else { panic!("no answer") };
    assert_eq!(flags, far::SYN | far::ACK);
    assert!(taken.try_recv().is_err(), "it is half open");
    let ack = seq.wrapping_add(1);
    ask(&mut far, from, to, 42, ack, far::ACK);
    let (stream, came_from) = taken.try_recv().expect("it is open");
    let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
    assert_eq!(came_from, SocketAddr::V4(from));
    // A new map leaves it alone.
    allow(&mut far, ["100.64.0.1"]);
    let id = far.node.flows.ids()[0];
    let mut flow = far::FarFlow { id, stream, from, to, seq: 42, ack };
    far.talk(&mut flow);
    drop(flow.stream);
    far.packets.clear();
    far.turn();
    assert!(far.packets.iter().any(|packet| packet[33] & far::FIN != 0), "{:?}", far.packets);
    let mut map = (**far.node.map.as_ref().expect("a map")).clone();
    map.self_node.info.addresses.push("100.64.0.8".parse().expect("an address"));
    map.filter = allow_all();
    with_scratch(|scratch| far.node.apply_map(Arc::new(map), &mut scratch.work, far.now));
    assert_eq!(ask(&mut far, "100.64.0.1:5000", "100.64.0.8:80", 41, 0, far::SYN), None, "no flow is replaced");
    drop(taken);
    assert_eq!(ask(&mut far, "100.64.0.1:6000", "100.64.0.9:80", 41, 0, far::SYN), Some((far::RST | far::ACK, 0, 42)));
}

#[tokio::test]
async fn connections_that_are_begun_and_left_are_few_and_are_forgotten() {
    let mut far = Far::new().await;
    allow(&mut far, ["100.64.0.1"]);
    far.node.max_flows = 100;
    let _taken = far.node.listeners.listen(80).expect("a port");
    let answered = |far: &mut Far, first: u16| {
        let ports = first..first + 70;
        ports.filter(|port| ask(far, &format!("100.64.0.1:{port}"), "100.64.0.9:80", 1, 0, far::SYN).is_some()).count()
    };
    assert_eq!(answered(&mut far, 1000), 64);
    assert_eq!((answered(&mut far, 2000), far.node.flows.len()), (0, 64));
    far.now += Duration::from_secs(11);
    far.turn();
    far.turn();
    assert_eq!(far.node.flows.len(), 0);
    far.node.max_flows = 10;
    assert_eq!(answered(&mut far, 3000), 10, "they count as flows");
}

/// A router of the cluster, of which the first is elected.
fn router(n: u8) -> Peer {
    Peer {
        id: u64::from(n),
        name: format!("router-{n}"),
        node_key: Key([n; 32]),
        disco_key: None,
        addresses: Vec::new(),
        allowed: if n == 1 { vec!["10.96.0.0/16".parse().expect("a network")] } else { Vec::new() },
        endpoints: Vec::new(),
        home_relay: None,
        online: Some(true),
        tags: vec!["tag:gn-a-router".into()],
    }
}

/// Gives the node a map that names these peers.
fn know(node: &mut Node, peers: Vec<Peer>, now: Instant) {
    let info = NodeInfo {
        name: "me".into(),
        id: 0,
        addresses: vec!["100.64.0.9".parse().expect("an address")],
        node_key: String::new(),
        tags: Vec::new(),
        key_expiry: None,
    };
    let self_node = SelfNode { info, node_key: Key([0; 32]), allowed: Vec::new(), expired: false };
    let peers = peers.into_iter().map(|peer| (peer.id, Arc::new(peer))).collect();
    let map = Arc::new(NetMap { self_node, peers, relays: Vec::new(), filter: Filter::default() });
    with_scratch(|scratch| node.apply_map(map, &mut scratch.work, now));
}

/// A node that knows `count` routers of its cluster. Nobody is behind them.
fn with_routers(count: u8, now: Instant) -> Node {
    let mut node = node();
    know(&mut node, (1..=count).map(router).collect(), now);
    node
}

/// A router on each of a hundred nodes: the clock has to do with the one in use and its standbys, and with who sends something.
#[tokio::test]
async fn routers_that_nobody_needs_sleep_until_something_is_done_to_them() {
    let now = Instant::now();
    let mut node = with_routers(100, now);
    let awake = |node: &mut Node, now| {
        node.peers.rest(now);
        node.peers.awake().map(|(_, slot)| slot.key.0[0]).collect::<Vec<_>>()
    };
    assert_eq!(awake(&mut node, now), [1, 2, 3]);
    let id = node.peers.by_node(Key([77; 32])).expect("a slot");
    node.peers.get_mut(id).expect("a slot").path.on_send(now, true, &mut Vec::new());
    assert_eq!(awake(&mut node, now), [1, 2, 3, 77]);
    assert!(node.peers.any_active(now) && node.peers.next_due().is_some());
    // Nothing answers it: its path is looked for in vain, and once nobody sends any more it is left alone.
    let mut later = now;
    while awake(&mut node, later).contains(&77) {
        assert!(later < now + Duration::from_secs(180), "it never sleeps");
        later += Duration::from_secs(1);
        with_scratch(|scratch| node.tick_peer(id, &mut scratch.work, later));
    }
}

#[tokio::test]
async fn a_key_that_expires_soon_is_known_until_the_map_has_another_expiry() {
    let now = Instant::now();
    let mut node = with_routers(1, now);
    let mut map = NetMap::clone(node.map.as_ref().expect("a map"));
    map.self_node.info.key_expiry = Some(SystemTime::UNIX_EPOCH);
    let map = Arc::new(map);
    node.on_control(ControlEvent::Map(map.clone()), now);
    node.on_control(ControlEvent::KeyExpiring { at: (now + Duration::from_secs(60)).into() }, now);
    node.on_control(ControlEvent::Map(map.clone()), now);
    assert!(node.facts.key_expires.is_some(), "the same map again");
    let mut map = NetMap::clone(&map);
    map.self_node.info.key_expiry = None;
    node.on_control(ControlEvent::Map(Arc::new(map)), now);
    assert_eq!(node.facts.key_expires, None);
}

#[tokio::test]
async fn what_the_map_offers_in_vain_is_shown_and_told_once() {
    let now = Instant::now();
    let mut node = with_routers(1, now);
    let mut map = NetMap::clone(node.map.as_ref().expect("a map"));
    let offered = "0.0.0.0/0".parse().expect("a network");
    Arc::make_mut(map.peers.get_mut(&1).expect("the router")).allowed.push(offered);
    node.on_control(ControlEvent::Map(Arc::new(map.clone())), now);
    let router = &node.snapshot(now).peers[0];
    assert_eq!((router.routes.len(), &router.ignored), (2, &vec![offered]));
    assert_eq!(node.told.news(&map.peers[&1], vec![offered]), [], "it was told");
}

/// A dial, and how it ended.
fn dial(node: &mut Node, flow: u64, now: Instant) -> oneshot::Receiver<Result<TailStream, DialError>> {
    let (answer, answered) = oneshot::channel();
    node.dial(Dial { to: "10.96.0.1:443".parse().expect("a target"), flow, answer }, now);
    answered
}

/// The flows, by the router that each goes through.
fn flows(node: &Node) -> Vec<(u8, u64, Role)> {
    let router = |flow: &flows::Flow| node.peers.get(flow.tuple.peer).map_or(0, |slot| slot.key.0[0]);
    let mut all: Vec<_> = node.flows.iter().map(|(id, flow)| (router(flow), id, flow.role)).collect();
    all.sort_by_key(|(router, ..)| *router);
    all
}

fn doubted(node: &Node) -> Vec<u8> {
    let mut all: Vec<_> = node.peers.iter().filter(|s| s.standing.is_doubted()).map(|slot| slot.key.0[0]).collect();
    all.sort_unstable();
    all
}

/// Two routers, a dial through the first, and the flow through the second that time has brought.
fn raced(routers: u8) -> (Node, Instant, oneshot::Receiver<Result<TailStream, DialError>>, u64) {
    let start = Instant::now();
    let mut node = with_routers(routers, start);
    let answered = dial(&mut node, 1, start);
    assert_eq!(flows(&node), [(1, 1, Role::Dialled)]);
    node.run_race(1, start);
    assert_eq!(flows(&node).len(), 1, "it has its time");
    let now = start + Duration::from_secs(1);
    node.run_race(1, now);
    let [(1, 1, Role::Dialled), (2, rival, Role::Rival(1))] = flows(&node)[..] else { panic!("{:?}", flows(&node)) };
    (node, now, answered, rival)
}

#[tokio::test]
async fn a_dial_without_an_answer_is_tried_through_the_next_router_and_the_first_that_opens_is_taken() {
    let (mut node, now, mut answered, rival) = raced(2);
    node.on_opened(rival, now);
    answered.try_recv().expect("an answer").expect("a stream");
    assert_eq!(flows(&node), [(1, 1, Role::Watched { lost: Some(now) }), (2, rival, Role::Dialled)]);
    assert_eq!(doubted(&node), [1]);
    // The next dial goes there at once.
    let again = dial(&mut node, 2, now);
    assert_eq!(flows(&node).last().map(|(router, ..)| *router), Some(2));
    drop(again);
    // A late answer clears the first router, and nobody takes it.
    node.on_opened(1, now);
    assert_eq!(doubted(&node), [0; 0]);
}

#[tokio::test]
async fn the_first_router_may_win_late_and_its_rivals_are_only_watched() {
    let (mut node, now, mut answered, rival) = raced(2);
    node.on_opened(1, now);
    answered.try_recv().expect("an answer").expect("a stream");
    assert_eq!(flows(&node), [(1, 1, Role::Dialled), (2, rival, Role::Watched { lost: None })]);
    let over = now + WATCH;
    with_scratch(|scratch| node.on_watch_over(rival, &mut scratch.work, over));
    assert_eq!(flows(&node), [(1, 1, Role::Dialled)]);
    assert_eq!(doubted(&node), [0; 0], "it has lost nothing");
}

#[tokio::test]
async fn a_refusal_by_any_way_is_the_targets_own() {
    let (mut node, now, mut answered, rival) = raced(2);
    node.remove_flow(rival, End::Refused, now);
    assert!(matches!(answered.try_recv().expect("an answer"), Err(DialError::Refused { .. })));
}

#[tokio::test]
async fn a_router_that_leaves_the_map_hands_its_dials_over() {
    let (mut node, now, mut answered, rival) = raced(3);
    let first = node.peers.by_node(Key([1; 32])).expect("a slot");
    with_scratch(|scratch| node.drop_peer(first, &mut scratch.work, now));
    assert!(answered.try_recv().is_err(), "it is still tried");
    assert_eq!(flows(&node), [(2, rival, Role::Dialled)]);
    node.run_race(rival, now + Duration::from_secs(1));
    let [(2, _, Role::Dialled), (3, third, Role::Rival(heir))] = flows(&node)[..] else { panic!("{:?}", flows(&node)) };
    assert_eq!(heir, rival);
    node.on_opened(third, now);
    answered.try_recv().expect("an answer").expect("a stream");
}

#[tokio::test]
async fn a_dial_that_nobody_waits_for_leaves_nothing() {
    let (mut node, now, answered, _) = raced(2);
    drop(answered);
    with_scratch(|scratch| {
        node.pump(1, &mut scratch.work, now);
        let over = now + WATCH;
        for (_, id, _) in flows(&node) {
            node.pump(id, &mut scratch.work, over);
        }
    });
    assert_eq!(flows(&node), []);
    assert!(node.peers.iter().all(|slot| slot.flows == 0));
}
