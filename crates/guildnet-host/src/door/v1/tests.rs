//! The API over the door: its document, jobs, and what happens.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::*;
use crate::{
    door::tests::{Served, refused, said},
    jobs::{Job, JobState, Step, Told},
};

/// After a wanted change, write the file anew: `UPDATE_OPENAPI=1 cargo nextest run -E 'test(committed_document)'`.
#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let served = document().to_pretty_json().expect("JSON") + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(file, &served).expect("written");
    }
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    assert!(committed == served, "docs/openapi.json is not what the Host App serves; UPDATE_OPENAPI=1 writes it anew");
}

#[test]
fn every_operation_says_what_it_does_and_how_it_refuses() {
    let mut document = document();
    assert_eq!(serde_json::to_value(&document.openapi).expect("JSON"), "3.1.0");
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            assert!(operation.summary.as_ref().is_some_and(|s| !s.is_empty()), "{path}");
            assert!(operation.responses.responses.contains_key("default"), "{path}");
        }
    }
    let schemas = document.components.expect("components").schemas;
    assert!(schemas.contains_key("Problem"), "{:?}", schemas.keys());
}

#[test]
fn a_wrong_body_is_answered_with_its_field() {
    let field = |text: &str| parse::<Verify>(text.as_bytes()).expect_err("wrong").field;
    assert_eq!(field(r#"{"clusters": ["a", "B!"]}"#).as_deref(), Some("clusters[1]"));
    assert_eq!(field(r#"{"clusters": []} x"#), None);
}

/// The JSON of an answer.
fn json<T: DeserializeOwned>(answer: &str) -> T {
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    serde_json::from_str(body).unwrap_or_else(|why| panic!("{why}: {answer}"))
}

async fn post(door: &Served, path: &str, body: &str) -> String {
    door.raw(&format!("POST {path}"), &[&format!("content-length: {}", body.len())], body).await
}

/// What makes a job that is begun tell its steps.
const FOLLOW: &str = "accept: application/x-ndjson";

/// The checks, followed to their end: what was told, and the job as it was then.
async fn followed(door: &Served, body: &str) -> (Vec<Step>, Job) {
    let length = format!("content-length: {}", body.len());
    let answer = door.raw("POST /api/v1/verify", &[FOLLOW, &length], body).await;
    let mut steps = Vec::new();
    // Its chunks are of whole lines.
    for line in answer.lines().filter(|line| line.starts_with('{')) {
        match serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {answer}")) {
            Told::Step(step) => steps.push(step),
            Told::Ended(job) => return (steps, *job),
        }
    }
    panic!("no end: {answer}")
}

#[tokio::test]
async fn checks_are_a_job_that_is_found_where_the_answer_says() {
    let door = Served::new().await;
    let begun = post(&door, "/api/v1/verify", r#"{"clusters":["a"]}"#).await;
    assert_eq!(said(&begun), (202, None));
    let job: Job = json(&begun);
    let place = format!("/api/v1/jobs/{}", job.id);
    assert!(begun.contains(&format!("location: {place}\r\n")), "{begun}");
    // The same again, followed: the first has ended by then, or will.
    let (steps, ended) = followed(&door, r#"{"clusters":["a"]}"#).await;
    assert_eq!((ended.state, &ended.steps), (JobState::Done, &steps));
    assert_eq!(steps.iter().map(|s| s.text.as_str()).collect::<Vec<_>>(), ["looking"]);
    assert_eq!(ended.result.expect("a report")["passed"], 1);
    let listed: Vec<Job> = json(&door.raw("GET /api/v1/jobs", &[], "").await);
    assert_eq!(listed.iter().map(|j| &j.id).collect::<Vec<_>>(), [&job.id, &ended.id]);
    assert_eq!(said(&door.raw(&format!("GET {place}"), &[], "").await), (200, None));
    assert_eq!(json::<serde_json::Value>(&door.raw("GET /api/v1/verify", &[], "").await)["passed"], 1);
    assert_eq!(said(&door.raw("DELETE /api/v1/jobs/x", &[], "").await), refused(404, "not_found"));
    door.stop().await;
}

#[tokio::test]
async fn a_job_is_cancelled_on_request_or_when_who_follows_it_leaves() {
    let door = Served::new().await;
    let mut events = Events::open(&door, None).await;
    let slow = r#"{"clusters":["slow"]}"#;
    let job: Job = json(&post(&door, "/api/v1/verify", slow).await);
    assert_eq!(said(&door.raw(&format!("DELETE /api/v1/jobs/{}", job.id), &[], "").await), (202, None));
    events.until(|event, data| event == "job" && data["job"] == job.id.as_str() && data["state"] == "cancelled").await;

    let mut waiting = door.tls(&[]).await;
    let head = door.head("POST /api/v1/verify", &[FOLLOW, &format!("content-length: {}", slow.len())]);
    waiting.write_all(format!("{head}\r\n{slow}").as_bytes()).await.expect("sent");
    events.until(|event, data| event == "job" && data["step"] == "looking").await;
    drop(waiting);
    events.until(|event, data| event == "job" && data["state"] == "cancelled").await;
    door.stop().await;
}

/// A stream of events, read line by line.
struct Events {
    stream: BufReader<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
    last: String,
}

impl Events {
    async fn open(door: &Served, last: Option<&str>) -> Self {
        let mut stream = door.tls(&[]).await;
        let resume = last.map(|id| format!("last-event-id: {id}"));
        let head = door.head("GET /api/v1/events", &resume.iter().map(String::as_str).collect::<Vec<_>>());
        stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("sent");
        let mut events = Self { stream: BufReader::new(stream), last: String::new() };
        events.until(|event, _| event == "open").await;
        events
    }

    /// Reads on to the event that is meant.
    async fn until(&mut self, mut meant: impl FnMut(&str, &serde_json::Value) -> bool) {
        let mut event = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).await.expect("readable"), 0, "the stream ended");
            match line.trim_end().split_once(": ") {
                Some(("event", name)) => name.clone_into(&mut event),
                Some(("id", id)) => id.clone_into(&mut self.last),
                Some(("data", data)) => {
                    let data = serde_json::from_str(data).expect("JSON");
                    // The id comes after the data.
                    if meant(&event, &data) {
                        while line.trim_end() != "" {
                            line.clear();
                            self.stream.read_line(&mut line).await.expect("readable");
                            if let Some(id) = line.trim_end().strip_prefix("id: ") {
                                id.clone_into(&mut self.last);
                            }
                        }
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn events_go_on_after_an_interruption_and_end_with_the_host_app() {
    let door = Served::new().await;
    let events = Events::open(&door, None).await;
    let last = events.last.clone();
    drop(events);
    let (_, job) = followed(&door, "{}").await;
    let mut again = Events::open(&door, Some(&last)).await;
    again.until(|event, data| event == "job" && data["job"] == job.id.as_str() && data["state"] == "done").await;
    let mut lost = Events::open(&door, Some("of-another-life")).await;
    lost.until(|event, _| event == "missed").await;

    let stopping = tokio::spawn(door.stop());
    let mut rest = Vec::new();
    let _ended = tokio::time::timeout(Duration::from_secs(8), again.stream.read_to_end(&mut rest)).await.expect("ends");
    stopping.await.expect("before the grace is over");
}

#[tokio::test]
async fn switches_are_set_by_field_and_a_wrong_one_is_named() {
    let door = Served::new().await;
    let patch = async |body: &str| {
        door.raw("PATCH /api/v1/clusters/a", &[&format!("content-length: {}", body.len())], body).await
    };
    assert_eq!(json::<serde_json::Value>(&patch(r#"{"readOnly":true}"#).await), serde_json::json!({"changed": true}));
    for (field, value) in [("readOnly", r#""yes""#), ("proxies", "1"), ("socksPort", "0"), ("httpPort", "65536")] {
        let wrong = patch(&format!("{{\"{field}\":{value}}}")).await;
        assert_eq!(said(&wrong), refused(400, "usage"));
        assert_eq!(json::<Problem>(&wrong).field.as_deref(), Some(field));
    }
    assert_eq!(said(&patch("").await), refused(400, "usage"));
    let headscale = async |body: &str| {
        door.raw("PATCH /api/v1/settings", &[&format!("content-length: {}", body.len())], body).await
    };
    assert_eq!(said(&headscale("{}").await), (200, None));
    let wrong = headscale(r#"{"headscale":{"url":"nowhere"}}"#).await;
    assert_eq!(
        (said(&wrong), json::<Problem>(&wrong).field.as_deref()),
        (refused(400, "usage"), Some("headscale.url"))
    );
    let planted = "a-planted-secret";
    let key = headscale(&format!(r#"{{"headscale":{{"apiKey":"{planted}"}}}}"#)).await;
    assert!(said(&key).0 != 200 && !key.contains(planted), "{key}");
    let odd = door.raw("DELETE /api/v1/clusters/a?keepRouter=perhaps", &[], "").await;
    assert_eq!(said(&odd), refused(400, "usage"));
    door.stop().await;
}
