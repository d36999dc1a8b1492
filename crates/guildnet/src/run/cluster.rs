//! `guildnet cluster`: its flags become requests, its answers are printed.

use guildnet_host::{AddRequest, ClusterInfo, ProxiesAccess, ProxiesRequest, RemoveRequest, Removed};
use guildnet_model::{Class, SiteNumber};
use serde::Serialize;

use super::Context;
use crate::{
    cli::{Cluster, ClusterAdd, ClusterSet, Format, Switch},
    failure::Failure,
    print::{self, Table},
    settings::{self, Flags},
};

pub(super) async fn run(command: Cluster, context: &Context) -> Result<(), Failure> {
    match command {
        Cluster::Add(args) => add(*args, context).await,
        Cluster::List(args) => {
            let settings = context.settings(Flags::default())?;
            let clusters = guildnet_host::cluster_list(&settings).await?;
            if clusters.is_empty() {
                context.talk.say("no clusters (add one: guildnet up --cluster ID=KUBECONFIG)");
            }
            print::data(args.output, &clusters, || table(&clusters))
        }
        Cluster::Show { id, output } => {
            let settings = context.settings(Flags::default())?;
            let cluster = guildnet_host::cluster_show(&settings, &settings::cluster(&id)?).await?;
            print::data(output.output, &cluster, || table(std::slice::from_ref(&cluster)))
        }
        Cluster::Connect { id } => connect(&id, true, context).await,
        Cluster::Disconnect { id } => connect(&id, false, context).await,
        Cluster::Set(args) => set(args, context).await,
        Cluster::Proxies { id, renew, output } => proxies(&id, renew, output.output, context).await,
        Cluster::Remove { id, keep_router, forget, headscale } => {
            let id = settings::cluster(&id)?;
            let settings = context.settings(Flags { headscale, ..Flags::default() })?;
            let request = RemoveRequest { id: id.clone(), keep_router, forget };
            let done = guildnet_host::cluster_remove(&settings, &request, &context.talk).await?;
            let again = format!(
                "run the command again; to forget the cluster here all the same: guildnet cluster remove {id} --forget"
            );
            removed(&done, &format!("cluster {id} is not removed yet"), &again, context)
        }
    }
}

/// Says what was removed and what was left; what could not be done yet is a failure.
pub(super) fn removed(done: &Removed, failure: &str, hint: &str, context: &Context) -> Result<(), Failure> {
    done.removed.iter().for_each(|what| context.talk.say(&format!("removed: {what}")));
    done.left.iter().for_each(|what| context.talk.say(&format!("left: {what}")));
    if done.unfinished.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Class::Unreachable, format!("{failure}: {}", done.unfinished.join("; ")), hint))
}

async fn connect(id: &str, connect: bool, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(id)?;
    let settings = context.settings(Flags::default())?;
    let done = guildnet_host::cluster_connect(&settings, &id, connect, &context.talk).await?;
    let word = if connect { "connected" } else { "disconnected" };
    let before = if done.changed { "" } else { " already" };
    let later = if done.served || !connect { "" } else { "; start the Host App: guildnet up" };
    context.talk.say(&format!("cluster {id} is to be {word}{before}{later}"));
    Ok(())
}

async fn set(args: ClusterSet, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let settings = context.settings(Flags::default())?;
    let is_on = |switch| switch == Switch::On;
    if let Some(read_only) = args.read_only.map(is_on) {
        let done = guildnet_host::cluster_set(&settings, &id, read_only, &context.talk).await?;
        let word = if read_only { "read-only" } else { "writable" };
        let before = if done.changed { "" } else { " already" };
        context.talk.say(&format!("cluster {id} is {word}{before}"));
    }
    let request =
        ProxiesRequest { on: args.proxies.map(is_on), socks_port: args.socks_port, http_port: args.http_port };
    if request != ProxiesRequest::default() {
        let done = guildnet_host::cluster_set_proxies(&settings, &id, request, &context.talk).await?;
        let later = if done.served { "" } else { " once the Host App runs: guildnet up" };
        context.talk.say(&match done.on {
            Some((socks, http)) => format!(
                "cluster {id} has proxies: SOCKS5 at {socks}, CONNECT at {http}{later}\ntheir user and password: guildnet cluster proxies {id}"
            ),
            None => format!("cluster {id} has no proxies (they are off)"),
        });
    }
    Ok(())
}

/// A cluster's proxies, credential included: as data.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProxiesShown<'a> {
    enabled: bool,
    socks: String,
    http: String,
    user: &'a str,
    password: &'a str,
}

/// One of the commands that print a credential, because it is asked for nothing else: for browsers and tools on this device.
async fn proxies(id: &str, renew: bool, format: Format, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(id)?;
    let settings = context.settings(Flags::default())?;
    let ProxiesAccess { enabled, socks, http, user, password } =
        guildnet_host::cluster_proxies(&settings, &id, renew).await?;
    if !enabled {
        context.talk.say(&format!("they are off; to switch them on: guildnet cluster set {id} --proxies on"));
    }
    let password = password.expose().as_str();
    let shown = ProxiesShown { enabled, socks: socks.to_string(), http: http.to_string(), user: &user, password };
    print::data(format, &shown, || {
        let mut table = Table::new(&["PROXY", "ADDRESS", "USER", "PASSWORD"], &["URL"]);
        for (kind, scheme, address) in [("SOCKS5", "socks5h", &shown.socks), ("CONNECT", "http", &shown.http)] {
            let url = format!("{scheme}://{user}:{password}@{address}");
            table.row([kind.into(), address.clone(), user.clone(), password.to_owned(), url]);
        }
        table
    })
}

async fn add(args: ClusterAdd, context: &Context) -> Result<(), Failure> {
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
        allow: args.allow,
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
        read_only: args.read_only,
        consent: args.consent.into(),
    };
    let added = guildnet_host::cluster_add(&settings, request, &context.talk).await?;
    context.talk.say(&format!("cluster {} added; start or refresh the Host App: guildnet up", added.id));
    Ok(())
}

fn table(clusters: &[ClusterInfo]) -> Table {
    let mut rows = Table::new(
        &["ID", "CONTEXT", "SERVER", "NETWORKS", "LOGIN SERVER"],
        &[
            "NAMESPACE",
            "SITE",
            "API ADDRESS",
            "CLIENT KEY",
            "READ-ONLY",
            "LOOPBACK",
            "SOCKS5 PROXY",
            "CONNECT PROXY",
            "STATE FOLDER",
        ],
    );
    for c in clusters {
        rows.row([
            c.id.to_string(),
            c.context.clone(),
            c.server.clone(),
            c.ts_routes.to_string(),
            c.ts_login_server.to_string(),
            c.namespace.clone(),
            c.site.map(|s| s.to_string()).unwrap_or_default(),
            c.api_address.clone().unwrap_or_default(),
            if c.has_client_key { "kept" } else { "" }.into(),
            if c.read_only { "on" } else { "off" }.into(),
            c.loopback.map(|ip| ip.to_string()).unwrap_or_default(),
            c.socks_proxy.map(|address| address.to_string()).unwrap_or_default(),
            c.http_proxy.map(|address| address.to_string()).unwrap_or_default(),
            c.ts_state_path.display().to_string(),
        ]);
    }
    rows
}
