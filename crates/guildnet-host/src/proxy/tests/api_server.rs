//! An API server at the wire, for the proxy's tests: TLS on 127.0.0.1, HTTP/2 or HTTP/1.1 only, every head recorded. What
//! it answers follows from the path's last segment.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use guildnet_kube::{Allow, ApiServer, ApiServerSpec, DirectDialer, Kubeconfig};
use http::{Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    sync::{Mutex as AsyncMutex, mpsc, watch::Sender},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// The cluster's credential: must never be in an answer.
pub(super) const CLUSTER_TOKEN: &str = "the-clusters-own-secret";

/// Bytes of the answer `large`.
pub(super) const LARGE: usize = 64 << 20;

const CHUNK: usize = 64 << 10;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a test sees of the server.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) heads: Mutex<Vec<Parts>>,
    pub(super) accepted: AtomicUsize,
    /// Bytes of `large` that were handed to the connection.
    pub(super) produced: AtomicUsize,
    /// Watches that are open.
    pub(super) watches: Sender<usize>,
}

impl Seen {
    /// Waits until no watch is open.
    pub(super) async fn unwatched(&self) {
        self.watches.subscribe().wait_for(|n| *n == 0).await.expect("the sender is here");
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.heads.lock().expect("not poisoned").iter().map(|h| h.uri.path().to_owned()).collect()
    }

    pub(super) fn last(&self) -> Parts {
        self.heads.lock().expect("not poisoned").last().cloned().expect("a request")
    }
}

/// The server; ends when dropped.
pub(super) struct Server {
    pub(super) api: ApiServer,
    pub(super) seen: Arc<Seen>,
    /// Each piece of a watch, as the test sends it.
    pub(super) events: mpsc::Sender<Bytes>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// One whose kubeconfig names `https://api.test:6443/base`.
    pub(super) async fn start(protocols: &[&[u8]]) -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).expect("an authority").pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("a key");
        let names = CertificateParams::new(vec!["api.test".to_owned()]).expect("a name");
        let cert = names.signed_by(&key, &issuer).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key"),
            )
            .expect("a pair");
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen::default());
        let (events, incoming) = mpsc::channel(1);
        let incoming = Arc::new(AsyncMutex::new(incoming));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&seen), incoming));
        Self { api: client(&ca_pem, address), seen, events, _tasks: tasks }
    }
}

fn client(ca_pem: &str, address: SocketAddr) -> ApiServer {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n\
         clusters: [{{name: x, cluster: {{server: 'https://api.test:6443/base', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: x, user: {{token: {CLUSTER_TOKEN}}}}}]\n"
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let access = Kubeconfig::read(file.path()).and_then(|k| k.access(None, &Allow::default())).expect("a credential");
    ApiServer::new(&ApiServerSpec { access, address: Some(address.into()) }, Arc::new(DirectDialer))
}

type Events = Arc<AsyncMutex<mpsc::Receiver<Bytes>>>;

async fn accept(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Seen>, events: Events) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        seen.accepted.fetch_add(1, Ordering::Relaxed);
        let (tls, seen, events) = (tls.clone(), Arc::clone(&seen), Arc::clone(&events));
        connections.spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let service = hyper::service::service_fn(move |request| {
                let (seen, events) = (Arc::clone(&seen), Arc::clone(&events));
                async move { Ok::<_, Infallible>(answer(request, seen, events).await) }
            });
            // A client that goes away is no failure of the server.
            let serving = auto::Builder::new(TokioExecutor::new());
            let _ = serving.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(mut request: Request<Incoming>, seen: Arc<Seen>, events: Events) -> Response<Body> {
    let (head, body) = request.into_parts();
    seen.heads.lock().expect("not poisoned").push(head.clone());
    request = Request::from_parts(head, body);
    let last = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let with = |status: u16, name: &str, value: &str, text: &str| {
        let body = Full::from(text.to_owned()).boxed_unsync();
        Response::builder().status(status).header(name, value).body(body).expect("an answer")
    };
    match last.as_str() {
        "exec" => switch(request),
        "attach" => with(403, "content-type", "application/json", r#"{"kind":"Status","message":"no shell for you"}"#),
        "unauthorized" => with(401, "www-authenticate", "Bearer", "Unauthorized"),
        "redirect" => with(302, "location", request.uri().query().unwrap_or_default(), ""),
        "page" => with(200, "set-cookie", "__Host-guildnet=stolen", "<script>alert(1)</script>"),
        "hang" => std::future::pending().await,
        "large" => Response::new(large(seen)),
        _ if request.uri().query().is_some_and(|q| q.contains("watch=true")) => Response::new(watch(seen, events)),
        _ => {
            let body = request.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or_default();
            with(200, "etag", "\"e\"", &format!("{{\"kind\":\"List\",\"got\":{body}}}"))
        }
    }
}

/// Switches to whatever was asked for, and sends back what it gets.
fn switch(mut request: Request<Incoming>) -> Response<Body> {
    let protocol = request.headers().get(header::UPGRADE).cloned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    });
    let mut response = Response::new(Empty::new().boxed_unsync());
    let Some(protocol) = protocol else { return response };
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "upgrade".parse().expect("text"));
    response.headers_mut().insert(header::UPGRADE, protocol);
    response
}

fn large(seen: Arc<Seen>) -> Body {
    let chunks = stream::unfold(0, move |sent| {
        let seen = Arc::clone(&seen);
        async move {
            (sent < LARGE).then(|| {
                seen.produced.fetch_add(CHUNK, Ordering::Relaxed);
                (Ok(Frame::data(Bytes::from(vec![b'x'; CHUNK]))), sent + CHUNK)
            })
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// Counts a watch for as long as the connection has its answer.
struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.watches.send_modify(|n| *n -= 1);
    }
}

fn watch(seen: Arc<Seen>, events: Events) -> Body {
    seen.watches.send_modify(|n| *n += 1);
    let pieces = stream::unfold((Open(seen), events), async |(open, events)| {
        let piece = events.lock().await.recv().await?;
        Some((Ok(Frame::data(piece)), (open, events)))
    });
    UnsyncBoxBody::new(StreamBody::new(Box::pin(pieces)))
}
