//! The operations behind the subcommands, all on one page: what `guildnet` calls, and all that it can do.
//!
//! Work on a cluster that is known here is done by the Host App if one runs, as a job, so that everybody sees it and nothing
//! else changes that cluster meanwhile; with files or settings that only the person at hand has it is done here.
//!
//! Each stands here once more than where it is written, since an async function is compiled again in every program that
//! awaits it; boxed here, it is compiled with this crate alone.

use std::{
    io::Write,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use futures_util::future::LocalBoxFuture;
use guildnet_model::{ClusterId, Networks, Secret};

use crate::{up::Known, verify::Report, *};

/// An operation: it begins with the first poll, and stays on the thread that awaits it.
pub type Operation<'a, T> = LocalBoxFuture<'a, Result<T, HostError>>;

/// Sets clusters up and serves them; without clusters, serves those that are known. May be repeated at any time.
///
/// # Errors
/// What concerns all clusters: input, the Headscale server, the store, the Host App. A failure of one cluster stands in
/// the report instead.
/// # Cancellation
/// Dropping the future leaves what was done so far; the same call goes on from there.
pub fn up<'a>(settings: &'a Settings, request: UpRequest, progress: &'a dyn Progress) -> Operation<'a, UpReport> {
    Box::pin(up::up(settings, request, progress))
}

/// Stops the Host App, and the managed Headscale if `up` has started it, and waits until they have ended. With `purge`
/// everything that the Host App kept is removed too: clusters, keys, certificates, the connectors' identities; and the
/// Headscale's state where nobody else uses it. `false` if nothing ran.
///
/// # Errors
/// It does not end, or the folder can't be removed.
pub fn down<'a>(settings: &'a Settings, purge: bool, progress: &'a dyn Progress) -> Operation<'a, bool> {
    Box::pin(up::down(settings, purge, progress))
}

/// `guildnet serve`: runs the Host App in the foreground until SIGTERM or SIGINT. What systemd handed over is used: its
/// socket in place of the address in the settings, and it is told of start and end.
///
/// # Errors
/// It could not start; see [`Host::build`].
pub fn serve<'a>(settings: &'a Settings, handed: Handed, progress: &'a dyn Progress) -> Operation<'a, ()> {
    Box::pin(host::serve(settings, handed, progress))
}

/// `guildnet logs`: writes the last lines of the Host App's log to `out`, and with `follow` those that come, until `reader`
/// (where `out` leads) is closed at its other end. Meanwhile it blocks its thread. Makes nothing, and asks no Host App.
///
/// # Errors
/// There is no log, or nothing in it of a cluster that is not known; it can't be read or watched.
pub fn logs<'a>(
    settings: &'a Settings,
    request: &'a LogsRequest,
    out: &'a mut dyn Write,
    reader: BorrowedFd<'a>,
    progress: &'a dyn Progress,
) -> Operation<'a, ()> {
    Box::pin(logs::logs(settings, request, out, reader, progress))
}

/// A link that signs a browser in at the running Host App, once and within a minute. It is a secret for that long.
///
/// # Errors
/// The Host App does not run, does not answer, or refuses.
pub fn ui_link(settings: &Settings) -> Operation<'_, Secret<String>> {
    Box::pin(ui::ui_link(settings))
}

/// Opens the person's own browser with such a link, by way of a private file, `ui.html` in the home folder.
///
/// # Errors
/// Those of [`ui_link`]; nothing here opens a browser.
/// # Cancellation
/// Dropping the future leaves a browser that was opened alone.
pub fn ui_open(settings: &Settings) -> Operation<'_, ()> {
    Box::pin(ui::ui_open(settings))
}

/// The browsers that are signed in.
///
/// # Errors
/// The Host App does not run, does not answer, or refuses.
pub fn sessions(settings: &Settings) -> Operation<'_, Vec<SessionInfo>> {
    Box::pin(ui::sessions(settings))
}

/// Signs out the browser of that session, all if none is named; says how many.
///
/// # Errors
/// Those of [`sessions`]; there is no session of that id.
pub fn session_revoke<'a>(settings: &'a Settings, id: Option<&'a str>) -> Operation<'a, usize> {
    Box::pin(ui::session_revoke(settings, id))
}

/// Makes the browsers of the person whose folder is `person_dir` trust this home folder's authority, and no longer one that it had
/// before. May be repeated at any time.
///
/// # Errors
/// What changes their stores is not installed, or can't change one. Stores that were changed before stay so.
/// # Cancellation
/// What was put where is written down before; the same call goes on from there, and [`trust_remove`] takes it away.
pub fn trust_install<'a>(
    settings: &'a Settings,
    person_dir: &'a Path,
    progress: &'a dyn Progress,
) -> Operation<'a, Trusted> {
    Box::pin(trust::trust_install(settings, person_dir, progress))
}

/// Takes away what [`trust_install`] has put into stores, and nothing else.
///
/// # Errors
/// As there.
pub fn trust_remove<'a>(settings: &'a Settings, person_dir: &'a Path) -> Operation<'a, Trusted> {
    Box::pin(trust::trust_remove(settings, person_dir))
}

/// What the Host App says of itself and its clusters; what the store knows if it does not run. Makes nothing.
///
/// # Errors
/// The Host App runs and does not answer, or the store can't be read.
pub fn status(settings: &Settings) -> Operation<'_, StatusReport> {
    Box::pin(status::status(settings))
}

/// Opens a stream to an address in the cluster's networks, or to a name that is resolved there: through the running Host
/// App, else by a connector that is started for it.
///
/// # Errors
/// The cluster or the name is not known; the address is not in its networks, or does not answer.
/// # Cancellation
/// Dropping the future abandons the dial; a connector that was started for it ends by itself.
pub fn dial<'a>(
    settings: &'a Settings,
    cluster: &'a ClusterId,
    to: &'a Destination,
    progress: &'a dyn Progress,
) -> Operation<'a, DialSession> {
    Box::pin(status::dial(settings, cluster, to, progress))
}

/// Makes forwards in the running Host App: all of them or none. They end with the session, unless they are to be kept.
///
/// # Errors
/// No Host App runs; the cluster is not known; a local address or port can't be had.
pub fn forward<'a>(settings: &'a Settings, request: &'a ForwardRequest) -> Operation<'a, ForwardSession> {
    Box::pin(forward::forward(settings, request))
}

/// All forwards of the running Host App, by local address.
///
/// # Errors
/// No Host App runs, or it does not answer.
pub fn forward_list(settings: &Settings) -> Operation<'_, Vec<ForwardStatus>> {
    Box::pin(forward::forward_list(settings))
}

/// Stops forwards of the running Host App, whoever made them; what they had done by then.
///
/// # Errors
/// No Host App runs, or it does not answer; there is no forward of a given id. Those before it are stopped then.
pub fn forward_stop<'a>(settings: &'a Settings, which: &'a ForwardStop) -> Operation<'a, Vec<ForwardStatus>> {
    Box::pin(forward::forward_stop(settings, which))
}

/// Switches a cluster's SOCKS5 and CONNECT proxies on or off, or gives them other ports. A running Host App follows at once.
/// Their password is made when they are first switched on.
///
/// # Errors
/// There is no cluster of that id; both proxies are to have one port; the store can't be written; a port can't be had (it is
/// tried again then, and the switch stays).
pub fn cluster_set_proxies<'a>(
    settings: &'a Settings,
    id: &'a ClusterId,
    request: ProxiesRequest,
    progress: &'a dyn Progress,
) -> Operation<'a, ProxiesSet> {
    Box::pin(forward::cluster_set_proxies(settings, id, request, progress))
}

/// The addresses, user and password of a cluster's proxies; with `renew` a new password, and the old one opens nothing more.
///
/// # Errors
/// There is no cluster of that id, or its proxies were never switched on; the store can't be read or written.
pub fn cluster_proxies<'a>(settings: &'a Settings, id: &'a ClusterId, renew: bool) -> Operation<'a, ProxiesAccess> {
    Box::pin(forward::cluster_proxies(settings, id, renew))
}

/// Runs all checks on the given clusters (on all that are known if none is given): in the running Host App, else here,
/// with connectors that are started for it. Isolation is asked against all clusters that are known, given or not.
///
/// # Errors
/// No cluster, or not the named one, is known; the store can't be read. A check that fails is no error: see the report.
/// # Cancellation
/// Dropping the future abandons the checks.
pub fn verify<'a>(
    settings: &'a Settings,
    clusters: &'a [ClusterId],
    progress: &'a dyn Progress,
) -> Operation<'a, Report> {
    Box::pin(verify::verify(settings, clusters, progress))
}

/// Adds a cluster: its connector must be admitted by the server before it is stored. Needs neither an API key (with the
/// namespace's file) nor a direct way to the cluster.
///
/// # Errors
/// Wrong input; the id is taken (without `replace`); the server refuses the key; the API server is reached and is not the
/// one that the kubeconfig means. Nothing is stored then.
pub fn cluster_add<'a>(
    settings: &'a Settings,
    request: AddRequest,
    progress: &'a dyn Progress,
) -> Operation<'a, ClusterInfo> {
    Box::pin(add::cluster_add(settings, request, progress))
}

/// All clusters of the store, by id. Makes nothing.
///
/// # Errors
/// The store can't be read.
pub fn cluster_list(settings: &Settings) -> Operation<'_, Vec<ClusterInfo>> {
    Box::pin(add::cluster_list(settings))
}

/// One cluster of the store.
///
/// # Errors
/// There is none of that id; the store can't be read.
pub fn cluster_show<'a>(settings: &'a Settings, id: &'a ClusterId) -> Operation<'a, ClusterInfo> {
    Box::pin(add::cluster_show(settings, id))
}

/// Connects a known cluster, or disconnects it and keeps its record. A running Host App follows at once; another one does
/// when it starts.
///
/// # Errors
/// There is no cluster of that id; the store can't be written; the Host App does not answer.
pub fn cluster_connect<'a>(
    settings: &'a Settings,
    id: &'a ClusterId,
    connect: bool,
    progress: &'a dyn Progress,
) -> Operation<'a, Switched> {
    Box::pin(set::cluster_connect(settings, id, connect, progress))
}

/// Makes a cluster read-only through the Host App, or writable again. A running Host App follows at once, and what is under
/// way goes on.
///
/// # Errors
/// There is no cluster of that id; the store can't be written; the Host App does not answer.
pub fn cluster_set<'a>(
    settings: &'a Settings,
    id: &'a ClusterId,
    read_only: bool,
    progress: &'a dyn Progress,
) -> Operation<'a, Switched> {
    Box::pin(set::cluster_set(settings, id, read_only, progress))
}

/// Removes a cluster: its router, its connector, what it has on the Headscale server (with an API key), its record and its
/// connector's identity. What is left is named.
///
/// # Errors
/// There is none of that id; the Headscale server that should forget it can't be asked; the store can't be written. What was
/// removed until then stays removed, and the same call goes on from there.
/// # Cancellation
/// As after an error.
pub fn cluster_remove<'a>(
    settings: &'a Settings,
    request: &'a RemoveRequest,
    progress: &'a dyn Progress,
) -> Operation<'a, Removed> {
    Box::pin(async move {
        match client::worker(settings, &request.id, |known| known.is_same_server(settings)).await? {
            Some(host) => host.remove(request, progress).await,
            None => remove::cluster_remove(settings, request, progress).await,
        }
    })
}

/// Takes the router out of a cluster and its nodes off the Headscale server (with an API key). Record, keys and policy stay:
/// `router ensure` brings it back.
///
/// # Errors
/// The cluster is not known, or can't be reached on any way.
pub fn router_remove<'a>(
    settings: &'a Settings,
    request: &'a RouterRequest,
    progress: &'a dyn Progress,
) -> Operation<'a, Removed> {
    Box::pin(async move {
        let knows = |known: &Known| request.is_plain() && known.is_same_server(settings);
        match client::worker(settings, &request.id, knows).await? {
            Some(host) => host.router_remove(&request.id, progress).await,
            None => remove::router_remove(settings, request, progress).await,
        }
    })
}

/// Makes the namespace of a cluster, its place in the policy, and its router and client key, and writes them to `file`
/// (default `tmp/cluster-<id>-headscale.json`). Keys that the file holds already are kept while they are valid.
///
/// # Errors
/// No API key; the server refuses; the file holds something else or can't be written.
pub fn namespace_and_keys<'a>(
    settings: &'a Settings,
    id: &'a ClusterId,
    routes: Option<Networks>,
    file: Option<&'a Path>,
    consent: Consent,
    progress: &'a dyn Progress,
) -> Operation<'a, NamespaceReport> {
    Box::pin(namespace::namespace_and_keys(settings, id, routes, file, consent, progress))
}

/// Applies the DaemonSet and waits until every node's router is connected; with an API key also until its routes are
/// approved, and approves them if the policy does not. Networks that were discovered follow the cluster: where it has others
/// now, policy, record and routers are brought up to date. Networks that are given replace the recorded ones.
///
/// # Errors
/// The API server can't be reached on any way (the hint says what to run on the other side), the cluster can't run routers
/// (nothing is changed then), a pod does not come up (with its own reason), the server does not admit the router.
/// # Cancellation
/// Dropping the future leaves the DaemonSet applied; the same call goes on from there.
pub fn router_ensure<'a>(
    settings: &'a Settings,
    request: RouterRequest,
    progress: &'a dyn Progress,
) -> Operation<'a, RouterReport> {
    Box::pin(async move {
        let knows = |known: &Known| request.is_plain() && known.is_same_server(settings) && !settings.shapes_routers();
        match client::worker(settings, &request.id, knows).await? {
            Some(host) => host.router_ensure(&request, progress).await,
            None => router::router_ensure(settings, request, progress).await,
        }
    })
}

/// The manifests as YAML for `kubectl apply --server-side -f -`; the key only if `with_key`. Reaches no cluster; asks the
/// Headscale server for its version, and does without the answer.
///
/// # Errors
/// Login server, networks or (if asked for) key are not known from flags, file or store.
pub fn router_manifest(settings: &Settings, request: RouterRequest, with_key: bool) -> Operation<'_, String> {
    Box::pin(router::router_manifest(settings, request, with_key))
}

/// What is there now.
///
/// # Errors
/// The cluster is not known, or its API server can't be reached.
pub fn router_status(settings: &Settings, request: RouterRequest) -> Operation<'_, RouterReport> {
    Box::pin(router::router_status(settings, request))
}

/// The keys of these clusters' namespaces, of all that are known here if none is named, and the API key.
///
/// # Errors
/// No Headscale server or no API key is known; the server does not answer, or refuses.
pub fn keys_list<'a>(settings: &'a Settings, clusters: &'a [ClusterId]) -> Operation<'a, Vec<KeyInfo>> {
    Box::pin(keys::keys_list(settings, clusters))
}

/// Gives a cluster's connector a new identity, and with `router` its routers a new key. A running Host App goes over to it, and
/// touches no other cluster.
///
/// # Errors
/// There is no cluster of that id; no API key; the server, the cluster (for the routers' key) or the Host App does not do its
/// part. The old identity is in use then.
/// # Cancellation
/// The old identity is in use, or the new one, never neither. What was made and is not used stays until the next rotation.
pub fn keys_rotate<'a>(
    settings: &'a Settings,
    id: &'a ClusterId,
    router: bool,
    progress: &'a dyn Progress,
) -> Operation<'a, Rotated> {
    Box::pin(async move {
        match client::worker(settings, id, |known| known.is_same_server(settings)).await? {
            Some(host) => host.rotate(id, router, progress).await,
            None => rotate::keys_rotate(settings, id, router, progress).await,
        }
    })
}

/// Shows the policy of the server.
///
/// # Errors
/// No server or API key is known; the server does not answer or what it holds can't be read.
pub fn policy_show(settings: &Settings) -> Operation<'_, PolicyShown> {
    Box::pin(policy::policy_show(settings))
}

/// The whole document that `policy apply` would write: for a server that reads its policy from a file.
///
/// # Errors
/// Those of [`policy_show`]; it can't be compiled, or not beside what others wrote (without `merge`).
pub fn policy_compiled<'a>(
    settings: &'a Settings,
    named: &'a [PolicyCluster],
    consent: Consent,
) -> Operation<'a, String> {
    Box::pin(policy::policy_compiled(settings, named, consent))
}

/// What `policy apply` would change.
///
/// # Errors
/// Those of [`policy_show`]; it can't be compiled at all.
pub fn policy_diff<'a>(
    settings: &'a Settings,
    named: &'a [PolicyCluster],
    consent: Consent,
) -> Operation<'a, PolicyDiff> {
    Box::pin(policy::policy_diff(settings, named, consent))
}

/// Writes the policy that keeps the clusters apart.
///
/// # Errors
/// Those of [`policy_diff`]; the server refuses it, or reads its policy from a file.
pub fn policy_apply<'a>(
    settings: &'a Settings,
    named: &'a [PolicyCluster],
    consent: Consent,
    progress: &'a dyn Progress,
) -> Operation<'a, PolicyDone> {
    Box::pin(policy::policy_apply(settings, named, consent, progress))
}

/// Judges the policy of the server, in the form of a verify report.
///
/// # Errors
/// Those of [`policy_show`].
pub fn policy_check(settings: &Settings) -> Operation<'_, Report> {
    Box::pin(policy::policy_check(settings))
}

/// Puts back the policy that the last write of this device replaced. Doing it twice puts things as they were.
///
/// # Errors
/// Those of [`policy_show`]; nothing was replaced from here; the server's policy was changed since (without
/// `discard_changes`); nodes of others would be cut off (without `cut_off_others`); the server refuses.
pub fn policy_rollback<'a>(
    settings: &'a Settings,
    discard_changes: bool,
    cut_off_others: bool,
    progress: &'a dyn Progress,
) -> Operation<'a, PolicyDone> {
    Box::pin(policy::policy_rollback(settings, discard_changes, cut_off_others, progress))
}

/// Sees to it that this home's own Headscale runs as asked, and that the store knows it and has a key for it. May be
/// repeated at any time; one that runs by another address, other ports or another program is started again.
///
/// # Errors
/// No program, no address, a port that is taken; it does not start; the clusters here use another Headscale; the routers of
/// one do not follow it to another address.
/// # Cancellation
/// Dropping the future leaves what was done so far; the same call goes on from there.
pub fn headscale_up<'a>(settings: &'a Settings, progress: &'a dyn Progress) -> Operation<'a, ManagedUp> {
    Box::pin(managed::headscale_up(settings, progress))
}

/// Stops this home's own Headscale and waits until it has ended; `false` if it did not run. With `purge` its state is
/// removed too: every device and router that it coordinated will need another server. The words say what that is.
///
/// # Errors
/// It does not end, or the folder can't be removed.
pub fn headscale_down<'a>(settings: &'a Settings, purge: bool, progress: &'a dyn Progress) -> Operation<'a, bool> {
    Box::pin(managed::headscale_down(settings, purge, progress))
}

/// Looks at this home's own Headscale. Changes nothing.
///
/// # Errors
/// A file of it can't be read.
pub fn headscale_status(settings: &Settings) -> Operation<'_, ManagedStatus> {
    Box::pin(managed::headscale_status(settings))
}

/// Copies everything that makes this home's Headscale this one into one file, for its owner only. It may run meanwhile.
///
/// # Errors
/// There is none, the file exists, or there is no room.
pub fn headscale_backup<'a>(settings: &'a Settings, to: Option<&'a Path>) -> Operation<'a, Backup> {
    Box::pin(managed::headscale_backup(settings, to))
}

/// Runs Headscale in the foreground until SIGTERM or SIGINT.
///
/// # Errors
/// What a start needs is missing, another supervisor has the folder, or Headscale ends before it has answered once.
pub fn headscale_serve<'a>(settings: &'a Settings, progress: &'a dyn Progress) -> Operation<'a, ()> {
    Box::pin(managed::supervise::headscale_serve(settings, progress))
}

/// Writes the fleet's contexts into kubeconfigs, and takes out those of clusters that are gone. Files that have them
/// already stay as they are.
///
/// # Errors
/// A cluster is not known, or none is; a file is no kubeconfig, is locked or read-only; an entry of the same name is
/// somebody else's. Files that were written before that stay written.
/// # Cancellation
/// Dropping the future leaves whole files, and locks that are freed.
pub fn kubeconfig_write<'a>(settings: &'a Settings, asked: &'a KubeconfigWrite) -> Operation<'a, KubeconfigDone> {
    Box::pin(kubeconfigs::kubeconfig_write(settings, asked))
}

/// The fleet's contexts as a kubeconfig of their own.
///
/// # Errors
/// A cluster is not known, or none is.
pub fn kubeconfig_print<'a>(
    settings: &'a Settings,
    clusters: &'a [ClusterId],
    set_current: Option<&'a ClusterId>,
) -> Operation<'a, Secret<String>> {
    Box::pin(kubeconfigs::kubeconfig_print(settings, clusters, set_current))
}

/// Takes this home folder's entries out of kubeconfigs: those of the named clusters, all if none is named. Looks into the
/// files that are given and, if `remembered`, into all that were ever written.
///
/// # Errors
/// A file is no kubeconfig, is locked or read-only.
/// # Cancellation
/// As in [`kubeconfig_write`].
pub fn kubeconfig_remove<'a>(
    settings: &'a Settings,
    files: &'a [PathBuf],
    remembered: bool,
    clusters: &'a [ClusterId],
) -> Operation<'a, KubeconfigDone> {
    Box::pin(kubeconfigs::kubeconfig_remove(settings, files, remembered, clusters))
}

/// Brings the kubeconfigs that the fleet was written to in step with it. What can't be done is told, and is no failure of
/// what called for it.
pub fn kubeconfigs_follow<'a>(settings: &'a Settings, progress: &'a dyn Progress) -> LocalBoxFuture<'a, ()> {
    Box::pin(kubeconfigs::kubeconfigs_follow(settings, progress))
}
