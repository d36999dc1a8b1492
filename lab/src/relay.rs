//! Standalone relays beside Headscale's embedded one, with STUN on each, so that a relay can fail alone, and so that a client
//! behind a symmetric NAT can tell. They run only in labs that ask for them.

use std::{fmt::Write, time::Duration};

use crate::{
    cluster::Work,
    command::{finish, in_netns, until},
    error::LabError,
    files, headscale, net,
    peers::Peers,
    plan::{HEADSCALE_PORT, Plan, RelayPlan, STUN_PORT},
    process::{self, Spec},
};

/// Time one has to listen; measured: under a second.
const READY: Duration = Duration::from_secs(20);

/// Its process: `derp-1`.
pub(crate) fn spec(plan: &Plan, relay: &RelayPlan, peers: &Peers) -> Spec {
    let args = [
        format!("-hostname={}", relay.address),
        "-certmode=manual".into(),
        format!("-certdir={}", relay.dir.display()),
        format!("-c={}", relay.dir.join("derper.json").display()),
        format!("-a={}:{HEADSCALE_PORT}", relay.address),
        "-http-port=-1".into(),
        format!("-stun-port={STUN_PORT}"),
        "-home=blank".into(),
    ];
    Spec {
        name: relay.process.clone(),
        program: peers.program("tailscale", "derper"),
        args: args.into(),
        env: vec![],
        netns: Some(relay.netns.clone()),
        holder: None,
        cgroup: format!("{}/{}", plan.instance.cgroup(), relay.process),
    }
}

/// Makes a relay, or heals it; its certificate is Headscale's authority's.
pub(crate) fn up(work: Work<'_>, relay: &RelayPlan) -> Result<(), LabError> {
    let known = work.state.get();
    if !net::has_relay_host(&known.plan, relay) {
        net::make_relay_host(&known.plan, relay)?;
        cut(relay, known.cut.contains(&relay.process))?;
    }
    files::folder(&relay.dir, 0o700)?;
    for (from, to) in [(headscale::relay_certificate(&known.plan), "crt"), (headscale::relay_key(&known.plan), "key")] {
        files::write(&relay.dir.join(format!("{}.{to}", relay.address)), files::read(&from)?, 0o600)?;
    }
    let started = process::ensure(work.state, work.cgroups, &spec(&known.plan, relay, work.peers))?;
    until(&format!("the answer of {}", relay.process), READY, |_| {
        process::check(work.state, &relay.process)?;
        // From its own host: a relay that is cut off is a relay that is up.
        let mut listens = in_netns(&relay.netns, "busybox");
        listens.args(["nc", "-w", "1", &relay.address.to_string(), &HEADSCALE_PORT.to_string()]);
        Ok(finish(listens, None).is_ok())
    })?;
    if started {
        work.talk.say(&relay.process, format!("relay and STUN at {}", relay.address));
    }
    Ok(())
}

/// Makes a relay's host drop everything, or let it through again.
pub(crate) fn cut(relay: &RelayPlan, cut: bool) -> Result<(), LabError> {
    let mut rules = in_netns(&relay.netns, "iptables-restore");
    rules.arg("-w");
    finish(rules, Some(&cut_rules(cut))).map(drop)
}

/// Its own device stays: `up` looks whether it listens.
fn cut_rules(cut: bool) -> String {
    let rules = if cut { "-A INPUT ! -i lo -j DROP\n-A OUTPUT ! -o lo -j DROP\n" } else { "" };
    format!("*filter\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n{rules}COMMIT\n")
}

/// The relays' map, as Headscale reads it.
pub(crate) fn map(plan: &Plan) -> String {
    let mut out = "regions:\n".to_owned();
    for RelayPlan { region, process, address, .. } in plan.relays() {
        // Writing to a String does not fail.
        let _never = write!(
            out,
            "  {region}:
    regionid: {region}
    regioncode: {process}
    regionname: GuildNet lab {process}
    nodes:
      - name: {process}
        regionid: {region}
        hostname: {address}
        ipv4: {address}
        derpport: {HEADSCALE_PORT}
        stunport: {STUN_PORT}
        stunonly: false
"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_relay_is_silent_to_all_but_itself() {
        assert!(cut_rules(true).contains("-A INPUT ! -i lo -j DROP\n-A OUTPUT ! -o lo -j DROP\n"));
        assert!(!cut_rules(false).contains("DROP"));
    }
}
