//! Registration: makes the server accept this node's key, with the preauth key only where it is needed.
//!
//! A node that the server knew before is registered without a key. If the server then says that it expired or is unknown,
//! and there is a preauth key, a replacement for the node key is registered in its place; it is on disk before that.

use std::{sync::Arc, time::Duration};

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
/// What is said of an expired node.
const EXPIRED: &str = "the node's key has expired";
/// What is said of an expired node that a preauth key does not renew: Headscale (0.29) keeps a tagged node expired.
const STILL_EXPIRED: &str = "the node's key has expired, and the preauth key did not renew it: delete the node on the \
                             server, or renew it there with 'headscale nodes expire --identifier ID --disable'";

/// Registers the node.
///
/// # Errors
/// [`End::Refused`] with the server's own words if a new preauth key is needed; [`End::Broken`] otherwise.
pub(super) async fn register(http: &Http, config: &ControlConfig) -> Result<(), End> {
    let identity = &config.identity;
    let node = identity.node();
    let Some(auth_key) = &config.auth_key else {
        if !identity.is_registered() {
            return Err(End::Refused("this node is not registered yet and no preauth key was given".into()));
        }
        return call(http, config, &node, None, None).await;
    };
    if !identity.is_registered() {
        call(http, config, &node, None, Some(auth_key.expose())).await?;
        return accepted(identity, node).await;
    }
    match call(http, config, &node, None, None).await {
        Err(End::Refused(why)) => {
            let why = config.fit(&why);
            tracing::info!(why, "the server no longer accepts this node; joining again with the preauth key");
            let for_disk = identity.clone();
            let next = blocking(move || for_disk.next_node()).await?;
            let answer = call(http, config, &next, Some(&node), Some(auth_key.expose())).await;
            // An expired node was found by its machine key and given the new node key before it was found expired.
            let still_expired = matches!(&answer, Err(End::Refused(why)) if why == EXPIRED);
            if still_expired || answer.is_ok() {
                accepted(identity, Arc::new(next)).await?;
            }
            if still_expired { Err(End::Refused(STILL_EXPIRED.into())) } else { answer }
        }
        other => other,
    }
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
    auth_key: Option<&str>,
) -> Result<(), End> {
    let request = RegisterRequest {
        version: CAPABILITY.into(),
        node_key: public(node).node_text(),
        old_node_key: old.map(|old| public(old).node_text()),
        auth: auth_key.map(|auth_key| Auth { auth_key }),
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
