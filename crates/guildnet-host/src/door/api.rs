//! What the door asks of the Host App. The door knows nothing else of it, so a test puts a fake in its place.

use std::sync::Arc;

use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, ClusterId, Dialer};

use crate::{ClusterStatus, HostError, StatusReport, verify::Report};

/// The Host App, as its door sees it.
pub trait HostApi: Send + Sync {
    /// Whether the Host App has started: its store is read and its connectors are asked to start. It does not wait for
    /// any cluster: a dead one must not make the whole look dead.
    fn ready(&self) -> bool;

    /// The Host App and all clusters, as they are at this moment.
    fn status(&self) -> BoxFuture<'_, StatusReport>;

    /// All clusters, by id.
    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterStatus>>;

    /// One cluster; `None` if there is none of that id.
    fn cluster<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ClusterStatus>>;

    /// The dialer of one cluster; `None` if there is none of that id. Whether it is ready is told by dialling.
    fn dialer(&self, id: &ClusterId) -> Option<Arc<dyn Dialer>>;

    /// Whether only what changes nothing may be passed on to a cluster's API server.
    ///
    /// # Errors
    /// There is no cluster of that id, or it is not served.
    fn read_only(&self, id: &ClusterId) -> Result<bool, HostError>;

    /// The client for a cluster's API server, through its connector. Waits for a connector that is just starting.
    ///
    /// # Errors
    /// There is no cluster of that id, its connector is not ready, or its API server is not found.
    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>>;

    /// Runs the checks on the given clusters, on all if none is given. Dropping the future stops them.
    ///
    /// # Errors
    /// An unknown cluster, or a failure that kept the checks from being run at all.
    fn verify(&self, clusters: Vec<ClusterId>) -> BoxFuture<'_, Result<Report, HostError>>;

    /// Reads the store again: new clusters are connected, changed ones reconnected, removed ones stopped; the others are
    /// not disturbed.
    ///
    /// # Errors
    /// The store can't be read; then everything goes on as before.
    fn reload(&self) -> BoxFuture<'_, Result<(), HostError>>;
}
