//! A cluster's Pod and Service networks, from what the cluster says about itself.
//!
//! No single object of Kubernetes names them. `networks/fetch.rs` reads what may (each read may be refused),
//! `networks/objects.rs` knows the shapes, and [`found`] decides, pure: which source counts, what contradicts it, what
//! is missing. Absent: whether the networks suit this device (the Host App's question).

mod fetch;
mod found;
mod objects;

use std::fmt;

use guildnet_model::{Class, Explain, Networks, NetworksError};
use ipnet::Ipv4Net;

pub(crate) use self::objects::FLANNEL_ANNOTATION;
use self::{found::found, objects::Objects};
use crate::read::Unread;

/// Where a network was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkSource {
    /// A `ServiceCIDR` object.
    ServiceCidr(String),
    /// What kubeadm wrote down when it made the cluster.
    Kubeadm,
    /// The API server's words when it refuses a Service an impossible address.
    Refusal,
    /// The `spec.podCIDRs` of these nodes.
    Nodes(Vec<String>),
    /// A Calico `IPPool`.
    CalicoPool(String),
    /// The pool in Cilium's configuration.
    CiliumConfig,
    /// A `CiliumPodIPPool`.
    CiliumPool(String),
    /// What Cilium gave these nodes.
    CiliumNodes(Vec<String>),
    /// Flannel's configuration.
    Flannel,
    /// The arguments of the k3s (or RKE2) server on this node.
    ServerArguments(String),
    /// What a k3s (or RKE2) server takes when it is told nothing.
    ServerDefault,
}

impl fmt::Display for NetworkSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
            Self::Kubeadm => f.write_str("kubeadm-config"),
            Self::Refusal => f.write_str("the API server's answer to an impossible address"),
            Self::Nodes(names) => write!(f, "podCIDRs of {}", nodes(names)),
            Self::CalicoPool(name) => write!(f, "Calico's IPPool {name}"),
            Self::CiliumConfig => f.write_str("cilium-config"),
            Self::CiliumPool(name) => write!(f, "CiliumPodIPPool {name}"),
            Self::CiliumNodes(names) => write!(f, "what Cilium gave {}", nodes(names)),
            Self::Flannel => f.write_str("kube-flannel-cfg"),
            Self::ServerArguments(node) => write!(f, "arguments of the server on node {node}"),
            Self::ServerDefault => f.write_str("the default of k3s"),
        }
    }
}

/// `node x`, or how many.
fn nodes(names: &[String]) -> String {
    match names {
        [one] => format!("node {one}"),
        some => format!("{} nodes", some.len()),
    }
}

/// A network and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundNetwork {
    /// The network.
    pub net: Ipv4Net,
    /// Where it was found.
    pub source: NetworkSource,
}

/// The IPv4 networks that a cluster names, and what is to be said about them. Empty lists: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Service networks.
    pub services: Vec<FoundNetwork>,
    /// Pod networks.
    pub pods: Vec<FoundNetwork>,
    /// What a person should know of: contradictions, gaps, what was narrowed or left out.
    pub notes: Vec<String>,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// IPv6 networks that were named, as they were written. GuildNet leaves them out.
    pub ipv6: Vec<String>,
    /// Whether Services have addresses of IPv6 only.
    services_are_ipv6: bool,
}

impl ClusterNetworks {
    /// All of them as one list. Networks that lie in another one are left out.
    ///
    /// # Errors
    /// [`NetworksUnknown`]: there are no IPv4 Service networks, what names the Pod networks can't be read, or a network
    /// can't be a cluster's.
    pub fn networks(&self) -> Result<Networks, NetworksUnknown> {
        if self.services_are_ipv6 {
            return Err(NetworksUnknown::Ipv6Only { seen: few(&self.ipv6) });
        }
        let missing = |what| NetworksUnknown::Missing { what, unread: self.unread.clone() };
        if self.services.is_empty() {
            return Err(missing(if self.pods.is_empty() { "Pod and Service networks" } else { "Service network" }));
        }
        if self.pods.is_empty() && !self.unread.is_empty() {
            return Err(missing("Pod networks"));
        }
        let all: Vec<&FoundNetwork> = self.services.iter().chain(&self.pods).collect();
        // One by one first: an error names where the network comes from.
        for one in &all {
            Networks::new([one.net]).map_err(|why| NetworksUnknown::Unusable { place: one.source.clone(), why })?;
        }
        let inside = |net: &Ipv4Net| all.iter().any(|other| other.net != *net && other.net.contains(net));
        let whole = all.iter().map(|f| f.net).filter(|net| !inside(net));
        Networks::new(whole).map_err(|why| NetworksUnknown::Unusable { place: all[0].source.clone(), why })
    }

    /// What was found and where, in one line: `Services 10.96.0.0/16 (kubeadm-config), Pods ...`.
    pub fn summary(&self) -> String {
        let list = |what: &str, found: &[FoundNetwork]| match found {
            [] => format!("{what} not found"),
            some => {
                let each: Vec<String> = some.iter().map(|f| format!("{} ({})", f.net, f.source)).collect();
                format!("{what} {}", each.join(", "))
            }
        };
        format!("{}; {}", list("Services", &self.services), list("Pods", &self.pods))
    }
}

/// The first of a list that may have one for each node.
fn few(names: &[String]) -> String {
    /// Enough to recognise them by.
    const SHOWN: usize = 3;
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

/// Why a cluster's networks are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworksUnknown {
    /// It has IPv6 networks only.
    #[error(
        "its networks are IPv6 only ({seen}): GuildNet needs IPv4 Service and Pod networks, since it tells the equal networks \
         of many clusters apart by their IPv4 addresses"
    )]
    Ipv6Only {
        /// What was seen.
        seen: String,
    },
    /// Nothing that could be read names them.
    #[error("the cluster does not say which {what} it has{}", unread_words(unread))]
    Missing {
        /// Which networks.
        what: &'static str,
        /// What could not be read.
        unread: Vec<Unread>,
    },
    /// What it names can't be used.
    #[error("{why} (found in {place})")]
    Unusable {
        /// Where it was found.
        place: NetworkSource,
        /// What is wrong with it.
        why: NetworksError,
    },
}

fn unread_words(unread: &[Unread]) -> String {
    if unread.is_empty() {
        return String::new();
    }
    let each: Vec<&str> = unread.iter().map(|u| u.what).collect();
    // One reason stands for all: they differ in the object's name.
    format!("; not readable with this kubeconfig: {} ({})", each.join(", "), unread[0].why)
}

impl Explain for NetworksUnknown {
    fn class(&self) -> Class {
        match self {
            Self::Ipv6Only { .. } => Class::Precondition,
            Self::Missing { unread, .. } if !unread.is_empty() => Class::Credentials,
            Self::Missing { .. } => Class::Usage,
            Self::Unusable { why, .. } => why.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Ipv6Only { .. } => {
                "make the cluster dual-stack, or give IPv4 networks that it has: --routes SERVICE_CIDR,POD_CIDR".into()
            }
            Self::Missing { .. } => "give its Pod and Service networks: --routes 10.96.0.0/16,10.244.0.0/16".into(),
            Self::Unusable { why, .. } => return why.hint(),
        })
    }
}

#[cfg(test)]
mod tests;
