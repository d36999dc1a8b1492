//! Files as the lab writes them: whole or not at all, and never wider than they must be.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use crate::{error::LabError, plan::Person};

/// Makes a folder and its parents; the folder gets `mode`, parents that are new are for everybody to pass.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<(), LabError> {
    let failed = || LabError::io(format!("cannot make the folder {}", path.display()));
    fs::create_dir_all(path).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed())
}

/// Writes a file atomically: a reader sees the old one or the new one.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) -> Result<(), LabError> {
    put(path, bytes.as_ref(), mode, None)
}

/// The same for the user: owned by them, readable by nobody else.
pub(crate) fn write_for(person: Person, path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), LabError> {
    put(path, bytes.as_ref(), 0o600, Some(person))
}

fn put(path: &Path, bytes: &[u8], mode: u32, owner: Option<Person>) -> Result<(), LabError> {
    let failed = || LabError::io(format!("cannot write {}", path.display()));
    let parent = path.parent().expect("the lab's files lie in folders");
    // Made 0600 by its library; widened only once it is complete.
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed())?;
    file.write_all(bytes).map_err(failed())?;
    file.as_file().sync_all().map_err(failed())?;
    if let Some(person) = owner {
        chown(file.path(), Some(person.uid), Some(person.gid)).map_err(failed())?;
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())?;
    file.persist(path).map_err(|why| why.error).map_err(failed())?;
    Ok(())
}

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String, LabError> {
    fs::read_to_string(path).map_err(LabError::io(format!("cannot read {}", path.display())))
}

/// Removes what a killed command left behind: everything in `folder` whose name begins with `prefix`.
pub(crate) fn sweep(folder: &Path, prefix: &str) -> Result<(), LabError> {
    let entries = fs::read_dir(folder).map_err(LabError::io(format!("cannot read {}", folder.display())))?;
    let left = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    left.map(|entry| entry.path()).try_for_each(|path| remove(&path))
}

/// Removes a file or a whole folder; what is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), LabError> {
    let gone = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match gone {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::Io { what: format!("cannot remove {}", path.display()), source: why })
        }
        _ => Ok(()),
    }
}
