//! `cluster remove` and `router remove`: undoing what was made, in the order in which nothing is stranded.
//!
//! The router leaves the cluster first, while there may still be a way to it; then the connector is stopped; then, when both
//! are disconnected, their nodes leave the Headscale server, and with them keys, policy and namespace; the record with the
//! credentials goes last. What can't be done now stops the rest, so that the same command goes on from there.

use std::{fs, io};

use guildnet_headscale::Cleared;
use guildnet_kube::router::{self as kube_router, NAMESPACE, Reached as Way, Removal};
use guildnet_model::{Class, ClusterId, Explain as _};
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    HostError, Progress, RouterRequest, Settings, add,
    client::HostClient,
    error::Explained as _,
    fleet,
    host::Deps,
    kubeconfigs::kubeconfigs_follow,
    reach::{Reached, Via, Ways, reach},
    router,
    server::Server,
    up::Known,
};

/// What `cluster remove` was asked for.
#[derive(Clone, Debug)]
pub struct RemoveRequest {
    /// The cluster.
    pub id: ClusterId,
    /// Leave the router, its node, its key and its place in the policy: the cluster can be added again from its file.
    pub keep_router: bool,
    /// Forget the cluster here whatever can't be reached or removed elsewhere.
    pub forget: bool,
}

/// What removing did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// What was removed, in words.
    pub removed: Vec<String>,
    /// What was left, and why.
    pub left: Vec<String>,
    /// What should have gone and could not yet; the same command goes on from there.
    pub unfinished: Vec<String>,
}

impl Removed {
    fn take(&mut self, cleared: Cleared) {
        self.removed.extend(cleared.removed);
        self.left.extend(cleared.left);
        self.unfinished.extend(cleared.unfinished);
    }

    /// Whether to stop here. With `forget` what could not be done is left, and it goes on.
    fn stops(&mut self, forget: bool) -> bool {
        if forget {
            self.left.append(&mut self.unfinished);
        }
        !self.unfinished.is_empty()
    }
}

/// See [`crate::cluster_remove`].
pub(crate) async fn cluster_remove(
    settings: &Settings,
    request: &RemoveRequest,
    progress: &dyn Progress,
) -> Result<Removed, HostError> {
    let id = &request.id;
    let known = Known::read(settings).await?;
    let record = known.record(id).ok_or_else(|| add::unknown(id, &known))?;
    let server = known.server(settings)?.filter(|s| s.has_key() && *s.url() == record.login_server);
    if let Some(server) = server.as_ref().filter(|_| !request.forget) {
        // Before anything is changed: a cluster whose router is gone can't tell the server later that it is.
        server.answers().await.map_err(|why| unanswered(&why, id))?;
    }
    let host = HostClient::discover(&settings.home)?;
    let mut done = Removed::default();

    if request.keep_router {
        done.left.push(format!(
            "its router and what it needs: {NAMESPACE} in the cluster; its node, key, policy and namespace on Headscale"
        ));
    } else {
        remove_router(record, host.as_ref(), server.as_ref(), &mut done).await?;
        if done.stops(request.forget) {
            return Ok(done);
        }
        progress.step(Some(id), "router looked after");
    }

    disconnect(settings, record, host.as_ref()).await?;
    progress.step(Some(id), "connector stopped");

    match &server {
        Some(server) => match on_server(server, record, request).await {
            Ok(cleared) => done.take(cleared),
            Err(why) => done.unfinished.push(format!("its nodes and keys on Headscale: {}", why.message())),
        },
        None => done.left.push("its nodes and keys on Headscale: no API key is known here".into()),
    }
    if done.stops(request.forget) {
        return Ok(done);
    }

    let store = fleet::open_store(settings).await?;
    let forgotten = store.remove(id).await.explained_of(id);
    store.close().await;
    if forgotten? {
        done.removed.push("its record, with kubeconfig and keys".into());
    }
    if let Some(host) = host {
        host.reload().await?;
        done.removed.push("its connector in the running Host App".into());
    }
    match fs::remove_dir_all(&record.state_path) {
        Ok(()) => done.removed.push(format!("the connector's identity in {}", record.state_path.display())),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => done.left.push(format!("the connector's identity in {}: {why}", record.state_path.display())),
    }
    kubeconfigs_follow(settings, progress).await;
    Ok(done)
}

fn unanswered(why: &HostError, id: &ClusterId) -> HostError {
    let hint = why.hint().map(|h| format!("{h}; ")).unwrap_or_default();
    HostError::new(why.class(), format!("nothing was removed: {}", why.message()))
        .with_hint(format!("{hint}to forget the cluster here all the same: guildnet cluster remove {id} --forget"))
        .of_cluster(id)
}

/// Takes the router out of the cluster, if there is a way to it.
async fn remove_router(
    record: &ClusterRecord,
    host: Option<&HostClient>,
    server: Option<&Server>,
    done: &mut Removed,
) -> Result<(), HostError> {
    let id = &record.id;
    let connectors = Deps::real()?.connectors;
    let ways = Ways { host, record: Some(record), connectors: &connectors };
    let reached = match fleet::spec(record) {
        Ok(spec) => reach(id, &spec.access, Via::Auto, &ways).await,
        Err(why) => Err(why),
    };
    match reached {
        Ok(reached) => take_out(id, reached, done).await,
        Err(why) => {
            // A cluster that is gone for good has no router connected: then nobody can be asked, and nobody has to be.
            let gone = match server {
                Some(server) if why.class() == Class::Unreachable => {
                    matches!(server.has_router_online(id).await, Ok(false))
                }
                _ => false,
            };
            let said = format!("the router in the cluster: {}", why.message());
            if gone {
                done.left.push(format!("{said}; none of its routers is connected to Headscale"));
            } else {
                done.unfinished.push(said);
            }
        }
    }
    Ok(())
}

/// Takes the router out of a cluster that was reached.
async fn take_out(id: &ClusterId, reached: Reached, done: &mut Removed) {
    let way = if reached.via == Via::Direct { Way::Directly } else { Way::ThroughRouter };
    let removal = kube_router::remove(&reached.api, id, way).await;
    reached.close().await;
    let identities = || format!("the routers' identities on its nodes: /var/lib/guildnet/router-{id}");
    match removal {
        Ok(Removal::Nothing) => {}
        Ok(Removal::Gone) => {
            done.removed.push(format!("the router in the cluster, namespace {NAMESPACE} included"));
            done.left.push(identities());
        }
        Ok(Removal::Asked) => {
            done.removed.push(format!(
                "the router in the cluster, namespace {NAMESPACE} included (asked for through that router: its end can't be seen)"
            ));
            done.left.push(identities());
        }
        Ok(Removal::NamespaceStays { others }) => {
            done.removed.push("the router in the cluster".into());
            done.left.push(format!(
                "namespace {NAMESPACE} in the cluster, for what others have in it: {}",
                others.join(", ")
            ));
            done.left.push(identities());
        }
        // Of another id, or not ours: it is not this cluster's.
        Err(why) if why.class() == Class::Conflict => done.left.push(format!("what is in the cluster: {why}")),
        Err(why) => {
            done.unfinished.push(format!("the router in the cluster: {}", HostError::explained(&why).message()))
        }
    }
}

/// Stops the connector for good; where it goes on from here after a failure, it stays stopped.
async fn disconnect(settings: &Settings, record: &ClusterRecord, host: Option<&HostClient>) -> Result<(), HostError> {
    if !record.disconnected {
        let record = ClusterRecord { disconnected: true, updated: Timestamp::now(), ..record.clone() };
        fleet::put(settings, &record).await?;
    }
    match host {
        Some(host) => host.reload().await,
        None => Ok(()),
    }
}

async fn on_server(server: &Server, record: &ClusterRecord, request: &RemoveRequest) -> Result<Cleared, HostError> {
    // An identity that can't be read is removed with its folder; its node is found as one that is not connected.
    let own = guildnet_tailnet::saved_node_key(&record.state_path).unwrap_or_default();
    match (request.keep_router, own) {
        (false, own) => server.remove(&record.id, own.as_deref()).await,
        (true, Some(own)) => server.remove_connector(&record.id, &own).await,
        (true, None) => Ok(Cleared::default()),
    }
}

/// See [`crate::router_remove`].
pub(crate) async fn router_remove(
    settings: &Settings,
    request: &RouterRequest,
    progress: &dyn Progress,
) -> Result<Removed, HostError> {
    let id = &request.id;
    let known = Known::read(settings).await?;
    let server = router::server(settings, request, &known)?.filter(Server::has_key);
    let reached = router::reach_router(settings, request, &known).await?;
    let mut done = Removed::default();
    take_out(id, reached, &mut done).await;
    if !done.unfinished.is_empty() {
        return Ok(done);
    }
    progress.step(Some(id), "router looked after");
    match &server {
        Some(server) => match server.remove_routers(id).await {
            Ok(cleared) => done.take(cleared),
            Err(why) => done.unfinished.push(format!("its routers' nodes on Headscale: {}", why.message())),
        },
        None => done.left.push("its routers' nodes on Headscale: no API key is known here".into()),
    }
    done.left.push("its keys, its place in the policy and its namespace on Headscale".into());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_done_stops_the_rest_unless_the_cluster_shall_be_forgotten() {
        let begun = Removed { unfinished: vec!["node x".into()], ..Removed::default() };
        assert!(begun.clone().stops(false));
        let mut forgotten = begun;
        assert!(!forgotten.stops(true));
        assert_eq!((forgotten.left, forgotten.unfinished), (vec!["node x".to_owned()], vec![]));
    }

    #[test]
    fn a_server_that_does_not_answer_is_named_with_the_way_out() {
        let id: ClusterId = "a".parse().expect("an id");
        let said = unanswered(&HostError::new(Class::Unreachable, "no answer").with_hint("start it"), &id);
        assert_eq!(said.to_string(), "cluster a: nothing was removed: no answer");
        assert_eq!(said.class(), Class::Unreachable);
        assert!(said.hint().is_some_and(|h| h.starts_with("start it; ") && h.contains("--forget")));
    }
}
