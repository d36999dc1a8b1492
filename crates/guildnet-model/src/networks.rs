//! The networks of one cluster: IPv4 prefixes without host bits that do not overlap each other.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Class, Explain};

/// A cluster's Pod and Service networks, sorted; never empty, no host bits, no overlap, nothing that is the device's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Networks(Vec<Ipv4Net>);

/// Why a list of networks was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworksError {
    /// The list holds nothing.
    #[error("no networks given")]
    Empty,
    /// The text is no IPv4 prefix.
    #[error("{0:?} is not an IPv4 network")]
    NotANetwork(String),
    /// Bits are set behind the prefix length.
    #[error("{given} has host bits set; the network is {network}")]
    HostBits {
        /// As it was written.
        given: String,
        /// What was probably meant.
        network: Ipv4Net,
    },
    /// Two networks of the same cluster share addresses.
    #[error("{0} and {1} overlap")]
    Overlap(Ipv4Net, Ipv4Net),
    /// The network can't be a cluster's: default route, loopback, link-local, multicast, or the tailnet's own range.
    #[error("{0} is {1}; it can't be a cluster's network")]
    Reserved(Ipv4Net, &'static str),
    /// The network holds such a one.
    #[error("{0} holds {1} ({2}); it can't be a cluster's network")]
    HoldsReserved(Ipv4Net, Ipv4Net, &'static str),
}

impl Explain for NetworksError {
    fn class(&self) -> Class {
        match self {
            Self::Overlap(..) | Self::Reserved(..) | Self::HoldsReserved(..) => Class::Conflict,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::HostBits { network, .. } => format!("write {network}"),
            Self::Overlap(..) => "give each network once, Pods and Services apart".into(),
            Self::Reserved(_, TAILNET) | Self::HoldsReserved(_, _, TAILNET) => {
                "Headscale gives routers and connectors their own addresses from 100.64.0.0/10, so such a network would hide \
                 them: give the cluster another network, or leave this one out and name the others with --routes"
                    .into()
            }
            _ => "give the cluster's Pod and Service networks, for example --routes 10.96.0.0/16,10.244.0.0/16".into(),
        })
    }
}

/// What the range is called that Headscale gives to nodes (RFC 6598).
const TAILNET: &str = "the tailnet's own range";

/// Ranges that belong to the device, the internet's plumbing or the tailnet, never to a cluster.
const RESERVED: &[(Ipv4Net, &str)] = &[
    (net([127, 0, 0, 0], 8), "loopback"),
    (net([100, 64, 0, 0], 10), TAILNET),
    (net([169, 254, 0, 0], 16), "link-local"),
    (net([224, 0, 0, 0], 4), "multicast"),
];

const fn net(octets: [u8; 4], len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), len)
}

impl Networks {
    /// Checks and sorts a list.
    ///
    /// # Errors
    /// The first thing that is wrong, see [`NetworksError`].
    pub fn new(nets: impl IntoIterator<Item = Ipv4Net>) -> Result<Self, NetworksError> {
        let mut nets: Vec<Ipv4Net> = nets.into_iter().collect();
        nets.sort();
        nets.dedup();
        if nets.is_empty() {
            return Err(NetworksError::Empty);
        }
        for one in &nets {
            if one.trunc() != *one {
                return Err(NetworksError::HostBits { given: one.to_string(), network: one.trunc() });
            }
            if one.prefix_len() == 0 {
                return Err(NetworksError::Reserved(*one, "the default route"));
            }
            if let Some((_, what)) = RESERVED.iter().find(|(r, _)| r.contains(one)) {
                return Err(NetworksError::Reserved(*one, what));
            }
            if let Some((reserved, what)) = RESERVED.iter().find(|(r, _)| one.contains(r)) {
                return Err(NetworksError::HoldsReserved(*one, *reserved, what));
            }
        }
        for pair in nets.windows(2) {
            if pair[0].contains(&pair[1]) || pair[1].contains(&pair[0]) {
                return Err(NetworksError::Overlap(pair[0], pair[1]));
            }
        }
        Ok(Self(nets))
    }

    /// The prefixes, sorted.
    pub fn as_slice(&self) -> &[Ipv4Net] {
        &self.0
    }

    /// Whether one of the networks holds the address.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        self.0.iter().any(|n| n.contains(&ip))
    }
}

impl FromStr for Networks {
    type Err = NetworksError;

    /// Parses a list separated by commas or white space.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |part: &str| part.parse::<Ipv4Net>().map_err(|_| NetworksError::NotANetwork(part.to_owned()));
        let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|p| !p.is_empty());
        Self::new(parts.map(parse).collect::<Result<Vec<_>, _>>()?)
    }
}

impl TryFrom<Vec<String>> for Networks {
    type Error = NetworksError;

    fn try_from(list: Vec<String>) -> Result<Self, Self::Error> {
        list.join(",").parse()
    }
}

impl From<Networks> for Vec<String> {
    fn from(nets: Networks) -> Self {
        nets.0.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, n) in self.0.iter().enumerate() {
            write!(f, "{}{n}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        text.parse::<Networks>().expect_err("refused").to_string()
    }

    #[test]
    fn a_list_is_sorted_and_printed_back() {
        let nets: Networks = " 10.244.0.0/16, 10.96.0.0/16 10.96.0.0/16".parse().expect("networks");
        assert_eq!(nets.to_string(), "10.96.0.0/16,10.244.0.0/16");
        assert!(nets.contains(Ipv4Addr::new(10, 96, 0, 1)));
        assert!(!nets.contains(Ipv4Addr::new(10, 97, 0, 1)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(said(""), "no networks given");
        assert_eq!(said("fd00::/8"), "\"fd00::/8\" is not an IPv4 network");
        assert_eq!(said("10.96.0.1/16"), "10.96.0.1/16 has host bits set; the network is 10.96.0.0/16");
        assert_eq!(said("10.96.0.0/12,10.96.0.0/16"), "10.96.0.0/12 and 10.96.0.0/16 overlap");
        assert_eq!(said("10.0.0.0/8,10.1.0.0/16,10.96.0.0/16"), "10.0.0.0/8 and 10.1.0.0/16 overlap");
        assert_eq!(said("0.0.0.0/0"), "0.0.0.0/0 is the default route; it can't be a cluster's network");
        assert_eq!(said("100.64.1.0/24"), "100.64.1.0/24 is the tailnet's own range; it can't be a cluster's network");
        assert_eq!(said("127.0.0.0/8"), "127.0.0.0/8 is loopback; it can't be a cluster's network");
        assert_eq!(
            said("128.0.0.0/1"),
            "128.0.0.0/1 holds 169.254.0.0/16 (link-local); it can't be a cluster's network",
            "half a default route"
        );
    }

    #[test]
    fn the_tailnets_own_range_is_a_conflict_with_its_reason() {
        for text in ["100.64.0.0/10", "100.100.0.0/16", "100.0.0.0/8"] {
            let refused = text.parse::<Networks>().expect_err("refused");
            assert_eq!(refused.class().exit_code(), 6, "{text}");
            assert!(refused.hint().expect("a hint").contains("Headscale gives routers and connectors"), "{text}");
        }
    }
}
