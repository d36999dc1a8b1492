//! The policies that this device replaced on Headscale servers, newest first, a bounded number for each server.

use sqlx::{Row, sqlite::SqliteRow};
use url::Url;

use super::{Store, column, time};
use crate::{ReplacedPolicy, StoreError};

/// How many are kept for a server: enough to go back over an afternoon's changes; a policy has some KiB.
const KEPT: i64 = 10;

impl Store {
    /// Notes a replaced policy and forgets the oldest of that server beyond ten. Returns its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_replaced_policy(&self, replaced: &ReplacedPolicy) -> Result<i64, StoreError> {
        let mut tx = self.begin().await?;
        let added = sqlx::query("INSERT INTO policy_history (server, at, what, before, after) VALUES (?, ?, ?, ?, ?)")
            .bind(replaced.server.as_str())
            .bind(replaced.at.as_millisecond())
            .bind(&replaced.what)
            .bind(&replaced.before)
            .bind(&replaced.after)
            .execute(&mut *tx)
            .await
            .map_err(self.failed())?;
        sqlx::query(
            "DELETE FROM policy_history WHERE server = ?1 AND number NOT IN
                (SELECT number FROM policy_history WHERE server = ?1 ORDER BY number DESC LIMIT ?2)",
        )
        .bind(replaced.server.as_str())
        .bind(KEPT)
        .execute(&mut *tx)
        .await
        .map_err(self.failed())?;
        self.commit(tx).await?;
        Ok(added.last_insert_rowid())
    }

    /// Takes back what [`Store::add_replaced_policy`] noted: the policy was not replaced after all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_replaced_policy(&self, number: i64) -> Result<(), StoreError> {
        let gone = sqlx::query("DELETE FROM policy_history WHERE number = ?").bind(number).execute(&self.pool).await;
        gone.map(drop).map_err(self.failed())
    }

    /// The policies that were replaced on a server, newest first.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Unreadable`] for a damaged row.
    pub async fn replaced_policies(&self, server: &Url) -> Result<Vec<ReplacedPolicy>, StoreError> {
        let rows = sqlx::query("SELECT * FROM policy_history WHERE server = ? ORDER BY number DESC")
            .bind(server.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(self.failed())?;
        rows.iter().map(|row| read(row, server)).collect()
    }
}

fn read(row: &SqliteRow, server: &Url) -> Result<ReplacedPolicy, StoreError> {
    let entry = match row.try_get::<i64, _>("number") {
        Ok(number) => format!("replaced policy {number}"),
        Err(_) => "a replaced policy".to_owned(),
    };
    Ok(ReplacedPolicy {
        server: server.clone(),
        at: time(row, &entry, "at")?,
        what: column(row, &entry, "what")?,
        before: column(row, &entry, "before")?,
        after: column(row, &entry, "after")?,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn replaced(host: &str, n: i64) -> ReplacedPolicy {
        ReplacedPolicy {
            server: format!("https://{host}:8443").parse().expect("a URL"),
            at: Timestamp::from_millisecond(n).expect("in range"),
            what: format!("change {n}"),
            before: (n > 1).then(|| format!("policy {}", n - 1)),
            after: format!("policy {n}"),
        }
    }

    #[tokio::test]
    async fn the_newest_ten_of_each_server_are_kept_newest_first() {
        let home = tempfile::tempdir().expect("tempdir");
        let store = Store::open(home.path()).await.expect("opened");
        store.add_replaced_policy(&replaced("other", 1)).await.expect("added");
        for n in 1..=12 {
            store.add_replaced_policy(&replaced("hs", n)).await.expect("added");
        }
        store.close().await;
        let store = Store::open(home.path()).await.expect("opened again");
        let wanted: Vec<ReplacedPolicy> = (3..=12).rev().map(|n| replaced("hs", n)).collect();
        assert_eq!(store.replaced_policies(&wanted[0].server).await.expect("list"), wanted);
        let other = replaced("other", 1);
        assert_eq!(store.replaced_policies(&other.server).await.expect("list"), [other]);
    }

    #[tokio::test]
    async fn what_was_not_written_is_taken_back() {
        let home = tempfile::tempdir().expect("tempdir");
        let store = Store::open(home.path()).await.expect("opened");
        store.add_replaced_policy(&replaced("hs", 1)).await.expect("added");
        let number = store.add_replaced_policy(&replaced("hs", 2)).await.expect("added");
        store.forget_replaced_policy(number).await.expect("taken back");
        let left = replaced("hs", 1);
        assert_eq!(store.replaced_policies(&left.server).await.expect("list"), [left]);
    }
}
