//! 4via6: an IPv4 network of one site, written as an IPv6 prefix, so that equal networks of many sites stay apart.
//!
//! The form is `fd7a:115c:a1e0:b1a:0:SITE:HHHH:LLLL/(96+n)` for the IPv4 prefix `HHHH:LLLL/n` (Tailscale, "4via6 subnet
//! routers"; `net/tsaddr/tsaddr.go`, `MapVia`).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::SiteNumber;

/// The first 64 bits of every 4via6 address.
const PREFIX: [u16; 4] = [0xfd7a, 0x115c, 0xa1e0, 0x0b1a];

/// The 4via6 address of `ip` at `site`.
pub fn address(site: SiteNumber, ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let [p0, p1, p2, p3] = PREFIX;
    Ipv6Addr::new(p0, p1, p2, p3, 0, site.get(), u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// The 4via6 prefix of `net` at `site`.
#[expect(clippy::missing_panics_doc, reason = "96 + at most 32 is a valid IPv6 prefix length")]
pub fn prefix(site: SiteNumber, net: Ipv4Net) -> Ipv6Net {
    Ipv6Net::new(address(site, net.network()), 96 + net.prefix_len()).expect("96 + n with n <= 32 is at most 128")
}

/// All of a site's 4via6 addresses: a /96.
pub fn site(site: SiteNumber) -> Ipv6Net {
    prefix(site, Ipv4Net::default())
}

/// The site number and IPv4 address behind a 4via6 address; `None` for any other address.
pub fn parse(ip: Ipv6Addr) -> Option<(SiteNumber, Ipv4Addr)> {
    let s = ip.segments();
    if s[..4] != PREFIX || s[4] != 0 {
        return None;
    }
    let site = SiteNumber::try_from(u64::from(s[5])).ok()?;
    let [a, b] = s[6].to_be_bytes();
    let [c, d] = s[7].to_be_bytes();
    Some((site, Ipv4Addr::new(a, b, c, d)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_documented_example() {
        let site = SiteNumber::try_from(7).expect("in range");
        assert_eq!(prefix(site, "10.96.0.0/16".parse().expect("net")).to_string(), "fd7a:115c:a1e0:b1a:0:7:a60:0/112");
        assert_eq!(address(site, Ipv4Addr::new(10, 96, 0, 1)).to_string(), "fd7a:115c:a1e0:b1a:0:7:a60:1");
        assert_eq!(super::site(site).to_string(), "fd7a:115c:a1e0:b1a:0:7::/96");
    }

    proptest! {
        #[test]
        fn every_address_comes_back(n in 1u16.., ip: u32) {
            let site = SiteNumber::try_from(u64::from(n)).expect("in range");
            prop_assert_eq!(parse(address(site, ip.into())), Some((site, ip.into())));
        }

        #[test]
        fn other_addresses_are_none(ip: u128) {
            let ip = Ipv6Addr::from(ip);
            prop_assume!(ip.segments()[..4] != PREFIX);
            prop_assert_eq!(parse(ip), None);
        }
    }
}
