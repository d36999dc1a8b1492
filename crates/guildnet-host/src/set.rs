//! Switches of a known cluster: `cluster connect` and `disconnect` (whether its connector runs), `cluster set` (what needs no
//! new connector). The record stays, and so does what was asked for, over restarts.

use guildnet_model::ClusterId;
use guildnet_store::ClusterRecord;
use jiff::Timestamp;

use crate::{HostError, Progress, Settings, add, client::HostClient, fleet, up::Known};

/// What a switch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switched {
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
) -> Result<Switched, HostError> {
    let said = if connect { "connecting" } else { "disconnected" };
    switch(settings, id, |record| &mut record.disconnected, !connect, said, progress).await
}

/// See [`crate::cluster_set`].
pub(crate) async fn cluster_set(
    settings: &Settings,
    id: &ClusterId,
    read_only: bool,
    progress: &dyn Progress,
) -> Result<Switched, HostError> {
    let said = if read_only { "read-only from now on" } else { "writable from now on" };
    switch(settings, id, |record| &mut record.read_only, read_only, said, progress).await
}

/// Sets one field of a record, and has a running Host App follow it, which is told as `said`.
async fn switch(
    settings: &Settings,
    id: &ClusterId,
    field: impl FnOnce(&mut ClusterRecord) -> &mut bool,
    wanted: bool,
    said: &str,
    progress: &dyn Progress,
) -> Result<Switched, HostError> {
    let known = Known::read(settings).await?;
    let mut record = known.record(id).ok_or_else(|| add::unknown(id, &known))?.clone();
    let changed = std::mem::replace(field(&mut record), wanted) != wanted;
    if changed {
        record.updated = Timestamp::now();
        fleet::put(settings, &record).await?;
    }
    let host = HostClient::discover(&settings.home)?;
    if let Some(host) = &host {
        host.reload().await?;
        progress.step(Some(id), said);
    }
    Ok(Switched { changed, served: host.is_some() })
}
