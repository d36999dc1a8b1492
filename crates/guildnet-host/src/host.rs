//! The Host App, wired: store, connectors, clusters, door. The only file that knows how they fit together.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, Class, ClusterId, Dialer, StartConnector};
use guildnet_store::Store;
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::{signal::unix, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    ClusterStatus, Handed, HostError, Progress, Settings, StatusReport,
    cluster::{ClusterDialer, DisconnectedDialer},
    daemon::Instance,
    door::{Door, HostApi, Listen},
    error::Explained as _,
    fleet::Fleet,
    kubeconfigs_follow, status,
    verify::{self, Report},
};

/// What the Host App is to be.
#[derive(Debug)]
pub struct HostConfig {
    /// The home folder.
    pub home: PathBuf,
    /// Where it listens.
    pub listen: Listen,
}

/// What it is made of that tests replace.
pub struct Deps {
    /// Starts connectors.
    pub connectors: Arc<dyn StartConnector>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

impl Deps {
    /// The real ones.
    ///
    /// # Errors
    /// The machine refused what the connectors' engine needs.
    pub fn real() -> Result<Self, HostError> {
        let connectors = Engine::new(EngineConfig::default()).explained()?;
        Ok(Self { connectors })
    }
}

/// The Host App, built: everything is open and bound, nothing runs yet.
pub struct Host {
    fleet: Arc<Fleet>,
    door: Door,
    instance: Instance,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("address", &self.door.address()).finish_non_exhaustive()
    }
}

impl Host {
    /// Takes the home folder for this process, opens the store and the certificates, and binds the port
    /// or takes the listener.
    ///
    /// # Errors
    /// Another Host App has the folder, the store can't be opened, the port is taken. Nothing is left running.
    pub async fn build(config: HostConfig, deps: Deps) -> Result<Self, HostError> {
        let instance = Instance::take(&config.home)?;
        let store = Store::open(&config.home).await.explained()?;
        let fleet = Arc::new(Fleet::new(store, deps.connectors));
        let api = Arc::new(Api { fleet: Arc::clone(&fleet) });
        let door = Door::bind(&config.home, config.listen, api).await?;
        Ok(Self { fleet, door, instance })
    }

    /// Where its door is.
    pub fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Starts serving; the clusters are started at once and come up on their own time.
    ///
    /// # Errors
    /// The store can't be read, or clients can't be told where the door is.
    pub async fn spawn(self) -> Result<Drain, HostError> {
        self.fleet.reload().await?;
        let stop = CancellationToken::new();
        let address = self.door.address();
        let door = self.door.spawn(stop.clone());
        self.instance.announce(address)?;
        Ok(Drain { fleet: self.fleet, door, stop, _instance: self.instance })
    }
}

/// The running Host App. To be ended with [`Drain::stop`].
pub struct Drain {
    fleet: Arc<Fleet>,
    door: JoinHandle<()>,
    stop: CancellationToken,
    _instance: Instance,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").finish_non_exhaustive()
    }
}

impl Drain {
    /// Stops: new connections are refused, open ones get their grace, then connectors and store are closed. Returns when
    /// everything has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(panicked) = self.door.await {
            tracing::error!(%panicked, "the door ended badly");
        }
        self.fleet.stop().await;
    }
}

/// See [`crate::serve`].
pub(crate) async fn serve(settings: &Settings, mut handed: Handed, progress: &dyn Progress) -> Result<(), HostError> {
    let signal =
        |kind| unix::signal(kind).map_err(|why| HostError::new(Class::Failed, format!("no signal handler: {why}")));
    // Before anything is open: a signal that comes early must not leave files behind.
    let (mut terminate, mut interrupt) =
        (signal(unix::SignalKind::terminate())?, signal(unix::SignalKind::interrupt())?);
    raise_file_limit();
    let listen = handed.listener.take().map_or(Listen::At(settings.listen), Listen::On);
    let config = HostConfig { home: settings.home.clone(), listen };
    let running = Host::build(config, Deps::real()?).await?;
    let address = running.address();
    let running = running.spawn().await?;
    progress.step(None, &format!("serving at https://{address}"));
    handed.ready(&address);
    // It may be at another address than the last time, or with another authority.
    kubeconfigs_follow(settings, progress).await;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    progress.step(None, "stopping");
    handed.stopping();
    running.stop().await;
    Ok(())
}

/// Lets this process open as many files as the system allows it: each client takes one, and a person's default of 1024 is
/// less than the door's own bound.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }) {
        tracing::warn!(%why, "the limit of open files stays as it is");
    }
}

/// What the door asks the rest.
struct Api {
    fleet: Arc<Fleet>,
}

impl HostApi for Api {
    fn ready(&self) -> bool {
        // The door serves only after the store was read and the connectors were asked to start.
        true
    }

    fn status(&self) -> BoxFuture<'_, StatusReport> {
        Box::pin(async { status::of_running(&self.fleet).await })
    }

    fn clusters(&self) -> BoxFuture<'_, Vec<ClusterStatus>> {
        Box::pin(async { status::of_clusters(&self.fleet).await })
    }

    fn cluster<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Option<ClusterStatus>> {
        Box::pin(async move { status::of_id(&self.fleet, id).await })
    }

    fn dialer(&self, id: &ClusterId) -> Option<Arc<dyn Dialer>> {
        if let Ok(handle) = self.fleet.handle(id) {
            return Some(Arc::new(ClusterDialer(handle)));
        }
        // Known, and not to be dialled: said as the state of any other connector that is not ready.
        let resting = self.fleet.disconnected().iter().any(|(of, _)| of == id);
        resting.then(|| Arc::new(DisconnectedDialer(id.clone())) as Arc<dyn Dialer>)
    }

    fn read_only(&self, id: &ClusterId) -> Result<bool, HostError> {
        self.fleet.read_only(id)
    }

    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>> {
        Box::pin(async move { self.fleet.handle(id)?.api_soon().await })
    }

    fn verify(&self, clusters: Vec<ClusterId>) -> BoxFuture<'_, Result<Report, HostError>> {
        Box::pin(async move { verify::verify_fleet(&self.fleet, &clusters).await })
    }

    fn reload(&self) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async {
            let changes = self.fleet.reload().await?;
            // One line each: `guildnet logs CLUSTER` finds it.
            for (what, clusters) in [("started", &changes.started), ("stopped", &changes.stopped)] {
                clusters.iter().for_each(|cluster| tracing::info!(%cluster, "{what}: the clusters were read again"));
            }
            Ok(())
        })
    }
}
