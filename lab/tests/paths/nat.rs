//! The matrix of NAT kinds: a client host and a router's host, each behind a gateway of its own, and the path that the
//! connector finds. And the relays that stand beside Headscale's own.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use guildnet_lab::{Host, Lab, Nat, Talk};

use crate::{
    fleet::{ECHO, ROUTES, beside, eventually, finish},
    site::{Site, within},
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
    lab.host(&Host::new("x"), &Talk::start()).expect("a client host");
    site
}

/// Who sees a host of the lab from where, and who gets in.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    from: Ipv4Addr,
    port_kept: bool,
    same_for_all: bool,
    strangers_get_in: bool,
}

/// Sends from a host to two peers on the internet, and has a third one answer.
fn seen_from_outside(site: &Site, namespace: &str) -> Seen {
    const PORT: u16 = 40_000;
    let internet = site.device.fleet.lab.plan().host_address();
    let socket = || {
        let socket = UdpSocket::bind((internet, 0)).expect("the bridge's address is ours");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    };
    let [one, other, stranger] = [socket(), socket(), socket()];
    let to = [&one, &other].map(|peer| peer.local_addr().expect("bound"));
    within(namespace, || {
        let own = UdpSocket::bind(("0.0.0.0", PORT)).expect("free");
        for to in &to {
            own.send_to(b"x", to).expect("sent");
        }
        let from: [SocketAddr; 2] = [&one, &other].map(|peer| peer.recv_from(&mut [0]).expect("it arrives").1);
        stranger.send_to(b"s", from[0]).expect("sent");
        one.send_to(b"o", from[0]).expect("sent");
        own.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let mut got = Vec::new();
        let mut byte = [0];
        while own.recv(&mut byte).is_ok() {
            got.push(byte[0]);
        }
        assert!(got.contains(&b'o'), "the peer's answer comes in");
        let std::net::IpAddr::V4(address) = from[0].ip() else { panic!("IPv4") };
        Seen {
            from: address,
            port_kept: from[0].port() == PORT,
            same_for_all: from[0] == from[1],
            strangers_get_in: got.contains(&b's'),
        }
    })
}

#[test]
fn every_kind_of_nat_is_what_it_is_called() {
    let site = site();
    let lab = &site.device.fleet.lab;
    let a = lab.plan().cluster("a").expect("a cluster");
    // The plan has grown since the lab came up.
    let host = Lab::attach().expect("it is up").plan().host("x").expect("a host").behind;
    // Back to the usual at the end, from the one that leaves most behind.
    let kinds = [Nat::Symmetric, Nat::FullCone, Nat::None, Nat::PortRestricted];
    for (name, namespace, outer, open) in
        [("x", &host.host_ns, host.outer, host.open), ("a", &a.node_ns, a.outer, a.open)]
    {
        for kind in kinds {
            lab.set_nat(name, kind).expect("the gateway obeys");
            let open = open.expect("an address of its own");
            let wanted = Seen {
                from: if kind == Nat::None { open } else { outer },
                port_kept: kind != Nat::Symmetric,
                same_for_all: kind != Nat::Symmetric,
                strangers_get_in: matches!(kind, Nat::None | Nat::FullCone),
            };
            assert_eq!(seen_from_outside(&site, namespace), wanted, "{name} behind {kind:?}");
        }
    }
    for kind in kinds {
        lab.set_nat("x", kind).expect("the gateway obeys");
        let home = seen_from_outside(&site, &host.host_ns).from;
        let elsewhere = lab.move_host("x").expect("it moves").behind;
        let outer = if kind == Nat::None { elsewhere.open.expect("an address of its own") } else { elsewhere.outer };
        assert_ne!(outer, home);
        assert_eq!(seen_from_outside(&site, &host.host_ns).from, outer, "moved, behind {kind:?}");
        lab.move_host("x").expect("it moves back");
        assert_eq!(seen_from_outside(&site, &host.host_ns).from, home, "moved back, behind {kind:?}");
    }
}

#[test]
fn every_kind_of_nat_with_every_other() {
    let site = site();
    let lab = &site.device.fleet.lab;
    let key = site.device.key_file("a", "clientAuthKey").display().to_string();
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
    let mut dial = lab.inside("x", beside("examples/talk")).expect("a host of the lab");
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
