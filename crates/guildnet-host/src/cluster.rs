//! One cluster's actor: starts its connector, watches it, starts it again if it could not start at all, stops it.
//!
//! [`ClusterHandle`] is what everything else holds: status, dialer, snapshot, and a Kubernetes client that is built anew
//! whenever the connector became usable again, since its old connections died with the old session. Nothing here waits
//! for another cluster.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use guildnet_kube::{ApiServer, ApiServerSpec, ClusterAccess, KubeCause, KubeError};
use guildnet_model::{
    BoxFuture, Class, ClusterId, Connector, ConnectorError, ConnectorSnapshot, ConnectorSpec, ConnectorState,
    ConnectorStatus, DialError, Dialer, Explain as _, Io, Networks, StartConnector, Target,
};
use tokio::{sync::Mutex, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use crate::{
    HostError,
    drain::named,
    error::Explained as _,
    events::{Events, What},
    names::{Destination, Inside, Names, OpenError},
    status::word,
};

/// How long a connector may take to close its connections: a control and a relay connection, each one round trip. And how long those
/// to the API server may take, which nobody asks to end in good order.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// First and longest wait before a connector that could not start (a full disk, say) is started again.
const RESTART_WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How long one attempt to find the API server's address may take; all candidates are asked at once.
const FIND_LIMIT: Duration = Duration::from_secs(6);

/// The port of the `kubernetes` Service.
const API_PORT: u16 = 443;

/// What is wanted of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSpec {
    /// Its connector.
    pub(crate) connector: ConnectorSpec,
    /// Its API server's credential.
    pub(crate) access: ClusterAccess,
    /// Where its API server stands inside, if that was seen.
    pub(crate) api_address: Option<Target>,
    /// The identity seen when it was added (UID of `kube-system`).
    pub(crate) uid: Option<String>,
    /// Whether a person named its networks; otherwise they were discovered.
    pub(crate) routes_given: bool,
}

/// What was observed of a cluster, shared by its actor.
#[derive(Clone)]
struct Seen {
    status: ConnectorStatus,
    /// Counts how often the connector became usable: a client built in an earlier epoch has dead connections.
    epoch: u64,
    connector: Option<Arc<dyn Connector>>,
}

/// A cheap handle of one cluster's actor.
#[derive(Clone)]
pub(crate) struct ClusterHandle(Arc<Shared>);

struct Shared {
    spec: ClusterSpec,
    seen: watch::Receiver<Seen>,
    api: Mutex<Option<(u64, ApiServer)>>,
    names: Names,
    found_address: OnceLock<Target>,
    found_uid: OnceLock<String>,
}

/// A running actor. Dropping it stops it, without waiting.
pub(crate) struct ClusterActor {
    /// Its handle.
    pub(crate) handle: ClusterHandle,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl ClusterActor {
    /// Starts one; returns at once.
    pub(crate) fn spawn(spec: ClusterSpec, connectors: Arc<dyn StartConnector>) -> Self {
        Self::spawn_told(spec, connectors, Arc::default())
    }

    /// The same, telling its changes of state.
    pub(crate) fn spawn_told(spec: ClusterSpec, connectors: Arc<dyn StartConnector>, events: Arc<Events>) -> Self {
        Self::spawn_with(spec, connectors, events, RESTART_WAIT)
    }

    fn spawn_with(
        spec: ClusterSpec,
        connectors: Arc<dyn StartConnector>,
        events: Arc<Events>,
        wait: (Duration, Duration),
    ) -> Self {
        let stop = CancellationToken::new();
        let (seen_tx, seen) = watch::channel(Seen {
            status: ConnectorStatus::now_in(ConnectorState::Starting),
            epoch: 0,
            connector: None,
        });
        let task = tokio::spawn(run(
            spec.connector.clone(),
            connectors,
            wait,
            Telling { seen: seen_tx, events },
            stop.clone(),
        ));
        let shared = Shared {
            spec,
            seen,
            api: Mutex::new(None),
            names: Names::default(),
            found_address: OnceLock::new(),
            found_uid: OnceLock::new(),
        };
        Self { handle: ClusterHandle(Arc::new(shared)), stop: stop.drop_guard(), task }
    }

    /// Stops the connector and waits until the actor has ended. What does not end in time is told and left behind: no cluster
    /// may keep the others from being served, or the Host App from ending.
    pub(crate) async fn stop(self) {
        let Self { handle, stop, task } = self;
        drop(stop);
        let ended = async {
            let kept = handle.0.api.lock().await.take();
            if let Some((_, api)) = kept
                && timeout(STOP_GRACE, api.close()).await.is_err()
            {
                tracing::warn!(grace = ?STOP_GRACE, "connections to the API server did not end in time");
            }
            if let Err(panicked) = named("the connector", task).await {
                tracing::error!(%panicked, "the cluster's actor ended badly");
            }
        };
        ended.instrument(tracing::error_span!("stop", cluster = %handle.id())).await;
    }
}

/// What the actor tells: its handle, and whoever watches the Host App.
struct Telling {
    seen: watch::Sender<Seen>,
    events: Arc<Events>,
}

impl Telling {
    /// A status was observed.
    fn observed(&self, cluster: &ClusterId, status: ConnectorStatus) {
        let changed = std::mem::discriminant(&self.seen.borrow().status.state) != std::mem::discriminant(&status.state);
        if changed {
            tracing::info!(%cluster, state = %status.state, "connector");
        }
        let told = changed.then(|| What::Cluster {
            cluster: cluster.clone(),
            state: word(&status.state),
            detail: status.state.to_string(),
        });
        self.seen.send_modify(|s| {
            s.epoch += u64::from(status.is_usable() && !s.status.is_usable());
            s.status = status;
        });
        // After the handle: who hears of it and asks sees it.
        told.into_iter().for_each(|what| self.events.tell(what));
    }
}

/// The actor: one connector at a time, until it is stopped.
async fn run(
    spec: ConnectorSpec,
    connectors: Arc<dyn StartConnector>,
    (first_wait, longest_wait): (Duration, Duration),
    telling: Telling,
    stop: CancellationToken,
) {
    let mut wait = first_wait;
    while !stop.is_cancelled() {
        match connectors.start(spec.clone()) {
            Ok(connector) => {
                follow(&spec.cluster, connector, &telling, &stop).await;
                wait = first_wait;
            }
            Err(why) => {
                tracing::warn!(cluster = %spec.cluster, %why, "the connector could not start");
                telling.observed(&spec.cluster, ConnectorStatus::now_in(failed(&why, wait)));
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            break;
        }
        wait = (wait * 2).min(longest_wait);
    }
    telling.observed(&spec.cluster, ConnectorStatus::now_in(ConnectorState::Stopped));
    telling.seen.send_modify(|s| s.connector = None);
}

/// Follows one connector's status until it is stopped.
async fn follow(cluster: &ClusterId, connector: Arc<dyn Connector>, telling: &Telling, stop: &CancellationToken) {
    let mut changes = connector.status();
    telling.seen.send_modify(|s| s.connector = Some(Arc::clone(&connector)));
    loop {
        let status = changes.borrow_and_update().clone();
        let ended = status.state == ConnectorState::Stopped;
        telling.observed(cluster, status);
        let alive = !ended && matches!(stop.run_until_cancelled(changes.changed()).await, Some(Ok(())));
        if !alive {
            break;
        }
    }
    connector.stop(STOP_GRACE).await;
    telling.seen.send_modify(|s| s.connector = None);
}

fn failed(why: &ConnectorError, retry_in: Duration) -> ConnectorState {
    ConnectorState::Failed { why: why.to_string(), retry_in: Some(retry_in) }
}

impl ClusterHandle {
    /// The cluster.
    pub(crate) fn id(&self) -> &ClusterId {
        &self.0.spec.connector.cluster
    }

    /// What is wanted of it.
    pub(crate) fn spec(&self) -> &ClusterSpec {
        &self.0.spec
    }

    /// The cluster's networks.
    pub(crate) fn networks(&self) -> &Networks {
        &self.0.spec.connector.routes
    }

    /// The connector's status now.
    pub(crate) fn status(&self) -> ConnectorStatus {
        self.0.seen.borrow().status.clone()
    }

    /// How often the connector became usable.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.seen.borrow().epoch
    }

    /// Waits until the connector is usable, needs a person, or `limit` is over; returns the status then.
    pub(crate) async fn settled(&self, limit: Duration) -> ConnectorStatus {
        let settled = |s: &Seen| s.status.is_usable() || matches!(s.status.state, ConnectorState::NeedsKey { .. });
        let mut seen = self.0.seen.clone();
        // Late or ended: the status tells it.
        drop(timeout(limit, seen.wait_for(settled)).await);
        self.status()
    }

    /// Waits until the server has admitted the node (with or without a router to talk to), refused it, or `limit` is over.
    pub(crate) async fn registered(&self, limit: Duration) -> ConnectorStatus {
        let known = |s: &Seen| s.status.node.is_some() || matches!(s.status.state, ConnectorState::NeedsKey { .. });
        let mut seen = self.0.seen.clone();
        // Late or ended: the status tells it.
        drop(timeout(limit, seen.wait_for(known)).await);
        self.status()
    }

    /// The connector, while one runs.
    pub(crate) fn connector(&self) -> Option<Arc<dyn Connector>> {
        self.0.seen.borrow().connector.clone()
    }

    /// State, peers and paths; `None` while no connector runs.
    pub(crate) async fn snapshot(&self) -> Option<ConnectorSnapshot> {
        match self.connector() {
            Some(connector) => Some(connector.snapshot().await),
            None => None,
        }
    }

    /// The cluster's dialer.
    ///
    /// # Errors
    /// No connector runs: its state says why.
    pub(crate) fn dialer(&self) -> Result<Arc<dyn Dialer>, HostError> {
        let not_ready = || HostError::explained(&self.status().as_dial_error()).of_cluster(self.id());
        self.connector().map(|c| c.dialer()).ok_or_else(not_ready)
    }

    /// A Kubernetes client through the connector, waiting at most `wait` for the connector. The client is kept until the
    /// connector was not usable in between.
    ///
    /// # Errors
    /// The connector did not become usable, or the API server's address can't be found.
    pub(crate) async fn api(&self, wait: Duration) -> Result<ApiServer, HostError> {
        let status = self.settled(wait).await;
        if !status.is_usable() {
            return Err(HostError::explained(&status.as_dial_error()).of_cluster(self.id()));
        }
        let address = self.api_address().await.map_err(|e| HostError::explained(&e).of_cluster(self.id()))?;
        let dialer = self.dialer()?;
        let epoch = self.epoch();
        let mut kept = self.0.api.lock().await;
        if let Some((of, api)) = kept.as_ref()
            && *of == epoch
        {
            return Ok(api.clone());
        }
        let api = self.client(address, dialer);
        *kept = Some((epoch, api.clone()));
        Ok(api)
    }

    /// The same for a request that a person waits for: it waits only for a connector that is just starting.
    ///
    /// # Errors
    /// As [`Self::api`].
    pub(crate) async fn api_soon(&self) -> Result<ApiServer, HostError> {
        let starting = matches!(self.status().state, ConnectorState::Starting | ConnectorState::Syncing);
        self.api(if starting { DIAL_PATIENCE } else { Duration::ZERO }).await
    }

    /// Opens a stream to an address or a name in the cluster. Waits for a connector that is just starting.
    ///
    /// # Errors
    /// [`OpenError`].
    /// # Cancellation
    /// Dropping the future abandons what is under way.
    pub(crate) async fn open(&self, to: &Destination) -> Result<Box<dyn Io>, OpenError> {
        self.0.names.open(self, to).await
    }

    fn client(&self, address: Target, dialer: Arc<dyn Dialer>) -> ApiServer {
        let access = self.0.spec.access.clone();
        ApiServer::new(&ApiServerSpec { access, address: Some(address) }, dialer)
    }

    /// The cluster's identity (UID of `kube-system`), as recorded or as first seen since.
    pub(crate) fn uid(&self) -> Option<&str> {
        self.0.spec.uid.as_deref().or_else(|| self.0.found_uid.get().map(String::as_str))
    }

    /// Takes the identity that was seen as the cluster's, unless one is known.
    pub(crate) fn take_uid(&self, uid: &str) {
        self.0.found_uid.get_or_init(|| uid.to_owned());
    }

    /// The API server's address inside the cluster, if it is known.
    pub(crate) fn known_api_address(&self) -> Option<Target> {
        self.0.spec.api_address.or_else(|| self.0.found_address.get().copied())
    }

    /// The API server's address inside the cluster: as recorded, else found by asking the first address of each network
    /// (where the `kubernetes` Service usually stands) and the kubeconfig's own, if it lies inside.
    ///
    /// # Errors
    /// What the likeliest candidate answered.
    pub(crate) async fn api_address(&self) -> Result<Target, KubeError> {
        if let Some(known) = self.known_api_address() {
            return Ok(known);
        }
        let unreachable = |cause| KubeError { server: self.0.spec.access.server().to_string(), cause };
        let Some(connector) = self.connector() else {
            return Err(unreachable(KubeCause::Dial(self.status().as_dial_error())));
        };
        let begun = Instant::now();
        let candidates = candidates(self.networks(), self.0.spec.access.server());
        let asked = candidates.into_iter().map(|address| {
            let api = self.client(address, connector.dialer());
            async move {
                let answer = timeout(FIND_LIMIT, api.readyz()).await.ok()?;
                Some((address, answer.err()))
            }
        });
        let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        match answers.into_iter().min_by_key(|(_, error)| likelihood(error.as_ref())) {
            Some((address, error)) if likelihood(error.as_ref()) < UNLIKELY => {
                Ok(*self.0.found_address.get_or_init(|| address))
            }
            Some((_, Some(error))) => Err(error),
            _ => Err(unreachable(KubeCause::Timeout { after: begun.elapsed() })),
        }
    }
}

/// How long a dial waits for a connector that is just starting: registration and network map take about two seconds.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);

/// Dials through whatever connector the cluster has at that moment.
#[derive(Clone)]
pub(crate) struct ClusterDialer(pub(crate) ClusterHandle);

impl std::fmt::Debug for ClusterDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClusterDialer").field(self.0.id()).finish()
    }
}

impl Dialer for ClusterDialer {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move {
            let mut status = self.0.status();
            if matches!(status.state, ConnectorState::Starting | ConnectorState::Syncing) {
                status = self.0.settled(DIAL_PATIENCE).await;
            }
            match self.0.connector() {
                // The connector itself says what is wrong with the target, whatever its state.
                Some(connector) => connector.dialer().dial(to).await,
                None => Err(status.as_dial_error()),
            }
        })
    }
}

impl Inside for ClusterHandle {
    fn id(&self) -> &ClusterId {
        self.id()
    }

    fn networks(&self) -> &Networks {
        self.networks()
    }

    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        Box::pin(async move { ClusterDialer(self.clone()).dial(to).await })
    }

    fn dns_address(&self) -> BoxFuture<'_, Result<Option<Target>, HostError>> {
        Box::pin(async move { self.api_soon().await?.dns_address().await.explained_of(self.id()) })
    }

    fn cluster_ip<'a>(&'a self, namespace: &'a str, service: &'a str) -> BoxFuture<'a, Result<IpAddr, HostError>> {
        Box::pin(async move {
            let api = self.api_soon().await?;
            api.service_cluster_ip(namespace, service).await.explained_of(self.id())
        })
    }
}

/// For a cluster that a person has disconnected: says so.
pub(crate) fn disconnected(id: &ClusterId) -> DialError {
    DialError::NotReady { state: format!("disconnected on request (guildnet cluster connect {id})") }
}

/// Answers from here on say that no API server stands at an address.
const UNLIKELY: u8 = 2;

/// How likely the cluster's API server stands at an address, 0 the likeliest, by what asking there brought.
fn likelihood(error: Option<&KubeError>) -> u8 {
    match error.map(|e| (&e.cause, e.class())) {
        None => 0,
        Some((KubeCause::WrongAuthority | KubeCause::WrongName { .. } | KubeCause::CertificateTime { .. }, _)) => 1,
        Some((_, Class::Credentials)) => 0,
        Some((KubeCause::Dial(_), _)) => 3,
        Some(_) => UNLIKELY,
    }
}

/// Where an API server may stand that nobody has seen yet.
fn candidates(networks: &Networks, server: &url::Url) -> Vec<Target> {
    let own = match server.host() {
        Some(url::Host::Ipv4(ip)) if networks.contains(ip) => {
            Some(Target::from(SocketAddr::new(IpAddr::V4(ip), server.port_or_known_default().unwrap_or(API_PORT))))
        }
        _ => None,
    };
    let first =
        |net: &ipnet::Ipv4Net| net.hosts().next().map(|ip| Target::from(SocketAddr::new(IpAddr::V4(ip), API_PORT)));
    own.into_iter().chain(networks.as_slice().iter().filter_map(first)).collect()
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
