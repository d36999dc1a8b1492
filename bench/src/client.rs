//! The benchmark client on the GuildNet connector: one process, one membership, driven by lines on standard input.

use std::{
    io::{BufRead, Write},
    sync::Arc,
    time::Instant,
};

use guildnet_model::{Dialer, Io, Secret, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};
use url::Url;

use crate::{
    figures::Failure,
    protocol::{Answer, HEADER, header},
    tailnet::{JOIN_LIMIT, JOIN_PAUSE, Member, ROUTES},
    usage,
};

/// Bytes of a download that outlasts what is measured beside it.
const ENDLESS: u64 = 1 << 40;

/// What the client is to join and measure.
#[derive(Debug, clap::Args)]
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
}

impl Client {
    /// Serves commands until standard input ends.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        // Two threads, as in the Host App: the application's and the engine's own.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let ca_pem = std::env::var_os("SSL_CERT_FILE").map(std::fs::read_to_string).transpose()?;
        let auth_key = std::env::var("TS_AUTHKEY").ok().map(Secret::new);
        let member =
            Member::start(&self.login_server, &self.cluster, &self.hostname, self.routes.clone(), ca_pem, auth_key)?;
        let mut session = Session { dialer: member.dialer(), target: self.target, flow: None };
        let mut out = std::io::stdout().lock();
        for line in std::io::stdin().lock().lines() {
            let answer = runtime.block_on(session.timed(&line?));
            serde_json::to_writer(&mut out, &answer)?;
            writeln!(out)?;
            out.flush()?;
        }
        runtime.block_on(member.leave());
        Ok(())
    }
}

struct Session {
    dialer: Arc<dyn Dialer>,
    target: Target,
    flow: Option<Box<dyn Io>>,
}

impl Session {
    async fn timed(&mut self, line: &str) -> Answer {
        let mut answer = Answer::default();
        let (cpu, begin) = (usage::cpu_seconds(), Instant::now());
        if let Err(why) = self.run(line, &mut answer).await {
            answer.error = why.to_string();
        }
        answer.seconds = begin.elapsed().as_secs_f64();
        answer.cpu = usage::cpu_seconds() - cpu;
        answer.rss_kib = usage::rss_kib();
        answer
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
            _ => Err(format!("unknown command {line:?}").into()),
        }
    }

    /// Repeats the first dial until it echoes.
    async fn join(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            let failure: Failure = match self.dialer.dial(self.target).await {
                Ok(flow) => {
                    let flow = self.flow.insert(flow);
                    match echo(flow).await {
                        Ok(()) => return Ok(()),
                        Err(why) => why,
                    }
                }
                Err(why) => why.into(),
            };
            if begin.elapsed() > JOIN_LIMIT {
                return Err(failure);
            }
            tokio::time::sleep(JOIN_PAUSE).await;
        }
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
