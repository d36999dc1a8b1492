//! A client host of the lab: clients run inside its namespace, behind a link and a gateway that are set from here.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use super::guard::{Ends, Guard};
use crate::figures::Failure;

/// A link as it is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// As its rows are called.
    pub(super) name: String,
    /// As the lab's command is told.
    pub(super) settings: String,
}

/// Delays one way in milliseconds, and what else happens to packets.
const DELAYS: [u32; 2] = [10, 50];
const TROUBLES: [(&str, &str); 4] =
    [("", ""), (", loss 0.1%", " loss=0.1%"), (", loss 1%", " loss=1%"), (", reorder 5%", " reorder=5%")];

/// All links, or the two that tell most.
pub(super) fn links(quick: bool) -> Vec<Link> {
    let all = DELAYS.iter().flat_map(|delay| {
        TROUBLES.iter().map(move |(name, settings)| Link {
            name: format!("link {} ms{name}", 2 * delay),
            settings: format!("delay={delay}ms{settings}"),
        })
    });
    let telling = ["link 20 ms, loss 0.1%", "link 100 ms, loss 1%"];
    all.filter(|link| !quick || telling.contains(&link.name.as_str())).collect()
}

/// The client host. Dropped, its link is a cable again and UDP passes; the same if this process is told to end.
pub(super) struct Host {
    lab: Lab,
    pub(super) namespace: String,
    _guard: Guard,
}

#[derive(Clone, Debug)]
struct Lab {
    program: PathBuf,
    host: String,
}

#[derive(Deserialize)]
struct Status {
    hosts: Vec<HostStatus>,
}

#[derive(Deserialize)]
struct HostStatus {
    name: String,
    namespace: String,
    link: Option<LinkStatus>,
}

#[derive(Deserialize)]
struct LinkStatus {
    alive: bool,
}

/// What a link passes on by plain TCP, MB/s.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ceiling {
    pub(super) tcp_down: f64,
    pub(super) tcp_up: f64,
}

impl Host {
    /// Finds it in the lab that is up.
    pub(super) fn find(program: &Path, host: &str, ends: &Ends) -> Result<Self, Failure> {
        let lab = Lab { program: program.to_owned(), host: host.to_owned() };
        // It fails if anything of the lab does not run, but answers all the same.
        let status: Status = serde_json::from_slice(&lab.command(&["status", "-o", "json"]).output()?.stdout)
            .map_err(|why| format!("{} status: {why}", program.display()))?;
        let found = status.hosts.into_iter().find(|h| h.name == host && h.link.as_ref().is_some_and(|link| link.alive));
        let namespace = found.ok_or_else(|| format!("the lab has no host {host} behind a link that runs"))?.namespace;
        // From an earlier run that was killed, say.
        lab.restore()?;
        let guarded = lab.clone();
        let guard = ends.after(async move { guarded.restore() });
        Ok(Self { lab, namespace, _guard: guard })
    }

    /// A link with these settings and no others.
    pub(super) fn set(&self, settings: &str) -> Result<(), Failure> {
        self.lab.run(&["link", &self.lab.host, "clear"])?;
        let mut change = vec!["link", &self.lab.host];
        change.extend(settings.split_whitespace());
        self.lab.run(&change)
    }

    /// Its gateway drops all UDP.
    pub(super) fn block_udp(&self) -> Result<(), Failure> {
        self.lab.run(&["fault", "block-udp", &self.lab.host])
    }

    /// As it was.
    pub(super) fn restore(&self) -> Result<(), Failure> {
        self.lab.restore()
    }

    /// What such links pass on at most, in this order; between namespaces of their own.
    pub(super) fn ceilings(&self, links: &[Link]) -> Result<Vec<Ceiling>, Failure> {
        let mut args = vec!["link-ceiling", "-o", "json"];
        args.extend(links.iter().map(|link| link.settings.as_str()));
        let ran = self.lab.command(&args).output()?;
        if !ran.status.success() {
            return Err(format!("link-ceiling: {}", String::from_utf8_lossy(&ran.stderr).trim()).into());
        }
        let all: Vec<Ceiling> = serde_json::from_slice(&ran.stdout)?;
        // First come a cable and a link that does nothing.
        let mut last = all.into_iter().rev().take(links.len()).collect::<Vec<_>>();
        last.reverse();
        Ok(last)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The next run does it, too.
        let _failed = self.lab.restore();
    }
}

impl Lab {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<(), Failure> {
        let ran = self.command(args).output().map_err(|why| format!("{}: {why}", self.program.display()))?;
        if ran.status.success() {
            return Ok(());
        }
        Err(format!("guildnet-lab {}: {}", args.join(" "), String::from_utf8_lossy(&ran.stderr).trim()).into())
    }

    fn restore(&self) -> Result<(), Failure> {
        let cleared = self.run(&["link", &self.host, "clear"]);
        self.run(&["fault", "unblock-udp", &self.host]).and(cleared)
    }
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn a_round_trip_is_the_delay_both_ways() {
        let all = links(false);
        assert_eq!(all.len(), 8);
        assert_eq!((all[0].name.as_str(), all[0].settings.as_str()), ("link 20 ms", "delay=10ms"));
        assert_eq!((all[6].name.as_str(), all[6].settings.as_str()), ("link 100 ms, loss 1%", "delay=50ms loss=1%"));
        let quick = links(true);
        assert!(quick.len() == 2 && quick.iter().all(|link| all.contains(link)));
    }
}
