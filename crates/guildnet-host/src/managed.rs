//! A Headscale of this machine's own: `headscale up`, `down`, `status`, `backup`, `serve`, and `env-sync-lan`.
//!
//! Everything lies in `<home>/headscale/` (`folder.rs`). `up` starts a supervisor in the background (`supervise.rs`) that
//! outlives the Host App, waits until Headscale answers, and keeps its address, its authority and an API key in the store,
//! as it would for a server of somebody else: from there on nothing else in GuildNet knows the difference.
//!
//! What it is told is text from `guildnet_headscale::managed`; which address it has, `address.rs`; how a start is
//! planned and when a running one is out of date, `plan.rs`. Absent: any download, and container engines.

mod address;
mod backup;
mod binary;
mod certs;
mod env_file;
mod folder;
mod plan;
pub(crate) mod supervise;
mod unit;

use std::{
    fmt, fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use guildnet_headscale::managed as words;
use guildnet_model::{Class, ClusterId, Explain as _};
use guildnet_store::HeadscaleRecord;
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use url::Url;

pub use self::{
    address::AddressChoice,
    backup::Backup,
    env_file::{EnvChange, EnvSync, env_sync_lan},
    plan::ManagedSettings,
    unit::unit,
};
use self::{
    folder::{Choices, Folder},
    plan::Plan,
};
use crate::{
    ClusterUp, HostError, Progress, Settings,
    error::Explained as _,
    fleet, pki,
    server::Server,
    up::{Known, moved},
};

/// How long the supervisor may take to end: it gives Headscale 10 s.
const DOWN_GRACE: Duration = Duration::from_secs(15);
/// How long an API key lives. It is renewed by every `up` in its last month.
const KEY_LIVES: Duration = Duration::from_secs(365 * 24 * 3_600);
/// What is left of a key's life when it is renewed.
const KEY_RENEW: Duration = Duration::from_secs(30 * 24 * 3_600);

impl fmt::Display for AddressChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::This(address) => address.fmt(f),
        }
    }
}

/// What `headscale up` brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedUp {
    /// Where it is.
    pub url: Url,
    /// The clusters whose connectors and routers have followed it there from its address before.
    pub moved: Vec<ClusterId>,
}

/// See [`crate::headscale_up`].
pub(crate) async fn headscale_up(settings: &Settings, progress: &dyn Progress) -> Result<ManagedUp, HostError> {
    let (url, moved) = bring_up(settings, false, progress).await?;
    let mut clusters: Vec<ClusterUp> = moved.iter().map(|id| ClusterUp { id: id.clone(), outcome: Ok(()) }).collect();
    moved::routers(settings, &moved, &mut clusters, progress).await?;
    match clusters.into_iter().find_map(|cluster| cluster.outcome.err()) {
        Some(why) => Err(why),
        None => Ok(ManagedUp { url, moved }),
    }
}

/// The same on the way of `guildnet up`, which then answers for it: `guildnet down` ends what this has started. Returns where
/// it is, and the clusters that log in at another address now, whose routers have yet to follow.
pub(crate) async fn bring_up(
    settings: &Settings,
    for_up: bool,
    progress: &dyn Progress,
) -> Result<(Url, Vec<ClusterId>), HostError> {
    let folder = Folder::of(settings)?;
    let before = folder.choices()?;
    let known = Known::read(settings).await?;
    only_server(&known, &before)?;
    let asked = settings.managed.clone().or(&before.settings);
    let plan = Plan::make(&asked).await?;
    // A path that can't be told is found out here, where it is explained at once.
    plan.config(folder.path()).text().explained()?;
    folder.make()?;
    let running = folder.daemon().running()?.is_some();
    let outdated = match folder.started()?.filter(|_| running) {
        Some(started) => started.plan.outdated(&plan),
        None => None,
    };
    if let Some(why) = &outdated {
        progress.step(None, &format!("Headscale is started again: {why}"));
        folder.daemon().stop(DOWN_GRACE).await?;
    }
    let start = !running || outdated.is_some();
    let saved = folder.last_backup()?;
    let choices = Choices {
        settings: ManagedSettings { binary: Some(plan.binary.clone()), ..asked },
        // Who asks for it by name answers for it from then on.
        started_by_up: for_up && (before.started_by_up || !running),
        ..before.clone()
    };
    folder.set_choices(&choices)?;
    if start {
        plan.ports_are_free()?;
        let args = ["headscale".into(), "serve".into(), "--home".into(), settings_home(&folder).into()];
        let ready = async || Ok(folder.daemon().running()?.filter(|running| running.address.is_some()));
        folder.daemon().start(&args, settings_home(&folder), ready).await?;
        if let Some(made) = folder.last_backup()?.filter(|made| saved.as_ref() != Some(made)) {
            progress.step(None, &format!("backup before another program: {}", made.file.display()));
        }
    }
    let word = if start { "started" } else { "runs" };
    progress.step(None, &format!("managed Headscale {} {word} at {}", plan.build.version, plan.url()));
    let moved = keep_record(settings, &folder, choices, &plan, &known, progress).await?;
    if let Some(old) = before.url.filter(|url| *url != plan.url()) {
        progress.step(None, &format!("its address was {old} before: routers and connectors follow"));
    }
    Ok((plan.url(), moved))
}

/// The home folder that a Headscale's folder lies in, absolute.
fn settings_home(folder: &Folder) -> &Path {
    folder.path().parent().unwrap_or(folder.path())
}

/// A home has one Headscale: clusters that use another one keep it.
fn only_server(known: &Known, choices: &Choices) -> Result<(), HostError> {
    let foreign = |url: &Url| choices.url.as_ref() != Some(url);
    let used = known.records.iter().find(|record| foreign(&record.login_server));
    match (used, &known.headscale) {
        (Some(record), Some(server)) if foreign(&server.url) => Err(HostError::new(
            Class::Conflict,
            format!("this home uses the Headscale at {}: cluster {} logs in there", server.url, record.id),
        )
        .with_hint(format!(
            "use another home for a Headscale of your own (--home DIR), or first: guildnet cluster remove {}",
            record.id
        ))),
        _ => Ok(()),
    }
}

/// Whether `guildnet up` is about this home's own Headscale, which then has to run. `new_clusters`: some are to be set
/// up, for which a server is needed.
pub(crate) fn is_wanted(settings: &Settings, known: &Known, new_clusters: bool) -> Result<bool, HostError> {
    let ours = Folder::of(settings)?.choices()?.url;
    let named = settings.headscale_url.as_ref().or(known.headscale.as_ref().map(|server| &server.url));
    Ok(wanted(named, ours.as_ref(), new_clusters))
}

fn wanted(named: Option<&Url>, ours: Option<&Url>, new_clusters: bool) -> bool {
    match named {
        Some(url) => ours == Some(url),
        None => new_clusters,
    }
}

/// Keeps address, authority and an API key in the store, and has the clusters here log in at the address; returns those that
/// had another one. A key is made by Headscale's own command line, over its socket.
async fn keep_record(
    settings: &Settings,
    folder: &Folder,
    mut choices: Choices,
    plan: &Plan,
    all: &Known,
    progress: &dyn Progress,
) -> Result<Vec<ClusterId>, HostError> {
    let ca_pem = folder.trusted()?;
    let known = all.headscale.as_ref().filter(|record| choices.url.as_ref() == Some(&record.url));
    let kept = known.as_ref().and_then(|record| record.api_key.clone());
    let now = Timestamp::now();
    let lasts = choices.api_key_ends.is_some_and(|ends| ends.duration_since(now) >= renew_time());
    // A database that was put back from a copy may not know a key that was made since.
    let accepted = match &kept {
        Some(key) if lasts => {
            let server = Server::new(&plan.local_url(), Some(key.clone()), ca_pem.as_deref())?;
            match server.users().await {
                Ok(_) => true,
                Err(why) if why.class() == Class::Credentials => false,
                Err(why) => return Err(why),
            }
        }
        _ => false,
    };
    let api_key = if accepted {
        kept.clone()
    } else {
        let printed = binary::ask(&plan.binary, folder.path(), &words::create_key_args(KEY_LIVES)).await?;
        let key = words::key_of(&printed).ok_or_else(|| {
            HostError::new(Class::Failed, "Headscale did not print the API key that it was asked for")
                .with_hint("guildnet headscale status; its log may say why")
        })?;
        choices.api_key_ends = now.checked_add(KEY_LIVES).ok();
        Some(key)
    };
    let old = choices.url.replace(plan.url()).filter(|old| *old != plan.url());
    let record = HeadscaleRecord { url: plan.url(), api_key, ca_pem };
    let mut moved = Vec::new();
    if known != Some(&record) {
        let store = fleet::open_store(settings).await?;
        let kept = async {
            if let Some(old) = &old {
                moved = moved::records(&store, all, old, &record.url, record.ca_pem.as_deref()).await?;
            }
            store.put_headscale(&record).await.explained()
        };
        let kept = kept.await;
        store.close().await;
        kept?;
    }
    // Last: a run that ends before this one is repeated by the next, which makes another key.
    folder.set_choices(&choices)?;
    if !accepted {
        progress.step(None, "API key made and sealed in the store");
        if let Some(args) = kept.as_ref().and_then(words::expire_key_args)
            && let Err(why) = binary::ask(&plan.binary, folder.path(), &args).await
        {
            tracing::warn!(%why, "the API key before this one could not be ended; it ends by itself");
        }
    }
    Ok(moved)
}

fn renew_time() -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(KEY_RENEW).unwrap_or(jiff::SignedDuration::ZERO)
}

/// See [`crate::headscale_down`].
pub(crate) async fn headscale_down(
    settings: &Settings,
    purge: bool,
    progress: &dyn Progress,
) -> Result<bool, HostError> {
    let folder = Folder::of(settings)?;
    let members = if purge { members(settings, &folder).await } else { Members::Unknown };
    let ran = folder.daemon().stop(DOWN_GRACE).await?;
    if ran {
        progress.step(None, "managed Headscale stopped");
    }
    if purge && folder.path().exists() {
        remove(&folder)?;
        let said = match members {
            Members::Known { others, .. } if !others.is_empty() => {
                format!(", which coordinated nodes that this home does not know: {}", others.join(", "))
            }
            Members::Known { count, .. } => {
                format!(", which coordinated {count} node{}", if count == 1 { "" } else { "s" })
            }
            Members::Unknown => String::new(),
        };
        progress.step(None, &format!("removed {}{said}", folder.path().display()));
    }
    Ok(ran)
}

/// The share of `guildnet down` in it: stops it if `guildnet up` has started it. With `purge` its state is removed too,
/// but only where it is known that nobody else uses it. `false` if nothing ran.
pub(crate) async fn down_with_host(
    settings: &Settings,
    purge: bool,
    progress: &dyn Progress,
) -> Result<bool, HostError> {
    let folder = Folder::of(settings)?;
    if !folder.path().exists() {
        return Ok(false);
    }
    let by_up = folder.choices()?.started_by_up;
    let running = folder.daemon().running()?.is_some();
    if running && !by_up {
        progress.step(None, "the managed Headscale goes on, since it was started by its own command; to end it: guildnet headscale down");
        return Ok(false);
    }
    let members = if purge { members(settings, &folder).await } else { Members::Unknown };
    let ran = folder.daemon().stop(DOWN_GRACE).await?;
    if ran {
        progress.step(None, "managed Headscale stopped");
    }
    if purge {
        match members {
            Members::Known { others, .. } if others.is_empty() => {
                remove(&folder)?;
                progress.step(None, &format!("removed {}: only this home used it", folder.path().display()));
            }
            Members::Known { others, .. } => progress.step(
                None,
                &format!(
                    "left {}: others are coordinated by it ({}); to remove it: guildnet headscale down --purge",
                    folder.path().display(),
                    others.join(", ")
                ),
            ),
            Members::Unknown => progress.step(
                None,
                &format!(
                    "left {}: it did not run, so nobody could say who else uses it; to remove it: guildnet headscale down --purge",
                    folder.path().display()
                ),
            ),
        }
    }
    Ok(ran)
}

/// Who a Headscale coordinates.
enum Members {
    /// It does not run, or does not say.
    Unknown,
    /// All of its nodes, and the names of those that are neither a router nor the connector of a cluster of this home.
    Known { count: usize, others: Vec<String> },
}

async fn members(settings: &Settings, folder: &Folder) -> Members {
    let look = async {
        let (choices, known) = (folder.choices()?, Known::read(settings).await?);
        let ours = known.headscale.as_ref().is_some_and(|server| choices.url.as_ref() == Some(&server.url));
        let Some(server) = known.server(settings)?.filter(|_| ours) else {
            return Err(HostError::new(Class::NotFound, "the store does not know it"));
        };
        let nodes = server.nodes().await?;
        let mut own: Vec<u64> = Vec::new();
        for record in &known.records {
            own.extend(guildnet_headscale::routers_of(&nodes, &record.id).iter().map(|node| node.id));
            let name = fleet::hostname(&record.id);
            let clients = guildnet_headscale::clients_of(&nodes, &record.id);
            own.extend(clients.iter().filter(|node| node.name == name).map(|node| node.id));
        }
        let others = nodes.iter().filter(|node| !own.contains(&node.id)).map(|node| node.name.clone()).collect();
        Ok(Members::Known { count: nodes.len(), others })
    };
    look.await.unwrap_or(Members::Unknown)
}

fn remove(folder: &Folder) -> Result<(), HostError> {
    match fs::remove_dir_all(folder.path()) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => {
            Err(HostError::new(Class::Failed, format!("{} can't be removed: {why}", folder.path().display()))
                .with_hint("remove it by hand, or run the command as its owner"))
        }
        _ => Ok(()),
    }
}

/// How this home's own Headscale is, as seen now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedStatus {
    /// Whether its supervisor runs.
    pub running: bool,
    /// The supervisor's process id.
    pub pid: Option<u32>,
    /// The version of Headscale that it was started with last.
    pub version: Option<String>,
    /// The program.
    pub binary: Option<PathBuf>,
    /// Where nodes reach it.
    pub url: Option<Url>,
    /// Whether it answers there, with a certificate that its authority signed.
    pub answers: bool,
    /// The address that a start would choose now, if there is one.
    pub address_now: Option<Ipv4Addr>,
    /// The day on which its certificate ends, `YYYY-MM-DD`. It is renewed a month before.
    pub certificate_ends: Option<String>,
    /// The day on which the API key in the store ends.
    pub api_key_ends: Option<String>,
    /// The last backup that was made.
    pub last_backup: Option<Backup>,
    /// Its folder.
    pub folder: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// What is wrong, each with the command that mends it.
    pub problems: Vec<String>,
}

/// See [`crate::headscale_status`].
pub(crate) async fn headscale_status(settings: &Settings) -> Result<ManagedStatus, HostError> {
    let folder = Folder::of(settings)?;
    let (running, started, choices) = (folder.daemon().running()?, folder.started()?, folder.choices()?);
    let seen = address::observed();
    let asked = settings.managed.clone().or(&choices.settings);
    let now = plan::places(&asked, &seen);
    let mut problems = Vec::new();
    let mut answers = false;
    if let (Some(_), Some(started)) = (running, &started) {
        match Server::new(&started.plan.url(), None, folder.trusted()?.as_deref())?.health().await {
            Ok(_) => answers = true,
            Err(why) => {
                problems.push(format!("it does not answer: {why} (see {})", folder.daemon().log_file().display()))
            }
        }
    }
    let started = started.map(|started| started.plan);
    problems.extend(address_problem(started.as_ref(), &now));
    let today = pki::today();
    let certificate_ends = pki::ends(&folder.identity());
    if running.is_none() && certificate_ends.is_some_and(|ends| pki::days_between(today, ends) < pki::RENEW_DAYS) {
        problems.push("its certificate is near its end; a start renews it: guildnet headscale up".to_owned());
    }
    let key_ends = choices.api_key_ends;
    if key_ends.is_some_and(|ends| ends.duration_since(Timestamp::now()) < renew_time()) {
        problems.push("its API key is near its end; renew it: guildnet headscale up".to_owned());
    }
    Ok(ManagedStatus {
        running: running.is_some(),
        pid: running.map(|running| running.pid),
        version: started.as_ref().map(|plan| plan.build.version.clone()),
        binary: started.as_ref().map(|plan| plan.binary.clone()),
        url: started.as_ref().map(Plan::url),
        answers,
        address_now: now.ok().map(|places| places.address),
        certificate_ends: certificate_ends.map(|day| day.to_string()),
        api_key_ends: key_ends.map(|ends| ends.to_zoned(TimeZone::UTC).date().to_string()),
        last_backup: folder.last_backup()?,
        folder: folder.path().to_owned(),
        log: folder.daemon().log_file(),
        problems,
    })
}

/// What is to be said where the address that it was started with is not the one that a start would choose now.
fn address_problem(started: Option<&Plan>, now: &Result<plan::Places, HostError>) -> Option<String> {
    let started = started?;
    match now {
        Ok(now) if now.address != started.address => Some(format!(
            "this machine's address was {} when it was started and is now {}: 'guildnet headscale up' gives it the new one, and routers and connectors follow",
            started.address, now.address
        )),
        Ok(_) => None,
        Err(why) => Some(format!("{why}: its nodes can't reach it")),
    }
}

/// See [`crate::headscale_backup`].
pub(crate) async fn headscale_backup(settings: &Settings, to: Option<&Path>) -> Result<Backup, HostError> {
    backup::make(&Folder::of(settings)?, to).await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a URL")
    }

    #[test]
    fn up_needs_it_where_no_server_is_named_or_the_named_one_is_ours() {
        let (ours, other) = (url("https://192.168.1.20:8443"), url("https://headscale.example.org"));
        assert!(wanted(None, None, true), "the first clusters of a new home");
        assert!(!wanted(None, None, false), "clusters that came with their keys");
        assert!(wanted(Some(&ours), Some(&ours), false), "known clusters after a restart");
        assert!(!wanted(Some(&other), Some(&ours), true), "a server that is named is the one that is meant");
        assert!(!wanted(Some(&other), None, true));
    }

    #[test]
    fn a_changed_address_is_named_with_its_repair() {
        let address: Ipv4Addr = [192, 168, 1, 20].into();
        let plan = Plan {
            binary: "/usr/bin/headscale".into(),
            build: binary::Build { version: "0.29.2".into(), digest: "1".into() },
            address,
            listen: SocketAddrV4::new(address, 8443),
            stun: SocketAddrV4::new(address, 3478),
        };
        let places = |address: [u8; 4]| {
            let listen = SocketAddrV4::new(address.into(), 8443);
            Ok(plan::Places { address: address.into(), listen, stun: listen })
        };
        assert_eq!(address_problem(Some(&plan), &places([192, 168, 1, 20])), None);
        assert_eq!(address_problem(None, &places([10, 0, 0, 5])), None);
        let said = address_problem(Some(&plan), &places([10, 0, 0, 5])).expect("a problem");
        assert!(said.contains("192.168.1.20") && said.contains("10.0.0.5") && said.contains("headscale up"), "{said}");
        let gone = address_problem(Some(&plan), &Err(HostError::new(Class::Precondition, "no network")));
        assert_eq!(gone.expect("a problem"), "no network: its nodes can't reach it");
    }
}
