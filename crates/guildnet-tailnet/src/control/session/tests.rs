//! Sessions against a server at the wire.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::FutureExt as _;
use guildnet_model::{AuthKeys, BoxFuture, FixedKey, NoAuthKey, Secret};
use proptest::prelude::*;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use ts_keys::ExportableKey as _;
use url::Url;

use super::*;
use crate::{
    control::{
        self, Keys, connect,
        fake::{Asked, Maps, Server},
        stream::StreamError,
    },
    state::{Identity, public, saved_node_key},
    tls,
};

/// A preauth key.
const AUTH_KEY: &str = "hskey-auth-test";
/// With everything that must not be shown.
const LOGIN_SERVER: &str = "https://me:pa55@headscale.example/?token=query-secret#fragment-secret";
/// Accepts a registration.
const WELCOME: &str = r#"{"MachineAuthorized":true}"#;
/// A map with a relay in region 7 and no peers.
const FIRST_MAP: &str = r#"{
    "Node": {"ID": 1, "Name": "me.example.", "Addresses": ["100.64.0.1/32"],
             "Key": "nodekey:0101010101010101010101010101010101010101010101010101010101010101"},
    "DERPMap": {"Regions": {"7": {"RegionID": 7, "Nodes": [{"HostName": "relay.example"}]}}}
}"#;

/// One session, run beside the test that plays its server.
struct Node {
    reports: watch::Sender<LocalReport>,
    cancel: CancellationToken,
    _moved: watch::Sender<()>,
    session: Option<tokio::task::JoinHandle<End>>,
    events: mpsc::Receiver<ControlEvent>,
}

impl Node {
    fn start(identity: Arc<Identity>, auth_key: Option<&str>, endpoints: &[&str]) -> (Self, Server) {
        let key = FixedKey(auth_key.map(|key| Secret::new(key.to_owned())));
        Self::start_with(identity, Arc::new(key), endpoints)
    }

    fn start_with(identity: Arc<Identity>, keys: Arc<dyn AuthKeys>, endpoints: &[&str]) -> (Self, Server) {
        let (server, io) = Server::start();
        let config = ControlConfig {
            login_server: LOGIN_SERVER.parse::<Url>().expect("an address"),
            tls: tls::client_config(Some(&ca())).expect("a config"),
            hostname: "me".into(),
            keys: Keys::new(keys),
            identity: identity.clone(),
            ephemeral: true,
        };
        let endpoints = endpoints.iter().map(|addr| addr.parse().expect("an address")).collect();
        let (reports, mut watched) = watch::channel(LocalReport { endpoints, home_relay: None });
        let (events_tx, events) = mpsc::channel(8);
        let (moved, mut moves) = watch::channel(());
        let cancel = CancellationToken::new();
        let stopped = cancel.clone();
        let session = tokio::spawn(async move {
            let (had_map, renewed) = (&mut false, &mut None);
            let session = Session { config: &config, reports: &mut watched, events: &events_tx, had_map, renewed };
            let talk = async |http| control::talk(&http, session, &mut moves, &stopped).await;
            match connect::with_http(io, &config.login_server, talk).await {
                Ok(never) => match never {},
                Err(end) => end,
            }
        });
        (Self { reports, cancel, _moved: moved, session: Some(session), events }, server)
    }

    /// A session of a node that the server knows, up to its open map stream.
    async fn following(endpoints: &[&str]) -> (Self, Server, Maps, Value) {
        let (node, server) = Self::start(registered(), None, endpoints);
        node.up_to_its_stream(server).await
    }

    async fn up_to_its_stream(mut self, mut server: Server) -> (Self, Server, Maps, Value) {
        server.next().await.answer(WELCOME);
        assert!(matches!(self.event().await, ControlEvent::Registered));
        let asked = server.next().await;
        assert_eq!(asked.path, "/machine/map");
        let request = asked.body.clone();
        (self, server, asked.stream(), request)
    }

    async fn event(&mut self) -> ControlEvent {
        self.events.recv().await.expect("the session runs")
    }

    async fn map(&mut self) -> Arc<NetMap> {
        match self.event().await {
            ControlEvent::Map(map) => map,
            other => panic!("{other:?} is no map"),
        }
    }

    async fn end(&mut self) -> End {
        self.session.take().expect("it ends once").await.expect("no panic")
    }
}

fn ca() -> String {
    rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate").cert.pem()
}

fn registered() -> Arc<Identity> {
    let identity = Identity::ephemeral();
    identity.accepted(&identity.node()).expect("kept nowhere");
    Arc::new(identity)
}

#[tokio::test]
async fn a_new_node_shows_its_key_once_and_is_registered() {
    let identity = Arc::new(Identity::ephemeral());
    let (mut node, mut server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
    let asked = server.next().await;
    assert_eq!(asked.path, "/machine/register");
    assert_eq!(asked.body["Auth"]["AuthKey"], AUTH_KEY);
    assert_eq!(asked.body["NodeKey"], identity.node_key().node_text());
    asked.answer(WELCOME);
    assert!(matches!(node.event().await, ControlEvent::Registered));
    assert!(identity.is_registered());
}

#[tokio::test]
async fn a_known_node_does_not_show_the_preauth_key() {
    let (_node, mut server) = Node::start(registered(), Some(AUTH_KEY), &[]);
    assert_eq!(server.next().await.body.get("Auth"), None);
}

#[tokio::test]
async fn a_refusal_carries_the_servers_words_but_not_the_key() {
    let (mut node, mut server) = Node::start(Arc::new(Identity::ephemeral()), Some(AUTH_KEY), &[]);
    server.next().await.answer(&format!(r#"{{"Error":"{AUTH_KEY} is <expired>"}}"#));
    assert_eq!(node.end().await, End::Refused("[the key] is <expired>".into()));
}

/// What is logged in this thread while it lives, at every level, libraries included.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        tracing::subscriber::set_default(lines.with_writer(move || log.clone()).finish())
    }
}

#[tokio::test]
async fn no_secret_is_told_or_logged_whatever_the_server_echoes() {
    let log = Log::default();
    let _guard = log.start();
    let mut seen = HashSet::new();
    // Which request is answered, and how. The key also lies across the place of the cut.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum At {
        Joining,
        Rejoining,
        Map,
        Renewing,
        Leaving,
    }
    type Answer = fn(Asked, &str);
    let error: Answer = |asked, echo| asked.answer(&serde_json::json!({ "Error": echo }).to_string());
    let answers: [(At, Answer); 11] = [
        (At::Joining, |asked, echo| asked.answer_with(http::StatusCode::INTERNAL_SERVER_ERROR, echo)),
        (At::Joining, error),
        (At::Joining, |asked, echo| asked.answer(&serde_json::json!(echo).to_string())),
        (At::Joining, |asked, echo| asked.answer(&serde_json::json!({ "MachineAuthorized": echo }).to_string())),
        (At::Joining, |asked, echo| {
            asked.answer(&serde_json::json!({ "NodeKeyExpired": true, "Error": echo }).to_string())
        }),
        (At::Rejoining, error),
        (At::Map, |asked, echo| asked.answer_with(http::StatusCode::FORBIDDEN, echo)),
        (At::Map, |asked, echo| {
            let maps = asked.stream();
            let map = serde_json::json!(echo).to_string();
            tokio::spawn(async move { maps.send(&map).await });
        }),
        (At::Renewing, error),
        (At::Leaving, error),
        (At::Leaving, |asked, echo| asked.answer_with(http::StatusCode::FORBIDDEN, echo)),
    ];
    for (at, answer) in answers {
        for filling in [0, 150, 180, 200, 220, 240, 260, 280, 299, 100_000] {
            let identity = if at == At::Rejoining { registered() } else { Arc::new(Identity::ephemeral()) };
            let next = identity.next_node().expect("kept nowhere");
            let private = [identity.node().export(), next.export()].map(|key| key.to_string());
            let private = [&private[..], &[identity.machine().export().to_string()]].concat();
            let (mut node, mut server) = Node::start(identity, Some(AUTH_KEY), &[]);
            let mut asked = server.next().await;
            let mut maps = None;
            if at == At::Rejoining {
                asked.answer(r#"{"Error":"who?"}"#);
                asked = server.next().await;
            } else if at != At::Joining {
                asked.answer(WELCOME);
                node.event().await;
                asked = server.next().await;
            }
            if matches!(at, At::Renewing | At::Leaving) {
                let stream = asked.stream();
                stream.send(&expiring("2026-12-31T23:55:00Z")).await;
                asked = server.shown_key(&stream).await.expect("a renewal");
                maps = Some(stream);
            }
            if at == At::Leaving {
                node.cancel.cancel();
                while asked.body.get("Expiry").is_none() {
                    asked = server.next().await;
                }
            }
            let echo = format!("{}{AUTH_KEY}\n{}", "x".repeat(filling), asked.body);
            answer(asked, &echo);
            // Time for the answer to be taken.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            drop(maps);
            let end = format!("{:?}", node.end().await);
            assert!(end.len() < 400, "{end}");
            let log = String::from_utf8(std::mem::take(&mut *log.0.lock().expect("no panic"))).expect("text");
            seen.extend(
                ["TRACE", "is not renewed", "could not be logged out"].into_iter().filter(|line| log.contains(line)),
            );
            let private = private.iter().map(|key| key.split(':').next_back().expect("hex"));
            for secret in [AUTH_KEY, "pa55", "query-secret", "fragment-secret"].into_iter().chain(private) {
                for (text, what) in [(&end, "the end"), (&log, "the log")] {
                    let line = text.lines().find(|line| line.contains(secret));
                    assert_eq!(line, None, "{secret} is in {what}");
                }
            }
        }
    }
    assert_eq!(seen.len(), 3, "the test sees too little: {seen:?}");
}

#[tokio::test]
async fn a_removed_node_joins_again_with_a_new_node_key() {
    let identity = registered();
    let old = identity.node_key();
    let (mut node, mut server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
    server.next().await.answer(r#"{"AuthURL":"https://headscale.example/register/x"}"#);
    let again = server.next().await;
    assert_eq!(again.body["Auth"]["AuthKey"], AUTH_KEY);
    assert_eq!(again.body["OldNodeKey"], old.node_text());
    assert_eq!(identity.node_key(), old, "not before the server has accepted the new one");
    let new = again.body["NodeKey"].clone();
    again.answer(WELCOME);
    assert!(matches!(node.event().await, ControlEvent::Registered));
    assert_eq!(new, identity.node_key().node_text());
    assert_ne!(identity.node_key(), old);
}

/// Makes a key each time that it is asked, or can't.
#[derive(Debug, Default)]
struct Minting {
    made: AtomicUsize,
    broken: bool,
}

impl AuthKeys for Minting {
    fn key(&self) -> BoxFuture<'_, Result<Option<Secret<String>>, NoAuthKey>> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let made = if self.broken {
            Err(NoAuthKey { why: "the API key has ended".into() })
        } else {
            Ok(Some(Secret::new(format!("{AUTH_KEY}-{number}"))))
        };
        Box::pin(async { made })
    }
}

#[tokio::test]
async fn a_key_is_made_once_for_each_refusal_and_for_nothing_else() {
    let (keys, identity) = (Arc::new(Minting::default()), registered());
    for refusal in 0..2 {
        let (mut node, mut server) = Node::start_with(identity.clone(), keys.clone(), &[]);
        server.next().await.answer(r#"{"NodeKeyExpired":true}"#);
        let again = server.next().await;
        assert_eq!(again.body["Auth"]["AuthKey"], format!("{AUTH_KEY}-{refusal}"));
        again.answer(&format!(r#"{{"Error":"{AUTH_KEY}-{refusal} is used up"}}"#));
        assert_eq!(node.end().await, End::Refused("[the key] is used up".into()));
    }
    let (mut node, mut server) = Node::start_with(identity, keys.clone(), &[]);
    server.next().await.answer(WELCOME);
    assert!(matches!(node.event().await, ControlEvent::Registered));
    assert_eq!(keys.made.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_key_that_could_not_be_made_is_told_with_its_cause() {
    for (identity, why) in
        [(registered(), "gone"), (Arc::new(Identity::ephemeral()), "this node is not registered yet")]
    {
        let keys = Arc::new(Minting { broken: true, ..Minting::default() });
        let (mut node, mut server) = Node::start_with(identity.clone(), keys, &[]);
        if identity.is_registered() {
            server.next().await.answer(r#"{"Error":"gone"}"#);
        }
        let why = format!("{why}; no preauth key could be had: the API key has ended");
        assert_eq!(node.end().await, End::Refused(why));
    }
}

#[tokio::test]
async fn an_ephemeral_node_is_logged_out_and_its_identity_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let identity = Arc::new(Identity::load_or_create(&dir.path().join("node")).expect("made"));
    identity.accepted(&identity.node()).expect("saved");
    let (mut node, mut server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
    server.next().await.answer(WELCOME);
    node.event().await;
    let _map = server.next().await.stream();
    node.cancel.cancel();
    let logout = server.next().await;
    assert_eq!(saved_node_key(&dir.path().join("node")).expect("no identity"), None, "gone before it is logged out");
    assert_eq!(logout.path, "/machine/register");
    assert_eq!(logout.body["NodeKey"], identity.node_key().node_text());
    assert_eq!((&logout.body["Expiry"], logout.body.get("Auth")), (&"1970-01-01T00:02:03Z".into(), None));
    logout.answer(r#"{"NodeKeyExpired":true,"MachineAuthorized":false}"#);
    assert_eq!(node.end().await, End::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_the_logout_holds_nobody_up() {
    let (mut node, mut server, _maps, _) = Node::following(&[]).await;
    node.cancel.cancel();
    let _unanswered = server.next().await;
    let start = Instant::now();
    assert_eq!(node.end().await, End::Stopped);
    assert!(start.elapsed() <= Duration::from_secs(3));
}

#[tokio::test]
async fn a_refused_replacement_is_shown_again_the_next_time() {
    let identity = registered();
    let mut shown = Vec::new();
    for _ in 0..2 {
        let (mut node, mut server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
        server.next().await.answer(r#"{"NodeKeyExpired":true}"#);
        let again = server.next().await;
        shown.push(again.body["NodeKey"].clone());
        again.answer(r#"{"Error":"authkey already used"}"#);
        assert_eq!(node.end().await, End::Refused("authkey already used".into()));
    }
    assert_eq!(shown[0], shown[1]);
    assert_eq!(shown[0], public(&identity.next_node().expect("kept nowhere")).node_text());
}

#[tokio::test]
async fn a_node_that_stays_expired_bears_the_key_under_which_the_server_lists_it() {
    let identity = registered();
    let (mut node, mut server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
    server.next().await.answer(r#"{"NodeKeyExpired":true}"#);
    let again = server.next().await;
    let shown = again.body["NodeKey"].clone();
    again.answer(r#"{"MachineAuthorized":true,"NodeKeyExpired":true}"#);
    let End::Refused(why) = node.end().await else { panic!("another end") };
    assert!(why.contains("did not renew it"), "{why}");
    assert_eq!(shown, identity.node_key().node_text());
}

#[tokio::test]
async fn a_server_error_is_no_refusal() {
    let (mut node, mut server) = Node::start(registered(), Some(AUTH_KEY), &[]);
    server.next().await.answer_with(http::StatusCode::BAD_GATEWAY, "try later\n");
    let why = "headscale.example:443 answered /machine/register with 502 Bad Gateway: try later";
    assert_eq!(node.end().await, End::Broken(why.into()));
}

#[tokio::test]
async fn the_first_request_names_endpoints_and_the_home_relay_of_the_last_run() {
    let identity = registered();
    identity.keep_home_relay(7).expect("kept nowhere");
    let (_node, mut server) = Node::start(identity, None, &["10.0.0.5:41641", "192.0.2.9:41641"]);
    server.next().await.answer(WELCOME);
    let request = server.next().await.body;
    assert_eq!(request["Stream"], true);
    assert_eq!(request["Endpoints"], serde_json::json!(["10.0.0.5:41641", "192.0.2.9:41641"]));
    assert_eq!(request["EndpointTypes"], serde_json::json!([1, 2]));
    assert_eq!(request["Hostinfo"]["NetInfo"]["PreferredDERP"], 7);
}

#[tokio::test]
async fn the_first_map_chooses_a_home_relay_and_the_server_is_told_at_once() {
    let (mut node, mut server, maps, request) = Node::following(&[]).await;
    assert_eq!(request["Hostinfo"].get("NetInfo"), None);
    maps.send(FIRST_MAP).await;
    assert_eq!(node.map().await.relays[0].host, "relay.example");
    let lite = server.next().await;
    assert_eq!((&lite.body["Stream"], &lite.body["OmitPeers"]), (&Value::Bool(false), &Value::Bool(true)));
    assert_eq!(lite.body["Hostinfo"]["NetInfo"]["PreferredDERP"], 7);
}

#[tokio::test]
async fn changes_here_are_collected_into_one_update() {
    let (node, mut server, _maps, _) = Node::following(&["10.0.0.5:1"]).await;
    for last in 6..9 {
        let addr = format!("10.0.0.{last}:1").parse().expect("an address");
        node.reports.send_modify(|report| report.endpoints.push(addr));
        tokio::task::yield_now().await;
    }
    let lite = server.next().await;
    assert_eq!(lite.body["Endpoints"].as_array().expect("a list").len(), 4);
    lite.answer("");
    assert!(!server.is_asked());
}

#[tokio::test]
async fn maps_follow_the_changes_and_keep_alives_are_no_change() {
    let (mut node, _server, maps, _) = Node::following(&[]).await;
    maps.send(FIRST_MAP).await;
    assert!(node.map().await.peers.is_empty());
    let key = format!("nodekey:{}", "02".repeat(32));
    maps.send(r#"{"KeepAlive":true}"#).await;
    maps.send(&format!(r#"{{"PeersChanged":[{{"ID":2,"Name":"router.example.","Key":"{key}"}}]}}"#)).await;
    assert_eq!(node.map().await.peers[&2].name, "router");
    maps.send(r#"{"PeersChangedPatch":[{"NodeID":2,"Online":true,"DERPRegion":7}]}"#).await;
    let map = node.map().await;
    assert_eq!((map.peers[&2].online, map.peers[&2].home_relay), (Some(true), Some(7)));
    maps.send(r#"{"OnlineChange":{"2":true}}"#).await;
    maps.send(r#"{"PeersRemoved":[2]}"#).await;
    assert!(node.map().await.peers.is_empty());
}

#[tokio::test]
async fn a_closed_stream_and_a_broken_map_end_the_session_with_their_cause() {
    let (mut node, _server, maps, _) = Node::following(&[]).await;
    drop(maps);
    assert_eq!(node.end().await, End::Broken("the server closed the map stream".into()));

    let (mut node, _server, maps, _) = Node::following(&[]).await;
    maps.send("[").await;
    let End::Broken(why) = node.end().await else { panic!("another end") };
    assert!(why.starts_with("the server's map can't be read: "), "{why}");
}

#[tokio::test]
async fn an_expired_key_ends_the_session() {
    let (mut node, _server, maps, _) = Node::following(&[]).await;
    maps.send(&FIRST_MAP.replace(r#""ID": 1"#, r#""ID": 1, "Expired": true"#)).await;
    assert_eq!(node.end().await, End::Broken("the server says that the node's key has expired".into()));
}

/// The first map with a key that expires in a year from 2026-01-01 on, and the server's clock.
fn expiring(server_time: &str) -> String {
    FIRST_MAP.replace(r#""ID": 1"#, r#""ID": 1, "KeyExpiry": "2027-01-01T00:00:00Z""#).replacen(
        '{',
        &format!(r#"{{"ControlTime": "{server_time}","#),
        1,
    )
}

#[tokio::test(start_paused = true)]
async fn a_key_expires_by_the_servers_clock() {
    let (mut node, mut server, maps, _) = Node::following(&[]).await;
    let start = Instant::now();
    // Far in this machine's future or past, whatever its clock says.
    maps.send(&expiring("2026-12-31T23:59:00Z")).await;
    node.map().await;
    server.next().await.answer("");
    assert_eq!(node.end().await, End::Broken("the node's key has expired".into()));
    assert_eq!(start.elapsed().as_secs(), 60);
}

/// A session of a known node whose key expires in some minutes, by the server's clock.
async fn expiring_in(minutes: u64, tags: &str) -> (Node, Arc<Identity>, Server, Maps) {
    let identity = registered();
    let (node, server) = Node::start(identity.clone(), Some(AUTH_KEY), &[]);
    let (mut node, mut server, maps, _) = node.up_to_its_stream(server).await;
    let end: jiff::Timestamp = "2027-01-01T00:00:00Z".parse().expect("a time");
    let now = end - Duration::from_secs(60 * minutes);
    maps.send(&expiring(&now.to_string()).replace(r#""ID": 1"#, &format!(r#""ID": 1, "Tags": [{tags}]"#))).await;
    node.map().await;
    server.next().await.answer("");
    (node, identity, server, maps)
}

fn minutes_since(start: Instant) -> u64 {
    start.elapsed().as_secs() / 60
}

#[tokio::test(start_paused = true)]
async fn an_expiry_is_told_once_a_day_before_it() {
    let (mut node, _, mut server, maps) = expiring_in(25 * 60, r#""tag:a""#).await;
    let start = Instant::now();
    let told = async {
        let ControlEvent::KeyExpiring { at } = node.event().await else { panic!("another event") };
        assert_eq!((minutes_since(start), (at - start).as_secs() / 60), (60, 25 * 60));
        node.event().now_or_never()
    };
    tokio::select! {
        again = told => assert!(again.is_none(), "{again:?}"),
        _ = server.shown_key(&maps) => panic!("no event"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_renewed_shortly_before_its_end_in_place_of_the_old_one() {
    let (mut node, identity, mut server, maps) = expiring_in(60, "").await;
    let (start, old) = (Instant::now(), identity.node_key());
    assert!(matches!(node.event().await, ControlEvent::KeyExpiring { .. }));
    let asked = server.shown_key(&maps).await.expect("a renewal");
    assert_eq!(minutes_since(start), 50);
    assert_eq!(
        (&asked.body["Auth"]["AuthKey"], &asked.body["OldNodeKey"]),
        (&AUTH_KEY.into(), &old.node_text().into())
    );
    let new = asked.body["NodeKey"].clone();
    assert_eq!(identity.node_key(), old, "not before the server has accepted the new one");
    asked.answer(WELCOME);
    assert_eq!(node.end().await, End::Renewed);
    assert_eq!(new, identity.node_key().node_text());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_is_not_tried_again_and_the_old_key_serves_to_its_end() {
    let (mut node, identity, mut server, maps) = expiring_in(60, "").await;
    let (start, old) = (Instant::now(), identity.node_key());
    server.shown_key(&maps).await.expect("a renewal").answer(r#"{"Error":"authkey already used"}"#);
    assert!(server.shown_key(&maps).await.is_none(), "it asked again");
    assert_eq!(node.end().await, End::Broken("the node's key has expired".into()));
    assert_eq!((minutes_since(start), identity.node_key()), (60, old));
}

#[tokio::test(start_paused = true)]
async fn the_key_of_a_tagged_node_is_not_renewed_ahead() {
    let (mut node, _, mut server, maps) = expiring_in(60, r#""tag:a""#).await;
    assert!(server.shown_key(&maps).await.is_none(), "it asked");
    assert_eq!(node.end().await, End::Broken("the node's key has expired".into()));
}

#[test]
fn a_wrong_clock_of_this_machine_does_not_end_an_accepted_key() {
    let (update, _) = MapResponse::parse(expiring("2026-01-01T00:00:00Z").as_bytes()).expect("a map").into_update();
    let map = NetMap::first(update).expect("it names this node");
    let expiry = map.self_node.info.key_expiry.expect("it expires");
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    for own in [expiry - hour, expiry + 1000 * hour, SystemTime::UNIX_EPOCH] {
        assert_eq!(expires_at(&map, Some((expiry - 2 * hour, now)), now + hour, own), Some(now + 2 * hour));
    }
    assert_eq!(expires_at(&map, Some((expiry + hour, now)), now, expiry - hour), Some(now), "the server says so");
    assert_eq!(expires_at(&map, None, now, expiry - hour), Some(now + hour));
    assert_eq!(expires_at(&map, None, now, expiry + hour), None, "it was accepted a moment ago");
}

#[tokio::test]
async fn a_map_with_bad_parts_is_followed_without_them() {
    let (mut node, _server, maps, _) = Node::following(&[]).await;
    let key = |byte: &str| format!("nodekey:{}", byte.repeat(32));
    let peers = format!(
        r#""Peers": [{{"ID": 2, "Key": "{}", "AllowedIPs": ["10.0.0.0/8", "10.0.0.0/99"]}}, {{"ID": "x"}}, {{"ID": 3, "Key": "{}"}}],"#,
        key("02"),
        key("03"),
    );
    let map = FIRST_MAP
        .replacen('{', &format!("{{{peers}"), 1)
        .replace(r#""ID": 1,"#, r#""ID": 1, "KeyExpiry": "never","#)
        .replace(r#"{"7": {"#, r#"{"8": {"Nodes": [{"HostName": "b.example", "DERPPort": "x"}]}, "7": {"#);
    maps.send(&map).await;
    let map = node.map().await;
    assert_eq!(map.peers.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(map.peers[&2].allowed.len(), 1);
    assert_eq!(regions(&map), [7].into());
}

/// Everything that the map stream knows, in two messages.
const SAMPLES: [&str; 2] = [
    r#"{"ControlTime":"2026-01-01T00:00:00Z",
        "Node":{"ID":1,"Name":"me.example.","Addresses":["100.64.0.1/32"],"KeyExpiry":"0001-01-01T00:00:00Z",
                "Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101"},
        "DERPMap":{"Regions":{"7":{"RegionID":7,"RegionName":"A","Nodes":[{"HostName":"a.example","IPv4":"192.0.2.1","DERPPort":8443,"STUNPort":-1}]},"8":null}},
        "Peers":[{"ID":2,"Name":"router.example.","Key":"nodekey:0202020202020202020202020202020202020202020202020202020202020202",
                  "DiscoKey":"discokey:0303030303030303030303030303030303030303030303030303030303030303",
                  "Addresses":["100.64.0.2/32"],"AllowedIPs":["100.64.0.2/32","10.96.0.0/16"],
                  "Endpoints":["192.0.2.1:41641"],"HomeDERP":7,"DERP":"127.3.3.40:7","Tags":["tag:a"],"Online":true},
                 {"ID":3,"Name":"other","Key":"nodekey:0404040404040404040404040404040404040404040404040404040404040404"}]}"#,
    r#"{"PeersChanged":[{"ID":4,"Key":"nodekey:0505050505050505050505050505050505050505050505050505050505050505"}],
        "PeersRemoved":[3],"OnlineChange":{"2":false},
        "PeersChangedPatch":[{"NodeID":2,"DERPRegion":8,"Endpoints":["192.0.2.2:1"],"Online":true}]}"#,
];

/// Follows a stream of messages, as a session does.
fn follow(stream: &[u8]) -> Result<Option<NetMap>, String> {
    let mut reader = MapReader::new(stream);
    let mut map = None;
    loop {
        let message = match reader.next().now_or_never().expect("all is there") {
            Ok(message) => message,
            Err(StreamError::Closed) => return Ok(map),
            Err(other) => return Err(other.to_string()),
        };
        let (update, _) = MapResponse::parse(&message).map_err(|e| e.to_string())?.into_update();
        take(&mut map, update).map_err(|end| format!("{end:?}"))?;
    }
}

fn framed<T: AsRef<[u8]>>(messages: &[T]) -> Vec<u8> {
    let frame = |m: &T| [&u32::try_from(m.as_ref().len()).expect("short").to_le_bytes(), m.as_ref()].concat();
    messages.iter().flat_map(frame).collect()
}

/// Any JSON.
fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let named = prop::collection::vec((".{0,4}", inner.clone()), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            named.prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// The places in a value, as JSON pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Array(list) => {
            (0..).zip(list).for_each(|(n, part): (usize, _)| places(part, &format!("{here}/{n}"), all))
        }
        Value::Object(fields) => fields.iter().for_each(|(name, part)| places(part, &format!("{here}/{name}"), all)),
        _ => {}
    }
}

proptest! {
    /// Whatever becomes of any part, the rest is a map; and without it, an error.
    #[test]
    fn a_map_of_which_any_part_is_junk_is_read_or_refused(at: prop::sample::Index, junk in junk()) {
        let mut first: Value = serde_json::from_str(SAMPLES[0]).expect("JSON");
        let mut all = Vec::new();
        places(&first, "", &mut all);
        let place = at.get(&all).clone();
        *first.pointer_mut(&place).expect("it is there") = junk;
        let followed = follow(&framed(&[first.to_string(), SAMPLES[1].to_owned()]));
        let names_us = !place.is_empty() && place != "/Node" && !place.starts_with("/Node/");
        if let Ok(Some(map)) = &followed {
            prop_assert!(map.peers.len() <= 3);
        } else {
            prop_assert!(!names_us, "{place}: {followed:?}");
        }
        if names_us && !place.starts_with("/DERPMap") && !place.starts_with("/Peers/1") && place != "/Peers" {
            prop_assert_eq!(followed.expect("a map").expect("a map").relays.len(), 1);
        }
    }

    /// Bytes that are changed, cut out or put in, in the stream or in a message of it, give maps or an error.
    #[test]
    fn a_stream_with_changed_bytes_ends_in_maps_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        message in prop::option::of(0..SAMPLES.len()),
    ) {
        let mut messages = SAMPLES.map(|text| text.as_bytes().to_vec());
        let mut stream = framed(&messages);
        let target = message.map_or(&mut stream, |n| &mut messages[n]);
        for (at, byte, how) in changes {
            let at = at.index(target.len());
            match how {
                0 => target[at] = byte,
                1 => target[at] ^= 1 << (byte % 8),
                2 => target.insert(at, byte),
                _ => drop(target.drain(at..(at + usize::from(byte)).min(target.len() - 1).max(at))),
            }
        }
        drop(follow(&if message.is_some() { framed(&messages) } else { stream }));
    }
}

#[test]
fn the_home_relay_is_one_that_exists() {
    let chosen = |wish, before, known: Option<&[u16]>| {
        let known = known.map(|regions| regions.iter().copied().collect());
        choose_home(LocalReport { home_relay: wish, ..LocalReport::default() }, before, known.as_ref()).home_relay
    };
    assert_eq!(chosen(None, None, None), None);
    assert_eq!(chosen(None, Some(7), None), Some(7), "before the first map, the one of the last run");
    assert_eq!(chosen(Some(5), Some(7), Some(&[5, 7])), Some(5));
    assert_eq!(chosen(Some(4), Some(7), Some(&[5, 7])), Some(7));
    assert_eq!(chosen(Some(4), Some(3), Some(&[5, 7])), Some(5));
    assert_eq!(chosen(Some(4), Some(3), Some(&[])), None);
}
