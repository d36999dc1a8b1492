//! The fixture: systemd as a machine has it, process 1 of namespaces of its own, and one of a person's own below it.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::fleet::{Fleet, Ran, STEP, eventually, finish};

/// In new namespaces, before process 1 starts: what a machine gives it, and nothing of this machine's that it could change.
/// `$1`: the folder of its units.
const BOOT: &str = "\
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --rbind /run /run
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 6775696c646e65742d6c61622d756e69 >/run/systemd/machine-id
mount --bind /run/systemd/machine-id /etc/machine-id
mkdir /run/systemd/system
mount --bind \"$1\" /run/systemd/system
exec env -i container=lab SYSTEMD_UNIT_PATH=/run/systemd/system /lib/systemd/systemd --unit=basic.target";

/// What units wait for on a machine: empty here.
const TARGETS: [&str; 4] = ["sysinit", "basic", "sockets", "shutdown"];

/// Whose systemd it is that has the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Machine,
    Person,
}

impl Whose {
    /// How `guildnet serve` is asked for its unit.
    pub(super) const fn flag(self) -> &'static str {
        match self {
            Self::Machine => "--systemd=system",
            Self::Person => "--systemd",
        }
    }
}

/// A running systemd. It ends with this value, and all that it started.
pub(super) struct Systemd {
    whose: Whose,
    /// `unshare`, whose only child is process 1.
    outside: Child,
    /// Process 1, by its number outside.
    pid: u32,
    person: (u32, u32),
    folder: PathBuf,
}

impl Systemd {
    pub(super) fn boot(fleet: &Fleet, whose: Whose) -> Self {
        let folder = fleet.lab.person_dir().join(format!("systemd-{}", std::process::id()));
        let units = folder.join("system");
        fs::create_dir_all(&units).expect("root may make folders there");
        for target in TARGETS {
            let text = format!("[Unit]\nDescription={target}\nDefaultDependencies=no\n");
            fs::write(units.join(format!("{target}.target")), text).expect("root may write there");
        }
        // Below the lab's own: `guildnet-lab down` removes it, and would end what a test left.
        let of_cluster = fleet.lab.plan().cluster("a").expect("a cluster").cgroup;
        let of_lab = Path::new(&of_cluster).parent().expect("the lab's folder");
        let cgroup = version_2().join(of_lab).join(folder.file_name().expect("a name"));
        fs::create_dir_all(&cgroup).expect("root may make control groups");
        let mut command = Command::new("sh");
        command
            .args(["-ec", "echo $$ >\"$1\"/cgroup.procs; shift; exec \"$@\"", "sh"])
            .arg(&cgroup)
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup", "--uts", "--ipc"])
            .args(["sh", "-ec", BOOT, "sh"])
            .arg(&units)
            .stdin(Stdio::null())
            .process_group(0);
        let outside = command.spawn().expect("util-linux's unshare");
        let mut systemd = Self { whose: Whose::Machine, outside, pid: 0, person: fleet.lab.person(), folder };
        eventually("a systemd that answers", STEP, || {
            let children = format!("/proc/{0}/task/{0}/children", systemd.outside.id());
            let children = fs::read_to_string(children).expect("unshare runs");
            systemd.pid = children.trim().parse().unwrap_or(0);
            systemd.pid > 0 && systemd.systemctl(&["is-active", "basic.target"]).code == 0
        });
        if whose == Whose::Person {
            systemd.log_in();
        }
        systemd
    }

    /// Begins the person's own systemd, as `user@.service` does at a login.
    fn log_in(&mut self) {
        let (uid, gid) = self.person;
        for folder in [self.folder.clone(), self.runtime(), self.folder.join("user")] {
            fs::create_dir_all(&folder).expect("root may make folders there");
            chown(&folder, Some(uid), Some(gid)).expect("root may give folders away");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("mode");
        }
        let unit = format!(
            "[Service]\nType=notify\nUser={uid}\nGroup={gid}\nDelegate=yes\nKillMode=mixed\n\
             Environment=XDG_RUNTIME_DIR={} SYSTEMD_UNIT_PATH={}:/usr/lib/systemd/user\n\
             ExecStart=/lib/systemd/systemd --user --unit=basic.target\n",
            self.runtime().display(),
            self.folder.join("user").display(),
        );
        self.install("person.service", &unit);
        self.systemctl(&["start", "person"]).ok();
        self.whose = Whose::Person;
    }

    fn runtime(&self) -> PathBuf {
        self.folder.join("runtime")
    }

    pub(super) const fn whose(&self) -> Whose {
        self.whose
    }

    /// Puts a unit in its place and makes it known.
    pub(super) fn install(&self, name: &str, text: &str) {
        let units = match self.whose {
            Whose::Machine => "system",
            Whose::Person => "user",
        };
        fs::write(self.folder.join(units).join(name), text).expect("root may write there");
        self.systemctl(&["daemon-reload"]).ok();
    }

    /// `systemctl`, as root or as the person.
    pub(super) fn systemctl(&self, args: &[&str]) -> Ran {
        let mut command = self.entering();
        match self.whose {
            Whose::Machine => command.arg("systemctl"),
            Whose::Person => {
                let (uid, gid) = self.person;
                command
                    .args([format!("--setuid={uid}"), format!("--setgid={gid}")])
                    .args(["systemctl", "--user"])
                    .env("XDG_RUNTIME_DIR", self.runtime())
            }
        };
        command.args(args);
        finish(command, b"", STEP)
    }

    /// What systemd knows of a unit.
    pub(super) fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit]).ok().trim().to_owned()
    }

    /// A program among the processes and files that it sees.
    pub(super) fn inside(&self, program: &str) -> Command {
        let mut command = self.entering();
        command.arg(program);
        command
    }

    fn entering(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--cgroup"]);
        command
    }

    /// From now on the fleet's command is run there.
    pub(super) fn enter(&self, fleet: &mut Fleet) {
        let script = format!(
            "#!/bin/sh\nexec nsenter --target {} --pid --mount --cgroup --wdns=\"$PWD\" {} \"$@\"\n",
            self.pid,
            fleet.program.display()
        );
        let path = self.folder.join("guildnet");
        fs::write(&path, script).expect("root may write there");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        fleet.program = path;
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Process 1 ends with unshare, and all others with process 1.
        let _gone = self.outside.kill();
        let _ended = self.outside.wait();
        let _left = fs::remove_dir_all(&self.folder);
    }
}

/// Where version 2 of control groups is mounted.
fn version_2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("proc");
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("control groups of version 2")[1].into()
}
