//! A Headscale of one's own that gets another address, and one that is put back from a backup: the fleet comes back by
//! one command. Long: routers join anew.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    fleet::{CLUSTERS, Fleet, check, eventually, finish, pretty},
    keys::Address,
    managed::Own,
};

/// How long routers and connectors may take to come back.
const BACK: Duration = Duration::from_secs(120);

fn report(own: &Own, env: &[(&str, &str)]) -> Option<Value> {
    serde_json::from_str(&own.run_with(&["verify", "-o", "json"], env).out).ok()
}

fn passes(own: &Own, env: &[(&str, &str)]) {
    let mut last = None;
    eventually("verify passes", BACK, || {
        last = report(own, env);
        last.as_ref().is_some_and(|r| r["success"] == true)
    });
}

#[test]
fn it_is_followed_to_another_address_and_back_from_a_backup_by_up() {
    Own::with("managed-faults", (18134, 8448, 3483), |own| {
        let fleet = &own.fleet;
        fleet.lab.door("all", true).expect("the doors open");
        let person = fleet.lab.person_dir();
        let clusters = CLUSTERS.map(|id| format!("{id}={}", person.join(format!("{id}.kubeconfig")).display()));
        own.run(&["up", "--no-verify", "--cluster", &clusters[0]]).ok();
        // The backup is from before cluster b was there.
        let backup = own.run(&["headscale", "backup"]).ok().trim().to_owned();
        own.run(&["up", "--no-verify", "--cluster", &clusters[1]]).ok();
        passes(own, &[]);

        // This machine gets another address: named, then followed by one command, routers and connectors included.
        let address = Address::of(fleet);
        let (ip, listen) = (address.ip.clone(), format!("{}:{}", address.ip, own.port));
        let moved = [("GUILDNET_HEADSCALE_ADDRESS", ip.as_str()), ("GUILDNET_HEADSCALE_LISTEN", listen.as_str())];
        own.run_with(&["headscale", "status"], &moved).refused(1, &[&ip, "guildnet headscale up"]);
        own.run_with(&["up", "--no-verify"], &moved).ok();
        passes(own, &moved);
        for cluster in CLUSTERS {
            let set = fleet.kubectl(cluster, &["-n", "guildnet-system", "get", "daemonset", "-o", "yaml"]).ok();
            assert!(set.contains(&format!("https://{listen}")), "{set}");
            assert!(fleet.echo(cluster).ok().contains(&format!("cluster={cluster}\n")));
        }
        // And back, by the other command that does it; what was chosen last is kept, so it is said again.
        let here = [
            ("GUILDNET_HEADSCALE_ADDRESS", own.address().to_string()),
            ("GUILDNET_HEADSCALE_LISTEN", format!("{}:{}", own.address(), own.port)),
        ];
        let here = [(here[0].0, here[0].1.as_str()), (here[1].0, here[1].1.as_str())];
        own.run_with(&["headscale", "up"], &here).ok();
        passes(own, &here);
        drop(address);

        // The backup is put back as the docs say: what joined since is unknown to the server.
        own.run(&["headscale", "down"]).ok();
        let folder = fleet.home.join("headscale");
        for journal in ["db.sqlite-wal", "db.sqlite-shm"] {
            let _absent_after_a_clean_end = fs::remove_file(folder.join(journal));
        }
        unpack(fleet, &folder, &backup);
        own.run(&["headscale", "up"]).ok();
        let mut last = None;
        eventually("what is missing is named", BACK, || {
            last = report(own, &[]);
            last.as_ref().is_some_and(|r| check(r, "b", "namespace.present")["result"] == "fail")
        });
        let last = last.expect("a report");
        let hint = check(&last, "b", "namespace.present")["hint"].to_string();
        assert!(hint.contains("guildnet up"), "{}", pretty(&last));
        own.run(&["up", "--no-verify"]).ok();
        passes(own, &[]);
        for cluster in CLUSTERS {
            assert!(fleet.echo(cluster).ok().contains(&format!("cluster={cluster}\n")));
        }
        for ended in [&["down"][..], &["headscale", "down", "--purge"]] {
            own.run(ended).ok();
        }
        own.nothing_runs();
    });
    Fleet::up().passes_again();
}

/// As its owner.
fn unpack(fleet: &Fleet, folder: &Path, backup: &str) {
    let mut tar = fleet.as_person("tar");
    tar.args(["-xf", backup]).current_dir(folder);
    finish(tar, b"", Duration::from_secs(10)).ok();
}
