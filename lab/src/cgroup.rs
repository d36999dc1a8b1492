//! Control groups: the lab's folders in every hierarchy, and the one way to find every process that it started.
//!
//! Whatever a daemon or a shim starts stays in its cgroup, whatever session, parent or namespace it moves to. Containers
//! have groups of their own beside the lab's: without groups per class of service the kubelet (1.34) names no parent, and
//! containerd puts them at `/k8s.io/ID`. The runtime's own state tells which are this lab's, see [`containers`].

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{command::until, error::LabError};

/// Time for killed processes to be gone: they may be in the middle of a write to disk.
const GONE: Duration = Duration::from_secs(10);

/// The machine's hierarchies.
#[derive(Debug)]
pub(crate) struct Cgroups {
    roots: Vec<PathBuf>,
    /// The hierarchy in which daemons are put; what they start is in there too.
    tracking: PathBuf,
    /// Version 2 alone: controllers must be handed down.
    unified: bool,
}

impl Cgroups {
    pub(crate) fn find() -> Result<Self, LabError> {
        let text = crate::files::read(Path::new("/proc/self/mountinfo"))?;
        Self::from_mountinfo(&text).ok_or_else(|| LabError::Missing {
            what: "no cgroup hierarchy is mounted at /sys/fs/cgroup".into(),
            hint: "mount -t cgroup2 none /sys/fs/cgroup".into(),
        })
    }

    fn from_mountinfo(text: &str) -> Option<Self> {
        let mut roots: Vec<(PathBuf, bool)> = Vec::new();
        for line in text.lines() {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?;
            let kind = right.split(' ').next()?;
            if point.starts_with("/sys/fs/cgroup") && kind.starts_with("cgroup") {
                roots.push((point.into(), kind == "cgroup2"));
            }
        }
        let unified = roots.iter().all(|(_, v2)| *v2);
        // Version 1: any hierarchy without controllers' side effects on who may run where.
        let tracking = ["pids", "freezer", "systemd"]
            .iter()
            .find_map(|name| roots.iter().find(|(path, _)| path.ends_with(name)))
            .or_else(|| roots.first())?
            .0
            .clone();
        Some(Self { roots: roots.into_iter().map(|(path, _)| path).collect(), tracking, unified })
    }

    /// Makes a folder in every hierarchy.
    pub(crate) fn ensure(&self, folder: &str) -> Result<(), LabError> {
        for root in &self.roots {
            let mut path = root.clone();
            for part in Path::new(folder) {
                if self.unified {
                    hand_down(&path);
                }
                path.push(part);
                match fs::create_dir(&path) {
                    Err(why) if why.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(LabError::Io {
                            what: format!("cannot make the cgroup {}", path.display()),
                            source: why,
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The file that takes a process id and makes it a member of `folder`.
    pub(crate) fn procs(&self, folder: &str) -> PathBuf {
        self.tracking.join(folder).join("cgroup.procs")
    }

    /// Kills every process in the folders and below, in every hierarchy, until none is left.
    pub(crate) fn kill(&self, folders: &[String]) -> Result<(), LabError> {
        until(&format!("the end of all processes in the cgroups {folders:?}"), GONE, |seen| {
            let members: BTreeSet<i32> = folders.iter().flat_map(|folder| self.members(folder)).collect();
            for pid in &members {
                // It may be gone already.
                let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            *seen = format!("{members:?}");
            Ok(members.is_empty())
        })
    }

    /// Process ids in `folder` and below; never this process.
    fn members(&self, folder: &str) -> BTreeSet<i32> {
        let me = std::process::id().cast_signed();
        let mut members = BTreeSet::new();
        for root in &self.roots {
            for path in below(&root.join(folder)) {
                let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
                members.extend(
                    text.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 1 && *pid != me),
                );
            }
        }
        members
    }

    /// Ends a node: its daemons, then the containers that nobody can start any more.
    pub(crate) fn kill_nodes(&self, daemons: String, data_dirs: &[PathBuf]) -> Result<(), LabError> {
        self.kill(&[daemons])?;
        self.kill(&data_dirs.iter().flat_map(|dir| containers(dir)).collect::<Vec<_>>())
    }

    /// Removes `folder` and everything below, in every hierarchy. Its processes must be gone.
    pub(crate) fn remove(&self, folder: &str) -> Result<(), LabError> {
        for root in &self.roots {
            let top = root.join(folder);
            // The kernel lets go of a group a moment after its last process.
            until(&format!("removal of the cgroup {}", top.display()), GONE, |seen| {
                for path in below(&top) {
                    if let Err(why) = fs::remove_dir(&path) {
                        *seen = format!("{}: {why}", path.display());
                    }
                }
                Ok(!top.exists())
            })?;
        }
        Ok(())
    }

    /// Removes a group that nothing is left in; the machine's own containers may be there.
    pub(crate) fn remove_if_empty(&self, folder: Option<&Path>) {
        for root in &self.roots {
            let _not_empty = folder.filter(|f| !f.as_os_str().is_empty()).map(|f| fs::remove_dir(root.join(f)));
        }
    }
}

/// The cgroups of a node's containers, relative: `NAMESPACE/ID`, with the ids that its containerd has noted down.
/// The notes are made before a container is, and outlive a containerd that was killed.
pub(crate) fn containers(data_dir: &Path) -> Vec<String> {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let tasks = data_dir.join("run/containerd/io.containerd.runtime.v2.task");
    let found = list(&tasks).into_iter().flat_map(|namespace| list(&namespace));
    found.filter_map(|path| path.strip_prefix(&tasks).ok().map(|path| path.display().to_string())).collect()
}

/// Lets the children of a version 2 group have every controller that it has itself.
fn hand_down(path: &Path) {
    let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // A controller that can't be handed down is one that the pods do without.
        let _refused = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A folder and all below it, deepest first.
fn below(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if top.is_dir() {
        for entry in fs::read_dir(top).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(below(&entry.path()));
            }
        }
        found.push(top.to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
24 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:21 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
26 24 0:22 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
27 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn daemons_are_tracked_in_a_hierarchy_that_limits_nothing() {
        let cgroups = Cgroups::from_mountinfo(V1).expect("hierarchies");
        assert_eq!(cgroups.procs("x"), Path::new("/sys/fs/cgroup/pids/x/cgroup.procs"));
        assert_eq!((cgroups.roots.len(), cgroups.unified), (3, false));
    }

    #[test]
    fn containers_are_those_that_the_runtime_noted() {
        let node = tempfile::tempdir().expect("a folder");
        assert_eq!(containers(node.path()), Vec::<String>::new());
        let task = node.path().join("run/containerd/io.containerd.runtime.v2.task/k8s.io/0123abcd");
        fs::create_dir_all(task.join("rootfs")).expect("made");
        assert_eq!(containers(node.path()), ["k8s.io/0123abcd"]);
    }

    #[test]
    fn version_two_alone_is_known() {
        let cgroups = Cgroups::from_mountinfo("24 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").expect("one");
        assert!(cgroups.unified);
        assert_eq!(cgroups.procs("x"), Path::new("/sys/fs/cgroup/x/cgroup.procs"));
    }
}
