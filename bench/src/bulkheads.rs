//! One healthy cluster's gets through the Host App, alone and beside clusters that misbehave: one that hangs, one that
//! answers late, one whose client asks as fast as it can. Rounds of both are interleaved.
//!
//! Who hangs and who is late is the caller's doing (`scripts/load.sh` freezes their API servers); this only asks. Each client is
//! a connection of its own, as programs of people are, and the misbehaving ones are a process of their own (`crowd.rs`). All
//! share the machine's processors, unless the caller puts the crowd and its cluster where they run only when nobody else wants to.

mod crowd;

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use http::Method;
use serde::Serialize;
use tokio::time::sleep;

use self::crowd::Counts;
pub(crate) use self::crowd::Crowd;
use crate::{
    figures::{Failure, p50_ms, p99_ms},
    kube::Way,
};

/// What is asked of every cluster.
const PATH: &str = "/api/v1/namespaces/kube-system";
/// Between two gets of the healthy cluster: a person's tool, not a benchmark of throughput.
const PAUSE: Duration = Duration::from_millis(2);

/// What to measure, where. All kubeconfigs lead through the Host App.
#[derive(Debug, clap::Args)]
pub(crate) struct Bulkheads {
    /// Kubeconfig of the cluster that is measured.
    #[arg(long)]
    healthy: PathBuf,
    #[command(flatten)]
    crowd: Crowd,
    /// Seconds of each round.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds of each kind.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Seen {
    alone: Times,
    beside: Times,
    /// `beside` by `alone`.
    p50_ratio: f64,
    p99_ratio: f64,
    /// Answered requests of the flood, a second.
    flood_per_second: f64,
    /// Requests to stuck clusters that were answered, and that were refused or failed.
    stuck_answered: u64,
    stuck_refused: u64,
}

#[derive(Debug, Serialize)]
struct Times {
    gets: usize,
    p50_ms: f64,
    p99_ms: f64,
}

impl Bulkheads {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let seen = runtime.block_on(self.measure())?;
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &seen)?;
            writeln!(out)?;
            return Ok(());
        }
        for (what, times) in [("alone", &seen.alone), ("beside the others", &seen.beside)] {
            writeln!(
                out,
                "{what:<18} p50 {:>7.2} ms   p99 {:>7.2} ms   ({} gets)",
                times.p50_ms, times.p99_ms, times.gets
            )?;
        }
        writeln!(out, "{:<18} p50 {:>7.2}      p99 {:>7.2}", "ratio", seen.p50_ratio, seen.p99_ratio)?;
        let (answered, refused) = (seen.stuck_answered, seen.stuck_refused);
        writeln!(
            out,
            "flood: {:.0} answers a second; stuck clusters: {answered} answers, {refused} refused",
            seen.flood_per_second
        )?;
        Ok(())
    }

    async fn measure(&self) -> Result<Seen, Failure> {
        let healthy = Way::open("healthy", &self.healthy, None).await?;
        for _ in 0..50 {
            healthy.whole(Method::GET, PATH, None).await?;
        }
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        let mut all = Counts::default();
        for _ in 0..self.rounds {
            alone.extend(self.gets(&healthy).await?);
            let mut crowd = self.crowd.start()?;
            // Until the others are under way: their connections open, their places taken.
            sleep(Duration::from_secs(2)).await;
            crowd.count()?;
            beside.extend(self.gets(&healthy).await?);
            let counts = crowd.stop()?;
            all.flood += counts.flood;
            all.answered += counts.answered;
            all.refused += counts.refused;
            // Until the Host App has let go of what they asked.
            sleep(Duration::from_secs(2)).await;
        }
        let times = |of: &[Duration]| Times { gets: of.len(), p50_ms: p50_ms(of), p99_ms: p99_ms(of) };
        let (alone, beside) = (times(&alone), times(&beside));
        #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
        let flood_per_second = all.flood as f64 / (self.seconds * self.rounds as u64) as f64;
        Ok(Seen {
            p50_ratio: beside.p50_ms / alone.p50_ms,
            p99_ratio: beside.p99_ms / alone.p99_ms,
            alone,
            beside,
            flood_per_second,
            stuck_answered: all.answered,
            stuck_refused: all.refused,
        })
    }

    /// One round of the healthy cluster's gets, one after the other.
    async fn gets(&self, way: &Way) -> Result<Vec<Duration>, Failure> {
        let (mut times, end) = (Vec::new(), Instant::now() + Duration::from_secs(self.seconds));
        while Instant::now() < end {
            let begun = Instant::now();
            way.whole(Method::GET, PATH, None).await?;
            times.push(begun.elapsed());
            sleep(PAUSE).await;
        }
        Ok(times)
    }
}
