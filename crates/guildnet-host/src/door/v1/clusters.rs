//! The clusters that the Host App serves, and streams into them.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use guildnet_model::Target;
use hyper_util::rt::TokioIo;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{cluster_id, unknown};
use crate::{
    ClusterStatus, HostError,
    door::{problem::Problem, routes::Behind, serve::Slot},
};

/// The protocol of a dial: after the switch (RFC 9110 section 7.8) the connection is the stream, both ways.
pub(crate) const DIAL_PROTOCOL: &str = "guildnet-dial/1";
/// Bytes that each direction of a dial holds: two TLS records, so that one is filled while the other is sent.
const TUNNEL_BUFFER: usize = 32 * 1024;

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new().routes(routes!(clusters)).routes(routes!(cluster)).routes(routes!(dial))
}

/// All clusters, by id
#[utoipa::path(get, path = "/api/v1/clusters", tag = "clusters", responses((status = OK, body = [ClusterStatus])))]
async fn clusters(State(behind): State<Behind>) -> Json<Vec<ClusterStatus>> {
    Json(behind.api.clusters().await)
}

/// One cluster
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}", tag = "clusters", params(("id" = String, Path, description = "The cluster's id")),
    responses((status = OK, body = ClusterStatus)),
)]
async fn cluster(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ClusterStatus>, Problem> {
    let id = cluster_id(&id)?;
    match behind.api.cluster(&id).await {
        Some(status) => Ok(Json(status)),
        None => Err(unknown(&behind, &id).await),
    }
}

/// Open a stream to an address in the cluster
///
/// An HTTP/1.1 request with `Upgrade: guildnet-dial/1`; after the switch the connection is the stream, both ways.
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/dial", tag = "clusters",
    params(("id" = String, Path, description = "The cluster's id"), ("to" = String, Query, description = "IP:PORT in its networks")),
    responses((status = SWITCHING_PROTOCOLS, description = "The connection is the stream now")),
)]
async fn dial(State(behind): State<Behind>, Path(id): Path<String>, mut request: Request) -> Result<Response, Problem> {
    let id = cluster_id(&id)?;
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

fn target(query: &str) -> Result<Target, Problem> {
    let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "to");
    let Some((_, to)) = named else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "usage", "the address is missing: ?to=IP:PORT"));
    };
    to.parse::<Target>().map_err(|why| HostError::explained(&why).into())
}
