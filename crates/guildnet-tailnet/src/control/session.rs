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
    pub(super) async fn run(self, http: Http) -> Result<std::convert::Infallible, End> {
        let config = self.config;
        self.talk(http).await.map_err(|end| match end {
            End::Refused(why) => End::Refused(config.fit(&why)),
            End::Broken(why) => End::Broken(config.fit(&why)),
            End::Moved | End::Stopped => end,
        })
    }

    async fn talk(mut self, http: Http) -> Result<std::convert::Infallible, End> {
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
        let mut clock = None;
        let mut expires = None;
        let mut unread = 0;
        loop {
            tokio::select! {
                message = timeout_at(silent_since + SILENCE_LIMIT, reader.next()) => {
                    let message = message
                        .map_err(|_| End::Broken(format!("the server was silent for {SILENCE_LIMIT:?}")))?
                        .map_err(|e| End::Broken(e.to_string()))?;
                    silent_since = Instant::now();
                    let message = MapResponse::parse(&message)
                        .map_err(|e| End::Broken(format!("the server's map can't be read: {e}")))?;
                    clock = message.server_time().map(|time| (time, silent_since)).or(clock);
                    let (update, bad) = message.into_update();
                    if bad > unread {
                        tracing::warn!(parts = bad, "parts of the server's map can't be read and are left out");
                        unread = bad;
                    }
                    let news = take(&mut map, update)?;
                    expires = map.as_ref().and_then(|map| expires_at(map, clock, silent_since, SystemTime::now()));
                    if let Some(map) = news {
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

/// When the node key expires, by the server's clock: it told `clock.0` at `clock.1`. This machine's own clock (`own`, at `now`)
/// may be wrong by days; without another one its word counts only for the time to come, since the server has accepted the
/// key just now.
fn expires_at(map: &NetMap, clock: Option<(SystemTime, Instant)>, now: Instant, own: SystemTime) -> Option<Instant> {
    let expiry = map.self_node.info.key_expiry?;
    match clock {
        Some((time, at)) => at.checked_add(expiry.duration_since(time).unwrap_or_default()),
        None => now.checked_add(expiry.duration_since(own).ok()?),
    }
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
    use proptest::prelude::*;
    use serde_json::Value;
    use ts_keys::ExportableKey as _;
    use url::Url;

    use super::*;
    use crate::{
        control::{connect, fake::Server, stream::StreamError},
        state::{Identity, public},
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
        session: Option<tokio::task::JoinHandle<End>>,
        events: mpsc::Receiver<ControlEvent>,
    }

    impl Node {
        fn start(identity: Arc<Identity>, auth_key: Option<&str>, endpoints: &[&str]) -> (Self, Server) {
            let (server, io) = Server::start();
            let config = ControlConfig {
                login_server: LOGIN_SERVER.parse::<Url>().expect("an address"),
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
        let mut ends = Vec::new();
        let mut secrets: Vec<String> = [AUTH_KEY, "pa55", "query-secret", "fragment-secret"].map(str::to_owned).into();
        // How the server answers the registration, or the map request behind it. The key also lies across the place of the cut.
        type Answer = fn(crate::control::fake::Asked, &str);
        let answers: [(bool, Answer); 7] = [
            (false, |asked, echo| asked.answer_with(http::StatusCode::INTERNAL_SERVER_ERROR, echo)),
            (false, |asked, echo| asked.answer(&serde_json::json!({ "Error": echo }).to_string())),
            (false, |asked, echo| asked.answer(&serde_json::json!(echo).to_string())),
            (false, |asked, echo| asked.answer(&serde_json::json!({ "MachineAuthorized": echo }).to_string())),
            (false, |asked, echo| {
                asked.answer(&serde_json::json!({ "NodeKeyExpired": true, "Error": echo }).to_string())
            }),
            (true, |asked, echo| asked.answer_with(http::StatusCode::FORBIDDEN, echo)),
            (true, |asked, echo| {
                let maps = asked.stream();
                let map = serde_json::json!(echo).to_string();
                tokio::spawn(async move { maps.send(&map).await });
            }),
        ];
        for (at_map, answer) in answers {
            for filling in [0, 150, 180, 200, 220, 240, 260, 280, 299, 100_000] {
                let identity = if at_map { registered() } else { Arc::new(Identity::ephemeral()) };
                let private = [identity.node().export().to_string(), identity.machine().export().to_string()];
                secrets.extend(private.map(|key| key.split(':').next_back().expect("hex").to_owned()));
                let (mut node, mut server) = Node::start(identity, Some(AUTH_KEY), &[]);
                let mut asked = server.next().await;
                if at_map {
                    asked.answer(WELCOME);
                    node.event().await;
                    asked = server.next().await;
                }
                let echo = format!("{}{AUTH_KEY}\n{}", "x".repeat(filling), asked.body);
                answer(asked, &echo);
                ends.push(format!("{:?}", node.end().await));
            }
        }
        let log = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
        assert!(log.contains("TRACE"), "the test sees nothing");
        for end in &ends {
            assert!(end.len() < 400, "{end}");
        }
        for secret in &secrets {
            for (text, what) in ends.iter().map(|end| (end, "an end")).chain([(&log, "the log")]) {
                let line = text.lines().find(|line| line.contains(secret.as_str()));
                assert_eq!(line, None, "{secret} is in {what}");
            }
        }
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
        use futures_util::FutureExt as _;
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
            Value::Object(fields) => {
                fields.iter().for_each(|(name, part)| places(part, &format!("{here}/{name}"), all))
            }
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
}
