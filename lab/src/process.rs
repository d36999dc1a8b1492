//! The lab's daemons: started so that they outlive the command, told apart from later processes of the same id.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::Cgroups,
    command::{PATH, command, log_tail, until},
    error::LabError,
    files,
    plan::Plan,
    state::{Running, StateFile},
};

/// Time a daemon has to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A daemon as it is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// `headscale` or `CLUSTER/PROGRAM`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// Network namespace, or the machine's own.
    pub(crate) netns: Option<String>,
    /// Name of the process that holds the node's view of the file system, or the machine's own view.
    pub(crate) holder: Option<String>,
    /// Its cgroup, relative.
    pub(crate) cgroup: String,
}

/// Starts the daemon unless it runs; says whether it did.
pub(crate) fn ensure(state: &StateFile, cgroups: &Cgroups, spec: &Spec) -> Result<bool, LabError> {
    let known = state.get();
    if let Some(running) = known.processes.get(&spec.name).filter(|p| is_alive(p)) {
        // It may have been frozen.
        signal(*running, Signal::SIGCONT);
        return Ok(false);
    }
    let plan = &known.plan;
    let mut launch = command(launcher(plan));
    launch.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8").envs(spec.env.iter().cloned());
    cgroups.ensure(&spec.cgroup)?;
    launch.arg("launch").arg("--cgroup").arg(cgroups.procs(&spec.cgroup));
    if let Some(netns) = &spec.netns {
        launch.arg("--net").arg(format!("/run/netns/{netns}"));
    }
    if let Some(holder) = &spec.holder {
        let holder = known.processes.get(holder).filter(|p| is_alive(p)).ok_or_else(|| died(plan, holder))?;
        launch.arg("--node").arg(holder.pid.to_string());
    }
    launch.arg("--").arg(&spec.program).args(spec.args.iter().map(OsString::from));
    let log = plan.log(&spec.name);
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(LabError::io(format!("cannot open {}", log.display())))
    };
    let child = launch
        .stdout(Stdio::from(open()?))
        .stderr(Stdio::from(open()?))
        .spawn()
        .map_err(LabError::io(format!("cannot start {}", spec.name)))?;
    let pid = child.id().cast_signed();
    // The process may have failed at once: then it is not there any more, and whoever waits for it says why.
    let started = stat(pid).map_or(0, |stat| stat.started);
    state.update(|s| s.processes.insert(spec.name.clone(), Running { pid, started }))?;
    Ok(true)
}

/// The lab's own program, as it was when the lab was made: a later build does not pull it away.
pub(crate) fn launcher(plan: &Plan) -> PathBuf {
    plan.instance.data_dir().join("guildnet-lab")
}

/// Puts this program where [`launcher`] looks.
pub(crate) fn install_launcher(plan: &Plan) -> Result<(), LabError> {
    let me = fs::read("/proc/self/exe").map_err(LabError::io("cannot read this program"))?;
    if fs::read(launcher(plan)).is_ok_and(|there| there == me) {
        return Ok(());
    }
    files::write(&launcher(plan), me, 0o755)
}

/// Ends a daemon and everything in its process group; waits until it is gone.
pub(crate) fn stop(state: &StateFile, name: &str) -> Result<(), LabError> {
    let known = state.get();
    let Some(running) = known.processes.get(name).copied().filter(is_alive) else { return Ok(()) };
    signal(running, Signal::SIGCONT);
    signal(running, Signal::SIGTERM);
    let gone = |limit| until(&format!("the end of {name}"), limit, |_| Ok(!is_alive(&running)));
    if gone(GRACE).is_err() {
        signal(running, Signal::SIGKILL);
        gone(GRACE)?;
    }
    Ok(())
}

/// Kills a daemon and everything in its process group: it takes leave of nobody. Waits until it is gone.
pub(crate) fn kill_now(state: &StateFile, name: &str) -> Result<(), LabError> {
    let known = state.get();
    let Some(running) = known.processes.get(name).copied().filter(is_alive) else { return Ok(()) };
    signal(running, Signal::SIGKILL);
    until(&format!("the end of {name}"), GRACE, |_| Ok(!is_alive(&running)))
}

/// Signals a daemon's process group.
pub(crate) fn signal(running: Running, signal: Signal) {
    // It may be gone by now: then there is nothing left to do.
    let _gone = kill(Pid::from_raw(-running.pid), signal);
}

/// Whether this very process still runs.
pub(crate) fn is_alive(running: &Running) -> bool {
    stat(running.pid).is_some_and(|stat| stat.started == running.started && !stat.dead)
}

/// Fails if the daemon does not run any more, with the end of its log.
pub(crate) fn check(state: &StateFile, name: &str) -> Result<(), LabError> {
    let known = state.get();
    match known.processes.get(name) {
        Some(running) if is_alive(running) => Ok(()),
        _ => Err(died(&known.plan, name)),
    }
}

fn died(plan: &Plan, name: &str) -> LabError {
    LabError::Died { name: name.into(), tail: log_tail(&plan.log(name)) }
}

struct Stat {
    started: u64,
    dead: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The program's name stands in parentheses and may hold anything, parentheses included.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    // Field 22 of proc(5); the state was field 3.
    Some(Stat { started: fields.nth(18)?.parse().ok()?, dead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        let stat = parse_stat("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9").expect("fields");
        assert_eq!((stat.started, stat.dead), (4242, false));
    }

    #[test]
    fn a_process_of_the_same_id_is_not_the_same_process() {
        let pid = std::process::id().cast_signed();
        let started = stat(pid).expect("this process runs").started;
        assert!(is_alive(&Running { pid, started }));
        assert!(!is_alive(&Running { pid, started: started + 1 }));
    }
}
