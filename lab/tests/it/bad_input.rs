//! Wrong input against the real fleet: the cause and the next command are said, nothing is half-written, and the same
//! command works once the cause is gone. What needs no fleet is tested beside the command.

use std::{fs, net::TcpListener, process::Command, time::Duration};

use crate::{
    fleet::{Fleet, ROUTES, Ran, binary, finish, listing},
    host_app::give_to_person,
};

/// `guildnet up` of cluster a alone, with the lab's files unless `replace` says otherwise.
fn up_a(fleet: &Fleet, replace: &[(&str, &str)]) -> Ran {
    up_one(fleet, "a", replace, &["--no-verify"])
}

/// `guildnet up` of one cluster with the lab's files.
pub(crate) fn up_with(fleet: &Fleet, cluster: &str, more: &[&str]) -> Ran {
    up_one(fleet, cluster, &[], more)
}

fn up_one(fleet: &Fleet, cluster: &str, replace: &[(&str, &str)], more: &[&str]) -> Ran {
    let person = fleet.lab.person_dir();
    let file = |name: &str| person.join(name).display().to_string();
    let url = fs::read_to_string(person.join("headscale-url")).expect("the lab wrote it");
    let mut flags = vec![
        ("--cluster", format!("{cluster}={}", file(&format!("{cluster}.kubeconfig")))),
        ("--headscale-url", url.trim().to_owned()),
        ("--headscale-api-key-file", file("headscale-api-key")),
        ("--headscale-ca", file("headscale-ca.pem")),
        ("--routes", ROUTES.to_owned()),
    ];
    for (flag, value) in replace {
        for (name, old) in &mut flags {
            if name == flag {
                *old = (*value).to_owned();
            }
        }
    }
    let given: Vec<String> = flags.into_iter().map(|(flag, value)| format!("{flag}={value}")).collect();
    let args = ["up"].into_iter().chain(more.iter().copied()).chain(given.iter().map(String::as_str));
    fleet.run(&args.collect::<Vec<_>>())
}

/// A home with nothing in it; the door of a open while `test` runs.
pub(crate) fn with_bare_home(name: &str, port: u16, test: impl FnOnce(&Fleet)) {
    let fleet = Fleet::bare(name, port);
    fleet.lab.door("a", true).expect("the door opens");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&fleet)));
    let _stopped_or_never_started = fleet.run(&["down", "--purge"]);
    fleet.lab.door("a", false).expect("the door shuts");
    fs::remove_dir_all(&fleet.home).expect("the home is removed");
    if let Err(why) = outcome {
        std::panic::resume_unwind(why);
    }
}

#[test]
fn wrong_api_key() {
    with_bare_home("wrong-key", 18091, |fleet| {
        let file = fleet.home.join("wrong-key");
        fs::write(&file, "hskey-api-aaaaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
            .expect("written");
        give_to_person(fleet, &file);
        up_a(fleet, &[("--headscale-api-key-file", &file.display().to_string())])
            .refused(4, &["API key", "headscale apikeys create"]);
        up_a(fleet, &[]).ok();
    });
}

#[test]
fn headscale_that_is_not_there_or_not_trusted() {
    with_bare_home("no-headscale", 18092, |fleet| {
        up_a(fleet, &[("--headscale-url", "https://127.0.0.1:9")]).refused(5, &["https://127.0.0.1:9"]);
        // A valid authority that did not sign this server: the clusters' own.
        let kubeconfig = fs::read_to_string(fleet.lab.person_dir().join("a.kubeconfig")).expect("it is there");
        let data =
            kubeconfig.lines().find_map(|l| l.trim().strip_prefix("certificate-authority-data:")).expect("inline");
        let mut decode = Command::new("base64");
        decode.arg("-d");
        let pem = finish(decode, data.trim().as_bytes(), Duration::from_secs(5)).ok();
        let file = fleet.home.join("other-ca.pem");
        fs::write(&file, pem).expect("written");
        give_to_person(fleet, &file);
        up_a(fleet, &[("--headscale-ca", &file.display().to_string())]).refused(5, &["certificate", "--headscale-ca"]);
        up_a(fleet, &[]).ok();
    });
}

#[test]
fn preauth_key_expired_or_used() {
    with_bare_home("spent-key", 18093, |fleet| {
        // A namespace file whose client key was expired on the server: the device has no API key to mint another.
        let file = fleet.home.join("cluster-a.json");
        let path = file.display().to_string();
        let person = fleet.lab.person_dir();
        let api_key = person.join("headscale-api-key").display().to_string();
        let url = fs::read_to_string(person.join("headscale-url")).expect("it is there");
        let ca = person.join("headscale-ca.pem").display().to_string();
        let make = |to: &str| {
            fleet.run(&[
                "headscale",
                "namespace",
                "a",
                "--headscale-url",
                url.trim(),
                "--headscale-api-key-file",
                &api_key,
                "--headscale-ca",
                &ca,
                "--routes",
                ROUTES,
                "--file",
                to,
            ])
        };
        make(&path).ok();
        let all: serde_json::Value =
            serde_json::from_str(&fleet.headscale(&["preauthkeys", "list", "-o", "json"]).ok()).expect("json");
        let newest = all.as_array().expect("keys").iter().filter_map(|k| k["id"].as_u64()).max().expect("a key");
        fleet.headscale(&["preauthkeys", "expire", "-i", &newest.to_string()]).ok();
        let kubeconfig = person.join("a.kubeconfig").display().to_string();
        let add = ["cluster", "add", "a", "--kubeconfig", &kubeconfig, "--from", &path, "--headscale-ca", &ca];
        let ran = fleet.run(&add);
        ran.refused(4, &["key", "guildnet headscale namespace"]);
        assert!(!fleet.run(&["cluster", "list", "-o", "json"]).ok().contains("\"a\""), "nothing half-added");
        fs::remove_file(&file).expect("removed");
        make(&path).ok();
        fleet.run(&add).ok();
    });
}

#[test]
fn a_cluster_that_the_device_cannot_reach_is_added_from_its_file() {
    // Somebody who reaches the cluster has set its router up before.
    Fleet::up();
    with_bare_home("from-file", 18094, |fleet| {
        fleet.lab.door("a", false).expect("the door shuts");
        let person = fleet.lab.person_dir();
        let file = fleet.home.join("cluster-a.json").display().to_string();
        let url = fs::read_to_string(person.join("headscale-url")).expect("it is there");
        let (key, ca) = (
            person.join("headscale-api-key").display().to_string(),
            person.join("headscale-ca.pem").display().to_string(),
        );
        fleet
            .run(&[
                "headscale",
                "namespace",
                "a",
                "--headscale-url",
                url.trim(),
                "--headscale-api-key-file",
                &key,
                "--headscale-ca",
                &ca,
                "--routes",
                ROUTES,
                "--file",
                &file,
            ])
            .ok();
        let kubeconfig = person.join("a.kubeconfig").display().to_string();
        // No API key here, and no way to the API server but the tailnet.
        fleet.run(&["cluster", "add", "a", "--kubeconfig", &kubeconfig, "--from", &file]).ok();
        fleet.run(&["up", "--no-verify"]).ok();
        assert!(fleet.echo("a").ok().contains("cluster=a\n"));
        let (code, report) = fleet.verify();
        assert_eq!(code, 0, "{}", crate::fleet::pretty(&report));
    });
}

#[test]
fn full_disk_under_the_state_folder() {
    with_bare_home("full-disk", 18095, |fleet| {
        let home = fleet.home.display().to_string();
        let (uid, gid) = fleet.lab.person();
        let sized = format!("size=64k,mode=0700,uid={uid},gid={gid}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &sized, "tmpfs", &home]).status().expect("mount runs");
        assert!(mounted.success());
        let ran = up_a(fleet, &[]);
        let grown = Command::new("mount").args(["-o", "remount,size=64m", &home]).status().expect("mount runs");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert!(grown.success());
            ran.refused(1, &["no room on the disk", &home, "make room"]);
            up_a(fleet, &[]).ok();
            fleet.run(&["down"]).ok();
        }));
        let _never_started = fleet.run(&["down"]);
        assert!(Command::new("umount").arg(&home).status().expect("umount runs").success());
        if let Err(why) = outcome {
            std::panic::resume_unwind(why);
        }
    });
}

#[test]
fn port_taken() {
    with_bare_home("port-taken", 18096, |fleet| {
        let taken = TcpListener::bind(fleet.listen).expect("the port is free");
        up_a(fleet, &[]).refused(6, &["127.0.0.1:18096", "--listen"]);
        drop(taken);
        up_a(fleet, &[]).ok();
    });
}

#[test]
fn networks_of_one_cluster_that_overlap_or_have_host_bits_change_nothing() {
    with_bare_home("bad-routes", 18097, |fleet| {
        let before = listing(&fleet.home);
        up_a(fleet, &[("--routes", "10.96.0.1/16")]).refused(2, &["10.96.0.1/16", "10.96.0.0/16"]);
        up_a(fleet, &[("--routes", "10.96.0.0/12,10.96.0.0/16")]).refused(6, &["overlap"]);
        assert_eq!(listing(&fleet.home), before);
    });
}

#[test]
fn the_lab_says_that_it_needs_root() {
    let lab = binary().with_file_name("guildnet-lab");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(lab).arg("up");
    finish(command, b"", Duration::from_secs(10)).refused(8, &["root"]);
}
