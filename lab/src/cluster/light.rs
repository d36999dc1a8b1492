//! A light cluster: etcd and an API server behind its own gateway, nothing that runs pods, a quarter of the memory.
//!
//! What kube-proxy does elsewhere is two rules in the node's namespace: the `kubernetes` Service leads to the API server,
//! the echo Service to the one "pod", a process of the node with an address of the pod network. No DaemonSet can run
//! there: the router is a real tailscaled that the lab starts when it is asked for one.

use std::{net::Ipv4Addr, path::PathBuf, process::Command};

use clap::Args;

use super::{READY, Work, kubectl, settings, wait_api, wait_echo};
use crate::{
    command::{finish, in_netns, run, until},
    error::LabError,
    files,
    peers::Peers,
    plan::{API_PORT, API_SERVICE, ClusterPlan, ECHO_PORT, ECHO_SERVICE, LIGHT_POD, NODE_ADDRESS},
    process::{self, Spec, is_alive},
    state::State,
};

/// There to be found: nothing provisions volumes in the lab.
const STORAGE_CLASS: &str = include_str!("storage.yaml");

/// Name of the router's process.
pub(crate) const ROUTER: &str = "router";

/// Its socket, below the node's `/run`.
const SOCKET: &str = "tailscale/tailscaled.sock";

/// What a router is told; what is left out is the lab's own Headscale.
#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    /// Where it logs in [default: the lab's Headscale]
    #[arg(long, value_name = "URL")]
    pub login_server: Option<String>,
    /// File with its preauth key
    #[arg(long, value_name = "FILE")]
    pub auth_key_file: PathBuf,
    /// The networks it advertises
    #[arg(long, value_name = "CIDR,...")]
    pub routes: String,
    /// Its name in the tailnet [default: <cluster>-router]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// PEM file with the authority of the login server [default: that of the lab's Headscale]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Its daemons that can be stopped and started one by one.
pub(super) fn specs(state: &State, cluster: &ClusterPlan, peers: &Peers) -> Vec<Spec> {
    let mut specs = vec![
        settings::node(&state.plan, cluster),
        settings::etcd(cluster, peers),
        settings::api_server(cluster, peers),
        echo(cluster, peers),
    ];
    if state.routers.contains(&cluster.id) {
        specs.push(router(cluster, peers));
    }
    specs
}

fn echo(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let env = vec![("CLUSTER", cluster.id.clone()), ("POD", format!("{}-echo", cluster.id))];
    Spec { env, ..settings::spec(cluster, "echo", peers.program("workload", "workload"), &["echo".into()]) }
}

fn router(cluster: &ClusterPlan, peers: &Peers) -> Spec {
    let args = [
        "--statedir=/var/lib/tailscale".into(),
        format!("--socket=/run/{SOCKET}"),
        "--tun=tailscale0".into(),
        "--no-logs-no-support".into(),
    ];
    let env = vec![
        ("SSL_CERT_FILE", cluster.file("router-ca.pem").display().to_string()),
        ("TS_NO_LOGS_NO_SUPPORT", "true".into()),
        // As the router pods of the other clusters do.
        ("TS_DEBUG_FIREWALL_MODE", "nftables".into()),
    ];
    Spec { env, ..settings::spec(cluster, ROUTER, peers.program("tailscale", "tailscaled"), &args) }
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
fn service_rules() -> String {
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

/// Starts the cluster's router unless it runs, and has it join; its address in the tailnet. Safe to repeat: a router that
/// has joined stays the same node.
pub(crate) fn join(work: Work<'_>, cluster: &ClusterPlan, args: &RouterArgs) -> Result<Ipv4Addr, LabError> {
    let known = work.state.get();
    if !cluster.light {
        return Err(LabError::Usage {
            what: format!("cluster {} runs pods: its router is the product's DaemonSet", cluster.id),
        });
    }
    let lab_ca = known.plan.person_dir().join("headscale-ca.pem");
    // Copies: the node sees the lab's folders and little else, and a restart needs the authority again.
    for (from, to) in [(&args.auth_key_file, "router.key"), (args.ca.as_ref().unwrap_or(&lab_ca), "router-ca.pem")] {
        files::write(&cluster.file(to), files::read(from)?, 0o600)?;
    }
    let socket = cluster.data_dir.join("run").join(SOCKET);
    files::folder(socket.parent().expect("the socket lies in a folder"), 0o700)?;
    work.state.update(|s| {
        s.routers.retain(|id| *id != cluster.id);
        s.routers.push(cluster.id.clone());
    })?;
    let spec = router(cluster, work.peers);
    if !known.processes.get(&spec.name).is_some_and(is_alive) {
        // That of one that was killed.
        files::remove(&socket)?;
        process::ensure(work.state, work.cgroups, &spec)?;
    }
    until(&format!("the socket of {}", spec.name), READY, |_| {
        process::check(work.state, &spec.name)?;
        Ok(socket.exists())
    })?;
    let client = |args: &[String]| {
        let mut client = tailscale(&work.state.get(), cluster, work.peers)?;
        client.args(args);
        finish(client, None)
    };
    let hostname = args.hostname.clone().unwrap_or_else(|| format!("{}-router", cluster.id));
    let joined = client(&[
        "up".into(),
        "--reset".into(),
        format!("--login-server={}", args.login_server.clone().unwrap_or_else(|| known.plan.headscale_url())),
        format!("--auth-key=file:{}", cluster.file("router.key").display()),
        format!("--advertise-routes={}", args.routes),
        format!("--hostname={hostname}"),
        "--accept-dns=false".into(),
        "--timeout=60s".into(),
    ]);
    // It has served its purpose, whether or not the server liked it.
    files::remove(&cluster.file("router.key"))?;
    joined?;
    let said = client(&["ip".into(), "-4".into()])?;
    let address = said.trim().parse().map_err(|_| LabError::Timeout {
        what: format!("the tailnet address of {}", spec.name),
        after: READY,
        detail: format!("; it said {said:?}"),
    })?;
    work.talk.say(&cluster.id, format!("router {hostname} joined as {address}, advertises {}", args.routes));
    Ok(address)
}

/// The router's own command line.
pub(crate) fn tailscale(state: &State, cluster: &ClusterPlan, peers: &Peers) -> Result<Command, LabError> {
    let mut inside = super::in_node(state, cluster, peers.program("tailscale", "tailscale"))?;
    inside.arg(format!("--socket=/run/{SOCKET}"));
    Ok(inside)
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
