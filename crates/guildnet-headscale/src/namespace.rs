//! The namespace file: what a cluster's side needs to join, carried from where the API key is. It holds keys, so it is
//! readable by its owner only and written in one step.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use guildnet_model::{Class, ClusterId, Explain, Networks, Secret, SiteNumber};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use url::Url;

/// The longest file that is read, in bytes: a real one has about 1 KiB, with a chain of certificates some more.
const MAX_FILE: u64 = 1 << 20;

/// A cluster's share of a Headscale server, and the keys to it.
///
/// JSON keys: `namespace`, `loginServer`, `routerAuthKey`, `clientAuthKey`, `siteNumber`; beside them `namespaceId`,
/// `routerKeyExpires`, `clientKeyExpires`, `routes`, `caPem`. Only the first two must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFile {
    /// The cluster; the file names its namespace, `cluster-<id>`.
    pub cluster: ClusterId,
    /// The namespace's number on the server.
    pub namespace_id: Option<u64>,
    /// The Headscale server, as routers and connectors reach it.
    pub login_server: Url,
    /// Preauth key for the routers.
    pub router_auth_key: Option<Secret<String>>,
    /// When it ends.
    pub router_key_expires: Option<Timestamp>,
    /// Preauth key for one connector.
    pub client_auth_key: Option<Secret<String>>,
    /// When it ends.
    pub client_key_expires: Option<Timestamp>,
    /// Site number.
    pub site: Option<SiteNumber>,
    /// The cluster's networks.
    pub routes: Option<Networks>,
    /// PEM certificates to trust for the server and its relays.
    pub ca_pem: Option<String>,
}

/// Why a namespace file can't be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceFileError {
    /// It is not there.
    #[error("there is no namespace file {path}")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("namespace file {path} can't be {what}: {why}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// The cause.
        why: String,
    },
    /// Its content is wrong.
    #[error("namespace file {path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong. Values are never quoted: they may be keys.
        why: String,
    },
}

impl Explain for NamespaceFileError {
    fn class(&self) -> Class {
        match self {
            Self::Missing { .. } => Class::NotFound,
            Self::Io { what: "written", .. } => Class::Failed,
            Self::Io { .. } | Self::Content { .. } => Class::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { what: "written", .. } => {
                "make room and make the folder writable for this user, then run the command again".into()
            }
            Self::Io { .. } => "make it readable for this user".into(),
            Self::Missing { .. } | Self::Content { .. } => {
                "make it with 'guildnet headscale namespace ID' where the Headscale API key is, and copy it whole"
                    .into()
            }
        })
    }
}

impl NamespaceFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`NamespaceFileError::Missing`], [`NamespaceFileError::Io`], and [`NamespaceFileError::Content`] with what is wrong.
    pub fn read(path: &Path) -> Result<Self, NamespaceFileError> {
        let io = |e: &io::Error| match e.kind() {
            io::ErrorKind::NotFound => NamespaceFileError::Missing { path: path.to_owned() },
            _ => NamespaceFileError::Io { path: path.to_owned(), what: "read", why: e.to_string() },
        };
        let content = |why: String| NamespaceFileError::Content { path: path.to_owned(), why };
        let file = File::open(path).map_err(|e| io(&e))?;
        let meta = file.metadata().map_err(|e| io(&e))?;
        if meta.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others can read this file of keys; make it yours alone: chmod 600");
        }
        // Keys pass through this buffer: it is wiped like the keys themselves.
        let mut buffer = String::new();
        let read = file.take(MAX_FILE + 1).read_to_string(&mut buffer);
        let text = Secret::new(buffer);
        match read {
            Ok(n) if n as u64 > MAX_FILE => return Err(content(format!("it is longer than {MAX_FILE} bytes"))),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(content("it is not text".into())),
            Err(e) => return Err(io(&e)),
        }
        Self::parse(text.expose()).map_err(content)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let map: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            // The error's own text may quote a value.
            if e.is_data() { "it is not a JSON object".to_owned() } else { format!("it is not JSON ({})", place(&e)) }
        })?;
        let fields = Fields(map);
        let namespace = fields.text("namespace")?.ok_or("\"namespace\" is missing")?;
        let cluster = ClusterId::of_namespace(namespace);
        let cluster = cluster.ok_or_else(|| "\"namespace\" is not \"cluster-<id>\"".to_owned())?;
        let url = fields.text("loginServer")?.ok_or("\"loginServer\" is missing")?;
        let login_server = url.parse::<Url>().ok().filter(|u| matches!(u.scheme(), "https" | "http") && u.has_host());
        let login_server = login_server.ok_or("\"loginServer\" is not a URL like https://HOST:PORT")?;
        let key = |name: &str| -> Result<Option<Secret<String>>, String> {
            let text = fields.text(name)?.map(str::trim).filter(|k| !k.is_empty());
            match text {
                Some(text) if !text.chars().all(|c| c.is_ascii_graphic()) => Err(format!("{name:?} is no key")),
                text => Ok(text.map(|t| Secret::new(t.to_owned()))),
            }
        };
        let time = |name: &str| -> Result<Option<Timestamp>, String> {
            fields
                .text(name)?
                .map(|t| t.parse().map_err(|_| format!("{name:?} is not a time like 2026-01-31T12:00:00Z")))
                .transpose()
        };
        let site = fields.number("siteNumber")?.map(SiteNumber::try_from).transpose();
        Ok(Self {
            cluster,
            namespace_id: fields.number("namespaceId")?,
            login_server,
            router_auth_key: key("routerAuthKey")?,
            router_key_expires: time("routerKeyExpires")?,
            client_auth_key: key("clientAuthKey")?,
            client_key_expires: time("clientKeyExpires")?,
            site: site.map_err(|e| format!("\"siteNumber\": {e}"))?,
            routes: fields.routes()?,
            ca_pem: fields.text("caPem")?.map(str::to_owned),
        })
    }

    /// Writes the file in one step: mode 0600, complete or not at all. A folder that is not there is made, mode 0700.
    ///
    /// # Errors
    /// [`NamespaceFileError::Io`]; what was there before is untouched then.
    pub fn write(&self, path: &Path) -> Result<(), NamespaceFileError> {
        let io = |e: io::Error| NamespaceFileError::Io { path: path.to_owned(), what: "written", why: e.to_string() };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        let name = path.file_name().ok_or_else(|| io(io::Error::from(io::ErrorKind::IsADirectory)))?;
        // In the same folder, so that the rename is one step; named by process, so that two commands don't share it.
        let unfinished = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let written = write_new(&unfinished, self.to_json().expose()).and_then(|()| {
            fs::rename(&unfinished, path)?;
            File::open(folder)?.sync_all()
        });
        written.map_err(|e| {
            // Gone already if the rename was what succeeded last.
            let _ = fs::remove_file(&unfinished);
            io(e)
        })
    }

    fn to_json(&self) -> Secret<String> {
        let mut map = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.to_owned(), value);
            }
        };
        put("namespace", Some(json!(self.cluster.namespace())));
        put("namespaceId", self.namespace_id.map(|id| json!(id)));
        put("loginServer", Some(json!(self.login_server)));
        put("routerAuthKey", self.router_auth_key.as_ref().map(|k| json!(k.expose())));
        put("routerKeyExpires", self.router_key_expires.map(|t| json!(t)));
        put("clientAuthKey", self.client_auth_key.as_ref().map(|k| json!(k.expose())));
        put("clientKeyExpires", self.client_key_expires.map(|t| json!(t)));
        put("siteNumber", self.site.map(|s| json!(s)));
        put("routes", self.routes.as_ref().map(|r| json!(r)));
        put("caPem", self.ca_pem.as_ref().map(|pem| json!(pem)));
        Secret::new(format!("{:#}\n", Value::Object(map)))
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    // One left behind by a process that died.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn place(error: &serde_json::Error) -> String {
    format!("line {}, column {}", error.line(), error.column())
}

/// The file's members, whose errors name the member and never the value.
struct Fields(Map<String, Value>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, String> {
        self.get(name).map(|v| v.as_str().ok_or_else(|| format!("{name:?} is not a text"))).transpose()
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        self.get(name).map(|v| v.as_u64().ok_or_else(|| format!("{name:?} is not a whole number"))).transpose()
    }

    fn routes(&self) -> Result<Option<Networks>, String> {
        let Some(value) = self.get("routes") else { return Ok(None) };
        let list = value.as_array().ok_or("\"routes\" is not a list")?;
        let texts: Option<Vec<String>> = list.iter().map(|n| n.as_str().map(str::to_owned)).collect();
        let texts = texts.ok_or("\"routes\" holds what is not a text")?;
        Networks::try_from(texts).map(Some).map_err(|e| format!("\"routes\": {e}"))
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            if let Value::String(text) = value {
                drop(Secret::new(std::mem::take(text)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> NamespaceFile {
        NamespaceFile {
            cluster: "a".parse().expect("an id"),
            namespace_id: Some(7),
            login_server: "https://10.0.0.1:8443".parse().expect("a URL"),
            router_auth_key: Some(Secret::new("hskey-auth-router".into())),
            router_key_expires: Some("2026-11-24T00:00:00Z".parse().expect("a time")),
            client_auth_key: Some(Secret::new("hskey-auth-client".into())),
            client_key_expires: None,
            site: Some(SiteNumber::try_from(7).expect("a site")),
            routes: Some("10.96.0.0/16,10.244.0.0/16".parse().expect("networks")),
            ca_pem: Some("-----BEGIN CERTIFICATE-----\n".into()),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_only_its_owner_can() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("new/cluster-a-headscale.json");
        full().write(&path).expect("written");
        full().write(&path).expect("written over");
        assert_eq!(NamespaceFile::read(&path), Ok(full()));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a folder"))), (0o600, 0o700));
        assert_eq!(fs::read_dir(path.parent().expect("a folder")).expect("a list").count(), 1, "nothing else is left");
    }

    #[test]
    fn the_documented_names_are_used() {
        let text: Map<String, Value> = serde_json::from_str(full().to_json().expose()).expect("JSON");
        for name in ["namespace", "loginServer", "routerAuthKey", "clientAuthKey", "siteNumber"] {
            assert!(text.contains_key(name), "{name}");
        }
        assert_eq!(text["namespace"], "cluster-a");
        assert_eq!(text["siteNumber"], 7);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("taken");
        fs::create_dir(&path).expect("a folder of that name");
        let error = full().write(&path).expect_err("it is a folder");
        assert_eq!(error.class(), Class::Failed);
        assert_eq!(fs::read_dir(dir.path()).expect("a list").count(), 1, "nothing half-written is left");
    }

    #[test]
    fn what_is_wrong_is_named_and_never_quoted() {
        let said = |text: &str| NamespaceFile::parse(text).expect_err("refused");
        let base = |more: &str| format!(r#"{{"namespace":"cluster-a","loginServer":"https://h"{more}}}"#);
        assert!(NamespaceFile::parse(&base("")).is_ok());
        assert_eq!(said("{\"namespace\":"), "it is not JSON (line 1, column 13)");
        assert_eq!(said("[\"tskey-secret\"]"), "it is not a JSON object");
        assert_eq!(said("{}"), "\"namespace\" is missing");
        assert_eq!(said(r#"{"namespace":"a"}"#), "\"namespace\" is not \"cluster-<id>\"");
        assert_eq!(said(r#"{"namespace":"cluster-a"}"#), "\"loginServer\" is missing");
        assert_eq!(
            said(r#"{"namespace":"cluster-a","loginServer":"h:1"}"#),
            "\"loginServer\" is not a URL like https://HOST:PORT"
        );
        assert_eq!(said(&base(r#","routerAuthKey":{"k":"secret"}"#)), "\"routerAuthKey\" is not a text");
        assert_eq!(said(&base(r#","clientAuthKey":"two words""#)), "\"clientAuthKey\" is no key");
        assert_eq!(
            said(&base(r#","siteNumber":70000"#)),
            "\"siteNumber\": site number 70000 is not between 1 and 65535"
        );
        assert_eq!(
            said(&base(r#","routes":["10.96.0.1/16"]"#)),
            "\"routes\": 10.96.0.1/16 has host bits set; the network is 10.96.0.0/16"
        );
    }

    #[test]
    fn a_file_that_is_not_there_says_how_to_make_it() {
        let error = NamespaceFile::read(Path::new("/nowhere/x.json")).expect_err("not there");
        assert_eq!(error.class(), Class::NotFound);
        assert!(error.hint().expect("a hint").contains("guildnet headscale namespace"));
    }
}
