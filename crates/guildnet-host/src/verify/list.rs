//! The list of checks. Order: needs come first. Each line is the question; the decision stands in the module of its
//! subject, over facts that `context.rs` fetches.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use guildnet_headscale::{PolicyInput, routers_of};
use guildnet_model::{BoxFuture, ConnectorSnapshot, PathKind, ProbeOutcome, Target};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Outcome, cluster,
    context::{ANSWER_LIMIT, CheckContext, LATE, SETTLE, any_way, dial, said, snapshot},
    expiry::{self, RouterKey},
    isolation::{self, Attempt, PairSeen},
    kube::{self, DaemonSetSeen},
    membership::{self, OwnNode},
    schedule::{Check, Scope},
    server,
};
use crate::cluster::ClusterHandle;

/// A probe and its control get this long: several round trips and a WireGuard handshake, twice repeated.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// How long a path may take to become direct once packets flow: pings to all candidates and one round trip by relay.
const DIRECT_LIMIT: Duration = Duration::from_secs(5);

/// Other clusters that one connector probes at the same time: 16 in 5 s make a fleet of 100 in half a minute.
const PAIRS_AT_ONCE: usize = 16;

/// A port that nothing serves on a router: a reset from it is an answer, too (IANA: discard).
const NOBODYS_PORT: u16 = 9;

const NO_KEY: Outcome = Outcome::NotRequired { because: "no Headscale API key is configured" };

/// All checks.
pub(super) const CHECKS: &[Check<CheckContext>] = &[
    server_check("headscale.reachable", "Does the Headscale server answer?", &[], |c| Box::pin(headscale_reachable(c))),
    server_check("headscale.api-key", "Does it accept the API key?", &["headscale.reachable"], |c| {
        Box::pin(headscale_key(c))
    }),
    server_check("headscale.version", "Is it recent enough?", &["headscale.api-key"], |c| {
        Box::pin(headscale_version(c))
    }),
    server_check("policy.isolates", "Does its policy keep the clusters apart?", &["headscale.api-key"], |c| {
        Box::pin(policy(c))
    }),
    cluster_check("namespace.present", "Is the cluster's namespace there?", &["headscale.api-key"], |c| {
        Box::pin(namespace(c))
    }),
    cluster_check("keys.valid", "Is the connector registered with a valid key?", &[], |c| Box::pin(keys(c))),
    cluster_check("keys.router", "Could the router of a new node join?", &["headscale.api-key"], |c| {
        Box::pin(router_key(c))
    }),
    cluster_check("connector.login-server", "Does the connector log in at the Headscale server?", &[], |c| {
        Box::pin(login_server(c))
    }),
    cluster_check("router.connected", "Is one of the cluster's routers online?", &["headscale.api-key"], |c| {
        Box::pin(routers(c))
    }),
    cluster_check("routes.approved", "Are the cluster's networks approved?", &["headscale.api-key"], |c| {
        Box::pin(approved(c))
    }),
    cluster_check("connector.ready", "Is the connector ready?", &["keys.valid"], |c| Box::pin(ready(c))),
    cluster_check("routes.served", "Does this cluster's own router serve its networks?", &["keys.valid"], |c| {
        Box::pin(served(c))
    }),
    cluster_check("connector.path", "Do packets go straight to the router?", &["connector.ready"], |c| {
        Box::pin(path(c))
    }),
    cluster_check(
        "kube.reachable-through-connector",
        "Can the API server be dialled through the connector?",
        &["connector.ready"],
        |c| Box::pin(reachable(c)),
    ),
    cluster_check("kube.tls", "Is its certificate the cluster's?", &["kube.reachable-through-connector"], |c| {
        Box::pin(tls(c))
    }),
    cluster_check("kube.readyz", "Does it call itself ready?", &["kube.tls"], |c| Box::pin(readyz(c))),
    cluster_check("kube.identity", "Is it the cluster that was added?", &["kube.readyz"], |c| Box::pin(identity(c))),
    cluster_check("cluster.preflight", "Can the cluster run GuildNet's routers?", &["kube.readyz"], |c| {
        Box::pin(preflight(c))
    }),
    cluster_check("networks.drift", "Are its networks those that are served?", &["kube.readyz"], |c| {
        Box::pin(networks(c))
    }),
    cluster_check("router.daemonset-ready", "Does every node run a router?", &[], |c| Box::pin(daemonset(c))),
    cluster_check("storage.default-class", "Is there a default StorageClass?", &["kube.readyz"], |c| {
        Box::pin(storage(c))
    }),
    Check {
        // A hundred clusters: settling on both sides, then seven rounds of probes.
        within: Duration::from_secs(60),
        ..cluster_check("isolation", "Is every other cluster out of this connector's reach?", &[], |c| {
            Box::pin(isolated(c))
        })
    },
];

type Run = for<'a> fn(&'a CheckContext) -> BoxFuture<'a, Outcome>;

const fn server_check(
    id: &'static str,
    asks: &'static str,
    needs: &'static [&'static str],
    run: Run,
) -> Check<CheckContext> {
    // Two requests of Headscale's client, each with its own limit of 10 s.
    Check { id, asks, scope: Scope::Server, needs, within: Duration::from_secs(20), late_hint: LATE, run }
}

const fn cluster_check(
    id: &'static str,
    asks: &'static str,
    needs: &'static [&'static str],
    run: Run,
) -> Check<CheckContext> {
    // The longest: a connector that settles (12 s), then two requests of 6 s each.
    Check { id, asks, scope: Scope::Cluster, needs, within: Duration::from_secs(30), late_hint: LATE, run }
}

async fn headscale_reachable(c: &CheckContext) -> Outcome {
    match &c.shared.server {
        Some(known) => server::reachable(known.url().as_str(), &known.health().await),
        None => Outcome::NotRequired { because: "no cluster and no Headscale server is known" },
    }
}

async fn headscale_key(c: &CheckContext) -> Outcome {
    match c.server_with_key() {
        Some(known) => match c.users(known).await {
            // Whether its end can be told does not matter as long as it is accepted.
            Ok(_) => expiry::api_key(known.own_api_key().await.unwrap_or_default().as_ref(), Timestamp::now()),
            Err(why) => server::api_key_refused(why),
        },
        None => NO_KEY,
    }
}

async fn router_key(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    let cluster = c.cluster().id();
    match known.keys_of(cluster).await {
        Ok(listed) => {
            let now = Timestamp::now();
            expiry::router_key(cluster, RouterKey::of(c.router_key(), &listed, now), now)
        }
        Err(why) => failed(&why),
    }
}

async fn login_server(c: &CheckContext) -> Outcome {
    let server = c.shared.server.as_ref().map(crate::server::Server::url);
    membership::login_server(c.cluster().id(), &c.cluster().spec().connector.login_server, server)
}

async fn headscale_version(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    match known.info().await {
        Ok(info) => server::version(&info),
        Err(why) => failed(&why),
    }
}

async fn policy(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    let input = |c: &ClusterHandle| PolicyInput {
        cluster: c.id().clone(),
        routes: c.networks().clone(),
        site: c.spec().connector.site,
    };
    let clusters: Vec<PolicyInput> = c.shared.clusters.iter().map(input).collect();
    match known.policy(&clusters).await {
        Ok(seen) => server::policy(&seen),
        Err(why) => failed(&why),
    }
}

async fn namespace(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    let cluster = c.cluster();
    match c.users(known).await {
        Ok(users) => membership::namespace(cluster.id(), users),
        Err(why) => failed(why),
    }
}

async fn keys(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    let status = cluster.registered(SETTLE).await;
    let own = match (c.server_with_key(), &status.node) {
        (Some(known), Some(node)) => match c.nodes(known).await {
            Ok(nodes) => match nodes.iter().find(|n| n.node_key == node.node_key) {
                Some(listed) => OwnNode::Listed { expired: listed.is_expired(Timestamp::now()) },
                None => OwnNode::Missing,
            },
            Err(_) => OwnNode::Unknown,
        },
        _ => OwnNode::Unknown,
    };
    membership::keys(cluster.id(), &status, &own, SystemTime::now())
}

async fn routers(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    let cluster = c.cluster();
    match c.nodes(known).await {
        Ok(nodes) => membership::routers_connected(cluster.id(), &routers_of(nodes, cluster.id()), Timestamp::now()),
        Err(why) => failed(why),
    }
}

async fn approved(c: &CheckContext) -> Outcome {
    let Some(known) = c.server_with_key() else { return NO_KEY };
    let cluster = c.cluster();
    match c.nodes(known).await {
        Ok(nodes) => {
            let routers = routers_of(nodes, cluster.id());
            membership::routes_approved(cluster.id(), cluster.networks(), cluster.spec().connector.site, &routers)
        }
        Err(why) => failed(why),
    }
}

async fn ready(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    membership::ready(cluster.id(), &cluster.settled(SETTLE).await)
}

async fn served(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    cluster.settled(SETTLE).await;
    match snapshot(cluster).await {
        Some(seen) => {
            let listed = match c.server_with_key() {
                Some(known) => c.nodes(known).await.as_deref().ok(),
                None => None,
            };
            let site = cluster.spec().connector.site;
            membership::routes_served(cluster.id(), cluster.networks(), site, &seen.peers, listed)
        }
        None => Outcome::skip("no connector runs"),
    }
}

/// Sends something to the router, and waits until the path is direct or long enough.
async fn path(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    if let Ok(api) = c.api_address(cluster).await {
        // Whether the API server answers is another check's question; the packets are what counts.
        let _answered = c.dialled(cluster, *api).await;
    }
    let end = Instant::now() + DIRECT_LIMIT;
    loop {
        let Some(seen) = snapshot(cluster).await else { return Outcome::skip("no connector runs") };
        let direct = seen.peers.iter().any(|p| p.trusted && p.path == PathKind::Direct);
        if direct || Instant::now() >= end {
            return membership::path(&seen.peers);
        }
        // Paths have no watch: they change with every ping.
        sleep(Duration::from_millis(100)).await;
    }
}

async fn reachable(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    match c.api_address(cluster).await {
        Ok(api) => kube::reachable(cluster.id(), *api, c.dialled(cluster, *api).await),
        Err(why) => Outcome::fail(
            format!("the API server's address inside the cluster was not found: {}", why.cause),
            "check on the cluster's side that its API server runs and answers",
        ),
    }
}

async fn tls(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    match c.readyz(cluster).await {
        Ok(answer) => kube::tls(cluster.id(), &cluster.spec().access.tls_name(), answer),
        Err(why) => failed(&why),
    }
}

async fn readyz(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    match c.readyz(cluster).await {
        Ok(answer) => kube::readyz(cluster.id(), answer),
        Err(why) => failed(&why),
    }
}

async fn identity(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    match cluster.api(ANSWER_LIMIT).await {
        Ok(api) => {
            let seen = api.cluster_uid().await;
            let outcome = kube::identity(cluster.id(), cluster.uid(), &seen);
            if let Ok(uid) = &seen {
                cluster.take_uid(uid);
            }
            outcome
        }
        Err(why) => failed(&why),
    }
}

async fn storage(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    match cluster.api(ANSWER_LIMIT).await {
        Ok(api) => kube::storage(cluster.id(), &api.default_storage_class().await),
        Err(why) => failed(&why),
    }
}

async fn preflight(c: &CheckContext) -> Outcome {
    let of = c.cluster();
    match of.api(ANSWER_LIMIT).await {
        Ok(api) => {
            let facts = api.facts().await;
            cluster::preflight(of.id(), &facts.map(|f| guildnet_kube::preflight::judge(&f, of.id())))
        }
        Err(why) => failed(&why),
    }
}

async fn networks(c: &CheckContext) -> Outcome {
    let of = c.cluster();
    match of.api(ANSWER_LIMIT).await {
        Ok(api) => cluster::networks(of.id(), of.networks(), of.spec().routes_given, &api.discover_networks().await),
        Err(why) => failed(&why),
    }
}

async fn daemonset(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    cluster.settled(SETTLE).await;
    let router = || async {
        let seen = snapshot(cluster).await?;
        seen.peers.into_iter().find(|p| p.trusted && p.online != Some(false)).map(|p| p.name)
    };
    let seen = match any_way(cluster).await {
        Ok(api) => match guildnet_kube::router::status(&api).await {
            Ok(None) => match router().await {
                Some(router) => DaemonSetSeen::Elsewhere { router },
                None => DaemonSetSeen::Asked(None),
            },
            Ok(status) => DaemonSetSeen::Asked(status),
            Err(why) => DaemonSetSeen::NotAsked { why: why.to_string() },
        },
        Err(why) => match router().await {
            Some(_) => DaemonSetSeen::NotAsked { why },
            None => DaemonSetSeen::NoWay { why },
        },
    };
    kube::daemonset(cluster.id(), &seen)
}

async fn isolated(c: &CheckContext) -> Outcome {
    let cluster = c.cluster();
    let others: Vec<&ClusterHandle> = c.shared.clusters.iter().filter(|o| o.id() != cluster.id()).collect();
    if others.is_empty() {
        return isolation::judge(&[]);
    }
    cluster.settled(SETTLE).await;
    let Some(here) = snapshot(cluster).await else { return Outcome::skip("no connector runs") };
    let mut pairs = Vec::with_capacity(others.len());
    for some in others.chunks(PAIRS_AT_ONCE) {
        pairs.extend(join_all(some.iter().map(|other| pair(cluster, &here, other))).await);
    }
    isolation::judge(&pairs)
}

/// Everything that is observed of one ordered pair.
async fn pair(cluster: &ClusterHandle, here: &ConnectorSnapshot, other: &ClusterHandle) -> PairSeen {
    other.settled(SETTLE).await;
    let nothing =
        |foreign_there| PairSeen { other: other.id().clone(), foreign: vec![], foreign_there, attempts: vec![] };
    let Some(there) = snapshot(other).await else { return nothing(vec![]) };
    let foreign = isolation::peers_of(other.id(), here, &there);
    let foreign_there = isolation::peers_of(cluster.id(), &there, here);
    let routers = there.peers.iter().filter(|p| p.trusted && p.online != Some(false));
    let attempts = match routers.min_by_key(|p| p.path != PathKind::Direct) {
        Some(router) => {
            let own = router.addresses.iter().find(|a| a.is_ipv4()).map(|ip| (*ip, NOBODYS_PORT).into());
            let api = other.api_address().await.ok();
            let via6 = api.and_then(|api| isolation::via6_form(api, other.spec().connector.site, &router.routes));
            let targets = api
                .into_iter()
                .map(|t| (t, true))
                .chain(via6.map(|t| (t, false)))
                .chain(own.map(|t: std::net::SocketAddr| (Target::from(t), false)));
            join_all(targets.map(|(target, by_dial)| async move {
                let control = async {
                    if by_dial { dialled_within(other, target).await } else { answered(other, router, target).await }
                };
                let (probe, control) = tokio::join!(probe(cluster, router, target), control);
                Attempt { target, probe, control }
            }))
            .await
        }
        None => vec![],
    };
    PairSeen { foreign, attempts, ..nothing(foreign_there) }
}

async fn dialled_within(cluster: &ClusterHandle, target: Target) -> Result<(), String> {
    match timeout(PROBE_LIMIT, dial(cluster, target)).await {
        Ok(dialled) => dialled.map(|_| ()).map_err(|why| why.to_string()),
        Err(_) => Err(format!("no answer within {PROBE_LIMIT:?}")),
    }
}

/// The control for an address that the dialer does not allow: the router's own.
async fn answered(cluster: &ClusterHandle, router: &guildnet_model::PeerInfo, target: Target) -> Result<(), String> {
    match probe(cluster, router, target).await {
        ProbeOutcome::Answered => Ok(()),
        ProbeOutcome::Silent => Err(format!("no answer within {PROBE_LIMIT:?}")),
        ProbeOutcome::Impossible { why } => Err(why),
    }
}

async fn probe(from: &ClusterHandle, router: &guildnet_model::PeerInfo, target: Target) -> ProbeOutcome {
    match from.connector() {
        Some(connector) => connector.probe(router.contact.clone(), target, PROBE_LIMIT).await,
        None => ProbeOutcome::Impossible { why: "no connector runs".to_owned() },
    }
}

fn failed(why: &crate::HostError) -> Outcome {
    let (seen, hint) = said(why, LATE);
    Outcome::fail(seen, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_stands_before_the_check_and_is_in_its_reach() {
        for (at, check) in CHECKS.iter().enumerate() {
            for need in check.needs {
                let found = CHECKS[..at].iter().find(|c| c.id == *need);
                let found =
                    found.unwrap_or_else(|| panic!("{} needs {need}, which does not stand before it", check.id));
                assert!(check.scope == Scope::Cluster || found.scope == Scope::Server, "{} needs {need}", check.id);
            }
        }
    }

    #[test]
    fn ids_are_unique_and_questions_are_questions() {
        let mut ids: Vec<&str> = CHECKS.iter().map(|c| c.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), CHECKS.len());
        assert!(CHECKS.iter().all(|c| c.asks.ends_with('?')));
    }

    #[test]
    fn isolation_is_asked_whatever_else_fails() {
        let isolation = CHECKS.iter().find(|c| c.id == "isolation").expect("in the list");
        assert!(isolation.needs.is_empty());
    }
}
