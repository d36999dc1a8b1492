//! A cluster that is read-only through the Host App: what kubectl is told, and that the other one is not.

use super::person::Person;
use crate::fleet::Fleet;

/// Cluster a is read-only until this ends.
struct ReadOnly<'f>(&'f Fleet);

impl<'f> ReadOnly<'f> {
    fn on(fleet: &'f Fleet) -> Self {
        let guard = Self(fleet);
        fleet.run(&["cluster", "set", "a", "--read-only", "on"]).ok();
        guard
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        self.0.run(&["cluster", "set", "a", "--read-only", "off"]);
    }
}

#[test]
fn a_read_only_cluster_is_read_and_not_changed_and_the_other_is_not_touched() {
    let person = Person::at("read-only");
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\n";
    let idle = person.each(|cluster| person.pod(cluster, "idle", false, "while true; do sleep 1; done"));
    person.each(|cluster| person.apply(cluster, &format!("{}{config}", idle[usize::from(cluster == "b")])));
    person.each(|cluster| {
        person.kubectl(cluster, &["wait", "--for=condition=Ready", "pod", "idle", "--timeout=50s"]).ok();
    });
    let pid = person.fleet.host_pid();

    let read_only = ReadOnly::on(&person.fleet);
    let words = ["read-only", "guildnet cluster set a --read-only off"];
    person.kubectl("a", &["delete", "configmap", "kept"]).refused(1, &words);
    person.kubectl("a", &["create", "configmap", "new"]).refused(1, &words);
    person.kubectl("a", &["label", "configmap", "kept", "x=y"]).refused(1, &words);
    person.kubectl_with("a", &["apply", "--server-side", "-f", "-"], config.as_bytes()).refused(1, &words);
    person.kubectl("a", &["exec", "idle", "--", "ls"]).refused(1, &words);
    person.kubectl("a", &["port-forward", "pod/idle", ":8080"]).refused(1, &words);
    person.kubectl("a", &["get", "configmap", "kept"]).ok();
    person.kubectl("a", &["logs", "idle"]).ok();
    assert_eq!(person.kubectl("a", &["auth", "can-i", "get", "pods"]).ok().trim(), "yes");
    // The other one meanwhile.
    person.kubectl("b", &["exec", "idle", "--", "ls"]).ok();
    person.kubectl("b", &["delete", "configmap", "kept"]).ok();

    drop(read_only);
    person.kubectl("a", &["exec", "idle", "--", "ls"]).ok();
    person.kubectl("a", &["delete", "configmap", "kept"]).ok();
    assert_eq!(person.fleet.host_pid(), pid, "the switch is followed by the Host App that runs");
}
