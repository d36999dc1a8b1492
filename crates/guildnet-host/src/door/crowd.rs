//! Who is at the door, and who gives way: connections that have shown a credential, and newcomers that have not.
//!
//! Anything on this machine may connect, and a connection costs its other end nothing. So newcomers have places of their own,
//! few of them, and when these are taken the one that has come first and shown nothing since is let go. It had its
//! [`CHANCE`]; an honest client needs a few milliseconds of it. Whoever shows a credential moves to the places of the
//! admitted, which nobody can take from it.
//!
//! [`Inside`] decides, pure; [`Crowd`] waits. Nothing is read or written here: `serve.rs` does that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Open};

/// How long a newcomer is left alone at least: ten handshakes with a first request behind them. With
/// [`Places::newcomers`] it is also how fast newcomers are taken in while none of them shows anything: 10,240 a second.
const CHANCE: Duration = Duration::from_millis(50);

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// That have shown a credential.
    pub(super) admitted: usize,
    /// That have not.
    pub(super) newcomers: usize,
}

/// The connections that there are. Pure: time comes in.
#[derive(Debug)]
struct Inside {
    places: Places,
    /// By when they came: the first one gives way first.
    newcomers: BTreeMap<u64, Newcomer>,
    admitted: usize,
    next: u64,
}

#[derive(Debug)]
struct Newcomer {
    since: Instant,
    /// Cancelled when it is to go. It keeps its place until it has gone.
    give_way: CancellationToken,
}

/// Whether there is a place for one more newcomer.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    /// It has this number.
    Taken(u64),
    /// Somebody is going already.
    Going,
    /// Nobody is to go before then.
    NotBefore(Instant),
}

impl Inside {
    fn enter(&mut self, now: Instant, give_way: &CancellationToken) -> Room {
        if self.newcomers.len() >= self.places.newcomers
            && let Some(first) = self.newcomers.values().next()
        {
            if first.give_way.is_cancelled() {
                return Room::Going;
            }
            if now < first.since + CHANCE {
                return Room::NotBefore(first.since + CHANCE);
            }
            first.give_way.cancel();
            return Room::Going;
        }
        let number = self.next;
        self.next += 1;
        self.newcomers.insert(number, Newcomer { since: now, give_way: give_way.clone() });
        Room::Taken(number)
    }

    /// Moves a newcomer to the admitted; `false` if there is no place. Who is admitted stays so.
    fn admit(&mut self, number: u64) -> bool {
        if !self.newcomers.contains_key(&number) {
            return true;
        }
        let room = self.admitted < self.places.admitted;
        if room {
            self.newcomers.remove(&number);
            self.admitted += 1;
        }
        room
    }

    fn leave(&mut self, number: u64) {
        if self.newcomers.remove(&number).is_none() {
            self.admitted -= 1;
        }
    }
}

/// The connections of one door.
#[derive(Debug)]
pub(super) struct Crowd {
    inside: Mutex<Inside>,
    /// Told when a newcomer has left or was admitted.
    changed: Notify,
    metrics: Arc<Metrics>,
}

impl Crowd {
    /// None yet; those that come are counted in `metrics`.
    pub(super) fn new(places: Places, metrics: Arc<Metrics>) -> Arc<Self> {
        let inside = Inside { places, newcomers: BTreeMap::new(), admitted: 0, next: 0 };
        Arc::new(Self { inside: Mutex::new(inside), changed: Notify::new(), metrics })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Each change is one call of a pure function that does not panic half-way.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer, as soon as one of those before it has gone, if it must be. One caller at a time: the door
    /// accepts one after another.
    ///
    /// # Cancellation
    /// Dropping the future takes no place.
    pub(super) async fn enter(self: &Arc<Self>) -> Slot {
        let give_way = CancellationToken::new();
        loop {
            let room = self.inside().enter(Instant::now(), &give_way);
            // A change between the two is remembered: there is one caller, and so one that is told.
            match room {
                Room::Taken(number) => {
                    let counted = Open::new(&self.metrics);
                    return Slot(Arc::new(Seat { crowd: Arc::clone(self), number, give_way, _counted: counted }));
                }
                Room::Going => self.changed.notified().await,
                Room::NotBefore(then) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = sleep_until(then) => {}
                    }
                }
            }
        }
    }
}

/// A connection's place; travels with its requests, so that a dial keeps it. Free again when the last copy is dropped.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<Seat>);

#[derive(Debug)]
struct Seat {
    crowd: Arc<Crowd>,
    number: u64,
    give_way: CancellationToken,
    _counted: Open,
}

impl Slot {
    /// A credential was shown: from now on the connection gives way to nobody. `false` if there are too many of those
    /// already; then it stays a newcomer.
    pub(super) fn admit(&self) -> bool {
        let admitted = self.0.crowd.inside().admit(self.0.number);
        if admitted {
            self.0.crowd.changed.notify_one();
        }
        admitted
    }

    /// Cancelled when this connection is to make room.
    pub(super) fn give_way(&self) -> CancellationToken {
        self.0.give_way.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crowd.inside().leave(self.number);
        self.crowd.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(admitted: usize, newcomers: usize) -> Arc<Crowd> {
        Crowd::new(Places { admitted, newcomers }, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_has_shown_nothing_gives_way_after_its_chance() {
        let crowd = crowd(8, 2);
        let (first, second) = (crowd.enter().await, crowd.enter().await);
        let begun = Instant::now();
        let entering = tokio::spawn({
            let crowd = Arc::clone(&crowd);
            async move { crowd.enter().await }
        });
        first.give_way().cancelled().await;
        assert_eq!(begun.elapsed(), CHANCE);
        assert!(!entering.is_finished() && !second.give_way().is_cancelled(), "it still has its place");
        drop(first);
        entering.await.expect("entered");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_shown_a_credential_gives_way_to_nobody_and_leaves_its_place_to_a_newcomer() {
        let crowd = crowd(1, 1);
        let first = crowd.enter().await;
        assert!(first.admit() && first.admit());
        let second = crowd.enter().await;
        assert!(!second.admit(), "there is one place only");
        let third = tokio::spawn({
            let crowd = Arc::clone(&crowd);
            async move { crowd.enter().await }
        });
        second.give_way().cancelled().await;
        assert!(!first.give_way().is_cancelled());
        drop((first, second));
        assert!(third.await.expect("entered").admit(), "free again");
    }

    #[tokio::test]
    async fn nothing_is_counted_twice() {
        let crowd = crowd(4, 4);
        for _ in 0..100 {
            let slots = [crowd.enter().await, crowd.enter().await, crowd.enter().await];
            slots[0].admit();
            drop(slots[0].clone());
        }
        let inside = crowd.inside();
        assert_eq!((inside.admitted, inside.newcomers.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_silent_ones_is_never_larger_than_its_places() {
        let crowd = crowd(4, 16);
        let mut silent = Vec::new();
        for _ in 0..1_000 {
            let slot = {
                let mut entering = std::pin::pin!(crowd.enter());
                loop {
                    tokio::select! {
                        slot = &mut entering => break slot,
                        () = tokio::time::sleep(Duration::from_millis(1)) => {}
                    }
                    silent.retain(|slot: &Slot| !slot.give_way().is_cancelled());
                }
            };
            silent.push(slot);
            assert!(crowd.inside().newcomers.len() <= 16);
        }
    }
}
