use serde_json::json;

use super::*;
use crate::fake::{Seen, pair, refusal};

fn list(items: serde_json::Value) -> (u16, String) {
    (200, json!({"metadata": {}, "items": items}).to_string())
}

fn nodes() -> (u16, String) {
    list(json!([
        {"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:1::/64"]}},
        {"metadata": {"name": "n2"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}},
        {"metadata": {"name": "n3"}, "spec": {}},
    ]))
}

#[tokio::test]
async fn networks_are_found_in_the_api_and_joined() {
    let (_server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /apis/networking.k8s.io/v1/servicecidrs" => {
            list(json!([{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/108"]}}]))
        }
        "GET /api/v1/nodes" => nodes(),
        _ => refusal(404, "not found"),
    })
    .await;
    let found = api.discover_networks().await.expect("found");
    assert_eq!(found.networks().expect("networks").to_string(), "10.96.0.0/16,10.244.0.0/23");
    assert_eq!(found.services[0].source.to_string(), "ServiceCIDR kubernetes");
    assert_eq!(found.pods[1].source, NetworkSource::Node("n2".into()));
}

#[tokio::test]
async fn a_server_without_service_cidrs_still_tells_its_pod_networks() {
    let (_server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /api/v1/nodes" => nodes(),
        _ => refusal(404, "the server could not find the requested resource"),
    })
    .await;
    let found = api.discover_networks().await.expect("found");
    assert!(found.services.is_empty());
    assert_eq!(found.networks().expect("networks").to_string(), "10.244.0.0/23");
}

#[tokio::test]
async fn a_cluster_that_names_no_network_is_told_from_one_that_refuses() {
    let (_server, api) = pair(|_| list(json!([]))).await;
    assert_eq!(api.discover_networks().await.expect("an answer").networks(), Err(NetworksError::Empty));
    let (_server, api) = pair(|_| refusal(403, "no")).await;
    assert!(matches!(api.discover_networks().await.expect_err("refused").cause, KubeCause::Forbidden { .. }));
}

#[tokio::test]
async fn the_api_servers_inner_address_is_the_kubernetes_service() {
    let (_server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /api/v1/namespaces/default/services/kubernetes" => {
            let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]});
            (200, json!({"metadata": {"name": "kubernetes"}, "spec": spec}).to_string())
        }
        _ => refusal(404, "not found"),
    })
    .await;
    assert_eq!(api.api_address().await.expect("an address").to_string(), "10.96.0.1:443");
}

#[tokio::test]
async fn a_headless_service_has_no_cluster_ip() {
    let (_server, api) =
        pair(|_| (200, json!({"metadata": {"name": "db"}, "spec": {"clusterIP": "None"}}).to_string())).await;
    let error = api.service_cluster_ip("default", "db").await.expect_err("none");
    assert_eq!(error.cause, KubeCause::NotFound { what: "the Service db has no cluster IP".into() });
}

#[tokio::test]
async fn only_the_class_marked_as_default_is_the_default() {
    let class = |name: &str, mark: &str| json!({"metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": mark}}});
    let (_server, api) = pair(move |_| list(json!([class("slow", "false"), class("fast", "true")]))).await;
    assert_eq!(api.default_storage_class().await.expect("an answer").as_deref(), Some("fast"));
}
