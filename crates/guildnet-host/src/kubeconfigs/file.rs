//! A person's kubeconfig on the disk: locked as kubectl locks it, read, and replaced whole, with a copy of what was there.
//! Knows nothing of what stands in it.
//!
//! kubectl changes a kubeconfig under the lock `FILE.lock`, made with `O_EXCL` and removed afterwards
//! (client-go 0.34, `tools/clientcmd/loader.go`, `lockFile`), and gives up at once where there is one. We wait a little.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use guildnet_model::{Class, Secret};
use guildnet_store::private::with_ending;
use rustix::fs::Access;
use tokio::time::{Instant, sleep};

use crate::HostError;

/// How long another program's lock is waited for: kubectl holds it for milliseconds.
const LOCK_TIME: Duration = Duration::from_secs(2);
/// How often it is looked at: nothing tells when a file is gone.
const LOCK_POLL: Duration = Duration::from_millis(25);
/// What is read of a file at most: a byte more than may be changed, so that a larger one is told by its reader.
const MAX_READ: u64 = (4 << 20) + 1;
/// What the copy's name ends with. One generation: what was there before the last change.
const BACKUP: &str = ".guildnet-backup";

/// The locks of some kubeconfigs; dropping it frees them.
#[derive(Debug)]
pub(super) struct Locks(Vec<PathBuf>);

impl Locks {
    /// Locks all of them, in the order in which kubectl does, so that neither waits for the other for ever. A file whose
    /// folder is not there can't be written by anybody and needs no lock.
    ///
    /// # Errors
    /// [`Class::Conflict`] if another program holds one for longer than [`LOCK_TIME`]; a folder can't be written.
    pub(super) async fn take(files: &[PathBuf]) -> Result<Self, HostError> {
        let mut wanted: Vec<&PathBuf> = files.iter().filter(|file| folder(file).is_dir()).collect();
        wanted.sort();
        wanted.dedup();
        let mut locks = Self(Vec::with_capacity(wanted.len()));
        let until = Instant::now() + LOCK_TIME;
        for file in wanted {
            let lock = with_ending(file, ".lock");
            loop {
                match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock) {
                    Ok(_) => break,
                    Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(refused(file, &why)),
                    Err(_) if Instant::now() < until => sleep(LOCK_POLL).await,
                    Err(_) => {
                        let held = format!(
                            "{} is being changed by another program: {} is there",
                            file.display(),
                            lock.display()
                        );
                        return Err(HostError::new(Class::Conflict, held).with_hint(format!(
                            "run the command again; if no kubectl runs, the lock was left behind: rm {}",
                            lock.display()
                        )));
                    }
                }
            }
            locks.0.push(lock);
        }
        Ok(locks)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        for lock in &self.0 {
            // Somebody may have removed it, as our own hint says.
            let _ = fs::remove_file(lock);
        }
    }
}

/// A kubeconfig as it was read; there need not be one.
#[derive(Debug)]
pub(super) struct Kept {
    /// Where it really is: a link is followed, and stays a link.
    target: PathBuf,
    found: Option<Metadata>,
    /// Its content.
    pub(super) text: Secret<String>,
}

impl Kept {
    /// Reads a file; one that is not there is empty.
    ///
    /// # Errors
    /// It can't be read, is no file, or no text.
    pub(super) fn read(file: &Path) -> Result<Self, HostError> {
        let wrong = |why: String| {
            HostError::new(Class::Usage, format!("kubeconfig {} {why}", file.display()))
                .with_hint("name a file that this user can read and write, with --file FILE")
        };
        let nothing = Self { target: file.to_owned(), found: None, text: Secret::new(String::new()) };
        if let Err(why) = fs::symlink_metadata(file) {
            return if why.kind() == io::ErrorKind::NotFound {
                Ok(nothing)
            } else {
                Err(wrong(format!("can't be read: {why}")))
            };
        }
        let read = || -> io::Result<(PathBuf, Metadata, Secret<String>)> {
            let target = fs::canonicalize(file)?;
            let open = File::open(&target)?;
            let found = open.metadata()?;
            if !found.is_file() {
                return Err(io::Error::other("it is no plain file"));
            }
            // Room for all of it at once: a growing buffer would leave copies of secrets behind.
            let mut text = String::with_capacity(usize::try_from(found.len().min(MAX_READ)).unwrap_or_default() + 1);
            let done = open.take(MAX_READ).read_to_string(&mut text);
            let text = Secret::new(text);
            done.map(|_| (target, found, text))
        };
        match read() {
            Ok((target, found, text)) => Ok(Self { target, found: Some(found), text }),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                Err(wrong("is a link to a file that is not there".into()))
            }
            Err(why) if why.kind() == io::ErrorKind::InvalidData => Err(wrong("is not text".into())),
            Err(why) => Err(wrong(format!("can't be read: {why}"))),
        }
    }

    /// Puts `text` in its place, whole or not at all, with its mode and owner (0600 where there was none). What was there
    /// is copied beside it first; says where.
    ///
    /// # Errors
    /// It is read-only, was changed since it was read, belongs to somebody else, or can't be written. Then it is as it was.
    pub(super) fn replace(&self, text: &Secret<String>) -> Result<Option<PathBuf>, HostError> {
        let file = &self.target;
        let Some(found) = &self.found else {
            // Not there when it was read: then nothing may be there now.
            let new = Beside::new(file, text, None).map_err(|why| refused(file, &why))?;
            fs::hard_link(&new.0, file).map_err(|why| match why.kind() {
                io::ErrorKind::AlreadyExists => changed(file),
                _ => refused(file, &why),
            })?;
            return sync_folder(file).map(|()| None);
        };
        // A rename needs no right to write to the file: whoever took that right away did so on purpose.
        rustix::fs::access(file, Access::WRITE_OK).map_err(|_| {
            HostError::new(Class::Precondition, format!("{} is read-only for this user", file.display()))
                .with_hint(format!("chmod u+w {}, or write into another file with --file FILE", file.display()))
        })?;
        let backup = with_ending(file, BACKUP);
        let copy = Beside::new(file, &self.text, Some(found)).map_err(|why| refused(file, &why))?;
        let new = Beside::new(file, text, Some(found)).map_err(|why| refused(file, &why))?;
        let now = fs::metadata(file).map_err(|why| refused(file, &why))?;
        if version(&now) != version(found) {
            return Err(changed(file));
        }
        fs::rename(&copy.0, &backup).map_err(|why| refused(&backup, &why))?;
        fs::rename(&new.0, file).map_err(|why| refused(file, &why))?;
        sync_folder(file).map(|()| Some(backup))
    }
}

/// Makes the folder of a kubeconfig, for its owner only, if there is none.
///
/// # Errors
/// It can't be made.
pub(super) fn make_folder(file: &Path) -> Result<(), HostError> {
    let folder = folder(file);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|why| refused(file, &why))
}

/// Tells one content of a file from the next.
fn version(meta: &Metadata) -> (u64, u64, u64, i64, i64) {
    (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec())
}

fn changed(file: &Path) -> HostError {
    HostError::new(Class::Conflict, format!("{} was changed by another program just now", file.display()))
        .with_hint("run the command again")
}

fn refused(file: &Path, why: &io::Error) -> HostError {
    HostError::new(Class::Precondition, format!("{} can't be written: {why}", file.display()))
        .with_hint("let this user write to its folder, or write into another file with --file FILE")
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(file: &Path) -> Result<(), HostError> {
    File::open(folder(file)).and_then(|folder| folder.sync_all()).map_err(|why| refused(file, &why))
}

/// A synced file beside its final place; its name goes away on drop.
struct Beside(PathBuf);

impl Beside {
    /// `like` says whose it is to be and its mode.
    fn new(file: &Path, text: &Secret<String>, like: Option<&Metadata>) -> io::Result<Self> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut n = 0_u32;
        let (path, mut open) = loop {
            let path = file.with_file_name(format!(".{name}.guildnet-{}-{n}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(open) => break (path, open),
                // Ours of this call, or left behind by a process that was killed.
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists && n < 16 => n += 1,
                Err(why) => return Err(why),
            }
        };
        let this = Self(path);
        open.write_all(text.expose().as_bytes())?;
        if let Some(like) = like {
            let made = open.metadata()?;
            if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
                std::os::unix::fs::fchown(&open, Some(like.uid()), Some(like.gid()))?;
            }
            open.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
        }
        open.sync_all()?;
        Ok(this)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.into())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("read").map(|e| e.expect("an entry").file_name());
        let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_lock_that_is_freed_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        let first = Locks::take(std::slice::from_ref(&file)).await.expect("free");
        // Both files, one of them twice: the order and the repetition must not lock out ourselves.
        let both = [file.clone(), folder.path().join("another"), file.clone(), folder.path().join("none/config")];
        let (second, ()) = tokio::join!(Locks::take(&both), async { drop(first) });
        let second = second.expect("waited for");
        assert_eq!(names(folder.path()), ["another.lock", "config.lock"]);
        drop(second);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_stays_frees_those_that_were_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("b.lock"), "").expect("written");
        let refused = Locks::take(&[folder.path().join("b"), folder.path().join("a")]).await.expect_err("held");
        assert!(refused.to_string().ends_with("b.lock is there"), "{refused}");
        assert_eq!(names(folder.path()), ["b.lock"]);
    }

    #[test]
    fn what_another_program_wrote_meanwhile_is_not_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config");
        let not_there = Kept::read(&file).expect("read");
        fs::write(&file, "theirs").expect("written");
        let there = Kept::read(&file).expect("read");
        fs::write(&file, "theirs again").expect("written");
        for kept in [not_there, there] {
            let refused = kept.replace(&secret("ours")).expect_err("changed");
            assert!(refused.to_string().ends_with("was changed by another program just now"), "{refused}");
        }
        assert_eq!(fs::read_to_string(&file).expect("read"), "theirs again");
        assert_eq!(names(folder.path()), ["config"], "nothing is left beside it");
        Kept::read(&file).expect("read").replace(&secret("ours")).expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), "ours");
        assert_eq!(fs::read_to_string(folder.path().join("config.guildnet-backup")).expect("read"), "theirs again");
    }
}
