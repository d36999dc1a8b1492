//! Writes the policy: read, plan, write, read again, compare.
//!
//! Headscale has no conditional write before 0.30, so two devices that write at the same moment can undo each other. Each
//! reads back what it wrote and starts again if its clusters are not in it, three times at most.

use std::collections::HashSet;

use crate::{
    Headscale, HeadscaleError, PolicyError, PolicyInput, PolicyPlan, PolicyRequest, ServerFeatures,
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

/// Makes the server's policy keep these clusters apart, beside those that it knows already.
///
/// Where the server can evaluate tests, it does so before anything is written, for the tags that have nodes.
///
/// # Errors
/// [`HeadscaleError::Policy`] if it can't be planned, others' rules included; [`HeadscaleError::PolicyLeaks`],
/// [`HeadscaleError::PolicyRefused`], [`HeadscaleError::PolicyReadOnly`]; [`HeadscaleError::PolicyRace`].
/// # Cancellation
/// Each write is one request: dropping the future leaves the old policy or the new one.
pub async fn apply_policy(
    headscale: &Headscale,
    server: ServerFeatures,
    request: &PolicyRequest<'_>,
) -> Result<PolicyApplied, HeadscaleError> {
    let mut applied_diff: Option<String> = None;
    for _ in 0..TRIES {
        let current = headscale.policy().await?;
        match plan(current.as_deref(), request, server)? {
            PolicyPlan::Unchanged { clusters } => return Ok(PolicyApplied { diff: applied_diff, clusters }),
            PolicyPlan::Foreign { what, .. } => return Err(PolicyError::Foreign { what }.into()),
            PolicyPlan::Apply { document, diff, clusters } => {
                if server.policy_tests {
                    test(headscale, &document, &clusters).await?;
                }
                headscale.set_policy(&document).await?;
                applied_diff.get_or_insert(diff);
                let read_back = headscale.policy().await?;
                if let PolicyPlan::Unchanged { clusters } = plan(read_back.as_deref(), request, server)? {
                    return Ok(PolicyApplied { diff: applied_diff, clusters });
                }
            }
        }
    }
    Err(HeadscaleError::PolicyRace { url: headscale.url().clone(), times: TRIES })
}

/// Has the server evaluate the document against the nodes it has.
async fn test(headscale: &Headscale, document: &str, clusters: &[PolicyInput]) -> Result<(), HeadscaleError> {
    let nodes = headscale.nodes().await?;
    let tags: HashSet<&str> = nodes.iter().flat_map(|n| n.tags.iter().map(String::as_str)).collect();
    let Some(tested) = with_tests(document, clusters, |tag| tags.contains(tag)) else { return Ok(()) };
    match headscale.check_policy(&tested).await {
        Err(HeadscaleError::PolicyRefused { said }) if said.contains("test(s) failed") => {
            Err(HeadscaleError::PolicyLeaks { said })
        }
        other => other,
    }
}
