//! A token in a file that something else keeps fresh: read again when it has changed.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use guildnet_model::Secret;
use http::HeaderValue;
use tokio::{io::AsyncReadExt as _, sync::Mutex, time::Instant};

use super::{CredentialError, header};

/// How often the file is looked at, at most. client-go reads it each minute; who writes a token there gives it minutes
/// to live, and a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The largest token: far above any (API servers take heads of 1 MiB at most).
const MAX_TOKEN: u64 = 1 << 20;

/// A token file, and what was read of it.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    /// See [`LOOK_EVERY`]; another in a test.
    look_every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<(Version, HeaderValue)>,
    looked: Option<Instant>,
}

/// Tells one content of the file from the next.
type Version = (u64, u64, i64, i64);

impl TokenFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, look_every: LOOK_EVERY, state: Mutex::default() }
    }

    pub(super) async fn bearer(&self) -> Result<HeaderValue, CredentialError> {
        let mut state = self.state.lock().await;
        let due = state.looked.is_none_or(|looked| looked.elapsed() >= self.look_every);
        if let (false, Some((_, bearer))) = (due, &state.held) {
            return Ok(bearer.clone());
        }
        let read = self.read(state.held.as_ref()).await;
        state.looked = Some(Instant::now());
        match (read, &state.held) {
            (Ok(read), _) => Ok(state.held.insert(read).1.clone()),
            // It may be in the middle of being replaced; the last one is good until the server says otherwise.
            (Err(_), Some((_, bearer))) => Ok(bearer.clone()),
            (Err(why), None) => Err(CredentialError::File { path: self.path.clone(), why }),
        }
    }

    pub(super) async fn refused(&self, used: &HeaderValue) -> bool {
        let mut state = self.state.lock().await;
        let Some((version, bearer)) = &state.held else { return true };
        if bearer != used {
            return true;
        }
        // Only a file that has changed can hold another one.
        let changed = self.version().await.is_ok_and(|now| now != *version);
        if changed {
            *state = State::default();
        }
        changed
    }

    async fn version(&self) -> std::io::Result<Version> {
        let meta = tokio::fs::metadata(&self.path).await?;
        Ok((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// The file's token; what is held if the file is still the same.
    async fn read(&self, held: Option<&(Version, HeaderValue)>) -> Result<(Version, HeaderValue), String> {
        let version = self.version().await.map_err(|why| why.to_string())?;
        if let Some((_, bearer)) = held.filter(|(known, _)| *known == version) {
            return Ok((version, bearer.clone()));
        }
        let file = tokio::fs::File::open(&self.path).await.map_err(|why| why.to_string())?;
        let mut text = Vec::with_capacity(usize::try_from(version.1.min(MAX_TOKEN)).unwrap_or_default() + 1);
        let read = file.take(MAX_TOKEN).read_to_end(&mut text).await;
        let text = Secret::new(text);
        read.map_err(|why| why.to_string())?;
        let token = std::str::from_utf8(text.expose()).map_err(|_| "it is not text".to_owned())?.trim();
        if token.is_empty() {
            return Err("it is empty".into());
        }
        let bearer = header(&Secret::new(token.to_owned())).ok_or("it has letters that no HTTP header may hold")?;
        Ok((version, bearer))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// One that is looked at each time, or for as long as the test runs only once.
    fn file(path: &Path, each_time: bool) -> TokenFile {
        let look_every = if each_time { Duration::ZERO } else { Duration::from_secs(3_600) };
        TokenFile { look_every, ..TokenFile::new(path.to_owned()) }
    }

    async fn token(file: &TokenFile) -> String {
        file.bearer().await.expect("a token").to_str().expect("text").to_owned()
    }

    #[tokio::test]
    async fn a_new_token_is_seen_at_the_next_look() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "one\n").expect("written");
        let (now, later) = (file(&path, true), file(&path, false));
        assert_eq!((token(&now).await, token(&later).await), ("Bearer one".into(), "Bearer one".into()));
        fs::write(&path, "second").expect("written");
        assert_eq!((token(&now).await, token(&later).await), ("Bearer second".into(), "Bearer one".into()));
    }

    #[tokio::test]
    async fn a_token_that_is_refused_is_read_again_if_the_file_has_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "one").expect("written");
        let file = file(&path, false);
        let used = file.bearer().await.expect("a token");
        assert!(!file.refused(&used).await, "there is no other");
        fs::write(&path, "second").expect("written");
        assert!(file.refused(&used).await);
        assert_eq!(token(&file).await, "Bearer second");
        assert!(file.refused(&used).await, "another request had the old one still");
        assert_eq!(token(&file).await, "Bearer second");
    }

    #[tokio::test]
    async fn a_file_that_goes_away_leaves_the_last_token_and_one_that_never_was_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let file = file(&path, true);
        let said = |why: CredentialError| why.to_string();
        assert!(
            said(file.bearer().await.expect_err("none")).ends_with("token: No such file or directory (os error 2)")
        );
        fs::write(&path, " \n").expect("written");
        assert!(said(file.bearer().await.expect_err("none")).ends_with("token: it is empty"));
        fs::write(&path, "one").expect("written");
        assert_eq!(token(&file).await, "Bearer one");
        fs::remove_file(&path).expect("gone");
        assert_eq!(token(&file).await, "Bearer one");
    }
}
