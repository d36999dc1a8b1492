//! Fits the clusters' policy into what the server holds: what must be written, or why it can't be. Pure.
//!
//! Clusters that the server's policy knows and that are not asked about are kept: another device may serve them.

use std::collections::BTreeSet;

use guildnet_model::{ClusterId, Networks};
use serde_json::{Value, json};

use super::{
    CutOff, PolicyError, PolicyInput, compile_beside, diff,
    document::{Document, add},
    others, words,
};
use crate::{Node, ServerFeatures};

/// What the policy shall say.
#[derive(Clone, Copy, Debug, Default)]
pub struct PolicyRequest<'a> {
    /// Clusters that it shall know, as they are now.
    pub clusters: &'a [PolicyInput],
    /// Clusters that it shall know no longer.
    pub forget: &'a [ClusterId],
    /// Whether what others have is kept beside ours: their rules, and on a server without rules their reach. Otherwise
    /// their rules stop the plan.
    pub merge: bool,
    /// Whether nodes of others may be cut off from each other.
    pub cut_off_others: bool,
    /// The nodes of the server. [`apply_policy`](crate::apply_policy) asks for them itself.
    pub nodes: &'a [Node],
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPlan {
    /// The server holds it already.
    Unchanged {
        /// All clusters that it keeps apart.
        clusters: Vec<PolicyInput>,
    },
    /// The document must be written.
    Apply {
        /// The document, as indented JSON.
        document: String,
        /// The lines that go and come, for a person.
        diff: String,
        /// All clusters that it keeps apart.
        clusters: Vec<PolicyInput>,
        /// Nodes of others that would lose reach among themselves.
        cuts_off: Vec<CutOff>,
    },
    /// The server's policy holds rules of others, and they were not asked to be kept.
    Foreign {
        /// What was found, in words.
        what: Vec<String>,
        /// What bears our names and was not written by us, in words; when merged, ours takes its place.
        usurped: Vec<String>,
        /// The lines that would go and come if they were kept.
        diff: String,
    },
}

/// What the server's policy does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyVerdict {
    /// It is the compiled one: it keeps the clusters apart.
    Isolates {
        /// How many clusters it knows.
        clusters: usize,
        /// What it holds of others, in words; it does not open the clusters.
        foreign: Vec<String>,
    },
    /// There is none, or none with rules: everything may reach everything.
    AllowsAll,
    /// Ours is in it, and beside it rules of others that let clusters reach each other.
    Opened {
        /// The rules, as JSON.
        rules: Vec<String>,
    },
    /// It is another one.
    Differs {
        /// In what, in a line.
        how: String,
    },
}

/// The clusters that a policy of the server knows.
///
/// # Errors
/// [`PolicyError::Unreadable`].
pub fn known_clusters(current: Option<&str>) -> Result<Vec<PolicyInput>, PolicyError> {
    Ok(Document::read(current.unwrap_or_default())?.clusters)
}

/// The lines that go and come from one document to another.
///
/// # Errors
/// [`PolicyError::Unreadable`] for either.
pub fn policy_diff(before: Option<&str>, after: Option<&str>) -> Result<String, PolicyError> {
    let read = |text: Option<&str>| Document::read(text.unwrap_or_default());
    Ok(diff::lines(&pretty(&read(before)?.whole), &pretty(&read(after)?.whole)))
}

/// Finds out what must be written.
///
/// A policy that is absent, empty or without any rules allows everything on Headscale: it is replaced. Rules of others that
/// would let clusters reach each other are never kept.
///
/// # Errors
/// Those of [`compile`]; [`PolicyError::Unreadable`]; [`PolicyError::Opened`].
pub fn plan(
    current: Option<&str>,
    request: &PolicyRequest<'_>,
    server: ServerFeatures,
) -> Result<PolicyPlan, PolicyError> {
    let held = Document::read(current.unwrap_or_default())?;
    let clusters = all_clusters(&held, request);
    let knows = |id: &ClusterId| held.clusters.iter().any(|c| c.cluster == *id);
    if request.clusters.is_empty() && !request.forget.is_empty() && !request.forget.iter().any(knows) {
        // What is not known need not be forgotten, and least of all by closing a server that allows all.
        return Ok(PolicyPlan::Unchanged { clusters });
    }
    let policy = compile_beside(&clusters, server, &others::taken(request.nodes))?;
    let keep = (request.merge && held.allows_all()).then(|| {
        let networks: Vec<&Networks> = clusters.iter().map(|c| &c.routes).collect();
        others::rule_for(request.nodes, &networks, server)
    });
    let wanted = held.with(&policy, keep.flatten());
    let openings = held.openings(&clusters);
    if wanted == held.whole && openings.is_empty() {
        return Ok(PolicyPlan::Unchanged { clusters });
    }
    let document = pretty(&wanted);
    let diff = diff::lines(&pretty(&held.whole), &document);
    let holds_others = !held.foreign.is_empty() || !held.strange.is_empty();
    if holds_others && !request.merge {
        return Ok(PolicyPlan::Foreign { what: held.foreign_in_words(), usurped: held.strange, diff });
    }
    if !openings.is_empty() {
        return Err(PolicyError::Opened { rules: openings });
    }
    let cuts_off = others::lost(&held.whole, &wanted, request.nodes);
    Ok(PolicyPlan::Apply { document, diff, clusters, cuts_off })
}

/// Judges what the server holds: whether it keeps these clusters, and all others that it knows, apart. `nodes` are the
/// server's, as far as they are known: without `via` grants the policy depends on which networks others serve.
///
/// # Errors
/// Those of [`compile`]; [`PolicyError::Unreadable`].
pub fn judge(
    current: Option<&str>,
    clusters: &[PolicyInput],
    server: ServerFeatures,
    nodes: &[Node],
) -> Result<PolicyVerdict, PolicyError> {
    let held = Document::read(current.unwrap_or_default())?;
    if held.allows_all() {
        return Ok(PolicyVerdict::AllowsAll);
    }
    let clusters = all_clusters(&held, &PolicyRequest { clusters, ..PolicyRequest::default() });
    let openings = held.openings(&clusters);
    if !openings.is_empty() {
        return Ok(PolicyVerdict::Opened { rules: openings });
    }
    let wanted = held.with(&compile_beside(&clusters, server, &others::taken(nodes))?, None);
    if wanted == held.whole {
        return Ok(PolicyVerdict::Isolates { clusters: clusters.len(), foreign: held.foreign_in_words() });
    }
    let known: BTreeSet<&ClusterId> = held.clusters.iter().map(|c| &c.cluster).collect();
    let unknown: Vec<&str> =
        clusters.iter().filter(|c| !known.contains(&c.cluster)).map(|c| c.cluster.as_str()).collect();
    let how = match unknown.as_slice() {
        [] => words::difference(&held.whole, &wanted),
        some => format!("it does not know {}", some.join(", ")),
    };
    Ok(PolicyVerdict::Differs { how })
}

/// Those asked for, and those that the document knows and nobody asked about.
fn all_clusters(held: &Document, request: &PolicyRequest<'_>) -> Vec<PolicyInput> {
    let asked: BTreeSet<&ClusterId> =
        request.clusters.iter().map(|c| &c.cluster).chain(request.forget.iter()).collect();
    let kept = held.clusters.iter().filter(|c| !asked.contains(&c.cluster));
    let mut all: Vec<PolicyInput> = kept.chain(request.clusters).cloned().collect();
    all.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    all
}

/// Indented JSON; nothing for an empty document, which is how the diff of a first policy shows only what comes.
fn pretty(document: &Value) -> String {
    if document.as_object().is_some_and(serde_json::Map::is_empty) {
        return String::new();
    }
    serde_json::to_string_pretty(document).expect("a JSON value has a JSON form")
}

/// The document with `tests` for the tags that have nodes: a client reaches its own routers, and neither the routers nor
/// the clients of any other cluster. For a check only, not to be stored: the server fails a test whose tag has no node, so
/// stored tests would refuse everybody's next write once a router is gone. Networks behind `via` are not evaluated by it.
pub(crate) fn with_tests(document: &str, clusters: &[PolicyInput], has_nodes: impl Fn(&str) -> bool) -> Option<String> {
    let present = |tag: String| has_nodes(&tag).then_some(tag);
    let to = |tag: String| format!("{tag}:443");
    let mut tests = Vec::new();
    for cluster in clusters.iter().map(|c| &c.cluster) {
        let Some(src) = present(cluster.client_tag()) else { continue };
        let accept: Vec<String> = present(cluster.router_tag()).map(to).into_iter().collect();
        let others = clusters.iter().map(|c| &c.cluster).filter(|other| *other != cluster);
        let deny: Vec<String> =
            others.flat_map(|o| [o.router_tag(), o.client_tag()]).filter_map(present).map(to).collect();
        if !accept.is_empty() || !deny.is_empty() {
            tests.push(json!({ "src": src, "accept": accept, "deny": deny }));
        }
    }
    if tests.is_empty() {
        return None;
    }
    let mut whole: Value = serde_json::from_str(document).ok()?;
    add(&mut whole, json!({ "tests": tests }));
    Some(whole.to_string())
}
