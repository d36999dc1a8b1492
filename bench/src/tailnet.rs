//! The lab's tailnet: keys for the benchmark's members, and a connector in this process.

use std::{path::PathBuf, sync::Arc, time::Duration};

use guildnet_headscale::{Headscale, HeadscaleConfig, NewKey, ensure_user};
use guildnet_model::{
    ClusterId, Connector, ConnectorSnapshot, ConnectorSpec, Dialer, FixedKey, Networks, Secret, StartConnector as _,
    Target,
};
use guildnet_tailnet::{Engine, EngineConfig};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use url::Url;

use crate::figures::Failure;

/// The cluster's networks, as the lab has them.
pub(crate) const ROUTES: &str = "10.96.0.0/16,10.244.0.0/16";
/// How long a key may be used: longer than any benchmark takes to begin.
const KEY_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);
/// How long a join may take, first dial included.
pub(crate) const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries of a join: a connector that has just started has no router yet.
pub(crate) const JOIN_PAUSE: Duration = Duration::from_millis(20);
/// How long a connector may take to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Which tailnet, and how it is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Tailnet {
    /// The Headscale server.
    #[arg(long)]
    pub(crate) headscale_url: Url,
    /// File with its API key, to mint a key for each client.
    #[arg(long)]
    pub(crate) headscale_api_key_file: PathBuf,
    /// File with the certificate authority to trust.
    #[arg(long)]
    pub(crate) headscale_ca: PathBuf,
    /// The cluster to dial into; its policy must be applied already (`guildnet up`).
    #[arg(long, default_value = "a")]
    pub(crate) cluster: ClusterId,
}

impl Tailnet {
    /// Keys for clients of the cluster, each good for one that is forgotten when it has gone.
    pub(crate) async fn mint(&self, count: usize) -> Result<Vec<Secret<String>>, Failure> {
        let headscale = Headscale::new(HeadscaleConfig {
            url: self.headscale_url.clone(),
            api_key: Some(Secret::new(std::fs::read_to_string(&self.headscale_api_key_file)?.trim().to_owned())),
            ca_pem: Some(std::fs::read_to_string(&self.headscale_ca)?),
        })?;
        let user = ensure_user(&headscale, &self.cluster).await?.id;
        let mut keys = Vec::new();
        for _ in 0..count {
            let new = NewKey {
                user,
                tags: vec![self.cluster.client_tag()],
                reusable: false,
                ephemeral: true,
                expires: jiff::Timestamp::now() + KEY_LIFE,
            };
            keys.push(headscale.create_key(&new).await?.1);
        }
        Ok(keys)
    }

    /// A connector in this process, once `target` can be dialled through it.
    pub(crate) async fn join(&self, hostname: &str, target: Target) -> Result<Member, Failure> {
        let auth_key = self.mint(1).await?.pop();
        let ca_pem = Some(std::fs::read_to_string(&self.headscale_ca)?);
        let routes = ROUTES.parse()?;
        let member = Member::start(&self.headscale_url, &self.cluster, hostname, routes, ca_pem, auth_key)?;
        let begun = Instant::now();
        while let Err(why) = member.dialer().dial(target).await {
            if begun.elapsed() > JOIN_LIMIT {
                return Err(why.into());
            }
            sleep(JOIN_PAUSE).await;
        }
        Ok(member)
    }
}

/// A connector of this process, with an engine of its own.
pub(crate) struct Member {
    connector: Arc<dyn Connector>,
    // In this order: the engine waits for its connectors when it ends, and they use the folder.
    _engine: Arc<Engine>,
    _folder: TempDir,
}

impl Member {
    pub(crate) fn start(
        login_server: &Url,
        cluster: &ClusterId,
        hostname: &str,
        routes: Networks,
        ca_pem: Option<String>,
        auth_key: Option<Secret<String>>,
    ) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let engine = Engine::new(EngineConfig::default())?;
        let connector = engine.start(ConnectorSpec {
            cluster: cluster.clone(),
            login_server: login_server.clone(),
            ca_pem,
            hostname: hostname.to_owned(),
            state_dir: folder.path().join("state"),
            auth_keys: Arc::new(FixedKey(auth_key)),
            routes,
            site: None,
            ephemeral: true,
        })?;
        Ok(Self { connector, _engine: engine, _folder: folder })
    }

    pub(crate) fn dialer(&self) -> Arc<dyn Dialer> {
        self.connector.dialer()
    }

    /// Everything that the connector shows now.
    pub(crate) async fn snapshot(&self) -> ConnectorSnapshot {
        self.connector.snapshot().await
    }

    /// Leaves the tailnet.
    pub(crate) async fn leave(self) {
        self.connector.stop(LEAVE_LIMIT).await;
    }
}
