//! The policy as a whole: its two forms, that it is read back, that others' rules are kept or stop it.

use guildnet_model::Explain as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NEW: ServerFeatures = ServerFeatures::CURRENT;
const OLD: ServerFeatures = ServerFeatures::BEFORE_029;

fn input(id: &str, routes: &str, site: u64) -> PolicyInput {
    PolicyInput {
        cluster: id.parse().expect("an id"),
        routes: routes.parse().expect("networks"),
        site: SiteNumber::try_from(site).ok(),
    }
}

/// Two clusters with equal networks.
fn equal() -> [PolicyInput; 2] {
    [input("a", "10.96.0.0/16,10.244.0.0/16", 7), input("b", "10.96.0.0/16,10.244.0.0/16", 8)]
}

fn asked(clusters: &[PolicyInput]) -> PolicyRequest<'_> {
    PolicyRequest { clusters, ..PolicyRequest::default() }
}

/// What a server holds after the plan was carried out.
fn carried_out(current: Option<&str>, request: &PolicyRequest<'_>, server: ServerFeatures) -> String {
    match plan(current, request, server).expect("a plan") {
        PolicyPlan::Apply { document, .. } => document,
        PolicyPlan::Unchanged { .. } => current.expect("something was there").to_owned(),
        PolicyPlan::Foreign { what, .. } => panic!("foreign: {what:?}"),
    }
}

fn ids(clusters: &[PolicyInput]) -> Vec<&str> {
    clusters.iter().map(|c| c.cluster.as_str()).collect()
}

#[test]
fn two_equal_clusters_with_via() {
    insta::assert_snapshot!(compile(&equal(), NEW).expect("a policy").to_json());
}

#[test]
fn two_equal_clusters_without_via() {
    insta::assert_snapshot!(compile(&equal(), OLD).expect("a policy").to_json());
}

#[test]
fn without_via_a_network_of_one_cluster_alone_is_plain_too() {
    let policy = compile(&[input("a", "10.96.0.0/16,10.1.0.0/16", 7), input("b", "10.96.0.0/12", 8)], OLD);
    let policy = serde_json::to_value(policy.expect("a policy")).expect("JSON");
    assert_eq!(policy["autoApprovers"]["routes"]["10.1.0.0/16"], json!(["tag:gn-a-router"]));
    assert_eq!(policy["autoApprovers"]["routes"]["10.96.0.0/16"], Value::Null);
    assert_eq!(policy["autoApprovers"]["routes"]["10.96.0.0/12"], Value::Null);
}

#[test]
fn no_clusters_still_means_that_nothing_is_allowed() {
    for server in [NEW, OLD] {
        let document = compile(&[], server).expect("a policy").to_json();
        assert!(matches!(judge(Some(&document), &[], server, &[]), Ok(PolicyVerdict::Isolates { clusters: 0, .. })));
    }
}

#[test]
fn contradictions_are_refused() {
    let [a, b] = equal();
    let twice = [a.clone(), input("a", "10.0.0.0/16", 7)];
    assert_eq!(compile(&twice, NEW), Err(PolicyError::Twice { cluster: a.cluster.clone() }));
    assert!(compile(&[a.clone(), a.clone()], NEW).is_ok(), "the same thing twice is no contradiction");
    let no_site = [a.clone(), PolicyInput { site: None, ..b.clone() }];
    assert_eq!(compile(&no_site, OLD), Err(PolicyError::NoSite { cluster: b.cluster.clone() }));
    assert!(compile(&no_site, NEW).is_ok(), "with via no site is needed");
    let same = [a.clone(), PolicyInput { site: a.site, ..b }];
    assert!(matches!(compile(&same, OLD), Err(PolicyError::SameSite { .. })));
}

#[test]
fn a_policy_that_allows_everything_is_replaced() {
    for current in [None, Some(""), Some(" // nothing\n"), Some("{}"), Some(r#"{"groups": {}, "grants": null}"#)] {
        assert_eq!(judge(current, &equal(), NEW, &[]), Ok(PolicyVerdict::AllowsAll), "{current:?}");
        assert!(matches!(plan(current, &asked(&equal()), NEW), Ok(PolicyPlan::Apply { .. })), "{current:?}");
    }
}

#[test]
fn clusters_of_other_devices_are_kept_until_they_are_forgotten() {
    for server in [NEW, OLD] {
        let [a, b] = equal();
        let first = carried_out(None, &asked(std::slice::from_ref(&a)), server);
        let both = carried_out(Some(&first), &asked(std::slice::from_ref(&b)), server);
        assert_eq!(ids(&known_clusters(Some(&both)).expect("clusters")), ["a", "b"]);
        let forget = [a.cluster];
        let left = carried_out(Some(&both), &PolicyRequest { forget: &forget, ..PolicyRequest::default() }, server);
        assert_eq!(ids(&known_clusters(Some(&left)).expect("clusters")), ["b"]);
    }
}

#[test]
fn an_id_that_is_used_again_has_nothing_of_the_cluster_that_had_it() {
    for server in [NEW, OLD] {
        let first = carried_out(None, &asked(&equal()), server);
        let forget = ["a".parse().expect("an id")];
        let left = carried_out(Some(&first), &PolicyRequest { forget: &forget, ..PolicyRequest::default() }, server);
        assert!(!left.contains("gn-a-"), "{left}");
        // Its namespace was made anew: another number, and other networks.
        let again = [input("a", "10.50.0.0/16", 9)];
        let document = carried_out(Some(&left), &asked(&again), server);
        // The same as if nothing had been there, but for the order.
        let anew = plan(Some(&document), &asked(&[again[0].clone(), equal()[1].clone()]), server);
        assert!(matches!(anew, Ok(PolicyPlan::Unchanged { .. })), "{anew:?}");
        let known = known_clusters(Some(&document)).expect("clusters");
        assert_eq!(known[0].routes, again[0].routes);
        assert_eq!(known[0].site, again[0].site.filter(|_| !server.via_grants));
    }
}

#[test]
fn a_site_number_that_another_cluster_has_is_not_given_again() {
    let first = carried_out(None, &asked(&equal()), OLD);
    let again = [input("c", "10.96.0.0/16", 8)];
    let said = plan(Some(&first), &asked(&again), OLD).expect_err("the site of b");
    assert!(matches!(&said, PolicyError::SameSite { first, .. } if first.as_str() == "b"), "{said}");
    assert!(said.hint().expect("a hint").contains("--site"));
}

#[test]
fn forgetting_what_is_not_known_changes_nothing() {
    let forget = ["z".parse().expect("an id")];
    let request = PolicyRequest { forget: &forget, merge: true, ..PolicyRequest::default() };
    for current in [None, Some("{}"), Some(FOREIGN)] {
        let said = plan(current, &request, NEW);
        assert!(matches!(said, Ok(PolicyPlan::Unchanged { .. })), "{current:?}: {said:?}");
    }
}

#[test]
fn without_via_a_network_that_somebody_else_serves_is_reached_by_4via6_only() {
    let router = node("office", "tag:office", &["10.96.0.0/16"]);
    let [a, _] = equal();
    let clusters = [a];
    let request = PolicyRequest { nodes: std::slice::from_ref(&router), ..asked(&clusters) };
    let routes = |server| {
        let document: Value = serde_json::from_str(&carried_out(None, &request, server)).expect("JSON");
        let routes = document["autoApprovers"]["routes"].as_object().expect("routes");
        let mut nets: Vec<String> = routes.keys().cloned().collect();
        nets.sort();
        nets
    };
    assert_eq!(routes(OLD), ["10.244.0.0/16", "fd7a:115c:a1e0:b1a:0:7:a60:0/112", "fd7a:115c:a1e0:b1a:0:7:af4:0/112"]);
    assert_eq!(routes(NEW), ["10.244.0.0/16", "10.96.0.0/16"]);
    let document = carried_out(None, &request, OLD);
    let judged = judge(Some(&document), &clusters, OLD, std::slice::from_ref(&router));
    assert!(matches!(judged, Ok(PolicyVerdict::Isolates { .. })), "{judged:?}");
    let no_site = [PolicyInput { site: None, ..clusters[0].clone() }];
    let said = plan(None, &PolicyRequest { clusters: &no_site, ..request }, OLD).expect_err("no way left");
    assert_eq!((said.class(), said.hint().map(|h| h.contains("--site"))), (Class::Conflict, Some(true)));
}

/// Somebody else's node.
fn node(name: &str, tag: &str, approved: &[&str]) -> crate::Node {
    crate::Node { id: u64::from(name.as_bytes()[0]), ..crate::fake::listed(name, tag, &[], approved) }
}

#[test]
fn merged_on_a_server_without_rules_others_keep_what_they_reach() {
    let nodes = [node("nas", "tag:nas", &["192.168.1.0/24"]), node("printer", "tag:printer", &[])];
    let clusters = equal();
    for server in [NEW, OLD] {
        let request = PolicyRequest { nodes: &nodes, ..asked(&clusters) };
        let Ok(PolicyPlan::Apply { cuts_off, .. }) = plan(None, &request, server) else { panic!("not planned") };
        let said: Vec<String> = cuts_off.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["nas (reaches printer)", "printer (reaches nas)"]);
        let request = PolicyRequest { merge: true, ..request };
        let Ok(PolicyPlan::Apply { cuts_off, document, .. }) = plan(None, &request, server) else {
            panic!("not planned")
        };
        assert_eq!(cuts_off, []);
        let value: Value = serde_json::from_str(&document).expect("JSON");
        assert_eq!(value["acls"][0]["src"], json!(["tag:nas", "tag:printer"]));
        for merge in [true, false] {
            let again = plan(Some(&document), &PolicyRequest { merge, ..request }, server);
            assert!(matches!(again, Ok(PolicyPlan::Unchanged { .. })), "{again:?}");
        }
        let judged = judge(Some(&document), &clusters, server, &nodes);
        assert!(matches!(judged, Ok(PolicyVerdict::Isolates { clusters: 2, .. })), "{judged:?}");
    }
}

#[test]
fn our_names_in_others_hands_stop_the_plan_unless_ours_shall_take_their_place() {
    let clusters = equal();
    let good = carried_out(None, &asked(&clusters), NEW);
    let bent = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&good).expect("JSON");
        change(&mut value);
        value.to_string()
    };
    let cases = [
        bent(&|v| v["tagOwners"]["tag:gn-a-router"] = json!(["alice@"])),
        bent(&|v| {
            let more = json!({"src": ["tag:gn-a-client"], "dst": ["tag:gn-b-router"], "ip": ["*"]});
            v["grants"].as_array_mut().expect("a list").push(more);
        }),
        bent(&|v| v["autoApprovers"]["exitNode"] = json!(["tag:gn-a-router"])),
    ];
    for current in cases {
        let said = plan(Some(&current), &asked(&clusters), NEW);
        assert!(matches!(&said, Ok(PolicyPlan::Foreign { usurped, .. }) if usurped.len() == 1), "{said:?}");
        let merged = carried_out(Some(&current), &PolicyRequest { merge: true, ..asked(&clusters) }, NEW);
        let same = crate::same_policy(Some(&merged), Some(&good)).expect("readable");
        assert!(same, "{merged}");
        assert!(matches!(judge(Some(&current), &clusters, NEW, &[]), Ok(PolicyVerdict::Differs { .. })));
    }
    let said = PolicyError::Usurped { what: vec!["tag:gn-a-router is owned by alice@".into()] };
    assert_eq!((said.class(), said.hint().map(|h| h.contains("--merge"))), (Class::Conflict, Some(true)));
}

#[test]
fn tags_that_only_look_like_ours_are_kept() {
    let current = r#"{"tagOwners": {"tag:gn-printer": ["alice@"]}, "acls": [{"action": "accept", "src": ["tag:gn-printer"], "dst": ["alice@:*"]}]}"#;
    let clusters = equal();
    let merged = carried_out(Some(current), &PolicyRequest { merge: true, ..asked(&clusters) }, NEW);
    let value: Value = serde_json::from_str(&merged).expect("JSON");
    assert_eq!(value["tagOwners"]["tag:gn-printer"], json!(["alice@"]));
    assert_eq!(value["acls"][0]["src"], json!(["tag:gn-printer"]));
}

#[test]
fn documents_are_compared_by_what_they_say() {
    let same = |one, other| crate::same_policy(one, other).expect("readable");
    assert!(same(None, Some("// nothing\n")) && same(None, Some("{}")));
    assert!(same(Some(r#"{"acls": [], "groups": {}}"#), Some("{\"groups\": {}, // none\n \"ACLs\": [],}")));
    assert!(!same(Some(r#"{"acls": []}"#), None));
}

#[test]
fn a_cluster_gets_its_new_networks() {
    let first = carried_out(None, &asked(&equal()), NEW);
    let moved = [input("a", "10.50.0.0/16", 7)];
    let known = known_clusters(Some(&carried_out(Some(&first), &asked(&moved), NEW))).expect("clusters");
    assert_eq!(known[0].routes, moved[0].routes);
    assert_eq!(known[1].routes, equal()[1].routes);
}

/// Somebody else's policy, as people write it.
const FOREIGN: &str = r#"{
    // our laptops
    "groups": {"group:admin": ["alice@"]},
    "TagOwners": {"tag:printer": ["alice@"]},
    "autoApprovers": {"routes": {"10.96.0.0/16": ["group:admin"]}, "exitNode": ["tag:printer"]},
    "acls": [{"action": "accept", "src": ["group:admin"], "dst": ["*:*"]},],
}"#;

#[test]
fn foreign_rules_stop_the_plan_unless_they_are_to_be_kept() {
    let Ok(PolicyPlan::Foreign { what, diff, .. }) = plan(Some(FOREIGN), &asked(&equal()), NEW) else {
        panic!("not foreign")
    };
    let named = [
        "acls: group:admin -> *:*",
        "autoApprovers: exitNode, routes",
        "groups: group:admin",
        "tagOwners: tag:printer",
    ];
    assert_eq!(what, named);
    assert!(diff.contains("+") && diff.contains("tag:gn-a-client"), "{diff}");
    assert_eq!(PolicyError::Foreign { what }.class(), Class::Conflict);
}

#[test]
fn foreign_rules_are_kept_when_merged_and_a_second_run_changes_nothing() {
    let clusters = equal();
    let request = PolicyRequest { merge: true, ..asked(&clusters) };
    let merged = carried_out(Some(FOREIGN), &request, NEW);
    let value: Value = serde_json::from_str(&merged).expect("JSON");
    assert_eq!(value["groups"], json!({"group:admin": ["alice@"]}));
    assert_eq!(value["autoApprovers"]["exitNode"], json!(["tag:printer"]));
    assert_eq!(
        value["autoApprovers"]["routes"]["10.96.0.0/16"],
        json!(["group:admin", "tag:gn-a-router", "tag:gn-b-router"])
    );
    assert_eq!(value["acls"][0]["src"], json!(["group:admin"]));
    // Nor does it matter where theirs stands.
    let mut turned: Value = value.clone();
    turned["grants"].as_array_mut().expect("rules").reverse();
    for document in [&merged, &turned.to_string()] {
        for merge in [true, false] {
            let again = plan(Some(document), &PolicyRequest { merge, ..request }, NEW);
            assert!(matches!(again, Ok(PolicyPlan::Unchanged { .. })), "{again:?}");
        }
    }
    assert!(
        matches!(judge(Some(&merged), &clusters, NEW, &[]), Ok(PolicyVerdict::Isolates { clusters: 2, foreign }) if foreign.len() == 4)
    );
}

#[test]
fn foreign_rules_that_open_clusters_to_each_other_are_never_kept() {
    let clusters = equal();
    let request = PolicyRequest { merge: true, ..asked(&clusters) };
    let opening = [
        r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#,
        r#"{"action": "accept", "src": ["autogroup:tagged"], "dst": ["10.96.0.1:443"]}"#,
        r#"{"action": "accept", "src": ["100.64.0.0/10"], "dst": ["tag:gn-b-router:*"]}"#,
        r#"{"action": "accept", "src": ["tag:gn-a-client", "group:x"], "dst": ["100.64.0.7:22"]}"#,
        r#"{"action": "accept", "src": ["laptop"], "dst": ["fd7a:115c:a1e0::1:*"]}"#,
    ];
    for rule in opening {
        let current = format!(r#"{{"acls": [{rule}]}}"#);
        let said = plan(Some(&current), &request, NEW);
        assert!(matches!(&said, Err(PolicyError::Opened { rules }) if rules.len() == 1), "{rule}: {said:?}");
        assert!(matches!(judge(Some(&current), &clusters, NEW, &[]), Ok(PolicyVerdict::Opened { .. })), "{rule}");
    }
    let harmless = [
        r#"{"action": "accept", "src": ["*"], "dst": ["tag:printer:631"]}"#,
        r#"{"action": "accept", "src": ["alice@", "group:x", "tag:printer", "autogroup:member"], "dst": ["*:*"]}"#,
        r#"{"action": "accept", "src": ["*"], "dst": ["192.168.1.0/24:*"]}"#,
        r#"{"action": "accept", "src": ["*"], "dst": ["alice@:22"]}"#,
    ];
    for rule in harmless {
        let current = format!(r#"{{"acls": [{rule}]}}"#);
        let said = plan(Some(&current), &request, NEW);
        assert!(matches!(&said, Ok(PolicyPlan::Apply { .. })), "{rule}: {said:?}");
    }
}

#[test]
fn a_repair_beside_a_rule_of_others_changes_nothing_of_theirs() {
    let clusters = equal();
    let mut held: Value = serde_json::from_str(&carried_out(None, &asked(&clusters), NEW)).expect("JSON");
    let rules = held["grants"].as_array_mut().expect("rules");
    let lost = rules.remove(0);
    rules.push(json!({"src": ["tag:ops"], "dst": ["tag:ops"], "ip": ["*"]}));
    let request = PolicyRequest { merge: true, ..asked(&clusters) };
    let Ok(PolicyPlan::Apply { diff, document, .. }) = plan(Some(&held.to_string()), &request, NEW) else {
        panic!("not applied")
    };
    assert!(diff.lines().all(|line| line.starts_with('+')), "{diff}");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    assert_eq!(document["grants"].as_array().expect("rules").last(), Some(&lost));
}

#[test]
fn a_policy_that_was_changed_behind_our_back_is_noticed() {
    let clusters = equal();
    let good = carried_out(None, &asked(&clusters), NEW);
    let mut bad: Value = serde_json::from_str(&good).expect("JSON");
    bad["grants"][3]["via"] = json!(["tag:gn-a-router"]);
    let Ok(PolicyVerdict::Differs { how }) = judge(Some(&bad.to_string()), &clusters, NEW, &[]) else {
        panic!("not noticed")
    };
    let rule = "grants: tag:gn-b-client -> 10.96.0.0/16, 10.244.0.0/16 via";
    assert_eq!(how, format!("missing: {rule} tag:gn-b-router; too much: {rule} tag:gn-a-router"));
    let missing = carried_out(None, &asked(&clusters[..1]), NEW);
    assert_eq!(
        judge(Some(&missing), &clusters, NEW, &[]),
        Ok(PolicyVerdict::Differs { how: "it does not know b".into() })
    );
}

#[test]
fn comments_and_order_of_members_do_not_count_as_changes() {
    let clusters = equal();
    let document = carried_out(None, &asked(&clusters), NEW);
    let commented = format!("// kept by GuildNet\n{}", document.replacen('{', "{ /* ours */", 1));
    assert!(matches!(plan(Some(&commented), &asked(&clusters), NEW), Ok(PolicyPlan::Unchanged { .. })));
}

#[test]
fn an_unreadable_policy_is_not_overwritten() {
    for bad in ["[]", "{", "{\"acls\": [}"] {
        let said = plan(Some(bad), &PolicyRequest { merge: true, ..asked(&equal()) }, NEW).expect_err(bad);
        assert_eq!(said.class(), Class::Conflict);
    }
}

#[test]
fn tests_name_only_tags_that_have_nodes() {
    let clusters = equal();
    let document = carried_out(None, &asked(&clusters), NEW);
    let with = |tags: &[&str]| {
        let text = with_tests(&document, &clusters, |tag| tags.contains(&tag))?;
        Some(serde_json::from_str::<Value>(&text).expect("JSON")["tests"].clone())
    };
    assert_eq!(with(&[]), None);
    assert_eq!(with(&["tag:gn-a-client"]), None);
    assert_eq!(
        with(&["tag:gn-a-client", "tag:gn-a-router", "tag:gn-b-router"]),
        Some(json!([{ "src": "tag:gn-a-client", "accept": ["tag:gn-a-router:443"], "deny": ["tag:gn-b-router:443"] }]))
    );
}

#[test]
fn routers_advertise_4via6_only_where_the_server_needs_it() {
    let [a, _] = equal();
    let texts = |server| -> Vec<String> {
        routes_to_advertise(server, &a.routes, a.site).iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts(NEW), ["10.96.0.0/16", "10.244.0.0/16"]);
    assert_eq!(
        texts(OLD),
        ["10.96.0.0/16", "10.244.0.0/16", "fd7a:115c:a1e0:b1a:0:7:a60:0/112", "fd7a:115c:a1e0:b1a:0:7:af4:0/112"]
    );
}

#[test]
fn a_network_that_another_cluster_has_is_served_by_4via6_only_where_the_server_needs_it() {
    let both = equal();
    let texts = |server, beside: &[PolicyInput]| -> Vec<String> {
        routes_to_serve(server, &both[0], beside).iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts(NEW, &both), ["10.96.0.0/16", "10.244.0.0/16"]);
    assert_eq!(texts(OLD, &both), ["fd7a:115c:a1e0:b1a:0:7:a60:0/112", "fd7a:115c:a1e0:b1a:0:7:af4:0/112"]);
    assert!(texts(OLD, &both[..1]).contains(&"10.96.0.0/16".to_owned()), "nobody shares it");
}

/// First and second octet, prefix length.
type AnyNets = Vec<(u8, u8, u8)>;

/// Clusters with distinct ids and sites and any networks.
fn any_clusters() -> impl Strategy<Value = Vec<PolicyInput>> {
    let nets = proptest::collection::vec((11_u8..100, any::<u8>(), 12_u8..=24), 1..4);
    proptest::collection::btree_map("[a-z]{1,3}(-[a-z0-9]{1,3})?", nets, 0..6).prop_map(|clusters| {
        let input = |(n, (id, nets)): (usize, (String, AnyNets))| {
            let mut routes: Vec<Ipv4Net> = Vec::new();
            for (a, b, len) in nets {
                let net = Ipv4Net::new_assert([a, b, 0, 0].into(), len).trunc();
                if Networks::new(routes.iter().copied().chain([net])).is_ok() {
                    routes.push(net);
                }
            }
            PolicyInput {
                cluster: id.parse().expect("an id"),
                routes: Networks::new(routes).expect("the first is always taken"),
                site: SiteNumber::try_from(n as u64 + 1).ok(),
            }
        };
        clusters.into_iter().enumerate().map(input).collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_clusters_does_not_matter(clusters in any_clusters(), turn: usize) {
        let mut turned = clusters.clone();
        if !turned.is_empty() {
            let by = turn % turned.len();
            turned.rotate_left(by);
        }
        for server in [NEW, OLD] {
            prop_assert_eq!(compile(&clusters, server), compile(&turned, server));
        }
    }

    #[test]
    fn what_was_applied_needs_nothing_more(clusters in any_clusters()) {
        for server in [NEW, OLD] {
            for current in [None, Some(FOREIGN)] {
                let request = PolicyRequest { merge: true, ..asked(&clusters) };
                let document = carried_out(current, &request, server);
                let again = plan(Some(&document), &request, server);
                prop_assert!(matches!(again, Ok(PolicyPlan::Unchanged { .. })), "{:?}", again);
            }
        }
    }

    #[test]
    fn every_cluster_is_read_back(clusters in any_clusters()) {
        for server in [NEW, OLD] {
            let document = compile(&clusters, server).expect("a policy").to_json();
            let known = known_clusters(Some(&document)).expect("clusters");
            prop_assert_eq!(known.len(), clusters.len());
            for (read, given) in known.iter().zip(&clusters) {
                prop_assert_eq!((&read.cluster, &read.routes), (&given.cluster, &given.routes));
                prop_assert_eq!(read.site, given.site.filter(|_| !server.via_grants));
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text: String) {
        let _ = plan(Some(&text), &asked(&equal()), NEW);
    }
}
