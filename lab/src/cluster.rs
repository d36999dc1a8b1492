//! One cluster: its keys, its node and its programs, brought up in the order in which they need each other.
//!
//! `up` heals: it starts what is dead, and makes anew what is incomplete. Texts of settings are in `settings.rs`; a
//! cluster without what runs pods is `light.rs`.

mod light;
mod router;
mod settings;

use std::{collections::BTreeSet, net::IpAddr, path::Path, process::Command, time::Duration};

use crate::{
    cgroup::Cgroups,
    command::{command, finish, in_netns, until},
    error::LabError,
    files,
    images::Images,
    net,
    peers::Peers,
    pki::{Authority, Subject, bare_key, kubeconfig},
    plan::{API_PORT, ClusterPlan, ECHO_SERVICE, NODE_ADDRESS, Plan},
    process::{self, Spec, is_alive},
    state::{State, StateFile},
    talk::Talk,
};

pub use router::RouterArgs;
pub(crate) use router::{faults, find as find_router, join, tailscale};

/// Time for each step to be done; the whole takes about 20 s on two cores when all programs are there.
const READY: Duration = Duration::from_secs(90);

/// What one command of the lab works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) state: &'a StateFile,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) peers: &'a Peers,
    pub(crate) talk: &'a Talk,
}

/// The daemons of a cluster that can be stopped and started one by one.
pub(crate) fn specs(state: &State, cluster: &ClusterPlan, peers: &Peers) -> Vec<Spec> {
    if cluster.light {
        return light::specs(state, cluster, peers);
    }
    vec![
        settings::node(&state.plan, cluster),
        settings::etcd(cluster, peers),
        settings::containerd(cluster),
        settings::api_server(cluster, peers),
        settings::kubelet(cluster, peers),
        settings::controller_manager(cluster, peers),
        settings::scheduler(cluster, peers),
        settings::proxy(cluster, peers),
    ]
}

/// Brings the cluster's programs up, or heals them, on the ground of [`ground`]; returns when echo answers. Images are
/// there unless the cluster is light.
pub(crate) fn up(work: Work<'_>, cluster: &ClusterPlan, images: Option<&Images>) -> Result<(), LabError> {
    write_keys(&work.state.get().plan, cluster)?;
    hold_node(work, cluster)?;
    match images {
        Some(images) if !cluster.light => up_with_pods(work, cluster, images),
        _ => light::up(work, cluster),
    }
}

/// The node's view of the file system.
fn hold_node(work: Work<'_>, cluster: &ClusterPlan) -> Result<(), LabError> {
    let known = work.state.get();
    let node = settings::node(&known.plan, cluster);
    files::folder(&cluster.data_dir, 0o755)?;
    if !known.processes.get(&node.name).is_some_and(is_alive) {
        files::remove(&cluster.data_dir.join("ready"))?;
        for folder in ["lib", "log", "run"] {
            files::folder(&cluster.data_dir.join(folder), 0o755)?;
        }
        process::ensure(work.state, work.cgroups, &node)?;
    }
    until("the node's view of the file system", READY, |_| {
        process::check(work.state, &node.name)?;
        Ok(std::fs::metadata(cluster.data_dir.join("ready")).is_ok_and(|file| file.len() > 0))
    })
}

fn up_with_pods(work: Work<'_>, cluster: &ClusterPlan, images: &Images) -> Result<(), LabError> {
    let say = |what: &str| work.talk.say(&cluster.id, what);
    write_settings(cluster, images)?;
    let start = |spec: &Spec| process::ensure(work.state, work.cgroups, spec);
    work.cgroups.ensure(&format!("{}/pods", cluster.cgroup))?;
    start(&settings::etcd(cluster, work.peers))?;
    start(&settings::containerd(cluster))?;
    start(&settings::api_server(cluster, work.peers))?;
    // Images come in while the API server starts.
    std::thread::scope(|scope| -> Result<(), LabError> {
        let importing = scope.spawn(|| import(work, cluster, images));
        wait_api(work.state, cluster)?;
        say("API server answers");
        start(&settings::controller_manager(cluster, work.peers))?;
        start(&settings::scheduler(cluster, work.peers))?;
        start(&settings::proxy(cluster, work.peers))?;
        importing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        start(&settings::kubelet(cluster, work.peers))?;
        Ok(())
    })?;
    apply(work, cluster, images)?;
    wait_ready(work, cluster)?;
    say("node is Ready, echo answers");
    Ok(())
}

/// Networks and, if something of them is missing, a clean ground: what runs on half a network is ended first.
pub(crate) fn ground(work: Work<'_>, cluster: &ClusterPlan) -> Result<(), LabError> {
    let known = work.state.get();
    let holder = known.processes.get(&cluster.process("node"));
    let routers: Vec<_> = router::known(&known, cluster).into_iter().filter(|router| !router.is_on_node()).collect();
    let complete = net::is_complete(&known.plan, &cluster.behind())
        && routers.iter().all(|router| net::has_router_host(&known.plan, router));
    if !complete || !holder.is_some_and(is_alive) {
        work.cgroups.kill_nodes(cluster.cgroup.clone(), std::slice::from_ref(&cluster.data_dir))?;
    }
    if !complete {
        let more = || if cluster.light { light::network(cluster) } else { Ok(()) };
        net::make(&known.plan, &cluster.behind(), net::Joint::Cable, more)?;
        net::set_nat(&cluster.behind(), known.nat(&cluster.id))?;
        net::set_door(cluster, !known.shut_doors.contains(&cluster.id))?;
        routers.iter().try_for_each(|router| router::network(cluster, router))?;
        net::set_faults(&cluster.gateway_ns, &faults(&known, cluster))?;
        work.talk.say(&cluster.id, format!("gateway {} and its private network", cluster.outer));
    }
    Ok(())
}

/// Keys and kubeconfigs, made once.
fn write_keys(plan: &Plan, cluster: &ClusterPlan) -> Result<(), LabError> {
    files::folder(&cluster.run_dir, 0o700)?;
    let private = |name: &str, text: String| files::write(&cluster.file(name), text, 0o600);
    if !cluster.file("complete").exists() {
        let ca = Authority::new(&format!("GuildNet lab: cluster {}", cluster.id))?;
        let node_user = format!("system:node:{}", cluster.node_name);
        let server = |name, dns, ips| Subject { name, group: None, dns, ips };
        let address = [IpAddr::from(NODE_ADDRESS)];
        let pairs = [
            ("ca", ca.pair()),
            ("apiserver", ca.sign(server("kube-apiserver", &settings::API_NAMES, &settings::api_addresses(cluster)))?),
            ("kubelet", ca.sign(server(&node_user, &[&cluster.node_name], &address))?),
            ("apiserver-kubelet", ca.sign(Subject::client("kube-apiserver-kubelet", Some("system:masters")))?),
        ];
        for (name, pair) in pairs {
            private(&format!("{name}.pem"), pair.cert)?;
            private(&format!("{name}.key"), pair.key)?;
        }
        let (key, public) = bare_key()?;
        private("service-accounts.key", key)?;
        private("service-accounts.pub", public)?;
        let ca_cert = ca.pair().cert;
        let inside = format!("https://{NODE_ADDRESS}:{API_PORT}");
        for (name, user, group) in [
            ("admin", "admin", Some("system:masters")),
            ("kubelet", node_user.as_str(), Some("system:nodes")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
            ("proxy", "system:kube-proxy", None),
        ] {
            let client = ca.sign(Subject::client(user, group))?;
            private(&format!("{name}.kubeconfig"), kubeconfig(&cluster.id, &inside, &ca_cert, &client))?;
        }
        let person = ca.sign(Subject::client("lab-user", Some("system:masters")))?;
        let outside = format!("https://{}:{API_PORT}", cluster.outer);
        private("person.kubeconfig", kubeconfig(&cluster.id, &outside, &ca_cert, &person))?;
        private("complete", String::new())?;
    }
    let theirs = files::read(&cluster.file("person.kubeconfig"))?;
    files::write_for(plan.person, &plan.person_dir().join(format!("{}.kubeconfig", cluster.id)), theirs)
}

/// Settings of what runs pods: written again, so that a newer lab heals an older one.
fn write_settings(cluster: &ClusterPlan, images: &Images) -> Result<(), LabError> {
    let private = |name: &str, text: String| files::write(&cluster.file(name), text, 0o600);
    private("containerd.toml", settings::containerd_config(cluster, images))?;
    private("kubelet.yaml", settings::kubelet_config(cluster))?;
    private("resolv.conf", "# No resolver beyond the cluster.\n".into())?;
    files::folder(&cluster.file("cni"), 0o700)?;
    private("cni/10-pods.conflist", settings::cni_config())
}

/// Waits until the API server says that it is ready.
pub(crate) fn wait_api(state: &StateFile, cluster: &ClusterPlan) -> Result<(), LabError> {
    let name = cluster.process("kube-apiserver");
    let peers = Peers(state.get().peers);
    until(&format!("readiness of {name}"), READY, |seen| {
        process::check(state, &name)?;
        process::check(state, &cluster.process("etcd"))?;
        // A listener first: it costs less to ask for than kubectl.
        let mut listens = in_netns(&cluster.node_ns, "busybox");
        listens.args(["nc", "-w", "1", "127.0.0.1", &API_PORT.to_string()]);
        if finish(listens, None).is_err() {
            *seen = "nothing listens".into();
            return Ok(false);
        }
        let mut ready = kubectl(&peers, cluster);
        ready.args(["get", "--raw=/readyz", "--request-timeout=5s"]);
        Ok(finish(ready, None).map_err(|why| *seen = why.to_string()).is_ok())
    })
}

/// kubectl with the administrator's rights, in the node's network.
pub(crate) fn kubectl(peers: &Peers, cluster: &ClusterPlan) -> Command {
    let mut kubectl = in_netns(&cluster.node_ns, peers.program("kubernetes", "kubectl"));
    // Its cache of the API would go to a home folder otherwise, and outlive the lab.
    kubectl.env("KUBECACHEDIR", cluster.file("kubectl-cache"));
    kubectl.arg(format!("--kubeconfig={}", cluster.file("admin.kubeconfig").display()));
    kubectl
}

/// A command that sees what the node's programs see: network, files, host name.
pub(crate) fn in_node(
    state: &State,
    cluster: &ClusterPlan,
    program: impl AsRef<std::ffi::OsStr>,
) -> Result<Command, LabError> {
    let name = cluster.process("node");
    let holder = state
        .processes
        .get(&name)
        .filter(|p| is_alive(p))
        .ok_or_else(|| LabError::Died { name: name.clone(), tail: crate::command::log_tail(&state.plan.log(&name)) })?;
    let mut inside = command("nsenter");
    inside
        .arg(format!("--net=/run/netns/{}", cluster.node_ns))
        .arg(format!("--mount=/proc/{}/ns/mnt", holder.pid))
        .arg(format!("--uts=/proc/{}/ns/uts", holder.pid))
        .arg("--")
        .arg(program);
    Ok(inside)
}

/// Brings the images that the runtime lacks.
fn import(work: Work<'_>, cluster: &ClusterPlan, images: &Images) -> Result<(), LabError> {
    let known = work.state.get();
    let ctr = |args: &[&str]| -> Result<String, LabError> {
        let mut ctr = in_node(&known, cluster, "ctr")?;
        ctr.args(["--address", settings::RUNTIME, "--namespace", "k8s.io"]).args(args);
        finish(ctr, None)
    };
    let name = cluster.process("containerd");
    let mut there = BTreeSet::new();
    until(&format!("the answer of {name}"), READY, |seen| {
        process::check(work.state, &name)?;
        match ctr(&["images", "list", "--quiet"]) {
            Ok(list) => there = list.lines().map(str::to_owned).collect(),
            Err(why) => {
                *seen = why.to_string();
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    for (name, archive) in &images.all {
        if !there.contains(name) {
            // The cache may lie where the node sees something else: the archive goes in by its own door.
            let inside = offer(cluster, archive)?;
            ctr(&["images", "import", &inside])?;
            files::remove(&cluster.data_dir.join("run").join(inside.trim_start_matches("/run/")))?;
        }
    }
    Ok(())
}

/// Puts a file where the node sees it; its path there.
fn offer(cluster: &ClusterPlan, file: &Path) -> Result<String, LabError> {
    let name = file.file_name().expect("an archive has a name");
    let to = cluster.data_dir.join("run").join(name);
    files::remove(&to)?;
    // A link costs nothing; another file system needs a copy.
    std::fs::hard_link(file, &to)
        .or_else(|_| std::fs::copy(file, &to).map(drop))
        .map_err(LabError::io(format!("cannot bring {} to the node", file.display())))?;
    Ok(format!("/run/{}", name.display()))
}

/// Applies what every cluster of the lab has.
fn apply(work: Work<'_>, cluster: &ClusterPlan, images: &Images) -> Result<(), LabError> {
    let kubectl = |args: &[&str], input: Option<&str>| {
        let mut kubectl = kubectl(work.peers, cluster);
        kubectl.args(args);
        finish(kubectl, input)
    };
    // Without its account a pod is refused, and tried again much later.
    until("the default service account", READY, |seen| {
        process::check(work.state, &cluster.process("kube-controller-manager"))?;
        let found = kubectl(&["get", "serviceaccount", "default", "--namespace=default", "--output=name"], None);
        Ok(found.map_err(|why| *seen = why.to_string()).is_ok())
    })?;
    kubectl(&["apply", "--validate=false", "--filename=-"], Some(&settings::manifests(cluster, images)))?;
    Ok(())
}

/// Waits for the node, DNS and an answer of echo from inside the cluster.
fn wait_ready(work: Work<'_>, cluster: &ClusterPlan) -> Result<(), LabError> {
    let name = cluster.process("kubelet");
    until(&format!("readiness of {}", cluster.node_name), READY, |seen| {
        process::check(work.state, &name)?;
        let mut get = kubectl(work.peers, cluster);
        get.args(["get", "node", &cluster.node_name]);
        get.arg("--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.status.conditions[?(@.type==\"Ready\")].message}");
        match finish(get, None) {
            Ok(said) => *seen = said,
            Err(why) => *seen = why.to_string(),
        }
        Ok(seen.starts_with("True"))
    })?;
    let mut rollout = kubectl(work.peers, cluster);
    rollout.args(["rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=90s"]);
    finish(rollout, None)?;
    wait_echo(work, cluster)
}

/// Waits for an answer of the echo Service from inside the cluster, in the cluster's name.
fn wait_echo(work: Work<'_>, cluster: &ClusterPlan) -> Result<(), LabError> {
    until("the answer of echo", READY, |seen| {
        let mut get = in_netns(&cluster.node_ns, work.peers.program("workload", "workload"));
        get.args(["get", &format!("http://{ECHO_SERVICE}/")]);
        match finish(get, None) {
            Ok(said) if said.starts_with(&format!("cluster={}\n", cluster.id)) => Ok(true),
            Ok(said) => {
                *seen = said;
                Ok(false)
            }
            Err(why) => {
                *seen = why.to_string();
                Ok(false)
            }
        }
    })
}

/// Whether the node is Ready right now; of a light cluster, whether its API server is.
pub(crate) fn is_ready(peers: &Peers, cluster: &ClusterPlan) -> bool {
    if cluster.light {
        return light::is_ready(peers, cluster);
    }
    let mut get = kubectl(peers, cluster);
    get.args(["get", "node", &cluster.node_name, "--request-timeout=3s"]);
    get.arg("--output=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}");
    finish(get, None).is_ok_and(|said| said.trim() == "True")
}
