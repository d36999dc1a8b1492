//! The Kubernetes proxy: `/k8s/<cluster>/...` is that cluster's API server, for kubectl and everything like it;
//! `/api/v1/clusters/<cluster>/kube/...` is the same for the door's page, without what Services and Pods serve themselves.
//!
//! The door has let a request pass (its credential is right); here it is read, cleaned and passed on with the cluster's own
//! credential, and the answer is cleaned and passed back. Nothing is gathered: watches and logs flow as they come. What
//! decides is pure: `proxy/path.rs` (which cluster, what of it), `head.rs` (what goes on), `read_only.rs`, `answer.rs` (what
//! comes back), `refusal.rs` (how it says no). `limits.rs` keeps one cluster from taking the door, `body.rs` and
//! `tunnel.rs` move the bytes. The connections to API servers are `guildnet-kube`'s. Decided in docs/decisions/0009.
//!
//! Absent: users. Who has the token acts with the cluster's stored credential, nobody else does, and nobody as another.

mod answer;
mod body;
mod head;
mod limits;
mod path;
mod read_only;
mod refusal;
#[cfg(test)]
mod tests;
mod tunnel;

use std::time::Instant;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use guildnet_kube::{ApiServer, ForwardBody, Upgrade};
use guildnet_model::{BoxFuture, ClusterId};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use crate::{
    HostError,
    door::trace::{self, RequestId},
    metrics::{Begun, Metrics, Timed, Verb},
};
pub(crate) use limits::{Limits, Places, Taken};
pub(crate) use refusal::Refusal;
pub(crate) use tunnel::Life;

use body::{BODY_PAUSE, Coming, Going};
use limits::Place;
use path::{Asked, For, PREFIX};
use tunnel::Tunnel;

/// Where the proxy finds the clusters' API servers, and what it may do there.
pub(crate) trait ApiServers: Send + Sync {
    /// For how long what may change something is passed on to a cluster's API server: until the token is cancelled. `None` for
    /// a cluster that is read-only.
    ///
    /// # Errors
    /// There is no cluster of that id, or it is not served.
    fn writing(&self, id: &ClusterId) -> Result<Option<CancellationToken>, HostError>;

    /// The client for a cluster's API server, through its connector. Waits for a connector that is just starting.
    ///
    /// # Errors
    /// There is no cluster of that id, its connector is not ready, or its API server is not found.
    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>>;
}

/// Whether a path is the proxy's, so that whatever is said about it is a `Status`.
pub(crate) fn is_below(path: &str) -> bool {
    path.starts_with(PREFIX) || path == PREFIX.trim_end_matches('/')
}

/// Answers one request that the gate has let pass. `life` is what a tunnel holds for as long as it lives.
pub(crate) async fn serve(
    servers: &dyn ApiServers,
    metrics: &Metrics,
    limits: &Limits,
    request: Request,
    life: Life,
) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let raw = request.uri().path().to_owned();
    let (counted, shape, answered) = match Asked::of(&raw) {
        Err(refusal) => (None, String::new(), Err(refusal)),
        Ok(asked) => {
            trace::about(&asked.cluster);
            let lasts = asked.what.lasts(request.uri().query().unwrap_or_default());
            let verb = Verb::of(&method, lasts, request.headers().contains_key(header::UPGRADE));
            let counts = metrics.of(&asked.cluster);
            let timed = counts.as_ref().and_then(|counts| Begun::of(counts, verb, begun));
            let answered = pass_on(servers, limits, &asked, request, life, timed).await;
            (counts.map(|counts| (counts, verb)), asked.what.shape(), answered)
        }
    };
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let response = match answered {
        Ok(response) => {
            let status = response.status().as_u16();
            tracing::debug!(%method, path = shape, status, ms, "passed on");
            response
        }
        Err(refusal) => {
            let status = refusal.status();
            if let Some((counts, _)) = &counted {
                counts.refused(status);
            }
            // What a client can repeat without end is not written down each time.
            let written = status.is_server_error() || status == StatusCode::FORBIDDEN;
            let status = status.as_u16();
            if written {
                tracing::info!(%method, path = shape, status, ms, %refusal, "not passed on");
            } else {
                tracing::debug!(%method, path = shape, status, ms, %refusal, "not passed on");
            }
            refusal.into_response()
        }
    };
    if let Some((counts, verb)) = counted {
        counts.answered(verb, response.status());
    }
    response
}

async fn pass_on(
    servers: &dyn ApiServers,
    limits: &Limits,
    asked: &Asked<'_>,
    request: Request,
    life: Life,
    timed: Option<Begun>,
) -> Result<Response, Refusal> {
    let (mut head, body) = request.into_parts();
    // Every request has got one at the door.
    let id = head.extensions.get().copied().unwrap_or_else(RequestId::new);
    let passed = head::pass(&head, &id.to_string())?;
    // The gate has seen to it that an origin, where there is one, is the door's own.
    if asked.by == For::Page && passed.upgrade.is_some() && !head.headers.contains_key(header::ORIGIN) {
        let said = "an upgrade is for the door's own page, which says its origin";
        return Err(Refusal::new(StatusCode::FORBIDDEN, said).with_hint("use a tool with a token below /k8s/"));
    }
    let writing = servers.writing(&asked.cluster).map_err(|error| {
        limits.forget(&asked.cluster);
        Refusal::of_host(&error)
    })?;
    if writing.is_none() {
        read_only::admit(&asked.cluster, &head.method, &asked.what, passed.upgrade.is_some())?;
    }
    let lasts = passed.upgrade.is_some() || asked.what.lasts(head.uri.query().unwrap_or_default());
    let place = limits.enter(&asked.cluster, lasts).await?;
    let server = servers.api_server(&asked.cluster).await.map_err(|error| Refusal::of_host(&error))?;
    head.headers = passed.headers;
    let near = head.extensions.remove::<OnUpgrade>();
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    head.uri = format!("{}{query}", asked.path)
        .parse()
        .map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, format!("the path can't be passed on: {why}")))?;
    match (passed.upgrade, near) {
        (Some(_), Some(near)) if body.is_end_stream() => {
            // Nothing else is seen of a tunnel, so it must not outlive the permission.
            let tunnel = Tunnel { near, place, life, writing: writing.unwrap_or_default() };
            switch(&server, asked, head, tunnel).await
        }
        (Some(_), _) => Err(Refusal::new(StatusCode::BAD_REQUEST, "a request for an upgrade has no body")),
        (None, _) => exchange(&server, asked, head, body, place, timed).await,
    }
}

/// One request and its answer.
async fn exchange(
    server: &ApiServer,
    asked: &Asked<'_>,
    head: Parts,
    body: Body,
    place: Place,
    timed: Option<Begun>,
) -> Result<Response, Refusal> {
    let (body, late) = Coming::new(body);
    let answer = server.forward(Request::from_parts(head, body.boxed_unsync())).await.map_err(|error| {
        if late.is() {
            let said = format!("the request's body did not come for {BODY_PAUSE:?}");
            return Refusal::new(StatusCode::REQUEST_TIMEOUT, said);
        }
        Refusal::of_kube(&asked.cluster, &error)
    })?;
    give(server, asked, answer, (place, timed.map(Begun::answered)))
}

/// One request for an upgrade, and the tunnel that follows.
async fn switch(server: &ApiServer, asked: &Asked<'_>, head: Parts, tunnel: Tunnel) -> Result<Response, Refusal> {
    let answer = server.upgrade(Request::from_parts(head, ())).await;
    match answer.map_err(|error| Refusal::of_kube(&asked.cluster, &error))? {
        Upgrade::Refused(answer) => give(server, asked, answer, (tunnel.place, None)),
        Upgrade::Switched(answer, far) => {
            let protocol = answer.headers().get(header::UPGRADE).cloned();
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = cleaned(server, asked, StatusCode::SWITCHING_PROTOCOLS, answer.headers())?;
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            if let Some(protocol) = protocol {
                response.headers_mut().insert(header::UPGRADE, protocol);
            }
            tunnel.spawn(far);
            Ok(response)
        }
    }
}

/// Passes an answer back; the request's place is held, and its time runs, until its body has ended.
fn give(
    server: &ApiServer,
    asked: &Asked<'_>,
    answer: http::Response<ForwardBody>,
    held: (Place, Option<Timed>),
) -> Result<Response, Refusal> {
    let (head, body) = answer.into_parts();
    let headers = cleaned(server, asked, head.status, &head.headers)?;
    let mut response = Response::new(Body::new(Going::new(body, held)));
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn cleaned(
    server: &ApiServer,
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<HeaderMap, Refusal> {
    let mut headers = headers.clone();
    let from = answer::From {
        cluster: &asked.cluster,
        mount: asked.mount,
        server: server.url(),
        path: asked.path,
        what: &asked.what,
    };
    answer::clean(&from, status, &mut headers)?;
    Ok(headers)
}
