//! The parts of the kubeconfig format that matter here. Unknown fields are ignored, as kubectl does.

use std::fmt;

use guildnet_model::Secret;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
pub(super) struct Document {
    #[serde(rename = "current-context", default)]
    pub(super) current_context: Option<String>,
    #[serde(default)]
    pub(super) contexts: Option<Vec<Named<Context>>>,
    #[serde(default)]
    pub(super) clusters: Option<Vec<Named<Cluster>>>,
    #[serde(default)]
    pub(super) users: Option<Vec<Named<User>>>,
}

#[derive(Deserialize)]
pub(super) struct Named<T> {
    pub(super) name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user", default = "none")]
    pub(super) value: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

#[derive(Deserialize)]
pub(super) struct Context {
    #[serde(default)]
    pub(super) cluster: String,
    #[serde(default)]
    pub(super) user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) server: Option<String>,
    #[serde(default)]
    pub(super) tls_server_name: Option<String>,
    #[serde(default)]
    pub(super) insecure_skip_tls_verify: Option<bool>,
    #[serde(default)]
    pub(super) proxy_url: Option<String>,
    #[serde(default, rename = "certificate-authority")]
    pub(super) ca_file: Option<String>,
    #[serde(default, rename = "certificate-authority-data", deserialize_with = "secret")]
    pub(super) ca_data: Option<Secret<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct User {
    #[serde(default, rename = "client-certificate")]
    pub(super) cert_file: Option<String>,
    #[serde(default, rename = "client-certificate-data", deserialize_with = "secret")]
    pub(super) cert_data: Option<Secret<String>>,
    #[serde(default, rename = "client-key")]
    pub(super) key_file: Option<String>,
    #[serde(default, rename = "client-key-data", deserialize_with = "secret")]
    pub(super) key_data: Option<Secret<String>>,
    #[serde(default, deserialize_with = "secret")]
    pub(super) token: Option<Secret<String>>,
    #[serde(default, rename = "tokenFile")]
    pub(super) token_file: Option<String>,
    #[serde(default)]
    pub(super) username: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    pub(super) password: Option<Secret<String>>,
    #[serde(default, rename = "as")]
    pub(super) impersonate: Option<String>,
    #[serde(default)]
    pub(super) exec: Option<Exec>,
    #[serde(default)]
    pub(super) auth_provider: Option<AuthProvider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exec {
    #[serde(default)]
    pub(super) api_version: Option<String>,
    #[serde(default)]
    pub(super) command: Option<String>,
    #[serde(default)]
    pub(super) args: Option<Vec<String>>,
    #[serde(default)]
    pub(super) env: Option<Vec<Variable>>,
    #[serde(default)]
    pub(super) interactive_mode: Option<String>,
    #[serde(default)]
    pub(super) provide_cluster_info: Option<bool>,
}

/// A variable that a program is given.
#[derive(Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    #[serde(deserialize_with = "present")]
    pub(super) value: Secret<String>,
}

#[derive(Deserialize)]
pub(super) struct AuthProvider {
    #[serde(default)]
    pub(super) name: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
    String::deserialize(from).map(Secret::new)
}

/// Where the parser stopped. Its message is not kept: it quotes the text around the place, which may be a key.
pub(super) struct At(Option<(u64, u64)>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, "line {line}, column {column}"),
            None => f.write_str("the whole of it"),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Document, At> {
    serde_saphyr::from_str(text).map_err(|e| At(e.location().map(|at| (at.line(), at.column()))))
}
