//! A lab of light clusters, and what a person does to have one of them served: namespace, router, `cluster add`.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use guildnet_lab::Lab;
use serde_json::Value;

use crate::fleet::{Fleet, ROUTES, Ran, finish, lab_binary};

/// The port of the Host App under test.
const PORT: u16 = 18091;

/// A lab that this test brought up; taken down when the test ends, however it ends.
pub(crate) struct LightLab {
    /// How long it took to come up.
    pub(crate) took: Duration,
}

impl LightLab {
    /// Brings it up.
    #[track_caller]
    pub(crate) fn up(clusters: usize, headscale: &str, tailscale: &str) -> Self {
        if let Ok(there) = Lab::attach() {
            // Ours would end it.
            panic!("lab {} is up: take it down first, or choose another instance", there.plan().instance);
        }
        // From here on, whatever fails, there is something to take down.
        let mut lab = Self { took: Duration::ZERO };
        let begin = Instant::now();
        let count = clusters.to_string();
        let mut up = Command::new(lab_binary());
        up.args(["up", "--light", "--clusters", &count, "--headscale", headscale, "--tailscale", tailscale]);
        let ended = up.stdout(Stdio::null()).status().expect("the lab's command starts");
        assert!(ended.success(), "guildnet-lab up: {ended}");
        lab.took = begin.elapsed();
        lab
    }
}

impl Drop for LightLab {
    fn drop(&mut self) {
        let ended = Command::new(lab_binary()).arg("down").status().expect("the lab's command starts");
        // A second panic would hide the first.
        if !ended.success() && !std::thread::panicking() {
            panic!("guildnet-lab down: {ended}");
        }
    }
}

/// A home of its own for the Host App, stopped when the test ends: it is no process of the lab.
pub(crate) struct Device {
    pub(crate) fleet: Fleet,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self { fleet: Fleet::bare("wide", PORT) }
    }

    /// The clusters of the lab.
    pub(crate) fn clusters(&self) -> Vec<String> {
        self.fleet.lab.plan().clusters.clone()
    }

    fn file(&self, cluster: &str) -> PathBuf {
        self.fleet.home.join(format!("cluster-{cluster}-headscale.json"))
    }

    /// `guildnet ...` with the lab's Headscale and its API key.
    #[track_caller]
    pub(crate) fn administer(&self, args: &[&str]) -> String {
        let person = self.fleet.lab.person_dir();
        let file = |name: &str| person.join(name).display().to_string();
        let url = fs::read_to_string(person.join("headscale-url")).expect("the lab wrote it");
        let (key, ca) = (file("headscale-api-key"), file("headscale-ca.pem"));
        let mut all = args.to_vec();
        all.extend(["--headscale-url", url.trim(), "--headscale-api-key-file", &key, "--headscale-ca", &ca]);
        self.fleet.run(&all).ok()
    }

    /// Namespace, policy and keys, into the cluster's file.
    #[track_caller]
    pub(crate) fn namespace(&self, cluster: &str) {
        let file = self.file(cluster).display().to_string();
        self.administer(&["headscale", "namespace", cluster, "--routes", ROUTES, "--file", &file]);
    }

    /// What the cluster's file says.
    pub(crate) fn member(&self, cluster: &str) -> Value {
        let text = fs::read_to_string(self.file(cluster)).expect("the command wrote it");
        serde_json::from_str(&text).expect("JSON")
    }

    /// One of the keys of the cluster's file, in a file of its own.
    #[track_caller]
    pub(crate) fn key_file(&self, cluster: &str, field: &str) -> PathBuf {
        let path = self.fleet.home.join(format!("{cluster}-{field}"));
        let key = self.member(cluster)[field].as_str().expect("a key").to_owned();
        let mut options = fs::OpenOptions::new();
        let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&path).expect("root may");
        std::io::Write::write_all(&mut out, key.as_bytes()).expect("written");
        path
    }

    /// The router: told what the DaemonSet's pods would be told.
    #[track_caller]
    pub(crate) fn router(&self, cluster: &str) {
        let file = self.file(cluster).display().to_string();
        let manifest = self.fleet.run(&["router", "manifest", cluster, "--from", &file]).ok();
        let routes = value_of(&manifest, "TS_ROUTES");
        let key_file = self.key_file(cluster, "routerAuthKey");
        let mut router = Command::new(lab_binary());
        router.args(["router", cluster, "--routes", &routes, "--hostname", &format!("gn-{cluster}-router")]);
        router.arg("--auth-key-file").arg(&key_file);
        finish(router, b"", Duration::from_secs(120)).ok();
        fs::remove_file(&key_file).expect("it was written");
    }

    /// The record: `cluster add` with the file, by the open door.
    #[track_caller]
    pub(crate) fn add(&self, cluster: &str) {
        let file = self.file(cluster).display().to_string();
        let kubeconfig = self.fleet.lab.person_dir().join(format!("{cluster}.kubeconfig")).display().to_string();
        self.administer(&["cluster", "add", cluster, "--kubeconfig", &kubeconfig, "--from", &file]);
    }

    /// Starts the Host App for all that was added; from then on no door is open.
    #[track_caller]
    pub(crate) fn serve(&self) {
        self.fleet.lab.door("all", false).expect("doors shut");
        self.fleet.run(&["up", "--no-verify"]).ok();
    }

    /// Every cluster's echo at the same moment: answers, in the clusters' order.
    pub(crate) fn echo_all(&self) -> Vec<Ran> {
        let clusters = self.clusters();
        std::thread::scope(|scope| {
            let dials: Vec<_> = clusters.iter().map(|c| scope.spawn(|| self.fleet.echo(c))).collect();
            dials.into_iter().map(|dial| dial.join().expect("ran")).collect()
        })
    }

    /// Asserts that each of them answers with its own name and no other.
    #[track_caller]
    pub(crate) fn all_answer_with_their_own_names(&self) {
        let clusters = self.clusters();
        for (cluster, ran) in clusters.iter().zip(self.echo_all()) {
            let said = ran.ok();
            let names: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("cluster=")).collect();
            assert_eq!(names, [cluster.as_str()], "{cluster} answered {said:?}");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.fleet.run(&["down"]);
    }
}

/// The value of an environment variable in a manifest; a long one stands folded on the lines below.
#[track_caller]
fn value_of(manifest: &str, name: &str) -> String {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != format!("- name: {name}"));
    let value = lines.nth(1).and_then(|line| line.strip_prefix("value: "));
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{manifest}"));
    if value.starts_with('>') {
        return lines.take_while(|line| !line.starts_with("- name: ")).collect::<Vec<_>>().join(" ");
    }
    value.trim_matches(['"', '\'']).to_owned()
}

/// Resident memory of processes, in MiB; what ended meanwhile counts nothing.
pub(crate) fn resident(pids: impl IntoIterator<Item = i32>) -> u64 {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    pids.into_iter().filter_map(of).sum::<u64>() / 1024
}
