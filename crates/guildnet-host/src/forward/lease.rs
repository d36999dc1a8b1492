//! Forwards that live as long as who asked for them: as long as a connection to the door, so that a command that is killed
//! leaves nothing behind.

use std::{net::SocketAddrV4, sync::Arc};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::{ForwardStatus, Forwards, Inserted, Trouble, entrance::Gate};

/// What the holder of a lease is told, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Said {
    /// First: the forwards.
    Forwards(Vec<ForwardStatus>),
    /// A connection came to nothing.
    Trouble {
        /// Of which forward.
        #[schema(value_type = String)]
        local: SocketAddrV4,
        /// Why.
        trouble: Trouble,
    },
}

/// Leased forwards. Dropping it ends those that are still there.
pub(crate) struct Lease {
    all: Arc<Forwards>,
    first: Option<Vec<ForwardStatus>>,
    mine: Vec<(SocketAddrV4, Arc<Gate>, CancellationToken)>,
    news: broadcast::Receiver<(SocketAddrV4, Trouble)>,
}

impl Lease {
    pub(super) fn new(
        all: Arc<Forwards>,
        inserted: Vec<Inserted>,
        news: broadcast::Receiver<(SocketAddrV4, Trouble)>,
    ) -> Self {
        let first = inserted.iter().map(|(status, ..)| status.clone()).collect();
        let mine = inserted.into_iter().map(|(status, gate, ended)| (status.local, gate, ended)).collect();
        Self { all, first: Some(first), mine, news }
    }

    /// The forwards, and then each trouble as it comes, until none of the forwards is left.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        if let Some(first) = self.first.take() {
            return Some(Said::Forwards(first));
        }
        loop {
            let told = tokio::select! {
                _ = join_all(self.mine.iter().map(|(_, _, ended)| ended.cancelled())) => return None,
                told = self.news.recv() => told,
            };
            match told {
                Ok((local, trouble)) if self.mine.iter().any(|(mine, ..)| *mine == local) => {
                    return Some(Said::Trouble { local, trouble });
                }
                // Somebody else's, or too many to tell.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.mine.iter().for_each(|(local, gate, _)| self.all.end(*local, gate));
    }
}
