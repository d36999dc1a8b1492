//! A client for one API server, over any dialer.
//!
//! Connections are opened on first use and shared by all clones (HTTP/2 where the server has it). All of their tasks
//! belong to the client: they end when its last clone is dropped.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use guildnet_model::{Dialer, Target};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{client::legacy, rt::TokioTimer};
use kube::client::Body;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::BoxError;
use url::{Host, Url};

use crate::{
    ClusterAccess, KubeError,
    connect::{Connect, Peer},
    error::KubeCause,
    forward::{self, Pool},
};

/// How long one request may take, connecting included: the API server's own limit for what we ask is far below a
/// second, and a lost connection is noticed after `PING_EVERY + PING_LIMIT`, which leaves time for a second attempt.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// A connection with a request on it is pinged this often, so that a dead one is noticed: a tailnet does not always
/// reset streams when its far end is replaced.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(3);

/// How long a ping may stay unanswered.
pub(crate) const PING_LIMIT: Duration = Duration::from_secs(3);

/// What is wanted of an API client.
#[derive(Clone, Debug)]
pub struct ApiServerSpec {
    /// The credential.
    pub access: ClusterAccess,
    /// Dial this instead of the URL's host and port. The TLS name stays the credential's.
    pub address: Option<Target>,
}

/// A client for one API server. Cheap to clone; dropping the last clone closes its connections.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    server: String,
    client: kube::Client,
    /// What is passed on has connections of its own: however much it is, our own questions do not wait behind it.
    pub(crate) pool: Pool,
    pub(crate) upgrades: Connect,
    pub(crate) target: forward::Target,
    pub(crate) tasks: Tasks,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.stop.cancel();
    }
}

/// What `/readyz` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readyz {
    /// Whether the server calls itself ready.
    pub ready: bool,
    /// Names of the checks that failed, when it does not.
    pub failing: Vec<String>,
    /// How long the answer took, connecting included.
    pub took: Duration,
}

impl ApiServer {
    /// Prepares a client; nothing is dialled yet.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(spec: &ApiServerSpec, via: Arc<dyn Dialer>) -> Self {
        let tasks = Tasks { tracker: TaskTracker::new(), stop: CancellationToken::new() };
        let access = &spec.access;
        let connect = Connect {
            via,
            peer: spec.address.map_or_else(|| peer(access.server()), Peer::Address),
            name: access.server_name().clone(),
            tls: Arc::clone(access.tls()).into(),
        };
        let http = legacy::Client::builder(tasks.clone())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_LIMIT)
            .build::<_, Body>(connect.clone());
        let target = forward::Target::new(access);
        let front = target.clone();
        let service = tower::service_fn(move |request| send(http.clone(), front.clone(), request));
        let client = kube::Client::new(service, "default");
        let server = access.server().as_str().trim_end_matches('/').to_owned();
        Self(Arc::new(Inner {
            server,
            client,
            pool: Pool::new(connect.clone(), tasks.clone()),
            upgrades: forward::for_upgrades(&connect, access),
            target,
            tasks,
        }))
    }

    /// The server's URL, as its kubeconfig names it.
    pub fn url(&self) -> &Url {
        self.0.target.base()
    }

    /// Asks `/readyz`. A server that answers "not ready" is an answer, not an error.
    ///
    /// # Errors
    /// [`KubeError`] if it can't be asked, or does not accept the credential.
    /// # Cancellation
    /// Dropping the future abandons the request.
    pub async fn readyz(&self) -> Result<Readyz, KubeError> {
        let begun = Instant::now();
        let (status, text) = self
            .read(|client| async move {
                let request = Request::get("/readyz").body(Body::empty()).map_err(kube::Error::HttpError)?;
                let answer = client.send(request).await?;
                let status = answer.status();
                let body = answer.into_body().collect().await?.to_bytes();
                Ok((status, String::from_utf8_lossy(&body).into_owned()))
            })
            .await?;
        match status.as_u16() {
            200 => Ok(Readyz { ready: true, failing: Vec::new(), took: begun.elapsed() }),
            code @ (401 | 403 | 404) => Err(self.error(KubeCause::from_status(code, status_message(&text)))),
            _ => Ok(Readyz { ready: false, failing: failing_checks(&text), took: begun.elapsed() }),
        }
    }

    /// The server's version, like `v1.34.4`.
    ///
    /// # Errors
    /// [`KubeError`]. # Cancellation: dropping the future abandons the request.
    pub async fn version(&self) -> Result<String, KubeError> {
        self.read(|client| async move { client.apiserver_version().await }).await.map(|info| info.git_version)
    }

    /// Closes all connections and waits for their tasks. Later requests fail.
    pub async fn close(&self) {
        self.0.tasks.stop.cancel();
        self.0.tasks.tracker.close();
        self.0.tasks.tracker.wait().await;
    }

    /// A request that may be repeated: tried once more if the connection turns out to be dead.
    pub(crate) async fn read<T, F>(&self, ask: impl Fn(kube::Client) -> F) -> Result<T, KubeError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let both = async {
            match ask(self.0.client.clone()).await.map_err(KubeCause::from) {
                Err(e) if e.is_lost() || e == KubeCause::Stale => {
                    ask(self.0.client.clone()).await.map_err(KubeCause::from)
                }
                done => done,
            }
        };
        self.bounded(both).await
    }

    /// A request that is made once.
    pub(crate) async fn write<T, F>(&self, ask: impl FnOnce(kube::Client) -> F) -> Result<T, KubeError>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let once = ask(self.0.client.clone());
        self.bounded(async { once.await.map_err(KubeCause::from) }).await
    }

    /// The client itself, for watches, which have their own limits.
    pub(crate) fn client(&self) -> kube::Client {
        self.0.client.clone()
    }

    pub(crate) fn error(&self, cause: KubeCause) -> KubeError {
        KubeError { server: self.0.server.clone(), cause }
    }

    async fn bounded<T>(&self, request: impl Future<Output = Result<T, KubeCause>>) -> Result<T, KubeError> {
        let answer = timeout(REQUEST_LIMIT, request).await;
        answer.unwrap_or(Err(KubeCause::Timeout { after: REQUEST_LIMIT })).map_err(|cause| self.error(cause))
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("server", &self.0.server).finish_non_exhaustive()
    }
}

/// Runs the HTTP client's connections, and ends them with it.
#[derive(Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move { stop.run_until_cancelled(task).await.map(drop) });
    }
}

/// Where the URL itself leads.
fn peer(server: &Url) -> Peer {
    // https always has a port, its own or 443.
    let port = server.port_or_known_default().unwrap_or(443);
    match server.host() {
        Some(Host::Ipv4(ip)) => Peer::Address(Target::from(std::net::SocketAddr::from((ip, port)))),
        Some(Host::Ipv6(ip)) => Peer::Address(Target::from(std::net::SocketAddr::from((ip, port)))),
        Some(Host::Domain(host)) => Peer::Name { host: host.to_owned(), port },
        None => Peer::Name { host: String::new(), port },
    }
}

/// Sends a request that has a path only, with the token that is good now.
async fn send(
    http: legacy::Client<Connect, Body>,
    target: forward::Target,
    request: Request<Body>,
) -> Result<Response<Incoming>, BoxError> {
    let bearer = target.access.bearer().await.map_err(KubeCause::from)?;
    let (head, body) = request.into_parts();
    let head = target.complete(head, bearer.as_ref())?;
    let answer = http.request(Request::from_parts(head, body)).await?;
    if answer.status() == StatusCode::UNAUTHORIZED && target.access.refused(bearer.as_ref()).await {
        // What was sent can't be sent again from here; who asks again gets another token.
        return Err(KubeCause::Stale.into());
    }
    Ok(answer)
}

/// The message of a Kubernetes `Status`, or the text itself, shortened, if it is none.
fn status_message(text: &str) -> String {
    /// Enough for a sentence; the rest of a proxy's error page helps nobody.
    const MAX: usize = 200;
    let status = serde_json::from_str::<serde_json::Value>(text).ok();
    match status.as_ref().and_then(|s| s["message"].as_str()) {
        Some(message) => message.to_owned(),
        None => text.trim().chars().take(MAX).collect(),
    }
}

/// The failed checks in the answer of `/readyz`: lines like `[-]etcd failed: reason withheld`.
fn failing_checks(text: &str) -> Vec<String> {
    let failed = |line: &str| line.strip_prefix("[-]").and_then(|l| l.split(" failed").next()).map(str::to_owned);
    text.lines().filter_map(failed).collect()
}

#[cfg(test)]
mod tests;
