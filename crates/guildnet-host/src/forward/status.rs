//! What is told of forwards and proxies. Nothing secret.

use std::net::SocketAddrV4;

use guildnet_model::ClusterId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Traffic;

/// One forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForwardStatus {
    /// Its name: its local address.
    pub id: String,
    /// The cluster that it leads into.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Where it listens.
    #[schema(value_type = String)]
    pub local: SocketAddrV4,
    /// Where it leads there.
    pub target: String,
    /// Whether it stays until it is stopped, over restarts too; otherwise it ends with who asked for it.
    pub kept: bool,
    /// What it does.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// One proxy of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// Where it listens.
    #[schema(value_type = String)]
    pub address: SocketAddrV4,
    /// What it does.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// The proxies of a cluster. Their user is the cluster's id; their password is never told here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProxiesStatus {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterId,
    /// Whether they are on.
    pub enabled: bool,
    /// SOCKS5, if they are on.
    pub socks: Option<ProxyStatus>,
    /// HTTP CONNECT, if they are on.
    pub http: Option<ProxyStatus>,
}
