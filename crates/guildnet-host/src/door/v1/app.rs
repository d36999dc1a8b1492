//! The Host App itself.

use axum::{Json, body::Body, extract::State, http::StatusCode};
use serde::Deserialize;
use url::Url;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Sealed, required};
use crate::{
    SettingsShown, StatusReport,
    door::{problem::Problem, routes::Behind},
    settings::HeadscaleChange,
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(status)).routes(routes!(settings, change)).routes(routes!(reload))
}

/// What is set and kept for all clusters: nothing secret
#[utoipa::path(get, path = "/api/v1/settings", tag = "host", responses((status = OK, body = SettingsShown)))]
async fn settings(State(behind): State<Behind>) -> Result<Json<SettingsShown>, Problem> {
    Ok(Json(behind.api.settings().await?))
}

/// Settings to be changed; what is not given stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    /// The Headscale server.
    headscale: Option<ChangeHeadscale>,
}

/// What is to be kept of the Headscale server; what is not given stays, if it is the same server.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChangeHeadscale {
    /// Its address; the known one, if not given.
    #[schema(value_type = Option<String>)]
    url: Option<Url>,
    /// An API key. It is kept sealed, and never told.
    #[schema(value_type = Option<String>)]
    api_key: Option<Sealed>,
    /// Certificates (PEM) to trust for it.
    ca_pem: Option<String>,
}

/// Change what is kept of the Headscale server: a new API key, say
///
/// It must answer and accept the key before anything is kept.
#[utoipa::path(
    patch, path = "/api/v1/settings", tag = "host", request_body = Change,
    responses((status = OK, body = SettingsShown)),
)]
async fn change(State(behind): State<Behind>, body: Body) -> Result<Json<SettingsShown>, Problem> {
    let asked: Change = required(body).await?;
    if let Some(ChangeHeadscale { url, api_key, ca_pem }) = asked.headscale {
        let change = HeadscaleChange { url, api_key: api_key.map(Into::into), ca_pem };
        behind.api.change_headscale(change).await?;
    }
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
