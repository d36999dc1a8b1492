//! Every route there is, asked by somebody who holds nothing: only the documented few answer.

use super::*;

/// What needs no credential, by method and path: the whole list.
const OPEN: [(&str, &str); 6] = [
    ("GET", "/"),
    ("GET", "/shell.js"),
    ("GET", "/shell.css"),
    ("GET", "/healthz"),
    ("HEAD", "/healthz"),
    // It needs the code of `guildnet ui`, and answers 403 without.
    ("POST", "/api/v1/login"),
];

/// What is there and is no part of the document, or is not there at all.
const OTHERS: [&str; 12] = [
    "/readyz",
    "/metrics",
    "/api/openapi.json",
    "/api",
    "/api/v1",
    "/api/v1/",
    "/k8s",
    "/k8s/",
    "/k8s/a/api/v1/pods",
    "/api/v1/clusters/a/kube",
    "/api/v1/clusters/a/kube/api/v1/secrets",
    "/nowhere",
];

/// All routes: each path of the document with each method, and the others.
fn routes() -> Vec<(String, String)> {
    let document = serde_json::to_value(v1::document()).expect("JSON");
    let documented = document["paths"].as_object().expect("paths");
    assert!(documented.len() > 8, "the document has its paths");
    let named = |path: &str| {
        let segments = path.split('/').map(|segment| if segment.starts_with('{') { "a" } else { segment });
        segments.collect::<Vec<_>>().join("/")
    };
    let paths = documented.keys().map(|path| named(path)).chain(OTHERS.map(str::to_owned));
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
    paths.flat_map(|path| methods.map(|method| (method.to_owned(), path.clone()))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_opens_without_a_credential() {
    let door = Served::new().await;
    let wrong = format!("authorization: Bearer {}", "A".repeat(43));
    let cookie = format!("cookie: __Host-guildnet={}", "A".repeat(43));
    let tries: [&[&str]; 8] = [
        &[],
        &[&wrong],
        &["authorization: Basic eDp4"],
        &["authorization: Bearer gnk1.9999999999.AAAAAAAAAAAAAAAAAAAAAA.AAAA"],
        &[&cookie, "sec-fetch-site: cross-site"],
        &[&cookie, "sec-fetch-site: same-site"],
        &[&cookie],
        &[&cookie, "sec-fetch-site: same-origin"],
    ];
    for (method, path) in routes() {
        if OPEN.contains(&(method.as_str(), path.as_str())) {
            continue;
        }
        for headers in tries {
            let answer = door.bare(&format!("{method} {path}"), headers, "").await;
            let status = answer.get(9..12).unwrap_or_default();
            assert!(matches!(status, "401" | "403"), "{method} {path} {headers:?}: {answer}");
            assert!(!answer.to_lowercase().contains("access-control-"), "{method} {path}: {answer}");
        }
    }
    door.stop().await;
}

#[tokio::test]
async fn what_is_open_says_nothing_of_the_clusters() {
    let door = Served::new().await;
    for (method, path) in OPEN {
        let answer = door.bare(&format!("{method} {path}"), &[], "").await;
        let status = answer.get(9..12).unwrap_or_default();
        assert_eq!(status, if path == "/api/v1/login" { "403" } else { "200" }, "{method} {path}: {answer}");
        for told in ["10.96.0.0", "\"ready\"", "pid", env!("CARGO_PKG_VERSION")] {
            assert!(path.starts_with("/shell") || !answer.contains(told), "{path} says {told}: {answer}");
        }
        assert!(!answer.contains("set-cookie"), "{answer}");
    }
    door.stop().await;
}
