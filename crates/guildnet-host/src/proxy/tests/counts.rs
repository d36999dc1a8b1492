//! What is counted and logged of requests on their way to clusters, and that strangers' words get into neither.

use std::{
    io::Write,
    sync::{Mutex, MutexGuard},
};

use tracing::Level;
use tracing_subscriber::{filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::*;
use crate::metrics::tests::{series, value};

/// What `/metrics` says.
async fn scrape(client: &Http2) -> String {
    let answer = client.get("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    text(answer).await
}

#[tokio::test]
async fn requests_are_counted_by_what_they_want_and_how_they_end() {
    let (server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    for _ in 0..3 {
        text(client.get("/k8s/a/api/v1/pods").await).await;
    }
    text(client.send("POST", "/k8s/a/api/v1/namespaces/default/pods", "{}").await).await;
    text(client.send("GET", "/k8s/a/api//v1/pods", "").await).await;
    let watch = client.get("/k8s/a/api/v1/pods?watch=true").await;
    let told = scrape(&client).await;
    for (series, expected) in [
        ("guildnet_proxy_requests_total{cluster=\"a\",verb=\"read\",status=\"2xx\"}", 3.0),
        ("guildnet_proxy_requests_total{cluster=\"a\",verb=\"write\",status=\"2xx\"}", 1.0),
        ("guildnet_proxy_requests_total{cluster=\"a\",verb=\"stream\",status=\"2xx\"}", 1.0),
        ("guildnet_proxy_request_duration_seconds_count{cluster=\"a\",verb=\"read\"}", 3.0),
        ("guildnet_proxy_request_duration_seconds_count{cluster=\"a\",verb=\"write\"}", 1.0),
        ("guildnet_proxy_streams_open{cluster=\"a\"}", 1.0),
        ("guildnet_proxy_requests_in_flight{cluster=\"a\"}", 0.0),
        ("guildnet_door_connections_open", 1.0),
        ("guildnet_door_requests_total{surface=\"kube\",status=\"2xx\"}", 5.0),
        ("guildnet_door_requests_total{surface=\"kube\",status=\"4xx\"}", 1.0),
    ] {
        assert_eq!(value(&told, series), expected, "{series}");
    }
    drop(watch);
    timeout(SOON, server.seen.unwatched()).await.expect("it has ended");
    served.stop().await;
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_reason_and_not_timed() {
    let server = Server::start(HTTP2).await;
    let served = door(&[("a", &server, read_only())], Bounds { lasting: 0, ..Bounds::default() }).await;
    let client = Http2::connect(&served).await;
    text(client.send("DELETE", "/k8s/a/api/v1/nodes/n", "").await).await;
    text(client.get("/k8s/a/api/v1/pods?watch=true").await).await;
    let told = scrape(&client).await;
    assert_eq!(value(&told, "guildnet_proxy_refusals_total{cluster=\"a\",reason=\"rules\"}"), 1.0);
    assert_eq!(value(&told, "guildnet_proxy_refusals_total{cluster=\"a\",reason=\"limit\"}"), 1.0);
    assert_eq!(value(&told, "guildnet_proxy_requests_total{cluster=\"a\",verb=\"write\",status=\"4xx\"}"), 1.0);
    assert!(!told.contains("duration_seconds_count{"), "{told}");
    served.stop().await;
}

#[tokio::test]
async fn a_thousand_wrong_clusters_paths_and_methods_make_no_series() {
    let (_server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    // Of each kind one, so that all that there can be is there.
    let ask = async |n: usize| {
        for path in [
            format!("/k8s/stranger-{n}/api/v1/pods"),
            format!("/k8s/Stranger_{n}/api"),
            format!("/k8s/a/stranger-{n}"),
            format!("/k8s/a/apis/stranger-{n}.example/v1/strangers"),
            format!("/api/v1/clusters/stranger-{n}"),
            format!("/stranger-{n}"),
        ] {
            text(client.get(&path).await).await;
        }
        text(client.send(&format!("STRANGER{n}"), "/k8s/a/api/v1/pods", "").await).await;
    };
    ask(0).await;
    scrape(&client).await;
    let before = series(&scrape(&client).await);
    for n in 1..=1000 {
        ask(n).await;
    }
    let told = scrape(&client).await;
    assert_eq!(series(&told), before);
    assert!(!told.to_lowercase().contains("stranger"), "{told}");
    served.stop().await;
}

/// What the log says, as `guildnet serve` writes it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

struct Line<'a>(MutexGuard<'a, Vec<u8>>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0, bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.0.lock().expect("not poisoned"))
    }
}

impl Log {
    /// What this thread, and so this test, logs from now on: as `guildnet serve -vv`, all of ours, warnings of others.
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let ours = Targets::new().with_default(Level::WARN).with_target("guildnet", Level::TRACE);
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(self.clone());
        tracing_subscriber::registry().with(ours).with(lines).set_default()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text")
    }

    /// The lines of our own with this in them.
    fn lines(&self, with: &str) -> Vec<String> {
        let all = self.text();
        all.lines().filter(|line| line.contains("guildnet_") && line.contains(with)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn one_name_leads_from_the_answer_through_the_log_to_the_cluster() {
    let log = Log::default();
    let _logging = log.begin();
    let (server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let mut names = Vec::new();
    for path in ["/k8s/a/api/v1/pods", "/k8s/down/api/v1/pods", "/k8s/a/api//x", "/api/v1/clusters/a", "/nowhere"] {
        let answer = client.get(path).await;
        names.push(answer.headers()["x-request-id"].to_str().expect("text").to_owned());
    }
    assert_eq!(server.seen.last().headers["audit-id"], names[0]);
    assert_eq!(log.lines(&format!("http{{request={} cluster=a}}: guildnet_host::proxy: passed on", names[0])).len(), 1);
    let refused = format!("http{{request={} cluster=down}}: guildnet_host::proxy: not passed on", names[1]);
    assert_eq!(log.lines(&refused).len(), 1, "{}", log.text());
    assert_eq!(log.lines(&format!("http{{request={}", names[2])).len(), 1, "{}", log.text());
    let different: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len());
    served.stop().await;
}

#[tokio::test]
async fn a_strangers_name_for_a_request_is_not_taken_over() {
    let log = Log::default();
    let _logging = log.begin();
    let (server, served) = one(HTTP2).await;
    let answer = served.raw("GET /k8s/a/api/v1/pods", &["x-request-id: strangers"], "").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("strangers"), "{answer}");
    assert_ne!(server.seen.last().headers["audit-id"], "strangers");
    assert!(log.lines("strangers").is_empty(), "{}", log.text());
    served.stop().await;
}

#[tokio::test]
async fn a_tunnels_lines_are_its_requests_and_nothing_of_a_token_is_in_any_line() {
    let log = Log::default();
    let _logging = log.begin();
    let (_server, served) = one(HTTP1).await;
    let upgrade =
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n\r\n";
    let mut stream = ask_over_http1(&served, "GET /k8s/a/api/v1/namespaces/d/pods/p/exec", upgrade).await;
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let name = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("named").to_owned();
    drop(stream);
    let token = served.token();
    served.stop().await;
    let lines = log.lines(&format!("http{{request={name} cluster=a}}"));
    assert!(lines.iter().any(|line| line.contains("guildnet_host::proxy::tunnel: tunnel ")), "{}", log.text());
    for secret in [token.as_str(), CLUSTER_TOKEN] {
        assert!(!log.text().contains(secret), "at the most verbose level");
    }
}
