//! What can be typed: subcommands, flags, their help. Texts stay texts here; `settings.rs` and `run.rs` turn them into
//! checked types, so that a wrong one is answered with its cause, a hint and its exit code. Nothing here does IO.

mod cluster;
mod forward;
mod headscale;
mod keys;
mod kubeconfig;
mod managed;
mod page;
mod policy;
mod router;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

pub(crate) use self::{
    cluster::{Cluster, ClusterAdd, ClusterSet, Switch},
    forward::Forward,
    headscale::{Headscale, Namespace},
    keys::Keys,
    kubeconfig::{Kubeconfig, KubeconfigWrite},
    managed::{EnvSyncLan, ManagedArgs, ManagedBackup, ManagedUp, Systemd},
    page::{Sessions, SessionsCommand, Trust, Ui},
    policy::{ConsentArgs, Policy, PolicyArgs, PolicyCheck, PolicyRollback, PolicyShow},
    router::{ReachArgs, Router, RouterArgs, Via},
};

/// Many Kubernetes clusters at once, each through its own userspace tailnet.
#[derive(Debug, Parser)]
#[command(
    version,
    // The last of two equal flags wins, so that a script's can be overridden.
    args_override_self = true,
    disable_help_subcommand = true,
    after_help = "Settings come from flags, then the environment, then .env in the working folder, then defaults.\n\
                  Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 credentials, 5 unreachable, 6 conflict,\n\
                  7 some clusters failed, 8 a precondition is missing."
)]
pub(crate) struct Cli {
    /// Folder of GuildNet's state [env: GUILDNET_HOME] [default: ~/.guildnet]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) home: Option<PathBuf>,

    /// Say more about what is done (twice: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connect clusters: namespaces, keys, policy, routers, Host App, verify
    Up(Up),
    /// Stop the Host App, and the Headscale that `up` started
    Down(Down),
    /// Run the Host App in the foreground
    Serve(Serve),
    /// Print the log of the Host App
    Logs(Logs),
    /// Show the Host App and its clusters
    Status(OutputArgs),
    /// Check every link of every cluster and name the broken one
    Verify(Verify),
    /// The clusters that the Host App knows
    #[command(subcommand)]
    Cluster(Cluster),
    /// The clusters' contexts in your kubeconfig
    #[command(subcommand)]
    Kubeconfig(Kubeconfig),
    /// The Headscale server's share of the work
    #[command(subcommand)]
    Headscale(Headscale),
    /// The subnet routers inside the clusters
    #[command(subcommand)]
    Router(Router),
    /// Connect standard input and output to a Service or an address inside a cluster
    Dial(Dial),
    /// Make ports of this device lead into a cluster, list them, stop them
    Forward(Forward),
    /// Open the Host App's page in your browser, signed in
    Ui(Ui),
    /// The browsers that are signed in
    Sessions(Sessions),
    /// Whether your browsers trust the Host App's own authority
    #[command(subcommand)]
    Trust(Trust),
    /// Print the Host App's access token, the credential of its API
    Token {
        /// Print a Prometheus server's instead: it opens /metrics and nothing else, as long as the access token stays the same
        #[arg(long)]
        metrics: bool,
    },
    /// The certificate of the Host App's own address
    #[command(subcommand)]
    Certs(Certs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version(OutputArgs),
}

/// How data is printed on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// How to print: columns, more columns, or data
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

/// The Headscale server and what is trusted of it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct HeadscaleArgs {
    /// The server's address, https://HOST[:PORT] [env: HEADSCALE_URL]
    #[arg(long, value_name = "URL", help_heading = "Headscale")]
    pub(crate) headscale_url: Option<String>,
    /// File with an API key [env: HEADSCALE_API_KEY_FILE, or the key in HEADSCALE_API_KEY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Headscale")]
    pub(crate) headscale_api_key_file: Option<PathBuf>,
    /// PEM file with the authority of its certificate, if it is a private one [env: HEADSCALE_CA]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Headscale")]
    pub(crate) headscale_ca: Option<PathBuf>,
}

/// Which kubeconfig, which context.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KubeconfigArgs {
    /// The cluster's kubeconfig [env: KUBECONFIG] [default: ~/.kube/config]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context in it [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// What kubeconfigs may ask for beyond their own content.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AllowArgs {
    /// Certificates, keys and tokens may be read from other files that the kubeconfig names; a token's file is read again when it changes
    #[arg(long)]
    pub(crate) allow_files: bool,
    /// This program, by its absolute path, may be run for a credential where the kubeconfig's exec names it so; repeat for more
    ///
    /// It runs as you, without a shell, and can't ask anything. Its token is kept until shortly before its end.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::ExecutablePath)]
    pub(crate) allow_exec: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// A cluster to connect; repeat for more [env: GUILDNET_CLUSTERS, separated by spaces]
    ///
    /// The id is the name that GuildNet gives it: a DNS label of at most 40 characters that begins with a letter. Without any, the clusters that are
    /// known already are brought up again. No context that was not named is ever touched.
    #[arg(long = "cluster", value_name = "ID=KUBECONFIG[:CONTEXT]")]
    pub(crate) clusters: Vec<String>,
    #[command(flatten)]
    pub(crate) headscale: HeadscaleArgs,
    /// Without a Headscale server: the program to run one with here [env: GUILDNET_HEADSCALE_BINARY] [default: from PATH]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Headscale")]
    pub(crate) headscale_binary: Option<PathBuf>,
    /// The Pod and Service networks of each of these clusters, IPv4 [env: TS_ROUTES] [default: discovered]
    #[arg(long, alias = "ts-routes", value_name = "CIDR,...")]
    pub(crate) routes: Option<String>,
    /// The routers' image [env: GUILDNET_ROUTER_IMAGE]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Where the Host App listens [env: GUILDNET_LISTEN] [default: 127.0.0.1:8090]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
    /// Do not verify at the end
    #[arg(long)]
    pub(crate) no_verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Remove all local state too: clusters, keys, certificates, the connectors' identities, and your own Headscale's
    /// state unless others use it
    #[arg(long)]
    pub(crate) purge: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen [env: GUILDNET_LISTEN] [default: 127.0.0.1:8090]
    ///
    /// A socket that systemd hands over is taken instead.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<String>,
    /// How the log is written: lines of text, or a JSON object a line [env: GUILDNET_LOG_FORMAT] [default: text]
    ///
    /// With --systemd it is put into the unit. The variable counts for the Host App that `guildnet up` starts, too.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) log_format: Option<LogForm>,
    /// Print a systemd unit instead, and change nothing: `user` for a systemd of your own, `system` for the machine's
    #[arg(long, value_enum, value_name = "WHOSE", num_args = 0..=1, require_equals = true, default_missing_value = "user")]
    pub(crate) systemd: Option<Systemd>,
    /// With --systemd: print the socket unit, which keeps the port while the Host App is not running
    #[arg(long, requires = "systemd")]
    pub(crate) socket: bool,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    Text,
    Json,
}

impl LogForm {
    /// As it is typed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Only lines that concern this cluster [default: all]
    #[arg(value_name = "CLUSTER")]
    pub(crate) cluster: Option<String>,
    /// Go on with what is written from now on, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the last lines to print, at most 100000
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) lines: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Only these clusters (server-wide checks always run) [default: all]
    #[arg(value_name = "CLUSTER")]
    pub(crate) clusters: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Dial {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(crate) id: String,
    /// A Service, like grafana.monitoring:80, any other name of the cluster's, or an IP address in its networks; and a port
    #[arg(value_name = "HOST:PORT")]
    pub(crate) target: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Renew the certificate of the Host App's address
    Regen {
        /// Make a new authority too: what trusts the old one must be told
        #[arg(long)]
        new_ca: bool,
    },
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use clap::CommandFactory;

    use super::*;

    fn helps(command: &mut clap::Command, path: &str, text: &mut String) {
        writeln!(text, "$ {path} --help\n{}", command.render_long_help()).expect("a string grows");
        for sub in command.get_subcommands_mut() {
            let path = format!("{path} {}", sub.get_name());
            helps(sub, &path, text);
        }
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_every_subcommand() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        helps(&mut command, "guildnet", &mut text);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(lines.join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    }

    #[test]
    fn the_last_of_two_equal_flags_wins_and_clusters_add_up() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["guildnet", "up"], args].concat()).expect("good");
        let cli = parse(&["--cluster=a=x", "--cluster=b=y", "--listen=1", "--listen=2"]);
        let Command::Up(up) = cli.command else { unreachable!("up was typed") };
        assert_eq!(
            (up.clusters.as_slice(), up.listen.as_deref()),
            (["a=x".to_owned(), "b=y".to_owned()].as_slice(), Some("2"))
        );
    }

    #[test]
    fn no_flag_takes_a_secret() {
        let mut open = vec![Cli::command()];
        while let Some(command) = open.pop() {
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                let names_a_secret = ["key", "token", "password", "secret"].iter().any(|word| flag.contains(word));
                assert!(
                    !names_a_secret || flag.ends_with("-file") || flag == "with-key",
                    "--{flag} of {}",
                    command.get_name()
                );
            }
            open.extend(command.get_subcommands().cloned());
        }
    }
}
