//! The JSON of Headscale's API, 0.26 and later. Nothing of it leaves the client.
//!
//! Source: `proto/headscale/v1/*.proto` of Headscale, as its HTTP gateway writes them: 64-bit numbers are strings, names are
//! in camel case, and a value that is false, zero or empty may be left out.

use std::net::IpAddr;

use guildnet_model::Secret;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ApiKey, PreauthKey, User};
use crate::Node;

/// A number that travels as a string, or as a number.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        Number(u64),
    }
    match Form::deserialize(from)? {
        Form::Number(n) => Ok(n),
        Form::Text(text) => text.parse().map_err(|_| serde::de::Error::custom("not a number")),
    }
}

/// A time, of which the Go zero time means none.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let Some(text) = text.filter(|t| !t.is_empty() && !t.starts_with("0001-01-01")) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| serde::de::Error::custom("not a time"))
}

/// A list that may be null.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
}

#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) version: String,
}

#[derive(Deserialize)]
pub(super) struct WireUser {
    #[serde(deserialize_with = "number")]
    id: u64,
    name: String,
}

impl From<WireUser> for User {
    fn from(wire: WireUser) -> Self {
        Self { id: wire.id, name: wire.name }
    }
}

#[derive(Deserialize)]
pub(super) struct OneUser {
    pub(super) user: WireUser,
}

#[derive(Deserialize)]
pub(super) struct Users {
    #[serde(default, deserialize_with = "list")]
    pub(super) users: Vec<WireUser>,
}

#[derive(Serialize)]
pub(super) struct CreateUser<'a> {
    pub(super) name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateKey<'a> {
    pub(super) user: String,
    pub(super) reusable: bool,
    pub(super) ephemeral: bool,
    pub(super) expiration: Timestamp,
    pub(super) acl_tags: &'a [String],
}

/// Holds what both forms of the call need: the number since 0.28, before it namespace and key.
#[derive(Serialize)]
pub(super) struct ExpireKey<'a> {
    pub(super) id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    pub(super) key: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireKey {
    #[serde(deserialize_with = "number")]
    id: u64,
    user: Option<WireUser>,
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    reusable: bool,
    #[serde(default)]
    ephemeral: bool,
    #[serde(default)]
    used: bool,
    #[serde(default, deserialize_with = "time")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    expiration: Option<Timestamp>,
    #[serde(default, deserialize_with = "list")]
    acl_tags: Vec<String>,
}

impl From<WireKey> for PreauthKey {
    fn from(wire: WireKey) -> Self {
        Self {
            id: wire.id,
            user: wire.user.map(|u| u.id),
            tags: wire.acl_tags,
            reusable: wire.reusable,
            ephemeral: wire.ephemeral,
            used: wire.used,
            created: wire.created_at,
            expires: wire.expiration,
            listed: Secret::new(wire.key),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OneKey {
    pub(super) pre_auth_key: WireKey,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Keys {
    #[serde(default, deserialize_with = "list")]
    pub(super) pre_auth_keys: Vec<WireKey>,
}

/// The user of a node: only its name matters.
#[derive(Deserialize)]
struct Owner {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireApiKey {
    #[serde(deserialize_with = "number")]
    id: u64,
    #[serde(default)]
    prefix: String,
    #[serde(default, deserialize_with = "time")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    expiration: Option<Timestamp>,
}

impl From<WireApiKey> for ApiKey {
    fn from(wire: WireApiKey) -> Self {
        Self { id: wire.id, prefix: wire.prefix, created: wire.created_at, expires: wire.expiration }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiKeys {
    #[serde(default, deserialize_with = "list")]
    pub(super) api_keys: Vec<WireApiKey>,
}

/// The server's own key, with which nodes recognise it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServerKey {
    #[serde(default)]
    pub(super) public_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireNode {
    #[serde(deserialize_with = "number")]
    id: u64,
    #[serde(default)]
    node_key: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    given_name: String,
    #[serde(default)]
    user: Option<Owner>,
    #[serde(default, deserialize_with = "list")]
    ip_addresses: Vec<IpAddr>,
    #[serde(default)]
    online: bool,
    #[serde(default, deserialize_with = "time")]
    last_seen: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    expiry: Option<Timestamp>,
    #[serde(default, deserialize_with = "list")]
    approved_routes: Vec<IpNet>,
    #[serde(default, deserialize_with = "list")]
    available_routes: Vec<IpNet>,
    #[serde(default, deserialize_with = "list")]
    subnet_routes: Vec<IpNet>,
    /// Since 0.28.
    #[serde(default, deserialize_with = "list")]
    tags: Vec<String>,
    /// Before 0.28: given by a key or by hand.
    #[serde(default, deserialize_with = "list")]
    forced_tags: Vec<String>,
    /// Before 0.28: asked for by the node and allowed.
    #[serde(default, deserialize_with = "list")]
    valid_tags: Vec<String>,
}

impl From<WireNode> for Node {
    fn from(wire: WireNode) -> Self {
        let mut tags = wire.tags;
        tags.extend(wire.forced_tags);
        tags.extend(wire.valid_tags);
        tags.sort();
        tags.dedup();
        Self {
            id: wire.id,
            name: if wire.given_name.is_empty() { wire.name } else { wire.given_name },
            node_key: wire.node_key,
            user: wire.user.map(|u| u.name).filter(|name| !name.is_empty()),
            tags,
            addresses: wire.ip_addresses,
            online: wire.online,
            last_seen: wire.last_seen,
            expires: wire.expiry,
            available_routes: wire.available_routes,
            approved_routes: wire.approved_routes,
            elected_routes: wire.subnet_routes,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct OneNode {
    pub(super) node: WireNode,
}

#[derive(Deserialize)]
pub(super) struct Nodes {
    #[serde(default, deserialize_with = "list")]
    pub(super) nodes: Vec<WireNode>,
}

#[derive(Serialize)]
pub(super) struct ApproveRoutes<'a> {
    pub(super) routes: &'a [IpNet],
}

#[derive(Serialize)]
pub(super) struct PolicyText<'a> {
    pub(super) policy: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyHeld {
    #[serde(default)]
    pub(super) policy: String,
    /// When it was written to the database; none for a file.
    #[serde(default, deserialize_with = "time")]
    pub(super) updated_at: Option<Timestamp>,
}

/// An answer or a body with nothing in it that matters.
#[derive(Serialize, Deserialize)]
pub(super) struct Empty {}

/// What the server says for a refusal: a gRPC status (up to 0.29), or a problem document (RFC 9457). `None`: neither.
pub(super) fn refusal(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        message: Option<String>,
        title: Option<String>,
        detail: Option<String>,
        #[serde(default)]
        errors: Vec<Detail>,
    }
    #[derive(Deserialize)]
    struct Detail {
        message: Option<String>,
        location: Option<String>,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    let mut said = refusal.message.or(refusal.detail).or(refusal.title)?;
    for detail in refusal.errors {
        let Some(message) = detail.message else { continue };
        said.push_str("; ");
        if let Some(location) = detail.location.filter(|l| !l.is_empty()) {
            said.push_str(&location);
            said.push_str(": ");
        }
        said.push_str(&message);
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_a_refusal_are_read() {
        let grpc = br#"{"code":5,"message":"node not found","details":[]}"#;
        assert_eq!(refusal(grpc).as_deref(), Some("node not found"));
        let problem = br#"{"title":"Unprocessable Entity","status":422,"detail":"validation failed",
            "errors":[{"message":"expected string","location":"body.name","value":1}]}"#;
        assert_eq!(refusal(problem).as_deref(), Some("validation failed; body.name: expected string"));
        assert_eq!(refusal(br#"{"title":"Not Found","status":404}"#).as_deref(), Some("Not Found"));
        assert_eq!(refusal(b"Unauthorized"), None);
        assert_eq!(refusal(b"<html></html>"), None);
    }

    #[test]
    fn a_node_without_its_false_and_empty_values_is_read() {
        let node: WireNode = serde_json::from_str(r#"{"id":"7","nodeKey":"nodekey:ab","name":"x"}"#).expect("a node");
        let node = Node::from(node);
        assert_eq!((node.id, node.online, node.name.as_str(), node.expires), (7, false, "x", None));
    }

    #[test]
    fn a_node_of_028_and_one_before_have_the_same_tags() {
        let tags = |text: &str| Node::from(serde_json::from_str::<WireNode>(text).expect("a node")).tags;
        let new = tags(r#"{"id":1,"tags":["tag:gn-a-router"]}"#);
        let old = tags(r#"{"id":1,"forcedTags":["tag:gn-a-router"],"validTags":null,"invalidTags":["tag:no"]}"#);
        assert_eq!(new, ["tag:gn-a-router"]);
        assert_eq!(new, old);
    }

    #[test]
    fn the_go_zero_time_is_no_time() {
        let node = |expiry: &str| {
            let text = format!(r#"{{"id":"1","expiry":{expiry}}}"#);
            Node::from(serde_json::from_str::<WireNode>(&text).expect("a node")).expires
        };
        assert_eq!(node(r#""0001-01-01T00:00:00Z""#), None);
        assert_eq!(node("null"), None);
        assert!(node(r#""2026-11-24T02:55:35.922820236Z""#).is_some());
    }
}
