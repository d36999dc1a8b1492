//! Keys and what ends: identities rotated, clusters disconnected, removed and added again, routers that died, a Headscale
//! that was restored from a backup or has moved to another address. The other cluster never notices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use serde_json::Value;

use crate::{
    fleet::{CLUSTERS, Fleet, ROUTES, check, eventually, finish, pretty},
    host_app::give_to_person,
};

/// How long a fault may take to show, and its repair.
const SHOWS: Duration = Duration::from_secs(90);

/// A node of Headscale's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    id: u64,
    name: String,
    key: String,
    online: bool,
}

/// The nodes that bear the tag.
fn tagged(fleet: &Fleet, tag: &str) -> Vec<Listed> {
    let list: Value = serde_json::from_str(&fleet.headscale(&["nodes", "list", "-o", "json"]).ok()).expect("a list");
    let text = |node: &Value, name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let of = |node: &Value| Listed {
        id: node["id"].as_u64().unwrap_or_default(),
        name: text(node, "given_name"),
        key: text(node, "node_key"),
        online: node["online"] == true,
    };
    let bears = |node: &&Value| node["tags"].as_array().into_iter().flatten().any(|t| t == tag);
    list.as_array().map(|all| all.iter().filter(bears).map(of).collect()).unwrap_or_default()
}

/// Runs `act` while cluster b is dialled again and again; none of its dials may fail.
fn without_a_cut_of_b<T>(fleet: &Fleet, act: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (stop_tx, stop_rx) = std::sync::mpsc::channel::<()>();
        let other = scope.spawn(move || {
            let mut dials = 0;
            while stop_rx.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                fleet.echo("b").ok();
                dials += 1;
            }
            dials
        });
        let outcome = act();
        drop(stop_tx);
        assert!(other.join().expect("no dial of b failed") > 1);
        outcome
    })
}

/// The door of a open while `act` runs.
fn with_door_open<T>(fleet: &Fleet, act: impl FnOnce() -> T) -> T {
    fleet.lab.door("a", true).expect("the door opens");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    fleet.lab.door("a", false).expect("the door shuts");
    outcome.unwrap_or_else(|why| std::panic::resume_unwind(why))
}

fn keys_of_a(fleet: &Fleet) -> Vec<Value> {
    let said = fleet.run(&["headscale", "keys", "list", "a", "-o", "json"]).ok();
    let list: Value = serde_json::from_str(&said).expect("a list");
    list.as_array().expect("an array").clone()
}

fn namespaces(fleet: &Fleet) -> String {
    fleet.headscale(&["users", "list", "-o", "json"]).ok()
}

#[test]
fn an_identity_is_rotated_without_a_cut_of_the_other_cluster() {
    let fleet = Fleet::up();
    let online = |tag: &str| tagged(&fleet, tag).into_iter().find(|n| n.online).expect("one is connected");
    let (old, other, router) = (online("tag:gn-a-client"), online("tag:gn-b-client"), online("tag:gn-a-router"));
    let pid = fleet.host_pid();
    without_a_cut_of_b(&fleet, || fleet.run(&["headscale", "keys", "rotate", "a"]).ok());
    let clients = tagged(&fleet, "tag:gn-a-client");
    assert!(clients.iter().all(|n| n.key != old.key && n.id != old.id), "the old node is still listed: {clients:?}");
    assert!(clients.iter().any(|n| n.online), "{clients:?}");
    assert_eq!(online("tag:gn-b-client"), other);
    assert_eq!(online("tag:gn-a-router"), router);
    assert_eq!(fleet.host_pid(), pid, "the Host App was not restarted");
    fleet.passes_again();
    assert!(fleet.echo("a").ok().contains("cluster=a\n"));

    // The routers' key too, through the connector: the door is shut. And again, so that the first folder is used again.
    let held = |f: &Fleet| {
        let of = |k: &&Value| k["kind"] == "router" && k["owner"] == "here";
        keys_of_a(f).iter().find(of).expect("the router key is kept here").clone()
    };
    let before = held(&fleet);
    without_a_cut_of_b(&fleet, || fleet.run(&["headscale", "keys", "rotate", "a", "--router"]).ok());
    assert_ne!(held(&fleet)["id"], before["id"]);
    let ended = keys_of_a(&fleet).into_iter().find(|k| k["id"] == before["id"]).expect("still listed");
    assert_eq!(ended["state"], "ended", "{ended}");
    assert_eq!(online("tag:gn-a-router"), router, "a router that has joined is not restarted");
    fleet.passes_again();
    let folders = fs::read_dir(fleet.home.join("tsnet")).expect("it is there").count();
    assert_eq!(folders, CLUSTERS.len(), "one identity for each cluster");

    // Who watches the Host App saw both as its jobs.
    let (_, jobs) = fleet.api("GET", "/jobs", "");
    let rotated = |job: &&Value| job["kind"] == "keys_rotate" && job["cluster"] == "a" && job["state"] == "done";
    let last: Vec<&Value> = jobs.as_array().expect("a list").iter().filter(rotated).collect();
    assert!(last.len() >= 2 && last.iter().all(|job| !job["steps"].as_array().expect("steps").is_empty()), "{jobs}");
}

#[test]
fn the_command_does_a_clusters_work_alone_only_where_it_knows_more_and_never_beside_a_job() {
    let fleet = Fleet::up();
    let count = || fleet.api("GET", "/jobs", "").1.as_array().expect("a list").len();
    let before = count();
    fleet.run(&["router", "ensure", "a"]).ok();
    assert_eq!(count(), before + 1, "as a job");
    // A setting that the Host App does not have.
    fleet.run_with(&["router", "ensure", "a"], &[("TS_ROUTES", ROUTES)], b"").ok();
    assert_eq!(count(), before + 1, "not as a job");

    // A rotation takes seconds; by either way nothing else is done on its cluster meanwhile.
    let (status, job) = fleet.api("POST", "/clusters/a/keys/rotate", "{}");
    assert_eq!(status, 202, "{job}");
    let id = job["id"].as_str().expect("a name");
    for env in [[("TS_ROUTES", ROUTES)].as_slice(), &[]] {
        fleet.run_with(&["router", "ensure", "a"], env, b"").refused(6, &["cluster a", id]);
    }
    eventually("the job's end", SHOWS, || fleet.api("GET", &format!("/jobs/{id}"), "").1["state"] == "done");
    fleet.passes_again();
}

#[test]
fn a_new_api_key_is_kept_once_the_server_has_accepted_it() {
    let fleet = Fleet::up();
    let key = fs::read_to_string(fleet.lab.person_dir().join("headscale-api-key")).expect("the lab wrote it");
    let settings = |key: &str| fleet.api("PATCH", "/settings", &format!(r#"{{"headscale":{{"apiKey":"{key}"}}}}"#));
    let (status, refused) = settings("a-planted-key");
    assert_eq!((status, &refused["code"]), (424, &"credentials".into()), "{refused}");
    assert!(!refused.to_string().contains("a-planted-key"), "{refused}");
    fleet.run(&["headscale", "keys", "list", "a"]).ok();
    let (status, kept) = settings(key.trim());
    assert_eq!((status, &kept["headscale"]["hasApiKey"]), (200, &true.into()), "{kept}");
    assert!(!kept.to_string().contains(key.trim()), "{kept}");
    let (status, elsewhere) = fleet.api("PATCH", "/settings", r#"{"headscale":{"url":"https://192.0.2.1:8443"}}"#);
    assert_eq!((status, &elsewhere["code"]), (409, &"conflict".into()), "{elsewhere}");
    fleet.run(&["headscale", "keys", "list", "a"]).ok();
}

#[test]
fn a_rotation_without_a_host_app_works_alone() {
    let fleet = Fleet::up();
    let old = tagged(&fleet, "tag:gn-a-client").into_iter().find(|n| n.online).expect("connected");
    fleet.run(&["down"]).ok();
    fleet.run(&["headscale", "keys", "rotate", "a"]).ok();
    assert!(tagged(&fleet, "tag:gn-a-client").iter().all(|n| n.id != old.id));
    fleet.run(&["up", "--no-verify"]).ok();
    fleet.passes_again();
}

#[test]
fn a_connector_whose_node_has_expired_or_was_deleted_joins_again_by_itself() {
    let fleet = Fleet::up();
    for how in [["nodes", "expire"].as_slice(), &["nodes", "delete", "--force"]] {
        let online = || tagged(&fleet, "tag:gn-a-client").into_iter().find(|n| n.online);
        let old = online().expect("connected");
        without_a_cut_of_b(&fleet, || {
            fleet.headscale(&[how, &["-i", &old.id.to_string()]].concat()).ok();
            eventually(&format!("another node after {how:?}"), SHOWS, || online().is_some_and(|new| new.id != old.id));
        });
        let left = tagged(&fleet, "tag:gn-a-client");
        assert!(left.iter().all(|n| n.id != old.id && n.key != old.key), "the old node is still listed: {left:?}");
        fleet.passes_again();
    }
}

#[test]
fn keys_are_listed_with_their_ends_and_without_their_values() {
    let fleet = Fleet::up();
    let keys = keys_of_a(&fleet);
    assert!(keys.iter().any(|k| k["kind"] == "api" && k["daysLeft"].as_i64() > Some(1000)), "{keys:?}");
    assert!(keys.iter().any(|k| k["kind"] == "router" && k["cluster"] == "a" && k["reusable"] == true), "{keys:?}");
    let all =
        [&["headscale", "keys", "list"][..], &["headscale", "keys", "list", "-o", "wide"]].map(|a| fleet.run(a).ok());
    for text in all.iter().chain([&format!("{keys:?}")]) {
        assert!(!text.contains("hskey-"), "a key, or a part of one, is shown:\n{text}");
    }
    fleet.run(&["headscale", "keys", "list", "-o", "yaml"]).ok();
}

#[test]
fn a_disconnected_cluster_stays_so_over_a_restart_and_nothing_is_required_of_it() {
    let fleet = Fleet::up();
    fleet.run(&["cluster", "disconnect", "a"]).ok();
    let state = |f: &Fleet| {
        let status: Value = serde_json::from_str(&f.run(&["status", "-o", "json"]).out).expect("json");
        let a = status["clusters"].as_array().expect("clusters").iter().find(|c| c["id"] == "a").expect("a").clone();
        a["state"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(state(&fleet), "disconnected");
    fleet.echo("a").refused(5, &["disconnected on request", "guildnet cluster connect a"]);
    fleet.echo("b").ok();
    fleet.run(&["down"]).ok();
    fleet.run(&["up", "--no-verify"]).ok();
    assert_eq!(state(&fleet), "disconnected");
    let report = fleet.verify_until(SHOWS, |r| r["success"] == true);
    let a = report["clusters"].as_array().expect("clusters").iter().find(|c| c["id"] == "a").expect("a is named");
    assert_eq!(a["checks"].as_array().map(Vec::len), Some(0), "{}", pretty(&report));
    fleet.run(&["cluster", "connect", "a"]).ok();
    eventually("a answers again", SHOWS, || fleet.echo("a").code == 0);
    fleet.passes_again();
}

#[test]
fn removing_a_cluster_leaves_nothing_and_its_id_can_be_used_again() {
    let fleet = Fleet::up();
    // The door is shut: the router itself is the way to the cluster that it is removed from.
    let said = without_a_cut_of_b(&fleet, || {
        let ran = fleet.run(&["cluster", "remove", "a"]);
        let said = ran.err.clone();
        ran.ok();
        said
    });
    for what in [
        "removed: the router in the cluster",
        "removed: node ",
        "removed: its place in the policy",
        "left: the routers' identities",
    ] {
        assert!(said.contains(what), "it does not say {what:?}:\n{said}");
    }
    eventually("the namespace in the cluster is gone", Duration::from_secs(60), || {
        fleet.kubectl("a", &["get", "namespace", "guildnet-system"]).err.contains("NotFound")
    });
    for tag in ["tag:gn-a-client", "tag:gn-a-router"] {
        assert_eq!(tagged(&fleet, tag), [], "{tag}");
    }
    assert!(!namespaces(&fleet).contains("\"cluster-a\""));
    assert!(!fleet.headscale(&["policy", "get"]).ok().contains("gn-a-"));
    assert!(!fleet.headscale(&["preauthkeys", "list", "-o", "json"]).ok().contains("gn-a-"));
    assert!(!fleet.home.join("tsnet/cluster-a").exists() && !fleet.home.join("tsnet/cluster-a.2").exists());
    let list = fleet.run(&["cluster", "list", "-o", "json"]).ok();
    assert!(!list.contains("\"a\""), "{list}");
    fleet.run(&["cluster", "remove", "a"]).refused(3, &["no cluster a"]);

    fleet.set_up(&["--no-verify"]).ok();
    fleet.passes_again();
    assert!(fleet.echo("a").ok().contains("cluster=a\n"));
}

#[test]
fn a_kept_router_serves_the_cluster_that_is_added_again_from_its_file() {
    let fleet = Fleet::up();
    let routers = || tagged(&fleet, "tag:gn-a-router").into_iter().filter(|n| n.online).collect::<Vec<_>>();
    let before = routers();
    let own = tagged(&fleet, "tag:gn-a-client").into_iter().find(|n| n.online).expect("connected");
    let file = fleet.home.join("kept-a.json").display().to_string();
    let ran = fleet.run(&["cluster", "remove", "a", "--keep-router"]);
    assert!(ran.err.contains("left: its router"), "{}", ran.err);
    ran.ok();
    assert!(tagged(&fleet, "tag:gn-a-client").iter().all(|n| n.id != own.id), "its connector's node is gone");
    assert_eq!(routers(), before, "the router serves on");
    fleet.kubectl("a", &["-n", "guildnet-system", "get", "daemonset", "guildnet-router"]).ok();

    fleet.run(&["headscale", "namespace", "a", "--file", &file, "--routes", ROUTES]).ok();
    let kubeconfig = fleet.lab.person_dir().join("a.kubeconfig").display().to_string();
    fleet.run(&["cluster", "add", "a", "--kubeconfig", &kubeconfig, "--from", &file]).ok();
    assert_eq!(routers(), before);
    eventually("a answers again", SHOWS, || fleet.echo("a").code == 0);
    fleet.passes_again();
}

#[test]
fn a_router_removed_alone_leaves_the_cluster_known_and_comes_back_by_one_command() {
    let fleet = Fleet::up();
    fleet.run(&["router", "remove", "a"]).ok();
    assert_eq!(tagged(&fleet, "tag:gn-a-router"), []);
    assert!(tagged(&fleet, "tag:gn-a-client").iter().any(|n| n.online), "its connector stays");
    with_door_open(&fleet, || fleet.run(&["router", "ensure", "a"]).ok());
    fleet.passes_again();
}

#[test]
fn routes_of_a_dead_router_are_named_and_mended_by_router_ensure() {
    let fleet = Fleet::up();
    let old = tagged(&fleet, "tag:gn-a-router").into_iter().find(|n| n.online).expect("connected");
    // A node that lost its disk: its router joins as another one, and the first never comes back.
    let mut lost = fleet.lab.inside("a", "rm").expect("the node runs");
    lost.args(["-rf", "/var/lib/guildnet/router-a"]);
    finish(lost, b"", Duration::from_secs(10)).ok();
    fleet.kubectl("a", &["-n", "guildnet-system", "delete", "pod", "--all", "--grace-period=0", "--force"]).ok();
    eventually("a answers by the new router", SHOWS, || fleet.echo("a").code == 0);
    let report = fleet.verify_until(SHOWS, |r| check(r, "a", "routes.served")["result"] != "pass");
    let served = check(&report, "a", "routes.served");
    assert!(served["seen"].to_string().contains(&old.name), "{served}");
    assert!(served["hint"].to_string().contains("guildnet router ensure a"), "{served}");
    // Two minutes after it was seen last it is dead.
    eventually("the dead router is removed", Duration::from_secs(240), || {
        fleet.run(&["router", "ensure", "a"]).ok();
        tagged(&fleet, "tag:gn-a-router").iter().all(|n| n.id != old.id)
    });
    fleet.verify_until(SHOWS, |r| r["success"] == true && check(r, "a", "routes.served")["result"] == "pass");
}

/// Headscale's database, put back as it was.
struct Backup {
    data: PathBuf,
    copy: PathBuf,
}

impl Backup {
    /// Stops Headscale, copies its database, starts it again.
    fn take(fleet: &Fleet) -> Self {
        let data = fleet.lab.plan().instance.data_dir().join("headscale");
        let copy = data.join("backup");
        fleet.lab.stop_process("headscale").expect("it stops");
        let _first_time = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).expect("made");
        for file in Self::files(&data) {
            fs::copy(&file, copy.join(file.file_name().expect("a name"))).expect("copied");
        }
        fleet.lab.start_process("headscale").expect("it starts");
        Self { data, copy }
    }

    fn put_back(self, fleet: &Fleet) {
        fleet.lab.stop_process("headscale").expect("it stops");
        for file in Self::files(&self.data) {
            fs::remove_file(file).expect("removed");
        }
        for file in Self::files(&self.copy) {
            fs::copy(&file, self.data.join(file.file_name().expect("a name"))).expect("copied");
        }
        fs::remove_dir_all(&self.copy).expect("removed");
        fleet.lab.start_process("headscale").expect("it starts");
    }

    /// The database and its journals.
    fn files(dir: &Path) -> Vec<PathBuf> {
        let names = ["db.sqlite", "db.sqlite-wal", "db.sqlite-shm"];
        names.map(|name| dir.join(name)).into_iter().filter(|file| file.exists()).collect()
    }
}

#[test]
fn a_headscale_restored_from_an_old_backup_is_mended_by_up() {
    let fleet = Fleet::up();
    // The backup is from before cluster a was set up: its namespace, keys, nodes and policy are unknown afterwards.
    with_door_open(&fleet, || fleet.run(&["cluster", "remove", "a"]).ok());
    let backup = Backup::take(&fleet);
    fleet.set_up(&["--no-verify"]).ok();
    fleet.passes_again();
    backup.put_back(&fleet);
    let report = fleet.verify_until(SHOWS, |r| check(r, "a", "keys.valid")["result"] == "fail");
    for id in ["keys.valid", "namespace.present"] {
        assert!(check(&report, "a", id)["hint"].to_string().contains("guildnet up"), "{}", pretty(&report));
    }
    // One command, nothing named; the door is open, for without a router there is no other way to the routers.
    with_door_open(&fleet, || fleet.run(&["up", "--no-verify"]).ok());
    fleet.passes_again();
    for cluster in CLUSTERS {
        assert!(fleet.echo(cluster).ok().contains(&format!("cluster={cluster}\n")));
    }
}

/// Another address of this machine on the lab's bridge, until it is dropped.
pub(crate) struct Address {
    pub(crate) ip: String,
    bridge: String,
}

impl Address {
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let plan = fleet.lab.plan();
        let (ip, bridge) = (plan.spare_address().to_string(), plan.bridge_name());
        let mut add = Command::new("ip");
        add.args(["addr", "add", &format!("{ip}/32"), "dev", &bridge]);
        finish(add, b"", Duration::from_secs(5)).ok();
        Self { ip, bridge }
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let remove = format!("{}/32", self.ip);
        let _gone = Command::new("ip").args(["addr", "del", &remove, "dev", &self.bridge]).status();
    }
}

/// Headscale at a second address, as if its machine had another one.
struct SecondAddress {
    address: Address,
    relay: Child,
}

impl SecondAddress {
    fn of(fleet: &Fleet) -> Self {
        let address = Address::of(fleet);
        let listen = format!("TCP-LISTEN:8443,bind={},fork,reuseaddr", address.ip);
        let to = format!("TCP:{}:8443", fleet.lab.plan().host_address());
        let relay = Command::new("socat").args([&listen, &to]).spawn().expect("socat runs");
        Self { address, relay }
    }

    fn url(&self) -> String {
        format!("https://{}:8443", self.address.ip)
    }
}

impl Drop for SecondAddress {
    fn drop(&mut self) {
        let _ended = self.relay.kill().and_then(|()| self.relay.wait());
    }
}

#[test]
fn a_headscale_at_another_address_is_followed_by_one_command() {
    let fleet = Fleet::up();
    let clients = || tagged(&fleet, "tag:gn-a-client").into_iter().map(|n| n.key).collect::<Vec<_>>();
    let before = clients();
    let url = fs::read_to_string(fleet.lab.person_dir().join("headscale-url")).expect("the lab wrote it");
    let second = SecondAddress::of(&fleet);
    for door in CLUSTERS {
        fleet.lab.door(door, true).expect("the door opens");
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // Another server is not followed: nothing is changed, and no key is sent there.
        fleet.run(&["up", "--no-verify", "--headscale-url", "https://127.0.0.1:9"]).refused(5, &["127.0.0.1:9"]);
        fleet.run(&["up", "--no-verify", "--headscale-url", &second.url()]).ok();
        let list = fleet.run(&["cluster", "list", "-o", "json"]).ok();
        assert!(list.contains(&second.address.ip) && !list.contains(url.trim()), "{list}");
        for cluster in CLUSTERS {
            let set = fleet.kubectl(cluster, &["-n", "guildnet-system", "get", "daemonset", "-o", "yaml"]).ok();
            assert!(set.contains(&second.url()), "{set}");
        }
        fleet.passes_again();
        assert_eq!(clients(), before, "the connectors are the same nodes");
    }));
    // And back, which is the same command.
    fleet.run(&["up", "--no-verify", "--headscale-url", url.trim()]).ok();
    for door in CLUSTERS {
        fleet.lab.door(door, false).expect("the door shuts");
    }
    fleet.passes_again();
    outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
}

#[test]
fn an_api_key_near_its_end_is_warned_of() {
    let fleet = Fleet::up();
    let key = fleet.headscale(&["apikeys", "create", "--expiration", "24h"]).ok();
    let file = fleet.home.join("one-day-api-key");
    fs::write(&file, key.trim()).expect("written");
    give_to_person(&fleet, &file);
    fleet.set_up(&["--no-verify", "--headscale-api-key-file", &file.display().to_string()]).ok();
    let (_, report) = fleet.verify();
    fleet.set_up(&["--no-verify"]).ok();
    let api_key = check(&report, "", "headscale.api-key");
    assert_eq!(api_key["result"], "warn", "{api_key}");
    assert!(api_key["seen"].to_string().contains("ends in 2"), "{api_key}");
    assert!(api_key["hint"].to_string().contains("--headscale-api-key-file"), "{api_key}");
}
