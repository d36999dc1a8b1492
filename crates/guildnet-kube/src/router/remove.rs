//! Takes the router out of a cluster again. What others put into its namespace is left there, and the namespace with it.
//!
//! The router may be the very way by which the API server is reached: then everything goes with one last request, since
//! no later one would arrive.

use std::fmt::Debug;

use guildnet_model::ClusterId;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams},
};
use serde::de::DeserializeOwned;

use super::{
    DAEMON_SET, NAMESPACE, RouterError,
    deploy::{await_removal, in_namespace, refuse_foreign},
    manifest::{CLUSTER_LABEL, MANAGED_BY, OWNED},
};
use crate::{ApiServer, KubeError, error::KubeCause};

/// How the API server is reached while its router is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Not by the router: it can be watched going away.
    Directly,
    /// Through the router itself: the way ends with it.
    ThroughRouter,
}

/// What removing the router did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing was there.
    Nothing,
    /// All of it is gone, namespace included.
    Gone,
    /// The cluster was told to remove all of it, and that can't be watched: the way to it was the router.
    Asked,
    /// Ours is removed; the namespace stays, for what others have in it.
    NamespaceStays {
        /// `Kind/name` of what others have in it.
        others: Vec<String>,
    },
}

/// Removes what [`ensure`](super::ensure) made for `cluster`, namespace included, and waits until it is gone where that can be
/// seen. Identities on the nodes stay (`/var/lib/guildnet/router-CLUSTER`): a router deployed again is the same node.
///
/// # Errors
/// [`RouterError::Foreign`] if the namespace is not ours, [`RouterError::OtherCluster`] if its router is of another cluster id:
/// nothing is touched then. [`RouterError::Timeout`] if it does not go away.
pub async fn remove(api: &ApiServer, cluster: &ClusterId, reached: Reached) -> Result<Removal, RouterError> {
    let name = NAMESPACE;
    let Some(found) = api.read(|c| async move { Api::<Namespace>::all(c).get_metadata_opt(name).await }).await? else {
        return Ok(Removal::Nothing);
    };
    refuse_foreign(&found.metadata, || format!("Namespace/{name}"))?;
    refuse_other_cluster(api, cluster).await?;
    let others = others(api).await?;
    if !others.is_empty() || reached == Reached::Directly {
        // The DaemonSet first, unless the requests travel by its pods.
        let mut order = OWNED.to_vec();
        if reached == Reached::ThroughRouter {
            order.reverse();
        }
        for (kind, name) in order {
            match kind {
                "DaemonSet" => delete::<DaemonSet>(api, kind, name).await?,
                "Secret" => delete::<Secret>(api, kind, name).await?,
                "ConfigMap" => delete::<ConfigMap>(api, kind, name).await?,
                _ => delete::<ServiceAccount>(api, kind, name).await?,
            }
        }
    }
    if !others.is_empty() {
        return Ok(Removal::NamespaceStays { others });
    }
    let gone =
        api.write(|c| async move { Api::<Namespace>::all(c).delete(name, &DeleteParams::default()).await }).await;
    ignore_missing(gone.map(drop))?;
    if reached == Reached::ThroughRouter {
        return Ok(Removal::Asked);
    }
    await_removal(api).await?;
    Ok(Removal::Gone)
}

/// A cluster holds one router: that of another id is not ours to remove under this one.
async fn refuse_other_cluster(api: &ApiServer, cluster: &ClusterId) -> Result<(), RouterError> {
    let there = api.read(|c| async move { in_namespace::<DaemonSet>(c).get_metadata_opt(DAEMON_SET).await }).await?;
    match there.and_then(|set| set.metadata.labels?.get(CLUSTER_LABEL).cloned()) {
        Some(here) if here != cluster.as_str() => {
            Err(RouterError::OtherCluster { here, wanted: cluster.as_str().to_owned() })
        }
        _ => Ok(()),
    }
}

/// What stands in the namespace and is neither ours nor made by Kubernetes itself.
async fn others(api: &ApiServer) -> Result<Vec<String>, KubeError> {
    let found = tokio::try_join!(
        others_of::<Pod>(api, "Pod"),
        others_of::<Service>(api, "Service"),
        others_of::<ConfigMap>(api, "ConfigMap"),
        others_of::<Secret>(api, "Secret"),
        others_of::<ServiceAccount>(api, "ServiceAccount"),
        others_of::<PersistentVolumeClaim>(api, "PersistentVolumeClaim"),
        others_of::<Deployment>(api, "Deployment"),
        others_of::<StatefulSet>(api, "StatefulSet"),
        others_of::<DaemonSet>(api, "DaemonSet"),
        others_of::<Job>(api, "Job"),
        others_of::<CronJob>(api, "CronJob"),
    )?;
    let (pods, services, maps, secrets, accounts, claims, deployments, stateful, sets, jobs, cron) = found;
    Ok([pods, services, maps, secrets, accounts, claims, deployments, stateful, sets, jobs, cron].concat())
}

async fn others_of<K>(api: &ApiServer, kind: &str) -> Result<Vec<String>, KubeError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let list = api.read(|c| async move { in_namespace::<K>(c).list_metadata(&ListParams::default()).await }).await;
    let list = match list {
        // A cluster without that kind.
        Err(KubeError { cause: KubeCause::NotFound { .. }, .. }) => return Ok(Vec::new()),
        list => list?,
    };
    Ok(list.items.iter().filter_map(|item| foreign(kind, &item.metadata)).collect())
}

/// `Kind/name` of an object that is neither ours nor one that Kubernetes puts into every namespace.
fn foreign(kind: &str, meta: &ObjectMeta) -> Option<String> {
    let name = meta.name.as_deref().unwrap_or_default();
    let label =
        |(label, value): (&str, &str)| meta.labels.as_ref().and_then(|l| l.get(label)).is_some_and(|v| v == value);
    let everywhere = match kind {
        "ConfigMap" => name == "kube-root-ca.crt",
        "ServiceAccount" => name == "default",
        // The tokens of clusters before 1.24.
        "Secret" => meta.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/service-account.name")),
        _ => false,
    };
    (!label(MANAGED_BY) && !everywhere).then(|| format!("{kind}/{name}"))
}

async fn delete<K>(api: &ApiServer, kind: &str, name: &str) -> Result<(), RouterError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let Some(found) = api.read(|c| async move { in_namespace::<K>(c).get_metadata_opt(name).await }).await? else {
        return Ok(());
    };
    refuse_foreign(&found.metadata, || format!("{kind}/{name}"))?;
    let gone = api.write(|c| async move { in_namespace::<K>(c).delete(name, &DeleteParams::default()).await }).await;
    Ok(ignore_missing(gone.map(drop))?)
}

pub(super) fn ignore_missing(result: Result<(), KubeError>) -> Result<(), KubeError> {
    match result {
        Err(KubeError { cause: KubeCause::NotFound { .. }, .. }) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, labels: &[(&str, &str)]) -> ObjectMeta {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() }
    }

    #[test]
    fn what_kubernetes_and_guildnet_put_into_the_namespace_is_nobody_elses() {
        assert_eq!(foreign("ConfigMap", &meta("kube-root-ca.crt", &[])), None);
        assert_eq!(foreign("ServiceAccount", &meta("default", &[])), None);
        assert_eq!(foreign("Pod", &meta("guildnet-router-x", &[MANAGED_BY])), None);
        assert_eq!(foreign("Pod", &meta("debug", &[])).as_deref(), Some("Pod/debug"));
        assert_eq!(foreign("Secret", &meta("default", &[])).as_deref(), Some("Secret/default"));
    }
}
