//! How what serves clients ends: what is open gets some time, and is cut then.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What open requests, dials and connections into clusters get when the Host App stops.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Waits until all tasks have ended; those that have not within the grace are told by `cut`. `what` is cut then, for the log.
pub(crate) async fn drain(tasks: &TaskTracker, cut: &CancellationToken, grace: Duration, what: &str) {
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        tracing::info!(left = tasks.len(), "the grace is over: {what} are cut");
        cut.cancel();
        tasks.wait().await;
    }
}
