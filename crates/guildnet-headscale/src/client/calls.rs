//! The calls. Every one is a single request, but for [`Headscale::server`], [`Headscale::ensure_user`] and
//! [`Headscale::delete_user`].
//!
//! Errors of all calls: [`HeadscaleError::Unreachable`], [`HeadscaleError::Timeout`] and the TLS ones if there was no
//! answer; [`HeadscaleError::NotHeadscale`] if it was not an answer of Headscale; with an API key
//! [`HeadscaleError::Unauthorized`]; and what each call names. Dropping a future closes its request; the server may have
//! done it all the same.

use guildnet_model::Secret;
use ipnet::IpNet;
use jiff::Timestamp;
use reqwest::{Method, StatusCode};

use super::{
    Answer, ApiKey, Headscale, HeldPolicy, NewKey, PreauthKey, User,
    wire::{self, Empty},
};
use crate::{HeadscaleError, Node, ServerFeatures, ServerInfo, ServerVersion};

/// For calls without a body.
const NOTHING: Option<&Empty> = None;
/// The protocol version under which the server's key is asked for: the server (0.26 and later) tells it to any version from
/// 39 on (`NoiseCapabilityVersion` in `hscontrol/handlers.go`).
const KEY_QUERY_VERSION: &str = "113";

impl Headscale {
    async fn get_openly(&self, path: &str) -> Result<Answer, HeadscaleError> {
        self.exchange(self.http.get(self.endpoint(path, &[]))).await
    }

    /// Asks whether the server is there and has its database. Needs no API key.
    ///
    /// # Errors
    /// [`HeadscaleError::Refused`] if it is there but says that it is not well.
    pub async fn health(&self) -> Result<(), HeadscaleError> {
        let answer = self.get_openly("health").await?;
        match serde_json::from_slice::<wire::Health>(&answer.body) {
            Ok(health) if health.status == "pass" => Ok(()),
            Ok(health) => Err(HeadscaleError::Refused {
                what: "health".into(),
                status: answer.status.as_u16(),
                said: format!("its health is {:?}; is its database there?", health.status),
            }),
            Err(_) if answer.status == StatusCode::BAD_REQUEST && self.config.url.scheme() == "http" => {
                Err(self.not_headscale("it answers 400 to plain HTTP; try https://"))
            }
            Err(_) if answer.status.is_redirection() => {
                Err(self.not_headscale(format!("it answers {}: a redirect; give the final address", answer.status)))
            }
            Err(_) if answer.status.is_success() => {
                Err(self.not_headscale("/health does not answer as Headscale's does"))
            }
            Err(_) => Err(self.refusal("health", &answer)),
        }
    }

    /// The server's version and features. Needs no API key, except for a server that names no release.
    ///
    /// # Errors
    /// [`HeadscaleError::TooOld`].
    pub async fn server(&self) -> Result<ServerInfo, HeadscaleError> {
        let answer = self.get_openly("version").await?;
        let version = match serde_json::from_slice::<wire::Version>(&answer.body) {
            Ok(says) if answer.status.is_success() => ServerVersion::parse(&says.version),
            // 0.26 has no /version. Neither has what is not Headscale.
            _ => self.health().await.map(|()| ServerVersion::Before027)?,
        };
        if version.is_too_old() {
            return Err(HeadscaleError::TooOld { url: self.config.url.clone(), version: version.to_string() });
        }
        let features = match version.features() {
            Some(features) => features,
            None => self.probe_features().await?,
        };
        Ok(ServerInfo { version, features })
    }

    /// Finds out what an unreleased build can do, by having it check a policy; nothing is stored.
    async fn probe_features(&self) -> Result<ServerFeatures, HeadscaleError> {
        const WITH_VIA: &str = r#"{"tagOwners":{"tag:gn-probe":[]},
            "grants":[{"src":["tag:gn-probe"],"dst":["10.0.0.0/8"],"ip":["*"],"via":["tag:gn-probe"]}]}"#;
        match self.check_policy(WITH_VIA).await {
            Ok(()) => Ok(ServerFeatures::CURRENT),
            Err(HeadscaleError::PolicyRefused { .. } | HeadscaleError::NotFound { .. }) => {
                Ok(ServerFeatures::BEFORE_029)
            }
            Err(other) => Err(other),
        }
    }

    /// All users, by number.
    pub async fn users(&self) -> Result<Vec<User>, HeadscaleError> {
        let all: wire::Users =
            self.call("list of users", Method::GET, self.endpoint("api/v1/user", &[]), NOTHING).await?;
        Ok(all.users.into_iter().map(User::from).collect())
    }

    /// The user of that name, if there is one.
    pub async fn user(&self, name: &str) -> Result<Option<User>, HeadscaleError> {
        let url = self.endpoint("api/v1/user", &[("name", name)]);
        let found: wire::Users = self.call(format!("user {name}"), Method::GET, url, NOTHING).await?;
        Ok(found.users.into_iter().map(User::from).find(|u| u.name == name))
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`HeadscaleError::Refused`] if the name is taken or not allowed.
    pub async fn create_user(&self, name: &str) -> Result<User, HeadscaleError> {
        let (url, body) = (self.endpoint("api/v1/user", &[]), wire::CreateUser { name });
        let made: wire::OneUser = self.call(format!("new user {name}"), Method::POST, url, Some(&body)).await?;
        Ok(made.user.into())
    }

    /// The user of that name, made if it is not there.
    pub async fn ensure_user(&self, name: &str) -> Result<User, HeadscaleError> {
        if let Some(user) = self.user(name).await? {
            return Ok(user);
        }
        match self.create_user(name).await {
            // Somebody else may have made it at the same moment.
            Err(refused @ HeadscaleError::Refused { .. }) => self.user(name).await?.ok_or(refused),
            other => other,
        }
    }

    /// Removes a user and its preauth keys. Its number is not given again.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`]; [`HeadscaleError::Refused`] if it still owns nodes; [`HeadscaleError::WouldEndKeys`] on
    /// Headscale 0.28, which removes the keys of all users with any of them (mended in 0.29.0), if others have usable keys.
    pub async fn delete_user(&self, id: u64) -> Result<(), HeadscaleError> {
        if matches!(self.server().await?.version, ServerVersion::Release { major: 0, minor: 28, .. }) {
            let now = Timestamp::now();
            let at_risk = self.all_keys().await?.iter().filter(|k| k.user != Some(id) && k.is_usable(now)).count();
            if at_risk > 0 {
                return Err(HeadscaleError::WouldEndKeys { url: self.config.url.clone(), user: id, keys: at_risk });
            }
        }
        let url = self.endpoint(&format!("api/v1/user/{id}"), &[]);
        self.call::<Empty>(format!("removal of user {id}"), Method::DELETE, url, NOTHING).await.map(drop)
    }

    /// Makes a preauth key. The key is told this once.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`] if the user is not there.
    pub async fn create_key(&self, new: &NewKey) -> Result<(PreauthKey, Secret<String>), HeadscaleError> {
        let body = wire::CreateKey {
            user: new.user.to_string(),
            reusable: new.reusable,
            ephemeral: new.ephemeral,
            expiration: new.expires,
            acl_tags: &new.tags,
        };
        let url = self.endpoint("api/v1/preauthkey", &[]);
        let mut made: wire::OneKey = self.call("new preauth key", Method::POST, url, Some(&body)).await?;
        let secret = Secret::new(std::mem::take(&mut made.pre_auth_key.key));
        if secret.expose().is_empty() {
            return Err(self.not_headscale("it made a preauth key and did not tell it"));
        }
        let mut key = PreauthKey::from(made.pre_auth_key);
        key.listed = secret.clone();
        Ok((key, secret))
    }

    /// The preauth keys that were made for the user.
    pub async fn keys(&self, user: u64) -> Result<Vec<PreauthKey>, HeadscaleError> {
        // Before 0.28 the server lists by user; since then it lists all and does not mind the question.
        let mut keys = self.list_keys(&[("user", &user.to_string())]).await?;
        keys.retain(|key| key.user == Some(user));
        Ok(keys)
    }

    /// The preauth keys of everybody; on servers since 0.28.
    async fn all_keys(&self) -> Result<Vec<PreauthKey>, HeadscaleError> {
        self.list_keys(&[]).await
    }

    async fn list_keys(&self, query: &[(&str, &str)]) -> Result<Vec<PreauthKey>, HeadscaleError> {
        let url = self.endpoint("api/v1/preauthkey", query);
        let all: wire::Keys = self.call("list of preauth keys", Method::GET, url, NOTHING).await?;
        Ok(all.pre_auth_keys.into_iter().map(PreauthKey::from).collect())
    }

    /// Ends a preauth key now. Nodes that joined with it stay.
    pub async fn expire_key(&self, key: &PreauthKey) -> Result<(), HeadscaleError> {
        let body =
            wire::ExpireKey { id: key.id.to_string(), user: key.user.map(|u| u.to_string()), key: key.listed.expose() };
        let url = self.endpoint("api/v1/preauthkey/expire", &[]);
        let what = format!("end of preauth key {}", key.id);
        self.call::<Empty>(what, Method::POST, url, Some(&body)).await.map(drop)
    }

    /// The API keys of the server, ended ones too.
    pub async fn api_keys(&self) -> Result<Vec<ApiKey>, HeadscaleError> {
        let url = self.endpoint("api/v1/apikey", &[]);
        let all: wire::ApiKeys = self.call("list of API keys", Method::GET, url, NOTHING).await?;
        Ok(all.api_keys.into_iter().map(ApiKey::from).collect())
    }

    /// How the server lists the API key that is used here; `None` if it does not list it.
    pub async fn own_api_key(&self) -> Result<Option<ApiKey>, HeadscaleError> {
        let Some(own) = &self.config.api_key else {
            return Err(HeadscaleError::NoApiKey { url: self.config.url.clone() });
        };
        Ok(self.api_keys().await?.into_iter().find(|key| key.is(own)))
    }

    /// The key by which nodes recognise the server, `mkey:<hex>`: public, and the same at whatever address it is. Needs no
    /// API key.
    pub async fn server_key(&self) -> Result<String, HeadscaleError> {
        let answer = self.exchange(self.http.get(self.endpoint("key", &[("v", KEY_QUERY_VERSION)]))).await?;
        match serde_json::from_slice::<wire::ServerKey>(&answer.body) {
            Ok(told) if answer.status.is_success() && told.public_key.starts_with("mkey:") => Ok(told.public_key),
            _ => Err(self.not_headscale("/key does not tell the server's key")),
        }
    }

    /// All nodes, by number.
    pub async fn nodes(&self) -> Result<Vec<Node>, HeadscaleError> {
        let all: wire::Nodes =
            self.call("list of nodes", Method::GET, self.endpoint("api/v1/node", &[]), NOTHING).await?;
        Ok(all.nodes.into_iter().map(Node::from).collect())
    }

    /// One node.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`].
    pub async fn node(&self, id: u64) -> Result<Node, HeadscaleError> {
        let url = self.endpoint(&format!("api/v1/node/{id}"), &[]);
        let found: wire::OneNode = self.call(format!("node {id}"), Method::GET, url, NOTHING).await?;
        Ok(found.node.into())
    }

    /// Removes a node: it is cut off and must join anew.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`].
    pub async fn delete_node(&self, id: u64) -> Result<(), HeadscaleError> {
        let url = self.endpoint(&format!("api/v1/node/{id}"), &[]);
        self.call::<Empty>(format!("removal of node {id}"), Method::DELETE, url, NOTHING).await.map(drop)
    }

    /// Ends a node's key now: it is cut off until it joins again with a preauth key.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`] or [`HeadscaleError::Refused`] if there is no such node.
    pub async fn expire_node(&self, id: u64) -> Result<(), HeadscaleError> {
        let url = self.endpoint(&format!("api/v1/node/{id}/expire"), &[]);
        self.call::<wire::OneNode>(format!("end of node {id}'s key"), Method::POST, url, NOTHING).await.map(drop)
    }

    /// Sets which routes a node may serve: the whole list; the ones not in it lose their approval.
    ///
    /// # Errors
    /// [`HeadscaleError::NotFound`] or [`HeadscaleError::Refused`] if there is no such node.
    pub async fn approve_routes(&self, id: u64, routes: &[IpNet]) -> Result<Node, HeadscaleError> {
        let url = self.endpoint(&format!("api/v1/node/{id}/approve_routes"), &[]);
        let body = wire::ApproveRoutes { routes };
        let set: wire::OneNode =
            self.call(format!("approval of node {id}'s routes"), Method::POST, url, Some(&body)).await?;
        Ok(set.node.into())
    }

    /// The policy as it was written, or `None` if there never was one. Both none and an empty one allow everything.
    pub async fn policy(&self) -> Result<Option<String>, HeadscaleError> {
        self.held_policy().await.map(|held| held.document)
    }

    /// The policy, and where the server has it from.
    ///
    /// # Errors
    /// [`HeadscaleError::PolicyDenied`].
    pub async fn held_policy(&self) -> Result<HeldPolicy, HeadscaleError> {
        let url = self.endpoint("api/v1/policy", &[]);
        match self.call::<wire::PolicyHeld>("policy", Method::GET, url, NOTHING).await {
            Ok(found) => Ok(HeldPolicy { in_file: found.updated_at.is_none(), document: Some(found.policy) }),
            Err(HeadscaleError::NotFound { said, .. }) if said.contains("policy not found") => {
                Ok(HeldPolicy { document: None, in_file: false })
            }
            // In mode `file` without a file the server allows everything and says this.
            Err(HeadscaleError::Refused { said, .. } | HeadscaleError::NotFound { said, .. })
                if said.contains("reading policy from path") =>
            {
                Ok(HeldPolicy { document: None, in_file: true })
            }
            Err(HeadscaleError::Forbidden { url, .. }) => Err(HeadscaleError::PolicyDenied { url }),
            Err(other) => Err(other),
        }
    }

    /// Replaces the policy. Nothing guards against somebody else's write in between; see [`crate::apply_policy`].
    ///
    /// # Errors
    /// [`HeadscaleError::PolicyRefused`] with the server's words; [`HeadscaleError::PolicyReadOnly`];
    /// [`HeadscaleError::PolicyDenied`].
    pub async fn set_policy(&self, document: &str) -> Result<(), HeadscaleError> {
        let (url, body) = (self.endpoint("api/v1/policy", &[]), wire::PolicyText { policy: document });
        match self.call::<Empty>("policy", Method::PUT, url, Some(&body)).await {
            Ok(_) => Ok(()),
            Err(HeadscaleError::Forbidden { url, .. }) => Err(HeadscaleError::PolicyDenied { url }),
            Err(HeadscaleError::Refused { said, .. }) if said.contains("update is disabled") => {
                Err(HeadscaleError::PolicyReadOnly { url: self.config.url.clone() })
            }
            Err(HeadscaleError::Refused { said, .. } | HeadscaleError::NotFound { said, .. }) => {
                Err(HeadscaleError::PolicyRefused { said })
            }
            Err(other) => Err(other),
        }
    }

    /// Has the server judge a policy, its `tests` included, against its users and nodes. Nothing is stored. 0.29 and later.
    ///
    /// # Errors
    /// [`HeadscaleError::PolicyRefused`] with the server's words; [`HeadscaleError::NotFound`] if it has no such call.
    pub async fn check_policy(&self, document: &str) -> Result<(), HeadscaleError> {
        let (url, body) = (self.endpoint("api/v1/policy/check", &[]), wire::PolicyText { policy: document });
        match self.call::<Empty>("check of the policy", Method::POST, url, Some(&body)).await {
            Ok(_) => Ok(()),
            // Without the call the gateway answers 404 or, as /policy takes other methods, 501 with these words.
            Err(HeadscaleError::Refused { what, status: 405 | 501, said }) => {
                Err(HeadscaleError::NotFound { what, said })
            }
            Err(HeadscaleError::NotFound { what, said }) if said.eq_ignore_ascii_case("not found") => {
                Err(HeadscaleError::NotFound { what, said })
            }
            Err(HeadscaleError::Refused { said, .. } | HeadscaleError::NotFound { said, .. }) => {
                Err(HeadscaleError::PolicyRefused { said })
            }
            Err(other) => Err(other),
        }
    }
}
