//! What there is behind the door.
//!
//! The page (`shell.rs`), `/healthz`, `/readyz`, `/metrics`, `/api/openapi.json` and what it describes below `/api/v1` (`v1.rs`).
//! Below `/k8s/{id}` are the clusters' API servers (`proxy.rs`), and what is refused there is a Kubernetes `Status`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use futures_util::StreamExt as _;
use hyper::body::Body as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    HostApi,
    crowd::Slot,
    gate::{Gate, Pass},
    problem::Problem,
    session::Sessions,
    shell,
    trace::RequestId,
    v1,
};
use crate::{
    metrics::{self, Surface},
    proxy::{self, ApiServers, Life, Limits, Refusal},
};

/// The refusal of a connection that finds no place among the admitted.
const BUSY: &str = "too_many_connections";

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Behind {
    pub(super) api: Arc<dyn HostApi>,
    pub(super) servers: Arc<dyn ApiServers>,
    pub(super) gate: Arc<Gate>,
    /// Codes and sessions. Nothing is awaited while they are locked.
    pub(super) sessions: Arc<Mutex<Sessions>>,
    pub(super) limits: Arc<Limits>,
    /// Everything that is spawned for a client.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the Host App begins to stop: what would never end by itself ends then.
    pub(super) stopping: CancellationToken,
    /// Cancelled when the grace of a stop is over.
    pub(super) cut: CancellationToken,
}

impl Behind {
    /// Codes and sessions.
    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Each change is one call of a pure function that does not panic half-way.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All routes, with the gate in front of every one, also of those that do not exist.
pub(super) fn router(behind: Behind) -> Router {
    Router::new()
        .route(super::gate::HEALTH_PATH, get(async || "ok\n"))
        .merge(shell::routes())
        .route("/readyz", get(ready))
        .route(super::gate::METRICS_PATH, get(scrape))
        .merge(v1::router())
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
    let (mut head, body) = request.into_parts();
    let counts = &behind.api.metrics().door;
    let surface = Surface::of(head.uri.path());
    let id = RequestId::new();
    head.extensions.insert(id);
    let span = id.span();
    let session = |cookie: &str, key: &str| behind.sessions().find(cookie, key, jiff::Timestamp::now());
    let passed =
        span.in_scope(|| behind.gate.admit(&head, SystemTime::now(), session)).and_then(|pass| placed(pass, &head));
    let busy = passed.as_ref().is_err_and(|problem| problem.code == BUSY);
    let mut response = match passed {
        Ok(pass) => {
            let over = if let Pass::Session(id) = &pass { Some(behind.sessions().over(id)) } else { None };
            head.extensions.insert(pass);
            head.extensions.insert(Cut(over.clone().unwrap_or_else(|| behind.cut.clone())));
            let response = next.run(Request::from_parts(head, body)).instrument(span).await;
            over.into_iter().fold(response, until)
        }
        Err(problem) => {
            counts.refused(&problem.code);
            match surface {
                Surface::Kube => Refusal::from(problem).into_response(),
                Surface::Api | Surface::Other => problem.into_response(),
            }
        }
    };
    counts.answered(surface, response.status());
    let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    id.put(headers);
    // The proxy has a word of its own about what may be kept.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if busy {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Cancelled when what a request has opened is to end at once: with its session, or when the Host App's grace is over.
#[derive(Clone)]
struct Cut(CancellationToken);

/// The answer to a session: one that goes on and on (a watch, a followed log, events) ends with it.
fn until(response: Response, over: CancellationToken) -> Response {
    response.map(|body| match body.size_hint().exact() {
        Some(_) => body,
        None => Body::from_stream(body.into_data_stream().take_until(over.cancelled_owned())),
    })
}

/// Gives a connection that has shown a credential its place among the admitted.
fn placed(pass: Pass, head: &Parts) -> Result<Pass, Problem> {
    if pass == Pass::Open || head.extensions.get::<Slot>().is_none_or(Slot::admit) {
        return Ok(pass);
    }
    let detail = "too many connections are open: watches, followed logs, dials";
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, BUSY, detail)
        .with_hint("end some of them, or try again in a moment"))
}

async fn ready(State(behind): State<Behind>) -> Result<&'static str, Problem> {
    if behind.api.ready() {
        return Ok("ready\n");
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the Host App is still starting"))
}

/// What a Prometheus server asks for.
async fn scrape(State(behind): State<Behind>) -> Response {
    let clusters = behind.api.observed().await;
    let text = behind.api.metrics().render(clusters, &behind.limits.places());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

/// Passes a request on to a cluster's API server.
pub(super) async fn kube(State(behind): State<Behind>, mut request: Request) -> Response {
    let slot = request.extensions_mut().remove::<Slot>().map(|slot| Arc::new(slot) as Arc<dyn Send + Sync>);
    let cut = request.extensions_mut().remove().map_or_else(|| behind.cut.clone(), |Cut(cut)| cut);
    let life = Life { slot, tasks: behind.tasks.clone(), cut };
    proxy::serve(behind.servers.as_ref(), behind.api.metrics(), &behind.limits, request, life).await
}
