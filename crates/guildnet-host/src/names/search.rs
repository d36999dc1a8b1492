//! The cluster's search rules: which full names a name may mean, and which Service. Pure.
//!
//! A Pod's own rules also look in its own namespace first; whoever dials from outside has none, so a name says its namespace
//! (Kubernetes, "DNS for Services and Pods").

use super::HostName;

/// A cluster's domain where nothing else was seen: what every installer takes.
pub(super) const USUAL_DOMAIN: &str = "cluster.local";

/// The full names that `name` may mean, without the dot at the end, in the order in which they are asked for.
///
/// The cluster's own come first, so that no name of the world can take the place of a Service.
pub(super) fn candidates(name: &HostName, domain: &str) -> Vec<String> {
    let relative = name.relative();
    if name.is_absolute() || is_below(relative, domain) {
        return vec![relative.to_owned()];
    }
    let in_domain = format!("{relative}.{domain}");
    if is_below(relative, "svc") || is_below(relative, "pod") {
        return vec![in_domain, relative.to_owned()];
    }
    vec![format!("{relative}.svc.{domain}"), in_domain, relative.to_owned()]
}

/// The Service that `name` is the name of, as (namespace, Service): where there is no DNS its address can be read.
pub(super) fn service<'n>(name: &'n HostName, domain: &str) -> Option<(&'n str, &'n str)> {
    let relative = name.relative();
    let (short, is_full) = match relative.strip_suffix(domain).and_then(|short| short.strip_suffix('.')) {
        Some(short) => (short, true),
        None => (relative, false),
    };
    if name.is_absolute() && !is_full {
        return None;
    }
    let short = match short.strip_suffix(".svc") {
        Some(short) => short,
        None if is_full => return None,
        None => short,
    };
    let (service, namespace) = short.split_once('.')?;
    (!namespace.contains('.')).then_some((namespace, service))
}

/// The domain that the name of the DNS Service itself tells: `kube-dns.kube-system.svc.DOMAIN`.
pub(super) fn domain_of(service: &str) -> Option<String> {
    let mut labels = service.trim_end_matches('.').splitn(4, '.');
    let (_, _) = (labels.next()?, labels.next()?);
    let domain = labels.next().filter(|label| label.eq_ignore_ascii_case("svc")).and_then(|_| labels.next())?;
    (!domain.is_empty()).then(|| domain.to_ascii_lowercase())
}

fn is_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::tests::name;

    #[test]
    fn the_clusters_own_names_come_before_the_worlds() {
        let of = |text: &str| candidates(&name(text), "cluster.local");
        assert_eq!(
            of("grafana.monitoring"),
            ["grafana.monitoring.svc.cluster.local", "grafana.monitoring.cluster.local", "grafana.monitoring"]
        );
        assert_eq!(of("grafana.monitoring.svc"), ["grafana.monitoring.svc.cluster.local", "grafana.monitoring.svc"]);
        assert_eq!(of("10-244-0-5.shop.pod"), ["10-244-0-5.shop.pod.cluster.local", "10-244-0-5.shop.pod"]);
        assert_eq!(of("web-0.web.shop")[0], "web-0.web.shop.svc.cluster.local");
        for full in ["web-0.web.shop.svc.cluster.local", "grafana.monitoring.svc.cluster.local."] {
            assert_eq!(of(full), [full.trim_end_matches('.')]);
        }
        assert_eq!(of("db.corp.example."), ["db.corp.example"]);
        assert_eq!(of("evilcluster.local").len(), 3, "a name that only ends like the domain");
        assert_eq!(candidates(&name("a.b"), "k8s.corp")[0], "a.b.svc.k8s.corp");
    }

    #[test]
    fn a_services_name_is_told_from_others() {
        let of = |text: &str| {
            let name = name(text);
            service(&name, "cluster.local").map(|(namespace, service)| format!("{service} in {namespace}"))
        };
        for same in [
            "grafana.monitoring",
            "grafana.monitoring.svc",
            "grafana.monitoring.svc.cluster.local",
            "grafana.monitoring.svc.cluster.local.",
        ] {
            assert_eq!(of(same).as_deref(), Some("grafana in monitoring"), "{same}");
        }
        for other in ["web-0.web.shop", "10-244-0-5.shop.pod", "www.example.com", "a.b.", "a.b.cluster.local"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn the_domain_is_read_from_the_dns_services_name() {
        assert_eq!(domain_of("kube-dns.kube-system.svc.cluster.local.").as_deref(), Some("cluster.local"));
        assert_eq!(domain_of("coredns.kube-system.SVC.K8s.Corp.Example").as_deref(), Some("k8s.corp.example"));
        for other in ["", "kube-dns", "a.b.c.d", "10-0-0-1.kube-dns.kube-system.svc.cluster.local", "a.b.svc."] {
            assert_eq!(domain_of(other), None, "{other}");
        }
    }
}
