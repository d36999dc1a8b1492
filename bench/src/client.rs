//! The benchmark client: one process, driven by lines on standard input; on the GuildNet connector, or through a tailscaled
//! of its own (`client/socks.rs`).

mod socks;

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_model::{Dialer, Io, Secret, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::TcpListener,
    task::JoinSet,
};
use url::Url;

use self::socks::Daemon;
use crate::{
    figures::Failure,
    protocol::{Answer, HEADER, PIECE, header},
    tailnet::{JOIN_LIMIT, JOIN_PAUSE, Joining, Member, ROUTES},
    usage,
};

/// Bytes of a download that outlasts what is measured beside it.
const ENDLESS: u64 = 1 << 40;

/// What a forward reads at a time, bytes: as Go does.
const CHUNK: usize = 32 << 10;

/// Joins a tailnet and measures what it is told on standard input; started by `guildnet-bench compare`.
#[derive(Debug, clap::Parser)]
#[command(version)]
pub(crate) struct Client {
    /// Login server; the auth key comes from TS_AUTHKEY, trusted certificates from the file in SSL_CERT_FILE.
    login_server: Url,
    /// Name of the node.
    hostname: String,
    /// The far end's address, inside the cluster.
    target: Target,
    /// The cluster whose tags count.
    #[arg(long, default_value = "a")]
    cluster: guildnet_model::ClusterId,
    /// The cluster's networks.
    #[arg(long, default_value = ROUTES)]
    routes: guildnet_model::Networks,
    /// The cluster's site, where its routers serve 4via6 forms.
    #[arg(long)]
    site: Option<guildnet_model::SiteNumber>,
    /// Join by a tailscaled of this folder and dial through its SOCKS5 server, instead of by our connector.
    #[arg(long)]
    tailscale: Option<PathBuf>,
}

impl Client {
    /// Serves commands until standard input ends.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        // Two threads, as in the Host App: the application's and the engine's own.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let joining = Joining {
            login_server: self.login_server.clone(),
            cluster: self.cluster.clone(),
            hostname: self.hostname.clone(),
            routes: self.routes.clone(),
            site: self.site,
            ca_pem: std::env::var_os("SSL_CERT_FILE").map(std::fs::read_to_string).transpose()?,
            auth_key: std::env::var("TS_AUTHKEY").ok().map(Secret::new),
        };
        let mut session = runtime.block_on(Session::start(self, joining))?;
        let mut out = std::io::stdout().lock();
        for line in std::io::stdin().lock().lines() {
            let answer = runtime.block_on(session.timed(&line?));
            serde_json::to_writer(&mut out, &answer)?;
            writeln!(out)?;
            out.flush()?;
        }
        runtime.block_on(session.end());
        Ok(())
    }
}

/// How this client is a member of the tailnet.
enum Way {
    Ours(Member),
    Socks(Daemon),
}

struct Session {
    way: Way,
    joining: Joining,
    dialer: Arc<dyn Dialer>,
    target: Target,
    flow: Option<Box<dyn Io>>,
}

impl Session {
    async fn start(client: &Client, joining: Joining) -> Result<Self, Failure> {
        let (way, dialer): (_, Arc<dyn Dialer>) = match &client.tailscale {
            None => {
                let member = Member::start(&joining)?;
                let dialer = member.dialer();
                (Way::Ours(member), dialer)
            }
            Some(programs) => {
                let key = joining.auth_key.clone();
                let daemon = Daemon::start(programs, &joining.login_server, &joining.hostname, key).await?;
                let dialer = daemon.dialer();
                (Way::Socks(daemon), Arc::new(dialer))
            }
        };
        Ok(Self { way, joining, dialer, target: client.target, flow: None })
    }

    async fn end(self) {
        match self.way {
            Way::Ours(member) => member.leave().await,
            Way::Socks(daemon) => daemon.end().await,
        }
    }

    async fn timed(&mut self, line: &str) -> Answer {
        let mut answer = Answer::default();
        let ((cpu, _), begin) = (self.usage(), Instant::now());
        if let Err(why) = self.run(line, &mut answer).await {
            answer.error = why.to_string();
        }
        answer.seconds = begin.elapsed().as_secs_f64();
        let (now, rss_kib) = self.usage();
        answer.cpu = now - cpu;
        answer.rss_kib = rss_kib;
        answer
    }

    /// Processor time and memory of this process and of what it has started.
    fn usage(&self) -> (f64, u64) {
        let (cpu, rss) = match &self.way {
            Way::Ours(_) => (0.0, 0),
            Way::Socks(daemon) => daemon.pid().map_or((0.0, 0), usage::of_process),
        };
        (usage::cpu_seconds() + cpu, usage::rss_kib() + rss)
    }

    async fn run(&mut self, line: &str, answer: &mut Answer) -> Result<(), Failure> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["join"] => self.join().await,
            ["down", bytes] => download(self.flow()?, bytes.parse()?).await,
            ["up", bytes] => upload(self.flow()?, bytes.parse()?).await,
            ["many", count, way, bytes] => self.many(count.parse()?, way == "down", bytes.parse()?, answer).await,
            ["rtt", count] => {
                let flow = self.flow()?;
                sample(count.parse()?, answer, async || echo(flow).await).await
            }
            ["beside", count] => self.beside(count.parse()?, answer).await,
            ["dial", count] => {
                let (dialer, target) = (&self.dialer, self.target);
                let once = async || {
                    dialer.dial(target).await?;
                    Ok(())
                };
                sample(count.parse()?, answer, once).await
            }
            ["flow", way, seconds] => self.flow_for(way == "down", seconds.parse()?, answer).await,
            ["direct"] => self.direct().await,
            ["crowd", count] => self.crowd(count.parse()?).await,
            ["peers", count] => self.peers(count.parse()?).await,
            ["rest", seconds] => {
                tokio::time::sleep(Duration::from_secs(seconds.parse()?)).await;
                Ok(())
            }
            ["forward", to] => {
                answer.port = self.forward(to.parse()?).await?;
                Ok(())
            }
            _ => Err(format!("unknown command {line:?}").into()),
        }
    }

    async fn join(&mut self) -> Result<(), Failure> {
        self.flow = Some(first_flow(&self.dialer, self.target).await?);
        Ok(())
    }

    /// Joins until so many connectors run, all at once.
    async fn crowd(&mut self, count: usize) -> Result<(), Failure> {
        let Way::Ours(member) = &mut self.way else {
            return Err("one tailscaled is one member".into());
        };
        let mut joins = JoinSet::new();
        while member.count() < count {
            let (dialer, target) = (member.grow(&self.joining)?, self.target);
            joins.spawn(async move { first_flow(&dialer, target).await.map(drop) });
        }
        while let Some(joined) = joins.join_next().await {
            joined??;
        }
        Ok(())
    }

    /// Keeps the router in touch until the direct path to it is taken.
    async fn direct(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            echo(self.flow()?).await?;
            match &self.way {
                Way::Ours(member) if !member.is_direct().await => {}
                _ => return Ok(()),
            }
            if begin.elapsed() > JOIN_LIMIT {
                return Err("no direct path to the router".into());
            }
            tokio::time::sleep(JOIN_PAUSE).await;
        }
    }

    /// Waits until the network map has so many peers.
    async fn peers(&self, count: usize) -> Result<(), Failure> {
        let Way::Ours(member) = &self.way else {
            return Err("tailscaled's map is not looked at".into());
        };
        let begin = Instant::now();
        loop {
            match member.peers().await {
                seen if seen >= count => return Ok(()),
                seen if begin.elapsed() > JOIN_LIMIT => return Err(format!("the map has only {seen} peers").into()),
                _ => tokio::time::sleep(JOIN_PAUSE).await,
            }
        }
    }

    /// One transfer on a flow of its own for so long.
    async fn flow_for(&self, down: bool, seconds: u64, answer: &mut Answer) -> Result<(), Failure> {
        let mut flow = self.dialer.dial(self.target).await?;
        let mut bytes = 0;
        let moving = async {
            if down { endless_download(&mut flow, &mut bytes).await } else { endless_upload(flow, &mut bytes).await }
        };
        // It has no other end than the time's.
        let ended = tokio::time::timeout(Duration::from_secs(seconds), moving).await;
        answer.bytes = bytes;
        ended.unwrap_or(Ok(()))
    }

    /// A local port that leads to `to`, for as long as this process runs.
    async fn forward(&self, to: Target) -> Result<u16, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, dialer) = (listener.local_addr()?.port(), Arc::clone(&self.dialer));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let dialer = Arc::clone(&dialer);
                tokio::spawn(async move {
                    near.set_nodelay(true)?;
                    let mut far = dialer.dial(to).await?;
                    // Who reads from it sees how it ended.
                    let _ended = copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await;
                    Ok::<_, Failure>(())
                });
            }
        });
        Ok(port)
    }

    fn flow(&mut self) -> Result<&mut Box<dyn Io>, Failure> {
        self.flow.as_mut().ok_or_else(|| "not joined".into())
    }

    /// As many transfers at once.
    async fn many(&self, count: usize, down: bool, bytes: u64, answer: &mut Answer) -> Result<(), Failure> {
        let mut flows = Vec::new();
        for _ in 0..count {
            flows.push(self.dialer.dial(self.target).await?);
        }
        let mut running = JoinSet::new();
        for mut flow in flows {
            running.spawn(async move {
                let begin = Instant::now();
                let moved = if down { download(&mut flow, bytes).await } else { upload(&mut flow, bytes).await };
                moved.map(|()| begin.elapsed().as_secs_f64())
            });
        }
        let mut times = Vec::new();
        while let Some(ended) = running.join_next().await {
            times.push(ended??);
        }
        answer.fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        answer.slowest = times.iter().copied().fold(0.0, f64::max);
        Ok(())
    }

    /// Round trips beside a download that goes on for as long as they take.
    async fn beside(&mut self, count: u64, answer: &mut Answer) -> Result<(), Failure> {
        let mut bulk = self.dialer.dial(self.target).await?;
        let load = tokio::spawn(async move { download(&mut bulk, ENDLESS).await });
        let flow = self.flow()?;
        let done = sample(count, answer, async || echo(flow).await).await;
        if load.is_finished() {
            return Err("the download beside ended early".into());
        }
        load.abort();
        done
    }
}

/// Repeats the first dial until it echoes.
async fn first_flow(dialer: &Arc<dyn Dialer>, target: Target) -> Result<Box<dyn Io>, Failure> {
    let begin = Instant::now();
    loop {
        let failure: Failure = match dialer.dial(target).await {
            Ok(mut flow) => match echo(&mut flow).await {
                Ok(()) => return Ok(flow),
                Err(why) => why,
            },
            Err(why) => why.into(),
        };
        if begin.elapsed() > JOIN_LIMIT {
            return Err(failure);
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

/// Does something so often, and takes the time of each.
async fn sample(
    count: u64,
    answer: &mut Answer,
    mut once: impl AsyncFnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut micros = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        once().await?;
        micros.push(u64::try_from(begin.elapsed().as_micros())?);
    }
    micros.sort_unstable();
    if let Some(last) = micros.len().checked_sub(1) {
        answer.p50_us = micros[micros.len() / 2];
        answer.p99_us = micros[last * 99 / 100];
    }
    Ok(())
}

pub(crate) async fn echo(flow: &mut Box<dyn Io>) -> Result<(), Failure> {
    flow.write_all(&header(b'P', 1)).await?;
    flow.flush().await?;
    flow.read_exact(&mut [0; HEADER]).await?;
    Ok(())
}

pub(crate) async fn download(flow: &mut Box<dyn Io>, bytes: u64) -> Result<(), Failure> {
    flow.write_all(&header(b'D', bytes)).await?;
    flow.flush().await?;
    let mut buffer = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left)?);
        match flow.read(&mut buffer[..want]).await? {
            0 => return Err(format!("the far end closed with {left} bytes to come").into()),
            got => left -= got as u64,
        }
    }
    Ok(())
}

pub(crate) async fn upload(flow: &mut Box<dyn Io>, bytes: u64) -> Result<(), Failure> {
    flow.write_all(&header(b'U', bytes)).await?;
    let chunk = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let now = chunk.len().min(usize::try_from(left)?);
        flow.write_all(&chunk[..now]).await?;
        left -= now as u64;
    }
    flow.flush().await?;
    flow.read_exact(&mut [0]).await?;
    Ok(())
}

async fn endless_download(flow: &mut Box<dyn Io>, bytes: &mut u64) -> Result<(), Failure> {
    flow.write_all(&header(b'D', ENDLESS)).await?;
    flow.flush().await?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match flow.read(&mut buffer).await? {
            0 => return Err("the far end closed".into()),
            got => *bytes += got as u64,
        }
    }
}

/// Sends pieces one after another without a wait, and counts those that the far end says it took.
async fn endless_upload(flow: Box<dyn Io>, bytes: &mut u64) -> Result<(), Failure> {
    let (mut reading, mut writing) = tokio::io::split(flow);
    let mut piece = header(b'U', PIECE).to_vec();
    piece.resize(HEADER + usize::try_from(PIECE)?, 0);
    let send = async {
        loop {
            writing.write_all(&piece).await?;
            writing.flush().await?;
        }
    };
    let count = async {
        let mut taken = [0; 64];
        loop {
            match reading.read(&mut taken).await? {
                0 => return Err("the far end closed".into()),
                got => *bytes += got as u64 * PIECE,
            }
        }
    };
    tokio::select! {
        ended = send => ended,
        ended = count => ended,
    }
}
