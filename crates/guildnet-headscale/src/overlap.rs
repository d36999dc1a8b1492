//! Networks of a cluster that other people's nodes on the same server have too: found, and said in words. Pure.

use guildnet_model::ClusterId;
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::{
    Node, PolicyInput, ServerFeatures,
    policy::{of_others, overlap},
};

/// A route of somebody else's node that overlaps a network of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteOverlap {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its network.
    pub network: Ipv4Net,
    /// The other node.
    pub node: String,
    /// Its route.
    pub route: IpNet,
    /// Whether it may serve the route; otherwise it only advertises it.
    pub approved: bool,
}

/// Routes of nodes that carry none of our tags and overlap these clusters' networks. Default routes are no overlap: an
/// exit node serves what nobody else does.
pub fn overlaps(nodes: &[Node], clusters: &[PolicyInput]) -> Vec<RouteOverlap> {
    let mut found = Vec::new();
    for cluster in clusters {
        for network in cluster.routes.as_slice() {
            for node in of_others(nodes) {
                let mut routes: Vec<IpNet> = [&node.approved_routes[..], &node.available_routes[..]].concat();
                routes.sort();
                routes.dedup();
                let ours = |route: &IpNet| route.prefix_len() > 0 && overlap(*route, IpNet::V4(*network));
                found.extend(routes.into_iter().filter(ours).map(|route| RouteOverlap {
                    cluster: cluster.cluster.clone(),
                    network: *network,
                    node: node.name.clone(),
                    route,
                    approved: node.approved_routes.contains(&route),
                }));
            }
        }
    }
    found
}

impl RouteOverlap {
    /// What was found and what follows from it, for a person.
    pub fn in_words(&self, server: ServerFeatures) -> String {
        let Self { network, node, route, approved, .. } = self;
        let held = if *approved { "serves" } else { "advertises, unapproved," };
        let same = if *route == IpNet::V4(*network) { "too".to_owned() } else { format!("({route})") };
        let follows = match (server.via_grants, approved) {
            (true, true) if *route == IpNet::V4(*network) => {
                "the cluster is reached through its own router all the same; but Headscale elects one router of an equal \
                 network for everybody else, so clients of that node may lose it when the node was offline: different networks avoid that"
            }
            (true, _) => "the cluster is reached through its own router all the same",
            (false, true) => {
                "this server can't tell them apart, so the cluster is reached by 4via6 (slower on lossy links) and the other node keeps \
                 its route; Headscale 0.29 or later needs no 4via6"
            }
            (false, false) => {
                "nothing follows unless that route is approved; then the cluster is reached by 4via6 only"
            }
        };
        format!("node {node}, which is not GuildNet's, {held} {network} {same}: {follows}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::listed as node;

    fn cluster() -> [PolicyInput; 1] {
        [PolicyInput {
            cluster: "a".parse().expect("an id"),
            routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
            site: None,
        }]
    }

    #[test]
    fn only_routes_of_nodes_that_are_not_ours_count() {
        let nodes = [
            node("office", "tag:office", &["10.96.0.0/16", "192.168.1.0/24"], &["10.96.0.0/16"]),
            node("wide", "tag:office", &["10.0.0.0/8"], &[]),
            node("exit", "tag:exit", &["0.0.0.0/0", "::/0"], &["0.0.0.0/0", "::/0"]),
            node("ours", "tag:gn-b-router", &["10.96.0.0/16"], &["10.96.0.0/16"]),
        ];
        let found = overlaps(&nodes, &cluster());
        let short: Vec<String> =
            found.iter().map(|o| format!("{} {} {} {}", o.node, o.network, o.route, o.approved)).collect();
        assert_eq!(
            short,
            [
                "office 10.96.0.0/16 10.96.0.0/16 true",
                "wide 10.96.0.0/16 10.0.0.0/8 false",
                "wide 10.244.0.0/16 10.0.0.0/8 false"
            ]
        );
    }

    #[test]
    fn the_words_name_the_node_and_what_follows() {
        let said = |approved: &[&str], server| {
            overlaps(&[node("office", "tag:office", &["10.96.0.0/16"], approved)], &cluster())[0].in_words(server)
        };
        let approved = ["10.96.0.0/16"];
        let new = said(&approved, ServerFeatures::CURRENT);
        assert!(new.starts_with("node office, which is not GuildNet's, serves 10.96.0.0/16 too: "), "{new}");
        assert!(new.contains("its own router"), "{new}");
        assert!(said(&approved, ServerFeatures::BEFORE_029).contains("4via6"));
        assert!(
            said(&[], ServerFeatures::BEFORE_029).contains("advertises, unapproved, 10.96.0.0/16 too: nothing follows")
        );
    }
}
