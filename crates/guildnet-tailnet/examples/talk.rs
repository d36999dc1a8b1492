//! Joins a cluster's tailnet, dials an address in it and prints what happens. For trying things by hand:
//!
//! ```sh
//! cargo run --release -p guildnet-tailnet --example talk -- --url https://headscale.example --ca ca.pem \
//!     --key-file client.key --state /tmp/node --cluster a --routes 10.96.0.0/16 --to 10.96.0.10:80 \
//!     [--site N] [--name NAME] [--stay SECONDS]
//! ```
//!
//! Standard input goes to the far end and what comes back is printed, until either side ends. `--stay` then keeps the node up and prints its state whenever it changes.

#![allow(clippy::print_stdout, reason = "printing is what the example is for")]

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_model::{Connector, ConnectorSpec, FixedKey, Io, Secret, StartConnector, Target};
use guildnet_tailnet::{Engine, EngineConfig};
use tokio::{io::AsyncWriteExt, time::timeout};

type Failure = Box<dyn Error + Send + Sync>;

/// How long the connector may take until it can be used.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long the far end may take to close after us.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long stopping may take.
const GRACE: Duration = Duration::from_secs(3);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::from_args()?;
    let engine = Engine::new(EngineConfig::default())?;
    let start = Instant::now();
    let connector = engine.start(options.spec()?)?;
    let outcome = talk(&options, &connector, start).await;
    let stopping = Instant::now();
    connector.stop(GRACE).await;
    println!("stopped in {:?}", stopping.elapsed());
    outcome
}

async fn talk(options: &Options, connector: &Arc<dyn Connector>, start: Instant) -> Result<(), Failure> {
    let mut status = connector.status();
    let ready = async {
        loop {
            let now = status.borrow_and_update().clone();
            println!("{:>9.3?}  {}", start.elapsed(), now.state);
            if now.is_usable() {
                return Ok::<_, Failure>(());
            }
            status.changed().await?;
        }
    };
    timeout(READY_LIMIT, ready).await??;
    let to: Target = options.need("to")?.parse()?;
    let began = Instant::now();
    let stream = connector.dialer().dial(to).await?;
    println!("{:>9.3?}  connected to {to}, dialled in {:?}", start.elapsed(), began.elapsed());
    show(connector).await;
    pass(stream).await?;
    show(connector).await;
    let stay = Duration::from_secs(options.number("stay")?.unwrap_or(0));
    let watch = async {
        while status.changed().await.is_ok() {
            println!("{:>9.3?}  {}", start.elapsed(), status.borrow_and_update().state);
        }
    };
    if timeout(stay, watch).await.is_err() && !stay.is_zero() {
        show(connector).await;
    }
    Ok(())
}

/// Prints what the connector knows.
async fn show(connector: &Arc<dyn Connector>) {
    let seen = connector.snapshot().await;
    if let Some(node) = &seen.status.node {
        println!("node {} {:?} {:?}", node.name, node.addresses, node.tags);
    }
    println!("relay {:?}, {} flows, {} packets dropped", seen.home_relay, seen.flows, seen.dropped.total());
    for peer in &seen.peers {
        println!(
            "peer {} trusted={} online={:?} path={} rtt={:?} routes={:?} in={} out={}",
            peer.name, peer.trusted, peer.online, peer.path, peer.rtt, peer.routes, peer.rx_bytes, peer.tx_bytes
        );
    }
}

/// Passes standard input to the far end and its bytes to standard output.
async fn pass(mut stream: Box<dyn Io>) -> Result<(), Failure> {
    let (mut typed, mut seen) = (tokio::io::stdin(), tokio::io::stdout());
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let send = async {
        tokio::io::copy(&mut typed, &mut write).await?;
        write.shutdown().await
    };
    let receive = async {
        tokio::io::copy(&mut read, &mut seen).await?;
        seen.flush().await
    };
    tokio::pin!(send, receive);
    tokio::select! {
        ended = &mut receive => ended?,
        sent = &mut send => {
            sent?;
            // A far end that does not close when we do is not waited for.
            if let Ok(ended) = timeout(CLOSE_LIMIT, receive).await {
                ended?;
            }
        }
    }
    Ok(())
}

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    fn from_args() -> Result<Self, Failure> {
        let mut args = std::env::args().skip(1);
        let mut options = HashMap::new();
        while let Some(name) = args.next() {
            let name = name.strip_prefix("--").ok_or_else(|| format!("{name:?} is no option"))?.to_owned();
            let value = args.next().ok_or_else(|| format!("--{name} needs a value"))?;
            options.insert(name, value);
        }
        Ok(Self(options))
    }

    fn need(&self, name: &str) -> Result<&str, Failure> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("--{name} is missing").into())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        Ok(self.0.get(name).map(|text| text.parse()).transpose()?)
    }

    fn spec(&self) -> Result<ConnectorSpec, Failure> {
        let file = |name: &str| self.0.get(name).map(fs::read_to_string).transpose();
        Ok(ConnectorSpec {
            cluster: self.need("cluster")?.parse()?,
            login_server: self.need("url")?.parse()?,
            ca_pem: file("ca")?,
            hostname: self.0.get("name").map_or_else(|| "dial-example".to_owned(), Clone::clone),
            state_dir: PathBuf::from(self.need("state")?),
            auth_keys: Arc::new(FixedKey(file("key-file")?.map(|key| Secret::new(key.trim().to_owned())))),
            routes: self.need("routes")?.parse()?,
            site: self.number("site")?.map(TryInto::try_into).transpose()?,
            ephemeral: false,
        })
    }
}
