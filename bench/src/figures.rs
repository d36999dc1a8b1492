//! From what was measured to what is shown.

use std::time::Duration;

/// What a measurement can fail with; it is shown to a person.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The middle one; no number if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time that half of them stay below, in milliseconds.
pub(crate) fn p50_ms(times: &[Duration]) -> f64 {
    part_ms(times, 50)
}

/// The time that 99 of 100 stay below, in milliseconds.
pub(crate) fn p99_ms(times: &[Duration]) -> f64 {
    part_ms(times, 99)
}

fn part_ms(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
