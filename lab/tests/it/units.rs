//! The units that `guildnet serve --systemd` prints, run by a systemd: begun, locked in, begun again, ended, and behind a
//! socket.

#[path = "units/systemd.rs"]
mod systemd;

use std::thread;

use self::systemd::{Systemd, Whose};
use crate::{
    clients::person::installed,
    fleet::{Fleet, STEP, eventually, finish},
    host_app::field,
};

#[test]
fn the_machines_systemd_runs_it() {
    let (fleet, systemd) = begun(Whose::Machine);
    let status = process(&systemd);
    let (uid, gid) = fleet.lab.person();
    assert_eq!(field(&status, "Uid"), [uid.to_string().as_str(); 4].join("\t"));
    assert_eq!(field(&status, "Gid"), [gid.to_string().as_str(); 4].join("\t"));
    for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapBnd", "0000000000000000")] {
        assert_eq!(field(&status, name), value, "{name}");
    }
    // It writes to its folder and nowhere else.
    let writes = |path: &str| {
        let pid = systemd.property("guildnet", "MainPID");
        let mut command = systemd.inside("nsenter");
        command.args(["--target", &pid, "--mount", "touch", path]);
        finish(command, b"", STEP)
    };
    writes("/var/lib/of-guildnet").refused(1, &["Read-only file system"]);
    writes(&fleet.home.join("of-guildnet").display().to_string()).ok();
    lives(&fleet, &systemd);
}

#[test]
fn a_systemd_of_the_persons_own_runs_it() {
    let (fleet, systemd) = begun(Whose::Person);
    let status = process(&systemd);
    for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapEff", "0000000000000000")] {
        assert_eq!(field(&status, name), value, "{name}");
    }
    lives(&fleet, &systemd);
}

/// The shared fleet, its Host App begun by a unit.
fn begun(whose: Whose) -> (Fleet, Systemd) {
    let mut fleet = Fleet::up();
    fleet.run(&["down"]).ok();
    fleet.program = installed(&fleet);
    let systemd = Systemd::boot(&fleet, whose);
    systemd.enter(&mut fleet);
    systemd.install("guildnet.service", &fleet.run(&["serve", whose.flag()]).ok());
    // It returns when the door is open.
    systemd.systemctl(&["start", "guildnet"]).ok();
    assert_eq!(fleet.api("GET", "/clusters", "").0, 200);
    fleet.passes_again();
    (fleet, systemd)
}

/// Begun again when it fails, ended for good by `guildnet down`, begun by the first connection to its socket.
fn lives(fleet: &Fleet, systemd: &Systemd) {
    let state = || systemd.property("guildnet", "ActiveState");
    let first = systemd.property("guildnet", "MainPID");
    systemd.systemctl(&["kill", "--signal=KILL", "guildnet"]).ok();
    eventually("another process", STEP, || state() == "active" && systemd.property("guildnet", "MainPID") != first);
    fleet.passes_again();

    fleet.run(&["down"]).ok();
    eventually("its end", STEP, || state() == "inactive");
    assert_eq!(systemd.property("guildnet", "Result"), "success");

    systemd.install("guildnet.socket", &fleet.run(&["serve", systemd.whose().flag(), "--socket"]).ok());
    systemd.systemctl(&["start", "guildnet.socket"]).ok();
    assert_eq!(state(), "inactive");
    assert_eq!(fleet.api("GET", "/clusters", "").0, 200);
    assert_eq!(state(), "active");
    thread::scope(|scope| {
        let restart = scope.spawn(|| systemd.systemctl(&["restart", "guildnet"]).ok());
        let mut asked = 0;
        while !restart.is_finished() || asked == 0 {
            assert_eq!(fleet.api("GET", "/clusters", "").0, 200, "request {asked} of a restart");
            asked += 1;
        }
    });
    fleet.passes_again();
    systemd.systemctl(&["stop", "guildnet.socket", "guildnet"]).ok();
}

/// What the kernel says of the unit's process.
fn process(systemd: &Systemd) -> String {
    let mut command = systemd.inside("cat");
    command.arg(format!("/proc/{}/status", systemd.property("guildnet", "MainPID")));
    finish(command, b"", STEP).ok()
}
