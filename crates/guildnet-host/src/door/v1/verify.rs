//! Checks of every link, as jobs.

use axum::{body::Body, extract::State, http::Uri, response::Response};
use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{jobs, query, read};
use crate::{
    door::{problem::Problem, routes::Behind},
    jobs::Job,
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

/// How a job is waited for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Waiting {
    /// Answer when it has ended; it is cancelled if the client leaves.
    #[serde(default)]
    wait: bool,
}

/// Run all checks
///
/// The result of the job is a report. Runs stand among the jobs.
#[utoipa::path(
    post, path = "/api/v1/verify", tag = "verify", params(Waiting), request_body = Option<Verify>,
    responses(
        (status = ACCEPTED, body = Job, description = "Begun"),
        (status = OK, body = Job, description = "Ended, if it was waited for"),
    ),
)]
async fn verify(State(behind): State<Behind>, uri: Uri, body: Body) -> Result<Response, Problem> {
    let waiting: Waiting = query(&uri)?;
    let asked: Verify = read(body).await?;
    let job = behind.api.verify(asked.clusters)?;
    if waiting.wait { jobs::ended(&behind, &job.id).await } else { Ok(jobs::begun(&job)) }
}

/// The last report of all clusters or some, while it is kept
#[utoipa::path(get, path = "/api/v1/verify", tag = "verify", responses((status = OK, body = Report)))]
async fn last(State(behind): State<Behind>) -> Result<axum::Json<serde_json::Value>, Problem> {
    jobs::last_report(behind.api.jobs()).map(axum::Json)
}
