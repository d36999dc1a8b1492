//! Routers of a light cluster: real tailscaleds that the lab starts when it is asked for one, because no DaemonSet can run
//! there. The first runs on the node. Every other has a host of its own on the cluster's LAN, from which the Services lead
//! to the node, so that one of them can be killed, frozen, cut off from the world or from its cluster while the rest works.

use std::{net::Ipv4Addr, path::PathBuf, process::Command};

use clap::Args;

use super::{READY, Work, light, settings};
use crate::{
    command::{command, finish, in_netns, until},
    error::LabError,
    files, net,
    peers::Peers,
    plan::{ClusterPlan, MAX_ROUTERS, RouterPlan},
    process::{self, Spec, is_alive},
    state::State,
};

/// Socket of the node's router, below the node's `/run`.
const SOCKET: &str = "tailscale/tailscaled.sock";

/// What a router is told; what is left out is the lab's own Headscale.
#[derive(Debug, Clone, Args)]
pub struct RouterArgs {
    /// Which of the cluster's routers: the first runs on the node, every other on a host of its own beside it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_ROUTERS)))]
    pub number: u8,
    /// Where it logs in [default: the lab's Headscale]
    #[arg(long, value_name = "URL")]
    pub login_server: Option<String>,
    /// File with its preauth key
    #[arg(long, value_name = "FILE")]
    pub auth_key_file: PathBuf,
    /// The networks it advertises
    #[arg(long, value_name = "CIDR,...")]
    pub routes: String,
    /// Its name in the tailnet [default: <cluster>-router, <cluster>-router-2, ...]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// PEM file with the authority of the login server [default: that of the lab's Headscale]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// The routers of a cluster that were started once.
pub(crate) fn known(state: &State, cluster: &ClusterPlan) -> Vec<RouterPlan> {
    cluster.all_routers().into_iter().filter(|router| state.routers.contains(&router.process)).collect()
}

/// The router that a process name means.
pub(crate) fn find(state: &State, process: &str) -> Result<(ClusterPlan, RouterPlan), LabError> {
    let all = || {
        state.plan.all_clusters().into_iter().flat_map(|c| known(state, &c).into_iter().map(move |r| (c.clone(), r)))
    };
    all().find(|(_, router)| router.process == process).ok_or_else(|| {
        let names: Vec<String> = all().map(|(_, router)| router.process).collect();
        LabError::NotFound { what: format!("no router {process:?}; there are {}", names.join(", ")) }
    })
}

/// What the cluster's gateway drops, as the state has it.
pub(crate) fn faults(state: &State, cluster: &ClusterPlan) -> net::Faults {
    let legs = |list: &[String]| {
        known(state, cluster).into_iter().filter(|r| list.contains(&r.process)).map(|r| r.leg).collect()
    };
    net::Faults {
        udp_blocked: state.udp_blocked.contains(&cluster.id),
        cut: legs(&state.cut),
        detached: legs(&state.detached),
    }
}

/// The daemon.
pub(super) fn spec(cluster: &ClusterPlan, peers: &Peers, router: &RouterPlan) -> Spec {
    let (state, socket) = if router.is_on_node() {
        ("/var/lib/tailscale".into(), format!("/run/{SOCKET}"))
    } else {
        (router.state_dir.display().to_string(), socket(cluster, router).display().to_string())
    };
    let args = [
        format!("--statedir={state}"),
        format!("--socket={socket}"),
        "--tun=tailscale0".into(),
        "--no-logs-no-support".into(),
    ];
    let env = vec![
        ("SSL_CERT_FILE", ca_file(cluster, router).display().to_string()),
        ("TS_NO_LOGS_NO_SUPPORT", "true".into()),
        // As the router pods of the other clusters do.
        ("TS_DEBUG_FIREWALL_MODE", "nftables".into()),
    ];
    let on_node = settings::spec(cluster, &router.name(), peers.program("tailscale", "tailscaled"), &args);
    let holder = on_node.holder.clone().filter(|_| router.is_on_node());
    Spec { env, netns: Some(router.netns.clone()), holder, ..on_node }
}

fn ca_file(cluster: &ClusterPlan, router: &RouterPlan) -> PathBuf {
    cluster.file(&format!("{}-ca.pem", router.name()))
}

/// Where the daemon's socket is, as the machine sees it.
fn socket(cluster: &ClusterPlan, router: &RouterPlan) -> PathBuf {
    if router.is_on_node() {
        cluster.data_dir.join("run").join(SOCKET)
    } else {
        router.state_dir.join("tailscaled.sock")
    }
}

/// The host of a router that is not on the node: its leg of the LAN, and the Services as kube-proxy would lead them.
pub(super) fn network(cluster: &ClusterPlan, router: &RouterPlan) -> Result<(), LabError> {
    net::make_router_host(cluster, router)?;
    let mut rules = in_netns(&router.netns, "iptables-restore");
    rules.arg("-w");
    finish(rules, Some(&light::service_rules())).map(drop)
}

/// Starts a router unless it runs, and has it join; its address in the tailnet. Safe to repeat: a router that has joined
/// stays the same node.
pub(crate) fn join(work: Work<'_>, cluster: &ClusterPlan, args: &RouterArgs) -> Result<Ipv4Addr, LabError> {
    let state = work.state.get();
    if !cluster.light {
        return Err(LabError::Usage {
            what: format!("cluster {} runs pods: its router is the product's DaemonSet", cluster.id),
        });
    }
    let router = cluster.router(args.number);
    let key_file = cluster.file(&format!("{}.key", router.name()));
    let lab_ca = state.plan.person_dir().join("headscale-ca.pem");
    // Copies: the node sees the lab's folders and little else, and a restart needs the authority again.
    for (from, to) in
        [(&args.auth_key_file, &key_file), (args.ca.as_ref().unwrap_or(&lab_ca), &ca_file(cluster, &router))]
    {
        files::write(to, files::read(from)?, 0o600)?;
    }
    let socket = socket(cluster, &router);
    files::folder(socket.parent().expect("the socket lies in a folder"), 0o700)?;
    work.state.update(|s| {
        s.routers.retain(|process| *process != router.process);
        s.routers.push(router.process.clone());
    })?;
    let spec = spec(cluster, work.peers, &router);
    if !state.processes.get(&spec.name).is_some_and(is_alive) {
        if !router.is_on_node() && !net::has_router_host(&state.plan, &router) {
            network(cluster, &router)?;
        }
        // That of one that was killed.
        files::remove(&socket)?;
        process::ensure(work.state, work.cgroups, &spec)?;
    }
    until(&format!("the socket of {}", spec.name), READY, |_| {
        process::check(work.state, &spec.name)?;
        Ok(socket.exists())
    })?;
    let client = |args: &[String]| {
        let mut client = tailscale(&work.state.get(), cluster, work.peers, &router)?;
        client.args(args);
        finish(client, None)
    };
    let hostname = args.hostname.clone().unwrap_or_else(|| format!("{}-{}", cluster.id, router.name()));
    let joined = client(&[
        "up".into(),
        "--reset".into(),
        format!("--login-server={}", args.login_server.clone().unwrap_or_else(|| state.plan.headscale_url())),
        format!("--auth-key=file:{}", key_file.display()),
        format!("--advertise-routes={}", args.routes),
        format!("--hostname={hostname}"),
        "--accept-dns=false".into(),
        "--timeout=60s".into(),
    ]);
    // It has served its purpose, whether or not the server liked it.
    files::remove(&key_file)?;
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

/// A router's own command line.
pub(crate) fn tailscale(
    state: &State,
    cluster: &ClusterPlan,
    peers: &Peers,
    router: &RouterPlan,
) -> Result<Command, LabError> {
    let program = peers.program("tailscale", "tailscale");
    if router.is_on_node() {
        let mut inside = super::in_node(state, cluster, program)?;
        inside.arg(format!("--socket=/run/{SOCKET}"));
        return Ok(inside);
    }
    // By its socket alone.
    let mut client = command(program);
    client.arg(format!("--socket={}", socket(cluster, router).display()));
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn state() -> State {
        State::new(Plan { light: vec!["a".into(), "b".into()], ..Plan::sample(&["a", "b"]) })
    }

    #[test]
    fn a_fault_concerns_the_gateway_of_its_router_and_no_other() {
        let mut state = state();
        state.routers = vec!["a/router".into(), "a/router-2".into(), "b/router-2".into()];
        state.cut = vec!["a/router-2".into(), "a/router".into(), "b/router-3".into()];
        state.detached = vec!["b/router-2".into()];
        let [a, b] = &state.plan.all_clusters()[..] else { panic!("two clusters") };
        let seen = faults(&state, a);
        assert_eq!((seen.cut, seen.detached), (vec!["lan".to_owned(), "lan2".to_owned()], vec![]));
        let seen = faults(&state, b);
        // The third router of b was never started.
        assert_eq!((seen.cut, seen.detached), (vec![], vec!["lan2".to_owned()]));
    }

    #[test]
    fn an_unknown_router_is_answered_with_those_that_there_are() {
        let mut state = state();
        state.routers = vec!["a/router-2".into()];
        assert_eq!(find(&state, "a/router-2").expect("started").1.number, 2);
        let why = find(&state, "a/router").expect_err("never started").to_string();
        assert_eq!(why, "no router \"a/router\"; there are a/router-2");
    }
}
