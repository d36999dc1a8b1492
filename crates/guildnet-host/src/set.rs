//! Switches of a known cluster: `cluster connect` and `disconnect` (whether its connector runs), `cluster set` (what needs no
//! new connector). The record stays, and so does what was asked for, over restarts.

use std::num::NonZeroU16;

use guildnet_model::ClusterId;
use guildnet_store::ClusterRecord;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{HostError, Progress, ProxiesRequest, Settings, add, client::HostClient, fleet, up::Known};

/// What a switch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switched {
    /// It was not so before.
    pub changed: bool,
    /// A Host App runs, and follows it at once.
    pub served: bool,
}

/// Switches of a cluster; what is not given stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterChange {
    /// Whether its connector runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connected: Option<bool>,
    /// Whether the Host App passes on only what changes nothing there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_only: Option<bool>,
    /// Whether SOCKS5 and CONNECT proxies lead into it. Whether they could have their ports: GET /clusters/{id}/proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) proxies: Option<bool>,
    /// The SOCKS5 proxy's port; 1080 if none was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 1)]
    pub(crate) socks_port: Option<NonZeroU16>,
    /// The CONNECT proxy's port; 8080 if none was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 1)]
    pub(crate) http_port: Option<NonZeroU16>,
}

impl ClusterChange {
    /// Sets those of the record in it. `true`: it was not so before.
    pub(crate) fn apply(&self, record: &mut ClusterRecord) -> bool {
        let wanted = ClusterRecord {
            disconnected: self.connected.map_or(record.disconnected, |connected| !connected),
            read_only: self.read_only.unwrap_or(record.read_only),
            ..record.clone()
        };
        let changed = wanted != *record;
        if changed {
            *record = ClusterRecord { updated: Timestamp::now(), ..wanted };
        }
        changed
    }

    /// What they say of the proxies.
    pub(crate) fn of_proxies(&self) -> ProxiesRequest {
        ProxiesRequest { on: self.proxies, socks_port: self.socks_port, http_port: self.http_port }
    }
}

impl From<ProxiesRequest> for ClusterChange {
    fn from(asked: ProxiesRequest) -> Self {
        let ProxiesRequest { on, socks_port, http_port } = asked;
        Self { proxies: on, socks_port, http_port, ..Self::default() }
    }
}

/// See [`crate::cluster_connect`].
pub(crate) async fn cluster_connect(
    settings: &Settings,
    id: &ClusterId,
    connect: bool,
    progress: &dyn Progress,
) -> Result<Switched, HostError> {
    let said = if connect { "connecting" } else { "disconnected" };
    let change = ClusterChange { connected: Some(connect), ..ClusterChange::default() };
    switch(settings, id, &change, said, progress).await
}

/// See [`crate::cluster_set`].
pub(crate) async fn cluster_set(
    settings: &Settings,
    id: &ClusterId,
    read_only: bool,
    progress: &dyn Progress,
) -> Result<Switched, HostError> {
    let said = if read_only { "read-only from now on" } else { "writable from now on" };
    let change = ClusterChange { read_only: Some(read_only), ..ClusterChange::default() };
    switch(settings, id, &change, said, progress).await
}

/// Has the running Host App set switches, which is told as `said`; without one, sets them in the store.
async fn switch(
    settings: &Settings,
    id: &ClusterId,
    change: &ClusterChange,
    said: &str,
    progress: &dyn Progress,
) -> Result<Switched, HostError> {
    if let Some(host) = HostClient::discover(&settings.home)? {
        let changed = host.change(id, change).await?;
        progress.step(Some(id), said);
        return Ok(Switched { changed, served: true });
    }
    let known = Known::read(settings).await?;
    let mut record = known.record(id).ok_or_else(|| add::unknown(id, &known))?.clone();
    let changed = change.apply(&mut record);
    if changed {
        fleet::put(settings, &record).await?;
    }
    Ok(Switched { changed, served: false })
}
