//! Checks of every link, as jobs.

use axum::{body::Body, extract::State, http::HeaderMap, response::Response};
use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{jobs, read};
use crate::{
    door::{problem::Problem, routes::Behind},
    verify::Report,
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(verify, last))
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

/// Run all checks
///
/// The result of the job is a report. Runs stand among the jobs.
#[utoipa::path(
    post, path = "/api/v1/verify", tag = "verify", request_body = Option<Verify>,
    responses(jobs::Answer),
)]
async fn verify(State(behind): State<Behind>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let asked: Verify = read(body).await?;
    let job = behind.api.verify(asked.clusters)?;
    Ok(jobs::answer(&behind, &headers, &job))
}

/// The last report of all clusters or some, while it is kept
#[utoipa::path(get, path = "/api/v1/verify", tag = "verify", responses((status = OK, body = Report)))]
async fn last(State(behind): State<Behind>) -> Result<axum::Json<serde_json::Value>, Problem> {
    jobs::last_report(behind.api.jobs()).map(axum::Json)
}
