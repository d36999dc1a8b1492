//! What a roll-out is judged to be, from observed pods, events and logs.

use guildnet_model::{Class, Explain as _};
use serde_json::{Value, json};

use super::*;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a Kubernetes object")
}

fn set(desired: i32, updated: i32, ready: i32) -> DaemonSet {
    from(json!({
        "metadata": {"name": "guildnet-router", "uid": "ds", "generation": 2, "labels": {"guildnet.dev/cluster": "a"}},
        "status": {"observedGeneration": 2, "desiredNumberScheduled": desired, "currentNumberScheduled": desired,
                   "updatedNumberScheduled": updated, "numberReady": ready, "numberMisscheduled": 0},
    }))
}

fn pod(state: &Value) -> Pod {
    from(json!({
        "metadata": {"name": "router-x", "uid": "pod"},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"phase": "Pending", "containerStatuses": [
            {"name": "tailscale", "image": "", "imageID": "", "ready": false, "restartCount": 4, "started": state.get("running").is_some(), "state": state},
        ]},
    }))
}

fn waiting_for(reason: &str, message: &str) -> Pod {
    pod(&json!({"waiting": {"reason": reason, "message": message}}))
}

fn event(uid: &str, reason: &str, message: &str, at: &str) -> Event {
    from(json!({
        "metadata": {"creationTimestamp": at}, "involvedObject": {"uid": uid}, "type": "Warning",
        "reason": reason, "message": message, "lastTimestamp": at,
    }))
}

fn observed(pod: Pod) -> Observed {
    Observed { daemon_set: set(1, 1, 0), pods: vec![pod], ..Observed::default() }
}

fn trouble(observed: &Observed) -> Trouble {
    let found = observed.findings();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].trouble.clone()
}

/// The error after the trouble has lasted for a long time.
fn verdict(observed: &Observed) -> RouterError {
    let (mut patience, begun) = (Patience::default(), Instant::now());
    let found = observed.findings();
    patience
        .judge(begun, &found)
        .and_then(|()| patience.judge(begun + Duration::from_secs(120), &found))
        .expect_err("an end")
}

#[test]
fn ready_means_up_to_date_and_joined_on_every_node() {
    let ready = |set| Observed { daemon_set: set, ..Observed::default() }.status().is_ready();
    assert!(ready(set(2, 2, 2)));
    assert!(!ready(set(2, 2, 1)));
    assert!(!ready(set(2, 1, 2)), "one is still of the old generation");
    assert!(!ready(set(0, 0, 0)), "no node is no router");
}

#[test]
fn counts_of_an_older_generation_do_not_count() {
    let mut old = set(1, 1, 1);
    old.metadata.generation = Some(3);
    let observed = Observed { daemon_set: old, ..Observed::default() };
    assert_eq!((observed.status().ready, observed.is_counted()), (0, false));
}

#[test]
fn a_missing_device_is_a_precondition_and_ends_the_wait_at_once() {
    let mut observed = observed(waiting_for("ContainerCreating", ""));
    let message = "MountVolume.SetUp failed for volume \"tun\" : hostPath type check failed: /dev/net/tun is not a character device";
    observed.events = vec![event("pod", "FailedMount", message, "2026-01-01T00:00:00Z")];
    let error = Patience::default().judge(Instant::now(), &observed.findings()).expect_err("an end");
    assert_eq!(error.to_string(), "router on node node1: the node has no /dev/net/tun");
    assert_eq!(error.class(), Class::Precondition);
}

#[test]
fn an_image_that_cant_be_had_is_quoted() {
    let error = verdict(&observed(waiting_for("ImagePullBackOff", "Back-off pulling image \"x:1\"")));
    assert_eq!(error.to_string(), "router on node node1: the image can't be had: Back-off pulling image \"x:1\"");
}

#[test]
fn a_crash_loop_ends_with_the_last_lines_of_the_log() {
    let mut observed = observed(waiting_for("CrashLoopBackOff", "back-off 40s"));
    observed.logs.insert("router-x".into(), "one\ntwo\nthree\n\nfour\n".into());
    assert_eq!(
        trouble(&observed),
        Trouble::Crash { restarts: 4, log: ["two", "three", "four"].map(String::from).into() }
    );
    assert_eq!(verdict(&observed).class(), Class::Failed);
}

#[test]
fn the_log_tells_why_a_login_fails() {
    let with = |line: &str| {
        let mut observed = observed(pod(&json!({"running": {}})));
        observed.logs.insert("router-x".into(), format!("{line}\nanother line\n"));
        (trouble(&observed), verdict(&observed).class())
    };
    let says = |words: &str| with(&format!("2026/11/24 02:55:50 Received error: {words}"));
    let untrusted =
        "fetch control key: Get \"https://10.99.0.1:8443/key?v=138\": x509: certificate signed by unknown authority";
    assert_eq!(says(untrusted), (Trouble::Untrusted { why: untrusted.into() }, Class::Failed));
    // The form of a message, which tailscaled also logs, hides no cause before it.
    let form = format!("Received error: {untrusted}\nhealth: (\"The last login error was: %v\")");
    assert_eq!(with(&form).0, Trouble::Untrusted { why: untrusted.into() });
    let refused = "authkey expired";
    assert_eq!(says(refused), (Trouble::KeyRefused { why: refused.into() }, Class::Credentials));
    let away = "fetch control key: Get \"https://10.99.0.1:8443/key?v=138\": dial tcp 10.99.0.1:8443: connect: connection refused";
    assert_eq!(says(away), (Trouble::ServerUnreachable { why: away.into() }, Class::Unreachable));
    let keyless = "control: AuthURL is https://10.99.0.1:8443/register/hskey-authreq-kEMi";
    assert_eq!(with(keyless), (Trouble::KeyRefused { why: "it has none".into() }, Class::Credentials));
}

#[test]
fn a_login_that_succeeded_in_the_end_is_no_trouble() {
    let mut observed = observed(pod(&json!({"running": {}})));
    let log = "Received error: fetch control key: x\ncontrol: RegisterReq: got response; machineAuthorized=true\n";
    observed.logs.insert("router-x".into(), log.into());
    assert_eq!(observed.findings(), []);
}

#[test]
fn a_router_that_is_joining_is_waited_for() {
    let mut observed = observed(pod(&json!({"running": {}})));
    observed.logs.insert("router-x".into(), "boot: 2026/01/01 Running 'tailscale up'\n".into());
    assert_eq!(observed.findings(), []);
    let mut status = observed.status();
    status.pods[0].phase = "Running".into();
    assert_eq!(detail(&[], &status), "joining the tailnet on node node1");
}

#[test]
fn a_pod_without_room_says_so() {
    let mut pod = waiting_for("", "");
    pod.status = from(json!({"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: Insufficient memory"},
    ]}));
    assert_eq!(
        trouble(&observed(pod)),
        Trouble::Unschedulable { why: "0/1 nodes are available: Insufficient memory".into() }
    );
}

#[test]
fn pods_that_are_not_admitted_are_explained_by_the_controllers_event() {
    let mut observed = Observed { daemon_set: set(1, 0, 0), ..Observed::default() };
    observed.daemon_set.status.get_or_insert_default().current_number_scheduled = 0;
    observed.events = vec![event("ds", "FailedCreate", "violates PodSecurity \"restricted\"", "2026-01-01T00:00:00Z")];
    assert_eq!(trouble(&observed), Trouble::Denied { why: "violates PodSecurity \"restricted\"".into() });
}

#[test]
fn the_newest_warning_about_the_pod_counts() {
    let mut observed = observed(waiting_for("ContainerCreating", ""));
    observed.events = vec![
        event("pod", "FailedMount", "new", "2026-01-02T00:00:00Z"),
        event("pod", "FailedCreatePodSandBox", "old", "2026-01-01T00:00:00Z"),
        event("another pod", "FailedMount", "not ours", "2026-01-03T00:00:00Z"),
    ];
    assert_eq!(trouble(&observed), Trouble::Other { why: "FailedMount: new".into() });
}

#[test]
fn a_scheduling_that_failed_before_the_pod_had_its_node_is_over() {
    let mut observed = observed(waiting_for("ContainerCreating", ""));
    observed.events = vec![
        event("pod", "FailedMount", "now", "2026-01-01T00:00:00Z"),
        event("pod", "FailedScheduling", "before", "2026-01-02T00:00:00Z"),
    ];
    assert_eq!(trouble(&observed), Trouble::Other { why: "FailedMount: now".into() });
}

#[test]
fn events_of_newer_components_are_dated_by_their_series() {
    let old = event("pod", "FailedMount", "old", "2026-01-02T00:00:00Z");
    let mut new = event("pod", "FailedMount", "new", "2026-01-01T00:00:00Z");
    new.last_timestamp = None;
    new.series = Some(from(json!({"count": 2, "lastObservedTime": "2026-01-03T00:00:00.000000Z"})));
    let mut observed = observed(waiting_for("ContainerCreating", ""));
    observed.events = vec![new, old];
    assert_eq!(trouble(&observed), Trouble::Other { why: "FailedMount: new".into() });
}

#[test]
fn a_trouble_that_changes_is_given_its_time_again() {
    let (mut patience, begun) = (Patience::default(), Instant::now());
    let image = observed(waiting_for("ErrImagePull", "")).findings();
    let crash = observed(waiting_for("CrashLoopBackOff", "")).findings();
    let at = |seconds| begun + Duration::from_secs(seconds);
    patience.judge(at(0), &image).expect("patience");
    patience.judge(at(14), &image).expect("patience");
    patience.judge(at(16), &crash).expect("patience anew");
    patience.judge(at(31), &crash).expect_err("an end");
}

#[test]
fn pods_on_their_way_out_are_no_trouble() {
    let mut leaving = waiting_for("CrashLoopBackOff", "");
    leaving.metadata.deletion_timestamp = Some(from(json!("2026-01-01T00:00:00Z")));
    let observed = observed(leaving);
    assert_eq!(observed.findings(), []);
    assert_eq!(observed.status().pods[0].phase, "Terminating");
}
