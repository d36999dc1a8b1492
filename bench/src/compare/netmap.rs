//! Nodes that are on the server alone: they fill the network maps of others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use guildnet_headscale::ensure_user;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    figures::Failure,
    tailnet::{CALLS, Tailnet},
};

/// How long nodes are made.
const LIMIT: Duration = Duration::from_secs(600);

/// Makes so many nodes by the server's debug calls, with names that begin so. They are tagged as the cluster's routers, so that
/// its clients see them; they serve no network and are never online. Returns how many there are after some minutes: the server
/// takes longer for each the more it has.
pub(super) async fn fill(tailnet: &Tailnet, prefix: &str, count: u64) -> Result<u64, Failure> {
    // 24 characters, since 0.29 behind a prefix (`hscontrol/types/common.go`, `AuthIDLength`).
    let headscale = tailnet.headscale()?;
    let keyed = if headscale.server().await?.features.via_grants { "hskey-authreq-" } else { "" };
    let user = ensure_user(&headscale, &tailnet.cluster).await?.name;
    let tag = tailnet.cluster.router_tag();
    let begun = Instant::now();
    let make = async |worker: u64| {
        let mut api = Api::open(tailnet).await?;
        let mut made = 0;
        for number in (worker..count).step_by(CALLS) {
            if begun.elapsed() > LIMIT {
                break;
            }
            let key = format!("{keyed}{:012}{number:012}", std::process::id());
            let pending = json!({ "user": user, "key": key, "name": format!("{prefix}-{number}") });
            api.post("debug/node", &pending).await?;
            let node = api.post(&format!("node/register?user={user}&key={key}"), &json!({})).await?;
            let id = node["node"]["id"].as_str().ok_or("the server gave the node no number")?;
            api.post(&format!("node/{id}/tags"), &json!({ "tags": [tag] })).await?;
            made += 1;
        }
        Ok::<u64, Failure>(made)
    };
    Ok(try_join_all((0..CALLS as u64).map(make)).await?.iter().sum())
}

/// One connection to the server's API.
struct Api {
    host: String,
    bearer: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Api {
    async fn open(tailnet: &Tailnet) -> Result<Self, Failure> {
        let host = tailnet.headscale_url.host_str().ok_or("the server's URL has no host")?.to_owned();
        let port = tailnet.headscale_url.port_or_known_default().unwrap_or(443);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&std::fs::read(&tailnet.headscale_ca)?) {
            roots.add(certificate?)?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(host.clone())?, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with its sender.
        tokio::spawn(connection);
        Ok(Self { host, bearer: format!("Bearer {}", tailnet.api_key()?), sender })
    }

    async fn post(&mut self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v1/{path}"))
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, &self.bearer)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let said = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            return Err(format!(
                "{}: {status}: {}",
                path.split('?').next().unwrap_or(path),
                String::from_utf8_lossy(&said)
            )
            .into());
        }
        Ok(serde_json::from_slice(&said)?)
    }
}
