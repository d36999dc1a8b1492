//! Kubernetes through the Host App, beside the API server asked directly and through a connector alone: what the way
//! through the tailnet costs kubectl and client libraries, and what of it the proxy does. Beside them a `kubectl proxy` of the
//! API server asked directly: what a local proxy costs, without a tailnet and without TLS on the near side. Each client is one
//! HTTP/2 connection of this process (HTTP/1.1 connections to `kubectl proxy`), and a WebSocket for each exec; rounds are
//! interleaved, and each begins with another client.
//!
//! The way itself: `kube/way.rs`; `kubectl proxy`: `kube/peer.rs`.

mod peer;
mod way;

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _, future::try_join_all};
use guildnet_model::Target;
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

pub(crate) use self::way::Way;
use self::{
    peer::KubectlProxy,
    way::{Encoding, Socket},
};
use crate::{
    figures::{Failure, median, p50_ms, p99_ms},
    tailnet::Tailnet,
};

/// Where this benchmark's objects live; made, and removed at the end.
const NAMESPACE: &str = "guildnet-bench";
/// Requests at once while objects are made.
const MAKING: usize = 50;
/// Long lists in a round.
const LISTS: usize = 3;
/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure, where.
#[derive(Debug, clap::Args)]
pub(crate) struct Kube {
    /// Kubeconfig of the API server itself, reached directly.
    #[arg(long)]
    direct: PathBuf,
    /// Kubeconfig of the same cluster through the Host App (guildnet kubeconfig print).
    #[arg(long)]
    through: PathBuf,
    /// The program kubectl.
    #[arg(long)]
    kubectl: PathBuf,
    #[command(flatten)]
    tailnet: Tailnet,
    /// The API server's address inside the cluster, dialled through the connector.
    #[arg(long, default_value = "10.96.0.1:443")]
    inside: Target,
    /// Pods in the long list.
    #[arg(long, default_value_t = 5000)]
    pods: usize,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// One figure. Medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    figure: &'static str,
    unit: &'static str,
    direct: f64,
    kubectl_proxy: f64,
    connector: f64,
    through: f64,
}

impl Kube {
    /// Makes the objects, measures, removes them, prints the figures.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let rows = runtime.block_on(async {
            let member = self.tailnet.join("bench-kube", self.inside).await?;
            let peer = KubectlProxy::start(&self.kubectl, &self.direct).await?;
            let ways = [
                Way::open("direct", &self.direct, None).await?,
                Way::plain("kubectl proxy", peer.at)?,
                Way::open("connector", &self.direct, Some((member.dialer(), self.inside))).await?,
                Way::open("through", &self.through, None).await?,
            ];
            remove(&ways[0]).await?;
            let measured = match make(&ways[0], self.pods).await {
                Ok(()) => self.measure(&ways).await,
                Err(why) => Err(why),
            };
            remove(&ways[0]).await?;
            drop(ways);
            peer.end().await?;
            member.leave().await;
            measured
        })?;
        self.print(&rows)
    }

    async fn measure(&self, ways: &[Way; 4]) -> Result<Vec<Row>, Failure> {
        let mut seen: [Vec<Vec<f64>>; 4] = Default::default();
        for round in 0..=self.rounds {
            for turn in 0..ways.len() {
                let at = (round + turn) % ways.len();
                let figures = round_of(&ways[at]).await.map_err(|why| format!("{}: {why}", ways[at].name()))?;
                // The first round warms caches and connections.
                if round > 0 {
                    seen[at].push(figures);
                }
            }
        }
        let column = |seen: &[Vec<f64>], at: usize| median(&seen.iter().map(|round| round[at]).collect::<Vec<_>>());
        let row = |(at, (figure, unit)): (usize, &(&'static str, &'static str))| Row {
            figure,
            unit,
            direct: column(&seen[0], at),
            kubectl_proxy: column(&seen[1], at),
            connector: column(&seen[2], at),
            through: column(&seen[3], at),
        };
        Ok(FIGURES.iter().enumerate().map(row).collect())
    }

    fn print(&self, rows: &[Row]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let all = json!({ "rounds": self.rounds, "pods": self.pods, "rows": rows });
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(
            out,
            "{:<36} {:>10} {:>13} {:>10} {:>10} {:>16}",
            "", "direct", "kubectl proxy", "connector", "through", "through - direct"
        )?;
        for Row { figure, unit, direct, kubectl_proxy, connector, through } in rows {
            let (name, more) = (format!("{figure}, {unit}"), through - direct);
            writeln!(
                out,
                "{name:<36} {direct:>10.2} {kubectl_proxy:>13.2} {connector:>10.2} {through:>10.2} {more:>+16.2}"
            )?;
        }
        Ok(())
    }
}

/// What [`round_of`] measures, in its order.
const FIGURES: &[(&str, &str)] = &[
    ("get, p50", "ms"),
    ("get, p99", "ms"),
    ("200 gets at once, p50", "ms"),
    ("200 gets at once, all", "ms"),
    ("long list, first byte", "ms"),
    ("long list, whole", "ms"),
    ("long list", "MB/s"),
    ("long list as kubectl asks, whole", "ms"),
    ("change to 50 watches, p50", "ms"),
    ("change to 50 watches, last", "ms"),
    ("exec, start to first byte", "ms"),
    ("exec, a byte there and back, p50", "ms"),
    ("exec, a byte there and back, p99", "ms"),
];

async fn round_of(way: &Way) -> Result<Vec<f64>, Failure> {
    const ONE: &str = "/api/v1/namespaces/guildnet-bench/configmaps/watched";
    let mut gets = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        way.whole(Method::GET, ONE, None).await?;
        gets.push(begun.elapsed());
    }
    let begun = Instant::now();
    let together = try_join_all((0..200).map(|_| async {
        let begun = Instant::now();
        way.whole(Method::GET, ONE, None).await?;
        Ok::<_, Failure>(begun.elapsed())
    }))
    .await?;
    let all = begun.elapsed();

    let (mut firsts, mut wholes, mut packed, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..LISTS {
        let (first, whole, length) = list(way, Encoding::Identity).await?;
        bytes = length;
        firsts.push(first);
        wholes.push(whole);
        packed.push(list(way, Encoding::Gzip).await?.1);
    }

    let arrived = watches(way).await?;
    let last = arrived.iter().max().copied().unwrap_or_default();
    let (started, echoes) = tokio::time::timeout(PATIENCE, exec(way)).await??;
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a list is far below 2^53 bytes")]
    let rate = bytes as f64 / 1e3 / p50_ms(&wholes);
    Ok(vec![
        p50_ms(&gets),
        p99_ms(&gets),
        p50_ms(&together),
        ms(all),
        p50_ms(&firsts),
        p50_ms(&wholes),
        rate,
        p50_ms(&packed),
        p50_ms(&arrived),
        ms(last),
        ms(started),
        p50_ms(&echoes),
        p99_ms(&echoes),
    ])
}

/// The long list: how long until its first byte, until its last, and how many bytes.
async fn list(way: &Way, encoding: Encoding) -> Result<(Duration, Duration, usize), Failure> {
    let begun = Instant::now();
    let mut list = way.read("/api/v1/namespaces/guildnet-bench/pods", encoding).await?;
    let (mut first, mut bytes) = (None, 0);
    while let Some(piece) = list.next().await? {
        first.get_or_insert_with(|| begun.elapsed());
        bytes += piece.len();
    }
    let whole = begun.elapsed();
    Ok((first.unwrap_or(whole), whole, bytes))
}

/// `cat` in a pod: how long until its first answer, and then for single bytes.
async fn exec(way: &Way) -> Result<(Duration, Vec<Duration>), Failure> {
    const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Decho";
    let pods: Value = serde_json::from_slice(&way.whole(Method::GET, PODS, None).await?)?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().ok_or("no pod echoes in the namespace default")?;
    let path = format!("/api/v1/namespaces/default/pods/{pod}/exec?command=cat&stdin=true&stdout=true");
    let begun = Instant::now();
    let mut socket = way.socket(&path).await?;
    echo(&mut socket).await?;
    let started = begun.elapsed();
    let mut echoes = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        echo(&mut socket).await?;
        echoes.push(begun.elapsed());
    }
    socket.close(None).await?;
    Ok((started, echoes))
}

/// One byte of standard input (channel 0), and the same back on standard output (channel 1).
async fn echo(socket: &mut Socket) -> Result<(), Failure> {
    socket.send(Message::binary(b"\0x".as_slice())).await?;
    while let Some(message) = socket.next().await {
        if message?.into_data().as_ref() == b"\x01x" {
            return Ok(());
        }
    }
    Err("exec ended before its answer".into())
}

/// Fifty watches of one object that changes: how long until each has the change.
async fn watches(way: &Way) -> Result<Vec<Duration>, Failure> {
    const PATH: &str = "/api/v1/namespaces/guildnet-bench/configmaps?fieldSelector=metadata.name%3Dwatched";
    let list: Value = serde_json::from_slice(&way.whole(Method::GET, PATH, None).await?)?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let path = format!("{PATH}&watch=true&resourceVersion={version}");
    let mut open = try_join_all((0..50).map(|_| way.ask(Method::GET, &path, None))).await?;
    let change = json!({ "data": { "n": format!("{:?}", Instant::now()) } }).to_string();
    let begun = Instant::now();
    let patched = way.whole(Method::PATCH, "/api/v1/namespaces/guildnet-bench/configmaps/watched", Some(change));
    let arrived = try_join_all(open.iter_mut().map(|watch| async move {
        let mut text = Vec::new();
        while let Some(piece) = watch.next().await? {
            text.extend_from_slice(&piece);
            if text.ends_with(b"\n") {
                return Ok(begun.elapsed());
            }
        }
        Err::<Duration, Failure>("a watch ended before the change".into())
    }));
    let (patched, arrived) = tokio::time::timeout(PATIENCE, async { tokio::join!(patched, arrived) }).await?;
    patched?;
    arrived
}

/// Of each list and of each watch.
pub(crate) type Times = [Vec<Duration>; 2];

/// Two hundred lists at once, and then fifty watches.
pub(crate) async fn lists_and_watches(way: &Way) -> Result<Times, Failure> {
    let lists = try_join_all((0..200).map(|_| async {
        let begun = Instant::now();
        way.whole(Method::GET, "/api/v1/namespaces/guildnet-bench/pods", None).await?;
        Ok::<_, Failure>(begun.elapsed())
    }))
    .await?;
    Ok([lists, watches(way).await?])
}

pub(crate) async fn make(way: &Way, pods: usize) -> Result<(), Failure> {
    let named = |kind: &str, name: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
    way.whole(Method::POST, "/api/v1/namespaces", Some(named("Namespace", NAMESPACE).to_string())).await?;
    // Pods are admitted once the namespace has its account.
    let account = "/api/v1/namespaces/guildnet-bench/serviceaccounts/default";
    let begun = Instant::now();
    while way.whole(Method::GET, account, None).await.is_err() {
        if begun.elapsed() > PATIENCE {
            return Err("the namespace has no service account".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let maps = "/api/v1/namespaces/guildnet-bench/configmaps";
    way.whole(Method::POST, maps, Some(named("ConfigMap", "watched").to_string())).await?;
    let numbers: Vec<usize> = (0..pods).collect();
    for some in numbers.chunks(MAKING) {
        try_join_all(
            some.iter().map(|n| way.whole(Method::POST, "/api/v1/namespaces/guildnet-bench/pods", Some(pod(*n)))),
        )
        .await?;
    }
    Ok(())
}

/// A pod that nobody schedules, of about the size of a small real one.
fn pod(n: usize) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("pod-{n:05}"), "labels": { "app": "bench", "n": n.to_string() } },
        "spec": {
            "schedulerName": "nobody",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": "guildnet.invalid/none",
                "env": (0..8).map(|i| json!({ "name": format!("VARIABLE_{i}"), "value": "a value of some length" })).collect::<Vec<_>>(),
            }],
        },
    })
    .to_string()
}

/// Removes the namespace with all that is in it, and waits until it is gone.
pub(crate) async fn remove(way: &Way) -> Result<(), Failure> {
    let path = "/api/v1/namespaces/guildnet-bench";
    if way.whole(Method::GET, path, None).await.is_err() {
        return Ok(());
    }
    let now = json!({ "gracePeriodSeconds": 0 }).to_string();
    way.whole(Method::DELETE, &format!("{path}/pods"), Some(now)).await?;
    way.whole(Method::DELETE, path, None).await?;
    let begun = Instant::now();
    while way.whole(Method::GET, path, None).await.is_ok() {
        if begun.elapsed() > PATIENCE {
            return Err("the namespace guildnet-bench does not end".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
