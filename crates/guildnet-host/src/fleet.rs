//! All clusters of one process: an actor for each record of the store, kept in step with it by [`Fleet::reload`].
//!
//! The Host App holds one for as long as it runs; a command that finds no Host App running holds one for its own work.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures_util::future::join_all;
use guildnet_kube::ClusterAccess;
use guildnet_model::{
    BoxFuture, Class, ClusterId, ConnectorSpec, FixedKey, Io, Networks, Secret, StartConnector, Target,
};
use guildnet_store::{ClusterRecord, Store};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    ClusterInfo, Destination, HostError, ProxiesRequest, Settings, SettingsShown,
    auth_keys::MadeKeys,
    cluster::{self, ClusterActor, ClusterHandle, ClusterSpec},
    drain::named,
    error::Explained as _,
    events::{Events, What},
    forward::{self, Open, Ways},
    metrics::Metrics,
    names::OpenError,
    server::Server,
    set::ClusterChange,
};

/// The clusters of one process.
pub(crate) struct Fleet {
    store: Store,
    connectors: Arc<dyn StartConnector>,
    events: Arc<Events>,
    /// What was read from the store last, and the actor that was made of it. Never held across an await.
    members: RwLock<BTreeMap<ClusterId, Member>>,
    /// One reload at a time; readers of `members` do not wait for it.
    reloading: Mutex<()>,
    metrics: Arc<Metrics>,
    /// Whether its connectors' keys are made when they are needed.
    makes_keys: bool,
}

struct Member {
    record: ClusterRecord,
    /// None for a cluster that is disconnected on request.
    actor: Option<ClusterActor>,
    /// A record that can't be used has no actor either, and this reason.
    unusable: Option<HostError>,
    /// Cancelled while the cluster is read-only.
    writing: CancellationToken,
}

impl Member {
    fn new(record: ClusterRecord, actor: Option<ClusterActor>, unusable: Option<HostError>) -> Self {
        let mut member = Self { record, actor, unusable, writing: CancellationToken::new() };
        member.follow_switch();
        member
    }

    /// Brings the token in step with the record.
    fn follow_switch(&mut self) {
        if self.record.read_only {
            self.writing.cancel();
        } else if self.writing.is_cancelled() {
            self.writing = CancellationToken::new();
        }
    }
}

/// What [`Fleet::reload`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Clusters that are served now and were not, or not so.
    pub(crate) started: Vec<ClusterId>,
    /// Clusters that are no longer served.
    pub(crate) stopped: Vec<ClusterId>,
}

impl Fleet {
    /// A fleet without clusters; [`Self::reload`] brings them.
    pub(crate) fn new(store: Store, connectors: Arc<dyn StartConnector>) -> Self {
        let (events, members, reloading) = (Arc::default(), RwLock::default(), Mutex::default());
        Self { store, connectors, events, members, reloading, metrics: Arc::default(), makes_keys: false }
    }

    /// The same, for the Host App: a connector that the server does not accept has a key made for it there.
    #[must_use]
    pub(crate) fn making_keys(self) -> Self {
        Self { makes_keys: true, ..self }
    }

    /// What happens to its clusters.
    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The store that it follows.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What is counted of these clusters.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn members(&self) -> RwLockReadGuard<'_, BTreeMap<ClusterId, Member>> {
        // Every change is one insertion or removal: a panic elsewhere leaves the map whole.
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn members_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<ClusterId, Member>> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the clusters in step with the store: new ones are started, changed ones started again, removed ones
    /// stopped. Those that did not change are not touched.
    ///
    /// # Errors
    /// The store can't be read; nothing was changed then.
    /// # Cancellation
    /// Not to be dropped half-way: clusters that were to be started again would stay stopped until the next reload.
    pub(crate) async fn reload(&self) -> Result<Changes, HostError> {
        let _alone = named("another reload", self.reloading.lock()).await;
        let records = named("the store", self.store.list()).await.explained()?;
        self.metrics.know(&records.iter().map(|r| r.id.clone()).collect::<Vec<_>>());
        let mut leaving = Vec::new();
        let mut coming = Vec::new();
        {
            let mut members = self.members_mut();
            let gone: Vec<ClusterId> =
                members.keys().filter(|id| !records.iter().any(|r| r.id == **id)).cloned().collect();
            for record in records {
                match members.get_mut(&record.id) {
                    Some(member) if !needs_restart(&member.record, &record) => {
                        member.record = record;
                        member.follow_switch();
                    }
                    _ => coming.push(record),
                }
            }
            for id in gone.iter().chain(coming.iter().map(|r| &r.id)) {
                leaving.extend(members.remove(id).and_then(|m| m.actor));
            }
        }
        let stopped: Vec<ClusterId> = leaving.iter().map(|a| a.handle.id().clone()).collect();
        // The old connector must let go of its identity before a new one takes it.
        join_all(leaving.into_iter().map(ClusterActor::stop)).await;
        let mut changes = Changes { started: Vec::new(), stopped };
        for record in coming {
            if !record.disconnected {
                changes.started.push(record.id.clone());
            }
            let (actor, unusable) = match spec(&record) {
                Ok(_) if record.disconnected => (None, None),
                Ok(mut spec) => {
                    if self.makes_keys {
                        spec.connector.auth_keys = Arc::new(MadeKeys::new(self.store.clone(), &record));
                    }
                    (Some(self.actor(spec)), None)
                }
                Err(why) => (None, Some(why)),
            };
            self.members_mut().insert(record.id.clone(), Member::new(record, actor, unusable));
        }
        changes.stopped.retain(|id| !changes.started.contains(id));
        if changes != Changes::default() {
            self.events.tell(What::Clusters { started: changes.started.clone(), stopped: changes.stopped.clone() });
        }
        Ok(changes)
    }

    fn actor(&self, spec: ClusterSpec) -> ClusterActor {
        ClusterActor::spawn_told(spec, Arc::clone(&self.connectors), Arc::clone(&self.events))
    }

    /// Sets switches of a cluster in the store; [`Self::reload`] and [`forward::Forwards::follow`] follow them. `true`: it was
    /// not so before.
    ///
    /// # Errors
    /// It is not there; its proxies are to have one port; the store can't be read or written.
    pub(crate) async fn change(&self, id: &ClusterId, change: &ClusterChange) -> Result<bool, HostError> {
        let Some(mut record) = self.store.get(id).await.explained_of(id)? else {
            return Err(HostError::unknown_cluster(id, &self.store.ids().await.explained()?));
        };
        // First, as it may be refused.
        let proxies = change.of_proxies();
        let mut changed =
            proxies != ProxiesRequest::default() && forward::set_proxies(&self.store, id, proxies).await?;
        if change.apply(&mut record) {
            self.store.replace(&record).await.explained_of(id)?;
            changed = true;
        }
        Ok(changed)
    }

    /// The handles of all clusters that have an actor, by id.
    pub(crate) fn handles(&self) -> Vec<ClusterHandle> {
        self.members().values().filter_map(|m| Some(m.actor.as_ref()?.handle.clone())).collect()
    }

    /// The handles of the named clusters, of all if none is named.
    ///
    /// # Errors
    /// A named one is not there, or its record can't be used.
    pub(crate) fn handles_of(&self, ids: &[ClusterId]) -> Result<Vec<ClusterHandle>, HostError> {
        if ids.is_empty() {
            return Ok(self.handles());
        }
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.push(self.handle(id)?);
        }
        Ok(found)
    }

    /// The handle of one cluster.
    ///
    /// # Errors
    /// It is not there, or its record can't be used.
    pub(crate) fn handle(&self, id: &ClusterId) -> Result<ClusterHandle, HostError> {
        let members = self.members();
        match members.get(id) {
            Some(Member { actor: Some(actor), .. }) => Ok(actor.handle.clone()),
            Some(Member { unusable: Some(why), .. }) => Err(why.clone()),
            Some(Member { unusable: None, .. }) => Err(disconnected(id)),
            None => Err(unknown(id, &members)),
        }
    }

    /// Why records can't be used, by cluster.
    pub(crate) fn unusable(&self) -> Vec<HostError> {
        self.members().values().filter_map(|m| m.unusable.clone()).collect()
    }

    /// The clusters that are disconnected on request, with their networks, by id.
    pub(crate) fn disconnected(&self) -> Vec<(ClusterId, Networks)> {
        let resting = |m: &&Member| m.actor.is_none() && m.unusable.is_none();
        self.members().values().filter(resting).map(|m| (m.record.id.clone(), m.record.routes.clone())).collect()
    }

    /// For how long what may change something is passed on to a cluster: until the token is cancelled. `None` if it is
    /// read-only.
    ///
    /// # Errors
    /// It is not there, is disconnected, or its record can't be used.
    pub(crate) fn writing(&self, id: &ClusterId) -> Result<Option<CancellationToken>, HostError> {
        self.handle(id)?;
        let writing = self.members().get(id).map(|member| member.writing.clone());
        Ok(writing.filter(|writing| !writing.is_cancelled()))
    }

    /// The switch alone; a cluster that is not there has it off.
    pub(crate) fn is_read_only(&self, id: &ClusterId) -> bool {
        self.members().get(id).is_some_and(|m| m.record.read_only)
    }

    /// Whether a cluster was in the store when it was read last.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn knows(&self, id: &ClusterId) -> Result<(), HostError> {
        let members = self.members();
        if members.contains_key(id) { Ok(()) } else { Err(unknown(id, &members)) }
    }

    /// What the store held of a cluster when it was read last, and what leads into it.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn info(&self, id: &ClusterId, ways: &Ways) -> Result<ClusterInfo, HostError> {
        let members = self.members();
        members.get(id).map(|m| ClusterInfo::of(&m.record, ways)).ok_or_else(|| unknown(id, &members))
    }

    /// What is set and kept for all clusters.
    ///
    /// # Errors
    /// The store can't be read.
    pub(crate) async fn settings(&self, settings: &Settings) -> Result<SettingsShown, HostError> {
        let kept = self.store.headscale().await.explained()?;
        Ok(SettingsShown::of(settings, kept.as_ref()))
    }

    /// The key with which new routers of a cluster join, if it is kept here.
    pub(crate) fn router_key(&self, id: &ClusterId) -> Option<Secret<String>> {
        self.members().get(id).and_then(|m| m.record.router_auth_key.clone())
    }

    /// Keeps what was found out about a cluster's API server, so that the next start knows it.
    pub(crate) async fn remember(&self, handle: &ClusterHandle) {
        let Ok(Some(mut record)) = self.store.get(handle.id()).await else { return };
        let address = record.api_address.or(handle.known_api_address().map(Target::addr));
        let uid = record.cluster_uid.clone().or(handle.uid().map(str::to_owned));
        if address == record.api_address && uid == record.cluster_uid {
            return;
        }
        record.api_address = address;
        record.cluster_uid = uid;
        record.updated = jiff::Timestamp::now();
        match self.store.replace(&record).await {
            Ok(()) => {
                if let Some(member) = self.members_mut().get_mut(handle.id()) {
                    member.record = record;
                }
            }
            Err(why) => tracing::warn!(cluster = %handle.id(), %why, "what was found out is not stored"),
        }
    }

    /// The Headscale server that the store knows, else the one of the first cluster (without API key).
    ///
    /// # Errors
    /// The store can't be read, or what it holds can't be used.
    pub(crate) async fn server(&self) -> Result<Option<Server>, HostError> {
        if let Some(known) = self.store.headscale().await.explained()? {
            return Server::of(&known).map(Some);
        }
        let first = self.members().values().next().map(|m| (m.record.login_server.clone(), m.record.ca_pem.clone()));
        first.map(|(url, ca)| Server::new(&url, None, ca.as_deref())).transpose()
    }

    /// Stops all clusters and closes the store.
    pub(crate) async fn stop(&self) {
        let _alone = named("a reload", self.reloading.lock()).await;
        let members = std::mem::take(&mut *self.members_mut());
        join_all(members.into_values().filter_map(|m| m.actor).map(ClusterActor::stop)).await;
        named("the store's end", self.store.close()).await;
    }
}

impl Open for Fleet {
    fn open<'a>(
        &'a self,
        cluster: &'a ClusterId,
        to: &'a Destination,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>> {
        Box::pin(async move {
            match self.handle(cluster) {
                Ok(handle) => handle.open(to).await,
                // Known, and not to be dialled: said as the state of any other connector that is not ready.
                Err(_) if self.disconnected().iter().any(|(of, _)| of == cluster) => {
                    Err(OpenError::Dial { name: None, why: cluster::disconnected(cluster) })
                }
                Err(why) => Err(OpenError::Host(why)),
            }
        })
    }
}

/// Whether a changed record means another connector or another client. What was only found out about the cluster, and
/// what only its routers use, does not, nor does what only the door asks; a new client key does, since it was made because the old one did not admit.
fn needs_restart(old: &ClusterRecord, new: &ClusterRecord) -> bool {
    let ignored =
        ["router key", "API server address", "cluster UID", "namespace", "namespace number", "read-only switch"];
    old.differences(new).iter().any(|field| !ignored.contains(field))
}

fn unknown(id: &ClusterId, members: &BTreeMap<ClusterId, Member>) -> HostError {
    HostError::unknown_cluster(id, &members.keys().cloned().collect::<Vec<_>>())
}

/// The error for a cluster that is disconnected on request.
pub(crate) fn disconnected(id: &ClusterId) -> HostError {
    HostError::new(Class::Unreachable, "it is disconnected on request")
        .with_hint(format!("guildnet cluster connect {id}"))
        .of_cluster(id)
}

/// What is wanted of the cluster that a record describes.
///
/// # Errors
/// The stored credential can't be read back.
pub(crate) fn spec(record: &ClusterRecord) -> Result<ClusterSpec, HostError> {
    let damaged = |e: &dyn std::fmt::Display| {
        HostError::new(Class::Credentials, format!("the stored kubeconfig can't be used: {e}"))
            .with_hint(format!("guildnet cluster add {} --replace --kubeconfig FILE", record.id))
            .of_cluster(&record.id)
    };
    let bytes = Secret::new(record.kubeconfig.expose().clone().into_bytes());
    let access = ClusterAccess::from_secret_bytes(&bytes).map_err(|e| damaged(&e))?;
    Ok(ClusterSpec {
        connector: ConnectorSpec {
            cluster: record.id.clone(),
            login_server: record.login_server.clone(),
            ca_pem: record.ca_pem.clone(),
            hostname: hostname(&record.id),
            state_dir: record.state_path.clone(),
            auth_keys: Arc::new(FixedKey(record.client_auth_key.clone())),
            routes: record.routes.clone(),
            site: record.site,
            ephemeral: false,
        },
        access,
        api_address: record.api_address.map(Target::from),
        uid: record.cluster_uid.clone(),
        routes_given: record.routes_given,
    })
}

/// Text for the store's kubeconfig field.
///
/// # Errors
/// Never in practice: the saved form of a credential is JSON.
pub(crate) fn sealed_text(access: &ClusterAccess) -> Result<Secret<String>, HostError> {
    let bytes = access.to_secret_bytes();
    String::from_utf8(bytes.expose().clone())
        .map(Secret::new)
        .map_err(|_| HostError::new(Class::Failed, "the kubeconfig's saved form is no text"))
}

/// The connector's name in the tailnet: the cluster, and the device that it runs on.
pub(crate) fn hostname(cluster: &ClusterId) -> String {
    // The kernel's name for the machine; one without it is called after the cluster alone.
    let device = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    let label: String =
        device.chars().take_while(|c| *c != '.').filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    // A DNS label has 63 characters at most; the id takes up to 40 of them.
    let label: String = label.trim_matches('-').chars().take(16).collect();
    if label.is_empty() { format!("gn-{cluster}") } else { format!("gn-{cluster}-{label}") }
}

/// Opens the store in the home folder, making both if they are not there.
pub(crate) async fn open_store(settings: &Settings) -> Result<Store, HostError> {
    Store::open(&settings.home).await.explained()
}

/// Puts a changed record in the place of the one in the store.
pub(crate) async fn put(settings: &Settings, record: &ClusterRecord) -> Result<(), HostError> {
    let store = open_store(settings).await?;
    let stored = store.replace(record).await.explained_of(&record.id);
    store.close().await;
    stored
}

/// Opens the store if there is one, and makes nothing.
pub(crate) async fn open_existing(settings: &Settings) -> Result<Option<Store>, HostError> {
    if has_store(&settings.home) { open_store(settings).await.map(Some) } else { Ok(None) }
}

/// Whether the folder holds a store.
pub(crate) fn has_store(home: &Path) -> bool {
    home.join("guildnet.db").exists()
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;
    use crate::{
        fake::{FakeConnectors, record},
        status, verify,
    };

    /// A fleet with what the store holds, and the connectors that it starts.
    async fn fleet(records: &[ClusterRecord]) -> (tempfile::TempDir, Fleet, Arc<FakeConnectors>) {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::open(home.path()).await.expect("opened");
        for record in records {
            store.replace(record).await.expect("stored");
        }
        let connectors = Arc::new(FakeConnectors::default());
        let fleet = Fleet::new(store, Arc::clone(&connectors) as Arc<dyn StartConnector>);
        fleet.reload().await.expect("read");
        (home, fleet, connectors)
    }

    fn id(text: &str) -> ClusterId {
        text.parse().expect("an id")
    }

    #[tokio::test]
    async fn a_disconnected_cluster_is_known_and_not_served_until_it_is_connected_again() {
        let resting = ClusterRecord { disconnected: true, ..record("a") };
        let (_home, fleet, _) = fleet(&[resting, record("b")]).await;
        assert_eq!(fleet.handles().iter().map(|h| h.id().clone()).collect::<Vec<_>>(), [id("b")]);
        let refused = fleet.handle(&id("a")).err().expect("not served");
        assert!(refused.hint().is_some_and(|h| h == "guildnet cluster connect a"), "{refused}");
        let told: Vec<_> = status::of_clusters(&fleet).await.into_iter().map(|c| (c.id, c.state)).collect();
        assert_eq!(told, [(id("a"), "disconnected".to_owned()), (id("b"), "starting".to_owned())]);

        fleet.store.replace(&record("a")).await.expect("stored");
        let changes = fleet.reload().await.expect("read");
        assert_eq!(changes, Changes { started: vec![id("a")], stopped: vec![] });
        fleet.store.replace(&ClusterRecord { disconnected: true, ..record("a") }).await.expect("stored");
        let changes = fleet.reload().await.expect("read");
        assert_eq!(changes, Changes { started: vec![], stopped: vec![id("a")] }, "the other one is not touched");
        fleet.stop().await;
    }

    #[tokio::test]
    async fn nothing_is_required_of_a_disconnected_cluster_and_it_is_named() {
        // A server that refuses at once.
        let login_server = "https://127.0.0.1:9".parse().expect("a URL");
        let (_home, fleet, _) = fleet(&[ClusterRecord { disconnected: true, login_server, ..record("a") }]).await;
        let report = verify::verify_fleet(&fleet, &[id("a")], &crate::Silent).await.expect("a report");
        let a = report.clusters.iter().find(|c| c.id == "a").expect("named");
        assert!(a.checks.is_empty(), "{a:?}");
        let unknown = verify::verify_fleet(&fleet, &[id("x")], &crate::Silent).await.expect_err("not known");
        assert_eq!(unknown.class(), Class::NotFound);
        fleet.stop().await;
    }

    #[tokio::test]
    async fn the_read_only_switch_is_followed_without_a_new_connector() {
        let (_home, fleet, connectors) = fleet(&[record("a")]).await;
        let writing = fleet.writing(&id("a")).expect("known").expect("writable");
        fleet.store.replace(&ClusterRecord { read_only: true, ..record("a") }).await.expect("stored");
        assert_eq!(fleet.reload().await.expect("read"), Changes::default());
        assert!(writing.is_cancelled(), "open tunnels end");
        assert!(fleet.writing(&id("a")).expect("known").is_none());
        assert!(status::of_clusters(&fleet).await[0].read_only, "and it is told");
        assert_eq!(connectors.started.lock().expect("not poisoned").len(), 1);
        fleet.store.replace(&record("a")).await.expect("stored");
        fleet.reload().await.expect("read");
        assert!(fleet.writing(&id("a")).expect("known").is_some(), "writable again");
        assert_eq!(fleet.writing(&id("x")).expect_err("unknown").class(), Class::NotFound);
        fleet.stop().await;
    }

    #[tokio::test]
    async fn switches_are_set_together_or_not_at_all() {
        let (_home, fleet, _) = fleet(&[record("a")]).await;
        let change = |text: &str| serde_json::from_str::<ClusterChange>(text).expect("switches");
        let set = async |text: &str| fleet.change(&id("a"), &change(text)).await;
        let proxies = async || Ways::of(&fleet.store).await.expect("read").proxies_on(&id("a"));
        let refused = set(r#"{"readOnly":true,"proxies":true,"socksPort":5,"httpPort":5}"#).await;
        assert_eq!(refused.expect_err("one port for two").class(), Class::Usage);
        assert!(!fleet.store.get(&id("a")).await.expect("read").expect("there").read_only);
        assert_eq!(set(r#"{"proxies":false}"#).await, Ok(false), "they are off unless somebody switches them on");
        assert_eq!(set(r#"{"readOnly":true,"proxies":true,"httpPort":5}"#).await, Ok(true));
        assert!(fleet.store.get(&id("a")).await.expect("read").expect("there").read_only);
        let (socks, http) = proxies().await.expect("on");
        assert_eq!((socks.port(), http.port()), (1080, 5));
        assert_eq!(set(r#"{"readOnly":true,"proxies":true}"#).await, Ok(false));
        assert_eq!(set(r#"{"proxies":false}"#).await, Ok(true));
        assert_eq!(proxies().await, None);
        let unknown = fleet.change(&id("x"), &change(r#"{"proxies":true}"#)).await;
        assert_eq!(unknown.expect_err("not there").class(), Class::NotFound);
        fleet.stop().await;
    }

    #[tokio::test]
    async fn a_new_identity_restarts_one_connector_and_a_new_router_key_none() {
        let (_home, fleet, connectors) = fleet(&[record("a"), record("b")]).await;
        let key = Some(Secret::new("hskey-auth-x".to_owned()));
        fleet.store.replace(&ClusterRecord { router_auth_key: key.clone(), ..record("a") }).await.expect("stored");
        assert_eq!(fleet.reload().await.expect("read"), Changes::default());
        assert_eq!(fleet.router_key(&id("a")), key, "but it is known from now on");
        let rotated = ClusterRecord { router_auth_key: key, state_path: "/nonexistent.2".into(), ..record("a") };
        fleet.store.replace(&rotated).await.expect("stored");
        assert_eq!(fleet.reload().await.expect("read").started, [id("a")]);
        let handle = fleet.handle(&id("a")).expect("served");
        assert_eq!(handle.spec().connector.state_dir, std::path::PathBuf::from("/nonexistent.2"));
        drop(connectors);
        fleet.stop().await;
    }
}
