//! What goes wrong by itself, and mends by itself: a router pod dies, UDP is blocked, the Host App is killed.

use std::time::Duration;

use crate::fleet::{CLUSTERS, ECHO, Fleet, check, eventually};

#[test]
fn a_killed_router_comes_back_by_itself_and_the_other_cluster_does_not_notice() {
    let fleet = Fleet::up();
    std::thread::scope(|scope| {
        let (stop_tx, stop_rx) = std::sync::mpsc::channel::<()>();
        let watched = &fleet;
        let other = scope.spawn(move || {
            let mut dials = 0;
            while stop_rx.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                watched.echo("b").ok();
                dials += 1;
            }
            dials
        });
        fleet.kubectl("a", &["-n", "guildnet-system", "delete", "pod", "--all", "--grace-period=0", "--force"]).ok();
        eventually("cluster a answers again", Duration::from_secs(90), || fleet.echo("a").code == 0);
        drop(stop_tx);
        assert!(other.join().expect("no dial of b failed") > 3);
    });
    fleet.passes_again();
}

#[test]
fn with_udp_blocked_the_relay_carries_and_then_the_path_is_direct_again() {
    let fleet = Fleet::up();
    let pid = fleet.host_pid();
    fleet.lab.block_udp("a", true).expect("the gateway blocks");
    let blocked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fleet.verify_until(Duration::from_secs(60), |r| check(r, "a", "connector.path")["result"] == "warn");
        let said = fleet.echo("a").ok();
        assert!(said.contains("cluster=a\n"), "{said}");
    }));
    fleet.lab.block_udp("a", false).expect("the gateway lets UDP through");
    if let Err(why) = blocked {
        std::panic::resume_unwind(why);
    }
    fleet.verify_until(Duration::from_secs(60), |r| check(r, "a", "connector.path")["result"] == "pass");
    assert_eq!(fleet.host_pid(), pid, "no restart was needed");
}

#[test]
fn a_host_app_that_was_killed_comes_back_as_the_same_nodes() {
    let fleet = Fleet::up();
    let nodes = || -> Vec<(u64, String)> {
        let list: serde_json::Value =
            serde_json::from_str(&fleet.headscale(&["nodes", "list", "-o", "json"]).ok()).expect("a list");
        let node = |n: &serde_json::Value| Some((n["id"].as_u64()?, n["node_key"].as_str()?.to_owned()));
        list.as_array().expect("an array").iter().filter_map(node).collect()
    };
    let before = nodes();
    let pid = fleet.host_pid().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().expect("kill runs").success());
    eventually("the process is gone", Duration::from_secs(10), || {
        !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
    });
    // The same command that set it up; the doors stay shut: nothing else needs to be reached.
    fleet.run(&["up", "--no-verify"]).ok();
    for cluster in CLUSTERS {
        eventually("the cluster answers", Duration::from_secs(30), || fleet.echo(cluster).code == 0);
    }
    assert_eq!(nodes(), before, "the same nodes with the same keys, and no new ones");
}

#[test]
fn a_dial_streams_both_ways_and_half_closes() {
    let fleet = Fleet::up();
    // 8 MiB down through the echo workload's byte server, after the command's input has ended.
    let mut request = vec![b'D'];
    request.extend(8_388_608_u64.to_be_bytes());
    let target = ECHO.replace(":80", ":9000");
    let ran = fleet.run_with(&["dial", "a", &target], &[], &request);
    assert_eq!(ran.ok().len(), 8_388_608);
}
