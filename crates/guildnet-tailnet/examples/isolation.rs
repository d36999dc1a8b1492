//! Tries every cluster from every client, past the client's own filters, and prints what answered. For isolation matrices:
//!
//! ```sh
//! cargo run --release -p guildnet-tailnet --example isolation -- --url https://headscale.example --ca ca.pem \
//!     --routes 10.96.0.0/16,10.244.0.0/16 --service 10.96.0.1:443 --pod 10.244.0.10:8080 \
//!     --clients a:7:/home/me/.guildnet/tsnet/cluster-a,b:8:/home/me/.guildnet/tsnet/cluster-b
//! ```
//!
//! A client is `CLUSTER:SITE:FOLDER`, the identity of a connector that has joined; nothing else may use it meanwhile. What
//! a client tries of a cluster goes through that cluster's own router, whose address and keys that cluster's client knows.
//! A client's attempts on its own cluster are made at the same moment: they are the control for the silence of the others.
//! Prints a JSON list of `{client, cluster, what, target, seen}`; judges nothing.

#![allow(clippy::print_stdout, reason = "printing is what the example is for")]

use std::{
    collections::HashMap,
    error::Error,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use guildnet_model::{
    Connector, ConnectorSpec, FixedKey, Networks, PeerContact, ProbeOutcome, SiteNumber, StartConnector, Target, via6,
};
use guildnet_tailnet::{Engine, EngineConfig};
use serde_json::{Value, json};
use tokio::time::timeout;

type Failure = Box<dyn Error + Send + Sync>;

/// How long a connector may take until it can be used; many start at once.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long one attempt waits: several round trips and a WireGuard handshake, twice repeated.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Clusters that are tried at the same time, each from all clients: ten clients make some 200 attempts of it.
const CLUSTERS_AT_ONCE: usize = 4;
/// How long stopping may take.
const GRACE: Duration = Duration::from_secs(3);
/// A port that nothing serves on a router: a reset from it is an answer, too (IANA: discard).
const NOBODYS_PORT: u16 = 9;

/// A client that is up, and its cluster's router.
struct Client {
    cluster: String,
    site: SiteNumber,
    connector: Arc<dyn Connector>,
    router: PeerContact,
    router_address: IpAddr,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = options()?;
    let need = |name: &str| options.get(name).ok_or_else(|| format!("--{name} is missing"));
    let ca_pem = options.get("ca").map(fs::read_to_string).transpose()?;
    let routes: Networks = need("routes")?.parse()?;
    let [service, pod] = [need("service")?.parse::<Target>()?, need("pod")?.parse::<Target>()?];
    let engine = Engine::new(EngineConfig::default())?;
    let mut started = Vec::new();
    for text in need("clients")?.split(',') {
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().ok_or_else(|| format!("{text:?} is not CLUSTER:SITE:FOLDER"));
        let (cluster, site, folder) = (part()?.to_owned(), part()?.parse::<SiteNumber>()?, PathBuf::from(part()?));
        if !folder.is_dir() {
            return Err(format!("{} is not there: the client of {cluster} must have joined", folder.display()).into());
        }
        let connector = engine.start(ConnectorSpec {
            cluster: cluster.parse()?,
            login_server: need("url")?.parse()?,
            ca_pem: ca_pem.clone(),
            hostname: "isolation-example".to_owned(),
            state_dir: folder,
            auth_keys: Arc::new(FixedKey(None)),
            routes: routes.clone(),
            site: Some(site),
            ephemeral: false,
        })?;
        started.push((cluster, site, connector));
    }
    let clients = try_join_all(started.iter().map(|(cluster, site, connector)| ready(cluster, *site, connector))).await;
    let seen = match &clients {
        Ok(clients) => matrix(clients, service, pod).await,
        Err(_) => vec![],
    };
    join_all(started.iter().map(|(_, _, connector)| connector.stop(GRACE))).await;
    clients?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

/// Waits until the connector can be used, and finds its router.
async fn ready(cluster: &str, site: SiteNumber, connector: &Arc<dyn Connector>) -> Result<Client, Failure> {
    let mut status = connector.status();
    let usable = timeout(READY_LIMIT, status.wait_for(|now| now.is_usable())).await.is_ok_and(|seen| seen.is_ok());
    if !usable {
        return Err(format!("the client of {cluster} is {}", connector.status().borrow().state).into());
    }
    let seen = connector.snapshot().await;
    let router = seen.peers.into_iter().find(|peer| peer.trusted && peer.online != Some(false));
    let router = router.ok_or_else(|| format!("the client of {cluster} knows no router that is online"))?;
    let address = router.addresses.iter().copied().find(IpAddr::is_ipv4);
    Ok(Client {
        cluster: cluster.to_owned(),
        site,
        connector: Arc::clone(connector),
        router_address: address.ok_or_else(|| format!("{} has no IPv4 address", router.name))?,
        router: router.contact,
    })
}

/// Every client against every cluster.
async fn matrix(clients: &[Client], service: Target, pod: Target) -> Vec<Value> {
    let mut seen = Vec::new();
    for some in clients.chunks(CLUSTERS_AT_ONCE) {
        let attempts = some.iter().flat_map(|cluster| {
            clients.iter().flat_map(move |client| {
                targets(cluster, service, pod)
                    .into_iter()
                    .map(move |(what, target)| attempt(client, cluster, what, target))
            })
        });
        seen.extend(join_all(attempts).await);
    }
    seen
}

/// What of a cluster is tried, in both forms, whichever the server makes use of.
fn targets(cluster: &Client, service: Target, pod: Target) -> [(&'static str, Target); 5] {
    let site = |target: Target| match target.addr().ip() {
        IpAddr::V4(ip) => SocketAddr::new(via6::address(cluster.site, ip).into(), target.addr().port()).into(),
        IpAddr::V6(_) => target,
    };
    [
        ("router", SocketAddr::new(cluster.router_address, NOBODYS_PORT).into()),
        ("service", service),
        ("pod", pod),
        ("service by site", site(service)),
        ("pod by site", site(pod)),
    ]
}

async fn attempt(client: &Client, cluster: &Client, what: &str, target: Target) -> Value {
    let outcome = client.connector.probe(cluster.router.clone(), target, PROBE_LIMIT).await;
    let seen = match outcome {
        ProbeOutcome::Answered => "answered".to_owned(),
        ProbeOutcome::Silent => "silent".to_owned(),
        ProbeOutcome::Impossible { why } => format!("not tried: {why}"),
    };
    json!({
        "client": client.cluster, "cluster": cluster.cluster, "what": what, "target": target.to_string(), "seen": seen,
    })
}

/// `--name value` pairs.
fn options() -> Result<HashMap<String, String>, Failure> {
    let mut args = std::env::args().skip(1);
    let mut options = HashMap::new();
    while let Some(name) = args.next() {
        let name = name.strip_prefix("--").ok_or_else(|| format!("{name:?} is no option"))?.to_owned();
        let value = args.next().ok_or_else(|| format!("--{name} needs a value"))?;
        options.insert(name, value);
    }
    Ok(options)
}
