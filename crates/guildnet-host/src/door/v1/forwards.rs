//! Forwards into clusters, and the clusters' proxies.

use std::{net::SocketAddrV4, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{cluster_id, lines, required};
use crate::{
    door::{problem::Problem, routes::Behind},
    forward::{ForwardSpec, ForwardStatus, Forwards, Lease, ProxiesStatus, Said},
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new()
        .routes(routes!(forwards, keep_forwards))
        .routes(routes!(lease_forwards))
        .routes(routes!(stop_forward))
        .routes(routes!(proxies))
}

/// Forwards that are wanted: all of them are made, or none.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskedForwards {
    /// Into which cluster.
    #[schema(value_type = String)]
    pub(crate) cluster: ClusterId,
    /// Which.
    #[schema(value_type = Vec<AskedForward>, min_items = 1)]
    pub(crate) forwards: Vec<ForwardSpec>,
}

/// A forward that is wanted.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape of ForwardSpec in the document")]
struct AskedForward {
    /// Where it is to listen: a port of the cluster's own loopback address (0 for a free one), or IP:PORT in 127.0.0.0/8, never
    /// 127.0.0.1.
    #[schema(example = "3000")]
    local: String,
    /// Where it leads in the cluster: HOST:PORT; a name is resolved there, for each connection.
    #[schema(example = "grafana.monitoring:80")]
    target: String,
}

impl AskedForwards {
    async fn read(body: Body) -> Result<Self, Problem> {
        let asked: Self = required(body).await?;
        if asked.forwards.is_empty() {
            let refused = Problem::new(StatusCode::BAD_REQUEST, "usage", "no forward is asked for");
            return Err(Problem { field: Some("forwards".to_owned()), ..refused });
        }
        Ok(asked)
    }
}

fn all(behind: &Behind) -> Result<Arc<Forwards>, Problem> {
    let none = || Problem::new(StatusCode::NOT_FOUND, "not_found", "this Host App has no forwards");
    behind.api.forwards().ok_or_else(none)
}

/// All forwards, by local address
#[utoipa::path(get, path = "/api/v1/forwards", tag = "forwards", responses((status = OK, body = [ForwardStatus])))]
async fn forwards(State(behind): State<Behind>) -> Result<Json<Vec<ForwardStatus>>, Problem> {
    Ok(Json(all(&behind)?.list()))
}

/// Make forwards that stay until they are stopped, over restarts too
#[utoipa::path(
    post, path = "/api/v1/forwards", tag = "forwards", request_body = AskedForwards,
    responses((status = CREATED, body = [ForwardStatus])),
)]
async fn keep_forwards(State(behind): State<Behind>, body: Body) -> Result<Response, Problem> {
    let AskedForwards { cluster, forwards } = AskedForwards::read(body).await?;
    let made = all(&behind)?.keep(&cluster, &forwards).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Make forwards that end with this request
///
/// The answer has a line of JSON for each thing that is said: first the forwards, then each connection that came to nothing.
/// It ends when all of the forwards were stopped; when the client goes, they are.
#[utoipa::path(
    post, path = "/api/v1/forwards/lease", tag = "forwards", request_body = AskedForwards,
    responses((status = OK, body = Said, content_type = "application/x-ndjson")),
)]
async fn lease_forwards(State(behind): State<Behind>, body: Body) -> Result<Response, Problem> {
    let AskedForwards { cluster, forwards } = AskedForwards::read(body).await?;
    let lease = all(&behind)?.lease(&cluster, &forwards).await?;
    Ok(lines(stream::unfold(lease, async |mut lease: Lease| Some((lease.next().await?, lease)))))
}

/// Stop a forward and its connections
#[utoipa::path(
    delete, path = "/api/v1/forwards/{id}", tag = "forwards", params(("id" = String, Path, description = "The forward's id")),
    responses((status = OK, description = "Stopped; what it had done", body = ForwardStatus)),
)]
async fn stop_forward(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ForwardStatus>, Problem> {
    let stopped = match id.parse::<SocketAddrV4>() {
        Ok(local) => all(&behind)?.stop(local).await?,
        Err(_) => None,
    };
    stopped.map(Json).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no forward {id}"))
            .with_hint("what there is: guildnet forward --list")
    })
}

/// The SOCKS5 and CONNECT proxies of a cluster
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/proxies", tag = "clusters",
    params(("id" = String, Path, description = "The cluster's id")),
    responses((status = OK, body = ProxiesStatus)),
)]
async fn proxies(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ProxiesStatus>, Problem> {
    Ok(Json(all(&behind)?.proxies(&cluster_id(&id)?)?))
}
