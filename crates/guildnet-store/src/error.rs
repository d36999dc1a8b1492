//! Why the store could not do what it was asked: the caller's view.

use std::{io, path::PathBuf};

use guildnet_model::{Class, ClusterId, Explain};

use crate::private::PrivateError;

/// Why the store could not do what it was asked. Nothing is half-written: the same call may be made again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder can't be used, belongs to somebody else, or is open to others.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// There is no room for the database.
    #[error("no room on the disk for {path}", path = .path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// Another process held the database for too long.
    #[error("{path} is in use by another process", path = .path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a newer GuildNet.
    #[error("{path} has schema version {found}, this guildnet knows versions up to {known}", path = .path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that is known here.
        known: i64,
    },
    /// The database could not be brought to this version. It is as it was.
    #[error("{path} can't be brought to schema version {to}: {why}", path = .path.display())]
    Upgrade {
        /// The database.
        path: PathBuf,
        /// The version that was wanted.
        to: i64,
        /// The cause.
        why: String,
    },
    /// The database is there but it is no intact SQLite file.
    #[error("{path} is damaged: {why}", path = .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// Secrets are stored, and the key that opens them is gone.
    #[error("the key file {path} is missing, and {rows} stored entries are sealed with it", path = .path.display())]
    KeyMissing {
        /// Where the key should be.
        path: PathBuf,
        /// How many rows hold sealed values.
        rows: i64,
    },
    /// The key file is there but holds no key.
    #[error("the key file {path} is damaged: {why}", path = .path.display())]
    KeyDamaged {
        /// The key file.
        path: PathBuf,
        /// The cause.
        why: &'static str,
    },
    /// Stored secrets are sealed with another key than the one that is there.
    #[error("{entry} is sealed with the key {wanted}, but {path} holds the key {found}", path = .path.display())]
    KeyWrong {
        /// The key file.
        path: PathBuf,
        /// The stored entry.
        entry: String,
        /// The id of the key that sealed it.
        wanted: String,
        /// The id of the key that is there.
        found: String,
    },
    /// A sealed value does not open: it was changed, or moved from elsewhere.
    #[error("the stored {column} of {entry} does not open: it was changed since it was sealed")]
    Tampered {
        /// The stored entry.
        entry: String,
        /// The column.
        column: &'static str,
    },
    /// A stored value is not what it should be.
    #[error("the stored {column} of {entry} can't be read: {why}")]
    Unreadable {
        /// The stored entry.
        entry: String,
        /// The column.
        column: &'static str,
        /// The cause.
        why: String,
    },
    /// A cluster of that id is stored already, and it is a different one.
    #[error("there is a cluster {id} already, with another {}", .differs.join(", "))]
    Conflict {
        /// The id.
        id: ClusterId,
        /// What differs.
        differs: Vec<&'static str>,
    },
    /// There is no cluster of that id.
    #[error("there is no cluster {id}")]
    NotFound {
        /// The id.
        id: ClusterId,
    },
    /// The system's source of random numbers failed.
    #[error("no random numbers: {why}")]
    NoRandom {
        /// The cause.
        why: String,
    },
    /// Another failure of the database.
    #[error("{path}: {why}", path = .path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// The cause.
        why: String,
    },
}

impl Explain for StoreError {
    fn class(&self) -> Class {
        match self {
            Self::Private(e) => e.class(),
            Self::KeyMissing { .. } | Self::KeyDamaged { .. } | Self::KeyWrong { .. } => Class::Credentials,
            Self::Conflict { .. } => Class::Conflict,
            Self::NotFound { .. } => Class::NotFound,
            _ => Class::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Private(e) => return e.hint(),
            Self::Full { path } => {
                format!("make room on the disk that holds {}, then run the command again", path.display())
            }
            Self::Busy { .. } => "let the other guildnet command end, then run this one again".into(),
            Self::Newer { .. } => {
                "use the newer guildnet, or put back the copy that it made beside the database before the upgrade"
                    .into()
            }
            Self::Upgrade { .. } | Self::Database { .. } => "see the cause, then run the command again".into(),
            Self::Damaged { path, .. } => {
                format!(
                    "move {} away and run 'guildnet up' again with your clusters, or restore a copy",
                    path.display()
                )
            }
            Self::KeyMissing { path, .. } | Self::KeyDamaged { path, .. } | Self::KeyWrong { path, .. } => format!(
                "put the key file back at {}, or move the database beside it away and run 'guildnet up' again with your clusters",
                path.display()
            ),
            Self::Tampered { .. } | Self::Unreadable { .. } => {
                "store it again: 'guildnet up' with --cluster ID=KUBECONFIG, or 'guildnet cluster add' with --replace"
                    .into()
            }
            Self::Conflict { id, .. } => {
                format!("give another id, replace it with --replace, or remove it first: guildnet cluster remove {id}")
            }
            Self::NotFound { .. } => "see which there are: guildnet cluster list".into(),
            Self::NoRandom { .. } => return None,
        })
    }
}

/// SQLite's primary result codes that a person can do something about (sqlite.org/rescode.html).
mod code {
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const CANTOPEN: i32 = 14;
    pub(super) const NOTADB: i32 = 26;
}

impl StoreError {
    /// Says what a failure of the database at `path` means for a person.
    pub(crate) fn database(path: &std::path::Path, error: sqlx::Error) -> Self {
        let path = path.to_owned();
        let extended = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i32>().ok());
        let why = error.as_database_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
        // The low byte of an extended code is the primary one.
        match extended.map(|c| c & 0xff) {
            Some(code::FULL) => Self::Full { path },
            // Extending the shared memory file reports no room as an IO error; so does a failed sync.
            Some(code::IOERR | code::CANTOPEN) if no_room_at(&path) => Self::Full { path },
            Some(code::BUSY | code::LOCKED) => Self::Busy { path },
            Some(code::CORRUPT | code::NOTADB) => Self::Damaged { path, why },
            _ => match error {
                sqlx::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => Self::Full { path },
                sqlx::Error::PoolTimedOut => Self::Busy { path },
                _ => Self::Database { path, why },
            },
        }
    }
}

/// Whether the disk that holds `path` has less room than one page of a database.
fn no_room_at(path: &std::path::Path) -> bool {
    /// SQLite's default page, in bytes.
    const PAGE: u64 = 4096;
    let folder = path.parent().unwrap_or(path);
    rustix::fs::statvfs(folder).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < PAGE)
}
