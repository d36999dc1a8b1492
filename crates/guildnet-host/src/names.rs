//! Names inside a cluster: what `dial`, forwards and proxies are given becomes a stream into that cluster, or an error.
//!
//! A name is resolved in the cluster that is meant and nowhere else, never by this machine's resolver, so `grafana.monitoring`
//! is another one in each cluster. First its DNS Service is asked, over TCP (RFC 1035 section 4.2.2, RFC 7766) and through the
//! cluster's connector; where there is none, or it does not answer, the API server is asked for the Service's cluster IP.
//! Whatever comes back must lie in the cluster's networks.
//!
//! Pure parts: `names/destination.rs` (what was asked for), `search.rs` (what a name may mean), `message.rs` (DNS as bytes),
//! `cache.rs`. What is asked of a cluster is [`Inside`]; `cluster.rs` has one [`Names`] for each. Decided in
//! docs/decisions/0010.

mod cache;
mod destination;
mod message;
mod search;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use guildnet_model::{BoxFuture, Class, ClusterId, DialError, Explain as _, Io, Networks, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

pub use destination::{Destination, DestinationError, HostName, Place};

use crate::HostError;
use cache::Cache;
use message::{Question, Said, Wanted};

/// How long the cluster's DNS may take for a name, its connection and all that the name may mean included. It answers
/// within milliseconds of a round trip; a Service without a live Pod is silent, and then the API server is to be asked while
/// the person still waits.
const DNS_LIMIT: Duration = Duration::from_secs(4);
/// How long the DNS Service's address is believed before the API server is asked again. It changes when the Service is
/// made anew, and then it does not answer, which is noticed sooner.
const DNS_KNOWN: Duration = Duration::from_secs(300);
/// How long a cluster IP holds that the API server named: it has no time of its own. CoreDNS' own default.
const SERVICE_HOLDS: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried: a headless Service may have hundreds.
const TRIED: usize = 3;

/// What resolving and dialling ask of a cluster: [`crate::cluster::ClusterHandle`], or a test's.
pub(crate) trait Inside: Send + Sync {
    /// The cluster.
    fn id(&self) -> &ClusterId;

    /// Its networks.
    fn networks(&self) -> &Networks;

    /// Dials through its connector.
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>>;

    /// Where its DNS is; `None` if it has none.
    ///
    /// # Errors
    /// The API server can't be asked.
    fn dns_address(&self) -> BoxFuture<'_, Result<Option<Target>, HostError>>;

    /// A Service's cluster IP.
    ///
    /// # Errors
    /// There is no such Service or it has no cluster IP ([`Class::NotFound`]); the API server can't be asked.
    fn cluster_ip<'a>(&'a self, namespace: &'a str, service: &'a str) -> BoxFuture<'a, Result<IpAddr, HostError>>;
}

/// Why there is no stream into a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// There was nothing to dial: no such cluster or name, a name that leads out of the cluster, nobody to ask.
    Host(HostError),
    /// Dialling failed.
    Dial {
        /// The name that led there, if it was one.
        name: Option<HostName>,
        /// Why it failed.
        why: DialError,
    },
}

impl OpenError {
    /// The same as an error of the Host App, of that cluster.
    pub(crate) fn of_cluster(self, cluster: &ClusterId) -> HostError {
        match self {
            Self::Host(error) => error,
            Self::Dial { name: None, why } => HostError::explained(&why).of_cluster(cluster),
            Self::Dial { name: Some(name), why } => HostError::explained(&why).while_doing(name).of_cluster(cluster),
        }
    }
}

/// The names of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Names {
    cache: Mutex<Cache>,
    dns: Mutex<Option<Dns>>,
}

/// The cluster's DNS, as it was found.
#[derive(Clone, Debug)]
struct Dns {
    server: Target,
    /// `cluster.local`, or what the administrator took.
    domain: String,
    until: Instant,
}

/// How asking the DNS ended, if not with an address.
enum Unresolved {
    /// It knows no such name.
    Unknown(Target),
    /// There is none, or it does not answer: why. What the domain is thought to be.
    Silent(String, String),
    /// Nothing in this cluster can be asked.
    Cluster(HostError),
}

impl Names {
    /// Opens a stream to `to` in the cluster.
    ///
    /// # Errors
    /// [`OpenError`].
    /// # Cancellation
    /// Dropping the future abandons what is under way.
    pub(crate) async fn open(&self, inside: &dyn Inside, to: &Destination) -> Result<Box<dyn Io>, OpenError> {
        let (name, addresses) = match to.place() {
            Place::Address(ip) => (None, vec![*ip]),
            Place::Name(name) => {
                let found = self.resolve(inside, name).await;
                let found = found.map_err(|why| OpenError::Host(why.of_cluster(inside.id())))?;
                (Some(name), found.into_iter().map(IpAddr::V4).take(TRIED).collect())
            }
        };
        let mut last = None;
        for ip in addresses {
            let target = Target::from(SocketAddr::new(ip, to.port()));
            match dial(inside, target).await {
                Ok(stream) => return Ok(stream),
                // The next address may be that of a Pod which lives.
                Err(why @ (DialError::Refused { .. } | DialError::Timeout { .. })) => last = Some(why),
                Err(why) => return Err(OpenError::Dial { name: name.cloned(), why }),
            }
        }
        if let Some(name) = name {
            // It may have moved: the next one asks again.
            locked(&self.cache).forget(name);
        }
        let none = DialError::NotReady { state: "the name has no address".into() };
        Err(OpenError::Dial { name: name.cloned(), why: last.unwrap_or(none) })
    }

    /// The addresses of a name, all of them in the cluster's networks; at least one.
    async fn resolve(&self, inside: &dyn Inside, name: &HostName) -> Result<Vec<Ipv4Addr>, HostError> {
        if let Some(known) = locked(&self.cache).get(name, Instant::now()) {
            return Ok(known);
        }
        let (found, holds) = match self.ask_dns(inside, name).await {
            Ok((found, secs)) => (found, Duration::from_secs(secs.into())),
            Err(Unresolved::Cluster(why)) => return Err(why.while_doing(name)),
            Err(Unresolved::Unknown(server)) => return Err(unknown(inside, name, server)),
            Err(Unresolved::Silent(why, domain)) => (vec![ask_api(inside, name, &domain, &why).await?], SERVICE_HOLDS),
        };
        let within: Vec<Ipv4Addr> = found.iter().copied().filter(|ip| inside.networks().contains(*ip)).collect();
        if within.is_empty() {
            return Err(outside(inside, name, &found));
        }
        locked(&self.cache).put(name, within.clone(), holds, Instant::now());
        Ok(within)
    }

    /// Asks the cluster's DNS for everything that the name may mean, until it knows one.
    async fn ask_dns(&self, inside: &dyn Inside, name: &HostName) -> Result<(Vec<Ipv4Addr>, u32), Unresolved> {
        let known = locked(&self.dns).clone().filter(|dns| Instant::now() < dns.until);
        let domain = known.as_ref().map_or(search::USUAL_DOMAIN.to_owned(), |dns| dns.domain.clone());
        let server = match &known {
            Some(dns) => dns.server,
            None => match inside.dns_address().await.map_err(Unresolved::Cluster)? {
                Some(server) => server,
                None => return Err(Unresolved::Silent("there is no DNS Service".into(), domain)),
            },
        };
        let asking = async {
            let mut talk = Talk::begin(inside, server).await?;
            let domain = match &known {
                Some(dns) => dns.domain.clone(),
                None => {
                    let domain = talk.domain(server).await?.unwrap_or(search::USUAL_DOMAIN.to_owned());
                    let until = Instant::now() + DNS_KNOWN;
                    *locked(&self.dns) = Some(Dns { server, domain: domain.clone(), until });
                    domain
                }
            };
            for full in search::candidates(name, &domain) {
                let Some(question) = Question::new(rand::random(), &full, Wanted::Addresses) else { continue };
                if let Said::Addresses(found, secs) = talk.ask(&question).await? {
                    return Ok(Some((found, secs)));
                }
            }
            Ok(None)
        };
        let answered: Result<_, String> = match timeout(DNS_LIMIT, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("no answer within {DNS_LIMIT:?}")),
        };
        match answered {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Unresolved::Unknown(server)),
            Err(why) => {
                // It may stand elsewhere by now.
                *locked(&self.dns) = None;
                tracing::debug!(cluster = %inside.id(), %server, why, "the cluster's DNS is of no help");
                Err(Unresolved::Silent(format!("the DNS at {server}: {why}"), domain))
            }
        }
    }
}

/// A panic elsewhere can't leave either half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dials an address, if it lies in the cluster. The connector looks at that too; here it holds for whatever is dialled with.
async fn dial(inside: &dyn Inside, target: Target) -> Result<Box<dyn Io>, DialError> {
    let allowed = matches!(target.addr().ip(), IpAddr::V4(ip) if inside.networks().contains(ip));
    if !allowed {
        return Err(DialError::NotAllowed { target, allowed: inside.networks().to_string() });
    }
    inside.dial(target).await
}

/// The second way: the cluster IP of the Service that the name is the name of.
async fn ask_api(inside: &dyn Inside, name: &HostName, domain: &str, why: &str) -> Result<Ipv4Addr, HostError> {
    let Some((namespace, service)) = search::service(name, domain) else {
        let said = format!("{name}: {why}, and only a Service's name can be looked up without it");
        return Err(HostError::new(Class::Unreachable, said).with_hint(verify_hint(inside)));
    };
    match inside.cluster_ip(namespace, service).await {
        Ok(IpAddr::V4(ip)) => Ok(ip),
        Ok(IpAddr::V6(ip)) => {
            let said = format!("{name}: the Service has the address {ip} only, and connectors reach IPv4");
            Err(HostError::new(Class::Usage, said).with_hint("give the Service an IPv4 address (ipFamilyPolicy)"))
        }
        Err(error) => {
            let hint = match error.class() {
                Class::NotFound => list_hint(inside),
                _ => error.hint().unwrap_or_else(|| verify_hint(inside)),
            };
            let said = format!("{name}: {why}, and the API server does not know where it is: {}", error.message());
            Err(HostError::new(error.class(), said).with_hint(hint))
        }
    }
}

fn unknown(inside: &dyn Inside, name: &HostName, server: Target) -> HostError {
    HostError::new(Class::NotFound, format!("{name}: the cluster's DNS at {server} knows no such name"))
        .with_hint(list_hint(inside))
}

fn outside(inside: &dyn Inside, name: &HostName, found: &[Ipv4Addr]) -> HostError {
    let found: Vec<String> = found.iter().take(TRIED).map(ToString::to_string).collect();
    let said = format!("{name} leads to {}, out of this cluster's networks ({})", found.join(", "), inside.networks());
    HostError::new(Class::Usage, said).with_hint("what is not inside the cluster is reached without GuildNet")
}

fn list_hint(inside: &dyn Inside) -> String {
    let id = inside.id();
    format!("a Service is SERVICE.NAMESPACE; which there are: kubectl --context guildnet-{id} get services -A")
}

fn verify_hint(inside: &dyn Inside) -> String {
    format!("run 'guildnet verify {}' to see which link is broken", inside.id())
}

/// One connection to the cluster's DNS. Errors are what to say of the server.
struct Talk {
    stream: Box<dyn Io>,
}

impl Talk {
    async fn begin(inside: &dyn Inside, server: Target) -> Result<Self, String> {
        let stream = dial(inside, server).await.map_err(|why| why.to_string())?;
        Ok(Self { stream })
    }

    /// A question and its answer, each with its length in front (RFC 1035 section 4.2.2).
    async fn ask(&mut self, question: &Question) -> Result<Said, String> {
        let bytes = question.to_bytes().ok_or("the question can't be put")?;
        let length = u16::try_from(bytes.len()).map_err(|_| "the question can't be put")?;
        let exchanged = async {
            // In one piece: some servers take the length alone for a message (RFC 7766 section 8).
            self.stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
            self.stream.flush().await?;
            let mut answer = vec![0; usize::from(self.stream.read_u16().await?)];
            self.stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        question.read(&exchanged.await.map_err(|why| why.to_string())?)
    }

    /// The cluster's domain, if the DNS tells it by its own name.
    async fn domain(&mut self, server: Target) -> Result<Option<String>, String> {
        let IpAddr::V4(ip) = server.addr().ip() else { return Ok(None) };
        let Some(question) = Question::backwards(rand::random(), ip) else { return Ok(None) };
        Ok(match self.ask(&question).await? {
            Said::Pointer(name) => search::domain_of(&name),
            Said::Addresses(..) | Said::Nothing => None,
        })
    }
}
