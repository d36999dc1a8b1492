//! Verify's report for reading: a line a check by cluster, then what to do, then the closing line alone.
//! Pure; `print.rs` writes it.

use std::fmt::Write;

use guildnet_host::verify::{CheckReport, Report, Verdict};

use crate::talk::Style;

/// How marks look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    pass: &'static str,
    warn: &'static str,
    fail: &'static str,
    skip: &'static str,
}

impl Marks {
    const UNICODE: Self = Self { pass: "✓", warn: "!", fail: "✗", skip: "-" };
    const ASCII: Self = Self { pass: "ok", warn: "warn", fail: "FAIL", skip: "skip" };

    /// By the locale, as C programs choose: `LC_ALL`, else `LC_CTYPE`, else `LANG`.
    pub(crate) fn of_locale() -> Self {
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()));
        let utf8 = locale.is_some_and(|l| {
            let l = l.to_ascii_lowercase();
            l.ends_with("utf-8") || l.ends_with("utf8")
        });
        if utf8 { Self::UNICODE } else { Self::ASCII }
    }

    fn of(self, verdict: Verdict, style: Style) -> String {
        // Padded before it is coloured: escape sequences have no width.
        let width = self.fail.chars().count();
        let pad = |mark: &str| format!("{mark:width$}");
        match verdict {
            Verdict::Pass => style.green(&pad(self.pass)),
            Verdict::Warn => style.yellow(&pad(self.warn)),
            Verdict::Fail => style.red(&pad(self.fail)),
            Verdict::Skip => style.dim(&pad(self.skip)),
        }
    }
}

/// The report as text. `wide` adds how long each check took and what it needs.
pub(crate) fn render(report: &Report, wide: bool, marks: Marks, style: Style) -> String {
    let mut text = String::new();
    let width = report.clusters.iter().flat_map(|c| &c.checks).map(|c| c.id.len()).max().unwrap_or(0);
    for cluster in &report.clusters {
        if cluster.checks.is_empty() {
            if !cluster.id.is_empty() {
                let said = "disconnected on request: nothing is required of it";
                let _infallible = writeln!(text, "{}\n  {said}", style.bold(&cluster.id));
            }
            continue;
        }
        let heading = if cluster.id.is_empty() { "server" } else { &cluster.id };
        let _infallible = writeln!(text, "{}", style.bold(heading));
        for check in &cluster.checks {
            let _infallible = writeln!(text, "  {} {}", marks.of(check.result, style), line(check, width, wide));
        }
    }
    let hints = hints(report);
    if !hints.is_empty() {
        let _infallible = writeln!(text, "\n{}", style.bold("what to do"));
        for hint in hints {
            let _infallible = writeln!(text, "  {hint}");
        }
    }
    let _infallible = writeln!(text, "\n{}", report.summary());
    text
}

fn line(check: &CheckReport, width: usize, wide: bool) -> String {
    let seen = check.seen.replace('\n', " ");
    if !wide {
        return format!("{:width$}  {seen}", check.id);
    }
    let needs = if check.needs.is_empty() { String::new() } else { format!("  (needs {})", check.needs.join(", ")) };
    format!("{:width$}  {:>6} ms  {seen}{needs}", check.id, check.ms)
}

/// One line for each different hint of what failed or warned, failures first, with the checks that it mends.
fn hints(report: &Report) -> Vec<String> {
    let mut found: Vec<(&str, Vec<String>)> = Vec::new();
    for wanted in [Verdict::Fail, Verdict::Warn] {
        for cluster in &report.clusters {
            for check in cluster.checks.iter().filter(|c| c.result == wanted && !c.hint.is_empty()) {
                let of = if cluster.id.is_empty() { check.id.clone() } else { format!("{} {}", cluster.id, check.id) };
                match found.iter_mut().find(|(hint, _)| *hint == check.hint) {
                    Some((_, checks)) => checks.push(of),
                    None => found.push((&check.hint, vec![of])),
                }
            }
        }
    }
    found.into_iter().map(|(hint, checks)| format!("{}: {}", checks.join(", "), hint.replace('\n', " "))).collect()
}

#[cfg(test)]
mod tests {
    use guildnet_host::verify::ClusterReport;

    use super::*;

    fn check(id: &str, result: Verdict, seen: &str, hint: &str) -> CheckReport {
        CheckReport {
            id: id.into(),
            result,
            needs: vec!["connector.ready".into()],
            seen: seen.into(),
            hint: hint.into(),
            ms: 12,
        }
    }

    /// Every outcome, for the server and two clusters.
    fn every_outcome() -> Report {
        let of = |id: &str| ClusterReport {
            id: id.into(),
            checks: vec![
                check("connector.path", Verdict::Warn, "relay only", "open UDP between the device and the cluster"),
                check("kube.readyz", Verdict::Fail, "10.96.0.1:443 did not answer within 5s", "start the API server"),
                check("isolation", Verdict::Skip, "kube.readyz failed", ""),
            ],
        };
        Report {
            success: false,
            passed: 1,
            warned: 2,
            failed: 2,
            skipped: 2,
            clusters: vec![
                ClusterReport {
                    id: String::new(),
                    checks: vec![check("headscale.reachable", Verdict::Pass, "https://10.99.0.1:8443, 0.29.2", "")],
                },
                of("a"),
                of("b"),
            ],
        }
    }

    #[test]
    fn a_line_a_check_then_what_to_do_then_the_counts() {
        insta::assert_snapshot!(render(&every_outcome(), false, Marks::UNICODE, Style::PLAIN), @r"
        server
          ✓ headscale.reachable  https://10.99.0.1:8443, 0.29.2
        a
          ! connector.path       relay only
          ✗ kube.readyz          10.96.0.1:443 did not answer within 5s
          - isolation            kube.readyz failed
        b
          ! connector.path       relay only
          ✗ kube.readyz          10.96.0.1:443 did not answer within 5s
          - isolation            kube.readyz failed

        what to do
          a kube.readyz, b kube.readyz: start the API server
          a connector.path, b connector.path: open UDP between the device and the cluster

        1 passed, 2 warned, 2 failed, 2 skipped
        ");
    }

    #[test]
    fn wide_adds_times_and_needs_and_ascii_marks_are_words() {
        let mut report = every_outcome();
        report.clusters.truncate(2);
        insta::assert_snapshot!(render(&report, true, Marks::ASCII, Style::PLAIN), @r"
        server
          ok   headscale.reachable      12 ms  https://10.99.0.1:8443, 0.29.2  (needs connector.ready)
        a
          warn connector.path           12 ms  relay only  (needs connector.ready)
          FAIL kube.readyz              12 ms  10.96.0.1:443 did not answer within 5s  (needs connector.ready)
          skip isolation                12 ms  kube.readyz failed  (needs connector.ready)

        what to do
          a kube.readyz: start the API server
          a connector.path: open UDP between the device and the cluster

        1 passed, 2 warned, 2 failed, 2 skipped
        ");
    }

    #[test]
    fn a_cluster_that_is_disconnected_on_request_is_named_and_nothing_is_required_of_it() {
        let clusters = vec![
            ClusterReport { id: String::new(), checks: vec![check("headscale.reachable", Verdict::Pass, "ok", "")] },
            ClusterReport { id: "b".into(), checks: vec![] },
        ];
        let report = Report { success: true, passed: 1, warned: 0, failed: 0, skipped: 0, clusters };
        insta::assert_snapshot!(render(&report, false, Marks::UNICODE, Style::PLAIN), @r"
        server
          ✓ headscale.reachable  ok
        b
          disconnected on request: nothing is required of it

        1 passed, 0 warned, 0 failed, 0 skipped
        ");
    }

    #[test]
    fn a_success_has_nothing_to_do() {
        let report = Report {
            success: true,
            passed: 1,
            warned: 0,
            failed: 0,
            skipped: 0,
            clusters: vec![ClusterReport {
                id: "a".into(),
                checks: vec![check("kube.readyz", Verdict::Pass, "ok", "")],
            }],
        };
        insta::assert_snapshot!(render(&report, false, Marks::UNICODE, Style::PLAIN), @r"
        a
          ✓ kube.readyz  ok

        1 passed, 0 warned, 0 failed, 0 skipped
        ");
    }
}
