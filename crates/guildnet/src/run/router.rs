//! `guildnet router`: its flags become requests, its answers are printed.

use guildnet_host::{HostError, RouterReport, RouterRequest, Settings};
use guildnet_model::{Class, ClusterId};

use super::Context;
use crate::{
    cli::{self, ReachArgs, Router, RouterArgs},
    failure::Failure,
    print::{self, Table},
    settings::{self, Flags},
};

pub(super) async fn run(command: Router, context: &Context) -> Result<(), Failure> {
    match command {
        Router::Ensure(args) => {
            let (settings, wanted) = request(&args.id, args.reach, args.router, context).await?;
            let report = guildnet_host::router_ensure(&settings, wanted, &context.talk).await?;
            context.talk.say(&format!("router of {} is connected", report.id));
            Ok(())
        }
        Router::Manifest(args) => {
            let (settings, wanted) = request(&args.id, ReachArgs::default(), args.router, context).await?;
            print::out(&guildnet_host::router_manifest(&settings, wanted, args.with_key).await?)
        }
        Router::Remove { id, reach, headscale } => {
            let router = RouterArgs { headscale, ..RouterArgs::default() };
            let (settings, wanted) = request(&id, reach, router, context).await?;
            let done = guildnet_host::router_remove(&settings, &wanted, &context.talk).await?;
            super::cluster::removed(
                &done,
                &format!("the router of {id} is not removed yet"),
                "run the command again",
                context,
            )
        }
        Router::Status { id, reach, output } => {
            let (settings, wanted) = request(&id, reach, RouterArgs::default(), context).await?;
            let report = guildnet_host::router_status(&settings, wanted).await?;
            print::data(output.output, &report, || table(&report))?;
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
async fn request(
    id: &str,
    reach: ReachArgs,
    router: RouterArgs,
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

fn table(report: &RouterReport) -> Table {
    let mut rows = Table::new(&["POD", "NODE", "READY", "PHASE", "RESTARTS", "REASON"], &[]);
    for pod in report.router.iter().flat_map(|r| &r.pods) {
        rows.row([
            pod.name.clone(),
            pod.node.clone().unwrap_or_default(),
            if pod.ready { "yes" } else { "no" }.into(),
            pod.phase.clone(),
            pod.restarts.to_string(),
            pod.reason.clone().unwrap_or_default(),
        ]);
    }
    rows
}
