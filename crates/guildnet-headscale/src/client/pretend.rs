//! Makes a node without joining, by the server's debug calls: the contract's tests need nodes and have no tailnet.

use guildnet_model::Secret;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Headscale, wire};
use crate::{HeadscaleError, Node};

impl Headscale {
    /// Makes a node of the user with these tags, or without any. `number` makes its registration unique on the server.
    pub(crate) async fn pretend_node(
        &self,
        user: &str,
        name: &str,
        tags: &[String],
        number: u64,
    ) -> Result<Node, HeadscaleError> {
        // 24 characters, since 0.29 behind a prefix (`hscontrol/types/common.go`, `AuthIDLength`).
        let prefix = if self.server().await?.features.via_grants { "hskey-authreq-" } else { "" };
        let key = Secret::new(format!("{prefix}{number:024}"));
        let pending = json!({ "user": user, "key": key.expose(), "name": name });
        let url = self.endpoint("api/v1/debug/node", &[]);
        self.call::<Value>("pending node", Method::POST, url, Some(&pending)).await?;
        let url = self.endpoint("api/v1/node/register", &[("user", user), ("key", key.expose())]);
        let made: wire::OneNode = self.call("pretended node", Method::POST, url, Some(&json!({}))).await?;
        let node = Node::from(made.node);
        if tags.is_empty() {
            return Ok(node);
        }
        let url = self.endpoint(&format!("api/v1/node/{}/tags", node.id), &[]);
        let tagged: wire::OneNode =
            self.call("tags of the pretended node", Method::POST, url, Some(&json!({ "tags": tags }))).await?;
        Ok(tagged.node.into())
    }
}
