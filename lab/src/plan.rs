//! Names and addresses of everything in a lab, computed from a few facts. Pure: makes nothing, asks nothing.
//!
//! `down` relies on it: whatever can exist has a name that follows from the plan, which is on disk before the first
//! resource is made. `net.rs` and `cluster.rs` make the things. What is no cluster's is in `clients.rs`.

mod clients;

use std::{fmt, net::Ipv4Addr, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::clients::{Behind, HOST_LAN, Host, HostPlan, Nat, RelayPlan};
use crate::error::LabError;

/// Pod network of every cluster.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// Service network of every cluster.
pub const SERVICE_NETWORK: &str = "10.96.0.0/16";
/// Network of the nodes of every cluster, behind its gateway.
pub const LAN: &str = "192.168.77.0/24";
/// The gateway's address on it.
pub(crate) const LAN_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The gateway's leg on it.
pub(crate) const GATEWAY_LAN: &str = "lan";
/// The node's address on it.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// Address of the `kubernetes` Service: the first of the Service network.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Address of the cluster's DNS.
pub(crate) const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Address of the echo Service, the same in every cluster.
pub const ECHO_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
/// Address of the echo "pod" of a light cluster: on its node itself, in the pod network.
pub const LIGHT_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
/// Port of echo in its pod.
pub const ECHO_PORT: u16 = 8080;
/// Port of the API server on the node, and of the door on the gateway.
pub const API_PORT: u16 = 6443;
/// Port of Headscale, its relay included.
pub(crate) const HEADSCALE_PORT: u16 = 8443;
/// Port of Headscale's STUN.
pub(crate) const STUN_PORT: u16 = 3478;

/// Where bridges look for a free /24: the third byte is counted up, then the next row is tried.
const ROWS: [[u8; 2]; 3] = [[10, 99], [172, 29], [198, 18]];
/// How many networks of a row are tried.
const PER_ROW: u8 = 16;
/// The outer address of the first gateway ends in this; the bridge's own in 1.
const FIRST_GATEWAY: u8 = 11;
/// More gateways don't fit between [`FIRST_GATEWAY`] and what follows them in the /24.
pub(crate) const MAX_CLUSTERS: usize = 190;
/// Addresses of nodes, where nothing translates; of the first clusters only.
const FIRST_OPEN_NODE: u8 = 231;
const MAX_OPEN_NODES: u8 = 10;

/// The most routers that a light cluster can have; the number is also the end of the address.
pub(crate) const MAX_ROUTERS: u8 = 9;

/// The name of a lab: two of them run side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance(String);

impl Instance {
    /// The environment variable that names it.
    pub const ENV: &str = "GUILDNET_LAB_INSTANCE";

    /// The name in the environment, else `default`.
    ///
    /// # Errors
    /// [`LabError::Usage`] if the name is not made of at most 20 of `a-z 0-9 -`, a letter first.
    pub fn from_env() -> Result<Self, LabError> {
        match std::env::var(Self::ENV) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(Self("default".into())),
        }
    }

    /// The folder of state and of what the user reads; not for bulk: it may lie in memory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/guildnet-lab").join(&self.0)
    }

    /// The folder of bulk: the nodes' `/var/lib`, logs.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/guildnet-lab").join(&self.0)
    }

    /// Prefix of every namespace.
    pub(crate) fn prefix(&self) -> String {
        format!("gnlab-{}-", self.0)
    }

    /// The folder in every cgroup hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("gnlab-{}", self.0)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Instance {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        if is_label(name, 20) {
            return Ok(Self(name.into()));
        }
        Err(LabError::Usage { what: format!("instance name {name:?}: at most 20 of a-z, 0-9 and '-', a letter first") })
    }
}

/// Letters, digits and inner dashes, a letter first.
fn is_label(name: &str, most: usize) -> bool {
    name.len() <= most
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Reads `--clusters`: a number (`3` is a, b, c) or names (`a,b,west`).
///
/// # Errors
/// [`LabError::Usage`] for names that are no labels, that stand twice or that the lab uses itself.
pub fn cluster_names(given: &str) -> Result<Vec<String>, LabError> {
    let usage = |what: String| LabError::Usage { what };
    if let Ok(count) = given.parse::<u8>() {
        if !(1..=26).contains(&count) {
            return Err(usage(format!("--clusters {count}: 1 to 26, or a list of names")));
        }
        return Ok((b'a'..b'a' + count).map(|letter| char::from(letter).to_string()).collect());
    }
    let mut names: Vec<String> = Vec::new();
    for name in given.split(',') {
        check_name("cluster", name)?;
        if names.iter().any(|n| n == name) {
            return Err(usage(format!("cluster name {name:?} stands twice")));
        }
        names.push(name.into());
    }
    if names.len() > MAX_CLUSTERS {
        return Err(usage(format!("{} clusters: at most {MAX_CLUSTERS}", names.len())));
    }
    Ok(names)
}

/// Names are parts of namespaces' and processes' names.
fn check_name(what: &str, name: &str) -> Result<(), LabError> {
    let taken = ["gw-", "derp-"].iter().any(|prefix| name.starts_with(prefix)) || ["all", "headscale"].contains(&name);
    if is_label(name, 20) && !taken {
        return Ok(());
    }
    Err(LabError::Usage {
        what: format!(
            "{what} name {name:?}: at most 20 of a-z, 0-9 and '-', a letter first; not gw-..., derp-..., all or headscale"
        ),
    })
}

/// The user who will run `guildnet`: what they must read belongs to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Person {
    /// `nobody`, when root itself called: the Host App does not run as root.
    const NOBODY: Self = Self { uid: 65_534, gid: 65_534 };

    /// Who called `sudo`, else nobody.
    #[must_use]
    pub fn from_env() -> Self {
        let id = |name| std::env::var(name).ok()?.parse::<u32>().ok().filter(|id| *id != 0);
        match (id("SUDO_UID"), id("SUDO_GID")) {
            (Some(uid), Some(gid)) => Self { uid, gid },
            _ => Self::NOBODY,
        }
    }
}

/// Everything about a lab that is decided before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name.
    pub instance: Instance,
    /// Number of its bridge: `gnlab0`.
    pub bridge: u8,
    /// First three bytes of the bridge's network, "the internet" of the lab.
    pub network: [u8; 3],
    /// Who reads its kubeconfigs.
    pub person: Person,
    /// Names of its clusters; the place in the list fixes the gateway's address.
    pub clusters: Vec<String>,
    /// Those of them that are light: etcd and API server, nothing that runs pods.
    #[serde(default)]
    pub light: Vec<String>,
    /// Its client hosts; the place in the list fixes the addresses.
    #[serde(default)]
    pub hosts: Vec<Host>,
}

impl Plan {
    /// A lab of whole clusters and nothing else, for tests.
    #[cfg(test)]
    pub(crate) fn sample(clusters: &[&str]) -> Self {
        Self {
            instance: "default".parse().expect("a name"),
            bridge: 0,
            network: [10, 99, 0],
            person: Person { uid: 1000, gid: 1000 },
            clusters: clusters.iter().map(|id| (*id).to_owned()).collect(),
            light: vec![],
            hosts: vec![],
        }
    }

    /// The bridge's name.
    #[must_use]
    pub fn bridge_name(&self) -> String {
        format!("gnlab{}", self.bridge)
    }

    /// The bridge's address: where Headscale listens.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// An address of the bridge's network that nothing has, and that Headscale's certificate names too: tests move the server
    /// there.
    #[must_use]
    pub fn spare_address(&self) -> Ipv4Addr {
        self.address(254)
    }

    /// The bridge's network, as a CIDR.
    #[must_use]
    pub fn network_cidr(&self) -> String {
        format!("{}/24", self.address(0))
    }

    /// Headscale's URL.
    #[must_use]
    pub fn headscale_url(&self) -> String {
        format!("https://{}:{HEADSCALE_PORT}", self.host_address())
    }

    /// The folder of what the user reads.
    #[must_use]
    pub fn person_dir(&self) -> PathBuf {
        self.instance.run_dir().join("person")
    }

    /// Where the output of the process `name` goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.instance.data_dir().join("log").join(format!("{}.log", name.replace('/', ".")))
    }

    /// The plan of one cluster.
    ///
    /// # Errors
    /// [`LabError::NotFound`] if there is none of this name.
    pub fn cluster(&self, id: &str) -> Result<ClusterPlan, LabError> {
        let index = self.clusters.iter().position(|c| c == id).ok_or_else(|| LabError::NotFound {
            what: format!("no cluster {id:?} in this lab; it has {}", self.clusters.join(", ")),
        })?;
        Ok(self.cluster_at(index))
    }

    /// The plans of all clusters.
    #[must_use]
    pub fn all_clusters(&self) -> Vec<ClusterPlan> {
        (0..self.clusters.len()).map(|index| self.cluster_at(index)).collect()
    }

    fn cluster_at(&self, index: usize) -> ClusterPlan {
        let id = &self.clusters[index];
        let open = u8::try_from(index).ok().filter(|n| *n < MAX_OPEN_NODES).map(|n| self.address(FIRST_OPEN_NODE + n));
        let prefix = self.instance.prefix();
        let last = FIRST_GATEWAY + u8::try_from(index).expect("at most MAX_CLUSTERS");
        ClusterPlan {
            id: id.clone(),
            light: self.light.contains(id),
            node_ns: format!("{prefix}{id}"),
            gateway_ns: format!("{prefix}gw-{id}"),
            outer: self.address(last),
            open,
            leg: format!("{}-{last}", self.bridge_name()),
            node_name: format!("{id}-node-1"),
            run_dir: self.instance.run_dir().join(id),
            data_dir: self.instance.data_dir().join(id),
            cgroup: format!("{}/{id}", self.instance.cgroup()),
        }
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, last)
    }
}

/// Names and addresses of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    /// Its name.
    pub id: String,
    /// Whether it is light: etcd and API server, nothing that runs pods.
    pub light: bool,
    /// Network namespace of its node.
    pub node_ns: String,
    /// Network namespace of its gateway.
    pub gateway_ns: String,
    /// The gateway's address on the bridge; the door is here.
    pub outer: Ipv4Addr,
    /// The node's own address on the bridge's network, for when its gateway does not translate.
    pub open: Option<Ipv4Addr>,
    /// The bridge's port towards the gateway. At most 15 characters: the kernel's limit.
    pub leg: String,
    /// The node's name in Kubernetes.
    pub node_name: String,
    /// Keys and settings.
    pub run_dir: PathBuf,
    /// What the node sees as its `/var/lib`, `/var/log` and `/run`.
    pub data_dir: PathBuf,
    /// Its folder in every cgroup hierarchy, relative.
    pub cgroup: String,
}

impl ClusterPlan {
    /// A file of its settings.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.run_dir.join(name)
    }

    /// The name of one of its processes.
    pub(crate) fn process(&self, program: &str) -> String {
        format!("{}/{program}", self.id)
    }
}

/// Names and addresses of one router of a light cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterPlan {
    /// The first is on the node, every other on a host of its own.
    pub number: u8,
    /// Name of its process.
    pub process: String,
    /// Network namespace of its host.
    pub netns: String,
    /// Its host's address on the cluster's LAN.
    pub address: Ipv4Addr,
    /// The gateway's leg towards it.
    pub(crate) leg: String,
    /// Its identity, unless it is on the node, which has a view of its own.
    pub(crate) state_dir: PathBuf,
}

impl RouterPlan {
    /// Whether it shares the node's host.
    pub(crate) fn is_on_node(&self) -> bool {
        self.number == 1
    }

    /// Its name within the cluster: `router`, `router-2`, ...
    pub(crate) fn name(&self) -> String {
        if self.is_on_node() { "router".into() } else { format!("router-{}", self.number) }
    }
}

impl ClusterPlan {
    /// Its router of this number, whether or not it was ever started.
    #[must_use]
    pub fn router(&self, number: u8) -> RouterPlan {
        let mut router = RouterPlan {
            number,
            process: String::new(),
            // No cluster's name has a dot.
            netns: format!("{}.{number}", self.node_ns),
            address: Ipv4Addr::from_bits(NODE_ADDRESS.to_bits() + u32::from(number) - 1),
            leg: format!("{GATEWAY_LAN}{number}"),
            state_dir: PathBuf::new(),
        };
        router.process = self.process(&router.name());
        router.state_dir = self.data_dir.join(router.name());
        if router.is_on_node() {
            router.netns.clone_from(&self.node_ns);
            router.leg = GATEWAY_LAN.into();
        }
        router
    }

    /// Every router that it can have.
    pub(crate) fn all_routers(&self) -> Vec<RouterPlan> {
        (1..=MAX_ROUTERS).map(|number| self.router(number)).collect()
    }
}

/// An IPv4 network in use on this machine.
pub(crate) type Used = (Ipv4Addr, u8);

/// The first bridge number and network that collide with nothing.
pub(crate) fn free_bridge(names: &[String], used: &[Used]) -> Option<(u8, [u8; 3])> {
    let bridge = (0..=u8::MAX).find(|n| !names.contains(&format!("gnlab{n}")))?;
    let network = ROWS
        .iter()
        .flat_map(|[a, b]| (0..PER_ROW).map(|c| [*a, *b, c]))
        .find(|[a, b, c]| !used.iter().any(|used| overlap((Ipv4Addr::new(*a, *b, *c, 0), 24), *used)))?;
    Some((bridge, network))
}

/// Whether two networks share an address.
fn overlap((a, a_len): Used, (b, b_len): Used) -> bool {
    let len = a_len.min(b_len);
    // A shift by 32 is no shift at all: the default route covers everything.
    let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
    a.to_bits() & mask == b.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(clusters: &[&str]) -> Plan {
        Plan { person: Person::NOBODY, ..Plan::sample(clusters) }
    }

    #[test]
    fn a_number_of_clusters_names_them_by_letters() {
        assert_eq!(cluster_names("3").expect("a number"), ["a", "b", "c"]);
        assert_eq!(cluster_names("a,west-2").expect("names"), ["a", "west-2"]);
    }

    #[test]
    fn names_that_cannot_be_hosts_are_refused() {
        for bad in ["0", "27", "", "a,a", "A", "a_b", "1a", "gw-a", "derp-1", "all", "headscale", "a-", "a,,b"] {
            assert_eq!(cluster_names(bad).expect_err(bad).exit_code(), 2, "{bad}");
        }
        for bad in ["", "Default", "a/b", "..", "a-very-long-instance-name"] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn clusters_differ_in_names_and_outer_addresses_only() {
        let plan = plan(&["a", "b"]);
        let [a, b] = &plan.all_clusters()[..] else { panic!("two clusters") };
        assert_eq!((a.outer, b.outer), (Ipv4Addr::new(10, 99, 0, 11), Ipv4Addr::new(10, 99, 0, 12)));
        assert_eq!((a.gateway_ns.as_str(), a.node_ns.as_str()), ("gnlab-default-gw-a", "gnlab-default-a"));
        assert_eq!(b.cgroup, "gnlab-default/b");
        assert_eq!(plan.headscale_url(), "https://10.99.0.1:8443");
    }

    #[test]
    fn the_first_router_is_on_the_node_and_the_others_beside_it() {
        let plan = plan(&["a"]);
        let a = plan.cluster("a").expect("it is there");
        let [first, second] = [a.router(1), a.router(2)];
        assert_eq!((first.process.as_str(), &first.netns, first.address), ("a/router", &a.node_ns, NODE_ADDRESS));
        assert_eq!((second.process.as_str(), second.netns.as_str()), ("a/router-2", "gnlab-default-a.2"));
        assert_eq!((second.address, second.leg.as_str()), (Ipv4Addr::new(192, 168, 77, 11), "lan2"));
    }

    #[test]
    fn link_names_fit_the_kernel() {
        let names: Vec<String> = (0..MAX_CLUSTERS).map(|n| format!("c{n}")).collect();
        let mut plan = plan(&names.iter().map(String::as_str).collect::<Vec<_>>());
        plan.bridge = u8::MAX;
        assert!(plan.all_clusters().iter().all(|c| c.leg.len() <= 15));
    }

    #[test]
    fn the_bridge_moves_away_from_what_is_there() {
        let free = |used: &[Used]| free_bridge(&[], used).expect("room").1;
        assert_eq!(free(&[]), [10, 99, 0]);
        assert_eq!(free(&[(Ipv4Addr::new(10, 99, 0, 7), 32)]), [10, 99, 1]);
        assert_eq!(free(&[(Ipv4Addr::new(10, 0, 0, 0), 8)]), [172, 29, 0]);
        assert_eq!(free_bridge(&["gnlab0".into()], &[]).expect("room").0, 1);
        assert_eq!(free_bridge(&[], &[(Ipv4Addr::UNSPECIFIED, 0)]), None);
    }
}
