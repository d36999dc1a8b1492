//! Judges what is in the cluster: which routers are ready, what the others wait for, and when waiting is useless.
//!
//! Pure: objects and time come in. `deploy.rs` fetches them.

use std::{
    collections::BTreeMap,
    mem::{Discriminant, discriminant},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ContainerStatus, Event, Pod},
    },
    jiff::Timestamp,
};

use super::{
    PodReport, RouterError, RouterStatus,
    error::Trouble,
    manifest::{CLUSTER_LABEL, TUN},
};

/// What was fetched at one moment.
#[derive(Default)]
pub(super) struct Observed {
    pub(super) daemon_set: DaemonSet,
    pub(super) pods: Vec<Pod>,
    pub(super) events: Vec<Event>,
    /// The last lines of the logs of pods that are not ready, by pod.
    pub(super) logs: BTreeMap<String, String>,
}

/// One pod's trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) pod: String,
    pub(super) place: String,
    pub(super) trouble: Trouble,
}

impl Observed {
    /// The status that a person sees.
    pub(super) fn status(&self) -> RouterStatus {
        let set = &self.daemon_set;
        let labels = set.metadata.labels.as_ref();
        let (desired, ready) = set.status.as_ref().map_or((0, 0), |status| {
            let current = status.observed_generation.unwrap_or_default() >= set.metadata.generation.unwrap_or_default();
            // Until the controller has seen the present generation, its counts are about the one before.
            let ready = status.number_ready.min(status.updated_number_scheduled.unwrap_or_default());
            (status.desired_number_scheduled, if current { ready } else { 0 })
        });
        let mut pods: Vec<_> = self.pods.iter().map(|pod| self.report(pod)).collect();
        pods.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        RouterStatus {
            cluster: labels.and_then(|l| l.get(CLUSTER_LABEL)).cloned(),
            desired: u32::try_from(desired).unwrap_or_default(),
            ready: u32::try_from(ready).unwrap_or_default(),
            pods,
        }
    }

    /// Whether the controller has looked at the present generation, so that zero nodes wanted means zero.
    pub(super) fn is_counted(&self) -> bool {
        let set = &self.daemon_set;
        set.status.as_ref().and_then(|s| s.observed_generation) >= set.metadata.generation
            && set.metadata.generation.is_some()
    }

    /// What keeps pods from being ready.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let denied = self.denied().map(|trouble| Finding {
            pod: String::new(),
            place: "a node without a pod".to_owned(),
            trouble,
        });
        let stuck = self.pods.iter().filter(|pod| !is_ready(pod) && !is_leaving(pod)).filter_map(|pod| {
            let place = node(pod).map_or_else(|| format!("pod {}", name(pod)), |node| format!("node {node}"));
            self.trouble(pod).map(|trouble| Finding { pod: name(pod).to_owned(), place, trouble })
        });
        stuck.chain(denied).collect()
    }

    fn report(&self, pod: &Pod) -> PodReport {
        let leaving = is_leaving(pod);
        let ready = is_ready(pod) && !leaving;
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_else(|| "Unknown".to_owned());
        PodReport {
            name: name(pod).to_owned(),
            node: node(pod).map(str::to_owned),
            phase: if leaving { "Terminating".to_owned() } else { phase },
            ready,
            reason: if ready || leaving { None } else { self.trouble(pod).map(|t| t.to_string()) },
            restarts: container(pod).map_or(0, |c| u32::try_from(c.restart_count).unwrap_or_default()),
        }
    }

    fn trouble(&self, pod: &Pod) -> Option<Trouble> {
        let log = self.logs.get(name(pod)).map(String::as_str).unwrap_or_default();
        self.unscheduled(pod)
            .or_else(|| container(pod).and_then(|c| waiting(c, log)))
            .or_else(|| login_trouble(log))
            // Events last: they are kept for an hour and may be about a trouble that is over.
            .or_else(|| self.event(pod))
    }

    fn unscheduled(&self, pod: &Pod) -> Option<Trouble> {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        let why = scheduled.message.clone().or_else(|| scheduled.reason.clone()).unwrap_or_default();
        Some(Trouble::Unschedulable { why })
    }

    /// What the last warning about the pod says, while its container has not started.
    fn event(&self, pod: &Pod) -> Option<Trouble> {
        if container(pod).is_some_and(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())) {
            return None;
        }
        let event = self.last_warning(pod.metadata.uid.as_deref()?)?;
        let why = event.message.clone().unwrap_or_default();
        if event.reason.as_deref() == Some("FailedMount")
            && why.contains("hostPath type check failed")
            && why.contains(TUN)
        {
            return Some(Trouble::MissingDevice);
        }
        Some(Trouble::Other { why: format!("{}: {}", event.reason.as_deref().unwrap_or("Warning"), one_line(&why)) })
    }

    /// The controller can't even make a pod: admission, a quota, a missing account.
    fn denied(&self) -> Option<Trouble> {
        let status = self.daemon_set.status.as_ref()?;
        if status.current_number_scheduled >= status.desired_number_scheduled && status.desired_number_scheduled > 0 {
            return None;
        }
        let event = self.last_warning(self.daemon_set.metadata.uid.as_deref()?)?;
        (event.reason.as_deref() == Some("FailedCreate"))
            .then(|| Trouble::Denied { why: one_line(event.message.as_deref().unwrap_or_default()) })
    }

    fn last_warning(&self, uid: &str) -> Option<&Event> {
        self.events
            .iter()
            .filter(|e| e.involved_object.uid.as_deref() == Some(uid) && e.type_.as_deref() == Some("Warning"))
            // Over as soon as the pod has a node; until then its condition says the same.
            .filter(|e| e.reason.as_deref() != Some("FailedScheduling"))
            .max_by_key(|e| last_seen(e))
    }
}

/// When an event was last seen. Which field holds it depends on the age of the component that wrote it.
fn last_seen(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|s| s.last_observed_time.as_ref());
    let precise = series.or(event.event_time.as_ref()).map(|t| t.0);
    let plain = event.last_timestamp.as_ref().or(event.metadata.creation_timestamp.as_ref());
    precise.max(plain.map(|t| t.0))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Pods whose log may tell more: not ready, and their container has run.
pub(super) fn wants_log(pod: &Pod) -> bool {
    !is_ready(pod)
        && !is_leaving(pod)
        && container(pod).is_some_and(|c| {
            c.restart_count > 0 || c.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
        })
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// Why the container does not run.
fn waiting(container: &ContainerStatus, log: &str) -> Option<Trouble> {
    let state = container.state.as_ref()?.waiting.as_ref()?;
    let reason = state.reason.as_deref().unwrap_or_default();
    let why = one_line(state.message.as_deref().filter(|m| !m.is_empty()).unwrap_or(reason));
    match reason {
        "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" | "ErrImagePull" => Some(Trouble::Image { why }),
        "CrashLoopBackOff" => Some(login_trouble(log).unwrap_or_else(|| Trouble::Crash {
            restarts: u32::try_from(container.restart_count).unwrap_or_default(),
            log: last_words(log),
        })),
        "ContainerCreating" | "PodInitializing" | "" => None,
        _ => Some(Trouble::Other { why: format!("{reason}: {why}") }),
    }
}

/// How many lines of a log an error repeats.
const LAST_WORDS: usize = 3;

fn last_words(log: &str) -> Vec<String> {
    let lines: Vec<_> = log.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].iter().map(|l| one_line(l)).collect()
}

/// What the router's own log says about its login: the last word counts. The texts are those of `tailscaled` 1.98 and
/// of Headscale 0.29's answers to it.
fn login_trouble(log: &str) -> Option<Trouble> {
    for line in log.lines().rev() {
        if line.contains("machineAuthorized=true") {
            return None;
        }
        if line.contains("AuthURL is ") {
            return Some(Trouble::KeyRefused { why: "it has none".to_owned() });
        }
        let said = ["Received error: ", "backend error: ", "The last login error was: "];
        // A line may hold the text's form alone, without what it was about.
        let told = said.into_iter().find_map(|text| line.split_once(text)).filter(|(_, why)| !why.starts_with("%v"));
        if let Some((_, why)) = told {
            let why = one_line(why);
            return Some(if why.contains("x509: ") || why.contains("tls: failed to verify") {
                Trouble::Untrusted { why }
            } else if why.starts_with("fetch control key: ") || why.starts_with("register request: Post ") {
                Trouble::ServerUnreachable { why }
            } else {
                Trouble::KeyRefused { why }
            });
        }
    }
    None
}

/// The longest text of others that is repeated in a line of ours.
const MAX_QUOTE: usize = 300;

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_QUOTE) {
        Some((cut, _)) => format!("{}...", &line[..cut]),
        None => line,
    }
}

impl Trouble {
    /// How long it must last until waiting is given up. None of these mends itself, but each can be seen for a moment:
    /// an old pod on its way out, an image being retried, a network plugin that comes up after its node.
    fn patience(&self) -> Duration {
        Duration::from_secs(match self {
            Self::MissingDevice => 0,
            Self::KeyRefused { .. } | Self::Untrusted { .. } => 6,
            Self::Image { .. } | Self::Crash { .. } => 15,
            Self::Unschedulable { .. } | Self::Denied { .. } => 30,
            Self::ServerUnreachable { .. } | Self::Other { .. } => 60,
        })
    }
}

/// Remembers since when each pod has had its trouble.
#[derive(Default)]
pub(super) struct Patience(BTreeMap<String, (Discriminant<Trouble>, Instant)>);

impl Patience {
    /// Takes in what was found now; an error when something has lasted too long.
    pub(super) fn judge(&mut self, now: Instant, findings: &[Finding]) -> Result<(), RouterError> {
        self.0.retain(|pod, _| findings.iter().any(|f| f.pod == *pod));
        for Finding { pod, place, trouble } in findings {
            let kind = discriminant(trouble);
            let (known, since) = self.0.entry(pod.clone()).or_insert((kind, now));
            if *known != kind {
                (*known, *since) = (kind, now);
            }
            if now.saturating_duration_since(*since) >= trouble.patience() {
                return Err(RouterError::Stuck { place: place.clone(), trouble: trouble.clone() });
            }
        }
        Ok(())
    }
}

/// What the routers wait for, in one line.
pub(super) fn detail(findings: &[Finding], status: &RouterStatus) -> String {
    if let Some(first) = findings.first() {
        let more = if findings.len() > 1 { format!(" (and {} more)", findings.len() - 1) } else { String::new() };
        return format!("{}: {}{more}", first.place, first.trouble);
    }
    match status.pods.iter().find(|pod| !pod.ready) {
        Some(pod) if pod.phase == "Running" => {
            format!("joining the tailnet on node {}", pod.node.as_deref().unwrap_or("?"))
        }
        Some(pod) => format!("pod {} is {}", pod.name, pod.phase),
        None => "waiting for the controller".to_owned(),
    }
}

#[cfg(test)]
mod tests;
