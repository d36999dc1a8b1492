//! What the queue does to ten thousand packets, by fixed seeds, and what holds whatever its settings.

#![allow(clippy::cast_precision_loss, reason = "statistics of ten thousand packets")]

use proptest::{collection::vec, prelude::*};

use super::*;

const SIZE: usize = 1_280;
const MANY: u64 = 10_000;
const SEEDS: [u64; 3] = [1, 2, 3];

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Packets come one every `gap`; what left, each with the time it took. In virtual time.
fn through(seed: u64, settings: Settings, gap: Duration) -> (Vec<(u64, Duration)>, Counts) {
    let mut queue = Queue::new(seed);
    queue.set(settings);
    let mut seen = Vec::new();
    let mut drain = |queue: &mut Queue<u64>, until: Option<Duration>| {
        while let Some(due) = queue.next().filter(|due| until.is_none_or(|until| *due <= until)) {
            while let Some(number) = queue.take(due) {
                seen.push((number, due - gap * u32::try_from(number).expect("few")));
            }
        }
    };
    for number in 0..MANY {
        let now = gap * u32::try_from(number).expect("few");
        drain(&mut queue, Some(now));
        queue.offer(now, SIZE, number);
    }
    drain(&mut queue, None);
    (seen, queue.counts())
}

/// Asserts that a share is what was asked for, to four standard deviations of so many throws.
#[track_caller]
fn near(what: &str, seen: f64, wanted: f64, deviation: f64) {
    assert!((seen - wanted).abs() <= 4.0 * deviation, "{what}: {seen}, not {wanted} by 4 * {deviation}");
}

/// The standard deviation of a share among all packets.
fn deviation(share: f64) -> f64 {
    (share * (1.0 - share) / MANY as f64).sqrt()
}

fn mean(times: impl Iterator<Item = f64> + Clone) -> f64 {
    times.clone().sum::<f64>() / times.count() as f64
}

#[test]
fn nothing_set_is_a_cable() {
    let (seen, counts) = through(1, Settings::default(), ms(1));
    assert!(seen.iter().zip(0..).all(|((number, took), wanted)| *number == wanted && took.is_zero()));
    assert_eq!(counts, Counts { offered: MANY, passed: MANY, ..Counts::default() });
    assert!(Queue::<u8>::new(1).is_open());
}

#[test]
fn delay_is_the_same_for_all() {
    let (seen, _) = through(1, Settings { delay: ms(20), ..Settings::default() }, ms(1));
    assert!(seen.len() == 10_000 && seen.iter().all(|(_, took)| *took == ms(20)));
}

#[test]
fn jitter_is_spread_evenly_around_the_delay() {
    for seed in SEEDS {
        let (seen, _) = through(seed, Settings { delay: ms(20), jitter: ms(5), ..Settings::default() }, ms(50));
        let took: Vec<f64> = seen.iter().map(|(_, took)| took.as_secs_f64() * 1e3).collect();
        assert!(took.iter().all(|took| (15.0..=25.0).contains(took)));
        // An even spread of width 10 has a standard deviation of 10 / sqrt(12).
        near("mean", mean(took.iter().copied()), 20.0, 10.0 / 12_f64.sqrt() / 100.0);
        for tenth in 0..10 {
            let from = 15.0 + f64::from(tenth);
            let share = took.iter().filter(|took| (from..from + 1.0).contains(*took)).count() as f64 / MANY as f64;
            near("a tenth of the spread", share, 0.1, deviation(0.1));
        }
    }
}

#[test]
fn losses_are_as_many_as_wanted_and_each_on_its_own() {
    for seed in SEEDS {
        for loss in [0.001, 0.01, 0.2] {
            let (seen, counts) = through(seed, Settings { loss, ..Settings::default() }, ms(1));
            near("loss", counts.lost as f64 / MANY as f64, loss, deviation(loss));
            assert_eq!(counts.passed + counts.lost, MANY);
            let gaps: Vec<u64> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0 - 1).filter(|gap| *gap > 0).collect();
            if loss == 0.2 {
                // A run of independent losses is 1 / (1 - loss) long on average.
                near("run", mean(gaps.iter().map(|gap| *gap as f64)), 1.25, 0.56 / (gaps.len() as f64).sqrt());
            }
        }
    }
}

#[test]
fn bursts_are_as_long_as_wanted_and_lose_as_much() {
    let (loss, burst) = (0.05, 5.0);
    for seed in SEEDS {
        let (seen, counts) = through(seed, Settings { loss, burst, ..Settings::default() }, ms(1));
        let runs: Vec<f64> =
            seen.windows(2).map(|pair| (pair[1].0 - pair[0].0 - 1) as f64).filter(|gap| *gap > 0.0).collect();
        // Geometric: the deviation of a run is about its mean; and losses come in about MANY * loss / burst runs.
        near("run", mean(runs.iter().copied()), burst, 4.5 / (runs.len() as f64).sqrt());
        let deviation = (2.0 * burst - 1.0).sqrt() * deviation(loss);
        near("loss", counts.lost as f64 / MANY as f64, loss, deviation);
    }
}

#[test]
fn duplicates_follow_their_originals() {
    for seed in SEEDS {
        let (seen, counts) = through(seed, Settings { duplicate: 0.05, delay: ms(3), ..Settings::default() }, ms(1));
        near("duplicates", counts.duplicated as f64 / MANY as f64, 0.05, deviation(0.05));
        assert_eq!(counts.passed, MANY + counts.duplicated);
        let twice = seen.windows(2).filter(|pair| pair[0].0 == pair[1].0).count() as u64;
        assert_eq!(twice, counts.duplicated);
    }
}

#[test]
fn the_held_are_overtaken_by_those_that_come_meanwhile() {
    for seed in SEEDS {
        let reorder_by = Duration::from_micros(3_500);
        let (seen, counts) = through(seed, Settings { reorder: 0.05, reorder_by, ..Settings::default() }, ms(1));
        near("held", counts.held as f64 / MANY as f64, 0.05, deviation(0.05));
        assert_eq!(seen.len(), 10_000, "none is lost");
        let late = seen.iter().filter(|(_, took)| *took == reorder_by).count() as u64;
        assert_eq!(late, counts.held);
        let overtaken = seen.iter().scan(0, |most, (number, _)| {
            *most = (*most).max(*number);
            Some(*most - *number)
        });
        // Three packets come within 3.5 ms.
        assert!(overtaken.clone().all(|by| by <= 3) && overtaken.filter(|by| *by == 3).count() > 300);
    }
}

#[test]
fn the_rate_is_kept_and_what_waits_too_long_is_dropped() {
    // Twice as much comes as passes.
    let rate = SIZE as u64 * 1_000;
    let settings = Settings { rate: Some(rate), queue: ms(50), ..Settings::default() };
    let (seen, counts) = through(1, settings, Duration::from_micros(500));
    let half = MANY / 2;
    assert!((half..half + 60).contains(&counts.passed), "{counts:?}");
    assert_eq!(counts.passed + counts.overflowed, MANY);
    let longest = seen.iter().map(|(_, took)| *took).max().expect("some");
    assert!((ms(50)..=ms(52)).contains(&longest), "{longest:?}");
    // At half the rate nothing waits but for itself.
    let (seen, _) = through(1, settings, ms(2));
    assert!(seen.len() == 10_000 && seen.iter().all(|(_, took)| *took == ms(1)));
}

#[test]
fn a_cut_ends_when_it_is_mended_and_what_was_on_its_way_arrives() {
    let mut queue = Queue::new(1);
    queue.set(Settings { delay: ms(10), ..Settings::default() });
    queue.offer(ms(0), SIZE, 'a');
    queue.set(Settings { delay: ms(10), cut: true, ..Settings::default() });
    queue.offer(ms(1), SIZE, 'b');
    queue.set(Settings::default());
    queue.offer(ms(2), SIZE, 'c');
    assert_eq!((queue.take(ms(9)), queue.next()), (None, Some(ms(10))));
    assert_eq!([queue.take(ms(10)), queue.take(ms(10)), queue.take(ms(10))], [Some('a'), Some('c'), None]);
    assert_eq!(queue.counts().cut, 1);
}

#[test]
fn one_knob_does_not_move_the_dice_of_another() {
    let lost = |settings: Settings| {
        let (seen, _) = through(7, Settings { loss: 0.1, ..settings }, ms(1));
        seen.into_iter().map(|(number, _)| number).collect::<std::collections::BTreeSet<_>>()
    };
    let alone = lost(Settings::default());
    let all = Settings { duplicate: 0.2, reorder: 0.2, delay: ms(9), jitter: ms(5), ..Settings::default() };
    assert_eq!(lost(all), alone);
    assert_ne!(alone.len(), 10_000);
}

prop_compose! {
    fn any_settings()(
        cut in proptest::bool::weighted(0.1),
        delay in 0_u64..50,
        jitter in 0_u64..20,
        [loss, duplicate, reorder] in [0.0..0.5, 0.0..0.5, 0.0..0.5],
        burst in 0.0..8.0,
        rate in proptest::option::of(10_000_u64..10_000_000),
    ) -> Settings {
        let [delay, jitter] = [ms(delay), ms(jitter)];
        Settings { cut, delay, jitter, loss, burst, duplicate, reorder, rate, ..Settings::default() }
    }
}

proptest! {
    #[test]
    fn every_packet_leaves_once_or_twice_or_is_counted_as_gone(
        seed: u64,
        acts in vec((any_settings(), vec((0_u64..5_000, 40_usize..1_500), 1..30)), 1..8),
    ) {
        let run = || {
            let mut queue = Queue::new(seed);
            let (mut now, mut came, mut left) = (Duration::ZERO, Vec::new(), Vec::new());
            for (settings, packets) in &acts {
                queue.set(*settings);
                for (gap, size) in packets {
                    now += Duration::from_micros(*gap);
                    while let Some(number) = queue.take(now) {
                        left.push((number, now));
                    }
                    let earliest = now + settings.delay.saturating_sub(settings.jitter);
                    queue.offer(now, *size, came.len());
                    came.push(earliest);
                }
            }
            while let Some(due) = queue.next() {
                now = now.max(due);
                while let Some(number) = queue.take(now) {
                    left.push((number, now));
                }
            }
            (came, left, queue)
        };
        let (came, left, queue) = run();
        let counts = queue.counts();
        prop_assert_eq!(queue.bytes, 0);
        prop_assert_eq!(counts.offered, came.len() as u64);
        prop_assert_eq!(counts.passed, left.len() as u64);
        prop_assert_eq!(counts.passed + counts.lost + counts.cut + counts.overflowed, counts.offered + counts.duplicated);
        for (number, at) in &left {
            prop_assert!(*at >= came[*number], "{number} left at {at:?}, before {:?}", came[*number]);
            prop_assert!(left.iter().filter(|(other, _)| other == number).count() <= 2);
        }
        // The same seed is the same fate.
        prop_assert_eq!(run().1, left);
    }

    #[test]
    fn without_reordering_nobody_overtakes(seed: u64, mut settings in any_settings(), gaps in vec(0_u64..5_000, 2..100)) {
        settings.reorder = 0.0;
        let mut queue = Queue::new(seed);
        queue.set(settings);
        let mut now = Duration::ZERO;
        let mut left = Vec::new();
        for (number, gap) in gaps.iter().enumerate() {
            now += Duration::from_micros(*gap);
            left.extend(std::iter::from_fn(|| queue.take(now)));
            queue.offer(now, SIZE, number);
        }
        left.extend(std::iter::from_fn(|| queue.take(Duration::MAX)));
        prop_assert!(left.is_sorted());
    }
}
