//! The server's keys: its own, API keys, and the preauth keys of a cluster's namespace.

use guildnet_headscale::{ApiKey, EnsureKeys, KeyKind, NamespaceFile, PreauthKey, client_key, ensure_namespace};
use guildnet_model::{ClusterId, Secret};
use jiff::Timestamp;

use super::Server;
use crate::{HostError, error::Explained as _};

impl Server {
    /// The key by which it is recognised at whatever address. Needs no API key.
    pub(crate) async fn server_key(&self) -> Result<String, HostError> {
        self.client.server_key().await.explained()
    }

    /// How it lists the API key that is used here.
    pub(crate) async fn own_api_key(&self) -> Result<Option<ApiKey>, HostError> {
        self.client.own_api_key().await.explained()
    }

    /// The preauth keys of a cluster's namespace; none if there is no such namespace.
    pub(crate) async fn keys_of(&self, cluster: &ClusterId) -> Result<Vec<PreauthKey>, HostError> {
        match self.client.user(&cluster.namespace()).await.explained_of(cluster)? {
            Some(user) => self.client.keys(user.id).await.explained_of(cluster),
            None => Ok(vec![]),
        }
    }

    /// A router key that will do a while longer: that of `held` if the server still takes it, else a new one. The namespace is
    /// made if it is not there. `true`: the key is new.
    pub(crate) async fn ensure_router_key(&self, held: &NamespaceFile) -> Result<(NamespaceFile, bool), HostError> {
        let want = EnsureKeys { client: false, site: held.site, ..EnsureKeys::default() };
        let made =
            ensure_namespace(&self.client, &held.cluster, &want, Some(held)).await.explained_of(&held.cluster)?;
        Ok((made.file, made.new_router_key))
    }

    /// A new key for one connector. The namespace is made if it is not there.
    pub(crate) async fn new_client_key(&self, held: &NamespaceFile) -> Result<NamespaceFile, HostError> {
        let held = NamespaceFile { client_auth_key: None, ..held.clone() };
        let want = EnsureKeys { router: false, site: held.site, ..EnsureKeys::default() };
        let made = ensure_namespace(&self.client, &held.cluster, &want, Some(&held)).await;
        made.explained_of(&held.cluster).map(|made| made.file)
    }

    /// A key with which a connector joins again that the server does not accept: that of `held` while it is unused, else a new one.
    /// An expired node of it, known by its node key, is deleted before, see [`Server::forget_expired`]. `None`: there is no namespace of the
    /// cluster; `up` makes it, with all that belongs to it.
    pub(crate) async fn rejoin_key(
        &self,
        held: &NamespaceFile,
        node_key: Option<&str>,
    ) -> Result<Option<NamespaceFile>, HostError> {
        let made = client_key(&self.client, held).await.explained_of(&held.cluster)?;
        if made.is_some()
            && let Some(node_key) = node_key
        {
            self.forget_expired(&held.cluster, Some(node_key), "").await?;
        }
        Ok(made)
    }

    /// Ends a key that is no longer needed. One that does not have the form of ours is left. `false`: nothing was done.
    pub(crate) async fn end_key(&self, cluster: &ClusterId, key: &Secret<String>) -> Result<bool, HostError> {
        let now = Timestamp::now();
        let ours = |k: &&PreauthKey| k.is(key) && KeyKind::of(k, cluster) != KeyKind::Other && k.is_usable(now);
        match self.keys_of(cluster).await?.iter().find(ours) {
            Some(entry) => self.client.expire_key(entry).await.explained_of(cluster).map(|()| true),
            None => Ok(false),
        }
    }
}
