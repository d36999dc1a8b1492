//! `cluster connect` and `disconnect`: whether a known cluster's connector runs. The record stays, and so does what was asked
//! for, over restarts.

use guildnet_model::ClusterId;
use jiff::Timestamp;

use crate::{HostError, Progress, Settings, add, client::HostClient, error::Explained as _, fleet, up::Known};

/// What `cluster connect` and `disconnect` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionChange {
    /// It was not so before.
    pub changed: bool,
    /// A Host App runs, and follows it at once.
    pub served: bool,
}

/// See [`crate::cluster_connect`].
pub(crate) async fn cluster_connect(
    settings: &Settings,
    id: &ClusterId,
    connect: bool,
    progress: &dyn Progress,
) -> Result<ConnectionChange, HostError> {
    let known = Known::read(settings).await?;
    let record = known.record(id).ok_or_else(|| add::unknown(id, &known))?;
    let changed = record.disconnected == connect;
    if changed {
        let mut record = record.clone();
        record.disconnected = !connect;
        record.updated = Timestamp::now();
        let store = fleet::open_store(settings).await?;
        let stored = store.replace(&record).await.explained_of(id);
        store.close().await;
        stored?;
    }
    let host = HostClient::discover(&settings.home)?;
    if let Some(host) = &host {
        host.reload().await?;
        progress.step(Some(id), if connect { "connecting" } else { "disconnected" });
    }
    Ok(ConnectionChange { changed, served: host.is_some() })
}
