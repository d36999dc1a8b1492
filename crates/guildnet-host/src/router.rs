//! The routers of one cluster: what they are told, deploying them, and having their routes approved.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use guildnet_headscale::{NamespaceFile, ServerFeatures};
use guildnet_kube::{ApiServer, ClusterAccess, RouterPlan, RouterStatus, router as kube_router};
use guildnet_model::{Class, ClusterId, Explain as _, Networks, Secret, SiteNumber, via6};
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

pub use crate::reach::Via;
use crate::{
    HostError, KubeconfigRef, Progress, Settings,
    client::HostClient,
    error::Explained as _,
    fleet,
    host::Deps,
    namespace,
    networks::{Before, Settled, settle},
    preflight::{self, Purpose},
    reach::{Reached, Ways, reach},
    server::{Keys, Server, Wanted},
    up::{Known, file_of, inspect, plan as input},
};

/// How long printing manifests waits for the server's version: two round trips of a slow link.
const VERSION_LIMIT: Duration = Duration::from_secs(3);

/// Which cluster's router, and what is known of it beside the store.
#[derive(Clone, Debug)]
pub struct RouterRequest {
    /// The cluster.
    pub id: ClusterId,
    /// The kubeconfig to use, for a cluster that the store does not know.
    pub kubeconfig: Option<KubeconfigRef>,
    /// Namespace file; default `tmp/cluster-<id>-headscale.json` if it is there.
    pub from: Option<PathBuf>,
    /// Networks, if neither the store, the file nor the settings name them.
    pub routes: Option<Networks>,
    /// How to reach the API server.
    pub via: Via,
}

impl RouterRequest {
    /// Whether it names nothing that only the person at hand has: neither a file nor a way of theirs.
    pub(crate) fn is_plain(&self) -> bool {
        let usual = || Path::new(&namespace::usual_file(&self.id)).exists();
        self.kubeconfig.is_none() && self.from.is_none() && self.via == Via::Auto && !usual()
    }
}

/// What was observed of a cluster's routers, and by which way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouterReport {
    /// The cluster.
    pub id: ClusterId,
    /// The way that was used.
    pub via: Via,
    /// The DaemonSet; `None` if it is not deployed.
    pub router: Option<RouterStatus>,
}

/// What is known of a cluster's router from flags, file and store, in this order.
struct Sources {
    login_server: Url,
    ca_pem: Option<String>,
    auth_key: Option<Secret<String>>,
    /// Networks that a flag, a setting or the file names.
    given: Option<Networks>,
    /// Networks that the store holds.
    recorded: Option<Networks>,
    site: Option<SiteNumber>,
}

impl Sources {
    fn gather(settings: &Settings, request: &RouterRequest, known: &Known) -> Result<Self, HostError> {
        let file = namespace_file(request)?;
        let file = file.as_ref();
        let record = known.record(&request.id);
        let login_server = settings
            .headscale_url
            .clone()
            .or_else(|| file.map(|f| f.login_server.clone()))
            .or_else(|| record.map(|r| r.login_server.clone()))
            .or_else(|| known.headscale.as_ref().map(|h| h.url.clone()))
            .ok_or_else(|| {
                HostError::new(Class::Usage, "no login server is known for the router").with_hint(
                    "give --login-server URL (or TS_LOGIN_SERVER), or the file that 'guildnet headscale namespace' wrote: --from FILE",
                )
            })?;
        let kept_ca = || known.headscale.as_ref().filter(|h| h.url == login_server).and_then(|h| h.ca_pem.clone());
        Ok(Self {
            ca_pem: settings
                .headscale_ca
                .clone()
                .or_else(|| file.and_then(|f| f.ca_pem.clone()))
                .or_else(|| record.and_then(|r| r.ca_pem.clone()))
                .or_else(kept_ca),
            auth_key: settings
                .auth_key
                .clone()
                .or_else(|| file.and_then(|f| f.router_auth_key.clone()))
                .or_else(|| record.and_then(|r| r.router_auth_key.clone())),
            given: request
                .routes
                .clone()
                .or_else(|| settings.routes.clone())
                // A file that was made from the record only repeats it.
                .or_else(|| file.and_then(|f| f.routes.clone()).filter(|n| record.is_none_or(|r| r.routes != *n))),
            recorded: record.map(|r| r.routes.clone()),
            site: file.and_then(|f| f.site).or_else(|| record.and_then(|r| r.site)),
            login_server,
        })
    }

    /// The login server, with the API key if it is the one that the key is of.
    fn server(&self, settings: &Settings, known: &Known) -> Result<Server, HostError> {
        let api_key = known.headscale(settings).filter(|h| h.url == self.login_server).and_then(|h| h.api_key);
        let server = Server::new(&self.login_server, api_key, self.ca_pem.as_deref())?;
        Ok(server.with_history(settings))
    }

    /// Makes a new key if the server does not take the one that is held, or not for long: ended, removed with its namespace, or
    /// unknown to a server that was restored from a backup. It is kept before it is used.
    async fn renew_key(
        &mut self,
        settings: &Settings,
        id: &ClusterId,
        known: &Known,
        server: &Server,
        progress: &dyn Progress,
    ) -> Result<(), HostError> {
        let held = NamespaceFile {
            cluster: id.clone(),
            namespace_id: None,
            login_server: self.login_server.clone(),
            router_auth_key: self.auth_key.clone(),
            router_key_expires: None,
            client_auth_key: None,
            client_key_expires: None,
            site: self.site,
            routes: None,
            ca_pem: None,
        };
        let (made, new) = server.ensure_router_key(&held).await?;
        if new {
            progress.step(Some(id), "router key made");
        }
        self.site = made.site;
        self.auth_key = made.router_auth_key;
        match known.record(id) {
            Some(record) if record.router_auth_key != self.auth_key => {
                let record = ClusterRecord {
                    router_auth_key: self.auth_key.clone(),
                    namespace_id: made.namespace_id,
                    updated: Timestamp::now(),
                    ..record.clone()
                };
                keep(settings, &record).await
            }
            _ => Ok(()),
        }
    }

    fn plan(&self, settings: &Settings, id: &ClusterId, routes: Networks, features: ServerFeatures) -> RouterPlan {
        let mut plan = RouterPlan::new(id.clone(), self.login_server.clone(), routes);
        plan.site_routes = site_routes(&plan.routes, self.site, features);
        plan.auth_key = self.auth_key.clone();
        plan.ca_pem = self.ca_pem.clone();
        named(settings, plan)
    }
}

/// The file that was named, else the one at its usual place if it is there.
fn namespace_file(request: &RouterRequest) -> Result<Option<NamespaceFile>, HostError> {
    match &request.from {
        Some(file) => NamespaceFile::read(file).map(Some).explained(),
        None => {
            let usual = namespace::usual_file(&request.id);
            if Path::new(&usual).exists() { NamespaceFile::read(&usual).map(Some).explained() } else { Ok(None) }
        }
    }
}

/// 4via6 networks are for servers that can't tell equal plain ones apart.
fn site_routes(routes: &Networks, site: Option<SiteNumber>, features: ServerFeatures) -> Vec<ipnet::Ipv6Net> {
    let site = site.filter(|_| !features.via_grants);
    site.into_iter().flat_map(|s| routes.as_slice().iter().map(move |n| via6::prefix(s, *n))).collect()
}

fn named(settings: &Settings, mut plan: RouterPlan) -> RouterPlan {
    if let Some(name) = &settings.hostname {
        plan.hostname.clone_from(name);
    }
    if let Some(image) = &settings.image {
        plan.image.clone_from(image);
    }
    plan
}

/// The plan for a cluster that `up` has prepared.
pub(crate) fn plan(
    settings: &Settings,
    file: &NamespaceFile,
    routes: &Networks,
    features: ServerFeatures,
) -> RouterPlan {
    let mut plan = RouterPlan::new(file.cluster.clone(), file.login_server.clone(), routes.clone());
    plan.site_routes = site_routes(routes, file.site, features);
    plan.auth_key.clone_from(&file.router_auth_key);
    plan.ca_pem.clone_from(&file.ca_pem);
    named(settings, plan)
}

/// Applies the plan and waits until every node's router has joined.
pub(crate) async fn deploy(
    api: &ApiServer,
    plan: &RouterPlan,
    progress: &dyn Progress,
) -> Result<RouterStatus, HostError> {
    let mut tell = |step: kube_router::RouterProgress| progress.step(Some(&plan.cluster), &step.to_string());
    kube_router::ensure(api, plan, &mut tell).await.explained()
}

/// [`deploy`], and then sees to it that the server lists the routers: one whose node was deleted there, or is unknown to a server
/// that was restored from a backup, does not notice by itself, and joins again when it is made anew.
pub(crate) async fn deploy_seen(
    api: &ApiServer,
    plan: &RouterPlan,
    server: &Server,
    progress: &dyn Progress,
) -> Result<RouterStatus, HostError> {
    let status = deploy(api, plan, progress).await?;
    let hosts: Vec<String> = status.pods.iter().filter(|p| p.ready).filter_map(|p| p.node.clone()).collect();
    let unseen = server.unseen_routers(&plan.cluster, &plan.hostname, &hosts).await?;
    if unseen.is_empty() {
        return Ok(status);
    }
    progress.step(Some(&plan.cluster), &format!("Headscale does not list the router of {}", unseen.join(", ")));
    let mut tell = |step: kube_router::RouterProgress| progress.step(Some(&plan.cluster), &step.to_string());
    kube_router::restart(api, &unseen, &mut tell).await.explained()
}

/// See [`crate::router_ensure`].
pub(crate) async fn router_ensure(
    settings: &Settings,
    request: RouterRequest,
    progress: &dyn Progress,
) -> Result<RouterReport, HostError> {
    let id = request.id.clone();
    let known = Known::read(settings).await?;
    let mut sources = Sources::gather(settings, &request, &known)?;
    let server = sources.server(settings, &known)?;
    let reached = reach_router(settings, &request, &known).await?;
    progress.step(
        Some(&id),
        if reached.via == Via::Direct {
            "API server reached directly"
        } else {
            "API server reached through the connector"
        },
    );
    let mut outcome = async {
        // A key that was given by hand is taken as it is.
        if server.has_key() && settings.auth_key.is_none() {
            sources.renew_key(settings, &id, &known, &server, progress).await?;
        }
        // Read again: it holds the new key.
        let known = Known::read(settings).await?;
        ensure(settings, &id, &sources, known.record(&id), &server, &reached, progress).await
    }
    .await;
    let via = reached.via;
    reached.close().await;
    if outcome.is_ok()
        && known.record(&id).is_some()
        && let Some(host) = HostClient::discover(&settings.home)?
        && let Err(why) = host.reload().await
    {
        outcome = Err(why.while_doing("the router is connected, but the Host App does not take up its networks"));
    }
    outcome.map(|router| RouterReport { id: id.clone(), via, router: Some(router) }).map_err(|e| e.of_cluster(&id))
}

/// Stores a record that changed in what its connector does not use; a running Host App takes it over.
pub(crate) async fn keep(settings: &Settings, record: &ClusterRecord) -> Result<(), HostError> {
    fleet::put(settings, record).await?;
    match HostClient::discover(&settings.home)? {
        Some(host) => host.reload().await,
        None => Ok(()),
    }
}

/// The server at which a cluster's routers log in; `None` if none is known.
pub(crate) fn server(settings: &Settings, request: &RouterRequest, known: &Known) -> Result<Option<Server>, HostError> {
    match Sources::gather(settings, request, known) {
        Ok(sources) => sources.server(settings, known).map(Some),
        Err(why) if why.class() == Class::Usage => Ok(None),
        Err(why) => Err(why),
    }
}

async fn ensure(
    settings: &Settings,
    id: &ClusterId,
    sources: &Sources,
    record: Option<&ClusterRecord>,
    server: &Server,
    reached: &Reached,
    progress: &dyn Progress,
) -> Result<RouterStatus, HostError> {
    preflight::check(&reached.api, id, Purpose::Routers, progress).await?;
    let settled = settle(&reached.api, id, Before::of(sources.given.as_ref(), record), progress).await?;
    if let Some(address) = record.and_then(|r| r.api_address) {
        inspect::holds(&settled.networks, address.into())?;
    }
    let features = server.features().await?;
    let differs = record.filter(|r| r.routes != settled.networks || r.routes_given != settled.given);
    let new_key = match differs {
        Some(record) => adopt(settings, record, &settled, server, progress).await?,
        None => None,
    };
    let routes = settled.networks;
    let mut plan = sources.plan(settings, id, routes.clone(), features);
    // A key that was given stays; one that was kept may have been made anew.
    if settings.auth_key.is_none() && new_key.is_some() {
        plan.auth_key = new_key;
    }
    let status = deploy_seen(&reached.api, &plan, server, progress).await?;
    if server.has_key() {
        server.serve_routes(id, &routes, sources.site, progress).await?;
        server.forget_dead_routers(id, &plan.hostname, status.desired, progress).await?;
    }
    Ok(status)
}

/// Brings the policy and then the record to a cluster's other networks. The record last: while it names the old ones, the
/// same command does the rest. Returns the routers' key if it had to be made anew.
async fn adopt(
    settings: &Settings,
    record: &ClusterRecord,
    settled: &Settled,
    server: &Server,
    progress: &dyn Progress,
) -> Result<Option<Secret<String>>, HostError> {
    let (id, routes) = (&record.id, &settled.networks);
    let (mut record, old_key) = (record.clone(), record.router_auth_key.clone());
    if record.routes != *routes {
        if server.has_key() {
            let wanted = Wanted {
                cluster: id.clone(),
                routes: routes.clone(),
                keys: Keys::Router,
                site: record.site,
                existing: Some(file_of(&record)),
            };
            for made in server.set_up(&[wanted], false, progress).await? {
                record.router_auth_key = made.router_auth_key.or(record.router_auth_key);
            }
        } else {
            progress.step(
                Some(id),
                &format!(
                    "no Headscale API key here: its policy still names {}; where there is one: guildnet headscale namespace \
                     {id} --routes {routes}",
                    record.routes
                ),
            );
        }
        progress.step(Some(id), &format!("recorded: {routes} instead of {}", record.routes));
    }
    record.routes = routes.clone();
    record.routes_given = settled.given;
    record.updated = jiff::Timestamp::now();
    fleet::put(settings, &record).await?;
    Ok(record.router_auth_key.filter(|key| old_key.as_ref() != Some(key)))
}

pub(crate) async fn reach_router(
    settings: &Settings,
    request: &RouterRequest,
    known: &Known,
) -> Result<Reached, HostError> {
    let record = known.record(&request.id);
    let access = access(settings, request, known)?;
    let host = HostClient::discover(&settings.home)?.filter(|_| record.is_some());
    let connectors = Deps::real()?.connectors;
    reach(&request.id, &access, request.via, &Ways { host: host.as_ref(), record, connectors: &connectors }).await
}

fn access(settings: &Settings, request: &RouterRequest, known: &Known) -> Result<ClusterAccess, HostError> {
    match (&request.kubeconfig, known.record(&request.id)) {
        (Some(file), _) => input::access(settings, file).map_err(|e| e.of_cluster(&request.id)),
        (None, Some(record)) => fleet::spec(record).map(|spec| spec.access),
        (None, None) => {
            let ids: Vec<ClusterId> = known.records.iter().map(|r| r.id.clone()).collect();
            Err(HostError::unknown_cluster(&request.id, &ids))
        }
    }
}

/// See [`crate::router_manifest`].
pub(crate) async fn router_manifest(
    settings: &Settings,
    request: RouterRequest,
    with_key: bool,
) -> Result<String, HostError> {
    let known = Known::read(settings).await?;
    let sources = Sources::gather(settings, &request, &known)?;
    let missing = |what: &str, hint: &str| {
        HostError::new(Class::Usage, format!("{what} is not known")).with_hint(hint).of_cluster(&request.id)
    };
    let routes =
        sources.given.clone().or_else(|| sources.recorded.clone()).ok_or_else(|| {
            missing("which networks the router serves", "give them: --routes 10.96.0.0/16,10.244.0.0/16")
        })?;
    if with_key && sources.auth_key.is_none() {
        return Err(missing(
            "the router's key",
            "make one with 'guildnet headscale namespace', or give --router-key-file FILE",
        ));
    }
    let server = Server::new(&sources.login_server, None, sources.ca_pem.as_deref())?;
    let features = match timeout(VERSION_LIMIT, server.features()).await {
        Ok(Ok(features)) => features,
        // The form that every server understands: both networks are advertised, and the policy picks.
        Ok(Err(_)) | Err(_) => ServerFeatures::BEFORE_029,
    };
    let plan = sources.plan(settings, &request.id, routes, features);
    Ok(kube_router::manifests_yaml(&plan, with_key))
}

/// See [`crate::router_status`].
pub(crate) async fn router_status(settings: &Settings, request: RouterRequest) -> Result<RouterReport, HostError> {
    let known = Known::read(settings).await?;
    let reached = reach_router(settings, &request, &known).await?;
    let seen = kube_router::status(&reached.api).await.explained_of(&request.id);
    let via = reached.via;
    reached.close().await;
    Ok(RouterReport { id: request.id, via, router: seen? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_networks_are_advertised_only_where_plain_ones_cannot_be_told_apart() {
        let routes: Networks = "10.96.0.0/16".parse().expect("networks");
        let site: SiteNumber = "7".parse().expect("a site");
        assert!(site_routes(&routes, Some(site), ServerFeatures::CURRENT).is_empty());
        let old = site_routes(&routes, Some(site), ServerFeatures::BEFORE_029);
        assert_eq!(old.iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd7a:115c:a1e0:b1a:0:7:a60:0/112"]);
        assert!(site_routes(&routes, None, ServerFeatures::BEFORE_029).is_empty());
    }
}
