//! The main job: equal clusters reached at once, nothing of the host changed, verify passed.

use std::process::Command;

use crate::fleet::{API, CLUSTERS, Fleet, answers, check, pretty};

#[test]
fn equal_networks_are_reached_at_once_each_with_its_own_name() {
    let fleet = Fleet::up();
    for cluster in CLUSTERS {
        let door = fleet.lab.door_address(cluster);
        assert!(!answers(door), "the door of {cluster} is open: {door} could be dialled without a tailnet");
    }
    // Both at the same moment, through one Host App.
    let said = std::thread::scope(|scope| {
        CLUSTERS
            .map(|c| {
                scope.spawn({
                    let fleet = &fleet;
                    move || fleet.echo(c).ok()
                })
            })
            .map(|t| t.join().expect("ran"))
    });
    for (cluster, said) in CLUSTERS.iter().zip(&said) {
        assert!(said.contains(&format!("cluster={cluster}\n")), "{cluster} answered {said:?}");
    }
}

#[test]
fn verify_passes_and_closes_with_its_counts() {
    let fleet = Fleet::up();
    let text = fleet.run(&["verify"]).ok();
    let last = text.trim_end().lines().last().expect("a closing line");
    let counts: Vec<u32> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok()).collect();
    let [passed, warned, failed, skipped] = counts[..] else { panic!("closing line {last:?}") };
    assert_eq!(last, format!("{passed} passed, {warned} warned, {failed} failed, {skipped} skipped"));
    assert!(passed > 20 && failed == 0 && skipped == 0, "{last}");

    let (code, report) = fleet.verify();
    assert_eq!(code, 0);
    for cluster in CLUSTERS {
        assert_eq!(check(&report, cluster, "kube.readyz")["result"], "pass", "{}", pretty(&report));
        assert_eq!(check(&report, cluster, "isolation")["result"], "pass", "{}", pretty(&report));
        let path = check(&report, cluster, "connector.path");
        assert_eq!(path["result"], "pass", "the path must be direct: {path}");
    }
}

/// What a host-wide VPN would change.
fn host_network() -> String {
    let mut all = std::fs::read_to_string("/etc/resolv.conf").expect("resolv.conf");
    for args in [&["route", "show", "table", "all"][..], &["-6", "route", "show", "table", "all"], &["rule"], &["link"]]
    {
        let ran = Command::new("ip").args(args).output().expect("ip runs");
        assert!(ran.status.success(), "ip {args:?}");
        all.push_str(&String::from_utf8_lossy(&ran.stdout));
    }
    all
}

#[test]
fn nothing_of_the_host_changes_before_during_and_after() {
    let fleet = Fleet::up();
    fleet.run(&["down"]).ok();
    let before = host_network();
    fleet.set_up(&["--no-verify"]).ok();
    for cluster in CLUSTERS {
        fleet.echo(cluster).ok();
    }
    let during = host_network();
    fleet.run(&["down"]).ok();
    let after = host_network();
    assert_eq!(before, during, "while the Host App served both clusters");
    assert_eq!(before, after, "after it stopped");
}

#[test]
fn a_second_up_reuses_what_is_valid() {
    let fleet = Fleet::up();
    let nodes = || fleet.headscale(&["nodes", "list", "-o", "json"]).ok();
    let ids = |json: &str| -> Vec<u64> {
        let list: serde_json::Value = serde_json::from_str(json).expect("a list");
        list.as_array().expect("an array").iter().filter_map(|n| n["id"].as_u64()).collect()
    };
    let keys = || fleet.headscale(&["preauthkeys", "list", "-o", "json"]).ok();
    fleet.set_up(&["--no-verify"]).ok();
    let (nodes_before, keys_before) = (ids(&nodes()), ids(&keys()));
    fleet.set_up(&["--no-verify"]).ok();
    assert_eq!(ids(&nodes()), nodes_before);
    assert_eq!(ids(&keys()), keys_before);
}

#[test]
fn a_connector_does_not_leave_its_cluster_even_if_asked() {
    let fleet = Fleet::up();
    // The other cluster's gateway, Headscale itself, the host's loopback and the metadata address.
    for target in ["10.99.0.1:8443", "127.0.0.1:22", "169.254.169.254:80", "100.64.0.1:80"] {
        fleet.run(&["dial", "a", target]).refused(2, &["not in this cluster's networks"]);
    }
    fleet.run(&["dial", "nosuch", API]).refused(3, &["nosuch"]);
}
