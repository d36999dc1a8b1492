//! What is measured: commands, how their answers become figures, and what each figure must reach. Pure.

use crate::protocol::Answer;

/// What a figure must reach, as a part of tsnet's in the same run, or by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Not compared: no more than that.
    Below(f64),
    /// Only reported.
    None,
}

/// A figure's name, its unit, its goal, and how it is read off an answer; the number is the transfer's size in bytes, or
/// how many seconds it took.
pub(super) type Figure = (String, &'static str, Goal, fn(&Answer, u64) -> f64);

/// One command of a round, and how its answer becomes figures.
pub(super) struct Measure {
    pub(super) command: String,
    pub(super) size: u64,
    pub(super) figures: Vec<Figure>,
}

/// How much more is moved when many transfers run at once, all together, than by one alone.
const SHARE: u64 = 8;

/// Over a plain path: round trips, dials, one flow and many, of so many bytes.
pub(super) fn plain(bytes: u64) -> Vec<Measure> {
    let times = |command: &str, what: &str| Measure {
        command: command.into(),
        size: 0,
        figures: vec![
            (format!("{what}, p50"), "us", Goal::AtMost(0.9), p50),
            (format!("{what}, p99"), "us", Goal::None, p99),
        ],
    };
    let mut all = vec![
        times("rtt 300", "round trip"),
        times("beside 300", "round trip beside a download"),
        times("dial 100", "dial"),
    ];
    all.extend(one_flow("", bytes));
    for (count, way) in [(8, "down"), (8, "up"), (64, "down"), (64, "up")] {
        let each = bytes * SHARE / count;
        all.push(Measure {
            command: format!("many {count} {way} {each}"),
            size: each * count,
            figures: vec![
                (format!("{way}, {count} flows"), "MB/s", Goal::AtLeast(1.0), rate),
                (format!("{way}, {count} flows, slowest by fastest"), "", Goal::Below(2.0), spread),
            ],
        });
    }
    let loaded: Figure = ("memory, loaded".into(), "MiB", Goal::AtMost(0.15), |a, _| mib(a.rss_kib));
    all.push(Measure { command: format!("up {bytes}"), size: bytes, figures: vec![loaded] });
    all
}

/// One flow of so many bytes, down and up.
pub(super) fn one_flow(before: &str, bytes: u64) -> Vec<Measure> {
    let of = |way: &str| Measure {
        command: format!("{way} {bytes}"),
        size: bytes,
        figures: vec![
            (format!("{before}{way}"), "MB/s", Goal::AtLeast(1.5), rate),
            (format!("{before}{way}, processor time"), "s/GiB", Goal::AtMost(0.4), cpu_per_gib),
        ],
    };
    ["down", "up"].map(of).into()
}

/// One flow for so many seconds, down and up.
pub(super) fn timed_flow(before: &str, seconds: u64, goals: [Goal; 2]) -> Vec<Measure> {
    let of = |(way, goal): (&str, Goal)| Measure {
        command: format!("flow {way} {seconds}"),
        size: seconds,
        figures: vec![(format!("{before}{way}"), "MB/s", goal, rate_in)],
    };
    ["down", "up"].into_iter().zip(goals).map(of).collect()
}

#[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^53")]
fn rate(a: &Answer, bytes: u64) -> f64 {
    bytes as f64 / 1e6 / a.seconds
}

#[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^53")]
fn rate_in(a: &Answer, seconds: u64) -> f64 {
    a.bytes as f64 / 1e6 / seconds as f64
}

#[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^53")]
fn cpu_per_gib(a: &Answer, bytes: u64) -> f64 {
    a.cpu / (bytes as f64 / f64::from(1 << 30))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds here are far below 2^53")]
fn p50(a: &Answer, _: u64) -> f64 {
    a.p50_us as f64
}

#[expect(clippy::cast_precision_loss, reason = "microseconds here are far below 2^53")]
fn p99(a: &Answer, _: u64) -> f64 {
    a.p99_us as f64
}

fn spread(a: &Answer, _: u64) -> f64 {
    a.slowest / a.fastest
}

#[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^53")]
pub(super) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::{Goal, one_flow, plain, timed_flow};
    use crate::protocol::Answer;

    #[test]
    fn rates_are_what_was_moved_by_how_long_it_took() {
        let answer = Answer { seconds: 2.0, cpu: 0.5, bytes: 30_000_000, ..Answer::default() };
        let read = |measure: &super::Measure, at: usize| (measure.figures[at].3)(&answer, measure.size);
        let one = &one_flow("", 1 << 30)[0];
        assert_eq!((one.command.as_str(), one.figures[0].0.as_str()), ("down 1073741824", "down"));
        assert!((read(one, 0) - 536.870_912).abs() < 1e-6);
        assert!((read(one, 1) - 0.5).abs() < 1e-9);
        let timed = &timed_flow("relay only, ", 10, [Goal::AtLeast(1.0); 2])[1];
        assert_eq!((timed.command.as_str(), timed.figures[0].0.as_str()), ("flow up 10", "relay only, up"));
        assert!((read(timed, 0) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn no_figure_has_two_rows() {
        let mut names: Vec<String> = plain(1 << 20).into_iter().flat_map(|m| m.figures).map(|f| f.0).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
