//! The JSON of the packet filter (tailscale `tailcfg/tailcfg.go`, `FilterRule`, `NetPortRange`, `MapResponse.PacketFilters`).
//!
//! A rule of which a part can't be read allows what the rest of it says, as long as that is no more than the whole would: a
//! source or a target less is safe, unknown protocols or the old form of networks deny it. A list that can't be read is an
//! empty one, since it would replace one that the server no longer wants.

use serde::Deserialize;

use super::lax::{Lax, List, Pairs};
use crate::filter::{ALL, BASE, Change, Range, Rule};

/// The number of TCP (IANA, protocol numbers).
const TCP: i64 = 6;

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct FilterRule {
    #[serde(rename = "SrcIPs")]
    sources: Lax<List<String>>,
    /// Once the lengths of the networks; servers write them to clients of 2020 only.
    src_bits: Lax<List<i64>>,
    dst_ports: Lax<List<Target>>,
    #[serde(rename = "IPProto")]
    protocols: Lax<List<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Target {
    #[serde(rename = "IP")]
    ip: String,
    /// As `SrcBits`.
    bits: Option<i64>,
    ports: Ports,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ports {
    first: u16,
    last: u16,
}

/// What the two forms of the filter in one message change; `bad` counts what can't be read. The older form comes first.
pub(super) fn changes(
    base: Lax<List<FilterRule>>,
    named: Lax<Pairs<String, Lax<List<FilterRule>>>>,
    bad: &mut usize,
) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    if let Some(rules) = rules(base, bad) {
        all.push((BASE.to_owned(), Some(rules)));
    }
    if named.is_bad() {
        all.push((ALL.to_owned(), None));
    }
    let mut named = named.pairs(bad).unwrap_or_default();
    // Everything is cleared before anything is set.
    named.sort_by_key(|(name, _)| name != ALL);
    all.extend(named.into_iter().map(|(name, list)| (name, rules(list, bad))));
    all
}

/// `None` for none at all.
fn rules(list: Lax<List<FilterRule>>, bad: &mut usize) -> Option<Vec<Rule>> {
    let unreadable = list.is_bad();
    let read = list.list(bad).map(|rules| rules.into_iter().filter_map(|rule| rule.into_rule(bad)).collect());
    read.or(unreadable.then(Vec::new))
}

impl FilterRule {
    /// `None` if it says nothing of TCP.
    fn into_rule(self, bad: &mut usize) -> Option<Rule> {
        let before = *bad;
        let old = self.src_bits.list(bad).is_some_and(|bits| !bits.is_empty());
        *bad += usize::from(old);
        let protocols = self.protocols.list(bad).unwrap_or_default();
        let is_tcp = protocols.contains(&TCP) || (protocols.is_empty() && *bad == before);
        if old || !is_tcp {
            return None;
        }
        let mut range = |text: &str| {
            let range = Range::parse(text);
            *bad += usize::from(range.is_none());
            range
        };
        let mut read = 0;
        let sources = self.sources.list(&mut read).unwrap_or_default();
        let sources: Vec<Range> = sources.iter().filter_map(|text| range(text)).collect();
        let targets = self.dst_ports.list(&mut read).unwrap_or_default().into_iter();
        // The old form is no range, whatever its text is.
        let target = |to: Target| Some((range(to.bits.map_or(&to.ip, |_| ""))?, to.ports.first..=to.ports.last));
        let targets: Vec<_> = targets.filter_map(target).collect();
        *bad += read;
        (!sources.is_empty() && !targets.is_empty()).then(|| Rule::new(sources, targets))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::MapResponse;
    use crate::filter::Filter;

    /// The filter after these messages, and how many parts of them are left out.
    fn filter(messages: &[&str]) -> (Filter, usize) {
        let (mut filter, mut all) = (Filter::default(), 0);
        for json in messages {
            let (update, bad) = MapResponse::parse(json.as_bytes()).expect("a map").into_update();
            filter.apply(update.filter);
            all += bad;
        }
        (filter, all)
    }

    fn allows(filter: &Filter, source: &str, port: u16) -> bool {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        filter.allows(ip(source), ip("100.64.0.9"), port)
    }

    /// A rule for 100.64.0.1 to port 80, in which a field is another.
    fn rule(field: &str) -> String {
        let field = if field.is_empty() { String::new() } else { format!(",{field}") };
        format!(
            r#"{{"SrcIPs":["100.64.0.1"],"DstPorts":[{{"IP":"100.64.0.9","Ports":{{"First":80,"Last":80}}}}]{field}}}"#
        )
    }

    #[test]
    fn a_filter_of_headscale_is_understood() {
        let (filter, bad) = filter(&[r#"{"PacketFilters":{"base":[
                {"SrcIPs":["100.64.0.1","100.64.1.0-100.64.1.9","fd7a:115c:a1e0::1"],
                 "DstPorts":[{"IP":"100.64.0.9","Ports":{"First":80,"Last":90}},{"IP":"fd7a:115c:a1e0::9","Ports":{"First":0,"Last":65535}}],
                 "IPProto":[6]},
                {"SrcIPs":["100.64.0.2"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}],"IPProto":[17]},
                {"SrcIPs":["100.64.0.3"],"CapGrant":[{"Dsts":["100.64.0.9/32"],"CapMap":{"example.com/cap":null}}]}
            ]}}"#]);
        assert_eq!(bad, 0);
        for (source, port, allowed) in [
            ("100.64.0.1", 80, true),
            ("100.64.1.5", 90, true),
            ("100.64.1.10", 90, false),
            ("100.64.0.1", 91, false),
            ("100.64.0.2", 80, false),
            ("100.64.0.3", 80, false),
        ] {
            assert_eq!(allows(&filter, source, port), allowed, "{source} {port}");
        }
    }

    #[test]
    fn a_message_that_says_nothing_leaves_the_filter_and_an_empty_list_blocks() {
        let allowing = format!(r#"{{"PacketFilter":[{}]}}"#, rule(""));
        let named = format!(r#"{{"PacketFilters":{{"base":[{}]}}}}"#, rule(""));
        let other = format!(r#"{{"PacketFilters":{{"a":[{}],"*":null}}}}"#, rule(""));
        for (messages, allowed) in [
            (&[&*allowing][..], true),
            (&[&named], true),
            (&[&allowing, "{}"], true),
            (&[&allowing, r#"{"PacketFilter":null,"PacketFilters":null}"#], true),
            (&[&allowing, r#"{"PacketFilters":{}}"#], true),
            (&[&allowing, r#"{"PacketFilter":[]}"#], false),
            (&[&named, r#"{"PacketFilter":[]}"#], false),
            (&[&named, r#"{"PacketFilters":{"base":[]}}"#], false),
            (&[&named, r#"{"PacketFilters":{"base":null}}"#], false),
            (&[&named, r#"{"PacketFilters":{"*":null}}"#], false),
            (&[&named, &other], true),
            (&[&named, &other, r#"{"PacketFilters":{"a":null}}"#], false),
            (&[], false),
        ] {
            let (filter, bad) = filter(messages);
            assert_eq!((allows(&filter, "100.64.0.1", 80), bad), (allowed, 0), "{messages:?}");
        }
    }

    #[test]
    fn a_bad_part_of_a_rule_allows_nothing_and_costs_no_other_rule() {
        let good = r#"{"SrcIPs":["100.64.0.7"],"DstPorts":[{"IP":"*","Ports":{"First":80,"Last":80}}]}"#;
        for (bad_rule, allowed, count) in [
            (rule(""), true, 0),
            (rule(r#""IPProto":null"#), true, 0),
            (rule(r#""IPProto":[]"#), true, 0),
            (rule(r#""IPProto":[17,6]"#), true, 0),
            (rule(r#""IPProto":[17,"x",6]"#), true, 1),
            (rule(r#""IPProto":[17]"#), false, 0),
            (rule(r#""IPProto":["tcp"]"#), false, 1),
            (rule(r#""IPProto":"tcp""#), false, 1),
            (rule(r#""SrcBits":[8]"#), false, 1),
            (rule(r#""SrcBits":"x""#), false, 1),
            (rule("").replace("100.64.0.1\"", "cap:x\""), false, 1),
            (rule("").replace("[\"100.64.0.1\"]", "[\"100.64.0.1\",7]"), true, 1),
            (rule("").replace("100.64.0.9", "100.64.0.9/33"), false, 1),
            (rule("").replace("\"Ports\"", "\"Bits\":8,\"Ports\""), false, 1),
            (rule("").replace("\"Last\":80", "\"Last\":65616"), false, 1),
            (rule("").replace("[{\"IP\"", "[7,{\"IP\""), true, 1),
            ("7".into(), false, 1),
            ("null".into(), false, 1),
            ("{}".into(), false, 0),
        ] {
            let (filter, bad) = filter(&[&format!(r#"{{"PacketFilters":{{"base":[{bad_rule},{good}]}}}}"#)]);
            assert_eq!((allows(&filter, "100.64.0.1", 80), bad), (allowed, count), "{bad_rule}");
            assert!(allows(&filter, "100.64.0.7", 80), "{bad_rule}");
        }
    }

    #[test]
    fn a_list_that_can_not_be_read_blocks() {
        let before = format!(r#"{{"PacketFilters":{{"base":[{}]}}}}"#, rule(""));
        for now in [
            r#"{"PacketFilter":7}"#,
            r#"{"PacketFilters":{"base":{}}}"#,
            r#"{"PacketFilters":"x"}"#,
            r#"{"PacketFilters":[]}"#,
        ] {
            let (filter, bad) = filter(&[&before, now]);
            assert_eq!((allows(&filter, "100.64.0.1", 80), bad), (false, 1), "{now}");
        }
    }
}
