//! The router's manifests as text, and their equality with what `deploy/` holds.

use super::*;
use guildnet_model::Secret as Sealed;

fn plan() -> RouterPlan {
    RouterPlan {
        auth_key: Some(Sealed::new("hskey-auth-very-secret".into())),
        site_routes: vec!["fd7a:115c:a1e0:b1a:0:7::/96".parse().expect("a network")],
        ca_pem: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".into()),
        ..RouterPlan::new(
            "a".parse().expect("an id"),
            "https://10.99.0.1:8443".parse().expect("a URL"),
            "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
        )
    }
}

#[test]
fn the_whole_of_it() {
    insta::assert_snapshot!(manifests_yaml(&plan(), true));
}

#[test]
fn the_file_that_users_can_apply_is_what_the_program_applies() {
    let plan = RouterPlan::new(
        "CLUSTER".to_lowercase().parse().expect("an id"),
        "https://headscale.example.com".parse().expect("a URL"),
        "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/router/router.yaml");
    let written = std::fs::read_to_string(path).expect("the file");
    let body: String = written.lines().skip_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    assert_eq!(body, manifests_yaml(&plan, false));
}

#[test]
fn the_key_is_printed_only_when_asked_for() {
    let key = "aHNrZXktYXV0aC12ZXJ5LXNlY3JldA==";
    assert!(manifests_yaml(&plan(), true).contains(key));
    let without = manifests_yaml(&plan(), false);
    assert!(!without.contains(key) && !without.contains("very-secret") && !without.contains("kind: Secret"));
}

#[test]
fn another_key_does_not_disturb_routers_that_have_joined() {
    let set = |plan: &RouterPlan| manifests(plan).into_iter().find(|m| matches!(m.0, Object::DaemonSet(_)));
    let other = RouterPlan { auth_key: Some(Sealed::new("another".into())), ..plan() };
    assert_eq!(set(&plan()), set(&other));
}

#[test]
fn another_authority_starts_new_pods() {
    let set = |plan: &RouterPlan| manifests(plan).into_iter().find(|m| matches!(m.0, Object::DaemonSet(_)));
    let other = RouterPlan { ca_pem: Some("another".into()), ..plan() };
    assert_ne!(set(&plan()), set(&other));
}

#[test]
fn another_login_server_means_another_identity() {
    let state = |server: &str| {
        let plan = RouterPlan { login_server: server.parse().expect("a URL"), ..plan() };
        environment(&plan).into_iter().find(|e| e.name == "TS_STATE_DIR").and_then(|e| e.value)
    };
    assert_ne!(state("https://a.example"), state("https://b.example"));
    assert_eq!(state("https://a.example"), state("https://a.example/"));
}

#[test]
fn clusters_on_one_machine_do_not_share_identities() {
    let path = |id: &str| {
        let plan = RouterPlan { cluster: id.parse().expect("an id"), ..plan() };
        volumes(&plan).into_iter().find(|v| v.name == "state").and_then(|v| v.host_path).map(|h| h.path)
    };
    assert_ne!(path("a"), path("b"));
}
