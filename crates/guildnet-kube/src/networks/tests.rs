//! Clusters as people have them, each by the objects that it holds.

use serde_json::{Value, json};

use super::*;
use crate::{
    fake::{Seen, pair, refusal},
    read::Read,
};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a Kubernetes object")
}

fn map(key: &str, text: &str) -> Read<k8s_openapi::api::core::v1::ConfigMap> {
    Read::Seen(object(json!({"metadata": {"name": "x"}, "data": {key: text}})))
}

fn nodes(list: &[(&str, &[&str])]) -> Read<Vec<k8s_openapi::api::core::v1::Node>> {
    let node = |(name, cidrs): &(&str, &[&str])| {
        object(json!({"metadata": {"name": name}, "spec": {"podCIDRs": cidrs, "podCIDR": cidrs.first()}}))
    };
    Read::Seen(list.iter().map(node).collect())
}

fn service_cidr(cidrs: &[&str]) -> Read<Vec<k8s_openapi::api::networking::v1::ServiceCIDR>> {
    Read::Seen(vec![object(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}))])
}

/// What kubeadm keeps of `kubeadm init --service-cidr S --pod-network-cidr P`.
fn kubeadm(services: &str, pods: &str) -> Objects {
    let config = format!(
        "apiServer:\n  certSANs:\n  - 127.0.0.1\napiVersion: kubeadm.k8s.io/v1beta4\nclusterName: kubernetes\n\
         kind: ClusterConfiguration\nkubernetesVersion: v1.34.1\nnetworking:\n  dnsDomain: cluster.local\n  \
         podSubnet: {pods}\n  serviceSubnet: {services}\nproxy: {{}}\n"
    );
    Objects { kubeadm: map("ClusterConfiguration", &config), ..Objects::default() }
}

fn calico_pool(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec})
}

fn cilium(entries: Value) -> Read<k8s_openapi::api::core::v1::ConfigMap> {
    Read::Seen(object(json!({"metadata": {"name": "cilium-config"}, "data": entries})))
}

fn cilium_node(name: &str, cidr: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ipam": {"podCIDRs": [cidr], "pools": {}}, "addresses": []}})
}

fn text(found: &ClusterNetworks) -> String {
    found.networks().expect("networks").to_string()
}

#[track_caller]
fn noted(found: &ClusterNetworks, part: &str) {
    assert!(found.notes.iter().any(|n| n.contains(part)), "{part:?} is not in {:?}", found.notes);
}

#[test]
fn kubeadm_with_calico() {
    let pools = vec![
        calico_pool("default-ipv4-ippool", json!({"cidr": "192.168.0.0/16", "blockSize": 26, "natOutgoing": true})),
        calico_pool("old", json!({"cidr": "172.30.0.0/16", "disabled": true})),
        calico_pool("public", json!({"cidr": "203.0.113.0/24", "allowedUses": ["LoadBalancer"]})),
    ];
    let objects = Objects {
        service_cidrs: service_cidr(&["10.96.0.0/12"]),
        nodes: nodes(&[("cp", &["192.168.0.0/24"]), ("w1", &["192.168.1.0/24"])]),
        calico_pools: Read::Seen(pools),
        ..kubeadm("10.96.0.0/12", "192.168.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/12,192.168.0.0/16");
    assert_eq!(
        found.summary(),
        "Services 10.96.0.0/12 (ServiceCIDR kubernetes); Pods 192.168.0.0/16 (Calico's IPPool default-ipv4-ippool)"
    );
    assert_eq!(found.notes, Vec::<String>::new());
}

#[test]
fn calico_that_gives_other_addresses_than_kubeadm_was_told() {
    let pools = vec![calico_pool("default-ipv4-ippool", json!({"cidr": "192.168.0.0/16"}))];
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"])]),
        calico_pools: Read::Seen(pools),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/12,192.168.0.0/16");
    noted(&found, "kubeadm-config names 10.244.0.0/16 for Pods, but they get addresses of 192.168.0.0/16");
}

#[test]
fn canal_serves_flannels_network_and_not_calicos_unused_pool() {
    let pools = vec![calico_pool("default-ipv4-ippool", json!({"cidr": "192.168.0.0/16"}))];
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"])]),
        flannel: map("net-conf.json", r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#),
        calico_pools: Read::Seen(pools),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/12,10.244.0.0/16");
    noted(&found, "192.168.0.0/16 (Calico's IPPool default-ipv4-ippool) is left out");
}

#[test]
fn kubeadm_with_ciliums_default_pool_is_narrowed_to_what_nodes_hold() {
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"]), ("w1", &["10.244.1.0/24"])]),
        cilium: cilium(json!({
            "ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.0.0.0/8", "cluster-pool-ipv4-mask-size": "24",
            "enable-ipv4": "true", "enable-ipv6": "false", "cluster-pool-ipv6-cidr": "fd00::/104",
        })),
        cilium_nodes: Read::Seen(vec![cilium_node("cp", "10.0.0.0/24"), cilium_node("w1", "10.0.1.0/24")]),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.0.0.0/23,10.96.0.0/12");
    assert_eq!(found.summary(), "Services 10.96.0.0/12 (kubeadm-config); Pods 10.0.0.0/23 (what Cilium gave 2 nodes)");
    noted(&found, "10.0.0.0/8 (cilium-config) shares addresses with the Service network 10.96.0.0/12: narrowed to");
    assert_eq!(found.ipv6, Vec::<String>::new(), "IPv6 is off");
}

#[test]
fn a_pool_of_ciliums_that_is_apart_is_taken_whole() {
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"])]),
        cilium: cilium(json!({"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "172.20.0.0/16 172.22.0.0/16"})),
        cilium_nodes: Read::Seen(vec![cilium_node("cp", "172.20.3.0/24")]),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/12,172.20.0.0/16,172.22.0.0/16");
    noted(
        &found,
        "kubeadm-config names 10.244.0.0/16 for Pods, but they get addresses of 172.20.0.0/16, 172.22.0.0/16",
    );
}

#[test]
fn ciliums_pool_over_the_services_without_nodes_is_told_and_kept() {
    let objects =
        Objects { cilium: cilium(json!({"cluster-pool-ipv4-cidr": "10.0.0.0/8"})), ..kubeadm("10.96.0.0/12", "") };
    let found = found(&objects);
    assert_eq!(text(&found), "10.0.0.0/8");
    noted(&found, "a Pod and a Service may have the same address");
}

#[test]
fn cilium_by_the_nodes_cidrs_is_served_by_kubeadms_wider_network() {
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"])]),
        cilium: cilium(json!({"ipam": "kubernetes"})),
        cilium_nodes: Read::Seen(vec![cilium_node("cp", "10.244.0.0/24")]),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    assert_eq!(text(&found(&objects)), "10.96.0.0/12,10.244.0.0/16");
}

#[test]
fn ciliums_many_pools_are_each_named() {
    let objects = Objects {
        cilium: cilium(json!({"ipam": "multi-pool"})),
        cilium_pools: Read::Seen(vec![
            json!({"metadata": {"name": "default"}, "spec": {"ipv4": {"cidrs": ["10.10.0.0/16"], "maskSize": 27}}}),
            json!({"metadata": {"name": "mars"}, "spec": {"ipv4": {"cidrs": [{"cidr": "10.20.0.0/16"}]}}}),
        ]),
        ..kubeadm("10.96.0.0/12", "")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.10.0.0/16,10.20.0.0/16,10.96.0.0/12");
    assert_eq!(found.pods[1].source, NetworkSource::CiliumPool("mars".into()));
}

#[test]
fn cilium_in_a_clouds_network_asks_for_the_networks() {
    let objects = Objects { cilium: cilium(json!({"ipam": "eni"})), ..kubeadm("10.100.0.0/16", "") };
    let found = found(&objects);
    assert_eq!(text(&found), "10.100.0.0/16");
    noted(&found, "ipam eni");
    noted(&found, "--routes");
}

#[test]
fn kubeadm_with_flannel() {
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.244.0.0/24"]), ("w1", &["10.244.1.0/24"])]),
        flannel: map(
            "net-conf.json",
            r#"{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}"#,
        ),
        ..kubeadm("10.96.0.0/12", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(found.summary(), "Services 10.96.0.0/12 (kubeadm-config); Pods 10.244.0.0/16 (kube-flannel-cfg)");
    assert_eq!(text(&found), "10.96.0.0/12,10.244.0.0/16");
}

#[test]
fn flannel_that_was_told_another_network_than_the_nodes_hold() {
    let objects = Objects {
        nodes: nodes(&[("cp", &["10.50.0.0/24"])]),
        flannel: map("net-conf.json", r#"{"Network": "10.244.0.0/16"}"#),
        ..kubeadm("10.96.0.0/12", "10.60.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.50.0.0/24,10.96.0.0/12");
    noted(&found, "kube-flannel-cfg names 10.244.0.0/16 for Pods, but nodes hold 10.50.0.0/24");
}

fn k3s_node(name: &str, arguments: &str, cidr: &str) -> k8s_openapi::api::core::v1::Node {
    object(json!({
        "metadata": {"name": name, "annotations": {
            "k3s.io/node-args": arguments, "k3s.io/node-env": "{}", "flannel.alpha.coreos.com/backend-type": "vxlan",
        }},
        "spec": {"podCIDRs": [cidr], "providerID": format!("k3s://{name}")},
    }))
}

#[test]
fn k3s_with_its_defaults() {
    let list = vec![
        k3s_node("s1", r#"["server","--disable","traefik"]"#, "10.42.0.0/24"),
        k3s_node("w1", r#"["agent"]"#, "10.42.1.0/24"),
    ];
    let objects =
        Objects { service_cidrs: service_cidr(&["10.43.0.0/16"]), nodes: Read::Seen(list), ..Objects::default() };
    let found = found(&objects);
    assert_eq!(text(&found), "10.42.0.0/16,10.43.0.0/16");
    assert_eq!(
        found.summary(),
        "Services 10.43.0.0/16 (ServiceCIDR kubernetes); Pods 10.42.0.0/16 (the default of k3s)"
    );
}

#[test]
fn k3s_that_was_told_its_networks() {
    let arguments = r#"["server","--cluster-cidr","10.52.0.0/16","--service-cidr=10.53.0.0/16"]"#;
    let list = vec![k3s_node("s1", arguments, "10.52.0.0/24")];
    let found = found(&Objects { nodes: Read::Seen(list), ..Objects::default() });
    assert_eq!(text(&found), "10.52.0.0/16,10.53.0.0/16");
    assert_eq!(found.pods[0].source, NetworkSource::ServerArguments("s1".into()));
}

#[test]
fn kind_is_kubeadm_with_nodes_that_hold_a_part() {
    let objects = Objects {
        service_cidrs: service_cidr(&["10.96.0.0/16"]),
        nodes: nodes(&[("kind-control-plane", &["10.244.0.0/24"]), ("kind-worker", &["10.244.1.0/24"])]),
        ..kubeadm("10.96.0.0/16", "10.244.0.0/16")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/16,10.244.0.0/16");
    assert_eq!(found.pods[0].source, NetworkSource::Kubeadm);
}

#[test]
fn nodes_that_nothing_wider_holds_are_joined_and_later_ones_are_warned_of() {
    let objects = Objects {
        service_cidrs: service_cidr(&["10.96.0.0/16"]),
        nodes: nodes(&[("n1", &["10.244.0.0/24"]), ("n2", &["10.244.1.0/24"]), ("n3", &[])]),
        ..Objects::default()
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/16,10.244.0.0/23");
    assert_eq!(found.pods[0].source.to_string(), "podCIDRs of 2 nodes");
    noted(&found, "nodes that come later need 'guildnet router ensure'");
}

#[test]
fn services_and_pods_that_are_neighbours_stay_apart() {
    let objects = kubeadm("10.96.0.0/16", "10.97.0.0/16");
    assert_eq!(text(&found(&objects)), "10.96.0.0/16,10.97.0.0/16");
}

#[test]
fn the_apis_word_on_services_stands_over_kubeadms() {
    let objects =
        Objects { service_cidrs: service_cidr(&["10.97.0.0/16"]), ..kubeadm("10.96.0.0/16", "10.244.0.0/16") };
    let found = found(&objects);
    assert_eq!(text(&found), "10.97.0.0/16,10.244.0.0/16");
    noted(&found, "kubeadm-config names 10.96.0.0/16 for Services, the API serves 10.97.0.0/16");
}

#[test]
fn of_a_dual_stack_cluster_the_ipv4_half_is_used_and_that_is_said() {
    let objects = Objects {
        service_cidrs: service_cidr(&["10.96.0.0/16", "fd00:10:96::/112"]),
        nodes: nodes(&[("n1", &["10.244.0.0/24", "fd00:10:244::/64"])]),
        ..kubeadm("10.96.0.0/16,fd00:10:96::/112", "10.244.0.0/16,fd00:10:244::/56")
    };
    let found = found(&objects);
    assert_eq!(text(&found), "10.96.0.0/16,10.244.0.0/16");
    noted(&found, "IPv6 is left out (fd00:10:96::/112, ");
}

#[test]
fn an_ipv6_only_cluster_is_told_what_it_lacks_and_why() {
    let objects = Objects {
        service_cidrs: service_cidr(&["fd00:10:96::/112"]),
        nodes: nodes(&[("n1", &["fd00:10:244::/64"])]),
        ..Objects::default()
    };
    let said = found(&objects).networks().expect_err("IPv6 only");
    assert_eq!(said.class(), Class::Precondition);
    assert!(said.to_string().contains("IPv6 only (fd00:10:96::/112, fd00:10:244::/64): GuildNet needs IPv4"), "{said}");
    assert!(said.hint().expect("a hint").contains("dual-stack"));
    // Where nothing names the Services, the API server's refusal tells the same.
    let refusal =
        "Service \"x\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv4\": not configured on this cluster";
    let objects = Objects { refusal: Read::Seen(refusal.into()), ..objects_without_services() };
    assert!(matches!(found(&objects).networks(), Err(NetworksUnknown::Ipv6Only { .. })));
}

fn objects_without_services() -> Objects {
    Objects { nodes: nodes(&[("n1", &["fd00:10:244::/64"])]), ..Objects::default() }
}

#[test]
fn an_account_that_may_read_nothing_is_told_to_give_the_networks() {
    fn no<T>() -> Read<T> {
        Read::Refused { why: "forbidden: User \"u\" cannot list resource".into() }
    }
    let objects = Objects {
        service_cidrs: no(),
        kubeadm: no(),
        nodes: no(),
        calico_pools: no(),
        cilium: no(),
        cilium_nodes: no(),
        cilium_pools: no(),
        flannel: no(),
        refusal: no(),
    };
    let said = found(&objects).networks().expect_err("nothing is known");
    assert_eq!(said.class(), Class::Credentials);
    assert!(said.to_string().contains("not readable with this kubeconfig: ServiceCIDRs, the nodes"), "{said}");
    assert!(said.hint().expect("a hint").contains("--routes"));
    // Services alone are not taken for the whole when what names the Pods' networks is hidden.
    let half = Objects { service_cidrs: service_cidr(&["10.96.0.0/16"]), ..objects };
    let said = found(&half).networks().expect_err("Pods are not known");
    assert!(said.to_string().contains("which Pod networks"), "{said}");
    assert!(said.hint().expect("a hint").contains("--routes"));
}

#[test]
fn a_cluster_that_names_nothing_is_told_apart_from_one_that_refuses() {
    let said = found(&Objects::default()).networks().expect_err("nothing");
    assert_eq!((said.class(), said.to_string().contains("not readable")), (Class::Usage, false));
}

#[test]
fn services_alone_are_served_and_the_gap_is_named() {
    let found = found(&Objects {
        service_cidrs: service_cidr(&["172.20.0.0/16"]),
        nodes: nodes(&[("n", &[])]),
        ..Objects::default()
    });
    assert_eq!(text(&found), "172.20.0.0/16");
    noted(&found, "its Pod networks were not found");
}

#[test]
fn a_network_that_cant_be_a_clusters_names_where_it_comes_from() {
    let objects = Objects {
        calico_pools: Read::Seen(vec![calico_pool("wide", json!({"cidr": "100.64.0.0/16"}))]),
        ..kubeadm("10.96.0.0/16", "")
    };
    let said = found(&objects).networks().expect_err("the tailnet's own");
    assert_eq!(said.class(), Class::Conflict);
    assert!(said.to_string().contains("Calico's IPPool wide"), "{said}");
}

fn list(items: &Value) -> (u16, String) {
    (200, json!({"metadata": {}, "items": items}).to_string())
}

#[tokio::test]
async fn the_apis_refusal_names_the_services_where_nothing_else_does() {
    let (server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /api/v1/nodes" => list(&json!([{"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24"]}}])),
        "POST /api/v1/namespaces/default/services" => refusal(
            422,
            "Service \"guildnet-network-probe\" is invalid: spec.clusterIPs: Invalid value: []string{\"192.0.2.1\"}: failed to \
             allocate IP 192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
        ),
        _ => refusal(404, "the server could not find the requested resource"),
    })
    .await;
    let found = api.discover_networks().await.expect("found");
    assert_eq!(text(&found), "10.96.0.0/12,10.244.0.0/24");
    assert_eq!(found.services[0].source, NetworkSource::Refusal);
    let writes: Vec<Seen> = server.seen().into_iter().filter(|s| s.method != "GET").collect();
    assert_eq!(writes.len(), 1);
    assert!(writes[0].target.contains("dryRun=All"), "{}", writes[0].target);
    assert_eq!(writes[0].json()["spec"]["clusterIP"], "192.0.2.1");
}

#[tokio::test]
async fn what_plugins_keep_is_read_in_the_version_that_is_there_and_nothing_is_written() {
    let (server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /apis/networking.k8s.io/v1/servicecidrs" => {
            list(&json!([{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}]))
        }
        "GET /api/v1/nodes" => list(&json!([])),
        "GET /apis/projectcalico.org/v3/ippools" => list(&json!([
            {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}, "spec": {"cidr": "10.7.0.0/16"}},
        ])),
        what if what.contains("cilium-config") => refusal(403, "forbidden"),
        _ => refusal(404, "not found"),
    })
    .await;
    let found = api.discover_networks().await.expect("found");
    assert_eq!(text(&found), "10.7.0.0/16,10.96.0.0/16");
    assert_eq!(found.pods[0].source, NetworkSource::CalicoPool("p".into()));
    noted(&found, "not readable with this kubeconfig: ConfigMap cilium-config");
    assert!(server.seen().iter().all(|s| s.method == "GET"));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_credential_is_an_error() {
    let (_server, api) = pair(|_| refusal(401, "Unauthorized")).await;
    assert_eq!(api.discover_networks().await.expect_err("refused").class(), Class::Credentials);
}
