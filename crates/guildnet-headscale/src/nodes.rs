//! The nodes of the server, and what they are to a cluster. Judged by tag: a tagged node belongs to no namespace.

use std::net::IpAddr;

use guildnet_model::{ClusterId, Networks, SiteNumber, via6};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// A node, as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The server's number for it.
    pub id: u64,
    /// Its name in the tailnet.
    pub name: String,
    /// The node key, as `nodekey:<hex>`.
    pub node_key: String,
    /// The user that it belongs to, by name. A tagged node belongs to none, whatever stands here.
    pub user: Option<String>,
    /// The tags it carries.
    pub tags: Vec<String>,
    /// Its addresses in the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Whether it is connected to the server now.
    pub online: bool,
    /// When it was last connected.
    pub last_seen: Option<Timestamp>,
    /// When its key expires, if it does.
    pub expires: Option<Timestamp>,
    /// Routes that it advertises.
    pub available_routes: Vec<IpNet>,
    /// Routes that it may serve.
    pub approved_routes: Vec<IpNet>,
    /// Routes for which the server elected it. With `via` grants each client's own network map decides, not this.
    pub elected_routes: Vec<IpNet>,
}

impl Node {
    /// Whether its key has expired.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }
}

/// The nodes that are routers of the cluster.
pub fn routers_of<'a>(nodes: &'a [Node], cluster: &ClusterId) -> Vec<&'a Node> {
    let tag = cluster.router_tag();
    nodes.iter().filter(|n| n.has_tag(&tag)).collect()
}

/// The nodes that are connectors of the cluster, of all devices.
pub fn clients_of<'a>(nodes: &'a [Node], cluster: &ClusterId) -> Vec<&'a Node> {
    let tag = cluster.client_tag();
    nodes.iter().filter(|n| n.has_tag(&tag)).collect()
}

/// A router that was disconnected for so long does not come back by itself: a pod that is replaced is connected again within
/// 10 s, and the server notices a lost connection with its next keep-alive, 59 s later at most.
const DEAD_AFTER: SignedDuration = SignedDuration::from_mins(2);

/// Routers of the cluster whose Kubernetes node is gone, or which have joined anew as another node: disconnected for more than
/// two minutes although all `wanted` routers, one for each Kubernetes node, are connected. Those not named as GuildNet names
/// them (`hostname-NODE`) are somebody else's.
pub fn dead_routers<'a>(
    nodes: &'a [Node],
    cluster: &ClusterId,
    hostname: &str,
    wanted: u32,
    now: Timestamp,
) -> Vec<&'a Node> {
    let own = |n: &&Node| n.name.strip_prefix(hostname).is_some_and(|rest| rest.starts_with('-'));
    let routers: Vec<&Node> = routers_of(nodes, cluster).into_iter().filter(own).collect();
    let connected = routers.iter().filter(|n| n.online).count();
    if wanted == 0 || u32::try_from(connected).unwrap_or(u32::MAX) < wanted {
        return Vec::new();
    }
    let long_gone = |n: &&Node| !n.online && n.last_seen.is_some_and(|seen| now.duration_since(seen) > DEAD_AFTER);
    routers.into_iter().filter(long_gone).collect()
}

/// The Kubernetes nodes, of `hosts`, whose router the server does not list as connected: `hostname-NODE`, where the server may add
/// to a name that was taken. None if as many are connected as there are hosts, whatever their names.
pub fn unseen_routers(nodes: &[Node], cluster: &ClusterId, hostname: &str, hosts: &[String]) -> Vec<String> {
    let online: Vec<&str> =
        routers_of(nodes, cluster).into_iter().filter(|n| n.online).map(|n| n.name.as_str()).collect();
    if online.len() >= hosts.len() {
        return Vec::new();
    }
    let seen = |host: &str| {
        // A host name becomes a DNS label: what is no letter or digit is a dash, and 63 characters are kept.
        let label = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = format!("{hostname}-{host}").chars().map(label).take(63).collect();
        online.iter().filter_map(|n| n.strip_prefix(&name)).any(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    hosts.iter().filter(|host| !seen(host)).cloned().collect()
}

/// Who advertises one of a cluster's networks, and who may serve it. Names are those of the cluster's own routers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// The network, plain or in its 4via6 form.
    pub network: IpNet,
    /// Routers that advertise it.
    pub advertised_by: Vec<String>,
    /// Routers that may serve it.
    pub approved_for: Vec<String>,
    /// Of these, the ones that advertise it and are online.
    pub served_by: Vec<String>,
    /// Whom the server elected, if it is one of the cluster's own routers.
    pub elected: Option<String>,
}

/// Each of the cluster's networks and, with a site number, its 4via6 form: by whom it is advertised, approved, served.
pub fn routes_of(nodes: &[Node], cluster: &ClusterId, networks: &Networks, site: Option<SiteNumber>) -> Vec<RouteView> {
    let routers = routers_of(nodes, cluster);
    let plain = networks.as_slice().iter().map(|n| IpNet::V4(*n));
    let via6 = site.into_iter().flat_map(|s| networks.as_slice().iter().map(move |n| IpNet::V6(via6::prefix(s, *n))));
    let view = |network: IpNet| {
        let names = |holds: &dyn Fn(&Node) -> bool| -> Vec<String> {
            routers.iter().filter(|n| holds(n)).map(|n| n.name.clone()).collect()
        };
        RouteView {
            network,
            advertised_by: names(&|n| n.available_routes.contains(&network)),
            approved_for: names(&|n| n.approved_routes.contains(&network)),
            served_by: names(&|n| {
                n.online && n.available_routes.contains(&network) && n.approved_routes.contains(&network)
            }),
            elected: names(&|n| n.elected_routes.contains(&network)).into_iter().next(),
        }
    };
    plain.chain(via6).map(view).collect()
}

/// What to approve for a router so that every route it advertises and may have is approved: the whole list, for
/// [`Headscale::approve_routes`](crate::Headscale::approve_routes); `None` if nothing is missing.
pub fn routes_to_approve(router: &Node, allowed: &[IpNet]) -> Option<Vec<IpNet>> {
    let missing = |r: &&IpNet| allowed.contains(r) && !router.approved_routes.contains(r);
    let new: Vec<IpNet> = router.available_routes.iter().filter(missing).copied().collect();
    if new.is_empty() {
        return None;
    }
    let mut all = router.approved_routes.clone();
    all.extend(new);
    all.sort();
    all.dedup();
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    fn id(text: &str) -> ClusterId {
        text.parse().expect("an id")
    }

    fn node(name: &str, tag: &str, available: &[&str], approved: &[&str], online: bool) -> Node {
        Node { online, ..fake::listed(name, tag, available, approved) }
    }

    #[test]
    fn nodes_are_told_apart_by_tag() {
        let nodes = [
            node("ra", "tag:gn-a-router", &[], &[], true),
            node("ca", "tag:gn-a-client", &[], &[], true),
            node("rb", "tag:gn-b-router", &[], &[], true),
            node("rx", "tag:gn-a-router-x", &[], &[], true),
        ];
        let names = |list: Vec<&Node>| list.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(routers_of(&nodes, &id("a"))), ["ra"]);
        assert_eq!(names(clients_of(&nodes, &id("a"))), ["ca"]);
        assert!(clients_of(&nodes, &id("b")).is_empty());
    }

    #[test]
    fn a_router_is_dead_only_if_all_that_are_wanted_are_there_without_it() {
        let now: Timestamp = "2026-11-25T12:00:00Z".parse().expect("a time");
        let seen = |minutes: i64| Some(now - SignedDuration::from_mins(minutes));
        let of = |name: &str, online, last_seen| Node { last_seen, ..node(name, "tag:gn-a-router", &[], &[], online) };
        let nodes = [
            of("gn-a-router-n1", true, seen(0)),
            of("gn-a-router-n2", false, seen(10)),
            of("gn-a-router-n3", false, seen(1)),
            of("gn-a-router-n4", false, None),
            of("by-hand", false, seen(10)),
        ];
        let dead = |wanted| {
            let found = dead_routers(&nodes, &id("a"), "gn-a-router", wanted, now);
            found.iter().map(|n| n.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(dead(1), ["gn-a-router-n2"]);
        assert!(dead(2).is_empty(), "a Kubernetes node may just be down");
        assert!(dead(0).is_empty());
    }

    #[test]
    fn a_router_that_the_server_does_not_list_as_connected_is_told_by_its_host() {
        let of = |name: &str, online| node(name, "tag:gn-a-router", &[], &[], online);
        let nodes = [of("gn-a-router-n1-x7k", true), of("gn-a-router-n2", false), of("gn-a-router-n-3", true)];
        let unseen = |hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
            unseen_routers(&nodes, &id("a"), "gn-a-router", &hosts)
        };
        assert_eq!(unseen(&["n1", "n2", "N.3"]), ["n2"]);
        assert!(unseen(&["x", "y"]).is_empty(), "as many are connected as there are hosts");
    }

    #[test]
    fn served_needs_online_advertised_and_approved() {
        let nodes = [
            node("up", "tag:gn-a-router", &["10.96.0.0/16"], &["10.96.0.0/16"], true),
            node("down", "tag:gn-a-router", &["10.96.0.0/16"], &["10.96.0.0/16"], false),
            node("not-approved", "tag:gn-a-router", &["10.96.0.0/16"], &[], true),
            node("other", "tag:gn-b-router", &["10.96.0.0/16"], &["10.96.0.0/16"], true),
        ];
        let routes = routes_of(&nodes, &id("a"), &"10.96.0.0/16".parse().expect("nets"), None);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].served_by, ["up"]);
        assert_eq!(routes[0].approved_for, ["up", "down"]);
        assert_eq!(routes[0].advertised_by, ["up", "down", "not-approved"]);
    }

    #[test]
    fn only_advertised_and_allowed_routes_are_approved_and_approved_ones_stay() {
        let router = node("r", "tag:gn-a-router", &["10.96.0.0/16", "0.0.0.0/0"], &["192.168.1.0/24"], true);
        let allowed = [net("10.96.0.0/16"), net("10.244.0.0/16")];
        assert_eq!(routes_to_approve(&router, &allowed), Some(vec![net("10.96.0.0/16"), net("192.168.1.0/24")]));
        let done = node("r", "tag:gn-a-router", &["10.96.0.0/16"], &["10.96.0.0/16"], true);
        assert_eq!(routes_to_approve(&done, &allowed), None);
    }
}
