//! Keys at hand: how `up` does without a Headscale API key. Somebody who has one made namespace and keys, and they came here
//! as variables (`.env`) or as the file that `guildnet headscale namespace` writes. Whether they are valid shows when they
//! are used.

use std::path::Path;

use guildnet_headscale::NamespaceFile;
use guildnet_model::{Class, ClusterId};
use guildnet_store::{ClusterRecord, HeadscaleRecord};

use super::file_of;
use crate::{HostError, KeysAtHand, error::Explained as _, namespace};

/// The namespace files of these clusters at their usual place, as far as they are there.
///
/// # Errors
/// A file can't be read, or is another cluster's.
pub(super) fn files<'c>(clusters: impl IntoIterator<Item = &'c ClusterId>) -> Result<Vec<NamespaceFile>, HostError> {
    let there = clusters.into_iter().map(|id| (id, namespace::usual_file(id))).filter(|(_, path)| path.exists());
    there.map(|(id, path)| read(id, &path)).collect()
}

fn read(id: &ClusterId, path: &Path) -> Result<NamespaceFile, HostError> {
    let file = NamespaceFile::read(path).explained_of(id)?;
    if file.cluster == *id {
        return Ok(file);
    }
    Err(HostError::new(Class::Conflict, format!("{} is the file of cluster {}", path.display(), file.cluster))
        .with_hint("name the files as 'guildnet headscale namespace' does, or move it away")
        .of_cluster(id))
}

/// The server that the files name.
///
/// # Errors
/// They name different ones.
pub(super) fn server(files: &[NamespaceFile]) -> Result<Option<HeadscaleRecord>, HostError> {
    let Some(first) = files.first() else { return Ok(None) };
    if let Some(other) = files.iter().find(|f| f.login_server != first.login_server) {
        return Err(HostError::new(
            Class::Conflict,
            format!(
                "the namespace files of {} and {} name different servers: {} and {}",
                first.cluster, other.cluster, first.login_server, other.login_server
            ),
        )
        .with_hint("run 'guildnet up' for each server's clusters, with a home folder of its own (--home DIR)"));
    }
    Ok(Some(HeadscaleRecord { url: first.login_server.clone(), api_key: None, ca_pem: first.ca_pem.clone() }))
}

/// What is at hand for one cluster: variables, then its file, then what was stored. `joined`: its connector needs no key.
///
/// # Errors
/// There is no key that its connector could join with.
pub(super) fn member(
    cluster: &ClusterId,
    server: &HeadscaleRecord,
    given: Option<&KeysAtHand>,
    files: &[NamespaceFile],
    record: Option<&ClusterRecord>,
    joined: bool,
) -> Result<NamespaceFile, HostError> {
    // A key of another server opens nothing here.
    let file = files.iter().find(|f| f.cluster == *cluster && f.login_server == server.url);
    let stored = record.filter(|r| r.login_server == server.url).map(file_of);
    let known = file.cloned().or_else(|| stored.clone());
    let kept = |key: fn(&NamespaceFile) -> Option<&guildnet_model::Secret<String>>| {
        known.as_ref().and_then(key).or_else(|| stored.as_ref().and_then(key)).cloned()
    };
    let client_auth_key = given.and_then(|g| g.client.clone()).or_else(|| kept(|f| f.client_auth_key.as_ref()));
    if client_auth_key.is_none() && !joined {
        return Err(missing(cluster));
    }
    Ok(NamespaceFile {
        cluster: cluster.clone(),
        namespace_id: known.as_ref().and_then(|f| f.namespace_id),
        login_server: server.url.clone(),
        router_auth_key: given.and_then(|g| g.router.clone()).or_else(|| kept(|f| f.router_auth_key.as_ref())),
        router_key_expires: None,
        client_auth_key,
        client_key_expires: None,
        site: known.as_ref().and_then(|f| f.site),
        routes: known.as_ref().and_then(|f| f.routes.clone()),
        ca_pem: server.ca_pem.clone().or_else(|| known.as_ref().and_then(|f| f.ca_pem.clone())),
    })
}

fn missing(cluster: &ClusterId) -> HostError {
    let file = namespace::usual_file(cluster);
    let hint = format!(
        "where there is an API key: guildnet headscale namespace {cluster}; then copy {} into this folder, or put its keys \
         into .env as TS_AUTHKEY_{name} and TS_CLIENT_AUTHKEY_{name}",
        file.display(),
        name = cluster.variable(),
    );
    HostError::new(Class::Credentials, "there is no key for its connector, and no Headscale API key to make one")
        .with_hint(hint)
        .of_cluster(cluster)
}

#[cfg(test)]
mod tests {
    use guildnet_model::{Explain as _, Secret};

    use super::*;

    fn file(cluster: &str, server: &str) -> NamespaceFile {
        NamespaceFile {
            cluster: cluster.parse().expect("an id"),
            namespace_id: Some(7),
            login_server: server.parse().expect("a URL"),
            router_auth_key: Some(Secret::new("file-router".into())),
            router_key_expires: None,
            client_auth_key: Some(Secret::new("file-client".into())),
            client_key_expires: None,
            site: None,
            routes: None,
            ca_pem: Some("pem".into()),
        }
    }

    fn record(url: &str) -> HeadscaleRecord {
        HeadscaleRecord { url: url.parse().expect("a URL"), api_key: None, ca_pem: Some("the server's".into()) }
    }

    fn key(key: Option<&Secret<String>>) -> Option<&str> {
        key.map(|k| k.expose().as_str())
    }

    #[test]
    fn variables_win_over_the_file_key_by_key() {
        let (id, server) = ("a".parse().expect("an id"), record("https://hs"));
        let given = KeysAtHand { router: None, client: Some(Secret::new("env-client".into())) };
        let made = member(&id, &server, Some(&given), &[file("a", "https://hs")], None, false).expect("enough");
        assert_eq!(key(made.client_auth_key.as_ref()), Some("env-client"));
        assert_eq!(key(made.router_auth_key.as_ref()), Some("file-router"));
        assert_eq!((made.namespace_id, made.ca_pem.as_deref()), (Some(7), Some("the server's")));
    }

    #[test]
    fn without_a_key_the_ways_to_one_are_named() {
        let (id, server) = ("my-lab".parse().expect("an id"), record("https://hs"));
        // Another server's file has no key for this one.
        let said = member(&id, &server, None, &[file("my-lab", "https://other")], None, false).expect_err("no key");
        assert_eq!(said.class(), Class::Credentials);
        let hint = said.hint().expect("a hint");
        assert!(
            hint.contains("TS_CLIENT_AUTHKEY_MY_LAB") && hint.contains("tmp/cluster-my-lab-headscale.json"),
            "{hint}"
        );
        assert!(member(&id, &server, None, &[], None, true).is_ok(), "a connector that has joined needs no key");
    }

    #[test]
    fn files_of_two_servers_are_a_conflict() {
        let one = server(&[file("a", "https://hs"), file("b", "https://hs")]).expect("one").expect("named");
        assert_eq!((one.url.as_str(), one.ca_pem.as_deref()), ("https://hs/", Some("pem")));
        let said = server(&[file("a", "https://hs"), file("b", "https://other")]).expect_err("two");
        assert_eq!(said.class(), Class::Conflict);
        assert_eq!(server(&[]).expect("none"), None);
    }
}
