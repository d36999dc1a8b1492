//! The command's client of a running Host App: finds it by its home folder and speaks to its door.
//!
//! One connection for each request: the command asks little and ends. The door is trusted by this home folder's own
//! authority only, never by the system's. Forwards are in `client/forwards.rs`, work that
//! it does for the command in `client/jobs.rs`.

mod forwards;
mod jobs;
mod lines;

use std::{fmt, net::SocketAddr, path::Path, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, join, select};
use guildnet_model::{BoxFuture, Class, ClusterId, DialError, Dialer, Io, Secret, Target};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    ClusterStatus, Destination, HostError, SessionInfo, StatusReport, certs, daemon,
    door::{self, Changed, DIAL_PROTOCOL, LoginCode, Revoked, problem::Problem},
    names::Place,
    set::ClusterChange,
};

pub(crate) use forwards::LeaseClient;
pub(crate) use jobs::worker;

/// How long the door may take to answer at all: it is on this machine.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a question about what is known may take.
const ASK_TIME: Duration = Duration::from_secs(15);
/// How long reading the store again may take: connectors that changed are stopped within their grace first.
const RELOAD_TIME: Duration = Duration::from_secs(60);
/// How long a dial may take: a connector's own limits (tens of seconds at most) come first.
const DIAL_TIME: Duration = Duration::from_secs(60);

/// A client of the Host App that runs for a home folder. Cheap to clone.
#[derive(Clone)]
pub struct HostClient {
    address: SocketAddr,
    pid: u32,
    token: Arc<Secret<String>>,
    tls: Arc<rustls::ClientConfig>,
}

impl fmt::Debug for HostClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostClient").field("address", &self.address).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl HostClient {
    /// The Host App of this home folder; `None` if none runs, or its door is not open yet. Asks files only.
    ///
    /// # Errors
    /// It runs, but its token or its authority can't be read.
    pub fn discover(home: &Path) -> Result<Option<Self>, HostError> {
        let Some(daemon::Running { pid, address: Some(address) }) = daemon::running(home)? else { return Ok(None) };
        let (Some(token), Some(authority)) = (door::existing_token(home)?, certs::authority(home)?) else {
            return Err(HostError::new(
                Class::Credentials,
                format!("{} has lost the token or the authority of the Host App that runs", home.display()),
            )
            .with_hint("start it again: guildnet down, then guildnet up"));
        };
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(authority)
            .map_err(|why| HostError::new(Class::Failed, format!("the Host App's authority can't be used: {why}")))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of the default protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Self { address, pid, token: Arc::new(token), tls: Arc::new(tls) }))
    }

    /// Where its door is: `https://127.0.0.1:8090`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has started.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ready(&self) -> Result<bool, HostError> {
        let (status, _) = self.exchange(Method::GET, "/readyz", Bytes::new(), ASK_TIME).await?;
        Ok(status.is_success())
    }

    /// The Host App and all clusters, as they are at this moment.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn status(&self) -> Result<StatusReport, HostError> {
        self.get("/api/v1/status").await
    }

    /// All clusters, by id.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn clusters(&self) -> Result<Vec<ClusterStatus>, HostError> {
        self.get("/api/v1/clusters").await
    }

    /// One cluster.
    ///
    /// # Errors
    /// [`Class::NotFound`] if there is none of that id; it does not answer, or refuses.
    pub async fn cluster(&self, id: &ClusterId) -> Result<ClusterStatus, HostError> {
        self.get(&format!("/api/v1/clusters/{id}")).await
    }

    /// Sets switches of a cluster. `true`: it was not so before.
    ///
    /// # Errors
    /// There is no cluster of that id; it does not answer, or refuses.
    pub(crate) async fn change(&self, id: &ClusterId, change: &ClusterChange) -> Result<bool, HostError> {
        let asked = serde_json::to_vec(change).expect("switches are always JSON");
        let path = format!("/api/v1/clusters/{id}");
        let changed: Changed = self.read(self.exchange(Method::PATCH, &path, asked.into(), RELOAD_TIME).await?)?;
        Ok(changed.changed)
    }

    /// Makes it read the store again.
    ///
    /// # Errors
    /// The store can't be read there; it does not answer, or refuses.
    pub async fn reload(&self) -> Result<(), HostError> {
        let answer = self.exchange(Method::POST, "/api/v1/reload", Bytes::new(), RELOAD_TIME).await?;
        self.accepted(answer).map(drop)
    }

    /// Makes a one-time code with which a browser signs in within a minute.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn login_code(&self) -> Result<Secret<String>, HostError> {
        let answer = self.exchange(Method::POST, "/api/v1/login-codes", Bytes::new(), ASK_TIME).await?;
        self.read::<LoginCode>(answer).map(|made| Secret::new(made.code))
    }

    /// The sessions of browsers, the newest first.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn sessions(&self) -> Result<Vec<SessionInfo>, HostError> {
        self.get("/api/v1/sessions").await
    }

    /// Ends a session.
    ///
    /// # Errors
    /// [`Class::NotFound`] if there is none of that id; it does not answer, or refuses.
    pub async fn revoke_session(&self, id: &str) -> Result<(), HostError> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(HostError::new(Class::Usage, format!("{id:?} is no id of a session"))
                .with_hint("list them: guildnet sessions"));
        }
        let path = format!("/api/v1/sessions/{id}");
        let answer = self.exchange(Method::DELETE, &path, Bytes::new(), ASK_TIME).await?;
        self.accepted(answer).map(drop)
    }

    /// Ends all sessions, and says how many there were.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn revoke_sessions(&self) -> Result<usize, HostError> {
        let answer = self.exchange(Method::DELETE, "/api/v1/sessions", Bytes::new(), ASK_TIME).await?;
        self.read::<Revoked>(answer).map(|done| done.revoked)
    }

    /// Dials in the cluster, through the Host App's connector.
    pub fn dialer(&self, cluster: &ClusterId) -> Arc<dyn Dialer> {
        Arc::new(HostDialer { client: self.clone(), cluster: cluster.clone() })
    }

    /// Opens a stream to an address or a name in the cluster, through the Host App's connector.
    ///
    /// # Errors
    /// There is no such cluster or name; dialling failed; it does not answer, or refuses.
    pub async fn open(&self, cluster: &ClusterId, to: &Destination) -> Result<Box<dyn Io>, HostError> {
        let opened = match timeout(DIAL_TIME, self.opened(cluster, &to.to_string())).await {
            Ok(opened) => opened,
            Err(_) => return Err(self.silent(format_args!("nothing within {DIAL_TIME:?}"))),
        };
        opened.map_err(|why| match (why, to.place()) {
            (NotOpened::Said(Problem { dial: Some(refused), .. }), Place::Address(ip)) => {
                let target = Target::from(SocketAddr::new(*ip, to.port()));
                HostError::explained(&refused.into_error(target)).of_cluster(cluster)
            }
            (NotOpened::Said(problem), _) => problem.into_error(),
            (NotOpened::Silent(why), _) => self.silent(why),
            (NotOpened::Odd(status), _) => self.refused(status, &[]),
        })
    }

    /// Opens a stream to what `to` names.
    async fn opened(&self, cluster: &ClusterId, to: &str) -> Result<Box<dyn Io>, NotOpened> {
        let (mut sender, connection) = self.connect().await.map_err(|why| NotOpened::Silent(why.message().into()))?;
        let connection = connection.with_upgrades();
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
        let mut request = self.request(Method::GET, &format!("/api/v1/clusters/{cluster}/dial?{query}"), Bytes::new());
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, http::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, http::HeaderValue::from_static(DIAL_PROTOCOL));
        // Owns the sender: when it is done nothing more can be sent, and the connection ends or hands over the stream.
        let asking = async move {
            let answer = sender.send_request(request).await.map_err(|why| NotOpened::Silent(because(&why)))?;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                let upgraded = hyper::upgrade::on(answer).await.map_err(|why| NotOpened::Silent(because(&why)))?;
                return Ok(Box::new(TokioIo::new(upgraded)) as Box<dyn Io>);
            }
            Err(refusal(answer).await)
        };
        let (opened, _) = join(asking, connection).await;
        opened
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, HostError> {
        let answer = self.exchange(Method::GET, path, Bytes::new(), ASK_TIME).await?;
        self.read(answer)
    }

    fn read<T: DeserializeOwned>(&self, answer: (StatusCode, Bytes)) -> Result<T, HostError> {
        serde_json::from_slice(&self.accepted(answer)?).map_err(|why| self.unexpected(why))
    }

    /// The body of an answer that is no refusal.
    fn accepted(&self, (status, body): (StatusCode, Bytes)) -> Result<Bytes, HostError> {
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    fn unexpected(&self, why: impl fmt::Display) -> HostError {
        HostError::new(
            Class::Failed,
            format!("the Host App at {} said something else than expected: {why}", self.url()),
        )
        .with_hint("it may be of another version: guildnet down, then guildnet up")
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> HostError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => problem.into_error(),
            Err(_) => HostError::new(Class::Failed, format!("the Host App at {} answered {status}", self.url())),
        }
    }

    fn silent(&self, why: impl fmt::Display) -> HostError {
        HostError::new(Class::Unreachable, format!("the Host App at {} does not answer: {why}", self.url()))
            .with_hint("see its log (host.log in its home folder), or start it again: guildnet down, then guildnet up")
    }

    /// One request and its whole answer.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), HostError> {
        let talk = async {
            let (mut sender, connection) = self.connect().await?;
            let asking = async {
                let answer = sender.send_request(self.request(method, path, body)).await?;
                let status = answer.status();
                Ok::<_, hyper::Error>((status, answer.into_body().collect().await?.to_bytes()))
            };
            // The connection only moves while it is polled; if it ends first, what it has read is still to be taken.
            match select(pin!(asking), pin!(connection)).await {
                Either::Left((answer, _)) => answer,
                Either::Right((_, asking)) => asking.await,
            }
            .map_err(|why| self.silent(because(&why)))
        };
        match timeout(limit, talk).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(format_args!("nothing within {limit:?}"))),
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.expose()))
            .body(Full::new(body))
            .expect("a path of ours, an address and a token make a request")
    }

    async fn connect(&self) -> Result<(http1::SendRequest<Full<Bytes>>, Connection), HostError> {
        let connecting = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::IpAddress(self.address.ip().into());
            TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await
        };
        let stream = match timeout(CONNECT_TIME, connecting).await {
            Ok(connected) => connected.map_err(|why| self.silent(why))?,
            Err(_) => return Err(self.silent(format_args!("no connection within {CONNECT_TIME:?}"))),
        };
        http1::handshake(TokioIo::new(stream)).await.map_err(|why| self.silent(because(&why)))
    }
}

type Connection = http1::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>;

/// hyper's errors name their cause only in their source.
fn because(why: &hyper::Error) -> String {
    std::error::Error::source(why).map_or_else(|| why.to_string(), |cause| format!("{why}: {cause}"))
}

/// Dials through the Host App's door.
struct HostDialer {
    client: HostClient,
    cluster: ClusterId,
}

impl fmt::Debug for HostDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostDialer").field("cluster", &self.cluster).field("client", &self.client).finish()
    }
}

impl Dialer for HostDialer {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        let limited = async move {
            match timeout(DIAL_TIME, self.open(to)).await {
                Ok(opened) => opened,
                Err(_) => Err(DialError::Timeout { target: to, after: DIAL_TIME }),
            }
        };
        Box::pin(limited)
    }
}

impl HostDialer {
    async fn open(&self, to: Target) -> Result<Box<dyn Io>, DialError> {
        self.client.opened(&self.cluster, &to.to_string()).await.map_err(|why| match why {
            NotOpened::Said(Problem { dial: Some(refused), .. }) => refused.into_error(to),
            NotOpened::Said(problem) => DialError::Io { target: to, why: problem.detail },
            NotOpened::Silent(why) => DialError::Io { target: to, why },
            NotOpened::Odd(status) => DialError::Io { target: to, why: format!("the Host App answered {status}") },
        })
    }
}

/// Why the door opened no stream.
enum NotOpened {
    /// It says why.
    Said(Problem),
    /// It does not answer: in words.
    Silent(String),
    /// It answers something else.
    Odd(StatusCode),
}

async fn refusal(answer: Response<Incoming>) -> NotOpened {
    let status = answer.status();
    let body = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    serde_json::from_slice(&body).map_or(NotOpened::Odd(status), NotOpened::Said)
}
