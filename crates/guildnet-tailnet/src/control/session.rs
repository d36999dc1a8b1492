//! One session with the control server: register, follow the map, tell what changes here.
//!
//! Ends with the first thing that goes wrong; `control.rs` decides when the next one begins.

use std::{
    collections::BTreeSet,
    future::pending,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    ControlConfig, ControlEvent, End, LocalReport,
    connect::{CAPABILITY, Http, HttpError},
    register::{blocking, register, renew_ahead, still_known},
    stream::MapReader,
    wire::{MapRequest, MapResponse},
};
use crate::netmap::{NetMap, Update};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the map stream may be silent: two keep-alives (Headscale sends one every 50 to 59 s) and no third chance. Its
/// beginning included, which comes with the first map: a busy Headscale was seen to take more than half a minute for one of a
/// thousand nodes, and who asks again meanwhile makes it begin again.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// How long changes of the local report are collected: addresses come in bursts when a network changes.
const REPORT_DELAY: Duration = Duration::from_millis(250);

/// How often the server is asked whether it still knows this node: Headscale (0.29) leaves the stream of a deleted node open,
/// and silent but for keep-alives. The question changes nothing there, but writes a line to the server's log.
const PRESENCE_CHECK: Duration = Duration::from_secs(60);

/// How long before its end a node key's expiry is told: a day leaves time to act.
const EXPIRY_NOTICE: Duration = Duration::from_secs(24 * 3600);
/// How long before its end a node key is renewed: long enough for a server that restarts, and no key is made long before it is
/// needed.
const RENEW_AHEAD: Duration = Duration::from_secs(10 * 60);

/// A lite update, a presence check or a renewal on its way.
type Telling<'a> = Pin<Box<dyn Future<Output = Result<(), End>> + Send + 'a>>;

/// What a session works with.
pub(super) struct Session<'a> {
    pub(super) config: &'a ControlConfig,
    pub(super) reports: &'a mut watch::Receiver<LocalReport>,
    pub(super) events: &'a mpsc::Sender<ControlEvent>,
    /// Set once a map has come.
    pub(super) had_map: &'a mut bool,
    /// The expiry before which a renewal was tried: once is enough, at the end comes the refusal.
    pub(super) renewed: &'a mut Option<SystemTime>,
}

impl Session<'_> {
    /// Runs until something ends it; never returns a success.
    pub(super) async fn run(self, http: &Http) -> Result<std::convert::Infallible, End> {
        let config = self.config;
        self.talk(http).await.map_err(|end| match end {
            End::Refused(why) => End::Refused(config.fit(&why)),
            End::Broken(why) => End::Broken(config.fit(&why)),
            End::Moved | End::Renewed | End::Stopped => end,
        })
    }

    async fn talk(mut self, http: &Http) -> Result<std::convert::Infallible, End> {
        register(http, self.config).await?;
        self.tell(ControlEvent::Registered).await?;
        self.follow(http).await
    }

    async fn tell(&self, event: ControlEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Stopped)
    }

    async fn follow(&mut self, http: &Http) -> Result<std::convert::Infallible, End> {
        let config = self.config;
        let mut reported = choose_home(self.reports.borrow_and_update().clone(), config.identity.home_relay(), None);
        let request = MapRequest::stream(CAPABILITY.into(), keys(config), &config.hostname, &reported);
        let mut reader = MapReader::new(within(SILENCE_LIMIT, http.post("/machine/map", &request)).await?);
        let mut map: Option<NetMap> = None;
        let mut silent_since = Instant::now();
        let mut tell_at: Option<Instant> = None;
        let mut check_at = Instant::now() + PRESENCE_CHECK;
        let mut telling: Option<Telling<'_>> = None;
        let mut reports_end = false;
        let mut clock = None;
        let mut expires = None;
        let mut notified = None;
        let mut unread = 0;
        loop {
            let ends = map.as_ref().and_then(|map| map.self_node.info.key_expiry);
            let notice = expires.filter(|_| notified != ends).map(|at| before(at, EXPIRY_NOTICE));
            let renewable = map.as_ref().is_some_and(is_renewable) && *self.renewed != ends;
            let renewal = expires.filter(|at| renewable && *at > silent_since).map(|at| before(at, RENEW_AHEAD));
            tokio::select! {
                message = timeout_at(silent_since + SILENCE_LIMIT, reader.next()) => {
                    let message = message
                        .map_err(|_| End::Broken(format!("the server was silent for {SILENCE_LIMIT:?}")))?
                        .map_err(|e| End::Broken(e.to_string()))?;
                    silent_since = Instant::now();
                    let message = MapResponse::parse(&message)
                        .map_err(|e| End::Broken(format!("the server's map can't be read: {e}")))?;
                    clock = message.server_time().map(|time| (time, silent_since)).or(clock);
                    let (update, bad) = message.into_update();
                    if bad > unread {
                        tracing::warn!(parts = bad, "parts of the server's map can't be read and are left out");
                        unread = bad;
                    }
                    let news = take(&mut map, update)?;
                    expires = map.as_ref().and_then(|map| expires_at(map, clock, silent_since, SystemTime::now()));
                    if let Some(map) = news {
                        let regions = regions(&map);
                        *self.had_map = true;
                        self.tell(ControlEvent::Map(Arc::new(map))).await?;
                        let report = choose_home(self.reports.borrow().clone(), config.identity.home_relay(), Some(&regions));
                        if report.home_relay != reported.home_relay {
                            // Without a home relay peers take this node for unreachable: told at once.
                            tell_at = Some(Instant::now());
                        }
                    }
                }
                changed = self.reports.changed(), if !reports_end => match changed {
                    Ok(()) => tell_at = tell_at.or(Some(Instant::now() + REPORT_DELAY)),
                    Err(_) => reports_end = true,
                },
                () = at(tell_at), if telling.is_none() => {
                    tell_at = None;
                    let regions = map.as_ref().map(regions);
                    let report =
                        choose_home(self.reports.borrow_and_update().clone(), config.identity.home_relay(), regions.as_ref());
                    if report != reported {
                        reported = report.clone();
                        telling = Some(Box::pin(tell_server(http, config, report)));
                    }
                }
                () = sleep_until(check_at), if telling.is_none() => {
                    check_at = Instant::now() + PRESENCE_CHECK;
                    telling = Some(Box::pin(still_known(http, config)));
                }
                told = async { match &mut telling { Some(telling) => telling.await, None => pending().await } } => {
                    telling = None;
                    told?;
                }
                () = at(notice) => {
                    notified = ends;
                    if let Some(at) = expires {
                        self.tell(ControlEvent::KeyExpiring { at }).await?;
                    }
                }
                () = at(renewal), if telling.is_none() => {
                    *self.renewed = ends;
                    telling = Some(Box::pin(renew_ahead(http, config)));
                }
                () = at(expires) => return Err(End::Broken("the node's key has expired".into())),
            }
        }
    }
}

/// Applies a message; gives the map if it became another one. Servers often repeat what is known.
fn take(known: &mut Option<NetMap>, update: Update) -> Result<Option<NetMap>, End> {
    if update == Update::default() {
        return Ok(None);
    }
    let map = match &*known {
        Some(known) => {
            let mut map = known.clone();
            map.apply(update);
            map
        }
        None => {
            NetMap::first(update).ok_or_else(|| End::Broken("the server's first map does not name this node".into()))?
        }
    };
    if map.self_node.expired {
        return Err(End::Broken("the server says that the node's key has expired".into()));
    }
    if known.as_ref() == Some(&map) {
        return Ok(None);
    }
    *known = Some(map.clone());
    Ok(Some(map))
}

/// Sends a lite update, and keeps the home relay for the next start.
async fn tell_server(http: &Http, config: &ControlConfig, report: LocalReport) -> Result<(), End> {
    let request = MapRequest::lite(CAPABILITY.into(), keys(config), &config.hostname, &report);
    within(ANSWER_LIMIT, http.ask("/machine/map", &request)).await?;
    if let Some(region) = report.home_relay {
        let identity = config.identity.clone();
        blocking(move || identity.keep_home_relay(region)).await?;
    }
    Ok(())
}

async fn within<T>(limit: Duration, request: impl Future<Output = Result<T, HttpError>>) -> Result<T, End> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(|e| End::Broken(e.to_string())),
        Err(_) => Err(End::Broken(format!("the server did not answer within {limit:?}"))),
    }
}

/// Some time before a moment; now, if the clock does not reach back so far.
fn before(at: Instant, time: Duration) -> Instant {
    at.checked_sub(time).unwrap_or_else(Instant::now)
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

fn keys(config: &ControlConfig) -> (String, String) {
    (config.identity.node_key().node_text(), config.identity.disco().public.to_string())
}

fn regions(map: &NetMap) -> BTreeSet<u16> {
    map.relays.iter().map(|relay| relay.region).collect()
}

/// Whether the server gives the node a later end with a new key. Headscale (0.28 on, see [`register`]) leaves that of a tagged node
/// as it is: a new key would cost its flows for nothing.
fn is_renewable(map: &NetMap) -> bool {
    map.self_node.info.tags.is_empty()
}

/// When the node key expires, by the server's clock: it told `clock.0` at `clock.1`. This machine's own clock (`own`, at `now`)
/// may be wrong by days; without another one its word counts only for the time to come, since the server has accepted the
/// key just now.
fn expires_at(map: &NetMap, clock: Option<(SystemTime, Instant)>, now: Instant, own: SystemTime) -> Option<Instant> {
    let expiry = map.self_node.info.key_expiry?;
    match clock {
        Some((time, at)) => at.checked_add(expiry.duration_since(time).unwrap_or_default()),
        None => now.checked_add(expiry.duration_since(own).ok()?),
    }
}

/// The report with a home relay: the wished one, else the one of before, else the lowest; only those in the map once that
/// is known.
fn choose_home(mut report: LocalReport, before: Option<u16>, known: Option<&BTreeSet<u16>>) -> LocalReport {
    let usable = |region: &u16| known.is_none_or(|known| known.contains(region));
    let lowest = || known.and_then(|known| known.first().copied());
    report.home_relay = report.home_relay.filter(usable).or(before.filter(usable)).or_else(lowest);
    report
}

#[cfg(test)]
mod tests;
