//! What the Host App and its clusters are doing at this moment, and streams into clusters for the command.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use guildnet_model::{ClusterId, ConnectorSnapshot, ConnectorState, Io, Networks, PathKind, PeerInfo, Secret, Trouble};
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Destination, HostError, Progress, Settings,
    client::HostClient,
    cluster::{ClusterActor, ClusterHandle},
    door,
    error::Explained as _,
    fleet,
    fleet::Fleet,
    host::Deps,
};

/// The state of a cluster that a person has disconnected.
pub(crate) const DISCONNECTED: &str = "disconnected";

/// One cluster in [`StatusReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ClusterId,
    /// The connector's state, one word: `ready`, `starting`, `needs_key`, ...; `not_running` if no Host App runs,
    /// `disconnected` if a person wants it so.
    pub state: String,
    /// The state in words, with the cause.
    pub detail: String,
    /// Seconds in this state.
    pub since_secs: u64,
    /// Whether dials may be tried.
    pub usable: bool,
    /// This node's name in the tailnet, once the server has named it.
    pub node: Option<String>,
    /// Its addresses there.
    pub addresses: Vec<String>,
    /// The node key, as `nodekey:<hex>`: public.
    pub node_key: Option<String>,
    /// When the node key ends, if it does.
    #[serde(default)]
    pub key_expires: Option<Timestamp>,
    /// The path to its router: `direct`, `relay`, `idle`.
    pub path: Option<String>,
    /// The router in use.
    pub router: Option<String>,
    /// The cluster's networks.
    pub routes: Vec<String>,
    /// Open TCP flows.
    pub flows: usize,
    /// Whether only what changes nothing is passed on to its API server.
    #[serde(default)]
    pub read_only: bool,
}

/// A cluster's connector: its node, and its peers with the paths to them.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectorShown {
    /// The cluster.
    #[schema(value_type = String)]
    pub(crate) cluster: ClusterId,
    /// The state, one word.
    pub(crate) state: &'static str,
    /// The state in words, with the cause.
    pub(crate) detail: String,
    /// When this state began.
    pub(crate) since: Option<Timestamp>,
    /// Its name in the tailnet, once the server has named it.
    pub(crate) node: Option<String>,
    /// Tags that the server gave it.
    pub(crate) tags: Vec<String>,
    /// Its addresses in the tailnet.
    pub(crate) addresses: Vec<String>,
    /// When the node key ends, if it does, by the server's clock.
    pub(crate) key_expires: Option<Timestamp>,
    /// The relay region that it is connected to, if any.
    pub(crate) home_relay: Option<u16>,
    /// Open TCP flows.
    pub(crate) flows: usize,
    /// Packets dropped because a bound was reached or they were not allowed.
    pub(crate) dropped_packets: u64,
    /// What was wrong with it last and is over.
    pub(crate) last_trouble: Option<TroubleShown>,
    /// All peers of the network map, trusted or not.
    pub(crate) peers: Vec<PeerShown>,
}

/// Something that was wrong with a connector for a time.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TroubleShown {
    /// What, in words.
    pub(crate) what: String,
    /// When it began.
    pub(crate) since: Option<Timestamp>,
    /// When it was over, or something else became wrong.
    pub(crate) until: Option<Timestamp>,
}

impl From<Trouble> for TroubleShown {
    fn from(trouble: Trouble) -> Self {
        let Trouble { what, since, until } = trouble;
        Self { what, since: Timestamp::try_from(since).ok(), until: Timestamp::try_from(until).ok() }
    }
}

/// A peer of a connector.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerShown {
    /// Its name in the tailnet.
    pub(crate) name: String,
    /// Its addresses there.
    pub(crate) addresses: Vec<String>,
    /// Tags that the server gave it.
    pub(crate) tags: Vec<String>,
    /// Networks that the network map says it serves.
    pub(crate) routes: Vec<String>,
    /// Those of them that are never used: default routes, other networks than the cluster's, and all of a peer that is not trusted.
    pub(crate) ignored: Vec<String>,
    /// Whether the server sees it connected, if it says so.
    pub(crate) online: Option<bool>,
    /// Whether it is tagged as this cluster's router: nothing else is talked to.
    pub(crate) trusted: bool,
    /// How packets travel to it: `direct`, `relay`, `idle`.
    pub(crate) path: String,
    /// Seconds of the last answered ping on the direct path.
    pub(crate) rtt_secs: Option<f64>,
    /// When the last WireGuard handshake was completed.
    pub(crate) last_handshake: Option<Timestamp>,
    /// Payload bytes received from it.
    pub(crate) rx_bytes: u64,
    /// Payload bytes sent to it.
    pub(crate) tx_bytes: u64,
}

/// The Host App and its clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// Whether the Host App runs.
    pub running: bool,
    /// Its process id.
    pub pid: Option<u32>,
    /// Its address.
    pub url: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The clusters, by id.
    pub clusters: Vec<ClusterStatus>,
}

/// See [`crate::status`].
pub(crate) async fn status(settings: &Settings) -> Result<StatusReport, HostError> {
    if let Some(host) = HostClient::discover(&settings.home)? {
        let said = host.status().await?;
        return Ok(StatusReport { running: true, pid: Some(host.pid()), url: Some(host.url()), ..said });
    }
    let clusters = match fleet::open_existing(settings).await? {
        Some(store) => {
            let records = store.list().await.explained();
            store.close().await;
            let of = |r: &ClusterRecord| match r.disconnected {
                true => ClusterStatus { read_only: r.read_only, ..disconnected(&r.id, &r.routes) },
                false => {
                    let at_rest = at_rest(&r.id, "not_running", "the Host App is not running", &r.routes);
                    ClusterStatus { read_only: r.read_only, ..at_rest }
                }
            };
            records?.iter().map(of).collect()
        }
        None => vec![],
    };
    Ok(StatusReport { running: false, pid: None, url: None, version: None, clusters })
}

/// The status of a cluster that a person has disconnected.
fn disconnected(id: &ClusterId, routes: &Networks) -> ClusterStatus {
    at_rest(id, DISCONNECTED, &format!("on request; to connect it: guildnet cluster connect {id}"), routes)
}

fn at_rest(id: &ClusterId, state: &str, detail: &str, routes: &Networks) -> ClusterStatus {
    ClusterStatus {
        id: id.clone(),
        state: state.into(),
        detail: detail.into(),
        since_secs: 0,
        usable: false,
        node: None,
        addresses: vec![],
        node_key: None,
        key_expires: None,
        path: None,
        router: None,
        routes: routes.clone().into(),
        flows: 0,
        read_only: false,
    }
}

/// The report of the process that runs the fleet; the address is the caller's to add.
pub(crate) async fn of_running(fleet: &Fleet) -> StatusReport {
    StatusReport {
        running: true,
        pid: Some(std::process::id()),
        url: None,
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        clusters: of_clusters(fleet).await,
    }
}

/// All clusters at once, by id.
pub(crate) async fn of_clusters(fleet: &Fleet) -> Vec<ClusterStatus> {
    let mut all = join_all(fleet.handles().iter().map(of_cluster)).await;
    all.extend(fleet.disconnected().iter().map(|(id, routes)| disconnected(id, routes)));
    all.sort_by(|x, y| x.id.cmp(&y.id));
    all.iter_mut().for_each(|c| c.read_only = fleet.is_read_only(&c.id));
    all
}

/// One cluster; `None` if there is none of that id.
pub(crate) async fn of_id(fleet: &Fleet, id: &ClusterId) -> Option<ClusterStatus> {
    let found = match fleet.handle(id) {
        Ok(handle) => Some(of_cluster(&handle).await),
        Err(_) => fleet.disconnected().iter().find(|(of, _)| of == id).map(|(id, routes)| disconnected(id, routes)),
    };
    found.map(|status| ClusterStatus { read_only: fleet.is_read_only(id), ..status })
}

/// All connectors that run, by cluster.
pub(crate) async fn of_connectors(fleet: &Fleet) -> Vec<ConnectorShown> {
    let handles = fleet.handles();
    let shown = handles.iter().map(of_connector);
    join_all(shown).await.into_iter().flatten().collect()
}

/// A cluster's connector; `None` if it does not run.
pub(crate) async fn of_connector(handle: &ClusterHandle) -> Option<ConnectorShown> {
    handle.snapshot().await.map(|snapshot| ConnectorShown::of(handle.id(), snapshot))
}

impl ConnectorShown {
    fn of(cluster: &ClusterId, snapshot: ConnectorSnapshot) -> Self {
        let texts = |all: &[std::net::IpAddr]| all.iter().map(ToString::to_string).collect();
        let peer = |p: PeerInfo| PeerShown {
            addresses: texts(&p.addresses),
            name: p.name,
            tags: p.tags,
            routes: p.routes.iter().map(ToString::to_string).collect(),
            ignored: p.ignored.iter().map(ToString::to_string).collect(),
            online: p.online,
            trusted: p.trusted,
            path: p.path.to_string(),
            rtt_secs: p.rtt.map(|rtt| rtt.as_secs_f64()),
            last_handshake: p.last_handshake.and_then(|at| Timestamp::try_from(at).ok()),
            rx_bytes: p.rx_bytes,
            tx_bytes: p.tx_bytes,
        };
        let status = snapshot.status;
        let node = status.node.as_ref();
        Self {
            cluster: cluster.clone(),
            state: word(&status.state),
            detail: status.state.to_string(),
            since: Timestamp::try_from(status.since).ok(),
            node: node.map(|n| n.name.clone()),
            tags: node.map(|n| n.tags.clone()).unwrap_or_default(),
            addresses: node.map(|n| texts(&n.addresses)).unwrap_or_default(),
            key_expires: node.and_then(|n| Timestamp::try_from(n.key_expiry?).ok()),
            home_relay: snapshot.home_relay,
            flows: snapshot.flows,
            dropped_packets: snapshot.dropped.total(),
            last_trouble: status.last_trouble.map(TroubleShown::from),
            peers: snapshot.peers.into_iter().map(peer).collect(),
        }
    }
}

/// One cluster, from what its connector shows; the read-only switch is the caller's to add.
async fn of_cluster(handle: &ClusterHandle) -> ClusterStatus {
    let snapshot = handle.snapshot().await;
    let routes = handle.networks().clone().into();
    let status = snapshot.as_ref().map_or_else(|| handle.status(), |s| s.status.clone());
    let since = SystemTime::now().duration_since(status.since).unwrap_or(Duration::ZERO);
    let (path, router) = snapshot.as_ref().map(way).unwrap_or_default();
    let usable = status.is_usable();
    ClusterStatus {
        id: handle.id().clone(),
        state: word(&status.state).to_owned(),
        detail: status.state.to_string(),
        since_secs: since.as_secs(),
        usable,
        addresses: status.node.iter().flat_map(|n| &n.addresses).map(ToString::to_string).collect(),
        node_key: status.node.as_ref().map(|n| n.node_key.clone()),
        key_expires: status.node.as_ref().and_then(|n| Timestamp::try_from(n.key_expiry?).ok()),
        node: status.node.map(|n| n.name),
        path: path.map(|p| p.to_string()),
        router,
        routes,
        flows: snapshot.map_or(0, |s| s.flows),
        read_only: false,
    }
}

/// The best path to a router of the cluster, and that router's name.
fn way(snapshot: &ConnectorSnapshot) -> (Option<PathKind>, Option<String>) {
    let best = best_router(snapshot);
    (best.map(|p| p.path), best.map(|p| p.name.clone()))
}

/// The router of the cluster with the best path, of those that are there.
pub(crate) fn best_router(snapshot: &ConnectorSnapshot) -> Option<&PeerInfo> {
    let rank = |path| match path {
        PathKind::Direct => 0,
        PathKind::Relay => 1,
        PathKind::Idle => 2,
    };
    let routers = snapshot.peers.iter().filter(|p| p.trusted && p.online != Some(false));
    routers.min_by_key(|p| rank(p.path))
}

/// A connector's state as one word.
pub(crate) fn word(state: &ConnectorState) -> &'static str {
    match state {
        ConnectorState::Starting => "starting",
        ConnectorState::NeedsKey { .. } => "needs_key",
        ConnectorState::Syncing => "syncing",
        ConnectorState::Ready => "ready",
        ConnectorState::Degraded { .. } => "degraded",
        ConnectorState::Failed { .. } => "failed",
        ConnectorState::Stopped => "stopped",
    }
}

/// An open stream into a cluster. Call [`DialSession::finish`] when done.
pub struct DialSession {
    /// The stream. Binary-safe; shutting it down ends the sending half only.
    pub io: Box<dyn Io>,
    own: Option<ClusterActor>,
}

impl std::fmt::Debug for DialSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DialSession").field("own_connector", &self.own.is_some()).finish_non_exhaustive()
    }
}

impl DialSession {
    /// Closes the stream, and stops what was started for it alone.
    pub async fn finish(self) {
        drop(self.io);
        if let Some(actor) = self.own {
            actor.stop().await;
        }
    }
}

/// See [`crate::dial`].
pub(crate) async fn dial(
    settings: &Settings,
    cluster: &ClusterId,
    to: &Destination,
    progress: &dyn Progress,
) -> Result<DialSession, HostError> {
    if let Some(host) = HostClient::discover(&settings.home)? {
        // One that the Host App does not know is answered before anything is dialled.
        host.cluster(cluster).await?;
        let io = host.open(cluster, to).await?;
        return Ok(DialSession { io, own: None });
    }
    let record = match fleet::open_existing(settings).await? {
        Some(store) => {
            let found = store.get(cluster).await.explained();
            let known = store.ids().await.explained();
            store.close().await;
            found?.ok_or(HostError::unknown_cluster(cluster, &known?))?
        }
        None => return Err(HostError::unknown_cluster(cluster, &[])),
    };
    if record.disconnected {
        return Err(fleet::disconnected(cluster));
    }
    let spec = fleet::spec(&record)?;
    progress.step(Some(cluster), "no Host App runs: starting a connector for this dial");
    let actor = ClusterActor::spawn(spec, Deps::real()?.connectors);
    match actor.handle.open(to).await {
        Ok(io) => Ok(DialSession { io, own: Some(actor) }),
        Err(why) => {
            actor.stop().await;
            Err(why.of_cluster(cluster))
        }
    }
}

/// The token of the Host App's API: the credential for everything it serves.
///
/// # Errors
/// It can't be read, or not be made where there is none yet.
pub fn token(settings: &Settings) -> Result<Secret<String>, HostError> {
    door::token(&settings.home)
}

/// The token of a Prometheus server: it opens `/metrics` and nothing else, and is the same until [`token`] is another one.
///
/// # Errors
/// As [`token`].
pub fn metrics_token(settings: &Settings) -> Result<Secret<String>, HostError> {
    token(settings).map(|long| door::metrics_token::of(&long))
}
