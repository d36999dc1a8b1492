//! The nodes of others on the same server: what they reach among themselves, who would lose that, and a rule that keeps it.
//! Pure, and only as exact as needed: a rule counts as reach whatever its ports are.
//!
//! Absent on purpose: reach from others into our clusters. Closing it is what the policy is for; whoever shall have it gets
//! a rule of their own, which `--merge` keeps.

use std::{collections::BTreeSet, net::IpAddr};

use guildnet_model::Networks;
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value, json};

use super::{
    PolicyError,
    document::Document,
    ours::{self, texts},
};
use crate::{Node, ServerFeatures};

/// A node that GuildNet does not know and that would lose reach which it has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Its name.
    pub node: String,
    /// The nodes, of those that GuildNet does not know, that it reaches now and would not reach any more.
    pub loses: Vec<String>,
}

/// How many names are said of a longer list.
const NAMED: usize = 5;

/// The beginning of a list, and how many more there are.
pub(crate) fn some_of(names: &[String]) -> String {
    match names.len().checked_sub(NAMED) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..NAMED].join(", ")),
    }
}

impl std::fmt::Display for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (reaches {})", self.node, some_of(&self.loses))
    }
}

/// The nodes that carry none of our tags.
pub(crate) fn of_others(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|n| !n.tags.iter().any(|tag| ours::is_our_tag(tag)))
}

/// IPv4 networks that routers of others may serve, default routes left out: those hold everything and serve nothing of ours.
pub(crate) fn taken(nodes: &[Node]) -> Vec<Ipv4Net> {
    let routes = of_others(nodes).flat_map(|n| &n.approved_routes);
    let v4 = routes.filter_map(|route| if let IpNet::V4(net) = route { Some(*net) } else { None });
    let mut nets: Vec<Ipv4Net> = v4.filter(|net| net.prefix_len() > 0).collect();
    nets.sort();
    nets.dedup();
    nets
}

/// Which nodes of others would lose reach among themselves if `after` took the place of `before`.
///
/// # Errors
/// [`PolicyError::Unreadable`] for either.
pub fn cut_off(before: Option<&str>, after: &str, nodes: &[Node]) -> Result<Vec<CutOff>, PolicyError> {
    let (before, after) = (Document::read(before.unwrap_or_default())?, Document::read(after)?);
    Ok(lost(&before.whole, &after.whole, nodes))
}

pub(super) fn lost(before: &Value, after: &Value, nodes: &[Node]) -> Vec<CutOff> {
    let (before, after) = (Reach::of(before), Reach::of(after));
    if after.all || before == after {
        return vec![];
    }
    let others: Vec<&Node> = of_others(nodes).collect();
    let mut found = Vec::new();
    for from in &others {
        let loses = |to: &&&Node| to.id != from.id && before.reaches(from, to) && !after.reaches(from, to);
        let loses: Vec<String> = others.iter().filter(loses).map(|to| to.name.clone()).collect();
        if !loses.is_empty() {
            found.push(CutOff { node: from.name.clone(), loses });
        }
    }
    found
}

/// What a document lets nodes of others reach. Rules for our tags are left out.
#[derive(PartialEq)]
struct Reach<'a> {
    all: bool,
    rules: Vec<Rule<'a>>,
    groups: Option<&'a Map<String, Value>>,
    hosts: Option<&'a Map<String, Value>>,
}

#[derive(PartialEq)]
struct Rule<'a> {
    src: Vec<&'a str>,
    dst: Vec<&'a str>,
}

impl<'a> Reach<'a> {
    fn of(document: &'a Value) -> Self {
        let rules_of = |name: &str, has_ports: bool| {
            let list = document.get(name).and_then(Value::as_array).into_iter().flatten();
            let host = move |dst: &'a str| match dst.rsplit_once(':') {
                Some((host, _)) if has_ports => host,
                _ => dst,
            };
            let rule = move |rule: &'a Value| Rule {
                src: texts(rule.get("src")).collect(),
                dst: texts(rule.get("dst")).map(host).collect(),
            };
            list.filter(|rule| !ours::is_our_rule(rule)).map(rule).collect::<Vec<_>>()
        };
        let all = ["acls", "grants"].iter().all(|name| document.get(*name).is_none_or(Value::is_null));
        let mut rules = rules_of("acls", true);
        rules.extend(rules_of("grants", false));
        let map = |name: &str| document.get(name).and_then(Value::as_object);
        Self { all, rules, groups: map("groups"), hosts: map("hosts") }
    }

    fn reaches(&self, from: &Node, to: &Node) -> bool {
        let by = |rule: &Rule<'_>| {
            rule.src.iter().any(|src| self.means(src, from, None))
                && rule.dst.iter().any(|dst| self.means(dst, to, Some(from)))
        };
        self.all || self.rules.iter().any(by)
    }

    /// Whether an alias stands for the node; with `asker` as a destination, so that networks behind it count too.
    fn means(&self, alias: &str, node: &Node, asker: Option<&Node>) -> bool {
        let is_tagged = !node.tags.is_empty();
        match alias {
            "*" | "autogroup:danger-all" => true,
            "autogroup:member" => !is_tagged,
            "autogroup:tagged" => is_tagged,
            "autogroup:self" => asker.is_some_and(|a| !is_tagged && a.tags.is_empty() && a.user == node.user),
            "autogroup:internet" => asker.is_some() && node.approved_routes.iter().any(|r| r.prefix_len() == 0),
            _ if alias.starts_with("tag:") => node.tags.iter().any(|tag| tag == alias),
            _ if alias.starts_with("group:") => {
                let members = self.groups.and_then(|groups| groups.get(alias));
                texts(members).any(|member| !member.starts_with("group:") && self.means(member, node, asker))
            }
            _ if alias.contains('@') => {
                let name = alias.strip_suffix('@').unwrap_or(alias);
                !is_tagged && node.user.as_deref() == Some(name)
            }
            _ => {
                let named = self.hosts.and_then(|hosts| hosts.get(alias)).and_then(Value::as_str);
                let text = named.unwrap_or(alias);
                let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
                net.is_some_and(|net| {
                    let behind = |route: &IpNet| overlap(net, *route);
                    node.addresses.iter().any(|a| net.contains(a))
                        || (asker.is_some() && node.approved_routes.iter().any(behind))
                })
            }
        }
    }
}

/// Whether two networks have addresses in common.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    match (a, b) {
        (IpNet::V4(a), IpNet::V4(b)) => a.contains(&b) || b.contains(&a),
        (IpNet::V6(a), IpNet::V6(b)) => a.contains(&b) || b.contains(&a),
        _ => false,
    }
}

/// For a server on which everything reaches everything: what lets the nodes of others go on reaching each other, and the
/// networks behind them, once there are rules. Networks that overlap our clusters' are left out: a rule for those would open
/// our routers. `None` if there are not two such nodes.
pub(super) fn rule_for(nodes: &[Node], networks: &[&Networks], server: ServerFeatures) -> Option<Value> {
    let others: Vec<&Node> = of_others(nodes).collect();
    if others.len() < 2 {
        return None;
    }
    let tags: BTreeSet<&str> = others.iter().flat_map(|n| n.tags.iter().map(String::as_str)).collect();
    let members: BTreeSet<String> = others
        .iter()
        .filter(|n| n.tags.is_empty())
        // The autogroup is no source before Headscale 0.27; people who come later are then not in the rule.
        .filter_map(
            |n| if server.via_grants { Some("autogroup:member".to_owned()) } else { n.user.as_deref().map(user) },
        )
        .collect();
    let who: Vec<&str> = members.iter().map(String::as_str).chain(tags.iter().copied()).collect();
    let ours = |route: &IpNet| networks.iter().flat_map(|n| n.as_slice()).any(|net| overlap(*route, IpNet::V4(*net)));
    let routes: BTreeSet<IpNet> = others.iter().flat_map(|n| n.approved_routes.iter().copied()).collect();
    let mut dst: Vec<String> = who.iter().map(|who| format!("{who}:*")).collect();
    dst.extend(routes.iter().filter(|r| r.prefix_len() > 0 && !ours(r)).map(|r| format!("{r}:*")));
    if routes.iter().any(|r| r.prefix_len() == 0) {
        dst.push("autogroup:internet:*".to_owned());
    }
    let owners: Map<String, Value> = tags.iter().map(|tag| ((*tag).to_owned(), json!([]))).collect();
    let mut rule = json!({ "acls": [{ "action": "accept", "src": who, "dst": dst }] });
    if !owners.is_empty() {
        rule["tagOwners"] = Value::Object(owners);
    }
    Some(rule)
}

/// A user as a policy names it.
fn user(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const NEW: ServerFeatures = ServerFeatures::CURRENT;
    const OLD: ServerFeatures = ServerFeatures::BEFORE_029;
    /// What `compile` makes of no clusters at all, which denies everything.
    const CLOSED: &str = r#"{"grants": []}"#;

    /// A node with a number, which gives it an address; `who` is a tag or a user.
    fn node(id: u8, name: &str, who: &str, approved: &[&str]) -> Node {
        let is_tag = who.starts_with("tag:");
        Node {
            id: id.into(),
            node_key: format!("nodekey:{id}"),
            user: Some(if is_tag { "tagged-devices".into() } else { who.into() }),
            tags: if is_tag { vec![who.into()] } else { vec![] },
            addresses: vec![IpAddr::from([100, 64, 0, id])],
            ..fake::listed(name, who, &[], approved)
        }
    }

    fn office() -> Vec<Node> {
        vec![
            node(1, "laptop", "alice", &[]),
            node(2, "nas", "tag:nas", &["192.168.1.0/24"]),
            node(3, "gn-a-router", "tag:gn-a-router", &["10.96.0.0/16"]),
            node(4, "gn-a-client", "tag:gn-a-client", &[]),
        ]
    }

    fn lost_by(before: Option<&str>, after: &str, nodes: &[Node]) -> Vec<String> {
        cut_off(before, after, nodes).expect("readable").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn default_deny_cuts_others_off_from_each_other_on_a_server_that_allowed_all() {
        for open in [None, Some(""), Some("{}"), Some(r#"{"acls": null}"#)] {
            assert_eq!(lost_by(open, CLOSED, &office()), ["laptop (reaches nas)", "nas (reaches laptop)"], "{open:?}");
        }
    }

    #[test]
    fn a_node_alone_and_our_own_nodes_lose_nothing() {
        assert_eq!(lost_by(None, CLOSED, &office()[1..]), [""; 0]);
        assert_eq!(lost_by(None, CLOSED, &office()[2..]), [""; 0]);
        assert_eq!(lost_by(Some(CLOSED), CLOSED, &office()), [""; 0]);
        assert_eq!(lost_by(Some(CLOSED), "{}", &office()), [""; 0]);
    }

    #[test]
    fn rules_of_others_are_followed_through_groups_hosts_and_networks() {
        let with = |rule: &str| {
            format!(r#"{{"groups": {{"group:x": ["alice@"]}}, "hosts": {{"nas": "100.64.0.2"}}, "acls": [{rule}]}}"#)
        };
        let reaching = [
            r#"{"action": "accept", "src": ["alice@"], "dst": ["tag:nas:445"]}"#,
            r#"{"action": "accept", "src": ["group:x"], "dst": ["nas:*"]}"#,
            r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:tagged:*"]}"#,
            r#"{"action": "accept", "src": ["100.64.0.1"], "dst": ["192.168.1.7:22"]}"#,
            r#"{"action": "accept", "src": ["*"], "dst": ["192.168.0.0/16:*"]}"#,
        ];
        for rule in reaching {
            assert_eq!(lost_by(Some(&with(rule)), CLOSED, &office()), ["laptop (reaches nas)"], "{rule}");
            assert_eq!(lost_by(None, &with(rule), &office()), ["nas (reaches laptop)"], "{rule}");
        }
        let not_reaching = [
            r#"{"action": "accept", "src": ["bob@"], "dst": ["*:*"]}"#,
            r#"{"action": "accept", "src": ["alice@"], "dst": ["autogroup:self:*"]}"#,
            r#"{"action": "accept", "src": ["alice@"], "dst": ["10.96.0.0/16:*", "tag:gn-a-router:*"]}"#,
            r#"{"action": "accept", "src": ["tag:gn-a-client"], "dst": ["*:*"]}"#,
        ];
        for rule in not_reaching {
            assert_eq!(lost_by(Some(&with(rule)), CLOSED, &office()), [""; 0], "{rule}");
        }
    }

    #[test]
    fn the_rule_for_others_keeps_all_that_they_have_and_opens_nothing_of_ours() {
        let mut nodes = office();
        nodes.push(node(5, "exit", "tag:exit", &["0.0.0.0/0", "10.96.7.0/24"]));
        let clusters: Networks = "10.96.0.0/16,10.244.0.0/16".parse().expect("networks");
        let rule = rule_for(&nodes, &[&clusters], NEW).expect("a rule");
        assert_eq!(
            rule,
            json!({
                "acls": [{
                    "action": "accept",
                    "src": ["autogroup:member", "tag:exit", "tag:nas"],
                    "dst": ["autogroup:member:*", "tag:exit:*", "tag:nas:*", "192.168.1.0/24:*", "autogroup:internet:*"],
                }],
                "tagOwners": {"tag:exit": [], "tag:nas": []},
            })
        );
        assert_eq!(lost_by(None, &rule.to_string(), &nodes), [""; 0]);
        let old = rule_for(&nodes, &[&clusters], OLD).expect("a rule");
        assert_eq!(old["acls"][0]["src"], json!(["alice@", "tag:exit", "tag:nas"]));
        assert_eq!(rule_for(&nodes[..1], &[&clusters], NEW), None, "one alone has nobody to reach");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (1..=7).map(|n| format!("n{n}")).collect();
        assert_eq!(some_of(&names), "n1, n2, n3, n4, n5 and 2 more");
        assert_eq!(some_of(&names[..5]), "n1, n2, n3, n4, n5");
    }
}
