//! One connector kept busy for long: what it holds, what it repeats and whether anything is ever wrong.
//!
//! Three things go on all the time: transfers both ways at a fixed pace, one dial a second, and one flow that only says a word
//! each ten seconds. A line each minute; what failed is counted and told, and fails the run at its end.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use guildnet_model::{Dialer, Io, PathKind, PeerInfo, Target};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    client::{download, echo, upload},
    figures::{Failure, median},
    tailnet::{Member, Tailnet},
    usage,
};

/// What each transfer moves, and how often one begins: 4 MiB each way a second.
const TRANSFER: u64 = 4 << 20;
const TRANSFER_EACH: Duration = Duration::from_secs(1);
const DIAL_EACH: Duration = Duration::from_secs(1);
const WORD_EACH: Duration = Duration::from_secs(10);
const LINE_EACH: Duration = Duration::from_secs(60);
/// Failures that are told in full.
const TOLD: usize = 20;

/// What to keep busy, for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    tailnet: Tailnet,
    /// The far end inside the cluster.
    #[arg(long, default_value = "10.96.0.80:9000")]
    target: Target,
    /// For how many minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// What has happened so far.
#[derive(Default)]
struct Tally {
    transferred: AtomicU64,
    dials: Mutex<Vec<f64>>,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn failed(&self, what: &str, why: &Failure) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push(format!("{what}: {why}"));
    }
}

impl Soak {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        // Two threads, as in the Host App: the application's and the engine's own.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(self.soak())
    }

    async fn soak(&self) -> Result<(), Failure> {
        let member = self.tailnet.join("bench-soak", self.target).await?;
        let tally = Arc::new(Tally::default());
        let mut running = JoinSet::new();
        let load = || Load { dialer: member.dialer(), target: self.target, tally: tally.clone() };
        running.spawn(load().transfers());
        running.spawn(load().dials());
        running.spawn(load().words());
        self.watch(&member, &tally).await;
        running.shutdown().await;
        member.leave().await;
        let failures = std::mem::take(&mut *tally.failures.lock().unwrap_or_else(PoisonError::into_inner));
        match failures.len() {
            0 => Ok(()),
            n => Err(format!("{n} failed: {}", failures[..n.min(TOLD)].join("; ")).into()),
        }
    }

    /// Prints a line a minute.
    #[expect(clippy::print_stdout, reason = "it is what the command is for")]
    async fn watch(&self, member: &Member, tally: &Tally) {
        println!(
            "{:>6} {:>8} {:>7} {:>6} {:>9} {:>9} {:>8} {:>7} {:>10} {:>7}",
            "minute", "MiB held", "CPU s", "flows", "moved GiB", "dial p50", "max ms", "rekeys", "path", "failed"
        );
        let mut ticks = interval(LINE_EACH);
        ticks.tick().await;
        let (mut rekeys, mut changes, mut last) = (0_u64, 0_u64, None::<PeerInfo>);
        let mut looks = interval(Duration::from_secs(5));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut minute = 0;
        while minute < self.minutes {
            tokio::select! {
                _ = looks.tick() => {
                    let Some(router) = router(member).await else { continue };
                    if let Some(last) = &last {
                        rekeys += u64::from(router.last_handshake != last.last_handshake);
                        changes += u64::from(router.path != last.path);
                    }
                    last = Some(router);
                }
                _ = ticks.tick() => {
                    minute += 1;
                    let dials = std::mem::take(&mut *tally.dials.lock().unwrap_or_else(PoisonError::into_inner));
                    let longest = dials.iter().copied().fold(f64::NAN, f64::max);
                    let failed = tally.failures.lock().unwrap_or_else(PoisonError::into_inner).len();
                    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                    let (held, moved) = (
                        usage::rss_kib() as f64 / 1024.0,
                        tally.transferred.load(Ordering::Relaxed) as f64 / f64::from(1 << 30),
                    );
                    println!(
                        "{minute:>6} {held:>8.1} {:>7.1} {:>6} {moved:>9.2} {:>9.2} {longest:>8.1} {rekeys:>7} {:>10} {failed:>7}",
                        usage::cpu_seconds(),
                        member.snapshot().await.flows,
                        median(&dials),
                        last.as_ref().map_or(PathKind::Idle, |router| router.path),
                    );
                }
            }
        }
        println!("path changes: {changes}");
    }
}

async fn router(member: &Member) -> Option<PeerInfo> {
    member.snapshot().await.peers.into_iter().filter(|peer| peer.trusted).max_by_key(|peer| peer.last_handshake)
}

/// What keeps the connector busy.
struct Load {
    dialer: Arc<dyn Dialer>,
    target: Target,
    tally: Arc<Tally>,
}

impl Load {
    async fn transfers(self) {
        let mut ticks = ticks(TRANSFER_EACH);
        loop {
            ticks.tick().await;
            let once = async {
                let flow = &mut self.dialer.dial(self.target).await?;
                download(flow, TRANSFER).await?;
                upload(flow, TRANSFER).await
            };
            match once.await {
                Ok(()) => drop(self.tally.transferred.fetch_add(2 * TRANSFER, Ordering::Relaxed)),
                Err(why) => self.tally.failed("transfer", &why),
            }
        }
    }

    async fn dials(self) {
        let mut ticks = ticks(DIAL_EACH);
        loop {
            ticks.tick().await;
            let begun = Instant::now();
            let once = async { echo(&mut self.dialer.dial(self.target).await?).await };
            match once.await {
                Ok(()) => {
                    let took = begun.elapsed().as_secs_f64() * 1e3;
                    self.tally.dials.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                }
                Err(why) => self.tally.failed("dial", &why),
            }
        }
    }

    /// One flow for as long as it lives.
    async fn words(self) {
        let mut ticks = ticks(WORD_EACH);
        let mut quiet = None::<Box<dyn Io>>;
        loop {
            ticks.tick().await;
            let once = async {
                if quiet.is_none() {
                    quiet = Some(self.dialer.dial(self.target).await?);
                }
                echo(quiet.as_mut().ok_or("no flow")?).await
            };
            if let Err(why) = once.await {
                self.tally.failed("quiet flow", &why);
                quiet = None;
            }
        }
    }
}

/// One that falls behind is not made up for.
fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
