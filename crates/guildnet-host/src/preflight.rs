//! Whether a cluster can be GuildNet's, asked before anything of it is changed. The judgement is `guildnet-kube`'s; here it
//! becomes words, or an error that stops.

use guildnet_kube::{
    ApiServer,
    preflight::{self, Finding, Subject, Verdict},
};
use guildnet_model::{Class, ClusterId};

use crate::{HostError, Progress, error::Explained as _};

/// What is about to be done with the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Routers are to run in it.
    Routers,
    /// It is only noted; its routers are another command's.
    Record,
}

/// Looks at the cluster and tells warnings.
///
/// # Errors
/// The cluster can't be asked, or something is in the way of `purpose` (class [`Class::Precondition`]).
pub(crate) async fn check(
    api: &ApiServer,
    id: &ClusterId,
    purpose: Purpose,
    progress: &dyn Progress,
) -> Result<(), HostError> {
    let facts = api.facts().await.explained()?;
    let (warnings, stop) = weigh(&preflight::judge(&facts, id), purpose);
    for line in warnings {
        progress.step(Some(id), &line);
    }
    stop.map_or(Ok(()), Err)
}

/// The lines to tell, and the error if something is in the way.
fn weigh(findings: &[Finding], purpose: Purpose) -> (Vec<String>, Option<HostError>) {
    let stops = |f: &&Finding| {
        // Nodes may come up later; what is only noted needs none now.
        f.verdict == Verdict::Fail && (purpose == Purpose::Routers || f.subject != Subject::Nodes)
    };
    let (failed, rest): (Vec<&Finding>, Vec<&Finding>) = findings.iter().partition(stops);
    let warnings = rest.iter().filter(|f| f.verdict != Verdict::Pass);
    let warnings = warnings.map(|f| format!("warning: {} ({})", f.seen, f.hint)).collect();
    let error = failed.first().map(|first| {
        let seen: Vec<&str> = failed.iter().map(|f| f.seen.as_str()).collect();
        HostError::new(Class::Precondition, seen.join("; ")).with_hint(first.hint.clone())
    });
    (warnings, error)
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn finding(subject: Subject, verdict: Verdict, seen: &str) -> Finding {
        Finding { subject, verdict, seen: seen.into(), hint: "mend it".into() }
    }

    #[test]
    fn what_fails_stops_with_the_precondition_class_and_the_rest_is_told() {
        let findings = [
            finding(Subject::Version, Verdict::Pass, "v1.34"),
            finding(Subject::Storage, Verdict::Warn, "no class"),
            finding(Subject::Nodes, Verdict::Fail, "no node"),
        ];
        let (told, stop) = weigh(&findings, Purpose::Routers);
        assert_eq!(told, ["warning: no class (mend it)"]);
        let stop = stop.expect("an error");
        assert_eq!((stop.class().exit_code(), stop.message(), stop.hint()), (8, "no node", Some("mend it".into())));
    }

    #[test]
    fn nodes_are_not_needed_to_note_a_cluster() {
        let (told, stop) = weigh(&[finding(Subject::Nodes, Verdict::Fail, "no node")], Purpose::Record);
        assert_eq!(told, ["warning: no node (mend it)"]);
        assert_eq!(stop, None);
        let (_, stop) = weigh(&[finding(Subject::Version, Verdict::Fail, "too old")], Purpose::Record);
        assert!(stop.is_some());
    }
}
