//! Each subcommand: its flags become a request to `guildnet-host`, its answer is printed. No logic of its own.

use std::{io::IsTerminal, path::PathBuf};

use clap::CommandFactory;
use guildnet_host::{
    AddRequest, ClusterInfo, HostError, Progress, RouterReport, RouterRequest, Settings, StatusReport, UpReport,
    UpRequest, verify::Report,
};
use guildnet_model::{Class, ClusterId, SiteNumber, Target};
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

/// Runs a subcommand to its end.
///
/// # Errors
/// What it could not do, with its exit code.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up(args, context).await,
        Command::Down(args) => down(&args, context).await,
        Command::Serve(args) => serve(args, context).await,
        Command::Status(args) => status(args.output, context).await,
        Command::Verify(args) => verify(&args, context).await,
        Command::Cluster(command) => cluster(command, context).await,
        Command::Headscale(cli::Headscale::Namespace(args)) => namespace(args, context).await,
        Command::Router(command) => router(command, context).await,
        Command::Dial(args) => dial(&args, context).await,
        Command::Token => token(context),
        Command::Certs(cli::Certs::Regen { new_ca }) => certs(new_ca, context),
        Command::Completion { shell } => completion(shell),
        Command::Version(args) => version(args.output),
    }
}

async fn up(args: cli::Up, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags {
        headscale: args.headscale,
        listen: args.listen,
        routes: args.routes,
        image: args.image,
        ..Flags::default()
    })?;
    let mut texts = args.clusters;
    if texts.is_empty() {
        let listed = context.env.get("GUILDNET_CLUSTERS").unwrap_or_default();
        texts = listed.split_whitespace().map(Into::into).collect();
    }
    let clusters =
        texts.iter().map(|text| settings::cluster_flag(text, &context.env)).collect::<Result<Vec<_>, _>>()?;
    if clusters.is_empty() && guildnet_host::cluster_list(&settings).await?.is_empty() {
        return Err(no_clusters(context.env.default_kubeconfig()));
    }
    let request = UpRequest {
        clusters,
        routes: settings.routes.clone(),
        merge_policy: args.merge,
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
    context.talk.say(&format!(
        "\nThe Host App serves at {url}; its log is {}.\nNext:\n  guildnet status\n  guildnet verify\n  guildnet dial {example} IP:PORT\n  guildnet down",
        settings.home.join("host.log").display(),
    ));
    Ok(())
}

async fn down(args: &cli::Down, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags::default())?;
    if !guildnet_host::down(&settings, args.purge, &context.talk).await? {
        context.talk.say("the Host App was not running");
    }
    Ok(())
}

async fn serve(args: cli::Serve, context: &Context) -> Result<(), Failure> {
    let settings = context.settings(Flags { listen: args.listen, ..Flags::default() })?;
    Ok(guildnet_host::serve(&settings, &context.talk).await?)
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
    let mut table =
        Table::new(&["ID", "STATE", "PATH", "ROUTER", "DETAIL"], &["NODE", "ADDRESSES", "NETWORKS", "FLOWS", "SINCE"]);
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

async fn cluster(command: cli::Cluster, context: &Context) -> Result<(), Failure> {
    match command {
        cli::Cluster::Add(args) => cluster_add(args, context).await,
        cli::Cluster::List(args) => {
            let settings = context.settings(Flags::default())?;
            let clusters = guildnet_host::cluster_list(&settings).await?;
            if clusters.is_empty() {
                context.talk.say("no clusters (add one: guildnet up --cluster ID=KUBECONFIG)");
            }
            print::data(args.output, &clusters, || cluster_table(&clusters))
        }
        cli::Cluster::Show { id, output } => {
            let settings = context.settings(Flags::default())?;
            let cluster = guildnet_host::cluster_show(&settings, &settings::cluster(&id)?).await?;
            print::data(output.output, &cluster, || cluster_table(std::slice::from_ref(&cluster)))
        }
        cli::Cluster::Remove { id, headscale } => {
            let id = settings::cluster(&id)?;
            let settings = context.settings(Flags { headscale, ..Flags::default() })?;
            let done = guildnet_host::cluster_remove(&settings, &id, &context.talk).await?;
            done.removed.iter().for_each(|what| context.talk.say(&format!("removed: {what}")));
            done.left.iter().for_each(|what| context.talk.say(&format!("left: {what}")));
            Ok(())
        }
    }
}

async fn cluster_add(args: cli::ClusterAdd, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let site = args.site.map(|text| text.parse::<SiteNumber>()).transpose()?;
    let login_server = args
        .login_server
        .clone()
        .map(|url| settings::server_url(&url).map_err(|f| f.about("--login-server")))
        .transpose()?;
    let client_key = args
        .client_key_file
        .map(|file| settings::key_file("--client-key-file", &context.env.path(file)))
        .transpose()?;
    let settings = context.settings(Flags {
        headscale: args.headscale,
        login_server: args.login_server,
        routes: args.routes,
        ..Flags::default()
    })?;
    let request = AddRequest {
        id,
        kubeconfig: settings::kubeconfig(args.kubeconfig, &context.env)?,
        from: args.from.map(|file| context.env.path(file)),
        login_server,
        client_key,
        routes: settings.routes.clone(),
        state_dir: args.state_dir.map(|dir| context.env.path(dir)),
        site,
        replace: args.replace,
    };
    let added = guildnet_host::cluster_add(&settings, request, &context.talk).await?;
    context.talk.say(&format!("cluster {} added; start or refresh the Host App: guildnet up", added.id));
    Ok(())
}

fn cluster_table(clusters: &[ClusterInfo]) -> Table {
    let mut table = Table::new(
        &["ID", "CONTEXT", "SERVER", "NETWORKS", "LOGIN SERVER"],
        &["NAMESPACE", "SITE", "API ADDRESS", "CLIENT KEY", "STATE FOLDER"],
    );
    for c in clusters {
        table.row([
            c.id.to_string(),
            c.context.clone(),
            c.server.clone(),
            c.ts_routes.to_string(),
            c.ts_login_server.to_string(),
            c.namespace.clone(),
            c.site.map(|s| s.to_string()).unwrap_or_default(),
            c.api_address.clone().unwrap_or_default(),
            if c.has_client_key { "kept" } else { "" }.into(),
            c.ts_state_path.display().to_string(),
        ]);
    }
    table
}

async fn namespace(args: cli::Namespace, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let settings = context.settings(Flags { headscale: args.headscale, routes: args.routes, ..Flags::default() })?;
    let routes = settings.routes.clone();
    let made =
        guildnet_host::namespace_and_keys(&settings, &id, routes, args.file.as_deref(), args.merge, &context.talk)
            .await?;
    let keys = if made.new_keys { "new keys in" } else { "keys still valid in" };
    context.talk.say(&format!("namespace {}: {keys} {}", made.namespace, made.file.display()));
    context.talk.say(&format!(
        "Next, where the cluster can be reached:\n  guildnet router ensure {id} --kubeconfig FILE --from {file}\nand on the device:\n  guildnet cluster add {id} --kubeconfig FILE --from {file}",
        file = made.file.display()
    ));
    Ok(())
}

async fn router(command: cli::Router, context: &Context) -> Result<(), Failure> {
    match command {
        cli::Router::Ensure(args) => {
            let (settings, request) = router_request(&args.id, args.reach, args.router, context).await?;
            let report = guildnet_host::router_ensure(&settings, request, &context.talk).await?;
            context.talk.say(&format!("router of {} is connected", report.id));
            Ok(())
        }
        cli::Router::Manifest(args) => {
            let (settings, request) = router_request(&args.id, cli::ReachArgs::default(), args.router, context).await?;
            print::out(&guildnet_host::router_manifest(&settings, request, args.with_key).await?)
        }
        cli::Router::Status { id, reach, output } => {
            let (settings, request) = router_request(&id, reach, cli::RouterArgs::default(), context).await?;
            let report = guildnet_host::router_status(&settings, request).await?;
            print::data(output.output, &report, || router_table(&report))?;
            match &report.router {
                Some(router) if router.is_ready() => Ok(()),
                Some(_) => Err(Failure::said(Class::Failed)),
                None => Err(Failure::new(
                    Class::NotFound,
                    format!("cluster {id} has no router"),
                    format!("run 'guildnet router ensure {id}'"),
                )),
            }
        }
    }
}

/// A kubeconfig is taken when it was named, or when the store does not know the cluster: then the default one.
async fn router_request(
    id: &str,
    reach: cli::ReachArgs,
    router: cli::RouterArgs,
    context: &Context,
) -> Result<(Settings, RouterRequest), Failure> {
    let id = settings::cluster(id)?;
    let settings = context.settings(Flags {
        headscale: router.headscale,
        login_server: router.login_server,
        routes: router.routes,
        key_file: router.router_key_file,
        hostname: router.hostname,
        image: router.image,
        ..Flags::default()
    })?;
    let named = reach.kubeconfig.kubeconfig.is_some() || reach.kubeconfig.context.is_some();
    let kubeconfig = if named || !is_known(&settings, &id).await? {
        Some(settings::kubeconfig(reach.kubeconfig, &context.env)?)
    } else {
        None
    };
    let via = match reach.via {
        cli::Via::Auto => guildnet_host::Via::Auto,
        cli::Via::Direct => guildnet_host::Via::Direct,
        cli::Via::Tailnet => guildnet_host::Via::Tailnet,
    };
    let routes = settings.routes.clone();
    Ok((settings, RouterRequest { id, kubeconfig, from: router.from.map(|file| context.env.path(file)), routes, via }))
}

async fn is_known(settings: &Settings, id: &ClusterId) -> Result<bool, HostError> {
    Ok(guildnet_host::cluster_list(settings).await?.iter().any(|c| c.id == *id))
}

fn router_table(report: &RouterReport) -> Table {
    let mut table = Table::new(&["POD", "NODE", "READY", "PHASE", "RESTARTS", "REASON"], &[]);
    for pod in report.router.iter().flat_map(|r| &r.pods) {
        table.row([
            pod.name.clone(),
            pod.node.clone().unwrap_or_default(),
            if pod.ready { "yes" } else { "no" }.into(),
            pod.phase.clone(),
            pod.restarts.to_string(),
            pod.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// Bytes both ways. The end of standard input closes the sending half; the far end's close ends the command.
async fn dial(args: &cli::Dial, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let target: Target = args.target.parse()?;
    let settings = context.settings(Flags::default())?;
    let mut session = guildnet_host::dial(&settings, &id, target, &context.talk).await?;
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
fn token(context: &Context) -> Result<(), Failure> {
    let token = guildnet_host::token(&context.settings(Flags::default())?)?;
    if std::io::stdout().is_terminal() {
        context.talk.say("This is the credential of the Host App's API; keep it to yourself.");
    }
    print::out(&format!("{}\n", token.expose()))
}

fn certs(new_ca: bool, context: &Context) -> Result<(), Failure> {
    let made = guildnet_host::certs::regen_certs(&context.home, new_ca)?;
    let authority = if made.new_authority { "new authority" } else { "authority kept" };
    let text = format!("certificate renewed, good until {} ({authority}: {})", made.ends, made.authority.display());
    context.talk.step(None, &text);
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
