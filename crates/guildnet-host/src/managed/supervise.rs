//! `headscale serve`: runs Headscale as a child, starts it again when it dies, and ends with it.
//!
//! The supervisor is a background process like the Host App and lives on when that one ends. Headscale can't outlive it:
//! the kernel kills the child of a parent that is gone. No policy and no API here.

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use guildnet_headscale::managed::CONFIG_FILE;
use guildnet_model::Class;
use guildnet_store::private;
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
    time::{Instant, sleep, timeout},
};

use super::{
    backup,
    binary::{self, Change},
    certs,
    folder::Folder,
    plan::{Plan, Started},
};
use crate::{HostError, Progress, Settings, error::Explained as _, pki::today, server::Server};

/// How long Headscale may take from its start to its first answer. Two seconds are usual; an upgrade of a large database
/// takes longer.
const READY_LIMIT: Duration = Duration::from_secs(80);
/// How often it is asked meanwhile: nothing tells when a port is open.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long it may take to end by itself. It gives its connections 3 s.
const GRACE: Duration = Duration::from_secs(10);
/// First wait before a dead Headscale is started again; doubled each time it dies at once.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest such wait: nodes ask again at about this rate, so waiting longer would be felt.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Who has run for so long did not die of what ended it last.
const HEALTHY: Duration = Duration::from_secs(60);
/// How often the certificate's end is looked at. It is renewed a month ahead.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3_600);

/// How long to wait before the next start, after so many short lives in a row.
fn wait_after(deaths: u32) -> Duration {
    let doubled = 2_u32.checked_pow(deaths.saturating_sub(1)).and_then(|times| FIRST_WAIT.checked_mul(times));
    doubled.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
}

/// Why one life of Headscale was over.
enum End {
    /// The supervisor was asked to end, and has ended it.
    Asked,
    /// It has a new certificate, which it reads at its start only; it was ended for that.
    Renewed,
    /// It died.
    Died(ExitStatus),
}

/// See [`crate::headscale_serve`].
pub(crate) async fn headscale_serve(settings: &Settings, progress: &dyn Progress) -> Result<(), HostError> {
    let mut signals = Signals::new()?;
    let folder = Folder::of(settings)?;
    folder.make()?;
    let instance = folder.daemon().take()?;
    let asked = settings.managed.clone().or(&folder.choices()?.settings);
    let plan = Plan::make(&asked).await?;
    plan.ports_are_free()?;
    let last = folder.started()?;
    if let Change::Other { said } = binary::change(last.as_ref().map(|s| &s.plan.build), &plan.build)
        && folder.database().exists()
    {
        let copy = backup::make(&folder, None).await?;
        progress.step(None, &format!("{said}: everything copied to {} before", copy.file.display()));
    }
    // Made here and not by Headscale, which would open it to others. Its journals take this one's mode.
    private::create(&folder.database(), b"").explained()?;
    let config = plan.config(folder.path()).text().explained()?;
    private::write(&folder.path().join(CONFIG_FILE), config.as_bytes()).explained()?;
    let pki = certs::pki(folder.path(), plan.address, plan.listen)?;
    pki.ensure(today())?;

    let server = Server::new(&plan.local_url(), None, folder.trusted()?.as_deref())?;
    let mut deaths = 0;
    let mut announced = false;
    loop {
        let begun = Instant::now();
        let mut child = spawn(&plan.binary, folder.path())?;
        let ready = tokio::select! {
            () = signals.asked() => None,
            answered = answers(&server, &mut child) => Some(answered),
        };
        match ready {
            None => {
                end(child).await;
                return Ok(());
            }
            Some(Ok(())) if !announced => {
                folder.set_started(&Started { plan: plan.clone(), at: Timestamp::now() })?;
                instance.announce(plan.listen.into())?;
                announced = true;
                progress.step(None, &format!("Headscale {} serves at {}", plan.build.version, plan.url()));
            }
            Some(Ok(())) => progress.step(None, "Headscale answers again"),
            // A start that never succeeded is told to who asked for it; a later one is tried again.
            Some(Err(why)) if !announced => {
                end(child).await;
                return Err(why);
            }
            Some(Err(why)) => tracing::warn!(%why, "Headscale was started again and does not answer"),
        }
        let status = match live(&mut child, &mut signals, || pki.ensure(today()).map(|(_, renewed)| renewed)).await {
            End::Asked => {
                progress.step(None, "stopping");
                end(child).await;
                return Ok(());
            }
            End::Renewed => {
                progress.step(None, "the certificate was near its end and is renewed: Headscale starts again with it");
                end(child).await;
                continue;
            }
            End::Died(status) => status,
        };
        deaths = if begun.elapsed() >= HEALTHY { 1 } else { deaths + 1 };
        let wait = wait_after(deaths);
        tracing::warn!(%status, ?wait, "Headscale has ended by itself and is started again");
        tokio::select! {
            () = signals.asked() => return Ok(()),
            () = sleep(wait) => {}
        }
    }
}

/// What ends the supervisor.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, HostError> {
        let signal =
            |kind| unix::signal(kind).map_err(|why| HostError::new(Class::Failed, format!("no signal handler: {why}")));
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Starts Headscale. Its output goes where the supervisor's goes.
///
/// To be called from the main thread: the kernel takes the end of the *thread* that started a child for its parent's.
fn spawn(binary: &Path, folder: &Path) -> Result<Child, HostError> {
    let mut command = binary::command(binary, folder);
    command.arg("serve").arg("--config").arg(folder.join(CONFIG_FILE));
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let parent = rustix::process::getpid();
    #[allow(
        unsafe_code,
        reason = "only the child itself can ask to be killed with its parent, before it runs the program"
    )]
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called: async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // A parent that was gone before will not be missed by the kernel.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
        });
    }
    command.spawn().map_err(|why| {
        HostError::new(Class::Failed, format!("{} could not be started: {why}", binary.display()))
            .with_hint("check that this user may run it: guildnet headscale up --headscale-binary FILE")
    })
}

/// Waits until it says that it is well.
async fn answers(server: &Server, child: &mut Child) -> Result<(), HostError> {
    let limit = Instant::now() + READY_LIMIT;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(HostError::new(Class::Failed, format!("Headscale ended while it was starting ({status})"))
                .with_hint("it says why in the lines before this one"));
        }
        match server.health().await {
            Ok(_) => return Ok(()),
            Err(why) if Instant::now() >= limit => {
                return Err(why.while_doing(format!("Headscale does not answer after {READY_LIMIT:?}")));
            }
            Err(_) => sleep(ASK_EVERY).await,
        }
    }
}

/// One life, from the first answer on. `renew` says whether the certificate was made anew.
async fn live(child: &mut Child, signals: &mut Signals, renew: impl Fn() -> Result<bool, HostError>) -> End {
    loop {
        tokio::select! {
            () = signals.asked() => return End::Asked,
            status = child.wait() => match status {
                Ok(status) => return End::Died(status),
                // Never in practice: it is this process's own child.
                Err(why) => tracing::error!(%why, "Headscale can't be waited for"),
            },
            () = sleep(LOOK_EVERY) => match renew() {
                Ok(true) => return End::Renewed,
                Ok(false) => {}
                Err(why) => tracing::error!(%why, "the certificate could not be renewed"),
            },
        }
    }
}

/// Asks it to end and waits; kills it if that takes too long.
async fn end(mut child: Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // Not reaped yet, so the number is still its own.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if timeout(GRACE, child.wait()).await.is_err() {
        tracing::warn!(?GRACE, "Headscale has not ended and is killed");
        let _ = child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_have_an_end() {
        let seconds = |deaths| wait_after(deaths).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 100].map(seconds), [1, 2, 4, 8, 16, 30, 30, 30]);
    }
}
