//! Takes a cluster off the server: its nodes, its place in the policy, its keys, its namespace, in this order.
//!
//! A node is deleted once it is disconnected. Headscale 0.28 leaves the routes of a router that is deleted while it is connected
//! with the dead node, and would not give them to the next one. While a node of the cluster remains, its place in the policy
//! remains too: the policy is what keeps it apart from the other clusters.
//!
//! What GuildNet did not make (keys of another form, nodes of other devices that are in use) is left and named.

use std::time::Duration;

use guildnet_model::ClusterId;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::{Headscale, HeadscaleError, KeyKind, Node, clients_of, routers_of};

/// How often the node list is asked while nodes are on their way out. The API has no stream of changes.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Which of a cluster's nodes go.
#[derive(Clone, Copy, Debug)]
pub struct Leaving<'a> {
    /// The routers.
    pub routers: bool,
    /// Connectors that are not connected, of whatever device: where the routers go, they have nothing left to reach.
    pub idle_connectors: bool,
    /// Node key (`nodekey:<hex>`) of the connector that goes, if one does.
    pub connector: Option<&'a str>,
    /// How long they may take to be listed as disconnected.
    pub patience: Duration,
}

/// What became of it, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// What was removed.
    pub removed: Vec<String>,
    /// What stays, and why: it is not ours, or the server can't do without it.
    pub left: Vec<String>,
    /// What should have gone and could not yet: the same call goes on from there.
    pub unfinished: Vec<String>,
}

impl Cleared {
    /// Whether nothing of what was asked about remains.
    pub fn is_complete(&self) -> bool {
        self.left.is_empty() && self.unfinished.is_empty()
    }
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Deleted as soon as it is disconnected.
    Goes,
    /// Of another device, and in use.
    InUse,
    /// Not asked about.
    Stays,
}

fn fates<'a>(nodes: &'a [Node], cluster: &ClusterId, leaving: &Leaving<'_>) -> Vec<(&'a Node, Fate)> {
    let router = |_: &Node| if leaving.routers { Fate::Goes } else { Fate::Stays };
    let client = |node: &Node| match (leaving.connector == Some(node.node_key.as_str()), leaving.idle_connectors) {
        (true, _) => Fate::Goes,
        (false, true) => {
            if node.online {
                Fate::InUse
            } else {
                Fate::Goes
            }
        }
        (false, false) => Fate::Stays,
    };
    let routers = routers_of(nodes, cluster).into_iter().map(|n| (n, router(n)));
    routers.chain(clients_of(nodes, cluster).into_iter().map(|n| (n, client(n)))).collect()
}

/// Deletes nodes of a cluster, each once it is disconnected.
///
/// # Errors
/// Those of the calls; what was deleted until then stays deleted.
/// # Cancellation
/// Dropping the future leaves what was done so far; the same call goes on from there.
pub async fn remove_nodes(
    headscale: &Headscale,
    cluster: &ClusterId,
    leaving: &Leaving<'_>,
) -> Result<Cleared, HeadscaleError> {
    let mut done = Cleared::default();
    let end = Instant::now() + leaving.patience;
    loop {
        let nodes = headscale.nodes().await?;
        let fates = fates(&nodes, cluster, leaving);
        let of = |wanted: Fate| fates.iter().filter(move |(_, fate)| *fate == wanted).map(|(node, _)| *node);
        for node in of(Fate::Goes).filter(|n| !n.online) {
            match headscale.delete_node(node.id).await {
                // Gone meanwhile: an ephemeral one, or by another hand.
                Ok(()) | Err(HeadscaleError::NotFound { .. }) => {
                    done.removed.push(format!("node {} on Headscale", node.name))
                }
                Err(why) => return Err(why),
            }
        }
        let waiting: Vec<&Node> = of(Fate::Goes).filter(|n| n.online).collect();
        if waiting.is_empty() || Instant::now() >= end {
            let connected = |n: &&Node| format!("node {} on Headscale: it is still connected", n.name);
            done.unfinished.extend(waiting.iter().map(connected));
            done.left.extend(
                of(Fate::InUse).map(|n| format!("node {} on Headscale: another device is connected with it", n.name)),
            );
            return Ok(done);
        }
        sleep(ASK_EVERY).await;
    }
}

/// Removes what is left of a cluster once its nodes and its place in the policy are gone: the keys that have the form of
/// ours and, if nothing else is in it, the namespace. What was done is added to `done`.
///
/// # Errors
/// Those of the calls; what was removed until then stays removed.
/// # Cancellation
/// Dropping the future leaves what was done so far; the same call goes on from there.
pub async fn remove_namespace(
    headscale: &Headscale,
    cluster: &ClusterId,
    done: &mut Cleared,
) -> Result<(), HeadscaleError> {
    let namespace = cluster.namespace();
    let Some(user) = headscale.user(&namespace).await? else { return Ok(()) };
    let now = Timestamp::now();
    let (ours, others): (Vec<_>, Vec<_>) =
        headscale.keys(user.id).await?.into_iter().partition(|key| KeyKind::of(key, cluster) != KeyKind::Other);
    for key in ours.iter().filter(|k| k.is_usable(now)) {
        headscale.expire_key(key).await?;
    }
    let foreign: Vec<String> = others.iter().filter(|k| k.is_usable(now)).map(|k| k.id.to_string()).collect();
    if !foreign.is_empty() {
        // The server removes a namespace's keys with it.
        let which = foreign.join(", ");
        done.left.push(format!("namespace {namespace}: it holds preauth keys that GuildNet did not make ({which})"));
        return Ok(());
    }
    match headscale.delete_user(user.id).await {
        Ok(()) => done.removed.push(format!("namespace {namespace} and its keys")),
        Err(why @ (HeadscaleError::WouldEndKeys { .. } | HeadscaleError::Refused { .. })) => {
            done.left.push(format!("namespace {namespace}, without usable keys: {why}"));
        }
        Err(why) => return Err(why),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::{
        EnsureKeys, NewKey, PolicyInput, PolicyRequest, ServerFeatures, apply_policy, ensure_namespace,
        fake::{Behaviour, Fake},
        known_clusters,
    };

    fn a() -> ClusterId {
        "a".parse().expect("an id")
    }

    const GOING: Leaving<'static> =
        Leaving { routers: true, idle_connectors: true, connector: None, patience: Duration::ZERO };

    /// A server with a namespace, keys, policy, and the named nodes of cluster a.
    async fn server(version: &'static str, nodes: &[(&str, String)]) -> (Fake, Headscale) {
        let fake = Fake::start(Behaviour { version: Some(version), ..Behaviour::default() }).await;
        let hs = fake.client();
        ensure_namespace(&hs, &a(), &EnsureKeys::default(), None).await.expect("made");
        let input = [PolicyInput { cluster: a(), routes: "10.96.0.0/16".parse().expect("nets"), site: None }];
        let request = PolicyRequest { clusters: &input, ..PolicyRequest::default() };
        apply_policy(&hs, ServerFeatures::CURRENT, &request).await.expect("applied");
        for (number, (name, tag)) in (1..).zip(nodes) {
            hs.pretend_node("cluster-a", name, std::slice::from_ref(tag), number).await.expect("a node");
        }
        (fake, hs)
    }

    async fn cluster_gone(hs: &Headscale, leaving: &Leaving<'_>) -> Cleared {
        let mut done = remove_nodes(hs, &a(), leaving).await.expect("an answer");
        if done.is_complete() {
            let request = PolicyRequest { forget: &[a()], merge: true, ..PolicyRequest::default() };
            let applied = apply_policy(hs, ServerFeatures::CURRENT, &request).await.expect("applied");
            done.removed.extend(applied.diff.map(|_| "policy".to_owned()));
            remove_namespace(hs, &a(), &mut done).await.expect("an answer");
        }
        done
    }

    #[tokio::test]
    async fn nothing_of_a_removed_cluster_remains_and_a_second_time_is_nothing() {
        let (_fake, hs) = server("v0.29.2", &[("r", a().router_tag()), ("c", a().client_tag())]).await;
        let done = cluster_gone(&hs, &GOING).await;
        assert_eq!((done.left, done.unfinished), (vec![], vec![]));
        assert_eq!(done.removed.len(), 4, "{:?}", done.removed);
        assert_eq!(hs.nodes().await.expect("a list"), []);
        assert_eq!(hs.user("cluster-a").await.expect("an answer"), None);
        let policy = hs.policy().await.expect("a policy");
        assert_eq!(known_clusters(policy.as_deref()).expect("readable"), []);
        assert_eq!(cluster_gone(&hs, &GOING).await, Cleared::default());
    }

    #[tokio::test]
    async fn a_connected_router_is_not_deleted_and_stays_isolated() {
        let (fake, hs) = server("v0.29.2", &[("r", a().router_tag())]).await;
        fake.tables().set_online("r", true);
        let done = cluster_gone(&hs, &GOING).await;
        assert_eq!(done.unfinished, ["node r on Headscale: it is still connected"]);
        assert_eq!(hs.nodes().await.expect("a list").len(), 1);
        let policy = hs.policy().await.expect("a policy");
        assert_eq!(known_clusters(policy.as_deref()).expect("readable").len(), 1);
        fake.tables().set_online("r", false);
        let done = cluster_gone(&hs, &GOING).await;
        assert_eq!((done.left, done.unfinished), (vec![], vec![]), "the same call goes on");
    }

    #[tokio::test]
    async fn a_router_is_deleted_as_soon_as_it_is_disconnected() {
        let (fake, hs) = server("v0.29.2", &[("r", a().router_tag())]).await;
        fake.tables().set_online("r", true);
        let patient = Leaving { patience: Duration::from_secs(20), ..GOING };
        let leaves = async {
            sleep(ASK_EVERY).await;
            fake.tables().set_online("r", false);
        };
        let (done, ()) = tokio::join!(cluster_gone(&hs, &patient), leaves);
        assert_eq!(done.removed.first().map(String::as_str), Some("node r on Headscale"));
    }

    #[tokio::test]
    async fn another_devices_connector_in_use_is_left_and_named() {
        let (fake, hs) = server("v0.29.2", &[("here", a().client_tag()), ("there", a().client_tag())]).await;
        fake.tables().set_online("there", true);
        let done = cluster_gone(&hs, &GOING).await;
        assert_eq!(done.removed, ["node here on Headscale"]);
        assert!(done.left[0].contains("node there"), "{:?}", done.left);
        assert_eq!(done.unfinished, [""; 0]);
    }

    #[tokio::test]
    async fn one_connector_alone_can_go() {
        let nodes = [("r", a().router_tag()), ("here", a().client_tag()), ("there", a().client_tag())];
        let (_fake, hs) = server("v0.29.2", &nodes).await;
        let all = hs.nodes().await.expect("a list");
        let own = all.iter().find(|n| n.name == "here").expect("there");
        let leaving = Leaving { routers: false, idle_connectors: false, connector: Some(&own.node_key), ..GOING };
        let done = remove_nodes(&hs, &a(), &leaving).await.expect("an answer");
        assert_eq!(done.removed, ["node here on Headscale"]);
        assert_eq!(hs.nodes().await.expect("a list").len(), 2);
    }

    #[tokio::test]
    async fn keys_that_were_not_made_here_keep_their_namespace() {
        let (_fake, hs) = server("v0.29.2", &[]).await;
        let user = hs.user("cluster-a").await.expect("an answer").expect("a user");
        let theirs = NewKey {
            user: user.id,
            tags: vec![],
            reusable: true,
            ephemeral: false,
            expires: Timestamp::now() + SignedDuration::from_hours(2),
        };
        let (_, key) = hs.create_key(&theirs).await.expect("made");
        let done = cluster_gone(&hs, &GOING).await;
        assert!(done.left[0].contains("GuildNet did not make"), "{:?}", done.left);
        let later = Timestamp::now() + SignedDuration::from_secs(1);
        let usable: Vec<_> =
            hs.keys(user.id).await.expect("a list").into_iter().filter(|k| k.is_usable(later)).collect();
        assert!(usable.len() == 1 && usable[0].is(&key), "{usable:?}");
    }

    #[tokio::test]
    async fn before_029_a_namespace_whose_removal_would_end_others_keys_stays() {
        let (_fake, hs) = server("v0.28.0", &[]).await;
        let other: ClusterId = "b".parse().expect("an id");
        ensure_namespace(&hs, &other, &EnsureKeys::default(), None).await.expect("made");
        let done = cluster_gone(&hs, &GOING).await;
        assert!(done.left[0].starts_with("namespace cluster-a, without usable keys"), "{:?}", done.left);
        assert_eq!(done.unfinished, [""; 0]);
    }
}
