//! What the door asks of the Host App. The door knows nothing else of it, so a test puts a fake in its place.

use std::sync::Arc;

use guildnet_model::{BoxFuture, ClusterId, Io};

use crate::{
    ClusterInfo, ClusterStatus, Destination, HostError, KeyInfo, NamespaceShown, RouterReport, SettingsShown,
    StatusReport,
    events::Events,
    forward::Forwards,
    jobs::{Job, Jobs, Work},
    metrics::{ClusterSeen, Metrics},
    names::OpenError,
    set::ClusterChange,
    settings::HeadscaleChange,
    status::ConnectorShown,
};

/// The Host App, as its door sees it.
pub(crate) trait HostApi: Send + Sync {
    /// Whether the Host App has started: its store is read and its connectors are asked to start. It does not wait for
    /// any cluster: a dead one must not make the whole look dead.
    fn ready(&self) -> bool;

    /// The Host App and all clusters, as they are at this moment.
    fn status(&self) -> BoxFuture<'_, StatusReport>;

    /// All clusters, by id.
    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterStatus>>;

    /// One cluster; `None` if there is none of that id.
    fn cluster<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ClusterStatus>>;

    /// What the store knows of one cluster.
    ///
    /// # Errors
    /// There is none of that id.
    fn record<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ClusterInfo, HostError>>;

    /// Whether there is a cluster of that id. Asks nobody.
    ///
    /// # Errors
    /// There is none.
    fn knows(&self, id: &ClusterId) -> Result<(), HostError>;

    /// One cluster's connector; `None` if it does not run.
    fn connector<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ConnectorShown>>;

    /// The connectors that run, by cluster: state, peers and paths.
    fn connectors(&self) -> BoxFuture<'_, Vec<ConnectorShown>>;

    /// A cluster's routers, asked of its API server.
    ///
    /// # Errors
    /// There is no cluster of that id; its API server can't be reached or refuses.
    fn router<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<RouterReport, HostError>>;

    /// The keys of clusters (of all, if none is named) on the Headscale server, never their values.
    ///
    /// # Errors
    /// No server or API key is known; it does not answer, or refuses.
    fn keys<'a>(&'a self, clusters: &'a [ClusterId]) -> BoxFuture<'a, Result<Vec<KeyInfo>, HostError>>;

    /// The namespaces on the Headscale server, and the clusters that are known here without one.
    ///
    /// # Errors
    /// As [`HostApi::keys`].
    fn namespaces(&self) -> BoxFuture<'_, Result<Vec<NamespaceShown>, HostError>>;

    /// What is set and kept for all clusters.
    ///
    /// # Errors
    /// The store can't be read.
    fn settings(&self) -> BoxFuture<'_, Result<SettingsShown, HostError>>;

    /// Changes what is kept of the Headscale server.
    ///
    /// # Errors
    /// See [`HeadscaleChange::keep`].
    fn change_headscale(&self, change: HeadscaleChange) -> BoxFuture<'_, Result<(), HostError>>;

    /// Opens a stream to an address or a name in a cluster, through its connector. Waits for one that is just starting.
    ///
    /// # Errors
    /// There is no cluster of that id; the name is unknown there; dialling failed.
    fn open<'a>(&'a self, id: &'a ClusterId, to: &'a Destination) -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>>;

    /// What leads into the clusters without the door; `None` for a Host App that has nothing of the kind.
    fn forwards(&self) -> Option<Arc<Forwards>> {
        None
    }

    /// Sets switches of a cluster; they are followed when this returns. `true`: it was not so before.
    ///
    /// # Errors
    /// There is no cluster of that id; the store can't be written.
    fn change<'a>(&'a self, id: &'a ClusterId, change: ClusterChange) -> BoxFuture<'a, Result<bool, HostError>>;

    /// Starts the checks on the given clusters, on all if none is given. The result is a [`crate::verify::Report`].
    ///
    /// # Errors
    /// Too many jobs run.
    fn verify(&self, clusters: Vec<ClusterId>) -> Result<Job, HostError>;

    /// What is counted. The clusters that it knows are those that there are.
    fn metrics(&self) -> &Arc<Metrics>;

    /// All clusters for `/metrics`, by id. Ends within seconds, whatever a connector does.
    fn observed(&self) -> BoxFuture<'_, Vec<ClusterSeen>>;

    /// Starts work on a cluster.
    ///
    /// # Errors
    /// Other work on that cluster is under way, or too many jobs run.
    fn start(&self, work: Work) -> Result<Job, HostError>;

    /// The jobs.
    fn jobs(&self) -> &Jobs;

    /// What happens.
    fn events(&self) -> &Arc<Events>;

    /// Reads the store again: new clusters are connected, changed ones reconnected, removed ones stopped; the others are
    /// not disturbed.
    ///
    /// # Errors
    /// The store can't be read; then everything goes on as before.
    fn reload(&self) -> BoxFuture<'_, Result<(), HostError>>;
}
