//! Checks of every link.

use axum::{Json, body::Body, extract::State};
use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::read;
use crate::{
    door::{problem::Problem, routes::Behind},
    verify::Report,
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(verify))
}

/// What is to be checked.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    /// Which clusters; all if empty.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub(crate) clusters: Vec<ClusterId>,
}

/// Run all checks and wait for the report
#[utoipa::path(post, path = "/api/v1/verify", tag = "verify", request_body = Option<Verify>, responses((status = OK, body = Report)))]
async fn verify(State(behind): State<Behind>, body: Body) -> Result<Json<Report>, Problem> {
    let asked: Verify = read(body).await?;
    Ok(Json(behind.api.verify(asked.clusters).await?))
}
