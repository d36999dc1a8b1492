//! A small server on 127.0.0.1 that answers as Headscale 0.29 does, error shapes included. The contract keeps it honest.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use guildnet_model::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{Headscale, HeadscaleConfig, Node};

pub(crate) const API_KEY: &str = "hskey-api-good";

/// A node as the server lists it, online, with these networks.
pub(crate) fn listed(name: &str, tag: &str, available: &[&str], approved: &[&str]) -> Node {
    let nets = |list: &[&str]| list.iter().map(|n| n.parse().expect("a network")).collect();
    Node {
        id: 1,
        name: name.into(),
        node_key: "nodekey:00".into(),
        user: None,
        tags: vec![tag.into()],
        addresses: vec![],
        online: true,
        last_seen: None,
        expires: None,
        available_routes: nets(available),
        approved_routes: nets(approved),
        elected_routes: vec![],
    }
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// What `/version` says; `None`: it has no `/version`.
    pub(crate) version: Option<&'static str>,
    /// Refusals as problem documents instead of gRPC statuses.
    pub(crate) problems: bool,
    /// The policy is in a file.
    pub(crate) policy_in_file: bool,
    /// The API key may not read or write the policy.
    pub(crate) policy_denied: bool,
}

/// Somebody else who writes the policy: told each call and what is held after it, and answers with what is held then.
pub(crate) type Rival = Box<dyn FnMut(PolicyCall, Option<&str>) -> Option<String> + Send>;

/// A call after which a [`Rival`] may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyCall {
    Read,
    Written,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { version: Some("v0.29.2"), problems: false, policy_in_file: false, policy_denied: false }
    }
}

#[derive(Default)]
pub(crate) struct Tables {
    last_id: u64,
    users: Vec<Value>,
    keys: Vec<Value>,
    nodes: Vec<Value>,
    pending: Map<String, Value>,
    pub(crate) policy: Option<String>,
    pub(crate) policy_writes: usize,
    pub(crate) rival: Option<Rival>,
}

#[derive(Clone)]
struct Server {
    behaviour: Arc<Behaviour>,
    tables: Arc<Mutex<Tables>>,
}

/// The running fake; it ends when this is dropped.
pub(crate) struct Fake {
    address: SocketAddr,
    tables: Arc<Mutex<Tables>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let tables = Arc::new(Mutex::new(Tables::default()));
        let server = Server { behaviour: Arc::new(behaviour), tables: tables.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = routes(&server);
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Self { address, tables, task }
    }

    pub(crate) fn config(&self) -> HeadscaleConfig {
        HeadscaleConfig {
            url: format!("http://{}", self.address).parse().expect("a URL"),
            api_key: Some(Secret::new(API_KEY.into())),
            ca_pem: None,
        }
    }

    pub(crate) fn client(&self) -> Headscale {
        Headscale::new(self.config()).expect("a client")
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("no panic holds it")
    }
}

fn routes(server: &Server) -> Router {
    let api = Router::new()
        .route("/user", get(users).post(create_user))
        .route("/user/{id}", delete(delete_user))
        .route("/preauthkey", get(keys).post(create_key))
        .route("/preauthkey/expire", post(expire_key))
        .route("/apikey", get(api_keys))
        .route("/debug/node", post(pend_node))
        .route("/node", get(nodes))
        .route("/node/register", post(register_node))
        .route("/node/{id}", get(node).delete(delete_node))
        .route("/node/{id}/tags", post(tag_node))
        .route("/node/{id}/expire", post(expire_node))
        .route("/node/{id}/approve_routes", post(approve_routes))
        .route("/policy", get(policy).put(set_policy))
        .route("/policy/check", post(check_policy))
        .route_layer(from_fn_with_state(server.clone(), authorize));
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "pass"})) }))
        .route("/version", get(version))
        .route("/key", get(server_key))
        .nest("/api/v1", api)
        .with_state(server.clone())
}

impl Server {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("no panic holds it")
    }

    /// A refusal: gRPC code, HTTP status, words.
    fn refuse(&self, code: u8, status: u16, said: &str) -> Response {
        let status = StatusCode::from_u16(status).expect("a status");
        if self.behaviour.problems {
            let body = json!({"title": "refused", "status": status.as_u16(), "detail": said}).to_string();
            return (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        }
        (status, Json(json!({"code": code, "message": said, "details": []}))).into_response()
    }

    fn on_node(&self, id: &str, change: impl FnOnce(&mut Value)) -> Response {
        let mut tables = self.tables();
        match tables.nodes.iter_mut().find(|n| n["id"] == id) {
            Some(node) => {
                change(node);
                Json(json!({ "node": node })).into_response()
            }
            None => self.refuse(5, 404, "node not found"),
        }
    }

    /// What Headscale says of a policy that it does not take.
    fn judge(&self, text: &str) -> Result<(), String> {
        let policy: Value = serde_json::from_str(text).map_err(|e| format!("parsing policy: {e}"))?;
        let owners = policy["tagOwners"].as_object().cloned().unwrap_or_default();
        let rules = |name: &str| policy[name].as_array().cloned().unwrap_or_default();
        let undefined = |tag: &str| tag.starts_with("tag:") && !owners.contains_key(tag);
        let sources = rules("acls").into_iter().chain(rules("grants")).flat_map(|rule| list(&rule["src"]));
        if let Some(src) = sources.filter_map(|src| src.as_str().map(str::to_owned)).find(|src| undefined(src)) {
            return Err(format!("parsing policy: src=tag not found: \"{src}\""));
        }
        let allows_all = rules("acls").iter().any(|r| r["src"] == json!(["*"]) && r["dst"] == json!(["*:*"]));
        let tables = self.tables();
        for test in &rules("tests") {
            let named = [vec![test["src"].clone()], list(&test["accept"]), list(&test["deny"])].concat();
            for tag in named.iter().filter_map(Value::as_str).map(|t| t.trim_end_matches(":443")) {
                if !tables.nodes.iter().any(|n| list(&n["tags"]).contains(&json!(tag))) {
                    return Err(format!("test(s) failed:\n{tag} resolved to no IP addresses"));
                }
            }
            if allows_all && !list(&test["deny"]).is_empty() {
                return Err(format!("test(s) failed:\n{} expected DENIED, got ALLOWED", test["src"]));
            }
        }
        Ok(())
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text<'a>(body: &'a Value, name: &str) -> &'a str {
    body[name].as_str().unwrap_or_default()
}

impl Tables {
    fn next_id(&mut self) -> String {
        self.last_id += 1;
        self.last_id.to_string()
    }

    /// Connects or disconnects the node of that name.
    pub(crate) fn set_online(&mut self, name: &str, online: bool) {
        for node in self.nodes.iter_mut().filter(|n| n["givenName"] == name) {
            node["online"] = json!(online);
        }
    }

    fn let_rival_act(&mut self, call: PolicyCall) {
        let Some(mut rival) = self.rival.take() else { return };
        if let Some(written) = rival(call, self.policy.as_deref()) {
            self.policy = Some(written);
        }
        self.rival = Some(rival);
    }

    fn user(&self, by: &str, value: &str) -> Option<Value> {
        self.users.iter().find(|u| u[by] == value).cloned()
    }
}

async fn authorize(State(server): State<Server>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if sent == Some(&format!("Bearer {API_KEY}")) {
        return next.run(request).await;
    }
    if server.behaviour.problems {
        return server.refuse(16, 401, "invalid token");
    }
    (StatusCode::UNAUTHORIZED, "Unauthorized").into_response()
}

async fn version(State(server): State<Server>) -> Response {
    match server.behaviour.version {
        Some(version) => Json(json!({"version": version, "commit": "unknown"})).into_response(),
        None => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
    }
}

async fn server_key() -> Response {
    let zeros = format!("mkey:{:0>64}", "");
    Json(json!({ "legacyPublicKey": zeros, "publicKey": format!("mkey:{:0>64}", "7") })).into_response()
}

async fn api_keys() -> Response {
    let key = |id: &str, prefix: &str| {
        let expires = Timestamp::now() + SignedDuration::from_hours(90 * 24);
        json!({"id": id, "prefix": prefix, "expiration": expires, "createdAt": Timestamp::now(), "lastSeen": null})
    };
    Json(json!({ "apiKeys": [key("1", "hskey-api-else-***"), key("2", "hskey-api-good***")] })).into_response()
}

type Asked = Query<std::collections::HashMap<String, String>>;

async fn users(State(server): State<Server>, Query(asked): Asked) -> Response {
    let name = asked.get("name").cloned().unwrap_or_default();
    let users: Vec<Value> =
        server.tables().users.iter().filter(|u| name.is_empty() || u["name"] == name).cloned().collect();
    Json(json!({ "users": users })).into_response()
}

async fn create_user(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let mut tables = server.tables();
    if tables.user("name", text(&body, "name")).is_some() {
        return server.refuse(13, 500, "creating user: UNIQUE constraint failed: users.name (2067)");
    }
    let user = json!({"id": tables.next_id(), "name": body["name"], "createdAt": Timestamp::now(), "email": ""});
    tables.users.push(user.clone());
    Json(json!({ "user": user })).into_response()
}

async fn delete_user(State(server): State<Server>, Path(id): Path<String>) -> Response {
    let mut tables = server.tables();
    if tables.user("id", &id).is_none() {
        return server.refuse(2, 500, "user not found");
    }
    tables.users.retain(|u| u["id"] != id);
    // 0.28 forgets to ask whose keys they are.
    let all = server.behaviour.version == Some("v0.28.0");
    tables.keys.retain(|k| !all && k["user"]["id"] != id);
    Json(json!({})).into_response()
}

async fn keys(State(server): State<Server>) -> Response {
    let mut keys = server.tables().keys.clone();
    for key in &mut keys {
        let public: String = text(key, "key").chars().take("hskey-auth-".len() + 12).collect();
        key["key"] = json!(format!("{public}-***"));
    }
    Json(json!({ "preAuthKeys": keys })).into_response()
}

async fn create_key(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let mut tables = server.tables();
    let Some(user) = tables.user("id", text(&body, "user")) else {
        return server.refuse(2, 500, "user not found");
    };
    let id = tables.next_id();
    let key = json!({
        "user": user, "id": id, "key": format!("hskey-auth-{id:0>12}-{id:x>64}"), "reusable": body["reusable"],
        "ephemeral": body["ephemeral"], "used": false, "createdAt": Timestamp::now(), "expiration": body["expiration"], "aclTags": body["aclTags"],
    });
    tables.keys.push(key.clone());
    Json(json!({ "preAuthKey": key })).into_response()
}

async fn expire_key(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    for key in server.tables().keys.iter_mut().filter(|k| k["id"] == body["id"]) {
        key["expiration"] = json!(Timestamp::now());
    }
    Json(json!({})).into_response()
}

async fn pend_node(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    server.tables().pending.insert(text(&body, "key").to_owned(), body.clone());
    Json(json!({"node": {"id": "0"}})).into_response()
}

async fn register_node(State(server): State<Server>, Query(asked): Asked) -> Response {
    let mut tables = server.tables();
    let key = asked.get("key").cloned().unwrap_or_default();
    let Some(pending) = tables.pending.remove(&key) else {
        return server.refuse(2, 500, "node not found in registration cache");
    };
    let id = tables.next_id();
    let node = json!({
        "id": id, "nodeKey": format!("nodekey:{id:0>64}"), "name": pending["name"], "givenName": pending["name"],
        "user": {"id": "1", "name": pending["user"]},
        "ipAddresses": [format!("100.64.0.{id}")], "expiry": "0001-01-01T00:00:00Z", "lastSeen": Timestamp::now(),
        "online": false, "approvedRoutes": [], "availableRoutes": [], "subnetRoutes": [], "tags": [],
    });
    tables.nodes.push(node.clone());
    Json(json!({ "node": node })).into_response()
}

async fn nodes(State(server): State<Server>) -> Response {
    Json(json!({ "nodes": server.tables().nodes })).into_response()
}

async fn node(State(server): State<Server>, Path(id): Path<String>) -> Response {
    server.on_node(&id, |_| ())
}

async fn delete_node(State(server): State<Server>, Path(id): Path<String>) -> Response {
    let found = server.on_node(&id, |_| ());
    server.tables().nodes.retain(|n| n["id"] != id);
    if found.status().is_success() { Json(json!({})).into_response() } else { found }
}

async fn tag_node(State(server): State<Server>, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    let policy: Value =
        server.tables().policy.as_deref().and_then(|p| serde_json::from_str(p).ok()).unwrap_or_default();
    for tag in list(&body["tags"]) {
        if policy["tagOwners"].get(tag.as_str().unwrap_or_default()).is_none() {
            return server.refuse(3, 400, &format!("requested tags [{tag}] are invalid or not permitted"));
        }
    }
    server.on_node(&id, |node| node["tags"] = body["tags"].clone())
}

async fn expire_node(State(server): State<Server>, Path(id): Path<String>) -> Response {
    server.on_node(&id, |node| node["expiry"] = json!(Timestamp::now()))
}

async fn approve_routes(State(server): State<Server>, Path(id): Path<String>, Json(body): Json<Value>) -> Response {
    server.on_node(&id, |node| node["approvedRoutes"] = body["routes"].clone())
}

async fn policy(State(server): State<Server>) -> Response {
    if server.behaviour.policy_denied {
        return server.refuse(7, 403, "not allowed");
    }
    let mut tables = server.tables();
    let (held, in_file) = (tables.policy.clone(), server.behaviour.policy_in_file);
    tables.let_rival_act(PolicyCall::Read);
    match held {
        Some(policy) if in_file => Json(json!({"policy": policy, "updatedAt": null})).into_response(),
        Some(policy) => Json(json!({"policy": policy, "updatedAt": Timestamp::now()})).into_response(),
        None if in_file => server.refuse(2, 500, "reading policy from path \"\": open : no such file or directory"),
        None => server.refuse(2, 500, "loading ACL from database: acl policy not found"),
    }
}

async fn set_policy(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    if server.behaviour.policy_denied {
        return server.refuse(7, 403, "not allowed");
    }
    if server.behaviour.policy_in_file {
        return server.refuse(2, 500, "update is disabled for modes other than 'database'");
    }
    if let Err(said) = server.judge(text(&body, "policy")) {
        return server.refuse(2, 500, &format!("setting policy: {said}"));
    }
    let mut tables = server.tables();
    tables.policy = Some(text(&body, "policy").to_owned());
    tables.policy_writes += 1;
    tables.let_rival_act(PolicyCall::Written);
    Json(json!({"policy": body["policy"], "updatedAt": Timestamp::now()})).into_response()
}

async fn check_policy(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    if server.behaviour.version != Some("v0.29.2") && server.behaviour.version != Some("dev") {
        return server.refuse(5, 404, "Not Found");
    }
    match server.judge(text(&body, "policy")) {
        Ok(()) => Json(json!({})).into_response(),
        Err(said) => server.refuse(3, 400, &said),
    }
}
