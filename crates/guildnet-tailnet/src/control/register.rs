//! Registration: makes the server accept this node's key, with the preauth key only where it is needed.
//!
//! A node that the server knew before is registered without a key. If the server then says that it expired or is unknown,
//! and a preauth key can be had, a replacement for the node key is registered in its place; it is on disk before that.

use std::{sync::Arc, time::Duration};

use guildnet_model::Secret;
use tokio::time::timeout;
use ts_keys::NodeKeyPair;

use super::{
    ControlConfig, End,
    connect::{CAPABILITY, Http},
    wire::{Auth, Hostinfo, RegisterRequest, RegisterResponse},
};
use crate::state::{Identity, public};

/// How long the server may take to answer. Headscale writes its database first, about 1 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a logout may take: less than a connector's stop, which it is part of.
const LOGOUT_LIMIT: Duration = Duration::from_secs(3);
/// The end of a node key that is over: any time in the past.
const LONG_AGO: &str = "1970-01-01T00:02:03Z";
/// What is said of an expired node.
const EXPIRED: &str = "the node's key has expired";
/// What is said of an expired node that a preauth key does not renew: Headscale (0.28 on, `hscontrol/state/state.go`,
/// `HandleNodeFromPreAuthKey`) leaves a tagged node's expiry as it is.
const STILL_EXPIRED: &str = "the node's key has expired, and the preauth key did not renew it: delete the node on the \
                             server, or renew it there with 'headscale nodes expire --identifier ID --disable'";

/// Registers the node.
///
/// # Errors
/// [`End::Refused`] with the server's own words if a new preauth key is needed; [`End::Broken`] otherwise.
pub(super) async fn register(http: &Http, config: &ControlConfig) -> Result<(), End> {
    let identity = &config.identity;
    if !identity.is_registered() {
        let why = "this node is not registered yet";
        let Some(auth_key) = config.keys.ask().await.map_err(|e| End::Refused(format!("{why}; {e}")))? else {
            return Err(End::Refused(format!("{why} and no preauth key was given")));
        };
        let node = identity.node();
        call(http, config, &node, None, Some(&auth_key)).await?;
        return accepted(identity, node).await;
    }
    match call(http, config, &identity.node(), None, None).await {
        Err(End::Refused(why)) => {
            let Some(auth_key) = config.keys.ask().await.map_err(|e| End::Refused(format!("{why}; {e}")))? else {
                return Err(End::Refused(why));
            };
            let why = config.fit(&why);
            tracing::info!(why, "the server no longer accepts this node; joining again with a preauth key");
            renew(http, config, &auth_key).await
        }
        other => other,
    }
}

/// Registers a new node key in the place of the present one, which is the node key once the server has accepted it.
async fn renew(http: &Http, config: &ControlConfig, auth_key: &Secret<String>) -> Result<(), End> {
    let identity = &config.identity;
    let for_disk = identity.clone();
    let next = blocking(move || for_disk.next_node()).await?;
    let answer = call(http, config, &next, Some(&identity.node()), Some(auth_key)).await;
    // An expired node was found by its machine key and given the new node key before it was found expired.
    let still_expired = matches!(&answer, Err(End::Refused(why)) if why == EXPIRED);
    if still_expired || answer.is_ok() {
        accepted(identity, Arc::new(next)).await?;
    }
    if still_expired { Err(End::Refused(STILL_EXPIRED.into())) } else { answer }
}

/// Has the node admitted anew before its key expires.
///
/// # Errors
/// [`End::Renewed`] once the node has another key; [`End::Broken`] if the server can't be asked. That there is no preauth key, or
/// none that the server takes, is no error: the present key is still good.
pub(super) async fn renew_ahead(http: &Http, config: &ControlConfig) -> Result<(), End> {
    let why = match config.keys.ask().await {
        Ok(Some(auth_key)) => match renew(http, config, &auth_key).await {
            Ok(()) => {
                tracing::info!("the node has a new key before the old one expires");
                return Err(End::Renewed);
            }
            Err(End::Refused(why)) => config.fit(&why),
            Err(other) => return Err(other),
        },
        Ok(None) => "there is no preauth key".into(),
        Err(error) => config.fit(&error.to_string()),
    };
    tracing::warn!(why, "the node's key expires soon and is not renewed");
    Ok(())
}

/// Asks whether the server still accepts the registered node.
///
/// # Errors
/// [`End::Broken`] if it does not, so that the next session registers again, and if it can't be asked.
pub(super) async fn still_known(http: &Http, config: &ControlConfig) -> Result<(), End> {
    call(http, config, &config.identity.node(), None, None).await.map_err(|end| match end {
        End::Refused(why) => End::Broken(format!("the server no longer accepts this node: {why}")),
        other => other,
    })
}

/// Logs a registered node out and forgets its identity before, so that nobody joins with it again. The server deletes the node if it
/// is an ephemeral one (tailscale `control/controlclient/direct.go`, `TryLogout`; headscale `hscontrol/auth.go`, `handleLogout`).
///
/// # Cancellation
/// Ends by itself within [`LOGOUT_LIMIT`].
pub(super) async fn logout(http: &Http, config: &ControlConfig) {
    let identity = config.identity.clone();
    if !identity.is_registered() {
        return;
    }
    let work = async {
        let node = identity.node();
        blocking(move || identity.forget()).await?;
        send(http, config, &node, None, None, Some(LONG_AGO)).await
    };
    match timeout(LOGOUT_LIMIT, work).await {
        // That its key has expired is what was asked for.
        Ok(Ok(()) | Err(End::Refused(_))) => tracing::info!("logged out"),
        Ok(Err(End::Broken(why))) => tracing::warn!(why = config.fit(&why), "the node could not be logged out"),
        _ => tracing::warn!("the server did not answer the logout within {LOGOUT_LIMIT:?}"),
    }
}

async fn accepted(identity: &Arc<Identity>, key: Arc<NodeKeyPair>) -> Result<(), End> {
    let identity = identity.clone();
    blocking(move || identity.accepted(&key)).await
}

/// Runs a step that waits for the disk beside the other tasks of this thread.
pub(super) async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, guildnet_model::ConnectorError> + Send + 'static,
) -> Result<T, End> {
    match tokio::task::spawn_blocking(step).await {
        Ok(done) => done.map_err(|e| End::Broken(e.to_string())),
        Err(e) => Err(End::Broken(format!("saving the identity broke off: {e}"))),
    }
}

async fn call(
    http: &Http,
    config: &ControlConfig,
    node: &NodeKeyPair,
    old: Option<&NodeKeyPair>,
    auth_key: Option<&Secret<String>>,
) -> Result<(), End> {
    send(http, config, node, old, auth_key, None).await
}

async fn send(
    http: &Http,
    config: &ControlConfig,
    node: &NodeKeyPair,
    old: Option<&NodeKeyPair>,
    auth_key: Option<&Secret<String>>,
    expiry: Option<&'static str>,
) -> Result<(), End> {
    let request = RegisterRequest {
        version: CAPABILITY.into(),
        node_key: public(node).node_text(),
        old_node_key: old.map(|old| public(old).node_text()),
        auth: auth_key.map(|key| Auth { auth_key: key.expose() }),
        expiry,
        hostinfo: Hostinfo::new(&config.hostname, config.identity.home_relay()),
    };
    let answer = timeout(ANSWER_LIMIT, http.ask("/machine/register", &request))
        .await
        .map_err(|_| End::Broken(format!("the server did not answer the registration within {ANSWER_LIMIT:?}")))?
        .map_err(|e| End::Broken(e.to_string()))?;
    let answer: RegisterResponse = serde_json::from_slice(&answer)
        .map_err(|e| End::Broken(format!("the server's answer to the registration can't be read: {e}")))?;
    judge(answer).map_err(End::Refused)
}

/// What an answer says: accepted, or refused and why.
fn judge(answer: RegisterResponse) -> Result<(), String> {
    if !answer.error.is_empty() {
        Err(answer.error)
    } else if answer.node_key_expired {
        Err(EXPIRED.into())
    } else if !answer.auth_url.is_empty() {
        Err("the server does not know this node".into())
    } else if !answer.machine_authorized {
        Err("the node waits for approval".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_answer_is_an_acceptance() {
        let said = |json: &str| judge(serde_json::from_str(json).expect("an answer"));
        assert_eq!(said(r#"{"MachineAuthorized":true,"User":{"ID":1},"AuthURL":"","Error":""}"#), Ok(()));
        for (json, why) in [
            (r#"{"Error":"authkey expired"}"#, "authkey expired"),
            (r#"{"MachineAuthorized":true,"NodeKeyExpired":true}"#, "the node's key has expired"),
            (r#"{"AuthURL":"https://h/register/x"}"#, "the server does not know this node"),
            (r#"{}"#, "the node waits for approval"),
        ] {
            assert_eq!(said(json), Err(why.to_owned()), "{json}");
        }
    }
}
