//! `guildnet trust`, on real stores: NSS databases, as `certutil` (Debian: libnss3-tools) sees them.

use std::{os::unix::process::CommandExt, process::Command};

use crate::sandbox::{Ran, Sandbox};

/// Whom root runs the programs as: the one whom the sandbox's files belong to.
const NOBODY: u32 = 65534;

/// A program as the person runs it, whose own folder is the working one.
fn run(sandbox: &Sandbox, program: &str, args: &[&str]) -> Ran {
    let mut command = sandbox.prepared(Command::new(program));
    command.args(args).env("PATH", "/usr/local/bin:/usr/bin:/bin");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap_or_else(|why| panic!("{program}: {why}"));
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[track_caller]
fn ok(ran: Ran) -> String {
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran.out
}

fn guildnet(sandbox: &Sandbox, args: &[&str]) -> String {
    // A copy where nobody may run it: the build may lie in a folder that only root enters.
    let program = sandbox.path("guildnet");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_guildnet"), &program).expect("copied");
        sandbox.open_up(&program, 0o755);
    }
    ok(run(sandbox, &program.display().to_string(), args))
}

/// The names of a store that are GuildNet's.
fn listed(sandbox: &Sandbox, store: &str) -> Vec<String> {
    let all =
        ok(run(sandbox, "certutil", &["-L", "-d", &format!("sql:{}", sandbox.path("work").join(store).display())]));
    all.lines().filter(|line| line.starts_with("GuildNet host-ca")).map(str::to_owned).collect()
}

const CHROMIUM: &str = ".pki/nssdb";
const FIREFOX: &str = ".mozilla/firefox/x.default";

/// A person with a profile of Firefox, in which somebody else's certificate is trusted already.
fn person() -> Sandbox {
    let sandbox = Sandbox::new();
    let profile = sandbox.path("work").join(FIREFOX);
    ok(run(&sandbox, "mkdir", &["-p", &profile.display().to_string()]));
    let store = format!("sql:{}", profile.display());
    ok(run(&sandbox, "certutil", &["-N", "-d", &store, "--empty-password"]));
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/authority.pem");
    let other = sandbox.file("other.pem", &std::fs::read_to_string(other).expect("read"));
    ok(run(
        &sandbox,
        "certutil",
        &["-A", "-d", &store, "-t", "C,,", "-n", "GuildNet of somebody else", "-a", "-i", &other],
    ));
    sandbox
}

#[test]
fn browsers_trust_it_once_and_exactly_that_is_taken_away() {
    let sandbox = person();
    let told = guildnet(&sandbox, &["trust", "install", "-o", "json"]);
    assert_eq!(told.matches("\"changed\": true").count(), 2, "{told}");
    for store in [CHROMIUM, FIREFOX] {
        let listed = listed(&sandbox, store);
        assert!(listed.len() == 1 && listed[0].trim_end().ends_with("C,,"), "{store}: {listed:?}");
    }
    let again = guildnet(&sandbox, &["trust", "install", "-o", "json"]);
    assert_eq!(again.matches("\"changed\": false").count(), 2, "{again}");
    assert_eq!(listed(&sandbox, CHROMIUM).len(), 1, "twice is once");
    guildnet(&sandbox, &["trust", "remove"]);
    for store in [CHROMIUM, FIREFOX] {
        assert!(listed(&sandbox, store).is_empty(), "{store}");
    }
    let store = format!("sql:{}", sandbox.path("work").join(FIREFOX).display());
    ok(run(&sandbox, "certutil", &["-L", "-d", &store, "-n", "GuildNet of somebody else"]));
    assert!(!sandbox.path("home").join("trusted.json").exists());
    guildnet(&sandbox, &["trust", "remove"]);
}

#[test]
fn a_new_authority_takes_the_place_of_the_old_one() {
    let sandbox = person();
    guildnet(&sandbox, &["trust", "install"]);
    let old = listed(&sandbox, CHROMIUM);
    let program = sandbox.text("guildnet");
    let renewed = run(&sandbox, &program, &["certs", "regen", "--new-ca"]);
    assert!(renewed.code == 0 && renewed.err.contains("guildnet trust install"), "{renewed:#?}");
    guildnet(&sandbox, &["trust", "install"]);
    let new = listed(&sandbox, CHROMIUM);
    assert!(new.len() == 1 && new != old, "{new:?}");
    // Another certificate that bears the name is not ours to take away.
    let name = new[0].split("  ").next().expect("a name").trim().to_owned();
    let store = format!("sql:{}", sandbox.path("work").join(CHROMIUM).display());
    ok(run(&sandbox, "certutil", &["-D", "-d", &store, "-n", &name]));
    let other = sandbox.text("other.pem");
    ok(run(&sandbox, "certutil", &["-A", "-d", &store, "-t", "C,,", "-n", &name, "-a", "-i", &other]));
    guildnet(&sandbox, &["down", "--purge"]);
    assert_eq!(listed(&sandbox, CHROMIUM).len(), 1, "it stays");
    assert!(listed(&sandbox, FIREFOX).is_empty(), "ours does not");
}

#[test]
fn without_certutil_its_package_is_named() {
    let sandbox = Sandbox::new();
    guildnet(&sandbox, &["version"]);
    let mut command = sandbox.prepared(Command::new(sandbox.path("guildnet")));
    command.args(["trust", "install"]).env("PATH", "/nowhere");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(8) && said.contains("libnss3-tools"), "{said}");
}
