//! Verify: asks every link of every cluster at once and names the one that is broken, with the command that mends it.
//!
//! The checks are data, one list (`list.rs`): what is asked, what must hold before, and a function that fetches facts
//! (`context.rs`) and hands them to a pure decision (`server.rs`, `membership.rs`, `kube.rs`, `cluster.rs`, `isolation.rs`).
//! `schedule.rs` runs them, `report.rs` is what comes out. Nothing here mends anything.

mod cluster;
mod context;
mod expiry;
mod isolation;
mod kube;
mod list;
mod membership;
mod report;
mod schedule;
mod server;

use std::sync::Arc;

use guildnet_model::{Class, ClusterId};

pub use self::report::{CheckReport, ClusterReport, Outcome, Report, Verdict};
pub(crate) use self::server::policy as policy_outcome;
use self::{
    context::{CheckContext, Shared},
    list::CHECKS,
};
use crate::{
    HostError, Progress, Settings, Silent, client::HostClient, cluster::ClusterHandle, fleet, fleet::Fleet, host::Deps,
};

/// See [`crate::verify`].
pub(crate) async fn verify(
    settings: &Settings,
    clusters: &[ClusterId],
    progress: &dyn Progress,
) -> Result<Report, HostError> {
    if let Some(host) = HostClient::discover(&settings.home)? {
        return host.verify(clusters).await;
    }
    let Some(store) = fleet::open_existing(settings).await? else { return Err(nothing_known()) };
    progress.step(None, "no Host App runs: starting connectors for these checks");
    let fleet = Fleet::new(store, Deps::real()?.connectors);
    let report = match fleet.reload().await {
        Ok(_) => verify_fleet(&fleet, clusters, &Silent).await,
        Err(why) => Err(why),
    };
    fleet.stop().await;
    report
}

fn nothing_known() -> HostError {
    HostError::new(Class::NotFound, "no cluster is known here").with_hint("guildnet up --cluster ID=KUBECONFIG")
}

/// The same on clusters that are served by this process; each check is told when it has ended.
pub(crate) async fn verify_fleet(
    fleet: &Fleet,
    ids: &[ClusterId],
    progress: &dyn Progress,
) -> Result<Report, HostError> {
    if let Some(why) =
        fleet.unusable().into_iter().find(|e| ids.is_empty() || e.cluster().is_none_or(|c| ids.contains(c)))
    {
        return Err(why);
    }
    // What a person has disconnected is not required to work: it is in the report, without checks.
    let mut resting: Vec<ClusterId> = fleet.disconnected().into_iter().map(|(id, _)| id).collect();
    let wanted: Vec<ClusterId> = ids.iter().filter(|id| !resting.contains(id)).cloned().collect();
    let asked = if wanted.len() < ids.len() && wanted.is_empty() { vec![] } else { fleet.handles_of(&wanted)? };
    resting.retain(|id| ids.is_empty() || ids.contains(id));
    if asked.is_empty() && resting.is_empty() {
        return Err(nothing_known());
    }
    let shared = Arc::new(Shared::new(fleet.server().await?, fleet.handles()));
    let server = CheckContext::new(Arc::clone(&shared), None);
    let context = |c: &ClusterHandle| {
        let context = CheckContext::new(Arc::clone(&shared), Some(c.clone()));
        (c.id().clone(), context.with_router_key(fleet.router_key(c.id())))
    };
    let contexts: Vec<(ClusterId, CheckContext)> = asked.iter().map(context).collect();
    let mut report = schedule::run_all(CHECKS, &server, &contexts, progress).await;
    report.clusters.extend(resting.iter().map(|id| ClusterReport::of(Some(id), vec![])));
    report.clusters.sort_by(|x, y| x.id.cmp(&y.id));
    for cluster in &asked {
        fleet.remember(cluster).await;
    }
    fleet.metrics().verified(&report);
    tracing::info!(summary = report.summary(), "verified");
    for of in &report.clusters {
        for check in of.checks.iter().filter(|check| matches!(check.result, Verdict::Fail | Verdict::Warn)) {
            tracing::info!(cluster = of.id, check = check.id, result = %check.result, seen = check.seen, "verified");
        }
    }
    Ok(report)
}
