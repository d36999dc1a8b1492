//! The routers inside the clusters.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use guildnet_model::{ClusterId, Networks};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{cluster_id, jobs, known, read};
use crate::{
    RouterReport, RouterRequest, Via,
    door::{problem::Problem, routes::Behind},
    jobs::Work,
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(router, ensure, remove)).routes(routes!(rotate))
}

/// A cluster's routers.
#[derive(Debug, Serialize, ToSchema)]
struct RouterShown {
    /// The cluster.
    #[schema(value_type = String)]
    cluster: ClusterId,
    /// Whether they are deployed.
    deployed: bool,
    /// Routers wanted: one for each node.
    desired: u32,
    /// Routers that are ready and as they are wanted now.
    ready: u32,
    /// The pods, by node.
    pods: Vec<RouterPod>,
}

/// A router's pod.
#[derive(Debug, Serialize, ToSchema)]
struct RouterPod {
    /// Its name.
    name: String,
    /// Its node, once it has one.
    node: Option<String>,
    /// `Pending`, `Running`, ..., `Terminating`.
    phase: String,
    /// Whether it has joined the tailnet.
    ready: bool,
    /// Why not, as far as Kubernetes says.
    reason: Option<String>,
    /// Restarts of its container.
    restarts: u32,
}

impl From<RouterReport> for RouterShown {
    fn from(report: RouterReport) -> Self {
        let (deployed, status) = (report.router.is_some(), report.router);
        let (desired, ready) = status.as_ref().map_or((0, 0), |s| (s.desired, s.ready));
        let pods = status.into_iter().flat_map(|s| s.pods).map(|pod| RouterPod {
            name: pod.name,
            node: pod.node,
            phase: pod.phase,
            ready: pod.ready,
            reason: pod.reason,
            restarts: pod.restarts,
        });
        Self { cluster: report.id, deployed, desired, ready, pods: pods.collect() }
    }
}

/// A cluster's routers, asked of its API server
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/router", tag = "routers",
    params(("id" = String, Path, description = "The cluster's id")), responses((status = OK, body = RouterShown)),
)]
async fn router(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<RouterShown>, Problem> {
    let id = cluster_id(&id)?;
    Ok(Json(behind.api.router(&id).await?.into()))
}

/// How routers are to be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ensure {
    /// The cluster's networks from now on; those that are recorded or found, if not given.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    routes: Option<Networks>,
}

/// Deploy the routers, or bring them up to date
#[utoipa::path(
    post, path = "/api/v1/clusters/{id}/router", tag = "routers", request_body = Option<Ensure>,
    params(("id" = String, Path, description = "The cluster's id")),
    responses(jobs::Answer),
)]
async fn ensure(
    State(behind): State<Behind>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = known(&behind, &id)?;
    let asked: Ensure = read(body).await?;
    jobs::work(&behind, &headers, Work::Router(request(id, asked.routes)))
}

/// Take the routers out
#[utoipa::path(
    delete, path = "/api/v1/clusters/{id}/router", tag = "routers",
    params(("id" = String, Path, description = "The cluster's id")),
    responses(jobs::Answer),
)]
async fn remove(State(behind): State<Behind>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let id = known(&behind, &id)?;
    jobs::work(&behind, &headers, Work::RouterRemove(request(id, None)))
}

/// What gets a new key.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rotate {
    /// Give the routers a new key too.
    #[serde(default)]
    router: bool,
}

/// Give the cluster's connector a new identity
///
/// No other cluster is touched, and the old identity is in use until the new one has joined.
#[utoipa::path(
    post, path = "/api/v1/clusters/{id}/keys/rotate", tag = "headscale", request_body = Option<Rotate>,
    params(("id" = String, Path, description = "The cluster's id")),
    responses(jobs::Answer),
)]
async fn rotate(
    State(behind): State<Behind>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = known(&behind, &id)?;
    let asked: Rotate = read(body).await?;
    jobs::work(&behind, &headers, Work::Rotate { id, router: asked.router })
}

fn request(id: ClusterId, routes: Option<Networks>) -> RouterRequest {
    RouterRequest { id, kubeconfig: None, from: None, routes, via: Via::Auto }
}
