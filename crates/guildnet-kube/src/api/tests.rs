//! The client against a small API server on loopback: what it asks, trusts and says.

use guildnet_model::{Class, DialError, Explain as _};

use super::*;
use crate::fake::{FakeApi, Pki, access, client, pair, refusal, with_program};

fn ok(_: &crate::fake::Seen) -> (u16, String) {
    (200, "ok".to_owned())
}

#[tokio::test]
async fn the_name_is_checked_against_the_kubeconfig_and_not_against_the_dialled_address() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["api.example"]), ok).await;
    let api = client(access(pki.ca_pem(), "https://api.example:6443", None), server.address);
    assert!(api.readyz().await.expect("an answer").ready);
}

#[tokio::test]
async fn a_tls_server_name_replaces_the_urls_host() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["kubernetes"]), ok).await;
    let api = client(access(pki.ca_pem(), "https://door.example:6443", Some("kubernetes")), server.address);
    assert!(api.readyz().await.expect("an answer").ready);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_and_its_names_are_told() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["kubernetes"]), ok).await;
    let api = client(access(pki.ca_pem(), "https://10.96.0.1", None), server.address);
    let error = api.readyz().await.expect_err("refused");
    assert!(
        matches!(&error.cause, KubeCause::WrongName { wanted, presented } if wanted == "10.96.0.1" && presented.iter().any(|p| p.contains("kubernetes"))),
        "{error:?}"
    );
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn another_authority_is_refused_by_name_and_gets_no_request() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["10.96.0.1"]), ok).await;
    let api = client(access(Pki::new().ca_pem(), "https://10.96.0.1", None), server.address);
    assert_eq!(api.readyz().await.expect_err("refused").cause, KubeCause::WrongAuthority);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_expired_certificate_is_refused_as_such() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.expired_server(&["10.96.0.1"]), ok).await;
    let api = client(access(pki.ca_pem(), "https://10.96.0.1", None), server.address);
    let error = api.readyz().await.expect_err("refused");
    assert!(matches!(error.cause, KubeCause::CertificateTime { .. }), "{error:?}");
}

#[tokio::test]
async fn the_token_and_the_path_prefix_go_with_every_request() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["rancher"]), ok).await;
    let api = client(access(pki.ca_pem(), "https://rancher/k8s/c1/", None), server.address);
    api.readyz().await.expect("an answer");
    let seen = server.seen();
    assert_eq!((seen[0].target.as_str(), seen[0].authorization.as_str()), ("/k8s/c1/readyz", "Bearer t0ken"));
}

#[tokio::test]
async fn a_server_that_is_not_ready_names_its_failing_checks() {
    let (_server, api) = pair(|_| {
        (500, "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/x failed: y\nreadyz check failed\n".into())
    })
    .await;
    let answer = api.readyz().await.expect("an answer");
    assert_eq!((answer.ready, answer.failing), (false, vec!["etcd".to_owned(), "poststarthook/x".to_owned()]));
}

#[tokio::test]
async fn a_refused_credential_is_a_matter_of_credentials() {
    for (code, wanted) in [(401, "does not accept"), (403, "not allowed")] {
        let (_server, api) = pair(move |_| refusal(code, "no entry")).await;
        for error in [api.readyz().await.expect_err("refused"), api.cluster_uid().await.expect_err("refused")] {
            assert_eq!(error.class(), Class::Credentials);
            assert!(error.to_string().contains(wanted) && error.to_string().contains("no entry"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_closed_port_is_the_dialers_error() {
    let pki = Pki::new();
    let address = FakeApi::serve(pki.server(&["a"]), ok).await.address;
    let api = client(access(pki.ca_pem(), "https://a", None), address);
    let error = api.readyz().await.expect_err("nobody there");
    assert_eq!(error.cause, KubeCause::Dial(DialError::Refused { target: address.into() }));
    assert_eq!(error.class(), Class::Unreachable);
}

/// Dials streams whose far end is gone already, and counts them.
#[derive(Debug, Default)]
struct Broken {
    dials: std::sync::atomic::AtomicUsize,
}

impl Dialer for Broken {
    fn dial(&self, _: Target) -> guildnet_model::BoxFuture<'_, Result<Box<dyn guildnet_model::Io>, DialError>> {
        self.dials.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (near, _) = tokio::io::duplex(1 << 16);
        Box::pin(async move { Ok(Box::new(near) as Box<dyn guildnet_model::Io>) })
    }
}

#[tokio::test]
async fn a_question_on_a_connection_that_breaks_is_asked_once_more() {
    let dialer = Arc::new(Broken::default());
    let access = access(Pki::new().ca_pem(), "https://10.96.0.1", None);
    let api = ApiServer::new(&ApiServerSpec { access, address: None }, Arc::clone(&dialer) as Arc<dyn Dialer>);
    let error = api.readyz().await.expect_err("broken");
    assert!(matches!(error.cause, KubeCause::Lost { .. }), "{error:?}");
    assert_eq!(dialer.dials.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn connections_are_shared_and_closing_ends_them() {
    let (server, api) = pair(ok).await;
    for _ in 0..3 {
        api.readyz().await.expect("an answer");
    }
    assert_eq!(server.seen().len(), 3);
    assert!(!api.0.tasks.tracker.is_empty(), "a connection is kept");
    api.close().await;
    assert!(api.0.tasks.tracker.is_empty());
}

#[test]
fn the_urls_own_port_or_443_is_dialled() {
    let at = |url: &str| match peer(&url.parse().expect("a URL")) {
        Peer::Address(target) => target.to_string(),
        Peer::Name { host, port } => format!("{host} {port}"),
    };
    assert_eq!(at("https://10.0.0.1"), "10.0.0.1:443");
    assert_eq!(at("https://[fd00::1]:6443"), "[fd00::1]:6443");
    assert_eq!(at("https://api.example"), "api.example 443");
}

/// Takes the second token only.
fn second_only(seen: &crate::fake::Seen) -> (u16, String) {
    if seen.authorization == "Bearer t2" { (200, "ok".into()) } else { refusal(401, "Unauthorized") }
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_and_the_question_asked_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    let script = "#!/bin/sh\ncd ${0%/*}\necho x >> runs\necho '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"t'$(wc -l < runs)'\"}}'\n";
    std::fs::write(&program, script).expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["10.96.0.1"]), second_only).await;
    let api = client(with_program(pki.ca_pem(), program), server.address);
    assert!(api.readyz().await.expect("an answer").ready);
    let sent: Vec<String> = server.seen().into_iter().map(|seen| seen.authorization).collect();
    assert_eq!(sent, ["Bearer t1", "Bearer t2"]);
}

#[tokio::test]
async fn a_program_that_fails_is_told_and_nothing_is_sent() {
    let pki = Pki::new();
    let server = FakeApi::serve(pki.server(&["10.96.0.1"]), ok).await;
    let api = client(with_program(pki.ca_pem(), "/bin/false".into()), server.address);
    let error = api.readyz().await.expect_err("no token");
    assert_eq!(error.class(), Class::Credentials);
    assert!(
        error.to_string().ends_with("the program /bin/false that gets its credential: it ended with exit code 1"),
        "{error}"
    );
    assert!(server.seen().is_empty());
}
