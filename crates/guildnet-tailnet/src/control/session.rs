//! One session with the control server: register, follow the map, tell what changes here.
//!
//! Ends with the first thing that goes wrong; `control.rs` decides when the next one begins.

use std::{
    collections::BTreeSet,
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    ControlConfig, ControlEvent, End, LocalReport,
    connect::{CAPABILITY, Http, HttpError},
    register::{blocking, register, still_known},
    stream::MapReader,
    wire::{MapRequest, MapResponse},
};
use crate::netmap::{NetMap, Update};

/// How long the head of an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the map stream may be silent: two keep-alives (Headscale sends one every 50 to 59 s) and no third chance.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// How long changes of the local report are collected: addresses come in bursts when a network changes.
const REPORT_DELAY: Duration = Duration::from_millis(250);

/// How often the server is asked whether it still knows this node: Headscale (0.29) leaves the stream of a deleted node open,
/// and silent but for keep-alives. The question changes nothing there, but writes a line to the server's log.
const PRESENCE_CHECK: Duration = Duration::from_secs(60);

/// A lite update or a presence check on its way.
type Telling<'a> = Pin<Box<dyn Future<Output = Result<(), End>> + Send + 'a>>;

/// What a session works with.
pub(super) struct Session<'a> {
    pub(super) config: &'a ControlConfig,
    pub(super) reports: &'a mut watch::Receiver<LocalReport>,
    pub(super) events: &'a mpsc::Sender<ControlEvent>,
    /// Set once a map has come.
    pub(super) had_map: &'a mut bool,
}

impl Session<'_> {
    /// Runs until something ends it; never returns a success.
    pub(super) async fn run(mut self, http: Http) -> Result<std::convert::Infallible, End> {
        register(&http, self.config).await?;
        self.tell(ControlEvent::Registered).await?;
        self.follow(&http).await
    }

    async fn tell(&self, event: ControlEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Stopped)
    }

    async fn follow(&mut self, http: &Http) -> Result<std::convert::Infallible, End> {
        let config = self.config;
        let mut reported = choose_home(self.reports.borrow_and_update().clone(), config.identity.home_relay(), None);
        let request = MapRequest::stream(CAPABILITY.into(), keys(config), &config.hostname, &reported);
        let mut reader = MapReader::new(within(http.post("/machine/map", &request)).await?);
        let mut map: Option<NetMap> = None;
        let mut silent_since = Instant::now();
        let mut tell_at: Option<Instant> = None;
        let mut check_at = Instant::now() + PRESENCE_CHECK;
        let mut telling: Option<Telling<'_>> = None;
        let mut reports_end = false;
        loop {
            let expires = map.as_ref().and_then(expires_in).map(|left| Instant::now() + left);
            tokio::select! {
                message = timeout_at(silent_since + SILENCE_LIMIT, reader.next()) => {
                    let message = message
                        .map_err(|_| End::Broken(format!("the server was silent for {SILENCE_LIMIT:?}")))?
                        .map_err(|e| End::Broken(e.to_string()))?;
                    silent_since = Instant::now();
                    let update = MapResponse::parse(&message)
                        .map_err(|e| End::Broken(format!("the server's map can't be read: {e}")))?
                        .into_update();
                    if let Some(map) = take(&mut map, update)? {
                        let regions = regions(&map);
                        *self.had_map = true;
                        self.tell(ControlEvent::Map(Arc::new(map))).await?;
                        let report = choose_home(self.reports.borrow().clone(), config.identity.home_relay(), Some(&regions));
                        if report.home_relay != reported.home_relay {
                            // Without a home relay peers take this node for unreachable: told at once.
                            tell_at = Some(Instant::now());
                        }
                    }
                }
                changed = self.reports.changed(), if !reports_end => match changed {
                    Ok(()) => tell_at = tell_at.or(Some(Instant::now() + REPORT_DELAY)),
                    Err(_) => reports_end = true,
                },
                () = at(tell_at), if telling.is_none() => {
                    tell_at = None;
                    let regions = map.as_ref().map(regions);
                    let report =
                        choose_home(self.reports.borrow_and_update().clone(), config.identity.home_relay(), regions.as_ref());
                    if report != reported {
                        reported = report.clone();
                        telling = Some(Box::pin(tell_server(http, config, report)));
                    }
                }
                () = sleep_until(check_at), if telling.is_none() => {
                    check_at = Instant::now() + PRESENCE_CHECK;
                    telling = Some(Box::pin(still_known(http, config)));
                }
                told = async { match &mut telling { Some(telling) => telling.await, None => pending().await } } => {
                    telling = None;
                    told?;
                }
                () = at(expires) => return Err(End::Broken("the node's key has expired".into())),
            }
        }
    }
}

/// Applies a message; gives the map if it became another one. Servers often repeat what is known.
fn take(known: &mut Option<NetMap>, update: Update) -> Result<Option<NetMap>, End> {
    if update == Update::default() {
        return Ok(None);
    }
    let map = match &*known {
        Some(known) => {
            let mut map = known.clone();
            map.apply(update);
            map
        }
        None => {
            NetMap::first(update).ok_or_else(|| End::Broken("the server's first map does not name this node".into()))?
        }
    };
    if map.self_node.expired {
        return Err(End::Broken("the server says that the node's key has expired".into()));
    }
    if known.as_ref() == Some(&map) {
        return Ok(None);
    }
    *known = Some(map.clone());
    Ok(Some(map))
}

/// Sends a lite update, and keeps the home relay for the next start.
async fn tell_server(http: &Http, config: &ControlConfig, report: LocalReport) -> Result<(), End> {
    let request = MapRequest::lite(CAPABILITY.into(), keys(config), &config.hostname, &report);
    within(http.ask("/machine/map", &request)).await?;
    if let Some(region) = report.home_relay {
        let identity = config.identity.clone();
        blocking(move || identity.keep_home_relay(region)).await?;
    }
    Ok(())
}

async fn within<T>(request: impl Future<Output = Result<T, HttpError>>) -> Result<T, End> {
    match timeout(ANSWER_LIMIT, request).await {
        Ok(answer) => answer.map_err(|e| End::Broken(e.to_string())),
        Err(_) => Err(End::Broken(format!("the server did not answer within {ANSWER_LIMIT:?}"))),
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

fn keys(config: &ControlConfig) -> (String, String) {
    (config.identity.node_key().node_text(), config.identity.disco().public.to_string())
}

fn regions(map: &NetMap) -> BTreeSet<u16> {
    map.relays.iter().map(|relay| relay.region).collect()
}

/// How long the node key is still valid, as the map says.
fn expires_in(map: &NetMap) -> Option<Duration> {
    let at = map.self_node.info.key_expiry?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The report with a home relay: the wished one, else the one of before, else the lowest; only those in the map once that
/// is known.
fn choose_home(mut report: LocalReport, before: Option<u16>, known: Option<&BTreeSet<u16>>) -> LocalReport {
    let usable = |region: &u16| known.is_none_or(|known| known.contains(region));
    let lowest = || known.and_then(|known| known.first().copied());
    report.home_relay = report.home_relay.filter(usable).or(before.filter(usable)).or_else(lowest);
    report
}

#[cfg(test)]
mod tests {
    use guildnet_model::Secret;
    use serde_json::Value;
    use url::Url;

    use super::*;
    use crate::{
        control::{connect, fake::Server},
        state::{Identity, public},
        tls,
    };

    /// A preauth key.
    const AUTH_KEY: &str = "hskey-auth-test";
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
        session: Option<tokio::task::JoinHandle<End>>,
        events: mpsc::Receiver<ControlEvent>,
    }

    impl Node {
        fn start(identity: Arc<Identity>, auth_key: Option<&str>, endpoints: &[&str]) -> (Self, Server) {
            let (server, io) = Server::start();
            let config = ControlConfig {
                login_server: "https://headscale.example".parse::<Url>().expect("an address"),
                tls: tls::client_config(Some(&ca())).expect("a config"),
                hostname: "me".into(),
                auth_key: auth_key.map(|key| Secret::new(key.to_owned())),
                identity: identity.clone(),
            };
            let endpoints = endpoints.iter().map(|addr| addr.parse().expect("an address")).collect();
            let (reports, mut watched) = watch::channel(LocalReport { endpoints, home_relay: None });
            let (events_tx, events) = mpsc::channel(8);
            let session = tokio::spawn(async move {
                let talk = async |http| {
                    let session =
                        Session { config: &config, reports: &mut watched, events: &events_tx, had_map: &mut false };
                    session.run(http).await
                };
                match connect::with_http(io, &config.login_server, talk).await {
                    Ok(never) => match never {},
                    Err(end) => end,
                }
            });
            (Self { reports, session: Some(session), events }, server)
        }

        /// A session of a node that the server knows, up to its open map stream.
        async fn following(endpoints: &[&str]) -> (Self, Server, crate::control::fake::Maps, Value) {
            let (mut node, mut server) = Self::start(registered(), None, endpoints);
            server.next().await.answer(WELCOME);
            assert!(matches!(node.event().await, ControlEvent::Registered));
            let asked = server.next().await;
            assert_eq!(asked.path, "/machine/map");
            let request = asked.body.clone();
            (node, server, asked.stream(), request)
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
        let why = "https://headscale.example/machine/register: 502 Bad Gateway: try later";
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
}
