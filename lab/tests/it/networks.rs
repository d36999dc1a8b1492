//! Networks that the cluster names itself: found without a flag, and followed when they change.

use std::time::Duration;

use crate::fleet::{Fleet, check, pretty};

/// How long a change may take to show.
const SHOWS: Duration = Duration::from_secs(60);

/// What `cluster show` says of a cluster's networks.
fn recorded(fleet: &Fleet, cluster: &str) -> String {
    let shown = fleet.run(&["cluster", "show", cluster, "-o", "json"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("json");
    shown["tsRoutes"].to_string()
}

#[test]
fn networks_that_changed_are_named_by_verify_and_served_after_router_ensure() {
    let fleet = Fleet::up();
    fleet.lab.door("a", true).expect("the door opens");
    let kubeconfig = fleet.lab.person_dir().join("a.kubeconfig").display().to_string();
    // Without --routes the cluster's own word counts from now on; what it names lies in what is served already.
    fleet.run(&["cluster", "add", "a", "--kubeconfig", &kubeconfig, "--replace"]).ok();
    // What follows goes through the tailnet, and so through the router that is replaced.
    fleet.lab.door("a", false).expect("the door shuts");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fleet.passes_again();
        // A network plugin that names a wider network for Pods.
        let wider = r#"--from-literal=net-conf.json={"Network":"10.240.0.0/12"}"#;
        fleet.kubectl("a", &["-n", "kube-system", "create", "configmap", "kube-flannel-cfg", wider]).ok();
        let report = fleet.verify_until(SHOWS, |r| check(r, "a", "networks.drift")["result"] == "fail");
        let drift = check(&report, "a", "networks.drift");
        assert!(drift["seen"].to_string().contains("10.240.0.0/12 (kube-flannel-cfg)"), "{}", pretty(&report));
        assert_eq!(drift["hint"], "guildnet router ensure a");
        assert_eq!(check(&report, "b", "networks.drift")["result"], "pass", "{}", pretty(&report));

        let ran = fleet.run(&["router", "ensure", "a"]);
        assert!(ran.err.contains("its networks changed"), "{ran:#?}");
        ran.ok();
        assert!(recorded(&fleet, "a").contains("10.240.0.0/12"), "{}", recorded(&fleet, "a"));
        let report = fleet.passes_again();
        let served = check(&report, "a", "routes.served");
        assert!(served["seen"].to_string().contains("10.240.0.0/12"), "{}", pretty(&report));
        assert!(fleet.echo("a").ok().contains("cluster=a\n"));
        assert!(fleet.echo("b").ok().contains("cluster=b\n"));
    }));
    fleet.kubectl("a", &["-n", "kube-system", "delete", "configmap", "kube-flannel-cfg", "--ignore-not-found"]).ok();
    fleet.set_up(&["--no-verify"]).ok();
    fleet.passes_again();
    outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
}
