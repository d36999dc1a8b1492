//! The contract with Headscale: what this crate relies on, as cases that run against any server.
//!
//! The crate's own tests run them against a small fake, so that the fake stays honest, and against a real server on request:
//! ```text
//! GUILDNET_HEADSCALE_URL=https://HOST:PORT GUILDNET_HEADSCALE_API_KEY_FILE=F GUILDNET_HEADSCALE_CA=PEM \
//!   cargo test --release -p guildnet-headscale -- --ignored a_real_server
//! ```
//! Other crates' tests enable the feature `contract` and call [`run`]. Each case uses clusters and namespaces of its own,
//! named `ct-...`, and removes them. A server without any policy is left with one that denies everything.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
};

use guildnet_model::{ClusterId, Secret};
use jiff::{SignedDuration, Timestamp};

use crate::{
    EnsureKeys, Headscale, HeadscaleConfig, HeadscaleError, HeldPolicy, NewKey, PolicyInput, PolicyPlan, PolicyRequest,
    PolicyVerdict, ServerFeatures, apply_policy, client_key, clients_of, ensure_namespace, judge, known_clusters,
    routers_of,
};

/// How a case ended: `Err` says what was expected and what was seen.
pub type Verdict = Result<(), String>;

/// A case: its name, which is the behaviour, and how to run it.
pub struct Case {
    /// The behaviour.
    pub name: &'static str,
    run: for<'a> fn(&'a HeadscaleConfig) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>,
}

impl Case {
    /// Runs it against a server.
    pub async fn run(&self, server: &HeadscaleConfig) -> Verdict {
        (self.run)(server).await
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// All cases.
        pub const CASES: &[Case] = &[$(Case { name: stringify!($name), run: |server| Box::pin($name(server)) }),*];
    };
}

cases![
    health_needs_no_key,
    a_policy_without_rules_can_be_put_back,
    the_version_is_known,
    a_wrong_key_is_unauthorized,
    the_api_key_in_use_is_listed_with_its_end,
    the_server_tells_its_own_key,
    a_user_is_made_once_and_removed,
    what_is_not_there_is_not_found,
    a_key_is_listed_by_its_beginning_and_can_be_ended,
    a_node_is_listed_approved_ended_and_removed,
    a_namespace_keeps_its_valid_keys,
    a_client_key_is_the_same_until_it_has_ended,
    the_policy_keeps_other_clusters_and_settles,
    a_wrong_policy_is_refused_in_words_and_changes_nothing,
    the_server_itself_tells_a_leaking_policy,
    an_untagged_node_is_listed_with_its_user,
    the_rule_for_nodes_of_others_is_accepted,
];

/// Runs all cases, one after the other: they write one policy.
pub async fn run(server: &HeadscaleConfig) -> Vec<(&'static str, Verdict)> {
    let mut verdicts = Vec::new();
    for case in CASES {
        verdicts.push((case.name, case.run(server).await));
    }
    verdicts
}

macro_rules! expect {
    ($condition:expr, $($said:tt)*) => {
        if !$condition {
            return Err(format!($($said)*));
        }
    };
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn client(server: &HeadscaleConfig) -> Result<Headscale, String> {
    Headscale::new(server.clone()).map_err(said)
}

/// A number that no other case and no earlier run has used.
fn unique() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    (now % 10_u64.pow(12)) * 1000 + COUNT.fetch_add(1, Ordering::Relaxed) % 1000
}

fn cluster() -> Result<ClusterId, String> {
    format!("ct-{:x}", unique()).parse().map_err(said)
}

fn input(cluster: &ClusterId, site: u64) -> Result<PolicyInput, String> {
    Ok(PolicyInput {
        cluster: cluster.clone(),
        routes: "10.96.0.0/16,10.244.0.0/16".parse().map_err(said)?,
        site: guildnet_model::SiteNumber::try_from(site).ok(),
    })
}

async fn health_needs_no_key(server: &HeadscaleConfig) -> Verdict {
    let without = Headscale::new(HeadscaleConfig { api_key: None, ..server.clone() }).map_err(said)?;
    without.health().await.map_err(said)?;
    let refused = without.users().await;
    expect!(matches!(refused, Err(HeadscaleError::NoApiKey { .. })), "a call without a key gave {refused:?}");
    Ok(())
}

async fn a_policy_without_rules_can_be_put_back(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let held = hs.held_policy().await.map_err(said)?;
    expect!(!held.in_file, "a policy in the database is taken for one in a file");
    if held.document.is_some() {
        // Somebody relies on it.
        return Ok(());
    }
    // An empty document would not be taken before a restart.
    hs.set_policy("{}").await.map_err(said)?;
    let held = hs.held_policy().await.map_err(said)?;
    expect!(held == HeldPolicy { document: Some("{}".into()), in_file: false }, "it holds {held:?}");
    Ok(())
}

async fn the_version_is_known(server: &HeadscaleConfig) -> Verdict {
    let info = client(server)?.server().await.map_err(said)?;
    expect!(info.version.features().is_none_or(|f| f == info.features), "{info:?} contradicts itself");
    Ok(())
}

async fn a_wrong_key_is_unauthorized(server: &HeadscaleConfig) -> Verdict {
    let wrong = HeadscaleConfig { api_key: Some(Secret::new("hskey-api-wrong".into())), ..server.clone() };
    let refused = client(&wrong)?.users().await;
    expect!(matches!(refused, Err(HeadscaleError::Unauthorized { .. })), "a wrong key gave {refused:?}");
    Ok(())
}

async fn the_api_key_in_use_is_listed_with_its_end(server: &HeadscaleConfig) -> Verdict {
    let own = client(server)?.own_api_key().await.map_err(said)?;
    expect!(own.as_ref().is_some_and(|k| k.expires.is_some() && k.created.is_some()), "listed as {own:?}");
    Ok(())
}

async fn the_server_tells_its_own_key(server: &HeadscaleConfig) -> Verdict {
    let without = Headscale::new(HeadscaleConfig { api_key: None, ..server.clone() }).map_err(said)?;
    let (once, again) = (without.server_key().await.map_err(said)?, without.server_key().await.map_err(said)?);
    expect!(once == again && once.starts_with("mkey:"), "told {once:?}, then {again:?}");
    Ok(())
}

async fn a_user_is_made_once_and_removed(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let name = cluster()?.namespace();
    let made = hs.ensure_user(&name).await.map_err(said)?;
    let again = hs.ensure_user(&name).await.map_err(said)?;
    expect!(made == again, "made {made:?}, then found {again:?}");
    let twice = hs.create_user(&name).await;
    expect!(matches!(twice, Err(HeadscaleError::Refused { .. })), "making it twice gave {twice:?}");
    expect!(hs.users().await.map_err(said)?.contains(&made), "the list of users lacks {made:?}");
    match hs.delete_user(made.id).await {
        Err(HeadscaleError::WouldEndKeys { .. }) => return Ok(()),
        outcome => outcome.map_err(said)?,
    }
    let gone = hs.user(&name).await.map_err(said)?;
    expect!(gone.is_none(), "still there after removal: {gone:?}");
    Ok(())
}

async fn what_is_not_there_is_not_found(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    // Beyond anything a server counts to, and within what its database can hold.
    let nobody = u64::from(u32::MAX);
    for (what, outcome) in [
        ("node", hs.node(nobody).await.map(drop)),
        ("removal of a node", hs.delete_node(nobody).await),
        ("removal of a user", hs.delete_user(nobody).await),
    ] {
        // 0.28 is not even asked to remove a user while others have keys.
        let refused = matches!(outcome, Err(HeadscaleError::NotFound { .. } | HeadscaleError::WouldEndKeys { .. }));
        expect!(refused, "{what} gave {outcome:?}");
    }
    Ok(())
}

async fn a_key_is_listed_by_its_beginning_and_can_be_ended(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let id = cluster()?;
    let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
    let now = Timestamp::now();
    let new = NewKey {
        user: user.id,
        tags: vec![id.router_tag()],
        reusable: true,
        ephemeral: false,
        expires: now + SignedDuration::from_hours(2),
    };
    let (_, key) = hs.create_key(&new).await.map_err(said)?;
    let (_, other) = hs.create_key(&new).await.map_err(said)?;
    let listed = hs.keys(user.id).await.map_err(said)?;
    let found: Vec<_> = listed.iter().filter(|k| k.is(&key)).collect();
    expect!(
        listed.len() == 2 && found.len() == 1,
        "of two keys {} are listed, {} of them the one",
        listed.len(),
        found.len()
    );
    expect!(found[0].tags == new.tags && found[0].reusable && !found[0].used, "listed as {:?}", found[0]);
    expect!(found[0].created.is_some(), "when it was made is not told: {:?}", found[0]);
    expect!(found[0].is_usable(now + SignedDuration::from_hours(1)), "not usable in an hour: {:?}", found[0]);
    expect!(!found[0].is_usable(now + SignedDuration::from_hours(3)), "still usable in three hours: {:?}", found[0]);
    hs.expire_key(found[0]).await.map_err(said)?;
    let later = Timestamp::now() + SignedDuration::from_secs(1);
    let listed = hs.keys(user.id).await.map_err(said)?;
    expect!(listed.iter().any(|k| k.is(&key) && !k.is_usable(later)), "the ended key is usable: {listed:?}");
    expect!(listed.iter().any(|k| k.is(&other) && k.is_usable(later)), "the other key was ended too: {listed:?}");
    remove(&hs, user.id).await
}

async fn a_node_is_listed_approved_ended_and_removed(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let features = hs.server().await.map_err(said)?.features;
    let id = cluster()?;
    let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
    let known = [input(&id, user.id)?];
    let request = PolicyRequest { clusters: &known, merge: true, ..PolicyRequest::default() };
    // A tag can be given only once the policy names its owner.
    apply_policy(&hs, features, &request).await.map_err(said)?;
    let made = hs.pretend_node(&user.name, "ct-node", &[id.router_tag()], unique()).await.map_err(said)?;
    let nodes = hs.nodes().await.map_err(said)?;
    let routers = routers_of(&nodes, &id);
    expect!(routers.len() == 1 && routers[0].id == made.id, "routers of {id}: {routers:?}");
    expect!(clients_of(&nodes, &id).is_empty(), "a router is listed as a client");
    expect!(made.node_key.starts_with("nodekey:") && !made.online && made.expires.is_none(), "the node is {made:?}");
    expect!(!made.addresses.is_empty(), "the node has no address");

    let routes = ["10.96.0.0/16".parse().map_err(said)?];
    hs.approve_routes(made.id, &routes).await.map_err(said)?;
    let approved = hs.node(made.id).await.map_err(said)?.approved_routes;
    expect!(approved == routes, "approved: {approved:?}");
    hs.expire_node(made.id).await.map_err(said)?;
    let later = Timestamp::now() + SignedDuration::from_secs(1);
    expect!(hs.node(made.id).await.map_err(said)?.is_expired(later), "its key has not ended");
    hs.delete_node(made.id).await.map_err(said)?;
    expect!(routers_of(&hs.nodes().await.map_err(said)?, &id).is_empty(), "still listed after removal");
    tidy(&hs, features, &[id]).await
}

async fn a_namespace_keeps_its_valid_keys(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let id = cluster()?;
    let want = EnsureKeys::default();
    let first = ensure_namespace(&hs, &id, &want, None).await.map_err(said)?;
    expect!(first.new_router_key && first.new_client_key, "no keys were made at first");
    expect!(
        first.file.site.map(|s| u64::from(s.get())) == first.file.namespace_id,
        "the site is not the namespace's number"
    );
    let again = ensure_namespace(&hs, &id, &want, Some(&first.file)).await.map_err(said)?;
    expect!(!again.new_router_key && !again.new_client_key, "valid keys were made anew");
    expect!(again.file.router_auth_key == first.file.router_auth_key, "another router key came back");

    let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
    let router_key = first.file.router_auth_key.clone().ok_or("no router key")?;
    let listed = hs.keys(user.id).await.map_err(said)?;
    expect!(listed.len() == 2, "{} keys are listed", listed.len());
    let entry = listed.iter().find(|k| k.is(&router_key)).ok_or("the router key is not listed")?;
    hs.expire_key(entry).await.map_err(said)?;
    let third = ensure_namespace(&hs, &id, &want, Some(&first.file)).await.map_err(said)?;
    expect!(third.new_router_key && !third.new_client_key, "after the router key's end: {third:?}");
    expect!(third.file.client_auth_key == first.file.client_auth_key, "the client key changed too");
    remove(&hs, user.id).await
}

async fn a_client_key_is_the_same_until_it_has_ended(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let id = cluster()?;
    let want = EnsureKeys { client: false, ..EnsureKeys::default() };
    let held = ensure_namespace(&hs, &id, &want, None).await.map_err(said)?.file;
    let first = client_key(&hs, &held).await.map_err(said)?.ok_or("there is a namespace")?;
    let key = first.client_auth_key.clone().ok_or("no key")?;
    let again = client_key(&hs, &first).await.map_err(said)?.ok_or("there is a namespace")?;
    expect!(again.client_auth_key == first.client_auth_key, "a key that nobody has used was made anew");
    let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
    let listed = hs.keys(user.id).await.map_err(said)?;
    hs.expire_key(listed.iter().find(|k| k.is(&key)).ok_or("it is not listed")?).await.map_err(said)?;
    let third = client_key(&hs, &first).await.map_err(said)?.ok_or("there is a namespace")?;
    expect!(third.client_auth_key.is_some_and(|new| new != key), "an ended key came back");
    remove(&hs, user.id).await?;
    expect!(client_key(&hs, &held).await.map_err(said)?.is_none(), "a key without a namespace");
    expect!(hs.user(&id.namespace()).await.map_err(said)?.is_none(), "the namespace was made");
    Ok(())
}

async fn the_policy_keeps_other_clusters_and_settles(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let features = hs.server().await.map_err(said)?.features;
    let (a, b) = (cluster()?, cluster()?);
    let inputs = [input(&a, 60_001)?, input(&b, 60_002)?];
    // As two devices would, one after the other.
    for one in inputs.chunks(1) {
        let request = PolicyRequest { clusters: one, merge: true, ..PolicyRequest::default() };
        let applied = apply_policy(&hs, features, &request).await.map_err(said)?;
        expect!(applied.diff.is_some(), "nothing was written for {}", one[0].cluster);
    }
    let current = hs.policy().await.map_err(said)?;
    let known = known_clusters(current.as_deref()).map_err(said)?;
    expect!([&a, &b].iter().all(|id| known.iter().any(|k| k.cluster == **id)), "known are {known:?}");
    let verdict = judge(current.as_deref(), &inputs, features, &[]).map_err(said)?;
    expect!(matches!(verdict, PolicyVerdict::Isolates { .. }), "judged {verdict:?}");
    let request = PolicyRequest { clusters: &inputs, merge: true, ..PolicyRequest::default() };
    let again = apply_policy(&hs, features, &request).await.map_err(said)?;
    expect!(again.diff.is_none(), "a second run changed {:?}", again.diff);
    let forget = [a.clone(), b.clone()];
    let request = PolicyRequest { forget: &forget, merge: true, ..PolicyRequest::default() };
    let left = apply_policy(&hs, features, &request).await.map_err(said)?.clusters;
    expect!(left.iter().all(|k| !forget.contains(&k.cluster)), "not forgotten: {left:?}");
    Ok(())
}

async fn a_wrong_policy_is_refused_in_words_and_changes_nothing(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let before = hs.policy().await.map_err(said)?;
    let refused = hs.set_policy(r#"{"acls":[{"action":"accept","src":["tag:ct-nobody"],"dst":["*:*"]}]}"#).await;
    let told = matches!(&refused, Err(HeadscaleError::PolicyRefused { said }) if said.contains("tag:ct-nobody"));
    expect!(told, "an undefined tag gave {refused:?}");
    let after = hs.policy().await.map_err(said)?;
    expect!(before == after, "a refused policy was stored");
    Ok(())
}

async fn the_server_itself_tells_a_leaking_policy(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let features = hs.server().await.map_err(said)?.features;
    if features == ServerFeatures::BEFORE_029 {
        // Nothing to rely on: such a server evaluates no tests.
        return Ok(());
    }
    let (a, b) = (cluster()?, cluster()?);
    let inputs = [input(&a, 60_003)?, input(&b, 60_004)?];
    let request = PolicyRequest { clusters: &inputs, merge: true, ..PolicyRequest::default() };
    apply_policy(&hs, features, &request).await.map_err(said)?;
    for id in [&a, &b] {
        let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
        for tag in [id.router_tag(), id.client_tag()] {
            hs.pretend_node(&user.name, "ct-node", &[tag], unique()).await.map_err(said)?;
        }
    }
    let document = hs.policy().await.map_err(said)?.unwrap_or_default();
    let nodes = hs.nodes().await.map_err(said)?;
    let tested = |document: &str| {
        crate::policy::with_tests(document, &inputs, |tag| nodes.iter().any(|n| n.tags.iter().any(|t| t == tag)))
    };
    let tight = hs.check_policy(&tested(&document).ok_or("no tests were made")?).await;
    expect!(tight.is_ok(), "the compiled policy fails its tests: {tight:?}");
    let mut open: serde_json::Value = serde_json::from_str(&document).map_err(said)?;
    open["acls"] = serde_json::json!([{ "action": "accept", "src": ["*"], "dst": ["*:*"] }]);
    let open = hs.check_policy(&tested(&open.to_string()).ok_or("no tests were made")?).await;
    let told = matches!(&open, Err(HeadscaleError::PolicyRefused { said }) if said.contains("test(s) failed"));
    expect!(told, "a policy that allows everything gave {open:?}");
    tidy(&hs, features, &[a, b]).await
}

async fn an_untagged_node_is_listed_with_its_user(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let user = hs.ensure_user(&cluster()?.namespace()).await.map_err(said)?;
    let made = hs.pretend_node(&user.name, "ct-node", &[], unique()).await.map_err(said)?;
    let node = hs.node(made.id).await.map_err(said)?;
    expect!(node.user.as_ref() == Some(&user.name) && node.tags.is_empty(), "it is listed as {node:?}");
    hs.delete_node(made.id).await.map_err(said)?;
    remove(&hs, user.id).await
}

async fn the_rule_for_nodes_of_others_is_accepted(server: &HeadscaleConfig) -> Verdict {
    let hs = client(server)?;
    let features = hs.server().await.map_err(said)?.features;
    let id = cluster()?;
    let user = hs.ensure_user(&id.namespace()).await.map_err(said)?;
    let mut nodes = Vec::new();
    for name in ["ct-laptop", "ct-nas"] {
        nodes.push(hs.pretend_node(&user.name, name, &[], unique()).await.map_err(said)?);
    }
    let mut seen = hs.nodes().await.map_err(said)?;
    // As a node would be that joined with a tagged key while there was no policy.
    for node in seen.iter_mut().filter(|n| n.name.starts_with("ct-nas")) {
        node.tags = vec![format!("tag:{id}-nas")];
        node.approved_routes = vec!["192.168.71.0/24".parse().map_err(said)?, "0.0.0.0/0".parse().map_err(said)?];
    }
    let known = [input(&id, user.id)?];
    let request = PolicyRequest { clusters: &known, merge: true, nodes: &seen, ..PolicyRequest::default() };
    let document = match crate::plan(None, &request, features).map_err(said)? {
        PolicyPlan::Apply { document, cuts_off, .. } => {
            expect!(cuts_off.is_empty(), "nodes would be cut off: {cuts_off:?}");
            document
        }
        other => return Err(format!("planned {other:?}")),
    };
    let before = hs.policy().await.map_err(said)?;
    let accepted = if features.policy_tests {
        hs.check_policy(&document).await
    } else if known_clusters(before.as_deref()).map_err(said)?.is_empty() {
        let written = hs.set_policy(&document).await;
        written.and(hs.set_policy(before.as_deref().unwrap_or("{}")).await)
    } else {
        // Somebody relies on what is there.
        Ok(())
    };
    for node in nodes {
        hs.delete_node(node.id).await.map_err(said)?;
    }
    remove(&hs, user.id).await?;
    accepted.map_err(said)
}

/// Removes a case's user, unless that would end other users' keys.
async fn remove(hs: &Headscale, user: u64) -> Verdict {
    match hs.delete_user(user).await {
        Ok(()) | Err(HeadscaleError::WouldEndKeys { .. }) => Ok(()),
        Err(other) => Err(said(other)),
    }
}

/// Removes a case's nodes, namespaces and clusters.
async fn tidy(hs: &Headscale, features: ServerFeatures, clusters: &[ClusterId]) -> Verdict {
    let nodes = hs.nodes().await.map_err(said)?;
    for id in clusters {
        for node in routers_of(&nodes, id).into_iter().chain(clients_of(&nodes, id)) {
            hs.delete_node(node.id).await.map_err(said)?;
        }
        if let Some(user) = hs.user(&id.namespace()).await.map_err(said)? {
            remove(hs, user.id).await?;
        }
    }
    let request = PolicyRequest { forget: clusters, merge: true, ..PolicyRequest::default() };
    apply_policy(hs, features, &request).await.map(drop).map_err(said)
}

#[cfg(test)]
#[path = "contract_tests.rs"]
mod tests;
