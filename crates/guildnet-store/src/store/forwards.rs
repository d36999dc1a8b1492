//! What leads into clusters: their own loopback addresses, the forwards that are kept, and the proxies' switches.
//!
//! A cluster gets its loopback address when it is first stored and has it for ever, also after it was removed and added
//! again; no other cluster ever gets it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use guildnet_model::ClusterId;
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};

use super::{Store, column, parse, time};
use crate::{ForwardRecord, ProxiesRecord, StoreError};

/// The address of the `number`th cluster, counted from 1: 127.0.0.2 and up.
///
/// Left out are first and last addresses of each 256, which some programs take for a network or a broadcast, and what
/// others have a use for: 127.0.0.1, systemd-resolved's 127.0.0.53 and .54, and all of 127.0.1, where Debian puts the
/// machine's own name.
///
/// `None` from about the 16,000,000th on: there are no more.
fn loopback(number: u64) -> Option<Ipv4Addr> {
    /// Addresses of 127.0.0 that are given: 2 to 52, 55 to 254.
    const FIRST: u64 = 51 + 200;
    /// Addresses of each other 256: 1 to 254.
    const EACH: u64 = 254;
    let index = number.checked_sub(1)?;
    let (block, last) = match index.checked_sub(FIRST) {
        None if index < 51 => (0, index + 2),
        None => (0, index - 51 + 55),
        // From 127.0.2 on.
        Some(rest) => (2 + rest / EACH, rest % EACH + 1),
    };
    let bits = u32::try_from(block * 256 + last).ok().filter(|bits| *bits < 1 << 24)?;
    Some(Ipv4Addr::from_bits(127 << 24 | bits))
}

/// The setting that holds the password of a cluster's proxies.
fn password(cluster: &ClusterId) -> String {
    format!("proxies.password.{cluster}")
}

impl Store {
    /// The loopback address of each cluster that is stored or ever was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn loopbacks(&self) -> Result<BTreeMap<ClusterId, Ipv4Addr>, StoreError> {
        let rows = sqlx::query("SELECT number, cluster FROM loopbacks").fetch_all(&self.pool).await;
        let read = |row: SqliteRow| {
            let (number, cluster): (i64, String) = (column(&row, ENTRY, "number")?, column(&row, ENTRY, "cluster")?);
            let address = u64::try_from(number).ok().and_then(loopback).ok_or_else(|| StoreError::Unreadable {
                entry: ENTRY.to_owned(),
                column: "number",
                why: format!("there is no address for number {number}"),
            })?;
            Ok((parse(ENTRY, "cluster", &cluster)?, address))
        };
        rows.map_err(self.failed())?.into_iter().map(read).collect()
    }

    /// The forwards that are kept, by local address.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if any row is damaged.
    pub async fn forwards(&self) -> Result<Vec<ForwardRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM forwards").fetch_all(&self.pool).await.map_err(self.failed())?;
        let mut all = rows.iter().map(read_forward).collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|forward| forward.local);
        Ok(all)
    }

    /// Keeps a forward, in the place of the one at the same local address. `false`, and nothing is done, if its cluster is
    /// not stored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_forward(&self, record: &ForwardRecord) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let stored = sqlx::query(
            "INSERT OR REPLACE INTO forwards (local, cluster, target, created)
             SELECT ?1, id, ?3, ?4 FROM clusters WHERE id = ?2",
        )
        .bind(record.local.to_string())
        .bind(record.cluster.as_str())
        .bind(&record.target)
        .bind(record.created.as_millisecond())
        .execute(&mut *tx)
        .await
        .map_err(self.failed())?;
        self.commit(tx).await?;
        Ok(stored.rows_affected() > 0)
    }

    /// Forgets a kept forward. `false`: there was none at that address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_forward(&self, local: std::net::SocketAddrV4) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let gone = sqlx::query("DELETE FROM forwards WHERE local = ?").bind(local.to_string()).execute(&mut *tx).await;
        let gone = gone.map_err(self.failed())?.rows_affected() > 0;
        self.commit(tx).await?;
        Ok(gone)
    }

    /// The proxies of all clusters that ever had them on, by cluster.
    ///
    /// # Errors
    /// [`StoreError::Tampered`] or [`StoreError::Unreadable`] if any is damaged.
    pub async fn proxies(&self) -> Result<Vec<ProxiesRecord>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(self.failed())?;
        let rows = sqlx::query("SELECT * FROM proxies ORDER BY cluster").fetch_all(&mut *tx).await;
        let mut all = Vec::new();
        for row in rows.map_err(self.failed())? {
            let cluster: String = column(&row, "proxies", "cluster")?;
            let entry = format!("proxies of cluster {cluster}");
            let entry = entry.as_str();
            let port = |name: &'static str| parse(entry, name, &column::<i64>(&row, entry, name)?.to_string());
            let cluster: ClusterId = parse(entry, "cluster", &cluster)?;
            let Some(password) = self.sealed_setting(&mut tx, &password(&cluster)).await? else {
                let why = "there is none".to_owned();
                return Err(StoreError::Unreadable { entry: entry.to_owned(), column: "password", why });
            };
            all.push(ProxiesRecord {
                enabled: column(&row, entry, "enabled")?,
                socks_port: port("socks_port")?,
                http_port: port("http_port")?,
                password,
                cluster,
            });
        }
        Ok(all)
    }

    /// Stores a cluster's proxies, in the place of those that were there. `false`, and nothing is done, if the cluster is not
    /// stored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_proxies(&self, record: &ProxiesRecord) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let stored = sqlx::query(
            "INSERT OR REPLACE INTO proxies (cluster, enabled, socks_port, http_port)
             SELECT id, ?2, ?3, ?4 FROM clusters WHERE id = ?1",
        )
        .bind(record.cluster.as_str())
        .bind(record.enabled)
        .bind(i64::from(record.socks_port))
        .bind(i64::from(record.http_port))
        .execute(&mut *tx)
        .await
        .map_err(self.failed())?;
        if stored.rows_affected() == 0 {
            return Ok(false);
        }
        self.put_sealed_setting(&mut tx, &password(&record.cluster), &record.password).await?;
        self.commit(tx).await?;
        Ok(true)
    }

    /// Gives a cluster its loopback address, if it has none.
    pub(super) async fn give_loopback(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        id: &ClusterId,
    ) -> Result<(), StoreError> {
        // Not by OR IGNORE: that counts the number up each time.
        let given = sqlx::query(
            "INSERT INTO loopbacks (cluster) SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM loopbacks WHERE cluster = ?1)",
        );
        given.bind(id.as_str()).execute(&mut **tx).await.map(drop).map_err(self.failed())
    }

    /// Forgets everything that leads into a cluster but its loopback address.
    pub(super) async fn delete_ways(&self, tx: &mut Transaction<'_, Sqlite>, id: &ClusterId) -> Result<(), StoreError> {
        for sql in ["DELETE FROM forwards WHERE cluster = ?", "DELETE FROM proxies WHERE cluster = ?"] {
            sqlx::query(sql).bind(id.as_str()).execute(&mut **tx).await.map_err(self.failed())?;
        }
        let gone = sqlx::query("DELETE FROM settings WHERE name = ?").bind(password(id)).execute(&mut **tx).await;
        gone.map(drop).map_err(self.failed())
    }
}

/// What errors call a row of `loopbacks`.
const ENTRY: &str = "a loopback address";

fn read_forward(row: &SqliteRow) -> Result<ForwardRecord, StoreError> {
    let entry = match row.try_get::<String, _>("local") {
        Ok(local) => format!("forward {local}"),
        Err(_) => "a forward".to_owned(),
    };
    Ok(ForwardRecord {
        local: parse(&entry, "local", &column::<String>(row, &entry, "local")?)?,
        cluster: parse(&entry, "cluster", &column::<String>(row, &entry, "cluster")?)?,
        target: column(row, &entry, "target")?,
        created: time(row, &entry, "created")?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use guildnet_model::Secret;
    use jiff::Timestamp;

    use super::{
        super::tests::{execute, id, record, store},
        *,
    };

    fn forward(local: &str, cluster: &str, target: &str) -> ForwardRecord {
        ForwardRecord {
            local: local.parse().expect("an address"),
            cluster: id(cluster),
            target: target.into(),
            created: Timestamp::from_millisecond(5_000).expect("in range"),
        }
    }

    fn proxies(cluster: &str) -> ProxiesRecord {
        let password = Secret::new("very-secret-proxy".to_owned());
        ProxiesRecord { cluster: id(cluster), enabled: true, socks_port: 1080, http_port: 65_535, password }
    }

    #[test]
    fn addresses_count_up_from_127_0_0_2_and_leave_out_what_others_use() {
        let at = |n| loopback(n).expect("there is one").to_string();
        assert_eq!(
            [1, 2, 51, 52, 251, 252].map(at),
            ["127.0.0.2", "127.0.0.3", "127.0.0.52", "127.0.0.55", "127.0.0.254", "127.0.2.1"]
        );
        let many: BTreeSet<_> = (1..=100_000).map(|n| loopback(n).expect("there is one")).collect();
        assert_eq!(many.len(), 100_000, "no two are equal");
        assert!(many.iter().all(|ip| ip.is_loopback() && ![0, 255].contains(&ip.octets()[3])));
        assert!(!many.iter().any(|ip| ip.octets()[..3] == [127, 0, 1] || *ip == Ipv4Addr::LOCALHOST));
        assert_eq!(loopback(0), None);
        assert_eq!(loopback(1 << 24), None, "no address outside 127.0.0.0/8");
    }

    #[tokio::test]
    async fn a_cluster_keeps_its_address_and_no_other_gets_it() {
        let (_home, store) = store().await;
        for name in ["b", "a"] {
            store.add(&record(name)).await.expect("added");
        }
        let first = store.loopbacks().await.expect("read");
        let address = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
        assert_eq!(first, BTreeMap::from([(id("a"), address("127.0.0.3")), (id("b"), address("127.0.0.2"))]));
        store.replace(&record("b")).await.expect("replaced");
        assert_eq!(store.loopbacks().await.expect("read"), first);
        store.remove(&id("a")).await.expect("removed");
        store.add(&record("c")).await.expect("added");
        store.add(&record("a")).await.expect("added again");
        let later = store.loopbacks().await.expect("read");
        assert_eq!((later[&id("a")], later[&id("c")]), (address("127.0.0.3"), address("127.0.0.4")));
    }

    #[tokio::test]
    async fn forwards_and_proxies_come_back_and_go_with_their_cluster() {
        let (home, store) = store().await;
        for name in ["a", "b"] {
            store.add(&record(name)).await.expect("added");
        }
        let kept = [
            forward("127.0.0.2:3000", "a", "grafana.monitoring:80"),
            forward("127.0.0.2:10000", "a", "10.96.0.1:443"),
            forward("127.0.0.3:3000", "b", "grafana.monitoring:80"),
        ];
        for one in kept.iter().rev() {
            assert!(store.put_forward(one).await.expect("stored"));
        }
        assert!(!store.put_forward(&forward("127.0.0.4:1", "x", "y.z:1")).await.expect("asked"), "no such cluster");
        for name in ["a", "b"] {
            assert!(store.put_proxies(&proxies(name)).await.expect("stored"));
        }
        assert!(!store.put_proxies(&proxies("x")).await.expect("asked"), "no such cluster");
        store.replace(&record("a")).await.expect("a changed record takes nothing away");
        store.close().await;

        let store = Store::open(home.path()).await.expect("opened again");
        assert_eq!(store.forwards().await.expect("read"), kept);
        assert_eq!(store.proxies().await.expect("read"), [proxies("a"), proxies("b")]);
        let off = ProxiesRecord { enabled: false, socks_port: 1, ..proxies("b") };
        assert!(store.put_proxies(&off).await.expect("stored"));
        store.remove(&id("a")).await.expect("removed");
        assert_eq!(store.forwards().await.expect("read"), kept[2..]);
        assert_eq!(store.proxies().await.expect("read"), [off]);
        assert!(store.remove_forward(kept[2].local).await.expect("removed"));
        assert!(!store.remove_forward(kept[2].local).await.expect("nothing to remove"));
    }

    #[tokio::test]
    async fn a_password_does_not_open_for_another_cluster() {
        let (_home, store) = store().await;
        for name in ["a", "b"] {
            store.add(&record(name)).await.expect("added");
            store.put_proxies(&proxies(name)).await.expect("stored");
        }
        execute(
            &store,
            "UPDATE settings SET sealed = (SELECT sealed FROM settings WHERE name = 'proxies.password.a')
             WHERE name = 'proxies.password.b'",
        )
        .await;
        assert!(matches!(store.proxies().await, Err(StoreError::Tampered { .. })));
    }
}
