//! A policy document of the server, taken apart: what is GuildNet's, read back into clusters, and what is somebody else's.

use std::{collections::BTreeMap, net::IpAddr};

use guildnet_model::{ClusterId, Networks, SiteNumber, via6};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value};

use super::{
    Policy, PolicyError, PolicyInput, hujson,
    others::overlap,
    ours::{self, End, is_our_rule, is_our_tag, texts},
    words,
};

/// The document's members that are looked into. Headscale matches names without regard to case.
const KNOWN: &[&str] = &["tagOwners", "autoApprovers", "acls", "grants", "tests", "groups", "hosts"];

/// A document, taken apart.
pub(super) struct Document {
    /// As it was, comments left out and names of known members in their usual case.
    pub(super) whole: Value,
    /// The clusters that it knows.
    pub(super) clusters: Vec<PolicyInput>,
    /// What is not GuildNet's.
    pub(super) foreign: Map<String, Value>,
    /// What bears GuildNet's names and was written by somebody else, in words.
    pub(super) strange: Vec<String>,
}

impl Document {
    /// Takes the server's text apart.
    pub(super) fn read(text: &str) -> Result<Self, PolicyError> {
        let refuse = |why: &dyn std::fmt::Display| PolicyError::Unreadable { why: why.to_string() };
        let plain = hujson::standardize(text);
        if plain.trim().is_empty() {
            let whole = Value::Object(Map::new());
            return Ok(Self { whole, clusters: vec![], foreign: Map::new(), strange: vec![] });
        }
        let whole: Map<String, Value> = serde_json::from_str(&plain).map_err(|e| refuse(&e))?;
        let whole: Map<String, Value> = whole.into_iter().map(|(name, value)| (usual_case(name), value)).collect();
        let clusters = read_clusters(&whole);
        let foreign =
            whole.iter().filter_map(|(name, value)| Some((name.clone(), foreign_part(name, value)?))).collect();
        let strange = ours::strange(&whole);
        Ok(Self { whole: Value::Object(whole), clusters, foreign, strange })
    }

    /// Whether the server takes it as "everything may reach everything": no rules member at all.
    pub(super) fn allows_all(&self) -> bool {
        ["acls", "grants"].iter().all(|name| self.whole.get(name).is_none_or(Value::is_null))
    }

    /// What is foreign, in words.
    pub(super) fn foreign_in_words(&self) -> Vec<String> {
        self.foreign.iter().map(|(name, value)| words::member(name, value)).collect()
    }

    /// Foreign rules by which a node tagged as ours may reach a node or a network of ours, as JSON.
    pub(super) fn openings(&self, clusters: &[PolicyInput]) -> Vec<String> {
        let reach = |rule: &&Value| {
            let any = |member: &str, test: &dyn Fn(&str) -> bool| texts(rule.get(member)).any(test);
            any("src", &|src| may_be_ours(src, clusters, false)) && any("dst", &|dst| may_be_ours(dst, clusters, true))
        };
        let rules = ["acls", "grants"].iter().filter_map(|name| self.foreign.get(*name)?.as_array()).flatten();
        rules.filter(reach).map(ToString::to_string).collect()
    }

    /// The document that holds this policy in place of what is ours now, beside what is foreign and `more` of it. What
    /// stays keeps its place: rules add up in any order, and a person reads what has changed.
    pub(super) fn with(&self, policy: &Policy, more: Option<Value>) -> Value {
        let ours = serde_json::to_value(policy).expect("text keys and lists of text have a JSON form");
        let mut merged = Value::Object(self.foreign.clone());
        if let Some(more) = more {
            add(&mut merged, more);
        }
        add(&mut merged, ours);
        in_order_of(&self.whole, merged)
    }
}

/// Whether two documents say the same: comments, blanks and the order of members do not count, nor does whether there is
/// none, an empty one, or one without any member.
///
/// # Errors
/// [`PolicyError::Unreadable`] for either.
pub fn same_policy(one: Option<&str>, other: Option<&str>) -> Result<bool, PolicyError> {
    let read = |text: Option<&str>| Document::read(text.unwrap_or_default());
    Ok(read(one)?.whole == read(other)?.whole)
}

/// The lists of `wanted` with the entries that `held` has too in its order, the new ones behind them.
fn in_order_of(held: &Value, wanted: Value) -> Value {
    match (held, wanted) {
        (Value::Object(held), Value::Object(wanted)) => {
            let ordered = |(name, value): (String, Value)| match held.get(&name) {
                Some(there) => (name, in_order_of(there, value)),
                None => (name, value),
            };
            Value::Object(wanted.into_iter().map(ordered).collect())
        }
        (Value::Array(held), Value::Array(mut wanted)) => {
            let mut ordered = Vec::with_capacity(wanted.len());
            for entry in held {
                if let Some(at) = wanted.iter().position(|w| w == entry) {
                    ordered.push(wanted.remove(at));
                }
            }
            ordered.append(&mut wanted);
            Value::Array(ordered)
        }
        (_, wanted) => wanted,
    }
}

/// Adds to a document: objects member by member, lists behind what is there.
pub(super) fn add(to: &mut Value, more: Value) {
    match (to, more) {
        (Value::Object(to), Value::Object(more)) => {
            for (name, value) in more {
                match to.get_mut(&name) {
                    Some(there) => add(there, value),
                    None => drop(to.insert(name, value)),
                }
            }
        }
        (Value::Array(to), Value::Array(more)) => to.extend(more),
        (to, more) => *to = more,
    }
}

fn usual_case(name: String) -> String {
    KNOWN.iter().find(|known| known.eq_ignore_ascii_case(&name)).map_or(name, |known| (*known).to_owned())
}

/// What of a member is not ours; `None` if nothing is.
fn foreign_part(name: &str, value: &Value) -> Option<Value> {
    let left = match (name, value) {
        ("tagOwners", Value::Object(owners)) => Value::Object(
            owners.iter().filter(|(tag, _)| !is_our_tag(tag)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        ),
        ("acls" | "grants", Value::Array(rules)) => {
            Value::Array(rules.iter().filter(|r| !is_our_rule(r)).cloned().collect())
        }
        ("autoApprovers", Value::Object(approvers)) => {
            let part = |(kind, value): (&String, &Value)| match value {
                Value::Object(routes) => {
                    let routes = routes.iter().filter_map(|(net, who)| Some((net.clone(), without_our_tags(who)?)));
                    let routes: Map<String, Value> = routes.collect();
                    (!routes.is_empty()).then(|| (kind.clone(), Value::Object(routes)))
                }
                other => Some((kind.clone(), without_our_tags(other)?)),
            };
            Value::Object(approvers.iter().filter_map(part).collect())
        }
        (_, other) => other.clone(),
    };
    let empty = match &left {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    (!empty).then_some(left)
}

fn without_our_tags(approvers: &Value) -> Option<Value> {
    let Value::Array(list) = approvers else { return (!approvers.is_null()).then(|| approvers.clone()) };
    let left: Vec<Value> = list.iter().filter(|who| !who.as_str().is_some_and(is_our_tag)).cloned().collect();
    (!left.is_empty()).then_some(Value::Array(left))
}

/// Reads our own part back. A cluster of which no network can be read has nothing that could be kept.
fn read_clusters(whole: &Map<String, Value>) -> Vec<PolicyInput> {
    let owners = whole.get("tagOwners").and_then(Value::as_object).into_iter().flatten();
    let ids = owners.filter_map(|(tag, _)| ours::tag(tag).filter(|(_, end)| *end == End::Router).map(|(id, _)| id));
    let approvers = whole.get("autoApprovers").and_then(|a| a.get("routes")).and_then(Value::as_object);
    let mut found: BTreeMap<ClusterId, Vec<IpNet>> = BTreeMap::new();
    for id in ids {
        let (router, client) = (id.router_tag(), id.client_tag());
        let approved = approvers.into_iter().flatten().filter(|(_, who)| texts(Some(who)).any(|tag| tag == router));
        let mut nets: Vec<IpNet> = approved.filter_map(|(net, _)| net.parse().ok()).collect();
        let rules = ["acls", "grants"].iter().filter_map(|name| whole.get(*name)?.as_array()).flatten();
        for rule in rules.filter(|rule| texts(rule.get("src")).eq([client.as_str()])) {
            nets.extend(texts(rule.get("dst")).filter_map(|dst| dst.trim_end_matches(":*").parse::<IpNet>().ok()));
        }
        found.entry(id).or_default().extend(nets);
    }
    found.into_iter().filter_map(|(cluster, nets)| input(cluster, &nets)).collect()
}

fn input(cluster: ClusterId, nets: &[IpNet]) -> Option<PolicyInput> {
    let mut site: Option<SiteNumber> = None;
    let mut plain: Vec<Ipv4Net> = Vec::new();
    for net in nets {
        let net = match net {
            IpNet::V4(net) => *net,
            IpNet::V6(net) => {
                let Some((number, ip)) = via6::parse(net.network()) else { continue };
                site = site.or(Some(number));
                let Some(Ok(net)) = net.prefix_len().checked_sub(96).map(|len| Ipv4Net::new(ip, len)) else { continue };
                net
            }
        };
        // One that contradicts those before it was not written by us.
        if Networks::new(plain.iter().copied().chain([net])).is_ok() {
            plain.push(net);
        }
    }
    Some(PolicyInput { cluster, routes: Networks::new(plain).ok()?, site })
}

/// The tailnet's own ranges, whose addresses our nodes have (Headscale's `prefixes`, which must lie within these).
const TAILNET: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];

/// Whether a source or destination of a foreign rule may stand for one of our nodes or networks. Names of hosts count as
/// such: what they stand for can change. Users, groups, their autogroups and others' tags can't: our nodes are tagged.
fn may_be_ours(alias: &str, clusters: &[PolicyInput], is_destination: bool) -> bool {
    // ACL destinations end with ports, grants' do not; an IPv6 address ends with neither, but may lose its last group here,
    // so both readings are tried.
    let stripped = if is_destination { alias.rsplit_once(':').map(|(host, _)| host) } else { None };
    [Some(alias), stripped].into_iter().flatten().any(|alias| match alias {
        "*" | "autogroup:tagged" | "autogroup:danger-all" => true,
        _ if is_our_tag(alias) => true,
        _ if alias.starts_with("tag:") || alias.starts_with("group:") || alias.starts_with("autogroup:") => false,
        _ if alias.contains('@') || matches!(alias, "tag" | "group" | "autogroup") => false,
        _ => match alias.parse::<IpNet>().ok().or_else(|| alias.parse::<IpAddr>().ok().map(IpNet::from)) {
            Some(net) => overlaps_ours(net, clusters),
            None => !alias.contains([':', '/']) && !alias.starts_with(|c: char| c.is_ascii_digit()),
        },
    })
}

fn overlaps_ours(net: IpNet, clusters: &[PolicyInput]) -> bool {
    let overlaps = |other: IpNet| overlap(net, other);
    let tailnet = TAILNET.iter().filter_map(|range| range.parse::<IpNet>().ok());
    let networks = clusters.iter().flat_map(|c| c.routes.as_slice()).map(|n| IpNet::V4(*n));
    tailnet.chain(networks).any(overlaps)
}
