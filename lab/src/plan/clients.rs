//! Client hosts and standalone relays: their names and addresses, and the kinds of NAT. A host and the gateway that it is
//! behind are the same thing for a client and for a cluster's node.

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{ClusterPlan, LAN_GATEWAY, NODE_ADDRESS, Plan, check_name};
use crate::error::LabError;

/// Network of a client host, behind its gateway.
pub const HOST_LAN: &str = "192.168.78.0/24";
/// A client host's gateway and its own address on it, at home and when moved. Not the clusters' network: what is meant for a node must not end at the
/// client itself.
const HOST_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);
const HOST_ADDRESS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 78, 10), Ipv4Addr::new(192, 168, 78, 11)];

/// Client hosts: the outer addresses of their gateways end in this and more, and their own, where nothing translates; at home
/// and when moved.
const FIRST_HOST: [u8; 2] = [211, 201];
const FIRST_OPEN_HOST: [u8; 2] = [221, 241];
const MAX_HOSTS: u8 = 10;
/// The standalone relays, and the region of the first.
const RELAYS: [u8; 2] = [251, 252];
const FIRST_REGION: u16 = 901;

/// A client host as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Whether a link stands between its gateway and the internet, and the seed of that.
    pub link: Option<u64>,
    /// Whether it and its gateway have their other addresses, as in another network.
    #[serde(default)]
    pub moved: bool,
}

impl Host {
    /// One with a cable, where it is at home.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), link: None, moved: false }
    }
}

impl Plan {
    /// Adds a client host, or finds that it is there as it is wanted.
    ///
    /// # Errors
    /// [`LabError::Usage`] for a name that can't be one; [`LabError::Conflict`] if it is there otherwise, or there are too many.
    pub(crate) fn add_host(&mut self, wanted: &Host) -> Result<(), LabError> {
        check_name("host", &wanted.name)?;
        if let Some(there) = self.hosts.iter().find(|host| host.name == wanted.name) {
            return if there.link == wanted.link {
                Ok(())
            } else {
                Err(LabError::Conflict { what: format!("host {} is there, with another link or none", wanted.name) })
            };
        }
        if self.clusters.contains(&wanted.name) {
            return Err(LabError::Usage { what: format!("host name {:?}: a cluster has it", wanted.name) });
        }
        if self.hosts.len() >= MAX_HOSTS.into() {
            return Err(LabError::Conflict {
                what: format!("{MAX_HOSTS} hosts are there, and there is room for no more"),
            });
        }
        self.hosts.push(wanted.clone());
        Ok(())
    }

    /// The plan of one client host.
    ///
    /// # Errors
    /// [`LabError::NotFound`] if there is none of this name.
    pub fn host(&self, name: &str) -> Result<HostPlan, LabError> {
        self.all_hosts().into_iter().find(|host| host.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            LabError::NotFound { what: format!("no host {name:?} in this lab; it has {}", names.join(", ")) }
        })
    }

    /// Takes a client host to its other addresses, or back.
    ///
    /// # Errors
    /// [`LabError::NotFound`] if there is none of this name.
    pub(crate) fn move_host(&mut self, name: &str) -> Result<(), LabError> {
        self.host(name)?;
        self.hosts.iter_mut().filter(|host| host.name == name).for_each(|host| host.moved = !host.moved);
        Ok(())
    }

    /// The plans of all client hosts.
    #[must_use]
    pub fn all_hosts(&self) -> Vec<HostPlan> {
        let prefix = self.instance.prefix();
        let plan = |(host, index): (&Host, u8)| {
            let place = usize::from(host.moved);
            HostPlan {
                name: host.name.clone(),
                link: host.link,
                behind: Behind {
                    host_ns: format!("{prefix}{}", host.name),
                    gateway_ns: format!("{prefix}gw-{}", host.name),
                    outer: self.address(FIRST_HOST[place] + index),
                    open: Some(self.address(FIRST_OPEN_HOST[place] + index)),
                    leg: format!("{}-{}", self.bridge_name(), FIRST_HOST[0] + index),
                    gateway: HOST_GATEWAY,
                    host: HOST_ADDRESS[place],
                },
                control: self.instance.run_dir().join(&host.name).join("link.sock"),
            }
        };
        self.hosts.iter().zip(0..MAX_HOSTS).map(plan).collect()
    }

    /// What has this name and a gateway: a cluster, then its node is meant, or a client host.
    pub(crate) fn behind(&self, name: &str) -> Result<Behind, LabError> {
        match self.host(name) {
            Ok(host) => Ok(host.behind),
            Err(_) => self.cluster(name).map(|cluster| cluster.behind()),
        }
    }

    /// The plans of the standalone relays, whether or not this lab has them.
    #[must_use]
    pub fn relays(&self) -> [RelayPlan; 2] {
        [0, 1].map(|index: u8| {
            let (last, process) = (RELAYS[usize::from(index)], format!("derp-{}", index + 1));
            RelayPlan {
                netns: format!("{}{process}", self.instance.prefix()),
                address: self.address(last),
                leg: format!("{}-{last}", self.bridge_name()),
                region: FIRST_REGION + u16::from(index),
                dir: self.instance.data_dir().join(&process),
                process,
            }
        })
    }
}

/// A host and the gateway that it is behind, whatever it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Network namespace of the host.
    pub host_ns: String,
    /// Network namespace of its gateway.
    pub gateway_ns: String,
    /// The gateway's address on the bridge.
    pub outer: Ipv4Addr,
    /// The host's own address on the bridge's network, for when the gateway does not translate.
    pub open: Option<Ipv4Addr>,
    /// The bridge's port towards the gateway.
    pub(crate) leg: String,
    /// The gateway's and the host's address on the network that they share.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) host: Ipv4Addr,
}

impl ClusterPlan {
    /// Its node and its gateway.
    pub(crate) fn behind(&self) -> Behind {
        Behind {
            host_ns: self.node_ns.clone(),
            gateway_ns: self.gateway_ns.clone(),
            outer: self.outer,
            open: self.open,
            leg: self.leg.clone(),
            gateway: LAN_GATEWAY,
            host: NODE_ADDRESS,
        }
    }
}

/// Names and addresses of one client host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPlan {
    /// Its name.
    pub name: String,
    /// Whether a link stands between its gateway and the internet, and the seed of that.
    pub link: Option<u64>,
    /// Namespaces and addresses.
    pub behind: Behind,
    /// Where the link takes changes.
    pub(crate) control: PathBuf,
}

impl HostPlan {
    /// The name of its link's process.
    pub(crate) fn process(&self) -> String {
        format!("{}/link", self.name)
    }
}

/// Names and addresses of one standalone relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayPlan {
    /// Name of its process.
    pub process: String,
    /// Network namespace of its host.
    pub netns: String,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// Its region's number in the map of relays.
    pub region: u16,
    /// The bridge's port towards it.
    pub(crate) leg: String,
    /// Its key and certificate.
    pub(crate) dir: PathBuf,
}

/// What a gateway does to the addresses of what goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// Nothing: the host has an address of its own on the internet, and whoever wants reaches it.
    None,
    /// One outer port for each of the host's, open to everybody.
    FullCone,
    /// One outer port for each of the host's, open to whom the host has sent something.
    #[default]
    PortRestricted,
    /// An outer port by chance for each of the host's and each peer, open to that peer.
    Symmetric,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_names_and_addresses_of_their_own() {
        let mut plan = Plan::sample(&["a", "b"]);
        let host = |name: &str| Host::new(name);
        plan.add_host(&host("x")).expect("new");
        plan.add_host(&host("x")).expect("the same");
        plan.add_host(&Host { link: Some(1), ..host("y") }).expect("new");
        assert_eq!(plan.add_host(&host("y")).expect_err("without its link").exit_code(), 6);
        assert_eq!(plan.add_host(&host("a")).expect_err("a cluster").exit_code(), 2);
        assert_eq!(plan.add_host(&host("gw-y")).expect_err("a gateway").exit_code(), 2);
        let y = plan.host("y").expect("it is there");
        assert_eq!((y.behind.outer, y.behind.open), (plan.address(212), Some(plan.address(222))));
        assert_eq!(y.behind.host, Ipv4Addr::new(192, 168, 78, 10));
        assert_eq!((y.behind.gateway_ns.as_str(), y.process().as_str()), ("gnlab-default-gw-y", "y/link"));
        for n in 2..MAX_HOSTS {
            plan.add_host(&host(&format!("h{n}"))).expect("room");
        }
        assert_eq!(plan.add_host(&host("more")).expect_err("no room").exit_code(), 6);
        let mut elsewhere = plan.clone();
        plan.all_hosts().iter().for_each(|host| elsewhere.move_host(&host.name).expect("there"));
        let all = plan
            .all_hosts()
            .into_iter()
            .chain(elsewhere.all_hosts())
            .flat_map(|h| [Some(h.behind.outer), h.behind.open])
            .flatten();
        let clusters = plan.all_clusters().into_iter().flat_map(|c| [Some(c.outer), c.open]).flatten();
        let all: Vec<Ipv4Addr> =
            all.chain(clusters).chain(plan.relays().map(|r| r.address)).chain([plan.spare_address()]).collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
