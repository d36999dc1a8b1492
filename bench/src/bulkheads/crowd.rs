//! The clients of clusters that misbehave, in a process of their own: what they take of a processor is not taken from the one
//! that measures, and the system can be told to treat them as if they ran on another machine.
//!
//! They begin at once; a line on standard input sets the counts to nothing, its end stops everybody. Then the counts are told.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::Method;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader as AsyncBufReader},
    task::JoinSet,
    time::sleep,
};

use super::PATH;
use crate::{figures::Failure, kube::Way};

/// Requests at once of the flood: more than half of what one cluster may take, so that none of it is refused.
const FLOOD: usize = 64;
/// Clients of each cluster that does not answer: more than the places that it has, so that some wait and some are refused.
const STUCK: usize = 400;
/// How long a refused client waits before it comes again, as client-go does.
const AGAIN: Duration = Duration::from_secs(1);

/// Who they are. All kubeconfigs lead through the Host App.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Crowd {
    /// Kubeconfigs of clusters that hang or answer late.
    #[arg(long)]
    stuck: Vec<PathBuf>,
    /// Kubeconfig of a cluster that is flooded.
    #[arg(long)]
    flood: Option<PathBuf>,
    /// Requests a second that the flood may send, all together; without it, as many as it can.
    #[arg(long)]
    pace: Option<u32>,
    /// The folder of a control group that these clients are put into.
    #[arg(long)]
    group: Option<PathBuf>,
}

/// What came of their requests.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Answers that the flood got.
    pub(super) flood: u64,
    /// Requests to stuck clusters that were answered.
    pub(super) answered: u64,
    /// And that were refused or failed.
    pub(super) refused: u64,
}

#[derive(Debug, Default)]
struct Counting {
    flood: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Counting {
    /// What was counted, and nothing from now on.
    fn take(&self) -> Counts {
        let [flood, answered, refused] =
            [&self.flood, &self.answered, &self.refused].map(|count| count.swap(0, Relaxed));
        Counts { flood, answered, refused }
    }
}

impl Crowd {
    /// `guildnet-bench crowd`.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if let Some(group) = &self.group {
            fs::write(group.join("cgroup.procs"), std::process::id().to_string())
                .map_err(|why| format!("{}: {why}", group.display()))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let counts = runtime.block_on(self.until_told())?;
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&counts)?)?;
        runtime.shutdown_background();
        Ok(())
    }

    async fn until_told(&self) -> Result<Counts, Failure> {
        let counting = Arc::new(Counting::default());
        let _clients = self.clients(&counting).await?;
        writeln!(std::io::stdout(), "ready")?;
        let mut words = AsyncBufReader::new(tokio::io::stdin()).lines();
        while words.next_line().await?.is_some() {
            counting.take();
        }
        Ok(counting.take())
    }

    async fn clients(&self, counting: &Arc<Counting>) -> Result<JoinSet<()>, Failure> {
        let mut clients = JoinSet::new();
        for file in &self.stuck {
            // Four connections, since one takes 512 requests at most and a browser or an informer has a few.
            for _ in 0..4 {
                let way = Arc::new(Way::open("stuck", file, None).await?);
                for _ in 0..STUCK / 4 {
                    clients.spawn(ask_again(Arc::clone(&way), Arc::clone(counting)));
                }
            }
        }
        if let Some(file) = &self.flood {
            let way = Arc::new(Way::open("flood", file, None).await?);
            let pause = self.pace.map(|pace| Duration::from_secs_f64(FLOOD as f64 / f64::from(pace.max(1))));
            for _ in 0..FLOOD {
                clients.spawn(flood(Arc::clone(&way), Arc::clone(counting), pause));
            }
        }
        Ok(clients)
    }

    /// Starts them as a process.
    pub(super) fn start(&self) -> Result<Running, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("crowd").stdin(Stdio::piped()).stdout(Stdio::piped());
        for file in &self.stuck {
            command.arg("--stuck").arg(file);
        }
        if let Some(file) = &self.flood {
            command.arg("--flood").arg(file);
        }
        if let Some(pace) = self.pace {
            command.args(["--pace", &pace.to_string()]);
        }
        if let Some(group) = &self.group {
            command.arg("--group").arg(group);
        }
        let mut process = command.spawn()?;
        let (words, answers) = process.stdin.take().zip(process.stdout.take()).ok_or("a process without pipes")?;
        let mut running = Running { process, words: Some(words), answers: BufReader::new(answers) };
        running.line()?;
        Ok(running)
    }
}

/// Asks a cluster that does not answer, again and again.
async fn ask_again(way: Arc<Way>, counting: Arc<Counting>) {
    loop {
        match way.whole(Method::GET, PATH, None).await {
            Ok(_) => drop(counting.answered.fetch_add(1, Relaxed)),
            Err(_) => {
                counting.refused.fetch_add(1, Relaxed);
                sleep(AGAIN).await;
            }
        }
    }
}

/// Asks a cluster as often as it answers, or once in each `pause`.
async fn flood(way: Arc<Way>, counting: Arc<Counting>, pause: Option<Duration>) {
    loop {
        let begun = Instant::now();
        if way.whole(Method::GET, PATH, None).await.is_ok() {
            counting.flood.fetch_add(1, Relaxed);
        }
        if let Some(left) = pause.and_then(|pause| pause.checked_sub(begun.elapsed())) {
            sleep(left).await;
        }
    }
}

/// The process of a crowd. Dropped, it is killed.
pub(super) struct Running {
    process: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Running {
    /// Counts from now on.
    pub(super) fn count(&mut self) -> Result<(), Failure> {
        Ok(self.words.as_mut().ok_or("it was stopped")?.write_all(b"count\n")?)
    }

    /// Stops them; what was counted.
    pub(super) fn stop(mut self) -> Result<Counts, Failure> {
        drop(self.words.take());
        let counts = serde_json::from_str(&self.line()?)?;
        self.process.wait()?;
        Ok(counts)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err("the other clients have ended by themselves".into());
        }
        Ok(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Harmless for one that has ended.
        let _ended = self.process.kill();
        let _waited = self.process.wait();
    }
}
