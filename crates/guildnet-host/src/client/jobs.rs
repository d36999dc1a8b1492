//! Work that a running Host App does for the command: as its jobs, one at a time for each cluster, seen by everybody who looks.

use std::time::Duration;

use bytes::Bytes;
use guildnet_model::{Class, ClusterId};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::HostClient;
use crate::{
    HostError, Progress, RemoveRequest, Removed, Rotated, RouterReport, RouterRequest, Settings, Silent,
    door::Verify,
    jobs::{Job, JobState, Told},
    up::Known,
    verify::Report,
};

/// How long the checks may take: each has a bound of its own, and they stand in a row when each needs the one before.
const VERIFY_TIME: Duration = Duration::from_secs(300);

/// The Host App that is to do work on a cluster: one that runs, if it `knows` all that was set here. Otherwise the work is
/// the caller's own.
///
/// # Errors
/// The work would be the caller's, and a job of the Host App is at work on this cluster.
pub(crate) async fn worker(
    settings: &Settings,
    id: &ClusterId,
    knows: impl FnOnce(&Known) -> bool,
) -> Result<Option<HostClient>, HostError> {
    let Some(host) = HostClient::discover(&settings.home)? else { return Ok(None) };
    if knows(&Known::read(settings).await?) {
        return Ok(Some(host));
    }
    let jobs: Vec<Job> = host.get("/api/v1/jobs").await?;
    match jobs.into_iter().find(|job| job.state == JobState::Running && job.cluster.as_ref() == Some(id)) {
        Some(job) => Err(job.in_the_way()),
        None => Ok(None),
    }
}

impl HostClient {
    /// Runs the checks there: on the given clusters, on all if none is given. Dropping the future stops them.
    ///
    /// # Errors
    /// An unknown cluster; it does not answer, or refuses.
    pub async fn verify(&self, clusters: &[ClusterId]) -> Result<Report, HostError> {
        let asked = serde_json::to_vec(&Verify { clusters: clusters.to_vec() }).expect("ids are always JSON");
        match timeout(VERIFY_TIME, self.work(Method::POST, "/api/v1/verify", asked.into(), &Silent)).await {
            Ok(report) => report,
            Err(_) => Err(self.silent(format_args!("no report within {VERIFY_TIME:?}"))),
        }
    }

    /// See [`crate::cluster_remove`].
    pub(crate) async fn remove(&self, request: &RemoveRequest, progress: &dyn Progress) -> Result<Removed, HostError> {
        let RemoveRequest { id, keep_router, forget } = request;
        let path = format!("/api/v1/clusters/{id}?keepRouter={keep_router}&forget={forget}");
        self.work(Method::DELETE, &path, Bytes::new(), progress).await
    }

    /// See [`crate::router_ensure`].
    pub(crate) async fn router_ensure(
        &self,
        request: &RouterRequest,
        progress: &dyn Progress,
    ) -> Result<RouterReport, HostError> {
        let asked = json!({ "routes": request.routes }).to_string();
        self.work(Method::POST, &format!("/api/v1/clusters/{}/router", request.id), asked.into(), progress).await
    }

    /// See [`crate::router_remove`].
    pub(crate) async fn router_remove(&self, id: &ClusterId, progress: &dyn Progress) -> Result<Removed, HostError> {
        self.work(Method::DELETE, &format!("/api/v1/clusters/{id}/router"), Bytes::new(), progress).await
    }

    /// See [`crate::keys_rotate`].
    pub(crate) async fn rotate(
        &self,
        id: &ClusterId,
        router: bool,
        progress: &dyn Progress,
    ) -> Result<Rotated, HostError> {
        let asked = json!({ "router": router }).to_string();
        self.work(Method::POST, &format!("/api/v1/clusters/{id}/keys/rotate"), asked.into(), progress).await
    }

    /// Begins a job by this request, and passes its steps on until it has ended.
    ///
    /// # Errors
    /// Its own; it does not answer, or refuses.
    /// # Cancellation
    /// Dropping the future cancels the job.
    async fn work<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        asked: Bytes,
        progress: &dyn Progress,
    ) -> Result<T, HostError> {
        let mut lines = self.lines(method, path, asked).await?;
        loop {
            match lines.next().await? {
                Some(Told::Step(step)) => progress.step(step.cluster.as_ref(), &step.text),
                Some(Told::Ended(job)) => return self.outcome(*job),
                None => return Err(lines.broken("in the middle of a job")),
            }
        }
    }

    fn outcome<T: DeserializeOwned>(&self, job: Job) -> Result<T, HostError> {
        match (job.result, job.error) {
            (Some(result), _) => serde_json::from_value(result).map_err(|why| self.unexpected(why)),
            (None, Some(why)) => Err(why.into_error()),
            (None, None) => Err(HostError::new(Class::Failed, format!("the {} was cancelled", job.kind))
                .with_hint("run the command again: it goes on from there")),
        }
    }
}
