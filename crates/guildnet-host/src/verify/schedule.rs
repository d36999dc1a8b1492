//! Runs checks: each as soon as those it needs have ended, all clusters at once, each bounded in time.
//!
//! Knows nothing of what the checks ask: the context is the caller's, and tests bring checks of their own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use guildnet_model::{BoxFuture, ClusterId};
use tokio::sync::watch;

use super::report::{CheckReport, ClusterReport, Outcome, Report};
use crate::Progress;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The Headscale server and its policy: asked once.
    Server,
    /// One cluster: asked for each.
    Cluster,
}

/// One question, as data.
pub(super) struct Check<C: 'static> {
    /// Its name, stable: people and programs refer to it.
    pub(super) id: &'static str,
    /// The question in words.
    pub(super) asks: &'static str,
    /// What it is about.
    pub(super) scope: Scope,
    /// Checks that must not have failed before it can be asked. They stand before it in the list; a cluster's check may
    /// need one of the server's, not the other way round.
    pub(super) needs: &'static [&'static str],
    /// How long it may take.
    pub(super) within: Duration,
    /// What to run when it took longer than that.
    pub(super) late_hint: &'static str,
    /// Asks it.
    pub(super) run: for<'a> fn(&'a C) -> BoxFuture<'a, Outcome>,
}

/// How checks ended, for those that need them: `true` if dependents may be asked.
type Ended = BTreeMap<&'static str, watch::Sender<Option<bool>>>;

/// Runs all checks and reports in the order of the list; each is told when it has ended.
///
/// # Cancellation
/// Dropping the future abandons the checks that run.
pub(super) async fn run_all<C: Sync>(
    checks: &[Check<C>],
    server: &C,
    clusters: &[(ClusterId, C)],
    progress: &dyn Progress,
) -> Report {
    let server_ended = board(checks, Scope::Server);
    let cluster_ended: Vec<Ended> = clusters.iter().map(|_| board(checks, Scope::Cluster)).collect();
    let nothing = Ended::new();
    let of_server = run_group(checks, Scope::Server, None, server, [&server_ended, &nothing], progress);
    let of_clusters = clusters.iter().zip(&cluster_ended).map(|((id, context), ended)| {
        run_group(checks, Scope::Cluster, Some(id), context, [ended, &server_ended], progress)
    });
    let (first, rest) = tokio::join!(of_server, join_all(of_clusters));
    Report::of(std::iter::once(first).chain(rest).collect())
}

fn board<C>(checks: &[Check<C>], scope: Scope) -> Ended {
    checks.iter().filter(|c| c.scope == scope).map(|c| (c.id, watch::Sender::new(None))).collect()
}

/// Runs the checks of one scope. `boards`: where its own results go, then where else needs are looked up.
async fn run_group<C>(
    checks: &[Check<C>],
    scope: Scope,
    id: Option<&ClusterId>,
    context: &C,
    boards: [&Ended; 2],
    progress: &dyn Progress,
) -> ClusterReport {
    let lines = join_all(checks.iter().filter(|c| c.scope == scope).map(|check| async move {
        let mut needs = Vec::with_capacity(check.needs.len());
        for need in check.needs {
            needs.push((*need, ended(boards, need).await));
        }
        let begun = Instant::now();
        let outcome = match blocked(&needs) {
            Some(skip) => skip,
            None => match tokio::time::timeout(check.within, (check.run)(context)).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::fail(format!("no result within {:?}", check.within), check.late_hint),
            },
        };
        if let Some(done) = boards[0].get(check.id) {
            done.send_replace(Some(outcome.lets_others_run()));
        }
        let cluster = id.map(ClusterId::as_str).unwrap_or_default();
        tracing::debug!(cluster, check = check.id, asks = check.asks, ?outcome, took = ?begun.elapsed(), "checked");
        let line = CheckReport::of(check.id, check.needs, outcome, begun.elapsed());
        if let Some(line) = &line {
            progress.step(id, &format!("{}: {}", line.id, line.result));
        }
        line
    }))
    .await;
    ClusterReport::of(id, lines.into_iter().flatten().collect())
}

/// Waits until a check has ended. One that is not in the list can't be needed: a test of the list sees to it.
async fn ended(boards: [&Ended; 2], need: &str) -> bool {
    let Some(board) = boards.iter().find_map(|b| b.get(need)) else { return false };
    let mut result = board.subscribe();
    // The sender lives as long as the board, so waiting ends with a value.
    let result = result.wait_for(Option::is_some).await.map(|seen| *seen);
    matches!(result, Ok(Some(true)))
}

/// Why a check can't be asked, from how the checks that it needs have ended.
fn blocked(needs: &[(&str, bool)]) -> Option<Outcome> {
    let missing: Vec<&str> = needs.iter().filter(|(_, ok)| !ok).map(|(id, _)| *id).collect();
    (!missing.is_empty()).then(|| Outcome::skip(format!("needs {}, which did not pass", missing.join(" and "))))
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    /// Outcomes by check id.
    type Script = BTreeMap<&'static str, Outcome>;

    /// A check of the name that answers as the script says; one that is not in the script never answers.
    macro_rules! scripted {
        ($id:literal, $scope:ident, $needs:expr) => {
            Check::<Script> {
                id: $id,
                asks: "?",
                scope: Scope::$scope,
                needs: $needs,
                within: Duration::from_millis(100),
                late_hint: "look at the log",
                run: |script| {
                    Box::pin(async move {
                        match script.get($id) {
                            Some(outcome) => outcome.clone(),
                            None => std::future::pending().await,
                        }
                    })
                },
            }
        };
    }

    const CHECKS: &[Check<Script>] = &[
        scripted!("server", Server, &[]),
        scripted!("first", Cluster, &["server"]),
        scripted!("second", Cluster, &["first"]),
        scripted!("apart", Cluster, &[]),
    ];

    fn script(entries: &[(&'static str, Outcome)]) -> Script {
        entries.iter().cloned().collect()
    }

    fn all_pass() -> Script {
        script(&[("first", Outcome::pass("")), ("second", Outcome::pass("")), ("apart", Outcome::pass(""))])
    }

    async fn verdicts(server: Outcome, clusters: Vec<Script>) -> Vec<(String, String, Verdict)> {
        let clusters: Vec<(ClusterId, Script)> =
            ["a", "b"].iter().map(|id| id.parse().expect("id")).zip(clusters).collect();
        let report = run_all(CHECKS, &script(&[("server", server)]), &clusters, &crate::Silent).await;
        let line =
            |c: &ClusterReport| c.checks.iter().map(|l| (c.id.clone(), l.id.clone(), l.result)).collect::<Vec<_>>();
        report.clusters.iter().flat_map(line).collect()
    }

    #[tokio::test]
    async fn what_a_failed_check_is_needed_for_is_skipped_and_nothing_else() {
        let mut a = all_pass();
        a.insert("first", Outcome::fail("gone", "run x"));
        let seen = verdicts(Outcome::pass(""), vec![a, all_pass()]).await;
        let of = |id: &str, check: &str| seen.iter().find(|(i, c, _)| i == id && c == check).expect("a line").2;
        assert_eq!(of("a", "first"), Verdict::Fail);
        assert_eq!(of("a", "second"), Verdict::Skip);
        assert_eq!(of("a", "apart"), Verdict::Pass);
        assert_eq!(of("b", "second"), Verdict::Pass);
    }

    #[tokio::test]
    async fn a_skip_is_passed_on() {
        let seen = verdicts(Outcome::fail("down", "start it"), vec![all_pass()]).await;
        let skipped: Vec<&str> = seen.iter().filter(|l| l.2 == Verdict::Skip).map(|l| l.1.as_str()).collect();
        assert_eq!(skipped, ["first", "second"]);
    }

    #[tokio::test]
    async fn what_is_not_required_blocks_nothing_and_has_no_line() {
        let seen = verdicts(Outcome::NotRequired { because: "no API key" }, vec![all_pass()]).await;
        assert_eq!(seen.iter().map(|l| l.1.as_str()).collect::<Vec<_>>(), ["first", "second", "apart"]);
        assert!(seen.iter().all(|l| l.2 == Verdict::Pass));
    }

    #[tokio::test]
    async fn a_check_that_does_not_end_fails_by_time_and_the_other_cluster_is_not_touched() {
        let mut a = all_pass();
        a.remove("first");
        let seen = verdicts(Outcome::pass(""), vec![a, all_pass()]).await;
        let failed: Vec<_> =
            seen.iter().filter(|l| l.2 == Verdict::Fail).map(|l| (l.0.as_str(), l.1.as_str())).collect();
        assert_eq!(failed, [("a", "first")]);
    }

    #[test]
    fn the_reason_of_a_skip_names_every_check_that_is_missing() {
        let Some(Outcome::Skip { because }) = blocked(&[("x", false), ("y", true), ("z", false)]) else {
            panic!("must be blocked");
        };
        assert_eq!(because, "needs x and z, which did not pass");
    }
}
