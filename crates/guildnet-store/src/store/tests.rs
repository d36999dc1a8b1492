//! The store against real files: what it keeps, what it refuses, and what a person is told.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use guildnet_model::{Class, Explain};
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use super::*;
use crate::ProxiesRecord;

/// A text that must never be found in a file.
const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\n# token: very-secret-token-4711\n";
const CLIENT_KEY: &str = "hskey-auth-very-secret-client";
const ROUTER_KEY: &str = "hskey-auth-very-secret-router";
const API_KEY: &str = "very-secret-api-key";

pub(super) fn id(text: &str) -> ClusterId {
    text.parse().expect("an id")
}

pub(super) fn record(name: &str) -> ClusterRecord {
    ClusterRecord {
        id: id(name),
        kubeconfig: Secret::new(KUBECONFIG.into()),
        context: "admin@home".into(),
        login_server: "https://headscale.example:8080/".parse().expect("a URL"),
        ca_pem: Some("-----BEGIN CERTIFICATE-----".into()),
        client_auth_key: Some(Secret::new(CLIENT_KEY.into())),
        router_auth_key: Some(Secret::new(ROUTER_KEY.into())),
        routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
        routes_given: true,
        state_path: "/home/p/.guildnet/tsnet/cluster-a".into(),
        namespace: format!("cluster-{name}"),
        namespace_id: Some(u64::MAX),
        site: Some(SiteNumber::try_from(7).expect("in range")),
        api_address: Some("10.96.0.1:443".parse().expect("an address")),
        cluster_uid: Some("6f1c1d0e".into()),
        disconnected: true,
        read_only: true,
        created: Timestamp::from_millisecond(1_000).expect("in range"),
        updated: Timestamp::from_millisecond(2_000).expect("in range"),
    }
}

fn headscale() -> HeadscaleRecord {
    HeadscaleRecord {
        url: "https://headscale.example:8080/".parse().expect("a URL"),
        api_key: Some(Secret::new(API_KEY.into())),
        ca_pem: None,
    }
}

/// A home folder and a store in it.
pub(super) async fn store() -> (TempDir, Store) {
    let home = tempfile::tempdir().expect("tempdir");
    let store = Store::open(home.path()).await.expect("opened");
    (home, store)
}

pub(super) async fn execute(store: &Store, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql)).execute(&store.pool).await.expect(sql);
    assert!(done.rows_affected() > 0, "nothing changed: {sql}");
}

/// A migration that a later version might have.
fn with_second_migration() -> Vec<Migration> {
    let mut migrations = schema::migrations();
    let version = migrations.len() as i64 + 1;
    migrations.push(schema::migration(version, "note", "ALTER TABLE clusters ADD COLUMN note TEXT"));
    migrations
}

#[tokio::test]
async fn what_is_stored_comes_back_after_a_restart() {
    let (home, store) = store().await;
    let bare = ClusterRecord {
        ca_pem: None,
        client_auth_key: None,
        router_auth_key: None,
        namespace_id: None,
        site: None,
        api_address: None,
        cluster_uid: None,
        read_only: false,
        ..record("b")
    };
    assert_eq!(store.headscale().await.expect("read"), None);
    store.put_headscale(&headscale()).await.expect("stored");
    assert_eq!(store.add(&bare).await.expect("added"), Added::New);
    assert_eq!(store.add(&record("a")).await.expect("added"), Added::New);
    store.close().await;

    let store = Store::open(home.path()).await.expect("opened again");
    assert_eq!(store.list().await.expect("list"), [record("a"), bare]);
    assert_eq!(store.ids().await.expect("ids"), [id("a"), id("b")]);
    assert_eq!(store.get(&id("a")).await.expect("get"), Some(record("a")));
    assert_eq!(store.get(&id("c")).await.expect("get"), None);
    assert_eq!(store.headscale().await.expect("read"), Some(headscale()));
}

#[tokio::test]
async fn the_same_id_twice_is_a_conflict_unless_it_is_the_same_cluster() {
    let (_home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    let later = ClusterRecord { created: Timestamp::UNIX_EPOCH, updated: Timestamp::UNIX_EPOCH, ..record("a") };
    assert_eq!(store.add(&later).await.expect("the same"), Added::AlreadyThere);

    let other = ClusterRecord { context: "other".into(), cluster_uid: None, ..record("a") };
    let refused = store.add(&other).await.expect_err("refused");
    assert_eq!(refused.to_string(), "there is a cluster a already, with another context, cluster UID");
    assert_eq!(refused.class(), Class::Conflict);
    assert_eq!(store.get(&id("a")).await.expect("get"), Some(record("a")), "the first one is untouched");
}

#[tokio::test]
async fn a_replacement_keeps_the_time_of_creation() {
    let (_home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    let now = Timestamp::from_millisecond(9_000).expect("in range");
    let other = ClusterRecord { context: "other".into(), created: now, updated: now, ..record("a") };
    store.replace(&other).await.expect("replaced");
    let expected = ClusterRecord { created: record("a").created, ..other };
    assert_eq!(store.list().await.expect("list"), [expected]);
}

#[tokio::test]
async fn a_removed_cluster_is_gone() {
    let (_home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    assert!(store.remove(&id("a")).await.expect("removed"));
    assert!(!store.remove(&id("a")).await.expect("nothing to remove"));
    assert!(store.list().await.expect("list").is_empty());
}

#[tokio::test]
async fn no_file_holds_a_secret_in_plain_text() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.put_headscale(&headscale()).await.expect("stored");
    let password = Secret::new("very-secret-proxy".to_owned());
    let proxies = ProxiesRecord { cluster: id("a"), enabled: true, socks_port: 1080, http_port: 8080, password };
    store.put_proxies(&proxies).await.expect("stored");
    // Once with everything in the write-ahead log, once with everything in the database.
    for round in ["open", "closed"] {
        for entry in fs::read_dir(home.path()).expect("folder") {
            let path = entry.expect("entry").path();
            let content = String::from_utf8_lossy(&fs::read(&path).expect("read")).into_owned();
            assert!(!content.contains("very-secret"), "{round}: {}", path.display());
        }
        store.close().await;
    }
}

#[tokio::test]
async fn every_file_is_for_the_owner_only() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    let mut seen = Vec::new();
    for entry in fs::read_dir(home.path()).expect("folder") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("meta").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        seen.push(entry.file_name().into_string().expect("text"));
    }
    seen.sort();
    assert_eq!(seen, ["guildnet.db", "guildnet.db-shm", "guildnet.db-wal", "seal.key"]);
}

#[tokio::test]
async fn a_folder_or_file_that_others_may_read_is_refused() {
    for name in ["", "guildnet.db", "seal.key"] {
        let (home, store) = store().await;
        store.close().await;
        let path = home.path().join(name);
        let mode = fs::metadata(&path).expect("meta").permissions().mode();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o044)).expect("chmod");
        let refused = Store::open(home.path()).await.expect_err(name);
        assert_eq!(refused.class(), Class::Precondition, "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        Store::open(home.path()).await.expect("works once it is mended");
    }
}

#[tokio::test]
async fn a_changed_sealed_value_is_noticed_in_every_column() {
    for column in ["kubeconfig", "client_auth_key", "router_auth_key"] {
        let (_home, store) = store().await;
        store.add(&record("a")).await.expect("added");
        store.add(&record("b")).await.expect("added");
        let cut = format!("UPDATE clusters SET {column} = substr({column}, 1, length({column}) - 1) WHERE id = 'a'");
        execute(&store, &cut).await;
        match store.get(&id("a")).await {
            Err(StoreError::Tampered { entry, column: named }) => {
                assert_eq!((entry.as_str(), named), ("cluster a", column));
            }
            other => panic!("{other:?}"),
        }
        assert!(store.get(&id("b")).await.expect("the other one").is_some());
        store.replace(&record("a")).await.expect("a damaged row can be replaced");
        assert_eq!(store.list().await.expect("list").len(), 2);
    }
}

#[tokio::test]
async fn a_sealed_value_does_not_open_in_another_row_or_column() {
    let (_home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.add(&record("b")).await.expect("added");
    store.put_headscale(&headscale()).await.expect("stored");
    let moves = [
        "UPDATE clusters SET kubeconfig = (SELECT kubeconfig FROM clusters WHERE id = 'b') WHERE id = 'a'",
        "UPDATE clusters SET client_auth_key = router_auth_key WHERE id = 'b'",
    ];
    for (sql, row) in moves.into_iter().zip(["a", "b"]) {
        execute(&store, sql).await;
        assert!(matches!(store.get(&id(row)).await, Err(StoreError::Tampered { .. })), "{sql}");
    }
    execute(
        &store,
        "UPDATE settings SET sealed = (SELECT client_auth_key FROM clusters WHERE id = 'a') WHERE sealed IS NOT NULL",
    )
    .await;
    assert!(matches!(store.headscale().await, Err(StoreError::Tampered { .. })));
}

#[tokio::test]
async fn a_missing_key_is_named_and_none_is_made_in_its_place() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.put_headscale(&headscale()).await.expect("stored");
    store.close().await;
    let (key, away) = (home.path().join("seal.key"), home.path().join("away"));
    fs::rename(&key, &away).expect("moved");
    let refused = Store::open(home.path()).await.expect_err("refused");
    assert_eq!(
        refused.to_string(),
        format!("the key file {} is missing, and 2 stored entries are sealed with it", key.display())
    );
    assert_eq!(refused.class(), Class::Credentials);
    assert!(!key.exists());
    fs::rename(&away, &key).expect("moved back");
    let store = Store::open(home.path()).await.expect("works with the key back");
    assert_eq!(store.list().await.expect("list"), [record("a")]);
}

#[tokio::test]
async fn a_missing_key_is_made_again_while_nothing_is_sealed() {
    let (home, store) = store().await;
    store.close().await;
    fs::remove_file(home.path().join("seal.key")).expect("removed");
    let store = Store::open(home.path()).await.expect("a new key");
    store.add(&record("a")).await.expect("added");
}

#[tokio::test]
async fn another_key_is_told_apart_from_damage() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.close().await;
    let (elsewhere, other) = self::store().await;
    other.close().await;
    fs::copy(elsewhere.path().join("seal.key"), home.path().join("seal.key")).expect("copied");
    let refused = Store::open(home.path()).await.expect_err("refused");
    assert!(matches!(&refused, StoreError::KeyWrong { entry, .. } if entry == "cluster a"), "{refused}");
    assert_eq!(refused.class(), Class::Credentials);
}

#[tokio::test]
async fn a_newer_database_is_refused_and_left_alone() {
    let home = tempfile::tempdir().expect("tempdir");
    let newer = Store::open_with(home.path(), with_second_migration(), |o| o).await.expect("opened");
    newer.add(&record("a")).await.expect("added");
    newer.close().await;
    let before = fs::read(home.path().join("guildnet.db")).expect("read");
    let known = schema::migrations().len() as i64;
    match Store::open(home.path()).await {
        Err(StoreError::Newer { found, known: k, .. }) => assert_eq!((found, k), (known + 1, known)),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(home.path().join("guildnet.db")).expect("read"), before);
}

#[tokio::test]
async fn an_older_database_is_copied_before_it_is_upgraded() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.close().await;
    let upgraded = Store::open_with(home.path(), with_second_migration(), |o| o).await.expect("upgraded");
    assert_eq!(upgraded.list().await.expect("list"), [record("a")]);
    upgraded.close().await;

    // The copy, put in the place of the upgraded file, is what the older program had.
    let database = home.path().join("guildnet.db");
    let copy = schema::copy_path(&database, schema::migrations().len() as i64 + 1);
    assert_eq!(fs::metadata(&copy).expect("meta").permissions().mode() & 0o7777, 0o600);
    fs::rename(copy, &database).expect("put back");
    let store = Store::open(home.path()).await.expect("opened");
    assert_eq!(store.list().await.expect("list"), [record("a")]);
}

#[tokio::test]
async fn every_version_so_far_is_copied_upgraded_and_then_refuses_its_program() {
    let all = schema::migrations();
    for old in 1..all.len() {
        let home = tempfile::tempdir().expect("tempdir");
        let older = || Store::open_with(home.path(), all[..old].to_vec(), |o| o);
        older().await.expect("opened").close().await;
        let store = Store::open(home.path()).await.expect("upgraded");
        store.add(&record("a")).await.expect("added");
        store.close().await;
        let database = home.path().join("guildnet.db");
        let copy = schema::copy_path(&database, all.len() as i64);
        match older().await {
            Err(refused @ StoreError::Newer { .. }) => {
                assert!(refused.hint().expect("a hint").contains("put back the copy"), "{refused}");
            }
            other => panic!("version {old}: {other:?}"),
        }
        // As the operations page says it.
        for ending in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{ending}", database.display()));
        }
        fs::rename(copy, &database).expect("a copy");
        older().await.expect("what the older program had").close().await;
    }
}

#[tokio::test]
async fn a_failed_upgrade_leaves_the_database_as_it_was() {
    let (home, store) = store().await;
    store.add(&record("a")).await.expect("added");
    store.close().await;
    let mut migrations = with_second_migration();
    let version = migrations.len() as i64 + 1;
    migrations.push(schema::migration(version, "bad", "CREATE TABLE t (x); INSERT INTO nowhere VALUES (1)"));
    let refused = Store::open_with(home.path(), migrations, |o| o).await.expect_err("refused");
    assert!(matches!(&refused, StoreError::Upgrade { why, .. } if why.contains("nowhere")), "{refused}");
    let store = Store::open_with(home.path(), with_second_migration(), |o| o).await.expect("opened");
    assert_eq!(store.list().await.expect("list"), [record("a")]);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_called_damaged() {
    let home = tempfile::tempdir().expect("tempdir");
    private::make_dir(home.path()).expect("private");
    private::write(&home.path().join("guildnet.db"), &[b'x'; 8192]).expect("written");
    let refused = Store::open(home.path()).await.expect_err("refused");
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn processes_that_open_a_new_store_at_once_agree_on_one_key() {
    let home = tempfile::tempdir().expect("tempdir");
    let path = home.path();
    let opened = tokio::join!(Store::open(path), Store::open(path), Store::open(path));
    let ids = [opened.0, opened.1, opened.2].map(|store| store.expect("opened").key.id.clone());
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn two_open_stores_see_each_others_changes() {
    let (home, one) = store().await;
    let two = Store::open(home.path()).await.expect("opened twice");
    one.add(&record("a")).await.expect("added");
    assert_eq!(two.ids().await.expect("ids"), [id("a")]);
    let (x, y) = (record("x"), record("y"));
    let (x, y) = tokio::join!(one.add(&x), two.add(&y));
    assert_eq!((x.expect("added"), y.expect("added")), (Added::New, Added::New));
    assert_eq!(one.ids().await.expect("ids"), [id("a"), id("x"), id("y")]);
}

/// The disk on which [`a_full_disk_is_reported_and_harmless`] works, in bytes.
const SMALL_DISK: usize = 512 * 1024;
/// Tells the inner test where that disk is mounted.
const SMALL_DISK_AT: &str = "GUILDNET_TEST_SMALL_DISK";

/// Runs the inner test in a mount namespace of its own, with a small disk: the machine itself is not touched.
#[test]
fn a_full_disk_is_reported_and_harmless() {
    let folder = tempfile::tempdir().expect("tempdir");
    let inner = "store::tests::on_a_small_disk";
    let script =
        format!("mount -t tmpfs -o size={SMALL_DISK},mode=0700 none \"$1\" && exec \"$2\" --exact {inner} --ignored");
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().expect("this test"))
        .env(SMALL_DISK_AT, folder.path())
        .output()
        .expect("unshare(1) runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("1 passed"), "the inner test has run: {said}");
}

#[tokio::test]
#[ignore = "run by a_full_disk_is_reported_and_harmless, on a disk of its own"]
async fn on_a_small_disk() {
    let disk = PathBuf::from(std::env::var_os(SMALL_DISK_AT).expect("a small disk"));
    let (filler, home) = (disk.join("filler"), disk.join("home"));
    let fill = || {
        private::make_dir(&home).expect("made");
        // Until the disk takes no more; the rest of the write is cut off.
        let full = fs::write(&filler, vec![0; 2 * SMALL_DISK]).expect_err("the disk is full");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    };

    fill();
    let refused = Store::open(&home).await.expect_err("no room for a new store");
    assert!(refused.to_string().contains("No space left") || matches!(refused, StoreError::Full { .. }), "{refused}");
    assert!(refused.hint().is_some_and(|h| h.starts_with("make room")), "{refused:?}");
    fs::remove_file(&filler).expect("room");
    let store = Store::open(&home).await.expect("works once there is room");
    store.add(&record("a")).await.expect("added");

    fill();
    let large = ClusterRecord { kubeconfig: Secret::new("x".repeat(SMALL_DISK / 4)), ..record("b") };
    let refused = store.add(&large).await.expect_err("no room for a record");
    assert!(matches!(refused, StoreError::Full { .. }), "{refused:?}");
    assert_eq!(store.list().await.expect("readable while full"), [record("a")], "nothing half-written");
    fs::remove_file(&filler).expect("room");
    store.add(&large).await.expect("the same call works once there is room");
}

#[tokio::test]
async fn the_key_of_a_server_is_kept_for_its_address_only() {
    let (_home, store) = store().await;
    assert_eq!(store.server_key().await.expect("read"), None);
    store.put_headscale(&headscale()).await.expect("stored");
    store.put_server_key("mkey:1").await.expect("stored");
    store.put_server_key("mkey:2").await.expect("stored");
    store.put_headscale(&headscale()).await.expect("stored again");
    assert_eq!(store.server_key().await.expect("read").as_deref(), Some("mkey:2"));
    let elsewhere = HeadscaleRecord { url: "https://192.0.2.1:8443".parse().expect("a URL"), ..headscale() };
    store.put_headscale(&elsewhere).await.expect("stored");
    assert_eq!(store.server_key().await.expect("read"), None);
}
