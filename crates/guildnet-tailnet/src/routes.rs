//! Which peer carries a dial, and at which inner address. Pure.
//!
//! Three filters, all of which must pass: the target lies in the cluster's own networks, the peer is tagged as this
//! cluster's router, and a router of the cluster serves the network in the map. Everything else that a map may offer
//! (other peers, other networks, default routes) does not exist for a connector, but is told.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use guildnet_model::{ClusterId, Networks, SiteNumber, via6};
use ipnet::{IpNet, Ipv4Net};

use crate::netmap::{Key, NetMap, Peer};

/// Routers that serve nothing in the map but are kept ready: a cluster has one on each of its nodes, and a path to each would
/// be asked for a sign of life twice a minute.
const STANDBYS: usize = 2;

/// Ignored networks that are told in the log before it has had enough of them.
const TOLD: usize = 256;

/// A router of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Router {
    pub(crate) key: Key,
    pub(crate) online: bool,
    /// Which of the cluster's IPv4 networks it serves in the map, plainly.
    pub(crate) plain: Vec<Ipv4Net>,
    /// Which it serves in the 4via6 form of the cluster's site, as IPv4 networks.
    pub(crate) via6: Vec<Ipv4Net>,
}

/// The routers of one cluster and what they serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    site: Option<SiteNumber>,
    routers: Vec<Router>,
}

/// What the chooser needs to know of a router beside the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Liveness {
    /// Something came from it a moment ago: whatever the map says, it is there.
    pub(crate) heard: bool,
    /// Its direct path is trusted.
    pub(crate) direct: bool,
    /// It has lately failed to bring an answer.
    pub(crate) doubted: bool,
    /// Round trip of its direct path.
    pub(crate) rtt: Option<Duration>,
}

/// Who carries a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) router: Key,
    pub(crate) inner: IpAddr,
}

/// Why nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unserved {
    /// No router of the cluster serves the address.
    NoRoute,
    /// One does, but no router of the cluster is connected.
    Offline,
}

/// Whether a peer is a router of the cluster.
pub(crate) fn is_trusted(peer: &Peer, cluster: &ClusterId) -> bool {
    peer.tags.contains(&cluster.router_tag())
}

/// What a map may offer a connector: its cluster's networks, by its cluster's routers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance<'a> {
    pub(crate) cluster: &'a ClusterId,
    pub(crate) networks: &'a Networks,
    pub(crate) site: Option<SiteNumber>,
}

impl Allowance<'_> {
    fn inside(&self, net: Ipv4Net) -> bool {
        self.networks.as_slice().iter().any(|n| n.contains(&net) || net.contains(n))
    }

    /// A network of the cluster.
    fn plain(&self, net: &IpNet) -> Option<Ipv4Net> {
        match net {
            IpNet::V4(net) if net.prefix_len() > 0 && self.inside(*net) => Some(*net),
            _ => None,
        }
    }

    /// A network of the cluster in the 4via6 form of its site.
    fn via6(&self, net: &IpNet) -> Option<Ipv4Net> {
        match net {
            IpNet::V6(net) if net.prefix_len() >= 96 => {
                let (of, ip) = via6::parse(net.network())?;
                let net = Ipv4Net::new(ip, net.prefix_len() - 96).ok()?;
                (Some(of) == self.site && self.inside(net)).then_some(net)
            }
            _ => None,
        }
    }

    /// What the map offers by a peer and is not used: default routes, other networks than the cluster's, and whatever a peer
    /// offers that is not tagged as this cluster's router.
    pub(crate) fn ignored(&self, peer: &Peer) -> Vec<IpNet> {
        let trusted = is_trusted(peer, self.cluster);
        peer.served().filter(|net| !trusted || (self.plain(net).is_none() && self.via6(net).is_none())).collect()
    }
}

/// Networks that were told to be ignored, each once; some hundreds at most, as the server decides how many there are.
#[derive(Debug, Default)]
pub(crate) struct Told(HashSet<(u64, IpNet)>);

impl Told {
    /// Those of the peer's ignored networks that were not told yet.
    pub(crate) fn news(&mut self, peer: &Peer, ignored: Vec<IpNet>) -> Vec<IpNet> {
        let mut is_new = |net: &IpNet| self.0.len() < TOLD && self.0.insert((peer.id, *net));
        ignored.into_iter().filter(|net| is_new(net)).collect()
    }
}

impl Routes {
    /// What the map says about the cluster's routers, reduced to the cluster's networks.
    pub(crate) fn new(map: &NetMap, allowance: &Allowance<'_>) -> Self {
        let router = |peer: &Peer| Router {
            key: peer.node_key,
            online: peer.online != Some(false),
            plain: peer.allowed.iter().filter_map(|net| allowance.plain(net)).collect(),
            via6: peer.allowed.iter().filter_map(|net| allowance.via6(net)).collect(),
        };
        let trusted = map.peers.values().filter(|peer| is_trusted(peer, allowance.cluster));
        Self { site: allowance.site, routers: trusted.map(|peer| router(peer)).collect() }
    }

    /// The cluster's routers.
    pub(crate) fn routers(&self) -> &[Router] {
        &self.routers
    }

    /// The routers to which a path and a session are kept ready: those that serve one of the cluster's networks, and some
    /// that would take over.
    pub(crate) fn warm(&self) -> impl Iterator<Item = Key> {
        let serves = |router: &&Router| !router.plain.is_empty() || !router.via6.is_empty();
        let standby = self.routers.iter().filter(|_| self.any_served()).filter(move |r| r.online && !serves(r));
        self.routers.iter().filter(serves).chain(standby.take(STANDBYS)).map(|router| router.key)
    }

    /// Whether some router serves at least one of the cluster's networks.
    pub(crate) fn any_served(&self) -> bool {
        self.routers.iter().any(|r| !r.plain.is_empty() || !r.via6.is_empty())
    }

    /// Who may carry a dial to `target`, the best first, at least one: plain IPv4 if a router of the cluster serves that,
    /// else 4via6.
    ///
    /// The server elects one router for a network and does not always move it when that one dies, but every router of the
    /// cluster forwards to the cluster's networks. So whoever is there may carry it: one that is not doubted, then one with
    /// a direct path, then the elected one, then the nearest; the lowest key among equals, so that dials agree.
    pub(crate) fn choose(&self, target: Ipv4Addr, liveness: impl Fn(Key) -> Liveness) -> Result<Vec<Choice>, Unserved> {
        let serves = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&target));
        let site = self.site.filter(|_| self.routers.iter().any(|r| serves(&r.via6)));
        let (is_elected, inner): (&dyn Fn(&Router) -> bool, IpAddr) = if self.routers.iter().any(|r| serves(&r.plain)) {
            (&|r| serves(&r.plain), target.into())
        } else if let Some(site) = site {
            (&|r| serves(&r.via6), via6::address(site, target).into())
        } else {
            return Err(Unserved::NoRoute);
        };
        let rank = |router: &Router| {
            let live = liveness(router.key);
            let rtt = live.rtt.unwrap_or(Duration::MAX);
            let rank = (live.doubted, !live.direct, !is_elected(router), rtt, router.key);
            (router.online || live.heard).then_some(rank)
        };
        let mut ranked: Vec<_> = self.routers.iter().filter_map(rank).collect();
        ranked.sort_unstable();
        if ranked.is_empty() {
            return Err(Unserved::Offline);
        }
        Ok(ranked.into_iter().map(|(.., router)| Choice { router, inner }).collect())
    }

    /// Whether a flow to `inner` may go on through the router: it is still one of the cluster's, and the network is still
    /// served by one of them.
    pub(crate) fn may_carry(&self, router: Key, inner: IpAddr) -> bool {
        let known = self.routers.iter().any(|r| r.key == router);
        let served = |of: &dyn Fn(&Router) -> &[Ipv4Net], ip: Ipv4Addr| {
            self.routers.iter().any(|r| of(r).iter().any(|net| net.contains(&ip)))
        };
        known
            && match inner {
                IpAddr::V4(ip) => served(&|r| &r.plain, ip),
                IpAddr::V6(ip) => {
                    via6::parse(ip).is_some_and(|(site, ip)| Some(site) == self.site && served(&|r| &r.via6, ip))
                }
            }
    }
}

#[cfg(test)]
mod tests;
