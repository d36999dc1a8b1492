//! A lab of light clusters with namespaces and as many routers as a test wants, and what is seen from its hosts.

use std::{fs, path::Path, process::Command, time::Duration};

use nix::sched::{CloneFlags, setns};

use crate::{
    fleet::{ROUTES, Ran, finish, lab_binary},
    light::{Device, LightLab},
};

/// The longest that one act of the lab may take.
const STEP: Duration = Duration::from_secs(120);

/// A lab with its clusters' namespaces on its Headscale.
pub(crate) struct Site {
    pub(crate) device: Device,
    // Last: the lab goes down after everything on it.
    _lab: LightLab,
}

impl Site {
    #[track_caller]
    pub(crate) fn up(clusters: usize) -> Self {
        let lab = LightLab::up(clusters, "0.29.2", "1.98.10");
        let device = Device::new();
        device.clusters().iter().for_each(|cluster| device.namespace(cluster));
        Self { device, _lab: lab }
    }

    /// Has a router of a cluster join, with the tag and the networks that all of them have.
    #[track_caller]
    pub(crate) fn router(&self, cluster: &str, number: u8) {
        let key = self.device.key_file(cluster, "routerAuthKey");
        let (number, name) = (number.to_string(), format!("gn-{cluster}-router-{number}"));
        let mut router = self.lab(&["router", cluster, "--number", &number, "--routes", ROUTES]);
        router.args(["--hostname", &name]).arg("--auth-key-file").arg(&key);
        finish(router, b"", STEP).ok();
        fs::remove_file(&key).expect("it was written");
    }

    /// The lab's command.
    pub(crate) fn lab(&self, args: &[&str]) -> Command {
        let mut command = Command::new(lab_binary());
        command.args(args);
        command
    }

    /// `guildnet-lab fault ...`
    #[track_caller]
    pub(crate) fn fault(&self, args: &[&str]) {
        let mut fault = self.lab(&["fault"]);
        fault.args(args);
        finish(fault, b"", STEP).ok();
    }

    /// What an URL answers a host of the lab, within two seconds.
    pub(crate) fn get(&self, host: &str, url: &str) -> Ran {
        let lab = &self.device.fleet.lab;
        let mut get = lab.inside(host, lab.program("workload", "workload")).expect("a host of the lab");
        get.args(["get", url]);
        finish(get, b"", Duration::from_secs(10))
    }

    /// Whether nothing at all comes back from there: neither an answer nor a refusal.
    pub(crate) fn is_silent(&self, host: &str, url: &str) -> bool {
        let ran = self.get(host, url);
        ran.code != 0 && ran.err.contains("deadline exceeded")
    }
}

/// Runs in the network namespace of a host.
pub(crate) fn within<T: Send>(namespace: &str, act: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let file = fs::File::open(format!("/run/netns/{namespace}")).expect("the host is there");
        setns(file, CloneFlags::CLONE_NEWNET).expect("root may");
        act()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("it ran"))
}

/// The namespaces of a lab, by the machine's own list.
pub(crate) fn namespaces(prefix: &str) -> Vec<String> {
    let names = fs::read_dir(Path::new("/run/netns")).into_iter().flatten().flatten();
    names.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with(prefix)).collect()
}
