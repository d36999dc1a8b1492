//! Hosts that are no cluster's: clients, each behind a gateway of its own. Between the gateway and the internet may stand a
//! link (`link.rs`) instead of a cable.

use std::time::Duration;

use crate::{
    cluster::Work,
    command::until,
    error::LabError,
    files,
    link::{self, LinkAnswer, LinkChange},
    net::{self, Joint},
    plan::{HostPlan, Plan},
    process::{self, Spec, is_alive, launcher},
    state::State,
};

/// Time a link has to answer; measured: some milliseconds.
const READY: Duration = Duration::from_secs(10);

/// What the host's gateway drops, as the state has it.
pub(crate) fn faults(state: &State, host: &HostPlan) -> net::Faults {
    net::Faults { udp_blocked: state.udp_blocked.contains(&host.name), ..net::Faults::default() }
}

/// The link's process, if the host has one.
pub(crate) fn spec(plan: &Plan, host: &HostPlan) -> Option<Spec> {
    let seed = host.link?;
    let args = [
        "run-link".into(),
        format!("--host-net={}", net::namespace_file(&host.behind.gateway_ns).display()),
        format!("--host={}", net::WAN),
        format!("--device={}", host.behind.leg),
        format!("--seed={seed}"),
        format!("--control={}", host.control.display()),
    ];
    Some(Spec {
        name: host.process(),
        program: launcher(plan),
        args: args.into(),
        env: vec![],
        netns: None,
        holder: None,
        cgroup: format!("{}/{}", plan.instance.cgroup(), host.name),
    })
}

/// Makes the host, or heals it.
pub(crate) fn up(work: Work<'_>, host: &HostPlan) -> Result<(), LabError> {
    let known = work.state.get();
    if !net::is_complete(&known.plan, &host.behind) {
        // What is joined to a device that goes would end by itself, a moment too late.
        process::stop(work.state, &host.process())?;
        let joint = if host.link.is_some() { Joint::Link } else { Joint::Cable };
        net::make(&known.plan, &host.behind, joint, || Ok(()))?;
        net::set_nat(&host.behind, known.nat(&host.name))?;
        net::set_faults(&host.behind.gateway_ns, &faults(&known, host))?;
        work.talk.say(&host.name, format!("gateway {} and a host behind it", host.behind.outer));
    }
    let Some(spec) = spec(&known.plan, host) else { return Ok(()) };
    files::folder(host.control.parent().expect("a socket lies in a folder"), 0o700)?;
    if !known.processes.get(&spec.name).is_some_and(is_alive) {
        files::remove(&host.control)?;
    }
    process::ensure(work.state, work.cgroups, &spec)?;
    until(&format!("the answer of {}", spec.name), READY, |_| {
        process::check(work.state, &spec.name)?;
        Ok(host.control.exists())
    })
}

/// Changes the settings of a host's link; an empty change only asks.
pub(crate) fn change(state: &State, host: &HostPlan, change: &LinkChange) -> Result<LinkAnswer, LabError> {
    if host.link.is_none() {
        return Err(LabError::Usage { what: format!("host {} has a cable, no link", host.name) });
    }
    if !state.processes.get(&host.process()).is_some_and(is_alive) {
        let log = state.plan.log(&host.process());
        return Err(LabError::Died { name: host.process(), tail: crate::command::log_tail(&log) });
    }
    link::request(&host.control, change)
}
