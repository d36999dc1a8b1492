//! Waiting until the Host App's connectors have joined their tailnets, and a new key for one that is refused.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use guildnet_headscale::NamespaceFile;
use guildnet_model::{Class, ClusterId};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{ClusterUp, Known, file_of};
use crate::{
    ClusterStatus, HostError, Progress, Settings,
    client::HostClient,
    error::Explained as _,
    fleet,
    router::{self, RouterRequest, Via},
    server::{Keys, Wanted},
};

/// How long connectors may take to become usable: joining takes about two seconds, a router whose pod was just made anew
/// some ten more until the server shows it online.
const JOIN_LIMIT: Duration = Duration::from_secs(45);

/// How often the Host App is asked meanwhile. It has no stream of changes.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The state of a connector that the server refuses, as the Host App names it.
const NEEDS_KEY: &str = "needs_key";

/// The clusters whose connector the server refuses now, with its node key, as a running Host App tells it. Nothing known
/// counts as none: [`wait`] finds out later.
pub(super) async fn refused(host: Option<&HostClient>) -> BTreeMap<ClusterId, Option<String>> {
    let Some(host) = host else { return BTreeMap::new() };
    let clusters = host.clusters().await.unwrap_or_default();
    clusters.into_iter().filter(|c| c.state == NEEDS_KEY).map(|c| (c.id, c.node_key)).collect()
}

/// Waits until the connectors of all clusters that went well so far are usable. One that is refused gets a new key, once,
/// if there is an API key to make it with. What does not come up is noted in its cluster's outcome.
///
/// # Errors
/// The Host App does not answer.
pub(super) async fn wait(
    settings: &Settings,
    host: &HostClient,
    clusters: &mut [ClusterUp],
    progress: &dyn Progress,
) -> Result<(), HostError> {
    let mut waiting: Vec<ClusterId> = clusters.iter().filter(|c| c.outcome.is_ok()).map(|c| c.id.clone()).collect();
    let mut healed: Vec<ClusterId> = Vec::new();
    let mut told: BTreeMap<ClusterId, String> = BTreeMap::new();
    let mut end = Instant::now() + JOIN_LIMIT;
    loop {
        let seen = host.clusters().await?;
        waiting.retain(|id| {
            let joined = seen.iter().any(|s| s.id == *id && s.usable);
            if joined {
                progress.step(Some(id), "connector ready");
            }
            !joined
        });
        for state in seen.iter().filter(|s| waiting.contains(&s.id)) {
            if told.insert(state.id.clone(), state.detail.clone()).is_none_or(|before| before != state.detail) {
                progress.step(Some(&state.id), &format!("connector: {}", state.detail));
            }
        }
        let refused: Vec<(ClusterId, Option<String>)> = seen
            .iter()
            .filter(|s| s.state == NEEDS_KEY && waiting.contains(&s.id) && !healed.contains(&s.id))
            .map(|s| (s.id.clone(), s.node_key.clone()))
            .collect();
        let mut rekeyed = Vec::new();
        for (id, node_key) in refused {
            progress.step(Some(&id), "the server refuses the connector: making a new key");
            match heal(settings, &id, node_key.as_deref(), progress).await {
                Err(why) => {
                    waiting.retain(|w| *w != id);
                    note(clusters, &id, why);
                }
                Ok(routers_too) => {
                    host.reload().await?;
                    rekeyed.extend(routers_too.then(|| id.clone()));
                }
            }
            healed.push(id);
        }
        if !rekeyed.is_empty() {
            give_routers(settings, &rekeyed, progress).await;
            end = Instant::now() + JOIN_LIMIT;
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            for id in waiting {
                note(clusters, &id, late(seen.iter().find(|s| s.id == id)));
            }
            return Ok(());
        }
        sleep(ASK_EVERY).await;
    }
}

fn note(clusters: &mut [ClusterUp], id: &ClusterId, why: HostError) {
    if let Some(cluster) = clusters.iter_mut().find(|c| c.id == *id) {
        cluster.outcome = Err(why.of_cluster(id));
    }
}

fn late(seen: Option<&ClusterStatus>) -> HostError {
    let state = seen.map_or("the Host App does not serve it", |s| s.detail.as_str());
    let class = if seen.is_some_and(|s| s.state == NEEDS_KEY) { Class::Credentials } else { Class::Unreachable };
    HostError::new(class, format!("the connector is not ready after {JOIN_LIMIT:?}: {state}"))
        .with_hint("run 'guildnet verify' to see which link is broken")
}

/// Gives routers their new key where their cluster is reached directly: without routers there is no other way. The server did
/// not know the old one, so it does not know them either: it was restored from a backup.
async fn give_routers(settings: &Settings, clusters: &[ClusterId], progress: &dyn Progress) {
    let given = clusters.iter().map(|id| async move {
        let request = RouterRequest { id: id.clone(), kubeconfig: None, from: None, routes: None, via: Via::Direct };
        if let Err(why) = router::router_ensure(settings, request, progress).await {
            // The cluster's outcome is told by its connector, which may reach a router all the same.
            let hint = format!("guildnet router manifest {id} --with-key | kubectl apply --server-side -f -");
            progress.step(
                Some(id),
                &format!("its routers did not get their new key ({}); on its side: {hint}", why.message()),
            );
        }
    });
    join_all(given).await;
}

/// Makes a new client key and stores it; an expired node of this device is deleted, so that a new one can join. `true`: the
/// routers' key is new too.
async fn heal(
    settings: &Settings,
    id: &ClusterId,
    node_key: Option<&str>,
    progress: &dyn Progress,
) -> Result<bool, HostError> {
    let known = Known::read(settings).await?;
    let (Some(record), Some(server)) = (known.record(id), known.server(settings)?) else {
        return Err(needs_key(id));
    };
    if !server.has_key() {
        return Err(needs_key(id));
    }
    server.forget_expired(id, node_key, &fleet::hostname(id)).await?;
    let wanted = Wanted {
        cluster: id.clone(),
        routes: record.routes.clone(),
        keys: Keys::Both,
        site: record.site,
        existing: Some(NamespaceFile { client_auth_key: None, ..file_of(record) }),
    };
    let made = server.set_up(&[wanted], false, progress).await?;
    let mut record = record.clone();
    let old_router_key = record.router_auth_key.clone();
    for file in made {
        record.namespace_id = file.namespace_id;
        record.client_auth_key = file.client_auth_key;
        record.router_auth_key = file.router_auth_key;
    }
    record.updated = Timestamp::now();
    let store = fleet::open_store(settings).await?;
    let stored = store.replace(&record).await.explained();
    store.close().await;
    stored.map(|()| record.router_auth_key != old_router_key)
}

/// The error for a connector that the server refuses where no new key can be made.
pub(crate) fn needs_key(id: &ClusterId) -> HostError {
    HostError::new(Class::Credentials, "the server refuses the connector's key, and there is no Headscale API key here to make another").with_hint(
        format!(
            "where there is an API key: guildnet headscale namespace {id}; then here: guildnet cluster add {id} --replace --kubeconfig FILE --from tmp/cluster-{id}-headscale.json"
        ),
    )
}
