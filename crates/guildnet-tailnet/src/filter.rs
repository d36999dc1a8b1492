//! The packet filter: who may open a TCP connection to which address and port of this node. Pure.
//!
//! The server sends lists of rules by name (`control/wire.rs` reads them); what no rule allows is denied. Only what others open
//! is asked for here: what this node dials, and the answers to that, is decided in `routes.rs`.
//!
//! Source: tailscale `tailcfg/tailcfg.go`, `FilterRule` and `MapResponse.PacketFilters`, and `wgengine/filter/tailcfg.go`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::IpNet;

/// The name that stands for all lists, where they are cleared.
pub(crate) const ALL: &str = "*";
/// The list that a message without names means.
pub(crate) const BASE: &str = "base";
/// Lists that are kept. Headscale sends one.
const MAX_LISTS: usize = 64;
/// Bytes of a list's name: the server may choose any, and means few.
const MAX_NAME: usize = 256;
/// Rules and their ranges in one list, and together: some thousand nodes, each named in some rules. What a server sends
/// beyond is left out, and so denied.
const MAX_SIZE: usize = 65_536;

/// Some addresses that follow each other, both ends included. Every IPv4 address comes before every IPv6 address, as in the
/// order of `IpAddr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// All addresses of both families.
    const ANY: Self =
        Self { first: IpAddr::V4(Ipv4Addr::UNSPECIFIED), last: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)) };

    /// Reads `*`, an address, a network or `first-last`. `None` for anything else, as are capabilities (`cap:..`) and networks
    /// with host bits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::ANY);
        }
        if text.contains('/') {
            let net: IpNet = text.parse().ok()?;
            return (net.addr() == net.network()).then(|| Self { first: net.network(), last: net.broadcast() });
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        (self.first..=self.last).contains(&ip)
    }
}

/// One rule: these sources may open TCP connections to these addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// In order, none touches another.
    sources: Vec<Range>,
    targets: Vec<(Range, RangeInclusive<u16>)>,
}

impl Rule {
    pub(crate) fn new(mut sources: Vec<Range>, targets: Vec<(Range, RangeInclusive<u16>)>) -> Self {
        sources.sort_unstable();
        sources.dedup_by(|next, kept| {
            let joins = next.first <= kept.last;
            kept.last = if joins { kept.last.max(next.last) } else { kept.last };
            joins
        });
        Self { sources, targets }
    }

    fn size(&self) -> usize {
        1 + self.sources.len() + self.targets.len()
    }

    fn allows(&self, source: IpAddr, to: IpAddr, port: u16) -> bool {
        let after = self.sources.partition_point(|range| range.first <= source);
        after.checked_sub(1).is_some_and(|at| self.sources[at].contains(source))
            && self.targets.iter().any(|(range, ports)| range.contains(to) && ports.contains(&port))
    }
}

/// What a message changes of one list: its rules, or that there are none any more. [`ALL`] without rules clears all lists.
pub(crate) type Change = (String, Option<Vec<Rule>>);

/// All rules. Without any, nothing is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    lists: BTreeMap<String, Arc<[Rule]>>,
}

impl Filter {
    /// Whether `source` may open a TCP connection to `port` of `to`.
    pub(crate) fn allows(&self, source: IpAddr, to: IpAddr, port: u16) -> bool {
        self.lists.values().flat_map(|list| list.iter()).any(|rule| rule.allows(source, to, port))
    }

    /// Applies what a message changes, in its order.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for (name, rules) in changes {
            let Some(mut rules) = rules else {
                if name == ALL {
                    self.lists.clear();
                }
                self.lists.remove(&name);
                continue;
            };
            let before = self.lists.remove(&name);
            let all = rules.len();
            rules.truncate(self.fitting(&name, &rules));
            // Said once: the server repeats the list with each change of the map.
            if rules.len() < all && before.is_none_or(|before| before.len() != rules.len()) {
                tracing::warn!(rules = all, kept = rules.len(), "the packet filter is too large: the rest is denied");
            }
            if !rules.is_empty() {
                self.lists.insert(name, rules.into());
            }
        }
    }

    /// How many of the rules there is room for.
    fn fitting(&self, name: &str, rules: &[Rule]) -> usize {
        if self.lists.len() >= MAX_LISTS || name.len() > MAX_NAME {
            return 0;
        }
        let mut size: usize = self.lists.values().flat_map(|list| list.iter()).map(Rule::size).sum();
        let fits = |rule: &&Rule| {
            size += rule.size();
            size <= MAX_SIZE
        };
        rules.iter().take_while(fits).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn rule(sources: &[&str], targets: &[(&str, RangeInclusive<u16>)]) -> Rule {
        let range = |text: &str| Range::parse(text).expect("a range");
        Rule::new(
            sources.iter().map(|text| range(text)).collect(),
            targets.iter().map(|(text, ports)| (range(text), ports.clone())).collect(),
        )
    }

    fn filter(rules: Vec<Rule>) -> Filter {
        let mut filter = Filter::default();
        filter.apply(vec![(BASE.into(), Some(rules))]);
        filter
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        assert!(!Filter::default().allows(ip("100.64.0.1"), ip("100.64.0.9"), 22));
        let filter =
            filter(vec![rule(&["100.64.0.1", "100.64.1.0/24"], &[("100.64.0.9", 22..=22), ("100.64.0.9", 80..=90)])]);
        for (source, to, port, allowed) in [
            ("100.64.0.1", "100.64.0.9", 22, true),
            ("100.64.1.255", "100.64.0.9", 85, true),
            ("100.64.0.2", "100.64.0.9", 22, false),
            ("100.64.0.1", "100.64.0.9", 23, false),
            ("100.64.0.1", "100.64.0.8", 22, false),
            ("fd7a:115c:a1e0::1", "100.64.0.9", 22, false),
        ] {
            assert_eq!(filter.allows(ip(source), ip(to), port), allowed, "{source} {to} {port}");
        }
    }

    #[test]
    fn ranges_are_read_in_all_their_forms() {
        let holds = |text, addr| Range::parse(text).expect("a range").contains(ip(addr));
        assert!(holds("*", "0.0.0.0") && holds("*", "255.255.255.255") && holds("*", "::") && holds("*", "ffff::"));
        assert!(holds("10.0.0.3-10.0.0.5", "10.0.0.5") && !holds("10.0.0.3-10.0.0.5", "10.0.0.6"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::ffff:192.0.2.1"));
        assert!(holds("2eff::1-2eff::0800", "2eff::2") && holds("fd7a::/16", "fd7a:1::"));
        for bad in
            ["", "cap:x", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.2-10.0.0.1", "10.0.0.1-::2", "1-2-3", "-", "10.0.0.1 "]
        {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_come_and_go_by_name() {
        let any = || Some(vec![rule(&["*"], &[("*", 0..=65535)])]);
        let allowed = |filter: &Filter| filter.allows(ip("100.64.0.1"), ip("100.64.0.9"), 1);
        let mut filter = Filter::default();
        let mut after = |changes: &[(&str, Option<Vec<Rule>>)]| {
            filter.apply(changes.iter().map(|(name, rules)| ((*name).into(), rules.clone())).collect());
            allowed(&filter)
        };
        assert!(after(&[(BASE, any())]));
        assert!(after(&[]), "nothing said, nothing changed");
        assert!(after(&[("more", Some(vec![]))]));
        assert!(!after(&[(BASE, Some(vec![]))]), "an empty list blocks");
        assert!(after(&[("more", any())]));
        assert!(!after(&[("more", None)]));
        assert!(after(&[("a", any()), ("b", any())]));
        assert!(!after(&[(ALL, None)]));
        assert!(after(&[(ALL, None), ("c", any())]));
        assert!(after(&[(ALL, any()), ("c", None)]), "with rules it is a name as others");
    }

    #[test]
    fn what_is_too_much_is_denied() {
        let mut filter = filter(vec![rule(&["10.0.0.1"], &[("*", 1..=1)]); MAX_SIZE]);
        assert_eq!(filter.lists[BASE].len(), MAX_SIZE / 3);
        filter.apply(vec![("more".into(), Some(vec![rule(&["10.0.0.2"], &[("*", 1..=1)])]))]);
        assert!(!filter.allows(ip("10.0.0.2"), ip("10.0.0.9"), 1));
        filter.apply(vec![(ALL.into(), None)]);
        for n in 0..=MAX_LISTS {
            filter.apply(vec![(n.to_string(), Some(vec![rule(&[&format!("10.0.0.{n}")], &[("*", 1..=1)])]))]);
        }
        assert!(
            filter.allows(ip("10.0.0.63"), ip("10.0.0.9"), 1) && !filter.allows(ip("10.0.0.64"), ip("10.0.0.9"), 1)
        );
    }

    /// A small world, so that rules meet each other and what is asked for.
    fn addrs() -> impl Strategy<Value = IpAddr> {
        let last = prop_oneof![0u8..12, 250u8..=255];
        (any::<bool>(), last).prop_map(|(v4, last)| match v4 {
            true => IpAddr::from([100, 64, 0, last]),
            false => Ipv6Addr::from([0xfd, 0x7a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]).into(),
        })
    }

    /// A text, and the addresses that it means read naively.
    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![
            1 => Just("*".to_owned()),
            4 => addrs().prop_map(|ip| ip.to_string()),
            4 => (addrs(), 0u8..8).prop_map(|(ip, host)| {
                let len = if ip.is_ipv4() { 32 } else { 128 } - host;
                IpNet::new(ip, len).expect("a network").trunc().to_string()
            }),
            4 => (addrs(), addrs()).prop_map(|(a, b)| format!("{a}-{b}")),
        ]
    }

    fn means(text: &str, ip: IpAddr) -> bool {
        if text == "*" {
            return true;
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return net.contains(&ip);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (IpAddr, IpAddr) = (first.parse().expect("one"), last.parse().expect("one"));
        match (first, last, ip) {
            (IpAddr::V4(first), IpAddr::V4(last), IpAddr::V4(ip)) => {
                first.to_bits() <= ip.to_bits() && ip.to_bits() <= last.to_bits()
            }
            (IpAddr::V6(first), IpAddr::V6(last), IpAddr::V6(ip)) => {
                first.to_bits() <= ip.to_bits() && ip.to_bits() <= last.to_bits()
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_filter_allows_what_its_rules_say(
            rules in prop::collection::vec(
                (prop::collection::vec(texts(), 0..6), prop::collection::vec((texts(), 0u16..4, 0u16..4), 0..4)), 0..5),
            asked in prop::collection::vec((addrs(), addrs(), 0u16..4), 1..20),
        ) {
            let ranges = |texts: &[String]| texts.iter().filter_map(|text| Range::parse(text)).collect();
            let targets = |targets: &[(String, u16, u16)]| {
                targets.iter().filter_map(|(text, first, last)| Some((Range::parse(text)?, *first..=*last))).collect()
            };
            let compiled: Vec<Rule> = rules.iter().map(|(from, to)| Rule::new(ranges(from), targets(to))).collect();
            for rule in &compiled {
                prop_assert!(rule.sources.windows(2).all(|pair| pair[0].last < pair[1].first));
            }
            let filter = filter(compiled);
            for (source, to, port) in asked {
                let naive = rules.iter().any(|(from, targets)| {
                    from.iter().any(|text| means(text, source))
                        && targets.iter().any(|(text, first, last)| means(text, to) && *first <= port && port <= *last)
                });
                prop_assert_eq!(filter.allows(source, to, port), naive, "{} {} {}", source, to, port);
            }
        }

        #[test]
        fn any_text_is_a_range_or_none(text in "[0-9a-f.:/*-]{0,40}") {
            if let Some(range) = Range::parse(&text) {
                prop_assert!(range.first <= range.last);
            }
        }
    }
}
