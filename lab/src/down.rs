//! Takes a lab down and removes everything that it can have made, whether or not it was ever complete.
//!
//! It goes by names and cgroups, not by what `up` got to write down, and can itself be killed and run again: the
//! state file goes last.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::{Cgroups, containers},
    command::run,
    error::LabError,
    files, net,
    plan::Instance,
    process,
    state::{Lock, State, root},
    talk::Talk,
    up::require_root,
};

/// Removes the instance; fine if there is none.
///
/// # Errors
/// [`LabError::NotRoot`], or what could not be removed. It can be run again.
pub fn down(instance: &Instance, talk: &Talk) -> Result<(), LabError> {
    require_root()?;
    let cgroups = Cgroups::find()?;
    let _held = Lock::instance(instance, Some(talk))?;
    let state = State::load(instance)?;

    let nodes: Vec<PathBuf> =
        fs::read_dir(instance.data_dir()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    cgroups.kill_nodes(instance.cgroup(), &nodes)?;
    for running in state.iter().flat_map(|s| s.processes.values()).filter(|p| process::is_alive(p)) {
        process::signal(*running, Signal::SIGKILL);
    }
    let namespaces = namespaces(instance)?;
    for namespace in &namespaces {
        // Someone's shell in a node, by `exec`: it has another cgroup.
        for pid in run("ip", &["netns", "pids", namespace]).unwrap_or_default().split_whitespace() {
            if let Ok(pid) = pid.parse() {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
    talk.say("lab", "processes ended");

    unmount_below(&[instance.run_dir(), instance.data_dir()])?;
    if let Some(state) = &state {
        let clusters = state.plan.all_clusters().into_iter().map(|cluster| cluster.behind());
        for behind in clusters.chain(state.plan.all_hosts().into_iter().map(|host| host.behind)) {
            net::remove(&behind)?;
        }
        state.plan.relays().iter().try_for_each(net::remove_relay_host)?;
        net::remove_bridge(&state.plan)?;
    }
    for namespace in namespaces.iter().filter(|name| net::namespace_file(name).exists()) {
        run("ip", &["netns", "del", namespace])?;
    }
    if state.as_ref().is_some_and(|s| s.made_netns_dir) {
        remove_netns_dir();
    }
    for folder in nodes.iter().flat_map(|node| containers(node)).chain([instance.cgroup()]) {
        cgroups.remove(&folder)?;
        cgroups.remove_if_empty(Path::new(&folder).parent());
    }

    files::remove(&instance.data_dir())?;
    remove_if_empty(instance.data_dir().parent());
    let run_dir = instance.run_dir();
    let state_file = run_dir.join("state.json");
    for entry in fs::read_dir(&run_dir).map_err(LabError::io("cannot read the lab's folder"))?.flatten() {
        if entry.path() != state_file {
            files::remove(&entry.path())?;
        }
    }
    files::remove(&state_file)?;
    files::remove(&run_dir)?;
    remove_if_empty(Some(&root()));
    talk.say("lab", format!("down in {:.1} s", talk.elapsed().as_secs_f64()));
    Ok(())
}

/// Namespaces with the instance's prefix. Another instance's name may begin with ours and a dash: those are not ours.
fn namespaces(instance: &Instance) -> Result<Vec<String>, LabError> {
    let others: Vec<Instance> = fs::read_dir(root())
        .map_err(LabError::io("cannot read /run/guildnet-lab"))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<Instance>().ok())
        .filter(|other| *other != *instance && other.to_string().starts_with(&format!("{instance}-")))
        .collect();
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    Ok(names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&instance.prefix()))
        .filter(|name| !others.iter().any(|other| name.starts_with(&other.prefix())))
        .collect())
}

/// Unmounts everything below the folders, deepest first.
fn unmount_below(folders: &[PathBuf]) -> Result<(), LabError> {
    let text = files::read(Path::new("/proc/self/mountinfo"))?;
    for point in mounts_below(&text, folders) {
        umount2(&point, MntFlags::MNT_DETACH).map_err(LabError::os(format!("cannot unmount {}", point.display())))?;
    }
    Ok(())
}

/// Mount points below the folders, the latest mounted first.
fn mounts_below(mountinfo: &str, folders: &[PathBuf]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> =
        points.filter(|point| folders.iter().any(|folder| point.starts_with(folder))).collect();
    below.reverse();
    below
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

/// Removes the folder that iproute2 made for us, unless somebody has put something there.
fn remove_netns_dir() {
    let dir = Path::new("/run/netns");
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none()) {
        // It is a mount of its own, made by iproute2. Failing here leaves an empty folder.
        let _still_used = umount2(dir, MntFlags::empty());
        remove_if_empty(Some(dir));
    }
}

/// Another instance may be in there: then it stays.
fn remove_if_empty(dir: Option<&Path>) {
    let _not_empty = dir.map(fs::remove_dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_below_is_unmounted_and_the_deepest_first() {
        let text = "\
30 1 0:1 / /run/guildnet-lab/default/x rw - tmpfs t rw
31 1 0:1 / /run/guildnet-lab/default/x/y\\040z rw - tmpfs t rw
32 1 0:1 / /run/guildnet-lab/default-2 rw - tmpfs t rw
33 1 0:1 / /run rw - tmpfs t rw
";
        assert_eq!(
            mounts_below(text, &["/run/guildnet-lab/default".into()]),
            [PathBuf::from("/run/guildnet-lab/default/x/y z"), PathBuf::from("/run/guildnet-lab/default/x")]
        );
    }
}
