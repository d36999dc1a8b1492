//! Forwards and proxies of the running Host App, for the command.

use bytes::Bytes;
use guildnet_model::{Class, ClusterId, Explain as _};
use http::Method;

use super::{ASK_TIME, HostClient, lines::Lines};
use crate::{
    HostError,
    door::AskedForwards,
    forward::{ForwardSpec, ForwardStatus, ProxiesStatus, Said},
};

/// The other end of a lease (`forward/lease.rs`): the forwards end when it is dropped.
pub(crate) struct LeaseClient(Lines);

impl HostClient {
    /// All forwards.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(crate) async fn forwards(&self) -> Result<Vec<ForwardStatus>, HostError> {
        self.get("/api/v1/forwards").await
    }

    /// The proxies of a cluster.
    ///
    /// # Errors
    /// There is no such cluster; it does not answer, or refuses.
    pub(crate) async fn proxies(&self, cluster: &ClusterId) -> Result<ProxiesStatus, HostError> {
        self.get(&format!("/api/v1/clusters/{cluster}/proxies")).await
    }

    /// Makes forwards that stay.
    ///
    /// # Errors
    /// It can't make one of them, and has made none; it does not answer, or refuses.
    pub(crate) async fn keep_forwards(
        &self,
        cluster: &ClusterId,
        forwards: &[ForwardSpec],
    ) -> Result<Vec<ForwardStatus>, HostError> {
        let asked = asked(cluster, forwards);
        let answer = self.exchange(Method::POST, "/api/v1/forwards", asked, ASK_TIME).await?;
        self.read(answer)
    }

    /// Stops a forward; what it had done by then.
    ///
    /// # Errors
    /// [`Class::NotFound`] if there is none of that id; it does not answer, or refuses.
    pub(crate) async fn stop_forward(&self, id: &str) -> Result<ForwardStatus, HostError> {
        let id: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
        let answer = self.exchange(Method::DELETE, &format!("/api/v1/forwards/{id}"), Bytes::new(), ASK_TIME).await?;
        self.read(answer)
    }

    /// Makes forwards that end with what is returned.
    ///
    /// # Errors
    /// As [`Self::keep_forwards`].
    pub(crate) async fn lease_forwards(
        &self,
        cluster: &ClusterId,
        forwards: &[ForwardSpec],
    ) -> Result<(Vec<ForwardStatus>, LeaseClient), HostError> {
        let lines = self.lines(Method::POST, "/api/v1/forwards/lease", asked(cluster, forwards)).await?;
        let mut lease = LeaseClient(lines);
        match lease.next().await? {
            Some(Said::Forwards(forwards)) => Ok((forwards, lease)),
            _ => Err(self.silent("it did not say which forwards there are")),
        }
    }
}

fn asked(cluster: &ClusterId, forwards: &[ForwardSpec]) -> Bytes {
    let asked = AskedForwards { cluster: cluster.clone(), forwards: forwards.to_vec() };
    serde_json::to_vec(&asked).expect("an id and texts are always JSON").into()
}

impl LeaseClient {
    /// What the Host App says next; `None` once the forwards have ended there.
    ///
    /// # Errors
    /// It has ended, or says what can't be understood.
    /// # Cancellation
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>, HostError> {
        self.0.next().await.map_err(|why| match why.class() {
            Class::Unreachable => {
                why.with_hint("start it again: guildnet up; to have forwards that come back with it: --keep")
            }
            _ => why,
        })
    }
}
