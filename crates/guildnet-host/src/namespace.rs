//! `headscale namespace`: a cluster's namespace and keys, written to a file that can be carried to where they are needed.

use std::path::{Path, PathBuf};

use guildnet_headscale::NamespaceFile;
use guildnet_model::{Class, ClusterId, Networks, SiteNumber};
use serde::Serialize;

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
