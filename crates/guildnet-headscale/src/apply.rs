//! Writes the policy: read, plan, write, read again, compare.
//!
//! Headscale has no conditional write before 0.30, so two devices that write at the same moment can undo each other. Each
//! looks once more right before it writes, reads back what it wrote, and starts again if its clusters are not in it, three
//! times at most. What is left is a write between our last look and our own: one round trip. `verify` sees what was lost so.

use std::collections::HashSet;

use crate::{
    Headscale, HeadscaleError, Node, PolicyError, PolicyInput, PolicyPlan, PolicyRequest, ServerFeatures,
    policy::{plan, with_tests},
};

/// How often it is tried: two devices that start together are apart after one or two rounds.
const TRIES: usize = 3;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyApplied {
    /// The lines that went and came; `None` if the server held it already.
    pub diff: Option<String>,
    /// All clusters that the policy keeps apart, other devices' included.
    pub clusters: Vec<PolicyInput>,
}

/// A write that is due: what the server holds, and what shall take its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChange {
    /// The document that goes; `None` if there never was one.
    pub before: Option<String>,
    /// The document that comes.
    pub after: String,
    /// The lines that go and come.
    pub diff: String,
}

/// The writing of a policy, step by step, so that a caller can note what is replaced before it is gone:
/// [`due`](Self::due) until it says `None`, and each time [`write`](Self::write).
#[derive(Debug)]
pub struct PolicyWriting<'a> {
    headscale: &'a Headscale,
    server: ServerFeatures,
    request: PolicyRequest<'a>,
    tries: usize,
    applied: PolicyApplied,
}

impl<'a> PolicyWriting<'a> {
    /// Nothing is asked or written yet.
    pub fn new(headscale: &'a Headscale, server: ServerFeatures, request: &PolicyRequest<'a>) -> Self {
        let applied = PolicyApplied { diff: None, clusters: vec![] };
        Self { headscale, server, request: *request, tries: 0, applied }
    }

    /// Looks at what the server holds now, and plans. `None`: it is as asked, and it stays so as far as can be known.
    ///
    /// Where the server can evaluate tests, it has done so for what is due, for the tags that have nodes.
    ///
    /// # Errors
    /// [`HeadscaleError::Policy`] if it can't be planned, others' rules and nodes included; [`HeadscaleError::PolicyLeaks`],
    /// [`HeadscaleError::PolicyRefused`], [`HeadscaleError::PolicyReadOnly`], [`HeadscaleError::PolicyDenied`];
    /// [`HeadscaleError::PolicyRace`] if it was written three times and each time undone.
    pub async fn due(&mut self) -> Result<Option<PolicyChange>, HeadscaleError> {
        let held = self.headscale.held_policy().await?;
        let nodes = self.headscale.nodes().await?;
        let request = PolicyRequest { nodes: &nodes, ..self.request };
        match plan(held.document.as_deref(), &request, self.server)? {
            PolicyPlan::Unchanged { clusters } => {
                self.applied.clusters = clusters;
                Ok(None)
            }
            PolicyPlan::Foreign { usurped, .. } if !usurped.is_empty() => {
                Err(PolicyError::Usurped { what: usurped }.into())
            }
            PolicyPlan::Foreign { what, .. } => Err(PolicyError::Foreign { what }.into()),
            PolicyPlan::Apply { cuts_off, .. } if !cuts_off.is_empty() && !request.cut_off_others => {
                Err(PolicyError::CutsOff { nodes: cuts_off.iter().map(ToString::to_string).collect() }.into())
            }
            PolicyPlan::Apply { document, diff, clusters, .. } => {
                if held.in_file {
                    return Err(HeadscaleError::PolicyReadOnly { url: self.headscale.url().clone() });
                }
                if self.tries == TRIES {
                    return Err(HeadscaleError::PolicyRace { url: self.headscale.url().clone(), times: TRIES });
                }
                if self.server.policy_tests {
                    self.headscale.test_policy(&document, &clusters, &nodes).await?;
                }
                Ok(Some(PolicyChange { before: held.document, after: document, diff }))
            }
        }
    }

    /// Writes it, unless somebody else wrote since it was planned: `false` then. Whether it stayed, the next
    /// [`due`](Self::due) finds out.
    ///
    /// # Errors
    /// Those of [`Headscale::set_policy`]; nothing was written then.
    /// # Cancellation
    /// One request: dropping the future leaves the old policy or the new one.
    pub async fn write(&mut self, change: &PolicyChange) -> Result<bool, HeadscaleError> {
        self.tries += 1;
        if self.headscale.policy().await? != change.before {
            return Ok(false);
        }
        self.headscale.set_policy(&change.after).await?;
        self.applied.diff.get_or_insert_with(|| change.diff.clone());
        Ok(true)
    }

    /// What was done, once nothing is due.
    pub fn applied(self) -> PolicyApplied {
        self.applied
    }
}

/// Makes the server's policy keep these clusters apart, beside those that it knows already.
///
/// # Errors
/// Those of [`PolicyWriting::due`] and [`PolicyWriting::write`].
/// # Cancellation
/// Each write is one request: dropping the future leaves the old policy or the new one.
pub async fn apply_policy(
    headscale: &Headscale,
    server: ServerFeatures,
    request: &PolicyRequest<'_>,
) -> Result<PolicyApplied, HeadscaleError> {
    let mut writing = PolicyWriting::new(headscale, server, request);
    while let Some(change) = writing.due().await? {
        writing.write(&change).await?;
    }
    Ok(writing.applied())
}

impl Headscale {
    /// Has the server evaluate a document against the nodes it has: whether a client of one of these clusters would reach
    /// another's nodes. `false`: none of them has nodes that could be asked about. Nothing is stored. Headscale 0.29 and later.
    ///
    /// # Errors
    /// [`HeadscaleError::PolicyLeaks`]; [`HeadscaleError::PolicyRefused`] if the document is wrong in another way.
    pub async fn test_policy(
        &self,
        document: &str,
        clusters: &[PolicyInput],
        nodes: &[Node],
    ) -> Result<bool, HeadscaleError> {
        let tags: HashSet<&str> = nodes.iter().flat_map(|n| n.tags.iter().map(String::as_str)).collect();
        let Some(tested) = with_tests(document, clusters, |tag| tags.contains(tag)) else { return Ok(false) };
        match self.check_policy(&tested).await {
            Err(HeadscaleError::PolicyRefused { said }) if said.contains("test(s) failed") => {
                Err(HeadscaleError::PolicyLeaks { said })
            }
            other => other.map(|()| true),
        }
    }
}
