//! Counters on the way of connections and requests: an atomic addition each, no lock, no allocation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{Method, StatusCode};

/// Upper ends of the durations' buckets, in seconds: from what the Host App adds (a millisecond) to what a slow webhook of
/// an API server takes (30 s, its limit).
pub(crate) const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// What a request to a cluster's API server wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// It reads, and ends.
    Read,
    /// It may change something, and ends.
    Write,
    /// A watch, a followed log, or what a Pod behind `proxy` answers: it ends when one of both wants.
    Stream,
    /// A switch of protocols: exec, attach, port-forward.
    Tunnel,
}

impl Verb {
    pub(crate) const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Stream, Self::Tunnel];

    /// By its method, whether its answer lasts, and whether it asks for an upgrade.
    pub(crate) fn of(method: &Method, lasts: bool, upgrade: bool) -> Self {
        match (upgrade, lasts, method) {
            (true, _, _) => Self::Tunnel,
            (_, true, _) => Self::Stream,
            (_, _, &Method::GET | &Method::HEAD | &Method::OPTIONS) => Self::Read,
            _ => Self::Write,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Stream => "stream",
            Self::Tunnel => "tunnel",
        }
    }

    /// Whether how long it takes says something about the cluster.
    fn is_timed(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// Why a request was not passed on, or got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The cluster's places are taken.
    Limit,
    /// The connector is not ready.
    NotReady,
    /// No answer in time.
    Timeout,
    /// Trouble on the way to the API server, or a credential that it does not take.
    Upstream,
    /// The proxy's rules, or the read-only switch.
    Rules,
    /// Anything else.
    Other,
}

impl Refused {
    pub(crate) const ALL: [Self; 6] =
        [Self::Limit, Self::NotReady, Self::Timeout, Self::Upstream, Self::Rules, Self::Other];

    pub(crate) fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::Limit,
            StatusCode::SERVICE_UNAVAILABLE => Self::NotReady,
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Self::Timeout,
            StatusCode::BAD_GATEWAY => Self::Upstream,
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Self::Rules,
            _ => Self::Other,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::NotReady => "not_ready",
            Self::Timeout => "timeout",
            Self::Upstream => "upstream",
            Self::Rules => "rules",
            Self::Other => "other",
        }
    }
}

/// The part of the door that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    /// The API.
    Api,
    /// A cluster's API server.
    Kube,
    /// Anything else: health, metrics, what is not there.
    Other,
}

impl Surface {
    pub(crate) const ALL: [Self; 3] = [Self::Api, Self::Kube, Self::Other];

    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/api/") {
            Self::Api
        } else if crate::proxy::is_below(path) {
            Self::Kube
        } else {
            Self::Other
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Kube => "kube",
            Self::Other => "other",
        }
    }
}

/// Counts by status class, `1xx` to `5xx`.
#[derive(Debug, Default)]
struct ByStatus([AtomicU64; 5]);

impl ByStatus {
    fn add(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.0[class - 1].fetch_add(1, Relaxed);
    }

    fn seen(&self) -> [u64; 5] {
        self.0.each_ref().map(|n| n.load(Relaxed))
    }
}

/// How long something took, by [`BUCKETS`] and one more for the rest.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

/// [`Durations`] at one moment: in each bucket, and all together in seconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DurationsSeen {
    pub(crate) buckets: [u64; BUCKETS.len() + 1],
    pub(crate) sum: f64,
}

impl Durations {
    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BUCKETS.iter().position(|end| seconds <= *end).unwrap_or(BUCKETS.len());
        self.buckets[at].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn seen(&self) -> DurationsSeen {
        let sum = Duration::from_micros(self.micros.load(Relaxed)).as_secs_f64();
        DurationsSeen { buckets: self.buckets.each_ref().map(|n| n.load(Relaxed)), sum }
    }
}

/// By what a connection that is no request of the door comes into a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Socks,
    Connect,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::Socks, Self::Connect];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Socks => "socks5",
            Self::Connect => "connect",
        }
    }
}

/// What is counted of one way into one cluster, and of one forward.
#[derive(Debug, Default)]
pub(crate) struct WayCounts {
    entered: AtomicU64,
    left: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// [`WayCounts`] at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WaySeen {
    pub(crate) entered: u64,
    pub(crate) open: u64,
    pub(crate) failed: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl WayCounts {
    /// A connection was let in.
    pub(crate) fn entered(&self) {
        self.entered.fetch_add(1, Relaxed);
    }

    /// One that was let in has ended.
    pub(crate) fn left(&self) {
        self.left.fetch_add(1, Relaxed);
    }

    /// A connection came to nothing, or the port could not be had.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// So many bytes went into the cluster.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    /// So many bytes came from there.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn seen(&self) -> WaySeen {
        // In this order: what ends in between has not left before it entered.
        let left = self.left.load(Relaxed);
        let entered = self.entered.load(Relaxed);
        WaySeen {
            entered,
            open: entered.saturating_sub(left),
            failed: self.failed.load(Relaxed),
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
        }
    }
}

/// What is counted of one cluster: of requests to its API server, and of connections into it.
#[derive(Debug, Default)]
pub(crate) struct ClusterCounts {
    requests: [ByStatus; Verb::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
    durations: [Durations; 2],
    ways: [WayCounts; Way::ALL.len()],
}

/// [`ClusterCounts`] at one moment, in the order of [`Verb::ALL`], [`Refused::ALL`] and [`Way::ALL`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClusterCountsSeen {
    pub(crate) requests: [[u64; 5]; Verb::ALL.len()],
    pub(crate) refused: [u64; Refused::ALL.len()],
    /// Of [`Verb::Read`] and [`Verb::Write`].
    pub(crate) durations: [DurationsSeen; 2],
    pub(crate) ways: [WaySeen; Way::ALL.len()],
}

impl ClusterCounts {
    /// The counts of a way.
    pub(crate) const fn way(&self, way: Way) -> &WayCounts {
        &self.ways[way as usize]
    }

    /// A request has its answer's head, from the cluster or from here.
    pub(crate) fn answered(&self, verb: Verb, status: StatusCode) {
        self.requests[verb as usize].add(status);
    }

    /// A request was refused here, or failed on its way.
    pub(crate) fn refused(&self, status: StatusCode) {
        self.refused[Refused::of(status) as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn seen(&self) -> ClusterCountsSeen {
        ClusterCountsSeen {
            requests: self.requests.each_ref().map(ByStatus::seen),
            refused: self.refused.each_ref().map(|n| n.load(Relaxed)),
            durations: self.durations.each_ref().map(Durations::seen),
            ways: self.ways.each_ref().map(WayCounts::seen),
        }
    }
}

/// When a request that ends by itself has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    counts: Arc<ClusterCounts>,
    verb: Verb,
    at: Instant,
}

/// A request that is being answered: what it took is counted when this is dropped, at the end of its answer's body.
#[derive(Debug)]
pub(crate) struct Timed(Begun);

impl Begun {
    /// For one that ends by itself; `None` for others.
    pub(crate) fn of(counts: &Arc<ClusterCounts>, verb: Verb, at: Instant) -> Option<Self> {
        verb.is_timed().then(|| Self { counts: Arc::clone(counts), verb, at })
    }

    /// The cluster has answered; without this nothing is counted.
    pub(crate) fn answered(self) -> Timed {
        Timed(self)
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let Begun { counts, verb, at } = &self.0;
        counts.durations[*verb as usize].add(at.elapsed());
    }
}

/// Why the gate lets nobody in, by the codes of its refusals; the last one is for codes that are not here.
pub(crate) const GATE_REFUSALS: [&str; 8] = [
    "unauthorized",
    "wrong_host",
    "foreign_origin",
    "foreign_page",
    "two_cookies",
    "wrong_scope",
    "too_many_connections",
    "other",
];

/// What is counted at the door.
#[derive(Debug, Default)]
pub(crate) struct DoorCounts {
    accepted: AtomicU64,
    closed: AtomicU64,
    no_tls: AtomicU64,
    refused: [AtomicU64; GATE_REFUSALS.len()],
    requests: [ByStatus; Surface::ALL.len()],
    /// Most connections at once.
    limit: AtomicU64,
    /// Seconds since 1970; 0: not known.
    certificate_ends: AtomicU64,
}

/// [`DoorCounts`] at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DoorSeen {
    pub(crate) accepted: u64,
    pub(crate) open: u64,
    pub(crate) limit: u64,
    pub(crate) no_tls: u64,
    /// In the order of [`GATE_REFUSALS`].
    pub(crate) refused: [u64; GATE_REFUSALS.len()],
    /// In the order of [`Surface::ALL`].
    pub(crate) requests: [[u64; 5]; Surface::ALL.len()],
    pub(crate) certificate_ends: Option<SystemTime>,
}

/// A connection of the door; dropping it is its end.
#[derive(Debug)]
pub(crate) struct Open(Arc<super::Metrics>);

impl Open {
    /// One was accepted.
    pub(crate) fn new(metrics: &Arc<super::Metrics>) -> Self {
        metrics.door.accepted.fetch_add(1, Relaxed);
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.door.closed.fetch_add(1, Relaxed);
    }
}

impl DoorCounts {
    /// How many connections there may be at once.
    pub(crate) fn limited_to(&self, connections: usize) {
        self.limit.store(connections as u64, Relaxed);
    }

    /// The certificate that is served from now on ends then.
    pub(crate) fn certificate_ends(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.certificate_ends.store(seconds, Relaxed);
    }

    /// A connection that never spoke TLS, or not in time.
    pub(crate) fn no_tls(&self) {
        self.no_tls.fetch_add(1, Relaxed);
    }

    /// The gate has refused a request.
    pub(crate) fn refused(&self, code: &str) {
        let at = GATE_REFUSALS.iter().position(|known| *known == code).unwrap_or(GATE_REFUSALS.len() - 1);
        self.refused[at].fetch_add(1, Relaxed);
    }

    /// A request has its answer's head.
    pub(crate) fn answered(&self, surface: Surface, status: StatusCode) {
        self.requests[surface as usize].add(status);
    }

    pub(crate) fn seen(&self) -> DoorSeen {
        // In this order: what ends in between is not counted as closed before it was accepted.
        let closed = self.closed.load(Relaxed);
        let accepted = self.accepted.load(Relaxed);
        let ends = self.certificate_ends.load(Relaxed);
        DoorSeen {
            accepted,
            open: accepted.saturating_sub(closed),
            limit: self.limit.load(Relaxed),
            no_tls: self.no_tls.load(Relaxed),
            refused: self.refused.each_ref().map(|n| n.load(Relaxed)),
            requests: self.requests.each_ref().map(ByStatus::seen),
            certificate_ends: (ends > 0).then(|| UNIX_EPOCH + Duration::from_secs(ends)),
        }
    }
}
