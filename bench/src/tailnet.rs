//! The lab's tailnet: keys for the benchmark's members, and a connector in this process.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use guildnet_headscale::{Headscale, HeadscaleConfig, NewKey, ensure_user, routers_of};
use guildnet_model::{
    ClusterId, Connector, ConnectorSnapshot, ConnectorSpec, Dialer, FixedKey, Networks, PathKind, Secret, SiteNumber,
    StartConnector as _, Target, via6,
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
/// Calls to the server at once where there are many: it gathers what changes nodes for half a second.
pub(crate) const CALLS: usize = 50;
/// How often nodes are told to go until none is left.
const FORGET_TRIES: usize = 30;
/// How long a join may take, first dial included.
pub(crate) const JOIN_LIMIT: Duration = Duration::from_secs(240);
/// Between two tries of a join: a connector that has just started has no router yet.
pub(crate) const JOIN_PAUSE: Duration = Duration::from_millis(20);
/// How long a connector may take to leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// Which tailnet, and how it is reached.
#[derive(Clone, Debug, clap::Args)]
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
    /// A key for a client of the cluster, good for ones that are forgotten when they have gone: for one, or for many.
    pub(crate) async fn mint(&self, reusable: bool) -> Result<Secret<String>, Failure> {
        let headscale = self.headscale()?;
        let new = NewKey {
            user: ensure_user(&headscale, &self.cluster).await?.id,
            tags: vec![self.cluster.client_tag()],
            reusable,
            ephemeral: true,
            expires: jiff::Timestamp::now() + KEY_LIFE,
        };
        Ok(headscale.create_key(&new).await?.1)
    }

    pub(crate) fn headscale(&self) -> Result<Headscale, Failure> {
        Ok(Headscale::new(HeadscaleConfig {
            url: self.headscale_url.clone(),
            api_key: Some(Secret::new(self.api_key()?)),
            ca_pem: Some(std::fs::read_to_string(&self.headscale_ca)?),
        })?)
    }

    pub(crate) fn api_key(&self) -> Result<String, Failure> {
        Ok(std::fs::read_to_string(&self.headscale_api_key_file)?.trim().to_owned())
    }

    /// Forgets the cluster's nodes whose names begin so. A server that has many of them answers late; it is asked again.
    pub(crate) async fn forget(&self, prefix: &str) -> Result<(), Failure> {
        let (headscale, tags) = (&self.headscale()?, [self.cluster.client_tag(), self.cluster.router_tag()]);
        let mut failed = Ok(());
        for _ in 0..FORGET_TRIES {
            let mut calls = Vec::new();
            for node in headscale.nodes().await? {
                if node.name.starts_with(prefix) && node.tags.iter().all(|tag| tags.contains(tag)) {
                    calls.push(headscale.delete_node(node.id));
                }
            }
            if calls.is_empty() {
                return Ok(());
            }
            let ended: Vec<_> = stream::iter(calls).buffer_unordered(CALLS).collect().await;
            failed = ended.into_iter().collect();
        }
        Ok(failed?)
    }

    /// The site whose 4via6 form of the networks the cluster's routers serve, if they don't serve the networks themselves.
    pub(crate) async fn site(&self) -> Result<Option<SiteNumber>, Failure> {
        let nodes = self.headscale()?.nodes().await?;
        let routers = routers_of(&nodes, &self.cluster);
        let served = || routers.iter().flat_map(|router| &router.approved_routes);
        if served().any(|net| net.addr().is_ipv4()) {
            return Ok(None);
        }
        Ok(served().find_map(|net| match net.addr() {
            IpAddr::V6(address) => via6::parse(address).map(|(site, _)| site),
            IpAddr::V4(_) => None,
        }))
    }

    /// A connector in this process, once `target` can be dialled through it.
    pub(crate) async fn join(&self, hostname: &str, target: Target) -> Result<Member, Failure> {
        let member = Member::start(&Joining {
            login_server: self.headscale_url.clone(),
            cluster: self.cluster.clone(),
            hostname: hostname.to_owned(),
            routes: ROUTES.parse()?,
            site: self.site().await?,
            ca_pem: Some(std::fs::read_to_string(&self.headscale_ca)?),
            auth_key: Some(self.mint(false).await?),
        })?;
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

/// How a connector of this process joins.
pub(crate) struct Joining {
    pub(crate) login_server: Url,
    pub(crate) cluster: ClusterId,
    pub(crate) hostname: String,
    pub(crate) routes: Networks,
    pub(crate) site: Option<SiteNumber>,
    pub(crate) ca_pem: Option<String>,
    pub(crate) auth_key: Option<Secret<String>>,
}

/// A connector of this process, with an engine of its own, and others on the same engine.
pub(crate) struct Member {
    connectors: Vec<Arc<dyn Connector>>,
    // In this order: the engine waits for its connectors when it ends, and they use the folder.
    engine: Arc<Engine>,
    folder: TempDir,
}

impl Member {
    pub(crate) fn start(joining: &Joining) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let engine = Engine::new(EngineConfig::default())?;
        let mut member = Self { connectors: Vec::new(), engine, folder };
        member.grow(joining)?;
        Ok(member)
    }

    /// One more connector, with a name of its own.
    pub(crate) fn grow(&mut self, joining: &Joining) -> Result<Arc<dyn Dialer>, Failure> {
        let number = self.connectors.len();
        let hostname = match number {
            0 => joining.hostname.clone(),
            _ => format!("{}-{number}", joining.hostname),
        };
        let connector = self.engine.start(ConnectorSpec {
            cluster: joining.cluster.clone(),
            login_server: joining.login_server.clone(),
            ca_pem: joining.ca_pem.clone(),
            hostname,
            state_dir: self.folder.path().join(format!("state-{number}")),
            auth_keys: Arc::new(FixedKey(joining.auth_key.clone())),
            routes: joining.routes.clone(),
            site: joining.site,
            ephemeral: true,
        })?;
        let dialer = connector.dialer();
        self.connectors.push(connector);
        Ok(dialer)
    }

    pub(crate) fn count(&self) -> usize {
        self.connectors.len()
    }

    pub(crate) fn dialer(&self) -> Arc<dyn Dialer> {
        self.first().dialer()
    }

    /// Whether the first connector's packets to a router of the cluster take the direct path.
    pub(crate) async fn is_direct(&self) -> bool {
        let peers = self.snapshot().await.peers;
        peers.iter().any(|peer| peer.trusted && peer.path == PathKind::Direct)
    }

    /// How many peers the first connector's network map has.
    pub(crate) async fn peers(&self) -> usize {
        self.snapshot().await.peers.len()
    }

    fn first(&self) -> &Arc<dyn Connector> {
        self.connectors.first().expect("it was started with one")
    }

    /// Everything that the connector shows now.
    pub(crate) async fn snapshot(&self) -> ConnectorSnapshot {
        self.first().snapshot().await
    }

    /// Leaves the tailnet.
    pub(crate) async fn leave(self) {
        join_all(self.connectors.iter().map(|connector| connector.stop(LEAVE_LIMIT))).await;
    }
}
