//! What verify asks of a cluster's membership: namespace, keys, routers, routes, connector. Pure decisions over what was
//! observed on the Headscale server and in the connector's own network map.

use std::time::{Duration, SystemTime};

use guildnet_headscale::Node;
use guildnet_model::{
    ClusterId, ConnectorState, ConnectorStatus, Degraded, Networks, PathKind, PeerInfo, SiteNumber, via6,
};
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use url::Url;

use super::{Outcome, expiry};

/// A key that ends sooner than this is worth a warning: a week leaves time to act.
const NEAR_END: Duration = Duration::from_secs(7 * 24 * 3600);

/// How the server lists the connector's own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OwnNode {
    /// It is there.
    Listed {
        /// And whether its key has expired.
        expired: bool,
    },
    /// It is not there.
    Missing,
    /// Not asked: no API key, or the connector has no node yet.
    Unknown,
}

pub(super) fn namespace(cluster: &ClusterId, users: &[String]) -> Outcome {
    let name = cluster.namespace();
    if users.contains(&name) {
        Outcome::pass(format!("namespace {name} is there"))
    } else {
        Outcome::fail(
            format!("the server has no namespace {name}"),
            format!("guildnet up (or: guildnet headscale namespace {cluster})"),
        )
    }
}

pub(super) fn keys(cluster: &ClusterId, status: &ConnectorStatus, own: &OwnNode, now: SystemTime) -> Outcome {
    let mend = format!(
        "guildnet up (without a Headscale API key here: 'guildnet headscale namespace {cluster}' where there is one, then \
         'guildnet cluster add {cluster} --replace --from FILE')"
    );
    if let ConnectorState::NeedsKey { why } = &status.state {
        return Outcome::fail(format!("the server does not admit the connector: {why}"), mend);
    }
    match own {
        OwnNode::Missing => return Outcome::fail("the server no longer knows the connector's node", mend),
        OwnNode::Listed { expired: true } => return Outcome::fail("the connector's node key has expired", mend),
        OwnNode::Listed { expired: false } | OwnNode::Unknown => {}
    }
    let Some(node) = &status.node else {
        return Outcome::fail(format!("the connector is not registered yet: {}", status.state), mend);
    };
    match node.key_expiry.map(|end| end.duration_since(now)) {
        Some(Err(_)) => Outcome::fail(format!("the key of node {} has expired", node.name), mend),
        Some(Ok(left)) if left < NEAR_END => {
            let end = Timestamp::try_from(now + left).unwrap_or(Timestamp::MAX);
            let now = Timestamp::try_from(now).unwrap_or(end);
            Outcome::warn(
                format!("the key of node {} ends in {}", node.name, expiry::left(now, end)),
                format!("guildnet headscale keys rotate {cluster}"),
            )
        }
        _ => Outcome::pass(format!("registered as {}, key valid", node.name)),
    }
}

pub(super) fn routers_connected(cluster: &ClusterId, routers: &[&Node], now: Timestamp) -> Outcome {
    let mend = format!("guildnet router ensure {cluster}");
    let online: Vec<&str> =
        routers.iter().filter(|n| n.online && !n.is_expired(now)).map(|n| n.name.as_str()).collect();
    if !online.is_empty() {
        return Outcome::pass(format!("online: {}", online.join(", ")));
    }
    match routers {
        [] => Outcome::fail(format!("the server knows no node tagged {}", cluster.router_tag()), mend),
        some => {
            let told: Vec<String> = some.iter().map(|n| offline(n, now)).collect();
            Outcome::fail(told.join(", "), mend)
        }
    }
}

fn offline(node: &Node, now: Timestamp) -> String {
    let why = if node.is_expired(now) { "its key has expired" } else { "offline" };
    match node.last_seen {
        Some(when) => format!("{} is {why}, last seen {when}", node.name),
        None => format!("{} is {why}", node.name),
    }
}

/// Whether a list of routes holds the network, plainly or as the site's 4via6 network.
fn holds(routes: &[IpNet], net: Ipv4Net, site: Option<SiteNumber>) -> bool {
    routes.contains(&IpNet::V4(net)) || site.is_some_and(|s| routes.contains(&IpNet::V6(via6::prefix(s, net))))
}

fn missing(networks: &Networks, site: Option<SiteNumber>, routes: &[IpNet]) -> Vec<String> {
    networks.as_slice().iter().filter(|n| !holds(routes, **n, site)).map(ToString::to_string).collect()
}

pub(super) fn routes_approved(
    cluster: &ClusterId,
    networks: &Networks,
    site: Option<SiteNumber>,
    routers: &[&Node],
) -> Outcome {
    let mend = format!("guildnet router ensure {cluster}");
    // Any of the cluster's routers will do. An approval for one that is gone serves nobody, so those count only where none is
    // connected: that is another check's finding.
    let any_online = routers.iter().any(|r| r.online);
    let counted = routers.iter().filter(|r| r.online || !any_online);
    let lacking = counted.map(|r| (r, missing(networks, site, &r.approved_routes)));
    match lacking.min_by_key(|(router, lacks)| (lacks.len(), !router.online)) {
        None => Outcome::fail(format!("the server knows no node tagged {}", cluster.router_tag()), mend),
        Some((router, lacks)) if lacks.is_empty() => Outcome::pass(format!("{networks} approved for {}", router.name)),
        Some((router, lacks)) => Outcome::fail(format!("{} not approved for {}", lacks.join(", "), router.name), mend),
    }
}

/// `listed`: the server's nodes, where they can be asked for.
pub(super) fn routes_served(
    cluster: &ClusterId,
    networks: &Networks,
    site: Option<SiteNumber>,
    peers: &[PeerInfo],
    listed: Option<&[Node]>,
) -> Outcome {
    let mend = format!("guildnet router ensure {cluster}, then guildnet up");
    let own: Vec<&PeerInfo> = peers.iter().filter(|p| p.trusted).collect();
    if own.is_empty() {
        return Outcome::fail("the connector's network map names no router of this cluster", mend);
    }
    // Served by whom: a map may go on naming a router that is gone.
    let gone = |p: &PeerInfo| match listed {
        Some(nodes) if !nodes.iter().any(|n| n.node_key == p.node_key) => Some("which the server no longer lists"),
        _ => (p.online == Some(false)).then_some("which is offline"),
    };
    let (alive, dead): (Vec<&PeerInfo>, Vec<&PeerInfo>) = own.iter().copied().partition(|p| gone(p).is_none());
    let routes_of = |some: &[&PeerInfo]| some.iter().flat_map(|p| p.routes.iter().copied()).collect::<Vec<IpNet>>();
    let lacks = missing(networks, site, &routes_of(&alive));
    let names = |some: &[&PeerInfo]| some.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
    if lacks.is_empty() {
        return Outcome::pass(format!("{networks} served by {}", names(&alive)));
    }
    let by_dead = |p: &&&PeerInfo| {
        networks.as_slice().iter().any(|n| lacks.contains(&n.to_string()) && holds(&p.routes, *n, site))
    };
    if let Some(router) = dead.iter().find(by_dead) {
        let said = format!("{} assigned to {}, {}", lacks.join(", "), router.name, gone(router).unwrap_or_default());
        let mend = format!("guildnet router ensure {cluster}");
        return match alive.as_slice() {
            [] => Outcome::fail(said, mend),
            // The connector sends to any router of the cluster that is connected, whatever the server elected.
            some => Outcome::warn(format!("{said}; {} carries it meanwhile", names(some)), mend),
        };
    }
    let other = peers.iter().find(|p| !p.trusted && networks.as_slice().iter().any(|n| holds(&p.routes, *n, site)));
    let taken = other.map(|p| format!("; {} of another cluster has it instead", p.name)).unwrap_or_default();
    Outcome::fail(format!("{} not served by {}{taken}", lacks.join(", "), names(&own)), mend)
}

/// Whether the connector logs in where the checks ask. They part when the server's address changed on one side only.
pub(super) fn login_server(cluster: &ClusterId, own: &Url, server: Option<&Url>) -> Outcome {
    match server {
        Some(server) if server != own => Outcome::warn(
            format!("the connector logs in at {own}; the Headscale server is {server}"),
            format!(
                "guildnet up --headscale-url URL, with the address that holds; a cluster of another server: guildnet cluster \
                 add {cluster} --replace --login-server URL"
            ),
        ),
        _ => Outcome::pass(format!("it logs in at {own}")),
    }
}

pub(super) fn ready(cluster: &ClusterId, status: &ConnectorStatus) -> Outcome {
    let said = status.state.to_string();
    match &status.state {
        ConnectorState::Ready => Outcome::pass("ready"),
        ConnectorState::Degraded { why: Degraded::ControlDown { .. } } => {
            Outcome::warn(said, "start Headscale; the last network map is used meanwhile")
        }
        ConnectorState::Degraded { why: Degraded::RelayDown { .. } } => {
            Outcome::warn(said, "start the relay (Headscale's embedded DERP) or open the way to it")
        }
        ConnectorState::Degraded { why: Degraded::NoRouter { .. } } => {
            Outcome::fail(said, format!("guildnet router status {cluster}"))
        }
        ConnectorState::Degraded { why: Degraded::KeyExpiring { .. } } => {
            Outcome::warn(said, format!("guildnet headscale keys rotate {cluster}"))
        }
        ConnectorState::NeedsKey { .. } => Outcome::fail(said, "guildnet up"),
        ConnectorState::Starting
        | ConnectorState::Syncing
        | ConnectorState::Failed { .. }
        | ConnectorState::Stopped => {
            Outcome::fail(said, "look at host.log in GuildNet's folder, then run 'guildnet verify' again")
        }
    }
}

/// `peers`: after something was just sent to the router.
pub(super) fn path(peers: &[PeerInfo]) -> Outcome {
    let best = |kind| peers.iter().filter(|p| p.trusted).find(|p| p.path == kind);
    if let Some(peer) = best(PathKind::Direct) {
        let rtt = peer.rtt.map(|rtt| format!(", round trip {:.1} ms", rtt.as_secs_f64() * 1e3)).unwrap_or_default();
        return Outcome::pass(format!("direct to {}{rtt}", peer.name));
    }
    if let Some(peer) = best(PathKind::Relay) {
        return Outcome::warn(
            format!("through a relay to {}: it works, slowly", peer.name),
            "let UDP pass, out and back, at this device and at the cluster's nodes",
        );
    }
    Outcome::fail("nothing came back from the router on any path", "guildnet router status, and the router pod's log")
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
