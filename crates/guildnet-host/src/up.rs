//! `up`: from kubeconfigs and a Headscale server to clusters that are served and verified, in one go that can be repeated.
//!
//! Order: all input is read and checked, the server and every cluster are looked at, and only then anything is changed:
//! namespaces and policy, keys, records, routers, Host App. A cluster that fails does not stop the others. What is valid
//! is kept, so a second run changes nothing.

mod at_hand;
pub(crate) mod inspect;
pub(crate) mod join;
pub(crate) mod moved;
pub(crate) mod plan;

use std::{
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use guildnet_headscale::NamespaceFile;
use guildnet_model::{Class, ClusterId, Explain as _, Networks, Secret, StartConnector};
use guildnet_store::{ClusterRecord, HeadscaleRecord, Store};
use jiff::Timestamp;

use self::{
    inspect::{Inspected, inspect},
    plan::Asked,
};
use crate::{
    HostError, Progress, Settings,
    client::HostClient,
    daemon,
    error::Explained as _,
    fleet,
    host::Deps,
    kubeconfigs::{self, kubeconfigs_follow},
    managed,
    reach::Ways,
    router,
    server::{Consent, Keys, Server, Wanted},
    verify::{self, Report},
};

/// How long the Host App may take to end by itself: its door drains for 10 s at most, connectors close in 5.
const DOWN_GRACE: Duration = Duration::from_secs(20);

/// A kubeconfig file and which of its contexts is meant (the current one if `None`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeconfigRef {
    /// The file; only its name, if `content` is given.
    pub path: PathBuf,
    /// The context.
    pub context: Option<String>,
    /// Its content, where it comes otherwise than by a file.
    pub content: Option<Secret<String>>,
}

/// What `up` is asked to do.
#[derive(Clone, Debug)]
pub struct UpRequest {
    /// Clusters to set up; empty: those that the store knows are served.
    pub clusters: Vec<(ClusterId, KubeconfigRef)>,
    /// Their networks; discovered if not given.
    pub routes: Option<Networks>,
    /// What may be done to what others have on the server.
    pub consent: Consent,
    /// Start (or refresh) the Host App in the background.
    pub start_host: bool,
    /// Verify at the end.
    pub verify: bool,
}

/// How it went for one cluster.
#[derive(Clone, Debug)]
pub struct ClusterUp {
    /// The cluster.
    pub id: ClusterId,
    /// `Ok` if everything that was asked is in place.
    pub outcome: Result<(), HostError>,
}

/// What `up` did.
#[derive(Clone, Debug)]
pub struct UpReport {
    /// Each cluster.
    pub clusters: Vec<ClusterUp>,
    /// The Host App's address, `https://127.0.0.1:8090`, if it was started or refreshed.
    pub host: Option<String>,
    /// What verify found, if it was asked for.
    pub verify: Option<Report>,
}

impl UpReport {
    /// `None` if every cluster is up; the failure's class if none is; [`Class::Partial`] if some are.
    pub fn trouble(&self) -> Option<Class> {
        let failed: Vec<&HostError> = self.clusters.iter().filter_map(|c| c.outcome.as_ref().err()).collect();
        match failed.first() {
            None => None,
            Some(first) if failed.len() == self.clusters.len() => Some(first.class()),
            Some(_) => Some(Class::Partial),
        }
    }
}

/// See [`crate::up`].
pub(crate) async fn up(
    settings: &Settings,
    request: UpRequest,
    progress: &dyn Progress,
) -> Result<UpReport, HostError> {
    let wanted = plan::read(settings, &request)?;
    let host = HostClient::discover(&settings.home)?;
    if host.is_none() && request.start_host {
        port_is_free(settings)?;
    }
    let known = Known::read(settings).await?;
    let (mut known, mut moved) = moved::follow(settings, known, !wanted.is_empty(), progress).await?;
    if wanted.is_empty() && known.records.is_empty() {
        return Err(HostError::new(Class::Usage, "no cluster was named, and none is known from before")
            .with_hint("guildnet up --cluster ID=KUBECONFIG"));
    }
    // A namespace file names the server that its keys are for.
    let files = at_hand::files(wanted.iter().map(|w| &w.id))?;
    let mut settings = settings.clone();
    if files.is_empty() && managed::is_wanted(&settings, &known, !wanted.is_empty())? {
        moved.extend(managed::bring_up(&settings, true, progress).await?.1);
        known = Known::read(&settings).await?;
        if settings.headscale_url.is_none() {
            // A key or an authority that is set without a server belongs to another one.
            (settings.api_key, settings.headscale_ca) = (None, None);
        }
    }
    let settings = &settings;
    let deps = Deps::real()?;
    let mut outcomes: Vec<ClusterUp> = Vec::new();
    let named: Vec<ClusterId> = wanted.iter().map(|w| w.id.clone()).collect();
    if !wanted.is_empty() {
        let headscale = known.headscale(settings);
        let headscale = headscale.map_or_else(|| at_hand::server(&files), |h| Ok(Some(h)))?.ok_or_else(no_server)?;
        let server = Server::of(&headscale)?.with_history(settings);
        progress.step(None, &format!("Headscale {}", server.answers().await?));
        let inspected = inspect_all(wanted, &known, host.as_ref(), &deps.connectors, &mut outcomes, progress).await;
        let at_hand = AtHand { headscale, files };
        let set_up = set_up(settings, &request, &known, &at_hand, &server, &inspected, progress).await;
        outcomes.extend(match set_up {
            Ok(members) => routers(settings, &server, &inspected, members, progress).await,
            Err(why) => {
                close(inspected).await;
                return Err(why);
            }
        });
        close(inspected).await;
    }
    // The others are served as they are; where the server has moved, their routers follow it.
    let connected = known.records.iter().filter(|r| !r.disconnected && !named.contains(&r.id));
    let others = connected.filter(|r| named.is_empty() || moved.contains(&r.id));
    outcomes.extend(others.map(|r| ClusterUp { id: r.id.clone(), outcome: Ok(()) }));
    moved.retain(|id| !named.contains(id));
    moved::routers(settings, &moved, &mut outcomes, progress).await?;
    outcomes.sort_by(|x, y| x.id.cmp(&y.id));
    let mut report = UpReport { clusters: outcomes, host: None, verify: None };
    if !report.clusters.is_empty() && report.clusters.iter().all(|c| c.outcome.is_err()) {
        return Ok(report);
    }
    if request.start_host {
        report.host = Some(serve(settings, &mut report.clusters, progress).await?);
    }
    kubeconfigs_follow(settings, progress).await;
    if request.verify {
        progress.step(None, "verifying");
        report.verify = Some(verify::verify(settings, &[], progress).await?);
    }
    Ok(report)
}

async fn close(inspected: Vec<Inspected>) {
    join_all(inspected.into_iter().map(|i| i.reached.close())).await;
}

fn no_server() -> HostError {
    HostError::new(Class::Usage, "no Headscale server is known").with_hint(
        "give one: --headscale-url https://HOST:PORT --headscale-api-key-file FILE (or HEADSCALE_URL in .env)",
    )
}

/// Found out before anything is changed, so that the whole is not undone by its last step.
fn port_is_free(settings: &Settings) -> Result<(), HostError> {
    match TcpListener::bind(settings.listen) {
        Err(why) if why.kind() == io::ErrorKind::AddrInUse => {
            Err(HostError::new(Class::Conflict, format!("{} is taken by another program", settings.listen))
                .with_hint("stop that program, or choose another address: guildnet up --listen 127.0.0.1:PORT"))
        }
        // Anything else is said better by the Host App itself.
        _ => Ok(()),
    }
}

/// What earlier runs left in the store.
pub(crate) struct Known {
    pub(crate) records: Vec<ClusterRecord>,
    pub(crate) headscale: Option<HeadscaleRecord>,
}

impl Known {
    /// Reads the store if there is one; makes none.
    pub(crate) async fn read(settings: &Settings) -> Result<Self, HostError> {
        let Some(store) = fleet::open_existing(settings).await? else {
            return Ok(Self { records: vec![], headscale: None });
        };
        let (records, headscale) = (store.list().await.explained(), store.headscale().await.explained());
        store.close().await;
        Ok(Self { records: records?, headscale: headscale? })
    }

    /// The record of a cluster.
    pub(crate) fn record(&self, id: &ClusterId) -> Option<&ClusterRecord> {
        self.records.iter().find(|r| r.id == *id)
    }

    /// The Headscale server: as set now, and what is not set as it was kept for the same server.
    pub(crate) fn headscale(&self, settings: &Settings) -> Option<HeadscaleRecord> {
        let url = settings.headscale_url.clone().or_else(|| self.headscale.as_ref().map(|h| h.url.clone()))?;
        let kept = self.headscale.as_ref().filter(|h| h.url == url);
        Some(HeadscaleRecord {
            api_key: settings.api_key.clone().or_else(|| kept.and_then(|h| h.api_key.clone())),
            ca_pem: settings.headscale_ca.clone().or_else(|| kept.and_then(|h| h.ca_pem.clone())),
            url,
        })
    }

    /// Whether a Host App, which goes by what is kept, knows the Headscale server and its key as they are set now.
    pub(crate) fn is_same_server(&self, settings: &Settings) -> bool {
        self.headscale(settings) == self.headscale
    }

    /// A client for it; `None` if no server is known.
    pub(crate) fn server(&self, settings: &Settings) -> Result<Option<Server>, HostError> {
        let known = self.headscale(settings);
        Ok(known.map(|h| Server::of(&h)).transpose()?.map(|server| server.with_history(settings)))
    }
}

/// Looks at all clusters at once; those that fail go to `outcomes`.
async fn inspect_all(
    wanted: Vec<Asked>,
    known: &Known,
    host: Option<&HostClient>,
    connectors: &Arc<dyn StartConnector>,
    outcomes: &mut Vec<ClusterUp>,
    progress: &dyn Progress,
) -> Vec<Inspected> {
    let looks = wanted.into_iter().map(|w| async move {
        let id = w.id.clone();
        let record = known.record(&id);
        // A Host App that does not know the cluster yet leads nowhere.
        let host = host.filter(|_| record.is_some());
        (id, inspect(w, &Ways { host, record, connectors }, progress).await)
    });
    let mut inspected = Vec::new();
    for (id, seen) in join_all(looks).await {
        match seen {
            Ok(seen) => inspected.push(seen),
            Err(why) => {
                progress.step(Some(&id), &format!("failed: {}", why.message()));
                outcomes.push(ClusterUp { id, outcome: Err(why) });
            }
        }
    }
    inspected
}

/// The server that is used, and the namespace files that lie here.
struct AtHand {
    headscale: HeadscaleRecord,
    files: Vec<NamespaceFile>,
}

/// Namespaces, policy, keys and records of all clusters that were seen.
async fn set_up(
    settings: &Settings,
    request: &UpRequest,
    known: &Known,
    at_hand: &AtHand,
    server: &Server,
    inspected: &[Inspected],
    progress: &dyn Progress,
) -> Result<Vec<NamespaceFile>, HostError> {
    if inspected.is_empty() {
        return Ok(vec![]);
    }
    let members = if server.has_key() { None } else { Some(members(settings, known, at_hand, inspected)?) };
    let others = known.records.iter().filter_map(|r| Some((r.cluster_uid.clone()?, r.id.clone())));
    plan::distinct(
        inspected.iter().map(|i| (i.uid.clone(), i.wanted.id.clone())).chain(others),
        "have the same kube-system namespace",
    )?;
    // Before the server is touched: a full disk must not leave a server that knows more than we do.
    let store = fleet::open_store(settings).await?;
    let made = match members {
        Some(members) => Ok(members),
        None => ask_server(settings, request, known, server, inspected, progress).await,
    };
    let ready = match made {
        Ok(members) => {
            let headscale = &at_hand.headscale;
            write_records(settings, known, &store, headscale, inspected, &members).await.map(|()| members)
        }
        Err(why) => Err(why),
    };
    if ready.is_ok() {
        moved::remember(&store, server).await;
    }
    store.close().await;
    ready
}

/// The keys at hand of all clusters, where the server can't be asked for others.
fn members(
    settings: &Settings,
    known: &Known,
    at_hand: &AtHand,
    inspected: &[Inspected],
) -> Result<Vec<NamespaceFile>, HostError> {
    let member = |i: &Inspected| {
        let (id, record) = (&i.wanted.id, known.record(&i.wanted.id));
        let given = settings.cluster_keys.get(id);
        let joined = record.is_some_and(|r| r.state_path.is_dir());
        at_hand::member(id, &at_hand.headscale, given, &at_hand.files, record, joined)
    };
    inspected.iter().map(member).collect()
}

/// Namespaces, their place in the policy, and the keys that are missing, made on the server.
async fn ask_server(
    settings: &Settings,
    request: &UpRequest,
    known: &Known,
    server: &Server,
    inspected: &[Inspected],
    progress: &dyn Progress,
) -> Result<Vec<NamespaceFile>, HostError> {
    let host = HostClient::discover(&settings.home)?;
    let refused = join::refused(host.as_ref()).await;
    for (id, node_key) in refused.iter().filter(|(id, _)| inspected.iter().any(|i| i.wanted.id == **id)) {
        server.forget_expired(id, node_key.as_deref(), &fleet::hostname(id)).await?;
    }
    let wanted = |i: &Inspected| {
        let (id, record) = (&i.wanted.id, known.record(&i.wanted.id));
        let refused = refused.contains_key(id);
        let joined = record.is_some_and(|r| r.state_path.is_dir()) && !refused;
        Wanted {
            cluster: id.clone(),
            routes: i.routes.clone(),
            keys: if joined { Keys::Router } else { Keys::Both },
            site: record.and_then(|r| r.site),
            // A key that the server refused is not offered again.
            existing: record.map(|r| NamespaceFile {
                client_auth_key: r.client_auth_key.clone().filter(|_| !refused),
                ..file_of(r)
            }),
        }
    };
    let wants: Vec<Wanted> = inspected.iter().map(wanted).collect();
    server.set_up(&wants, request.consent, progress).await
}

/// The keys that a record holds, as the server's side takes them.
pub(crate) fn file_of(record: &ClusterRecord) -> NamespaceFile {
    NamespaceFile {
        cluster: record.id.clone(),
        namespace_id: record.namespace_id,
        login_server: record.login_server.clone(),
        router_auth_key: record.router_auth_key.clone(),
        router_key_expires: None,
        client_auth_key: record.client_auth_key.clone(),
        client_key_expires: None,
        site: record.site,
        routes: Some(record.routes.clone()),
        ca_pem: record.ca_pem.clone(),
    }
}

async fn write_records(
    settings: &Settings,
    known: &Known,
    store: &Store,
    headscale: &HeadscaleRecord,
    inspected: &[Inspected],
    members: &[NamespaceFile],
) -> Result<(), HostError> {
    let now = Timestamp::now();
    if known.headscale.as_ref() != Some(headscale) {
        store.put_headscale(headscale).await.explained()?;
    }
    for (seen, member) in inspected.iter().zip(members) {
        let id = &seen.wanted.id;
        let old = known.record(id);
        let record = ClusterRecord {
            id: id.clone(),
            kubeconfig: fleet::sealed_text(&seen.wanted.access)?,
            context: seen.wanted.access.context().to_owned(),
            login_server: headscale.url.clone(),
            ca_pem: headscale.ca_pem.clone(),
            client_auth_key: member.client_auth_key.clone(),
            router_auth_key: member.router_auth_key.clone(),
            routes: seen.routes.clone(),
            routes_given: seen.routes_given,
            state_path: old.map_or_else(|| settings.state_dir(id), |r| r.state_path.clone()),
            namespace: id.namespace(),
            namespace_id: member.namespace_id,
            site: member.site,
            api_address: Some(seen.api_address.addr()),
            cluster_uid: Some(seen.uid.clone()),
            // Who names a cluster wants it connected.
            disconnected: false,
            read_only: old.is_some_and(|r| r.read_only),
            created: old.map_or(now, |r| r.created),
            updated: now,
        };
        if old.is_none_or(|old| !old.differences(&record).is_empty()) {
            store.replace(&record).await.explained_of(id)?;
        }
    }
    Ok(())
}

/// Routers of all clusters at once, and their routes approved.
async fn routers(
    settings: &Settings,
    server: &Server,
    inspected: &[Inspected],
    members: Vec<NamespaceFile>,
    progress: &dyn Progress,
) -> Vec<ClusterUp> {
    let features = server.features().await;
    join_all(inspected.iter().zip(members).map(|(seen, member)| {
        let features = &features;
        async move {
            let id = seen.wanted.id.clone();
            let outcome = async {
                let features = features.as_ref().map_err(Clone::clone)?;
                let plan = router::plan(settings, &member, &seen.routes, *features);
                let status = router::deploy_seen(&seen.reached.api, &plan, server, progress).await?;
                if server.has_key() {
                    server.serve_routes(&id, &seen.routes, member.site, progress).await?;
                    server.forget_dead_routers(&id, &plan.hostname, status.desired, progress).await?;
                }
                Ok(())
            }
            .await
            .map_err(|why: HostError| why.of_cluster(&id));
            if let Err(why) = &outcome {
                progress.step(Some(&id), &format!("failed: {}", why.message()));
            }
            ClusterUp { id, outcome }
        }
    }))
    .await
}

/// Starts the Host App or has it read the store again, and waits for the connectors.
async fn serve(settings: &Settings, clusters: &mut [ClusterUp], progress: &dyn Progress) -> Result<String, HostError> {
    let host = match HostClient::discover(&settings.home)? {
        Some(host) => {
            host.reload().await?;
            progress.step(None, &format!("Host App at {} refreshed", host.url()));
            host
        }
        None => {
            let mut args = vec![
                "serve".into(),
                "--home".into(),
                settings.home.clone().into(),
                "--listen".into(),
                settings.listen.to_string().into(),
            ];
            args.extend(settings.log_format.flag().map(Into::into));
            daemon::start_background(&args, &settings.home).await?;
            let host = HostClient::discover(&settings.home)?.ok_or_else(|| {
                HostError::new(Class::Failed, "the Host App ended as soon as it had started")
                    .with_hint("see host.log in GuildNet's folder")
            })?;
            progress.step(None, &format!("Host App at {} started", host.url()));
            host
        }
    };
    join::wait(settings, &host, clusters, progress).await?;
    Ok(host.url())
}

/// See [`crate::down`].
pub(crate) async fn down(settings: &Settings, purge: bool, progress: &dyn Progress) -> Result<bool, HostError> {
    let ran = daemon::stop(&settings.home, DOWN_GRACE).await?;
    if ran {
        progress.step(None, "Host App stopped");
    }
    // After the Host App, whose connectors it serves; before the store, which holds its API key.
    let headscale_ran = managed::down_with_host(settings, purge, progress).await?;
    if purge {
        kubeconfigs::leave_all(settings, progress).await;
        purge_home(settings)?;
        progress.step(None, &format!("state removed from {}", settings.home.display()));
    }
    Ok(ran || headscale_ran)
}

/// What the Host App keeps in its home folder. Named one by one: the folder may be a person's own, with other things in it.
const KEPT: &[&str] = &[
    "seal.key",
    "token",
    "certs",
    "tsnet",
    "host.log",
    "host.log.1",
    "host.pid",
    "host.addr",
    "host.lock",
    kubeconfigs::MEMORY_FILE,
];

/// The database, its journals and the copies that upgrades leave begin with this.
const DATABASE: &str = "guildnet.db";

fn purge_home(settings: &Settings) -> Result<(), HostError> {
    let refused = |path: &Path, why: &io::Error| {
        HostError::new(Class::Failed, format!("{} can't be removed: {why}", path.display()))
            .with_hint("remove it by hand, or run the command as its owner")
    };
    let entries = match fs::read_dir(&settings.home) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|why| refused(&settings.home, &why))?,
    };
    for entry in entries {
        let entry = entry.map_err(|why| refused(&settings.home, &why))?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        if !KEPT.contains(&name.as_ref()) && !name.starts_with(DATABASE) {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        let gone = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        gone.map_err(|why| refused(&path, &why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: &[Option<Class>]) -> UpReport {
        let outcome = |c: &Option<Class>| c.map_or(Ok(()), |c| Err(HostError::new(c, "x")));
        let clusters = outcomes
            .iter()
            .enumerate()
            .map(|(n, c)| ClusterUp { id: format!("c{n}").parse().expect("an id"), outcome: outcome(c) })
            .collect();
        UpReport { clusters, host: None, verify: None }
    }

    #[test]
    fn some_failures_are_partial_and_all_of_them_are_what_they_are() {
        assert_eq!(report(&[None, None]).trouble(), None);
        assert_eq!(report(&[None, Some(Class::Unreachable)]).trouble(), Some(Class::Partial));
        assert_eq!(report(&[Some(Class::Unreachable), Some(Class::Failed)]).trouble(), Some(Class::Unreachable));
    }

    #[test]
    fn purging_leaves_what_is_not_ours() {
        let home = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(home.path().join("tsnet/cluster-a")).expect("made");
        for ours in ["token", "guildnet.db", "guildnet.db-wal"] {
            fs::write(home.path().join(ours), "x").expect("written");
        }
        fs::write(home.path().join("notes.txt"), "mine").expect("written");
        purge_home(&Settings::new(home.path().to_owned())).expect("purged");
        let left: Vec<_> = fs::read_dir(home.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
    }
}
