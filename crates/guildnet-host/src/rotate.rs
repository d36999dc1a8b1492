//! `headscale keys rotate`: one cluster's connector gets a new identity, and on request its routers a new key, without a cut of
//! any other cluster.
//!
//! The new identity is made in a folder beside the old one and has to prove itself while the old connector still serves. Then
//! the record names the new folder: the Host App stops that one connector and starts it again. Only when it has joined is the
//! old node deleted on the server, and the old folder with it. Until then every failure goes back to the old identity.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use guildnet_headscale::NamespaceFile;
use guildnet_model::{Class, ClusterId, ConnectorState, NodeInfo, StartConnector};
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    HostError, Progress, Settings, add,
    client::HostClient,
    cluster::ClusterActor,
    error::Explained as _,
    fleet,
    host::Deps,
    reach::{Via, Ways, reach},
    router,
    server::Server,
    up::{Known, file_of},
};

/// How long the server may take to admit the new identity: joining takes about two seconds.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// How long the new identity may then take to reach a router, where the old one reaches one.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How often the Host App is asked whether it serves with the new identity. It has no stream of changes.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotated {
    /// The cluster.
    pub id: ClusterId,
    /// The new node's name in the tailnet.
    pub node: String,
    /// Its node key, as `nodekey:<hex>`: public.
    pub node_key: String,
    /// Whether the routers have a new key.
    pub router_key: bool,
    /// What of the old identity is left, and why.
    pub left: Vec<String>,
}

/// See [`crate::keys_rotate`].
pub(crate) async fn keys_rotate(
    settings: &Settings,
    id: &ClusterId,
    router: bool,
    progress: &dyn Progress,
) -> Result<Rotated, HostError> {
    rotate(settings, id, router, progress).await.map_err(|e| if e.cluster().is_some() { e } else { e.of_cluster(id) })
}

async fn rotate(
    settings: &Settings,
    id: &ClusterId,
    router: bool,
    progress: &dyn Progress,
) -> Result<Rotated, HostError> {
    let known = Known::read(settings).await?;
    let mut record = known.record(id).ok_or_else(|| add::unknown(id, &known))?.clone();
    let server = known.server(settings)?.filter(|s| s.has_key() && *s.url() == record.login_server);
    let server = server.ok_or_else(|| no_api_key(id))?;
    progress.step(Some(id), &format!("Headscale {}", server.answers().await?));
    let _alone = alone(&record)?;
    let host = HostClient::discover(&settings.home)?;
    if router {
        record = rotate_router(settings, record, &server, host.as_ref(), progress).await?;
    }
    let connectors = Deps::real()?.connectors;
    rotate_connector(settings, &record, &server, host.as_ref(), &connectors, progress).await.map(|(node, left)| {
        Rotated { id: id.clone(), node: node.name, node_key: node.node_key, router_key: router, left }
    })
}

fn no_api_key(id: &ClusterId) -> HostError {
    HostError::new(Class::Credentials, "no API key of its Headscale server is known here, so no key can be made").with_hint(
        format!(
            "give one: --headscale-api-key-file FILE; or where there is one: guildnet headscale namespace {id}, then here: \
             guildnet cluster add {id} --replace --from FILE --state-dir NEW_DIR"
        ),
    )
}

/// One rotation of a cluster at a time: a second one would take the first one's new folder for a leftover.
fn alone(record: &ClusterRecord) -> Result<Option<File>, HostError> {
    // A connector that never joined has no folder, and nothing to rotate from.
    let Ok(folder) = File::open(&record.state_path) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) => Ok(Some(folder)),
        Err(TryLockError::WouldBlock) => Err(HostError::new(Class::Conflict, "its keys are being rotated already")
            .with_hint("wait until the other command has ended")),
        Err(TryLockError::Error(why)) => {
            Err(HostError::new(Class::Failed, format!("{}: {why}", record.state_path.display())))
        }
    }
}

/// A new key for the routers, in the cluster's Secret before the old one is ended. Routers that have joined are not restarted.
async fn rotate_router(
    settings: &Settings,
    record: ClusterRecord,
    server: &Server,
    host: Option<&HostClient>,
    progress: &dyn Progress,
) -> Result<ClusterRecord, HostError> {
    let id = &record.id;
    let access = fleet::spec(&record)?.access;
    let connectors = Deps::real()?.connectors;
    let reached = reach(id, &access, Via::Auto, &Ways { host, record: Some(&record), connectors: &connectors }).await?;
    let outcome = async {
        let features = server.features().await?;
        let held = NamespaceFile { router_auth_key: None, ..file_of(&record) };
        let (made, _) = server.ensure_router_key(&held).await?;
        let plan = router::plan(settings, &made, &record.routes, features);
        match router::deploy(&reached.api, &plan, progress).await {
            Ok(_) => Ok(made),
            Err(why) => {
                if let Some(unused) = &made.router_auth_key {
                    ended(server, id, unused).await;
                }
                Err(why)
            }
        }
    }
    .await;
    reached.close().await;
    let made = outcome?;
    let old = record.router_auth_key.clone();
    let record = ClusterRecord {
        router_auth_key: made.router_auth_key,
        namespace_id: made.namespace_id,
        updated: Timestamp::now(),
        ..record
    };
    router::keep(settings, &record).await?;
    if let Some(old) = &old {
        ended(server, &record.id, old).await;
    }
    progress.step(Some(&record.id), "router key replaced");
    Ok(record)
}

/// Ends a key that nobody needs any more. It ends by itself within a day, so a failure is only noted.
async fn ended(server: &Server, id: &ClusterId, key: &guildnet_model::Secret<String>) {
    if let Err(why) = server.end_key(id, key).await {
        tracing::warn!(cluster = %id, %why, "a router key that is not used any more is not ended");
    }
}

/// The new identity's folder: beside the old one, with `.2` behind its name or without it. No cluster's id has a dot.
fn other_folder(old: &Path) -> PathBuf {
    let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
    old.with_file_name(name.strip_suffix(".2").map_or_else(|| format!("{name}.2"), str::to_owned))
}

async fn rotate_connector(
    settings: &Settings,
    old: &ClusterRecord,
    server: &Server,
    host: Option<&HostClient>,
    connectors: &Arc<dyn StartConnector>,
    progress: &dyn Progress,
) -> Result<(NodeInfo, Vec<String>), HostError> {
    let id = &old.id;
    // Read before anything is changed: without it the old node could not be told from other devices' afterwards.
    let old_key = guildnet_tailnet::saved_node_key(&old.state_path).explained()?;
    let usable_before = match host {
        Some(host) if !old.disconnected => Some(host.cluster(id).await?.usable),
        _ => None,
    };
    let folder = other_folder(&old.state_path);
    discard(&folder)?;
    let made = server.new_client_key(&file_of(old)).await?;
    progress.step(Some(id), "client key made");
    let new = ClusterRecord {
        state_path: folder,
        client_auth_key: made.client_auth_key,
        namespace_id: made.namespace_id,
        updated: Timestamp::now(),
        ..old.clone()
    };
    let node = match prove(&new, connectors, usable_before).await {
        Ok(node) => node,
        Err((node, why)) => {
            undo(server, &new, node.as_ref()).await;
            return Err(unchanged(&why));
        }
    };
    progress.step(Some(id), &format!("joined as {}", node.name));
    let switched = match router::keep(settings, &new).await {
        Ok(()) => taken_over(host.filter(|_| !old.disconnected), id, &node, usable_before).await,
        Err(why) => Err(why),
    };
    if let Err(why) = switched {
        // Whatever this one says: the old identity is whole, and the next start takes the record as it is then.
        let back = router::keep(settings, old).await;
        if back.is_ok() {
            undo(server, &new, Some(&node)).await;
        }
        return Err(back.map_or_else(|worse| worse.while_doing("going back to the old identity"), |()| unchanged(&why)));
    }
    progress.step(Some(id), "the new identity is in use");
    Ok((node, retire(server, old, old_key, progress).await))
}

fn unchanged(why: &HostError) -> HostError {
    let error =
        HostError::new(guildnet_model::Explain::class(why), format!("the old identity is kept: {}", why.message()));
    match guildnet_model::Explain::hint(why) {
        Some(hint) => error.with_hint(hint),
        None => error.with_hint("run 'guildnet verify', mend what it names, then run the command again"),
    }
}

/// Removes what an earlier rotation that broke off left in the folder.
fn discard(folder: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(folder) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            Err(HostError::new(Class::Failed, format!("{} can't be removed: {why}", folder.display()))
                .with_hint("remove it by hand, then run the command again"))
        }
        _ => Ok(()),
    }
}

/// Joins with the new identity, beside the old connector. An error brings the node along, if the server has made it.
async fn prove(
    new: &ClusterRecord,
    connectors: &Arc<dyn StartConnector>,
    usable_before: Option<bool>,
) -> Result<NodeInfo, (Option<NodeInfo>, HostError)> {
    let spec = fleet::spec(new).map_err(|why| (None, why))?;
    let actor = ClusterActor::spawn(spec, Arc::clone(connectors));
    let joined = actor.handle.registered(JOIN_LIMIT).await;
    let outcome = match (&joined.state, joined.node) {
        (ConnectorState::NeedsKey { why }, node) => {
            Err((node, HostError::new(Class::Credentials, format!("the server refuses the new key: {why}"))))
        }
        (state, None) => {
            let said = format!("the new identity did not join within {JOIN_LIMIT:?}: {state}");
            Err((None, HostError::new(Class::Unreachable, said)))
        }
        (_, Some(node)) if usable_before == Some(true) => {
            let status = actor.handle.settled(READY_LIMIT).await;
            if status.is_usable() {
                Ok(node)
            } else {
                let said = format!("the new identity is not ready after {READY_LIMIT:?}: {}", status.state);
                Err((Some(node), HostError::new(Class::Unreachable, said)))
            }
        }
        (_, Some(node)) => Ok(node),
    };
    actor.stop().await;
    outcome
}

/// Waits until the running Host App serves with the new identity.
async fn taken_over(
    host: Option<&HostClient>,
    id: &ClusterId,
    node: &NodeInfo,
    usable_before: Option<bool>,
) -> Result<(), HostError> {
    let Some(host) = host else { return Ok(()) };
    let end = Instant::now() + READY_LIMIT;
    loop {
        let seen = host.cluster(id).await?;
        if seen.node_key.as_deref() == Some(&node.node_key) && (seen.usable || usable_before != Some(true)) {
            return Ok(());
        }
        if Instant::now() >= end {
            let said =
                format!("the Host App does not serve with the new identity after {READY_LIMIT:?}: {}", seen.detail);
            return Err(HostError::new(Class::Unreachable, said));
        }
        sleep(ASK_EVERY).await;
    }
}

/// Takes the new identity away again. What can't be is harmless: a node that is never connected, a folder that the next
/// rotation discards.
async fn undo(server: &Server, new: &ClusterRecord, node: Option<&NodeInfo>) {
    if let Some(node) = node
        && let Err(why) = server.remove_connector(&new.id, &node.node_key).await
    {
        tracing::warn!(cluster = %new.id, %why, "the unused node is not removed");
    }
    if let Err(why) = discard(&new.state_path) {
        tracing::warn!(cluster = %new.id, %why, "the unused identity is not removed");
    }
}

/// Deletes the old node on the server, now that its connector is stopped, and the old folder. Returns what is left.
async fn retire(server: &Server, old: &ClusterRecord, old_key: Option<String>, progress: &dyn Progress) -> Vec<String> {
    let mut left = Vec::new();
    if let Some(key) = old_key {
        match server.remove_connector(&old.id, &key).await {
            Ok(cleared) => {
                cleared.removed.iter().for_each(|what| progress.step(Some(&old.id), &format!("removed: {what}")));
                left.extend(cleared.left);
                left.extend(cleared.unfinished);
            }
            Err(why) => left.push(format!("the old node on Headscale ({key}): {}", why.message())),
        }
    }
    match fs::remove_dir_all(&old.state_path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            left.push(format!("the old identity in {}: {why}", old.state_path.display()));
        }
        _ => {}
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, FakeConnectors};

    fn record(state_path: PathBuf) -> ClusterRecord {
        ClusterRecord { state_path, ..fake::record("a") }
    }

    #[test]
    fn the_new_folder_stands_beside_the_old_one_and_the_next_takes_its_name_again() {
        let first = PathBuf::from("/home/p/.guildnet/tsnet/cluster-a");
        let second = other_folder(&first);
        assert_eq!(second, PathBuf::from("/home/p/.guildnet/tsnet/cluster-a.2"));
        assert_eq!(other_folder(&second), first);
    }

    #[test]
    fn two_rotations_at_once_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = record(folder.path().to_owned());
        let first = alone(&record).expect("the only one");
        assert_eq!(guildnet_model::Explain::class(&alone(&record).expect_err("the second")), Class::Conflict);
        drop(first);
        assert!(alone(&record).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_that_does_not_join_is_not_taken() {
        let connectors: Arc<dyn StartConnector> = Arc::new(FakeConnectors::default());
        let (node, why) =
            prove(&record("/nonexistent".into()), &connectors, Some(true)).await.expect_err("never joins");
        assert_eq!(node, None);
        assert!(unchanged(&why).to_string().starts_with("the old identity is kept: the new identity did not join"));
    }
}
