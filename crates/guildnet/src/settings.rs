//! Settings: flags, then the environment, then `.env`, then defaults, as checked types.
//!
//! A secret is never a flag: flags name files. What may be missing stays `None`: the store may know it.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
};

use guildnet_host::{AddressChoice, KeysAtHand, KubeconfigRef, LogFormat, ManagedSettings, Settings};
use guildnet_model::{Class, ClusterId, Networks, Secret};
use url::Url;

use crate::{
    cli::{AllowArgs, HeadscaleArgs, KubeconfigArgs, LogForm, ManagedArgs},
    environment::Environment,
    failure::Failure,
};

/// The largest file that may hold a key or a certificate list, in bytes: far above any, far below what hurts.
const FILE_LIMIT: u64 = 1 << 20;

/// Flags that become settings, gathered from whichever subcommand has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) log_format: Option<LogForm>,
    pub(crate) headscale: HeadscaleArgs,
    pub(crate) login_server: Option<String>,
    pub(crate) listen: Option<String>,
    pub(crate) routes: Option<String>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) hostname: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) managed: ManagedArgs,
    pub(crate) allow: AllowArgs,
}

impl Flags {
    /// Resolves everything for a home folder.
    ///
    /// # Errors
    /// The first setting that is wrong, named as it was given: by its flag or its variable.
    pub(crate) fn resolve(self, home: PathBuf, env: &Environment) -> Result<Settings, Failure> {
        let mut settings = Settings::new(home);
        let HeadscaleArgs { headscale_url, headscale_api_key_file, headscale_ca } = self.headscale;

        let login = named("--login-server", self.login_server).or_else(|| named("--headscale-url", headscale_url));
        settings.headscale_url = login
            .or_else(|| env.first(&["HEADSCALE_URL", "TS_LOGIN_SERVER"]))
            .map(|(name, text)| server_url(&text).map_err(|f| f.about(name)))
            .transpose()?;
        settings.api_key = match headscale_api_key_file {
            Some(file) => Some(key_file("--headscale-api-key-file", &env.path(file))?),
            None => key(env, "HEADSCALE_API_KEY", "HEADSCALE_API_KEY_FILE")?,
        };
        settings.headscale_ca = headscale_ca
            .map(|file| ("--headscale-ca", file))
            .or_else(|| env.first(&["HEADSCALE_CA"]).map(|(name, file)| (name, file.into())))
            .map(|(name, file)| certificates(name, &env.path(file)))
            .transpose()?;
        if let Some((name, text)) = named("--listen", self.listen).or_else(|| env.first(&["GUILDNET_LISTEN"])) {
            settings.listen = listen(&text).map_err(|f| f.about(name))?;
        }
        settings.routes = named("--routes", self.routes)
            .or_else(|| env.first(&["TS_ROUTES"]))
            .map(|(name, text)| text.parse::<Networks>().map_err(|e| Failure::from(e).about(name)))
            .transpose()?;
        settings.auth_key = match self.key_file {
            Some(file) => Some(key_file("--router-key-file", &env.path(file))?),
            None => env.get("TS_AUTHKEY").map(Secret::new),
        };
        settings.hostname = named("--hostname", self.hostname)
            .or_else(|| env.first(&["TS_HOSTNAME"]))
            .map(|(name, text)| host_label(text).map_err(|f| f.about(name)))
            .transpose()?;
        settings.image = self.image.or_else(|| env.get("GUILDNET_ROUTER_IMAGE"));
        settings.log_format = log_format(self.log_format, env)?;
        settings.managed = managed(self.managed, env)?;
        settings.allow_files = self.allow.allow_files;
        settings.allow_exec = self.allow.allow_exec.into_iter().map(program).collect::<Result<_, _>>()?;
        Ok(settings)
    }
}

/// The form of the log of what runs in the background or serves.
///
/// # Errors
/// `GUILDNET_LOG_FORMAT` holds another word.
pub(crate) fn log_format(flag: Option<LogForm>, env: &Environment) -> Result<LogFormat, Failure> {
    match flag.map(LogForm::word).map(str::to_owned).or_else(|| env.get("GUILDNET_LOG_FORMAT")).as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(Failure::new(
            Class::Usage,
            format!("GUILDNET_LOG_FORMAT: {other:?} is no form of a log"),
            "write text or json",
        )),
    }
}

/// A program by its full name: any other name could be another program tomorrow.
fn program(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.is_absolute() {
        return Ok(path);
    }
    let hint = "give its absolute path, as the kubeconfig's exec has it";
    Err(Failure::new(Class::Usage, format!("--allow-exec {}: this is no absolute path", path.display()), hint))
}

/// What is asked of a Headscale of this machine's own.
fn managed(args: ManagedArgs, env: &Environment) -> Result<ManagedSettings, Failure> {
    let binary = args.headscale_binary.map(|file| env.path(file));
    let given = |flag: &'static str, value: Option<String>, variable: &'static str| {
        named(flag, value).or_else(|| env.first(&[variable]))
    };
    let stun_port = |text: &str| {
        let wrong = || Failure::new(Class::Usage, format!("{text:?} is no port"), "write a number from 1 to 65535");
        text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)
    };
    Ok(ManagedSettings {
        binary: binary.or_else(|| env.get("GUILDNET_HEADSCALE_BINARY").map(|file| env.path(file))),
        address: given("--address", args.address, "GUILDNET_HEADSCALE_ADDRESS")
            .map(|(name, text)| address(&text).map_err(|f| f.about(name)))
            .transpose()?,
        listen: given("--listen", args.listen, "GUILDNET_HEADSCALE_LISTEN")
            .map(|(name, text)| headscale_listen(&text).map_err(|f| f.about(name)))
            .transpose()?,
        stun_port: given("--stun-port", args.stun_port, "GUILDNET_HEADSCALE_STUN_PORT")
            .map(|(name, text)| stun_port(&text).map_err(|f| f.about(name)))
            .transpose()?,
    })
}

/// An address by which nodes reach this machine, or `auto`.
pub(crate) fn address(text: &str) -> Result<AddressChoice, Failure> {
    if text == "auto" {
        return Ok(AddressChoice::Auto);
    }
    text.parse().map(AddressChoice::This).map_err(|_| {
        Failure::new(Class::Usage, format!("{text:?} is no IPv4 address"), "write one like 192.168.1.20, or auto")
    })
}

fn headscale_listen(text: &str) -> Result<SocketAddrV4, Failure> {
    let listen = text.parse::<SocketAddrV4>().ok().filter(|listen| listen.port() != 0);
    listen.ok_or_else(|| {
        Failure::new(
            Class::Usage,
            format!("{text:?} is no IPv4 address with a port"),
            "write one like 192.168.1.20:8443, or 0.0.0.0:8443 for all of this machine's addresses",
        )
    })
}

fn named(name: &'static str, value: Option<String>) -> Option<(&'static str, String)> {
    value.map(|v| (name, v))
}

/// The folder of GuildNet's state, if it was named: `--home`, else `GUILDNET_HOME`.
pub(crate) fn home(flag: Option<&Path>, env: &Environment) -> Option<PathBuf> {
    flag.map(|p| env.path(p)).or_else(|| env.get("GUILDNET_HOME").map(|text| env.path(text)))
}

/// A cluster's id.
pub(crate) fn cluster(text: &str) -> Result<ClusterId, Failure> {
    Ok(text.parse::<ClusterId>()?)
}

/// The preauth keys that variables name for each of these clusters. The names without an id count where there is one
/// cluster only: a key opens one namespace.
pub(crate) fn cluster_keys(
    clusters: &[(ClusterId, KubeconfigRef)],
    env: &Environment,
) -> BTreeMap<ClusterId, KeysAtHand> {
    let alone = clusters.len() == 1;
    let key = |name: &str, id: &ClusterId| {
        let own = format!("{name}_{}", id.variable());
        let names = [own.as_str(), name];
        env.first(&names[..if alone { 2 } else { 1 }]).map(|(_, key)| Secret::new(key))
    };
    let keys = |id: &ClusterId| KeysAtHand { router: key("TS_AUTHKEY", id), client: key("TS_CLIENT_AUTHKEY", id) };
    clusters.iter().map(|(id, _)| (id.clone(), keys(id))).collect()
}

/// `ID=KUBECONFIG[:CONTEXT]`. The first colon ends the path, so that a context may hold colons; an empty path is the
/// default kubeconfig.
pub(crate) fn cluster_flag(text: &str, env: &Environment) -> Result<(ClusterId, KubeconfigRef), Failure> {
    let wrong = || {
        let hint = "write ID=KUBECONFIG or ID=KUBECONFIG:CONTEXT, like home=~/.kube/config:home";
        Failure::new(Class::Usage, format!("--cluster {text:?} is not ID=KUBECONFIG[:CONTEXT]"), hint)
    };
    let (id, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (file, context) = rest.split_once(':').map_or((rest, None), |(f, c)| (f, Some(c)));
    let file = if file.is_empty() {
        context.and_then(|_| env.default_kubeconfig()).ok_or_else(wrong)?
    } else {
        env.path(file)
    };
    if context == Some("") {
        return Err(wrong());
    }
    Ok((cluster(id)?, KubeconfigRef { path: file, context: context.map(Into::into), content: None }))
}

/// The kubeconfig that was named, or the default one.
pub(crate) fn kubeconfig(args: KubeconfigArgs, env: &Environment) -> Result<KubeconfigRef, Failure> {
    let path = args.kubeconfig.map(|p| env.path(p)).or_else(|| env.default_kubeconfig());
    let path = path.ok_or_else(|| Failure::new(Class::Usage, "no kubeconfig", "name one with --kubeconfig FILE"))?;
    Ok(KubeconfigRef { path, context: args.context, content: None })
}

/// A Headscale address: `https://HOST[:PORT]`.
pub(crate) fn server_url(text: &str) -> Result<Url, Failure> {
    let wrong =
        |why: &str| Failure::new(Class::Usage, format!("{text:?} {why}"), "write https://HOST or https://HOST:PORT");
    // Not repeated: what stands before the sign may be a password.
    if text.contains('@') {
        return Err(Failure::new(
            Class::Usage,
            "the address holds more than host and port",
            "write https://HOST or https://HOST:PORT",
        ));
    }
    // Keys and Noise's first bytes travel under it: without TLS, whoever answers is believed.
    let url: Url = text.parse().map_err(|_| wrong("is no address"))?;
    if url.scheme() != "https" || url.host().is_none() {
        return Err(wrong("is no https address"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Failure::new(
            Class::Usage,
            "the address holds more than host and port",
            "write https://HOST or https://HOST:PORT",
        ));
    }
    Ok(url)
}

fn listen(text: &str) -> Result<SocketAddr, Failure> {
    let wrong = |why: &str| {
        Failure::new(
            Class::Usage,
            format!("{text:?} {why}"),
            "write a loopback address and a port, like 127.0.0.1:8090",
        )
    };
    let addr: SocketAddr = text.parse().map_err(|_| wrong("is no address with a port"))?;
    if !addr.ip().is_loopback() {
        return Err(wrong("is not a loopback address: the Host App serves this device only"));
    }
    Ok(addr)
}

/// A DNS label; the router adds its node's name.
fn host_label(text: String) -> Result<String, Failure> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=40).contains(&text.len()) && text.chars().all(good) && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text);
    }
    let hint = "use a-z, 0-9 and '-', at most 40 characters, no '-' at either end";
    Err(Failure::new(Class::Usage, format!("{text:?} is no host name"), hint))
}

/// A key in a variable, or in the file that another variable names; the process's variables come before those of `.env`.
fn key(env: &Environment, value: &'static str, file: &'static str) -> Result<Option<Secret<String>>, Failure> {
    Ok(match env.first(&[value, file]) {
        Some((name, text)) if name == value => Some(Secret::new(text)),
        Some((name, text)) => Some(key_file(name, &env.path(text))?),
        None => None,
    })
}

/// The key in a file: its text without white space at the ends.
pub(crate) fn key_file(what: &str, file: &Path) -> Result<Secret<String>, Failure> {
    let text = Secret::new(read(what, file, Class::Credentials)?);
    let key = text.expose().trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        let hint = "the file holds the key alone, on one line";
        return Err(Failure::new(Class::Credentials, format!("{what}: {} holds no key", file.display()), hint));
    }
    Ok(Secret::new(key.to_owned()))
}

/// A PEM file. Its certificates are parsed where they are used; here only the mistake of naming another file is caught.
fn certificates(what: &str, file: &Path) -> Result<String, Failure> {
    let text = read(what, file, Class::Usage)?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(text);
    }
    let hint = "give a PEM file, with -----BEGIN CERTIFICATE-----";
    Err(Failure::new(Class::Usage, format!("{what}: {} holds no certificate", file.display()), hint))
}

fn read(what: &str, file: &Path, class: Class) -> Result<String, Failure> {
    let wrong = |why: String| {
        let hint = "check the path, and that the user that the command runs as may read it";
        Failure::new(class, format!("{what}: {}: {why}", file.display()), hint)
    };
    let meta = std::fs::metadata(file).map_err(|e| wrong(e.to_string()))?;
    if !meta.is_file() || meta.len() > FILE_LIMIT {
        return Err(wrong("is no file of at most 1 MiB".into()));
    }
    std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn resolved(flags: Flags, file: &str) -> Result<Settings, String> {
        let resolved = flags.resolve("/home".into(), &Environment::of(none, file));
        resolved.map_err(|f| f.render(crate::talk::Style::PLAIN))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = "TS_ROUTES=10.1.0.0/16\nGUILDNET_LISTEN=127.0.0.1:9000\n";
        let flags = Flags { routes: Some("10.2.0.0/16".into()), ..Flags::default() };
        let settings = resolved(flags, file).expect("resolved");
        assert_eq!(settings.routes.expect("given").to_string(), "10.2.0.0/16");
        assert_eq!(settings.listen.to_string(), "127.0.0.1:9000");
        assert_eq!(resolved(Flags::default(), "").expect("resolved").listen.to_string(), "127.0.0.1:8090");
    }

    #[test]
    fn a_wrong_setting_is_named_as_it_was_given() {
        let said = |file: &str| resolved(Flags::default(), file).expect_err("wrong");
        assert!(said("TS_ROUTES=10.96.0.1/16").starts_with("error: TS_ROUTES: 10.96.0.1/16 has host bits set"));
        assert!(said("HEADSCALE_URL=http://x").starts_with("error: HEADSCALE_URL: \"http://x\" is no https address"));
        assert!(said("TS_LOGIN_SERVER=https://u:p@x").starts_with("error: TS_LOGIN_SERVER: the address holds more"));
        assert!(said("GUILDNET_LISTEN=0.0.0.0:8090").contains("is not a loopback address"));
        assert!(said("TS_HOSTNAME=a_b").contains("is no host name"));
        assert!(
            said("GUILDNET_HEADSCALE_LISTEN=8443").starts_with("error: GUILDNET_HEADSCALE_LISTEN: \"8443\" is no IPv4")
        );
        assert!(said("GUILDNET_HEADSCALE_ADDRESS=fd00::1").contains("is no IPv4 address"));
        assert!(said("GUILDNET_HEADSCALE_STUN_PORT=0").contains("is no port"));
        assert!(said("HEADSCALE_API_KEY_FILE=/nowhere/key").contains("/nowhere/key: No such file"));
    }

    #[test]
    fn a_key_file_holds_one_word() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("key");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            key_file("--client-key-file", &file)
        };
        assert_eq!(read("abc\n").expect("a key").expose(), "abc");
        assert!(read("\n").is_err());
        assert!(read("two words").is_err());
    }

    #[test]
    fn a_key_without_an_id_counts_for_a_single_cluster_only() {
        let env = Environment::of(none, "TS_AUTHKEY=any\nTS_CLIENT_AUTHKEY_MY_LAB=own\n");
        let named = |ids: &[&str]| {
            let clusters: Vec<_> =
                ids.iter().map(|id| cluster_flag(&format!("{id}=/x.yaml"), &env).expect("good")).collect();
            cluster_keys(&clusters, &env)
        };
        let (one, two) = (named(&["my-lab"]), named(&["my-lab", "b"]));
        let router = |k: &KeysAtHand| k.router.as_ref().map(|k| k.expose().clone());
        assert_eq!(one.values().map(router).collect::<Vec<_>>(), [Some("any".to_owned())]);
        assert_eq!(two.values().map(router).collect::<Vec<_>>(), [None, None]);
        assert!(two.values().any(|k| k.client.as_ref().is_some_and(|k| k.expose() == "own")));
    }

    #[test]
    fn a_cluster_flag_has_id_file_and_context() {
        let env = Environment::of(none, "KUBECONFIG=/default");
        let parse = |text: &str| cluster_flag(text, &env);
        let shown = |text: &str| {
            let (id, at) = parse(text).expect("good");
            format!("{id} {} {:?}", at.path.display(), at.context)
        };
        assert_eq!(shown("a=/x.yaml"), "a /x.yaml None");
        assert_eq!(shown("a=/x.yaml:ctx"), "a /x.yaml Some(\"ctx\")");
        assert_eq!(shown("a=/x.yaml:arn:aws:eks:r:1:cluster/n"), "a /x.yaml Some(\"arn:aws:eks:r:1:cluster/n\")");
        assert_eq!(shown("a=:ctx"), "a /default Some(\"ctx\")");
        for wrong in ["a", "a=", "a=/x:", "=/x", "A=/x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
