//! `headscale policy`: what the server holds, what would be written, writing it, judging it, and putting back what was
//! replaced. The clusters are those of the store, those that the server's policy knows, and those that are named.

use guildnet_headscale::{
    CutOff, PolicyError, PolicyInput, PolicyPlan, PolicyVerdict, ServerVersion, known_clusters, overlaps, same_policy,
};
use guildnet_model::{Class, ClusterId, Explain as _, Networks, SiteNumber};
use serde::Serialize;
use url::Url;

pub use crate::server::Consent;
use crate::{
    HostError, Progress, Settings,
    error::Explained as _,
    server::{Desk, Server, refusal, seconds},
    up::Known,
    verify::{self, CheckReport, ClusterReport, Outcome, Report},
};

/// A cluster that is named for the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyCluster {
    /// The cluster.
    pub id: ClusterId,
    /// Its networks.
    pub routes: Networks,
    /// Its site number; the one that is stored, or the namespace's number, if it is not given.
    pub site: Option<SiteNumber>,
}

/// The policy of the server, as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyShown {
    /// The server.
    pub server: Url,
    /// Its release.
    pub version: ServerVersion,
    /// Whether it reads the policy from a file and can't be given one.
    pub in_file: bool,
    /// What the policy does: `isolates`, `allows-all`, `opened` or `differs`.
    pub verdict: &'static str,
    /// The same in words.
    pub seen: String,
    /// The clusters that it knows.
    pub clusters: Vec<PolicyClusterShown>,
    /// What it holds of others, in words.
    pub foreign: Vec<String>,
    /// What bears GuildNet's names and was not written by GuildNet, in words.
    pub usurped: Vec<String>,
    /// What was replaced from this device, newest first.
    pub replaced: Vec<ReplacedShown>,
    /// The document, as it was written; `None` if there is none.
    pub document: Option<String>,
}

/// A cluster that the server's policy knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyClusterShown {
    /// The cluster.
    pub id: ClusterId,
    /// Its networks there.
    pub routes: Networks,
    /// Its site number, on servers that need one.
    pub site: Option<SiteNumber>,
    /// Whether this device has it.
    pub stored: bool,
}

/// A policy that was replaced from this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplacedShown {
    /// When.
    pub at: String,
    /// For what.
    pub what: String,
    /// Whether the server still holds what came in its place.
    pub current: bool,
}

/// What `policy apply` would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDiff {
    /// The lines that would go and come; empty if nothing would change.
    pub lines: String,
    /// Why `policy apply` would refuse.
    pub refusal: Option<HostError>,
}

/// What `policy apply` or `policy rollback` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDone {
    /// The lines that went and came; `None` if nothing was changed.
    pub diff: Option<String>,
    /// What was done, in words.
    pub said: String,
}

/// The server, what it holds now, and the clusters that the policy shall know.
struct Work {
    server: Server,
    desk: Desk,
    known: Known,
    clusters: Vec<PolicyInput>,
}

impl Work {
    async fn begin(settings: &Settings, named: &[PolicyCluster]) -> Result<Self, HostError> {
        let known = Known::read(settings).await?;
        let server = known.server(settings)?.ok_or_else(|| {
            HostError::new(Class::Usage, "no Headscale server is known")
                .with_hint("give one: --headscale-url https://HOST:PORT --headscale-api-key-file FILE")
        })?;
        let desk = server.desk().await?;
        let mut clusters = stored(&known, server.url(), named);
        for cluster in named {
            let kept = known.record(&cluster.id).filter(|r| r.login_server == *server.url()).and_then(|r| r.site);
            let site = match cluster.site.or(kept) {
                Some(site) => Some(site),
                None => server.site_of(&cluster.id.namespace()).await?,
            };
            clusters.push(PolicyInput { cluster: cluster.id.clone(), routes: cluster.routes.clone(), site });
        }
        Ok(Self { server, desk, known, clusters })
    }

    /// A policy for no cluster at all would close the server for everybody.
    fn is_about_something(&self) -> Result<(), HostError> {
        if self.clusters.is_empty() && known_clusters(self.desk.held.document.as_deref()).explained()?.is_empty() {
            return Err(HostError::new(
                Class::NotFound,
                "no cluster is known for this policy, neither here nor on the server",
            )
            .with_hint("add one: guildnet up --cluster ID=KUBECONFIG; or name it: --cluster ID=CIDR,..."));
        }
        Ok(())
    }
}

/// The clusters of the store that this server serves, without those that are named.
fn stored(known: &Known, server: &Url, named: &[PolicyCluster]) -> Vec<PolicyInput> {
    let of_server = known.records.iter().filter(|r| r.login_server == *server);
    of_server
        .filter(|r| !named.iter().any(|n| n.id == r.id))
        .map(|r| PolicyInput { cluster: r.id.clone(), routes: r.routes.clone(), site: r.site })
        .collect()
}

/// See [`crate::policy_show`].
pub(crate) async fn policy_show(settings: &Settings) -> Result<PolicyShown, HostError> {
    let work = Work::begin(settings, &[]).await?;
    let document = work.desk.held.document.clone();
    // Clusters that contradict each other are shown too; no policy fits them.
    let verdict =
        work.desk.judge(&work.clusters).unwrap_or_else(|why| PolicyVerdict::Differs { how: why.message().to_owned() });
    let (foreign, usurped) = match work.desk.plan(&work.clusters, Consent::default()) {
        Ok(PolicyPlan::Foreign { what, usurped, .. }) => (what, usurped),
        _ => (vec![], vec![]),
    };
    let foreign = match &verdict {
        PolicyVerdict::Isolates { foreign, .. } => foreign.clone(),
        _ => foreign,
    };
    let knows = known_clusters(document.as_deref()).explained()?;
    let clusters = knows.into_iter().map(|c| PolicyClusterShown {
        stored: work.known.record(&c.cluster).is_some_and(|r| r.login_server == *work.server.url()),
        id: c.cluster,
        routes: c.routes,
        site: c.site,
    });
    let replaced = work.server.replaced_policies().await?.into_iter().map(|r| ReplacedShown {
        current: same_policy(Some(&r.after), document.as_deref()).unwrap_or(false),
        at: seconds(r.at),
        what: r.what,
    });
    Ok(PolicyShown {
        server: work.server.url().clone(),
        version: work.server.info().await?.version,
        in_file: work.desk.held.in_file,
        verdict: word(&verdict),
        seen: in_words(&verdict),
        clusters: clusters.collect(),
        foreign,
        usurped,
        replaced: replaced.collect(),
        document,
    })
}

fn word(verdict: &PolicyVerdict) -> &'static str {
    match verdict {
        PolicyVerdict::Isolates { .. } => "isolates",
        PolicyVerdict::AllowsAll => "allows-all",
        PolicyVerdict::Opened { .. } => "opened",
        PolicyVerdict::Differs { .. } => "differs",
    }
}

fn in_words(verdict: &PolicyVerdict) -> String {
    match verify::policy_outcome(verdict) {
        Outcome::Pass { seen } | Outcome::Warn { seen, .. } | Outcome::Fail { seen, .. } => seen,
        Outcome::Skip { because } => because,
        Outcome::NotRequired { because } => because.to_owned(),
    }
}

/// See [`crate::policy_compiled`].
pub(crate) async fn policy_compiled(
    settings: &Settings,
    named: &[PolicyCluster],
    consent: Consent,
) -> Result<String, HostError> {
    let work = Work::begin(settings, named).await?;
    work.is_about_something()?;
    match work.desk.plan(&work.clusters, consent)? {
        PolicyPlan::Unchanged { .. } => Ok(work.desk.held.document.unwrap_or_default()),
        PolicyPlan::Apply { cuts_off, .. } if !cuts_off.is_empty() && !consent.cut_off_others => {
            Err(cuts_off_error(&work, consent, &cuts_off))
        }
        PolicyPlan::Apply { document, .. } => Ok(document),
        PolicyPlan::Foreign { what, usurped, .. } => Err(foreign_error(&work, consent, what, usurped)),
    }
}

fn cuts_off_error(work: &Work, consent: Consent, cuts_off: &[CutOff]) -> HostError {
    let nodes = cuts_off.iter().map(ToString::to_string).collect();
    refusal(&PolicyError::CutsOff { nodes }.into(), &consent.request(&work.clusters))
}

fn foreign_error(work: &Work, consent: Consent, what: Vec<String>, usurped: Vec<String>) -> HostError {
    let why = if usurped.is_empty() { PolicyError::Foreign { what } } else { PolicyError::Usurped { what: usurped } };
    refusal(&why.into(), &consent.request(&work.clusters))
}

/// See [`crate::policy_diff`].
pub(crate) async fn policy_diff(
    settings: &Settings,
    named: &[PolicyCluster],
    consent: Consent,
) -> Result<PolicyDiff, HostError> {
    let work = Work::begin(settings, named).await?;
    work.is_about_something()?;
    Ok(match work.desk.plan(&work.clusters, consent)? {
        PolicyPlan::Unchanged { .. } => PolicyDiff { lines: String::new(), refusal: None },
        PolicyPlan::Foreign { what, usurped, diff } => {
            PolicyDiff { lines: diff, refusal: Some(foreign_error(&work, consent, what, usurped)) }
        }
        PolicyPlan::Apply { diff, cuts_off, .. } => {
            let refused = !cuts_off.is_empty() && !consent.cut_off_others;
            PolicyDiff { lines: diff, refusal: refused.then(|| cuts_off_error(&work, consent, &cuts_off)) }
        }
    })
}

/// See [`crate::policy_apply`].
pub(crate) async fn policy_apply(
    settings: &Settings,
    named: &[PolicyCluster],
    consent: Consent,
    progress: &dyn Progress,
) -> Result<PolicyDone, HostError> {
    let work = Work::begin(settings, named).await?;
    work.is_about_something()?;
    for (cluster, said) in overlaps_of(&work.desk, &work.clusters) {
        progress.step(Some(&cluster), &format!("warning: {said}"));
    }
    let request = consent.request(&work.clusters);
    let applied = work.server.write_policy(work.desk.features, &request, "policy apply").await?;
    let count = applied.clusters.len();
    let did = if applied.diff.is_some() { "applied" } else { "unchanged" };
    let said = format!("policy {did}: {count} cluster{} kept apart", if count == 1 { "" } else { "s" });
    Ok(PolicyDone { diff: applied.diff, said })
}

fn overlaps_of(desk: &Desk, clusters: &[PolicyInput]) -> Vec<(ClusterId, String)> {
    let found = overlaps(&desk.nodes, clusters);
    found.into_iter().map(|o| (o.cluster.clone(), o.in_words(desk.features))).collect()
}

/// See [`crate::policy_check`].
pub(crate) async fn policy_check(settings: &Settings) -> Result<Report, HostError> {
    let work = Work::begin(settings, &[]).await?;
    let mut checks = vec![("policy.isolates", verify::policy_outcome(&work.desk.judge(&work.clusters)?))];
    if let Ok(PolicyPlan::Foreign { usurped, .. }) = work.desk.plan(&work.clusters, Consent::default()) {
        let each = usurped.into_iter().map(|what| {
            let seen = format!("GuildNet's tags are used for what GuildNet did not write: {what}");
            (
                "policy.names",
                Outcome::fail(
                    seen,
                    "guildnet headscale policy diff --merge, then: guildnet headscale policy apply --merge",
                ),
            )
        });
        checks.extend(each);
    }
    let all = all_clusters(&work)?;
    checks.push((
        "policy.tests",
        tested(work.server.evaluates(&work.desk, &all).await, work.desk.features.policy_tests)?,
    ));
    for (cluster, said) in overlaps_of(&work.desk, &all) {
        let hint = "give the cluster or that node other networks, or upgrade Headscale to 0.29 or later";
        checks.push(("policy.overlap", Outcome::warn(format!("cluster {cluster}: {said}"), hint)));
    }
    let line = |(id, outcome)| CheckReport::of(id, &[], outcome, std::time::Duration::ZERO);
    Ok(Report::of(vec![ClusterReport::of(None, checks.into_iter().filter_map(line).collect())]))
}

/// Those of the store and those that the server's policy knows.
fn all_clusters(work: &Work) -> Result<Vec<PolicyInput>, HostError> {
    let mut all = work.clusters.clone();
    for known in known_clusters(work.desk.held.document.as_deref()).explained()? {
        if !all.iter().any(|c| c.cluster == known.cluster) {
            all.push(known);
        }
    }
    Ok(all)
}

fn tested(seen: Result<bool, HostError>, server_can: bool) -> Result<Outcome, HostError> {
    match seen {
        Ok(true) => Ok(Outcome::pass("the server's own evaluation agrees: no client reaches another cluster's nodes")),
        Ok(false) if !server_can => Ok(Outcome::NotRequired { because: "Headscale evaluates policies since 0.29" }),
        Ok(false) => Ok(Outcome::NotRequired { because: "no node has joined that the server could evaluate it for" }),
        Err(why) if why.class() == Class::Unreachable => Err(why),
        Err(why) => {
            Ok(Outcome::fail(why.message(), why.hint().unwrap_or_else(|| "guildnet headscale policy diff".to_owned())))
        }
    }
}

/// See [`crate::policy_rollback`].
pub(crate) async fn policy_rollback(
    settings: &Settings,
    discard_changes: bool,
    cut_off_others: bool,
    progress: &dyn Progress,
) -> Result<PolicyDone, HostError> {
    let work = Work::begin(settings, &[]).await?;
    let done = work.server.roll_back(discard_changes, cut_off_others).await?;
    let desk = work.server.desk().await?;
    match desk.judge(&work.clusters) {
        Ok(PolicyVerdict::Isolates { .. }) => {}
        Ok(other) => progress.step(None, &format!("warning: {}", in_words(&other))),
        Err(why) => progress.step(None, &format!("warning: {}", why.message())),
    }
    let diff = guildnet_headscale::policy_diff(work.desk.held.document.as_deref(), Some(&done.document)).explained()?;
    let said = format!("the policy from before {} ({}) is in place again", seconds(done.undone.at), done.undone.what);
    Ok(PolicyDone { diff: Some(diff), said })
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod operations;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_evaluation_is_not_required_where_there_is_none() {
        assert!(matches!(tested(Ok(true), true), Ok(Outcome::Pass { .. })));
        assert!(matches!(tested(Ok(false), true), Ok(Outcome::NotRequired { .. })));
        assert!(matches!(tested(Ok(false), false), Ok(Outcome::NotRequired { .. })));
        let leaks = HostError::new(Class::Conflict, "expected DENIED").with_hint("take it out");
        assert_eq!(tested(Err(leaks), true), Ok(Outcome::fail("expected DENIED", "take it out")));
        let gone = HostError::new(Class::Unreachable, "no answer");
        assert_eq!(tested(Err(gone.clone()), true), Err(gone));
    }

    #[test]
    fn each_verdict_has_a_word_and_words() {
        let cases = [
            (PolicyVerdict::Isolates { clusters: 1, foreign: vec![] }, "isolates", "keeps 1 cluster apart"),
            (PolicyVerdict::AllowsAll, "allows-all", "lets every node reach every other"),
            (PolicyVerdict::Opened { rules: vec!["{}".into()] }, "opened", "let clusters reach each other"),
            (PolicyVerdict::Differs { how: "1 line missing".into() }, "differs", "1 line missing"),
        ];
        for (verdict, short, long) in cases {
            assert_eq!(word(&verdict), short);
            assert!(in_words(&verdict).contains(long), "{}", in_words(&verdict));
        }
    }
}
