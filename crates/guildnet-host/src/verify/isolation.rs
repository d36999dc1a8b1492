//! Isolation: whether one cluster's connector can reach another cluster. Pure decisions over what was observed.
//!
//! A silence proves nothing by itself: the other cluster may be down. So every probe has a control, the other cluster's
//! own connector at the same address at the same moment; without it the check is skipped.

use std::net::{IpAddr, SocketAddr};

use guildnet_model::{ClusterId, ConnectorSnapshot, ProbeOutcome, SiteNumber, Target, via6};
use ipnet::IpNet;

use super::Outcome;

/// What one connector could see and reach of another cluster.
#[derive(Clone, Debug)]
pub(super) struct PairSeen {
    /// The cluster that must not be reached.
    pub(super) other: ClusterId,
    /// Peers of this connector that belong to the other cluster.
    pub(super) foreign: Vec<String>,
    /// Peers of the other connector that belong to this cluster.
    pub(super) foreign_there: Vec<String>,
    /// Probes through the other cluster's router, past this connector's own filters.
    pub(super) attempts: Vec<Attempt>,
}

/// One probe and its control.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) target: Target,
    /// From this cluster's connector.
    pub(super) probe: ProbeOutcome,
    /// From the other cluster's own connector, within the same time.
    pub(super) control: Result<(), String>,
}

/// The peers of a connector that belong to `cluster`: by its tags, or because that cluster's connector knows them as
/// its own.
pub(super) fn peers_of(cluster: &ClusterId, of: &ConnectorSnapshot, there: &ConnectorSnapshot) -> Vec<String> {
    let tags = [cluster.router_tag(), cluster.client_tag()];
    let own: Vec<&str> = there
        .peers
        .iter()
        .filter(|p| p.trusted)
        .map(|p| p.node_key.as_str())
        .chain(there.status.node.as_ref().map(|n| n.node_key.as_str()))
        .collect();
    let belongs =
        |p: &&guildnet_model::PeerInfo| p.tags.iter().any(|t| tags.contains(t)) || own.contains(&p.node_key.as_str());
    of.peers.iter().filter(belongs).map(|p| p.name.clone()).collect()
}

/// The 4via6 form of a target, where the other cluster's router serves that: there the plain form is nobody's way, and its
/// silence would say little.
pub(super) fn via6_form(target: Target, site: Option<SiteNumber>, routes: &[IpNet]) -> Option<Target> {
    let IpAddr::V4(plain) = target.addr().ip() else { return None };
    let address = IpAddr::V6(via6::address(site?, plain));
    routes.iter().any(|net| net.contains(&address)).then(|| SocketAddr::new(address, target.addr().port()).into())
}

/// Judges all ordered pairs that begin at one cluster.
pub(super) fn judge(pairs: &[PairSeen]) -> Outcome {
    if pairs.is_empty() {
        return Outcome::NotRequired { because: "there is only one cluster" };
    }
    if let Some(broken) = pairs.iter().find_map(broken) {
        return Outcome::fail(broken, "guildnet up, which applies the policy that isolates the clusters");
    }
    if let Some(unproven) = pairs.iter().find_map(unproven) {
        return Outcome::skip(unproven);
    }
    let others: Vec<&str> = pairs.iter().map(|p| p.other.as_str()).collect();
    let probes: usize = pairs.iter().map(|p| p.attempts.len()).sum();
    Outcome::pass(format!(
        "no peer of {0}; {probes} probes past the own filters stayed silent while {0} answered its own connector",
        others.join(", ")
    ))
}

fn broken(pair: &PairSeen) -> Option<String> {
    let other = &pair.other;
    if !pair.foreign.is_empty() {
        return Some(format!("its network map names peers of cluster {other}: {}", pair.foreign.join(", ")));
    }
    if !pair.foreign_there.is_empty() {
        return Some(format!("the network map of cluster {other} names its peers: {}", pair.foreign_there.join(", ")));
    }
    let answered = pair.attempts.iter().find(|a| a.probe == ProbeOutcome::Answered)?;
    Some(format!("{} of cluster {other} answered through {other}'s router", answered.target))
}

fn unproven(pair: &PairSeen) -> Option<String> {
    let other = &pair.other;
    if pair.attempts.is_empty() {
        return Some(format!("no router of cluster {other} is known, so nothing could be tried"));
    }
    pair.attempts.iter().find_map(|a| match (&a.probe, &a.control) {
        (ProbeOutcome::Impossible { why }, _) => {
            Some(format!("{} of cluster {other} could not be probed: {why}", a.target))
        }
        (_, Err(why)) => {
            Some(format!("no control: cluster {other} itself did not get an answer from {}: {why}", a.target))
        }
        (_, Ok(())) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(probe: ProbeOutcome, control: Result<(), String>) -> PairSeen {
        PairSeen {
            other: "b".parse().expect("an id"),
            foreign: vec![],
            foreign_there: vec![],
            attempts: vec![Attempt { target: "10.96.0.1:443".parse().expect("a target"), probe, control }],
        }
    }

    #[test]
    fn silence_with_a_control_passes() {
        assert!(matches!(judge(&[pair(ProbeOutcome::Silent, Ok(()))]), Outcome::Pass { .. }));
    }

    #[test]
    fn an_answer_fails_whatever_the_control_says() {
        for control in [Ok(()), Err("timed out".to_owned())] {
            let Outcome::Fail { seen, hint } = judge(&[pair(ProbeOutcome::Answered, control)]) else {
                panic!("must fail")
            };
            assert!(seen.contains("10.96.0.1:443") && hint.contains("guildnet up"), "{seen} {hint}");
        }
    }

    #[test]
    fn silence_without_a_control_is_skipped() {
        assert!(matches!(judge(&[pair(ProbeOutcome::Silent, Err("timed out".into()))]), Outcome::Skip { .. }));
    }

    #[test]
    fn a_probe_that_was_not_made_is_skipped() {
        let impossible = ProbeOutcome::Impossible { why: "not ready".into() };
        assert!(matches!(judge(&[pair(impossible, Ok(()))]), Outcome::Skip { .. }));
    }

    #[test]
    fn a_foreign_peer_fails_on_either_side_even_if_nothing_could_be_probed() {
        let untried = PairSeen { attempts: vec![], ..pair(ProbeOutcome::Silent, Ok(())) };
        assert!(matches!(judge(std::slice::from_ref(&untried)), Outcome::Skip { .. }));
        let here = PairSeen { foreign: vec!["gn-b-node".into()], ..untried.clone() };
        let there = PairSeen { foreign_there: vec!["gn-a-node".into()], ..untried };
        for broken in [here, there] {
            assert!(matches!(judge(&[pair(ProbeOutcome::Silent, Ok(())), broken]), Outcome::Fail { .. }));
        }
    }

    #[test]
    fn the_4via6_form_is_tried_where_it_is_the_way() {
        let (api, site) = ("10.96.0.1:443".parse().expect("a target"), "7".parse().ok());
        let routes = |net: &str| [net.parse::<IpNet>().expect("a network")];
        let form = via6_form(api, site, &routes("fd7a:115c:a1e0:b1a:0:7:a60:0/112"));
        assert_eq!(form, "[fd7a:115c:a1e0:b1a:0:7:a60:1]:443".parse().ok());
        assert_eq!(via6_form(api, site, &routes("10.96.0.0/16")), None);
        assert_eq!(via6_form(api, None, &routes("fd7a:115c:a1e0:b1a:0:7:a60:0/112")), None);
    }

    #[test]
    fn one_cluster_alone_is_not_required() {
        assert!(matches!(judge(&[]), Outcome::NotRequired { .. }));
    }
}
