//! Two ends joined by a link in virtual time, which delays, loses, reorders, repeats, and has a rate and a queue, all from a
//! seed. The far end is another TCP, smoltcp's, or one of ours; there is no third party in it.

mod forged;
mod smol;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    task::{Context, Waker},
};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const MS: Duration = Duration::from_millis(1);
const WINDOW: usize = 1 << 20;

fn near_addr() -> SocketAddr {
    "100.64.0.2:50000".parse().expect("an address")
}

fn far_addr() -> SocketAddr {
    "10.96.0.1:443".parse().expect("an address")
}

fn setup(local: SocketAddr, remote: SocketAddr, seed: u32) -> Setup {
    Setup { local, remote, window: WINDOW, budget: Arc::new(Budget::new(64 << 20)), seed }
}

/// What an end of the link must be able to do.
trait Side {
    fn take(&mut self, now: Instant, packet: &[u8]);
    fn put(&mut self, now: Instant, out: &mut Packets) -> Option<Instant>;
    /// Writes as much as goes, and tells how much.
    fn write(&mut self, bytes: &[u8]) -> usize;
    fn read(&mut self, now: Instant) -> Option<Vec<u8>>;
    fn close(&mut self);
    /// Whether the other side has closed and all was read.
    fn is_at_end(&mut self, now: Instant) -> bool;
}

/// One of ours; listening until a SYN comes.
enum Ours {
    Listening(Setup),
    Flow(Box<Tcp>),
}

impl Ours {
    fn connecting(now: Instant, seed: u32) -> Self {
        Self::Flow(Box::new(Tcp::connect(setup(near_addr(), far_addr(), seed), now)))
    }

    fn listening(seed: u32) -> Self {
        Self::Listening(setup(far_addr(), near_addr(), seed))
    }

    fn tcp(&mut self) -> &mut Tcp {
        match self {
            Self::Flow(tcp) => tcp,
            Self::Listening(_) => panic!("nothing has come"),
        }
    }
}

impl Side for Ours {
    fn take(&mut self, now: Instant, packet: &[u8]) {
        let segment = Segment::read(packet).expect("a whole segment");
        match self {
            Self::Flow(tcp) => tcp.input(now, &segment),
            Self::Listening(setup) => {
                if segment.flags.any(Flags::SYN) {
                    *self = Self::Flow(Box::new(Tcp::accept(setup.clone(), &segment, now)));
                }
            }
        }
    }

    fn put(&mut self, now: Instant, out: &mut Packets) -> Option<Instant> {
        match self {
            Self::Flow(tcp) => tcp.output(now, out),
            Self::Listening(_) => None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Self::Flow(tcp) = self else { return 0 };
        match tcp.poll_room(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(room)) => {
                let len = room.min(bytes.len()).min(MAX_WRITE);
                if len < LARGE_WRITE {
                    tcp.append(&bytes[..len])
                } else {
                    tcp.push(bytes[..len].to_vec())
                }
                len
            }
            _ => 0,
        }
    }

    fn read(&mut self, now: Instant) -> Option<Vec<u8>> {
        let Self::Flow(tcp) = self else { return None };
        match tcp.poll_read(&mut Context::from_waker(Waker::noop()), now) {
            Poll::Ready(Ok(read)) if !read.data.is_empty() => Some(read.data),
            _ => None,
        }
    }

    fn close(&mut self) {
        self.tcp().shutdown();
    }

    fn is_at_end(&mut self, now: Instant) -> bool {
        let Self::Flow(tcp) = self else { return false };
        let read = tcp.poll_read(&mut Context::from_waker(Waker::noop()), now);
        matches!(read, Poll::Ready(Ok(read)) if read.data.is_empty())
    }
}

/// What one direction of the link does.
#[derive(Clone, Copy, Debug)]
struct Way {
    delay: Duration,
    loss: f64,
    /// The part that comes later than what follows it, by half of the delay and a millisecond.
    reorder: f64,
    repeat: f64,
    /// Bytes a second, and how long its queue may be, bytes.
    rate: f64,
    queue: f64,
}

impl Default for Way {
    fn default() -> Self {
        Self { delay: 5 * MS, loss: 0.0, reorder: 0.0, repeat: 0.0, rate: 1e9, queue: 1e9 }
    }
}

/// A packet on its way: when it arrives, in which order it was sent, whether to the far end, and what it is.
type Flying = Reverse<(Instant, u64, bool, Vec<u8>)>;

struct World<F> {
    now: Instant,
    near: Ours,
    far: F,
    up: Way,
    down: Way,
    /// When each way is free again.
    free: [Instant; 2],
    flying: BinaryHeap<Flying>,
    sent: u64,
    due: [Option<Instant>; 2],
    rng: StdRng,
    /// Bytes of the largest thing that was on its way.
    dropped: u64,
}

impl<F: Side> World<F> {
    fn new(far: F, seed: u64, up: Way, down: Way) -> Self {
        let now = Instant::now();
        Self {
            now,
            near: Ours::connecting(now, seed as u32),
            far,
            up,
            down,
            free: [now; 2],
            flying: BinaryHeap::new(),
            sent: 0,
            due: [Some(now); 2],
            rng: StdRng::seed_from_u64(seed),
            dropped: 0,
        }
    }

    fn launch(&mut self, to_far: bool, packet: &[u8]) {
        let way = if to_far { self.up } else { self.down };
        let free = &mut self.free[usize::from(to_far)];
        let waiting = free.saturating_duration_since(self.now);
        if self.rng.random_bool(way.loss) || waiting.as_secs_f64() * way.rate > way.queue {
            self.dropped += 1;
            return;
        }
        *free = (*free).max(self.now) + Duration::from_secs_f64(packet.len() as f64 / way.rate);
        let mut at = *free + way.delay;
        if self.rng.random_bool(way.reorder) {
            at += way.delay / 2 + MS;
        }
        for _ in 0..=usize::from(self.rng.random_bool(way.repeat)) {
            self.sent += 1;
            self.flying.push(Reverse((at, self.sent, to_far, packet.to_vec())));
        }
    }

    /// Both ends put out what they have.
    fn settle(&mut self) {
        let mut out = Packets::new();
        for to_far in [true, false] {
            // Bounded: an end that never stops is a mistake.
            for _ in 0..100_000 {
                out.clear();
                let side: &mut dyn Side = if to_far { &mut self.near } else { &mut self.far };
                self.due[usize::from(to_far)] = side.put(self.now, &mut out);
                let packets: Vec<Vec<u8>> = out.iter().map(<[u8]>::to_vec).collect();
                packets.iter().for_each(|packet| self.launch(to_far, packet));
                if packets.is_empty() {
                    break;
                }
            }
        }
    }

    /// Goes on to the next thing that happens, at most to a limit. Returns whether there was any.
    fn step(&mut self, limit: Instant) -> bool {
        self.settle();
        let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
        let next = [arrival, self.due[0], self.due[1]].into_iter().flatten().min();
        let Some(next) = next.filter(|at| *at <= limit) else {
            self.now = self.now.max(limit);
            return false;
        };
        // A timer that is due at once but does nothing would stand still.
        self.now = self.now.max(next).max(self.now + Duration::from_nanos(u64::from(Some(next) != arrival)));
        while let Some(Reverse((at, ..))) = self.flying.peek()
            && *at <= self.now
        {
            let Some(Reverse((_, _, to_far, packet))) = self.flying.pop() else { break };
            if to_far { self.far.take(self.now, &packet) } else { self.near.take(self.now, &packet) }
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let limit = self.now + time;
        while self.step(limit) {}
    }

    fn run_until(&mut self, what: &str, limit: Duration, done: impl Fn(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.step(end), "not within {limit:?}: {what}");
        }
    }

    fn open(mut self) -> Self {
        self.run_until("open", 60_000 * MS, |w| w.near.tcp().phase() == Phase::Open);
        self.run(50 * MS);
        self
    }

    /// Sends bytes both ways, checks that they arrive unchanged, and returns how long it took.
    fn exchange(&mut self, up: usize, down: usize, limit: Duration) -> Duration {
        let (sent_up, sent_down) = (pattern(up, 251), pattern(down, 241));
        let (mut written, mut far_written) = (0, 0);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let began = self.now;
        let end = began + limit;
        while got_up.len() < up || got_down.len() < down {
            loop {
                let n = self.near.write(&sent_up[written..]);
                written += n;
                let m = self.far.write(&sent_down[far_written..]);
                far_written += m;
                if n + m == 0 {
                    break;
                }
            }
            while let Some(data) = self.near.read(self.now) {
                got_down.extend_from_slice(&data);
            }
            while let Some(data) = self.far.read(self.now) {
                got_up.extend_from_slice(&data);
            }
            if got_up.len() < up || got_down.len() < down {
                assert!(self.step(end), "{} of {up} up, {} of {down} down in {limit:?}", got_up.len(), got_down.len());
            }
        }
        assert!(got_up == sent_up && got_down == sent_down, "bytes were changed");
        self.now - began
    }
}

fn pattern(len: usize, modulus: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % modulus).expect("below 256")).collect()
}

fn ours(seed: u64, up: Way, down: Way) -> World<Ours> {
    World::new(Ours::listening(seed as u32 ^ 77), seed, up, down)
}

fn lossy(delay: Duration, loss: f64) -> Way {
    Way { delay, loss, ..Way::default() }
}

/// MB/s.
fn speed(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

#[test]
fn bytes_arrive_in_order_on_a_clean_link() {
    ours(1, Way::default(), Way::default()).open().exchange(4 << 20, 4 << 20, 60_000 * MS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bytes_arrive_in_order_whatever_the_link_does(
        seed: u64, loss in 0.0..0.12, back in 0.0..0.12, reorder in 0.0..0.2, repeat in 0.0..0.1, delay in 0_u64..60, rate in 2e5..1e8,
        up in 0_usize..300_000, down in 0_usize..300_000,
    ) {
        let way = Way { delay: Duration::from_micros(delay * 1000 + 50), loss, reorder, repeat, rate, queue: rate / 10.0 };
        let mut world = ours(seed, way, Way { loss: back, ..way }).open();
        world.exchange(up, down, 600_000 * MS);
        let other = smol::World::new(smol::Smol::new(true), seed, way, Way { loss: back, ..way });
        other.open().exchange(up, down, 3_000_000 * MS);
    }
}

#[test]
fn only_what_was_lost_is_sent_again() {
    let mut world = ours(3, lossy(10 * MS, 0.01), Way { delay: 10 * MS, ..Way::default() }).open();
    world.exchange(16 << 20, 0, 600_000 * MS);
    let (lost, again) = (world.dropped * 1240, world.near.tcp().send.repeated());
    assert!(again <= lost + lost / 20 + 10_000, "{again} bytes again for {lost} lost");
}

#[test]
fn a_lossy_path_is_filled_all_the_same() {
    for (delay, loss, least) in
        [(10, 0.0, 40.0), (10, 0.001, 40.0), (10, 0.01, 25.0), (50, 0.001, 12.0), (50, 0.01, 8.0)]
    {
        let delay = delay * MS;
        let way = Way { rate: 60e6, queue: 3e6, ..lossy(delay, loss) };
        let mut world = ours(4, way, way).open();
        let took = world.exchange(64 << 20, 0, 600_000 * MS);
        let reached = speed(64 << 20, took);
        assert!(reached > least, "{delay:?} {loss}: {reached} MB/s");
    }
}

#[test]
fn reordering_is_not_loss() {
    let way = Way { reorder: 0.05, ..Way { rate: 60e6, ..lossy(10 * MS, 0.0) } };
    let mut world = ours(5, way, way).open();
    let took = world.exchange(32 << 20, 0, 600_000 * MS);
    let again = world.near.tcp().send.repeated();

    assert!(again < 1 << 20, "{again} bytes were sent again for nothing");
    assert!(speed(32 << 20, took) > 25.0);
}

#[test]
fn a_full_queue_is_not_driven_into_collapse() {
    // 10 MB/s with 50 ms of queue: more would only be dropped.
    let way = Way { delay: 10 * MS, rate: 10e6, queue: 500e3, ..Way::default() };
    let mut world = ours(6, way, way).open();
    let took = world.exchange(64 << 20, 0, 600_000 * MS);
    let (sent, again) = (64_u64 << 20, world.near.tcp().send.repeated());
    assert!(speed(64 << 20, took) > 8.5);
    assert!(again < sent / 20, "{again} of {sent} again");
}

#[test]
fn the_last_segment_of_all_is_missed_soon() {
    let mut world = ours(7, Way::default(), Way::default()).open();
    world.up.loss = 1.0;
    world.near.write(b"question");
    world.settle();
    world.up.loss = 0.0;
    let began = world.now;
    world.run_until("question", 1000 * MS, |w| w.far.read(w.now).is_some());
    assert!(world.now - began < 100 * MS, "{:?}", world.now - began);
}

#[test]
fn a_path_that_was_away_for_a_while_goes_on() {
    let mut world = ours(8, Way::default(), Way::default()).open();
    world.near.write(&[7; 50_000]);
    world.up.loss = 1.0;
    world.run(5000 * MS);
    world.up.loss = 0.0;
    let mut got = 0;
    let end = world.now + 10_000 * MS;
    while got < 50_000 {
        got += world.far.read(world.now).map_or(0, |data| data.len());
        assert!(got == 50_000 || world.step(end));
    }
}

#[test]
fn a_path_known_to_be_back_is_used_at_once() {
    let mut world = ours(8, Way::default(), Way::default()).open();
    world.near.write(&[7; 5000]);
    world.up.loss = 1.0;
    world.run(20_000 * MS);
    world.up.loss = 0.0;
    let began = world.now;
    world.near.tcp().hurry(began);
    world.run_until("data", 10_000 * MS, |w| w.far.read(w.now).is_some());
    assert!(world.now - began < 20 * MS);
}

#[test]
fn a_full_window_holds_the_sender_back_and_opens_again() {
    let mut world = ours(9, Way::default(), Way::default()).open();
    let data = pattern(4 * WINDOW, 251);
    let mut sent = 0;
    for _ in 0..100 {
        sent += world.near.write(&data[sent..]);
        world.run(20 * MS);
    }
    assert!(sent <= 2 * WINDOW + (64 << 10), "at most both buffers are full: {sent}");
    // Shut for longer than a probe takes: it is asked about, and opens.
    world.run(30_000 * MS);
    let mut got = Vec::new();
    let end = world.now + 60_000 * MS;
    while got.len() < data.len() {
        sent += world.near.write(&data[sent..]);
        while let Some(chunk) = world.far.read(world.now) {
            got.extend_from_slice(&chunk);
        }
        assert!(got.len() == data.len() || world.step(end), "{} of {}", got.len(), data.len());
    }
    assert!(got == data);
}

#[test]
fn a_window_that_opens_unseen_is_asked_about() {
    let mut world = ours(10, Way::default(), Way::default()).open();
    let data = pattern(3 * WINDOW, 251);
    let mut sent = 0;
    for _ in 0..100 {
        sent += world.near.write(&data[sent..]);
        world.run(20 * MS);
    }
    // The update is lost.
    world.down.loss = 1.0;
    let mut got = 0;
    while let Some(chunk) = world.far.read(world.now) {
        got += chunk.len();
    }
    world.run(50 * MS);
    world.down.loss = 0.0;
    let end = world.now + 30_000 * MS;
    while got < sent {
        assert!(world.step(end), "{got} of {sent}");
        while let Some(chunk) = world.far.read(world.now) {
            got += chunk.len();
        }
    }
}

#[test]
fn the_window_grows_with_the_path() {
    let way = Way { delay: 50 * MS, ..Way::default() };
    let mut world = ours(11, way, way).open();
    let took = world.exchange(0, 128 << 20, 600_000 * MS);
    assert!(speed(128 << 20, took) > 25.0, "more than a window of 1 MiB each 100 ms: {took:?}");
}

#[test]
fn flows_that_nobody_reads_stay_within_the_budget() {
    let budget = Arc::new(Budget::new(2 << 20));
    let mut worlds: Vec<World<Ours>> = (0..24)
        .map(|k| {
            let mut world = ours(k, Way::default(), Way::default());
            let Ours::Listening(setup) = &mut world.far else { panic!("fresh") };
            setup.budget = budget.clone();
            world.open()
        })
        .collect();
    let data = vec![1; 1 << 20];
    for _ in 0..10 {
        for world in &mut worlds {
            world.near.write(&data);
            world.run(50 * MS);
        }
    }
    assert!(budget.used() <= (2 << 20) + 24 * (64 << 10), "{} bytes", budget.used());
    assert!(budget.used() > 1 << 20, "some must have come");
    drop(worlds);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_half_closed_flow_still_receives() {
    let mut world = ours(12, Way::default(), Way::default()).open();
    world.near.close();
    world.run(100 * MS);
    assert!(world.far.is_at_end(world.now));
    assert_eq!(world.far.write(b"answer"), 6);
    world.run_until("answer", 1000 * MS, |w| w.near.read(w.now).is_some_and(|data| data == b"answer"));
    world.far.close();
    world.run_until("end", 1000 * MS, |w| w.near.is_at_end(w.now));
    world.run(100 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Lingering);
    assert_eq!(world.far.tcp().phase(), Phase::Closed(End::Finished));
}

#[test]
fn both_may_close_at_once() {
    let mut world = ours(13, Way::default(), Way::default()).open();
    world.near.close();
    world.far.close();
    world.run(1000 * MS);
    assert!(world.near.is_at_end(world.now) && world.far.is_at_end(world.now));
    assert_eq!((world.near.tcp().phase(), world.far.tcp().phase()), (Phase::Lingering, Phase::Lingering));
}

#[test]
fn a_lost_goodbye_is_repeated() {
    let mut world = ours(14, Way::default(), Way::default()).open();
    world.near.close();
    world.run(100 * MS);
    world.far.close();
    world.up.loss = 1.0;
    world.run(100 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Lingering);
    world.up.loss = 0.0;
    world.run_until("closed", 5000 * MS, |w| w.far.tcp().phase() == Phase::Closed(End::Finished));
}

#[test]
fn leaving_closes_in_good_order_but_unread_data_resets() {
    let mut world = ours(15, Way::default(), Way::default()).open();
    world.near.write(b"bye");
    world.near.tcp().detach(false);
    world.run(100 * MS);
    assert_eq!(world.far.read(world.now).as_deref(), Some(&b"bye"[..]));
    assert!(world.far.is_at_end(world.now));

    let mut world = ours(16, Way::default(), Way::default()).open();
    world.far.write(b"unread");
    world.run(100 * MS);
    world.near.tcp().detach(false);
    world.run(100 * MS);
    assert_eq!(world.far.tcp().phase(), Phase::Closed(End::Reset));

    let mut world = ours(17, Way::default(), Way::default()).open();
    world.near.tcp().detach(true);
    world.run(100 * MS);
    assert_eq!(world.far.tcp().phase(), Phase::Closed(End::Reset), "what was taken and not read counts, too");

    let mut world = ours(18, Way::default(), Way::default()).open();
    world.near.tcp().detach(false);
    world.far.write(b"too late");
    world.run(100 * MS);
    assert_eq!(world.far.tcp().phase(), Phase::Closed(End::Reset));
}

#[test]
fn a_reset_is_told_after_what_came_before_it() {
    let mut world = ours(19, Way::default(), Way::default()).open();
    world.far.write(b"last");
    world.run(100 * MS);
    world.far.tcp().abort();
    world.run(100 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Closed(End::Reset));
    assert_eq!(world.near.read(world.now).as_deref(), Some(&b"last"[..]));
    let read = world.near.tcp().poll_read(&mut Context::from_waker(Waker::noop()), world.now);
    assert!(matches!(read, Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::ConnectionReset));
}

#[test]
fn a_silent_far_end_is_found_out_by_keep_alives() {
    let mut world = ours(20, Way::default(), Way::default()).open();
    let began = world.now;
    (world.up.loss, world.down.loss) = (1.0, 1.0);
    world.run(120_000 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Closed(End::Silent));
    assert!(world.near.tcp().heard >= began - 200 * MS);
}

#[test]
fn an_idle_flow_lives_on() {
    let mut world = ours(21, Way::default(), Way::default()).open();
    world.run(600_000 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Open);
    assert!(world.sent < 200, "{} packets in ten idle minutes", world.sent);
}

#[test]
fn an_idle_flow_over_a_link_with_losses_lives_on_for_a_day() {
    let way = lossy(20 * MS, 0.05);
    let mut world = ours(24, way, way).open();
    world.run(24 * 3_600_000 * MS);
    assert_eq!(world.near.tcp().phase(), Phase::Open);
    assert!(world.sent < 12_000, "{} packets in an idle day", world.sent);
}

#[test]
fn a_flow_that_may_put_out_nothing_still_times_out() {
    let now = Instant::now();
    let mut tcp = Tcp::connect(setup(near_addr(), far_addr(), 1), now);
    let mut none = Packets::new();
    none.clear_to(0);
    for second in 0..60 {
        assert_eq!(tcp.phase(), Phase::Connecting, "after {second} s");
        tcp.output(now + Duration::from_secs(second), &mut none);
        assert!(none.is_empty());
    }
    tcp.output(now + SILENCE_LIMIT, &mut none);
    assert_eq!(tcp.phase(), Phase::Closed(End::Silent));
}

#[test]
fn a_repeated_syn_is_the_same_one_at_once() {
    let now = Instant::now();
    let mut tcp = Tcp::connect(setup(near_addr(), far_addr(), 7), now);
    let mut packets = Packets::new();
    let mut put = |tcp: &mut Tcp| {
        packets.clear();
        tcp.output(now, &mut packets);
        packets.iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let first = put(&mut tcp);
    assert_eq!((first.len(), put(&mut tcp).len()), (1, 0));
    tcp.repeat_syn(now);
    assert_eq!(put(&mut tcp), first);
}
