//! A copy of any SQLite database, as it is at one moment, while another program may be writing to it.

use std::{fs, path::Path};

use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use crate::{StoreError, private, store::BUSY};

/// Copies the database at `from` into the new private file `to`: one consistent state, without stopping who uses it.
///
/// # Errors
/// [`StoreError`]: `from` can't be read or is no database, `to` can't be written; then nothing is left at `to`.
/// # Cancellation
/// Dropping the future may leave a file at `to` that is not whole.
pub async fn copy_database(from: &Path, to: &Path) -> Result<(), StoreError> {
    private::check(from)?;
    let options = SqliteConnectOptions::new().filename(from).create_if_missing(false).busy_timeout(BUSY);
    let mut connection = options.connect().await.map_err(|e| StoreError::database(from, e))?;
    // SQLite fills an empty file and refuses any other; made here, it is private from the beginning.
    private::write(to, b"")?;
    let copied = sqlx::query("VACUUM INTO ?").bind(to.to_string_lossy()).execute(&mut connection).await;
    let closed = connection.close().await;
    copied.map(drop).and(closed).map_err(|e| {
        // The half-made copy only takes room that is missing.
        let _ = fs::remove_file(to);
        StoreError::database(from, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn what_was_committed_is_in_the_copy_while_the_original_is_open() {
        let folder = tempfile::tempdir().expect("tempdir");
        let store = Store::open(folder.path()).await.expect("opened");
        let url = "https://headscale.example".parse().expect("a URL");
        let record = crate::HeadscaleRecord { url, api_key: None, ca_pem: None };
        store.put_headscale(&record).await.expect("stored");
        let elsewhere = tempfile::tempdir().expect("tempdir");
        private::make_dir(elsewhere.path()).expect("private");
        let copy = elsewhere.path().join("guildnet.db");
        copy_database(&folder.path().join("guildnet.db"), &copy).await.expect("copied");
        private::check(&copy).expect("for the owner only");
        store.close().await;
        let copied = Store::open(elsewhere.path()).await.expect("a whole database");
        assert_eq!(copied.headscale().await.expect("read"), Some(record));
        copied.close().await;
    }

    #[tokio::test]
    async fn what_is_no_database_leaves_nothing() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        private::write(&from, b"this is a text of some length, and no database").expect("written");
        assert!(copy_database(&from, &to).await.is_err());
        assert!(!to.exists());
    }
}
