//! Ten clusters with equal networks at once: one Host App reaches all of them at the same moment, and none reaches another.

use std::time::Instant;

use crate::{
    fleet::{check, pretty},
    isolation::{self, Form},
    light::{Device, LightLab, resident},
};

/// How many.
const CLUSTERS: usize = 10;

#[track_caller]
fn ten_equal_clusters(headscale: &str, tailscale: &str, form: Form) {
    let lab = LightLab::up(CLUSTERS, headscale, tailscale);
    let device = Device::new();
    let clusters = device.clusters();
    assert_eq!(clusters.len(), CLUSTERS);
    let mut told = vec![format!("Headscale {headscale}, routers {tailscale}: {CLUSTERS} equal clusters")];
    let mut step =
        |what: &str, begin: Instant| told.push(format!("{what:<34} {:>6.1} s", begin.elapsed().as_secs_f64()));
    let begin = Instant::now();
    clusters.iter().for_each(|c| device.namespace(c));
    step("namespaces, keys, policy", begin);
    let begin = Instant::now();
    clusters.iter().for_each(|c| device.router(c));
    step("routers joined", begin);
    let begin = Instant::now();
    clusters.iter().for_each(|c| device.add(c));
    step("clusters added, one by one", begin);
    let begin = Instant::now();
    device.serve();
    step("Host App up with all", begin);
    let begin = Instant::now();
    device.all_answer_with_their_own_names();
    step("all echoes at the same moment", begin);

    let begin = Instant::now();
    let (code, report) = device.fleet.verify();
    step("verify", begin);
    assert_eq!((code, &report["success"]), (0, &true.into()), "{}", pretty(&report));
    let counts = ["passed", "warned", "failed", "skipped"].map(|word| format!("{} {word}", report[word]));
    for cluster in &clusters {
        for id in ["routes.approved", "routes.served", "kube.readyz", "kube.identity", "isolation"] {
            assert_eq!(check(&report, cluster, id)["result"], "pass", "{}", pretty(&report));
        }
    }
    version_is_judged(&report, form);

    let status = device.fleet.lab.status().expect("the lab's state");
    let of_cluster = |c: &guildnet_lab::Cluster| resident(c.processes.values().map(|p| p.pid));
    let memory: u64 = status.clusters.iter().map(of_cluster).sum();
    let host = resident([device.fleet.host_pid().cast_signed()]);

    let begin = Instant::now();
    let table = isolation::holds(&device, form);
    step("isolation matrix", begin);
    // The Host App is back: nothing of it was lost by stopping.
    device.all_answer_with_their_own_names();
    told.push(format!("{:<34} {:>6.1} s", "the lab itself", lab.took.as_secs_f64()));
    told.push(format!("memory: clusters and routers {memory} MiB, Host App {host} MiB"));
    told.push(format!("verify: {}", counts.join(", ")));
    eprintln!("\n{}\n\n{table}", told.join("\n"));
}

/// A server without `via` grants is warned of, and no other.
#[track_caller]
pub(crate) fn version_is_judged(report: &serde_json::Value, form: Form) {
    let version = check(report, "", "headscale.version");
    match form {
        Form::Plain => assert_eq!(version["result"], "pass", "{version}"),
        Form::BySite => {
            assert_eq!(version["result"], "warn", "{version}");
            let (seen, hint) = (version["seen"].to_string(), version["hint"].to_string());
            assert!(seen.contains("4via6") && hint.contains("upgrade Headscale to 0.29"), "{version}");
        }
    }
}

#[test]
fn ten_equal_clusters_by_via_on_0_29() {
    ten_equal_clusters("0.29.2", "1.98.10", Form::Plain);
}

#[test]
fn ten_equal_clusters_by_4via6_on_0_28() {
    ten_equal_clusters("0.28.0", "1.98.10", Form::BySite);
}

#[test]
fn ten_equal_clusters_by_4via6_on_0_27() {
    ten_equal_clusters("0.27.1", "1.98.10", Form::BySite);
}
