//! The last steps of a process before it becomes a daemon of the lab: it joins its cgroup, session and namespaces,
//! then executes the program. And the holder of a node's private view of the file system.
//!
//! Runs in a process of its own (`guildnet-lab launch`, `guildnet-lab hold-node`; both hidden), which has one thread:
//! the kernel lets only those change their mount namespace.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::{error::LabError, files};

/// Where and how a daemon runs.
#[derive(Debug, Args)]
pub struct Launch {
    /// The cgroup's `cgroup.procs` file
    #[arg(long)]
    cgroup: PathBuf,
    /// A network namespace to join
    #[arg(long)]
    net: Option<PathBuf>,
    /// A process whose mount and host name namespaces to join
    #[arg(long)]
    node: Option<i32>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Becomes the daemon.
///
/// # Errors
/// Only if something on the way fails: on success the program has taken this process's place.
pub fn launch(args: Launch) -> Result<Infallible, LabError> {
    let Launch { cgroup, net, node, program } = args;
    // First of all, so that `down` finds this process whatever happens next.
    fs::write(&cgroup, "0").map_err(LabError::io(format!("cannot join {}", cgroup.display())))?;
    nix::unistd::setsid().map_err(LabError::os("cannot begin a session"))?;
    let open = |path: PathBuf| File::open(&path).map_err(LabError::io(format!("cannot open {}", path.display())));
    let net = net.map(open).transpose()?;
    // All of them before entering any: another mount namespace shows other files.
    let node = node
        .map(|pid| Ok([open(format!("/proc/{pid}/ns/uts").into())?, open(format!("/proc/{pid}/ns/mnt").into())?]))
        .transpose()?;
    for namespace in net.iter().chain(node.iter().flatten()) {
        setns(namespace, CloneFlags::empty()).map_err(LabError::os("cannot join a namespace"))?;
    }
    std::env::set_current_dir("/").map_err(LabError::io("cannot go to /"))?;
    let (name, rest) = program.split_first().expect("clap requires a program");
    let why = Command::new(name).args(rest).exec();
    Err(LabError::Io { what: format!("cannot execute {}", name.display()), source: why })
}

/// What a node sees as its own.
#[derive(Debug, Args)]
pub struct HoldNode {
    /// The folder whose `lib`, `log` and `run` become the node's `/var/lib`, `/var/log` and `/run`
    #[arg(long)]
    root: PathBuf,
    /// The node's host name
    #[arg(long)]
    hostname: String,
    /// Made when the view is complete
    #[arg(long)]
    ready: PathBuf,
}

/// Kernel settings that kubelet wants, with the values it wants: it finds them set, so it does not set the machine's.
/// Source: `pkg/util/sysctl` of Kubernetes 1.34.
const KUBELET_SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Makes a mount namespace in which a node's folders are its own, and holds it until killed.
///
/// Two nodes of one machine must not meet in `/var/lib`: a router's identity lies there. And every mount that a
/// container runtime makes ends with the namespace, so none is left behind.
///
/// # Errors
/// If a mount fails; on success it does not return.
pub fn hold_node(args: &HoldNode) -> Result<Infallible, LabError> {
    let HoldNode { root, hostname, ready } = args;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).map_err(LabError::os("cannot leave the namespaces"))?;
    let all = |flags| {
        mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REC, None::<&str>)
            .map_err(LabError::os("cannot set the propagation of mounts"))
    };
    all(MsFlags::MS_PRIVATE)?;
    fs::write("/proc/sys/kernel/hostname", hostname).map_err(LabError::io("cannot set the host name"))?;

    for (setting, value) in KUBELET_SYSCTLS {
        let real = Path::new("/proc/sys").join(setting);
        // A kernel without keys has no such file, and kubelet looks for none.
        if real.exists() {
            let stand_in = root.join("sysctl").join(setting.replace('/', "."));
            files::folder(&root.join("sysctl"), 0o755)?;
            files::write(&stand_in, format!("{value}\n"), 0o644)?;
            bind(&stand_in, &real)?;
        }
    }
    // The lab's own settings stay in sight below the new /run.
    let lab = root.join("run/guildnet-lab");
    files::folder(&lab, 0o711)?;
    bind(&crate::state::root(), &lab)?;
    bind(&root.join("run"), Path::new("/run"))?;
    bind(&root.join("log"), Path::new("/var/log"))?;
    // Made before /var/lib is covered: `ready` lies below it.
    let ready =
        File::options().write(true).create_new(true).open(ready).map_err(LabError::io("cannot make the ready file"))?;
    bind(&root.join("lib"), Path::new("/var/lib"))?;
    // Pods may ask for mounts that propagate: only within this namespace.
    all(MsFlags::MS_SHARED)?;
    ready.set_len(1).map_err(LabError::io("cannot write the ready file"))?;
    loop {
        nix::unistd::pause();
    }
}

fn bind(from: &Path, to: &Path) -> Result<(), LabError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(LabError::os(format!("cannot bind {} to {}", from.display(), to.display())))
}
