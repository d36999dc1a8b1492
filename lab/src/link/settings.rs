//! The knobs of a link, as words: `delay=20ms loss=0.1% rate=12.5MB/s`. Each way has its own.

use std::{fmt, str::FromStr, time::Duration};

use crate::error::LabError;

/// What a link does to the packets of one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    /// Nothing that arrives passes.
    pub(crate) cut: bool,
    /// How long a packet is on its way.
    pub(crate) delay: Duration,
    /// How much shorter or longer than that, evenly spread; no packet overtakes another by it.
    pub(crate) jitter: Duration,
    /// Share of packets that are lost.
    pub(crate) loss: f64,
    /// How many packets in a row a loss takes, on average; up to 1: each packet is lost on its own account.
    pub(crate) burst: f64,
    /// Share of packets that arrive twice.
    pub(crate) duplicate: f64,
    /// Share of packets that are held back, so that later ones overtake them.
    pub(crate) reorder: f64,
    /// How long those are held back.
    pub(crate) reorder_by: Duration,
    /// Bytes that pass in a second, headers included; nothing: as many as come.
    pub(crate) rate: Option<u64>,
    /// How long a packet may wait for the rate; what would wait longer is dropped.
    pub(crate) queue: Duration,
}

impl Default for Settings {
    /// A cable that does nothing.
    fn default() -> Self {
        Self {
            cut: false,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: 1.0,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(1),
            rate: None,
            queue: Duration::from_millis(100),
        }
    }
}

impl fmt::Display for Settings {
    /// The knobs that are turned, in the words that turn them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::default();
        let time = |time: Duration| format!("{}ms", time.as_secs_f64() * 1e3);
        let share = |share: f64| format!("{}%", (share * 1e8).round() / 1e6);
        #[expect(clippy::cast_precision_loss, reason = "a rate is far below 2^52")]
        let rate = |bytes: u64| format!("{}MB/s", bytes as f64 / 1e6);
        let words = [
            self.cut.then(|| "cut=on".to_owned()),
            (self.delay != usual.delay).then(|| format!("delay={}", time(self.delay))),
            (self.jitter != usual.jitter).then(|| format!("jitter={}", time(self.jitter))),
            (self.loss > usual.loss).then(|| format!("loss={}", share(self.loss))),
            (self.burst > usual.burst).then(|| format!("burst={}", self.burst)),
            (self.duplicate > usual.duplicate).then(|| format!("duplicate={}", share(self.duplicate))),
            (self.reorder > usual.reorder).then(|| format!("reorder={}", share(self.reorder))),
            (self.reorder_by != usual.reorder_by).then(|| format!("reorder-by={}", time(self.reorder_by))),
            self.rate.map(|bytes| format!("rate={}", rate(bytes))),
            (self.queue != usual.queue).then(|| format!("queue={}", time(self.queue))),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
}

impl Settings {
    /// Whether packets pass as if the link were not there.
    pub(crate) fn is_nothing(&self) -> bool {
        let Self { cut, delay, jitter, loss, duplicate, reorder, rate, burst: _, reorder_by: _, queue: _ } = *self;
        !cut && delay.is_zero() && jitter.is_zero() && loss + duplicate + reorder == 0.0 && rate.is_none()
    }

    fn turn(&mut self, knob: &str, value: &str) -> Result<(), LabError> {
        match knob {
            "cut" => self.cut = switch(value)?,
            "delay" => self.delay = duration(value)?,
            "jitter" => self.jitter = duration(value)?,
            "loss" => self.loss = share(value)?,
            "burst" => self.burst = number(value)?,
            "duplicate" => self.duplicate = share(value)?,
            "reorder" => self.reorder = share(value)?,
            "reorder-by" => self.reorder_by = duration(value)?,
            "rate" => self.rate = rate(value)?,
            "queue" => self.queue = duration(value)?,
            _ => return Err(wrong(&format!("{knob}={value}"), KNOBS)),
        }
        Ok(())
    }
}

const KNOBS: &str = "a knob is one of cut delay jitter loss burst duplicate reorder reorder-by rate queue";

fn wrong(word: &str, why: &str) -> LabError {
    LabError::Usage { what: format!("{word:?}: {why}") }
}

fn switch(text: &str) -> Result<bool, LabError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(wrong(text, "on or off")),
    }
}

fn number(text: &str) -> Result<f64, LabError> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| wrong(text, "a number of at least 0, as in 4 or 2.5"))
}

/// The longest that a link may hold a packet back: more is a slip of the pen.
const LONGEST: f64 = 60.0;

fn duration(text: &str) -> Result<Duration, LabError> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let of = |(unit, seconds): &(&str, f64)| number(text.strip_suffix(unit)?).ok().map(|n| n * seconds);
    let found = if text == "0" { Some(0.0) } else { units.iter().find_map(of) };
    let seconds = found.filter(|seconds| *seconds <= LONGEST);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| wrong(text, "a time up to 60s, as in 500us, 20ms or 1.5s"))
}

fn share(text: &str) -> Result<f64, LabError> {
    let found = text.strip_suffix('%').and_then(|n| number(n).ok()).map(|n| n / 100.0).filter(|n| *n <= 1.0);
    found.ok_or_else(|| wrong(text, "a share in percent, as in 0.1%"))
}

fn rate(text: &str) -> Result<Option<u64>, LabError> {
    if text == "off" {
        return Ok(None);
    }
    let units = [("MB/s", 1e6), ("kB/s", 1e3)];
    let of = |(unit, bytes): &(&str, f64)| number(text.strip_suffix(unit)?).ok().map(|n| n * bytes);
    let found = units.iter().find_map(of).filter(|bytes| (1_000.0..1e12).contains(bytes));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, see above")]
    let bytes = found.map(|bytes| bytes as u64);
    bytes.map(Some).ok_or_else(|| wrong(text, "a rate from 1kB/s, as in 12.5MB/s or 500kB/s, or off"))
}

/// One of the two ways through a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the host behind the link.
    Up,
    /// To the host behind the link.
    Down,
}

/// A change of a link's settings, in words: an optional way (else both), then knobs. `clear` turns all of them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    way: Option<Way>,
    words: Vec<String>,
}

impl LinkChange {
    /// Applied to the settings of the way up and the way down.
    pub(crate) fn apply(&self, [up, down]: [Settings; 2]) -> Result<[Settings; 2], LabError> {
        let mut changed = [up, down];
        for (settings, way) in changed.iter_mut().zip([Way::Up, Way::Down]) {
            if self.way.is_some_and(|only| only != way) {
                continue;
            }
            for word in &self.words {
                match word.split_once('=') {
                    None if word == "clear" => *settings = Settings::default(),
                    None => return Err(wrong(word, "KNOB=VALUE, or clear")),
                    Some((knob, value)) => settings.turn(knob, value)?,
                }
            }
        }
        Ok(changed)
    }
}

impl FromStr for LinkChange {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let way = match words.first().map(String::as_str) {
            Some("up") => Some(Way::Up),
            Some("down") => Some(Way::Down),
            _ => None,
        };
        if way.is_some() {
            words.remove(0);
        }
        let change = Self { way, words };
        // Whatever it is applied to: a word is right or wrong by itself.
        change.apply([Settings::default(); 2])?;
        Ok(change)
    }
}

impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            None => "",
            Some(Way::Up) => "up ",
            Some(Way::Down) => "down ",
        };
        write!(f, "{way}{}", self.words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> [Settings; 2] {
        text.parse::<LinkChange>().and_then(|change| change.apply([Settings::default(); 2])).expect(text)
    }

    #[test]
    fn words_turn_knobs_of_both_ways_or_of_one() {
        let all = "delay=20ms jitter=500us loss=0.1% burst=4 duplicate=1% reorder=5% reorder-by=2ms rate=12.5MB/s queue=1.5s cut=on";
        let wanted = Settings {
            cut: true,
            delay: Duration::from_millis(20),
            jitter: Duration::from_micros(500),
            loss: 0.001,
            burst: 4.0,
            duplicate: 0.01,
            reorder: 0.05,
            reorder_by: Duration::from_millis(2),
            rate: Some(12_500_000),
            queue: Duration::from_millis(1_500),
        };
        assert_eq!(after(all), [wanted; 2]);
        assert_eq!(after(&wanted.to_string()), [wanted; 2], "{wanted}");
        assert_eq!(Settings::default().to_string(), "");
        assert_eq!(after(&format!("down {all}")), [Settings::default(), wanted]);
        assert_eq!(after(&format!("{all} clear")), [Settings::default(); 2]);
        assert!(after("delay=0 loss=0% rate=off cut=off")[0].is_nothing());
        assert!(!after("rate=1kB/s")[0].is_nothing());
    }

    #[test]
    fn what_is_not_named_stays() {
        let before = [Settings { loss: 0.5, ..Settings::default() }; 2];
        let change: LinkChange = "up delay=1ms".parse().expect("words");
        let [up, down] = change.apply(before).expect("applied");
        assert_eq!((up.loss, up.delay), (0.5, Duration::from_millis(1)));
        assert_eq!(down, before[1]);
    }

    #[test]
    fn a_wrong_word_is_shown_with_what_would_be_right() {
        for (bad, right) in [
            ("delay=20", "as in 500us"),
            ("delay=-1ms", "as in 500us"),
            ("delay=61s", "up to 60s"),
            ("loss=101%", "in percent"),
            ("loss=0.1", "in percent"),
            ("burst=many", "a number"),
            ("rate=10", "12.5MB/s"),
            ("rate=0MB/s", "from 1kB/s"),
            ("cut=maybe", "on or off"),
            ("lossy=1%", "a knob is one of"),
            ("sideways", "KNOB=VALUE"),
        ] {
            let why = bad.parse::<LinkChange>().expect_err(bad);
            assert!(why.exit_code() == 2 && why.to_string().contains(right), "{bad}: {why}");
        }
    }
}
