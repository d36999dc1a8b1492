//! What the checks look at: the clusters' handles, the Headscale server, and answers that several checks share.
//!
//! Every answer is fetched once per run of verify, by whichever check comes first, and judged elsewhere.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_headscale::Node;
use guildnet_kube::{ApiServer, ApiServerSpec, DirectDialer, KubeError, Readyz};
use guildnet_model::{ConnectorSnapshot, DialError, Explain as _, Secret, Target};
use tokio::{sync::OnceCell, time::timeout};

use crate::{HostError, cluster::ClusterHandle, server::Server};

/// How long a connector that is just starting may take to become usable before checks call it not ready: registration,
/// network map and relay take about two seconds, a router that was restarted some five more.
pub(super) const SETTLE: Duration = Duration::from_secs(12);

/// How long one dial or one request of a check may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(6);

/// What all checks of one run share.
pub(super) struct Shared {
    /// The Headscale server, if one is known.
    pub(super) server: Option<Server>,
    /// All clusters, verified or not: isolation is against all of them.
    pub(super) clusters: Vec<ClusterHandle>,
    users: OnceCell<Result<Vec<String>, HostError>>,
    nodes: OnceCell<Result<Vec<Node>, HostError>>,
}

impl Shared {
    pub(super) fn new(server: Option<Server>, clusters: Vec<ClusterHandle>) -> Self {
        Self { server, clusters, users: OnceCell::new(), nodes: OnceCell::new() }
    }
}

/// What the checks of one scope look at.
pub(super) struct CheckContext {
    /// What all scopes share.
    pub(super) shared: Arc<Shared>,
    cluster: Option<ClusterHandle>,
    router_key: Option<Secret<String>>,
    address: OnceCell<Result<Target, KubeError>>,
    dialled: OnceCell<Result<Duration, DialError>>,
    readyz: OnceCell<Result<Readyz, KubeError>>,
}

impl CheckContext {
    pub(super) fn new(shared: Arc<Shared>, cluster: Option<ClusterHandle>) -> Self {
        Self {
            shared,
            cluster,
            router_key: None,
            address: OnceCell::new(),
            dialled: OnceCell::new(),
            readyz: OnceCell::new(),
        }
    }

    /// With the key that is kept for the cluster's routers.
    pub(super) fn with_router_key(self, router_key: Option<Secret<String>>) -> Self {
        Self { router_key, ..self }
    }

    /// The key that is kept for the cluster's routers.
    pub(super) fn router_key(&self) -> Option<&Secret<String>> {
        self.router_key.as_ref()
    }

    /// The cluster that is asked about.
    ///
    /// # Panics
    /// In a check of the server's scope, which has none.
    pub(super) fn cluster(&self) -> &ClusterHandle {
        self.cluster.as_ref().expect("a check of a cluster's scope is run with its cluster")
    }

    /// The server, where an API key for it is known.
    pub(super) fn server_with_key(&self) -> Option<&Server> {
        self.shared.server.as_ref().filter(|s| s.has_key())
    }

    /// Names of the server's namespaces.
    pub(super) async fn users(&self, server: &Server) -> &Result<Vec<String>, HostError> {
        self.shared.users.get_or_init(|| server.users()).await
    }

    /// All nodes that the server lists.
    pub(super) async fn nodes(&self, server: &Server) -> &Result<Vec<Node>, HostError> {
        self.shared.nodes.get_or_init(|| server.nodes()).await
    }

    /// The API server's address inside the cluster.
    pub(super) async fn api_address(&self, cluster: &ClusterHandle) -> &Result<Target, KubeError> {
        self.address.get_or_init(|| cluster.api_address()).await
    }

    /// How a dial of the API server through the connector ended.
    pub(super) async fn dialled(&self, cluster: &ClusterHandle, api: Target) -> &Result<Duration, DialError> {
        self.dialled.get_or_init(|| dial(cluster, api)).await
    }

    /// What the API server said through the connector, to one request that all Kubernetes checks share.
    pub(super) async fn readyz(&self, cluster: &ClusterHandle) -> Result<&Result<Readyz, KubeError>, HostError> {
        let api = cluster.api(ANSWER_LIMIT).await?;
        Ok(self.readyz.get_or_init(|| async { api.readyz().await }).await)
    }
}

/// Dials once through the cluster's connector and hangs up.
pub(super) async fn dial(cluster: &ClusterHandle, to: Target) -> Result<Duration, DialError> {
    let Some(connector) = cluster.connector() else { return Err(cluster.status().as_dial_error()) };
    let begun = Instant::now();
    match timeout(ANSWER_LIMIT, connector.dialer().dial(to)).await {
        Ok(dialled) => dialled.map(|_stream| begun.elapsed()),
        Err(_) => Err(DialError::Timeout { target: to, after: ANSWER_LIMIT }),
    }
}

/// A client for the cluster's API server by any way: through the connector, else by the kubeconfig's own address.
///
/// # Errors
/// Why the connector does not lead there, in words.
pub(super) async fn any_way(cluster: &ClusterHandle) -> Result<ApiServer, String> {
    let through = match cluster.api(Duration::from_secs(1)).await {
        Ok(api) => match timeout(ANSWER_LIMIT, api.readyz()).await {
            Ok(Ok(_)) => return Ok(api),
            Ok(Err(why)) => why.cause.to_string(),
            Err(_) => format!("no answer within {ANSWER_LIMIT:?}"),
        },
        Err(why) => why.message().to_owned(),
    };
    let spec = ApiServerSpec { access: cluster.spec().access.clone(), address: None };
    let direct = ApiServer::new(&spec, Arc::new(DirectDialer));
    match timeout(ANSWER_LIMIT, direct.readyz()).await {
        Ok(Ok(_)) => Ok(direct),
        _ => Err(through),
    }
}

/// What the connector shows now; `None` while none runs.
pub(super) async fn snapshot(cluster: &ClusterHandle) -> Option<ConnectorSnapshot> {
    cluster.snapshot().await
}

/// The words of an error for a check's `seen`, and its hint or another.
pub(super) fn said(why: &HostError, otherwise: &str) -> (String, String) {
    (why.message().to_owned(), why.hint().unwrap_or_else(|| otherwise.to_owned()))
}

/// The hint for a check of `cluster` that ran out of time.
pub(super) const LATE: &str = "run 'guildnet verify' again; host.log in GuildNet's folder tells more";
