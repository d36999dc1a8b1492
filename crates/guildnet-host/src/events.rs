//! What happened, in order: for those who watch instead of asking again and again.
//!
//! The last [`KEPT`] events are kept. A watcher has a place in them and no queue of its own: one that is slow costs nothing,
//! and one that was away goes on where it was, or is told that it missed something and must read everything again. An event
//! says what changed and to what; the state itself is asked for elsewhere.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use guildnet_model::ClusterId;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::jobs::JobState;

/// Events that are kept: minutes of a busy fleet, a few hundred KiB at most.
const KEPT: usize = 1024;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum What {
    /// A cluster's connector is in another state.
    Cluster {
        /// The cluster.
        #[schema(value_type = String)]
        cluster: ClusterId,
        /// The state, one word, as in the cluster's status.
        state: &'static str,
        /// The same in words, with the cause.
        detail: String,
    },
    /// The clusters were read again from the store.
    Clusters {
        /// Those that are served now and were not, or not so.
        #[schema(value_type = Vec<String>)]
        started: Vec<ClusterId>,
        /// Those that are no longer served.
        #[schema(value_type = Vec<String>)]
        stopped: Vec<ClusterId>,
    },
    /// A job began, made a step, or ended.
    Job {
        /// The job.
        job: String,
        /// Its state.
        state: JobState,
        /// What it did last.
        step: Option<String>,
    },
}

impl What {
    /// The kind, as `event:` in the stream.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Cluster { .. } => "cluster",
            Self::Clusters { .. } => "clusters",
            Self::Job { .. } => "job",
        }
    }
}

/// The place of an event: which life of the Host App, and the how-manieth in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    life: u32,
    number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.life, self.number)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (life, number) = text.split_once('-').ok_or(())?;
        let (life, number) = (u32::from_str_radix(life, 16), number.parse());
        Ok(Self { life: life.map_err(drop)?, number: number.map_err(drop)? })
    }
}

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Event {
    /// When.
    pub(crate) at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// The events of one Host App.
#[derive(Debug)]
pub(crate) struct Events {
    life: u32,
    kept: Mutex<VecDeque<Event>>,
    /// The number of the last event; 0 before the first.
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { life: rand::random(), kept: Mutex::default(), last: watch::Sender::new(0) }
    }
}

/// What a watcher sees next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next event.
    Event(Event),
    /// Events went by that are no longer kept, or belong to another life: what is known must be read again.
    Missed,
}

/// A watcher's place among the events.
#[derive(Debug)]
pub(crate) struct Follower {
    events: Arc<Events>,
    last: watch::Receiver<u64>,
    /// The number of the last event that was seen.
    seen: u64,
    missed: bool,
}

impl Events {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // A panic elsewhere leaves the list whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all watchers. Never waits for one.
    pub(crate) fn tell(&self, what: What) {
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Event { at: Timestamp::now(), what });
        // Under the lock, so that numbers and events agree.
        self.last.send_modify(|number| *number += 1);
    }

    /// Watches from the place after `after` on; from now on, if none is given.
    pub(crate) fn follow(self: &Arc<Self>, after: Option<Place>) -> Follower {
        let last = self.last.subscribe();
        let now = *last.borrow();
        let (seen, missed) = match after {
            None => (now, false),
            Some(place) if place.life == self.life && place.number <= now => (place.number, false),
            Some(_) => (now, true),
        };
        Follower { events: Arc::clone(self), last, seen, missed }
    }
}

impl Follower {
    /// Where it is: to go on from later.
    pub(crate) fn place(&self) -> Place {
        Place { life: self.events.life, number: self.seen }
    }

    /// The next event, once there is one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            let last = *self.last.borrow_and_update();
            if let Some(next) = self.at_hand(last) {
                return next;
            }
            // The sender lives as long as `self.events`.
            let _never_closed = self.last.changed().await;
        }
    }

    fn at_hand(&mut self, last: u64) -> Option<Next> {
        if std::mem::take(&mut self.missed) {
            return Some(Next::Missed);
        }
        if self.seen == last {
            return None;
        }
        let kept = self.events.kept();
        // Counted again under the lock: more may have happened.
        let last = *self.events.last.borrow();
        let first = last - kept.len() as u64 + 1;
        if self.seen + 1 < first {
            self.seen = last;
            return Some(Next::Missed);
        }
        self.seen += 1;
        let index = usize::try_from(self.seen - first).ok()?;
        kept.get(index).cloned().map(Next::Event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> What {
        What::Job { job: number.to_string(), state: JobState::Running, step: None }
    }

    async fn seen(follower: &mut Follower) -> Option<What> {
        match follower.next().await {
            Next::Event(event) => Some(event.what),
            Next::Missed => None,
        }
    }

    #[tokio::test]
    async fn a_watcher_sees_what_happens_after_it_came_in_order() {
        let events = Arc::new(Events::default());
        events.tell(job(0));
        let mut watcher = events.follow(None);
        events.tell(job(1));
        events.tell(job(2));
        assert_eq!(seen(&mut watcher).await, Some(job(1)));
        assert_eq!(seen(&mut watcher).await, Some(job(2)));
        let later = tokio::spawn(async move { seen(&mut watcher).await });
        tokio::task::yield_now().await;
        events.tell(job(3));
        assert_eq!(later.await.expect("ended"), Some(job(3)));
    }

    #[tokio::test]
    async fn one_that_comes_back_goes_on_where_it_was() {
        let events = Arc::new(Events::default());
        let mut watcher = events.follow(None);
        events.tell(job(1));
        seen(&mut watcher).await;
        let place = watcher.place().to_string();
        drop(watcher);
        events.tell(job(2));
        let mut again = events.follow(Some(place.parse().expect("a place")));
        assert_eq!(seen(&mut again).await, Some(job(2)));
    }

    #[tokio::test]
    async fn one_that_was_away_too_long_or_in_another_life_is_told_so() {
        let events = Arc::new(Events::default());
        let mut slow = events.follow(None);
        (0..=KEPT).for_each(|n| events.tell(job(n)));
        assert_eq!(seen(&mut slow).await, None);
        events.tell(job(9));
        assert_eq!(seen(&mut slow).await, Some(job(9)), "and goes on with what comes after");

        let other = Arc::new(Events { life: events.life.wrapping_add(1), ..Events::default() });
        let mut of_another = other.follow(Some(slow.place()));
        assert_eq!(seen(&mut of_another).await, None);
        let ahead = Place { life: events.life, number: u64::MAX };
        assert_eq!(seen(&mut events.follow(Some(ahead))).await, None);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in ["", "1", "x-1", "00000000-", "00000000--1", "fffffffff-1"] {
            assert_eq!(text.parse::<Place>(), Err(()), "{text}");
        }
    }

    #[tokio::test]
    async fn all_kept_events_are_seen_by_one_that_is_just_in_time() {
        let events = Arc::new(Events::default());
        let mut watcher = events.follow(None);
        (0..KEPT).for_each(|n| events.tell(job(n)));
        for n in 0..KEPT {
            assert_eq!(seen(&mut watcher).await, Some(job(n)));
        }
    }
}
