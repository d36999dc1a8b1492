//! `guildnet headscale`: its flags become requests, its answers are printed.

use super::{Context, keys, managed, policy};
use crate::{
    cli::{Headscale, Namespace},
    failure::Failure,
    settings::{self, Flags},
};

pub(super) async fn run(command: Headscale, context: &Context) -> Result<(), Failure> {
    match command {
        Headscale::Up(args) => managed::up(args, context).await,
        Headscale::Down(args) => managed::down(args.purge, context).await,
        Headscale::Status(args) => managed::status(args.output, context).await,
        Headscale::Backup(args) => managed::backup(args, context).await,
        Headscale::Serve(args) => managed::serve(args, context).await,
        Headscale::EnvSyncLan(args) => managed::env_sync_lan(&args, context),
        Headscale::Namespace(args) => namespace(args, context).await,
        Headscale::Keys(command) => keys::run(command, context).await,
        Headscale::Policy(command) => policy::run(command, context).await,
    }
}

async fn namespace(args: Namespace, context: &Context) -> Result<(), Failure> {
    let id = settings::cluster(&args.id)?;
    let settings = context.settings(Flags { headscale: args.headscale, routes: args.routes, ..Flags::default() })?;
    let routes = settings.routes.clone();
    let consent = args.consent.into();
    let made =
        guildnet_host::namespace_and_keys(&settings, &id, routes, args.file.as_deref(), consent, &context.talk).await?;
    let keys = if made.new_keys { "new keys in" } else { "keys still valid in" };
    context.talk.say(&format!("namespace {}: {keys} {}", made.namespace, made.file.display()));
    context.talk.say(&format!(
        "Next, where the cluster can be reached:\n  guildnet router ensure {id} --kubeconfig FILE --from {file}\nand on the device:\n  guildnet cluster add {id} --kubeconfig FILE --from {file}",
        file = made.file.display()
    ));
    Ok(())
}
