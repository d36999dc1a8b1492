//! Where a cluster's networks meet the networks that this machine is in itself. Networks that can't be a cluster's at all
//! (default route, loopback, the tailnet's own range) are refused by their type, `guildnet_model::Networks`.
//!
//! An overlap is told and not refused: nothing of the host changes, so both networks stay reachable, each by its own way.

use guildnet_model::Networks;
use ipnet::Ipv4Net;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// A network that this machine has an address in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OwnNetwork {
    pub(crate) interface: String,
    pub(crate) net: Ipv4Net,
}

/// The networks of this machine's interfaces that are up, loopback and single addresses left out. None if the system does
/// not tell: this is only for a remark.
pub(crate) fn own_networks() -> Vec<OwnNetwork> {
    let Ok(all) = getifaddrs() else { return vec![] };
    let up =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let mut found: Vec<OwnNetwork> = all
        .filter(|one| up(one.flags))
        .filter_map(|one| {
            let ip = one.address?.as_sockaddr_in()?.ip();
            let mask = one.netmask?.as_sockaddr_in()?.ip();
            let net = Ipv4Net::with_netmask(ip, mask).ok()?.trunc();
            (net.prefix_len() < 32).then_some(OwnNetwork { interface: one.interface_name, net })
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What to tell a person about each of a cluster's networks that shares addresses with one of this machine's.
pub(crate) fn remarks(networks: &Networks, own: &[OwnNetwork]) -> Vec<String> {
    let shares = |net: &Ipv4Net, own: &Ipv4Net| net.contains(own) || own.contains(net);
    let pairs = networks.as_slice().iter().flat_map(|net| own.iter().map(move |own| (net, own)));
    pairs
        .filter(|(net, own)| shares(net, &own.net))
        .map(|(net, own)| {
            format!(
                "warning: {net} shares addresses with this machine's own network {} ({}); nothing of this machine changes: \
                 what is dialled through GuildNet reaches the cluster there, every other program this machine's own network \
                 as before",
                own.net, own.interface
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(interface: &str, net: &str) -> OwnNetwork {
        OwnNetwork { interface: interface.into(), net: net.parse().expect("a network") }
    }

    #[test]
    fn a_shared_network_is_told_with_its_interface_whichever_is_the_wider() {
        let lan = [own("eth0", "192.168.1.0/24"), own("docker0", "172.17.0.0/16")];
        let of = |text: &str| remarks(&text.parse().expect("networks"), &lan);
        let said = of("10.96.0.0/16,192.168.0.0/16");
        assert_eq!(said.len(), 1);
        assert!(
            said[0].contains("192.168.0.0/16 shares addresses with this machine's own network 192.168.1.0/24 (eth0)")
        );
        assert_eq!(of("172.17.3.0/24").len(), 1);
        assert_eq!(of("10.96.0.0/16,10.244.0.0/16"), Vec::<String>::new());
    }

    #[test]
    fn the_machines_own_networks_are_read_without_loopback() {
        assert!(own_networks().iter().all(|o| !o.net.addr().is_loopback() && o.net == o.net.trunc()));
    }
}
