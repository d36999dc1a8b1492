//! An API server at the wire, for tests: TLS on 127.0.0.1, answers from a closure, every request recorded.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use guildnet_model::Secret;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{
    ApiServer, ApiServerSpec, ClusterAccess, DirectDialer,
    access::{Parts, Token},
    credential::ExecSpec,
};

/// A certificate authority.
pub(crate) struct Pki {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.pem.clone()
    }

    /// Certificate and key of a client.
    pub(crate) fn client(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// Certificate and key of a server with the given names and addresses.
    pub(crate) fn server(&self, names: &[&str]) -> (String, String) {
        self.sign(&server_params(names))
    }

    /// A server's certificate that ended in 1999.
    pub(crate) fn expired_server(&self, names: &[&str]) -> (String, String) {
        let mut params = server_params(names);
        params.not_before = rcgen::date_time_ymd(1998, 1, 1);
        params.not_after = rcgen::date_time_ymd(1999, 1, 1);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    }
}

fn server_params(names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) content_type: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
}

impl Seen {
    /// Method and path, without the query.
    pub(crate) fn what(&self) -> String {
        format!("{} {}", self.method, self.target.split('?').next().unwrap_or_default())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

/// The server. Its tasks end when it is dropped.
pub(crate) struct FakeApi {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl FakeApi {
    /// Serves with the given certificate and key; the closure makes status and body of each answer.
    pub(crate) async fn serve(
        (cert, key): (String, String),
        answer: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("a certificate")],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
            );
        let mut config = config.expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((tcp, _)) = listener.accept().await {
                    let (acceptor, seen, answer) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&answer));
                    connections.spawn(async move {
                        let Ok(tls) = acceptor.accept(tcp).await else { return };
                        let service = hyper::service::service_fn(move |request| {
                            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                            async move { handle(request, &seen, answer.as_ref()).await }
                        });
                        // A client that goes away is no failure of the server.
                        let _ =
                            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await;
                    });
                }
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    /// All requests until now.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic under the lock").clone()
    }
}

async fn handle(
    request: Request<Incoming>,
    seen: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(&Seen) -> (u16, String) + ?Sized),
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut one = Seen {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        content_type: header("content-type"),
        authorization: header("authorization"),
        body: String::new(),
    };
    one.body = String::from_utf8_lossy(&request.into_body().collect().await?.to_bytes()).into_owned();
    let (status, body) = answer(&one);
    seen.lock().expect("no panic under the lock").push(one);
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status.try_into().expect("a status");
    Ok(response)
}

/// A Kubernetes `Status` that says no.
pub(crate) fn refusal(code: u16, message: &str) -> (u16, String) {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "reason": reason,
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
    });
    (code, status.to_string())
}

/// A credential with a token for a server of that authority.
pub(crate) fn access(ca_pem: String, server: &str, tls_name: Option<&str>) -> ClusterAccess {
    ClusterAccess::new(Parts {
        context: "test".into(),
        server: server.parse().expect("a URL"),
        tls_name: tls_name.map(str::to_owned),
        ca_pem: Some(ca_pem),
        identity: None,
        token: Some(Token::Here(Secret::new("t0ken".into()))),
    })
    .expect("a credential")
}

/// A credential from a program, for a server of that authority at 10.96.0.1.
pub(crate) fn with_program(ca_pem: String, command: PathBuf) -> ClusterAccess {
    let spec = ExecSpec {
        api_version: "client.authentication.k8s.io/v1".into(),
        command,
        args: vec![],
        env: vec![],
        cluster: None,
    };
    ClusterAccess::new(Parts {
        context: "test".into(),
        server: "https://10.96.0.1".parse().expect("a URL"),
        tls_name: None,
        ca_pem: Some(ca_pem),
        identity: None,
        token: Some(Token::Program(spec)),
    })
    .expect("a credential")
}

/// A client of that server, dialled at its real address whatever the URL says.
pub(crate) fn client(access: ClusterAccess, address: SocketAddr) -> ApiServer {
    ApiServer::new(&ApiServerSpec { access, address: Some(address.into()) }, Arc::new(DirectDialer))
}

/// A server and its client, for tests that are not about TLS.
pub(crate) async fn pair(answer: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static) -> (FakeApi, ApiServer) {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["10.96.0.1"]), answer).await;
    let client = client(access(pki.ca_pem(), "https://10.96.0.1", None), server.address);
    (server, client)
}
