//! Ways into clusters for programs that know nothing of GuildNet: forwards (a local port leads to one place), and SOCKS5 and
//! CONNECT proxies (the client says where to).
//!
//! All of them listen on loopback addresses other than the door's: each cluster has one of its own, 127.0.0.2 and up, so that
//! two clusters may forward the same port and no page out of a cluster shares a host with the Host App's or another
//! cluster's. What they lead to is resolved and dialled in that cluster (`names.rs`) or refused; nothing falls back to
//! the host's network.
//!
//! `forward/spec.rs` is what can be asked for, `entrance.rs` one port with its connections, `socks.rs` and `connect.rs` the
//! proxies' protocols, `credential.rs` their password, `lease.rs` forwards that live as long as who asked for them,
//! `asked.rs` what the command does with all this, `status.rs` what is told. Decided in docs/decisions/0010.

mod asked;
mod connect;
mod credential;
mod entrance;
mod lease;
mod socks;
mod spec;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use guildnet_model::{BoxFuture, Class, ClusterId, Io};
use guildnet_store::{ForwardRecord, ProxiesRecord, Store};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{Mutex as AsyncMutex, Semaphore, broadcast},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use asked::{ForwardRequest, ForwardSession, ForwardStop, ProxiesAccess, ProxiesRequest, ProxiesSet};
pub use entrance::{Traffic, Trouble};
pub use spec::{ForwardSpec, ForwardSpecError, Local};
pub use status::{ForwardStatus, ProxiesStatus, ProxyStatus};

pub(crate) use asked::{Ways, cluster_proxies, cluster_set_proxies, forward, forward_list, forward_stop, set_proxies};
pub(crate) use lease::{Lease, Said};

use crate::{
    HostError,
    drain::drain,
    error::Explained as _,
    metrics::Metrics,
    names::{Destination, OpenError},
};
use credential::Credential;
use entrance::{Around, Entrance, Kind};

/// Forwards at once: more than anybody lists.
const FORWARDS: usize = 256;
/// Connections of all forwards and proxies at once. Each holds two sockets' worth of this process and 32 KiB.
const CONNECTIONS: usize = 1024;
/// What happened that those who lease forwards may still be behind; what is older is not told.
const NEWS: usize = 64;
/// How long a proxy's client may take to log in, and then to say where it wants to go.
const LOGIN_TIME: Duration = Duration::from_secs(10);
/// How long a client with a wrong password waits for its answer. With the bound on clients that have shown none, 64 guesses
/// a second at most.
const LOGIN_PAUSE: Duration = Duration::from_secs(1);

/// Opens streams into clusters: [`crate::fleet::Fleet`], or a test's.
pub(crate) trait Open: Send + Sync {
    /// Opens one, now, by whatever connector the cluster has.
    ///
    /// # Errors
    /// [`OpenError`].
    fn open<'a>(&'a self, cluster: &'a ClusterId, to: &'a Destination)
    -> BoxFuture<'a, Result<Box<dyn Io>, OpenError>>;
}

/// All forwards and proxies of a Host App. Those that are kept are in the store, and [`Forwards::follow`] keeps step with it.
pub(crate) struct Forwards {
    store: Store,
    around: Around,
    /// One change at a time; readers do not wait for it.
    changing: AsyncMutex<()>,
    there: Mutex<There>,
}

impl std::fmt::Debug for Forwards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwards").finish_non_exhaustive()
    }
}

/// What is there now. Never held across an await.
#[derive(Default)]
struct There {
    clusters: BTreeSet<ClusterId>,
    /// Each cluster's own address; those of removed ones too.
    addresses: BTreeMap<ClusterId, Ipv4Addr>,
    forwards: BTreeMap<SocketAddrV4, Forward>,
    proxies: BTreeMap<ClusterId, Proxies>,
}

struct Forward {
    to: Destination,
    kept: bool,
    entrance: Entrance,
}

struct Proxies {
    record: ProxiesRecord,
    socks: Entrance,
    http: Entrance,
}

impl Forward {
    fn status(&self) -> ForwardStatus {
        let gate = &self.entrance.gate;
        ForwardStatus {
            id: gate.local.to_string(),
            cluster: gate.cluster.clone(),
            local: gate.local,
            target: self.to.to_string(),
            kept: self.kept,
            traffic: self.entrance.traffic(),
        }
    }
}

impl There {
    /// Whether a cluster may have something at an address.
    fn admit(&self, cluster: &ClusterId, ip: Ipv4Addr) -> Result<(), HostError> {
        let taken = |by: &ClusterId, what: &str| {
            HostError::new(Class::Conflict, format!("{ip} {what} {by}, and no two clusters share an address"))
                .with_hint("leave the address out: each cluster has one of its own")
                .of_cluster(cluster)
        };
        if let Some((other, _)) = self.addresses.iter().find(|(other, own)| *other != cluster && **own == ip) {
            return Err(taken(other, "is the own address of cluster"));
        }
        let mut others = self.forwards.values().map(|f| &f.entrance.gate).filter(|gate| gate.cluster != *cluster);
        match others.find(|gate| *gate.local.ip() == ip) {
            Some(gate) => Err(taken(&gate.cluster, "has a forward of cluster")),
            None => Ok(()),
        }
    }

    /// What of ours is at a place.
    fn holder(&self, local: SocketAddrV4) -> Option<String> {
        if let Some(forward) = self.forwards.get(&local) {
            return Some(format!("{local} leads to {} in {} already", forward.to, forward.entrance.gate.cluster));
        }
        self.proxies.iter().find_map(|(cluster, proxies)| match local {
            of if of == proxies.socks.gate.local => Some(format!("{local} is the SOCKS5 proxy of {cluster}")),
            of if of == proxies.http.gate.local => Some(format!("{local} is the CONNECT proxy of {cluster}")),
            _ => None,
        })
    }
}

impl Forwards {
    /// None yet; [`Self::follow`] brings those that are kept.
    pub(crate) fn new(store: Store, open: Arc<dyn Open>, metrics: Arc<Metrics>) -> Self {
        let around = Around {
            open,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            metrics,
            news: broadcast::Sender::new(NEWS),
        };
        Self { store, around, changing: AsyncMutex::default(), there: Mutex::default() }
    }

    fn there(&self) -> MutexGuard<'_, There> {
        // Each change is an insertion or a removal: a panic elsewhere leaves it whole.
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All forwards, by local address.
    pub(crate) fn list(&self) -> Vec<ForwardStatus> {
        self.there().forwards.values().map(Forward::status).collect()
    }

    /// The proxies of a cluster.
    ///
    /// # Errors
    /// There is no cluster of that id.
    pub(crate) fn proxies(&self, cluster: &ClusterId) -> Result<ProxiesStatus, HostError> {
        let there = self.there();
        if !there.clusters.contains(cluster) {
            return Err(unknown(cluster, &there));
        }
        let told = |entrance: &Entrance| ProxyStatus { address: entrance.gate.local, traffic: entrance.traffic() };
        let proxies = there.proxies.get(cluster);
        Ok(ProxiesStatus {
            cluster: cluster.clone(),
            enabled: proxies.is_some(),
            socks: proxies.map(|p| told(&p.socks)),
            http: proxies.map(|p| told(&p.http)),
        })
    }

    /// Starts forwards that are kept until they are stopped: all of them or none. One that is there already, to the same
    /// place, is kept from now on.
    ///
    /// # Errors
    /// No such cluster, an address or port that can't be had, too many; the store can't be written.
    pub(crate) async fn keep(
        &self,
        cluster: &ClusterId,
        specs: &[ForwardSpec],
    ) -> Result<Vec<ForwardStatus>, HostError> {
        let _alone = self.changing.lock().await;
        let bound = self.bind_all(cluster, specs, true).await?;
        let mut stored = Vec::new();
        for one in &bound {
            let record = ForwardRecord {
                local: one.local,
                cluster: cluster.clone(),
                target: one.to.to_string(),
                created: Timestamp::now(),
            };
            let put = match self.store.put_forward(&record).await.explained_of(cluster) {
                Ok(true) => Ok(()),
                Ok(false) => Err(unknown(cluster, &self.there())),
                Err(why) => Err(why),
            };
            if let Err(why) = put {
                for local in stored {
                    if let Err(left) = self.store.remove_forward(local).await {
                        tracing::warn!(%local, %left, "a forward that was not made stays in the store");
                    }
                }
                return Err(why);
            }
            stored.push(one.local);
        }
        Ok(self.insert(cluster, bound, true).iter().map(|(status, ..)| status.clone()).collect())
    }

    /// Starts forwards that end with the lease: all of them or none.
    ///
    /// # Errors
    /// As [`Self::keep`]; one that is there already is a conflict.
    pub(crate) async fn lease(
        self: &Arc<Self>,
        cluster: &ClusterId,
        specs: &[ForwardSpec],
    ) -> Result<Lease, HostError> {
        let _alone = self.changing.lock().await;
        let bound = self.bind_all(cluster, specs, false).await?;
        let news = self.around.news.subscribe();
        Ok(Lease::new(Arc::clone(self), self.insert(cluster, bound, false), news))
    }

    /// Binds all that is wanted, or nothing.
    async fn bind_all(&self, cluster: &ClusterId, specs: &[ForwardSpec], keep: bool) -> Result<Vec<Bound>, HostError> {
        let own = {
            let there = self.there();
            if !there.clusters.contains(cluster) {
                return Err(unknown(cluster, &there));
            }
            if there.forwards.len() + specs.len() > FORWARDS {
                return Err(HostError::new(Class::Failed, format!("more than {FORWARDS} forwards"))
                    .with_hint("stop some: guildnet forward --list, guildnet forward --stop ID"));
            }
            there.addresses.get(cluster).copied()
        };
        let own = own.ok_or_else(|| HostError::new(Class::Failed, "it has no loopback address").of_cluster(cluster))?;
        let mut bound: Vec<Bound> = Vec::new();
        for spec in specs {
            let local = SocketAddrV4::new(spec.local.ip.unwrap_or(own), spec.local.port);
            let same = {
                let there = self.there();
                there.admit(cluster, *local.ip())?;
                let same = there.forwards.get(&local).is_some_and(|f| keep && f.to == spec.to);
                match there.holder(local) {
                    Some(held) if !same => {
                        return Err(HostError::new(Class::Conflict, held).with_hint(
                            "take another local port, 0 for a free one; what there is: guildnet forward --list",
                        ));
                    }
                    _ => same,
                }
            };
            let listener = if same { None } else { Some(bind(local).await?) };
            let local = match &listener {
                Some(listener) => local_address(listener, local)?,
                None => local,
            };
            bound.push(Bound { local, to: spec.to.clone(), listener });
        }
        Ok(bound)
    }

    /// Starts what is bound.
    fn insert(&self, cluster: &ClusterId, bound: Vec<Bound>, kept: bool) -> Vec<Inserted> {
        let mut there = self.there();
        let mut inserted = Vec::new();
        for Bound { local, to, listener } in bound {
            if let Some(listener) = listener {
                let kind = Kind::Forward(to.clone());
                let entrance = Entrance::start(cluster.clone(), local, kind, Ok(listener), &self.around);
                there.forwards.insert(local, Forward { to, kept, entrance });
            }
            if let Some(forward) = there.forwards.get_mut(&local) {
                forward.kept |= kept;
                let (gate, ended) = (Arc::clone(&forward.entrance.gate), forward.entrance.ended.clone());
                inserted.push((forward.status(), gate, ended));
            }
        }
        inserted
    }

    /// Stops a forward, whoever made it, and forgets it if it was kept. Returns what it did, `None` if there is none there.
    ///
    /// # Errors
    /// The store can't be written; then it goes on.
    pub(crate) async fn stop(&self, local: SocketAddrV4) -> Result<Option<ForwardStatus>, HostError> {
        let _alone = self.changing.lock().await;
        let Some(status) = self.there().forwards.get(&local).map(Forward::status) else { return Ok(None) };
        if status.kept {
            self.store.remove_forward(local).await.explained()?;
        }
        let gone = self.there().forwards.remove(&local);
        if let Some(forward) = gone {
            forward.entrance.close().await;
        }
        Ok(Some(status))
    }

    /// Ends a forward if it is this one. For leases, which can't wait.
    fn end(&self, local: SocketAddrV4, gate: &Arc<entrance::Gate>) {
        if self.around.stop.is_cancelled() {
            // All of them end, and their connections have their grace.
            return;
        }
        let mut there = self.there();
        // One that a person chose to keep meanwhile stays.
        let same = there.forwards.get(&local).is_some_and(|f| Arc::ptr_eq(&f.entrance.gate, gate) && !f.kept);
        if same {
            there.forwards.remove(&local);
        }
    }

    /// Brings forwards and proxies in step with the store. What did not change is not disturbed.
    ///
    /// # Errors
    /// The store can't be read; nothing was changed then. A port that can't be had is no error: its status says so.
    pub(crate) async fn follow(&self) -> Result<(), HostError> {
        let _alone = self.changing.lock().await;
        let clusters: BTreeSet<ClusterId> = self.store.ids().await.explained()?.into_iter().collect();
        let addresses = self.store.loopbacks().await.explained()?;
        let kept = self.store.forwards().await.explained()?;
        let proxies = self.store.proxies().await.explained()?;
        let wanted: BTreeMap<SocketAddrV4, (ClusterId, Destination)> =
            kept.into_iter().filter(|record| clusters.contains(&record.cluster)).filter_map(read).collect();
        let proxies: BTreeMap<ClusterId, ProxiesRecord> =
            proxies.into_iter().filter(|p| p.enabled).map(|p| (p.cluster.clone(), p)).collect();

        let leaving = self.take_leaving(&clusters, &wanted, &proxies);
        for entrance in leaving {
            entrance.close().await;
        }
        {
            let mut there = self.there();
            there.clusters = clusters;
            there.addresses = addresses;
        }
        for (local, (cluster, to)) in wanted {
            if !self.there().forwards.contains_key(&local) {
                let entrance = self.entrance(&cluster, local, Kind::Forward(to.clone())).await;
                self.there().forwards.insert(local, Forward { to, kept: true, entrance });
            }
        }
        for (cluster, record) in proxies {
            let own = self.there().addresses.get(&cluster).copied();
            let Some(own) = own.filter(|_| !self.there().proxies.contains_key(&cluster)) else { continue };
            let credential = Arc::new(Credential::new(&cluster, record.password.clone()));
            let at = |port| SocketAddrV4::new(own, port);
            let socks = Kind::Socks(Arc::clone(&credential));
            let socks = self.entrance(&cluster, at(record.socks_port), socks).await;
            let http = self.entrance(&cluster, at(record.http_port), Kind::Connect(credential)).await;
            self.there().proxies.insert(cluster, Proxies { record, socks, http });
        }
        Ok(())
    }

    /// Takes out everything that is not wanted any more, or not so.
    fn take_leaving(
        &self,
        clusters: &BTreeSet<ClusterId>,
        wanted: &BTreeMap<SocketAddrV4, (ClusterId, Destination)>,
        proxies: &BTreeMap<ClusterId, ProxiesRecord>,
    ) -> Vec<Entrance> {
        let mut there = self.there();
        let stays = |local: &SocketAddrV4, forward: &Forward| {
            let cluster = &forward.entrance.gate.cluster;
            match wanted.get(local) {
                Some((of, to)) => of == cluster && *to == forward.to,
                // Leased ones stay with their cluster.
                None => !forward.kept && clusters.contains(cluster),
            }
        };
        let gone: Vec<_> =
            there.forwards.iter().filter(|(local, f)| !stays(local, f)).map(|(local, _)| *local).collect();
        let mut leaving: Vec<Entrance> =
            gone.iter().filter_map(|local| Some(there.forwards.remove(local)?.entrance)).collect();
        let gone: Vec<_> = there
            .proxies
            .iter()
            .filter(|(id, p)| proxies.get(id) != Some(&p.record))
            .map(|(id, _)| id.clone())
            .collect();
        for proxies in gone.iter().filter_map(|id| there.proxies.remove(id)) {
            leaving.extend([proxies.socks, proxies.http]);
        }
        leaving
    }

    /// An entrance, whether its port can be had now or later.
    async fn entrance(&self, cluster: &ClusterId, local: SocketAddrV4, kind: Kind) -> Entrance {
        let listener = bind(local).await.map_err(|why| why.message().to_owned());
        Entrance::start(cluster.clone(), local, kind, listener, &self.around)
    }

    /// Ends all of them: nobody is let in any more, and connections that have not ended within the grace are cut. Returns when
    /// everything has ended.
    pub(crate) async fn shut(&self, grace: Duration) {
        self.around.stop.cancel();
        drain(&self.around.tasks, &self.around.cut, grace, "open connections into clusters").await;
    }
}

/// What was inserted: its status, what tells it from a later one at the same place, and its end.
type Inserted = (ForwardStatus, Arc<entrance::Gate>, CancellationToken);

/// A forward that is about to start.
struct Bound {
    local: SocketAddrV4,
    to: Destination,
    /// None if it runs already.
    listener: Option<TcpListener>,
}

fn unknown(cluster: &ClusterId, there: &There) -> HostError {
    HostError::unknown_cluster(cluster, &there.clusters.iter().cloned().collect::<Vec<_>>())
}

/// A kept forward; one that can't be understood is left where it is.
fn read(record: ForwardRecord) -> Option<(SocketAddrV4, (ClusterId, Destination))> {
    match record.target.parse() {
        Ok(to) => Some((record.local, (record.cluster, to))),
        Err(why) => {
            tracing::warn!(local = %record.local, %why, "a kept forward can't be used");
            None
        }
    }
}

/// Listens at a place.
///
/// # Errors
/// It is taken, or not for this user.
async fn bind(local: SocketAddrV4) -> Result<TcpListener, HostError> {
    TcpListener::bind(local).await.map_err(|why| not_bound(local, &why))
}

fn local_address(listener: &TcpListener, asked: SocketAddrV4) -> Result<SocketAddrV4, HostError> {
    match listener.local_addr() {
        Ok(std::net::SocketAddr::V4(local)) => Ok(local),
        Ok(std::net::SocketAddr::V6(_)) => Err(not_bound(asked, &io::ErrorKind::AddrNotAvailable.into())),
        Err(why) => Err(not_bound(asked, &why)),
    }
}

fn not_bound(local: SocketAddrV4, why: &io::Error) -> HostError {
    match why.kind() {
        io::ErrorKind::AddrInUse => HostError::new(Class::Conflict, format!("{local} is taken by another program"))
            .with_hint(format!(
                "take another local port, 0 for a free one; who has this one: ss -ltnp 'sport = {}'",
                local.port()
            )),
        io::ErrorKind::PermissionDenied => {
            HostError::new(Class::Precondition, format!("this user may not listen on {local}"))
                .with_hint("take a local port above 1023")
        }
        _ => HostError::new(Class::Failed, format!("can't listen on {local}: {why}"))
            .with_hint("take another local port"),
    }
}
