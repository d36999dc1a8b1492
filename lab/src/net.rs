//! Bridge, namespaces, gateways, doors: "the internet" of the lab and the private LANs behind it.
//!
//! No namespace has a route to the machine's real network: gateways know the bridge's network and nothing else.
//! Nothing of the machine's own changes but the bridge that is added.

mod nat;

use std::{net::Ipv4Addr, path::Path};

use serde::Deserialize;

pub(crate) use self::nat::{renumber, set_nat};
use crate::{
    command::{finish, in_netns, run},
    error::LabError,
    plan::{
        API_PORT, Behind, ClusterPlan, GATEWAY_LAN, LAN_GATEWAY, NODE_ADDRESS, POD_NETWORK, Plan, RelayPlan,
        RouterPlan, Used,
    },
};

/// The gateway's leg on the bridge, and a host's on the LAN.
pub(crate) const WAN: &str = "wan";
const NODE_LAN: &str = "eth0";

/// Interfaces of the machine and the IPv4 networks that are taken: addresses and routes.
pub(crate) fn in_use() -> Result<(Vec<String>, Vec<Used>), LabError> {
    #[derive(Deserialize)]
    struct Link {
        #[serde(default)]
        ifname: String,
        #[serde(default)]
        addr_info: Vec<Addr>,
    }
    #[derive(Deserialize)]
    struct Addr {
        #[serde(default)]
        local: Option<Ipv4Addr>,
        #[serde(default)]
        prefixlen: u8,
    }
    #[derive(Deserialize)]
    struct Route {
        dst: String,
    }
    fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> Result<Vec<T>, LabError> {
        let text = if text.trim().is_empty() { "[]" } else { text };
        serde_json::from_str(text)
            .map_err(|why| LabError::Io { what: "cannot read what ip said".into(), source: why.into() })
    }
    let links: Vec<Link> = parse(&run("ip", &["-j", "-4", "address", "show"])?)?;
    let all: Vec<Link> = parse(&run("ip", &["-j", "link", "show"])?)?;
    let routes: Vec<Route> = parse(&run("ip", &["-j", "-4", "route", "show", "table", "all"])?)?;
    let mut used: Vec<Used> =
        links.iter().flat_map(|l| &l.addr_info).filter_map(|a| Some((a.local?, a.prefixlen))).collect();
    used.extend(routes.iter().filter_map(|route| parse_network(&route.dst)));
    Ok((all.into_iter().map(|l| l.ifname).collect(), used))
}

/// `10.0.0.0/8` or a bare address; `None` for the default route, which takes nothing.
fn parse_network(dst: &str) -> Option<Used> {
    let (address, len) = dst.split_once('/').unwrap_or((dst, "32"));
    Some((address.parse().ok()?, len.parse().ok()?))
}

/// Makes the bridge, or completes it.
pub(crate) fn ensure_bridge(plan: &Plan) -> Result<(), LabError> {
    let name = plan.bridge_name();
    if !Path::new("/sys/class/net").join(&name).exists() {
        run("ip", &["link", "add", &name, "type", "bridge"])?;
    }
    let address = format!("{}/24", plan.host_address());
    run("ip", &["link", "set", &name, "addrgenmode", "none"])?;
    run("ip", &["address", "replace", &address, "dev", &name])?;
    run("ip", &["link", "set", &name, "up"])?;
    Ok(())
}

/// Whether a host and its gateway are there and joined: the last thing made is the first to be missing.
pub(crate) fn is_complete(plan: &Plan, behind: &Behind) -> bool {
    is_port(plan, &behind.leg)
        && run("ip", &["-n", &behind.host_ns, "route", "get", &plan.host_address().to_string()]).is_ok()
        && {
            let mut door = in_netns(&behind.gateway_ns, "iptables");
            door.args(["-w", "-t", "nat", "-S", "GN-DOOR"]);
            finish(door, None).is_ok()
        }
}

fn is_port(plan: &Plan, leg: &str) -> bool {
    let bridge = format!("/sys/class/net/{leg}/master");
    std::fs::read_link(bridge).is_ok_and(|master| master.ends_with(plan.bridge_name()))
}

/// What joins a gateway with the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joint {
    /// A pair of devices that the kernel joins.
    Cable,
    /// A device at either end, for a link to join.
    Link,
}

/// Frames that a device may hold for its link: a burst must not be lost to a thread that has just slept.
const LINK_QUEUE: &str = "10000";

/// Makes a gateway and the namespace of the host behind it, from nothing; `more` is what the host needs beside.
pub(crate) fn make(
    plan: &Plan,
    behind: &Behind,
    joint: Joint,
    more: impl FnOnce() -> Result<(), LabError>,
) -> Result<(), LabError> {
    remove(behind)?;
    let Behind { host_ns, gateway_ns, leg, outer, gateway, host, .. } = behind;
    for namespace in [gateway_ns, host_ns] {
        run("ip", &["netns", "add", namespace])?;
        run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
    }
    match joint {
        Joint::Cable => {
            run("ip", &["link", "add", leg, "type", "veth", "peer", "name", WAN, "netns", gateway_ns])?;
        }
        Joint::Link => {
            run("ip", &["tuntap", "add", "dev", leg, "mode", "tap"])?;
            run("ip", &["-n", gateway_ns, "tuntap", "add", "dev", WAN, "mode", "tap"])?;
            run("ip", &["link", "set", leg, "txqueuelen", LINK_QUEUE])?;
            run("ip", &["-n", gateway_ns, "link", "set", WAN, "txqueuelen", LINK_QUEUE])?;
        }
    }
    run("ip", &["link", "set", leg, "addrgenmode", "none"])?;
    run("ip", &["link", "set", leg, "master", &plan.bridge_name(), "up"])?;
    run(
        "ip",
        &["-n", gateway_ns, "link", "add", GATEWAY_LAN, "type", "veth", "peer", "name", NODE_LAN, "netns", host_ns],
    )?;
    for (namespace, link, address) in
        [(gateway_ns, WAN, outer), (gateway_ns, GATEWAY_LAN, gateway), (host_ns, NODE_LAN, host)]
    {
        run("ip", &["-n", namespace, "address", "add", &format!("{address}/24"), "dev", link])?;
        run("ip", &["-n", namespace, "link", "set", link, "up"])?;
    }
    for namespace in [gateway_ns, host_ns] {
        forward(namespace)?;
    }
    let mut rules = in_netns(gateway_ns, "iptables-restore");
    rules.arg("-w");
    finish(rules, Some(&gateway_rules()))?;
    more()?;
    // Last: it is what tells a complete network from a half-made one.
    run("ip", &["-n", host_ns, "route", "add", "default", "via", &gateway.to_string()])?;
    Ok(())
}

/// Makes a namespace pass packets on.
fn forward(namespace: &str) -> Result<(), LabError> {
    // The bridge filter makes Services work between pods of one node; kernels without it do that anyway.
    let settings = "echo 1 > /proc/sys/net/ipv4/ip_forward
        if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables; fi";
    let mut shell = in_netns(namespace, "sh");
    shell.args(["-euc", settings]);
    finish(shell, None).map(drop)
}

/// Whether a relay's host is there and joined to the bridge.
pub(crate) fn has_relay_host(plan: &Plan, relay: &RelayPlan) -> bool {
    is_port(plan, &relay.leg)
        && run("ip", &["-n", &relay.netns, "route", "get", &plan.host_address().to_string()]).is_ok()
}

/// Makes a relay's host on the bridge, from nothing.
pub(crate) fn make_relay_host(plan: &Plan, relay: &RelayPlan) -> Result<(), LabError> {
    let RelayPlan { netns, leg, address, .. } = relay;
    remove_relay_host(relay)?;
    run("ip", &["netns", "add", netns])?;
    run("ip", &["-n", netns, "link", "set", "lo", "up"])?;
    run("ip", &["link", "add", leg, "type", "veth", "peer", "name", WAN, "netns", netns])?;
    run("ip", &["link", "set", leg, "addrgenmode", "none"])?;
    run("ip", &["link", "set", leg, "master", &plan.bridge_name(), "up"])?;
    run("ip", &["-n", netns, "address", "add", &format!("{address}/24"), "dev", WAN])?;
    run("ip", &["-n", netns, "link", "set", WAN, "up"]).map(drop)
}

/// Removes it; what is not there is fine.
pub(crate) fn remove_relay_host(relay: &RelayPlan) -> Result<(), LabError> {
    remove_link(&relay.leg)?;
    remove_namespace(&relay.netns)
}

/// By name, at once: with its namespace a link would go some time later.
fn remove_link(name: &str) -> Result<(), LabError> {
    if Path::new("/sys/class/net").join(name).exists() {
        run("ip", &["link", "del", name])?;
    }
    Ok(())
}

fn remove_namespace(name: &str) -> Result<(), LabError> {
    if namespace_file(name).exists() {
        run("ip", &["netns", "del", name])?;
    }
    Ok(())
}

/// Whether a router's own host is there and joined to its gateway.
pub(crate) fn has_router_host(plan: &Plan, router: &RouterPlan) -> bool {
    namespace_file(&router.netns).exists()
        && run("ip", &["-n", &router.netns, "route", "get", &plan.host_address().to_string()]).is_ok()
}

/// Makes a router's own host on the cluster's LAN, from nothing. It has a leg of the gateway to itself, so that it can be
/// cut off alone; what it sends to the node goes by the gateway, too.
pub(crate) fn make_router_host(cluster: &ClusterPlan, router: &RouterPlan) -> Result<(), LabError> {
    let ClusterPlan { node_ns, gateway_ns, .. } = cluster;
    let RouterPlan { netns, leg, address, .. } = router;
    remove_router_host(cluster, router)?;
    run("ip", &["netns", "add", netns])?;
    run("ip", &["-n", netns, "link", "set", "lo", "up"])?;
    run("ip", &["-n", gateway_ns, "link", "add", leg, "type", "veth", "peer", "name", NODE_LAN, "netns", netns])?;
    let [to_router, gateway] = [format!("{address}/32"), LAN_GATEWAY.to_string()];
    for (namespace, link, own) in
        [(gateway_ns, leg.as_str(), format!("{gateway}/32")), (netns, NODE_LAN, to_router.clone())]
    {
        run("ip", &["-n", namespace, "address", "add", &own, "dev", link])?;
        run("ip", &["-n", namespace, "link", "set", link, "up"])?;
    }
    run("ip", &["-n", gateway_ns, "route", "replace", &to_router, "dev", leg])?;
    run("ip", &["-n", gateway_ns, "route", "replace", POD_NETWORK, "via", &NODE_ADDRESS.to_string()])?;
    run("ip", &["-n", node_ns, "route", "replace", &to_router, "via", &gateway])?;
    run("ip", &["-n", netns, "route", "add", &gateway, "dev", NODE_LAN])?;
    forward(netns)?;
    // Last, as above.
    run("ip", &["-n", netns, "route", "add", "default", "via", &gateway]).map(drop)
}

fn remove_router_host(cluster: &ClusterPlan, router: &RouterPlan) -> Result<(), LabError> {
    // As `remove_link`, in the gateway.
    if namespace_file(&cluster.gateway_ns).exists()
        && run("ip", &["-n", &cluster.gateway_ns, "link", "show", &router.leg]).is_ok()
    {
        run("ip", &["-n", &cluster.gateway_ns, "link", "del", &router.leg])?;
    }
    remove_namespace(&router.netns)
}

/// A home router's rules: masquerade (or what [`set_nat`] says), forward from inside, drop what comes unasked.
///
/// Unasked UDP must be dropped, not refused: a refusal leaves a connection entry behind that makes the next outgoing
/// packet to the same peer leave by another port, and hole punching fails as it would behind no real router.
fn gateway_rules() -> String {
    format!(
        "*nat
:PREROUTING ACCEPT
:GN-DOOR -
:GN-CONE -
:GN-NAT -
-A PREROUTING -i {WAN} -j GN-DOOR
-A PREROUTING -i {WAN} -j GN-CONE
-A POSTROUTING -o {WAN} -j GN-NAT
-A GN-NAT -j MASQUERADE
COMMIT
*filter
:INPUT DROP
:FORWARD DROP
:GN-FAULT -
:GN-OPEN -
-A INPUT -j GN-FAULT
-A INPUT -i lo -j ACCEPT
-A INPUT -i {GATEWAY_LAN}+ -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp --icmp-type echo-request -j ACCEPT
-A INPUT -p tcp -j REJECT --reject-with tcp-reset
-A FORWARD -j GN-FAULT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i {GATEWAY_LAN}+ -j ACCEPT
-A FORWARD -i {WAN} -m conntrack --ctstate DNAT -j ACCEPT
-A FORWARD -i {WAN} -j GN-OPEN
COMMIT
"
    )
}

/// Opens or shuts the door: one TCP port of the gateway that leads to the API server. Shutting cuts what is open.
pub(crate) fn set_door(cluster: &ClusterPlan, open: bool) -> Result<(), LabError> {
    let rules = if open {
        format!("-A GN-DOOR -p tcp --dport {API_PORT} -j DNAT --to-destination {NODE_ADDRESS}:{API_PORT}\n")
    } else {
        String::new()
    };
    replace_chain(&cluster.gateway_ns, "nat", "GN-DOOR", &rules)?;
    if !open {
        forget(
            &cluster.gateway_ns,
            &["-p", "tcp", "--orig-dst", &cluster.outer.to_string(), "--orig-port-dst", &API_PORT.to_string()],
        )?;
    }
    Ok(())
}

/// What a gateway drops beside what it always does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// All UDP.
    pub(crate) udp_blocked: bool,
    /// Legs of the LAN that reach nothing outside, nor are reached.
    pub(crate) cut: Vec<String>,
    /// Legs of the LAN that reach the outside but not the node.
    pub(crate) detached: Vec<String>,
}

/// Makes the gateway drop that and no more.
pub(crate) fn set_faults(gateway: &str, faults: &Faults) -> Result<(), LabError> {
    replace_chain(gateway, "filter", "GN-FAULT", &fault_rules(faults))
}

/// Dropped, never refused: what is cut off is silent. A door stays: it is no way of the router's.
fn fault_rules(faults: &Faults) -> String {
    let mut rules = String::new();
    if faults.udp_blocked {
        rules += "-A GN-FAULT -p udp -j DROP\n";
    }
    for leg in &faults.cut {
        if leg == GATEWAY_LAN {
            rules += &format!("-A GN-FAULT -i {WAN} -o {leg} -p tcp --dport {API_PORT} -j RETURN\n");
            rules += &format!("-A GN-FAULT -i {leg} -o {WAN} -p tcp --sport {API_PORT} -j RETURN\n");
        }
        rules += &both_ways(leg, WAN);
    }
    for leg in &faults.detached {
        rules += &both_ways(leg, GATEWAY_LAN);
    }
    rules
}

fn both_ways(one: &str, other: &str) -> String {
    format!("-A GN-FAULT -i {one} -o {other} -j DROP\n-A GN-FAULT -i {other} -o {one} -j DROP\n")
}

/// Forgets what UDP went through the gateway: mappings must not outlive a block, a real gateway's would not.
pub(crate) fn forget_udp(gateway: &str) -> Result<(), LabError> {
    forget(gateway, &["-p", "udp"])
}

/// Sets a chain's rules, all at once.
fn replace_chain(gateway: &str, table: &str, chain: &str, rules: &str) -> Result<(), LabError> {
    let mut restore = in_netns(gateway, "iptables-restore");
    restore.args(["-w", "--noflush"]);
    finish(restore, Some(&format!("*{table}\n:{chain} -\n-F {chain}\n{rules}COMMIT\n")))?;
    Ok(())
}

/// Removes connection entries of the gateway.
fn forget(gateway: &str, filter: &[&str]) -> Result<(), LabError> {
    let mut conntrack = in_netns(gateway, "conntrack");
    conntrack.arg("-D").args(filter);
    match finish(conntrack, None) {
        // It fails when there is nothing to remove, and says so.
        Err(LabError::Command { said, .. }) if said.contains("0 flow entries") => Ok(()),
        other => other.map(drop),
    }
}

/// Removes a host, its gateway and its link; what is not there is fine.
pub(crate) fn remove(behind: &Behind) -> Result<(), LabError> {
    remove_link(&behind.leg)?;
    remove_namespace(&behind.host_ns)?;
    remove_namespace(&behind.gateway_ns)
}

/// Removes the bridge.
pub(crate) fn remove_bridge(plan: &Plan) -> Result<(), LabError> {
    remove_link(&plan.bridge_name())
}

/// The file that names a namespace.
pub(crate) fn namespace_file(name: &str) -> std::path::PathBuf {
    Path::new("/run/netns").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_networks_but_the_default_is_not() {
        assert_eq!(parse_network("10.0.0.0/8"), Some((Ipv4Addr::new(10, 0, 0, 0), 8)));
        assert_eq!(parse_network("192.0.2.7"), Some((Ipv4Addr::new(192, 0, 2, 7), 32)));
        assert_eq!(parse_network("default"), None);
    }

    #[test]
    fn faults_drop_both_ways_and_leave_the_door() {
        let faults =
            Faults { udp_blocked: true, cut: vec!["lan".into(), "lan2".into()], detached: vec!["lan3".into()] };
        assert_eq!(
            fault_rules(&faults).lines().map(|line| line.trim_start_matches("-A GN-FAULT ")).collect::<Vec<_>>(),
            [
                "-p udp -j DROP",
                "-i wan -o lan -p tcp --dport 6443 -j RETURN",
                "-i lan -o wan -p tcp --sport 6443 -j RETURN",
                "-i lan -o wan -j DROP",
                "-i wan -o lan -j DROP",
                "-i lan2 -o wan -j DROP",
                "-i wan -o lan2 -j DROP",
                "-i lan3 -o lan -j DROP",
                "-i lan -o lan3 -j DROP",
            ]
        );
        assert_eq!(fault_rules(&Faults::default()), "");
    }
}
