//! One connection to the control server: TLS, the server's key, the Noise upgrade (ts2021), HTTP/2 inside.
//!
//! Everything goes over our own TCP and TLS; of the ts_* crates only the Noise handshake is used. What is asked over the
//! connection is in `register.rs` and `session.rs`.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyDataStream, BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    task::JoinSet,
};
use tokio_util::io::StreamReader;
use ts_capabilityversion::CapabilityVersion;
use ts_control_noise::Handshake;
use ts_keys::{MachineKeyPair, MachinePublicKey};
use url::Url;
use zeroize::Zeroizing;

use super::wire;
use crate::tls;

/// What this client claims to understand; decides what the server sends.
pub(super) const CAPABILITY: CapabilityVersion = CapabilityVersion::CURRENT;
/// In front of the optional message that the server sends before HTTP/2 begins (tailscale `control/ts2021/conn.go`).
const EARLY_MAGIC: [u8; 5] = [0xff, 0xff, 0xff, b'T', b'S'];
/// Bytes of the magic and the length behind it; an HTTP/2 frame's header has as many.
const EARLY_HEADER: usize = 9;
/// No early message is larger: it holds one key. Bytes.
const MAX_EARLY: u32 = 64 * 1024;
/// No answer other than a map is larger. Bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// A failed request to the control server.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The server answered with another status than 200; its own words follow, whatever they quote.
    #[error("{server} answered {path} with {status}: {said}")]
    Status { server: String, path: &'static str, status: StatusCode, said: String },
    /// The connection failed.
    #[error("{server}, asked for {path}: {why}")]
    Io { server: String, path: &'static str, why: String },
}

/// Reads an answer as it comes.
pub(super) type BodyReader = Box<dyn AsyncRead + Send + Unpin>;

/// An open HTTP/2 connection to the control server.
pub(super) struct Http {
    sender: http2::SendRequest<Full<Bytes>>,
    /// The server's part of a request's address.
    authority: String,
    /// The server, for people.
    server: String,
}

impl Http {
    /// Posts `body` as JSON; gives the answer once its head is there and says 200.
    pub(super) async fn post(&self, path: &'static str, body: &impl Serialize) -> Result<BodyReader, HttpError> {
        let answer = BodyDataStream::new(self.send(path, body).await?);
        Ok(Box::new(StreamReader::new(answer.map_err(|e| io::Error::other(causes(&e))))))
    }

    /// Posts `body` as JSON; gives the whole answer.
    pub(super) async fn ask(&self, path: &'static str, body: &impl Serialize) -> Result<Bytes, HttpError> {
        let answer = self.send(path, body).await?;
        collect(answer).await.map_err(|why| HttpError::Io { server: self.server.clone(), path, why })
    }

    async fn send(&self, path: &'static str, body: &impl Serialize) -> Result<Incoming, HttpError> {
        let io = |why: String| HttpError::Io { server: self.server.clone(), path, why };
        // A body may hold the preauth key. The copy that goes out is wiped by nobody; this one is.
        let json = Zeroizing::new(serde_json::to_vec(body).map_err(|e| io(e.to_string()))?);
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", self.authority))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::copy_from_slice(&json)))
            .map_err(|e| io(e.to_string()))?;
        let response = self.sender.clone().send_request(request).await.map_err(|e| io(causes(&e)))?;
        let status = response.status();
        if status != StatusCode::OK {
            let said = collect(response.into_body()).await.unwrap_or_default();
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            return Err(HttpError::Status { server: self.server.clone(), path, status, said });
        }
        Ok(response.into_body())
    }
}

/// The server as it is named to people: `HOST:PORT`. Whatever else an address may hold (a password, a query) is not shown.
pub(super) fn place(server: &Url) -> String {
    format!("{}:{}", server.host_str().unwrap_or("?"), server.port_or_known_default().unwrap_or(443))
}

/// The server as requests name it: without the port that goes without saying, and only the server.
fn authority(server: &Url) -> String {
    let host = server.host_str().unwrap_or_default();
    server.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn collect(body: Incoming) -> Result<Bytes, String> {
    Limited::new(body, MAX_ANSWER).collect().await.map(http_body_util::Collected::to_bytes).map_err(|e| e.to_string())
}

/// An error with its causes; hyper's own text leaves them out.
///
/// A connection that just ended without a farewell is told in our words: the TLS library's are advice for programmers. It
/// is known by its text, since the HTTP/2 library does not give its cause as a value.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let text = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    if text.contains("close_notify") { "the server closed the connection".into() } else { text }
}

/// Opens the encrypted channel to the control server: everything up to, not including, HTTP/2.
///
/// # Errors
/// What failed, in words. The caller bounds the time.
pub(super) async fn channel(
    tls: &Arc<rustls::ClientConfig>,
    server: &Url,
    machine: &MachineKeyPair,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, String> {
    if server.scheme() != "https" {
        return Err(format!("the login server's address ({}) is not an https one", place(server)));
    }
    let host = server.host_str().ok_or("the login server's address names no host")?;
    let port = server.port_or_known_default().unwrap_or(443);
    let io = TokioIo::new(tls::connect(tls, host, port, None).await?);
    let authority = HeaderValue::from_str(&authority(server)).map_err(|_| format!("{host:?} is no host name"))?;

    let (mut sender, connection) =
        http1::handshake::<_, Full<Bytes>>(io).await.map_err(|e| format!("HTTP with {host} failed: {}", causes(&e)))?;
    let talk = async {
        let server_key = server_key(&mut sender, &authority).await?;
        let (handshake, first) = Handshake::initialize(
            &format!("Tailscale Control Protocol v{CAPABILITY}"),
            machine,
            &server_key,
            CAPABILITY,
        );
        let request = Request::builder()
            .method(Method::POST)
            .uri("/ts2021")
            .header(header::HOST, &authority)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "tailscale-control-protocol")
            .header("X-Tailscale-Handshake", first)
            .body(Full::default())
            .map_err(|e| e.to_string())?;
        sender.ready().await.map_err(|e| causes(&e))?;
        let response = sender.send_request(request).await.map_err(|e| causes(&e))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let said = collect(response.into_body()).await.unwrap_or_default();
            return Err(format!("{status} to /ts2021: {}", String::from_utf8_lossy(&said).trim()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| causes(&e))?;
        Ok((handshake, upgraded))
    };
    let (handshake, upgraded) = tls::drive(connection.with_upgrades(), talk)
        .await
        .map_err(|why: String| format!("{host} refused the control connection: {why}"))?;
    let noise = handshake
        .complete(TokioIo::new(upgraded), machine)
        .await
        .map_err(|e| format!("the Noise handshake with {host} failed: {e}"))?;
    skip_early_message(noise).await.map_err(|e| format!("{host} broke off the control connection: {e}"))
}

async fn server_key(
    sender: &mut http1::SendRequest<Full<Bytes>>,
    authority: &HeaderValue,
) -> Result<MachinePublicKey, String> {
    let request = Request::builder()
        .uri(format!("/key?v={CAPABILITY}"))
        .header(header::HOST, authority)
        .body(Full::default())
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| causes(&e))?;
    let status = response.status();
    let body = collect(response.into_body()).await?;
    if status != StatusCode::OK {
        return Err(format!("{status} to /key; is this a Headscale server?"));
    }
    let keys: wire::ServerKeys =
        serde_json::from_slice(&body).map_err(|e| format!("its /key is none ({e}); is this a Headscale server?"))?;
    keys.public_key.parse().map_err(|_| "its /key is none; is this a Headscale server?".to_owned())
}

/// Takes away the server's early message, if there is one. It holds a challenge for certificates that nobody here has.
async fn skip_early_message<T: AsyncRead + AsyncWrite + Send + Unpin>(
    mut io: T,
) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin> {
    let mut head = [0; EARLY_HEADER];
    io.read_exact(&mut head).await?;
    let mut unread = Bytes::copy_from_slice(&head);
    if let Some(length) = head.strip_prefix(&EARLY_MAGIC).and_then(|rest| rest.first_chunk()) {
        let length = u32::from_be_bytes(*length);
        if length > MAX_EARLY {
            return Err(io::Error::other(format!("its first message claims {length} bytes")));
        }
        tokio::io::copy(&mut (&mut io).take(length.into()), &mut tokio::io::sink()).await?;
        unread = Bytes::new();
    }
    let (read, write) = tokio::io::split(io);
    Ok(tokio::io::join(AsyncReadExt::chain(io::Cursor::new(unread), read), write))
}

/// Speaks HTTP/2 over `io` while `talk` runs; all tasks that this needs have ended when it returns.
///
/// # Errors
/// What `talk` gives, or that HTTP/2 could not begin.
pub(super) async fn with_http<T, E: From<String>>(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    server: &Url,
    talk: impl AsyncFnOnce(Http) -> Result<T, E>,
) -> Result<T, E> {
    let tasks = Tasks::default();
    let begun = http2::handshake::<_, _, Full<Bytes>>(tasks.clone(), TokioIo::new(io)).await;
    let outcome = match begun {
        Ok((sender, connection)) => {
            tls::drive(connection, talk(Http { sender, authority: authority(server), server: place(server) })).await
        }
        Err(e) => Err(E::from(format!("HTTP/2 could not begin: {}", causes(&e)))),
    };
    tasks.stop().await;
    outcome
}

/// Runs hyper's helper tasks, and ends them with the connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Finished ones are let go here, so that the set does not grow with the number of requests.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
