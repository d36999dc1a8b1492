//! Who may pass the door. Pure: a request's head comes in, a refusal or nothing goes out.
//!
//! A page in a browser on this machine can send requests here, and a name that an attacker's DNS points to 127.0.0.1
//! reaches us too. So every request must name the door by one of its own names (Host), none may come from another page
//! (Origin), and all but `/healthz` carry a token, which no page has: the home folder's own, which opens everything, or,
//! for `/k8s/`, a short-lived one (`kube_token.rs`).

use std::{net::SocketAddr, time::SystemTime};

use guildnet_model::Secret;
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};

use super::{
    kube_token::{self, Judged},
    problem::Problem,
    token,
};

/// The only path that needs no token: it says that a Host App is here, and nothing else.
pub(super) const OPEN_PATH: &str = "/healthz";

/// What a short-lived token opens: paths that begin so, as they were sent. The routes behind the gate compare the same
/// undecoded text, so there is no second reading of a path.
const KUBE_PATHS: &str = "/k8s/";

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

    /// Lets a request pass, or says why not.
    pub(super) fn admit(&self, head: &Parts) -> Result<(), Problem> {
        self.admit_at(head, SystemTime::now())
    }

    fn admit_at(&self, head: &Parts, now: SystemTime) -> Result<(), Problem> {
        self.named(&head.uri, &head.headers)?;
        self.of_own_page(&head.uri, &head.headers)?;
        if head.uri.path() == OPEN_PATH { Ok(()) } else { self.holds_token(head, now) }
    }

    fn is_own_name(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// HTTP/1.1 names the host in its header (exactly once), HTTP/2 in the URI; where both stand, both must be ours.
    fn named(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let in_uri = uri.authority().map(|a| Some(a.as_str()));
        let in_headers = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
        let names: Vec<Option<&str>> = in_uri.into_iter().chain(in_headers).collect();
        let once = headers.get_all(header::HOST).iter().count() <= 1;
        if once && !names.is_empty() && names.iter().all(|name| name.is_some_and(|n| self.is_own_name(n))) {
            return Ok(());
        }
        let known = format!("this door answers to {} only", self.names.join(", "));
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", known))
    }

    /// Client libraries that speak WebSocket name the address that they call as their origin, some with the wrong scheme
    /// (Python's websocket-client 1.2). That is believed where only a token in a header opens: no page can send one
    /// there, and at this address nobody but this door can have served one.
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
        Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", "requests from other pages are refused"))
    }

    fn holds_token(&self, head: &Parts, now: SystemTime) -> Result<(), Problem> {
        let mut given = head.headers.get_all(header::AUTHORIZATION).iter();
        let bearer = match (given.next(), given.next()) {
            (Some(only), None) => only.to_str().ok().and_then(|value| value.split_once(' ')),
            _ => None,
        };
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
        match bearer.map(|token| (token, kube_token::judge(&self.token, token, now))) {
            Some((_, Judged::Good)) if head.uri.path().starts_with(KUBE_PATHS) => Ok(()),
            Some((_, Judged::Good)) => {
                let detail = format!("this token opens {KUBE_PATHS} only");
                Err(Problem::new(StatusCode::FORBIDDEN, "wrong_scope", detail)
                    .with_hint("send 'Authorization: Bearer TOKEN' with the output of: guildnet token"))
            }
            Some((token, Judged::Other)) if token::equal(token, self.token.expose()) => Ok(()),
            _ => Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "the token is missing or wrong")
                .with_hint("send 'Authorization: Bearer TOKEN' with the output of: guildnet token")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    const TOKEN: &str = "the-token";

    /// What the gate says to a request with these headers: `None` lets it pass.
    fn said(uri: &str, headers: &[(&str, &str)]) -> Option<String> {
        let gate = Gate::new(([127, 0, 0, 1], 8090).into(), Secret::new(TOKEN.into()));
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        gate.admit(&head).err().map(|problem| problem.code)
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
        gate.admit_at(&head, made + Duration::from_secs(after)).err().map(|problem| problem.code)
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:8090");
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
}
