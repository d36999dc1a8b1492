//! The matrix of NAT kinds: a client host and a router's host, each behind a gateway of its own, and the path that the
//! connector finds. And the relays that stand beside Headscale's own.

use std::{
    fmt::Write,
    thread::sleep,
    time::{Duration, Instant},
};

use guildnet_lab::{Host, Nat, Talk};

use crate::{
    fleet::{ECHO, ROUTES, beside, eventually, finish},
    site::Site,
};

const KINDS: [(Nat, &str); 4] = [
    (Nat::None, "none"),
    (Nat::FullCone, "full-cone"),
    (Nat::PortRestricted, "port-restricted"),
    (Nat::Symmetric, "symmetric"),
];

/// How long the client stays after its dial until its path is looked at: several rounds of pings.
const STAY: &str = "9";

/// What must be: where one side's port for the other can't be known, the other side must let in what comes unasked.
fn expected(client: Nat, router: Nat) -> &'static str {
    match (client, router) {
        (Nat::Symmetric, Nat::Symmetric | Nat::PortRestricted) | (Nat::PortRestricted, Nat::Symmetric) => "relay",
        _ => "direct",
    }
}

/// A lab with relays, a router of cluster a on its node and a client host x.
fn site() -> Site {
    let site = Site::up(1);
    let up = site.lab(&["up", "--relays"]).output().expect("the command runs");
    assert!(up.status.success(), "{up:?}");
    site.router("a", 1);
    let lab = &site.device.fleet.lab;
    lab.host(&Host { name: "x".into(), link: None }, &Talk::start()).expect("a client host");
    site
}

#[test]
fn every_kind_of_nat_with_every_other() {
    let site = site();
    let lab = &site.device.fleet.lab;
    let key = site.key_file("a", "clientAuthKey").display().to_string();
    let mut table = format!("{:<16}", "client \\ router");
    KINDS.iter().for_each(|(_, name)| write!(table, " {name:<24}").expect("a string grows"));
    let mut rows = KINDS.map(|(_, name)| format!("{name:<16}"));
    let mut wrong = Vec::new();
    for (router, router_name) in KINDS {
        lab.set_nat("a", router).expect("the gateway obeys");
        // As after a move to another network: what it knew of its gateway is void.
        lab.stop_process("a/router").expect("it ends");
        lab.start_process("a/router").expect("it starts");
        eventually("the router is back", Duration::from_secs(60), || {
            let mut said = lab.tailscale("a/router").expect("it runs");
            said.args(["status", "--self", "--peers=false"]);
            finish(said, b"", Duration::from_secs(20)).code == 0
        });
        for ((client, client_name), row) in KINDS.into_iter().zip(&mut rows) {
            lab.set_nat("x", client).expect("the gateway obeys");
            let begin = Instant::now();
            let seen = path(&site, &key);
            let wanted = expected(client, router);
            eprintln!("client {client_name}, router {router_name}: {seen} ({:.0} s)", begin.elapsed().as_secs_f64());
            let mark = if seen == wanted { String::new() } else { format!(" (not {wanted})") };
            write!(row, " {:<24}", format!("{seen}{mark}")).expect("a string grows");
            if seen != wanted {
                wrong.push(format!("client {client_name}, router {router_name}: {seen}, not {wanted}"));
            }
        }
    }
    // The last of them were both symmetric; with nothing in the way but this the path would be direct.
    lab.set_nat("x", Nat::None).expect("the gateway obeys");
    lab.block_udp("x", true).expect("the gateway obeys");
    let blocked = path(&site, &key);
    lab.block_udp("x", false).expect("the gateway obeys");
    rows.iter().for_each(|row| write!(table, "\n{row}").expect("a string grows"));
    write!(table, "\nwithout UDP      {blocked}").expect("a string grows");
    if blocked != "relay" {
        wrong.push(format!("client without UDP: {blocked}, not relay"));
    }
    eprintln!("\n{table}");
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
}

/// The path that a fresh connector on the client host has to its router, some seconds after a dial that was answered.
#[track_caller]
fn path(site: &Site, key: &str) -> String {
    let lab = &site.device.fleet.lab;
    let person = lab.person_dir();
    let mut dial = lab.inside("x", beside("examples/dial")).expect("a host of the lab");
    dial.args([
        "--url",
        &lab.plan().headscale_url(),
        "--cluster",
        "a",
        "--routes",
        ROUTES,
        "--to",
        ECHO,
        "--stay",
        STAY,
    ])
    .args(["--key-file", key, "--name", "nat-client"])
    .arg("--ca")
    .arg(person.join("headscale-ca.pem"))
    .arg("--state")
    .arg(site.device.fleet.home.join("nat-client"));
    let said = finish(dial, b"GET / HTTP/1.0\r\nHost: echo\r\n\r\n", Duration::from_secs(60)).ok();
    assert!(said.contains("cluster=a\n"), "{said}");
    let last = said.lines().rev().find(|line| line.starts_with("peer gn-a-router-1 "));
    let path = last.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("path=")));
    path.unwrap_or_else(|| panic!("no path in\n{said}")).to_owned()
}

#[test]
fn a_relay_is_killed_frozen_or_cut_and_the_other_works() {
    let site = site();
    let lab = &site.device.fleet.lab;
    let ca = lab.person_dir().join("headscale-ca.pem");
    let answer = |index: usize| {
        let url = format!("https://{}:8443/", lab.plan().relays()[index].address);
        let mut get = lab.inside("x", lab.program("workload", "workload")).expect("a host of the lab");
        get.args(["get", &url]).env("SSL_CERT_FILE", &ca);
        finish(get, b"", Duration::from_secs(10))
    };
    let both = || [0, 1].into_iter().for_each(|index| drop(answer(index).ok()));
    both();
    for (fault, undo, word) in
        [("cut", "mend", "deadline exceeded"), ("freeze", "thaw", "deadline exceeded"), ("kill", "start", "refused")]
    {
        site.fault(&[fault, "derp-1"]);
        let said = answer(0);
        assert!(said.code != 0 && said.err.contains(word), "{fault}: {said:?}");
        answer(1).ok();
        site.fault(&[undo, "derp-1"]);
        // It listens a moment after it has started.
        eventually("it is back", Duration::from_secs(10), || answer(0).code == 0);
    }
    both();
    // The router sees three regions, and STUN on each.
    let mut seen = String::new();
    eventually("the router measures all relays", Duration::from_secs(30), || {
        let mut check = lab.tailscale("a/router").expect("it runs");
        check.arg("netcheck").env("SSL_CERT_FILE", &ca);
        seen = finish(check, b"", Duration::from_secs(30)).out;
        sleep(Duration::from_millis(200));
        ["derp-1", "derp-2", "lab"]
            .iter()
            .all(|region| seen.lines().any(|line| line.contains(&format!("- {region}: ")) && line.contains("s ")))
    });
    assert!(seen.contains("MappingVariesByDestIP: false"), "{seen}");
}
