//! The side-by-side run: the same commands to each client in turn, medians over the rounds.
//!
//! A part is what is measured in one setting, and may be impossible on a machine or a lab: that is told, as is what failed,
//! and the others go on. Pure: what is measured (`measures.rs`), how it is told (`report.rs`, `chart.rs`). The clients are
//! `peers.rs`, the client host with its link `links.rs`, nodes that only fill a network map `netmap.rs`, what is undone however
//! a run ends `guard.rs`.

mod chart;
mod guard;
mod links;
mod measures;
mod netmap;
mod peers;
mod report;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use guildnet_kube::DirectDialer;
use guildnet_model::Target;
use tokio::runtime::Runtime;

use self::{
    guard::Ends,
    links::{Host, Link, links},
    measures::{Goal, Measure, mib, one_flow, plain, timed_flow},
    peers::{Kind, Peer, Start, rounds, turns},
    report::{Report, Row},
};
use crate::{
    figures::{Failure, p50_ms, p99_ms},
    kube,
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
    /// The folder with tailscaled and tailscale, to measure SOCKS5 through a tailscaled without a device, too.
    #[arg(long)]
    tailscale: Option<PathBuf>,
    /// The lab's command, to set the client host's link and gateway.
    #[arg(long, default_value = "bin/guildnet-lab")]
    lab: PathBuf,
    /// A client host of the lab behind a link, for what is measured over links and by the relay alone (root).
    #[arg(long)]
    host: Option<String>,
    /// Kubeconfig of the cluster, for its certificates, to measure Kubernetes.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The API server's address inside the cluster.
    #[arg(long, default_value = "10.96.0.1:443")]
    api_server: Target,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of each transfer, MiB.
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// Nodes in the large network map.
    #[arg(long, default_value_t = 1000)]
    peers: u64,
    /// A fair part of it: two links and shorter flows, twenty connectors; no gigabyte, no large network map, no SOCKS5.
    #[arg(long)]
    quick: bool,
    /// Measure only what begins so, e.g. "down" or "link 20 ms, loss"; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Write the same JSON to this file, and a chart beside it (.svg).
    #[arg(long)]
    save: Option<PathBuf>,
    /// The commit that is measured, for the record.
    #[arg(long)]
    commit: Option<String>,
}

/// A part: its name, how its rows begin, and what measures it.
type Part = (&'static str, &'static [&'static str], fn(&Bench<'_>, &mut Report) -> Result<(), Failure>);

const PARTS: &[Part] = &[
    ("cold starts", &["start", "memory, idle"], |bench, report| bench.starts(report)),
    ("plain path", &["round trip", "dial", "down", "up", "memory, loaded"], |bench, report| bench.plain(report)),
    ("1 GiB", &["1 GiB"], |bench, report| bench.gigabyte(report)),
    ("4via6", &["4via6"], |bench, report| bench.via_site(report)),
    ("relay only", &["relay only"], |bench, report| bench.relay(report)),
    ("links", &["link"], |bench, report| bench.links(report)),
    ("connectors", &["connectors"], |bench, report| bench.connectors(report)),
    ("large network map", &["netmap"], |bench, report| bench.netmap(report)),
    ("kube", &["kube"], |bench, report| bench.kube(report)),
];

/// Seconds of one flow over a link, and by the relay.
const FLOW: u64 = 10;
/// Seconds after which the bustle of joining has ended (tailscale looks for paths for 45 s), and for which processes at rest are
/// looked at.
const SETTLED: u64 = 50;
const REST: u64 = 10;
/// As many connectors join at once.
const JOINING: usize = 10;
/// Memory that a hundred nodes of tsnet must find, KiB.
const ROOM: u64 = 6 << 20;
/// Bursts of lists in each round: one lasts a third of a second, and what else the API server does then decides.
const BURSTS: usize = 5;
/// Pods in the list that many ask for at once.
const PODS: usize = 20;

struct Bench<'a> {
    args: &'a Compare,
    start: Start<'a>,
    runtime: Runtime,
    ends: Ends,
    /// Begins the names of nodes that are forgotten at the end, whoever else measures here.
    names: String,
}

impl Compare {
    /// Runs the parts, prints the figures.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let start = Start {
            tailnet: &self.tailnet,
            target: self.target,
            site: runtime.block_on(self.tailnet.site())?,
            ours: std::env::current_exe()?.with_file_name("guildnet-bench-client"),
            tsnet: &self.tsnet,
            tailscale: self.tailscale.as_deref(),
        };
        let mut report = Report::new(self.rounds, self.commit.clone(), start.site.is_some());
        let ends = Ends::watch(&runtime)?;
        let bench = Bench { args: self, start, runtime, ends, names: format!("bench-{}", std::process::id()) };
        if self.quick {
            report.skip("socks5", "left out of the quick run");
        } else if self.tailscale.is_none() {
            report.skip("socks5", "no --tailscale, the folder with tailscaled and tailscale");
        }
        for (name, rows, measure) in PARTS {
            if rows.iter().any(|row| self.may_want(row))
                && let Err(why) = measure(&bench, &mut report)
            {
                report.fail(*name, why);
            }
        }
        // Those that were killed would stay for some minutes.
        let forgotten = bench.runtime.block_on(self.tailnet.forget(&bench.names));
        self.tell(&report)?;
        forgotten?;
        report.verdict()
    }

    /// Whether a row is asked for.
    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| figure.starts_with(only.as_str()))
    }

    /// Whether any row that begins so may be.
    fn may_want(&self, prefix: &str) -> bool {
        self.wants(prefix) || self.only.iter().any(|only| only.starts_with(prefix))
    }

    fn tell(&self, report: &Report) -> Result<(), Failure> {
        if let Some(file) = &self.save {
            report.save(file)?;
        }
        let mut out = std::io::stdout().lock();
        if self.json { report.json(&mut out) } else { report.table(&mut out) }
    }
}

impl Bench<'_> {
    /// A client that joins anew as somebody new.
    fn client(&self, kind: Kind, inside: Option<&str>) -> Result<Peer, Failure> {
        let key = self.runtime.block_on(self.args.tailnet.mint(false))?;
        self.start.client(kind, &format!("{}-{kind}", self.names), &key, inside)
    }

    /// One client of each kind, joined.
    fn joined(&self, kinds: &[Kind], inside: Option<&str>) -> Result<Vec<Peer>, Failure> {
        let mut peers = Vec::new();
        for kind in kinds {
            let mut peer = self.client(*kind, inside)?;
            peer.ask("join")?;
            peers.push(peer);
        }
        Ok(peers)
    }

    fn kinds(&self) -> &'static [Kind] {
        if self.args.tailscale.is_some() && !self.args.quick { &[Kind::Ours, Kind::Tsnet, Kind::Socks5] } else { &TWO }
    }

    /// Seconds of one flow over a link, and by the relay.
    fn flow(&self) -> u64 {
        if self.args.quick { FLOW * 3 / 5 } else { FLOW }
    }

    /// Rounds of what takes long.
    fn long_rounds(&self) -> usize {
        if self.args.quick { 1 } else { self.args.rounds }
    }

    /// The client host, if there is to be one.
    fn host(&self, part: &str, report: &mut Report) -> Result<Option<Host>, Failure> {
        let Some(host) = &self.args.host else {
            report.skip(part, "no --host, a client host of the lab behind a link");
            return Ok(None);
        };
        if !rustix::process::geteuid().is_root() {
            report.skip(part, "only root enters the client host");
            return Ok(None);
        }
        Host::find(&self.args.lab, host, &self.ends).map(Some)
    }

    /// Runs what is wanted of the measures; one that fails is told.
    fn measure(&self, report: &mut Report, peers: &mut [Peer], measures: Vec<Measure>, times: usize) {
        for measure in measures {
            if !measure.figures.iter().any(|(figure, ..)| self.args.wants(figure)) {
                continue;
            }
            match rounds(peers, &measure.command, times) {
                Ok(seen) => {
                    for (figure, unit, goal, of) in measure.figures {
                        let read =
                            |answers: &Vec<Answer>| answers.iter().map(|answer| of(answer, measure.size)).collect();
                        let columns: Vec<_> = peers.iter().map(|p| p.kind).zip(seen.iter().map(read)).collect();
                        report.add(figure, unit, goal, &columns);
                    }
                }
                Err(why) => report.fail(measure.figures.into_iter().next().map_or(measure.command, |f| f.0), why),
            }
        }
    }

    /// From the start of a process to the first byte that came back.
    fn starts(&self, report: &mut Report) -> Result<(), Failure> {
        let kinds = self.kinds();
        let empty = || kinds.iter().map(|kind| (*kind, Vec::new())).collect::<Vec<_>>();
        let (mut times, mut sizes) = (empty(), empty());
        for round in 0..self.args.rounds {
            for k in turns(kinds.len(), round) {
                let mut peer = self.client(kinds[k], None)?;
                let answer = peer.ask("join")?;
                times[k].1.push(peer.started.elapsed().as_secs_f64());
                sizes[k].1.push(mib(answer.rss_kib));
            }
        }
        report.add("start to first byte", "s", Goal::AtMost(1.1), &times);
        report.add("memory, idle", "MiB", Goal::AtMost(0.4), &sizes);
        Ok(())
    }

    fn plain(&self, report: &mut Report) -> Result<(), Failure> {
        let mut peers = self.joined(self.kinds(), None)?;
        self.measure(report, &mut peers, plain(self.args.mib << 20), self.args.rounds);
        Ok(())
    }

    fn gigabyte(&self, report: &mut Report) -> Result<(), Failure> {
        if self.args.quick {
            report.skip("1 GiB", "left out of the quick run");
            return Ok(());
        }
        let mut peers = self.joined(self.kinds(), None)?;
        self.measure(report, &mut peers, one_flow("1 GiB, ", 1 << 30), self.long_rounds());
        Ok(())
    }

    fn via_site(&self, report: &mut Report) -> Result<(), Failure> {
        if self.start.site.is_none() {
            report.skip(
                "4via6",
                "the routers serve the networks themselves; a lab of two clusters with up --headscale 0.28.0 has 4via6 routes",
            );
            return Ok(());
        }
        let mut peers = self.joined(self.kinds(), None)?;
        self.measure(report, &mut peers, one_flow("4via6, ", self.args.mib << 20), self.args.rounds);
        Ok(())
    }

    /// UDP is blocked from before they join.
    fn relay(&self, report: &mut Report) -> Result<(), Failure> {
        let Some(host) = self.host("relay only", report)? else {
            return Ok(());
        };
        host.block_udp()?;
        let mut peers = self.joined(&TWO, Some(&host.namespace))?;
        let measures = timed_flow("relay only, ", self.flow(), [Goal::AtLeast(1.0); 2]);
        self.measure(report, &mut peers, measures, self.long_rounds());
        Ok(())
    }

    fn links(&self, report: &mut Report) -> Result<(), Failure> {
        let Some(host) = self.host("links", report)? else {
            return Ok(());
        };
        let mut wanted = links(self.args.quick);
        wanted.retain(|link| self.args.may_want(&link.name));
        let mut peers = self.joined(&TWO, Some(&host.namespace))?;
        for peer in &mut peers {
            peer.ask("direct")?;
        }
        for link in &wanted {
            host.set(&link.settings)?;
            let measures =
                timed_flow(&format!("{}, ", link.name), self.flow(), [Goal::AtLeast(1.0), Goal::AtLeast(4.0)]);
            self.measure(report, &mut peers, measures, self.long_rounds());
        }
        drop(peers);
        host.restore()?;
        if self.args.quick {
            report.skip("links by plain TCP", "left out of the quick run");
            return Ok(());
        }
        ceilings(report, &host, &wanted)
    }

    /// Many connectors in one process that have nothing to do.
    fn connectors(&self, report: &mut Report) -> Result<(), Failure> {
        let mut peers = Vec::new();
        for kind in TWO {
            let key = self.runtime.block_on(self.args.tailnet.mint(true))?;
            let mut peer = self.start.client(kind, &format!("{}-crowd-{kind}", self.names), &key, None)?;
            peer.ask("join")?;
            peers.push(peer);
        }
        let counts: &[usize] = if self.args.quick { &[1, 20] } else { &[1, 20, 100] };
        let mut first: Vec<f64> = Vec::new();
        for &count in counts {
            if count == 100 && available_kib() < ROOM {
                report.skip("connectors 100, tsnet", "a hundred of its nodes need 6 GiB of memory that are free");
                peers.truncate(1);
            }
            for at_once in (JOINING..count).step_by(JOINING).chain([count]) {
                rounds(&mut peers, &format!("crowd {at_once}"), 1)?;
            }
            together(&mut peers, &format!("rest {}", if self.args.quick { REST } else { SETTLED }))?;
            let answers = together(&mut peers, &format!("rest {REST}"))?;
            let column = |of: &dyn Fn(usize) -> f64| {
                peers.iter().enumerate().map(|(k, peer)| (peer.kind, vec![of(k)])).collect::<Vec<_>>()
            };
            let goal = match (count, peers.len()) {
                (1, _) => Goal::AtMost(0.4),
                (_, 2) => Goal::AtMost(0.25),
                _ => Goal::None,
            };
            let sizes: Vec<f64> = answers.iter().map(|answer| mib(answer.rss_kib)).collect();
            report.add(format!("connectors {count}, memory"), "MiB", goal, &column(&|k| sizes[k]));
            #[expect(clippy::cast_precision_loss, reason = "some seconds, some connectors")]
            let (rest, more) = (REST as f64, count.saturating_sub(1) as f64);
            let idle = if count == 100 { Goal::Below(0.5) } else { Goal::None };
            let busy = column(&|k| answers[k].cpu / rest * 100.0);
            report.add(format!("connectors {count}, processor at rest"), "% of a core", idle, &busy);
            if count == 1 {
                first.clone_from(&sizes);
            } else {
                let each = column(&|k| (sizes[k] - first[k]) / more);
                report.add(format!("connectors {count}, memory of each more"), "MiB", goal, &each);
            }
        }
        Ok(())
    }

    /// One connector, with no peer but the router and with many more.
    fn netmap(&self, report: &mut Report) -> Result<(), Failure> {
        if self.args.quick {
            report.skip("netmap", "left out of the quick run");
            return Ok(());
        }
        let tailnet = &self.args.tailnet;
        let mut sizes = Vec::new();
        self.at_rest(report, "netmap of the router alone", 1, &mut sizes)?;
        let prefix = format!("{}-node", self.names);
        let undo = {
            let (tailnet, prefix) = (tailnet.clone(), prefix.clone());
            async move { tailnet.forget(&prefix).await }
        };
        let guard = self.ends.after(undo);
        let filled = self.runtime.block_on(netmap::fill(tailnet, &prefix, self.args.peers)).and_then(|made| {
            self.at_rest(report, &format!("netmap of {made} more"), made + 1, &mut sizes)?;
            Ok(made)
        });
        self.runtime.block_on(tailnet.forget(&prefix))?;
        drop(guard);
        let made = filled?;
        if made < self.args.peers {
            report.skip(
                format!("netmap of {} more", self.args.peers),
                format!("the server took no more than {made} in its time"),
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "some thousand nodes")]
        let each = |k: usize| vec![(sizes[1][k] - sizes[0][k]) * 1024.0 / made as f64];
        let columns: Vec<_> = TWO.iter().enumerate().map(|(k, kind)| (*kind, each(k))).collect();
        report.add("netmap, memory of each peer", "KiB", Goal::None, &columns);
        Ok(())
    }

    fn at_rest(&self, report: &mut Report, name: &str, in_map: u64, sizes: &mut Vec<Vec<f64>>) -> Result<(), Failure> {
        let mut peers = self.joined(&TWO, None)?;
        rounds(&mut peers, &format!("peers {in_map}"), 1)?;
        let answers = together(&mut peers, &format!("rest {REST}"))?;
        let seen: Vec<f64> = answers.iter().map(|answer| mib(answer.rss_kib)).collect();
        let columns: Vec<_> = TWO.iter().zip(&seen).map(|(kind, size)| (*kind, vec![*size])).collect();
        report.add(format!("{name}, memory"), "MiB", Goal::AtMost(0.4), &columns);
        sizes.push(seen);
        Ok(())
    }

    /// An API server asked through a local port that each client forwards.
    fn kube(&self, report: &mut Report) -> Result<(), Failure> {
        let Some(kubeconfig) = &self.args.kubeconfig else {
            report.skip("kube", "no --kubeconfig");
            return Ok(());
        };
        let mut peers = self.joined(&TWO, None)?;
        let mut ports = Vec::new();
        for peer in &mut peers {
            let to = match peer.kind {
                Kind::Ours => self.args.api_server,
                _ => peers::as_others_dial(self.args.api_server, self.start.site),
            };
            ports.push(peer.ask(&format!("forward {to}"))?.port);
        }
        let seen = self.runtime.block_on(self.ask_kube(kubeconfig, &ports))?;
        for (at, what) in ["kube, 200 lists at once", "kube, change to 50 watches"].into_iter().enumerate() {
            for (part, of) in [("p50", p50_ms as fn(&[_]) -> f64), ("p99", p99_ms)] {
                let read = |rounds: &Vec<[Vec<_>; 2]>| rounds.iter().map(|times| of(&times[at])).collect();
                let columns: Vec<_> = TWO.into_iter().zip(seen.iter().map(read)).collect();
                report.add(format!("{what}, {part}"), "ms", Goal::AtMost(1.0), &columns);
            }
        }
        Ok(())
    }

    async fn ask_kube(&self, kubeconfig: &Path, ports: &[u16]) -> Result<Vec<Vec<kube::Times>>, Failure> {
        let mut ways = Vec::new();
        for port in ports {
            let near = Target::from(std::net::SocketAddr::from(([127, 0, 0, 1], *port)));
            let dialer = std::sync::Arc::new(DirectDialer);
            ways.push(kube::Way::open("forward", kubeconfig, Some((dialer, near))).await?);
        }
        kube::remove(&ways[0]).await?;
        let mut seen = vec![Vec::new(); ways.len()];
        let measured = async {
            kube::make(&ways[0], PODS).await?;
            for round in 0..=self.args.rounds * BURSTS {
                for k in turns(ways.len(), round) {
                    let times = kube::lists_and_watches(&ways[k]).await?;
                    // The first round warms connections.
                    if round > 0 {
                        seen[k].push(times);
                    }
                }
            }
            Ok(())
        };
        let measured: Result<(), Failure> = measured.await;
        kube::remove(&ways[0]).await?;
        measured.map(|()| seen)
    }
}

/// Those that every part has.
const TWO: [Kind; 2] = [Kind::Ours, Kind::Tsnet];

/// Our flows over links beside one of plain TCP.
fn ceilings(report: &mut Report, host: &Host, wanted: &[Link]) -> Result<(), Failure> {
    for (link, ceiling) in wanted.iter().zip(host.ceilings(wanted)?) {
        for (way, most) in [("down", ceiling.tcp_down), ("up", ceiling.tcp_up)] {
            let name = format!("{}, {way}", link.name);
            let Some(ours) = report.rows.iter().find(|row| row.figure == name).map(|row| row.ours) else {
                continue;
            };
            let peers = BTreeMap::from([("plain TCP".to_owned(), most)]);
            report.rows.push(Row::beside(format!("{name}, by plain TCP"), "MB/s", Goal::None, ours, peers));
        }
    }
    Ok(())
}

/// Asks all of them at the same moment.
fn together(peers: &mut [Peer], command: &str) -> Result<Vec<Answer>, Failure> {
    for peer in &mut *peers {
        peer.tell(command)?;
    }
    peers.iter_mut().map(|peer| peer.answer(command)).collect()
}

/// Memory that processes may still take, KiB.
fn available_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
