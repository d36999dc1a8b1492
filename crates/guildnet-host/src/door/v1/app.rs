//! The Host App itself.

use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    SettingsShown, StatusReport,
    door::{problem::Problem, routes::Behind},
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(settings)).routes(routes!(reload))
}

/// What is set and kept for all clusters: nothing secret
#[utoipa::path(get, path = "/api/v1/settings", tag = "host", responses((status = OK, body = SettingsShown)))]
async fn settings(State(behind): State<Behind>) -> Result<Json<SettingsShown>, Problem> {
    Ok(Json(behind.api.settings().await?))
}

/// The Host App and all clusters, as they are at this moment
#[utoipa::path(get, path = "/api/v1/status", tag = "host", responses((status = OK, body = StatusReport)))]
async fn status(State(behind): State<Behind>) -> Json<StatusReport> {
    Json(behind.api.status().await)
}

/// Read the store again
///
/// New clusters are connected, changed ones again, removed ones stopped; the others are not disturbed.
#[utoipa::path(post, path = "/api/v1/reload", tag = "host", responses((status = NO_CONTENT, description = "Done")))]
async fn reload(State(behind): State<Behind>) -> Result<StatusCode, Problem> {
    behind.api.reload().await?;
    Ok(StatusCode::NO_CONTENT)
}
