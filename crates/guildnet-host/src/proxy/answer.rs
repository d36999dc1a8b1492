//! The head of an answer: what of it reaches the client. Pure.
//!
//! Answers come under the door's own origin, also those of a page that a Pod serves behind `services/x/proxy/`. So they may
//! set nothing that outlives them or reaches beyond their path, may not run as a page of the door (a sandbox without an
//! origin), and may lead to nowhere but into their own cluster.

use guildnet_kube::{KubeCause, KubeError};
use guildnet_model::ClusterId;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use url::Url;

use super::{
    head::OF_THE_CONNECTION,
    path::{self, What},
    refusal::{Refusal, SANDBOX},
};

/// Headers that change what a browser does with the whole origin, or after this answer.
const BEYOND_THE_ANSWER: [&str; 19] = [
    "set-cookie",
    "set-cookie2",
    "clear-site-data",
    "strict-transport-security",
    "public-key-pins",
    "alt-svc",
    "refresh",
    "service-worker-allowed",
    "www-authenticate",
    "authentication-info",
    "nel",
    "report-to",
    "reporting-endpoints",
    "accept-ch",
    "critical-ch",
    "speculation-rules",
    "origin-trial",
    "link",
    "content-location",
];

/// Whose answer it is.
pub(super) struct From<'a> {
    pub(super) cluster: &'a ClusterId,
    /// What of the door's path stands in front of the API server's.
    pub(super) mount: &'a str,
    /// The API server, as its kubeconfig names it.
    pub(super) server: &'a Url,
    /// What it was asked for, without the mount.
    pub(super) path: &'a str,
    pub(super) what: &'a What,
}

/// Cleans an answer's headers.
///
/// # Errors
/// What is said instead: the cluster does not accept our credential, or the answer leads elsewhere.
pub(super) fn clean(from: &From<'_>, status: StatusCode, headers: &mut HeaderMap) -> Result<(), Refusal> {
    // The API server's own 401 is about the credential that is kept here, not the client's. A Pod's is its own affair.
    if status == StatusCode::UNAUTHORIZED && !from.what.is_proxy() {
        let server = from.server.as_str().trim_end_matches('/').to_owned();
        let cause = KubeCause::Unauthorized { why: "HTTP status 401".into() };
        return Err(Refusal::of_kube(from.cluster, &KubeError { server, cause }));
    }
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let gone: Vec<_> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            OF_THE_CONNECTION.contains(&name)
                || BEYOND_THE_ANSWER.contains(&name)
                || name.starts_with("access-control-")
                || name.starts_with("content-security-policy")
                || named.iter().any(|n| n == name)
        })
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
    if let Some(location) = headers.remove(header::LOCATION) {
        match (location.to_str().ok().and_then(|to| inside(from, to)), status.is_redirection()) {
            (Some(own), _) => drop(headers.insert(header::LOCATION, own)),
            (None, false) => {}
            (None, true) => {
                let said = format!("cluster {}: its answer leads out of the cluster's own paths", from.cluster);
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, said)
                    .with_hint("redirects are passed on only within the same API server"));
            }
        }
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, SANDBOX);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // kubectl keeps discovery by ETag and asks again each time; nothing else is kept anywhere.
    let kept = headers.contains_key(header::ETAG) && !from.what.is_proxy();
    let control = if kept { "no-cache, private" } else { "no-store" };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    Ok(())
}

/// Where a redirect leads, as a path of the door, if that is within the same API server.
fn inside(from: &From<'_>, to: &str) -> Option<HeaderValue> {
    // What a browser would read otherwise than is done here.
    if to.bytes().any(|b| !(0x21..=0x7e).contains(&b) || b == b'\\') {
        return None;
    }
    let base = from.server.path().trim_end_matches('/');
    let asked = from.server.join(&format!("{base}{}", from.path)).ok()?;
    let target = asked.join(to).ok()?;
    if target.origin() != from.server.origin() || !target.username().is_empty() || target.password().is_some() {
        return None;
    }
    let path = target.path().strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    path::understand(path).ok()?;
    let tail = |mark, part: Option<&str>| part.map(|p| format!("{mark}{p}")).unwrap_or_default();
    let own = format!("{}{path}{}{}", from.mount, tail('?', target.query()), tail('#', target.fragment()));
    own.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIED: &str = "/api/v1/namespaces/m/services/web/proxy/app";

    fn answer(path: &str, status: u16, headers: &[(&str, &str)]) -> Result<HeaderMap, Refusal> {
        let what = path::understand(path).expect("a path");
        let (cluster, server) = ("a".parse().expect("an id"), "https://api.example:6443/c1".parse().expect("a URL"));
        let from = From { cluster: &cluster, mount: "/k8s/a", server: &server, path, what: &what };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).expect("a name"), value.parse().expect("a value"));
        }
        clean(&from, StatusCode::from_u16(status).expect("a status"), &mut map).map(|()| map)
    }

    #[test]
    fn nothing_outlives_an_answer_or_reaches_beyond_it() {
        let hostile = [
            ("set-cookie", "__Host-guildnet=x; Path=/; Secure"),
            ("clear-site-data", "\"*\""),
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h3=\":443\""),
            ("refresh", "0;url=https://evil.example"),
            ("service-worker-allowed", "/"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("www-authenticate", "Basic"),
            ("nel", "{}"),
            ("link", "<https://evil.example>; rel=preconnect"),
            ("content-security-policy", "default-src *"),
            ("content-security-policy-report-only", "default-src *; report-uri https://evil.example"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("upgrade", "h2c"),
        ];
        let left = answer(PROXIED, 200, &hostile).expect("passes");
        let mut left: Vec<_> = left.iter().map(|(n, v)| (n.as_str(), v.to_str().expect("text"))).collect();
        left.sort_unstable();
        let expected = [
            ("cache-control", "no-store"),
            ("content-security-policy", "sandbox; default-src 'none'"),
            ("x-content-type-options", "nosniff"),
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn what_kubectl_needs_stays() {
        let sent = [
            ("content-type", "application/json"),
            ("etag", "\"x\""),
            ("vary", "Accept"),
            ("audit-id", "1"),
            ("warning", "299 - \"old\""),
            ("retry-after", "3"),
            ("x-kubernetes-pf-flowschema-uid", "u"),
            ("cache-control", "public, immutable"),
        ];
        let left = answer("/apis", 200, &sent).expect("passes");
        for (name, value) in &sent[..7] {
            assert_eq!(left[*name], value);
        }
        assert_eq!(left["cache-control"], "no-cache, private", "kept by its ETag, asked again each time");
        assert_eq!(answer(PROXIED, 200, &sent).expect("passes")["cache-control"], "no-store");
    }

    #[test]
    fn a_redirect_stays_within_the_cluster() {
        let to = |location: &str| {
            let left = answer(PROXIED, 302, &[("location", location)]).ok()?;
            Some(left["location"].to_str().expect("text").to_owned())
        };
        let own = |path: &str| Some(format!("/k8s/a{path}"));
        let below = "/api/v1/namespaces/m/services/web/proxy";
        assert_eq!(to(&format!("/c1{below}/login?x=1#y")), own(&format!("{below}/login?x=1#y")));
        assert_eq!(to(&format!("https://api.example:6443/c1{below}/")), own(&format!("{below}/")));
        assert_eq!(to("login"), own(&format!("{below}/login")));
        assert_eq!(to("../proxy/"), own("/api/v1/namespaces/m/services/web/proxy/"));
        for outside in [
            "https://evil.example/",
            "//evil.example/c1/",
            "/\\evil.example",
            "http://api.example:6443/c1/",
            "https://api.example/c1/",
            "https://u:p@api.example:6443/c1/x",
            "https://169.254.169.254/latest",
            "https://127.0.0.1:8090/k8s/b/",
            "/c2/api",
            "/c1evil",
            "/../../k8s/b",
            "/c1/a%2e%2e%2fb",
            "javascript:alert(1)",
            "data:text/html,x",
            "file:///etc/passwd",
        ] {
            assert_eq!(to(outside), None, "{outside}");
        }
        let refused = answer(PROXIED, 302, &[("location", "https://evil.example/")]).expect_err("refused");
        assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
        assert!(!format!("{refused:?}").contains("evil"), "it is not repeated");
        let created = answer("/api/v1/pods", 201, &[("location", "https://evil.example/")]).expect("passes");
        assert!(!created.contains_key("location"), "no redirect, so only the header goes");
    }

    #[test]
    fn the_clusters_own_401_is_not_the_clients() {
        let refused = answer("/api/v1/pods", 401, &[]).expect_err("said otherwise");
        assert_eq!(refused.status(), StatusCode::BAD_GATEWAY);
        assert!(refused.to_string().contains("does not accept the kubeconfig's credential"), "{refused}");
        let pods = answer(PROXIED, 401, &[("www-authenticate", "Basic")]).expect("a Pod's own");
        assert!(!pods.contains_key("www-authenticate"), "no browser asks for a password under our name");
    }
}
