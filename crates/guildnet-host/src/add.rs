//! The clusters of the store: adding one (also on a device that has no API key and can't reach the cluster directly), and
//! listing them. `remove.rs` takes one out again.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use guildnet_headscale::NamespaceFile;
use guildnet_kube::ClusterAccess;
use guildnet_model::{
    Class, ClusterId, ConnectorState, Explain as _, Networks, Secret, SiteNumber, StartConnector, Target,
};
use guildnet_store::{ClusterRecord, HeadscaleRecord};
use jiff::Timestamp;
use serde::Serialize;
use url::Url;
use utoipa::ToSchema;

use crate::{
    Consent, HostError, KubeconfigRef, Progress, Settings,
    client::HostClient,
    cluster::ClusterActor,
    error::Explained as _,
    fleet,
    forward::Ways,
    host::Deps,
    kubeconfigs::kubeconfigs_follow,
    networks::{Before, Settled, settle},
    preflight::{self, Purpose},
    reach::directly,
    server::{Keys, Server, Wanted},
    up::{Known, inspect, join, moved, plan},
};

/// How long the connector may take to be admitted when a cluster is added.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// How long a connector that was admitted is given to reach the API server, which may well not be there yet.
const LOOK_LIMIT: Duration = Duration::from_secs(8);

/// What `cluster add` was given.
#[derive(Clone, Debug)]
pub struct AddRequest {
    /// The cluster.
    pub id: ClusterId,
    /// Its kubeconfig.
    pub kubeconfig: KubeconfigRef,
    /// The namespace file made elsewhere (`guildnet headscale namespace`), for a device without API key.
    pub from: Option<PathBuf>,
    /// The Headscale server, if neither the file nor the settings name it.
    pub login_server: Option<Url>,
    /// Preauth key for the connector (content of `--client-key-file`).
    pub client_key: Option<Secret<String>>,
    /// Networks, if neither the file nor the settings name them.
    pub routes: Option<Networks>,
    /// Where the connector keeps its identity, if not below the home folder.
    pub state_dir: Option<PathBuf>,
    /// Site number, if not the namespace's.
    pub site: Option<SiteNumber>,
    /// Replace a cluster of that id.
    pub replace: bool,
    /// Let nothing through the Host App that changes something there. `false` leaves a replaced cluster's switch as it is.
    pub read_only: bool,
    /// What may be done to what others have on the Headscale server.
    pub consent: Consent,
}

/// A cluster as the store knows it: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfo {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ClusterId,
    /// The kubeconfig's context that it came from.
    pub context: String,
    /// The API server's URL, as the kubeconfig had it.
    pub server: String,
    /// The API server's address inside the cluster, once seen.
    pub api_address: Option<String>,
    /// The Headscale server.
    #[schema(value_type = String)]
    pub ts_login_server: Url,
    /// Its networks.
    #[schema(value_type = Vec<String>)]
    pub ts_routes: Networks,
    /// Where the connector keeps its identity.
    #[schema(value_type = String)]
    pub ts_state_path: PathBuf,
    /// The namespace's name on the Headscale server.
    pub namespace: String,
    /// The namespace's number there.
    pub namespace_id: Option<u64>,
    /// Site number.
    #[schema(value_type = Option<u16>)]
    pub site: Option<SiteNumber>,
    /// Whether a client key is kept (sealed).
    pub has_client_key: bool,
    /// Whether a person has disconnected it.
    pub disconnected: bool,
    /// Whether the Host App passes on only what changes nothing there.
    pub read_only: bool,
    /// The address of this device at which its forwards and proxies are, once it is stored.
    #[schema(value_type = Option<String>)]
    pub loopback: Option<Ipv4Addr>,
    /// Where SOCKS5 is spoken, if its proxies are on.
    #[schema(value_type = Option<String>)]
    pub socks_proxy: Option<SocketAddrV4>,
    /// Where HTTP CONNECT is spoken, if its proxies are on.
    #[schema(value_type = Option<String>)]
    pub http_proxy: Option<SocketAddrV4>,
}

impl ClusterInfo {
    /// What a record says; `ways` adds what leads into it.
    pub(crate) fn of(record: &ClusterRecord, ways: &Ways) -> Self {
        let proxies = ways.proxies_on(&record.id);
        Self {
            id: record.id.clone(),
            context: record.context.clone(),
            server: fleet::spec(record).map_or_else(|_| "unreadable".to_owned(), |s| s.access.server().to_string()),
            api_address: record.api_address.map(|a| a.to_string()),
            ts_login_server: record.login_server.clone(),
            ts_routes: record.routes.clone(),
            ts_state_path: record.state_path.clone(),
            namespace: record.namespace.clone(),
            namespace_id: record.namespace_id,
            site: record.site,
            has_client_key: record.client_auth_key.is_some(),
            disconnected: record.disconnected,
            read_only: record.read_only,
            loopback: ways.addresses.get(&record.id).copied(),
            socks_proxy: proxies.map(|(socks, _)| socks),
            http_proxy: proxies.map(|(_, http)| http),
        }
    }
}

/// See [`crate::cluster_add`].
pub(crate) async fn cluster_add(
    settings: &Settings,
    request: AddRequest,
    progress: &dyn Progress,
) -> Result<ClusterInfo, HostError> {
    let id = request.id.clone();
    add(settings, request, progress).await.map_err(|e| if e.cluster().is_some() { e } else { e.of_cluster(&id) })
}

async fn add(settings: &Settings, request: AddRequest, progress: &dyn Progress) -> Result<ClusterInfo, HostError> {
    let id = &request.id;
    let access = plan::access(settings, &request.kubeconfig)?;
    let file = request.from.as_deref().map(NamespaceFile::read).transpose().explained()?;
    if let Some(other) = file.as_ref().filter(|f| f.cluster != *id) {
        return Err(HostError::new(Class::Conflict, format!("the file is of cluster {}, not of {id}", other.cluster))
            .with_hint(format!("guildnet headscale namespace {id}")));
    }
    let known = Known::read(settings).await?;
    let old = known.record(id);
    if old.is_some() && !request.replace {
        return Err(HostError::new(Class::Conflict, "there is a cluster of this id")
            .with_hint(format!("add --replace to replace it, or first: guildnet cluster remove {id}")));
    }
    let given = request.routes.as_ref().or_else(|| file.as_ref()?.routes.as_ref()).or(settings.routes.as_ref());
    let seen = look_directly(&access, given, old, id, progress).await?;
    let mut record = compose(settings, &request, &access, file.as_ref(), given, &known, seen)?;
    if record.client_auth_key.is_none() && old.is_none() {
        with_new_key(settings, &known, request.consent, &mut record, progress).await?;
    }
    let host = HostClient::discover(&settings.home)?;
    // A running Host App that serves the cluster has the identity; its connector is joined or says why not.
    if host.is_none() || old.is_none() {
        prove(&mut record, &Deps::real()?.connectors, progress).await?;
    }
    let store = fleet::open_store(settings).await?;
    let stored = async {
        if known.headscale.is_none() || settings.api_key.is_some() {
            let url = record.login_server.clone();
            let server = HeadscaleRecord { url, api_key: settings.api_key.clone(), ca_pem: record.ca_pem.clone() };
            store.put_headscale(&server).await.explained()?;
            let (url, ca) = (&record.login_server, record.ca_pem.as_deref());
            moved::remember(&store, &Server::new(url, None, ca)?).await;
        }
        store.replace(&record).await.explained()
    }
    .await;
    store.close().await;
    stored?;
    if let Some(host) = host {
        host.reload().await?;
        progress.step(Some(id), "the running Host App serves it now");
    }
    kubeconfigs_follow(settings, progress).await;
    Ok(ClusterInfo::of(&record, &Ways::read(settings).await?))
}

/// What the API server said by the kubeconfig's own address; `None` if it can't be reached so.
async fn look_directly(
    access: &ClusterAccess,
    given: Option<&Networks>,
    old: Option<&ClusterRecord>,
    id: &ClusterId,
    progress: &dyn Progress,
) -> Result<Option<Direct>, HostError> {
    let api = match directly(access).await {
        Ok(api) => api,
        Err(why) if why.class() == Class::Unreachable => {
            progress.step(Some(id), &format!("not reachable directly ({}): going by the tailnet", why.message()));
            return Ok(None);
        }
        Err(why) => return Err(why),
    };
    let (uid, address) = tokio::join!(api.cluster_uid(), api.api_address());
    let (uid, address) = (uid.explained()?, address.explained()?);
    inspect::same_cluster(id, old.and_then(|o| o.cluster_uid.as_deref()), &uid)?;
    preflight::check(&api, id, Purpose::Record, progress).await?;
    // A cluster that is given anew without networks follows its own word again, whoever named the old ones.
    let before = match (given, old) {
        (None, Some(old)) => Before::Followed(old.routes.clone()),
        (given, _) => Before::of(given, None),
    };
    let settled = settle(&api, id, before, progress).await?;
    api.close().await;
    Ok(Some(Direct { uid, address, settled }))
}

/// What was seen of a cluster directly.
struct Direct {
    uid: String,
    address: Target,
    settled: Settled,
}

/// Puts the record together: flags, then the file, then the settings, then what was stored.
fn compose(
    settings: &Settings,
    request: &AddRequest,
    access: &ClusterAccess,
    file: Option<&NamespaceFile>,
    given: Option<&Networks>,
    known: &Known,
    seen: Option<Direct>,
) -> Result<ClusterRecord, HostError> {
    let id = &request.id;
    let old = known.record(id);
    let login_server = request
        .login_server
        .clone()
        .or_else(|| file.map(|f| f.login_server.clone()))
        .or_else(|| settings.headscale_url.clone())
        .or_else(|| old.map(|o| o.login_server.clone()))
        .or_else(|| known.headscale.as_ref().map(|h| h.url.clone()))
        .ok_or_else(|| {
            HostError::new(Class::Usage, "no login server is known").with_hint(
                "give --login-server URL, or the file that 'guildnet headscale namespace' wrote: --from FILE",
            )
        })?;
    let unseen = || match Before::of(given, old) {
        Before::Given(networks) => Some(Settled { networks, given: true }),
        Before::Followed(networks) => Some(Settled { networks, given: false }),
        Before::Unknown => None,
    };
    let settled = seen.as_ref().map(|s| s.settled.clone()).or_else(unseen);
    let Settled { networks: routes, given: routes_given } = settled.ok_or_else(|| {
        HostError::new(Class::Usage, "its networks are not known, and it can't be asked from here")
            .with_hint("give its Pod and Service networks: --routes 10.96.0.0/16,10.244.0.0/16")
    })?;
    if let Some(seen) = &seen {
        inspect::holds(&routes, seen.address)?;
    }
    let kept_ca = || known.headscale.as_ref().filter(|h| h.url == login_server).and_then(|h| h.ca_pem.clone());
    let now = Timestamp::now();
    Ok(ClusterRecord {
        id: id.clone(),
        kubeconfig: fleet::sealed_text(access)?,
        context: access.context().to_owned(),
        ca_pem: settings
            .headscale_ca
            .clone()
            .or_else(|| file.and_then(|f| f.ca_pem.clone()))
            .or_else(|| old.and_then(|o| o.ca_pem.clone()))
            .or_else(kept_ca),
        client_auth_key: request
            .client_key
            .clone()
            .or_else(|| file.and_then(|f| f.client_auth_key.clone()))
            .or_else(|| settings.auth_key.clone())
            .or_else(|| old.and_then(|o| o.client_auth_key.clone())),
        router_auth_key: file
            .and_then(|f| f.router_auth_key.clone())
            .or_else(|| old.and_then(|o| o.router_auth_key.clone())),
        routes,
        routes_given,
        state_path: request
            .state_dir
            .clone()
            .or_else(|| old.map(|o| o.state_path.clone()))
            .unwrap_or_else(|| settings.state_dir(id)),
        namespace: id.namespace(),
        namespace_id: file.and_then(|f| f.namespace_id).or_else(|| old.and_then(|o| o.namespace_id)),
        site: request.site.or_else(|| file.and_then(|f| f.site)).or_else(|| old.and_then(|o| o.site)),
        api_address: seen.as_ref().map(|s| s.address.addr()).or_else(|| old.and_then(|o| o.api_address)),
        cluster_uid: seen.map(|s| s.uid).or_else(|| old.and_then(|o| o.cluster_uid.clone())),
        disconnected: false,
        read_only: request.read_only || old.is_some_and(|o| o.read_only),
        created: old.map_or(now, |o| o.created),
        updated: now,
        login_server,
    })
}

/// Makes namespace and keys with the API key, where there is one.
async fn with_new_key(
    settings: &Settings,
    known: &Known,
    consent: Consent,
    record: &mut ClusterRecord,
    progress: &dyn Progress,
) -> Result<(), HostError> {
    let api_key = known.headscale(settings).filter(|h| h.url == record.login_server).and_then(|h| h.api_key);
    if api_key.is_none() {
        return Err(HostError::new(Class::Credentials, "there is no key for its connector, and no Headscale API key to make one")
            .with_hint(format!(
                "where there is an API key: guildnet headscale namespace {0}; then here: guildnet cluster add {0} --kubeconfig FILE --from tmp/cluster-{0}-headscale.json",
                record.id
            )));
    }
    let server = Server::new(&record.login_server, api_key, record.ca_pem.as_deref())?.with_history(settings);
    let wanted = Wanted {
        cluster: record.id.clone(),
        routes: record.routes.clone(),
        keys: Keys::Both,
        site: record.site,
        existing: None,
    };
    for made in server.set_up(&[wanted], consent, progress).await? {
        record.client_auth_key = made.client_auth_key;
        record.router_auth_key = made.router_auth_key;
        record.site = made.site;
        record.namespace_id = made.namespace_id;
    }
    Ok(())
}

/// Joins the tailnet with the record's key, and looks at the API server through it if a router is there already. What was
/// made for it is removed again if the server refuses.
async fn prove(
    record: &mut ClusterRecord,
    connectors: &Arc<dyn StartConnector>,
    progress: &dyn Progress,
) -> Result<(), HostError> {
    let fresh = !record.state_path.exists();
    let actor = ClusterActor::spawn(fleet::spec(record)?, Arc::clone(connectors));
    let status = actor.handle.registered(JOIN_LIMIT).await;
    let outcome = match (&status.node, &status.state) {
        (_, ConnectorState::NeedsKey { why }) => {
            let refused = join::needs_key(&record.id);
            Err(HostError::new(Class::Credentials, format!("the server refuses the connector's key: {why}"))
                .with_hint(refused.hint().unwrap_or_default()))
        }
        (Some(node), _) => {
            progress.step(Some(&record.id), &format!("joined as {}", node.name));
            Ok(())
        }
        (None, state) => Err(HostError::new(
            Class::Unreachable,
            format!("the connector did not join within {JOIN_LIMIT:?}: {state}"),
        )
        .with_hint(format!("check that {} can be reached from here, and --headscale-ca", record.login_server))),
    };
    if outcome.is_ok() {
        look_through(&actor, record, progress).await;
    }
    actor.stop().await;
    if outcome.is_err()
        && fresh
        && let Err(why) = std::fs::remove_dir_all(&record.state_path)
    {
        tracing::debug!(path = %record.state_path.display(), %why, "the unused identity is not removed");
    }
    outcome
}

/// Notes who the cluster is and where its API server stands, if it can be asked.
async fn look_through(actor: &ClusterActor, record: &mut ClusterRecord, progress: &dyn Progress) {
    let Ok(api) = actor.handle.api(LOOK_LIMIT).await else {
        progress.step(Some(&record.id), "no router is connected yet: its API server was not asked");
        return;
    };
    if let Ok(uid) = api.cluster_uid().await {
        record.cluster_uid.get_or_insert(uid);
    }
    let found = api.api_address().await.ok().or_else(|| actor.handle.known_api_address());
    record.api_address = record.api_address.or(found.map(Target::addr));
    progress.step(Some(&record.id), "API server reached through the connector");
}

/// See [`crate::cluster_list`].
pub(crate) async fn cluster_list(settings: &Settings) -> Result<Vec<ClusterInfo>, HostError> {
    let (known, ways) = (Known::read(settings).await?, Ways::read(settings).await?);
    Ok(known.records.iter().map(|record| ClusterInfo::of(record, &ways)).collect())
}

/// See [`crate::cluster_show`].
pub(crate) async fn cluster_show(settings: &Settings, id: &ClusterId) -> Result<ClusterInfo, HostError> {
    let known = Known::read(settings).await?;
    let record = known.record(id).ok_or_else(|| unknown(id, &known))?;
    Ok(ClusterInfo::of(record, &Ways::read(settings).await?))
}

pub(crate) fn unknown(id: &ClusterId, known: &Known) -> HostError {
    HostError::unknown_cluster(id, &known.records.iter().map(|r| r.id.clone()).collect::<Vec<_>>())
}
