//! What there is behind the door.
//!
//! `/healthz`, `/readyz`, and `/api/v1`: `clusters`, `clusters/{id}`, `clusters/{id}/dial?to=IP:PORT`, `status`, `verify`
//! (POST), `reload` (POST). Answers are JSON, refusals [`Problem`]s. Below `/k8s/{id}` are the clusters' API servers
//! (`proxy.rs`), and what is refused there is a Kubernetes `Status`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use guildnet_model::{ClusterId, Target};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{HostApi, gate::Gate, problem::Problem, serve::Slot};
use crate::{
    ClusterStatus, HostError, StatusReport,
    proxy::{self, Life, Limits, Refusal},
    verify::Report,
};

/// The protocol of a dial: after the switch (RFC 9110 section 7.8) the connection is the stream, both ways.
pub(crate) const DIAL_PROTOCOL: &str = "guildnet-dial/1";
/// Largest body of a request. A list of all ids of a large fleet is a tenth of it.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a body may take: it comes from the same machine.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Bytes that each direction of a dial holds: two TLS records, so that one is filled while the other is sent.
const TUNNEL_BUFFER: usize = 32 * 1024;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Behind {
    pub(super) api: Arc<dyn HostApi>,
    pub(super) gate: Arc<Gate>,
    pub(super) limits: Arc<Limits>,
    /// Everything that is spawned for a client.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the grace of a stop is over.
    pub(super) cut: CancellationToken,
}

/// The body of `POST /api/v1/verify`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    /// Which clusters; all if empty.
    #[serde(default)]
    pub(crate) clusters: Vec<ClusterId>,
}

/// All routes, with the gate in front of every one, also of those that do not exist.
pub(super) fn router(behind: Behind) -> Router {
    Router::new()
        .route(super::gate::OPEN_PATH, get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/api/v1/status", get(status))
        .route("/api/v1/clusters", get(clusters))
        .route("/api/v1/clusters/{id}", get(cluster))
        .route("/api/v1/clusters/{id}/dial", get(dial))
        .route("/api/v1/verify", post(verify))
        .route("/api/v1/reload", post(reload))
        .route("/k8s", any(kube))
        .route("/k8s/", any(kube))
        .route("/k8s/{*below}", any(kube))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "this path has no such method")
        })
        .layer(middleware::from_fn_with_state(behind.clone(), admit))
        .with_state(behind)
}

async fn admit(State(behind): State<Behind>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let mut response = match behind.gate.admit(&head) {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(problem) if proxy::is_below(head.uri.path()) => Refusal::from(problem).into_response(),
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    // The proxy has a word of its own about what may be kept.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

async fn ready(State(behind): State<Behind>) -> Result<&'static str, Problem> {
    if behind.api.ready() {
        return Ok("ready\n");
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the Host App is still starting"))
}

async fn status(State(behind): State<Behind>) -> Json<StatusReport> {
    Json(behind.api.status().await)
}

async fn clusters(State(behind): State<Behind>) -> Json<Vec<ClusterStatus>> {
    Json(behind.api.clusters().await)
}

async fn cluster(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ClusterStatus>, Problem> {
    let id = parse_id(&id)?;
    match behind.api.cluster(&id).await {
        Some(status) => Ok(Json(status)),
        None => Err(unknown(&behind, &id).await),
    }
}

async fn verify(State(behind): State<Behind>, body: Body) -> Result<Json<Report>, Problem> {
    let asked: Verify = read(body).await?;
    Ok(Json(behind.api.verify(asked.clusters).await?))
}

async fn reload(State(behind): State<Behind>) -> Result<StatusCode, Problem> {
    behind.api.reload().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Opens a stream into the cluster and hands the connection over to it.
async fn dial(State(behind): State<Behind>, Path(id): Path<String>, mut request: Request) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let to = target(request.uri().query().unwrap_or_default())?;
    let asked = request.headers().get(header::UPGRADE).is_some_and(|value| value == DIAL_PROTOCOL);
    let upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>().filter(|_| asked);
    let slot = request.extensions_mut().remove::<Slot>();
    let Some(upgrade) = upgrade else {
        let detail = format!("a dial is an HTTP/1.1 request with 'Upgrade: {DIAL_PROTOCOL}'");
        let mut refused = Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail).into_response();
        refused.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(DIAL_PROTOCOL));
        return Ok(refused);
    };
    let Some(dialer) = behind.api.dialer(&id) else { return Err(unknown(&behind, &id).await) };
    let far = dialer.dial(to).await?;
    let cut = behind.cut.clone();
    behind.tasks.spawn(async move {
        // The connection counts against the door's limit for as long as the stream lives.
        let _slot = slot;
        let tunnel = async {
            let mut far = far;
            let mut near = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, TUNNEL_BUFFER, TUNNEL_BUFFER).await
        };
        match cut.run_until_cancelled(tunnel).await {
            Some(Ok((sent, received))) => tracing::debug!(cluster = %id, %to, sent, received, "dial ended"),
            Some(Err(why)) => tracing::debug!(cluster = %id, %to, %why, "dial broke off"),
            None => tracing::debug!(cluster = %id, %to, "dial cut: the Host App stops"),
        }
    });
    let switch = [(header::CONNECTION, "upgrade"), (header::UPGRADE, DIAL_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, switch).into_response())
}

/// Passes a request on to a cluster's API server.
async fn kube(State(behind): State<Behind>, mut request: Request) -> Response {
    let slot = request.extensions_mut().remove::<Slot>().map(|slot| Arc::new(slot) as Arc<dyn Send + Sync>);
    let life = Life { slot, tasks: behind.tasks.clone(), cut: behind.cut.clone() };
    proxy::serve(behind.api.as_ref(), &behind.limits, request, life).await
}

fn target(query: &str) -> Result<Target, Problem> {
    let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "to");
    let Some((_, to)) = named else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "usage", "the address is missing: ?to=IP:PORT"));
    };
    to.parse::<Target>().map_err(|why| HostError::explained(&why).into())
}

fn parse_id(text: &str) -> Result<ClusterId, Problem> {
    text.parse::<ClusterId>().map_err(|why| HostError::explained(&why).into())
}

async fn unknown(behind: &Behind, id: &ClusterId) -> Problem {
    let known: Vec<ClusterId> = behind.api.clusters().await.into_iter().map(|c| c.id).collect();
    HostError::unknown_cluster(id, &known).into()
}

/// Reads a JSON body; an empty one is the default.
async fn read<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    let whole = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_LIMIT).collect()).await;
    let content = match whole {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            let detail = format!("the body is larger than {BODY_LIMIT} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
        }
        Ok(Err(why)) => return Err(Problem::new(StatusCode::BAD_REQUEST, "broken_body", why.to_string())),
        Err(_) => {
            let detail = format!("the body did not come within {BODY_TIME:?}");
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail));
        }
    };
    if content.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&content).map_err(|why| {
        Problem::new(StatusCode::BAD_REQUEST, "usage", format!("the body is not what is expected: {why}"))
    })
}
