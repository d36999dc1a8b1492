//! The Host App, wired: store, connectors, clusters, jobs, door. The only place that knows how they fit together;
//! `host/api.rs` is what the door asks of the rest.

mod api;

use std::{net::SocketAddr, sync::Arc};

use guildnet_model::{Class, StartConnector};
use guildnet_store::Store;
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::{signal::unix, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    Handed, HostError, Progress, Settings,
    daemon::Instance,
    door::{Door, Listen},
    drain::{GRACE, named},
    error::Explained as _,
    fleet::Fleet,
    forward::{Forwards, Open},
    jobs::Jobs,
    kubeconfigs_follow,
};
use api::Api;

/// What the Host App is to be.
#[derive(Debug)]
pub struct HostConfig {
    /// What was set for it: its home folder, and what its jobs go by.
    pub settings: Settings,
    /// Where it listens, whatever the settings say.
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
    forwards: Arc<Forwards>,
    jobs: Arc<Jobs>,
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
        let home = config.settings.home.clone();
        let instance = Instance::take(&home)?;
        let store = Store::open(&home).await.explained()?;
        let fleet = Arc::new(Fleet::new(store, deps.connectors).making_keys());
        let jobs = Arc::new(Jobs::new(Arc::clone(fleet.events())));
        let forwards = Arc::new(Forwards::new(
            fleet.store().clone(),
            Arc::clone(&fleet) as Arc<dyn Open>,
            Arc::clone(fleet.metrics()),
        ));
        let api = Api {
            fleet: Arc::clone(&fleet),
            forwards: Arc::clone(&forwards),
            jobs: Arc::clone(&jobs),
            settings: config.settings,
        };
        let door = Door::bind(&home, config.listen, Arc::new(api)).await?;
        Ok(Self { fleet, forwards, jobs, door, instance })
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
        self.forwards.follow().await?;
        let stop = CancellationToken::new();
        let address = self.door.address();
        let door = self.door.spawn(stop.clone());
        self.instance.announce(address)?;
        let Self { fleet, forwards, jobs, instance, .. } = self;
        Ok(Drain { fleet, forwards, jobs, door, stop, _instance: instance })
    }
}

/// The running Host App. To be ended with [`Drain::stop`].
pub struct Drain {
    fleet: Arc<Fleet>,
    forwards: Arc<Forwards>,
    jobs: Arc<Jobs>,
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
    /// Stops: jobs are cancelled, new connections are refused, open ones at the door and into clusters get their grace, then
    /// connectors and store are closed. Returns when everything has ended.
    pub async fn stop(self) {
        // First, while the door still answers them: they ask by it.
        named("jobs", self.jobs.stop()).await;
        self.stop.cancel();
        // At once: who leases forwards holds a connection of the door.
        let (door, ()) = tokio::join!(named("the door", self.door), named("forwards", self.forwards.shut(GRACE)));
        if let Err(panicked) = door {
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
    let config = HostConfig { settings: settings.clone(), listen };
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
