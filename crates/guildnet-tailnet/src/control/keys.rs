//! Preauth keys as the control connection has them: asked for when one is needed, and never told.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use guildnet_model::{AuthKeys, NoAuthKey, Secret};
use tokio::time::timeout;

/// How long making a key may take: some requests to the server's API, each about as long as a registration.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// Asks for keys, and remembers the last one, so that it can be taken out of whatever the server echoes.
pub(crate) struct Keys {
    source: Arc<dyn AuthKeys>,
    given: Mutex<Option<Secret<String>>>,
}

impl Keys {
    pub(crate) fn new(source: Arc<dyn AuthKeys>) -> Self {
        Self { source, given: Mutex::new(None) }
    }

    /// A key to join with now. An empty one is none.
    pub(super) async fn ask(&self) -> Result<Option<Secret<String>>, NoAuthKey> {
        let why = || NoAuthKey { why: format!("it was not there within {ASK_LIMIT:?}") };
        let key = timeout(ASK_LIMIT, self.source.key()).await.map_err(|_| why())??;
        let key = key.filter(|key| !key.expose().trim().is_empty());
        if key.is_some() {
            self.given.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&key);
        }
        Ok(key)
    }

    /// The text without the key that was given last.
    pub(super) fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &*self.given.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(key) => text.replace(key.expose().trim(), "[the key]").into(),
            None => text.into(),
        }
    }
}
