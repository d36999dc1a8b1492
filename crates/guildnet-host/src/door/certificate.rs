//! The door's certificate: taken anew when its file changes, and renewed before its end while the Host App runs.
//!
//! What is near its end is decided in `pki.rs` (30 days), how it is made in `certs.rs`. A person is not needed: the authority
//! stays, so whoever trusts it goes on.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{civil::Date, tz::TimeZone};
use tokio_util::sync::CancellationToken;

use crate::{HostError, certs, metrics::Metrics, pki::Identity};

/// How often a running Host App looks whether its certificate is near its end. Looking reads three small files; a machine that
/// sleeps most of the day still does it often enough for the 30 days that are left.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// The door's certificate.
pub(super) struct Certificate {
    home: PathBuf,
    file: PathBuf,
    metrics: Arc<Metrics>,
    now: Mutex<(Option<Version>, Arc<rustls::ServerConfig>)>,
}

/// Tells one content of a file from the next: every write makes a new file.
type Version = (u64, i64, i64);

impl Certificate {
    /// Reads or makes the certificate of this home folder.
    pub(super) fn load(home: &Path, metrics: Arc<Metrics>) -> Result<Self, HostError> {
        let config = Arc::new(served(certs::ensure(home)?, &metrics)?);
        let file = certs::identity_file(home);
        let now = Mutex::new((version(&file), config));
        Ok(Self { home: home.to_owned(), file, metrics, now })
    }

    /// What to use for the next connection. If a changed file can't be used, the last good certificate stays.
    pub(super) fn current(&self) -> Arc<rustls::ServerConfig> {
        // A panic elsewhere can't leave the pair half-changed.
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let found = version(&self.file);
        if found.is_some() && found != now.0 {
            now.0 = found;
            match certs::ensure(&self.home).and_then(|identity| served(identity, &self.metrics)) {
                Ok(config) => {
                    *now = (version(&self.file), Arc::new(config));
                    tracing::info!("the door has a new certificate");
                }
                Err(why) => tracing::warn!(%why, "the new certificate can't be used, the last one stays"),
            }
        }
        Arc::clone(&now.1)
    }

    /// Renews it in time, until `stop`. What can't be done now is told, and tried again the next time.
    pub(super) async fn keep(self: Arc<Self>, today: impl Fn() -> Date, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.look(today());
        }
    }

    fn look(&self, today: Date) {
        let authority = certs::authority(&self.home).ok().flatten();
        match certs::ensure_on(&self.home, today) {
            Ok((_, false)) => {}
            Ok((identity, true)) if identity.chain.get(1) == authority.as_ref() => {
                tracing::info!(ends = %identity.ends, "the door's certificate was near its end and was renewed");
            }
            Ok((identity, true)) => {
                tracing::warn!(
                    ends = %identity.ends,
                    "the door's authority was near its end and is a new one: run 'guildnet kubeconfig write', and 'guildnet trust install' if it was trusted"
                );
            }
            Err(why) => tracing::warn!(%why, "the door's certificate can't be looked after"),
        }
    }
}

/// Makes an identity the one that is served, and takes note of its end.
fn served(identity: Identity, metrics: &Metrics) -> Result<rustls::ServerConfig, HostError> {
    let ends = identity.ends.to_zoned(TimeZone::UTC).map(|at| at.timestamp().into());
    let config = certs::server_config(identity)?;
    // A date that is out of range is none that could be told.
    ends.into_iter().for_each(|at| metrics.door.certificate_ends(at));
    Ok(config)
}

fn version(file: &Path) -> Option<Version> {
    std::fs::metadata(file).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;
    use crate::pki::{RENEW_DAYS, days_between, today};

    #[tokio::test(start_paused = true)]
    async fn a_running_door_renews_its_certificate_in_time_and_again() {
        let home = tempfile::tempdir().expect("tempdir");
        let certificate = Arc::new(Certificate::load(home.path(), Arc::default()).expect("made"));
        let (begun, first_day) = (tokio::time::Instant::now(), today());
        let day = move || first_day + i64::try_from(begun.elapsed().as_secs() / 86_400).expect("days").days();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(Arc::clone(&certificate).keep(day, stop.clone()));
        let (mut before, mut renewed) = (certificate.current(), 0);
        for _ in 0..800 {
            tokio::time::sleep(Duration::from_secs(86_400)).await;
            let now = certificate.current();
            renewed += usize::from(!Arc::ptr_eq(&now, &before));
            before = now;
            // Read as it is: `ensure` would itself renew it.
            let (found, made) = certs::ensure_on(home.path(), first_day).expect("read");
            assert!(!made && days_between(day(), found.ends) >= RENEW_DAYS - 1, "{} on {}", found.ends, day());
        }
        assert_eq!(renewed, 2, "each lasts a year and a month, but for its last 30 days");
        stop.cancel();
        keeping.await.expect("it ends");
    }
}
