//! The Headscale server at another address: records, connectors and routers follow it, with one `up --headscale-url`, or
//! with none where it is this home's own.
//!
//! Of a server of others, that it is the same server is told by its own key, which it shows at every address and which is kept from earlier runs. Only
//! then is the kept API key used there: an address alone is not trusted with it.

use futures_util::future::join_all;
use guildnet_model::{Class, ClusterId};
use guildnet_store::{ClusterRecord, HeadscaleRecord, Store};
use jiff::Timestamp;
use url::Url;

use super::{ClusterUp, Known};
use crate::{
    HostError, Progress, RouterRequest, Settings, Via, client::HostClient, error::Explained as _, fleet, router,
    server::Server,
};

/// What an address means, beside the one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// The same server, elsewhere.
    Moved,
    /// Another server.
    Another,
    /// It was never seen which key the known server has.
    Untold,
}

fn judge(kept: Option<&str>, told: &str) -> Address {
    match kept {
        Some(kept) if kept == told => Address::Moved,
        Some(_) => Address::Another,
        None => Address::Untold,
    }
}

/// Follows the server to the address that is set now, if it is another one than the known: the records are changed, and
/// returned with the clusters whose routers have yet to follow. `any_named`: clusters were named, so another server may be
/// meant.
///
/// # Errors
/// The address does not answer; without named clusters, it is not the known server's.
pub(super) async fn follow(
    settings: &Settings,
    known: Known,
    any_named: bool,
    progress: &dyn Progress,
) -> Result<(Known, Vec<ClusterId>), HostError> {
    let (Some(new), Some(old)) = (&settings.headscale_url, &known.headscale) else { return Ok((known, vec![])) };
    if *new == old.url {
        return Ok((known, vec![]));
    }
    let store = fleet::open_store(settings).await?;
    let followed = follow_to(settings, &store, &known, old, new, any_named).await;
    store.close().await;
    let moved = followed?;
    if moved.is_empty() {
        return Ok((known, moved));
    }
    progress.step(None, &format!("Headscale has moved from {} to {new}", old.url));
    Ok((Known::read(settings).await?, moved))
}

async fn follow_to(
    settings: &Settings,
    store: &Store,
    known: &Known,
    old: &HeadscaleRecord,
    new: &Url,
    any_named: bool,
) -> Result<Vec<ClusterId>, HostError> {
    let ca_pem = settings.headscale_ca.clone().or_else(|| old.ca_pem.clone());
    let told = Server::new(new, None, ca_pem.as_deref())?.server_key().await?;
    let kept = store.server_key().await.explained()?;
    match judge(kept.as_deref(), &told) {
        Address::Moved => {}
        Address::Another | Address::Untold if any_named => return Ok(vec![]),
        other => return Err(not_the_same(other, new, &old.url)),
    }
    let api_key = settings.api_key.clone().or_else(|| old.api_key.clone());
    let moved = records(store, known, &old.url, new, settings.headscale_ca.as_deref()).await?;
    // Last: what broke off before is found again by the same command.
    let record = HeadscaleRecord { url: new.clone(), api_key, ca_pem };
    store.put_headscale(&record).await.explained()?;
    store.put_server_key(&told).await.explained()?;
    Ok(moved)
}

/// Has the clusters that log in at `old` log in at `new`, with `ca_pem` if that is another authority; returns which.
///
/// # Errors
/// The store can't be written; those before the failing one are changed.
pub(crate) async fn records(
    store: &Store,
    known: &Known,
    old: &Url,
    new: &Url,
    ca_pem: Option<&str>,
) -> Result<Vec<ClusterId>, HostError> {
    let mut moved = Vec::new();
    for record in known.records.iter().filter(|r| r.login_server == *old) {
        let record = ClusterRecord {
            login_server: new.clone(),
            ca_pem: ca_pem.map(str::to_owned).or_else(|| record.ca_pem.clone()),
            updated: Timestamp::now(),
            ..record.clone()
        };
        store.replace(&record).await.explained_of(&record.id)?;
        moved.push(record.id);
    }
    Ok(moved)
}

fn not_the_same(address: Address, new: &Url, old: &Url) -> HostError {
    let said = match address {
        Address::Another => format!("{new} is another Headscale server than {old}: it shows another key"),
        _ => format!("whether {new} is the Headscale server of {old} can't be told: its key was never seen"),
    };
    HostError::new(Class::Conflict, said).with_hint(
        "to set the clusters up there, name them: guildnet up --cluster ID=KUBECONFIG --headscale-url URL \
         --headscale-api-key-file FILE",
    )
}

/// Keeps the key by which the server is recognised, so that it can be followed later. Not being able to changes nothing now.
pub(crate) async fn remember(store: &Store, server: &Server) {
    let kept = async {
        let told = server.server_key().await?;
        if store.server_key().await.explained()?.as_deref() != Some(told.as_str()) {
            store.put_server_key(&told).await.explained()?;
        }
        Ok::<(), HostError>(())
    };
    if let Err(why) = kept.await {
        tracing::warn!(%why, "the Headscale server's key is not kept");
    }
}

/// Has the routers of moved clusters log in at the new address. Of `clusters`, those count whose outcome is good until here; a
/// router that does not follow is its cluster's failure.
///
/// # Errors
/// The Host App does not answer.
pub(crate) async fn routers(
    settings: &Settings,
    moved: &[ClusterId],
    clusters: &mut [ClusterUp],
    progress: &dyn Progress,
) -> Result<(), HostError> {
    if moved.is_empty() {
        return Ok(());
    }
    if let Some(host) = HostClient::discover(&settings.home)? {
        // The connectors first: they may be the way to the routers, if the old address still works.
        host.reload().await?;
    }
    let waiting = moved.iter().filter(|id| clusters.iter().any(|c| c.id == **id && c.outcome.is_ok()));
    let ensured = join_all(waiting.map(|id| async move {
        let request = RouterRequest { id: id.clone(), kubeconfig: None, from: None, routes: None, via: Via::Auto };
        (id, router::router_ensure(settings, request, progress).await)
    }));
    for (id, outcome) in ensured.await {
        let Err(why) = outcome else { continue };
        progress.step(Some(id), &format!("failed: {}", why.message()));
        if let Some(cluster) = clusters.iter_mut().find(|c| c.id == *id) {
            cluster.outcome = Err(why.while_doing("its routers do not follow to the new address"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use guildnet_model::Explain as _;

    use super::*;

    #[test]
    fn a_server_is_the_same_if_it_shows_the_same_key() {
        assert_eq!(judge(Some("mkey:1"), "mkey:1"), Address::Moved);
        assert_eq!(judge(Some("mkey:1"), "mkey:2"), Address::Another);
        assert_eq!(judge(None, "mkey:1"), Address::Untold);
    }

    #[test]
    fn another_server_is_refused_and_the_command_that_sets_up_there_is_named() {
        let url = |text: &str| text.parse::<Url>().expect("a URL");
        let said = not_the_same(Address::Another, &url("https://192.0.2.9:8443"), &url("https://192.0.2.1:8443"));
        assert_eq!(said.class(), Class::Conflict);
        assert!(said.to_string().contains("another key") && said.hint().is_some_and(|h| h.contains("--cluster")));
    }
}
