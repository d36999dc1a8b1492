//! A Headscale of the person's own: started by `guildnet up` where none is given, kept, saved, ended. Its ports are not
//! those of the lab's own Headscale, on the same address, which is the one that pods reach.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    fleet::{CLUSTERS, Fleet, Ran, binary, eventually, finish, pretty},
    host_app::give_to_person,
};

/// A home of its own, and a Headscale of its own on these ports; both are gone afterwards.
pub(crate) struct Own {
    pub(crate) fleet: Fleet,
    pub(crate) port: u16,
    stun: u16,
}

impl Own {
    pub(crate) fn with(name: &str, ports: (u16, u16, u16), test: impl FnOnce(&Self)) {
        let own = Self { fleet: Fleet::bare(name, ports.0), port: ports.1, stun: ports.2 };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&own)));
        if outcome.is_err() {
            show(&own.fleet.home.join("headscale/headscale.log"));
        }
        for ended in [&["down"][..], &["headscale", "down", "--purge"]] {
            let _stopped_or_never_started = own.run(ended);
        }
        own.fleet.lab.door("all", false).expect("the doors shut");
        fs::remove_dir_all(&own.fleet.home).expect("the home is removed");
        if let Err(why) = outcome {
            std::panic::resume_unwind(why);
        }
    }

    /// The command as an ordinary user runs it: without root from the beginning. Headscale's place comes from variables.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let mut command = self.fleet.as_person(binary());
        command
            .args(args)
            .current_dir(&self.fleet.home)
            .env("GUILDNET_HOME", &self.fleet.home)
            .env("GUILDNET_LISTEN", self.fleet.listen.to_string())
            .env("GUILDNET_HEADSCALE_BINARY", self.fleet.lab.program("headscale", "headscale"))
            .env("GUILDNET_HEADSCALE_LISTEN", format!("{}:{}", self.address(), self.port))
            .env("GUILDNET_HEADSCALE_ADDRESS", self.address().to_string())
            .env("GUILDNET_HEADSCALE_STUN_PORT", self.stun.to_string())
            .envs(env.iter().copied());
        finish(command, b"", Duration::from_secs(300))
    }

    /// The machine's address on the bridge.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.fleet.lab.plan().host_address()
    }

    /// `guildnet headscale status -o json`: exit code and what it says.
    fn status(&self) -> (i32, Value) {
        let ran = self.run(&["headscale", "status", "-o", "json"]);
        let status = serde_json::from_str(&ran.out)
            .unwrap_or_else(|why| panic!("{why}\nstdout: {}\nstderr: {}", ran.out, ran.err));
        (ran.code, status)
    }

    #[track_caller]
    fn supervisor(&self) -> u32 {
        let (code, status) = self.status();
        assert!(code == 0 && status["running"] == true && status["answers"] == true, "{}", pretty(&status));
        status["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
    }

    /// Processes whose command line names this home.
    fn processes(&self) -> Vec<(u32, String)> {
        let home = self.fleet.home.display().to_string();
        let entries = fs::read_dir("/proc").expect("proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let named = pids.filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&home).then_some((pid, line))
        });
        named.collect()
    }

    #[track_caller]
    pub(crate) fn nothing_runs(&self) {
        let all = self.processes();
        assert!(all.is_empty(), "left running: {all:?}");
    }

    /// The process id of Headscale itself.
    #[track_caller]
    fn server(&self) -> u32 {
        let all = self.processes();
        let found = all.iter().find(|(_, line)| line.contains(" serve --config "));
        found.unwrap_or_else(|| panic!("no Headscale among {all:?}")).0
    }
}

#[expect(clippy::print_stderr, reason = "a failed test shows what its server said")]
pub(crate) fn show(log: &Path) {
    eprintln!("--- {}\n{}", log.display(), fs::read_to_string(log).unwrap_or_default());
}

fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "{pid} could not be signalled");
}

fn gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}/exe")).exists()
}

#[test]
fn up_without_a_server_brings_one_and_it_outlives_the_host_app() {
    Own::with("managed", (18130, 8444, 3479), |own| {
        let fleet = &own.fleet;
        fleet.lab.door("all", true).expect("the doors open");
        let person = fleet.lab.person_dir();
        let clusters = CLUSTERS.map(|id| format!("{id}={}", person.join(format!("{id}.kubeconfig")).display()));
        let ran = own.run(&["up", "--cluster", &clusters[0], "--cluster", &clusters[1]]);
        let said = ran.err.clone();
        ran.ok();
        assert!(
            said.contains(&format!("managed Headscale 0.29.2 started at https://{}:8444", own.address())),
            "{said}"
        );
        fleet.lab.door("all", false).expect("the doors shut");
        let passes = || {
            let ran = own.run(&["verify", "-o", "json"]);
            serde_json::from_str::<Value>(&ran.out).is_ok_and(|report| report["success"] == true)
        };
        eventually("verify passes", Duration::from_secs(60), passes);

        // The Host App goes and comes back; its server is the same process all along.
        let (supervisor, server) = (own.supervisor(), own.server());
        let host = fleet.host_pid();
        kill(host, "-TERM");
        eventually("the Host App ends", Duration::from_secs(30), || gone(host));
        assert_eq!((own.supervisor(), own.server()), (supervisor, server));
        own.run(&["up", "--no-verify"]).ok();
        assert_ne!(fleet.host_pid(), host);
        assert_eq!((own.supervisor(), own.server()), (supervisor, server));
        eventually("verify passes again", Duration::from_secs(60), passes);

        // A server that dies is started again by its supervisor, and is the same server to everybody.
        kill(server, "-KILL");
        let answers = || own.processes().iter().any(|(pid, _)| *pid != server) && own.status().1["answers"] == true;
        eventually("Headscale answers again", Duration::from_secs(30), answers);
        assert_eq!(own.supervisor(), supervisor);
        assert_ne!(own.server(), server);
        eventually("verify passes after its death", Duration::from_secs(90), passes);

        // Nothing of it outlives `down`, and what only this home used goes with --purge.
        own.run(&["down", "--purge"]).ok();
        own.nothing_runs();
        assert!(!fleet.home.join("headscale").exists(), "its state is gone");
    });
    // The routers of the shared fleet were taken over: it takes them back.
    Fleet::up().passes_again();
}

#[test]
fn it_is_saved_moved_and_ended_by_its_own_commands() {
    Own::with("managed-alone", (18131, 8445, 3480), |own| {
        let fleet = &own.fleet;
        let folder = fleet.home.join("headscale");
        let began = own.run(&["headscale", "up"]);
        let said = format!("{}{}", began.out, began.err);
        began.ok();
        assert!(!said.contains("hskey-"), "the key was printed:\n{said}");
        let (uid, gid) = fleet.lab.person();
        let stat = |file: &Path| fs::metadata(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        for file in
            ["db.sqlite", "noise_private.key", "derp_private.key", "headscale-ca.pem", "headscale.pem", "config.yaml"]
        {
            let meta = stat(&folder.join(file));
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o600, uid, gid), "{file}");
        }
        // It is the person's own process, without capabilities, as its supervisor is.
        for pid in [own.supervisor(), own.server()] {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
            assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
            let environment = fs::read(format!("/proc/{pid}/environ")).expect("root reads it");
            assert!(!String::from_utf8_lossy(&environment).contains("hskey-"));
        }
        // A second time changes nothing; the key is kept.
        let (server, listed) = (own.server(), || own.run(&["headscale", "status", "-o", "json"]).out);
        let before = listed();
        own.run(&["headscale", "up"]).ok();
        assert_eq!((own.server(), listed()), (server, before));
        own.run(&["headscale", "serve"]).refused(6, &["runs already", "guildnet headscale down"]);

        // A backup while it runs, for its owner only; never over a file that is there.
        let file = own.run(&["headscale", "backup"]).ok().trim().to_owned();
        assert_eq!(stat(Path::new(&file)).mode() & 0o7777, 0o600);
        let names = finish(
            {
                let mut tar = Command::new("tar");
                tar.args(["-tf", &file]);
                tar
            },
            b"",
            Duration::from_secs(10),
        )
        .ok();
        for name in ["db.sqlite", "noise_private.key", "derp_private.key", "headscale-ca.pem", "config.yaml"] {
            assert!(names.lines().any(|line| line == name), "{name} is not in\n{names}");
        }
        own.run(&["headscale", "backup", &file]).refused(6, &["exists already"]);

        // Another build of the program: everything is copied before it may touch the database.
        let other = fleet.home.join("other-headscale");
        fs::copy(fleet.lab.program("headscale", "headscale"), &other).expect("copied");
        fs::OpenOptions::new()
            .append(true)
            .open(&other)
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"\n"))
            .expect("changed");
        give_to_person(fleet, &other);
        fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).expect("mode");
        let ran = own.run(&["headscale", "up", "--headscale-binary", &other.display().to_string()]);
        assert!(
            ran.err.contains("another build of Headscale 0.29.2") && ran.err.contains("backup before another program"),
            "{}",
            ran.err
        );
        ran.ok();
        assert_ne!(own.server(), server);
        assert_eq!(fs::read_dir(folder.join("backups")).expect("backups").count(), 2);

        // The address that pods reach changed: named by status, repaired by up, with the authority that is trusted already.
        let (authority, first_key) = (fs::read(folder.join("headscale-ca.crt")).expect("there"), listed());
        let moved = [("GUILDNET_HEADSCALE_ADDRESS", "192.0.2.77"), ("GUILDNET_HEADSCALE_LISTEN", "0.0.0.0:8445")];
        let status = own.run_with(&["headscale", "status"], &moved);
        status.refused(1, &["192.0.2.77", "guildnet headscale up"]);
        let ran = own.run_with(&["headscale", "up"], &moved);
        assert!(ran.err.contains("is now 192.0.2.77"), "{}", ran.err);
        ran.ok();
        assert_eq!(fs::read(folder.join("headscale-ca.crt")).expect("there"), authority);
        assert!(
            fs::read_to_string(folder.join("config.yaml"))
                .expect("there")
                .contains("server_url: https://192.0.2.77:8445\n")
        );
        own.run(&["headscale", "up"]).ok();
        let ends = |text: &str| serde_json::from_str::<Value>(text).expect("json")["apiKeyEnds"].clone();
        assert_eq!(ends(&listed()), ends(&first_key), "the key stayed");

        // The supervisor is killed: the kernel takes Headscale along, and the next start finds nothing in its way.
        let (supervisor, server) = (own.supervisor(), own.server());
        kill(supervisor, "-KILL");
        eventually("Headscale is gone with it", Duration::from_secs(10), || gone(supervisor) && gone(server));
        assert_eq!(own.status().0, 1);
        own.run(&["headscale", "up"]).ok();

        // `down` leaves what it did not start; its own command ends it.
        let ran = own.run(&["down"]);
        assert!(ran.err.contains("guildnet headscale down"), "{}", ran.err);
        own.supervisor();
        own.run(&["headscale", "down"]).ok();
        own.nothing_runs();
        assert!(folder.join("db.sqlite").exists(), "its state stays");

        // A port that is taken is named, and nothing is left running.
        let taken = UdpSocket::bind((own.address(), own.stun)).expect("free");
        own.run(&["headscale", "up"]).refused(6, &["(UDP) is taken", "--stun-port"]);
        drop(taken);
        own.nothing_runs();
        own.run(&["headscale", "up"]).ok();
        own.run(&["headscale", "down", "--purge"]).ok();
        assert!(!folder.exists());
    });
}

#[test]
fn without_a_program_the_ways_on_are_named_and_nothing_is_made() {
    Own::with("managed-none", (18132, 8446, 3481), |own| {
        let kubeconfig = own.fleet.lab.person_dir().join("a.kubeconfig").display().to_string();
        let cluster = format!("a={kubeconfig}");
        let none = [("GUILDNET_HEADSCALE_BINARY", ""), ("PATH", "/nowhere")];
        let ran = own.run_with(&["up", "--cluster", &cluster], &none);
        ran.refused(8, &["no headscale program", "--headscale-binary", "--headscale-url"]);
        assert!(!own.fleet.home.join("headscale").exists());
    });
}
