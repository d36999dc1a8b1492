//! The address by which nodes and pods reach a Headscale on this machine. The choice is pure; [`observed`] looks.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use guildnet_model::Class;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::HostError;

/// Which address was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressChoice {
    /// The one that this machine has on its network now.
    Auto,
    /// This one.
    #[serde(untagged)]
    This(Ipv4Addr),
}

/// What a machine's addresses were seen to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The source address of what leaves by the default route.
    pub(crate) routed: Option<Ipv4Addr>,
    /// The IPv4 addresses of all interfaces that are up, with the interface's name.
    pub(crate) own: Vec<(String, Ipv4Addr)>,
}

impl Addresses {
    /// Whether the machine has this address.
    pub(crate) fn has(&self, address: Ipv4Addr) -> bool {
        self.own.iter().any(|(_, own)| *own == address)
    }
}

/// Tailnet addresses, the same in every tailnet: what is served there is reached from inside it only.
fn is_tailnet(address: Ipv4Addr) -> bool {
    let all = Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), 10).expect("10 is a prefix length");
    all.contains(&address)
}

/// Why pods can't reach a server by this address; `None` if they may.
fn unusable(address: Ipv4Addr) -> Option<&'static str> {
    if address.is_loopback() {
        Some("is this machine's own: in a pod it means the pod")
    } else if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        Some("is no machine's address")
    } else if address.is_link_local() {
        Some("is link-local: it leads nowhere beyond the cable")
    } else if is_tailnet(address) {
        Some("lies in 100.64.0.0/10, which tailnets use inside: a node can't reach its server there")
    } else {
        None
    }
}

/// The address that was asked for, or the one of the default route, or the only one that there is.
///
/// # Errors
/// None can be used, or several could.
pub(crate) fn choose(asked: AddressChoice, seen: &Addresses) -> Result<Ipv4Addr, HostError> {
    if let AddressChoice::This(address) = asked {
        return match unusable(address) {
            None => Ok(address),
            Some(why) => Err(HostError::new(Class::Usage, format!("{address} {why}"))
                .with_hint("give the address by which the clusters' nodes reach this machine, or auto")),
        };
    }
    if let Some(address) = seen.routed.filter(|address| unusable(*address).is_none()) {
        return Ok(address);
    }
    let mut usable: Vec<&(String, Ipv4Addr)> = seen.own.iter().filter(|(_, own)| unusable(*own).is_none()).collect();
    usable.sort();
    match usable.as_slice() {
        [(_, only)] => Ok(*only),
        [] => Err(HostError::new(
            Class::Precondition,
            "this machine has no IPv4 address that a cluster's nodes could reach, only loopback ones or none",
        )
        .with_hint(
            "connect it to a network, or name the address by which it is reached: guildnet headscale up --address IP",
        )),
        several => {
            let list: Vec<String> = several.iter().map(|(name, own)| format!("{own} ({name})")).collect();
            Err(HostError::new(
                Class::Usage,
                format!("there is no default route, and this machine has several addresses: {}", list.join(", ")),
            )
            .with_hint("name the one that the clusters' nodes reach: guildnet headscale up --address IP"))
        }
    }
}

/// An address beyond every network of this machine's own (TEST-NET-3, RFC 5737): only the default route leads there.
const BEYOND: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 1), 9);

/// Looks at this machine's addresses. Nothing is sent: connecting a UDP socket only chooses a route and a source.
pub(crate) fn observed() -> Addresses {
    let routed = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(BEYOND).ok()?;
        match socket.local_addr().ok()?.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    };
    let up = nix::net::if_::InterfaceFlags::IFF_UP;
    let own = nix::ifaddrs::getifaddrs().into_iter().flatten().filter(|interface| interface.flags.contains(up));
    let own = own.filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        Some((interface.interface_name, address))
    });
    Addresses { routed: routed(), own: own.collect() }
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn seen(routed: Option<&str>, own: &[(&str, &str)]) -> Addresses {
        let ip = |text: &str| text.parse().expect("an address");
        Addresses { routed: routed.map(ip), own: own.iter().map(|(name, own)| ((*name).into(), ip(own))).collect() }
    }

    fn auto(routed: Option<&str>, own: &[(&str, &str)]) -> Result<String, HostError> {
        choose(AddressChoice::Auto, &seen(routed, own)).map(|address| address.to_string())
    }

    const LO: (&str, &str) = ("lo", "127.0.0.1");

    #[test]
    fn the_default_routes_source_is_taken_whatever_else_there_is() {
        let own = [LO, ("docker0", "172.17.0.1"), ("eth0", "192.168.1.20")];
        assert_eq!(auto(Some("192.168.1.20"), &own).expect("chosen"), "192.168.1.20");
    }

    #[test]
    fn without_a_default_route_the_only_address_is_taken() {
        assert_eq!(auto(None, &[LO, ("eth0", "10.0.0.5")]).expect("chosen"), "10.0.0.5");
        // A VPN holds the default route: its address is of no use to a pod.
        assert_eq!(auto(Some("100.101.2.3"), &[LO, ("eth0", "10.0.0.5")]).expect("chosen"), "10.0.0.5");
    }

    #[test]
    fn none_and_several_are_explained() {
        let none = auto(Some("127.0.0.1"), &[LO, ("eth0", "169.254.1.1")]).expect_err("none");
        assert_eq!(none.class(), Class::Precondition);
        let several = auto(None, &[LO, ("eth1", "10.0.0.5"), ("eth0", "10.0.0.4")]).expect_err("several");
        assert!(several.to_string().ends_with("addresses: 10.0.0.4 (eth0), 10.0.0.5 (eth1)"), "{several}");
        assert!(several.hint().expect("a hint").contains("--address IP"));
    }

    #[test]
    fn an_address_that_pods_cannot_reach_is_refused_even_if_asked_for() {
        let none = Addresses::default();
        for wrong in ["127.0.0.1", "0.0.0.0", "169.254.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255"] {
            let address = wrong.parse().expect("an address");
            assert_eq!(choose(AddressChoice::This(address), &none).expect_err(wrong).class(), Class::Usage);
        }
        let public: Ipv4Addr = [198, 51, 100, 7].into();
        assert_eq!(choose(AddressChoice::This(public), &none).expect("behind a forwarded port"), public);
    }

    #[test]
    fn a_choice_is_stored_as_a_word_or_an_address() {
        let json = |choice| serde_json::to_string(&choice).expect("json");
        for choice in [AddressChoice::Auto, AddressChoice::This([10, 0, 0, 5].into())] {
            assert_eq!(serde_json::from_str::<AddressChoice>(&json(choice)).expect("read back"), choice);
        }
        assert_eq!(
            (json(AddressChoice::Auto).as_str(), json(AddressChoice::This([10, 0, 0, 5].into())).as_str()),
            ("\"auto\"", "\"10.0.0.5\"")
        );
    }

    #[test]
    fn this_machines_loopback_is_seen() {
        assert!(observed().has(Ipv4Addr::LOCALHOST));
    }
}
