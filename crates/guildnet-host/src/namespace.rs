//! `headscale namespace`: a cluster's namespace and keys, written to a file that can be carried to where they are needed.

use std::path::{Path, PathBuf};

use guildnet_headscale::{NamespaceFile, Node, clients_of, routers_of};
use guildnet_model::{Class, ClusterId, Networks, SiteNumber};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    Consent, HostError, Progress, Settings,
    error::Explained as _,
    server::{Keys, Wanted},
    up::Known,
};

/// What `headscale namespace` made or found. No key in it: those are in the file only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceReport {
    /// The namespace's name.
    pub namespace: String,
    /// Its number on the server, which is the site number unless told otherwise.
    pub site_number: Option<SiteNumber>,
    /// The file that holds the keys (mode 0600).
    pub file: PathBuf,
    /// Whether any of the file's keys was made now; `false`: they are still valid.
    pub new_keys: bool,
}

/// Where the file stands unless told otherwise: below the working folder.
pub(crate) fn usual_file(id: &ClusterId) -> PathBuf {
    PathBuf::from(format!("tmp/cluster-{id}-headscale.json"))
}

/// See [`crate::namespace_and_keys`].
pub(crate) async fn namespace_and_keys(
    settings: &Settings,
    id: &ClusterId,
    routes: Option<Networks>,
    file: Option<&Path>,
    consent: Consent,
    progress: &dyn Progress,
) -> Result<NamespaceReport, HostError> {
    let file = file.map_or_else(|| usual_file(id), Path::to_owned);
    let known = Known::read(settings).await?;
    let server = known.server(settings)?.ok_or_else(|| {
        HostError::new(Class::Usage, "no Headscale server is known")
            .with_hint("give one: --headscale-url https://HOST:PORT")
    })?;
    let existing = if file.exists() { Some(NamespaceFile::read(&file).explained()?) } else { None };
    if let Some(other) = existing.as_ref().filter(|f| f.cluster != *id) {
        return Err(HostError::new(
            Class::Conflict,
            format!("{} is the file of cluster {}", file.display(), other.cluster),
        )
        .with_hint("name another file with --file"));
    }
    let existing = existing.filter(|f| f.login_server == *server.url());
    let record = known.record(id);
    let routes = routes
        .or_else(|| settings.routes.clone())
        .or_else(|| existing.as_ref().and_then(|f| f.routes.clone()))
        .or_else(|| record.map(|r| r.routes.clone()))
        .ok_or_else(|| {
            HostError::new(
                Class::Usage,
                format!("the networks of cluster {id} are not known; the policy has to name them"),
            )
            .with_hint("give its Pod and Service networks: --routes 10.96.0.0/16,10.244.0.0/16")
        })?;
    let keys = |f: &NamespaceFile| (f.router_auth_key.clone(), f.client_auth_key.clone());
    let before = existing.as_ref().map(keys);
    let wanted = Wanted {
        cluster: id.clone(),
        routes,
        keys: Keys::Both,
        site: existing.as_ref().and_then(|f| f.site).or_else(|| record.and_then(|r| r.site)),
        existing,
    };
    let made = server.set_up(&[wanted], consent, progress).await.map_err(|e| e.of_cluster(id))?;
    let made = made.into_iter().next().ok_or_else(|| HostError::new(Class::Failed, "the server made no keys"))?;
    made.write(&file).explained()?;
    Ok(NamespaceReport {
        namespace: id.namespace(),
        site_number: made.site,
        file,
        new_keys: before != Some(keys(&made)),
    })
}

/// A cluster's namespace on the Headscale server, and what has joined by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceShown {
    /// The namespace's name, `cluster-<id>`.
    pub name: String,
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Whether the server has it.
    pub exists: bool,
    /// Whether the cluster is known on this device.
    pub known: bool,
    /// Nodes that are tagged as the cluster's routers.
    pub routers: usize,
    /// Those of them that are connected to the server now.
    pub routers_online: usize,
    /// Nodes that are tagged as the cluster's connectors, of all devices.
    pub connectors: usize,
    /// Those of them that are connected to the server now.
    pub connectors_online: usize,
}

/// The namespaces of clusters on the server, and those that are missing there for clusters that are known here, by cluster.
/// What others have on the server is left out.
///
/// # Errors
/// No server is known; it has no API key here, does not answer, or refuses.
pub(crate) async fn namespaces(settings: &Settings) -> Result<Vec<NamespaceShown>, HostError> {
    let known = Known::read(settings).await?;
    let server = known.server(settings)?.ok_or_else(|| {
        HostError::new(Class::Usage, "no Headscale server is known")
            .with_hint("give one: --headscale-url https://HOST:PORT --headscale-api-key-file FILE")
    })?;
    let (users, nodes) = (server.users().await?, server.nodes().await?);
    let of_server = users.iter().filter_map(|name| ClusterId::of_namespace(name));
    let mut clusters: Vec<ClusterId> = of_server.chain(known.records.iter().map(|r| r.id.clone())).collect();
    clusters.sort();
    clusters.dedup();
    let shown = |cluster: ClusterId| {
        let (routers, connectors) = (routers_of(&nodes, &cluster), clients_of(&nodes, &cluster));
        let online = |nodes: &[&Node]| nodes.iter().filter(|n| n.online).count();
        NamespaceShown {
            name: cluster.namespace(),
            exists: users.contains(&cluster.namespace()),
            known: known.record(&cluster).is_some(),
            routers_online: online(&routers),
            routers: routers.len(),
            connectors_online: online(&connectors),
            connectors: connectors.len(),
            cluster,
        }
    };
    Ok(clusters.into_iter().map(shown).collect())
}
