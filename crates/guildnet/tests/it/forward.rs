//! Forwards and proxies of a Host App whose clusters can't be dialled: what is told, kept and refused.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::sandbox::Sandbox;

/// A Host App in the foreground, ended with the test.
struct Serving(Child);

impl Serving {
    fn start(sandbox: &Sandbox) -> Self {
        let mut command = sandbox.prepared(Command::new(env!("CARGO_BIN_EXE_guildnet")));
        command.arg("serve").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the command starts");
        let said = BufReader::new(process.stderr.take().expect("piped"));
        let serving = Self(process);
        let mut lines = said.lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains("serving at"))), "it does not serve");
        // What it says later must not keep it waiting.
        std::thread::spawn(move || lines.for_each(drop));
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    let ran = sandbox.run(&[args, &["-o", "json"]].concat());
    assert_eq!(ran.code, 0, "{ran:#?}");
    serde_json::from_str(&ran.out).expect("JSON")
}

/// Connects, and reads until the other side closes.
fn closed(local: &str) -> bool {
    let mut stream = TcpStream::connect(local).expect("it listens");
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn without_a_host_app_it_is_said_how_to_start_one() {
    let sandbox = Sandbox::new();
    sandbox.clusters(&["a"]);
    for args in [&["forward", "a", "3000:x.y:80"][..], &["forward", "--list"], &["forward", "--stop-all"]] {
        sandbox.run(args).refused(5, &["none runs", "guildnet up"]);
    }
}

#[test]
fn what_is_no_forward_is_refused_before_anything_is_asked() {
    let sandbox = Sandbox::new();
    for (spec, why) in [
        ("3000:grafana:80", "the namespace is missing"),
        ("127.0.0.1:3000:x.y:80", "the Host App's own"),
        ("0.0.0.0:3000:x.y:80", "127.0.0.0/8"),
        ("3000", "where it leads is missing"),
    ] {
        sandbox.run(&["forward", "a", spec]).refused(2, &[why, "3000:grafana.monitoring:80"]);
    }
    for args in [&["forward"][..], &["forward", "a"], &["forward", "--list", "--stop-all"], &["forward", "--keep"]] {
        assert_eq!(sandbox.run(args).code, 2, "{args:?}");
    }
    assert_eq!(sandbox.run(&["cluster", "set", "a"]).code, 2, "nothing to set");
}

#[test]
fn forwards_are_made_listed_kept_and_stopped() {
    let sandbox = Sandbox::new();
    sandbox.clusters(&["a", "b"]);
    let serving = Serving::start(&sandbox);
    sandbox.run(&["forward", "x", "0:echo.default:80"]).refused(3, &["there is no cluster x"]);

    let made = sandbox.run(&["forward", "a", "0:echo.default:80", "0:10.96.0.1:443", "--keep"]);
    assert_eq!(made.code, 0, "{made:#?}");
    assert_eq!(made.out.lines().count(), 2, "{made:#?}");
    let list = json(&sandbox, &["forward", "--list"]);
    let locals: Vec<String> =
        list.as_array().expect("a list").iter().map(|f| f["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(locals.len(), 2);
    for local in &locals {
        assert!(made.out.contains(&format!("{local} -> ")) && local.starts_with("127.0.0."), "{made:#?}");
        assert!(closed(local), "its cluster can't be dialled");
    }
    let list = json(&sandbox, &["forward", "--list"]);
    assert!(list[0]["lastError"]["why"].as_str().expect("told").contains("kubeconfig can't be used"), "{list}");
    assert_eq!(json(&sandbox, &["forward", "--list", "b"]), Value::Array(vec![]));
    // The same port at the other cluster's own address.
    let port = locals[0].rsplit(':').next().expect("a port");
    let other = sandbox.run(&["forward", "b", &format!("{port}:echo.default:80"), "--keep"]);
    assert_eq!(other.code, 0, "{other:#?}");
    sandbox.run(&["forward", "a", &format!("{port}:other.default:80"), "--keep"]).refused(6, &["already"]);

    drop(serving);
    let _serving = Serving::start(&sandbox);
    assert_eq!(json(&sandbox, &["forward", "--list"]).as_array().map(Vec::len), Some(3), "they are back");
    sandbox.run(&["forward", "--stop", "127.0.0.2:9"]).refused(3, &["there is no forward"]);
    assert_eq!(sandbox.run(&["forward", "--stop", &locals[0], "--stop", &locals[1]]).code, 0);
    assert!(TcpStream::connect(&locals[0]).is_err(), "nobody listens");
    assert_eq!(sandbox.run(&["forward", "--stop-all"]).code, 0);
    assert_eq!(json(&sandbox, &["forward", "--list"]), Value::Array(vec![]));
}

#[test]
fn forwards_end_with_their_command() {
    let sandbox = Sandbox::new();
    sandbox.clusters(&["a"]);
    let _serving = Serving::start(&sandbox);
    let mut command = sandbox.prepared(Command::new(env!("CARGO_BIN_EXE_guildnet")));
    command.args(["forward", "a", "0:echo.default:80"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().expect("the command starts");
    let mut line = String::new();
    BufReader::new(running.stdout.take().expect("piped")).read_line(&mut line).expect("it says where");
    let local = line.split(' ').next().expect("a word").to_owned();
    assert!(closed(&local), "its cluster can't be dialled");
    let mut said = BufReader::new(running.stderr.take().expect("piped")).lines();
    assert!(said.any(|line| line.is_ok_and(|line| line.contains("kubeconfig can't be used"))));
    assert_eq!(json(&sandbox, &["forward", "--list"]).as_array().map(Vec::len), Some(1));
    running.kill().expect("ours");
    running.wait().expect("it ends");
    let begun = std::time::Instant::now();
    while json(&sandbox, &["forward", "--list"]) != Value::Array(vec![]) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "the forward outlives its command");
    }
}

#[test]
fn proxies_are_switched_and_their_password_is_told_by_one_command() {
    let sandbox = Sandbox::new();
    sandbox.clusters(&["a"]);
    sandbox.run(&["cluster", "proxies", "a"]).refused(3, &["never switched on", "--proxies on"]);
    sandbox
        .run(&["cluster", "set", "a", "--proxies", "on", "--socks-port", "5", "--http-port", "5"])
        .refused(2, &["can't both have port 5"]);
    // Ports that no other program has.
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.2:0").expect("a port");
        listener.local_addr().expect("an address").port().to_string()
    };
    let (socks, http) = (free(), free());
    let set = ["cluster", "set", "a", "--proxies", "on", "--socks-port", &socks, "--http-port", &http];
    let ran = sandbox.run(&set);
    assert!(ran.code == 0 && ran.err.contains("guildnet up"), "{ran:#?}");
    let access = json(&sandbox, &["cluster", "proxies", "a"]);
    let password = access["password"].as_str().expect("text").to_owned();
    assert_eq!(access["socks"], format!("127.0.0.2:{socks}"));

    let _serving = Serving::start(&sandbox);
    for address in [&access["socks"], &access["http"]] {
        TcpStream::connect(address.as_str().expect("text")).expect("it listens");
    }
    let shown = json(&sandbox, &["cluster", "show", "a"]);
    assert_eq!((&shown["socksProxy"], &shown["httpProxy"]), (&access["socks"], &access["http"]));
    for args in
        [&["cluster", "show", "a", "-o", "yaml"][..], &["status", "-o", "json"], &["cluster", "list", "-o", "wide"]]
    {
        let ran = sandbox.run(args);
        assert!(!ran.out.contains(&password) && !ran.err.contains(&password), "{args:?}");
    }
    let renewed = json(&sandbox, &["cluster", "proxies", "a", "--renew"]);
    assert_ne!(renewed["password"], access["password"]);
    let taken = std::net::TcpListener::bind("127.0.0.2:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    sandbox
        .run(&["cluster", "set", "a", "--http-port", &port])
        .refused(6, &["taken by another program", "--http-port"]);
    assert_eq!(sandbox.run(&["cluster", "set", "a", "--proxies", "off"]).code, 0);
    assert!(TcpStream::connect(access["socks"].as_str().expect("text")).is_err(), "off is off");
    assert!(json(&sandbox, &["cluster", "show", "a"])["socksProxy"].is_null());
}
