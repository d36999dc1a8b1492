//! The lab itself: before anything of the product is asked, its clusters answer; and what it made, it removes.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use crate::fleet::{CLUSTERS, Ran, finish, lab_binary};

#[test]
fn every_cluster_answers_kubectl_from_its_node_and_has_a_ready_node() {
    let lab = guildnet_lab::Lab::attach().unwrap_or_else(|why| panic!("{why}"));
    for cluster in CLUSTERS {
        let mut kubectl = lab.kubectl(cluster);
        kubectl.args(["get", "nodes", "--no-headers"]);
        let said = finish(kubectl, b"", Duration::from_secs(30)).ok();
        let words: Vec<&str> = said.split_whitespace().take(2).collect();
        assert_eq!(words, [format!("{cluster}-node-1").as_str(), "Ready"], "{said}");
    }
}

/// A second lab beside the shared one, taken down when the test ends, however it ends.
struct Another(&'static str);

impl Another {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(lab_binary());
        command.args(args).env("GUILDNET_LAB_INSTANCE", self.0);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args), b"", Duration::from_secs(180))
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

/// What a lab can leave behind on the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traces {
    /// Programs of the lab, and whatever its containers run, by process id.
    processes: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    links: BTreeSet<String>,
    files: BTreeSet<String>,
}

const PROGRAMS: [&str; 17] = [
    "headscale",
    "etcd",
    "kube-apiserver",
    "kube-controller",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "containerd",
    "containerd-shim",
    "runc",
    "pause",
    "coredns",
    "echo",
    "containerboot",
    "tailscaled",
    "workload",
    "guildnet-lab",
];

fn traces() -> Traces {
    let names = |dir: &str| -> BTreeSet<String> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path().display().to_string()).collect()
    };
    let program = |pid: &String| {
        // One that has ended, and that nobody asked about yet, has no program any more.
        fs::read_link(format!("{pid}/exe")).ok()?;
        let name = fs::read_to_string(format!("{pid}/comm")).unwrap_or_default();
        PROGRAMS
            .iter()
            .any(|program| name.trim_end() == program.get(..15).unwrap_or(program))
            .then(|| format!("{pid} {name}"))
    };
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("it is there");
    let groups = names("/sys/fs/cgroup");
    Traces {
        processes: names("/proc").iter().filter_map(program).collect(),
        namespaces: names("/run/netns"),
        mounts: mountinfo.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect(),
        cgroups: groups
            .iter()
            .flat_map(|root| names(root).into_iter().chain(names(&format!("{root}/k8s.io"))))
            .filter(|path| path.contains("gnlab") || path.contains("k8s.io"))
            .collect(),
        links: names("/sys/class/net"),
        files: ["/run/guildnet-lab", "/var/lib/guildnet-lab"].into_iter().flat_map(names).collect(),
    }
}

impl Traces {
    /// What is here and was not there before. What others have ended meanwhile, as the pods of the shared lab, does not count.
    fn since(self, before: &Self) -> Self {
        let new = |now: BTreeSet<String>, before: &BTreeSet<String>| &now - before;
        Self {
            processes: new(self.processes, &before.processes),
            namespaces: new(self.namespaces, &before.namespaces),
            mounts: new(self.mounts, &before.mounts),
            cgroups: new(self.cgroups, &before.cgroups),
            links: new(self.links, &before.links),
            files: new(self.files, &before.files),
        }
    }
}

/// Nothing is left. Of a start that was killed, a command that it had just begun (`headscale users create`) ends by itself.
#[track_caller]
fn nothing_is_left_of(before: &Traces, when: &str) {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    let mut left = traces().since(before);
    while left != Traces::default() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        left = traces().since(before);
    }
    assert_eq!(left, Traces::default(), "{when}");
}

#[test]
fn a_lab_that_is_taken_down_leaves_nothing_behind() {
    let before = traces();
    let lab = Another("short-lived");
    lab.run(&["up", "--clusters", "1"]).ok();
    let there = traces().since(&before);
    assert!(!there.processes.is_empty() && !there.namespaces.is_empty() && !there.files.is_empty(), "{there:?}");
    lab.run(&["down"]).ok();
    nothing_is_left_of(&before, "after its end");
}

#[test]
fn a_lab_whose_start_was_killed_is_taken_down_all_the_same() {
    let before = traces();
    let lab = Another("cut-short");
    // Once while the networks and keys are made, once while the node's programs start, once while its pods do.
    for sign in ["private network", "kube-apiserver", "containerd-shim"] {
        let mut up = lab.command(&["up", "--clusters", "1"]).spawn().expect("it starts");
        crate::fleet::eventually(sign, Duration::from_secs(60), || match sign {
            "private network" => traces().namespaces.len() > before.namespaces.len(),
            name => traces()
                .processes
                .iter()
                .any(|p| !before.processes.contains(p) && p.contains(name.get(..15).unwrap_or(name))),
        });
        up.kill().expect("it still runs");
        up.wait().expect("it ended");
        lab.run(&["down"]).ok();
        nothing_is_left_of(&before, sign);
    }
}

#[test]
fn a_light_lab_and_its_router_leave_nothing_behind() {
    let before = traces();
    let lab = Another("light");
    lab.run(&["up", "--clusters", "1", "--light"]).ok();
    let there = guildnet_lab::Lab::of(&lab.0.parse().expect("a name")).expect("it is up");
    let headscale = |args: &[&str]| {
        let mut command = there.headscale();
        command.args(args);
        finish(command, b"", Duration::from_secs(30)).ok()
    };
    headscale(&["users", "create", "someone"]);
    let key = headscale(&["preauthkeys", "create", "--user", "1"]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), key.trim()).expect("written");
    let key_file = file.path().display().to_string();
    let router = ["router", "a", "--auth-key-file", &key_file, "--routes", "10.96.0.0/16"];
    let address = lab.run(&router).ok();
    assert!(address.starts_with("100.64."), "{address}");
    assert_eq!(lab.run(&router).ok(), address, "a second time it is the same node");
    lab.run(&["status"]).ok();
    lab.run(&["up", "--headscale", "0.28.0"]).refused(6, &["Headscale 0.29.2", "0.28.0"]);
    lab.run(&["down"]).ok();
    nothing_is_left_of(&before, "after its end");

    let mut up = lab.command(&["up", "--clusters", "1", "--light"]).spawn().expect("it starts");
    crate::fleet::eventually("its API server starts", Duration::from_secs(60), || {
        traces().processes.iter().any(|p| !before.processes.contains(p) && p.contains("kube-apiserver"))
    });
    up.kill().expect("it still runs");
    up.wait().expect("it ended");
    lab.run(&["down"]).ok();
    nothing_is_left_of(&before, "killed");
}
