//! Jobs: what is under way and what was done.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::Value;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response as Described, ResponseBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{LINES, lines};
use crate::{
    door::{problem::Problem, routes::Behind},
    jobs::{Following, Job, JobKind, JobState, Jobs, Told, Work},
};

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, cancel))
}

/// All jobs that are known, the oldest first
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", responses((status = OK, body = [Job])))]
async fn list(State(behind): State<Behind>) -> Json<Vec<Job>> {
    Json(behind.api.jobs().list())
}

/// One job, with its steps so far
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's name")),
    responses((status = OK, body = Job)),
)]
async fn get(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<Job>, Problem> {
    behind.api.jobs().get(&id).map(Json).ok_or_else(unknown)
}

/// Cancel a job
///
/// What it has done so far stays; the same request goes on from there. One that has ended stays as it is.
#[utoipa::path(
    delete, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's name")),
    responses((status = ACCEPTED, body = Job)),
)]
async fn cancel(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Response, Problem> {
    behind.api.jobs().cancel(&id).map(|job| begun(&job)).ok_or_else(unknown)
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such job, or no longer")
        .with_hint("list those that are known: GET /api/v1/jobs")
}

/// What [`answer`] does, in the document.
pub(super) struct Answer;

impl IntoResponses for Answer {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        let described = |said: &str, form: &str, schema: &str| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
            RefOr::T(ResponseBuilder::new().description(said).content(form, content).build())
        };
        let followed = format!("Followed, by `Accept: {LINES}`");
        BTreeMap::from([
            (StatusCode::OK.as_str().to_owned(), described(&followed, LINES, &Told::name())),
            (StatusCode::ACCEPTED.as_str().to_owned(), described("Begun", "application/json", &Job::name())),
        ])
    }
}

/// The answer to a request that began a job. To who accepts [`LINES`] a line for each step and the last one for the end, while
/// the client stays: the job is cancelled when it leaves. Else where to find it, and how it is now.
pub(super) fn answer(behind: &Behind, headers: &HeaderMap, job: &Job) -> Response {
    let follows = headers.get(header::ACCEPT).is_some_and(|accepted| accepted == LINES);
    match follows.then(|| behind.api.jobs().follow(&job.id)).flatten() {
        Some(job) => lines(stream::unfold(job, async |mut job: Following| Some((job.next().await?, job)))),
        None => begun(job),
    }
}

/// Begins work on a cluster; the answer is [`answer`]'s.
pub(super) fn work(behind: &Behind, headers: &HeaderMap, work: Work) -> Result<Response, Problem> {
    let job = behind.api.start(work)?;
    Ok(answer(behind, headers, &job))
}

/// Where to find a job, and how it is now.
fn begun(job: &Job) -> Response {
    let mut answer = (StatusCode::ACCEPTED, Json(job)).into_response();
    // A job's name is hexadecimal.
    if let Ok(place) = HeaderValue::try_from(format!("/api/v1/jobs/{}", job.id)) {
        answer.headers_mut().insert(header::LOCATION, place);
    }
    answer
}

/// What the last run of the checks found.
pub(super) fn last_report(jobs: &Jobs) -> Result<Value, Problem> {
    let report =
        |job: Job| (job.kind == JobKind::Verify && job.state == JobState::Done).then_some(job.result).flatten();
    jobs.list().into_iter().rev().find_map(report).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "not_found", "no run of the checks is kept")
            .with_hint("run them: POST /api/v1/verify")
    })
}
