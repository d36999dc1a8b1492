//! A chart of a report, as SVG: a pair of bars for each figure, ours and tsnet's, and the ratio beside them.

use std::fmt::Write as _;

use super::report::{Report, Row, TSNET};

const WIDTH: u32 = 960;
/// Where bars begin, and how long the longer of a pair is.
const LEFT: u32 = 330;
const LONGEST: f64 = 420.0;
const ROW: u32 = 34;
const HEAD: u32 = 48;

/// Colours for light and for dark.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#24292f}.n{text-anchor:end}.v{font-size:10px}.s{fill:#57606a}\
.m{fill:#b35900;font-weight:600}.g{fill:#1a7f64}.t{fill:#8c959f}.b{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.m{fill:#f0a35e}.g{fill:#3fb68b}.t{fill:#6e7681}.b{fill:#0d1117}}";

/// The report's figures that tsnet has, too.
pub(super) fn svg(report: &Report) -> String {
    let pairs: Vec<(&Row, f64)> = report.rows.iter().filter_map(|row| Some((row, *row.peers.get(TSNET)?))).collect();
    let height = HEAD + ROW * u32::try_from(pairs.len()).unwrap_or(0) + 12;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"GuildNet's connector beside tsnet\">\n<style>{STYLE}</style>\n\
         <rect class=\"b\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <rect class=\"g\" x=\"{LEFT}\" y=\"14\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"24\">guildnet</text>\n\
         <rect class=\"t\" x=\"{}\" y=\"14\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"24\">tsnet</text>\n\
         <text class=\"s\" x=\"{}\" y=\"24\">{}</text>\n",
        LEFT + 18,
        LEFT + 90,
        LEFT + 108,
        LEFT + 170,
        escaped(&report.machine),
    );
    for (at, (row, tsnet)) in (0_u32..).zip(pairs) {
        let top = HEAD + ROW * at;
        let most = row.ours.max(tsnet);
        let length = |value: f64| if most > 0.0 { (value / most * LONGEST).max(1.0) } else { 1.0 };
        let unit = if row.unit.is_empty() { String::new() } else { format!(", {}", row.unit) };
        // Writing to a String does not fail.
        let _never = writeln!(
            out,
            "<text class=\"n\" x=\"{}\" y=\"{}\">{}<tspan class=\"s\">{}</tspan></text>",
            LEFT - 10,
            top + 16,
            escaped(&row.figure),
            escaped(&unit)
        );
        for (class, value, y) in [("g", row.ours, top), ("t", tsnet, top + 12)] {
            let length = length(value);
            let _never = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"11\"/>\
                 <text class=\"v s\" x=\"{:.1}\" y=\"{}\">{}</text>",
                f64::from(LEFT) + length + 5.0,
                y + 9,
                short(value)
            );
        }
        let class = if row.met { "" } else { " class=\"m\"" };
        let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{}x", short(ratio)));
        let mark = if row.met { "" } else { " missed" };
        let _never = writeln!(out, "<text{class} x=\"{}\" y=\"{}\">{ratio}{mark}</text>", WIDTH - 125, top + 16);
    }
    out.push_str("</svg>\n");
    out
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::{Report, short, svg};
    use crate::compare::{measures::Goal, peers::Kind};

    #[test]
    fn a_pair_of_bars_for_each_figure_that_both_have() {
        let mut report = Report::default();
        report.add("down <1>", "MB/s", Goal::AtLeast(1.5), &[(Kind::Ours, vec![300.0]), (Kind::Tsnet, vec![150.0])]);
        report.add("up", "MB/s", Goal::AtLeast(1.5), &[(Kind::Ours, vec![0.0]), (Kind::Tsnet, vec![0.0])]);
        report.add("alone", "", Goal::None, &[(Kind::Ours, vec![1.0])]);
        let chart = svg(&report);
        assert!(chart.contains("down &lt;1&gt;") && chart.contains(">2.00x<") && !chart.contains("alone"));
        assert!(chart.contains("width=\"420.0\"") && chart.contains("width=\"210.0\""));
        // Two figures, each two bars, and the two of the legend and the ground.
        assert_eq!(chart.matches("<rect").count(), 7);
        assert!(!chart.contains("NaN") && chart.contains("- missed"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([523.4, 52.34, 1.234, 0.01234].map(short), ["523", "52.3", "1.23", "0.0123"]);
    }
}
