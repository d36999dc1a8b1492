//! Taking nodes, and whole clusters, off the server.

use std::time::Duration;

use guildnet_headscale::{
    Cleared, Leaving, Node, PolicyRequest, dead_routers, remove_namespace, remove_nodes, unseen_routers,
};
use guildnet_model::{Class, ClusterId, Explain as _};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::Server;
use crate::{HostError, Progress, error::Explained as _};

/// How long disconnected nodes may take to be listed so: pods get 10 s to end, Headscale waits 10 s for a node to come back, and
/// a connection that was cut is noticed with the next keep-alive, 59 s later at most.
pub(crate) const OFFLINE_LIMIT: Duration = Duration::from_secs(80);

/// How long a router whose pod is ready may take to be listed as connected: it has its network map by then, so the server knows.
const SEEN_LIMIT: Duration = Duration::from_secs(10);

impl Server {
    /// Removes a cluster from the server: its nodes, each once it is disconnected; then, if none remains, its place in the
    /// policy, its keys and its namespace.
    pub(crate) async fn remove(&self, cluster: &ClusterId, connector: Option<&str>) -> Result<Cleared, HostError> {
        let leaving = Leaving { routers: true, idle_connectors: true, connector, patience: OFFLINE_LIMIT };
        let mut done = remove_nodes(&self.client, cluster, &leaving).await.explained_of(cluster)?;
        if !done.is_complete() {
            let namespace = cluster.namespace();
            done.left
                .push(format!("its place in the policy, which keeps those nodes apart, and namespace {namespace}"));
            return Ok(done);
        }
        let forget = [cluster.clone()];
        let request = PolicyRequest { forget: &forget, merge: true, ..PolicyRequest::default() };
        match self.write_policy(self.features().await?, &request, &format!("cluster removed: {cluster}")).await {
            Ok(applied) => done.removed.extend(applied.diff.map(|_| "its place in the policy".to_owned())),
            // It is a file of the server's, which its owner changes.
            Err(why) if why.class() == Class::Precondition => {
                done.left.push(format!("its place in the policy: {}", why.message()));
            }
            Err(why) => return Err(why.of_cluster(cluster)),
        }
        remove_namespace(&self.client, cluster, &mut done).await.explained_of(cluster)?;
        Ok(done)
    }

    /// Removes the nodes of a cluster's routers, each once it is disconnected.
    pub(crate) async fn remove_routers(&self, cluster: &ClusterId) -> Result<Cleared, HostError> {
        let leaving = Leaving { routers: true, idle_connectors: false, connector: None, patience: OFFLINE_LIMIT };
        remove_nodes(&self.client, cluster, &leaving).await.explained_of(cluster)
    }

    /// Removes one connector's node, once it is disconnected.
    pub(crate) async fn remove_connector(&self, cluster: &ClusterId, node_key: &str) -> Result<Cleared, HostError> {
        let leaving =
            Leaving { routers: false, idle_connectors: false, connector: Some(node_key), patience: OFFLINE_LIMIT };
        remove_nodes(&self.client, cluster, &leaving).await.explained_of(cluster)
    }

    /// Whether a router of the cluster is connected.
    pub(crate) async fn has_router_online(&self, cluster: &ClusterId) -> Result<bool, HostError> {
        let nodes = self.nodes().await?;
        Ok(guildnet_headscale::routers_of(&nodes, cluster).iter().any(|r| r.online))
    }

    /// The hosts, of those whose pods are ready, whose router it does not list as connected within 10 s.
    pub(crate) async fn unseen_routers(
        &self,
        cluster: &ClusterId,
        hostname: &str,
        hosts: &[String],
    ) -> Result<Vec<String>, HostError> {
        if !self.has_key() {
            return Ok(vec![]);
        }
        let end = Instant::now() + SEEN_LIMIT;
        loop {
            let unseen = unseen_routers(&self.nodes().await?, cluster, hostname, hosts);
            if unseen.is_empty() || Instant::now() >= end {
                return Ok(unseen);
            }
            sleep(super::ASK_EVERY).await;
        }
    }

    /// Deletes routers that will not come back, so that no route stays with them; see [`dead_routers`]. `wanted`: how many
    /// the Kubernetes cluster has.
    pub(crate) async fn forget_dead_routers(
        &self,
        cluster: &ClusterId,
        hostname: &str,
        wanted: u32,
        progress: &dyn Progress,
    ) -> Result<(), HostError> {
        if !self.has_key() {
            return Ok(());
        }
        let nodes = self.nodes().await?;
        let dead: Vec<&Node> = dead_routers(&nodes, cluster, hostname, wanted, Timestamp::now());
        for node in dead {
            self.client.delete_node(node.id).await.explained_of(cluster)?;
            let seen = node.last_seen.map(|when| format!(", last seen {when}")).unwrap_or_default();
            progress.step(Some(cluster), &format!("dead router {} removed from Headscale{seen}", node.name));
        }
        Ok(())
    }
}
