//! What is counted while the Host App runs, and `/metrics`: OpenMetrics text for a Prometheus server.
//!
//! One [`Metrics`] for each Host App, owned by its fleet; there is no global. On the way of a request a count is one
//! atomic addition (`metrics/counts.rs`); everything else is looked at when somebody asks (`metrics/process.rs`, and
//! [`observe`] for the clusters), and put into words by a pure function, `metrics/families.rs`, where every name stands.
//!
//! Labels are bounded: clusters that the store knows, and words from this code. Nothing of a path, a name or an address
//! that comes from outside is ever one. A cluster that is removed takes its series with it.

mod counts;
mod exposition;
mod families;
mod process;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use guildnet_model::{ClusterId, ConnectorSnapshot, ConnectorStatus};
use tokio::time::timeout;

use crate::{
    fleet::Fleet,
    verify::{Report, Verdict},
};

pub(crate) use counts::{Begun, ClusterCounts, DoorCounts, Open, Surface, Timed, Verb, Way, WayCounts};
pub(crate) use exposition::CONTENT_TYPE;

/// How long a connector may take to show itself. It answers at once with what it knows; one whose thread is busy for longer is
/// reported by its last status, so that the scrape (10 s by Prometheus's default) is never held up.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(1);

/// What one Host App counts.
pub(crate) struct Metrics {
    started: SystemTime,
    pub(crate) door: DoorCounts,
    /// The clusters that there are; [`Fleet`] says which. Written only when that changes.
    clusters: RwLock<BTreeMap<ClusterId, Arc<ClusterCounts>>>,
    verify: Mutex<Verified>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What the runs of verify brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verified {
    /// Runs that succeeded, and that did not.
    pub(crate) runs: [u64; 2],
    /// The last one of each: of the server (`None`) and of the clusters.
    pub(crate) last: BTreeMap<Option<ClusterId>, LastVerify>,
}

/// The last verify of one cluster, or of the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LastVerify {
    /// When it ended.
    pub(crate) at: SystemTime,
    /// Checks that passed, warned, failed and were skipped.
    pub(crate) checks: [u64; 4],
}

/// One cluster, as it was seen for a scrape.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSeen {
    /// Its id.
    pub(crate) id: ClusterId,
    /// What it is doing.
    pub(crate) connector: ConnectorSeen,
}

/// A cluster's connector, as it was seen for a scrape.
#[derive(Clone, Debug)]
pub(crate) enum ConnectorSeen {
    /// There is none: a person has disconnected the cluster.
    Disconnected,
    /// There is none: what is stored of the cluster can't be used.
    Unusable,
    /// There is one.
    Runs {
        /// Its status.
        status: Box<ConnectorStatus>,
        /// All that it showed, if it did in time.
        snapshot: Option<Box<ConnectorSnapshot>>,
        /// How often it became usable.
        epochs: u64,
    },
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            door: DoorCounts::default(),
            clusters: RwLock::default(),
            verify: Mutex::default(),
        }
    }
}

impl Metrics {
    // Changes are one insertion or removal: a panic elsewhere leaves the maps whole.
    fn clusters(&self) -> RwLockReadGuard<'_, BTreeMap<ClusterId, Arc<ClusterCounts>>> {
        self.clusters.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn clusters_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<ClusterId, Arc<ClusterCounts>>> {
        self.clusters.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn verify(&self) -> MutexGuard<'_, Verified> {
        self.verify.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes these as the clusters that there are: new ones count from zero, those that are no more are forgotten.
    pub(crate) fn know(&self, ids: &[ClusterId]) {
        let mut clusters = self.clusters_mut();
        clusters.retain(|id, _| ids.contains(id));
        for id in ids {
            clusters.entry(id.clone()).or_default();
        }
        self.verify().last.retain(|id, _| id.as_ref().is_none_or(|id| ids.contains(id)));
    }

    /// The counts of a cluster; `None` for one that there is not, so that nobody's word makes a series.
    pub(crate) fn of(&self, id: &ClusterId) -> Option<Arc<ClusterCounts>> {
        self.clusters().get(id).cloned()
    }

    /// Takes note of a verify that has ended now.
    pub(crate) fn verified(&self, report: &Report) {
        let at = SystemTime::now();
        // Before the other lock: they are never held in the other order than `know` does.
        let known: Vec<ClusterId> = self.clusters().keys().cloned().collect();
        let mut verify = self.verify();
        verify.runs[usize::from(!report.success)] += 1;
        for part in &report.clusters {
            let of = |verdict| part.checks.iter().filter(|c| c.result == verdict).count() as u64;
            let last = LastVerify { at, checks: [Verdict::Pass, Verdict::Warn, Verdict::Fail, Verdict::Skip].map(of) };
            // A resting cluster is named without checks: nothing was seen of it.
            match known.iter().find(|id| id.as_str() == part.id) {
                Some(id) if !part.checks.is_empty() => drop(verify.last.insert(Some(id.clone()), last)),
                None if part.id.is_empty() => drop(verify.last.insert(None, last)),
                _ => {}
            }
        }
    }

    /// What the answer to a scrape says. `places` are those that the bulkheads have given away.
    pub(crate) fn render(&self, clusters: Vec<ClusterSeen>, places: &crate::proxy::Places) -> String {
        let counts = self.clusters().clone();
        let seen = families::Seen {
            version: env!("CARGO_PKG_VERSION"),
            started: self.started,
            door: self.door.seen(),
            clusters: clusters.into_iter().filter_map(|c| counts.get(&c.id).map(|n| (c, n.seen()))).collect(),
            places,
            verify: self.verify().clone(),
            process: process::look(),
        };
        exposition::text(families::of(&seen))
    }
}

/// Looks at all clusters of a fleet at once.
pub(crate) async fn observe(fleet: &Fleet) -> Vec<ClusterSeen> {
    let running = join_all(fleet.handles().into_iter().map(async |handle| {
        // Late: its status is known without it.
        let snapshot = timeout(SNAPSHOT_LIMIT, handle.snapshot()).await.ok().flatten();
        let status = snapshot.as_ref().map_or_else(|| handle.status(), |s| s.status.clone());
        let (snapshot, epochs) = (snapshot.map(Box::new), handle.epoch());
        ClusterSeen {
            id: handle.id().clone(),
            connector: ConnectorSeen::Runs { status: Box::new(status), snapshot, epochs },
        }
    }))
    .await;
    let resting = fleet.disconnected().into_iter().map(|(id, _)| (id, ConnectorSeen::Disconnected));
    let unusable =
        fleet.unusable().into_iter().filter_map(|why| Some((why.cluster()?.clone(), ConnectorSeen::Unusable)));
    let still = resting.chain(unusable).map(|(id, connector)| ClusterSeen { id, connector });
    let mut all: Vec<ClusterSeen> = running.into_iter().chain(still).collect();
    all.sort_by(|x, y| x.id.cmp(&y.id));
    all
}
