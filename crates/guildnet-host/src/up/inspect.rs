//! Looking at a cluster before anything is changed: who it is, where its API server stands inside, its networks.

use guildnet_model::{Class, ClusterId, Networks, Target};
use guildnet_store::ClusterRecord;

use super::plan::Asked;
use crate::{
    HostError, Progress,
    error::Explained as _,
    networks::{Before, Settled, settle},
    preflight::{self, Purpose},
    reach::{Reached, Via, Ways, reach},
};

/// What was seen of a cluster, and the way to it, kept open for what follows.
pub(super) struct Inspected {
    pub(super) wanted: Asked,
    pub(super) reached: Reached,
    /// UID of its `kube-system` namespace.
    pub(super) uid: String,
    /// The API server's address inside.
    pub(super) api_address: Target,
    /// Given, known or discovered.
    pub(super) routes: Networks,
    /// Whether a person named them.
    pub(super) routes_given: bool,
}

/// Looks at one cluster.
///
/// # Errors
/// It can't be reached, refuses the credential, is another cluster than the one known by that id, can't run routers, or has
/// networks that can't be used.
pub(super) async fn inspect(wanted: Asked, ways: &Ways<'_>, progress: &dyn Progress) -> Result<Inspected, HostError> {
    let id = wanted.id.clone();
    let reached = reach(&id, &wanted.access, Via::Auto, ways).await?;
    let seen = look(&wanted, &reached, ways.record, progress).await;
    match seen {
        Ok((uid, api_address, Settled { networks: routes, given })) => {
            let by = if reached.via == Via::Direct { "directly" } else { "through its connector" };
            progress.step(Some(&id), &format!("API server reached {by}; networks {routes}"));
            Ok(Inspected { wanted, reached, uid, api_address, routes, routes_given: given })
        }
        Err(why) => {
            reached.close().await;
            Err(why.of_cluster(&id))
        }
    }
}

async fn look(
    wanted: &Asked,
    reached: &Reached,
    record: Option<&ClusterRecord>,
    progress: &dyn Progress,
) -> Result<(String, Target, Settled), HostError> {
    let api = &reached.api;
    let (uid, api_address) = tokio::join!(api.cluster_uid(), api.api_address());
    let (uid, api_address) = (uid.explained()?, api_address.explained()?);
    same_cluster(&wanted.id, record.and_then(|r| r.cluster_uid.as_deref()), &uid)?;
    preflight::check(api, &wanted.id, Purpose::Routers, progress).await?;
    let settled = settle(api, &wanted.id, Before::of(wanted.routes.as_ref(), record), progress).await?;
    holds(&settled.networks, api_address)?;
    Ok((uid, api_address, settled))
}

/// An id stays with its cluster.
///
/// # Errors
/// The id is known for another cluster.
pub(crate) fn same_cluster(id: &ClusterId, recorded: Option<&str>, seen: &str) -> Result<(), HostError> {
    match recorded {
        Some(recorded) if recorded != seen => Err(HostError::new(
            Class::Conflict,
            format!("the id is known for another cluster ({recorded}); the kubeconfig's is {seen}"),
        )
        .with_hint(format!("take another id, or first: guildnet cluster remove {id}"))),
        _ => Ok(()),
    }
}

/// The API server must lie in the cluster's networks, or the connector will not dial it.
///
/// # Errors
/// It does not, or has an IPv6 address.
pub(crate) fn holds(routes: &Networks, api_address: Target) -> Result<(), HostError> {
    match api_address.addr().ip() {
        std::net::IpAddr::V4(ip) if routes.contains(ip) => Ok(()),
        std::net::IpAddr::V6(ip) => Err(HostError::new(
            Class::Precondition,
            format!(
                "its API server has an IPv6 address inside ({ip}): GuildNet dials it by IPv4, by which it tells the equal \
                 networks of many clusters apart"
            ),
        )
        .with_hint("a dual-stack cluster must name its IPv4 Service network first: --service-cluster-ip-range IPV4,IPV6")),
        ip @ std::net::IpAddr::V4(_) => Err(HostError::new(
            Class::Usage,
            format!("the networks {routes} do not hold the API server's address {ip}"),
        )
        .with_hint("give the Service network too: --routes SERVICE_CIDR,POD_CIDR")),
    }
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    #[test]
    fn an_id_stays_with_its_cluster() {
        let id: ClusterId = "a".parse().expect("an id");
        same_cluster(&id, None, "u1").expect("new");
        same_cluster(&id, Some("u1"), "u1").expect("the same");
        assert_eq!(same_cluster(&id, Some("u1"), "u2").expect_err("another").class(), Class::Conflict);
    }

    #[test]
    fn networks_without_the_api_server_are_refused() {
        let api: Target = "10.96.0.1:443".parse().expect("a target");
        let of = |text: &str| holds(&text.parse().expect("networks"), api);
        of("10.96.0.0/16").expect("inside");
        assert!(of("10.244.0.0/16").expect_err("outside").to_string().contains("10.96.0.1"));
        let six: Target = "[fd00:10:96::1]:443".parse().expect("a target");
        let said = holds(&"10.96.0.0/16".parse().expect("networks"), six).expect_err("IPv6 first");
        assert_eq!(said.class(), Class::Precondition);
        assert!(said.hint().expect("a hint").contains("dual-stack"));
    }
}
