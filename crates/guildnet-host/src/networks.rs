//! Which networks a cluster is served with: those that a person gave, else those that the cluster names, followed when it
//! changes. The decision is pure; [`settle`] asks the cluster and says what was found and where.

use guildnet_kube::{ApiServer, ClusterNetworks};
use guildnet_model::{ClusterId, Networks};
use guildnet_store::ClusterRecord;
use ipnet::Ipv4Net;

use crate::{HostError, Progress, error::Explained as _, overlap};

/// What is known of a cluster's networks before the cluster is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// A person named them: they stay.
    Given(Networks),
    /// They were discovered: they follow the cluster.
    Followed(Networks),
    /// Nothing.
    Unknown,
}

impl Before {
    /// Given now, else as the record has them.
    pub(crate) fn of(given: Option<&Networks>, record: Option<&ClusterRecord>) -> Self {
        match (given, record) {
            (Some(given), _) => Self::Given(given.clone()),
            (None, Some(record)) if record.routes_given => Self::Given(record.routes.clone()),
            (None, Some(record)) => Self::Followed(record.routes.clone()),
            (None, None) => Self::Unknown,
        }
    }
}

/// What a cluster is served with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) networks: Networks,
    /// Whether a person named them.
    pub(crate) given: bool,
}

/// How the networks that are recorded differ from those that the cluster names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Networks of the cluster that the recorded ones do not hold.
    pub(crate) missing: Vec<Ipv4Net>,
    /// Recorded networks that the cluster does not name.
    pub(crate) unnamed: Vec<Ipv4Net>,
}

/// Compares. Recorded networks may be wider than the cluster's.
pub(crate) fn drift(recorded: &Networks, found: &Networks) -> Drift {
    let whole = Ipv4Net::aggregate(&recorded.as_slice().to_vec());
    let held = |net: &&Ipv4Net| whole.iter().any(|w| w.contains(*net));
    let shares = |net: &&Ipv4Net| found.as_slice().iter().any(|f| f.contains(*net) || net.contains(f));
    Drift {
        missing: found.as_slice().iter().filter(|net| !held(net)).copied().collect(),
        unnamed: recorded.as_slice().iter().filter(|net| !shares(net)).copied().collect(),
    }
}

/// `a, b`.
pub(crate) fn words(nets: &[Ipv4Net]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Asks the cluster for its networks and decides which it is served with; tells what was found, what a person should know,
/// and where they meet this machine's own.
///
/// # Errors
/// Nothing is known from before and the cluster does not say which networks it has, or they can't be a cluster's.
pub(crate) async fn settle(
    api: &ApiServer,
    id: &ClusterId,
    before: Before,
    progress: &dyn Progress,
) -> Result<Settled, HostError> {
    let found = api.discover_networks().await.explained();
    let (settled, said) = decide(before, found)?;
    let meets = overlap::remarks(&settled.networks, &overlap::own_networks());
    for line in said.iter().chain(&meets) {
        progress.step(Some(id), line);
    }
    Ok(settled)
}

/// The decision of [`settle`], and what is to be said about it.
fn decide(before: Before, found: Result<ClusterNetworks, HostError>) -> Result<(Settled, Vec<String>), HostError> {
    let now = found.and_then(|found| found.networks().explained().map(|now| (found, now)));
    Ok(match (before, now) {
        (Before::Unknown, now) => {
            let (found, networks) = now?;
            let mut said = vec![format!("networks found: {}", found.summary())];
            said.extend(found.notes);
            (Settled { networks, given: false }, said)
        }
        (Before::Given(networks), now) => {
            let said = match now {
                Ok((found, now)) => lacking(&networks, &now, &found).into_iter().collect(),
                // What was given counts, whatever the cluster says.
                Err(_) => vec![],
            };
            (Settled { networks, given: true }, said)
        }
        (Before::Followed(networks), Err(why)) => {
            let said = vec![format!("its networks can't be compared, {networks} is kept: {}", why.message())];
            (Settled { networks, given: false }, said)
        }
        (Before::Followed(old), Ok((found, now))) => {
            let seen = drift(&old, &now);
            if seen.missing.is_empty() {
                return Ok((Settled { networks: old, given: false }, vec![]));
            }
            let networks = if found.pods.is_empty() {
                // It does not say where its Pods are: what is known of them is kept.
                let kept = seen.unnamed.iter().chain(now.as_slice()).copied();
                Networks::new(kept).explained()?
            } else {
                now
            };
            let mut said = vec![format!(
                "its networks changed, {} was not served: {networks} instead of {old}; {}",
                words(&seen.missing),
                found.summary()
            )];
            said.extend(found.notes);
            (Settled { networks, given: false }, said)
        }
    })
}

/// What to say where networks that were given do not hold all that the cluster names.
fn lacking(given: &Networks, now: &Networks, found: &ClusterNetworks) -> Option<String> {
    let missing = drift(given, now).missing;
    (!missing.is_empty()).then(|| {
        format!(
            "the given networks {given} do not hold {}, which will not be reached; {}",
            words(&missing),
            found.summary()
        )
    })
}

#[cfg(test)]
mod tests {
    use guildnet_kube::{FoundNetwork, NetworkSource};
    use guildnet_model::{Class, Explain as _};

    use super::*;

    fn nets(text: &str) -> Networks {
        text.parse().expect("networks")
    }

    fn found(services: &str, pods: &[&str]) -> Result<ClusterNetworks, HostError> {
        let one = |text: &str| FoundNetwork { net: text.parse().expect("a network"), source: NetworkSource::Kubeadm };
        let mut found = ClusterNetworks::default();
        found.services.push(one(services));
        found.pods.extend(pods.iter().map(|p| one(p)));
        found.notes.push("a note".to_owned());
        Ok(found)
    }

    #[test]
    fn drift_is_what_the_recorded_networks_do_not_hold() {
        let of = |recorded: &str, now: &str| drift(&nets(recorded), &nets(now));
        assert_eq!(of("10.96.0.0/12,10.244.0.0/16", "10.96.0.0/16,10.244.0.0/24"), Drift::default());
        assert_eq!(of("10.244.0.0/24,10.244.1.0/24", "10.244.0.0/23"), Drift::default(), "neighbours hold it together");
        let seen = of("10.96.0.0/16,10.244.0.0/16", "10.42.0.0/16,10.96.0.0/16");
        assert_eq!((words(&seen.missing), words(&seen.unnamed)), ("10.42.0.0/16".into(), "10.244.0.0/16".into()));
    }

    #[test]
    fn what_was_found_is_told_with_its_source_and_notes() {
        let (settled, said) = decide(Before::Unknown, found("10.96.0.0/16", &["10.244.0.0/16"])).expect("found");
        assert_eq!(settled, Settled { networks: nets("10.96.0.0/16,10.244.0.0/16"), given: false });
        assert!(said[0].contains("Services 10.96.0.0/16 (kubeadm-config)"), "{said:?}");
        assert_eq!(said[1], "a note");
    }

    #[test]
    fn a_cluster_that_does_not_say_leads_to_routes() {
        let said = decide(Before::Unknown, Ok(ClusterNetworks::default())).expect_err("nothing is known");
        assert_eq!(said.class(), Class::Usage);
        assert!(said.hint().expect("a hint").contains("--routes"));
    }

    #[test]
    fn given_networks_stay_and_what_they_lack_is_told() {
        let given = || Before::Given(nets("10.96.0.0/16"));
        let (settled, said) = decide(given(), found("10.96.0.0/16", &["10.244.0.0/16"])).expect("given");
        assert_eq!(settled, Settled { networks: nets("10.96.0.0/16"), given: true });
        assert!(said[0].contains("do not hold 10.244.0.0/16"), "{said:?}");
        let down = || Err(HostError::new(Class::Failed, "x"));
        assert_eq!(decide(given(), down()).expect("given").1, Vec::<String>::new());
    }

    #[test]
    fn discovered_networks_follow_the_cluster_and_nothing_is_said_while_they_hold() {
        let before = || Before::Followed(nets("10.96.0.0/16,10.244.0.0/16"));
        let (same, said) = decide(before(), found("10.96.0.0/16", &["10.244.3.0/24"])).expect("held");
        assert_eq!((same.networks, said), (nets("10.96.0.0/16,10.244.0.0/16"), vec![]));
        let (new, said) = decide(before(), found("10.96.0.0/16", &["10.42.0.0/16"])).expect("changed");
        assert_eq!(new, Settled { networks: nets("10.42.0.0/16,10.96.0.0/16"), given: false });
        assert!(said[0].contains("10.42.0.0/16 was not served"), "{said:?}");
    }

    #[test]
    fn a_look_that_finds_no_pods_takes_none_away() {
        let before = Before::Followed(nets("10.96.0.0/16,10.244.0.0/16"));
        let (settled, _) = decide(before, found("10.97.0.0/16", &[])).expect("changed");
        assert_eq!(settled.networks, nets("10.96.0.0/16,10.97.0.0/16,10.244.0.0/16"));
        let before = Before::Followed(nets("10.96.0.0/16,10.244.0.0/16"));
        let (kept, said) = decide(before, Err(HostError::new(Class::Credentials, "not allowed"))).expect("kept");
        assert_eq!(kept.networks, nets("10.96.0.0/16,10.244.0.0/16"));
        assert!(said[0].contains("can't be compared"), "{said:?}");
    }
}
