//! The fleet in a person's kubeconfigs: a context `guildnet-<id>` for each cluster, which leads through the Host App.
//!
//! What an entry says, and how others' are kept, is pure and in `guildnet-kube` (`kubeconfig/fleet.rs`). Here files are
//! chosen, locked, read and written (`kubeconfigs/file.rs`), and remembered (`kubeconfigs/memory.rs`) so that they follow:
//! [`kubeconfigs_follow`] brings them in step when clusters come and go, the Host App moves, or its authority is new.
//! `kubeconfigs/credential.rs` is what kubectl then runs.
//!
//! Of several files (`KUBECONFIG`) each entry stays in the one that has it; new ones go where kubectl puts them: into the
//! first file that exists, else into the last of the list (client-go 0.34, `clientcmd.PathOptions.GetDefaultFilename`).

mod credential;
mod file;
mod memory;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use guildnet_kube::{FleetDocument, FleetOwner, context_name};
use guildnet_model::{Class, ClusterId, Explain as _, Secret};
use guildnet_store::private;

pub use self::credential::{KubeCredential, kube_credential};
pub(crate) use self::memory::FILE as MEMORY_FILE;
use self::{
    file::{Kept, Locks},
    memory::Memory,
};
use crate::{HostError, Progress, Settings, certs, client::HostClient, door, error::Explained as _, up::Known};

/// What `kubeconfig write` was asked for.
#[derive(Clone, Debug)]
pub struct KubeconfigWrite {
    /// The files to choose from, in the order in which kubectl reads them. At least one.
    pub files: Vec<PathBuf>,
    /// Only these clusters; all that are known, and those that will be, if empty.
    pub clusters: Vec<ClusterId>,
    /// Make this cluster's context the current one.
    pub set_current: Option<ClusterId>,
}

/// What was changed in one kubeconfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeconfigChange {
    /// The file.
    pub file: PathBuf,
    /// Its contexts of ours now.
    pub contexts: Vec<String>,
    /// Those that went.
    pub removed: Vec<String>,
    /// What was there before, if there was something.
    pub backup: Option<PathBuf>,
    /// It had comments, which only the copy still has.
    pub comments_lost: bool,
    /// Its current context was one of those that went: it has none now.
    pub current_unset: bool,
}

/// What writing or removing did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeconfigDone {
    /// The contexts that were asked for.
    pub contexts: Vec<String>,
    /// Files that were changed; those that were as they should be are not among them.
    pub changes: Vec<KubeconfigChange>,
}

/// See [`crate::kubeconfig_write`].
pub(crate) async fn kubeconfig_write(
    settings: &Settings,
    asked: &KubeconfigWrite,
) -> Result<KubeconfigDone, HostError> {
    let known = known(settings).await?;
    let ids = chosen(&known, &asked.clusters)?;
    let current = current(&ids, asked.set_current.as_ref())?;
    let owner = owner(settings, None)?;
    let files = absolute(&asked.files)?;
    let Some(at) = files.iter().position(|f| f.exists()).or(files.len().checked_sub(1)) else {
        return Err(HostError::new(Class::Usage, "no kubeconfig to write to").with_hint("name one with --file FILE"));
    };
    file::make_folder(&files[at])?;
    let changes = change(&files, &owner.home, |opened| {
        for id in &ids {
            let mut there = opened.iter_mut().filter(|o| o.document.has_name(id)).peekable();
            if there.peek().is_none() {
                opened[at].put(&owner, id)?;
                continue;
            }
            for one in there {
                one.put(&owner, id)?;
            }
        }
        let gone = take_out_gone(opened, &owner.home, &known);
        if let Some(id) = current {
            opened[at].document.set_current(id);
        }
        Ok(gone)
    })
    .await?;
    let mut memory = Memory::read(&settings.home)?;
    memory.host = Some(owner.host.clone());
    for (n, (file, clusters)) in changes.held.into_iter().enumerate() {
        // All new ones go to one file only, else each would have them.
        let all = (n == at).then_some(asked.clusters.is_empty());
        memory.note(&file, all, clusters);
    }
    memory.keep(&settings.home)?;
    Ok(KubeconfigDone { contexts: ids.iter().map(context_name).collect(), changes: changes.files })
}

/// See [`crate::kubeconfig_print`].
pub(crate) async fn kubeconfig_print(
    settings: &Settings,
    clusters: &[ClusterId],
    set_current: Option<&ClusterId>,
) -> Result<Secret<String>, HostError> {
    let ids = chosen(&known(settings).await?, clusters)?;
    let current = current(&ids, set_current)?;
    let owner = owner(settings, None)?;
    let mut document = FleetDocument::parse("").explained()?;
    for id in &ids {
        document.put(&owner, id).explained_of(id)?;
    }
    if let Some(id) = current {
        document.set_current(id);
    }
    document.text().explained()
}

/// See [`crate::kubeconfig_remove`].
pub(crate) async fn kubeconfig_remove(
    settings: &Settings,
    files: &[PathBuf],
    remembered: bool,
    clusters: &[ClusterId],
) -> Result<KubeconfigDone, HostError> {
    let home = home(settings)?;
    let mut memory = Memory::read(&settings.home)?;
    let mut files = absolute(files)?;
    if remembered {
        files.extend(
            memory
                .files
                .iter()
                .map(|known| known.file.clone())
                .filter(|file| !files.contains(file))
                .collect::<Vec<_>>(),
        );
    }
    files.retain(|file| fs::symlink_metadata(file).is_ok());
    let stays = |id: Option<&ClusterId>| !clusters.is_empty() && id.is_none_or(|id| !clusters.contains(id));
    let changes =
        change(&files, &home, |opened| Ok(opened.iter_mut().flat_map(|o| o.document.take_out(&home, stays)).collect()))
            .await?;
    for (file, held) in changes.held {
        // Who takes one out does not want it back with the next cluster.
        memory.note(&file, Some(false), held);
    }
    memory.files.retain(|known| !known.clusters.is_empty());
    memory.keep(&settings.home)?;
    Ok(KubeconfigDone { contexts: Vec::new(), changes: changes.files })
}

/// Takes everything of this home folder out of the kubeconfigs that are remembered, before the folder is emptied. What
/// can't be done is told.
pub(crate) async fn leave_all(settings: &Settings, progress: &dyn Progress) {
    match kubeconfig_remove(settings, &[], true, &[]).await {
        Ok(done) => done.changes.iter().for_each(|change| {
            progress.step(None, &format!("contexts removed from {}", change.file.display()));
        }),
        Err(why) => progress.step(None, &format!("contexts left in a kubeconfig: {why}")),
    }
}

/// The kubeconfigs that have the fleet's contexts, as far as is remembered.
///
/// # Errors
/// What is remembered can't be read.
pub fn kubeconfig_files(settings: &Settings) -> Result<Vec<PathBuf>, HostError> {
    Ok(Memory::read(&settings.home)?.files.into_iter().map(|known| known.file).collect())
}

/// See [`crate::kubeconfigs_follow`].
pub(crate) async fn kubeconfigs_follow(settings: &Settings, progress: &dyn Progress) {
    let told = |why: &HostError| {
        let hint = why.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        progress.step(None, &format!("kubeconfig not brought in step: {why}{hint}"));
    };
    let mut memory = match Memory::read(&settings.home) {
        Ok(memory) if memory.files.is_empty() => return,
        Ok(memory) => memory,
        Err(why) => return told(&why),
    };
    let prepared = async {
        let known = known(settings).await?;
        let owner = owner(settings, memory.host.clone())?;
        Ok::<_, HostError>((known, owner))
    };
    let (known, owner) = match prepared.await {
        Ok(prepared) => prepared,
        Err(why) => return told(&why),
    };
    memory.host = Some(owner.host.clone());
    let mut kept = Vec::with_capacity(memory.files.len());
    for mut one in std::mem::take(&mut memory.files) {
        match follow_one(&one, &known, &owner, progress).await {
            Ok(Some(clusters)) => {
                one.clusters = clusters;
                kept.push(one);
            }
            // A person took ours out, or the file away.
            Ok(None) => {}
            Err(why) => {
                told(&why);
                kept.push(one);
            }
        }
    }
    memory.files = kept;
    if let Err(why) = memory.keep(&settings.home) {
        told(&why);
    }
}

/// One remembered file; whose entries it has afterwards, `None` if it is not to be followed any more.
async fn follow_one(
    one: &memory::Remembered,
    known: &[ClusterId],
    owner: &FleetOwner,
    progress: &dyn Progress,
) -> Result<Option<BTreeSet<ClusterId>>, HostError> {
    if fs::symlink_metadata(&one.file).is_err() {
        return Ok(None);
    }
    let mut left = false;
    let mut conflicts = Vec::new();
    let changes = change(std::slice::from_ref(&one.file), &owner.home, |opened| {
        for o in opened.iter_mut() {
            let there = o.document.clusters_of(&owner.home);
            left = !one.clusters.is_empty() && !o.document.is_of(&owner.home);
            if left {
                continue;
            }
            for id in known.iter().filter(|id| one.all || there.contains(id)) {
                conflicts.extend(o.put(owner, id).err());
            }
        }
        Ok(take_out_gone(opened, &owner.home, known))
    })
    .await?;
    for why in conflicts {
        progress.step(None, &format!("kubeconfig not brought in step: {why}"));
    }
    for done in changes.files {
        progress.step(None, &format!("kubeconfig {} brought in step", done.file.display()));
    }
    let held = changes.held.into_iter().next().map(|(_, clusters)| clusters);
    Ok(held.filter(|_| !left))
}

/// The ids of all clusters.
async fn known(settings: &Settings) -> Result<Vec<ClusterId>, HostError> {
    Ok(Known::read(settings).await?.records.into_iter().map(|record| record.id).collect())
}

/// The named ones of those that are known, all if none is named.
fn chosen(known: &[ClusterId], named: &[ClusterId]) -> Result<Vec<ClusterId>, HostError> {
    if let Some(unknown) = named.iter().find(|id| !known.contains(id)) {
        return Err(HostError::unknown_cluster(unknown, known));
    }
    if known.is_empty() {
        return Err(HostError::new(Class::Usage, "no cluster is known yet, so there is nothing to write")
            .with_hint("guildnet up --cluster ID=KUBECONFIG"));
    }
    Ok(known.iter().filter(|id| named.is_empty() || named.contains(id)).cloned().collect())
}

fn current<'a>(ids: &[ClusterId], wanted: Option<&'a ClusterId>) -> Result<Option<&'a ClusterId>, HostError> {
    match wanted {
        Some(id) if !ids.contains(id) => Err(HostError::new(
            Class::NotFound,
            format!("--set-current {id}: this cluster is not among those that are written"),
        )
        .with_hint("name one of them: guildnet cluster list")),
        other => Ok(other),
    }
}

/// What this home folder's entries say. The Host App that runs says where it is; `before` is where it was.
fn owner(settings: &Settings, before: Option<String>) -> Result<FleetOwner, HostError> {
    let running = HostClient::discover(&settings.home)?.map(|host| host.url());
    let host = running.or(before).unwrap_or_else(|| format!("https://{}", settings.listen));
    // Made if need be: the file is then good as soon as the Host App starts.
    certs::ensure(&settings.home)?;
    door::token(&settings.home)?;
    let ca_pem = private::read(&certs::authority_file(&settings.home)).explained()?.unwrap_or_default();
    let command = std::env::current_exe().map_err(|why| {
        HostError::new(Class::Failed, format!("where this command is can't be told: {why}"))
            .with_hint("run it by its full path")
    })?;
    Ok(FleetOwner {
        home: home(settings)?,
        command: text(&command, "the guildnet command")?,
        host,
        ca_pem: String::from_utf8_lossy(&ca_pem).into_owned(),
    })
}

/// The home folder as entries name it: without links, so that it is the same from everywhere.
fn home(settings: &Settings) -> Result<String, HostError> {
    let home = fs::canonicalize(&settings.home).or_else(|_| std::path::absolute(&settings.home));
    let home = home.map_err(|why| {
        HostError::new(Class::Usage, format!("{}: {why}", settings.home.display()))
            .with_hint("name a folder with --home DIR")
    })?;
    text(&home, "GuildNet's folder")
}

/// A path as a kubeconfig can hold it.
fn text(path: &Path, what: &str) -> Result<String, HostError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        HostError::new(Class::Usage, format!("{what} {} has a name that is not UTF-8", path.display()))
            .with_hint("a kubeconfig can't hold that: use another folder")
    })
}

fn absolute(files: &[PathBuf]) -> Result<Vec<PathBuf>, HostError> {
    let mut found: Vec<PathBuf> = Vec::with_capacity(files.len());
    for file in files {
        let file = std::path::absolute(file).map_err(|why| {
            HostError::new(Class::Usage, format!("kubeconfig {}: {why}", file.display()))
                .with_hint("name a file with --file FILE")
        })?;
        if !found.contains(&file) {
            found.push(file);
        }
    }
    Ok(found)
}

/// A kubeconfig that is being changed.
struct Opened {
    file: PathBuf,
    kept: Kept,
    document: FleetDocument,
}

impl Opened {
    fn read(file: &Path) -> Result<Self, HostError> {
        let kept = Kept::read(file)?;
        let document = FleetDocument::parse(kept.text.expose()).explained().map_err(|why| of_file(why, file))?;
        Ok(Self { file: file.to_owned(), kept, document })
    }

    fn put(&mut self, owner: &FleetOwner, id: &ClusterId) -> Result<(), HostError> {
        self.document.put(owner, id).explained().map_err(|why| of_file(why, &self.file))
    }
}

fn of_file(why: HostError, file: &Path) -> HostError {
    why.while_doing(format_args!("kubeconfig {}", file.display()))
}

/// Takes out the entries of clusters that are not known any more.
fn take_out_gone(opened: &mut [Opened], home: &str, known: &[ClusterId]) -> Vec<String> {
    let stays = |id: Option<&ClusterId>| id.is_none_or(|id| known.contains(id));
    opened.iter_mut().flat_map(|o| o.document.take_out(home, stays)).collect()
}

/// What [`change`] did.
struct Changes {
    files: Vec<KubeconfigChange>,
    /// Each file that was looked at, and whose entries of ours it has now.
    held: Vec<(PathBuf, BTreeSet<ClusterId>)>,
}

/// Locks and reads files, lets `plan` change them, and writes those that changed. `plan` says which contexts went.
async fn change(
    files: &[PathBuf],
    home: &str,
    plan: impl FnOnce(&mut [Opened]) -> Result<Vec<String>, HostError>,
) -> Result<Changes, HostError> {
    let _locks = Locks::take(files).await?;
    let mut opened = files.iter().map(|file| Opened::read(file)).collect::<Result<Vec<_>, _>>()?;
    let before: Vec<BTreeSet<ClusterId>> = opened.iter().map(|o| o.document.clusters_of(home)).collect();
    let gone = plan(&mut opened)?;
    let mut done = Changes { files: Vec::new(), held: Vec::with_capacity(opened.len()) };
    for (mut one, before) in opened.into_iter().zip(before) {
        // The current context may be named in another file than the one that has it.
        let current_unset = one.document.unset_current(&gone);
        let held = one.document.clusters_of(home);
        if one.document.is_changed() {
            let text = one.document.text().explained().map_err(|why| of_file(why, &one.file))?;
            let backup = one.kept.replace(&text)?;
            done.files.push(KubeconfigChange {
                file: one.file.clone(),
                contexts: held.iter().map(context_name).collect(),
                removed: before.difference(&held).map(context_name).collect(),
                backup,
                comments_lost: one.document.has_comments(),
                current_unset,
            });
        }
        done.held.push((one.file, held));
    }
    Ok(done)
}
