//! What verify asks of a cluster's Kubernetes, through its connector: pure decisions over what was observed.

use std::time::Duration;

use guildnet_kube::{KubeCause, KubeError, Readyz, RouterStatus};
use guildnet_model::{ClusterId, DialError, Explain as _, Target};

use super::Outcome;

pub(super) fn reachable(cluster: &ClusterId, api: Target, dialled: &Result<Duration, DialError>) -> Outcome {
    match dialled {
        Ok(took) => Outcome::pass(format!("{api} answered in {:.1} ms", took.as_secs_f64() * 1e3)),
        Err(why) => Outcome::fail(
            why.to_string(),
            match why {
                DialError::NoRoute { .. } | DialError::RouterOffline { .. } | DialError::NotReady { .. } => {
                    format!("guildnet router status {cluster}; without a router the API server can't be reached")
                }
                DialError::NotAllowed { .. } => {
                    format!(
                        "give networks that hold the API server: guildnet cluster add {cluster} --replace --routes CIDR,..."
                    )
                }
                _ => "check on the cluster's side that its API server runs and answers".to_owned(),
            },
        ),
    }
}

/// `answer`: of a request that was sent after the API server could be dialled.
pub(super) fn tls(cluster: &ClusterId, name: &str, answer: &Result<Readyz, KubeError>) -> Outcome {
    let fresh =
        format!("guildnet cluster add {cluster} --replace --kubeconfig FILE, with a fresh kubeconfig of this cluster");
    match answer.as_ref().map_err(|e| &e.cause) {
        Err(cause @ KubeCause::WrongAuthority) => Outcome::fail(cause.to_string(), fresh),
        Err(cause @ KubeCause::WrongName { .. }) => {
            Outcome::fail(cause.to_string(), format!("set tls-server-name in the kubeconfig, then {fresh}"))
        }
        Err(cause @ KubeCause::CertificateTime { .. }) => {
            Outcome::fail(cause.to_string(), "renew the API server's certificate, or set this machine's clock")
        }
        Err(cause @ KubeCause::Tls { .. }) => Outcome::fail(cause.to_string(), fresh),
        Err(
            cause @ (KubeCause::Dial(_)
            | KubeCause::Resolve { .. }
            | KubeCause::Lost { .. }
            | KubeCause::Timeout { .. }),
        ) => Outcome::fail(
            format!("TLS was not completed: {cause}"),
            "check the API server's log, then run 'guildnet verify' again",
        ),
        // Any answer of HTTP came through TLS.
        Ok(_) | Err(_) => Outcome::pass(format!("the certificate is for {name}, signed by the kubeconfig's authority")),
    }
}

pub(super) fn readyz(cluster: &ClusterId, answer: &Result<Readyz, KubeError>) -> Outcome {
    match answer {
        Ok(Readyz { ready: true, took, .. }) => Outcome::pass(format!("ready, answered in {} ms", took.as_millis())),
        Ok(Readyz { failing, .. }) => Outcome::fail(
            format!(
                "the API server is not ready: {}",
                if failing.is_empty() { "it does not say why".to_owned() } else { failing.join(", ") }
            ),
            format!("see 'kubectl get --raw /readyz?verbose' on cluster {cluster}"),
        ),
        Err(why) => Outcome::fail(
            why.cause.to_string(),
            why.hint().unwrap_or_else(|| format!("see 'kubectl get --raw /readyz?verbose' on cluster {cluster}")),
        ),
    }
}

/// `recorded`: the identity seen when the cluster was added, if its API server could be asked then.
pub(super) fn identity(cluster: &ClusterId, recorded: Option<&str>, seen: &Result<String, KubeError>) -> Outcome {
    match (recorded, seen) {
        (Some(recorded), Ok(uid)) if recorded == uid => Outcome::pass(format!("the cluster that was added ({uid})")),
        (Some(recorded), Ok(uid)) => Outcome::fail(
            format!("another cluster answers ({uid}) than the one that was added ({recorded})"),
            format!(
                "guildnet router status {cluster}; if the cluster was made anew: guildnet cluster remove {cluster}, then guildnet up"
            ),
        ),
        (None, Ok(uid)) => Outcome::pass(format!("{uid}; recorded now")),
        (_, Err(why)) => refused(cluster, why),
    }
}

pub(super) fn storage(cluster: &ClusterId, seen: &Result<Option<String>, KubeError>) -> Outcome {
    match seen {
        Ok(Some(name)) => Outcome::pass(format!("default StorageClass {name}")),
        Ok(None) => Outcome::warn(
            "there is no default StorageClass: claims without a class stay pending",
            format!(
                "on cluster {cluster}: kubectl annotate storageclass NAME storageclass.kubernetes.io/is-default-class=true"
            ),
        ),
        Err(why) => refused(cluster, why),
    }
}

pub(super) fn refused(cluster: &ClusterId, why: &KubeError) -> Outcome {
    Outcome::fail(
        why.cause.to_string(),
        why.hint().unwrap_or_else(|| {
            format!("give a kubeconfig that may read it: guildnet cluster add {cluster} --replace --kubeconfig FILE")
        }),
    )
}

/// What is known of the router's DaemonSet.
#[derive(Clone, Debug)]
pub(super) enum DaemonSetSeen {
    /// The API server was asked.
    Asked(Option<RouterStatus>),
    /// It is not there, and yet a router of the cluster is connected: somebody runs it by other means.
    Elsewhere {
        /// The router's name in the tailnet.
        router: String,
    },
    /// The API server can't be asked, and no router is connected that could lead to it.
    NoWay {
        /// Why it can't be asked.
        why: String,
    },
    /// The API server can't be asked although a router is connected: this says nothing about the DaemonSet.
    NotAsked {
        /// Why it can't be asked.
        why: String,
    },
}

pub(super) fn daemonset(cluster: &ClusterId, seen: &DaemonSetSeen) -> Outcome {
    let ensure = format!("guildnet router ensure {cluster}");
    match seen {
        DaemonSetSeen::Asked(Some(status)) if status.is_ready() => {
            Outcome::pass(format!("{}/{} routers ready", status.ready, status.desired))
        }
        DaemonSetSeen::Asked(Some(status)) => {
            let reason = status
                .pods
                .iter()
                .filter(|p| !p.ready)
                .find_map(|p| Some(format!(": {} {}", p.name, p.reason.as_ref()?)));
            Outcome::fail(
                format!("{}/{} routers ready{}", status.ready, status.desired, reason.unwrap_or_default()),
                ensure,
            )
        }
        DaemonSetSeen::Asked(None) => Outcome::fail("the router's DaemonSet is not there", ensure),
        DaemonSetSeen::Elsewhere { router } => Outcome::warn(
            format!("{router} is connected, but not by the router's DaemonSet, which is not there"),
            format!("{ensure}, unless this router is meant to run outside the cluster's pods"),
        ),
        DaemonSetSeen::NoWay { why } => Outcome::fail(
            format!("no router is connected and the API server can't be asked: {why}"),
            format!(
                "{ensure}, where the API server can be reached directly; or there: guildnet router manifest {cluster} | kubectl apply --server-side -f -"
            ),
        ),
        DaemonSetSeen::NotAsked { why } => Outcome::skip(format!("the API server can't be asked: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a() -> ClusterId {
        "a".parse().expect("an id")
    }

    fn api() -> Target {
        "10.96.0.1:443".parse().expect("a target")
    }

    fn error(cause: KubeCause) -> KubeError {
        KubeError { server: "https://10.99.0.2:6443/".into(), cause }
    }

    fn answered(ready: bool) -> Result<Readyz, KubeError> {
        let failing = if ready { vec![] } else { vec!["etcd".to_owned()] };
        Ok(Readyz { ready, failing, took: Duration::from_millis(2) })
    }

    #[track_caller]
    fn fails(outcome: &Outcome, seen_part: &str, hint_part: &str) {
        let Outcome::Fail { seen, hint } = outcome else { panic!("no fail: {outcome:?}") };
        assert!(seen.contains(seen_part), "{seen}");
        assert!(hint.contains(hint_part), "{hint}");
    }

    #[track_caller]
    fn passes(outcome: &Outcome) {
        assert!(matches!(outcome, Outcome::Pass { .. }), "{outcome:?}");
    }

    #[test]
    fn a_dial_that_fails_points_to_the_api_server_or_to_the_router() {
        passes(&reachable(&a(), api(), &Ok(Duration::from_millis(1))));
        fails(&reachable(&a(), api(), &Err(DialError::Refused { target: api() })), "refused", "API server");
        fails(
            &reachable(&a(), api(), &Err(DialError::RouterOffline { target: api() })),
            "offline",
            "guildnet router status a",
        );
    }

    #[test]
    fn a_foreign_authority_fails_tls_and_an_http_error_does_not() {
        passes(&tls(&a(), "10.99.0.2", &answered(false)));
        passes(&tls(&a(), "10.99.0.2", &Err(error(KubeCause::Unauthorized { why: "no".into() }))));
        fails(&tls(&a(), "x", &Err(error(KubeCause::WrongAuthority))), "not signed by", "guildnet cluster add a");
        let other = KubeCause::WrongName { wanted: "x".into(), presented: vec!["kubernetes".into()] };
        fails(&tls(&a(), "x", &Err(error(other))), "kubernetes", "tls-server-name");
        fails(
            &tls(&a(), "x", &Err(error(KubeCause::Timeout { after: Duration::from_secs(1) }))),
            "not completed",
            "verify",
        );
    }

    #[test]
    fn an_api_server_that_is_not_ready_names_what_fails() {
        passes(&readyz(&a(), &answered(true)));
        fails(&readyz(&a(), &answered(false)), "etcd", "readyz");
        fails(&readyz(&a(), &Err(error(KubeCause::Unauthorized { why: "no".into() }))), "credential", "cluster add");
    }

    #[test]
    fn another_cluster_behind_the_connector_fails() {
        passes(&identity(&a(), Some("u1"), &Ok("u1".into())));
        passes(&identity(&a(), None, &Ok("u1".into())));
        fails(&identity(&a(), Some("u1"), &Ok("u2".into())), "another cluster", "guildnet cluster remove a");
    }

    #[test]
    fn a_missing_default_storage_class_is_a_warning() {
        passes(&storage(&a(), &Ok(Some("local".into()))));
        assert!(matches!(storage(&a(), &Ok(None)), Outcome::Warn { .. }));
    }

    #[test]
    fn a_daemonset_that_is_gone_or_not_ready_fails() {
        let status =
            |desired, ready| DaemonSetSeen::Asked(Some(RouterStatus { cluster: None, desired, ready, pods: vec![] }));
        passes(&daemonset(&a(), &status(1, 1)));
        fails(&daemonset(&a(), &status(2, 1)), "1/2", "guildnet router ensure a");
        fails(&daemonset(&a(), &status(0, 0)), "0/0", "guildnet router ensure a");
        fails(&daemonset(&a(), &DaemonSetSeen::Asked(None)), "not there", "guildnet router ensure a");
        fails(&daemonset(&a(), &DaemonSetSeen::NoWay { why: "x".into() }), "no router", "guildnet router manifest a");
    }

    #[test]
    fn a_router_that_runs_without_the_daemonset_is_a_warning() {
        let outcome = daemonset(&a(), &DaemonSetSeen::Elsewhere { router: "gn-a-router".into() });
        let Outcome::Warn { seen, hint } = outcome else { panic!("no warning: {outcome:?}") };
        assert!(
            seen.contains("gn-a-router is connected") && hint.starts_with("guildnet router ensure a"),
            "{seen} {hint}"
        );
    }

    #[test]
    fn a_daemonset_that_cannot_be_asked_for_is_skipped_and_not_passed() {
        assert!(matches!(daemonset(&a(), &DaemonSetSeen::NotAsked { why: "x".into() }), Outcome::Skip { .. }));
    }
}
