//! The side-by-side run: the same commands to each client in turn, medians over the rounds.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use guildnet_model::{Secret, Target};
use serde::Serialize;

use crate::{
    figures::{Failure, median},
    protocol::Answer,
    tailnet::Tailnet,
};

/// What to measure, where.
#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    tailnet: Tailnet,
    /// The far end inside the cluster.
    #[arg(long, default_value = "10.96.0.80:9000")]
    target: Target,
    /// The program in bench/peers/tsnet, built.
    #[arg(long)]
    tsnet: PathBuf,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of each transfer, MiB.
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// One figure, side by side. Medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    figure: &'static str,
    unit: &'static str,
    ours: f64,
    tsnet: f64,
    ratio: f64,
}

/// A figure's name, its unit, and how it is read off an answer; the number is the transfer's size in bytes.
type Figure = (&'static str, &'static str, fn(&Answer, u64) -> f64);

/// One command of a round, and how its answer becomes figures.
struct Measure {
    command: String,
    figures: Vec<Figure>,
}

impl Compare {
    /// Starts both clients, runs the rounds, prints the figures.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let bytes = self.mib << 20;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keys = runtime.block_on(self.tailnet.mint(2))?;
        let me = std::env::current_exe()?;
        let mut ours = Peer::start(&me, &["client"], self, "bench-ours", &keys[0])?;
        let mut tsnet = Peer::start(&self.tsnet, &[], self, "bench-tsnet", &keys[1])?;

        let mut rows = Vec::new();
        let joins = [ours.ask("join")?, tsnet.ask("join")?];
        rows.push(row("start to first byte", "s", &[joins[0].seconds], &[joins[1].seconds]));
        rows.push(row("memory, idle", "MiB", &[mib(joins[0].rss_kib)], &[mib(joins[1].rss_kib)]));

        for measure in measures(bytes) {
            let mut seen: Vec<[Answer; 2]> = Vec::new();
            for _ in 0..self.rounds {
                seen.push([ours.ask(&measure.command)?, tsnet.ask(&measure.command)?]);
            }
            for (figure, unit, of) in measure.figures {
                let column = |k: usize| seen.iter().map(|pair| of(&pair[k], bytes)).collect::<Vec<_>>();
                rows.push(row(figure, unit, &column(0), &column(1)));
            }
        }
        ours.finish()?;
        tsnet.finish()?;
        self.print(&rows)
    }

    fn print(&self, rows: &[Row]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "rounds": self.rounds, "rows": rows }))?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(out, "{:<32} {:>10} {:>10} {:>7}", "", "guildnet", "tsnet", "ratio")?;
        for r in rows {
            let name = format!("{}, {}", r.figure, r.unit);
            writeln!(out, "{name:<32} {:>10.3} {:>10.3} {:>7.2}", r.ours, r.tsnet, r.ratio)?;
        }
        Ok(())
    }
}

fn measures(bytes: u64) -> Vec<Measure> {
    #[expect(clippy::cast_precision_loss, reason = "sizes and microseconds here are far below 2^53")]
    fn rate(a: &Answer, bytes: u64) -> f64 {
        bytes as f64 / 1e6 / a.seconds
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes and microseconds here are far below 2^53")]
    fn p50(a: &Answer, _: u64) -> f64 {
        a.p50_us as f64
    }
    vec![
        Measure { command: "rtt 300".into(), figures: vec![("round trip, p50", "us", p50)] },
        Measure { command: "dial 30".into(), figures: vec![("dial, p50", "us", p50)] },
        Measure {
            command: format!("down {bytes}"),
            figures: vec![("down", "MB/s", rate), ("down, processor time", "s", |a, _| a.cpu)],
        },
        Measure {
            command: format!("up {bytes}"),
            figures: vec![
                ("up", "MB/s", rate),
                ("up, processor time", "s", |a, _| a.cpu),
                ("memory, loaded", "MiB", |a, _| mib(a.rss_kib)),
            ],
        },
    ]
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn row(figure: &'static str, unit: &'static str, ours: &[f64], tsnet: &[f64]) -> Row {
    let (ours, tsnet) = (median(ours), median(tsnet));
    Row { figure, unit, ours, tsnet, ratio: ours / tsnet }
}

/// A client process.
struct Peer {
    name: &'static str,
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(
        program: &Path,
        first: &[&str],
        what: &Compare,
        name: &'static str,
        key: &Secret<String>,
    ) -> Result<Self, Failure> {
        let mut child = Command::new(program)
            .args(first)
            .args([what.tailnet.headscale_url.as_str(), name, &what.target.to_string()])
            .env("TS_AUTHKEY", key.expose())
            .env("SSL_CERT_FILE", &what.tailnet.headscale_ca)
            .env("TS_NO_LOGS_NO_SUPPORT", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|why| format!("{} could not be started: {why}", program.display()))?;
        let commands = child.stdin.take().expect("the pipe was asked for");
        let answers = BufReader::new(child.stdout.take().expect("the pipe was asked for"));
        Ok(Self { name, child, commands, answers })
    }

    fn ask(&mut self, command: &str) -> Result<Answer, Failure> {
        writeln!(self.commands, "{command}")?;
        self.commands.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|why| format!("{}: {command:?} was answered {line:?}: {why}", self.name))?;
        if answer.error.is_empty() {
            Ok(answer)
        } else {
            Err(format!("{}: {command}: {}", self.name, answer.error).into())
        }
    }

    /// Closes standard input, which ends the client, and waits for it.
    fn finish(self) -> Result<(), Failure> {
        let Self { name, mut child, commands, answers } = self;
        drop((commands, answers));
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}").into()) }
    }
}
