//! The policy's operations against a small server that has a policy and nodes, and the store of a fresh home folder.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use guildnet_model::Secret;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use super::*;
use crate::Silent;

/// What the server holds, and how it behaves.
#[derive(Default)]
struct Held {
    policy: Option<String>,
    nodes: Vec<Value>,
    in_file: bool,
}

type Shared = Arc<Mutex<Held>>;

struct Fake {
    held: Shared,
    home: tempfile::TempDir,
    settings: Settings,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    async fn start() -> Self {
        let held = Shared::default();
        let routes = Router::new()
            .route("/version", get(|| async { Json(json!({"version": "v0.29.2"})) }))
            .route("/api/v1/policy", get(read).put(write))
            .route("/api/v1/policy/check", post(|| async { Json(json!({})) }))
            .route("/api/v1/node", get(nodes))
            .route("/api/v1/user", get(|| async { Json(json!({"users": [{"id": "7", "name": "cluster-a"}]})) }))
            .with_state(Arc::clone(&held));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        let home = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::new(home.path().to_owned());
        settings.headscale_url = Some(format!("http://{address}").parse().expect("a URL"));
        settings.api_key = Some(Secret::new("hskey-api-good".into()));
        Self { held, home, settings, task }
    }

    fn policy(&self) -> Option<String> {
        self.held.lock().expect("no panic holds it").policy.clone()
    }

    fn set(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.lock().expect("no panic holds it"));
    }

    async fn apply(&self, id: &str, consent: Consent) -> Result<PolicyDone, HostError> {
        policy_apply(&self.settings, &[named(id)], consent, &Silent).await
    }

    async fn rollback(&self, discard_changes: bool) -> Result<PolicyDone, HostError> {
        policy_rollback(&self.settings, discard_changes, false, &Silent).await
    }
}

async fn read(State(held): State<Shared>) -> Response {
    let held = held.lock().unwrap_or_else(PoisonError::into_inner);
    match &held.policy {
        Some(policy) if held.in_file => Json(json!({"policy": policy, "updatedAt": null})).into_response(),
        Some(policy) => Json(json!({"policy": policy, "updatedAt": "2026-01-01T00:00:00Z"})).into_response(),
        None => refuse("loading ACL from database: acl policy not found"),
    }
}

async fn write(State(held): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    if body["policy"].as_str().is_some_and(|p| p.contains("refuse-me")) {
        return refuse("setting policy: it holds refuse-me");
    }
    held.policy = body["policy"].as_str().map(str::to_owned);
    Json(json!({"policy": body["policy"]})).into_response()
}

fn refuse(said: &str) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"code": 2, "message": said}))).into_response()
}

async fn nodes(State(held): State<Shared>) -> Json<Value> {
    Json(json!({"nodes": held.lock().unwrap_or_else(PoisonError::into_inner).nodes}))
}

fn named(id: &str) -> PolicyCluster {
    let routes = "10.96.0.0/16,10.244.0.0/16".parse().expect("networks");
    PolicyCluster { id: id.parse().expect("an id"), routes, site: None }
}

fn known(fake: &Fake) -> Vec<String> {
    let known = known_clusters(fake.policy().as_deref()).expect("readable");
    known.into_iter().map(|c| c.cluster.to_string()).collect()
}

#[tokio::test]
async fn what_was_applied_can_be_rolled_back_and_that_too() {
    let fake = Fake::start().await;
    fake.apply("a", Consent::default()).await.expect("applied");
    let first = fake.policy();
    let done = fake.apply("b", Consent::default()).await.expect("applied");
    assert!(done.said.contains("2 clusters kept apart"), "{}", done.said);
    assert_eq!(known(&fake), ["a", "b"]);

    let back = fake.rollback(false).await.expect("rolled back");
    assert_eq!(fake.policy(), first);
    assert!(back.diff.is_some_and(|d| d.contains("tag:gn-b-router")));
    fake.rollback(false).await.expect("the rollback is rolled back");
    assert_eq!(known(&fake), ["a", "b"]);
    fake.rollback(false).await.expect("again");
    assert_eq!(fake.policy(), first);
}

#[tokio::test]
async fn the_first_policy_is_rolled_back_to_one_that_allows_all() {
    let fake = Fake::start().await;
    assert_eq!(fake.rollback(false).await.expect_err("nothing was written").class(), Class::NotFound);
    fake.apply("a", Consent::default()).await.expect("applied");
    fake.rollback(false).await.expect("rolled back");
    assert_eq!(fake.policy().as_deref(), Some("{}"));
    assert_eq!(policy_show(&fake.settings).await.expect("shown").verdict, "allows-all");
}

#[tokio::test]
async fn a_policy_that_somebody_changed_since_is_not_lost_to_a_rollback() {
    let fake = Fake::start().await;
    fake.apply("a", Consent::default()).await.expect("applied");
    fake.apply("b", Consent::default()).await.expect("applied");
    fake.set(|held| held.policy = Some(r#"{"acls": [], "groups": {"group:new": ["alice@"]}}"#.into()));
    let refused = fake.rollback(false).await.expect_err("changed since");
    assert_eq!(refused.class(), Class::Conflict);
    assert!(refused.hint().is_some_and(|h| h.contains("--discard-changes")));
    assert!(fake.policy().is_some_and(|p| p.contains("group:new")), "it was overwritten");
    fake.rollback(true).await.expect("told to");
    assert_eq!(known(&fake), ["a"]);
    fake.rollback(false).await.expect("undone");
    assert!(fake.policy().is_some_and(|p| p.contains("group:new")), "what was discarded comes back");
}

#[tokio::test]
async fn nodes_of_others_are_named_and_nothing_is_written() {
    let fake = Fake::start().await;
    let node = |id: u32, name: &str| json!({"id": id.to_string(), "name": name, "user": {"name": "alice"}});
    fake.set(|held| held.nodes = vec![node(1, "laptop"), node(2, "nas")]);
    let refused = fake.apply("a", Consent::default()).await.expect_err("cut off");
    assert_eq!(refused.class(), Class::Conflict);
    assert!(refused.to_string().contains("laptop (reaches nas)"), "{refused}");
    assert_eq!(fake.policy(), None);
    assert!(!fake.home.path().join("guildnet.db").exists(), "a store was made for nothing");
    let seen = policy_diff(&fake.settings, &[named("a")], Consent::default()).await.expect("a diff");
    assert!(seen.lines.contains("tag:gn-a-client"), "{}", seen.lines);
    assert_eq!(seen.refusal.map(|r| r.to_string()), Some(refused.to_string()));
    fake.apply("a", Consent::from(true)).await.expect("with a rule for them");
    assert!(fake.policy().is_some_and(|p| p.contains("autogroup:member")));
}

#[tokio::test]
async fn a_server_with_its_policy_in_a_file_is_told_apart_and_gets_the_document_by_hand() {
    let fake = Fake::start().await;
    fake.set(|held| (held.policy, held.in_file) = (Some("{}".into()), true));
    let refused = fake.apply("a", Consent::default()).await.expect_err("a file");
    assert_eq!(refused.class(), Class::Precondition);
    let hint = refused.hint().expect("a hint");
    assert!(hint.contains("policy show --compiled --cluster a=10.96.0.0/16,10.244.0.0/16@7\n"), "{hint}");
    assert_eq!(fake.policy().as_deref(), Some("{}"));
    let document = policy_compiled(&fake.settings, &[named("a")], Consent::default()).await.expect("a document");
    fake.set(|held| held.policy = Some(document));
    let done = fake.apply("a", Consent::default()).await.expect("put there by hand");
    assert_eq!(done.diff, None);
    assert!(policy_show(&fake.settings).await.expect("shown").in_file);
}

#[tokio::test]
async fn a_refused_policy_leaves_no_note() {
    let fake = Fake::start().await;
    fake.set(|held| held.policy = Some(r#"{"groups": {"group:refuse-me": []}, "acls": []}"#.into()));
    let refused = fake.apply("a", Consent::from(true)).await.expect_err("refused");
    assert!(refused.to_string().contains("refuse-me"), "{refused}");
    assert_eq!(fake.rollback(false).await.expect_err("nothing was written").class(), Class::NotFound);
}

#[tokio::test]
async fn a_check_names_what_is_wrong_and_what_mends_it() {
    let fake = Fake::start().await;
    let failed = |report: &Report| {
        let checks = report.clusters.iter().flat_map(|c| &c.checks).filter(|c| !c.hint.is_empty());
        checks.map(|c| c.id.clone()).collect::<Vec<_>>()
    };
    let open = policy_check(&fake.settings).await.expect("a report");
    assert_eq!((open.success, failed(&open)), (false, vec!["policy.isolates".to_owned()]));
    fake.apply("a", Consent::default()).await.expect("applied");
    assert!(policy_check(&fake.settings).await.expect("a report").success);
    fake.set(|held| held.policy = held.policy.as_ref().map(|p| p.replace("\"cluster-a@\"", "\"alice@\"")));
    let owned = policy_check(&fake.settings).await.expect("a report");
    assert!(failed(&owned).contains(&"policy.names".to_owned()), "{owned:?}");
    fake.set(|held| {
        held.nodes = vec![json!({
            "id": "1", "name": "office", "tags": ["tag:office"], "approvedRoutes": ["10.96.0.0/16"],
        })];
    });
    let overlapping = policy_check(&fake.settings).await.expect("a report");
    assert!(failed(&overlapping).contains(&"policy.overlap".to_owned()), "{overlapping:?}");
    let mut settings = fake.settings.clone();
    settings.api_key = None;
    assert_eq!(policy_check(&settings).await.expect_err("no key").class(), Class::Credentials);
}

#[tokio::test]
async fn without_any_cluster_nothing_is_planned() {
    let fake = Fake::start().await;
    let said = policy_apply(&fake.settings, &[], Consent::default(), &Silent).await.expect_err("nothing to apply");
    assert_eq!(said.class(), Class::NotFound);
    assert_eq!(fake.policy(), None);
}
