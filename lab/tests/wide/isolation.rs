//! The isolation matrix: every client against every cluster, past the client's own filters, as a table and asserted.
//!
//! The clients are those of the Host App, stopped meanwhile: the attempts are made with their very identities, by an
//! example of the connector's crate that judges nothing.

use std::{fmt::Write, os::unix::process::CommandExt, process::Command, time::Duration};

use guildnet_lab::{API_SERVICE, ECHO_PORT, LIGHT_POD};
use serde_json::Value;

use crate::{
    fleet::{ROUTES, beside, finish},
    light::Device,
};

/// What is tried of a cluster, and its letter in the table.
const TRIED: [(&str, char); 5] =
    [("router", 'R'), ("service", 'S'), ("pod", 'P'), ("service by site", 's'), ("pod by site", 'p')];

/// Which form of the networks leads into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Plain addresses: the server has `via` grants.
    Plain,
    /// 4via6 addresses.
    BySite,
}

impl Form {
    /// What a client gets an answer from in its own cluster.
    fn own(self) -> &'static str {
        match self {
            Self::Plain => "RSP..",
            Self::BySite => "R..sp",
        }
    }
}

/// And in any other: nothing.
const OTHER: &str = ".....";

/// Stops the Host App, makes all attempts, starts it again; the table, whose every cell is as expected.
#[track_caller]
pub(crate) fn holds(device: &Device, form: Form) -> String {
    let clusters = device.clusters();
    device.fleet.run(&["down"]).ok();
    let attempts = attempts(device, &clusters);
    device.fleet.run(&["up", "--no-verify"]).ok();

    let cell = |client: &str, cluster: &str| -> String {
        let seen = |what: &str| {
            let of = |a: &&Value| a["client"] == client && a["cluster"] == cluster && a["what"] == what;
            let found: Vec<&Value> = attempts.iter().filter(of).collect();
            let [attempt] = found[..] else { panic!("{client} tried {what} of {cluster} {} times", found.len()) };
            attempt["seen"].as_str().unwrap_or_default().to_owned()
        };
        let letter = |(what, letter): &(&str, char)| match seen(what).as_str() {
            "answered" => *letter,
            "silent" => '.',
            other => panic!("{client} against {what} of {cluster}: {other}"),
        };
        TRIED.iter().map(letter).collect()
    };
    let mut table = format!(
        "R the router's own address, S P a Service and a Pod at their plain addresses, s p at their 4via6 addresses, . silence\n\
         expected on the diagonal {}, anywhere else {OTHER}\n{:<8}",
        form.own(),
        "client",
    );
    let mut wrong = Vec::new();
    for cluster in &clusters {
        write!(table, " {cluster:<5}").expect("a string grows");
    }
    for client in &clusters {
        write!(table, "\n{client:<8}").expect("a string grows");
        for cluster in &clusters {
            let (seen, expected) = (cell(client, cluster), if client == cluster { form.own() } else { OTHER });
            write!(table, " {seen}").expect("a string grows");
            if seen != expected {
                wrong.push(format!("{client} against {cluster}: {seen}, not {expected}"));
            }
        }
    }
    table.push('\n');
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
    table
}

fn attempts(device: &Device, clusters: &[String]) -> Vec<Value> {
    let lab = &device.fleet.lab;
    let person = lab.person_dir();
    let client = |cluster: &String| {
        let site = device.member(cluster)["siteNumber"].as_u64().expect("a site number");
        format!("{cluster}:{site}:{}", device.fleet.home.join(format!("tsnet/cluster-{cluster}")).display())
    };
    let (uid, gid) = lab.person();
    let mut example = Command::new(beside("examples/isolation"));
    example
        .args(["--url", &lab.plan().headscale_url(), "--routes", ROUTES])
        .args(["--service", &format!("{API_SERVICE}:443"), "--pod", &format!("{LIGHT_POD}:{ECHO_PORT}")])
        .args(["--clients", &clusters.iter().map(client).collect::<Vec<_>>().join(",")])
        .arg("--ca")
        .arg(person.join("headscale-ca.pem"))
        // The folders are the person's: root would leave files of its own in them.
        .uid(uid)
        .gid(gid);
    let said = finish(example, b"", Duration::from_secs(300)).ok();
    serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}"))
}
