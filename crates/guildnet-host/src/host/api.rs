//! What the door asks of the rest of the Host App, answered.

use std::sync::Arc;

use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, Class, ClusterId, Io};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    ClusterInfo, ClusterStatus, Destination, HostError, KeyInfo, NamespaceShown, Progress, RouterReport, SettingsShown,
    StatusReport, Via,
    door::HostApi,
    drain::named,
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
        let (fleet, forwards) = (Arc::clone(&self.fleet), Arc::clone(&self.forwards));
        let reload = async move {
            let changes = fleet.reload().await?;
            // One line each: `guildnet logs CLUSTER` finds it.
            for (what, clusters) in [("started", &changes.started), ("stopped", &changes.stopped)] {
                clusters.iter().for_each(|cluster| tracing::info!(%cluster, "{what}: the clusters were read again"));
            }
            named("the forwards that follow the store", forwards.follow()).await
        };
        // Who asked for it may leave: a cluster that was stopped must be started again all the same. The fleet's end waits for it.
        Box::pin(async {
            let reloaded = tokio::spawn(reload.in_current_span()).await;
            reloaded.unwrap_or_else(|why| Err(HostError::new(Class::Failed, format!("the reload broke off: {why}"))))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use guildnet_model::StartConnector;
    use guildnet_store::{ClusterRecord, Store};

    use super::*;
    use crate::fake::{FakeConnectors, record};

    #[tokio::test]
    async fn a_reload_that_was_begun_is_done_whether_its_asker_waits_or_not() {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::open(home.path()).await.expect("opened");
        store.replace(&record("a")).await.expect("stored");
        let connectors = Arc::new(FakeConnectors::default()) as Arc<dyn StartConnector>;
        let fleet = Arc::new(Fleet::new(store.clone(), connectors));
        let opening = Arc::clone(&fleet) as Arc<dyn crate::forward::Open>;
        let forwards = Arc::new(Forwards::new(store.clone(), opening, Arc::clone(fleet.metrics())));
        let jobs = Arc::new(Jobs::new(Arc::clone(fleet.events())));
        let settings = Settings::new(home.path().to_owned());
        let api = Api { fleet: Arc::clone(&fleet), forwards, jobs, settings };
        api.reload().await.expect("read");

        store.replace(&ClusterRecord { state_path: "/nonexistent.2".into(), ..record("a") }).await.expect("stored");
        assert!(api.reload().now_or_never().is_none(), "the asker leaves at once");
        let id = "a".parse().expect("an id");
        let serves = || fleet.handle(&id).is_ok_and(|a| a.spec().connector.state_dir.ends_with("nonexistent.2"));
        let follows = async {
            while !serves() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), follows).await.expect("the change is followed");
        assert!(serves());
        fleet.stop().await;
    }
}
