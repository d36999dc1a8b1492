//! How what serves clients ends: what is open gets some time, and is cut then. And how that which should end soon is named when
//! it does not.

use std::{pin::pin, time::Duration};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What open requests, dials and connections into clusters get when the Host App stops.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long something that ends soon may take before the log says that it is waited for, and how often it says so. Longer than
/// [`GRACE`], shorter than what `guildnet down` waits.
const SOON: Duration = Duration::from_secs(15);

/// Waits until all tasks have ended; those that have not within the grace are told by `cut`. `what` is cut then, for the log.
pub(crate) async fn drain(tasks: &TaskTracker, cut: &CancellationToken, grace: Duration, what: &str) {
    tasks.close();
    if timeout(grace, tasks.wait()).await.is_err() {
        tracing::info!(left = tasks.len(), "the grace is over: {what} are cut");
        cut.cancel();
        tasks.wait().await;
    }
}

/// Waits for something that ends soon. While it does not, the log names it: whoever waits for the Host App then sees for what.
pub(crate) async fn named<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        match timeout(SOON, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => tracing::warn!(%what, "still waited for"),
        }
    }
}
