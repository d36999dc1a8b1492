//! Joins a tailnet, dials a measuring server through it and prints what it saw: dial time, round trip, throughput.
//!
//! `measure serve ADDR:PORT` is that server. `measure LOGIN_SERVER CLUSTER ROUTES TARGET STATE_DIR` is the client; it takes
//! the preauth key from `TS_AUTHKEY` and a CA file from `CA`. Between two joins with the same folder the node stays the same.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a tool for the engine's own measurements")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_model::{ConnectorSpec, Dialer, FixedKey, Io, Secret, StartConnector, Target};
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Bytes of one transfer.
const SIZE: u64 = 64 << 20;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", addr] => serve(addr).await,
        [server, cluster, routes, target, dir] => client(server, cluster, routes, target, dir).await,
        _ => println!("see the head of this file"),
    }
}

/// `P`: echo; `D`: sends that many bytes; `U`: takes that many bytes and answers with one.
async fn serve(addr: &str) {
    let listener = TcpListener::bind(addr).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let (mut head, mut buf) = ([0; 9], vec![0; 1 << 16]);
            while stream.read_exact(&mut head).await.is_ok() {
                let mut left = u64::from_be_bytes(head[1..].try_into().unwrap());
                while head[0] == b'D' && left > 0 {
                    let part = left.min(buf.len() as u64);
                    if stream.write_all(&buf[..part as usize]).await.is_err() {
                        return;
                    }
                    left -= part;
                }
                while head[0] == b'U' && left > 0 {
                    match stream.read(&mut buf).await {
                        Ok(n) if n > 0 => left -= n as u64,
                        _ => return,
                    }
                }
                let answer: &[u8] = match head[0] {
                    b'D' => &[],
                    b'U' => b"k",
                    _ => &head,
                };
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn head(kind: u8, size: u64) -> [u8; 9] {
    let mut head = [kind; 9];
    head[1..].copy_from_slice(&size.to_be_bytes());
    head
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|l| l.starts_with("VmRSS")).unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

fn percentiles(mut all: Vec<u128>) -> String {
    all.sort_unstable();
    format!("p50 {} us, p99 {} us", all[all.len() / 2], all[all.len() * 99 / 100])
}

async fn client(server: &str, cluster: &str, routes: &str, target: &str, dir: &str) {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("LOG").unwrap_or_else(|_| "warn,boringtun=off".into()))
        .with_writer(std::io::stderr)
        .init();
    let began = Instant::now();
    let spec = ConnectorSpec {
        cluster: cluster.parse().unwrap(),
        login_server: server.parse().unwrap(),
        ca_pem: std::env::var("CA").ok().map(|path| std::fs::read_to_string(path).unwrap()),
        hostname: "measure".into(),
        state_dir: dir.into(),
        auth_keys: Arc::new(FixedKey(std::env::var("TS_AUTHKEY").ok().map(Secret::new))),
        routes: routes.parse().unwrap(),
        site: std::env::var("SITE").ok().map(|site| site.parse().unwrap()),
        ephemeral: false,
    };
    let target: Target = target.parse().unwrap();
    let connector = Engine::new(EngineConfig::default()).map(|engine| (engine.start(spec).unwrap(), engine)).unwrap();
    let (connector, _engine) = connector;
    let mut status = connector.status();
    while !status.borrow_and_update().is_usable() {
        println!("{:?} {}", began.elapsed(), status.borrow().state);
        status.changed().await.unwrap();
    }
    println!("{:?} {}, {}", began.elapsed(), status.borrow().state, memory());
    let dialer = connector.dialer();
    let mut stream = dial(&*dialer, target).await.unwrap();
    ping(&mut stream).await;
    println!("first byte after {:?}", began.elapsed());
    if std::env::var("WATCH").is_ok() {
        watch(&*connector, &*dialer, target).await;
        return;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for peer in connector.snapshot().await.peers {
        println!("{}: {}, rtt {:?}, trusted {}", peer.name, peer.path, peer.rtt, peer.trusted);
    }
    let mut times = Vec::new();
    for _ in 0..1000 {
        let t = Instant::now();
        ping(&mut stream).await;
        times.push(t.elapsed().as_micros());
    }
    println!("rtt {}", percentiles(times));
    let mut times = Vec::new();
    for _ in 0..100 {
        let t = Instant::now();
        drop(dial(&*dialer, target).await.unwrap());
        times.push(t.elapsed().as_micros());
    }
    println!("dial {}", percentiles(times));
    let rate = |t: Instant, c: f64, n: u64| {
        let (secs, bytes) = (t.elapsed().as_secs_f64(), (n * SIZE) as f64);
        format!("{:.0} MB/s, {:.3} CPU s per 64 MiB", bytes / 1e6 / secs, (cpu() - c) / n as f64)
    };
    for _ in 0..std::env::var("ROUNDS").map_or(3, |n| n.parse().unwrap()) {
        let (t, c) = (Instant::now(), cpu());
        download(&mut stream, SIZE).await;
        println!("down {}", rate(t, c, 1));
        let (t, c) = (Instant::now(), cpu());
        upload(&mut stream, SIZE).await;
        println!("up   {}", rate(t, c, 1));
    }
    let (t, c) = (Instant::now(), cpu());
    let flows = (0..8).map(|_| async {
        let mut stream = dial(&*dialer, target).await.unwrap();
        download(&mut stream, SIZE / 8).await;
    });
    futures_util::future::join_all(flows).await;
    println!("down, 8 flows {}", rate(t, c, 1));
    let snapshot = connector.snapshot().await;
    println!("{}, {} packets dropped, {} flows", memory(), snapshot.dropped.total(), snapshot.flows);
    let t = Instant::now();
    connector.stop(Duration::from_secs(5)).await;
    println!("stopped in {:?}: {}", t.elapsed(), status.borrow().state);
}

async fn dial(dialer: &dyn Dialer, target: Target) -> Result<Box<dyn Io>, guildnet_model::DialError> {
    dialer.dial(target).await
}

async fn ping(stream: &mut Box<dyn Io>) {
    stream.write_all(&head(b'P', 1)).await.unwrap();
    stream.read_exact(&mut [0; 9]).await.unwrap();
}

async fn download(stream: &mut Box<dyn Io>, size: u64) {
    let mut buf = vec![0; 1 << 16];
    stream.write_all(&head(b'D', size)).await.unwrap();
    let mut left = size;
    while left > 0 {
        let n = stream.read(&mut buf).await.unwrap() as u64;
        assert!(n > 0, "ended with {left} bytes left");
        left -= n;
    }
}

async fn upload(stream: &mut Box<dyn Io>, size: u64) {
    let buf = vec![0; 1 << 16];
    stream.write_all(&head(b'U', size)).await.unwrap();
    for _ in 0..size / buf.len() as u64 {
        stream.write_all(&buf).await.unwrap();
    }
    stream.read_exact(&mut [0; 1]).await.unwrap();
}

/// One new dial and echo every half second, one line for each: for watching what faults do.
async fn watch(connector: &dyn guildnet_model::Connector, dialer: &dyn Dialer, target: Target) {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    let began = Instant::now();
    loop {
        ticks.tick().await;
        let t = Instant::now();
        let said = match dial(dialer, target).await {
            Ok(mut stream) => match tokio::time::timeout(Duration::from_secs(3), ping_result(&mut stream)).await {
                Ok(Ok(())) => "ok".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no echo".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let took = t.elapsed();
        let peers = connector.snapshot().await.peers;
        let paths: Vec<String> = peers.iter().map(|p| format!("{} {} {:?}", p.name, p.path, p.online)).collect();
        println!(
            "{:6.1} s  {said} in {took:?}  [{}] {}",
            began.elapsed().as_secs_f64(),
            paths.join(", "),
            connector.status().borrow().state
        );
    }
}

async fn ping_result(stream: &mut Box<dyn Io>) -> std::io::Result<()> {
    stream.write_all(&head(b'P', 1)).await?;
    stream.read_exact(&mut [0; 9]).await.map(|_| ())
}
