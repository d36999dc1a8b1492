//! The contract against the fake, the fake's own bends of it, and, on request, the contract against a real server.

use std::{env, fs};

use guildnet_model::{Class, Explain as _};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::*;
use crate::{
    ServerVersion,
    fake::{Behaviour, Fake, PolicyCall},
};

async fn fails_of(server: &HeadscaleConfig) -> Vec<String> {
    let verdicts = run(server).await;
    verdicts.into_iter().filter_map(|(name, verdict)| Some(format!("{name}: {}", verdict.err()?))).collect()
}

#[tokio::test]
async fn the_fake_meets_the_contract() {
    let fake = Fake::start(Behaviour::default()).await;
    assert_eq!(fails_of(&fake.config()).await, [""; 0]);
}

#[tokio::test]
async fn the_contract_holds_with_problem_documents_too() {
    let fake = Fake::start(Behaviour { problems: true, ..Behaviour::default() }).await;
    assert_eq!(fails_of(&fake.config()).await, [""; 0]);
}

#[tokio::test]
async fn the_contract_holds_without_via_and_tests() {
    let fake = Fake::start(Behaviour { version: Some("v0.28.0"), ..Behaviour::default() }).await;
    assert_eq!(fails_of(&fake.config()).await, [""; 0]);
}

#[tokio::test]
#[ignore = "needs a real server: set GUILDNET_HEADSCALE_URL, GUILDNET_HEADSCALE_API_KEY_FILE, GUILDNET_HEADSCALE_CA"]
async fn a_real_server_meets_the_contract() {
    let set = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let key = fs::read_to_string(set("GUILDNET_HEADSCALE_API_KEY_FILE")).expect("the API key");
    let server = HeadscaleConfig {
        url: set("GUILDNET_HEADSCALE_URL").parse().expect("a URL"),
        api_key: Some(Secret::new(key.trim().to_owned())),
        ca_pem: env::var("GUILDNET_HEADSCALE_CA").ok().map(|path| fs::read_to_string(path).expect("the CA")),
    };
    assert_eq!(fails_of(&server).await, [""; 0]);
}

#[tokio::test]
async fn a_server_without_a_version_is_026_and_an_unreleased_one_is_asked() {
    let of = async |version| {
        let fake = Fake::start(Behaviour { version, ..Behaviour::default() }).await;
        fake.client().server().await.expect("known")
    };
    let old = of(None).await;
    assert_eq!((old.version, old.features), (ServerVersion::Before027, ServerFeatures::BEFORE_029));
    assert_eq!(of(Some("dev")).await.features, ServerFeatures::CURRENT);
    assert_eq!(of(Some("fork")).await.features, ServerFeatures::BEFORE_029);
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named() {
    let fake = Fake::start(Behaviour { version: Some("v0.25.1"), ..Behaviour::default() }).await;
    let error = fake.client().server().await.expect_err("too old");
    assert!(error.to_string().contains("0.25.1; 0.26 or later"), "{error}");
}

#[tokio::test]
async fn a_policy_in_a_file_says_how_to_change_that() {
    let fake = Fake::start(Behaviour { policy_in_file: true, ..Behaviour::default() }).await;
    let error = fake.client().set_policy("{}").await.expect_err("a file");
    assert_eq!(error.class(), Class::Precondition);
    assert!(error.hint().expect("a hint").contains("policy.mode: database"));
}

#[tokio::test]
async fn a_namespace_is_not_removed_where_that_would_end_other_namespaces_keys() {
    let remains_of = async |version| {
        let fake = Fake::start(Behaviour { version: Some(version), ..Behaviour::default() }).await;
        let hs = fake.client();
        let [goes, stays] = ["goes", "stays"].map(|id| id.parse::<ClusterId>().expect("an id"));
        let gone = ensure_namespace(&hs, &goes, &EnsureKeys::default(), None).await.expect("made");
        let left = ensure_namespace(&hs, &stays, &EnsureKeys::default(), None).await.expect("made");
        let removed = hs.delete_user(gone.file.namespace_id.expect("a number")).await;
        (removed, hs.keys(left.file.namespace_id.expect("a number")).await.expect("a list").len())
    };
    let (removed, keys) = remains_of("v0.28.0").await;
    assert!(matches!(removed, Err(HeadscaleError::WouldEndKeys { keys: 2, .. })), "{removed:?}");
    assert_eq!(keys, 2);
    assert_eq!(remains_of("v0.29.2").await, (Ok(()), 2));
}

/// What a device without any knowledge of others writes for its cluster.
fn written_for(cluster: &PolicyInput) -> String {
    crate::compile(std::slice::from_ref(cluster), ServerFeatures::CURRENT).expect("a policy").to_json()
}

/// Two devices' clusters.
fn two() -> [PolicyInput; 2] {
    [7, 8].map(|site| input(&cluster().expect("an id"), site).expect("an input"))
}

/// Our cluster is applied while another device writes `theirs` once, after the first call of this kind.
async fn interleaved(after: PolicyCall, ours: PolicyInput, theirs: &PolicyInput) -> (Vec<ClusterId>, usize) {
    let fake = Fake::start(Behaviour::default()).await;
    let mut theirs = Some(written_for(theirs));
    fake.tables().rival = Some(Box::new(move |call, _| (call == after).then(|| theirs.take()).flatten()));
    let request = PolicyRequest { clusters: &[ours], ..PolicyRequest::default() };
    apply_policy(&fake.client(), ServerFeatures::CURRENT, &request).await.expect("applied");
    let known = known_clusters(fake.tables().policy.as_deref()).expect("clusters");
    (known.into_iter().map(|c| c.cluster).collect(), fake.tables().policy_writes)
}

#[tokio::test]
async fn a_rival_that_writes_between_our_look_and_our_write_is_not_overwritten() {
    let [a, b] = two();
    let both = vec![a.cluster.clone(), b.cluster.clone()];
    assert_eq!(interleaved(PolicyCall::Read, a, &b).await, (both, 1));
}

#[tokio::test]
async fn a_rival_that_undoes_our_write_gets_both_clusters() {
    let [a, b] = two();
    let both = vec![a.cluster.clone(), b.cluster.clone()];
    assert_eq!(interleaved(PolicyCall::Written, a, &b).await, (both, 2));
}

#[tokio::test]
async fn a_rival_that_always_undoes_the_policy_is_given_up_on_after_three_tries() {
    for always in [PolicyCall::Read, PolicyCall::Written] {
        let fake = Fake::start(Behaviour::default()).await;
        let [ours, theirs] = two();
        let mut count = 0;
        fake.tables().rival = Some(Box::new(move |call, _| {
            count += 1;
            // Every time another text of the same.
            (call == always).then(|| format!("{}{}", written_for(&theirs), " ".repeat(count)))
        }));
        let request = PolicyRequest { clusters: &[ours], ..PolicyRequest::default() };
        let error = apply_policy(&fake.client(), ServerFeatures::CURRENT, &request).await.expect_err("undone");
        assert!(matches!(error, HeadscaleError::PolicyRace { times: 3, .. }), "{error}");
        assert_eq!(error.class(), Class::Conflict);
        assert!(error.hint().expect("a hint").contains("run the command again"));
        assert_eq!(fake.tables().policy_writes, if always == PolicyCall::Read { 0 } else { 3 });
    }
}

#[tokio::test]
async fn two_devices_add_and_remove_their_clusters_beside_each_other() {
    let fake = Fake::start(Behaviour::default()).await;
    let hs = fake.client();
    let clusters = two();
    for one in clusters.chunks(1) {
        let request = PolicyRequest { clusters: one, ..PolicyRequest::default() };
        apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect("applied");
    }
    let forget = [clusters[0].cluster.clone()];
    let request = PolicyRequest { forget: &forget, ..PolicyRequest::default() };
    let left = apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect("forgotten").clusters;
    assert_eq!(left.iter().map(|c| &c.cluster).collect::<Vec<_>>(), [&clusters[1].cluster]);
    assert_eq!(apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect("again").diff, None);
}

#[tokio::test]
async fn a_server_with_nodes_of_others_is_closed_only_when_told_to() {
    let fake = Fake::start(Behaviour::default()).await;
    let hs = fake.client();
    let user = hs.ensure_user("alice").await.expect("a user");
    for (n, name) in ["laptop", "nas"].into_iter().enumerate() {
        hs.pretend_node(&user.name, name, &[], n as u64).await.expect("a node");
    }
    let clusters = two();
    let request = PolicyRequest { clusters: &clusters, ..PolicyRequest::default() };
    let error = apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect_err("refused");
    assert_eq!(error.class(), Class::Conflict);
    assert!(error.to_string().contains("laptop (reaches nas), nas (reaches laptop)"), "{error}");
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("--merge") && hint.contains("--cut-off-others"), "{hint}");
    assert_eq!(fake.tables().policy, None);
    let told = PolicyRequest { cut_off_others: true, ..request };
    apply_policy(&hs, ServerFeatures::CURRENT, &told).await.expect("told to");
    fake.tables().policy = None;
    let kept = PolicyRequest { merge: true, ..request };
    apply_policy(&hs, ServerFeatures::CURRENT, &kept).await.expect("kept");
    assert!(fake.tables().policy.as_deref().is_some_and(|p| p.contains("autogroup:member:*")));
}

#[tokio::test]
async fn a_key_without_rights_on_the_policy_is_told_so() {
    let fake = Fake::start(Behaviour { policy_denied: true, ..Behaviour::default() }).await;
    let hs = fake.client();
    for error in [hs.policy().await.expect_err("denied"), hs.set_policy("{}").await.expect_err("denied")] {
        assert!(matches!(error, HeadscaleError::PolicyDenied { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Credentials);
        assert!(error.hint().expect("a hint").contains("guildnet headscale policy show --compiled"));
    }
}

#[tokio::test]
async fn a_policy_in_a_file_is_enough_if_it_is_the_right_one() {
    let fake = Fake::start(Behaviour { policy_in_file: true, ..Behaviour::default() }).await;
    let hs = fake.client();
    let clusters = two();
    let request = PolicyRequest { clusters: &clusters, ..PolicyRequest::default() };
    for held in [None, Some("{}".to_owned())] {
        fake.tables().policy = held;
        assert!(hs.held_policy().await.expect("held").in_file);
        let error = apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect_err("a file");
        assert!(matches!(error, HeadscaleError::PolicyReadOnly { .. }), "{error:?}");
    }
    fake.tables().policy = Some(crate::compile(&clusters, ServerFeatures::CURRENT).expect("a policy").to_json());
    assert_eq!(apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect("as asked").diff, None);
}

#[tokio::test]
async fn foreign_rules_are_not_overwritten() {
    let fake = Fake::start(Behaviour::default()).await;
    let foreign = r#"{"groups": {"group:x": ["alice@"]}, "acls": []}"#;
    fake.tables().policy = Some(foreign.to_owned());
    let input = [input(&cluster().expect("an id"), 7).expect("an input")];
    let request = PolicyRequest { clusters: &input, ..PolicyRequest::default() };
    let error = apply_policy(&fake.client(), ServerFeatures::CURRENT, &request).await.expect_err("foreign");
    assert_eq!(error.class(), Class::Conflict);
    assert_eq!(error.hint().map(|h| h.contains("--merge")), Some(true));
    assert_eq!(fake.tables().policy.as_deref(), Some(foreign));
}

fn https(address: std::net::SocketAddr, host: &str, ca_pem: Option<String>) -> Headscale {
    let url = format!("https://{host}:{}", address.port()).parse().expect("a URL");
    Headscale::new(HeadscaleConfig { url, api_key: None, ca_pem }).expect("a client")
}

/// A TLS server that shows one certificate and closes, for as many connections as come. Returns its certificate.
async fn tls_server(name: &str) -> (std::net::SocketAddr, String, tokio::task::JoinHandle<()>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config =
        rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a config");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // The client hangs up in the middle of the handshake: that is the test.
            let _ = acceptor.accept(tcp).await;
        }
    });
    (address, made.cert.pem(), task)
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_names_the_flag() {
    let (address, _, task) = tls_server("localhost").await;
    let error = https(address, "localhost", None).health().await.expect_err("not trusted");
    assert!(matches!(error, HeadscaleError::NotTrusted { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.hint().expect("a hint").contains("--headscale-ca FILE"));
    task.abort();
}

#[tokio::test]
async fn a_certificate_of_another_name_is_told_from_one_that_is_not_trusted() {
    let (address, pem, task) = tls_server("elsewhere.test").await;
    let error = https(address, "localhost", Some(pem)).health().await.expect_err("another name");
    assert!(matches!(error, HeadscaleError::BadCertificate { .. }), "{error:?}");
    task.abort();
}

/// A server that says one thing to everybody.
async fn says(answer: &'static str) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut tcp, &mut [0; 4096]).await;
            let _ = tcp.write_all(answer.as_bytes()).await;
        }
    });
    (address, task)
}

#[tokio::test]
async fn what_is_not_headscale_is_named_so() {
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.test/\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope",
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 51\r\n\r\nClient sent an HTTP request to an HTTPS server.    ",
    ];
    for answer in answers {
        let (address, task) = says(answer).await;
        let url = format!("http://{address}").parse().expect("a URL");
        let hs = Headscale::new(HeadscaleConfig { url, api_key: None, ca_pem: None }).expect("a client");
        let errors = [hs.health().await.expect_err("not Headscale"), hs.server().await.expect_err("not Headscale")];
        for error in errors {
            assert!(matches!(error, HeadscaleError::NotHeadscale { .. }), "{answer}: {error:?}");
        }
        task.abort();
    }
    let (address, task) = says("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let error = https(address, "localhost", None).health().await.expect_err("no TLS");
    assert!(matches!(error, HeadscaleError::NotHeadscale { .. }), "{error:?}");
    task.abort();
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let error = https(address, "127.0.0.1", None).health().await.expect_err("nobody");
    assert!(error.to_string().to_lowercase().contains("connection refused"), "{error}");
    assert_eq!(error.class(), Class::Unreachable);
}

#[tokio::test]
async fn neither_debug_nor_errors_hold_the_api_key() {
    let fake = Fake::start(Behaviour::default()).await;
    let config = HeadscaleConfig { api_key: Some(Secret::new("hskey-api-secret".into())), ..fake.config() };
    let hs = Headscale::new(config.clone()).expect("a client");
    let error = hs.users().await.expect_err("a wrong key");
    for text in [format!("{hs:?} {config:?}"), format!("{error:?} {error} {:?}", error.hint())] {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn addresses_that_can_t_be_headscale_s_are_refused() {
    for bad in ["ftp://h", "unix:/run/x", "https://user:pass@h"] {
        let config = HeadscaleConfig { url: bad.parse().expect("a URL"), api_key: None, ca_pem: None };
        assert!(matches!(Headscale::new(config), Err(HeadscaleError::BadUrl { .. })), "{bad}");
    }
}
