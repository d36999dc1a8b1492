//! `guildnet headscale keys`: its flags become requests, its answers are printed.

use guildnet_host::{KeyInfo, KeyOwner, KeyState, KeyUse};

use super::Context;
use crate::{
    cli::Keys,
    failure::Failure,
    print::{self, Table},
    settings::{self, Flags},
};

pub(super) async fn run(command: Keys, context: &Context) -> Result<(), Failure> {
    match command {
        Keys::List { clusters, output, headscale } => {
            let clusters = clusters.iter().map(|c| settings::cluster(c)).collect::<Result<Vec<_>, _>>()?;
            let settings = context.settings(Flags { headscale, ..Flags::default() })?;
            let keys = guildnet_host::keys_list(&settings, &clusters).await?;
            print::data(output.output, &keys, || table(&keys))
        }
        Keys::Rotate { id, router, headscale } => {
            let id = settings::cluster(&id)?;
            let settings = context.settings(Flags { headscale, ..Flags::default() })?;
            let done = guildnet_host::keys_rotate(&settings, &id, router, &context.talk).await?;
            done.left.iter().for_each(|what| context.talk.say(&format!("left: {what}")));
            let routers = if done.router_key { "; its routers have a new key" } else { "" };
            context.talk.say(&format!("cluster {id}: the connector is {} now{routers}", done.node));
            Ok(())
        }
    }
}

fn table(keys: &[KeyInfo]) -> Table {
    let mut rows = Table::new(
        &["CLUSTER", "KIND", "ID", "STATE", "EXPIRES", "OWNER"],
        &["DAYS LEFT", "CREATED", "REUSABLE", "USED", "TAGS"],
    );
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for key in keys {
        rows.row([
            key.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            match key.kind {
                KeyUse::Router => "router",
                KeyUse::Client => "client",
                KeyUse::Other => "other",
                KeyUse::Api => "api",
            }
            .into(),
            key.id.to_string(),
            match key.state {
                KeyState::Valid => "valid",
                KeyState::NearEnd => "near its end",
                KeyState::Used => "used",
                KeyState::Ended => "ended",
            }
            .into(),
            key.expires.map_or_else(|| "never".into(), |t| t.to_string()),
            match key.owner {
                KeyOwner::Here => "kept here",
                KeyOwner::Guildnet => "guildnet",
                KeyOwner::Others => "others",
            }
            .into(),
            key.days_left.map(|d| d.to_string()).unwrap_or_default(),
            key.created.map(|t| t.to_string()).unwrap_or_default(),
            yes(key.reusable),
            yes(key.used),
            key.tags.join(","),
        ]);
    }
    rows
}
