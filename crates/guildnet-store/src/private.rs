//! Folders (0700) and files (0600) that belong to one person: made, written whole or not at all, and checked.
//!
//! A write goes to a new file beside the old one, is synced, and takes the old one's place by rename: a full disk or a
//! power cut leaves either the old content or the new one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use guildnet_model::{Class, Explain};

/// What others (group and world) may do with a private file or folder: nothing.
const OTHERS: u32 = 0o077;

/// Why a private file or folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// The system refused.
    #[error("{path}: {why}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        why: io::Error,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}, this is user {us}", path = .path.display())]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// Others may read or write it.
    #[error("{path} is open to others (mode {mode:04o})", path = .path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl PrivateError {
    /// Names the file of a system error; for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |why| Self::Io { path, why }
    }

    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { why, .. } if is_full(why))
    }
}

/// Whether the error says that there is no room: the disk, or the person's share of it.
pub(crate) fn is_full(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Explain for PrivateError {
    fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Failed,
            Self::Foreign { .. } | Self::Open { .. } => Class::Precondition,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { path, .. } if self.is_full() => {
                format!("make room on the disk that holds {}, then run the command again", path.display())
            }
            Self::Io { path, .. } => {
                format!("make {} usable for this user, or name another folder with GUILDNET_HOME", path.display())
            }
            Self::Foreign { path, us, .. } => {
                format!("sudo chown -R {us} {}, or name another folder with GUILDNET_HOME", path.display())
            }
            Self::Open { path, .. } => format!("chmod go-rwx {}", path.display()),
        })
    }
}

/// Makes a folder and its missing parents (0700), or checks the one that is there. An empty one is closed to others: who
/// makes a folder for us by hand seldom thinks of its mode, and nothing in it can have been seen.
///
/// # Errors
/// [`PrivateError`]: it can't be made, belongs to somebody else, or is open to others.
pub fn make_dir(path: &Path) -> Result<(), PrivateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(PrivateError::io(path))?;
    match check(path) {
        Err(PrivateError::Open { .. }) if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(PrivateError::io(path))?;
            check(path)
        }
        checked => checked,
    }
}

/// Checks that a file or folder is this user's and closed to others. A symbolic link is not followed: it is refused as
/// open to others, which its mode always says.
///
/// # Errors
/// [`PrivateError`].
pub fn check(path: &Path) -> Result<(), PrivateError> {
    let meta = fs::symlink_metadata(path).map_err(PrivateError::io(path))?;
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != us {
        return Err(PrivateError::Foreign { path: path.to_owned(), owner: meta.uid(), us });
    }
    if meta.mode() & OTHERS != 0 {
        return Err(PrivateError::Open { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

/// Reads a private file after checking it; `None` if it does not exist.
///
/// # Errors
/// [`PrivateError`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, PrivateError> {
    match check(path) {
        Err(PrivateError::Io { why, .. }) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
        Ok(()) => fs::read(path).map(Some).map_err(PrivateError::io(path)),
    }
}

/// Puts `content` at `path` (0600), whole or not at all, replacing what is there.
///
/// # Errors
/// [`PrivateError`]; then what was there before is still there.
pub fn write(path: &Path, content: &[u8]) -> Result<(), PrivateError> {
    let temporary = Temporary::new(path, content)?;
    fs::rename(&temporary.path, path).map_err(PrivateError::io(path))?;
    sync_folder_of(path)
}

/// Puts `content` at `path` (0600), whole or not at all, only if nothing is there. `false`: something was.
///
/// # Errors
/// [`PrivateError`].
pub fn create(path: &Path, content: &[u8]) -> Result<bool, PrivateError> {
    let temporary = Temporary::new(path, content)?;
    match fs::hard_link(&temporary.path, path) {
        Ok(()) => sync_folder_of(path).map(|()| true),
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(why) => Err(PrivateError::Io { path: path.to_owned(), why }),
    }
}

/// The path with `ending` behind its name.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A synced file beside its final place; its name goes away on drop.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn new(place: &Path, content: &[u8]) -> Result<Self, PrivateError> {
        /// Tells apart the writes of one process.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = place.with_file_name(format!(".{name}.{}-{n}.tmp", std::process::id()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let opened = match open() {
            // Left behind by a process that had this number before and was killed.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&path).and_then(|()| open()),
            other => other,
        };
        let mut file = opened.map_err(PrivateError::io(place))?;
        let this = Self { path };
        file.write_all(content).and_then(|()| file.sync_all()).map_err(PrivateError::io(place))?;
        Ok(this)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync_folder_of(path: &Path) -> Result<(), PrivateError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(PrivateError::io(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("folder");
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_is_written_is_for_the_owner_only() {
        let folder = tempfile::tempdir().expect("tempdir");
        let home = folder.path().join("deep/home");
        make_dir(&home).expect("made");
        write(&home.join("f"), b"one").expect("written");
        write(&home.join("f"), b"two").expect("replaced");
        let mode = |p: &Path| fs::metadata(p).expect("meta").permissions().mode() & 0o7777;
        assert_eq!((mode(&home), mode(&home.join("f"))), (0o700, 0o600));
        assert_eq!(read(&home.join("f")).expect("read").as_deref(), Some(&b"two"[..]));
        assert_eq!(names(&home), ["f"], "no temporary file is left");
    }

    #[test]
    fn create_never_replaces() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("f");
        assert!(create(&file, b"one").expect("created"));
        assert!(!create(&file, b"two").expect("not created"));
        assert_eq!(fs::read(&file).expect("read"), b"one");
        assert_eq!(names(folder.path()), ["f"]);
    }

    #[test]
    fn what_others_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = folder.path().join("f");
        write(&file, b"x").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
        let said = read(&file).expect_err("refused");
        assert_eq!(said.to_string(), format!("{} is open to others (mode 0640)", file.display()));
        assert_eq!(said.hint(), Some(format!("chmod go-rwx {}", file.display())));
    }

    #[test]
    fn an_empty_folder_is_closed_and_a_used_one_is_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        open(folder.path());
        make_dir(folder.path()).expect("taken");
        check(folder.path()).expect("closed now");
        write(&folder.path().join("f"), b"x").expect("written");
        open(folder.path());
        assert!(matches!(make_dir(folder.path()), Err(PrivateError::Open { mode: 0o755, .. })));
    }

    #[test]
    fn a_failed_write_keeps_the_old_content() {
        let folder = tempfile::tempdir().expect("tempdir");
        let place = folder.path().join("taken");
        fs::create_dir(&place).expect("a folder where a file should go");
        assert!(write(&place, b"x").is_err());
        assert_eq!(names(folder.path()), ["taken"]);
    }
}
