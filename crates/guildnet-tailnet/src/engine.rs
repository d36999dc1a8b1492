//! The engine: the threads on which connectors run, and how one is started.
//!
//! A connector's data path lives on one shard, a thread of its own with a current-thread runtime, so nothing in it is
//! locked or sent around. Control connections share one more thread, so that a large network map or a TLS handshake never
//! delays packets. What runs on a shard is in `data.rs`.

use std::{
    fmt,
    future::Future,
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use guildnet_model::{Connector, ConnectorError, ConnectorSpec, ConnectorState, StartConnector};
use tokio::{
    runtime::{Builder, Handle},
    sync::{mpsc, watch},
    task::{JoinSet, LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    connector::{self, TailnetConnector},
    data,
    machine::{self, Machine},
    state::Identity,
    tls, udp,
};

/// More shards than this gain nothing: a shard moves several hundred megabytes a second, more than the links it feeds.
const MAX_SHARDS: usize = 4;
/// Connectors that may wait to be taken over by their shard. A shard takes one at its next turn, so more than a few wait
/// only if hundreds are started in the same millisecond.
const WAITING_JOBS: usize = 1024;
/// TCP window of a flow at first, bytes: enough for a gigabit at 8 ms. It costs no memory until it is used.
const WINDOW: usize = 1 << 20;
/// What a connector's flows may hold in all, bytes: sixteen of them in full flight over a long path.
const MEMORY: usize = 128 << 20;
/// Flows that one connector may have open at once. A browser and a busy kubectl stay below a hundred.
const MAX_FLOWS: usize = 4096;

/// How the engine runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Data threads; `None`: as many as the machine has cores, at most four.
    pub shards: Option<NonZeroUsize>,
    /// TCP window of a flow in bytes, each way, at first. It grows where the path's round trips need more.
    pub window: usize,
    /// What the flows of one connector may hold in their buffers together, bytes. Each may have 64 KiB each way all the
    /// same.
    pub memory: usize,
    /// Flows that one connector may have open at once.
    pub max_flows: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { shards: None, window: WINDOW, memory: MEMORY, max_flows: MAX_FLOWS }
    }
}

/// A job for a shard: makes its future there, so that the future need not be `Send`.
type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs connectors, many in one process.
///
/// Dropping it stops every connector that still runs and waits for its threads; stop the connectors first
/// ([`Connector::stop`]) where that wait would be felt.
pub struct Engine {
    config: EngineConfig,
    shards: Vec<Shard>,
    control: Shard,
    next: AtomicUsize,
    trust: tls::Shared,
    machine: watch::Receiver<Machine>,
    cancel: CancellationToken,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine's threads. No connector runs yet.
    ///
    /// # Errors
    /// [`ConnectorError::System`] if the machine refuses a thread.
    pub fn new(config: EngineConfig) -> Result<Arc<Self>, ConnectorError> {
        let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_SHARDS);
        let count = config.shards.map_or_else(cores, NonZeroUsize::get);
        let shards = (0..count).map(|n| Shard::spawn(&format!("tailnet-{n}"))).collect::<Result<_, _>>()?;
        let control = Shard::spawn("tailnet-control")?;
        let (next, cancel) = (AtomicUsize::new(0), CancellationToken::new());
        let (told, machine) = watch::channel(Machine::default());
        let stopped = cancel.clone();
        control.submit(Box::new(move || {
            Box::pin(async move {
                stopped.run_until_cancelled(machine::watch(told)).await;
            })
        }))?;
        Ok(Arc::new(Self { config, shards, control, next, trust: tls::Shared::default(), machine, cancel }))
    }
}

impl StartConnector for Engine {
    fn start(&self, spec: ConnectorSpec) -> Result<Arc<dyn Connector>, ConnectorError> {
        let tls = self.trust.of(spec.ca_pem.as_deref())?;
        let identity = Arc::new(Identity::load_or_create(&spec.state_dir)?);
        let shard = &self.shards[self.next.fetch_add(1, Ordering::Relaxed) % self.shards.len()];
        let socket = udp::bind().map_err(|e| system(&e))?;
        let cancel = self.cancel.child_token();
        let (shared, ends) = connector::pair(&spec, cancel);
        let setup = data::Setup {
            tls,
            identity,
            socket,
            control: self.control.handle.clone(),
            machine: self.machine.clone(),
            window: self.config.window,
            memory: self.config.memory,
            max_flows: self.config.max_flows,
            spec,
        };
        // At every level of the log: each line of a connector, and of what it starts, says whose it is.
        let span = tracing::error_span!("connector", cluster = %setup.spec.cluster);
        let job: Job = Box::new(move || Box::pin(watched(setup, ends).instrument(span)));
        shard.submit(job)?;
        Ok(Arc::new(TailnetConnector::new(shared)))
    }
}

impl Drop for Engine {
    /// The shards are joined by their own drop: first the data shards, since a connector ends its control connection
    /// before it ends itself, then the control shard.
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// One thread with a current-thread runtime. Dropping it waits until its jobs have ended.
struct Shard {
    handle: Handle,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Shard {
    fn spawn(name: &str) -> Result<Self, ConnectorError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| system(&e))?;
        let handle = runtime.handle().clone();
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_JOBS);
        let work = move || {
            LocalSet::new().block_on(&runtime, async move {
                let mut running = JoinSet::new();
                loop {
                    tokio::select! {
                        job = waiting.recv() => match job {
                            Some(job) => { running.spawn_local(job()); }
                            None => break,
                        },
                        Some(ended) = running.join_next() => report(ended),
                    }
                }
                while let Some(ended) = running.join_next().await {
                    report(ended);
                }
            });
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|e| system(&e))?;
        Ok(Self { handle, jobs: Some(jobs), thread: Some(thread) })
    }

    fn submit(&self, job: Job) -> Result<(), ConnectorError> {
        let jobs = self.jobs.as_ref().expect("only its drop takes it");
        jobs.try_send(job).map_err(|e| system(&e))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("an engine thread panicked");
        }
    }
}

/// Runs a connector. If it panics, its status says so: whoever waits for another one would wait for ever.
async fn watched(setup: data::Setup, ends: connector::Ends) {
    let status = ends.status.clone();
    if let Err(error) = spawn_local(data::run(setup, ends).in_current_span()).await {
        let why = "a defect has stopped it; its log has the details".to_owned();
        data::set_state(&status, ConnectorState::Failed { why, retry_in: None });
        report(Err(error));
    }
}

/// A connector's task never fails by itself; a panic in it is a defect that must not stay silent.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connector's task panicked");
    }
}

fn system(error: &dyn fmt::Display) -> ConnectorError {
    ConnectorError::System { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_dropped_has_ended() {
        let engine = Engine::new(EngineConfig::default()).expect("threads");
        let (ended, told) = std::sync::mpsc::channel();
        thread::spawn(move || {
            drop(engine);
            ended.send(())
        });
        told.recv_timeout(std::time::Duration::from_secs(10)).expect("its threads end with it");
    }
}
