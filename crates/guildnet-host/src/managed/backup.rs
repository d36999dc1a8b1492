//! A copy of everything that makes a managed Headscale this one: its database, its keys, its settings, in one file.
//!
//! The database may be in use: SQLite itself makes the copy, of one moment. The file holds private keys and is for its
//! owner only. Putting it back: `docs/operations/managed-headscale.md`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use guildnet_headscale::managed::DATABASE_FILE;
use guildnet_model::Class;
use guildnet_store::{
    copy_database,
    private::{self, with_ending},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::folder::{Folder, KEPT};
use crate::{HostError, error::Explained as _};

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// When it was made.
    pub at: Timestamp,
    /// The version of Headscale that the database belongs to.
    pub version: String,
    /// Its size.
    pub bytes: u64,
}

/// The file's name unless another is given.
fn usual_name(version: &str, at: Timestamp) -> String {
    // A version may be any word.
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
    format!("headscale-{}-{}.tar", version.chars().map(plain).collect::<String>(), at.strftime("%Y%m%dT%H%M%S%.3fZ"))
}

/// Makes a backup, in the folder's own `backups` unless `to` names a file.
///
/// # Errors
/// There is no database, the file exists, or there is no room.
pub(super) async fn make(folder: &Folder, to: Option<&Path>) -> Result<Backup, HostError> {
    let database = folder.database();
    if !database.exists() {
        return Err(HostError::new(
            Class::NotFound,
            format!("there is no managed Headscale in {}", folder.path().display()),
        )
        .with_hint("guildnet headscale up makes one"));
    }
    let version = folder.started()?.map_or_else(|| "unknown".to_owned(), |started| started.plan.build.version);
    let at = Timestamp::now();
    let file = match to {
        Some(file) => std::path::absolute(file).map_err(private::PrivateError::io(file)).explained()?,
        None => {
            private::make_dir(&folder.backups()).explained()?;
            folder.backups().join(usual_name(&version, at))
        }
    };
    if file.exists() {
        return Err(exists(&file));
    }
    let copy = Temporary(folder.path().join(format!(".backup.{}.sqlite", std::process::id())));
    copy_database(&database, &copy.0).await.explained()?;
    let new = Temporary(with_ending(&file, &format!(".{}.new", std::process::id())));
    let bytes = pack(folder.path(), &copy.0, &new.0).map_err(private::PrivateError::io(&file)).explained()?;
    // A name that somebody took meanwhile is not taken from them.
    fs::hard_link(&new.0, &file).map_err(|why| match why.kind() {
        io::ErrorKind::AlreadyExists => exists(&file),
        _ => HostError::explained(&private::PrivateError::io(&file)(why)),
    })?;
    let backup = Backup { file, at, version, bytes };
    folder.set_last_backup(&backup)?;
    Ok(backup)
}

fn exists(file: &Path) -> HostError {
    HostError::new(Class::Conflict, format!("{} exists already", file.display()))
        .with_hint("name another file, or none: guildnet headscale backup")
}

/// A file that goes away on drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes the archive and syncs it; returns its size.
fn pack(folder: &Path, database: &Path, to: &Path) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    append(&mut archive, DATABASE_FILE, &File::open(database)?)?;
    for name in KEPT {
        match File::open(folder.join(name)) {
            Ok(file) => append(&mut archive, name, &file)?,
            // Not made yet, for example before its first start was complete.
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(why),
        }
    }
    let file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Adds a file, to be unpacked as its owner's only.
fn append(archive: &mut tar::Builder<impl io::Write>, name: &str, file: &File) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata_in_mode(&file.metadata()?, tar::HeaderMode::Deterministic);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, file)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

    use guildnet_model::Explain as _;

    use super::*;
    use crate::Settings;

    /// A folder with a database that is open elsewhere: the store's own, which is one of SQLite too.
    async fn used() -> (tempfile::TempDir, Folder, guildnet_store::Store) {
        let home = tempfile::tempdir().expect("tempdir");
        let folder = Folder::of(&Settings::new(home.path().to_owned())).expect("a folder");
        folder.make().expect("made");
        let store = guildnet_store::Store::open(&home.path().join("store")).await.expect("opened");
        fs::hard_link(home.path().join("store/guildnet.db"), folder.database()).expect("linked");
        for suffix in ["-wal", "-shm"] {
            let from = home.path().join(format!("store/guildnet.db{suffix}"));
            fs::hard_link(from, with_ending(&folder.database(), suffix)).expect("linked");
        }
        private::write(&folder.path().join(KEPT[1]), b"a key").expect("written");
        (home, folder, store)
    }

    #[tokio::test]
    async fn a_database_in_use_is_copied_with_its_keys_for_the_owner_only() {
        let (_home, folder, store) = used().await;
        let made = make(&folder, None).await.expect("made");
        assert_eq!(fs::metadata(&made.file).expect("there").permissions().mode() & 0o777, 0o600);
        let mut found = Vec::new();
        let mut archive = tar::Archive::new(File::open(&made.file).expect("opened"));
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            assert_eq!(entry.header().mode().expect("a mode"), 0o600);
            let name = entry.path().expect("a name").display().to_string();
            let mut begin = [0; 5];
            entry.read_exact(&mut begin).expect("content");
            found.push((name, begin));
        }
        assert_eq!(found, [("db.sqlite".into(), *b"SQLit"), (KEPT[1].into(), *b"a key")]);
        let left: Vec<_> = fs::read_dir(folder.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".backup")), "{left:?}");
        assert_eq!(folder.last_backup().expect("read"), Some(made));
        store.close().await;
    }

    #[tokio::test]
    async fn a_file_that_exists_is_never_replaced() {
        let (home, folder, store) = used().await;
        let file = home.path().join("mine.tar");
        fs::write(&file, "mine").expect("written");
        let said = make(&folder, Some(&file)).await.expect_err("refused");
        assert_eq!((said.class(), fs::read(&file).expect("there").as_slice()), (Class::Conflict, &b"mine"[..]));
        store.close().await;
    }

    #[tokio::test]
    async fn without_a_database_there_is_nothing_to_back_up() {
        let home = tempfile::tempdir().expect("tempdir");
        let folder = Folder::of(&Settings::new(home.path().to_owned())).expect("a folder");
        assert_eq!(make(&folder, None).await.expect_err("none").class(), Class::NotFound);
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_name_tells_version_and_time_and_is_a_plain_one() {
        let at = Timestamp::from_second(1_764_076_800).expect("a time");
        assert_eq!(usual_name("0.29.2", at), "headscale-0.29.2-20251125T132000.000Z.tar");
        assert_eq!(usual_name("de v/x", at), "headscale-de_v_x-20251125T132000.000Z.tar");
    }
}
