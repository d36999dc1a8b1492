//! The database's versions: which this program knows, and how an older file is brought to the newest.
//!
//! A file from a newer GuildNet is refused, an older one is copied before it is changed. Every migration runs in a
//! transaction of its own. Migrations that have been released are never edited: a new one is added at the end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sqlx::{
    SqlSafeStr, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::{StoreError, private};

/// All migrations, oldest first. Versions count up from 1.
const MIGRATIONS: &[(&str, &str)] = &[
    ("clusters and settings", include_str!("../migrations/0001_clusters_and_settings.sql")),
    ("routes given", include_str!("../migrations/0002_routes_given.sql")),
    ("disconnected clusters", include_str!("../migrations/0003_disconnected_clusters.sql")),
    ("policy history", include_str!("../migrations/0004_policy_history.sql")),
    ("read-only clusters", include_str!("../migrations/0005_read_only_clusters.sql")),
    ("forwards and proxies", include_str!("../migrations/0006_forwards_and_proxies.sql")),
];

/// The migrations of this program.
pub(crate) fn migrations() -> Vec<Migration> {
    let numbered = (1..).zip(MIGRATIONS);
    numbered.map(|(version, (name, sql))| migration(version, name, sql)).collect()
}

/// One migration that can't be undone.
pub(crate) fn migration(version: i64, name: &'static str, sql: &'static str) -> Migration {
    Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
}

/// Brings the database to the newest of `migrations`.
pub(crate) async fn prepare(pool: &SqlitePool, path: &Path, migrations: Vec<Migration>) -> Result<(), StoreError> {
    let known = migrations.iter().map(|m| m.version).max().unwrap_or(0);
    let found = version(pool).await.map_err(|e| StoreError::database(path, e))?;
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    if 0 < found && found < known {
        copy_aside(pool, path, known).await?;
    }
    Migrator::with_migrations(migrations).run(pool).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::Execute(e) | sqlx::migrate::MigrateError::ExecuteMigration(e, _) => {
            match StoreError::database(path, e) {
                StoreError::Database { path, why } => StoreError::Upgrade { path, to: known, why },
                clearer => clearer,
            }
        }
        other => StoreError::Upgrade { path: path.to_owned(), to: known, why: other.to_string() },
    })
}

/// The version of the newest migration that was applied; 0 for a new file.
async fn version(pool: &SqlitePool) -> Result<i64, sqlx::Error> {
    let table = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'";
    if sqlx::query_scalar::<_, i64>(table).fetch_one(pool).await? == 0 {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(pool).await
}

/// Copies the whole database, as it is before the upgrade to version `to`, into a private file beside it.
async fn copy_aside(pool: &SqlitePool, path: &Path, to: i64) -> Result<(), StoreError> {
    let copy = copy_path(path, to);
    // SQLite fills an empty file and refuses any other; a copy that is there comes from an upgrade that did not end.
    private::write(&copy, b"")?;
    let copied = sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy()).execute(pool).await;
    if let Err(error) = copied {
        // The half-made copy only takes room that is missing.
        let _ = fs::remove_file(&copy);
        return Err(StoreError::database(path, error));
    }
    tracing::info!(copy = %copy.display(), "copied the database before its upgrade");
    Ok(())
}

/// Where [`copy_aside`] puts the copy.
pub(crate) fn copy_path(path: &Path, to: i64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{to}"));
    name.into()
}
