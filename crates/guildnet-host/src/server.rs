//! The Headscale server, as the operations of this crate need it: one error type, and the steps that belong together.
//!
//! Without an API key only its health and version are asked; everything else needs one.

mod keys;
mod policy;
mod removal;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use guildnet_headscale::{
    EnsureKeys, Headscale, HeadscaleConfig, NamespaceFile, Node, PolicyInput, ServerFeatures, ServerInfo, clients_of,
    ensure_namespace, ensure_user, known_clusters, routers_of, routes_to_approve, routes_to_serve,
};
use guildnet_model::{Class, ClusterId, Networks, Secret, SiteNumber, via6};
use guildnet_store::HeadscaleRecord;
use ipnet::{IpNet, Ipv4Net};
use tokio::time::{self, sleep};
use url::Url;

pub use self::policy::Consent;
pub(crate) use self::policy::{Desk, refusal, seconds};
use crate::{HostError, Progress, Settings, error::Explained as _};

/// How long routers whose pods are ready may take until the server lists them online with their routes.
const ROUTES_LIMIT: Duration = Duration::from_secs(30);

/// How often the node list is asked meanwhile. The API has no stream of changes.
const ASK_EVERY: Duration = Duration::from_millis(400);

/// A Headscale server and, maybe, the key to administrate it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    client: Headscale,
    has_key: bool,
    /// The folder of the store that keeps the policies which are replaced.
    history: Option<PathBuf>,
}

/// Which keys a cluster needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// A key for its routers: its connector is registered.
    Router,
    /// That, and one for its connector.
    Both,
}

/// What is wanted of the server for one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) cluster: ClusterId,
    pub(crate) routes: Networks,
    pub(crate) keys: Keys,
    /// The site number, if it shall not be the namespace's number.
    pub(crate) site: Option<SiteNumber>,
    /// Keys that are there already; kept while they are valid.
    pub(crate) existing: Option<NamespaceFile>,
}

impl Server {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// The address is none of a Headscale server, or the certificates can't be read.
    pub(crate) fn new(url: &Url, api_key: Option<Secret<String>>, ca_pem: Option<&str>) -> Result<Self, HostError> {
        let has_key = api_key.is_some();
        let config = HeadscaleConfig { url: url.clone(), api_key, ca_pem: ca_pem.map(str::to_owned) };
        Ok(Self { client: Headscale::new(config).explained()?, has_key, history: None })
    }

    /// The same, for work that may write the policy: what is replaced is kept in the store.
    #[must_use]
    pub(crate) fn with_history(mut self, settings: &Settings) -> Self {
        self.history = Some(settings.home.clone());
        self
    }

    /// A client for the server of a record.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub(crate) fn of(record: &HeadscaleRecord) -> Result<Self, HostError> {
        Self::new(&record.url, record.api_key.clone(), record.ca_pem.as_deref())
    }

    pub(crate) fn url(&self) -> &Url {
        self.client.url()
    }

    /// Whether an API key is there; not whether it is accepted.
    pub(crate) fn has_key(&self) -> bool {
        self.has_key
    }

    /// How long it took to say that it is well.
    pub(crate) async fn health(&self) -> Result<Duration, HostError> {
        let begun = Instant::now();
        self.client.health().await.explained().map(|()| begun.elapsed())
    }

    pub(crate) async fn info(&self) -> Result<ServerInfo, HostError> {
        self.client.server().await.explained()
    }

    pub(crate) async fn features(&self) -> Result<ServerFeatures, HostError> {
        self.info().await.map(|info| info.features)
    }

    /// The names of its namespaces.
    pub(crate) async fn users(&self) -> Result<Vec<String>, HostError> {
        self.client.users().await.explained().map(|users| users.into_iter().map(|u| u.name).collect())
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<Node>, HostError> {
        self.client.nodes().await.explained()
    }

    /// Finds out, before anything is changed, that it answers, is recent enough and accepts the API key if there is one.
    /// Returns words for a person.
    pub(crate) async fn answers(&self) -> Result<String, HostError> {
        self.client.health().await.explained()?;
        let info = self.info().await?;
        if self.has_key {
            self.users().await?;
        }
        let how = if self.has_key { "" } else { " (no API key: the keys at hand are used)" };
        Ok(format!("{} at {}{how}", info.version, self.url()))
    }

    /// Namespaces, their place in the policy, and their keys: made where they are missing, kept where they are valid. The
    /// answer is in the order of `wanted`. Networks that other people's nodes have too are told.
    ///
    /// # Errors
    /// The server refuses; or its policy, or the reach of others' nodes, stands against it (without `consent`).
    /// # Cancellation
    /// Dropping the future leaves what was made; the same call goes on from there.
    pub(crate) async fn set_up(
        &self,
        wanted: &[Wanted],
        consent: impl Into<Consent>,
        progress: &dyn Progress,
    ) -> Result<Vec<NamespaceFile>, HostError> {
        let features = self.features().await?;
        let mut clusters = Vec::with_capacity(wanted.len());
        for want in wanted {
            let user = ensure_user(&self.client, &want.cluster).await.explained_of(&want.cluster)?;
            let site = current_site(want, user.id).or_else(|| SiteNumber::try_from(user.id).ok());
            clusters.push(PolicyInput { cluster: want.cluster.clone(), routes: want.routes.clone(), site });
        }
        self.tell_overlaps(&clusters, features, progress).await?;
        let what = clusters.iter().map(|c| c.cluster.as_str()).collect::<Vec<_>>().join(", ");
        let request = consent.into().request(&clusters);
        let applied = self.write_policy(features, &request, &format!("clusters set up: {what}")).await?;
        let count = applied.clusters.len();
        let said = if applied.diff.is_some() { "applied" } else { "unchanged" };
        progress.step(None, &format!("policy {said}: {count} cluster{} kept apart", if count == 1 { "" } else { "s" }));
        let mut made = Vec::with_capacity(wanted.len());
        for (want, input) in wanted.iter().zip(&clusters) {
            let keys = EnsureKeys {
                client: want.keys == Keys::Both,
                routes: Some(want.routes.clone()),
                site: input.site,
                ..EnsureKeys::default()
            };
            let ensured = ensure_namespace(&self.client, &want.cluster, &keys, want.existing.as_ref())
                .await
                .explained_of(&want.cluster)?;
            let new = match (ensured.new_router_key, ensured.new_client_key) {
                (true, true) => "router key and client key made",
                (true, false) => "router key made",
                (false, true) => "client key made",
                (false, false) => "keys still valid",
            };
            progress.step(Some(&want.cluster), &format!("namespace {}: {new}", want.cluster.namespace()));
            made.push(ensured.file);
        }
        Ok(made)
    }

    /// Waits until a router of the cluster is online and its routes are approved; approves those that the policy does not.
    ///
    /// # Errors
    /// No router appears, or not all routes are advertised, within 30 s.
    pub(crate) async fn serve_routes(
        &self,
        cluster: &ClusterId,
        routes: &Networks,
        site: Option<SiteNumber>,
        progress: &dyn Progress,
    ) -> Result<(), HostError> {
        let features = self.features().await?;
        let own = PolicyInput { cluster: cluster.clone(), routes: routes.clone(), site };
        let others = if features.via_grants {
            vec![]
        } else {
            known_clusters(self.client.policy().await.explained()?.as_deref()).explained()?
        };
        let allowed = routes_to_serve(features, &own, &others);
        let end = time::Instant::now() + ROUTES_LIMIT;
        loop {
            let nodes = self.nodes().await?;
            let routers = routers_of(&nodes, cluster);
            for router in &routers {
                if let Some(all) = routes_to_approve(router, &allowed) {
                    self.client.approve_routes(router.id, &all).await.explained()?;
                    progress.step(Some(cluster), &format!("routes of {} approved", router.name));
                }
            }
            let online: Vec<&Node> = routers.into_iter().filter(|r| r.online).collect();
            let missing = lacking(&online, routes, site, &allowed);
            if missing.is_empty() && !online.is_empty() {
                let names: Vec<&str> = online.iter().map(|r| r.name.as_str()).collect();
                progress.step(Some(cluster), &format!("{routes} served by {}", names.join(", ")));
                return Ok(());
            }
            if time::Instant::now() >= end {
                return Err(not_served(cluster, &online, &missing));
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Deletes this device's node of a cluster if its key has expired: Headscale 0.29 keeps a tagged node expired whatever
    /// preauth key it shows, so only a new node can join. Known by its node key, or by its name where that is not known.
    pub(crate) async fn forget_expired(
        &self,
        cluster: &ClusterId,
        node_key: Option<&str>,
        name: &str,
    ) -> Result<(), HostError> {
        let nodes = self.nodes().await?;
        let now = jiff::Timestamp::now();
        let ours = |node: &Node| node_key.map_or(node.name == name, |key| node.node_key == key);
        for node in clients_of(&nodes, cluster).into_iter().filter(|n| ours(n) && n.is_expired(now)) {
            self.client.delete_node(node.id).await.explained()?;
        }
        Ok(())
    }
}

/// The site number that was given or kept, unless it only was the number of a namespace that has been removed since: the one
/// that was made in its place has another, and somebody else may use the old one.
fn current_site(want: &Wanted, namespace: u64) -> Option<SiteNumber> {
    let removed = want.existing.as_ref().and_then(|file| file.namespace_id).filter(|id| *id != namespace);
    want.site.filter(|site| removed != Some(site.get().into()))
}

/// Networks that no router has approved, in either form.
fn lacking(routers: &[&Node], routes: &Networks, site: Option<SiteNumber>, allowed: &[IpNet]) -> Vec<String> {
    let approved =
        |net: &IpNet| routers.iter().any(|r| r.approved_routes.contains(net) && r.available_routes.contains(net));
    let served = |net: &Ipv4Net| {
        let forms = [Some(IpNet::V4(*net)), site.map(|site| IpNet::V6(via6::prefix(site, *net)))];
        forms.iter().flatten().any(|form| allowed.contains(form) && approved(form))
    };
    routes.as_slice().iter().filter(|net| !served(net)).map(ToString::to_string).collect()
}

fn not_served(cluster: &ClusterId, online: &[&Node], missing: &[String]) -> HostError {
    let said = if online.is_empty() {
        format!("Headscale lists no router of it online after {ROUTES_LIMIT:?}")
    } else {
        format!("its router does not serve {} after {ROUTES_LIMIT:?}", missing.join(", "))
    };
    HostError::new(Class::Failed, said).with_hint(format!("guildnet router status {cluster}, and the router pod's log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(approved: &[&str]) -> Node {
        let nets: Vec<IpNet> = approved.iter().map(|n| n.parse().expect("a network")).collect();
        Node {
            id: 1,
            name: "r".into(),
            node_key: "nodekey:1".into(),
            user: None,
            tags: vec![],
            addresses: vec![],
            online: true,
            last_seen: None,
            expires: None,
            available_routes: nets.clone(),
            approved_routes: nets,
            elected_routes: vec![],
        }
    }

    #[test]
    fn the_site_of_a_removed_namespace_is_not_kept() {
        let want = |site: u64, namespace_id| Wanted {
            cluster: "a".parse().expect("an id"),
            routes: "10.96.0.0/16".parse().expect("networks"),
            keys: Keys::Both,
            site: SiteNumber::try_from(site).ok(),
            existing: Some(NamespaceFile {
                cluster: "a".parse().expect("an id"),
                namespace_id,
                login_server: "https://hs:8443".parse().expect("a URL"),
                router_auth_key: None,
                router_key_expires: None,
                client_auth_key: None,
                client_key_expires: None,
                site: SiteNumber::try_from(site).ok(),
                routes: None,
                ca_pem: None,
            }),
        };
        let site = |want: &Wanted, namespace| current_site(want, namespace).map(|s| u64::from(s.get()));
        assert_eq!(site(&want(7, Some(7)), 7), Some(7), "nothing happened");
        assert_eq!(site(&want(7, Some(7)), 9), None, "made anew");
        assert_eq!(site(&want(700, Some(7)), 9), Some(700), "given by hand");
        assert_eq!(site(&want(7, None), 9), Some(7), "given by hand");
    }

    #[test]
    fn a_network_is_served_in_its_plain_or_in_its_4via6_form() {
        let routes: Networks = "10.96.0.0/16,10.244.0.0/16".parse().expect("networks");
        let site: SiteNumber = "7".parse().expect("a site");
        let own = PolicyInput { cluster: "a".parse().expect("an id"), routes: routes.clone(), site: Some(site) };
        let allowed = routes_to_serve(ServerFeatures::BEFORE_029, &own, &[]);
        let missing = |approved: &[&str]| lacking(&[&node(approved)], &routes, Some(site), &allowed);
        assert_eq!(missing(&["10.96.0.0/16", "fd7a:115c:a1e0:b1a:0:7:af4:0/112"]), Vec::<String>::new());
        assert_eq!(missing(&["10.96.0.0/16"]), ["10.244.0.0/16"]);
        assert_eq!(lacking(&[], &routes, Some(site), &allowed).len(), 2);
    }
}
