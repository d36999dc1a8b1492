//! `/api/v1`: what a person's programs ask of the Host App, described by the OpenAPI document that is made from it.
//!
//! One file for each noun: its handlers, thin, and its bodies. A handler that is registered here is in the document, and
//! the other way round: `routes!` takes both from the same place. Answers are JSON in camelCase, refusals [`Problem`]s.
//! `docs/openapi.json` is the document as text, kept equal by a test.

mod app;
mod clusters;
mod events;
mod forwards;
mod headscale;
mod jobs;
mod kube;
mod routers;
mod sessions;
#[cfg(test)]
mod tests;
mod verify;

use std::{convert::Infallible, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::Query,
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use guildnet_model::{ClusterId, Secret};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::{
    PartialSchema as _, ToSchema as _,
    openapi::{
        Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, ResponseBuilder,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

use super::{
    gate::COOKIE,
    problem::{Problem, Wire},
    routes::Behind,
    trace,
};
use crate::{HostError, jobs::Told};

pub(crate) use clusters::{Changed, DIAL_PROTOCOL};
pub(crate) use forwards::AskedForwards;
pub(crate) use sessions::{LoginCode, Revoked};
pub(crate) use verify::Verify;

/// Where the document is.
pub(super) const DOCUMENT_PATH: &str = "/api/openapi.json";
/// Largest body of a request: a kubeconfig with many contexts. Only who holds the token may send one.
const BODY_LIMIT: usize = 1024 * 1024;
/// How long a body may take: it comes from the same machine.
const BODY_TIME: Duration = Duration::from_secs(10);
/// The form of answers that go on: a line of JSON for each thing that is said.
pub(crate) const LINES: &str = "application/x-ndjson";
/// The schemes of the credentials, in the document.
const TOKEN: &str = "token";
const SESSION: &str = "session";

/// The routes below `/api`, the document among them.
pub(super) fn router() -> Router<Behind> {
    let (routes, document) = described().split_for_parts();
    let document = finished(document);
    routes.route(DOCUMENT_PATH, get(async move || Json(document))).merge(kube::routes())
}

/// What the API is, as an OpenAPI 3.1 document.
#[cfg(test)]
pub(super) fn document() -> OpenApi {
    finished(described().into_openapi())
}

fn described() -> OpenApiRouter<Behind> {
    let info = InfoBuilder::new()
        .title("GuildNet Host App")
        .version("v1")
        .description(Some(
            "The clusters of this device: their connectors, checks and switches. HTTPS on loopback only.",
        ))
        .build();
    OpenApiRouter::with_openapi(OpenApiBuilder::new().info(info).build())
        .merge(app::routes())
        .merge(clusters::routes())
        .merge(forwards::routes())
        .merge(routers::routes())
        .merge(headscale::routes())
        .merge(sessions::routes())
        .merge(verify::routes())
        .merge(jobs::routes())
        .merge(events::routes())
}

/// What all operations have in common: the credentials, and refusals of one form.
fn finished(mut document: OpenApi) -> OpenApi {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("guildnet token")).build();
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme(TOKEN, SecurityScheme::Http(bearer));
    let cookie = ApiKeyValue::with_description(COOKIE, "guildnet ui; needs Sec-Fetch-Site: same-origin");
    components.add_security_scheme(SESSION, SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    // What no handler's own description names.
    let mut schemas = vec![(Wire::name().into_owned(), Wire::schema()), (Told::name().into_owned(), Told::schema())];
    Wire::schemas(&mut schemas);
    Told::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let alone = |scheme| SecurityRequirement::new::<_, [&str; 0], &str>(scheme, []);
    document.security = Some(vec![alone(TOKEN), alone(SESSION)]);
    let refusal = ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
    let refusal = ResponseBuilder::new()
        .description("Refused: the thing, the cause and the next step")
        .content("application/problem+json", refusal)
        .build();
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal.clone()));
    }
    document
}

fn operations(path: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.patch].into_iter().flatten()
}

/// An answer of one line of JSON for each thing that is said.
fn lines<T: Serialize>(said: impl Stream<Item = T> + Send + 'static) -> Response {
    let lines = said.map(|said| {
        let mut line = serde_json::to_vec(&said).expect("texts and numbers are always JSON");
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, HeaderValue::from_static(LINES))], Body::from_stream(lines)).into_response()
}

/// The cluster that a path names: from here on the log says that the request is about it.
pub(super) fn cluster_id(text: &str) -> Result<ClusterId, Problem> {
    let id = text.parse::<ClusterId>().map_err(|why| HostError::explained(&why))?;
    trace::about(&id);
    Ok(id)
}

/// The cluster that a path names, if there is one.
pub(super) fn known(behind: &Behind, id: &str) -> Result<ClusterId, Problem> {
    let id = cluster_id(id)?;
    behind.api.knows(&id)?;
    Ok(id)
}

/// A secret on its way in. There is no way out.
#[derive(Deserialize)]
#[serde(transparent)]
struct Sealed(String);

impl From<Sealed> for Secret<String> {
    fn from(sealed: Sealed) -> Self {
        Self::new(sealed.0)
    }
}

/// The refusal for a cluster that is not there.
pub(super) async fn unknown(behind: &Behind, id: &ClusterId) -> Problem {
    let known: Vec<ClusterId> = behind.api.clusters().await.into_iter().map(|c| c.id).collect();
    HostError::unknown_cluster(id, &known).into()
}

/// Reads the query of a request.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    Query::try_from_uri(uri).map(|Query(asked)| asked).map_err(|why| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "usage",
            format!("the query is not what is expected: {}", why.body_text()),
        )
    })
}

/// Reads a JSON body; an empty one is the default.
pub(super) async fn read<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    let content = gather(body, BODY_LIMIT).await?;
    if content.is_empty() { Ok(T::default()) } else { parse(&content) }
}

/// Reads a JSON body that must be there.
pub(super) async fn required<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    parse(&gather(body, BODY_LIMIT).await?)
}

/// The same from who has shown nothing yet, and is to hold little here.
pub(super) async fn small<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, Problem> {
    parse(&gather(body, limit).await?)
}

async fn gather(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            let detail = format!("the body is larger than {limit} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail))
        }
        Ok(Err(why)) => Err(Problem::new(StatusCode::BAD_REQUEST, "broken_body", why.to_string())),
        Err(_) => {
            let detail = format!("the body did not come within {BODY_TIME:?}");
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail))
        }
    }
}

/// Parses a body, and names the field that is wrong.
fn parse<T: DeserializeOwned>(content: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(content);
    let refuse = |field: Option<String>, why: serde_json::Error| {
        let refused =
            Problem::new(StatusCode::BAD_REQUEST, "usage", format!("the body is not what is expected: {why}"));
        Problem { field, ..refused }
    };
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|why| {
        let field = Some(why.path().to_string()).filter(|path| path != ".");
        refuse(field, why.into_inner())
    })?;
    reader.end().map_err(|why| refuse(None, why))?;
    Ok(value)
}
