//! What is passed on, and over which connections, against a small API server on loopback.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use guildnet_model::{BoxFuture, DialError, Dialer, Io, Target};
use http_body_util::Full;

use super::*;
use crate::{
    ApiServerSpec, DirectDialer,
    fake::{FakeApi, Pki, Seen, access},
};

/// Counts its dials; those after the first `good` ones are refused, each after the others have had their turn.
#[derive(Debug)]
struct Counting {
    dials: AtomicUsize,
    good: usize,
}

impl Counting {
    fn new(good: usize) -> Arc<Self> {
        Arc::new(Self { dials: AtomicUsize::new(0), good })
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }
}

impl Dialer for Counting {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        let broken = self.dials.fetch_add(1, Ordering::Relaxed) >= self.good;
        Box::pin(async move {
            if broken {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                return Err(DialError::Refused { target: to });
            }
            DirectDialer.dial(to).await
        })
    }
}

fn echo(seen: &Seen) -> (u16, String) {
    (200, format!("{} {}", seen.what(), seen.body))
}

async fn server(dialer: Arc<Counting>) -> (FakeApi, ApiServer) {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["rancher"]), echo).await;
    let access = access(pki.ca_pem(), "https://rancher/k8s/c1/", None);
    let api = ApiServer::new(&ApiServerSpec { access, address: Some(server.address.into()) }, dialer);
    (server, api)
}

fn request(method: &str, uri: &str, body: &str) -> Request<ForwardBody> {
    let body = match body {
        "" => nothing(),
        text => Full::from(text.to_owned()).map_err(|never| match never {}).boxed_unsync(),
    };
    Request::builder().method(method).uri(uri).body(body).expect("a request")
}

async fn text(answer: Result<Response<ForwardBody>, KubeError>) -> String {
    let body = answer.expect("an answer").into_body().collect().await.expect("whole").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test]
async fn the_servers_prefix_and_credential_are_put_in_front_whatever_the_request_names() {
    let (server, api) = server(Counting::new(9)).await;
    let mut asked = request("PUT", "https://evil.example/api/v1/pods/a%2Fb?x=%26&y", "content");
    asked.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer somebody"));
    asked.headers_mut().insert(HOST, HeaderValue::from_static("evil.example"));
    assert_eq!(text(api.forward(asked).await).await, "PUT /k8s/c1/api/v1/pods/a%2Fb content");
    let seen = server.seen();
    assert_eq!(seen[0].target, "/k8s/c1/api/v1/pods/a%2Fb?x=%26&y");
    assert_eq!(seen[0].authorization, "Bearer t0ken");
}

#[tokio::test]
async fn the_first_requests_of_all_share_one_dial() {
    let dialer = Counting::new(9);
    let (_server, api) = server(Arc::clone(&dialer)).await;
    let answers = join_all((0..64).map(|_| async { text(api.forward(request("GET", "/x", "")).await).await })).await;
    assert!(answers.iter().all(|a| a == "GET /k8s/c1/x "), "{answers:?}");
    assert_eq!(dialer.dials(), 1);
}

#[tokio::test]
async fn who_waits_for_a_dial_that_fails_does_not_dial_again() {
    let dialer = Counting::new(0);
    let (_server, api) = server(Arc::clone(&dialer)).await;
    let answers = join_all((0..64).map(|_| api.forward(request("GET", "/x", "")))).await;
    assert!(answers.into_iter().all(|a| matches!(a, Err(KubeError { cause: KubeCause::Dial(_), .. }))));
    assert_eq!(dialer.dials(), 1);
}

#[tokio::test]
async fn more_than_the_lanes_hold_is_refused_and_the_room_comes_back() {
    let (_server, api) = server(Counting::new(99)).await;
    let answers = join_all((0..512).map(|_| api.forward(request("GET", "/x", "")))).await;
    assert!(answers.iter().all(Result::is_ok));
    // Their bodies are not read yet.
    let full = api.forward(request("GET", "/x", "")).await;
    assert!(matches!(full, Err(KubeError { cause: KubeCause::Dial(DialError::TooMany { .. }), .. })));
    drop(answers);
    assert_eq!(text(api.forward(request("GET", "/x", "")).await).await, "GET /k8s/c1/x ");
}

#[tokio::test]
async fn a_dead_connection_is_replaced_for_what_reads() {
    let pki = Pki::new();
    let identity = pki.server(&["10.96.0.1"]);
    let dialer = Arc::new(Switch::default());
    let access = access(pki.ca_pem(), "https://10.96.0.1", None);
    let api = ApiServer::new(&ApiServerSpec { access, address: None }, Arc::clone(&dialer) as Arc<dyn Dialer>);
    for _ in 0..2 {
        let server = FakeApi::serve(identity.clone(), echo).await;
        *dialer.0.lock().expect("not poisoned") = Some(server.address);
        assert_eq!(text(api.forward(request("GET", "/x", "")).await).await, "GET /x ");
        // Gone, with its connections; nobody has told the client.
        drop(server);
    }
}

/// Dials wherever it is told to, whatever the target.
#[derive(Debug, Default)]
struct Switch(std::sync::Mutex<Option<std::net::SocketAddr>>);

impl Dialer for Switch {
    fn dial(&self, _: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        let to = self.0.lock().expect("not poisoned").expect("an address");
        Box::pin(async move { DirectDialer.dial(to.into()).await })
    }
}

#[tokio::test]
async fn closing_ends_the_connections_of_what_was_passed_on() {
    let (_server, api) = server(Counting::new(9)).await;
    text(api.forward(request("GET", "/x", "")).await).await;
    api.close().await;
    assert!(api.forward(request("GET", "/x", "")).await.is_err());
}
