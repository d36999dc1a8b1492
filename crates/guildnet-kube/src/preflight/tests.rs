//! The judgement over a cluster's objects; nothing is asked.

use serde_json::{Value, json};

use super::*;
use crate::fake::{Seen, pair, refusal};

fn id() -> ClusterId {
    "a".parse().expect("an id")
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a Kubernetes object")
}

fn node(name: &str, system: &str, ready: &str, message: &str) -> Node {
    object(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/os": system}},
        "spec": {"podCIDR": "10.244.0.0/24"},
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "KubeletNotReady", "message": message}]},
    }))
}

fn namespace(labels: Value) -> Read<Namespace> {
    Read::Seen(object(json!({"metadata": {"name": "guildnet-system", "labels": labels}})))
}

fn good() -> Facts {
    Facts {
        version: "v1.34.4".into(),
        nodes: Read::Seen(vec![node("n1", "linux", "True", "")]),
        daemon_sets: Read::Seen(vec!["kube-proxy".into(), "calico-node".into()]),
        storage: Read::Seen(Some("local-path".into())),
        namespace: Read::Absent,
    }
}

#[track_caller]
fn finds(facts: &Facts, subject: Subject, verdict: Verdict, part: &str) -> Finding {
    let all = judge(facts, &id());
    let one = all.iter().find(|f| f.subject == subject).expect("each subject has a finding");
    assert_eq!(one.verdict, verdict, "{one:?}");
    assert!(one.seen.contains(part), "{part:?} is not in {one:?}");
    assert_eq!(one.hint.is_empty(), verdict == Verdict::Pass, "{one:?}");
    one.clone()
}

#[test]
fn a_good_cluster_has_nothing_but_passes() {
    assert!(judge(&good(), &id()).iter().all(|f| f.verdict == Verdict::Pass && f.hint.is_empty()));
}

#[test]
fn versions_below_the_oldest_fail_and_newer_ones_pass() {
    let of = |version: &str| Facts { version: version.into(), ..good() };
    finds(&of("v1.24.17"), Subject::Version, Verdict::Fail, "older than 1.25");
    finds(&of("v1.25.0-eks-1"), Subject::Version, Verdict::Pass, "v1.25.0-eks-1");
    finds(&of("v1.30.4+k3s1"), Subject::Version, Verdict::Pass, "v1.30.4+k3s1");
    finds(&of("v1.40.0"), Subject::Version, Verdict::Pass, "tested: 1.34");
    finds(&of("dev"), Subject::Version, Verdict::Warn, "not understood");
}

#[test]
fn the_network_plugin_is_recognised_by_what_it_brings() {
    let with = |set: &str| Facts { daemon_sets: Read::Seen(vec![set.into()]), ..good() };
    for (set, name) in
        [("calico-node", "Calico"), ("cilium", "Cilium"), ("kube-flannel-ds", "flannel"), ("kindnet", "kindnet")]
    {
        finds(&with(set), Subject::Network, Verdict::Pass, name);
    }
    let mut k3s = with("svclb-traefik");
    let annotations = json!({"flannel.alpha.coreos.com/backend-type": "vxlan"});
    k3s.nodes = Read::Seen(vec![object(json!({"metadata": {"name": "n", "annotations": annotations}}))]);
    finds(&k3s, Subject::Network, Verdict::Pass, "flannel");
    finds(&with("mine"), Subject::Network, Verdict::Pass, "not recognised; its nodes have podCIDRs");
    let unknown = Facts { nodes: Read::Seen(vec![object(json!({"metadata": {"name": "n"}}))]), ..with("mine") };
    finds(&unknown, Subject::Network, Verdict::Warn, "not recognised");
}

#[test]
fn no_node_that_a_router_could_run_on_fails() {
    let with = |nodes: Vec<Node>| Facts { nodes: Read::Seen(nodes), ..good() };
    finds(&with(vec![]), Subject::Nodes, Verdict::Fail, "it has no node");
    finds(&with(vec![node("w", "windows", "True", "")]), Subject::Nodes, Verdict::Fail, "no Linux node");
    let waits = node("n1", "linux", "False", "container runtime network not ready: cni plugin not initialized");
    finds(&with(vec![waits]), Subject::Nodes, Verdict::Fail, "n1 (container runtime network not ready");
    finds(&with(vec![object(json!({"metadata": {"name": "new"}}))]), Subject::Nodes, Verdict::Fail, "not reported yet");
}

#[test]
fn some_nodes_that_are_not_ready_are_a_warning_with_their_names() {
    let list = vec![
        node("n1", "linux", "True", ""),
        node("n2", "linux", "Unknown", "Kubelet stopped posting node status."),
        node("w1", "windows", "True", ""),
    ];
    let facts = Facts { nodes: Read::Seen(list), ..good() };
    finds(&facts, Subject::Nodes, Verdict::Warn, "1 of 2 Linux nodes ready; not ready: n2 (Kubelet stopped");
}

#[test]
fn the_routers_namespace_must_admit_privileged_pods() {
    let with = |labels: Value| Facts { namespace: namespace(labels), ..good() };
    let ours = |level: &str| json!({"app.kubernetes.io/managed-by": "guildnet", ENFORCE: level});
    finds(&with(ours("privileged")), Subject::Admission, Verdict::Pass, "admits privileged pods");
    let changed = finds(&with(ours("restricted")), Subject::Admission, Verdict::Warn, "restricted");
    assert_eq!(changed.hint, "guildnet router ensure a");
    finds(
        &with(json!({ENFORCE: "baseline"})),
        Subject::Admission,
        Verdict::Fail,
        "somebody else's and admits baseline",
    );
    finds(&with(json!({})), Subject::Admission, Verdict::Pass, "no Pod Security level");
}

#[test]
fn a_missing_default_storage_class_is_a_warning() {
    finds(&Facts { storage: Read::Seen(None), ..good() }, Subject::Storage, Verdict::Warn, "no default StorageClass");
}

#[tokio::test]
async fn an_account_that_may_read_little_gets_warnings_and_no_error() {
    let (server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /version" => (
            200,
            json!({"major": "1", "minor": "34", "gitVersion": "v1.34.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                "goVersion": "", "compiler": "", "platform": ""})
            .to_string(),
        ),
        "GET /api/v1/namespaces/guildnet-system" => refusal(404, "not found"),
        _ => refusal(403, "forbidden"),
    })
    .await;
    let facts = api.facts().await.expect("facts");
    finds(&facts, Subject::Version, Verdict::Pass, "v1.34.4");
    finds(&facts, Subject::Admission, Verdict::Pass, "is to be made");
    let nodes = finds(&facts, Subject::Nodes, Verdict::Warn, "the nodes can't be looked at");
    assert!(nodes.hint.contains("may read the nodes"), "{nodes:?}");
    assert!(server.seen().iter().all(|s| s.method == "GET"));
}
