//! Client libraries: Debian's Python client, and client-go's informer through a restart of the Host App.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{person::Person, running::Running};
use crate::fleet::{Fleet, eventually};

const WATCH: &str = include_str!("watch.py");

#[test]
fn the_python_client_sees_what_happens_while_it_watches() {
    let person = Person::at("python");
    person.each(|cluster| {
        let mut python = person.command("/usr/bin/python3");
        let context = format!("guildnet-{cluster}");
        python.args(["-c", WATCH, &person.kubeconfig(), &context, &person.namespace, "c-9"]);
        let mut python = Running::start(python);
        python.until_line("listed");
        let names: Vec<String> = (0..10).map(|n| format!("c-{n}")).collect();
        for name in &names {
            person.kubectl(cluster, &["create", "configmap", name]).ok();
            python.until_line(&format!("ADDED {name}"));
        }
        person.kubectl(cluster, &["label", "configmap", "c-0", "seen=yes"]).ok();
        python.until_line("MODIFIED c-0");
        person.kubectl(cluster, &["delete", "configmap", "c-8", "c-9"]).ok();
        python.until_line("DELETED c-8");
        python.until_line("DELETED c-9");
        // By its own WebSockets.
        python.until_line(&format!("in {cluster}"));
        assert_eq!(python.end(), 0, "{}", python.said().join("\n"));
    });
}

/// How many objects are made at a time.
const BATCH: usize = 5;

/// The other side of the Host App: objects are made and removed by the administrator's kubectl on the node.
struct Author<'p> {
    fleet: &'p Fleet,
    cluster: &'static str,
    namespace: &'p str,
}

impl Author<'_> {
    fn run(&self, args: &[&str], input: &str) -> String {
        let mut kubectl = self.fleet.lab.kubectl(self.cluster);
        kubectl.args(["-n", self.namespace]).args(args);
        crate::fleet::finish(kubectl, input.as_bytes(), Duration::from_secs(60)).ok()
    }

    /// Makes a batch, or gives those that are there another value.
    fn write(&self, round: &str, n: &str) {
        let one = |k| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {round}-{k}}}\ndata: {{n: \"{n}\"}}\n---\n")
        };
        let all: String = (0..BATCH).map(one).collect();
        self.run(&["apply", "--server-side", "-f", "-"], &all);
    }

    fn remove(&self, names: &[&str]) {
        self.run(&[&["delete", "configmap"], names].concat(), "");
    }

    /// What is there now: name and resource version.
    fn there(&self) -> BTreeMap<String, String> {
        let list: Value = serde_json::from_str(&self.run(&["get", "configmaps", "-o", "json"], "")).expect("JSON");
        let text = |of: &Value| of.as_str().expect("text").to_owned();
        let items = list["items"].as_array().expect("a list").iter();
        items.map(|item| (text(&item["metadata"]["name"]), text(&item["metadata"]["resourceVersion"]))).collect()
    }
}

/// What an informer has told so far.
#[derive(Debug, Default)]
struct Told {
    there: BTreeMap<String, String>,
    added: BTreeMap<String, usize>,
    deleted: BTreeSet<String>,
}

impl Told {
    fn hear(&mut self, line: &Value) {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let (name, version) = (text("name"), text("version"));
        match line["event"].as_str() {
            Some("add") => {
                *self.added.entry(name.clone()).or_default() += 1;
                self.there.insert(name, version);
            }
            Some("update") => {
                let before = self.there.insert(name.clone(), version);
                assert!(before.is_some(), "an update of {name}, which was never added");
            }
            Some("delete") => {
                assert!(self.there.remove(&name).is_some(), "a delete of {name}, which was never added");
                self.deleted.insert(name);
            }
            _ => {}
        }
    }

    /// Hears until it knows all that is `wanted`, as it is.
    #[track_caller]
    fn hear_until(&mut self, informer: &mut Running, wanted: &BTreeMap<String, String>) {
        while self.there != *wanted {
            let line = informer.find("an event", |line| serde_json::from_str::<Value>(line).ok());
            self.hear(&line);
        }
    }
}

#[test]
fn a_client_go_informer_misses_nothing_while_the_host_app_restarts() {
    let person = Person::at("informer");
    let authors =
        crate::fleet::CLUSTERS.map(|cluster| Author { fleet: &person.fleet, cluster, namespace: &person.namespace });
    let mut informers = authors.each_ref().map(|author| {
        let mut command = person.command(person.fleet.lab.program("clients", "clients"));
        let context = format!("guildnet-{}", author.cluster);
        command.args(["informer", &person.kubeconfig(), &context, &person.namespace]);
        (Running::start(command), Told::default())
    });
    for (author, (informer, told)) in authors.iter().zip(&mut informers) {
        informer.find("the first list", |line| line.contains("\"synced\"").then_some(()));
        let first: Vec<Value> = informer.said().iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
        first.iter().for_each(|line| told.hear(line));
        author.write("before", "1");
        told.hear_until(informer, &author.there());
    }

    // From here on somebody writes all the time, until the restart is over.
    let over = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let over = &over;
        let writers = authors.each_ref().map(|author| {
            scope.spawn(move || {
                let mut round = 0;
                while !over.load(Ordering::Relaxed) {
                    author.write(&format!("meanwhile{round}"), "1");
                    round += 1;
                }
                round
            })
        });
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restart(&person.fleet, &authors)));
        over.store(true, Ordering::Relaxed);
        let rounds = writers.map(|writer| writer.join().expect("the API server takes writes"));
        restarted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        rounds
    });

    for ((author, (informer, told)), rounds) in authors.iter().zip(&mut informers).zip(rounds) {
        author.write("after", "1");
        author.remove(&["after-0"]);
        let there = author.there();
        told.hear_until(informer, &there);
        // Each that was ever made was told once, the deleted ones too; kube-root-ca.crt is the namespace's own.
        let mut made: BTreeSet<String> = BTreeSet::from(["kube-root-ca.crt".to_owned()]);
        let mut round = |name: &str| made.extend((0..BATCH).map(|k| format!("{name}-{k}")));
        ["before", "during", "after"].into_iter().for_each(&mut round);
        (0..rounds).for_each(|n| round(&format!("meanwhile{n}")));
        assert!(rounds > 1, "nothing was written meanwhile");
        assert_eq!(told.added.keys().cloned().collect::<BTreeSet<_>>(), made, "{}", author.cluster);
        assert!(told.added.values().all(|times| *times == 1), "{}: {:?}", author.cluster, told.added);
        let deleted = ["before-0", "before-1", "after-0"].map(str::to_owned);
        assert_eq!(told.deleted, BTreeSet::from(deleted), "{}", author.cluster);
        assert_eq!(there.len(), made.len() - 3);
        informer.terminate();
        assert_eq!(informer.end(), 0);
    }
}

/// Ends the Host App; objects are made, changed and removed while there is none; then it is started again.
fn restart(fleet: &Fleet, authors: &[Author<'_>]) {
    let pid = fleet.host_pid().to_string();
    assert!(Command::new("kill").arg(&pid).status().expect("kill runs").success());
    eventually("the Host App ends", Duration::from_secs(30), || !Path::new(&format!("/proc/{pid}/exe")).exists());
    for author in authors {
        author.write("during", "1");
        author.write("before", "2");
        author.remove(&["before-0", "before-1"]);
    }
    fleet.run(&["up", "--no-verify"]).ok();
}
