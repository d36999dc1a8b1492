//! Figures side by side: rows, and how they are told, as JSON, as a table, as a chart (`chart.rs`).

use std::{collections::BTreeMap, io::Write, path::Path};

use serde::{Deserialize, Serialize};

use super::{chart, measures::Goal, peers::Kind};
use crate::{
    figures::{Failure, median},
    usage,
};

/// The peer that goals go by.
pub(super) const TSNET: &str = "tsnet";

/// One figure, side by side. Medians over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) figure: String,
    pub(super) unit: String,
    pub(super) ours: f64,
    pub(super) peers: BTreeMap<String, f64>,
    /// Ours by Go tsnet's, or by the other one's if it was not asked.
    pub(super) ratio: Option<f64>,
    pub(super) target: String,
    pub(super) met: bool,
}

/// What could not be measured, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Skipped {
    pub(super) part: String,
    pub(super) reason: String,
    /// Whether it should have been possible here.
    pub(super) failed: bool,
}

/// All of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(super) rounds: usize,
    pub(super) commit: Option<String>,
    pub(super) machine: String,
    /// How the routers serve the far end: by its own address, or by a 4via6 form.
    pub(super) way: String,
    pub(super) rows: Vec<Row>,
    pub(super) skipped: Vec<Skipped>,
}

impl Report {
    pub(super) fn new(rounds: usize, commit: Option<String>, via_site: bool) -> Self {
        let way = if via_site { "4via6" } else { "plain" }.to_owned();
        Self { rounds, commit, machine: usage::machine(), way, ..Self::default() }
    }

    pub(super) fn add(&mut self, figure: impl Into<String>, unit: &str, goal: Goal, columns: &[(Kind, Vec<f64>)]) {
        self.rows.push(Row::of(figure.into(), unit, goal, columns));
    }

    /// Something that can't be measured here.
    pub(super) fn skip(&mut self, part: impl Into<String>, reason: impl ToString) {
        self.skipped.push(Skipped { part: part.into(), reason: reason.to_string(), failed: false });
    }

    /// Something that was tried in vain.
    pub(super) fn fail(&mut self, part: impl Into<String>, reason: impl ToString) {
        self.skipped.push(Skipped { part: part.into(), reason: reason.to_string(), failed: true });
    }

    /// Writes the JSON, and the chart beside it.
    pub(super) fn save(&self, file: &Path) -> Result<(), Failure> {
        let write = |file: &Path, text: String| {
            std::fs::write(file, text).map_err(|why| Failure::from(format!("{}: {why}", file.display())))
        };
        write(file, format!("{}\n", serde_json::to_string_pretty(self)?))?;
        write(&file.with_extension("svg"), chart::svg(self))
    }

    pub(super) fn json(&self, out: &mut impl Write) -> Result<(), Failure> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        Ok(writeln!(out)?)
    }

    pub(super) fn table(&self, out: &mut impl Write) -> Result<(), Failure> {
        writeln!(out, "{:<48} {:>10} {:>10} {:>10} {:>7}  target", "", "guildnet", TSNET, "others", "ratio")?;
        for row in &self.rows {
            let name = match row.unit.as_str() {
                "" => row.figure.clone(),
                unit => format!("{}, {unit}", row.figure),
            };
            let mark = if row.met { "" } else { "  NOT MET" };
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let tsnet = number(row.peers.get(TSNET).copied());
            let other = number(row.peers.iter().find(|(peer, _)| *peer != TSNET).map(|(_, value)| *value));
            let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let line =
                format!("{name:<48} {:>10.3} {tsnet:>10} {other:>10} {ratio:>7}  {}{mark}", row.ours, row.target);
            writeln!(out, "{}", line.trim_end())?;
        }
        for Skipped { part, reason, failed } in &self.skipped {
            writeln!(out, "{}: {part}: {reason}", if *failed { "FAILED" } else { "skipped" })?;
        }
        Ok(())
    }

    /// Fails if something was tried in vain.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match self.skipped.iter().filter(|skipped| skipped.failed).count() {
            0 => Ok(()),
            count => Err(format!("{count} of what was to be measured failed").into()),
        }
    }
}

impl Row {
    /// The first column is ours.
    fn of(figure: String, unit: &str, goal: Goal, columns: &[(Kind, Vec<f64>)]) -> Self {
        let mut medians = columns.iter().map(|(kind, column)| (kind.to_string(), median(column)));
        let ours = medians.next().map_or(f64::NAN, |(_, value)| value);
        Self::beside(figure, unit, goal, ours, medians.collect())
    }

    pub(super) fn beside(figure: String, unit: &str, goal: Goal, ours: f64, peers: BTreeMap<String, f64>) -> Self {
        let beside = peers.get(TSNET).or_else(|| peers.values().next());
        let ratio = beside.map(|peer| ours / peer).filter(|ratio| ratio.is_finite());
        let (target, met) = match goal {
            Goal::AtLeast(part) => (format!("at least {part} of {TSNET}"), ratio.is_some_and(|r| r >= part)),
            Goal::AtMost(part) => (format!("at most {part} of {TSNET}"), ratio.is_some_and(|r| r <= part)),
            Goal::Below(limit) => (format!("below {limit}"), ours < limit),
            Goal::None => (String::new(), true),
        };
        Self { figure, unit: unit.to_owned(), ours, peers, ratio, target, met }
    }
}

#[cfg(test)]
mod tests {
    use super::{Goal, Kind, Report};

    #[test]
    fn goals_go_by_tsnet_whoever_else_is_there() {
        let mut report = Report::default();
        let columns = [(Kind::Ours, vec![9.0, 3.0, 4.0]), (Kind::Tsnet, vec![2.0]), (Kind::Socks5, vec![400.0])];
        report.add("down", "MB/s", Goal::AtLeast(1.5), &columns);
        report.add("memory", "MiB", Goal::AtMost(0.4), &columns);
        report.add("spread", "", Goal::Below(4.5), &columns[..1]);
        let told: Vec<_> = report.rows.iter().map(|row| (row.ours, row.ratio, row.met)).collect();
        assert_eq!(told, [(4.0, Some(2.0), true), (4.0, Some(2.0), false), (4.0, None, true)]);
        assert_eq!(report.rows[0].target, "at least 1.5 of tsnet");
    }

    #[test]
    fn what_is_missing_is_told_everywhere() {
        let mut report = Report::default();
        report.skip("4via6", "no router serves such a route");
        assert!(report.verdict().is_ok());
        report.fail("relay only", "no answer");
        let (mut table, mut json) = (Vec::new(), Vec::new());
        report.table(&mut table).expect("table");
        report.json(&mut json).expect("json");
        let table = String::from_utf8(table).expect("text");
        assert!(table.ends_with("skipped: 4via6: no router serves such a route\nFAILED: relay only: no answer\n"));
        let again: Report = serde_json::from_slice(&json).expect("the same");
        assert_eq!(again.skipped, report.skipped);
        assert!(report.verdict().is_err());
    }
}
