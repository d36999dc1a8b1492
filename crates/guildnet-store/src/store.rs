//! The store itself: opening, and the records in and out. Every change is one transaction. The history of policies is in
//! `store/history.rs`, what leads into clusters (forwards, proxies, loopback addresses) in `store/forwards.rs`.
//!
//! Several processes may have it open at once (the Host App and a command); SQLite's write-ahead log keeps readers and
//! the one writer apart, and a writer waits for [`BUSY`] at most.

mod forwards;
mod history;

use std::{
    ffi::OsString,
    fs::{File, TryLockError},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use guildnet_model::{ClusterId, Secret, SiteNumber};
use jiff::Timestamp;
use sqlx::{
    Connection, Row, Sqlite, SqlitePool, Transaction,
    migrate::Migration,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use crate::{
    ClusterRecord, HeadscaleRecord, StoreError,
    key::{self, SealKey},
    private, schema,
    seal::{self, Place},
};

/// The database's name in the store's folder.
const FILE: &str = "guildnet.db";
/// How long a writer waits for another process's transaction: those take milliseconds, so this only ends a real jam.
pub(crate) const BUSY: Duration = Duration::from_secs(5);
/// How long an opening waits for another process that is just making or upgrading the database.
const OPENING: Duration = Duration::from_secs(10);
/// How often it looks again: the system offers no way to wait for such a lock with a limit.
const OPENING_POLL: Duration = Duration::from_millis(20);
/// Connections of the pool: one writes, others may read meanwhile. Queries are tiny; more would only cost memory.
const CONNECTIONS: u32 = 2;

/// The store of one person's Host App. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    path: PathBuf,
    key: Arc<SealKey>,
}

/// What [`Store::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The cluster is stored now.
    New,
    /// It was stored already, with the same content.
    AlreadyThere,
}

impl Store {
    /// Opens the store in `dir`, making folder, database and key if there are none.
    ///
    /// # Errors
    /// [`StoreError`]: the folder or a file in it is not private; the database is newer, damaged or in use; there is no
    /// room; or secrets are stored and their key is missing, damaged or another one.
    /// # Cancellation
    /// Dropping the future leaves a store that can be opened again.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, schema::migrations(), |options| options).await
    }

    /// [`Store::open`] with the migrations and connection options of a test.
    async fn open_with(
        dir: &Path,
        migrations: Vec<Migration>,
        tune: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> Result<Self, StoreError> {
        private::make_dir(dir)?;
        let path = dir.join(FILE);
        // Held until this store is open: the database and the key are made by one process at a time.
        let _opening = lock(dir, &path).await?;
        // Made here and not by SQLite, which would take the umask's mode. Its other files take this one's.
        private::create(&path, b"")?;
        for suffix in ["", "-wal", "-shm"] {
            let file = dir.join(format!("{FILE}{suffix}"));
            if file.exists() {
                private::check(&file)?;
            }
        }
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            // Each commit is on the disk before it is reported: keys are minted once and must not be lost.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .pragma("trusted_schema", "OFF");
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(BUSY)
            // SQLite ends a transaction by itself when the disk is full; its connection then believes to be in one for ever.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(tune(options))
            .await
            .map_err(|e| StoreError::database(&path, e))?;
        match Self::with_pool(&pool, &path, migrations).await {
            Ok(key) => Ok(Self { pool, path, key: Arc::new(key) }),
            Err(error) => {
                pool.close().await;
                Err(error)
            }
        }
    }

    /// What is left to do once the database is open: its version, and the key.
    async fn with_pool(pool: &SqlitePool, path: &Path, migrations: Vec<Migration>) -> Result<SealKey, StoreError> {
        schema::prepare(pool, path, migrations).await?;
        let sealed = sealed_rows(pool).await.map_err(|e| StoreError::database(path, e))?;
        let key_path = path.with_file_name(key::FILE);
        let key = match SealKey::load(&key_path)? {
            Some(key) => key,
            None if sealed.is_empty() => SealKey::make(&key_path)?,
            None => {
                let rows = i64::try_from(sealed.len()).unwrap_or(i64::MAX);
                return Err(StoreError::KeyMissing { path: key_path, rows });
            }
        };
        for (entry, wanted) in sealed {
            check_key(&key, &entry, &wanted)?;
        }
        Ok(key)
    }

    /// Closes the database; waits until no query runs.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Stores a new cluster.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another cluster of that id is stored (an equal one is [`Added::AlreadyThere`]).
    pub async fn add(&self, record: &ClusterRecord) -> Result<Added, StoreError> {
        let mut tx = self.begin().await?;
        let there = self.cluster(&mut tx, &record.id).await?;
        if let Some(there) = there {
            let differs = record.differences(&there);
            return if differs.is_empty() {
                Ok(Added::AlreadyThere)
            } else {
                Err(StoreError::Conflict { id: record.id.clone(), differs })
            };
        }
        self.insert(&mut tx, record, record.created).await?;
        self.commit(tx).await?;
        Ok(Added::New)
    }

    /// Stores a cluster, in the place of the one of that id if there is one; its time of creation is kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn replace(&self, record: &ClusterRecord) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // The old row is not opened: a damaged one must be replaceable too.
        let created = sqlx::query_scalar::<_, i64>("SELECT created FROM clusters WHERE id = ?")
            .bind(record.id.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(self.failed())?;
        let created = created.and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(record.created);
        self.delete(&mut tx, &record.id).await?;
        self.insert(&mut tx, record, created).await?;
        self.commit(tx).await
    }

    /// One cluster; `None` if there is none of that id.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] or [`StoreError::Unreadable`] for a damaged row.
    pub async fn get(&self, id: &ClusterId) -> Result<Option<ClusterRecord>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(self.failed())?;
        self.cluster(&mut tx, id).await
    }

    /// The ids of all clusters, sorted. With [`Store::get`] for each, one damaged row does not hide the others.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ids(&self) -> Result<Vec<ClusterId>, StoreError> {
        let rows = sqlx::query_scalar::<_, String>("SELECT id FROM clusters ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed())?;
        rows.into_iter().map(|id| parse(&format!("cluster {id:?}"), "id", &id)).collect()
    }

    /// All clusters, by id, as they were at one moment.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] or [`StoreError::Unreadable`] if any row is damaged.
    pub async fn list(&self) -> Result<Vec<ClusterRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM clusters ORDER BY id").fetch_all(&self.pool).await.map_err(self.failed())?;
        rows.iter().map(|row| self.read_cluster(row)).collect()
    }

    /// Forgets a cluster, with its forwards and proxies. `false`: there was none of that id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove(&self, id: &ClusterId) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let removed = self.delete(&mut tx, id).await?;
        self.delete_ways(&mut tx, id).await?;
        self.commit(tx).await?;
        Ok(removed)
    }

    /// The Headscale server that was used last, if there was one.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] or [`StoreError::Unreadable`] for a damaged row.
    pub async fn headscale(&self) -> Result<Option<HeadscaleRecord>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(self.failed())?;
        let Some(url) = self.setting(&mut tx, setting::URL).await? else { return Ok(None) };
        Ok(Some(HeadscaleRecord {
            url: parse(&setting::entry(setting::URL), "value", &url)?,
            api_key: self.sealed_setting(&mut tx, setting::API_KEY).await?,
            ca_pem: self.setting(&mut tx, setting::CA).await?,
        }))
    }

    /// Stores the Headscale server, in the place of the one that was there. At another address it is not recognised any more:
    /// the key that was kept for that is forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_headscale(&self, record: &HeadscaleRecord) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        if self.setting(&mut tx, setting::URL).await?.as_deref() != Some(record.url.as_str()) {
            let gone =
                sqlx::query("DELETE FROM settings WHERE name = ?").bind(setting::SERVER_KEY).execute(&mut *tx).await;
            gone.map_err(self.failed())?;
        }
        for name in [setting::URL, setting::API_KEY, setting::CA] {
            let gone = sqlx::query("DELETE FROM settings WHERE name = ?").bind(name).execute(&mut *tx).await;
            gone.map_err(self.failed())?;
        }
        let plain = [(setting::URL, Some(record.url.as_str())), (setting::CA, record.ca_pem.as_deref())];
        for (name, value) in plain.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let insert = sqlx::query("INSERT INTO settings (name, value) VALUES (?, ?)").bind(name).bind(value);
            insert.execute(&mut *tx).await.map_err(self.failed())?;
        }
        if let Some(api_key) = &record.api_key {
            self.put_sealed_setting(&mut tx, setting::API_KEY, api_key).await?;
        }
        self.commit(tx).await
    }

    /// The key by which the Headscale server was recognised last; public.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn server_key(&self) -> Result<Option<String>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(self.failed())?;
        self.setting(&mut tx, setting::SERVER_KEY).await
    }

    /// Stores the key by which the Headscale server is recognised, in the place of the one that was there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_server_key(&self, key: &str) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)")
            .bind(setting::SERVER_KEY)
            .bind(key)
            .execute(&mut *tx)
            .await
            .map_err(self.failed())?;
        self.commit(tx).await
    }

    /// A transaction that may write: taken at once, so that what it reads can't change before it writes.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.failed())
    }

    async fn commit(&self, tx: Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        tx.commit().await.map_err(self.failed())
    }

    /// For `map_err`: says what a failure of this database means.
    fn failed(&self) -> impl FnOnce(sqlx::Error) -> StoreError + '_ {
        |error| StoreError::database(&self.path, error)
    }

    async fn cluster(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        id: &ClusterId,
    ) -> Result<Option<ClusterRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM clusters WHERE id = ?").bind(id.as_str()).fetch_optional(&mut **tx).await;
        row.map_err(self.failed())?.map(|row| self.read_cluster(&row)).transpose()
    }

    async fn delete(&self, tx: &mut Transaction<'_, Sqlite>, id: &ClusterId) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM clusters WHERE id = ?").bind(id.as_str()).execute(&mut **tx).await;
        Ok(gone.map_err(self.failed())?.rows_affected() > 0)
    }

    async fn insert(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        record: &ClusterRecord,
        created: Timestamp,
    ) -> Result<(), StoreError> {
        let seal = |column, secret: &Secret<String>| {
            seal::seal(&self.key.key, cluster_place(record.id.as_str(), column), secret.expose())
        };
        let seal_if_any =
            |column, secret: &Option<Secret<String>>| secret.as_ref().map(|s| seal(column, s)).transpose();
        sqlx::query(
            "INSERT INTO clusters (id, kubeconfig, context, login_server, ca_pem, client_auth_key, router_auth_key, routes,
                routes_given, state_path, namespace, namespace_id, site, api_address, cluster_uid, disconnected, read_only,
                seal_key, created, updated)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(record.id.as_str())
        .bind(seal("kubeconfig", &record.kubeconfig)?)
        .bind(&record.context)
        .bind(record.login_server.as_str())
        .bind(&record.ca_pem)
        .bind(seal_if_any("client_auth_key", &record.client_auth_key)?)
        .bind(seal_if_any("router_auth_key", &record.router_auth_key)?)
        .bind(record.routes.to_string())
        .bind(record.routes_given)
        .bind(record.state_path.as_os_str().as_bytes())
        .bind(&record.namespace)
        // SQLite's integers are signed; the bits are kept.
        .bind(record.namespace_id.map(u64::cast_signed))
        .bind(record.site.map(|site| i64::from(site.get())))
        .bind(record.api_address.map(|a| a.to_string()))
        .bind(&record.cluster_uid)
        .bind(record.disconnected)
        .bind(record.read_only)
        .bind(&self.key.id)
        .bind(created.as_millisecond())
        .bind(record.updated.as_millisecond())
        .execute(&mut **tx)
        .await
        .map_err(self.failed())?;
        self.give_loopback(tx, &record.id).await
    }

    fn read_cluster(&self, row: &SqliteRow) -> Result<ClusterRecord, StoreError> {
        let id: String = column(row, "a cluster", "id")?;
        let entry = format!("cluster {id}");
        let entry = entry.as_str();
        check_key(&self.key, entry, &column::<String>(row, entry, "seal_key")?)?;
        let open = |name: &'static str, sealed: &[u8]| {
            seal::open(&self.key.key, cluster_place(&id, name), sealed)
                .map_err(|_| StoreError::Tampered { entry: entry.to_owned(), column: name })
        };
        let open_if_any = |name: &'static str| {
            column::<Option<Vec<u8>>>(row, entry, name)?.map(|sealed| open(name, &sealed)).transpose()
        };
        let site: Option<i64> = column(row, entry, "site")?;
        let api_address: Option<String> = column(row, entry, "api_address")?;
        Ok(ClusterRecord {
            id: parse(entry, "id", &id)?,
            kubeconfig: open("kubeconfig", &column::<Vec<u8>>(row, entry, "kubeconfig")?)?,
            context: column(row, entry, "context")?,
            login_server: parse(entry, "login_server", &column::<String>(row, entry, "login_server")?)?,
            ca_pem: column(row, entry, "ca_pem")?,
            client_auth_key: open_if_any("client_auth_key")?,
            router_auth_key: open_if_any("router_auth_key")?,
            routes: parse(entry, "routes", &column::<String>(row, entry, "routes")?)?,
            routes_given: column(row, entry, "routes_given")?,
            state_path: OsString::from_vec(column(row, entry, "state_path")?).into(),
            namespace: column(row, entry, "namespace")?,
            namespace_id: column::<Option<i64>>(row, entry, "namespace_id")?.map(i64::cast_unsigned),
            site: site.map(|n| parse::<SiteNumber>(entry, "site", &n.to_string())).transpose()?,
            api_address: api_address.map(|a| parse(entry, "api_address", &a)).transpose()?,
            cluster_uid: column(row, entry, "cluster_uid")?,
            disconnected: column(row, entry, "disconnected")?,
            read_only: column(row, entry, "read_only")?,
            created: time(row, entry, "created")?,
            updated: time(row, entry, "updated")?,
        })
    }

    async fn setting(&self, tx: &mut Transaction<'_, Sqlite>, name: &str) -> Result<Option<String>, StoreError> {
        let value = sqlx::query_scalar("SELECT value FROM settings WHERE name = ?").bind(name);
        Ok(value.fetch_optional(&mut **tx).await.map_err(self.failed())?.flatten())
    }

    async fn put_sealed_setting(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        name: &str,
        secret: &Secret<String>,
    ) -> Result<(), StoreError> {
        let sealed = seal::seal(&self.key.key, setting::place(name), secret.expose())?;
        let insert = sqlx::query("INSERT OR REPLACE INTO settings (name, sealed, seal_key) VALUES (?, ?, ?)");
        let done = insert.bind(name).bind(sealed).bind(&self.key.id).execute(&mut **tx).await;
        done.map(drop).map_err(self.failed())
    }

    async fn sealed_setting(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        name: &str,
    ) -> Result<Option<Secret<String>>, StoreError> {
        let row = sqlx::query("SELECT sealed, seal_key FROM settings WHERE name = ?").bind(name);
        let Some(row) = row.fetch_optional(&mut **tx).await.map_err(self.failed())? else { return Ok(None) };
        let entry = setting::entry(name);
        check_key(&self.key, &entry, &column::<String>(&row, &entry, "seal_key")?)?;
        let sealed: Vec<u8> = column(&row, &entry, "sealed")?;
        let opened = seal::open(&self.key.key, setting::place(name), &sealed);
        opened.map(Some).map_err(|_| StoreError::Tampered { entry, column: "sealed" })
    }
}

/// Rows of the table `settings`; those of `store/forwards.rs` stand there.
mod setting {
    use crate::seal::Place;

    pub(super) const URL: &str = "headscale.url";
    pub(super) const API_KEY: &str = "headscale.api-key";
    pub(super) const CA: &str = "headscale.ca";
    pub(super) const SERVER_KEY: &str = "headscale.server-key";

    pub(super) fn entry(name: &str) -> String {
        format!("setting {name}")
    }

    pub(super) fn place(name: &str) -> Place<'_> {
        Place { table: "settings", row: name, column: "sealed" }
    }
}

fn cluster_place<'a>(id: &'a str, column: &'static str) -> Place<'a> {
    Place { table: "clusters", row: id, column }
}

/// Waits until this process alone opens the store in `dir`.
async fn lock(dir: &Path, database: &Path) -> Result<File, StoreError> {
    let folder = File::open(dir).map_err(private::PrivateError::io(dir))?;
    let waiting = async {
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(OPENING_POLL).await,
                Err(TryLockError::Error(why)) => return Err(private::PrivateError::io(dir)(why).into()),
            }
        }
    };
    match tokio::time::timeout(OPENING, waiting).await {
        Ok(locked) => locked.map(|()| folder),
        Err(_) => Err(StoreError::Busy { path: database.to_owned() }),
    }
}

/// Every row that holds sealed values, with the id of the key that sealed them.
async fn sealed_rows(pool: &SqlitePool) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT 'cluster ' || id, seal_key FROM clusters
         UNION ALL SELECT 'setting ' || name, seal_key FROM settings WHERE seal_key IS NOT NULL",
    )
    .fetch_all(pool)
    .await
}

fn check_key(key: &SealKey, entry: &str, wanted: &str) -> Result<(), StoreError> {
    if key.id == wanted {
        return Ok(());
    }
    Err(StoreError::KeyWrong {
        path: key.path.clone(),
        entry: entry.to_owned(),
        wanted: wanted.to_owned(),
        found: key.id.clone(),
    })
}

fn column<'r, T>(row: &'r SqliteRow, entry: &str, name: &'static str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(name).map_err(|e| StoreError::Unreadable { entry: entry.to_owned(), column: name, why: e.to_string() })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    entry: &str,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|e: T::Err| StoreError::Unreadable { entry: entry.to_owned(), column, why: e.to_string() })
}

fn time(row: &SqliteRow, entry: &str, name: &'static str) -> Result<Timestamp, StoreError> {
    let ms: i64 = column(row, entry, name)?;
    Timestamp::from_millisecond(ms).map_err(|e| StoreError::Unreadable {
        entry: entry.to_owned(),
        column: name,
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
