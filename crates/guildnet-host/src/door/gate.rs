//! Who may pass the door. Pure: a request's head comes in, how it passes or a refusal goes out.
//!
//! A page in a browser on this machine can send requests here, and a name that an attacker's DNS points to 127.0.0.1
//! reaches us too. So every request must name the door by one of its own names (Host), none may come from another page
//! (Origin), and all but a few show one of these:
//! - the home folder's token, as bearer: opens everything;
//! - a short-lived token made from it (`kube_token.rs`), as bearer: opens `/k8s/`;
//! - a scraper's (`metrics_token.rs`), as bearer: opens `/metrics`;
//! - the cookie of a session (`session.rs`), which a browser sends by itself, whoever's page made it send something. So it opens
//!   only what the door's own page needs, and only where the browser says that this page is the one that asks
//!   (`Sec-Fetch-Site: same-origin`, W3C Fetch Metadata). Cookies know no ports: a page of another port on this host is
//!   `same-site`, and refused like any other; and its server is sent our cookie, so the session's key must come with it, in a
//!   header that only the door's page can fill.
//!
//! Where an `Authorization` is sent, it alone counts. What needs none of them is [`OPEN`].

use std::{net::SocketAddr, time::SystemTime};

use guildnet_model::Secret;
use http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts};

use super::{
    kube_token::{self, Judged},
    metrics_token,
    problem::Problem,
    token,
};

/// Says that a Host App is here, and nothing else.
pub(super) const HEALTH_PATH: &str = "/healthz";
/// Where a one-time code becomes a session.
pub(super) const LOGIN_PATH: &str = "/api/v1/login";
/// The page, and the files that it is made of.
pub(super) const SHELL_PATHS: [&str; 3] = ["/", "/shell.js", "/shell.css"];

/// What needs no credential: methods and paths, as they are sent.
pub(super) const OPEN: [(&[Method], &str); 5] = [
    (READ, HEALTH_PATH),
    (READ, SHELL_PATHS[0]),
    (READ, SHELL_PATHS[1]),
    (READ, SHELL_PATHS[2]),
    (&[Method::POST], LOGIN_PATH),
];
const READ: &[Method] = &[Method::GET, Method::HEAD];

/// The session's cookie. The prefix makes browsers refuse it from any page but one of this host over TLS, for the whole
/// path and no other host (RFC 6265bis section 4.1.3.2).
pub(super) const COOKIE: &str = "__Host-guildnet";

/// The header with the session's key.
pub(super) const KEY: &str = "x-guildnet-key";

/// What a scraper's token opens.
pub(super) const METRICS_PATH: &str = "/metrics";

/// What a short-lived token opens: paths that begin so, as they were sent. The routes behind the gate compare the same
/// undecoded text, so there is no second reading of a path.
const KUBE_PATHS: &str = "/k8s/";
/// What a session opens, with the exceptions of [`of_session`].
const SESSION_PATHS: [&str; 2] = ["/api/v1/", "/api/openapi.json"];

/// A header by which browsers say whose page makes them ask.
const FETCH_SITE: &str = "sec-fetch-site";
/// A header by which browsers say what they want the answer for.
const FETCH_DEST: &str = "sec-fetch-dest";

/// By what a request passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// By nothing: it is open to all.
    Open,
    /// By the home folder's token.
    Token,
    /// By a short-lived one.
    KubeToken,
    /// By the session of this public name.
    Session(String),
}

/// What a request must show.
pub(super) struct Gate {
    /// `127.0.0.1:8090`, `localhost:8090`, `[::1]:8090`.
    names: [String; 3],
    token: Secret<String>,
}

impl Gate {
    /// The gate of a door at this address.
    pub(super) fn new(address: SocketAddr, token: Secret<String>) -> Self {
        let port = address.port();
        Self { names: [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")], token }
    }

    /// Lets a request pass, or says why not. `session` finds a session by its cookie and its key.
    pub(super) fn admit(
        &self,
        head: &Parts,
        now: SystemTime,
        session: impl FnOnce(&str, &str) -> Option<String>,
    ) -> Result<Pass, Problem> {
        let name = self.named(&head.uri, &head.headers)?;
        self.of_own_page(&head.uri, &head.headers)?;
        let path = head.uri.path();
        if OPEN.iter().any(|(methods, open)| *open == path && methods.contains(&head.method)) {
            return open(path, &head.headers, name).map(|()| Pass::Open);
        }
        if head.headers.contains_key(header::AUTHORIZATION) {
            return self.holds_token(head, now);
        }
        if of_session(path)
            && let Some(cookie) = cookie(&head.headers)?
        {
            of_our_page(&head.headers, name)?;
            let key = only(&head.headers, KEY).unwrap_or_default();
            return session(cookie, key).map(Pass::Session).ok_or_else(|| {
                Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the session has ended, or its key is missing")
                    .with_hint("sign in again: guildnet ui")
            });
        }
        Err(unauthorized())
    }

    fn is_own_name(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// HTTP/1.1 names the host in its header (exactly once), HTTP/2 in the URI; where both stand, both must be ours.
    fn named<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
        let in_uri = uri.authority().map(|a| Some(a.as_str()));
        let in_headers = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
        let names: Vec<Option<&str>> = in_uri.into_iter().chain(in_headers).collect();
        let once = headers.get_all(header::HOST).iter().count() <= 1;
        if let (true, Some(Some(first))) = (once, names.first())
            && names.iter().all(|name| name.is_some_and(|n| self.is_own_name(n)))
        {
            return Ok(first);
        }
        let known = format!("this door answers to {} only", self.names.join(", "));
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", known))
    }

    /// Client libraries that speak WebSocket name the address that they call as their origin, some with the wrong scheme
    /// (Python's websocket-client 1.2). That is believed where only a token in a header opens. A page can have that
    /// origin: another program may have served it at this port, without TLS, while no Host App ran, or still serves it at
    /// `[::1]`. But no browser adds a token to what a page sends, a page that has none is refused like anybody, and it
    /// can't even ask with one of its own: the door grants no CORS preflight.
    fn of_own_page(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let own = |origin: &str| {
            let name = match origin.strip_prefix("http://") {
                Some(name) if uri.path().starts_with(KUBE_PATHS) => Some(name),
                _ => origin.strip_prefix("https://"),
            };
            name.is_some_and(|name| self.is_own_name(name))
        };
        if headers.get_all(header::ORIGIN).iter().all(|origin| origin.to_str().is_ok_and(own)) {
            return Ok(());
        }
        Err(foreign_origin())
    }

    fn holds_token(&self, head: &Parts, now: SystemTime) -> Result<Pass, Problem> {
        let bearer = only(&head.headers, header::AUTHORIZATION.as_str()).and_then(|value| value.split_once(' '));
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
        match bearer.map(|token| (token, kube_token::judge(&self.token, token, now))) {
            Some((_, Judged::Good)) if head.uri.path().starts_with(KUBE_PATHS) => Ok(Pass::KubeToken),
            Some((_, Judged::Good)) => Err(wrong_scope(KUBE_PATHS)),
            Some((token, Judged::Other)) if token::equal(token, self.token.expose()) => Ok(Pass::Token),
            Some((token, Judged::Other)) if metrics_token::is(&self.token, token) => {
                if head.uri.path() == METRICS_PATH { Ok(Pass::Token) } else { Err(wrong_scope(METRICS_PATH)) }
            }
            _ => Err(unauthorized()),
        }
    }
}

/// What needs no credential must still not be asked for by another page: not framed, not fetched, not posted to. Only a link
/// may lead to the page, from wherever: `guildnet ui` itself comes from a file.
fn open(path: &str, headers: &HeaderMap, name: &str) -> Result<(), Problem> {
    let says = |header: &str, allowed: &[&str]| {
        headers.get_all(header).iter().all(|value| value.to_str().is_ok_and(|value| allowed.contains(&value)))
    };
    let fine = match path {
        LOGIN_PATH => return of_our_page(headers, name),
        "/" => says(FETCH_DEST, &["document"]),
        HEALTH_PATH => true,
        _ => says(FETCH_SITE, &["same-origin", "none"]),
    };
    if fine { Ok(()) } else { Err(foreign_page()) }
}

/// Whether a session may be used there: for what the page asks of the API. Not where codes for more sessions are made, and not
/// where a connection becomes a stream of any bytes; `/k8s/` and all else is for tokens.
fn of_session(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let excepted =
        matches!(segments.as_slice(), ["api", "v1", "login-codes", ..] | ["api", "v1", "clusters", _, "dial", ..]);
    !excepted
        && SESSION_PATHS.iter().any(|paths| if paths.ends_with('/') { path.starts_with(paths) } else { path == *paths })
}

/// The cookie of a session, if one is sent.
///
/// # Errors
/// There are two: one is not the door's own, and nobody can say which.
fn cookie(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| name.trim_end() == COOKIE)
        .map(|(_, value)| value.trim());
    match (found.next(), found.next()) {
        (only, None) => Ok(only),
        _ => Err(Problem::new(StatusCode::FORBIDDEN, "two_cookies", format!("two cookies are named {COOKIE}"))
            .with_hint("remove the cookies of this address in the browser, then sign in again: guildnet ui")),
    }
}

/// Whether a browser says that the door's own page asks: the one that it has loaded from the very name that is asked now.
/// What asks for an upgrade must say its origin, since browsers put no other bound on WebSockets.
fn of_our_page(headers: &HeaderMap, name: &str) -> Result<(), Problem> {
    if only(headers, FETCH_SITE) != Some("same-origin") {
        return Err(foreign_page());
    }
    let origin = match (headers.contains_key(header::ORIGIN), headers.contains_key(header::UPGRADE)) {
        (false, upgrade) => !upgrade,
        (true, _) => only(headers, header::ORIGIN.as_str())
            .and_then(|origin| origin.strip_prefix("https://"))
            .is_some_and(|origin| origin.eq_ignore_ascii_case(name)),
    };
    if origin { Ok(()) } else { Err(foreign_origin()) }
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the token is missing or wrong").with_hint(
        "send 'Authorization: Bearer TOKEN' with the output of: guildnet token; in a browser sign in by: guildnet ui",
    )
}

/// A token that opens less than what was asked for.
fn wrong_scope(opens: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "wrong_scope", format!("this token opens {opens} only"))
        .with_hint("send 'Authorization: Bearer TOKEN' with the output of: guildnet token")
}

fn foreign_origin() -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "foreign_origin", "requests from other pages are refused")
}

fn foreign_page() -> Problem {
    let detail = "with a session only the Host App's own page may ask (Sec-Fetch-Site: same-origin)";
    Problem::new(StatusCode::FORBIDDEN, "foreign_page", detail).with_hint("open the page itself: guildnet ui")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    const TOKEN: &str = "the-token";

    /// What the gate says to a request with these headers.
    fn judged(method: Method, uri: &str, headers: &[(&str, &str)]) -> Result<Pass, String> {
        let gate = Gate::new(([127, 0, 0, 1], 8090).into(), Secret::new(TOKEN.into()));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let session = |cookie: &str, key: &str| (cookie == "good" && key == "key").then(|| "s1".to_owned());
        gate.admit(&head, SystemTime::now(), session).map_err(|problem| problem.code)
    }

    /// The same for a plain read: `None` lets it pass.
    fn said(uri: &str, headers: &[(&str, &str)]) -> Option<String> {
        judged(Method::GET, uri, headers).err()
    }

    /// The same by the cookie of a session.
    fn by_cookie(method: Method, uri: &str, more: &[(&str, &str)]) -> Result<Pass, String> {
        judged(method, uri, &[&[HOST, GOOD, ITS_KEY], more].concat())
    }

    /// What it says to a short-lived token for that path, some seconds after it was made.
    fn said_to_kubectl(uri: &str, after: u64) -> Option<String> {
        let long = Secret::new(TOKEN.into());
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (token, _) = kube_token::make(&long, made).expect("made");
        let request = Request::builder().uri(uri).header(HOST.0, HOST.1);
        let request = request.header("authorization", format!("Bearer {}", token.expose()));
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let gate = Gate::new(([127, 0, 0, 1], 8090).into(), long);
        gate.admit(&head, made + Duration::from_secs(after), |_, _| None).err().map(|problem| problem.code)
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8090");
    const GOOD: (&str, &str) = ("cookie", "__Host-guildnet=good");
    const ITS_KEY: (&str, &str) = (KEY, "key");
    const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");
    const OWN: (&str, &str) = ("origin", "https://127.0.0.1:8090");
    const BEARER: (&str, &str) = ("authorization", "Bearer the-token");

    #[test]
    fn the_token_opens_everything_and_healthz_needs_none() {
        assert_eq!(said("/api/v1/status", &[HOST, BEARER]), None);
        assert_eq!(said("/api/v1/status", &[HOST, ("authorization", "bearer the-token")]), None);
        assert_eq!(said("/healthz", &[HOST]), None);
    }

    #[test]
    fn without_the_token_nothing_else_opens() {
        let refused = Some("unauthorized".to_owned());
        for uri in ["/readyz", "/api/v1/status", "/nowhere", "/healthz/", "//healthz"] {
            assert_eq!(said(uri, &[HOST]), refused, "{uri}");
        }
        for wrong in ["Bearer the-tokem", "Bearer ", "Bearer", "Basic the-token", "the-token"] {
            assert_eq!(said("/readyz", &[HOST, ("authorization", wrong)]), refused, "{wrong}");
        }
        assert_eq!(said("/readyz", &[HOST, BEARER, ("authorization", "Bearer x")]), refused, "two of them");
    }

    #[test]
    fn a_short_lived_token_opens_the_clusters_until_its_end_and_nothing_else() {
        assert_eq!(said_to_kubectl("/k8s/a/api/v1/pods?limit=500", 1), None);
        assert_eq!(said_to_kubectl("/k8s/a/api/v1/pods", 15 * 60).as_deref(), Some("unauthorized"));
        for uri in
            ["/api/v1/status", "/readyz", "/k8s", "/K8S/a", "//k8s/a", "/%6b8s/a", "/api/v1/../../k8s/a", "/x/k8s/"]
        {
            assert_eq!(said_to_kubectl(uri, 1).as_deref(), Some("wrong_scope"), "{uri}");
        }
        assert_eq!(said("/k8s/a", &[HOST, BEARER]), None, "the long one opens everything");
        for forged in ["Bearer gnk1.", "Bearer gnk1.9999999999.AAAAAAAAAAAAAAAAAAAAAA.AAAA"] {
            assert_eq!(said("/k8s/a", &[HOST, ("authorization", forged)]).as_deref(), Some("unauthorized"), "{forged}");
        }
    }

    #[test]
    fn a_scrapers_token_opens_the_metrics_and_nothing_else() {
        let token = metrics_token::of(&Secret::new(TOKEN.into()));
        let bearer = format!("Bearer {}", token.expose());
        let with = |uri: &str| said(uri, &[HOST, ("authorization", &bearer)]);
        assert_eq!(with("/metrics"), None);
        assert_eq!(with("/metrics?x=1"), None);
        for uri in ["/metrics/", "//metrics", "/Metrics", "/%6detrics", "/api/v1/status", "/k8s/a/metrics", "/readyz"] {
            assert_eq!(with(uri).as_deref(), Some("wrong_scope"), "{uri}");
        }
        assert_eq!(said("/metrics", &[HOST]).as_deref(), Some("unauthorized"));
        assert_eq!(said_to_kubectl("/metrics", 1).as_deref(), Some("wrong_scope"));
        let forged = [HOST, ("authorization", "Bearer gnm1.AAAA")];
        assert_eq!(said("/metrics", &forged).as_deref(), Some("unauthorized"));
    }

    #[test]
    fn every_name_of_the_door_is_known() {
        for name in ["127.0.0.1:8090", "localhost:8090", "LOCALHOST:8090", "[::1]:8090"] {
            assert_eq!(said("/readyz", &[("host", name), BEARER]), None, "{name}");
            assert_eq!(said(&format!("https://{name}/readyz"), &[BEARER]), None, "HTTP/2 {name}");
        }
    }

    #[test]
    fn a_forged_host_is_refused_even_with_the_token() {
        let refused = Some("wrong_host".to_owned());
        for name in ["evil.example:8090", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8090.evil.example", "localhost", ""] {
            assert_eq!(said("/readyz", &[("host", name), BEARER]), refused, "{name}");
            assert_eq!(said("/healthz", &[("host", name)]), refused, "{name}");
        }
        assert_eq!(said("/readyz", &[BEARER]), refused, "none at all");
        assert_eq!(said("/readyz", &[HOST, ("host", "evil.example"), BEARER]), refused, "two of them");
        assert_eq!(said("https://evil.example/readyz", &[HOST, BEARER]), refused, "absolute form");
    }

    #[test]
    fn another_page_is_refused_even_with_the_token() {
        assert_eq!(said("/readyz", &[HOST, BEARER, ("origin", "https://127.0.0.1:8090")]), None);
        assert_eq!(said("/readyz", &[HOST, BEARER, ("origin", "https://localhost:8090")]), None);
        for origin in
            ["https://evil.example", "null", "http://127.0.0.1:8090", "https://127.0.0.1", "https://127.0.0.1:80"]
        {
            let code = said("/healthz", &[HOST, BEARER, ("origin", origin)]);
            assert_eq!(code.as_deref(), Some("foreign_origin"), "{origin}");
        }
    }

    #[test]
    fn a_client_library_that_names_the_door_as_its_origin_reaches_the_clusters_only() {
        let origin = ("origin", "http://127.0.0.1:8090");
        assert_eq!(said("/k8s/a/api/v1/pods", &[HOST, BEARER, origin]), None);
        assert_eq!(said("/k8s/a/api/v1/pods", &[HOST, origin]).as_deref(), Some("unauthorized"), "without the token");
        for (uri, origin) in [
            ("/api/v1/status", "http://127.0.0.1:8090"),
            ("/k8s/a/", "http://127.0.0.1:8091"),
            ("/k8s/a/", "http://127.0.0.1"),
            ("/k8s/a/", "http://evil.example:8090"),
            ("/k8s/a/", "http://https://127.0.0.1:8090"),
            ("/k8s/a/", "null"),
        ] {
            let code = said(uri, &[HOST, BEARER, ("origin", origin)]);
            assert_eq!(code.as_deref(), Some("foreign_origin"), "{uri} {origin}");
        }
    }

    #[test]
    fn a_session_opens_the_api_to_the_doors_own_page() {
        let session = Ok(Pass::Session("s1".into()));
        for uri in ["/api/v1/status", "/api/v1/clusters/a/kube/api/v1/pods", "/api/v1/sessions", "/api/openapi.json"] {
            for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
                assert_eq!(by_cookie(method, uri, &[SAME, OWN]), session, "{uri}");
            }
            assert_eq!(by_cookie(Method::GET, uri, &[SAME]), session, "a read names no origin");
        }
        let among_others = ("cookie", "a=b; __Host-guildnet=good;c=d; __host-guildnet=x; x__Host-guildnet=y");
        assert_eq!(judged(Method::GET, "/api/v1/status", &[HOST, SAME, ITS_KEY, among_others]), session);
        // Another server on this host is sent the cookie; it may send it on with whatever else it likes.
        for stolen in
            [&[HOST, GOOD, SAME, OWN][..], &[HOST, GOOD, SAME, OWN, (KEY, "x")], &[HOST, GOOD, SAME, ITS_KEY, ITS_KEY]]
        {
            assert_eq!(said("/api/v1/status", stolen).as_deref(), Some("unauthorized"), "{stolen:?}");
        }
        let ended = ("cookie", "__Host-guildnet=ended");
        assert_eq!(said("/api/v1/status", &[HOST, SAME, ended]).as_deref(), Some("unauthorized"));
    }

    #[test]
    fn with_a_session_every_method_needs_the_browsers_word_that_the_doors_own_page_asks() {
        let refused = Err("foreign_page".to_owned());
        for method in
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE]
        {
            let by = |more: &[(&str, &str)]| by_cookie(method.clone(), "/api/v1/status", more);
            assert_eq!(by(&[]), refused, "{method}: missing");
            for site in ["same-site", "cross-site", "none", "", "Same-Origin", "same-origin, same-origin"] {
                assert_eq!(by(&[("sec-fetch-site", site)]), refused, "{method}: {site}");
                assert_eq!(by(&[("sec-fetch-site", site), OWN]), refused, "{method}: {site}, with our origin");
            }
            assert_eq!(by(&[SAME, SAME]), refused, "{method}: twice");
            assert_eq!(by(&[SAME, ("sec-fetch-site", "cross-site")]), refused, "{method}: both");
        }
    }

    #[test]
    fn with_a_session_the_origin_is_the_very_name_that_is_asked() {
        let refused = Err("foreign_origin".to_owned());
        for origin in [
            "https://localhost:8090",
            "https://[::1]:8090",
            "http://127.0.0.1:8090",
            "https://127.0.0.1:9000",
            "https://127.0.0.2:8090",
            "null",
            "",
        ] {
            assert_eq!(by_cookie(Method::POST, "/api/v1/reload", &[SAME, ("origin", origin)]), refused, "{origin}");
        }
        let websocket = ("upgrade", "websocket");
        assert_eq!(by_cookie(Method::GET, "/api/v1/clusters/a/kube/x", &[SAME, websocket]), refused, "no origin");
        assert!(by_cookie(Method::GET, "/api/v1/clusters/a/kube/x", &[SAME, websocket, OWN]).is_ok());
    }

    #[test]
    fn a_session_never_opens_what_is_for_tokens() {
        for uri in [
            "/k8s/a/api/v1/pods",
            "/k8s/",
            "/api/v1/login-codes",
            "/api/v1/login-codes/x",
            "/api/v1/clusters/a/dial?to=10.96.0.1:443",
            "/readyz",
            "/metrics",
            "/nowhere",
            "/api/v1",
            "/api/v10/status",
            "//api/v1/status",
            "/API/v1/status",
            "/api/openapi.json/x",
        ] {
            let code = by_cookie(Method::GET, uri, &[SAME, OWN]);
            assert_eq!(code, Err("unauthorized".to_owned()), "{uri}");
        }
        // The origin that Python's clients claim helps nobody who has a cookie only.
        let claimed = by_cookie(Method::GET, "/k8s/a/api", &[SAME, ("origin", "http://127.0.0.1:8090")]);
        assert_eq!(claimed, Err("unauthorized".to_owned()));
    }

    #[test]
    fn where_a_bearer_is_sent_it_alone_counts() {
        let wrong = ("authorization", "Bearer x");
        assert_eq!(by_cookie(Method::GET, "/api/v1/status", &[SAME, wrong]), Err("unauthorized".to_owned()));
        assert_eq!(by_cookie(Method::GET, "/api/v1/status", &[BEARER]), Ok(Pass::Token));
        assert_eq!(by_cookie(Method::POST, "/api/v1/login-codes", &[BEARER]), Ok(Pass::Token));
    }

    #[test]
    fn two_cookies_of_the_name_are_refused() {
        for cookies in [
            &["__Host-guildnet=good; __Host-guildnet=good"][..],
            &["__Host-guildnet=x; a=b;__Host-guildnet=good"],
            &["__Host-guildnet=good", "__Host-guildnet=y"],
            &["__Host-guildnet =good; __Host-guildnet=y"],
        ] {
            let mut headers = vec![HOST, SAME];
            headers.extend(cookies.iter().map(|cookie| ("cookie", *cookie)));
            assert_eq!(said("/api/v1/status", &headers).as_deref(), Some("two_cookies"), "{cookies:?}");
        }
    }

    #[test]
    fn what_is_open_is_not_open_to_other_pages() {
        let open = |method: Method, uri: &str, more: &[(&str, &str)]| judged(method, uri, &[&[HOST], more].concat());
        let refused = |code: &str| Err(code.to_owned());
        let (document, frame) = (("sec-fetch-dest", "document"), ("sec-fetch-dest", "iframe"));
        let cross = ("sec-fetch-site", "cross-site");
        // A link may lead to the page, from a file too; a frame, a script or an image of another page may not.
        for more in [&[][..], &[document, cross], &[document, ("sec-fetch-site", "none")]] {
            assert_eq!(open(Method::GET, "/", more), Ok(Pass::Open), "{more:?}");
        }
        assert_eq!(open(Method::GET, "/", &[frame, SAME]), refused("foreign_page"));
        assert_eq!(open(Method::GET, "/", &[("sec-fetch-dest", "script"), cross]), refused("foreign_page"));
        assert_eq!(open(Method::GET, "/shell.js", &[SAME]), Ok(Pass::Open));
        for site in ["same-site", "cross-site"] {
            assert_eq!(open(Method::GET, "/shell.js", &[("sec-fetch-site", site)]), refused("foreign_page"));
        }
        assert_eq!(open(Method::POST, "/api/v1/login", &[SAME, OWN]), Ok(Pass::Open));
        assert_eq!(open(Method::POST, "/api/v1/login", &[OWN]), refused("foreign_page"));
        assert_eq!(open(Method::POST, "/api/v1/login", &[cross, ("origin", "null")]), refused("foreign_origin"));
        // Only as they are: another method, another spelling is not among them.
        for (method, uri) in [
            (Method::POST, "/"),
            (Method::DELETE, "/healthz"),
            (Method::GET, "/api/v1/login"),
            (Method::GET, "/shell.js/"),
            (Method::GET, "//"),
            (Method::POST, "/api/v1/login/"),
        ] {
            assert_eq!(open(method, uri, &[SAME, OWN]), refused("unauthorized"), "{uri}");
        }
    }
}
