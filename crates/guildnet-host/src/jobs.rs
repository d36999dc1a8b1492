//! Jobs: work that takes a while, done by the Host App while its caller may come and go.
//!
//! A job is an operation of this crate (`jobs/work.rs`) on a thread of its own, with the steps that it told, and in the end
//! its result or its error. Bounds: [`RUNNING`] at once, one for each cluster that is changed, [`ENDED`] kept afterwards,
//! [`STEPS`] of each. Cancelling drops the operation where it is: each says in its documentation what that leaves.

mod work;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::LocalBoxFuture;
use guildnet_model::{Class, ClusterId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa::ToSchema;

pub(crate) use work::{JobKind, Work, as_value};

use crate::{
    HostError, Progress,
    door::problem::Problem,
    events::{Events, What},
};

/// Jobs at once: each has a thread.
const RUNNING: usize = 8;
/// Jobs that are kept after their end.
const ENDED: usize = 64;
/// Steps that are kept of a job, the last ones.
const STEPS: usize = 256;
/// Bytes of a step: what an operation says is a line.
const STEP_LENGTH: usize = 1024;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobState {
    /// It is at work.
    Running,
    /// It has done what was asked.
    Done,
    /// It could not.
    Failed,
    /// It was stopped on request, or with the Host App.
    Cancelled,
}

/// A step that a job told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Step {
    /// When.
    pub(crate) at: Timestamp,
    /// The cluster that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) cluster: Option<ClusterId>,
    /// What was done, or is waited for.
    pub(crate) text: String,
}

/// A job, as it is at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    /// Its name.
    pub(crate) id: String,
    /// What it does.
    pub(crate) kind: JobKind,
    /// The cluster that it changes, if it changes one.
    #[schema(value_type = Option<String>)]
    pub(crate) cluster: Option<ClusterId>,
    /// Where it is.
    pub(crate) state: JobState,
    /// When it began.
    pub(crate) begun: Timestamp,
    /// When it ended.
    pub(crate) ended: Option<Timestamp>,
    /// What it told, the last steps if there were many.
    pub(crate) steps: Vec<Step>,
    /// How many steps before those are no longer kept.
    pub(crate) steps_left_out: usize,
    /// What came out, once it is done: the form depends on its kind.
    #[schema(value_type = Option<Object>)]
    pub(crate) result: Option<Value>,
    /// Why it failed.
    #[schema(value_type = Option<Object>)]
    pub(crate) error: Option<Problem>,
}

impl Job {
    /// That nothing else can be done on its cluster now.
    pub(crate) fn in_the_way(&self) -> HostError {
        let busy = format!("job {} ({}) is at work on it", self.id, self.kind);
        let hint = format!("wait for it, or cancel it: DELETE /api/v1/jobs/{}", self.id);
        self.cluster.iter().fold(HostError::new(Class::Conflict, busy).with_hint(hint), HostError::of_cluster)
    }
}

/// What a job does: told its steps to, until it ends or is dropped.
pub(crate) type Run = Box<dyn FnOnce(Arc<dyn Progress>) -> LocalBoxFuture<'static, Result<Value, HostError>> + Send>;

/// The jobs of one Host App.
pub(crate) struct Jobs {
    events: Arc<Events>,
    table: Arc<Mutex<VecDeque<Entry>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Entry {
    job: Job,
    cancel: CancellationToken,
    changed: watch::Sender<()>,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("known", &self.entries().len()).finish_non_exhaustive()
    }
}

impl Jobs {
    /// None yet.
    pub(crate) fn new(events: Arc<Events>) -> Self {
        Self { events, table: Arc::default(), tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        lock(&self.table)
    }

    /// Starts one; returns at once.
    ///
    /// # Errors
    /// [`Class::Conflict`] if another one changes this cluster, or too many run, or the Host App stops.
    pub(crate) fn start(&self, kind: JobKind, cluster: Option<ClusterId>, run: Run) -> Result<Job, HostError> {
        let mut entries = self.entries();
        let running = || entries.iter().filter(|e| e.job.state == JobState::Running);
        if self.stop.is_cancelled() {
            return Err(HostError::new(Class::Conflict, "the Host App is stopping").with_hint("start it: guildnet up"));
        }
        if let Some(other) = running().find(|e| cluster.is_some() && e.job.cluster == cluster) {
            return Err(other.job.in_the_way());
        }
        if running().count() >= RUNNING {
            return Err(HostError::new(Class::Conflict, format!("{RUNNING} jobs are at work already"))
                .with_hint("wait until one has ended"));
        }
        if entries.len() >= RUNNING + ENDED
            && let Some(oldest) = entries.iter().position(|e| e.job.state != JobState::Running)
        {
            entries.remove(oldest);
        }
        let job = Job {
            id: format!("{:08x}", rand::random::<u32>()),
            kind,
            cluster,
            state: JobState::Running,
            begun: Timestamp::now(),
            ended: None,
            steps: Vec::new(),
            steps_left_out: 0,
            result: None,
            error: None,
        };
        let cancel = self.stop.child_token();
        entries.push_back(Entry { job: job.clone(), cancel: cancel.clone(), changed: watch::Sender::new(()) });
        drop(entries);
        self.events.tell(What::Job { job: job.id.clone(), state: JobState::Running, step: None });
        let teller =
            Arc::new(Teller { id: job.id.clone(), table: Arc::clone(&self.table), events: Arc::clone(&self.events) });
        tracing::info!(job = job.id, %kind, cluster = job.cluster.as_ref().map(ClusterId::as_str), "job begins");
        // Operations stay on the thread that awaits them.
        let runtime = Handle::current();
        self.tasks.spawn_blocking(move || {
            let ended = Ended(Arc::clone(&teller));
            let progress: Arc<dyn Progress> = Arc::clone(&teller) as Arc<dyn Progress>;
            let outcome = runtime.block_on(cancel.run_until_cancelled(run(progress)));
            teller.end(outcome);
            drop(ended);
        });
        Ok(job)
    }

    /// All that are known, the oldest first.
    pub(crate) fn list(&self) -> Vec<Job> {
        self.entries().iter().map(|e| e.job.clone()).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, id: &str) -> Option<Job> {
        self.entries().iter().find(|e| e.job.id == id).map(|e| e.job.clone())
    }

    /// Follows one of them, on whose end somebody waits: it is cancelled when that is dropped before.
    pub(crate) fn follow(&self, id: &str) -> Option<Following> {
        let changed = self.entries().iter().find(|e| e.job.id == id)?.changed.subscribe();
        Some(Following { table: Arc::clone(&self.table), id: id.to_owned(), changed, told: 0, ended: false })
    }

    /// Asks one to stop; `None` if there is none of that name. One that has ended stays as it is.
    pub(crate) fn cancel(&self, id: &str) -> Option<Job> {
        cancel(&self.table, id)
    }

    /// Stops all, and waits until they have ended.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock(table: &Mutex<VecDeque<Entry>>) -> MutexGuard<'_, VecDeque<Entry>> {
    // Every change is of one entry, and whole.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cancel(table: &Mutex<VecDeque<Entry>>, id: &str) -> Option<Job> {
    let entries = lock(table);
    let entry = entries.iter().find(|e| e.job.id == id)?;
    entry.cancel.cancel();
    Some(entry.job.clone())
}

/// What a job that is followed says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A step.
    Step(Step),
    /// How it ended: the last word.
    Ended(Box<Job>),
}

/// A job that somebody waits for. Dropped, it cancels the job, which is nothing to one that has ended.
pub(crate) struct Following {
    table: Arc<Mutex<VecDeque<Entry>>>,
    id: String,
    changed: watch::Receiver<()>,
    /// Steps that were told, or that were no longer kept when they should have been.
    told: usize,
    ended: bool,
}

impl Following {
    /// What it says next; `None` after its end.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.now()? {
                return Some(told);
            }
            // Closed: it is no longer known, which the next look finds.
            let _known = self.changed.changed().await;
        }
    }

    /// What there is to be told now; the outer `None` after the end.
    fn now(&mut self) -> Option<Option<Told>> {
        let table = lock(&self.table);
        let job = &table.iter().find(|e| e.job.id == self.id && !self.ended)?.job;
        let at = self.told.saturating_sub(job.steps_left_out);
        if let Some(step) = job.steps.get(at) {
            self.told = job.steps_left_out + at + 1;
            return Some(Some(Told::Step(step.clone())));
        }
        self.ended = job.state != JobState::Running;
        Some(self.ended.then(|| Told::Ended(Box::new(job.clone()))))
    }

    /// How it ended; `None` if that was told already.
    #[cfg(test)]
    pub(crate) async fn end(mut self) -> Option<Job> {
        loop {
            if let Told::Ended(job) = self.next().await? {
                return Some(*job);
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        cancel(&self.table, &self.id);
    }
}

/// Writes down what one job tells.
struct Teller {
    id: String,
    table: Arc<Mutex<VecDeque<Entry>>>,
    events: Arc<Events>,
}

impl Teller {
    fn change(&self, change: impl FnOnce(&mut Job)) {
        let mut table = lock(&self.table);
        if let Some(entry) = table.iter_mut().find(|e| e.job.id == self.id) {
            change(&mut entry.job);
            entry.changed.send_replace(());
        }
    }

    /// Writes down how it ended; `None`: it was cancelled.
    fn end(&self, outcome: Option<Result<Value, HostError>>) {
        let (state, result, error) = match outcome {
            Some(Ok(value)) => (JobState::Done, Some(value), None),
            Some(Err(why)) => (JobState::Failed, None, Some(Problem::from(why))),
            None => (JobState::Cancelled, None, None),
        };
        let why = error.as_ref().map(|problem| problem.detail.clone());
        self.change(|job| {
            (job.state, job.result, job.error, job.ended) = (state, result, error, Some(Timestamp::now()));
        });
        tracing::info!(job = self.id, ?state, why, "job ended");
        self.events.tell(What::Job { job: self.id.clone(), state, step: None });
    }
}

impl Progress for Teller {
    fn step(&self, cluster: Option<&ClusterId>, text: &str) {
        let cut = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= STEP_LENGTH).last();
        let text = &text[..cut.unwrap_or(0)];
        self.change(|job| {
            if job.steps.len() == STEPS {
                job.steps.remove(0);
                job.steps_left_out += 1;
            }
            job.steps.push(Step { at: Timestamp::now(), cluster: cluster.cloned(), text: text.to_owned() });
        });
        let step = cluster.map_or_else(|| text.to_owned(), |id| format!("{id}: {text}"));
        self.events.tell(What::Job { job: self.id.clone(), state: JobState::Running, step: Some(step) });
    }
}

/// Sees to it that a job that panicked is not shown as running for ever.
struct Ended(Arc<Teller>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some(Err(HostError::new(Class::Failed, "the job broke off: a fault of the Host App")
                .with_hint("see the log: guildnet logs"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn id(text: &str) -> ClusterId {
        text.parse().expect("an id")
    }

    fn jobs() -> Jobs {
        Jobs::new(Arc::new(Events::default()))
    }

    fn at_once(outcome: Result<Value, HostError>) -> Run {
        Box::new(move |_| Box::pin(async move { outcome }))
    }

    /// A job that waits for a word, and tells when it was dropped instead.
    fn waiting() -> (Run, oneshot::Sender<()>) {
        let (word, heard) = oneshot::channel();
        (
            Box::new(move |_| Box::pin(async move { heard.await.map(|()| Value::Null).map_err(|_| unreachable!()) })),
            word,
        )
    }

    #[tokio::test]
    async fn a_job_tells_its_steps_and_ends_with_its_result() {
        let jobs = jobs();
        let mut watcher = jobs.events.follow(None);
        let run: Run = Box::new(|progress| {
            Box::pin(async move {
                progress.step(Some(&"a".parse().expect("an id")), "router ready (1/1)");
                Ok(serde_json::json!({"success": true}))
            })
        });
        let begun = jobs.start(JobKind::Verify, None, run).expect("started");
        let ended = jobs.follow(&begun.id).expect("known").end().await.expect("ended");
        assert_eq!((ended.state, ended.result), (JobState::Done, Some(serde_json::json!({"success": true}))));
        assert_eq!(ended.steps.iter().map(|s| s.text.as_str()).collect::<Vec<_>>(), ["router ready (1/1)"]);
        let mut told = Vec::new();
        while told.len() < 3 {
            if let crate::events::Next::Event(event) = watcher.next().await
                && let What::Job { state, step, .. } = event.what
            {
                told.push((state, step));
            }
        }
        let step = Some("a: router ready (1/1)".to_owned());
        assert_eq!(told, [(JobState::Running, None), (JobState::Running, step), (JobState::Done, None)]);
        jobs.stop().await;
    }

    #[tokio::test]
    async fn a_failure_keeps_cause_and_next_step() {
        let jobs = jobs();
        let failure = HostError::new(Class::Unreachable, "it does not answer").with_hint("guildnet verify");
        let begun = jobs.start(JobKind::Verify, None, at_once(Err(failure.clone()))).expect("started");
        let ended = jobs.follow(&begun.id).expect("known").end().await.expect("ended");
        assert_eq!(ended.state, JobState::Failed);
        assert_eq!(ended.error.expect("an error").into_error(), failure);
        jobs.stop().await;
    }

    #[tokio::test]
    async fn a_cancelled_job_drops_its_work_where_it_is() {
        let jobs = jobs();
        let (run, mut word) = waiting();
        let begun = jobs.start(JobKind::Verify, None, run).expect("started");
        jobs.cancel(&begun.id).expect("known");
        assert_eq!(jobs.follow(&begun.id).expect("known").end().await.expect("ended").state, JobState::Cancelled);
        word.closed().await;
        assert!(jobs.cancel("x").is_none());
        jobs.stop().await;
    }

    #[tokio::test]
    async fn a_job_is_told_step_by_step_and_cancelled_when_its_follower_leaves() {
        let jobs = jobs();
        let (more, mut asked) = tokio::sync::mpsc::unbounded_channel();
        let run: Run = Box::new(move |progress| {
            Box::pin(async move {
                while let Some(text) = asked.recv().await {
                    progress.step(None, text);
                }
                unreachable!("it is cancelled before")
            })
        });
        let begun = jobs.start(JobKind::Verify, None, run).expect("started");
        let mut following = jobs.follow(&begun.id).expect("known");
        for text in ["one", "two"] {
            more.send(text).expect("it runs");
            assert!(matches!(following.next().await, Some(Told::Step(step)) if step.text == text));
        }
        let second = jobs.follow(&begun.id).expect("known");
        drop(following);
        more.closed().await;
        assert_eq!(second.end().await.expect("ended").state, JobState::Cancelled);
        jobs.stop().await;
    }

    #[tokio::test]
    async fn two_jobs_do_not_change_one_cluster() {
        let jobs = jobs();
        let (run, word) = waiting();
        let first = jobs.start(JobKind::RouterEnsure, Some(id("a")), run).expect("started");
        let refused = jobs.start(JobKind::ClusterRemove, Some(id("a")), at_once(Ok(Value::Null))).expect_err("busy");
        assert!(refused.to_string().contains(&first.id), "{refused}");
        jobs.start(JobKind::RouterEnsure, Some(id("b")), at_once(Ok(Value::Null))).expect("another cluster");
        word.send(()).expect("waits");
        jobs.follow(&first.id).expect("known").end().await.expect("ended");
        jobs.start(JobKind::ClusterRemove, Some(id("a")), at_once(Ok(Value::Null))).expect("free again");
        jobs.stop().await;
    }

    #[tokio::test]
    async fn what_runs_and_what_is_kept_is_bounded() {
        let jobs = jobs();
        let (runs, words): (Vec<Run>, Vec<_>) = (0..RUNNING).map(|_| waiting()).unzip();
        for run in runs {
            jobs.start(JobKind::Verify, None, run).expect("started");
        }
        jobs.start(JobKind::Verify, None, at_once(Ok(Value::Null))).expect_err("too many");
        words.into_iter().for_each(|word| word.send(()).expect("waits"));
        for job in jobs.list() {
            jobs.follow(&job.id).expect("known").end().await.expect("ended");
        }
        let talker: Run = Box::new(|progress| {
            Box::pin(async move {
                (0..STEPS + 3).for_each(|n| progress.step(None, &format!("{n}{}", "é".repeat(STEP_LENGTH))));
                Ok(Value::Null)
            })
        });
        let long = jobs.start(JobKind::Verify, None, talker).expect("started");
        let long = jobs.follow(&long.id).expect("known").end().await.expect("ended");
        assert_eq!((long.steps.len(), long.steps_left_out), (STEPS, 3));
        assert!(long.steps.iter().all(|s| s.text.len() <= STEP_LENGTH));
        for _ in 0..ENDED {
            let job = jobs.start(JobKind::Verify, None, at_once(Ok(Value::Null))).expect("started");
            jobs.follow(&job.id).expect("known").end().await.expect("ended");
        }
        assert!(jobs.list().len() <= RUNNING + ENDED);
        jobs.stop().await;
    }

    #[tokio::test]
    async fn stopping_cancels_all_and_starts_none() {
        let jobs = jobs();
        let (run, mut word) = waiting();
        let begun = jobs.start(JobKind::Verify, None, run).expect("started");
        jobs.stop().await;
        word.closed().await;
        assert_eq!(jobs.get(&begun.id).expect("known").state, JobState::Cancelled);
        jobs.start(JobKind::Verify, None, at_once(Ok(Value::Null))).expect_err("it stops");
    }

    #[tokio::test]
    async fn a_job_that_panics_is_shown_as_failed() {
        let jobs = jobs();
        let run: Run = Box::new(|_| Box::pin(async { panic!("on purpose") }));
        let begun = jobs.start(JobKind::Verify, None, run).expect("started");
        assert_eq!(jobs.follow(&begun.id).expect("known").end().await.expect("ended").state, JobState::Failed);
        jobs.stop().await;
    }
}
