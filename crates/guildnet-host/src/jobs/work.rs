//! What a job can do: the operations of this crate that change something or take a while, as data.

use std::{fmt, sync::Arc};

use guildnet_model::{Class, ClusterId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Run;
use crate::{AddRequest, HostError, Progress, RemoveRequest, RouterRequest, Settings, add, remove, rotate, router};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobKind {
    /// All checks.
    Verify,
    /// A cluster is added.
    ClusterAdd,
    /// A cluster is removed.
    ClusterRemove,
    /// A cluster's routers are deployed or brought up to date.
    RouterEnsure,
    /// A cluster's routers are taken out.
    RouterRemove,
    /// A cluster's connector gets a new identity.
    KeysRotate,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Verify => "verify",
            Self::ClusterAdd => "cluster add",
            Self::ClusterRemove => "cluster remove",
            Self::RouterEnsure => "router ensure",
            Self::RouterRemove => "router remove",
            Self::KeysRotate => "keys rotate",
        })
    }
}

/// Work on one cluster.
#[derive(Debug)]
pub(crate) enum Work {
    /// See [`cluster_add`].
    Add(AddRequest),
    /// See [`cluster_remove`].
    Remove(RemoveRequest),
    /// See [`router_ensure`].
    Router(RouterRequest),
    /// See [`router_remove`].
    RouterRemove(RouterRequest),
    /// See [`keys_rotate`].
    Rotate {
        /// The cluster.
        id: ClusterId,
        /// Whether its routers get a new key too.
        router: bool,
    },
}

impl Work {
    /// The kind of job.
    pub(crate) fn kind(&self) -> JobKind {
        match self {
            Self::Add(_) => JobKind::ClusterAdd,
            Self::Remove(_) => JobKind::ClusterRemove,
            Self::Router(_) => JobKind::RouterEnsure,
            Self::RouterRemove(_) => JobKind::RouterRemove,
            Self::Rotate { .. } => JobKind::KeysRotate,
        }
    }

    /// The cluster that is changed.
    pub(crate) fn cluster(&self) -> &ClusterId {
        match self {
            Self::Add(request) => &request.id,
            Self::Remove(request) => &request.id,
            Self::Router(request) | Self::RouterRemove(request) => &request.id,
            Self::Rotate { id, .. } => id,
        }
    }

    /// The work itself. It finds the Host App that it runs in by its folder, as a command would.
    pub(crate) fn run(self, settings: Settings) -> Run {
        Box::new(move |progress| Box::pin(async move { self.at(&settings, &progress).await }))
    }

    async fn at(self, settings: &Settings, progress: &Arc<dyn Progress>) -> Result<Value, HostError> {
        let progress = progress.as_ref();
        match self {
            Self::Add(request) => as_value(&add::cluster_add(settings, request, progress).await?),
            Self::Remove(request) => as_value(&remove::cluster_remove(settings, &request, progress).await?),
            Self::Router(request) => as_value(&router::router_ensure(settings, request, progress).await?),
            Self::RouterRemove(request) => as_value(&remove::router_remove(settings, &request, progress).await?),
            Self::Rotate { id, router } => as_value(&rotate::keys_rotate(settings, &id, router, progress).await?),
        }
    }
}

/// A result as JSON.
///
/// # Errors
/// Never in practice: results are texts and numbers.
pub(crate) fn as_value(result: &impl Serialize) -> Result<Value, HostError> {
    serde_json::to_value(result)
        .map_err(|why| HostError::new(Class::Failed, format!("the result can't be told: {why}")))
}
