//! What the command asks: forwards of the running Host App, and the proxies' switch and password in the store.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
};

use guildnet_model::{BoxFuture, Class, ClusterId, Explain as _, Secret};
use guildnet_store::{ProxiesRecord, Store};

use super::{ForwardSpec, ForwardStatus, Said, Trouble, credential};
use crate::{
    HostError, Progress, Settings,
    client::{HostClient, LeaseClient},
    error::Explained as _,
    fleet,
};

/// The ports of a cluster's proxies, if no others are asked for: the usual ones of each.
const SOCKS_PORT: u16 = 1080;
const HTTP_PORT: u16 = 8080;

/// Forwards that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRequest {
    /// Into which cluster.
    pub cluster: ClusterId,
    /// Which; at least one.
    pub forwards: Vec<ForwardSpec>,
    /// Leave them to the Host App; otherwise they end with the session.
    pub keep: bool,
}

/// Which forwards are to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardStop {
    /// These, by their ids.
    These(Vec<String>),
    /// All; all of a cluster, if one is named.
    All(Option<ClusterId>),
}

/// Forwards that run. Dropping it ends those that are not kept.
pub struct ForwardSession {
    /// The forwards.
    pub forwards: Vec<ForwardStatus>,
    lease: Option<LeaseClient>,
}

impl std::fmt::Debug for ForwardSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForwardSession").field("forwards", &self.forwards).finish_non_exhaustive()
    }
}

impl ForwardSession {
    /// Waits for the next connection that comes to nothing: of which forward, and why. `None` once all forwards were stopped;
    /// at once for those that are kept.
    ///
    /// # Errors
    /// The Host App has ended, and the forwards with it.
    pub fn trouble(&mut self) -> BoxFuture<'_, Result<Option<(SocketAddrV4, Trouble)>, HostError>> {
        Box::pin(async {
            let Some(lease) = &mut self.lease else { return Ok(None) };
            loop {
                match lease.next().await? {
                    Some(Said::Trouble { local, trouble }) => return Ok(Some((local, trouble))),
                    Some(Said::Forwards(_)) => {}
                    None => return Ok(None),
                }
            }
        })
    }
}

/// The running Host App.
fn running(settings: &Settings) -> Result<HostClient, HostError> {
    HostClient::discover(&settings.home)?.ok_or_else(|| {
        HostError::new(Class::Unreachable, "forwards are held by the Host App, and none runs")
            .with_hint("start it: guildnet up (or guildnet serve, in another terminal)")
    })
}

/// See [`crate::forward`].
pub(crate) async fn forward(settings: &Settings, request: &ForwardRequest) -> Result<ForwardSession, HostError> {
    let host = running(settings)?;
    if request.keep {
        let forwards = host.keep_forwards(&request.cluster, &request.forwards).await?;
        return Ok(ForwardSession { forwards, lease: None });
    }
    let (forwards, lease) = host.lease_forwards(&request.cluster, &request.forwards).await?;
    Ok(ForwardSession { forwards, lease: Some(lease) })
}

/// See [`crate::forward_list`].
pub(crate) async fn forward_list(settings: &Settings) -> Result<Vec<ForwardStatus>, HostError> {
    running(settings)?.forwards().await
}

/// See [`crate::forward_stop`].
pub(crate) async fn forward_stop(settings: &Settings, which: &ForwardStop) -> Result<Vec<ForwardStatus>, HostError> {
    let host = running(settings)?;
    let ids = match which {
        ForwardStop::These(ids) => ids.clone(),
        ForwardStop::All(of) => {
            let all = host.forwards().await?.into_iter();
            all.filter(|f| of.as_ref().is_none_or(|of| f.cluster == *of)).map(|f| f.id).collect()
        }
    };
    let mut stopped = Vec::new();
    for id in ids {
        match host.stop_forward(&id).await {
            Ok(status) => stopped.push(status),
            // Of all, one may have ended by itself meanwhile.
            Err(why) if why.class() == Class::NotFound && matches!(which, ForwardStop::All(_)) => {}
            Err(why) => return Err(why),
        }
    }
    Ok(stopped)
}

/// How a cluster's proxies are to be. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxiesRequest {
    /// On or off.
    pub on: Option<bool>,
    /// The SOCKS5 proxy's port.
    pub socks_port: Option<NonZeroU16>,
    /// The CONNECT proxy's port.
    pub http_port: Option<NonZeroU16>,
}

/// How a cluster's proxies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxiesSet {
    /// Where SOCKS5 and where CONNECT is spoken, if they are on.
    pub on: Option<(SocketAddrV4, SocketAddrV4)>,
    /// Whether a Host App runs, which has followed.
    pub served: bool,
}

/// What a client of a cluster's proxies needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxiesAccess {
    /// Whether they are on.
    pub enabled: bool,
    /// Where SOCKS5 is spoken.
    pub socks: SocketAddrV4,
    /// Where CONNECT is spoken.
    pub http: SocketAddrV4,
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret<String>,
}

/// What leads into clusters, as the store has it.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// Each cluster's own loopback address.
    pub(crate) addresses: BTreeMap<ClusterId, Ipv4Addr>,
    proxies: Vec<ProxiesRecord>,
}

impl Ways {
    /// Reads the store if there is one; makes none.
    pub(crate) async fn read(settings: &Settings) -> Result<Self, HostError> {
        let Some(store) = fleet::open_existing(settings).await? else { return Ok(Self::default()) };
        let read = Self::of(&store).await;
        store.close().await;
        read
    }

    /// The same of a store that is open.
    pub(crate) async fn of(store: &Store) -> Result<Self, HostError> {
        Ok(Self { addresses: store.loopbacks().await.explained()?, proxies: store.proxies().await.explained()? })
    }

    /// The proxies of a cluster, if they are on: SOCKS5 and CONNECT.
    pub(crate) fn proxies_on(&self, cluster: &ClusterId) -> Option<(SocketAddrV4, SocketAddrV4)> {
        let record = self.proxies.iter().find(|p| p.cluster == *cluster && p.enabled)?;
        let own = *self.addresses.get(cluster)?;
        Some((SocketAddrV4::new(own, record.socks_port), SocketAddrV4::new(own, record.http_port)))
    }
}

/// What a cluster's own address and record say together.
struct Proxies {
    own: Ipv4Addr,
    record: Option<ProxiesRecord>,
}

async fn proxies_of(store: &Store, id: &ClusterId) -> Result<Proxies, HostError> {
    let known = store.ids().await.explained()?;
    if !known.contains(id) {
        return Err(HostError::unknown_cluster(id, &known));
    }
    let Ways { addresses, proxies } = Ways::of(store).await?;
    let none = || HostError::new(Class::Failed, "it has no loopback address").of_cluster(id);
    let own = addresses.get(id).copied().ok_or_else(none)?;
    Ok(Proxies { own, record: proxies.into_iter().find(|p| p.cluster == *id) })
}

/// Opens the store for a change of one cluster's proxies, and closes it again.
async fn changing<T>(
    settings: &Settings,
    id: &ClusterId,
    change: impl AsyncFnOnce(&Store) -> Result<T, HostError>,
) -> Result<T, HostError> {
    let Some(store) = fleet::open_existing(settings).await? else { return Err(HostError::unknown_cluster(id, &[])) };
    let done = change(&store).await;
    store.close().await;
    done
}

async fn put(store: &Store, record: &ProxiesRecord) -> Result<(), HostError> {
    match store.put_proxies(record).await.explained_of(&record.cluster)? {
        true => Ok(()),
        false => Err(HostError::unknown_cluster(&record.cluster, &[])),
    }
}

/// Sets a cluster's proxies in the store. `true`: it was not so before. Their password is made when anything is first set.
///
/// # Errors
/// There is no cluster of that id; both are to have one port; the store can't be read or written. Nothing is changed then.
pub(crate) async fn set_proxies(store: &Store, id: &ClusterId, request: ProxiesRequest) -> Result<bool, HostError> {
    let before = match proxies_of(store, id).await?.record {
        Some(record) => record,
        None => ProxiesRecord {
            cluster: id.clone(),
            enabled: false,
            socks_port: SOCKS_PORT,
            http_port: HTTP_PORT,
            password: credential::make_password()?,
        },
    };
    let wanted = ProxiesRecord {
        enabled: request.on.unwrap_or(before.enabled),
        socks_port: request.socks_port.map_or(before.socks_port, NonZeroU16::get),
        http_port: request.http_port.map_or(before.http_port, NonZeroU16::get),
        ..before.clone()
    };
    if wanted.socks_port == wanted.http_port {
        let said = format!("SOCKS5 and CONNECT can't both have port {}", wanted.http_port);
        return Err(HostError::new(Class::Usage, said).with_hint("give each a port (--socks-port, --http-port)"));
    }
    let changed = wanted != before;
    if changed {
        put(store, &wanted).await?;
    }
    Ok(changed)
}

/// See [`crate::cluster_set_proxies`].
pub(crate) async fn cluster_set_proxies(
    settings: &Settings,
    id: &ClusterId,
    request: ProxiesRequest,
    progress: &dyn Progress,
) -> Result<ProxiesSet, HostError> {
    let Some(host) = HostClient::discover(&settings.home)? else {
        return changing(settings, id, async |store| {
            set_proxies(store, id, request).await?;
            Ok(ProxiesSet { on: Ways::of(store).await?.proxies_on(id), served: false })
        })
        .await;
    };
    host.change(id, &request.into()).await?;
    let now = host.proxies(id).await?;
    progress.step(Some(id), if now.enabled { "proxies on" } else { "proxies off" });
    let silent = [&now.socks, &now.http].into_iter().flatten().find(|proxy| !proxy.traffic.listening);
    if let Some(proxy) = silent {
        let why = proxy.traffic.last_error.as_ref();
        let why = why.map_or_else(|| format!("{} is not there", proxy.address), |t| t.why.clone());
        return Err(HostError::new(Class::Conflict, format!("{why}; it is tried again until then"))
            .with_hint(format!("take another port: guildnet cluster set {id} --socks-port N --http-port N"))
            .of_cluster(id));
    }
    Ok(ProxiesSet { on: now.socks.zip(now.http).map(|(socks, http)| (socks.address, http.address)), served: true })
}

/// See [`crate::cluster_proxies`].
pub(crate) async fn cluster_proxies(
    settings: &Settings,
    id: &ClusterId,
    renew: bool,
) -> Result<ProxiesAccess, HostError> {
    let access = changing(settings, id, async |store| {
        let Proxies { own, record } = proxies_of(store, id).await?;
        let mut record = record.ok_or_else(|| {
            HostError::new(Class::NotFound, "its proxies were never switched on")
                .with_hint(format!("guildnet cluster set {id} --proxies on"))
                .of_cluster(id)
        })?;
        if renew {
            record.password = credential::make_password()?;
            put(store, &record).await?;
        }
        Ok(ProxiesAccess {
            enabled: record.enabled,
            socks: SocketAddrV4::new(own, record.socks_port),
            http: SocketAddrV4::new(own, record.http_port),
            user: id.to_string(),
            password: record.password,
        })
    })
    .await?;
    if renew && let Some(host) = HostClient::discover(&settings.home)? {
        host.reload().await?;
    }
    Ok(access)
}
