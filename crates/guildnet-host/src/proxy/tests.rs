//! The proxy over the wire: a running door, clients of both protocols, and API servers on loopback.

mod api_server;
mod attacks;
mod counts;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use guildnet_kube::ApiServer;
use guildnet_model::{BoxFuture, Class, ClusterId};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use self::api_server::{CLUSTER_TOKEN, LARGE, Server};
use super::{
    ApiServers,
    limits::{Bounds, Limits},
};
use crate::{
    HostError,
    door::tests::{Fake, Served},
};

const HTTP2: &[&[u8]] = &[b"h2", b"http/1.1"];
const HTTP1: &[&[u8]] = &[b"http/1.1"];
/// Long enough for anything on loopback, short enough to wait for in vain.
const SOON: Duration = Duration::from_secs(1);

/// A Host App with these clusters, and one more, `down`, whose connector is not ready.
struct Clusters(BTreeMap<ClusterId, (ApiServer, CancellationToken)>);

impl ApiServers for Clusters {
    fn writing(&self, id: &ClusterId) -> Result<Option<CancellationToken>, HostError> {
        match self.0.get(id) {
            Some((_, writing)) => Ok(Some(writing.clone()).filter(|writing| !writing.is_cancelled())),
            None if id.as_str() == "down" => Ok(Some(CancellationToken::new())),
            None => Err(HostError::unknown_cluster(id, &self.0.keys().cloned().collect::<Vec<_>>())),
        }
    }

    fn api_server<'a>(&'a self, id: &'a ClusterId) -> BoxFuture<'a, Result<ApiServer, HostError>> {
        let not_ready = || {
            HostError::new(Class::Unreachable, "the connector is not ready: starting")
                .with_hint("run 'guildnet verify'")
                .of_cluster(id)
        };
        Box::pin(async move { self.0.get(id).map(|(api, _)| api.clone()).ok_or_else(not_ready) })
    }
}

fn writable() -> CancellationToken {
    CancellationToken::new()
}

fn read_only() -> CancellationToken {
    let writing = writable();
    writing.cancel();
    writing
}

/// A door before the given API servers; each may be written to until its token is cancelled.
async fn door(servers: &[(&str, &Server, CancellationToken)], bounds: Bounds) -> Served {
    let of = |(id, server, writing): &(&str, &Server, CancellationToken)| {
        (id.parse().expect("an id"), (server.api.clone(), writing.clone()))
    };
    let clusters = Clusters(servers.iter().map(of).collect());
    Served::before(Arc::new(Fake::default()), Arc::new(clusters), Limits::new(bounds), |_| {}).await
}

/// One API server, `a`, and a door before it.
async fn one(protocols: &[&[u8]]) -> (Server, Served) {
    let server = Server::start(protocols).await;
    let served = door(&[("a", &server, writable())], Bounds::default()).await;
    (server, served)
}

/// A client that puts everything on one HTTP/2 connection, as client-go does.
#[derive(Clone)]
struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    base: String,
    token: String,
}

impl Http2 {
    async fn connect(served: &Served) -> Self {
        let stream = TokioIo::new(served.tls(&[b"h2"]).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self { sender, base: format!("https://{}", served.address), token: served.token() }
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::from(body.to_owned()))
            .expect("a request");
        self.sender.clone().send_request(request).await.expect("an answer")
    }

    async fn get(&self, path: &str) -> Response<Incoming> {
        self.send("GET", path, "").await
    }
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

/// The Kubernetes `Status` of a refusal: code, reason, message.
async fn status(response: Response<Incoming>) -> (u16, String, String) {
    let code = response.status().as_u16();
    let body: serde_json::Value = serde_json::from_str(&text(response).await).expect("JSON");
    assert_eq!(
        (&body["kind"], &body["apiVersion"], &body["status"]),
        (&"Status".into(), &"v1".into(), &"Failure".into())
    );
    assert_eq!(body["code"], code);
    let of = |name: &str| body[name].as_str().expect("text").to_owned();
    (code, of("reason"), of("message"))
}

/// Reads the head of an answer, and nothing behind it.
/// Sends a request over HTTP/1.1 with the token, `more` being further headers and the body's beginning.
async fn ask_over_http1(served: &Served, what: &str, more: &str) -> TlsStream<TcpStream> {
    let mut stream = served.tls(&[]).await;
    let (host, token) = (served.address, served.token());
    let request = format!("{what} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{more}");
    stream.write_all(request.as_bytes()).await.expect("sent");
    stream
}

async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text")
}

#[tokio::test]
async fn a_request_goes_on_as_it_is_with_the_clusters_credential_and_comes_back_without_any() {
    let (server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/a%20b";
    let answer = client.send("PATCH", &format!("/k8s/a{path}?fieldManager=x%26y&force=true"), "four").await;
    assert_eq!(answer.status(), 200);
    let seen = server.seen.last();
    assert_eq!(
        seen.uri.path_and_query().expect("a path"),
        format!("/base{path}?fieldManager=x%26y&force=true").as_str()
    );
    assert_eq!((seen.method.as_str(), seen.uri.authority().expect("a server").as_str()), ("PATCH", "api.test:6443"));
    assert_eq!(seen.headers["authorization"], format!("Bearer {CLUSTER_TOKEN}"));
    assert_eq!(seen.headers["audit-id"], answer.headers()["x-request-id"]);
    assert!(!format!("{:?}", seen.headers).contains(&served.token()), "the door's token stays here");
    assert_eq!(answer.headers()["cache-control"], "no-cache, private");
    assert_eq!(answer.headers()["content-security-policy"], "sandbox; default-src 'none'");
    assert!(!format!("{:?}", answer.headers()).contains(CLUSTER_TOKEN));
    assert_eq!(text(answer).await, "{\"kind\":\"List\",\"got\":4}");

    let raw = served.raw("GET /k8s/a/api/v1/pods", &[], "").await;
    assert!(raw.starts_with("HTTP/1.1 200 ") && raw.ends_with("{\"kind\":\"List\",\"got\":0}"), "{raw}");
    served.stop().await;
}

#[tokio::test]
async fn three_hundred_reads_and_fifty_watches_of_one_client_share_few_connections() {
    let (server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let watches = join_all((0..50).map(|_| client.get("/k8s/a/api/v1/pods?watch=true"))).await;
    let answers = join_all((0..300).map(|_| async { text(client.get("/k8s/a/api/v1/pods").await).await })).await;
    assert!(answers.iter().all(|a| a.starts_with("{\"kind\":\"List\"")), "{answers:?}");
    assert!(watches.iter().all(|w| w.status() == 200));
    // 50 and 128 at once, 64 in a lane.
    let accepted = server.seen.accepted.load(Ordering::Relaxed);
    assert!(accepted <= 3, "{accepted} connections");
    served.stop().await;
}

#[tokio::test]
async fn reads_one_after_the_other_use_one_connection_in_either_protocol() {
    for protocols in [HTTP2, HTTP1] {
        let (server, served) = one(protocols).await;
        let client = Http2::connect(&served).await;
        for _ in 0..20 {
            text(client.get("/k8s/a/api/v1/pods").await).await;
        }
        assert_eq!(server.seen.accepted.load(Ordering::Relaxed), 1, "{protocols:?}");
        served.stop().await;
    }
}

#[tokio::test]
async fn a_watch_flows_as_it_is_sent_and_ends_at_the_server_with_its_client() {
    for protocols in [HTTP2, HTTP1] {
        let (server, served) = one(protocols).await;
        let client = Http2::connect(&served).await;
        let mut watch = client.get("/k8s/a/api/v1/pods?watch=true").await;
        for piece in ["ADDED", "MODIFIED"] {
            server.events.send(piece.into()).await.expect("a watch");
            let got = watch.frame().await.expect("a frame").expect("no error").into_data().expect("data");
            assert_eq!(got, piece, "before the next one is sent");
        }
        drop((watch, client));
        timeout(SOON, server.seen.unwatched()).await.expect("the server's watch has ended too");
        served.stop().await;
    }
}

#[tokio::test]
async fn a_watch_flows_over_http1_too() {
    let (server, served) = one(HTTP2).await;
    let mut stream = ask_over_http1(&served, "GET /k8s/a/api/v1/pods?watch=true", "\r\n").await;
    assert!(head(&mut stream).await.contains("transfer-encoding: chunked\r\n"));
    for piece in ["ADDED", "GONE!"] {
        server.events.send(piece.into()).await.expect("a watch");
        let mut got = [0; 10];
        stream.read_exact(&mut got).await.expect("a chunk");
        assert_eq!(String::from_utf8_lossy(&got), format!("5\r\n{piece}\r\n"));
    }
    drop(stream);
    timeout(SOON, server.seen.unwatched()).await.expect("the server's watch has ended too");
    served.stop().await;
}

#[tokio::test]
async fn a_large_body_goes_through_in_either_protocol() {
    let large = "x".repeat(16 << 20);
    for protocols in [HTTP2, HTTP1] {
        let (_server, served) = one(protocols).await;
        let client = Http2::connect(&served).await;
        let answer = client.send("POST", "/k8s/a/api/v1/namespaces/x/configmaps", &large).await;
        assert_eq!(text(answer).await, format!("{{\"kind\":\"List\",\"got\":{}}}", large.len()));
        served.stop().await;
    }
}

#[tokio::test]
async fn a_large_answer_waits_for_its_reader_and_arrives_whole() {
    let (server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let mut answer = client.get("/k8s/a/api/v1/namespaces/x/large").await;
    let ahead = async {
        // Nobody reads: production must stop by itself.
        while server.seen.produced.load(Ordering::Relaxed) < LARGE / 2 {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(SOON, ahead).await.is_err(), "half of it was taken in without a reader");
    // Other requests on the same connections are not held up by the reader that stands still.
    let other = timeout(SOON, client.get("/k8s/a/api/v1/pods")).await.expect("not held up");
    assert_eq!(other.status(), 200);
    let mut got = 0;
    while let Some(frame) = answer.frame().await {
        got += frame.expect("no error").into_data().expect("data").len();
    }
    assert_eq!(got, LARGE);
    served.stop().await;
}

#[tokio::test]
async fn readers_that_stand_still_do_not_hold_up_the_others() {
    let (_server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let still = join_all((0..20).map(|_| async {
        // Connections of their own to the door, so that only the one to the API server is shared.
        Http2::connect(&served).await.get("/k8s/a/api/v1/namespaces/x/large").await
    }))
    .await;
    let other = timeout(SOON, async { text(client.get("/k8s/a/api/v1/pods").await).await }).await;
    assert!(other.expect("not held up").starts_with('{'));
    drop(still);
    served.stop().await;
}

#[tokio::test]
async fn exec_is_a_stream_both_ways_by_websocket_and_by_spdy() {
    for (method, protocol) in [("GET", "websocket"), ("POST", "SPDY/3.1")] {
        let (server, served) = one(HTTP2).await;
        let what = format!("{method} /k8s/a/api/v1/namespaces/x/pods/p/exec?command=sh");
        let more = format!(
            "connection: Upgrade\r\nupgrade: {protocol}\r\nsec-websocket-protocol: v5.channel.k8s.io\r\ncontent-length: 0\r\n\r\n"
        );
        let mut stream = ask_over_http1(&served, &what, &more).await;
        let answer = head(&mut stream).await.to_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(answer.contains(&format!("upgrade: {}\r\n", protocol.to_lowercase())), "{answer}");
        let sent = vec![b'x'; 300_000];
        let mut got = vec![0; sent.len()];
        let (mut read, mut write) = tokio::io::split(stream);
        let (written, received) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        written.expect("sent");
        received.expect("echoed");
        assert!(got == sent);
        write.shutdown().await.expect("ended");
        assert_eq!(read.read(&mut got).await.expect("ended in order"), 0, "the far end ends with this one");
        let seen = server.seen.last();
        assert_eq!((seen.version, seen.method.as_str()), (http::Version::HTTP_11, method));
        assert_eq!(seen.headers["host"], "api.test:6443");
        assert_eq!(seen.headers["authorization"], format!("Bearer {CLUSTER_TOKEN}"));
        assert_eq!(seen.headers["sec-websocket-protocol"], "v5.channel.k8s.io");
        served.stop().await;
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_passed_back_with_its_reason() {
    let (_server, served) = one(HTTP2).await;
    let upgrade = ["upgrade: websocket", "connection: upgrade"];
    let answer = served.raw("GET /k8s/a/api/v1/namespaces/x/pods/p/attach", &upgrade, "").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("no shell for you"), "{answer}");
    served.stop().await;
}

#[tokio::test]
async fn a_cluster_that_hangs_fills_its_own_places_only() {
    let (hanging, healthy) = (Server::start(HTTP2).await, Server::start(HTTP2).await);
    let bounds = Bounds { short: 4, waiting: 0, lasting: 2, ..Bounds::default() };
    let served = door(&[("a", &hanging, writable()), ("b", &healthy, writable())], bounds).await;
    let client = Http2::connect(&served).await;
    let stuck: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/k8s/a/hang").await.status() })
        })
        .collect();
    while hanging.seen.paths().len() < 4 {
        tokio::task::yield_now().await;
    }
    let refused = client.get("/k8s/a/api/v1/pods").await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (code, reason, message) = status(refused).await;
    assert_eq!((code, reason.as_str()), (429, "TooManyRequests"), "{message}");
    for _ in 0..10 {
        assert_eq!(client.get("/k8s/b/api/v1/pods").await.status(), 200);
    }
    // What lasts has places of its own.
    let watches = [client.get("/k8s/a/api?watch=true").await, client.get("/k8s/a/api?watch=true").await];
    assert!(watches.iter().all(|w| w.status() == 200));
    assert_eq!(client.get("/k8s/a/api?watch=true").await.status(), 429);
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    drop((watches, client));
    served.stop().await;
}

#[tokio::test]
async fn a_read_only_cluster_is_read_and_nothing_else() {
    let server = Server::start(HTTP2).await;
    let served = door(&[("a", &server, read_only())], Bounds::default()).await;
    let client = Http2::connect(&served).await;
    assert_eq!(client.get("/k8s/a/api/v1/pods").await.status(), 200);
    let review = "/k8s/a/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(client.send("POST", review, "{}").await.status(), 200);
    let before = server.seen.paths().len();
    for (method, path) in [
        ("POST", "/api/v1/namespaces/x/pods"),
        ("PATCH", "/api/v1/namespaces/x/pods/p?dryRun=All"),
        ("DELETE", "/api/v1/namespaces/x"),
        ("GET", "/api/v1/namespaces/x/services/s/proxy/admin"),
    ] {
        let (code, reason, message) = status(client.send(method, &format!("/k8s/a{path}"), "").await).await;
        assert_eq!((code, reason.as_str()), (403, "Forbidden"), "{method} {path}");
        assert!(message.contains("guildnet cluster set a --read-only off"), "{message}");
    }
    let upgrade = ["upgrade: websocket", "connection: upgrade"];
    let shell = served.raw("GET /k8s/a/api/v1/namespaces/x/pods/p/exec?command=sh", &upgrade, "").await;
    assert!(shell.starts_with("HTTP/1.1 403 "), "{shell}");
    assert_eq!(server.seen.paths().len(), before, "none of it was passed on");
    served.stop().await;
}

#[tokio::test]
async fn an_open_shell_ends_when_its_cluster_becomes_read_only() {
    let (server, writing) = (Server::start(HTTP2).await, writable());
    let served = door(&[("a", &server, writing.clone())], Bounds::default()).await;
    let more = "connection: Upgrade\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n";
    let mut shell = ask_over_http1(&served, "GET /k8s/a/api/v1/namespaces/x/pods/p/exec?command=sh", more).await;
    assert!(head(&mut shell).await.starts_with("HTTP/1.1 101 "));
    shell.write_all(b"ls").await.expect("sent");
    let mut echoed = [0; 2];
    shell.read_exact(&mut echoed).await.expect("it is open");
    writing.cancel();
    // Cut: how TLS calls it is its affair.
    let _ = timeout(SOON, shell.read_to_end(&mut Vec::new())).await.expect("it has ended");
    served.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_said_as_kubernetes_says_it() {
    let (_server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let (code, reason, message) = status(client.get("/k8s/x/api").await).await;
    assert_eq!((code, reason.as_str()), (404, "NotFound"));
    assert!(message.contains("there is no cluster x") && message.contains("known clusters: a"), "{message}");
    let down = client.get("/k8s/down/api").await;
    assert!(!down.headers().contains_key("retry-after"), "kubectl would try again for a minute");
    let (code, reason, message) = status(down).await;
    assert_eq!((code, reason.as_str()), (503, "ServiceUnavailable"));
    assert!(
        message.contains("cluster down: the connector is not ready") && message.contains("guildnet verify"),
        "{message}"
    );
    let (code, _, message) = status(client.get("/k8s/a/unauthorized").await).await;
    assert_eq!(code, 502, "the client's own token is right");
    assert!(message.contains("does not accept the kubeconfig's credential"), "{message}");
    let mut stranger = client.clone();
    stranger.token = "A".repeat(43);
    let refused = stranger.get("/k8s/a/api").await;
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    let (code, reason, message) = status(refused).await;
    assert_eq!((code, reason.as_str()), (401, "Unauthorized"));
    assert!(message.contains("guildnet token"), "{message}");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_cuts_a_watch_when_its_grace_is_over() {
    let (server, served) = one(HTTP1).await;
    let mut stream = ask_over_http1(&served, "GET /k8s/a/api/v1/pods?watch=true", "\r\n").await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    served.stop().await;
    assert_eq!(begun.elapsed().as_secs(), 10);
    let mut rest = Vec::new();
    // Cut: how TLS calls it is its affair.
    let _ = stream.read_to_end(&mut rest).await;
    tokio::time::resume();
    timeout(SOON, server.seen.unwatched()).await.expect("the server's watch has ended too");
}

#[tokio::test]
async fn a_body_that_does_not_come_gives_its_place_back() {
    let (_server, served) = one(HTTP1).await;
    let begun_body = "connection: close\r\ncontent-length: 9\r\n\r\n{";
    let mut stream = ask_over_http1(&served, "POST /k8s/a/api/v1/namespaces", begun_body).await;
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"kind\":\"Status\""), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    served.stop().await;
}
