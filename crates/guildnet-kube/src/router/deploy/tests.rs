//! Applying and removing the router on an API server that keeps what it is given.

use std::{collections::BTreeMap, sync::Mutex};

use guildnet_model::{BoxFuture, Class, DialError, Dialer, Explain as _, Io, Secret as Sealed, Target};
use serde_json::{Value, json};

use super::*;
use crate::{
    fake::{FakeApi, Seen, pair, refusal},
    router::{Reached, Removal, remove},
};

fn id(text: &str) -> guildnet_model::ClusterId {
    text.parse().expect("an id")
}

fn plan(id: &str, key: Option<&str>) -> RouterPlan {
    RouterPlan {
        auth_key: key.map(|key| Sealed::new(key.into())),
        ..RouterPlan::new(
            id.parse().expect("an id"),
            "https://10.99.0.1:8443".parse().expect("a URL"),
            "10.96.0.0/16".parse().expect("networks"),
        )
    }
}

const SET: &str = "/apis/apps/v1/namespaces/guildnet-system/daemonsets/guildnet-router";
const POD: &str = "/api/v1/namespaces/guildnet-system/pods/router-x";
const KEY: &str = "/api/v1/namespaces/guildnet-system/secrets/guildnet-router-key";

/// A cluster that keeps what is applied and has one node, whose router is ready or not.
#[derive(Default)]
struct Cluster {
    objects: Mutex<BTreeMap<String, Value>>,
    unready: bool,
}

impl Cluster {
    fn with(self, path: &str, object: Value) -> Self {
        self.objects.lock().expect("no panic").insert(path.to_owned(), object);
        self
    }

    fn ours(self, path: &str, cluster: &str) -> Self {
        let labels = json!({"app.kubernetes.io/managed-by": "guildnet", "guildnet.dev/cluster": cluster});
        self.with(path, json!({"metadata": {"name": "x", "labels": labels, "resourceVersion": "0"}}))
    }

    fn answer(&self, request: &Seen) -> (u16, String) {
        let mut objects = self.objects.lock().expect("no panic");
        let what = request.what();
        let (method, path) = what.split_once(' ').expect("method and path");
        match method {
            "PATCH" => {
                let mut object = request.json();
                // A version that changes with the content, as the real one does.
                let version = object.to_string().len().to_string();
                object["metadata"]["resourceVersion"] = json!(version);
                if path == SET {
                    object["metadata"]["generation"] = json!(1);
                    let ready = i32::from(!self.unready);
                    object["status"] = json!({"observedGeneration": 1, "desiredNumberScheduled": 1,
                        "currentNumberScheduled": 1, "updatedNumberScheduled": 1, "numberReady": ready, "numberMisscheduled": 0});
                }
                objects.insert(path.to_owned(), object.clone());
                (200, object.to_string())
            }
            "DELETE" => {
                objects.remove(path);
                (200, json!({"kind": "Status", "status": "Success"}).to_string())
            }
            _ if path.ends_with("/pods") => (200, self.pods().to_string()),
            _ if path.ends_with("/events") => (200, self.events().to_string()),
            _ => match objects.get(path) {
                Some(object) => (200, object.to_string()),
                None => refusal(404, "not found"),
            },
        }
    }

    fn pods(&self) -> Value {
        let ready = if self.unready { "False" } else { "True" };
        json!({"metadata": {}, "items": [{
            "metadata": {"name": "router-x", "uid": "u", "labels": {"app.kubernetes.io/managed-by": "guildnet"}}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": ready}]},
        }]})
    }

    fn events(&self) -> Value {
        let message = "hostPath type check failed: /dev/net/tun is not a character device";
        json!({"metadata": {}, "items": [{
            "metadata": {"name": "e"}, "involvedObject": {"uid": "u"}, "type": "Warning", "reason": "FailedMount", "message": message,
        }]})
    }

    async fn start(self) -> (FakeApi, ApiServer) {
        pair(move |request| self.answer(request)).await
    }
}

/// Runs [`ensure`] and collects what it tells.
async fn ensured(api: &ApiServer, plan: &RouterPlan) -> (Result<RouterStatus, RouterError>, Vec<String>) {
    let mut told = Vec::new();
    let result = ensure(api, plan, &mut |step| told.push(step.to_string())).await;
    (result, told)
}

fn changes(server: &FakeApi) -> Vec<String> {
    server.seen().iter().filter(|s| s.method != "GET").map(Seen::what).collect()
}

#[tokio::test]
async fn everything_is_applied_by_the_server_in_our_name() {
    let (server, api) = Cluster::default().start().await;
    ensured(&api, &plan("a", Some("key"))).await.0.expect("ready");
    let applied: Vec<_> = server.seen().into_iter().filter(|s| s.method == "PATCH").collect();
    assert_eq!(applied.len(), 4);
    for one in applied {
        assert_eq!(one.content_type, "application/apply-patch+yaml");
        assert!(one.target.contains("fieldManager=guildnet") && one.target.contains("force=true"), "{}", one.target);
        assert!(one.json()["kind"].is_string() && one.json()["apiVersion"].is_string());
    }
}

#[tokio::test]
async fn a_second_time_changes_nothing() {
    let (_server, api) = Cluster::default().start().await;
    let (_, first) = ensured(&api, &plan("a", Some("key"))).await;
    assert_eq!(first[0], "Namespace/guildnet-system created");
    let (result, second) = ensured(&api, &plan("a", Some("key"))).await;
    assert!(result.expect("ready").is_ready());
    let (last, applied) = second.split_last().expect("lines");
    assert_eq!(last, "router ready (1/1)");
    assert!(applied.iter().all(|line| line.ends_with(" unchanged")), "{applied:?}");
}

#[tokio::test]
async fn the_router_of_another_cluster_id_is_left_alone() {
    let (server, api) = Cluster::default().ours(SET, "b").start().await;
    let error = ensured(&api, &plan("a", Some("key"))).await.0.expect_err("refused");
    assert_eq!(error, RouterError::OtherCluster { here: "b".into(), wanted: "a".into() });
    assert_eq!(error.class(), Class::Conflict);
    assert_eq!(changes(&server), [""; 0]);
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone() {
    let namespace = "/api/v1/namespaces/guildnet-system";
    let (server, api) =
        Cluster::default().with(namespace, json!({"metadata": {"name": "guildnet-system"}})).start().await;
    let error = ensured(&api, &plan("a", Some("key"))).await.0.expect_err("refused");
    assert_eq!(error, RouterError::Foreign { object: "Namespace/guildnet-system".into() });
    assert_eq!(remove(&api, &id("a"), Reached::Directly).await.expect_err("refused"), error);
    assert_eq!(changes(&server), [""; 0]);
}

#[tokio::test]
async fn a_first_router_without_a_key_is_refused_before_anything_is_made() {
    let (server, api) = Cluster::default().start().await;
    let error = ensured(&api, &plan("a", None)).await.0.expect_err("refused");
    assert_eq!((error.class(), changes(&server)), (Class::Credentials, Vec::new()));
}

#[tokio::test]
async fn without_a_key_the_one_in_the_cluster_stays() {
    let (server, api) = Cluster::default().ours(SET, "a").ours(KEY, "a").start().await;
    ensured(&api, &plan("a", None)).await.0.expect("ready");
    assert!(!changes(&server).iter().any(|c| c.ends_with(KEY)));
}

#[tokio::test]
async fn a_new_key_restarts_the_routers_that_are_not_ready() {
    for (unready, wanted) in [(true, vec![format!("DELETE {POD}")]), (false, Vec::new())] {
        let cluster = Cluster { unready, ..Cluster::default() }.ours(SET, "a").ours(KEY, "a");
        let (server, api) = cluster.start().await;
        // An unready router ends in the error that its node has no device.
        assert_eq!(ensured(&api, &plan("a", Some("new"))).await.0.is_err(), unready);
        let deleted: Vec<_> = changes(&server).into_iter().filter(|c| c.starts_with("DELETE")).collect();
        assert_eq!(deleted, wanted);
    }
}

#[tokio::test]
async fn a_node_without_the_device_ends_the_wait_with_its_name() {
    let (_server, api) = Cluster { unready: true, ..Cluster::default() }.start().await;
    let (result, told) = ensured(&api, &plan("a", Some("key"))).await;
    let error = result.expect_err("stuck");
    assert_eq!(error.to_string(), "router on node n: the node has no /dev/net/tun");
    assert_eq!(error.class(), Class::Precondition);
    assert_eq!(told.last().map(String::as_str), Some("router 0/1 ready: node n: the node has no /dev/net/tun"));
}

#[tokio::test]
async fn the_key_goes_to_the_secret_and_nowhere_else() {
    let (server, api) = Cluster::default().start().await;
    ensured(&api, &plan("a", Some("hskey-auth-x"))).await.0.expect("ready");
    // base64 of the key
    let holding: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|s| s.body.contains("aHNrZXktYXV0aC14") || s.body.contains("hskey-auth-x"))
        .collect();
    assert_eq!(holding.iter().map(Seen::what).collect::<Vec<_>>(), [format!("PATCH {KEY}")]);
}

#[tokio::test]
async fn nothing_deployed_is_no_status_and_nothing_to_remove() {
    let (_server, api) = Cluster::default().start().await;
    assert_eq!(status(&api).await.expect("an answer"), None);
    assert_eq!(remove(&api, &id("a"), Reached::Directly).await.expect("an answer"), Removal::Nothing);
}

#[tokio::test]
async fn removing_takes_all_that_was_applied() {
    let (server, api) = Cluster::default().start().await;
    ensured(&api, &plan("a", Some("key"))).await.0.expect("ready");
    assert_eq!(remove(&api, &id("a"), Reached::Directly).await.expect("removed"), Removal::Gone);
    let changes = changes(&server);
    for applied in changes.iter().filter_map(|c| c.strip_prefix("PATCH ")) {
        assert!(changes.contains(&format!("DELETE {applied}")), "{applied} stays");
    }
}

/// A way to the API server that is not there for the first dials, as when it leads through a router that is replaced.
#[derive(Debug)]
struct Interrupted {
    left: std::sync::atomic::AtomicUsize,
}

impl Dialer for Interrupted {
    fn dial(&self, to: Target) -> BoxFuture<'_, Result<Box<dyn Io>, DialError>> {
        use std::sync::atomic::Ordering::Relaxed;
        let away = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        Box::pin(async move {
            if away { Err(DialError::RouterOffline { target: to }) } else { crate::DirectDialer.dial(to).await }
        })
    }
}

#[tokio::test]
async fn a_way_that_is_gone_while_routers_are_replaced_is_waited_for() {
    let pki = crate::fake::Pki::new();
    let cluster = Cluster::default();
    cluster.objects.lock().expect("no panic").insert(
        SET.to_owned(),
        json!({"metadata": {"name": "guildnet-router", "generation": 1}, "status": {"observedGeneration": 1,
            "desiredNumberScheduled": 1, "currentNumberScheduled": 1, "updatedNumberScheduled": 1, "numberReady": 1,
            "numberMisscheduled": 0}}),
    );
    let server = FakeApi::serve(pki.server(&["10.96.0.1"]), move |request| cluster.answer(request)).await;
    let access = crate::fake::access(pki.ca_pem(), "https://10.96.0.1", None);
    // Three questions are asked at once, each with its own dial.
    let way = Interrupted { left: 3.into() };
    let spec = crate::ApiServerSpec { access, address: Some(server.address.into()) };
    let api = ApiServer::new(&spec, std::sync::Arc::new(way));
    let mut told = Vec::new();
    let status = rollout(&api, &mut |step| told.push(step.to_string())).await.expect("ready in the end");
    assert!(status.is_ready());
    assert!(told[0].starts_with("API server out of reach while routers are replaced"), "{told:?}");
}

#[tokio::test]
async fn through_the_router_itself_one_last_request_takes_everything() {
    let (server, api) = Cluster::default().start().await;
    ensured(&api, &plan("a", Some("key"))).await.0.expect("ready");
    assert_eq!(remove(&api, &id("a"), Reached::ThroughRouter).await.expect("asked"), Removal::Asked);
    let deleted: Vec<_> = changes(&server).into_iter().filter(|c| c.starts_with("DELETE")).collect();
    assert_eq!(deleted, ["DELETE /api/v1/namespaces/guildnet-system"]);
}

#[tokio::test]
async fn the_namespace_stays_for_what_others_have_in_it() {
    let services = "/api/v1/namespaces/guildnet-system/services";
    let theirs = json!({"metadata": {}, "items": [{"metadata": {"name": "theirs"}}]});
    let (server, api) = Cluster::default().with(services, theirs).start().await;
    ensured(&api, &plan("a", Some("key"))).await.0.expect("ready");
    let removal = remove(&api, &id("a"), Reached::ThroughRouter).await.expect("removed");
    assert_eq!(removal, Removal::NamespaceStays { others: vec!["Service/theirs".into()] });
    let changes = changes(&server);
    assert_eq!(changes.last(), Some(&format!("DELETE {SET}")), "the way ends with it");
    assert!(!changes.iter().any(|c| c == "DELETE /api/v1/namespaces/guildnet-system"));
}

#[tokio::test]
async fn the_router_of_another_cluster_id_is_not_removed() {
    let (server, api) = Cluster::default().ours("/api/v1/namespaces/guildnet-system", "b").ours(SET, "b").start().await;
    let error = remove(&api, &id("a"), Reached::Directly).await.expect_err("refused");
    assert_eq!(error, RouterError::OtherCluster { here: "b".into(), wanted: "a".into() });
    assert_eq!(changes(&server), [""; 0]);
}

#[tokio::test]
async fn a_router_is_made_anew_on_the_named_nodes_only() {
    let (server, api) = Cluster::default().start().await;
    ensured(&api, &plan("a", Some("key"))).await.0.expect("ready");
    restart(&api, &["elsewhere".to_owned()], &mut |_| ()).await.expect("ready");
    assert!(!changes(&server).iter().any(|c| c.starts_with("DELETE")));
    // The fake's pod does not go away, so the wait for its end is what can be seen here.
    let waited = timeout(Duration::from_millis(200), restart(&api, &["n".to_owned()], &mut |_| ())).await;
    assert!(waited.is_err(), "it waits until the old pod is gone");
    assert_eq!(changes(&server).last(), Some(&format!("DELETE {POD}")));
}
