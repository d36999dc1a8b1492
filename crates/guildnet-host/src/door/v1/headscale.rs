//! The Headscale server's share: namespaces and keys.

use axum::{
    Json,
    extract::{Path, State},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::known;
use crate::{
    KeyInfo, NamespaceShown,
    door::{problem::Problem, routes::Behind},
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(namespaces)).routes(routes!(keys)).routes(routes!(keys_of))
}

/// The clusters' namespaces on the Headscale server, and what has joined by them
#[utoipa::path(get, path = "/api/v1/namespaces", tag = "headscale", responses((status = OK, body = [NamespaceShown])))]
async fn namespaces(State(behind): State<Behind>) -> Result<Json<Vec<NamespaceShown>>, Problem> {
    Ok(Json(behind.api.namespaces().await?))
}

/// The keys of all clusters and the API key, never their values
#[utoipa::path(get, path = "/api/v1/keys", tag = "headscale", responses((status = OK, body = [KeyInfo])))]
async fn keys(State(behind): State<Behind>) -> Result<Json<Vec<KeyInfo>>, Problem> {
    Ok(Json(behind.api.keys(&[]).await?))
}

/// The keys of one cluster, never their values
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/keys", tag = "headscale",
    params(("id" = String, Path, description = "The cluster's id")), responses((status = OK, body = [KeyInfo])),
)]
async fn keys_of(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<Vec<KeyInfo>>, Problem> {
    let id = known(&behind, &id)?;
    Ok(Json(behind.api.keys(&[id]).await?))
}
