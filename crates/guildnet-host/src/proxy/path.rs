//! The path of a request: which cluster, and what of it. Pure.
//!
//! A path is passed on byte for byte, or not at all. It is read here as the API server reads it (one decoding, then
//! segments), and what two readers could understand differently is refused: dot segments, empty segments, encoded
//! slashes, backslashes, semicolons, double encoding, control characters. What lies below a `proxy` subresource belongs to
//! a Service or a Pod, whose paths are its own: there encoded slashes, semicolons and encoded percent signs may be. The
//! grammar is that of Kubernetes' `RequestInfo` (k8s.io/apiserver/pkg/endpoints/request).

use guildnet_model::{ClusterId, Explain as _};
use http::StatusCode;

use super::refusal::Refusal;

/// What stands in front of a cluster's id, for tools.
pub(super) const PREFIX: &str = "/k8s/";
/// What stands in front of it and behind it, for the door's page.
const PAGE: (&str, &str) = ("/api/v1/clusters/", "/kube");

/// For whom a request is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Tools, which show a token: below [`PREFIX`].
    Tools,
    /// The door's page, which may show a session: below `/api/v1/clusters/<id>/kube`. A Service's or a Pod's own pages are
    /// not to be had there.
    Page,
}

/// A path of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    /// Below which of the two it is.
    pub(super) by: For,
    /// The cluster.
    pub(super) cluster: ClusterId,
    /// What of the door's path stands in front of the API server's: `/k8s/a`.
    pub(super) mount: &'a str,
    /// What the API server is asked for; begins with a slash.
    pub(super) path: &'a str,
    /// The same, understood.
    pub(super) what: What,
}

/// What a path of an API server means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct What {
    /// `pods`, `deployments`; empty for what is no resource, like `/version`.
    pub(super) resource: String,
    /// Its API group; empty for the core.
    pub(super) group: String,
    /// `exec`, `log`, `proxy`; the name of the object stands between, if there is a subresource.
    pub(super) subresource: String,
    /// An object is named.
    pub(super) named: bool,
    /// It lies in a namespace.
    pub(super) namespaced: bool,
    /// The first segment, where it is no resource.
    other: String,
    /// The old form of a watch, `/api/v1/watch/...`.
    old_watch: bool,
    /// The old form of a proxy, `/api/v1/proxy/...`.
    old_proxy: bool,
}

impl<'a> Asked<'a> {
    /// Takes a request's raw path apart.
    ///
    /// # Errors
    /// 404 without an id, 400 for a wrong one, 400 for a path that could be understood in more than one way, 403 for a page of
    /// a Service, a Pod or a node where only the door's page asks.
    pub(super) fn of(raw: &'a str) -> Result<Self, Refusal> {
        let segment = |text: &'a str| text.split_at(text.find('/').unwrap_or(text.len()));
        let page = raw.strip_prefix(PAGE.0).map(segment).and_then(|(id, rest)| Some((id, rest.strip_prefix(PAGE.1)?)));
        let page = page.filter(|(_, path)| path.is_empty() || path.starts_with('/'));
        let tools = raw.strip_prefix(PREFIX).filter(|below| !below.is_empty()).map(segment);
        let (by, (id, path)) = match (page, tools) {
            (Some(page), _) => (For::Page, page),
            (None, Some(tools)) => (For::Tools, tools),
            (None, None) => {
                let said = "no cluster is named: the path is /k8s/CLUSTER/...";
                return Err(Refusal::new(StatusCode::NOT_FOUND, said).with_hint("guildnet cluster list"));
            }
        };
        let cluster = id.parse::<ClusterId>().map_err(|why| {
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, why.to_string());
            why.hint().into_iter().fold(refusal, Refusal::with_hint)
        })?;
        let mount = raw.strip_suffix(path).unwrap_or(raw);
        let path = if path.is_empty() { "/" } else { path };
        let what = understand(path)?;
        if by == For::Page && what.is_proxy() {
            let said = "what a Service, a Pod or a node serves itself is not passed on to the page";
            return Err(Refusal::new(StatusCode::FORBIDDEN, said)
                .with_hint("use a tool with a token below /k8s/, or: guildnet forward"));
        }
        Ok(Self { by, cluster, mount, path, what })
    }
}

/// Checks a path of the API server and says what it means.
///
/// # Errors
/// 400: it could be understood in more than one way.
pub(super) fn understand(path: &str) -> Result<What, Refusal> {
    let mut segments = Vec::new();
    let mut what = What::default();
    let below_root = path.strip_prefix('/').unwrap_or(path);
    let mut raw = below_root.split('/').peekable();
    while let Some(segment) = raw.next() {
        if segment.is_empty() {
            // One slash at the end means nothing to the API server.
            if raw.peek().is_none() {
                break;
            }
            return Err(ambiguous("it has an empty segment ('//')"));
        }
        let foreign = what.is_proxy() && !what.old_proxy;
        segments.push(decode(segment, foreign).map_err(ambiguous)?);
        if !foreign {
            what = What::of(&segments);
        }
    }
    Ok(what)
}

fn ambiguous(why: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, format!("the path is refused: {why}"))
        .with_hint("send the path as the API server's documentation has it, without ways around")
}

/// Decodes one segment; `foreign` ones belong to a Service or a Pod.
fn decode(segment: &str, foreign: bool) -> Result<String, &'static str> {
    let mut bytes = segment.bytes();
    let mut decoded = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        let plain = match byte {
            b'%' => {
                let mut digit =
                    || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
                match (digit(), digit()) {
                    (Some(high), Some(low)) => high * 16 + low,
                    _ => return Err("a percent sign is not followed by two hexadecimal digits"),
                }
            }
            0x21..=0x7e => byte,
            _ => return Err("it has a character that must be encoded"),
        };
        match plain {
            0..0x20 | 0x7f => return Err("it has a control character"),
            b'\\' => return Err("it has a backslash"),
            b'/' if !foreign => return Err("it has an encoded slash"),
            b'%' if !foreign => return Err("it is encoded twice"),
            b';' if !foreign => return Err("it has a semicolon"),
            _ => decoded.push(plain),
        }
    }
    if decoded.split(|b| *b == b'/').any(|piece| matches!(piece, b"." | b"..")) {
        return Err("it has a dot segment");
    }
    Ok(String::from_utf8_lossy(&decoded).into_owned())
}

impl What {
    fn of(segments: &[String]) -> Self {
        let text = |n: usize| segments.get(n).map_or("", String::as_str);
        let (group, mut at) = match (text(0), segments.len()) {
            ("api", 3..) => ("", 2),
            ("apis", 4..) => (text(1), 3),
            _ => return Self { other: text(0).to_owned(), ..Self::default() },
        };
        let mut what = Self { group: group.to_owned(), ..Self::default() };
        // Two verbs could once stand in front. Servers that know them no more take them for a resource, and find none.
        match text(at) {
            "watch" => {
                what.old_watch = true;
                at += 1;
            }
            "proxy" => {
                what.old_proxy = true;
                at += 1;
            }
            _ => {}
        }
        // A namespace's own subresources are these two; all else behind its name lies in it.
        let inside = segments.len() > at + 2 && !["status", "finalize"].contains(&text(at + 2));
        if text(at) == "namespaces" && inside {
            what.namespaced = true;
            at += 2;
        }
        what.resource = text(at).to_owned();
        what.named = segments.len() > at + 1;
        what.subresource = if what.old_proxy { "proxy" } else { text(at + 2) }.to_owned();
        what
    }

    /// It leads on, into a Service, a Pod or a node.
    pub(super) fn is_proxy(&self) -> bool {
        self.subresource == "proxy"
    }

    /// Its answer lasts as long as its reader, or belongs to somebody who decides that.
    pub(super) fn lasts(&self, query: &str) -> bool {
        let set = |name: &str| {
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).is_some_and(|(_, value)| !["0", "false", "False"].contains(&&*value))
        };
        match self.subresource.as_str() {
            "exec" | "attach" | "portforward" | "proxy" => true,
            "log" => set("follow"),
            _ => self.old_watch || set("watch"),
        }
    }

    /// Its form, for the log: no names.
    pub(super) fn shape(&self) -> String {
        if self.resource.is_empty() {
            // Anything may stand there; the API server's own first segments are few and short words.
            let word = self.other.len() <= 16 && self.other.bytes().all(|b| b.is_ascii_lowercase());
            return if word { format!("/{}", self.other) } else { "/?".to_owned() };
        }
        let mut shape = if self.group.is_empty() { "core".to_owned() } else { self.group.clone() };
        if self.namespaced {
            shape += "/namespaces/*";
        }
        shape = format!("{shape}/{}", self.resource);
        if self.named {
            shape += "/*";
        }
        if !self.subresource.is_empty() {
            shape = format!("{shape}/{}", self.subresource);
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(path: &str) -> String {
        understand(path).map_or_else(|refusal| panic!("{path}: {refusal:?}"), |what| what.shape())
    }

    #[test]
    fn the_first_segment_is_the_cluster_and_the_rest_stays_as_it_is() {
        let of = |raw| Asked::of(raw).map(|a| (a.cluster.to_string(), a.path)).expect("a path");
        assert_eq!(of("/k8s/a"), ("a".to_owned(), "/"));
        assert_eq!(of("/k8s/a/"), ("a".to_owned(), "/"));
        assert_eq!(of("/k8s/prod-eu/api/v1/pods"), ("prod-eu".to_owned(), "/api/v1/pods"));
        assert_eq!(of("/k8s/a/apis/x/v1/roles/a%20b"), ("a".to_owned(), "/apis/x/v1/roles/a%20b"));
        assert_eq!(of("/k8s/a/k8s/b"), ("a".to_owned(), "/k8s/b"), "the first one only");
    }

    #[test]
    fn the_page_has_the_same_paths_but_for_what_a_pod_serves() {
        let of = |raw| Asked::of(raw).map(|a| (a.by, a.cluster.to_string(), a.mount, a.path));
        let tools = Ok((For::Tools, "a".to_owned(), "/k8s/a", "/api/v1/pods"));
        assert_eq!(of("/k8s/a/api/v1/pods").map_err(|_| ()), tools);
        let page = |path| Ok((For::Page, "a".to_owned(), "/api/v1/clusters/a/kube", path));
        assert_eq!(of("/api/v1/clusters/a/kube/api/v1/pods").map_err(|_| ()), page("/api/v1/pods"));
        assert_eq!(of("/api/v1/clusters/a/kube").map_err(|_| ()), page("/"));
        assert_eq!(of("/api/v1/clusters/a/kube/").map_err(|_| ()), page("/"));
        let code = |raw: &str| Asked::of(raw).err().map(|refusal| refusal.status().as_u16());
        let below = "/api/v1/clusters/a/kube";
        for served in [
            "/api/v1/namespaces/x/services/s/proxy",
            "/api/v1/namespaces/x/services/s/proxy/page",
            "/api/v1/namespaces/x/services/https:s:web/%70roxy/",
            "/api/v1/namespaces/x/pods/p:8080/proxy/x",
            "/api/v1/nodes/n/proxy/run/x",
            "/api/v1/proxy/namespaces/x/services/s/page",
            "/api/v1/proxy/nodes/n",
        ] {
            assert_eq!(code(&format!("{below}{served}")), Some(403), "{served}");
            assert_eq!(code(&format!("/k8s/a{served}")), None, "{served}");
        }
        for odd in
            ["/../status", "/%2e%2e/status", "//api", "/api/v1/pods;x", "/api/v1/namespaces/x/services/s%2fproxy"]
        {
            assert_eq!(code(&format!("{below}{odd}")), Some(400), "{odd}");
        }
        for other in ["/api/v1/clusters/a/kubex", "/api/v1/clusters/kube/x", "/api/v1/clusters//a/kube"] {
            assert!(Asked::of(other).is_err(), "{other}");
        }
    }

    #[test]
    fn no_way_leads_to_another_cluster_or_out() {
        let code = |raw: &str| Asked::of(raw).err().map(|refusal| refusal.status().as_u16());
        for raw in ["/k8s", "/k8s/"] {
            assert_eq!(code(raw), Some(404), "{raw}");
        }
        for raw in [
            "/k8s//a",
            "/k8s/../a",
            "/k8s/./a",
            "/k8s/%61",
            "/k8s/a%2fb",
            "/k8s/A",
            "/k8s/a;b/api",
            "/k8s/a%00",
            "/k8s/a\\b",
            "/k8s/a/..",
            "/k8s/a/../b/api",
            "/k8s/a/./api",
            "/k8s/a/%2e%2e/b",
            "/k8s/a/%2E./b",
            "/k8s/a/.%2e/b",
            "/k8s/a//api",
            "/k8s/a/api//v1",
            "/k8s/a/api/v1//",
            "/k8s/a/api/v1/pods;x=1",
            "/k8s/a/api/v1/pods%3Bx",
            "/k8s/a/api%2fv1/pods",
            "/k8s/a/api/v1/..%2fpods",
            "/k8s/a/api%5cv1",
            "/k8s/a/api\\v1",
            "/k8s/a/%252e%252e/b",
            "/k8s/a/api%00",
            "/k8s/a/api%0d%0ax",
            "/k8s/a/api%7f",
            "/k8s/a/api%",
            "/k8s/a/api%2",
            "/k8s/a/api%zz",
            "/k8s/a/\u{e9}",
        ] {
            assert_eq!(code(raw), Some(400), "{raw}");
        }
    }

    #[test]
    fn what_a_service_is_asked_for_is_its_own_but_leads_nowhere_else() {
        let below = |rest: &str| understand(&format!("/api/v1/namespaces/m/services/https:grafana:web/proxy/{rest}"));
        for rest in ["", "a%2Fb", "a;b", "a%3Bb", "a%252e", "d/1:2@3,4", "x/exec"] {
            assert!(below(rest).expect(rest).is_proxy(), "{rest}");
        }
        for rest in ["..", "%2e%2e/x", "a%2f..%2fb", "a/.%2E", "a%5cb", "a%00", "a//b", "/"] {
            assert!(below(rest).is_err(), "{rest}");
        }
    }

    #[test]
    fn paths_are_read_as_the_api_server_reads_them() {
        assert_eq!(shape("/version"), "/version");
        assert_eq!(shape("/openapi/v3/apis/apps/v1"), "/openapi");
        assert_eq!(shape("/api/v1"), "/api");
        assert_eq!(shape("/apis/apps/v1"), "/apis");
        assert_eq!(shape("/S3cretL00king"), "/?");
        assert_eq!(shape("/api/v1/pods"), "core/pods");
        assert_eq!(shape("/api/v1/namespaces/x"), "core/namespaces/*");
        assert_eq!(shape("/api/v1/namespaces/x/finalize"), "core/namespaces/*/finalize");
        assert_eq!(shape("/api/v1/namespaces/x/pods"), "core/namespaces/*/pods");
        assert_eq!(shape("/api/v1/namespaces/x/pods/exec"), "core/namespaces/*/pods/*");
        assert_eq!(shape("/api/v1/namespaces/x/pods/p/exec"), "core/namespaces/*/pods/*/exec");
        assert_eq!(shape("/api/v1/namespaces/x/pods/p/%65xec/"), "core/namespaces/*/pods/*/exec");
        assert_eq!(shape("/api/v1/nodes/n/proxy/run/x"), "core/nodes/*/proxy");
        assert_eq!(shape("/api/v1/proxy/nodes/n/run"), "core/nodes/*/proxy");
        assert_eq!(shape("/apis/apps/v1/namespaces/x/deployments/d/scale"), "apps/namespaces/*/deployments/*/scale");
        assert_eq!(
            shape("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node"),
            "rbac.authorization.k8s.io/clusterroles/*"
        );
    }

    #[test]
    fn what_lasts_is_told_from_what_ends() {
        let lasts = |path: &str, query: &str| understand(path).expect("a path").lasts(query);
        let (pods, log) = ("/api/v1/pods", "/api/v1/namespaces/x/pods/p/log");
        assert!(!lasts(pods, "") && !lasts(pods, "watch=false") && !lasts(pods, "watch=0&limit=500"));
        assert!(lasts(pods, "watch=true") && lasts(pods, "limit=5&watch=1") && lasts(pods, "watch"));
        assert!(!lasts(log, "tailLines=5") && lasts(log, "follow=true"));
        assert!(lasts("/api/v1/watch/pods", "") && lasts("/api/v1/namespaces/x/pods/p/exec", "command=ls"));
    }
}
