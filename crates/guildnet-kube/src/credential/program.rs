//! A token from a program (kubectl's exec plugins): run without a shell, never asked anything, bounded in time and output,
//! once for all requests that wait for it.
//!
//! Its output is a credential: it is in no error and no log. Format: `client.authentication.k8s.io`,
//! https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins.

use std::{
    env, fmt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use guildnet_model::Secret;
use http::HeaderValue;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{CredentialError, header};

/// How long a run may take: some ask a cloud over a slow link; nobody is there to answer a question.
const RUN_TIME: Duration = Duration::from_secs(30);
/// The largest answer: far above any token or certificate.
const MAX_OUTPUT: u64 = 1 << 20;
/// How much of what it says on standard error is kept for a message; the rest is read and forgotten.
const MAX_SAID: usize = 4 << 10;
/// How much of that a person is shown, in letters.
const MAX_SHOWN: usize = 300;
/// A token this near its end is replaced while it is still used: a run takes seconds, clouds give them 10 minutes or more.
/// Of one that lives shorter, the last quarter.
const SOON: (Duration, u32) = (Duration::from_secs(60), 4);
/// A token this near its end is not used any more: for the time a request is on its way, and clocks that differ. Of one
/// that lives shorter than that allows, the last eighth.
const OVER: (Duration, u32) = (Duration::from_secs(5), 8);
/// After a run that failed, or whose token was refused at once, there is no other for this long: a program that is broken
/// must not be run for every request of a busy client.
const PAUSE: Duration = Duration::from_secs(10);
/// The variables that it inherits. What else it needs stands in the kubeconfig.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];

/// What is to be run. All of it is the kubeconfig's; the command was allowed by name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecSpec {
    /// The version in which it is asked and must answer.
    pub(crate) api_version: String,
    /// Absolute path.
    pub(crate) command: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// What it is told about the cluster, if it wants to know.
    pub(crate) cluster: Option<serde_json::Value>,
}

impl ExecSpec {
    /// Letters of its texts, for whoever saves it in a buffer that must not grow.
    pub(crate) fn room(&self) -> usize {
        let args: usize = self.args.iter().map(|arg| arg.len() + 4).sum();
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let cluster = self.cluster.as_ref().map_or(0, |cluster| cluster.to_string().len());
        self.api_version.len() + self.command.as_os_str().len() + args + env + cluster
    }
}

impl fmt::Debug for ExecSpec {
    // Arguments and variables may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSpec").field("command", &self.command).finish_non_exhaustive()
    }
}

/// A program, and the token that it gave last.
#[derive(Debug)]
pub(crate) struct Program {
    spec: Arc<ExecSpec>,
    run_time: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// Whether the API server refused what is held.
    refused: bool,
    /// When one was replaced last because it was refused.
    replaced: Option<Instant>,
    run: Option<AbortOnDropHandle<Result<Held, String>>>,
    failed: Option<(Instant, String)>,
}

#[derive(Clone, Debug)]
struct Held {
    bearer: HeaderValue,
    ends: Option<Ends>,
}

/// From when on a token is to be replaced, and not to be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    soon: SystemTime,
    over: SystemTime,
}

impl Ends {
    /// Of a token that was got now.
    fn of(end: SystemTime, now: SystemTime) -> Self {
        let life = end.duration_since(now).unwrap_or_default();
        let before = |(most, share): (Duration, u32)| end - most.min(life / share);
        Self { soon: before(SOON), over: before(OVER) }
    }
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Good,
    /// To be used, and to be replaced.
    Soon,
    Over,
}

/// How old a token is that ends then; one without an end never is.
fn age(ends: Option<Ends>, now: SystemTime) -> Age {
    match ends {
        Some(ends) if ends.over <= now => Age::Over,
        Some(ends) if ends.soon <= now => Age::Soon,
        _ => Age::Good,
    }
}

impl Program {
    pub(super) fn new(spec: ExecSpec) -> Self {
        Self { spec: Arc::new(spec), run_time: RUN_TIME, state: Mutex::default() }
    }

    pub(super) async fn bearer(&self) -> Result<HeaderValue, CredentialError> {
        // Held while a run is waited for: that is how all requests share it.
        let mut state = self.state.lock().await;
        if state.run.as_ref().is_some_and(AbortOnDropHandle::is_finished) {
            // Of a refresh in the background; if it failed, what is held may do for a while.
            let _told_when_needed = state.finish().await;
        }
        let age = match &state.held {
            Some(_) if state.refused => Age::Over,
            Some(held) => age(held.ends, SystemTime::now()),
            None => Age::Over,
        };
        if age != Age::Good && state.run.is_none() {
            match state.failed.as_ref().filter(|(when, _)| when.elapsed() < PAUSE) {
                Some((_, why)) if age == Age::Over => return Err(self.error(why.clone())),
                Some(_) => {}
                None => {
                    let run = run(Arc::clone(&self.spec), self.run_time);
                    state.run = Some(AbortOnDropHandle::new(tokio::spawn(run)));
                }
            }
        }
        match (&state.held, age) {
            (Some(held), Age::Good | Age::Soon) => Ok(held.bearer.clone()),
            _ => state.finish().await.map_err(|why| self.error(why)),
        }
    }

    pub(super) async fn refused(&self, used: &HeaderValue) -> bool {
        let mut state = self.state.lock().await;
        if state.held.as_ref().is_none_or(|held| held.bearer != *used) {
            return true;
        }
        // One that is refused right after another was is no matter of age.
        if state.replaced.is_some_and(|when| when.elapsed() < PAUSE) {
            return false;
        }
        state.refused = true;
        state.replaced = Some(Instant::now());
        true
    }

    fn error(&self, why: String) -> CredentialError {
        CredentialError::Program { command: self.spec.command.clone(), why }
    }
}

impl State {
    /// Waits for the run. One that nobody waits for any more goes on, and is there for the next who asks.
    async fn finish(&mut self) -> Result<HeaderValue, String> {
        let Some(run) = &mut self.run else { return Err("it was not run".into()) };
        let ended = run.await.unwrap_or_else(|_| Err("its run was broken off".into()));
        self.run = None;
        match ended {
            Ok(held) => {
                (self.refused, self.failed) = (false, None);
                Ok(self.held.insert(held).bearer.clone())
            }
            Err(why) => {
                self.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }
}

/// Runs it once.
async fn run(spec: Arc<ExecSpec>, run_time: Duration) -> Result<Held, String> {
    let asked = json!({
        "apiVersion": spec.api_version,
        "kind": "ExecCredential",
        "spec": { "cluster": spec.cluster, "interactive": false },
    });
    let inherited = INHERITED.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
    let mut command = Command::new(&spec.command);
    command
        .args(&spec.args)
        .env_clear()
        .envs(inherited)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .env("KUBERNETES_EXEC_INFO", asked.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it started ends with it.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|why| format!("it can't be run: {why}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("its output can't be read".into());
    };
    let whole = async {
        let (output, said) = tokio::join!(answer(stdout), said(stderr));
        let output = output?;
        let status = child.wait().await.map_err(|why| format!("it can't be waited for: {why}"))?;
        Ok::<_, String>((output, said, status))
    };
    let (output, said, status) =
        timeout(run_time, whole).await.map_err(|_| format!("it gave no answer within {run_time:?}"))??;
    group.0 = None;
    if !status.success() {
        return Err(failed(status, &said));
    }
    held(&output, &spec.api_version).map_err(|why| format!("{why}{}", shown(&said)))
}

/// Everything that it started, ended on drop.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// All that it writes on standard output.
async fn answer(from: impl AsyncRead + Unpin) -> Result<Secret<Vec<u8>>, String> {
    let mut output = Vec::new();
    let read = from.take(MAX_OUTPUT + 1).read_to_end(&mut output).await;
    let output = Secret::new(output);
    read.map_err(|why| format!("its answer can't be read: {why}"))?;
    if output.expose().len() as u64 > MAX_OUTPUT {
        return Err(format!("its answer is larger than {} MiB", MAX_OUTPUT >> 20));
    }
    Ok(output)
}

/// The beginning of what it writes on standard error; the rest is taken, so that it does not wait.
async fn said(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut piece = vec![0; MAX_SAID];
    loop {
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => break String::from_utf8_lossy(&kept).into_owned(),
            Ok(n) => kept.extend(piece.iter().take(n.min(MAX_SAID - kept.len()))),
        }
    }
}

fn failed(status: ExitStatus, said: &str) -> String {
    let how = match status.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => "it was killed".into(),
    };
    format!("{how}{}", shown(said))
}

/// What it said, on one line that is not too long.
fn shown(said: &str) -> String {
    let line: String = said
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .fold(String::new(), |line, word| if line.is_empty() { word.into() } else { line + " " + word });
    if line.is_empty() { String::new() } else { format!(": {}", line.chars().take(MAX_SHOWN).collect::<String>()) }
}

/// What it answers with, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<Token>,
    expiration_timestamp: Option<Timestamp>,
    client_certificate_data: Option<serde::de::IgnoredAny>,
}

/// Taken into keeping as it is read.
struct Token(Secret<String>);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|token| Self(Secret::new(token)))
    }
}

fn held(output: &Secret<Vec<u8>>, api_version: &str) -> Result<Held, String> {
    // The parser's message is left out: it may quote what it stumbled over.
    let answer: Answer = serde_json::from_slice(output.expose()).map_err(|_| "its answer is no ExecCredential")?;
    if answer.api_version != api_version {
        return Err(format!("it answers in another version than it is asked in ({api_version})"));
    }
    let status = answer.status.ok_or("its answer has no status")?;
    let Some(Token(token)) = status.token.filter(|Token(token)| !token.expose().is_empty()) else {
        return Err(match status.client_certificate_data {
            Some(_) => "it gives a client certificate, which can't be used here; only tokens can".into(),
            None => "its answer has no token".into(),
        });
    };
    let bearer = header(&token).ok_or("its token has letters that no HTTP header may hold")?;
    let ends = status.expiration_timestamp.map(|end| Ends::of(end.into(), SystemTime::now()));
    Ok(Held { bearer, ends })
}

#[cfg(test)]
mod tests;
