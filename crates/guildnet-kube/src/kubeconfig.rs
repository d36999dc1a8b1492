//! Kubeconfig files: read, and turned into a complete credential, or refused with the reason.
//!
//! A kubeconfig can do more than name a cluster: run programs, read any file, skip TLS, go through a proxy, act as
//! somebody else. GuildNet uses it unattended and from another place than where it was written, so all of these are
//! refused; reading other files can be allowed, and running a program by its full name. Format: `k8s.io/client-go/tools/clientcmd/api/v1`.
//!
//! `kubeconfig/fleet.rs` is the other way round: it puts the fleet's own entries into a person's kubeconfig.

mod error;
mod file;
pub(crate) mod fleet;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use base64::Engine as _;
use guildnet_model::Secret;
use url::Url;

pub use self::error::{KubeconfigError, Refusal};
use self::file::{Cluster, Document, Exec, Named, User};
use crate::{
    access::{ClusterAccess, Parts, Token},
    credential::ExecSpec,
};

/// The largest kubeconfig that is read, and the largest file that one may name: far above any real one, and small
/// enough to hold in memory when somebody names a disk image.
const MAX_FILE: u64 = 4 << 20;

/// The versions in which a program can be asked; they are the same in what is used here.
const EXEC_VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// What a kubeconfig may ask for beyond its own content. Nothing, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// Certificates, keys and tokens may be read from other files that the kubeconfig names.
    pub files: bool,
    /// Programs that may be run to get a credential, by their absolute paths.
    pub programs: Vec<PathBuf>,
}

/// A kubeconfig file that was read and is well formed; nothing in it has been used yet.
pub struct Kubeconfig {
    path: PathBuf,
    document: Document,
}

impl std::fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubeconfig").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Kubeconfig {
    /// Reads a file. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`KubeconfigError::Missing`], [`KubeconfigError::Unreadable`], [`KubeconfigError::Empty`] or
    /// [`KubeconfigError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = read_text(path).map_err(|why| match why {
            Unread::Missing => KubeconfigError::Missing { path: path.to_owned() },
            Unread::Other(why) => KubeconfigError::Unreadable { path: path.to_owned(), why },
        })?;
        Self::parse(path, &text)
    }

    /// The same of a file's content that is at hand; `path` is what errors call it, and where files that it names are
    /// looked for.
    ///
    /// # Errors
    /// [`KubeconfigError::Empty`] or [`KubeconfigError::Malformed`].
    pub fn parse(path: &Path, text: &Secret<String>) -> Result<Self, KubeconfigError> {
        if text.expose().trim().is_empty() {
            return Err(KubeconfigError::Empty { path: path.to_owned() });
        }
        let document = file::parse(text.expose())
            .map_err(|at| KubeconfigError::Malformed { path: path.to_owned(), at: at.to_string() })?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// The names of its contexts, in the file's order.
    pub fn contexts(&self) -> impl Iterator<Item = &str> {
        self.document.contexts.iter().flatten().map(|c| c.name.as_str())
    }

    /// The context used when none is named.
    pub fn current_context(&self) -> Option<&str> {
        self.document.current_context.as_deref().filter(|name| !name.is_empty())
    }

    /// The credential behind a context, the current one if `None`.
    ///
    /// # Errors
    /// [`KubeconfigError`], see there: names the file, the context and what is wrong with it.
    pub fn access(&self, context: Option<&str>, allow: &Allow) -> Result<ClusterAccess, KubeconfigError> {
        let known = || self.contexts().map(str::to_owned).collect::<Vec<_>>();
        let name = context
            .or_else(|| self.current_context())
            .ok_or_else(|| KubeconfigError::NoContext { path: self.path.clone(), known: known() })?;
        let chosen = find(&self.document.contexts, name).ok_or_else(|| KubeconfigError::UnknownContext {
            path: self.path.clone(),
            name: name.to_owned(),
            known: known(),
        })?;
        let dangling = |kind, wanted: &str| KubeconfigError::Dangling {
            path: self.path.clone(),
            context: name.to_owned(),
            kind,
            wanted: wanted.to_owned(),
        };
        let cluster =
            find(&self.document.clusters, &chosen.cluster).ok_or_else(|| dangling("cluster", &chosen.cluster))?;
        let user = find(&self.document.users, &chosen.user).ok_or_else(|| dangling("user", &chosen.user))?;
        Reader { config: self, context: name, allow }.access(cluster, user)
    }
}

fn find<'a, T>(list: &'a Option<Vec<Named<T>>>, name: &str) -> Option<&'a T> {
    list.iter().flatten().find(|entry| entry.name == name).and_then(|entry| entry.value.as_ref())
}

/// Turns one context's entries into a credential.
struct Reader<'a> {
    config: &'a Kubeconfig,
    context: &'a str,
    allow: &'a Allow,
}

impl Reader<'_> {
    fn access(&self, cluster: &Cluster, user: &User) -> Result<ClusterAccess, KubeconfigError> {
        if let Some(refusal) = self.refusal(cluster, user) {
            return Err(self.refuse(refusal));
        }
        let ca = self.material("certificate-authority", &cluster.ca_data, &cluster.ca_file)?;
        let cert = self.material("client-certificate", &user.cert_data, &user.cert_file)?;
        let key = self.material("client-key", &user.key_data, &user.key_file)?;
        // As in kubectl, a token wins over its file, and both over a program.
        let token = match (filled(&user.token), filled_text(&user.token_file), &user.exec) {
            (Some(token), ..) => Some(Token::Here(Secret::new(token.expose().trim().to_owned()))),
            (None, Some(file), _) => Some(Token::File(self.token_file(file)?)),
            (None, None, Some(exec)) => Some(Token::Program(self.program(cluster, exec)?)),
            (None, None, None) => None,
        };
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert.expose().clone(), key)),
            (None, None) => None,
            (Some(_), None) => return Err(self.bad("client-key", "is missing beside the client certificate")),
            (None, Some(_)) => return Err(self.bad("client-certificate", "is missing beside the client key")),
        };
        if identity.is_none() && token.is_none() {
            let by_password = filled_text(&user.username).is_some() || filled(&user.password).is_some();
            return Err(KubeconfigError::NoCredential {
                path: self.config.path.clone(),
                context: self.context.to_owned(),
                by_password,
            });
        }
        ClusterAccess::new(Parts {
            context: self.context.to_owned(),
            server: self.server(cluster)?,
            tls_name: filled_text(&cluster.tls_server_name).map(str::to_owned),
            ca_pem: ca.map(|pem| pem.expose().clone()),
            identity,
            token,
        })
        .map_err(|e| KubeconfigError::Access {
            path: self.config.path.clone(),
            context: self.context.to_owned(),
            why: e,
        })
    }

    /// What the entries ask for and do not get.
    fn refusal(&self, cluster: &Cluster, user: &User) -> Option<Refusal> {
        if let Some(exec) = &user.exec {
            let command = exec.command.clone().unwrap_or_default();
            if !self.allow.programs.iter().any(|allowed| allowed.is_absolute() && *allowed == Path::new(&command)) {
                return Some(Refusal::Exec { command });
            }
        }
        if let Some(provider) = &user.auth_provider {
            return Some(Refusal::AuthProvider { name: provider.name.clone().unwrap_or_default() });
        }
        if filled_text(&user.impersonate).is_some() {
            return Some(Refusal::Impersonation);
        }
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Some(Refusal::SkipsTls);
        }
        if filled_text(&cluster.proxy_url).is_some() {
            return Some(Refusal::Proxy);
        }
        if self.allow.files {
            return None;
        }
        // As in kubectl, inline data wins over a file of the same purpose, which then isn't read.
        let named = [
            ("certificate-authority", filled(&cluster.ca_data), &cluster.ca_file),
            ("client-certificate", filled(&user.cert_data), &user.cert_file),
            ("client-key", filled(&user.key_data), &user.key_file),
            ("tokenFile", filled(&user.token), &user.token_file),
        ];
        named.into_iter().find_map(|(field, inline, file)| match (inline, filled_text(file)) {
            (None, Some(file)) => Some(Refusal::File { field, file: file.to_owned() }),
            _ => None,
        })
    }

    fn server(&self, cluster: &Cluster) -> Result<Url, KubeconfigError> {
        // The text is never quoted: a URL may hold a password.
        let bad = |why: &str| self.bad("server", why);
        let text = filled_text(&cluster.server).ok_or_else(|| bad("is missing"))?;
        let url: Url = text.parse().map_err(|_| bad("is no URL"))?;
        if url.scheme() != "https" {
            return Err(bad(&format!("begins with {}:, not with https:", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("holds a user name or password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("has a query or a fragment"));
        }
        if url.port() == Some(0) {
            return Err(bad("has port 0"));
        }
        Ok(url)
    }

    /// PEM text, inline (base64) or from a file.
    fn material(
        &self,
        field: &'static str,
        data: &Option<Secret<String>>,
        file: &Option<String>,
    ) -> Result<Option<Secret<String>>, KubeconfigError> {
        if let Some(data) = filled(data) {
            let packed = Secret::new(data.expose().split_ascii_whitespace().collect::<String>());
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(packed.expose())
                .map_err(|_| self.bad(field, "is not base64"))?;
            let text = String::from_utf8(bytes).map_err(|_| self.bad(field, "is not PEM"))?;
            return Ok(Some(Secret::new(text)));
        }
        filled_text(file).map(|file| self.other_file(field, file)).transpose()
    }

    /// A file that the kubeconfig names; relative to the kubeconfig's folder, as kubectl has it.
    fn other_file(&self, field: &'static str, file: &str) -> Result<Secret<String>, KubeconfigError> {
        let path = self.config.path.parent().unwrap_or(Path::new("")).join(file);
        read_text(&path).map_err(|why| match why {
            Unread::Missing => self.bad(field, format!("{} does not exist", path.display())),
            Unread::Other(why) => self.bad(field, format!("{}: {why}", path.display())),
        })
    }

    /// A token's file: read once to see that it can be, and from then on where it is.
    fn token_file(&self, file: &str) -> Result<PathBuf, KubeconfigError> {
        let read = self.other_file("tokenFile", file)?;
        if read.expose().trim().is_empty() {
            return Err(self.bad("tokenFile", format!("{file} is empty")));
        }
        let path = self.config.path.parent().unwrap_or(Path::new("")).join(file);
        std::path::absolute(&path).map_err(|why| self.bad("tokenFile", format!("{}: {why}", path.display())))
    }

    /// What an allowed program is run with.
    fn program(&self, cluster: &Cluster, exec: &Exec) -> Result<ExecSpec, KubeconfigError> {
        let api_version = filled_text(&exec.api_version).unwrap_or_default();
        if !EXEC_VERSIONS.contains(&api_version) {
            return Err(
                self.bad("exec.apiVersion", format!("is {api_version:?}; known are {}", EXEC_VERSIONS.join(", ")))
            );
        }
        if exec.interactive_mode.as_deref() == Some("Always") {
            return Err(
                self.bad("exec.interactiveMode", "is Always: the program would ask somebody, and nobody is there")
            );
        }
        // As client-go has it: what the program needs to know to ask the right server for a token.
        let about = exec.provide_cluster_info.unwrap_or_default().then(|| {
            serde_json::json!({
                "server": cluster.server,
                "tls-server-name": cluster.tls_server_name,
                "certificate-authority-data": cluster.ca_data.as_ref().map(Secret::expose),
            })
        });
        let env = exec.env.iter().flatten().map(|e| (e.name.clone(), e.value.expose().clone()));
        Ok(ExecSpec {
            api_version: api_version.to_owned(),
            command: PathBuf::from(exec.command.clone().unwrap_or_default()),
            args: exec.args.clone().unwrap_or_default(),
            env: env.collect(),
            cluster: about,
        })
    }

    fn bad(&self, field: &'static str, why: impl Into<String>) -> KubeconfigError {
        KubeconfigError::Field {
            path: self.config.path.clone(),
            context: self.context.to_owned(),
            field,
            why: why.into(),
        }
    }

    fn refuse(&self, asks: Refusal) -> KubeconfigError {
        KubeconfigError::Refused { path: self.config.path.clone(), context: self.context.to_owned(), asks }
    }
}

/// Empty values mean absent, as in kubectl.
fn filled(value: &Option<Secret<String>>) -> Option<&Secret<String>> {
    value.as_ref().filter(|v| !v.expose().is_empty())
}

fn filled_text(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|v| !v.is_empty())
}

enum Unread {
    Missing,
    Other(String),
}

fn read_text(path: &Path) -> Result<Secret<String>, Unread> {
    let read = || -> std::io::Result<Secret<String>> {
        let file = fs::File::open(path)?;
        // Room for all of it at once: a growing buffer would leave copies of secrets behind.
        let size = usize::try_from(file.metadata()?.len().min(MAX_FILE)).unwrap_or_default();
        let mut text = String::with_capacity(size + 1);
        let result = file.take(MAX_FILE + 1).read_to_string(&mut text);
        let text = Secret::new(text);
        result.map(|_| text)
    };
    match read() {
        Ok(text) if text.expose().len() as u64 > MAX_FILE => {
            Err(Unread::Other(format!("is larger than {} MiB", MAX_FILE >> 20)))
        }
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Unread::Missing),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(Unread::Other("is not text".into())),
        Err(e) => Err(Unread::Other(e.to_string())),
    }
}

#[cfg(test)]
mod tests;
