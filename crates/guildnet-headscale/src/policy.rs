//! The policy that keeps clusters apart. Pure: clusters and the server's features in, a document out.
//!
//! Default deny; per cluster two tags, and rules that let a client reach its own cluster's routers and, through them, its
//! own cluster's networks. Two forms, by what the server can do:
//! - grants with `via` (Headscale 0.29 and later): equal networks are told apart by the router that a client is sent to;
//! - ACLs and 4via6 (before): equal networks are told apart by their 4via6 prefixes, and a plain network is approved only
//!   where it overlaps no other cluster's, because the server elects one router per prefix for everybody.
//!
//! How our part of a document is recognised: `policy/ours.rs`. How it is fitted into what the server holds:
//! `policy/plan.rs`. What others have among themselves: `policy/others.rs`. Writing it: `apply.rs`.

mod diff;
mod document;
mod hujson;
mod others;
mod ours;
mod plan;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use guildnet_model::{Class, ClusterId, Explain, Networks, SiteNumber, via6};
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::ServerFeatures;

pub use document::same_policy;
pub use others::{CutOff, cut_off};
pub(crate) use others::{of_others, overlap, some_of};
pub(crate) use plan::with_tests;
pub use plan::{PolicyPlan, PolicyRequest, PolicyVerdict, judge, known_clusters, plan, policy_diff};

/// A cluster, as far as the policy is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInput {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its networks.
    pub routes: Networks,
    /// Its site number; needed only where equal networks must be told apart by 4via6.
    pub site: Option<SiteNumber>,
}

/// Why a policy can't be compiled, or not be merged with what the server holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The same cluster twice, with different networks or site numbers.
    #[error("cluster {cluster} is given twice, with different networks or site numbers")]
    Twice {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The server tells equal networks apart by site numbers, and a cluster has none.
    #[error(
        "cluster {cluster} has networks that overlap those of another cluster or node on this server, and no site number"
    )]
    NoSite {
        /// The cluster.
        cluster: ClusterId,
    },
    /// Two clusters with one site number.
    #[error("clusters {first} and {second} have the same site number {site}")]
    SameSite {
        /// One cluster.
        first: ClusterId,
        /// The other.
        second: ClusterId,
        /// The number.
        site: SiteNumber,
    },
    /// What the server holds is no policy document.
    #[error("the policy on the server can't be read: {why}")]
    Unreadable {
        /// The cause.
        why: String,
    },
    /// The server's policy holds rules of somebody else.
    #[error("the server's policy holds what is not GuildNet's: {}", what.join(", "))]
    Foreign {
        /// What was found, in words.
        what: Vec<String>,
    },
    /// What bears GuildNet's names was not written by GuildNet.
    #[error("the server's policy uses GuildNet's tags for what GuildNet did not write: {}", what.join("; "))]
    Usurped {
        /// What was found, in words.
        what: Vec<String>,
    },
    /// Nodes that GuildNet does not know would no longer reach each other.
    #[error("the policy would cut off nodes that GuildNet does not know: {}", some_of(nodes))]
    CutsOff {
        /// The nodes, each with those that it reaches now.
        nodes: Vec<String>,
    },
    /// A rule of somebody else lets one cluster's connector reach another cluster.
    #[error("the server's policy holds rules that let clusters reach each other: {}", rules.join("; "))]
    Opened {
        /// The rules, as JSON.
        rules: Vec<String>,
    },
}

impl Explain for PolicyError {
    fn class(&self) -> Class {
        match self {
            Self::Twice { .. } => Class::Usage,
            Self::NoSite { .. }
            | Self::SameSite { .. }
            | Self::Unreadable { .. }
            | Self::Foreign { .. }
            | Self::Usurped { .. }
            | Self::CutsOff { .. }
            | Self::Opened { .. } => Class::Conflict,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Twice { .. } => "give each cluster once".into(),
            Self::NoSite { cluster } => format!(
                "give cluster {cluster} a number of its own with --site, or upgrade Headscale to 0.29 or later, which needs none"
            ),
            Self::SameSite { second, .. } => format!("give cluster {second} another number with --site"),
            Self::Unreadable { .. } => "mend it with 'headscale policy get' and 'headscale policy set'".into(),
            Self::Foreign { .. } => {
                "see what would change: guildnet headscale policy diff --merge; then run the command again with --merge to keep it \
                 beside GuildNet's rules (comments are lost), or take it out with 'headscale policy set'"
                    .into()
            }
            Self::Usurped { .. } => {
                "see what would change: guildnet headscale policy diff --merge; then run the command again with --merge to put \
                 GuildNet's own in its place, or give it other names with 'headscale policy set'"
                    .into()
            }
            Self::CutsOff { .. } => {
                "run the command again with --merge to add a rule that keeps them reaching each other (see it: guildnet headscale policy \
                 diff --merge), or with --cut-off-others if they shall be cut off"
                    .into()
            }
            Self::Opened { .. } => {
                "take these rules out, or give them sources that are not '*', with 'headscale policy get' and 'headscale \
                 policy set'; then run the command again"
                    .into()
            }
        })
    }
}

/// A compiled policy: the document that is GuildNet's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    tag_owners: BTreeMap<String, Vec<String>>,
    auto_approvers: AutoApprovers,
    #[serde(flatten)]
    rules: Rules,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AutoApprovers {
    routes: BTreeMap<IpNet, Vec<String>>,
}

/// Always written, even when empty: a policy without any rules key allows everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Rules {
    Grants(Vec<Grant>),
    Acls(Vec<Acl>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Grant {
    src: Vec<String>,
    dst: Vec<String>,
    ip: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    via: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Acl {
    action: &'static str,
    src: Vec<String>,
    dst: Vec<String>,
}

impl Policy {
    /// The document, as indented JSON.
    #[expect(clippy::missing_panics_doc, reason = "maps with text keys and lists of text always have a JSON form")]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text keys and lists of text have a JSON form")
    }
}

/// Compiles the policy for these clusters and no others. The order of the clusters does not matter.
///
/// # Errors
/// [`PolicyError::Twice`]; where the server has no `via`, [`PolicyError::NoSite`] and [`PolicyError::SameSite`].
pub fn compile(clusters: &[PolicyInput], server: ServerFeatures) -> Result<Policy, PolicyError> {
    compile_beside(clusters, server, &[])
}

/// The same, on a server where routers of others serve the networks `taken`. Without `via` grants these are shared like
/// another cluster's: a plain route of ours could be elected in the place of theirs.
fn compile_beside(clusters: &[PolicyInput], server: ServerFeatures, taken: &[Ipv4Net]) -> Result<Policy, PolicyError> {
    let mut sorted: BTreeMap<&ClusterId, &PolicyInput> = BTreeMap::new();
    for input in clusters {
        if sorted.insert(&input.cluster, input).is_some_and(|earlier| earlier != input) {
            return Err(PolicyError::Twice { cluster: input.cluster.clone() });
        }
    }
    let sorted: Vec<&PolicyInput> = sorted.into_values().collect();
    let mut tag_owners = BTreeMap::new();
    let mut routes: BTreeMap<IpNet, Vec<String>> = BTreeMap::new();
    for input in &sorted {
        let owner = format!("{}@", input.cluster.namespace());
        tag_owners.insert(input.cluster.router_tag(), vec![owner.clone()]);
        tag_owners.insert(input.cluster.client_tag(), vec![owner]);
    }
    let rules = if server.via_grants {
        let mut grants = Vec::new();
        for input in &sorted {
            let (router, client) = (input.cluster.router_tag(), input.cluster.client_tag());
            for net in input.routes.as_slice() {
                routes.entry(IpNet::V4(*net)).or_default().push(router.clone());
            }
            let networks = input.routes.as_slice().iter().map(ToString::to_string).collect();
            // Without the first the router is no peer of the client; the second alone carries no traffic to it.
            grants.push(grant(&client, vec![router.clone()], vec![]));
            grants.push(grant(&client, networks, vec![router]));
        }
        Rules::Grants(grants)
    } else {
        check_sites(&sorted, taken)?;
        let mut acls = Vec::new();
        for input in &sorted {
            let (router, client) = (input.cluster.router_tag(), input.cluster.client_tag());
            let mut dst = vec![format!("{router}:*")];
            for net in input.routes.as_slice() {
                for form in distinct_forms(input, *net, &sorted, taken) {
                    routes.entry(form).or_default().push(router.clone());
                    dst.push(format!("{form}:*"));
                }
            }
            acls.push(Acl { action: "accept", src: vec![client], dst });
        }
        Rules::Acls(acls)
    };
    Ok(Policy { tag_owners, auto_approvers: AutoApprovers { routes }, rules })
}

fn grant(client: &str, dst: Vec<String>, via: Vec<String>) -> Grant {
    Grant { src: vec![client.to_owned()], dst, ip: vec!["*".to_owned()], via }
}

/// Whether another cluster, or somebody else, has addresses of the network.
fn is_shared(cluster: &ClusterId, net: Ipv4Net, all: &[&PolicyInput], taken: &[Ipv4Net]) -> bool {
    let overlaps = |other: &Ipv4Net| other.contains(&net) || net.contains(other);
    let mut others = all.iter().filter(|o| o.cluster != *cluster);
    taken.iter().any(overlaps) || others.any(|o| o.routes.as_slice().iter().any(overlaps))
}

/// The forms of a network that no other cluster has: plain if nobody shares it, 4via6 if there is a site number.
fn distinct_forms(input: &PolicyInput, net: Ipv4Net, all: &[&PolicyInput], taken: &[Ipv4Net]) -> Vec<IpNet> {
    let plain = (!is_shared(&input.cluster, net, all, taken)).then_some(IpNet::V4(net));
    let via6 = input.site.map(|site| IpNet::V6(via6::prefix(site, net)));
    plain.into_iter().chain(via6).collect()
}

/// Site numbers are unique, and there where they are needed.
fn check_sites(all: &[&PolicyInput], taken: &[Ipv4Net]) -> Result<(), PolicyError> {
    let mut seen: BTreeMap<SiteNumber, &ClusterId> = BTreeMap::new();
    for input in all {
        if let Some(site) = input.site {
            if let Some(first) = seen.insert(site, &input.cluster) {
                return Err(PolicyError::SameSite { first: first.clone(), second: input.cluster.clone(), site });
            }
        } else if input.routes.as_slice().iter().any(|net| is_shared(&input.cluster, *net, all, taken)) {
            return Err(PolicyError::NoSite { cluster: input.cluster.clone() });
        }
    }
    Ok(())
}

/// What a cluster's routers must advertise: the networks and, on a server without `via` grants, their 4via6 forms.
pub fn routes_to_advertise(server: ServerFeatures, networks: &Networks, site: Option<SiteNumber>) -> Vec<IpNet> {
    let plain = networks.as_slice().iter().map(|n| IpNet::V4(*n));
    let site = site.filter(|_| !server.via_grants);
    let via6 = site.into_iter().flat_map(|s| networks.as_slice().iter().map(move |n| IpNet::V6(via6::prefix(s, *n))));
    plain.chain(via6).collect()
}

/// What may be approved for a cluster's routers beside these clusters (itself may be among them): the networks and, on a server
/// without `via` grants, in the forms that no other cluster has. A plain network that two clusters share would be elected to one
/// of them there.
pub fn routes_to_serve(server: ServerFeatures, cluster: &PolicyInput, all: &[PolicyInput]) -> Vec<IpNet> {
    if server.via_grants {
        return routes_to_advertise(server, &cluster.routes, cluster.site);
    }
    let all: Vec<&PolicyInput> = all.iter().collect();
    cluster.routes.as_slice().iter().flat_map(|net| distinct_forms(cluster, *net, &all, &[])).collect()
}
