//! What a Prometheus server is told: names that do not change unseen, text that is OpenMetrics, series that are bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use guildnet_model::{ConnectorState, Dropped, NodeInfo, PathKind, PeerContact, PeerInfo};
use http::{Method, StatusCode};

use super::*;
use crate::{
    proxy::{Places, Taken},
    verify::{CheckReport, ClusterReport},
};

fn id(text: &str) -> ClusterId {
    text.parse().expect("an id")
}

/// A moment, some seconds after another one.
fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn router(path: PathKind) -> PeerInfo {
    PeerInfo {
        name: "gn-a-router".into(),
        node_key: "nodekey:01".into(),
        addresses: vec![],
        tags: vec![],
        routes: vec![],
        ignored: vec![],
        online: Some(true),
        trusted: true,
        path,
        rtt: Some(Duration::from_micros(1_500)),
        last_handshake: Some(at(2)),
        rx_bytes: 1000,
        tx_bytes: 20,
        contact: PeerContact { node_key: [1; 32], disco_key: None, home_relay: None, endpoints: vec![] },
    }
}

/// A cluster of which everything was seen.
fn running(id: ClusterId) -> ClusterSeen {
    let node = NodeInfo {
        name: "n".into(),
        id: 1,
        addresses: vec![],
        node_key: "nodekey:02".into(),
        tags: vec![],
        key_expiry: Some(at(86_400)),
    };
    let status = ConnectorStatus { state: ConnectorState::Ready, since: at(1), node: Some(node), last_trouble: None };
    let strange = PeerInfo { trusted: false, rx_bytes: 7, ..router(PathKind::Idle) };
    let snapshot = ConnectorSnapshot {
        status: status.clone(),
        peers: vec![router(PathKind::Direct), strange],
        home_relay: Some(999),
        flows: 3,
        dropped: Dropped { refused: 3, relay_full: 1, ..Dropped::default() },
    };
    ClusterSeen {
        id,
        connector: ConnectorSeen::Runs { status: Box::new(status), snapshot: Some(Box::new(snapshot)), epochs: 2 },
    }
}

/// Counts in which everything has happened to cluster `a`, and nothing to `b`.
fn full() -> String {
    let metrics = Metrics::default();
    metrics.know(&[id("a"), id("b"), id("c")]);
    let counts = metrics.of(&id("a")).expect("known");
    for verb in Verb::ALL {
        counts.answered(verb, StatusCode::OK);
        drop(Begun::of(&counts, verb, std::time::Instant::now()).map(Begun::answered));
    }
    for status in [429, 503, 504, 502, 403, 404] {
        counts.refused(StatusCode::from_u16(status).expect("a status"));
    }
    counts.way(Way::Socks).failed();
    let way = counts.way(Way::Forward);
    way.entered();
    way.sent(10);
    way.received(20);
    way.entered();
    way.left();
    metrics.door.certificate_ends(at(0));
    metrics.door.answered(Surface::Api, StatusCode::OK);
    let check =
        |result| CheckReport { id: "x".into(), result, needs: vec![], seen: String::new(), hint: String::new(), ms: 1 };
    let part = |id: &str| ClusterReport { id: id.into(), ..ClusterReport::of(None, vec![check(Verdict::Pass)]) };
    metrics.verified(&Report::of(vec![part(""), part("a"), part("gone")]));
    let places = Places {
        clusters: BTreeMap::from([(id("a"), Taken { short: 5, waiting: 6, lasting: 7 })]),
        ..Places::default()
    };
    let resting = ClusterSeen { id: id("b"), connector: ConnectorSeen::Disconnected };
    let unusable = ClusterSeen { id: id("c"), connector: ConnectorSeen::Unusable };
    let unknown = running(id("gone"));
    metrics.render(vec![running(id("a")), resting, unusable, unknown], &places)
}

/// Lines without `#`, without their values.
pub(crate) fn series(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
}

/// The value of one series.
#[track_caller]
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("a number")
}

/// The names of all families as queries name them.
fn queried(text: &str) -> BTreeSet<String> {
    series(text).iter().map(|s| s.split('{').next().expect("a name").to_owned()).collect()
}

/// Checks what OpenMetrics 1.0.0 demands of what we write: metadata before samples, no family twice or torn apart, suffixes by type,
/// the unit at the end of the name, no sample twice, counters that do not fall below zero, histograms that add up.
#[track_caller]
fn check_openmetrics(text: &str) {
    let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
    let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let (mut name, mut kind, mut described) = (String::new(), String::new(), false);
    let mut buckets: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            name = help.split(' ').next().expect("a name").to_owned();
            assert!(help.len() > name.len() + 5, "no help: {line}");
            assert!(families.insert(name.clone()), "twice: {line}");
            described = true;
            continue;
        }
        if let Some(of) = line.strip_prefix("# TYPE ") {
            kind = of.strip_prefix(&format!("{name} ")).unwrap_or_else(|| panic!("{line}")).to_owned();
            continue;
        }
        if let Some(unit) = line.strip_prefix("# UNIT ") {
            let unit = unit.strip_prefix(&format!("{name} ")).unwrap_or_else(|| panic!("{line}"));
            assert!(["seconds", "bytes"].contains(&unit) && name.ends_with(&format!("_{unit}")), "{line}");
            continue;
        }
        assert!(described, "a sample before its family: {line}");
        let (series, number) = line.rsplit_once(' ').expect("a value");
        let number: f64 = number.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(number.is_finite(), "{line}");
        assert!(samples.insert(series.to_owned()), "twice: {line}");
        let (own, labels) = series.split_once('{').map_or((series, ""), |(own, rest)| (own, rest));
        assert!(labels.is_empty() || (labels.ends_with('}') && labels.len() > 1), "{line}");
        let suffix = own.strip_prefix(&name).unwrap_or_else(|| panic!("{line} is not of {name}"));
        let allowed: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{other}"),
        };
        assert!(allowed.contains(&suffix), "{line} of a {kind}");
        assert!(kind == "gauge" || number >= 0.0, "{line}");
        if suffix == "_bucket" {
            let of: Vec<&str> = labels.trim_end_matches('}').split(',').filter(|l| !l.starts_with("le=")).collect();
            let before = buckets.entry(of.join(",")).or_default();
            assert!(before.last().is_none_or(|last| *last <= number), "{line}: buckets add up");
            before.push(number);
        }
        if suffix == "_count" {
            counts.insert(labels.trim_end_matches('}').to_owned(), number);
        }
    }
    for (labels, count) in counts {
        assert_eq!(buckets.get(&labels).and_then(|all| all.last()), Some(&count), "{labels}");
    }
}

#[test]
fn names_types_and_help() {
    let text = full();
    let told: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn the_answer_is_openmetrics() {
    check_openmetrics(&full());
    check_openmetrics(&Metrics::default().render(vec![], &Places::default()));
}

#[test]
fn what_was_seen_is_told() {
    let text = full();
    for (series, expected) in [
        ("guildnet_connector_state{cluster=\"a\",state=\"ready\"}", 1.0),
        ("guildnet_connector_state{cluster=\"a\",state=\"failed\"}", 0.0),
        ("guildnet_connector_state{cluster=\"b\",state=\"disconnected\"}", 1.0),
        ("guildnet_connector_state{cluster=\"c\",state=\"unusable\"}", 1.0),
        ("guildnet_connector_usable{cluster=\"a\"}", 1.0),
        ("guildnet_connector_usable{cluster=\"b\"}", 0.0),
        ("guildnet_connector_path{cluster=\"a\",path=\"direct\"}", 1.0),
        ("guildnet_connector_rtt_seconds{cluster=\"a\"}", 0.0015),
        ("guildnet_connector_last_handshake_timestamp_seconds{cluster=\"a\"}", 1_800_000_002.0),
        ("guildnet_connector_key_expiry_timestamp_seconds{cluster=\"a\"}", 1_800_086_400.0),
        ("guildnet_connector_received_bytes_total{cluster=\"a\"}", 1000.0),
        ("guildnet_connector_became_usable_total{cluster=\"a\"}", 2.0),
        ("guildnet_connector_dropped_packets_total{cluster=\"a\",cause=\"refused\"}", 3.0),
        ("guildnet_connector_dropped_packets_total{cluster=\"a\",cause=\"relay_full\"}", 1.0),
        ("guildnet_proxy_requests_total{cluster=\"a\",verb=\"tunnel\",status=\"2xx\"}", 1.0),
        ("guildnet_proxy_refusals_total{cluster=\"a\",reason=\"limit\"}", 1.0),
        ("guildnet_proxy_request_duration_seconds_count{cluster=\"a\",verb=\"read\"}", 1.0),
        ("guildnet_proxy_requests_waiting{cluster=\"a\"}", 6.0),
        ("guildnet_proxy_requests_waiting{cluster=\"b\"}", 0.0),
        ("guildnet_forward_connections_total{cluster=\"a\",way=\"forward\"}", 2.0),
        ("guildnet_forward_connections_open{cluster=\"a\",way=\"forward\"}", 1.0),
        ("guildnet_forward_failures_total{cluster=\"a\",way=\"socks5\"}", 1.0),
        ("guildnet_forward_sent_bytes_total{cluster=\"a\",way=\"forward\"}", 10.0),
        ("guildnet_forward_received_bytes_total{cluster=\"a\",way=\"forward\"}", 20.0),
        ("guildnet_door_certificate_end_timestamp_seconds", 1_800_000_000.0),
        ("guildnet_verify_checks{scope=\"cluster\",cluster=\"a\",result=\"pass\"}", 1.0),
        ("guildnet_verify_checks{scope=\"server\",result=\"pass\"}", 1.0),
        ("guildnet_verify_runs_total{result=\"success\"}", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert!(!text.contains("cause=\"no_flow\""), "what never happened");
    assert!(!text.contains("way=\"connect\""), "what nobody has used");
    assert!(!text.contains("request_duration_seconds_count{cluster=\"a\",verb=\"stream\"}"), "streams have no end");
}

#[test]
fn a_cluster_that_is_not_known_has_no_series_and_a_removed_one_takes_its_own_with_it() {
    assert!(!full().contains("gone"), "not by what was seen, nor by a report");
    let metrics = Metrics::default();
    metrics.know(&[id("a"), id("b")]);
    let counts = metrics.of(&id("a")).expect("known");
    counts.answered(Verb::Read, StatusCode::OK);
    metrics.know(&[id("b")]);
    assert!(metrics.of(&id("a")).is_none());
    let text = metrics.render(vec![running(id("a")), running(id("b"))], &Places::default());
    assert!(!text.contains("cluster=\"a\"") && text.contains("cluster=\"b\""), "{text}");
    metrics.know(&[id("a"), id("b")]);
    let again = metrics.render(vec![running(id("a"))], &Places::default());
    assert!(!again.contains("guildnet_proxy_requests_total{"), "it counts from zero");
}

#[test]
fn every_state_of_a_connector_has_its_word() {
    let why = || "x".to_owned();
    let degraded = guildnet_model::Degraded::NoRouter { why: why() };
    for state in [
        ConnectorState::Starting,
        ConnectorState::NeedsKey { why: why() },
        ConnectorState::Syncing,
        ConnectorState::Ready,
        ConnectorState::Degraded { why: degraded },
        ConnectorState::Failed { why: why(), retry_in: None },
        ConnectorState::Stopped,
    ] {
        let word = crate::status::word(&state);
        assert!(families::STATES.contains(&word), "{word}");
    }
}

#[test]
fn what_a_request_wants_decides_its_verb() {
    for (method, lasts, upgrade, verb) in [
        (Method::GET, false, false, Verb::Read),
        (Method::HEAD, false, false, Verb::Read),
        (Method::PATCH, false, false, Verb::Write),
        (Method::GET, true, false, Verb::Stream),
        (Method::POST, true, true, Verb::Tunnel),
        (Method::from_bytes(b"BREW").expect("a token"), false, false, Verb::Write),
    ] {
        assert_eq!(Verb::of(&method, lasts, upgrade), verb, "{method}");
    }
}

#[test]
fn all_that_the_dashboard_and_the_rules_ask_for_is_there() {
    let there = queried(&full());
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/observability");
    for file in ["dashboard.json", "rules.yaml"] {
        let text = std::fs::read_to_string(format!("{folder}/{file}")).expect("there");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: BTreeSet<&str> = words.filter(|w| w.starts_with("guildnet_") || w.starts_with("process_")).collect();
        assert!(named.len() >= 10, "{file} asks for {named:?}");
        for name in named {
            assert!(there.contains(name), "{file}: nothing is called {name}");
        }
    }
    let dashboard = std::fs::read_to_string(format!("{folder}/dashboard.json")).expect("there");
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("JSON");
}
