//! Each fault shows in the right check, with a hint, and verify passes again when it is mended.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::fleet::{Fleet, check, pretty};

/// How long a fault may take to show, and its repair.
const SHOWS: Duration = Duration::from_secs(60);

/// Breaks, waits until `check` of `cluster` fails, asserts its hint, mends, and waits until verify passes.
#[track_caller]
fn breaks(cluster: &str, id: &str, hint: &str, break_it: impl FnOnce(&Fleet), mend: impl FnOnce(&Fleet)) {
    let fleet = Fleet::up();
    break_it(&fleet);
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let report = fleet.verify_until(SHOWS, |r| check(r, cluster, id)["result"] == "fail");
        let said = check(&report, cluster, id)["hint"].as_str().unwrap_or_default().to_owned();
        assert!(said.contains(hint), "the hint of {id} is {said:?}\n{}", pretty(&report));
        assert_eq!(report["success"], false);
    }));
    mend(&fleet);
    fleet.passes_again();
    seen.unwrap_or_else(|why| std::panic::resume_unwind(why));
}

/// The results of a cluster's checks that depend on what is broken must not be passes by habit.
fn is_fail_or_skip(report: &Value, cluster: &str, id: &str) -> bool {
    matches!(check(report, cluster, id)["result"].as_str(), Some("fail" | "skip"))
}

#[test]
fn headscale_stopped() {
    breaks(
        "",
        "headscale.reachable",
        "Headscale",
        |f| f.lab.stop_process("headscale").expect("it stops"),
        |f| f.lab.start_process("headscale").expect("it starts"),
    );
}

#[test]
fn api_key_revoked() {
    let fleet = Fleet::up();
    let key = fleet.headscale(&["apikeys", "create", "--expiration", "1h"]).ok();
    let file = fleet.home.join("short-lived-api-key");
    fs::write(&file, key.trim()).expect("written");
    crate::host_app::give_to_person(&fleet, &file);
    let path = file.display().to_string();
    fleet.set_up(&["--no-verify", "--headscale-api-key-file", &path]).ok();
    let prefix = crate::host_app::api_key_prefix(key.trim());
    breaks(
        "",
        "headscale.api-key",
        "--headscale-api-key-file",
        |f| {
            f.headscale(&["apikeys", "expire", "--prefix", &prefix]).ok();
        },
        |f| {
            f.set_up(&["--no-verify"]).ok();
        },
    );
}

#[test]
fn daemonset_scaled_away() {
    let selector = |value: &str| format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{value}}}}}}}}}"#);
    let patch = move |f: &Fleet, value: &str| {
        let name = f.kubectl("a", &["-n", "guildnet-system", "get", "ds", "-o", "name"]).ok();
        let patch = selector(value);
        f.kubectl("a", &["-n", "guildnet-system", "patch", name.trim(), "--type=merge", "-p", &patch]).ok();
    };
    let patch_back = patch;
    breaks(
        "a",
        "router.daemonset-ready",
        "guildnet router ensure",
        move |f| patch(f, r#"{"guildnet.test/nowhere":"true"}"#),
        move |f| patch_back(f, r#"{"guildnet.test/nowhere":null}"#),
    );
}

#[test]
fn route_not_approved() {
    let approve = |f: &Fleet, routes: &str| {
        let list: Value = serde_json::from_str(&f.headscale(&["nodes", "list", "-o", "json"]).ok()).expect("json");
        let of_a = |n: &&Value| n["tags"].to_string().contains("tag:gn-a-router") && n["online"] == true;
        for node in list.as_array().expect("nodes").iter().filter(of_a) {
            f.headscale(&["nodes", "approve-routes", "-i", &node["id"].to_string(), "-r", routes]).ok();
        }
    };
    breaks(
        "a",
        "routes.approved",
        "guildnet router ensure",
        move |f| approve(f, "10.244.0.0/16"),
        move |f| approve(f, crate::fleet::ROUTES),
    );
}

#[test]
fn allow_all_policy() {
    let fleet = Fleet::up();
    let saved = fleet.headscale(&["policy", "get"]).ok();
    let folder = fleet.lab.person_dir();
    let set = move |f: &Fleet, text: &str| {
        let file = folder.join("e2e-policy.json");
        fs::write(&file, text).expect("written");
        f.headscale(&["policy", "set", "-f", &file.display().to_string()]).ok();
    };
    let set_back = set;
    // The tags must keep their owners, or Headscale refuses the policy while tagged nodes exist.
    let mut open: Value = serde_json::from_str(&saved).expect("our policy is JSON");
    open["grants"] = serde_json::json!([{"src": ["*"], "dst": ["*"], "ip": ["*"]}]);
    open["tests"] = serde_json::json!([]);
    breaks("a", "isolation", "guildnet up", move |f| set(f, &open.to_string()), move |f| set_back(f, &saved));
}

#[test]
fn wrong_ca() {
    // The stored kubeconfig of a names b's authority: the API server's certificate must be refused, by name of the check.
    breaks(
        "a",
        "kube.tls",
        "guildnet cluster add",
        |f| {
            let read =
                |c: &str| fs::read_to_string(f.lab.person_dir().join(format!("{c}.kubeconfig"))).expect("it is there");
            let ca_line = |text: &str| {
                text.lines().find(|l| l.contains("certificate-authority-data")).expect("inline").to_owned()
            };
            let (a, b) = (read("a"), read("b"));
            let wrong = f.home.join("wrong-ca.kubeconfig");
            fs::write(&wrong, a.replace(ca_line(&a).trim(), ca_line(&b).trim())).expect("written");
            crate::host_app::give_to_person(f, &wrong);
            let path = wrong.display().to_string();
            f.run(&["cluster", "add", "a", "--kubeconfig", &path, "--routes", crate::fleet::ROUTES, "--replace"]).ok();
        },
        |f| {
            f.set_up(&["--no-verify"]).ok();
        },
    );
}

#[test]
fn api_server_stopped() {
    let fleet = Fleet::up();
    breaks(
        "a",
        "kube.reachable-through-connector",
        "API server",
        |f| f.lab.stop_process("a/kube-apiserver").expect("it stops"),
        |f| f.lab.start_process("a/kube-apiserver").expect("it starts"),
    );
    let (_, report) = fleet.verify();
    assert!(!is_fail_or_skip(&report, "b", "kube.readyz"));
}
