//! Reaching a cluster's API server to administrate it: by the kubeconfig's own address, else through its connector.
//!
//! The connector is the running Host App's, or one that is started for this purpose alone when no Host App runs: an
//! identity is used by one process at a time.

use std::{sync::Arc, time::Duration};

use guildnet_kube::{ApiServer, ApiServerSpec, ClusterAccess, DirectDialer};
use guildnet_model::{Class, ClusterId, Explain as _, StartConnector};
use guildnet_store::ClusterRecord;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{HostError, client::HostClient, cluster::ClusterActor, error::Explained as _, fleet};

/// How the API server is to be reached, or was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Directly within 3 s, else through the connector.
    #[default]
    Auto,
    /// By the kubeconfig's own address.
    Direct,
    /// Through the cluster's connector.
    Tailnet,
}

/// How long the first answer on the direct way may take: 3 s to connect (the dialer's limit), TLS and one request.
const DIRECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a connector that was started for this purpose may take to become usable.
const TAILNET_LIMIT: Duration = Duration::from_secs(20);

/// An API server that has answered, and what keeps the way to it open.
pub(crate) struct Reached {
    /// Its client.
    pub(crate) api: ApiServer,
    /// The way that was taken.
    pub(crate) via: Via,
    own: Option<ClusterActor>,
}

impl Reached {
    /// Closes the connections, and the connector if it was started for this.
    pub(crate) async fn close(self) {
        self.api.close().await;
        if let Some(actor) = self.own {
            actor.stop().await;
        }
    }
}

/// What leads to a cluster beside its kubeconfig.
pub(crate) struct Ways<'a> {
    /// The running Host App, if one runs.
    pub(crate) host: Option<&'a HostClient>,
    /// The cluster's record, if it has one.
    pub(crate) record: Option<&'a ClusterRecord>,
    /// Starts a connector where no Host App runs.
    pub(crate) connectors: &'a Arc<dyn StartConnector>,
}

/// Reaches the API server of `access`.
///
/// # Errors
/// It answers on none of the ways that `via` allows, or it refuses the credential.
pub(crate) async fn reach(
    id: &ClusterId,
    access: &ClusterAccess,
    via: Via,
    ways: &Ways<'_>,
) -> Result<Reached, HostError> {
    let direct = match via {
        Via::Tailnet => None,
        Via::Auto | Via::Direct => match directly(access).await {
            Ok(api) => return Ok(Reached { api, via: Via::Direct, own: None }),
            // Whoever answered wrongly there is the kubeconfig's own server: no other way makes it right.
            Err(why) if via == Via::Direct || why.class() != Class::Unreachable => return Err(why.of_cluster(id)),
            Err(why) => Some(why),
        },
    };
    let (through, hint) = match ways.record {
        None => (
            Err(HostError::new(Class::Unreachable, "it has no connector here yet")),
            format!(
                "a cluster that only another machine reaches: there 'guildnet headscale namespace {id}' and 'guildnet router \
                 ensure {id} --kubeconfig FILE', then here 'guildnet cluster add {id} --kubeconfig FILE --from \
                 tmp/cluster-{id}-headscale.json'"
            ),
        ),
        Some(record) => (
            through_connector(id, access, record, ways).await,
            format!(
                "run on a machine that reaches it: guildnet router manifest {id} --with-key | kubectl apply --server-side -f -"
            ),
        ),
    };
    through.map_err(|why| match direct {
        Some(direct) => {
            let said = format!("directly: {}; through the connector: {}", direct.message(), why.message());
            HostError::new(Class::Unreachable, format!("its API server can't be reached: {said}"))
                .with_hint(hint)
                .of_cluster(id)
        }
        None => why.of_cluster(id),
    })
}

/// By the kubeconfig's own address.
pub(crate) async fn directly(access: &ClusterAccess) -> Result<ApiServer, HostError> {
    let api = ApiServer::new(&ApiServerSpec { access: access.clone(), address: None }, Arc::new(DirectDialer));
    match timeout(DIRECT_LIMIT, api.readyz()).await {
        Ok(answer) => answer.explained().map(|_| api),
        Err(_) => Err(HostError::new(
            Class::Unreachable,
            format!("{} did not answer within {DIRECT_LIMIT:?}", access.server()),
        )),
    }
}

async fn through_connector(
    id: &ClusterId,
    access: &ClusterAccess,
    record: &ClusterRecord,
    ways: &Ways<'_>,
) -> Result<Reached, HostError> {
    let mut spec = fleet::spec(record)?;
    spec.access = access.clone();
    // The Host App does not hold the connector of a cluster that is disconnected on request.
    if let Some(host) = ways.host.filter(|_| !record.disconnected) {
        // The Host App knows the address if it was ever found; the usual place is tried otherwise.
        let address = spec.api_address.or_else(|| first_service_address(record));
        let api = ApiServer::new(&ApiServerSpec { access: access.clone(), address }, host.dialer(id));
        api.readyz().await.explained()?;
        return Ok(Reached { api, via: Via::Tailnet, own: None });
    }
    let actor = ClusterActor::spawn(spec, Arc::clone(ways.connectors));
    let answered = match actor.handle.api(TAILNET_LIMIT).await {
        Ok(api) => api.readyz().await.explained().map(|_| api),
        Err(why) => Err(why),
    };
    match answered {
        Ok(api) => Ok(Reached { api, via: Via::Tailnet, own: Some(actor) }),
        Err(why) => {
            actor.stop().await;
            Err(why)
        }
    }
}

/// Where the `kubernetes` Service usually stands: the first address of the first network.
fn first_service_address(record: &ClusterRecord) -> Option<guildnet_model::Target> {
    let ip = record.routes.as_slice().first()?.hosts().next()?;
    Some(std::net::SocketAddr::from((ip, 443)).into())
}
