//! A cluster's API server for the door's page: `/api/v1/clusters/{id}/kube/...`. What is passed on is the proxy's to say; it is
//! Kubernetes' own API, and so is not in the document.

use axum::{Router, routing::any};

use crate::door::routes::{Behind, kube};

pub(super) fn routes() -> Router<Behind> {
    let path = "/api/v1/clusters/{id}/kube";
    Router::new()
        .route(path, any(kube))
        .route(&format!("{path}/"), any(kube))
        .route(&format!("{path}/{{*below}}"), any(kube))
}
