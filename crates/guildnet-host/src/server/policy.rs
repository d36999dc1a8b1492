//! The policy of the server: what it holds and would hold, and the one place that writes it and keeps what was replaced.

use std::fmt::Write as _;

use guildnet_headscale::{
    HeadscaleError, HeldPolicy, Node, PolicyApplied, PolicyChange, PolicyError, PolicyInput, PolicyPlan, PolicyRequest,
    PolicyVerdict, PolicyWriting, ServerFeatures, cut_off, judge, overlaps, plan, same_policy,
};
use guildnet_model::{Class, Explain as _, SiteNumber};
use guildnet_store::{ReplacedPolicy, Store};
use jiff::Timestamp;

use super::Server;
use crate::{HostError, Progress, error::Explained as _};

/// How many overlaps with other people's nodes are told of a cluster.
const TOLD: usize = 5;

/// What may be done to what others have on the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consent {
    /// Their rules are kept beside ours, and on a server without rules a rule for them is added. Otherwise rules of theirs
    /// stop the work.
    pub merge: bool,
    /// Their nodes may be cut off from each other.
    pub cut_off_others: bool,
}

impl From<bool> for Consent {
    fn from(merge: bool) -> Self {
        Self { merge, cut_off_others: false }
    }
}

impl Consent {
    pub(crate) fn request(self, clusters: &[PolicyInput]) -> PolicyRequest<'_> {
        let Self { merge, cut_off_others } = self;
        PolicyRequest { clusters, merge, cut_off_others, ..PolicyRequest::default() }
    }
}

/// Everything that is looked at when the policy is judged or planned.
pub(crate) struct Desk {
    pub(crate) features: ServerFeatures,
    pub(crate) held: HeldPolicy,
    pub(crate) nodes: Vec<Node>,
}

impl Desk {
    pub(crate) fn judge(&self, clusters: &[PolicyInput]) -> Result<PolicyVerdict, HostError> {
        judge(self.held.document.as_deref(), clusters, self.features, &self.nodes).explained()
    }

    pub(crate) fn plan(&self, clusters: &[PolicyInput], consent: Consent) -> Result<PolicyPlan, HostError> {
        let request = PolicyRequest { nodes: &self.nodes, ..consent.request(clusters) };
        plan(self.held.document.as_deref(), &request, self.features).explained()
    }
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RolledBack {
    /// The policy that was put back: when it had been replaced, and for what.
    pub(crate) undone: ReplacedPolicy,
    /// What it holds now.
    pub(crate) document: String,
}

impl Server {
    /// Whether its policy keeps these clusters, and those that it knows itself, apart.
    pub(crate) async fn policy(&self, clusters: &[PolicyInput]) -> Result<PolicyVerdict, HostError> {
        self.desk().await?.judge(clusters)
    }

    /// Policy, nodes and features, as they are now.
    pub(crate) async fn desk(&self) -> Result<Desk, HostError> {
        // First: without an API key this is the error that says so.
        let held = self.client.held_policy().await.explained()?;
        Ok(Desk { features: self.features().await?, nodes: self.nodes().await?, held })
    }

    /// The site number that a namespace's own number gives.
    pub(crate) async fn site_of(&self, namespace: &str) -> Result<Option<SiteNumber>, HostError> {
        let user = self.client.user(namespace).await.explained()?;
        Ok(user.and_then(|u| SiteNumber::try_from(u.id).ok()))
    }

    /// Has the server evaluate what it holds. `false`: there was nothing that it could evaluate.
    ///
    /// # Errors
    /// It says that the clusters are not apart.
    pub(crate) async fn evaluates(&self, desk: &Desk, clusters: &[PolicyInput]) -> Result<bool, HostError> {
        let Some(document) = desk.held.document.as_deref().filter(|_| desk.features.policy_tests) else {
            return Ok(false);
        };
        self.client.test_policy(document, clusters, &desk.nodes).await.explained()
    }

    /// Tells which of these clusters' networks other people's nodes have too, and what follows.
    pub(super) async fn tell_overlaps(
        &self,
        clusters: &[PolicyInput],
        features: ServerFeatures,
        progress: &dyn Progress,
    ) -> Result<(), HostError> {
        let nodes = self.nodes().await?;
        for cluster in clusters {
            let found = overlaps(&nodes, std::slice::from_ref(cluster));
            for overlap in found.iter().take(TOLD) {
                progress.step(Some(&cluster.cluster), &format!("warning: {}", overlap.in_words(features)));
            }
            if let Some(more @ 1..) = found.len().checked_sub(TOLD) {
                progress.step(Some(&cluster.cluster), &format!("warning: {more} more such routes"));
            }
        }
        Ok(())
    }

    /// Makes the policy as it is asked for: every write of it goes through here. What is replaced is kept in the store.
    ///
    /// # Errors
    /// See [`PolicyWriting::due`]; the store can't be written (nothing is written to the server then).
    pub(crate) async fn write_policy(
        &self,
        features: ServerFeatures,
        request: &PolicyRequest<'_>,
        what: &str,
    ) -> Result<PolicyApplied, HostError> {
        let explain = |why: HeadscaleError| refusal(&why, request);
        let mut writing = PolicyWriting::new(&self.client, features, request);
        while let Some(change) = writing.due().await.map_err(explain)? {
            self.kept(what, &change, async |c| writing.write(c).await.map_err(explain)).await?;
        }
        Ok(writing.applied())
    }

    /// Notes what a write replaces before it is done, and takes that back if it was not done. `false`: it was not, because
    /// somebody else wrote.
    async fn kept(
        &self,
        what: &str,
        change: &PolicyChange,
        write: impl AsyncFnOnce(&PolicyChange) -> Result<bool, HostError>,
    ) -> Result<bool, HostError> {
        let Some(home) = &self.history else { return write(change).await };
        let store = Store::open(home).await.explained()?;
        let replaced = ReplacedPolicy {
            server: self.url().clone(),
            at: Timestamp::now(),
            what: what.to_owned(),
            before: change.before.clone(),
            after: change.after.clone(),
        };
        let done = async {
            let number = store.add_replaced_policy(&replaced).await.explained()?;
            let written = write(change).await;
            // Without an answer it may have been written all the same: then the note stays, and a rollback compares.
            let unanswered = written.as_ref().is_err_and(|why| why.class() == Class::Unreachable);
            if !matches!(written, Ok(true)) && !unanswered {
                store.forget_replaced_policy(number).await.explained()?;
            }
            written
        }
        .await;
        store.close().await;
        done
    }

    /// Puts back what the last write of this device replaced.
    ///
    /// # Errors
    /// Nothing is kept; the server holds something else than this device wrote (without `discard_changes`); nodes of others
    /// would be cut off (without `cut_off_others`); the server refuses.
    pub(crate) async fn roll_back(&self, discard_changes: bool, cut_off_others: bool) -> Result<RolledBack, HostError> {
        let desk = self.desk().await?;
        let current = desk.held.document.as_deref();
        let kept = self.replaced_policies().await?;
        let undone = undoable(kept, current, discard_changes)?;
        // Headscale does not take an empty document before it is restarted; this one allows everything too.
        let after = undone.before.clone().filter(|d| !d.trim().is_empty()).unwrap_or_else(|| "{}".to_owned());
        let cut = cut_off(current, &after, &desk.nodes).explained()?;
        if !cut.is_empty() && !cut_off_others {
            let nodes = cut.iter().map(ToString::to_string).collect();
            return Err(HostError::explained(&PolicyError::CutsOff { nodes })
                .with_hint("run it with --cut-off-others if they shall be cut off"));
        }
        if desk.held.in_file {
            let refused = HeadscaleError::PolicyReadOnly { url: self.url().clone() };
            return Err(HostError::explained(&refused).with_hint(
                "put the former file back where Headscale runs, and reload it (systemctl reload headscale)",
            ));
        }
        let change = PolicyChange { before: desk.held.document.clone(), after, diff: String::new() };
        let written = self
            .kept("policy rollback", &change, async |c| {
                if self.client.policy().await.explained()? != c.before {
                    return Ok(false);
                }
                self.client.set_policy(&c.after).await.explained().map(|()| true)
            })
            .await?;
        let now = self.client.policy().await.explained()?;
        if !written || !same_policy(now.as_deref(), Some(&change.after)).explained()? {
            return Err(HostError::explained(&HeadscaleError::PolicyRace { url: self.url().clone(), times: 1 }));
        }
        Ok(RolledBack { undone, document: change.after })
    }

    /// The policies that this device replaced on the server, newest first.
    pub(crate) async fn replaced_policies(&self) -> Result<Vec<ReplacedPolicy>, HostError> {
        let Some(home) = self.history.as_ref().filter(|home| crate::fleet::has_store(home)) else { return Ok(vec![]) };
        let store = Store::open(home).await.explained()?;
        let kept = store.replaced_policies(self.url()).await.explained();
        store.close().await;
        kept
    }
}

/// Which replaced policy is put back: the newest whose successor the server holds; without regard to what it holds, the
/// newest.
fn undoable(
    kept: Vec<ReplacedPolicy>,
    current: Option<&str>,
    discard_changes: bool,
) -> Result<ReplacedPolicy, HostError> {
    let Some(newest) = kept.first().cloned() else {
        return Err(HostError::new(Class::NotFound, "no policy that was replaced from here is kept")
            .with_hint("see what would be applied: guildnet headscale policy diff"));
    };
    let is_held = |kept: &ReplacedPolicy| same_policy(Some(&kept.after), current);
    let mut held = None;
    for replaced in kept {
        if is_held(&replaced).unwrap_or(false) {
            held = Some(replaced);
            break;
        }
    }
    match held {
        Some(replaced) => Ok(replaced),
        None if discard_changes => Ok(newest),
        None => Err(HostError::new(
            Class::Conflict,
            format!("the server's policy is no longer the one that was written here at {} ({})", seconds(newest.at), newest.what),
        )
        .with_hint(
            "see what changed: guildnet headscale policy diff; to put the former policy back and lose what was changed since: \
             guildnet headscale policy rollback --discard-changes",
        )),
    }
}

/// A time without its fraction.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The error, with these clusters named in the commands of its hint: they may not be stored yet. For a policy that can't be written
/// from here: the command that prints the whole document, for whoever can put it there.
pub(crate) fn refusal(why: &HeadscaleError, request: &PolicyRequest<'_>) -> HostError {
    let error = HostError::explained(why);
    let mut named = String::new();
    for cluster in request.clusters {
        // Writing to a text can't fail.
        let _ = write!(named, " --cluster {}={}", cluster.cluster, cluster.routes);
        if let Some(site) = cluster.site {
            let _ = write!(named, "@{site}");
        }
    }
    let how = match why {
        HeadscaleError::PolicyReadOnly { .. } => {
            "put that document into the file which 'policy.path' in Headscale's configuration names, reload it there \
             (systemctl reload headscale, or SIGHUP) and run this command again. Or set 'policy.mode: database' there and restart it"
        }
        HeadscaleError::PolicyDenied { .. } => {
            "have whoever may change the policy put that document there, or give an API key that may: --headscale-api-key-file FILE. \
             Then run this command again"
        }
        _ => {
            let hint = error.hint().unwrap_or_default();
            return error.with_hint(hint.replace("policy diff --merge", &format!("policy diff --merge{named}")));
        }
    };
    let merge = if request.merge { " --merge" } else { "" };
    error.with_hint(format!("guildnet headscale policy show --compiled{merge}{named}\n{how}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(n: i64, before: Option<&str>, after: &str) -> ReplacedPolicy {
        ReplacedPolicy {
            server: "https://hs:8443".parse().expect("a URL"),
            at: Timestamp::from_second(n).expect("in range"),
            what: format!("change {n}"),
            before: before.map(str::to_owned),
            after: after.to_owned(),
        }
    }

    const A: &str = r#"{"acls": [], "groups": {"group:a": []}}"#;
    const B: &str = r#"{"acls": [], "groups": {"group:b": []}}"#;

    #[test]
    fn what_is_put_back_is_what_this_device_replaced() {
        let kept = || vec![replaced(2, Some(A), B), replaced(1, None, A)];
        let number = |current, discard| undoable(kept(), current, discard).map(|r| r.what);
        assert_eq!(number(Some(B), false), Ok("change 2".into()));
        // The last note is of a write that did not arrive.
        assert_eq!(number(Some(A), false), Ok("change 1".into()));
        let changed = Some(r#"{"acls": []}"#);
        let said = number(changed, false).expect_err("changed since");
        assert_eq!(said.class(), Class::Conflict);
        assert!(said.to_string().contains("change 2"), "{said}");
        assert!(said.hint().is_some_and(|h| h.contains("--discard-changes")));
        assert_eq!(number(changed, true), Ok("change 2".into()));
    }

    #[test]
    fn a_rollback_can_be_rolled_back() {
        let kept = vec![replaced(3, Some(B), A), replaced(2, Some(A), B)];
        assert_eq!(undoable(kept, Some(A), false).expect("the rollback").before.as_deref(), Some(B));
    }

    #[test]
    fn nothing_kept_is_not_found() {
        assert_eq!(undoable(vec![], None, true).expect_err("nothing").class(), Class::NotFound);
    }

    #[test]
    fn a_policy_in_a_file_names_the_command_that_prints_it_with_clusters_not_yet_stored() {
        let clusters = [PolicyInput {
            cluster: "a".parse().expect("an id"),
            routes: "10.96.0.0/16,10.244.0.0/16".parse().expect("networks"),
            site: "7".parse().ok(),
        }];
        let request = Consent { merge: true, cut_off_others: false }.request(&clusters);
        let url = "https://hs:8443".parse().expect("a URL");
        let said = refusal(&HeadscaleError::PolicyReadOnly { url }, &request);
        assert_eq!(said.class(), Class::Precondition);
        let hint = said.hint().expect("a hint");
        assert!(
            hint.starts_with(
                "guildnet headscale policy show --compiled --merge --cluster a=10.96.0.0/16,10.244.0.0/16@7\n"
            ),
            "{hint}"
        );
        assert!(hint.contains("policy.path") && hint.contains("reload"), "{hint}");
        let foreign = HeadscaleError::Policy(PolicyError::Foreign { what: vec!["groups".into()] });
        let hint = refusal(&foreign, &request).hint().expect("a hint");
        assert!(hint.contains("policy diff --merge --cluster a=10.96.0.0/16,10.244.0.0/16@7; "), "{hint}");
    }
}
