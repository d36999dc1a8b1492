//! A light cluster: etcd and an API server behind its own gateway, nothing that runs pods, a quarter of the memory.
//!
//! What kube-proxy does elsewhere is two rules in the node's namespace: the `kubernetes` Service leads to the API server,
//! the echo Service to the one "pod", a process of the node with an address of the pod network. No DaemonSet can run
//! there; what routes instead is `router.rs`.

use super::{READY, Work, kubectl, router, settings, wait_api, wait_echo};
use crate::{
    command::{finish, in_netns, run, until},
    error::LabError,
    peers::Peers,
    plan::{API_PORT, API_SERVICE, ClusterPlan, ECHO_PORT, ECHO_SERVICE, LIGHT_POD, NODE_ADDRESS},
    process::{self, Spec},
    state::State,
};

/// There to be found: nothing provisions volumes in the lab.
const STORAGE_CLASS: &str = include_str!("storage.yaml");

/// Its daemons that can be stopped and started one by one.
pub(super) fn specs(state: &State, cluster: &ClusterPlan, peers: &Peers) -> Vec<Spec> {
    let mut specs = vec![
        settings::node(&state.plan, cluster),
        settings::etcd(cluster, peers),
        settings::api_server(cluster, peers),
        echo(cluster, peers),
    ];
    specs.extend(router::known(state, cluster).iter().map(|router| router::spec(cluster, peers, router)));
    specs
}

fn echo(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let env = vec![("CLUSTER", cluster.id.clone()), ("POD", format!("{}-echo", cluster.id))];
    Spec { env, ..settings::spec(cluster, "echo", peers.program("workload", "workload"), &["echo".into()]) }
}

/// Brings its programs up, or heals them, in the node's view of the file system; returns when echo answers.
pub(super) fn up(work: Work<'_>, cluster: &ClusterPlan) -> Result<(), LabError> {
    for spec in specs(&work.state.get(), cluster, work.peers) {
        process::ensure(work.state, work.cgroups, &spec)?;
    }
    wait_api(work.state, cluster)?;
    // The API server makes these two by itself, a moment after it is ready.
    until("the kubernetes Service and the kube-system namespace", READY, |seen| {
        let mut get = kubectl(work.peers, cluster);
        get.args(["get", "--namespace=default", "service/kubernetes", "namespace/kube-system", "--output=name"]);
        Ok(finish(get, None).map_err(|why| *seen = why.to_string()).is_ok())
    })?;
    let mut apply = kubectl(work.peers, cluster);
    apply.args(["apply", "--validate=false", "--filename=-"]);
    finish(apply, Some(STORAGE_CLASS))?;
    wait_echo(work, cluster)?;
    work.talk.say(&cluster.id, "API server and echo answer");
    Ok(())
}

/// The two Services and the pod's address, in the node's namespace.
pub(super) fn network(cluster: &ClusterPlan) -> Result<(), LabError> {
    run("ip", &["-n", &cluster.node_ns, "address", "replace", &format!("{LIGHT_POD}/32"), "dev", "lo"])?;
    let mut rules = in_netns(&cluster.node_ns, "iptables-restore");
    rules.arg("-w");
    finish(rules, Some(&service_rules())).map(drop)
}

/// Both for what comes in by the router's device and for what the router's own stack dials (4via6).
pub(super) fn service_rules() -> String {
    format!(
        "*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:GN-SERVICES -
-A PREROUTING -j GN-SERVICES
-A OUTPUT -j GN-SERVICES
-A GN-SERVICES -d {API_SERVICE} -p tcp --dport 443 -j DNAT --to-destination {NODE_ADDRESS}:{API_PORT}
-A GN-SERVICES -d {ECHO_SERVICE} -p tcp --dport 80 -j DNAT --to-destination {LIGHT_POD}:{ECHO_PORT}
COMMIT
"
    )
}

/// Whether the API server says that it is ready, right now.
pub(super) fn is_ready(peers: &Peers, cluster: &ClusterPlan) -> bool {
    let mut ready = kubectl(peers, cluster);
    ready.args(["get", "--raw=/readyz", "--request-timeout=3s"]);
    finish(ready, None).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_services_lead_to_the_node_for_the_routers_device_and_for_its_own_stack() {
        let rules = service_rules();
        for rule in [
            "-A GN-SERVICES -d 10.96.0.1 -p tcp --dport 443 -j DNAT --to-destination 192.168.77.10:6443",
            "-A GN-SERVICES -d 10.96.0.80 -p tcp --dport 80 -j DNAT --to-destination 10.244.0.10:8080",
            "-A PREROUTING -j GN-SERVICES",
            "-A OUTPUT -j GN-SERVICES",
        ] {
            assert!(rules.contains(rule), "{rule:?} is not in\n{rules}");
        }
    }
}
