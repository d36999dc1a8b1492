//! A running lab, for tests and for the command: its files, its doors, its faults.

use std::{
    ffi::OsStr,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{
    cgroup::Cgroups,
    cluster::{self, RouterArgs, Work},
    command::{self, PATH},
    error::LabError,
    headscale, host,
    link::{LinkAnswer, LinkChange},
    net,
    peers::Peers,
    plan::{API_PORT, Behind, ClusterPlan, Host, HostPlan, Instance, Nat, Plan},
    process::{self, Spec},
    relay,
    state::{Lock, State, StateFile},
    status::{Status, status},
    talk::Talk,
};

/// A lab that is up. Every act takes the instance's lock and reads the state anew.
#[derive(Debug, Clone)]
pub struct Lab {
    plan: Plan,
    peers: Peers,
    person_dir: PathBuf,
}

impl Lab {
    /// The lab of the instance that the environment names (`GUILDNET_LAB_INSTANCE`, else `default`).
    ///
    /// # Errors
    /// [`LabError::NotRunning`], with the command that brings it up, if there is none; [`LabError::NotRoot`].
    pub fn attach() -> Result<Self, LabError> {
        Self::of(&Instance::from_env()?)
    }

    /// The lab of an instance.
    ///
    /// # Errors
    /// As [`Lab::attach`].
    pub fn of(instance: &Instance) -> Result<Self, LabError> {
        crate::up::require_root()?;
        let state = State::load(instance)?.ok_or_else(|| LabError::NotRunning { instance: instance.to_string() })?;
        Ok(Self { person_dir: state.plan.person_dir(), peers: Peers(state.peers), plan: state.plan })
    }

    /// Names and addresses.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The folder of what the user reads: `<cluster>.kubeconfig`, `headscale-url`, `headscale-api-key`,
    /// `headscale-ca.pem`. It is theirs; `down` removes it.
    #[must_use]
    pub fn person_dir(&self) -> &Path {
        &self.person_dir
    }

    /// User and group id of who runs `guildnet`.
    #[must_use]
    pub fn person(&self) -> (u32, u32) {
        (self.plan.person.uid, self.plan.person.gid)
    }

    /// Where a cluster's door is, open or shut.
    ///
    /// # Panics
    /// If the lab has no such cluster.
    #[must_use]
    pub fn door_address(&self, cluster: &str) -> SocketAddr {
        (self.must(cluster).outer, API_PORT).into()
    }

    /// What runs, as seen now.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn status(&self) -> Result<Status, LabError> {
        self.state().map(|state| status(&state))
    }

    /// Opens or shuts a cluster's door, or all with `all`. Shutting also cuts what goes through.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if the gateway refuses.
    pub fn door(&self, cluster: &str, open: bool) -> Result<(), LabError> {
        let clusters = if cluster == "all" { self.plan.all_clusters() } else { vec![self.plan.cluster(cluster)?] };
        let (_held, state) = self.hold()?;
        for cluster in clusters {
            net::set_door(&cluster, open)?;
            state.update(|s| set(&mut s.shut_doors, &cluster.id, !open))?;
        }
        Ok(())
    }

    /// Makes the gateway of a cluster or a client host drop all UDP, or let it through again.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if the gateway refuses.
    pub fn block_udp(&self, name: &str, blocked: bool) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        let plan = state.get().plan;
        let behind = plan.behind(name)?;
        state.update(|s| set(&mut s.udp_blocked, name, blocked))?;
        let known = state.get();
        let faults = match plan.host(name) {
            Ok(host) => host::faults(&known, &host),
            Err(_) => cluster::faults(&known, &plan.cluster(name)?),
        };
        net::set_faults(&behind.gateway_ns, &faults)?;
        net::forget_udp(&behind.gateway_ns)
    }

    /// Makes a client host behind a gateway of its own, or finds that it is there; with a link and its seed if given.
    ///
    /// # Errors
    /// [`LabError::Usage`] for a name that can't be one; [`LabError::Conflict`] if it is there otherwise; or what can't be made.
    pub fn host(&self, wanted: &Host, talk: &Talk) -> Result<HostPlan, LabError> {
        let (_held, state) = self.hold()?;
        let mut plan = state.get().plan;
        plan.add_host(wanted)?;
        state.update(|s| s.plan = plan.clone())?;
        let host = plan.host(&wanted.name)?;
        let cgroups = Cgroups::find()?;
        host::up(Work { state: &state, cgroups: &cgroups, peers: &self.peers, talk }, &host)?;
        Ok(host)
    }

    /// Takes a client host to another network, or back: it and its gateway change their addresses, and nothing that went
    /// through survives.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if the addresses can't be changed.
    pub fn move_host(&self, name: &str) -> Result<HostPlan, LabError> {
        let (_held, state) = self.hold()?;
        let known = state.get();
        let mut plan = known.plan.clone();
        plan.move_host(name)?;
        let moved = plan.host(name)?;
        net::renumber(&known.plan.host(name)?.behind, &moved.behind, known.nat(name))?;
        state.update(|s| s.plan = plan)?;
        Ok(moved)
    }

    /// Sets what the gateway of a cluster or a client host does to addresses; it forgets what UDP went through it.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Usage`] for none where no address is left; or if the gateway refuses.
    pub fn set_nat(&self, name: &str, nat: Nat) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        net::set_nat(&state.get().plan.behind(name)?, nat)?;
        state.update(|s| s.nat.insert(name.to_owned(), nat)).map(drop)
    }

    /// Changes the settings of a client host's link while it runs; an empty change only asks.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Usage`] if the host has none; [`LabError::Died`] if it does not run.
    pub fn link(&self, host: &str, change: &LinkChange) -> Result<LinkAnswer, LabError> {
        let state = self.state()?;
        host::change(&state, &state.plan.host(host)?, change)
    }

    /// Cuts a router of a light cluster, `a/router-2`, off from everything outside its cluster: it lives, and what it sends
    /// or is sent is dropped at the gateway. Or a standalone relay, `derp-1`, off from everybody. Or ends that.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if the gateway refuses.
    pub fn cut(&self, router: &str, cut: bool) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        if let Some(relay) =
            state.get().plan.relays().iter().find(|relay| state.get().relays && relay.process == router)
        {
            relay::cut(relay, cut)?;
            return state.update(|s| set(&mut s.cut, router, cut));
        }
        let (cluster, router) = cluster::find_router(&state.get(), router)?;
        state.update(|s| set(&mut s.cut, &router.process, cut))?;
        net::set_faults(&cluster.gateway_ns, &cluster::faults(&state.get(), &cluster))
    }

    /// Cuts a router of a light cluster off from its cluster: its tunnels work, and what it forwards is dropped. Or ends that.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Usage`] for the node's own router, which has nothing between it and the cluster.
    pub fn detach(&self, router: &str, detached: bool) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        let (cluster, router) = cluster::find_router(&state.get(), router)?;
        if router.is_on_node() {
            return Err(LabError::Usage {
                what: format!(
                    "{}: it is on the node; only a router on a host of its own can be detached",
                    router.process
                ),
            });
        }
        state.update(|s| set(&mut s.detached, &router.process, detached))?;
        net::set_faults(&cluster.gateway_ns, &cluster::faults(&state.get(), &cluster))
    }

    /// Ends a process: `headscale`, or `CLUSTER/PROGRAM` as in `a/kube-apiserver`. Returns when it is gone.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if it can't be ended.
    pub fn stop_process(&self, name: &str) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        self.spec(name)?;
        process::stop(&state, name)
    }

    /// Kills a process: it ends at once and takes leave of nobody.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if it does not end.
    pub fn kill_process(&self, name: &str) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        self.spec(name)?;
        process::kill_now(&state, name)
    }

    /// Starts a process that was stopped; Headscale and an API server are waited for until they answer.
    ///
    /// # Errors
    /// [`LabError::NotFound`], or if it does not start.
    pub fn start_process(&self, name: &str) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        process::ensure(&state, &Cgroups::find()?, &self.spec(name)?)?;
        match name.split_once('/') {
            None => headscale::wait(&state),
            Some((cluster, "kube-apiserver")) => cluster::wait_api(&state, &self.plan.cluster(cluster)?),
            Some(_) => process::check(&state, name),
        }
    }

    /// Starts a router of a light cluster, a real tailscaled, and has it join; its address in the tailnet.
    /// Safe to repeat.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Usage`] if the cluster is not light; or what the router said.
    pub fn start_router(&self, cluster: &str, args: &RouterArgs, talk: &Talk) -> Result<Ipv4Addr, LabError> {
        let cluster = self.plan.cluster(cluster)?;
        let (_held, state) = self.hold()?;
        let cgroups = Cgroups::find()?;
        cluster::join(Work { state: &state, cgroups: &cgroups, peers: &self.peers, talk }, &cluster, args)
    }

    /// The command line of a light cluster's router, `a/router` or `a/router-2`.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Died`] if it is the node's and the node does not run.
    pub fn tailscale(&self, router: &str) -> Result<Command, LabError> {
        let state = self.state()?;
        let (cluster, router) = cluster::find_router(&state, router)?;
        cluster::tailscale(&state, &cluster, &self.peers, &router)
    }

    /// Freezes a process (it keeps its connections and answers nothing), or lets it go on.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Died`] if it does not run.
    pub fn freeze_process(&self, name: &str, frozen: bool) -> Result<(), LabError> {
        let (_held, state) = self.hold()?;
        self.spec(name)?;
        process::check(&state, name)?;
        let running = state.get().processes[name];
        process::signal(running, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT });
        Ok(())
    }

    /// kubectl with the administrator's rights from the node's namespace; it sees this machine's files.
    ///
    /// # Panics
    /// If the lab has no such cluster.
    #[must_use]
    pub fn kubectl(&self, cluster: &str) -> Command {
        cluster::kubectl(&self.peers, &self.must(cluster))
    }

    /// Headscale's own command line.
    #[must_use]
    pub fn headscale(&self) -> Command {
        headscale::client(&self.plan, &self.peers)
    }

    /// A program that was built for the lab, by its family and name: `("kubernetes", "kubectl")`, `("helm", "helm")`.
    #[must_use]
    pub fn program(&self, family: &str, name: &str) -> PathBuf {
        self.peers.program(family, name)
    }

    /// A command inside a host: `a` is the node of cluster a (network, files, host name), `gw-a` its gateway and `a.2` the
    /// host of its second router (network); `x` is a client host, `gw-x` its gateway, `derp-1` a relay (network).
    /// `KUBECONFIG` is the administrator's; the peers' programs are on the path.
    ///
    /// # Errors
    /// [`LabError::NotFound`]; [`LabError::Died`] if the node does not run.
    pub fn inside(&self, host: &str, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        let state = self.state()?;
        if let Ok(client) = state.plan.host(host.trim_start_matches("gw-")) {
            let Behind { host_ns, gateway_ns, .. } = client.behind;
            return Ok(command::in_netns(if host.starts_with("gw-") { &gateway_ns } else { &host_ns }, program));
        }
        if let Some(relay) = state.plan.relays().iter().find(|relay| state.relays && relay.process == host) {
            return Ok(command::in_netns(&relay.netns, program));
        }
        let (cluster, mut inside) = if let Some(id) = host.strip_prefix("gw-") {
            let cluster = self.plan.cluster(id)?;
            let inside = command::in_netns(&cluster.gateway_ns, program);
            (cluster, inside)
        } else if let Some((id, number)) = host.split_once('.') {
            let (cluster, router) = cluster::find_router(&state, &format!("{id}/router-{number}"))?;
            (cluster, command::in_netns(&router.netns, program))
        } else {
            let cluster = self.plan.cluster(host)?;
            let inside = cluster::in_node(&state, &cluster, program)?;
            (cluster, inside)
        };
        let bins: Vec<String> = self.peers.0.values().map(|bin| bin.display().to_string()).collect();
        inside
            .env("PATH", format!("{}:{PATH}", bins.join(":")))
            .env("KUBECONFIG", cluster.file("admin.kubeconfig"))
            .env("KUBECACHEDIR", cluster.file("kubectl-cache"))
            .env("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock")
            .env("CONTAINERD_NAMESPACE", "k8s.io");
        Ok(inside)
    }

    fn state(&self) -> Result<State, LabError> {
        let instance = &self.plan.instance;
        State::load(instance)?.ok_or_else(|| LabError::NotRunning { instance: instance.to_string() })
    }

    /// The lock and the state as it is now. The lab may have gone down since this value was made.
    fn hold(&self) -> Result<(Lock, StateFile), LabError> {
        self.state()?;
        let lock = Lock::instance(&self.plan.instance, None)?;
        Ok((lock, StateFile::create(self.state()?)?))
    }

    fn must(&self, cluster: &str) -> ClusterPlan {
        self.plan.cluster(cluster).unwrap_or_else(|why| panic!("{why}"))
    }

    fn spec(&self, name: &str) -> Result<Spec, LabError> {
        let state = self.state()?;
        let mut all = vec![headscale::spec(&self.plan, &self.peers)];
        if state.relays {
            all.extend(self.plan.relays().iter().map(|relay| relay::spec(&self.plan, relay, &self.peers)));
        }
        all.extend(state.plan.all_hosts().iter().filter_map(|host| host::spec(&state.plan, host)));
        all.extend(self.plan.all_clusters().iter().flat_map(|c| cluster::specs(&state, c, &self.peers)));
        let names: Vec<String> = all.iter().map(|spec| spec.name.clone()).collect();
        all.into_iter()
            .find(|spec| spec.name == name)
            .ok_or_else(|| LabError::NotFound { what: format!("no process {name:?}; there are {}", names.join(", ")) })
    }
}

/// Puts a name on a list, or takes it off.
fn set(list: &mut Vec<String>, name: &str, on: bool) {
    list.retain(|n| n != name);
    if on {
        list.push(name.into());
    }
}
