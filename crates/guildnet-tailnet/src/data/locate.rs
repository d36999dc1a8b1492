//! Where this node can be reached by UDP: its interfaces' addresses, and what STUN servers see.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::{
    netmap::{NetMap, Relay},
    path,
    stun::{self, Answer, TransactionId},
    udp,
};

/// How often STUN servers are asked while there is traffic: below the 30 s after which many NATs forget a mapping. Source:
/// magicsock, `endpointsFreshEnoughDuration` and its 20 to 26 s re-STUN.
const INTERVAL: Duration = Duration::from_secs(24);
/// The same while there is none: just enough to notice that the machine has moved to another network.
const IDLE_INTERVAL: Duration = Duration::from_secs(300);
/// How long an answer is believed without another one.
const BELIEVED: Duration = Duration::from_secs(360);
/// An answer that takes longer than this is not waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// The least time between two rounds of requests.
const PAUSE: Duration = Duration::from_secs(1);
/// When a name that could not be looked up is tried again: a machine that has just woken has no names for a while.
const RESOLVE_AGAIN: Duration = Duration::from_secs(10);
/// Servers that are asked where they see us: two are enough to tell a hard NAT from others, three to survive the loss of one.
const MAX_SERVERS: usize = 3;
/// How often all are asked, for their distance: so a nearer relay than those three is found. Source: netcheck,
/// `fullReportInterval`.
const ALL_INTERVAL: Duration = Duration::from_secs(300);
/// Servers that are known. More than any map names that is meant well.
const MAX_KNOWN: usize = 64;

/// The STUN side of a relay.
pub(super) type Server = (u16, SocketAddr);
/// The same, before its name is looked up.
type Named = (u16, String, u16);

/// A request that was not answered yet.
struct Request {
    server: Server,
    at: Instant,
    /// Whether it is asked for our address, and not only for its distance.
    locates: bool,
}

/// What a look-up brought.
pub(super) struct Resolved {
    servers: Vec<Server>,
    failed: Vec<Named>,
}

/// What is known of this node's addresses.
pub(super) struct Locator {
    port: u16,
    local: Vec<Ipv4Addr>,
    /// Relays of the map, to see whether they changed.
    relays: Vec<Relay>,
    servers: Vec<Server>,
    pending: HashMap<TransactionId, Request>,
    /// By server: how it saw us, and when that was asked.
    seen: HashMap<SocketAddr, (SocketAddr, Instant)>,
    asked: Option<Instant>,
    asked_all: Option<Instant>,
    resolving: JoinSet<Resolved>,
    /// Servers whose names could not be looked up, and when that is tried again.
    unresolved: Option<(Instant, Vec<Named>)>,
}

impl Locator {
    pub(super) fn new(port: u16) -> Self {
        Self {
            port,
            local: udp::interface_addresses(),
            relays: Vec::new(),
            servers: Vec::new(),
            pending: HashMap::new(),
            seen: HashMap::new(),
            asked: None,
            asked_all: None,
            resolving: JoinSet::new(),
            unresolved: None,
        }
    }

    /// The relays of a new map: their STUN servers are looked up if they changed.
    pub(super) fn apply(&mut self, map: &NetMap) {
        if self.relays == map.relays {
            return;
        }
        self.relays.clone_from(&map.relays);
        self.servers.clear();
        self.unresolved = None;
        let mut unresolved = Vec::new();
        for relay in map.relays.iter().filter(|relay| relay.stun_port.is_some()).take(MAX_KNOWN) {
            let port = relay.stun_port.unwrap_or_default();
            let ip = relay.ipv4.or_else(|| relay.host.parse().ok());
            match ip {
                Some(ip) => self.servers.push((relay.region, SocketAddr::new(ip.into(), port))),
                // Looked up one after the other: few, so that those that have an answer need not wait for a silent resolver.
                None if unresolved.len() < MAX_SERVERS => unresolved.push((relay.region, relay.host.clone(), port)),
                None => {}
            }
        }
        (self.asked, self.asked_all) = (None, None);
        self.resolving.abort_all();
        if !unresolved.is_empty() {
            self.resolving.spawn(resolve(unresolved).in_current_span());
        }
    }

    /// Waits for servers whose names were looked up; forever if none are.
    pub(super) async fn resolved(&mut self) -> Resolved {
        loop {
            match self.resolving.join_next().await {
                Some(Ok(resolved)) => return resolved,
                // Aborted: a newer look-up is under way.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Adds servers whose names were looked up. The others are tried again after a while.
    pub(super) fn add_servers(&mut self, resolved: Resolved, now: Instant) {
        let Resolved { servers, failed } = resolved;
        if !servers.is_empty() {
            self.servers.extend(servers);
            (self.asked, self.asked_all) = (None, None);
        }
        self.unresolved = (!failed.is_empty()).then(|| (now + RESOLVE_AGAIN, failed));
    }

    /// Whether nobody was asked yet although there is somebody.
    pub(super) fn is_unasked(&self) -> bool {
        self.asked.is_none() && !self.servers.is_empty()
    }

    /// Whether what is known is of now, or nobody can tell.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.servers.is_empty() || self.asked.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL)
    }

    /// The machine has moved and the socket is another one: how we were seen before is void.
    pub(super) fn on_moved(&mut self, port: u16) {
        self.port = port;
        self.local = udp::interface_addresses();
        self.seen.clear();
        self.pending.clear();
        (self.asked, self.asked_all) = (None, None);
    }

    /// Reads the machine's own addresses again.
    pub(super) fn look(&mut self) {
        self.local = udp::interface_addresses();
    }

    /// Somebody beyond this machine's own network, if one is known.
    pub(super) fn somebody(&self) -> Option<SocketAddr> {
        self.servers.first().map(|(_, addr)| *addr)
    }

    /// Requests to send now: to the servers of the regions that come first in `near`, and now and then to all. The machine's
    /// own addresses are read again, too.
    pub(super) fn ask(&mut self, now: Instant, near: &[u16]) -> Vec<(SocketAddr, Vec<u8>)> {
        if let Some((_, names)) = self.unresolved.take_if(|(at, _)| *at <= now) {
            self.resolving.spawn(resolve(names).in_current_span());
        }
        if self.asked.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return Vec::new();
        }
        self.asked = Some(now);
        self.look();
        self.pending.retain(|_, request| now.saturating_duration_since(request.at) < ANSWER_LIMIT);
        self.seen.retain(|_, (_, at)| now.saturating_duration_since(*at) < BELIEVED);
        let mut servers = self.servers.clone();
        servers.sort_by_key(|(region, _)| near.iter().position(|other| other == region).unwrap_or(usize::MAX));
        if self.asked_all.is_some_and(|at| now.saturating_duration_since(at) < ALL_INTERVAL) {
            servers.truncate(MAX_SERVERS);
        } else {
            self.asked_all = Some(now);
        }
        let request = |(n, server): (usize, Server)| {
            let id: TransactionId = rand::random();
            self.pending.insert(id, Request { server, at: now, locates: n < MAX_SERVERS });
            (server.1, stun::request(id))
        };
        servers.into_iter().enumerate().map(request).collect()
    }

    /// Takes an answer. Returns the server's region and how long it took; `None` if we did not ask.
    pub(super) fn on_answer(&mut self, answer: Answer, now: Instant) -> Option<(u16, Duration)> {
        let Request { server: (region, server), at, locates } = self.pending.remove(&answer.id)?;
        if locates {
            // Answers of one round belong together: with older ones a NAT that has merely moved would look like a hard one.
            self.seen.retain(|_, (_, of)| *of == at);
            self.seen.insert(server, (answer.seen, at));
        }
        Some((region, now.saturating_duration_since(at)))
    }

    /// When servers should be asked again.
    pub(super) fn next_due(&self, active: bool) -> Option<Instant> {
        let interval = if active { INTERVAL } else { IDLE_INTERVAL };
        let ask = self.asked.filter(|_| !self.servers.is_empty()).map(|at| at + interval);
        let resolve = self.unresolved.as_ref().map(|(at, _)| *at);
        ask.into_iter().chain(resolve).min()
    }

    /// Where this node may be reached, the most likely first. If servers see different ports (a hard NAT), the seen address
    /// with our own port is named too: some NATs keep it where they can.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        let mut seen: Vec<SocketAddr> = self.seen.values().map(|(addr, _)| *addr).collect();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() > 1 {
            let guesses: Vec<_> = seen.iter().map(|addr| SocketAddr::new(addr.ip(), self.port)).collect();
            seen.extend(guesses);
        }
        let local = self.local.iter().map(|ip| SocketAddr::new(IpAddr::V4(*ip), self.port));
        let mut all: Vec<SocketAddr> = Vec::new();
        for addr in seen.into_iter().chain(local) {
            if path::is_usable(addr) && !all.contains(&addr) {
                all.push(addr);
            }
        }
        all
    }

    /// Ends look-ups that are under way.
    pub(super) async fn stop(&mut self) {
        self.resolving.shutdown().await;
    }
}

async fn resolve(names: Vec<Named>) -> Resolved {
    let (mut servers, mut failed) = (Vec::new(), Vec::new());
    for (region, host, port) in names {
        let found = tokio::net::lookup_host((host.as_str(), port)).await.map(Iterator::collect::<Vec<_>>);
        match found {
            Ok(addrs) => {
                servers.extend(addrs.into_iter().filter(SocketAddr::is_ipv4).take(1).map(|addr| (region, addr)))
            }
            Err(error) => {
                tracing::debug!(region, %error, "a STUN server's name can't be looked up");
                failed.push((region, host, port));
            }
        }
    }
    Resolved { servers, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(region: u16) -> Server {
        (region, SocketAddr::from(([192, 0, 2, 1], region)))
    }

    #[tokio::test]
    async fn of_relays_without_an_address_few_are_looked_up_and_of_the_others_all_are_known() {
        let relay = |region: u16| Relay {
            region,
            name: String::new(),
            // A label that is too long: refused without a question to any resolver.
            host: "x".repeat(64),
            port: 443,
            ipv4: (region > 9).then_some(Ipv4Addr::LOCALHOST),
            stun_port: Some(3478),
        };
        let info = guildnet_model::NodeInfo {
            name: "me".into(),
            id: 1,
            addresses: vec![],
            node_key: String::new(),
            tags: vec![],
            key_expiry: None,
        };
        let (node_key, allowed) = (crate::netmap::Key([1; 32]), vec![]);
        let self_node = crate::netmap::SelfNode { info, node_key, allowed, expired: false };
        let map = NetMap {
            self_node,
            peers: std::collections::BTreeMap::new(),
            relays: (1..=18).map(relay).collect(),
            filter: crate::filter::Filter::default(),
        };
        let mut locator = Locator::new(41641);
        locator.apply(&map);
        assert_eq!(locator.servers.len(), 9);
        assert_eq!(locator.resolved().await.failed.len(), MAX_SERVERS);
        locator.stop().await;
    }

    #[tokio::test]
    async fn all_servers_are_measured_now_and_then_and_three_are_asked_where_we_are() {
        let (mut locator, start) = (Locator::new(41641), Instant::now());
        locator.add_servers(Resolved { servers: (1..=9).map(server).collect(), failed: vec![] }, start);
        let near = [7, 2, 9, 1];
        let mut round = |seconds| {
            let now = start + Duration::from_secs(seconds);
            let asked = locator.ask(now, &near);
            // Each sees us at another port.
            let ids: Vec<_> = locator.pending.iter().map(|(id, request)| (*id, request.server.0)).collect();
            for (id, region) in ids {
                let seen = SocketAddr::from(([198, 51, 100, 1], region));
                assert_eq!(locator.on_answer(Answer { id, seen }, now), Some((region, Duration::ZERO)));
            }
            let mut seen: Vec<u16> = locator.seen.values().map(|(addr, _)| addr.port()).collect();
            seen.sort_unstable();
            (asked.len(), seen)
        };
        assert_eq!(round(0), (9, vec![2, 7, 9]));
        assert_eq!(round(24), (3, vec![2, 7, 9]));
        assert_eq!(round(299), (3, vec![2, 7, 9]));
        assert_eq!(round(301), (9, vec![2, 7, 9]));
    }
}
