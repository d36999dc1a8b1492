//! What the door asks of the rest of the Host App, answered.

use std::sync::Arc;

use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, ClusterId, Io};
use tokio_util::sync::CancellationToken;

use crate::{
    ClusterInfo, ClusterStatus, Destination, HostError, KeyInfo, NamespaceShown, Progress, RouterReport, SettingsShown,
    StatusReport, Via,
    door::HostApi,
    error::Explained as _,
    events::Events,
    fleet::Fleet,
    forward::{Forwards, Open as _, Ways},
    jobs::{Job, JobKind, Jobs, Work, as_value},
    keys,
    metrics::{self, ClusterSeen, Metrics},
    names::OpenError,
    namespace,
    proxy::ApiServers,
    set::ClusterChange,
    settings::HeadscaleChange,
    settings::Settings,
    status::{self, ConnectorShown},
    verify,
};

pub(super) struct Api {
    pub(super) fleet: Arc<Fleet>,
    pub(super) forwards: Arc<Forwards>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) settings: Settings,
}

impl HostApi for Api {
    fn ready(&self) -> bool {
        // The door serves only after the store was read and the connectors were asked to start.
        true
    }

    fn status(&self) -> BoxFuture<'_, StatusReport> {
        Box::pin(async { status::of_running(&self.fleet).await })
    }

    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterStatus>> {
        Box::pin(async { status::of_clusters(&self.fleet).await })
    }

    fn cluster<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ClusterStatus>> {
        Box::pin(async move { status::of_id(&self.fleet, id).await })
    }

    fn metrics(&self) -> &Arc<Metrics> {
        self.fleet.metrics()
    }

    fn observed(&self) -> BoxFuture<'_, Vec<ClusterSeen>> {
        Box::pin(metrics::observe(&self.fleet))
    }

    fn record<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ClusterInfo, HostError>> {
        Box::pin(async move { self.fleet.info(id, &Ways::of(self.fleet.store()).await?) })
    }

    fn knows(&self, id: &ClusterId) -> Result<(), HostError> {
        self.fleet.knows(id)
    }

    fn connector<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ConnectorShown>> {
        Box::pin(async move { status::of_connector(&self.fleet.handle(id).ok()?).await })
    }

    fn connectors(&self) -> BoxFuture<'_, Vec<ConnectorShown>> {
        Box::pin(async { status::of_connectors(&self.fleet).await })
    }

    fn router<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<RouterReport, HostError>> {
        Box::pin(async move {
            let api = self.fleet.handle(id)?.api_soon().await?;
            let router = guildnet_kube::router::status(&api).await.explained_of(id)?;
            Ok(RouterReport { id: id.clone(), via: Via::Tailnet, router })
        })
    }

    fn keys<'a>(&'a self, clusters: &'a [ClusterId]) -> BoxFuture<'a, Result<Vec<KeyInfo>, HostError>> {
        Box::pin(keys::keys_list(&self.settings, clusters))
    }

    fn namespaces(&self) -> BoxFuture<'_, Result<Vec<NamespaceShown>, HostError>> {
        Box::pin(namespace::namespaces(&self.settings))
    }

    fn settings(&self) -> BoxFuture<'_, Result<SettingsShown, HostError>> {
        Box::pin(self.fleet.settings(&self.settings))
    }

    fn change_headscale(&self, change: HeadscaleChange) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(change.keep(&self.settings, self.fleet.store()))
    }

    fn open<'a>(&'a self, id: &'a ClusterId, to: &'a Destination) -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>> {
        self.fleet.open(id, to)
    }

    fn forwards(&self) -> Option<Arc<Forwards>> {
        Some(Arc::clone(&self.forwards))
    }

    fn change<'a>(&'a self, id: &'a ClusterId, change: ClusterChange) -> BoxFuture<'a, Result<bool, HostError>> {
        Box::pin(async move {
            let changed = self.fleet.change(id, &change).await?;
            if changed {
                self.reload().await?;
            }
            Ok(changed)
        })
    }

    fn verify(&self, clusters: Vec<ClusterId>) -> Result<Job, HostError> {
        let fleet = Arc::clone(&self.fleet);
        let run = move |progress: Arc<dyn Progress>| {
            Box::pin(async move { as_value(&verify::verify_fleet(&fleet, &clusters, &*progress).await?) }) as _
        };
        self.jobs.start(JobKind::Verify, None, Box::new(run))
    }

    fn start(&self, work: Work) -> Result<Job, HostError> {
        self.jobs.start(work.kind(), Some(work.cluster().clone()), work.run(self.settings.clone()))
    }

    fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    fn events(&self) -> &Arc<Events> {
        self.fleet.events()
    }

    fn reload(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async {
            let changes = self.fleet.reload().await?;
            // One line each: `guildnet logs CLUSTER` finds it.
            for (what, clusters) in [("started", &changes.started), ("stopped", &changes.stopped)] {
                clusters.iter().for_each(|cluster| tracing::info!(%cluster, "{what}: the clusters were read again"));
            }
            self.forwards.follow().await
        })
    }
}

impl ApiServers for Api {
    fn writing(&self, id: &ClusterId) -> Result<Option<CancellationToken>, HostError> {
        self.fleet.writing(id)
    }

    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>> {
        Box::pin(async move { self.fleet.handle(id)?.api_soon().await })
    }
}
