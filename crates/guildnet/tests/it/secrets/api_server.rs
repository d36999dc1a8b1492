//! An API server at the wire, which knows what it was shown.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

/// An API server that says it is ready and refuses the rest. What it was authorised with is kept.
pub(super) struct ApiServer {
    pub(super) address: SocketAddr,
    /// PEM.
    pub(super) authority: String,
    authorised: Arc<Mutex<String>>,
}

impl ApiServer {
    pub(super) fn start(runtime: &Runtime) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("a name");
        let authority = names.self_signed(&key).expect("a certificate").pem();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.expect("versions").with_no_client_auth().with_single_cert(
            vec![CertificateDer::from_pem_slice(authority.as_bytes()).expect("a certificate")],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key"),
        );
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a pair")));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let authorised = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&authorised);
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(tcp).await?;
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await? > 0 {}
                    let head = String::from_utf8_lossy(&head);
                    *kept.lock().expect("not poisoned") += &head;
                    let (status, said) = match head.starts_with("GET /readyz") {
                        true => ("200 OK", "ok"),
                        false => ("403 Forbidden", r#"{"kind":"Status","code":403,"message":"no"}"#),
                    };
                    let length = said.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{said}"
                    );
                    stream.write_all(answer.as_bytes()).await?;
                    stream.shutdown().await
                });
            }
        });
        Self { address, authority, authorised }
    }

    /// Whether it was shown this token.
    pub(super) fn has_seen(&self, token: &str) -> bool {
        self.authorised.lock().expect("not poisoned").contains(&format!("authorization: Bearer {token}\r\n"))
    }
}
