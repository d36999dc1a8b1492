//! The side-by-side run: the same commands to each client in turn, medians over the rounds.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use guildnet_model::{Secret, Target};
use serde::Serialize;
use serde_json::json;

use crate::{
    figures::{Failure, median},
    protocol::Answer,
    tailnet::Tailnet,
    usage,
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
    /// Measure only what begins with one of these, e.g. "down" or "dial".
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write the same JSON to this file.
    #[arg(long)]
    save: Option<PathBuf>,
    /// The commit that is measured, for the record.
    #[arg(long)]
    commit: Option<String>,
}

/// One figure, side by side. Medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    figure: String,
    unit: &'static str,
    ours: f64,
    peers: BTreeMap<&'static str, f64>,
    /// Ours by Go tsnet's.
    ratio: f64,
    target: String,
    met: bool,
}

/// What a figure must reach, as a part of tsnet's in the same run, or by itself.
#[derive(Clone, Copy, Debug)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Not compared: no more than that.
    Below(f64),
    /// Only reported.
    None,
}

/// A figure's name, its unit, its goal, and how it is read off an answer; the number is the transfer's size in bytes.
type Figure = (String, &'static str, Goal, fn(&Answer, u64) -> f64);

/// One command of a round, and how its answer becomes figures.
struct Measure {
    command: String,
    bytes: u64,
    figures: Vec<Figure>,
}

impl Compare {
    /// Starts both clients, runs the rounds, prints the figures.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keys = runtime.block_on(self.tailnet.mint(2))?;
        let me = std::env::current_exe()?;
        let mut ours = Peer::start(&me, &["client"], self, "bench-ours", &keys[0])?;
        let mut tsnet = Peer::start(&self.tsnet, &[], self, "bench-tsnet", &keys[1])?;

        let mut rows = Vec::new();
        let joins = [ours.ask("join")?, tsnet.ask("join")?];
        let once = |of: fn(&Answer) -> f64| [of(&joins[0]), of(&joins[1])].map(|value| vec![value]);
        rows.push(row("start to first byte".into(), "s", Goal::AtMost(1.1), &once(|a| a.seconds)));
        rows.push(row("memory, idle".into(), "MiB", Goal::AtMost(0.4), &once(|a| mib(a.rss_kib))));

        for measure in measures(self.mib << 20) {
            if !self.wants(&measure) {
                continue;
            }
            let mut seen: [Vec<Answer>; 2] = Default::default();
            for round in 0..self.rounds {
                // Who comes first finds the machine as the other has left it: they take turns.
                let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
                for k in order {
                    let peer = if k == 0 { &mut ours } else { &mut tsnet };
                    seen[k].push(peer.ask(&measure.command)?);
                }
            }
            for (figure, unit, goal, of) in measure.figures {
                let columns = seen.each_ref().map(|all| all.iter().map(|answer| of(answer, measure.bytes)).collect());
                rows.push(row(figure, unit, goal, &columns));
            }
        }
        ours.finish()?;
        tsnet.finish()?;
        self.print(&rows)
    }

    fn wants(&self, measure: &Measure) -> bool {
        let named = |only: &String| measure.figures.iter().any(|(figure, ..)| figure.starts_with(only.as_str()));
        self.only.is_empty() || self.only.iter().any(named)
    }

    fn print(&self, rows: &[Row]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let all = json!({ "rounds": self.rounds, "commit": self.commit, "machine": usage::machine(), "rows": rows });
        if let Some(file) = &self.save {
            std::fs::write(file, format!("{}\n", serde_json::to_string_pretty(&all)?))
                .map_err(|why| format!("{}: {why}", file.display()))?;
        }
        if self.json {
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(out, "{:<44} {:>10} {:>10} {:>7}  target", "", "guildnet", "tsnet", "ratio")?;
        for r in rows {
            let name = format!("{}, {}", r.figure, r.unit);
            let mark = if r.met { "" } else { "  NOT MET" };
            let tsnet = r.peers.get(TSNET).copied().unwrap_or(f64::NAN);
            writeln!(out, "{name:<44} {:>10.3} {tsnet:>10.3} {:>7.2}  {}{mark}", r.ours, r.ratio, r.target)?;
        }
        Ok(())
    }
}

/// How long a client may take to end, and how often that is looked at.
const END_LIMIT: Duration = Duration::from_secs(10);
const END_LOOK: Duration = Duration::from_millis(50);
/// How the peer is called in results.
const TSNET: &str = "tsnet";
/// How much more is moved when many transfers run at once, all together, than by one alone.
const SHARE: u64 = 8;

fn measures(bytes: u64) -> Vec<Measure> {
    #[expect(clippy::cast_precision_loss, reason = "sizes and microseconds here are far below 2^53")]
    fn rate(a: &Answer, bytes: u64) -> f64 {
        bytes as f64 / 1e6 / a.seconds
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^53")]
    fn cpu_per_gib(a: &Answer, bytes: u64) -> f64 {
        a.cpu / (bytes as f64 / f64::from(1 << 30))
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes and microseconds here are far below 2^53")]
    fn p50(a: &Answer, _: u64) -> f64 {
        a.p50_us as f64
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes and microseconds here are far below 2^53")]
    fn p99(a: &Answer, _: u64) -> f64 {
        a.p99_us as f64
    }
    fn spread(a: &Answer, _: u64) -> f64 {
        a.slowest / a.fastest
    }
    let times = |command: &str, what: &str| Measure {
        command: command.into(),
        bytes: 0,
        figures: vec![
            (format!("{what}, p50"), "us", Goal::AtMost(0.9), p50),
            (format!("{what}, p99"), "us", Goal::None, p99),
        ],
    };
    let mut all = vec![
        times("rtt 300", "round trip"),
        times("beside 300", "round trip beside a download"),
        times("dial 100", "dial"),
    ];
    for way in ["down", "up"] {
        all.push(Measure {
            command: format!("{way} {bytes}"),
            bytes,
            figures: vec![
                (way.into(), "MB/s", Goal::AtLeast(1.5), rate),
                (format!("{way}, processor time"), "s/GiB", Goal::AtMost(0.4), cpu_per_gib),
            ],
        });
    }
    for (count, way) in [(8, "down"), (8, "up"), (64, "down"), (64, "up")] {
        let each = bytes * SHARE / count;
        all.push(Measure {
            command: format!("many {count} {way} {each}"),
            bytes: each * count,
            figures: vec![
                (format!("{way}, {count} flows"), "MB/s", Goal::AtLeast(1.0), rate),
                (format!("{way}, {count} flows, slowest by fastest"), "", Goal::Below(2.0), spread),
            ],
        });
    }
    let loaded: Figure = ("memory, loaded".into(), "MiB", Goal::AtMost(0.15), |a, _| mib(a.rss_kib));
    all.push(Measure { command: format!("up {bytes}"), bytes, figures: vec![loaded] });
    all
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn row(figure: String, unit: &'static str, goal: Goal, columns: &[Vec<f64>; 2]) -> Row {
    let [ours, tsnet] = columns.each_ref().map(|column| median(column));
    let ratio = ours / tsnet;
    let (target, met) = match goal {
        Goal::AtLeast(part) => (format!("at least {part} of {TSNET}"), ratio >= part),
        Goal::AtMost(part) => (format!("at most {part} of {TSNET}"), ratio <= part),
        Goal::Below(limit) => (format!("below {limit}"), ours < limit),
        Goal::None => (String::new(), true),
    };
    Row { figure, unit, ours, peers: BTreeMap::from([(TSNET, tsnet)]), ratio, target, met }
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

    /// Closes standard input, which ends the client, and waits for it. One that does not end is killed: tsnet's own close was
    /// seen to hang after many flows, and its figures are in.
    fn finish(self) -> Result<(), Failure> {
        let Self { name, mut child, commands, answers } = self;
        drop((commands, answers));
        let begun = Instant::now();
        while begun.elapsed() < END_LIMIT {
            if let Some(status) = child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}").into()) };
            }
            std::thread::sleep(END_LOOK);
        }
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}
