//! What passes to a cluster that is read-only through the Host App: what can't change anything there. Pure.
//!
//! A reading verb is not enough: a GET opens a shell (`exec`), a tunnel (`portforward`) or a page of a Service (`proxy`),
//! and what then comes is not seen here. A dry run is refused like the write that it is a form of: whether it changes
//! nothing is decided by webhooks in the cluster. What is read is not limited: Secrets are read by those who may.

use guildnet_model::ClusterId;
use http::{Method, StatusCode};

use super::{path::What, refusal::Refusal};

/// Questions about oneself that are asked by POST: group and resource.
const QUESTIONS: [(&str, &str); 3] = [
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

/// Subresources that lead into a Pod, a Service or a node.
const TUNNELS: [&str; 4] = ["exec", "attach", "portforward", "proxy"];

/// Lets a request pass that changes nothing.
///
/// # Errors
/// 403, naming the switch and how to turn it off.
pub(super) fn admit(cluster: &ClusterId, method: &Method, what: &What, upgrade: bool) -> Result<(), Refusal> {
    let why = if upgrade || TUNNELS.contains(&what.subresource.as_str()) {
        "what goes through a tunnel into it is not seen"
    } else if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) || is_question(method, what) {
        return Ok(());
    } else {
        "this request may change something"
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, format!("cluster {cluster} is read-only through this Host App: {why}"))
        .with_hint(format!("guildnet cluster set {cluster} --read-only off")))
}

fn is_question(method: &Method, what: &What) -> bool {
    let asked = (what.group.as_str(), what.resource.as_str());
    *method == Method::POST && QUESTIONS.contains(&asked) && !what.named && what.subresource.is_empty()
}

#[cfg(test)]
mod tests {
    use super::{super::path::understand, *};

    fn passes(method: &str, path: &str, upgrade: bool) -> bool {
        let what = understand(path).expect("a path");
        let admitted = admit(&"a".parse().expect("an id"), &method.parse().expect("a method"), &what, upgrade);
        admitted.is_ok()
    }

    #[test]
    fn reading_passes() {
        for path in [
            "/version",
            "/api/v1/pods",
            "/api/v1/namespaces/x/pods/p/log",
            "/api/v1/namespaces/proxy/pods/exec",
            "/api/v1/namespaces/x/services/proxy",
            "/apis/apps/v1/namespaces/x/deployments/d/scale",
        ] {
            for method in ["GET", "HEAD", "OPTIONS"] {
                assert!(passes(method, path, false), "{method} {path}");
            }
        }
    }

    #[test]
    fn questions_about_oneself_pass_and_nothing_that_looks_like_them() {
        let access = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert!(passes("POST", access, false));
        assert!(passes("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", false));
        for (method, path) in [
            ("PUT", access),
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x"),
            ("POST", "/apis/evil.example/v1/selfsubjectaccessreviews"),
            ("POST", "/api/v1/namespaces/authorization.k8s.io/selfsubjectaccessreviews"),
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
            ("POST", "/api/v1/namespaces/x/serviceaccounts/s/token"),
        ] {
            assert!(!passes(method, path, false), "{method} {path}");
        }
    }

    #[test]
    fn writing_does_not_pass_in_any_verb() {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            assert!(!passes(method, "/api/v1/namespaces/x/configmaps/c", false), "{method}");
        }
    }

    #[test]
    fn a_get_that_opens_a_tunnel_does_not_pass() {
        for path in [
            "/api/v1/namespaces/x/pods/p/exec",
            "/api/v1/namespaces/x/pods/p/%65xec",
            "/api/v1/namespaces/x/pods/p/attach",
            "/api/v1/namespaces/x/pods/p/portforward",
            "/api/v1/namespaces/x/services/s/proxy/delete-all",
            "/api/v1/nodes/n/proxy/pods",
            "/api/v1/proxy/nodes/n/pods",
        ] {
            assert!(!passes("GET", path, false), "{path}");
        }
        let console = "/apis/subresources.kubevirt.io/v1/namespaces/x/virtualmachineinstances/v/console";
        assert!(!passes("GET", console, true), "an upgrade of any kind");
    }

    #[test]
    fn the_refusal_names_the_switch() {
        let what = understand("/api/v1/pods").expect("a path");
        let refused = admit(&"a".parse().expect("an id"), &Method::POST, &what, false).expect_err("refused");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(format!("{refused:?}").contains("guildnet cluster set a --read-only off"), "{refused:?}");
    }
}
