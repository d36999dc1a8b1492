//! The clusters that the Host App serves, and streams into them.

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use guildnet_model::{Class, ClusterId, Networks};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;
use url::Url;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Sealed, cluster_id, jobs, known, query, required, unknown};
use crate::{
    AddRequest, ClusterInfo, ClusterStatus, Consent, HostError, KubeconfigRef, RemoveRequest,
    door::{crowd::Slot, problem::Problem, routes::Behind},
    jobs::Work,
    names::Destination,
    set::ClusterChange,
    status::ConnectorShown,
};

/// The protocol of a dial: after the switch (RFC 9110 section 7.8) the connection is the stream, both ways.
pub(crate) const DIAL_PROTOCOL: &str = "guildnet-dial/1";
/// Bytes that each direction of a dial holds: two TLS records, so that one is filled while the other is sent.
const TUNNEL_BUFFER: usize = 32 * 1024;

pub(super) fn routes() -> OpenApiRouter<Behind> {
    OpenApiRouter::new()
        .routes(routes!(clusters, add))
        .routes(routes!(cluster, change, remove))
        .routes(routes!(record))
        .routes(routes!(connectors))
        .routes(routes!(connector))
        .routes(routes!(dial))
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

/// What the store knows of one cluster: nothing secret
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/record", tag = "clusters", params(("id" = String, Path, description = "The cluster's id")),
    responses((status = OK, body = ClusterInfo)),
)]
async fn record(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ClusterInfo>, Problem> {
    let id = cluster_id(&id)?;
    Ok(Json(behind.api.record(&id).await?))
}

/// A cluster to be added.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Add {
    /// Its id: a DNS label of at most 40 characters that begins with a letter.
    #[schema(value_type = String)]
    id: ClusterId,
    /// Its kubeconfig, the content of the file. It is kept sealed.
    #[schema(value_type = String)]
    kubeconfig: Sealed,
    /// The context in it; its current one, if not given.
    context: Option<String>,
    /// The Headscale server, if it is not the one that is known here.
    #[schema(value_type = Option<String>)]
    login_server: Option<Url>,
    /// A preauth key for its connector, if none shall be made.
    #[schema(value_type = Option<String>)]
    client_key: Option<Sealed>,
    /// Its networks; found, if not given.
    #[schema(value_type = Option<Vec<String>>)]
    routes: Option<Networks>,
    /// Replace a cluster of that id.
    #[serde(default)]
    replace: bool,
    /// Let nothing through that changes something there.
    #[serde(default)]
    read_only: bool,
}

/// Add a cluster
///
/// Its connector must be admitted by the server before it is stored. The kubeconfig may not name programs or other files.
#[utoipa::path(
    post, path = "/api/v1/clusters", tag = "clusters", request_body = Add,
    responses(jobs::Answer),
)]
async fn add(State(behind): State<Behind>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let asked: Add = required(body).await?;
    let kubeconfig =
        KubeconfigRef { path: "the kubeconfig".into(), context: asked.context, content: Some(asked.kubeconfig.into()) };
    let request = AddRequest {
        id: asked.id,
        kubeconfig,
        from: None,
        login_server: asked.login_server,
        client_key: asked.client_key.map(Into::into),
        routes: asked.routes,
        state_dir: None,
        site: None,
        replace: asked.replace,
        read_only: asked.read_only,
        consent: Consent::default(),
    };
    jobs::work(&behind, &headers, Work::Add(request))
}

/// What a change did.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Changed {
    /// It was not so before.
    pub(crate) changed: bool,
}

/// Set switches of a cluster
///
/// They are followed when the answer comes, and kept over restarts. What is under way goes on.
#[utoipa::path(
    patch, path = "/api/v1/clusters/{id}", tag = "clusters", params(("id" = String, Path, description = "The cluster's id")),
    request_body = ClusterChange, responses((status = OK, body = Changed)),
)]
async fn change(State(behind): State<Behind>, Path(id): Path<String>, body: Body) -> Result<Json<Changed>, Problem> {
    let id = cluster_id(&id)?;
    let asked: ClusterChange = required(body).await?;
    let changed = behind.api.change(&id, asked).await?;
    Ok(Json(Changed { changed }))
}

/// How a cluster is removed.
#[derive(Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Remove {
    /// Leave the router, its node, its key and its place in the policy.
    #[serde(default)]
    keep_router: bool,
    /// Forget the cluster here whatever can't be reached or removed elsewhere.
    #[serde(default)]
    forget: bool,
}

/// Remove a cluster: its router, its connector, its namespace, its record
#[utoipa::path(
    delete, path = "/api/v1/clusters/{id}", tag = "clusters",
    params(("id" = String, Path, description = "The cluster's id"), Remove),
    responses(jobs::Answer),
)]
async fn remove(
    State(behind): State<Behind>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let asked: Remove = query(&uri)?;
    let id = known(&behind, &id)?;
    let request = RemoveRequest { id, keep_router: asked.keep_router, forget: asked.forget };
    jobs::work(&behind, &headers, Work::Remove(request))
}

/// All connectors that run, by cluster
#[utoipa::path(get, path = "/api/v1/connectors", tag = "connectors", responses((status = OK, body = [ConnectorShown])))]
async fn connectors(State(behind): State<Behind>) -> Json<Vec<ConnectorShown>> {
    Json(behind.api.connectors().await)
}

/// A cluster's connector: its node, its peers and the paths to them
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/connector", tag = "connectors",
    params(("id" = String, Path, description = "The cluster's id")), responses((status = OK, body = ConnectorShown)),
)]
async fn connector(State(behind): State<Behind>, Path(id): Path<String>) -> Result<Json<ConnectorShown>, Problem> {
    let id = known(&behind, &id)?;
    behind.api.connector(&id).await.map(Json).ok_or_else(|| {
        HostError::new(Class::NotFound, "its connector does not run")
            .of_cluster(&id)
            .with_hint(format!("guildnet cluster connect {id}"))
            .into()
    })
}

/// Open a stream to an address or a name in the cluster
///
/// An HTTP/1.1 request with `Upgrade: guildnet-dial/1`; after the switch the connection is the stream, both ways.
#[utoipa::path(
    get, path = "/api/v1/clusters/{id}/dial", tag = "clusters",
    params(("id" = String, Path, description = "The cluster's id"), ("to" = String, Query, description = "IP:PORT in its networks, or NAME:PORT, resolved there: SERVICE.NAMESPACE")),
    responses((status = SWITCHING_PROTOCOLS, description = "The connection is the stream now")), security(("token" = [])),
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
    let far = behind.api.open(&id, &to).await.map_err(|why| Problem::of_open(&id, why))?;
    let cut = behind.cut.clone();
    let copying = async move {
        // The connection counts against the door's limit for as long as the stream lives.
        let _slot = slot;
        let tunnel = async {
            let mut far = far;
            let mut near = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
            tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, TUNNEL_BUFFER, TUNNEL_BUFFER).await
        };
        match cut.run_until_cancelled(tunnel).await {
            Some(Ok((sent, received))) => tracing::debug!(%to, sent, received, "dial ended"),
            Some(Err(why)) => tracing::debug!(%to, %why, "dial broke off"),
            None => tracing::debug!(%to, "dial cut: the Host App stops"),
        }
    };
    // The log names its request and its cluster.
    behind.tasks.spawn(copying.in_current_span());
    let switch = [(header::CONNECTION, "upgrade"), (header::UPGRADE, DIAL_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, switch).into_response())
}

fn target(query: &str) -> Result<Destination, Problem> {
    let named = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "to");
    let Some((_, to)) = named else {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "usage", "where to is missing: ?to=HOST:PORT"));
    };
    to.parse::<Destination>().map_err(|why| HostError::explained(&why).into())
}
