//! Every metric there is: its name, its help, and its samples from what was seen. Pure.
//!
//! Names are `guildnet_*`, and `process_*` where the Prometheus project has settled them. Units are seconds and bytes; times are
//! seconds since 1970, so that an age is `time() - metric`. What was not seen has no sample: a connector that never had
//! a handshake has no time of it.

use std::time::{SystemTime, UNIX_EPOCH};

use guildnet_model::{ClusterId, ConnectorSnapshot, ConnectorState, PathKind, PeerInfo};
use prometheus_client::registry::Unit;

use super::{
    ClusterSeen, ConnectorSeen, Verified,
    counts::{ClusterCountsSeen, DoorSeen, GATE_REFUSALS, Refused, Surface, Verb, Way, WaySeen},
    exposition::{Family, Labels, Samples},
    process::ProcessSeen,
};
use crate::{proxy::Places, status};

/// Everything at one moment.
pub(crate) struct Seen<'a> {
    pub(crate) version: &'static str,
    pub(crate) started: SystemTime,
    pub(crate) door: DoorSeen,
    pub(crate) clusters: Vec<(ClusterSeen, ClusterCountsSeen)>,
    pub(crate) places: &'a Places,
    pub(crate) verify: Verified,
    pub(crate) process: ProcessSeen,
}

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The words for how checks end, in the order of [`super::LastVerify::checks`].
const VERDICTS: [&str; 4] = ["pass", "warn", "fail", "skip"];
/// What a connector can be doing: those of [`status::word`], and two for clusters that have none.
pub(crate) const STATES: [&str; 9] =
    ["starting", "needs_key", "syncing", "ready", "degraded", "failed", "stopped", "disconnected", "unusable"];
const PATHS: [(&str, PathKind); 3] =
    [("direct", PathKind::Direct), ("relay", PathKind::Relay), ("idle", PathKind::Idle)];

/// All families, always in this order.
pub(crate) fn of(seen: &Seen<'_>) -> Vec<Family> {
    let mut all = vec![Family {
        name: "guildnet_build",
        help: "The version of this Host App",
        unit: None,
        samples: Samples::Info(vec![("version", seen.version.to_owned())]),
    }];
    connectors(seen, &mut all);
    requests(seen, &mut all);
    forwards(seen, &mut all);
    door(seen, &mut all);
    verify(seen, &mut all);
    process(seen, &mut all);
    all
}

fn connectors(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let each = |of: &dyn Fn(&ClusterSeen) -> Option<f64>| -> Vec<(Labels, f64)> {
        seen.clusters.iter().filter_map(|(c, _)| Some((cluster(&c.id), of(c)?))).collect()
    };
    let states = seen.clusters.iter().flat_map(|(c, _)| {
        let now = state(&c.connector);
        STATES.into_iter().map(move |word| (with(cluster(&c.id), "state", word), flag(word == now)))
    });
    all.push(gauge(
        "guildnet_connector_state",
        "1 for what the cluster's connector is doing, 0 for what not",
        None,
        states,
    ));
    all.push(gauge(
        "guildnet_connector_state_change_timestamp",
        "When the connector's state began",
        Some(Unit::Seconds),
        each(&|c| runs(c).and_then(|(status, _, _)| since_1970(status.since))),
    ));
    all.push(gauge(
        "guildnet_connector_usable",
        "Whether streams into the cluster may be opened",
        None,
        each(&|c| Some(flag(runs(c).is_some_and(|(status, _, _)| status.is_usable())))),
    ));
    all.push(counter(
        "guildnet_connector_became_usable",
        "How often the connector became usable: one more for each reconnect after a loss",
        None,
        each(&|c| runs(c).map(|(_, _, epochs)| epochs as f64)),
    ));
    let paths = seen.clusters.iter().flat_map(|(c, _)| {
        let now = shown(c).and_then(best_router).map(|router| router.path);
        let each = move |(word, kind)| (with(cluster(&c.id), "path", word), flag(Some(kind) == now));
        PATHS.into_iter().filter(move |_| now.is_some()).map(each)
    });
    all.push(gauge("guildnet_connector_path", "1 for how packets travel to the cluster's router", None, paths));
    all.push(gauge(
        "guildnet_connector_rtt",
        "Round trip of the last answered ping on the direct path to the router",
        Some(Unit::Seconds),
        each(&|c| shown(c).and_then(best_router)?.rtt.map(|rtt| rtt.as_secs_f64())),
    ));
    all.push(gauge(
        "guildnet_connector_last_handshake_timestamp",
        "When the last WireGuard handshake with a router of the cluster was completed",
        Some(Unit::Seconds),
        each(&|c| routers(shown(c)?).filter_map(|r| r.last_handshake).max().and_then(since_1970)),
    ));
    all.push(gauge(
        "guildnet_connector_routers_online",
        "Routers of the cluster that the Headscale server does not call offline",
        None,
        each(&|c| shown(c).map(|s| routers(s).filter(|r| r.online != Some(false)).count() as f64)),
    ));
    all.push(gauge(
        "guildnet_connector_relay_connected",
        "Whether the connector is connected to its home relay",
        None,
        each(&|c| shown(c).map(|s| flag(s.home_relay.is_some()))),
    ));
    all.push(counter(
        "guildnet_connector_received",
        "Payload received from the cluster's routers; begins again when a router or the connector does",
        Some(Unit::Bytes),
        each(&|c| shown(c).map(|s| routers(s).map(|r| r.rx_bytes as f64).sum())),
    ));
    all.push(counter(
        "guildnet_connector_sent",
        "Payload sent to the cluster's routers; begins again when a router or the connector does",
        Some(Unit::Bytes),
        each(&|c| shown(c).map(|s| routers(s).map(|r| r.tx_bytes as f64).sum())),
    ));
    all.push(gauge(
        "guildnet_connector_flows",
        "TCP flows that are open through the connector",
        None,
        each(&|c| shown(c).map(|s| s.flows as f64)),
    ));
    let dropped = seen.clusters.iter().flat_map(|(c, _)| {
        let used = shown(c).into_iter().flat_map(|s| s.dropped.causes()).filter(|(_, count)| *count > 0);
        used.map(|(cause, count)| (with(cluster(&c.id), "cause", cause), count as f64))
    });
    all.push(counter(
        "guildnet_connector_dropped_packets",
        "Packets dropped because a bound was reached or they were not allowed, by cause",
        None,
        dropped,
    ));
    all.push(gauge(
        "guildnet_connector_key_expiry_timestamp",
        "When the connector's node key ends, if it does",
        Some(Unit::Seconds),
        each(&|c| runs(c)?.0.node.as_ref()?.key_expiry.and_then(since_1970)),
    ));
}

fn requests(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let answered = seen.clusters.iter().flat_map(|(c, n)| {
        Verb::ALL
            .into_iter()
            .flat_map(move |verb| by_status(with(cluster(&c.id), "verb", verb.word()), &n.requests[verb as usize]))
    });
    all.push(counter(
        "guildnet_proxy_requests",
        "Requests for the cluster's API server that were answered, by the cluster or in its stead",
        None,
        answered,
    ));
    let durations = seen.clusters.iter().flat_map(|(c, n)| {
        let timed = [Verb::Read, Verb::Write].into_iter().zip(&n.durations);
        let used = timed.filter(|(_, seen)| seen.buckets.iter().any(|n| *n > 0));
        used.map(|(verb, seen)| (with(cluster(&c.id), "verb", verb.word()), seen.clone()))
    });
    all.push(Family {
        name: "guildnet_proxy_request_duration",
        help: "From a request's head to the end of its answer's body, of requests that end by themselves and were passed on",
        unit: Some(Unit::Seconds),
        samples: Samples::Durations(durations.collect()),
    });
    let refused = seen.clusters.iter().flat_map(|(c, n)| {
        let used = Refused::ALL.into_iter().zip(n.refused).filter(|(_, count)| *count > 0);
        used.map(|(why, count)| (with(cluster(&c.id), "reason", why.word()), count as f64))
    });
    all.push(counter(
        "guildnet_proxy_refusals",
        "Requests that were not passed on, or had no answer, by what the client was told",
        None,
        refused,
    ));
    let taken = |of: fn(&crate::proxy::Taken) -> usize| -> Vec<(Labels, f64)> {
        let of = |(c, _): &(ClusterSeen, _)| {
            (cluster(&c.id), seen.places.clusters.get(&c.id).map_or(0.0, |taken| of(taken) as f64))
        };
        seen.clusters.iter().map(of).collect()
    };
    all.push(gauge(
        "guildnet_proxy_requests_in_flight",
        "Requests under way that end by themselves",
        None,
        taken(|t| t.short),
    ));
    all.push(gauge("guildnet_proxy_requests_waiting", "Requests that wait for a place", None, taken(|t| t.waiting)));
    all.push(gauge(
        "guildnet_proxy_streams_open",
        "Watches, followed logs and tunnels that are open",
        None,
        taken(|t| t.lasting),
    ));
    let bounds = seen.places.bounds;
    let limits = [("in_flight", bounds.short), ("waiting", bounds.waiting), ("streams", bounds.lasting)];
    all.push(gauge(
        "guildnet_proxy_limit",
        "The most of each that one cluster may have",
        None,
        limits.into_iter().map(|(word, n)| (vec![("kind", word.to_owned())], n as f64)),
    ));
}

fn forwards(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let of = |of: fn(&WaySeen) -> u64| -> Vec<(Labels, f64)> {
        let ways = seen.clusters.iter().flat_map(|(c, n)| Way::ALL.into_iter().zip(&n.ways).map(move |way| (c, way)));
        let used = ways.filter(|(_, (_, seen))| **seen != WaySeen::default());
        used.map(|(c, (way, seen))| (with(cluster(&c.id), "way", way.word()), of(seen) as f64)).collect()
    };
    all.push(counter(
        "guildnet_forward_connections",
        "Connections into the cluster that were let in, by a forward or a proxy",
        None,
        of(|w| w.entered),
    ));
    all.push(gauge("guildnet_forward_connections_open", "Those that are open", None, of(|w| w.open)));
    all.push(counter(
        "guildnet_forward_failures",
        "Connections that came to nothing, and ports that could not be had",
        None,
        of(|w| w.failed),
    ));
    all.push(counter("guildnet_forward_sent", "Bytes that went into the cluster", Some(Unit::Bytes), of(|w| w.sent)));
    all.push(counter(
        "guildnet_forward_received",
        "Bytes that came from the cluster",
        Some(Unit::Bytes),
        of(|w| w.received),
    ));
}

fn door(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let door = &seen.door;
    all.push(counter("guildnet_door_connections", "Connections accepted", None, one(door.accepted as f64)));
    all.push(gauge("guildnet_door_connections_open", "Connections that are open", None, one(door.open as f64)));
    all.push(gauge("guildnet_door_connections_limit", "The most at once; more wait", None, one(door.limit as f64)));
    all.push(counter(
        "guildnet_door_handshake_failures",
        "Connections that never spoke TLS, or not in time",
        None,
        one(door.no_tls as f64),
    ));
    let refused = GATE_REFUSALS.into_iter().zip(door.refused);
    all.push(counter(
        "guildnet_door_refusals",
        "Requests that the gate has refused",
        None,
        refused.map(|(code, n)| (vec![("reason", code.to_owned())], n as f64)),
    ));
    let answered = Surface::ALL
        .into_iter()
        .flat_map(|surface| by_status(vec![("surface", surface.word().to_owned())], &door.requests[surface as usize]));
    all.push(counter("guildnet_door_requests", "Requests that were answered, refused ones too", None, answered));
    all.push(gauge(
        "guildnet_door_certificate_end_timestamp",
        "When the certificate that is served ends",
        Some(Unit::Seconds),
        door.certificate_ends.and_then(since_1970).map(|at| (vec![], at)),
    ));
}

fn verify(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let runs = ["success", "failure"].into_iter().zip(seen.verify.runs);
    all.push(counter(
        "guildnet_verify_runs",
        "Runs of verify in this Host App, by their result",
        None,
        runs.map(|(word, n)| (vec![("result", word.to_owned())], n as f64)),
    ));
    let of = |id: &Option<ClusterId>| match id {
        Some(id) => with(vec![("scope", "cluster".to_owned())], "cluster", id.as_str()),
        None => vec![("scope", "server".to_owned())],
    };
    let at = seen.verify.last.iter().filter_map(|(id, last)| Some((of(id), since_1970(last.at)?)));
    all.push(gauge("guildnet_verify_last_run_timestamp", "When the last verify ended", Some(Unit::Seconds), at));
    let checks = seen.verify.last.iter().flat_map(|(id, last)| {
        VERDICTS.into_iter().zip(last.checks).map(move |(word, n)| (with(of(id), "result", word), n as f64))
    });
    all.push(gauge("guildnet_verify_checks", "How many checks of the last verify ended so", None, checks));
}

fn process(seen: &Seen<'_>, all: &mut Vec<Family>) {
    let some = |value: Option<u64>| value.map(|n| (vec![], n as f64));
    let now = &seen.process;
    let bytes = Some(Unit::Bytes);
    all.push(gauge("process_resident_memory", "Resident memory", bytes.clone(), some(now.resident)));
    all.push(gauge("process_virtual_memory", "Address space", bytes, some(now.virtual_memory)));
    all.push(gauge("process_open_fds", "Open file descriptors", None, some(now.open_fds)));
    all.push(gauge("process_max_fds", "The most file descriptors", None, some(now.max_fds)));
    all.push(gauge("guildnet_process_threads", "Threads", None, some(now.threads)));
    let cpu = one(now.cpu.as_secs_f64());
    all.push(counter("process_cpu", "Time on processors, user and system", Some(Unit::Seconds), cpu));
    let started = since_1970(seen.started).map(|at| (vec![], at));
    all.push(gauge("process_start_time", "When this Host App started", Some(Unit::Seconds), started));
}

fn gauge(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> Family {
    Family { name, help, unit, samples: Samples::Gauge(samples.into_iter().collect()) }
}

fn counter(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> Family {
    Family { name, help, unit, samples: Samples::Counter(samples.into_iter().collect()) }
}

fn one(value: f64) -> [(Labels, f64); 1] {
    [(vec![], value)]
}

fn cluster(id: &ClusterId) -> Labels {
    vec![("cluster", id.to_string())]
}

fn with(mut labels: Labels, name: &'static str, value: &str) -> Labels {
    labels.push((name, value.to_owned()));
    labels
}

/// Samples by status class; what never happened is left out, so that a hundred quiet clusters are few lines.
fn by_status(labels: Labels, counts: &[u64; 5]) -> Vec<(Labels, f64)> {
    let used = STATUS_CLASSES.into_iter().zip(counts).filter(|(_, n)| **n > 0);
    used.map(|(class, n)| (with(labels.clone(), "status", class), *n as f64)).collect()
}

fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn since_1970(at: SystemTime) -> Option<f64> {
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

fn state(connector: &ConnectorSeen) -> &'static str {
    match connector {
        ConnectorSeen::Disconnected => status::DISCONNECTED,
        ConnectorSeen::Unusable => "unusable",
        ConnectorSeen::Runs { status, .. } => status::word(&status.state),
    }
}

type Runs<'a> = (&'a guildnet_model::ConnectorStatus, Option<&'a ConnectorSnapshot>, u64);

fn runs(cluster: &ClusterSeen) -> Option<Runs<'_>> {
    match &cluster.connector {
        ConnectorSeen::Runs { status, snapshot, epochs } => Some((status, snapshot.as_deref(), *epochs)),
        ConnectorSeen::Disconnected | ConnectorSeen::Unusable => None,
    }
}

/// What the connector showed. A stopped one shows nothing worth telling.
fn shown(cluster: &ClusterSeen) -> Option<&ConnectorSnapshot> {
    let (status, snapshot, _) = runs(cluster)?;
    snapshot.filter(|_| status.state != ConnectorState::Stopped)
}

fn routers(snapshot: &ConnectorSnapshot) -> impl Iterator<Item = &PeerInfo> {
    snapshot.peers.iter().filter(|peer| peer.trusted)
}

/// The one that `guildnet status` names.
fn best_router(snapshot: &ConnectorSnapshot) -> Option<&PeerInfo> {
    status::best_router(snapshot)
}
