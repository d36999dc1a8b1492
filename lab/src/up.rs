//! Brings a lab up, or heals the one that is there. Safe at any time: what runs keeps running.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    cgroup::Cgroups,
    cluster::{self, Work},
    command::PATH,
    error::LabError,
    files, headscale, host, images, net,
    peers::{self, Peers, Versions, WantedVersions},
    plan::{Instance, Person, Plan, free_bridge},
    process, relay,
    state::{Lock, State, StateFile, root},
    talk::Talk,
};

/// Says what is missing and installs it; the same file as `scripts/lab-packages.sh`.
const PACKAGES: &str = include_str!("../../scripts/lab-packages.sh");

/// Folders that a node sees as its own: the programs that it runs can't lie there.
const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// How many clusters start at the same time, or as many as there are cores: an API server that starts keeps a core busy,
/// and ten at once on two cores miss each other's deadlines.
const AT_ONCE: usize = 2;

/// Fails unless root runs this.
///
/// # Errors
/// [`LabError::NotRoot`].
pub(crate) fn require_root() -> Result<(), LabError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

/// Builds the peers and makes the images, if the cache lacks them.
///
/// # Errors
/// If a build fails, with the end of its log.
pub fn build(wanted: &WantedVersions, talk: &Talk) -> Result<(), LabError> {
    let versions = Versions::default().with(wanted)?;
    peers::build(&versions, talk).and_then(|peers| images::make(&peers, &versions)).map(drop)
}

/// What a lab shall be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Its clusters; `None`: those it has, else a and b.
    pub clusters: Option<Vec<String>>,
    /// Whether those that are new are light: etcd and API server, nothing that runs pods.
    pub light: bool,
    /// Whether standalone relays run beside Headscale's own; those that do stay.
    pub relays: bool,
    /// Which versions it runs.
    pub versions: WantedVersions,
}

/// Brings the instance up as it is wanted; its state afterwards.
///
/// # Errors
/// [`LabError::NotRoot`], [`LabError::Missing`] for what the machine lacks, [`LabError::Conflict`] if the lab that is
/// up has clusters that are not wanted or other versions, and whatever fails on the way. It can be run again; `down`
/// removes the rest.
pub fn up(instance: &Instance, wanted: Wanted, talk: &Talk) -> Result<State, LabError> {
    require_root()?;
    if !Path::new("/dev/net/tun").exists() {
        return Err(LabError::Missing {
            what: "/dev/net/tun is missing: routers need it".into(),
            hint: "modprobe tun".into(),
        });
    }
    let cache = peers::cache_dir();
    if HIDDEN.iter().any(|hidden| cache.starts_with(hidden)) || !cache.is_absolute() {
        return Err(LabError::Usage {
            what: format!("GUILDNET_LAB_CACHE={}: an absolute path outside {}", cache.display(), HIDDEN.join(", ")),
        });
    }
    let cgroups = Cgroups::find()?;
    let versions = State::load(instance)?.map(|s| s.versions).unwrap_or_default().with(&wanted.versions)?;
    install_packages(talk)?;
    let peers = peers::build(&versions, talk)?;

    let _held = Lock::instance(instance, Some(talk))?;
    let state = decide(instance, wanted, versions, &peers)?;
    let known = state.get();
    let plan = &known.plan;
    let clusters = plan.all_clusters();
    let images = clusters.iter().any(|c| !c.light).then(|| images::make(&peers, &known.versions)).transpose()?;
    files::folder(&plan.instance.data_dir(), 0o711)?;
    files::folder(&plan.instance.data_dir().join("log"), 0o755)?;
    files::folder(&plan.person_dir(), 0o700)?;
    std::os::unix::fs::chown(plan.person_dir(), Some(plan.person.uid), Some(plan.person.gid))
        .map_err(LabError::io("cannot give the user their folder"))?;
    process::install_launcher(plan)?;
    net::ensure_bridge(plan)?;
    cgroups.ensure(&plan.instance.cgroup())?;

    let work = Work { state: &state, cgroups: &cgroups, peers: &peers, talk };
    // One after another: iproute2 does not like to make its first namespaces at the same moment.
    for cluster in &clusters {
        cluster::ground(work, cluster)?;
    }
    for host in &plan.all_hosts() {
        host::up(work, host)?;
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let server = || {
            headscale::up(&state, &cgroups, &peers, talk)?;
            // Their certificate is its authority's.
            if known.relays { plan.relays().iter().try_for_each(|relay| relay::up(work, relay)) } else { Ok(()) }
        };
        let mut all = vec![scope.spawn(server)];
        for _ in 0..AT_ONCE.max(cores()) {
            all.push(scope.spawn(|| {
                while let Some(cluster) = clusters.get(next.fetch_add(1, Ordering::Relaxed)) {
                    cluster::up(work, cluster, images.as_ref())?;
                }
                Ok(())
            }));
        }
        // Every one is waited for; the first failure is told.
        let results: Vec<_> = all.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        results.into_iter().try_for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    talk.say("lab", format!("up in {:.0} s: {}", talk.elapsed().as_secs_f64(), plan.clusters.join(", ")));
    Ok(state.get())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Takes the plan that is there, extended by new clusters, or makes one; on disk before anything else.
fn decide(instance: &Instance, wanted: Wanted, versions: Versions, peers: &Peers) -> Result<StateFile, LabError> {
    let Wanted { clusters, light, relays, .. } = wanted;
    // Two instances must not choose the same bridge.
    let _choosing = Lock::folder(&root(), None)?;
    let mut state = if let Some(mut known) = State::load(instance)? {
        if known.versions != versions {
            return Err(LabError::Conflict {
                what: format!("the lab that is up runs {}, not {versions}", known.versions),
            });
        }
        let wanted = clusters.unwrap_or_else(|| known.plan.clusters.clone());
        if let Some(unwanted) = known.plan.clusters.iter().find(|c| !wanted.contains(c)) {
            return Err(LabError::Conflict {
                what: format!("the lab that is up has cluster {unwanted:?}, which --clusters does not name"),
            });
        }
        // The place in the list is the address: what is there keeps its place.
        let new: Vec<String> = wanted.into_iter().filter(|c| !known.plan.clusters.contains(c)).collect();
        if light {
            known.plan.light.extend(new.iter().cloned());
        }
        known.plan.clusters.extend(new);
        known
    } else {
        let (links, mut used) = net::in_use()?;
        used.extend(other_instances()?);
        let (bridge, network) = free_bridge(&links, &used).ok_or_else(|| LabError::Missing {
            what: "no free /24 for the lab's bridge: every candidate collides with an address or route".into(),
            hint: "ip route show table all".into(),
        })?;
        let clusters = clusters.unwrap_or_else(|| vec!["a".into(), "b".into()]);
        let light = if light { clusters.clone() } else { vec![] };
        let person = Person::from_env();
        let plan = Plan { instance: instance.clone(), bridge, network, person, clusters, light, hosts: vec![] };
        State { made_netns_dir: !Path::new("/run/netns").exists(), ..State::new(plan) }
    };
    state.relays |= relays;
    state.versions = versions;
    state.peers.clone_from(&peers.0);
    StateFile::create(state)
}

/// Networks that other instances have chosen, though their bridges may not exist yet.
fn other_instances() -> Result<Vec<crate::plan::Used>, LabError> {
    let mut used = Vec::new();
    for entry in std::fs::read_dir(root()).map_err(LabError::io("cannot read /run/guildnet-lab"))?.flatten() {
        let Ok(instance) = entry.file_name().to_string_lossy().parse::<Instance>() else { continue };
        if let Ok(Some(state)) = State::load(&instance) {
            used.push((state.plan.host_address(), 24));
        }
    }
    Ok(used)
}

fn install_packages(talk: &Talk) -> Result<(), LabError> {
    let script = |check: bool| {
        let mut bash = Command::new("bash");
        bash.env("PATH", PATH).args(["-c", PACKAGES, "lab-packages.sh"]).stdin(Stdio::null());
        if check {
            bash.arg("--check").stderr(Stdio::null());
        }
        bash.status().map_err(LabError::io("cannot run bash"))
    };
    if script(true)?.success() {
        return Ok(());
    }
    talk.say("packages", "Debian packages are missing; installing them");
    if script(false)?.success() {
        return Ok(());
    }
    Err(LabError::Missing { what: "Debian packages are missing".into(), hint: "scripts/lab-packages.sh".into() })
}
