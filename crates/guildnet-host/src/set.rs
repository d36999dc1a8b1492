//! `cluster set`: switches of a known cluster that need no new connector.

use guildnet_model::ClusterId;
use jiff::Timestamp;

use crate::{HostError, Progress, Settings, add, client::HostClient, error::Explained as _, fleet, up::Known};

/// What `cluster set` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetChange {
    /// It was not so before.
    pub changed: bool,
    /// A Host App runs, and follows it at once.
    pub served: bool,
}

/// See [`crate::cluster_set`].
pub(crate) async fn cluster_set(
    settings: &Settings,
    id: &ClusterId,
    read_only: bool,
    progress: &dyn Progress,
) -> Result<SetChange, HostError> {
    let known = Known::read(settings).await?;
    let record = known.record(id).ok_or_else(|| add::unknown(id, &known))?;
    let changed = record.read_only != read_only;
    if changed {
        let mut record = record.clone();
        record.read_only = read_only;
        record.updated = Timestamp::now();
        let store = fleet::open_store(settings).await?;
        let stored = store.replace(&record).await.explained_of(id);
        store.close().await;
        stored?;
    }
    let host = HostClient::discover(&settings.home)?;
    if let Some(host) = &host {
        host.reload().await?;
        progress.step(Some(id), if read_only { "read-only from now on" } else { "writable from now on" });
    }
    Ok(SetChange { changed, served: host.is_some() })
}
