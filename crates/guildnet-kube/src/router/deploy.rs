//! Brings the router's objects into a cluster and watches them come up. `remove.rs` takes them out again.
//!
//! Objects are applied by the server (server-side apply, field manager `guildnet`). An object of ours is overwritten
//! where somebody else changed it; one that does not bear our label is never touched.

use std::{
    fmt::Debug,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use guildnet_model::{Class, Explain as _};
use k8s_openapi::{
    Metadata, NamespaceResourceScope,
    api::{
        apps::v1::DaemonSet,
        core::v1::{Event, Namespace, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, WatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};

use super::{
    Applied, DAEMON_SET, Manifest, NAMESPACE, RouterError, RouterPlan, RouterProgress, RouterStatus,
    manifest::{CLUSTER_LABEL, CONTAINER, MANAGED_BY, Object, manifests},
    remove::ignore_missing,
    rollout::{Observed, Patience, detail, is_ready, wants_log},
};
use crate::ApiServer;

/// The name under which the API server keeps which fields are ours.
const FIELD_MANAGER: &str = "guildnet";

/// How long all routers may take: a slow registry has to deliver 30 MB to every node, and nodes are updated one by one.
const ROLLOUT_LIMIT: Duration = Duration::from_secs(300);

/// How long a namespace may take to go away: its pods get 10 s to end, the controllers some seconds to notice.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);

/// The longest wait between two looks. Pods tell their troubles in events and logs, which the watch is not about.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long to wait before looking again when there is no watch, for lack of rights for instance.
const WATCHLESS_PAUSE: Duration = Duration::from_millis(500);

/// How long the API server may be out of reach meanwhile: the way to it may lead through the very router that is replaced,
/// which takes 10 s to end, some to start and to join, and its image has to be there.
const AWAY_LIMIT: Duration = Duration::from_secs(90);

/// How much of a pod's log is looked at: all that `tailscaled` says in its first half minute, some 200 lines.
const LOG_LINES: i64 = 300;

/// Applies the plan and waits until every node's router has joined the tailnet. Running it again changes nothing.
///
/// # Errors
/// [`RouterError`]: names the node and what Kubernetes or the router's log says. What was applied stays.
/// # Cancellation
/// Dropping the future stops the waiting; what was applied stays.
pub async fn ensure(
    api: &ApiServer,
    plan: &RouterPlan,
    progress: &mut (dyn FnMut(RouterProgress) + Send),
) -> Result<RouterStatus, RouterError> {
    refuse_other_cluster(api, plan).await?;
    await_removal(api).await?;
    let mut new_key = false;
    for manifest in manifests(plan) {
        let applied = apply(api, &manifest).await?;
        new_key |= matches!(manifest.0, Object::Secret(_)) && applied == Applied::Changed;
        progress(RouterProgress::Applied { object: manifest.title(), applied });
    }
    if new_key {
        restart_unready(api, progress).await?;
    }
    rollout(api, progress).await
}

/// What is there now; `None` if no router was deployed.
///
/// # Errors
/// [`RouterError::Kube`].
pub async fn status(api: &ApiServer) -> Result<Option<RouterStatus>, RouterError> {
    Ok(observe(api).await?.map(|observed| observed.status()))
}

/// A cluster holds one router. Another id's would be taken over silently otherwise. Also: a first router needs a key.
async fn refuse_other_cluster(api: &ApiServer, plan: &RouterPlan) -> Result<(), RouterError> {
    let wanted = plan.cluster.as_str();
    let there =
        api.read(|c| async move { Api::<DaemonSet>::namespaced(c, NAMESPACE).get_metadata_opt(DAEMON_SET).await });
    match there.await? {
        None if plan.auth_key.is_none() => Err(RouterError::NoKey { cluster: wanted.to_owned() }),
        Some(found) => {
            refuse_foreign(&found.metadata, || format!("DaemonSet/{DAEMON_SET}"))?;
            match found.labels().get(CLUSTER_LABEL) {
                Some(here) if here != wanted => {
                    Err(RouterError::OtherCluster { here: here.clone(), wanted: wanted.to_owned() })
                }
                _ => Ok(()),
            }
        }
        None => Ok(()),
    }
}

/// Waits while the namespace of an earlier router is on its way out: nothing can be made in it until it is gone.
pub(super) async fn await_removal(api: &ApiServer) -> Result<(), RouterError> {
    let begun = Instant::now();
    loop {
        let found = api.read(|c| async move { Api::<Namespace>::all(c).get_metadata_opt(NAMESPACE).await }).await?;
        let Some(version) = found.filter(|n| n.metadata.deletion_timestamp.is_some()).map(|n| version(&n.metadata))
        else {
            return Ok(());
        };
        if begun.elapsed() > REMOVAL_LIMIT {
            let what = format!("namespace {NAMESPACE} did not go away");
            return Err(RouterError::Timeout { what, after: REMOVAL_LIMIT });
        }
        next_change(&Api::<Namespace>::all(api.client()), NAMESPACE, &version).await;
    }
}

async fn apply(api: &ApiServer, manifest: &Manifest) -> Result<Applied, RouterError> {
    match &manifest.0 {
        Object::Namespace(o) => apply_object(api, Api::all, manifest, o).await,
        Object::ServiceAccount(o) => apply_object(api, in_namespace, manifest, o).await,
        Object::ConfigMap(o) => apply_object(api, in_namespace, manifest, o).await,
        Object::Secret(o) => apply_object(api, in_namespace, manifest, o).await,
        Object::DaemonSet(o) => apply_object(api, in_namespace, manifest, o).await,
    }
}

pub(super) fn in_namespace<K>(client: kube::Client) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client, NAMESPACE)
}

async fn apply_object<K>(
    api: &ApiServer,
    at: fn(kube::Client) -> Api<K>,
    manifest: &Manifest,
    object: &K,
) -> Result<Applied, RouterError>
where
    K: Resource<DynamicType = ()> + Metadata<Ty = ObjectMeta> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.metadata().name.as_deref().unwrap_or_default();
    let before = api.read(|c| async move { at(c).get_metadata_opt(name).await }).await?;
    if let Some(before) = &before {
        refuse_foreign(&before.metadata, || manifest.title())?;
    }
    // By force, because it is ours: what somebody else changed in it is set back.
    let how = PatchParams::apply(FIELD_MANAGER).force();
    let after = api.read(|c| {
        let how = how.clone();
        async move { at(c).patch(name, &how, &Patch::Apply(object)).await }
    });
    let after = after.await?;
    Ok(match before {
        None => Applied::Created,
        Some(before) if version(&before.metadata) == version(after.metadata()) => Applied::Unchanged,
        Some(_) => Applied::Changed,
    })
}

pub(super) fn refuse_foreign(found: &ObjectMeta, title: impl FnOnce() -> String) -> Result<(), RouterError> {
    let (label, value) = MANAGED_BY;
    let ours = found.labels.as_ref().and_then(|l| l.get(label)).is_some_and(|v| v == value);
    if ours { Ok(()) } else { Err(RouterError::Foreign { object: title() }) }
}

fn version(meta: &ObjectMeta) -> String {
    meta.resource_version.clone().unwrap_or_default()
}

/// Pods that could not join with the old key wait longer and longer between their attempts; new ones begin at once.
/// Routers that have joined are left alone.
async fn restart_unready(
    api: &ApiServer,
    progress: &mut (dyn FnMut(RouterProgress) + Send),
) -> Result<(), RouterError> {
    for pod in pods(api).await?.iter().filter(|pod| !is_ready(pod)) {
        let name = pod.name_any();
        let deleted = api.write(|c| {
            let name = name.clone();
            async move { in_namespace::<Pod>(c).delete(&name, &DeleteParams::default()).await }
        });
        ignore_missing(deleted.await.map(drop))?;
        progress(RouterProgress::Restarted { pod: name });
    }
    Ok(())
}

/// Makes the routers of these Kubernetes nodes anew and waits until all routers are ready. For routers that take themselves for
/// members although the server does not know them any more: `tailscaled` goes on asking and stays ready.
///
/// # Errors
/// As [`ensure`].
/// # Cancellation
/// Dropping the future stops the waiting; new pods come up by themselves.
pub async fn restart(
    api: &ApiServer,
    nodes: &[String],
    progress: &mut (dyn FnMut(RouterProgress) + Send),
) -> Result<RouterStatus, RouterError> {
    let on_node = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(|n| nodes.contains(n));
    let old: Vec<String> = pods(api).await?.iter().filter(|pod| on_node(pod)).map(|pod| pod.name_any()).collect();
    for name in &old {
        let deleted = api.write(|c| async move { in_namespace::<Pod>(c).delete(name, &DeleteParams::default()).await });
        ignore_missing(deleted.await.map(drop))?;
        progress(RouterProgress::Restarted { pod: name.clone() });
    }
    // The DaemonSet counts them as ready until they are gone.
    let begun = Instant::now();
    while pods(api).await?.iter().any(|pod| old.contains(&pod.name_any())) {
        if begun.elapsed() > REMOVAL_LIMIT {
            let what = format!("the pods {} did not end", old.join(", "));
            return Err(RouterError::Timeout { what, after: REMOVAL_LIMIT });
        }
        sleep(WATCHLESS_PAUSE).await;
    }
    rollout(api, progress).await
}

async fn rollout(
    api: &ApiServer,
    progress: &mut (dyn FnMut(RouterProgress) + Send),
) -> Result<RouterStatus, RouterError> {
    let begun = Instant::now();
    let mut patience = Patience::default();
    let mut told = None;
    let mut away_since = None;
    loop {
        let observed = match observe(api).await {
            Err(RouterError::Kube(why)) if why.class() == Class::Unreachable => {
                let since: Instant = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY_LIMIT {
                    return Err(why.into());
                }
                let line = RouterProgress::Away { why: why.cause.to_string() };
                if told.as_ref() != Some(&line) {
                    progress(line.clone());
                    told = Some(line);
                }
                // There is nothing to watch while nothing answers.
                sleep(WATCHLESS_PAUSE).await;
                continue;
            }
            other => other?.ok_or(RouterError::Removed)?,
        };
        away_since = None;
        let status = observed.status();
        if status.is_ready() {
            progress(RouterProgress::Ready { desired: status.desired });
            return Ok(status);
        }
        let findings = observed.findings();
        let detail = detail(&findings, &status);
        let line = RouterProgress::Waiting { ready: status.ready, desired: status.desired, detail: detail.clone() };
        if told.as_ref() != Some(&line) {
            progress(line.clone());
            told = Some(line);
        }
        patience.judge(Instant::now(), &findings)?;
        if begun.elapsed() > ROLLOUT_LIMIT {
            if status.desired == 0 && observed.is_counted() {
                return Err(RouterError::NoNodes);
            }
            let what = format!("{} of {} routers were ready ({detail})", status.ready, status.desired);
            return Err(RouterError::Timeout { what, after: ROLLOUT_LIMIT });
        }
        let sets = in_namespace::<DaemonSet>(api.client());
        next_change(&sets, DAEMON_SET, &version(&observed.daemon_set.metadata)).await;
    }
}

async fn observe(api: &ApiServer) -> Result<Option<Observed>, RouterError> {
    let (set, pods, events) = tokio::join!(
        api.read(|c| async move { in_namespace::<DaemonSet>(c).get_opt(DAEMON_SET).await }),
        pods(api),
        api.read(|c| async move { in_namespace::<Event>(c).list(&ListParams::default()).await }),
    );
    let Some(daemon_set) = set? else { return Ok(None) };
    let mut observed = Observed { daemon_set, pods: pods?, events: events?.items, ..Observed::default() };
    for pod in observed.pods.iter().filter(|pod| wants_log(pod)) {
        let name = pod.name_any();
        let how = LogParams { container: Some(CONTAINER.into()), tail_lines: Some(LOG_LINES), ..LogParams::default() };
        let log = api.read(|c| {
            let (name, how) = (name.clone(), how.clone());
            async move { in_namespace::<Pod>(c).logs(&name, &how).await }
        });
        // A log that can't be had (the container is just being replaced) is no news about the router.
        if let Ok(log) = log.await {
            observed.logs.insert(name, log);
        }
    }
    Ok(Some(observed))
}

async fn pods(api: &ApiServer) -> Result<Vec<Pod>, RouterError> {
    let how = ListParams::default().labels(&format!("app.kubernetes.io/name={DAEMON_SET}"));
    let list = api.read(|c| {
        let how = how.clone();
        async move { in_namespace::<Pod>(c).list(&how).await }
    });
    Ok(list.await?.items)
}

/// Returns when the object has changed since `version`, at the latest after [`LOOK_EVERY`]. Only a wake-up: the caller
/// looks for itself, so errors don't matter.
async fn next_change<K>(api: &Api<K>, name: &str, version: &str)
where
    K: Clone + Debug + DeserializeOwned,
{
    let how = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(60);
    let change = async {
        match api.watch(&how, version).await {
            Ok(changes) => pin!(changes).next().await.is_some_and(|change| change.is_ok()),
            Err(_) => false,
        }
    };
    if let Ok(false) = timeout(LOOK_EVERY, change).await {
        sleep(WATCHLESS_PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
