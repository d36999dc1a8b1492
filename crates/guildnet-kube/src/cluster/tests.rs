//! What a cluster says about itself, asked over the wire.

use serde_json::json;

use super::*;
use crate::fake::{Seen, pair, refusal};

fn list(items: serde_json::Value) -> (u16, String) {
    (200, json!({"metadata": {}, "items": items}).to_string())
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

#[tokio::test]
async fn the_clusters_dns_is_found_by_name_else_by_label() {
    let service = |ip: &str, ports: serde_json::Value| json!({"metadata": {"name": "dns"}, "spec": {"clusterIP": ip, "ports": ports}});
    let both = json!([{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "metrics", "port": 9153},
        {"name": "dns-tcp", "protocol": "TCP", "port": 5353}]);
    let named = service("10.96.0.10", both);
    let (_server, api) = pair(move |_| (200, named.to_string())).await;
    assert_eq!(api.dns_address().await.expect("read").map(|t| t.to_string()).as_deref(), Some("10.96.0.10:5353"));

    for status in [404, 403] {
        let other = service("10.43.0.10", json!([{"name": "metrics", "port": 9153}]));
        let (server, api) = pair(move |request: &Seen| match request.what().as_str() {
            "GET /api/v1/namespaces/kube-system/services" => list(json!([other])),
            _ => refusal(status, "no"),
        })
        .await;
        assert_eq!(api.dns_address().await.expect("read").map(|t| t.to_string()).as_deref(), Some("10.43.0.10:53"));
        assert!(server.seen().last().expect("asked").target.contains("k8s-app%3Dkube-dns"));
    }
}

#[tokio::test]
async fn a_cluster_without_dns_has_none_and_one_that_does_not_say_is_an_error() {
    let (_server, api) = pair(|request: &Seen| match request.what().as_str() {
        "GET /api/v1/namespaces/kube-system/services" => list(json!([])),
        _ => refusal(404, "not found"),
    })
    .await;
    assert_eq!(api.dns_address().await, Ok(None));
    let (_server, api) = pair(|_| refusal(403, "no")).await;
    assert!(matches!(api.dns_address().await.expect_err("refused").cause, KubeCause::Forbidden { .. }));
}
