//! The head of a request: what of it goes on to the API server. Pure.
//!
//! Headers of the connection end here, with those that `Connection` names; but no such name can take away a header that
//! is guarded, since that would be a way to make the API server see another request than was looked at here. The
//! credential of the door ends here too. Headers by which one acts as somebody else are refused, never dropped:
//! `kubectl --as` would act as the administrator that the cluster's credential is.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};

use super::refusal::Refusal;

/// Verbs of the Kubernetes API, and what browsers ask beforehand.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// A token in the place of a WebSocket's protocol (k8s.io/apiserver, `websocket.NewProtocolAuthenticator`).
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The API server's name for a request (k8s.io/apiserver, `HeaderAuditID`).
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Headers of one connection (RFC 9110 section 7.6.1), in both directions.
pub(super) const OF_THE_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Headers that are for the door, or would say where a request comes from.
const FOR_THE_DOOR: [&str; 9] = [
    "authorization",
    "cookie",
    "x-guildnet-key",
    "host",
    "origin",
    "expect",
    "forwarded",
    "x-real-ip",
    "sec-fetch-site",
];

/// Headers that a `Connection` may name, though they belong to the connection: naming them is their proper use.
const MAY_BE_NAMED: [&str; 8] =
    ["close", "keep-alive", "upgrade", "te", "trailer", "trailers", "proxy-connection", "http2-settings"];

/// What may be passed on of a request's head.
#[derive(Debug)]
pub(super) struct Passed {
    /// The headers, without credential and host: those are the server's own.
    pub(super) headers: HeaderMap,
    /// The protocol that it asks to switch to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// Takes a head; `request_id` is what the API server's audit log is to call it, unless the client has a name for it.
///
/// # Errors
/// 400, 403 or 405 for what must not be passed on.
pub(super) fn pass(head: &Parts, request_id: &str) -> Result<Passed, Refusal> {
    if !METHODS.contains(&head.method) {
        let said = format!("the Kubernetes API has no method {}", head.method);
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, said));
    }
    let given = &head.headers;
    for name in given.keys() {
        acting_as_somebody(name.as_str())?;
    }
    let named = named_by_connection(given)?;
    let upgrade = upgrade(head, &named)?;
    let dropped = |name: &str| {
        OF_THE_CONNECTION.contains(&name)
            || FOR_THE_DOOR.contains(&name)
            || name.starts_with("x-forwarded-")
            || named.iter().any(|n| n == name)
            || (upgrade.is_some() && name == "content-length")
    };
    let mut headers = HeaderMap::with_capacity(given.len() + 3);
    for (name, value) in given.iter().filter(|(name, _)| !dropped(name.as_str())) {
        headers.append(name, value.clone());
    }
    if let (false, Ok(id)) = (headers.contains_key(&AUDIT_ID), HeaderValue::from_str(request_id)) {
        headers.insert(AUDIT_ID, id);
    }
    if let Some(protocol) = &upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    Ok(Passed { headers, upgrade })
}

fn acting_as_somebody(name: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        Refusal::new(StatusCode::FORBIDDEN, format!("the header {name} is refused: {why}"))
            .with_hint("leave it out (kubectl: --as, --as-group, --as-uid), or use the cluster's own kubeconfig")
    };
    // With underscores too: some servers read them as dashes.
    let plain = name.replace('_', "-");
    if plain.starts_with("impersonate-") {
        return Err(refuse("it would act for the credential that the Host App keeps for this cluster"));
    }
    if plain.starts_with("x-remote-") {
        return Err(refuse("it says who is asking, which is only for a proxy that the API server trusts"));
    }
    Ok(())
}

/// The names in `Connection`, in lower case.
fn named_by_connection(headers: &HeaderMap) -> Result<Vec<String>, Refusal> {
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let text =
            value.to_str().map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the header connection is no text"))?;
        for name in text.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()) {
            if is_guarded(&name) {
                let said = format!("the header connection names {name}, which it may not take away");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, said));
            }
            named.push(name);
        }
    }
    Ok(named)
}

/// Whether the meaning of a request hangs on it: who asks, for what, in which form, how long.
fn is_guarded(name: &str) -> bool {
    if MAY_BE_NAMED.contains(&name) {
        return false;
    }
    let plain = name.replace('_', "-");
    OF_THE_CONNECTION.contains(&name)
        || FOR_THE_DOOR.contains(&name)
        || ["impersonate-", "x-remote-", "x-forwarded-", "sec-websocket-", "content-", "if-"]
            .iter()
            .any(|p| plain.starts_with(p))
        || ["accept", "accept-encoding", "audit-id", "x-stream-protocol-version", "user-agent", "range"].contains(&name)
}

/// The protocol of an upgrade, if the request asks for one that Kubernetes has. Any other wish is left unheard (RFC 9110
/// section 7.8), `h2c` above all: behind it nothing would be looked at.
fn upgrade(head: &Parts, named: &[String]) -> Result<Option<HeaderValue>, Refusal> {
    for value in head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        if text.split(',').any(|protocol| protocol.trim().starts_with(BEARER_PROTOCOL)) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "a token in sec-websocket-protocol is refused")
                .with_hint("send the Host App's token as 'Authorization: Bearer TOKEN'; the cluster's is added here"));
        }
    }
    if head.version != http::Version::HTTP_11 || !named.iter().any(|name| name == "upgrade") {
        return Ok(None);
    }
    let mut wanted = head.headers.get_all(header::UPGRADE).iter();
    let (Some(protocol), None) = (wanted.next(), wanted.next()) else { return Ok(None) };
    let known =
        ["websocket", "spdy/3.1"].iter().any(|known| protocol.as_bytes().eq_ignore_ascii_case(known.as_bytes()));
    Ok(known.then(|| protocol.clone()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(method: &str, headers: &[(&str, &str)]) -> Result<Passed, Refusal> {
        let mut request = Request::builder().method(method).uri("/k8s/a/api");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        pass(&request.body(()).expect("a request").into_parts().0, "r1")
    }

    fn names(headers: &[(&str, &str)]) -> Vec<String> {
        let passed = of("GET", headers).expect("passes");
        passed.headers.keys().map(ToString::to_string).collect()
    }

    fn code(headers: &[(&str, &str)]) -> Option<u16> {
        of("GET", headers).err().map(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn what_kubectl_sends_goes_through() {
        let sent = [
            ("accept", "application/json;as=Table"),
            ("accept-encoding", "gzip"),
            ("content-type", "application/apply-patch+yaml"),
            ("content-length", "3"),
            ("user-agent", "kubectl/v1.34"),
            ("kubectl-command", "kubectl apply"),
            ("if-none-match", "\"x\""),
            ("audit-id", "mine"),
        ];
        let passed = of("PATCH", &sent).expect("passes");
        for (name, value) in sent {
            assert_eq!(passed.headers[name], value);
        }
        assert_eq!((passed.headers.len(), passed.upgrade), (sent.len(), None));
    }

    #[test]
    fn credentials_and_origin_of_the_door_stay_here() {
        let sent = [
            ("authorization", "Bearer door"),
            ("cookie", "a=b"),
            ("host", "127.0.0.1:8090"),
            ("origin", "https://127.0.0.1:8090"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-anything", "x"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("keep-alive", "1"),
            ("transfer-encoding", "chunked"),
        ];
        assert_eq!(names(&sent), ["audit-id"]);
        assert_eq!(of("GET", &sent).expect("passes").headers[AUDIT_ID], "r1");
    }

    #[test]
    fn a_named_header_is_dropped_and_a_guarded_one_cannot_be_named() {
        assert_eq!(names(&[("connection", "close, X-Hop"), ("x-hop", "1"), ("x-stays", "1")]), ["x-stays", "audit-id"]);
        for name in [
            "Authorization",
            "host",
            "Content-Length",
            "transfer-encoding",
            "cookie",
            "impersonate-user",
            "Impersonate-Extra-X",
            "x-remote-user",
            "x-forwarded-for",
            "sec-websocket-key",
            "content-type",
            "accept",
            "audit-id",
            "proxy-authorization",
            "connection",
            "if-match",
        ] {
            assert_eq!(code(&[("connection", &format!("keep-alive , {name}"))]), Some(400), "{name}");
            assert_eq!(code(&[("connection", "close"), ("connection", name)]), Some(400), "{name} in a second line");
        }
        assert_eq!(code(&[("connection", "TE, close"), ("te", "trailers")]), None);
    }

    #[test]
    fn nobody_acts_as_somebody_else() {
        for name in [
            "Impersonate-User",
            "IMPERSONATE-GROUP",
            "impersonate-uid",
            "impersonate-extra-scopes",
            "impersonate_user",
            "impersonate-new",
        ] {
            assert_eq!(code(&[(name, "")]), Some(403), "{name}");
        }
        for name in ["X-Remote-User", "x-remote-group", "x-remote-extra-a", "x_remote_user"] {
            assert_eq!(code(&[(name, "x")]), Some(403), "{name}");
        }
    }

    #[test]
    fn a_token_in_the_protocol_is_refused_in_any_form() {
        for value in [
            "base64url.bearer.authorization.k8s.io.dG9r, v5.channel.k8s.io",
            "x,Base64URL.Bearer.Authorization.k8s.io.A",
        ] {
            assert_eq!(code(&[("sec-websocket-protocol", value)]), Some(400), "{value}");
        }
    }

    #[test]
    fn only_kubernetes_own_upgrades_are_asked_for() {
        let ws = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-protocol", "v5.channel.k8s.io")];
        let passed = of("GET", &ws).expect("passes");
        assert_eq!(
            (&passed.headers["connection"], &passed.headers["upgrade"]),
            (&"Upgrade".parse().expect("text"), &"websocket".parse().expect("text"))
        );
        assert_eq!(passed.headers["sec-websocket-protocol"], "v5.channel.k8s.io");
        let spdy =
            of("POST", &[("connection", "upgrade"), ("upgrade", "SPDY/3.1"), ("content-length", "0")]).expect("passes");
        assert!(spdy.upgrade.is_some() && !spdy.headers.contains_key("content-length"));
        for sent in [
            &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "x")][..],
            &[("upgrade", "websocket")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
        ] {
            let passed = of("GET", sent).expect("passes");
            assert!(passed.upgrade.is_none() && !passed.headers.contains_key("upgrade"), "{sent:?}");
        }
    }

    #[test]
    fn methods_that_kubernetes_does_not_have_are_refused() {
        for method in ["CONNECT", "TRACE", "get", "PROPFIND"] {
            assert_eq!(of(method, &[]).err().map(|r| r.status().as_u16()), Some(405), "{method}");
        }
    }
}
