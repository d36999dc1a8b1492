//! A way to an API server: one HTTP/2 connection as a kubeconfig describes it, directly, through a connector or through the
//! Host App; or HTTP/1.1 connections without TLS to a `kubectl proxy`, which speaks nothing else.

use std::{net::SocketAddr, path::Path, process::Command, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use guildnet_kube::DirectDialer;
use guildnet_model::{Dialer, Io, Target};
use http::{HeaderValue, Method, Request, Response, header, request::Builder};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, tungstenite::client::IntoClientRequest as _};
use url::Url;

use crate::figures::Failure;

/// What one answer may be ahead of its reader, bytes: about what Go's client allows.
const WINDOW: u32 = 4 << 20;

/// Bytes that are read at once: rustls alone asks for 4 KiB, which on a kernel's socket are four system calls for a record
/// where Go needs two.
const READ: usize = 32 << 10;

/// A way to one API server.
pub(crate) struct Way {
    name: &'static str,
    server: Url,
    bearer: Option<HeaderValue>,
    asking: Asking,
    road: Road,
}

/// By what requests are made that need no connection of their own.
enum Asking {
    One(http2::SendRequest<Full<Bytes>>),
    /// As many connections as there are requests at once.
    Many(Box<Client<HttpConnector, Full<Bytes>>>),
}

/// How a connection is opened, before anything is said on it.
struct Road {
    dialer: Arc<dyn Dialer>,
    to: Target,
    tls: Option<Tls>,
}

struct Tls {
    name: ServerName<'static>,
    http2: Arc<ClientConfig>,
    /// For connections that switch to another protocol.
    http1: Arc<ClientConfig>,
}

impl Road {
    async fn connect(&self, protocol: fn(&Tls) -> &Arc<ClientConfig>) -> Result<Box<dyn Io>, Failure> {
        let stream = BufReader::with_capacity(READ, self.dialer.dial(self.to).await?);
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let connector = TlsConnector::from(Arc::clone(protocol(tls)));
        Ok(Box::new(connector.connect(tls.name.clone(), stream).await?))
    }
}

/// How a long answer is sent. kubectl and client-go ask for gzip, and API servers pack what is longer than 128 KiB.
#[derive(Clone, Copy)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
}

/// A WebSocket to an API server.
pub(crate) type Socket = WebSocketStream<Box<dyn Io>>;

/// An answer's body, as it comes.
pub(crate) struct Pieces(Incoming);

impl Pieces {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while let Some(frame) = self.0.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl Way {
    /// Connects as the first cluster and user of the file say: certificate, token, or a program that gives one. `by` is
    /// how the server is dialled, and where, if not from this machine at the address in the file.
    pub(crate) async fn open(
        name: &'static str,
        kubeconfig: &Path,
        by: Option<(Arc<dyn Dialer>, Target)>,
    ) -> Result<Self, Failure> {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubeconfig)?)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let server: Url = text(&cluster["server"]).ok_or("the kubeconfig names no server")?.parse()?;
        let decoded = |value: &Value| text(value).map(|data| BASE64_STANDARD.decode(data)).transpose();
        let mut roots = RootCertStore::empty();
        let authority = decoded(&cluster["certificate-authority-data"])?.ok_or("no certificate-authority-data")?;
        for certificate in CertificateDer::pem_slice_iter(&authority) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let identity = (decoded(&user["client-certificate-data"])?, decoded(&user["client-key-data"])?);
        let mut tls = match identity {
            (Some(chain), Some(key)) => {
                let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
                tls.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
            }
            _ => tls.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(tls.clone());
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let http2 = Arc::new(tls);
        let token = match (text(&user["token"]), &user["exec"]) {
            (Some(token), _) => Some(token),
            (None, Value::Object(_)) => Some(program(&user["exec"])?),
            _ => None,
        };
        let bearer = token.map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose()?;
        let host = server.host_str().ok_or("the server's URL has no host")?;
        let tls_name = ServerName::try_from(text(&cluster["tls-server-name"]).unwrap_or_else(|| host.to_owned()))?;
        let tls = Some(Tls { name: tls_name, http2, http1 });
        let (dialer, to) = match by {
            Some(by) => by,
            None => {
                let port = server.port_or_known_default().unwrap_or(443);
                let address = tokio::net::lookup_host((host, port)).await?.next().ok_or("the server has no address")?;
                (Arc::new(DirectDialer) as Arc<dyn Dialer>, Target::from(address))
            }
        };
        let road = Road { dialer, to, tls };
        let stream = road.connect(|tls| &tls.http2).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(64 * WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        // It ends with its sender.
        tokio::spawn(connection);
        Ok(Self { name, server, bearer, asking: Asking::One(sender), road })
    }

    /// To a proxy on this machine that needs no credential.
    pub(crate) fn plain(name: &'static str, at: SocketAddr) -> Result<Self, Failure> {
        let server = format!("http://{at}").parse()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let asking = Asking::Many(Box::new(Client::builder(TokioExecutor::new()).build(connector)));
        let road = Road { dialer: Arc::new(DirectDialer), to: at.into(), tls: None };
        Ok(Self { name, server, bearer: None, asking, road })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Asks, and returns the body as it comes; an answer that refuses is an error.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<String>) -> Result<Pieces, Failure> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).header(header::CONTENT_TYPE, kind);
        self.send(request, path, body).await.map(|answer| Pieces(answer.into_body()))
    }

    /// Reads, and returns the body as it comes, in the encoding that was asked for.
    pub(crate) async fn read(&self, path: &str, encoding: Encoding) -> Result<Pieces, Failure> {
        let wanted = match encoding {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
        };
        let answer = self.send(Request::builder().header(header::ACCEPT_ENCODING, wanted), path, None).await?;
        let got = answer.headers().get(header::CONTENT_ENCODING).map_or(Ok("identity"), HeaderValue::to_str)?;
        if got != wanted {
            return Err(format!("{path}: {got} instead of {wanted}").into());
        }
        Ok(Pieces(answer.into_body()))
    }

    async fn send(&self, request: Builder, path: &str, body: Option<String>) -> Result<Response<Incoming>, Failure> {
        let mut request = request.uri(format!("{}{path}", self.server.as_str().trim_end_matches('/')));
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Full::from(body.unwrap_or_default()))?;
        let answer = match &self.asking {
            Asking::One(sender) => sender.clone().send_request(request).await?,
            Asking::Many(client) => client.request(request).await?,
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let said = answer.into_body().collect().await?.to_bytes();
        Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&said)).into())
    }

    /// Opens a WebSocket on a connection of its own, as `kubectl exec` does (v5.channel.k8s.io).
    pub(crate) async fn socket(&self, path: &str) -> Result<Socket, Failure> {
        let stream = self.road.connect(|tls| &tls.http1).await?;
        let base = self.server.as_str().trim_end_matches('/').replacen("http", "ws", 1);
        let mut request = format!("{base}{path}").into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io"));
        if let Some(bearer) = &self.bearer {
            headers.insert(header::AUTHORIZATION, bearer.clone());
        }
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(socket)
    }

    /// Asks, and reads the whole answer.
    pub(crate) async fn whole(&self, method: Method, path: &str, body: Option<String>) -> Result<Vec<u8>, Failure> {
        let mut pieces = self.ask(method, path, body).await?;
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}

/// The token of an exec credential plugin (client.authentication.k8s.io/v1).
fn program(exec: &Value) -> Result<String, Failure> {
    let command = exec["command"].as_str().ok_or("exec names no command")?;
    let args = exec["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let run = Command::new(command).args(args).output()?;
    let answer: Value = serde_json::from_slice(&run.stdout)
        .map_err(|why| format!("{command}: {why}: {}", String::from_utf8_lossy(&run.stderr)))?;
    Ok(answer["status"]["token"].as_str().ok_or("the program gave no token")?.to_owned())
}
