//! What verify asks of the cluster's own state: whether its networks are those that are served, and whether it can still
//! be GuildNet's. Pure decisions over what was observed.

use guildnet_kube::{
    ClusterNetworks, KubeError,
    preflight::{Finding, Subject, Verdict},
};
use guildnet_model::{ClusterId, Networks};

use super::{Outcome, kube::refused};
use crate::networks::{drift, words};

/// `recorded`: what routers and connector serve, `given` by a person or discovered. Whether they are approved and served
/// is asked by the checks of the membership.
pub(super) fn networks(
    cluster: &ClusterId,
    recorded: &Networks,
    given: bool,
    found: &Result<ClusterNetworks, KubeError>,
) -> Outcome {
    let found = match found {
        Ok(found) => found,
        Err(why) => return refused(cluster, why),
    };
    let now = match found.networks() {
        Ok(now) => now,
        Err(_) if given => return Outcome::pass(format!("{recorded}, as given; the cluster does not name them")),
        Err(why) => {
            let hint = format!("if {recorded} is right: guildnet router ensure {cluster} --routes {recorded}");
            return Outcome::warn(format!("{recorded} can't be compared: {why}"), hint);
        }
    };
    let seen = drift(recorded, &now);
    let said = found.summary();
    if seen.missing.is_empty() {
        let rest = match seen.unnamed.as_slice() {
            [] => String::new(),
            some => format!("; the cluster does not name {}", words(some)),
        };
        return Outcome::pass(format!("{recorded} holds what the cluster names: {said}{rest}"));
    }
    let missing = words(&seen.missing);
    if given {
        return Outcome::warn(
            format!("the given networks {recorded} do not hold {missing}: {said}"),
            format!("guildnet router ensure {cluster} --routes {recorded},{}", missing.replace(", ", ",")),
        );
    }
    Outcome::fail(
        format!("the cluster now has {missing}, which {recorded} does not hold: {said}"),
        format!("guildnet router ensure {cluster}"),
    )
}

/// Storage is another check's. So is whether routers run: without a usable node none of ours can, but one outside may serve
/// the cluster.
pub(super) fn preflight(cluster: &ClusterId, findings: &Result<Vec<Finding>, KubeError>) -> Outcome {
    let findings = match findings {
        Ok(findings) => findings,
        Err(why) => return refused(cluster, why),
    };
    let asked = || findings.iter().filter(|f| f.subject != Subject::Storage);
    let weight = |f: &Finding| if f.subject == Subject::Nodes { f.verdict.min(Verdict::Warn) } else { f.verdict };
    let worst = asked().map(weight).max().unwrap_or(Verdict::Pass);
    let bad: Vec<&Finding> = asked().filter(|f| weight(f) == worst).collect();
    let seen = bad.iter().map(|f| f.seen.as_str()).collect::<Vec<_>>().join("; ");
    let hint = bad.first().map(|f| f.hint.clone()).unwrap_or_default();
    match worst {
        Verdict::Pass => Outcome::pass(seen),
        Verdict::Warn => Outcome::warn(seen, hint),
        Verdict::Fail => Outcome::fail(seen, hint),
    }
}

#[cfg(test)]
mod tests {
    use guildnet_kube::{FoundNetwork, KubeCause, NetworkSource};

    use super::*;

    fn a() -> ClusterId {
        "a".parse().expect("an id")
    }

    fn found(services: &str, pods: &str) -> Result<ClusterNetworks, KubeError> {
        let one = |text: &str| FoundNetwork { net: text.parse().expect("a network"), source: NetworkSource::Kubeadm };
        let mut found = ClusterNetworks::default();
        found.services.push(one(services));
        found.pods.push(one(pods));
        Ok(found)
    }

    fn recorded() -> Networks {
        "10.96.0.0/16,10.244.0.0/16".parse().expect("networks")
    }

    fn down<T>() -> Result<T, KubeError> {
        Err(KubeError { server: "https://10.99.0.2:6443/".into(), cause: KubeCause::Lost { why: "reset".into() } })
    }

    #[test]
    fn a_network_that_is_not_served_fails_with_the_command_that_serves_it() {
        let seen = networks(&a(), &recorded(), false, &found("10.96.0.0/16", "10.42.0.0/16"));
        let Outcome::Fail { seen, hint } = seen else { panic!("no fail: {seen:?}") };
        assert!(seen.contains("now has 10.42.0.0/16") && seen.contains("kubeadm-config"), "{seen}");
        assert_eq!(hint, "guildnet router ensure a");
        assert!(matches!(networks(&a(), &recorded(), false, &down()), Outcome::Fail { .. }));
    }

    #[test]
    fn networks_that_hold_the_clusters_pass_wider_ones_too() {
        let same = networks(&a(), &recorded(), false, &found("10.96.0.0/16", "10.244.7.0/24"));
        assert!(matches!(same, Outcome::Pass { .. }), "{same:?}");
        let wide: Networks = "10.96.0.0/16,10.244.0.0/16,192.168.7.0/24".parse().expect("networks");
        let Outcome::Pass { seen } = networks(&a(), &wide, true, &found("10.96.0.0/16", "10.244.0.0/16")) else {
            panic!("no pass");
        };
        assert!(seen.contains("does not name 192.168.7.0/24"), "{seen}");
    }

    #[test]
    fn given_networks_that_lack_some_are_a_warning_with_the_whole_list() {
        let given = networks(&a(), &recorded(), true, &found("10.96.0.0/16", "10.42.0.0/16"));
        let Outcome::Warn { hint, .. } = given else { panic!("no warning: {given:?}") };
        assert_eq!(hint, "guildnet router ensure a --routes 10.96.0.0/16,10.244.0.0/16,10.42.0.0/16");
    }

    #[test]
    fn a_cluster_that_does_not_say_is_a_warning_unless_the_networks_were_given() {
        let nothing = || Ok(ClusterNetworks::default());
        assert!(matches!(networks(&a(), &recorded(), false, &nothing()), Outcome::Warn { .. }));
        assert!(matches!(networks(&a(), &recorded(), true, &nothing()), Outcome::Pass { .. }));
    }

    #[test]
    fn the_worst_finding_decides_and_storage_is_left_to_its_own_check() {
        let finding =
            |subject, verdict, seen: &str| Finding { subject, verdict, seen: seen.into(), hint: "mend".into() };
        let good = finding(Subject::Version, Verdict::Pass, "v1.34.4");
        let storage = finding(Subject::Storage, Verdict::Warn, "no class");
        let nodes = |verdict| finding(Subject::Nodes, verdict, "n1 is not ready");
        let of = |list: Vec<Finding>| preflight(&a(), &Ok(list));
        assert!(matches!(of(vec![good.clone(), storage]), Outcome::Pass { seen } if seen == "v1.34.4"));
        let warned = of(vec![good.clone(), nodes(Verdict::Warn)]);
        assert!(matches!(warned, Outcome::Warn { seen, hint } if seen == "n1 is not ready" && hint == "mend"));
        assert!(
            matches!(of(vec![good.clone(), nodes(Verdict::Fail)]), Outcome::Warn { .. }),
            "a router outside may serve"
        );
        let old = finding(Subject::Version, Verdict::Fail, "v1.2");
        assert!(matches!(of(vec![nodes(Verdict::Fail), old]), Outcome::Fail { hint, .. } if hint == "mend"));
        assert!(matches!(preflight(&a(), &down()), Outcome::Fail { .. }));
    }
}
