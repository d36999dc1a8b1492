//! What verify found, as data: the JSON that it prints, its counts and whether it is a success.

use std::{fmt, time::Duration};

use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked holds.
    Pass {
        /// What was observed.
        seen: String,
    },
    /// It holds, in a way that deserves attention.
    Warn {
        /// What was observed.
        seen: String,
        /// The command that mends it.
        hint: String,
    },
    /// It does not hold.
    Fail {
        /// What was observed.
        seen: String,
        /// The command that mends it.
        hint: String,
    },
    /// It could not be asked: something that it needs failed. Never a pass.
    Skip {
        /// Why.
        because: String,
    },
    /// It can't apply here. Not counted.
    NotRequired {
        /// Why.
        because: &'static str,
    },
}

impl Outcome {
    pub(crate) fn pass(seen: impl Into<String>) -> Self {
        Self::Pass { seen: seen.into() }
    }

    pub(crate) fn warn(seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Warn { seen: seen.into(), hint: hint.into() }
    }

    pub(crate) fn fail(seen: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Fail { seen: seen.into(), hint: hint.into() }
    }

    pub(crate) fn skip(because: impl Into<String>) -> Self {
        Self::Skip { because: because.into() }
    }

    /// Whether checks that need this one may be asked.
    pub(crate) fn lets_others_run(&self) -> bool {
        matches!(self, Self::Pass { .. } | Self::Warn { .. } | Self::NotRequired { .. })
    }
}

/// The word for how a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It holds, with a remark.
    Warn,
    /// It does not hold.
    Fail,
    /// It could not be asked.
    Skip,
}

/// One check of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// The check's name, like `headscale.reachable`.
    pub id: String,
    /// How it ended.
    pub result: Verdict,
    /// The checks that it needs.
    pub needs: Vec<String>,
    /// What was observed, or why it was skipped.
    pub seen: String,
    /// The command that mends it; empty for a pass.
    pub hint: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// The checks of one cluster, or of the server (empty id).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterReport {
    /// The cluster's id; empty for what concerns no single cluster.
    pub id: String,
    /// Its checks, in the order of the list of checks.
    pub checks: Vec<CheckReport>,
}

/// What verify found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Nothing failed and nothing was skipped.
    pub success: bool,
    /// Checks that passed.
    pub passed: usize,
    /// Checks that passed with a remark.
    pub warned: usize,
    /// Checks that failed.
    pub failed: usize,
    /// Checks that could not be asked.
    pub skipped: usize,
    /// The checks, by cluster; those of no cluster first, under the empty id.
    pub clusters: Vec<ClusterReport>,
}

impl Report {
    /// Counts and judges. Checks that are not required have been left out by the caller.
    pub(crate) fn of(clusters: Vec<ClusterReport>) -> Self {
        let count = |verdict| clusters.iter().flat_map(|c| &c.checks).filter(|c| c.result == verdict).count();
        let (failed, skipped) = (count(Verdict::Fail), count(Verdict::Skip));
        Self {
            success: failed == 0 && skipped == 0,
            passed: count(Verdict::Pass),
            warned: count(Verdict::Warn),
            failed,
            skipped,
            clusters,
        }
    }

    /// The closing line: `N passed, N warned, N failed, N skipped`.
    pub fn summary(&self) -> String {
        format!("{} passed, {} warned, {} failed, {} skipped", self.passed, self.warned, self.failed, self.skipped)
    }
}

impl CheckReport {
    /// The line of an outcome; `None` if it is not required.
    pub(crate) fn of(id: &str, needs: &[&str], outcome: Outcome, took: Duration) -> Option<Self> {
        let (result, seen, hint) = match outcome {
            Outcome::Pass { seen } => (Verdict::Pass, seen, String::new()),
            Outcome::Warn { seen, hint } => (Verdict::Warn, seen, hint),
            Outcome::Fail { seen, hint } => (Verdict::Fail, seen, hint),
            Outcome::Skip { because } => (Verdict::Skip, because, String::new()),
            Outcome::NotRequired { .. } => return None,
        };
        Some(Self {
            id: id.to_owned(),
            result,
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            seen,
            hint,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

impl ClusterReport {
    /// The group of a cluster, or of the server.
    pub(crate) fn of(cluster: Option<&ClusterId>, checks: Vec<CheckReport>) -> Self {
        Self { id: cluster.map(ToString::to_string).unwrap_or_default(), checks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(outcome: Outcome) -> CheckReport {
        CheckReport::of("x", &[], outcome, Duration::from_millis(3)).expect("required")
    }

    fn report(outcomes: Vec<Outcome>) -> Report {
        Report::of(vec![ClusterReport { id: "a".into(), checks: outcomes.into_iter().map(line).collect() }])
    }

    #[test]
    fn a_skip_is_no_success() {
        assert!(!report(vec![Outcome::pass("ok"), Outcome::skip("no control")]).success);
    }

    #[test]
    fn a_fail_is_no_success() {
        assert!(!report(vec![Outcome::pass("ok"), Outcome::fail("gone", "run x")]).success);
    }

    #[test]
    fn a_warning_is_a_success_and_is_counted() {
        let report = report(vec![Outcome::pass("ok"), Outcome::warn("relay", "open UDP")]);
        assert!(report.success);
        assert_eq!(report.summary(), "1 passed, 1 warned, 0 failed, 0 skipped");
    }

    #[test]
    fn what_is_not_required_has_no_line() {
        assert_eq!(CheckReport::of("x", &[], Outcome::NotRequired { because: "one cluster" }, Duration::ZERO), None);
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let json = serde_json::to_value(report(vec![Outcome::fail("gone", "run x")])).expect("serialisable");
        assert_eq!(
            json,
            serde_json::json!({
                "success": false, "passed": 0, "warned": 0, "failed": 1, "skipped": 0,
                "clusters": [{"id": "a", "checks": [
                    {"id": "x", "result": "fail", "needs": [], "seen": "gone", "hint": "run x", "ms": 3}
                ]}]
            })
        );
    }
}
