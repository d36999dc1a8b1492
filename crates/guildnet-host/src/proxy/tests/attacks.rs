//! Attacks on the proxy that must fail, on raw sockets against a running door: no request reaches the API server that the
//! door has not looked at, and no answer leads out of the sandbox.

use super::*;

/// The status of an answer.
fn code(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

#[tokio::test]
async fn without_the_token_and_by_a_cookie_nothing_opens() {
    let (server, served) = one(HTTP2).await;
    let token = served.token();
    for header in ["authorization: none", "authorization: Basic x", "authorization: Bearer"] {
        let cookie = format!("cookie: __Host-guildnet={token}; token={token}");
        let answer = served.raw("GET /k8s/a/api", &[header, &cookie], "").await;
        assert_eq!(code(&answer), 401, "{header}");
        assert!(answer.contains("\"kind\":\"Status\""), "{answer}");
    }
    assert_eq!(code(&served.raw("GET /k8s/a/api", &["host: evil.example"], "").await), 421);
    for origin in ["https://evil.example", "null", "http://127.0.0.1:8090"] {
        let origin = format!("origin: {origin}");
        assert_eq!(code(&served.raw("GET /k8s/a/api", &[&origin], "").await), 403, "{origin}");
    }
    assert!(server.seen.paths().is_empty());
    served.stop().await;
}

#[tokio::test]
async fn no_path_leads_out_of_the_cluster() {
    let (server, served) = one(HTTP2).await;
    for path in [
        "/k8s/a/../b/api",
        "/k8s/a/%2e%2e/b",
        "/k8s/a/.%2e/api/v1/status",
        "/k8s/a/..;/b",
        "/k8s//a/api",
        "/k8s/a//api",
        "/k8s/a/api%2f..%2f..%2fb",
        "/k8s/a\\..\\b",
        "/k8s/a;x/api",
        "/k8s/%61/api",
        "/k8s/a/api%00",
        "/k8s/a/api/v1/namespaces/x/services/s/proxy/..%2f..%2fsecrets",
        "//k8s/a/api",
        "/K8S/a/api",
        "/./k8s/a/api",
    ] {
        let status = code(&served.raw(&format!("GET {path}"), &[], "").await);
        assert!(matches!(status, 400 | 404), "{path}: {status}");
    }
    // The absolute form names this door, or nobody.
    assert_eq!(code(&served.raw("GET https://169.254.169.254/k8s/a/api", &[], "").await), 421);
    let own = format!("GET https://{}/k8s/a/api", served.address);
    assert!(server.seen.paths().is_empty());
    assert_eq!(code(&served.raw(&own, &[], "").await), 200);
    assert_eq!(server.seen.last().uri.authority().expect("a server").as_str(), "api.test:6443");
    served.stop().await;
}

#[tokio::test]
async fn nobody_acts_as_somebody_else_or_takes_a_guarded_header_away() {
    let (server, served) = one(HTTP2).await;
    for (header, wanted) in [
        ("impersonate-user: system:admin", 403),
        ("IMPERSONATE-group: system:masters", 403),
        ("Impersonate-Extra-Scopes: x", 403),
        ("x-remote-user: admin", 403),
        ("X-Remote-Group: system:masters", 403),
        ("connection: authorization", 400),
        ("connection: close, Host", 400),
        ("connection: content-length", 400),
        ("connection: transfer-encoding", 400),
        ("connection: impersonate-user", 400),
        ("sec-websocket-protocol: base64url.bearer.authorization.k8s.io.dG9rZW4", 400),
    ] {
        assert_eq!(code(&served.raw("GET /k8s/a/api", &[header], "").await), wanted, "{header}");
    }
    assert!(server.seen.paths().is_empty());
    served.stop().await;
}

#[tokio::test]
async fn no_request_is_smuggled_behind_another() {
    let (server, served) = one(HTTP1).await;
    let smuggled = format!("GET /k8s/a/smuggled HTTP/1.1\r\nhost: {}\r\n\r\n", served.address);
    let chunked = format!("0\r\n\r\n{smuggled}");
    let length = format!("content-length: {}", chunked.len());
    for headers in [
        // With both, the length says that what follows is the body, the coding that it is another request.
        &[length.as_str(), "transfer-encoding: chunked"][..],
        &["transfer-encoding: chunked", length.as_str()],
        &["transfer-encoding: identity, chunked"],
        &["transfer-encoding: chunked", "transfer-encoding: identity"],
        &["transfer-encoding: xchunked", length.as_str()],
        &["content-length: 0", length.as_str()],
        &["content-length: 0, 5"],
        &["content-length: +5"],
        &["x: y\r\n transfer-encoding: chunked", "content-length: 0"],
        &["transfer-encoding : chunked", "content-length: 0"],
        &["host: evil.example\r\nhost: 127.0.0.1"],
    ] {
        let before = server.seen.paths().len();
        let answer = served.raw("POST /k8s/a/first", headers, &chunked).await;
        let passed: Vec<_> = server.seen.paths().into_iter().skip(before).collect();
        assert!(!passed.iter().any(|path| path.contains("smuggled")), "{headers:?}: {passed:?}");
        match code(&answer) {
            // Taken by its coding, as a request without a body; the connection ends with it.
            200 => assert!(headers.len() <= 2 && headers.iter().any(|h| h.ends_with("chunked")), "{headers:?}"),
            400 | 421 => assert!(passed.is_empty(), "{headers:?}"),
            other => panic!("{headers:?}: {other}"),
        }
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
    }
    // Whatever was said, the API server gets one length and no coding that could be read differently.
    for head in server.seen.heads.lock().expect("not poisoned").iter() {
        let of = |name: &str| head.headers.get_all(name).iter().count();
        assert!(of("content-length") + of("transfer-encoding") <= 1, "{:?}", head.headers);
    }
    served.stop().await;
}

#[tokio::test]
async fn a_redirect_leads_nowhere_else() {
    let (_server, served) = one(HTTP2).await;
    let client = Http2::connect(&served).await;
    let to = |location: &str| format!("/k8s/a/redirect?{location}");
    let inside = client.get(&to("/base/api/v1/pods")).await;
    assert_eq!(
        (inside.status().as_u16(), &inside.headers()["location"]),
        (302, &"/k8s/a/api/v1/pods".parse().expect("text"))
    );
    for outside in ["https://evil.example/", "//evil.example/", "http://169.254.169.254/", "/other/base", "/base/a//b"]
    {
        let answer = client.get(&to(outside)).await;
        assert!(!answer.headers().contains_key("location"), "{outside}");
        assert_eq!(status(answer).await.0, 502, "{outside}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_pods_page_gets_no_origin_and_sets_nothing() {
    let (_server, served) = one(HTTP2).await;
    let answer = served.raw("GET /k8s/a/api/v1/namespaces/x/services/s/proxy/page", &[], "").await.to_lowercase();
    assert_eq!(code(&answer), 200);
    assert!(!answer.contains("set-cookie") && !answer.contains("access-control-"), "{answer}");
    assert!(answer.contains("content-security-policy: sandbox; default-src 'none'\r\n"), "{answer}");
    assert!(
        answer.contains("x-content-type-options: nosniff\r\n") && answer.contains("cache-control: no-store\r\n"),
        "{answer}"
    );
    served.stop().await;
}

#[tokio::test]
async fn the_page_gets_the_api_and_no_pods_page_and_no_upgrade_without_its_origin() {
    let (server, served) = one(HTTP2).await;
    let below = "/api/v1/clusters/a/kube";
    let answer = served.raw(&format!("GET {below}/api/v1/namespaces/x/pods"), &[], "").await.to_lowercase();
    assert_eq!(code(&answer), 200, "{answer}");
    assert_eq!(server.seen.last().uri.path(), "/base/api/v1/namespaces/x/pods");
    assert!(answer.contains("content-security-policy: sandbox; default-src 'none'\r\n"), "{answer}");
    assert!(!answer.contains("set-cookie"), "{answer}");
    let seen = server.seen.paths().len();
    for path in [
        "/api/v1/namespaces/x/services/s/proxy/page",
        "/api/v1/namespaces/x/services/s:80/proxy/",
        "/api/v1/namespaces/x/pods/p/proxy",
        "/api/v1/nodes/n/proxy/metrics",
        "/api/v1/proxy/namespaces/x/services/s",
    ] {
        let answer = served.raw(&format!("GET {below}{path}"), &[], "").await;
        assert_eq!(code(&answer), 403, "{path}");
        assert!(answer.contains("\"kind\":\"Status\""), "{answer}");
    }
    for path in ["/../../../status", "/%2e%2e/x", "//api", "/api;x"] {
        assert_eq!(code(&served.raw(&format!("GET {below}{path}"), &[], "").await), 400, "{path}");
    }
    let upgrade = [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let exec = format!("GET {below}/api/v1/namespaces/x/pods/p/exec?command=ls");
    assert_eq!(code(&served.raw(&exec, &upgrade, "").await), 403, "no origin");
    let foreign = [&upgrade[..], &["origin: https://127.0.0.1:9"]].concat();
    assert_eq!(code(&served.raw(&exec, &foreign, "").await), 403);
    assert_eq!(server.seen.paths().len(), seen, "nothing of these reached the API server");
    let redirected = served.raw(&format!("GET {below}/redirect?/base/api/v1/pods"), &[], "").await;
    assert!(redirected.contains(&format!("location: {below}/api/v1/pods\r\n")), "{redirected}");
    served.stop().await;
}
