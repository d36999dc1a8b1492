//! What is kept of the Headscale server, changed by hand: a new API key, say, where the old one has ended.

use guildnet_model::{Class, Secret};
use guildnet_store::{HeadscaleRecord, Store};
use url::Url;

use super::Settings;
use crate::{HostError, error::Explained as _, server::Server, up::moved};

/// What is to be kept of the Headscale server; what is not given stays, if it is the same server.
#[derive(Debug, Default)]
pub(crate) struct HeadscaleChange {
    /// Its address; the known one, if not given.
    pub(crate) url: Option<Url>,
    /// An API key.
    pub(crate) api_key: Option<Secret<String>>,
    /// Certificates (PEM) to trust for it.
    pub(crate) ca_pem: Option<String>,
}

impl HeadscaleChange {
    /// What is kept afterwards. `in_use`: there are clusters, and they log in at the known address.
    fn applied(self, kept: Option<HeadscaleRecord>, in_use: bool) -> Result<HeadscaleRecord, HostError> {
        let url = match (self.url, &kept) {
            (Some(url), Some(kept)) if in_use && url != kept.url => {
                let said = format!("the clusters log in at {}", kept.url);
                return Err(HostError::new(Class::Conflict, said)
                    .with_hint(format!("where the same server has moved: guildnet up --headscale-url {url}")));
            }
            (Some(url), _) => url,
            (None, Some(kept)) => kept.url.clone(),
            (None, None) => {
                return Err(HostError::new(Class::Usage, "no Headscale server is known yet").with_hint("give its url"));
            }
        };
        let kept = kept.filter(|h| h.url == url);
        let (api_key, ca_pem) = kept.map(|h| (h.api_key, h.ca_pem)).unwrap_or_default();
        Ok(HeadscaleRecord { url, api_key: self.api_key.or(api_key), ca_pem: self.ca_pem.or(ca_pem) })
    }

    /// Keeps it, once the server has answered and accepted the key.
    ///
    /// # Errors
    /// It does not answer, or refuses; clusters use another server; the Host App was started with a server or a key, which would
    /// go before what is kept. Nothing is changed then.
    /// # Cancellation
    /// It is changed as a whole, or not.
    pub(crate) async fn keep(self, settings: &Settings, store: &Store) -> Result<(), HostError> {
        if settings.headscale_url.is_some() || settings.api_key.is_some() || settings.headscale_ca.is_some() {
            return Err(HostError::new(
                Class::Conflict,
                "the Host App was started with a Headscale server or key of its own (HEADSCALE_*), which goes before what is kept",
            )
            .with_hint("change it there, and start the Host App again"));
        }
        let (kept, clusters) = (store.headscale().await.explained()?, store.list().await.explained()?);
        let record = self.applied(kept, !clusters.is_empty())?;
        let server = Server::of(&record)?;
        server.answers().await?;
        store.put_headscale(&record).await.explained()?;
        moved::remember(store, &server).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    fn kept() -> HeadscaleRecord {
        HeadscaleRecord {
            url: "https://hs:8443".parse().expect("a URL"),
            api_key: Some(Secret::new("old".into())),
            ca_pem: Some("authority".into()),
        }
    }

    #[test]
    fn what_is_not_given_stays_for_the_same_server_only() {
        let new_key = || HeadscaleChange { api_key: Some(Secret::new("new".into())), ..HeadscaleChange::default() };
        let kept_on = new_key().applied(Some(kept()), true).expect("applied");
        assert_eq!(kept_on, HeadscaleRecord { api_key: Some(Secret::new("new".into())), ..kept() });
        let elsewhere = || HeadscaleChange { url: "https://other:8443".parse().ok(), ..HeadscaleChange::default() };
        let alone = elsewhere().applied(Some(kept()), false).expect("nobody uses it");
        assert_eq!((alone.api_key, alone.ca_pem), (None, None));
        let refused = elsewhere().applied(Some(kept()), true).expect_err("in use");
        assert_eq!(refused.class(), Class::Conflict);
        assert!(refused.hint().is_some_and(|h| h.contains("--headscale-url https://other:8443/")));
        let nowhere = new_key().applied(None, false).expect_err("no address");
        assert_eq!(nowhere.class(), Class::Usage);
    }
}
