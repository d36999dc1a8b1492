//! Bulkheads: how much of the door one cluster may take.
//!
//! Requests that end by themselves and those that last are counted apart: fifty watches leave room for a list, and a
//! cluster that answers nothing keeps its own requests waiting and nobody else's. What can't be taken in is told so at
//! once, or after a short wait, and clients come again by themselves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use guildnet_model::ClusterId;
use http::StatusCode;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::refusal::Refusal;

/// What one cluster may take. All of it together stays below the door's connections (`door/serve.rs`), so that clients that
/// use a connection for each request can't use up the door by way of one cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests at once that end by themselves: a third of what an API server takes in from all of its clients.
    pub(crate) short: usize,
    /// Requests that wait for one of those to end.
    pub(crate) waiting: usize,
    /// How long they wait.
    pub(crate) patience: Duration,
    /// Watches, followed logs and tunnels at once: five people's terminal interfaces of 50 watches each.
    pub(crate) lasting: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { short: 128, waiting: 256, patience: Duration::from_secs(10), lasting: 256 }
    }
}

/// The bulkheads of all clusters that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    bounds: Bounds,
    clusters: Mutex<BTreeMap<ClusterId, Arc<Bulkhead>>>,
}

#[derive(Debug)]
struct Bulkhead {
    short: Arc<Semaphore>,
    waiting: Semaphore,
    lasting: Arc<Semaphore>,
}

/// What of a cluster's [`Bounds`] is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) short: usize,
    pub(crate) waiting: usize,
    pub(crate) lasting: usize,
}

/// What is taken of all clusters at one moment; one that was never asked for is not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) bounds: Bounds,
    pub(crate) clusters: BTreeMap<ClusterId, Taken>,
}

/// A request's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Limits {
    #[cfg(test)]
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Takes a place for a request. Only for clusters that there are: each one asked for is remembered.
    ///
    /// # Errors
    /// 429: there is no place.
    pub(super) async fn enter(&self, cluster: &ClusterId, lasts: bool) -> Result<Place, Refusal> {
        let of = self.of(cluster);
        if lasts {
            let place = Arc::clone(&of.lasting).try_acquire_owned();
            let what = format!("{} watches, followed logs and tunnels are open", self.bounds.lasting);
            return place.map(Place).map_err(|_| too_many(cluster, &what));
        }
        if let Ok(place) = Arc::clone(&of.short).try_acquire_owned() {
            return Ok(Place(place));
        }
        let what = format!("{} requests wait for its API server", self.bounds.short);
        let _waiting = of.waiting.try_acquire().map_err(|_| too_many(cluster, &what))?;
        match timeout(self.bounds.patience, Arc::clone(&of.short).acquire_owned()).await {
            Ok(place) => Ok(Place(place.expect("the semaphore is never closed"))),
            Err(_) => Err(too_many(cluster, &what)),
        }
    }

    /// What is taken now.
    pub(crate) fn places(&self) -> Places {
        let bounds = self.bounds;
        let of = |(id, bulkhead): (&ClusterId, &Arc<Bulkhead>)| {
            let taken = Taken {
                short: bounds.short.saturating_sub(bulkhead.short.available_permits()),
                waiting: bounds.waiting.saturating_sub(bulkhead.waiting.available_permits()),
                lasting: bounds.lasting.saturating_sub(bulkhead.lasting.available_permits()),
            };
            (id.clone(), taken)
        };
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).iter().map(of).collect();
        Places { bounds, clusters }
    }

    /// Forgets a cluster that is no more. Places that are taken stay counted in what they were taken from.
    pub(super) fn forget(&self, cluster: &ClusterId) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    fn of(&self, cluster: &ClusterId) -> Arc<Bulkhead> {
        // One insertion at a time: a panic elsewhere leaves the map whole.
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            Arc::new(Bulkhead {
                short: Arc::new(Semaphore::new(self.bounds.short)),
                waiting: Semaphore::new(self.bounds.waiting),
                lasting: Arc::new(Semaphore::new(self.bounds.lasting)),
            })
        };
        Arc::clone(clusters.entry(cluster.clone()).or_insert_with(made))
    }
}

fn too_many(cluster: &ClusterId, what: &str) -> Refusal {
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("cluster {cluster}: too many requests at once: {what}"))
        .for_now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ClusterId {
        text.parse().expect("an id")
    }

    fn limits() -> Limits {
        Limits::new(Bounds { short: 1, waiting: 1, patience: Duration::from_secs(10), lasting: 1 })
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_next_and_one_more_is_refused_at_once() {
        let limits = limits();
        let a = id("a");
        let first = limits.enter(&a, false).await.expect("room");
        let begun = tokio::time::Instant::now();
        let (waited, refused) = tokio::join!(limits.enter(&a, false), async {
            let refused = limits.enter(&a, false).await;
            assert_eq!(limits.places().clusters[&a], Taken { short: 1, waiting: 1, lasting: 0 });
            drop(first);
            refused
        });
        waited.expect("served");
        assert_eq!(refused.expect_err("no room to wait").status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_an_end() {
        let limits = limits();
        let _first = limits.enter(&id("a"), false).await.expect("room");
        let begun = tokio::time::Instant::now();
        assert!(limits.enter(&id("a"), false).await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_and_other_clusters_are_counted_apart() {
        let limits = limits();
        let _short = limits.enter(&id("a"), false).await.expect("room");
        let lasting = limits.enter(&id("a"), true).await.expect("a room of its own");
        assert!(limits.enter(&id("a"), true).await.is_err());
        limits.enter(&id("b"), false).await.expect("not its affair");
        drop(lasting);
        limits.enter(&id("a"), true).await.expect("room again");
    }
}
