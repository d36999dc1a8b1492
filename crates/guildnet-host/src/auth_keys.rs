//! The preauth keys of the running Host App's connectors: made on the Headscale server when one is needed, so that a node that was removed
//! there, or whose key has expired, joins again without a person.
//!
//! Where that can't be done (no API key of the cluster's server is kept, the namespace is gone, the server does not answer) there is the
//! stored key. What is made is not stored: it is used at once.

use guildnet_headscale::NamespaceFile;
use guildnet_model::{AuthKeys, BoxFuture, NoAuthKey, Secret};
use guildnet_store::{ClusterRecord, Store};
use tokio::sync::Mutex;

use crate::{HostError, error::Explained as _, server::Server, up::file_of};

/// Makes keys for one cluster's connector.
#[derive(Debug)]
pub(crate) struct MadeKeys {
    store: Store,
    record: ClusterRecord,
    /// What the server gave last: given again until it was used.
    held: Mutex<NamespaceFile>,
}

impl MadeKeys {
    pub(crate) fn new(store: Store, record: &ClusterRecord) -> Self {
        Self { store, record: record.clone(), held: Mutex::new(file_of(record)) }
    }

    /// A key that the server takes; `None` if none can be made here.
    async fn make(&self) -> Result<Option<Secret<String>>, HostError> {
        let kept = self.store.headscale().await.explained()?;
        let Some(kept) = kept.filter(|h| h.api_key.is_some() && h.url == self.record.login_server) else {
            return Ok(None);
        };
        let node_key = guildnet_tailnet::saved_node_key(&self.record.state_path).explained()?;
        let mut held = self.held.lock().await;
        let Some(made) = Server::of(&kept)?.rejoin_key(&held, node_key.as_deref()).await? else { return Ok(None) };
        if made.client_auth_key != held.client_auth_key {
            tracing::info!(cluster = %self.record.id, "client key made: the server does not accept the connector without one");
        }
        *held = made;
        Ok(held.client_auth_key.clone())
    }
}

impl AuthKeys for MadeKeys {
    fn key(&self) -> BoxFuture<'_, Result<Option<Secret<String>>, NoAuthKey>> {
        Box::pin(async {
            let stored = self.record.client_auth_key.clone();
            match self.make().await {
                Ok(made) => Ok(made.or(stored)),
                Err(why) if stored.is_some() => {
                    tracing::warn!(cluster = %self.record.id, why = why.message(), "no client key could be made: the stored one is tried");
                    Ok(stored)
                }
                Err(why) => Err(NoAuthKey { why: why.message().to_owned() }),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use guildnet_store::HeadscaleRecord;

    use super::*;
    use crate::fake;

    /// What is given with this stored key, where an API key of this server is kept. Nothing listens there.
    async fn given(stored: Option<&str>, server: &str) -> Result<Option<Secret<String>>, NoAuthKey> {
        let home = tempfile::tempdir().expect("a folder");
        let store = Store::open(&home.path().join("home")).await.expect("a store");
        let url = server.parse().expect("a URL");
        let api_key = Some(Secret::new("hskey-api-secret".to_owned()));
        store.put_headscale(&HeadscaleRecord { url, api_key, ca_pem: None }).await.expect("stored");
        let record = ClusterRecord {
            login_server: "https://127.0.0.1:1".parse().expect("a URL"),
            client_auth_key: stored.map(|key| Secret::new(key.to_owned())),
            ..fake::record("a")
        };
        MadeKeys::new(store, &record).key().await
    }

    #[tokio::test]
    async fn the_stored_key_is_given_where_none_can_be_made() {
        let stored = Some(Secret::new("stored".to_owned()));
        assert_eq!(given(Some("stored"), "https://127.0.0.1:2").await, Ok(stored.clone()), "another server's API key");
        assert_eq!(given(None, "https://127.0.0.1:2").await, Ok(None));
        assert_eq!(given(Some("stored"), "https://127.0.0.1:1").await, Ok(stored), "it does not answer");
    }

    #[tokio::test]
    async fn without_a_stored_key_the_cause_is_told() {
        let why = given(None, "https://127.0.0.1:1").await.expect_err("it does not answer").to_string();
        assert!(why.contains("127.0.0.1:1") && !why.contains("secret"), "{why}");
    }
}
