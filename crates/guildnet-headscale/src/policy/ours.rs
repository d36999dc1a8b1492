//! How GuildNet's own part of a policy is recognised: by its names, and by the form in which it is written.
//!
//! The names are `tag:gn-<cluster>-router` and `tag:gn-<cluster>-client`. An owner of such a tag, a rule all of whose
//! sources are such tags, and an approver with such a tag are GuildNet's by name. What is GuildNet's by name and does not
//! have the form that [`compile`](super::compile) writes was written by somebody else: [`strange`] tells it.

use guildnet_model::ClusterId;
use ipnet::IpNet;
use serde_json::{Map, Value};

/// What every tag of GuildNet begins with.
const OUR_TAGS: &str = "tag:gn-";

/// How much of a rule is quoted, in characters: enough to find it in a document.
const QUOTED: usize = 120;

/// Which end of a cluster's traffic a tag marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The cluster's routers.
    Router,
    /// The connectors to it.
    Client,
}

/// The cluster that a tag of GuildNet names, and which end; `None` for every other text.
pub(crate) fn tag(text: &str) -> Option<(ClusterId, End)> {
    let rest = text.strip_prefix(OUR_TAGS)?;
    let of = |suffix, end| Some((rest.strip_suffix(suffix)?.parse().ok()?, end));
    of("-router", End::Router).or_else(|| of("-client", End::Client))
}

pub(crate) fn is_our_tag(text: &str) -> bool {
    tag(text).is_some()
}

/// The texts of a list; nothing for what is no list.
pub(super) fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// A rule is ours by name if all its sources are our tags.
pub(super) fn is_our_rule(rule: &Value) -> bool {
    match rule.get("src") {
        Some(Value::Array(list)) => !list.is_empty() && list.iter().all(|src| src.as_str().is_some_and(is_our_tag)),
        _ => false,
    }
}

/// What is ours by name and not by form, in words.
pub(super) fn strange(whole: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    let owners = whole.get("tagOwners").and_then(Value::as_object).into_iter().flatten();
    for (name, who) in owners {
        let Some((cluster, _)) = tag(name) else { continue };
        let namespace = format!("{}@", cluster.namespace());
        if !is_list_of(Some(who), &[&namespace]) {
            let who: Vec<&str> = texts(Some(who)).collect();
            let who = if who.is_empty() { "nobody".to_owned() } else { who.join(", ") };
            found.push(format!("{name} is owned by {who}"));
        }
    }
    let rules = ["acls", "grants"].iter().filter_map(|name| whole.get(*name)?.as_array()).flatten();
    for rule in rules.filter(|rule| is_our_rule(rule) && !has_our_form(rule)) {
        let text = rule.to_string();
        let end = text.char_indices().nth(QUOTED).map(|(at, _)| at);
        found.push(format!("the rule {}", end.map_or_else(|| text.clone(), |end| format!("{}...", &text[..end]))));
    }
    for (kind, value) in whole.get("autoApprovers").and_then(Value::as_object).into_iter().flatten() {
        let approvers: Vec<&str> = match value {
            Value::Object(routes) => routes.values().flat_map(|who| texts(Some(who))).collect(),
            other => texts(Some(other)).collect(),
        };
        let wrong = |who: &&str| tag(who).is_some_and(|(_, end)| kind != "routes" || end != End::Router);
        if let Some(who) = approvers.into_iter().find(wrong) {
            found.push(format!("{who} is an approver in {kind}"));
        }
    }
    found
}

fn is_list_of(value: Option<&Value>, wanted: &[&str]) -> bool {
    let list = value.and_then(Value::as_array);
    list.is_some_and(|l| l.len() == wanted.len() && l.iter().zip(wanted).all(|(a, b)| a == b))
}

/// Whether a rule is one that `compile` writes for some cluster and some networks, for a server of either kind.
fn has_our_form(rule: &Value) -> bool {
    let Some(members) = rule.as_object() else { return false };
    let Some((cluster, End::Client)) = texts(rule.get("src")).next().and_then(tag) else { return false };
    if !is_list_of(rule.get("src"), &[&cluster.client_tag()]) {
        return false;
    }
    let router = cluster.router_tag();
    let only = |names: &[&str]| members.keys().all(|name| names.contains(&name.as_str()));
    let Some(dst) = rule.get("dst").and_then(Value::as_array) else { return false };
    let mut dst = dst.iter().map(|d| d.as_str().unwrap_or_default());
    if rule.get("action").is_some() {
        let is_network = |dst: &str| dst.strip_suffix(":*").is_some_and(|net| net.parse::<IpNet>().is_ok());
        return only(&["action", "src", "dst"])
            && rule["action"] == "accept"
            && dst.next() == Some(format!("{router}:*").as_str())
            && dst.all(is_network);
    }
    let to_networks = is_list_of(rule.get("via"), &[&router]) && dst.clone().all(|net| net.parse::<IpNet>().is_ok());
    let to_router = rule.get("via").is_none() && dst.eq([router.as_str()]);
    only(&["src", "dst", "ip", "via"]) && is_list_of(rule.get("ip"), &["*"]) && (to_networks || to_router)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{PolicyInput, ServerFeatures, compile};

    fn strange_in(document: Value) -> Vec<String> {
        let Value::Object(whole) = document else { panic!("no object") };
        strange(&whole)
    }

    #[test]
    fn a_tag_names_a_cluster_and_an_end() {
        let id = |text: &str| text.parse::<ClusterId>().expect("an id");
        assert_eq!(tag("tag:gn-a-router"), Some((id("a"), End::Router)));
        assert_eq!(tag("tag:gn-a-router-client"), Some((id("a-router"), End::Client)));
        for other in ["tag:gn-printer", "tag:gn--router", "tag:gn-A-router", "gn-a-router", "tag:x-gn-a-router"] {
            assert_eq!(tag(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_compiled_is_not_strange() {
        let input = |id: &str, site: u64| PolicyInput {
            cluster: id.parse().expect("an id"),
            routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
            site: guildnet_model::SiteNumber::try_from(site).ok(),
        };
        for server in [ServerFeatures::CURRENT, ServerFeatures::BEFORE_029] {
            let document = compile(&[input("a", 7), input("b", 8)], server).expect("a policy").to_json();
            assert_eq!(strange_in(serde_json::from_str(&document).expect("JSON")), [""; 0]);
        }
    }

    #[test]
    fn our_names_in_others_hands_are_told() {
        let said = strange_in(json!({ "tagOwners": {"tag:gn-a-router": ["alice@"], "tag:gn-a-client": []} }));
        assert_eq!(said, ["tag:gn-a-client is owned by nobody", "tag:gn-a-router is owned by alice@"]);
        let said = strange_in(json!({ "autoApprovers": {"exitNode": ["tag:gn-a-router"], "routes": {}} }));
        assert_eq!(said, ["tag:gn-a-router is an approver in exitNode"]);
        let said = strange_in(json!({ "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:gn-a-client"]}} }));
        assert_eq!(said, ["tag:gn-a-client is an approver in routes"]);
    }

    #[test]
    fn rules_for_our_tags_that_we_do_not_write_are_told() {
        let rules = [
            json!({"action": "accept", "src": ["tag:gn-a-client"], "dst": ["*:*"]}),
            json!({"action": "accept", "src": ["tag:gn-a-client"], "dst": ["tag:gn-b-router:*"]}),
            json!({"action": "accept", "src": ["tag:gn-a-router"], "dst": ["tag:gn-a-client:*"]}),
            json!({"action": "accept", "src": ["tag:gn-a-client", "tag:gn-b-client"], "dst": ["tag:gn-a-router:*"]}),
            json!({"action": "accept", "proto": "tcp", "src": ["tag:gn-a-client"], "dst": ["tag:gn-a-router:*"]}),
            json!({"src": ["tag:gn-a-client"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:gn-b-router"]}),
            json!({"src": ["tag:gn-a-client"], "dst": ["10.0.0.0/8"], "ip": ["*"]}),
            json!({"src": ["tag:gn-a-client"], "dst": ["tag:gn-a-router"], "ip": ["tcp:443"]}),
            json!({"src": ["tag:gn-a-client"], "dst": ["tag:gn-a-router"], "ip": ["*"], "app": {}}),
        ];
        for rule in rules {
            let member = if rule.get("action").is_some() { "acls" } else { "grants" };
            let said = strange_in(json!({ member: [rule] }));
            assert!(said.len() == 1 && said[0].starts_with("the rule {"), "{rule}: {said:?}");
        }
        let others = json!({"acls": [{"action": "accept", "src": ["alice@"], "dst": ["tag:gn-a-router:*"]}]});
        assert_eq!(strange_in(others), [""; 0], "that one is foreign by its source");
    }
}
