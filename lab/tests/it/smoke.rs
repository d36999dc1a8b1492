//! The fleet itself: before anything of the product is asked, its clusters answer.

use crate::fleet::{CLUSTERS, finish};

#[test]
fn every_cluster_answers_kubectl_from_its_node_and_has_a_ready_node() {
    let lab = guildnet_lab::Lab::attach().unwrap_or_else(|why| panic!("{why}"));
    for cluster in CLUSTERS {
        let mut kubectl = lab.kubectl(cluster);
        kubectl.args(["get", "nodes", "--no-headers"]);
        let said = finish(kubectl, b"", std::time::Duration::from_secs(30)).ok();
        let words: Vec<&str> = said.split_whitespace().take(2).collect();
        assert_eq!(words, [format!("{cluster}-node-1").as_str(), "Ready"], "{said}");
    }
}
