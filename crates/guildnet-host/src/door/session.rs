//! Sessions of the page: one-time codes, and what they are exchanged for. Pure: time and random bits come in.
//!
//! `guildnet ui` makes a code with the token, the browser gives it back and gets a cookie and a key, and both together open a
//! session ([`super::gate`] says for what). The cookie alone is not enough: browsers send it to every server on this host,
//! whatever its port (Chromium even without TLS, to 127.0.0.1). The key stays with the page's own origin, port included.
//! Kept in memory alone, as digests: whoever reads this process's memory or its files finds no cookie there, and a Host App that ends ends its sessions. Decided in docs/decisions/0011.
//!
//! Everything is bounded, and nobody without the token can make the bounds bite: codes and sessions are made by its holder
//! only, and too many wrong codes slow down wrong ones alone. A right code is one of 2^256, so there is nothing to guess.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use guildnet_model::Secret;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::token;

/// How long a code may be used: a browser that has to be started first takes seconds.
pub(crate) const CODE_LIFE: SignedDuration = SignedDuration::from_secs(60);
/// Codes that wait to be used: a few windows opened at once. One more ends the oldest.
const CODES: usize = 4;
/// How long a session may rest: a page that is closed in the evening is still signed in next morning's meeting, not a day later.
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// How long a session lasts at most.
pub(super) const LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Sessions at once: a person's browsers. One more ends the one that rested longest.
const SESSIONS: usize = 16;
/// Wrong codes that are looked at in each [`WRONG_WINDOW`]; more are turned away until it is over.
const WRONG_CODES: u32 = 10;
/// See [`WRONG_CODES`].
const WRONG_WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// Letters of a browser's name that are kept.
const AGENT_LETTERS: usize = 120;
/// How far a clock may be set back before what was made until then ends: clocks are corrected by seconds.
const SLACK: SignedDuration = SignedDuration::from_secs(60);
/// Letters of 256 bits in base64 without padding.
const LETTERS: usize = 43;

/// 256 random bits, for a code or a cookie.
pub(super) type Bits = [u8; 32];

/// What is kept of a code or a cookie.
#[derive(Clone, Copy)]
struct Kept([u8; 32]);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Kept {
    fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Compares all bytes, whatever they are.
    fn is(&self, other: &Self) -> bool {
        token::same(&self.0, &other.0)
    }
}

/// One session, as its owner is shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// Its name in lists and for revoking it; opens nothing.
    pub id: String,
    /// When it was opened.
    pub made: Timestamp,
    /// When it was used last.
    pub last_used: Timestamp,
    /// When it ends, used or not.
    pub ends: Timestamp,
    /// What the browser called itself when it signed in, cut and cleaned; anybody can claim anything there.
    pub user_agent: String,
    /// Whether it is the one that asks.
    pub current: bool,
}

/// Why a code opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is none, was used, or is too old: one answer, so that nothing is learned from it.
    Wrong,
    /// The same, and there were too many of these: to be asked again after so many seconds.
    TooMany(i64),
}

/// What a browser is given.
#[derive(Debug)]
pub(super) struct Opened {
    /// For its cookies.
    pub(super) cookie: Secret<String>,
    /// For the page alone.
    pub(super) key: Secret<String>,
}

/// Codes and sessions of one door.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    codes: Vec<Code>,
    sessions: Vec<Session>,
    wrong: u32,
    wrong_since: Option<Timestamp>,
    /// Cancelled when the door cuts what is open.
    cut: CancellationToken,
}

#[derive(Debug)]
struct Code {
    kept: Kept,
    made: Timestamp,
}

#[derive(Debug)]
struct Session {
    kept: Kept,
    key: Kept,
    id: String,
    made: Timestamp,
    used: Timestamp,
    user_agent: String,
    over: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// Whether something of this age is still good. A clock that was set back by more than [`SLACK`] ends it, rather than let it
/// live longer.
fn fresh(since: Timestamp, now: Timestamp, life: SignedDuration) -> bool {
    let age = now.duration_since(since);
    age >= -SLACK && age < life
}

/// The text of random bits, and what is kept of it.
fn text(bits: Bits) -> (Secret<String>, Kept) {
    let text = BASE64_URL_SAFE_NO_PAD.encode(bits);
    let kept = Kept::of(&text);
    (Secret::new(text), kept)
}

impl Sessions {
    /// None yet. What a session has opened ends with it, or when `cut` is cancelled.
    pub(super) fn new(cut: CancellationToken) -> Self {
        Self { cut, ..Self::default() }
    }

    /// Cancelled when the session of that public name is over, however it ends. One that is not there is over.
    pub(super) fn over(&self, id: &str) -> CancellationToken {
        self.sessions.iter().find(|session| session.id == id).map_or_else(
            || {
                let over = CancellationToken::new();
                over.cancel();
                over
            },
            |session| session.over.clone(),
        )
    }

    /// Makes a code.
    pub(super) fn make_code(&mut self, now: Timestamp, bits: Bits) -> Secret<String> {
        self.codes.retain(|code| fresh(code.made, now, CODE_LIFE));
        if self.codes.len() >= CODES {
            self.codes.remove(0);
        }
        let (code, kept) = text(bits);
        self.codes.push(Code { kept, made: now });
        code
    }

    /// Takes a code and opens a session. The code is used up.
    ///
    /// # Errors
    /// [`Refused`]. A right code is never [`Refused::TooMany`]: wrong ones can't keep it out.
    pub(super) fn login(
        &mut self,
        code: &str,
        user_agent: &str,
        now: Timestamp,
        bits: [Bits; 2],
    ) -> Result<Opened, Refused> {
        self.codes.retain(|code| fresh(code.made, now, CODE_LIFE));
        let given = Kept::of(code);
        // All are compared, whichever it is.
        let found = self.codes.iter().enumerate().fold(None, |found, (at, code)| {
            let is = code.kept.is(&given);
            if is { Some(at) } else { found }
        });
        let Some(at) = found else { return Err(self.count_wrong(now)) };
        self.codes.remove(at);
        self.forget_ended(now);
        if self.sessions.len() >= SESSIONS
            && let Some(rested) = (0..self.sessions.len()).min_by_key(|at| self.sessions[*at].used)
        {
            self.sessions.remove(rested);
        }
        let [(cookie, kept), (key, kept_key)] = bits.map(text);
        let id = id_of(&kept);
        let (user_agent, over) = (clean(user_agent), self.cut.child_token());
        self.sessions.push(Session { kept, key: kept_key, id, made: now, used: now, user_agent, over });
        Ok(Opened { cookie, key })
    }

    fn count_wrong(&mut self, now: Timestamp) -> Refused {
        let since = match self.wrong_since {
            Some(since) if fresh(since, now, WRONG_WINDOW) => since,
            _ => {
                self.wrong = 0;
                now
            }
        };
        self.wrong_since = Some(since);
        self.wrong = self.wrong.saturating_add(1);
        if self.wrong <= WRONG_CODES {
            return Refused::Wrong;
        }
        Refused::TooMany((WRONG_WINDOW - now.duration_since(since)).as_secs().max(1))
    }

    /// The session of a cookie and its key, by its public name; it counts as used now.
    pub(super) fn find(&mut self, cookie: &str, key: &str, now: Timestamp) -> Option<String> {
        if cookie.len() != LETTERS || key.len() != LETTERS {
            return None;
        }
        self.forget_ended(now);
        let (given, given_key) = (Kept::of(cookie), Kept::of(key));
        let found = self.sessions.iter_mut().fold(None, |found, session| {
            let is = session.kept.is(&given) & session.key.is(&given_key);
            if is { Some(session) } else { found }
        });
        found.map(|session| {
            session.used = now;
            session.id.clone()
        })
    }

    /// All sessions, the one that was opened last first.
    pub(super) fn list(&mut self, current: Option<&str>, now: Timestamp) -> Vec<SessionInfo> {
        self.forget_ended(now);
        let shown = |session: &Session| SessionInfo {
            id: session.id.clone(),
            made: session.made,
            last_used: session.used,
            ends: session.made.saturating_add(LIFE).unwrap_or(Timestamp::MAX),
            user_agent: session.user_agent.clone(),
            current: current == Some(session.id.as_str()),
        };
        self.sessions.iter().rev().map(shown).collect()
    }

    /// Ends the session of that public name; `false` if there is none.
    pub(super) fn revoke(&mut self, id: &str) -> bool {
        let before = self.sessions.len();
        self.sessions.retain(|session| session.id != id);
        self.sessions.len() < before
    }

    /// Ends all, and the codes that wait too; says how many sessions there were.
    pub(super) fn revoke_all(&mut self, now: Timestamp) -> usize {
        self.forget_ended(now);
        self.codes.clear();
        std::mem::take(&mut self.sessions).len()
    }

    fn forget_ended(&mut self, now: Timestamp) {
        self.sessions.retain(|session| fresh(session.made, now, LIFE) && fresh(session.used, now, IDLE_LIFE));
    }
}

/// A session's public name: from the digest, by another digest, so that it leads back to nothing.
fn id_of(kept: &Kept) -> String {
    let mark = Sha256::new().chain_update(b"guildnet session id 1").chain_update(kept.0).finalize();
    mark.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// What a browser calls itself, in letters that do nothing on a terminal or a page.
fn clean(user_agent: &str) -> String {
    let plain = user_agent.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    plain.filter(|c| !matches!(c, '<' | '>' | '&' | '"' | '\'' | '`')).take(AGENT_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn bits(n: u8) -> Bits {
        [n; 32]
    }

    /// The bits of a cookie and its key.
    fn pair(n: u8) -> [Bits; 2] {
        [bits(n), bits(!n)]
    }

    fn find(sessions: &mut Sessions, opened: &Opened, now: Timestamp) -> Option<String> {
        sessions.find(opened.cookie.expose(), opened.key.expose(), now)
    }

    /// A session opened at second 0.
    fn signed_in(sessions: &mut Sessions, n: u8) -> Opened {
        signed_in_at(0, sessions, n)
    }

    fn signed_in_at(second: i64, sessions: &mut Sessions, n: u8) -> Opened {
        let code = sessions.make_code(at(second), bits(n));
        sessions.login(code.expose(), "Browser/1", at(second), pair(n + 100)).expect("signed in")
    }

    #[test]
    fn what_a_session_has_opened_is_over_with_it_however_it_ends() {
        let cut = CancellationToken::new();
        let mut sessions = Sessions::new(cut.clone());
        let over = |sessions: &mut Sessions, n, second| {
            let opened = signed_in_at(second, sessions, n);
            let id = find(sessions, &opened, at(second)).expect("found");
            (sessions.over(&id), id)
        };
        let (revoked, id) = over(&mut sessions, 1, 0);
        let (rested, _) = over(&mut sessions, 2, 0);
        assert!(!revoked.is_cancelled() && !rested.is_cancelled());
        sessions.revoke(&id);
        assert!(revoked.is_cancelled() && !rested.is_cancelled() && sessions.over(&id).is_cancelled());
        let day = 24 * 60 * 60;
        let (last, _) = over(&mut sessions, 3, day);
        assert!(rested.is_cancelled() && !last.is_cancelled());
        cut.cancel();
        assert!(last.is_cancelled());
    }

    #[test]
    fn a_code_opens_one_session_within_a_minute() {
        let mut sessions = Sessions::default();
        let code = sessions.make_code(at(0), bits(1));
        assert_eq!(code.expose().len(), LETTERS, "256 bits");
        let opened = sessions.login(code.expose(), "x", at(59), pair(2)).expect("in time");
        assert!(find(&mut sessions, &opened, at(59)).is_some());
        let (cookie, key) = (opened.cookie.expose().as_str(), opened.key.expose().as_str());
        assert!(sessions.find(code.expose(), key, at(59)).is_none(), "a code is no cookie");
        for (cookie, key) in
            [(cookie, ""), (cookie, cookie), (key, cookie), (key, key), (cookie, code.expose().as_str())]
        {
            assert!(sessions.find(cookie, key, at(59)).is_none(), "both are needed, each in its place");
        }
        let again = sessions.login(code.expose(), "x", at(59), pair(3));
        assert_eq!(again.err(), Some(Refused::Wrong), "used up");
        let late = sessions.make_code(at(100), bits(4));
        assert_eq!(sessions.login(late.expose(), "x", at(160), pair(5)).err(), Some(Refused::Wrong), "too old");
        let early = sessions.make_code(at(100), bits(6));
        assert_eq!(
            sessions.login(early.expose(), "x", at(39), pair(7)).err(),
            Some(Refused::Wrong),
            "a clock set back"
        );
    }

    #[test]
    fn few_codes_wait_and_the_newest_always_works() {
        let mut sessions = Sessions::default();
        let codes: Vec<_> = (0..9).map(|n| sessions.make_code(at(0), bits(n))).collect();
        assert_eq!(sessions.codes.len(), CODES);
        assert!(sessions.login(codes[4].expose(), "x", at(1), pair(50)).is_err(), "it gave way");
        assert!(sessions.login(codes[8].expose(), "x", at(1), pair(51)).is_ok());
    }

    #[test]
    fn wrong_codes_are_slowed_down_and_a_right_one_never_is() {
        let mut sessions = Sessions::default();
        let code = sessions.make_code(at(0), bits(1));
        let mut wrong = |second| sessions.login("wrong", "x", at(second), pair(9)).err();
        for _ in 0..WRONG_CODES {
            assert_eq!(wrong(1), Some(Refused::Wrong));
        }
        assert_eq!(wrong(2), Some(Refused::TooMany(59)));
        assert_eq!(wrong(30), Some(Refused::TooMany(31)));
        sessions.login(code.expose(), "x", at(31), pair(2)).expect("the owner is not locked out");
        assert_eq!(sessions.login("wrong", "x", at(61), pair(9)).err(), Some(Refused::Wrong), "a new window");
    }

    #[test]
    fn a_session_ends_when_it_rests_too_long_and_after_a_week_at_most() {
        let mut sessions = Sessions::default();
        let (idle, used) = (signed_in(&mut sessions, 1), signed_in(&mut sessions, 2));
        let hour = 3600;
        assert!(find(&mut sessions, &used, at(11 * hour)).is_some());
        assert!(find(&mut sessions, &idle, at(12 * hour)).is_none(), "rested for 12 hours");
        for day_part in 2..15 {
            assert!(find(&mut sessions, &used, at(day_part * 11 * hour)).is_some(), "{day_part}");
        }
        for second in [165 * hour, 168 * hour - 1] {
            assert!(find(&mut sessions, &used, at(second)).is_some(), "{second}");
        }
        assert!(find(&mut sessions, &used, at(7 * 24 * hour)).is_none(), "a week is over");
        assert!(sessions.list(None, at(7 * 24 * hour)).is_empty());
    }

    #[test]
    fn sessions_are_few_and_the_one_that_rested_longest_gives_way() {
        let mut sessions = Sessions::default();
        let cookies: Vec<_> = (0..16).map(|n| signed_in(&mut sessions, n)).collect();
        for cookie in &cookies[1..] {
            find(&mut sessions, cookie, at(5)).expect("open");
        }
        let one_more = signed_in_at(6, &mut sessions, 99);
        assert_eq!(sessions.list(None, at(6)).len(), SESSIONS);
        assert!(find(&mut sessions, &cookies[0], at(6)).is_none());
        assert!(find(&mut sessions, &cookies[1], at(6)).is_some() && find(&mut sessions, &one_more, at(6)).is_some());
    }

    #[test]
    fn each_can_be_seen_and_ended_alone_or_all_at_once() {
        let mut sessions = Sessions::default();
        let (one, two) = (signed_in(&mut sessions, 1), signed_in(&mut sessions, 2));
        let mine = find(&mut sessions, &two, at(9)).expect("open");
        let list = sessions.list(Some(&mine), at(9));
        assert_eq!(list.iter().map(|s| s.current).collect::<Vec<_>>(), [true, false]);
        assert_eq!((list[0].made, list[0].last_used, list[0].ends), (at(0), at(9), at(7 * 24 * 3600)));
        assert!(sessions.revoke(&list[1].id) && !sessions.revoke(&list[1].id));
        assert!(find(&mut sessions, &one, at(9)).is_none() && find(&mut sessions, &two, at(9)).is_some());
        let waiting = sessions.make_code(at(9), bits(7));
        assert_eq!(sessions.revoke_all(at(9)), 1);
        assert!(find(&mut sessions, &two, at(9)).is_none());
        assert!(sessions.login(waiting.expose(), "x", at(9), pair(8)).is_err(), "no code outlives it");
    }

    #[test]
    fn nothing_that_opens_is_kept_or_shown() {
        let mut sessions = Sessions::default();
        let waiting = sessions.make_code(at(0), bits(1)).expose().clone();
        let cookie = signed_in(&mut sessions, 2);
        let shown = format!("{sessions:?} {}", serde_json::to_string(&sessions.list(None, at(1))).expect("JSON"));
        for secret in [&waiting, cookie.cookie.expose(), cookie.key.expose()] {
            assert!(!shown.contains(secret.as_str()) && !shown.contains(&secret[..8]), "{shown}");
        }
    }

    #[test]
    fn a_browser_can_claim_nothing_that_does_anything() {
        let mut sessions = Sessions::default();
        let code = sessions.make_code(at(0), bits(1));
        let claimed = format!("<b>\u{1b}[2J\u{202e}\n\"{}", "x".repeat(500));
        sessions.login(code.expose(), &claimed, at(0), pair(2)).expect("signed in");
        let shown = &sessions.list(None, at(0))[0].user_agent;
        assert!(shown.starts_with("b?[2J??x") && shown.len() == AGENT_LETTERS, "{shown:?}");
    }
}
