//! The fixture: the running lab, a home folder for the Host App under test, and the command.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use guildnet_lab::Lab;
use serde_json::Value;

/// The networks of every cluster in the lab.
pub(crate) const ROUTES: &str = "10.96.0.0/16,10.244.0.0/16";
/// The echo Service's address, the same in every cluster.
pub(crate) const ECHO: &str = "10.96.0.80:80";
/// The API server's address, the same in every cluster.
pub(crate) const API: &str = "10.96.0.1:443";
/// The longest that one step of a client may take. Most take a part of a second.
pub(crate) const STEP: Duration = Duration::from_secs(60);
/// Both clusters.
pub(crate) const CLUSTERS: [&str; 2] = ["a", "b"];

/// A running lab and one Host App home.
pub(crate) struct Fleet {
    pub(crate) lab: Lab,
    pub(crate) home: PathBuf,
    pub(crate) listen: SocketAddr,
    /// The command under test.
    pub(crate) program: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The output, if the command succeeded; else the test fails with everything it said.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.out, self.err);
        self.out
    }

    /// Asserts the exit code and that standard error holds every one of `words`.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "standard error does not say {word:?}:\n{}", self.err);
        }
    }
}

impl Fleet {
    /// The shared fleet: one home, set up by `guildnet up` if it is not yet. Verify passes.
    #[track_caller]
    pub(crate) fn up() -> Self {
        let fleet = Self::shared();
        if fleet.run(&["status", "-o", "json"]).code != 0 || !fleet.verify().1["success"].as_bool().unwrap_or(false) {
            fleet.set_up(&["--no-verify"]).ok();
            fleet.passes_again();
        }
        fleet
    }

    /// The shared fleet for tests that look at every answer themselves: set up only if a cluster does not answer.
    pub(crate) fn answering() -> Self {
        let fleet = Self::shared();
        let running = fleet.run(&["status"]).code == 0;
        if !running || CLUSTERS.iter().any(|cluster| fleet.echo(cluster).code != 0) {
            fleet.set_up(&["--no-verify"]).ok();
        }
        fleet
    }

    /// The home of the shared fleet. Labs that are up side by side have a port each.
    fn shared() -> Self {
        let mut fleet = Self::bare("shared", 18090);
        let number = fleet.lab.plan().host_address().octets()[2];
        fleet.listen.set_port(18090 + 100 * u16::from(number));
        fleet
    }

    /// A home of its own, nothing in it.
    pub(crate) fn bare(name: &str, port: u16) -> Self {
        let lab = Lab::attach().unwrap_or_else(|why| panic!("{why}"));
        let home = lab.person_dir().join(format!("e2e-{name}"));
        if !home.exists() {
            fs::create_dir(&home).expect("the person's folder is writable for root");
        }
        let (uid, gid) = lab.person();
        chown(&home, Some(uid), Some(gid)).expect("root may give folders away");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("mode");
        Self { lab, home, listen: SocketAddr::from(([127, 0, 0, 1], port)), program: binary() }
    }

    /// The command, as the user would run it, with this home.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[], b"")
    }

    /// The same with environment variables and standard input; stopped after five minutes.
    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.envs(env.iter().copied());
        finish(command, input, Duration::from_secs(300))
    }

    /// The command with this home, still to be started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .current_dir(&self.home)
            .env("GUILDNET_HOME", &self.home)
            .env("GUILDNET_LISTEN", self.listen.to_string());
        command
    }

    /// `guildnet up` with both clusters, the lab's Headscale, and more flags.
    pub(crate) fn set_up(&self, more: &[&str]) -> Ran {
        let person = self.lab.person_dir();
        for door in CLUSTERS {
            self.lab.door(door, true).expect("the door opens");
        }
        let file = |name: &str| person.join(name).display().to_string();
        let url = fs::read_to_string(person.join("headscale-url")).expect("the lab wrote it");
        let (a, b) = (format!("a={}", file("a.kubeconfig")), format!("b={}", file("b.kubeconfig")));
        let (key, ca) = (file("headscale-api-key"), file("headscale-ca.pem"));
        let mut args = vec!["up", "--cluster", &a, "--cluster", &b, "--headscale-url", url.trim()];
        args.extend(["--headscale-api-key-file", &key, "--headscale-ca", &ca, "--routes", ROUTES]);
        args.extend(more);
        let ran = self.run(&args);
        for door in CLUSTERS {
            self.lab.door(door, false).expect("the door shuts");
        }
        ran
    }

    /// `guildnet verify -o json`: exit code and report, which say the same.
    #[track_caller]
    pub(crate) fn verify(&self) -> (i32, Value) {
        let ran = self.run(&["verify", "-o", "json"]);
        let report: Value = serde_json::from_str(&ran.out)
            .unwrap_or_else(|why| panic!("{why}\nstdout: {}\nstderr: {}", ran.out, ran.err));
        assert_eq!(ran.code == 0, report["success"] == true, "exit code {}\n{}", ran.code, pretty(&report));
        (ran.code, report)
    }

    /// Runs verify until `wanted` holds of the report, for at most `limit`; then the test fails with the last one.
    #[track_caller]
    pub(crate) fn verify_until(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        loop {
            let (_, report) = self.verify();
            if wanted(&report) {
                return report;
            }
            assert!(begin.elapsed() < limit, "not within {limit:?}:\n{}", pretty(&report));
        }
    }

    /// Verify passes again, with nothing failed and nothing skipped; its report.
    #[track_caller]
    pub(crate) fn passes_again(&self) -> Value {
        self.verify_until(Duration::from_secs(90), |r| r["success"] == true)
    }

    /// The echo Service's answer through the cluster's connector, by `guildnet dial`.
    pub(crate) fn echo(&self, cluster: &str) -> Ran {
        self.run_with(&["dial", cluster, ECHO], &[], b"GET / HTTP/1.0\r\nHost: echo\r\n\r\n")
    }

    /// What the Host App's API answers to a request with a body: its status, and its JSON if it has any.
    #[track_caller]
    pub(crate) fn api(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let token = self.run(&["token"]).ok();
        let mut curl = Command::new("curl");
        // The token and the body by standard input: arguments can be seen by all.
        curl.args(["-sS", "--max-time", "60", "-w", "\n%{http_code}", "--config", "-"]);
        let config = [
            ("cacert", self.home.join("certs/host-ca.crt").display().to_string()),
            ("header", format!("Authorization: Bearer {}", token.trim())),
            ("request", method.to_owned()),
            ("data", body.to_owned()),
            ("url", format!("https://{}/api/v1{path}", self.listen)),
        ];
        let config: String = config.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
        let answer = finish(curl, config.as_bytes(), Duration::from_secs(65)).ok();
        let (json, status) = answer.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), serde_json::from_str(json).unwrap_or_default())
    }

    /// kubectl with the cluster's administrator, from its node's namespace.
    pub(crate) fn kubectl(&self, cluster: &str, args: &[&str]) -> Ran {
        let mut command = self.lab.kubectl(cluster);
        command.args(args);
        finish(command, b"", Duration::from_secs(120))
    }

    /// A program as an ordinary user runs it: without root from the beginning.
    pub(crate) fn as_person(&self, program: impl AsRef<OsStr>) -> Command {
        let (uid, gid) = self.lab.person();
        let mut command = Command::new("/usr/bin/setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]).arg(program);
        command
    }

    /// Process id of the Host App.
    pub(crate) fn host_pid(&self) -> u32 {
        let text = fs::read_to_string(self.home.join("host.pid")).expect("a pid file");
        text.split_whitespace().next().and_then(|w| w.parse().ok()).expect("a number in the pid file")
    }

    /// The nodes that Headscale knows, by its own command line.
    pub(crate) fn headscale(&self, args: &[&str]) -> Ran {
        let mut command = self.lab.headscale();
        command.args(args);
        finish(command, b"", Duration::from_secs(30))
    }
}

/// One check of a report.
#[track_caller]
pub(crate) fn check<'r>(report: &'r Value, cluster: &str, id: &str) -> &'r Value {
    let clusters = report["clusters"].as_array().expect("clusters");
    let found = clusters
        .iter()
        .find(|c| c["id"] == cluster)
        .and_then(|c| c["checks"].as_array()?.iter().find(|check| check["id"] == id));
    found.unwrap_or_else(|| panic!("no check {id:?} of {cluster:?} in\n{}", pretty(report)))
}

/// Readable JSON for a failure message.
pub(crate) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a value prints")
}

/// The command under test: built beside this test binary, or named by `GUILDNET_BIN`.
pub(crate) fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("GUILDNET_BIN") {
        return path.into();
    }
    beside("guildnet")
}

/// The lab's command, built beside this test binary.
pub(crate) fn lab_binary() -> PathBuf {
    beside("guildnet-lab")
}

pub(crate) fn beside(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("a path");
    let found = me.ancestors().nth(2).expect("target/PROFILE/deps/it").join(name);
    assert!(found.exists(), "{} is missing: build the workspace first", found.display());
    found
}

/// Runs to the end, or kills after `limit` and fails.
#[track_caller]
pub(crate) fn finish(mut command: Command, input: &[u8], limit: Duration) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let feed = std::thread::spawn(move || {
        // A program that ends without reading its input closes the pipe: not an error of the test.
        let _closed_early = stdin.write_all(&input);
    });
    let pid = child.id();
    let (done_tx, done_rx) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let late = done_rx.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if late {
            let _gone = Command::new("kill").arg("-9").arg(pid.to_string()).status();
        }
        late
    });
    let output = child.wait_with_output().expect("its output");
    drop(done_tx);
    feed.join().expect("the feeder");
    let late = watchdog.join().expect("the watchdog");
    assert!(!late, "{command:?} did not end within {limit:?}");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether a TCP connection can be made within two seconds.
pub(crate) fn answers(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_secs(2)).is_ok()
}

/// Polls until `wanted` holds, at most `limit` long; then the test fails with `what`.
#[track_caller]
pub(crate) fn eventually(what: &str, limit: Duration, mut wanted: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !wanted() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// All files below a folder, with their sizes: to see that a failed command left nothing.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}
