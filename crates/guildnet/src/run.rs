//! Each subcommand: its flags become a request to `guildnet-host`, its answer is printed. No logic of its own.

mod cluster;
mod forward;
mod headscale;
mod keys;
pub(crate) mod kubeconfig;
mod managed;
mod page;
mod policy;
mod router;
mod service;

use std::{io::IsTerminal, path::PathBuf};

use clap::CommandFactory;
use guildnet_host::{Destination, Handed, Progress as _, Settings, StatusReport, UpReport, UpRequest, verify::Report};
use guildnet_model::Class;
use serde::Serialize;

use crate::{
    cli::{self, Cli, Command, Format},
    environment::Environment,
    failure::Failure,
    print::{self, Table},
    report::{self, Marks},
    settings::{self, Flags},
    talk::{Style, Talk},
};

/// What every subcommand has at hand.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) home: PathBuf,
    pub(crate) env: Environment,
    pub(crate) talk: Talk,
}

impl Context {
    fn settings(&self, flags: Flags) -> Result<Settings, Failure> {
        flags.resolve(self.home.clone(), &self.env)
    }
}

/// Runs a subcommand to its end. `handed` is what systemd gave to one that serves.
///
/// # Errors
/// What it could not do, with its exit code.
pub(crate) async fn run(command: Command, handed: Handed, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up(args, context).await,
        Command::Down(args) => down(&args, context).await,
        Command::Serve(args) => service::serve(args, handed, context).await,
        Command::Logs(args) => service::logs(args, context).await,
        Command::Status(args) => status(args.output, context).await,
        Command::Verify(args) => verify(&args, context).await,
        Command::Cluster(command) => cluster::run(command, context).await,
        Command::Kubeconfig(command) => kubeconfig::run(command, context).await,
        Command::Headscale(command) => headscale::run(command, context).await,
        Command::Router(command) => router::run(command, context).await,
        Command::Dial(args) => dial(&args, context).await,
        Command::Forward(args) => forward::run(args, context).await,
        Command::Ui(args) => page::ui(&args, context).await,
        Command::Sessions(args) => page::sessions(args, context).await,
        Command::Trust(command) => page::trust(command, context).await,
        Command::Token { metrics } => token(metrics, context),
        Command::Certs(cli::Certs::Regen { new_ca }) => certs(new_ca, context).await,
        Command::Completion { shell } => completion(shell),
        Command::Version(args) => version(args.output),
    }
}

async fn up(args: cli::Up, context: &Context) -> Result<(), Failure> {
    let mut settings = context.settings(Flags {
        headscale: args.headscale,
        listen: args.listen,
        routes: args.routes,
        image: args.image,
        allow: args.allow,
        managed: cli::ManagedArgs { headscale_binary: args.headscale_binary, ..cli::ManagedArgs::default() },
        ..Flags::default()
    })?;
    let mut texts = args.clusters;
    if texts.is_empty() {
        let listed = context.env.get("GUILDNET_CLUSTERS").unwrap_or_default();
        texts = listed.split_whitespace().map(Into::into).collect();
    }
    let clusters =
        texts.iter().map(|text| settings::cluster_flag(text, &context.env)).collect::<Result<Vec<_>, _>>()?;
    settings.cluster_keys = settings::cluster_keys(&clusters, &context.env);
    if clusters.is_empty() && guildnet_host::cluster_list(&settings).await?.is_empty() {
        return Err(no_clusters(context.env.default_kubeconfig()));
    }
    let request = UpRequest {
        clusters,
        routes: settings.routes.clone(),
        consent: args.consent.into(),
        start_host: true,
        verify: !args.no_verify,
    };
    let report = guildnet_host::up(&settings, request, &context.talk).await?;
    up_ended(&report, &settings, context)
}

/// Nothing to bring up: says what could be named. Touches nothing.
fn no_clusters(kubeconfig: Option<PathBuf>) -> Failure {
    let seen = kubeconfig
        .and_then(|path| Some((guildnet_host::contexts(&path).ok()?, path)))
        .filter(|(names, _)| !names.is_empty());
    let hint = match seen {
        Some((contexts, path)) => {
            let mut lines = vec![format!("name those that you want; {} has these contexts:", path.display())];
            lines.extend(contexts.iter().map(|c| format!("guildnet up --cluster ID={}:{c}", path.display())));
            lines.join("\n")
        }
        None => "name one: guildnet up --cluster ID=KUBECONFIG[:CONTEXT]".into(),
    };
    Failure::new(Class::Usage, "no cluster was named, and none is known from before", hint)
}

/// Says what failed and what to do next, prints verify's report.
fn up_ended(report: &UpReport, settings: &Settings, context: &Context) -> Result<(), Failure> {
    let style = Style::of(&std::io::stderr());
    for cluster in &report.clusters {
        if let Err(why) = &cluster.outcome {
            context.talk.say(Failure::from(why.clone()).render(style).trim_end());
        }
    }
    if let Some(verify) = &report.verify {
        show_report(verify, Format::Table)?;
    }
    if let Some(class) = report.trouble() {
        return Err(Failure::said(class));
    }
    if let Some(verify) = report.verify.as_ref().filter(|v| !v.success) {
        return Err(Failure::new(
            Class::Failed,
            format!("verify: {}", verify.summary()),
            "mend what is named above, then run 'guildnet verify'",
        ));
    }
    let Some(url) = &report.host else { return Ok(()) };
    let example = report.clusters.first().map_or_else(|| "CLUSTER".into(), |c| c.id.to_string());
    let kubectl = match guildnet_host::kubeconfig_files(settings) {
        Ok(files) if !files.is_empty() => format!("kubectl --context guildnet-{example} get nodes"),
        _ => "guildnet kubeconfig write   (a context for each cluster in your kubeconfig, for kubectl)".into(),
    };
    context.talk.say(&format!(
        "\nThe Host App serves at {url}.\nNext:\n  guildnet status\n  guildnet verify\n  {kubectl}\n  guildnet forward {example} 3000:SERVICE.NAMESPACE:PORT\n  guildnet ui\n  guildnet logs\n  guildnet down",
    ));
    Ok(())
}

async fn down(args: &cli::Down, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    if args.purge && guildnet_host::trusted(&settings.home) {
        // What says which entries are ours goes with the folder.
        page::untrust(&settings, context).await?;
    }
    if !guildnet_host::down(&settings, args.purge, &context.talk).await? {
        context.talk.say("the Host App was not running");
    }
    Ok(())
}

async fn status(format: Format, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let status = guildnet_host::status(&settings).await?;
    match (status.running, &status.url) {
        (true, url) => {
            context.talk.say(&format!("Host App: running at {}", url.as_deref().unwrap_or("an unknown address")))
        }
        (false, _) => context.talk.say("Host App: not running (start it: guildnet up)"),
    }
    print::data(format, &status, || status_table(&status))?;
    if status.running { Ok(()) } else { Err(Failure::said(Class::Failed)) }
}

fn status_table(status: &StatusReport) -> Table {
    let mut table = Table::new(
        &["ID", "STATE", "PATH", "ROUTER", "DETAIL"],
        &["NODE", "ADDRESSES", "NETWORKS", "FLOWS", "SINCE", "KEY EXPIRES", "READ-ONLY"],
    );
    for c in &status.clusters {
        table.row([
            c.id.to_string(),
            c.state.clone(),
            c.path.clone().unwrap_or_default(),
            c.router.clone().unwrap_or_default(),
            // The word and the sentence are often the same.
            if c.detail == c.state { String::new() } else { c.detail.clone() },
            c.node.clone().unwrap_or_default(),
            c.addresses.join(","),
            c.routes.join(","),
            c.flows.to_string(),
            format!("{}s", c.since_secs),
            c.key_expires.map(|t| t.to_string()).unwrap_or_default(),
            if c.read_only { "on" } else { "off" }.into(),
        ]);
    }
    table
}

async fn verify(args: &cli::Verify, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let clusters = args.clusters.iter().map(|c| settings::cluster(c)).collect::<Result<Vec<_>, _>>()?;
    let report = guildnet_host::verify(&settings, &clusters, &context.talk).await?;
    show_report(&report, args.output.output)?;
    if report.success { Ok(()) } else { Err(Failure::said(Class::Failed)) }
}

fn show_report(report: &Report, format: Format) -> Result<(), Failure> {
    let style = Style::of(&std::io::stdout());
    print::data_or(format, report, |wide| report::render(report, wide, Marks::of_locale(), style))
}

/// Bytes both ways. The end of standard input closes the sending half; the far end's close ends the command.
async fn dial(args: &cli::Dial, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let target: Destination = args.target.parse()?;
    let settings = context.settings(Flags::default())?;
    let mut session = guildnet_host::dial(&settings, &id, &target, &context.talk).await?;
    let copied = copy_both_ways(&mut session.io).await;
    session.finish().await;
    copied.map_err(|why| {
        Failure::new(
            Class::Unreachable,
            format!("{target} in {id}: {why}"),
            "run 'guildnet verify' to see which link is broken",
        )
    })
}

/// Size of one read: a few full segments of the tunnel.
const COPY_BUFFER: usize = 64 << 10;

async fn copy_both_ways(io: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from, mut to) = tokio::io::split(io);
    let up = async {
        let (mut input, mut buffer) = (tokio::io::stdin(), vec![0; COPY_BUFFER]);
        loop {
            match input.read(&mut buffer).await? {
                0 => break to.shutdown().await,
                n => to.write_all(&buffer[..n]).await?,
            }
        }
    };
    let down = async {
        let (mut output, mut buffer) = (tokio::io::stdout(), vec![0; COPY_BUFFER]);
        loop {
            match from.read(&mut buffer).await? {
                0 => break,
                n => output.write_all(&buffer[..n]).await?,
            }
            output.flush().await?;
        }
        output.flush().await
    };
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut down => ended,
        // What could not be sent does not matter once the far end has closed: its answer decides.
        _sent = &mut up => down.await,
    }
}

/// The one command that prints a credential, because it is asked for nothing else: for curl and scripts on this device.
fn token(metrics: bool, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let token = if metrics { guildnet_host::metrics_token(&settings)? } else { guildnet_host::token(&settings)? };
    if std::io::stdout().is_terminal() {
        let what = if metrics { "of /metrics" } else { "of the Host App's API" };
        context.talk.say(&format!("This is the credential {what}; keep it to yourself."));
    }
    print::out(&format!("{}\n", token.expose()))
}

async fn certs(new_ca: bool, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    let made = guildnet_host::certs::regen_certs(&context.home, new_ca)?;
    let authority = if made.new_authority { "new authority" } else { "authority kept" };
    let text = format!("certificate renewed, good until {} ({authority}: {})", made.ends, made.authority.display());
    context.talk.step(None, &text);
    if made.new_authority && guildnet_host::trusted(&context.home) {
        context.talk.say("Your browsers trust the old authority; make them trust the new one: guildnet trust install");
    }
    guildnet_host::kubeconfigs_follow(&settings, &context.talk).await;
    Ok(())
}

/// Prints a shell's completion script.
pub(crate) fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "guildnet", &mut script);
    print::out(&String::from_utf8_lossy(&script))
}

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
}

/// Says which version this is.
pub(crate) fn version(format: Format) -> Result<(), Failure> {
    let version = Version { version: env!("CARGO_PKG_VERSION") };
    print::data_or(format, &version, |_| format!("guildnet {}\n", version.version))
}
